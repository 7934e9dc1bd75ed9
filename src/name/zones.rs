//! The served zones.

use std::fmt;
use std::iter::Take;
use std::sync::Arc;

use super::labels::{Labels, Name, NameError};

/// Maximum number of zones.
///
/// The rank of a spelling must fit a byte; the bare name has a rank, too ([`super::Base`]).
const MAX_ZONES: usize = 255;

/// Maximum length of a zone in wire form, in bytes.
///
/// `dns-version.<zone>`, which is 12 bytes longer, must fit a name.
const MAX_ZONE_BYTES: usize = 255 - 12;

/// The served zones: at least one, all different. Cheap to clone.
///
/// All zones hold the same services. SRV targets, glue and PTR records use the first one.
#[derive(Clone, Debug)]
pub struct Zones {
    zones: Arc<[Zone]>,
}

/// A served zone: labels of `[a-z0-9_-]`, never the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    name: Name,
    text: Box<str>,
    label_count: usize,
}

/// Error in a list of zones.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ZonesError {
    /// The list is empty.
    #[error("there is no zone to serve: name at least one, such as \"svc\"")]
    NoZone,
    /// There are more than 255 zones.
    #[error("{0} zones are too many: at most 255 can be served (a fixed limit)")]
    TooMany(usize),
    /// The zone is the DNS root.
    #[error("the zone {0:?} is the root of the DNS: name a zone of its own, such as \"svc\"")]
    Root(String),
    /// The zone is not a domain name.
    #[error("the zone {zone:?} is not a domain name: {reason}")]
    Malformed {
        /// The zone as given.
        zone: String,
        /// Error in the name.
        reason: NameError,
    },
    /// The zone has characters that are not allowed in host names.
    #[error("the zone {0:?} may hold only a-z, 0-9, '-', '_' and dots")]
    Characters(String),
    /// The zone leaves no room for the names that every zone has.
    #[error(
        "the zone {0:?} is too long: \"dns-version\" in front of it must fit the 253 characters \
         of a name"
    )]
    TooLong(String),
}

impl Zones {
    /// Creates the list in the given order; a repeated zone counts once.
    ///
    /// Letters may be in any case, and the trailing dot is optional.
    ///
    /// # Errors
    /// Returns the first zone that cannot be served, or an error for an empty or too long list.
    pub fn new(zones: &[String]) -> Result<Self, ZonesError> {
        let mut kept: Vec<Zone> = Vec::with_capacity(zones.len());
        for text in zones {
            let zone = Zone::new(text)?;
            if !kept.contains(&zone) {
                kept.push(zone);
            }
        }
        match kept.len() {
            0 => Err(ZonesError::NoZone),
            1..=MAX_ZONES => Ok(Self { zones: kept.into() }),
            count => Err(ZonesError::TooMany(count)),
        }
    }

    /// Returns the zone that SRV targets, glue and PTR records use.
    pub fn first(&self) -> &Zone {
        &self.zones[0]
    }

    /// Returns the zones in the order given.
    pub fn iter(&self) -> std::slice::Iter<'_, Zone> {
        self.zones.iter()
    }

    /// Returns the number of zones, 1-255.
    #[expect(clippy::len_without_is_empty, reason = "there is always a zone")]
    pub fn len(&self) -> usize {
        self.zones.len()
    }

    /// Returns whether a zone is at or below a valid name in wire form.
    pub fn any_at_or_below(&self, wire: &[u8]) -> bool {
        self.zones.iter().any(|zone| {
            let below = zone.name.as_wire().len() >= wire.len();
            below && Name::from_wire(wire).is_ok_and(|(name, _)| zone.name.ends_with(&name))
        })
    }

    /// Returns the zone at an index of the list.
    pub fn get(&self, index: usize) -> Option<&Zone> {
        self.zones.get(index)
    }

    /// Splits a name at the longest zone that contains it.
    ///
    /// The name must be valid, in wire form and in lower case. Returns the index of the zone and
    /// the labels in front of it.
    pub fn split<'n>(&self, wire: &'n [u8]) -> Option<(usize, &'n [u8])> {
        let found = self.zones.iter().enumerate().filter_map(|(index, zone)| {
            let front = wire.strip_suffix(zone.name.as_wire())?;
            // The zone's bytes may also be the end of a longer label.
            let mut rest = front;
            while let Some((length, tail)) = rest.split_first() {
                rest = tail.get(usize::from(*length)..)?;
            }
            Some((index, front, zone.label_count))
        });
        found.max_by_key(|(_, _, label_count)| *label_count).map(|(index, front, _)| (index, front))
    }

    /// Returns the longest zone, by labels, that contains `name`, and its index.
    pub fn find(&self, name: &Name) -> Option<(usize, &Zone)> {
        self.zones
            .iter()
            .enumerate()
            .filter(|(_, zone)| name.ends_with(&zone.name))
            .max_by_key(|(_, zone)| zone.label_count)
    }
}

