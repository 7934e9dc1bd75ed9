//! Nacos: URLs `nacos://host:port[,host:port…]`, and the section `[nacos]`.

use super::endpoints::RefusedInUrl;
use super::login::{ConfiguredLogin, LoginKeys};
use super::polling::PollingKeys;
use super::tls::tls_keys;
use super::{RegistryKind, UrlParser};
use crate::config::error::ConfigError;
use crate::config::key::{SecretKey, keys};
use crate::config::layers::Layers;
use crate::config::values::{list, text};
use crate::registry::Source;
use crate::registry::nacos::{DEFAULT_GROUP, Settings};

pub(super) static KIND: RegistryKind = RegistryKind {
    name: "nacos",
    tls_scheme: Some("nacos+https"),
    form: "nacos://host:port[,host:port]",
    example: "nacos://127.0.0.1:8848",
    keys: KEYS,
    secrets: &[&PASSWORD],
    tls: Some(&TLS_KEYS),
    note: None,
    read,
};

keys! { KEYS:
    USERNAME = "nacos" "username" Text "USER" "" r#""""#
        "Log in to Nacos as this user; requires a password.";
    PASSWORD_FILE = "nacos" "password-file" Text "FILE" "file" r#""""#
        "Read the Nacos password from this file. Alternatively, set the environment variable \
         SVCDNS_NACOS_PASSWORD.";
    NAMESPACE = "nacos" "namespace" Text "ID" "" r#""""# => "`public`"
        "Read the Nacos namespace with this id.";
    GROUP = "nacos" "group" Text "NAME" "" r#""DEFAULT_GROUP""#
        "Read the services of this group.";
    CLUSTERS = "nacos" "clusters" List "NAME" "" "[]" => "all"
        "Serve only the instances in these Nacos clusters.";
    POLL_INTERVAL = "nacos" "poll-interval" Duration "DURATION" "`100ms` to `1h`" r#""1s""#
        "Shortest time between two reads of a service; longer if there are so many services that \
         `max-requests` does not suffice.";
    MAX_REQUESTS = "nacos" "max-requests" Number "N" "per second, 1 to 10000" "200"
        "Limit on requests to Nacos per second; right after connecting, svcdns reads all services \
         as fast as Nacos answers.";
}

static PASSWORD: SecretKey =
    SecretKey { name: "password", variable: "SVCDNS_NACOS_PASSWORD", file: PASSWORD_FILE };

static LOGIN_KEYS: LoginKeys = LoginKeys { username: USERNAME, password: &PASSWORD };

tls_keys! { "nacos" "Nacos" "`nacos+https://` and by the other `nacos` TLS settings" }

/// Default port of Nacos's HTTP interface.
const NACOS_PORT: u16 = 8848;

fn read(layers: &Layers) -> Result<UrlParser, ConfigError> {
    let ConfiguredLogin { username, password, keys } = LOGIN_KEYS.read(layers)?;
    let (tls, tls_files) = (TLS_KEYS.read(layers)?, TLS_KEYS.read_files(layers)?);
    let mut settings = Settings {
        username,
        password,
        login_keys: keys,
        namespace: text(layers, NAMESPACE),
        group: text(layers, GROUP).unwrap_or_else(|| DEFAULT_GROUP.to_owned()),
        clusters: list(layers, CLUSTERS, |text| Ok(text.to_owned()))?,
        ..Settings::new(Vec::new())
    };
    PollingKeys { interval: POLL_INTERVAL, max_requests: MAX_REQUESTS }
        .read(layers, &mut settings.tuning.polling)?;
    let refused = RefusedInUrl::new(
        "user or password",
        &LOGIN_KEYS.recommended(layers),
        "the servers of a Nacos URL (namespace and group are separate keys)",
    );
    Ok(Box::new(move |scheme, authority| {
        let tls = if scheme == KIND.name { tls.clone() } else { Some(tls_files.clone()) };
        let endpoints = refused.parse_endpoints(authority, NACOS_PORT)?;
        Ok(Source::Nacos(Box::new(Settings { endpoints, tls, ..settings.clone() })))
    }))
}
