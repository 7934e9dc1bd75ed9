//! What stands at a path, and how it is replaced.
//!
//! Files are replaced by renaming a new one over them, so that nobody ever reads half of one, and are on the disk before
//! anything that builds on them is done. Only a mount of its own, which cannot be renamed over, is written in place.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{IFlags, Mode, OFlags, XattrFlags};
use serde::{Deserialize, Serialize};

/// What stands at a path, as far as it is put back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Entry {
    /// Nothing.
    Absent,
    /// A file.
    File(FileEntry),
    /// A symbolic link.
    Link {
        /// What it says.
        target: PathBuf,
        /// Its owner and group.
        owner: (u32, u32),
    },
}

/// A file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FileEntry {
    /// What it holds.
    pub octets: Octets,
    /// Its permission bits.
    pub mode: u32,
    /// Its owner and group.
    pub owner: (u32, u32),
    /// When it was changed last; none for now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modified: Option<SystemTime>,
    /// Its extended attributes, the labels of security modules among them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, Vec<u8>>,
    /// Whether nobody may change it (`chattr +i`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub immutable: bool,
}

/// Octets that are mostly text: written as such wherever they are.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Octets {
    /// Text.
    Text(String),
    /// Anything else.
    Raw(Vec<u8>),
}

impl From<Vec<u8>> for Octets {
    fn from(octets: Vec<u8>) -> Self {
        String::from_utf8(octets).map_or_else(|error| Self::Raw(error.into_bytes()), Self::Text)
    }
}

impl std::ops::Deref for Octets {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Raw(octets) => octets,
        }
    }
}

impl std::fmt::Debug for Octets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        String::from_utf8_lossy(self).fmt(f)
    }
}

impl Entry {
    /// A new file of root's that everybody may read.
    pub fn new(octets: impl Into<Vec<u8>>) -> Self {
        Self::File(FileEntry {
            octets: octets.into().into(),
            mode: 0o644,
            owner: (0, 0),
            modified: None,
            attributes: BTreeMap::new(),
            immutable: false,
        })
    }

    /// This file with other octets; a new one where it is none.
    #[must_use]
    pub fn with(&self, octets: Vec<u8>) -> Self {
        match self {
            Self::File(file) => Self::File(FileEntry { octets: octets.into(), modified: None, ..file.clone() }),
            Self::Absent | Self::Link { .. } => Self::new(octets),
        }
    }

    /// What it holds, where it is a file.
    pub fn octets(&self) -> Option<&[u8]> {
        match self {
            Self::File(file) => Some(&file.octets),
            Self::Absent | Self::Link { .. } => None,
        }
    }

    /// Whether a reader sees the same: content or target, whatever the owner and the mode.
    pub fn reads_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Absent, Self::Absent) => true,
            (Self::File(one), Self::File(other)) => *one.octets == *other.octets,
            (Self::Link { target: one, .. }, Self::Link { target: other, .. }) => one == other,
            _ => false,
        }
    }

    /// What stands at this path; a symbolic link is not followed.
    ///
    /// # Errors
    /// When it cannot be read, or is neither a file nor a link.
    pub fn read(path: &Path) -> io::Result<Self> {
        let about = match fs::symlink_metadata(path) {
            Ok(about) => about,
            // Where a folder on the way is missing, so is the file.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::Absent),
            Err(error) => return Err(error),
        };
        let owner = (about.uid(), about.gid());
        if about.is_symlink() {
            return Ok(Self::Link { target: fs::read_link(path)?, owner });
        }
        if !about.is_file() {
            return Err(io::Error::other("it is not a file"));
        }
        Ok(Self::File(FileEntry {
            octets: fs::read(path)?.into(),
            mode: about.permissions().mode() & 0o7777,
            owner,
            modified: about.modified().ok(),
            attributes: attributes(path),
            immutable: is_immutable(path),
        }))
    }

    /// Makes this be what stands at `path`, and waits until that is on the disk. The folder must exist. `in_place` writes
    /// into the file that is there: only where it cannot be replaced.
    ///
    /// # Errors
    /// When the system refuses; what stood there stands there still then, unless it is written in place.
    pub fn put(&self, path: &Path, in_place: bool) -> io::Result<()> {
        let folder = path.parent().unwrap_or_else(|| Path::new("/"));
        let new = new_path(path);
        if let (true, Self::File(file)) = (in_place, self) {
            return file.write_into(path);
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
                file.write_new(&new)?;
                fs::rename(&new, path)?;
                if file.immutable {
                    set_immutable(path, true)?;
                }
            }
        }
        sync(folder)
    }
}

