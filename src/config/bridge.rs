//! The section `[bridge]`: the port bridge.

use std::time::Duration;

use ipnet::Ipv4Net;

use super::error::ConfigError;
use super::keys;
use super::layers::Layers;
use super::values::{boolean, duration, invalid, list, name_pattern, number, one};
use crate::bridge::{Policy, Settings, check_pool};
use crate::service::NamePattern;

const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);

/// Reads the settings of the port bridge; `None` if it is off. They are checked in any case.
pub(super) fn read(layers: &Layers) -> Result<Option<Settings>, ConfigError> {
    let lower_case = |text: &str| Ok(Box::from(text.to_ascii_lowercase()));
    let zones = list(layers, keys::ZONE, |text| Ok(text.to_owned()))?;
    let pattern = |text: &str| pattern(text, &zones);
    let count = |key| one(layers, key, |text| number(text, 1_000_000));
    let up_to = |key, max| one(layers, key, |text| duration(text, Duration::ZERO, max));
    let ports = list(layers, keys::BRIDGE_PORTS, port)?;
    if boolean(layers, keys::BRIDGE_BIND)? && ports.is_empty() {
        let why = "bridge.bind needs at least one port to bind".to_owned();
        return Err(invalid(&layers.one(keys::BRIDGE_BIND), why));
    }
    let idle_timeout = up_to(keys::BRIDGE_IDLE_TIMEOUT, DAY)?;
    let settings = Settings {
        pool: one(layers, keys::BRIDGE_POOL, pool)?,
        ports,
        policy: Policy {
            protocols: list(layers, keys::BRIDGE_PROTOCOLS, lower_case)?,
            include: list(layers, keys::BRIDGE_INCLUDE, pattern)?,
            exclude: list(layers, keys::BRIDGE_EXCLUDE, pattern)?,
            namespaces: list(layers, keys::BRIDGE_NAMESPACES, lower_case)?,
        },
        bind: boolean(layers, keys::BRIDGE_BIND)?,
        proxy_protocol: boolean(layers, keys::BRIDGE_PROXY_PROTOCOL)?,
        connections: count(keys::BRIDGE_CONNECTIONS)?,
        connections_per_service: count(keys::BRIDGE_CONNECTIONS_PER_SERVICE)?,
        idle_timeout: (!idle_timeout.is_zero()).then_some(idle_timeout),
        drain: up_to(keys::BRIDGE_DRAIN, HOUR)?,
        ttl: up_to(keys::TTL, DAY)?,
        ..Settings::default()
    };
    Ok(boolean(layers, keys::BRIDGE_ENABLED)?.then_some(settings))
}

/// Parses a pattern of names in front of these zones.
fn pattern(text: &str, zones: &[String]) -> Result<NamePattern, String> {
    let pattern = name_pattern(text)?;
    let in_zone = |zone: &String| {
        let zone = zone.trim_end_matches('.').to_ascii_lowercase();
        let name = text.trim_end_matches('.').to_ascii_lowercase();
        name.strip_suffix(&zone)?.strip_suffix('.').map(str::to_owned)
    };
    match zones.iter().find_map(in_zone) {
        Some(name) => {
            Err(format!("{text:?} never matches: write names without the zone, such as {name:?}"))
        }
        None => Ok(pattern),
    }
}

/// Parses a port.
fn port(text: &str) -> Result<u16, String> {
    text.parse()
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| format!("{text:?} is not a port from 1 to 65535"))
}

/// Parses the pool.
fn pool(text: &str) -> Result<Ipv4Net, String> {
    let pool: Ipv4Net = text.parse().map_err(|_| {
        format!("{text:?} is not a network of IPv4 addresses, such as 127.83.0.0/16")
    })?;
    check_pool(pool).map_err(|error| error.to_string())?;
    Ok(pool.trunc())
}
