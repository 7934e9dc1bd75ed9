//! The follower of one directory, step by step, without tasks or channels.
//!
//! An unlinked file was removed on purpose, by its program or by `rm`, so its registration ends at
//! once. A directory that vanishes with its files in it was moved away, unmounted or replaced,
//! which says nothing about the programs. A list of the kind [`ListKind::Restored`] then removes
//! its registrations, and the catalog holds them for the removal grace.
//!
//! `rm -rf` of the directory unlinks the files first, so the registrations end at once. Programs
//! that still run write their files again within 10 s, in a new directory. Without inotify, or if
//! its queue overflows, `rm -rf` looks like a vanished directory; keeping names is the safer error.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::mem;
use std::time::{Duration, Instant, SystemTime};

use tracing::{info, warn};

use super::Settings;
use super::directory::{DirectoryIdentity, RegistryDirectory, RegistryDirectoryError};
use super::files::{ClockReading, KnownFiles};
use super::vanished::{VanishedDirectory, another_directory};
use super::watch::{DirectoryEvents, DirectoryWatch, FileEvent, WatchEnd};
use crate::registry::{Feed, RegistryReport};
use crate::service::{Change, ListKind};

/// Limit on the queued files that one step reads.
const MAX_FILES_PER_STEP: usize = 500;

/// Follows one directory step by step, without tasks or channels.
pub(super) struct DirectoryFollower {
    settings: Settings,
    feed: Feed,
    /// The kind of the next list.
    ///
    /// There is one for each directory; removals after it are single events.
    kind: ListKind,
    /// The directory that the known files are in; `None` while there is none.
    followed: Option<DirectoryIdentity>,
    /// The last directory that vanished, until it no longer matters.
    vanished: Option<VanishedDirectory>,
    watch: Option<DirectoryWatch>,
    events: DirectoryEvents,
    files: KnownFiles,
    /// Whether the last step found the directory usable; `None` before the first.
    connected: Option<bool>,
    /// Time since which the followed directory cannot be read.
    unreadable_since: Option<Instant>,
    /// Whether the list of the followed directory is complete.
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
    /// Whether the lack of inotify was logged.
    warned: bool,
}

/// The outcome of one step.
pub(super) struct StepOutcome {
    pub(super) changes: Vec<Change>,
    /// Longest wait until the next step; an event ends it earlier.
    pub(super) pause: Duration,
}

impl DirectoryFollower {
    /// Makes a follower whose first list has the kind `first`.
    pub(super) fn new(mut settings: Settings, first: ListKind, feed: Feed) -> Self {
        // For messages: the user may not know our working directory.
        if let Ok(absolute) = std::path::absolute(&settings.directory) {
            settings.directory = absolute;
        }
        let files = KnownFiles::new(settings.timings);
        Self {
            settings,
            feed,
            kind: first,
            followed: None,
            vanished: None,
            watch: None,
            events: DirectoryEvents::default(),
            files,
            connected: None,
            unreadable_since: None,
            listed: false,
            queue: Vec::new(),
            scanning: false,
            next_poll: Instant::now(),
            next_scan: None,
            warned: false,
        }
    }

    /// Waits for an event of the directory; forever without a watch.
    pub(super) async fn changed(&mut self) {
        match &mut self.watch {
            Some(watch) => watch.wait(&mut self.events).await,
            None => std::future::pending().await,
        }
    }

    /// Handles pending events and all work that is due.
    pub(super) fn step(&mut self, now: ClockReading) -> StepOutcome {
        if self.files.detect_clock_jump(now) {
            info!(
                registry = %self.feed.state(),
                "the wall clock has jumped: every registration gets its full time to live again"
            );
        }
        let mut changes = Vec::new();
        if let Some(watch) = &mut self.watch {
            watch.read(&mut self.events);
        }
        let poll = now.monotonic >= self.next_poll;
        if poll {
            self.next_poll = now.monotonic + self.settings.timings.poll_interval;
        }
        let directory = self.check_directory(poll, &mut changes, now);
        if let Some(directory) = &directory {
            if !self.scanning && self.next_scan.is_some_and(|next| now.monotonic >= next) {
                self.start_scan(directory, &mut changes, now.monotonic);
            }
            self.read_due_files(directory, poll, &mut changes, now);
        }
        let timings = &self.settings.timings;
        let pause = match (self.queue.is_empty(), self.files.has_incomplete()) {
            (false, _) => Duration::ZERO,
            (true, true) => timings.retry_interval.min(timings.poll_interval),
            (true, false) => timings.poll_interval,
        };
        StepOutcome { changes, pause }
    }

