//! Address and protocol of an upstream, as written in the configuration.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::str::FromStr;

use hyper::http::uri::PathAndQuery;
use tokio_rustls::rustls::pki_types::ServerName;

/// Address and protocol of an upstream.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// Address and port; a link-local address has its interface as its scope.
    pub address: SocketAddr,
    /// Transport protocol.
    pub protocol: Protocol,
}

/// Transport protocol of an upstream.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// UDP, with TCP for truncated responses (RFC 1035 section 4.2).
    Plain,
    /// TCP only (RFC 7766).
    Tcp,
    /// DNS over TLS (RFC 7858).
    Tls {
        /// Name in the upstream's certificate; `None` means the upstream's address.
        name: Option<Box<str>>,
    },
    /// DNS over HTTPS with HTTP/2 (RFC 8484).
    Https {
        /// Host of the URL and name in the certificate; `None` means the address.
        name: Option<Box<str>>,
        /// Path of the URL, with its leading `/`.
        path: Box<str>,
    },
}

impl fmt::Display for Target {
    /// Formats the target as the configuration writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, port, name, path) = match &self.protocol {
            Protocol::Plain => ("", 53, None, ""),
            Protocol::Tcp => ("tcp://", 53, None, ""),
            Protocol::Tls { name } => ("tls://", 853, name.as_deref(), ""),
            Protocol::Https { name, path } => ("https://", 443, name.as_deref(), &**path),
        };
        f.write_str(scheme)?;
        match self.address {
            SocketAddr::V6(_)
                if self.address.port() == port
                    && !scheme.starts_with("http")
                    && scheme.is_empty() =>
            {
                // An IPv6 address at the default port needs neither brackets nor port.
                let text = self.address.to_string();
                f.write_str(text.trim_start_matches('[').trim_end_matches(&format!("]:{port}")))?;
            }
            address if address.port() == port => {
                f.write_str(address.to_string().trim_end_matches(&format!(":{port}")))?;
            }
            address => address.fmt(f)?,
        }
        f.write_str(path)?;
        name.map_or(Ok(()), |name| write!(f, "#{name}"))
    }
}

/// Error in the text of an upstream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// The scheme is unknown.
    #[error(
        "unknown scheme {0}://: write ADDRESS for UDP, or tcp://, tls:// or https:// before it"
    )]
    Scheme(String),
    /// The address is not an IP address.
    #[error(
        "{0:?} is not an IP address: write ADDRESS, ADDRESS:PORT or [IPV6]:PORT; a host name could \
         not be resolved without an upstream, but tls:// and https:// take one after #, for the \
         certificate"
    )]
    Address(String),
    /// The port is not a number from 1 to 65535.
    #[error("{0:?} is not a port: it is a number from 1 to 65535")]
    Port(String),
    /// The address is unspecified, multicast or broadcast.
    #[error("{0} is not a unicast address")]
    NotUnicast(IpAddr),
    /// A link-local address lacks a zone ID (RFC 4007).
    #[error("{0} is a link-local address, which needs its interface: {0}%INTERFACE")]
    MissingScope(Ipv6Addr),
    /// A zone ID follows an address that is not link-local.
    #[error("{0} takes no interface: only link-local IPv6 addresses (fe80::/10) do")]
    UnexpectedScope(IpAddr),
    /// The interface does not exist.
    #[error("there is no network interface {0:?} on this machine")]
    Interface(String),
    /// A certificate name is given for a protocol without certificates.
    #[error("only tls:// and https:// take a certificate name after #")]
    UnexpectedName,
    /// The certificate name is not a host name.
    #[error("{0:?} is not a valid certificate name")]
    Name(String),
    /// A path is given for a protocol other than HTTPS.
    #[error("unexpected {0:?} after the address: only https:// takes a path")]
    UnexpectedPath(String),
    /// The path is not valid in a URL.
    #[error("{0:?} is not a valid URL path; DNS over HTTPS usually has /dns-query")]
    Path(String),
}

impl FromStr for Target {
    type Err = TargetError;

