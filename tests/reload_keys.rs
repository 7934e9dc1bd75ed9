//! One case for each key of the configuration: what a reload changes of the running server.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use support::files::Files;
use support::netns;
use support::reloading::Reloading;
use support::svcdns::Svcdns;
use support::upstream::Upstream;
use support::upstream::behaviour::Behaviour;
use support::upstream::message::Record;
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
    Restart,
}

/// A server in its own network, and all that it uses.
struct World {
    server: Reloading,
    upstream: Upstream,
    files: Files,
    second: Files,
    /// A server whose names are asked for over TLS.
    secure: Svcdns,
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
        expected: ["6", "1"],
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
            "registry = ['etcd://127.0.0.1:2379']\nsnapshot = true",
            "registry = ['etcd://127.0.0.1:2379']\nsnapshot = false",
        ],
        ask: Ask::Restart,
        expected: ["", ""],
    },
    Case {
        key: "max-stale",
        lines: ["max-stale = '7days'", "max-stale = '1h'"],
        ask: Ask::Restart,
        expected: ["", ""],
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
        ask: Ask::Dig(&["+short", "+tries=1", "hello.example"]),
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
        ask: Ask::Test(|world| world.explained("printer", "203.0.113.9")),
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
