//! An RRset as it is put into a message: records written from what is kept of them.
//!
//! Every record's owner is the pointer to the question (`C0 0C`); SRV targets are written whole (RFC 2782 forbids compressing
//! one).

use std::net::IpAddr;
use std::ops::Range;

use super::choice::Order;
use super::owner::{MAX_NAME, put_instance_owner};
use super::record::{FOUR, Record, SERVICE, SIXTEEN, Set, Sets, name};
use super::weights::Weights;
use crate::name::{MAX_INSTANCE_LABEL, ipv4_label};
use crate::wire::{OWNER_POINTER, rtype, u16_at, u32_at};

/// One RRset.
#[derive(Clone, Copy, Debug)]
pub(super) struct RRset<'a> {
    /// Number of records.
    pub(super) count: usize,
    weights: Weights<'a>,
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
struct Services<'a> {
    /// Weight, port, and the number of the target.
    entries: &'a [u8],
    /// The first targets: instances by their addresses of four octets.
    four: &'a [u8],
    /// Then those of sixteen.
    sixteen: &'a [u8],
    /// Then names: their places, then they themselves.
    names: &'a [u8],
    /// What stands behind an instance's label: the service's name in wire labels, and the zone.
    owner: &'a [u8],
    zone: &'a [u8],
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
/// Where the target of an SRV record begins: behind priority, weight and port.
const TARGET: usize = HEAD + 6;
/// More targets than this are told apart by a set, fewer by looking at all of them.
const FEW: usize = 32;
/// The number of a target has 16 bits.
const TARGETS: usize = 1 << 16;

impl<'a> RRset<'a> {
    /// A set without records.
    pub(super) const EMPTY: Self = Self::of_addresses(Set { weights: Weights::EQUAL, octets: &[] }, FOUR, 0);

    /// The A RRset of a record.
    pub(super) fn a(record: &Record<'a>, ttl: u32) -> Self {
        Self::of_addresses(record.four(), FOUR, ttl)
    }

    /// The AAAA RRset of a record.
    pub(super) fn aaaa(record: &Record<'a>, ttl: u32) -> Self {
        Self::of_addresses(record.sets().sixteen, SIXTEEN, ttl)
    }

    /// The SRV RRset of a record; its targets are host names, or instances of the service `owner` in
    /// `zone`.
    pub(super) fn srv(record: &Record<'a>, ttl: u32, owner: &'a [u8], zone: &'a [u8]) -> Self {
        let Sets { four, sixteen, services, names } = record.sets();
        let (count, weights, entries) = (services.octets.len() / SERVICE, services.weights, services.octets);
        let services = Services { entries, four: four.octets, sixteen: sixteen.octets, names, owner, zone };
        Self { count, weights, ttl, data: Data::Services(services) }
    }

    /// The A and AAAA RRsets of one instance, or `None` if the record has no instance at this address.
    pub(super) fn of_instance(record: &Record<'a>, address: IpAddr, ttl: u32) -> Option<[Self; 2]> {
        let octets = record.instance(address)?;
        let one = Self::of_addresses(Set { weights: Weights::EQUAL, octets }, octets.len(), ttl);
        Some(if address.is_ipv4() { [one, Self::EMPTY] } else { [Self::EMPTY, one] })
    }

    /// Records of any type.
    pub(super) fn of_records(records: &'a Records) -> Self {
        Self { count: records.ends.len(), weights: Weights::EQUAL, ttl: 0, data: Data::Records(records) }
    }

    const fn of_addresses(Set { weights, octets }: Set<'a>, each: usize, ttl: u32) -> Self {
        Self { count: octets.len() / each, weights, ttl, data: Data::Addresses { octets, each } }
    }

