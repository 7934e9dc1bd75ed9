//! The URLs of registries.

use std::fmt;
use std::path::PathBuf;

/// The port of etcd's clients.
const ETCD_PORT: u16 = 2379;

/// A registry, as named by a person or by default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegistryUrl {
    /// `etcd://host:port[,host:port…]`.
    Etcd {
        /// `host:port` each, at least one; an IPv6 address stands in brackets.
        endpoints: Vec<String>,
    },
    /// `file:///dir`, GoFrame's file registry.
    File(Directory),
}

/// The directory of a file registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    /// The directory.
    pub path: PathBuf,
    /// Whether a person named it; the default is believed only while it belongs to root or to us.
    pub named: bool,
}

/// Why a URL names no registry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// No scheme, or an unknown one.
    #[error("a registry is written as etcd://host:port[,host:port] or file:///directory")]
    Form,
    /// A registry that GoFrame knows and svcdns does not know yet.
    #[error("registries of kind {0} are not supported yet: there are etcd:// and file://")]
    NotYet(String),
    /// A user or password in the URL.
    #[error(
        "a URL shows in lists of processes and in logs: put the user in etcd.username and the password in a file named by etcd.password-file \
         or in the variable SVCDNS_ETCD_PASSWORD"
    )]
    Secret,
    /// A path or query after the endpoints.
    #[error(
        "nothing may follow the endpoints of an etcd URL, but there is {0:?} (heads, deployment and namespace have settings of their own)"
    )]
    Rest(String),
    /// One endpoint is wrong.
    #[error("{0:?} is not host or host:port")]
    Endpoint(String),
    /// A `file:` URL whose path does not begin with `/`.
    #[error("a directory is written with its whole path: file:///directory")]
    Relative,
}

impl RegistryUrl {
    /// GoFrame's default: the directory `gsvc` in the temp directory.
    pub fn implicit() -> Self {
        Self::File(Directory { path: std::env::temp_dir().join("gsvc"), named: false })
    }

    /// Reads a URL.
    ///
    /// # Errors
    /// When it names no registry that can be followed.
    pub fn parse(url: &str) -> Result<Self, UrlError> {
        let (scheme, rest) = url.trim().split_once("://").ok_or(UrlError::Form)?;
        match scheme.to_ascii_lowercase().as_str() {
            "etcd" => Ok(Self::Etcd { endpoints: endpoints(rest)? }),
            "file" if rest.starts_with('/') => Ok(Self::File(Directory { path: PathBuf::from(rest), named: true })),
            "file" => Err(UrlError::Relative),
            "zookeeper" | "consul" | "nacos" | "polaris" => Err(UrlError::NotYet(scheme.to_ascii_lowercase())),
            _ => Err(UrlError::Form),
        }
    }
}

impl fmt::Display for RegistryUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Etcd { endpoints } => write!(f, "etcd://{}", endpoints.join(",")),
            Self::File(directory) => write!(f, "file://{}", directory.path.display()),
        }
    }
}

/// The endpoints of an etcd URL, each with its port.
///
/// # Errors
/// When one of them is not `host[:port]`, or there is more than endpoints.
pub fn endpoints(authority: &str) -> Result<Vec<String>, UrlError> {
    if authority.contains('@') {
        return Err(UrlError::Secret);
    }
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    if let Some(at) = authority.find(['/', '?', '#']) {
        return Err(UrlError::Rest(authority[at..].to_owned()));
    }
    authority.split(',').map(|endpoint| host_port(endpoint.trim()).ok_or_else(|| UrlError::Endpoint(endpoint.to_owned()))).collect()
}

/// `host:port` of `host` or `host:port`; an IPv6 address in brackets.
fn host_port(endpoint: &str) -> Option<String> {
    let (host, port) = if let Some(rest) = endpoint.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        let address: std::net::Ipv6Addr = address.parse().ok()?;
        (format!("[{address}]"), if port.is_empty() { None } else { Some(port.strip_prefix(':')?) })
    } else {
        let (host, port) = endpoint.split_once(':').map_or((endpoint, None), |(host, port)| (host, Some(port)));
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if host.is_empty() || !host.chars().all(plain) {
            return None;
        }
        (host.to_owned(), port)
    };
    let port = port.map_or(Some(ETCD_PORT), |port| port.parse().ok().filter(|port| *port != 0))?;
    Some(format!("{host}:{port}"))
}

/// Splits a list of URLs on white space and on each comma that a new scheme follows: an etcd URL holds commas itself.
pub(super) fn split_urls(text: &str) -> Vec<&str> {
    let mut urls = Vec::new();
    for word in text.split_whitespace() {
        let mut start = 0;
        for (at, _) in word.match_indices(',') {
            let scheme = word[at + 1..].split(',').next().is_some_and(|next| next.contains("://"));
            if scheme {
                urls.push(&word[start..at]);
                start = at + 1;
            }
        }
        urls.push(&word[start..]);
    }
    urls.retain(|url| !url.is_empty());
    urls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etcd_urls_get_their_port() {
        let read = |url: &str| RegistryUrl::parse(url).map(|url| url.to_string());
        assert_eq!(read("etcd://a"), Ok("etcd://a:2379".into()));
        assert_eq!(read("ETCD://a:1,b,[::1]:5,[fd00::5]/"), Ok("etcd://a:1,b:2379,[::1]:5,[fd00::5]:2379".into()));
        assert_eq!(read("etcd://"), Err(UrlError::Endpoint(String::new())));
        assert_eq!(read("etcd://a:0"), Err(UrlError::Endpoint("a:0".into())));
        assert_eq!(read("etcd://::1"), Err(UrlError::Endpoint("::1".into())));
        assert_eq!(read("etcd://a,,b"), Err(UrlError::Endpoint(String::new())));
        assert_eq!(read("etcd://a:1/service"), Err(UrlError::Rest("/service".into())));
        assert_eq!(read("etcd://user:pass@a:1"), Err(UrlError::Secret));
    }

    #[test]
    fn other_urls() {
        let named = RegistryUrl::File(Directory { path: "/tmp/x".into(), named: true });
        assert_eq!(RegistryUrl::parse("file:///tmp/x"), Ok(named));
        assert_eq!(RegistryUrl::parse("file://tmp/x"), Err(UrlError::Relative));
        assert_eq!(RegistryUrl::parse("consul://a:8500"), Err(UrlError::NotYet("consul".into())));
        assert_eq!(RegistryUrl::parse("redis://a"), Err(UrlError::Form));
        assert_eq!(RegistryUrl::parse("127.0.0.1:2379"), Err(UrlError::Form));
    }

    #[test]
    fn lists_of_urls_keep_the_commas_of_etcd() {
        assert_eq!(split_urls("etcd://a:1,b:2"), ["etcd://a:1,b:2"]);
        assert_eq!(split_urls("etcd://a:1,b:2,file:///x,etcd://c"), ["etcd://a:1,b:2", "file:///x", "etcd://c"]);
        assert_eq!(split_urls(" etcd://a:1,b:2  file:///x\n"), ["etcd://a:1,b:2", "file:///x"]);
        assert!(split_urls(" ").is_empty());
    }
}
