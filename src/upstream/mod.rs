//! Every other name: forwarding to the upstreams of this machine, with a cache.
//!
//! Never sees a name inside a served zone. A question goes to the upstreams in force for its name ([`routes`]), through an
//! exchange of ours that passes whole messages ([`exchange`]); what comes back is kept as it came ([`cache`]).

mod addresses;
mod cache;
mod counters;
mod exchange;
mod follow;
mod forwarder;
mod health;
mod hedge;
mod hosts;
mod in_flight;
mod loop_guard;
mod message;
mod own;
mod rebinding;
mod resolver;
mod routes;
mod sources;
mod special;
mod strip;
mod target;
mod watch;

pub use counters::Counters;
pub use exchange::CaFileError;
pub use forwarder::{Forwarder, ForwardingReport, Lane};
pub use health::UpstreamReport;
pub use hosts::{HostRequests, LookupFailed, LookupResult, follow_hosts};
pub use special::is_answered_locally;
pub use target::{Protocol, Target, TargetError};

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::name::{Name, Zones};

/// How other names are resolved.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Who is asked.
    pub servers: Servers,
    /// Upstreams for domains of their own, the longest match by labels first.
    pub domains: Vec<(Name, Vec<Target>)>,
    /// The addresses we listen on ourselves: never upstreams.
    pub own: Vec<SocketAddr>,
    /// The served zones: never forwarded.
    pub zones: Zones,
    /// Authorities that may vouch for upstreams over TLS, PEM; none for those the machine trusts.
    pub ca_file: Option<PathBuf>,
    /// Whether questions go out with letters in random case, and answers must echo it (draft-vixie-dnsext-dns0x20).
    pub random_case: bool,
    /// Whether answers from public names may not hold private addresses, and the domains that may all the same.
    pub rebinding: Option<Vec<Name>>,
    /// Most bytes of the cache, keys and overhead included; 0 for none.
    pub cache_bytes: usize,
    /// How long past its end an answer may be given when no upstream answers (RFC 8767); zero for never.
    pub stale: Duration,
    /// Whether messages with an opcode other than QUERY are passed on; else they get NOTIMP.
    pub other_opcodes: bool,
}

impl Settings {
    /// Looks whether the file of authorities can be used, which is read again whenever one of them is needed.
    ///
    /// # Errors
    /// When there is one and it cannot be read, or holds no certificate.
    pub fn check(&self) -> Result<(), CaFileError> {
        self.ca_file.as_deref().map_or(Ok(()), exchange::check_ca_file)
    }
}

/// Who is asked for names without upstreams of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Servers {
    /// Nobody: such names are refused.
    Off,
    /// Whom the system's resolver would ask, followed while running.
    System,
    /// These.
    Named(Vec<Target>),
}
