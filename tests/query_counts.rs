//! The counts of questions and responses on the metrics page, after known queries.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use support::files::Files;
use support::svcdns::Svcdns;
use support::upstream::{Record, Upstream};
use support::{SOON, dns, eventually};
use tempfile::TempDir;

/// Types of queries that have no constant elsewhere.
const SOA: u16 = 6;
const PTR: u16 = 12;
const MX: u16 = 15;
const AXFR: u16 = 252;

/// Values of the samples of a page, by name with labels.
type Samples = BTreeMap<String, u64>;

/// A server with all sources of responses, on all transports.
struct Counted {
    server: Svcdns,
    status: Value,
    files: Files,
    _parts: (Upstream, TempDir),
}

impl Counted {
    fn start() -> Self {
        let files = Files::new(&[("default/default/hello.svc/latest/10.0.0.1:80", "{}")]);
        let upstream = Upstream::start();
        upstream.put(vec![Record::a("www.example.com", 600, "192.0.2.1")]);
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let (config, certificate, key) = (path("svcdns.toml"), path("cert.pem"), path("key.pem"));
        let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        fs::write(&certificate, own.cert.pem()).unwrap();
        fs::write(&key, own.signing_key.serialize_pem()).unwrap();
        let statics = "[[static]]\nname = 'db'\nendpoints = ['10.0.0.9:5432']\n";
        fs::write(&config, format!("zone = ['svc', 'internal']\n{statics}")).unwrap();
        let (url, upstream_flag) = (files.url(), upstream.flag());
        let mut flags = vec!["--config", &config, "--registry", &url, "--upstream", &upstream_flag];
        flags.extend(["--admin-listen", "127.0.0.1:0", "--tls-listen", "127.0.0.1:0"]);
        flags.extend(["--tls-quic-listen", "127.0.0.1:0", "--tls-cert-file", &certificate]);
        flags.extend(["--tls-key-file", &key]);
        let server = Svcdns::serve(&flags);
        server.wait_for("hello.svc", &["10.0.0.1"]);
        server.wait_for("db.svc", &["10.0.0.9"]);
        let status = serde_json::from_slice(&server.run(&["status", "--json"]).stdout).unwrap();
        Self { server, status, files, _parts: (upstream, folder) }
    }

    /// Returns the samples of questions and responses, and of the histogram's counts.
    fn samples(&self) -> Samples {
        let url = format!("http://{}/metrics", self.status["admin"].as_str().unwrap());
        let output = Command::new("curl").args(["-sSf", &url]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let page = String::from_utf8(output.stdout).unwrap();
        let counts = [
            "svcdns_questions_total{",
            "svcdns_responses_total{",
            "svcdns_queries_total{",
            "svcdns_response_time_seconds_count{",
        ];
        let lines = page.lines().filter(|line| counts.iter().any(|name| line.starts_with(name)));
        let sample = |line: &str| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        };
        lines.map(sample).collect()
    }

    /// Sends a message over UDP once, and returns the response code.
    fn udp(&self, message: &[u8]) -> &'static str {
        // Without a repetition, which would be another query.
        let response = dns::exchange(self.server.address, message, SOON).unwrap();
        dns::code_of(&response)
    }

    fn tcp(&self, message: &[u8]) -> &'static str {
        let mut stream = TcpStream::connect(self.server.address).unwrap();
        dns::send_tcp(&mut stream, message);
        dns::code_of(&dns::receive_tcp(&mut stream).unwrap())
    }

    /// Queries with kdig over an encrypted transport.
    fn encrypted(&self, kind: &str, name: &str) {
        let address: SocketAddr = self.status[kind][0].as_str().unwrap().parse().unwrap();
        let mut kdig = Command::new("kdig");
        kdig.args(["@127.0.0.1", "-p", &address.port().to_string(), &format!("+{kind}")]);
        let output = kdig.args(["+retry=0", "+timeout=60", name, "A"]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("status: NOERROR"), "{kind}: {text}");
    }
}

/// Returns the samples that grew, each with the growth.
fn growth(before: &Samples, after: &Samples) -> Samples {
    let grown = |(name, value): (&String, &u64)| {
        (name.clone(), value - before.get(name).copied().unwrap_or(0))
    };
    after.iter().map(grown).filter(|(_, growth)| *growth > 0).collect()
}

