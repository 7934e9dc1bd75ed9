//! etcd: `etcd://host:port[,host:port…]`, and the section `[etcd]`.

use std::net::Ipv6Addr;

use super::{Reader, RegistryKind, heads};
use crate::config::error::{ConfigError, Origin};
use crate::config::key::{Key, SecretKey, keys};
use crate::config::layers::{Layers, Written};
use crate::config::values::{boolean, credential, invalid, path, text};
use crate::registry::etcd::{Settings, Tls};
use crate::registry::{Credential, Source};

pub(super) static KIND: RegistryKind = RegistryKind {
    name: "etcd",
    form: "etcd://host:port[,host:port]",
    example: "etcd://10.0.0.1:2379,10.0.0.2:2379",
    keys: KEYS,
    secrets: &[&PASSWORD],
    private_keys: &[KEY_FILE],
    read,
};

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
    let exposed = format!(
        "a URL shows in lists of processes and in logs: put the user in {} and the password in a file named by {} or in the variable {}",
        layers.advised(USERNAME),
        layers.advised(PASSWORD_FILE),
        layers.advised_variable(&PASSWORD)
    );
    Ok(Box::new(move |authority| {
        if authority.contains('@') {
            return Err(exposed.clone());
        }
        Ok(Source::Etcd(Box::new(Settings { endpoints: endpoints(authority)?, ..settings.clone() })))
    }))
}

/// The user and the password: both or neither.
fn login(layers: &Layers) -> Result<(Option<String>, Option<Credential>), ConfigError> {
    let (username, password) = (text(layers, USERNAME), credential(layers, &PASSWORD));
    if username.is_some() != password.is_some() {
        let why = format!(
            "a user and a password go together: set {}, and {} or the variable {}",
            layers.advised(USERNAME),
            layers.advised(PASSWORD_FILE),
            layers.advised_variable(&PASSWORD)
        );
        // Of the two, the one that was written.
        let written = match (&username, layers.secret(&PASSWORD)) {
            (Some(_), _) => layers.one(USERNAME),
            (None, Some(variable)) => {
                let origin = Origin::Variable(variable.name.clone());
                Written { key: layers.advised(USERNAME), text: String::new(), origin }
            }
            (None, None) => layers.one(PASSWORD_FILE),
        };
        return Err(invalid(&written, why));
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
            let (cert, private) = (layers.advised(CERT_FILE), layers.advised(KEY_FILE));
            return Err(invalid(&layers.one(key), format!("a certificate and its key go together: set both {cert} and {private}")));
        }
    }
    // What others share does not turn TLS on again for a registry whose own section turns it off.
    let counts = |key: &&Key| layers.in_section(key) || !layers.in_section(TLS);
    let on = boolean(layers, TLS)?
        || [CA_FILE, CERT_FILE, KEY_FILE, SERVER_NAME].iter().filter(|key| counts(key)).any(|key| text(layers, key).is_some());
    Ok(on.then_some(tls))
}

/// The members that a URL names, each with its port.
fn endpoints(authority: &str) -> Result<Vec<String>, String> {
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
        ] {
            let why = endpoints(authority).unwrap_err();
            assert!(why.contains(said), "{authority}: {why}");
        }
    }
}
