//! An RRset as it is put into a message: records written from what is kept of them.
//!
//! Every record's owner is the pointer to the question (`C0 0C`); SRV targets are written whole (RFC 2782 forbids compressing
//! one).

use std::collections::HashSet;
use std::net::IpAddr;

use super::choice::Order;
use super::compile::{MAX_NAME, put_instance_owner, put_record, put_record_head};
use super::record::{SERVICE, name};
use crate::wire::{OWNER, rtype, u16_at, u32_at};

/// One RRset.
#[derive(Clone, Copy, Debug)]
pub(super) struct RRset<'a> {
    /// Number of records.
    pub(super) count: usize,
    /// Running sums of the weights, four octets each; none where all have the same. Records of weight 0 stand last.
    weights: &'a [u8],
    ttl: u32,
    data: Data<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Data<'a> {
    /// Addresses of so many octets.
    Addresses {
        octets: &'a [u8],
        each: usize,
    },
    Services(Services<'a>),
    Records(&'a Records),
}

/// What SRV records are made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Services<'a> {
    /// Weight, port, and the number of the target.
    pub(super) entries: &'a [u8],
    /// The first targets: instances by their addresses of four octets.
    pub(super) four: &'a [u8],
    /// Then those of sixteen.
    pub(super) sixteen: &'a [u8],
    /// Then names: their places, then they themselves.
    pub(super) names: &'a [u8],
    /// What stands behind an instance's label: the service's name in wire labels, and the zone.
    pub(super) owner: &'a [u8],
    pub(super) zone: &'a [u8],
}

/// What an SRV record points at.
enum Target<'a> {
    Instance(IpAddr),
    Name(&'a [u8]),
}

/// Records of rarer types, made when they are asked for.
#[derive(Debug, Default)]
pub(super) struct Records {
    octets: Vec<u8>,
    ends: Vec<usize>,
    /// The address of the name that the only record's data is.
    glue: Option<IpAddr>,
}

/// Octets of a record in front of its data: owner pointer, type, class, TTL and length.
const HEAD: usize = 12;
/// More names than this are told apart by a set, fewer by looking at all of them.
const FEW: usize = 32;

impl<'a> RRset<'a> {
    /// A set without records.
    pub(super) const EMPTY: Self = Self { count: 0, weights: &[], ttl: 0, data: Data::Addresses { octets: &[], each: 4 } };

    /// A or AAAA records.
    pub(super) fn of_addresses(octets: &'a [u8], each: usize, weights: &'a [u8], ttl: u32) -> Self {
        Self { count: octets.len() / each, weights, ttl, data: Data::Addresses { octets, each } }
    }

    /// SRV records.
    pub(super) fn of_services(services: Services<'a>, weights: &'a [u8], ttl: u32) -> Self {
        Self { count: services.entries.len() / SERVICE, weights, ttl, data: Data::Services(services) }
    }

    /// Records of any type.
    pub(super) fn of_records(records: &'a Records) -> Self {
        Self { count: records.ends.len(), weights: &[], ttl: 0, data: Data::Records(records) }
    }

    /// The order in which to put at most `wanted` records into `space` octets.
    pub(super) fn order(&self, wanted: usize, space: usize, draw: u64) -> Order {
        // Without weights it is the same for some as for all.
        if self.weights.is_empty() || wanted == self.count && self.most_octets() <= space {
            return Order::of_all(self.count, self.weights, draw);
        }
        // No record is smaller than what stands in front of its data.
        Order::of_some(wanted.min(space / HEAD + 1), self.count, self.weights, draw)
    }

    /// No less than the octets of all records, glue not counted.
    fn most_octets(&self) -> usize {
        match self.data {
            Data::Addresses { each, .. } => (HEAD + each) * self.count,
            Data::Records(records) => records.octets.len(),
            Data::Services(services) => services.most_octets(),
        }
    }

    /// Appends the record at `index`, if that makes the message no longer than `room`.
    pub(super) fn put(&self, index: usize, room: usize, out: &mut Vec<u8>) -> bool {
        let start = out.len();
        match self.data {
            Data::Addresses { octets, each } => {
                let Some(address) = octets.get(index * each..(index + 1) * each) else { return true };
                if start + HEAD + each > room {
                    return false;
                }
                out.extend_from_slice(&address_head(each, self.ttl));
                out.extend_from_slice(address);
            }
            Data::Services(services) => services.put(index, self.ttl, out),
            Data::Records(records) => out.extend_from_slice(records.get(index)),
        }
        let fits = out.len() <= room;
        if !fits {
            out.truncate(start);
        }
        fits
    }

    /// Appends the addresses of the names that the first `put` records of an order end with, each once, as long as there is
    /// room; returns how many.
    pub(super) fn put_glue(&self, order: &Order, put: usize, room: usize, out: &mut Vec<u8>) -> usize {
        match self.data {
            Data::Addresses { .. } => 0,
            Data::Records(records) => usize::from(records.put_glue(room, out)),
            Data::Services(services) => services.put_glue(order, put, room, self.ttl, out),
        }
    }
}

