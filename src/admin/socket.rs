//! The sockets in the runtime directory, through which commands and a successor find the server.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

use crate::directory::OwnDirectory;

/// File name of the socket for commands.
const SOCKET_NAME: &str = "svcdns.sock";

/// File name of the socket for a successor.
const TAKE_OVER_NAME: &str = "take-over.sock";

/// Maximum length of a socket's path, in bytes.
///
/// The limit is that of `sun_path` in unix(7), without the final NUL.
const MAX_PATH_BYTES: usize = 107;

/// The file of a socket; dropping the value removes the file.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Whether the file ends with this value, not with another server.
    removes_file: bool,
}

/// Error of opening the socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The path exceeds the system's limit.
    #[error(
        "the path {} is too long for a socket ({} bytes, at most {MAX_PATH_BYTES}): \
         name a shorter directory with --runtime-dir", .0.display(), .0.as_os_str().len()
    )]
    TooLong(PathBuf),
    /// The system reports an error.
    #[error(
        "cannot open the socket {}: {error} (--runtime-dir names another directory)", path.display()
    )]
    Io {
        /// The path of the socket.
        path: PathBuf,
        /// The error of the system.
        error: io::Error,
    },
}

/// Returns the path of the socket in a runtime directory.
///
/// # Errors
/// If the path is too long for a socket.
pub fn socket_path(runtime_dir: &Path) -> Result<PathBuf, SocketError> {
    checked(runtime_dir.join(SOCKET_NAME))
}

/// Checks the length of a socket's path.
fn checked(path: PathBuf) -> Result<PathBuf, SocketError> {
    if path.as_os_str().len() > MAX_PATH_BYTES { Err(SocketError::TooLong(path)) } else { Ok(path) }
}

/// Returns the path of the socket by which a successor takes over from a server.
///
/// # Errors
/// If the path is too long for a socket.
pub fn take_over_path(runtime_dir: &Path) -> Result<PathBuf, SocketError> {
    checked(runtime_dir.join(TAKE_OVER_NAME))
}

/// Opens the socket for commands; replaces a socket that a dead server left behind.
///
/// Every user may connect to it.
///
/// # Errors
/// If the socket cannot be opened.
pub fn listen(directory: &OwnDirectory) -> Result<(UnixListener, SocketFile), SocketError> {
    open(directory, SOCKET_NAME, 0o666)
}

/// Opens the socket for a successor, to which only root and the server's user may connect.
///
/// # Errors
/// If the socket cannot be opened.
pub fn listen_for_successor(
    directory: &OwnDirectory,
) -> Result<(UnixListener, SocketFile), SocketError> {
    open(directory, TAKE_OVER_NAME, 0o600)
}

/// Opens a socket with this mode; replaces a socket that a dead server left behind.
fn open(
    directory: &OwnDirectory,
    name: &str,
    mode: u32,
) -> Result<(UnixListener, SocketFile), SocketError> {
    let path = checked(directory.path().join(name))?;
    let io = |error| SocketError::Io { path: path.clone(), error };
    match fs::symlink_metadata(&path) {
        // This process holds the directory's lock, so the server that made the socket is dead.
        Ok(found) if found.file_type().is_socket() => fs::remove_file(&path).map_err(io)?,
        Ok(_) => {
            let reason = "this path has a file that is not a socket";
            return Err(io(io::Error::new(io::ErrorKind::AlreadyExists, reason)));
        }
        Err(_) => {}
    }
    let listener = UnixListener::bind(&path).map_err(io)?;
    let file = SocketFile { path: path.clone(), removes_file: true };
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).map_err(io)?;
    Ok((listener, file))
}

impl SocketFile {
    /// Returns the file of the running server's socket, which owns it until [`Self::take_over`].
    pub fn shared(path: PathBuf) -> Self {
        Self { path, removes_file: false }
    }

    /// Leaves the file to a successor, which has a descriptor of the socket.
    pub fn hand_over(&mut self) {
        self.removes_file = false;
    }

    /// Takes the file over from the server that passed the socket.
    pub fn take_over(&mut self) {
        self.removes_file = true;
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.removes_file {
            // If this fails, the next server replaces the file.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::{Candidate, DirectoryKind, TrustRule};

    fn take(path: &Path) -> OwnDirectory {
        let flag = "--runtime-dir";
        let candidate = Candidate { path: path.to_owned(), trust: TrustRule::Named, flag };
        OwnDirectory::take(&candidate, DirectoryKind::Runtime, &mut Vec::new()).unwrap()
    }

    #[tokio::test]
    async fn the_socket_of_a_dead_server_is_replaced_but_no_other_file() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join(SOCKET_NAME);
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        assert!(socket.exists(), "left behind, as after a crash");
        let directory = take(folder.path());
        let (listener, file) = listen(&directory).unwrap();
        assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o666);
        std::os::unix::net::UnixStream::connect(&socket).unwrap();
        drop((listener, file));
        assert!(!socket.exists());

        fs::write(&socket, "mine").unwrap();
        assert!(listen(&directory).unwrap_err().to_string().contains("not a socket"));
        assert_eq!(fs::read_to_string(&socket).unwrap(), "mine");
    }

    #[test]
    fn a_path_too_long_for_a_socket_is_an_error() {
        let long = PathBuf::from("/tmp").join("x".repeat(100));
        let error = socket_path(&long).unwrap_err().to_string();
        assert!(error.contains("too long for a socket (117 bytes, at most 107"), "{error}");
    }
}
