//! The pool of addresses: which name has which address.
//!
//! A name keeps its address for as long as possible, because clients remember addresses longer
//! than any TTL says. The first choice follows from a hash of the name, so that most names would
//! get the same address even without the file. An address that was in use before is given to
//! another name only once no unused one is left, the one released longest ago first, and never
//! before [`QUARANTINE`]. A name that was released more than [`MEMORY`] ago is forgotten.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// Minimum time between the release of an address and its use by another name.
pub(super) const QUARANTINE: Duration = Duration::from_secs(3600);

/// Time after which a released name loses its address: deployments bring ever new version names.
pub(super) const MEMORY: Duration = Duration::from_secs(30 * 24 * 3600);

/// Seconds since the Unix epoch.
pub(super) type UnixSeconds = u64;

/// A clock that does not jump: the time of its start, and what has passed since then.
///
/// The machine's clock may be set while the bridge runs, which must not end a quarantine.
#[derive(Clone, Copy, Debug)]
pub(super) struct PoolClock {
    start: UnixSeconds,
    started: Instant,
}

impl PoolClock {
    /// Starts the clock.
    pub(super) fn start() -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Self { start: since.unwrap_or_default().as_secs(), started: Instant::now() }
    }

    /// Returns the time.
    pub(super) fn now(self) -> UnixSeconds {
        self.start.saturating_add(self.started.elapsed().as_secs())
    }
}

/// The addresses of a network, and the names that have them.
#[derive(Debug)]
pub(super) struct AddressPool {
    network: Ipv4Net,
    names: HashMap<Arc<str>, Assignment>,
    owners: HashMap<Ipv4Addr, Arc<str>>,
    unused: UnusedAddresses,
    /// Released addresses, by the time of their release.
    released: BTreeSet<(UnixSeconds, Ipv4Addr)>,
}

/// An address and since when its name does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Assignment {
    /// The address.
    pub(super) address: Ipv4Addr,
    /// When the name was removed; `None` while it exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) released: Option<UnixSeconds>,
}

/// The address that a name gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AssignedAddress {
    /// The address.
    pub(super) address: Ipv4Addr,
    /// Whether the name did not have it before.
    pub(super) is_new: bool,
}

/// The addresses that no name has: ranges of offsets, each by its start with its end (exclusive).
#[derive(Debug, Default)]
struct UnusedAddresses(BTreeMap<u32, u32>);

impl UnusedAddresses {
    /// Adds offsets that are not among them.
    fn add(&mut self, start: u32, count: u32) {
        self.0.insert(start, start + count);
    }

    /// Takes the first one from this offset on, or else the first of all.
    fn take_from(&mut self, offset: u32) -> Option<u32> {
        let within = self.0.range(..=offset).next_back().filter(|(_, end)| **end > offset);
        let found = within
            .map(|_| offset)
            .or_else(|| self.0.range(offset..).next().map(|(start, _)| *start))
            .or_else(|| self.0.first_key_value().map(|(start, _)| *start))?;
        self.take(found).then_some(found)
    }

    /// Takes this one; returns whether it was there.
    fn take(&mut self, offset: u32) -> bool {
        let Some((&start, &end)) = self.0.range(..=offset).next_back() else { return false };
        if end <= offset {
            return false;
        }
        self.0.remove(&start);
        if start < offset {
            self.0.insert(start, offset);
        }
        if offset + 1 < end {
            self.0.insert(offset + 1, end);
        }
        true
    }
}

impl AddressPool {
    /// Creates a pool; all names of an earlier run count as removed at `now`.
    ///
    /// Addresses outside the network, of two names, or in `left_out` are dropped. The latter are
    /// given to no name.
    pub(super) fn new(
        network: Ipv4Net,
        left_out: &BTreeSet<Ipv4Addr>,
        earlier: impl IntoIterator<Item = (Arc<str>, Assignment)>,
        now: UnixSeconds,
    ) -> Self {
        let mut pool = Self {
            network,
            names: HashMap::new(),
            owners: HashMap::new(),
            unused: UnusedAddresses::default(),
            released: BTreeSet::new(),
        };
        pool.unused.add(0, pool.size());
        for address in left_out {
            pool.take(*address);
        }
        for (name, Assignment { address, released }) in earlier {
            if !pool.names.contains_key(&name) && pool.take(address) {
                // A clock that went back must not keep an address from ever being released.
                let released = released.map_or(now, |at| at.min(now));
                pool.owners.insert(address, Arc::clone(&name));
                pool.released.insert((released, address));
                pool.names.insert(name, Assignment { address, released: Some(released) });
            }
        }
        pool
    }

    /// Takes an address out of the unused ones; returns whether it was one.
    fn take(&mut self, address: Ipv4Addr) -> bool {
        self.offset(address).is_some_and(|offset| self.unused.take(offset))
    }

    /// Returns the number of addresses; the first and the last of the network are not used.
    fn size(&self) -> u32 {
        (1u32 << (32 - self.network.prefix_len())) - 2
    }

