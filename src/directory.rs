//! Directories that a running server has to itself.
//!
//! A server has two: the runtime directory holds its socket and goes with a reboot, the state
//! directory is kept. Each has one server at a time, by a lock.
//!
//! A leaf: imports no other room.

use std::fmt;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::unistd::Uid;

/// Root's state directory.
pub const ROOTS_STATE: &str = "/var/lib/svcdns";

/// Names of all files that a server makes in its state directory.
pub const FILES: [&str; 1] = [LOCK];

/// Name of the file that is locked while a server runs.
const LOCK: &str = "svcdns.lock";

/// What a directory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirectoryKind {
    /// The socket; gone at a reboot.
    Runtime,
    /// What outlives a reboot.
    State,
    /// Both, in a directory that `state-dir` names.
    Both,
}

impl DirectoryKind {
    /// Permissions of a new directory: anyone may reach the socket, and nobody else the state.
    fn mode(self) -> u32 {
        match self {
            Self::Runtime | Self::Both => 0o755,
            Self::State => 0o700,
        }
    }
}

impl fmt::Display for DirectoryKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Runtime => "runtime directory",
            Self::State | Self::Both => "state directory",
        })
    }
}

/// What a directory must be before its content is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrustRule {
    /// Anything: somebody named it.
    Named,
    /// Owned by our user or root: it is a default.
    Owned,
    /// Owned so, and no symbolic link: it is a default where any user can make files.
    OwnedAndNoLink,
}

/// A directory that may become or be a server's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Where it is.
    pub path: PathBuf,
    /// What it must be.
    pub trust: TrustRule,
    /// The flag that names another one.
    pub flag: &'static str,
}

impl Candidate {
    /// Returns whether what is there now may be believed.
    pub fn is_trusted(&self) -> bool {
        let owned = |found: &Metadata| found.is_dir() && [Uid::effective(), Uid::from_raw(0)].contains(&found.uid().into());
        match self.trust {
            TrustRule::Named => true,
            TrustRule::Owned => fs::metadata(&self.path).is_ok_and(|found| owned(&found)),
            TrustRule::OwnedAndNoLink => fs::symlink_metadata(&self.path).is_ok_and(|found| owned(&found)),
        }
    }
}

/// Why a server cannot have a directory.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// Another server has it.
    #[error(
        "another svcdns is running with the {kind} {}: give this one its own with {}",
        .candidate.path.display(), .candidate.flag
    )]
    Taken {
        /// What it was to be for.
        kind: DirectoryKind,
        /// The directory.
        candidate: Candidate,
    },
    /// Another user's directory is in its place.
    #[error(
        "{} belongs to another user, who could answer in our place or change what is kept: \
         give a directory of your own with {}",
        .0.path.display(), .0.flag
    )]
    Foreign(Candidate),
    /// Anything else.
    #[error(
        "cannot use the {kind} {}: {error} (another one can be given with {})",
        .candidate.path.display(), .candidate.flag
    )]
    Io {
        /// What it was to be for.
        kind: DirectoryKind,
        /// The directory.
        candidate: Candidate,
        /// What the system said.
        error: io::Error,
    },
}

/// A directory that is one server's own until this is dropped.
#[derive(Debug)]
pub struct OwnDirectory {
    path: PathBuf,
    lock: Flock<File>,
}

impl OwnDirectory {
    /// Makes the directory if it is missing, and locks it.
    ///
    /// # Errors
    /// When it cannot be made, is not to be trusted, or has a server.
    pub fn take(candidate: &Candidate, kind: DirectoryKind) -> Result<Self, DirectoryError> {
        let io = |error| DirectoryError::Io { kind, candidate: candidate.clone(), error };
        make(&candidate.path, kind.mode()).map_err(io)?;
        if !candidate.is_trusted() {
            return Err(DirectoryError::Foreign(candidate.clone()));
        }
        let path = candidate.path.join(LOCK);
        // Root may be told to use a directory of somebody else, who could lead it elsewhere by a
        // link, or keep it waiting by a pipe.
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        loop {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(false).mode(0o600);
            let file = options.custom_flags(flags.bits()).open(&path).map_err(io)?;
            let opened = file.metadata().map_err(io)?;
            let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => lock,
                Err((_, Errno::EWOULDBLOCK)) => {
                    return Err(DirectoryError::Taken { kind, candidate: candidate.clone() });
                }
                Err((_, errno)) => return Err(io(errno.into())),
            };
            // A server that ended between our opening and locking removed this very file.
            if fs::symlink_metadata(&path).is_ok_and(|found| is_same(&found, &opened)) {
                return Ok(Self { path: candidate.path.clone(), lock });
            }
        }
    }

    /// Returns its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns whether this path leads to it.
    pub fn is_at(&self, path: &Path) -> bool {
        let found = (fs::metadata(&self.path), fs::metadata(path));
        matches!(found, (Ok(own), Ok(other)) if is_same(&own, &other))
    }
}

