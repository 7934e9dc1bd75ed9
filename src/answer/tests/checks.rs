//! Answers while checks of instances fail.

use super::*;
use crate::catalog::CheckRules;
use crate::service::{CheckTarget, CheckVerdict, NamePattern, Probe};

/// Lists keys with checks on, and lets the checks of these endpoints fail.
fn failing(settings: Settings, keys: &[(&str, &str)], endpoints: &[&str]) -> Harness {
    let mut catalog = catalog::Settings::new(settings.zones.clone(), 1);
    let (names, version_fallback) = (vec![NamePattern::new("*")], settings.version_fallback);
    catalog.checks = Some(CheckRules { names, version_fallback, ..CheckRules::default() });
    let now = Instant::now();
    let (publisher, answerer) = Publisher::new(catalog, settings, now);
    let mut harness = Harness { publisher, answerer, now };
    harness.list(keys);
    let verdict = |endpoint: &&str| {
        let address: std::net::SocketAddr = endpoint.parse().unwrap();
        let target = CheckTarget { address: address.ip(), port: address.port(), probe: Probe::Tcp };
        CheckVerdict { target, fails: true }
    };
    let verdicts = endpoints.iter().map(verdict).collect();
    harness.publisher.apply([Update::Checks(verdicts)], now);
    harness
}

const VERSIONS: [(&str, &str); 3] = [
    ("/service/default/default/hello.svc/v1/10.0.0.1:80", r#"{"env":"gray"}"#),
    ("/service/default/default/hello.svc/v2/10.0.0.2:80", r#"{"env":"blue"}"#),
    ("/service/default/default/hello.svc/v2/10.0.0.3:80", r#"{"env":"blue"}"#),
];

#[test]
fn failing_instances_are_left_out_of_the_names_that_have_others() {
    let test = failing(settings(), &VERSIONS, &["10.0.0.1:80", "10.0.0.2:80"]);
    for (name, expected) in [
        // The last instance of version v1 is not the last one of the service.
        ("hello.svc", "10.0.0.3"),
        ("v2.hello.svc", "10.0.0.3"),
        ("blue._env.hello.svc", "10.0.0.3"),
        // The last instance of a name stays.
        ("v1.hello.svc", "10.0.0.1"),
        ("v1._version.hello.svc", "10.0.0.1"),
        ("gray._env.hello.svc", "10.0.0.1"),
        ("10-0-0-1.hello.svc", "10.0.0.1"),
        ("10-0-0-2.hello.svc", "10.0.0.2"),
        ("10-0-0-2.v2.hello.svc", "10.0.0.2"),
        ("10-0-0-9.hello.svc", "NXDOMAIN"),
    ] {
        assert_eq!(test.a(name), expected, "{name}");
    }
    assert_eq!(test.short("hello.svc", rtype::SRV), "0 1 80 10-0-0-3.hello.svc.");
    assert_eq!(test.short("_80._tcp.hello.svc", rtype::SRV), "0 1 80 10-0-0-3.hello.svc.");
    // Checks do not change which services an address belongs to.
    let services = "10-0-0-1.hello.svc. | hello.svc.";
    assert_eq!(test.short("1.0.0.10.in-addr.arpa", rtype::PTR), services);
}

#[test]
fn neither_a_host_name_nor_the_other_family_replaces_the_last_address() {
    let keys = [
        ("/service/default/default/hello.svc/latest/10.0.0.1:80", r#"{"env":"gray"}"#),
        ("/service/default/default/hello.svc/latest/10.0.0.2:80", "{}"),
        ("/service/default/default/hello.svc/latest/[fd00::1]:80", r#"{"env":"gray"}"#),
        ("/service/default/default/hello.svc/latest/web.example:80", r#"{"env":"gray"}"#),
    ];
    let test = failing(settings(), &keys, &["10.0.0.1:80", "[fd00::1]:80"]);
    assert_eq!(test.a("hello.svc"), "10.0.0.2");
    assert_eq!(test.short("hello.svc", rtype::AAAA), "fd00::1");
    assert_eq!(test.a("gray._env.hello.svc"), "10.0.0.1");
    let test = failing(settings(), &keys, &["10.0.0.1:80", "10.0.0.2:80"]);
    assert_eq!(test.a("hello.svc"), "10.0.0.1 | 10.0.0.2");
}

#[test]
fn instances_are_served_if_all_of_a_name_fail() {
    let endpoints = ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"];
    let test = failing(settings(), &VERSIONS, &endpoints);
    assert_eq!(test.a("hello.svc"), "10.0.0.1 | 10.0.0.2 | 10.0.0.3");
    assert_eq!(test.a("v2.hello.svc"), "10.0.0.2 | 10.0.0.3");
}

#[test]
fn versions_have_their_own_instances_beside_the_latest_and_without_the_fallback() {
    let latest = ("/service/default/default/hello.svc/latest/10.0.0.9:80", "{}");
    let keys = [&VERSIONS[..], &[latest]].concat();
    // Another version does not replace the failing instances of the service's own name.
    let test = failing(settings(), &keys, &["10.0.0.9:80", "10.0.0.2:80"]);
    assert_eq!(
        (test.a("hello.svc"), test.a("v2.hello.svc")),
        ("10.0.0.9".into(), "10.0.0.3".into())
    );
    let strict = Settings { version_fallback: false, ..settings() };
    let test = failing(strict, &VERSIONS, &["10.0.0.1:80"]);
    assert_eq!((test.a("hello.svc"), test.a("v1.hello.svc")), ("NODATA".into(), "10.0.0.1".into()));
    let service = test.answerer.snapshot.load().service("hello").cloned().unwrap();
    assert_eq!(service.served().count(), 3);
}