impl<'a> Services<'a> {
    fn entry(&self, index: usize) -> Option<&'a [u8]> {
        self.entries.get(index * SERVICE..(index + 1) * SERVICE)
    }

    /// The number of a service's target.
    fn number(&self, index: usize) -> Option<usize> {
        u16_at(self.entry(index)?, 4).map(usize::from)
    }

    fn target(&self, number: usize) -> Option<Target<'a>> {
        let (fours, sixteens) = (self.four.len() / 4, self.sixteen.len() / 16);
        if number < fours {
            let octets: [u8; 4] = *self.four[4 * number..].first_chunk()?;
            return Some(Target::Instance(octets.into()));
        }
        let number = number - fours;
        if number < sixteens {
            let octets: [u8; 16] = *self.sixteen[16 * number..].first_chunk()?;
            return Some(Target::Instance(octets.into()));
        }
        name(self.names, number - sixteens).map(Target::Name)
    }

    fn most_octets(&self) -> usize {
        let label = if self.sixteen.is_empty() { "255-255-255-255".len() } else { 39 };
        let each = HEAD + 6 + 1 + label + self.owner.len() + self.zone.len();
        // Many services may have one name.
        let names = if self.names.is_empty() { 0 } else { MAX_NAME };
        (each + names) * (self.entries.len() / SERVICE)
    }

    /// Appends an SRV record (RFC 2782): priority, weight, port, target.
    fn put(&self, index: usize, ttl: u32, out: &mut Vec<u8>) {
        let Some(entry) = self.entry(index) else { return };
        let start = out.len();
        put_record_head(out, &OWNER, rtype::SRV, ttl, 0);
        out.extend_from_slice(&[0, 0]);
        out.extend_from_slice(&entry[..4]);
        if let Some(target) = self.number(index).and_then(|number| self.target(number)) {
            self.put_target(&target, out);
        }
        // A name and six octets.
        let octets = u16::try_from(out.len() - start - HEAD).unwrap_or(0);
        out[start + HEAD - 2..start + HEAD].copy_from_slice(&octets.to_be_bytes());
    }

    fn put_target(&self, target: &Target<'_>, out: &mut Vec<u8>) {
        match target {
            Target::Instance(address) => {
                put_instance_owner(*address, self.owner, out);
                out.extend_from_slice(self.zone);
            }
            Target::Name(name) => out.extend_from_slice(name),
        }
    }

    fn put_glue(&self, order: &Order, put: usize, room: usize, ttl: u32, out: &mut Vec<u8>) -> usize {
        let number = |place| self.number(order.at(place)).unwrap_or(usize::MAX);
        let mut seen = HashSet::new();
        let mut count = 0;
        for place in 0..put {
            let number_here = number(place);
            let again = if put > FEW { !seen.insert(number_here) } else { (0..place).any(|before| number(before) == number_here) };
            let Some(target @ Target::Instance(address)) = self.target(number_here).filter(|_| !again) else { continue };
            let start = out.len();
            self.put_target(&target, out);
            if !put_address(out, start, address, ttl, room) {
                break;
            }
            count += 1;
        }
        count
    }
}

impl Records {
    /// Adds a record.
    pub(super) fn put(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.octets);
        self.ends.push(self.octets.len());
    }

    /// Gives the only record, an NS record, the address of its name.
    pub(super) fn put_glue_address(&mut self, address: IpAddr) {
        self.glue = Some(address);
    }

    /// Whether there is no record.
    pub(super) fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    fn get(&self, index: usize) -> &[u8] {
        let start = index.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        self.ends.get(index).and_then(|end| self.octets.get(start..*end)).unwrap_or_default()
    }

    fn put_glue(&self, room: usize, out: &mut Vec<u8>) -> bool {
        let Some(address) = self.glue else { return false };
        let (start, ttl) = (out.len(), u32_at(&self.octets, 6).unwrap_or(0));
        out.extend_from_slice(self.get(0).get(HEAD..).unwrap_or_default());
        put_address(out, start, address, ttl, room)
    }
}

/// Completes the record of an address whose owner was appended at `start`, if that makes the message no longer than `room`;
/// else takes the owner back.
fn put_address(out: &mut Vec<u8>, start: usize, address: IpAddr, ttl: u32, room: usize) -> bool {
    match address {
        IpAddr::V4(address) => put_record(out, &[], rtype::A, ttl, &address.octets()),
        IpAddr::V6(address) => put_record(out, &[], rtype::AAAA, ttl, &address.octets()),
    }
    let fits = out.len() <= room;
    if !fits {
        out.truncate(start);
    }
    fits
}

/// What A and AAAA records of the question's owner begin with: owner, type, class, TTL and length.
fn address_head(octets: usize, ttl: u32) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    let (rtype, length) = if octets == 4 { (rtype::A, 4) } else { (rtype::AAAA, 16) };
    head[..2].copy_from_slice(&OWNER);
    head[2..4].copy_from_slice(&rtype.to_be_bytes());
    head[4..6].copy_from_slice(&rtype::IN.to_be_bytes());
    head[6..10].copy_from_slice(&ttl.to_be_bytes());
    head[11] = length;
    head
}
