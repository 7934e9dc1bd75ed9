//! A configuration file in TOML, with the location of each value.

use std::path::Path;

use toml::Spanned;
use toml::de::{DeInteger, DeString, DeTable, DeValue};

use super::error::{ConfigError, Origin};
use super::key::{Key, ValueForm};
use super::keys;
use super::layers::RawValue;

/// Prefix of the names of registry sections, without the dot.
pub(super) const REGISTRY: &str = "registry";

/// A configuration file to parse.
pub(super) struct ConfigFile<'a> {
    pub(super) path: &'a Path,
    pub(super) text: &'a str,
    /// Byte offset of each line; ascending, the first is 0.
    lines: Vec<usize>,
}

impl<'a> ConfigFile<'a> {
    /// Creates a file from its text. Only messages use `path`.
    pub(super) fn new(path: &'a Path, text: &'a str) -> Self {
        let lines = text.match_indices('\n').map(|(at, _)| at + 1);
        Self { path, text, lines: std::iter::once(0).chain(lines).collect() }
    }

    /// Returns the location of a byte offset.
    pub(super) fn origin(&self, offset: usize) -> Origin {
        let (line, column) = self.line_and_column(offset);
        Origin::File { path: self.path.to_owned(), line, column }
    }

    /// Converts a byte offset to a line and a column in characters, both from 1.
    pub(super) fn line_and_column(&self, offset: usize) -> (usize, usize) {
        let line = self.lines.partition_point(|start| *start <= offset);
        let start = self.lines.get(line.saturating_sub(1)).copied().unwrap_or_default();
        let column = self.text.get(start..offset).map_or(0, |before| before.chars().count());
        (line, column + 1)
    }

    /// Reads the value of a key. `path` is the key as written.
    pub(super) fn items(
        &self,
        key: &Key,
        path: &str,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<Vec<RawValue>, ConfigError> {
        if let (true, DeValue::Array(array)) = (key.form.is_list(), value.get_ref()) {
            return array
                .iter()
                .map(|item| match (key.form, item.get_ref()) {
                    (ValueForm::List, DeValue::String(text)) => {
                        Ok(self.raw_value(path, text, item))
                    }
                    (ValueForm::NumberList, DeValue::Integer(number)) => {
                        Ok(self.raw_value(path, &integer(number), item))
                    }
                    _ => Err(self.wrong_type(key, path, item)),
                })
                .collect();
        }
        let text = match (key.form, value.get_ref()) {
            (
                ValueForm::Text
                | ValueForm::Duration
                | ValueForm::Size
                | ValueForm::TextOrNumber
                | ValueForm::List,
                DeValue::String(text),
            ) => text.to_string(),
            (
                ValueForm::Number | ValueForm::TextOrNumber | ValueForm::NumberList,
                DeValue::Integer(number),
            ) => integer(number),
            (ValueForm::Bool, DeValue::Boolean(value)) => value.to_string(),
            _ => return Err(self.wrong_type(key, path, value)),
        };
        Ok(vec![self.raw_value(path, &text, value)])
    }

    pub(super) fn raw_value(
        &self,
        path: &str,
        text: &str,
        value: &Spanned<DeValue<'_>>,
    ) -> RawValue {
        RawValue {
            key: path.to_owned(),
            text: text.to_owned(),
            origin: self.origin(value.span().start),
        }
    }

    /// Returns the error for a value of the wrong type.
    pub(super) fn wrong_type(
        &self,
        key: &Key,
        path: &str,
        value: &Spanned<DeValue<'_>>,
    ) -> ConfigError {
        let found = value.get_ref();
        let mut why = format!(
            "expected {}, found a value of type {}",
            key.form.description(),
            found.type_str()
        );
        // Other programs write a list of sections in this form, `[[registry]]`.
        if key == keys::REGISTRY && found.is_table() {
            why = format!(
                "a registry with keys of its own needs a section with a name, such as \
                 [{REGISTRY}.main]"
            );
        }
        ConfigError::Invalid { origin: self.origin(value.span().start), key: path.to_owned(), why }
    }
}

/// Returns an integer in decimal digits.
fn integer(number: &DeInteger<'_>) -> String {
    i64::from_str_radix(number.as_str(), number.radix())
        .map_or_else(|_| number.as_str().to_owned(), |number| number.to_string())
}

/// Iterates in the order of the file, so that the first error is reported.
pub(super) fn in_order<'a, 'i>(
    table: &'a DeTable<'i>,
) -> impl Iterator<Item = (&'a Spanned<DeString<'i>>, &'a Spanned<DeValue<'i>>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(name, _)| name.span().start);
    entries.into_iter()
}
