//! The naming grammar both ways: the base a registered name gives, and what a name asks for.
//!
//! Existence follows RFC 8020 (every label above a published name exists), `_<protocol>._tcp` follows RFC 2782.

use std::borrow::Cow;

use super::addresses::instance_address;
use super::zones::Zones;

/// Longest name in characters, the trailing dot not counted: 255 octets in wire form (RFC 1035 section 2.3.4).
const MAX_TEXT_LENGTH: usize = 253;

/// Longest label (RFC 1035 section 2.3.4).
const MAX_LABEL_BYTES: usize = 63;

/// Bases that names of the zone itself take: its name server and its version.
const RESERVED_BASES: [&str; 2] = ["ns", "dns-version"];

/// The name under which a registered service is published in every zone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Base {
    /// The registered name in lower case, less a served zone's suffix: `hello`. May hold dots.
    pub text: String,
    /// Which spelling is registered, the lowest wins: the place of the zone whose suffix was taken off, or the number of
    /// zones for a bare name.
    pub rank: u8,
}

/// Why a registered name cannot be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BaseError {
    /// Labels are 1-63 of `[a-z0-9_-]`, and none begins with `_`.
    #[error(
        "the name is not a DNS name: labels of 1 to 63 of a-z, 0-9, '-' and '_', none beginning with '_'"
    )]
    NotDns,
    /// Over 253 characters with the longest zone.
    #[error("the name is too long for DNS (253 characters with its zone)")]
    TooLong,
    /// A zone itself, `ns` or `dns-version`.
    #[error("the name is reserved")]
    Reserved,
}

/// The base that a registered name gives. A suffix of any served zone is taken off, once, the longest by labels; names that
/// differ only by case have one base. Names of instances and selectors in front of it may not fit 253 any more: those are
/// not this function's concern.
///
/// # Errors
/// [`BaseError::NotDns`], also for a trailing dot; [`BaseError::Reserved`]; [`BaseError::TooLong`].
pub fn base_of(registered: &str, zones: &Zones) -> Result<Base, BaseError> {
    let mut text = registered.to_ascii_lowercase();
    let mut rank = zones.len();
    let mut longest_zone_labels = 0;
    let mut end = text.len();
    for (place, zone) in zones.iter().enumerate() {
        let Some(front) = text.strip_suffix(zone.relative_text()) else { continue };
        if front.is_empty() {
            return Err(BaseError::Reserved);
        }
        if front.ends_with('.') && zone.label_count() > longest_zone_labels {
            (rank, longest_zone_labels, end) = (place, zone.label_count(), front.len() - 1);
        }
    }
    text.truncate(end);
    if !text.split('.').all(is_base_label) {
        return Err(BaseError::NotDns);
    }
    if RESERVED_BASES.contains(&&*text) {
        return Err(BaseError::Reserved);
    }
    let longest_zone =
        zones.iter().map(|zone| zone.relative_text().len()).max().unwrap_or_default();
    if text.len() + 1 + longest_zone > MAX_TEXT_LENGTH {
        return Err(BaseError::TooLong);
    }
    // `Zones` holds at most 255.
    Ok(Base { text, rank: u8::try_from(rank).unwrap_or(u8::MAX) })
}

/// Whether a base may have this label, lower-cased.
fn is_base_label(label: &str) -> bool {
    let writable = |octet: u8| {
        octet.is_ascii_lowercase() || octet.is_ascii_digit() || matches!(octet, b'-' | b'_')
    };
    (1..=MAX_LABEL_BYTES).contains(&label.len())
        && !label.starts_with('_')
        && label.bytes().all(writable)
}

/// What the labels in front of a zone ask for, before it is known which services there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsedName<'a> {
    /// The protocol or port of `_<protocol>._tcp.…`, without its `_` (RFC 2782).
    pub rfc2782: Option<&'a [u8]>,
    /// The selectors, left to right. All must hold.
    pub selectors: Vec<Selector<'a>>,
    /// What stands behind RFC 2782 labels and selectors: see [`readings`]. With `tcp_of_base`, the labels of a base.
    pub rest: Cow<'a, [&'a [u8]]>,
    /// The name itself answers nothing, but names below it do: `_env.hello.svc`, `_tcp.hello.svc`. It exists when the
    /// service does; with `tcp_of_base`, when a base of more labels ends with `rest`.
    pub non_terminal: bool,
    /// `_<base>._tcp` in front of the zone: the service `rest`, all of it the base, in the configured deployment and namespace.
    pub tcp_of_base: bool,
}