    /// Returns the address at an offset below [`Self::size`].
    fn address(&self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network.network()) + 1 + offset)
    }

    /// Returns the offset of an address, or `None` if it is not in the pool.
    fn offset(&self, address: Ipv4Addr) -> Option<u32> {
        let offset = u32::from(address).checked_sub(u32::from(self.network.network()) + 1)?;
        (offset < self.size()).then_some(offset)
    }

    /// Returns the address of a name, giving it one if it has none; `None` if none is free.
    pub(super) fn assign(&mut self, name: &str, now: UnixSeconds) -> Option<AssignedAddress> {
        if let Some(known) = self.names.get_mut(name) {
            let address = known.address;
            if let Some(released) = known.released.take() {
                self.released.remove(&(released, address));
            }
            return Some(AssignedAddress { address, is_new: false });
        }
        let address = self.unused(name).or_else(|| self.reusable(now))?;
        let name: Arc<str> = name.into();
        self.owners.insert(address, Arc::clone(&name));
        self.names.insert(name, Assignment { address, released: None });
        Some(AssignedAddress { address, is_new: true })
    }

    /// Releases the address of a removed name; returns whether it had one.
    pub(super) fn release(&mut self, name: &str, now: UnixSeconds) -> bool {
        let Some(known) = self.names.get_mut(name).filter(|known| known.released.is_none()) else {
            return false;
        };
        known.released = Some(now);
        self.released.insert((now, known.address));
        true
    }

    /// Takes the first address from the hash of the name on that no name has.
    fn unused(&mut self, name: &str) -> Option<Ipv4Addr> {
        #[expect(clippy::cast_possible_truncation, reason = "below the size, which is a u32")]
        let first = (stable_hash(name) % u64::from(self.size())) as u32;
        let offset = self.unused.take_from(first)?;
        Some(self.address(offset))
    }

    /// Takes the address that was released longest ago from its name, if that was long enough ago.
    fn reusable(&mut self, now: UnixSeconds) -> Option<Ipv4Addr> {
        let (released, address) = *self.released.first()?;
        if now.saturating_sub(released) < QUARANTINE.as_secs() {
            return None;
        }
        self.released.pop_first();
        let former = self.owners.remove(&address)?;
        self.names.remove(&former);
        Some(address)
    }

    /// Forgets names that were released long ago.
    pub(super) fn forget(&mut self, now: UnixSeconds) {
        while let Some(&(released, address)) = self.released.first()
            && now.saturating_sub(released) > MEMORY.as_secs()
        {
            self.released.pop_first();
            if let Some(name) = self.owners.remove(&address) {
                self.names.remove(&name);
            }
            if let Some(offset) = self.offset(address) {
                self.unused.add(offset, 1);
            }
        }
    }

    /// Returns all names with their addresses, also removed names, in no particular order.
    pub(super) fn assignments(&self) -> impl Iterator<Item = (Arc<str>, Assignment)> {
        self.names.iter().map(|(name, assignment)| (Arc::clone(name), *assignment))
    }

    /// Returns the network of the pool.
    pub(super) fn network(&self) -> Ipv4Net {
        self.network
    }
}

