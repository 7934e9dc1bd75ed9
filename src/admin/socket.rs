//! The socket in the state directory: how the commands find the running server.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::Uid;
use tokio::net::UnixListener;

/// The socket's name in the state directory.
const SOCKET: &str = "svcdns.sock";

/// The file that is locked as long as a server runs. The socket alone would not do: two servers that start together
/// could both find a dead one's socket and replace it.
const LOCK: &str = "svcdns.lock";

/// Longest path of a socket, in octets (`sun_path` of unix(7), less its NUL).
const MAX_PATH: usize = 107;

/// A state directory that is ours as long as this lives; socket and lock go away with it.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    lock: Flock<File>,
    listening: bool,
}

/// Why a state directory cannot be ours.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// The system has a limit.
    #[error("the path {} is too long for a socket ({} octets, at most {MAX_PATH} are possible): give a shorter --state-dir", .0.display(), .0.as_os_str().len())]
    TooLong(PathBuf),
    /// Somebody else runs there.
    #[error("another svcdns is running with the state directory {}: give this one its own with --state-dir", .0.display())]
    Taken(PathBuf),
    /// Somebody else's directory stands where ours should be.
    #[error("{} belongs to another user, who could answer in our place: give a directory of your own with --state-dir", .0.display())]
    Foreign(PathBuf),
    /// Anything else.
    #[error("cannot use the state directory {}: {error} (another one can be given with --state-dir)", path.display())]
    Io {
        /// The directory, or the file in it.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

/// Where the socket is in a state directory.
///
/// # Errors
/// When the path is too long for a socket.
pub fn socket_path(state_dir: &Path) -> Result<PathBuf, StateDirError> {
    let path = state_dir.join(SOCKET);
    if path.as_os_str().len() > MAX_PATH { Err(StateDirError::TooLong(path)) } else { Ok(path) }
}

/// Whether a directory, not a link to one, belongs to us or to root.
pub fn is_trusted(directory: &Path) -> bool {
    fs::symlink_metadata(directory)
        .is_ok_and(|found| found.is_dir() && (found.uid() == Uid::effective().as_raw() || found.uid() == Uid::from_raw(0).as_raw()))
}

impl StateDir {
    /// Takes a state directory: makes it where it is missing, and makes sure that no other server has it. Where it is
    /// `doubtful` (strangers could have made it), it must belong to us.
    ///
    /// # Errors
    /// When it cannot be ours.
    pub fn take(path: &Path, doubtful: bool) -> Result<Self, StateDirError> {
        socket_path(path)?;
        let io = |path: &Path| {
            let path = path.to_owned();
            move |error| StateDirError::Io { path, error }
        };
        match fs::DirBuilder::new().recursive(true).mode(0o755).create(path) {
            Ok(()) => {}
            Err(error) => return Err(io(path)(error)),
        }
        if doubtful && !is_trusted(path) {
            return Err(StateDirError::Foreign(path.to_owned()));
        }
        let lock_path = path.join(LOCK);
        loop {
            let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&lock_path).map_err(io(&lock_path))?;
            let opened = file.metadata().map_err(io(&lock_path))?;
            let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => lock,
                Err((_, Errno::EWOULDBLOCK)) => return Err(StateDirError::Taken(path.to_owned())),
                Err((_, errno)) => return Err(io(&lock_path)(errno.into())),
            };
            // A server that ended between our opening and locking has removed this very file: then lock its successor.
            if fs::metadata(&lock_path).is_ok_and(|found| found.ino() == opened.ino()) {
                return Ok(Self { path: path.to_owned(), lock, listening: false });
            }
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the socket, which anyone may connect to; a dead server's is replaced.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn listen(&mut self) -> Result<UnixListener, StateDirError> {
        let path = socket_path(&self.path)?;
        let io = |error| StateDirError::Io { path: path.clone(), error };
        match fs::symlink_metadata(&path) {
            // The lock is ours, so whoever made it is dead.
            Ok(found) if found.file_type().is_socket() => fs::remove_file(&path).map_err(io)?,
            Ok(_) => return Err(io(io::Error::new(io::ErrorKind::AlreadyExists, "there is something that is no socket"))),
            Err(_) => {}
        }
        let listener = UnixListener::bind(&path).map_err(io)?;
        self.listening = true;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).map_err(io)?;
        Ok(listener)
    }
}

impl Drop for StateDir {
    fn drop(&mut self) {
        // Nothing is lost where this fails: the next server replaces both.
        if self.listening {
            let _ = fs::remove_file(self.path.join(SOCKET));
        }
        let _ = fs::remove_file(self.path.join(LOCK));
        tracing::trace!(lock = ?*self.lock, "state directory given back");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_server() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b");
        let first = StateDir::take(&path, false).unwrap();
        let second = StateDir::take(&path, false).unwrap_err();
        assert!(second.to_string().contains("another svcdns is running with the state directory"), "{second}");
        drop(first);
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0, "the lock is gone");
        StateDir::take(&path, true).unwrap();
    }

    #[tokio::test]
    async fn a_dead_servers_socket_is_replaced_and_other_files_are_not() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join(SOCKET);
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        assert!(socket.exists(), "it stays behind, as after a crash");
        let mut state = StateDir::take(directory.path(), false).unwrap();
        let listener = state.listen().unwrap();
        assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o666);
        std::os::unix::net::UnixStream::connect(&socket).unwrap();
        drop((listener, state));
        assert!(!socket.exists());

        fs::write(&socket, "mine").unwrap();
        let mut state = StateDir::take(directory.path(), false).unwrap();
        assert!(state.listen().unwrap_err().to_string().contains("no socket"));
        drop(state);
        assert_eq!(fs::read_to_string(&socket).unwrap(), "mine");
    }

    #[test]
    fn a_path_too_long_for_a_socket_is_said() {
        let long = PathBuf::from("/tmp").join("x".repeat(100));
        let error = StateDir::take(&long, false).unwrap_err().to_string();
        assert!(error.contains("too long for a socket (117 octets, at most 107"), "{error}");
    }

    #[test]
    fn a_link_is_not_trusted() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(directory.path(), &link).unwrap();
        assert!(is_trusted(directory.path()));
        assert!(!is_trusted(&link));
        assert!(matches!(StateDir::take(&link, true), Err(StateDirError::Foreign(_))));
    }
}
