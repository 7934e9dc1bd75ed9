//! What the server tells the service manager that started it (sd_notify(3)).
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixDatagram;

use support::files::Files;
use support::svcdns::Svcdns;
use support::{SOON, dns};
use tempfile::TempDir;

/// The socket of a service manager, in a directory of its own.
struct Manager {
    folder: TempDir,
    socket: UnixDatagram,
}

impl Manager {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        Self { folder, socket }
    }

    /// Starts a server that knows the socket, and wants signs of life within this time.
    fn serve(&self, flags: &[&str], watchdog: Option<&str>) -> Svcdns {
        let any = (Ipv4Addr::LOCALHOST, 0).into();
        let notify = self.folder.path().join("notify");
        Svcdns::serve_with(any, flags, |command| {
            command.env("NOTIFY_SOCKET", notify);
            command.envs(watchdog.map(|micros| ("WATCHDOG_USEC", micros)));
        })
    }

    fn next(&self) -> String {
        let mut bytes = [0; 1024];
        let length = self.socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    }

    /// Returns the next message that `is_wanted` selects.
    fn wait_for(&self, is_wanted: impl Fn(&str) -> bool) -> String {
        std::iter::repeat_with(|| self.next()).find(|message| is_wanted(message)).unwrap()
    }
}

/// Returns the flag for a registry that cannot be reached.
fn unreachable() -> [&'static str; 2] {
    ["--registry", "etcd://127.77.21.1:1"]
}

#[test]
fn the_server_is_ready_once_it_answers_although_no_registry_was_read() {
    let manager = Manager::new();
    let server = manager.serve(&unreachable(), None);
    assert_eq!(manager.next(), "READY=1");
    assert_eq!(dns::code(server.address, "hello.svc", dns::A), "SERVFAIL");
    let status = manager.next();
    assert!(status.starts_with("STATUS="), "{status}");
    assert!(!status.contains('\n') && status.contains("read"), "{status}");
    server.stop();
    assert_eq!(manager.wait_for(|message| !message.starts_with("STATUS=")), "STOPPING=1");
}

#[test]
fn the_status_follows_the_registries() {
    let manager = Manager::new();
    let files = Files::new(&[("default/default/hello.svc/latest/127.0.0.1:80", "{}")]);
    let server = manager.serve(&["--registry", &files.url()], None);
    assert_eq!(manager.next(), "READY=1");
    server.wait_for("hello.svc", &["127.0.0.1"]);
    manager.wait_for(|message| message.starts_with("STATUS=ready"));
    server.stop();
}

#[test]
fn a_reload_ends_with_ready_even_if_it_was_refused() {
    let manager = Manager::new();
    let config = manager.folder.path().join("svcdns.toml");
    fs::write(&config, "ttl = \"7s\"\n").unwrap();
    let flags = [&unreachable()[..], &["--config", config.to_str().unwrap()]].concat();
    let server = manager.serve(&flags, None);
    assert_eq!(manager.next(), "READY=1");
    let mut last_time = 0;
    for (text, is_valid) in [("ttl = \"9s\"\n", true), ("ttl = \"soon\"\n", false)] {
        fs::write(&config, text).unwrap();
        let output = server.run(&["reload"]);
        assert_eq!(output.status.success(), is_valid, "{text}: {output:?}");
        let is_state = |message: &str| !message.starts_with("STATUS=");
        let message = manager.wait_for(is_state);
        let time = message.strip_prefix("RELOADING=1\nMONOTONIC_USEC=");
        let time: u64 = time.unwrap_or_else(|| panic!("{message}")).parse().unwrap();
        assert!(time > last_time, "{time} after {last_time}");
        last_time = time;
        assert_eq!(manager.wait_for(is_state), "READY=1", "{text}");
    }
    server.stop();
}

#[test]
fn signs_of_life_come_while_the_workers_work() {
    let manager = Manager::new();
    let server = manager.serve(&unreachable(), Some("1000000"));
    for _ in 0..3 {
        manager.wait_for(|message| message == "WATCHDOG=1");
    }
    server.stop();
}

#[test]
fn a_manager_that_is_gone_stops_no_server() {
    let manager = Manager::new();
    let path = manager.folder.path().join("notify");
    drop(manager.socket);
    let any = (Ipv4Addr::LOCALHOST, 0).into();
    let server = Svcdns::serve_with(any, &unreachable(), |command| {
        command.env("NOTIFY_SOCKET", path).env("WATCHDOG_USEC", "100000");
    });
    assert_eq!(dns::code(server.address, "hello.svc", dns::A), "SERVFAIL");
    assert!(server.log().contains("cannot notify the service manager"), "{}", server.log());
    server.stop();
}
