//! The port of the HTTP interface, which a reload can open, close and move.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::{self, AdminContext, AdminListener, ServerInfo};
use crate::inherited::{Inherited, InheritedSocket, OpenSockets, SocketName};

/// The port of the HTTP interface.
#[derive(Debug)]
pub(super) struct AdminPort {
    tracker: TaskTracker,
    stop: CancellationToken,
    current: Mutex<OpenPort>,
    /// Listeners that another process passed.
    passed: Mutex<Vec<Inherited>>,
    /// The sockets for a successor, to which each listener is added.
    sockets: OpenSockets,
}

/// The configured address, and the end of its listener.
#[derive(Debug, Default)]
struct OpenPort {
    address: Option<SocketAddr>,
    stop: CancellationToken,
}

/// A port that is open and not served yet.
#[derive(Debug)]
pub(super) enum PreparedPort {
    /// The address is that of the open port.
    Unchanged,
    /// The new address, with its listener; `None` for no port.
    Changed(Option<(SocketAddr, Arc<TcpListener>)>),
}

impl PreparedPort {
    /// Returns the address of the listener, if there is a new one.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Changed(Some((_, listener))) => listener.local_addr().ok(),
            Self::Changed(None) | Self::Unchanged => None,
        }
    }
}

impl AdminPort {
    /// Creates a closed port; its listeners end with `stop`.
    pub(super) fn new(
        tracker: &TaskTracker,
        stop: &CancellationToken,
        passed: Vec<Inherited>,
        sockets: OpenSockets,
    ) -> Self {
        Self {
            tracker: tracker.clone(),
            stop: stop.clone(),
            current: Mutex::default(),
            passed: Mutex::new(passed),
            sockets,
        }
    }

    /// Opens a port, unless it is open already.
    ///
    /// # Errors
    /// If the port cannot be opened; the address is part of the error.
    pub(super) async fn prepare(
        &self,
        address: Option<SocketAddr>,
    ) -> Result<PreparedPort, (SocketAddr, io::Error)> {
        if self.current.lock().unwrap_or_else(PoisonError::into_inner).address == address {
            return Ok(PreparedPort::Unchanged);
        }
        let Some(address) = address else { return Ok(PreparedPort::Changed(None)) };
        let listener = match self.passed_at(address) {
            Some(passed) => passed.and_then(|passed| {
                passed.set_nonblocking(true)?;
                passed.try_into()
            }),
            None => TcpListener::bind(address).await,
        };
        match listener {
            Ok(listener) => Ok(PreparedPort::Changed(Some((address, Arc::new(listener))))),
            Err(error) => Err((address, error)),
        }
    }

    /// Returns the listener of an address that another process passed.
    ///
    /// It is a duplicate: what is prepared is not always put into operation.
    fn passed_at(&self, address: SocketAddr) -> Option<io::Result<std::net::TcpListener>> {
        let passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        passed.iter().find_map(|one| match &one.socket {
            InheritedSocket::Tcp(listener) if one.address == address => Some(listener.try_clone()),
            _ => None,
        })
    }

    /// Closes the passed listeners that are not served, when their giver is about to end.
    pub(super) fn close_passed(&self) {
        self.passed.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Warns of passed listeners that nobody serves, whose clients would wait for ever.
    pub(super) fn warn_of_unserved(&self, configured: Option<SocketAddr>) {
        let passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        for Inherited { address, .. } in passed.iter().filter(|one| Some(one.address) != configured)
        {
            tracing::warn!(
                %address,
                "nobody serves the passed socket for the HTTP interface: set admin-listen to its \
                 address, or remove the socket"
            );
        }
    }

    /// Serves a prepared port, and closes the port before.
    pub(super) fn commit(&self, prepared: PreparedPort, context: &Arc<AdminContext>) {
        let PreparedPort::Changed(prepared) = prepared else { return };
        let stop = self.stop.child_token();
        let (address, listener) = prepared.unzip();
        let info = context.info.load_full();
        let admin = listener.as_ref().and_then(|listener| listener.local_addr().ok());
        context.info.store(Arc::new(ServerInfo { admin, ..ServerInfo::clone(&info) }));
        if let Some((address, listener)) = admin.zip(listener.as_ref()) {
            self.sockets.add(SocketName::Admin, address, listener);
        }
        if let Some(listener) = listener.map(AdminListener::Port) {
            self.tracker.spawn(admin::serve(listener, Arc::clone(context), stop.clone()));
        }
        let open = OpenPort { address, stop };
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *current, open).stop.cancel();
    }
}
