//! The addresses that the port bridge gave to names.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::service::BridgedName;

/// The addresses of bridged names. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct BridgedAddresses(Arc<BothWays>);

/// Names and addresses, indexed by both.
#[derive(Clone, Debug, Default)]
struct BothWays {
    addresses: HashMap<Arc<str>, Ipv4Addr>,
    names: BTreeMap<Ipv4Addr, Arc<str>>,
}

impl BridgedAddresses {
    /// Returns the address of a name in front of the zone, if it is bridged.
    pub fn address(&self, name: &str) -> Option<Ipv4Addr> {
        self.0.addresses.get(name).copied()
    }

    /// Returns the bridged name with this address.
    pub fn name(&self, address: Ipv4Addr) -> Option<&str> {
        self.0.names.get(&address).map(|name| &**name)
    }

    /// Returns whether a bridged name has an address in this range.
    pub fn has_address_in(&self, range: &RangeInclusive<IpAddr>) -> bool {
        match (range.start(), range.end()) {
            (IpAddr::V4(first), IpAddr::V4(last)) if first <= last => {
                self.0.names.range(*first..=*last).next().is_some()
            }
            _ => false,
        }
    }

    /// Returns all bridged names with their addresses, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Ipv4Addr)> {
        self.0.addresses.iter().map(|(name, address)| (&**name, *address))
    }

    /// Returns whether no name is bridged.
    pub fn is_empty(&self) -> bool {
        self.0.addresses.is_empty()
    }

    /// Sets and removes addresses. O(bridged names), because readers may hold the former ones.
    pub(super) fn update(&mut self, changes: &[BridgedName]) {
        let BothWays { addresses, names } = Arc::make_mut(&mut self.0);
        for BridgedName { name, address } in changes {
            let name: Arc<str> = Arc::from(&**name);
            let before = match address {
                Some(address) => addresses.insert(Arc::clone(&name), *address),
                None => addresses.remove(&*name),
            };
            // The former address may belong to another name by now.
            if let Some(before) = before.filter(|before| names.get(before) == Some(&name)) {
                names.remove(&before);
            }
            if let Some(address) = address {
                names.insert(*address, name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(name: &str, address: Option<[u8; 4]>) -> BridgedName {
        BridgedName { name: name.into(), address: address.map(Ipv4Addr::from) }
    }

    #[test]
    fn addresses_are_found_by_name_and_names_by_address() {
        let mut bridged = BridgedAddresses::default();
        bridged.update(&[change("a", Some([127, 83, 0, 1])), change("b", Some([127, 83, 0, 2]))]);
        assert_eq!(bridged.address("a"), Some([127, 83, 0, 1].into()));
        assert_eq!(bridged.name([127, 83, 0, 2].into()), Some("b"));
        let held = bridged.clone();
        bridged.update(&[change("a", None), change("c", Some([127, 83, 0, 2])), change("b", None)]);
        assert_eq!((bridged.address("a"), bridged.address("b")), (None, None));
        assert_eq!(bridged.name([127, 83, 0, 2].into()), Some("c"));
        assert_eq!(bridged.iter().count(), 1);
        assert_eq!(held.iter().count(), 2, "readers keep what they have");
        let has = |first: &str, last: &str| {
            held.has_address_in(&(first.parse().unwrap()..=last.parse().unwrap()))
        };
        assert!(has("127.83.0.0", "127.83.0.255") && has("127.83.0.2", "127.83.0.2"));
        assert!(!has("127.83.0.3", "127.83.0.255") && !has("::", "ffff::"));
    }
}
