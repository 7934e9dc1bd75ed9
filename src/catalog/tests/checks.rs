//! Tests of the endpoints to check, and of the instances that failed checks leave out.

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::service::{CheckChange, CheckTarget, CheckVerdict, NamePattern, Probe};

fn rules(names: &[&str], protocols: &[&str], http: bool) -> CheckRules {
    let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    let names = names.iter().map(|name| NamePattern::new(name)).collect();
    CheckRules { names, protocols: owned(protocols), http, version_fallback: true }
}

fn checked(rules: CheckRules) -> TestCatalog {
    TestCatalog::with(|settings| settings.checks = Some(rules), 1)
}

fn target(endpoint: &str, probe: Probe) -> CheckTarget {
    let address: std::net::SocketAddr = endpoint.parse().unwrap();
    CheckTarget { address: address.ip(), port: address.port(), probe }
}

fn tcp(endpoint: &str) -> CheckTarget {
    target(endpoint, Probe::Tcp)
}

impl TestCatalog {
    fn put_with_protocol(&mut self, text: &str, protocol: &str) {
        let metadata = [("protocol".into(), protocol.into())];
        let mut registration = registration(text);
        registration.metadata = Arc::new(Metadata::new(metadata.into()));
        let content = Ok(registration);
        self.apply(0, Change::Put(Put { key: text.into(), revision: 0, lease: 0, content }));
    }

    fn judge(&mut self, target: CheckTarget, fails: bool) -> Settled {
        let verdicts = vec![CheckVerdict { target, fails }];
        self.catalog.apply(Update::Checks(verdicts), self.now);
        self.settle()
    }

    fn check_changes(&mut self) -> Vec<CheckChange> {
        self.catalog.settle(self.now).checks
    }

    /// Returns the endpoints of the served instances.
    fn endpoints(&self, base: &str) -> Vec<String> {
        let service = self.catalog.service(base).unwrap();
        service.served().map(|instance| instance.endpoint.to_string()).collect()
    }
}

/// Returns the key of an instance of `hello` in this version.
fn hello(version: &str, endpoint: &str) -> String {
    format!("/service/d/n/hello.svc/{version}/{endpoint}")
}

#[test]
fn an_instance_that_fails_is_left_out_while_others_of_its_group_pass() {
    let mut test = checked(rules(&["*"], &[], false));
    for endpoint in ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"] {
        test.put(&hello("latest", endpoint), 0, 0);
    }
    test.put(&hello("v1", "10.0.0.4:80"), 0, 0);
    test.settle();
    assert_eq!(test.judge(tcp("10.0.0.1:80"), true).changed, ["hello".into()]);
    assert_eq!(test.endpoints("hello"), ["10.0.0.2:80", "10.0.0.3:80", "10.0.0.4:80"]);
    assert_eq!(test.catalog.stats().left_out, 1);
    test.judge(tcp("10.0.0.2:80"), true);
    assert_eq!(test.endpoints("hello"), ["10.0.0.3:80", "10.0.0.4:80"]);
    // The last one of each group stays, and with it all that fail.
    test.judge(tcp("10.0.0.3:80"), true);
    assert_eq!(test.served("hello"), 4);
    test.judge(tcp("10.0.0.4:80"), true);
    assert_eq!(test.served("hello"), 4);
    assert_eq!(test.catalog.stats().left_out, 0);
    test.judge(tcp("10.0.0.2:80"), false);
    assert_eq!(test.endpoints("hello"), ["10.0.0.2:80", "10.0.0.4:80"]);
    // A new instance passes.
    test.put(&hello("v1", "10.0.0.5:80"), 0, 0);
    test.settle();
    assert_eq!(test.endpoints("hello"), ["10.0.0.2:80", "10.0.0.5:80"]);
}

#[test]
fn without_a_latest_version_all_versions_share_a_name() {
    let mut test = checked(rules(&["*"], &[], false));
    for (version, endpoint) in [("v1", "10.0.0.1:80"), ("v2", "10.0.0.2:80")] {
        test.put(&hello(version, endpoint), 0, 0);
    }
    test.put("/service/d/other/hello.svc/v1/10.0.0.3:80", 0, 0);
    test.settle();
    test.judge(tcp("10.0.0.3:80"), true);
    assert_eq!(test.served("hello"), 3, "the last one of its namespace");
    test.judge(tcp("10.0.0.1:80"), true);
    assert_eq!(test.endpoints("hello"), ["10.0.0.2:80", "10.0.0.3:80"]);
    test.put(&hello("latest", "10.0.0.4:80"), 0, 0);
    test.settle();
    assert_eq!(test.served("hello"), 4, "each version has a name of its own");
    let rules = CheckRules { version_fallback: false, ..rules(&["*"], &[], false) };
    let mut test = checked(rules);
    for (version, endpoint) in [("v1", "10.0.0.1:80"), ("v2", "10.0.0.2:80")] {
        test.put(&hello(version, endpoint), 0, 0);
    }
    test.settle();
    test.judge(tcp("10.0.0.1:80"), true);
    assert_eq!(test.served("hello"), 2);
}