    /// Parses an upstream as the configuration writes it.
    ///
    /// The forms are `ADDRESS`, `ADDRESS:PORT`, `[IPV6]:PORT`, `fe80::1%eth0`,
    /// `tcp://ADDRESS[:PORT]`, `tls://ADDRESS[:PORT][#NAME]` and
    /// `https://ADDRESS[:PORT][/PATH][#NAME]`. An IPv6 address may be in brackets, and must be if a
    /// port follows.
    ///
    /// # Errors
    /// Returns an error if the text has none of these forms, or names an unknown interface.
    fn from_str(text: &str) -> Result<Self, TargetError> {
        let text = text.trim();
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (scheme.to_ascii_lowercase(), rest),
            None => (String::new(), text),
        };
        let (rest, name) = match rest.split_once('#') {
            Some((rest, name)) => (rest, Some(name)),
            None => (rest, None),
        };
        let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        let (protocol, port) = match scheme.as_str() {
            "" => (Protocol::Plain, 53),
            "tcp" => (Protocol::Tcp, 53),
            "tls" => (Protocol::Tls { name: name.map(certificate_name).transpose()? }, 853),
            "https" => (
                Protocol::Https {
                    name: name.map(certificate_name).transpose()?,
                    path: https_path(path)?,
                },
                443,
            ),
            _ => return Err(TargetError::Scheme(scheme)),
        };
        if name.is_some() && matches!(protocol, Protocol::Plain | Protocol::Tcp) {
            return Err(TargetError::UnexpectedName);
        }
        if !path.is_empty() && !matches!(protocol, Protocol::Https { .. }) && path != "/" {
            return Err(TargetError::UnexpectedPath(path.to_owned()));
        }
        Ok(Self { address: socket_address(authority, port)?, protocol })
    }
}

/// Parses an address with an optional port.
fn socket_address(authority: &str, port: u16) -> Result<SocketAddr, TargetError> {
    let no_address = || TargetError::Address(authority.to_owned());
    let (address, written) = if let Some(inner) = authority.strip_prefix('[') {
        let (address, rest) = inner.split_once(']').ok_or_else(no_address)?;
        let port = if rest.is_empty() {
            None
        } else {
            Some(rest.strip_prefix(':').ok_or_else(no_address)?)
        };
        (address, port)
    } else if let Some((address, port)) =
        authority.split_once(':').filter(|(_, port)| !port.contains(':'))
    {
        (address, Some(port))
    } else {
        (authority, None)
    };
    let (address, scope) =
        address.split_once('%').map_or((address, None), |(address, scope)| (address, Some(scope)));
    let address: IpAddr = address.parse().map_err(|_| no_address())?;
    let port = match written {
        None => port,
        Some(port) => port
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(|| TargetError::Port(port.to_owned()))?,
    };
    if address.is_unspecified() || address.is_multicast() || address == IpAddr::from([255; 4]) {
        return Err(TargetError::NotUnicast(address));
    }
    match (address, scope) {
        (IpAddr::V6(address), Some(scope)) if address.is_unicast_link_local() => {
            let index = scope
                .parse()
                .ok()
                .filter(|index| *index != 0)
                .or_else(|| nix::net::if_::if_nametoindex(scope).ok());
            let index = index.ok_or_else(|| TargetError::Interface(scope.to_owned()))?;
            Ok(SocketAddrV6::new(address, port, 0, index).into())
        }
        (IpAddr::V6(address), None) if address.is_unicast_link_local() => {
            Err(TargetError::MissingScope(address))
        }
        (address, Some(_)) => Err(TargetError::UnexpectedScope(address)),
        (address, None) => Ok(SocketAddr::new(address, port)),
    }
}

/// Checks a name that a certificate should contain.
fn certificate_name(name: &str) -> Result<Box<str>, TargetError> {
    match ServerName::try_from(name) {
        Ok(ServerName::DnsName(_)) => Ok(name.into()),
        _ => Err(TargetError::Name(name.to_owned())),
    }
}

