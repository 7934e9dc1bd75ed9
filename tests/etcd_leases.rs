//! Deregistrations and ended leases on a real etcd, as the whole program answers them.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use etcd_client::PutOptions;
use nix::sys::signal::Signal;
use support::etcd::Etcd;
use support::svcdns::Svcdns;
use support::{SOON, dns, eventually, seconds};
use tokio::runtime::Runtime;

const HTTP: &str = r#"{"insecure":true,"protocol":"http"}"#;

/// Time to live of a lease that does not expire during a test.
const LONG_TTL: u32 = 600;

/// Longest time for which a stopped instance may be answered after its delete.
const STOPPED_WITHIN: Duration = seconds(1);

/// Returns the key of `hello.svc` at this address.
fn key(address: &str) -> String {
    format!("/service/default/default/hello.svc/latest/{address}:80")
}

/// Registers an instance of `hello.svc` on a new lease, as one program does.
fn register(etcd: &Etcd, address: &str) -> i64 {
    let lease = etcd.grant(LONG_TTL);
    etcd.put_leased(&key(address), HTTP, lease);
    lease
}

/// Starts a server whose removal grace outlasts the test, so every removal is an immediate one.
fn serve(etcd: &Etcd, flags: &[&str]) -> Svcdns {
    serve_from(&etcd.url(), flags)
}

fn serve_from(url: &str, flags: &[&str]) -> Svcdns {
    let registry = ["--registry", url, "--removal-grace", "1h", "--log", "debug"];
    Svcdns::serve(&[&registry, flags].concat())
}

/// Returns all addresses of `hello.svc`.
fn served(server: &Svcdns) -> BTreeSet<String> {
    dns::dig_short(server.address, &["+tcp", "hello.svc"]).into_iter().collect()
}

/// Waits until `hello.svc` has exactly these addresses.
fn wait_for<'a>(server: &Svcdns, addresses: impl IntoIterator<Item = &'a String>) {
    let wanted: BTreeSet<String> = addresses.into_iter().cloned().collect();
    eventually(&format!("{} addresses", wanted.len()), SOON, || {
        (served(server) == wanted).then_some(())
    });
}

/// Deletes the key of an instance, and waits until the address is no longer answered.
fn deregister(etcd: &Etcd, server: &Svcdns, address: &String) {
    etcd.delete(&key(address));
    let deleted = Instant::now();
    loop {
        let asked = deleted.elapsed();
        if !served(server).contains(address) {
            return;
        }
        assert!(asked < STOPPED_WITHIN, "{address} is answered {asked:?} after its delete");
    }
}

#[test]
fn a_rolling_restart_with_a_crash_holds_no_removal() {
    expect_no_hold_in_a_rolling_restart(&Etcd::start(), &[]);
}

/// Recent versions of etcd list leases only for users that may read the keys of all leases.
#[test]
fn a_rolling_restart_holds_no_removal_if_only_some_keys_are_readable() {
    let mut etcd = Etcd::builder().argument("--bcrypt-cost=4").start();
    let other = etcd.grant(LONG_TTL);
    etcd.put_leased("/other/program", HTTP, other);
    etcd.add_reader("reader", "s3cret", "/service");
    etcd.enable_auth();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    fs::write(&file, "s3cret").unwrap();
    let path = file.to_str().unwrap();
    let flags = ["--etcd-username", "reader", "--etcd-password-file", path];
    expect_no_hold_in_a_rolling_restart(&etcd, &flags);
}

