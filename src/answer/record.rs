//! One owner's RRsets as ready-made octets.
//!
//! What is the same in all records of an RRset stands in none of them: of an address record there is the address, of an SRV
//! record its weight, its port and which address its target is named after (`10-0-0-1.hello.svc.`). So an instance takes some
//! ten octets, and one line of the processor's cache holds a usual service.

use std::net::IpAddr;

use super::weights::{SUM, Weights};
use crate::catalog::MAX_INSTANCES_PER_SERVICE;
use crate::service::RegistrySet;
use crate::wire::{name_end, put_u16, put_u32, u16_at, u32_at};

/// What one owner has: its addresses, and its services.
///
/// Bytes: flags; the registries that hold it, a bit each, in two bytes; a count of two bytes for each of A, AAAA and
/// SRV that there is; of each the running sums of weights where they differ, and the addresses or services, six bytes
/// each; the host names among their targets, behind their places.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record<'a> {
    flags: u8,
    holders: RegistrySet,
    counts: [u16; 3],
    /// All behind the counts.
    sets: &'a [u8],
}

/// A set as it is kept: the running sums of weights, if any, and its addresses or services.
#[derive(Clone, Copy, Debug)]
pub(super) struct Set<'a> {
    /// The weights of its records.
    pub(super) weights: Weights<'a>,
    /// Its addresses or services, [`FOUR`], [`SIXTEEN`] or [`SERVICE`] octets each.
    pub(super) octets: &'a [u8],
}

/// All sets of a record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sets<'a> {
    /// Addresses of four octets.
    pub(super) four: Set<'a>,
    /// Addresses of sixteen octets.
    pub(super) sixteen: Set<'a>,
    /// Services: weight, port, and the number of the target.
    pub(super) services: Set<'a>,
    /// The host names among the targets, read by [`name`].
    pub(super) names: &'a [u8],
}

/// The first of three bits: the record has the set.
const PRESENT: u8 = 1;
/// The first of three bits: the set's weights differ.
const WEIGHTED: u8 = 8;
/// Some targets are host names.
const NAMES: u8 = 64;
/// The record says nothing but that something stands at this name or below it.
const MARKER: u8 = 128;

/// Octets of the set of registries.
const HOLDERS: usize = 2;
/// Octets of an IPv4 address.
pub(super) const FOUR: usize = 4;
/// Octets of an IPv6 address.
pub(super) const SIXTEEN: usize = 16;
/// Octets of a service: weight, port, and the number of its target among addresses of four octets, of sixteen, and names.
pub(super) const SERVICE: usize = 6;
/// Octets of the place of a name.
const PLACE: usize = 4;

impl<'a> Record<'a> {
    /// Reads what [`RecordBuilder::build`] wrote: as much of it as every question needs.
    pub(super) fn read(bytes: &'a [u8]) -> Self {
        let (&flags, rest) = bytes.split_first().unwrap_or((&0, &[]));
        // A marker has none.
        let (holders, mut sets) = rest.split_first_chunk().unwrap_or((&[0; HOLDERS], rest));
        let holders = RegistrySet::from_bits(u16::from_be_bytes(*holders));
        let mut counts = [0; 3];
        for (number, count) in counts.iter_mut().enumerate() {
            if flags & (PRESENT << number) != 0 {
                *count = u16_at(take(&mut sets, 2), 0).unwrap_or(0);
            }
        }
        Self { flags, holders, counts, sets }
    }

