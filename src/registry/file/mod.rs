//! GoFrame's file registry, followed: a folder with one file a registration, rewritten every 10 s by its program and dead
//! when it was not for 20 s (GoFrame's `contrib/registry/file`).
//!
//! inotify says at once what changes; a look at the folder's identity twice a second and at all of it every 10 s finds
//! what inotify cannot say. No file is ever deleted or written here, except by [`register`].

mod folder;
mod known;
mod register;
mod watch;

pub use known::UNREADABLE;
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

use self::folder::{Folder, FolderError};
use self::known::{Known, Moment};
use self::watch::{Inbox, News, Watch};
use super::{Command, Feed, Registry};
use crate::service::{Change, ListKind};

/// Which folder is followed, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The folder; it need not exist yet.
    pub directory: PathBuf,
    /// Whether a person named the folder. One that nobody named is followed only while it belongs to root or to our own
    /// user: whoever makes `<temp dir>/gsvc` first owns every name.
    pub named: bool,
    /// The first parts of the file names that are followed (`service`); empty for all.
    pub heads: Vec<String>,
    /// How long things take.
    pub timings: Timings,
}

impl fmt::Display for Settings {
    /// The registry's URL: `file:///tmp/gsvc`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "file://{}", self.directory.display())
    }
}

/// How long things take when a folder is followed, or a registration is kept in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timings {
    /// A file counts for this long after it was last written (GoFrame: 20 s).
    pub dead_after: Duration,
    /// Between two looks at the folder itself and for files whose time is up.
    pub look: Duration,
    /// Between two full readings of the folder, which find what no event told.
    pub rescan: Duration,
    /// Before a file whose content makes no sense is read again.
    pub retry: Duration,
    /// How long the content of a file may make no sense before it is believed.
    pub patience: Duration,
    /// Between two writings of a registration of our own (GoFrame: 10 s).
    pub refresh: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            dead_after: Duration::from_secs(20),
            look: Duration::from_millis(500),
            rescan: Duration::from_secs(10),
            retry: Duration::from_millis(100),
            patience: Duration::from_secs(2),
            refresh: Duration::from_secs(10),
        }
    }
}

/// A folder of registrations, as a registry.
#[derive(Debug)]
pub struct File {
    settings: Settings,
}

/// Files that are looked at between two batches of changes.
const BATCH: usize = 500;

impl File {
    /// The registry in this folder.
    pub fn new(settings: Settings) -> Self {
        Self { settings }
    }
}

impl Registry for File {
    async fn follow(self, first: ListKind, feed: Feed, mut commands: mpsc::Receiver<Command>, stop: CancellationToken) {
        let inbox = Inbox::default();
        let mut follower = Follower::new(self.settings, first, feed.clone(), inbox.clone());
        let mut commanded = true;
        loop {
            // On a thread of its own: a folder on a network can hang.
            let work = tokio::task::spawn_blocking(move || {
                let found = follower.step(Moment::now());
                (follower, found)
            });
            let work = tokio::select! {
                work = work => work,
                () = stop.cancelled() => return,
            };
            // It fails only when the runtime ends.
            let Ok((returned, found)) = work else { return };
            follower = returned;
            tokio::select! {
                sent = feed.send(found.changes) => if sent.is_err() { return },
                () = stop.cancelled() => return,
            }
            if found.pause.is_zero() {
                continue;
            }
            tokio::select! {
                () = inbox.arrived() => {}
                () = sleep(found.pause) => {}
                () = stop.cancelled() => return,
                // There are no leases to ask about.
                command = commands.recv(), if commanded => commanded = command.is_some(),
            }
        }
    }
}

/// Follows one folder, step by step. Knows no task and no channel.
struct Follower {
    settings: Settings,
    /// The kind of the first list, the only one: afterwards this side knows what is gone.
    first: ListKind,
    feed: Feed,
    inbox: Inbox,
    folder: Option<Folder>,
    watch: Option<Watch>,
    known: Known,
    /// Whether the folder could be followed at the last look; none before the first.
    connected: Option<bool>,
    /// Whether the first list is complete.
    listed: bool,
    /// Names still to be looked at.
    queue: Vec<OsString>,
    /// Whether the queue came from a full reading of the folder.
    reading: bool,
    next_look: Instant,
    /// None while the folder is being read and need not be read again at once.
    next_reading: Option<Instant>,
    /// Whether the lack of inotify has been told.
    complained: bool,
}

/// What one step brought.
struct Step {
    changes: Vec<Change>,
    /// Until the next step, when no event asks for one sooner.
    pause: Duration,
}

