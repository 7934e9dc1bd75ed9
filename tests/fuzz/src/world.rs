//! Changes and questions in any order: after every change the ready-made records say what the naming grammar says, and both
//! what a server says that was told everything at once.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, Instant};

use svcdns::answer::{Answerer, Answers, Published, Publisher, Settings};
use svcdns::catalog::{self, Docker0};
use svcdns::name::Zones;
use svcdns::service::{Addresses, Change, HostChange, ListKind, Put, RegistryId, Removal, Update};

use super::answers::{Kinds, answer, without_serial};
use super::choices::Choices;
use super::names::name;
use super::question::Question;
use super::registrations;

/// Octets of one act: the settings come first, then changes and questions.
pub const ACT: usize = 32;
/// Below it, the first octet of an act makes it a change.
const CHANGE: u8 = 64;
/// The same while hardly anything is registered.
const FIRST_CHANGE: u8 = 240;
/// Registries there are.
const REGISTRIES: u8 = 2;
/// Questions asked of a server that was told everything at once.
const ASKED_AGAIN: usize = 24;

/// The target.
pub fn changes(octets: &[u8]) {
    act_out(octets, &mut Kinds::unmeasured());
}

/// Acts all of it out, and counts what came of the questions.
pub fn act_out(octets: &[u8], kinds: &mut Kinds) {
    let mut acts = octets.chunks(ACT);
    let mut world = World::new(&mut Choices::new(acts.next().unwrap_or_default()));
    for act in acts {
        let mut choices = Choices::new(act);
        if choices.octet() < if world.held.len() < 4 { FIRST_CHANGE } else { CHANGE } {
            world.change(&mut choices);
        } else {
            world.ask(&mut choices, kinds);
        }
    }
    world.compare_with_rebuilt();
}

/// The number of the registry at this place.
fn id(place: u8) -> RegistryId {
    RegistryId::new(place.into()).unwrap_or(RegistryId::FIRST)
}

/// A server's data, and beside it what it was told.
struct World {
    catalog: catalog::Settings,
    settings: Settings,
    publisher: Publisher,
    answerer: Arc<Answerer>,
    now: Instant,
    /// What the registries hold.
    held: Vec<(u8, Put)>,
    /// The same, for the names that are asked for: what went stays.
    known: Vec<Put>,
    /// Changes that are yet to be told.
    pending: Vec<Update>,
    hosts: BTreeMap<Box<str>, Addresses>,
    /// Registries whose list is broken off.
    broken: [bool; REGISTRIES as usize],
    questions: Vec<Question>,
}

impl World {
    fn new(choices: &mut Choices<'_>) -> Self {
        let (catalog, settings) = settings(choices);
        let now = Instant::now();
        let (publisher, answerer) =
            Publisher::new(catalog.clone(), settings.clone(), usize::from(REGISTRIES), now);
        let mut world = Self {
            catalog,
            settings,
            publisher,
            answerer,
            now,
            held: Vec::new(),
            known: Vec::new(),
            pending: Vec::new(),
            hosts: BTreeMap::new(),
            broken: [false; 2],
            questions: Vec::new(),
        };
        // Mostly the registries have been read.
        if !choices.one_in(8) {
            for registry in 0..REGISTRIES {
                world.list(registry, ListKind::Routine, &[], true);
            }
        }
        world
    }

    fn change(&mut self, choices: &mut Choices<'_>) {
        let registry = u8::from(choices.one_in(8));
        match choices.below(32) {
            0..=12 => self.put(registry, registrations::put(choices)),
            13..=15 => {
                let (first, count) = (usize::from(choices.octet()), choices.below(64) + 1);
                for at in first..first + count {
                    self.put(registry, registrations::one(choices, at));
                }
            }
            16 | 17 => {
                if let Some((registry, put)) = self.pick(choices) {
                    self.put(registry, registrations::again(&put, choices));
                }
            }
            18..=23 => {
                if let Some((registry, put)) = self.pick(choices) {
                    let lease = put.lease != 0 && choices.one_in(2);
                    let removal = if lease { Removal::Lease(put.lease) } else { Removal::Explicit };
                    self.held.retain(|(held, other)| (*held, &other.key) != (registry, &put.key));
                    self.tell(registry, Change::Delete { key: put.key, revision: 0, removal });
                }
            }
            24 | 25 => {
                let kind =
                    choices.of(&[ListKind::Routine, ListKind::Reconnect, ListKind::Restored]);
                let lost = choices.octet();
                let mut at = 0;
                self.held.retain(|(held, _)| {
                    at += 1;
                    *held != registry || lost < 128 || at % 3 != usize::from(lost % 3)
                });
                let puts: Vec<_> = self
                    .held
                    .iter()
                    .filter(|(held, _)| *held == registry)
                    .map(|(_, put)| put.clone())
                    .collect();
                let whole = !choices.one_in(4);
                self.list(registry, kind, &puts, whole);
            }
            26 => {
                let connected = choices.one_in(2);
                self.tell(registry, Change::Connected(connected));
            }
            27 => {
                let leases =
                    (0..choices.below(4)).map(|lease| i64::try_from(lease).unwrap()).collect();
                self.tell(registry, Change::LeasesGone(leases));
            }
            28 | 29 => self.now += Duration::from_millis(u64::from(choices.octet()) * 100),
            _ => self.resolve(choices),
        }
        if choices.one_in(3) {
            self.publish();
        }
    }

