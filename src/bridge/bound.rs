//! Listeners on each service's own address, where connections cannot be redirected.
//!
//! Each one keeps other programs from binding its port at 0.0.0.0 later.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

use tokio_util::sync::CancellationToken;

use super::sockets::listen;
use super::workers::{Destination, Workers};

/// The listeners of all services.
#[derive(Debug)]
pub(super) struct BoundListeners {
    ports: Vec<u16>,
    open: HashMap<Ipv4Addr, CancellationToken>,
    stop: CancellationToken,
    limit: usize,
}

/// Reason why svcdns cannot listen on an address.
#[derive(Debug, thiserror::Error)]
pub(super) enum BindFailure {
    /// A port could not be bound.
    #[error("cannot bind {address}: {error}")]
    Port {
        /// The address.
        address: SocketAddrV4,
        /// The error of the system.
        error: io::Error,
    },
    /// There are as many listeners as descriptors allow.
    #[error("the limit of {0} addresses with listeners is reached (open files)")]
    TooMany(usize),
}

impl BoundListeners {
    /// Creates the set, without listeners; `limit` bounds the addresses.
    pub(super) fn new(ports: Vec<u16>, limit: usize, stop: CancellationToken) -> Self {
        Self { ports, open: HashMap::new(), stop, limit }
    }

    /// Listens on all ports of an address, unless it does already.
    ///
    /// # Errors
    /// If a port cannot be bound; none of them is then open.
    pub(super) fn open(&mut self, address: Ipv4Addr, workers: &Workers) -> Result<(), BindFailure> {
        if self.open.contains_key(&address) {
            return Ok(());
        }
        if self.open.len() >= self.limit {
            return Err(BindFailure::TooMany(self.limit));
        }
        let mut listeners = Vec::with_capacity(self.ports.len());
        for port in &self.ports {
            let address = SocketAddrV4::new(address, *port);
            let listener =
                listen(address, false).map_err(|error| BindFailure::Port { address, error })?;
            listeners.push((address, listener));
        }
        let stop = self.stop.child_token();
        for (address, listener) in listeners {
            workers.accept(listener, Destination::Own(address), stop.clone());
        }
        self.open.insert(address, stop);
        Ok(())
    }

    /// Closes the listeners of an address.
    pub(super) fn close(&mut self, address: Ipv4Addr) {
        if let Some(stop) = self.open.remove(&address) {
            stop.cancel();
        }
    }
}
