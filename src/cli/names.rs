//! Names as people write them.

use std::net::IpAddr;

use anyhow::{Context, anyhow};

use crate::name::{Name, Zones, reverse_name};
use crate::wire::{rtype, type_number};

/// The name meant: an address means its reverse name; a name with a final dot, in a served zone or below `arpa` is taken
/// as it is; any other one lies in the first zone.
pub(super) fn meant(text: &str, zones: &Zones) -> anyhow::Result<Name> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(reverse_name(address));
    }
    let name = Name::from_text(text).with_context(|| format!("{text:?} is not a name"))?;
    let is_whole = text.ends_with('.') || zones.find(&name).is_some() || is_reverse(&name);
    if is_whole {
        return Ok(name);
    }
    let whole = format!("{text}.{}", zones.first().text());
    Name::from_text(&whole).map_err(|error| anyhow!("{whole:?} is not a name: {error}"))
}

/// The base in front of the zone, or the text itself.
pub(super) fn base(text: &str, zones: &Zones) -> anyhow::Result<String> {
    let name = meant(text, zones)?.to_string();
    let zone = zones.iter().map(crate::name::Zone::text).filter(|zone| name.ends_with(&format!(".{zone}"))).max_by_key(|zone| zone.len());
    Ok(zone.map_or(name.as_str(), |zone| &name[..name.len() - zone.len() - 1]).to_owned())
}

/// Whether a type need not be said: only an address means PTR.
pub(super) fn is_reverse(name: &Name) -> bool {
    name.labels().next_back().is_some_and(|label| label == b"arpa")
}

/// The record type meant: without one, PTR for a reverse name and A for any other.
pub(super) fn rtype(text: Option<&str>, name: &Name) -> anyhow::Result<u16> {
    match text {
        Some(text) => {
            type_number(text).with_context(|| format!("{text:?} is not a type of record such as A, AAAA, SRV, TXT, PTR or TYPE65"))
        }
        None if is_reverse(name) => Ok(rtype::PTR),
        None => Ok(rtype::A),
    }
}

/// What to say when a name that was taken to lie in a zone does not exist there: perhaps another one was meant.
pub(super) fn hint(text: &str, taken: &str) -> Option<String> {
    let completed = taken.len() > text.len() + 1 && taken.to_ascii_lowercase().starts_with(&text.to_ascii_lowercase());
    (completed && text.contains('.')).then(|| format!("for the name outside the served zones write a dot at its end: {text}."))
}

/// Zones by their texts.
pub(super) fn zones(texts: &[String]) -> anyhow::Result<Zones> {
    Ok(Zones::new(texts)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_may_lie_elsewhere_gets_a_hint() {
        assert!(hint("www.example.com", "www.example.com.svc.").is_some_and(|hint| hint.ends_with("www.example.com.")));
        for (text, taken) in
            [("hello", "hello.svc."), ("hello.svc", "hello.svc."), ("example.com.", "example.com."), ("10.0.0.1", "1.0.0.10.in-addr.arpa.")]
        {
            assert_eq!(hint(text, taken), None, "{text}");
        }
    }

    #[test]
    fn names_with_and_without_zone() {
        let zones = zones(&["svc".to_owned(), "internal.example".to_owned()]).unwrap();
        for (text, whole) in [
            ("hello", "hello.svc."),
            ("hello.svc", "hello.svc."),
            ("hello.SVC.", "hello.svc."),
            ("hello.prod", "hello.prod.svc."),
            ("hello.internal.example", "hello.internal.example."),
            ("example.com.", "example.com."),
            ("svc", "svc."),
            ("10.0.0.1", "1.0.0.10.in-addr.arpa."),
            ("1.0.0.10.in-addr.arpa", "1.0.0.10.in-addr.arpa."),
        ] {
            assert_eq!(meant(text, &zones).unwrap().to_string(), whole, "{text}");
        }
        assert!(meant("a..b", &zones).is_err());
        assert_eq!(base("Hello.svc", &zones).unwrap(), "hello");
        assert_eq!(base("a.b", &zones).unwrap(), "a.b");
        assert_eq!(base("hello.internal.example", &zones).unwrap(), "hello");
    }
}
