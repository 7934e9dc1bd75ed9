//! An RRset as it is put into a message: records written from what is kept of them.
//!
//! Every record's owner is the pointer to the question (`C0 0C`); SRV targets are written whole (RFC 2782 forbids compressing
//! one).

use std::net::IpAddr;
use std::ops::Range;

use super::choice::Order;
use super::node::{
    IPV4_BYTES, IPV6_BYTES, Node, PackedSet, PackedSets, SRV_ENTRY_BYTES, host_name,
};
use super::owner::{MAX_NAME_BYTES, put_instance_owner};
use super::weights::Weights;
use crate::name::{MAX_INSTANCE_LABEL_BYTES, ipv4_label};
use crate::wire::{OWNER, rtype, u16_at, u32_at};

/// One RRset.
#[derive(Clone, Copy, Debug)]
pub(super) struct RRset<'a> {
    /// Number of records.
    pub(super) count: usize,
    weights: Weights<'a>,
    ttl: u32,
    data: RRsetData<'a>,
}

#[derive(Clone, Copy, Debug)]
enum RRsetData<'a> {
    /// Addresses of so many octets.
    Addresses {
        bytes: &'a [u8],
        width: usize,
    },
    Srv(SrvSet<'a>),
    Composed(&'a ComposedRecords),
}

/// What SRV records are made of.
#[derive(Clone, Copy, Debug)]
struct SrvSet<'a> {
    /// Weight, port, and the number of the target.
    entries: &'a [u8],
    /// The first targets: instances by their addresses of four octets.
    v4: &'a [u8],
    /// Then those of sixteen.
    v6: &'a [u8],
    /// Then names: their places, then they themselves.
    names: &'a [u8],
    /// What stands behind an instance's label: the service's name in wire labels, and the zone.
    owner: &'a [u8],
    zone: &'a [u8],
}

/// What an SRV record points at.
enum SrvTarget<'a> {
    Instance(IpAddr),
    Name(&'a [u8]),
}

/// Records of rarer types, made when they are asked for.
#[derive(Debug, Default)]
pub(super) struct ComposedRecords {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    /// The address of the name that the only record's data is.
    glue: Option<IpAddr>,
}

/// Octets of a record in front of its data: owner pointer, type, class, TTL and length.
const RECORD_HEAD_BYTES: usize = 12;
/// Where the target of an SRV record begins: behind priority, weight and port.
const SRV_TARGET_OFFSET: usize = RECORD_HEAD_BYTES + 6;
/// More targets than this are told apart by a set, fewer by looking at all of them.
const MAX_SCANNED_TARGETS: usize = 32;
/// The number of a target has 16 bits.
const TARGET_INDEXES: usize = 1 << 16;

impl<'a> RRset<'a> {
    /// A set without records.
    pub(super) const EMPTY: Self =
        Self::addresses(PackedSet { weights: Weights::EQUAL, bytes: &[] }, IPV4_BYTES, 0);

    /// The A RRset of a record.
    pub(super) fn a(node: &Node<'a>, ttl: u32) -> Self {
        Self::addresses(node.v4(), IPV4_BYTES, ttl)
    }

    /// The AAAA RRset of a record.
    pub(super) fn aaaa(node: &Node<'a>, ttl: u32) -> Self {
        Self::addresses(node.sets().v6, IPV6_BYTES, ttl)
    }

    /// The SRV RRset of a record; its targets are host names, or instances of the service `owner` in
    /// `zone`.
    pub(super) fn srv(node: &Node<'a>, ttl: u32, owner: &'a [u8], zone: &'a [u8]) -> Self {
        let PackedSets { v4, v6, srv: entries, names } = node.sets();
        let (count, weights) = (entries.bytes.len() / SRV_ENTRY_BYTES, entries.weights);
        let srv = SrvSet { entries: entries.bytes, v4: v4.bytes, v6: v6.bytes, names, owner, zone };
        Self { count, weights, ttl, data: RRsetData::Srv(srv) }
    }

