//! The check for root privileges, for commands that change the machine.

use anyhow::bail;

use crate::system;

/// Checks that the program runs as root.
///
/// # Errors
/// If it does not; the error contains the command to run instead.
pub(super) fn require_root(command: &str) -> anyhow::Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let line: Vec<String> = std::env::args().skip(1).collect();
    bail!(
        "`svcdns {command}` changes system files and must run as root: sudo svcdns {}",
        system::shell_quoted(&line)
    )
}
