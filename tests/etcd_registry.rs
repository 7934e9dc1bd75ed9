//! The etcd registry against a real etcd.
//!
//! The etcd is killed, stalled, compacted, restored, wiped and filled with large or invalid data.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support {
    pub mod etcd;
    pub mod following;
}

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use etcd_client::{GetOptions, PutOptions};
use svcdns::registry::etcd::Settings;
use svcdns::registry::{RegisterError, RegisterEvent, gsvc};
use svcdns::service::{ListKind, Reason};
use tokio::runtime::Handle;

use support::etcd::Etcd;
use support::following::{
    Following, NEVER, Received, Registering, SOON, key, settings, settings_with_password,
};

/// A process that keeps a lease alive until it is killed, as GoFrame's servers do.
struct LeaseKeepAlive(Child);

impl LeaseKeepAlive {
    fn start(etcd: &Etcd, lease: i64) -> Self {
        let mut command = etcd.command(&["lease", "keep-alive", &format!("{lease:x}")]);
        Self(command.stdout(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for LeaseKeepAlive {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a future in a closure that cannot be async.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::task::block_in_place(|| Handle::current().block_on(future))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_heads_are_listed_and_watched() {
    let etcd = Etcd::start();
    let old = "/services/default/default/old/latest/10.0.0.9:80";
    etcd.put(&key("hello.svc", 1), r#"{"insecure":true,"protocol":"http"}"#);
    etcd.put(old, "");
    etcd.put("/serviceless/default/default/x/latest/10.0.0.1:80", "");
    let following = Following::start_synced(settings(&etcd)).await;
    assert_eq!(following.keys(), [key("hello.svc", 1), old.to_owned()]);
    assert_eq!(following.received().lists, [ListKind::Routine]);

    // A second instance, new metadata and removals.
    etcd.put(&key("hello.svc", 2), "{}");
    following.wait_for_key(&key("hello.svc", 2)).await;
    etcd.put(old, r#"{"weight":5}"#);
    following
        .wait_until("the new metadata", |received| {
            let content = received.keys[old].content.as_ref();
            content.is_ok_and(|content| content.metadata.weight() == 5)
        })
        .await;
    etcd.delete(&key("hello.svc", 1));
    etcd.delete(old);
    following.wait_until("the removals", |received| received.removals.len() == 2).await;
    assert_eq!(following.keys(), [key("hello.svc", 2)]);
    assert!(following.received().removals.iter().all(|(_, lease)| *lease == 0));
    let revision = etcd.revision();
    following.wait_for_report("the last revision", |report| report.revision == revision).await;
    let report = following.state.report();
    assert!(
        report.connected && report.synced && report.error.is_none() && report.last_event.is_some()
    );
    assert_eq!((report.lists, report.disconnects), (1, 0));
    following.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expiries_are_distinguished_from_deletions() {
    let etcd = Etcd::start();
    let (kept, lost) = (etcd.grant(600), etcd.grant(10));
    etcd.put_leased(&key("kept", 1), "{}", kept);
    etcd.put_leased(&key("lost", 1), "{}", lost);
    let keep_alive = LeaseKeepAlive::start(&etcd, lost);
    let following = Following::start_synced(settings(&etcd)).await;
    assert_eq!(following.received().keys[&key("lost", 1)].lease, lost);

    // GoFrame deletes the key and leaves the lease to expire; a killed program loses its lease.
    etcd.delete(&key("kept", 1));
    drop(keep_alive);
    following.wait_until("both removals", |received| received.removals.len() == 2).await;
    assert_eq!(following.received().removals, [(key("kept", 1), kept), (key("lost", 1), lost)]);
    let mut leases = [kept, lost];
    leases.sort_unstable();
    let reply = following.check_leases(&leases).await;
    assert_eq!((&reply.gone[..], &reply.alive[..]), (&[lost][..], &[kept][..]));
    assert_eq!(reply.revision, etcd.revision());
    assert_eq!(following.gone_of(&[kept]).await, [0_i64; 0]);
    following.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_leases_are_checked_at_once() {
    let etcd = Etcd::start();
    let mut client = etcd.client().await.lease_client();
    let mut leases = Vec::new();
    for _ in 0..1000 {
        leases.push(client.grant(600, None).await.unwrap().id());
    }
    leases.sort_unstable();
    let (gone, alive): (Vec<i64>, Vec<i64>) = leases.iter().partition(|lease| **lease % 4 == 0);
    for lease in &gone {
        client.revoke(*lease).await.unwrap();
    }
    let following = Following::start_synced(settings(&etcd)).await;
    let reply = following.check_leases(&leases).await;
    assert_eq!((reply.gone, reply.alive), (gone, alive));
    following.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_check_is_repeated_after_the_store_stalls() {
    let etcd = Etcd::start();
    let lease = etcd.grant(600);
    let following = Following::start_synced(settings(&etcd)).await;
    etcd.stall(0);
    let resume = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let replies = following.received().lease_replies.len();
        etcd.resume(0);
        replies
    };
    let checked = [1, lease];
    let (gone, replies_before) = tokio::join!(following.gone_of(&checked), resume);
    assert_eq!((gone, replies_before), (vec![1], 0));
    following.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outages_lose_no_events() {
    let mut etcd = Etcd::start();
    etcd.put(&key("before", 1), "{}");
    let following = Following::start_synced(settings(&etcd)).await;
    etcd.kill();
    following.wait_until("the disconnect", |received| !received.is_connected()).await;
    // About as long as a restart of a member takes.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(following.keys(), [key("before", 1)]);
    let report = following.state.report();
    assert!(!report.connected && report.synced && report.error.is_some(), "{report:?}");
    etcd.start_all();
    etcd.put(&key("after", 1), "{}");
    following
        .wait_until("the key after the outage", |received| {
            received.keys.contains_key(&key("after", 1)) && received.is_connected()
        })
        .await;

    // The follower catches up on both heads.
    let old = "/services/default/default/meanwhile/latest/10.0.0.1:80";
    etcd.elsewhere(|etcd| {
        etcd.put(&key("meanwhile", 1), "{}");
        etcd.put(old, "{}");
        etcd.delete(&key("before", 1));
    });
    etcd.start_all();
    let expected = [key("after", 1), key("meanwhile", 1), old.to_owned()];
    following
        .wait_until("the events of the outage", |received| {
            received.keys.keys().eq(&expected) && received.is_connected()
        })
        .await;
    assert_eq!(following.received().lists, [ListKind::Routine], "resumed, not listed again");
    following
        .wait_for_report("the end of the outage", |report| {
            report.connected && report.error.is_none()
        })
        .await;
    assert_eq!(following.state.report().disconnects, 2);
    following.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compaction_during_an_outage_causes_a_new_list() {
    let mut etcd = Etcd::start();
    etcd.put(&key("stays", 1), "{}");
    etcd.put(&key("goes", 1), "{}");
    let following = Following::start_synced(settings(&etcd)).await;
    etcd.elsewhere(|etcd| {
        etcd.delete(&key("goes", 1));
        for count in 0..5 {
            etcd.put(&key("comes", count), "{}");
        }
        etcd.compact(etcd.revision());
    });
    etcd.start_all();
    following
        .wait_until("the second list", |received| {
            received.lists_ended == 2 && received.is_connected()
        })
        .await;
    assert_eq!(following.received().lists, [ListKind::Routine, ListKind::Reconnect]);
    assert_eq!(following.keys().len(), 6);
    etcd.put(&key("later", 1), "{}");
    following.wait_for_key(&key("later", 1)).await;
    following.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restored_and_wiped_stores_are_detected() {
    let mut etcd = Etcd::start();
    let directory = tempfile::tempdir().unwrap();
    let snapshot = directory.path().join("snapshot");
    etcd.put(&key("old", 1), "{}");
    etcd.save(&snapshot);
    let following = Following::start_synced(settings(&etcd)).await;
    for count in 0..5 {
        etcd.put(&key("new", count), "{}");
    }
    following.wait_until("the new keys", |received| received.keys.len() == 6).await;

    etcd.restore(&snapshot);
    etcd.start_all();
    following
        .wait_until("the list of the restored store", |received| received.lists_ended == 2)
        .await;
    assert_eq!(following.received().lists, [ListKind::Routine, ListKind::Restored]);
    assert_eq!(following.keys(), [key("old", 1)]);
    etcd.put(&key("after", 1), "{}");
    following.wait_for_key(&key("after", 1)).await;

    etcd.wipe();
    etcd.start_all();
    following.wait_until("the list of the wiped store", |received| received.lists_ended == 3).await;
    assert_eq!(following.received().lists[2], ListKind::Restored);
    assert_eq!(following.keys(), Vec::<String>::new());
    etcd.put(&key("again", 1), "{}");
    following.wait_for_key(&key("again", 1)).await;
    following.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_verifying_list_repairs_an_undetected_restore() {
    let mut etcd = Etcd::start();
    let directory = tempfile::tempdir().unwrap();
    let snapshot = directory.path().join("snapshot");
    etcd.save(&snapshot);
    for count in 0..3 {
        etcd.put(&key("lost", count), "{}");
    }
    let mut settings = settings(&etcd);
    settings.tuning.verify_within = Duration::from_secs(2);
    let following = Following::start_synced(settings).await;
    let ours = following.state.report().revision;
    etcd.restore(&snapshot);
    etcd.elsewhere(|etcd| {
        for count in 0..8 {
            etcd.put(&key("found", count), "{}");
        }
        assert!(etcd.revision() > ours);
    });
    etcd.start_all();
    following.wait_until("the verifying list", |received| received.lists_ended == 2).await;
    assert_eq!(following.received().lists, [ListKind::Routine, ListKind::Reconnect]);
    assert_eq!(following.keys(), (0..8).map(|count| key("found", count)).collect::<Vec<_>>());
    following.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_members_are_skipped() {
    let mut etcd = Etcd::builder().members(3).start();
    etcd.kill_member(0);
    let following = Following::start_synced(settings(&etcd)).await;
    // Each member is killed in turn, so the followed one is among them; two always live.
    for (round, member) in [(1, 1), (2, 2), (3, 0)] {
        let last = if member == 0 { 2 } else { member - 1 };
        etcd.start_member(last);
        etcd.kill_member(member);
        let put = key("round", round);
        let deadline = Instant::now() + SOON;
        while let Err(error) = etcd.try_ctl(&["put", &put, "{}"]) {
            assert!(Instant::now() < deadline, "{error}");
        }
        following.wait_for_key(&put).await;
    }
    assert_eq!(following.received().lists, [ListKind::Routine]);
    following.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_without_a_leader_counts_as_disconnected() {
    let mut etcd = Etcd::builder().members(3).start();
    etcd.put(&key("hello", 1), "{}");
    let mut settings = settings(&etcd);
    settings.endpoints.truncate(1);
    settings.tuning.connection.request_timeout = Duration::from_secs(5);
    let following = Following::start_synced(settings).await;
    etcd.kill_member(1);
    etcd.kill_member(2);
    following.wait_until("the loss of the leader", |received| !received.is_connected()).await;
    assert_eq!(following.keys(), [key("hello", 1)]);
    etcd.start_all();
    following.wait_until("the leader", Received::is_connected).await;
    etcd.put(&key("hello", 2), "{}");
    following.wait_for_key(&key("hello", 2)).await;
    following.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keepalive_pings_detect_a_stalled_member() {
    let etcd = Etcd::start();
    let mut settings = settings(&etcd);
    settings.tuning.keepalive_interval = Duration::from_secs(5);
    settings.tuning.keepalive_timeout = Duration::from_secs(5);
    settings.tuning.connection.request_timeout = Duration::from_secs(5);
    expect_stall_to_be_detected(&etcd, settings).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_progress_detects_a_stalled_member() {
    let etcd = Etcd::start();
    let mut settings = settings(&etcd);
    settings.tuning.keepalive_interval = NEVER;
    settings.tuning.progress_interval = Duration::from_secs(1);
    settings.tuning.progress_deadline = Duration::from_secs(8);
    settings.tuning.connection.request_timeout = Duration::from_secs(5);
    let following = Following::start_synced(settings.clone()).await;
    // A member without events answers progress requests and is not taken for stalled.
    let before = following.state.report().last_event;
    following
        .wait_until("two signs of life", |_| {
            let since = |time| following.state.report().last_event > time;
            since(before.map(|before| before + Duration::from_secs(2)))
        })
        .await;
    assert_eq!(following.received().connected, [true]);
    following.stop().await;
    expect_stall_to_be_detected(&etcd, settings).await;
}

async fn expect_stall_to_be_detected(etcd: &Etcd, settings: Settings) {
    let following = Following::start_synced(settings).await;
    etcd.stall(0);
    following.wait_until("the stall", |received| !received.is_connected()).await;
    etcd.resume(0);
    following.wait_until("the end of the stall", Received::is_connected).await;
    etcd.put(&key("after", 1), "{}");
    following.wait_for_key(&key("after", 1)).await;
    following.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_starts_later_is_followed() {
    let mut etcd = Etcd::builder().stopped();
    let following = Following::start(settings(&etcd));
    following.wait_for_error("Connection refused").await;
    assert!(following.received().lists.is_empty() && following.received().connected.is_empty());
    etcd.start_all();
    following.wait_for_list().await;
    assert_eq!(following.state.report().error, None);
    following.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_lists_and_event_backlogs_are_read_completely() {
    let mut etcd = Etcd::start();
    let many = |name: &'static str| {
        let value = format!(r#"{{"filler":"{}"}}"#, "x".repeat(600));
        (0..10_000).map(move |count| {
            let (third, last) = (count / 250, count % 250);
            let key = format!("/service/default/default/{name}/latest/10.0.{third}.{last}:80");
            (key, value.clone())
        })
    };
    etcd.put_many(many("listed")).await;
    let mut settings = settings(&etcd);
    settings.tuning.page_size = 9_000;
    settings.tuning.batch_size = 9_000;
    let following = Following::start_synced(settings).await;
    assert_eq!(following.keys().len(), 10_000);
    assert_eq!(following.received().largest_batch, 9_000, "one batch per page");
    // 6 MB in 100 revisions: etcd sends them as one message.
    etcd.elsewhere(|etcd| block_on(etcd.put_many(many("caught-up"))));
    etcd.start_all();
    following.wait_until("the catch-up", |received| received.keys.len() == 20_000).await;
    assert_eq!(following.received().lists, [ListKind::Routine], "caught up, not listed again");
    following.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_keys_and_values_do_not_affect_others() {
    let etcd = Etcd::start();
    let mut client = etcd.client().await;
    let good: Vec<_> = (1..4).map(|count| key("good", count)).collect();
    let (nested, large) = (vec![b'['; 20_000], vec![b'x'; 100_000]);
    let invalid: [(&[u8], &[u8], Reason); 6] = [
        (b"/service/short", b"{}", gsvc::TOO_FEW_SEGMENTS),
        (b"/service/default/default/a/b/latest/10.0.0.1:80", b"{}", gsvc::TOO_MANY_SEGMENTS),
        (b"/service/default/default/good/latest/10.0.0.2:8001", b"not JSON", gsvc::VALUE_NOT_JSON),
        (b"/service/default/default/good\xff\xfe/latest/10.0.0.1:80", b"{}", gsvc::KEY_NOT_TEXT),
        (b"/service/default/default/deep/latest/10.0.0.1:80", &nested, gsvc::VALUE_NOT_JSON),
        (b"/service/default/default/zzz/latest/10.0.0.1:80", &large, gsvc::VALUE_TOO_LONG),
    ];
    client.put(&*good[0], "{}", None).await.unwrap();
    for (key, value, _) in &invalid[..3] {
        client.put(*key, *value, None).await.unwrap();
    }
    client.put(&*good[1], "{}", None).await.unwrap();
    let following = Following::start_synced(settings(&etcd)).await;
    for (key, value, _) in &invalid[3..] {
        client.put(*key, *value, None).await.unwrap();
    }
    client.put(vec![b'/'; 5000], "{}", None).await.unwrap();
    let long_key = ["/service/".as_bytes(), &[b'k'; 5000]].concat();
    client.put(long_key, "{}", None).await.unwrap();
    client.put(&*good[2], "{}", Some(PutOptions::new())).await.unwrap();
    following.wait_for_key(&good[2]).await;
    let keys = following.received().keys.clone();
    assert!(good.iter().all(|key| keys[key].content.is_ok()));
    let rejected = keys.values().filter_map(|put| put.content.as_ref().err());
    let mut reasons: Vec<_> = rejected.map(|rejected| rejected.reason).collect();
    let mut expected: Vec<_> = invalid.iter().map(|(.., reason)| *reason).collect();
    expected.push(gsvc::KEY_TOO_LONG);
    reasons.sort();
    expected.sort();
    assert_eq!(reasons, expected);
    // A key that is not UTF-8 can be removed, too.
    client.delete(invalid[3].0, None).await.unwrap();
    following.wait_until("the removal", |received| received.removals.len() == 1).await;
    following.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_over_64_mib_are_read_in_parts() {
    let etcd = Etcd::start();
    let mut client = etcd.client().await;
    for count in 0..70 {
        let (key, value) = (format!("/service/big/{count}"), vec![b'x'; 1024 * 1024]);
        client.put(key, value, None).await.unwrap();
    }
    client.put(key("good", 1), "{}", None).await.unwrap();
    let following = Following::start_synced(settings(&etcd)).await;
    assert_eq!(following.keys().len(), 71);
    assert!(following.received().largest_batch < 64, "no page of more than 64 MiB");
    assert!(following.received().keys[&key("good", 1)].content.is_ok());
    following.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn routine_lists_neither_lose_nor_reorder_events() {
    let etcd = Etcd::start();
    let mut settings = settings(&etcd);
    settings.tuning.relist_interval = Duration::from_millis(30);
    settings.tuning.page_size = 7;
    let following = Following::start_synced(settings).await;
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
    // A list in progress that has the last key may still have a deleted one; its end removes that.
    following
        .wait_until("the last key", |received| {
            received.keys.contains_key(&key("last", 1)) && received.list_in_progress.is_none()
        })
        .await;
    let options = GetOptions::new().with_prefix();
    let store = client.get("/service/", Some(options)).await.unwrap();
    let kvs = store.kvs().iter();
    let store: Vec<_> =
        kvs.map(|kv| (kv.key_str().unwrap().to_owned(), kv.mod_revision())).collect();
    let received = following.received().keys.clone();
    let received: Vec<_> = received
        .into_iter()
        .map(|(key, put)| (key, i64::try_from(put.revision).unwrap()))
        .collect();
    assert_eq!(received, store);
    let lists = following.received().lists.clone();
    assert!(lists.len() > 5, "too few lists beside the events: {}", lists.len());
    assert!(lists.iter().all(|kind| *kind == ListKind::Routine));
    assert!(!following.received().removals.is_empty());
    following.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_list_has_the_kind_passed_to_follow() {
    let etcd = Etcd::start();
    let following = Following::start_with(settings(&etcd), ListKind::Reconnect);
    following.wait_for_list().await;
    assert_eq!(following.received().lists, [ListKind::Reconnect]);
    following.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn follow_returns_when_the_feed_is_closed() {
    let etcd = Etcd::start();
    let following = Following::start_synced(settings(&etcd)).await;
    following.collect.abort();
    assert!(following.collect.await.unwrap_err().is_cancelled());
    etcd.put(&key("hello", 1), "{}");
    tokio::time::timeout(SOON, following.follow).await.expect("following ends").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registration_lasts_as_long_as_its_process() {
    let mut etcd = Etcd::start();
    let following = Following::start_synced(settings(&etcd)).await;
    let key = key("mine", 1);
    // Long enough for a machine that pauses for seconds between two renewals.
    let ttl = Duration::from_secs(9);
    let mut mine = Registering::start(settings(&etcd), "mine", 1, ttl);
    following.wait_for_key(&key).await;
    mine.wait_for_registrations(1).await;
    let lease = following.received().keys[&key].lease;
    assert_ne!(lease, 0);
    // Longer than the lease lives without renewal.
    tokio::time::sleep(ttl + Duration::from_secs(2)).await;
    assert!(following.received().removals.is_empty());

    // A key deleted by hand is put again with the same lease.
    etcd.delete(&key);
    following.wait_until("the deletion", |received| received.removals.len() == 1).await;
    following.wait_for_key(&key).await;
    mine.wait_for_registrations(2).await;
    assert_eq!(following.received().keys[&key].lease, lease);

    // The lease survives an outage, because etcd restarts the time of leases when it starts.
    etcd.kill();
    etcd.start_all();
    following
        .wait_until("the reconnect", |received| {
            received.connected.contains(&false) && received.is_connected()
        })
        .await;
    tokio::time::sleep(ttl + Duration::from_secs(2)).await;
    assert_eq!(mine.registrations(), 2);
    assert_eq!(following.keys(), [key.as_str()]);
    assert_eq!(following.received().keys[&key].lease, lease);

    // After a wipe, the key has another lease.
    etcd.wipe();
    etcd.start_all();
    following
        .wait_until("the key in the new store", |received| {
            received.keys.get(&key).is_some_and(|put| put.lease != lease)
        })
        .await;
    mine.wait_for_registrations(3).await;
    assert_eq!(mine.registrations(), 3);
    let new_lease = following.received().keys[&key].lease;

    // At the end the key is deleted while its lease exists.
    let removals = following.received().removals.len();
    mine.stop().await.unwrap();
    following.wait_until("the removal", |received| received.removals.len() == removals + 1).await;
    assert_eq!(following.received().removals[removals], (key, new_lease));
    assert_eq!(following.gone_of(&[new_lease]).await, [0_i64; 0]);
    assert_eq!(mine.events.lock().unwrap().last(), Some(&RegisterEvent::Removed));
    following.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_registrations_report_the_reason() {
    let mut etcd = Etcd::start();
    etcd.add_reader("reader", "reader-secret", "/service");
    etcd.enable_auth();
    let reader = settings_with_password(&etcd, "reader", "reader-secret");
    // Long enough that no lease expires during the test.
    let ttl = Duration::from_secs(60);
    let mut refused = Registering::start(reader, "mine", 1, ttl);
    let error = refused.result().await.unwrap_err();
    let RegisterError::Refused { reason, .. } = &error else { panic!("{error}") };
    assert!(reason.contains("permission denied"), "{reason}");

    // A key that another client has put is left in place at the end.
    let root = settings_with_password(&etcd, "root", "root-secret");
    let mut mine = Registering::start(root.clone(), "mine", 2, ttl);
    let following = Following::start_synced(root.clone()).await;
    following.wait_for_key(&key("mine", 2)).await;
    etcd.put(&key("mine", 2), r#"{"of":"another"}"#);
    mine.stop().await.unwrap();
    assert!(etcd.value(&key("mine", 2)).is_some_and(|value| value.contains("another")));

    // If the store is unreachable at the end, the error says how long the key remains.
    let mut left = Registering::start(root, "left", 1, ttl);
    following.wait_for_key(&key("left", 1)).await;
    etcd.kill();
    let error = left.stop().await.unwrap_err();
    assert!(matches!(error, RegisterError::NotRemoved { seconds: 60, .. }), "{error}");
    following.stop().await;
}
