//! What can be set of the server, and what of it can be served.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use super::{Access, Encrypted};

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

/// Deadlines and bounds of the server. A bound of 0 where at least one is needed counts as 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long a connection may stay open with nothing asked and nothing owed (RFC 7766 section 6.2.3).
    pub idle_timeout: Duration,
    /// How long a connection may take to agree on its encryption.
    pub handshake_timeout: Duration,
    /// How long a message over TCP may take to arrive, from its first octet to its last.
    pub message_timeout: Duration,
    /// How long a client may take to accept answers that are ready.
    pub write_timeout: Duration,
    /// How long an answer may take to be made.
    pub answer_timeout: Duration,
    /// How long answers in flight have to get out once the server stops.
    pub drain_timeout: Duration,
    /// Threads that answer over UDP on each listening address, each with a socket of its own. Once there are 32 in all,
    /// further addresses get one each.
    pub udp_workers: usize,
    /// Answers over UDP that may be waited for at a time, over all sockets; beyond that, SERVFAIL.
    pub udp_in_flight: usize,
    /// Connections in all.
    pub connections: usize,
    /// Connections of one source address.
    pub connections_per_source: usize,
    /// Connections of one loopback address, where a whole machine may look like one source.
    pub connections_per_loopback_source: usize,
    /// Connections of all sources without access, open only for the time of their refusal.
    pub connections_without_access: usize,
    /// Messages of one connection whose answers are being made or wait to be written.
    pub in_flight: usize,
    /// Octets of answers that may wait on one connection; beyond that no further message of it is read. Answers already
    /// being made (at most `in_flight`, of at most 64 KiB each) may come on top.
    pub queued_octets: usize,
}

/// Most threads that answer over UDP unless told otherwise: far more answers than any one machine asks for.
const MOST_UDP_WORKERS: usize = 4;

impl Default for Limits {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(3),
            message_timeout: Duration::from_secs(3),
            write_timeout: Duration::from_secs(3),
            answer_timeout: Duration::from_secs(5),
            drain_timeout: Duration::from_secs(1),
            udp_workers: std::thread::available_parallelism().map_or(1, usize::from).min(MOST_UDP_WORKERS),
            udp_in_flight: 4096,
            connections: 256,
            connections_per_source: 64,
            connections_per_loopback_source: 192,
            connections_without_access: 32,
            in_flight: 32,
            queued_octets: 256 * 1024,
        }
    }
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
