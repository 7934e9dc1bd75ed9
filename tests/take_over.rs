//! `svcdns serve --take-over`: a new server takes the sockets of the running one.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests")]

mod support;

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use ::svcdns::handover::{HandoverChannel, Step, VERSION};
use nix::sys::signal::Signal;
use support::dns::Prober;
use support::files::Files;
use support::process::Process;
use support::steady_load::{Ask, SteadyLoad};
use support::{SOON, dns, eventually, free_address, seconds, skip, svcdns};
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};

/// Take-overs in a row.
const TAKE_OVERS: usize = 10;

/// A place for servers that succeed each other: their directory, address and registry.
struct Place {
    state: TempDir,
    files: Files,
    address: SocketAddr,
    admin: SocketAddr,
}

impl Place {
    fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        fs::set_permissions(state.path(), Permissions::from_mode(0o755)).unwrap();
        let files = Files::new(&[("default/default/hello.svc/latest/10.0.0.1:80", "{}")]);
        Self { state, files, address: free_address(), admin: free_address() }
    }

    fn command(&self, flags: &[&str]) -> Command {
        let mut command = svcdns::command();
        command.args(["serve", "--listen", &self.address.to_string(), "--state-dir"]);
        command.arg(self.state.path()).args(["--admin-listen", &self.admin.to_string()]);
        command.args(["--upstream", "off", "--registry", &self.files.url()]).args(flags);
        command
    }

    /// Starts the first server.
    fn serve(&self, flags: &[&str]) -> Process {
        let server = Process::start(&mut self.command(flags));
        eventually("the first answer", SOON, || {
            (dns::addresses(self.address, "hello.svc") == Ok(vec!["10.0.0.1".parse().unwrap()]))
                .then_some(())
        });
        server
    }

    /// Starts a server that takes over, and waits until the old one has ended.
    fn take_over(&self, old: &mut Process, flags: &[&str]) -> Process {
        Self::take_over_by(&mut self.command(&[&["--take-over"], flags].concat()), old)
    }

    /// Runs a command that takes over, and waits until the old server has ended.
    fn take_over_by(command: &mut Command, old: &mut Process) -> Process {
        let mut new = Process::start(command);
        let mut is_over = || {
            assert!(new.ended().is_none(), "the successor has ended:\n{}", new.log());
            old.ended()
        };
        let status = eventually("the end of the old server", SOON, &mut is_over);
        assert!(status.success(), "{status}:\n{}", old.log());
        assert!(old.log().contains("another server has taken over"), "{}", old.log());
        new
    }

    /// Runs `serve` to its end, which comes at once.
    fn refused(&self, flags: &[&str], code: i32) -> String {
        let mut server = Process::start(&mut self.command(flags));
        let status = server.wait(SOON);
        assert_eq!(status.code(), Some(code), "{}", server.log());
        server.log()
    }

    fn status(&self) -> Output {
        let mut command = svcdns::command();
        command.args(["status", "--state-dir"]).arg(self.state.path()).output().unwrap()
    }

    fn take_over_socket(&self) -> PathBuf {
        self.state.path().join("take-over.sock")
    }

    /// Connects to the running server as a successor that this test plays.
    fn successor(&self, runtime: &Runtime) -> HandoverChannel {
        let socket = self.take_over_socket();
        HandoverChannel::new(runtime.block_on(UnixStream::connect(socket)).unwrap())
    }

    fn assert_answers(&self, when: &str) {
        let expected = Ok(vec!["10.0.0.1".parse().unwrap()]);
        assert_eq!(dns::addresses(self.address, "hello.svc"), expected, "{when}");
        assert!(self.status().status.success(), "{when}");
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// Calls `act` again and again in a thread while `during` runs; returns the number of calls.
fn meanwhile(act: impl Fn() + Sync, during: impl FnOnce()) -> usize {
    let (stop, calls) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let calling = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                act();
                calls.fetch_add(1, Ordering::Relaxed);
            }
        });
        during();
        stop.store(true, Ordering::Relaxed);
        calling.join().unwrap();
    });
    calls.into_inner()
}

