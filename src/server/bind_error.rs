//! Why an address cannot be listened on, in words and with what to do.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;

use super::{CertificateError, SettingsError};
use crate::wire::Transport;

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The settings themselves.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The certificate of the encrypted listeners.
    #[error("no encrypted connections without a certificate")]
    Certificate(#[from] CertificateError),
    /// Somebody else has the port.
    #[error(transparent)]
    InUse(PortTaken),
    /// A port below 1024, without the right to it.
    #[error(
        "cannot listen on {address}: ports below 1024 need a permission; give it with `sudo setcap cap_net_bind_service=+ep` and the path \
         of svcdns, or with AmbientCapabilities=CAP_NET_BIND_SERVICE in a systemd unit, or choose a port from 1024 on, such as {flag} {example}"
    )]
    NotPermitted {
        /// The address.
        address: SocketAddr,
        /// The flag that named it.
        flag: &'static str,
        /// An address that needs no permission.
        example: SocketAddr,
    },
    /// No interface has the address.
    #[error("cannot listen on {address}: this machine has no such address at the moment")]
    NoSuchAddress {
        /// The address.
        address: SocketAddr,
    },
    /// Anything else the system said.
    #[error("cannot listen on {address} ({}): {source}", .transport.name())]
    System {
        /// The address.
        address: SocketAddr,
        /// Whether for UDP or TCP.
        transport: Transport,
        /// What the system said.
        source: io::Error,
    },
}

/// A port that another process has.
///
/// The server does not look for that process. A caller that does puts it into the message with
/// [`Self::by`].
#[derive(Debug, thiserror::Error)]
pub struct PortTaken {
    /// The address.
    pub address: SocketAddr,
    /// Whether its UDP or its TCP port.
    pub transport: Transport,
    /// The flag that named the address.
    pub flag: &'static str,
}

impl PortTaken {
    /// The message, with who has the port.
    pub fn by(&self, holder: impl fmt::Display) -> String {
        let Self { address, transport, flag } = self;
        let transport = transport.name();
        format!("cannot listen on {address} ({transport}): the port is taken by {holder}; stop that, or choose another port with {flag}")
    }
}

impl fmt::Display for PortTaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.by("another process"))
    }
}

/// How an address was named, for what to do about it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Named {
    /// The flag.
    flag: &'static str,
    /// A port that needs no permission.
    port: u16,
}

/// Plain DNS.
pub(super) static LISTEN: Named = Named { flag: "--listen", port: 5300 };
/// DNS over TLS.
pub(super) static LISTEN_TLS: Named = Named { flag: "--tls-listen", port: 8853 };
/// DNS over QUIC.
pub(super) static LISTEN_QUIC: Named = Named { flag: "--tls-quic-listen", port: 8853 };

impl BindError {
    /// What the system said, in words and with what to do.
    pub(super) fn explain(transport: Transport, named: &'static Named, address: SocketAddr, error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::AddrInUse => Self::InUse(PortTaken { address, transport, flag: named.flag }),
            ErrorKind::PermissionDenied if (1..1024).contains(&address.port()) => {
                Self::NotPermitted { address, flag: named.flag, example: SocketAddr::new(address.ip(), named.port) }
            }
            ErrorKind::AddrNotAvailable => Self::NoSuchAddress { address },
            _ => Self::System { address, transport, source: error },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_low_port_without_the_right_to_it_says_how_to_get_it() {
        let address = "127.0.0.1:53".parse().unwrap();
        let message = BindError::explain(Transport::Tcp, &LISTEN, address, ErrorKind::PermissionDenied.into()).to_string();
        assert!(message.contains("127.0.0.1:53") && message.contains("setcap") && message.contains("127.0.0.1:5300"), "{message}");
        let other = BindError::explain(Transport::Tcp, &LISTEN, "127.0.0.1:5300".parse().unwrap(), ErrorKind::PermissionDenied.into());
        assert!(matches!(other, BindError::System { .. }), "{other:?}");
    }
}
