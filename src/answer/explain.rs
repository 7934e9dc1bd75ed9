//! Explanations: every step from a name to the bytes of its response, for people.

use std::collections::HashSet;
use std::iter;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hickory_proto::op::Message;
use hickory_proto::rr::RData;
use hickory_proto::rr::RecordType;
use hickory_proto::rr::rdata::opt::EdnsCode;
use serde::{Deserialize, Serialize};

use super::answerer::Answerer;
use super::counters::Counters;
use super::full::{self, MatchResult, TraceStep};
use super::lookahead::OwnerKey;
use super::message::{Recipient, ResponseWriter};
use super::node::{Node, alias_target};
use super::respond::AnswerOutcome;
use super::settings::Answers;
use super::table::Snapshot;
use super::{rare, suggest};
use crate::catalog::{ExclusionReason, HoldView, Instance, Service};
use crate::name::{Interpretation, Name, ParsedName, ServiceScope, reverse_address};
use crate::service::{RegistryId, WallClock};
use crate::wire::{self, Query, Transport, put_u16, rcode_name, type_name, u16_at};

/// Explanation of the answer to a query.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Explanation {
    /// Name of the query, in presentation form.
    pub name: String,
    /// Type of the query.
    pub rtype: String,
    /// The served zone that contains the name.
    pub zone: Option<String>,
    /// Destination of a forwarded query.
    pub elsewhere: Option<String>,
    /// Description of the alias, if the name or its base is an alias.
    #[serde(default)]
    pub alias: Option<String>,
    /// What the port bridge does with the name; `None` if it is off, or from an older server.
    #[serde(default)]
    pub bridge: Option<String>,
    /// Parts of the name.
    pub parsed: Vec<String>,
    /// Interpretations of the name that were tried, in order.
    #[serde(rename = "tried")]
    pub interpretations: Vec<TriedInterpretation>,
    /// Instances of the service that the name denotes.
    #[serde(rename = "considered")]
    pub instances: Vec<ConsideredInstance>,
    /// Registries with a key of the service, by their index in the configuration, from 0.
    ///
    /// A key may have no instance. None from an older server.
    #[serde(default)]
    pub key_registries: Vec<usize>,
    /// Whether the name has a precompiled node.
    #[serde(rename = "ready-made")]
    pub precompiled: bool,
    /// Response code.
    pub rcode: String,
    /// Reason why a name in a served zone does not exist.
    pub reason: Option<String>,
    /// A published name close to one that does not exist, without its zone.
    pub suggestion: Option<String>,
    /// EDE (RFC 8914): its code and text.
    pub extended_error: Option<String>,
    /// Records of the answer section, in presentation form.
    ///
    /// Their order, and their selection if not all fit, is drawn for each response.
    pub answers: Vec<String>,
    /// Records of the authority and additional sections.
    pub others: Vec<String>,
    /// Size of the response, in bytes.
    #[serde(rename = "octets")]
    pub bytes: usize,
    /// Maximum size of a UDP response to this query, in bytes.
    pub limit: usize,
    /// Whether TC is set.
    pub truncated: bool,
    /// Number of records left out of the answer section.
    pub left_out: usize,
    /// Parts of the instances' metadata that the TXT records omit.
    #[serde(default)]
    pub txt_omissions: Vec<String>,
    /// Value of the `answers` setting.
    pub setting: String,
    /// Records that a response over TCP omits for lack of space, if any.
    #[serde(default)]
    pub over_tcp: Option<TcpOmission>,
}

/// Records that a response over TCP omits for lack of space, without setting TC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct TcpOmission {
    /// Size of the response, in bytes.
    pub bytes: usize,
    /// Number of records omitted from the answer section.
    pub records: usize,
    /// Number of SRV targets in the answer section whose addresses are omitted.
    pub addresses: usize,
}

/// An interpretation of the name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TriedInterpretation {
    /// Meaning of the name in this interpretation.
    #[serde(rename = "reading")]
    pub interpretation: String,
    /// Whether the interpretation matched, or the reason why it did not.
    pub outcome: String,
}