/// One `<value>._<key>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector<'a> {
    /// The key without its `_`, at least one octet.
    pub key: &'a [u8],
    /// The labels of the value, joined by dots. Empty where `impossible`.
    pub value: String,
    /// No metadata can have this value: a label holds a dot, which is no separator, or the octets are not UTF-8.
    pub unsatisfiable: bool,
}

/// Parses the labels in front of a zone, lower-cased, left to right. `None` when no row of the grammar reads them: the name
/// does not exist. The apex, no labels at all, is not this function's: `None`.
///
/// Up to the rightmost label that begins with `_` stands the chain: `_<protocol>._tcp`, at its left end only, then selectors.
pub fn parse_labels<'a>(labels: &'a [&'a [u8]]) -> Option<ParsedName<'a>> {
    // `_` alone has no key, protocol or base behind it.
    if labels.contains(&b"_".as_slice()) {
        return None;
    }
    let length = labels
        .iter()
        .rposition(|label| strip_underscore(label).is_some())
        .map_or(0, |last| last + 1);
    let (chain, rest) = labels.split_at(length);
    if rest.is_empty() {
        return tcp_of_base(chain);
    }
    let (rfc2782, non_terminal, mut chain) = match chain {
        [first, tcp, chain @ ..] if strip_underscore(first).is_some() && *tcp == b"_tcp" => {
            (strip_underscore(first), false, chain)
        }
        [first, chain @ ..] if strip_underscore(first).is_some() => (None, true, chain),
        chain => (None, false, chain),
    };
    let mut selectors = Vec::new();
    while !chain.is_empty() {
        let values = chain.iter().position(|label| strip_underscore(label).is_some())?;
        let key = strip_underscore(chain[values])?;
        if values == 0 {
            return None;
        }
        selectors.push(Selector::new(key, &chain[..values]));
        chain = &chain[values + 1..];
    }
    Some(ParsedName {
        rfc2782,
        selectors,
        rest: Cow::Borrowed(rest),
        non_terminal,
        tcp_of_base: false,
    })
}

/// Parses `_<base>._tcp` and the names above it: `_a.b._tcp`, `b._tcp`, `_tcp`.
fn tcp_of_base<'a>(chain: &'a [&'a [u8]]) -> Option<ParsedName<'a>> {
    let (&b"_tcp", base) = chain.split_last()? else { return None };
    let spelled =
        base.split_first().and_then(|(first, others)| Some((strip_underscore(first)?, others)));
    let (non_terminal, rest) = match spelled {
        Some((first, others)) => {
            (false, [first].into_iter().chain(others.iter().copied()).collect())
        }
        None => (true, Cow::Borrowed(base)),
    };
    // A base has no label that is empty or begins with `_`.
    if rest.iter().any(|label| label.is_empty() || strip_underscore(label).is_some()) {
        return None;
    }
    Some(ParsedName { rfc2782: None, selectors: Vec::new(), rest, non_terminal, tcp_of_base: true })
}

/// What follows the `_` of a label that begins with one.
fn strip_underscore(label: &[u8]) -> Option<&[u8]> {
    label.strip_prefix(b"_")
}

impl<'a> Selector<'a> {
    /// Joins the labels of the value.
    fn new(key: &'a [u8], labels: &[&[u8]]) -> Self {
        let value = if labels.iter().any(|label| label.contains(&b'.')) {
            None
        } else {
            String::from_utf8(labels.join(&b'.')).ok()
        };
        Self { key, unsatisfiable: value.is_none(), value: value.unwrap_or_default() }
    }
}

/// Where a service is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceScope<'a> {
    /// In the configured deployment and namespace.
    Configured,
    /// In this namespace of the configured deployment.
    Namespace(&'a [u8]),
    /// In this deployment and namespace.
    Full {
        /// The namespace.
        namespace: &'a [u8],
        /// The deployment.
        deployment: &'a [u8],
    },
}

/// One way to read labels: `[instance.][version.]base[.namespace[.deployment]]`. A namespace or deployment whose text holds
/// a dot cannot be asked for this way, only by a selector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interpretation<'a> {
    /// The labels of the base, at least one.
    pub base: &'a [&'a [u8]],
    /// Where the service is looked for.
    pub scope: ServiceScope<'a>,
    /// The instance, a label that [`instance_address`] reads.
    pub instance: Option<&'a [u8]>,
    /// The labels of the version, at least one; compared label by label with the version's text cut at its dots.
    pub version: Option<&'a [&'a [u8]]>,
}

