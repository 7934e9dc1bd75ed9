//! A wall clock that jumps while svcdns follows etcd and Consul, and between its starts.
//!
//! libfaketime gives svcdns a wall clock that a file sets while it runs. The monotonic clock stays
//! the machine's, as when a person or NTP sets the time.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use support::consul::Consul;
use support::dns::Prober;
use support::etcd::Etcd;
use support::svcdns::Svcdns;
use support::{SOON, dns, eventually, seconds, skip, throughout};
use tempfile::TempDir;

/// Difference from the set time that other delays explain.
const TOLERANCE: SignedDuration = SignedDuration::from_mins(10);

/// A wall clock of one program, apart from that of the machine.
struct WallClock {
    library: PathBuf,
    folder: TempDir,
}

impl WallClock {
    /// Creates a clock that shows the machine's time; `None` skips the test.
    fn new(test: &str) -> Option<Self> {
        let folders = fs::read_dir("/usr/lib").unwrap().map(|entry| entry.unwrap().path());
        let mut libraries = folders.map(|folder| folder.join("faketime/libfaketimeMT.so.1"));
        let Some(library) = libraries.find(|library| library.exists()) else {
            skip(test, "no libfaketime: tests/setup.sh test installs it");
            return None;
        };
        let clock = Self { library, folder: tempfile::tempdir().unwrap() };
        clock.set(SignedDuration::ZERO);
        Some(clock)
    }

    /// Makes a program use this clock.
    fn apply(&self, command: &mut Command) {
        command
            .env("LD_PRELOAD", &self.library)
            .env("FAKETIME_TIMESTAMP_FILE", self.folder.path().join("time"))
            // Each reading of the clock reads the file.
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("FAKETIME_DISABLE_SHM", "1")
            .env("NO_FAKE_STAT", "1");
    }

    /// Sets the clock to the machine's time plus this difference.
    fn set(&self, difference: SignedDuration) {
        let new = self.folder.path().join("new");
        fs::write(&new, format!("{:+}", difference.as_secs())).unwrap();
        fs::rename(new, self.folder.path().join("time")).unwrap();
    }
}

/// Returns how far the clock of a server was from the machine's when it last logged.
fn difference(server: &Svcdns) -> SignedDuration {
    let log = server.log();
    let time = |line: &str| line.split(' ').next()?.parse::<Timestamp>().ok();
    log.lines().rev().find_map(time).unwrap().duration_since(Timestamp::now())
}

/// Returns the registries in `status`, and the number of held keys.
fn registries(server: &Svcdns) -> (Vec<Value>, Value) {
    let output = server.run(&["status", "--json"]);
    let mut status: Value = serde_json::from_slice(&output.stdout).unwrap();
    let registries = status["registries"].as_array_mut().unwrap().drain(..).collect();
    (registries, status["holding"].take())
}

fn address(last: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, last], 80))
}

fn key(name: &str, last: u8) -> String {
    format!("/service/default/default/{name}/latest/{}", address(last))
}

