//! Joins registries, catalog and table: takes updates from the one inlet and publishes them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::yield_now;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::answer::{Answerer, Published, Publisher};
use crate::config::Config;
use crate::registry::{Feed, NamedSource, Registry, RegistryCommand, RegistryState, Source};
use crate::service::{Change, ListKind, MAX_REGISTRIES, RegistryId, Update};
use crate::upstream::HostRequests;

/// Updates that may wait to be published; then their sources wait. Those that come together are published together.
const INLET: usize = 64;

/// Most changes taken for one publication: a flood must not keep what has come already from being seen.
const MAX_CHANGES: usize = 50_000;

/// Commands to a registry that may wait.
const COMMANDS: usize = 16;

/// How long after a panic a registry is followed again.
const RESTART: Duration = Duration::from_secs(1);

/// All registries of a configuration, and what is made of them.
///
/// All of it is the work of one thread with a runtime of its own, the one that calls [`Self::begin`] and [`Self::next`]: from
/// what the network brings to the publication no other thread has to be woken, and all that is kept comes from one arena of
/// the allocator. Whoever reads much at a time lets the others in between.
#[derive(Debug)]
pub struct Following {
    followers: Vec<Follower>,
    publisher: Publisher,
    inlet: mpsc::Receiver<Update>,
    commands: Vec<mpsc::Sender<RegistryCommand>>,
    /// Told which host names are wanted, where somebody looks them up.
    hosts: Option<Arc<HostRequests>>,
    wake: Option<Instant>,
}

/// A registry that is not followed yet.
#[derive(Debug)]
struct Follower {
    source: Source,
    feed: Feed,
    asked: mpsc::Receiver<RegistryCommand>,
}

/// What others need of what is followed.
#[derive(Debug)]
pub struct Followed {
    /// The way in for questions.
    pub answerer: Arc<Answerer>,
    /// The registries' own reports.
    pub states: Vec<Arc<RegistryState>>,
    /// The way in for updates from other sources than the registries.
    pub inlet: mpsc::Sender<Update>,
}

impl Following {
    /// Prepares to follow every registry, for a server that listens on these addresses. `hosts` is told which host names to look
    /// up; without it other names are not forwarded either.
    pub fn new(config: &Config, listen: &[SocketAddr], hosts: Option<Arc<HostRequests>>) -> (Self, Followed) {
        let mut settings = config.answer(listen);
        settings.forwarding &= hosts.is_some();
        let (publisher, answerer) = Publisher::new(config.catalog(), settings, Instant::now());
        let (sender, inlet) = mpsc::channel(INLET);
        let (mut followers, mut commands, mut states) = (Vec::new(), Vec::new(), Vec::new());
        for (NamedSource { name, source, .. }, registry) in config.registries.iter().cloned().zip(RegistryId::first(MAX_REGISTRIES)) {
            let state = Arc::new(RegistryState::new(name, source.to_string()));
            let (asking, asked) = mpsc::channel(COMMANDS);
            let feed = Feed::new(registry, sender.clone(), Arc::clone(&state));
            followers.push(Follower { source, feed, asked });
            commands.push(asking);
            states.push(state);
        }
        let following = Self { followers, publisher, inlet, commands, hosts, wake: None };
        (following, Followed { answerer, states, inlet: sender })
    }

    /// Begins to follow every registry until `stop`, as tasks of the runtime that this is called in.
    pub fn begin(&mut self, tracker: &TaskTracker, stop: &CancellationToken) {
        for Follower { source, feed, asked } in self.followers.drain(..) {
            tracker.spawn(keep(source, feed, asked, stop.clone()));
        }
    }

    /// Waits for updates, or for what time brings, and publishes all that has come, once. None when every source of updates has
    /// ended. Also says how long the publication took.
    pub async fn next(&mut self) -> Option<(Published, Duration)> {
        let wake = self.wake;
        let first = tokio::select! {
            update = self.inlet.recv() => Some(update?),
            () = tokio::time::sleep_until(wake.unwrap_or_else(Instant::now).into()), if wake.is_some() => None,
        };
        let began = Instant::now();
        let Self { publisher, inlet, .. } = self;
        let mut taken = 0;
        let waiting = std::iter::from_fn(|| {
            let update = (taken < MAX_CHANGES).then(|| inlet.try_recv().ok()).flatten()?;
            taken += update.len();
            Some(update)
        });
        let mut publication = publisher.begin(first.into_iter().chain(waiting), began);
        while publication.compile_next() {
            // Else the connections of this thread would miss their pings.
            yield_now().await;
        }
        let mut published = publication.publish();
        self.wake = published.wake;
        if let Some(hosts) = &self.hosts {
            hosts.update(std::mem::take(&mut published.hosts));
        }
        for (registry, leases) in published.lease_checks.drain(..) {
            if let Some(commands) = self.commands.get(registry.index()) {
                // A registry that is too busy to be asked leaves the doubt unanswered, as one that cannot be reached does.
                let _ = commands.try_send(RegistryCommand::CheckLeases(leases));
            }
        }
        Some((published, began.elapsed()))
    }
}

