//! The server's settings, and the check that they can be served.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::{Access, CertificateFiles, Limits};

/// Where to listen, and for whom.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Addresses to listen on, each with UDP and TCP. Port 0 takes a free one. An unspecified address (`0.0.0.0`, `::`)
    /// means each address that the machine has, followed as they come and go.
    pub listen: Vec<SocketAddr>,
    /// Encrypted listeners beside them.
    pub encrypted: Encrypted,
    /// Networks that may ask, besides loopback.
    pub allow: Vec<IpNet>,
    /// Whether loopback may ask without standing in `allow`; on by default.
    pub allow_loopback: bool,
    /// Of how many questions that a thread is asked one is logged; 0 for none. Names and addresses of clients end in the log.
    pub log_queries: u32,
    /// Deadlines and bounds.
    pub limits: Limits,
}

impl Default for Settings {
    /// `127.0.0.1:5300`, for loopback alone.
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 5300))],
            encrypted: Encrypted::default(),
            allow: Vec::new(),
            allow_loopback: true,
            log_queries: 0,
            limits: Limits::default(),
        }
    }
}

/// Where to listen for encrypted connections; nowhere by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encrypted {
    /// Addresses for DNS over TLS. An unspecified one (`0.0.0.0`, `::`) is every address, also one the machine gets later.
    pub tls: Vec<SocketAddr>,
    /// Addresses for DNS over QUIC, likewise.
    pub quic: Vec<SocketAddr>,
    /// The certificate to show; needed once there is an address.
    pub certificate: Option<CertificateFiles>,
}

impl Encrypted {
    /// All addresses.
    pub(super) fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.tls.iter().chain(&self.quic).copied()
    }
}

/// Settings that cannot be served as they are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// There is no address to listen on.
    #[error("there is no address to listen on: name one, for example --listen 127.0.0.1:5300")]
    NoAddress,
    /// An encrypted listener has no certificate to show.
    #[error(
        "{address} is for encrypted connections, which need a certificate: name its file with --tls-cert-file and that of its key with \
         --tls-key-file"
    )]
    NoCertificate {
        /// The address.
        address: SocketAddr,
    },
    /// One port is to carry two protocols.
    #[error("{address} is named both for plain and for encrypted connections: each needs a port of its own")]
    Twice {
        /// The address.
        address: SocketAddr,
    },
    /// Other machines could ask, and nobody has said which of them may.
    #[error(
        "{address} can be reached from other machines, and no access rule says which of them may ask: add the networks that may, \
         for example --allow {example}, or listen on a loopback address such as 127.0.0.1:{}", address.port()
    )]
    Exposed {
        /// The address.
        address: SocketAddr,
        /// A network that would be an access rule.
        example: IpNet,
    },
}

impl Settings {
    /// Whether these settings can be served.
    ///
    /// # Errors
    /// When there is no address, or one that other machines can reach without any rule in `allow`, or an encrypted one
    /// without a certificate or on a port of plain DNS.
    pub fn check(&self) -> Result<(), SettingsError> {
        if self.listen.is_empty() {
            return Err(SettingsError::NoAddress);
        }
        let mut encrypted = self.encrypted.addresses();
        if let (Some(address), None) = (self.encrypted.addresses().next(), &self.encrypted.certificate) {
            return Err(SettingsError::NoCertificate { address });
        }
        if let Some(address) = encrypted.find(|address| address.port() != 0 && self.listen.contains(address)) {
            return Err(SettingsError::Twice { address });
        }
        let mut all = self.listen.iter().copied().chain(self.encrypted.addresses());
        match all.find(|address| !address.ip().to_canonical().is_loopback()) {
            Some(address) if self.allow.is_empty() => Err(SettingsError::Exposed { address, example: example_rule(address.ip()) }),
            _ => Ok(()),
        }
    }

    /// The access rule these settings make.
    pub fn access(&self) -> Access {
        let access = Access::new(&self.allow);
        if self.allow_loopback { access } else { access.without_loopback() }
    }
}

/// The network around `address` in its usual size; some private network where the address is none in particular.
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
    fn the_default_is_loopback_and_can_be_served() {
        assert_eq!(Settings::default().check(), Ok(()));
        assert_eq!(listening(&["127.0.0.53:53", "[::1]:53", "[::ffff:127.0.0.1]:53"], &[]).check(), Ok(()));
    }

    #[test]
    fn other_machines_are_served_only_by_rule() {
        for address in ["0.0.0.0:53", "[::]:53", "192.0.2.2:53", "[fd00::2]:53", "[::ffff:192.0.2.2]:53"] {
            let refused = listening(&["127.0.0.1:53", address], &[]).check();
            assert!(matches!(refused, Err(SettingsError::Exposed { address: found, .. }) if found == address.parse().unwrap()));
            assert_eq!(listening(&[address], &["10.0.0.0/8"]).check(), Ok(()));
        }
        assert_eq!(listening(&[], &[]).check(), Err(SettingsError::NoAddress));
    }

    #[test]
    fn the_refusal_names_the_address_and_a_rule_to_add() {
        let message = listening(&["192.0.2.2:53"], &[]).check().unwrap_err().to_string();
        assert!(message.contains("192.0.2.2:53") && message.contains("--allow 192.0.2.0/24"), "{message}");
        let message = listening(&["[::]:53"], &[]).check().unwrap_err().to_string();
        assert!(message.contains("[::]:53") && message.contains("--allow 192.168.0.0/16"), "{message}");
    }
}
