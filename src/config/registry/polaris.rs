//! Polaris: URLs `polaris://host:port[,host:port…]`, and the section `[polaris]`.

use super::endpoints::RefusedInUrl;
use super::polling::PollingKeys;
use super::tls::tls_keys;
use super::{RegistryKind, UrlParser, heads};
use crate::config::error::ConfigError;
use crate::config::key::{SecretKey, keys};
use crate::config::layers::Layers;
use crate::config::values::{credential, key_segment, list, text};
use crate::registry::Source;
use crate::registry::polaris::{DEFAULT_NAMESPACE, ServiceNaming, Settings};

pub(super) static KIND: RegistryKind = RegistryKind {
    name: "polaris",
    tls_scheme: Some("polaris+https"),
    form: "polaris://host:port[,host:port]",
    example: "polaris://127.0.0.1:8090",
    keys: KEYS,
    secrets: &[&TOKEN],
    tls: Some(&TLS_KEYS),
    note: None,
    read,
};

keys! { KEYS:
    TOKEN_FILE = "polaris" "token-file" Text "FILE" "file" r#""""#
        "Read the token for Polaris from this file. Alternatively, set the environment variable \
         SVCDNS_POLARIS_TOKEN.";
    NAMESPACE = "polaris" "namespace" Text "NAME" "" r#""default""#
        "Read this namespace of Polaris, which is not GoFrame's.";
    DEPLOYMENTS = "polaris" "deployments" List "NAME" "" "[]"
        "Deployments of GoFrame's services that contain a hyphen. Polaris has them only in a name \
         whose parts are joined by hyphens.";
    NAMESPACES = "polaris" "namespaces" List "NAME" "" "[]"
        "Namespaces of GoFrame's services that contain a hyphen, like `deployments`.";
    POLL_INTERVAL = "polaris" "poll-interval" Duration "DURATION" "`100ms` to `1h`" r#""1s""#
        "Shortest time between two reads of a service; longer if there are so many services that \
         `max-requests` does not suffice.";
    MAX_REQUESTS = "polaris" "max-requests" Number "N" "per second, 1 to 10000" "200"
        "Limit on polling queries; services that have changed lately come first.";
}

static TOKEN: SecretKey =
    SecretKey { name: "token", variable: "SVCDNS_POLARIS_TOKEN", file: TOKEN_FILE };

tls_keys! { "polaris" "Polaris" "`polaris+https://` and by the other `polaris` TLS settings" }

/// Default port of Polaris's HTTP interface.
const HTTP_PORT: u16 = 8090;

/// Default port of Polaris's gRPC interface, the one that GoFrame is given.
const GRPC_PORT: u16 = 8091;

fn read(layers: &Layers) -> Result<UrlParser, ConfigError> {
    let token = credential(layers, &TOKEN);
    let token_keys = token.is_some().then(|| layers.place_of(&TOKEN));
    let (tls, tls_files) = (TLS_KEYS.read(layers)?, TLS_KEYS.read_files(layers)?);
    let mut settings = Settings {
        token,
        token_keys,
        namespace: text(layers, NAMESPACE).unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned()),
        naming: ServiceNaming {
            heads: heads(layers)?,
            deployments: list(layers, DEPLOYMENTS, key_segment)?,
            namespaces: list(layers, NAMESPACES, key_segment)?,
        },
        ..Settings::new(Vec::new())
    };
    PollingKeys { interval: POLL_INTERVAL, max_requests: MAX_REQUESTS }
        .read(layers, &mut settings.tuning.polling)?;
    let refused = RefusedInUrl::new(
        "user or token",
        &layers.recommended_places(&TOKEN),
        "the servers of a Polaris URL (the namespace is a separate key)",
    );
    Ok(Box::new(move |scheme, authority| {
        let tls = if scheme == KIND.name { tls.clone() } else { Some(tls_files.clone()) };
        let endpoints = refused.parse_endpoints(authority, HTTP_PORT)?;
        let is_grpc = |endpoint: &&String| endpoint.ends_with(&format!(":{GRPC_PORT}"));
        if let Some(endpoint) = endpoints.iter().find(is_grpc) {
            let host = endpoint.rsplit_once(':').map_or("", |(host, _)| host);
            return Err(format!(
                "{GRPC_PORT} is the port of Polaris's gRPC interface, which GoFrame uses; svcdns \
                 uses the HTTP interface: {scheme}://{host}:{HTTP_PORT}"
            ));
        }
        Ok(Source::Polaris(Box::new(Settings { endpoints, tls, ..settings.clone() })))
    }))
}
