//! Parses every key, and checks keys against each other.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use ipnet::IpNet;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::effective::EffectiveValue;
use super::error::ConfigError;
use super::gather::MergedSources;
use super::key::Key;
use super::layers::Layers;
use super::secret::ConfiguredSecret;
use super::values::{
    boolean, domain, duration, invalid, key_segment, list, number, one, path, removal_grace,
};
use super::warning::ConfigWarning;
use super::{
    Config, aliases, bridge, checks, directories, encrypted, keys, registry, static_services,
    upstream,
};
use crate::answer::Answers;
use crate::catalog::{Docker0, MAX_INSTANCES_PER_SERVICE, MAX_KEYS, Merge};
use crate::name::{Name, Zones};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);

/// Parses every key, then checks keys against each other.
pub(super) fn read(sources: &MergedSources) -> Result<Config, ConfigError> {
    let MergedSources { layers, registries, statics, variables, aliases } = sources;
    let count = |key, max| one(layers, key, |text| number(text, max));
    let between = |key, min, max| one(layers, key, |text| duration(text, min, max));
    let registries = registry::read(layers, registries, variables)?;
    // This default is checked even if each registry has its own value.
    removal_grace(layers)?;
    let zones = zones(layers)?;
    let (static_services, effective_statics) =
        static_services::read(statics, layers, &zones, &registries)?;
    let named = registries.iter().map(|registry| registry.source.clone());
    let config = Config {
        alias_targets: aliases::read(aliases, &zones)?,
        aliases: aliases.clone(),
        listen: list(layers, keys::LISTEN, socket_address)?,
        allow: list(layers, keys::ALLOW, network)?,
        registries: named.chain(static_services).collect(),
        merge: one(layers, keys::MERGE, merge)?,
        zones,
        deployment: one(layers, keys::DEPLOYMENT, key_segment)?,
        namespace: one(layers, keys::NAMESPACE, key_segment)?,
        version_fallback: boolean(layers, keys::VERSION_FALLBACK)?,
        answers: one(layers, keys::ANSWERS, answers)?,
        docker0: one(layers, keys::DOCKER0, docker0)?,
        ttl: ttl(layers, keys::TTL)?,
        negative_ttl: ttl(layers, keys::NEGATIVE_TTL)?,
        max_instances_per_service: count(
            keys::MAX_INSTANCES_PER_SERVICE,
            MAX_INSTANCES_PER_SERVICE,
        )?,
        max_keys: count(keys::MAX_KEYS, MAX_KEYS)?,
        tcp_connections: count(keys::TCP_CONNECTIONS, 65_535)?,
        tcp_connections_per_source: count(keys::TCP_CONNECTIONS_PER_SOURCE, 65_535)?,
        tcp_connections_per_loopback_source: count(
            keys::TCP_CONNECTIONS_PER_LOOPBACK_SOURCE,
            65_535,
        )?,
        tcp_idle_timeout: between(keys::TCP_IDLE_TIMEOUT, SECOND, HOUR)?,
        upstream: upstream::read(layers)?,
        cache_bytes: one(layers, keys::CACHE_SIZE, size)?,
        serve_stale: between(keys::SERVE_STALE, Duration::ZERO, 30 * DAY)?,
        rebinding: rebinding(layers)?,
        forward_opcodes: boolean(layers, keys::FORWARD_OPCODES)?,
        encrypted: encrypted::read(layers)?,
        bridge: bridge::read(layers)?,
        checks: checks::read(layers)?,
        admin_listen: one(layers, keys::ADMIN_LISTEN, admin_address)?,
        runtime_dir: directories::runtime(layers),
        state_dir: path(layers, keys::STATE_DIR),
        snapshot: boolean(layers, keys::SNAPSHOT)?,
        max_stale: between(keys::MAX_STALE, MINUTE, 365 * DAY)?,
        log: one(layers, keys::LOG, log_filter)?,
        log_queries: one(layers, keys::LOG_QUERIES, number_or_zero)?,
        secrets: registries.iter().flat_map(ConfiguredSecret::of).collect(),
        warnings: ConfigWarning::all(layers, &registries),
        effective: {
            let mut effective = EffectiveValue::all(layers, &registries);
            effective.extend(effective_statics);
            effective
        },
    };
    upstream::check(layers, &config)?;
    if let Err(error) = config.server().check() {
        return Err(ConfigError::Listen { origin: encrypted::origin_of(layers, &error), error });
    }
    Ok(config)
}

