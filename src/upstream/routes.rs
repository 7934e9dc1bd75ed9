//! The route table, which maps names to the upstreams that resolve them.

use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;

use super::exchange::Upstream;
use super::order::{UpstreamList, UpstreamOrder};
use super::sources::TargetList;
use super::special::{self, Special, SpecialAnswer};
use crate::name::Name;
use crate::wire::{ExtendedError, rtype};

/// Routing decision for a query.
#[derive(Clone, Debug)]
pub(super) enum Route {
    /// Answer the query locally, because its name is special.
    Local(SpecialAnswer),
    /// Forward the query to these upstreams, of which there is at least one.
    Forward(UpstreamList),
    /// Answer SERVFAIL with this EDE.
    Fail(ExtendedError<'static>),
    /// Answer without forwarding: an upstream could answer, but the query has RD=0.
    NotRecursive,
}

/// Properties of a query, other than its name, that decide its route.
#[derive(Clone, Copy, Debug)]
pub(super) struct RouteQuery {
    /// Type of the query.
    pub(super) qtype: u16,
    /// Whether RD is set.
    pub(super) recursion_desired: bool,
}

/// Switches that apply to a whole route table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RouteRules {
    /// Whether this machine's resolver configuration names svcdns.
    pub(super) is_system_resolver: bool,
    /// Whether address queries for single-label names may go to public upstreams.
    pub(super) forward_single_labels: bool,
}

/// An immutable route table, which is replaced at each change.
#[derive(Debug)]
pub(super) struct RouteTable {
    /// Domains that are special or have upstreams of their own, by wire form.
    suffixes: HashMap<Box<[u8]>, DomainEntry, foldhash::quality::RandomState>,
    /// Upstreams for all other names.
    default_upstreams: UpstreamList,
    /// The default upstreams that have private addresses.
    private_upstreams: UpstreamList,
    /// Addresses of all upstreams.
    addresses: Vec<IpAddr>,
    rules: RouteRules,
}

/// Table entry of a domain.
#[derive(Debug, Default)]
struct DomainEntry {
    special: Option<Special>,
    upstreams: Option<UpstreamList>,
}

/// EDE: no upstream is configured or found for the name.
const NO_UPSTREAM: ExtendedError<'static> = ExtendedError {
    code: ExtendedError::NO_REACHABLE_AUTHORITY,
    text: "no upstream is known: see the log of svcdns",
};
/// EDE: all upstreams of the name send queries for it back to svcdns.
const ALL_LOOPING: ExtendedError<'static> = ExtendedError {
    code: ExtendedError::NO_REACHABLE_AUTHORITY,
    text: "loop: every upstream sends queries back to svcdns",
};

impl RouteTable {
    /// Creates a table of the default upstreams and the upstreams of single domains.
    ///
    /// Every list has the order `fastest` until [`Self::with_orders`] sets another.
    pub(super) fn new(
        default_upstreams: Vec<Arc<Upstream>>,
        domains: Vec<(Name, Vec<Arc<Upstream>>)>,
        rules: RouteRules,
    ) -> Self {
        let mut suffixes = HashMap::<Box<[u8]>, DomainEntry, _>::default();
        for (zone, special) in special::zones() {
            suffixes.entry(zone.as_wire().into()).or_default().special = Some(special);
        }
        for (domain, upstreams) in domains {
            let upstreams = UpstreamList::new(upstreams, UpstreamOrder::Fastest);
            suffixes.entry(domain.as_wire().into()).or_default().upstreams = Some(upstreams);
        }
        let private_upstreams: Vec<_> =
            default_upstreams.iter().filter(|upstream| upstream.is_private()).cloned().collect();
        let mut table = Self {
            suffixes,
            default_upstreams: UpstreamList::new(default_upstreams, UpstreamOrder::Fastest),
            private_upstreams: UpstreamList::new(private_upstreams, UpstreamOrder::Fastest),
            addresses: Vec::new(),
            rules,
        };
        table.addresses = table.upstreams().iter().map(|upstream| upstream.ip()).collect();
        table
    }

    /// Sets the order of the default upstreams, and of the upstreams of all domains.
    pub(super) fn with_orders(mut self, default: UpstreamOrder, domains: UpstreamOrder) -> Self {
        for suffix in self.suffixes.values_mut() {
            suffix.upstreams = suffix.upstreams.take().map(|list| list.with_order(domains));
        }
        Self {
            default_upstreams: self.default_upstreams.with_order(default),
            private_upstreams: self.private_upstreams.with_order(default),
            ..self
        }
    }

