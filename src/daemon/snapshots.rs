//! Snapshots of the registries' keys, kept for a start while a registry is unreachable.
//!
//! Only registries with servers have snapshots: files and static services are read at every start,
//! as fast as a snapshot would be.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, mpsc};
use tokio::task::spawn_blocking;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::follow::RegistryPipeline;
use super::snapshot_file::{SnapshotFile, SnapshotHeader};
use crate::answer::{Answerer, Snapshot};
use crate::catalog::{RegistryStatus, ServiceChange, save_keys};
use crate::config::Config;
use crate::directory::snapshot_name;
use crate::registry::{RegistryState, StoreIdentity};
use crate::service::{MAX_REGISTRIES, RegistryId, RegistrySet};

/// Time from the first unsaved change to the next write.
const SAVE_DELAY: Duration = Duration::from_secs(10);

/// Minimum pause after a write, as a multiple of the time that the write took.
const PAUSE_FACTOR: u32 = 50;

/// Time after which snapshots are written even without a change.
///
/// Otherwise, the snapshot of a registry that never changes would count as old after a power cut.
const REFRESH_INTERVAL: Duration = Duration::from_secs(3600);

/// The snapshots of all registries that have one.
#[derive(Debug)]
pub(super) struct Snapshots {
    directory: PathBuf,
    registries: Vec<RegistrySnapshot>,
    /// Age from which a snapshot is not used.
    max_age: Duration,
    unsaved: Arc<UnsavedChanges>,
    reconfigured: mpsc::UnboundedReceiver<SavedRegistries>,
}

/// Tells the snapshots about publications.
#[derive(Debug)]
pub(super) struct SnapshotUpdates {
    unsaved: Arc<UnsavedChanges>,
    reconfigured: mpsc::UnboundedSender<SavedRegistries>,
}

/// The registries of a configuration that have snapshots, and their changes.
#[derive(Debug)]
struct SavedRegistries {
    registries: Vec<(RegistryId, Arc<RegistryState>, StoreIdentity)>,
    unsaved: Arc<UnsavedChanges>,
}

impl SavedRegistries {
    /// Selects the registries of a configuration that have servers, if it wants snapshots.
    fn of(config: &Config, states: &[Arc<RegistryState>]) -> Self {
        let numbered = RegistryId::first(MAX_REGISTRIES).zip(states.iter().zip(&config.registries));
        let with_servers = numbered.filter_map(|(id, (state, registry))| {
            Some((id, Arc::clone(state), registry.source.store_identity()?))
        });
        let registries: Vec<_> = with_servers.filter(|_| config.snapshot).collect();
        let unsaved = UnsavedChanges {
            saved: registries.iter().map(|(id, ..)| *id).collect(),
            read: AtomicU16::new(0),
            changed: AtomicU16::new(0),
            notify: Notify::new(),
        };
        Self { registries, unsaved: Arc::new(unsaved) }
    }
}

impl SnapshotUpdates {
    /// Takes note of a publication.
    pub(super) fn add(&self, changes: &[ServiceChange], status: RegistryStatus) {
        self.unsaved.add(changes, status);
    }

    /// Lets the snapshots be of the registries of another configuration.
    pub(super) fn reconfigure(&mut self, config: &Config, states: &[Arc<RegistryState>]) {
        let saved = SavedRegistries::of(config, states);
        self.unsaved = Arc::clone(&saved.unsaved);
        // The task that writes snapshots ends only if the server stops.
        let _ = self.reconfigured.send(saved);
    }
}

/// The snapshot of one registry.
#[derive(Debug)]
struct RegistrySnapshot {
    registry: RegistryId,
    store: StoreIdentity,
    file: SnapshotFile,
    state: Arc<RegistryState>,
    /// Last time when the keys were known to be those of the registry.
    current_at: Option<SystemTime>,
    /// Whether the last write failed.
    failed: bool,
}

