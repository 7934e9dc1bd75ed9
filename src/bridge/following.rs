//! The task that follows changes of names, from its start to the end of the bridge.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::assignments::{Assignments, Outcome};
use super::requests::{BridgeRequests, ChangedNames};
use super::saving::Saving;
use super::shared::Shared;
use super::workers::{Workers, WorkersEnd};
use crate::service::{BridgedName, Update};

/// Number of names after which other tasks have a turn.
const NAMES_PER_TURN: usize = 64;

/// Time between two looks at what is due, if nothing is.
const IDLE: Duration = Duration::from_secs(3600);

/// The task that follows changes of names.
#[derive(Debug)]
pub(super) struct Following {
    pub(super) assignments: Assignments,
    pub(super) requests: Arc<BridgeRequests>,
    pub(super) workers: Workers,
    pub(super) shared: Arc<Shared>,
    /// The file of addresses; `None` without a state directory.
    pub(super) saving: Option<Saving>,
    /// Why connections are not redirected at the moment, if so.
    pub(super) redirect_problem: watch::Receiver<Option<String>>,
    pub(super) updates: mpsc::Sender<Update>,
}

impl Following {
    /// Follows changes until `stop`, and writes the file a last time.
    pub(super) async fn run(mut self, ended: &WorkersEnd, stop: &CancellationToken) {
        let mut has_workers = true;
        loop {
            let due = self.due();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = ended.first(), if has_workers => {
                    has_workers = false;
                    tracing::error!("a thread of the bridge has failed: restart svcdns");
                    self.suspend(Some("one of its threads has failed: restart svcdns".to_owned()));
                }
                Ok(()) = self.redirect_problem.changed(), if has_workers => {
                    let problem = self.redirect_problem.borrow_and_update().clone();
                    self.suspend(problem);
                }
                saved = finished(self.saving.as_mut()) => self.assignments.note_saved(saved),
                changes = self.requests.take() => {
                    if !self.apply(changes).await {
                        break;
                    }
                }
                () = tokio::time::sleep_until(due) => {}
            }
            self.assignments.run_due(Instant::now(), &self.workers);
            if !self.pass_on().await {
                break;
            }
        }
        if let Some(saving) = self.saving {
            saving.finish(|| self.assignments.saved()).await;
        }
        stop.cancelled().await;
    }

    /// Applies changes, with turns for other tasks; returns `false` at the end of the server.
    async fn apply(&mut self, mut changes: ChangedNames) -> bool {
        while !changes.is_empty() {
            let part = match changes.keys().nth(NAMES_PER_TURN).cloned() {
                Some(next) => {
                    let rest = changes.split_off(&next);
                    std::mem::replace(&mut changes, rest)
                }
                None => std::mem::take(&mut changes),
            };
            self.assignments.apply(part, Instant::now(), &self.workers);
            tokio::task::yield_now().await;
        }
        self.pass_on().await
    }

    /// Announces addresses, and writes the file if it is time; `false` at the end of the server.
    async fn pass_on(&mut self) -> bool {
        let (announcements, Outcome { new, is_file_outdated, .. }) =
            self.assignments.take_outcome();
        if let Some(saving) = &mut self.saving {
            let now = Instant::now();
            if is_file_outdated {
                saving.note(new, now);
            }
            if saving.due().is_some_and(|due| due <= now) {
                saving.begin(self.assignments.saved(), now);
            }
        }
        announcements.is_empty() || self.updates.send(Update::Bridged(announcements)).await.is_ok()
    }

    /// Withdraws all addresses because of a problem, or announces them again.
    fn suspend(&mut self, problem: Option<String>) {
        self.assignments.suspend(problem.is_some());
        self.shared.set_problem(problem);
    }

    /// Returns when something has to be done.
    fn due(&self) -> Instant {
        let saving = self.saving.as_ref().and_then(Saving::due);
        let due = [self.assignments.due(), saving].into_iter().flatten().min();
        due.unwrap_or_else(|| Instant::now() + IDLE)
    }
}

/// Waits for a write of the file.
async fn finished(saving: Option<&mut Saving>) -> Vec<Box<str>> {
    match saving {
        Some(saving) => saving.finished().await,
        None => std::future::pending().await,
    }
}

