//! Real dnsmasq and unbound work with the lines of docs/install.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use support::files::Files;
use support::process::Process;
use support::svcdns::Svcdns;
use support::upstream::{Record, Upstream};
use support::{SOON, dns, eventually, free_address, netns, on_path, seconds, skip};

/// The port of svcdns in the pages.
const PORT_OF_PAGES: &str = "5300";

/// The trust anchor of the root, for validating servers.
const ROOT: &str = "20326 8 2 E06D44B80B8F1D39A95C0B0D7C65D08458E880409BBC683457104237C7F8EC8D";

/// The number of the type PTR.
const PTR_TYPE: u16 = 12;

/// The PTR records of the instance's address.
const PTR: [&str; 2] = ["10-9-0-5.hello.svc.", "hello.svc."];

/// The servers behind dnsmasq or unbound: svcdns with one service, and an upstream.
struct Backends {
    _files: Files,
    svcdns: Svcdns,
    upstream: Upstream,
}

impl Backends {
    fn start() -> Self {
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into(), upstream(), &[])
    }

    /// Starts svcdns at an address, with more flags.
    fn start_at(listen: SocketAddr, upstream: Upstream, flags: &[&str]) -> Self {
        let files = Files::new(&[(
            &format!("default/default/hello.svc/latest/{}:80", netns::ADDRESS),
            "{}",
        )]);
        let svcdns = Svcdns::serve_at(listen, &[&["--registry", &files.url()], flags].concat());
        svcdns.wait_for("hello.svc", &[netns::ADDRESS]);
        Self { _files: files, svcdns, upstream }
    }

    /// Returns the configuration blocks of a page, with the port of this svcdns.
    fn lines(&self, page: &str) -> Vec<String> {
        lines(page, self.svcdns.address.port())
    }

    /// Checks everything that a page promises, finally with svcdns stopped.
    fn expect_all(self, program: &Program) {
        let Program { address, process, .. } = program;
        eventually("hello.svc", SOON, || {
            (dns::addresses(*address, "hello.svc") == Ok(vec![netns::ADDRESS.parse().unwrap()]))
                .then_some(())
        });
        assert_eq!(
            dns::dig_short(*address, &["hello.svc", "SRV"]),
            ["0 1 80 10-9-0-5.hello.svc."],
            "{}",
            process.log()
        );
        assert_eq!(dns::dig_short(*address, &["10-9-0-5.hello.svc"]), [netns::ADDRESS]);
        assert_eq!(dns::code(*address, "nothing.svc", dns::A), "NXDOMAIN");
        assert_eq!(dns::dig_short(*address, &["-x", netns::ADDRESS]), PTR, "{}", process.log());
        // The program now knows the zone's NS record, and must still query the configured address.
        assert_eq!(dns::dig_short(*address, &["svc", "NS"]), ["ns.svc."]);
        assert_eq!(dns::dig_short(*address, &["hello.svc", "TXT"]).len(), 1);
        assert_eq!(dns::dig_short(*address, &["www.example.test"]), ["192.0.2.80"]);
        for name in self.upstream.names() {
            assert!(
                !name.ends_with("svc") && !name.ends_with("10.in-addr.arpa"),
                "{name} reached the upstream"
            );
        }
        self.svcdns.stop();
        assert_eq!(
            dns::dig_short(*address, &["other.example.test"]),
            ["192.0.2.80"],
            "other names must resolve without svcdns"
        );
    }
}