    /// The A and AAAA RRsets of one instance, or `None` if the record has no instance at this address.
    pub(super) fn instance(node: &Node<'a>, address: IpAddr, ttl: u32) -> Option<[Self; 2]> {
        let bytes = node.instance_address(address)?;
        let one = Self::addresses(PackedSet { weights: Weights::EQUAL, bytes }, bytes.len(), ttl);
        Some(if address.is_ipv4() { [one, Self::EMPTY] } else { [Self::EMPTY, one] })
    }

    /// Records of any type.
    pub(super) fn composed(records: &'a ComposedRecords) -> Self {
        Self {
            count: records.ends.len(),
            weights: Weights::EQUAL,
            ttl: 0,
            data: RRsetData::Composed(records),
        }
    }

    const fn addresses(
        PackedSet { weights, bytes }: PackedSet<'a>,
        width: usize,
        ttl: u32,
    ) -> Self {
        Self {
            count: bytes.len() / width,
            weights,
            ttl,
            data: RRsetData::Addresses { bytes, width },
        }
    }

    /// The order in which to put at most `wanted` records into `space` octets.
    pub(super) fn order(&self, wanted: usize, space: usize, draw: u64) -> Order {
        // Without weights it is the same for some as for all.
        if self.weights.are_equal() || wanted == self.count && self.max_bytes() <= space {
            return Order::of_all(self.count, self.weights, draw);
        }
        // No record is smaller than what stands in front of its data.
        Order::of_some(wanted.min(space / RECORD_HEAD_BYTES + 1), self.count, self.weights, draw)
    }

    /// No less than the octets of all records, glue not counted.
    fn max_bytes(&self) -> usize {
        match self.data {
            RRsetData::Addresses { width, .. } => (RECORD_HEAD_BYTES + width) * self.count,
            RRsetData::Composed(records) => records.bytes.len(),
            RRsetData::Srv(srv) => srv.max_bytes(),
        }
    }

    /// Appends the first `wanted` records of an order, as many as make the message no longer than `room`; returns how many.
    pub(super) fn put(
        &self,
        order: &Order,
        wanted: usize,
        room: usize,
        out: &mut Vec<u8>,
    ) -> usize {
        match self.data {
            RRsetData::Addresses { bytes, width: IPV4_BYTES } => {
                put_addresses::<IPV4_BYTES>(bytes, rtype::A, self.ttl, order, wanted, room, out)
            }
            RRsetData::Addresses { bytes, .. } => {
                put_addresses::<IPV6_BYTES>(bytes, rtype::AAAA, self.ttl, order, wanted, room, out)
            }
            RRsetData::Srv(srv) => {
                fill(wanted, room, out, |position, out| srv.put(order.at(position), self.ttl, out))
            }
            RRsetData::Composed(records) => fill(wanted, room, out, |position, out| {
                out.extend_from_slice(records.get(order.at(position)))
            }),
        }
    }

    /// Appends the addresses of the names that the first `put` records of an order end with, each once, as long as there is
    /// room; returns how many. The records were appended from `start` on.
    pub(super) fn put_glue(
        &self,
        order: &Order,
        put: usize,
        start: usize,
        room: usize,
        out: &mut Vec<u8>,
    ) -> usize {
        match self.data {
            RRsetData::Addresses { .. } => 0,
            RRsetData::Srv(srv) => srv.put_glue(order, put, start, room, out),
            RRsetData::Composed(records) => usize::from(records.put_glue(start, room, out)),
        }
    }
}

/// Appends A or AAAA records.
fn put_addresses<const N: usize>(
    bytes: &[u8],
    rtype: u16,
    ttl: u32,
    order: &Order,
    wanted: usize,
    room: usize,
    out: &mut Vec<u8>,
) -> usize {
    let (addresses, _) = bytes.as_chunks::<N>();
    let put = wanted.min(room.saturating_sub(out.len()) / (RECORD_HEAD_BYTES + N));
    let head = record_head(OWNER, rtype, ttl, N);
    let start = out.len();
    out.resize(start + put * (RECORD_HEAD_BYTES + N), 0);
    for (position, record) in out[start..].chunks_exact_mut(RECORD_HEAD_BYTES + N).enumerate() {
        record[..RECORD_HEAD_BYTES].copy_from_slice(&head);
        record[RECORD_HEAD_BYTES..]
            .copy_from_slice(addresses.get(order.at(position)).unwrap_or(&[0; N]));
    }
    put
}