    /// Opens the directory, and reacts if it is missing, forbidden or another one.
    fn check_directory(
        &mut self,
        poll: bool,
        changes: &mut Vec<Change>,
        now: ClockReading,
    ) -> Option<RegistryDirectory> {
        let Settings { directory: path, named, .. } = &self.settings;
        let found = RegistryDirectory::open(path, *named);
        let end = self.events.end.take();
        let lost = mem::take(&mut self.events.lost);
        if end.is_some() || lost {
            // An overflow may have dropped the end of the watch.
            self.watch = None;
        }
        if let Some(followed) = self.followed {
            let here = match &found {
                Ok(Some(directory)) => Some(directory.identity()),
                Ok(None) | Err(RegistryDirectoryError::Deleted { .. }) => None,
                // Unless the path names another directory, the followed one is unreadable.
                Err(_) => DirectoryIdentity::at(path, *named).or(Some(followed)),
            };
            // A new directory may have the same number as a deleted or unmounted one.
            let same = matches!(end, None | Some(WatchEnd::Moved)) && here == Some(followed);
            if !same {
                self.leave(followed, &found, end, changes, now.monotonic);
            }
        }
        if self.vanished.as_ref().is_some_and(|vanished| now.monotonic >= vanished.held_until) {
            self.files.end_suspension();
        }
        match found {
            Ok(Some(directory)) => {
                self.enter(&directory, poll || lost, changes, now.monotonic);
                Some(directory)
            }
            Ok(None) => {
                self.report_missing(changes, now.monotonic);
                None
            }
            Err(error) => {
                self.report_unreadable(&error, changes, now.monotonic);
                None
            }
        }
    }

    /// Leaves the followed directory, because the path no longer names it.
    fn leave(
        &mut self,
        identity: DirectoryIdentity,
        found: &Result<Option<RegistryDirectory>, RegistryDirectoryError>,
        end: Option<WatchEnd>,
        changes: &mut Vec<Change>,
        now: Instant,
    ) {
        self.resume(now);
        let deleted = end == Some(WatchEnd::Deleted)
            || matches!(found, Err(RegistryDirectoryError::Deleted { .. }));
        let events = mem::take(&mut self.events).files;
        if self.listed {
            // A list may not contain single events, and its removals are held.
            let is_removed =
                |name: &OsStr| deleted || events.get(name) == Some(&FileEvent::Removed);
            changes.extend(self.files.retain(|name| !is_removed(name)));
        }
        let files = self.files.suspend(now);
        self.followed = None;
        self.watch = None;
        self.stop_scan();
        self.listed = false;
        self.kind = ListKind::Restored;
        if files == 0 {
            return;
        }
        let path = self.settings.directory.display();
        let event = match found {
            Ok(Some(_)) => another_directory(&self.settings.directory),
            Ok(None) => format!(
                "{path} no longer exists: it, or a directory above it, was moved away or \
                 unmounted"
            ),
            Err(error) => error.to_string(),
        };
        let registry = self.feed.state();
        let held_until = now + registry.removal_grace;
        let vanished =
            self.vanished.insert(VanishedDirectory { identity, event, files, held_until });
        warn!(%registry, url = %registry.url, files, "{}", vanished.note(registry.removal_grace));
    }

    /// Follows a directory: the same as before or, after [`Self::leave`], another one.
    fn enter(
        &mut self,
        directory: &RegistryDirectory,
        poll: bool,
        changes: &mut Vec<Change>,
        now: Instant,
    ) {
        self.resume(now);
        let same = self.followed.replace(directory.identity()) == Some(directory.identity());
        if !same || (self.watch.is_none() && poll) {
            self.start_watch(directory);
            // Scan for changes before the watch began. Without a watch, do not restart a
            // scan that takes longer than the poll interval: it would never end.
            if self.watch.is_some() || !self.scanning {
                self.next_scan = Some(now);
            }
        }
        if let Some(vanished) = &mut self.vanished {
            vanished.event = another_directory(&self.settings.directory);
            if vanished.identity == directory.identity() || now >= vanished.held_until {
                self.vanished = None;
            }
        }
        let registry = self.feed.state();
        let note = self.vanished.as_ref().map(|vanished| vanished.note(registry.removal_grace));
        self.report_connected(note, "following the directory", changes);
    }

    /// Ends a period in which the followed directory could not be read.
    ///
    /// Its programs may have been unable to refresh their files.
    fn resume(&mut self, now: Instant) {
        if let Some(since) = self.unreadable_since.take() {
            self.files.extend(now.saturating_duration_since(since));
        }
    }

