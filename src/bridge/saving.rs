//! Writes the addresses of names to their file, in the background.
//!
//! Nothing else waits for the disk. Only the addresses of names that never had one are written
//! before clients learn them, and not even they if the disk does not respond in time.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::pool::Assignment;
use super::pool_file::PoolFile;

/// Pause between two writes for new names, as a multiple of the time that the last one took.
///
/// Their clients wait for it; a large file, or a slow disk, must not be kept busy.
const PAUSE_FACTOR: u32 = 4;

/// Time between two writes that only note names as removed, or as back.
const INTERVAL: Duration = Duration::from_secs(10);

/// Time after which nothing waits for a write any more.
const PATIENCE: Duration = Duration::from_secs(5);

/// Longest wait for the last write, at the end of the server.
const FINAL_PATIENCE: Duration = Duration::from_secs(2);

/// The names and addresses that a write contains.
pub(super) type SavedNames = Vec<(Arc<str>, Assignment)>;

/// What has to be written, and the write in progress.
#[derive(Debug)]
pub(super) struct Saving {
    file: PoolFile,
    /// When a write for new names may begin again.
    next: Option<Instant>,
    /// Since when the file lacks something.
    outdated: Option<Instant>,
    /// Names that the next write contains for the first time.
    new: Vec<Box<str>>,
    write: Option<Write>,
    /// Whether the log says that writing fails.
    said_failed: bool,
}

/// A write in progress.
#[derive(Debug)]
struct Write {
    task: JoinHandle<io::Result<()>>,
    begun: Instant,
    /// Names whose address it contains for the first time, until nothing waits for it any more.
    new: Vec<Box<str>>,
}

impl Saving {
    /// Creates the state of a file that is up to date.
    pub(super) fn new(file: PoolFile) -> Self {
        let (next, outdated, write) = (None, None, None);
        Self { file, next, outdated, new: Vec::new(), write, said_failed: false }
    }

    /// Takes note that the file is out of date, and of names that are not in it.
    pub(super) fn note(&mut self, new: impl IntoIterator<Item = Box<str>>, now: Instant) {
        self.outdated.get_or_insert(now);
        self.new.extend(new);
    }

    /// Returns when the next write may begin, if one is needed.
    pub(super) fn due(&self) -> Option<Instant> {
        if self.write.is_some() {
            return None;
        }
        let outdated = self.outdated?;
        Some(if self.new.is_empty() { outdated + INTERVAL } else { self.next.unwrap_or(outdated) })
    }

    /// Begins a write of all names.
    pub(super) fn begin(&mut self, names: SavedNames, now: Instant) {
        let file = self.file.clone();
        let task = tokio::task::spawn_blocking(move || file.replace(names));
        self.write = Some(Write { task, begun: now, new: std::mem::take(&mut self.new) });
        self.outdated = None;
    }

    /// Waits for the write in progress; returns the names that clients may learn from now on.
    ///
    /// Without a write, waits for ever. May be cancelled.
    pub(super) async fn finished(&mut self) -> Vec<Box<str>> {
        let Some(write) = &mut self.write else { return std::future::pending().await };
        let ended = if write.new.is_empty() {
            (&mut write.task).await
        } else {
            let patience = write.begun + PATIENCE;
            let Ok(ended) = tokio::time::timeout_at(patience, &mut write.task).await else {
                let new = std::mem::take(&mut write.new);
                self.warn("the disk does not respond");
                return new;
            };
            ended
        };
        let (took, new) = (write.begun.elapsed(), std::mem::take(&mut write.new));
        self.write = None;
        self.next = Some(Instant::now() + took.saturating_mul(PAUSE_FACTOR).min(PATIENCE));
        match ended {
            Ok(Ok(())) => self.said_failed = false,
            Ok(Err(error)) => self.failed(&error.to_string()),
            Err(panicked) => self.failed(&panicked.to_string()),
        }
        new
    }

    /// Writes the names a last time, if the file lacks something.
    pub(super) async fn finish(mut self, names: impl FnOnce() -> SavedNames) {
        let finished = async {
            if self.write.is_some() {
                self.finished().await;
            }
            if self.outdated.is_some() && self.write.is_none() {
                self.begin(names(), Instant::now());
                self.finished().await;
            }
        };
        // The write goes on in its thread, as long as the process does.
        let _ = tokio::time::timeout(FINAL_PATIENCE, finished).await;
    }

    /// Takes note that a write has failed: the file is still out of date.
    fn failed(&mut self, error: &str) {
        self.outdated.get_or_insert_with(Instant::now);
        self.warn(error);
    }

    /// Logs that writing fails, once until it works again.
    fn warn(&mut self, error: &str) {
        if !std::mem::replace(&mut self.said_failed, true) {
            tracing::warn!(
                path = %self.file.path().display(),
                error,
                "cannot write the addresses of bridged services: some may change at a restart"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> SavedNames {
        let address = [127, 83, 0, 1].into();
        vec![("hello".into(), Assignment { address, released: None })]
    }

    #[tokio::test]
    async fn new_names_are_written_at_once_and_other_changes_later() {
        let folder = tempfile::tempdir().unwrap();
        let file = PoolFile::new(folder.path());
        let mut saving = Saving::new(file.clone());
        let start = Instant::now();
        assert_eq!(saving.due(), None);
        saving.note([], start);
        assert_eq!(saving.due(), Some(start + INTERVAL));
        saving.note(["hello".into()], start);
        assert_eq!(saving.due(), Some(start));
        saving.begin(names(), start);
        assert_eq!(saving.due(), None, "one write at a time");
        saving.note(["other".into()], start);
        assert_eq!(saving.finished().await, ["hello".into()]);
        assert_eq!(file.read().unwrap().len(), 1);
        assert!(saving.due().is_some_and(|due| due > start), "not one write for each name");
        saving.finish(names).await;
    }

    #[tokio::test]
    async fn nothing_waits_for_a_disk_that_does_not_respond() {
        let folder = tempfile::tempdir().unwrap();
        let mut saving = Saving::new(PoolFile::new(folder.path()));
        let now = Instant::now();
        let (release, held) = std::sync::mpsc::channel::<()>();
        let task = tokio::task::spawn_blocking(move || {
            let _ = held.recv();
            Ok(())
        });
        let begun = now.checked_sub(PATIENCE).unwrap_or(now);
        saving.write = Some(Write { task, begun, new: vec!["hello".into()] });
        assert_eq!(saving.finished().await, ["hello".into()]);
        assert!(saving.said_failed && saving.due().is_none());
        drop(release);
        assert_eq!(saving.finished().await, [] as [Box<str>; 0]);
        assert!(!saving.said_failed);
    }

    #[tokio::test]
    async fn a_failing_write_does_not_keep_addresses_from_clients() {
        let folder = tempfile::tempdir().unwrap();
        let mut saving = Saving::new(PoolFile::new(&folder.path().join("missing")));
        saving.note(["hello".into()], Instant::now());
        saving.begin(names(), Instant::now());
        assert_eq!(saving.finished().await, ["hello".into()]);
        assert!(saving.said_failed);
    }

    #[tokio::test]
    async fn a_failed_write_is_repeated() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("state");
        let file = PoolFile::new(&directory);
        let mut saving = Saving::new(file.clone());
        saving.note(["hello".into()], Instant::now());
        saving.begin(names(), Instant::now());
        saving.finished().await;
        let due = saving.due().unwrap();
        assert!(due > Instant::now(), "not at once");
        std::fs::create_dir(&directory).unwrap();
        saving.finish(names).await;
        assert_eq!(file.read().unwrap().len(), 1);
    }
}
