//! Reads of regular files, which never wait: credentials, certificates, the machine's own files.
//!
//! Opening a named pipe waits for its writer, and opening a device can have effects. A check before
//! is not enough, because the file can be replaced before it is opened.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::OFlag;

/// Reads a regular file of at most `max_bytes`, on a blocking thread.
///
/// # Errors
/// If the file cannot be read, is not a regular file, or is larger.
pub(crate) async fn read(path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || read_blocking(&path, max_bytes))
        .await
        .map_err(io::Error::other)?
}

/// Reads a regular file of at most `max_bytes`.
///
/// A larger file is an error, never cut off: half a list of certificates looks like a whole one.
///
/// # Errors
/// If the file cannot be read, is not a regular file ([`ErrorKind::InvalidInput`]), or is larger
/// ([`ErrorKind::FileTooLarge`]).
pub(crate) fn read_blocking(path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    read_open(open(path)?, max_bytes)
}

/// Reads the rest of an open file, of at most `max_bytes`.
///
/// # Errors
/// If the file cannot be read, or is larger ([`ErrorKind::FileTooLarge`]).
pub(crate) fn read_open(file: File, max_bytes: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max_bytes {
        let why = format!("it has more than {max_bytes} bytes (a fixed limit)");
        return Err(io::Error::new(ErrorKind::FileTooLarge, why));
    }
    Ok(bytes)
}

/// Opens a regular file.
///
/// # Errors
/// If the file cannot be opened, or is not a regular file ([`ErrorKind::InvalidInput`]).
pub(crate) fn open(path: &Path) -> io::Result<File> {
    check(&path.metadata()?)?;
    open_checked(path, OFlag::empty())
}

/// Opens a regular file, unless the path is a symbolic link.
///
/// # Errors
/// Those of [`open`], and if the path is a symbolic link.
pub(crate) fn open_no_follow(path: &Path) -> io::Result<File> {
    check(&path.symlink_metadata()?)?;
    open_checked(path, OFlag::O_NOFOLLOW)
}

/// Opens a file that was checked before, and checks it again: it may have been replaced.
fn open_checked(path: &Path, flags: OFlag) -> io::Result<File> {
    let flags = flags | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    check(&file.metadata()?)?;
    Ok(file)
}

/// Checks that a file is a regular one.
fn check(metadata: &Metadata) -> io::Result<()> {
    let why = match metadata.file_type() {
        kind if kind.is_file() => return Ok(()),
        kind if kind.is_dir() => "it is a directory",
        _ => "it is not a regular file",
    };
    Err(io::Error::new(ErrorKind::InvalidInput, why))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_regular_files_within_the_size_limit_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let why = || read_blocking(&path, 4).unwrap_err().to_string();
        assert_eq!(why(), "No such file or directory (os error 2)");
        fs::write(&path, "four").unwrap();
        assert_eq!(read_blocking(&path, 4).unwrap(), b"four");
        fs::write(&path, "five5").unwrap();
        assert_eq!(why(), "it has more than 4 bytes (a fixed limit)");
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(why(), "it is not a regular file");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(why(), "it is a directory");
    }

    #[test]
    fn a_file_replaced_by_a_pipe_or_device_before_opening_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let open_after_check = |flags| open_checked(&path, flags).map(drop).unwrap_err();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(open_after_check(OFlag::empty()).kind(), ErrorKind::InvalidInput);
        fs::remove_file(&path).unwrap();
        symlink("/dev/zero", &path).unwrap();
        assert_eq!(open_after_check(OFlag::empty()).kind(), ErrorKind::InvalidInput);
        let link = open_after_check(OFlag::O_NOFOLLOW);
        assert_eq!(link.raw_os_error(), Some(nix::libc::ELOOP));
        assert_eq!(open_no_follow(&path).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}
