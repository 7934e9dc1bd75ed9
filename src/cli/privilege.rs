//! The check for root, for commands that change the machine.

use anyhow::bail;

use crate::system;

/// Ends the command where it does not run as root.
pub(super) fn need_root(command: &str) -> anyhow::Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let line: Vec<String> = std::env::args().skip(1).collect();
    bail!("`svcdns {command}` changes files of the machine, so it has to run as root: sudo svcdns {}", system::shell_quoted(&line))
}
