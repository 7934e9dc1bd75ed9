//! RRsets, and the code that writes their records into a message.
//!
//! The owner of each record is a pointer to the name in the question section (`C0 0C`). SRV targets
//! are never compressed, as RFC 2782 requires.

use std::net::IpAddr;
use std::ops::Range;

use super::choice::Order;
use super::node::{
    IPV4_BYTES, IPV6_BYTES, Node, PackedSet, PackedSets, SRV_ENTRY_BYTES, host_name,
};
use super::owner::{MAX_NAME_BYTES, put_instance_owner};
use super::weights::Weights;
use crate::name::{MAX_INSTANCE_LABEL_BYTES, ipv4_label};
use crate::wire::{OWNER_POINTER, rtype, u16_at, u32_at};

/// An RRset whose records are written on demand.
#[derive(Clone, Copy, Debug)]
pub(super) struct RRset<'a> {
    /// Number of records.
    pub(super) count: usize,
    weights: Weights<'a>,
    ttl: u32,
    data: RRsetData<'a>,
}

/// Source of the records of an RRset.
#[derive(Clone, Copy, Debug)]
enum RRsetData<'a> {
    /// Addresses of `width` bytes each.
    Addresses {
        bytes: &'a [u8],
        width: usize,
    },
    Srv(SrvSet<'a>),
    /// The target of an alias, in wire form.
    Cname(&'a [u8]),
    Composed(&'a ComposedRecords),
}

/// The data of an SRV RRset.
#[derive(Clone, Copy, Debug)]
struct SrvSet<'a> {
    /// SRV entries as a node stores them.
    entries: &'a [u8],
    /// IPv4 addresses: the targets with the lowest indexes.
    v4: &'a [u8],
    /// IPv6 addresses: the targets after the IPv4 addresses.
    v6: &'a [u8],
    /// Offsets of host names, then the names: the remaining targets.
    names: &'a [u8],
    /// Owner of the service; `zone` completes the names of its instances.
    owner: &'a [u8],
    zone: &'a [u8],
}

/// Room for records in a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// Size limit of the message in bytes, without OPT.
    pub(super) bytes: usize,
    /// Length of the name in the question section in bytes.
    pub(super) name_bytes: usize,
}

/// Target of an SRV record.
enum SrvTarget<'a> {
    Instance(IpAddr),
    Name(&'a [u8]),
}

/// Records of the rarer types, composed for one response.
#[derive(Debug, Default)]
pub(super) struct ComposedRecords {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    /// Address of the name server, if the only record is an NS record.
    glue: Option<IpAddr>,
}

/// Size of owner pointer, type, class, TTL and data length, in bytes.
const RECORD_HEAD_BYTES: usize = 12;
/// Offset of the target in an SRV record: after priority, weight and port.
const SRV_TARGET_OFFSET: usize = RECORD_HEAD_BYTES + 6;
/// Maximum size of a message with SRV records if no name were compressed, in bytes.
///
/// OPT does not count. c-ares 1.34 writes each response again without compression and fails beyond
/// 64 KiB. The rest is headroom for clients that add to it. No UDP response comes near this limit.
const MAX_WRITTEN_OUT_BYTES: usize = 60 * 1024;
/// Maximum targets that are deduplicated by a scan; more need a bit set.
const MAX_SCANNED_TARGETS: usize = 32;
/// Number of possible target indexes: they have 16 bits.
const TARGET_INDEXES: usize = 1 << 16;

impl<'a> RRset<'a> {
    /// The RRset without records.
    pub(super) const EMPTY: Self =
        Self::addresses(PackedSet { weights: Weights::EQUAL, bytes: &[] }, IPV4_BYTES, 0);

    /// Returns the A RRset of a node.
    pub(super) fn a(node: &Node<'a>, ttl: u32) -> Self {
        Self::addresses(node.v4(), IPV4_BYTES, ttl)
    }

    /// Returns the A RRset with the address of the port bridge, if the node has one.
    pub(super) fn bridge(node: &Node<'a>, ttl: u32) -> Option<Self> {
        node.bridge().map(|set| Self::addresses(set, IPV4_BYTES, ttl))
    }

