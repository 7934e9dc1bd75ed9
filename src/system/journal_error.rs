//! Why a journal cannot be followed.

use std::fmt;
use std::io::{self, ErrorKind};
use std::path::PathBuf;

use super::command::Failure;

/// The journal.
pub(super) const JOURNAL: &str = "/var/lib/svcdns-install/install.json";

/// What others than root could use to write a file of root's.
#[derive(Debug)]
pub struct WeakSpot {
    /// The file, or a folder or link on the way to it.
    pub place: PathBuf,
    /// What is wrong with it.
    pub why: String,
}

impl fmt::Display for WeakSpot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.place.display(), self.why)
    }
}

/// Why a journal could not be followed.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The folder or the journal itself.
    #[error("{path}: {error}")]
    System {
        /// Where.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Nothing can be written there.
    #[error(
        "{0} lies on a file system that is mounted read-only: nothing was changed. Mount it writable, or make the change where its image is made"
    )]
    ReadOnly(PathBuf),
    /// Another install or uninstall runs.
    #[error("another `svcdns install` or `uninstall` is at work: wait until it has ended")]
    Locked,
    /// Others than root could have written it.
    #[error(
        "{path} tells root what to put back, and is not believed, because {spot}. Nothing was done. \
         Copy it to where only root can write, and read the copy. If each step is one that `svcdns \
         install` did, make it {JOURNAL}, owned by root with mode 600 in a folder that only root can \
         write to, and start again; otherwise remove {path}"
    )]
    Untrusted {
        /// The journal.
        path: PathBuf,
        /// What others can write to.
        spot: WeakSpot,
    },
    /// Others than root could write it.
    #[error(
        "what is to be put back one day would not be safe in {JOURNAL}, because {0}: nothing was \
         done. Change that, and start again"
    )]
    Unsafe(WeakSpot),
    /// Another version's, or damaged.
    #[error("{0} cannot be understood ({1}): it was written by another version of svcdns, or has been changed; use that version")]
    Unknown(PathBuf, String),
    /// Somebody else was faster.
    #[error("{0} was changed by somebody else in this moment: start again")]
    Changed(PathBuf),
    /// A program failed.
    #[error(transparent)]
    Command(#[from] Failure),
}

pub(super) fn at(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> JournalError {
    |error| match error.kind() {
        ErrorKind::ReadOnlyFilesystem => JournalError::ReadOnly(path.into()),
        _ => JournalError::System { path: path.into(), error },
    }
}