/// An instance that was considered for the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ConsideredInstance {
    /// Host and port.
    pub endpoint: String,
    /// Deployment, namespace and version.
    pub group: String,
    /// SRV weight.
    pub weight: u16,
    /// Index of the registry in the configuration, from 0.
    pub registry: usize,
    /// Name of the registry; empty until [`Explanation::name_registries`] is called.
    pub registry_name: String,
    /// Registry key of the instance.
    pub key: String,
    /// Revision of the last change to the key.
    pub revision: u64,
    /// Whether removal grace keeps the instance although its registry has removed it.
    pub held: bool,
    /// The hold of which the instance is part, if it is held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<HoldView>,
    /// Reason for dropping the instance from the answer, if it was dropped.
    pub dropped: Option<String>,
    /// Failure of the check of its endpoint, even if it was not dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<String>,
    /// Address and port, unless the endpoint has a host name.
    #[serde(skip)]
    address: Option<SocketAddr>,
    /// Whether the failed check is the reason for dropping the instance.
    #[serde(skip)]
    check_failed: bool,
    /// Index of the registry that precedes the instance's, if that is the reason.
    #[serde(skip)]
    preceded_by: Option<usize>,
}

impl Answerer {
    /// Explains the UDP response to a query for `name`.
    ///
    /// `payload` is the size that the client advertises with EDNS, in bytes; `None` means no EDNS.
    /// The explained response is not counted.
    #[must_use]
    pub fn explain(&self, name: &Name, rtype: u16, payload: Option<u16>, draw: u64) -> Explanation {
        let query = query(name, rtype, payload);
        let ahead = self.look_ahead(iter::once(&*query));
        let snapshot = &*ahead.snapshot;
        let settings = snapshot.settings();
        let mut explanation = Explanation {
            name: name.to_string(),
            rtype: type_name(rtype),
            setting: match settings.answers {
                Answers::All => "all".to_owned(),
                Answers::Fit => "fit".to_owned(),
                Answers::Count(count) => format!("at most {count}"),
            },
            ..Explanation::default()
        };
        let mut failure = LookupFailure::default();
        if let Some((_, zone)) = settings.zones.find(name) {
            explanation.zone = Some(zone.text().to_owned());
            explanation.precompiled = snapshot
                .node(zone.labels_before(name))
                .is_some_and(|node| !Node::read(node).is_marker() || alias_target(node).is_some());
            let labels: Vec<&[u8]> = zone.relative_labels(name).collect();
            if labels.is_empty() {
                explanation.parsed.push("the zone apex".to_owned());
            } else if let Some(target) = settings.outside_target(name) {
                explanation.alias =
                    Some(format!("an alias (CNAME) of {target}, outside the served zones"));
            } else {
                let found = full::resolve(snapshot, settings, &labels, |step| {
                    failure.add_step(&step);
                    explanation.add_step(&step, snapshot);
                });
                if let full::NameLookup::Selection(selection) = found {
                    explanation.txt_omissions = rare::txt_omissions(&selection.instances);
                }
            }
        } else if let Some(address) = reverse_address(name) {
            explanation.parsed.push(format!("reverse name of {address}"));
            explanation.add_instances_at(snapshot, address);
        } else {
            explanation.parsed.push("in no served zone".to_owned());
        }
        let mut response = Vec::new();
        let uncounted = Counters::default();
        // The person who asks is on this machine.
        let recipient = Recipient { transport: Transport::Udp, is_local: true };
        let writer =
            ResponseWriter { counters: &uncounted, ..self.writer(snapshot, recipient, draw) };
        let disposition =
            self.answer(&Query::parse(&query), (snapshot, ahead.key(0)), writer, &mut response);
        explanation.elsewhere =
            matches!(disposition, AnswerOutcome::Forward | AnswerOutcome::Alias)
                .then(|| "forwarded to the upstreams".to_owned());
        explanation.limit = wire::response_limit(Transport::Udp, payload);
        let counters = Counters::default();
        let tcp = ResponseWriter { transport: Transport::Tcp, counters: &counters, ..writer };
        explanation.over_tcp = self.explain_over_tcp(&query, (snapshot, ahead.key(0)), tcp);
        explanation.bytes = response.len();
        explanation.left_out = usize::try_from(uncounted.left_out()).unwrap_or(usize::MAX);
        explanation.add_response(&response);
        if explanation.rcode == "NXDOMAIN" && explanation.zone.is_some() {
            explanation.reason = Some(failure.reason());
            explanation.suggestion = failure
                .unknown_service
                .and_then(|service| suggest::closest_name(snapshot, settings, &service));
        }
        explanation
    }