/// Restarts 100 instances, one of which has crashed and lost its lease instead.
fn expect_no_hold_in_a_rolling_restart(etcd: &Etcd, flags: &[&str]) {
    let old: Vec<String> = (1..=100).map(|last| format!("10.0.0.{last}")).collect();
    let new: Vec<String> = (1..=100).map(|last| format!("10.0.1.{last}")).collect();
    let leases: Vec<i64> = old.iter().map(|address| register(etcd, address)).collect();
    let new_leases: Vec<i64> = new.iter().map(|_| etcd.grant(LONG_TTL)).collect();
    let server = serve(etcd, flags);
    wait_for(&server, &old);

    // Each instance stops and then starts at another address.
    let crashed = 10;
    let removed: Mutex<BTreeMap<String, Instant>> = Mutex::default();
    let restart = async || {
        let mut client = etcd.client().await;
        for (instance, address) in old.iter().enumerate() {
            if instance == crashed {
                client.lease_revoke(leases[instance]).await.unwrap();
            } else {
                client.delete(key(address), None).await.unwrap();
            }
            removed.lock().unwrap().insert(address.clone(), Instant::now());
            let options = PutOptions::new().with_lease(new_leases[instance]);
            client.put(key(&new[instance]), HTTP, Some(options)).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    thread::scope(|scope| {
        let restarting = scope.spawn(|| Runtime::new().unwrap().block_on(restart()));
        let mut checks = 0;
        loop {
            let ended = restarting.is_finished();
            let must_be_gone: Vec<String> = {
                let removed = removed.lock().unwrap();
                let gone = removed.iter().filter(|(_, at)| at.elapsed() >= STOPPED_WITHIN);
                gone.map(|(address, _)| address.clone()).collect()
            };
            let answered = served(&server);
            for address in &must_be_gone {
                assert!(!answered.contains(address), "{address} is answered after {checks} checks");
            }
            checks += 1;
            if ended && must_be_gone.len() == old.len() {
                break;
            }
            thread::sleep(Duration::from_millis(20));
        }
    });
    wait_for(&server, &new);
    assert_eq!(held(&server), 0);
    assert!(server.log().contains("leases checked"), "the restart was too slow");
}

/// Returns the number of held removals as `svcdns status` prints it.
fn held(server: &Svcdns) -> usize {
    let output = server.run(&["status"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find(|line| line.contains("held (removal-grace)"));
    line.map_or(0, |line| line.split(' ').next().unwrap().parse().unwrap())
}

#[test]
fn deregistrations_are_not_held_with_the_keys_of_an_ended_lease() {
    let etcd = Etcd::start();
    let programs: Vec<String> = (1..=35).map(|last| format!("10.0.0.{last}")).collect();
    for address in &programs {
        register(&etcd, address);
    }
    // One program with 25 keys, which are more than 30 % of all.
    let lease = etcd.grant(LONG_TTL);
    let of_one: Vec<String> = (1..=25).map(|last| format!("10.0.2.{last}")).collect();
    for address in &of_one {
        etcd.put_leased(&key(address), HTTP, lease);
    }
    let server = serve(&etcd, &[]);
    wait_for(&server, programs.iter().chain(&of_one));

    let (stopped, kept) = programs.split_at(12);
    for address in stopped {
        etcd.delete(&key(address));
    }
    etcd.ctl(&["lease", "revoke", &format!("{lease:x}")]);
    let ended = Instant::now();
    eventually("the stopped instances to be gone and the others held", STOPPED_WITHIN, || {
        let wanted = kept.iter().chain(&of_one).cloned().collect();
        (served(&server) == wanted).then_some(())
    });
    assert_eq!(held(&server), 25);
    let listed = String::from_utf8(server.run(&["ls"]).stdout).unwrap();
    assert_eq!(listed.matches("removal held").count(), 25, "{listed}");
    // Deregistrations while others are held are neither held nor prolong their hold.
    let (later, kept) = kept.split_at(10);
    for address in later {
        deregister(&etcd, &server, address);
    }
    assert!(ended.elapsed() < SOON);
    wait_for(&server, kept.iter().chain(&of_one));
    assert_eq!(held(&server), 25);
    // Those that register again are no longer held.
    for address in &of_one[..5] {
        register(&etcd, address);
    }
    eventually("the keys put again", SOON, || (held(&server) == 20).then_some(()));
}

#[test]
fn expired_keys_are_held_even_if_etcd_compacts_before_reporting_the_delete() {
    for revoked in [true, false] {
        let etcd = Etcd::start();
        let addresses: Vec<String> = (1..=30).map(|last| format!("10.0.0.{last}")).collect();
        let (on_lease, kept) = addresses.split_at(25);
        let lease = etcd.grant(LONG_TTL);
        for address in on_lease {
            etcd.put_leased(&key(address), HTTP, lease);
        }
        for address in kept {
            register(&etcd, address);
        }
        let server = serve(&etcd, &[]);
        wait_for(&server, &addresses);
        // The server does not read, and etcd cannot send it more than these values. By the time
        // it sends the deletes, it no longer has the previous version of their keys.
        server.signal(Signal::SIGSTOP);
        for number in 0..8 {
            let value = format!("{{\"{number}\":\"{}\"}}", "x".repeat(100_000));
            etcd.put("/service/default/default/large.svc/latest/10.9.9.9:80", &value);
        }
        if revoked {
            etcd.ctl(&["lease", "revoke", &format!("{lease:x}")]);
        } else {
            etcd.ctl(&["del", "--prefix", "/service/default/default/hello.svc/latest/10.0.0.1"]);
            etcd.ctl(&["del", "--prefix", "/service/default/default/hello.svc/latest/10.0.0.2"]);
        }
        etcd.put(&key("10.0.3.1"), HTTP);
        etcd.compact(etcd.revision());
        server.signal(Signal::SIGCONT);
        eventually("the key put last", SOON, || served(&server).contains("10.0.3.1").then_some(()));
        if revoked {
            thread::sleep(STOPPED_WITHIN);
            assert_eq!(served(&server).len(), 31, "the keys of the ended lease are held");
            assert_eq!(held(&server), 25);
        } else {
            eventually("the deletes", STOPPED_WITHIN, || {
                (served(&server).len() < 12).then_some(())
            });
            assert_eq!(held(&server), 0);
        }
    }
}

/// A path to etcd that loses what is sent to it, while what etcd sends still arrives.
struct OneWayPath {
    address: SocketAddr,
    is_blocked: Arc<AtomicBool>,
}

impl OneWayPath {
    fn to(etcd: &Etcd) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let (target, is_blocked) = (etcd.endpoint(0), Arc::<AtomicBool>::default());
        let blocked = Arc::clone(&is_blocked);
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, server) = (client.unwrap(), TcpStream::connect(&target).unwrap());
                let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                let blocked = Arc::clone(&blocked);
                thread::spawn(move || copy(&from, &to, &blocked));
                thread::spawn(move || copy(&server, &client, &AtomicBool::new(false)));
            }
        });
        Self { address, is_blocked }
    }

    fn block(&self, blocked: bool) {
        self.is_blocked.store(blocked, Ordering::SeqCst);
    }
}

