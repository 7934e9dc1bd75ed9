//! One owner's RRsets as ready-made bytes.
//!
//! What is the same in all records of an RRset stands in none of them: of an address record there is the address, of an SRV
//! record its weight, its port and which address its target is named after (`10-0-0-1.hello.svc.`). So an instance takes some
//! ten bytes, and one line of the processor's cache holds a usual service.

use std::net::IpAddr;

use super::weights::{WEIGHT_SUM_BYTES, Weights};
use crate::catalog::MAX_INSTANCES_PER_SERVICE;
use crate::service::RegistrySet;
use crate::wire::{name_end, put_u16, put_u32, u16_at, u32_at};

/// What one owner has: its addresses, and its srv.
///
/// Bytes: flags; the registries that hold it, a bit each, in two bytes; a count of two bytes for each of A, AAAA and
/// SRV that there is; of each the running sums of weights where they differ, and the addresses or srv, six bytes
/// each; the host names among their targets, behind their new_indexes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node<'a> {
    flags: u8,
    registries: RegistrySet,
    counts: [u16; 3],
    /// All behind the counts.
    sets: &'a [u8],
}

/// A set as it is kept: the running sums of weights, if any, and its addresses or srv.
#[derive(Clone, Copy, Debug)]
pub(super) struct PackedSet<'a> {
    /// The weights of its records.
    pub(super) weights: Weights<'a>,
    /// Its addresses or srv, [`IPV4_BYTES`], [`IPV6_BYTES`] or [`SRV_ENTRY_BYTES`] bytes each.
    pub(super) bytes: &'a [u8],
}

/// All sets of a record.
#[derive(Clone, Copy, Debug)]
pub(super) struct PackedSets<'a> {
    /// Addresses of v4 bytes.
    pub(super) v4: PackedSet<'a>,
    /// Addresses of v6 bytes.
    pub(super) v6: PackedSet<'a>,
    /// Services: weight, port, and the number of the target.
    pub(super) srv: PackedSet<'a>,
    /// The host names among the targets, read by [`name`].
    pub(super) names: &'a [u8],
}

/// The first of three bits: the record has the set.
const FLAG_PRESENT: u8 = 1;
/// The first of three bits: the set's weights differ.
const FLAG_WEIGHTED: u8 = 8;
/// Some targets are host names.
const FLAG_HOST_NAMES: u8 = 64;
/// The record says nothing but that something stands at this name or below it.
const FLAG_MARKER: u8 = 128;

/// Octets of the set of registries.
const REGISTRY_SET_BYTES: usize = 2;
/// Octets of an IPv4 address.
pub(super) const IPV4_BYTES: usize = 4;
/// Octets of an IPv6 address.
pub(super) const IPV6_BYTES: usize = 16;
/// Octets of a service: weight, port, and the number of its target among addresses of v4 bytes, of v6, and names.
pub(super) const SRV_ENTRY_BYTES: usize = 6;
/// Octets of the place of a name.
const NAME_OFFSET_BYTES: usize = 4;

impl<'a> Node<'a> {
    /// Reads what [`NodeBuilder::build`] wrote: as much of it as every question needs.
    pub(super) fn read(bytes: &'a [u8]) -> Self {
        let (&flags, rest) = bytes.split_first().unwrap_or((&0, &[]));
        // A marker has none.
        let (registries, mut sets) =
            rest.split_first_chunk().unwrap_or((&[0; REGISTRY_SET_BYTES], rest));
        let registries = RegistrySet::from_bits(u16::from_be_bytes(*registries));
        let mut counts = [0; 3];
        for (number, count) in counts.iter_mut().enumerate() {
            if flags & (FLAG_PRESENT << number) != 0 {
                *count = u16_at(take_bytes(&mut sets, 2), 0).unwrap_or(0);
            }
        }
        Self { flags, registries, counts, sets }
    }

