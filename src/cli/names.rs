//! Names on the command line.

use std::net::IpAddr;

use anyhow::{Context, anyhow};

use crate::name::{Name, Zones, reverse_name};
use crate::wire::{rtype, type_number};

/// Completes a name given on the command line.
///
/// An address becomes its reverse name. A name with a trailing dot, in a served zone or below
/// `arpa` is complete. Any other name is placed in the first zone.
pub(super) fn complete(text: &str, zones: &Zones) -> anyhow::Result<Name> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(reverse_name(address));
    }
    let name = Name::from_text(text).with_context(|| format!("{text:?} is not a name"))?;
    let is_complete = text.ends_with('.') || zones.find(&name).is_some() || is_reverse(&name);
    if is_complete {
        return Ok(name);
    }
    let completed = format!("{text}.{}", zones.first().text());
    Name::from_text(&completed).map_err(|error| anyhow!("{completed:?} is not a name: {error}"))
}

/// Returns a name without its zone; the whole name if it is in no served zone.
pub(super) fn base(text: &str, zones: &Zones) -> anyhow::Result<String> {
    let name = complete(text, zones)?.to_string();
    let zone = zones
        .iter()
        .map(crate::name::Zone::text)
        .filter(|zone| name.ends_with(&format!(".{zone}")))
        .max_by_key(|zone| zone.len());
    Ok(zone.map_or(name.as_str(), |zone| &name[..name.len() - zone.len() - 1]).to_owned())
}

/// Returns whether a name is below `arpa`, where the default type is PTR.
pub(super) fn is_reverse(name: &Name) -> bool {
    name.labels().next_back().is_some_and(|label| label == b"arpa")
}

/// Parses a record type; the default is PTR for a reverse name and A for any other.
pub(super) fn rtype(text: Option<&str>, name: &Name) -> anyhow::Result<u16> {
    match text {
        Some(text) => type_number(text).with_context(|| {
            format!("{text:?} is not a record type such as A, AAAA, SRV, TXT, PTR or TYPE65")
        }),
        None if is_reverse(name) => Ok(rtype::PTR),
        None => Ok(rtype::A),
    }
}

/// Returns a hint if a name may have been meant as one outside the zones.
///
/// `completed` is the name in a zone, which does not exist.
pub(super) fn hint(text: &str, completed: &str) -> Option<String> {
    let was_completed = completed.len() > text.len() + 1
        && completed.to_ascii_lowercase().starts_with(&text.to_ascii_lowercase());
    (was_completed && text.contains('.'))
        .then(|| format!("for the name outside the served zones, add a trailing dot: {text}."))
}

/// Formats the error `no service helo; did you mean hello?`.
pub(super) fn unknown_service(name: &str, suggestion: Option<&str>) -> String {
    match suggestion {
        Some(suggestion) => format!("no service {name}; did you mean {suggestion}?"),
        None => format!("no service {name}"),
    }
}

/// Parses served zones.
pub(super) fn zones(texts: &[String]) -> anyhow::Result<Zones> {
    Ok(Zones::new(texts)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_may_be_outside_the_zones_get_a_hint_when_completed() {
        assert!(
            hint("www.example.com", "www.example.com.svc.")
                .is_some_and(|hint| hint.ends_with("www.example.com."))
        );
        for (text, completed) in [
            ("hello", "hello.svc."),
            ("hello.svc", "hello.svc."),
            ("example.com.", "example.com."),
            ("10.0.0.1", "1.0.0.10.in-addr.arpa."),
        ] {
            assert_eq!(hint(text, completed), None, "{text}");
        }
    }

    #[test]
    fn names_are_completed_with_the_first_zone() {
        let zones = zones(&["svc".to_owned(), "internal.example".to_owned()]).unwrap();
        for (text, completed) in [
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
            assert_eq!(complete(text, &zones).unwrap().to_string(), completed, "{text}");
        }
        assert!(complete("a..b", &zones).is_err());
        assert_eq!(base("Hello.svc", &zones).unwrap(), "hello");
        assert_eq!(base("a.b", &zones).unwrap(), "a.b");
        assert_eq!(base("hello.internal.example", &zones).unwrap(), "hello");
    }
}
