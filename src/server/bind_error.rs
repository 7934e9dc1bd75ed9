//! Errors of binding a listening address, with advice.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;

use super::{CertificateError, SettingsError};
use crate::wire::Transport;

/// Error when an address is bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The settings are invalid.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The certificate of the encrypted listeners is unusable.
    #[error("cannot load the certificate of the encrypted listeners")]
    Certificate(#[from] CertificateError),
    /// Another process uses the port.
    #[error(transparent)]
    InUse(PortTaken),
    /// The port is below 1024 and the process lacks the permission.
    #[error(
        "cannot listen on {address}: ports below 1024 need a permission; grant it with \
         `sudo setcap cap_net_bind_service=+ep` and the path of svcdns, or with \
         AmbientCapabilities=CAP_NET_BIND_SERVICE in a systemd unit, or choose a port from 1024, \
         such as {flag} {example}"
    )]
    NotPermitted {
        /// Address to listen on.
        address: SocketAddr,
        /// Flag that sets the address.
        flag: &'static str,
        /// An address that needs no permission.
        example: SocketAddr,
    },
    /// The address does not belong to an interface of the machine.
    #[error("cannot listen on {address}: no interface has this address")]
    NoSuchAddress {
        /// Address to listen on.
        address: SocketAddr,
    },
    /// Another error of the system.
    #[error("cannot listen on {address} ({}): {source}", .transport.name())]
    System {
        /// Address to listen on.
        address: SocketAddr,
        /// Transport of the socket.
        transport: Transport,
        /// Error of the system.
        source: io::Error,
    },
}

/// A port that another process uses.
///
/// The server does not look for that process. A caller that finds it adds it to the message with
/// [`Self::by`].
#[derive(Debug, thiserror::Error)]
pub struct PortTaken {
    /// Address to listen on.
    pub address: SocketAddr,
    /// Transport of the socket.
    pub transport: Transport,
    /// Flag that sets the address.
    pub flag: &'static str,
}

impl PortTaken {
    /// Returns the message with a description of the process that uses the port.
    pub fn by(&self, holder: impl fmt::Display) -> String {
        let Self { address, transport, flag } = self;
        let transport = transport.name();
        format!(
            "cannot listen on {address} ({transport}): the port is in use by {holder}; \
             stop it, or choose another port with {flag}"
        )
    }
}

impl fmt::Display for PortTaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.by("another process"))
    }
}

/// A listen flag, for the advice in error messages.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ListenFlag {
    /// Name of the flag.
    name: &'static str,
    /// A port that needs no permission.
    example_port: u16,
}

/// Flag for plain DNS.
pub(super) static LISTEN: ListenFlag = ListenFlag { name: "--listen", example_port: 5300 };
/// Flag for DNS over TLS.
pub(super) static LISTEN_TLS: ListenFlag = ListenFlag { name: "--tls-listen", example_port: 8853 };
/// Flag for DNS over QUIC.
pub(super) static LISTEN_QUIC: ListenFlag =
    ListenFlag { name: "--tls-quic-listen", example_port: 8853 };

impl BindError {
    /// Converts a system error to an error with advice.
    pub(super) fn explain(
        transport: Transport,
        listen_flag: &'static ListenFlag,
        address: SocketAddr,
        error: io::Error,
    ) -> Self {
        match error.kind() {
            ErrorKind::AddrInUse => {
                Self::InUse(PortTaken { address, transport, flag: listen_flag.name })
            }
            ErrorKind::PermissionDenied if (1..1024).contains(&address.port()) => {
                Self::NotPermitted {
                    address,
                    flag: listen_flag.name,
                    example: SocketAddr::new(address.ip(), listen_flag.example_port),
                }
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
    fn binding_a_low_port_without_permission_gives_advice() {
        let address = "127.0.0.1:53".parse().unwrap();
        let message = BindError::explain(
            Transport::Tcp,
            &LISTEN,
            address,
            ErrorKind::PermissionDenied.into(),
        )
        .to_string();
        assert!(
            message.contains("127.0.0.1:53")
                && message.contains("setcap")
                && message.contains("127.0.0.1:5300"),
            "{message}"
        );
        let other = BindError::explain(
            Transport::Tcp,
            &LISTEN,
            "127.0.0.1:5300".parse().unwrap(),
            ErrorKind::PermissionDenied.into(),
        );
        assert!(matches!(other, BindError::System { .. }), "{other:?}");
    }
}
