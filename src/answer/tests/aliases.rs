//! Aliases of services and of names outside the zones.

use proptest::prelude::*;

use super::properties::{decoded, decoded_response, key, query_name};
use super::*;
use crate::answer::AliasError;
use crate::catalog::ServiceChange;

/// Returns aliases; a target with a final dot is outside the zones.
fn aliases(written: &[(&str, &str)]) -> Result<Aliases, AliasError> {
    let target = |text: &str| match text.strip_suffix('.') {
        Some(_) => AliasTarget::Outside(Box::new(Name::from_text(text).unwrap())),
        None => AliasTarget::Base(text.into()),
    };
    Aliases::new(&written.iter().map(|(base, text)| ((*base).into(), target(text))).collect())
}

fn with_aliases(written: &[(&str, &str)]) -> Settings {
    Settings { aliases: aliases(written).unwrap(), ..settings() }
}

fn harness(written: &[(&str, &str)], keys: &[(&str, &str)]) -> Harness {
    Harness::with(with_aliases(written), keys)
}

fn delete(key: &str) -> Change {
    Change::Delete { key: key.into(), revision: 0, removal: Removal::Explicit }
}

/// Queries the fast and the full path, which must agree.
fn outcome(harness: &Harness, name: &str, rtype: u16) -> (AnswerOutcome, Vec<u8>) {
    let bytes = query(name, rtype, Some(1232));
    let parsed = Query::parse(&bytes);
    let (mut fast, mut full) = (Vec::new(), Vec::new());
    let ahead = harness.answerer.look_ahead(iter::once(&*bytes));
    let respond = harness.answerer.respond(&parsed, (&ahead, 0), Transport::Udp, 0, &mut fast);
    let in_full = harness.answerer.respond_in_full(&parsed, Transport::Udp, 0, &mut full);
    assert_eq!((respond, &fast), (in_full, &full), "{name} {rtype}");
    (respond, fast)
}

#[test]
fn an_alias_follows_the_changes_of_its_service() {
    let mut harness = harness(&[("www", "hello"), ("a.b", "hello")], &[]);
    assert_eq!((harness.a("www.svc"), harness.a("a.b.svc")), ("NODATA".into(), "NODATA".into()));
    harness.apply([put(HELLO.0, HELLO.1)]);
    assert_eq!((harness.a("www.svc"), harness.a("a.b.internal")), {
        ("10.0.0.1".into(), "10.0.0.1".into())
    });
    assert_eq!(harness.short("www.svc", rtype::SRV), "0 1 8000 10-0-0-1.www.svc.");
    assert_eq!(harness.a("10-0-0-1.www.svc"), "10.0.0.1");
    let other = "/service/default/prod/hello/v1/10.0.0.2:80";
    harness.apply([put(other, "{}")]);
    assert_eq!((harness.a("www.prod.svc"), harness.a("v1.www.prod.svc")), {
        ("10.0.0.2".into(), "10.0.0.2".into())
    });
    assert_eq!(harness.a("prod.svc"), "NODATA");
    let published = harness.apply([delete(HELLO.0), delete(other)]);
    let changed: Vec<_> = published.changed.iter().map(ServiceChange::base).collect();
    assert_eq!(changed, ["hello"], "only registered services are reported");
    assert_eq!(
        (harness.a("www.svc"), harness.a("hello.svc")),
        ("NODATA".into(), "NXDOMAIN".into())
    );
    assert_eq!((harness.a("www.prod.svc"), harness.a("prod.svc")), {
        ("NXDOMAIN".into(), "NXDOMAIN".into())
    });
}

#[test]
fn an_alias_exists_while_its_service_is_not_registered() {
    let mut harness = Harness::empty(with_aliases(&[("www", "hello"), ("x.y", "hello")]));
    // A registry that is not read yet may know the service.
    assert_eq!(harness.a("www.svc"), "SERVFAIL");
    harness.list(&[]);
    for (name, answer) in [
        ("www.svc", "NODATA"),
        ("x.y.svc", "NODATA"),
        ("y.svc", "NODATA"),
        ("_www._tcp.svc", "NODATA"),
        ("_tcp.svc", "NODATA"),
        ("_http._tcp.www.svc", "NODATA"),
        ("gray._env.www.svc", "NODATA"),
        ("v1.www.svc", "NXDOMAIN"),
        ("10-0-0-1.www.svc", "NXDOMAIN"),
        ("www.prod.svc", "NXDOMAIN"),
        ("hello.svc", "NXDOMAIN"),
    ] {
        assert_eq!(harness.a(name), answer, "{name}");
        outcome(&harness, name, rtype::A);
    }
    assert_eq!(harness.answerer.snapshot().len(), 0);
}