    /// Returns the AAAA RRset of a node.
    pub(super) fn aaaa(node: &Node<'a>, ttl: u32) -> Self {
        Self::addresses(node.sets().v6, IPV6_BYTES, ttl)
    }

    /// Returns the SRV RRset of a node.
    ///
    /// Targets are host names or instances of the service with this `owner` in `zone`.
    pub(super) fn srv(node: &Node<'a>, ttl: u32, owner: &'a [u8], zone: &'a [u8]) -> Self {
        let PackedSets { v4, v6, srv: entries, names } = node.sets();
        let (count, weights) = (entries.bytes.len() / SRV_ENTRY_BYTES, entries.weights);
        let srv = SrvSet { entries: entries.bytes, v4: v4.bytes, v6: v6.bytes, names, owner, zone };
        Self { count, weights, ttl, data: RRsetData::Srv(srv) }
    }

    /// Returns the A and AAAA RRsets of one instance, if the node has it.
    pub(super) fn instance(node: &Node<'a>, address: IpAddr, ttl: u32) -> Option<[Self; 2]> {
        let bytes = node.instance_address(address)?;
        let one = Self::addresses(PackedSet { weights: Weights::EQUAL, bytes }, bytes.len(), ttl);
        Some(if address.is_ipv4() { [one, Self::EMPTY] } else { [Self::EMPTY, one] })
    }

    /// Returns the CNAME RRset of an alias; `target` is in wire form.
    pub(super) fn cname(target: &'a [u8], ttl: u32) -> Self {
        Self { count: 1, weights: Weights::EQUAL, ttl, data: RRsetData::Cname(target) }
    }

    /// Returns an RRset of composed records, of any type.
    pub(super) fn composed(records: &'a ComposedRecords) -> Self {
        Self {
            count: records.ends.len(),
            weights: Weights::EQUAL,
            ttl: 0,
            data: RRsetData::Composed(records),
        }
    }

    /// Returns an RRset of addresses of `width` bytes each.
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

    /// Draws the order of at most `wanted` records of a message that has `used` bytes.
    pub(super) fn order(&self, wanted: usize, room: Room, used: usize, draw: u64) -> Order {
        let space = room.bytes.saturating_sub(used);
        // With equal weights a sample is drawn like the order of all.
        if self.weights.are_equal() || wanted == self.count && self.fits(room, used) {
            return Order::of_all(self.count, self.weights, draw);
        }
        // Every record takes at least RECORD_HEAD_BYTES, so no larger sample can fit.
        Order::of_some(wanted.min(space / RECORD_HEAD_BYTES + 1), self.count, self.weights, draw)
    }

    /// Returns whether all records, without glue, certainly fit after `used` bytes.
    fn fits(&self, room: Room, used: usize) -> bool {
        let bytes = match self.data {
            RRsetData::Addresses { width, .. } => (RECORD_HEAD_BYTES + width) * self.count,
            RRsetData::Cname(target) => RECORD_HEAD_BYTES + target.len(),
            RRsetData::Composed(records) => records.bytes.len(),
            RRsetData::Srv(srv) => {
                let bytes = srv.max_bytes();
                if used + bytes + room.saved_by(self.count) > MAX_WRITTEN_OUT_BYTES {
                    return false;
                }
                bytes
            }
        };
        used + bytes <= room.bytes
    }

    /// Appends up to `wanted` records in this order and returns how many fit.
    pub(super) fn put(&self, order: &Order, wanted: usize, room: Room, out: &mut Vec<u8>) -> usize {
        match self.data {
            RRsetData::Addresses { bytes, width: IPV4_BYTES } => {
                let rtype = rtype::A;
                put_addresses::<IPV4_BYTES>(bytes, rtype, self.ttl, order, wanted, room.bytes, out)
            }
            RRsetData::Addresses { bytes, .. } => {
                let rtype = rtype::AAAA;
                put_addresses::<IPV6_BYTES>(bytes, rtype, self.ttl, order, wanted, room.bytes, out)
            }
            RRsetData::Srv(srv) => {
                // The only compressed name of an SRV record is its owner.
                let per_record = room.saved_by(1);
                let fits = |position: usize, bytes: usize| {
                    bytes <= room.bytes
                        && bytes + (position + 1) * per_record <= MAX_WRITTEN_OUT_BYTES
                };
                put_fitting(wanted, fits, out, |position, out| {
                    srv.put(order.at(position), self.ttl, out);
                })
            }
            RRsetData::Cname(target) => {
                let fits = |_, bytes| bytes <= room.bytes;
                put_fitting(wanted, fits, out, |_, out| {
                    let head = record_head(OWNER_POINTER, rtype::CNAME, self.ttl, target.len());
                    out.extend_from_slice(&head);
                    out.extend_from_slice(target);
                })
            }
            RRsetData::Composed(records) => {
                let fits = |_, bytes| bytes <= room.bytes;
                put_fitting(wanted, fits, out, |position, out| {
                    out.extend_from_slice(records.get(order.at(position)));
                })
            }
        }
    }

