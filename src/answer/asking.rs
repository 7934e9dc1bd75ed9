//! One question on its way to its answer.

use std::net::IpAddr;

use super::message::Response;
use super::record::{RRset, Record, RecordBuilder, SetBuilder};
use super::table::Snapshot;
use super::{Answerer, Counters, compile, full, hosts};
use crate::catalog::{Condition, Instance};
use crate::name::{Name, Zone};
use crate::service::Addresses;
use crate::wire::{ExtendedError, HEADER, OWNER, Query, Transport, put_u32, rcode, rtype};

/// A question in class IN, and what it is answered from.
pub(super) struct Asking<'a> {
    pub(super) answerer: &'a Answerer,
    pub(super) counters: &'a Counters,
    pub(super) condition: &'a Condition,
    pub(super) snapshot: &'a Snapshot,
    pub(super) query: &'a Query<'a>,
    pub(super) transport: Transport,
    pub(super) draw: u64,
}

/// Before every registry was read, for what is not known.
const NOT_READY: ExtendedError = ExtendedError { code: ExtendedError::NOT_READY, text: "a registry has not been read yet" };
/// What a registry said before it went away.
const AWAY: &str = "registry away, last known data";
/// What a registry no longer says, and is not believed to have lost.
const HELD: &str = "removals held back, see removal-grace";
/// No instance has an address of its own, and those of their host names are not looked up.
const HOSTS_ONLY: ExtendedError = ExtendedError { code: ExtendedError::OTHER, text: "registered by host name only, and forwarding is off" };
/// Or they are being looked up.
const HOSTS_PENDING: ExtendedError =
    ExtendedError { code: ExtendedError::NETWORK_ERROR, text: "registered by host name only, which is being looked up" };
/// Or there are none to be found.
const HOSTS_UNKNOWN: ExtendedError =
    ExtendedError { code: ExtendedError::OTHER, text: "registered by host name only, and no address of it can be found" };

/// The labels of the name server and of the version, in front of a zone.
const NS: &[u8] = b"\x02ns";
const VERSION: &[u8] = b"\x0bdns-version";

