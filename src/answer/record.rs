//! One owner's RRsets as ready-made octets, and how records are chosen from them.
//!
//! Every record's owner is the pointer to the question (`C0 0C`); SRV targets are written whole (RFC 2782 forbids
//! compressing one), so that records are cut and reordered without patching. Addresses are kept bare: what stands in front of
//! them is the same for all of a type. So is glue: its owner stands in the SRV record.

use std::net::IpAddr;

use crate::wire::{OWNER, put_u16, put_u32, rtype, u16_at};

/// Where nothing more can be chosen than the records there are, in what order they are put.
#[derive(Debug)]
pub(super) enum Order {
    /// From `start` on, around the records that have a weight, then those that have none.
    Around {
        /// The first.
        start: usize,
        /// Records with a weight; they stand first.
        live: usize,
        /// All records.
        count: usize,
        /// Records put so far.
        at: usize,
    },
    /// A weighted sample.
    Sampled(std::vec::IntoIter<u32>),
}

impl Iterator for Order {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        match self {
            Self::Around { start, live, count, at } => {
                let index = match *at {
                    at if at < *live - *start => *start + at,
                    at if at < *live => at - (*live - *start),
                    at if at < *count => at,
                    _ => return None,
                };
                *at += 1;
                Some(index)
            }
            Self::Sampled(order) => order.next().map(|index| index as usize),
        }
    }
}

/// One RRset of a record.
#[derive(Clone, Copy, Debug)]
pub(super) struct RRset<'a> {
    /// Number of records.
    pub(super) count: usize,
    /// Running sums of the weights, four octets each, where weights differ; records of weight 0 stand last.
    weights: Option<&'a [u8]>,
    /// What all records begin with, where they are addresses: owner, type, class, TTL and length.
    head: [u8; HEAD],
    /// Octets of an address, where the set is of addresses, else 0.
    stride: usize,
    /// Where each unit starts, four octets each; none where there is one unit only or a stride.
    offsets: &'a [u8],
    /// The records; without a stride, each followed by the address that is its glue, 4 or 16 octets, or none.
    units: &'a [u8],
}

impl<'a> RRset<'a> {
    /// A set without records.
    pub(super) const EMPTY: Self = Self { count: 0, weights: None, head: [0; HEAD], stride: 0, offsets: &[], units: &[] };

    /// The set that [`SetBuilder::build`] made of records of equal weight.
    pub(super) fn of_units(octets: &'a [u8], count: usize) -> Self {
        let (offsets, units) = octets.split_at(if count > 1 { (4 * count).min(octets.len()) } else { 0 });
        Self { count, weights: None, head: [0; HEAD], stride: 0, offsets, units }
    }

    /// What the record at `index` begins with, if that is the same in all; the rest of it; and the octets of the address
    /// that its data's name has, if it is known.
    pub(super) fn unit(&self, index: usize) -> (&[u8], &'a [u8], &'a [u8]) {
        if self.stride > 0 {
            return (&self.head, &self.units[index * self.stride..(index + 1) * self.stride], &[]);
        }
        let start = u32_at(self.offsets, index).unwrap_or(0);
        let end = u32_at(self.offsets, index + 1).unwrap_or(self.units.len());
        let unit = &self.units[start..end];
        let (record, glue) = unit.split_at(HEAD + usize::from(u16_at(unit, HEAD - 2).unwrap_or(0)));
        (&[], record, glue)
    }

    /// Octets of all records without glue, counted no further than past `limit`.
    pub(super) fn octets(&self, limit: usize) -> usize {
        if self.stride > 0 {
            return (HEAD + self.stride) * self.count;
        }
        let mut octets = 0;
        for index in 0..self.count {
            octets += self.unit(index).1.len();
            if octets > limit {
                break;
            }
        }
        octets
    }

    /// The order in which to put records. `all` says that every one will be: then the first place alone is drawn, in
    /// proportion to weight; else the order is a weighted sample without replacement, of no more than `most`.
    pub(super) fn order(&self, all: bool, most: usize, draw: u64) -> Order {
        let count = self.count;
        let Some(weights) = self.weights else {
            let start = usize::try_from(draw % (count.max(1) as u64)).unwrap_or(0);
            return Order::Around { start, live: count, count, at: 0 };
        };
        let total = u32_at(weights, count - 1).unwrap_or(0);
        let sum = |index: usize| u32_at(weights, index).unwrap_or(0);
        if all {
            let ticket = usize::try_from(draw % (total.max(1) as u64)).unwrap_or(0);
            let live = partition(count, |index| sum(index) < total) + 1;
            let start = partition(live, |index| sum(index) <= ticket);
            return Order::Around { start, live, count, at: 0 };
        }
        // Efraimidis and Spirakis (2006): the k largest of u^(1/w) are a sample without replacement by weight.
        let mut random = fastrand::Rng::with_seed(draw);
        let mut keyed: Vec<(f64, u32)> = (0..count)
            .zip(0u32..)
            .map(|(index, number)| {
                let weight = sum(index) - index.checked_sub(1).map_or(0, sum);
                #[expect(clippy::cast_precision_loss, reason = "a weight has 16 bits, a sum 32")]
                let key = if weight == 0 { -1.0 - random.f64() } else { random.f64().powf(1.0 / weight as f64) };
                (key, number)
            })
            .collect();
        let heavier = |a: &(f64, u32), b: &(f64, u32)| b.0.total_cmp(&a.0);
        if most < keyed.len() {
            keyed.select_nth_unstable_by(most, heavier);
            keyed.truncate(most);
        }
        keyed.sort_unstable_by(heavier);
        Order::Sampled(keyed.into_iter().map(|(_, index)| index).collect::<Vec<_>>().into_iter())
    }
}