/// The registries whose keys have changed since they were last saved.
#[derive(Debug)]
struct UnsavedChanges {
    /// The registries that have a snapshot.
    saved: RegistrySet,
    /// The registries that were read since startup, not only their snapshots.
    ///
    /// Others are not saved: their files are complete, and what was restored from them may not be,
    /// because the zones or a limit have changed.
    read: AtomicU16,
    changed: AtomicU16,
    notify: Notify,
}

impl UnsavedChanges {
    /// Adds the registries of changed services, and those that were read for the first time.
    ///
    /// Even if nothing has changed in the latter, their data is now known to be current. Nearly
    /// always O(1): it ends once every registry with a snapshot has been added.
    fn add(&self, changes: &[ServiceChange], status: RegistryStatus) {
        let before = RegistrySet::from_bits(self.changed.load(Ordering::Relaxed));
        let mut changed = before;
        let read = read_in(status).intersection(self.saved).bits();
        let first = read & !self.read.fetch_or(read, Ordering::AcqRel);
        changed = changed.union(RegistrySet::from_bits(first));
        let services = changes.iter().flat_map(|change| change.before.iter().chain(&change.after));
        for key in services.flat_map(|service| service.keys()) {
            if self.saved.is_subset_of(changed) {
                break;
            }
            changed.insert(key.registry());
        }
        if changed != before {
            self.changed.fetch_or(changed.bits(), Ordering::Release);
            self.notify.notify_one();
        }
    }

    fn take(&self) -> RegistrySet {
        RegistrySet::from_bits(self.changed.swap(0, Ordering::Acquire))
    }

    fn read(&self) -> RegistrySet {
        RegistrySet::from_bits(self.read.load(Ordering::Acquire))
    }
}

/// Returns the registries that have been read and are reachable.
///
/// A restored registry counts as unreachable until it has been read.
fn read_in(status: RegistryStatus) -> RegistrySet {
    RegistrySet::from_bits(status.known.bits() & !status.disconnected.bits())
}

impl Snapshots {
    /// Returns the snapshots of those registries of a configuration that have servers.
    pub(super) fn new(
        directory: &Path,
        config: &Config,
        states: &[Arc<RegistryState>],
    ) -> (Self, SnapshotUpdates) {
        let (sender, reconfigured) = mpsc::unbounded_channel();
        let saved = SavedRegistries::of(config, states);
        let unsaved = Arc::clone(&saved.unsaved);
        let mut snapshots = Self {
            directory: directory.to_owned(),
            registries: Vec::new(),
            max_age: config.max_stale,
            unsaved: Arc::clone(&unsaved),
            reconfigured,
        };
        snapshots.adopt(saved);
        (snapshots, SnapshotUpdates { unsaved, reconfigured: sender })
    }

    /// Takes the registries of another configuration; files of former ones stay as they are.
    fn adopt(&mut self, SavedRegistries { registries, unsaved }: SavedRegistries) {
        self.unsaved = unsaved;
        let mut former = std::mem::take(&mut self.registries);
        for (registry, state, store) in registries {
            let known = former.iter().position(|former| former.state.name == state.name);
            let known = known.map(|index| former.swap_remove(index));
            let (current_at, failed) =
                known.map_or((None, false), |known| (known.current_at, known.failed));
            let file = SnapshotFile::new(&self.directory, &snapshot_name(state.name.as_str()));
            self.registries.push(RegistrySnapshot {
                registry,
                store,
                file,
                state,
                current_at,
                failed,
            });
        }
        for former in former {
            former.state.update(|report| report.snapshot = None);
        }
    }

    /// Reads all snapshots into the pipeline, before it starts.
    pub(super) fn load(&mut self, pipeline: &mut RegistryPipeline) {
        for snapshot in &mut self.registries {
            snapshot.load(self.max_age, pipeline);
        }
    }

