//! A publisher whose configuration changes.

use proptest::prelude::*;

use super::properties::{decoded, decoded_response, key, query_name};
use super::*;
use crate::catalog::{CheckRules, KeptRegistry, Merge};
use crate::service::{BridgeChange, BridgedName, CheckTarget, CheckVerdict, NamePattern, Probe};

/// A configuration as far as a publisher sees it.
#[derive(Clone, Debug)]
struct TestConfig {
    /// The registries, each by the number of its keys.
    registries: Vec<usize>,
    zones: &'static [&'static str],
    scope: (&'static str, &'static str),
    version_fallback: bool,
    merge: Merge,
    aliases: &'static [(&'static str, &'static str)],
}

impl TestConfig {
    fn any() -> impl Strategy<Value = Self> {
        let registries: &[&[usize]] = &[&[0], &[1], &[0, 1], &[1, 0], &[2, 1, 0]];
        let zones: &[&[&str]] = &[&["svc", "internal"], &["internal"], &["a.svc", "internal"]];
        let aliases: &[&[(&str, &str)]] = &[&[], &[("hello", "a"), ("b.a", "hello.prod")]];
        (
            prop::sample::select(registries),
            prop::sample::select(zones),
            prop::sample::select(vec![("default", "default"), ("blue", "prod")]),
            any::<bool>(),
            prop::sample::select(vec![Merge::Union, Merge::First]),
            prop::sample::select(aliases),
        )
            .prop_map(|(registries, zones, scope, version_fallback, merge, aliases)| {
                let registries = registries.to_vec();
                Self { registries, zones, scope, version_fallback, merge, aliases }
            })
    }

    fn settings(&self) -> (catalog::Settings, Settings) {
        let zones: Vec<String> = self.zones.iter().map(|&zone| zone.to_owned()).collect();
        let zones = Zones::new(&zones).unwrap();
        let registries = self.registries.len();
        let catalog = catalog::Settings {
            layers: self.merge.layers((0..registries).map(|_| false)),
            ..catalog::Settings::new(zones.clone(), registries)
        };
        let aliases = self
            .aliases
            .iter()
            .map(|(base, target)| (Box::from(*base), AliasTarget::Base(Box::from(*target))));
        let name = |number: &usize| format!("r{number}").parse().unwrap();
        let settings = Settings {
            deployment: self.scope.0.into(),
            namespace: self.scope.1.into(),
            version_fallback: self.version_fallback,
            aliases: Aliases::new(&aliases.collect()).unwrap(),
            registry_names: self.registries.iter().map(name).collect(),
            ..Settings::new(zones)
        };
        (catalog, settings)
    }

    fn start(&self) -> Harness {
        let now = Instant::now();
        let (catalog, settings) = self.settings();
        let (mut publisher, answerer) = Publisher::new(catalog, settings, now);
        publisher.services_per_step = 2;
        Harness { publisher, answerer, now }
    }

    /// Lists the keys of every registry.
    fn list(&self, harness: &mut Harness, keys: &[Vec<(String, String)>], kind: ListKind) {
        for (number, registry) in self.registries.iter().zip(RegistryId::first(16)) {
            let mut changes = vec![Change::Connected(true), Change::list_begin(kind)];
            changes.extend(keys[*number].iter().map(|(key, value)| put(key, value)));
            changes.push(Change::ListEnd { revision: 0 });
            harness.publisher.apply([Update::Registry(registry, changes)], harness.now);
        }
    }

