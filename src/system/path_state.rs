//! The state of a path, which can be restored later: a file, a link, or absence.
//!
//! A file is replaced by renaming a new one over it, so that no reader ever sees half of it. The
//! new file is synced to disk before any step that depends on it. Only a mount point, which cannot
//! be renamed over, is written in place.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{IFlags, Mode, OFlags, XattrFlags};
use serde::{Deserialize, Serialize};

use crate::regular_file;

/// Maximum size of a file, in bytes: the journal has the files that `install` changes.
const MAX_CONTENT_BYTES: u64 = 1 << 20;

/// Maximum size of a file's list of extended attributes, in bytes.
const MAX_ATTRIBUTE_LIST_BYTES: usize = 16 * 1024;

/// Maximum size of one extended attribute, in bytes (`XATTR_SIZE_MAX`, xattr(7)).
const MAX_ATTRIBUTE_BYTES: usize = 64 * 1024;

/// The state of a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PathState {
    /// The path does not exist.
    Absent,
    /// A regular file.
    File(FileState),
    /// A symbolic link.
    Link {
        /// The path that it contains.
        target: PathBuf,
        /// The user and group ID of the link itself.
        owner: (u32, u32),
    },
}

/// The content and metadata of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FileState {
    /// The content.
    #[serde(rename = "octets")]
    pub content: FileBytes,
    /// The permission bits.
    pub mode: u32,
    /// The user and group ID.
    pub owner: (u32, u32),
    /// The modification time; `None` for the time of writing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modified: Option<SystemTime>,
    /// The extended attributes, including labels of security modules.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, Vec<u8>>,
    /// Whether the file is immutable (`chattr +i`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub immutable: bool,
}

/// The bytes of a file, serialized as a string if they are UTF-8.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FileBytes {
    /// Valid UTF-8.
    Text(String),
    /// Bytes that are not UTF-8.
    Raw(Vec<u8>),
}

impl From<Vec<u8>> for FileBytes {
    fn from(bytes: Vec<u8>) -> Self {
        String::from_utf8(bytes).map_or_else(|error| Self::Raw(error.into_bytes()), Self::Text)
    }
}

impl std::ops::Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Raw(bytes) => bytes,
        }
    }
}

impl std::fmt::Debug for FileBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        String::from_utf8_lossy(self).fmt(f)
    }
}

impl PathState {
    /// Creates the state of a file that root owns and every user can read.
    pub fn new_file(content: impl Into<Vec<u8>>) -> Self {
        Self::File(FileState::new(content))
    }

    /// Returns this file with other content, or a new file if this is not a file.
    #[must_use]
    pub fn with_content(&self, content: Vec<u8>) -> Self {
        match self {
            Self::File(file) => {
                Self::File(FileState { content: content.into(), modified: None, ..file.clone() })
            }
            Self::Absent | Self::Link { .. } => Self::new_file(content),
        }
    }

    /// Returns the content, if this is a file.
    pub fn content(&self) -> Option<&[u8]> {
        match self {
            Self::File(file) => Some(&file.content),
            Self::Absent | Self::Link { .. } => None,
        }
    }

    /// Returns whether the content, or the target of the link, is the same.
    ///
    /// Owner, mode and other metadata do not count.
    pub fn has_same_content(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Absent, Self::Absent) => true,
            (Self::File(one), Self::File(other)) => *one.content == *other.content,
            (Self::Link { target: one, .. }, Self::Link { target: other, .. }) => one == other,
            _ => false,
        }
    }

    /// Reads the state of this path, without following a symbolic link.
    ///
    /// A missing parent directory counts as absence.
    ///
    /// # Errors
    /// If the path cannot be read, or is neither a file nor a link.
    pub fn read(path: &Path) -> io::Result<Self> {
        let metadata = match fs::symlink_metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::Absent),
            Err(error) => return Err(error),
        };
        if metadata.is_symlink() {
            let owner = (metadata.uid(), metadata.gid());
            return Ok(Self::Link { target: fs::read_link(path)?, owner });
        }
        let file = regular_file::open_no_follow(path)?;
        let metadata = file.metadata()?;
        let owner = (metadata.uid(), metadata.gid());
        Ok(Self::File(FileState {
            content: regular_file::read_open(file, MAX_CONTENT_BYTES)?.into(),
            mode: metadata.permissions().mode() & 0o7777,
            owner,
            modified: metadata.modified().ok(),
            attributes: read_attributes(path),
            immutable: is_immutable(path),
        }))
    }

    /// Gives the path this state, and waits until it is on the disk.
    ///
    /// The parent directory must exist. With `in_place`, a file is overwritten instead of replaced;
    /// for mount points.
    ///
    /// # Errors
    /// If the system refuses. Unless `in_place`, the path then keeps its former state.
    pub fn write(&self, path: &Path, in_place: bool) -> io::Result<()> {
        let folder = path.parent().unwrap_or_else(|| Path::new("/"));
        let new = temporary_path(path);
        if let (true, Self::File(file)) = (in_place, self) {
            return file.overwrite(path);
        }
        remove(&new)?;
        if is_immutable(path) {
            set_immutable(path, false)?;
        }
        match self {
            Self::Absent => remove(path)?,
            Self::Link { target, owner } => {
                symlink(target, &new)?;
                std::os::unix::fs::lchown(&new, Some(owner.0), Some(owner.1))?;
                fs::rename(&new, path)?;
            }
            Self::File(file) => {
                file.create(&new)?;
                fs::rename(&new, path)?;
                if file.immutable {
                    set_immutable(path, true)?;
                }
            }
        }
        sync_folder(folder)
    }
}