#[test]
fn reverse_names_have_registered_names_only() {
    let harness = harness(&[("www", "hello")], &[HELLO]);
    assert_eq!(
        harness.short("1.0.0.10.in-addr.arpa", rtype::PTR),
        "10-0-0-1.hello.svc. | hello.svc."
    );
    assert_eq!(harness.answerer.snapshot().len(), 1);
}

#[test]
fn an_alias_replaces_a_registered_service() {
    const WWW: (&str, &str) = ("/service/default/prod/www/latest/10.0.9.9:80", "{}");
    let mut harness = harness(&[("www", "hello"), ("db", "db.example.")], &[HELLO, WWW]);
    assert_eq!((harness.a("www.svc"), harness.a("www.prod.svc")), {
        ("10.0.0.1".into(), "NXDOMAIN".into())
    });
    // PTR records never have names that do not resolve.
    assert_eq!(harness.short("9.9.0.10.in-addr.arpa", rtype::PTR), "NXDOMAIN");
    harness.apply([put("/service/default/default/db/latest/10.0.9.8:80", "{}")]);
    assert_eq!(harness.short("db.svc", rtype::A), "db.example.");
    let snapshot = harness.answerer.snapshot();
    let replaced: Vec<_> = snapshot.replaced().map(|service| service.base()).collect();
    assert_eq!((replaced, snapshot.len()), (vec!["db", "www"], 1));
    harness.apply([delete(WWW.0), delete("/service/default/default/db/latest/10.0.9.8:80")]);
    assert_eq!(harness.answerer.snapshot().replaced().count(), 0);
    assert_eq!(harness.a("www.svc"), "10.0.0.1");
}

#[test]
fn an_alias_owns_its_name_like_a_service_of_that_base() {
    let keys = [
        HELLO,
        ("/service/default/prod/hello.svc/latest/10.0.1.1:80", "{}"),
        ("/service/default/default/hello.svc/v1/10.0.2.1:80", "{}"),
        ("/service/default/default/other/latest/10.0.3.1:80", "{}"),
    ];
    let written = [("hello.prod", "other"), ("v1.hello", "db.example."), ("10-0-0-1", "other")];
    let harness = harness(&written, &keys);
    assert_eq!(harness.a("hello.prod.svc"), "10.0.3.1");
    assert_eq!(harness.a("hello.prod.default.svc"), "10.0.3.1");
    assert_eq!(harness.a("prod._namespace.hello.svc"), "10.0.1.1");
    assert_eq!(harness.a("v1.hello.svc"), "db.example.");
    assert_eq!(harness.a("v1._version.hello.svc"), "10.0.2.1");
    assert_eq!(harness.a("10-0-0-1.svc"), "10.0.3.1");
}

#[test]
fn aliases_of_aliases_are_followed() {
    let written = [("a", "b"), ("b", "hello"), ("c", "d"), ("d", "db.example.")];
    let harness = harness(&written, &[HELLO]);
    assert_eq!((harness.a("a.svc"), harness.a("b.svc")), ("10.0.0.1".into(), "10.0.0.1".into()));
    assert_eq!(harness.short("c.svc", rtype::A), "db.example.");
    assert_eq!(harness.short("a.svc", rtype::SRV), "0 1 8000 10-0-0-1.a.svc.");
    // The registered service of an alias's name is not the alias's target.
    assert_eq!(
        Harness::with(with_aliases(&[("a", "hello"), ("hello", "nothing")]), &[HELLO]).a("a.svc"),
        "NODATA"
    );
}

#[test]
fn loops_and_long_chains_are_errors() {
    let message = |written: &[(&str, &str)]| aliases(written).unwrap_err().to_string();
    assert_eq!(message(&[("a", "a")]), "the aliases lead in a circle: a, a");
    assert_eq!(
        message(&[("a", "b"), ("b", "c"), ("c", "b")]),
        "the aliases lead in a circle: a, b, c, b"
    );
    let names: Vec<String> = (0..10).map(|n| format!("n{n}")).collect();
    let chain: Vec<_> = names.windows(2).map(|two| (&*two[0], &*two[1])).collect();
    assert!(aliases(&chain[1..]).is_ok());
    let error = aliases(&chain).unwrap_err();
    assert!(matches!(error, AliasError::TooLong(_)), "{error}");
    assert_eq!(&*error.bases()[0], "n0");
}