    fn put(&mut self, registry: u8, put: Put) {
        self.held.retain(|(held, other)| (*held, &other.key) != (registry, &put.key));
        self.held.push((registry, put.clone()));
        self.known.push(put.clone());
        self.tell(registry, Change::Put(put));
    }

    fn list(&mut self, registry: u8, kind: ListKind, puts: &[Put], whole: bool) {
        self.tell(registry, Change::ListBegin(kind));
        for put in puts {
            self.tell(registry, Change::Put(put.clone()));
        }
        self.broken[usize::from(registry)] = !whole;
        if whole {
            self.tell(registry, Change::ListEnd { revision: 0 });
        }
    }

    fn tell(&mut self, registry: u8, change: Change) {
        self.pending.push(Update::Registry(id(registry), vec![change]));
    }

    fn pick(&self, choices: &mut Choices<'_>) -> Option<(u8, Put)> {
        self.held.get(choices.below(256) % self.held.len().max(1)).cloned()
    }

    fn publish(&mut self) {
        let published = self.publisher.apply(std::mem::take(&mut self.pending), self.now);
        self.follow(published);
    }

    fn follow(&mut self, published: Published) {
        for change in published.hosts {
            match change {
                HostChange::Wanted(host) => self.hosts.insert(host, Addresses::Pending),
                HostChange::Unwanted(host) => self.hosts.remove(&host),
            };
        }
    }

    /// Some host's addresses are found, or not.
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
        self.publisher.apply([Update::Hosts(vec![(host.into(), found)])], self.now);
    }

    fn ask(&mut self, choices: &mut Choices<'_>, kinds: &mut Kinds) {
        if !self.pending.is_empty() {
            self.publish();
        }
        let name = name(choices, &self.settings, &self.known);
        let question = Question::new(choices, &name);
        answer(&self.answerer, &question, kinds);
        if self.questions.len() == ASKED_AGAIN {
            self.questions.remove(0);
        }
        self.questions.push(question);
    }

    /// Asks the last questions again, once everything is told, of this server and of one that is told at once what there is.
    /// Where removals are held back, or a list is broken off, more is known than there is.
    fn compare_with_rebuilt(mut self) {
        self.publish();
        let condition = self.answerer.condition();
        if condition.holding > 0
            || !condition.away.is_empty()
            || !condition.synced
            || self.broken.contains(&true)
        {
            return;
        }
        let (mut publisher, answerer) = Publisher::new(
            self.catalog.clone(),
            self.settings.clone(),
            usize::from(REGISTRIES),
            self.now,
        );
        for registry in 0..REGISTRIES {
            let puts = self
                .held
                .iter()
                .filter(|(held, _)| *held == registry)
                .map(|(_, put)| Change::Put(put.clone()));
            let changes = [Change::ListBegin(ListKind::Routine)]
                .into_iter()
                .chain(puts)
                .chain([Change::ListEnd { revision: 0 }]);
            publisher.apply([Update::Registry(id(registry), changes.collect())], self.now);
        }
        publisher.apply([Update::Hosts(self.hosts.clone().into_iter().collect())], self.now);
        let mut kinds = Kinds::unmeasured();
        for question in &self.questions {
            let [here, rebuilt] = [&self.answerer, &answerer]
                .map(|answerer| without_serial(answer(answerer, question, &mut kinds)));
            assert!(
                here == rebuilt,
                "grown: {here:02x?}\nrebuilt: {rebuilt:02x?}\n{question:?}\n{:?}",
                self.held
            );
        }
    }
}

/// Settings of all kinds; zones beside and inside each other.
fn settings(choices: &mut Choices<'_>) -> (catalog::Settings, Settings) {
    let zones: &[&str] = [
        &["svc"][..],
        &["svc", "internal"],
        &["svc", "a.b.svc"],
        &["prod.svc", "svc"],
        &["internal.example", "svc"],
    ][choices.below(5)];
    let zones = Zones::new(&zones.iter().map(|&zone| zone.to_owned()).collect::<Vec<_>>()).unwrap();
    let mut catalog = catalog::Settings::new(zones.clone());
    catalog.removal_grace = choices.of(&[Duration::ZERO, Duration::ZERO, Duration::from_secs(12)]);
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
    };
    (catalog, settings)
}
