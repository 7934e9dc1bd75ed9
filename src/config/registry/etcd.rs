//! etcd: URLs `etcd://host:port[,host:port…]`, and the section `[etcd]`.

use std::net::Ipv6Addr;

use super::{RegistryKind, UrlParser, heads};
use crate::config::error::{ConfigError, Origin};
use crate::config::key::{Key, SecretKey, keys};
use crate::config::layers::{Layers, RawValue};
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
        "Log in to etcd as this user; requires a password.";
    PASSWORD_FILE = "etcd" "password-file" Text "FILE" "file" r#""""#
        "Read the etcd password from this file. Alternatively, set the environment variable \
         SVCDNS_ETCD_PASSWORD.";
    TLS = "etcd" "tls" Bool "BOOL" "" "false"
        "Connect to etcd over TLS; implied by the other `etcd` TLS settings.";
    CA_FILE = "etcd" "ca-file" Text "FILE" "PEM file" r#""""# => "the system's trust store"
        "Trust these CA certificates for etcd.";
    CERT_FILE = "etcd" "cert-file" Text "FILE" "PEM file" r#""""#
        "Client certificate, if etcd requires one.";
    KEY_FILE = "etcd" "key-file" Text "FILE" "PEM file" r#""""#
        "Private key of the client certificate.";
    SERVER_NAME = "etcd" "server-name" Text "NAME" "host name" r#""""# => "the host in the URL"
        "Expect this name in etcd's certificate.";
}

static PASSWORD: SecretKey =
    SecretKey { name: "password", variable: "SVCDNS_ETCD_PASSWORD", file: PASSWORD_FILE };

/// Default client port of etcd.
const ETCD_PORT: u16 = 2379;

fn read(layers: &Layers) -> Result<UrlParser, ConfigError> {
    let (username, password) = login(layers)?;
    let (tls, heads) = (tls(layers)?, heads(layers)?);
    let login_keys_in_force = username.is_some().then(|| keys_in_force(layers));
    let settings = Settings {
        username,
        password,
        login_keys: login_keys_in_force,
        tls,
        heads,
        ..Settings::new(Vec::new())
    };
    let exposed = format!(
        "a URL cannot hold a user or password, because it appears in process lists and logs: set \
         {}",
        login_keys(layers)
    );
    Ok(Box::new(move |authority| {
        if authority.contains('@') {
            return Err(exposed.clone());
        }
        let endpoints = parse_endpoints(authority)?;
        Ok(Source::Etcd(Box::new(Settings { endpoints, ..settings.clone() })))
    }))
}

/// Reads the user and the password: both or neither.
fn login(layers: &Layers) -> Result<(Option<String>, Option<Credential>), ConfigError> {
    let (username, password) = (text(layers, USERNAME), credential(layers, &PASSWORD));
    if username.is_some() == password.is_some() {
        return Ok((username, password));
    }
    // The error names whichever of the two is set.
    let given = match (&username, layers.secret(&PASSWORD)) {
        (Some(_), _) => layers.one(USERNAME),
        (None, Some(variable)) => RawValue {
            key: layers.recommended_key(USERNAME),
            text: String::new(),
            origin: Origin::Variable(variable.name.clone()),
        },
        (None, None) => layers.one(PASSWORD_FILE),
    };
    let why = format!("a user needs a password and vice versa: set {}", login_keys(layers));
    Err(invalid(&given, why))
}

/// Returns the key of the user and the key or variable of the password in effect.
fn keys_in_force(layers: &Layers) -> String {
    let password = match layers.secret(&PASSWORD) {
        Some(variable) => format!("the environment variable {}", variable.name),
        None => layers.written_as(PASSWORD_FILE),
    };
    format!("{} and {password}", layers.written_as(USERNAME))
}

/// Lists the keys and the environment variable of a login, for error messages.
fn login_keys(layers: &Layers) -> String {
    format!(
        "{}, and {} or the environment variable {}",
        layers.recommended_key(USERNAME),
        layers.recommended_key(PASSWORD_FILE),
        layers.recommended_variable(&PASSWORD)
    )
}

/// Reads the TLS settings; `None` if TLS is off.
fn tls(layers: &Layers) -> Result<Option<Tls>, ConfigError> {
    let tls = Tls {
        ca_file: path(layers, CA_FILE),
        cert_file: path(layers, CERT_FILE),
        key_file: path(layers, KEY_FILE),
        server_name: text(layers, SERVER_NAME),
    };
    let (cert, key) = (&tls.cert_file, &tls.key_file);
    for (given, value, other, missing) in
        [(CERT_FILE, cert, key, KEY_FILE), (KEY_FILE, key, cert, CERT_FILE)]
    {
        if value.is_some() && other.is_none() {
            let why = format!(
                "a certificate needs its private key and vice versa: set {}",
                layers.recommended_key(missing)
            );
            return Err(invalid(&layers.one(given), why));
        }
    }
    // If the registry's own section turns TLS off, shared keys do not turn it on again.
    let counts = |key: &&Key| layers.in_section(key) || !layers.in_section(TLS);
    let on = boolean(layers, TLS)?
        || [CA_FILE, CERT_FILE, KEY_FILE, SERVER_NAME]
            .iter()
            .filter(|key| counts(key))
            .any(|key| text(layers, key).is_some());
    Ok(on.then_some(tls))
}

/// Parses the endpoints of a URL; each is returned with its port.
fn parse_endpoints(authority: &str) -> Result<Vec<String>, String> {
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    if let Some(at) = authority.find(['/', '?', '#']) {
        return Err(format!(
            "unexpected {:?} after the endpoints of an etcd URL (heads, deployment and namespace \
             are separate keys)",
            &authority[at..]
        ));
    }
    let parse = |endpoint: &str| {
        parse_endpoint(endpoint.trim())
            .ok_or_else(|| format!("{endpoint:?} is not host or host:port"))
    };
    authority.split(',').map(parse).collect()
}

/// Parses `host` or `host:port` to `host:port`; an IPv6 address is in brackets.
fn parse_endpoint(text: &str) -> Option<String> {
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
    let port = port.map_or(Some(ETCD_PORT), |port| port.parse().ok().filter(|port| *port != 0))?;
    Some(format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_without_a_port_get_the_default() {
        assert_eq!(parse_endpoints("a").unwrap(), ["a:2379"]);
        let several = parse_endpoints("a:1,b,[::1]:5,[fd00::5]/").unwrap();
        assert_eq!(several, ["a:1", "b:2379", "[::1]:5", "[fd00::5]:2379"]);
    }

    #[test]
    fn invalid_endpoints_are_rejected() {
        for (authority, expected) in [
            ("", "\"\" is not host or host:port"),
            ("a:0", "\"a:0\" is not host or host:port"),
            ("::1", "\"::1\" is not host or host:port"),
            ("a,,b", "\"\" is not host or host:port"),
            ("a:1/service", "unexpected \"/service\""),
        ] {
            let why = parse_endpoints(authority).unwrap_err();
            assert!(why.contains(expected), "{authority}: {why}");
        }
    }
}