/// Appends records, as many as make the message no longer than `room`; returns how many.
fn fill(
    wanted: usize,
    room: usize,
    out: &mut Vec<u8>,
    mut put: impl FnMut(usize, &mut Vec<u8>),
) -> usize {
    for position in 0..wanted {
        let start = out.len();
        put(position, out);
        if out.len() > room {
            out.truncate(start);
            return position;
        }
    }
    wanted
}

impl<'a> SrvSet<'a> {
    fn entry(&self, index: usize) -> Option<&'a [u8]> {
        self.entries.get(index * SRV_ENTRY_BYTES..(index + 1) * SRV_ENTRY_BYTES)
    }

    /// The number of a service's target.
    fn target_index(&self, index: usize) -> Option<usize> {
        u16_at(self.entry(index)?, 4).map(usize::from)
    }

    fn target(&self, number: usize) -> Option<SrvTarget<'a>> {
        let (v4_count, v6_count) = (self.v4.len() / 4, self.v6.len() / 16);
        if number < v4_count {
            let bytes: [u8; 4] = *self.v4[4 * number..].first_chunk()?;
            return Some(SrvTarget::Instance(bytes.into()));
        }
        let number = number - v4_count;
        if number < v6_count {
            let bytes: [u8; 16] = *self.v6[16 * number..].first_chunk()?;
            return Some(SrvTarget::Instance(bytes.into()));
        }
        host_name(self.names, number - v6_count).map(SrvTarget::Name)
    }

    fn max_bytes(&self) -> usize {
        let label =
            if self.v6.is_empty() { "255-255-255-255".len() } else { MAX_INSTANCE_LABEL_BYTES };
        let record_bytes = RECORD_HEAD_BYTES + 6 + 1 + label + self.owner.len() + self.zone.len();
        // Many services may have one name.
        let names = if self.names.is_empty() { 0 } else { MAX_NAME_BYTES };
        (record_bytes + names) * (self.entries.len() / SRV_ENTRY_BYTES)
    }

    /// Appends an SRV record (RFC 2782): priority, weight, port, target.
    fn put(&self, index: usize, ttl: u32, out: &mut Vec<u8>) {
        let Some(entry) = self.entry(index).and_then(|entry| entry.first_chunk::<4>()) else {
            return;
        };
        let target = self.target_index(index).and_then(|number| self.target(number));
        let start = out.len();
        // With the label of an IPv4 address, so that all in front of the service's name is one copy of a fixed length; what is
        // too much of it is taken back.
        let (mut front, mut length) = ([0; SRV_TARGET_OFFSET + 1 + 16], SRV_TARGET_OFFSET);
        front[RECORD_HEAD_BYTES + 2..SRV_TARGET_OFFSET].copy_from_slice(entry);
        if let Some(SrvTarget::Instance(IpAddr::V4(address))) = target {
            let (label, bytes) = ipv4_label(address.octets());
            // At most 15.
            front[SRV_TARGET_OFFSET] = u8::try_from(bytes).unwrap_or(0);
            front[SRV_TARGET_OFFSET + 1..].copy_from_slice(&label);
            length += 1 + bytes;
        }
        out.extend_from_slice(&front);
        out.truncate(start + length);
        match target {
            Some(SrvTarget::Instance(address)) => {
                if address.is_ipv6() {
                    put_instance_owner(address, &[], out);
                }
                out.extend_from_slice(self.owner);
                out.extend_from_slice(self.zone);
            }
            Some(SrvTarget::Name(name)) => out.extend_from_slice(name),
            None => out.push(0),
        }
        let bytes = out.len() - start - RECORD_HEAD_BYTES;
        if let Some(head) = out[start..].first_chunk_mut() {
            *head = record_head(OWNER, rtype::SRV, ttl, bytes);
        }
    }

    fn put_glue(
        &self,
        order: &Order,
        put: usize,
        start: usize,
        room: usize,
        out: &mut Vec<u8>,
    ) -> usize {
        if put > MAX_SCANNED_TARGETS {
            return self.put_glue_of_many(order, put, start, room, out);
        }
        let target_index = |position| self.target_index(order.at(position)).unwrap_or_default();
        let is_duplicate =
            |position, index| (0..position).any(|before| target_index(before) == index);
        self.put_glue_once(is_duplicate, order, put, start, room, out)
    }

    /// The same for more records than a look at each takes time for. Apart, since few answers need so much of the stack.
    #[inline(never)]
    fn put_glue_of_many(
        &self,
        order: &Order,
        put: usize,
        start: usize,
        room: usize,
        out: &mut Vec<u8>,
    ) -> usize {
        let mut seen = [0u64; TARGET_INDEXES / 64];
        let is_duplicate = |_, index: usize| {
            let (word, bit) = (&mut seen[index / 64], 1 << (index % 64));
            std::mem::replace(word, *word | bit) & bit != 0
        };
        self.put_glue_once(is_duplicate, order, put, start, room, out)
    }

    /// Appends the addresses of targets, except of those that stand there `again`: asked with their places and numbers.
    fn put_glue_once(
        &self,
        mut is_duplicate: impl FnMut(usize, usize) -> bool,
        order: &Order,
        put: usize,
        start: usize,
        room: usize,
        out: &mut Vec<u8>,
    ) -> usize {
        let (mut count, mut record) = (0, start);
        for position in 0..put {
            let target = record + SRV_TARGET_OFFSET;
            record += RECORD_HEAD_BYTES
                + usize::from(u16_at(out, record + RECORD_HEAD_BYTES - 2).unwrap_or(0));
            let index = self.target_index(order.at(position)).unwrap_or_default();
            if is_duplicate(position, index) {
                continue;
            }
            let Some(SrvTarget::Instance(address)) = self.target(index) else { continue };
            if !put_address(target..record, address, start, room, out) {
                break;
            }
            count += 1;
        }
        count
    }
}

