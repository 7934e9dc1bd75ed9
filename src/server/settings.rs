//! Settings of the server, and their validation.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::{Access, CertificateFiles, Limits};

/// Addresses to listen on, clients to serve, and limits.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Addresses for plain DNS; each gets UDP and TCP. Port 0 picks a free port.
    ///
    /// An unspecified address (`0.0.0.0`, `::`) means every address of the machine. The server adds
    /// and removes listeners as these addresses change.
    pub listen: Vec<SocketAddr>,
    /// Addresses for DNS over TLS and DNS over QUIC.
    pub encrypted: EncryptedSettings,
    /// Networks with access, in addition to loopback.
    pub allow: Vec<IpNet>,
    /// Whether loopback has access without an entry in `allow`; `true` by default.
    pub allow_loopback: bool,
    /// Each thread logs one of this many queries; 0 turns the query log off.
    ///
    /// The log then contains client addresses and query names.
    pub log_queries: u32,
    /// Timeouts and limits.
    pub limits: Limits,
}

impl Default for Settings {
    /// Listens on `127.0.0.1:5300`, for loopback clients only.
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 5300))],
            encrypted: EncryptedSettings::default(),
            allow: Vec::new(),
            allow_loopback: true,
            log_queries: 0,
            limits: Limits::default(),
        }
    }
}

/// Addresses of encrypted listeners, and their certificate; none by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EncryptedSettings {
    /// Addresses for DNS over TLS (RFC 7858).
    ///
    /// An unspecified address (`0.0.0.0`, `::`) covers every address of the machine, including
    /// future ones.
    pub tls: Vec<SocketAddr>,
    /// Addresses for DNS over QUIC (RFC 9250), in the same form as `tls`.
    pub quic: Vec<SocketAddr>,
    /// Certificate and key files; required if there is an address.
    pub certificate: Option<CertificateFiles>,
}

impl EncryptedSettings {
    /// Returns the addresses of both protocols.
    pub(super) fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.tls.iter().chain(&self.quic).copied()
    }
}

/// Error in the settings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// `listen` is empty.
    #[error("no address to listen on: add one, for example --listen 127.0.0.1:5300")]
    NoAddress,
    /// An encrypted listener has no certificate.
    #[error(
        "{address} is an encrypted listener, which needs a certificate: \
         set --tls-cert-file and --tls-key-file"
    )]
    NoCertificate {
        /// Address of the listener.
        address: SocketAddr,
    },
    /// The same address and port are set for plain and encrypted DNS.
    #[error("{address} is set for both plain and encrypted DNS: each needs its own port")]
    PortConflict {
        /// The shared address.
        address: SocketAddr,
    },
    /// Other machines can reach an address while `allow` is empty.
    #[error(
        "{address} is reachable from other machines, but no access rule says which of them may \
         query: add their networks, for example --allow {example}, or listen on a loopback \
         address such as 127.0.0.1:{}",
        address.port()
    )]
    Exposed {
        /// The reachable address.
        address: SocketAddr,
        /// A network to suggest as an access rule.
        example: IpNet,
    },
}

impl Settings {
    /// Checks that the server can run with these settings.
    ///
    /// # Errors
    /// If `listen` is empty; if an address is reachable from other machines while `allow` is empty;
    /// if an encrypted listener has no certificate or shares an address and port with plain DNS.
    pub fn check(&self) -> Result<(), SettingsError> {
        if self.listen.is_empty() {
            return Err(SettingsError::NoAddress);
        }
        let mut encrypted = self.encrypted.addresses();
        if let (Some(address), None) =
            (self.encrypted.addresses().next(), &self.encrypted.certificate)
        {
            return Err(SettingsError::NoCertificate { address });
        }
        if let Some(address) =
            encrypted.find(|address| address.port() != 0 && self.listen.contains(address))
        {
            return Err(SettingsError::PortConflict { address });
        }
        let mut all = self.listen.iter().copied().chain(self.encrypted.addresses());
        match all.find(|address| !address.ip().to_canonical().is_loopback()) {
            Some(address) if self.allow.is_empty() => {
                Err(SettingsError::Exposed { address, example: example_rule(address.ip()) })
            }
            _ => Ok(()),
        }
    }

    /// Returns the access list of these settings.
    pub fn access(&self) -> Access {
        let access = Access::new(&self.allow);
        if self.allow_loopback { access } else { access.without_loopback() }
    }
}

/// Returns the /24 or /64 around `address`; 192.168.0.0/16 if it is unspecified.
fn example_rule(address: IpAddr) -> IpNet {
    let (address, length) = match address.to_canonical() {
        address if address.is_unspecified() => (IpAddr::from([192, 168, 0, 0]), 16),
        address @ IpAddr::V4(_) => (address, 24),
        address @ IpAddr::V6(_) => (address, 64),
    };
    IpNet::new(address, length).map_or_else(|_| IpNet::from(address), |network| network.trunc())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listening(addresses: &[&str], allow: &[&str]) -> Settings {
        Settings {
            listen: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            allow: allow.iter().map(|network| network.parse().unwrap()).collect(),
            ..Settings::default()
        }
    }

    #[test]
    fn default_settings_serve_loopback() {
        assert_eq!(Settings::default().check(), Ok(()));
        assert_eq!(
            listening(&["127.0.0.53:53", "[::1]:53", "[::ffff:127.0.0.1]:53"], &[]).check(),
            Ok(())
        );
    }

    #[test]
    fn reachable_addresses_need_an_access_rule() {
        for address in
            ["0.0.0.0:53", "[::]:53", "192.0.2.2:53", "[fd00::2]:53", "[::ffff:192.0.2.2]:53"]
        {
            let refused = listening(&["127.0.0.1:53", address], &[]).check();
            let Err(SettingsError::Exposed { address: found, .. }) = refused else {
                panic!("{refused:?}")
            };
            assert_eq!(found, address.parse().unwrap());
            assert_eq!(listening(&[address], &["10.0.0.0/8"]).check(), Ok(()));
        }
        assert_eq!(listening(&[], &[]).check(), Err(SettingsError::NoAddress));
    }

    #[test]
    fn the_error_for_a_reachable_address_suggests_an_access_rule() {
        let message = listening(&["192.0.2.2:53"], &[]).check().unwrap_err().to_string();
        assert!(
            message.contains("192.0.2.2:53") && message.contains("--allow 192.0.2.0/24"),
            "{message}"
        );
        let message = listening(&["[::]:53"], &[]).check().unwrap_err().to_string();
        assert!(
            message.contains("[::]:53") && message.contains("--allow 192.168.0.0/16"),
            "{message}"
        );
    }
}