/// Copies bytes until the end of the connection, waiting while it is blocked.
fn copy(mut from: &TcpStream, mut to: &TcpStream, is_blocked: &AtomicBool) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        while is_blocked.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(5));
        }
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

#[test]
fn keys_are_held_while_etcd_does_not_reply_about_their_leases() {
    let etcd = Etcd::start();
    let programs: Vec<String> = (1..=30).map(|last| format!("10.0.0.{last}")).collect();
    let lease = etcd.grant(LONG_TTL);
    let of_one: Vec<String> = (1..=30).map(|last| format!("10.0.2.{last}")).collect();
    for address in &programs {
        register(&etcd, address);
    }
    for address in &of_one {
        etcd.put_leased(&key(address), HTTP, lease);
    }
    let path = OneWayPath::to(&etcd);
    let server = serve_from(&format!("etcd://{}", path.address), &[]);
    wait_for(&server, programs.iter().chain(&of_one));
    eventually("the watch", SOON, || server.log().contains("session: following").then_some(()));

    path.block(true);
    etcd.ctl(&["lease", "revoke", &format!("{lease:x}")]);
    etcd.delete(&key(&programs[0]));
    eventually("31 held removals", SOON, || (held(&server) == 31).then_some(()));
    // Longer than the wait for a reply.
    thread::sleep(seconds(5));
    assert_eq!((served(&server).len(), held(&server)), (60, 31));
    path.block(false);
    wait_for(&server, programs[1..].iter().chain(&of_one));
    assert_eq!(held(&server), 30);
}
