//! Watches on the system's resolver configuration, by inotify.
//!
//! Imports no other module.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

/// Longest chain of symbolic links that is followed (Linux: MAXSYMLINKS).
const MAX_SYMLINKS: usize = 40;

/// Signals that a watched file may have changed.
#[derive(Clone, Debug, Default)]
pub struct ChangeSignal {
    notify: Arc<Notify>,
    /// The files, links and directories whose changes matter.
    wanted: Arc<Mutex<HashSet<PathBuf>>>,
}

impl ChangeSignal {
    /// Waits for a change since the last call.
    pub async fn changed(&self) {
        self.notify.notified().await;
    }

    /// Handles an event of the watcher.
    fn on_event(&self, event: notify::Result<Event>) {
        let matters = match event {
            Ok(event) if event.need_rescan() => true,
            // Reading a file also causes such events, even the server's own reading.
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

/// Watched files and directories, with their device and inode.
type WatchedInodes = BTreeMap<PathBuf, (u64, u64)>;

/// Watches of files and their directories, across symbolic links.
#[derive(Debug)]
pub struct PathWatches {
    paths: Vec<PathBuf>,
    changes: ChangeSignal,
    /// The watcher and the inodes that it watches; a recreated file needs a new watch.
    current: Option<(RecommendedWatcher, WatchedInodes)>,
    /// Whether a failure to set up watches was logged.
    warned: bool,
}

impl PathWatches {
    /// Creates watches for files and directories; [`Self::refresh`] starts them.
    pub fn new(paths: Vec<PathBuf>, changes: ChangeSignal) -> Self {
        Self { paths, changes, current: None, warned: false }
    }

    /// Renews the watches if files or links have changed.
    pub fn refresh(&mut self) {
        let mut wanted = HashSet::new();
        let mut inodes = WatchedInodes::new();
        for path in &self.paths {
            for path in resolve_links(path.clone()) {
                // The directory reports a file that is replaced. The file itself reports a write to
                // a bind mount, as containers have them, which the directory does not.
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
        // The old watcher is dropped only after the new one has started.
        match watch(&self.changes, inodes.keys().map(PathBuf::as_path)) {
            Ok(watcher) => self.current = Some((watcher, inodes)),
            Err(error) => {
                self.current = None;
                if !self.warned {
                    tracing::warn!(
                        %error,
                        "changes to resolv.conf are noticed late, by polling: the system has no \
                         free inotify watch (see fs.inotify.max_user_watches and \
                         max_user_instances)"
                    );
                }
                self.warned = true;
            }
        }
    }
}

/// Starts a watcher on these paths.
fn watch<'a>(
    changes: &ChangeSignal,
    inodes: impl Iterator<Item = &'a Path>,
) -> notify::Result<RecommendedWatcher> {
    let changes = changes.clone();
    let mut watcher = notify::recommended_watcher(move |event| changes.on_event(event))?;
    for path in inodes {
        match watcher.watch(path, RecursiveMode::NonRecursive) {
            // The file was removed after its inode was read; the next reading notices that.
            Err(notify::Error { kind: notify::ErrorKind::PathNotFound, .. }) => {}
            other => other?,
        }
    }
    Ok(watcher)
}

/// Returns the path and all targets of its chain of symbolic links.
fn resolve_links(path: PathBuf) -> Vec<PathBuf> {
    let mut paths = vec![path];
    while let Some(last) = paths.last()
        && paths.len() < MAX_SYMLINKS
        && let Ok(target) = fs::read_link(last)
    {
        let folder = last.parent().unwrap_or(last);
        // The path has the form used in events: the directory without `..` and links, if it exists.
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