/// Parses an address with a port.
fn socket_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!("{text:?} is not an address with a port, such as 127.0.0.1:5300 or [::1]:5300")
    })
}

/// Parses a network; an address alone is a network of one host.
fn network(text: &str) -> Result<IpNet, String> {
    text.parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map(|network| network.trunc())
        .map_err(|_| format!("{text:?} is not a network such as 10.0.0.0/8 or fd00::/8"))
}

/// Parses the served zones.
fn zones(layers: &Layers) -> Result<Zones, ConfigError> {
    // Zones are checked one by one first, so that an error has the zone's own origin.
    let texts = list(layers, keys::ZONE, |text| {
        let text = text.to_owned();
        Zones::new(std::slice::from_ref(&text)).map(|_| text).map_err(|error| error.to_string())
    })?;
    Zones::new(&texts).map_err(|error| invalid(&layers.one(keys::ZONE), error.to_string()))
}

/// Parses `all`, `fit` or a number of records.
fn answers(text: &str) -> Result<Answers, String> {
    match text {
        "all" => Ok(Answers::All),
        "fit" => Ok(Answers::Fit),
        _ => match text.parse() {
            Ok(count) => Ok(Answers::Count(count)),
            Err(_) => Err(format!("{text:?} is not all, fit or a number from 1 to 65535")),
        },
    }
}

/// Parses `union` or `first`.
fn merge(text: &str) -> Result<Merge, String> {
    match text {
        "union" => Ok(Merge::Union),
        "first" => Ok(Merge::First),
        _ => Err(format!("{text:?} is neither union nor first")),
    }
}

/// Parses `drop` or `keep`.
fn docker0(text: &str) -> Result<Docker0, String> {
    match text {
        "drop" => Ok(Docker0::Drop),
        "keep" => Ok(Docker0::Keep),
        _ => Err(format!("{text:?} is neither drop nor keep")),
    }
}

/// Parses a TTL: up to one day, in whole seconds.
fn ttl(layers: &Layers, key: &Key) -> Result<u32, ConfigError> {
    one(layers, key, |text| {
        let duration = duration(text, Duration::ZERO, DAY)?;
        if duration.subsec_nanos() != 0 {
            return Err(format!("{text} is not a whole number of seconds, the unit of a TTL"));
        }
        u32::try_from(duration.as_secs()).map_err(|error| error.to_string())
    })
}

/// Parses a size of at most 64 GiB; returns bytes.
fn size(text: &str) -> Result<usize, String> {
    let size = ByteSize::from_str(text)
        .map_err(|_| format!("{text:?} is not a size such as 32MiB or 500kB"))?;
    usize::try_from(size.as_u64())
        .ok()
        .filter(|_| size <= ByteSize::gib(64))
        .ok_or_else(|| format!("{text} is more than 64GiB, the fixed limit"))
}

/// Parses the domains exempt from the rebinding guard; `None` if the guard is off.
fn rebinding(layers: &Layers) -> Result<Option<Vec<Name>>, ConfigError> {
    let exempt = list(layers, keys::REBINDING_ALLOW, domain)?;
    Ok(boolean(layers, keys::REBINDING_GUARD)?.then_some(exempt))
}

/// Parses a loopback address with a port; `None` for `off`.
fn admin_address(text: &str) -> Result<Option<SocketAddr>, String> {
    if text == "off" {
        return Ok(None);
    }
    let address = SocketAddr::from_str(text).map_err(|_| {
        format!("{text:?} is neither an address with a port, such as 127.0.0.1:5380, nor off")
    })?;
    if address.ip().to_canonical().is_loopback() {
        Ok(Some(address))
    } else {
        Err(format!(
            "{address} is reachable from other machines, but this interface has no \
             authentication: use a loopback address"
        ))
    }
}

/// Parses the filter of the log; a level without a module applies to svcdns.
fn log_filter(text: &str) -> Result<String, String> {
    EnvFilter::builder()
        .parse(text)
        .map(|_| match text.parse::<LevelFilter>() {
            // A library's warning says neither what happened to svcdns nor what to do: svcdns
            // reports the failures of its libraries itself.
            Ok(level) if level > LevelFilter::ERROR => format!("error,svcdns={text}"),
            _ => text.to_owned(),
        })
        .map_err(|error| {
            format!(
                "{text:?} is not a log filter such as info or warn,svcdns::registry=debug: {error}"
            )
        })
}

/// Parses an integer that may be 0.
fn number_or_zero(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("{text:?} is not an integer from 0 to {}", u32::MAX))
}
