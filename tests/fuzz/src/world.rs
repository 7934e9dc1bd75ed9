//! Registry changes and queries in any order.
//!
//! After every change the fast path must agree with the full path, and at the end both must agree
//! with a new server that gets the same state in one list.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, Instant};

use svcdns::answer::{AliasTarget, Aliases, Answerer, Answers, Published, Publisher, Settings};
use svcdns::catalog::{self, CheckRules, Docker0, Merge};
use svcdns::name::{Name, Zones};
use svcdns::service::{
    Addresses, BridgeChange, BridgedName, Change, CheckChange, CheckTarget, CheckVerdict,
    HostChange, LeaseReply, ListKind, ListScope, NamePattern, Put, RegistryId, RegistrySet,
    Removal, Update, key_prefix,
};

use super::answers::{Kinds, answer, local_answer, without_serial};
use super::choices::Choices;
use super::names::name;
use super::query::TestQuery;
use super::registrations;

/// Bytes of one act.
///
/// The first act has the settings, each later one a change or a query.
pub const ACT: usize = 32;
/// An act is a change if its first byte is below this number.
const CHANGES_BELOW: u8 = 64;
/// Replaces [`CHANGES_BELOW`] while fewer than four keys are registered.
const FIRST_CHANGES_BELOW: u8 = 240;
/// The number of registries.
const REGISTRIES: u8 = 2;
/// The registry that sends per-service lists instead of single events.
const SERVICES: u8 = 1;
/// Limit for the last queries, which are repeated against a rebuilt server.
const MAX_REPEATED_QUERIES: usize = 24;

/// Fuzzes changes and queries; the input is acts of [`ACT`] bytes.
pub fn changes(input: &[u8]) {
    act_out(input, &mut Kinds::unmeasured());
}

/// Performs all acts, and counts the responses by kind.
pub fn act_out(input: &[u8], kinds: &mut Kinds) {
    let mut acts = input.chunks(ACT);
    let mut world = World::new(&mut Choices::new(acts.next().unwrap_or_default()));
    for act in acts {
        let mut choices = Choices::new(act);
        let changes_below =
            if world.registered.len() < 4 { FIRST_CHANGES_BELOW } else { CHANGES_BELOW };
        if choices.byte() < changes_below {
            world.change(&mut choices);
        } else {
            world.query(&mut choices, kinds);
        }
    }
    world.compare_with_rebuilt();
}

/// Returns the id of a registry by its number.
fn id(number: u8) -> RegistryId {
    RegistryId::new(number.into()).unwrap_or(RegistryId::FIRST)
}

/// A publisher and its answerer, with the state that the registries have reported.
struct World {
    catalog: catalog::Settings,
    settings: Settings,
    publisher: Publisher,
    answerer: Arc<Answerer>,
    now: Instant,
    /// Current keys of each registry.
    registered: Vec<(u8, Put)>,
    /// All keys so far, including removed ones: queries take their names from these keys.
    known: Vec<Put>,
    /// Updates for the next publication.
    pending: Vec<Update>,
    hosts: BTreeMap<Box<str>, Addresses>,
    /// The endpoints to check, and whether each fails.
    checked: BTreeMap<CheckTarget, bool>,
    /// Registries whose last list is incomplete.
    incomplete: [bool; REGISTRIES as usize],
    queries: Vec<TestQuery>,
}

impl World {
    fn new(choices: &mut Choices<'_>) -> Self {
        let (mut catalog, settings) = settings(choices);
        // Usually the registries start with a complete list.
        let start_with_list = !choices.one_in(8);
        let merge = choices.of(&[Merge::Union, Merge::First]);
        let fallback = choices.one_in(2);
        catalog.layers = merge.layers([false, fallback]);
        let now = Instant::now();
        let (publisher, answerer) = Publisher::new(catalog.clone(), settings.clone(), now);
        let mut world = Self {
            catalog,
            settings,
            publisher,
            answerer,
            now,
            registered: Vec::new(),
            known: Vec::new(),
            pending: Vec::new(),
            hosts: BTreeMap::new(),
            checked: BTreeMap::new(),
            incomplete: [true; 2],
            queries: Vec::new(),
        };
        if start_with_list {
            for registry in 0..SERVICES {
                world.list(registry, ListKind::Routine, &[], true);
            }
            world.list_services(ListKind::Routine, true);
        }
        world
    }