/// Every way to read the labels behind the chain, the best first, made as they are asked for: the base alone; the base and
/// a namespace, then a deployment too; then what has an instance or a version in front, the longest base first, of equal
/// bases the fewest labels behind it. A first label that looks like an instance is one, never the beginning of a version.
/// Bases of more than `longest_base` labels are left out.
///
/// At most three for each length of a base and three more: some 380 for the longest name there is.
pub fn interpretations<'a>(
    rest: &'a [&'a [u8]],
    longest_base: usize,
) -> impl Iterator<Item = Interpretation<'a>> {
    let plain = (0..=2).filter_map(move |behind| {
        let (base, scope) = scoped(rest, behind)?;
        (base.len() <= longest_base).then_some(Interpretation {
            base,
            scope,
            instance: None,
            version: None,
        })
    });
    let instance = rest.first().copied().filter(|first| instance_address(first).is_some());
    let longest_prefixed = longest_base.min(rest.len().saturating_sub(1));
    let prefixed = (1..=longest_prefixed)
        .rev()
        .flat_map(move |length| (0..=2).map(move |behind| (length, behind)))
        .flat_map(move |(length, behind)| {
            let found = scoped(rest, behind).filter(|(labels, _)| labels.len() > length);
            found.into_iter().flat_map(move |(labels, scope)| {
                let (front, base) = labels.split_at(labels.len() - length);
                let version = |labels: &'a [&'a [u8]]| (!labels.is_empty()).then_some(labels);
                let version =
                    if instance.is_some() { version(&front[1..]) } else { version(front) };
                [Interpretation { base, scope, instance, version }]
            })
        });
    plain.chain(prefixed)
}

