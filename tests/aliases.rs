//! End-to-end tests of aliases: a server with a configuration file, a file registry, an upstream.
//!
//! `tests/transcripts.rs` asks every row of the naming table under an alias.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::process::Output;

use hickory_proto::op::{Message, ResponseCode};
use support::dns;
use support::files::Files;
use support::svcdns::{self, Svcdns};
use support::upstream::{Record, Upstream, rtype};
use tempfile::NamedTempFile;

const HELLO: &str = "default/default/hello.svc/latest/10.0.0.1:8000";

/// A running server with aliases.
struct Fixture {
    program: Svcdns,
    files: Files,
    _configuration: NamedTempFile,
}

impl Fixture {
    fn start(aliases: &str, keys: &[(&str, &str)], flags: &[&str]) -> Self {
        let files = Files::new(keys);
        files.put(HELLO, "{}");
        let configuration = configuration(aliases);
        let (url, path) = (files.url(), configuration.path().to_str().unwrap());
        let program = Svcdns::serve(&[&["--registry", &url, "--config", path], flags].concat());
        program.wait_for("hello.svc", &["10.0.0.1"]);
        Self { program, files, _configuration: configuration }
    }

    fn over(upstream: &Upstream, aliases: &str, flags: &[&str]) -> Self {
        Self::start(aliases, &[], &[&["--upstream", &upstream.flag()], flags].concat())
    }

    fn query(&self, name: &str, qtype: u16) -> Message {
        Message::from_vec(&dns::ask(self.program.address, name, qtype).unwrap()).unwrap()
    }

    /// Returns name, type and data of the answers, and the owner of the SOA record if any.
    fn answers(&self, name: &str, qtype: u16) -> (ResponseCode, String, Option<String>) {
        let message = self.query(name, qtype);
        let record = |record: &hickory_proto::rr::Record| {
            format!("{} {} {}", record.name, record.record_type(), record.data)
        };
        let answers: Vec<String> = message.answers.iter().map(record).collect();
        let soa = message.authorities.first().map(|record| record.name.to_string());
        (message.metadata.response_code, answers.join(", "), soa)
    }

    fn run(&self, arguments: &[&str]) -> String {
        stdout(&self.program.run(arguments))
    }
}

fn configuration(aliases: &str) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    fs::write(file.path(), format!("[alias]\n{aliases}\n")).unwrap();
    file
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn outcome(answers: &str) -> (ResponseCode, String, Option<String>) {
    (ResponseCode::NoError, answers.to_owned(), None)
}

#[test]
fn aliases_of_outside_names_are_followed_to_the_upstream() {
    let upstream = Upstream::start();
    upstream.put([
        Record::soa("example.test", 300, 30),
        Record::a("db.example.test", 300, "192.0.2.1"),
        Record::txt("db.example.test", 300, "text"),
        Record::cname("web.example.test", 300, "db.example.test"),
    ]);
    let aliases = "'db' = 'DB.example.test'\nweb = 'web.example.test.'\n\
                   lost = 'lost.example.test'\nhere = 'localhost.'\nchain = 'db'";
    let fixture = Fixture::over(&upstream, aliases, &[]);
    for round in ["from the upstream", "from the cache"] {
        let followed = "CNAME db.example.test., db.example.test. A 192.0.2.1";
        for (name, expected) in [
            ("db.svc", format!("db.svc. {followed}")),
            ("DB.Svc", format!("DB.Svc. {followed}")),
            ("chain.svc", format!("chain.svc. {followed}")),
            ("web.svc", format!("web.svc. CNAME web.example.test., web.example.test. {followed}")),
        ] {
            assert_eq!(fixture.answers(name, dns::A), outcome(&expected), "{round}");
        }
        // Negative responses have the SOA record of the target's zone (RFC 2308, RFC 6604).
        assert_eq!(
            fixture.answers("db.svc", dns::AAAA),
            (
                ResponseCode::NoError,
                "db.svc. CNAME db.example.test.".to_owned(),
                Some("example.test.".to_owned())
            ),
            "{round}"
        );
        assert_eq!(
            fixture.answers("lost.svc", dns::A),
            (
                ResponseCode::NXDomain,
                "lost.svc. CNAME lost.example.test.".to_owned(),
                Some("example.test.".to_owned())
            ),
            "{round}"
        );
        assert_eq!(
            fixture.answers("db.svc", dns::TXT).1,
            "db.svc. CNAME db.example.test., db.example.test. TXT text",
            "{round}"
        );
        // These ask for the alias itself.
        for qtype in [rtype::CNAME, 255] {
            let own = fixture.answers("db.svc", qtype);
            assert_eq!(own, outcome("db.svc. CNAME db.example.test."), "{round}");
        }
        // A special name is answered by svcdns itself.
        assert_eq!(
            fixture.answers("here.svc", dns::A).1,
            "here.svc. CNAME localhost., localhost. A 127.0.0.1",
            "{round}"
        );
    }
    let message = fixture.query("db.svc", dns::A);
    assert!(message.metadata.authoritative && message.metadata.recursion_available);
    let ttls: Vec<u32> = message.answers.iter().map(|record| record.ttl).collect();
    assert!(ttls[0] == 5 && (100..=300).contains(&ttls[1]), "{ttls:?}");
    let asked = upstream.names();
    assert!(!asked.iter().any(|name| name.ends_with("svc") || name == "localhost"), "{asked:?}");
    let tcp = dns::dig(fixture.program.address, &["+tcp", "+short", "db.svc"]);
    assert_eq!(tcp, "db.example.test.\n192.0.2.1\n");
    // Without recursion, the response ends where an upstream would be queried.
    let plain = dns::dig(fixture.program.address, &["+norecurse", "+short", "db.svc", "SRV"]);
    assert_eq!(plain, "db.example.test.\n");
}

