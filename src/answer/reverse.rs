//! The reverse tree: names below `in-addr.arpa.` and `ip6.arpa.`.
//!
//! Coverage of RFCs: PTR records of registered addresses, RFC 1035 section 3.5; existence of the
//! names above them, RFC 8020; locally served zones of loopback and private addresses, RFC 6303
//! and RFC 7793.
//!
//! An address may be registered at any time. Clients must therefore not cache its absence for
//! longer than `negative-ttl`, even if an upstream's TTL is longer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use super::answerer::Answerer;
use super::full::{self, NameLookup};
use super::holders::HolderSets;
use super::message::{ResponseContent, ResponseWriter};
use super::owner::{HOSTMASTER_LABEL, NS_LABEL, owner_labels, owner_of};
use super::rare;
use super::respond::{NOT_READY, QueryContext, SOA_NUMBERS_OFFSET};
use super::rrset::{ComposedRecords, RRset, record_head};
use super::tally::ResponseSource;
use crate::catalog::Instance;
use crate::name::{
    Name, ReverseNetwork, ReverseScope, local_reverse_zone, may_be_reverse, reverse_name,
};
use crate::service::RegistrySet;
use crate::wire::{
    ExtendedError, OWNER_POINTER, Query, Section, flags, put_u32, question_end, question_pointer,
    rcode, records, rtype, u16_at,
};

/// TTL of the records in locally served zones, in seconds (RFC 6303 section 3).
const LOCAL_TTL_SECONDS: u32 = 10_800;

/// The reverse names whose PTR record is `localhost`.
static LOOPBACK_REVERSE_NAMES: LazyLock<[Name; 2]> = LazyLock::new(|| {
    [reverse_name(Ipv4Addr::LOCALHOST.into()), reverse_name(Ipv6Addr::LOCALHOST.into())]
});

/// `localhost.` in wire form.
const LOCALHOST: &[u8] = b"\x09localhost\0";

/// `nobody.invalid.` in wire form, the SOA record's mailbox (RFC 6303 section 3).
const LOCAL_SOA_RNAME: &[u8] = b"\x06nobody\x07invalid\0";

