//! GoFrame's file registry: a directory with one file per registration.
//!
//! Its program rewrites a file every 10 s, and a file that was not rewritten for 20 s has expired
//! (GoFrame's `contrib/registry/file`).
//!
//! inotify reports changes at once. Twice a second the follower checks whether the path still names
//! the same directory, and every 10 s it scans the whole directory, for changes that inotify
//! cannot report. Only [`register`] writes or deletes files.

mod directory;
mod files;
mod register;
mod watch;

pub use files::UNREADABLE;
pub use register::register;

use std::collections::HashSet;
use std::ffi::OsString;
use std::fmt;
use std::mem;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::directory::{RegistryDirectory, RegistryDirectoryError};
use self::files::{ClockReading, KnownFiles};
use self::watch::{DirectoryEvents, DirectoryWatch, PendingEvents};
use super::{Feed, Registry, RegistryCommand};
use crate::service::{Change, ListKind};

/// Settings of a file registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The directory; it need not exist yet.
    pub directory: PathBuf,
    /// Whether the directory was configured, and is not GoFrame's default.
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

/// Limit on the queued files that one step reads.
const MAX_FILES_PER_STEP: usize = 500;

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
        let events = PendingEvents::default();
        let mut follower =
            DirectoryFollower::new(self.settings, first, feed.clone(), events.clone());
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
                () = events.arrived() => {}
                () = sleep(outcome.pause) => {}
                () = stop.cancelled() => return,
                // Ignored: a file registry has no leases to check.
                command = commands.recv(), if has_commands => has_commands = command.is_some(),
            }
        }
    }
}

/// Follows one directory step by step, without tasks or channels.
struct DirectoryFollower {
    settings: Settings,
    /// The kind of the only list; removals after it are single events.
    first: ListKind,
    feed: Feed,
    events: PendingEvents,
    directory: Option<RegistryDirectory>,
    watch: Option<DirectoryWatch>,
    files: KnownFiles,
    /// Whether the last check found the directory usable; `None` before the first.
    connected: Option<bool>,
    /// Whether the list is complete.
    listed: bool,
    /// Names of files to read.
    queue: Vec<OsString>,
    /// Whether the queue comes from a scan.
    scanning: bool,
    next_poll: Instant,
    /// The time of the next scan.
    ///
    /// `None` during a scan, unless another must follow at once.
    next_scan: Option<Instant>,
    /// Whether the missing inotify watch was logged.
    warned: bool,
}

/// The outcome of one step.
struct StepOutcome {
    changes: Vec<Change>,
    /// Maximum wait until the next step; an event ends it earlier.
    pause: Duration,
}

impl DirectoryFollower {
    fn new(mut settings: Settings, first: ListKind, feed: Feed, events: PendingEvents) -> Self {
        // The paths in inotify's events are absolute.
        if let Ok(absolute) = std::path::absolute(&settings.directory) {
            settings.directory = absolute;
        }
        let files = KnownFiles::new(settings.timings);
        Self {
            settings,
            first,
            feed,
            events,
            directory: None,
            watch: None,
            files,
            connected: None,
            listed: false,
            queue: Vec::new(),
            scanning: false,
            next_poll: Instant::now(),
            next_scan: None,
            warned: false,
        }
    }

    /// Handles pending events and all work that is due.
    fn step(&mut self, now: ClockReading) -> StepOutcome {
        if self.files.detect_clock_jump(now) {
            info!(
                registry = %self.feed.state(),
                "the wall clock has jumped: every registration gets its full time to live again"
            );
        }
        let mut changes = Vec::new();
        // Events wait for the end of the list, because a list may not contain single events.
        let mut events = if self.listed { self.events.take() } else { DirectoryEvents::default() };
        if events.lost {
            self.next_scan = Some(now.monotonic);
        }
        let poll = events.directory || now.monotonic >= self.next_poll;
        if poll {
            self.next_poll = now.monotonic + self.settings.timings.poll_interval;
            self.check_directory(&mut changes, now.monotonic);
        }
        if self.directory.is_some()
            && !self.scanning
            && self.next_scan.is_some_and(|next| now.monotonic >= next)
        {
            self.start_scan(&mut changes);
        }
        if self.listed {
            if poll || self.files.has_incomplete() {
                events.names.extend(self.files.due(now.monotonic));
            }
            self.read_files(events.names, true, &mut changes, now);
        }
        let rest = self.queue.len().saturating_sub(MAX_FILES_PER_STEP);
        let batch = self.queue.drain(rest..).collect::<Vec<_>>();
        self.read_files(batch, false, &mut changes, now);
        if self.scanning && self.queue.is_empty() {
            self.end_scan(&mut changes, now.monotonic);
        }
        let timings = &self.settings.timings;
        let pause = match (self.queue.is_empty(), self.files.has_incomplete()) {
            (false, _) => Duration::ZERO,
            (true, true) => timings.retry_interval.min(timings.poll_interval),
            (true, false) => timings.poll_interval,
        };
        StepOutcome { changes, pause }
    }

