//! Sockets that another process opened for this one: the service manager, or a running server.
//!
//! The receiver serves them as they are. It never shuts one down: the other process still has it,
//! and a successor will.

use std::collections::HashSet;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::{env, fmt, io, process};

use listenfd::ListenFd;
use socket2::{SockRef, Type};

/// Maximum sockets that the service manager may pass; a socket unit has a few lines.
const MAX_SOCKETS: usize = 1024;

/// Names of the sockets of a socket unit, as messages list them.
const NAMES: &str = "dns, tls, quic or admin";

/// What an inherited socket serves: `FileDescriptorName=` of a socket unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketName {
    /// Plain DNS, over UDP and TCP.
    Dns,
    /// DNS over TLS.
    Tls,
    /// DNS over QUIC.
    Quic,
    /// The HTTP interface.
    Admin,
}

impl SocketName {
    /// Returns the name of the socket.
    pub fn text(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Tls => "tls",
            Self::Quic => "quic",
            Self::Admin => "admin",
        }
    }

    /// Parses the name of a descriptor.
    ///
    /// Without `FileDescriptorName=`, it is the name of the socket unit.
    ///
    /// # Errors
    /// If no socket of the server has this name.
    pub fn parse(name: &str) -> Result<Self, InheritedError> {
        let all = [Self::Dns, Self::Tls, Self::Quic, Self::Admin];
        match all.into_iter().find(|known| known.text() == name) {
            Some(known) => Ok(known),
            None if matches!(name, "" | "unknown" | "svcdns.socket") => Ok(Self::Dns),
            None => Err(InheritedError::Name(name.to_owned())),
        }
    }
}

/// A socket that another process opened.
#[derive(Debug)]
pub struct Inherited {
    /// What the socket serves.
    pub name: SocketName,
    /// The socket, in the mode (blocking or not) that it came in.
    pub socket: InheritedSocket,
    /// The address that it is bound to.
    pub address: SocketAddr,
}

/// An inherited socket of either transport.
#[derive(Debug)]
pub enum InheritedSocket {
    /// A bound UDP socket.
    Udp(UdpSocket),
    /// A listening TCP socket.
    Tcp(TcpListener),
}

impl InheritedSocket {
    /// Returns the socket, if it is of this transport.
    pub fn udp(self) -> Option<UdpSocket> {
        match self {
            Self::Udp(socket) => Some(socket),
            Self::Tcp(_) => None,
        }
    }

    /// Returns the socket, if it is of this transport.
    pub fn tcp(self) -> Option<TcpListener> {
        match self {
            Self::Udp(_) => None,
            Self::Tcp(socket) => Some(socket),
        }
    }
}

impl Inherited {
    /// Takes a socket; checks that it is one that the server can serve under this name.
    ///
    /// # Errors
    /// If it is not a bound UDP socket or TCP listener, if the name is for the other transport, or
    /// if plain DNS would be served on an unspecified address.
    pub fn new(name: SocketName, descriptor: OwnedFd) -> Result<Self, InheritedError> {
        let socket = SockRef::from(&descriptor);
        let kind = socket.r#type().map_err(|_| InheritedError::Kind(name))?;
        let address = socket.local_addr().ok().and_then(|address| address.as_socket());
        let address = address.filter(|address| address.port() != 0);
        let address = address.ok_or(InheritedError::Kind(name))?;
        let is_udp = match kind {
            Type::DGRAM => true,
            Type::STREAM if socket.is_listener().unwrap_or(false) => false,
            _ => return Err(InheritedError::Kind(name)),
        };
        if match name {
            SocketName::Dns => false,
            SocketName::Tls | SocketName::Admin => is_udp,
            SocketName::Quic => !is_udp,
        } {
            return Err(InheritedError::Transport { name, address });
        }
        if name == SocketName::Dns && address.ip().is_unspecified() {
            return Err(InheritedError::Unspecified(address));
        }
        let socket = if is_udp {
            InheritedSocket::Udp(descriptor.into())
        } else {
            InheritedSocket::Tcp(descriptor.into())
        };
        Ok(Self { name, socket, address })
    }
}

/// Who passed the sockets, which decides what becomes of those that are not configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SocketGiver {
    /// The service manager, which keeps each socket open: what nobody serves is never answered.
    #[default]
    ServiceManager,
    /// The running server, which closes its sockets soon.
    RunningServer,
}