    /// The first set, of addresses of four octets: no other is read for it.
    pub(super) fn four(&self) -> Set<'a> {
        self.take(0, &mut { self.sets })
    }

    /// All sets, and the names behind them.
    pub(super) fn sets(&self) -> Sets<'a> {
        let mut rest = self.sets;
        let [four, sixteen, services] = [0, 1, 2].map(|number| self.take(number, &mut rest));
        Sets { four, sixteen, services, names: rest }
    }

    fn take(&self, number: usize, rest: &mut &'a [u8]) -> Set<'a> {
        let count = usize::from(self.counts[number]);
        let sums = if self.flags & (WEIGHTED << number) != 0 { take(rest, SUM * count) } else { &[] };
        Set { weights: Weights::new(sums), octets: take(rest, [FOUR, SIXTEEN, SERVICE][number] * count) }
    }

    /// Whether the record says nothing but that something stands at this name or below it.
    pub(super) fn is_marker(&self) -> bool {
        self.flags & MARKER != 0
    }

    /// Returns the registries that hold its instances.
    pub(super) fn holders(&self) -> RegistrySet {
        self.holders
    }

    /// Whether every instance is known by a host name, and no address of one is known.
    pub(super) fn hosts_only(&self) -> bool {
        self.flags & NAMES != 0 && self.counts[0] == 0 && self.counts[1] == 0
    }

    /// The octets of this address, if an instance is known to be registered by it.
    pub(super) fn instance(&self, address: IpAddr) -> Option<&'a [u8]> {
        // An address may be that of a registered host name, which is no instance's name.
        if self.flags & NAMES != 0 {
            return None;
        }
        let Sets { four, sixteen, .. } = self.sets();
        match address {
            IpAddr::V4(address) => four.find(&address.octets()),
            IpAddr::V6(address) => sixteen.find(&address.octets()),
        }
    }
}

impl<'a> Set<'a> {
    /// The octets of this address, if it is in the set.
    fn find(&self, address: &[u8]) -> Option<&'a [u8]> {
        self.octets.chunks_exact(address.len()).find(|known| *known == address)
    }
}

fn take<'a>(rest: &mut &'a [u8], octets: usize) -> &'a [u8] {
    let (taken, left) = rest.split_at(octets.min(rest.len()));
    *rest = left;
    taken
}

/// The name at `index` among the targets.
pub(super) fn name(names: &[u8], index: usize) -> Option<&[u8]> {
    let start = u32_at(names, PLACE * index)? as usize;
    names.get(start..name_end(names, start, false)?)
}

/// A record on the way. Reused from one to the next.
#[derive(Debug, Default)]
pub(super) struct RecordBuilder {
    holders: RegistrySet,
    four: Vec<(u32, [u8; 4])>,
    sixteen: Vec<(u32, [u8; 16])>,
    services: Vec<(u16, u16, Target)>,
    names: Vec<Box<[u8]>>,
}

/// What a service's target is: the place, in the order of coming, of an address of this many octets, or of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// Of four octets.
    Four(usize),
    /// Of sixteen.
    Sixteen(usize),
    /// A name.
    Name(usize),
}

/// Most addresses of a family, names and services of one owner. Only addresses of host names can be more than the catalog lets
/// a service have; those beyond are left out.
const MAX_ENTRIES: usize = MAX_INSTANCES_PER_SERVICE;

impl RecordBuilder {
    /// Says which registries hold what is put.
    pub(super) fn set_holders(&mut self, holders: RegistrySet) {
        self.holders = holders;
    }

    /// Adds an address. That it is not there yet is the caller's care.
    pub(super) fn put_address(&mut self, address: IpAddr, weight: u32) -> Target {
        match address {
            IpAddr::V4(address) => {
                self.four.push((weight, address.octets()));
                Target::Four(self.four.len() - 1)
            }
            IpAddr::V6(address) => {
                self.sixteen.push((weight, address.octets()));
                Target::Sixteen(self.sixteen.len() - 1)
            }
        }
    }

    /// Adds to the weight of an address, if it is there.
    pub(super) fn grow(&mut self, address: IpAddr, more: u32) -> bool {
        let weight = match address {
            IpAddr::V4(address) => self.four.iter_mut().find(|(_, known)| *known == address.octets()).map(|(weight, _)| weight),
            IpAddr::V6(address) => self.sixteen.iter_mut().find(|(_, known)| *known == address.octets()).map(|(weight, _)| weight),
        };
        weight.map(|weight| *weight = weight.saturating_add(more)).is_some()
    }