    /// Returns the records that the response over TCP omits for lack of space, if any.
    fn explain_over_tcp(
        &self,
        query: &[u8],
        found: (&Snapshot, Option<OwnerKey>),
        writer: ResponseWriter<'_>,
    ) -> Option<TcpOmission> {
        let (settings, mut response) = (found.0.settings(), Vec::new());
        self.answer(&Query::parse(query), found, writer, &mut response);
        let message = Message::from_vec(&response).ok()?;
        let left_out = usize::try_from(writer.counters.left_out()).unwrap_or(usize::MAX);
        // Records that the `answers` setting omits are not missing for lack of space.
        let by_setting = match settings.answers {
            Answers::Count(limit) => {
                let all = message.answers.len().saturating_add(left_out);
                all.saturating_sub(limit.get().into())
            }
            Answers::All | Answers::Fit => 0,
        };
        let zones = &settings.zones;
        let targets = message.answers.iter().filter_map(|record| match &record.data {
            // Host names outside the zones have no addresses here.
            RData::SRV(srv) => Some(&srv.target).filter(|target| {
                Name::from_text(&target.to_ascii()).is_ok_and(|name| zones.find(&name).is_some())
            }),
            _ => None,
        });
        let mut targets: HashSet<_> = targets.collect();
        for record in &message.additionals {
            targets.remove(&record.name);
        }
        let (bytes, records) = (response.len(), left_out.saturating_sub(by_setting));
        let omission = TcpOmission { bytes, records, addresses: targets.len() };
        (records > 0 || !targets.is_empty()).then_some(omission)
    }
}

/// Reason why a name does not exist, gathered from the steps of its resolution.
#[derive(Default)]
struct LookupFailure {
    /// The labels that name no known service.
    ///
    /// `None` if the name has no valid form or its service exists.
    unknown_service: Option<String>,
    /// The base of an existing service that does not match the rest of the name.
    unmatched_service: Option<String>,
}

impl LookupFailure {
    /// Updates the reason from a step of the resolution.
    fn add_step(&mut self, step: &TraceStep<'_>) {
        match step {
            TraceStep::Parsed(Some(parsed)) => self.unknown_service = Some(text(&parsed.rest)),
            TraceStep::Interpretation(interpretation, MatchResult::NoMatch) => {
                self.unknown_service = None;
                self.unmatched_service.get_or_insert_with(|| text(interpretation.base));
            }
            TraceStep::Parsed(None) | TraceStep::Interpretation(..) | TraceStep::Instance(..) => {}
        }
    }

    /// Returns the reason for NXDOMAIN in one clause.
    fn reason(&self) -> String {
        match (&self.unknown_service, &self.unmatched_service) {
            (_, Some(service)) => {
                format!("service {service} has no such version, instance, namespace or deployment")
            }
            (Some(service), None) => format!("no service {service}"),
            (None, None) => "the name has no valid form".to_owned(),
        }
    }
}

impl Explanation {
    /// Fills in the names of registries, given by their index in the configuration.
    pub fn name_registries(&mut self, name: impl Fn(usize) -> String) {
        for instance in &mut self.instances {
            instance.registry_name = name(instance.registry);
            if let Some(preceding) = instance.preceded_by {
                instance.dropped = Some(ExclusionReason::preceded_by(&name(preceding)));
            }
        }
    }