/// The sockets that this process inherited; none by default.
#[derive(Debug, Default)]
pub struct InheritedSockets {
    /// The sockets, in the order in which they came.
    pub sockets: Vec<Inherited>,
    /// Who passed them.
    pub giver: SocketGiver,
}

impl InheritedSockets {
    /// Takes the sockets that the service manager passed to this process (`sd_listen_fds(3)`).
    ///
    /// Must be called before the process has threads, and once: the variables are removed.
    ///
    /// # Errors
    /// If the server cannot serve one of the sockets. No socket may be left over: it would be
    /// inherited further, and nobody would answer its clients.
    pub fn from_environment() -> Result<Self, InheritedError> {
        let number = |name| env::var(name).ok().and_then(|value| value.parse::<usize>().ok());
        // The variables of another process, such as a shell's, mean nothing here.
        if number("LISTEN_PID") != usize::try_from(process::id()).ok()
            || number("LISTEN_FDS").is_none_or(|count| count > MAX_SOCKETS)
        {
            return Ok(Self::default());
        }
        let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut passed = ListenFd::from_env();
        let count = passed.len();
        let take = |at| {
            let name = SocketName::parse(names.next().unwrap_or_default())?;
            Inherited::new(name, take(&mut passed, at).ok_or(InheritedError::Kind(name))?)
        };
        let sockets: Vec<Inherited> = (0..count).map(take).collect::<Result<_, _>>()?;
        let tcp = |one: &&Inherited| matches!(one.socket, InheritedSocket::Tcp(_));
        let mut listeners = HashSet::new();
        if let Some(twice) = sockets.iter().filter(tcp).find(|one| !listeners.insert(one.address)) {
            return Err(InheritedError::Twice(twice.address));
        }
        Ok(Self { sockets, giver: SocketGiver::ServiceManager })
    }

    /// Takes out the sockets of one name.
    pub fn take(&mut self, name: SocketName) -> Vec<Inherited> {
        self.sockets.extract_if(.., |socket| socket.name == name).collect()
    }
}

/// Takes the descriptor at an index, and closes it in programs that this process starts.
fn take(passed: &mut ListenFd, at: usize) -> Option<OwnedFd> {
    if let Ok(udp) = passed.take_udp_socket(at) {
        return udp.map(OwnedFd::from);
    }
    passed.take_tcp_listener(at).ok().flatten().map(OwnedFd::from)
}

/// The sockets that a server reads: those that it can pass to a successor.
///
/// Listeners come and go while the server runs. The list does not keep a socket open.
#[derive(Clone, Default)]
pub struct OpenSockets(Arc<PassableSockets>);

/// The sockets, and whether they were passed.
#[derive(Default)]
struct PassableSockets {
    open: Mutex<Vec<PassableSocket>>,
    are_handed_over: AtomicBool,
}

/// A socket with its purpose and address.
struct PassableSocket {
    name: SocketName,
    address: SocketAddr,
    socket: Weak<dyn AsFd + Send + Sync>,
}

impl OpenSockets {
    /// Adds a socket, which leaves the list when its last owner drops it.
    pub fn add<S>(&self, name: SocketName, address: SocketAddr, socket: &Arc<S>)
    where
        S: AsFd + Send + Sync + 'static,
    {
        let socket: Weak<S> = Arc::downgrade(socket);
        let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|known| known.socket.strong_count() > 0);
        open.push(PassableSocket { name, address, socket });
    }

    /// Leaves what has not been received yet to a successor, which reads the sockets.
    pub fn hand_over(&self) {
        self.0.are_handed_over.store(true, Ordering::Release);
    }

    /// Returns whether a successor reads the sockets.
    pub fn are_handed_over(&self) -> bool {
        self.0.are_handed_over.load(Ordering::Acquire)
    }

    /// Returns a second descriptor of each socket that is open now.
    ///
    /// # Errors
    /// If the system has no further descriptors.
    pub fn duplicates(&self) -> io::Result<Vec<(SocketName, SocketAddr, OwnedFd)>> {
        let open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        let owned = open.iter().filter_map(|known| Some((known, known.socket.upgrade()?)));
        let duplicate = |(known, socket): (&PassableSocket, Arc<dyn AsFd + Send + Sync>)| {
            Ok((known.name, known.address, socket.as_fd().try_clone_to_owned()?))
        };
        owned.map(duplicate).collect()
    }
}

impl fmt::Debug for OpenSockets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        f.debug_list().entries(open.iter().map(|known| (known.name, known.address))).finish()
    }
}