    /// The first set, of addresses of v4 bytes: no other is read for it.
    pub(super) fn v4(&self) -> PackedSet<'a> {
        self.take_set(0, &mut { self.sets })
    }

    /// All sets, and the names behind them.
    pub(super) fn sets(&self) -> PackedSets<'a> {
        let mut rest = self.sets;
        let [v4, v6, srv] = [0, 1, 2].map(|number| self.take_set(number, &mut rest));
        PackedSets { v4, v6, srv, names: rest }
    }

    fn take_set(&self, number: usize, rest: &mut &'a [u8]) -> PackedSet<'a> {
        let count = usize::from(self.counts[number]);
        let sums = if self.flags & (FLAG_WEIGHTED << number) != 0 {
            take_bytes(rest, WEIGHT_SUM_BYTES * count)
        } else {
            &[]
        };
        PackedSet {
            weights: Weights::new(sums),
            bytes: take_bytes(rest, [IPV4_BYTES, IPV6_BYTES, SRV_ENTRY_BYTES][number] * count),
        }
    }

    /// Whether the record says nothing but that something stands at this name or below it.
    pub(super) fn is_marker(&self) -> bool {
        self.flags & FLAG_MARKER != 0
    }

    /// Returns the registries that hold its instances.
    pub(super) fn registries(&self) -> RegistrySet {
        self.registries
    }

    /// Whether every instance is known by a host name, and no address of one is known.
    pub(super) fn has_only_host_names(&self) -> bool {
        self.flags & FLAG_HOST_NAMES != 0 && self.counts[0] == 0 && self.counts[1] == 0
    }

    /// The bytes of this address, if an instance is known to be registered by it.
    pub(super) fn instance_address(&self, address: IpAddr) -> Option<&'a [u8]> {
        // An address may be that of a registered host name, which is no instance's name.
        if self.flags & FLAG_HOST_NAMES != 0 {
            return None;
        }
        let PackedSets { v4, v6, .. } = self.sets();
        match address {
            IpAddr::V4(address) => v4.find(&address.octets()),
            IpAddr::V6(address) => v6.find(&address.octets()),
        }
    }
}

impl<'a> PackedSet<'a> {
    /// The bytes of this address, if it is in the set.
    fn find(&self, address: &[u8]) -> Option<&'a [u8]> {
        self.bytes.chunks_exact(address.len()).find(|known| *known == address)
    }
}

fn take_bytes<'a>(rest: &mut &'a [u8], bytes: usize) -> &'a [u8] {
    let (taken, left) = rest.split_at(bytes.min(rest.len()));
    *rest = left;
    taken
}

/// The name at `index` among the targets.
pub(super) fn host_name(names: &[u8], index: usize) -> Option<&[u8]> {
    let start = u32_at(names, NAME_OFFSET_BYTES * index)? as usize;
    names.get(start..name_end(names, start, false)?)
}

/// A record on the way. Reused from one to the next.
#[derive(Debug, Default)]
pub(super) struct NodeBuilder {
    registries: RegistrySet,
    v4: Vec<(u32, [u8; 4])>,
    v6: Vec<(u32, [u8; 16])>,
    srv: Vec<(u16, u16, TargetIndex)>,
    names: Vec<Box<[u8]>>,
}

/// What a service's target is: the place, in the order of coming, of an address of this many bytes, or of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TargetIndex {
    /// Of v4 bytes.
    V4(usize),
    /// Of v6.
    V6(usize),
    /// A name.
    Name(usize),
}

/// Most addresses of a family, names and srv of one owner. Only addresses of host names can be more than the catalog lets
/// a service have; those beyond are left out.
const MAX_SET_ENTRIES: usize = MAX_INSTANCES_PER_SERVICE;

impl NodeBuilder {
    /// Says which registries hold what is put.
    pub(super) fn set_registries(&mut self, registries: RegistrySet) {
        self.registries = registries;
    }

    /// Adds an address. That it is not there yet is the caller's care.
    pub(super) fn put_address(&mut self, address: IpAddr, weight: u32) -> TargetIndex {
        match address {
            IpAddr::V4(address) => {
                self.v4.push((weight, address.octets()));
                TargetIndex::V4(self.v4.len() - 1)
            }
            IpAddr::V6(address) => {
                self.v6.push((weight, address.octets()));
                TargetIndex::V6(self.v6.len() - 1)
            }
        }
    }

    /// Adds to the weight of an address, if it is there.
    pub(super) fn add_weight(&mut self, address: IpAddr, more: u32) -> bool {
        let weight = match address {
            IpAddr::V4(address) => self
                .v4
                .iter_mut()
                .find(|(_, known)| *known == address.octets())
                .map(|(weight, _)| weight),
            IpAddr::V6(address) => self
                .v6
                .iter_mut()
                .find(|(_, known)| *known == address.octets())
                .map(|(weight, _)| weight),
        };
        weight.map(|weight| *weight = weight.saturating_add(more)).is_some()
    }