impl QueryContext<'_> {
    /// Answers for the reverse name of an address.
    ///
    /// Returns `false` if no instance has the address. If one has, the reverse name is a zone apex
    /// of its own.
    pub(super) fn answer_reverse(&self, address: IpAddr, out: &mut Vec<u8>) -> bool {
        let settings = self.settings();
        // Loopback addresses differ from machine to machine, so a registry cannot name them; the
        // port bridge can, for clients on this machine.
        if address.is_loopback() {
            return self.answer_bridge_reverse(address, out);
        }
        let set = rare::ptr(settings, address, self.snapshot.services_at(address));
        if set.is_empty() {
            return false;
        }
        match self.query.qtype {
            rtype::PTR | rtype::ANY => {
                // The order is fixed: programs take the first name, which should be the instance's.
                let first = Self { writer: ResponseWriter { draw: 0, ..self.writer }, ..*self };
                let holders = self.holders_at(address);
                let stale = self.stale_answer_error(holders.view());
                first.write(&ResponseContent::answer(&RRset::composed(&set), stale), out);
                self.note_holders(holders.view());
            }
            rtype::SOA => {
                let mut apex = ComposedRecords::default();
                apex.put(|out| out.extend_from_slice(&self.soa_at_question()));
                self.write_records(
                    &apex,
                    self.holders_at(address).view(),
                    settings.zones.first(),
                    out,
                );
            }
            _ => self.write_negative(rcode::NOERROR, &self.soa_at_question(), out),
        }
        true
    }

    /// Answers for the reverse name of an address of the port bridge.
    ///
    /// Returns `false` if the bridge gave the address to no name, or the client is elsewhere.
    fn answer_bridge_reverse(&self, address: IpAddr, out: &mut Vec<u8>) -> bool {
        let IpAddr::V4(address) = address else { return false };
        let name = self.snapshot.bridged.name(address).filter(|_| self.writer.bridged);
        let Some(owner) = name.and_then(owner_of) else { return false };
        let (settings, mut set) = (self.settings(), ComposedRecords::default());
        let zone = settings.zones.first();
        match self.query.qtype {
            rtype::PTR | rtype::ANY => {
                let target = [&owner, zone.name().as_wire()].concat();
                set.put(|out| rare::put_record(out, rtype::PTR, settings.ttl, &target));
            }
            rtype::SOA => set.put(|out| out.extend_from_slice(&self.soa_at_question())),
            _ => {
                self.write_negative(rcode::NOERROR, &self.soa_at_question(), out);
                return true;
            }
        }
        let stale = self.stale_answer_error(self.holders_of_owner(&owner).view());
        self.write(&ResponseContent::answer(&RRset::composed(&set), stale), out);
        true
    }

    /// Returns the registries behind a name, in wire form without the zone.
    fn holders_of_owner(&self, owner: &[u8]) -> HolderSets {
        let labels: Vec<&[u8]> = owner_labels(owner).collect();
        match full::resolve(self.snapshot, self.settings(), &labels, |_| {}) {
            NameLookup::Selection(selection) => selection.holders,
            NameLookup::NoData | NameLookup::NxDomain => HolderSets::default(),
        }
    }

    /// Returns the registries behind each name of an address.
    ///
    /// A service has a name in each deployment and namespace in which it serves the address.
    fn holders_at(&self, address: IpAddr) -> HolderSets {
        let mut sets: Vec<RegistrySet> = Vec::new();
        for service in self.snapshot.services_at(address) {
            let instances = service.instances().filter(|instance| instance.is_at(address));
            let instances: Vec<_> = instances.collect();
            for scope in instances.chunk_by(|a, b| a.key.scope() == b.key.scope()) {
                if scope.iter().any(Instance::is_selectable) {
                    sets.push(scope.iter().map(|instance| instance.key.registry()).collect());
                }
            }
        }
        sets.into_iter().collect()
    }

    /// Answers for a reverse name without a registered address, without forwarding.
    ///
    /// Refuses a name with this error if it is neither locally served nor above a registered
    /// address.
    pub(super) fn answer_unregistered(
        &self,
        name: &Name,
        network: ReverseNetwork,
        error: ExtendedError<'_>,
        out: &mut Vec<u8>,
    ) {
        let zone = local_reverse_zone(name).map(|(offset, scope)| LocalZone { offset, scope });
        if let Some(zone) = zone
            && let Some(records) = self.local_records(name, zone)
        {
            self.write(&ResponseContent::answer(&RRset::composed(&records), None), out);
            return self.source.set(ResponseSource::Local);
        }
        let soa = match zone {
            Some(zone) => self.local_soa(zone),
            None => self.soa_at_question(),
        };
        let is_loopback = zone.is_some_and(|zone| zone.scope == ReverseScope::Loopback);
        let exists = if is_loopback {
            LOOPBACK_REVERSE_NAMES.iter().any(|known| known.ends_with(name))
                || self.writer.bridged && self.has_bridge_addresses_below(network)
        } else {
            network.addresses_below().is_some_and(|below| self.snapshot.has_addresses_in(&below))
        };
        if exists || zone.is_some_and(|zone| zone.offset == 0) {
            self.write_negative(rcode::NOERROR, &soa, out);
        } else if is_loopback {
            self.write(&ResponseContent::negative(rcode::NXDOMAIN, &soa, None), out);
            self.source.set(ResponseSource::Local);
        } else if !self.snapshot.registry_status.synced {
            // A registry not yet read may have the address, and resolvers would cache NXDOMAIN.
            self.write(&ResponseContent::code(rcode::SERVFAIL, Some(NOT_READY)), out);
        } else if zone.is_some() {
            self.write_negative(rcode::NXDOMAIN, &soa, out);
        } else {
            self.write(&ResponseContent::code(rcode::REFUSED, Some(error)), out);
        }
    }

    /// Returns whether the port bridge gave out an address in this network.
    fn has_bridge_addresses_below(&self, network: ReverseNetwork) -> bool {
        let below = network.addresses_below();
        below.is_some_and(|below| self.snapshot.bridged.has_address_in(&below))
    }

    /// Writes a negative response, marked as stale if any registry may be out of date.
    fn write_negative(&self, code: u16, soa: &[u8], out: &mut Vec<u8>) {
        let stale = if code == rcode::NXDOMAIN {
            self.stale_nxdomain_error()
        } else {
            self.stale_negative_error()
        };
        self.write(&ResponseContent::negative(code, soa, stale), out);
    }

    /// Returns the records of a locally served zone that answer the query, if any.
    fn local_records(&self, name: &Name, zone: LocalZone) -> Option<ComposedRecords> {
        let mut set = ComposedRecords::default();
        match self.query.qtype {
            rtype::SOA if zone.offset == 0 => {
                set.put(|out| out.extend_from_slice(&self.local_soa(zone)));
            }
            rtype::NS if zone.offset == 0 => {
                set.put(|out| {
                    rare::put_record(out, rtype::NS, LOCAL_TTL_SECONDS, &OWNER_POINTER);
                });
            }
            rtype::PTR | rtype::ANY
                if zone.scope == ReverseScope::Loopback
                    && LOOPBACK_REVERSE_NAMES.contains(name) =>
            {
                set.put(|out| rare::put_record(out, rtype::PTR, LOCAL_TTL_SECONDS, LOCALHOST));
            }
            _ => return None,
        }
        Some(set)
    }

    /// Returns the SOA record of a locally served zone (RFC 6303 section 3).
    ///
    /// TTL and MINIMUM are the TTL of negative answers (RFC 2308 section 5).
    fn local_soa(&self, zone: LocalZone) -> Vec<u8> {
        let apex = question_pointer(zone.offset);
        let mut data = [&apex, LOCAL_SOA_RNAME].concat();
        let ttl = self.settings().negative_ttl;
        for number in [1, 3600, 1200, 604_800, ttl] {
            put_u32(&mut data, number);
        }
        let mut soa = record_head(apex, rtype::SOA, ttl, data.len()).to_vec();
        soa.extend_from_slice(&data);
        soa
    }

    /// Returns an SOA record whose owner is the name in the question section.
    ///
    /// The name server is that of the first served zone.
    fn soa_at_question(&self) -> Vec<u8> {
        let settings = self.settings();
        let zone = settings.zones.first().name().as_wire();
        let numbers = &self.soa(OWNER_POINTER)[SOA_NUMBERS_OFFSET..];
        let data = [NS_LABEL, zone, HOSTMASTER_LABEL, zone, numbers].concat();
        let mut soa = Vec::new();
        rare::put_record(&mut soa, rtype::SOA, settings.negative_ttl, &data);
        soa
    }
}

