//! Directories of a running server.
//!
//! A server has two directories. The runtime directory, with its socket, is lost at a reboot; the
//! state directory is kept. A lock in each directory keeps out other servers.
//!
//! Imports no other module.

use std::fmt;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::unistd::Uid;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// The state directory of a server that runs as root.
pub const ROOT_STATE_DIRECTORY: &str = "/var/lib/svcdns";

/// The name of the file with the addresses of the port bridge.
pub const BRIDGE_FILE: &str = "bridge-addresses";

/// The name of the file that is locked while a server runs.
pub const LOCK_FILE: &str = "svcdns.lock";

/// The beginning of the name of each snapshot; the name of its registry follows.
const SNAPSHOT_PREFIX: &str = "snapshot-";

/// The ends of the names of an unfinished file and of one that was set aside.
const SUFFIXES: [&str; 2] = [".new", ".unusable"];

/// Returns the name of the file with the snapshot of a registry.
pub fn snapshot_name(registry: &str) -> String {
    format!("{SNAPSHOT_PREFIX}{registry}")
}

/// Returns whether a server creates files with this name in its state directory.
pub fn is_state_file(name: &str) -> bool {
    let name = SUFFIXES.into_iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name);
    let Some(registry) = name.strip_prefix(SNAPSHOT_PREFIX) else {
        return [LOCK_FILE, BRIDGE_FILE].contains(&name);
    };
    !registry.is_empty()
        && registry.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

/// The purpose of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirectoryKind {
    /// For the socket; lost at a reboot.
    Runtime,
    /// For data that is kept across reboots.
    State,
    /// For both purposes: the directory that `state-dir` names.
    Both,
}

impl DirectoryKind {
    /// Returns the mode of a new directory.
    ///
    /// Every user may reach the socket, but only the server's own user the state.
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

/// The condition under which an existing directory is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrustRule {
    /// Always trusted: the user named the directory.
    Named,
    /// Trusted if the server's user or root owns it; for a default directory.
    Owned,
    /// Trusted if the server's user or root owns it and it is not a symbolic link.
    ///
    /// For a default directory whose parent lets every user create files.
    OwnedAndNoLink,
}

/// A directory that a server may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The path.
    pub path: PathBuf,
    /// Condition for trusting an existing directory.
    pub trust: TrustRule,
    /// The flag by which the user can name another directory.
    pub flag: &'static str,
}

impl Candidate {
    /// Returns whether the existing directory is trusted.
    pub fn is_trusted(&self) -> bool {
        let is_owned = |found: &Metadata| {
            found.is_dir() && [Uid::effective(), Uid::from_raw(0)].contains(&found.uid().into())
        };
        match self.trust {
            TrustRule::Named => true,
            TrustRule::Owned => fs::metadata(&self.path).is_ok_and(|found| is_owned(&found)),
            TrustRule::OwnedAndNoLink => {
                fs::symlink_metadata(&self.path).is_ok_and(|found| is_owned(&found))
            }
        }
    }
}

/// Reason why a server cannot use a directory.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// Another server uses the directory.
    #[error(
        "another svcdns is running with the {kind} {}: give this one its own with {}",
        .candidate.path.display(), .candidate.flag
    )]
    Taken {
        /// The purpose of the directory.
        kind: DirectoryKind,
        /// The directory.
        candidate: Candidate,
    },
    /// Another user owns the directory.
    #[error(
        "{} belongs to another user, who could answer in place of this server or change its \
         state: name a directory of your own with {}",
        .0.path.display(), .0.flag
    )]
    Foreign(Candidate),
    /// A system call failed.
    #[error(
        "cannot use the {kind} {}: {error} (name another one with {})",
        .candidate.path.display(), .candidate.flag
    )]
    Io {
        /// The purpose of the directory.
        kind: DirectoryKind,
        /// The directory.
        candidate: Candidate,
        /// The error of the system.
        error: io::Error,
    },
}