#[test]
fn aliases_and_upstreams_lead_to_each_other() {
    let upstream = Upstream::start();
    upstream.put([
        Record::cname("api.example.test", 60, "www.svc"),
        Record::cname("round.example.test", 60, "db.svc"),
        Record::cname("loop.example.test", 60, "loop.svc"),
        Record::a("db.example.test", 60, "192.0.2.1"),
    ]);
    let aliases = "www = 'hello'\napi = 'api.example.test'\ndb = 'db.example.test'\n\
                   round = 'round.example.test'\nloop = 'loop.example.test'";
    let fixture = Fixture::over(&upstream, aliases, &[]);
    for _ in 0..2 {
        assert_eq!(
            fixture.answers("api.example.test", dns::A),
            outcome("api.example.test. CNAME www.svc., www.svc. A 10.0.0.1")
        );
        assert_eq!(
            fixture.answers("api.svc", dns::A),
            outcome(
                "api.svc. CNAME api.example.test., api.example.test. CNAME www.svc., \
                 www.svc. A 10.0.0.1"
            )
        );
        assert_eq!(
            fixture.answers("round.svc", dns::A),
            outcome(
                "round.svc. CNAME round.example.test., round.example.test. CNAME db.svc., \
                 db.svc. CNAME db.example.test., db.example.test. A 192.0.2.1"
            )
        );
        for name in ["loop.svc", "loop.example.test"] {
            let text = dns::dig(fixture.program.address, &[name]);
            assert!(
                text.contains("status: SERVFAIL") && text.contains("lead in a circle"),
                "{text}"
            );
        }
    }
}

#[test]
fn aliases_are_answered_with_only_the_cname_if_forwarding_is_off() {
    let fixture = Fixture::start("db = 'db.example.test'", &[], &[]);
    for qtype in [dns::A, dns::AAAA, dns::SRV, rtype::CNAME] {
        let message = fixture.query("db.svc", qtype);
        assert!(message.metadata.authoritative && !message.metadata.recursion_available);
        assert_eq!(
            fixture.answers("db.svc", qtype),
            outcome("db.svc. CNAME db.example.test."),
            "{qtype}"
        );
    }
    assert_eq!(fixture.answers("a.db.svc", dns::A).0, ResponseCode::NXDomain);
}

#[test]
fn an_alias_whose_upstream_fails_is_servfail() {
    let upstream = Upstream::start();
    let flag = upstream.flag();
    drop(upstream);
    let fixture =
        Fixture::start("db = 'db.example.test'", &[], &["--upstream", &flag, "--cache-size", "0B"]);
    let (code, answers, _) = fixture.answers("db.svc", dns::A);
    assert_eq!((code, &*answers), (ResponseCode::ServFail, ""));
    assert_eq!(fixture.answers("hello.svc", dns::A).1, "hello.svc. A 10.0.0.1");
}

#[test]
fn an_alias_follows_its_service() {
    let fixture = Fixture::start("www = 'hello'\ntwo = 'www'", &[], &[]);
    for name in ["www.svc", "two.svc"] {
        fixture.program.wait_for(name, &["10.0.0.1"]);
    }
    fixture.files.put("default/default/hello.svc/latest/10.0.0.2:8000", "{}");
    fixture.program.wait_for("two.svc", &["10.0.0.1", "10.0.0.2"]);
    fixture.files.delete(HELLO);
    fixture.files.delete("default/default/hello.svc/latest/10.0.0.2:8000");
    fixture.program.wait_for_code("hello.svc", "NXDOMAIN");
    let (code, answers, soa) = fixture.answers("www.svc", dns::A);
    assert_eq!((code, &*answers, soa.as_deref()), (ResponseCode::NoError, "", Some("svc.")));
    fixture.files.put(HELLO, "{}");
    fixture.program.wait_for("www.svc", &["10.0.0.1"]);
}

