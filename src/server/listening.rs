//! The addresses of a running server, and what another configuration needs beside them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::{info, warn};

use super::bind_error::LISTEN;
use super::sockets::{PlainEndpoint, canonical, worker_count};
use super::{BindError, CertificateFiles, Settings, interfaces};
use crate::inherited::{Inherited, InheritedSockets, SocketGiver, SocketName};
use crate::wire::Transport;

/// Maximum attempts to find a port that is free for both TCP and UDP.
const MAX_PORT_ATTEMPTS: usize = 16;

/// An address as it is configured, and with its port resolved.
pub(super) type ListenPair = (SocketAddr, SocketAddr);

/// The addresses of one configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ListenSet {
    /// Addresses for plain DNS; an unspecified one stands for every address of the machine.
    pub(super) plain: Vec<ListenPair>,
    /// Addresses for DNS over TLS.
    pub(super) tls: Vec<ListenPair>,
    /// Addresses for DNS over QUIC.
    pub(super) quic: Vec<ListenPair>,
    /// Files of the certificate, if there is an encrypted address.
    pub(super) certificate: Option<CertificateFiles>,
}

impl ListenSet {
    /// Returns the unspecified addresses for plain DNS.
    pub(super) fn wildcards(&self) -> Vec<SocketAddr> {
        let resolved = self.plain.iter().map(|(_, address)| *address);
        resolved.filter(|address| address.ip().is_unspecified()).collect()
    }

    /// Returns whether plain DNS on `address` is configured by itself, not by a wildcard.
    pub(super) fn names(&self, address: &SocketAddr) -> bool {
        self.plain.iter().any(|(_, named)| named == address)
    }

    /// Returns whether plain DNS on `address` is configured at all.
    pub(super) fn covers(&self, address: &SocketAddr) -> bool {
        let covers = |wildcard: &SocketAddr| {
            wildcard.port() == address.port() && wildcard.is_ipv4() == address.is_ipv4()
        };
        self.names(address) || self.wildcards().iter().any(covers)
    }
}

/// Returns the resolved form of a configured address.
pub(super) fn resolved(pairs: &[ListenPair], configured: SocketAddr) -> Option<SocketAddr> {
    pairs.iter().find(|(known, _)| *known == configured).map(|(_, address)| *address)
}

/// Addresses whose sockets the service manager holds.
///
/// They are served whether they are configured or not: nobody else would answer their clients.
#[derive(Clone, Debug, Default)]
pub(super) struct HeldAddresses(Vec<(SocketName, SocketAddr)>);

impl HeldAddresses {
    /// Returns the addresses of `inherited` that stay open without this process.
    pub(super) fn of(inherited: &InheritedSockets) -> Self {
        let held = inherited.sockets.iter().filter(|socket| socket.name != SocketName::Admin);
        match inherited.giver {
            SocketGiver::RunningServer => Self::default(),
            SocketGiver::ServiceManager => {
                let mut held: Vec<_> = held.map(|one| (one.name, one.address)).collect();
                held.dedup();
                Self(held)
            }
        }
    }

    /// Returns `settings` with these addresses first; warns of those that it does not have.
    pub(super) fn added_to(&self, settings: &Settings) -> Settings {
        let mut settings = settings.clone();
        for (name, address) in self.0.iter().rev() {
            let configured = match name {
                SocketName::Tls => &mut settings.encrypted.tls,
                SocketName::Quic => &mut settings.encrypted.quic,
                SocketName::Dns | SocketName::Admin => &mut settings.listen,
            };
            let known = configured.len();
            configured.retain(|configured| canonical(*configured) != *address);
            if configured.len() == known {
                warn!(
                    %address,
                    socket = name.text(),
                    "the socket unit has an address that the configuration does not have; serving \
                     it all the same, because systemd keeps it open"
                );
            }
            configured.insert(0, *address);
        }
        settings
    }
}

/// What a server listens on at the moment.
#[derive(Clone, Debug, Default)]
pub(super) struct ListenState {
    /// The configuration in operation.
    pub(super) listening: ListenSet,
    pub(super) held: HeldAddresses,
    /// Addresses of plain DNS that are served, with their numbers of UDP workers.
    pub(super) active: BTreeMap<SocketAddr, usize>,
    /// Addresses that should be served but are not, each with the reason.
    pub(super) missing: BTreeMap<SocketAddr, String>,
    /// Whether the sockets are read; they are open before.
    pub(super) is_serving: bool,
}

/// The state, shared by the server and those who change it.
#[derive(Clone, Debug, Default)]
pub(super) struct SharedListenState(Arc<Mutex<ListenState>>);

impl SharedListenState {
    /// Shares a state.
    pub(super) fn new(state: ListenState) -> Self {
        Self(Arc::new(Mutex::new(state)))
    }

    /// Locks the state; it stays valid if a thread panicked.
    pub(super) fn lock(&self) -> MutexGuard<'_, ListenState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a server listens on, for its health.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListenReport {
    /// Number of addresses that are served, over all transports.
    pub open: usize,
    /// Addresses that should be served but are not, each with the reason.
    pub missing: Vec<(SocketAddr, String)>,
}

