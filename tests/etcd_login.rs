//! Users, passwords and certificates of the etcd registry against a real etcd.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support {
    pub mod etcd;
    pub mod following;
}

use std::fs;
use std::time::Duration;

use svcdns::registry::RegisterError;
use svcdns::registry::Tls;
use svcdns::service::ListKind;

use support::etcd::Etcd;
use support::following::{
    Following, PasswordFile, Registering, key, settings, settings_with_password,
    settings_with_password_file,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logins_are_renewed() {
    let mut etcd = Etcd::builder().argument("--auth-token-ttl=3").start();
    etcd.put(&key("hello", 1), "{}");
    etcd.add_reader("reader", "reader-secret", "/service");
    let mut settings = settings_with_password(&etcd, "reader", "reader-secret");
    // A configured user does not matter while authentication is off.
    Following::start_synced(settings.clone()).await.stop().await;

    etcd.enable_auth();
    let wrong = settings_with_password(&etcd, "reader", "wrong-secret");
    let refused = Following::start(wrong);
    refused.wait_for_error("invalid user ID or password").await;
    assert!(refused.received().lists.is_empty());
    assert!(!refused.state.report().error.unwrap().contains("wrong-secret"));
    refused.stop().await;

    // The token expires between two lists, and again with a restart.
    settings.tuning.relist_interval = Duration::from_secs(5);
    let following = Following::start_synced(settings).await;
    following.wait_until("a list with a new token", |received| received.lists_ended >= 2).await;
    let connected = following.received().connected.clone();
    assert!(connected.iter().all(|connected| *connected), "the connection did not break");
    etcd.kill();
    etcd.start_all();
    following
        .wait_until("the reconnect", |received| {
            received.connected.contains(&false) && received.is_connected()
        })
        .await;
    etcd.put(&key("hello", 2), "{}");
    following.wait_for_key(&key("hello", 2)).await;
    following.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_without_read_permission_does_not_count_as_empty() {
    let mut etcd = Etcd::start();
    etcd.put(&key("hello", 1), "{}");
    etcd.add_reader("reader", "reader-secret", "/service/");
    etcd.enable_auth();
    let mut settings = settings_with_password(&etcd, "reader", "reader-secret");
    // Long enough for the role to lose its permission between two lists, not during one.
    settings.tuning.relist_interval = Duration::from_secs(20);
    settings.tuning.verify_within = Duration::from_millis(500);
    let following = Following::start(settings);
    following.wait_for_error("cannot read /services/: permission denied").await;
    assert!(following.received().lists.is_empty() && following.received().connected.is_empty());

    etcd.ctl(&["role", "grant-permission", "reader", "--prefix=true", "read", "/services/"]);
    following.wait_for_list().await;
    // The watch opens after the list; only an event shows that it works.
    etcd.put(&key("hello", 2), "{}");
    following
        .wait_until("an event after one list", |received| {
            received.lists_ended == 1 && received.keys.contains_key(&key("hello", 2))
        })
        .await;
    etcd.ctl(&["role", "revoke-permission", "reader", "--prefix=true", "/service/"]);
    following.wait_for_error("cannot read /service/: permission denied").await;
    let report = following.state.report();
    assert_eq!(
        (report.connected, report.disconnects),
        (true, 0),
        "the watch continues: {report:?}"
    );
    let keys = [key("hello", 1), key("hello", 2)];
    assert_eq!(following.keys(), keys);

    // After a reconnect the watch is refused, too.
    etcd.kill();
    etcd.start_all();
    following.wait_until("the disconnect", |received| !received.is_connected()).await;
    following.wait_for_error("permission denied").await;
    assert_eq!(following.keys(), keys);
    following.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_read_again_at_every_connect() {
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
    refused.wait_until("a refusal", |_| refused.state.report().error.is_some()).await;
    assert!(refused.received().lists.is_empty());
    refused.stop().await;

    settings.tls = Some(tls);
    let following = Following::start_synced(settings).await;
    etcd.put(&key("hello", 1), "{}");
    following.wait_for_key(&key("hello", 1)).await;
    etcd.kill();
    etcd.certificates().replace();
    etcd.start_all();
    etcd.put(&key("hello", 2), "{}");
    following.wait_for_key(&key("hello", 2)).await;

    // Renewed again, file by file: the keys stay until all files match.
    etcd.kill();
    let file = etcd.certificates().client_key();
    let renewed = etcd.certificates().replace_all_but(&file);
    etcd.start_all();
    following.wait_for_error("the private key does not belong to the certificate").await;
    fs::remove_file(&file).unwrap();
    following.wait_for_error(&format!("cannot read {}: No such file", file.display())).await;
    assert_eq!(following.keys(), [key("hello", 1), key("hello", 2)]);
    fs::write(&file, renewed).unwrap();
    etcd.put(&key("hello", 3), "{}");
    following.wait_for_key(&key("hello", 3)).await;
    following.stop().await;
}

/// Recent versions of etcd list leases only for users that may read the keys of all leases; svcdns
/// then looks them up. Debian's lists them for everyone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_are_checked_for_a_user_that_can_read_only_some_keys() {
    let mut etcd = Etcd::start();
    let other = etcd.grant(600);
    etcd.put_leased("/other/program", "{}", other);
    let mut leases: Vec<i64> = (0..20).map(|_| etcd.grant(600)).collect();
    leases.sort_unstable();
    etcd.add_reader("reader", "reader-secret", "/service");
    etcd.enable_auth();
    let following =
        Following::start_synced(settings_with_password(&etcd, "reader", "reader-secret")).await;
    // The connection of the watch makes the check.
    etcd.put(&key("hello", 1), "{}");
    following.wait_for_key(&key("hello", 1)).await;
    assert_eq!(following.gone_of(&leases).await, [0_i64; 0]);
    for lease in &leases[..2] {
        etcd.ctl(&["lease", "revoke", &format!("{lease:x}")]);
    }
    assert_eq!(following.gone_of(&leases).await, leases[..2]);
    following.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registrations_survive_rotated_certificates() {
    let mut etcd = Etcd::builder().tls().start();
    let files = etcd.certificates();
    let mut settings = settings(&etcd);
    settings.tls = Some(Tls {
        ca_file: Some(files.ca()),
        cert_file: Some(files.client()),
        key_file: Some(files.client_key()),
        server_name: Some("etcd.test".to_owned()),
    });
    let mut mine = Registering::start(settings, "mine", 1, Duration::from_secs(30));
    mine.wait_for_registrations(1).await;
    let lease = etcd.lease(&key("mine", 1));

    // All certificates at once, by another authority, while etcd is down.
    etcd.kill();
    etcd.certificates().replace();
    etcd.start_all();
    mine.wait_for_recovery().await;
    assert_eq!(etcd.lease(&key("mine", 1)), lease, "the same registration");
    etcd.delete(&key("mine", 1));
    mine.wait_for_registrations(2).await;

    // File by file: the registration lasts until all files match.
    etcd.kill();
    let file = etcd.certificates().client_key();
    let renewed = etcd.certificates().replace_all_but(&file);
    etcd.start_all();
    mine.wait_for_failure("the private key does not belong to the certificate").await;
    fs::write(&file, renewed).unwrap();
    mine.wait_for_recovery().await;
    assert_eq!(etcd.lease(&key("mine", 1)), lease);

    // The removal at the end connects with the current certificate, too.
    mine.stop().await.unwrap();
    assert_eq!(etcd.value(&key("mine", 1)), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changing_the_password_in_etcd_first_causes_no_interruption() {
    let mut etcd = Etcd::start();
    etcd.put(&key("before", 1), "{}");
    etcd.add_reader("reader", "old-secret", "/service");
    etcd.enable_auth();
    let file = PasswordFile::new("old-secret");
    let mut settings = settings_with_password_file(&etcd, "reader", &file.path());
    settings.tuning.relist_interval = Duration::from_secs(2);
    let following = Following::start(settings);
    // The watch logs in after the first list and works once the second has begun.
    following.wait_until("the second list", |received| received.lists_ended == 2).await;

    etcd.set_password("reader", "new-secret");
    following
        .wait_for_error(
            "cannot log in: etcdserver: authentication failed, invalid user ID or password",
        )
        .await;
    // The watch began with the old password and continues.
    etcd.put(&key("meanwhile", 1), "{}");
    following.wait_for_key(&key("meanwhile", 1)).await;
    let lease = etcd.grant(600);
    assert_eq!(following.check_leases(&[1, lease]).await.gone, [1], "lease checks need no login");

    fs::remove_file(file.path()).unwrap();
    following.wait_for_error(&format!("cannot read {}: No such file", file.path().display())).await;
    file.write("new-secret");
    let lists = following.received().lists_ended;
    following
        .wait_until("a list with the new password", |received| received.lists_ended > lists)
        .await;
    following.wait_for_report("the end of the error", |report| report.error.is_none()).await;
    etcd.put(&key("after", 1), "{}");
    following.wait_for_key(&key("after", 1)).await;
    let report = following.state.report();
    assert_eq!(
        (report.connected, report.disconnects),
        (true, 0),
        "the connection did not break: {report:?}"
    );
    assert!(following.received().removals.is_empty());
    following.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_changed_in_its_file_first_is_used_once_etcd_has_it() {
    let mut etcd = Etcd::start();
    etcd.put(&key("before", 1), "{}");
    etcd.add_reader("reader", "old-secret", "/service");
    etcd.enable_auth();
    let file = PasswordFile::new("old-secret");
    let following =
        Following::start_synced(settings_with_password_file(&etcd, "reader", &file.path())).await;
    // The watch logs in after the list; only an event shows that it works.
    etcd.put(&key("watched", 1), "{}");
    following.wait_for_key(&key("watched", 1)).await;

    file.write("new-secret");
    etcd.put(&key("meanwhile", 1), "{}");
    following.wait_for_key(&key("meanwhile", 1)).await;
    // While the passwords differ, a lost connection cannot be replaced; the keys stay.
    etcd.kill();
    etcd.start_all();
    following.wait_for_error("cannot log in: etcdserver: authentication failed").await;
    assert_eq!(following.keys(), [key("before", 1), key("meanwhile", 1), key("watched", 1)]);
    let report = following.state.report();
    assert!(!report.connected && report.synced, "{report:?}");

    etcd.set_password("reader", "new-secret");
    etcd.put(&key("after", 1), "{}");
    following.wait_for_key(&key("after", 1)).await;
    following
        .wait_for_report("the end of the error", |report| {
            report.connected && report.error.is_none()
        })
        .await;
    assert_eq!(following.received().lists, [ListKind::Routine], "resumed, not listed again");
    following.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unusable_password_files_are_reported_until_they_are_fixed() {
    let mut etcd = Etcd::start();
    etcd.put(&key("hello", 1), "{}");
    etcd.add_reader("reader", "reader-secret", "/service");
    etcd.enable_auth();
    let file = PasswordFile::new("");
    let path = file.path();
    let following = Following::start(settings_with_password_file(&etcd, "reader", &path));
    let cannot_read = |why: &str| format!("cannot read {}: {why}", path.display());
    following.wait_for_error(&cannot_read("it is empty")).await;
    fs::write(&path, b"reader\xff-secret").unwrap();
    following.wait_for_error(&cannot_read("it is not UTF-8 text")).await;
    fs::write(&path, "x".repeat(70_000)).unwrap();
    following.wait_for_error(&cannot_read("it has more than 65536 bytes (a fixed limit)")).await;
    fs::remove_file(&path).unwrap();
    following.wait_for_error(&cannot_read("No such file or directory")).await;
    fs::create_dir(&path).unwrap();
    following.wait_for_error(&cannot_read("it is a directory")).await;
    fs::remove_dir(&path).unwrap();
    assert!(following.received().lists.is_empty() && following.received().connected.is_empty());
    // Container platforms mount a secret as a link into a directory that they replace.
    let mounted = file.directory.path().join("mounted");
    fs::create_dir(&mounted).unwrap();
    fs::write(mounted.join("password"), "reader-secret\r\n\n").unwrap();
    std::os::unix::fs::symlink("mounted/password", &path).unwrap();
    following.wait_for_list().await;
    following.wait_for_key(&key("hello", 1)).await;
    following.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passwords_are_hidden_even_if_part_of_a_key_equals_them() {
    let mut etcd = Etcd::start();
    etcd.add_reader("reader", "services", "/service/");
    etcd.enable_auth();
    let file = PasswordFile::new("services");
    let following = Following::start(settings_with_password_file(&etcd, "reader", &file.path()));
    following.wait_for_error("cannot read /***/: permission denied").await;
    following.stop().await;

    let settings = settings_with_password_file(&etcd, "reader", &file.path());
    let mut registering = Registering::start(settings, "services", 1, Duration::from_secs(60));
    let error = registering.result().await.unwrap_err();
    let RegisterError::Refused { reason, .. } = &error else { panic!("{error}") };
    assert!(reason.contains("permission denied") && !reason.contains("services"), "{reason}");
}

/// JWT tokens hold the revision of all users: any change to users invalidates them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changing_the_user_causes_no_interruption_with_jwt() {
    let directory = tempfile::tempdir().unwrap();
    let signing_key = directory.path().join("signing-key");
    fs::write(&signing_key, "the signing key of this test").unwrap();
    let jwt = format!("--auth-token=jwt,sign-method=HS256,priv-key={}", signing_key.display());
    let mut etcd = Etcd::builder().argument(&jwt).start();
    etcd.add_writer("writer", "old-secret", "/service");
    etcd.enable_auth();
    let file = PasswordFile::new("old-secret");
    let mut settings = settings_with_password_file(&etcd, "writer", &file.path());
    settings.tuning.relist_interval = Duration::from_secs(1);
    let following = Following::start_synced(settings.clone()).await;
    let mut mine = Registering::start(settings, "mine", 1, Duration::from_secs(9));
    following.wait_for_key(&key("mine", 1)).await;
    // The watch logs in after the first list and works once the second has begun.
    following.wait_until("the second list", |received| received.lists_ended >= 2).await;

    etcd.ctl(&["user", "add", "another:secret"]);
    let lists = following.received().lists_ended;
    // At least the second of two lists began after the change.
    following
        .wait_until("lists after the change", |received| received.lists_ended >= lists + 2)
        .await;
    etcd.delete(&key("mine", 1));
    mine.wait_for_registrations(2).await;
    following
        .wait_until("the key again", |received| {
            received.keys.contains_key(&key("mine", 1)) && received.list_in_progress.is_none()
        })
        .await;

    file.write("new-secret");
    etcd.set_password("writer", "new-secret");
    let lists = following.received().lists_ended;
    following
        .wait_until("lists with the new password", |received| received.lists_ended >= lists + 2)
        .await;
    assert_eq!(following.state.report().disconnects, 0);
    mine.stop().await.unwrap();
    assert_eq!(etcd.value(&key("mine", 1)), None);
    following.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registrations_survive_password_changes() {
    let mut etcd = Etcd::start();
    etcd.add_writer("writer", "old-secret", "/service");
    etcd.enable_auth();
    let file = PasswordFile::new("old-secret");
    let settings = settings_with_password_file(&etcd, "writer", &file.path());
    let following = Following::start_synced(settings.clone()).await;
    let ttl = Duration::from_secs(9);
    let mut mine = Registering::start(settings.clone(), "mine", 1, ttl);
    let key = key("mine", 1);
    following.wait_for_key(&key).await;
    mine.wait_for_registrations(1).await;
    let lease = following.received().keys[&key].lease;

    // Changed in etcd first, for longer than the lease lives without renewal.
    etcd.set_password("writer", "new-secret");
    mine.wait_for_failure("cannot log in: etcdserver: authentication failed").await;
    tokio::time::sleep(ttl + Duration::from_secs(2)).await;
    assert!(following.received().removals.is_empty());
    // To put the key again, a login with the new file is needed.
    etcd.delete(&key);
    file.write("new-secret");
    mine.wait_for_registrations(2).await;
    following.wait_for_key(&key).await;
    assert_eq!(following.received().keys[&key].lease, lease);

    // Changed in the file first; meanwhile the connection is lost.
    file.write("newer-secret");
    etcd.kill();
    etcd.start_all();
    mine.wait_for_failure("cannot log in: etcdserver: authentication failed").await;
    etcd.set_password("writer", "newer-secret");
    following
        .wait_until("the reconnect", |received| {
            received.connected.contains(&false) && received.is_connected()
        })
        .await;
    tokio::time::sleep(ttl + Duration::from_secs(2)).await;
    assert_eq!(following.keys(), [key.as_str()]);
    assert_eq!(following.received().keys[&key].lease, lease);

    // The deletion at the end uses the current password, too.
    etcd.set_password("writer", "newest-secret");
    file.write("newest-secret");
    mine.stop().await.unwrap();
    assert_eq!(etcd.value(&key), None);
    for event in &*mine.events.lock().unwrap() {
        assert!(!format!("{event:?}").contains("-secret"), "{event:?}");
    }

    // A first attempt with a wrong or no password is refused.
    for (password, message) in [("wrong-secret", "authentication failed"), ("", "it is empty")] {
        file.write(password);
        let mut refused = Registering::start(settings.clone(), "mine", 2, ttl);
        let error = refused.result().await.unwrap_err();
        let RegisterError::Refused { reason, .. } = &error else { panic!("{error}") };
        assert!(reason.contains(message), "{reason}");
    }
    following.stop().await;
}
