//! What a name asks for, as far as one probe of the ready-made records says: no allocation, no walk through the grammar.
//!
//! Whatever is not certain here is left to the full path, which must come to the same answer: `tests/properties.rs` and the fuzz
//! targets hold the two together.

use super::ahead::Place;
use super::asking::Asking;
use super::message::Response;
use super::owner::{NS, VERSION};
use super::record::Record;
use super::rrset::RRset;
use crate::name::instance_address;
use crate::service::RegistrySet;
use crate::wire::rtype;

/// What is certain without the full path.
enum Ready<'a> {
    /// This RRset, which has records, held by these registries.
    Answer(RRset<'a>, RegistrySet),
    /// The name exists and has nothing of the type.
    NoData,
    /// The name does not exist.
    NoName,
    /// Nothing.
    Unknown,
}

impl<'a> Asking<'a> {
    /// Answers where that takes no more than the ready-made records. False: it does.
    pub(super) fn fast(&self, place: Place, out: &mut Vec<u8>) -> bool {
        let name = self.query.name();
        let (Some(owner), Some(zone)) = (name.get(..usize::from(place.owner)), self.settings().zones.get(usize::from(place.zone))) else {
            return false;
        };
        if self.query.qclass != rtype::IN || matches!(self.query.qtype, rtype::AXFR | rtype::IXFR) {
            return false;
        }
        match self.ready(name, owner, place.hash) {
            Ready::Answer(set, holders) => self.put(&Response::answer(&set, self.stale_answer(holders)), out),
            Ready::NoData => self.no_data(zone, self.stale_absence(), out),
            Ready::NoName => self.no_name(zone, out),
            Ready::Unknown => return false,
        }
        true
    }

    /// What is certain about `name`, whose labels in front of its zone are `owner` with this hash.
    fn ready(&self, name: &[u8], owner: &[u8], hash: u64) -> Ready<'a> {
        if owner.is_empty() || [NS, VERSION].iter().any(|special| owner.eq_ignore_ascii_case(special)) {
            return Ready::Unknown;
        }
        match self.snapshot.record_at(hash, owner).map(|(owner, record)| (owner, Record::read(record))) {
            // A single label is nothing but the name of a service; of more, the first may be a version or an instance.
            Some((_, record)) if record.is_marker() && is_single(owner) && self.snapshot.condition.synced => Ready::NoData,
            Some((_, record)) if record.is_marker() => Ready::Unknown,
            Some((owner, record)) => self.of_record(&record, owner),
            None if self.is_absent(name, owner) => Ready::NoName,
            None => self.instance(owner).unwrap_or(Ready::Unknown),
        }
    }

    fn of_record(&self, record: &Record<'a>, owner: &'a [u8]) -> Ready<'a> {
        let settings = self.settings();
        let srv = || RRset::srv(record, settings.ttl, owner, settings.zones.first().name().as_wire());
        let set = match self.query.qtype {
            // Why there is none stands with the instances.
            rtype::A | rtype::AAAA if record.hosts_only() => return Ready::Unknown,
            rtype::A => RRset::a(record, settings.ttl),
            rtype::AAAA => RRset::aaaa(record, settings.ttl),
            rtype::SRV => srv(),
            rtype::TXT => return Ready::Unknown,
            // RFC 8482 section 4.1: one RRset of those there are.
            rtype::ANY => {
                let sets = [RRset::a(record, settings.ttl), RRset::aaaa(record, settings.ttl), srv()];
                let set = sets.into_iter().find(|set| set.count > 0);
                return set.map_or(Ready::Unknown, |set| Ready::Answer(set, record.holders()));
            }
            _ => RRset::EMPTY,
        };
        if set.count > 0 { Ready::Answer(set, record.holders()) } else { Ready::NoData }
    }

    /// Whether nothing can be at or below the last label: every name in use, and every deployment and namespace, leaves a
    /// record or a marker there (RFC 8020). Names with selectors or protocols have a grammar of their own.
    fn is_absent(&self, name: &[u8], owner: &[u8]) -> bool {
        let mut last = owner;
        let mut rest = owner;
        while let Some((length, behind)) = rest.split_first() {
            if behind.first() == Some(&b'_') {
                return false;
            }
            last = rest;
            rest = behind.get(usize::from(*length)..).unwrap_or_default();
        }
        self.snapshot.condition.synced
            && (last.len() == owner.len() || self.snapshot.record(last).is_none())
            && !self.settings().zones.any_below(name)
    }

    /// The address of an instance, by its own name: its service has it among its records.
    fn instance(&self, owner: &[u8]) -> Option<Ready<'a>> {
        let (length, rest) = owner.split_first()?;
        let (label, service) = rest.split_at_checked(usize::from(*length))?;
        let address = instance_address(label).filter(|_| !self.snapshot.instance_bases)?;
        let record = Record::read(self.snapshot.record(service)?);
        // Another version, which the record need not hold, may have the same instance in another registry. Where that one could
        // matter, the model says which registries hold the instance.
        let (holders, stale) = (record.holders(), self.snapshot.condition.stale_registries());
        if !(stale.is_empty() || holders.is_single() && stale.is_subset_of(holders)) {
            return None;
        }
        let [a, aaaa] = RRset::of_instance(&record, address, self.settings().ttl)?;
        match self.query.qtype {
            rtype::A => Some(a),
            rtype::AAAA => Some(aaaa),
            _ => None,
        }
        .map(|set| if set.count > 0 { Ready::Answer(set, record.holders()) } else { Ready::NoData })
    }
}

/// Whether an owner has one label.
fn is_single(owner: &[u8]) -> bool {
    owner.first().is_some_and(|length| usize::from(*length) + 1 == owner.len())
}
