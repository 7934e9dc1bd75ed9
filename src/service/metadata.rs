//! The metadata of a registration.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Serialize, Serializer};
use serde_json::Value;

/// A registration's metadata: string keys with JSON values.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Metadata {
    /// Sorted by key ignoring case, then by key, for lookups by DNS label.
    entries: Box<[(Box<str>, Value)]>,
    /// The result of [`Self::weight`], computed once.
    weight: u16,
}

impl Default for Metadata {
    fn default() -> Self {
        Self::new(BTreeMap::new())
    }
}

impl Metadata {
    /// Creates metadata from its entries.
    pub fn new(entries: BTreeMap<Box<str>, Value>) -> Self {
        let mut entries: Box<[_]> = entries.into_iter().collect();
        entries.sort_by(|(a, _), (b, _)| folded(a).cmp(folded(b)).then_with(|| a.cmp(b)));
        let weight = weight(&entries);
        Self { entries, weight }
    }

    /// Returns all entries with their values as text, sorted by key ignoring case.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Cow<'_, str>)> {
        self.entries.iter().map(|(key, value)| (&**key, text(value)))
    }

    /// Returns the value of a key as text: strings without quotes, others as JSON.
    ///
    /// Like DNS labels, keys are compared ignoring case. If several keys match, the first in
    /// bytewise order wins.
    pub fn text(&self, key: &str) -> Option<Cow<'_, str>> {
        self.find(key).map(text)
    }

    fn find(&self, key: &str) -> Option<&Value> {
        let at = self.entries.partition_point(|(name, _)| folded(name).lt(folded(key)));
        let entry = self.entries.get(at).filter(|(name, _)| name.eq_ignore_ascii_case(key));
        entry.map(|(_, value)| value)
    }

    /// Returns whether a key has this value as text, ignoring case.
    ///
    /// A list matches each of its elements and its own text as JSON.
    pub fn has(&self, key: &str, value: &str) -> bool {
        let is_equal = |text: Cow<'_, str>| text.eq_ignore_ascii_case(value);
        match self.find(key) {
            Some(Value::Array(list)) if list.iter().any(|element| is_equal(text(element))) => true,
            Some(found) => is_equal(text(found)),
            None => false,
        }
    }

    /// Returns the weight of the instance, 0-65535.
    ///
    /// The weight is the value of the key `weight`, a number or a numeric string, rounded and
    /// clamped. It is 1 if the value is missing or invalid.
    pub fn weight(&self) -> u16 {
        self.weight
    }

    /// Returns the number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl Serialize for Metadata {
    /// Serializes the entries as one object, with keys in bytewise order.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let sorted: BTreeMap<_, _> = self.entries.iter().map(|(key, value)| (key, value)).collect();
        serializer.collect_map(sorted)
    }
}

fn weight(entries: &[(Box<str>, Value)]) -> u16 {
    let number = match entries.iter().find(|(key, _)| &**key == "weight").map(|(_, value)| value) {
        Some(Value::Number(number)) => number.as_f64(),
        Some(Value::String(string)) => string.trim().parse::<f64>().ok(),
        _ => None,
    };
    match number {
        Some(number) if number.is_finite() => {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "clamped to the range of u16"
            )]
            let weight = number.round().clamp(0.0, f64::from(u16::MAX)) as u16;
            weight
        }
        _ => 1,
    }
}

fn folded(key: &str) -> impl Iterator<Item = u8> {
    key.bytes().map(|byte| byte.to_ascii_lowercase())
}

fn text(value: &Value) -> Cow<'_, str> {
    match value {
        Value::String(string) => Cow::Borrowed(string),
        other => Cow::Owned(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(json: &str) -> Metadata {
        Metadata::new(serde_json::from_str(json).unwrap())
    }

    #[test]
    fn weights_are_numbers_or_numeric_strings_and_clamped() {
        for (json, weight) in [
            ("{}", 1),
            (r#"{"weight":5}"#, 5),
            (r#"{"weight":"5"}"#, 5),
            (r#"{"weight":2.5}"#, 3),
            (r#"{"weight":-4}"#, 0),
            (r#"{"weight":"0"}"#, 0),
            (r#"{"weight":1e9}"#, 65535),
            (r#"{"weight":"inf"}"#, 1),
            (r#"{"weight":"heavy"}"#, 1),
            (r#"{"weight":true}"#, 1),
            (r#"{"weight":null}"#, 1),
        ] {
            assert_eq!(metadata(json).weight(), weight, "{json}");
        }
    }

    #[test]
    fn lists_have_each_of_their_elements() {
        let metadata = metadata(r#"{"tag":["Blue",2],"env":"gray"}"#);
        for (key, value, expected) in [
            ("tag", "blue", true),
            ("TAG", "2", true),
            ("tag", r#"["Blue",2]"#, true),
            ("tag", "green", false),
            ("env", "GRAY", true),
            ("env", "gra", false),
            ("absent", "", false),
        ] {
            assert_eq!(metadata.has(key, value), expected, "{key} {value}");
        }
    }

    #[test]
    fn values_are_returned_as_text() {
        let metadata = metadata(r#"{"insecure":true,"protocol":"http","n":5}"#);
        assert_eq!(metadata.text("insecure").as_deref(), Some("true"));
        assert_eq!(metadata.text("PROTOCOL").as_deref(), Some("http"));
        assert_eq!(metadata.text("n").as_deref(), Some("5"));
        assert_eq!(metadata.text("absent"), None);
        let folded = self::metadata(r#"{"Env":"a","ENV":"b","a":1,"Z":2}"#);
        assert_eq!(
            (folded.text("env").as_deref(), folded.text("z").as_deref()),
            (Some("b"), Some("2"))
        );
        assert_eq!(serde_json::to_string(&folded).unwrap(), r#"{"ENV":"b","Env":"a","Z":2,"a":1}"#);
    }
}