fn question(transport: &str, zone: &str, rtype: &str) -> String {
    format!("svcdns_questions_total{{transport=\"{transport}\",zone=\"{zone}\",type=\"{rtype}\"}}")
}

fn response(source: &str, rcode: &str) -> String {
    format!("svcdns_responses_total{{source=\"{source}\",rcode=\"{rcode}\"}}")
}

#[test]
fn counts_of_all_transports_are_exact() {
    let counted = Counted::start();
    let before = counted.samples();
    let mut expected = Samples::new();
    let mut expect = |transport: &str, zone: &str, rtype: &str, from: (&str, &str)| {
        for name in [
            question(transport, zone, rtype),
            response(from.0, from.1),
            format!("svcdns_queries_total{{transport=\"{transport}\"}}"),
        ] {
            *expected.entry(name).or_default() += 1;
        }
    };
    let rejected = dns::query(1, "hello.svc", dns::A)[..14].to_vec();
    for (name, qtype, (zone, rtype), (source, code)) in [
        ("hello.svc", dns::A, ("svc.", "A"), ("registry", "NOERROR")),
        ("HELLO.svc", dns::A, ("svc.", "A"), ("registry", "NOERROR")),
        ("hello.svc", dns::AAAA, ("svc.", "AAAA"), ("registry", "NOERROR")),
        ("hello.internal", dns::SRV, ("internal.", "SRV"), ("registry", "NOERROR")),
        ("hello.svc", MX, ("svc.", "other"), ("registry", "NOERROR")),
        ("nothing.internal", dns::TXT, ("internal.", "TXT"), ("registry", "NXDOMAIN")),
        ("db.svc", dns::A, ("svc.", "A"), ("static", "NOERROR")),
        ("svc", SOA, ("svc.", "SOA"), ("local", "NOERROR")),
        ("1.0.0.127.in-addr.arpa", PTR, ("reverse", "PTR"), ("local", "NOERROR")),
        ("localhost", dns::A, ("other", "A"), ("local", "NOERROR")),
        ("www.example.com", dns::A, ("other", "A"), ("upstream", "NOERROR")),
        ("www.example.com", dns::A, ("other", "A"), ("cache", "NOERROR")),
        ("hello.svc", AXFR, ("svc.", "other"), ("refused", "REFUSED")),
    ] {
        assert_eq!(counted.udp(&dns::query(1, name, qtype)), code, "{name} {rtype}");
        expect("udp", zone, rtype, (source, code));
    }
    assert_eq!(counted.udp(&rejected), "FORMERR");
    expect("udp", "none", "other", ("local", "FORMERR"));
    for _ in 0..3 {
        assert_eq!(counted.tcp(&dns::query(1, "hello.svc", dns::A)), "NOERROR");
        expect("tcp", "svc.", "A", ("registry", "NOERROR"));
    }
    for kind in ["tls", "quic"] {
        counted.encrypted(kind, "hello.internal");
        expect(kind, "internal.", "A", ("registry", "NOERROR"));
    }
    let mut grown = growth(&before, &counted.samples());
    let (times, counts): (Samples, Samples) =
        std::mem::take(&mut grown).into_iter().partition(|(name, _)| name.contains("time"));
    assert_eq!(counts, expected);
    // All deferred responses are timed, and only some of the others.
    let deferred = "svcdns_response_time_seconds_count{transport=\"udp\",path=\"deferred\"}";
    assert_eq!(times.get(deferred), Some(&1), "{times:?}");

    // A registry that is away leaves its last known data.
    let path = counted.files.url();
    let path = Path::new(path.strip_prefix("file://").unwrap());
    fs::rename(path, path.with_extension("away")).unwrap();
    eventually("the loss of the registry", SOON, || {
        let status = counted.server.run(&["status", "--json"]).stdout;
        let status: Value = serde_json::from_slice(&status).unwrap();
        (status["stale"] == true).then_some(())
    });
    let before = counted.samples();
    assert_eq!(counted.udp(&dns::query(1, "hello.svc", dns::A)), "NOERROR");
    assert_eq!(counted.udp(&dns::query(1, "db.svc", dns::A)), "NOERROR");
    let grown = growth(&before, &counted.samples());
    for name in [response("stale", "NOERROR"), response("static", "NOERROR")] {
        assert_eq!(grown.get(&name), Some(&1), "{name} in {grown:?}");
    }
    counted.server.stop();
    fs::rename(path.with_extension("away"), path).unwrap();
}