impl FileEntry {
    fn write_new(&self, path: &Path) -> io::Result<()> {
        // Nobody else's until it is whole.
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(&self.octets)?;
        std::os::unix::fs::fchown(&file, Some(self.owner.0), Some(self.owner.1))?;
        file.set_permissions(fs::Permissions::from_mode(self.mode))?;
        for (name, value) in &self.attributes {
            match rustix::fs::fsetxattr(&file, name.as_str(), value, XattrFlags::empty()) {
                // Labels that only their security module may set, and file systems that have none.
                Ok(()) | Err(rustix::io::Errno::PERM | rustix::io::Errno::NOTSUP | rustix::io::Errno::ACCESS) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if let Some(modified) = self.modified {
            file.set_modified(modified)?;
        }
        file.sync_all()
    }

    fn write_into(&self, path: &Path) -> io::Result<()> {
        let mut file = File::options().write(true).open(path)?;
        file.write_all(&self.octets)?;
        file.set_len(self.octets.len() as u64)?;
        file.sync_all()
    }
}

/// Where a file is written before it is renamed: beside it, hidden, and with an end that readers of drop-in folders skip.
pub(super) fn new_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".svcdns-new~");
    path.with_file_name(name)
}

/// Removes a file or link; none is fine.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    // Looked at first: a file system that is mounted read-only refuses to remove even what is not there.
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound || error.kind() == ErrorKind::NotADirectory => Ok(()),
        Err(error) => Err(error),
        Ok(_) => fs::remove_file(path),
    }
}

/// Waits until the entries of a folder are on the disk.
pub(super) fn sync(folder: &Path) -> io::Result<()> {
    match File::open(folder) {
        Ok(folder) => folder.sync_all(),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn attributes(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut names = vec![0; 16 * 1024];
    let Ok(length) = rustix::fs::llistxattr(path, &mut names) else { return found };
    for name in names[..length].split(|octet| *octet == 0).filter_map(|name| std::str::from_utf8(name).ok()).filter(|name| !name.is_empty())
    {
        let mut value = vec![0; 64 * 1024];
        if let Ok(length) = rustix::fs::lgetxattr(path, name, &mut value) {
            value.truncate(length);
            found.insert(name.to_owned(), value);
        }
    }
    found
}

/// Whether the file system lets nobody change the file (`chattr +i`); false where it knows no such thing.
pub(super) fn is_immutable(path: &Path) -> bool {
    flags(path).is_some_and(|(_, flags)| flags.contains(IFlags::IMMUTABLE))
}

fn set_immutable(path: &Path, immutable: bool) -> io::Result<()> {
    let Some((file, mut flags)) = flags(path) else { return Ok(()) };
    flags.set(IFlags::IMMUTABLE, immutable);
    Ok(rustix::fs::ioctl_setflags(file, flags)?)
}

fn flags(path: &Path) -> Option<(rustix::fd::OwnedFd, IFlags)> {
    let wanted = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, wanted, Mode::empty()).ok()?;
    let flags = rustix::fs::ioctl_getflags(&file).ok()?;
    Some((file, flags))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_comes_back_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        fs::write(&path, b"nameserver 192.0.2.1\n\xFF").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        File::open(&path)
            .unwrap()
            .set_modified(SystemTime::UNIX_EPOCH + std::time::Duration::from_nanos(1_600_000_000_123_456_789))
            .unwrap();
        let before = Entry::read(&path).unwrap();
        before.with(b"ours\n".to_vec()).put(&path, false).unwrap();
        let ours = Entry::read(&path).unwrap();
        assert_eq!(ours.octets(), Some(&b"ours\n"[..]));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o640);
        let kept: Entry = serde_json::from_str(&serde_json::to_string(&before).unwrap()).unwrap();
        kept.put(&path, false).unwrap();
        assert_eq!(Entry::read(&path).unwrap(), before);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn links_and_absence_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("link");
        symlink("../run/nowhere", &path).unwrap();
        let before = Entry::read(&path).unwrap();
        Entry::new("x").put(&path, false).unwrap();
        assert!(fs::symlink_metadata(&path).unwrap().is_file());
        before.put(&path, false).unwrap();
        assert_eq!(Entry::read(&path).unwrap(), before);
        Entry::Absent.put(&path, false).unwrap();
        assert_eq!(Entry::read(&path).unwrap(), Entry::Absent);
        assert_eq!(Entry::read(&path.join("below/what/is/not")).unwrap(), Entry::Absent);
    }

    #[test]
    fn written_in_place_it_is_the_same_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mounted");
        fs::write(&path, "a long content\n").unwrap();
        let inode = fs::metadata(&path).unwrap().ino();
        Entry::new("short\n").put(&path, true).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "short\n");
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
    }

    #[test]
    fn what_was_left_half_written_is_no_obstacle() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(new_path(&path), "half").unwrap();
        Entry::new("whole").put(&path, false).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "whole");
        assert!(!new_path(&path).exists());
    }
}
