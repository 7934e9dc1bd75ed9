//! Reads the whole configuration, key by key, and checks what must fit together.

use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use ipnet::IpNet;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::effective::Effective;
use super::error::ConfigError;
use super::gather::Gathered;
use super::key::Key;
use super::layers::Layers;
use super::secret::GivenSecret;
use super::values::{boolean, domain, duration, invalid, key_segment, list, number, one, path, removal_grace};
use super::warning::ConfigWarning;
use super::{Config, directories, encrypted, keys, registry, upstream};
use crate::answer::Answers;
use crate::catalog::{Docker0, MAX_INSTANCES_PER_SERVICE, MAX_KEYS};
use crate::name::{Name, Zones};

const DAY: Duration = Duration::from_secs(86_400);
const HOUR: Duration = Duration::from_secs(3_600);

/// Reads every value, and checks those that only fit together.
pub(super) fn read(gathered: &Gathered) -> Result<Config, ConfigError> {
    let Gathered { layers, registries, variables } = gathered;
    let whole = |key| seconds(layers, key);
    let registries = registry::read(layers, registries, variables)?;
    let config = Config {
        listen: list(layers, keys::LISTEN, socket_address)?,
        allow: list(layers, keys::ALLOW, network)?,
        registries: registries.iter().map(|registry| registry.source.clone()).collect(),
        zones: zones(layers)?,
        deployment: segment(layers, keys::DEPLOYMENT)?,
        namespace: segment(layers, keys::NAMESPACE)?,
        version_fallback: boolean(layers, keys::VERSION_FALLBACK)?,
        answers: one(layers, keys::ANSWERS, answers)?,
        docker0: one(layers, keys::DOCKER0, docker0)?,
        removal_grace: removal_grace(layers)?,
        ttl: whole(keys::TTL)?,
        negative_ttl: whole(keys::NEGATIVE_TTL)?,
        max_instances_per_service: one(layers, keys::MAX_INSTANCES_PER_SERVICE, |text| number(text, MAX_INSTANCES_PER_SERVICE))?,
        max_keys: one(layers, keys::MAX_KEYS, |text| number(text, MAX_KEYS))?,
        tcp_connections: one(layers, keys::TCP_CONNECTIONS, |text| number(text, 65_535))?,
        tcp_idle_timeout: one(layers, keys::TCP_IDLE_TIMEOUT, |text| duration(text, Duration::from_secs(1), HOUR))?,
        upstream: upstream::read(layers)?,
        cache_octets: one(layers, keys::CACHE_SIZE, size)?,
        serve_stale: one(layers, keys::SERVE_STALE, |text| duration(text, Duration::ZERO, 30 * DAY))?,
        rebinding: rebinding(layers)?,
        forward_opcodes: boolean(layers, keys::FORWARD_OPCODES)?,
        encrypted: encrypted::read(layers)?,
        admin_listen: one(layers, keys::ADMIN_LISTEN, admin_address)?,
        runtime_dir: directories::runtime(layers),
        state_dir: path(layers, keys::STATE_DIR),
        log: one(layers, keys::LOG, log_filter)?,
        log_queries: one(layers, keys::LOG_QUERIES, number_or_none)?,
        secrets: registries.iter().flat_map(GivenSecret::of).collect(),
        warnings: ConfigWarning::all(layers, &registries),
        effective: Effective::all(layers, &registries),
    };
    upstream::check(layers, &config)?;
    if let Err(error) = config.server().check() {
        return Err(ConfigError::Listen { origin: encrypted::origin_of(layers, &error), error });
    }
    Ok(config)
}

/// Reads an address with a port.
fn socket_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("{text:?} is not an address with a port, such as 127.0.0.1:5300 or [::1]:5300"))
}

/// Reads a network; an address alone is a network of one host.
fn network(text: &str) -> Result<IpNet, String> {
    let network = text.parse::<IpNet>().ok().or_else(|| text.parse::<std::net::IpAddr>().ok().map(IpNet::from));
    network.map(|network| network.trunc()).ok_or_else(|| format!("{text:?} is not a network such as 10.0.0.0/8 or fd00::/8"))
}

