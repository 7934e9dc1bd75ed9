//! The pipeline from the registries to the published snapshot.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::yield_now;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::answer::{Answerer, Published, Publisher};
use crate::bridge::BridgeRequests;
use crate::catalog::MalformedKeys;
use crate::config::Config;
use crate::registry::{Feed, NamedSource, Registry, RegistryCommand, RegistryState, Source};
use crate::service::{Change, CheckChange, ListKind, MAX_REGISTRIES, RegistryId, Update};
use crate::upstream::HostRequests;

/// Limit on updates that wait for publication; at the limit, their sources wait.
///
/// All waiting updates are published together.
const MAX_WAITING_UPDATES: usize = 64;

/// Limit on the changes of one publication.
///
/// Without it, a flood of changes would delay the changes received first.
const MAX_CHANGES_PER_PUBLICATION: usize = 50_000;

/// Limit on commands that wait for one registry.
const MAX_WAITING_COMMANDS: usize = 16;

/// Pause before a panicked follower is started again.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// Follows all registries of a configuration and publishes their services.
///
/// One thread with its own runtime calls [`Self::start`] and [`Self::next`], and does all the work.
/// No other thread has to be woken between the receipt of a change and its publication, and all
/// data comes from one arena of the allocator. Long tasks therefore yield to the others.
#[derive(Debug)]
pub struct RegistryPipeline {
    pending: Vec<PendingRegistry>,
    publisher: Publisher,
    updates: mpsc::Receiver<Update>,
    commands: Vec<mpsc::Sender<RegistryCommand>>,
    /// Receives the host names to look up, if forwarding is on.
    hosts: Option<Arc<HostRequests>>,
    /// Receives the names that may be bridged, if the bridge is on.
    bridge: Option<Arc<BridgeRequests>>,
    /// Receives the endpoints to check, if there is a checker.
    checks: Option<mpsc::UnboundedSender<Vec<CheckChange>>>,
    wake: Option<Instant>,
}

/// A registry that is not followed yet.
#[derive(Debug)]
struct PendingRegistry {
    source: Source,
    /// The kind of its first list.
    first: ListKind,
    feed: Feed,
    commands: mpsc::Receiver<RegistryCommand>,
}

/// The parts of a pipeline that the rest of the server uses.
#[derive(Debug)]
pub struct PipelineHandles {
    /// Answers queries from the latest snapshot.
    pub answerer: Arc<Answerer>,
    /// The states of the registries, in the order of the configuration.
    pub states: Vec<Arc<RegistryState>>,
    /// Sends updates from sources other than the registries.
    pub updates: mpsc::Sender<Update>,
}

impl RegistryPipeline {
    /// Creates the pipeline of a server that listens on these addresses.
    ///
    /// `hosts` receives the host names to look up; without it, forwarding is off.
    pub fn new(
        config: &Config,
        listen: &[SocketAddr],
        hosts: Option<Arc<HostRequests>>,
    ) -> (Self, PipelineHandles) {
        let mut settings = config.answer(listen);
        settings.forwarding &= hosts.is_some();
        let (publisher, answerer) = Publisher::new(config.catalog(), settings, Instant::now());
        let (sender, updates) = mpsc::channel(MAX_WAITING_UPDATES);
        let (mut pending, mut commands, mut states) = (Vec::new(), Vec::new(), Vec::new());
        for (NamedSource { name, source, removal_grace }, registry) in
            config.registries.iter().cloned().zip(RegistryId::first(MAX_REGISTRIES))
        {
            let state = Arc::new(RegistryState::new(name, source.to_string(), removal_grace));
            let (sender_of_commands, receiver) = mpsc::channel(MAX_WAITING_COMMANDS);
            let feed = Feed::new(registry, sender.clone(), Arc::clone(&state));
            pending.push(PendingRegistry {
                source,
                first: ListKind::Routine,
                feed,
                commands: receiver,
            });
            commands.push(sender_of_commands);
            states.push(state);
        }
        let pipeline = Self {
            pending,
            publisher,
            updates,
            commands,
            hosts,
            bridge: None,
            checks: None,
            wake: None,
        };
        (pipeline, PipelineHandles { answerer, states, updates: sender })
    }

    /// Sends the names that may be bridged to a bridge. Call it before [`Self::start`].
    pub fn set_bridge(&mut self, requests: Arc<BridgeRequests>) {
        self.bridge = Some(requests);
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
        if let Some(pending) = self.pending.get_mut(registry.index()) {
            pending.first = ListKind::Reconnect;
        }
        Ok(())
    }

    /// Publishes what was restored; calls `ready` as soon as queries can be answered.
    pub async fn publish_restored(&mut self, ready: impl FnOnce()) -> Published {
        self.publish(std::iter::empty(), Instant::now(), Some(ready)).await
    }

    /// Starts tasks of the current runtime that follow all registries until `stop`.
    pub fn start(&mut self, tracker: &TaskTracker, stop: &CancellationToken) {
        for PendingRegistry { source, first, feed, commands } in self.pending.drain(..) {
            tracker.spawn(keep_following(source, first, feed, commands, stop.clone()));
        }
    }

