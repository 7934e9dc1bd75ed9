//! Access to the directory of a file registry: opened if allowed, and read without blocking.
//!
//! All access goes through the opened directory, not its path, so that the directory that was
//! checked is the one that is read, even if the path is replaced meanwhile. The directory is open
//! only during one step of the follower: an open directory would make `umount` fail.
//!
//! The type of a file is checked before it is opened: opening a named pipe may block, and opening a
//! device may have side effects. Symbolic links in the directory are not followed: in a directory
//! that others can write to, a link could make a server that runs as root publish any file.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use nix::unistd::{Uid, User};

use crate::registry::gsvc::MAX_VALUE_BYTES;

/// An open directory that may be followed.
#[derive(Debug)]
pub(super) struct RegistryDirectory {
    fd: OwnedFd,
    identity: DirectoryIdentity,
}

/// Device and inode, which differ if a path names another directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DirectoryIdentity {
    device: u64,
    inode: u64,
}

/// Reason why a directory cannot be followed.
#[derive(Debug, thiserror::Error)]
pub(super) enum RegistryDirectoryError {
    /// The default directory belongs to another user.
    #[error(
        "{path} belongs to {owner}, who could control every name, so it is not followed; \
         to follow it anyway, name it: --registry file://{path}",
        path = path.display()
    )]
    Foreign { path: PathBuf, owner: String },
    /// The path names something other than a directory.
    #[error(
        "{path} is not a directory: remove it, or name another with --registry file:///…",
        path = path.display()
    )]
    NotADirectory { path: PathBuf },
    /// The directory was deleted, but a mount still shows it.
    #[error(
        "{path} was deleted where it is mounted from: mount it again, or restart the container",
        path = path.display()
    )]
    Deleted { path: PathBuf },
    /// The directory cannot be read.
    #[error("{path} cannot be read: {error}", path = path.display())]
    Unreadable { path: PathBuf, error: io::Error },
}

/// The result of reading a file.
#[derive(Debug)]
pub(super) enum FileRead {
    /// The file does not exist.
    Missing,
    /// The file has the known modification time and was not read again.
    Unchanged,
    /// A regular file; the content is cut one byte after [`MAX_VALUE_BYTES`].
    Content { modified: SystemTime, content: Vec<u8> },
    /// Not a regular file, or no permission to read it.
    Unreadable { modified: SystemTime },
    /// A system call failed; the next attempt may succeed.
    Failed,
}

