//! The pipeline from the registries to the published snapshot.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::task::yield_now;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::follower::RegistryTask;
use crate::answer::{self, Answerer, Published, Publisher};
use crate::bridge::BridgeRequests;
use crate::catalog::{self, KeptRegistry, MalformedKeys};
use crate::config::Config;
use crate::registry::{Feed, NamedSource, RegistryCommand, RegistryState, RegistryStates};
use crate::service::{CheckChange, ListKind, MAX_REGISTRIES, RegistryId, Update};
use crate::upstream::HostRequests;

/// Limit on updates that wait for publication; at the limit, their sources wait.
///
/// All waiting updates are published together.
const MAX_WAITING_UPDATES: usize = 64;

/// Limit on the changes of one publication.
///
/// Without it, a flood of changes would delay the changes received first.
const MAX_CHANGES_PER_PUBLICATION: usize = 50_000;

/// Maximum wait for the followers of a former configuration to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// Follows all registries of a configuration and publishes their services.
///
/// One thread with its own runtime calls [`Self::start`] and [`Self::next`], and does all the work.
/// No other thread has to be woken between the receipt of a change and its publication, and all
/// data comes from one arena of the allocator. Long tasks therefore yield to the others.
#[derive(Debug)]
pub struct RegistryPipeline {
    registries: Vec<PipelineRegistry>,
    states: RegistryStates,
    publisher: Publisher,
    /// The settings of the catalog, to tell what a new configuration changes.
    catalog: catalog::Settings,
    updates: mpsc::Receiver<Update>,
    /// For the feeds of new followers. Weak, so that the channel closes with its last source.
    sender: mpsc::WeakSender<Update>,
    requests: mpsc::Receiver<ReconfigureRequest>,
    /// The configuration to apply next, once the updates of the former followers are published.
    requested: Option<ReconfigureRequest>,
    /// The configuration that the last call of [`Self::next`] applied.
    applied: Option<Arc<Config>>,
    /// Where the followers run, and their end; `None` before [`Self::start`].
    tasks: Option<(TaskTracker, CancellationToken)>,
    /// Receives the host names to look up, if forwarding is on.
    hosts: Option<Arc<HostRequests>>,
    /// Receives the names that may be bridged, if the bridge is on.
    bridge: Option<Arc<BridgeRequests>>,
    /// Receives the endpoints to check, if there is a checker.
    checks: Option<mpsc::UnboundedSender<Vec<CheckChange>>>,
    wake: Option<Instant>,
}

/// A registry of the pipeline.
#[derive(Debug)]
struct PipelineRegistry {
    source: NamedSource,
    state: Arc<RegistryState>,
    /// The kind of its first list.
    first: ListKind,
    /// `None` before the start.
    follower: Option<RegistryTask>,
}

impl PipelineRegistry {
    fn new(source: &NamedSource, former: Option<&RegistryState>) -> Self {
        let NamedSource { name, source: registry, removal_grace } = source;
        let state = RegistryState::new(name.clone(), registry.to_string(), *removal_grace);
        let state = match former {
            Some(former) => state.continuing(former),
            None => state,
        };
        let (source, state) = (source.clone(), Arc::new(state));
        Self { source, state, first: ListKind::Routine, follower: None }
    }
}

/// A request to apply another configuration.
#[derive(Debug)]
struct ReconfigureRequest {
    config: Arc<Config>,
    /// The addresses that the server listens at.
    listen: Vec<SocketAddr>,
    done: oneshot::Sender<()>,
}

/// Applies other configurations to a running pipeline.
#[derive(Clone, Debug)]
pub struct PipelineHandle(mpsc::Sender<ReconfigureRequest>);

/// Error: the pipeline has ended, because the server is stopping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server is stopping")]
pub struct PipelineEnded;

impl PipelineHandle {
    /// Applies another configuration; returns once all answers are from it.
    ///
    /// Answers are from the former configuration until then. A registry of the same settings, or of
    /// the same name and kind, keeps its names, even if it cannot be reached. All registries, the
    /// static services too, are read again afterwards, and their lists judged as after a reconnect.
    /// The names of other registries are gone. `listen` are the addresses that the server listens
    /// at.
    ///
    /// # Errors
    /// If the server is stopping.
    pub async fn reconfigure(
        &self,
        config: Arc<Config>,
        listen: Vec<SocketAddr>,
    ) -> Result<(), PipelineEnded> {
        let (done, result) = oneshot::channel();
        let request = ReconfigureRequest { config, listen, done };
        self.0.send(request).await.map_err(|_| PipelineEnded)?;
        result.await.map_err(|_| PipelineEnded)
    }
}

