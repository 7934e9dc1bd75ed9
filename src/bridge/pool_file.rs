//! The file in the state directory that keeps the addresses of names across restarts.
//!
//! The file is replaced as a whole, by a rename, before the addresses in it are used. A file of
//! another version, or a damaged one, is set aside: names then get the addresses of their hash.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::pool::Assignment;
use crate::directory::BRIDGE_FILE;
use crate::regular_file;

/// Version of the file's format.
const VERSION: u32 = 1;

/// Limit on the size of the file, in bytes: 16 million names of 100 bytes would exceed it.
const MAX_FILE_BYTES: u64 = 256 * 1024 * 1024;

/// The file with the addresses.
#[derive(Debug)]
pub(super) struct PoolFile {
    path: PathBuf,
}

/// The content of the file.
#[derive(Debug, Serialize, Deserialize)]
struct Content {
    version: u32,
    names: BTreeMap<Box<str>, Assignment>,
}

/// Reason why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum UnusablePoolFile {
    /// The file cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The file is not the JSON that this program writes.
    #[error("it is damaged: {0}")]
    Damaged(#[from] serde_json::Error),
    /// Another version of this program wrote the file.
    #[error("it has version {0}, and this program reads version {VERSION}")]
    Version(u32),
}

impl PoolFile {
    /// Returns the file of a state directory.
    pub(super) fn new(directory: &Path) -> Self {
        Self { path: directory.join(BRIDGE_FILE) }
    }

    /// Returns the path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the addresses of an earlier run; without a file, there are none.
    ///
    /// Addresses of another pool are returned too.
    ///
    /// # Errors
    /// If the file cannot be read, is damaged, or has another version.
    pub(super) fn read(&self) -> Result<BTreeMap<Box<str>, Assignment>, UnusablePoolFile> {
        let file = match regular_file::open_no_follow(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(error) => return Err(error.into()),
        };
        let content: Content =
            serde_json::from_slice(&regular_file::read_open(file, MAX_FILE_BYTES)?)?;
        if content.version != VERSION {
            return Err(UnusablePoolFile::Version(content.version));
        }
        Ok(content.names)
    }

    /// Replaces the file.
    ///
    /// After a power cut at any moment, the old or the new file is there.
    ///
    /// # Errors
    /// If the directory or the disk does not allow it; the old file remains.
    pub(super) fn replace(&self, names: BTreeMap<Box<str>, Assignment>) -> io::Result<()> {
        let new = self.with_suffix(".new");
        let written = write(&new, &Content { version: VERSION, names });
        if written.is_err() {
            let _ = remove(&new);
        }
        written?;
        fs::rename(&new, &self.path)?;
        File::open(self.path.parent().unwrap_or_else(|| Path::new(".")))?.sync_all()
    }

    /// Renames an unusable file, so that nothing in it is lost; returns its new path.
    ///
    /// # Errors
    /// If the directory cannot be changed.
    pub(super) fn set_aside(&self) -> io::Result<PathBuf> {
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

/// Writes the content to a new file, and to the disk.
fn write(path: &Path, content: &Content) -> io::Result<()> {
    remove(path)?;
    // In a named directory, another user may place a link: `create_new` does not follow it.
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let mut out = BufWriter::new(file);
    serde_json::to_writer(&mut out, content)?;
    out.write_all(b"\n")?;
    out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

/// Removes a file, which may be missing.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(address: &str) -> BTreeMap<Box<str>, Assignment> {
        let assignment = Assignment { address: address.parse().unwrap(), released: Some(5) };
        BTreeMap::from([("hello".into(), assignment)])
    }

    #[test]
    fn what_is_written_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = PoolFile::new(folder.path());
        assert!(file.read().unwrap().is_empty());
        file.replace(names("127.83.0.1")).unwrap();
        file.replace(names("127.83.0.2")).unwrap();
        assert_eq!(file.read().unwrap(), names("127.83.0.2"));
        let found: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(found.len(), 1, "{found:?}");
    }

    #[test]
    fn damaged_files_and_files_of_other_versions_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let file = PoolFile::new(folder.path());
        file.replace(names("127.83.0.1")).unwrap();
        let text = fs::read_to_string(file.path()).unwrap();
        fs::write(file.path(), &text[..text.len() / 2]).unwrap();
        assert!(matches!(file.read(), Err(UnusablePoolFile::Damaged(_))));
        fs::write(file.path(), text.replace("\"version\":1", "\"version\":2")).unwrap();
        assert!(matches!(file.read(), Err(UnusablePoolFile::Version(2))));
        let aside = file.set_aside().unwrap();
        assert!(aside.exists() && file.read().unwrap().is_empty());
    }

    #[test]
    fn links_are_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let file = PoolFile::new(folder.path());
        let elsewhere = folder.path().join("elsewhere");
        fs::write(&elsewhere, "mine").unwrap();
        std::os::unix::fs::symlink(&elsewhere, file.path()).unwrap();
        assert!(matches!(file.read(), Err(UnusablePoolFile::Io(_))));
        std::os::unix::fs::symlink(&elsewhere, file.with_suffix(".new")).unwrap();
        file.replace(names("127.83.0.1")).unwrap();
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "mine");
    }
}