#[test]
fn the_next_registry_does_not_replace_instances_that_fail() {
    let layers = Merge::First.layers([false, false]);
    let set = |settings: &mut Settings| {
        settings.layers = layers;
        settings.checks = Some(rules(&["*"], &[], false));
    };
    let mut test = TestCatalog::with(set, 2);
    test.put(&hello("latest", "10.0.0.1:80"), 0, 0);
    test.put(&hello("latest", "10.0.0.2:80"), 0, 0);
    let next = hello("latest", "10.0.0.3:80");
    test.apply(1, Change::Put(put(&next, 0, 0)));
    // What is not served is not checked.
    let wanted = [tcp("10.0.0.1:80"), tcp("10.0.0.2:80")].map(CheckChange::Wanted);
    assert_eq!(test.check_changes(), wanted);
    for endpoint in ["10.0.0.1:80", "10.0.0.2:80"] {
        test.judge(tcp(endpoint), true);
    }
    assert_eq!(test.endpoints("hello"), ["10.0.0.1:80", "10.0.0.2:80"]);
    // The first registry decides: once it has removed them, the next one takes over.
    for endpoint in ["10.0.0.1:80", "10.0.0.2:80"] {
        test.delete(&hello("latest", endpoint), 0, Removal::Explicit);
    }
    assert!(test.check_changes().contains(&CheckChange::Wanted(tcp("10.0.0.3:80"))));
    assert_eq!(test.endpoints("hello"), ["10.0.0.3:80"]);
}

#[test]
fn a_verdict_that_changes_nothing_publishes_nothing() {
    let mut test = checked(rules(&["*"], &[], false));
    test.put(&hello("latest", "10.0.0.1:80"), 0, 0);
    test.put(&hello("latest", "10.0.0.2:80"), 0, 0);
    test.settle();
    test.judge(tcp("10.0.0.1:80"), true);
    assert_eq!(test.judge(tcp("10.0.0.1:80"), true), Settled::default());
    assert_eq!(test.judge(tcp("10.0.0.9:80"), true), Settled::default());
    assert_eq!(test.judge(tcp("10.0.0.2:80"), false), Settled::default());
}

#[test]
fn services_share_the_check_of_an_endpoint() {
    let mut test = checked(rules(&["*"], &[], false));
    let key = |name: &str, endpoint: &str| format!("/service/d/n/{name}/latest/{endpoint}");
    for name in ["a", "b", "c"] {
        test.put(&key(name, "10.0.0.1:80"), 0, 0);
        test.put(&key(name, "10.0.0.2:80"), 0, 0);
    }
    let wanted = [tcp("10.0.0.1:80"), tcp("10.0.0.2:80")].map(CheckChange::Wanted);
    assert_eq!(test.check_changes(), wanted);
    assert_eq!(test.judge(tcp("10.0.0.1:80"), true).changed, ["a".into(), "b".into(), "c".into()]);
    for name in ["a", "b"] {
        test.delete(&key(name, "10.0.0.1:80"), 0, Removal::Explicit);
        assert_eq!(test.check_changes(), []);
    }
    assert_eq!(test.endpoints("c"), ["10.0.0.2:80"]);
    test.delete(&key("c", "10.0.0.1:80"), 0, Removal::Explicit);
    assert_eq!(test.check_changes(), [CheckChange::Unwanted(tcp("10.0.0.1:80"))]);
    // A registration that returns is new, whatever the last verdict was.
    test.put(&key("c", "10.0.0.1:80"), 0, 0);
    assert_eq!(test.check_changes(), [CheckChange::Wanted(tcp("10.0.0.1:80"))]);
    assert_eq!(test.served("c"), 2);
}