/// Checks a URL path; an empty path becomes `/dns-query`.
fn https_path(path: &str) -> Result<Box<str>, TargetError> {
    match path {
        "" | "/" => Ok("/dns-query".into()),
        // The suffix `{?dns}` of RFC 8484 belongs to the URI template of a GET; svcdns sends POST.
        path if path.parse::<PathAndQuery>().is_ok() && !path.contains(['{', '}']) => {
            Ok(path.into())
        }
        path => Err(TargetError::Path(path.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<String, TargetError> {
        text.parse().map(|target: Target| {
            let text = target.to_string();
            assert_eq!(text.parse(), Ok(target), "{text} does not come back");
            text
        })
    }

    #[test]
    fn targets_round_trip() {
        for (text, written) in [
            ("192.0.2.1", "192.0.2.1"),
            (" 192.0.2.1:53 ", "192.0.2.1"),
            ("192.0.2.1:5353", "192.0.2.1:5353"),
            ("2001:db8::53", "2001:db8::53"),
            ("[2001:db8::53]", "2001:db8::53"),
            ("[2001:db8::53]:53", "2001:db8::53"),
            ("[2001:db8::53]:54", "[2001:db8::53]:54"),
            ("fe80::1%1", "fe80::1%1"),
            ("fe80::1%lo", "fe80::1%1"),
            ("[fe80::1%lo]:54", "[fe80::1%1]:54"),
            ("tcp://192.0.2.1", "tcp://192.0.2.1"),
            ("TCP://[2001:db8::53]:54", "tcp://[2001:db8::53]:54"),
            ("tls://192.0.2.1", "tls://192.0.2.1"),
            ("tls://2001:db8::853", "tls://[2001:db8::853]"),
            ("tls://192.0.2.1:853#dns.example", "tls://192.0.2.1#dns.example"),
            ("tls://192.0.2.1:8853#dns.example", "tls://192.0.2.1:8853#dns.example"),
            ("https://192.0.2.1", "https://192.0.2.1/dns-query"),
            ("https://192.0.2.1/", "https://192.0.2.1/dns-query"),
            (
                "https://[2001:db8::53]:8443/q?a=b#dns.example",
                "https://[2001:db8::53]:8443/q?a=b#dns.example",
            ),
        ] {
            assert_eq!(read(text), Ok(written.to_owned()), "{text}");
        }
    }

    #[test]
    fn parse_errors_name_the_fault() {
        let address = |text: &str| TargetError::Address(text.to_owned());
        for (text, error) in [
            ("", address("")),
            ("dns.example", address("dns.example")),
            ("tls://dns.example:853", address("dns.example:853")),
            ("192.0.2", address("192.0.2")),
            ("[2001:db8::53", address("[2001:db8::53")),
            ("[2001:db8::53]54", address("[2001:db8::53]54")),
            ("192.0.2.1:", TargetError::Port(String::new())),
            ("192.0.2.1:0", TargetError::Port("0".to_owned())),
            ("192.0.2.1:65536", TargetError::Port("65536".to_owned())),
            ("quic://192.0.2.1", TargetError::Scheme("quic".to_owned())),
            ("0.0.0.0", TargetError::NotUnicast("0.0.0.0".parse().unwrap())),
            ("ff02::fb", TargetError::NotUnicast("ff02::fb".parse().unwrap())),
            ("fe80::1", TargetError::MissingScope("fe80::1".parse().unwrap())),
            ("2001:db8::1%lo", TargetError::UnexpectedScope("2001:db8::1".parse().unwrap())),
            ("192.0.2.1%lo", TargetError::UnexpectedScope("192.0.2.1".parse().unwrap())),
            ("fe80::1%nosuch0", TargetError::Interface("nosuch0".to_owned())),
            ("192.0.2.1#dns.example", TargetError::UnexpectedName),
            ("tls://192.0.2.1#", TargetError::Name(String::new())),
            ("tls://192.0.2.1#-x-", TargetError::Name("-x-".to_owned())),
            ("tls://192.0.2.1/dns-query", TargetError::UnexpectedPath("/dns-query".to_owned())),
            ("https://192.0.2.1/dns-query{?dns}", TargetError::Path("/dns-query{?dns}".to_owned())),
        ] {
            assert_eq!(read(text), Err(error), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_text_does_not_panic(
            text in "(tcp://|tls://|https://)?[\\[\\]0-9a-f:.%#/é ]{0,30}",
        ) {
            let _ = read(&text);
        }
    }
}