    /// Appends glue for the first `put` records and returns the number of glue records.
    ///
    /// Each target address is written once, while there is room. The records themselves begin at
    /// `start`.
    pub(super) fn put_glue(
        &self,
        order: &Order,
        put: usize,
        start: usize,
        room: Room,
        out: &mut Vec<u8>,
    ) -> usize {
        match self.data {
            RRsetData::Addresses { .. } | RRsetData::Cname(_) => 0,
            RRsetData::Srv(srv) => srv.put_glue(order, put, start, room, out),
            RRsetData::Composed(records) => usize::from(records.put_glue(start, room.bytes, out)),
        }
    }
}

impl Room {
    /// Returns the bytes saved by pointers as the owners of this many records.
    fn saved_by(self, records: usize) -> usize {
        self.name_bytes.saturating_sub(OWNER_POINTER.len()) * records
    }
}

/// Appends A or AAAA records like [`RRset::put`], but with a constant record size.
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
    let head = record_head(OWNER_POINTER, rtype, ttl, N);
    let start = out.len();
    out.resize(start + put * (RECORD_HEAD_BYTES + N), 0);
    for (position, record) in out[start..].chunks_exact_mut(RECORD_HEAD_BYTES + N).enumerate() {
        record[..RECORD_HEAD_BYTES].copy_from_slice(&head);
        record[RECORD_HEAD_BYTES..]
            .copy_from_slice(addresses.get(order.at(position)).unwrap_or(&[0; N]));
    }
    put
}

/// Appends up to `wanted` records while they fit.
///
/// `fits` receives the position of the record and the size of the message with it in bytes.
fn put_fitting(
    wanted: usize,
    fits: impl Fn(usize, usize) -> bool,
    out: &mut Vec<u8>,
    mut put: impl FnMut(usize, &mut Vec<u8>),
) -> usize {
    for position in 0..wanted {
        let start = out.len();
        put(position, out);
        if !fits(position, out.len()) {
            out.truncate(start);
            return position;
        }
    }
    wanted
}

