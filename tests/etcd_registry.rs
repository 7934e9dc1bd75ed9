//! The etcd registry against a real etcd: killed, stalled, compacted, restored, wiped, locked and flooded.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support {
    pub mod etcd;
}

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use etcd_client::PutOptions;
use svcdns::registry::etcd::{EtcdRegistry, EtcdTuning, Settings, Tls, register};
use svcdns::registry::{Credential, Feed, RegisterError, RegisterEvent, Registrant, Registry, RegistryCommand, RegistryReport, RegistryState, Secret, gsvc};
use svcdns::service::{Change, Endpoint, ListKind, Metadata, Put, Reason, RegistryId, Removal, ServiceId, Update};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use support::etcd::Etcd;

/// Longest wait for anything that should happen.
const SOON: Duration = Duration::from_secs(60);

/// Nothing happens by the clock unless a test asks for it. Some waits are a random part of their
/// setting, so this is a year: a part of an hour may be seconds.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// A busy machine may take seconds for anything; only what a test is about is given less time than this.
fn settings(etcd: &Etcd) -> Settings {
    let mut settings = Settings::new(etcd.endpoints());
    settings.tuning = EtcdTuning {
        dial_timeout: Duration::from_secs(15),
        request_timeout: Duration::from_secs(30),
        keepalive_timeout: Duration::from_secs(30),
        progress_deadline: Duration::from_secs(30),
        backoff_min: Duration::from_millis(50),
        backoff_max: Duration::from_millis(400),
        relist_interval: NEVER,
        verify_within: NEVER,
        ..EtcdTuning::default()
    };
    settings
}

fn key(name: &str, last: u8) -> String {
    format!("/service/default/default/{name}/latest/10.0.0.{last}:8000")
}

/// What a follower has been told.
#[derive(Default)]
struct Seen {
    keys: BTreeMap<String, Put>,
    /// The keys that the running list has named.
    listing: Option<BTreeSet<String>>,
    lists: Vec<ListKind>,
    ended: usize,
    connected: Vec<bool>,
    removals: Vec<(String, Removal)>,
    gone: Vec<Vec<i64>>,
    largest_batch: usize,
}

impl Seen {
    /// Applies a batch as the catalog does, and insists on the order that a registry must keep.
    fn apply(&mut self, batch: Vec<Change>) {
        self.largest_batch = self.largest_batch.max(batch.len());
        for change in batch {
            match change {
                Change::ListBegin(kind) => {
                    self.lists.push(kind);
                    self.listing = Some(BTreeSet::new());
                }
                Change::Put(put) => {
                    let key = put.key.to_string();
                    let before = self.keys.insert(key.clone(), put.clone());
                    match &mut self.listing {
                        Some(named) => assert!(named.insert(key.clone()), "{key} is listed twice"),
                        None => assert!(before.is_none_or(|before| before.revision < put.revision), "{key} went back"),
                    }
                }
                Change::Delete { key, revision, removal } => {
                    assert!(self.listing.is_none(), "a delete within a list");
                    let before = self.keys.remove(&*key);
                    assert!(before.is_some_and(|before| before.revision < revision), "{key} was not there to delete");
                    self.removals.push((key.into(), removal));
                }
                Change::ListEnd { .. } => {
                    let named = self.listing.take().expect("a list begins before it ends");
                    self.keys.retain(|key, _| named.contains(key));
                    self.ended += 1;
                }
                Change::Connected(connected) => self.connected.push(connected),
                Change::LeasesGone(leases) => self.gone.push(leases),
            }
        }
    }

    fn is_connected(&self) -> bool {
        self.connected.last() == Some(&true)
    }
}

/// A registry being followed by a collector.
struct Following {
    seen: Arc<Mutex<Seen>>,
    state: Arc<RegistryState>,
    commands: mpsc::Sender<RegistryCommand>,
    stop: CancellationToken,
    follow: JoinHandle<()>,
    collect: JoinHandle<()>,
}

impl Following {
    fn start(settings: Settings) -> Self {
        Self::start_with(settings, ListKind::Routine)
    }

    /// Starts with a first list of this kind.
    fn start_with(settings: Settings, first: ListKind) -> Self {
        let (sender, mut batches) = mpsc::channel(8);
        let (commands, commanded) = mpsc::channel(8);
        let state = Arc::new(RegistryState::new("test".parse().unwrap(), "etcd://test".to_owned()));
        let seen = Arc::new(Mutex::new(Seen::default()));
        let stop = CancellationToken::new();
        let feed = Feed::new(RegistryId::FIRST, sender, state.clone());
        let registry = EtcdRegistry::new(settings);
        let follow = tokio::spawn(registry.follow(first, feed, commanded, stop.clone()));
        let collect = tokio::spawn({
            let seen = seen.clone();
            async move {
                while let Some(update) = batches.recv().await {
                    let Update::Registry(registry, batch) = update else { panic!("{update:?}") };
                    assert_eq!(registry, RegistryId::FIRST);
                    seen.lock().unwrap().apply(batch);
                }
            }
        });
        Self { seen, state, commands, stop, follow, collect }
    }

    /// Starts, and waits for the first list.
    async fn synced(settings: Settings) -> Self {
        let following = Self::start(settings);
        following.until_listed().await;
        following
    }

    /// Waits until the first list was told, and reported.
    async fn until_listed(&self) {
        self.until("the first list", |seen| seen.ended >= 1 && seen.is_connected()).await;
        self.until_report("the first list", |report| report.synced && report.connected).await;
    }

