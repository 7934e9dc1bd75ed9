//! The fast path: answers from precompiled nodes, without allocation or grammar.
//!
//! If the answer is not certain, the fast path leaves the query to the full path. Its own responses
//! must equal those of the full path byte for byte; `tests/properties.rs` and the fuzz targets
//! compare the two.

use super::holders::Holders;
use super::lookahead::OwnerKey;
use super::message::ResponseContent;
use super::node::{Node, alias_target};
use super::owner::{NS_LABEL, VERSION_LABEL};
use super::respond::{AnswerOutcome, QueryContext};
use super::rrset::RRset;
use crate::name::instance_address;
use crate::wire::rtype;

/// Result of the fast path for a name.
enum FastAnswer<'a> {
    /// A non-empty RRset, and the registries that hold its instances.
    Records(RRset<'a>, Holders<'a>),
    /// The name is an alias of this name outside the zones, in wire form.
    Alias(&'a [u8]),
    /// The name has no records of the type, but these registries may hold instances of it.
    NoData(Holders<'a>),
    /// The name does not exist.
    NxDomain,
    /// The query needs the full path.
    Unknown,
}

impl<'a> FastAnswer<'a> {
    /// Returns the answer of this RRset, which may be empty.
    fn of(set: RRset<'a>, holders: Holders<'a>) -> Self {
        if set.count > 0 { Self::Records(set, holders) } else { Self::NoData(holders) }
    }
}

impl<'a> QueryContext<'a> {
    /// Answers from precompiled nodes; returns `None` if the full path is needed.
    pub(super) fn respond_fast(&self, key: OwnerKey, out: &mut Vec<u8>) -> Option<AnswerOutcome> {
        let name = self.query.name();
        let owner = name.get(..usize::from(key.owner_length))?;
        let zone = self.settings().zones.get(usize::from(key.zone_index))?;
        if self.snapshot.is_uncompiled
            || self.query.qclass != rtype::IN
            || matches!(self.query.qtype, rtype::AXFR | rtype::IXFR)
        {
            return None;
        }
        match self.probe(name, owner, key.hash) {
            FastAnswer::Records(set, holders) => {
                self.write(&ResponseContent::answer(&set, self.stale_answer_error(holders)), out);
                self.note_holders(holders);
            }
            FastAnswer::NoData(holders) => {
                self.write_nodata(zone, self.stale_answer_error(holders), out);
                self.note_holders(holders);
            }
            FastAnswer::Alias(target) => return Some(self.answer_alias(target, out)),
            FastAnswer::NxDomain => self.write_nxdomain(zone, out),
            FastAnswer::Unknown => return None,
        }
        Some(self.answered())
    }

    /// Looks up `name`, given its labels in front of the zone and their hash.
    fn probe(&self, name: &[u8], owner: &[u8], hash: u64) -> FastAnswer<'a> {
        if owner.is_empty()
            || [NS_LABEL, VERSION_LABEL].iter().any(|special| owner.eq_ignore_ascii_case(special))
        {
            return FastAnswer::Unknown;
        }
        match self.snapshot.node_at(hash, owner) {
            Some((owner, bytes)) => {
                let node = Node::read(bytes);
                if node.is_marker() {
                    self.answer_of_marker(bytes, owner)
                } else {
                    self.answer_of_node(&node, owner)
                }
            }
            None if self.is_absent(name, owner) => FastAnswer::NxDomain,
            None => self.probe_instance(owner).unwrap_or(FastAnswer::Unknown),
        }
    }

    /// Answers from a node without sets.
    fn answer_of_marker(&self, bytes: &'a [u8], owner: &[u8]) -> FastAnswer<'a> {
        match alias_target(bytes) {
            Some(target) => FastAnswer::Alias(target),
            // A single label can only be a service; longer names can begin with a version or an
            // instance.
            None if has_one_label(owner) && self.snapshot.registry_status.synced => {
                FastAnswer::NoData(Holders::NONE)
            }
            None => FastAnswer::Unknown,
        }
    }

    /// Answers from the node of the name itself.
    fn answer_of_node(&self, node: &Node<'a>, owner: &'a [u8]) -> FastAnswer<'a> {
        let settings = self.settings();
        let srv = || RRset::srv(node, settings.ttl, owner, settings.zones.first().name().as_wire());
        if let Some(bridge) = RRset::bridge(node, settings.ttl).filter(|_| self.writer.bridged) {
            match self.query.qtype {
                rtype::A | rtype::ANY => return FastAnswer::Records(bridge, node.holders()),
                rtype::AAAA => return FastAnswer::NoData(node.holders()),
                _ => {}
            }
        }
        let set = match self.query.qtype {
            // Only the service model knows why the addresses are missing.
            rtype::A | rtype::AAAA if node.has_only_host_names() => return FastAnswer::Unknown,
            rtype::A => RRset::a(node, settings.ttl),
            rtype::AAAA => RRset::aaaa(node, settings.ttl),
            rtype::SRV => srv(),
            rtype::TXT => return FastAnswer::Unknown,
            // One of the existing RRsets suffices (RFC 8482 section 4.1).
            rtype::ANY => {
                let sets = [RRset::a(node, settings.ttl), RRset::aaaa(node, settings.ttl), srv()];
                let set = sets.into_iter().find(|set| set.count > 0);
                return set
                    .map_or(FastAnswer::Unknown, |set| FastAnswer::Records(set, node.holders()));
            }
            _ => RRset::EMPTY,
        };
        FastAnswer::of(set, node.holders())
    }

    /// Returns whether no published name is at or below the last label of `owner`.
    ///
    /// Every published name, deployment and namespace leaves a node or a marker at its last label
    /// (RFC 8020). Names with selectors or protocols need the full path.
    fn is_absent(&self, name: &[u8], owner: &[u8]) -> bool {
        let mut last = owner;
        let mut rest = owner;
        while let Some((length, tail)) = rest.split_first() {
            if tail.first() == Some(&b'_') {
                return false;
            }
            last = rest;
            rest = tail.get(usize::from(*length)..).unwrap_or_default();
        }
        self.snapshot.registry_status.synced
            && (last.len() == owner.len() || self.snapshot.node(last).is_none())
            && !self.settings().zones.any_at_or_below(name)
    }

    /// Looks up the name of an instance among the addresses of its service.
    fn probe_instance(&self, owner: &[u8]) -> Option<FastAnswer<'a>> {
        let (length, rest) = owner.split_first()?;
        let (label, service) = rest.split_at_checked(usize::from(*length))?;
        let address = instance_address(label).filter(|_| !self.snapshot.has_instance_like_base)?;
        let node = Node::read(self.snapshot.node(service)?);
        // The node's other instances do not matter, and another version of the service may hold
        // this instance in another registry. If either could make a difference, the full path must
        // decide.
        let status = &self.snapshot.registry_status;
        if !status.stale_registries().is_empty() && !status.registries.is_single() {
            return None;
        }
        let [a, aaaa] = RRset::instance(&node, address, self.settings().ttl)?;
        match self.query.qtype {
            rtype::A => Some(a),
            rtype::AAAA => Some(aaaa),
            _ => None,
        }
        .map(|set| FastAnswer::of(set, node.holders()))
    }
}

/// Returns whether an owner has one label.
fn has_one_label(owner: &[u8]) -> bool {
    owner.first().is_some_and(|length| usize::from(*length) + 1 == owner.len())
}
