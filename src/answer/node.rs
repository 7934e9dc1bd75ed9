//! Precompiled nodes: all RRsets of one owner name, packed into bytes.
//!
//! A node (RFC 1034 section 3.1) stores only what differs between the records of an RRset: the
//! address of an A or AAAA record; weight, port and target of an SRV record. Most targets are
//! instance names (`10-0-0-1.hello.svc.`), so the target is stored as the index of an address. An
//! instance takes about ten bytes, and a typical service fits one cache line.

use std::net::{IpAddr, Ipv4Addr};

use super::holders::{HolderSets, Holders, REGISTRY_SET_BYTES};
use super::weights::{WEIGHT_SUM_BYTES, Weights};
use crate::catalog::MAX_INSTANCES_PER_SERVICE;
use crate::service::RegistrySet;
use crate::wire::{name_end, put_u16, put_u32, u16_at, u32_at};

/// View of one precompiled node.
///
/// A bridged node begins with [`FLAGS_BRIDGED`] (1 byte) and its address (4 bytes). Then, and for
/// all others:
///
/// Layout: flags (1 byte); holders; record counts of the A, AAAA and SRV sets that are present
/// (2 bytes each); for each set, running sums of weights if they differ, then its entries; offsets
/// of host names used as targets, then those names. All numbers are big-endian.
///
/// Holders: if each instance is in one registry only, the set of these registries (2 bytes, one bit
/// each). Otherwise, an empty set, the number of sets (2 bytes), and the sets of registries that
/// hold an instance.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node<'a> {
    flags: u8,
    holders: Holders<'a>,
    counts: [u16; 3],
    /// Bytes after the counts: the sets and the host names.
    sets: &'a [u8],
    /// Address that the port bridge gave to the name; empty if it gave none.
    bridge: &'a [u8],
}

/// One set as stored in a node: running sums of weights, if any, and its entries.
#[derive(Clone, Copy, Debug)]
pub(super) struct PackedSet<'a> {
    /// The weights of its records.
    pub(super) weights: Weights<'a>,
    /// Entries of [`IPV4_BYTES`], [`IPV6_BYTES`] or [`SRV_ENTRY_BYTES`] each.
    pub(super) bytes: &'a [u8],
}

/// All sets of a node.
#[derive(Clone, Copy, Debug)]
pub(super) struct PackedSets<'a> {
    /// IPv4 addresses.
    pub(super) v4: PackedSet<'a>,
    /// IPv6 addresses.
    pub(super) v6: PackedSet<'a>,
    /// SRV entries: weight, port and target index.
    pub(super) srv: PackedSet<'a>,
    /// Host names among the targets, read by [`host_name`].
    pub(super) names: &'a [u8],
}

/// First of three bits, in the order A, AAAA, SRV: the set is present.
const FLAG_PRESENT: u8 = 1;
/// First of three bits, in the same order: the weights of the set differ.
const FLAG_WEIGHTED: u8 = 8;
/// Bit of nodes with host names among their targets.
const FLAG_HOST_NAMES: u8 = 64;
/// Bit of markers: the full path looks up the name and the names below it.
const FLAG_MARKER: u8 = 128;
/// Bits of the alias (CNAME) of a name outside the zones, whose wire form follows.
const FLAGS_ALIAS: u8 = FLAG_MARKER | FLAG_HOST_NAMES;

/// Bits in front of a node with an address of the port bridge.
const FLAGS_BRIDGED: u8 = FLAG_MARKER | FLAG_PRESENT;

/// Size of an IPv4 address, in bytes.
pub(super) const IPV4_BYTES: usize = 4;
/// Size of an IPv6 address, in bytes.
pub(super) const IPV6_BYTES: usize = 16;
/// Size of an SRV entry in bytes: weight, port and target index, two bytes each.
///
/// Target indexes count the IPv4 addresses first, then the IPv6 addresses, then the host names.
pub(super) const SRV_ENTRY_BYTES: usize = 6;
/// Size of the offset of a host name, in bytes.
const NAME_OFFSET_BYTES: usize = 4;

impl<'a> Node<'a> {
    /// Reads the header of a node; `bytes` are from [`NodeBuilder::build`].
    pub(super) fn read(bytes: &'a [u8]) -> Self {
        let (&(mut flags), mut rest) = bytes.split_first().unwrap_or((&0, &[]));
        let mut bridge: &[u8] = &[];
        if flags == FLAGS_BRIDGED {
            bridge = take_bytes(&mut rest, IPV4_BYTES);
            flags = take_bytes(&mut rest, 1).first().copied().unwrap_or(0);
        }
        // A marker consists of the flags only.
        let (registries, mut sets) =
            rest.split_first_chunk().unwrap_or((&[0; REGISTRY_SET_BYTES], rest));
        let single = RegistrySet::from_bits(u16::from_be_bytes(*registries));
        let mut packed: &[u8] = &[];
        if single.is_empty() {
            let count = u16_at(take_bytes(&mut sets, 2), 0).unwrap_or(0);
            packed = take_bytes(&mut sets, REGISTRY_SET_BYTES * usize::from(count));
        }
        let mut counts = [0; 3];
        for (set_index, count) in counts.iter_mut().enumerate() {
            if flags & (FLAG_PRESENT << set_index) != 0 {
                *count = u16_at(take_bytes(&mut sets, 2), 0).unwrap_or(0);
            }
        }
        Self { flags, holders: Holders { single, packed }, counts, sets, bridge }
    }