#[test]
fn an_endpoint_that_moves_to_another_service_keeps_its_verdict() {
    let mut test = checked(rules(&["*"], &[], false));
    let key = |name: &str, endpoint: &str| format!("/service/d/n/{name}/latest/{endpoint}");
    for (name, endpoint) in [("a", "10.0.0.1:80"), ("a", "10.0.0.2:80"), ("b", "10.0.0.3:80")] {
        test.put(&key(name, endpoint), 0, 0);
    }
    test.check_changes();
    test.judge(tcp("10.0.0.1:80"), true);
    test.delete(&key("a", "10.0.0.1:80"), 0, Removal::Explicit);
    test.put(&key("b", "10.0.0.1:80"), 0, 0);
    assert_eq!(test.check_changes(), []);
    assert_eq!(test.endpoints("b"), ["10.0.0.3:80"]);
    test.judge(tcp("10.0.0.1:80"), false);
    assert_eq!(test.endpoints("b"), ["10.0.0.1:80", "10.0.0.3:80"]);
}

#[test]
fn rules_choose_services_and_instances() {
    let mut test = checked(rules(&["hello*", "db"], &["HTTP", "grpc"], true));
    let key = |name: &str, n: u8| format!("/service/d/n/{name}/latest/10.0.0.{n}:80");
    for (name, n, protocol) in [
        ("hello.svc", 1, "http"),
        ("hello-2", 2, "grpc"),
        ("say-hello", 3, "http"),
        ("hello.svc", 4, "https"),
        ("db", 5, "Http"),
    ] {
        test.put_with_protocol(&key(name, n), protocol);
    }
    test.put(&key("hello.svc", 6), 0, 0);
    let wanted: BTreeSet<_> = test
        .check_changes()
        .into_iter()
        .map(|change| match change {
            CheckChange::Wanted(target) => target,
            CheckChange::Unwanted(_) => panic!("{change:?}"),
        })
        .collect();
    let expected = BTreeSet::from([
        target("10.0.0.1:80", Probe::Http),
        tcp("10.0.0.2:80"),
        target("10.0.0.5:80", Probe::Http),
    ]);
    assert_eq!(wanted, expected);
    // An instance that is not checked passes, so the other one may be left out.
    test.judge(target("10.0.0.1:80", Probe::Http), true);
    assert_eq!(test.endpoints("hello"), ["10.0.0.4:80", "10.0.0.6:80"]);
}

#[test]
fn instances_without_a_protocol_are_checked_with_http_if_there_is_a_path() {
    let mut test = checked(rules(&["*"], &[], true));
    test.put(&hello("latest", "10.0.0.1:80"), 0, 0);
    test.put_with_protocol(&hello("latest", "10.0.0.2:80"), "https");
    test.put_with_protocol(&hello("latest", "10.0.0.3:80"), "grpc");
    let http = ["10.0.0.1:80", "10.0.0.2:80"].map(|endpoint| target(endpoint, Probe::Http));
    let wanted = [http[0], http[1], tcp("10.0.0.3:80")];
    assert_eq!(test.check_changes(), wanted.map(CheckChange::Wanted));
}

#[test]
fn host_names_and_excluded_instances_are_not_checked() {
    let mut test = checked(rules(&["*"], &[], false));
    test.put(&hello("latest", "web.example:80,localhost:81,127.0.0.1:82,fd00::5:83"), 0, 0);
    // Another spelling wins.
    test.put("/service/d/n/hello/latest/10.0.0.9:80", 0, 0);
    // Docker's bridge, with the same port at another address.
    test.put("/service/d/n/docker/latest/172.17.0.1:80,10.0.0.1:80", 0, 0);
    let mut wanted = test.check_changes();
    wanted.sort_by_key(|change| format!("{change:?}"));
    let mut expected = ["127.0.0.1:82", "[fd00::5]:83", "10.0.0.1:80"]
        .map(|endpoint| CheckChange::Wanted(tcp(endpoint)));
    expected.sort_by_key(|change| format!("{change:?}"));
    assert_eq!(wanted, expected);
    // Neither a host name nor an address of the other family replaces the last address.
    test.judge(tcp("127.0.0.1:82"), true);
    let all = ["127.0.0.1:82", "[fd00::5]:83", "localhost:81", "web.example:80"];
    assert_eq!(test.endpoints("hello"), all);
}

