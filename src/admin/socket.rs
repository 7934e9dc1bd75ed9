//! The socket in the runtime directory: how the commands find the running server.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

use crate::directory::OwnDirectory;

/// Name of the socket.
const SOCKET: &str = "svcdns.sock";

/// Longest path of a socket, in bytes (`sun_path` of unix(7), less its NUL).
const MAX_PATH: usize = 107;

/// A socket's file, which is removed when this is dropped.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

/// Why the socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The system has a limit.
    #[error(
        "the path {} is too long for a socket ({} octets, at most {MAX_PATH} are possible): \
         give a shorter directory with --runtime-dir", .0.display(), .0.as_os_str().len()
    )]
    TooLong(PathBuf),
    /// Anything else.
    #[error("cannot open the socket {}: {error} (--runtime-dir names another directory)", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

/// Returns where the socket is in a runtime directory.
///
/// # Errors
/// When the path is too long for a socket.
pub fn socket_path(runtime_dir: &Path) -> Result<PathBuf, SocketError> {
    let path = runtime_dir.join(SOCKET);
    if path.as_os_str().len() > MAX_PATH { Err(SocketError::TooLong(path)) } else { Ok(path) }
}

/// Opens the socket, which anyone may connect to, and replaces a dead server's.
///
/// # Errors
/// When it cannot be opened.
pub fn listen(directory: &OwnDirectory) -> Result<(UnixListener, SocketFile), SocketError> {
    let path = socket_path(directory.path())?;
    let io = |error| SocketError::Io { path: path.clone(), error };
    match fs::symlink_metadata(&path) {
        // The directory is ours alone, so the server that made it is dead.
        Ok(found) if found.file_type().is_socket() => fs::remove_file(&path).map_err(io)?,
        Ok(_) => {
            let why = "there is something that is no socket";
            return Err(io(io::Error::new(io::ErrorKind::AlreadyExists, why)));
        }
        Err(_) => {}
    }
    let listener = UnixListener::bind(&path).map_err(io)?;
    let file = SocketFile(path.clone());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).map_err(io)?;
    Ok((listener, file))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Nothing is lost if this fails: the next server replaces it.
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::{Candidate, DirectoryKind, TrustRule};

    fn take(path: &Path) -> OwnDirectory {
        let flag = "--runtime-dir";
        let candidate = Candidate { path: path.to_owned(), trust: TrustRule::Named, flag };
        OwnDirectory::take(&candidate, DirectoryKind::Runtime).unwrap()
    }

    #[tokio::test]
    async fn a_dead_servers_socket_is_replaced_and_other_files_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join(SOCKET);
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        assert!(socket.exists(), "it stays behind, as after a crash");
        let directory = take(folder.path());
        let (listener, file) = listen(&directory).unwrap();
        assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o666);
        std::os::unix::net::UnixStream::connect(&socket).unwrap();
        drop((listener, file));
        assert!(!socket.exists());

        fs::write(&socket, "mine").unwrap();
        assert!(listen(&directory).unwrap_err().to_string().contains("no socket"));
        assert_eq!(fs::read_to_string(&socket).unwrap(), "mine");
    }

    #[test]
    fn a_path_too_long_for_a_socket_is_told() {
        let long = PathBuf::from("/tmp").join("x".repeat(100));
        let error = socket_path(&long).unwrap_err().to_string();
        assert!(error.contains("too long for a socket (117 octets, at most 107"), "{error}");
    }
}
