//! Tells when one of the files that name upstreams may have changed.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

use super::sources::Sources;

/// Links that lead to links, in a row, before they are no longer followed (Linux: MAXSYMLINKS).
const MOST_LINKS: usize = 40;

/// Where the news comes in.
#[derive(Clone, Debug, Default)]
pub(super) struct Inbox {
    arrived: Arc<Notify>,
    /// The files, links and folders whose changes matter.
    wanted: Arc<Mutex<HashSet<PathBuf>>>,
}

impl Inbox {
    /// Waits for news that came since the last wait.
    pub(super) async fn arrived(&self) {
        self.arrived.notified().await;
    }

    fn hear(&self, event: notify::Result<Event>) {
        let matters = match event {
            Ok(event) if event.need_rescan() => true,
            // Readers open files, and so do we.
            Ok(Event { kind: EventKind::Access(access), .. }) if access != AccessKind::Close(AccessMode::Write) => false,
            Ok(event) => {
                let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
                let named = |path: &PathBuf| wanted.contains(path) || path.parent().is_some_and(|folder| wanted.contains(folder));
                event.paths.iter().any(named)
            }
            Err(_) => true,
        };
        if matters {
            self.arrived.notify_one();
        }
    }
}

/// Folders with their device and inode.
type Folders = BTreeMap<PathBuf, (u64, u64)>;

/// Watches on the folders that the files lie in, links followed.
#[derive(Debug)]
pub(super) struct Watches {
    sources: Sources,
    inbox: Inbox,
    /// The watcher, and the folders it watches with their device and inode: a folder made anew needs a new watch.
    current: Option<(RecommendedWatcher, Folders)>,
    /// Whether it was told that there are none to be had.
    complained: bool,
}

impl Watches {
    /// Watches for these files, none as yet.
    pub(super) fn new(sources: Sources, inbox: Inbox) -> Self {
        Self { sources, inbox, current: None, complained: false }
    }

    /// Watches what is to be watched now.
    pub(super) fn renew(&mut self) {
        let mut wanted = HashSet::new();
        let mut folders = Folders::new();
        for place in self.sources.places() {
            for path in links(place) {
                // A folder is watched itself, and for its files; a file by its folder: it may be replaced.
                let is_folder = path.is_dir();
                for folder in [path.parent(), Some(&*path).filter(|_| is_folder)].into_iter().flatten() {
                    if let Ok(data) = fs::metadata(folder) {
                        folders.insert(folder.to_owned(), (data.dev(), data.ino()));
                    }
                }
                wanted.insert(path);
            }
        }
        *self.inbox.wanted.lock().unwrap_or_else(PoisonError::into_inner) = wanted;
        if self.current.as_ref().is_some_and(|(_, watched)| *watched == folders) {
            return;
        }
        // The old one ends when the new one is there.
        match watch(&self.inbox, folders.keys().map(PathBuf::as_path)) {
            Ok(watcher) => self.current = Some((watcher, folders)),
            Err(error) => {
                self.current = None;
                if !self.complained {
                    tracing::warn!(%error, "changes of resolv.conf are seen late, by looking now and then: the system has no inotify watch to spare (see fs.inotify.max_user_watches and max_user_instances)");
                }
                self.complained = true;
            }
        }
    }
}

fn watch<'a>(inbox: &Inbox, folders: impl Iterator<Item = &'a Path>) -> notify::Result<RecommendedWatcher> {
    let inbox = inbox.clone();
    let mut watcher = notify::recommended_watcher(move |event| inbox.hear(event))?;
    for folder in folders {
        match watcher.watch(folder, RecursiveMode::NonRecursive) {
            // Gone since it was looked at: the next look finds out.
            Err(notify::Error { kind: notify::ErrorKind::PathNotFound, .. }) => {}
            other => other?,
        }
    }
    Ok(watcher)
}

/// The path, and where it leads, link by link.
fn links(path: PathBuf) -> Vec<PathBuf> {
    let mut paths = vec![path];
    while let Some(last) = paths.last()
        && paths.len() < MOST_LINKS
        && let Ok(target) = fs::read_link(last)
    {
        let folder = last.parent().unwrap_or(last);
        // As the events name it: without `..` and links in the middle, where the folder is there.
        let next = folder.join(target);
        let whole =
            next.parent().and_then(|folder| folder.canonicalize().ok()).zip(next.file_name()).map(|(folder, name)| folder.join(name));
        paths.push(whole.unwrap_or(next));
    }
    paths
}
