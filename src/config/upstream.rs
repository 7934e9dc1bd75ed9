//! The key `upstream` and the keys that depend on it.

use crate::name::Name;
use crate::upstream::{Servers, Target, TargetError, UpstreamOrder, is_answered_locally};

use super::error::ConfigError;
use super::keys;
use super::layers::Layers;
use super::values::{boolean, domain, invalid, one, path};
use super::{Config, UpstreamConfig};

/// An entry of the list `upstream`.
enum UpstreamEntry {
    System,
    Off,
    Target(Target),
    Domain(Box<Name>, Target),
}

/// Reads the upstreams and their settings.
pub(super) fn read(layers: &Layers) -> Result<UpstreamConfig, ConfigError> {
    let (mut named, mut domains) = (Vec::new(), Vec::<(Name, Vec<Target>)>::new());
    let (mut system, mut off) = (None, None);
    let values = layers.list(keys::UPSTREAM);
    for value in values {
        match parse_entry(&value.text).map_err(|why| invalid(value, why))? {
            UpstreamEntry::System => system = Some(value),
            UpstreamEntry::Off => off = Some(value),
            UpstreamEntry::Target(target) => add(&mut named, target),
            UpstreamEntry::Domain(domain, target) => {
                let known = domains.iter().position(|(known, _)| *known == *domain);
                let at = known.unwrap_or_else(|| {
                    domains.push((*domain, Vec::new()));
                    domains.len() - 1
                });
                add(&mut domains[at].1, target);
            }
        }
    }
    if let (Some(value), 2..) = (off, values.len()) {
        let why = "off excludes all other entries: remove off or all others";
        return Err(invalid(value, why.to_owned()));
    }
    if let (Some(value), false) = (system, named.is_empty()) {
        let why = "system cannot be combined with addresses for all names: remove one or the \
             other, or limit the addresses to domains, as in corp.example=10.0.0.53";
        return Err(invalid(value, why.to_owned()));
    }
    let servers = match (off, named.is_empty()) {
        (Some(_), _) => Servers::Off,
        (None, true) => Servers::System,
        (None, false) => Servers::Named(named),
    };
    Ok(UpstreamConfig {
        servers,
        domains,
        order: order(layers)?,
        ca_file: path(layers, keys::UPSTREAM_CA_FILE),
        random_case: boolean(layers, keys::UPSTREAM_RANDOM_CASE)?,
        forward_single_labels: boolean(layers, keys::FORWARD_SINGLE_LABEL)?,
    })
}

/// Reads the order of all lists; `None` if it is not set.
fn order(layers: &Layers) -> Result<Option<UpstreamOrder>, ConfigError> {
    one(layers, keys::UPSTREAM_ORDER, |text| match text {
        "" => Ok(None),
        text => {
            text.parse().map(Some).map_err(|()| format!("{text:?} is neither strict nor fastest"))
        }
    })
}

/// Checks the upstreams against the other settings.
///
/// Rejects domains whose names are never forwarded, and upstreams on which the server listens.
pub(super) fn check(layers: &Layers, config: &Config) -> Result<(), ConfigError> {
    for value in layers.list(keys::UPSTREAM) {
        let target = match parse_entry(&value.text).map_err(|why| invalid(value, why))? {
            UpstreamEntry::Domain(domain, target) => {
                if let Some((_, zone)) = config.zones.find(&domain) {
                    let why = format!(
                        "{domain} is in the served zone {zone}, whose names are never forwarded"
                    );
                    return Err(invalid(value, why));
                }
                if is_answered_locally(&domain) {
                    let why = format!(
                        "names in {domain} are never forwarded: svcdns answers them itself"
                    );
                    return Err(invalid(value, why));
                }
                target
            }
            UpstreamEntry::Target(target) => target,
            UpstreamEntry::System | UpstreamEntry::Off => continue,
        };
        if let Some(own) = config.listen.iter().find(|own| target.reaches(**own)) {
            let why = format!(
                "svcdns would query itself, because it listens on {own}: use another upstream or \
                 another listen address"
            );
            return Err(invalid(value, why));
        }
    }
    Ok(())
}

fn parse_entry(text: &str) -> Result<UpstreamEntry, String> {
    match text {
        "system" => return Ok(UpstreamEntry::System),
        "off" => return Ok(UpstreamEntry::Off),
        _ => {}
    }
    // A URL may also contain `=`, but only after its `:`.
    match text.split_once('=').filter(|(domain, _)| !domain.contains([':', '/'])) {
        Some((text, target)) => {
            let domain = domain(text)?;
            if domain == Name::ROOT {
                return Err(format!(
                    "the root domain contains every name: write {target} without a domain"
                ));
            }
            if matches!(target, "system" | "off") {
                return Err(format!(
                    "a domain needs the address of an upstream, such as 10.0.0.53, not {target}"
                ));
            }
            Ok(UpstreamEntry::Domain(Box::new(domain), parse_target(target)?))
        }
        None => Ok(UpstreamEntry::Target(parse_target(text)?)),
    }
}

fn parse_target(text: &str) -> Result<Target, String> {
    text.parse().map_err(|error: TargetError| error.to_string())
}

/// Adds an upstream unless the list contains it.
fn add(targets: &mut Vec<Target>, target: Target) {
    if !targets.contains(&target) {
        targets.push(target);
    }
}
