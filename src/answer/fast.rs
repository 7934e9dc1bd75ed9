//! What a name asks for, as far as one probe of the ready-made records says: no allocation, no walk through the grammar.
//!
//! Whatever is not certain here is left to the full path, which must come to the same answer: `tests/properties.rs` and the fuzz
//! targets hold the two together.

use super::lookahead::OwnerKey;
use super::message::ResponseContent;
use super::node::Node;
use super::owner::{NS_LABEL, VERSION_LABEL};
use super::respond::QueryContext;
use super::rrset::RRset;
use crate::name::instance_address;
use crate::service::RegistrySet;
use crate::wire::rtype;

/// What is certain without the full path.
enum FastAnswer<'a> {
    /// This RRset, which has records, held by these registries.
    Records(RRset<'a>, RegistrySet),
    /// The name exists and has nothing of the type.
    NoData,
    /// The name does not exist.
    NxDomain,
    /// Nothing.
    Unknown,
}

impl<'a> QueryContext<'a> {
    /// Answers where that takes no more than the ready-made records. False: it does.
    pub(super) fn fast(&self, key: OwnerKey, out: &mut Vec<u8>) -> bool {
        let name = self.query.name();
        let (Some(owner), Some(zone)) = (
            name.get(..usize::from(key.owner_length)),
            self.settings().zones.get(usize::from(key.zone_index)),
        ) else {
            return false;
        };
        if self.query.qclass != rtype::IN || matches!(self.query.qtype, rtype::AXFR | rtype::IXFR) {
            return false;
        }
        match self.probe(name, owner, key.hash) {
            FastAnswer::Records(set, registries) => {
                self.write(&ResponseContent::answer(&set, self.stale_answer_error(registries)), out)
            }
            FastAnswer::NoData => self.write_nodata(zone, self.stale_negative_error(), out),
            FastAnswer::NxDomain => self.write_nxdomain(zone, out),
            FastAnswer::Unknown => return false,
        }
        true
    }

    /// What is certain about `name`, whose labels in front of its zone are `owner` with this hash.
    fn probe(&self, name: &[u8], owner: &[u8], hash: u64) -> FastAnswer<'a> {
        if owner.is_empty()
            || [NS_LABEL, VERSION_LABEL].iter().any(|special| owner.eq_ignore_ascii_case(special))
        {
            return FastAnswer::Unknown;
        }
        match self.snapshot.node_at(hash, owner).map(|(owner, node)| (owner, Node::read(node))) {
            // A single label is nothing but the name of a service; of more, the first may be a version or an instance.
            Some((_, node))
                if node.is_marker() && has_one_label(owner) && self.snapshot.condition.synced =>
            {
                FastAnswer::NoData
            }
            Some((_, node)) if node.is_marker() => FastAnswer::Unknown,
            Some((owner, node)) => self.from_node(&node, owner),
            None if self.is_absent(name, owner) => FastAnswer::NxDomain,
            None => self.probe_instance(owner).unwrap_or(FastAnswer::Unknown),
        }
    }

    fn from_node(&self, node: &Node<'a>, owner: &'a [u8]) -> FastAnswer<'a> {
        let settings = self.settings();
        let srv = || RRset::srv(node, settings.ttl, owner, settings.zones.first().name().as_wire());
        let set = match self.query.qtype {
            // Why there is none stands with the instances.
            rtype::A | rtype::AAAA if node.has_only_host_names() => return FastAnswer::Unknown,
            rtype::A => RRset::a(node, settings.ttl),
            rtype::AAAA => RRset::aaaa(node, settings.ttl),
            rtype::SRV => srv(),
            rtype::TXT => return FastAnswer::Unknown,
            // RFC 8482 section 4.1: one RRset of those there are.
            rtype::ANY => {
                let sets = [RRset::a(node, settings.ttl), RRset::aaaa(node, settings.ttl), srv()];
                let set = sets.into_iter().find(|set| set.count > 0);
                return set.map_or(FastAnswer::Unknown, |set| {
                    FastAnswer::Records(set, node.registries())
                });
            }
            _ => RRset::EMPTY,
        };
        if set.count > 0 { FastAnswer::Records(set, node.registries()) } else { FastAnswer::NoData }
    }

    /// Whether nothing can be at or below the last label: every name in use, and every deployment and namespace, leaves a
    /// record or a marker there (RFC 8020). Names with selectors or protocols have a grammar of their own.
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
        self.snapshot.condition.synced
            && (last.len() == owner.len() || self.snapshot.node(last).is_none())
            && !self.settings().zones.any_at_or_below(name)
    }

    /// The address of an instance, by its own name: its service has it among its records.
    fn probe_instance(&self, owner: &[u8]) -> Option<FastAnswer<'a>> {
        let (length, rest) = owner.split_first()?;
        let (label, service) = rest.split_at_checked(usize::from(*length))?;
        let address = instance_address(label).filter(|_| !self.snapshot.has_instance_like_base)?;
        let node = Node::read(self.snapshot.node(service)?);
        // Another version, which the record need not hold, may have the same instance in another registry. Where that one could
        // matter, the model says which registries hold the instance.
        let (registries, stale) = (node.registries(), self.snapshot.condition.stale());
        if !(stale.is_empty() || registries.is_single() && stale.is_subset_of(registries)) {
            return None;
        }
        let [a, aaaa] = RRset::instance(&node, address, self.settings().ttl)?;
        match self.query.qtype {
            rtype::A => Some(a),
            rtype::AAAA => Some(aaaa),
            _ => None,
        }
        .map(|set| {
            if set.count > 0 {
                FastAnswer::Records(set, node.registries())
            } else {
                FastAnswer::NoData
            }
        })
    }
}

/// Whether an owner has one label.
fn has_one_label(owner: &[u8]) -> bool {
    owner.first().is_some_and(|length| usize::from(*length) + 1 == owner.len())
}
