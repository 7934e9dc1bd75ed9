//! The inotify watch of the followed directory.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::future::poll_fn;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use futures_core::Stream;
use inotify::{Event, EventMask, Inotify, WatchMask};

use super::directory::{RegistryDirectory, is_candidate};

/// Limit on the collected file names; beyond it, the whole directory is scanned.
const MAX_PENDING_NAMES: usize = 65_536;

/// Limit on the events that one call reads, so that a flood of them cannot delay all other work.
const MAX_EVENTS_PER_READ: usize = 65_536;

/// Size of the read buffer, in bytes: some 200 events.
const BUFFER_BYTES: usize = 16_384;

/// Size of the buffer for the events that end a wait, in bytes; the longest event has 272.
const WAIT_BUFFER_BYTES: usize = 1_024;

/// A watch on one directory, until dropped.
#[derive(Debug)]
pub(super) struct DirectoryWatch {
    inotify: Inotify,
}

/// The events of a directory that were not handled yet.
#[derive(Debug, Default)]
pub(super) struct DirectoryEvents {
    /// The last event of each file in the directory.
    pub(super) files: HashMap<OsString, FileEvent>,
    /// Why the watch has ended, if it has; events after that are not read.
    pub(super) end: Option<WatchEnd>,
    /// Whether events were lost; any file, and the directory itself, may then have changed.
    pub(super) lost: bool,
}

/// The last event of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileEvent {
    /// Created, written, moved into the directory, or given other attributes.
    Changed,
    /// Unlinked, or moved out of the directory.
    Removed,
}

/// Reason for the end of a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WatchEnd {
    /// The directory was deleted; so all files in it had been unlinked.
    Deleted,
    /// The directory was moved, with its files.
    Moved,
    /// The file system was unmounted.
    Unmounted,
}

impl DirectoryEvents {
    /// Adds an event of a file or of the directory itself, unless the watch has ended.
    fn add<S: AsRef<OsStr>>(&mut self, event: &Event<S>) {
        if self.end.is_some() {
            return;
        }
        let name = event.name.as_ref().map(AsRef::as_ref).filter(|name| is_candidate(name));
        let event = event.mask;
        if event.contains(EventMask::Q_OVERFLOW) {
            self.lose();
        } else if event.contains(EventMask::DELETE_SELF) {
            self.end = Some(WatchEnd::Deleted);
        } else if event.contains(EventMask::MOVE_SELF) {
            self.end = Some(WatchEnd::Moved);
        } else if event.intersects(EventMask::UNMOUNT | EventMask::IGNORED) {
            self.end = Some(WatchEnd::Unmounted);
        } else if let Some(name) = name {
            let event = if event.intersects(EventMask::DELETE | EventMask::MOVED_FROM) {
                FileEvent::Removed
            } else {
                FileEvent::Changed
            };
            self.files.insert(name.into(), event);
            if self.files.len() > MAX_PENDING_NAMES {
                self.lose();
            }
        }
    }

    fn lose(&mut self) {
        self.files = HashMap::new();
        self.lost = true;
    }
}

