//! The naming grammar: which names exist, and which records they have.

use super::*;

#[test]
fn every_form_of_a_name_is_resolved() {
    let harness = Harness::of(&[
        HELLO,
        (
            "/service/default/default/hello.svc/latest/10.0.0.2:8000",
            r#"{"gray":"x","env":"Gray.Two"}"#,
        ),
        ("/service/default/default/hello.svc/v1.2.0/10.0.0.3:9000", "{}"),
        ("/service/default/prod/hello.svc/latest/10.0.1.1:80", "{}"),
        ("/service/blue/prod/hello.svc/latest/10.0.2.1:80", "{}"),
        ("/service/default/prod/prodonly/latest/10.0.1.9:80", "{}"),
        ("/service/default/default/a.b.c/latest/10.0.3.1:80", "{}"),
    ]);
    for (name, answer) in [
        ("hello.svc", "10.0.0.1 | 10.0.0.2"),
        ("HELLO.SVC", "10.0.0.1 | 10.0.0.2"),
        ("hello.internal", "10.0.0.1 | 10.0.0.2"),
        ("hello.default.svc", "10.0.0.1 | 10.0.0.2"),
        ("hello.default.default.svc", "10.0.0.1 | 10.0.0.2"),
        ("hello.prod.svc", "10.0.1.1"),
        ("hello.prod.default.svc", "10.0.1.1"),
        ("hello.prod.blue.svc", "10.0.2.1"),
        ("hello.nowhere.svc", "NXDOMAIN"),
        ("v1.2.0.hello.svc", "10.0.0.3"),
        ("v1.2.0.hello.default.default.svc", "10.0.0.3"),
        ("2.0.hello.svc", "NODATA"),
        ("0.hello.svc", "NODATA"),
        ("1.0.hello.svc", "NXDOMAIN"),
        ("v9.hello.svc", "NXDOMAIN"),
        ("10-0-0-2.hello.svc", "10.0.0.2"),
        ("10-0-0-3.hello.svc", "10.0.0.3"),
        ("10-0-0-3.v1.2.0.hello.svc", "10.0.0.3"),
        ("10-0-0-1.v1.2.0.hello.svc", "NXDOMAIN"),
        ("10-0-1-1.hello.prod.svc", "10.0.1.1"),
        ("10-0-0-9.hello.svc", "NXDOMAIN"),
        ("gray.two._env.hello.svc", "10.0.0.2"),
        ("gray.two._env.x._gray.hello.svc", "10.0.0.2"),
        ("gray.two._env.y._gray.hello.svc", "NODATA"),
        ("true._insecure.hello.svc", "10.0.0.1"),
        ("latest._version.hello.svc", "10.0.0.1 | 10.0.0.2"),
        ("v1.2.0._version.hello.svc", "10.0.0.3"),
        ("v7._version.hello.svc", "NODATA"),
        ("prod._namespace.hello.svc", "10.0.1.1"),
        ("prod._namespace.blue._deployment.hello.svc", "10.0.2.1"),
        ("prod._namespace.hello.default.svc", "NODATA"),
        ("10-0-0-3._instance.hello.svc", "10.0.0.3"),
        ("8000._port.hello.svc", "10.0.0.1 | 10.0.0.2"),
        ("9000._port.v1.2.0.hello.svc", "10.0.0.3"),
        ("two._env.hello.svc", "NODATA"),
        ("_env.hello.svc", "NODATA"),
        ("_tcp.hello.svc", "NODATA"),
        ("x._env.unknown.svc", "NXDOMAIN"),
        ("_http._tcp.hello.svc", "NODATA"),
        ("_tcp.svc", "NODATA"),
        ("_hello._tcp.svc", "NODATA"),
        ("_zzz._tcp.svc", "NXDOMAIN"),
        ("prodonly.svc", "NODATA"),
        ("prod._namespace.prodonly.svc", "10.0.1.9"),
        ("prodonly.prod.svc", "10.0.1.9"),
        ("prod.svc", "NODATA"),
        ("default.svc", "NODATA"),
        ("default.default.svc", "NODATA"),
        ("blue.svc", "NODATA"),
        ("a.b.c.svc", "10.0.3.1"),
        ("b.c.svc", "NODATA"),
        ("c.svc", "NODATA"),
        ("x.b.c.svc", "NXDOMAIN"),
        ("unknown.svc", "NXDOMAIN"),
        ("x.hello.svc", "NXDOMAIN"),
        ("svc", "NODATA"),
        ("ns.svc", "127.0.0.1"),
        ("example.com", "REFUSED"),
        ("xsvc", "REFUSED"),
    ] {
        assert_eq!(harness.a(name), answer, "{name}");
    }
    assert_eq!(
        harness.short("hello.svc", rtype::SRV),
        "0 1 8000 10-0-0-1.hello.svc. | 0 1 8000 10-0-0-2.hello.svc."
    );
    assert_eq!(
        harness.short("hello.internal", rtype::SRV),
        "0 1 8000 10-0-0-1.hello.svc. | 0 1 8000 10-0-0-2.hello.svc."
    );
    assert_eq!(
        harness.short("hello.prod.blue.svc", rtype::SRV),
        "0 1 80 10-0-2-1.hello.prod.blue.svc."
    );
    assert_eq!(harness.short("_http._tcp.hello.svc", rtype::SRV), "0 1 8000 10-0-0-1.hello.svc.");
    assert_eq!(
        harness.short("_8000._tcp.hello.svc", rtype::SRV),
        "0 1 8000 10-0-0-1.hello.svc. | 0 1 8000 10-0-0-2.hello.svc."
    );
    assert_eq!(harness.short("_grpc._tcp.hello.svc", rtype::SRV), "NODATA");
    assert_eq!(
        harness.short("_hello._tcp.svc", rtype::SRV),
        harness.short("hello.svc", rtype::SRV)
    );
    assert_eq!(harness.short("_a.b.c._tcp.svc", rtype::SRV), "0 1 80 10-0-3-1.a.b.c.svc.");
    assert_eq!(harness.short("10-0-0-1.hello.svc", rtype::SRV), "0 1 8000 10-0-0-1.hello.svc.");
    assert_eq!(harness.short("v1.2.0.hello.svc", rtype::SRV), "0 1 9000 10-0-0-3.hello.svc.");
    assert_eq!(harness.short("hello.svc", rtype::AAAA), "NODATA");
    assert_eq!(harness.short("hello.svc", 15), "NODATA");
    assert_eq!(harness.short("svc", rtype::NS), "ns.svc.");
    assert_eq!(harness.short("internal", rtype::NS), "ns.internal.");
    assert!(harness.short("dns-version.svc", rtype::TXT).starts_with("svcdns "));
    assert_eq!(
        harness.short("1.0.0.10.in-addr.arpa", rtype::PTR),
        "10-0-0-1.hello.svc. | hello.svc."
    );
    for draw in 0..5 {
        let answer =
            harness.response_with("1.0.0.10.in-addr.arpa", rtype::PTR, None, Transport::Udp, draw);
        assert_eq!(answer.answers[0].data.to_string(), "10-0-0-1.hello.svc.");
    }
    assert_eq!(harness.short("1.0.0.10.in-addr.arpa", rtype::A), "NODATA");
    assert_eq!(harness.short("9.9.9.9.in-addr.arpa", rtype::PTR), "REFUSED");
    assert_eq!(harness.short("hello.svc", rtype::AXFR), "REFUSED");
}

