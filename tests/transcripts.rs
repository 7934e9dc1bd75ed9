//! Every row of the naming table, queried with dig.
//!
//! The registry is a file registry of fixed content.
//!
//! [`FACTS`] has the answers that the naming grammar requires. The snapshots in `tests/snapshots/`
//! have the whole responses: flags, sections, TTLs and EDE. Values that differ between runs (id,
//! times, serials) are left out, and the records of a section are sorted.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fmt::Write as _;
use std::net::SocketAddr;

use support::dns;
use support::files::Files;
use support::svcdns::Svcdns;

const HTTP: &str = r#"{"insecure":true,"protocol":"http"}"#;
const GRPC: &str = r#"{"protocol":"grpc"}"#;

const REGISTRATIONS: &[(&str, &str)] = &[
    ("default/default/hello.svc/latest/10.0.0.1:8000", HTTP),
    (
        "default/default/hello.svc/latest/10.0.0.2:8000,10.0.0.2:8443",
        r#"{"env":"gray","protocol":"https","weight":5}"#,
    ),
    ("default/default/hello.svc/v1.2.0/10.0.0.3:8000", r#"{"env":"gray","protocol":"http"}"#),
    ("default/default/hello.svc/latest-canary/10.0.0.4:8000", r#"{"ver":"1.0","protocol":"http"}"#),
    // Shadowed by hello.svc.
    ("default/default/hello/latest/10.0.0.9:9000", "{}"),
    ("default/prod/hello.svc/latest/10.1.0.1:8000", HTTP),
    ("eu/shop/hello.svc/latest/10.2.0.1:8000", HTTP),
    ("default/prod/prodonly/latest/10.1.0.2:7000", "{}"),
    // Without the version `latest`.
    ("default/default/billing/v1/10.0.0.20:80", "{}"),
    ("default/default/billing/v2/10.0.0.21:80", "{}"),
    ("default/default/six/latest/[fd00::5]:8000", HTTP),
    ("default/default/six/latest/10.0.0.5:8000", HTTP),
    ("default/default/legacy/latest/web-1.example:9000", "{}"),
    ("default/default/dock/latest/10.0.0.30:80,172.17.0.1:80", "{}"),
    ("default/default/user-svc/latest/10.0.0.40:80", "{}"),
    ("default/default/Mixed/latest/10.0.0.41:80", "{}"),
    // Two processes at one address.
    ("default/default/twin/latest/10.0.0.50:80", "{}"),
    ("default/default/twin/latest/10.0.0.50:81", "{}"),
    ("default/default/demo/latest/10.0.0.60:8000", GRPC),
    // No usable endpoint.
    ("default/default/broken/latest/10.0.0.61:0", "{}"),
    ("default/default/a.b/latest/10.0.0.70:80", "{}"),
    ("default/default/ver/1.0/10.0.0.80:80", "{}"),
    // Could be version `v1` of `demo`, but the longest base wins.
    ("default/default/v1.demo/latest/10.0.0.71:80", "{}"),
];

fn server(files: &Files, flags: &[&str]) -> Svcdns {
    let url = files.url();
    let server = Svcdns::serve(&[&["--registry", &url], flags].concat());
    server.wait_for("demo.svc", &["10.0.0.60"]);
    server
}

/// A query, and its response code or the data of its answer (empty: NODATA).
type Fact = (&'static str, Result<&'static [&'static str], &'static str>);

const FACTS: &[Fact] = &[
    // base.svc: version `latest` in the configured deployment and namespace
    ("hello.svc", Ok(&["10.0.0.1", "10.0.0.2"])),
    ("HeLLo.SVC", Ok(&["10.0.0.1", "10.0.0.2"])),
    ("hello.svc AAAA", Ok(&[])),
    ("hello.svc MX", Ok(&[])),
    ("hello.svc TYPE65280", Ok(&[])),
    (
        "hello.svc SRV",
        Ok(&[
            "0 1 8000 10-0-0-1.hello.svc.",
            "0 5 8000 10-0-0-2.hello.svc.",
            "0 5 8443 10-0-0-2.hello.svc.",
        ]),
    ),
    (
        "hello.svc TXT",
        Ok(&[r#""env=gray" "protocol=https" "weight=5""#, r#""insecure=true" "protocol=http""#]),
    ),
    ("billing.svc", Ok(&["10.0.0.20", "10.0.0.21"])),
    ("six.svc AAAA", Ok(&["fd00::5"])),
    ("six.svc SRV", Ok(&["0 1 8000 10-0-0-5.six.svc.", "0 1 8000 fd00-0-0-0-0-0-0-5.six.svc."])),
    ("dock.svc", Ok(&["10.0.0.30"])),
    ("user-svc.svc", Ok(&["10.0.0.40"])),
    ("mixed.svc", Ok(&["10.0.0.41"])),
    ("twin.svc", Ok(&["10.0.0.50"])),
    ("twin.svc SRV", Ok(&["0 1 80 10-0-0-50.twin.svc.", "0 1 81 10-0-0-50.twin.svc."])),
    ("a.b.svc", Ok(&["10.0.0.70"])),
    ("broken.svc", Ok(&[])),
    ("broken.svc SRV", Ok(&[])),
    ("nothing.svc", Err("NXDOMAIN")),
    ("nothing.svc SRV", Err("NXDOMAIN")),
    ("example.com", Err("REFUSED")),
    ("hello.svcs", Err("REFUSED")),
    // a host-named endpoint: the host is the SRV target; its addresses need forwarding (off here)
    ("legacy.svc SRV", Ok(&["0 1 9000 web-1.example."])),
    ("legacy.svc", Ok(&[])),
    // base.<namespace>.svc, base.<namespace>.<deployment>.svc
    ("hello.prod.svc", Ok(&["10.1.0.1"])),
    ("hello.default.svc", Ok(&["10.0.0.1", "10.0.0.2"])),
    ("hello.shop.eu.svc", Ok(&["10.2.0.1"])),
    ("hello.default.default.svc", Ok(&["10.0.0.1", "10.0.0.2"])),
    ("prodonly.prod.svc", Ok(&["10.1.0.2"])),
    ("prodonly.svc", Ok(&[])),
    ("hello.staging.svc", Err("NXDOMAIN")),
    // <version>.base.svc
    ("v1.2.0.hello.svc", Ok(&["10.0.0.3"])),
    ("latest.hello.svc", Ok(&["10.0.0.1", "10.0.0.2"])),
    ("latest-canary.hello.svc", Ok(&["10.0.0.4"])),
    ("v1.billing.svc", Ok(&["10.0.0.20"])),
    ("1.0.ver.svc", Ok(&["10.0.0.80"])),
    ("v9.hello.svc", Err("NXDOMAIN")),
    ("2.0.hello.svc", Ok(&[])),
    ("v1.demo.svc", Ok(&["10.0.0.71"])),
    // <a-b-c-d>.base.svc, an instance of any version
    ("10-0-0-1.hello.svc", Ok(&["10.0.0.1"])),
    ("10-0-0-3.hello.svc", Ok(&["10.0.0.3"])),
    ("10-0-0-3.hello.svc AAAA", Ok(&[])),
    (
        "10-0-0-2.hello.svc SRV",
        Ok(&["0 5 8000 10-0-0-2.hello.svc.", "0 5 8443 10-0-0-2.hello.svc."]),
    ),
    ("10-0-0-3.v1.2.0.hello.svc", Ok(&["10.0.0.3"])),
    ("10-0-0-3.latest.hello.svc", Err("NXDOMAIN")),
    ("10-1-0-1.hello.prod.svc", Ok(&["10.1.0.1"])),
    ("10-0-0-8.hello.svc", Err("NXDOMAIN")),
    ("fd00-0-0-0-0-0-0-5.six.svc AAAA", Ok(&["fd00::5"])),
    ("fd00--5.six.svc AAAA", Ok(&["fd00::5"])),
    ("fd00--5.six.svc A", Ok(&[])),
    // <value>._<key>: selectors
    ("gray._env.hello.svc", Ok(&["10.0.0.2"])),
    ("GRAY._ENV.hello.svc", Ok(&["10.0.0.2"])),
    ("v1.2.0._version.hello.svc", Ok(&["10.0.0.3"])),
    ("gray._env.v1.2.0._version.hello.svc", Ok(&["10.0.0.3"])),
    ("prod._namespace.hello.svc", Ok(&["10.1.0.1"])),
    ("shop._namespace.eu._deployment.hello.svc", Ok(&["10.2.0.1"])),
    ("10-0-0-1._instance.hello.svc", Ok(&["10.0.0.1"])),
    ("8443._port.hello.svc SRV", Ok(&["0 5 8443 10-0-0-2.hello.svc."])),
    ("true._insecure.hello.svc", Ok(&["10.0.0.1"])),
    ("1.0._ver.latest-canary.hello.svc", Ok(&["10.0.0.4"])),
    ("blue._env.hello.svc", Ok(&[])),
    ("_env.hello.svc", Ok(&[])),
    ("gray._env.nothing.svc", Err("NXDOMAIN")),
    // RFC 2782
    ("_http._tcp.hello.svc SRV", Ok(&["0 1 8000 10-0-0-1.hello.svc."])),
    ("_8443._tcp.hello.svc SRV", Ok(&["0 5 8443 10-0-0-2.hello.svc."])),
    ("_http._tcp.hello.svc", Ok(&[])),
    ("_grpc._tcp.hello.svc SRV", Ok(&[])),
    ("_grpc._tcp.demo.svc SRV", Ok(&["0 1 8000 10-0-0-60.demo.svc."])),
    ("_tcp.hello.svc", Ok(&[])),
    (
        "_hello._tcp.svc SRV",
        Ok(&[
            "0 1 8000 10-0-0-1.hello.svc.",
            "0 5 8000 10-0-0-2.hello.svc.",
            "0 5 8443 10-0-0-2.hello.svc.",
        ]),
    ),
    ("_nothing._tcp.svc SRV", Err("NXDOMAIN")),
    ("_http._tcp.nothing.svc SRV", Err("NXDOMAIN")),
    // reverse names
    ("1.0.0.10.in-addr.arpa PTR", Ok(&["10-0-0-1.hello.svc.", "hello.svc."])),
    ("1.0.0.10.in-addr.arpa A", Ok(&[])),
    (
        "5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa PTR",
        Ok(&["fd00-0-0-0-0-0-0-5.six.svc.", "six.svc."]),
    ),
    // the zone itself
    ("svc NS", Ok(&["ns.svc."])),
    ("svc A", Ok(&[])),
    ("ns.svc", Ok(&["127.0.0.1"])),
    ("ns.svc AAAA", Ok(&[])),
    ("ns.svc SRV", Ok(&[])),
    // empty non-terminals: every label above a published name exists
    ("b.svc", Ok(&[])),
    ("0.hello.svc", Ok(&[])),
    ("0.ver.svc", Ok(&[])),
];

/// Aliases and their services; all other names in [`FACTS`] stay.
const ALIASES: &[(&str, &str)] = &[
    ("www", "hello"),
    ("bills", "billing.svc"),
    ("sechs", "six"),
    ("old", "legacy.svc."),
    ("harbour", "dock"),
    ("users", "USER-SVC"),
    ("blend", "mixed"),
    ("pair", "twin"),
    ("trial", "demo"),
    ("v1.trial", "v1.demo.svc"),
    ("ruin", "broken"),
    ("issue", "ver"),
    ("apart", "prodonly"),
];

/// Replaces services by their aliases in a query or its answer, except in reverse names.
fn with_aliases(text: &str) -> String {
    let words = text.split(' ').map(|word| {
        let labels = word.split('.').map(|label| {
            // `_hello._tcp.svc` has a service with an underscore, other labels have a key.
            let is_tcp = word.ends_with("._tcp.svc");
            let (prefix, name) = match label.strip_prefix('_').filter(|_| is_tcp) {
                Some(name) => ("_", name.to_ascii_lowercase()),
                None => ("", label.to_ascii_lowercase()),
            };
            let service = |target: &str| {
                target.to_ascii_lowercase().trim_end_matches('.').trim_end_matches(".svc") == name
            };
            let alias = ALIASES.iter().find(|(_, target)| service(target));
            alias.map_or_else(|| label.to_owned(), |(alias, _)| format!("{prefix}{alias}"))
        });
        labels.collect::<Vec<_>>().join(".")
    });
    words.collect::<Vec<_>>().join(" ")
}

#[test]
fn every_row_of_the_naming_table_matches_a_real_answer() {
    let files = Files::new(REGISTRATIONS);
    let server = server(&files, &[]);
    let faults = faults(&server, str::to_owned);
    assert!(faults.is_empty(), "\n{faults}");
}

#[test]
fn every_row_has_the_same_answer_under_an_alias() {
    let files = Files::new(REGISTRATIONS);
    let configuration = tempfile::NamedTempFile::new().unwrap();
    let mut text = String::from("[alias]\n");
    for (alias, target) in ALIASES {
        writeln!(text, "'{alias}.svc' = '{target}'").unwrap();
    }
    std::fs::write(configuration.path(), text).unwrap();
    let server = server(&files, &["--config", configuration.path().to_str().unwrap()]);
    let unchanged = faults(&server, str::to_owned);
    assert!(unchanged.is_empty(), "\n{unchanged}");
    let renamed = FACTS.iter().filter(|(query, _)| with_aliases(query) != *query).count();
    assert!(renamed > 60, "only {renamed} rows have an alias");
    let faults = faults(&server, with_aliases);
    assert!(faults.is_empty(), "\n{faults}");
}

/// Returns a line for each fact that does not hold after renaming services.
fn faults(server: &Svcdns, rename: impl Fn(&str) -> String) -> String {
    let mut faults = String::new();
    for (query, expected) in FACTS {
        // PTR records have registered names.
        let is_reverse = query.contains(".arpa");
        let rename = |text: &str| if is_reverse { text.to_owned() } else { rename(text) };
        let query = &*rename(query);
        let output = DigOutput::of(server.address, query);
        let found = if output.status == "NOERROR" {
            Ok(output.data())
        } else {
            Err(output.status.as_str())
        };
        let expected_data =
            expected.map(|data| data.iter().map(|line| rename(line)).collect::<Vec<_>>());
        if found != expected_data {
            writeln!(faults, "{query}\n    expected {expected_data:?}\n    found    {found:?}")
                .unwrap();
        }
        let negative =
            output.status == "NXDOMAIN" || (output.status == "NOERROR" && output.answer.is_empty());
        if negative && !output.authority.iter().any(|record| record.contains(" SOA ")) {
            writeln!(faults, "{query}: a negative response without the zone's SOA").unwrap();
        }
        if output.status != "REFUSED" && !output.flags.split(' ').any(|flag| flag == "aa") {
            writeln!(faults, "{query}: not authoritative").unwrap();
        }
        for record in &output.answer {
            if record.split(' ').nth(1) != Some("5") {
                writeln!(faults, "{query}: a TTL other than 5: {record}").unwrap();
            }
        }
    }
    faults
}

#[test]
fn responses_match_their_snapshots() {
    let files = Files::new(REGISTRATIONS);
    let server = server(&files, &[]);
    insta::assert_snapshot!("services", transcript(&server, "hello.svc"));
    insta::assert_snapshot!("namespaces", transcript(&server, "hello.prod.svc"));
    insta::assert_snapshot!("versions", transcript(&server, "v1.2.0.hello.svc"));
    insta::assert_snapshot!("instances", transcript(&server, "10-0-0-1.hello.svc"));
    insta::assert_snapshot!("selectors", transcript(&server, "gray._env.hello.svc"));
    insta::assert_snapshot!("rfc2782", transcript(&server, "_http._tcp.hello.svc SRV"));
    insta::assert_snapshot!("reverse", transcript(&server, "1.0.0.10.in-addr.arpa PTR"));
    insta::assert_snapshot!("zone", transcript(&server, "svc NS"));
}

/// Returns transcripts of one row of the table, from its first query on.
fn transcript(server: &Svcdns, first: &str) -> String {
    const FIRST_OF_ROWS: [&str; 9] = [
        "hello.svc",
        "hello.prod.svc",
        "v1.2.0.hello.svc",
        "10-0-0-1.hello.svc",
        "gray._env.hello.svc",
        "_http._tcp.hello.svc SRV",
        "1.0.0.10.in-addr.arpa PTR",
        "svc NS",
        "",
    ];
    let queries = FACTS.iter().map(|(query, _)| *query).skip_while(|query| *query != first);
    let row = queries
        .enumerate()
        .take_while(|(at, query)| *at == 0 || !FIRST_OF_ROWS.contains(query))
        .map(|(_, query)| query);
    let more: &[&str] = match first {
        "hello.svc" => &[
            "hello.svc ANY",
            "hello.svc +noedns",
            "hello.svc +edns=1 +noednsnegotiation",
            "hello.svc +dnssec",
            "hello.svc CH TXT",
        ],
        "svc NS" => &["svc SOA", "dns-version.svc TXT"],
        _ => &[],
    };
    let mut text = String::new();
    for query in row.chain(more.iter().copied()) {
        writeln!(text, "{}", DigOutput::of(server.address, query).text(query)).unwrap();
    }
    text
}

#[test]
fn all_zones_serve_the_same_names_but_srv_targets_are_in_the_first() {
    let files = Files::new(&[
        ("default/default/demo/latest/10.0.0.60:8000", GRPC),
        ("default/default/hello.svc/latest/10.0.0.1:80", HTTP),
        ("default/default/hello.svc.internal/latest/10.0.0.2:80", HTTP),
        ("default/default/hello/latest/10.0.0.3:80", HTTP),
        ("default/default/only.svc/latest/10.0.0.4:80", HTTP),
    ]);
    let server = server(&files, &["--zone", "svc.internal", "--zone", "svc"]);
    let data = |query: &str| DigOutput::of(server.address, query).data();
    // A name with the first zone's suffix wins over the second's, and both over the bare name.
    assert_eq!(data("hello.svc.internal"), ["10.0.0.2"]);
    assert_eq!(data("hello.svc"), ["10.0.0.2"]);
    assert_eq!(data("only.svc.internal SRV"), ["0 1 80 10-0-0-4.only.svc.internal."]);
    assert_eq!(data("only.svc SRV"), ["0 1 80 10-0-0-4.only.svc.internal."]);
    assert_eq!(
        data("4.0.0.10.in-addr.arpa PTR"),
        ["10-0-0-4.only.svc.internal.", "only.svc.internal."]
    );
}

#[test]
fn the_first_ptr_record_names_the_instance() {
    // Programs use the first PTR record; the service's name would not tell which instance it is.
    let files = Files::new(&[
        ("default/default/demo/latest/10.0.0.60:8000", GRPC),
        ("default/default/also/latest/10.0.0.60:8001", GRPC),
    ]);
    let server = server(&files, &[]);
    for _ in 0..10 {
        let text = dns::dig(server.address, &["+short", "-x", "10.0.0.60"]);
        let first = text.lines().next().unwrap_or_default();
        assert!(["10-0-0-60.also.svc.", "10-0-0-60.demo.svc."].contains(&first), "{text}");
    }
}

#[test]
fn short_names_use_the_configured_deployment_and_namespace() {
    let files = Files::new(&[
        ("default/default/demo/latest/10.0.0.60:8000", GRPC),
        ("eu/shop/demo/latest/10.0.0.60:8000", GRPC),
        ("default/default/hello.svc/latest/10.0.0.1:80", HTTP),
        ("eu/shop/hello.svc/latest/10.0.0.2:80", HTTP),
    ]);
    let server = server(&files, &["--deployment", "eu", "--namespace", "shop"]);
    let data = |query: &str| DigOutput::of(server.address, query).data();
    assert_eq!(data("hello.svc"), ["10.0.0.2"]);
    assert_eq!(data("hello.default.default.svc"), ["10.0.0.1"]);
    assert_eq!(
        data("hello.default.default.svc SRV"),
        ["0 1 80 10-0-0-1.hello.default.default.svc."]
    );
}

#[test]
fn responses_fit_their_transport() {
    let endpoints: Vec<String> = (1..=100).map(|last| format!("10.7.0.{last}:80")).collect();
    let key = format!("default/default/big/latest/{}", endpoints[..10].join(","));
    let mut keys = vec![("default/default/demo/latest/10.0.0.60:8000".to_owned(), GRPC)];
    keys.push((key, "{}"));
    keys.extend(
        endpoints[10..]
            .chunks(9)
            .map(|nine| (format!("default/default/big/latest/{}", nine.join(",")), "{}")),
    );
    let keys: Vec<(&str, &str)> = keys.iter().map(|(key, value)| (key.as_str(), *value)).collect();
    let files = Files::new(&keys);
    let server = server(&files, &[]);
    let truncated = |output: &DigOutput| output.flags.split(' ').any(|flag| flag == "tc");
    for (query, records) in [
        ("big.svc +noedns +ignore", 30),
        ("big.svc +bufsize=512 +ignore", 29),
        ("big.svc +bufsize=4096 +ignore", 74),
    ] {
        let output = DigOutput::of(server.address, query);
        assert_eq!((output.answer.len(), truncated(&output)), (records, true), "{query}");
    }
    for query in ["big.svc +tcp", "big.svc"] {
        let output = DigOutput::of(server.address, query);
        assert_eq!((output.answer.len(), truncated(&output)), (100, false), "{query}");
    }
    drop(server);
    for (flag, records) in [("fit", 30), ("1", 1), ("7", 7)] {
        let server = self::server(&files, &["--answers", flag]);
        let output = DigOutput::of(server.address, "big.svc +noedns +ignore");
        assert_eq!((output.answer.len(), truncated(&output)), (records, false), "answers = {flag}");
    }
}

/// The output of dig, parsed.
struct DigOutput {
    status: String,
    flags: String,
    edns: Vec<String>,
    question: String,
    answer: Vec<String>,
    authority: Vec<String>,
    additional: Vec<String>,
}

impl DigOutput {
    /// Runs dig with `NAME [TYPE] [+options]`.
    fn of(server: SocketAddr, query: &str) -> Self {
        let arguments: Vec<&str> =
            ["+nocookie", "+norecurse"].into_iter().chain(query.split(' ')).collect();
        let text = dns::dig(server, &arguments);
        let mut output = Self {
            status: String::from("no answer"),
            flags: String::new(),
            edns: Vec::new(),
            question: String::new(),
            answer: Vec::new(),
            authority: Vec::new(),
            additional: Vec::new(),
        };
        let mut section = "";
        for line in text.lines() {
            let one_space = line.split_whitespace().collect::<Vec<_>>().join(" ");
            if let Some((_, rest)) = line.split_once("status: ") {
                rest.split(',').next().unwrap().clone_into(&mut output.status);
            } else if let Some(rest) = line.strip_prefix(";; flags: ") {
                rest.split(';').next().unwrap().clone_into(&mut output.flags);
            } else if line.starts_with("; EDNS")
                || line.starts_with("; EDE")
                || line.starts_with("; OPT")
            {
                output.edns.push(line[2..].to_owned());
            } else if let Some(name) =
                line.strip_prefix(";; ").and_then(|line| line.strip_suffix(" SECTION:"))
            {
                section = name;
            } else if line.is_empty() || line.starts_with(";;") {
                section = if line.is_empty() { "" } else { section };
            } else {
                match section {
                    "QUESTION" => {
                        one_space.trim_start_matches(';').clone_into(&mut output.question);
                    }
                    "ANSWER" => output.answer.push(one_space),
                    "AUTHORITY" => output.authority.push(without_serial(&one_space)),
                    "ADDITIONAL" => output.additional.push(one_space),
                    _ => {}
                }
            }
        }
        for records in [&mut output.answer, &mut output.authority, &mut output.additional] {
            records.sort();
        }
        for record in &mut output.answer {
            *record = without_serial(record);
        }
        output
    }

    /// Returns the data of the answer records, sorted.
    fn data(&self) -> Vec<String> {
        let data = |record: &String| record.splitn(5, ' ').nth(4).unwrap_or_default().to_owned();
        let mut data: Vec<_> = self.answer.iter().map(data).collect();
        data.sort();
        data
    }

    /// Returns the transcript for a snapshot.
    fn text(&self, query: &str) -> String {
        let mut text = format!("$ dig {query}\n{} {}\n", self.status, self.flags);
        for line in &self.edns {
            writeln!(text, "  {line}").unwrap();
        }
        writeln!(text, "  question    {}", self.question).unwrap();
        for (section, records) in [
            ("answer", &self.answer),
            ("authority", &self.authority),
            ("additional", &self.additional),
        ] {
            for record in records {
                writeln!(text, "  {section:<11} {record}").unwrap();
            }
        }
        text
    }
}

/// Replaces the serial of a SOA, which counts changes, by `SERIAL`.
fn without_serial(record: &str) -> String {
    let mut fields: Vec<&str> = record.split(' ').collect();
    if fields.get(3) == Some(&"SOA") && fields.len() > 6 {
        fields[6] = "SERIAL";
    }
    fields.join(" ")
}
