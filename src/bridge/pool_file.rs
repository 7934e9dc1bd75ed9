//! The file in the state directory that keeps the addresses of names across restarts.
//!
//! The file is replaced as a whole, by a rename. A damaged file, or one of another version, is set
//! aside: names then get the addresses of their hash.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::pool::Assignment;
use crate::directory::BRIDGE_FILE;
use crate::state_file::StateFile;

/// Version of the file's format.
const VERSION: u32 = 1;

/// Mode of the file.
const MODE: u32 = 0o600;

/// Limit on the size of the file, in bytes: room for more than a million names.
const MAX_FILE_BYTES: u64 = 256 * 1024 * 1024;

/// The file with the addresses.
#[derive(Clone, Debug)]
pub(super) struct PoolFile {
    file: StateFile,
}

/// The content of the file.
#[derive(Debug, Serialize, Deserialize)]
struct Content {
    version: u32,
    names: BTreeMap<Arc<str>, Assignment>,
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
        Self { file: StateFile::new(directory.join(BRIDGE_FILE), MODE) }
    }

    /// Returns the path.
    pub(super) fn path(&self) -> &Path {
        self.file.path()
    }

    /// Reads the addresses of an earlier run; without a file, there are none.
    ///
    /// Addresses of another pool are returned too.
    ///
    /// # Errors
    /// If the file cannot be read, is damaged, or has another version.
    pub(super) fn read(&self) -> Result<BTreeMap<Arc<str>, Assignment>, UnusablePoolFile> {
        let Some(bytes) = self.file.read(MAX_FILE_BYTES)? else { return Ok(BTreeMap::new()) };
        let content: Content = serde_json::from_slice(&bytes)?;
        if content.version != VERSION {
            return Err(UnusablePoolFile::Version(content.version));
        }
        Ok(content.names)
    }

    /// Replaces the file.
    ///
    /// # Errors
    /// If the directory or the disk does not allow it; the old file remains.
    pub(super) fn replace(
        &self,
        names: impl IntoIterator<Item = (Arc<str>, Assignment)>,
    ) -> io::Result<()> {
        let content = Content { version: VERSION, names: names.into_iter().collect() };
        self.file.replace(|out| {
            serde_json::to_writer(&mut *out, &content)?;
            out.write_all(b"\n")
        })?;
        Ok(())
    }

    /// Renames an unusable file, so that nothing in it is lost; returns its new path.
    ///
    /// # Errors
    /// If the directory cannot be changed.
    pub(super) fn set_aside(&self) -> io::Result<PathBuf> {
        self.file.set_aside()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn names(address: &str) -> BTreeMap<Arc<str>, Assignment> {
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
        std::os::unix::fs::symlink(&elsewhere, file.file.unfinished()).unwrap();
        file.replace(names("127.83.0.1")).unwrap();
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "mine");
    }
}
