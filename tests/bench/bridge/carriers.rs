//! The programs that carry connections to the backend.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use svcdns::descriptors;

use crate::support::files::Files;
use crate::support::process::Process;
use crate::support::svcdns::Svcdns;
use crate::support::{SOON, dns, eventually, on_path};

/// A program between client and backend.
pub(crate) struct Carrier {
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    running: Running,
}

/// What runs while a carrier is measured.
enum Running {
    /// Nothing: the client connects to the backend.
    Direct,
    Bridge(Box<(Svcdns, Files)>),
    Program(Process),
}

/// Ticks of a second in /proc/PID/stat (sysconf(_SC_CLK_TCK) is 100 on Linux).
const TICK: Duration = Duration::from_millis(10);

impl Carrier {
    /// Returns the processor time of the carrier so far, and of its children.
    pub(crate) fn cpu_time(&self) -> Duration {
        self.processes().iter().map(|pid| cpu_time(*pid)).sum()
    }

    /// Returns the resident memory of the carrier, and of its children.
    pub(crate) fn memory_kib(&self) -> u64 {
        self.processes().iter().map(|pid| memory_kib(*pid)).sum()
    }

    fn processes(&self) -> Vec<u32> {
        let first = match &self.running {
            Running::Direct => return Vec::new(),
            Running::Bridge(running) => running.0.pid(),
            Running::Program(process) => process.pid(),
        };
        let path = format!("/proc/{first}/task/{first}/children");
        let children = fs::read_to_string(path).unwrap_or_default();
        let children = children.split_whitespace().filter_map(|child| child.parse().ok());
        [first].into_iter().chain(children).collect()
    }
}

/// Returns the processor time of a process, and of its children that have ended.
fn cpu_time(pid: u32) -> Duration {
    // A child may end meanwhile.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name, in parentheses, may contain spaces.
    let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let ticks: u32 =
        after_name.split(' ').skip(11).take(4).filter_map(|ticks| ticks.parse::<u32>().ok()).sum();
    TICK * ticks
}

fn memory_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Starts the server behind all carriers.
pub(crate) fn start_backend(serve: fn(TcpStream)) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            stream.set_nodelay(true).unwrap();
            // Many idle connections need little stack.
            thread::Builder::new().stack_size(64 * 1024).spawn(move || serve(stream)).unwrap();
        }
    });
    address
}

/// Starts the carriers one after the other; the next one starts once the former is dropped.
///
/// An error is the reason why one is missing.
pub(crate) fn all(backend: SocketAddr) -> impl Iterator<Item = Result<Carrier, String>> {
    let starts: [fn(SocketAddr) -> Result<Carrier, String>; 4] = [direct, bridge, haproxy, socat];
    starts.into_iter().map(move |start| start(backend))
}

#[allow(clippy::unnecessary_wraps, reason = "as the other carriers")]
fn direct(backend: SocketAddr) -> Result<Carrier, String> {
    Ok(Carrier { name: "direct", address: backend, running: Running::Direct })
}

#[allow(clippy::unnecessary_wraps, reason = "as the other carriers")]
fn bridge(backend: SocketAddr) -> Result<Carrier, String> {
    let port = free_port();
    let key = format!("default/default/hello.svc/latest/{backend}");
    let files = Files::new(&[(&key, r#"{"protocol":"http"}"#)]);
    let (url, port_text) = (files.url(), port.to_string());
    let flags = [
        "--bridge",
        "--bridge-bind",
        "true",
        "--bridge-pool",
        "127.217.83.0/24",
        "--bridge-ports",
        &port_text,
        "--bridge-connections",
        "20000",
        "--bridge-connections-per-service",
        "20000",
        "--registry",
        &url,
    ];
    let server = Svcdns::serve(&flags);
    let address = eventually("an address of the bridge", SOON, || {
        let found = dns::addresses(server.address, "hello.svc").ok()?;
        found.first().copied().filter(|address| {
            matches!(address, std::net::IpAddr::V4(address) if address.octets()[1] == 217)
        })
    });
    let address = SocketAddr::new(address, port);
    Ok(Carrier { name: "svcdns", address, running: Running::Bridge(Box::new((server, files))) })
}

fn haproxy(backend: SocketAddr) -> Result<Carrier, String> {
    let program = Path::new("/usr/sbin/haproxy");
    if !program.exists() {
        return Err("no haproxy".to_owned());
    }
    let port = free_port();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("haproxy.cfg");
    // HAProxy does not start if its connections need more descriptors than the limit.
    let connections = descriptors::raise_limit().saturating_sub(100) / 2;
    let text = format!(
        "global\n  maxconn {connections}\n\
         defaults\n  mode tcp\n  timeout connect 1s\n  timeout client 1h\n  timeout server 1h\n\
         listen bench\n  bind 127.0.0.1:{port}\n  server one {backend}\n"
    );
    fs::write(&file, text).unwrap();
    let process = Process::start(Command::new(program).arg("-db").arg("-f").arg(&file));
    Ok(started("HAProxy", port, process))
}

fn socat(backend: SocketAddr) -> Result<Carrier, String> {
    if !on_path("socat") {
        return Err("no socat".to_owned());
    }
    let port = free_port();
    let listen = format!("TCP4-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr,nodelay,backlog=4096");
    let connect = format!("TCP4:{backend},nodelay");
    let process = Process::start(Command::new("socat").args([&listen, &connect]));
    Ok(started("socat", port, process))
}

/// Waits until a program listens.
fn started(name: &'static str, port: u16, process: Process) -> Carrier {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    eventually(name, SOON, || TcpStream::connect(address).ok().map(drop));
    Carrier { name, address, running: Running::Program(process) }
}

fn free_port() -> u16 {
    TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port()
}
