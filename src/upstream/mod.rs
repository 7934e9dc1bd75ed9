//! Forwarding of names outside the served zones to upstream resolvers, with a cache.
//!
//! A query is routed by its name (`routes`) and sent to one or more upstreams (`hedge`,
//! `exchange`). The cache keeps the upstreams' responses as whole messages (`cache`). Names
//! inside a served zone never reach this module.

mod addresses;
mod alias;
mod cache;
mod copy;
mod counters;
mod domain_loops;
mod exchange;
mod follow;
mod forwarder;
mod health;
mod hedge;
mod hosts;
mod in_flight;
mod lane;
mod loop_guard;
mod loop_marks;
mod message;
mod order;
mod own;
mod rebinding;
mod resolver;
mod revival;
mod routes;
mod scrub;
mod sources;
mod special;
mod strip;
mod target;

pub use alias::{AliasChain, Resolution};
pub use counters::Counters;
pub use exchange::CaFileError;
pub use forwarder::{Forwarder, ForwardingReport, LaneSlot, ListReport};
pub use health::UpstreamReport;
pub use hosts::{HostRequests, LookupFailed, LookupResult, follow_hosts};
pub use lane::{Lane, LaneOutcome};
pub use order::UpstreamOrder;
pub use special::is_answered_locally;
pub use target::{Protocol, Target, TargetError};

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::name::{Name, Zones};

/// Settings of the forwarder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Upstreams for names outside `domains`.
    pub servers: Servers,
    /// Upstreams of single domains.
    ///
    /// The longest matching domain, counted in labels, wins.
    pub domains: Vec<(Name, Vec<Target>)>,
    /// Order in which the upstreams of each list are queried.
    ///
    /// `None` leaves it to the origin of the list: lists in the system's configuration or of a
    /// domain are strict, others are queried by speed.
    pub order: Option<UpstreamOrder>,
    /// Addresses on which svcdns listens; never used as upstreams.
    pub own: Vec<SocketAddr>,
    /// Served zones; names inside them are never forwarded.
    pub zones: Zones,
    /// PEM file with the CAs trusted for TLS; `None` uses the system's trust store.
    pub ca_file: Option<PathBuf>,
    /// Whether to randomize the letter case of names in queries.
    ///
    /// A response that does not echo the case is not trusted (draft-vixie-dnsext-dns0x20).
    pub random_case: bool,
    /// Domains exempt from the rebinding guard; `None` turns the guard off.
    pub rebinding: Option<Vec<Name>>,
    /// Limit on cache memory in bytes, including keys and overhead; 0 for no cache.
    pub cache_bytes: usize,
    /// Limit on serving stale data while no upstream responds (RFC 8767).
    ///
    /// Zero turns serving stale answers off.
    pub stale: Duration,
    /// TTL of negative answers for special names, in seconds.
    pub negative_ttl: u32,
    /// Whether address queries for single-label names may go to public upstreams.
    ///
    /// If not, such a name exists only if an upstream with a private address knows it.
    pub forward_single_labels: bool,
    /// Whether to forward messages with opcodes other than QUERY; if not, NOTIMP.
    pub other_opcodes: bool,
}

impl Settings {
    /// Checks that the CA file can be used.
    ///
    /// The file is read again for each new connection.
    ///
    /// # Errors
    /// Returns an error if a CA file is set and it cannot be read or holds no certificate.
    pub fn check(&self) -> Result<(), CaFileError> {
        self.ca_file.as_deref().map_or(Ok(()), exchange::check_ca_file)
    }

    /// Returns whether these settings lead to the same answers, so that a cache stays valid.
    fn has_same_answers(&self, other: &Self) -> bool {
        let irrelevant = |settings: &Self| Self {
            own: Vec::new(),
            random_case: false,
            negative_ttl: 0,
            other_opcodes: false,
            ..settings.clone()
        };
        irrelevant(self) == irrelevant(other)
    }

    /// Returns whether connections to upstreams, and what is known of their health, stay valid.
    fn has_same_connections(&self, other: &Self) -> bool {
        self.ca_file == other.ca_file && self.domains == other.domains
    }
}

/// Upstreams for names outside the configured domains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Servers {
    /// No upstreams: such names are refused.
    Off,
    /// The name servers of the system's resolver configuration, followed at run time.
    System,
    /// A fixed list.
    Named(Vec<Target>),
}

/// Returns the time of Tokio's timers, which tests can pause.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
