//! One upstream as a person names it.

use std::fmt;
use std::net::SocketAddr;

/// Where an upstream is, and how it is spoken to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// The address, with the interface of a link-local one.
    pub address: SocketAddr,
    /// How it is spoken to.
    pub protocol: Protocol,
}

/// How an upstream is spoken to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// UDP, and TCP for what is truncated (RFC 1035 section 4.2).
    Plain,
    /// TCP alone (RFC 7766).
    Tcp,
    /// DNS over TLS (RFC 7858).
    Tls {
        /// The name in the upstream's certificate; its address where none is given.
        name: Option<Box<str>>,
    },
    /// DNS over HTTPS, HTTP/2 (RFC 8484).
    Https {
        /// The host in the URL, which is also the name in the certificate; its address where none is given.
        name: Option<Box<str>>,
        /// The path, beginning with `/`.
        path: Box<str>,
    },
}

impl fmt::Display for Target {
    /// As it is written in the configuration.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, port, name, path) = match &self.protocol {
            Protocol::Plain => ("", 53, None, ""),
            Protocol::Tcp => ("tcp://", 53, None, ""),
            Protocol::Tls { name } => ("tls://", 853, name.as_deref(), ""),
            Protocol::Https { name, path } => ("https://", 443, name.as_deref(), &**path),
        };
        f.write_str(scheme)?;
        match self.address {
            SocketAddr::V6(_) if self.address.port() == port && !scheme.starts_with("http") && scheme.is_empty() => {
                // `[fe80::1%2]:53` without brackets and port.
                let text = self.address.to_string();
                f.write_str(text.trim_start_matches('[').trim_end_matches(&format!("]:{port}")))?;
            }
            address if address.port() == port => f.write_str(address.to_string().trim_end_matches(&format!(":{port}")))?,
            address => address.fmt(f)?,
        }
        f.write_str(path)?;
        name.map_or(Ok(()), |name| write!(f, "#{name}"))
    }
}
