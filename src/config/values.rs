//! Parsing of values that several keys share.

use std::path::PathBuf;
use std::time::Duration;

use super::error::ConfigError;
use super::key::{Key, SecretKey};
use super::keys;
use super::layers::{Layers, RawValue};
use crate::name::Name;
use crate::registry::Credential;
use crate::service::NamePattern;

/// Returns the error for a value that its key does not accept.
pub(super) fn invalid(value: &RawValue, why: String) -> ConfigError {
    ConfigError::Invalid { origin: value.origin.clone(), key: value.key.clone(), why }
}

/// Parses the value of a key that is not a list.
pub(super) fn one<T>(
    layers: &Layers,
    key: &Key,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<T, ConfigError> {
    let value = layers.one(key);
    parse(&value.text).map_err(|why| invalid(&value, why))
}

/// Parses each item of a list.
pub(super) fn list<T>(
    layers: &Layers,
    key: &Key,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Vec<T>, ConfigError> {
    let parse = |value: &RawValue| parse(&value.text).map_err(|why| invalid(value, why));
    layers.list(key).iter().map(parse).collect()
}

/// Parses a pattern of names.
pub(super) fn name_pattern(text: &str) -> Result<NamePattern, String> {
    if text.is_empty() || text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(format!("{text:?} is not the name of a service, or a pattern such as hello*"));
    }
    Ok(NamePattern::new(text))
}

/// Parses `true` or `false`.
pub(super) fn boolean(layers: &Layers, key: &Key) -> Result<bool, ConfigError> {
    one(layers, key, |text| text.parse().map_err(|_| format!("{text:?} is neither true nor false")))
}

/// Returns a string; `None` if it is empty.
pub(super) fn text(layers: &Layers, key: &Key) -> Option<String> {
    Some(layers.one(key).text).filter(|text| !text.is_empty())
}

/// Returns the path of a file or directory; `None` if it is empty.
pub(super) fn path(layers: &Layers, key: &Key) -> Option<PathBuf> {
    text(layers, key).map(PathBuf::from)
}

/// Returns a secret: from its environment variable if set, otherwise from its file.
pub(super) fn credential(layers: &Layers, key: &SecretKey) -> Option<Credential> {
    let given = layers.secret(key).map(|variable| Credential::Given(variable.secret.clone()));
    given.or_else(|| path(layers, key.file).map(Credential::File))
}

/// Parses an integer from 1 to `max`.
pub(super) fn number(text: &str, max: usize) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if (1..=max).contains(&number) => Ok(number),
        _ => Err(format!("{text:?} is not an integer from 1 to {max}")),
    }
}

/// Parses a duration within these bounds, both inclusive.
pub(super) fn duration(text: &str, min: Duration, max: Duration) -> Result<Duration, String> {
    let duration = match text {
        "0" => Duration::ZERO,
        _ => humantime::parse_duration(text)
            .map_err(|_| format!("{text:?} is not a duration such as 12s, 500ms or 1m 30s"))?,
    };
    if (min..=max).contains(&duration) {
        Ok(duration)
    } else {
        let (min, max) = (humantime::format_duration(min), humantime::format_duration(max));
        Err(format!("{text} is outside the range {min} to {max}"))
    }
}

/// Parses the removal grace.
pub(super) fn removal_grace(layers: &Layers) -> Result<Duration, ConfigError> {
    one(layers, keys::REMOVAL_GRACE, |text| {
        duration(text, Duration::ZERO, Duration::from_secs(3_600))
    })
}

/// Parses a domain name.
pub(super) fn domain(text: &str) -> Result<Name, String> {
    Name::from_text(text).map_err(|error| format!("{text:?} is not a domain name: {error}"))
}

/// Checks one segment of a registry key.
pub(super) fn key_segment(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains('/') || text.chars().any(char::is_control) {
        Err(format!(
            "{text:?} is not a segment of a registry key: use one or more characters, without '/' \
             and control characters"
        ))
    } else {
        Ok(text.to_owned())
    }
}