    /// Opens the directory again and reacts if it is missing, forbidden or replaced.
    fn check_directory(&mut self, changes: &mut Vec<Change>, now: Instant) {
        match RegistryDirectory::open(&self.settings.directory, self.settings.named) {
            Ok(Some(directory)) => {
                let current = self.directory.as_ref().map(RegistryDirectory::identity);
                let same = current == Some(directory.identity());
                self.directory = Some(directory);
                // A scan of another directory does not count for this one.
                self.scanning &= same;
                if !same || self.watch.is_none() {
                    self.start_watch();
                    // Scan for changes before the watch began. Without a watch, do not restart a
                    // scan that takes longer than the poll interval: it would never end.
                    if self.watch.is_some() || !self.scanning {
                        self.next_scan = Some(now);
                    }
                }
                self.report_connected(None, changes);
            }
            Ok(None) => {
                // The first program to register creates the directory, so there are none yet.
                self.close();
                let note = "the directory does not exist yet; \
                            it will be followed once a program creates it";
                self.report_connected(Some(note), changes);
                let removed = self.files.retain(|_| false);
                if self.listed {
                    changes.extend(removed);
                } else {
                    changes.push(Change::ListBegin(self.first));
                    self.end_scan(changes, now);
                }
            }
            Err(error) => self.report_disconnected(&error, changes),
        }
    }

    /// Starts an inotify watch on the path.
    ///
    /// If the path no longer names the opened directory, the next poll notices that.
    fn start_watch(&mut self) {
        self.watch = None;
        match DirectoryWatch::new(&self.settings.directory, self.events.clone()) {
            Ok(watch) => self.watch = Some(watch),
            Err(error) if !self.warned => {
                self.warned = true;
                warn!(
                    registry = %self.feed.state(),
                    %error,
                    period_ms = self.settings.timings.poll_interval.as_millis(),
                    "changes are noticed late, by polling: the system has no free inotify \
                     watch (see fs.inotify.max_user_instances and max_user_watches)"
                );
            }
            Err(_) => {}
        }
    }

    fn close(&mut self) {
        self.directory = None;
        self.watch = None;
        self.queue = Vec::new();
        self.scanning = false;
    }

    /// Reports that the directory is followed or, with `note`, that it does not exist.
    fn report_connected(&mut self, note: Option<&str>, changes: &mut Vec<Change>) {
        let registry = self.feed.state();
        registry.update(|report| {
            report.connected = true;
            report.error = note.map(str::to_owned);
            report.last_event = Some(SystemTime::now());
        });
        if self.connected.replace(true) != Some(true) {
            let message = note.unwrap_or("following the directory");
            info!(%registry, url = %registry.url, "{message}");
            changes.push(Change::Connected(true));
        }
    }

    /// Reports that the directory cannot be followed; its registrations stay.
    fn report_disconnected(&mut self, error: &RegistryDirectoryError, changes: &mut Vec<Change>) {
        self.close();
        let was_connected = self.connected.replace(false);
        let registry = self.feed.state();
        if was_connected != Some(false) {
            warn!(%registry, url = %registry.url, %error, "cannot follow the directory");
            changes.push(Change::Connected(false));
        }
        registry.update(|report| {
            report.connected = false;
            report.error = Some(error.to_string());
            report.disconnects += u64::from(was_connected == Some(true));
        });
    }