#[test]
fn a_take_over_under_load_loses_no_query() {
    let place = Place::new();
    let mut server = place.serve(&[]);
    let names = [("hello.svc", "10.0.0.1"), ("nothing.svc", "NXDOMAIN")];
    let names = names.map(|(name, answer)| (name.to_owned(), answer.to_owned())).into();
    let load = SteadyLoad::start(place.address, Ask { udp_rate: 1000, tcp_rate: 0, names });
    for _ in 0..TAKE_OVERS {
        server = place.take_over(&mut server, &[]);
    }
    let report = load.stop();
    report.expect_no_loss();
    eprintln!(
        "{TAKE_OVERS} take-overs: {} of {} queries answered, the slowest after {:?}",
        report.answered,
        report.sent,
        report.response_time(1.0)
    );
    assert!(server.terminate().success(), "{}", server.log());
    let left: Vec<_> = fs::read_dir(place.state.path()).unwrap().collect();
    assert!(left.is_empty(), "the last server has removed its files: {left:?}");
}

#[test]
fn the_command_on_the_page_takes_over() {
    let place = Place::new();
    let mut server = place.serve(&[]);
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("svcdns.toml").to_str().unwrap().to_owned();
    let text = format!(
        "listen = [\"{}\"]\nadmin-listen = \"{}\"\nstate-dir = \"{state}\"\n\
         runtime-dir = \"{state}\"\nupstream = [\"off\"]\nregistry = [\"{}\"]\n",
        place.address,
        place.admin,
        place.files.url(),
        state = place.state.path().display()
    );
    fs::write(&config, text).unwrap();
    let page = include_str!("../docs/operations.md");
    let line = page.lines().find(|line| line.starts_with("svcdns serve --take-over ")).unwrap();
    let mut command = svcdns::command();
    command.args(line.replace("/etc/svcdns/svcdns.toml", &config).split(' ').skip(1));
    let _server = Place::take_over_by(&mut command, &mut server);
    place.assert_answers("after the take-over");
}

#[test]
fn commands_reach_the_server_throughout() {
    let place = Place::new();
    let mut server = place.serve(&[]);
    let ask = || {
        let output = place.status();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // A scrape of the HTTP port: the response may come from either server.
        let mut stream = TcpStream::connect(place.admin).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let request = "GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).unwrap();
        assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    };
    let calls = meanwhile(ask, || {
        for _ in 0..3 {
            server = place.take_over(&mut server, &[]);
        }
    });
    assert!(calls > 3, "{calls}");
}

#[test]
fn tcp_clients_of_the_old_server_get_their_answers() {
    let place = Place::new();
    let mut server = place.serve(&[]);
    let ask = || {
        // A server may close a connection before it has read the query (RFC 7766 section 6.2.4).
        // On a busy machine, the old one may accept a second connection before it has stopped.
        let answered = (0..3).any(|_| {
            let mut stream = TcpStream::connect(place.address).unwrap();
            stream.set_read_timeout(Some(SOON)).unwrap();
            dns::send_tcp(&mut stream, &dns::query(7, "hello.svc", dns::A));
            dns::receive_tcp(&mut stream).is_some_and(|response| {
                assert_eq!(dns::code_of(&response), "NOERROR");
                true
            })
        });
        assert!(answered, "three connections were closed without an answer");
    };
    let calls = meanwhile(ask, || {
        for _ in 0..5 {
            server = place.take_over(&mut server, &[]);
        }
    });
    assert!(calls > 20, "{calls}");
}

#[test]
fn a_successor_that_dies_leaves_the_old_server_serving() {
    let place = Place::new();
    let mut server = place.serve(&[]);
    let prober = Prober::start(place.address, "hello.svc");
    let runtime = runtime();
    let expect_goes_on = |attempts: usize| {
        eventually("the end of the attempt", SOON, || {
            let log = server.log();
            (log.matches("this server keeps serving").count() == attempts).then_some(())
        });
        place.assert_answers("after a successor that died");
    };
    drop(place.successor(&runtime));
    expect_goes_on(1);

    let hello = Step::Hello { version: VERSION, process: std::process::id() };
    let mut channel = place.successor(&runtime);
    runtime.block_on(channel.send(&hello, &[], SOON)).unwrap();
    drop(channel);
    expect_goes_on(2);

    let mut channel = place.successor(&runtime);
    runtime.block_on(channel.send(&hello, &[], SOON)).unwrap();
    let (step, descriptors) = runtime.block_on(channel.receive::<Step>(SOON)).unwrap();
    let Step::Passed { descriptors: described, more: false, complete: true } = step else {
        panic!("{step:?}")
    };
    let of = |name: &str| described.iter().filter(|one| one.name == name).count();
    assert_eq!([of("commands"), of("take-over"), of("lock"), of("admin")], [1; 4], "{described:?}");
    assert!(of("dns") >= 2 && descriptors.len() == described.len(), "{described:?}");
    drop((channel, descriptors));
    expect_goes_on(3);

    // A real one, which waits for a registry that is away.
    let waits = ["--take-over", "--registry", "etcd://127.77.21.2:1"];
    let mut new = Process::start(&mut place.command(&waits));
    eventually("the passing of the sockets", SOON, || {
        let log = server.log();
        (log.matches("passing the sockets to a successor").count() == 3).then_some(())
    });
    new.signal(Signal::SIGKILL);
    new.wait(SOON);
    expect_goes_on(4);

    // Another server still gets everything.
    prober.expect_no_loss();
    let new = place.take_over(&mut server, &[]);
    place.assert_answers("after the take-over");
    drop(new);
}