    /// Adds a name that services have as their target.
    pub(super) fn put_name(&mut self, name: &[u8]) -> Target {
        self.names.push(name.into());
        Target::Name(self.names.len() - 1)
    }

    /// Adds a service.
    pub(super) fn put_service(&mut self, weight: u16, port: u16, target: Target) {
        self.services.push((weight, port, target));
    }

    /// Appends the octets that [`Record::read`] reads, and begins anew.
    pub(super) fn build(&mut self, out: &mut Vec<u8>) {
        let Self { holders, four, sixteen, services, names } = self;
        four.truncate(MAX_ENTRIES);
        sixteen.truncate(MAX_ENTRIES);
        names.truncate(MAX_ENTRIES);
        let start = out.len();
        out.push(if names.is_empty() { 0 } else { NAMES });
        put_u16(out, holders.bits());
        let counts = [four.len(), sixteen.len()];
        let there = |target: Target| match target {
            Target::Four(place) => place < counts[0],
            Target::Sixteen(place) => place < counts[1],
            Target::Name(place) => place < names.len(),
        };
        services.retain(|(_, _, target)| there(*target));
        services.truncate(MAX_ENTRIES);
        for (number, count) in [four.len(), sixteen.len(), services.len()].into_iter().enumerate().filter(|(_, count)| *count > 0) {
            out[start] |= PRESENT << number;
            put_u16(out, u16::try_from(count).unwrap_or(u16::MAX));
        }
        let fours = put_set(four, |(weight, _)| *weight, 0, start, out, |(_, address), out| out.extend_from_slice(address));
        let sixteens = put_set(sixteen, |(weight, _)| *weight, 1, start, out, |(_, address), out| out.extend_from_slice(address));
        let place = |target: Target| match target {
            Target::Four(place) => fours.get(place).copied().unwrap_or(place),
            Target::Sixteen(place) => counts[0] + sixteens.get(place).copied().unwrap_or(place),
            Target::Name(place) => counts[0] + counts[1] + place,
        };
        put_set(
            services,
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
        let mut at = PLACE * names.len();
        for name in names.iter() {
            put_u32(out, u32::try_from(at).unwrap_or(u32::MAX));
            at += name.len();
        }
        for name in names.iter() {
            out.extend_from_slice(name);
        }
        four.clear();
        sixteen.clear();
        services.clear();
        names.clear();
    }
}

/// Appends the octets of a record that is a marker.
pub(super) fn put_marker(out: &mut Vec<u8>) {
    out.push(MARKER);
}

/// Appends a set: where weights differ, their running sums, records of weight 0 last. The new places of the records, where
/// they changed.
fn put_set<T>(
    set: &mut [T],
    weight: impl Fn(&T) -> u32,
    number: usize,
    start: usize,
    out: &mut Vec<u8>,
    mut put: impl FnMut(&T, &mut Vec<u8>),
) -> Vec<usize> {
    let mut places = Vec::new();
    if set.windows(2).any(|pair| weight(&pair[0]) != weight(&pair[1])) {
        out[start] |= WEIGHTED << number;
        let mut order: Vec<usize> = (0..set.len()).collect();
        // Stable: records keep their order but for those of weight 0.
        order.sort_by_key(|place| weight(&set[*place]) == 0);
        let mut sum = 0u32;
        for place in &order {
            sum = sum.saturating_add(weight(&set[*place]));
            put_u32(out, sum);
        }
        places.resize(set.len(), 0);
        for (new, place) in order.iter().enumerate() {
            places[*place] = new;
            put(&set[*place], out);
        }
    } else {
        for one in set.iter() {
            put(one, out);
        }
    }
    places
}