    /// Waits for updates or a deadline, and publishes a snapshot.
    ///
    /// A deadline is, for example, the end of a removal grace. Returns the publication and its
    /// duration, or `None` once all sources have ended.
    pub async fn next(&mut self) -> Option<(Published, Duration)> {
        let wake = self.wake;
        let deadline = wake.unwrap_or_else(Instant::now).into();
        let first = tokio::select! {
            update = self.updates.recv() => Some(update?),
            () = tokio::time::sleep_until(deadline), if wake.is_some() => None,
        };
        let start = Instant::now();
        let mut taken = 0;
        let waiting = std::iter::from_fn(|| {
            let is_room = taken < MAX_CHANGES_PER_PUBLICATION;
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
        let mut published = publication.publish();
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
            if let Some(commands) = self.commands.get(registry.index()) {
                // If the registry's queue is full, the leases stay unchecked, as if it were
                // unreachable.
                let _ = commands.try_send(RegistryCommand::CheckLeases(leases));
            }
        }
        published
    }
}

/// Follows a registry until `stop`; restarts its follower after a panic.
async fn keep_following(
    registry: impl Registry + Clone,
    mut first: ListKind,
    feed: Feed,
    mut commands: mpsc::Receiver<RegistryCommand>,
    stop: CancellationToken,
) {
    loop {
        let (to_follower, received) = mpsc::channel(MAX_WAITING_COMMANDS);
        let mut follower =
            tokio::spawn(registry.clone().follow(first, feed.clone(), received, stop.clone()));
        let ended = loop {
            tokio::select! {
                ended = &mut follower => break ended,
                command = commands.recv() => match command {
                    Some(command) => drop(to_follower.try_send(command)),
                    // The sender of commands is gone.
                    None => break (&mut follower).await,
                },
            }
        };
        if stop.is_cancelled() || ended.is_ok() {
            return;
        }
        tracing::error!(
            registry = %feed.state(),
            "the follower of a registry panicked, starting it again; please report this"
        );
        feed.state().update(|report| {
            report.connected = false;
            report.error = Some("its follower panicked".to_owned());
        });
        if feed.send(vec![Change::Connected(false)]).await.is_err() {
            return;
        }
        // The catalog has the changes from before the panic, but later ones were missed.
        first = ListKind::Reconnect;
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RESTART_PAUSE) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::catalog::{self, Catalog};
    use crate::name::Zones;
    use crate::registry::gsvc;
    use crate::service::Put;

    /// A registry whose first follower panics after its list.
    ///
    /// The second follower lists half of the services.
    #[derive(Clone, Default)]
    struct Panicking(Arc<AtomicU32>);

    const SERVICES: usize = 20;

    impl Registry for Panicking {
        async fn follow(
            self,
            first: ListKind,
            feed: Feed,
            _commands: mpsc::Receiver<RegistryCommand>,
            stop: CancellationToken,
        ) {
            let before = self.0.fetch_add(1, Ordering::Relaxed);
            let put = |n| {
                let key = format!("/service/default/default/hello-{n}/latest/10.0.0.1:80");
                let content = gsvc::parse(key.as_bytes(), b"{}");
                Change::Put(Put { key: key.into(), revision: 0, lease: 0, content })
            };
            let mut list = vec![Change::list_begin(first)];
            list.extend((0..SERVICES >> before).map(put));
            list.push(Change::ListEnd { revision: 0 });
            feed.send(list).await.unwrap();
            assert!(before > 0, "the first follower panics");
            stop.cancelled().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn keys_missing_after_a_follower_panics_are_held() {
        let (sender, mut updates) = mpsc::channel(MAX_WAITING_UPDATES);
        let (_commands, received) = mpsc::channel(MAX_WAITING_COMMANDS);
        let feed = Feed::new(
            RegistryId::FIRST,
            sender,
            Arc::new(RegistryState::new(
                "test".parse().unwrap(),
                "test://".to_owned(),
                Duration::ZERO,
            )),
        );
        let stop = CancellationToken::new();
        let kept = tokio::spawn(keep_following(
            Panicking::default(),
            ListKind::Routine,
            feed,
            received,
            stop.clone(),
        ));

        let mut catalog =
            Catalog::new(catalog::Settings::new(Zones::new(&["svc".to_owned()]).unwrap(), 1));
        let now = Instant::now();
        let mut lists = Vec::new();
        while lists.len() < 2 {
            let update = updates.recv().await.unwrap();
            let Update::Registry(RegistryId::FIRST, changes) = &update else {
                panic!("{update:?}")
            };
            lists.extend(changes.iter().filter_map(|change| match change {
                Change::ListBegin { kind, .. } => Some(*kind),
                _ => None,
            }));
            catalog.apply(update, now);
            catalog.settle(now);
            assert_eq!(catalog.services().count(), SERVICES, "after {lists:?}");
        }
        assert_eq!(lists, [ListKind::Routine, ListKind::Reconnect]);
        // After the grace, services that are still missing are removed.
        catalog.settle(now + Duration::from_secs(3600));
        assert_eq!(catalog.services().count(), SERVICES / 2);
        stop.cancel();
        kept.await.unwrap();
    }
}