/// Returns the configuration blocks of a page, with this port of svcdns.
fn lines(page: &str, port: u16) -> Vec<String> {
    let path = format!("{}/docs/install/{page}", env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(path).unwrap();
    // A code block in a list item: indented by three columns for the item and four more.
    let mut blocks = vec![String::new()];
    for line in text.lines() {
        match line.strip_prefix("       ") {
            Some(line) => blocks.last_mut().unwrap().extend([line, "\n"]),
            None if line.is_empty() => blocks.last_mut().unwrap().push('\n'),
            None => blocks.push(String::new()),
        }
    }
    blocks.retain(|block| !block.trim().is_empty());
    let port = port.to_string();
    assert!(blocks.iter().all(|block| block.contains(PORT_OF_PAGES)), "{page}: {blocks:?}");
    blocks.iter().map(|block| block.replace(PORT_OF_PAGES, &port)).collect()
}

/// Starts the upstream of the program, and of svcdns.
fn upstream() -> Upstream {
    let upstream = Upstream::start();
    let records =
        ["www.example.test", "other.example.test"].map(|name| Record::a(name, 300, "192.0.2.80"));
    upstream.put(records.into_iter().chain([Record::soa("example.test", 300, 30)]));
    upstream
}

/// A running dnsmasq or unbound.
struct Program {
    process: Process,
    address: SocketAddr,
    _folder: TempDir,
}

impl Program {
    /// Starts a program and waits until it answers at `address`.
    ///
    /// `arguments` makes the arguments from the path of the configuration file.
    fn start(
        name: &str,
        address: SocketAddr,
        configuration: &str,
        arguments: impl FnOnce(&str) -> Vec<String>,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("configuration");
        fs::write(&file, configuration).unwrap();
        // A copy: AppArmor may keep the installed program from reading our configuration.
        let program = folder.path().join(name);
        let place = std::env::split_paths(&std::env::var_os("PATH").unwrap())
            .map(|folder| folder.join(name))
            .find(|path| path.is_file());
        fs::copy(place.unwrap(), &program).unwrap();
        let mut process =
            Process::start(Command::new(program).args(arguments(file.to_str().unwrap())));
        eventually(&format!("{name} to answer"), SOON, || {
            assert!(process.ended().is_none(), "{}\n{configuration}", process.log());
            (dns::code(address, "version.bind", dns::A) != "no answer").then_some(())
        });
        Self { process, address, _folder: folder }
    }

    fn dnsmasq(backends: &Backends, lines: &str) -> Self {
        Self::dnsmasq_at(free_address(), &backends.upstream, lines)
    }

    fn dnsmasq_at(address: SocketAddr, upstream: &Upstream, lines: &str) -> Self {
        let upstream = upstream.address.port();
        let own = format!(
            "no-resolv\nno-hosts\nbind-interfaces\nlisten-address=127.0.0.1\nport={}\n\
             server=127.0.0.1#{upstream}\n",
            address.port()
        );
        Self::start("dnsmasq", address, &format!("{own}{lines}"), |file| {
            vec!["--no-daemon".to_owned(), "--pid-file=".to_owned(), format!("--conf-file={file}")]
        })
    }

    /// Starts unbound with DNSSEC validation and without private addresses in answers.
    ///
    /// It first looks up the names above a name, and trusts NXDOMAIN for them (RFC 8020).
    fn unbound(backends: &Backends, lines: &str) -> Self {
        Self::unbound_at(free_address(), &backends.upstream, lines)
    }

    fn unbound_at(address: SocketAddr, upstream: &Upstream, lines: &str) -> Self {
        let (port, upstream) = (address.port(), upstream.address.port());
        let own = format!(
            "server:
    interface: 127.0.0.1
    port: {port}
    do-daemonize: no
    chroot: \"\"
    username: \"\"
    directory: \"/\"
    pidfile: \"\"
    use-syslog: no
    module-config: \"validator iterator\"
    trust-anchor: \". IN DS {ROOT}\"
    local-zone: \"test.\" nodefault
    domain-insecure: \"example.test.\"
    private-address: 10.0.0.0/8
    qname-minimisation-strict: yes
    harden-below-nxdomain: yes
remote-control:
    control-enable: no
forward-zone:
    name: \".\"
    forward-addr: 127.0.0.1@{upstream}
"
        );
        Self::start("unbound", address, &format!("{own}{lines}"), |file| {
            vec!["-d".to_owned(), "-c".to_owned(), file.to_owned()]
        })
    }
}

/// Returns whether a program is installed; skips the test if it is not.
fn is_installed(test: &str, program: &str) -> bool {
    let installed = on_path(program);
    if !installed {
        skip(test, &format!("no {program} on PATH"));
    }
    installed
}

#[test]
fn dnsmasq_resolves_with_the_documented_lines() {
    if !is_installed("dnsmasq_resolves_with_the_documented_lines", "dnsmasq") {
        return;
    }
    let backends = Backends::start();
    let lines = backends.lines("dnsmasq.md");
    assert_eq!(lines.len(), 1);
    let program = Program::dnsmasq(&backends, &lines[0]);
    backends.expect_all(&program);
}

/// `stop-dns-rebind` and `dnssec` work with the page's additional lines.
#[test]
fn dnsmasq_with_rebind_protection_and_dnssec_resolves_with_the_documented_lines() {
    if !is_installed(
        "dnsmasq_with_rebind_protection_and_dnssec_resolves_with_the_documented_lines",
        "dnsmasq",
    ) {
        return;
    }
    let backends = Backends::start();
    let page = backends.lines("dnsmasq.md").concat();
    let strict = format!("{page}stop-dns-rebind\n");
    let program = Program::dnsmasq(&backends, &strict);
    let without = dns::dig_short(program.address, &["hello.svc"]);
    assert_eq!(without, [""; 0], "the page's additional line is unnecessary");
    drop(program);
    let text = include_str!("../docs/install/dnsmasq.md");
    let more = text.split('`').find(|code| code.starts_with("rebind-domain-ok=")).unwrap();
    let root = ROOT.replace(' ', ",");
    let program =
        Program::dnsmasq(&backends, &format!("{strict}{more}\ndnssec\ntrust-anchor=.,{root}\n"));
    assert_eq!(
        dns::dig_short(program.address, &["hello.svc"]),
        [netns::ADDRESS],
        "{}",
        program.process.log()
    );
    assert_eq!(dns::code(program.address, "nothing.svc", dns::A), "NXDOMAIN");
    assert_eq!(dns::dig_short(program.address, &["-x", netns::ADDRESS]), PTR);
}

#[test]
fn unbound_resolves_with_the_documented_lines() {
    if !is_installed("unbound_resolves_with_the_documented_lines", "unbound") {
        return;
    }
    let backends = Backends::start();
    let lines = backends.lines("unbound.md");
    assert_eq!(lines.len(), 2);
    let program = Program::unbound(&backends, &lines.concat());
    backends.expect_all(&program);
}

/// Longest time for an answer that no server has to wait for, on a busy machine.
const AT_ONCE: Duration = seconds(2);

/// Looks up addresses that nobody knows while the program and svcdns forward to each other.
///
/// svcdns forwards to the program of the page, as it does by default where that program is the
/// machine's resolver.
fn expect_no_circle(page: &str, start: impl FnOnce(SocketAddr, &Upstream, &str) -> Program) {
    let (address, svcdns, upstream) = (free_address(), free_address(), upstream());
    let program = start(address, &upstream, &lines(page, svcdns.port()).concat());
    let backends = Backends::start_at(svcdns, upstream, &["--upstream", &address.to_string()]);
    for (server, name, expected) in [
        (address, "97.0.9.10.in-addr.arpa", "NXDOMAIN"),
        (address, "98.0.9.10.in-addr.arpa", "NXDOMAIN"),
        (svcdns, "99.0.9.10.in-addr.arpa", "NXDOMAIN"),
        (address, "97.77.10.in-addr.arpa", "NXDOMAIN"),
        // Apple's devices send these queries on every network.
        (address, "lb._dns-sd._udp.0.0.9.10.in-addr.arpa", "NXDOMAIN"),
        (svcdns, "b._dns-sd._udp.0.0.9.10.in-addr.arpa", "NXDOMAIN"),
        (svcdns, "96.77.10.in-addr.arpa", "NXDOMAIN"),
        (address, "0.9.10.in-addr.arpa", "NOERROR"),
        (svcdns, "9.10.in-addr.arpa", "NOERROR"),
    ] {
        let began = Instant::now();
        let log = || format!("{}\n{}", backends.svcdns.log(), program.process.log());
        assert_eq!(dns::code(server, name, PTR_TYPE), expected, "{server} {name}:\n{}", log());
        assert!(began.elapsed() < AT_ONCE, "{name}: {:?}\n{}", began.elapsed(), log());
    }
    assert_eq!(dns::dig_short(address, &["-x", netns::ADDRESS]), PTR);
    // The program is a healthy upstream for everything else.
    for server in [address, svcdns] {
        assert_eq!(dns::dig_short(server, &["www.example.test"]), ["192.0.2.80"]);
    }
    let log = backends.svcdns.log();
    assert!(!log.contains("until it answers again"), "it counts as dead: {log}");
    let names = backends.upstream.names();
    assert!(names.iter().all(|name| !name.ends_with("10.in-addr.arpa")), "{names:?}");
}

#[test]
fn dnsmasq_and_svcdns_do_not_forward_in_a_loop() {
    if is_installed("dnsmasq_and_svcdns_do_not_forward_in_a_loop", "dnsmasq") {
        expect_no_circle("dnsmasq.md", Program::dnsmasq_at);
    }
}

#[test]
fn unbound_and_svcdns_do_not_forward_in_a_loop() {
    if is_installed("unbound_and_svcdns_do_not_forward_in_a_loop", "unbound") {
        expect_no_circle("unbound.md", Program::unbound_at);
    }
}

/// The pages word for word on a machine of its own, with svcdns's default upstreams.
fn expect_no_circle_on_a_machine(
    page: &str,
    start: impl FnOnce(SocketAddr, &Upstream, &str) -> Program,
) {
    let [address, svcdns] = [53, 5300].map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let upstream = upstream();
    let program = start(address, &upstream, &lines(page, svcdns.port()).concat());
    let backends = Backends::start_at(svcdns, upstream, &["--upstream", "system"]);
    let log = backends.svcdns.log();
    assert!(log.contains("to 127.0.0.1 (from /etc/resolv.conf)"), "{log}");
    for (host, found) in [("10.9.0.97", false), (netns::ADDRESS, true), ("10.1.2.3", false)] {
        let began = Instant::now();
        let output = Command::new("getent").args(["hosts", host]).output().unwrap();
        let log = format!("{}\n{}", backends.svcdns.log(), program.process.log());
        assert_eq!(output.status.success(), found, "{host}: {output:?}\n{log}");
        assert!(began.elapsed() < AT_ONCE, "{host}: {:?}\n{log}", began.elapsed());
    }
    let log = backends.svcdns.log();
    assert!(!log.contains("until it answers again"), "it counts as dead: {log}");
}

#[test]
fn unregistered_addresses_are_nxdomain_behind_dnsmasq() {
    let test = "unregistered_addresses_are_nxdomain_behind_dnsmasq";
    if is_installed(test, "dnsmasq") {
        netns::inside(test, "127.0.0.1", || {
            expect_no_circle_on_a_machine("dnsmasq.md", Program::dnsmasq_at);
        });
    }
}

#[test]
fn unregistered_addresses_are_nxdomain_behind_unbound() {
    let test = "unregistered_addresses_are_nxdomain_behind_unbound";
    if is_installed(test, "unbound") {
        netns::inside(test, "127.0.0.1", || {
            expect_no_circle_on_a_machine("unbound.md", Program::unbound_at);
        });
    }
}
