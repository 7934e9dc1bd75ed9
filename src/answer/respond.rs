//! The full path from a query to its response.

use std::cell::Cell;
use std::net::IpAddr;

use super::holders::Holders;
use super::message::{ResponseContent, ResponseWriter};
use super::node::{Node, NodeBuilder};
use super::owner::{NS_LABEL, VERSION_LABEL, service_owner};
use super::rrset::{ComposedRecords, RRset};
use super::settings::Settings;
use super::table::Snapshot;
use super::tally::ResponseSource;
use super::{bridging, compile, full, rare};
use crate::catalog::{Instance, Staleness};
use crate::name::{Name, ReverseNetwork, Zone, reverse_address};
use crate::service::Addresses;
use crate::wire::{ExtendedError, OWNER_POINTER, Query, question_pointer, rcode, rtype};

/// Next action of the caller with a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerOutcome {
    /// Send the response that was written; its content comes from this source.
    Answered(ResponseSource),
    /// Send nothing.
    Silent,
    /// Forward the query: its name is outside the served zones, and forwarding is on.
    Forward,
    /// Follow the name, an alias (CNAME), with [`super::Answerer::write_alias`].
    ///
    /// Its target is outside the served zones, and forwarding is on.
    Alias,
}

/// A query and everything that its response depends on.
pub(super) struct QueryContext<'a> {
    pub(super) writer: ResponseWriter<'a>,
    /// SOA serial of generation 0.
    pub(super) first_serial: u32,
    pub(super) snapshot: &'a Snapshot,
    pub(super) query: &'a Query<'a>,
    /// Where the content of the response that was written last comes from.
    pub(super) source: &'a Cell<ResponseSource>,
}

/// EDE for names outside the zones, with forwarding off.
const NOT_AUTHORITATIVE: ExtendedError<'static> = ExtendedError {
    code: ExtendedError::NOT_AUTHORITATIVE,
    text: "not a zone served here, and forwarding is off",
};
/// EDE for classes other than IN.
const UNSUPPORTED_CLASS: ExtendedError<'static> =
    ExtendedError { code: ExtendedError::NOT_SUPPORTED, text: "class IN only" };
/// EDE for zone transfers.
const UNSUPPORTED_TRANSFER: ExtendedError<'static> =
    ExtendedError { code: ExtendedError::NOT_SUPPORTED, text: "no zone transfer" };
/// EDE for names not found while a registry has not been read yet.
pub(super) const NOT_READY: ExtendedError<'static> =
    ExtendedError { code: ExtendedError::NOT_READY, text: "a registry has not been read yet" };
/// EDE text for data of a disconnected registry.
const STALE_REGISTRY_TEXT: &str = "registry unreachable, last known data";
/// EDE for a service of host names only, with forwarding off.
const HOSTS_NOT_RESOLVED: ExtendedError<'static> = ExtendedError {
    code: ExtendedError::OTHER,
    text: "registered by host name only, and forwarding is off",
};
/// EDE for a service of host names only, while their first lookup is in progress.
const HOSTS_PENDING: ExtendedError<'static> = ExtendedError {
    code: ExtendedError::NETWORK_ERROR,
    text: "registered by host name only, which is being looked up",
};
/// EDE for a service of host names only, if none of them has an address.
const HOSTS_WITHOUT_ADDRESS: ExtendedError<'static> = ExtendedError {
    code: ExtendedError::OTHER,
    text: "registered by host name only, and that name has no known address",
};

/// SOA record whose names end in pointers to the zone's name.
///
/// The format is that of RFC 1035 section 3.3.13. Refresh, retry and expire are 1 hour, 10 minutes
/// and 1 day; no secondary uses them. [`QueryContext::soa`] replaces some of the zeros.
const SOA_TEMPLATE: &[u8; 50] = b"\0\0\0\x06\0\x01\0\0\0\0\0\x26\x02ns\0\0\x0ahostmaster\0\0\
    \0\0\0\0\0\0\x0e\x10\0\0\x02\x58\0\x01\x51\x80\0\0\0\0";