#[test]
fn queries_without_a_version_get_all_versions_only_if_latest_is_missing() {
    let keys = [
        ("/service/default/default/ver/v1/10.0.0.1:80", "{}"),
        ("/service/default/default/ver/v2/10.0.0.2:80", "{}"),
    ];
    assert_eq!(Harness::of(&keys).a("ver.svc"), "10.0.0.1 | 10.0.0.2");
    let strict = Harness::with(Settings { version_fallback: false, ..settings() }, &keys);
    assert_eq!(
        (strict.a("ver.svc"), strict.a("v1.ver.svc")),
        ("NODATA".to_owned(), "10.0.0.1".to_owned())
    );
    let canary = Harness::of(&[
        HELLO,
        ("/service/default/default/hello.svc/latest-canary/10.0.0.7:80", "{}"),
    ]);
    assert_eq!(
        (canary.a("hello.svc"), canary.a("latest-canary.hello.svc")),
        ("10.0.0.1".to_owned(), "10.0.0.7".to_owned())
    );
}

/// Tests RFC 8020 for versions that look like instances.
#[test]
fn an_instance_like_version_is_nodata_above_its_instances() {
    let harness = Harness::of(&[
        ("/service/default/default/hello/10-0-0-2/10.0.0.9:80", "{}"),
        ("/service/default/default/hello/v1.10-0-0-3/10.0.0.9:80", "{}"),
    ]);
    for (name, short) in [
        ("10-0-0-9.10-0-0-2.hello.svc", "10.0.0.9"),
        ("10-0-0-2.hello.svc", "NODATA"),
        ("v1.10-0-0-3.hello.svc", "10.0.0.9"),
        ("10-0-0-3.hello.svc", "NODATA"),
        ("10-0-0-4.hello.svc", "NXDOMAIN"),
    ] {
        assert_eq!(harness.a(name), short, "{name}");
    }
}

