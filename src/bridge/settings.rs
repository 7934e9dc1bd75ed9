//! Settings of the port bridge.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use ipnet::Ipv4Net;

use crate::descriptors::DescriptorShare;
use crate::service::NamePattern;

/// Settings of the port bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The loopback addresses that the bridge gives to services.
    pub pool: Ipv4Net,
    /// The ports that stand for a protocol rather than for a registered port.
    ///
    /// 80 stands for the registrations with protocol `http`, 443 for those with `https`, any other
    /// for all registrations.
    pub ports: Vec<u16>,
    /// The services to bridge.
    pub policy: Policy,
    /// Whether to bind `ports` at each address, instead of redirecting the whole pool.
    pub bind: bool,
    /// Whether a PROXY protocol header precedes the bytes of each connection.
    pub proxy_protocol: bool,
    /// Limit on open connections in total.
    pub connections: usize,
    /// Limit on open connections of one service.
    pub connections_per_service: usize,
    /// Time without bytes before the kernel probes whether a peer is still there.
    ///
    /// Below the 60 s for which connection tracking keeps a half-closed connection without bytes:
    /// it forgets the redirection then.
    pub keepalive: Duration,
    /// Time without bytes in either direction before a connection is reset; `None` for no limit.
    pub idle_timeout: Option<Duration>,
    /// Time for open connections to finish at shutdown.
    pub drain: Duration,
    /// Time for which clients may remember an address: the TTL of its record.
    pub ttl: Duration,
}

/// The services that are bridged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// A service is bridged if one of its registrations has one of these protocols, in lower case.
    ///
    /// A registration without a protocol has the protocol [`PLAIN_TCP`].
    pub protocols: Vec<Box<str>>,
    /// Patterns of names to bridge; empty for every name.
    pub include: Vec<NamePattern>,
    /// Patterns of names to leave direct; they precede `include`.
    pub exclude: Vec<NamePattern>,
    /// Namespaces whose services are bridged, in lower case; empty for every namespace.
    pub namespaces: Vec<Box<str>>,
}

/// The protocol of registrations whose metadata has none.
pub const PLAIN_TCP: &str = "tcp";

impl Policy {
    /// Returns why a name with these protocols is not bridged, or `None` if it is.
    pub fn refusal<'p>(
        &self,
        name: &str,
        namespace: &str,
        protocols: impl Iterator<Item = Option<&'p str>>,
    ) -> Option<PolicyRefusal> {
        let is_listed = |patterns: &[NamePattern]| patterns.iter().any(|one| one.matches(name));
        if self.accepted(protocols).is_none() {
            Some(PolicyRefusal::Protocol)
        } else if is_listed(&self.exclude) || !self.include.is_empty() && !is_listed(&self.include)
        {
            Some(PolicyRefusal::Name)
        } else if !self.namespaces.is_empty()
            && !self.namespaces.iter().any(|known| **known == *namespace)
        {
            Some(PolicyRefusal::Namespace)
        } else {
            None
        }
    }

    /// Returns the first of these protocols that makes a name bridged.
    pub fn accepted<'p>(
        &self,
        protocols: impl Iterator<Item = Option<&'p str>>,
    ) -> Option<&'p str> {
        protocols
            .map(|protocol| protocol.unwrap_or(PLAIN_TCP))
            .find(|protocol| self.protocols.iter().any(|known| **known == **protocol))
    }
}

/// Reason why the settings leave a name direct.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyRefusal {
    /// No registration has a protocol of `bridge.protocols`.
    #[error("no registration has a protocol of bridge.protocols")]
    Protocol,
    /// `bridge.exclude` has the name, or `bridge.include` lacks it.
    #[error("bridge.include and bridge.exclude leave the name out")]
    Name,
    /// `bridge.namespaces` lacks the namespace.
    #[error("bridge.namespaces lacks the namespace")]
    Namespace,
}

/// Reason why the settings cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPool {
    /// The pool is not part of 127.0.0.0/8, or too small.
    #[error(
        "{0} is no pool for the bridge: use a network within 127.0.0.0/8, at most /28, without \
         127.0.0.0/24 and 127.255.255.255"
    )]
    NotLoopback(Ipv4Net),
    /// The pool contains an address that is in use.
    #[error("the bridge's pool {pool} contains {address}, which is in use: choose another pool")]
    InUse {
        /// The pool.
        pool: Ipv4Net,
        /// The address in use.
        address: SocketAddr,
    },
}

/// Longest prefix of a pool, in bits: 14 usable addresses.
const MAX_POOL_PREFIX: u8 = 28;

/// The networks of loopback addresses that other software uses: localhost, and stub resolvers.
const USUAL_LOOPBACK: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 24);