/// A directory locked by one server until this value is dropped.
///
/// The lock belongs to the open file: a process that gets its descriptor shares the lock.
#[derive(Debug)]
pub struct OwnDirectory {
    path: PathBuf,
    lock: File,
    /// Whether the lock file ends with this value, not with another server.
    removes_file: bool,
}

impl OwnDirectory {
    /// Creates the directory if it is missing, and locks it.
    ///
    /// If `passed` has its lock, shares that one with the running server, which owns its file until
    /// [`Self::take_over`].
    ///
    /// # Errors
    /// If the directory cannot be created, is not trusted, or is used by another server.
    pub fn take(
        candidate: &Candidate,
        kind: DirectoryKind,
        passed: &mut Vec<File>,
    ) -> Result<Self, DirectoryError> {
        let io = |error| DirectoryError::Io { kind, candidate: candidate.clone(), error };
        create(&candidate.path, kind.mode()).map_err(io)?;
        if !candidate.is_trusted() {
            return Err(DirectoryError::Foreign(candidate.clone()));
        }
        let path = candidate.path.join(LOCK_FILE);
        // In a named directory, another user may have placed a symbolic link, to make root write
        // elsewhere, or a pipe, to make root wait.
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        loop {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(false).mode(0o600);
            let file = options.custom_flags(flags.bits()).open(&path).map_err(io)?;
            let opened = file.metadata().map_err(io)?;
            let is_lock = |passed: &File| {
                passed.metadata().is_ok_and(|passed| is_same_file(&passed, &opened))
            };
            let (lock, removes_file) = match passed.iter().position(is_lock) {
                Some(at) => (passed.swap_remove(at), false),
                None => (file, true),
            };
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => {
                    return Err(DirectoryError::Taken { kind, candidate: candidate.clone() });
                }
                Err(errno) => return Err(io(errno.into())),
            }
            // A server that ended after the open but before the lock has removed the file.
            if fs::symlink_metadata(&path).is_ok_and(|found| is_same_file(&found, &opened)) {
                let path = candidate.path.clone();
                return Ok(Self { path, lock, removes_file });
            }
        }
    }

    /// Returns the path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns a second descriptor of the lock, for a successor.
    ///
    /// # Errors
    /// If the system has no further descriptors.
    pub fn shared_lock(&self) -> io::Result<OwnedFd> {
        Ok(self.lock.try_clone()?.into())
    }

    /// Leaves the file of the lock to a successor, which has a descriptor of it.
    pub fn hand_over(&mut self) {
        self.removes_file = false;
    }

    /// Takes the file of the lock over from the server that passed the lock.
    pub fn take_over(&mut self) {
        self.removes_file = true;
    }

    /// Returns whether a path leads to this directory.
    pub fn is_at(&self, path: &Path) -> bool {
        let found = (fs::metadata(&self.path), fs::metadata(path));
        matches!(found, (Ok(own), Ok(other)) if is_same_file(&own, &other))
    }
}

impl Drop for OwnDirectory {
    fn drop(&mut self) {
        if self.removes_file {
            // A failure is harmless: the next server locks the remaining file.
            let _ = fs::remove_file(self.path.join(LOCK_FILE));
        }
    }
}

/// Creates a directory with this mode if it is missing.
///
/// Missing parents get mode 755, because they are not only for the server.
fn create(path: &Path, mode: u32) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    }
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        created => created,
    }
}