/// Offset of the SOA's numbers: serial, refresh, retry, expire, minimum.
pub(super) const SOA_NUMBERS_OFFSET: usize = SOA_TEMPLATE.len() - 20;

impl<'a> QueryContext<'a> {
    /// Returns the settings.
    pub(super) fn settings(&self) -> &'a Settings {
        self.writer.settings
    }

    /// Writes the response to the query from the service model.
    pub(super) fn respond(&self, out: &mut Vec<u8>) -> AnswerOutcome {
        let (query, settings) = (self.query, self.settings());
        let Ok((name, _)) = Name::from_wire(query.name()) else {
            self.write(&ResponseContent::code(rcode::FORMERR, None), out);
            return self.answered();
        };
        let refused = |error| ResponseContent::code(rcode::REFUSED, Some(error));
        if query.qclass != rtype::IN {
            self.write(&refused(UNSUPPORTED_CLASS), out);
        } else if matches!(query.qtype, rtype::AXFR | rtype::IXFR) {
            self.write(&refused(UNSUPPORTED_TRANSFER), out);
        } else if let Some((_, zone)) = settings.zones.find(&name) {
            return self.answer_in_zone(&name, zone, out);
        } else if reverse_address(&name).is_some_and(|address| self.answer_reverse(address, out)) {
        } else if settings.forwarding {
            return AnswerOutcome::Forward;
        } else {
            self.answer_outside(&name, NOT_AUTHORITATIVE, out);
        }
        self.answered()
    }

    /// Answers a query for a name outside the zones without forwarding it.
    ///
    /// Refuses a name outside the reverse tree with this error.
    pub(super) fn answer_outside(&self, name: &Name, error: ExtendedError<'_>, out: &mut Vec<u8>) {
        match ReverseNetwork::of(name) {
            Some(network) => self.answer_unregistered(name, network, error, out),
            None => self.write(&ResponseContent::code(rcode::REFUSED, Some(error)), out),
        }
    }

    /// Writes the response to this query.
    pub(super) fn write(&self, response: &ResponseContent<'_>, out: &mut Vec<u8>) {
        self.source.set(response.source);
        self.writer.write(response, self.query, out);
    }

    /// Returns the outcome after the response was written.
    pub(super) fn answered(&self) -> AnswerOutcome {
        AnswerOutcome::Answered(self.source.get())
    }

    /// Notes which registries hold the instances of the response that was written.
    pub(super) fn note_holders(&self, holders: Holders<'_>) {
        let statics = self.settings().static_registries;
        if !statics.is_empty()
            && self.source.get() == ResponseSource::Registry
            && !holders.is_empty()
            && holders.are_within(statics)
        {
            self.source.set(ResponseSource::Static);
        }
    }

    /// Answers a query for a name in a served zone.
    fn answer_in_zone(&self, name: &Name, zone: &Zone, out: &mut Vec<u8>) -> AnswerOutcome {
        let owner = zone.labels_before(name);
        match owner {
            b"" => self.answer_apex(zone, out),
            NS_LABEL => self.answer_name_server(zone, out),
            VERSION_LABEL => self.answer_version(zone, out),
            _ => match self.settings().aliases.outside(owner) {
                Some(target) => return self.answer_alias(target.as_wire(), out),
                None => self.answer_from_model(name, zone, out),
            },
        }
        self.answered()
    }

    /// Answers with an alias of an outside name, or leaves it to the caller to follow it.
    ///
    /// A CNAME or ANY query asks for the alias itself (RFC 1034 section 3.6.2).
    pub(super) fn answer_alias(&self, target: &[u8], out: &mut Vec<u8>) -> AnswerOutcome {
        if self.settings().forwarding && !matches!(self.query.qtype, rtype::CNAME | rtype::ANY) {
            return AnswerOutcome::Alias;
        }
        self.write_alias(target, out);
        self.answered()
    }

    /// Writes the CNAME record of an alias. The configuration provides it, so it is never stale.
    pub(super) fn write_alias(&self, target: &[u8], out: &mut Vec<u8>) {
        let set = RRset::cname(target, self.settings().ttl);
        self.write(&ResponseContent::answer(&set, None), out);
        self.source.set(ResponseSource::Local);
    }

    /// Answers from the service model, for every form of the naming grammar.
    fn answer_from_model(&self, name: &Name, zone: &Zone, out: &mut Vec<u8>) {
        let settings = self.settings();
        let stale = self.stale_negative_error();
        let labels: Vec<&[u8]> = zone.relative_labels(name).collect();
        match full::resolve(self.snapshot, settings, &labels, |_| {}) {
            // A registry not yet read may have the name, and resolvers would cache NXDOMAIN.
            full::NameLookup::NxDomain | full::NameLookup::NoData
                if !self.snapshot.registry_status.synced =>
            {
                self.write(&ResponseContent::code(rcode::SERVFAIL, Some(NOT_READY)), out);
            }
            // The name has another served zone below it, so it exists (RFC 8020).
            full::NameLookup::NxDomain if settings.zones.any_at_or_below(name.as_wire()) => {
                self.write_nodata(zone, stale, out);
            }
            full::NameLookup::NxDomain => self.write_nxdomain(zone, out),
            full::NameLookup::NoData => self.write_nodata(zone, stale, out),
            full::NameLookup::Selection(selection) => {
                let full::Selection { service, instances, holders, form, .. } = &selection;
                let owner = instances
                    .first()
                    .and_then(|first| service_owner(settings, service.base(), first.key.group()));
                let (mut builder, mut bytes) = (NodeBuilder::default(), Vec::new());
                compile::node(
                    settings,
                    &self.snapshot.hosts,
                    owner.as_deref(),
                    &selection,
                    &mut builder,
                );
                builder.set_bridge(bridging::address(self.snapshot, settings, &labels, &selection));
                builder.build(&mut bytes);
                let node = Node::read(&bytes);
                let srv = RRset::srv(
                    &node,
                    settings.ttl,
                    owner.as_deref().unwrap_or_default(),
                    settings.zones.first().name().as_wire(),
                );
                let rfc2782 = *form == full::NameForm::Rfc2782;
                let [a, aaaa] = if rfc2782 { [RRset::EMPTY; 2] } else { self.addresses(&node) };
                // One of the existing RRsets suffices (RFC 8482 section 4.1).
                let any = [a, aaaa, srv].into_iter().find(|set| set.count > 0);
                let set = match self.query.qtype {
                    qtype if qtype == rtype::TXT || qtype == rtype::ANY && any.is_none() => {
                        return self.write_records(
                            &rare::txt(settings, instances),
                            holders.view(),
                            zone,
                            out,
                        );
                    }
                    rtype::A | rtype::AAAA
                        if a.count == 0 && node.has_only_host_names() && !rfc2782 =>
                    {
                        return self.write_no_address(instances, zone, out);
                    }
                    rtype::A => a,
                    rtype::AAAA => aaaa,
                    rtype::SRV => srv,
                    rtype::ANY => any.unwrap_or(RRset::EMPTY),
                    _ => RRset::EMPTY,
                };
                let stale = self.stale_answer_error(holders.view());
                if set.count > 0 {
                    self.write(&ResponseContent::answer(&set, stale), out);
                } else {
                    self.write_nodata(zone, stale, out);
                }
                self.note_holders(holders.view());
            }
        }
    }

    /// Returns the A and AAAA RRsets of a node for this client.
    pub(super) fn addresses(&self, node: &Node<'a>) -> [RRset<'a>; 2] {
        let ttl = self.settings().ttl;
        match RRset::bridge(node, ttl).filter(|_| self.writer.bridged) {
            // The bridge carries IPv4 only: the instances behind it may have any addresses.
            Some(bridge) => [bridge, RRset::EMPTY],
            None => [RRset::a(node, ttl), RRset::aaaa(node, ttl)],
        }
    }

    /// Answers an address query for instances that are all host names.
    ///
    /// None of these host names has a known address.
    fn write_no_address(&self, instances: &[Instance<'_>], zone: &Zone, out: &mut Vec<u8>) {
        let is_pending = |instance: &Instance<'_>| {
            instance
                .host_name()
                .is_some_and(|host| self.snapshot.hosts.get(host) == Some(&Addresses::Pending))
        };
        if !self.settings().forwarding {
            self.write_nodata(zone, Some(HOSTS_NOT_RESOLVED), out);
        } else if instances.iter().any(is_pending) {
            // Resolvers would cache a NODATA response.
            self.write(&ResponseContent::code(rcode::SERVFAIL, Some(HOSTS_PENDING)), out);
        } else {
            self.write_nodata(zone, Some(HOSTS_WITHOUT_ADDRESS), out);
        }
    }

    /// Returns the EDE of a name with instances, if one of them may be out of date.
    ///
    /// An instance may be out of date if all registries that hold it may be. Without any instance,
    /// the EDE is that of [`Self::stale_negative_error`]. See RFC 8914 section 4.4.
    pub(super) fn stale_answer_error(&self, holders: Holders<'_>) -> Option<ExtendedError<'a>> {
        if holders.is_empty() {
            return self.stale_negative_error();
        }
        let status = &self.snapshot.registry_status;
        if status.stale_registries().is_empty() {
            return None;
        }
        self.stale_error(status.staleness_of(holders.iter()), ExtendedError::STALE_ANSWER)
    }

    /// Returns the EDE of NODATA for a name without instances, if any registry may be out of date.
    ///
    /// Any registry could have the missing record.
    pub(super) fn stale_negative_error(&self) -> Option<ExtendedError<'a>> {
        self.stale_error(self.snapshot.registry_status.staleness(), ExtendedError::STALE_ANSWER)
    }

    /// Returns the EDE of an NXDOMAIN response, if any registry may be out of date.
    pub(super) fn stale_nxdomain_error(&self) -> Option<ExtendedError<'a>> {
        self.stale_error(self.snapshot.registry_status.staleness(), ExtendedError::STALE_NXDOMAIN)
    }

    /// Returns the EDE for stale data, or `None` for fresh data.
    fn stale_error(&self, staleness: Option<Staleness>, code: u16) -> Option<ExtendedError<'a>> {
        let text = match staleness? {
            Staleness::Disconnected => STALE_REGISTRY_TEXT,
            Staleness::Held(registry) => self.snapshot.holds.text(registry),
        };
        Some(ExtendedError { code, text })
    }

    /// Writes records of instances with these holders, or NODATA if there is none.
    pub(super) fn write_records(
        &self,
        records: &ComposedRecords,
        holders: Holders<'_>,
        zone: &Zone,
        out: &mut Vec<u8>,
    ) {
        let stale = self.stale_answer_error(holders);
        if records.is_empty() {
            self.write_nodata(zone, stale, out);
        } else {
            self.write(&ResponseContent::answer(&RRset::composed(records), stale), out);
        }
        self.note_holders(holders);
    }

    /// Writes records that svcdns itself provides, or NODATA. They are never stale.
    fn write_own_records(&self, records: &ComposedRecords, zone: &Zone, out: &mut Vec<u8>) {
        if records.is_empty() {
            self.write_nodata(zone, None, out);
        } else {
            self.write(&ResponseContent::answer(&RRset::composed(records), None), out);
        }
        self.source.set(ResponseSource::Local);
    }

    /// Writes NXDOMAIN with the zone's SOA record.
    pub(super) fn write_nxdomain(&self, zone: &Zone, out: &mut Vec<u8>) {
        let soa = self.soa_in_question(zone);
        let stale = self.stale_nxdomain_error();
        self.write(&ResponseContent::negative(rcode::NXDOMAIN, &soa, stale), out);
    }

    /// Writes NODATA with the zone's SOA record.
    pub(super) fn write_nodata(
        &self,
        zone: &Zone,
        error: Option<ExtendedError<'_>>,
        out: &mut Vec<u8>,
    ) {
        let soa = self.soa_in_question(zone);
        self.write(&ResponseContent::negative(rcode::NOERROR, &soa, error), out);
    }

    /// Returns the SOA record of the zone that contains the query's name.
    ///
    /// The zone's name is a pointer into the question section (RFC 1035 section 4.1.4).
    fn soa_in_question(&self, zone: &Zone) -> [u8; SOA_TEMPLATE.len()] {
        let offset = self.query.name().len() - zone.name().as_wire().len();
        self.soa(question_pointer(offset))
    }

    /// Returns the SOA record of a zone; `apex` is a pointer to the zone's name.
    ///
    /// TTL and MINIMUM are the TTL of negative answers (RFC 2308 section 5).
    pub(super) fn soa(&self, apex: [u8; 2]) -> [u8; SOA_TEMPLATE.len()] {
        let ttl = self.settings().negative_ttl.to_be_bytes();
        let mut soa = *SOA_TEMPLATE;
        soa[..2].copy_from_slice(&apex);
        soa[6..10].copy_from_slice(&ttl);
        soa[15..17].copy_from_slice(&apex);
        soa[28..30].copy_from_slice(&apex);
        soa[SOA_NUMBERS_OFFSET..][..4].copy_from_slice(&self.serial().to_be_bytes());
        soa[SOA_NUMBERS_OFFSET + 16..].copy_from_slice(&ttl);
        soa
    }

    /// Returns the SOA serial, which grows by one with each generation.
    fn serial(&self) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "serial numbers wrap (RFC 1982)")]
        self.first_serial.wrapping_add(self.snapshot.generation() as u32)
    }

    /// Answers for a zone's apex: SOA and NS, available before any registry is read.
    fn answer_apex(&self, zone: &Zone, out: &mut Vec<u8>) {
        let settings = self.settings();
        let mut set = ComposedRecords::default();
        match self.query.qtype {
            rtype::SOA | rtype::ANY => {
                set.put(|out| out.extend_from_slice(&self.soa(OWNER_POINTER)));
            }
            rtype::NS => {
                let server = [NS_LABEL, zone.name().as_wire()].concat();
                set.put(|out| rare::put_record(out, rtype::NS, settings.ttl, &server));
                if let Some(address) = settings.listen.first() {
                    set.put_glue_address(*address);
                }
            }
            _ => {}
        }
        self.write_own_records(&set, zone, out);
    }

    /// Answers for `ns.<zone>`: the listen addresses.
    fn answer_name_server(&self, zone: &Zone, out: &mut Vec<u8>) {
        let settings = self.settings();
        let mut set = ComposedRecords::default();
        for address in &settings.listen {
            let rtype = match address {
                IpAddr::V4(_) => rtype::A,
                IpAddr::V6(_) => rtype::AAAA,
            };
            if matches!(self.query.qtype, qtype if qtype == rtype || qtype == rtype::ANY) {
                set.put(|out| rare::put_address(out, settings.ttl, *address));
            }
        }
        self.write_own_records(&set, zone, out);
    }

    /// Answers for `dns-version.<zone>`: the version of this program.
    fn answer_version(&self, zone: &Zone, out: &mut Vec<u8>) {
        let mut set = ComposedRecords::default();
        if matches!(self.query.qtype, rtype::TXT | rtype::ANY) {
            let mut data = Vec::new();
            rare::put_string(&mut data, concat!("svcdns ", env!("CARGO_PKG_VERSION")));
            set.put(|out| rare::put_record(out, rtype::TXT, self.settings().ttl, &data));
        }
        self.write_own_records(&set, zone, out);
    }
}
