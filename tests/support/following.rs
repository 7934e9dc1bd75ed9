//! An etcd registry that is followed, and services that are registered in it.
//!
//! A test file includes this as `mod support { pub mod etcd; pub mod following; }`.

// Each test file uses some of the helpers.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use svcdns::registry::etcd::{EtcdRegistry, EtcdTuning, Settings, register};
use svcdns::registry::{
    ConnectionTuning, Credential, Feed, RegisterError, RegisterEvent, Registrant, Registry,
    RegistryCommand, RegistryReport, RegistryState, Secret,
};
use svcdns::service::{
    Change, Endpoint, LeaseReply, ListKind, ListScope, Metadata, Put, RegistryId, Removal,
    ServiceId, Update,
};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::etcd::Etcd;

/// Longest wait for an event that must come soon.
pub const SOON: Duration = Duration::from_secs(60);

/// Interval of periodic work that a test does not want.
///
/// Some waits are a random part of their setting: of an hour, that could be seconds.
pub const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Returns settings with generous timeouts and no periodic work.
///
/// On a busy machine anything may take seconds, so a test shortens only the times it is about.
pub fn settings(etcd: &Etcd) -> Settings {
    let mut settings = Settings::new(etcd.endpoints());
    settings.tuning = EtcdTuning {
        connection: ConnectionTuning {
            dial_timeout: Duration::from_secs(15),
            request_timeout: Duration::from_secs(30),
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_millis(400),
            ..ConnectionTuning::default()
        },
        keepalive_timeout: Duration::from_secs(30),
        progress_deadline: Duration::from_secs(30),
        relist_interval: NEVER,
        verify_within: NEVER,
        ..EtcdTuning::default()
    };
    settings
}

/// Returns settings with a user and password.
pub fn settings_with_password(etcd: &Etcd, user: &str, password: &str) -> Settings {
    settings_with_login(etcd, user, Credential::Given(Secret::from(password)))
}

/// Returns settings with a user whose password is in a file.
pub fn settings_with_password_file(etcd: &Etcd, user: &str, file: &Path) -> Settings {
    settings_with_login(etcd, user, Credential::File(file.to_owned()))
}

/// Returns settings with a user and where the password is.
fn settings_with_login(etcd: &Etcd, user: &str, password: Credential) -> Settings {
    let mut settings = settings(etcd);
    settings.username = Some(user.to_owned());
    settings.password = Some(password);
    settings
}

/// Returns the key of a service at 10.0.0.`last`:8000.
pub fn key(name: &str, last: u8) -> String {
    format!("/service/default/default/{name}/latest/10.0.0.{last}:8000")
}

/// Everything that a registry has sent.
#[derive(Default)]
pub struct Received {
    /// The keys that exist now.
    pub keys: BTreeMap<String, Put>,
    /// The keys of the list in progress.
    pub list_in_progress: Option<BTreeSet<String>>,
    /// The kinds of all lists begun.
    pub lists: Vec<ListKind>,
    pub lists_ended: usize,
    pub connected: Vec<bool>,
    /// The removed keys with the leases of their last puts.
    pub removals: Vec<(String, i64)>,
    /// The replies to lease checks.
    pub lease_replies: Vec<LeaseReply>,
    pub largest_batch: usize,
}

impl Received {
    /// Applies changes as the catalog does; panics if their order is not allowed.
    fn apply(&mut self, changes: Vec<Change>) {
        self.largest_batch = self.largest_batch.max(changes.len());
        for change in changes {
            match change {
                Change::ListBegin { kind, scope } => {
                    assert_eq!(scope, ListScope::Registry, "etcd lists all its keys");
                    self.lists.push(kind);
                    self.list_in_progress = Some(BTreeSet::new());
                }
                Change::Put(put) => {
                    let key = put.key.to_string();
                    let before = self.keys.insert(key.clone(), put.clone());
                    match &mut self.list_in_progress {
                        Some(listed) => {
                            assert!(listed.insert(key.clone()), "{key} is listed twice");
                        }
                        None => assert!(
                            before.is_none_or(|before| before.revision < put.revision),
                            "an event for {key} has an old revision"
                        ),
                    }
                }
                Change::Delete { key, revision, removal } => {
                    assert!(self.list_in_progress.is_none(), "a delete within a list");
                    let before = self.keys.remove(&*key).expect("only known keys are deleted");
                    assert!(before.revision < revision, "a delete for {key} has an old revision");
                    assert_eq!(removal, Removal::Unknown, "etcd does not tell why {key} is gone");
                    self.removals.push((key.into(), before.lease));
                }
                Change::ListEnd { .. } => {
                    let listed = self.list_in_progress.take().expect("a list that has begun");
                    self.keys.retain(|key, _| listed.contains(key));
                    self.lists_ended += 1;
                }
                Change::Connected(connected) => self.connected.push(connected),
                Change::LeasesChecked(reply) => self.lease_replies.push(reply),
                Change::ServiceNames { .. } | Change::Unreadable { .. } => {
                    panic!("etcd lists all its keys");
                }
            }
        }
    }