    /// Returns the IPv4 set without reading the sets after it.
    pub(super) fn v4(&self) -> PackedSet<'a> {
        self.take_set(0, &mut { self.sets })
    }

    /// Returns the set with the address of the port bridge, if the name is bridged.
    pub(super) fn bridge(&self) -> Option<PackedSet<'a>> {
        let set = PackedSet { weights: Weights::EQUAL, bytes: self.bridge };
        (!self.bridge.is_empty()).then_some(set)
    }

    /// Returns all sets and the host names after them.
    pub(super) fn sets(&self) -> PackedSets<'a> {
        let mut rest = self.sets;
        let [v4, v6, srv] = [0, 1, 2].map(|set_index| self.take_set(set_index, &mut rest));
        PackedSets { v4, v6, srv, names: rest }
    }

    /// Splits the next set off `rest`.
    fn take_set(&self, set_index: usize, rest: &mut &'a [u8]) -> PackedSet<'a> {
        let count = usize::from(self.counts[set_index]);
        let sums = if self.flags & (FLAG_WEIGHTED << set_index) != 0 {
            take_bytes(rest, WEIGHT_SUM_BYTES * count)
        } else {
            &[]
        };
        PackedSet {
            weights: Weights::new(sums),
            bytes: take_bytes(rest, [IPV4_BYTES, IPV6_BYTES, SRV_ENTRY_BYTES][set_index] * count),
        }
    }

    /// Returns whether the node is a marker or an alias, which have no sets.
    pub(super) fn is_marker(&self) -> bool {
        self.flags & FLAG_MARKER != 0
    }

    /// Returns the registries that hold the node's instances.
    pub(super) fn holders(&self) -> Holders<'a> {
        self.holders
    }

    /// Returns whether all instances are host names without a known address.
    pub(super) fn has_only_host_names(&self) -> bool {
        self.flags & FLAG_HOST_NAMES != 0 && self.counts[0] == 0 && self.counts[1] == 0
    }

    /// Returns the stored bytes of `address` if an instance is registered at it.
    pub(super) fn instance_address(&self, address: IpAddr) -> Option<&'a [u8]> {
        // An address may come from resolving a host name; such an address names no instance.
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
    /// Returns the stored bytes of `address` if the set has it.
    fn find(&self, address: &[u8]) -> Option<&'a [u8]> {
        self.bytes.chunks_exact(address.len()).find(|known| *known == address)
    }
}

/// Splits up to `bytes` bytes off the front of `rest`.
fn take_bytes<'a>(rest: &mut &'a [u8], bytes: usize) -> &'a [u8] {
    let (first, left) = rest.split_at(bytes.min(rest.len()));
    *rest = left;
    first
}

/// Returns the host name at an index that counts only host names.
pub(super) fn host_name(names: &[u8], index: usize) -> Option<&[u8]> {
    let start = u32_at(names, NAME_OFFSET_BYTES * index)? as usize;
    names.get(start..name_end(names, start, false)?)
}

/// Builds nodes, one after the other, in the same buffers.
#[derive(Debug, Default)]
pub(super) struct NodeBuilder {
    holders: HolderSets,
    v4: Vec<(u32, [u8; 4])>,
    v6: Vec<(u32, [u8; 16])>,
    srv: Vec<(u16, u16, TargetIndex)>,
    names: Vec<Box<[u8]>>,
    bridge: Option<Ipv4Addr>,
}

/// Target of an SRV entry: an index into the builder's addresses or host names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TargetIndex {
    /// Index of an IPv4 address.
    V4(usize),
    /// Index of an IPv6 address.
    V6(usize),
    /// Index of a host name.
    Name(usize),
}

/// Maximum entries per set, and maximum host names per node.
///
/// [`NodeBuilder::build`] drops further entries. The catalog limits a registry's instances of a
/// service to the same number, so only several registries or the addresses of host names can
/// exceed it.
const MAX_SET_ENTRIES: usize = MAX_INSTANCES_PER_SERVICE;