#[test]
fn aliases_of_outside_names_are_cname_records() {
    let harness = harness(&[("db", "DB.example."), ("x.y", "web.example.")], &[HELLO]);
    for rtype in [rtype::A, rtype::AAAA, rtype::SRV, rtype::TXT, rtype::CNAME, rtype::ANY, 15, 65] {
        for name in ["db.svc", "DB.Internal"] {
            let (outcome, response) = outcome(&harness, name, rtype);
            assert_eq!(outcome, AnswerOutcome::Answered(ResponseSource::Local));
            let message = Message::from_vec(&response).unwrap();
            let [record] = &message.answers[..] else { panic!("{message}") };
            assert_eq!((short(&message).as_str(), record.ttl), ("db.example.", 5));
            assert_eq!(u16::from(record.record_type()), rtype::CNAME);
            assert!(message.metadata.authoritative && message.authorities.is_empty());
        }
    }
    for (name, answer) in [
        ("x.y.svc", "web.example."),
        ("y.svc", "NODATA"),
        ("a.db.svc", "NXDOMAIN"),
        ("db.prod.svc", "NXDOMAIN"),
        ("10-0-0-1.db.svc", "NXDOMAIN"),
        ("gray._env.db.svc", "NXDOMAIN"),
        ("_db._tcp.svc", "NXDOMAIN"),
        ("_http._tcp.db.svc", "NXDOMAIN"),
        ("db.example", "REFUSED"),
    ] {
        assert_eq!(harness.a(name), answer, "{name}");
        outcome(&harness, name, rtype::A);
    }
    // The configuration is known before any registry.
    let unread = Harness::empty(with_aliases(&[("db", "db.example.")]));
    assert_eq!((unread.a("db.svc"), unread.a("hello.svc")), {
        ("db.example.".into(), "SERVFAIL".into())
    });
}

#[test]
fn aliases_of_outside_names_are_left_to_the_forwarder() {
    let settings = Settings { forwarding: true, ..with_aliases(&[("db", "db.example.")]) };
    let harness = Harness::with(settings, &[HELLO]);
    assert_eq!(outcome(&harness, "db.svc", rtype::A), (AnswerOutcome::Alias, Vec::new()));
    for rtype in [rtype::CNAME, rtype::ANY] {
        let outcome = outcome(&harness, "db.svc", rtype).0;
        assert_eq!(outcome, AnswerOutcome::Answered(ResponseSource::Local));
    }
    let alias = |name: &str| {
        let (bytes, mut out) = (query(name, rtype::A, None), Vec::new());
        let crate::wire::Parsed::Query(query) = Query::parse(&bytes) else { panic!("no query") };
        harness.answerer.write_alias(&query, &mut out).then_some(out)
    };
    assert_eq!(short(&Message::from_vec(&alias("db.svc").unwrap()).unwrap()), "db.example.");
    for name in ["hello.svc", "svc", "a.db.svc", "db.example", "db"] {
        assert_eq!(alias(name), None, "{name}");
    }
}

#[test]
fn the_alias_of_a_name_at_the_limit_of_dns_fits_every_chain() {
    let label = "a".repeat(63);
    let longest = [&*label, &label, &label, &"b".repeat(61)].join(".");
    let base = [&*label, &label, &label, &"c".repeat(52)].join(".");
    let settings =
        Settings { forwarding: true, ..with_aliases(&[(&base, &format!("{longest}."))]) };
    let harness = Harness::with(settings, &[]);
    let bytes = query(&format!("{base}.internal"), rtype::A, None);
    let crate::wire::Parsed::Query(query) = Query::parse(&bytes) else { panic!("no query") };
    let mut out = Vec::new();
    assert!(harness.answerer.write_alias(&query, &mut out));
    assert!(out.len() > 512);
    assert_eq!(Message::from_vec(&out).unwrap().answers.len(), 1);
}

/// Returns a harness in which `v1.www.prod` belongs to a service, not to an alias.
fn harness_of_namespaces() -> Harness {
    harness(&[("www.prod", "hello")], &[HELLO, ("/service/default/prod/www/v1/10.0.4.1:80", "{}")])
}