#[test]
fn a_wall_clock_that_jumps_has_no_effect_on_etcd_and_consul() {
    let test = "a_wall_clock_that_jumps_has_no_effect_on_etcd_and_consul";
    let Some(clock) = WallClock::new(test) else { return };
    let mut etcd = Etcd::start();
    etcd.put(&key("etcd.svc", 1), "{}");
    // Without Consul, the test is about etcd alone.
    let consul = Consul::start(test);
    let program = consul.as_ref().map(|consul| consul.program("consul.svc", "", address(1)));
    let mut flags = vec!["--registry".to_owned(), etcd.url()];
    flags.extend(consul.iter().flat_map(|consul| ["--registry".to_owned(), consul.url()]));
    // A hold ends only if a jump ends it.
    flags.extend(["--removal-grace", "1h", "--log", "svcdns=debug"].map(str::to_owned));
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let server = Svcdns::serve_with(listen, &flags, |command| clock.apply(command));
    let names = if consul.is_some() { &["etcd.svc", "consul.svc"][..] } else { &["etcd.svc"] };
    for name in names {
        server.wait_for(name, &["10.0.0.1"]);
    }
    let probers: Vec<_> = names.iter().map(|name| Prober::start(server.address, name)).collect();
    let (before, _) = registries(&server);

    let (hour, day) = (SignedDuration::from_hours(1), SignedDuration::from_hours(24));
    // Forward by an hour, back by a day and an hour, and forward by two days.
    for (last, set) in [(2, hour), (3, -day), (4, day)] {
        clock.set(set);
        throughout("names are answered, and not as stale", Instant::now(), seconds(3), || {
            names.iter().all(|name| {
                let text = dns::dig(server.address, &[name]);
                text.contains("status: NOERROR") && !text.contains("EDE")
            })
        });
        etcd.put(&key("etcd.svc", last), "{}");
        let changed =
            consul.as_ref().map(|consul| consul.put("consul.svc", "", address(last), "{}"));
        for name in names {
            server.wait_for(name, &["10.0.0.1", &format!("10.0.0.{last}")]);
        }
        // A change is logged after it can be seen.
        eventually("svcdns has logged by this clock", SOON, || {
            ((difference(&server) - set).abs() < TOLERANCE).then_some(())
        });
        etcd.delete(&key("etcd.svc", last));
        if let (Some(consul), Some(changed)) = (&consul, changed) {
            consul.deregister(&changed);
        }
        for name in names {
            server.wait_for(name, &["10.0.0.1"]);
        }
        let (after, held) = registries(&server);
        assert_eq!(held, 0);
        for (before, after) in before.iter().zip(&after) {
            for field in ["connected", "error", "lists", "disconnects"] {
                assert_eq!(before[field], after[field], "{field} of {}", after["name"]);
            }
        }
    }

    // Nor does a jump end the hold of removals.
    etcd.wipe();
    etcd.start_all();
    eventually("a held removal", SOON, || (registries(&server).1 == 1).then_some(()));
    let begun = Timestamp::now();
    for set in [SignedDuration::ZERO, day, -day] {
        clock.set(set);
        // The status shows the end of the hold on the clock as it is now.
        let end = (begun + set + hour).as_second();
        let until = || registries(&server).0[0]["holds"][0]["until"].as_i64().unwrap();
        eventually("the end of the hold", SOON, || {
            ((until() - end).abs() <= TOLERANCE.as_secs()).then_some(())
        });
        throughout("the removal is held", Instant::now(), seconds(2), || {
            registries(&server).1 == 1
        });
    }
    for prober in probers {
        prober.expect_no_loss();
    }
    drop(program);
    server.stop();
}

#[test]
fn a_wall_clock_that_jumps_by_years_costs_no_snapshot() {
    let test = "a_wall_clock_that_jumps_by_years_costs_no_snapshot";
    let Some(clock) = WallClock::new(test) else { return };
    let mut etcd = Etcd::start();
    etcd.put(&key("etcd.svc", 1), "{}");
    let flags = ["--registry".to_owned(), etcd.url()];
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let start =
        |state: TempDir| Svcdns::serve_in(state, listen, &flags, |command| clock.apply(command));
    let is_stale = |server: &Svcdns| {
        let text = dns::dig(server.address, &["etcd.svc"]);
        text.contains("10.0.0.1") && text.contains("EDE: 3 ")
    };
    let server = start(tempfile::tempdir().unwrap());
    server.wait_for("etcd.svc", &["10.0.0.1"]);
    let mut state = server.stop_and_keep();
    etcd.kill();
    let year = SignedDuration::from_hours(365 * 24);
    for (set, is_used, says) in [
        (5 * year, false, "older than max-stale"),
        // What was not used is still there.
        (-5 * year, true, "the clock has gone back"),
        (SignedDuration::ZERO, true, "answering from the snapshot"),
    ] {
        clock.set(set);
        let server = start(state);
        assert_eq!(is_stale(&server), is_used, "{set}: {}", server.log());
        assert!(server.log().contains(says), "{set}: {}", server.log());
        // A jump while the server runs changes neither its answers nor the age of its data.
        clock.set(set + 3 * year);
        assert_eq!(is_stale(&server), is_used, "{set}: {}", server.log());
        state = server.stop_and_keep();
    }
    // A snapshot written while the clock was ahead is used once the clock is right.
    clock.set(5 * year);
    etcd.start_all();
    let server = start(state);
    server.wait_for("etcd.svc", &["10.0.0.1"]);
    eventually("fresh answers", SOON, || (!is_stale(&server)).then_some(()));
    let state = server.stop_and_keep();
    etcd.kill();
    clock.set(SignedDuration::ZERO);
    let server = start(state);
    assert!(is_stale(&server), "{}", server.log());
    server.stop();
}
