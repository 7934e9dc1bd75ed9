//! A registry that is followed into a real catalog.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use svcdns::catalog::{Catalog, Settings};
use svcdns::name::Zones;
use svcdns::registry::{Feed, Registry, RegistryCommand, RegistryReport, RegistryState};
use svcdns::service::{Change, ListKind, RegistryId, Update};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{SOON, eventually};

/// A followed registry, with the catalog and all changes it has sent.
pub(crate) struct Followed {
    pub(crate) state: Arc<RegistryState>,
    catalog: Arc<Mutex<Catalog>>,
    changes: Arc<Mutex<Vec<(Instant, Change)>>>,
    stop: CancellationToken,
    follow: Option<JoinHandle<()>>,
    runtime: Runtime,
}

impl Followed {
    /// Follows a registry whose mass removals are held for `grace`.
    pub(crate) fn start(registry: impl Registry, url: &str, grace: Duration) -> Self {
        Self::start_as(ListKind::Routine, registry, url, grace)
    }

    /// Follows a registry with this kind of first list.
    pub(crate) fn start_as(
        first: ListKind,
        registry: impl Registry,
        url: &str,
        grace: Duration,
    ) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let zones = Zones::new(&["svc".to_owned()]).unwrap();
        let mut settings = Settings::new(zones, 1);
        settings.removal_graces = vec![grace];
        let catalog = Arc::new(Mutex::new(Catalog::new(settings)));
        let changes = Arc::new(Mutex::new(Vec::new()));
        let state = Arc::new(RegistryState::new("test".parse().unwrap(), url.to_owned(), grace));
        let (sender, updates) = mpsc::channel(64);
        let (commands, receiver) = mpsc::channel(16);
        let feed = Feed::new(RegistryId::FIRST, sender, Arc::clone(&state));
        let stop = CancellationToken::new();
        let follow = runtime.spawn(registry.follow(first, feed, receiver, stop.clone()));
        runtime.spawn(collect(Arc::clone(&catalog), Arc::clone(&changes), updates, commands));
        Self { state, catalog, changes, stop, follow: Some(follow), runtime }
    }

    /// Returns the endpoints of the instances that are served under a base name.
    pub(crate) fn instances(&self, base: &str) -> BTreeSet<String> {
        let catalog = self.catalog.lock().unwrap();
        let service = catalog.service(base);
        let instances = service.iter().flat_map(|service| service.served());
        instances.map(|instance| instance.endpoint.to_string()).collect()
    }

    /// Returns whether the name is known, with or without an instance.
    pub(crate) fn knows(&self, base: &str) -> bool {
        self.catalog.lock().unwrap().service(base).is_some()
    }

    /// Runs a closure on the catalog.
    pub(crate) fn catalog<T>(&self, run: impl FnOnce(&mut Catalog) -> T) -> T {
        run(&mut self.catalog.lock().unwrap())
    }

    /// Returns the code and key of each rejection.
    pub(crate) fn rejections(&self) -> BTreeSet<(String, String)> {
        let listed = Arc::clone(&self.catalog.lock().unwrap().rejections().listed);
        let text = |code: &str, key: &str| (code.to_owned(), key.to_owned());
        listed.iter().map(|found| text(found.rejected.reason.code(), &found.key)).collect()
    }

    /// Waits until exactly these endpoints are served under a base name.
    pub(crate) fn wait_for(&self, base: &str, endpoints: &[&str]) {
        let expected: BTreeSet<String> = endpoints.iter().map(ToString::to_string).collect();
        self.wait_until(&format!("{base} to be {endpoints:?}"), || {
            self.instances(base) == expected
        });
    }

    pub(crate) fn wait_until(&self, what: &str, check: impl Fn() -> bool) {
        let what = format!("{what}; report {:?}", self.state.report());
        eventually(&what, SOON, || check().then_some(()));
    }

    /// Waits until the report is as expected.
    pub(crate) fn wait_for_report(&self, what: &str, check: impl Fn(&RegistryReport) -> bool) {
        eventually(what, SOON, || {
            let report = self.state.report();
            if check(&report) {
                return Some(());
            }
            eprintln!("{what}: {report:?}");
            None
        });
    }

    /// Waits until the first round is complete.
    pub(crate) fn wait_until_synced(&self) {
        self.wait_for_report("synced", |report| report.synced && report.connected);
    }

    /// Waits until the report has an error with this text; returns the error.
    pub(crate) fn wait_for_error(&self, text: &str) -> String {
        eventually(&format!("an error with {text:?}"), SOON, || {
            let error = self.state.report().error;
            if !error.as_ref().is_some_and(|error| error.contains(text)) {
                eprintln!("not yet {text:?}: {error:?}");
                return None;
            }
            error
        })
    }

    /// Waits for a fault of one service, which ends no connection and shows no secret.
    pub(crate) fn wait_for_fault_of(&self, service: &str, message: &str, secrets: &[&str]) {
        let error = self.wait_for_error(message);
        assert!(error.contains(&format!("read the service {service:?}")), "{error}");
        let (_, address) = self.state.url.split_once("://").unwrap();
        assert!(error.contains(address), "{error}");
        assert!(!secrets.iter().any(|secret| error.contains(secret)), "{error}");
        let report = self.state.report();
        assert!(report.connected && report.disconnects == 0, "{report:?}");
    }

    /// Returns all changes so far, each with its time.
    pub(crate) fn changes(&self) -> Vec<(Instant, Change)> {
        self.changes.lock().unwrap().clone()
    }

    /// Returns the kinds of all lists, of services and of names.
    pub(crate) fn kinds(&self) -> BTreeSet<ListKind> {
        let kind = |change: &Change| match change {
            Change::ListBegin { kind, .. } | Change::ServiceNames { kind, .. } => Some(*kind),
            _ => None,
        };
        self.changes().iter().filter_map(|(_, change)| kind(change)).collect()
    }

    /// Stops following, which must end soon and without a panic.
    pub(crate) fn stop(mut self) {
        self.stop.cancel();
        let follow = self.follow.take().unwrap();
        let ended = async { tokio::time::timeout(SOON, follow).await };
        self.runtime.block_on(ended).expect("following ends soon").unwrap();
    }
}

/// Applies all updates, as the daemon does.
async fn collect(
    catalog: Arc<Mutex<Catalog>>,
    changes: Arc<Mutex<Vec<(Instant, Change)>>>,
    mut updates: mpsc::Receiver<Update>,
    commands: mpsc::Sender<RegistryCommand>,
) {
    let mut wake = None;
    loop {
        let deadline = wake.unwrap_or_else(Instant::now).into();
        tokio::select! {
            update = updates.recv() => {
                let Some(update) = update else { return };
                let now = Instant::now();
                if let Update::Registry(_, received) = &update {
                    let mut changes = changes.lock().unwrap();
                    changes.extend(received.iter().map(|change| (now, change.clone())));
                }
                catalog.lock().unwrap().apply(update, now);
            }
            () = tokio::time::sleep_until(deadline), if wake.is_some() => {}
        }
        let settled = catalog.lock().unwrap().settle(Instant::now());
        wake = settled.wake;
        for (_, leases) in settled.lease_checks {
            commands.send(RegistryCommand::CheckLeases(leases)).await.unwrap();
        }
    }
}
