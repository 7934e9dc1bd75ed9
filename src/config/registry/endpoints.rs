//! The servers of a registry in its URL: `host:port[,host:port…]`.

use std::net::Ipv6Addr;

/// Reason why the servers of a URL cannot be parsed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum InvalidEndpoints {
    /// This text follows the servers.
    Rest(String),
    /// A server is malformed; the text is the message.
    Endpoint(String),
}

/// Parses the servers of a URL; each is returned with its port.
pub(super) fn parse_endpoints(
    authority: &str,
    default_port: u16,
) -> Result<Vec<String>, InvalidEndpoints> {
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    if let Some(at) = authority.find(['/', '?', '#']) {
        return Err(InvalidEndpoints::Rest(authority[at..].to_owned()));
    }
    let parse = |endpoint: &str| {
        let why = || InvalidEndpoints::Endpoint(format!("{endpoint:?} is not host or host:port"));
        parse_endpoint(endpoint.trim(), default_port).ok_or_else(why)
    };
    authority.split(',').map(parse).collect()
}

/// Parses `host` or `host:port` to `host:port`; an IPv6 address is in brackets.
fn parse_endpoint(text: &str, default_port: u16) -> Option<String> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        let address: Ipv6Addr = address.parse().ok()?;
        (format!("[{address}]"), if port.is_empty() { None } else { Some(port.strip_prefix(':')?) })
    } else {
        let (host, port) = match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        };
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if host.is_empty() || !host.chars().all(is_plain) {
            return None;
        }
        (host.to_owned(), port)
    };
    let port =
        port.map_or(Some(default_port), |port| port.parse().ok().filter(|port| *port != 0))?;
    Some(format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_without_a_port_get_the_default() {
        assert_eq!(parse_endpoints("a", 2379).unwrap(), ["a:2379"]);
        let several = parse_endpoints("a:1,b,[::1]:5,[fd00::5]/", 2379).unwrap();
        assert_eq!(several, ["a:1", "b:2379", "[::1]:5", "[fd00::5]:2379"]);
    }

    #[test]
    fn invalid_endpoints_are_rejected() {
        for (authority, expected) in
            [("", "\"\""), ("a:0", "\"a:0\""), ("::1", "\"::1\""), ("a,,b", "\"\"")]
        {
            let why = format!("{expected} is not host or host:port");
            let error = InvalidEndpoints::Endpoint(why);
            assert_eq!(parse_endpoints(authority, 1), Err(error), "{authority}");
        }
        let rest = InvalidEndpoints::Rest("/service".to_owned());
        assert_eq!(parse_endpoints("a:1/service", 1), Err(rest));
    }
}
