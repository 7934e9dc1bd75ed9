//! Readers of single values, from text to what it means, that several keys share.

use std::path::PathBuf;
use std::time::Duration;

use super::error::ConfigError;
use super::key::{Key, SecretKey};
use super::keys;
use super::layers::{Layers, Written};
use crate::name::Name;
use crate::registry::Credential;

/// Makes the error that a key cannot have this value.
pub(super) fn invalid(written: &Written, why: String) -> ConfigError {
    ConfigError::Invalid { origin: written.origin.clone(), key: written.key.clone(), why }
}

/// Reads the value of a key that has one.
pub(super) fn one<T>(layers: &Layers, key: &Key, read: impl Fn(&str) -> Result<T, String>) -> Result<T, ConfigError> {
    let written = layers.one(key);
    read(&written.text).map_err(|why| invalid(&written, why))
}

/// Reads each item of a list.
pub(super) fn list<T>(layers: &Layers, key: &Key, read: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, ConfigError> {
    layers.list(key).iter().map(|written| read(&written.text).map_err(|why| invalid(written, why))).collect()
}

/// Reads `true` or `false`.
pub(super) fn boolean(layers: &Layers, key: &Key) -> Result<bool, ConfigError> {
    one(layers, key, |text| text.parse().map_err(|_| format!("{text:?} is neither true nor false")))
}

/// Reads a text; none where it is empty.
pub(super) fn text(layers: &Layers, key: &Key) -> Option<String> {
    Some(layers.one(key).text).filter(|text| !text.is_empty())
}

/// Reads the path of a file or a directory; none where it is empty.
pub(super) fn path(layers: &Layers, key: &Key) -> Option<PathBuf> {
    text(layers, key).map(PathBuf::from)
}

/// Returns where a secret comes from: its variable, or else its file.
pub(super) fn credential(layers: &Layers, key: &SecretKey) -> Option<Credential> {
    let given = layers.secret(key).map(|variable| Credential::Given(variable.secret.clone()));
    given.or_else(|| path(layers, key.file).map(Credential::File))
}

/// Reads a whole number from 1 to `most`.
pub(super) fn number(text: &str, most: usize) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if (1..=most).contains(&number) => Ok(number),
        _ => Err(format!("{text:?} is not a whole number from 1 to {most}")),
    }
}

/// Reads a duration within these bounds.
pub(super) fn duration(text: &str, least: Duration, most: Duration) -> Result<Duration, String> {
    let duration = match text {
        "0" => Duration::ZERO,
        _ => humantime::parse_duration(text).map_err(|_| format!("{text:?} is not a duration such as 12s, 500ms or 1m 30s"))?,
    };
    if (least..=most).contains(&duration) {
        Ok(duration)
    } else {
        Err(format!("{text} is not from {} to {}", humantime::format_duration(least), humantime::format_duration(most)))
    }
}

/// Reads how long a mass removal is not believed.
pub(super) fn removal_grace(layers: &Layers) -> Result<Duration, ConfigError> {
    one(layers, keys::REMOVAL_GRACE, |text| duration(text, Duration::ZERO, Duration::from_secs(3_600)))
}

/// Reads a domain name.
pub(super) fn domain(text: &str) -> Result<Name, String> {
    Name::from_text(text).map_err(|error| format!("{text:?} is not a domain name: {error}"))
}

/// Reads one segment of a registry key.
pub(super) fn key_segment(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains('/') || text.chars().any(char::is_control) {
        Err(format!("{text:?} is not one segment of a registry key: some characters, none of them '/'"))
    } else {
        Ok(text.to_owned())
    }
}
