//! Parsing of endpoints.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hashbrown::HashSet;

use crate::service::{Endpoint, Host, Reason, Rejected};

/// Parses a comma-separated list into distinct endpoints and invalid entries.
pub(super) fn parse_list(
    list: &str,
    parse: impl Fn(&str) -> Result<Endpoint, Reason>,
) -> (Vec<Endpoint>, Vec<Rejected>) {
    let (mut endpoints, mut rejected) = (Vec::new(), Vec::new());
    for entry in list.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
        match parse(entry) {
            Ok(endpoint) => endpoints.push(endpoint),
            Err(reason) => rejected.push(Rejected::new(entry, reason)),
        }
    }
    if endpoints.len() > 1 {
        let mut seen = HashSet::with_capacity(endpoints.len());
        endpoints.retain(|endpoint: &Endpoint| seen.insert(endpoint.clone()));
    }
    (endpoints, rejected)
}

/// Parses `host:port`, the form in registry keys.
pub(super) fn parse_endpoint(text: &str) -> Result<Endpoint, Reason> {
    let (host, port) = text.rsplit_once(':').ok_or(Reason::ENDPOINT_MALFORMED)?;
    host_and_port(host.trim(), port.trim())
}

/// Parses `host-port`, the form in file names, or `host:port`.
///
/// GoFrame v2.3.3 to v2.4.0 wrote the form `host:port`.
pub(super) fn parse_file_endpoint(text: &str) -> Result<Endpoint, Reason> {
    let (host, port) = text.rsplit_once(['-', ':']).ok_or(Reason::ENDPOINT_MALFORMED)?;
    let host = host.trim();
    if host.starts_with('[') {
        host_and_port(&host.replace('-', ":"), port.trim())
    } else {
        host_and_port(host, port.trim())
    }
}

fn host_and_port(host: &str, port: &str) -> Result<Endpoint, Reason> {
    if host.is_empty() {
        return Err(Reason::ENDPOINT_MALFORMED);
    }
    // GoFrame writes `[:0` for `[::]:8000`: an error about the host explains more than one about
    // port 0.
    Ok(Endpoint { host: parse_host(host)?, port: parse_port(port)? })
}

fn parse_port(port: &str) -> Result<u16, Reason> {
    // `u16::from_str` would also accept a plus sign.
    let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    port.parse().ok().filter(|&port| digits && port != 0).ok_or(Reason::PORT_OUT_OF_RANGE)
}

/// Parses a dotted-decimal IPv4 address, a bracketed IPv6 address or a host name.
fn parse_host(host: &str) -> Result<Host, Reason> {
    if let Some(bracketed) = host.strip_prefix('[') {
        let address: Ipv6Addr = bracketed
            .strip_suffix(']')
            .and_then(|address| address.parse().ok())
            .ok_or(Reason::HOST_MALFORMED)?;
        return usable(address.to_canonical());
    }
    if let Ok(address) = host.parse::<Ipv4Addr>() {
        return usable(address.into());
    }
    parse_host_name(host).map(Host::Name).ok_or(Reason::HOST_MALFORMED)
}

/// Parses a host in a field of its own: an IP address without brackets, or a host name.
///
/// # Errors
/// The reason why the host cannot be an endpoint's.
pub fn parse_bare_host(host: &str) -> Result<Host, Reason> {
    match host.parse::<Ipv6Addr>() {
        Ok(address) => usable(address.to_canonical()),
        Err(_) => parse_host(host),
    }
}

/// Rejects addresses that cannot be the destination of a connection.
///
/// Rejected are "this network" (RFC 1122 3.2.1.3), multicast and class E (RFC 1112 4), and the IPv6
/// unspecified and multicast addresses (RFC 4291 2.5.2 and 2.7).
pub(super) fn usable(address: IpAddr) -> Result<Host, Reason> {
    let unusable = match address {
        IpAddr::V4(address) => matches!(address.octets()[0], 0 | 224..),
        IpAddr::V6(address) => address.is_unspecified() || address.is_multicast(),
    };
    if unusable { Err(Reason::ADDRESS_UNUSABLE) } else { Ok(address.into()) }
}

/// Parses a host name (RFC 1123 2.1) into lower case without a trailing dot.
///
/// Returns `None` if the last label is a number: resolvers read names like `10.0.0.01` or `0x7f.1`
/// as IPv4 addresses, but differently.
fn parse_host_name(host: &str) -> Option<Box<str>> {
    let host = host.strip_suffix('.').unwrap_or(host);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let valid = host.len() <= 253
        && host.split('.').all(is_label)
        && !host.rsplit('.').next().is_some_and(is_number);
    valid.then(|| host.to_ascii_lowercase().into())
}

fn is_number(label: &str) -> bool {
    let hexadecimal = label.strip_prefix("0x").or_else(|| label.strip_prefix("0X"));
    hexadecimal.is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
        || label.bytes().all(|byte| byte.is_ascii_digit())
}
