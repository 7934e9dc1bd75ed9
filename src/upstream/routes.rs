//! The route table: which upstreams resolve which names.

use std::sync::Arc;

use hashbrown::HashMap;

use super::exchange::Upstream;
use super::order::{UpstreamList, UpstreamOrder};
use super::sources::TargetList;
use super::special::{self, Special, SpecialAnswer};
use crate::name::Name;
use crate::wire::ExtendedError;

/// Routing decision for a query.
#[derive(Clone, Debug)]
pub(super) enum Route {
    /// Answer it locally, as its name is special.
    Local(SpecialAnswer),
    /// Forward it to these upstreams, at least one.
    Forward(UpstreamList),
    /// Answer SERVFAIL with this extended error.
    Fail(ExtendedError),
}

/// An immutable route table; a change installs a new one.
#[derive(Debug)]
pub(super) struct RouteTable {
    /// Domains that are special or have upstreams of their own, by wire form.
    suffixes: HashMap<Box<[u8]>, DomainEntry, foldhash::quality::RandomState>,
    /// Upstreams for all other names.
    default_upstreams: UpstreamList,
    /// Those default upstreams that have private addresses.
    private_upstreams: UpstreamList,
    /// Whether this machine's resolver configuration names svcdns.
    is_system_resolver: bool,
}

/// Table entry of a domain.
#[derive(Debug, Default)]
struct DomainEntry {
    special: Option<Special>,
    upstreams: Option<UpstreamList>,
}

/// No upstream is configured or found for the name.
const NO_UPSTREAM: ExtendedError = ExtendedError {
    code: ExtendedError::NO_REACHABLE_AUTHORITY,
    text: "no upstream is known: see the log of svcdns",
};
/// All upstreams of the name send queries back to svcdns.
const ALL_LOOPING: ExtendedError = ExtendedError {
    code: ExtendedError::NO_REACHABLE_AUTHORITY,
    text: "loop: every upstream sends queries back to svcdns",
};

impl RouteTable {
    /// Makes a table of the default upstreams and those of single domains.
    ///
    /// The fastest of them are asked first, unless [`Self::with_orders`] sets other orders.
    /// `is_system_resolver` is whether this machine's resolver configuration names svcdns.
    pub(super) fn new(
        default_upstreams: Vec<Arc<Upstream>>,
        domains: Vec<(Name, Vec<Arc<Upstream>>)>,
        is_system_resolver: bool,
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
        Self {
            suffixes,
            default_upstreams: UpstreamList::new(default_upstreams, UpstreamOrder::Fastest),
            private_upstreams: UpstreamList::new(private_upstreams, UpstreamOrder::Fastest),
            is_system_resolver,
        }
    }

    /// Sets the order of the default upstreams and that of each domain's upstreams.
    pub(super) fn with_orders(self, default: UpstreamOrder, domains: UpstreamOrder) -> Self {
        let Self { mut suffixes, default_upstreams, private_upstreams, is_system_resolver } = self;
        for suffix in suffixes.values_mut() {
            suffix.upstreams = suffix.upstreams.take().map(|list| list.with_order(domains));
        }
        Self {
            suffixes,
            default_upstreams: default_upstreams.with_order(default),
            private_upstreams: private_upstreams.with_order(default),
            is_system_resolver,
        }
    }

    /// Returns the domains with upstreams of their own, sorted, after the root.
    pub(super) fn lists(&self) -> Vec<(Name, UpstreamList)> {
        let domains = self.suffixes.iter().filter_map(|(domain, suffix)| {
            Some((Name::from_wire(domain).ok()?.0, suffix.upstreams.clone()?))
        });
        let mut lists: Vec<_> = domains.collect();
        lists.sort_by_key(|(domain, _)| *domain);
        lists.insert(0, (Name::ROOT, self.default_upstreams.clone()));
        lists
    }

    /// Returns the route of `name`; the longest domain with its own upstreams wins.
    pub(super) fn find(&self, name: &Name) -> Route {
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
        match (special, domain) {
            (Some(answer), _) if answer.special.is_fixed() => Route::Local(answer),
            (_, Some(upstreams)) => forward_to(upstreams),
            (Some(SpecialAnswer { special: Special::Canary, .. }), None)
                if !self.is_system_resolver =>
            {
                forward_to(&self.default_upstreams)
            }
            (Some(SpecialAnswer { special: Special::Private, .. }), None)
                if !self.private_upstreams.is_empty() =>
            {
                forward_to(&self.private_upstreams)
            }
            (Some(answer), None) => Route::Local(answer),
            (None, None) => forward_to(&self.default_upstreams),
        }
    }