impl DirectoryWatch {
    /// Watches a directory.
    ///
    /// # Errors
    /// Returns an error if the system has no inotify, or no watch to spare.
    pub(super) fn new(path: &Path, directory: &RegistryDirectory) -> io::Result<Self> {
        // Without OPEN and CLOSE_NOWRITE: reading a file must not cause an event.
        let mask = WatchMask::CREATE
            | WatchMask::MODIFY
            | WatchMask::CLOSE_WRITE
            | WatchMask::ATTRIB
            | WatchMask::DELETE
            | WatchMask::MOVED_FROM
            | WatchMask::MOVED_TO
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::EXCL_UNLINK
            | WatchMask::ONLYDIR;
        let inotify = Inotify::init()?;
        match inotify.watches().add(directory.own_path(), mask) {
            // Without /proc, use the path: if it names another directory by now, the next step
            // notices.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                inotify.watches().add(path, mask)?;
            }
            watch => drop(watch?),
        }
        Ok(Self { inotify })
    }

    /// Adds the events that have arrived.
    pub(super) fn read(&mut self, events: &mut DirectoryEvents) {
        let mut buffer = [0; BUFFER_BYTES];
        let mut count = 0;
        while events.end.is_none() && count < MAX_EVENTS_PER_READ {
            match self.inotify.read_events(&mut buffer) {
                Ok(read) => {
                    for event in read {
                        events.add(&event);
                        count += 1;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return events.lose(),
            }
        }
    }

    /// Waits for events, and adds them.
    pub(super) async fn wait(&self, events: &mut DirectoryEvents) {
        // A separate stream, because a stream reads only the events that the runtime has noticed.
        let clone = self.inotify.as_fd().try_clone_to_owned().map(Inotify::from);
        let stream = clone.and_then(|inotify| inotify.into_event_stream([0; WAIT_BUFFER_BYTES]));
        // Fails only without memory or descriptors; polling must then suffice.
        let Ok(mut stream) = stream else { return std::future::pending().await };
        let mut next = poll_fn(|context| Pin::new(&mut stream).poll_next(context)).await;
        loop {
            match next {
                Some(Ok(event)) => events.add(&event),
                Some(Err(_)) | None => return events.lose(),
            }
            // The events in the stream's buffer must not be lost with it.
            let mut context = Context::from_waker(Waker::noop());
            next = match Pin::new(&mut stream).poll_next(&mut context) {
                Poll::Ready(event) => event,
                Poll::Pending => return,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    struct WatchFixture {
        parent: tempfile::TempDir,
        path: PathBuf,
        watch: DirectoryWatch,
    }

    impl WatchFixture {
        fn new() -> Self {
            let parent = tempfile::tempdir().unwrap();
            let path = parent.path().join("r");
            fs::create_dir(&path).unwrap();
            let directory = RegistryDirectory::open(&path, true).unwrap().unwrap();
            let watch = DirectoryWatch::new(&path, &directory).unwrap();
            Self { parent, path, watch }
        }

        fn read(&mut self) -> DirectoryEvents {
            let mut events = DirectoryEvents::default();
            self.watch.read(&mut events);
            events
        }
    }

    #[test]
    fn events_that_cannot_change_a_registration_are_ignored() {
        let mut fixture = WatchFixture::new();
        for name in [".hidden", "new.tmp", "a", "b", "c"] {
            fs::write(fixture.path.join(name), "{}").unwrap();
        }
        fs::remove_file(fixture.path.join("b")).unwrap();
        fs::rename(fixture.path.join("c"), fixture.parent.path().join("c")).unwrap();
        let events = fixture.read();
        let expected =
            [("a", FileEvent::Changed), ("b", FileEvent::Removed), ("c", FileEvent::Removed)];
        assert_eq!(events.files, expected.map(|(name, event)| (name.into(), event)).into());
        assert!(events.end.is_none() && !events.lost);
        fs::read(fixture.path.join("a")).unwrap();
        assert!(fs::read_dir(&fixture.path).unwrap().next().is_some());
        assert!(fixture.read().files.is_empty(), "reading causes no event");
    }

    #[test]
    fn the_end_of_a_watch_tells_deleted_from_moved_directories() {
        let mut fixture = WatchFixture::new();
        fs::write(fixture.path.join("a"), "{}").unwrap();
        fs::remove_dir_all(&fixture.path).unwrap();
        let events = fixture.read();
        assert_eq!(events.files, [("a".into(), FileEvent::Removed)].into());
        assert_eq!(events.end, Some(WatchEnd::Deleted));

        // A directory that is deleted somewhere else vanished with its files.
        let mut fixture = WatchFixture::new();
        fs::write(fixture.path.join("a"), "{}").unwrap();
        let elsewhere = fixture.parent.path().join("elsewhere");
        fs::rename(&fixture.path, &elsewhere).unwrap();
        fs::remove_dir_all(&elsewhere).unwrap();
        let events = fixture.read();
        assert_eq!(events.files, [("a".into(), FileEvent::Changed)].into());
        assert_eq!(events.end, Some(WatchEnd::Moved));
    }

    #[tokio::test]
    async fn waiting_on_a_watch_ends_with_an_event() {
        let mut fixture = WatchFixture::new();
        let moment = Duration::from_millis(20);
        let mut events = DirectoryEvents::default();
        assert!(timeout(moment, fixture.watch.wait(&mut events)).await.is_err());
        fs::write(fixture.path.join("a"), "{}").unwrap();
        fixture.watch.wait(&mut events).await;
        assert_eq!(events.files.len(), 1);
        fixture.watch.read(&mut events);
        assert!(timeout(moment, fixture.watch.wait(&mut events)).await.is_err());
    }

    #[test]
    fn an_overflow_of_the_inotify_queue_marks_events_as_lost() {
        let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
        let limit: usize = limit.trim().parse().unwrap();
        let mut fixture = WatchFixture::new();
        let names = [fixture.path.join("a"), fixture.path.join("b")];
        fs::write(&names[0], "{}").unwrap();
        // Two events for each rename.
        for n in 0..=limit / 2 {
            fs::rename(&names[n % 2], &names[(n + 1) % 2]).unwrap();
        }
        let events = fixture.read();
        assert!(events.lost && events.files.is_empty(), "{} names", events.files.len());
    }

    #[test]
    fn events_for_too_many_names_count_as_lost() {
        let mut events = DirectoryEvents::default();
        let directory = tempfile::tempdir().unwrap();
        let inotify = Inotify::init().unwrap();
        let wd = inotify.watches().add(directory.path(), WatchMask::CREATE).unwrap();
        for n in 0..=MAX_PENDING_NAMES {
            let (mask, name) = (EventMask::CREATE, Some(n.to_string()));
            events.add(&Event { wd: wd.clone(), mask, cookie: 0, name });
        }
        assert!(events.lost && events.files.is_empty());
    }
}
