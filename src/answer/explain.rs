//! Every step from a name to the octets of its answer, for people.

use std::iter;
use std::net::IpAddr;

use hickory_proto::op::Message;
use serde::{Deserialize, Serialize};

use super::answerer::Answerer;
use super::asking;
use super::counters::Counters;
use super::full::{self, Outcome, Step};
use super::message::Writer;
use super::record::Record;
use super::settings::Answers;
use super::table::Snapshot;
use crate::name::{Asked, Name, Reading, Scope, reverse_address};
use crate::wire::{self, Query, Transport, put_u16, rcode_name, type_name, u16_at};

/// How a question is answered, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Explanation {
    /// The name, in presentation form.
    pub name: String,
    /// The type.
    pub rtype: String,
    /// The served zone the name lies in.
    pub zone: Option<String>,
    /// Where the question goes instead, when its answer is not ours to give.
    pub elsewhere: Option<String>,
    /// What the name says, part by part.
    pub parsed: Vec<String>,
    /// The ways to read it that were tried, in order.
    pub tried: Vec<Tried>,
    /// The instances of the service it was read as.
    pub considered: Vec<Considered>,
    /// Whether a ready-made record answers.
    pub ready_made: bool,
    /// The response code.
    pub rcode: String,
    /// The extended error, if there is one.
    pub extended_error: Option<String>,
    /// The answer's records, in presentation form, as put this time: the order is drawn anew for each question.
    pub answers: Vec<String>,
    /// Records of the authority and additional sections.
    pub others: Vec<String>,
    /// Octets of the response, and the most it may have over UDP.
    pub octets: usize,
    /// The most octets a UDP response to this question may have.
    pub limit: usize,
    /// Whether TC says that there is more.
    pub truncated: bool,
    /// Records left out, for want of room or by the setting.
    pub left_out: usize,
    /// What is done when not all fit, as configured.
    pub setting: String,
}

/// A way to read the name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tried {
    /// The reading.
    pub reading: String,
    /// What became of it.
    pub outcome: String,
}

/// An instance that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Considered {
    /// Where it is.
    pub endpoint: String,
    /// Its deployment, namespace and version.
    pub group: String,
    /// Its weight.
    pub weight: u16,
    /// Its registry's place in the configuration, from 0.
    pub registry: usize,
    /// Its registry's name; empty until [`Explanation::name_registries`].
    pub registry_name: String,
    /// The key it stands in.
    pub key: String,
    /// The revision of the key's last change.
    pub revision: u64,
    /// Whether the registry says that it is gone and the removal is not believed yet.
    pub held: bool,
    /// Why it is not in the answer, if it is not.
    pub dropped: Option<String>,
}

impl Answerer {
    /// Explains the answer over UDP to a question for `name`, from a client that takes `payload` octets (none: no EDNS).
    #[must_use]
    pub fn explain(&self, name: &Name, rtype: u16, payload: Option<u16>, draw: u64) -> Explanation {
        let query = query(name, rtype, payload);
        let ahead = self.look_ahead(iter::once(&*query));
        let snapshot = &*ahead.snapshot;
        let mut explanation = Explanation {
            name: name.to_string(),
            rtype: type_name(rtype),
            setting: match self.settings.answers {
                Answers::All => "all".to_owned(),
                Answers::Fit => "fit".to_owned(),
                Answers::Count(count) => format!("at most {count}"),
            },
            ..Explanation::default()
        };
        if let Some((_, zone)) = self.settings.zones.find(name) {
            explanation.zone = Some(zone.text().to_owned());
            let owner = &name.as_wire()[..name.as_wire().len() - zone.name().as_wire().len()];
            explanation.ready_made = snapshot.record(owner).is_some_and(|record| !Record::read(record).is_marker());
            let labels: Vec<&[u8]> = zone.in_front(name).collect();
            if labels.is_empty() {
                explanation.parsed.push("the zone itself".to_owned());
            } else {
                full::resolve(snapshot, &self.settings, &labels, |step| explanation.add(&step, snapshot));
            }
        } else if let Some(address) = reverse_address(name) {
            explanation.parsed.push(format!("the reverse name of {address}"));
            explanation.add_address(snapshot, address);
        } else {
            explanation.parsed.push("lies in no served zone".to_owned());
        }
        let mut response = Vec::new();
        // An explanation is no answer: it is not counted.
        let uncounted = Counters::default();
        let writer = Writer { counters: &uncounted, ..self.writer(Transport::Udp, draw) };
        let outcome = self.answer(&Query::parse(&query), (snapshot, ahead.place(0)), writer, &mut response);
        explanation.elsewhere = (outcome == asking::Outcome::Elsewhere).then(|| "asked of the upstreams".to_owned());
        let offered = usize::from(payload.unwrap_or(0));
        explanation.limit = if payload.is_some() { offered.clamp(wire::UDP_PLAIN, wire::UDP_MAX) } else { wire::UDP_PLAIN };
        explanation.octets = response.len();
        explanation.left_out = usize::try_from(uncounted.left_out()).unwrap_or(usize::MAX);
        explanation.add_response(&response);
        explanation
    }
}

impl Explanation {
    /// Fills in the registries' names, given by place in the configuration.
    pub fn name_registries(&mut self, name: impl Fn(usize) -> String) {
        for instance in &mut self.considered {
            instance.registry_name = name(instance.registry);
        }
    }

