//! One question on its way to its answer.

use std::net::IpAddr;

use super::message::{Response, Writer};
use super::owner::{HOSTMASTER, NS, VERSION, service_owner};
use super::record::{Record, RecordBuilder};
use super::rrset::{RRset, Records};
use super::settings::Settings;
use super::table::Snapshot;
use super::{compile, full, rare};
use crate::catalog::{Instance, Staleness};
use crate::name::{Name, Zone, reverse_address};
use crate::service::{Addresses, RegistrySet};
use crate::wire::{ExtendedError, HEADER, OWNER, Query, rcode, rtype};

/// What became of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The response is written.
    Answered,
    /// There is nothing to say.
    Silent,
    /// The message is well-formed, its name lies outside the zones, and forwarding is on: somebody else is to be asked.
    Elsewhere,
}

/// A question, and what it is answered from.
pub(super) struct Asking<'a> {
    pub(super) writer: Writer<'a>,
    /// The serial of generation 0.
    pub(super) first_serial: u32,
    pub(super) snapshot: &'a Snapshot,
    pub(super) query: &'a Query<'a>,
}

const NOT_OURS: ExtendedError =
    ExtendedError { code: ExtendedError::NOT_AUTHORITATIVE, text: "not a zone served here, and forwarding is off" };
const NOT_INTERNET: ExtendedError = ExtendedError { code: ExtendedError::NOT_SUPPORTED, text: "class IN only" };
const NO_TRANSFER: ExtendedError = ExtendedError { code: ExtendedError::NOT_SUPPORTED, text: "no zone transfer" };
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

/// A SOA record (RFC 1035 section 3.3.13) whose names end with pointers to the zone's. Refresh, retry and expire are 1 hour, 10
/// minutes and 1 day: for secondaries, which there are none of. 0 stands where [`Asking::soa_at`] writes.
const SOA: &[u8; 50] = b"\0\0\0\x06\0\x01\0\0\0\0\0\x26\x02ns\0\0\x0ahostmaster\0\0\
    \0\0\0\0\0\0\x0e\x10\0\0\x02\x58\0\x01\x51\x80\0\0\0\0";
/// Where its numbers begin: serial, refresh, retry, expire, minimum.
const SOA_NUMBERS: usize = SOA.len() - 20;

