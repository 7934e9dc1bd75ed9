//! A follower: the task that follows one registry.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::registry::{Feed, Registry, RegistryCommand};
use crate::service::{Change, ListKind};

/// Limit on commands that wait for one registry.
const MAX_WAITING_COMMANDS: usize = 16;

/// Pause before a panicked follower is started again.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// The running follower of a registry.
#[derive(Debug)]
pub(super) struct RegistryTask {
    commands: mpsc::Sender<RegistryCommand>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl RegistryTask {
    /// Starts to follow a registry in the current runtime, until `stop` or [`Self::stop`].
    pub(super) fn start(
        registry: impl Registry + Clone + Sync,
        first: ListKind,
        feed: Feed,
        tracker: &TaskTracker,
        stop: &CancellationToken,
    ) -> Self {
        let (commands, received) = mpsc::channel(MAX_WAITING_COMMANDS);
        let stop = stop.child_token();
        let feed = feed.until(stop.clone());
        let task = tracker.spawn(keep_following(registry, first, feed, received, stop.clone()));
        Self { commands, stop, task }
    }

    /// Passes a command on, unless too many wait already.
    pub(super) fn command(&self, command: RegistryCommand) {
        // If the registry's queue is full, leases stay unchecked, as if it were unreachable.
        let _ = self.commands.try_send(command);
    }

    /// Tells the follower to stop; it sends nothing more.
    pub(super) fn stop(&self) {
        self.stop.cancel();
    }

    /// Waits for the end of a stopped follower, until this time.
    pub(super) async fn ended(self, deadline: Instant) {
        // Whether it panicked, or is still busy, makes no difference: its feed is closed.
        let _ = timeout_at(deadline, self.task).await;
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
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Instant;

    use super::{CancellationToken, Duration, Feed, MAX_WAITING_COMMANDS, RegistryCommand};
    use super::{keep_following, mpsc};
    use crate::catalog::{self, Catalog};
    use crate::name::Zones;
    use crate::registry::{Registry, RegistryState, gsvc};
    use crate::service::{Change, ListKind, Put, RegistryId, Update};

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
        let (sender, mut updates) = mpsc::channel(64);
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