#[test]
fn a_successor_that_could_not_read_a_registry_gives_up() {
    let place = Place::new();
    let server = place.serve(&[]);
    let prober = Prober::start(place.address, "hello.svc");
    let flags = ["--take-over", "--registry", "etcd://127.77.21.3:1"];
    let log = place.refused(&flags, 1);
    assert!(log.contains("the registries etcd could not be read"), "{log}");
    prober.expect_no_loss();
    place.assert_answers("after a successor that gave up");
    drop(server);
}

#[test]
fn a_third_server_finds_the_port_and_the_directory_taken() {
    let place = Place::new();
    let mut server = place.serve(&[]);
    let elsewhere = tempfile::tempdir().unwrap();
    let expect_taken = |when: &str| {
        let log = place.refused(&[], 1);
        assert!(log.contains("another svcdns is running"), "{when}: {log}");
        let state = elsewhere.path().to_str().unwrap();
        let mut command = svcdns::command();
        command.args(["serve", "--listen", &place.address.to_string(), "--state-dir", state]);
        command.args(["--admin-listen", "off", "--upstream", "off"]);
        let output = command.args(["--registry", &place.files.url()]).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains("the port is in use"), "{when}: {error}");
        assert_eq!(output.status.code(), Some(1), "{when}");
    };
    expect_taken("before");
    let runtime = runtime();
    let mut channel = place.successor(&runtime);
    let hello = Step::Hello { version: VERSION, process: std::process::id() };
    runtime.block_on(channel.send(&hello, &[], SOON)).unwrap();
    let passed = runtime.block_on(channel.receive::<Step>(SOON)).unwrap();
    expect_taken("during");
    drop((passed, channel));
    let mut server = place.take_over(&mut server, &[]);
    expect_taken("after");
    assert!(server.terminate().success());
    place.serve(&[]);
}

/// Returns what kdig prints of a query over TLS (`+tls`) or QUIC (`+quic`).
fn kdig(server: SocketAddr, certificate: &str, transport: &str) -> String {
    let mut command = Command::new("kdig");
    command.args([&format!("@{}", server.ip()), "-p", &server.port().to_string()]);
    command.args([&format!("+tls-ca={certificate}"), "+tls-hostname=localhost", transport]);
    let output = command.args(["hello.svc", "A", "+timeout=15"]).output();
    support::machine::said(&output.unwrap_or_else(|error| panic!("kdig: {error}")))
}

#[test]
fn encrypted_listeners_are_taken_over() {
    let place = Place::new();
    let (tls, quic) = (free_address(), free_address());
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (certificate, key) = (path("cert.pem"), path("key.pem"));
    fs::write(&certificate, made.cert.pem()).unwrap();
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let addresses = [tls.to_string(), quic.to_string()];
    let flags = ["--tls-listen", &addresses[0], "--tls-quic-listen", &addresses[1]];
    let flags = [&flags[..], &["--tls-cert-file", &certificate, "--tls-key-file", &key]].concat();
    let mut server = place.serve(&flags);
    for _ in 0..2 {
        server = place.take_over(&mut server, &flags);
        for (address, transport) in [(tls, "+tls"), (quic, "+quic")] {
            let response = kdig(address, &certificate, transport);
            assert!(response.contains("10.0.0.1"), "{transport}: {response}");
        }
        assert!(!server.log().contains("cannot listen"), "{}", server.log());
    }
}

#[test]
fn a_successor_with_other_addresses_closes_the_rest() {
    let mut place = Place::new();
    let (dropped, added) = (free_address(), free_address());
    let mut server = place.serve(&["--listen", &dropped.to_string()]);
    eventually("an answer on the second address", SOON, || {
        (dns::code(dropped, "hello.svc", dns::A) == "NOERROR").then_some(())
    });
    let dropped_admin = std::mem::replace(&mut place.admin, free_address());
    let server = place.take_over(&mut server, &["--listen", &added.to_string()]);
    place.assert_answers("on the common address");
    assert_eq!(dns::code(added, "hello.svc", dns::A), "NOERROR");
    UdpSocket::bind(dropped).unwrap();
    TcpListener::bind(dropped).unwrap();
    TcpListener::bind(dropped_admin).unwrap();
    drop(server);
}

