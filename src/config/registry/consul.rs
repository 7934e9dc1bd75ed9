//! Consul: URLs `consul://host:port[,host:port…]`, and the section `[consul]`.

use super::endpoints::RefusedInUrl;
use super::tls::tls_keys;
use super::{RegistryKind, UrlParser};
use crate::config::error::ConfigError;
use crate::config::key::{SecretKey, keys};
use crate::config::layers::Layers;
use crate::config::values::{credential, number, one, text};
use crate::registry::Source;
use crate::registry::consul::{Reads, Settings};

pub(super) static KIND: RegistryKind = RegistryKind {
    name: "consul",
    tls_scheme: Some("consul+https"),
    form: "consul://host:port[,host:port]",
    example: "consul://127.0.0.1:8500",
    keys: KEYS,
    secrets: &[&TOKEN],
    tls: Some(&TLS_KEYS),
    note: None,
    read,
};

keys! { KEYS:
    TOKEN_FILE = "consul" "token-file" Text "FILE" "file" r#""""#
        "Read Consul's ACL token from this file. Alternatively, set the environment variable \
         SVCDNS_CONSUL_TOKEN.";
    DATACENTER = "consul" "datacenter" Text "NAME" "" r#""""# => "the agent's own"
        "Read this datacenter.";
    NAMESPACE = "consul" "namespace" Text "NAME" "" r#""""# => "the token's"
        "Read this namespace of Consul Enterprise.";
    READS = "consul" "reads" Text "MODE" "`default`, `stale` or `consistent`" r#""default""#
        "Which of Consul's servers may answer: the leader, any server, or the leader after it has \
         asked a majority.";
    MAX_WAITING = "consul" "max-waiting" Number "N" "1 to 10000" "100"
        "Limit on queries that wait at Consul at once, one for each service; further services are \
         polled. Consul accepts 200 connections from one address by default.";
}

static TOKEN: SecretKey =
    SecretKey { name: "token", variable: "SVCDNS_CONSUL_TOKEN", file: TOKEN_FILE };

tls_keys! { "consul" "Consul" "`consul+https://` and by the other `consul` TLS settings" }

/// Default port of Consul's HTTP interface.
const HTTP_PORT: u16 = 8500;

/// Default port of Consul's HTTPS interface.
const HTTPS_PORT: u16 = 8501;

/// Upper bound of `max-waiting`.
const MAX_MAX_WAITING: usize = 10_000;

fn read(layers: &Layers) -> Result<UrlParser, ConfigError> {
    let token = credential(layers, &TOKEN);
    let token_keys = token.is_some().then(|| layers.place_of(&TOKEN));
    let (tls, tls_files) = (TLS_KEYS.read(layers)?, TLS_KEYS.read_files(layers)?);
    let settings = Settings {
        token,
        token_keys,
        datacenter: text(layers, DATACENTER),
        namespace: text(layers, NAMESPACE),
        reads: one(layers, READS, parse_reads)?,
        max_waiting: one(layers, MAX_WAITING, |text| number(text, MAX_MAX_WAITING))?,
        ..Settings::new(Vec::new())
    };
    let refused = RefusedInUrl::new(
        "user or token",
        &layers.recommended_places(&TOKEN),
        "the agents of a Consul URL (datacenter and namespace are separate keys)",
    );
    Ok(Box::new(move |scheme, authority| {
        let tls = if scheme == KIND.name { tls.clone() } else { Some(tls_files.clone()) };
        let port = if tls.is_some() { HTTPS_PORT } else { HTTP_PORT };
        let endpoints = refused.parse_endpoints(authority, port)?;
        Ok(Source::Consul(Box::new(Settings { endpoints, tls, ..settings.clone() })))
    }))
}

fn parse_reads(text: &str) -> Result<Reads, String> {
    let found = Reads::ALL.into_iter().find(|reads| reads.name() == text);
    found.ok_or_else(|| format!("{text:?} is not default, stale or consistent"))
}