impl<'a> Asking<'a> {
    pub(super) fn settings(&self) -> &'a Settings {
        self.writer.settings
    }

    /// Responds from the model.
    pub(super) fn respond(&self, out: &mut Vec<u8>) -> Outcome {
        let (query, settings) = (self.query, self.settings());
        let Ok((name, _)) = Name::from_wire(query.name()) else {
            self.put(&Response::code(rcode::FORMERR, None), out);
            return Outcome::Answered;
        };
        let refused = |error| Response::code(rcode::REFUSED, Some(error));
        if query.qclass != rtype::IN {
            self.put(&refused(NOT_INTERNET), out);
        } else if matches!(query.qtype, rtype::AXFR | rtype::IXFR) {
            self.put(&refused(NO_TRANSFER), out);
        } else if let Some((_, zone)) = settings.zones.find(&name) {
            self.in_zone(&name, zone, out);
        } else if reverse_address(&name).is_some_and(|address| self.reverse(address, out)) {
        } else if settings.forwarding {
            return Outcome::Elsewhere;
        } else {
            self.put(&refused(NOT_OURS), out);
        }
        Outcome::Answered
    }

    pub(super) fn put(&self, response: &Response<'_>, out: &mut Vec<u8>) {
        self.writer.put(response, self.query, out);
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
        self.in_full(name, zone, out);
    }

    /// Answers from the model, whatever form of the naming grammar the name has.
    fn in_full(&self, name: &Name, zone: &Zone, out: &mut Vec<u8>) {
        let settings = self.settings();
        let absence = self.stale_absence();
        let labels: Vec<&[u8]> = zone.in_front(name).collect();
        match full::resolve(self.snapshot, settings, &labels, |_| {}) {
            // A registry that was not read yet may know it. NXDOMAIN would be remembered by everything above us.
            full::Found::Absent | full::Found::Empty if !self.snapshot.condition.synced => {
                self.put(&Response::code(rcode::SERVFAIL, Some(NOT_READY)), out);
            }
            // Another served zone lies below (RFC 8020).
            full::Found::Absent if settings.zones.any_below(name.as_wire()) => self.no_data(zone, absence, out),
            full::Found::Absent => self.no_name(zone, out),
            full::Found::Empty => self.no_data(zone, absence, out),
            full::Found::Service(selection) => {
                let full::Selection { service, instances, holders, form } = &selection;
                let owner = instances.first().and_then(|first| service_owner(settings, service.base(), first.key.group()));
                let (mut builder, mut octets) = (RecordBuilder::default(), Vec::new());
                compile::record(settings, &self.snapshot.hosts, owner.as_deref(), &selection, &mut builder);
                builder.build(&mut octets);
                let record = Record::read(&octets);
                let srv = RRset::srv(&record, settings.ttl, owner.as_deref().unwrap_or_default(), settings.zones.first().name().as_wire());
                let rfc2782 = *form == full::Form::Rfc2782;
                let [a, aaaa] =
                    if rfc2782 { [RRset::EMPTY; 2] } else { [RRset::a(&record, settings.ttl), RRset::aaaa(&record, settings.ttl)] };
                // RFC 8482 section 4.1: one RRset of those there are.
                let any = [a, aaaa, srv].into_iter().find(|set| set.count > 0);
                let set = match self.query.qtype {
                    rtype::TXT => return self.put_held(&rare::txt(settings, instances), *holders, zone, out),
                    rtype::ANY if any.is_none() => return self.put_held(&rare::txt(settings, instances), *holders, zone, out),
                    rtype::A | rtype::AAAA if record.hosts_only() && !rfc2782 => return self.no_address(instances, zone, out),
                    rtype::A => a,
                    rtype::AAAA => aaaa,
                    rtype::SRV => srv,
                    rtype::ANY => any.unwrap_or(RRset::EMPTY),
                    _ => RRset::EMPTY,
                };
                if set.count > 0 {
                    return self.put(&Response::answer(&set, self.stale_answer(*holders)), out);
                }
                self.no_data(zone, absence, out);
            }
        }
    }

    /// Answers where all instances are known by host names only, and no address of one is known.
    fn no_address(&self, instances: &[Instance<'_>], zone: &Zone, out: &mut Vec<u8>) {
        let is_pending =
            |instance: &Instance<'_>| instance.host_name().is_some_and(|host| self.snapshot.hosts.get(host) == Some(&Addresses::Pending));
        if !self.settings().forwarding {
            self.no_data(zone, Some(HOSTS_ONLY), out);
        } else if instances.iter().any(is_pending) {
            // An absence would be remembered by everything above us.
            self.put(&Response::code(rcode::SERVFAIL, Some(HOSTS_PENDING)), out);
        } else {
            self.no_data(zone, Some(HOSTS_UNKNOWN), out);
        }
    }

    /// The extended error of an answer that these registries hold (RFC 8914 section 4.4): told when one of them may be out of
    /// date, whatever the others are.
    pub(super) fn stale_answer(&self, holders: RegistrySet) -> Option<ExtendedError> {
        stale(self.snapshot.condition.staleness_of(holders), ExtendedError::STALE_ANSWER)
    }

    /// The extended error of an absence, which any registry might end: told when any may be out of date.
    pub(super) fn stale_absence(&self) -> Option<ExtendedError> {
        stale(self.snapshot.condition.staleness(), ExtendedError::STALE_ANSWER)
    }

    /// Puts records that these registries hold, or says that there are none.
    fn put_held(&self, records: &Records, holders: RegistrySet, zone: &Zone, out: &mut Vec<u8>) {
        if records.is_empty() {
            return self.no_data(zone, self.stale_absence(), out);
        }
        self.put(&Response::answer(&RRset::of_records(records), self.stale_answer(holders)), out);
    }

    /// Puts records that svcdns knows of itself, or says that there are none: no registry makes them stale.
    fn put_own(&self, records: &Records, zone: &Zone, out: &mut Vec<u8>) {
        if records.is_empty() {
            return self.no_data(zone, None, out);
        }
        self.put(&Response::answer(&RRset::of_records(records), None), out);
    }

    pub(super) fn no_name(&self, zone: &Zone, out: &mut Vec<u8>) {
        let soa = self.soa_of(zone);
        self.put(
            &Response::negative(rcode::NXDOMAIN, &soa, stale(self.snapshot.condition.staleness(), ExtendedError::STALE_NXDOMAIN)),
            out,
        );
    }

    pub(super) fn no_data(&self, zone: &Zone, error: Option<ExtendedError>, out: &mut Vec<u8>) {
        let soa = self.soa_of(zone);
        self.put(&Response::negative(rcode::NOERROR, &soa, error), out);
    }

    /// The SOA record of a zone, for a question in it. The zone's name is a pointer to where it stands in the question (RFC
    /// 1035 section 4.1.4).
    fn soa_of(&self, zone: &Zone) -> [u8; SOA.len()] {
        let start = HEADER + self.query.name().len() - zone.name().as_wire().len();
        // A name has at most 255 octets, a pointer 14 bits.
        self.soa_at((0xC000 | u16::try_from(start).unwrap_or(0)).to_be_bytes())
    }

    /// The SOA record of a zone whose name this points at. Its TTL and MINIMUM are the TTL of negative answers (RFC 2308
    /// section 5).
    fn soa_at(&self, apex: [u8; 2]) -> [u8; SOA.len()] {
        let ttl = self.settings().negative_ttl.to_be_bytes();
        let mut soa = *SOA;
        soa[..2].copy_from_slice(&apex);
        soa[6..10].copy_from_slice(&ttl);
        soa[15..17].copy_from_slice(&apex);
        soa[28..30].copy_from_slice(&apex);
        soa[SOA_NUMBERS..][..4].copy_from_slice(&self.serial().to_be_bytes());
        soa[SOA_NUMBERS + 16..].copy_from_slice(&ttl);
        soa
    }

    /// The serial of the zones: grows by one with each publication of a changed table.
    fn serial(&self) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "serial numbers wrap (RFC 1982)")]
        self.first_serial.wrapping_add(self.snapshot.generation() as u32)
    }

    /// The zone itself: SOA and NS, known before any registry is.
    fn apex(&self, zone: &Zone, out: &mut Vec<u8>) {
        let settings = self.settings();
        let mut set = Records::default();
        match self.query.qtype {
            rtype::SOA | rtype::ANY => set.put(|out| out.extend_from_slice(&self.soa_at(OWNER))),
            rtype::NS => {
                let server = [NS, zone.name().as_wire()].concat();
                set.put(|out| rare::put_record(out, rtype::NS, settings.ttl, &server));
                if let Some(address) = settings.listen.first() {
                    set.put_glue_address(*address);
                }
            }
            _ => {}
        }
        self.put_own(&set, zone, out);
    }

    /// `ns.<zone>`: where we listen.
    fn name_server(&self, zone: &Zone, out: &mut Vec<u8>) {
        let settings = self.settings();
        let mut set = Records::default();
        for address in &settings.listen {
            let asked = match address {
                IpAddr::V4(_) => rtype::A,
                IpAddr::V6(_) => rtype::AAAA,
            };
            if matches!(self.query.qtype, qtype if qtype == asked || qtype == rtype::ANY) {
                set.put(|out| rare::put_address(out, settings.ttl, *address));
            }
        }
        self.put_own(&set, zone, out);
    }

    /// `dns-version.<zone>`: who answers here.
    fn version(&self, zone: &Zone, out: &mut Vec<u8>) {
        let mut set = Records::default();
        if matches!(self.query.qtype, rtype::TXT | rtype::ANY) {
            let mut data = Vec::new();
            rare::put_string(&mut data, concat!("svcdns ", env!("CARGO_PKG_VERSION")));
            set.put(|out| rare::put_record(out, rtype::TXT, self.settings().ttl, &data));
        }
        self.put_own(&set, zone, out);
    }

    /// Answers for the reverse name of an address, if it is registered; it is then an apex of its own.
    pub(super) fn reverse(&self, address: IpAddr, out: &mut Vec<u8>) -> bool {
        let settings = self.settings();
        // Every machine has its own loopback: no registry can name it.
        if address.is_loopback() {
            return false;
        }
        let set = rare::ptr(settings, address, self.snapshot.at_address(address));
        if set.is_empty() {
            return false;
        }
        let holders = self.snapshot.at_address(address).flat_map(|service| service.instances());
        let holders = holders.filter(|instance| instance.is_behind_answers() && instance.endpoint.host.address() == Some(address));
        let holders = holders.map(|instance| instance.key.registry()).collect();
        if matches!(self.query.qtype, rtype::PTR | rtype::ANY) {
            // The instance's name stands first: programs take the first.
            let first = Self { writer: Writer { draw: 0, ..self.writer }, ..*self };
            first.put(&Response::answer(&RRset::of_records(&set), self.stale_answer(holders)), out);
        } else {
            let (apex, numbers) = (settings.zones.first().name().as_wire(), &self.soa_at(OWNER)[SOA_NUMBERS..]);
            let data = [NS, apex, HOSTMASTER, apex, numbers].concat();
            let mut soa = Vec::new();
            rare::put_record(&mut soa, rtype::SOA, settings.negative_ttl, &data);
            if self.query.qtype == rtype::SOA {
                let mut apex = Records::default();
                apex.put(|out| out.extend_from_slice(&soa));
                self.put_held(&apex, holders, settings.zones.first(), out);
            } else {
                self.put(&Response::negative(rcode::NOERROR, &soa, self.stale_absence()), out);
            }
        }
        true
    }
}

/// The extended error of answers from what may be out of date.
fn stale(staleness: Option<Staleness>, code: u16) -> Option<ExtendedError> {
    let text = match staleness? {
        Staleness::Disconnected => AWAY,
        Staleness::Held => HELD,
    };
    Some(ExtendedError { code, text })
}