    /// Starts to scan the directory; removes the files that are no longer in it.
    fn start_scan(&mut self, changes: &mut Vec<Change>) {
        let Some(directory) = &self.directory else { return };
        let names = match directory.names() {
            Ok(names) => names,
            Err(error) => {
                let path = self.settings.directory.clone();
                let error = RegistryDirectoryError::Unreadable { path, error };
                return self.report_disconnected(&error, changes);
            }
        };
        let names: HashSet<OsString> =
            names.into_iter().filter(|name| self.matches_heads(name)).collect();
        if self.listed {
            changes.extend(self.files.retain(|name| names.contains(name)));
        } else {
            // Nothing was sent yet, or only part of a list that broke off.
            self.files.retain(|_| false);
            changes.push(Change::ListBegin(self.first));
        }
        self.scanning = true;
        self.next_scan = None;
        self.queue = names.into_iter().collect();
    }

    fn end_scan(&mut self, changes: &mut Vec<Change>, now: Instant) {
        self.scanning = false;
        self.next_scan.get_or_insert(now + self.settings.timings.scan_interval);
        if !mem::replace(&mut self.listed, true) {
            changes.push(Change::ListEnd { revision: 0 });
        }
        self.feed.state().update(|report| {
            report.synced = true;
            report.lists += 1;
        });
    }

    /// Reads files; unless `force` is set, only those with a new modification time.
    fn read_files(
        &mut self,
        names: impl IntoIterator<Item = OsString>,
        force: bool,
        changes: &mut Vec<Change>,
        now: ClockReading,
    ) {
        let Some(directory) = &self.directory else { return };
        for name in names {
            if self.matches_heads(&name) {
                let known = if force { None } else { self.files.modified(&name) };
                let result = directory.read(&name, known);
                changes.extend(self.files.update(&name, result, now));
            }
        }
    }

    /// Returns whether a file name begins with a followed head.
    ///
    /// A name without `#` also counts, so that it is shown as rejected.
    fn matches_heads(&self, name: &OsString) -> bool {
        let heads = &self.settings.heads;
        let name = name.to_string_lossy();
        let trimmed = name.trim_start_matches(|c: char| c == '#' || c.is_whitespace());
        let head = trimmed.split_once('#').map(|(head, _)| head);
        heads.is_empty() || head.is_none_or(|head| heads.iter().any(|followed| followed == head))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use super::*;
    use crate::registry::RegistryState;
    use crate::service::RegistryId;

    #[test]
    fn a_slow_scan_without_inotify_completes() {
        let directory = tempfile::tempdir().unwrap();
        let files = 2 * MAX_FILES_PER_STEP + 1;
        for n in 1..=files {
            let name = format!("service#default#default#a#latest#10.0.0.1-{n}");
            fs::write(directory.path().join(name), "{}").unwrap();
        }
        // No file expires, however long a busy machine takes to write the others.
        let timings =
            FileTimings { expire_after: Duration::from_secs(3600), ..FileTimings::default() };
        let settings = Settings {
            directory: directory.path().into(),
            named: true,
            heads: Vec::new(),
            timings,
        };
        let (sender, _updates) = mpsc::channel(1);
        let state = RegistryState::new("file".parse().unwrap(), "file".to_owned());
        let feed = Feed::new(RegistryId::FIRST, sender, Arc::new(state));
        let events = PendingEvents::default();
        let mut follower = DirectoryFollower::new(settings, ListKind::Routine, feed, events);
        let mut now = ClockReading::now();
        let mut changes = Vec::new();
        // Each step takes a whole poll interval.
        for _ in 0..10 {
            // As if inotify were not available.
            follower.watch = None;
            changes.extend(follower.step(now).changes);
            let interval = timings.poll_interval;
            now = ClockReading { wall: now.wall + interval, monotonic: now.monotonic + interval };
        }
        let count =
            |wanted: fn(&Change) -> bool| changes.iter().filter(|change| wanted(change)).count();
        assert_eq!(count(|change| matches!(change, Change::ListBegin(_))), 1);
        assert_eq!(count(|change| matches!(change, Change::ListEnd { .. })), 1);
        assert_eq!(count(|change| matches!(change, Change::Put(_))), files);
    }
}