#[test]
fn commands_show_aliases() {
    let aliases = "www = 'hello'\nold = 'gone'\ndb = 'db.example.test'\nshop = 'web.svc'";
    let keys = [
        ("default/prod/www/latest/10.0.0.9:80", "{}"),
        ("default/default/db.example.test/latest/10.0.0.8:80", "{}"),
    ];
    let fixture = Fixture::start(aliases, &keys, &[]);
    let words = |text: &str| -> Vec<String> {
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    };
    let listed = words(&fixture.run(&["ls"]));
    for line in [
        "ALIAS TARGET NOTES",
        "db.svc. db.example.test. outside the served zones (CNAME); a service has this name, too: \
         write the target with its zone for the service",
        "old.svc. gone.svc. not registered",
        "shop.svc. web.svc. not registered",
        "www.svc. hello.svc. replaces the registered service www",
    ] {
        assert!(listed.iter().any(|listed| listed == line), "{line}: {listed:#?}");
    }
    assert!(!listed.iter().any(|line| line.contains("10.0.0.9")), "{listed:#?}");
    for name in ["www", "hello.svc"] {
        let text = fixture.run(&["ls", name]);
        assert!(text.contains("hello.svc.  10.0.0.1:8000") && text.contains("www.svc."), "{text}");
        let json: serde_json::Value =
            serde_json::from_str(&fixture.run(&["ls", name, "--json"])).unwrap();
        assert_eq!(json[0]["base"], "hello");
        assert_eq!(json[0]["aliases"], serde_json::json!(["www.svc."]));
    }
    let old = fixture.program.run(&["ls", "old"]);
    assert_eq!(old.status.code(), Some(2));
    let error = String::from_utf8_lossy(&old.stderr).into_owned();
    assert!(error.contains("old is an alias of gone, which is not registered"), "{error}");
    assert_eq!(fixture.program.run(&["ls", "db"]).status.code(), Some(0));
    let conflicts = words(&fixture.run(&["ls", "--conflicts"]));
    assert_eq!(conflicts[1..], ["www alias alias of hello www default/prod"]);

    let explained = fixture.run(&["explain", "v1.www"]);
    assert!(explained.contains("\n  www is an alias of service hello\n"), "{explained}");
    let explained = fixture.run(&["explain", "db"]);
    assert!(
        explained.contains("an alias (CNAME) of db.example.test., outside the served zones"),
        "{explained}"
    );
    assert_eq!(fixture.run(&["resolve", "www"]), "www.svc.  5  A  10.0.0.1\n");
    let status: serde_json::Value =
        serde_json::from_str(&fixture.run(&["status", "--json"])).unwrap();
    assert_eq!(status["services"], 2, "aliases are no services: {status}");
    assert_eq!(status["aliases"][0]["target"], "db.example.test.");
    assert_eq!(
        status["aliases"][3],
        serde_json::json!({
            "base": "www", "name": "www.svc.", "service": "hello", "target": "hello.svc.",
            "registered": true, "replaces": true,
        })
    );
}

#[test]
fn check_shows_aliases_and_bad_ones_keep_the_server_from_starting() {
    let check = |aliases: &str, command: &str| {
        let file = configuration(aliases);
        let output = svcdns::command()
            .args([command, "--config", file.path().to_str().unwrap()])
            .output()
            .unwrap();
        (output, file.path().display().to_string())
    };
    let (output, path) = check("'www.svc' = 'hello'\ndb = 'db.example.test.'", "check");
    let text = stdout(&output);
    for (line, expected) in
        [("alias.\"www.svc\"", "\"hello\""), ("alias.db", "\"db.example.test.\"")]
    {
        let line = text.lines().find(|found| found.starts_with(line)).unwrap();
        assert!(line.contains(expected) && line.contains(&path), "{line}");
    }
    for command in ["check", "serve"] {
        let (output, path) = check("a = 'hello'\nwww = 'www.svc'", command);
        let error = String::from_utf8(output.stderr).unwrap();
        let expected = format!("{path}:3:7: alias.www: the aliases lead in a circle: www, www");
        assert!(!output.status.success() && error.contains(&expected), "{command}: {error}");
    }
}
