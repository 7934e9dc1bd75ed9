//! Sockets that a service manager holds (`LISTEN_FDS`): restarts lose no query.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use support::files::Files;
use support::process::Process;
use support::steady_load::{Ask, SteadyLoad};
use support::{SOON, dns, eventually, free_address, seconds, svcdns};
use tempfile::TempDir;

/// Datagrams that a server may have taken when it is killed: a batch for each worker.
const IN_HAND: usize = 4 * 32;

/// A program that holds sockets as systemd does, and the server that it starts.
struct Activator {
    address: SocketAddr,
    program: Child,
    commands: Option<ChildStdin>,
    replies: BufReader<ChildStdout>,
    state: TempDir,
    /// The registry of the server.
    _files: Files,
}

impl Activator {
    /// Holds sockets on a free address, and starts a server that gets them.
    fn start(udp_sockets: usize, listen: Option<SocketAddr>) -> Self {
        Self::named(udp_sockets, listen, "dns")
    }

    fn named(udp_sockets: usize, listen: Option<SocketAddr>, names: &str) -> Self {
        let (address, state) = (free_address(), tempfile::tempdir().unwrap());
        let files = Files::new(&[("default/default/hello.svc/latest/10.0.0.1:80", "{}")]);
        let server = svcdns::command();
        let mut program = Command::new("python3")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/activator.py"))
            .args([&address.to_string(), &udp_sockets.to_string(), names])
            .arg(server.get_program())
            .args(["serve", "--upstream", "off", "--registry", &files.url(), "--state-dir"])
            .arg(state.path())
            .args(["--admin-listen", "off", "--listen"])
            .arg(listen.unwrap_or(address).to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(state.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let replies = BufReader::new(program.stdout.take().unwrap());
        let commands = program.stdin.take();
        let mut activator = Self { address, program, commands, replies, state, _files: files };
        activator.tell("start");
        activator
    }

    /// Tells the program what to do, and returns the process ID of the server.
    fn tell(&mut self, command: &str) -> u32 {
        writeln!(self.commands.as_mut().unwrap(), "{command}").unwrap();
        let mut reply = String::new();
        self.replies.read_line(&mut reply).unwrap();
        reply.trim().parse().unwrap_or_else(|_| panic!("{reply:?}: {}", self.log()))
    }

    /// Starts the server anew, and waits until it answers.
    fn restart(&mut self, end: &str) -> u32 {
        self.tell(end);
        let process = self.tell("start");
        self.wait_for_answers();
        process
    }

    fn wait_for_answers(&self) {
        eventually("an answer", SOON, || {
            let addresses = dns::addresses(self.address, "hello.svc");
            (addresses == Ok(vec!["10.0.0.1".parse().unwrap()])).then_some(())
        });
    }

    fn log(&self) -> String {
        fs::read_to_string(self.state.path().join("log")).unwrap()
    }

    fn load(&self, udp_rate: u32, tcp_rate: u32) -> SteadyLoad {
        let names = vec![
            ("hello.svc".to_owned(), "10.0.0.1".to_owned()),
            ("absent.svc".to_owned(), "NXDOMAIN".to_owned()),
        ];
        SteadyLoad::start(self.address, Ask { udp_rate, tcp_rate, names })
    }
}

impl Drop for Activator {
    fn drop(&mut self) {
        // The end of its input ends the program, and with it the server.
        self.commands = None;
        let _ = self.program.wait();
    }
}

/// Returns the number of UDP workers of a process.
fn workers(process: u32) -> usize {
    let threads = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let names =
        threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("comm")).ok());
    names.filter(|name| name.starts_with("udp-")).count()
}

#[test]
fn restarts_under_load_lose_no_query() {
    let mut activator = Activator::start(4, None);
    activator.wait_for_answers();
    let load = activator.load(300, 20);
    for _ in 0..5 {
        activator.restart("terminate");
    }
    let report = load.stop();
    report.expect_no_loss();
    assert_eq!(report.tcp_resets, 0, "{report:?}");
}

#[test]
fn a_killed_server_loses_only_the_queries_in_hand() {
    let mut activator = Activator::start(4, None);
    activator.wait_for_answers();
    let load = activator.load(300, 0);
    for _ in 0..2 {
        activator.restart("kill");
    }
    let report = load.stop();
    assert!(report.lost <= 2 * IN_HAND && report.wrong.is_empty(), "{report:?}");
    assert!(report.answered > 0);
}

#[test]
fn fewer_sockets_mean_fewer_workers() {
    for sockets in [1, 3] {
        let mut activator = Activator::start(sockets, None);
        activator.wait_for_answers();
        let process = activator.restart("terminate");
        // The first worker may answer before the others have started.
        eventually(&format!("{sockets} workers"), SOON, || {
            (workers(process) == sockets).then_some(())
        });
        activator.wait_for_answers();
        assert_eq!(workers(process), sockets, "{}", activator.log());
    }
}

#[test]
fn every_inherited_socket_is_read() {
    let activator = Activator::start(3, None);
    activator.wait_for_answers();
    // The kernel chooses the socket by the port of the client.
    for id in 0..200 {
        let query = dns::query(id, "hello.svc", dns::A);
        let response = dns::exchange(activator.address, &query, seconds(60));
        assert_eq!(dns::code_of(&response.unwrap_or_default()), "NOERROR", "client {id}");
    }
}

#[test]
fn an_address_that_only_systemd_holds_is_served() {
    let configured = free_address();
    let activator = Activator::start(2, Some(configured));
    activator.wait_for_answers();
    assert_eq!(dns::code(configured, "hello.svc", dns::A), "NOERROR");
    let log = activator.log();
    assert!(log.contains("an address that the configuration does not have"), "{log}");
    assert!(log.contains(&activator.address.to_string()), "{log}");
}

#[test]
fn sockets_with_an_unknown_name_end_the_start() {
    let activator = Activator::named(1, None, "web");
    let log = eventually("a message", SOON, || {
        Some(activator.log()).filter(|log| log.contains("FileDescriptorName="))
    });
    assert!(log.contains("\"web\"") && log.contains("dns, tls, quic or admin"), "{log}");
}

#[test]
fn variables_of_another_process_are_ignored() {
    let (address, state) = (free_address(), tempfile::tempdir().unwrap());
    let mut command = svcdns::command();
    command.args(["serve", "--upstream", "off", "--admin-listen", "off", "--state-dir"]);
    command.arg(state.path()).args(["--listen", &address.to_string()]);
    let files = Files::new(&[("default/default/hello.svc/latest/10.0.0.1:80", "{}")]);
    command.args(["--registry", &files.url()]);
    // A shell that systemd started with sockets passes its variables on.
    command.envs([("LISTEN_FDS", "2"), ("LISTEN_PID", "1"), ("LISTEN_FDNAMES", "web:web")]);
    let server = Process::start(&mut command);
    eventually("an answer", SOON, || {
        (dns::code(address, "hello.svc", dns::A) == "NOERROR").then_some(())
    });
    drop(server);
}