impl<'z> IntoIterator for &'z Zones {
    type Item = &'z Zone;
    type IntoIter = std::slice::Iter<'z, Zone>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl Zone {
    /// Parses one zone.
    fn new(text: &str) -> Result<Self, ZonesError> {
        let name = Name::from_text(text)
            .map_err(|reason| ZonesError::Malformed { zone: text.to_owned(), reason })?;
        let label_count = name.label_count();
        if label_count == 0 {
            return Err(ZonesError::Root(text.to_owned()));
        }
        let writable = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if !name.labels().flatten().all(writable) {
            return Err(ZonesError::Characters(text.to_owned()));
        }
        if name.as_wire().len() > MAX_ZONE_BYTES {
            return Err(ZonesError::TooLong(text.to_owned()));
        }
        Ok(Self { name, text: name.to_string().into(), label_count })
    }

    /// Returns the name of the apex.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Returns the labels of a name of this zone in front of the apex, in wire form.
    ///
    /// They are empty for a name that is not in the zone and shorter than the apex.
    pub fn labels_before<'n>(&self, name: &'n Name) -> &'n [u8] {
        let wire = name.as_wire();
        wire.get(..wire.len().saturating_sub(self.name.as_wire().len())).unwrap_or_default()
    }

    /// Returns the presentation form with its trailing dot: `svc.`.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns the presentation form without the trailing dot: `svc`.
    pub fn relative_text(&self) -> &str {
        self.text.trim_end_matches('.')
    }

    /// Returns the number of labels, at least 1, without the root label.
    pub fn label_count(&self) -> usize {
        self.label_count
    }

    /// Returns the labels of `name` in front of this zone, left to right.
    ///
    /// There are none if `name` is the apex or outside the zone.
    pub fn relative_labels<'n>(&self, name: &'n Name) -> Take<Labels<'n>> {
        let labels = name.labels();
        let count = if name.ends_with(&self.name) { labels.len() - self.label_count } else { 0 };
        labels.take(count)
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zones(texts: &[&str]) -> Result<Zones, ZonesError> {
        Zones::new(&texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>())
    }

    fn name(text: &str) -> Name {
        Name::from_text(text).unwrap()
    }

    #[test]
    fn the_zone_with_the_most_labels_wins() {
        let zones = zones(&["svc", "internal.svc", "corp.example"]).unwrap();
        let find = |text| zones.find(&name(text)).map(|(index, zone)| (index, zone.text()));
        assert_eq!(find("hello.SVC"), Some((0, "svc.")));
        assert_eq!(find("svc"), Some((0, "svc.")));
        assert_eq!(find("hello.internal.svc"), Some((1, "internal.svc.")));
        assert_eq!(find("internal.svc"), Some((1, "internal.svc.")));
        assert_eq!(find("xinternal.svc"), Some((0, "svc.")));
        assert_eq!(find("hello.corp.example"), Some((2, "corp.example.")));
        assert_eq!(find("example"), None);
        assert_eq!(find("hellosvc"), None);
        assert_eq!(find(r"hello\.svc"), None);
        assert_eq!(find("."), None);
    }

    #[test]
    fn relative_labels_exclude_the_zone() {
        let zones = zones(&["corp.example"]).unwrap();
        let name = name("a.b.corp.example");
        let front: Vec<&[u8]> = zones.first().relative_labels(&name).collect();
        assert_eq!(front, [b"a".as_slice(), b"b"]);
        assert_eq!(zones.first().relative_labels(zones.first().name()).count(), 0);
        assert_eq!(
            zones.first().relative_labels(&Name::from_text("a.b.c.d.e").unwrap()).count(),
            0
        );
    }

    #[test]
    fn duplicate_zones_count_once() {
        let zones = zones(&["svc", "SVC.", "internal", "svc"]).unwrap();
        assert_eq!(zones.iter().map(Zone::text).collect::<Vec<_>>(), ["svc.", "internal."]);
        assert_eq!((zones.len(), zones.first().relative_text()), (2, "svc"));
    }

    #[test]
    fn errors_name_the_bad_zone() {
        assert_eq!(zones(&[]).unwrap_err(), ZonesError::NoZone);
        assert_eq!(zones(&["svc", "."]).unwrap_err(), ZonesError::Root(".".to_owned()));
        let empty =
            ZonesError::Malformed { zone: "a..b".to_owned(), reason: NameError::EmptyLabel };
        assert_eq!(empty.to_string(), "the zone \"a..b\" is not a domain name: a label is empty");
        assert_eq!(zones(&["svc", "a..b"]).unwrap_err(), empty);
        assert!(matches!(zones(&[""]), Err(ZonesError::Malformed { .. })));
        for bad in ["my zone", r"a\.b", "*.svc", "é"] {
            assert_eq!(zones(&[bad]).unwrap_err(), ZonesError::Characters(bad.to_owned()));
        }
        let label = "a".repeat(59);
        let longest = [&*label; 4].join(".") + ".a";
        assert_eq!(zones(&[&longest]).unwrap().first().name().as_wire().len(), MAX_ZONE_BYTES);
        let longer = longest + "a";
        assert_eq!(zones(&[&longer]).unwrap_err(), ZonesError::TooLong(longer));
        let many: Vec<String> = (0..256).map(|number| format!("z{number}")).collect();
        assert!(Zones::new(&many[..255]).is_ok());
        assert_eq!(Zones::new(&many).unwrap_err(), ZonesError::TooMany(256));
    }
}