    /// Returns all lists of upstreams: the root's, then those of domains, sorted.
    pub(super) fn lists(&self) -> Vec<(Name, UpstreamList)> {
        let domains = self.suffixes.iter().filter_map(|(domain, suffix)| {
            Some((Name::from_wire(domain).ok()?.0, suffix.upstreams.clone()?))
        });
        let mut lists: Vec<_> = domains.collect();
        lists.sort_by_key(|(domain, _)| *domain);
        lists.insert(0, (Name::ROOT, self.default_upstreams.clone()));
        lists
    }

    /// Returns the route of a query; the longest domain with its own upstreams wins.
    pub(super) fn find(&self, name: &Name, query: RouteQuery) -> Route {
        let (special, domain) = self.rules_for(name, query.qtype);
        match (special, domain) {
            (Some(answer), _) if answer.special.is_fixed() => Route::Local(answer),
            (_, Some(upstreams)) => forward_to(upstreams, name, query),
            (Some(SpecialAnswer { special: Special::Canary, .. }), None)
                if !self.rules.is_system_resolver =>
            {
                forward_to(&self.default_upstreams, name, query)
            }
            (Some(answer), None) if answer.special.is_local_to_network() => {
                match forward_to(&self.private_upstreams, name, query) {
                    forward @ Route::Forward(_) => forward,
                    // The root's servers may know other names of one label.
                    Route::NotRecursive if answer.special == Special::SingleLabel => {
                        Route::NotRecursive
                    }
                    _ => Route::Local(answer),
                }
            }
            (Some(answer), None) => Route::Local(answer),
            (None, None) => forward_to(&self.default_upstreams, name, query),
        }
    }

    /// Returns the reason why `name` is special, and its domain's upstreams, if any.
    fn rules_for(&self, name: &Name, qtype: u16) -> (Option<SpecialAnswer>, Option<&UpstreamList>) {
        let bytes = name.as_wire();
        let (mut special, mut domain) = (None, None);
        let mut zone_offset = 0;
        while bytes[zone_offset] != 0 {
            if let Some(suffix) = self.suffixes.get(&bytes[zone_offset..]) {
                special = special.or_else(|| {
                    suffix.special.map(|special| SpecialAnswer { special, zone_offset })
                });
                domain = domain.or(suffix.upstreams.as_ref());
            }
            zone_offset += 1 + usize::from(bytes[zone_offset]);
        }
        let has_one_label = zone_offset > 0 && zone_offset == 1 + usize::from(bytes[0]);
        if has_one_label
            && matches!(qtype, rtype::A | rtype::AAAA)
            && !self.rules.forward_single_labels
        {
            let single = SpecialAnswer { special: Special::SingleLabel, zone_offset: 0 };
            special = special.or(Some(single));
        }
        (special, domain)
    }

    /// Returns the zone local to this machine or network that contains `name`, if any.
    pub(super) fn special_zone(&self, name: &Name) -> Option<Name> {
        let (special, _) = self.rules_for(name, rtype::PTR);
        let (zone, _) = Name::from_wire(name.as_wire().get(special?.zone_offset..)?).ok()?;
        Some(zone)
    }

    /// Returns whether any upstream has this address.
    pub(super) fn has_upstream_at(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address)
    }

    /// Returns all upstreams, each once.
    pub(super) fn upstreams(&self) -> Vec<Arc<Upstream>> {
        let domains = self.suffixes.values().filter_map(|suffix| suffix.upstreams.as_ref());
        let mut upstreams = Vec::<Arc<Upstream>>::new();
        for upstream in [&self.default_upstreams]
            .into_iter()
            .chain(domains)
            .flat_map(|upstreams| upstreams.iter())
        {
            if !upstreams.iter().any(|known| Arc::ptr_eq(known, upstream)) {
                upstreams.push(Arc::clone(upstream));
            }
        }
        upstreams
    }

    /// Describes the route of a query for `name` in words.
    pub(super) fn describe(&self, name: &Name, qtype: u16) -> String {
        match self.find(name, RouteQuery { qtype, recursion_desired: true }) {
            // Only queries without RD have this route.
            Route::NotRecursive => String::new(),
            Route::Local(answer) => format!("answered locally: {}", answer.special.reason()),
            Route::Fail(error) => format!("cannot be forwarded: {}", error.text),
            Route::Forward(upstreams) => {
                let targets: Vec<_> =
                    upstreams.iter().map(|upstream| upstream.target().clone()).collect();
                let order = upstreams.order().suffix(targets.len());
                format!("forwarded to {}{order}", TargetList(&targets))
            }
        }
    }
}

