//! The section `[alias]`: further names of services, and names of hosts outside the zones.
//!
//! Its keys are names, so no flag or environment variable sets them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use toml::Spanned;
use toml::de::{DeString, DeValue};

use super::error::{ConfigError, Origin};
use super::layers::RawValue;
use super::values::{domain, invalid};
use crate::answer::{AliasTarget, Aliases};
use crate::name::{Name, Zones, base_of};

/// Name of the section.
pub(super) const ALIAS: &str = "alias";

/// An alias as written.
#[derive(Clone, Debug)]
pub struct ConfiguredAlias {
    /// Path of the key: `alias.www`, or `alias."www.svc"`.
    pub path: String,
    /// The alias.
    pub name: String,
    /// The service, other alias or outside name that it leads to.
    pub target: String,
    /// Location of the alias.
    pub origin: Origin,
    /// Location of the target.
    target_origin: Origin,
}

impl ConfiguredAlias {
    /// Reads an entry of the section; `origin` returns the location of a byte of the file.
    pub(super) fn of_entry(
        name: &Spanned<DeString<'_>>,
        value: &Spanned<DeValue<'_>>,
        origin: impl Fn(usize) -> Origin,
    ) -> Result<Self, ConfigError> {
        let text = name.get_ref();
        let is_bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        let path = if !text.is_empty() && text.chars().all(is_bare) {
            format!("{ALIAS}.{text}")
        } else {
            format!("{ALIAS}.{}", quoted(text))
        };
        let (origin, target_origin) = (origin(name.span().start), origin(value.span().start));
        let why = match value.get_ref() {
            DeValue::String(target) => {
                let (name, target) = (text.to_string(), target.to_string());
                return Ok(Self { path, name, target, origin, target_origin });
            }
            // `www.svc = "hello"`
            DeValue::Table(_) => {
                "a name with dots must be in quotes, as in \"www.svc\" = \"hello\"".to_owned()
            }
            other => format!(
                "expected the name of a service or host, such as \"hello\", found a value of type \
                 {}",
                other.type_str()
            ),
        };
        Err(ConfigError::Invalid { origin: target_origin, key: path, why })
    }

    /// Returns the alias as a line of the section.
    pub fn line(&self) -> String {
        format!("{} = {}", quoted(&self.name), self.quoted_target())
    }

    /// Returns the target as the file writes it.
    pub fn quoted_target(&self) -> String {
        quoted(&self.target)
    }

    fn error(&self, origin: &Origin, text: &str, why: String) -> ConfigError {
        let origin = origin.clone();
        invalid(&RawValue { key: self.path.clone(), text: text.to_owned(), origin }, why)
    }
}

/// Checks all aliases, and follows aliases of aliases to their last targets.
pub(super) fn read(written: &[ConfiguredAlias], zones: &Zones) -> Result<Aliases, ConfigError> {
    let (mut targets, mut known) = (BTreeMap::new(), BTreeMap::<Box<str>, &ConfiguredAlias>::new());
    for alias in written {
        let error = |why| alias.error(&alias.origin, &alias.name, why);
        let base = match parse(&alias.name, zones).map_err(error)? {
            AliasTarget::Base(base) => base,
            AliasTarget::Outside(name) => {
                let why = format!(
                    "{name} is in no served zone, so it cannot be an alias: write {}{}, for \
                     example",
                    name,
                    zones.first().relative_text()
                );
                return Err(error(why));
            }
        };
        if let Some(other) = known.get(&base) {
            let why = format!("{} at {} is the same name", other.path, other.origin);
            return Err(error(why));
        }
        let target = parse(&alias.target, zones)
            .map_err(|why| alias.error(&alias.target_origin, &alias.target, why))?;
        targets.insert(base.clone(), target);
        known.insert(base, alias);
    }
    Aliases::new(&targets).map_err(|error| {
        let why = error.to_string();
        match error.bases().first().and_then(|base| known.get(base)) {
            Some(alias) => alias.error(&alias.target_origin, &alias.target, why),
            // Never happens: errors name known aliases only.
            None => ConfigError::Invalid { origin: Origin::Default, key: ALIAS.to_owned(), why },
        }
    })
}

/// Parses a name: a base in a served zone, or a name outside the zones.
///
/// A single label is a base, as is any name in a served zone, without that zone. A name with
/// several labels in no served zone, or with a final dot, is complete: it is outside the zones.
fn parse(text: &str, zones: &Zones) -> Result<AliasTarget, String> {
    let relative = text.strip_suffix('.').unwrap_or(text);
    if relative.parse::<IpAddr>().is_ok() {
        return Err(format!(
            "{text:?} is an address: an alias leads to a name; a [[static]] service has addresses"
        ));
    }
    let name = domain(text)?;
    let is_writable = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if name == Name::ROOT || !name.labels().flatten().all(is_writable) {
        return Err(format!(
            "{text:?} is not the name of a service or host, which has only a-z, 0-9, '-', '_' and \
             dots"
        ));
    }
    let is_complete = text.ends_with('.') || relative.contains('.');
    if is_complete && zones.find(&name).is_none() {
        return Ok(AliasTarget::Outside(Box::new(name)));
    }
    match base_of(relative, zones) {
        Ok(base) => Ok(AliasTarget::Base(base.text.into())),
        Err(error) => Err(format!("{text:?} cannot be a service: {error}")),
    }
}

/// Formats a text as a TOML string.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}