/// The parts of a pipeline that the rest of the server uses.
#[derive(Debug)]
pub struct PipelineHandles {
    /// Answers queries from the latest snapshot.
    pub answerer: Arc<Answerer>,
    /// The states of the registries, in the order of the configuration.
    pub states: RegistryStates,
    /// Sends updates from sources other than the registries.
    pub updates: mpsc::Sender<Update>,
    /// Applies other configurations.
    pub handle: PipelineHandle,
}

/// The channel of updates of a pipeline.
#[derive(Debug)]
pub struct UpdateChannel(mpsc::Sender<Update>, mpsc::Receiver<Update>);

impl UpdateChannel {
    /// Returns a sender for the sources of updates that start before the pipeline.
    pub fn sender(&self) -> mpsc::Sender<Update> {
        self.0.clone()
    }
}

impl Default for UpdateChannel {
    fn default() -> Self {
        let (sender, updates) = mpsc::channel(MAX_WAITING_UPDATES);
        Self(sender, updates)
    }
}

impl RegistryPipeline {
    /// Creates the pipeline of a server that listens on these addresses.
    ///
    /// `hosts` receives the host names to look up; without it, forwarding is off. `bridge` receives
    /// the names that may be bridged; without it, the bridge is off.
    pub fn new(
        config: &Config,
        listen: &[SocketAddr],
        UpdateChannel(sender, updates): UpdateChannel,
        hosts: Option<Arc<HostRequests>>,
        bridge: Option<Arc<BridgeRequests>>,
    ) -> (Self, PipelineHandles) {
        let parts = (hosts.is_some(), bridge.is_some());
        let (catalog, settings) = settings_of(config, listen, parts);
        let (publisher, answerer) = Publisher::new(catalog.clone(), settings, Instant::now());
        let registries = config.registries.iter().map(|source| PipelineRegistry::new(source, None));
        let registries: Vec<PipelineRegistry> = registries.collect();
        let states = RegistryStates::new(states_of(&registries));
        let (to_pipeline, requests) = mpsc::channel(1);
        let pipeline = Self {
            registries,
            states: states.clone(),
            publisher,
            catalog,
            updates,
            sender: sender.downgrade(),
            requests,
            requested: None,
            applied: None,
            tasks: None,
            hosts,
            bridge,
            checks: None,
            wake: None,
        };
        let handle = PipelineHandle(to_pipeline);
        (pipeline, PipelineHandles { answerer, states, updates: sender, handle })
    }

    /// Returns the changes of the endpoints to check, from now on.
    pub fn check_requests(&mut self) -> mpsc::UnboundedReceiver<Vec<CheckChange>> {
        let (sender, requests) = mpsc::unbounded_channel();
        self.checks = Some(sender);
        requests
    }

    /// Takes the keys that a registry had in an earlier run, as [`crate::catalog::save_keys`] wrote
    /// them.
    ///
    /// Call it before [`Self::start`], and [`Self::publish_restored`] after the last registry.
    ///
    /// # Errors
    /// If the keys are malformed; nothing is then restored.
    pub fn restore(&mut self, registry: RegistryId, saved: &[u8]) -> Result<(), MalformedKeys> {
        self.publisher.restore(registry, saved, Instant::now())?;
        if let Some(registry) = self.registries.get_mut(registry.index()) {
            registry.first = ListKind::Reconnect;
        }
        Ok(())
    }

    /// Publishes what was restored; calls `ready` as soon as queries can be answered.
    pub async fn publish_restored(&mut self, ready: impl FnOnce()) -> Published {
        self.publish(std::iter::empty(), Instant::now(), Some(ready)).await
    }

    /// Starts tasks of the current runtime that follow all registries until `stop`.
    pub fn start(&mut self, tracker: &TaskTracker, stop: &CancellationToken) {
        self.tasks = Some((tracker.clone(), stop.clone()));
        self.start_followers();
    }

    /// Starts to follow the registries that are not followed yet.
    fn start_followers(&mut self) {
        // Without a sender, all sources have ended, and so does the pipeline.
        let Some(((tracker, stop), sender)) = self.tasks.as_ref().zip(self.sender.upgrade()) else {
            return;
        };
        for (id, registry) in RegistryId::first(MAX_REGISTRIES).zip(&mut self.registries) {
            let PipelineRegistry { source, state, first, follower } = registry;
            follower.get_or_insert_with(|| {
                let feed = Feed::new(id, sender.clone(), Arc::clone(state));
                RegistryTask::start(source.source.clone(), *first, feed, tracker, stop)
            });
        }
    }