    fn start_watch(&mut self, directory: &RegistryDirectory) {
        self.watch = None;
        match DirectoryWatch::new(&self.settings.directory, directory) {
            Ok(watch) => self.watch = Some(watch),
            Err(error) if !self.warned => {
                self.warned = true;
                warn!(
                    registry = %self.feed.state(),
                    %error,
                    period_ms = self.settings.timings.poll_interval.as_millis(),
                    "changes are noticed late, by polling: the system has no inotify watch to \
                     spare (see fs.inotify.max_user_instances and max_user_watches)"
                );
            }
            Err(_) => {}
        }
    }

    fn stop_scan(&mut self) {
        self.queue = Vec::new();
        self.scanning = false;
    }

    /// Reports that nothing is at the path.
    ///
    /// Unless a followed directory has vanished, that is an empty registry: the first program to
    /// register creates the directory.
    fn report_missing(&mut self, changes: &mut Vec<Change>, now: Instant) {
        self.list_nothing(changes);
        let grace = self.feed.state().removal_grace;
        if let Some(vanished) = &self.vanished {
            let held = now < vanished.held_until;
            let note = if held { vanished.note(grace) } else { vanished.event.clone() };
            self.report_disconnected(note, changes);
        } else {
            let note = "the directory does not exist yet; \
                        it will be followed once a program creates it";
            self.report_connected(Some(note.to_owned()), note, changes);
        }
    }

    /// Reports that the path cannot be followed; registrations of an existing directory stay.
    fn report_unreadable(
        &mut self,
        error: &RegistryDirectoryError,
        changes: &mut Vec<Change>,
        now: Instant,
    ) {
        if self.followed.is_some() {
            self.watch = None;
            self.stop_scan();
            self.unreadable_since.get_or_insert(now);
        } else if self.kind == ListKind::Restored {
            self.list_nothing(changes);
        }
        if self.connected != Some(false) && self.vanished.is_none() {
            let registry = self.feed.state();
            warn!(%registry, url = %registry.url, %error, "cannot follow the directory");
        }
        self.report_disconnected(error.to_string(), changes);
    }

    /// Sends an empty list, unless a list is complete already.
    fn list_nothing(&mut self, changes: &mut Vec<Change>) {
        if !self.listed {
            changes.push(Change::list_begin(self.kind));
            self.end_list(changes);
        }
    }

    fn report_connected(&mut self, note: Option<String>, message: &str, changes: &mut Vec<Change>) {
        let registry = self.feed.state();
        registry.update(|report| {
            report.connected = true;
            report.error = note;
            report.last_event = Some(SystemTime::now());
        });
        if self.connected.replace(true) != Some(true) {
            info!(%registry, url = %registry.url, "{message}");
            changes.push(Change::Connected(true));
        }
    }

    fn report_disconnected(&mut self, reason: String, changes: &mut Vec<Change>) {
        let was_connected = self.connected.replace(false);
        if was_connected != Some(false) {
            changes.push(Change::Connected(false));
        }
        self.feed.state().update(|report| {
            report.connected = false;
            report.error = Some(reason);
            report.refused = true;
            report.disconnects += u64::from(was_connected == Some(true));
        });
    }

    /// Starts to scan the directory; removes the files that are no longer in it.
    fn start_scan(
        &mut self,
        directory: &RegistryDirectory,
        changes: &mut Vec<Change>,
        now: Instant,
    ) {
        let names = match directory.names() {
            Ok(names) => names,
            Err(error) => {
                let path = self.settings.directory.clone();
                let error = RegistryDirectoryError::Unreadable { path, error };
                return self.report_unreadable(&error, changes, now);
            }
        };
        let names: HashSet<OsString> =
            names.into_iter().filter(|name| self.matches_heads(name)).collect();
        if self.listed {
            changes.extend(self.files.retain(|name| names.contains(name)));
        } else {
            // Nothing was sent yet, or only part of a list that broke off.
            self.files.clear();
            changes.push(Change::list_begin(self.kind));
        }
        self.scanning = true;
        self.next_scan = None;
        self.queue = names.into_iter().collect();
    }

    fn end_list(&mut self, changes: &mut Vec<Change>) {
        if !mem::replace(&mut self.listed, true) {
            changes.push(Change::ListEnd { revision: 0 });
        }
        self.feed.state().update(RegistryReport::note_list);
    }