    pub fn is_connected(&self) -> bool {
        self.connected.last() == Some(&true)
    }
}

/// A registry that is followed, with a task that collects its changes.
pub struct Following {
    pub state: Arc<RegistryState>,
    pub follow: JoinHandle<()>,
    pub collect: JoinHandle<()>,
    received: Arc<Mutex<Received>>,
    commands: mpsc::Sender<RegistryCommand>,
    stop: CancellationToken,
}

impl Following {
    pub fn start(settings: Settings) -> Self {
        Self::start_with(settings, ListKind::Routine)
    }

    /// Starts with this kind of first list.
    pub fn start_with(settings: Settings, first: ListKind) -> Self {
        let (sender, mut updates) = mpsc::channel(8);
        let (commands, commands_receiver) = mpsc::channel(8);
        let state =
            RegistryState::new("test".parse().unwrap(), "etcd://test".to_owned(), Duration::ZERO);
        let state = Arc::new(state);
        let received = Arc::new(Mutex::new(Received::default()));
        let stop = CancellationToken::new();
        let feed = Feed::new(RegistryId::FIRST, sender, state.clone());
        let registry = EtcdRegistry::new(settings);
        let follow = tokio::spawn(registry.follow(first, feed, commands_receiver, stop.clone()));
        let collect = tokio::spawn({
            let received = received.clone();
            async move {
                while let Some(update) = updates.recv().await {
                    let Update::Registry(registry, changes) = update else { panic!("{update:?}") };
                    assert_eq!(registry, RegistryId::FIRST);
                    received.lock().unwrap().apply(changes);
                }
            }
        });
        Self { state, follow, collect, received, commands, stop }
    }

    /// Starts following, and waits for the first list.
    pub async fn start_synced(settings: Settings) -> Self {
        let following = Self::start(settings);
        following.wait_for_list().await;
        following
    }

    /// Waits until the first list was received and reported.
    pub async fn wait_for_list(&self) {
        let listed = |received: &Received| received.lists_ended >= 1 && received.is_connected();
        self.wait_until("the first list", listed).await;
        let reported = |report: &RegistryReport| report.synced && report.connected;
        self.wait_for_report("the first list", reported).await;
    }