impl ListenState {
    /// Returns what is served and what is missing.
    pub(super) fn report(&self) -> ListenReport {
        let Self { listening: ListenSet { tls, quic, .. }, active, missing, .. } = self;
        let open = active.len() + tls.len() + quic.len();
        ListenReport {
            open: if self.is_serving { open } else { 0 },
            missing: missing.iter().map(|(address, why)| (*address, why.clone())).collect(),
        }
    }

    /// Opens the sockets of `listen` that are not served yet.
    ///
    /// Takes the passed sockets of an address if there are any. Returns all configured addresses
    /// with their ports.
    ///
    /// # Errors
    /// If a socket cannot be opened. No new socket stays open in that case.
    pub(super) fn open_plain(
        &self,
        listen: &[SocketAddr],
        udp_workers: usize,
        passed: Vec<Inherited>,
    ) -> Result<(Vec<PlainEndpoint>, Vec<ListenPair>), BindError> {
        let mut opening = Opening { state: self, passed, udp_workers, endpoints: Vec::new() };
        let mut pairs: Vec<ListenPair> = Vec::new();
        let mut known = self.listening.plain.clone();
        for listen in listen.iter().copied().map(canonical) {
            // Port 0 means another port each time.
            if listen.port() != 0 && resolved(&pairs, listen).is_some() {
                continue;
            }
            let address = match known.iter().position(|(configured, _)| *configured == listen) {
                Some(at) => known.remove(at).1,
                None if listen.ip().is_unspecified() => opening.open_wildcard(listen)?,
                // `0.0.0.0:53` and `127.0.0.1:53` together would cover one address twice.
                None if opening.is_open(&listen) => listen,
                None => {
                    let before = opening.endpoints.len();
                    opening.open_group(&[listen], false)?;
                    opening.endpoints.get(before).map_or(listen, |endpoint| endpoint.address)
                }
            };
            pairs.push((listen, address));
        }
        Ok((opening.endpoints, pairs))
    }
}

/// The sockets that are opened for one configuration.
struct Opening<'a> {
    state: &'a ListenState,
    passed: Vec<Inherited>,
    /// UDP workers of an address, while there are few.
    udp_workers: usize,
    endpoints: Vec<PlainEndpoint>,
}

impl Opening<'_> {
    /// Returns whether an address is served already, or open.
    fn is_open(&self, address: &SocketAddr) -> bool {
        self.state.active.contains_key(address)
            || self.endpoints.iter().any(|endpoint| endpoint.address == *address)
    }

    /// Opens every address of the machine that an unspecified address stands for.
    ///
    /// Returns the unspecified address with its port.
    fn open_wildcard(&mut self, listen: SocketAddr) -> Result<SocketAddr, BindError> {
        let addresses = interfaces::local_addresses(listen)
            .map_err(|error| BindError::explain(Transport::Udp, &LISTEN, listen, error))?;
        let addresses: Vec<_> =
            addresses.into_iter().filter(|address| !self.is_open(address)).collect();
        let before = self.endpoints.len();
        self.open_group(&addresses, true)?;
        let port = self.endpoints.get(before).map(|endpoint| endpoint.address.port());
        let open = self.endpoints.iter().map(|endpoint| endpoint.address);
        let mut open = open.chain(self.state.active.keys().copied());
        if port.is_none() && !open.any(|address| address.port() == listen.port()) {
            return Err(BindError::NoSuchAddress { address: listen });
        }
        info!(
            %listen,
            addresses = self.endpoints.len() - before,
            "listening on every address of the machine, current and future"
        );
        Ok(SocketAddr::new(listen.ip(), port.unwrap_or_else(|| listen.port())))
    }

    /// Opens `addresses`, which share one port; port 0 becomes one that all have free.
    ///
    /// With `skip_absent`, an address that cannot be used yet (IPv6 duplicate address detection) is
    /// skipped with a warning.
    fn open_group(&mut self, addresses: &[SocketAddr], skip_absent: bool) -> Result<(), BindError> {
        let mut attempt = 1;
        loop {
            match self.try_group(addresses, skip_absent) {
                Err(BindError::InUse(_))
                    if attempt < MAX_PORT_ATTEMPTS
                        && addresses.iter().any(|address| address.port() == 0) =>
                {
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    /// Opens all addresses once; the first failure closes all of them.
    fn try_group(&mut self, addresses: &[SocketAddr], skip_absent: bool) -> Result<(), BindError> {
        let before = self.endpoints.len();
        for &(mut address) in addresses {
            if let (0, Some(first)) = (address.port(), self.endpoints.get(before)) {
                address.set_port(first.address.port());
            }
            let running = self.endpoints.iter().map(|endpoint| endpoint.udp.len()).sum::<usize>()
                + self.state.active.values().sum::<usize>();
            let workers = worker_count(running, self.udp_workers);
            let opened = PlainEndpoint::open(address, workers, &mut self.passed);
            match opened.map_err(|(transport, error)| {
                BindError::explain(transport, &LISTEN, address, error)
            }) {
                Ok(endpoint) => {
                    self.endpoints.push(PlainEndpoint { followed: skip_absent, ..endpoint });
                }
                Err(BindError::NoSuchAddress { address }) if skip_absent => {
                    warn!(%address, "skipping an address that is not usable yet");
                }
                Err(error) => {
                    self.endpoints.truncate(before);
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}