impl Follower {
    fn new(mut settings: Settings, first: ListKind, feed: Feed, inbox: Inbox) -> Self {
        // As inotify's events have it.
        if let Ok(absolute) = std::path::absolute(&settings.directory) {
            settings.directory = absolute;
        }
        let known = Known::new(settings.timings);
        Self {
            settings,
            first,
            feed,
            inbox,
            folder: None,
            watch: None,
            known,
            connected: None,
            listed: false,
            queue: Vec::new(),
            reading: false,
            next_look: Instant::now(),
            next_reading: None,
            complained: false,
        }
    }

    fn step(&mut self, now: Moment) -> Step {
        if self.known.jumped(now) {
            info!(registry = %self.feed.state(), "the clock has jumped: every registration gets its time again");
        }
        let mut changes = Vec::new();
        // In the first list are no single events: news wait for its end.
        let mut news = if self.listed { self.inbox.take() } else { News::default() };
        if news.lost {
            self.next_reading = Some(now.monotonic);
        }
        let look = news.folder || now.monotonic >= self.next_look;
        if look {
            self.next_look = now.monotonic + self.settings.timings.look;
            self.look_at_folder(&mut changes, now.monotonic);
        }
        if self.folder.is_some() && !self.reading && self.next_reading.is_some_and(|next| now.monotonic >= next) {
            self.start_reading(&mut changes);
        }
        if self.listed {
            if look || self.known.is_unsettled() {
                news.names.extend(self.known.due(now.monotonic));
            }
            self.look_at(news.names, true, &mut changes, now);
        }
        let rest = self.queue.len().saturating_sub(BATCH);
        let batch = self.queue.drain(rest..).collect::<Vec<_>>();
        self.look_at(batch, false, &mut changes, now);
        if self.reading && self.queue.is_empty() {
            self.end_reading(&mut changes, now.monotonic);
        }
        let timings = &self.settings.timings;
        let pause = match (self.queue.is_empty(), self.known.is_unsettled()) {
            (false, _) => Duration::ZERO,
            (true, true) => timings.retry.min(timings.look),
            (true, false) => timings.look,
        };
        Step { changes, pause }
    }

    /// Looks whether the folder is there, may be followed, and is still the one that is followed.
    fn look_at_folder(&mut self, changes: &mut Vec<Change>, now: Instant) {
        match Folder::open(&self.settings.directory, self.settings.named) {
            Ok(Some(folder)) => {
                let same = self.folder.as_ref().map(Folder::identity) == Some(folder.identity());
                self.folder = Some(folder);
                // What was read of another folder says nothing of this one.
                self.reading &= same;
                if !same || self.watch.is_none() {
                    self.watch();
                    // What happened before the watch stood. Without one a reading that takes longer than the time between
                    // two looks is left to come to its end, and is no reason for another.
                    if self.watch.is_some() || !self.reading {
                        self.next_reading = Some(now);
                    }
                }
                self.connect(None, changes);
            }
            Ok(None) => {
                // Programs make the folder when they start: without it nobody is registered.
                self.leave();
                self.connect(Some("the folder does not exist yet; it is followed once a program makes it"), changes);
                let gone = self.known.keep_only(|_| false);
                if self.listed {
                    changes.extend(gone);
                } else {
                    changes.push(Change::ListBegin(self.first));
                    self.end_reading(changes, now);
                }
            }
            Err(error) => self.disconnect(&error, changes),
        }
    }

    /// Watches what is at the path. Should that not be the folder that was just opened, the next look will see it.
    fn watch(&mut self) {
        self.watch = None;
        match Watch::new(&self.settings.directory, self.inbox.clone()) {
            Ok(watch) => self.watch = Some(watch),
            Err(error) if !self.complained => {
                self.complained = true;
                warn!(
                    registry = %self.feed.state(), %error, period_ms = self.settings.timings.look.as_millis(),
                    "changes are found by looking only: inotify refuses (see fs.inotify.max_user_instances and max_user_watches)"
                );
            }
            Err(_) => {}
        }
    }

    fn leave(&mut self) {
        self.folder = None;
        self.watch = None;
        self.queue = Vec::new();
        self.reading = false;
    }

    fn connect(&mut self, note: Option<&str>, changes: &mut Vec<Change>) {
        self.feed.state().update(|report| {
            report.connected = true;
            report.error = note.map(str::to_owned);
            report.last_event = Some(SystemTime::now());
        });
        if self.connected.replace(true) != Some(true) {
            let state = self.feed.state();
            info!(registry = %state, url = %state.url, "{}", note.unwrap_or("the folder is followed"));
            changes.push(Change::Connected(true));
        }
    }