    /// Adds a name that srv have as their target.
    pub(super) fn put_name(&mut self, name: &[u8]) -> TargetIndex {
        self.names.push(name.into());
        TargetIndex::Name(self.names.len() - 1)
    }

    /// Adds a service.
    pub(super) fn put_srv(&mut self, weight: u16, port: u16, target: TargetIndex) {
        self.srv.push((weight, port, target));
    }

    /// Appends the bytes that [`Record::read`] reads, and begins anew.
    pub(super) fn build(&mut self, out: &mut Vec<u8>) {
        let Self { registries, v4, v6, srv, names } = self;
        v4.truncate(MAX_SET_ENTRIES);
        v6.truncate(MAX_SET_ENTRIES);
        names.truncate(MAX_SET_ENTRIES);
        let start = out.len();
        out.push(if names.is_empty() { 0 } else { FLAG_HOST_NAMES });
        put_u16(out, registries.bits());
        let counts = [v4.len(), v6.len()];
        let is_kept = |target: TargetIndex| match target {
            TargetIndex::V4(place) => place < counts[0],
            TargetIndex::V6(place) => place < counts[1],
            TargetIndex::Name(place) => place < names.len(),
        };
        srv.retain(|(_, _, target)| is_kept(*target));
        srv.truncate(MAX_SET_ENTRIES);
        for (number, count) in
            [v4.len(), v6.len(), srv.len()].into_iter().enumerate().filter(|(_, count)| *count > 0)
        {
            out[start] |= FLAG_PRESENT << number;
            put_u16(out, u16::try_from(count).unwrap_or(u16::MAX));
        }
        let v4_order = put_set(
            v4,
            |(weight, _)| *weight,
            0,
            start,
            out,
            |(_, address), out| out.extend_from_slice(address),
        );
        let v6_order = put_set(
            v6,
            |(weight, _)| *weight,
            1,
            start,
            out,
            |(_, address), out| out.extend_from_slice(address),
        );
        let place = |target: TargetIndex| match target {
            TargetIndex::V4(place) => v4_order.get(place).copied().unwrap_or(place),
            TargetIndex::V6(place) => counts[0] + v6_order.get(place).copied().unwrap_or(place),
            TargetIndex::Name(place) => counts[0] + counts[1] + place,
        };
        put_set(
            srv,
            |(weight, ..)| u32::from(*weight),
            2,
            start,
            out,
            |(weight, port, target), out| {
                put_u16(out, *weight);
                put_u16(out, *port);
                put_u16(out, u16::try_from(place(*target)).unwrap_or(u16::MAX));
            },
        );
        let mut at = NAME_OFFSET_BYTES * names.len();
        for name in names.iter() {
            put_u32(out, u32::try_from(at).unwrap_or(u32::MAX));
            at += name.len();
        }
        for name in names.iter() {
            out.extend_from_slice(name);
        }
        v4.clear();
        v6.clear();
        srv.clear();
        names.clear();
    }
}

/// Appends the bytes of a record that is a marker.
pub(super) fn put_marker(out: &mut Vec<u8>) {
    out.push(FLAG_MARKER);
}

/// Appends a set: where weights differ, their running sums, records of weight 0 last. The new new_indexes of the records, where
/// they changed.
fn put_set<T>(
    set: &mut [T],
    weight: impl Fn(&T) -> u32,
    number: usize,
    start: usize,
    out: &mut Vec<u8>,
    mut put: impl FnMut(&T, &mut Vec<u8>),
) -> Vec<usize> {
    let mut new_indexes = Vec::new();
    if set.windows(2).any(|pair| weight(&pair[0]) != weight(&pair[1])) {
        out[start] |= FLAG_WEIGHTED << number;
        let mut order: Vec<usize> = (0..set.len()).collect();
        // Stable: records keep their order but for those of weight 0.
        order.sort_by_key(|place| weight(&set[*place]) == 0);
        let mut sum = 0u32;
        for place in &order {
            sum = sum.saturating_add(weight(&set[*place]));
            put_u32(out, sum);
        }
        new_indexes.resize(set.len(), 0);
        for (new, place) in order.iter().enumerate() {
            new_indexes[*place] = new;
            put(&set[*place], out);
        }
    } else {
        for one in set.iter() {
            put(one, out);
        }
    }
    new_indexes
}
