//! The servers of a registry in its URL: `host:port[,host:port…]`.

use std::net::Ipv6Addr;

/// What a kind of registry refuses in its URLs, in the words of its messages.
#[derive(Clone)]
pub(super) struct RefusedInUrl {
    /// Refusal of a user in front of the servers.
    user: String,
    /// The servers, and what is configured elsewhere: "the members of an etcd URL (…)".
    servers: &'static str,
}

impl RefusedInUrl {
    /// Words the refusals: a URL holds no `login`, which these keys and variables hold instead.
    pub(super) fn new(login: &str, keys: &str, servers: &'static str) -> Self {
        let user = format!(
            "a URL cannot hold a {login}, because it appears in process lists and logs: set {keys}"
        );
        Self { user, servers }
    }

    /// Parses the servers of a URL; each is returned with its port.
    ///
    /// The error is the message.
    pub(super) fn parse_endpoints(
        &self,
        authority: &str,
        default_port: u16,
    ) -> Result<Vec<String>, String> {
        if authority.contains('@') {
            return Err(self.user.clone());
        }
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        if let Some(at) = authority.find(['/', '?', '#']) {
            return Err(format!("unexpected {:?} after {}", &authority[at..], self.servers));
        }
        let parse = |endpoint: &str| {
            let why = || format!("{endpoint:?} is not host or host:port");
            parse_endpoint(endpoint.trim(), default_port).ok_or_else(why)
        };
        authority.split(',').map(parse).collect()
    }
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

    fn parse(authority: &str, default_port: u16) -> Result<Vec<String>, String> {
        let refused = RefusedInUrl::new("user", "etcd.username", "the endpoints of an etcd URL");
        refused.parse_endpoints(authority, default_port)
    }

    #[test]
    fn endpoints_without_a_port_get_the_default() {
        assert_eq!(parse("a", 2379).unwrap(), ["a:2379"]);
        let several = parse("a:1,b,[::1]:5,[fd00::5]/", 2379).unwrap();
        assert_eq!(several, ["a:1", "b:2379", "[::1]:5", "[fd00::5]:2379"]);
    }

    #[test]
    fn invalid_endpoints_are_rejected() {
        for (authority, expected) in
            [("", "\"\""), ("a:0", "\"a:0\""), ("::1", "\"::1\""), ("a,,b", "\"\"")]
        {
            let error = format!("{expected} is not host or host:port");
            assert_eq!(parse(authority, 1), Err(error), "{authority}");
        }
        let rest = "unexpected \"/service\" after the endpoints of an etcd URL".to_owned();
        assert_eq!(parse("a:1/service", 1), Err(rest));
        let user = parse("root:pw@a:1", 1).unwrap_err();
        assert!(user.ends_with("set etcd.username") && !user.contains("pw"), "{user}");
    }
}