    /// Adds the failures of checks, given by the address and port of their endpoints.
    pub fn add_checks(&mut self, failure: impl Fn(SocketAddr) -> Option<String>) {
        for instance in &mut self.instances {
            instance.check = instance.address.and_then(&failure);
            if let Some(check) = instance.check.as_ref().filter(|_| instance.check_failed) {
                instance.dropped = Some(ExclusionReason::check_failed(check));
            }
        }
    }

    /// Adds a step of the resolution to the explanation.
    fn add_step(&mut self, step: &TraceStep<'_>, snapshot: &Snapshot) {
        match step {
            TraceStep::Parsed(None) => self.parsed.push("no valid form of a name".to_owned()),
            TraceStep::Parsed(Some(parsed)) => self.parsed.extend(parts(parsed)),
            TraceStep::Interpretation(interpretation, result) => {
                let mut base = String::new();
                let service = full::join_labels(interpretation.base, &mut base)
                    .then(|| snapshot.service(&base))
                    .flatten();
                if *result == MatchResult::NoMatch {
                    self.add_unmatched(service, snapshot);
                }
                if *result != MatchResult::NoService {
                    self.add_key_registries(service);
                }
                let alias = service.and_then(describe_alias);
                match result {
                    // Aliases in earlier interpretations have no part in the answer.
                    MatchResult::Match => self.alias = alias,
                    MatchResult::NoMatch => self.alias = self.alias.take().or(alias),
                    MatchResult::NoService => {}
                }
                self.interpretations.push(TriedInterpretation {
                    interpretation: describe(interpretation),
                    outcome: match result {
                        MatchResult::NoService => "no such service",
                        MatchResult::NoMatch => {
                            "no such version, instance, namespace or deployment"
                        }
                        MatchResult::Match => "matched",
                    }
                    .to_owned(),
                });
            }
            TraceStep::Instance(instance, dropped) => {
                let left_out = instance.excluded.map(|reason| reason.to_string());
                let dropped = left_out.or_else(|| dropped.map(str::to_owned));
                self.instances.push(ConsideredInstance::new(instance, dropped, snapshot));
            }
        }
    }

    /// Adds the instances of a service that does not match the rest of the name.
    fn add_unmatched(&mut self, service: Option<&Arc<Service>>, snapshot: &Snapshot) {
        for instance in service.iter().flat_map(|service| service.instances()) {
            let dropped = Some("does not match the interpretation".to_owned());
            self.instances.push(ConsideredInstance::new(&instance, dropped, snapshot));
        }
    }

    /// Adds the registries that have a key of a service, or of the service of an alias.
    fn add_key_registries(&mut self, service: Option<&Arc<Service>>) {
        let target = service.and_then(|service| service.alias_target());
        let keys = service.into_iter().chain(target).flat_map(|service| service.keys());
        self.key_registries.extend(keys.map(|key| key.registry().index()));
        self.key_registries.sort_unstable();
        self.key_registries.dedup();
    }

    /// Adds all instances at an address.
    fn add_instances_at(&mut self, snapshot: &Snapshot, address: IpAddr) {
        for service in snapshot.services_at(address) {
            for mut instance in service.instances().filter(|instance| instance.is_at(address)) {
                // Reverse names do not depend on checks.
                instance.excluded = instance.excluded.filter(|_| !instance.is_left_out());
                let dropped = instance.excluded.map(|reason| reason.to_string());
                self.instances.push(ConsideredInstance::new(&instance, dropped, snapshot));
            }
        }
    }