/// Error in the sockets that another process passed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InheritedError {
    /// No socket of the server has this name.
    #[error("the socket unit names a socket {0:?}: set FileDescriptorName= to {NAMES}")]
    Name(String),
    /// The descriptor is no socket that the server can serve.
    #[error(
        "the socket unit passes a descriptor named {} that is not a UDP socket or TCP listener on \
         an address and port: svcdns serves those of ListenDatagram= and ListenStream= only",
        .0.text()
    )]
    Kind(SocketName),
    /// The socket is of the wrong transport.
    #[error(
        "the socket unit passes {address} as {}, which is served over the other transport: \
         use ListenDatagram= for quic, and ListenStream= for tls and admin",
        name.text()
    )]
    Transport {
        /// Name of the socket.
        name: SocketName,
        /// Address of the socket.
        address: SocketAddr,
    },
    /// Several TCP listeners have the same address.
    #[error(
        "the socket unit has several ListenStream= for {0}, but svcdns serves one: write several \
         ListenDatagram= only"
    )]
    Twice(SocketAddr),
    /// The socket is bound to every address of the machine.
    #[error(
        "the socket unit listens on {0}, which is every address of the machine: responses could \
         leave from another address than the one queried. Write a ListenDatagram= and a \
         ListenStream= for each address"
    )]
    Unspecified(SocketAddr),
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    fn bound(address: &str) -> OwnedFd {
        UdpSocket::bind(address).unwrap().into()
    }

    #[test]
    fn sockets_are_named_after_what_they_serve() {
        for name in ["dns", "tls", "quic", "admin"] {
            assert_eq!(SocketName::parse(name).unwrap().text(), name);
        }
        // Without FileDescriptorName=, or without LISTEN_FDNAMES.
        for name in ["svcdns.socket", "unknown", ""] {
            assert_eq!(SocketName::parse(name), Ok(SocketName::Dns));
        }
        let error = SocketName::parse("web").unwrap_err().to_string();
        assert!(error.contains("\"web\"") && error.contains("dns, tls, quic or admin"), "{error}");
    }

    #[test]
    fn inherited_sockets_keep_their_transport_and_address() {
        let udp = Inherited::new(SocketName::Dns, bound("127.0.0.1:0")).unwrap();
        assert!(matches!(&udp.socket, InheritedSocket::Udp(socket)
            if socket.local_addr().unwrap() == udp.address));
        let listener = TcpListener::bind("[::1]:0").unwrap();
        let address = listener.local_addr().unwrap();
        let tcp = Inherited::new(SocketName::Tls, listener.into()).unwrap();
        assert!(matches!(tcp.socket, InheritedSocket::Tcp(_)) && tcp.address == address);
    }

    #[test]
    fn the_list_of_open_sockets_keeps_none_open() {
        let sockets = OpenSockets::default();
        let udp = Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap());
        let tcp = Arc::new(TcpListener::bind("127.0.0.1:0").unwrap());
        let address = tcp.local_addr().unwrap();
        sockets.add(SocketName::Dns, udp.local_addr().unwrap(), &udp);
        sockets.add(SocketName::Tls, address, &tcp);
        assert_eq!(sockets.duplicates().unwrap().len(), 2);
        drop(udp);
        let [(name, found, descriptor)] = &sockets.duplicates().unwrap()[..] else { panic!() };
        assert_eq!((*name, *found), (SocketName::Tls, address));
        let same = TcpListener::from(descriptor.try_clone().unwrap());
        assert_eq!(same.local_addr().unwrap(), address);
    }

    #[test]
    fn descriptors_that_the_server_cannot_serve_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let unix = UnixListener::bind(directory.path().join("socket")).unwrap();
        let unconnected = socket2::Socket::new(socket2::Domain::IPV4, Type::STREAM, None).unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        for descriptor in [unix.into(), unconnected.into(), file.into()] {
            let refused = Inherited::new(SocketName::Dns, descriptor).unwrap_err();
            assert_eq!(refused, InheritedError::Kind(SocketName::Dns));
        }
        for name in [SocketName::Tls, SocketName::Admin] {
            let refused = Inherited::new(name, bound("127.0.0.1:0")).unwrap_err();
            assert!(matches!(refused, InheritedError::Transport { .. }), "{refused}");
        }
        for address in ["0.0.0.0:0", "[::]:0"] {
            let refused = Inherited::new(SocketName::Dns, bound(address)).unwrap_err();
            assert!(matches!(refused, InheritedError::Unspecified(_)), "{refused}");
            assert!(Inherited::new(SocketName::Quic, bound(address)).is_ok());
        }
    }
}
