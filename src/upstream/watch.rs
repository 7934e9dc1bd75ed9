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
const MAX_SYMLINKS: usize = 40;

/// Where the news comes in.
#[derive(Clone, Debug, Default)]
pub(super) struct ChangeSignal {
    notify: Arc<Notify>,
    /// The files, links and folders whose changes matter.
    wanted: Arc<Mutex<HashSet<PathBuf>>>,
}

impl ChangeSignal {
    /// Waits for news that came since the last wait.
    pub(super) async fn changed(&self) {
        self.notify.notified().await;
    }

    fn on_event(&self, event: notify::Result<Event>) {
        let matters = match event {
            Ok(event) if event.need_rescan() => true,
            // Readers open files, and so do we.
            Ok(Event { kind: EventKind::Access(access), .. })
                if access != AccessKind::Close(AccessMode::Write) =>
            {
                false
            }
            Ok(event) => {
                let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
                let named = |path: &PathBuf| {
                    wanted.contains(path)
                        || path.parent().is_some_and(|folder| wanted.contains(folder))
                };
                event.paths.iter().any(named)
            }
            Err(_) => true,
        };
        if matters {
            self.notify.notify_one();
        }
    }
}

/// Files and folders with their device and inode.
type WatchedInodes = BTreeMap<PathBuf, (u64, u64)>;

/// SourceWatches on the files and the folders that they lie in, links followed.
#[derive(Debug)]
pub(super) struct SourceWatches {
    sources: Sources,
    changes: ChangeSignal,
    /// The watcher, and what it watches with device and inode: what is made anew needs a new watch.
    current: Option<(RecommendedWatcher, WatchedInodes)>,
    /// Whether it was told that there are none to be had.
    warned: bool,
}

impl SourceWatches {
    /// SourceWatches for these files, none as yet.
    pub(super) fn new(sources: Sources, changes: ChangeSignal) -> Self {
        Self { sources, changes, current: None, warned: false }
    }

    /// SourceWatches what is to be watched now.
    pub(super) fn refresh(&mut self) {
        let mut wanted = HashSet::new();
        let mut inodes = WatchedInodes::new();
        for path in self.sources.paths() {
            for path in resolve_links(path) {
                // A file by its folder, for it may be replaced, and by itself: where it is a mount, as in a container, what is
                // written to it is no news of the folder.
                for watched in [path.parent(), Some(&*path)].into_iter().flatten() {
                    if let Ok(data) = fs::metadata(watched) {
                        inodes.insert(watched.to_owned(), (data.dev(), data.ino()));
                    }
                }
                wanted.insert(path);
            }
        }
        *self.changes.wanted.lock().unwrap_or_else(PoisonError::into_inner) = wanted;
        if self.current.as_ref().is_some_and(|(_, watched)| *watched == inodes) {
            return;
        }
        // The old one ends when the new one is there.
        match watch(&self.changes, inodes.keys().map(PathBuf::as_path)) {
            Ok(watcher) => self.current = Some((watcher, inodes)),
            Err(error) => {
                self.current = None;
                if !self.warned {
                    tracing::warn!(%error, "changes of resolv.conf are seen late, by looking now and then: the system has no inotify watch to spare (see fs.inotify.max_user_watches and max_user_instances)");
                }
                self.warned = true;
            }
        }
    }
}

fn watch<'a>(
    changes: &ChangeSignal,
    inodes: impl Iterator<Item = &'a Path>,
) -> notify::Result<RecommendedWatcher> {
    let changes = changes.clone();
    let mut watcher = notify::recommended_watcher(move |event| changes.on_event(event))?;
    for path in inodes {
        match watcher.watch(path, RecursiveMode::NonRecursive) {
            // Gone since it was looked at: the next look finds out.
            Err(notify::Error { kind: notify::ErrorKind::PathNotFound, .. }) => {}
            other => other?,
        }
    }
    Ok(watcher)
}

/// The path, and where it leads, link by link.
fn resolve_links(path: PathBuf) -> Vec<PathBuf> {
    let mut paths = vec![path];
    while let Some(last) = paths.last()
        && paths.len() < MAX_SYMLINKS
        && let Ok(target) = fs::read_link(last)
    {
        let folder = last.parent().unwrap_or(last);
        // As the events name it: without `..` and links in the middle, where the folder is there.
        let next = folder.join(target);
        let whole = next
            .parent()
            .and_then(|folder| folder.canonicalize().ok())
            .zip(next.file_name())
            .map(|(folder, name)| folder.join(name));
        paths.push(whole.unwrap_or(next));
    }
    paths
}
