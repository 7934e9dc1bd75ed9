//! Errors of reading and following a journal.

use std::fmt;
use std::io::{self, ErrorKind};
use std::path::PathBuf;

use super::command::CommandError;
use super::port_owner::PortOwner;

/// The path of the journal.
pub(super) const JOURNAL: &str = "/var/lib/svcdns-install/install.json";

/// A path through which a user other than root can change one of root's files.
#[derive(Debug)]
pub struct UnsafePath {
    /// The file itself, or a directory or link on the way to it.
    pub path: PathBuf,
    /// Fault of the path.
    pub reason: String,
}

impl fmt::Display for UnsafePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.path.display(), self.reason)
    }
}

/// Error when a journal is read, written or followed.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// A system call failed.
    #[error("{path}: {error}")]
    System {
        /// The path on which the call failed.
        path: PathBuf,
        /// The error of the system.
        error: io::Error,
    },
    /// The file system is mounted read-only.
    #[error(
        "cannot change {0}: its file system is mounted read-only. Nothing was changed. Mount it \
         writable, or change the image that it comes from"
    )]
    ReadOnly(PathBuf),
    /// Another installation or uninstallation runs, or a command that it started.
    #[error(
        "another `svcdns install` or `svcdns uninstall`, or a command that it started, is still \
         running: {}. Wait until it has ended, or end it, and run this command again",
        listed(.0)
    )]
    Locked(Vec<PortOwner>),
    /// A user other than root may have written the journal.
    #[error(
        "{path} tells root what to restore, and is not trusted because {cause}. Nothing was \
         changed. Copy {path} to a directory that only root can write to, and read the copy. If \
         every step in it is one that `svcdns install` made, move the copy to {JOURNAL}, owned \
         by root with mode 600 in a directory that only root can write to, and run this command \
         again. Otherwise remove {path}"
    )]
    Untrusted {
        /// The path of the journal.
        path: PathBuf,
        /// The path that the other user can change.
        cause: UnsafePath,
    },
    /// A user other than root could write the journal.
    #[error(
        "a journal in {JOURNAL} could not be trusted later because {0}. Nothing was changed. \
         Make that path root's alone, and run this command again"
    )]
    Unsafe(UnsafePath),
    /// The journal has an unknown format, or is damaged.
    #[error(
        "cannot read the journal {0} ({1}): another version of svcdns wrote it, or it is \
         damaged. Use the version that wrote it"
    )]
    Unreadable(PathBuf, String),
    /// A file has changed since it was read.
    #[error("{0} was changed at the same time by another program: run this command again")]
    Changed(PathBuf),
    /// A command of a step failed.
    #[error(transparent)]
    Command(#[from] CommandError),
}

/// Lists processes for a message; all of them may have ended before they were found.
pub fn listed(processes: &[PortOwner]) -> String {
    if processes.is_empty() {
        return "a process that cannot be found".to_owned();
    }
    processes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Returns a function that adds this path to an error of the system.
pub(super) fn at(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> JournalError {
    |error| match error.kind() {
        ErrorKind::ReadOnlyFilesystem => JournalError::ReadOnly(path.into()),
        _ => JournalError::System { path: path.into(), error },
    }
}