    /// Writes snapshots as their registries change, and all of them at the end, until `stop`.
    pub(super) async fn keep(self, answerer: Arc<Answerer>, stop: CancellationToken) {
        let mut snapshots = self;
        let mut pace = SavePace::new(Instant::now());
        loop {
            let unsaved = Arc::clone(&snapshots.unsaved);
            let is_last = tokio::select! {
                biased;
                () = stop.cancelled() => true,
                Some(saved) = snapshots.reconfigured.recv() => {
                    snapshots.adopt(saved);
                    continue;
                }
                () = unsaved.notify.notified() => {
                    pace.note_change(Instant::now());
                    continue;
                }
                () = tokio::time::sleep_until(pace.due()) => false,
            };
            // Taken first, so that the published generation includes every recorded change.
            let (changed, read) = (unsaved.take(), unsaved.read());
            let published = answerer.snapshot();
            let read = read.union(read_in(published.registry_status()));
            let wanted = if is_last || pace.is_refresh() { unsaved.saved } else { changed };
            let due = wanted.intersection(read);
            let began = Instant::now();
            let write = spawn_blocking(move || {
                let failed = snapshots.write(due, &published);
                (snapshots, failed)
            });
            let Ok((returned, failed)) = write.await else {
                tracing::error!("the task that writes snapshots panicked; please report this");
                return;
            };
            if is_last {
                return;
            }
            snapshots = returned;
            pace.note_write(began, Instant::now());
            if !failed.is_empty() {
                unsaved.changed.fetch_or(failed.bits(), Ordering::Relaxed);
                pace.note_change(Instant::now());
            }
        }
    }

    /// Writes the snapshots of these registries; returns those whose writes failed.
    fn write(&mut self, registries: RegistrySet, published: &Snapshot) -> RegistrySet {
        let due = self.registries.iter_mut().filter(|one| registries.contains(one.registry));
        due.filter_map(|one| (!one.write(published)).then_some(one.registry)).collect()
    }
}

impl RegistrySnapshot {
    /// Reads the snapshot, if there is one, into the pipeline.
    fn load(&mut self, max_age: Duration, pipeline: &mut RegistryPipeline) {
        let path = self.file.path().display();
        let began = Instant::now();
        let read = match self.file.read(self.state.name.as_str(), &self.store) {
            Ok(Some(read)) => read,
            Ok(None) => return,
            Err(reason) if reason.is_of_access() => {
                tracing::warn!(
                    registry = %self.state,
                    %path,
                    "cannot use the snapshot: {reason}; it is kept until the registry has been read"
                );
                return;
            }
            Err(reason) => return self.set_aside(&reason),
        };
        let current_at = read.header.current_at;
        match SystemTime::now().duration_since(current_at) {
            Ok(age) if age > max_age => {
                tracing::warn!(
                    registry = %self.state,
                    %path,
                    age = %whole_seconds(age),
                    max_stale = %whole_seconds(max_age),
                    "not answering from the snapshot, because it is older than max-stale, or the \
                     clock is wrong; it is kept until the registry has been read"
                );
                return;
            }
            Ok(_) => {}
            Err(_) => tracing::warn!(
                registry = %self.state,
                %path,
                "the snapshot is from the future: the clock has gone back, and its age is unknown"
            ),
        }
        if let Err(reason) = pipeline.restore(self.registry, read.keys()) {
            return self.set_aside(&reason);
        }
        self.current_at = Some(current_at);
        self.state.update(|report| report.snapshot = Some(current_at));
        tracing::info!(
            registry = %self.state,
            age = %whole_seconds(SystemTime::now().duration_since(current_at).unwrap_or_default()),
            duration_ms = began.elapsed().as_millis(),
            "answering from the snapshot until the registry has been read"
        );
    }

    /// Renames a snapshot that cannot be used.
    fn set_aside(&self, reason: &dyn std::error::Error) {
        let path = self.file.path().display();
        match self.file.set_aside() {
            Ok(aside) => tracing::warn!(
                registry = %self.state,
                %path,
                "cannot use the snapshot: {reason}; it is now {}",
                aside.display()
            ),
            Err(error) => tracing::warn!(
                registry = %self.state,
                %path,
                %error,
                "cannot use the snapshot: {reason}; it cannot be renamed either"
            ),
        }
    }

