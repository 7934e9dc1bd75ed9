//! Bounded reads of regular files: credentials, certificates, resolv.conf.

use std::fs::{File, OpenOptions};
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
/// If the file cannot be read, is not a regular file, or is larger.
pub(crate) fn read_blocking(path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    let mut bytes = Vec::new();
    file.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max_bytes {
        let why = format!("it has more than {max_bytes} bytes (a fixed limit)");
        return Err(io::Error::new(ErrorKind::FileTooLarge, why));
    }
    Ok(bytes)
}

/// Opens a regular file.
fn open(path: &Path) -> io::Result<File> {
    let regular = |is_file: bool| {
        let error = || io::Error::new(ErrorKind::InvalidInput, "it is not a regular file");
        is_file.then_some(()).ok_or_else(error)
    };
    // Checked before, because opening a device can have effects, and again after, because the file
    // may have been replaced. Opening a named pipe would block without O_NONBLOCK.
    regular(path.metadata()?.is_file())?;
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    regular(file.metadata()?.is_file())?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

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
        assert_eq!(why(), "it is not a regular file");
    }
}