/// The first index of `0..count` for which `below` does not hold; it holds for a prefix.
fn partition(count: usize, below: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low.midpoint(high);
        if below(middle) { low = middle + 1 } else { high = middle }
    }
    low
}

fn u32_at(bytes: &[u8], index: usize) -> Option<usize> {
    let start = index * 4;
    let quad = bytes.get(start..start + 4)?;
    Some(u32::from_be_bytes([quad[0], quad[1], quad[2], quad[3]]) as usize)
}

/// What one owner has: its addresses, and its services with their glue.
///
/// Octets: flags; a count of two octets for each of A, AAAA and SRV that there is; the sets. What is the same in all records
/// stands in none: of addresses only the address itself is kept. An instance's own record is its flags and its address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record<'a> {
    flags: u8,
    sets: [RRset<'a>; 3],
}

/// Other types than addresses are not in the record.
const ADDRESSES_ONLY: u8 = 1;
/// Instances are known by host names only, whose addresses are not known.
const HOSTS_ONLY: u8 = 2;
/// The first of three bits: the set's weights differ.
const WEIGHTED: u8 = 4;

/// The first of three bits: the record has the set.
const PRESENT: u8 = 32;

/// Octets of a record in front of its data: owner pointer, type, class, TTL and length.
const HEAD: usize = 12;
/// Octets of an address, by set.
const STRIDES: [usize; 3] = [4, 16, 0];
/// Types, by set.
const TYPES: [u16; 3] = [rtype::A, rtype::AAAA, rtype::SRV];

impl<'a> Record<'a> {
    /// Reads what [`RecordBuilder::build`] wrote; its records live for `ttl` seconds.
    pub(super) fn read(bytes: &'a [u8], ttl: u32) -> Self {
        let flags = bytes.first().copied().unwrap_or(0);
        let mut sets = [RRset::EMPTY; 3];
        let mut rest = bytes.get(1..).unwrap_or_default();
        let present = |number: usize| flags & (PRESENT << number) != 0;
        let mut counts = [0; 3];
        for number in (0..3).filter(|number| present(*number)) {
            let one = flags & ADDRESSES_ONLY != 0;
            counts[number] = if one { 1 } else { u16_at(take(&mut rest, 2), 0).map_or(0, usize::from) };
        }
        for (number, set) in sets.iter_mut().enumerate() {
            let count = counts[number];
            if count == 0 {
                continue;
            }
            let stride = STRIDES[number];
            let weights = (flags & (WEIGHTED << number) != 0).then(|| take(&mut rest, 4 * count));
            let offsets = if stride == 0 && count > 1 { take(&mut rest, 4 * count) } else { &[] };
            let octets = if stride == 0 { rest.len() } else { stride * count };
            let head = head(TYPES[number], ttl, stride);
            *set = RRset { count, weights, head, stride, offsets, units: take(&mut rest, octets) };
        }
        Self { flags, sets }
    }

    /// The A RRset.
    pub(super) fn a(&self) -> RRset<'a> {
        self.sets[0]
    }

    /// The AAAA RRset.
    pub(super) fn aaaa(&self) -> RRset<'a> {
        self.sets[1]
    }

    /// The SRV RRset, each record with its glue.
    pub(super) fn srv(&self) -> RRset<'a> {
        self.sets[2]
    }

    /// Whether types other than A and AAAA must be asked of the full path.
    pub(super) fn addresses_only(&self) -> bool {
        self.flags & ADDRESSES_ONLY != 0
    }

    /// Whether every instance is known by a host name, and no address of one is known.
    pub(super) fn hosts_only(&self) -> bool {
        self.flags & HOSTS_ONLY != 0
    }
}

/// What records of the question's owner with so many octets of data begin with.
fn head(rtype: u16, ttl: u32, octets: usize) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[..2].copy_from_slice(&OWNER);
    head[2..4].copy_from_slice(&rtype.to_be_bytes());
    head[4..6].copy_from_slice(&rtype::IN.to_be_bytes());
    head[6..10].copy_from_slice(&ttl.to_be_bytes());
    head[10..].copy_from_slice(&u16::try_from(octets).unwrap_or(0).to_be_bytes());
    head
}