#[test]
fn strangers_get_no_descriptors() {
    const TEST: &str = "strangers_get_no_descriptors";
    if !nix::unistd::geteuid().is_root() {
        return skip(TEST, "only root can start a process of another user");
    }
    let place = Place::new();
    let server = place.serve(&[]);
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
    let program = folder.path().join("svcdns");
    fs::copy(env!("CARGO_BIN_EXE_svcdns"), &program).unwrap();
    let as_nobody = |flags: &[&str], runtime_dir: &Path| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
        command.args(["serve", "--listen", &free_address().to_string(), "--admin-listen", "off"]);
        command.args(["--upstream", "off", "--registry", "file:///nowhere"]).args(flags);
        command.arg("--runtime-dir").arg(runtime_dir);
        command.arg("--state-dir").arg(folder.path().join("state")).env("HOME", folder.path());
        Process::start(&mut command)
    };
    let socket = place.take_over_socket();
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let mut stranger = as_nobody(&["--take-over"], place.state.path());
    assert_eq!(stranger.wait(SOON).code(), Some(1), "{}", stranger.log());
    assert!(stranger.log().contains("Permission denied"), "{}", stranger.log());
    // Even if an administrator opens the file to everyone.
    fs::set_permissions(&socket, Permissions::from_mode(0o666)).unwrap();
    let mut stranger = as_nobody(&["--take-over"], place.state.path());
    assert_eq!(stranger.wait(SOON).code(), Some(1), "{}", stranger.log());
    assert!(stranger.log().contains("the other process ended"), "{}", stranger.log());
    assert!(server.log().contains("user 65534 may not take over"), "{}", server.log());
    assert!(!server.log().contains("passing the sockets"), "{}", server.log());
    place.assert_answers("after the stranger");

    // And root does not take the sockets of a server that could be an attacker's.
    let runtime_dir = folder.path().join("run");
    let foreign = as_nobody(&[], &runtime_dir);
    let socket = runtime_dir.join("take-over.sock");
    eventually("the socket of another user", SOON, || socket.exists().then_some(()));
    let flags = ["--take-over", "--runtime-dir", runtime_dir.to_str().unwrap()];
    let log = place.refused(&flags, 1);
    assert!(log.contains("the running server belongs to user 65534"), "{log}");
    drop(foreign);
}

#[test]
fn a_take_over_is_refused_where_it_cannot_work() {
    let place = Place::new();
    let log = place.refused(&["--take-over"], 4);
    assert!(log.contains("no running svcdns was found to take over from"), "{log}");

    let mut managed = place.command(&[]);
    managed.env("INVOCATION_ID", "0123456789abcdef0123456789abcdef");
    let mut server = Process::start(&mut managed);
    eventually("the first answer", SOON, || {
        (dns::code(place.address, "hello.svc", dns::A) == "NOERROR").then_some(())
    });
    let log = place.refused(&["--take-over"], 1);
    assert!(log.contains("systemctl restart svcdns"), "{log}");
    let log = place.refused(&["--take-over", "--bridge"], 1);
    assert!(log.contains("a port bridge cannot be taken over"), "{log}");
    place.assert_answers("after the refusals");

    let runtime = runtime();
    let mut channel = place.successor(&runtime);
    let hello = Step::Hello { version: VERSION + 1, process: std::process::id() };
    runtime.block_on(channel.send(&hello, &[], SOON)).unwrap();
    let (step, _) = runtime.block_on(channel.receive::<Step>(SOON)).unwrap();
    let Step::Refused { reason } = step else { panic!("{step:?}") };
    assert!(reason.contains("does not know version 2 of the take-over"), "{reason}");
    assert!(server.terminate().success());
}

#[test]
fn a_stop_during_the_take_over_stops_one_server_only() {
    let place = Place::new();
    let mut server = place.serve(&[]);
    let waits = ["--take-over", "--registry", "etcd://127.77.21.4:1"];
    let mut new = Process::start(&mut place.command(&waits));
    eventually("the passing of the sockets", SOON, || {
        server.log().contains("passing the sockets to a successor").then_some(())
    });
    new.signal(Signal::SIGTERM);
    assert_eq!(new.wait(seconds(25)).code(), Some(1), "{}", new.log());
    assert!(new.log().contains("the running server keeps serving"), "{}", new.log());
    place.assert_answers("after the stop of the successor");
    assert!(server.terminate().success());
}
