//! etcd: URLs `etcd://host:port[,host:port…]`, and the section `[etcd]`.

use super::endpoints::RefusedInUrl;
use super::tls::tls_keys;
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
    tls: Some(&TLS_KEYS),
    read,
};

keys! { KEYS:
    USERNAME = "etcd" "username" Text "USER" "" r#""""#
        "Log in to etcd as this user; requires a password.";
    PASSWORD_FILE = "etcd" "password-file" Text "FILE" "file" r#""""#
        "Read the etcd password from this file. Alternatively, set the environment variable \
         SVCDNS_ETCD_PASSWORD.";
}

static PASSWORD: SecretKey =
    SecretKey { name: "password", variable: "SVCDNS_ETCD_PASSWORD", file: PASSWORD_FILE };

tls_keys! { "etcd" "etcd" "the other `etcd` TLS settings" }

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
    let refused = RefusedInUrl::new(
        "user or password",
        &login_keys(layers),
        "the endpoints of an etcd URL (heads, deployment and namespace are separate keys)",
    );
    Ok(Box::new(move |_, authority| {
        let endpoints = refused.parse_endpoints(authority, ETCD_PORT)?;
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
    format!("{} and {}", layers.written_as(USERNAME), layers.place_of(&PASSWORD))
}

/// Lists the keys and the environment variable of a login, for error messages.
fn login_keys(layers: &Layers) -> String {
    let password = layers.recommended_places(&PASSWORD);
    format!("{}, and {password}", layers.recommended_key(USERNAME))
}