/// A locally served reverse zone that contains the name of a query.
#[derive(Clone, Copy, Debug)]
struct LocalZone {
    /// Offset of the zone in the name's wire form.
    offset: usize,
    scope: ReverseScope,
}

impl Answerer {
    /// Corrects an upstream's negative response to a query for a reverse name in place.
    ///
    /// A name above a registered address exists (RFC 8020), so NXDOMAIN becomes NODATA. TTLs are
    /// limited to `negative-ttl` in private address space, near a registered address (in the same
    /// /24, or /64 for IPv6), and until all registries have been read. Other responses are not
    /// changed.
    pub fn correct_forwarded(&self, query: &Query<'_>, response: &mut [u8]) {
        if may_be_reverse(query.name())
            && let Ok((name, _)) = Name::from_wire(query.name())
            && let Some(network) = ReverseNetwork::of(&name)
        {
            self.correct_reverse(&name, network, query.qtype, response);
        }
    }

    /// Corrects the response to a query for the reverse name of this network.
    fn correct_reverse(
        &self,
        name: &Name,
        network: ReverseNetwork,
        qtype: u16,
        response: &mut [u8],
    ) {
        if !is_negative(qtype, response) {
            return;
        }
        let snapshot = self.snapshot.load();
        let exists =
            network.addresses_below().is_some_and(|below| snapshot.has_addresses_in(&below));
        if exists {
            turn_into_nodata(response);
        }
        let is_private =
            || local_reverse_zone(name).is_some_and(|(_, scope)| scope == ReverseScope::Private);
        if exists
            || !snapshot.registry_status.synced
            || is_private()
            || snapshot.has_addresses_in(&network.neighbourhood().addresses())
        {
            limit_ttls(snapshot.settings().negative_ttl, response);
        }
    }
}

/// Returns whether the response is NXDOMAIN or NODATA (RFC 2308 section 2).
fn is_negative(qtype: u16, response: &[u8]) -> bool {
    let code = u16_at(response, 2).unwrap_or_default() & 0xF;
    let Some(end) = question_end(response) else { return false };
    let mut answers = records(response, end)
        .map_while(Result::ok)
        .take_while(|record| record.section == Section::Answer);
    code == rcode::NXDOMAIN
        || code == rcode::NOERROR
            && answers.all(|answer| answer.rtype != qtype && qtype != rtype::ANY)
}

/// Turns NXDOMAIN for the name in the question section into NODATA.
///
/// NXDOMAIN after a CNAME record is about another name.
fn turn_into_nodata(response: &mut [u8]) {
    let has_answers = u16_at(response, 6) != Some(0);
    let field = u16_at(response, 2).unwrap_or_default();
    if field & 0xF == rcode::NXDOMAIN
        && !has_answers
        && let Some(bytes) = response.get_mut(2..4)
    {
        // AD would claim that an upstream has validated this response.
        let changed = field & !(0xF | flags::AD) | rcode::NOERROR;
        bytes.copy_from_slice(&changed.to_be_bytes());
    }
}

/// Lowers the TTLs of all records to `max`, in seconds.
fn limit_ttls(max: u32, response: &mut [u8]) {
    let Some(end) = question_end(response) else { return };
    let higher: Vec<usize> = records(response, end)
        .map_while(Result::ok)
        .filter(|record| !record.is_opt() && record.ttl > max)
        .map(|record| record.ttl_at())
        .collect();
    for at in higher {
        if let Some(ttl) = response.get_mut(at..at + 4) {
            ttl.copy_from_slice(&max.to_be_bytes());
        }
    }
}
