//! Helpers for tests that run real processes.
#![allow(dead_code, reason = "each test program uses some of the helpers")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "helpers of tests"
)]

pub(crate) mod booted_debian;
pub(crate) mod bridge_server;
pub(crate) mod bridged;
pub(crate) mod consul;
pub(crate) mod counters;
pub(crate) mod dns;
pub(crate) mod echo;
pub(crate) mod etcd;
pub(crate) mod files;
pub(crate) mod followed;
pub(crate) mod former;
pub(crate) mod go;
pub(crate) mod goframe;
pub(crate) mod load;
pub(crate) mod machine;
pub(crate) mod nacos;
pub(crate) mod netns;
pub(crate) mod pages;
pub(crate) mod polaris;
pub(crate) mod process;
pub(crate) mod reloading;
pub(crate) mod replay;
pub(crate) mod resolved;
pub(crate) mod resolved_route;
pub(crate) mod service_manager;
pub(crate) mod steady_load;
pub(crate) mod strace;
pub(crate) mod svcdns;
pub(crate) mod systemd;
pub(crate) mod upstream;
#[cfg(feature = "zookeeper")]
pub(crate) mod zookeeper;

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::{self, net::UnixListener};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

/// Longest wait for an event that must come soon: a busy machine may be very slow.
///
/// To show that an event comes at once and not for a later reason, a test rules that reason out.
pub(crate) const SOON: Duration = seconds(120);

/// Polls `check` until it returns a value.
///
/// Fails the test after `within`, naming `what`.
pub(crate) fn eventually<T>(
    what: &str,
    within: Duration,
    mut check: impl FnMut() -> Option<T>,
) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(start.elapsed() < within, "waited {within:?} for: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Polls `check` for `period` after `start`; fails the test if it is ever false.
///
/// A result after `period` is ignored: the machine may have paused the test.
pub(crate) fn throughout(
    what: &str,
    start: Instant,
    period: Duration,
    mut check: impl FnMut() -> bool,
) {
    loop {
        let holds = check();
        let after = start.elapsed();
        if after >= period {
            return;
        }
        assert!(holds, "after {after:?} no longer true: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// First words of the reasons for which a test may be skipped with CI=true.
///
/// `tests/skipped.sh` has the same list.
const ALLOWED_IN_CI: [&str; 4] =
    ["no go on PATH", "no java on PATH", "no kernel feature", "no consul was built"];

/// Records a test as skipped; `make test` prints the list at the end.
///
/// With CI=true, only a reason that begins with one of [`ALLOWED_IN_CI`] may skip a test.
pub(crate) fn skip(test: &str, reason: &str) {
    eprintln!("\nSKIPPED: {test}: {reason}\n");
    let is_allowed = ALLOWED_IN_CI.iter().any(|allowed| reason.starts_with(allowed));
    assert!(
        is_allowed || env::var("CI").as_deref() != Ok("true"),
        "{test} may not be skipped with CI=true: {reason}"
    );
    if let Some(folder) = env::var_os("SKIPPED_TESTS") {
        fs::create_dir_all(&folder).unwrap();
        fs::write(std::path::Path::new(&folder).join(test), format!("{reason}\n")).unwrap();
    }
}

/// Skips a test because the kernel, or the container, does not offer a feature.
///
/// `problem` is the message of a probe that does no more than use the feature.
pub(crate) fn skip_without_kernel_feature(test: &str, problem: &str) {
    skip(test, &format!("no kernel feature: {problem}"));
}

/// Returns whether a program is on PATH.
pub(crate) fn on_path(program: &str) -> bool {
    env::split_paths(&env::var_os("PATH").unwrap_or_default())
        .any(|folder| folder.join(program).is_file())
}

/// Reserves a free port of 127.0.0.1, UDP and TCP, until this process ends.
///
/// No other test gets the same port, and the kernel and the etcd helper use higher ones, so the
/// port is still free when its server binds it.
pub(crate) fn free_address() -> SocketAddr {
    for _ in 0..1000 {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, fastrand::u16(10_000..12_000)));
        // An abstract socket name has one owner and is free again when its process ends.
        let name =
            unix::net::SocketAddr::from_abstract_name(format!("svcdns test at {address}")).unwrap();
        let Ok(reservation) = UnixListener::bind_addr(&name) else { continue };
        if UdpSocket::bind(address).is_ok() && TcpListener::bind(address).is_ok() {
            Box::leak(Box::new(reservation));
            return address;
        }
    }
    panic!("no free port on 127.0.0.1");
}