/// Tells clients that no name has an address any more, after the task has failed.
pub(super) async fn withdraw_all(shared: &Shared, updates: &mpsc::Sender<Update>) {
    shared.set_problem(Some("its task has failed: restart svcdns".to_owned()));
    let names = shared.views().into_iter();
    let withdrawn = names.map(|view| BridgedName { name: view.name, address: None }).collect();
    // The receiver is gone only at the end of the server.
    let _ = updates.send(Update::Bridged(withdrawn)).await;
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::Ipv4Addr;

    use super::super::pool::{AddressPool, PoolClock};
    use super::super::settings::Settings;
    use super::*;
    use crate::service::{BridgeCandidate, BridgeChange, ReachableRegistration};

    /// Deadline of what happens soon, also on a loaded machine.
    const SOON: Duration = Duration::from_secs(60);

    /// A bridge without listeners: its names, announcements, and the parts that may fail.
    struct Followed {
        shared: Arc<Shared>,
        requests: Arc<BridgeRequests>,
        updates: mpsc::Receiver<Update>,
        problem: watch::Sender<Option<String>>,
        stop_workers: CancellationToken,
        stop: CancellationToken,
    }

    impl Followed {
        fn start() -> Self {
            let shared = Arc::new(Shared::new(Settings::default()));
            let stop_workers = CancellationToken::new();
            let (workers, ended) = Workers::start(&shared, &stop_workers).unwrap();
            let (problem, redirect_problem) = watch::channel(None);
            let (sender, updates) = mpsc::channel(64);
            let (requests, stop) = (Arc::<BridgeRequests>::default(), CancellationToken::new());
            let clock = PoolClock::start();
            let pool = AddressPool::new(shared.settings.pool, &BTreeSet::new(), [], clock.now());
            let following = Following {
                assignments: Assignments::new(pool, clock, Arc::clone(&shared), None, false),
                requests: Arc::clone(&requests),
                workers,
                shared: Arc::clone(&shared),
                saving: None,
                redirect_problem,
                updates: sender,
            };
            let stopped = stop.clone();
            tokio::spawn(async move { following.run(&ended, &stopped).await });
            Self { shared, requests, updates, problem, stop_workers, stop }
        }

        fn put(&self, name: &str, protocol: &str) {
            let registration = ReachableRegistration {
                protocol: Some(protocol.into()),
                weight: 1,
                first_port: Some(8000),
                endpoints: vec!["192.0.2.1:8000".parse().unwrap()],
            };
            self.requests.update(vec![BridgeChange::Put(BridgeCandidate {
                name: name.into(),
                namespace: "default".into(),
                registrations: vec![registration],
            })]);
        }

        /// Returns the next announcement.
        async fn next(&mut self) -> Vec<(Box<str>, Option<Ipv4Addr>)> {
            let next = tokio::time::timeout(SOON, self.updates.recv()).await;
            let Ok(Some(Update::Bridged(names))) = next else { panic!("no announcement") };
            names.into_iter().map(|one| (one.name, one.address)).collect()
        }
    }

    #[tokio::test]
    async fn addresses_are_withdrawn_while_connections_are_not_redirected() {
        let mut bridge = Followed::start();
        bridge.put("hello", "http");
        let announced = bridge.next().await;
        assert!(announced[0].1.is_some());
        bridge.problem.send_replace(Some("lost".to_owned()));
        assert_eq!(bridge.next().await, [("hello".into(), None)]);
        assert_eq!(bridge.shared.problem().as_deref(), Some("lost"));
        // A name that comes meanwhile is announced later.
        bridge.put("late", "http");
        bridge.problem.send_replace(None);
        let mut again = Vec::new();
        while again.len() < 2 {
            again.extend(bridge.next().await);
        }
        assert!(again.contains(&announced[0]) && again.iter().all(|(_, at)| at.is_some()));
        assert_eq!(bridge.shared.problem(), None);
        bridge.stop.cancel();
    }

    #[tokio::test]
    async fn a_thread_that_fails_is_noticed() {
        let mut bridge = Followed::start();
        bridge.put("hello", "http");
        assert!(bridge.next().await[0].1.is_some());
        bridge.stop_workers.cancel();
        assert_eq!(bridge.next().await, [("hello".into(), None)]);
        assert!(bridge.shared.problem().is_some_and(|problem| problem.contains("thread")));
        // Redirection has nothing to do with it.
        bridge.problem.send_replace(None);
        bridge.put("late", "http");
        tokio::task::yield_now().await;
        assert!(bridge.shared.problem().is_some());
        bridge.stop.cancel();
    }

    #[tokio::test]
    async fn a_name_that_is_no_longer_bridged_is_withdrawn_before_its_instances() {
        let mut bridge = Followed::start();
        bridge.put("hello", "http");
        let announced = bridge.next().await;
        let address = announced[0].1.unwrap();
        bridge.put("hello", "grpc");
        assert_eq!(bridge.next().await, [("hello".into(), None)]);
        // Clients that remember the address still reach the instance.
        let ports = bridge.shared.ports(address);
        assert_eq!(ports.len(), 1);
        assert_eq!(ports[0].instances[0].address, "192.0.2.1:8000".parse().unwrap());
        // It comes back with its address.
        bridge.put("hello", "http");
        assert_eq!(bridge.next().await, announced);
        // A name that is gone has no instance.
        bridge.requests.update(vec![BridgeChange::Removed("hello".into())]);
        assert_eq!(bridge.next().await, [("hello".into(), None)]);
        assert_eq!(bridge.shared.ports(address), []);
        bridge.stop.cancel();
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_withdrawn_is_served_until_clients_have_forgotten_it() {
        let mut bridge = Followed::start();
        bridge.put("hello", "http");
        let address = bridge.next().await[0].1.unwrap();
        bridge.put("hello", "grpc");
        bridge.next().await;
        let linger = bridge.shared.settings.linger();
        tokio::time::sleep(linger.mul_f32(0.9)).await;
        assert_eq!(bridge.shared.ports(address).len(), 1);
        tokio::time::sleep(linger.mul_f32(0.2)).await;
        assert_eq!(bridge.shared.ports(address), []);
        bridge.stop.cancel();
    }
}
