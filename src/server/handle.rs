//! Changes the listeners and rules of a running server.

use std::net::SocketAddr;

use tokio::sync::{mpsc, oneshot};

use super::encrypted::EncryptedSockets;
use super::listening::{ListenReport, ListenSet, SharedListenState};
use super::rules::ServingRules;
use super::sockets::PlainEndpoint;
use super::{BindError, Settings};
use crate::inherited::InheritedSockets;

/// Changes the listeners and rules of a running server, and tells what it listens on.
#[derive(Clone, Debug)]
pub struct ServerHandle {
    pub(super) state: SharedListenState,
    pub(super) changes: mpsc::Sender<ListenerChange>,
}

/// Open sockets and rules that are ready for operation.
///
/// Dropping it closes the sockets; the server goes on as before.
#[derive(Debug)]
pub struct PreparedListeners {
    pub(super) rules: ServingRules,
    pub(super) listening: ListenSet,
    pub(super) endpoints: Vec<PlainEndpoint>,
    pub(super) encrypted: EncryptedSockets,
    /// Addresses for plain DNS once the change is in operation.
    addresses: Vec<SocketAddr>,
}

impl PreparedListeners {
    /// Returns the addresses for plain DNS once the change is in operation.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }
}

/// A change for the task that serves.
#[derive(Debug)]
pub(super) struct ListenerChange {
    pub(super) prepared: PreparedListeners,
    /// Told when the change is in operation.
    pub(super) done: oneshot::Sender<()>,
}

impl ServerHandle {
    /// Opens the sockets that `settings` need beside those that are open; changes nothing.
    ///
    /// An address of an inherited socket stays, whether `settings` have it or not.
    ///
    /// # Errors
    /// If the settings are invalid, or a certificate cannot be loaded or a socket opened. No new
    /// socket stays open in that case.
    pub fn prepare(&self, settings: &Settings) -> Result<PreparedListeners, BindError> {
        // A copy, because opening may wait for a file system, and others read the state meanwhile.
        let state = self.state.lock().clone();
        let settings = state.held.added_to(settings);
        settings.check()?;
        let workers = settings.limits.udp_workers;
        let (endpoints, plain) = state.open_plain(&settings.listen, workers, Vec::new())?;
        let encrypted = EncryptedSockets::open(
            &settings.encrypted,
            &mut InheritedSockets::default(),
            &state.listening,
        )?;
        let listening = ListenSet { plain, ..encrypted.listening.clone() };
        let kept = state.active.keys().filter(|address| listening.covers(address)).copied();
        let addresses = kept.chain(endpoints.iter().map(|endpoint| endpoint.address)).collect();
        let rules = ServingRules::new(&settings);
        Ok(PreparedListeners { rules, listening, endpoints, encrypted, addresses })
    }

    /// Puts a prepared change into operation; returns once it is.
    ///
    /// Queries in progress are answered. If the server is stopping, the change has no effect.
    pub async fn commit(&self, prepared: PreparedListeners) {
        let (done, is_done) = oneshot::channel();
        if self.changes.send(ListenerChange { prepared, done }).await.is_ok() {
            let _ = is_done.await;
        }
    }

    /// Returns whether the server reads its sockets.
    pub fn is_serving(&self) -> bool {
        self.state.lock().is_serving
    }

    /// Returns what the server listens on.
    pub fn listening(&self) -> ListenReport {
        self.state.lock().report()
    }

    /// Returns the addresses for plain DNS that are served.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.state.lock().active.keys().copied().collect()
    }

    /// Returns the addresses for DNS over TLS.
    pub fn tls_addresses(&self) -> Vec<SocketAddr> {
        self.state.lock().listening.tls.iter().map(|(_, address)| *address).collect()
    }

    /// Returns the addresses for DNS over QUIC.
    pub fn quic_addresses(&self) -> Vec<SocketAddr> {
        self.state.lock().listening.quic.iter().map(|(_, address)| *address).collect()
    }
}