/// Checks a pool by itself.
///
/// # Errors
/// If it is not part of 127.0.0.0/8, contains 127.0.0.0/24 or 127.255.255.255, or is smaller than a
/// /28.
pub fn check_pool(pool: Ipv4Net) -> Result<(), InvalidPool> {
    let is_loopback = pool.addr().is_loopback() && pool.prefix_len() >= 8;
    let overlaps = pool.contains(&USUAL_LOOPBACK) || USUAL_LOOPBACK.contains(&pool);
    // The kernel lets no one connect to it: it is the broadcast address of the loopback network.
    let has_broadcast = pool.contains(&Ipv4Addr::new(127, 255, 255, 255));
    if !is_loopback || overlaps || has_broadcast || pool.prefix_len() > MAX_POOL_PREFIX {
        return Err(InvalidPool::NotLoopback(pool));
    }
    Ok(())
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            pool: Ipv4Net::new_assert(Ipv4Addr::new(127, 83, 0, 0), 16),
            ports: vec![80, 443],
            policy: Policy::default(),
            bind: false,
            proxy_protocol: false,
            connections: 16_384,
            connections_per_service: 4096,
            keepalive: Duration::from_secs(30),
            idle_timeout: None,
            drain: Duration::from_secs(10),
            ttl: Duration::from_secs(5),
        }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            protocols: vec!["http".into(), "https".into()],
            include: Vec::new(),
            exclude: Vec::new(),
            namespaces: Vec::new(),
        }
    }
}

/// Time for which an address that was withdrawn is served, after clients should have forgotten it.
const LINGER_AFTER_TTL: Duration = Duration::from_secs(5);

/// Descriptors of a connection: one for the client, and one for the instance.
const DESCRIPTORS_PER_CONNECTION: usize = 2;

impl Settings {
    /// Lowers the limits to what this process may open, and logs that.
    pub(super) fn within_descriptors(self) -> Self {
        let configured = self.connections;
        let settings = self.within(DescriptorShare::Bridge.current());
        let connections = settings.connections;
        if connections < configured {
            tracing::warn!(
                configured,
                connections,
                "the limit on open files allows fewer connections than bridge.connections"
            );
        }
        settings
    }

    /// Lowers the limits to those of a bridge that may open this many descriptors.
    fn within(mut self, descriptors: usize) -> Self {
        let most = (descriptors / DESCRIPTORS_PER_CONNECTION).max(1);
        self.connections = self.connections.min(most);
        self.connections_per_service = self.connections_per_service.min(self.connections);
        self
    }

    /// Returns how long connections to an address are served after it was withdrawn.
    pub(super) fn linger(&self) -> Duration {
        self.ttl + LINGER_AFTER_TTL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_bridged_by_protocol_name_and_namespace() {
        let policy = Policy {
            include: vec![NamePattern::new("*"), NamePattern::new("never")],
            exclude: vec![NamePattern::new("raw-*")],
            namespaces: vec!["default".into()],
            ..Policy::default()
        };
        let refusal = |name: &str, namespace: &str, protocol: Option<&str>| {
            policy.refusal(name, namespace, [protocol].into_iter())
        };
        assert_eq!(refusal("hello", "default", Some("http")), None);
        assert_eq!(refusal("hello", "default", None), Some(PolicyRefusal::Protocol));
        assert_eq!(refusal("raw-1", "default", Some("https")), Some(PolicyRefusal::Name));
        assert_eq!(refusal("hello", "prod", Some("http")), Some(PolicyRefusal::Namespace));
        let tcp = Policy { protocols: vec![PLAIN_TCP.into()], ..Policy::default() };
        assert_eq!(tcp.refusal("hello", "default", [None].into_iter()), None);
    }

    #[test]
    fn pools_are_parts_of_loopback_without_its_usual_addresses() {
        for (pool, valid) in [
            ("127.83.0.0/16", true),
            ("127.1.2.0/28", true),
            ("127.1.2.0/29", false),
            ("127.0.0.0/8", false),
            ("127.0.0.128/28", false),
            ("10.0.0.0/16", false),
            ("126.0.0.0/7", false),
        ] {
            assert_eq!(check_pool(pool.parse().unwrap()).is_ok(), valid, "{pool}");
        }
    }

    #[test]
    fn a_low_descriptor_limit_lowers_the_connection_limits() {
        let limits = |descriptors| {
            let settings = Settings::default().within(descriptors);
            (settings.connections, settings.connections_per_service)
        };
        assert_eq!(limits(1_048_576), (16_384, 4096));
        assert_eq!(limits(4096), (2048, 2048));
        assert_eq!(limits(0), (1, 1));
    }

    #[test]
    fn the_distributed_unit_allows_the_default_number_of_connections() {
        let unit = include_str!("../../deploy/svcdns-bridge.conf");
        let limit = unit.lines().find_map(|line| line.strip_prefix("LimitNOFILE=")).unwrap();
        let share = DescriptorShare::Bridge.of(limit.parse().unwrap());
        assert_eq!(Settings::default().within(share), Settings::default());
    }
}
