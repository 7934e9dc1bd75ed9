//! etcd: URLs `etcd://host:port[,host:port…]`, and the section `[etcd]`.

use super::endpoints::RefusedInUrl;
use super::login::{ConfiguredLogin, LoginKeys};
use super::tls::tls_keys;
use super::{RegistryKind, UrlParser, heads};
use crate::config::error::ConfigError;
use crate::config::key::{SecretKey, keys};
use crate::config::layers::Layers;
use crate::registry::Source;
use crate::registry::etcd::Settings;

pub(super) static KIND: RegistryKind = RegistryKind {
    name: "etcd",
    tls_scheme: None,
    form: "etcd://host:port[,host:port]",
    example: "etcd://10.0.0.1:2379,10.0.0.2:2379",
    keys: KEYS,
    secrets: &[&PASSWORD],
    tls: Some(&TLS_KEYS),
    note: None,
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

static LOGIN_KEYS: LoginKeys = LoginKeys { username: USERNAME, password: &PASSWORD };

tls_keys! { "etcd" "etcd" "the other `etcd` TLS settings" }

/// Default client port of etcd.
const ETCD_PORT: u16 = 2379;

fn read(layers: &Layers) -> Result<UrlParser, ConfigError> {
    let ConfiguredLogin { username, password, keys } = LOGIN_KEYS.read(layers)?;
    let (tls, heads) = (TLS_KEYS.read(layers)?, heads(layers)?);
    let settings =
        Settings { username, password, login_keys: keys, tls, heads, ..Settings::new(Vec::new()) };
    let refused = RefusedInUrl::new(
        "user or password",
        &LOGIN_KEYS.recommended(layers),
        "the endpoints of an etcd URL (heads, deployment and namespace are separate keys)",
    );
    Ok(Box::new(move |_, authority| {
        let endpoints = refused.parse_endpoints(authority, ETCD_PORT)?;
        Ok(Source::Etcd(Box::new(Settings { endpoints, ..settings.clone() })))
    }))
}
