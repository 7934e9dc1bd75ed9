//! etcd: `etcd://host:port[,host:port…]`, and the section `[etcd]`.

use std::net::Ipv6Addr;

use super::{Reader, RegistryKind, heads};
use crate::config::error::{ConfigError, Origin};
use crate::config::key::{SecretKey, keys};
use crate::config::layers::{Layers, Written};
use crate::config::values::{boolean, credential, invalid, path, text};
use crate::registry::etcd::{Settings, Tls};
use crate::registry::{Credential, Source};

pub(super) static KIND: RegistryKind =
    RegistryKind { name: "etcd", form: "etcd://host:port[,host:port]", keys: KEYS, secret: Some(&PASSWORD), read };

keys! { KEYS:
    USERNAME = "etcd" "username" Text "USER" "" r#""""#
        "The etcd user. Empty: none.";
    PASSWORD_FILE = "etcd" "password-file" Text "FILE" "file" r#""""#
        "A file that holds the password of the etcd user. The variable SVCDNS_ETCD_PASSWORD can hold the password itself.";
    TLS = "etcd" "tls" Bool "BOOL" "" "false"
        "Whether to speak TLS with etcd. Any of the keys below turns it on, too.";
    CA_FILE = "etcd" "ca-file" Text "FILE" "file, PEM" r#""""#
        "The authorities that may vouch for etcd. Empty: those the machine trusts.";
    CERT_FILE = "etcd" "cert-file" Text "FILE" "file, PEM" r#""""#
        "Our certificate, where etcd wants one.";
    KEY_FILE = "etcd" "key-file" Text "FILE" "file, PEM" r#""""#
        "The key of our certificate.";
    SERVER_NAME = "etcd" "server-name" Text "NAME" "host name" r#""""#
        "The name in etcd's certificate, where it is not the host in the URL.";
}

static PASSWORD: SecretKey = SecretKey { name: "password", variable: "SVCDNS_ETCD_PASSWORD", file: PASSWORD_FILE };

/// The port of etcd's clients.
const PORT: u16 = 2379;

fn read(layers: &Layers) -> Result<Reader, ConfigError> {
    let (username, password) = login(layers)?;
    let (tls, heads) = (tls(layers)?, heads(layers)?);
    let settings = Settings { username, password, tls, heads, ..Settings::new(Vec::new()) };
    Ok(Box::new(move |authority| Ok(Source::Etcd(Box::new(Settings { endpoints: endpoints(authority)?, ..settings.clone() })))))
}

/// The user and the password: both or neither.
fn login(layers: &Layers) -> Result<(Option<String>, Option<Credential>), ConfigError> {
    let (username, password) = (text(layers, USERNAME), credential(layers, &PASSWORD));
    if username.is_some() != password.is_some() {
        let why = "a user and a password go together: set etcd.username, and etcd.password-file or the variable SVCDNS_ETCD_PASSWORD";
        // Of the two, the one that was written.
        let (key, written) = match (&username, layers.secret(&PASSWORD)) {
            (Some(_), _) => (USERNAME, layers.one(USERNAME)),
            (None, Some(_)) => (USERNAME, Written { text: String::new(), origin: Origin::Variable(PASSWORD.variable.to_owned()) }),
            (None, None) => (PASSWORD_FILE, layers.one(PASSWORD_FILE)),
        };
        return Err(invalid(key, &written, why.to_owned()));
    }
    Ok((username, password))
}

/// How to encrypt the connection; none where nothing of it is set.
fn tls(layers: &Layers) -> Result<Option<Tls>, ConfigError> {
    let tls = Tls {
        ca_file: path(layers, CA_FILE),
        cert_file: path(layers, CERT_FILE),
        key_file: path(layers, KEY_FILE),
        server_name: text(layers, SERVER_NAME),
    };
    for (key, given, other) in [(CERT_FILE, &tls.cert_file, &tls.key_file), (KEY_FILE, &tls.key_file, &tls.cert_file)] {
        if given.is_some() && other.is_none() {
            let why = "a certificate and its key go together: set both etcd.cert-file and etcd.key-file".to_owned();
            return Err(invalid(key, &layers.one(key), why));
        }
    }
    Ok((boolean(layers, TLS)? || tls != Tls::default()).then_some(tls))
}

/// The members that a URL names, each with its port.
fn endpoints(authority: &str) -> Result<Vec<String>, String> {
    if authority.contains('@') {
        return Err("a URL shows in lists of processes and in logs: put the user in etcd.username and the password in a file \
                    named by etcd.password-file or in the variable SVCDNS_ETCD_PASSWORD"
            .to_owned());
    }
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    if let Some(at) = authority.find(['/', '?', '#']) {
        return Err(format!(
            "nothing may follow the endpoints of an etcd URL, but there is {:?} (heads, deployment and namespace have settings \
             of their own)",
            &authority[at..]
        ));
    }
    let endpoints = authority.split(',');
    endpoints.map(|endpoint| endpoint_of(endpoint.trim()).ok_or_else(|| format!("{endpoint:?} is not host or host:port"))).collect()
}

/// `host:port` of `host` or `host:port`; an IPv6 address is in brackets.
fn endpoint_of(text: &str) -> Option<String> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        let address: Ipv6Addr = address.parse().ok()?;
        (format!("[{address}]"), if port.is_empty() { None } else { Some(port.strip_prefix(':')?) })
    } else {
        let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if host.is_empty() || !host.chars().all(plain) {
            return None;
        }
        (host.to_owned(), port)
    };
    let port = port.map_or(Some(PORT), |port| port.parse().ok().filter(|port| *port != 0))?;
    Some(format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_get_their_port() {
        let own = |endpoints: &[&str]| endpoints.iter().map(|&endpoint| endpoint.to_owned()).collect::<Vec<_>>();
        assert_eq!(endpoints("a"), Ok(own(&["a:2379"])));
        assert_eq!(endpoints("a:1,b,[::1]:5,[fd00::5]/"), Ok(own(&["a:1", "b:2379", "[::1]:5", "[fd00::5]:2379"])));
        for (authority, said) in [
            ("", "\"\" is not host or host:port"),
            ("a:0", "\"a:0\" is not host or host:port"),
            ("::1", "\"::1\" is not host or host:port"),
            ("a,,b", "\"\" is not host or host:port"),
            ("a:1/service", "there is \"/service\""),
            ("user:pass@a:1", "a URL shows in lists of processes"),
        ] {
            let why = endpoints(authority).unwrap_err();
            assert!(why.contains(said) && !why.contains("pass@"), "{authority}: {why}");
        }
    }
}