    fn kept_from(&self, before: &Self) -> Vec<KeptRegistry> {
        let find = |registries: &[usize], number: usize| {
            let index = registries.iter().position(|other| *other == number)?;
            RegistryId::new(index)
        };
        let kept = self.registries.iter().filter_map(|number| {
            let before = find(&before.registries, *number)?;
            Some(KeptRegistry { before, after: find(&self.registries, *number)? })
        });
        kept.collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// With other limits, it depends on the order of keys which of them are rejected.
    #[test]
    fn a_reconfigured_publisher_answers_like_one_that_starts_so(
        configs in prop::collection::vec(TestConfig::any(), 2..4),
        keys in prop::collection::vec(prop::collection::vec(key(), 0..8), 3),
        names in prop::collection::vec(
            (query_name(), prop::sample::select(vec![1u16, 28, 33, 16, 255, 6]), any::<u64>()),
            30,
        ),
    ) {
        let mut harness = configs[0].start();
        configs[0].list(&mut harness, &keys, ListKind::Routine);
        for [before, after] in configs.array_windows() {
            let (catalog, settings) = after.settings();
            let kept = after.kept_from(before);
            let generation = harness.answerer.snapshot().generation();
            let _ = harness.publisher.rebuild(catalog, settings, &kept, harness.now).publish();
            prop_assert!(harness.answerer.snapshot().generation() > generation);
            after.list(&mut harness, &keys, ListKind::Reconnect);
            let mut fresh = after.start();
            after.list(&mut fresh, &keys, ListKind::Routine);
            for (name, rtype, draw) in &names {
                let bytes = query(name, *rtype, Some(1232));
                let in_full = |harness: &Harness| {
                    let (mut full, parsed) = (Vec::new(), Query::parse(&bytes));
                    harness.answerer.respond_in_full(&parsed, Transport::Udp, *draw, &mut full);
                    decoded(&full)
                };
                let full = in_full(&fresh);
                prop_assert_eq!(&in_full(&harness), &full, "{}", name);
                let fast = decoded_response(&harness, name, *rtype, *draw);
                prop_assert_eq!(&fast, &full, "{}", name);
            }
        }
    }
}

const PROD: (&str, &str) = ("/service/default/prod/hello.svc/latest/10.0.0.3:8000", HTTP);

/// Rebuilds the only registry of a harness with other settings.
fn rebuild(harness: &mut Harness, catalog: catalog::Settings, settings: Settings) -> Published {
    let kept = [KeptRegistry { before: RegistryId::FIRST, after: RegistryId::FIRST }];
    harness.publisher.rebuild(catalog, settings, &kept, harness.now).publish()
}

#[test]
fn other_ttls_need_no_other_table() {
    let mut harness = Harness::of(&[HELLO]);
    let before = harness.answerer.snapshot();
    let longer = Settings { ttl: 77, negative_ttl: 78, answers: Answers::Fit, ..settings() };
    assert!(harness.publisher.has_table_for(&longer));
    harness.publisher.apply_settings(longer);
    assert_eq!(harness.response("hello.svc", rtype::A).answers[0].ttl, 77);
    assert_eq!(harness.response("other.svc", rtype::A).authorities[0].ttl, 78);
    assert!(harness.answerer.snapshot().generation() > before.generation());
    for other in [
        Settings { deployment: "blue".into(), ..settings() },
        Settings { version_fallback: false, ..settings() },
        Settings { zones: Zones::new(&["svc".to_owned()]).unwrap(), ..settings() },
        Settings { registry_names: vec!["r".parse().unwrap()], ..settings() },
    ] {
        assert!(!harness.publisher.has_table_for(&other), "{other:?}");
    }
}

#[test]
fn the_former_table_answers_until_the_new_one_is_compiled() {
    let keys: Vec<_> = (1..10)
        .map(|n| (format!("/service/default/default/s{n}/latest/10.0.0.{n}:80"), "{}".to_owned()))
        .collect();
    let mut harness = Harness::of_strings(keys.iter().map(|(key, value)| (key, value)));
    let zones = Zones::new(&["other".to_owned()]).unwrap();
    let catalog = catalog::Settings::new(zones.clone(), 1);
    let kept = [KeptRegistry { before: RegistryId::FIRST, after: RegistryId::FIRST }];
    let answerer = Arc::clone(&harness.answerer);
    let a = |name: &str| {
        let bytes = respond(&answerer, &query(name, rtype::A, None), Transport::Udp, 0).unwrap();
        short(&Message::from_vec(&bytes).unwrap())
    };
    let settings = Settings::new(zones);
    let mut publication = harness.publisher.rebuild(catalog, settings, &kept, harness.now);
    let mut steps = 1;
    while publication.compile_next() {
        steps += 1;
        assert_eq!((a("s9.svc"), a("s9.other")), ("10.0.0.9".into(), "REFUSED".into()));
    }
    assert!(steps > 1, "compiled in one step");
    let _ = publication.publish();
    assert_eq!((a("s9.svc"), a("s9.other")), ("REFUSED".into(), "10.0.0.9".into()));
}

#[test]
fn a_removed_registry_takes_its_names_with_it_and_a_new_one_is_unread() {
    let mut harness = Harness::of(&[HELLO]);
    let second = RegistryId::new(1).unwrap();
    let kept = [KeptRegistry { before: RegistryId::FIRST, after: second }];
    let catalog = catalog::Settings::new(settings().zones, 2);
    let _ = harness.publisher.rebuild(catalog.clone(), settings(), &kept, harness.now).publish();
    assert_eq!(harness.a("hello.svc"), "10.0.0.1");
    let status = harness.answerer.registry_status();
    assert!(status.synced && status.unread.contains(RegistryId::FIRST), "{status:?}");
    let response = harness.response("other.svc", rtype::A);
    assert_eq!(short(&response), "NXDOMAIN");
    assert_eq!(extended_error(&response), Some(19), "a stale NXDOMAIN");

    let kept = [KeptRegistry { before: RegistryId::FIRST, after: RegistryId::FIRST }];
    let _ = harness.publisher.rebuild(catalog, settings(), &kept, harness.now).publish();
    assert!(harness.answerer.snapshot().is_empty());
}

#[test]
fn held_keys_that_are_still_missing_are_held_again() {
    let mut harness = Harness::of(&[HELLO, PROD]);
    harness.apply([Change::list_begin(ListKind::Reconnect), Change::ListEnd { revision: 0 }]);
    assert_eq!(harness.answerer.registry_status().held_keys, 2);
    let catalog = || catalog::Settings::new(settings().zones, 1);
    rebuild(&mut harness, catalog(), settings());
    assert_eq!(harness.a("hello.svc"), "10.0.0.1");
    harness.apply([
        Change::list_begin(ListKind::Reconnect),
        Change::ListEnd { revision: 0 },
        Change::Connected(true),
    ]);
    assert_eq!(harness.answerer.registry_status().held_keys, 2);
    assert_eq!(harness.a("hello.svc"), "10.0.0.1");
    let stats = harness.answerer.stats();
    assert_eq!(*stats.registries[0].holds.get(catalog::HoldCause::Reconnect), 2);
}

#[test]
fn checks_keep_their_verdicts_and_host_names_their_addresses() {
    let rules = CheckRules { names: vec![NamePattern::new("*")], ..CheckRules::default() };
    let catalog =
        catalog::Settings { checks: Some(rules), ..catalog::Settings::new(settings().zones, 1) };
    let now = Instant::now();
    let settings = || Settings { forwarding: true, ..settings() };
    let (publisher, answerer) = Publisher::new(catalog.clone(), settings(), now);
    let mut harness = Harness { publisher, answerer, now };
    harness.list(&[
        ("/service/default/default/hello/latest/10.0.0.1:80", "{}"),
        ("/service/default/default/hello/latest/10.0.0.2:80", "{}"),
        ("/service/default/default/web/latest/web.example:80", "{}"),
    ]);
    let address = "10.0.0.1".parse().unwrap();
    let target = CheckTarget { address, port: 80, probe: Probe::Tcp };
    let verdicts = vec![CheckVerdict { target, fails: true }];
    harness.publisher.apply([Update::Checks(verdicts)], now);
    harness.resolve(vec![("web.example".into(), Addresses::Known([address].into()))]);
    let blue = Settings { namespace: "prod".into(), ..settings() };
    for other in [blue, settings()] {
        let published = rebuild(&mut harness, catalog.clone(), other);
        assert_eq!((published.checks, published.hosts), (vec![], vec![]), "nothing to do anew");
        assert_eq!(harness.answerer.stats().left_out, 1);
    }
    assert_eq!((harness.a("hello.svc"), harness.a("web.svc")), {
        ("10.0.0.2".into(), "10.0.0.1".into())
    });
    let published = harness.publisher.rebuild(catalog, settings(), &[], now).publish();
    assert_eq!((published.checks.len(), published.hosts.len()), (2, 1), "nothing is wanted");
    assert_eq!(harness.answerer.stats().left_out, 0);
}

#[test]
fn bridged_names_keep_their_addresses() {
    let settings = || Settings { bridge: true, ..settings() };
    let mut harness = Harness::empty(settings());
    harness.list(&[HELLO, PROD]);
    let named = |name: &str, last| BridgedName {
        name: name.into(),
        address: Some(Ipv4Addr::new(127, 83, 0, last)),
    };
    let names = vec![named("hello", 1), named("hello.prod", 2)];
    harness.publisher.apply([Update::Bridged(names)], harness.now);
    let catalog = || catalog::Settings::new(settings().zones, 1);
    let published = rebuild(&mut harness, catalog(), Settings { ttl: 9, ..settings() });
    let is_removed = |published: &Published, name: &str| {
        published.bridge.contains(&BridgeChange::Removed(name.into()))
    };
    assert!(!is_removed(&published, "hello") && !is_removed(&published, "hello.prod"));
    let local = |name: &str| harness.answerer.bridged_address(&Name::from_text(name).unwrap());
    assert_eq!(local("hello.svc"), Some([127, 83, 0, 1].into()));
    assert_eq!(local("hello.prod.svc"), Some([127, 83, 0, 2].into()));
    // In another default namespace, the shortest names are others.
    let prod = Settings { namespace: "prod".into(), ..settings() };
    let published = rebuild(&mut harness, catalog(), prod);
    assert!(is_removed(&published, "hello.prod"), "{:?}", published.bridge);
    assert!(!is_removed(&published, "hello"), "{:?}", published.bridge);
}