    /// The folder cannot be followed: what it held stays.
    fn disconnect(&mut self, error: &FolderError, changes: &mut Vec<Change>) {
        self.leave();
        let was = self.connected.replace(false);
        if was != Some(false) {
            let state = self.feed.state();
            warn!(registry = %state, url = %state.url, %error, "the folder is not followed");
            changes.push(Change::Connected(false));
        }
        self.feed.state().update(|report| {
            report.connected = false;
            report.error = Some(error.to_string());
            report.disconnects += u64::from(was == Some(true));
        });
    }

    /// Begins to read the whole folder; what it does not hold any more is gone.
    fn start_reading(&mut self, changes: &mut Vec<Change>) {
        let Some(folder) = &self.folder else { return };
        let names = match folder.names() {
            Ok(names) => names,
            Err(error) => {
                return self.disconnect(&FolderError::Unreadable { path: self.settings.directory.clone(), error }, changes);
            }
        };
        let names: HashSet<OsString> = names.into_iter().filter(|name| self.is_ours(name)).collect();
        if self.listed {
            changes.extend(self.known.keep_only(|name| names.contains(name)));
        } else {
            // Nothing was said yet, or in a list that was broken off.
            self.known.keep_only(|_| false);
            changes.push(Change::ListBegin(self.first));
        }
        self.reading = true;
        self.next_reading = None;
        self.queue = names.into_iter().collect();
    }

    fn end_reading(&mut self, changes: &mut Vec<Change>, now: Instant) {
        self.reading = false;
        self.next_reading.get_or_insert(now + self.settings.timings.rescan);
        if !mem::replace(&mut self.listed, true) {
            changes.push(Change::ListEnd { revision: 0 });
        }
        self.feed.state().update(|report| {
            report.synced = true;
            report.lists += 1;
        });
    }

    /// Looks at files; at all of them closely, or only at those that were written since.
    fn look_at(&mut self, names: impl IntoIterator<Item = OsString>, closely: bool, changes: &mut Vec<Change>, now: Moment) {
        let Some(folder) = &self.folder else { return };
        for name in names {
            if self.is_ours(&name) {
                let known = if closely { None } else { self.known.written(&name) };
                let found = folder.look(&name, known);
                changes.extend(self.known.see(&name, found, now));
            }
        }
    }

    /// Whether a name has one of the heads that are followed. One that has no parts at all is looked at, to be rejected.
    fn is_ours(&self, name: &OsString) -> bool {
        let heads = &self.settings.heads;
        let name = name.to_string_lossy();
        let head = name.trim_start_matches(|c: char| c == '#' || c.is_whitespace()).split_once('#').map(|(head, _)| head);
        heads.is_empty() || head.is_none_or(|head| heads.iter().any(|ours| ours == head))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use super::*;
    use crate::registry::State;
    use crate::service::RegistryId;

    #[test]
    fn a_folder_that_cannot_be_watched_is_read_to_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let files = 2 * BATCH + 1;
        for n in 0..files {
            fs::write(folder.path().join(format!("service#default#default#a#latest#10.0.0.1-{}", n + 1)), "{}").unwrap();
        }
        // None of them dies of age, however long a busy machine took to write the others.
        let timings = Timings { dead_after: Duration::from_secs(3600), ..Timings::default() };
        let settings = Settings { directory: folder.path().into(), named: true, heads: Vec::new(), timings };
        let (sender, _batches) = mpsc::channel(1);
        let feed = Feed::new(RegistryId::FIRST, sender, Arc::new(State::new("file".parse().unwrap(), "file".to_owned())));
        let mut follower = Follower::new(settings, ListKind::Routine, feed, Inbox::default());
        let mut now = Moment::now();
        let mut changes = Vec::new();
        // Each batch of files takes as long as the time between two looks.
        for _ in 0..10 {
            // As where inotify refuses.
            follower.watch = None;
            changes.extend(follower.step(now).changes);
            let look = timings.look;
            now = Moment { wall: now.wall + look, monotonic: now.monotonic + look };
        }
        let count = |wanted: fn(&Change) -> bool| changes.iter().filter(|change| wanted(change)).count();
        assert_eq!(count(|change| matches!(change, Change::ListBegin(_))), 1);
        assert_eq!(count(|change| matches!(change, Change::ListEnd { .. })), 1);
        assert_eq!(count(|change| matches!(change, Change::Put(_))), files);
    }
}
