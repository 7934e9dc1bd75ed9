//! The pool of addresses: which name has which address.
//!
//! A name keeps its address for as long as possible, because clients remember addresses longer
//! than any TTL says. The first choice follows from a hash of the name, so that most names would
//! get the same address even without the file. An address that was in use before is given to
//! another name only once no unused one is left, the one released longest ago first, and never
//! before [`QUARANTINE`].

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// Minimum time between the release of an address and its use by another name.
pub(super) const QUARANTINE: Duration = Duration::from_secs(3600);

/// Seconds since the Unix epoch.
pub(super) type UnixSeconds = u64;

/// The addresses of a network, and the names that have them.
#[derive(Debug)]
pub(super) struct AddressPool {
    network: Ipv4Net,
    names: HashMap<Box<str>, Assignment>,
    owners: HashMap<Ipv4Addr, Box<str>>,
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

impl AddressPool {
    /// Creates a pool; all names of an earlier run count as removed at `now`.
    ///
    /// Addresses outside the network, or of two names, are dropped.
    pub(super) fn new(
        network: Ipv4Net,
        earlier: impl IntoIterator<Item = (Box<str>, Assignment)>,
        now: UnixSeconds,
    ) -> Self {
        let mut pool = Self {
            network,
            names: HashMap::new(),
            owners: HashMap::new(),
            released: BTreeSet::new(),
        };
        for (name, Assignment { address, released }) in earlier {
            let is_usable = pool.offset(address).is_some() && !pool.owners.contains_key(&address);
            if is_usable && !pool.names.contains_key(&name) {
                // A clock that went back must not keep an address from ever being released.
                let released = released.map_or(now, |at| at.min(now));
                pool.owners.insert(address, name.clone());
                pool.released.insert((released, address));
                pool.names.insert(name, Assignment { address, released: Some(released) });
            }
        }
        pool
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
    ///
    /// The second value tells whether the file has to be written.
    pub(super) fn assign(&mut self, name: &str, now: UnixSeconds) -> Option<(Ipv4Addr, bool)> {
        if let Some(known) = self.names.get_mut(name) {
            if let Some(released) = known.released.take() {
                self.released.remove(&(released, known.address));
                return Some((known.address, true));
            }
            return Some((known.address, false));
        }
        let address = self.unused(name).or_else(|| self.reusable(now))?;
        self.owners.insert(address, name.into());
        self.names.insert(name.into(), Assignment { address, released: None });
        Some((address, true))
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

    /// Returns the first address from the hash of the name on that no name ever had.
    fn unused(&self, name: &str) -> Option<Ipv4Addr> {
        let size = self.size();
        if self.owners.len() >= size as usize {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, reason = "below the size, which is a u32")]
        let first = (stable_hash(name) % u64::from(size)) as u32;
        (first..size)
            .chain(0..first)
            .map(|offset| self.address(offset))
            .find(|address| !self.owners.contains_key(address))
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

    /// Returns all names with their addresses, also removed names.
    pub(super) fn assignments(&self) -> impl Iterator<Item = (&str, Assignment)> {
        self.names.iter().map(|(name, assignment)| (&**name, *assignment))
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
        AddressPool::new(network.parse().unwrap(), [], 0)
    }

    fn saved(pool: &AddressPool) -> Vec<(Box<str>, Assignment)> {
        pool.assignments().map(|(name, assignment)| (name.into(), assignment)).collect()
    }

    #[test]
    fn a_name_keeps_its_address_through_removal_and_restart() {
        let mut first = pool("127.83.0.0/16");
        let (address, is_new) = first.assign("hello", 0).unwrap();
        assert!(is_new && address.octets()[..2] == [127, 83]);
        assert_eq!(first.assign("hello", 1), Some((address, false)));
        assert!(first.release("hello", 2) && !first.release("hello", 3));
        assert_eq!(first.assign("hello", 4), Some((address, true)));
        let mut second = AddressPool::new(first.network, saved(&first), 10);
        assert_eq!(second.assign("hello", 10), Some((address, true)));
        // Without the file, the hash gives the same address.
        assert_eq!(pool("127.83.0.0/16").assign("hello", 0), Some((address, true)));
    }

    #[test]
    fn a_full_pool_reuses_only_addresses_released_long_ago() {
        let mut pool = pool("127.9.9.0/28");
        let names: Vec<_> = (0..14).map(|n| format!("s{n}")).collect();
        let given: BTreeSet<_> = names.iter().map(|name| pool.assign(name, 0).unwrap().0).collect();
        assert_eq!(given.len(), 14, "every address is used once");
        assert!(!given.contains(&Ipv4Addr::new(127, 9, 9, 0)));
        assert!(!given.contains(&Ipv4Addr::new(127, 9, 9, 15)));
        assert_eq!(pool.assign("surplus", 0), None);
        let freed = pool.assign("s3", 0).unwrap().0;
        pool.release("s3", 100);
        pool.release("s4", 200);
        let quarantine = QUARANTINE.as_secs();
        assert_eq!(pool.assign("surplus", 99 + quarantine), None);
        assert_eq!(pool.assign("surplus", 100 + quarantine), Some((freed, true)));
        assert_eq!(pool.assign("s3", 150 + quarantine), None, "its address has another owner");
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
        let pool = AddressPool::new("127.83.0.0/24".parse().unwrap(), earlier, 7);
        assert_eq!(
            saved(&pool),
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
                    let Some((address, _)) = pool.assign(&name, now) else { continue };
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