#[test]
fn explanations_name_the_target() {
    let harness = harness(&[("www", "hello"), ("old", "gone"), ("db", "db.example.")], &[HELLO]);
    let explain = |name: &str| {
        harness.answerer.explain(&Name::from_text(name).unwrap(), rtype::A, Some(1232), 0)
    };
    let www = explain("www.svc");
    assert_eq!(www.alias.as_deref(), Some("www is an alias of service hello"));
    assert!(www.precompiled);
    assert_eq!(www.instances[0].key, HELLO.0);
    let instance = explain("10-0-0-1.www.svc");
    assert_eq!(instance.alias, www.alias);
    assert_eq!(explain("old.svc").alias.as_deref(), {
        Some("old is an alias of service gone, which is not registered")
    });
    let db = explain("db.svc");
    assert_eq!(db.alias.as_deref(), {
        Some("an alias (CNAME) of db.example., outside the served zones")
    });
    assert!(db.precompiled && db.answers[0].ends_with("CNAME db.example."), "{db:?}");
    assert_eq!(explain("hello.svc").alias, None);
    let mixed = harness_of_namespaces().answerer.explain(
        &Name::from_text("v1.www.prod.svc").unwrap(),
        rtype::A,
        Some(1232),
        0,
    );
    assert_eq!((mixed.alias, mixed.answers.len()), (None, 1), "another service has the answer");
    // A suggestion may be an alias.
    assert_eq!(explain("wwww.svc").suggestion.as_deref(), Some("www"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A name with an existing name below it is never NXDOMAIN (RFC 8020).
    #[test]
    fn names_above_existing_names_exist_with_aliases(
        keys in prop::collection::vec(key(), 0..8),
        written in prop::collection::vec(
            (
                prop::sample::select(vec!["b", "a.b", "v1.hello", "hello.prod", "prod", "2.0"]),
                prop::sample::select(vec!["hello", "a", "b.a", "web.example."]),
            ),
            1..4,
        ),
        name in query_name(),
    ) {
        let Ok(aliases) = aliases(&written) else { return Ok(()) };
        let keys: Vec<_> = keys.iter().map(|(key, value)| (&**key, &**value)).collect();
        let harness = Harness::with(Settings { aliases, ..settings() }, &keys);
        let mut name = name.as_str();
        let mut exists = false;
        while let Some((_, above)) = name.split_once('.') {
            let here = harness.a(name);
            prop_assert!(!(exists && here == "NXDOMAIN"), "{} is above an existing name", name);
            exists |= here != "NXDOMAIN";
            name = above;
        }
    }

    /// An alias answers as if the service were registered under its base, too.
    #[test]
    fn an_alias_is_like_a_second_registration(
        keys in prop::collection::btree_map(
            key().prop_map(|(key, _)| key), Just("{}"), 1..12,
        ),
        names in prop::collection::vec(
            (
                query_name().prop_map(|name| name.replace("hello", "www")),
                prop::sample::select(vec![1u16, 28, 33, 16, 255, 6, 15]),
                any::<u64>(),
            ),
            30,
        ),
    ) {
        let base = |key: &str| {
            let name = key.split('/').nth(4).unwrap();
            name.trim_end_matches(".svc").trim_end_matches(".internal").to_owned()
        };
        let mut twice: BTreeMap<String, &str> = BTreeMap::new();
        for (key, value) in &keys {
            twice.insert(key.clone(), *value);
            if base(key) == "hello" {
                // The version `hello` stays.
                twice.insert(key.replacen("/hello", "/www", 1), *value);
            }
        }
        let hello = put(HELLO.0, "{}");
        let www = put(&HELLO.0.replace("hello", "www"), "{}");
        let list = |keys: &mut dyn Iterator<Item = (&String, &&str)>| -> Vec<Change> {
            keys.map(|(key, value)| put(key, value)).collect()
        };
        let mut alias = harness(&[("www", "hello")], &[]);
        alias.apply(list(&mut keys.iter()));
        alias.apply([hello.clone()]);
        let mut copy = Harness::of(&[]);
        copy.apply(list(&mut twice.iter()));
        copy.apply([hello, www]);
        for (name, rtype, draw) in &names {
            let seen = decoded_response(&alias, name, *rtype, *draw);
            prop_assert_eq!(&seen, &decoded_response(&copy, name, *rtype, *draw), "{}", name);
            let (bytes, mut full) = (query(name, *rtype, Some(1232)), Vec::new());
            let query = Query::parse(&bytes);
            alias.answerer.respond_in_full(&query, Transport::Udp, *draw, &mut full);
            prop_assert_eq!(seen, decoded(&full), "{}", name);
        }
    }
}