#[test]
fn verdicts_have_no_effect_without_checks() {
    let mut test = TestCatalog::new();
    test.put(&hello("latest", "10.0.0.1:80"), 0, 0);
    test.put(&hello("latest", "10.0.0.2:80"), 0, 0);
    assert_eq!(test.check_changes(), []);
    assert_eq!(test.judge(tcp("10.0.0.1:80"), true), Settled::default());
    assert_eq!(test.served("hello"), 2);
}

/// A step of the property test.
#[derive(Clone, Debug)]
enum CheckStep {
    Put(usize),
    Delete(usize),
    Judge(Index, bool),
    Settle,
}

fn check_step() -> impl Strategy<Value = CheckStep> {
    prop_oneof![
        3 => (0..24_usize).prop_map(CheckStep::Put),
        2 => (0..24_usize).prop_map(CheckStep::Delete),
        3 => (any::<Index>(), any::<bool>()).prop_map(|(at, fails)| CheckStep::Judge(at, fails)),
        3 => Just(CheckStep::Settle),
    ]
}

/// Returns 24 keys of three services in two versions, with shared endpoints.
fn check_keys() -> Vec<String> {
    let mut keys = Vec::new();
    for name in ["hello.svc", "hello", "other"] {
        for version in ["latest", "v1"] {
            let several = "10.0.0.2:80,10.0.0.3:80,fd00::1:80";
            for endpoints in ["10.0.0.1:80", several, "10.0.0.3:80", "web.test:1"] {
                keys.push(format!("/service/d/n/{name}/{version}/{endpoints}"));
            }
        }
    }
    keys
}

proptest! {
    #[test]
    fn targets_and_left_out_instances_follow_from_the_services(
        steps in prop::collection::vec(check_step(), 1..80),
    ) {
        let (keys, mut test) = (check_keys(), checked(rules(&["*"], &[], false)));
        let endpoints =
            ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80", "10.0.0.4:80", "[fd00::1]:80"].map(tcp);
        let (mut wanted, mut failing) = (BTreeSet::new(), BTreeSet::new());
        for step in steps {
            match step {
                CheckStep::Put(key) => test.put(&keys[key], 0, 0),
                CheckStep::Delete(key) => test.delete(&keys[key], 0, Removal::Explicit),
                CheckStep::Judge(at, fails) => {
                    let target = *at.get(&endpoints);
                    let verdicts = vec![CheckVerdict { target, fails }];
                    test.catalog.apply(Update::Checks(verdicts), test.now);
                    // As the checker does, which knows no other targets.
                    if fails && wanted.contains(&target) {
                        failing.insert(target);
                    } else {
                        failing.remove(&target);
                    }
                }
                CheckStep::Settle => {}
            }
            for change in test.check_changes() {
                let changed = match change {
                    CheckChange::Wanted(target) => wanted.insert(target),
                    CheckChange::Unwanted(target) => {
                        failing.remove(&target);
                        wanted.remove(&target)
                    }
                };
                prop_assert!(changed, "{change:?}");
            }
            let (mut targets, mut left_out) = (BTreeSet::new(), 0);
            for service in test.catalog.services() {
                let considered: Vec<_> = service
                    .instances()
                    .filter(|i| matches!(i.excluded, None | Some(ExclusionReason::CheckFailed)))
                    .map(|i| (i.key.group().version.clone(), i.excluded, i.endpoint))
                    .collect();
                let target = |endpoint: &Endpoint| Some(CheckTarget {
                    address: endpoint.host.address()?,
                    port: endpoint.port,
                    probe: Probe::Tcp,
                });
                let fails = |endpoint: &Endpoint| {
                    target(endpoint).is_some_and(|target| failing.contains(&target))
                };
                // Without version `latest`, all versions share the name of the service.
                let share = considered.iter().all(|(version, ..)| &**version != "latest");
                for (version, excluded, endpoint) in &considered {
                    targets.extend(target(endpoint));
                    // An address of the same family replaces a failing one, a host name does not.
                    let family = |endpoint: &Endpoint| {
                        endpoint.host.address().map(|address| address.is_ipv4())
                    };
                    let mut others = considered.iter().filter(|(other, _, other_endpoint)| {
                        (share || other == version) && family(other_endpoint) == family(endpoint)
                    });
                    let others_pass = others.any(|(.., endpoint)| !fails(endpoint));
                    prop_assert_eq!(excluded.is_some(), fails(endpoint) && others_pass);
                    left_out += usize::from(excluded.is_some());
                }
            }
            prop_assert_eq!(&targets, &wanted);
            prop_assert_eq!(test.catalog.stats().left_out, left_out);
        }
    }
}