    /// Decodes the response and adds its content.
    fn add_response(&mut self, response: &[u8]) {
        let Ok(message) = Message::from_vec(response) else { return };
        self.rcode = rcode_name(message.metadata.response_code.into()).into_owned();
        self.truncated = message.metadata.truncation;
        self.answers = message.answers.iter().map(ToString::to_string).collect();
        if !message.answers.iter().any(|record| record.record_type() == RecordType::TXT) {
            self.txt_omissions.clear();
        }
        let others = message.authorities.iter().chain(&message.additionals);
        self.others = others.map(ToString::to_string).collect();
        let option = message
            .edns
            .as_ref()
            .and_then(|edns| edns.option(EdnsCode::Unknown(wire::OPTION_EXTENDED_ERROR)));
        let bytes = option.and_then(|option| <Vec<u8>>::try_from(option).ok());
        self.extended_error = bytes.and_then(|bytes| {
            let code = u16_at(&bytes, 0)?;
            let text = String::from_utf8_lossy(bytes.get(2..)?);
            Some(format!("{code} {text}").trim_end().to_owned())
        });
    }
}

impl ConsideredInstance {
    /// Describes an instance.
    fn new(instance: &Instance<'_>, dropped: Option<String>, snapshot: &Snapshot) -> Self {
        let (key, group) = (instance.key, instance.key.group());
        Self {
            endpoint: instance.endpoint.to_string(),
            group: format!("{}/{}/{}", group.deployment, group.namespace, group.version),
            weight: key.weight(),
            registry: key.registry().index(),
            registry_name: String::new(),
            key: instance.text(),
            revision: key.revision,
            held: key.held(),
            hold: snapshot.hold_of(key).map(|hold| hold.view(&WallClock::now())),
            dropped,
            check: None,
            address: instance
                .endpoint
                .host
                .address()
                .map(|address| SocketAddr::new(address, instance.endpoint.port)),
            check_failed: instance.is_left_out(),
            preceded_by: instance.preceding_registry().map(RegistryId::index),
        }
    }
}

/// Describes the alias of a service; `None` if it is a service itself.
fn describe_alias(service: &Arc<Service>) -> Option<String> {
    let target = service.alias_target()?;
    let unknown = if target.keys().is_empty() { ", which is not registered" } else { "" };
    Some(format!("{} is an alias of service {}{unknown}", service.base(), target.base()))
}

/// Describes each part of a parsed name.
fn parts(parsed: &ParsedName<'_>) -> Vec<String> {
    let mut parts = Vec::new();
    if let Some(label) = parsed.rfc2782 {
        parts.push(format!("protocol or port: {}", label.escape_ascii()));
    }
    for selector in &parsed.selectors {
        let note = if selector.unsatisfiable { " (matches no value)" } else { "" };
        let (key, value) = (selector.key.escape_ascii(), &selector.value);
        parts.push(format!("selector: {key} = {value:?}{note}"));
    }
    if parsed.tcp_of_base {
        parts.push("RFC 2782 name of a service".to_owned());
    }
    if parsed.non_terminal {
        parts.push("empty non-terminal".to_owned());
    }
    parts.push(format!("service labels: {}", text(&parsed.rest)));
    parts
}

/// Describes an interpretation, for example `version v1 of service hello`.
fn describe(interpretation: &Interpretation<'_>) -> String {
    let mut words = format!("service {}", text(interpretation.base));
    if let Some(version) = interpretation.version {
        words = format!("version {} of {words}", text(version));
    }
    if let Some(instance) = interpretation.instance {
        words = format!("instance {} of {words}", instance.escape_ascii());
    }
    match interpretation.scope {
        ServiceScope::Configured => words,
        ServiceScope::Namespace(namespace) => {
            format!("{words} in namespace {}", namespace.escape_ascii())
        }
        ServiceScope::Full { namespace, deployment } => {
            let (namespace, deployment) = (namespace.escape_ascii(), deployment.escape_ascii());
            format!("{words} in namespace {namespace} of deployment {deployment}")
        }
    }
}

/// Formats labels as dotted text, with escapes for unprintable bytes.
fn text(labels: &[&[u8]]) -> String {
    labels.iter().map(|label| label.escape_ascii().to_string()).collect::<Vec<_>>().join(".")
}

/// Returns a query as a stub resolver sends it.
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