/// Returns the route to the upstreams that do not loop, or the error if all do.
fn forward_to(upstreams: &UpstreamList, name: &Name, query: RouteQuery) -> Route {
    let usable = |upstream: &Arc<Upstream>| !upstream.loops().covers(name);
    if !query.recursion_desired {
        Route::NotRecursive
    } else if upstreams.is_empty() {
        Route::Fail(NO_UPSTREAM)
    } else if upstreams.iter().all(usable) {
        Route::Forward(upstreams.clone())
    } else {
        let usable = upstreams.filtered(usable);
        if usable.is_empty() { Route::Fail(ALL_LOOPING) } else { Route::Forward(usable) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::exchange::Connector;
    use super::*;

    fn upstreams(runtime: &tokio::runtime::Runtime, addresses: &[&str]) -> Vec<Arc<Upstream>> {
        let connector = Connector::new(runtime.handle().clone(), None);
        addresses
            .iter()
            .map(|address| Upstream::new(address.parse().unwrap(), Arc::clone(&connector)))
            .collect()
    }

    fn name(text: &str) -> Name {
        Name::from_text(text).unwrap()
    }

    const A_QUERY: RouteQuery = RouteQuery { qtype: rtype::A, recursion_desired: true };

    /// Rules of the system's resolver.
    const SYSTEM_RULES: RouteRules =
        RouteRules { is_system_resolver: true, forward_single_labels: false };

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().build().unwrap()
    }

    /// Returns the special name, the upstreams' addresses, or `none`.
    fn found(routes: &RouteTable, text: &str) -> String {
        match routes.find(&name(text), A_QUERY) {
            Route::Local(answer) => format!("{:?}", answer.special),
            Route::Forward(upstreams) => upstreams
                .iter()
                .map(|upstream| upstream.target().to_string())
                .collect::<Vec<_>>()
                .join(" "),
            Route::Fail(_) => "none".to_owned(),
            Route::NotRecursive => "not recursive".to_owned(),
        }
    }

    #[test]
    fn the_longest_domain_wins() {
        let runtime = runtime();
        let of = |addresses: &[&str]| upstreams(&runtime, addresses);
        let domains = vec![
            (name("example"), of(&["192.0.2.1"])),
            (name("corp.example"), of(&["192.0.2.2", "192.0.2.3"])),
            (name("10.in-addr.arpa"), of(&["192.0.2.4"])),
            (name("168.192.in-addr.arpa"), of(&[])),
        ];
        let routes = RouteTable::new(of(&["198.51.100.1"]), domains, RouteRules::default());
        for (text, to) in [
            ("example", "192.0.2.1"),
            ("a.example", "192.0.2.1"),
            ("corp.example", "192.0.2.2 192.0.2.3"),
            ("a.b.corp.example", "192.0.2.2 192.0.2.3"),
            ("xcorp.example", "192.0.2.1"),
            ("example.com", "198.51.100.1"),
            (".", "198.51.100.1"),
            // The domain has its own upstreams, although they are not private.
            ("1.0.0.10.in-addr.arpa", "192.0.2.4"),
            ("1.1.168.192.in-addr.arpa", "none"),
        ] {
            assert_eq!(found(&routes, text), to, "{text}");
        }
        assert_eq!(routes.upstreams().len(), 5);
    }

    #[test]
    fn special_names_are_not_forwarded_to_public_upstreams() {
        let runtime = runtime();
        let public =
            RouteTable::new(upstreams(&runtime, &["192.0.2.1"]), Vec::new(), RouteRules::default());
        let mixed = RouteTable::new(
            upstreams(&runtime, &["192.0.2.1", "10.0.0.1", "fd00::1", "127.0.0.53"]),
            Vec::new(),
            SYSTEM_RULES,
        );
        for (text, alone, with_private) in [
            ("localhost", "Localhost", "Localhost"),
            ("a.localhost", "Localhost", "Localhost"),
            ("invalid", "NonExistent", "NonExistent"),
            ("a.onion", "NonExistent", "NonExistent"),
            ("a.xonion", "192.0.2.1", "192.0.2.1 10.0.0.1 fd00::1 127.0.0.53"),
            ("printer", "SingleLabel", "10.0.0.1 fd00::1 127.0.0.53"),
            ("use-application-dns.net", "192.0.2.1", "Canary"),
            ("_dns.resolver.arpa", "Designated", "Designated"),
            ("1.0.0.127.in-addr.arpa", "Loopback", "Loopback"),
            ("10.in-addr.arpa", "PrivateReverse", "10.0.0.1 fd00::1 127.0.0.53"),
            ("1.0.0.10.in-addr.arpa", "PrivateReverse", "10.0.0.1 fd00::1 127.0.0.53"),
            ("1.2.31.172.in-addr.arpa", "PrivateReverse", "10.0.0.1 fd00::1 127.0.0.53"),
            ("1.2.32.172.in-addr.arpa", "192.0.2.1", "192.0.2.1 10.0.0.1 fd00::1 127.0.0.53"),
            ("1.2.64.100.in-addr.arpa", "PrivateReverse", "10.0.0.1 fd00::1 127.0.0.53"),
            ("1.2.128.100.in-addr.arpa", "192.0.2.1", "192.0.2.1 10.0.0.1 fd00::1 127.0.0.53"),
            ("printer.local", "Private", "10.0.0.1 fd00::1 127.0.0.53"),
            ("nas.home.arpa", "Private", "10.0.0.1 fd00::1 127.0.0.53"),
            ("a.test", "192.0.2.1", "192.0.2.1 10.0.0.1 fd00::1 127.0.0.53"),
        ] {
            assert_eq!(
                (&*found(&public, text), &*found(&mixed, text)),
                (alone, with_private),
                "{text}"
            );
        }
        for (address, kind) in [
            ("fd00::5", "PrivateReverse"),
            ("fe80::5", "PrivateReverse"),
            ("feb0::5", "PrivateReverse"),
            ("::1", "Loopback"),
            ("::", "PrivateReverse"),
        ] {
            let reverse = crate::name::reverse_name(address.parse().unwrap()).to_string();
            assert_eq!(found(&public, &reverse), kind, "{address}");
        }
        assert_eq!(
            found(&public, &crate::name::reverse_name("2001:db9::1".parse().unwrap()).to_string()),
            "192.0.2.1"
        );
    }

    #[test]
    fn configured_domains_override_most_special_names() {
        let runtime = runtime();
        let of = |address: &str| upstreams(&runtime, &[address]);
        let domains = ["arpa", "local", "localhost", "use-application-dns.net", "a.invalid"];
        let routes = RouteTable::new(
            of("192.0.2.1"),
            domains.map(|domain| (name(domain), of("192.0.2.2"))).into(),
            SYSTEM_RULES,
        );
        for (text, to) in [
            ("1.0.0.10.in-addr.arpa", "192.0.2.2"),
            ("1.0.0.127.in-addr.arpa", "192.0.2.2"),
            ("a.local", "192.0.2.2"),
            ("a.localhost", "Localhost"),
            ("a.invalid", "NonExistent"),
            ("use-application-dns.net", "192.0.2.2"),
        ] {
            assert_eq!(found(&routes, text), to, "{text}");
        }
    }

    #[test]
    fn skipping_an_upstream_that_loops_keeps_the_order_of_the_others() {
        let runtime = runtime();
        let all = upstreams(&runtime, &["192.0.2.1", "192.0.2.2", "192.0.2.3"]);
        let routes = RouteTable::new(all.clone(), Vec::new(), RouteRules::default())
            .with_orders(UpstreamOrder::Strict, UpstreamOrder::Strict);
        all[1].loops().mark(&name("corp.example"));
        assert_eq!(found(&routes, "www.corp.example"), "192.0.2.1 192.0.2.3");
        assert_eq!(found(&routes, "www.example"), "192.0.2.1 192.0.2.2 192.0.2.3");
        let Route::Forward(list) = routes.find(&name("www.corp.example"), A_QUERY) else {
            panic!("not forwarded")
        };
        assert_eq!(list.order(), UpstreamOrder::Strict);
    }

    #[test]
    fn queries_fail_while_all_upstreams_loop() {
        let runtime = runtime();
        let both = upstreams(&runtime, &["192.0.2.1", "192.0.2.2"]);
        let routes = RouteTable::new(both.clone(), Vec::new(), RouteRules::default());
        both[0].set_looping(true);
        assert!(matches!(routes.find(&name("www.example"), A_QUERY), Route::Forward(_)));
        both[1].set_looping(true);
        let Route::Fail(error) = routes.find(&name("www.example"), A_QUERY) else {
            panic!("looping upstreams are asked")
        };
        assert!(error.code == 22 && error.text.contains("loop"), "{error:?}");
        both[0].set_looping(false);
        assert!(matches!(routes.find(&name("www.example"), A_QUERY), Route::Forward(_)));
    }
}