impl Drop for OwnDirectory {
    fn drop(&mut self) {
        // Nothing is lost if this fails: the next server locks the file that is there.
        let _ = fs::remove_file(self.path.join(LOCK));
        tracing::trace!(lock = ?*self.lock, path = %self.path.display(), "directory given back");
    }
}

/// Makes a directory if it is missing. New parents get the usual permissions: they are not ours.
fn make(path: &Path, mode: u32) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    }
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        made => made,
    }
}

fn is_same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn candidate(path: &Path, trust: TrustRule) -> Candidate {
        Candidate { path: path.to_owned(), trust, flag: "--state-dir" }
    }

    fn take(path: &Path, trust: TrustRule) -> Result<OwnDirectory, DirectoryError> {
        OwnDirectory::take(&candidate(path, trust), DirectoryKind::State)
    }

    #[test]
    fn a_directory_has_one_server() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        let first = take(&path, TrustRule::Named).unwrap();
        let second = take(&path, TrustRule::Named).unwrap_err().to_string();
        let told = format!(
            "another svcdns is running with the state directory {}: \
             give this one its own with --state-dir",
            path.display()
        );
        assert_eq!(second, told);
        assert!(first.is_at(&path) && !first.is_at(folder.path()));
        drop(first);
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0, "the lock is gone");
        take(&path, TrustRule::OwnedAndNoLink).unwrap();
    }

    #[test]
    fn only_the_state_directory_is_closed_to_others_and_its_parents_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o077;
        for (name, kind, others) in [("run", DirectoryKind::Runtime, 0o055), ("lib", DirectoryKind::State, 0)] {
            let path = folder.path().join(name).join("svcdns");
            OwnDirectory::take(&candidate(&path, TrustRule::Owned), kind).unwrap();
            // Less what the umask takes away.
            assert_eq!(mode(&path) & !others, 0, "{name}");
            assert_eq!(mode(path.parent().unwrap()) & 0o055, mode(folder.path()) | 0o055, "{name}");
        }
    }

    #[test]
    fn a_default_that_is_a_link_is_believed_only_in_a_directory_of_ours() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        symlink(folder.path(), &link).unwrap();
        assert!(take(&link, TrustRule::Owned).is_ok());
        let error = take(&link, TrustRule::OwnedAndNoLink).unwrap_err();
        assert!(matches!(error, DirectoryError::Foreign(_)), "{error}");
    }

    #[test]
    fn a_default_of_another_user_is_refused_and_one_that_was_named_is_not() {
        if !Uid::effective().is_root() {
            // Another user's directory that we may write in is needed: there is /tmp, root's.
            assert!(candidate(Path::new("/tmp"), TrustRule::Owned).is_trusted());
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(folder.path(), Some(65534), None).unwrap();
        for trust in [TrustRule::Owned, TrustRule::OwnedAndNoLink] {
            let error = take(folder.path(), trust).unwrap_err().to_string();
            assert!(error.contains("belongs to another user"), "{error}");
        }
        assert!(take(folder.path(), TrustRule::Named).is_ok());
    }

    #[test]
    fn a_link_or_a_pipe_in_place_of_the_lock_leads_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        let (lock, elsewhere) = (folder.path().join(LOCK), folder.path().join("elsewhere"));
        symlink(&elsewhere, &lock).unwrap();
        assert!(matches!(take(folder.path(), TrustRule::Named), Err(DirectoryError::Io { .. })));
        assert!(!elsewhere.exists(), "nothing is made at the end of the link");
        fs::remove_file(&lock).unwrap();
        nix::unistd::mkfifo(&lock, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(take(folder.path(), TrustRule::Named), Err(DirectoryError::Io { .. })));
    }

    #[test]
    fn what_stands_in_the_way_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let (file, dangling) = (folder.path().join("file"), folder.path().join("dangling"));
        fs::write(&file, "mine").unwrap();
        // As systemd leaves it when somebody empties /var/lib/private.
        symlink("private/svcdns", &dangling).unwrap();
        for path in [file.clone(), file.join("below"), dangling] {
            let error = take(&path, TrustRule::Owned).unwrap_err().to_string();
            let told = format!("cannot use the state directory {}: ", path.display());
            assert!(error.starts_with(&told) && error.contains("--state-dir"), "{error}");
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
    }
}
