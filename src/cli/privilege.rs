//! The check for root, and the lock, for commands that change the machine.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;

use super::output;
use crate::system::{self, InstallLock, JournalError, Root};

/// Longest wait for another installation, or for a command that it left behind.
const LOCK_WAIT: Duration = Duration::from_secs(60);

/// Pause between two attempts to take the lock.
const LOCK_RETRY_PAUSE: Duration = Duration::from_millis(100);

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

/// Takes the lock of `install` and `uninstall`; waits for its holder, with a message.
///
/// # Errors
/// If the holder keeps it for a minute, or the lock cannot be taken.
pub(super) fn lock_machine(root: &Root) -> anyhow::Result<InstallLock> {
    let start = Instant::now();
    let mut is_announced = false;
    loop {
        match InstallLock::take(root) {
            Err(JournalError::Locked(holders)) if start.elapsed() < LOCK_WAIT => {
                // A holder that is not found has just ended.
                if !is_announced && !holders.is_empty() {
                    is_announced = true;
                    output::print(&format!(
                        "Waiting up to {} s for a running `svcdns install` or `svcdns uninstall`, \
                         or a command that it started: {}\n",
                        LOCK_WAIT.as_secs(),
                        system::listed(&holders)
                    ))?;
                }
                thread::sleep(LOCK_RETRY_PAUSE);
            }
            taken => return Ok(taken?),
        }
    }
}