    /// Writes the snapshot; returns `false` if that failed.
    ///
    /// Writes nothing if the generation is of another configuration, of which the snapshots have
    /// not been told yet.
    fn write(&mut self, published: &Snapshot) -> bool {
        let settings = published.settings();
        if settings.registry_names.get(self.registry.index()) != Some(&self.state.name) {
            return true;
        }
        let now = SystemTime::now();
        let is_current = !published.registry_status().disconnected.contains(self.registry);
        let current_at = self.current_at.filter(|_| !is_current).unwrap_or(now);
        let header = SnapshotHeader {
            registry: self.state.name.to_string(),
            store: self.store.clone(),
            current_at,
        };
        let began = Instant::now();
        let services = published.services().chain(published.replaced());
        let written = self
            .file
            .replace(&header, |out| save_keys(services, self.registry, &settings.zones, out));
        let path = self.file.path().display();
        match written {
            Ok(bytes) => {
                if std::mem::take(&mut self.failed) {
                    tracing::info!(registry = %self.state, %path, "saved the snapshot again");
                }
                let duration_ms = began.elapsed().as_millis();
                tracing::debug!(registry = %self.state, bytes, duration_ms, "saved the snapshot");
                self.current_at = Some(current_at);
                self.state.update(|report| report.snapshot = Some(current_at));
                true
            }
            Err(error) => {
                if !std::mem::replace(&mut self.failed, true) {
                    tracing::warn!(
                        registry = %self.state,
                        %path,
                        %error,
                        "cannot save the snapshot, and will try again; if svcdns restarts without \
                         the registry, it has the previous snapshot, if any"
                    );
                }
                false
            }
        }
    }
}

/// Formats a duration in whole seconds: `2days 3h`.
fn whole_seconds(duration: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_secs(duration.as_secs()))
}

/// Decides when the next write is due.
#[derive(Debug)]
struct SavePace {
    /// Time of the first change that is not saved.
    changed: Option<Instant>,
    /// End of the last write, or start of the server.
    written: Instant,
    /// Pause after the last write.
    pause: Duration,
}

impl SavePace {
    fn new(now: Instant) -> Self {
        Self { changed: None, written: now, pause: Duration::ZERO }
    }

    fn note_change(&mut self, now: Instant) {
        self.changed.get_or_insert(now);
    }

    fn note_write(&mut self, began: Instant, ended: Instant) {
        self.changed = None;
        self.written = ended;
        self.pause = ended.saturating_duration_since(began) * PAUSE_FACTOR;
    }

    /// Returns when the next write is due.
    fn due(&self) -> Instant {
        let wanted = match self.changed {
            Some(changed) => changed + SAVE_DELAY,
            None => self.written + REFRESH_INTERVAL,
        };
        wanted.max(self.written + self.pause)
    }

    /// Returns whether the next write is due although nothing has changed.
    fn is_refresh(&self) -> bool {
        self.changed.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_write_is_due_ten_seconds_after_the_first_unsaved_change() {
        let start = Instant::now();
        let mut pace = SavePace::new(start);
        assert_eq!((pace.due(), pace.is_refresh()), (start + REFRESH_INTERVAL, true));
        pace.note_change(start + 2 * SECOND);
        pace.note_change(start + 9 * SECOND);
        assert_eq!((pace.due(), pace.is_refresh()), (start + 12 * SECOND, false));
    }

    #[test]
    fn writes_take_at_most_a_fiftieth_of_the_time() {
        let start = Instant::now();
        let mut pace = SavePace::new(start);
        pace.note_write(start, start + SECOND);
        assert_eq!(pace.due(), start + SECOND + REFRESH_INTERVAL);
        pace.note_change(start + 2 * SECOND);
        assert_eq!(pace.due(), start + 51 * SECOND);
        pace.note_change(start + 50 * SECOND);
        assert_eq!(pace.due(), start + 51 * SECOND);
        pace.note_write(start + 51 * SECOND, start + 51 * SECOND + SECOND / 100);
        pace.note_change(start + 60 * SECOND);
        assert_eq!(pace.due(), start + 70 * SECOND);
    }
}