    fn change(&mut self, choices: &mut Choices<'_>) {
        let registry = u8::from(choices.one_in(8));
        match choices.below(32) {
            0..=12 => self.put(registry, registrations::put(choices)),
            13..=15 => {
                let (first, count) = (usize::from(choices.byte()), choices.below(64) + 1);
                for at in first..first + count {
                    self.put(registry, registrations::one_of_many(choices, at));
                }
            }
            16 | 17 => {
                if let Some((registry, put)) = self.pick(choices) {
                    self.put(registry, registrations::with_other_metadata(&put, choices));
                }
            }
            18..=23 => {
                if let Some((registry, put)) = self.pick(choices) {
                    let lease = put.lease != 0 && choices.one_in(2);
                    self.delete(registry, &put, lease);
                }
            }
            24 | 25 => {
                let kind =
                    choices.of(&[ListKind::Routine, ListKind::Reconnect, ListKind::Restored]);
                // If the byte is 128 or more, the registry has lost a third of its keys.
                let lost = choices.byte();
                let mut at = 0;
                self.registered.retain(|(other, _)| {
                    at += 1;
                    *other != registry || lost < 128 || at % 3 != usize::from(lost % 3)
                });
                let puts: Vec<_> = self
                    .registered
                    .iter()
                    .filter(|(other, _)| *other == registry)
                    .map(|(_, put)| put.clone())
                    .collect();
                let complete = !choices.one_in(4);
                if registry == SERVICES {
                    self.list_services(kind, complete);
                } else {
                    self.list(registry, kind, &puts, complete);
                }
            }
            26 => {
                let connected = choices.one_in(2);
                self.report(registry, Change::Connected(connected));
            }
            27 => {
                let gone =
                    (0..choices.below(4)).map(|lease| i64::try_from(lease).unwrap()).collect();
                let reply = LeaseReply { gone, ..LeaseReply::default() };
                self.report(registry, Change::LeasesChecked(reply));
            }
            28 => self.judge(choices),
            29 => self.now += Duration::from_millis(u64::from(choices.byte()) * 100),
            _ => self.resolve(choices),
        }
        if choices.one_in(3) {
            self.publish();
        }
    }

    fn put(&mut self, registry: u8, mut put: Put) {
        if registry == SERVICES {
            // The key begins with the name, however often it is put again.
            let rest = put.key.rsplit('/').next().unwrap_or_default();
            put.key = (key_prefix(service_name(&put)) + rest).into();
        }
        self.forget(registry, &put);
        self.registered.push((registry, put.clone()));
        self.known.push(put.clone());
        if registry == SERVICES {
            self.list_service(service_name(&put), ListKind::Routine, None);
        } else {
            self.report(registry, Change::Put(put));
        }
    }

    /// Removes a key explicitly, or because it has expired.
    fn delete(&mut self, registry: u8, put: &Put, expired: bool) {
        self.forget(registry, put);
        let removal = if expired { Removal::Unknown } else { Removal::Explicit };
        let delete = Change::Delete { key: put.key.clone(), revision: 0, removal };
        if registry == SERVICES {
            let expired = expired.then_some(delete);
            self.list_service(service_name(put), ListKind::Routine, expired);
        } else {
            self.report(registry, delete);
        }
    }

    /// Lists one service of [`SERVICES`], with a key whose check failed, if any.
    fn list_service(&mut self, name: &str, kind: ListKind, expired: Option<Change>) {
        let scope = ListScope::Service(name.into());
        let puts: Vec<_> =
            self.services().filter(|put| service_name(put) == name).cloned().collect();
        let changes = [Change::ListBegin { kind, scope }]
            .into_iter()
            .chain(puts.into_iter().map(Change::Put))
            .chain(expired)
            .chain([Change::ListEnd { revision: 0 }]);
        self.pending.push(Update::Registry(id(SERVICES), changes.collect()));
    }

    /// Lists the names of [`SERVICES`], and then each service or, incompletely, all but one.
    fn list_services(&mut self, kind: ListKind, complete: bool) {
        let names: BTreeSet<Box<str>> =
            self.services().map(|put| service_name(put).into()).collect();
        let change = Change::ServiceNames { kind, names: names.iter().cloned().collect() };
        self.report(SERVICES, change);
        for name in names.iter().skip(usize::from(!complete)) {
            self.list_service(name, kind, None);
        }
        self.incomplete[usize::from(SERVICES)] = !complete;
    }

    /// Returns the current keys of [`SERVICES`].
    fn services(&self) -> impl Iterator<Item = &Put> {
        self.registered.iter().filter(|(registry, _)| *registry == SERVICES).map(|(_, put)| put)
    }

    fn forget(&mut self, registry: u8, put: &Put) {
        self.registered.retain(|(other, known)| (*other, &known.key) != (registry, &put.key));
    }

