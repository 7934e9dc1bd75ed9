//! The compared servers, and how to start them with the content.
//!
//! Each has a free port and one worker.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use super::common::programs;
use super::content::{Content, NEGATIVE_TTL, TTL, apex, instance_label};
use super::load::Target;
use super::server::Server;
use super::support::etcd::Etcd;
use super::support::go;
use super::support::process::Process;
use super::support::{free_address, svcdns};
use super::{consul, interrupt, roles};

/// The labels after a name's first label, in wire form.
const ZONE: &[u8] = b"\x03svc\x00";
const CONSUL_ZONE: &[u8] = b"\x07service\x03svc\x00";

/// A server that can be started.
pub(crate) struct Peer {
    /// The name for `--only`.
    pub(crate) name: &'static str,
    /// The settings, printed with the figures.
    pub(crate) settings: &'static str,
    /// Returns the version, or the reason why the server cannot run here.
    pub(crate) version: fn() -> Result<String, String>,
    pub(crate) start: fn(Content, &Etcd) -> Result<Server, String>,
    /// Limit on the services in its measurements.
    pub(crate) max_services: usize,
    /// Whether `--short` includes it.
    pub(crate) short: bool,
    /// Whether it is tens of times as slow as others and gets fewer rounds and loads.
    pub(crate) slow: bool,
    /// Whether a complete run works without it, because it needs a Go toolchain.
    pub(crate) optional: bool,
}

/// All servers; the echo, as the upper limit, is the last.
pub(crate) const PEERS: &[Peer] = &[
    Peer {
        name: "svcdns",
        settings: "etcd with GoFrame's keys; `--upstream off`, otherwise default settings",
        version: || Ok(env!("CARGO_PKG_VERSION").to_owned()),
        start: |content, etcd| Ok(svcdns(content, etcd, &[])),
        max_services: usize::MAX,
        short: true,
        slow: false,
        optional: false,
    },
    // Only if `--only` names it: its ratio to the first row shows what checks cost.
    Peer {
        name: CHECKED,
        settings: "svcdns again, with `--checks` and `--checks-max-per-second 1000`",
        version: || Ok(env!("CARGO_PKG_VERSION").to_owned()),
        start: |content, etcd| {
            Ok(svcdns(content, etcd, &["--checks", "--checks-max-per-second", "1000"]))
        },
        max_services: usize::MAX,
        short: false,
        slow: false,
        optional: false,
    },
    Peer {
        name: "knot",
        settings: "zone file; `udp-workers: 1`, `tcp-workers: 1`, `background-workers: 1`",
        version: || installed("/usr/sbin/knotd", "--version", "version "),
        start: |content, _| Ok(knot(content)),
        max_services: usize::MAX,
        short: false,
        slow: false,
        optional: false,
    },
    Peer {
        name: "nsd",
        settings: "zone file; `server-count: 1`, no rate limits; `minimal-responses: yes`, \
                   which omits NS records and also glue",
        version: || installed("/usr/sbin/nsd", "-v", "version "),
        start: |content, _| Ok(nsd(content)),
        max_services: usize::MAX,
        short: false,
        slow: false,
        optional: false,
    },
    Peer {
        name: "unbound",
        settings: "`local-data` in a static `local-zone`, which has no glue; `num-threads: 1`",
        version: || installed("/usr/sbin/unbound", "-V", "Version "),
        start: |content, _| Ok(unbound(content)),
        max_services: usize::MAX,
        short: true,
        slow: false,
        optional: false,
    },
    Peer {
        name: "hickory",
        settings: "a handler of the benchmark with a hash map, which includes the names with \
                   explicit namespace and deployment; the version is hickory-server's",
        version: || Ok(locked("hickory-server")),
        start: |content, _| Ok(role("handler", content)),
        max_services: usize::MAX,
        short: true,
        slow: false,
        optional: false,
    },
    Peer {
        name: "dnsmasq",
        settings: "a hosts file and `srv-host`, `local=/svc/`; no SOA. \
                   Every `srv-host` makes every response slower, A included",
        version: || installed("/usr/sbin/dnsmasq", "--version", "version "),
        start: |content, _| Ok(dnsmasq(content)),
        max_services: 10_000,
        short: true,
        slow: true,
        optional: false,
    },
    Peer {
        name: "coredns",
        settings: "only its etcd plugin, with the services in SkyDNS's form; \
                   the time that etcd takes per response is not counted",
        version: || go::COREDNS.build(interrupt::check),
        start: |content, etcd| Ok(coredns(content, etcd)),
        max_services: 10_000,
        short: false,
        slow: true,
        optional: true,
    },
    Peer {
        name: "consul",
        settings: "`agent -dev`, services put into its catalog; names end in `.service.svc`",
        version: || go::CONSUL.build(interrupt::check),
        start: |content, _| consul(content),
        max_services: 10_000,
        short: false,
        slow: true,
        optional: true,
    },
    Peer {
        name: ECHO,
        settings: "a program of the benchmark: blocks in `recvmmsg`, up to 32 datagrams, \
                   responds with `sendmmsg`; responses as long as svcdns's",
        version: || Ok(String::new()),
        start: |content, _| Ok(role("echo", content)),
        max_services: usize::MAX,
        short: true,
        slow: false,
        optional: false,
    },
    // Only if `--only` names it: its ratio to the first echo shows the error of ratios.
    Peer {
        name: SECOND_ECHO,
        settings: "the same program again",
        version: || Ok(String::new()),
        start: |content, _| Ok(role("echo", content)),
        max_services: usize::MAX,
        short: false,
        slow: false,
        optional: false,
    },
];