    /// The order in which to put at most `wanted` records into `space` octets.
    pub(super) fn order(&self, wanted: usize, space: usize, draw: u64) -> Order {
        // Without weights it is the same for some as for all.
        if self.weights.are_equal() || wanted == self.count && self.most_octets() <= space {
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

    /// Appends the first `wanted` records of an order, as many as make the message no longer than `room`; returns how many.
    pub(super) fn put(&self, order: &Order, wanted: usize, room: usize, out: &mut Vec<u8>) -> usize {
        match self.data {
            Data::Addresses { octets, each: FOUR } => put_addresses::<FOUR>(octets, rtype::A, self.ttl, order, wanted, room, out),
            Data::Addresses { octets, .. } => put_addresses::<SIXTEEN>(octets, rtype::AAAA, self.ttl, order, wanted, room, out),
            Data::Services(services) => fill(wanted, room, out, |place, out| services.put(order.at(place), self.ttl, out)),
            Data::Records(records) => fill(wanted, room, out, |place, out| out.extend_from_slice(records.get(order.at(place)))),
        }
    }

    /// Appends the addresses of the names that the first `put` records of an order end with, each once, as long as there is
    /// room; returns how many. The records were appended from `start` on.
    pub(super) fn put_glue(&self, order: &Order, put: usize, start: usize, room: usize, out: &mut Vec<u8>) -> usize {
        match self.data {
            Data::Addresses { .. } => 0,
            Data::Services(services) => services.put_glue(order, put, start, room, out),
            Data::Records(records) => usize::from(records.put_glue(start, room, out)),
        }
    }
}

/// Appends A or AAAA records.
fn put_addresses<const N: usize>(
    octets: &[u8],
    rtype: u16,
    ttl: u32,
    order: &Order,
    wanted: usize,
    room: usize,
    out: &mut Vec<u8>,
) -> usize {
    let (addresses, _) = octets.as_chunks::<N>();
    let put = wanted.min(room.saturating_sub(out.len()) / (HEAD + N));
    let head = record_head(OWNER_POINTER, rtype, ttl, N);
    let start = out.len();
    out.resize(start + put * (HEAD + N), 0);
    for (place, record) in out[start..].chunks_exact_mut(HEAD + N).enumerate() {
        record[..HEAD].copy_from_slice(&head);
        record[HEAD..].copy_from_slice(addresses.get(order.at(place)).unwrap_or(&[0; N]));
    }
    put
}

/// Appends records, as many as make the message no longer than `room`; returns how many.
fn fill(wanted: usize, room: usize, out: &mut Vec<u8>, mut put: impl FnMut(usize, &mut Vec<u8>)) -> usize {
    for place in 0..wanted {
        let start = out.len();
        put(place, out);
        if out.len() > room {
            out.truncate(start);
            return place;
        }
    }
    wanted
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
        let label = if self.sixteen.is_empty() { "255-255-255-255".len() } else { MAX_INSTANCE_LABEL };
        let each = HEAD + 6 + 1 + label + self.owner.len() + self.zone.len();
        // Many services may have one name.
        let names = if self.names.is_empty() { 0 } else { MAX_NAME };
        (each + names) * (self.entries.len() / SERVICE)
    }

    /// Appends an SRV record (RFC 2782): priority, weight, port, target.
    fn put(&self, index: usize, ttl: u32, out: &mut Vec<u8>) {
        let Some(entry) = self.entry(index).and_then(|entry| entry.first_chunk::<4>()) else { return };
        let target = self.number(index).and_then(|number| self.target(number));
        let start = out.len();
        // With the label of an IPv4 address, so that all in front of the service's name is one copy of a fixed length; what is
        // too much of it is taken back.
        let (mut front, mut length) = ([0; TARGET + 1 + 16], TARGET);
        front[HEAD + 2..TARGET].copy_from_slice(entry);
        if let Some(Target::Instance(IpAddr::V4(address))) = target {
            let (label, octets) = ipv4_label(address.octets());
            // At most 15.
            front[TARGET] = u8::try_from(octets).unwrap_or(0);
            front[TARGET + 1..].copy_from_slice(&label);
            length += 1 + octets;
        }
        out.extend_from_slice(&front);
        out.truncate(start + length);
        match target {
            Some(Target::Instance(address)) => {
                if address.is_ipv6() {
                    put_instance_owner(address, &[], out);
                }
                out.extend_from_slice(self.owner);
                out.extend_from_slice(self.zone);
            }
            Some(Target::Name(name)) => out.extend_from_slice(name),
            None => out.push(0),
        }
        let octets = out.len() - start - HEAD;
        if let Some(head) = out[start..].first_chunk_mut() {
            *head = record_head(OWNER_POINTER, rtype::SRV, ttl, octets);
        }
    }

    fn put_glue(&self, order: &Order, put: usize, start: usize, room: usize, out: &mut Vec<u8>) -> usize {
        if put > FEW {
            return self.put_much_glue(order, put, start, room, out);
        }
        let number = |place| self.number(order.at(place)).unwrap_or_default();
        let again = |place, here| (0..place).any(|before| number(before) == here);
        self.put_glue_unless(again, order, put, start, room, out)
    }

    /// The same for more records than a look at each takes time for. Apart, since few answers need so much of the stack.
    #[inline(never)]
    fn put_much_glue(&self, order: &Order, put: usize, start: usize, room: usize, out: &mut Vec<u8>) -> usize {
        let mut seen = [0u64; TARGETS / 64];
        let again = |_, here: usize| {
            let (word, bit) = (&mut seen[here / 64], 1 << (here % 64));
            std::mem::replace(word, *word | bit) & bit != 0
        };
        self.put_glue_unless(again, order, put, start, room, out)
    }

    /// Appends the addresses of targets, except of those that stand there `again`: asked with their places and numbers.
    fn put_glue_unless(
        &self,
        mut again: impl FnMut(usize, usize) -> bool,
        order: &Order,
        put: usize,
        start: usize,
        room: usize,
        out: &mut Vec<u8>,
    ) -> usize {
        let (mut count, mut record) = (0, start);
        for place in 0..put {
            let target = record + TARGET;
            record += HEAD + usize::from(u16_at(out, record + HEAD - 2).unwrap_or(0));
            let here = self.number(order.at(place)).unwrap_or_default();
            if again(place, here) {
                continue;
            }
            let Some(Target::Instance(address)) = self.target(here) else { continue };
            if !put_address(target..record, address, start, room, out) {
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

    fn put_glue(&self, start: usize, room: usize, out: &mut Vec<u8>) -> bool {
        let Some(address) = self.glue.filter(|_| out.len() > start) else { return false };
        put_address(start + HEAD..out.len(), address, start, room, out)
    }
}

/// Appends the record of an address whose owner stands at `name` in the message, if that makes the message no longer than
/// `room`. Its TTL is that of the record at `start`.
fn put_address(name: Range<usize>, address: IpAddr, start: usize, room: usize, out: &mut Vec<u8>) -> bool {
    let end = out.len();
    let ttl = u32_at(out, start + 6).unwrap_or(0);
    let (rtype, octets) = match address {
        IpAddr::V4(_) => (rtype::A, 4),
        IpAddr::V6(_) => (rtype::AAAA, 16),
    };
    // RFC 1035 section 4.1.4: names may be pointed at, in the first 2^14 octets.
    let pointer = u16::try_from(name.start).ok().filter(|place| *place < 0x4000);
    if let Some(place) = pointer {
        out.extend_from_slice(&record_head((0xC000 | place).to_be_bytes(), rtype, ttl, octets));
    } else {
        out.extend_from_within(name);
        out.extend_from_slice(&record_head(OWNER_POINTER, rtype, ttl, octets)[2..]);
    }
    match address {
        IpAddr::V4(address) => out.extend_from_slice(&address.octets()),
        IpAddr::V6(address) => out.extend_from_slice(&address.octets()),
    }
    let fits = out.len() <= room;
    if !fits {
        out.truncate(end);
    }
    fits
}

/// What a record begins with whose owner is a pointer: owner, type, class, TTL and length.
pub(super) fn record_head(owner: [u8; 2], rtype: u16, ttl: u32, octets: usize) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[..2].copy_from_slice(&owner);
    head[2..4].copy_from_slice(&rtype.to_be_bytes());
    head[4..6].copy_from_slice(&rtype::IN.to_be_bytes());
    head[6..10].copy_from_slice(&ttl.to_be_bytes());
    head[10..].copy_from_slice(&u16::try_from(octets).unwrap_or(0).to_be_bytes());
    head
}