/// Takes as many labels off the right as a scope of this size has (0-2); none when no label is left in front.
fn scoped<'a>(labels: &'a [&'a [u8]], behind: usize) -> Option<(&'a [&'a [u8]], ServiceScope<'a>)> {
    let (front, scope) = match (behind, labels) {
        (0, front) => (front, ServiceScope::Configured),
        (1, [front @ .., namespace]) => (front, ServiceScope::Namespace(namespace)),
        (2, [front @ .., namespace, deployment]) => {
            (front, ServiceScope::Full { namespace, deployment })
        }
        _ => return None,
    };
    (!front.is_empty()).then_some((front, scope))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn zones(texts: &[&str]) -> Zones {
        Zones::new(&texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>()).unwrap()
    }

    /// `text rank`, or the error.
    fn base(registered: &str, served: &[&str]) -> Result<(String, u8), BaseError> {
        base_of(registered, &zones(served)).map(|base| (base.text, base.rank))
    }

    fn labels(text: &str) -> Vec<&[u8]> {
        text.split('.').map(str::as_bytes).collect()
    }

    fn text(labels: &[&[u8]]) -> String {
        String::from_utf8(labels.join(&b'.')).unwrap()
    }

    /// What is asked, in one line: `tcp=… key=value … | rest`, then what else holds.
    fn ask(name: &str) -> Option<String> {
        let labels = labels(name);
        let parsed = parse_labels(&labels)?;
        let mut words: Vec<String> =
            parsed.rfc2782.iter().map(|label| format!("tcp={}", text(&[label]))).collect();
        for Selector { key, value, unsatisfiable } in &parsed.selectors {
            assert!(!unsatisfiable, "{name}");
            words.push(format!("{}={value}", text(&[key])));
        }
        words.push(format!("| {}", text(&parsed.rest)));
        words.extend(parsed.tcp_of_base.then(|| "tcp_of_base".to_owned()));
        words.extend(parsed.non_terminal.then(|| "non_terminal".to_owned()));
        Some(words.join(" "))
    }

    /// The readings, a line each: `instance/version/base/namespace/deployment`.
    fn read(name: &str, longest_base: usize) -> Vec<String> {
        let line = |interpretation: Interpretation<'_>| {
            let instance = interpretation.instance.map_or_else(String::new, |label| text(&[label]));
            let version = interpretation.version.map_or_else(String::new, text);
            let (namespace, deployment): (&[u8], &[u8]) = match interpretation.scope {
                ServiceScope::Configured => (b"", b""),
                ServiceScope::Namespace(namespace) => (namespace, b""),
                ServiceScope::Full { namespace, deployment } => (namespace, deployment),
            };
            format!(
                "{instance}/{version}/{}/{}/{}",
                text(interpretation.base),
                text(&[namespace]),
                text(&[deployment])
            )
        };
        interpretations(&labels(name), longest_base).map(line).collect()
    }

    #[test]
    fn a_zone_suffix_is_taken_off_and_ranks() {
        assert_eq!(base("hello.svc", &["svc"]), Ok(("hello".to_owned(), 0)));
        assert_eq!(base("hello", &["svc"]), Ok(("hello".to_owned(), 1)));
        assert_eq!(base("Hello.SVC", &["svc"]), Ok(("hello".to_owned(), 0)));
        assert_eq!(base("hello.internal", &["svc", "internal"]), Ok(("hello".to_owned(), 1)));
        assert_eq!(base("hello", &["svc", "internal"]), Ok(("hello".to_owned(), 2)));
        assert_eq!(base("a.b.corp.example", &["svc", "corp.example"]), Ok(("a.b".to_owned(), 1)));
        // Once, and by labels.
        assert_eq!(base("hello.svc.svc", &["svc"]), Ok(("hello.svc".to_owned(), 0)));
        assert_eq!(base("hellosvc", &["svc"]), Ok(("hellosvc".to_owned(), 1)));
        // The longest zone, wherever it stands in the list.
        assert_eq!(
            base("hello.internal.svc", &["svc", "internal.svc"]),
            Ok(("hello".to_owned(), 1))
        );
        assert_eq!(
            base("hello.internal.svc", &["internal.svc", "svc"]),
            Ok(("hello".to_owned(), 0))
        );
        assert_eq!(
            base("hello.xinternal.svc", &["internal.svc", "svc"]),
            Ok(("hello.xinternal".to_owned(), 1))
        );
        assert_eq!(base("hello._x", &["_x"]), Ok(("hello".to_owned(), 0)));
    }

    #[test]
    fn any_dns_name_is_carried() {
        for carried in
            ["www.google.com", "localhost", "10-0-0-1", "1", "-", "a_b.c-d", "ns.a", "a.ns"]
        {
            assert_eq!(base(carried, &["svc"]), Ok((carried.to_owned(), 1)));
        }
        let label = "a".repeat(63);
        assert_eq!(base(&label, &["svc"]), Ok((label, 1)));
    }

    #[test]
    fn what_dns_cannot_write_is_not_carried() {
        let long = "a".repeat(64);
        for bad in [
            "",
            ".",
            "hello.",
            "hello.svc.",
            ".svc",
            "..svc",
            "a..b",
            "_a",
            "a._tcp",
            "a b",
            "a:b",
            "é",
            "a/b",
            "a\\.b",
            "*",
            "a\0",
            &long,
        ] {
            assert_eq!(base(bad, &["svc"]), Err(BaseError::NotDns), "{bad:?}");
        }
    }

    #[test]
    fn names_of_the_zone_are_reserved() {
        for reserved in [
            "ns",
            "NS.svc",
            "dns-version",
            "dns-version.internal.svc",
            "svc",
            "SVC",
            "internal.svc",
        ] {
            assert_eq!(
                base(reserved, &["svc", "internal.svc"]),
                Err(BaseError::Reserved),
                "{reserved}"
            );
        }
        assert_eq!(base("internal", &["svc", "internal.svc"]), Ok(("internal".to_owned(), 2)));
    }

    #[test]
    fn a_base_fits_every_zone() {
        let long = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(57)].join(".");
        assert_eq!(long.len() + ".svc".len(), MAX_TEXT_LENGTH);
        assert_eq!(base(&format!("{long}.svc"), &["svc"]), Ok((long.clone(), 0)));
        assert_eq!(base(&format!("{long}d.svc"), &["svc"]), Err(BaseError::TooLong));
        assert_eq!(base(&format!("{long}.svc"), &["svc", "internal"]), Err(BaseError::TooLong));
    }

    #[test]
    fn names_without_a_chain_are_all_rest() {
        assert_eq!(ask("hello").as_deref(), Some("| hello"));
        assert_eq!(ask("v1.2.0.hello.prod.eu").as_deref(), Some("| v1.2.0.hello.prod.eu"));
        assert_eq!(parse_labels(&[]), None);
    }

    #[test]
    fn selectors_stand_left_to_right() {
        assert_eq!(ask("gray._env.hello").as_deref(), Some("env=gray | hello"));
        assert_eq!(
            ask("v1.2.0._version.prod._namespace.hello").as_deref(),
            Some("version=v1.2.0 namespace=prod | hello")
        );
        assert_eq!(
            ask("8080._port.10-0-0-1._instance.v1.hello.prod.eu").as_deref(),
            Some("port=8080 instance=10-0-0-1 | v1.hello.prod.eu")
        );
        assert_eq!(ask("true._insecure.hello").as_deref(), Some("insecure=true | hello"));
        assert_eq!(ask("x._tcp.hello").as_deref(), Some("tcp=x | hello"));
        assert_eq!(ask("x.__a.hello").as_deref(), Some("_a=x | hello"));
        // Values end where the next key does: a value may look like anything else.
        assert_eq!(ask("0._ver.hello").as_deref(), Some("ver=0 | hello"));
    }

    #[test]
    fn values_that_metadata_cannot_have() {
        let labels: [&[u8]; 3] = [b"v1.2", b"_version", b"hello"];
        let parsed = parse_labels(&labels).unwrap();
        assert!(parsed.selectors[0].unsatisfiable);
        assert_eq!(parsed.selectors[0].value, "");
        // The two octets of one character, apart.
        let labels: [&[u8]; 4] = [b"\xC3", b"\xA9", b"_env", b"hello"];
        assert!(parse_labels(&labels).unwrap().selectors[0].unsatisfiable);
        let labels: [&[u8]; 3] = ["é".as_bytes(), b"_env", b"hello"];
        let parsed = parse_labels(&labels).unwrap();
        assert_eq!((&*parsed.selectors[0].value, parsed.selectors[0].unsatisfiable), ("é", false));
    }

    #[test]
    fn rfc_2782_stands_at_the_left_end() {
        assert_eq!(ask("_http._tcp.hello").as_deref(), Some("tcp=http | hello"));
        assert_eq!(ask("_8080._tcp.hello.prod").as_deref(), Some("tcp=8080 | hello.prod"));
        assert_eq!(ask("_http._tcp.gray._env.hello").as_deref(), Some("tcp=http env=gray | hello"));
        assert_eq!(ask("_tcp._tcp.hello").as_deref(), Some("tcp=tcp | hello"));
        assert_eq!(ask("x._http._tcp.hello"), None);
        assert_eq!(ask("_http._udp.hello"), None);
        assert_eq!(ask("gray._env._http._tcp.hello"), None);
    }

    #[test]
    fn empty_non_terminals_of_the_chain() {
        assert_eq!(ask("_tcp.hello").as_deref(), Some("| hello non_terminal"));
        assert_eq!(ask("_env.hello").as_deref(), Some("| hello non_terminal"));
        assert_eq!(ask("_zone.gray._env.hello").as_deref(), Some("env=gray | hello non_terminal"));
        assert_eq!(ask("_tcp.gray._env.hello").as_deref(), Some("env=gray | hello non_terminal"));
    }

    #[test]
    fn rfc_2782_of_a_base() {
        assert_eq!(ask("_hello._tcp").as_deref(), Some("| hello tcp_of_base"));
        assert_eq!(ask("_a.b._tcp").as_deref(), Some("| a.b tcp_of_base"));
        assert_eq!(ask("b._tcp").as_deref(), Some("| b tcp_of_base non_terminal"));
        assert_eq!(ask("_tcp").as_deref(), Some("|  tcp_of_base non_terminal"));
        assert_eq!(ask("_tcp._tcp").as_deref(), Some("| tcp tcp_of_base"));
        for unread in [
            "_a._b._tcp",
            "x._hello._tcp",
            "_http._tcp._hello._tcp",
            "gray._env._hello._tcp",
            "_.b._tcp",
            "__a._tcp",
            "_hello._udp",
        ] {
            assert_eq!(ask(unread), None, "{unread}");
        }
    }

    #[test]
    fn what_no_row_reads() {
        for unread in [
            "_a",
            "x._a",
            "_a._b.hello",
            "x._a._b.hello",
            "_http._tcp._env.hello",
            "_._tcp.hello",
            "x._.hello",
            "_.hello",
            "_services._dns-sd._udp",
        ] {
            assert_eq!(ask(unread), None, "{unread}");
        }
    }

    #[test]
    fn a_base_then_its_scopes() {
        assert_eq!(read("hello", 9), ["//hello//"]);
        assert_eq!(read("hello.prod", 9), ["//hello.prod//", "//hello/prod/", "/hello/prod//"]);
        assert_eq!(
            read("hello.prod.eu", 9),
            [
                "//hello.prod.eu//",
                "//hello.prod/eu/",
                "//hello/prod/eu",
                "/hello/prod.eu//",
                "/hello.prod/eu//",
                "/hello/prod/eu/"
            ]
        );
        assert_eq!(read("", 0), [""; 0]);
        assert_eq!(interpretations(&[], 9).count(), 0);
    }

    #[test]
    fn versions_and_instances_in_front() {
        assert_eq!(read("v1.2.0.hello", 1), ["/v1.2.0/hello//", "/v1.2/0/hello/", "/v1/2/0/hello"]);
        assert_eq!(
            read("10-0-0-1.hello", 9),
            ["//10-0-0-1.hello//", "//10-0-0-1/hello/", "10-0-0-1//hello//"],
            "what looks like an instance is no version"
        );
        assert_eq!(
            read("10-0-0-1.v1.hello", 1),
            ["//10-0-0-1/v1/hello", "10-0-0-1/v1/hello//", "10-0-0-1//v1/hello/"]
        );
        // Together only as instance before version.
        assert!(!read("v1.10-0-0-1.hello", 9).iter().any(|line| line.starts_with("10-0-0-1/")));
    }

    #[test]
    fn the_longest_base_wins_within_a_row() {
        let prefixed: Vec<String> =
            read("v1.a.b.c", 9).into_iter().filter(|line| line.starts_with("/v1")).collect();
        assert_eq!(
            prefixed,
            ["/v1/a.b.c//", "/v1.a/b.c//", "/v1/a.b/c/", "/v1.a.b/c//", "/v1.a/b/c/", "/v1/a/b/c"]
        );
        assert_eq!(
            read("v1.a.b.c", 2),
            ["//v1.a/b/c", "/v1.a/b.c//", "/v1/a.b/c/", "/v1.a.b/c//", "/v1.a/b/c/", "/v1/a/b/c"]
        );
    }

    #[test]
    fn the_longest_name_has_a_bounded_number_of_readings() {
        let plain = vec![b"a".as_slice(); 127];
        assert_eq!(interpretations(&plain, 127).count(), 3 + 126 + 125 + 124);
        let mut instance = plain;
        instance[0] = b"1--1";
        assert_eq!(interpretations(&instance, 127).count(), 3 + 126 + 125 + 124);
        assert_eq!(interpretations(&instance, 2).count(), 2 * 3);
    }

    fn any_label() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            4 => "[a-c]{1,2}".prop_map(String::into_bytes),
            3 => "_[a-c]{0,2}".prop_map(String::into_bytes),
            1 => Just(b"_tcp".to_vec()),
            1 => Just(b"10-0-0-1".to_vec()),
            1 => prop::collection::vec(any::<u8>(), 0..5),
        ]
    }

    fn any_labels() -> impl Strategy<Value = Vec<Vec<u8>>> {
        prop::collection::vec(any_label(), 0..9)
    }

    proptest! {
            #[test]
            fn no_labels_panic_and_none_gets_lost(owned in any_labels()) {
                let labels: Vec<&[u8]> = owned.iter().map(Vec::as_slice).collect();
                let Some(parsed) = parse_labels(&labels) else { return Ok(()) };
                prop_assert_eq!(parsed.rest.is_empty(), parsed.tcp_of_base && labels.len() == 1);
                prop_assert!(parsed.rest.iter().all(|label| strip_underscore(label).is_none()));
                if parsed.tcp_of_base {
                    let first = if parsed.non_terminal { labels[0] } else { &labels[0][1..] };
                    let spelled = [first].into_iter().chain(labels[1..].iter().copied()).take(labels.len() - 1);
                    prop_assert!(parsed.rest.iter().copied().eq(spelled));
                } else if parsed.selectors.iter().all(|selector| !selector.unsatisfiable) {
                    // Put together again, it is the name.
                    let mut again: Vec<Vec<u8>> = Vec::new();
                    if let Some(protocol) = parsed.rfc2782 {
                        again.extend([[b"_", protocol].concat(), b"_tcp".to_vec()]);
                    } else if parsed.non_terminal {
                        again.push(labels[0].to_vec());
                    }
                    for selector in &parsed.selectors {
                        again.extend(selector.value.split('.').map(|value| value.as_bytes().to_vec()));
                        again.push([b"_", selector.key].concat());
                    }
                    again.extend(parsed.rest.iter().map(|label| label.to_vec()));
                    prop_assert_eq!(again, owned);
                }
            }

            #[test]
            fn every_name_above_one_that_is_read_is_read(owned in any_labels()) {
                let labels: Vec<&[u8]> = owned.iter().map(Vec::as_slice).collect();
                if parse_labels(&labels).is_some() {
                    for cut in 1..labels.len() {
                        prop_assert!(parse_labels(&labels[cut..]).is_some(), "{:?}", &owned[cut..]);
                    }
                }
            }

            #[test]
            fn readings_differ_and_each_is_the_name(owned in any_labels(), longest_base in 0..9usize) {
                let labels: Vec<&[u8]> = owned.iter().map(Vec::as_slice).collect();
                let mut seen = HashSet::new();
                for interpretation in interpretations(&labels, longest_base) {
                    let Interpretation { base, scope, instance, version } = interpretation;
                    prop_assert!((1..=longest_base).contains(&base.len()));
                    let is_new = seen.insert(format!("{interpretation:?}"));
    prop_assert!(is_new);
                    let behind = match scope {
                        ServiceScope::Configured => vec![],
                        ServiceScope::Namespace(namespace) => vec![namespace],
                        ServiceScope::Full { namespace, deployment } => vec![namespace, deployment],
                    };
                    let version = version.unwrap_or_default().iter().copied();
                    prop_assert!(instance.into_iter().chain(version).chain(base.iter().copied()).chain(behind).eq(labels.iter().copied()));
                    prop_assert!(instance.is_none_or(|label| instance_address(label).is_some()));
                }
            }

            #[test]
            fn a_base_is_a_fixed_point(registered in prop_oneof![any::<String>(), "[a-cA-C_.-]{0,9}(\\.svc|\\.b)?", "[a.]{240,260}"]) {
                let zones = zones(&["svc", "b", "a.b"]);
                if let Ok(base) = base_of(&registered, &zones) {
                    prop_assert!(usize::from(base.rank) <= zones.len());
                    let spelled = base_of(&format!("{}.svc", base.text), &zones);
                    prop_assert_eq!(spelled, Ok(Base { text: base.text.clone(), rank: 0 }));
                    for zone in &zones {
                        let name = crate::name::Name::from_text(&format!("{}.{}", base.text, zone.text()));
                        prop_assert!(name.is_ok());
                    }
                }
            }
        }
}