/// Returns the FNV-1a hash of a name: the same in every run and every version.
fn stable_hash(name: &str) -> u64 {
    name.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pool(network: &str) -> AddressPool {
        AddressPool::new(network.parse().unwrap(), &BTreeSet::new(), [], 0)
    }

    fn restarted(pool: &AddressPool, now: UnixSeconds) -> AddressPool {
        AddressPool::new(pool.network, &BTreeSet::new(), pool.assignments(), now)
    }

    /// Returns the address of a name, and whether it is new.
    fn assign(pool: &mut AddressPool, name: &str, now: UnixSeconds) -> Option<(Ipv4Addr, bool)> {
        pool.assign(name, now).map(|assigned| (assigned.address, assigned.is_new))
    }

    #[test]
    fn a_name_keeps_its_address_through_removal_and_restart() {
        let mut first = pool("127.83.0.0/16");
        let (address, is_new) = assign(&mut first, "hello", 0).unwrap();
        assert!(is_new && address.octets()[..2] == [127, 83]);
        assert_eq!(assign(&mut first, "hello", 1), Some((address, false)));
        assert!(first.release("hello", 2) && !first.release("hello", 3));
        assert_eq!(assign(&mut first, "hello", 4), Some((address, false)));
        let mut second = restarted(&first, 10);
        assert_eq!(assign(&mut second, "hello", 10), Some((address, false)));
        // Without the file, the hash gives the same address.
        assert_eq!(assign(&mut pool("127.83.0.0/16"), "hello", 0), Some((address, true)));
    }

    #[test]
    fn a_name_released_long_ago_is_forgotten() {
        let mut pool = pool("127.9.9.0/28");
        let names: Vec<_> = (0..14).map(|n| format!("v{n}.hello")).collect();
        let given: Vec<_> = names.iter().map(|name| assign(&mut pool, name, 0).unwrap()).collect();
        for name in &names[1..] {
            pool.release(name, 5);
        }
        let memory = MEMORY.as_secs();
        pool.forget(5 + memory);
        assert_eq!(pool.assignments().count(), 14);
        pool.forget(6 + memory);
        let names: Vec<_> = pool.assignments().map(|(name, _)| name).collect();
        assert_eq!(names, ["v0.hello".into()]);
        // The addresses are unused again, and the name's hash gives the same one.
        assert_eq!(assign(&mut pool, "v1.hello", 6 + memory), Some(given[1]));
        let others: BTreeSet<_> =
            (0..12).map(|n| assign(&mut pool, &format!("s{n}"), 6 + memory).unwrap().0).collect();
        assert_eq!(others.len(), 12);
        assert_eq!(assign(&mut pool, "surplus", 6 + memory), None);
    }

    #[test]
    fn addresses_in_use_are_given_to_no_name() {
        let network = "127.9.9.0/28".parse().unwrap();
        let (earlier, _) = assign(&mut pool("127.9.9.0/28"), "hello", 0).unwrap();
        let left_out = BTreeSet::from([earlier, [127, 9, 9, 0].into(), [127, 1, 1, 1].into()]);
        let assignment = Assignment { address: earlier, released: None };
        let mut pool = AddressPool::new(network, &left_out, [("hello".into(), assignment)], 0);
        let given: BTreeSet<_> =
            (0..13).map(|n| assign(&mut pool, &format!("s{n}"), 0).unwrap().0).collect();
        assert!(given.len() == 13 && !given.contains(&earlier));
        assert_eq!(assign(&mut pool, "hello", 0), None);
    }

    #[test]
    fn a_large_pool_is_filled_soon() {
        // Probing one address after another would take hours.
        let mut pool = pool("127.128.0.0/14");
        let count = pool.size();
        let given: std::collections::HashSet<_> =
            (0..count).map(|n| assign(&mut pool, &n.to_string(), 0).unwrap().0).collect();
        assert_eq!(given.len(), count as usize);
        assert_eq!(assign(&mut pool, "surplus", 0), None);
    }

    #[test]
    fn the_clock_of_the_pool_starts_with_the_time_of_day() {
        let clock = PoolClock::start();
        let day = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        assert!((clock.start..=clock.start + 60).contains(&day) && clock.now() >= clock.start);
    }

    #[test]
    fn a_full_pool_reuses_only_addresses_released_long_ago() {
        let mut pool = pool("127.9.9.0/28");
        let names: Vec<_> = (0..14).map(|n| format!("s{n}")).collect();
        let given: BTreeSet<_> =
            names.iter().map(|name| assign(&mut pool, name, 0).unwrap().0).collect();
        assert_eq!(given.len(), 14, "every address is used once");
        assert!(!given.contains(&Ipv4Addr::new(127, 9, 9, 0)));
        assert!(!given.contains(&Ipv4Addr::new(127, 9, 9, 15)));
        assert_eq!(assign(&mut pool, "surplus", 0), None);
        let freed = assign(&mut pool, "s3", 0).unwrap().0;
        pool.release("s3", 100);
        pool.release("s4", 200);
        let quarantine = QUARANTINE.as_secs();
        assert_eq!(assign(&mut pool, "surplus", 99 + quarantine), None);
        assert_eq!(assign(&mut pool, "surplus", 100 + quarantine), Some((freed, true)));
        let again = assign(&mut pool, "s3", 150 + quarantine);
        assert_eq!(again, None, "its address has another owner");
    }

    #[test]
    fn addresses_of_another_pool_and_duplicates_are_dropped() {
        let assignment = |text: &str| Assignment { address: text.parse().unwrap(), released: None };
        let earlier = [
            ("a".into(), assignment("127.83.0.5")),
            ("b".into(), assignment("127.83.0.5")),
            ("c".into(), assignment("127.84.0.1")),
            ("d".into(), assignment("127.83.0.0")),
        ];
        let pool = AddressPool::new("127.83.0.0/24".parse().unwrap(), &BTreeSet::new(), earlier, 7);
        assert_eq!(
            pool.assignments().collect::<Vec<_>>(),
            [("a".into(), Assignment { released: Some(7), ..assignment("127.83.0.5") })]
        );
    }

    proptest! {
        #[test]
        fn no_two_names_ever_share_an_address(
            steps in prop::collection::vec((0..40u8, any::<bool>(), 0..3000u64), 1..200)
        ) {
            let mut pool = pool("127.9.9.0/28");
            let mut live: HashMap<String, Ipv4Addr> = HashMap::new();
            let mut last: HashMap<Ipv4Addr, (String, u64)> = HashMap::new();
            let mut now = 0;
            for (number, put, pause) in steps {
                now += pause;
                let name = format!("s{number}");
                if put {
                    let Some((address, _)) = assign(&mut pool, &name, now) else { continue };
                    prop_assert_eq!(*live.entry(name.clone()).or_insert(address), address);
                    for (other, taken) in &live {
                        prop_assert!(*other == name || *taken != address);
                    }
                    if let Some((former, released)) = last.remove(&address) {
                        prop_assert!(former == name || now - released >= QUARANTINE.as_secs());
                    }
                } else if pool.release(&name, now) {
                    let address = live.remove(&name).unwrap();
                    last.insert(address, (name, now));
                }
            }
        }
    }
}