/// Reads the served zones.
fn zones(layers: &Layers) -> Result<Zones, ConfigError> {
    // One by one first: the mistake then has its place.
    let texts = list(layers, keys::ZONE, |text| {
        let text = text.to_owned();
        Zones::new(std::slice::from_ref(&text)).map(|_| text).map_err(|error| error.to_string())
    })?;
    Zones::new(&texts).map_err(|error| invalid(&layers.one(keys::ZONE), error.to_string()))
}

/// Reads the deployment or the namespace.
fn segment(layers: &Layers, key: &Key) -> Result<String, ConfigError> {
    one(layers, key, key_segment)
}

/// Reads how many records an answer holds.
fn answers(text: &str) -> Result<Answers, String> {
    match text {
        "all" => Ok(Answers::All),
        "fit" => Ok(Answers::Fit),
        _ => match text.parse() {
            Ok(count) => Ok(Answers::Count(count)),
            Err(_) => Err(format!("{text:?} is neither all, fit nor a number from 1 to 65535")),
        },
    }
}

/// Reads what to do with endpoints at Docker's bridge.
fn docker0(text: &str) -> Result<Docker0, String> {
    match text {
        "drop" => Ok(Docker0::Drop),
        "keep" => Ok(Docker0::Keep),
        _ => Err(format!("{text:?} is neither drop nor keep")),
    }
}

/// Reads a lifetime of up to a day, in whole seconds.
fn seconds(layers: &Layers, key: &Key) -> Result<u32, ConfigError> {
    one(layers, key, |text| {
        let duration = duration(text, Duration::ZERO, DAY)?;
        if duration.subsec_nanos() != 0 {
            return Err(format!("{text} is not a whole number of seconds, and DNS counts in those"));
        }
        u32::try_from(duration.as_secs()).map_err(|error| error.to_string())
    })
}

/// Reads a size of at most 64 GiB, in bytes.
fn size(text: &str) -> Result<usize, String> {
    let size = ByteSize::from_str(text).map_err(|_| format!("{text:?} is not a size such as 32MiB or 500kB"))?;
    usize::try_from(size.as_u64())
        .ok()
        .filter(|_| size <= ByteSize::gib(64))
        .ok_or_else(|| format!("{text} is more than 64GiB, the fixed limit"))
}

/// Reads the domains that may have private addresses; none where all may.
fn rebinding(layers: &Layers) -> Result<Option<Vec<Name>>, ConfigError> {
    let allowed = list(layers, keys::REBINDING_ALLOW, domain)?;
    Ok(boolean(layers, keys::REBINDING_GUARD)?.then_some(allowed))
}

/// Reads a loopback address with a port; none for `off`.
fn admin_address(text: &str) -> Result<Option<SocketAddr>, String> {
    if text == "off" {
        return Ok(None);
    }
    let address =
        SocketAddr::from_str(text).map_err(|_| format!("{text:?} is neither an address with a port, such as 127.0.0.1:5380, nor off"))?;
    if address.ip().to_canonical().is_loopback() {
        Ok(Some(address))
    } else {
        Err(format!("{address} can be reached from other machines, and this interface asks nobody who they are: name a loopback address"))
    }
}

/// Reads the filter of the log; a level alone is that of svcdns.
fn log_filter(text: &str) -> Result<String, String> {
    EnvFilter::builder()
        .parse(text)
        .map(|_| match text.parse::<LevelFilter>() {
            // What etcd's client and the HTTP libraries say at these levels buries what svcdns says.
            Ok(level) if level > LevelFilter::WARN => format!("warn,svcdns={text}"),
            _ => text.to_owned(),
        })
        .map_err(|error| format!("{text:?} is not a filter such as info, debug or warn,svcdns::registry=debug: {error}"))
}

/// Reads a whole number, 0 included.
fn number_or_none(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("{text:?} is not a whole number from 0 to {}", u32::MAX))
}