#[test]
fn removed_services_are_nxdomain_and_those_without_endpoints_nodata() {
    let mut harness = Harness::of(&[HELLO]);
    harness.apply([Change::Delete {
        key: HELLO.0.into(),
        revision: 0,
        removal: Removal::Explicit,
    }]);
    assert_eq!(
        (harness.a("hello.svc"), harness.a("10-0-0-1.hello.svc")),
        ("NXDOMAIN".to_owned(), "NXDOMAIN".to_owned())
    );
    assert_eq!(harness.short("1.0.0.10.in-addr.arpa", rtype::PTR), "NXDOMAIN");
    let Change::Put(mut known) = put(HELLO.0, HTTP) else { unreachable!() };
    known.content.as_mut().unwrap().endpoints.clear();
    harness.apply([Change::Put(known)]);
    assert_eq!(
        (harness.a("hello.svc"), harness.a("10-0-0-1.hello.svc")),
        ("NODATA".to_owned(), "NXDOMAIN".to_owned())
    );
}

#[test]
fn two_ports_at_one_address_give_one_a_and_two_srv_records() {
    let harness = Harness::of(&[
        ("/service/default/default/p/latest/10.0.0.1:80", r#"{"weight":2}"#),
        ("/service/default/default/p/latest/10.0.0.1:81", r#"{"weight":3}"#),
        ("/services/default/default/p/latest/10.0.0.1:80", r#"{"weight":9}"#),
    ]);
    assert_eq!(harness.a("p.svc"), "10.0.0.1");
    assert_eq!(
        harness.short("p.svc", rtype::SRV),
        "0 2 80 10-0-0-1.p.svc. | 0 3 81 10-0-0-1.p.svc."
    );
    assert_eq!(harness.response("p.svc", rtype::SRV).additionals.len(), 1);
}

#[test]
fn a_longer_base_takes_precedence_until_it_is_removed() {
    let mut harness = Harness::of(&[
        ("/service/default/prod/hello/latest/10.0.1.1:80", "{}"),
        ("/service/default/default/hello.prod/latest/10.0.0.9:80", "{}"),
    ]);
    assert_eq!(harness.a("hello.prod.svc"), "10.0.0.9");
    // Among interpretations of the same kind, the longest registered base wins.
    assert_eq!(harness.a("hello.prod.default.svc"), "10.0.0.9");
    assert_eq!(harness.a("prod._namespace.hello.svc"), "10.0.1.1");
    let key = "/service/default/default/hello.prod/latest/10.0.0.9:80";
    harness.apply([Change::Delete { key: key.into(), revision: 0, removal: Removal::Explicit }]);
    assert_eq!(harness.a("hello.prod.svc"), "10.0.1.1");
}

#[test]
fn names_between_a_zone_and_a_nested_zone_exist() {
    let zones = Zones::new(&["svc".to_owned(), "a.b.svc".to_owned()]).unwrap();
    let harness = Harness::with(Settings { zones, ..settings() }, &[HELLO]);
    assert_eq!(
        (harness.a("b.svc"), harness.a("hello.a.b.svc")),
        ("NODATA".to_owned(), "10.0.0.1".to_owned())
    );
    assert_eq!(harness.a("c.svc"), "NXDOMAIN");
}

#[test]
fn a_namespace_with_a_dot_needs_the_namespace_selector() {
    let harness = Harness::of(&[("/service/default/x.y/hello/latest/10.0.0.1:80", "{}")]);
    for (name, answer) in [
        ("y.svc", "NXDOMAIN"),
        ("x.y.svc", "NXDOMAIN"),
        ("hello.x.y.svc", "NXDOMAIN"),
        ("hello.svc", "NODATA"),
    ] {
        assert_eq!(harness.a(name), answer, "{name}");
    }
    assert_eq!(harness.a("x.y._namespace.hello.svc"), "10.0.0.1");
    assert_eq!(harness.short("x.y._namespace.hello.svc", rtype::SRV), "NODATA");
}

#[test]
fn an_instance_like_label_is_a_version_only_with_the_version_selector() {
    let harness = Harness::of(&[
        ("/service/default/prod/hello/latest/10.0.0.1:80", "{}"),
        ("/service/default/default/hello.prod/10-0-0-1/10.0.0.7:80", "{}"),
    ]);
    assert_eq!(harness.a("10-0-0-1.hello.prod.svc"), "10.0.0.1");
    assert_eq!(harness.a("10-0-0-1._version.hello.prod.svc"), "10.0.0.7");
}