impl FileState {
    /// Creates the state of a file that root owns and every user can read.
    pub fn new(content: impl Into<Vec<u8>>) -> Self {
        Self {
            content: content.into().into(),
            mode: 0o644,
            owner: (0, 0),
            modified: None,
            attributes: BTreeMap::new(),
            immutable: false,
        }
    }

    fn create(&self, path: &Path) -> io::Result<()> {
        // Only this user can read the file until it has its final mode.
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(&self.content)?;
        std::os::unix::fs::fchown(&file, Some(self.owner.0), Some(self.owner.1))?;
        file.set_permissions(fs::Permissions::from_mode(self.mode))?;
        for (name, value) in &self.attributes {
            use rustix::io::Errno;
            match rustix::fs::fsetxattr(&file, name.as_str(), value, XattrFlags::empty()) {
                // Only a security module may set some attributes; some file systems have none.
                Ok(()) | Err(Errno::PERM | Errno::NOTSUP | Errno::ACCESS) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if let Some(modified) = self.modified {
            file.set_modified(modified)?;
        }
        file.sync_all()
    }

    fn overwrite(&self, path: &Path) -> io::Result<()> {
        let mut file = File::options().write(true).open(path)?;
        file.write_all(&self.content)?;
        file.set_len(self.content.len() as u64)?;
        file.sync_all()
    }
}

/// Returns the path at which a new file is written before it is renamed.
///
/// The path is hidden, beside the final one, with a suffix that readers of drop-ins skip.
pub(super) fn temporary_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".svcdns-new~");
    path.with_file_name(name)
}

/// Removes a file or link, if there is one.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    // A read-only file system refuses to remove even a missing file.
    match fs::symlink_metadata(path) {
        Err(error)
            if error.kind() == ErrorKind::NotFound || error.kind() == ErrorKind::NotADirectory =>
        {
            Ok(())
        }
        Err(error) => Err(error),
        Ok(_) => fs::remove_file(path),
    }
}

/// Removes a directory if it is empty; returns whether it is gone.
pub(super) fn remove_empty_folder(folder: &Path) -> io::Result<bool> {
    match fs::remove_dir(folder) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
        Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => Ok(false),
        Err(error) => Err(error),
    }
}

/// Waits until the entries of a directory are on the disk.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    match File::open(folder) {
        Ok(folder) => folder.sync_all(),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Returns the extended attributes that can be read.
fn read_attributes(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut attributes = BTreeMap::new();
    let mut names = vec![0; MAX_ATTRIBUTE_LIST_BYTES];
    let Ok(length) = rustix::fs::llistxattr(path, &mut names) else { return attributes };
    for name in names[..length]
        .split(|byte| *byte == 0)
        .filter_map(|name| std::str::from_utf8(name).ok())
        .filter(|name| !name.is_empty())
    {
        let mut value = vec![0; MAX_ATTRIBUTE_BYTES];
        if let Ok(length) = rustix::fs::lgetxattr(path, name, &mut value) {
            value.truncate(length);
            attributes.insert(name.to_owned(), value);
        }
    }
    attributes
}

/// Returns whether a file is immutable (`chattr +i`).
///
/// Returns `false` if the file system has no such flag.
pub(super) fn is_immutable(path: &Path) -> bool {
    inode_flags(path).is_some_and(|(_, flags)| flags.contains(IFlags::IMMUTABLE))
}

fn set_immutable(path: &Path, immutable: bool) -> io::Result<()> {
    let Some((file, mut flags)) = inode_flags(path) else { return Ok(()) };
    flags.set(IFlags::IMMUTABLE, immutable);
    Ok(rustix::fs::ioctl_setflags(file, flags)?)
}

/// Opens a file and reads its inode flags; `None` if it has none.
fn inode_flags(path: &Path) -> Option<(rustix::fd::OwnedFd, IFlags)> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty()).ok()?;
    let flags = rustix::fs::ioctl_getflags(&file).ok()?;
    Some((file, flags))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_restored_with_its_metadata() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        fs::write(&path, b"nameserver 192.0.2.1\n\xFF").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        File::open(&path)
            .unwrap()
            .set_modified(
                SystemTime::UNIX_EPOCH + std::time::Duration::from_nanos(1_600_000_000_123_456_789),
            )
            .unwrap();
        let before = PathState::read(&path).unwrap();
        before.with_content(b"ours\n".to_vec()).write(&path, false).unwrap();
        let ours = PathState::read(&path).unwrap();
        assert_eq!(ours.content(), Some(&b"ours\n"[..]));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o640);
        let kept: PathState =
            serde_json::from_str(&serde_json::to_string(&before).unwrap()).unwrap();
        kept.write(&path, false).unwrap();
        assert_eq!(PathState::read(&path).unwrap(), before);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_link_and_a_missing_file_are_restored() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("link");
        symlink("../run/nowhere", &path).unwrap();
        let before = PathState::read(&path).unwrap();
        PathState::new_file("x").write(&path, false).unwrap();
        assert!(fs::symlink_metadata(&path).unwrap().is_file());
        before.write(&path, false).unwrap();
        assert_eq!(PathState::read(&path).unwrap(), before);
        PathState::Absent.write(&path, false).unwrap();
        assert_eq!(PathState::read(&path).unwrap(), PathState::Absent);
        assert_eq!(PathState::read(&path.join("missing/file")).unwrap(), PathState::Absent);
    }

    #[test]
    fn a_file_written_in_place_keeps_its_inode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mounted");
        fs::write(&path, "a long content\n").unwrap();
        let inode = fs::metadata(&path).unwrap().ino();
        PathState::new_file("short\n").write(&path, true).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "short\n");
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
    }

    #[test]
    fn a_leftover_temporary_file_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(temporary_path(&path), "half").unwrap();
        PathState::new_file("whole").write(&path, false).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "whole");
        assert!(!temporary_path(&path).exists());
    }
}
