//! Who is asked for names outside the zones, as it is written.

use crate::name::Name;
use crate::upstream::{Servers, Target, TargetError, is_answered_locally};

use super::error::ConfigError;
use super::keys;
use super::layers::{Layers, Written};
use super::values::{boolean, domain, invalid, path};
use super::{Config, Upstream};

/// One entry of the list.
enum Entry {
    System,
    Off,
    Target(Target),
    Domain(Box<Name>, Target),
}

/// Reads the list, and what belongs to it.
pub(super) fn read(layers: &Layers) -> Result<Upstream, ConfigError> {
    let (mut named, mut domains, mut system, mut off) = (Vec::new(), Vec::<(Name, Vec<Target>)>::new(), None, None);
    let written = layers.list(keys::UPSTREAM);
    for item in written {
        match entry(&item.text).map_err(|why| fault(item, why))? {
            Entry::System => system = Some(item),
            Entry::Off => off = Some(item),
            Entry::Target(target) => add(&mut named, target),
            Entry::Domain(domain, target) => {
                let at = domains.iter().position(|(known, _)| *known == *domain).unwrap_or_else(|| {
                    domains.push((*domain, Vec::new()));
                    domains.len() - 1
                });
                add(&mut domains[at].1, target);
            }
        }
    }
    if let (Some(item), 2..) = (off, written.len()) {
        return Err(fault(item, "off stands alone: leave it out, or all others".to_owned()));
    }
    if let (Some(item), false) = (system, named.is_empty()) {
        let why = "either system or upstreams by their addresses; besides system there may be upstreams for domains, such as corp.example=10.0.0.53";
        return Err(fault(item, why.to_owned()));
    }
    let servers = match (off, named.is_empty()) {
        (Some(_), _) => Servers::Off,
        (None, true) => Servers::System,
        (None, false) => Servers::Named(named),
    };
    let (ca_file, random_case) = (path(layers, keys::UPSTREAM_CA_FILE), boolean(layers, keys::UPSTREAM_RANDOM_CASE)?);
    let forward_single_labels = boolean(layers, keys::FORWARD_SINGLE_LABEL)?;
    Ok(Upstream { servers, domains, ca_file, random_case, forward_single_labels })
}

/// Checks what only fits together with the rest of the configuration: names that are never asked for elsewhere, and
/// addresses that would be ourselves.
pub(super) fn check(layers: &Layers, config: &Config) -> Result<(), ConfigError> {
    for item in layers.list(keys::UPSTREAM) {
        let target = match entry(&item.text).map_err(|why| fault(item, why))? {
            Entry::Domain(domain, target) => {
                if let Some((_, zone)) = config.zones.find(&domain) {
                    let why = format!("{domain} lies in the served zone {zone}, for which nobody else is asked");
                    return Err(fault(item, why));
                }
                if is_answered_locally(&domain) {
                    return Err(fault(item, format!("nobody is asked for names in {domain}: svcdns answers them itself")));
                }
                target
            }
            Entry::Target(target) => target,
            Entry::System | Entry::Off => continue,
        };
        if let Some(own) = config.listen.iter().find(|own| target.reaches(**own)) {
            let why = format!("svcdns would ask itself: it listens on {own}; name another upstream, or let it listen elsewhere");
            return Err(fault(item, why));
        }
    }
    Ok(())
}

fn entry(text: &str) -> Result<Entry, String> {
    match text {
        "system" => return Ok(Entry::System),
        "off" => return Ok(Entry::Off),
        _ => {}
    }
    // A URL may hold `=`, too, but not before its `:`.
    match text.split_once('=').filter(|(domain, _)| !domain.contains([':', '/'])) {
        Some((text, target)) => {
            let domain = domain(text)?;
            if domain == Name::ROOT {
                return Err(format!("the root holds every name: name {target} alone"));
            }
            if matches!(target, "system" | "off") {
                return Err(format!("{target} cannot be named for a domain: an upstream stands there, such as 10.0.0.53"));
            }
            Ok(Entry::Domain(Box::new(domain), self::target(target)?))
        }
        None => Ok(Entry::Target(target(text)?)),
    }
}

fn target(text: &str) -> Result<Target, String> {
    text.parse().map_err(|error: TargetError| error.to_string())
}

fn add(targets: &mut Vec<Target>, target: Target) {
    if !targets.contains(&target) {
        targets.push(target);
    }
}

fn fault(item: &Written, why: String) -> ConfigError {
    invalid(item, why)
}