    fn add(&mut self, step: &Step<'_>, snapshot: &Snapshot) {
        if let Step::Reading(reading, Outcome::Elsewhere) = step {
            self.add_elsewhere(reading, snapshot);
        }
        match step {
            Step::Parsed(None) => self.parsed.push("no form of a name reads this".to_owned()),
            Step::Parsed(Some(asked)) => self.parsed.extend(parts(asked)),
            Step::Reading(reading, outcome) => self.tried.push(Tried {
                reading: describe(reading),
                outcome: match outcome {
                    Outcome::Unknown => "no such service",
                    Outcome::Elsewhere => "the service is known, but not there, or not with that version or instance",
                    Outcome::Taken => "taken",
                }
                .to_owned(),
            }),
            Step::Instance(instance, dropped) => {
                let left_out = instance.excluded.map(|reason| reason.to_string());
                self.considered.push(Considered::new(instance, left_out.or_else(|| dropped.map(str::to_owned))));
            }
        }
    }

    /// The instances of a service that is known, but not where the name says.
    fn add_elsewhere(&mut self, reading: &Reading<'_>, snapshot: &Snapshot) {
        let mut base = String::new();
        let service = full::join(reading.base, &mut base).then(|| snapshot.service(&base)).flatten();
        for instance in service.iter().flat_map(|service| service.instances()) {
            let dropped = "not in the deployment, namespace, version or place that this reading says";
            self.considered.push(Considered::new(&instance, Some(dropped.to_owned())));
        }
    }

    fn add_address(&mut self, snapshot: &Snapshot, address: IpAddr) {
        for service in snapshot.at_address(address) {
            for instance in service.instances().filter(|instance| instance.endpoint.host.address() == Some(address)) {
                self.considered.push(Considered::new(&instance, instance.excluded.map(|reason| reason.to_string())));
            }
        }
    }

    fn add_response(&mut self, response: &[u8]) {
        let Ok(message) = Message::from_vec(response) else { return };
        self.rcode = rcode_name(message.metadata.response_code.into()).into_owned();
        self.truncated = message.metadata.truncation;
        self.answers = message.answers.iter().map(ToString::to_string).collect();
        self.others = message.authorities.iter().chain(&message.additionals).map(ToString::to_string).collect();
        let option =
            message.edns.as_ref().and_then(|edns| edns.option(hickory_proto::rr::rdata::opt::EdnsCode::Unknown(wire::EXTENDED_ERROR)));
        self.extended_error = option.and_then(|option| <Vec<u8>>::try_from(option).ok()).and_then(|octets| {
            let code = u16_at(&octets, 0)?;
            Some(format!("{code} {}", String::from_utf8_lossy(octets.get(2..)?)).trim_end().to_owned())
        });
    }
}

impl Considered {
    fn new(instance: &crate::catalog::Instance<'_>, dropped: Option<String>) -> Self {
        let key = instance.key;
        Self {
            endpoint: instance.endpoint.to_string(),
            group: format!("{}/{}/{}", key.group().deployment, key.group().namespace, key.group().version),
            weight: key.weight(),
            registry: key.registry().index(),
            registry_name: String::new(),
            key: instance.text(),
            revision: key.revision,
            held: key.held(),
            dropped,
        }
    }
}

fn parts(asked: &Asked<'_>) -> Vec<String> {
    let mut parts = Vec::new();
    if let Some(label) = asked.rfc2782 {
        parts.push(format!("protocol or port {}", label.escape_ascii()));
    }
    for selector in &asked.selectors {
        let impossible = if selector.impossible { " (no value can be that)" } else { "" };
        parts.push(format!("{} = {:?}{impossible}", selector.key.escape_ascii(), selector.value));
    }
    if asked.tcp_of_base {
        parts.push("a service by RFC 2782 name".to_owned());
    }
    if asked.partial {
        parts.push("a name that only has names below it".to_owned());
    }
    parts.push(format!("service labels: {}", text(&asked.rest)));
    parts
}

fn describe(reading: &Reading<'_>) -> String {
    let mut words = format!("service {}", text(reading.base));
    if let Some(version) = reading.version {
        words = format!("version {} of {words}", text(version));
    }
    if let Some(instance) = reading.instance {
        words = format!("instance {} of {words}", instance.escape_ascii());
    }
    match reading.scope {
        Scope::Configured => words,
        Scope::Namespace(namespace) => format!("{words} in namespace {}", namespace.escape_ascii()),
        Scope::Full { namespace, deployment } => {
            format!("{words} in namespace {} of deployment {}", namespace.escape_ascii(), deployment.escape_ascii())
        }
    }
}

fn text(labels: &[&[u8]]) -> String {
    labels.iter().map(|label| label.escape_ascii().to_string()).collect::<Vec<_>>().join(".")
}

/// A query as a stub sends it.
pub(super) fn query(name: &Name, rtype: u16, payload: Option<u16>) -> Vec<u8> {
    let mut query = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(payload.is_some())];
    query.extend_from_slice(name.as_wire());
    put_u16(&mut query, rtype);
    put_u16(&mut query, wire::rtype::IN);
    if let Some(payload) = payload {
        query.push(0);
        put_u16(&mut query, wire::rtype::OPT);
        put_u16(&mut query, payload);
        query.extend_from_slice(&[0; 6]);
    }
    query
}