impl<'a> SrvSet<'a> {
    /// Returns the SRV entry at an index.
    fn entry(&self, index: usize) -> Option<&'a [u8]> {
        self.entries.get(index * SRV_ENTRY_BYTES..(index + 1) * SRV_ENTRY_BYTES)
    }

    /// Returns the target index of an SRV entry.
    fn target_index(&self, index: usize) -> Option<usize> {
        u16_at(self.entry(index)?, 4).map(usize::from)
    }

    /// Returns the target with this index.
    fn target(&self, index: usize) -> Option<SrvTarget<'a>> {
        let (v4_count, v6_count) = (self.v4.len() / 4, self.v6.len() / 16);
        if index < v4_count {
            let bytes: [u8; 4] = *self.v4[4 * index..].first_chunk()?;
            return Some(SrvTarget::Instance(bytes.into()));
        }
        let index = index - v4_count;
        if index < v6_count {
            let bytes: [u8; 16] = *self.v6[16 * index..].first_chunk()?;
            return Some(SrvTarget::Instance(bytes.into()));
        }
        host_name(self.names, index - v6_count).map(SrvTarget::Name)
    }

    /// Returns an upper bound for the size of all records in bytes.
    fn max_bytes(&self) -> usize {
        let label =
            if self.v6.is_empty() { "255-255-255-255".len() } else { MAX_INSTANCE_LABEL_BYTES };
        let record_bytes = RECORD_HEAD_BYTES + 6 + 1 + label + self.owner.len() + self.zone.len();
        // Instances can share one host name, so the size of `names` is no bound.
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
        // Copies a fixed number of bytes, with room for the longest IPv4 label, because that is one
        // fast copy; the surplus is truncated below.
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
            *head = record_head(OWNER_POINTER, rtype::SRV, ttl, bytes);
        }
    }

    /// Appends glue for the first `put` records; see [`RRset::put_glue`].
    fn put_glue(
        &self,
        order: &Order,
        put: usize,
        start: usize,
        room: Room,
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

    /// Appends glue; finds duplicates with a bit set, for too many records to scan.
    ///
    /// A separate function, so that the usual answer does not reserve the 8 KiB of stack.
    #[inline(never)]
    fn put_glue_of_many(
        &self,
        order: &Order,
        put: usize,
        start: usize,
        room: Room,
        out: &mut Vec<u8>,
    ) -> usize {
        let mut seen = [0u64; TARGET_INDEXES / 64];
        let is_duplicate = |_, index: usize| {
            let (word, bit) = (&mut seen[index / 64], 1 << (index % 64));
            std::mem::replace(word, *word | bit) & bit != 0
        };
        self.put_glue_once(is_duplicate, order, put, start, room, out)
    }

    /// Appends the addresses of targets, skipping those that `is_duplicate` reports.
    ///
    /// `is_duplicate` receives the position of the record and its target index, in order of
    /// position.
    fn put_glue_once(
        &self,
        mut is_duplicate: impl FnMut(usize, usize) -> bool,
        order: &Order,
        put: usize,
        start: usize,
        room: Room,
        out: &mut Vec<u8>,
    ) -> usize {
        let (mut count, mut record) = (0, start);
        // Bytes that compression has saved so far.
        let mut saved = room.saved_by(put);
        for position in 0..put {
            let target = record + SRV_TARGET_OFFSET;
            record += RECORD_HEAD_BYTES
                + usize::from(u16_at(out, record + RECORD_HEAD_BYTES - 2).unwrap_or(0));
            let index = self.target_index(order.at(position)).unwrap_or_default();
            if is_duplicate(position, index) {
                continue;
            }
            let Some(SrvTarget::Instance(address)) = self.target(index) else { continue };
            let (end, owner_bytes) = (out.len(), record.saturating_sub(target));
            if !put_address(target..record, address, start, room.bytes, out) {
                break;
            }
            if out.get(end).is_some_and(|first| *first >= 0xC0) {
                saved += owner_bytes.saturating_sub(OWNER_POINTER.len());
            }
            if out.len() + saved > MAX_WRITTEN_OUT_BYTES {
                out.truncate(end);
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

    /// Sets the address of the name server that the only record, an NS record, names.
    pub(super) fn put_glue_address(&mut self, address: IpAddr) {
        self.glue = Some(address);
    }

    /// Returns whether there are no records.
    pub(super) fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Returns the bytes of the record at an index.
    fn get(&self, index: usize) -> &[u8] {
        let start =
            index.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        self.ends.get(index).and_then(|end| self.bytes.get(start..*end)).unwrap_or_default()
    }

    /// Appends the glue of the only record, if it has any and it fits.
    fn put_glue(&self, start: usize, room: usize, out: &mut Vec<u8>) -> bool {
        let Some(address) = self.glue.filter(|_| out.len() > start) else { return false };
        put_address(start + RECORD_HEAD_BYTES..out.len(), address, start, room, out)
    }
}

/// Appends an address record if it fits into `room`, else returns `false`.
///
/// The owner is the name at `name` in the message; the TTL is that of the record at `start`.
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
    // Pointers have 14 bits (RFC 1035 section 4.1.4).
    let pointer = u16::try_from(name.start).ok().filter(|position| *position < 0x4000);
    if let Some(position) = pointer {
        out.extend_from_slice(&record_head((0xC000 | position).to_be_bytes(), rtype, ttl, bytes));
    } else {
        out.extend_from_within(name);
        out.extend_from_slice(&record_head(OWNER_POINTER, rtype, ttl, bytes)[2..]);
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

/// Returns the bytes of a record up to its data; its owner is a pointer.
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
