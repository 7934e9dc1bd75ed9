//! Files in the state directory that are replaced as a whole, and survive a power cut.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, BufWriter, ErrorKind, IntoInnerError};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::regular_file;

/// A file that is only read and replaced as a whole.
///
/// A path with the suffix `.new` is the next file, unfinished until it is renamed; one with
/// `.unusable` was set aside.
#[derive(Clone, Debug)]
pub(crate) struct StateFile {
    path: PathBuf,
    mode: u32,
}

impl StateFile {
    /// Returns the file at this path; `replace` gives it this mode.
    pub(crate) fn new(path: PathBuf, mode: u32) -> Self {
        Self { path, mode }
    }

    /// Returns the path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the path of the next file until it is complete.
    pub(crate) fn unfinished(&self) -> PathBuf {
        self.with_suffix(".new")
    }

    /// Reads the file, of at most `max_bytes`; returns `None` if there is none.
    ///
    /// # Errors
    /// If the file cannot be read, is larger, is a link or is not a regular file.
    pub(crate) fn read(&self, max_bytes: u64) -> io::Result<Option<Vec<u8>>> {
        match regular_file::open_no_follow(&self.path) {
            Ok(file) => regular_file::read_open(file, max_bytes).map(Some),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Replaces the file; `write` writes its content. Returns the size in bytes.
    ///
    /// After a power cut at any moment, the old or the new file is there: the new one is on disk
    /// before it gets its name, and the directory before this returns.
    ///
    /// # Errors
    /// If the directory or the disk does not allow it, and those of `write`; the old file remains.
    pub(crate) fn replace(
        &self,
        write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
    ) -> io::Result<u64> {
        let new = self.unfinished();
        let written = write_new(&new, self.mode, write);
        if written.is_err() {
            // Unfinished bytes would also take room on a full disk.
            let _ = remove(&new);
        }
        let size = written?;
        fs::rename(&new, &self.path)?;
        let directory = self.path.parent().unwrap_or_else(|| Path::new("."));
        File::open(directory)?.sync_all()?;
        Ok(size)
    }

    /// Renames the file, so that it is neither read nor replaced; returns its new path.
    ///
    /// # Errors
    /// If the directory cannot be changed.
    pub(crate) fn set_aside(&self) -> io::Result<PathBuf> {
        let aside = self.with_suffix(".unusable");
        fs::rename(&self.path, &aside)?;
        Ok(aside)
    }

    fn with_suffix(&self, suffix: &str) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(suffix);
        path.into()
    }
}

/// Writes a new file, and waits until it is on the disk.
fn write_new(
    path: &Path,
    mode: u32,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> io::Result<u64> {
    remove(path)?;
    // In a named directory, another user may place a link: `create_new` does not follow it.
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    let mut out = BufWriter::new(file);
    write(&mut out)?;
    let file = out.into_inner().map_err(IntoInnerError::into_error)?;
    file.sync_all()?;
    Ok(file.metadata()?.len())
}

/// Removes a file, which may be missing.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