    /// Waits until it has been told so.
    async fn until(&self, what: &str, reached: impl Fn(&Seen) -> bool) {
        let deadline = Instant::now() + SOON;
        while !reached(&self.seen()) {
            if Instant::now() > deadline || self.collect.is_finished() {
                let seen = self.seen();
                panic!(
                    "not reached: {what}; {} keys, lists {:?} ({} ended), connected {:?}, report {:?}",
                    seen.keys.len(),
                    seen.lists,
                    seen.ended,
                    seen.connected,
                    self.state.report()
                );
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn until_key(&self, key: &str) {
        self.until(key, |seen| seen.keys.contains_key(key)).await;
    }

    /// Waits until the report says so, which is written before or after the changes that it is about are told.
    async fn until_report(&self, what: &str, reached: impl Fn(&RegistryReport) -> bool) {
        self.until(what, |_| reached(&self.state.report())).await;
    }

    async fn until_error(&self, part: &str) {
        self.until_report(part, |report| report.error.as_ref().is_some_and(|error| error.contains(part))).await;
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().expect("the collector found an order that must not be")
    }

    fn keys(&self) -> Vec<String> {
        self.seen().keys.keys().cloned().collect()
    }

    /// Asks which of these leases are gone.
    async fn gone(&self, leases: &[i64]) -> Vec<i64> {
        let before = self.seen().gone.len();
        self.commands.send(RegistryCommand::CheckLeases(leases.to_vec())).await.unwrap();
        self.until("an answer about leases", |seen| seen.gone.len() > before).await;
        self.seen().gone[before].clone()
    }

    /// Stops following; it must end by itself, and soon.
    async fn end(self) {
        self.stop.cancel();
        let ended = tokio::time::timeout(SOON, async { (self.follow.await, self.collect.await) }).await;
        let (follow, collect) = ended.expect("following ends soon after it is stopped");
        follow.unwrap();
        collect.unwrap();
    }
}

/// A process that keeps a lease alive until it is killed: GoFrame's server, as far as etcd can see.
struct Keeper(Child);

impl Keeper {
    fn start(etcd: &Etcd, lease: i64) -> Self {
        Self(etcd.command(&["lease", "keep-alive", &format!("{lease:x}")]).stdout(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a future where only a closure fits.
fn block<T>(future: impl Future<Output = T>) -> T {
    tokio::task::block_in_place(|| Handle::current().block_on(future))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_heads_are_listed_and_watched() {
    let etcd = Etcd::start();
    let old = "/services/default/default/old/latest/10.0.0.9:80";
    etcd.put(&key("hello.svc", 1), r#"{"insecure":true,"protocol":"http"}"#);
    etcd.put(old, "");
    etcd.put("/serviceless/default/default/x/latest/10.0.0.1:80", "");
    let following = Following::synced(settings(&etcd)).await;
    assert_eq!(following.keys(), [key("hello.svc", 1), old.to_owned()]);
    assert_eq!(following.seen().lists, [ListKind::Routine]);

    // A second instance, a new content, and a removal, as they happen.
    etcd.put(&key("hello.svc", 2), "{}");
    following.until_key(&key("hello.svc", 2)).await;
    etcd.put(old, r#"{"weight":5}"#);
    following.until("the new metadata", |seen| seen.keys[old].content.as_ref().is_ok_and(|content| content.metadata.weight() == 5)).await;
    etcd.delete(&key("hello.svc", 1));
    etcd.delete(old);
    following.until("the removals", |seen| seen.removals.len() == 2).await;
    assert_eq!(following.keys(), [key("hello.svc", 2)]);
    assert!(following.seen().removals.iter().all(|(_, removal)| *removal == Removal::Explicit));
    let revision = etcd.revision();
    following.until_report("the last revision", |report| report.revision == revision).await;
    let report = following.state.report();
    assert!(report.connected && report.synced && report.error.is_none() && report.last_event.is_some());
    assert_eq!((report.lists, report.disconnects), (1, 0));
    following.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expiry_is_told_from_a_deletion() {
    let etcd = Etcd::start();
    let (kept, lost) = (etcd.grant(600), etcd.grant(10));
    etcd.put_leased(&key("kept", 1), "{}", kept);
    etcd.put_leased(&key("lost", 1), "{}", lost);
    let keeper = Keeper::start(&etcd, lost);
    let following = Following::synced(settings(&etcd)).await;
    assert_eq!(following.seen().keys[&key("lost", 1)].lease, lost);

    // Deregistered as GoFrame does it: the lease goes on. Killed: it does not.
    etcd.delete(&key("kept", 1));
    drop(keeper);
    following.until("both removals", |seen| seen.removals.len() == 2).await;
    let expected = [(key("kept", 1), Removal::Lease(kept)), (key("lost", 1), Removal::Lease(lost))];
    assert_eq!(following.seen().removals, expected);
    assert_eq!(following.gone(&[kept, lost]).await, [lost]);
    assert_eq!(following.gone(&[kept]).await, [0_i64; 0]);
    following.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_loses_nothing() {
    let mut etcd = Etcd::start();
    etcd.put(&key("before", 1), "{}");
    let following = Following::synced(settings(&etcd)).await;
    etcd.kill();
    following.until("the disconnect", |seen| !seen.is_connected()).await;
    // As long as outages last that restart a member.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(following.keys(), [key("before", 1)]);
    let report = following.state.report();
    assert!(!report.connected && report.synced && report.error.is_some(), "{report:?}");
    etcd.start_all();
    etcd.put(&key("after", 1), "{}");
    following.until("the key after the outage", |seen| seen.keys.contains_key(&key("after", 1)) && seen.is_connected()).await;

    // What happened out of our sight is caught up on, both heads.
    let old = "/services/default/default/meanwhile/latest/10.0.0.1:80";
    etcd.elsewhere(|etcd| {
        etcd.put(&key("meanwhile", 1), "{}");
        etcd.put(old, "{}");
        etcd.delete(&key("before", 1));
    });
    etcd.start_all();
    let expected = [key("after", 1), key("meanwhile", 1), old.to_owned()];
    following.until("the events of the outage", |seen| seen.keys.keys().eq(&expected) && seen.is_connected()).await;
    assert_eq!(following.seen().lists, [ListKind::Routine], "resumed, not listed again");
    following.until_report("the end of the outage", |report| report.connected && report.error.is_none()).await;
    assert_eq!(following.state.report().disconnects, 2);
    following.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compaction_during_an_outage_is_listed_over() {
    let mut etcd = Etcd::start();
    etcd.put(&key("stays", 1), "{}");
    etcd.put(&key("goes", 1), "{}");
    let following = Following::synced(settings(&etcd)).await;
    etcd.elsewhere(|etcd| {
        etcd.delete(&key("goes", 1));
        for count in 0..5 {
            etcd.put(&key("comes", count), "{}");
        }
        etcd.compact(etcd.revision());
    });
    etcd.start_all();
    following.until("the second list", |seen| seen.ended == 2 && seen.is_connected()).await;
    assert_eq!(following.seen().lists, [ListKind::Routine, ListKind::Reconnect]);
    assert_eq!(following.keys().len(), 6);
    etcd.put(&key("later", 1), "{}");
    following.until_key(&key("later", 1)).await;
    following.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_and_a_wiped_store_are_noticed() {
    let mut etcd = Etcd::start();
    let folder = tempfile::tempdir().unwrap();
    let snapshot = folder.path().join("snapshot");
    etcd.put(&key("old", 1), "{}");
    etcd.save(&snapshot);
    let following = Following::synced(settings(&etcd)).await;
    for count in 0..5 {
        etcd.put(&key("new", count), "{}");
    }
    following.until("the new keys", |seen| seen.keys.len() == 6).await;

    etcd.restore(&snapshot);
    etcd.start_all();
    following.until("the list of the restored store", |seen| seen.ended == 2).await;
    assert_eq!(following.seen().lists, [ListKind::Routine, ListKind::Restored]);
    assert_eq!(following.keys(), [key("old", 1)]);
    etcd.put(&key("after", 1), "{}");
    following.until_key(&key("after", 1)).await;

    etcd.wipe();
    etcd.start_all();
    following.until("the list of the wiped store", |seen| seen.ended == 3).await;
    assert_eq!(following.seen().lists[2], ListKind::Restored);
    assert_eq!(following.keys(), Vec::<String>::new());
    etcd.put(&key("again", 1), "{}");
    following.until_key(&key("again", 1)).await;
    following.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_restored_and_grown_past_us_is_healed_by_the_verifying_list() {
    let mut etcd = Etcd::start();
    let folder = tempfile::tempdir().unwrap();
    let snapshot = folder.path().join("snapshot");
    etcd.save(&snapshot);
    for count in 0..3 {
        etcd.put(&key("lost", count), "{}");
    }
    let mut settings = settings(&etcd);
    settings.tuning.verify_within = Duration::from_secs(2);
    let following = Following::synced(settings).await;
    let ours = following.state.report().revision;
    etcd.restore(&snapshot);
    etcd.elsewhere(|etcd| {
        for count in 0..8 {
            etcd.put(&key("found", count), "{}");
        }
        assert!(etcd.revision() > ours);
    });
    etcd.start_all();
    following.until("the verifying list", |seen| seen.ended == 2).await;
    assert_eq!(following.seen().lists, [ListKind::Routine, ListKind::Reconnect]);
    assert_eq!(following.keys(), (0..8).map(|count| key("found", count)).collect::<Vec<_>>());
    following.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_member_among_several_is_passed_over() {
    let mut etcd = Etcd::builder().members(3).start();
    etcd.kill_member(0);
    let following = Following::synced(settings(&etcd)).await;
    // Whichever member it follows, it is one of those killed in turn; two of three always live.
    for (round, member) in [(1, 1), (2, 2), (3, 0)] {
        let last = if member == 0 { 2 } else { member - 1 };
        etcd.start_member(last);
        etcd.kill_member(member);
        let put = key("round", round);
        let deadline = Instant::now() + SOON;
        while let Err(error) = etcd.try_ctl(&["put", &put, "{}"]) {
            assert!(Instant::now() < deadline, "{error}");
        }
        following.until_key(&put).await;
    }
    assert_eq!(following.seen().lists, [ListKind::Routine]);
    following.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_without_a_leader_does_not_pass_for_a_quiet_one() {
    let mut etcd = Etcd::builder().members(3).start();
    etcd.put(&key("hello", 1), "{}");
    let mut settings = settings(&etcd);
    settings.endpoints.truncate(1);
    settings.tuning.request_timeout = Duration::from_secs(5);
    let following = Following::synced(settings).await;
    etcd.kill_member(1);
    etcd.kill_member(2);
    following.until("the loss of the leader", |seen| !seen.is_connected()).await;
    assert_eq!(following.keys(), [key("hello", 1)]);
    etcd.start_all();
    following.until("the leader", Seen::is_connected).await;
    etcd.put(&key("hello", 2), "{}");
    following.until_key(&key("hello", 2)).await;
    following.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_member_is_noticed_by_keepalive() {
    let etcd = Etcd::start();
    let mut settings = settings(&etcd);
    settings.tuning.keepalive_interval = Duration::from_secs(5);
    settings.tuning.keepalive_timeout = Duration::from_secs(5);
    settings.tuning.request_timeout = Duration::from_secs(5);
    notice_a_stall(&etcd, settings).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_member_is_noticed_by_its_silence() {
    let etcd = Etcd::start();
    let mut settings = settings(&etcd);
    settings.tuning.keepalive_interval = NEVER;
    settings.tuning.progress_interval = Duration::from_secs(1);
    settings.tuning.progress_deadline = Duration::from_secs(8);
    settings.tuning.request_timeout = Duration::from_secs(5);
    let following = Following::synced(settings.clone()).await;
    // A quiet member answers, and is not taken for a stalled one.
    let before = following.state.report().last_event;
    following
        .until("two signs of life", |_| {
            let since = |time| following.state.report().last_event > time;
            since(before.map(|before| before + Duration::from_secs(2)))
        })
        .await;
    assert_eq!(following.seen().connected, [true]);
    following.end().await;
    notice_a_stall(&etcd, settings).await;
}

async fn notice_a_stall(etcd: &Etcd, settings: Settings) {
    let following = Following::synced(settings).await;
    etcd.stall(0);
    following.until("the stall", |seen| !seen.is_connected()).await;
    etcd.resume(0);
    following.until("the end of the stall", Seen::is_connected).await;
    etcd.put(&key("after", 1), "{}");
    following.until_key(&key("after", 1)).await;
    following.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_comes_later_is_found() {
    let mut etcd = Etcd::builder().stopped();
    let following = Following::start(settings(&etcd));
    following.until_error("Connection refused").await;
    assert!(following.seen().lists.is_empty() && following.seen().connected.is_empty());
    etcd.start_all();
    following.until_listed().await;
    assert_eq!(following.state.report().error, None);
    following.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_is_renewed() {
    let mut etcd = Etcd::builder().argument("--auth-token-ttl=3").start();
    etcd.put(&key("hello", 1), "{}");
    etcd.add_reader("reader", "reader-secret", "/service");
    let mut open = settings(&etcd);
    open.username = Some("reader".to_owned());
    open.password = Some(Credential::Given(Secret::from("reader-secret")));
    // A user is no hindrance where authentication is off.
    Following::synced(open.clone()).await.end().await;

    etcd.enable_auth();
    let mut wrong = open.clone();
    wrong.password = Some(Credential::Given(Secret::from("wrong-secret")));
    let refused = Following::start(wrong);
    refused.until_error("invalid user ID or password").await;
    assert!(refused.seen().lists.is_empty());
    assert!(!refused.state.report().error.unwrap().contains("wrong-secret"));
    refused.end().await;

    // The token lapses between two checks, and is gone with a restart.
    open.tuning.relist_interval = Duration::from_secs(5);
    let following = Following::synced(open).await;
    following.until("a list with a new token", |seen| seen.ended >= 2).await;
    assert!(following.seen().connected.iter().all(|connected| *connected), "one connection did both");
    etcd.kill();
    etcd.start_all();
    following.until("the disconnect", |seen| seen.connected.contains(&false) && seen.is_connected()).await;
    etcd.put(&key("hello", 2), "{}");
    following.until_key(&key("hello", 2)).await;
    following.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_permission_never_looks_like_an_empty_store() {
    let mut etcd = Etcd::start();
    etcd.put(&key("hello", 1), "{}");
    etcd.add_reader("reader", "reader-secret", "/service/");
    etcd.enable_auth();
    let mut settings = settings(&etcd);
    settings.username = Some("reader".to_owned());
    settings.password = Some(Credential::Given(Secret::from("reader-secret")));
    // Long enough that the role loses its permission between two lists, not during one.
    settings.tuning.relist_interval = Duration::from_secs(20);
    settings.tuning.verify_within = Duration::from_millis(500);
    let following = Following::start(settings);
    following.until_error("cannot read /services/: permission denied").await;
    assert!(following.seen().lists.is_empty() && following.seen().connected.is_empty());

    etcd.ctl(&["role", "grant-permission", "reader", "--prefix=true", "read", "/services/"]);
    following.until_listed().await;
    // The watch is opened after the list: only an event shows that it runs.
    etcd.put(&key("hello", 2), "{}");
    following.until("an event after one list", |seen| seen.ended == 1 && seen.keys.contains_key(&key("hello", 2))).await;
    etcd.ctl(&["role", "revoke-permission", "reader", "--prefix=true", "/service/"]);
    following.until_error("cannot read /service/: permission denied").await;
    let report = following.state.report();
    assert_eq!((report.connected, report.disconnects), (true, 0), "the watch goes on: {report:?}");
    let keys = [key("hello", 1), key("hello", 2)];
    assert_eq!(following.keys(), keys);

    // Nor does it after a reconnect, where the watch is refused, too.
    etcd.kill();
    etcd.start_all();
    following.until("the disconnect", |seen| !seen.is_connected()).await;
    following.until_error("permission denied").await;
    assert_eq!(following.keys(), keys);
    following.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_read_at_every_connect() {
    let mut etcd = Etcd::builder().tls().start();
    let files = etcd.certificates();
    let tls = Tls {
        ca_file: Some(files.ca()),
        cert_file: Some(files.client()),
        key_file: Some(files.client_key()),
        server_name: Some("etcd.test".to_owned()),
    };
    let mut settings = settings(&etcd);
    settings.tls = Some(Tls { cert_file: None, key_file: None, ..tls.clone() });
    let refused = Following::start(settings.clone());
    refused.until("a refusal", |_| refused.state.report().error.is_some()).await;
    assert!(refused.seen().lists.is_empty());
    refused.end().await;

    settings.tls = Some(tls);
    let following = Following::synced(settings).await;
    etcd.put(&key("hello", 1), "{}");
    following.until_key(&key("hello", 1)).await;
    etcd.kill();
    etcd.certificates().replace();
    etcd.start_all();
    etcd.put(&key("hello", 2), "{}");
    following.until_key(&key("hello", 2)).await;

    // Renewed again, one file after the other: until all are there the last known keys stay.
    etcd.kill();
    let file = etcd.certificates().client_key();
    let before = fs::read(&file).unwrap();
    etcd.certificates().replace();
    let renewed = fs::read(&file).unwrap();
    fs::write(&file, before).unwrap();
    etcd.start_all();
    following.until_error("KeyMismatch").await;
    fs::remove_file(&file).unwrap();
    following.until_error(&format!("cannot read {}: No such file", file.display())).await;
    assert_eq!(following.keys(), [key("hello", 1), key("hello", 2)]);
    fs::write(&file, renewed).unwrap();
    etcd.put(&key("hello", 3), "{}");
    following.until_key(&key("hello", 3)).await;
    following.end().await;
}

/// A file with a password, in a folder of its own.
struct PasswordFile {
    folder: tempfile::TempDir,
}

impl PasswordFile {
    fn new(password: &str) -> Self {
        let file = Self { folder: tempfile::tempdir().unwrap() };
        file.write(password);
        file
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("password")
    }

    /// Puts another file in its place, as tools that rotate a secret do.
    fn write(&self, password: &str) {
        let new = self.folder.path().join("new");
        fs::write(&new, format!("{password}\n")).unwrap();
        fs::rename(new, self.path()).unwrap();
    }
}

/// Settings for this user, with the password in a file.
fn settings_of(etcd: &Etcd, user: &str, password_file: &Path) -> Settings {
    let mut settings = settings(etcd);
    settings.username = Some(user.to_owned());
    settings.password = Some(Credential::File(password_file.to_owned()));
    settings
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_that_changes_in_etcd_first_interrupts_nothing() {
    let mut etcd = Etcd::start();
    etcd.put(&key("before", 1), "{}");
    etcd.add_reader("reader", "old-secret", "/service");
    etcd.enable_auth();
    let file = PasswordFile::new("old-secret");
    let mut settings = settings_of(&etcd, "reader", &file.path());
    settings.tuning.relist_interval = Duration::from_secs(2);
    let following = Following::start(settings);
    // The watch logs in after the first list, and the next list is made beside it.
    following.until("the second list", |seen| seen.ended == 2).await;

    etcd.set_password("reader", "new-secret");
    following.until_error("cannot log in: etcdserver: authentication failed, invalid user ID or password").await;
    // The watch began with the old password, and goes on.
    etcd.put(&key("meanwhile", 1), "{}");
    following.until_key(&key("meanwhile", 1)).await;
    let lease = etcd.grant(600);
    assert_eq!(following.gone(&[lease, 1]).await, [1], "leases can be asked for without a login");

    fs::remove_file(file.path()).unwrap();
    following.until_error(&format!("cannot read {}: No such file", file.path().display())).await;
    file.write("new-secret");
    let lists = following.seen().ended;
    following.until("a list with the new password", |seen| seen.ended > lists).await;
    following.until_report("the end of the error", |report| report.error.is_none()).await;
    etcd.put(&key("after", 1), "{}");
    following.until_key(&key("after", 1)).await;
    let report = following.state.report();
    assert_eq!((report.connected, report.disconnects), (true, 0), "one connection did all: {report:?}");
    assert!(following.seen().removals.is_empty());
    following.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_that_changes_in_its_file_first_is_used_once_etcd_knows_it() {
    let mut etcd = Etcd::start();
    etcd.put(&key("before", 1), "{}");
    etcd.add_reader("reader", "old-secret", "/service");
    etcd.enable_auth();
    let file = PasswordFile::new("old-secret");
    let following = Following::synced(settings_of(&etcd, "reader", &file.path())).await;
    // The watch logs in after the list: only an event shows that it runs.
    etcd.put(&key("watched", 1), "{}");
    following.until_key(&key("watched", 1)).await;

    file.write("new-secret");
    etcd.put(&key("meanwhile", 1), "{}");
    following.until_key(&key("meanwhile", 1)).await;
    // A lost connection cannot be replaced as long as the two differ; what is known stays.
    etcd.kill();
    etcd.start_all();
    following.until_error("cannot log in: etcdserver: authentication failed").await;
    assert_eq!(following.keys(), [key("before", 1), key("meanwhile", 1), key("watched", 1)]);
    let report = following.state.report();
    assert!(!report.connected && report.synced, "{report:?}");

    etcd.set_password("reader", "new-secret");
    etcd.put(&key("after", 1), "{}");
    following.until_key(&key("after", 1)).await;
    following.until_report("the end of the error", |report| report.connected && report.error.is_none()).await;
    assert_eq!(following.seen().lists, [ListKind::Routine], "resumed, not listed again");
    following.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_file_that_cannot_be_used_is_named_until_it_can() {
    let mut etcd = Etcd::start();
    etcd.put(&key("hello", 1), "{}");
    etcd.add_reader("reader", "reader-secret", "/service");
    etcd.enable_auth();
    let file = PasswordFile::new("");
    let path = file.path();
    let following = Following::start(settings_of(&etcd, "reader", &path));
    let cannot_read = |why: &str| format!("cannot read {}: {why}", path.display());
    following.until_error(&cannot_read("it is empty")).await;
    fs::write(&path, b"reader\xff-secret").unwrap();
    following.until_error(&cannot_read("it is not UTF-8 text")).await;
    fs::write(&path, "x".repeat(70_000)).unwrap();
    following.until_error(&cannot_read("it has more than 65536 bytes (a fixed limit)")).await;
    fs::remove_file(&path).unwrap();
    following.until_error(&cannot_read("No such file or directory")).await;
    fs::create_dir(&path).unwrap();
    following.until_error(&cannot_read("it is not a regular file")).await;
    fs::remove_dir(&path).unwrap();
    assert!(following.seen().lists.is_empty() && following.seen().connected.is_empty());
    // A mounted secret is a link to a file in a folder that is exchanged as a whole.
    let mounted = file.folder.path().join("mounted");
    fs::create_dir(&mounted).unwrap();
    fs::write(mounted.join("password"), "reader-secret\r\n\n").unwrap();
    std::os::unix::fs::symlink("mounted/password", &path).unwrap();
    following.until_listed().await;
    following.until_key(&key("hello", 1)).await;
    following.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_shows_in_no_failure_even_where_a_call_has_the_same_word() {
    let mut etcd = Etcd::start();
    etcd.add_reader("reader", "services", "/service/");
    etcd.enable_auth();
    let file = PasswordFile::new("services");
    let following = Following::start(settings_of(&etcd, "reader", &file.path()));
    following.until_error("cannot read /***/: permission denied").await;
    following.end().await;

    let registering = Registering::start(settings_of(&etcd, "reader", &file.path()), "services", 1, Duration::from_secs(60));
    let error = tokio::time::timeout(SOON, registering.task).await.expect("a refusal").unwrap().unwrap_err();
    let RegisterError::Refused { reason, .. } = &error else { panic!("{error}") };
    assert!(reason.contains("permission denied") && !reason.contains("services"), "{reason}");
}

/// With JWT every change to any user ends all logins: the token holds the revision of the users.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_to_another_user_is_no_outage() {
    let folder = tempfile::tempdir().unwrap();
    let signing_key = folder.path().join("signing-key");
    fs::write(&signing_key, "a key of this test").unwrap();
    let jwt = format!("--auth-token=jwt,sign-method=HS256,priv-key={}", signing_key.display());
    let mut etcd = Etcd::builder().argument(&jwt).start();
    etcd.add_writer("writer", "old-secret", "/service");
    etcd.enable_auth();
    let file = PasswordFile::new("old-secret");
    let mut settings = settings_of(&etcd, "writer", &file.path());
    settings.tuning.relist_interval = Duration::from_secs(1);
    let following = Following::synced(settings.clone()).await;
    let mine = Registering::start(settings, "mine", 1, Duration::from_secs(9));
    following.until_key(&key("mine", 1)).await;
    // The watch logs in after the first list, and the next list is made beside it.
    following.until("the second list", |seen| seen.ended >= 2).await;

    etcd.ctl(&["user", "add", "another:secret"]);
    let lists = following.seen().ended;
    // Of two lists, the second at least began after the change.
    following.until("lists after the change", |seen| seen.ended >= lists + 2).await;
    etcd.delete(&key("mine", 1));
    mine.until_registered(2).await;
    following.until("the key again", |seen| seen.keys.contains_key(&key("mine", 1)) && seen.listing.is_none()).await;

    file.write("new-secret");
    etcd.set_password("writer", "new-secret");
    let lists = following.seen().ended;
    following.until("lists with the new password", |seen| seen.ended >= lists + 2).await;
    assert_eq!(following.state.report().disconnects, 0);
    mine.stop.cancel();
    tokio::time::timeout(SOON, mine.task).await.expect("the registrant ends").unwrap().unwrap();
    assert_eq!(etcd.value(&key("mine", 1)), None);
    following.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_and_catch_ups_may_be_large() {
    let mut etcd = Etcd::start();
    let many = |name: &'static str| {
        let value = format!(r#"{{"filler":"{}"}}"#, "x".repeat(600));
        (0..10_000)
            .map(move |count| (format!("/service/default/default/{name}/latest/10.0.{}.{}:80", count / 250, count % 250), value.clone()))
    };
    etcd.put_many(many("listed")).await;
    let mut settings = settings(&etcd);
    settings.tuning.page_size = 9_000;
    settings.tuning.batch_size = 9_000;
    let following = Following::synced(settings).await;
    assert_eq!(following.keys().len(), 10_000);
    assert_eq!(following.seen().largest_batch, 9_000, "one batch a page");
    // 6 MB in 100 revisions: etcd sends them as one message.
    etcd.elsewhere(|etcd| block(etcd.put_many(many("caught-up"))));
    etcd.start_all();
    following.until("the catch-up", |seen| seen.keys.len() == 20_000).await;
    assert_eq!(following.seen().lists, [ListKind::Routine], "caught up, not listed again");
    following.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn junk_hurts_nothing_but_itself() {
    let etcd = Etcd::start();
    let mut client = etcd.client().await;
    let good: Vec<_> = (1..4).map(|count| key("good", count)).collect();
    let (nested, large) = (vec![b'['; 20_000], vec![b'x'; 100_000]);
    let junk: [(&[u8], &[u8], Reason); 6] = [
        (b"/service/short", b"{}", gsvc::TOO_FEW_SEGMENTS),
        (b"/service/default/default/a/b/latest/10.0.0.1:80", b"{}", gsvc::TOO_MANY_SEGMENTS),
        (b"/service/default/default/good/latest/10.0.0.2:8001", b"not JSON", gsvc::VALUE_NOT_JSON),
        (b"/service/default/default/good\xff\xfe/latest/10.0.0.1:80", b"{}", gsvc::KEY_NOT_TEXT),
        (b"/service/default/default/deep/latest/10.0.0.1:80", &nested, gsvc::VALUE_NOT_JSON),
        (b"/service/default/default/zzz/latest/10.0.0.1:80", &large, gsvc::VALUE_TOO_LONG),
    ];
    client.put(&*good[0], "{}", None).await.unwrap();
    for (key, value, _) in &junk[..3] {
        client.put(*key, *value, None).await.unwrap();
    }
    client.put(&*good[1], "{}", None).await.unwrap();
    let following = Following::synced(settings(&etcd)).await;
    for (key, value, _) in &junk[3..] {
        client.put(*key, *value, None).await.unwrap();
    }
    client.put(vec![b'/'; 5000], "{}", None).await.unwrap();
    client.put(["/service/".as_bytes(), &[b'k'; 5000]].concat(), "{}", None).await.unwrap();
    client.put(&*good[2], "{}", Some(PutOptions::new())).await.unwrap();
    following.until_key(&good[2]).await;
    let keys = following.seen().keys.clone();
    assert!(good.iter().all(|key| keys[key].content.is_ok()));
    let mut reasons: Vec<_> = keys.values().filter_map(|put| put.content.as_ref().err()).map(|rejected| rejected.reason).collect();
    let mut expected: Vec<_> = junk.iter().map(|(.., reason)| *reason).chain([gsvc::KEY_TOO_LONG]).collect();
    reasons.sort();
    expected.sort();
    assert_eq!(reasons, expected);
    // A key that is no text can be taken away, too.
    client.delete(junk[3].0, None).await.unwrap();
    following.until("the removal", |seen| seen.removals.len() == 1).await;
    following.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_more_than_64_mib_is_read_in_parts() {
    let etcd = Etcd::start();
    let mut client = etcd.client().await;
    for count in 0..70 {
        client.put(format!("/service/big/{count}"), vec![b'x'; 1024 * 1024], None).await.unwrap();
    }
    client.put(key("good", 1), "{}", None).await.unwrap();
    let following = Following::synced(settings(&etcd)).await;
    assert_eq!(following.keys().len(), 71);
    assert!(following.seen().largest_batch < 64, "no page of more than 64 MiB");
    assert!(following.seen().keys[&key("good", 1)].content.is_ok());
    following.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn routine_lists_lose_and_reorder_nothing() {
    let etcd = Etcd::start();
    let mut settings = settings(&etcd);
    settings.tuning.relist_interval = Duration::from_millis(30);
    settings.tuning.page_size = 7;
    let following = Following::synced(settings).await;
    let mut client = etcd.client().await;
    for round in 0..1500_u32 {
        let key = key("busy", u8::try_from(round * 7 % 40).unwrap());
        if round % 3 == 0 {
            client.delete(key, None).await.unwrap();
        } else {
            client.put(key, format!(r#"{{"weight":{round}}}"#), None).await.unwrap();
        }
    }
    client.put(key("last", 1), "{}", None).await.unwrap();
    // The list that names the last key may still hold one that is gone; at its end, or without one, we are where the store is.
    following.until("the last key", |seen| seen.keys.contains_key(&key("last", 1)) && seen.listing.is_none()).await;
    let store = client.get("/service/", Some(etcd_client::GetOptions::new().with_prefix())).await.unwrap();
    let store: Vec<_> = store.kvs().iter().map(|kv| (kv.key_str().unwrap().to_owned(), kv.mod_revision())).collect();
    let ours: Vec<_> = following.seen().keys.iter().map(|(key, put)| (key.clone(), i64::try_from(put.revision).unwrap())).collect();
    assert_eq!(ours, store);
    let lists = following.seen().lists.clone();
    assert!(lists.len() > 5, "lists beside the events: {}", lists.len());
    assert!(lists.iter().all(|kind| *kind == ListKind::Routine));
    assert!(!following.seen().removals.is_empty());
    following.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_list_is_of_the_kind_asked_for() {
    let etcd = Etcd::start();
    let following = Following::start_with(settings(&etcd), ListKind::Reconnect);
    following.until_listed().await;
    assert_eq!(following.seen().lists, [ListKind::Reconnect]);
    following.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn following_ends_when_the_follower_goes() {
    let etcd = Etcd::start();
    let following = Following::synced(settings(&etcd)).await;
    following.collect.abort();
    assert!(following.collect.await.unwrap_err().is_cancelled());
    etcd.put(&key("hello", 1), "{}");
    tokio::time::timeout(SOON, following.follow).await.expect("following ends").unwrap();
}

/// A registration under way, with what it said.
struct Registering {
    events: Arc<Mutex<Vec<RegisterEvent>>>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), RegisterError>>,
}

impl Registering {
    /// Registers what stands at [`key`] of the same name and address.
    fn start(settings: Settings, name: &str, last: u8, ttl: Duration) -> Self {
        let registrant = Registrant {
            head: "service".into(),
            id: ServiceId { deployment: "default".into(), namespace: "default".into(), name: name.into(), version: "latest".into() },
            endpoints: vec![Endpoint { host: std::net::IpAddr::from([10, 0, 0, last]).into(), port: 8000 }],
            metadata: Metadata::default(),
            ttl,
        };
        let events = Arc::new(Mutex::new(Vec::new()));
        let stop = CancellationToken::new();
        let task = tokio::spawn({
            let (events, stop) = (events.clone(), stop.clone());
            async move { register(&settings, &registrant, stop, |event| events.lock().unwrap().push(event)).await }
        });
        Self { events, stop, task }
    }

    /// Waits until it has said so often that the key stands: the store and its followers may know earlier.
    async fn until_registered(&self, times: usize) {
        let deadline = Instant::now() + SOON;
        while self.registered() < times {
            assert!(Instant::now() < deadline, "not registered {times} times: {:?}", self.events.lock().unwrap());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until the last that it said is a failure with this text in it.
    async fn until_failed(&self, part: &str) {
        let deadline = Instant::now() + SOON;
        let failed = || matches!(self.events.lock().unwrap().last(), Some(RegisterEvent::Failed(text)) if text.contains(part));
        while !failed() {
            assert!(Instant::now() < deadline, "did not fail with {part}: {:?}", self.events.lock().unwrap());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn registered(&self) -> usize {
        self.events.lock().unwrap().iter().filter(|event| **event == RegisterEvent::Registered).count()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registration_lives_as_long_as_its_registrant() {
    let mut etcd = Etcd::start();
    let following = Following::synced(settings(&etcd)).await;
    let key = key("mine", 1);
    // A machine that stops for some seconds between two renewals must not end it.
    let ttl = Duration::from_secs(9);
    let mine = Registering::start(settings(&etcd), "mine", 1, ttl);
    following.until_key(&key).await;
    mine.until_registered(1).await;
    let lease = following.seen().keys[&key].lease;
    assert_ne!(lease, 0);
    // Longer than the lease lives by itself.
    tokio::time::sleep(ttl + Duration::from_secs(2)).await;
    assert!(following.seen().removals.is_empty());

    // Deleted by hand: put again, on the same lease.
    etcd.delete(&key);
    following.until("the deletion", |seen| seen.removals.len() == 1).await;
    following.until_key(&key).await;
    mine.until_registered(2).await;
    assert_eq!(following.seen().keys[&key].lease, lease);

    // An outage shorter than the lease, since leases begin anew: the same lease goes on.
    etcd.kill();
    etcd.start_all();
    following.until("the reconnect", |seen| seen.connected.contains(&false) && seen.is_connected()).await;
    tokio::time::sleep(ttl + Duration::from_secs(2)).await;
    assert_eq!(mine.registered(), 2);
    assert_eq!(following.keys(), [key.as_str()]);
    assert_eq!(following.seen().keys[&key].lease, lease);

    // A wipe: another lease.
    etcd.wipe();
    etcd.start_all();
    following.until("the key in the new store", |seen| seen.keys.get(&key).is_some_and(|put| put.lease != lease)).await;
    mine.until_registered(3).await;
    assert_eq!(mine.registered(), 3);
    let again = following.seen().keys[&key].lease;

    // Removed in the open: the lease still exists.
    let removed = following.seen().removals.len();
    mine.stop.cancel();
    tokio::time::timeout(SOON, mine.task).await.expect("the registrant ends").unwrap().unwrap();
    following.until("the removal", |seen| seen.removals.len() == removed + 1).await;
    assert_eq!(following.seen().removals[removed], (key, Removal::Lease(again)));
    assert_eq!(following.gone(&[again]).await, [0_i64; 0]);
    assert_eq!(mine.events.lock().unwrap().last(), Some(&RegisterEvent::Removed));
    following.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registration_says_what_stands_in_its_way() {
    let mut etcd = Etcd::start();
    etcd.add_reader("reader", "reader-secret", "/service");
    etcd.enable_auth();
    let mut reader = settings(&etcd);
    reader.username = Some("reader".to_owned());
    reader.password = Some(Credential::Given(Secret::from("reader-secret")));
    // No lease ends before its registrant does.
    let ttl = Duration::from_secs(60);
    let refused = Registering::start(reader, "mine", 1, ttl);
    let error = tokio::time::timeout(SOON, refused.task).await.expect("a refusal").unwrap().unwrap_err();
    assert!(matches!(&error, RegisterError::Refused { reason, .. } if reason.contains("permission denied")), "{error}");

    // Another's key is not taken away at the end.
    let mut root = settings(&etcd);
    root.username = Some("root".to_owned());
    root.password = Some(Credential::Given(Secret::from("root-secret")));
    let mine = Registering::start(root.clone(), "mine", 2, ttl);
    let following = Following::synced(root.clone()).await;
    following.until_key(&key("mine", 2)).await;
    etcd.put(&key("mine", 2), r#"{"of":"another"}"#);
    mine.stop.cancel();
    tokio::time::timeout(SOON, mine.task).await.expect("the registrant ends").unwrap().unwrap();
    assert!(etcd.value(&key("mine", 2)).is_some_and(|value| value.contains("another")));

    // At the end of a store that is away, it says how long the key remains.
    let left = Registering::start(root, "left", 1, ttl);
    following.until_key(&key("left", 1)).await;
    etcd.kill();
    left.stop.cancel();
    let error = tokio::time::timeout(SOON, left.task).await.expect("the registrant ends").unwrap().unwrap_err();
    assert!(matches!(error, RegisterError::NotRemoved { seconds: 60, .. }), "{error}");
    following.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registration_survives_a_change_of_its_password() {
    let mut etcd = Etcd::start();
    etcd.add_writer("writer", "old-secret", "/service");
    etcd.enable_auth();
    let file = PasswordFile::new("old-secret");
    let settings = settings_of(&etcd, "writer", &file.path());
    let following = Following::synced(settings.clone()).await;
    let ttl = Duration::from_secs(9);
    let mine = Registering::start(settings.clone(), "mine", 1, ttl);
    let key = key("mine", 1);
    following.until_key(&key).await;
    mine.until_registered(1).await;
    let lease = following.seen().keys[&key].lease;

    // In etcd first, and for longer than the lease lives by itself.
    etcd.set_password("writer", "new-secret");
    mine.until_failed("cannot log in: etcdserver: authentication failed").await;
    tokio::time::sleep(ttl + Duration::from_secs(2)).await;
    assert!(following.seen().removals.is_empty());
    // What needs a login waits for the file: here, to put the key again.
    etcd.delete(&key);
    file.write("new-secret");
    mine.until_registered(2).await;
    following.until_key(&key).await;
    assert_eq!(following.seen().keys[&key].lease, lease);

    // In the file first, and the connection is lost meanwhile.
    file.write("newer-secret");
    etcd.kill();
    etcd.start_all();
    mine.until_failed("cannot log in: etcdserver: authentication failed").await;
    etcd.set_password("writer", "newer-secret");
    following.until("the reconnect", |seen| seen.connected.contains(&false) && seen.is_connected()).await;
    tokio::time::sleep(ttl + Duration::from_secs(2)).await;
    assert_eq!(following.keys(), [key.as_str()]);
    assert_eq!(following.seen().keys[&key].lease, lease);

    // The end, too, is with the password as it is then.
    etcd.set_password("writer", "newest-secret");
    file.write("newest-secret");
    mine.stop.cancel();
    tokio::time::timeout(SOON, mine.task).await.expect("the registrant ends").unwrap().unwrap();
    assert_eq!(etcd.value(&key), None);
    for event in &*mine.events.lock().unwrap() {
        assert!(!format!("{event:?}").contains("-secret"), "{event:?}");
    }

    // A first attempt with the wrong password, or none, is refused.
    for (password, said) in [("wrong-secret", "authentication failed"), ("", "it is empty")] {
        file.write(password);
        let refused = Registering::start(settings.clone(), "mine", 2, ttl);
        let error = tokio::time::timeout(SOON, refused.task).await.expect("a refusal").unwrap().unwrap_err();
        assert!(matches!(&error, RegisterError::Refused { reason, .. } if reason.contains(said)), "{error}");
    }
    following.end().await;
}