    fn list(&mut self, registry: u8, kind: ListKind, puts: &[Put], complete: bool) {
        self.report(registry, Change::list_begin(kind));
        for put in puts {
            self.report(registry, Change::Put(put.clone()));
        }
        self.incomplete[usize::from(registry)] = !complete;
        if complete {
            self.report(registry, Change::ListEnd { revision: 0 });
        }
    }

    fn report(&mut self, registry: u8, change: Change) {
        self.pending.push(Update::Registry(id(registry), vec![change]));
    }

    fn pick(&self, choices: &mut Choices<'_>) -> Option<(u8, Put)> {
        self.registered.get(choices.below(256) % self.registered.len().max(1)).cloned()
    }

    fn publish(&mut self) {
        let published = self.publisher.apply(std::mem::take(&mut self.pending), self.now);
        self.follow(published);
    }

    fn follow(&mut self, published: Published) {
        self.publisher.apply([bridged(published.bridge)], self.now);
        for change in published.hosts {
            match change {
                HostChange::Wanted(host) => self.hosts.insert(host, Addresses::Pending),
                HostChange::Unwanted(host) => self.hosts.remove(&host),
            };
        }
        for change in published.checks {
            match change {
                CheckChange::Wanted(target) => self.checked.insert(target, false),
                CheckChange::Unwanted(target) => self.checked.remove(&target),
            };
        }
    }

    /// Resolves some host name, or reports a failed lookup.
    fn resolve(&mut self, choices: &mut Choices<'_>) {
        self.publish();
        let host = choices.of(&["web.example", "other.example", "nobody.example"]);
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let found = match choices.below(4) {
            0 => Addresses::Failed,
            1 => Addresses::Known([].into()),
            2 => Addresses::Known([address("10.0.0.1"), address("192.0.2.1")].into()),
            _ => Addresses::Known([address("192.0.2.7"), address("2001:db8::7")].into()),
        };
        if let Some(known) = self.hosts.get_mut(host) {
            known.clone_from(&found);
        }
        let published = self.publisher.apply([Update::Hosts(vec![(host.into(), found)])], self.now);
        self.follow(published);
    }

    /// Lets the checks of some endpoints fail or pass.
    fn judge(&mut self, choices: &mut Choices<'_>) {
        self.publish();
        let (first, fails) = (choices.below(4), !choices.one_in(4));
        let mut verdicts = Vec::new();
        for (target, failing) in self.checked.iter_mut().skip(first).step_by(choices.below(3) + 1) {
            *failing = fails;
            verdicts.push(CheckVerdict { target: *target, fails });
        }
        let published = self.publisher.apply([Update::Checks(verdicts)], self.now);
        self.follow(published);
    }

    fn query(&mut self, choices: &mut Choices<'_>, kinds: &mut Kinds) {
        if !self.pending.is_empty() {
            self.publish();
        }
        let name = name(choices, &self.settings, &self.known);
        let query = TestQuery::new(choices, &name);
        answer(&self.answerer, &query, kinds);
        local_answer(&self.answerer, &query);
        if self.queries.len() == MAX_REPEATED_QUERIES {
            self.queries.remove(0);
        }
        self.queries.push(query);
    }

    /// Repeats the last queries, and compares with a rebuilt server.
    ///
    /// The rebuilt server gets the current state in one list.
    ///
    /// Skipped if removals are held back or a list is incomplete: this server then knows more.
    fn compare_with_rebuilt(mut self) {
        self.publish();
        let status = self.answerer.registry_status();
        if status.held_keys > 0
            || !status.disconnected.is_empty()
            || !status.synced
            || self.incomplete.contains(&true)
        {
            return;
        }
        let (mut publisher, answerer) =
            Publisher::new(self.catalog.clone(), self.settings.clone(), self.now);
        for registry in 0..REGISTRIES {
            let puts = self
                .registered
                .iter()
                .filter(|(other, _)| *other == registry)
                .map(|(_, put)| Change::Put(put.clone()));
            let changes = [Change::list_begin(ListKind::Routine)]
                .into_iter()
                .chain(puts)
                .chain([Change::ListEnd { revision: 0 }]);
            let published =
                publisher.apply([Update::Registry(id(registry), changes.collect())], self.now);
            publisher.apply([bridged(published.bridge)], self.now);
        }
        let hosts = Update::Hosts(self.hosts.clone().into_iter().collect());
        let verdict = |(target, fails): (&CheckTarget, &bool)| CheckVerdict {
            target: *target,
            fails: *fails,
        };
        let verdicts = Update::Checks(self.checked.iter().map(verdict).collect());
        let published = publisher.apply([hosts, verdicts], self.now);
        publisher.apply([bridged(published.bridge)], self.now);
        let mut kinds = Kinds::unmeasured();
        for query in &self.queries {
            let [updated, rebuilt] = [&self.answerer, &answerer]
                .map(|answerer| without_serial(answer(answerer, query, &mut kinds)));
            assert!(
                updated == rebuilt,
                "updated: {updated:02x?}\nrebuilt: {rebuilt:02x?}\n{query:?}\n{:?}",
                self.registered
            );
            let [updated, rebuilt] = [&self.answerer, &answerer]
                .map(|answerer| without_serial(local_answer(answerer, query)));
            assert!(updated == rebuilt, "bridged: {query:?}\n{:?}", self.registered);
        }
    }
}