impl RegistryDirectory {
    /// Opens the directory at `path`; returns `None` if nothing is there.
    ///
    /// Unless it was `named`, the path must be a directory and not a link to one, and belong to
    /// root or to our own user.
    pub(super) fn open(path: &Path, named: bool) -> Result<Option<Self>, RegistryDirectoryError> {
        let unreadable = |errno: Errno| RegistryDirectoryError::Unreadable {
            path: path.into(),
            error: errno.into(),
        };
        let mut flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        flags.set(OFlag::O_NOFOLLOW, !named);
        let fd = match open(path, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::ENOENT) => return Ok(None),
            Err(Errno::ENOTDIR | Errno::ELOOP) => {
                return Err(RegistryDirectoryError::NotADirectory { path: path.into() });
            }
            // A foreign owner explains more than a missing permission.
            Err(Errno::EACCES) if !named => {
                let owner = fs::symlink_metadata(path).ok().map(|metadata| metadata.uid());
                return Err(check_owner(path, owner).unwrap_or_else(|| unreadable(Errno::EACCES)));
            }
            Err(errno) => return Err(unreadable(errno)),
        };
        let status = fstat(&fd).map_err(unreadable)?;
        if !named && let Some(error) = check_owner(path, Some(status.st_uid)) {
            return Err(error);
        }
        if status.st_nlink == 0 {
            return Err(RegistryDirectoryError::Deleted { path: path.into() });
        }
        // Without search permission, every file in the directory would look unreadable.
        fstatat(&fd, ".", AtFlags::empty()).map_err(unreadable)?;
        let identity = DirectoryIdentity { device: status.st_dev, inode: status.st_ino };
        Ok(Some(Self { fd, identity }))
    }

    /// Returns the identity of the directory.
    pub(super) fn identity(&self) -> DirectoryIdentity {
        self.identity
    }

    /// Returns a path to this very directory, valid while it is open.
    ///
    /// The path that was opened may name another directory by now.
    pub(super) fn own_path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.fd.as_raw_fd()).into()
    }

    /// Returns the names in the directory that may be registrations.
    pub(super) fn names(&self) -> io::Result<Vec<OsString>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = Dir::openat(&self.fd, ".", flags, Mode::empty())?;
        let mut names = Vec::new();
        for entry in directory {
            let name = OsString::from_vec(entry?.file_name().to_bytes().to_vec());
            if is_candidate(&name) {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// Reads a file, unless its modification time is `known`.
    pub(super) fn read(&self, name: &OsStr, known: Option<SystemTime>) -> FileRead {
        let status = match fstatat(&self.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(status) => status,
            Err(Errno::ENOENT) => return FileRead::Missing,
            Err(_) => return FileRead::Failed,
        };
        let modified = modified(&status);
        if known == Some(modified) {
            return FileRead::Unchanged;
        }
        if !is_regular(&status) {
            return FileRead::Unreadable { modified };
        }
        // Never block or follow a link, even if the file is replaced between stat and open.
        let flags = OFlag::O_RDONLY
            | OFlag::O_NONBLOCK
            | OFlag::O_NOFOLLOW
            | OFlag::O_NOCTTY
            | OFlag::O_CLOEXEC;
        match openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => read_regular(fd),
            Err(Errno::ENOENT) => FileRead::Missing,
            Err(Errno::EACCES | Errno::EPERM | Errno::ELOOP) => FileRead::Unreadable { modified },
            Err(_) => FileRead::Failed,
        }
    }
}

impl DirectoryIdentity {
    /// Returns what `path` names now, directory or not; `None` if that cannot be determined.
    pub(super) fn at(path: &Path, named: bool) -> Option<Self> {
        let found = if named { path.metadata() } else { path.symlink_metadata() }.ok()?;
        Some(Self { device: found.dev(), inode: found.ino() })
    }
}

/// Returns whether a file name may be a registration: neither hidden nor temporary.
pub(super) fn is_candidate(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    !bytes.starts_with(b".") && !bytes.ends_with(b".tmp")
}

fn read_regular(fd: OwnedFd) -> FileRead {
    let Ok(status) = fstat(&fd) else { return FileRead::Failed };
    let modified = modified(&status);
    if !is_regular(&status) {
        return FileRead::Unreadable { modified };
    }
    let mut content = Vec::new();
    match fs::File::from(fd).take(MAX_VALUE_BYTES as u64 + 1).read_to_end(&mut content) {
        Ok(_) => FileRead::Content { modified, content },
        Err(_) => FileRead::Failed,
    }
}

fn is_regular(status: &FileStat) -> bool {
    SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG
}

fn modified(status: &FileStat) -> SystemTime {
    let seconds = u64::try_from(status.st_mtime).unwrap_or(0);
    let nanos = u32::try_from(status.st_mtime_nsec).unwrap_or(0);
    SystemTime::UNIX_EPOCH
        .checked_add(Duration::new(seconds, nanos))
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Returns whether an owner is root or the server's own user.
pub(super) fn is_trusted_owner(owner: Uid) -> bool {
    owner.is_root() || owner == Uid::effective()
}

/// Returns an error if the owner is neither root nor the server's own user.
fn check_owner(path: &Path, owner: Option<u32>) -> Option<RegistryDirectoryError> {
    let owner = owner.map(Uid::from_raw).filter(|owner| !is_trusted_owner(*owner))?;
    let user = User::from_uid(owner).ok().flatten();
    let owner = user.map_or_else(|| format!("user {owner}"), |user| user.name);
    Some(RegistryDirectoryError::Foreign { path: path.into(), owner })
}