impl NodeBuilder {
    /// Sets the registries that hold the node's instances.
    pub(super) fn set_holders(&mut self, holders: &HolderSets) {
        self.holders.clone_from(holders);
    }

    /// Sets the address that the port bridge gave to the name.
    pub(super) fn set_bridge(&mut self, address: Option<Ipv4Addr>) {
        self.bridge = address;
    }

    /// Adds an address that the node does not have yet.
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

    /// Adds to the weight of an address; returns `false` if the node does not have it.
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

    /// Adds a host name for use as an SRV target.
    pub(super) fn put_name(&mut self, name: &[u8]) -> TargetIndex {
        self.names.push(name.into());
        TargetIndex::Name(self.names.len() - 1)
    }

    /// Adds an SRV entry.
    pub(super) fn put_srv(&mut self, weight: u16, port: u16, target: TargetIndex) {
        self.srv.push((weight, port, target));
    }

    /// Appends the bytes that [`Node::read`] reads, and resets the builder.
    pub(super) fn build(&mut self, out: &mut Vec<u8>) {
        let Self { holders, v4, v6, srv, names, bridge } = self;
        v4.truncate(MAX_SET_ENTRIES);
        v6.truncate(MAX_SET_ENTRIES);
        names.truncate(MAX_SET_ENTRIES);
        if let Some(address) = bridge.take() {
            out.push(FLAGS_BRIDGED);
            out.extend_from_slice(&address.octets());
        }
        let start = out.len();
        out.push(if names.is_empty() { 0 } else { FLAG_HOST_NAMES });
        let Holders { single, packed } = holders.view();
        put_u16(out, single.bits());
        if single.is_empty() {
            // The sets are distinct and not empty, so a 16-bit number can count them.
            put_u16(out, u16::try_from(packed.len() / REGISTRY_SET_BYTES).unwrap_or(u16::MAX));
            out.extend_from_slice(packed);
        }
        let counts = [v4.len(), v6.len()];
        let is_kept = |target: TargetIndex| match target {
            TargetIndex::V4(index) => index < counts[0],
            TargetIndex::V6(index) => index < counts[1],
            TargetIndex::Name(index) => index < names.len(),
        };
        srv.retain(|(_, _, target)| is_kept(*target));
        srv.truncate(MAX_SET_ENTRIES);
        for (set_index, count) in
            [v4.len(), v6.len(), srv.len()].into_iter().enumerate().filter(|(_, count)| *count > 0)
        {
            out[start] |= FLAG_PRESENT << set_index;
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
        let packed_index = |target: TargetIndex| match target {
            TargetIndex::V4(index) => v4_order.get(index).copied().unwrap_or(index),
            TargetIndex::V6(index) => counts[0] + v6_order.get(index).copied().unwrap_or(index),
            TargetIndex::Name(index) => counts[0] + counts[1] + index,
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
                put_u16(out, u16::try_from(packed_index(*target)).unwrap_or(u16::MAX));
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

/// Appends a marker node.
pub(super) fn put_marker(out: &mut Vec<u8>) {
    out.push(FLAG_MARKER);
}

/// Appends the node of an alias of `target`, a name in wire form.
pub(super) fn put_alias(target: &[u8], out: &mut Vec<u8>) {
    out.push(FLAGS_ALIAS);
    out.extend_from_slice(target);
}

/// Returns the target of an alias; `bytes` are the whole node.
pub(super) fn alias_target(bytes: &[u8]) -> Option<&[u8]> {
    let (flags, target) = bytes.split_first()?;
    (flags & FLAGS_ALIAS == FLAGS_ALIAS).then_some(target)
}

/// Appends a set: running sums if weights differ, then the entries.
///
/// Entries of weight 0 move to the end. Returns the new index of each entry, or an empty vector if
/// all weights are equal.
fn put_set<T>(
    set: &mut [T],
    weight: impl Fn(&T) -> u32,
    set_index: usize,
    start: usize,
    out: &mut Vec<u8>,
    mut put: impl FnMut(&T, &mut Vec<u8>),
) -> Vec<usize> {
    let mut new_indexes = Vec::new();
    if set.windows(2).any(|pair| weight(&pair[0]) != weight(&pair[1])) {
        out[start] |= FLAG_WEIGHTED << set_index;
        let mut order: Vec<usize> = (0..set.len()).collect();
        // The sort is stable, so all other entries keep their order.
        order.sort_by_key(|index| weight(&set[*index]) == 0);
        let mut sum = 0u32;
        for index in &order {
            sum = sum.saturating_add(weight(&set[*index]));
            put_u32(out, sum);
        }
        new_indexes.resize(set.len(), 0);
        for (new, index) in order.iter().enumerate() {
            new_indexes[*index] = new;
            put(&set[*index], out);
        }
    } else {
        for one in set.iter() {
            put(one, out);
        }
    }
    new_indexes
}