    /// Returns every upstream once.
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

    /// Describes the route of `name` in words.
    pub(super) fn describe(&self, name: &Name) -> String {
        match self.find(name) {
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

/// Returns the route to these upstreams, or why none of them can be used.
fn forward_to(upstreams: &UpstreamList) -> Route {
    if upstreams.is_empty() {
        Route::Fail(NO_UPSTREAM)
    } else if upstreams.iter().all(|upstream| upstream.is_looping()) {
        Route::Fail(ALL_LOOPING)
    } else {
        Route::Forward(upstreams.clone())
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

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().build().unwrap()
    }

    /// Returns the special name, the upstreams' addresses, or `none`.
    fn found(routes: &RouteTable, text: &str) -> String {
        match routes.find(&name(text)) {
            Route::Local(answer) => format!("{:?}", answer.special),
            Route::Forward(upstreams) => upstreams
                .iter()
                .map(|upstream| upstream.target().to_string())
                .collect::<Vec<_>>()
                .join(" "),
            Route::Fail(_) => "none".to_owned(),
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
        let routes = RouteTable::new(of(&["198.51.100.1"]), domains, false);
        for (text, to) in [
            ("example", "192.0.2.1"),
            ("a.example", "192.0.2.1"),
            ("corp.example", "192.0.2.2 192.0.2.3"),
            ("a.b.corp.example", "192.0.2.2 192.0.2.3"),
            ("xcorp.example", "192.0.2.1"),
            ("example.com", "198.51.100.1"),
            (".", "198.51.100.1"),
            // The domain has upstreams of its own, although they are not private.
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
        let public = RouteTable::new(upstreams(&runtime, &["192.0.2.1"]), Vec::new(), false);
        let mixed = RouteTable::new(
            upstreams(&runtime, &["192.0.2.1", "10.0.0.1", "fd00::1", "127.0.0.53"]),
            Vec::new(),
            true,
        );
        for (text, alone, with_private) in [
            ("localhost", "Localhost", "Localhost"),
            ("a.localhost", "Localhost", "Localhost"),
            ("invalid", "NonExistent", "NonExistent"),
            ("a.onion", "NonExistent", "NonExistent"),
            ("xonion", "192.0.2.1", "192.0.2.1 10.0.0.1 fd00::1 127.0.0.53"),
            ("use-application-dns.net", "192.0.2.1", "Canary"),
            ("_dns.resolver.arpa", "Designated", "Designated"),
            ("1.0.0.127.in-addr.arpa", "Loopback", "Loopback"),
            ("10.in-addr.arpa", "Private", "10.0.0.1 fd00::1 127.0.0.53"),
            ("1.0.0.10.in-addr.arpa", "Private", "10.0.0.1 fd00::1 127.0.0.53"),
            ("1.2.31.172.in-addr.arpa", "Private", "10.0.0.1 fd00::1 127.0.0.53"),
            ("1.2.32.172.in-addr.arpa", "192.0.2.1", "192.0.2.1 10.0.0.1 fd00::1 127.0.0.53"),
            ("1.2.64.100.in-addr.arpa", "Private", "10.0.0.1 fd00::1 127.0.0.53"),
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
            ("fd00::5", "Private"),
            ("fe80::5", "Private"),
            ("feb0::5", "Private"),
            ("::1", "Loopback"),
            ("::", "Private"),
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
            true,
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
    fn queries_fail_while_all_upstreams_loop() {
        let runtime = runtime();
        let both = upstreams(&runtime, &["192.0.2.1", "192.0.2.2"]);
        let routes = RouteTable::new(both.clone(), Vec::new(), false);
        both[0].set_looping(true);
        assert!(matches!(routes.find(&name("example")), Route::Forward(_)));
        both[1].set_looping(true);
        let Route::Fail(error) = routes.find(&name("example")) else {
            panic!("looping upstreams are asked")
        };
        assert!(error.code == 22 && error.text.contains("loop"), "{error:?}");
        both[0].set_looping(false);
        assert!(matches!(routes.find(&name("example")), Route::Forward(_)));
    }
}