    /// Returns the configuration that the last call of [`Self::next`] applied, if it did.
    pub fn take_applied(&mut self) -> Option<Arc<Config>> {
        self.applied.take()
    }

    /// Waits for updates or a deadline, and publishes a snapshot.
    ///
    /// A deadline is, for example, the end of a removal grace. Returns the publication and its
    /// duration, or `None` once all sources have ended.
    pub async fn next(&mut self) -> Option<(Published, Duration)> {
        if let Some(request) = self.requested.take() {
            let start = Instant::now();
            return Some((self.rebuild(request, start).await, start.elapsed()));
        }
        let wake = self.wake;
        let deadline = wake.unwrap_or_else(Instant::now).into();
        let first = tokio::select! {
            update = self.updates.recv() => Some(update?),
            Some(request) = self.requests.recv() => {
                let start = Instant::now();
                if self.apply_settings(&request) {
                    self.finish(request);
                    let published = Published { wake, ..Published::default() };
                    return Some((published, start.elapsed()));
                }
                // Updates of the former followers are published first: registries have other
                // numbers later.
                self.stop_followers().await;
                self.requested = Some(request);
                None
            }
            () = tokio::time::sleep_until(deadline), if wake.is_some() => None,
        };
        let start = Instant::now();
        let mut taken = 0;
        let waiting = std::iter::from_fn(|| {
            let is_room = taken < MAX_CHANGES_PER_PUBLICATION || self.requested.is_some();
            let update = is_room.then(|| self.updates.try_recv().ok()).flatten()?;
            taken += update.len();
            Some(update)
        });
        let all: Vec<Update> = first.into_iter().chain(waiting).collect();
        Some((self.publish(all, start, None::<fn()>).await, start.elapsed()))
    }

    /// Applies updates, publishes the result, and passes on the work that it asks for.
    ///
    /// With `ready`, publishes the services first, and calls it then.
    async fn publish(
        &mut self,
        updates: impl IntoIterator<Item = Update>,
        now: Instant,
        ready: Option<impl FnOnce()>,
    ) -> Published {
        let mut publication = if let Some(ready) = ready {
            let publication = self.publisher.publish_services(updates, now);
            ready();
            publication
        } else {
            self.publisher.begin(updates, now)
        };
        while publication.compile_next() {
            // Let the other tasks of this thread run: their connections must answer pings.
            yield_now().await;
        }
        let published = publication.publish();
        self.pass_on(published)
    }

    /// Passes on the work that a publication asks for.
    fn pass_on(&mut self, mut published: Published) -> Published {
        self.wake = published.wake;
        if let Some(hosts) = &self.hosts {
            hosts.update(std::mem::take(&mut published.hosts));
        }
        if let Some(bridge) = &self.bridge {
            bridge.update(std::mem::take(&mut published.bridge));
        }
        if let Some(checks) = self.checks.as_ref().filter(|_| !published.checks.is_empty()) {
            // The checker ends before the pipeline only if the server stops.
            let _ = checks.send(std::mem::take(&mut published.checks));
        }
        for (registry, leases) in published.lease_checks.drain(..) {
            let registry = self.registries.get(registry.index());
            if let Some(follower) = registry.and_then(|registry| registry.follower.as_ref()) {
                follower.command(RegistryCommand::CheckLeases(leases));
            }
        }
        published
    }

    /// Applies a configuration whose registries and table are those of the current one.
    ///
    /// Returns `false`, and changes nothing, if they are not.
    fn apply_settings(&mut self, request: &ReconfigureRequest) -> bool {
        let (catalog, settings) = self.settings_of(request);
        let sources = self.registries.iter().map(|registry| &registry.source);
        let is_same = catalog == self.catalog
            && sources.eq(&request.config.registries)
            && self.publisher.has_table_for(&settings);
        if is_same {
            self.publisher.apply_settings(settings);
        }
        is_same
    }