    /// Waits until the condition holds for the received changes.
    pub async fn wait_until(&self, what: &str, condition: impl Fn(&Received) -> bool) {
        let deadline = Instant::now() + SOON;
        while !condition(&self.received()) {
            if Instant::now() > deadline || self.collect.is_finished() {
                let received = self.received();
                panic!(
                    "waited for: {what}; {} keys, lists {:?} ({} ended), connected {:?}, \
                     report {:?}",
                    received.keys.len(),
                    received.lists,
                    received.lists_ended,
                    received.connected,
                    self.state.report()
                );
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn wait_for_key(&self, key: &str) {
        self.wait_until(key, |received| received.keys.contains_key(key)).await;
    }

    /// Waits until the condition holds for the report.
    ///
    /// The report may change before or after the related changes are received.
    pub async fn wait_for_report(&self, what: &str, condition: impl Fn(&RegistryReport) -> bool) {
        self.wait_until(what, |_| condition(&self.state.report())).await;
    }

    /// Waits until the report has an error that contains this text.
    pub async fn wait_for_error(&self, text: &str) {
        let has_error = |report: &RegistryReport| {
            report.error.as_ref().is_some_and(|error| error.contains(text))
        };
        self.wait_for_report(text, has_error).await;
    }

    pub fn received(&self) -> MutexGuard<'_, Received> {
        self.received.lock().expect("the collector received changes in order")
    }

    pub fn keys(&self) -> Vec<String> {
        self.received().keys.keys().cloned().collect()
    }

    /// Checks these leases, which must be sorted; returns the reply.
    ///
    /// Like the catalog, asks again while no reply comes.
    pub async fn check_leases(&self, leases: &[i64]) -> LeaseReply {
        let before = self.received().lease_replies.len();
        let deadline = Instant::now() + SOON;
        loop {
            let command = RegistryCommand::CheckLeases(leases.to_vec());
            self.commands.send(command).await.unwrap();
            let asked = Instant::now();
            while asked.elapsed() < Duration::from_secs(5) {
                if let Some(reply) = self.received().lease_replies.get(before) {
                    return reply.clone();
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            assert!(Instant::now() < deadline, "no reply about leases: {:?}", self.state.report());
        }
    }

    /// Checks leases; returns those that are gone, once all others are known to be alive.
    pub async fn gone_of(&self, leases: &[i64]) -> Vec<i64> {
        let reply = self.check_leases(leases).await;
        assert_eq!(reply.gone.len() + reply.alive.len(), leases.len(), "{reply:?} of {leases:?}");
        reply.gone
    }

    /// Stops following, which must end soon and without a panic.
    pub async fn stop(self) {
        self.stop.cancel();
        let tasks = async { (self.follow.await, self.collect.await) };
        let ended = tokio::time::timeout(SOON, tasks).await;
        let (follow, collect) = ended.expect("following ends soon after it is stopped");
        follow.unwrap();
        collect.unwrap();
    }
}

/// A registration in progress, with its events.
pub struct Registering {
    pub events: Arc<Mutex<Vec<RegisterEvent>>>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), RegisterError>>,
}

impl Registering {
    /// Registers the [`key`] with this name and address.
    pub fn start(settings: Settings, name: &str, last: u8, ttl: Duration) -> Self {
        let registrant = Registrant {
            head: "service".into(),
            id: ServiceId {
                deployment: "default".into(),
                namespace: "default".into(),
                name: name.into(),
                version: "latest".into(),
            },
            endpoints: vec![Endpoint { host: IpAddr::from([10, 0, 0, last]).into(), port: 8000 }],
            metadata: Metadata::default(),
            ttl,
        };
        let events = Arc::new(Mutex::new(Vec::new()));
        let stop = CancellationToken::new();
        let task = tokio::spawn({
            let (events, stop) = (events.clone(), stop.clone());
            async move {
                let add = |event| events.lock().unwrap().push(event);
                register(&settings, &registrant, stop, add).await
            }
        });
        Self { events, stop, task }
    }

    /// Waits for this number of [`RegisterEvent::Registered`].
    ///
    /// The store and its followers may have the key earlier.
    pub async fn wait_for_registrations(&self, count: usize) {
        let deadline = Instant::now() + SOON;
        while self.registrations() < count {
            let events = self.events.lock().unwrap().clone();
            assert!(Instant::now() < deadline, "not registered {count} times: {events:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until the last event is a failure that contains this text.
    pub async fn wait_for_failure(&self, text: &str) {
        let deadline = Instant::now() + SOON;
        loop {
            let events = self.events.lock().unwrap().clone();
            if let Some(RegisterEvent::Failed(error)) = events.last()
                && error.contains(text)
            {
                return;
            }
            assert!(Instant::now() < deadline, "no failure with {text}: {events:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until the last event is [`RegisterEvent::Recovered`].
    pub async fn wait_for_recovery(&self) {
        let deadline = Instant::now() + SOON;
        loop {
            let events = self.events.lock().unwrap().clone();
            if events.last() == Some(&RegisterEvent::Recovered) {
                return;
            }
            assert!(Instant::now() < deadline, "not recovered: {events:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Returns the number of [`RegisterEvent::Registered`] so far.
    pub fn registrations(&self) -> usize {
        let events = self.events.lock().unwrap();
        events.iter().filter(|event| **event == RegisterEvent::Registered).count()
    }

    /// Waits for the end of the registration and returns its result.
    pub async fn result(&mut self) -> Result<(), RegisterError> {
        let ended = tokio::time::timeout(SOON, &mut self.task).await;
        ended.expect("the registration ends").unwrap()
    }

    /// Stops the registration and returns its result.
    pub async fn stop(&mut self) -> Result<(), RegisterError> {
        self.stop.cancel();
        self.result().await
    }
}

/// A password file in its own directory.
pub struct PasswordFile {
    pub directory: tempfile::TempDir,
}

impl PasswordFile {
    pub fn new(password: &str) -> Self {
        let file = Self { directory: tempfile::tempdir().unwrap() };
        file.write(password);
        file
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().join("password")
    }

    /// Replaces the file with a new one, as tools that rotate secrets do.
    pub fn write(&self, password: &str) {
        let new = self.directory.path().join("new");
        fs::write(&new, format!("{password}\n")).unwrap();
        fs::rename(new, self.path()).unwrap();
    }
}
