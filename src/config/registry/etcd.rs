//! etcd: URLs `etcd://host:port[,host:port…]`, and the section `[etcd]`.

use super::endpoints::{InvalidEndpoints, parse_endpoints};
use super::tls::TlsKeys;
use super::{RegistryKind, UrlParser, heads};
use crate::config::error::{ConfigError, Origin};
use crate::config::key::{SecretKey, keys};
use crate::config::layers::{Layers, RawValue};
use crate::config::values::{credential, invalid, text};
use crate::registry::etcd::Settings;
use crate::registry::{Credential, Source};

pub(super) static KIND: RegistryKind = RegistryKind {
    name: "etcd",
    tls_scheme: None,
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

static TLS_KEYS: TlsKeys = TlsKeys {
    tls: TLS,
    ca_file: CA_FILE,
    cert_file: CERT_FILE,
    key_file: KEY_FILE,
    server_name: SERVER_NAME,
};

/// Default client port of etcd.
const ETCD_PORT: u16 = 2379;

fn read(layers: &Layers) -> Result<UrlParser, ConfigError> {
    let (username, password) = login(layers)?;
    let (tls, heads) = (TLS_KEYS.read(layers)?, heads(layers)?);
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
    Ok(Box::new(move |_, authority| {
        if authority.contains('@') {
            return Err(exposed.clone());
        }
        let endpoints = parse_endpoints(authority, ETCD_PORT).map_err(|at| match at {
            InvalidEndpoints::Rest(rest) => format!(
                "unexpected {rest:?} after the endpoints of an etcd URL (heads, deployment and \
                 namespace are separate keys)"
            ),
            InvalidEndpoints::Endpoint(why) => why,
        })?;
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