/// The name of svcdns with checks.
pub(crate) const CHECKED: &str = "svcdns-checks";
/// The name of the echo.
pub(crate) const ECHO: &str = "echo";
/// The name of a second echo.
pub(crate) const SECOND_ECHO: &str = "echo-again";

fn installed(program: &str, flag: &str, before: &str) -> Result<String, String> {
    let path = Path::new(program);
    if path.is_file() {
        Ok(programs::version(path, flag, before))
    } else {
        Err(format!("{program} is not installed (tests/setup.sh bench)"))
    }
}

/// Returns the version of a crate that this program is built with.
fn locked(name: &str) -> String {
    let lock = include_str!("../../../Cargo.lock");
    let (_, rest) = lock.split_once(&format!("name = \"{name}\"\nversion = \"")).unwrap();
    rest.split('"').next().unwrap().to_owned()
}

fn folder() -> TempDir {
    TempDir::new_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn server(command: &mut Command, address: SocketAddr, content: Content, folder: TempDir) -> Server {
    Server::new(
        Process::start(command),
        Target { address, content, zone: ZONE, echo: false },
        folder,
    )
}

fn role(role: &str, content: Content) -> Server {
    let mut process = Process::start(&mut roles::command(role, content));
    let address = roles::address(&mut process);
    Server::new(process, Target { address, content, zone: ZONE, echo: role == "echo" }, folder())
}

fn svcdns(content: Content, etcd: &Etcd, flags: &[&str]) -> Server {
    let (address, folder) = (free_address(), folder());
    let mut command = svcdns::command();
    command.args([
        "serve",
        "--registry",
        &etcd.url(),
        "--listen",
        &address.to_string(),
        "--admin-listen",
        "off",
        "--upstream",
        "off",
    ]);
    command.args(flags).arg("--state-dir").arg(folder.path());
    server(&mut command, address, content, folder)
}

/// Returns the content as lines of a zone file.
fn records(content: Content) -> String {
    let mut zone = String::with_capacity(content.services * content.instances * 60);
    apex(&mut zone);
    let mut known = (usize::MAX, String::new());
    for (service, address, port) in content.all() {
        if known.0 != service {
            known = (service, content.label(service));
        }
        let name = &known.1;
        writeln!(zone, "{name}.svc. {TTL} IN A {address}").unwrap();
        if content.srv {
            let target = instance_label(address);
            writeln!(zone, "{name}.svc. {TTL} IN SRV 0 1 {port} {target}.{name}.svc.").unwrap();
            writeln!(zone, "{target}.{name}.svc. {TTL} IN A {address}").unwrap();
        }
    }
    zone
}

fn knot(content: Content) -> Server {
    let (address, folder) = (free_address(), folder());
    let path = folder.path().display();
    fs::write(folder.path().join("svc.zone"), records(content)).unwrap();
    let configuration = format!(
        "server:
    listen: 127.0.0.1@{}
    rundir: {path}
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
log:
  - target: stderr
    any: warning
database:
    storage: {path}
zone:
  - domain: svc.
    storage: {path}
    file: svc.zone
    semantic-checks: off
    journal-content: none
    zonefile-sync: -1
    zonefile-load: whole
",
        address.port()
    );
    let file = folder.path().join("knot.conf");
    fs::write(&file, configuration).unwrap();
    let mut command = Command::new(programs::copy(Path::new("/usr/sbin/knotd"), folder.path()));
    command.arg("-c").arg(file);
    server(&mut command, address, content, folder)
}

fn nsd(content: Content) -> Server {
    let (address, folder) = (free_address(), folder());
    let path = folder.path().display();
    fs::write(folder.path().join("svc.zone"), records(content)).unwrap();
    let configuration = format!(
        "server:
    ip-address: 127.0.0.1@{}
    server-count: 1
    username: \"\"
    chroot: \"\"
    zonesdir: \"{path}\"
    database: \"\"
    pidfile: \"\"
    xfrdfile: \"{path}/xfrd.state\"
    xfrdir: \"{path}\"
    zonelistfile: \"{path}/zone.list\"
    minimal-responses: yes
    rrl-ratelimit: 0
    rrl-whitelist-ratelimit: 0
remote-control:
    control-enable: no
zone:
    name: svc
    zonefile: svc.zone
",
        address.port()
    );
    let file = folder.path().join("nsd.conf");
    fs::write(&file, configuration).unwrap();
    let mut command = Command::new(programs::copy(Path::new("/usr/sbin/nsd"), folder.path()));
    command.args(["-d", "-c"]).arg(file);
    server(&mut command, address, content, folder)
}

fn unbound(content: Content) -> Server {
    let (address, folder) = (free_address(), folder());
    let path = folder.path().display();
    let mut configuration = format!(
        "server:
    interface: 127.0.0.1
    port: {}
    access-control: 127.0.0.0/8 allow
    do-daemonize: no
    chroot: \"\"
    username: \"\"
    directory: \"{path}\"
    pidfile: \"\"
    use-syslog: no
    verbosity: 0
    num-threads: 1
    module-config: \"iterator\"
    local-zone: \"svc.\" static
",
        address.port()
    );
    for record in records(content).lines() {
        writeln!(configuration, "    local-data: '{record}'").unwrap();
    }
    configuration.push_str("remote-control:\n    control-enable: no\n");
    let file = folder.path().join("unbound.conf");
    fs::write(&file, configuration).unwrap();
    let mut command = Command::new(programs::copy(Path::new("/usr/sbin/unbound"), folder.path()));
    command.args(["-d", "-c"]).arg(file);
    server(&mut command, address, content, folder)
}

fn dnsmasq(content: Content) -> Server {
    let (address, folder) = (free_address(), folder());
    let hosts = folder.path().join("hosts");
    let (mut configuration, mut lines) = (String::new(), String::new());
    writeln!(
        configuration,
        "local=/svc/\nlocal-ttl={TTL}\nneg-ttl={NEGATIVE_TTL}\nno-hosts\naddn-hosts={}",
        hosts.display()
    )
    .unwrap();
    // One line per instance, with both its names.
    for (service, address, port) in content.all() {
        let (name, label) = (content.label(service), instance_label(address));
        write!(lines, "{address} {name}.svc").unwrap();
        if content.srv {
            write!(lines, " {label}.{name}.svc").unwrap();
            writeln!(configuration, "srv-host={name}.svc,{label}.{name}.svc,{port},0,1").unwrap();
        }
        lines.push('\n');
    }
    fs::write(hosts, lines).unwrap();
    let file = folder.path().join("dnsmasq.conf");
    fs::write(&file, configuration).unwrap();
    let mut command = Command::new(programs::copy(Path::new("/usr/sbin/dnsmasq"), folder.path()));
    command.args([
        "--no-daemon",
        "--no-resolv",
        "--bind-interfaces",
        "--listen-address=127.0.0.1",
        "--pid-file=",
    ]);
    command
        .arg(format!("--port={}", address.port()))
        .arg(format!("--conf-file={}", file.display()));
    server(&mut command, address, content, folder)
}

fn coredns(content: Content, etcd: &Etcd) -> Server {
    let (address, folder) = (free_address(), folder());
    let configuration = format!(
        "svc.:{} {{
    bind 127.0.0.1
    etcd svc {{
        path /skydns
        endpoint http://{}
    }}
}}
",
        address.port(),
        etcd.endpoint(0)
    );
    let file = folder.path().join("Corefile");
    fs::write(&file, configuration).unwrap();
    let mut command = Command::new(go::COREDNS.program());
    command.arg("-conf").arg(file);
    server(&mut command, address, content, folder)
}

/// Returns keys and values for CoreDNS's etcd plugin.
pub(crate) fn skydns_keys(content: Content) -> impl Iterator<Item = (String, String)> {
    content.all().map(move |(service, address, port)| {
        let key = format!("/skydns/svc/{}/{}", content.label(service), instance_label(address));
        (
            key,
            format!(r#"{{"host":"{address}","port":{port},"priority":0,"weight":1,"ttl":{TTL}}}"#),
        )
    })
}

fn consul(content: Content) -> Result<Server, String> {
    let (dns, folder) = (free_address(), folder());
    let process = consul::start(&go::CONSUL.program(), dns, content, folder.path())?;
    Ok(Server::new(
        process,
        Target { address: dns, content, zone: CONSUL_ZONE, echo: false },
        folder,
    ))
}
