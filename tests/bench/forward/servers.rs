//! The servers that are compared, each at a free port, with one upstream, on one core.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::roles;
use super::support::files::Files;
use super::support::process::Process;
use super::support::{free_address, svcdns};

/// A running server.
pub(crate) struct Server {
    pub(crate) name: String,
    process: Process,
    pub(crate) address: SocketAddr,
    _state: TempDir,
    _files: Option<Files>,
}

/// What each is told, for the reader of the figures.
pub(crate) const SETTINGS: &str = "\
svcdns: an empty file registry, --upstream 127.0.0.1#PORT, all else as it comes
dnsmasq: --no-resolv --server=127.0.0.1#PORT --no-daemon, and --cache-size, which is 150 as it comes
unbound: forward-zone \".\", module-config \"iterator\", num-threads 1, msg-cache-size 64m, rrset-cache-size 128m";

impl Server {
    pub(crate) fn svcdns(upstream: SocketAddr) -> Self {
        let (address, state, files) = (free_address(), tempfile::tempdir().unwrap(), Files::new(&[]));
        let mut command = svcdns::command();
        command.args(["serve", "--registry", &files.url(), "--listen", &address.to_string(), "--admin-listen", "off"]);
        command.args(["--upstream", &upstream.to_string()]).arg("--state-dir").arg(state.path());
        let name = format!("svcdns {}", env!("CARGO_PKG_VERSION"));
        Self { name, process: Process::start(&mut command), address, _state: state, _files: Some(files) }
    }

    /// With a cache of so many records; 150 is what it comes with.
    pub(crate) fn dnsmasq(upstream: SocketAddr, cache: usize) -> Self {
        let (address, state) = (free_address(), tempfile::tempdir().unwrap());
        let mut command = Command::new("dnsmasq");
        command.args(["--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces", "--pid-file="]);
        command.args(["--listen-address=127.0.0.1"]);
        command.arg(format!("--cache-size={cache}"));
        command.arg(format!("--port={}", address.port()));
        command.arg(format!("--server={}#{}", upstream.ip(), upstream.port()));
        let name = format!("dnsmasq {}, cache of {cache}", version("dnsmasq", "--version", "Dnsmasq version "));
        Self { name, process: Process::start(&mut command), address, _state: state, _files: None }
    }

    pub(crate) fn unbound(upstream: SocketAddr) -> Self {
        let (address, state) = (free_address(), tempfile::tempdir().unwrap());
        let path = state.path().join("unbound.conf");
        let folder = state.path().display();
        let configuration = format!(
            "server:
    interface: 127.0.0.1
    port: {}
    access-control: 127.0.0.0/8 allow
    do-daemonize: no
    chroot: \"\"
    username: \"\"
    directory: \"{folder}\"
    pidfile: \"\"
    use-syslog: no
    verbosity: 0
    num-threads: 1
    module-config: \"iterator\"
    do-not-query-localhost: no
    msg-cache-size: 64m
    rrset-cache-size: 128m
remote-control:
    control-enable: no
forward-zone:
    name: \".\"
    forward-addr: {}@{}
",
            address.port(),
            upstream.ip(),
            upstream.port()
        );
        fs::write(&path, configuration).unwrap();
        // A copy: AppArmor, where it is, lets the program at its own place read no configuration of ours.
        let program = state.path().join("unbound");
        fs::copy("/usr/sbin/unbound", &program).unwrap();
        let mut command = Command::new(&program);
        command.args(["-d", "-c"]).arg(&path);
        let name = format!("unbound {}", version("unbound", "-V", "Version "));
        Self { name, process: Process::start(&mut command), address, _state: state, _files: None }
    }

    /// One of the roles: no server, but the least that one does.
    pub(crate) fn role(name: &str, role: &[&str]) -> Self {
        let (process, address) = roles::start(role);
        Self { name: name.to_owned(), process, address, _state: tempfile::tempdir().unwrap(), _files: None }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Keeps all its threads on one core.
    pub(crate) fn pin(&self, core: usize) {
        for entry in fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap().flatten() {
            let thread = entry.file_name().to_string_lossy().parse().unwrap();
            pin(Pid::from_raw(thread), core);
        }
    }
}

/// Keeps a thread, 0 for this one, on one core.
pub(crate) fn pin(thread: Pid, core: usize) {
    let mut set = CpuSet::new();
    set.set(core).unwrap();
    // A thread may have ended meanwhile.
    let _ = sched_setaffinity(thread, &set);
}

/// The core of the servers, and that of the load and the upstream; the same one when there is one only.
pub(crate) fn cores() -> (usize, usize) {
    let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let mut cores = (0..CpuSet::count()).filter(|core| allowed.is_set(*core).unwrap_or(false));
    let first = cores.next().unwrap();
    (first, cores.next().unwrap_or(first))
}

/// What a program says of itself.
fn version(program: &str, flag: &str, before: &str) -> String {
    let output = Command::new(program).arg(flag).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find_map(|line| line.strip_prefix(before)).unwrap_or("of an unknown version");
    line.split_whitespace().next().unwrap_or_default().to_owned()
}