/// Answers for a bridge that gives every other name an address.
fn bridged(changes: Vec<BridgeChange>) -> Update {
    let named = |change: BridgeChange| {
        let sum = change
            .name()
            .bytes()
            .fold(0u16, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        let [high, low] = sum.to_be_bytes();
        let is_bridged = matches!(change, BridgeChange::Put(_)) && sum.is_multiple_of(2);
        let address = is_bridged.then_some(Ipv4Addr::new(127, 83, high, low));
        BridgedName { name: change.name().into(), address }
    };
    Update::Bridged(changes.into_iter().map(named).collect())
}

/// Returns the registered name of a key.
fn service_name(put: &Put) -> &str {
    put.content.as_ref().map_or("", |content| &content.id.name)
}

/// Returns up to three aliases, of services or of names outside the zones.
///
/// Their names are also those of services, versions, namespaces and instances.
fn aliases(choices: &mut Choices<'_>) -> Aliases {
    let name = |choices: &mut Choices<'_>| {
        choices.of(&[
            "alias",
            "a",
            "hello",
            "b",
            "a.b",
            "hello.prod",
            "v1.hello",
            "10-0-0-1",
            "x.y",
        ])
    };
    let alias = |choices: &mut Choices<'_>| {
        let target = match choices.below(4) {
            0 => AliasTarget::Outside(Box::new(Name::from_text("web.example").unwrap())),
            1 => AliasTarget::Base(name(choices).into()),
            _ => AliasTarget::Base("hello".into()),
        };
        (Box::from(name(choices)), target)
    };
    let written = (0..choices.below(4)).map(|_| alias(choices)).collect();
    // Some of these lead in a circle.
    Aliases::new(&written).unwrap_or_default()
}

/// Returns settings of all kinds, with separate and nested zones.
fn settings(choices: &mut Choices<'_>) -> (catalog::Settings, Settings) {
    let zones: &[&str] = [
        &["svc"][..],
        &["svc", "internal"],
        &["svc", "a.b.svc"],
        &["prod.svc", "svc"],
        &["internal.example", "svc"],
    ][choices.below(5)];
    let zones = Zones::new(&zones.iter().map(|&zone| zone.to_owned()).collect::<Vec<_>>()).unwrap();
    let mut catalog = catalog::Settings::new(zones.clone(), usize::from(REGISTRIES));
    let graces = [Duration::ZERO, Duration::ZERO, Duration::from_secs(12)];
    catalog.removal_graces.fill(choices.of(&graces));
    catalog.docker0 = choices.of(&[Docker0::Drop, Docker0::Drop, Docker0::Keep]);
    let two = NonZeroU16::MIN.saturating_add(1);
    let listen = ["127.0.0.1", "::1", "192.0.2.53"].map(|text| text.parse().unwrap());
    let settings = Settings {
        zones,
        deployment: choices.of(&["default", "default", "blue"]).into(),
        namespace: choices.of(&["default", "default", "prod", "a"]).into(),
        version_fallback: !choices.one_in(3),
        answers: choices.of(&[
            Answers::All,
            Answers::All,
            Answers::All,
            Answers::Fit,
            Answers::Count(NonZeroU16::MIN),
            Answers::Count(two),
        ]),
        ttl: choices.of(&[5, 0, 86_400]),
        negative_ttl: choices.of(&[1, 0, 300]),
        listen: listen[..choices.below(4)].to_vec(),
        forwarding: choices.one_in(3),
        aliases: aliases(choices),
        bridge: true,
        static_registries: RegistrySet::EMPTY,
        registry_names: vec!["etcd".parse().unwrap()],
    };
    let (names, version_fallback) = (vec![NamePattern::new("*")], settings.version_fallback);
    catalog.checks = Some(CheckRules { names, version_fallback, ..CheckRules::default() });
    (catalog, settings)
}