impl Asking<'_> {
    pub(super) fn put(&self, response: &Response<'_>, out: &mut Vec<u8>) {
        self.answerer.put(response, self.query, self.transport, self.draw, self.counters, out);
    }

    /// Answers for a name in a served zone.
    pub(super) fn in_zone(&self, name: &Name, zone: &Zone, out: &mut Vec<u8>) {
        let owner = &name.as_wire()[..name.as_wire().len() - zone.name().as_wire().len()];
        match owner {
            b"" => return self.apex(zone, out),
            NS => return self.name_server(zone, out),
            VERSION => return self.version(zone, out),
            _ => {}
        }
        let error = stale(self.condition, ExtendedError::STALE_ANSWER);
        if let Some(record) = self.ready(owner) {
            return self.put_from_record(&record, false, zone, error, out);
        }
        let settings = &self.answerer.settings;
        let labels: Vec<&[u8]> = zone.in_front(name).collect();
        match full::resolve(self.snapshot, settings, &labels, |_| {}) {
            // A registry that was not read yet may know it. NXDOMAIN would be remembered by everything above us.
            full::Found::Absent | full::Found::Empty if !self.condition.synced => {
                self.put(&Response::code(rcode::SERVFAIL, Some(NOT_READY)), out);
            }
            // Another served zone lies below (RFC 8020).
            full::Found::Absent if settings.zones.iter().any(|zone| zone.name().ends_with(name)) => self.no_data(zone, error, out),
            full::Found::Absent => {
                let apex = self.apex_of(zone);
                let soa = self.soa(&apex, &apex);
                self.put(&Response::negative(rcode::NXDOMAIN, &soa, stale(self.condition, ExtendedError::STALE_NXDOMAIN)), out);
            }
            full::Found::Empty => self.no_data(zone, error, out),
            full::Found::Service(selection) => {
                let (mut builder, mut octets) = (RecordBuilder::default(), Vec::new());
                compile::record(settings, &self.snapshot.hosts, selection.service, &selection.instances, &mut builder);
                builder.build(&mut octets);
                let record = Record::read(&octets, settings.ttl);
                let rfc2782 = selection.form == full::Form::Rfc2782;
                let nothing_else = record.srv().count == 0 && (rfc2782 || record.a().count + record.aaaa().count == 0);
                if self.query.qtype == rtype::TXT || self.query.qtype == rtype::ANY && nothing_else {
                    return self.put_set(compile::txt(settings, &selection.instances), zone, error, out);
                }
                if matches!(self.query.qtype, rtype::A | rtype::AAAA) && record.hosts_only() && !rfc2782 {
                    return self.no_address(&selection.instances, zone, out);
                }
                self.put_from_record(&record, rfc2782, zone, error, out);
            }
        }
    }

    /// Answers where all instances are known by host names only, and no address of one is known.
    fn no_address(&self, instances: &[Instance<'_>], zone: &Zone, out: &mut Vec<u8>) {
        let is_pending = |instance| hosts::host_of(instance).is_some_and(|host| self.snapshot.hosts.get(host) == Some(&Addresses::Pending));
        if !self.answerer.settings.forwarding {
            self.no_data(zone, Some(HOSTS_ONLY), out);
        } else if instances.iter().any(is_pending) {
            // An absence would be remembered by everything above us.
            self.put(&Response::code(rcode::SERVFAIL, Some(HOSTS_PENDING)), out);
        } else {
            self.no_data(zone, Some(HOSTS_UNKNOWN), out);
        }
    }

    /// The ready-made record, where it has what is asked for.
    fn ready(&self, owner: &[u8]) -> Option<Record<'_>> {
        let record = Record::read(self.snapshot.record(owner)?, self.answerer.settings.ttl);
        match self.query.qtype {
            rtype::TXT => None,
            // An instance's own record has its address, which is an RRset to give.
            rtype::ANY if record.a().count + record.aaaa().count + record.srv().count == 0 => None,
            rtype::SRV if record.addresses_only() => None,
            // Why there is none stands with the instances.
            rtype::A | rtype::AAAA if record.hosts_only() => None,
            _ => Some(record),
        }
    }

    fn put_from_record(&self, record: &Record<'_>, rfc2782: bool, zone: &Zone, error: Option<ExtendedError>, out: &mut Vec<u8>) {
        let (a, aaaa) = if rfc2782 { (RRset::EMPTY, RRset::EMPTY) } else { (record.a(), record.aaaa()) };
        let set = match self.query.qtype {
            rtype::A => a,
            rtype::AAAA => aaaa,
            rtype::SRV => record.srv(),
            // RFC 8482 section 4.1: one RRset of those there are.
            rtype::ANY => [a, aaaa, record.srv()].into_iter().find(|set| set.count > 0).unwrap_or(RRset::EMPTY),
            _ => RRset::EMPTY,
        };
        if set.count > 0 {
            return self.put(&Response::answer(set, error), out);
        }
        self.no_data(zone, error, out);
    }

    fn put_set(&self, set: SetBuilder, zone: &Zone, error: Option<ExtendedError>, out: &mut Vec<u8>) {
        if set.is_empty() {
            return self.no_data(zone, error, out);
        }
        let (octets, count) = set.build();
        self.put(&Response::answer(RRset::of_units(&octets, count), error), out);
    }

    fn no_data(&self, zone: &Zone, error: Option<ExtendedError>, out: &mut Vec<u8>) {
        let apex = self.apex_of(zone);
        let soa = self.soa(&apex, &apex);
        self.put(&Response::negative(rcode::NOERROR, &soa, error), out);
    }

    /// The zone's name, for a question in it: a pointer to where it stands in the question (RFC 1035 section 4.1.4).
    fn apex_of(&self, zone: &Zone) -> [u8; 2] {
        let start = HEADER + self.query.name().len() - zone.name().as_wire().len();
        // A name has at most 255 octets, a pointer 14 bits.
        (0xC000 | u16::try_from(start).unwrap_or(0)).to_be_bytes()
    }

    /// The zone itself: SOA and NS, known before any registry is.
    fn apex(&self, zone: &Zone, out: &mut Vec<u8>) {
        let Self { answerer: Answerer { settings, .. }, .. } = self;
        let mut set = SetBuilder::default();
        match self.query.qtype {
            rtype::SOA | rtype::ANY => set.put(1, |out| out.extend_from_slice(&self.soa(&OWNER, &OWNER))),
            rtype::NS => {
                let server = [NS, zone.name().as_wire()].concat();
                set.put(1, |out| compile::put_record(out, &OWNER, rtype::NS, settings.ttl, &server));
                if let Some(address) = settings.listen.first() {
                    set.put_glue(*address);
                }
            }
            _ => {}
        }
        self.put_set(set, zone, None, out);
    }

    /// `ns.<zone>`: where we listen.
    fn name_server(&self, zone: &Zone, out: &mut Vec<u8>) {
        let Self { answerer: Answerer { settings, .. }, .. } = self;
        let mut set = SetBuilder::default();
        for address in &settings.listen {
            let asked = match address {
                IpAddr::V4(_) => rtype::A,
                IpAddr::V6(_) => rtype::AAAA,
            };
            if matches!(self.query.qtype, qtype if qtype == asked || qtype == rtype::ANY) {
                set.put(1, |out| compile::address_record(out, &OWNER, settings.ttl, *address));
            }
        }
        self.put_set(set, zone, None, out);
    }

    /// `dns-version.<zone>`: who answers here.
    fn version(&self, zone: &Zone, out: &mut Vec<u8>) {
        let mut set = SetBuilder::default();
        if matches!(self.query.qtype, rtype::TXT | rtype::ANY) {
            let mut data = Vec::new();
            compile::put_string(&mut data, concat!("svcdns ", env!("CARGO_PKG_VERSION")));
            set.put(1, |out| compile::put_record(out, &OWNER, rtype::TXT, self.answerer.settings.ttl, &data));
        }
        self.put_set(set, zone, None, out);
    }

    /// Answers for the reverse name of an address, if it is registered; it is then an apex of its own.
    pub(super) fn reverse(&self, address: IpAddr, out: &mut Vec<u8>) -> bool {
        let settings = &self.answerer.settings;
        // Every machine has its own loopback: no registry can name it.
        if address.is_loopback() {
            return false;
        }
        let set = compile::ptr(settings, address, self.snapshot.at_address(address));
        if set.is_empty() {
            return false;
        }
        let error = stale(self.condition, ExtendedError::STALE_ANSWER);
        if matches!(self.query.qtype, rtype::PTR | rtype::ANY) {
            let (octets, count) = set.build();
            // The instance's name stands first: programs take the first.
            Self { draw: 0, ..*self }.put(&Response::answer(RRset::of_units(&octets, count), error), out);
        } else {
            let soa = self.soa(&OWNER, settings.zones.first().name().as_wire());
            if self.query.qtype == rtype::SOA {
                let mut apex = SetBuilder::default();
                apex.put(1, |out| out.extend_from_slice(&soa));
                self.put_set(apex, settings.zones.first(), error, out);
            } else {
                self.put(&Response::negative(rcode::NOERROR, &soa, error), out);
            }
        }
        true
    }

    /// A SOA record (RFC 1035 section 3.3.13); its TTL and MINIMUM are the TTL of negative answers (RFC 2308 section 5).
    /// `apex` is the zone's name, or a pointer to it.
    fn soa(&self, owner: &[u8], apex: &[u8]) -> Vec<u8> {
        let mut data = Vec::with_capacity(2 * apex.len() + 36);
        data.extend_from_slice(NS);
        data.extend_from_slice(apex);
        data.extend_from_slice(b"\x0ahostmaster");
        data.extend_from_slice(apex);
        put_u32(&mut data, self.answerer.serial(self.snapshot));
        let negative_ttl = self.answerer.settings.negative_ttl;
        // Refresh, retry and expire are for secondaries, which there are none of.
        for seconds in [3600, 600, 86400, negative_ttl] {
            put_u32(&mut data, seconds);
        }
        let mut record = Vec::with_capacity(owner.len() + 10 + data.len());
        compile::put_record(&mut record, owner, rtype::SOA, negative_ttl, &data);
        record
    }
}

/// The extended error of answers from what may be out of date.
fn stale(condition: &Condition, code: u16) -> Option<ExtendedError> {
    let text = if condition.stale { AWAY } else { HELD };
    (condition.stale || condition.holding > 0).then_some(ExtendedError { code, text })
}
