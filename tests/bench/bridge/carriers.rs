//! The programs that carry connections to the backend.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
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
    /// Returns the processor time of the carrier so far, and of its children; `None` without one.
    pub(crate) fn cpu_time(&self) -> Option<Duration> {
        let processes = self.processes();
        (!processes.is_empty()).then(|| processes.iter().map(|pid| cpu_time(*pid)).sum())
    }

    /// Returns the memory of the carrier and of its children, without what they share.
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

impl Drop for Carrier {
    fn drop(&mut self) {
        // A server that is killed leaves its rule behind, which concerns the carriers after it.
        if let Running::Bridge(running) = &mut self.running {
            running.0.signal(Signal::SIGTERM);
            eventually("the end of svcdns", SOON, || (!running.0.is_running()).then_some(()));
        }
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

/// Returns the resident memory of a process; pages of several processes count in part.
fn memory_kib(pid: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Starts the carriers one after the other; the next one starts once the former is dropped.
///
/// An error is the reason why one is missing.
pub(crate) fn all(
    backend: SocketAddr,
    is_redirecting: bool,
) -> impl Iterator<Item = Result<Carrier, String>> {
    let starts: [Box<dyn Fn() -> Result<Carrier, String>>; 6] = [
        Box::new(move || Ok(direct(backend))),
        Box::new(move || {
            if !is_redirecting {
                return Err("svcdns, redirecting: no network namespace or nft".to_owned());
            }
            Ok(redirecting(backend))
        }),
        Box::new(move || {
            let port = free_port().to_string();
            let flags = ["--bridge-bind", "true", "--bridge-ports", &port];
            Ok(bridge("svcdns, binding", backend, &flags))
        }),
        Box::new(move || haproxy("HAProxy", backend, "")),
        Box::new(move || haproxy("HAProxy, splice", backend, "  option splice-auto\n")),
        Box::new(move || socat(backend)),
    ];
    starts.into_iter().map(|start| start())
}

fn direct(backend: SocketAddr) -> Carrier {
    Carrier { name: "direct", address: backend, running: Running::Direct }
}

/// Starts a bridge whose connections the kernel redirects.
pub(crate) fn redirecting(backend: SocketAddr) -> Carrier {
    bridge("svcdns, redirecting", backend, &[])
}

/// Registers the backend as `hello.svc`, and starts svcdns with these flags besides.
fn bridge(name: &'static str, backend: SocketAddr, flags: &[&str]) -> Carrier {
    let key = format!("default/default/hello.svc/latest/{backend}");
    let files = Files::new(&[(&key, r#"{"protocol":"http"}"#)]);
    let url = files.url();
    let common = [
        "--bridge",
        "--bridge-pool",
        "127.217.83.0/24",
        "--bridge-connections-per-service",
        "20000",
        "--bridge-drain",
        "100ms",
        "--registry",
        &url,
    ];
    let server = Svcdns::serve(&[&common, flags].concat());
    let address = eventually("an address of the bridge", SOON, || {
        let found = dns::addresses(server.address, "hello.svc").ok()?;
        let is_bridge = |address: &IpAddr| address.to_string().starts_with("127.217.");
        found.first().copied().filter(is_bridge)
    });
    let is_port = |pair: &&[&str]| pair[0] == "--bridge-ports";
    let port = flags.windows(2).find(is_port).map_or(80, |pair| pair[1].parse().unwrap());
    let address = SocketAddr::new(address, port);
    Carrier { name, address, running: Running::Bridge(Box::new((server, files))) }
}

fn haproxy(name: &'static str, backend: SocketAddr, options: &str) -> Result<Carrier, String> {
    let program = Path::new("/usr/sbin/haproxy");
    if !program.exists() {
        return Err(format!("{name}: no haproxy"));
    }
    let port = free_port();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("haproxy.cfg");
    // HAProxy does not start if its connections and pipes need more descriptors than the limit.
    let connections = descriptors::raise_limit().saturating_sub(100) / 3;
    let text = format!(
        "global\n  maxconn {connections}\n\
         defaults\n  mode tcp\n{options}\
         \x20 timeout connect 1s\n  timeout client 1h\n  timeout server 1h\n\
         listen bench\n  bind 127.0.0.1:{port}\n  server one {backend}\n"
    );
    fs::write(&file, text).unwrap();
    let process = Process::start(Command::new(program).arg("-db").arg("-f").arg(&file));
    Ok(started(name, port, process))
}

fn socat(backend: SocketAddr) -> Result<Carrier, String> {
    if !on_path("socat") {
        return Err("socat: not installed".to_owned());
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