    /// Applies any other configuration, and starts to follow its registries.
    async fn rebuild(&mut self, request: ReconfigureRequest, now: Instant) -> Published {
        let (catalog, settings) = self.settings_of(&request);
        let sources = &request.config.registries;
        let former: Vec<&NamedSource> = self.registries.iter().map(|one| &one.source).collect();
        let (mut registries, mut kept) = (Vec::new(), Vec::new());
        let ids = || RegistryId::first(MAX_REGISTRIES);
        for ((after, source), index) in ids().zip(sources).zip(former_indexes(&former, sources)) {
            let before = index.and_then(RegistryId::new);
            kept.extend(before.map(|before| KeptRegistry { before, after }));
            let state = index.and_then(|index| Some(&*self.registries.get(index)?.state));
            registries.push(PipelineRegistry::new(source, state));
        }
        let mut publication = self.publisher.rebuild(catalog.clone(), settings, &kept, now);
        while publication.compile_next() {
            yield_now().await;
        }
        let published = publication.publish();
        self.states.replace(states_of(&registries));
        (self.registries, self.catalog) = (registries, catalog);
        let published = self.pass_on(published);
        let known = self.publisher.answerer().registry_status().known;
        for (id, registry) in RegistryId::first(MAX_REGISTRIES).zip(&mut self.registries) {
            let is_known = known.contains(id);
            registry.first = if is_known { ListKind::Reconnect } else { ListKind::Routine };
        }
        self.start_followers();
        self.finish(request);
        published
    }

    /// Stops to follow the registries; all that they have sent is then in the channel of updates.
    async fn stop_followers(&mut self) {
        let followers = self.registries.iter_mut().filter_map(|one| one.follower.take());
        let followers: Vec<RegistryTask> = followers.collect();
        followers.iter().for_each(RegistryTask::stop);
        let deadline = tokio::time::Instant::now() + STOP_TIMEOUT;
        for follower in followers {
            follower.ended(deadline).await;
        }
    }

    /// Tells the sender of a request that it is done.
    fn finish(&mut self, ReconfigureRequest { config, done, .. }: ReconfigureRequest) {
        self.applied = Some(config);
        // A sender that has gone away needs no result.
        let _ = done.send(());
    }

    fn settings_of(&self, request: &ReconfigureRequest) -> (catalog::Settings, answer::Settings) {
        let parts = (self.hosts.is_some(), self.bridge.is_some());
        settings_of(&request.config, &request.listen, parts)
    }
}

/// Returns the settings of a pipeline that has a forwarder or a bridge, or lacks them.
fn settings_of(
    config: &Config,
    listen: &[SocketAddr],
    (has_forwarder, has_bridge): (bool, bool),
) -> (catalog::Settings, answer::Settings) {
    let (mut catalog, mut settings) = (config.catalog(), config.answer(listen));
    settings.forwarding &= has_forwarder;
    // The bridge may have failed to start.
    settings.bridge &= has_bridge;
    catalog.bridge_pool = catalog.bridge_pool.filter(|_| has_bridge);
    (catalog, settings)
}

fn states_of(registries: &[PipelineRegistry]) -> Vec<Arc<RegistryState>> {
    registries.iter().map(|registry| Arc::clone(&registry.state)).collect()
}

/// Returns for each registry of a configuration which one of the former it continues.
///
/// It is the one with the same settings, even under another name, or else the one of the same name
/// and kind.
fn former_indexes(former: &[&NamedSource], new: &[NamedSource]) -> Vec<Option<usize>> {
    let mut found: Vec<Option<usize>> = vec![None; new.len()];
    let is_same: [fn(&NamedSource, &NamedSource) -> bool; 2] = [
        |former, new| former.source == new.source,
        |former, new| former.name == new.name && former.source.kind() == new.source.kind(),
    ];
    for is_same in is_same {
        for index in 0..new.len() {
            let is_free = |candidate: &usize| !found.contains(&Some(*candidate));
            let mut candidates = (0..former.len()).filter(is_free);
            let next = candidates.find(|candidate| is_same(former[*candidate], &new[index]));
            found[index] = found[index].or(next);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Flags;

    /// Returns the registries of a configuration with these URLs.
    fn sources(text: &str) -> Vec<NamedSource> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Config::load(Some(file.path()), [], &Flags::default()).unwrap().registries
    }

    #[test]
    fn a_registry_continues_the_one_of_its_settings_or_else_of_its_name() {
        let former = sources("registry = ['etcd://a', 'etcd://b', 'file:///c']");
        let indexes =
            |text: &str| former_indexes(&former.iter().collect::<Vec<_>>(), &sources(text));
        // The names in a list depend on the order: here, `etcd` and `etcd2`.
        assert_eq!(indexes("registry = ['etcd://b', 'etcd://a']"), [Some(1), Some(0)]);
        assert_eq!(indexes("registry = ['etcd://new', 'etcd://a']"), [None, Some(0)]);
        assert_eq!(indexes("registry = ['etcd://a', 'etcd://new']"), [Some(0), Some(1)]);
        assert_eq!(indexes("[registry.main]\nurl = 'etcd://b'"), [Some(1)]);
        assert_eq!(indexes("[registry.etcd]\nurl = 'file:///d'"), [None]);
        assert_eq!(indexes("registry = 'file:///d'"), [Some(2)]);
    }
}
