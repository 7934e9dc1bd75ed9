//! GoFrame's file registry: a directory with one file per registration.
//!
//! Each program rewrites its file every 10 s, and a file that was not rewritten for 20 s has
//! expired (GoFrame's `contrib/registry/file`).
//!
//! inotify reports changes at once. Twice a second the follower checks whether the path still names
//! the same directory, and every 10 s it scans the whole directory, for changes that inotify
//! cannot report. Only [`register()`] writes or deletes files.

mod directory;
mod files;
mod follower;
mod register;
mod vanished;
mod watch;

pub use files::UNREADABLE;
pub use register::register;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use self::files::ClockReading;
use self::follower::DirectoryFollower;
use super::{Feed, Registry, RegistryCommand};
use crate::service::ListKind;

/// Settings of a file registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The directory; it need not exist yet.
    pub directory: PathBuf,
    /// Whether the directory was configured; otherwise it is GoFrame's default.
    ///
    /// The default directory is used only while it belongs to root or to our own user: the
    /// first user to create `<temp dir>/gsvc` controls every name.
    pub named: bool,
    /// First segments of the file names to follow, such as `service`; if empty, all.
    pub heads: Vec<String>,
    /// Intervals and times to live.
    pub timings: FileTimings,
}

impl fmt::Display for Settings {
    /// Formats the registry's URL: `file:///tmp/gsvc`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "file://{}", self.directory.display())
    }
}

/// Intervals and times to live of a file registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileTimings {
    /// Age of a file, since its last write, at which it has expired (GoFrame: 20 s).
    pub expire_after: Duration,
    /// Time between checks of the directory path and of expired files.
    pub poll_interval: Duration,
    /// Time between scans of the whole directory, for changes without an event.
    pub scan_interval: Duration,
    /// Time until a file with invalid content is read again.
    pub retry_interval: Duration,
    /// Time during which invalid content counts as an unfinished write.
    ///
    /// After that, the file is rejected.
    pub write_grace: Duration,
    /// Time between writes of a registration's own file (GoFrame: 10 s).
    pub refresh_interval: Duration,
}

impl Default for FileTimings {
    fn default() -> Self {
        Self {
            expire_after: Duration::from_secs(20),
            poll_interval: Duration::from_millis(500),
            scan_interval: Duration::from_secs(10),
            retry_interval: Duration::from_millis(100),
            write_grace: Duration::from_secs(2),
            refresh_interval: Duration::from_secs(10),
        }
    }
}

/// A file registry that can be followed.
#[derive(Debug)]
pub struct FileRegistry {
    settings: Settings,
}

impl FileRegistry {
    /// Creates the registry; [`Registry::follow`] opens the directory.
    pub fn new(settings: Settings) -> Self {
        Self { settings }
    }
}

impl Registry for FileRegistry {
    async fn follow(
        self,
        first: ListKind,
        feed: Feed,
        mut commands: mpsc::Receiver<RegistryCommand>,
        stop: CancellationToken,
    ) {
        let mut follower = DirectoryFollower::new(self.settings, first, feed.clone());
        let mut has_commands = true;
        loop {
            // On a blocking thread, because calls on a network file system may hang.
            let work = tokio::task::spawn_blocking(move || {
                let outcome = follower.step(ClockReading::now());
                (follower, outcome)
            });
            let work = tokio::select! {
                work = work => work,
                () = stop.cancelled() => return,
            };
            // Fails only while the runtime shuts down.
            let Ok((returned, outcome)) = work else { return };
            follower = returned;
            tokio::select! {
                sent = feed.send(outcome.changes) => if sent.is_err() { return },
                () = stop.cancelled() => return,
            }
            if outcome.pause.is_zero() {
                continue;
            }
            tokio::select! {
                () = follower.changed() => {}
                () = sleep(outcome.pause) => {}
                () = stop.cancelled() => return,
                // Ignored: a file registry has no leases to check.
                command = commands.recv(), if has_commands => has_commands = command.is_some(),
            }
        }
    }
}
