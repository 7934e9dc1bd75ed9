//! inotify events of the directory, collected until the follower takes them.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

use super::directory::is_candidate;

/// Limit on the collected file names; beyond it, the whole directory is scanned.
const MAX_PENDING_NAMES: usize = 65_536;

/// A watch on one directory, until dropped.
#[derive(Debug)]
pub(super) struct DirectoryWatch {
    _watcher: RecommendedWatcher,
}

/// The events since they were last taken.
#[derive(Debug, Default)]
pub(super) struct DirectoryEvents {
    /// Names of files that were created, written, moved or removed.
    pub(super) names: HashSet<OsString>,
    /// Whether the directory itself changed, and so may have been replaced.
    pub(super) directory: bool,
    /// Whether events were lost; any file may then have changed.
    pub(super) lost: bool,
}

/// Events received by a watch and not yet taken by the follower.
#[derive(Clone, Debug, Default)]
pub(super) struct PendingEvents {
    events: Arc<Mutex<DirectoryEvents>>,
    arrived: Arc<Notify>,
}

impl PendingEvents {
    /// Returns the pending events and forgets them.
    pub(super) fn take(&self) -> DirectoryEvents {
        mem::take(&mut self.events.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits for an event since the last wait.
    pub(super) async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// Adds an event of the watch on `directory`.
    fn add(&self, directory: &Path, event: notify::Result<Event>) {
        {
            let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
            match event {
                Ok(event) if event.need_rescan() => events.lost = true,
                // Reading a file causes such events too, including our own reading.
                Ok(Event { kind: EventKind::Access(access), .. })
                    if access != AccessKind::Close(AccessMode::Write) =>
                {
                    return;
                }
                Ok(event) => event.paths.iter().for_each(|path| events.add_path(directory, path)),
                Err(_) => events.lost = true,
            }
            if events.names.len() > MAX_PENDING_NAMES {
                events.names = HashSet::new();
                events.lost = true;
            }
        }
        self.arrived.notify_one();
    }
}

impl DirectoryEvents {
    /// Adds a changed path: `directory` itself or a file in it.
    fn add_path(&mut self, directory: &Path, path: &Path) {
        let name: Option<&OsStr> =
            path.strip_prefix(directory).ok().map(Path::as_os_str).filter(|name| !name.is_empty());
        match name {
            Some(name) if is_candidate(name) => {
                self.names.insert(name.into());
            }
            Some(_) => {}
            None => self.directory = true,
        }
    }
}

impl DirectoryWatch {
    /// Watches the directory that `path` names now.
    ///
    /// # Errors
    /// Returns an error if the system has no inotify or no free watch.
    pub(super) fn new(path: &Path, events: PendingEvents) -> notify::Result<Self> {
        let directory: PathBuf = path.into();
        let mut watcher = notify::recommended_watcher(move |event| events.add(&directory, event))?;
        watcher.watch(path, RecursiveMode::NonRecursive)?;
        Ok(Self { _watcher: watcher })
    }
}

#[cfg(test)]
mod tests {
    use notify::event::{CreateKind, Flag};

    use super::*;

    fn created(path: &str) -> Event {
        Event::new(EventKind::Create(CreateKind::File)).add_path(path.into())
    }

    fn accessed(access: AccessKind, path: &str) -> Event {
        Event::new(EventKind::Access(access)).add_path(path.into())
    }

    #[test]
    fn only_events_that_may_change_a_registration_count() {
        let pending = PendingEvents::default();
        let directory = Path::new("/r");
        pending.add(directory, Ok(accessed(AccessKind::Open(AccessMode::Any), "/r/a")));
        pending.add(directory, Ok(created("/r/.hidden")));
        pending.add(directory, Ok(created("/r/new.tmp")));
        let events = pending.take();
        assert!(events.names.is_empty() && !events.directory && !events.lost);

        pending.add(directory, Ok(created("/r/a")));
        pending.add(directory, Ok(accessed(AccessKind::Close(AccessMode::Write), "/r/b")));
        pending.add(directory, Ok(created("/r")));
        let events = pending.take();
        assert_eq!(events.names, HashSet::from(["a".into(), "b".into()]));
        assert!(events.directory && !events.lost);
        assert!(pending.take().names.is_empty());
    }

    #[test]
    fn lost_events_and_floods_cause_a_scan() {
        let pending = PendingEvents::default();
        pending.add(Path::new("/r"), Ok(Event::new(EventKind::Other).set_flag(Flag::Rescan)));
        assert!(pending.take().lost);
        for n in 0..=MAX_PENDING_NAMES {
            pending.add(Path::new("/r"), Ok(created(&format!("/r/{n}"))));
        }
        let events = pending.take();
        assert!(events.lost && events.names.is_empty());
    }
}
