//! The compared servers, each on a free port, with the same upstream and core.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use super::common::{cores, programs};
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

/// The settings of each server, printed with the figures.
pub(crate) const SETTINGS: &str = "\
svcdns: an empty file registry, --upstream 127.0.0.1#PORT, otherwise default settings
dnsmasq: --no-resolv --server=127.0.0.1#PORT --no-daemon, and --cache-size (default: 150)
unbound: forward-zone \".\", module-config \"iterator\", num-threads 1, \
msg-cache-size 64m, rrset-cache-size 128m";

impl Server {
    pub(crate) fn svcdns(upstream: SocketAddr) -> Self {
        let (address, state, files) =
            (free_address(), tempfile::tempdir().unwrap(), Files::new(&[]));
        let mut command = svcdns::command();
        command.args([
            "serve",
            "--registry",
            &files.url(),
            "--listen",
            &address.to_string(),
            "--admin-listen",
            "off",
        ]);
        command.args(["--upstream", &upstream.to_string()]).arg("--state-dir").arg(state.path());
        let name = format!("svcdns {}", env!("CARGO_PKG_VERSION"));
        Self {
            name,
            process: Process::start(&mut command),
            address,
            _state: state,
            _files: Some(files),
        }
    }

    /// Starts dnsmasq with a cache of this many records (its default: 150).
    pub(crate) fn dnsmasq(upstream: SocketAddr, cache: usize) -> Self {
        let (address, state) = (free_address(), tempfile::tempdir().unwrap());
        let mut command = Command::new("dnsmasq");
        command.args([
            "--no-daemon",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--bind-interfaces",
            "--pid-file=",
        ]);
        command.args(["--listen-address=127.0.0.1"]);
        command.arg(format!("--cache-size={cache}"));
        command.arg(format!("--port={}", address.port()));
        command.arg(format!("--server={}#{}", upstream.ip(), upstream.port()));
        let name = format!(
            "dnsmasq {}, cache of {cache}",
            programs::version(Path::new("dnsmasq"), "--version", "Dnsmasq version ")
        );
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
        let mut command =
            Command::new(programs::copy(Path::new("/usr/sbin/unbound"), state.path()));
        command.args(["-d", "-c"]).arg(&path);
        let name = format!("unbound {}", programs::version(Path::new("unbound"), "-V", "Version "));
        Self { name, process: Process::start(&mut command), address, _state: state, _files: None }
    }

    /// Starts one of the [`roles`].
    pub(crate) fn role(name: &str, role: &[&str]) -> Self {
        let (process, address) = roles::start(role);
        Self {
            name: name.to_owned(),
            process,
            address,
            _state: tempfile::tempdir().unwrap(),
            _files: None,
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Pins all threads of the server to a core.
    pub(crate) fn pin(&self, core: usize) {
        cores::pin_process(self.pid(), core);
    }
}