impl ComposedRecords {
    /// Adds a record.
    pub(super) fn put(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.bytes);
        self.ends.push(self.bytes.len());
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
        let start =
            index.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        self.ends.get(index).and_then(|end| self.bytes.get(start..*end)).unwrap_or_default()
    }

    fn put_glue(&self, start: usize, room: usize, out: &mut Vec<u8>) -> bool {
        let Some(address) = self.glue.filter(|_| out.len() > start) else { return false };
        put_address(start + RECORD_HEAD_BYTES..out.len(), address, start, room, out)
    }
}

/// Appends the record of an address whose owner stands at `name` in the message, if that makes the message no longer than
/// `room`. Its TTL is that of the record at `start`.
fn put_address(
    name: Range<usize>,
    address: IpAddr,
    start: usize,
    room: usize,
    out: &mut Vec<u8>,
) -> bool {
    let end = out.len();
    let ttl = u32_at(out, start + 6).unwrap_or(0);
    let (rtype, bytes) = match address {
        IpAddr::V4(_) => (rtype::A, 4),
        IpAddr::V6(_) => (rtype::AAAA, 16),
    };
    // RFC 1035 section 4.1.4: names may be pointed at, in the first 2^14 octets.
    let pointer = u16::try_from(name.start).ok().filter(|position| *position < 0x4000);
    if let Some(position) = pointer {
        out.extend_from_slice(&record_head((0xC000 | position).to_be_bytes(), rtype, ttl, bytes));
    } else {
        out.extend_from_within(name);
        out.extend_from_slice(&record_head(OWNER, rtype, ttl, bytes)[2..]);
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
pub(super) fn record_head(
    owner: [u8; 2],
    rtype: u16,
    ttl: u32,
    bytes: usize,
) -> [u8; RECORD_HEAD_BYTES] {
    let mut head = [0; RECORD_HEAD_BYTES];
    head[..2].copy_from_slice(&owner);
    head[2..4].copy_from_slice(&rtype.to_be_bytes());
    head[4..6].copy_from_slice(&rtype::IN.to_be_bytes());
    head[6..10].copy_from_slice(&ttl.to_be_bytes());
    head[10..].copy_from_slice(&u16::try_from(bytes).unwrap_or(0).to_be_bytes());
    head
}
