//! The folder: opened once it may be followed, read without ever waiting for a file in it.
//!
//! Everything goes through the opened folder and not through its path, so what was checked is what is read, whoever moves
//! the path meanwhile. A file's type is looked at before it is opened: opening a pipe can wait for ever, opening a device
//! can do anything. Symbolic links in the folder are not followed: where others may write to it, a link would make a server
//! of root's publish any file.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use nix::unistd::{Uid, User};

use crate::registry::gsvc::MAX_VALUE;

/// An opened folder that may be followed.
#[derive(Debug)]
pub(super) struct Folder {
    fd: OwnedFd,
    identity: (u64, u64),
}

/// Why a folder is not followed.
#[derive(Debug, thiserror::Error)]
pub(super) enum FolderError {
    /// The implicit folder is somebody else's.
    #[error(
        "{path} belongs to {owner}, who could answer for every name: not followed. To follow it all the same, name it: --registry file://{path}",
        path = path.display()
    )]
    Foreign { path: PathBuf, owner: String },
    /// Something else is at the path.
    #[error("{path} is not a folder: remove what is there, or name another with --registry file:///…", path = path.display())]
    NotAFolder { path: PathBuf },
    /// It cannot be read.
    #[error("{path} cannot be read: {error}", path = path.display())]
    Unreadable { path: PathBuf, error: io::Error },
}

/// What is found under a file's name.
#[derive(Debug)]
pub(super) enum Found {
    /// Nothing.
    Gone,
    /// A regular file that was last written at the asked time: not read again.
    Unchanged,
    /// A regular file, and up to one octet more than the largest value that is read.
    File { written: SystemTime, content: Vec<u8> },
    /// Something that is no regular file, or that may not be read.
    Unreadable { written: SystemTime },
    /// The system could not say this time.
    Failed,
}

impl Folder {
    /// Opens the folder at `path`; none where there is nothing. Unless it was `named` by a person it must be a folder
    /// itself, not a link to one, and belong to root or to our own user.
    pub(super) fn open(path: &Path, named: bool) -> Result<Option<Self>, FolderError> {
        let unreadable = |errno: Errno| FolderError::Unreadable { path: path.into(), error: errno.into() };
        let mut flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        flags.set(OFlag::O_NOFOLLOW, !named);
        let fd = match open(path, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::ENOENT) => return Ok(None),
            Err(Errno::ENOTDIR | Errno::ELOOP) => return Err(FolderError::NotAFolder { path: path.into() }),
            // Of a folder that is closed to us, whose it is says more than that it is closed.
            Err(Errno::EACCES) if !named => {
                let owner = fs::symlink_metadata(path).ok().map(|metadata| metadata.uid());
                return Err(foreign(path, owner).unwrap_or_else(|| unreadable(Errno::EACCES)));
            }
            Err(errno) => return Err(unreadable(errno)),
        };
        let status = fstat(&fd).map_err(unreadable)?;
        if !named && let Some(error) = foreign(path, Some(status.st_uid)) {
            return Err(error);
        }
        // A folder that may be listed but not searched would make every file in it look unreadable.
        fstatat(&fd, ".", AtFlags::empty()).map_err(unreadable)?;
        Ok(Some(Self { fd, identity: (status.st_dev, status.st_ino) }))
    }

    /// Tells this folder from any other that may stand at the same path.
    pub(super) fn identity(&self) -> (u64, u64) {
        self.identity
    }

    /// The names in the folder that may be registrations.
    pub(super) fn names(&self) -> io::Result<Vec<OsString>> {
        let directory = Dir::openat(&self.fd, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        let mut names = Vec::new();
        for entry in directory {
            let name = OsString::from_vec(entry?.file_name().to_bytes().to_vec());
            if is_candidate(&name) {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// Looks at one file, and reads it unless it was last written at `known`.
    pub(super) fn look(&self, name: &OsStr, known: Option<SystemTime>) -> Found {
        let status = match fstatat(&self.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(status) => status,
            Err(Errno::ENOENT) => return Found::Gone,
            Err(_) => return Found::Failed,
        };
        let written = written(&status);
        if known == Some(written) {
            return Found::Unchanged;
        }
        if !is_regular(&status) {
            return Found::Unreadable { written };
        }
        // Not to wait, and not to follow, whatever takes the file's place between the look and the opening.
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        match openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => read(fd),
            Err(Errno::ENOENT) => Found::Gone,
            Err(Errno::EACCES | Errno::EPERM | Errno::ELOOP) => Found::Unreadable { written },
            Err(_) => Found::Failed,
        }
    }
}

/// Whether a name in the folder may be a registration: neither hidden nor in the making.
pub(super) fn is_candidate(name: &OsStr) -> bool {
    let octets = name.as_bytes();
    !octets.starts_with(b".") && !octets.ends_with(b".tmp")
}

fn read(fd: OwnedFd) -> Found {
    let Ok(status) = fstat(&fd) else { return Found::Failed };
    let written = written(&status);
    if !is_regular(&status) {
        return Found::Unreadable { written };
    }
    let mut content = Vec::new();
    match fs::File::from(fd).take(MAX_VALUE as u64 + 1).read_to_end(&mut content) {
        Ok(_) => Found::File { written, content },
        Err(_) => Found::Failed,
    }
}

fn is_regular(status: &FileStat) -> bool {
    SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG
}

fn written(status: &FileStat) -> SystemTime {
    let seconds = u64::try_from(status.st_mtime).unwrap_or(0);
    let nanos = u32::try_from(status.st_mtime_nsec).unwrap_or(0);
    SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos)).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// The complaint about an owner who is neither root nor ourselves.
fn foreign(path: &Path, owner: Option<u32>) -> Option<FolderError> {
    let owner = owner.map(Uid::from_raw).filter(|owner| !owner.is_root() && *owner != Uid::effective())?;
    let name = User::from_uid(owner).ok().flatten().map_or_else(|| format!("user {owner}"), |user| user.name);
    Some(FolderError::Foreign { path: path.into(), owner: name })
}