/// Follows a registry until `stop`, and anew should its follower panic.
async fn keep(registry: impl Registry + Clone, feed: Feed, mut commands: mpsc::Receiver<RegistryCommand>, stop: CancellationToken) {
    let mut first = ListKind::Routine;
    loop {
        let (asking, asked) = mpsc::channel(COMMANDS);
        let mut follower = tokio::spawn(registry.clone().follow(first, feed.clone(), asked, stop.clone()));
        let ended = loop {
            tokio::select! {
                ended = &mut follower => break ended,
                command = commands.recv() => match command {
                    Some(command) => drop(asking.try_send(command)),
                    // Nobody asks any more: only the end is left to wait for.
                    None => break (&mut follower).await,
                },
            }
        };
        if stop.is_cancelled() || ended.is_ok() {
            return;
        }
        tracing::error!(registry = %feed.state(), "the follower of a registry panicked and is started again; please report this");
        feed.state().update(|report| {
            report.connected = false;
            report.error = Some("its follower panicked".to_owned());
        });
        if feed.send(vec![Change::Connected(false)]).await.is_err() {
            return;
        }
        // The catalog knows what the follower told it before the panic; what happened since, nobody saw.
        first = ListKind::Reconnect;
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RESTART) => {}
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

    /// A store whose first follower panics after its list; the second finds half as many services.
    #[derive(Clone, Default)]
    struct Panicking(Arc<AtomicU32>);

    const SERVICES: usize = 20;

    impl Registry for Panicking {
        async fn follow(self, first: ListKind, feed: Feed, _commands: mpsc::Receiver<RegistryCommand>, stop: CancellationToken) {
            let before = self.0.fetch_add(1, Ordering::Relaxed);
            let put = |n| {
                let key = format!("/service/default/default/hello-{n}/latest/10.0.0.1:80");
                let content = gsvc::parse(key.as_bytes(), b"{}");
                Change::Put(Put { key: key.into(), revision: 0, lease: 0, content })
            };
            let mut list = vec![Change::ListBegin(first)];
            list.extend((0..SERVICES >> before).map(put));
            list.push(Change::ListEnd { revision: 0 });
            feed.send(list).await.unwrap();
            assert!(before > 0, "the first follower panics");
            stop.cancelled().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_follower_misses_that_panicked_before_is_not_believed_at_once() {
        let (sender, mut inlet) = mpsc::channel(INLET);
        let (_asking, asked) = mpsc::channel(COMMANDS);
        let feed = Feed::new(RegistryId::FIRST, sender, Arc::new(RegistryState::new("test".parse().unwrap(), "test://".to_owned())));
        let stop = CancellationToken::new();
        let kept = tokio::spawn(keep(Panicking::default(), feed, asked, stop.clone()));

        let mut catalog = Catalog::new(catalog::Settings::new(Zones::new(&["svc".to_owned()]).unwrap(), 1));
        let now = Instant::now();
        let mut lists = Vec::new();
        while lists.len() < 2 {
            let update = inlet.recv().await.unwrap();
            let Update::Registry(RegistryId::FIRST, changes) = &update else { panic!("{update:?}") };
            lists.extend(changes.iter().filter_map(|change| match change {
                Change::ListBegin(kind) => Some(*kind),
                _ => None,
            }));
            catalog.apply(update, now);
            catalog.settle(now);
            assert_eq!(catalog.services().count(), SERVICES, "after {lists:?}");
        }
        assert_eq!(lists, [ListKind::Routine, ListKind::Reconnect]);
        // What is still missing when the grace is over is gone.
        catalog.settle(now + Duration::from_secs(3600));
        assert_eq!(catalog.services().count(), SERVICES / 2);
        stop.cancel();
        kept.await.unwrap();
    }
}
