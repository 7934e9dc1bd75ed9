//! What the tests with real processes share.
#![allow(dead_code, reason = "each test program takes what it needs")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "helpers of tests"
)]

pub(crate) mod dns;
pub(crate) mod echo;
pub(crate) mod etcd;
pub(crate) mod files;
pub(crate) mod machine;
pub(crate) mod netns;
pub(crate) mod process;
pub(crate) mod resolved;
pub(crate) mod svcdns;
pub(crate) mod upstream;

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::{self, net::UnixListener};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

/// Longest wait for what must happen soon: a busy machine may take very long for anything. That something happens at once,
/// and not for another reason later, a test shows by ruling that reason out.
pub(crate) const SOON: Duration = seconds(120);

/// Polls until `check` gives something; fails the test, saying what was waited for, when it has not `within` this time.
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

/// Fails the test unless `check` holds all through this time after `start`. What is seen later says nothing: the machine may
/// have stopped meanwhile.
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

/// Counts a test as skipped, loudly: `make test` prints the list at its end. With CI=true only a missing Go or Java
/// toolchain (a reason that begins with "no go on PATH" or "no java on PATH") may skip a test.
pub(crate) fn skip(test: &str, reason: &str) {
    eprintln!("\nSKIPPED: {test}: {reason}\n");
    let toolchain = reason.starts_with("no go on PATH") || reason.starts_with("no java on PATH");
    assert!(
        toolchain || env::var("CI").as_deref() != Ok("true"),
        "{test} may not be skipped with CI=true: {reason}"
    );
    if let Some(folder) = env::var_os("SKIPPED_TESTS") {
        fs::create_dir_all(&folder).unwrap();
        fs::write(std::path::Path::new(&folder).join(test), format!("{reason}\n")).unwrap();
    }
}

/// Whether a program is on PATH.
pub(crate) fn on_path(program: &str) -> bool {
    env::split_paths(&env::var_os("PATH").unwrap_or_default())
        .any(|folder| folder.join(program).is_file())
}

/// Reserves a free port of 127.0.0.1, UDP and TCP, until this process ends.
///
/// It is below the ports that the kernel hands out and that etcd gets here, and no other test gets
/// the same one, so it is still free when its server binds it.
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