fn is_same_file(one: &Metadata, other: &Metadata) -> bool {
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
        OwnDirectory::take(&candidate(path, trust), DirectoryKind::State, &mut Vec::new())
    }

    #[test]
    fn a_directory_can_be_used_by_one_server_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        let first = take(&path, TrustRule::Named).unwrap();
        let second = take(&path, TrustRule::Named).unwrap_err().to_string();
        let expected = format!(
            "another svcdns is running with the state directory {}: \
             give this one its own with --state-dir",
            path.display()
        );
        assert_eq!(second, expected);
        assert!(first.is_at(&path) && !first.is_at(folder.path()));
        drop(first);
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0, "the lock is gone");
        take(&path, TrustRule::OwnedAndNoLink).unwrap();
    }

    #[test]
    fn a_passed_lock_keeps_others_out_after_its_first_owner_has_ended() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = take(folder.path(), TrustRule::Named).unwrap();
        let elsewhere = File::open("/dev/null").unwrap();
        let mut passed = vec![elsewhere, File::from(first.shared_lock().unwrap())];
        let candidate = candidate(folder.path(), TrustRule::Named);
        let second = OwnDirectory::take(&candidate, DirectoryKind::State, &mut passed).unwrap();
        assert_eq!(passed.len(), 1, "the lock is taken out");
        let is_taken =
            || matches!(take(folder.path(), TrustRule::Named), Err(DirectoryError::Taken { .. }));
        drop(second);
        assert!(is_taken() && folder.path().join(LOCK_FILE).exists(), "a failed successor");
        passed.push(File::from(first.shared_lock().unwrap()));
        let mut second = OwnDirectory::take(&candidate, DirectoryKind::State, &mut passed).unwrap();
        second.take_over();
        first.hand_over();
        drop(first);
        assert!(is_taken());
        drop(second);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "the lock is gone");
        take(folder.path(), TrustRule::Named).unwrap();
    }

    #[test]
    fn other_users_can_read_the_runtime_but_not_the_state_directory() {
        let folder = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o077;
        for (name, kind, others) in
            [("run", DirectoryKind::Runtime, 0o055), ("lib", DirectoryKind::State, 0)]
        {
            let path = folder.path().join(name).join("svcdns");
            let candidate = candidate(&path, TrustRule::Owned);
            OwnDirectory::take(&candidate, kind, &mut Vec::new()).unwrap();
            // The umask may clear more bits.
            assert_eq!(mode(&path) & !others, 0, "{name}");
            assert_eq!(mode(path.parent().unwrap()) & 0o055, mode(folder.path()) | 0o055, "{name}");
        }
    }

    #[test]
    fn a_symlink_in_the_temp_directory_is_not_trusted_as_the_default() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        symlink(folder.path(), &link).unwrap();
        assert!(take(&link, TrustRule::Owned).is_ok());
        let error = take(&link, TrustRule::OwnedAndNoLink).unwrap_err();
        assert!(matches!(error, DirectoryError::Foreign(_)), "{error}");
    }

    #[test]
    fn a_directory_of_another_user_is_refused_unless_configured() {
        if !Uid::effective().is_root() {
            // The test needs a directory that is writable but owned by another user: root's /tmp.
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
    fn a_lock_file_that_is_a_link_or_a_pipe_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let (lock, elsewhere) = (folder.path().join(LOCK_FILE), folder.path().join("elsewhere"));
        symlink(&elsewhere, &lock).unwrap();
        assert!(matches!(take(folder.path(), TrustRule::Named), Err(DirectoryError::Io { .. })));
        assert!(!elsewhere.exists(), "no file is created at the target of the link");
        fs::remove_file(&lock).unwrap();
        nix::unistd::mkfifo(&lock, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(take(folder.path(), TrustRule::Named), Err(DirectoryError::Io { .. })));
    }

    #[test]
    fn errors_name_the_directory_and_the_flag() {
        let folder = tempfile::tempdir().unwrap();
        let (file, dangling) = (folder.path().join("file"), folder.path().join("dangling"));
        fs::write(&file, "mine").unwrap();
        // This is the state after an administrator has emptied systemd's /var/lib/private.
        symlink("private/svcdns", &dangling).unwrap();
        for path in [file.clone(), file.join("below"), dangling] {
            let error = take(&path, TrustRule::Owned).unwrap_err().to_string();
            let expected = format!("cannot use the state directory {}: ", path.display());
            assert!(error.starts_with(&expected) && error.contains("--state-dir"), "{error}");
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
    }
}
