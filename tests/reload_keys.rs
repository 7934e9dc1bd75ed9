//! One case for each key of the configuration: what a reload changes of the running server.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use support::etcd::Etcd;
use support::files::Files;
use support::netns;
use support::reloading::Reloading;
use support::svcdns::Svcdns;
use support::upstream::{Behaviour, Message, Query, Record, Upstream};
use support::{SOON, dns, eventually, seconds};
use svcdns::config::KEYS;

/// A key with two values, and what shows which of them is in effect.
struct Case {
    key: &'static str,
    /// Lines of the file with the value before and after; `{…}` stands for a path or address.
    lines: [&'static str; 2],
    ask: Ask,
    /// The result of `ask` before and after.
    expected: [&'static str; 2],
}

/// A question whose answer depends on a key.
enum Ask {
    /// What dig prints for these words.
    Dig(&'static [&'static str]),
    /// The value in `svcdns status --json` at this pointer.
    Status(&'static str),
    /// The result of a function.
    Test(fn(&World) -> String),
    /// Bytes that the server sends to the registry at this port of 127.0.0.1.
    Sent(u16),
    /// The error of the first registry.
    RegistryError,
    /// The line that the reload prints.
    Printed,
}

/// A server in its own network, and all that it uses.
struct World {
    server: Reloading,
    upstream: Upstream,
    files: Files,
    second: Files,
    etcd: Etcd,
    /// A server whose names are asked for over TLS.
    _secure: Svcdns,
    certificates: tempfile::TempDir,
    registries: Vec<FakeRegistry>,
}

/// Addresses of the server.
const LOCAL: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 53);

/// Lines of the file that a case may replace.
const BASE: &[(&str, &str)] = &[
    ("listen", "listen = ['127.0.0.1:53']"),
    ("upstream", "upstream = ['off']"),
    ("admin-listen", "admin-listen = 'off'"),
    ("registry", "registry = ['{registry}']"),
    ("log", "log = 'info'"),
];

const WWW: &[&str] = &["+noall", "+answer", "+norecurse", "hello.svc"];

/// The keys of answers, registries in general, limits and the log.
const ANSWERS: &[Case] = &[
    Case {
        key: "registry",
        lines: ["registry = ['{registry}']", "registry = ['{second}']"],
        ask: Ask::Dig(&["+short", "hello.svc"]),
        expected: ["10.0.0.1\n10.0.0.2", "10.0.0.3"],
    },
    Case {
        key: "merge",
        lines: [
            "registry = ['{second}', '{registry}']\nmerge = 'union'",
            "registry = ['{second}', '{registry}']\nmerge = 'first'",
        ],
        ask: Ask::Dig(&["+short", "hello.svc"]),
        expected: ["10.0.0.1\n10.0.0.2\n10.0.0.3", "10.0.0.3"],
    },
    Case {
        key: "zone",
        lines: ["zone = ['svc']", "zone = ['svc', 'corp']"],
        ask: Ask::Dig(&["+short", "hello.corp"]),
        expected: ["", "10.0.0.1\n10.0.0.2"],
    },
    Case {
        key: "deployment",
        lines: ["deployment = 'default'", "deployment = 'prod'"],
        ask: Ask::Dig(&["+short", "deployed.svc"]),
        expected: ["", "10.0.0.6"],
    },
    Case {
        key: "namespace",
        lines: ["namespace = 'default'", "namespace = 'team'"],
        ask: Ask::Dig(&["+short", "spaced.svc"]),
        expected: ["", "10.0.0.7"],
    },
    Case {
        key: "heads",
        lines: ["heads = ['service']", "heads = ['service', 'other']"],
        ask: Ask::Dig(&["+short", "headed.svc"]),
        expected: ["", "10.0.0.8"],
    },
    Case {
        key: "version-fallback",
        lines: ["version-fallback = true", "version-fallback = false"],
        ask: Ask::Dig(&["+short", "old.svc"]),
        expected: ["10.0.0.4", ""],
    },
    Case {
        key: "answers",
        lines: ["answers = 'all'", "answers = 1"],
        ask: Ask::Test(|world| world.dig(&["+short", "hello.svc"]).lines().count().to_string()),
        expected: ["2", "1"],
    },
    Case {
        key: "ttl",
        lines: ["ttl = '5s'", "ttl = '77s'"],
        ask: Ask::Test(|world| world.ttl(WWW)),
        expected: ["5", "77"],
    },
    Case {
        key: "negative-ttl",
        lines: ["negative-ttl = '1s'", "negative-ttl = '78s'"],
        ask: Ask::Test(|world| world.ttl(&["+noall", "+authority", "nothing.svc"])),
        expected: ["1", "78"],
    },
    Case {
        key: "docker0",
        lines: ["docker0 = 'drop'", "docker0 = 'keep'"],
        ask: Ask::Dig(&["+short", "docked.svc"]),
        expected: ["10.0.0.5", "10.0.0.5\n172.17.0.1"],
    },
    Case {
        key: "max-instances-per-service",
        lines: ["max-instances-per-service = 10000", "max-instances-per-service = 1"],
        ask: Ask::Test(|world| world.dig(&["+short", "hello.svc"]).lines().count().to_string()),
        expected: ["2", "1"],
    },
    Case {
        key: "max-keys",
        lines: ["max-keys = 2000000", "max-keys = 1"],
        ask: Ask::Status("/registries/0/keys"),
        expected: ["7", "1"],
    },
    Case {
        key: "removal-grace",
        lines: [
            "registry = ['{emptied}']\nremoval-grace = '1h'",
            "registry = ['{emptied}']\nremoval-grace = '0s'",
        ],
        ask: Ask::Test(World::fate_of_removed_keys),
        expected: ["held", "removed"],
    },
    Case {
        key: "snapshot",
        lines: [
            "registry = ['{etcd}']\nsnapshot = false",
            "registry = ['{etcd}']\nsnapshot = true",
        ],
        ask: Ask::Test(World::has_snapshot),
        expected: ["false", "true"],
    },
    Case {
        key: "max-stale",
        // It counts at the next start.
        lines: ["max-stale = '7days'", "max-stale = '1h'"],
        ask: Ask::Printed,
        expected: ["", r#"max-stale: "7days" → "1h""#],
    },
    Case {
        key: "log",
        lines: ["log = 'error'", "log = 'debug'"],
        ask: Ask::Test(World::loudness),
        expected: ["quiet", "loud"],
    },
    Case {
        key: "log-queries",
        lines: ["log-queries = 0", "log-queries = 1"],
        ask: Ask::Test(World::logs_queries),
        expected: ["silent", "logged"],
    },
];

/// The keys of listeners, connections and upstreams.
const NETWORK: &[Case] = &[
    Case {
        key: "listen",
        lines: ["listen = ['127.0.0.1:53']", "listen = ['127.0.0.1:53', '127.0.0.2:53']"],
        ask: Ask::Test(|_| code_at(([127, 0, 0, 2], 53))),
        expected: ["no answer", "NOERROR"],
    },
    Case {
        key: "allow",
        lines: [
            "listen = ['127.0.0.1:53', '10.9.0.5:53']\nallow = ['198.51.100.0/24']",
            "listen = ['127.0.0.1:53', '10.9.0.5:53']\nallow = ['10.9.0.0/24']",
        ],
        ask: Ask::Test(|_| code_at(([10, 9, 0, 5], 53))),
        expected: ["REFUSED", "NOERROR"],
    },
    Case {
        key: "tcp-connections",
        lines: ["tcp-connections = 4096", "tcp-connections = 2"],
        ask: Ask::Test(|_| open_of_four(([127, 0, 0, 1], 53))),
        expected: ["4", "2"],
    },
    Case {
        key: "tcp-connections-per-source",
        lines: [
            "listen = ['127.0.0.1:53', '10.9.0.5:53']\nallow = ['10.9.0.0/24']\n\
             tcp-connections-per-source = 1024",
            "listen = ['127.0.0.1:53', '10.9.0.5:53']\nallow = ['10.9.0.0/24']\n\
             tcp-connections-per-source = 3",
        ],
        ask: Ask::Test(|_| open_of_four(([10, 9, 0, 5], 53))),
        expected: ["4", "3"],
    },
    Case {
        key: "tcp-connections-per-loopback-source",
        lines: [
            "tcp-connections-per-loopback-source = 3072",
            "tcp-connections-per-loopback-source = 1",
        ],
        ask: Ask::Test(|_| open_of_four(([127, 0, 0, 1], 53))),
        expected: ["4", "1"],
    },
    Case {
        key: "tcp-idle-timeout",
        lines: ["tcp-idle-timeout = '1h'", "tcp-idle-timeout = '1s'"],
        ask: Ask::Test(|_| fate_of_an_idle_connection()),
        expected: ["open", "closed"],
    },
    Case {
        key: "admin-listen",
        lines: ["admin-listen = 'off'", "admin-listen = '127.0.0.1:5380'"],
        ask: Ask::Test(|_| http_status("127.0.0.1:5380")),
        expected: ["000", "200"],
    },
    Case {
        key: "tls.listen",
        lines: [
            "[tls]\ncert-file = '{certs}/one.pem'\nkey-file = '{certs}/one.key'",
            "[tls]\ncert-file = '{certs}/one.pem'\nkey-file = '{certs}/one.key'\n\
             listen = ['127.0.0.1']",
        ],
        ask: Ask::Test(|_| certificate_name("127.0.0.1:853")),
        expected: ["none", "one"],
    },
    Case {
        key: "tls.quic-listen",
        lines: [
            "[tls]\ncert-file = '{certs}/one.pem'\nkey-file = '{certs}/one.key'",
            "[tls]\ncert-file = '{certs}/one.pem'\nkey-file = '{certs}/one.key'\n\
             quic-listen = ['127.0.0.1']",
        ],
        ask: Ask::Status("/quic"),
        expected: ["[]", r#"["127.0.0.1:853"]"#],
    },
    Case {
        key: "tls.cert-file",
        lines: [
            "[tls]\nlisten = ['127.0.0.1']\ncert-file = '{certs}/one.pem'\n\
             key-file = '{certs}/one.key'",
            "[tls]\nlisten = ['127.0.0.1']\ncert-file = '{certs}/renamed.pem'\n\
             key-file = '{certs}/one.key'",
        ],
        ask: Ask::Test(|_| certificate_name("127.0.0.1:853")),
        expected: ["one", "renamed"],
    },
    Case {
        key: "tls.key-file",
        lines: [
            "[tls]\nlisten = ['127.0.0.1']\ncert-file = '{certs}/one.pem'\n\
             key-file = '{certs}/one.key'",
            "[tls]\nlisten = ['127.0.0.1']\ncert-file = '{certs}/two.pem'\n\
             key-file = '{certs}/two.key'",
        ],
        ask: Ask::Test(|_| certificate_name("127.0.0.1:853")),
        expected: ["one", "two"],
    },
    Case {
        key: "upstream",
        lines: ["upstream = ['off']", "upstream = ['{upstream}']"],
        ask: Ask::Test(|world| dns::code(LOCAL, &world.fresh_name(), dns::A).to_owned()),
        expected: ["REFUSED", "NOERROR"],
    },
    Case {
        key: "upstream-order",
        lines: [
            "upstream = ['{upstream}']\nupstream-order = 'strict'",
            "upstream = ['{upstream}']\nupstream-order = 'fastest'",
        ],
        ask: Ask::Status("/forwarding/lists/0/order"),
        expected: ["strict", "fastest"],
    },
    Case {
        key: "upstream-ca-file",
        lines: [
            "upstream = ['{secure}']\nupstream-ca-file = '{certs}/two.pem'",
            "upstream = ['{secure}']\nupstream-ca-file = '{certs}/one.pem'",
        ],
        ask: Ask::Dig(&["+short", "+tries=1", "hello.svc.example"]),
        expected: ["", "10.0.0.3"],
    },
    Case {
        key: "upstream-random-case",
        lines: [
            "upstream = ['{upstream}']\nupstream-random-case = false",
            "upstream = ['{upstream}']\nupstream-random-case = true",
        ],
        ask: Ask::Test(World::case_of_queries),
        expected: ["lower", "mixed"],
    },
    Case {
        key: "forward-single-label",
        lines: [
            "upstream = ['203.0.113.9']\nforward-single-label = false",
            "upstream = ['203.0.113.9']\nforward-single-label = true",
        ],
        ask: Ask::Test(|world| world.explained("printer.", "203.0.113.9")),
        expected: ["false", "true"],
    },
    Case {
        key: "cache-size",
        lines: [
            "upstream = ['{upstream}']\ncache-size = '32MiB'",
            "upstream = ['{upstream}']\ncache-size = '1MiB'",
        ],
        ask: Ask::Status("/forwarding/cache/capacity"),
        expected: ["33554432", "1048576"],
    },
    Case {
        key: "serve-stale",
        lines: [
            "upstream = ['{upstream}']\nserve-stale = '0s'",
            "upstream = ['{upstream}']\nserve-stale = '1day'",
        ],
        ask: Ask::Test(World::code_of_an_expired_answer),
        expected: ["SERVFAIL", "NOERROR"],
    },
    Case {
        key: "rebinding-guard",
        lines: [
            "upstream = ['{upstream}']\nrebinding-guard = false",
            "upstream = ['{upstream}']\nrebinding-guard = true",
        ],
        ask: Ask::Test(|world| world.dig(&["+short", &world.fresh_name()])),
        expected: ["10.0.0.9", ""],
    },
    Case {
        key: "rebinding-allow",
        lines: [
            "upstream = ['{upstream}']\nrebinding-guard = true\nrebinding-allow = []",
            "upstream = ['{upstream}']\nrebinding-guard = true\nrebinding-allow = ['example']",
        ],
        ask: Ask::Test(|world| world.dig(&["+short", &world.fresh_name()])),
        expected: ["", "10.0.0.9"],
    },
    Case {
        key: "forward-opcodes",
        lines: [
            "upstream = ['{upstream}']\nforward-opcodes = false",
            "upstream = ['{upstream}']\nforward-opcodes = true",
        ],
        ask: Ask::Test(|world| {
            let mut notify = dns::query(7, &world.fresh_name(), dns::A);
            notify[2] |= 4 << 3;
            let response = dns::exchange(LOCAL, &notify, seconds(6)).unwrap_or_default();
            dns::code_of(&response).to_owned()
        }),
        expected: ["NOTIMP", "NOERROR"],
    },
];

/// The port of each kind of registry.
const ETCD: u16 = 2379;
const CONSUL: u16 = 8500;
const ZOOKEEPER: u16 = 2181;
const NACOS: u16 = 8848;
const POLARIS: u16 = 8090;

/// Declares a case of a key of one kind of registry.
macro_rules! kind {
    ($kind:literal $url:literal $key:literal $before:literal $after:literal $ask:expr) => {
        kind!($kind $url $key $before $after $ask, [$before, $after], "")
    };
    ($kind:literal $url:literal $key:literal $before:literal $after:literal $ask:expr,
     $expected:expr, $more:literal) => {
        Case {
            key: concat!($kind, ".", $key),
            lines: [
                concat!(
                    "registry = ['", $url, "']\n[", $kind, "]\n", $more, $key, " = ", $before
                ),
                concat!("registry = ['", $url, "']\n[", $kind, "]\n", $more, $key, " = ", $after),
            ],
            ask: $ask,
            expected: $expected,
        }
    };
}

/// Declares the cases of the TLS keys of one kind of registry.
macro_rules! tls {
    ($kind:literal $url:literal $port:expr) => {
        [
            kind!($kind $url "tls" "false" "true" Ask::Sent($port), ["", "\x16\x03"], ""),
            kind!($kind $url "ca-file" "'/none/one'" "'/none/two'" Ask::RegistryError,
                ["/none/one", "/none/two"], ""),
            kind!($kind $url "cert-file" "'/none/one'" "'/none/two'" Ask::RegistryError,
                ["/none/one", "/none/two"], "key-file = '{certs}/one.key'\n"),
            kind!($kind $url "key-file" "'/none/one'" "'/none/two'" Ask::RegistryError,
                ["/none/one", "/none/two"], "cert-file = '{certs}/one.pem'\n"),
            kind!($kind $url "server-name" "'first.test'" "'second.test'" Ask::Sent($port),
                ["first.test", "second.test"], "tls = true\n"),
        ]
    };
}

/// The keys of each kind of registry.
fn kinds() -> Vec<Case> {
    use Ask::{RegistryError, Sent};
    let mut cases = vec![
        kind!("etcd" "etcd://127.0.0.1:2379" "username" "'first'" "'second'" Sent(ETCD),
            ["first", "second"], "password-file = '{certs}/secret'\n"),
        kind!("etcd" "etcd://127.0.0.1:2379" "password-file" "'/none/one'" "'/none/two'"
            RegistryError, ["/none/one", "/none/two"], "username = 'first'\n"),
        kind!("consul" "consul://127.0.0.1:8500" "token-file" "'/none/one'" "'/none/two'"
            RegistryError, ["/none/one", "/none/two"], ""),
        kind!("consul" "consul://127.0.0.1:8500" "datacenter" "'first'" "'second'"
            Sent(CONSUL), ["dc=first", "dc=second"], ""),
        kind!("consul" "consul://127.0.0.1:8500" "namespace" "'first'" "'second'"
            Sent(CONSUL), ["ns=first", "ns=second"], ""),
        kind!("consul" "consul://127.0.0.1:8500" "reads" "'stale'" "'consistent'"
            Sent(CONSUL), ["stale", "consistent"], ""),
        kind!("consul" "consul://127.0.0.1:8500" "max-waiting" "100" "50" Sent(CONSUL),
            ["GET", "GET"], ""),
        kind!("zookeeper" "zookeeper://127.0.0.1:2181" "username" "'first'" "'second'"
            Sent(ZOOKEEPER), ["first:", "second:"], "password-file = '{certs}/secret'\n"),
        kind!("zookeeper" "zookeeper://127.0.0.1:2181" "password-file" "'/none/one'"
            "'/none/two'" RegistryError, ["/none/one", "/none/two"], "username = 'first'\n"),
        kind!("nacos" "nacos://127.0.0.1:8848" "username" "'first'" "'second'" Sent(NACOS),
            ["username=first", "username=second"], "password-file = '{certs}/secret'\n"),
        kind!("nacos" "nacos://127.0.0.1:8848" "password-file" "'/none/one'" "'/none/two'"
            RegistryError, ["/none/one", "/none/two"], "username = 'first'\n"),
        kind!("nacos" "nacos://127.0.0.1:8848" "namespace" "'first'" "'second'" Sent(NACOS),
            ["first", "second"], ""),
        kind!("nacos" "nacos://127.0.0.1:8848" "group" "'first'" "'second'" Sent(NACOS),
            ["first", "second"], ""),
        kind!("nacos" "nacos://127.0.0.1:8848" "clusters" "['first']" "['second']" Sent(NACOS),
            ["GET", "GET"], ""),
        kind!("nacos" "nacos://127.0.0.1:8848" "poll-interval" "'1s'" "'2s'" Sent(NACOS),
            ["GET", "GET"], ""),
        kind!("nacos" "nacos://127.0.0.1:8848" "max-requests" "200" "100" Sent(NACOS),
            ["GET", "GET"], ""),
        kind!("polaris" "polaris://127.0.0.1:8090" "token-file" "'/none/one'" "'/none/two'"
            RegistryError, ["/none/one", "/none/two"], ""),
        kind!("polaris" "polaris://127.0.0.1:8090" "namespace" "'first'" "'second'"
            Sent(POLARIS), ["first", "second"], ""),
        kind!("polaris" "polaris://127.0.0.1:8090" "deployments" "['a-b']" "['c-d']"
            Sent(POLARIS), ["POST", "POST"], ""),
        kind!("polaris" "polaris://127.0.0.1:8090" "namespaces" "['a-b']" "['c-d']"
            Sent(POLARIS), ["POST", "POST"], ""),
        kind!("polaris" "polaris://127.0.0.1:8090" "poll-interval" "'1s'" "'2s'"
            Sent(POLARIS), ["POST", "POST"], ""),
        kind!("polaris" "polaris://127.0.0.1:8090" "max-requests" "200" "100" Sent(POLARIS),
            ["POST", "POST"], ""),
    ];
    cases.extend(tls!("etcd" "etcd://127.0.0.1:2379" ETCD));
    cases.extend(tls!("consul" "consul://127.0.0.1:8500" CONSUL));
    cases.extend(tls!("zookeeper" "zookeeper://127.0.0.1:2181" ZOOKEEPER));
    cases.extend(tls!("nacos" "nacos://127.0.0.1:8848" NACOS));
    cases.extend(tls!("polaris" "polaris://127.0.0.1:8090" POLARIS));
    cases
}

/// Each key that needs a restart, with another value than the default, and the default.
const RESTARTS: &[(&str, &str, &str)] = &[
    ("runtime-dir", "'/run/other'", "\"\""),
    ("state-dir", "'/var/lib/other'", "\"\""),
    ("bridge.enabled", "true", "false"),
    ("bridge.pool", "'127.84.0.0/16'", "\"127.83.0.0/16\""),
    ("bridge.ports", "[8080]", "[80, 443]"),
    ("bridge.protocols", "['tcp']", "[\"http\", \"https\"]"),
    ("bridge.include", "['a']", "[]"),
    ("bridge.exclude", "['a']", "[]"),
    ("bridge.namespaces", "['a']", "[]"),
    ("bridge.bind", "true", "false"),
    ("bridge.proxy-protocol", "true", "false"),
    ("bridge.connections", "16000", "16384"),
    ("bridge.connections-per-service", "4000", "4096"),
    ("bridge.idle-timeout", "'1h'", "\"0s\""),
    ("bridge.drain", "'1s'", "\"10s\""),
    ("checks.enabled", "true", "false"),
    ("checks.names", "['a']", "[\"*\"]"),
    ("checks.protocols", "['http']", "[]"),
    ("checks.path", "'/health'", "\"\""),
    ("checks.interval", "'3s'", "\"2s\""),
    ("checks.timeout", "'2s'", "\"1s\""),
    ("checks.rise", "4", "2"),
    ("checks.fall", "4", "3"),
    ("checks.jitter", "20", "10"),
    ("checks.max-per-second", "100", "500"),
];

impl World {
    fn start() -> Self {
        let files = Files::new(&[
            ("default/default/hello.svc/latest/10.0.0.1:80", "{}"),
            ("default/default/hello.svc/latest/10.0.0.2:80", "{}"),
            ("default/default/docked.svc/latest/172.17.0.1:80", "{}"),
            ("default/default/docked.svc/latest/10.0.0.5:80", "{}"),
            ("default/default/old.svc/v1/10.0.0.4:80", "{}"),
            ("prod/default/deployed.svc/latest/10.0.0.6:80", "{}"),
            ("default/team/spaced.svc/latest/10.0.0.7:80", "{}"),
        ]);
        let headed = "other#default#default#headed.svc#latest#10.0.0.8-80";
        fs::write(folder_of(&files).join(headed), "{}").unwrap();
        let second = Files::new(&[("default/default/hello.svc/latest/10.0.0.3:80", "{}")]);
        let certificates = tempfile::tempdir().unwrap();
        make_certificates(certificates.path());
        let upstream = Upstream::start();
        upstream.below("example", Behaviour::made(answer_of_upstream));
        let certificate = |name: &str| certificates.path().join(name).display().to_string();
        let secure = Svcdns::serve_at(
            ([127, 0, 0, 9], 53).into(),
            &[
                "--zone=example".to_owned(),
                format!("--registry={}", second.url()),
                "--tls-listen=127.0.0.9:853".to_owned(),
                format!("--tls-cert-file={}", certificate("one.pem")),
                format!("--tls-key-file={}", certificate("one.key")),
            ],
        );
        let registries = [ETCD, CONSUL, ZOOKEEPER, NACOS, POLARIS];
        let registries = registries.map(FakeRegistry::start).into();
        let text = BASE.iter().map(|(_, line)| format!("{line}\n")).collect::<String>();
        let text = text.replace("{registry}", &files.url());
        let etcd = Etcd::start();
        etcd.put("/service/default/default/kept.svc/latest/10.0.0.1:80", "{}");
        let server = Reloading::start(LOCAL, &text);
        Self { server, upstream, files, second, etcd, _secure: secure, certificates, registries }
    }

    /// Returns the file with these lines instead of those of their keys.
    fn text(&self, lines: &str) -> String {
        // Below the first header, keys are those of a section.
        let general = format!("\n{lines}");
        let general = general.split("\n[").next().unwrap();
        let is_replaced =
            |key: &str| general.lines().any(|line| line.starts_with(&format!("{key} =")));
        let base = BASE.iter().filter(|(key, _)| !is_replaced(key));
        let base: String = base.map(|(_, line)| format!("{line}\n")).collect();
        let emptied = self.server.folder().join("emptied");
        [
            ("{registry}", self.files.url()),
            ("{second}", self.second.url()),
            ("{emptied}", format!("file://{}", emptied.display())),
            ("{etcd}", self.etcd.url()),
            ("{upstream}", self.upstream.flag()),
            ("{secure}", "tls://127.0.0.9:853#one".to_owned()),
            ("{certs}", self.certificates.path().display().to_string()),
        ]
        .into_iter()
        .fold(format!("{base}{lines}\n"), |text, (word, value)| text.replace(word, &value))
    }

    /// Reloads both files of a case, and asks each time.
    ///
    /// # Errors
    /// Returns what was found instead of the expected result.
    fn run(&self, case: &Case) -> Result<(), String> {
        for (lines, expected) in case.lines.iter().zip(case.expected) {
            for registry in &self.registries {
                registry.received.lock().unwrap().clear();
            }
            let printed = self.server.reload_lines(&self.text(lines)).join("\n");
            assert!(!printed.contains("needs a restart"), "{}: {printed}", case.key);
            let mut last = String::new();
            let mut found = || {
                last = match &case.ask {
                    Ask::Dig(words) => self.dig(words),
                    Ask::Status(pointer) => self.server.status(pointer),
                    Ask::Test(test) => test(self),
                    Ask::Sent(port) => self.sent(*port),
                    Ask::RegistryError => self.server.status("/registries/0/error"),
                    Ask::Printed => printed.clone(),
                };
                let is_part = matches!(case.ask, Ask::Sent(_) | Ask::RegistryError | Ask::Printed);
                (last == expected || is_part && last.contains(expected)).then_some(())
            };
            let start = Instant::now();
            while found().is_none() {
                if start.elapsed() > SOON {
                    return Err(format!(
                        "{}, {lines:?}: expected {expected:?}, found {last:?}\n{printed}",
                        case.key
                    ));
                }
                thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }

    /// Returns what dig prints, sorted.
    fn dig(&self, words: &[&str]) -> String {
        let text = dns::dig(self.server.address, words);
        let mut lines: Vec<&str> = text.lines().filter(|line| !line.starts_with(';')).collect();
        lines.sort_unstable();
        lines.join("\n")
    }

    /// Returns the TTL of the first record that dig prints.
    fn ttl(&self, words: &[&str]) -> String {
        let text = self.dig(words);
        text.split_whitespace().nth(1).unwrap_or("none").to_owned()
    }

    /// Returns what the server has sent to the registry at a port.
    fn sent(&self, port: u16) -> String {
        let registry = self.registries.iter().find(|registry| registry.port == port).unwrap();
        String::from_utf8_lossy(&registry.received.lock().unwrap()).into_owned()
    }

    /// Returns a name that no query had before, below `example`.
    fn fresh_name(&self) -> String {
        static LAST: AtomicU32 = AtomicU32::new(0);
        format!("abcdefghijkl{}.example", LAST.fetch_add(1, Ordering::Relaxed))
    }

    /// Returns whether the explanation of a name contains a text.
    fn explained(&self, name: &str, text: &str) -> String {
        let output = self.server.run(&["explain", name]);
        String::from_utf8_lossy(&output.stdout).contains(text).to_string()
    }

    fn has_snapshot(&self) -> String {
        self.server.folder().join("state/snapshot-etcd").exists().to_string()
    }

    /// Returns whether a change of a registry is logged at level `debug`.
    fn loudness(&self) -> String {
        let before = self.server.log().len();
        let key = "default/default/noted.svc/latest/10.0.0.9:80";
        self.files.put(key, "{}");
        eventually("the new service", SOON, || {
            (self.dig(&["+short", "noted.svc"]) == "10.0.0.9").then_some(())
        });
        self.files.delete(key);
        let is_loud = self.server.log()[before..].contains("DEBUG");
        if is_loud { "loud" } else { "quiet" }.to_owned()
    }

    fn logs_queries(&self) -> String {
        let name = self.fresh_name();
        dns::ask(self.server.address, &name, dns::A);
        thread::sleep(Duration::from_millis(50));
        if self.server.log().contains(&name) { "logged" } else { "silent" }.to_owned()
    }

    /// Removes all keys of a registry at once; returns whether their removal is held.
    fn fate_of_removed_keys(&self) -> String {
        let folder = self.server.folder().join("emptied");
        let away = self.server.folder().join("away");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        for last in 1..=20 {
            let name = format!("service#default#default#gone{last}.svc#latest#10.0.1.{last}-80");
            fs::write(folder.join(name), "{}").unwrap();
        }
        eventually("the services", SOON, || {
            (self.dig(&["+short", "gone20.svc"]) == "10.0.1.20").then_some(())
        });
        fs::rename(&folder, &away).unwrap();
        eventually("the registry to be away", SOON, || {
            (self.server.status("/registries/0/connected") == "false").then_some(())
        });
        fs::create_dir(&folder).unwrap();
        let fate = eventually("the end of the keys, or a hold", SOON, || {
            if dns::code(LOCAL, "gone20.svc", dns::A) == "NXDOMAIN" {
                Some("removed")
            } else {
                (self.server.status("/holding") != "0").then_some("held")
            }
        });
        fs::remove_dir_all(&away).unwrap();
        fate.to_owned()
    }

    /// Returns the letter case of a query at the upstream.
    fn case_of_queries(&self) -> String {
        let name = self.fresh_name();
        dns::ask(self.server.address, &name, dns::A);
        let queries = self.upstream.queries();
        let mut queries =
            queries.iter().filter(|found| found.query.name.eq_ignore_ascii_case(&name));
        match queries.next() {
            Some(found) if found.query.name == name => "lower".to_owned(),
            Some(_) => "mixed".to_owned(),
            None => "no query".to_owned(),
        }
    }

    /// Returns the code of the answer after its TTL, when the upstream fails.
    fn code_of_an_expired_answer(&self) -> String {
        let name = self.fresh_name();
        assert_eq!(dns::code(LOCAL, &name, dns::A), "NOERROR");
        self.upstream.on(&name, Behaviour::code(2));
        thread::sleep(Duration::from_millis(1_200));
        dns::code(LOCAL, &name, dns::A).to_owned()
    }
}

/// Returns the folder of a file registry.
fn folder_of(files: &Files) -> PathBuf {
    files.url().trim_start_matches("file://").into()
}

/// Answers every query with a private address, for a second.
fn answer_of_upstream(query: &Query) -> Vec<u8> {
    Message::of([Record::a(&query.name, 1, "10.0.0.9")]).to_bytes(query)
}

/// Returns the code of the answer of a server to one query.
fn code_at(server: impl Into<SocketAddr>) -> String {
    let query = dns::query(1, "hello.svc", dns::A);
    let response = dns::exchange(server.into(), &query, Duration::from_millis(500));
    dns::code_of(&response.unwrap_or_default()).to_owned()
}

/// Opens four connections and queries on each; returns how many remain open.
fn open_of_four(server: impl Into<SocketAddr>) -> String {
    let server = server.into();
    let mut open = Vec::new();
    for _ in 0..4 {
        let Ok(mut stream) = TcpStream::connect(server) else { continue };
        stream.set_read_timeout(Some(seconds(6))).unwrap();
        dns::send_tcp(&mut stream, &dns::query(1, "hello.svc", dns::A));
        let _ = dns::receive_tcp(&mut stream);
        open.push(stream);
    }
    thread::sleep(Duration::from_millis(100));
    let is_open = |mut stream: &TcpStream| {
        stream.set_nonblocking(true).unwrap();
        matches!(stream.read(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock)
    };
    open.iter().filter(|stream| is_open(stream)).count().to_string()
}

/// Returns whether a connection without queries is closed within 3 s.
fn fate_of_an_idle_connection() -> String {
    let mut stream = TcpStream::connect(LOCAL).unwrap();
    stream.set_read_timeout(Some(seconds(3))).unwrap();
    dns::send_tcp(&mut stream, &dns::query(1, "hello.svc", dns::A));
    dns::receive_tcp(&mut stream);
    match stream.read(&mut [0]) {
        Ok(0) => "closed".to_owned(),
        _ => "open".to_owned(),
    }
}

/// Returns the status code of the health page at an address, or 000.
fn http_status(address: &str) -> String {
    let output = Command::new("curl")
        .args(["-s", "-o", "/dev/null", "-w", "%{http_code}"])
        .arg(format!("http://{address}/healthz"))
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Returns the common name of the certificate at an address.
fn certificate_name(address: &str) -> String {
    let script = format!(
        "openssl s_client -connect {address} </dev/null 2>/dev/null | \
         openssl x509 -noout -subject 2>/dev/null"
    );
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.trim()
        .rsplit(['=', ' '])
        .next()
        .filter(|name| !name.is_empty())
        .unwrap_or("none")
        .to_owned()
}

/// Makes certificates `one` and `renamed` of one key, and `two` of another.
fn make_certificates(folder: &Path) {
    let openssl = |arguments: &str| {
        let output = Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(folder)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    for key in ["one", "two"] {
        openssl(&format!("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out {key}.key"));
    }
    for (name, key) in [("one", "one"), ("renamed", "one"), ("two", "two")] {
        openssl(&format!(
            "req -x509 -key {key}.key -days 30 -subj /CN={name} -addext \
             subjectAltName=DNS:{name} -addext basicConstraints=critical,CA:FALSE -out {name}.pem"
        ));
    }
    fs::write(folder.join("secret"), "secret").unwrap();
}

/// A port where a registry could be: keeps what it receives, and says little.
struct FakeRegistry {
    port: u16,
    received: Arc<Mutex<Vec<u8>>>,
}

impl FakeRegistry {
    fn start(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        let received = Arc::<Mutex<Vec<u8>>>::default();
        let kept = Arc::clone(&received);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let kept = Arc::clone(&kept);
                thread::spawn(move || Self::serve(port, stream, &kept));
            }
        });
        Self { port, received }
    }

    fn serve(port: u16, mut stream: TcpStream, kept: &Mutex<Vec<u8>>) {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut bytes) {
            kept.lock().unwrap().extend(&bytes[..count]);
            let answer: Vec<u8> = match port {
                // The response to a connect request: version, time limit, session and password.
                ZOOKEEPER => {
                    let mut session = 37_u32.to_be_bytes().to_vec();
                    session.extend([0, 0, 0, 0, 0, 0, 0x27, 0x10, 0, 0, 0, 0, 0, 0, 0, 1]);
                    session.extend(16_u32.to_be_bytes());
                    session.extend([0; 17]);
                    session
                }
                _ => Vec::new(),
            };
            if stream.write_all(&answer).is_err() {
                return;
            }
        }
    }
}

/// Runs cases against one server, in its own network.
fn run_all(test: &str, cases: &[Case]) {
    netns::inside(test, "127.0.0.1", || {
        let world = World::start();
        let faults: Vec<String> = cases.iter().filter_map(|case| world.run(case).err()).collect();
        assert!(faults.is_empty(), "{}\n{}", faults.join("\n\n"), world.server.log());
    });
}

#[test]
fn keys_of_answers_and_limits_are_reloaded() {
    run_all("keys_of_answers_and_limits_are_reloaded", ANSWERS);
}

#[test]
fn keys_of_listeners_and_upstreams_are_reloaded() {
    run_all("keys_of_listeners_and_upstreams_are_reloaded", NETWORK);
}

#[test]
fn keys_of_registries_are_reloaded() {
    run_all("keys_of_registries_are_reloaded", &kinds());
}

#[test]
fn other_keys_need_a_restart_and_say_so() {
    netns::inside("other_keys_need_a_restart_and_say_so", "127.0.0.1", || {
        let world = World::start();
        for (key, value, stays) in RESTARTS {
            let lines = match key.split_once('.') {
                Some((section, name)) => format!("[{section}]\n{name} = {value}"),
                None => format!("{key} = {value}"),
            };
            for _ in 0..2 {
                let printed = world.server.reload_lines(&world.text(&lines));
                let expected = format!("{key}: needs a restart, stays {stays}, then ");
                assert!(
                    matches!(&*printed, [line] if line.starts_with(&expected)),
                    "{expected}\n{printed:#?}"
                );
            }
        }
        assert_eq!(world.server.reload_lines(&world.text("")), ["nothing changed"]);
    });
}

#[test]
fn every_key_has_a_case() {
    let kinds = kinds();
    let applied = ANSWERS.iter().chain(NETWORK).chain(&kinds).map(|case| case.key);
    let restarts = RESTARTS.iter().map(|(key, ..)| *key);
    let cases: Vec<String> = applied.chain(restarts).map(ToOwned::to_owned).collect();
    let distinct: BTreeSet<String> = cases.iter().cloned().collect();
    assert_eq!(distinct.len(), cases.len(), "a key has two cases");
    assert_eq!(distinct, KEYS.iter().map(|key| key.path()).collect::<BTreeSet<_>>());
    for key in KEYS.iter() {
        let is_restart = RESTARTS.iter().any(|(path, ..)| *path == key.path());
        assert_eq!(key.needs_restart(), is_restart, "{}", key.path());
    }
}
