//! What a name asks for, as far as one probe of the ready-made records says: no allocation, no walk through the grammar.
//!
//! Whatever is not certain here is left to the full path, which must come to the same answer: `tests/properties.rs` and the fuzz
//! targets hold the two together.

use super::asking::{Asking, NS, VERSION};
use super::compile::MAX_NAME;
use super::message::Response;
use super::record::Record;
use super::rrset::RRset;
use crate::name::instance_address;
use crate::wire::rtype;

/// What is certain without the full path.
enum Ready<'a> {
    /// This RRset, which has records.
    Answer(RRset<'a>),
    /// The name exists and has nothing of the type.
    NoData,
    /// The name does not exist.
    NoName,
    /// Nothing.
    Unknown,
}

impl<'a> Asking<'a> {
    /// Answers where that takes no more than the ready-made records. False: it does.
    pub(super) fn fast(&self, out: &mut Vec<u8>) -> bool {
        if self.query.qclass != rtype::IN || matches!(self.query.qtype, rtype::AXFR | rtype::IXFR) {
            return false;
        }
        let mut room = [0; MAX_NAME];
        let Some(name) = lower_cased(self.query.name(), &mut room) else { return false };
        let Some((owner, zone)) = self.answerer.settings.zones.split(name) else { return false };
        match self.ready(name, owner) {
            Ready::Answer(set) => self.put(&Response::answer(set, self.stale()), out),
            Ready::NoData => self.no_data(zone, self.stale(), out),
            Ready::NoName => self.no_name(zone, out),
            Ready::Unknown => return false,
        }
        true
    }

    /// What is certain about `name`, lower-cased, whose labels in front of its zone are `owner`.
    fn ready<'n>(&self, name: &[u8], owner: &'n [u8]) -> Ready<'n>
    where
        'a: 'n,
    {
        if matches!(owner, b"" | NS | VERSION) {
            return Ready::Unknown;
        }
        match self.snapshot.record(owner).map(Record::read) {
            // A single label is nothing but the name of a service; of more, the first may be a version or an instance.
            Some(record) if record.is_marker() && is_single(owner) && self.snapshot.condition.synced => Ready::NoData,
            Some(record) if record.is_marker() => Ready::Unknown,
            Some(record) => self.of_record(&record, owner),
            None if self.is_absent(name, owner) => Ready::NoName,
            None => self.instance(owner).unwrap_or(Ready::Unknown),
        }
    }

    fn of_record<'n>(&self, record: &Record<'n>, owner: &'n [u8]) -> Ready<'n>
    where
        'a: 'n,
    {
        let settings = &self.answerer.settings;
        let srv = || record.srv(settings.ttl, owner, settings.zones.first().name().as_wire());
        let set = match self.query.qtype {
            // Why there is none stands with the instances.
            rtype::A | rtype::AAAA if record.hosts_only() => return Ready::Unknown,
            rtype::A => record.a(settings.ttl),
            rtype::AAAA => record.aaaa(settings.ttl),
            rtype::SRV => srv(),
            rtype::TXT => return Ready::Unknown,
            // RFC 8482 section 4.1: one RRset of those there are.
            rtype::ANY => {
                let sets = [record.a(settings.ttl), record.aaaa(settings.ttl), srv()];
                return sets.into_iter().find(|set| set.count > 0).map_or(Ready::Unknown, Ready::Answer);
            }
            _ => RRset::EMPTY,
        };
        if set.count > 0 { Ready::Answer(set) } else { Ready::NoData }
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
            && !self.answerer.settings.zones.any_below(name)
    }

    /// The address of an instance, by its own name: its service has it among its records.
    fn instance<'n>(&self, owner: &[u8]) -> Option<Ready<'n>>
    where
        'a: 'n,
    {
        let (length, rest) = owner.split_first()?;
        let (label, service) = rest.split_at_checked(usize::from(*length))?;
        let address = instance_address(label).filter(|_| !self.snapshot.instance_bases)?;
        let record = Record::read(self.snapshot.record(service)?);
        let [a, aaaa] = record.instance(address, self.answerer.settings.ttl)?;
        match self.query.qtype {
            rtype::A => Some(a),
            rtype::AAAA => Some(aaaa),
            _ => None,
        }
        .map(|set| if set.count > 0 { Ready::Answer(set) } else { Ready::NoData })
    }
}

/// A valid name in wire form, lower-cased into `room`.
pub(super) fn lower_cased<'r>(name: &[u8], room: &'r mut [u8; MAX_NAME]) -> Option<&'r [u8]> {
    let room = room.get_mut(..name.len())?;
    room.copy_from_slice(name);
    // Length octets are at most 63, below 'A': only letters change.
    room.make_ascii_lowercase();
    Some(room)
}

/// Whether an owner has one label.
fn is_single(owner: &[u8]) -> bool {
    owner.first().is_some_and(|length| usize::from(*length) + 1 == owner.len())
}