    /// Reads the files with events, those that are due and, during a scan, queued ones.
    fn read_due_files(
        &mut self,
        directory: &RegistryDirectory,
        poll: bool,
        changes: &mut Vec<Change>,
        now: ClockReading,
    ) {
        // Events wait for the end of the list, because a list may not contain single events.
        if self.listed {
            let mut names: HashSet<OsString> =
                mem::take(&mut self.events.files).into_keys().collect();
            if poll || self.files.has_incomplete() {
                names.extend(self.files.due(now.monotonic));
            }
            self.read_files(directory, names, true, changes, now);
        }
        let rest = self.queue.len().saturating_sub(MAX_FILES_PER_STEP);
        let batch = self.queue.drain(rest..).collect::<Vec<_>>();
        self.read_files(directory, batch, false, changes, now);
        if self.scanning && self.queue.is_empty() {
            self.scanning = false;
            let interval = self.settings.timings.scan_interval;
            self.next_scan.get_or_insert(now.monotonic + interval);
            self.end_list(changes);
        }
    }

    /// Reads files; unless `force` is set, only those with a new modification time.
    fn read_files(
        &mut self,
        directory: &RegistryDirectory,
        names: impl IntoIterator<Item = OsString>,
        force: bool,
        changes: &mut Vec<Change>,
        now: ClockReading,
    ) {
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
    use std::path::Path;
    use std::sync::Arc;

    use tokio::sync::mpsc;

    use super::super::FileTimings;
    use super::*;
    use crate::registry::RegistryState;
    use crate::service::RegistryId;

    /// Makes a follower of a directory, with these timings.
    fn follow(directory: &Path, timings: FileTimings) -> DirectoryFollower {
        let settings =
            Settings { directory: directory.into(), named: true, heads: Vec::new(), timings };
        let (sender, _updates) = mpsc::channel(1);
        let name = "file".parse().unwrap();
        let state = RegistryState::new(name, "file".to_owned(), Duration::ZERO);
        let feed = Feed::new(RegistryId::FIRST, sender, Arc::new(state));
        DirectoryFollower::new(settings, ListKind::Routine, feed)
    }

    #[test]
    fn an_overflow_of_the_inotify_queue_leads_to_a_scan() {
        let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
        let limit: usize = limit.trim().parse().unwrap();
        let top = tempfile::tempdir().unwrap();
        let directory = top.path().join("r");
        let name = |port| format!("service#default#default#a#latest#10.0.0.1-{port}");
        let path = |port: usize| directory.join(name(port));
        fs::create_dir(&directory).unwrap();
        fs::write(path(1), "{}").unwrap();
        // Neither polls nor scans.
        let hour = Duration::from_secs(3600);
        let timings = FileTimings {
            expire_after: hour,
            poll_interval: hour,
            scan_interval: hour,
            ..FileTimings::default()
        };
        let mut follower = follow(&directory, timings);
        let mut step = || {
            let mut texts = Vec::new();
            loop {
                let StepOutcome { changes, pause } = follower.step(ClockReading::now());
                texts.extend(changes.into_iter().filter_map(|change| match change {
                    Change::Put(put) => Some(format!("+{}", put.key)),
                    Change::Delete { key, .. } => Some(format!("-{key}")),
                    _ => None,
                }));
                if !pause.is_zero() {
                    texts.sort();
                    return texts;
                }
            }
        };
        let overflow = || {
            let names = [directory.join(".a"), directory.join(".b")];
            fs::write(&names[0], "").unwrap();
            // Two events for each rename.
            for n in 0..=limit / 2 {
                fs::rename(&names[n % 2], &names[(n + 1) % 2]).unwrap();
            }
            fs::remove_file(&names[(limit / 2 + 1) % 2]).unwrap();
        };
        assert_eq!(step(), [format!("+{}", name(1))]);
        overflow();
        fs::write(path(2), "{}").unwrap();
        fs::remove_file(path(1)).unwrap();
        assert_eq!(step(), [format!("+{}", name(2)), format!("-{}", name(1))]);
        fs::write(path(3), "{}").unwrap();
        assert_eq!(step(), [format!("+{}", name(3))], "events arrive again");

        // The event of the directory's end is lost, too.
        overflow();
        fs::rename(&directory, top.path().join("old")).unwrap();
        fs::create_dir(&directory).unwrap();
        fs::write(path(4), "{}").unwrap();
        assert_eq!(step(), [format!("+{}", name(4))], "a list, whose removals are held");
        fs::write(path(5), "{}").unwrap();
        assert_eq!(step(), [format!("+{}", name(5))], "events of the new directory");
    }

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
        let mut follower = follow(directory.path(), timings);
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
        assert_eq!(count(|change| matches!(change, Change::ListBegin { .. })), 1);
        assert_eq!(count(|change| matches!(change, Change::ListEnd { .. })), 1);
        assert_eq!(count(|change| matches!(change, Change::Put(_))), files);
    }
}
