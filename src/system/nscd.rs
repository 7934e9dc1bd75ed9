//! nscd, the cache of the GNU C library, which programs query before the name servers.
//!
//! It keeps host names for longer than the TTL of svcdns, and does not notice that a manager of
//! name resolution has changed its routes.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::Root;
use super::command;

/// The directories of nscd's socket, of which one usually links to the other.
pub(super) const FOLDERS: [&str; 2] = ["/run/nscd", "/var/run/nscd"];

/// The socket, by the path that the C library uses.
const SOCKET: &str = "/var/run/nscd/socket";

/// Maximum run time of the command; nscd normally responds at once.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

/// Returns whether programs of this machine query nscd.
///
/// An nscd in a container has its socket in the container's own file system.
pub(super) fn is_in_use(root: &Root) -> bool {
    root.follow(SOCKET).is_ok_and(|socket| UnixStream::connect(root.path(socket)).is_ok())
}

/// Makes nscd forget all host names, if programs query it.
///
/// # Errors
/// If nscd is in use and the command fails; only root may run it.
pub fn forget_hosts(root: &Root) -> Result<(), String> {
    if !is_in_use(root) {
        return Ok(());
    }
    let Some(nscd) = root.program("nscd") else {
        return Err("there is no program named nscd".to_owned());
    };
    let words = command::words(&[&nscd.display().to_string(), "--invalidate=hosts"]);
    command::run_within(&words, COMMAND_TIMEOUT).map(drop).map_err(|error| error.to_string())
}
