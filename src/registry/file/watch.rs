//! What inotify says about the folder, gathered until somebody looks.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

use super::folder::is_candidate;

/// More names than this at once are not remembered one by one: the folder is read again as a whole.
const MOST_NAMES: usize = 65_536;

/// A watch on one folder; ends when dropped.
#[derive(Debug)]
pub(super) struct Watch {
    _watcher: RecommendedWatcher,
}

/// What happened since the last look.
#[derive(Debug, Default)]
pub(super) struct News {
    /// These files were made, written, moved or removed.
    pub(super) names: HashSet<OsString>,
    /// The folder itself was touched: it may be another one now.
    pub(super) folder: bool,
    /// Events were lost: anything may have happened.
    pub(super) lost: bool,
}

/// Where a watch leaves its news.
#[derive(Clone, Debug, Default)]
pub(super) struct Inbox {
    news: Arc<Mutex<News>>,
    arrived: Arc<Notify>,
}

impl Inbox {
    /// Takes all news.
    pub(super) fn take(&self) -> News {
        mem::take(&mut self.news.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits for news that came since the last wait.
    pub(super) async fn arrived(&self) {
        self.arrived.notified().await;
    }

    fn add(&self, folder: &Path, event: notify::Result<Event>) {
        {
            let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
            match event {
                Ok(event) if event.need_rescan() => news.lost = true,
                // Readers open files, and so do we.
                Ok(Event { kind: EventKind::Access(access), .. }) if access != AccessKind::Close(AccessMode::Write) => return,
                Ok(event) => event.paths.iter().for_each(|path| news.touched(folder, path)),
                Err(_) => news.lost = true,
            }
            if news.names.len() > MOST_NAMES {
                news.names = HashSet::new();
                news.lost = true;
            }
        }
        self.arrived.notify_one();
    }
}

impl News {
    fn touched(&mut self, folder: &Path, path: &Path) {
        let inside: Option<&OsStr> = path.strip_prefix(folder).ok().map(Path::as_os_str).filter(|inside| !inside.is_empty());
        match inside {
            Some(name) if is_candidate(name) => {
                self.names.insert(name.into());
            }
            Some(_) => {}
            None => self.folder = true,
        }
    }
}

impl Watch {
    /// Watches the folder that is at `path` now.
    ///
    /// # Errors
    /// The system has no watch left for us, or no inotify.
    pub(super) fn new(path: &Path, inbox: Inbox) -> notify::Result<Self> {
        let folder: PathBuf = path.into();
        let mut watcher = notify::recommended_watcher(move |event| inbox.add(&folder, event))?;
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

    #[test]
    fn only_what_can_change_a_registration_is_news() {
        let inbox = Inbox::default();
        let folder = Path::new("/r");
        inbox.add(folder, Ok(Event::new(EventKind::Access(AccessKind::Open(AccessMode::Any))).add_path("/r/a".into())));
        inbox.add(folder, Ok(created("/r/.hidden")));
        inbox.add(folder, Ok(created("/r/new.tmp")));
        let news = inbox.take();
        assert!(news.names.is_empty() && !news.folder && !news.lost);

        inbox.add(folder, Ok(created("/r/a")));
        inbox.add(folder, Ok(Event::new(EventKind::Access(AccessKind::Close(AccessMode::Write))).add_path("/r/b".into())));
        inbox.add(folder, Ok(created("/r")));
        let news = inbox.take();
        assert_eq!(news.names, HashSet::from(["a".into(), "b".into()]));
        assert!(news.folder && !news.lost);
        assert!(inbox.take().names.is_empty());
    }

    #[test]
    fn lost_events_and_floods_ask_for_a_full_look() {
        let inbox = Inbox::default();
        inbox.add(Path::new("/r"), Ok(Event::new(EventKind::Other).set_flag(Flag::Rescan)));
        assert!(inbox.take().lost);
        for n in 0..=MOST_NAMES {
            inbox.add(Path::new("/r"), Ok(created(&format!("/r/{n}"))));
        }
        let news = inbox.take();
        assert!(news.lost && news.names.is_empty());
    }
}