fn take<'a>(rest: &mut &'a [u8], octets: usize) -> &'a [u8] {
    let (taken, left) = rest.split_at(octets.min(rest.len()));
    *rest = left;
    taken
}

/// A set of records on the way to its octets.
#[derive(Debug, Default)]
pub(super) struct SetBuilder {
    octets: Vec<u8>,
    units: Vec<Unit>,
}

/// A record and its glue, as they stand in a builder's octets.
#[derive(Clone, Copy, Debug)]
struct Unit {
    weight: u32,
    start: usize,
    record: usize,
    end: usize,
}

impl SetBuilder {
    /// Adds a record. That it is no other's equal is the caller's care.
    pub(super) fn put(&mut self, weight: u32, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.octets.len();
        write(&mut self.octets);
        let end = self.octets.len();
        self.units.push(Unit { weight, start, record: end, end });
    }

    /// Adds to the weight of the record that ends with these octets, if there is one.
    pub(super) fn grow(&mut self, data: &[u8], weight: u32) -> bool {
        let same = self.units.iter_mut().find(|unit| self.octets[unit.start..unit.record].ends_with(data));
        same.map(|unit| unit.weight = unit.weight.saturating_add(weight)).is_some()
    }

    /// Gives the last record its glue.
    pub(super) fn put_glue(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.octets.extend_from_slice(&address.octets()),
            IpAddr::V6(address) => self.octets.extend_from_slice(&address.octets()),
        }
        if let Some(last) = self.units.last_mut() {
            last.end = self.octets.len();
        }
    }

    /// Whether there is no record.
    pub(super) fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    /// The octets of a set whose records have no weight, and how many they are: see [`RRset::of_units`].
    pub(super) fn build(mut self) -> (Vec<u8>, usize) {
        let count = self.units.len();
        for unit in &mut self.units {
            unit.weight = 1;
        }
        let mut out = Vec::with_capacity(self.octets.len() + 4 * count);
        self.write(true, &mut out);
        (out, count)
    }

    fn clear(&mut self) {
        self.octets.clear();
        self.units.clear();
    }

    /// Appends weights, offsets and units; says whether weights differ.
    fn write(&mut self, offsets: bool, out: &mut Vec<u8>) -> bool {
        let weighted = self.units.windows(2).any(|pair| pair[0].weight != pair[1].weight);
        if weighted {
            // Stable: records keep their order but for those of weight 0, which stand last.
            self.units.sort_by_key(|unit| unit.weight == 0);
            let mut sum = 0u32;
            for unit in &self.units {
                sum = sum.saturating_add(unit.weight);
                put_u32(out, sum);
            }
        }
        if offsets && self.units.len() > 1 {
            let mut start = 0;
            for unit in &self.units {
                put_u32(out, u32::try_from(start).unwrap_or(u32::MAX));
                start += unit.end - unit.start;
            }
        }
        if weighted {
            for unit in &self.units {
                out.extend_from_slice(&self.octets[unit.start..unit.end]);
            }
        } else {
            out.extend_from_slice(&self.octets);
        }
        weighted
    }
}

/// Builds records' octets, one after the other.
#[derive(Debug, Default)]
pub(super) struct RecordBuilder {
    pub(super) a: SetBuilder,
    pub(super) aaaa: SetBuilder,
    pub(super) srv: SetBuilder,
    /// There is one address and nothing else: see [`Record::addresses_only`].
    pub(super) addresses_only: bool,
    /// See [`Record::hosts_only`].
    pub(super) hosts_only: bool,
}

impl RecordBuilder {
    /// Appends the octets that [`Record::read`] reads, and begins anew.
    pub(super) fn build(&mut self, out: &mut Vec<u8>) {
        let Self { a, aaaa, srv, addresses_only, hosts_only } = self;
        let start = out.len();
        out.push(0);
        let mut flags = if *addresses_only { ADDRESSES_ONLY } else { 0 } | if *hosts_only { HOSTS_ONLY } else { 0 };
        let mut sets = [a, aaaa, srv];
        for (number, set) in sets.iter_mut().enumerate().filter(|(_, set)| !set.is_empty()) {
            // More would not fit any message; the catalog caps instances far below.
            set.units.truncate(usize::from(u16::MAX));
            set.octets.truncate(set.units.last().map_or(0, |unit| unit.end));
            flags |= PRESENT << number;
            if !*addresses_only {
                put_u16(out, u16::try_from(set.units.len()).unwrap_or(u16::MAX));
            }
        }
        for (number, set) in sets.into_iter().enumerate() {
            if set.write(STRIDES[number] == 0, out) {
                flags |= WEIGHTED << number;
            }
            set.clear();
        }
        out[start] = flags;
        (self.addresses_only, self.hosts_only) = (false, false);
    }
}
