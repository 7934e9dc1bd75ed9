//! The section `[checks]`: which endpoints are checked, and how.

use std::time::Duration;

use super::error::ConfigError;
use super::keys;
use super::layers::Layers;
use super::values::{boolean, duration, invalid, list, number, one, text};
use crate::catalog::CheckRules;
use crate::checks;
use crate::service::NamePattern;

/// Bounds of the interval and of the timeout.
const TIMES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3_600));

/// Maximum of `rise` and `fall`.
const MAX_IN_A_ROW: usize = 100;

/// Maximum jitter, in percent.
const MAX_JITTER: u32 = 100;

/// Maximum checks per second.
const MAX_PER_SECOND: usize = 10_000;

/// The checks of endpoints, if they are on.
#[derive(Clone, Debug)]
pub struct CheckConfig {
    /// Which endpoints are checked, and how.
    pub rules: CheckRules,
    /// When they are checked, and when they fail.
    pub settings: checks::Settings,
}

/// Reads the checks; `None` if they are off.
///
/// All keys are checked even then.
pub(super) fn read(layers: &Layers) -> Result<Option<CheckConfig>, ConfigError> {
    let count = |key, max| {
        one(layers, key, |text| number(text, max).map(|n| u32::try_from(n).unwrap_or(u32::MAX)))
    };
    let time = |key| one(layers, key, |text| duration(text, TIMES.0, TIMES.1));
    let path = text(layers, keys::CHECKS_PATH);
    if let Some(why) = path.as_deref().and_then(path_fault) {
        return Err(invalid(&layers.one(keys::CHECKS_PATH), why));
    }
    let rules = CheckRules {
        names: list(layers, keys::CHECKS_NAMES, name_pattern)?,
        protocols: list(layers, keys::CHECKS_PROTOCOLS, protocol)?,
        http: path.is_some(),
        version_fallback: boolean(layers, keys::VERSION_FALLBACK)?,
    };
    let settings = checks::Settings {
        interval: time(keys::CHECKS_INTERVAL)?,
        timeout: time(keys::CHECKS_TIMEOUT)?,
        rise: count(keys::CHECKS_RISE, MAX_IN_A_ROW)?,
        fall: count(keys::CHECKS_FALL, MAX_IN_A_ROW)?,
        jitter: one(layers, keys::CHECKS_JITTER, jitter)?,
        max_per_second: count(keys::CHECKS_MAX_PER_SECOND, MAX_PER_SECOND)?,
        path: path.unwrap_or_default(),
    };
    if settings.timeout > settings.interval {
        let why = format!(
            "a check may not take longer than {}, which is {}: shorten the timeout or lengthen \
             the interval",
            keys::CHECKS_INTERVAL.path(),
            humantime::format_duration(settings.interval)
        );
        return Err(invalid(&layers.one(keys::CHECKS_TIMEOUT), why));
    }
    let enabled = boolean(layers, keys::CHECKS_ENABLED)?;
    Ok(enabled.then_some(CheckConfig { rules, settings }))
}

/// Returns why this cannot be the path of a request.
fn path_fault(path: &str) -> Option<String> {
    let is_path = path.starts_with('/') && path.bytes().all(|byte| matches!(byte, b'!'..=b'~'));
    let fault = || format!("{path:?} is not a path such as /health, percent-encoded");
    (!is_path || path.contains('#')).then(fault)
}

/// Parses a pattern of names.
fn name_pattern(text: &str) -> Result<NamePattern, String> {
    if text.is_empty() || text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(format!("{text:?} is not the name of a service, or a pattern such as hello*"));
    }
    Ok(NamePattern::new(text))
}

/// Parses a protocol as the metadata of registrations name it.
fn protocol(text: &str) -> Result<String, String> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!("{text:?} is not a protocol such as http or grpc"));
    }
    Ok(text.to_owned())
}

/// Parses a percentage.
fn jitter(text: &str) -> Result<u32, String> {
    let percent = text.parse().ok().filter(|percent| *percent <= MAX_JITTER);
    percent.ok_or_else(|| format!("{text:?} is not an integer from 0 to {MAX_JITTER}"))
}
