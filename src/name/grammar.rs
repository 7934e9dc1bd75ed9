//! The naming grammar.
//!
//! The grammar maps registered names to the bases under which they are published, and queried names
//! to the services and instances that they denote.
//!
//! The existence of names follows RFC 8020: every name above a published one exists.
//! `_<protocol>._tcp` follows RFC 2782.

use std::borrow::Cow;

use super::addresses::instance_address;
use super::zones::Zones;

/// Maximum length of a name as text without the trailing dot, in characters.
///
/// Its wire form then has 255 bytes (RFC 1035 section 2.3.4).
const MAX_TEXT_LENGTH: usize = 253;

/// Maximum length of a label, in bytes (RFC 1035 section 2.3.4).
const MAX_LABEL_BYTES: usize = 63;

/// Bases that every zone reserves: for its name server and its version.
const RESERVED_BASES: [&str; 2] = ["ns", "dns-version"];

/// The name under which a registered service is published in every zone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Base {
    /// Registered name in lower case without a zone suffix: `hello`. May contain dots.
    pub text: String,
    /// Rank of the registered spelling; the lowest rank with a usable endpoint wins.
    ///
    /// The index of the zone whose suffix was removed, or the number of zones for a bare name.
    pub rank: u8,
}

/// Reason why a registered name cannot be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BaseError {
    /// A label is not 1-63 of `[a-z0-9_-]`, or begins with `_`.
    #[error(
        "the name is not a DNS name: each label must have 1 to 63 characters of a-z, 0-9, '-' and \
         '_', and not begin with '_'"
    )]
    NotDns,
    /// The name has over 253 characters together with the longest zone.
    #[error("the name is too long for DNS (253 characters with its zone)")]
    TooLong,
    /// The name is a zone, `ns` or `dns-version`.
    #[error("the name is reserved")]
    Reserved,
}

/// Returns the base of a registered name.
///
/// The suffix of the longest matching zone, by labels, is removed once. Names that differ only in
/// case have the same base. Selectors or an instance label in front of the base may still make a
/// name too long.
///
/// # Errors
/// Returns [`BaseError::NotDns`] (also for a trailing dot), [`BaseError::Reserved`] or
/// [`BaseError::TooLong`].
pub fn base_of(registered: &str, zones: &Zones) -> Result<Base, BaseError> {
    let mut text = registered.to_ascii_lowercase();
    let (base, rank) = base_of_lower_case(&text, zones)?;
    let length = base.len();
    text.truncate(length);
    Ok(Base { text, rank })
}

/// Returns the base of a registered name in lower case, and its rank, without an allocation.
///
/// # Errors
/// Those of [`base_of`]; a name with capitals is [`BaseError::NotDns`].
pub fn base_of_lower_case<'n>(name: &'n str, zones: &Zones) -> Result<(&'n str, u8), BaseError> {
    let (mut base, mut rank) = (name, zones.len());
    let mut longest_zone_labels = 0;
    for (index, zone) in zones.iter().enumerate() {
        let Some(front) = name.strip_suffix(zone.relative_text()) else { continue };
        if front.is_empty() {
            return Err(BaseError::Reserved);
        }
        if let Some(front) = front.strip_suffix('.')
            && zone.label_count() > longest_zone_labels
        {
            (base, rank, longest_zone_labels) = (front, index, zone.label_count());
        }
    }
    if !base.split('.').all(is_base_label) {
        return Err(BaseError::NotDns);
    }
    if RESERVED_BASES.contains(&base) {
        return Err(BaseError::Reserved);
    }
    let longest_zone =
        zones.iter().map(|zone| zone.relative_text().len()).max().unwrap_or_default();
    if base.len() + 1 + longest_zone > MAX_TEXT_LENGTH {
        return Err(BaseError::TooLong);
    }
    // `Zones` has at most 255 zones.
    Ok((base, u8::try_from(rank).unwrap_or(u8::MAX)))
}

/// Returns whether a lower-case label is allowed in a base.
fn is_base_label(label: &str) -> bool {
    let writable = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_')
    };
    (1..=MAX_LABEL_BYTES).contains(&label.len())
        && !label.starts_with('_')
        && label.bytes().all(writable)
}

/// The labels in front of a zone, parsed without knowledge of the services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsedName<'a> {
    /// Protocol or port of `_<protocol>._tcp.…`, without its `_` (RFC 2782).
    pub rfc2782: Option<&'a [u8]>,
    /// Selectors, left to right; an instance must match all of them.
    pub selectors: Vec<Selector<'a>>,
    /// Labels after the chain, see [`interpretations`]; with `tcp_of_base` a base.
    pub rest: Cow<'a, [&'a [u8]]>,
    /// Whether the name has no records itself, but names below it do.
    ///
    /// Examples are `_env.hello.svc` and `_tcp.hello.svc`. Such a name exists if its service does;
    /// with `tcp_of_base`, if `rest` is the end of a longer base.
    pub non_terminal: bool,
    /// Whether the name is `_<base>._tcp`: the service `rest` in the configured scope.
    pub tcp_of_base: bool,
}

/// A selector `<value>._<key>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector<'a> {
    /// The key without its `_`, at least one byte.
    pub key: &'a [u8],
    /// The labels of the value, joined by dots; empty if `unsatisfiable`.
    pub value: String,
    /// Whether no instance can have this value.
    ///
    /// The value is not UTF-8, or one of its labels contains a dot.
    pub unsatisfiable: bool,
}

/// Parses the labels of a name in front of its zone.
///
/// The labels must be in lower case; they are ordered left to right.
///
/// The name begins with an optional chain, which ends with the last label that begins with `_`. A
/// chain is an optional `_<protocol>._tcp` followed by selectors.
///
/// Returns `None` if the name has no valid form and thus does not exist, or if it is the apex.
pub fn parse_labels<'a>(labels: &'a [&'a [u8]]) -> Option<ParsedName<'a>> {
    // No key, protocol or base follows a lone `_`.
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

/// Parses `_<base>._tcp` and the names that end it: `_a.b._tcp`, `b._tcp`, `_tcp`.
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
    // No label of a base is empty or begins with `_`.
    if rest.iter().any(|label| label.is_empty() || strip_underscore(label).is_some()) {
        return None;
    }
    Some(ParsedName { rfc2782: None, selectors: Vec::new(), rest, non_terminal, tcp_of_base: true })
}

/// Returns the label without its leading `_`, if it has one.
fn strip_underscore(label: &[u8]) -> Option<&[u8]> {
    label.strip_prefix(b"_")
}

impl<'a> Selector<'a> {
    /// Creates the selector of a key; joins the labels of its value.
    fn new(key: &'a [u8], labels: &[&[u8]]) -> Self {
        let value = if labels.iter().any(|label| label.contains(&b'.')) {
            None
        } else {
            String::from_utf8(labels.join(&b'.')).ok()
        };
        Self { key, unsatisfiable: value.is_none(), value: value.unwrap_or_default() }
    }
}

/// The deployment and namespace in which to look for a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceScope<'a> {
    /// The configured deployment and namespace.
    Configured,
    /// This namespace of the configured deployment.
    Namespace(&'a [u8]),
    /// This deployment and namespace.
    Full {
        /// The namespace.
        namespace: &'a [u8],
        /// The deployment.
        deployment: &'a [u8],
    },
}

/// One interpretation of the labels in front of a zone.
///
/// Its form is `[instance.][version.]base[.namespace[.deployment]]`. Only a selector can name a
/// namespace or deployment that contains a dot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interpretation<'a> {
    /// Labels of the base, at least one.
    pub base: &'a [&'a [u8]],
    /// Deployment and namespace of the service.
    pub scope: ServiceScope<'a>,
    /// Label of the instance, which [`instance_address`] parses.
    pub instance: Option<&'a [u8]>,
    /// Labels of the version, at least one; together they are its text split at dots.
    pub version: Option<&'a [&'a [u8]]>,
}

impl Interpretation<'_> {
    /// Returns whether the name is a base without namespace, instance and version.
    pub fn is_base_alone(&self) -> bool {
        self.scope == ServiceScope::Configured && self.instance.is_none() && self.version.is_none()
    }
}

/// Returns all interpretations of the labels after the chain, best first.
///
/// First come the base alone, the base with a namespace, and the base with a namespace and a
/// deployment. Then come those with an instance or a version in front, from the longest base to the
/// shortest and, for equal bases, from the smallest scope. If the first label looks like an
/// instance label, it is one and never part of a version. Bases have at most `longest_base` labels.
///
/// There are at most three interpretations per length of the base plus three: 378 for the longest
/// possible name.
pub fn interpretations<'a>(
    rest: &'a [&'a [u8]],
    longest_base: usize,
) -> impl Iterator<Item = Interpretation<'a>> {
    let plain = (0..=2).filter_map(move |scope_size| {
        let (base, scope) = scoped(rest, scope_size)?;
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
        .flat_map(move |length| (0..=2).map(move |scope_size| (length, scope_size)))
        .flat_map(move |(length, scope_size)| {
            let found = scoped(rest, scope_size).filter(|(labels, _)| labels.len() > length);
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

/// Splits off the last 0-2 labels as the scope; `None` if no label is left.
fn scoped<'a>(
    labels: &'a [&'a [u8]],
    scope_size: usize,
) -> Option<(&'a [&'a [u8]], ServiceScope<'a>)> {
    let (front, scope) = match (scope_size, labels) {
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

    /// Returns the base and its rank, or the error.
    fn base(registered: &str, served: &[&str]) -> Result<(String, u8), BaseError> {
        base_of(registered, &zones(served)).map(|base| (base.text, base.rank))
    }

    fn labels(text: &str) -> Vec<&[u8]> {
        text.split('.').map(str::as_bytes).collect()
    }

    fn text(labels: &[&[u8]]) -> String {
        String::from_utf8(labels.join(&b'.')).unwrap()
    }

    /// Formats a parsed name in one line: `tcp=… key=value … | rest`, then its flags.
    fn parse_to_text(name: &str) -> Option<String> {
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

    /// Formats interpretations as `instance/version/base/namespace/deployment`.
    fn interpret_to_text(name: &str, longest_base: usize) -> Vec<String> {
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
    fn the_zone_suffix_is_removed_and_decides_the_rank_of_a_base() {
        assert_eq!(base("hello.svc", &["svc"]), Ok(("hello".to_owned(), 0)));
        assert_eq!(base("hello", &["svc"]), Ok(("hello".to_owned(), 1)));
        assert_eq!(base("Hello.SVC", &["svc"]), Ok(("hello".to_owned(), 0)));
        assert_eq!(base("hello.internal", &["svc", "internal"]), Ok(("hello".to_owned(), 1)));
        assert_eq!(base("hello", &["svc", "internal"]), Ok(("hello".to_owned(), 2)));
        assert_eq!(base("a.b.corp.example", &["svc", "corp.example"]), Ok(("a.b".to_owned(), 1)));
        // The suffix is removed once, and only at a label boundary.
        assert_eq!(base("hello.svc.svc", &["svc"]), Ok(("hello.svc".to_owned(), 0)));
        assert_eq!(base("hellosvc", &["svc"]), Ok(("hellosvc".to_owned(), 1)));
        // The longest zone wins, wherever it is in the list.
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
    fn every_valid_dns_name_has_a_base() {
        for name in ["www.google.com", "localhost", "10-0-0-1", "1", "-", "a_b.c-d", "ns.a", "a.ns"]
        {
            assert_eq!(base(name, &["svc"]), Ok((name.to_owned(), 1)));
        }
        let label = "a".repeat(63);
        assert_eq!(base(&label, &["svc"]), Ok((label, 1)));
    }

    #[test]
    fn names_that_are_not_dns_names_are_rejected() {
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
    fn names_used_by_the_zone_are_reserved() {
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
    fn a_base_must_fit_the_longest_zone() {
        let long = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(57)].join(".");
        assert_eq!(long.len() + ".svc".len(), MAX_TEXT_LENGTH);
        assert_eq!(base(&format!("{long}.svc"), &["svc"]), Ok((long.clone(), 0)));
        assert_eq!(base(&format!("{long}d.svc"), &["svc"]), Err(BaseError::TooLong));
        assert_eq!(base(&format!("{long}.svc"), &["svc", "internal"]), Err(BaseError::TooLong));
    }

    #[test]
    fn without_selectors_the_whole_name_remains() {
        assert_eq!(parse_to_text("hello").as_deref(), Some("| hello"));
        assert_eq!(
            parse_to_text("v1.2.0.hello.prod.eu").as_deref(),
            Some("| v1.2.0.hello.prod.eu")
        );
        assert_eq!(parse_labels(&[]), None);
    }

    #[test]
    fn selectors_are_parsed_left_to_right() {
        assert_eq!(parse_to_text("gray._env.hello").as_deref(), Some("env=gray | hello"));
        assert_eq!(
            parse_to_text("v1.2.0._version.prod._namespace.hello").as_deref(),
            Some("version=v1.2.0 namespace=prod | hello")
        );
        assert_eq!(
            parse_to_text("8080._port.10-0-0-1._instance.v1.hello.prod.eu").as_deref(),
            Some("port=8080 instance=10-0-0-1 | v1.hello.prod.eu")
        );
        assert_eq!(parse_to_text("true._insecure.hello").as_deref(), Some("insecure=true | hello"));
        assert_eq!(parse_to_text("x._tcp.hello").as_deref(), Some("tcp=x | hello"));
        assert_eq!(parse_to_text("x.__a.hello").as_deref(), Some("_a=x | hello"));
        // A value ends at the next key, so it may look like any other part.
        assert_eq!(parse_to_text("0._ver.hello").as_deref(), Some("ver=0 | hello"));
    }

    #[test]
    fn selectors_with_impossible_values_match_nothing() {
        let labels: [&[u8]; 3] = [b"v1.2", b"_version", b"hello"];
        let parsed = parse_labels(&labels).unwrap();
        assert!(parsed.selectors[0].unsatisfiable);
        assert_eq!(parsed.selectors[0].value, "");
        // Two labels with one byte each of a two-byte character.
        let labels: [&[u8]; 4] = [b"\xC3", b"\xA9", b"_env", b"hello"];
        assert!(parse_labels(&labels).unwrap().selectors[0].unsatisfiable);
        let labels: [&[u8]; 3] = ["é".as_bytes(), b"_env", b"hello"];
        let parsed = parse_labels(&labels).unwrap();
        assert_eq!((&*parsed.selectors[0].value, parsed.selectors[0].unsatisfiable), ("é", false));
    }

    #[test]
    fn rfc_2782_labels_are_valid_only_as_the_leftmost_labels() {
        assert_eq!(parse_to_text("_http._tcp.hello").as_deref(), Some("tcp=http | hello"));
        assert_eq!(
            parse_to_text("_8080._tcp.hello.prod").as_deref(),
            Some("tcp=8080 | hello.prod")
        );
        assert_eq!(
            parse_to_text("_http._tcp.gray._env.hello").as_deref(),
            Some("tcp=http env=gray | hello")
        );
        assert_eq!(parse_to_text("_tcp._tcp.hello").as_deref(), Some("tcp=tcp | hello"));
        assert_eq!(parse_to_text("x._http._tcp.hello"), None);
        assert_eq!(parse_to_text("_http._udp.hello"), None);
        assert_eq!(parse_to_text("gray._env._http._tcp.hello"), None);
    }

    #[test]
    fn partial_selector_chains_are_empty_non_terminals() {
        assert_eq!(parse_to_text("_tcp.hello").as_deref(), Some("| hello non_terminal"));
        assert_eq!(parse_to_text("_env.hello").as_deref(), Some("| hello non_terminal"));
        assert_eq!(
            parse_to_text("_zone.gray._env.hello").as_deref(),
            Some("env=gray | hello non_terminal")
        );
        assert_eq!(
            parse_to_text("_tcp.gray._env.hello").as_deref(),
            Some("env=gray | hello non_terminal")
        );
    }

    #[test]
    fn bases_have_rfc_2782_names() {
        assert_eq!(parse_to_text("_hello._tcp").as_deref(), Some("| hello tcp_of_base"));
        assert_eq!(parse_to_text("_a.b._tcp").as_deref(), Some("| a.b tcp_of_base"));
        assert_eq!(parse_to_text("b._tcp").as_deref(), Some("| b tcp_of_base non_terminal"));
        assert_eq!(parse_to_text("_tcp").as_deref(), Some("|  tcp_of_base non_terminal"));
        assert_eq!(parse_to_text("_tcp._tcp").as_deref(), Some("| tcp tcp_of_base"));
        for invalid in [
            "_a._b._tcp",
            "x._hello._tcp",
            "_http._tcp._hello._tcp",
            "gray._env._hello._tcp",
            "_.b._tcp",
            "__a._tcp",
            "_hello._udp",
        ] {
            assert_eq!(parse_to_text(invalid), None, "{invalid}");
        }
    }

    #[test]
    fn invalid_forms_are_rejected() {
        for invalid in [
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
            assert_eq!(parse_to_text(invalid), None, "{invalid}");
        }
    }

    #[test]
    fn names_are_read_as_a_base_alone_before_namespace_and_deployment() {
        assert_eq!(interpret_to_text("hello", 9), ["//hello//"]);
        assert_eq!(
            interpret_to_text("hello.prod", 9),
            ["//hello.prod//", "//hello/prod/", "/hello/prod//"]
        );
        assert_eq!(
            interpret_to_text("hello.prod.eu", 9),
            [
                "//hello.prod.eu//",
                "//hello.prod/eu/",
                "//hello/prod/eu",
                "/hello/prod.eu//",
                "/hello.prod/eu//",
                "/hello/prod/eu/"
            ]
        );
        assert_eq!(interpret_to_text("", 0), [""; 0]);
        assert_eq!(interpretations(&[], 9).count(), 0);
    }

    #[test]
    fn version_and_instance_labels_precede_the_base() {
        assert_eq!(
            interpret_to_text("v1.2.0.hello", 1),
            ["/v1.2.0/hello//", "/v1.2/0/hello/", "/v1/2/0/hello"]
        );
        assert_eq!(
            interpret_to_text("10-0-0-1.hello", 9),
            ["//10-0-0-1.hello//", "//10-0-0-1/hello/", "10-0-0-1//hello//"],
            "an instance label is not a version"
        );
        assert_eq!(
            interpret_to_text("10-0-0-1.v1.hello", 1),
            ["//10-0-0-1/v1/hello", "10-0-0-1/v1/hello//", "10-0-0-1//v1/hello/"]
        );
        // An instance comes before a version, never after it.
        assert!(
            !interpret_to_text("v1.10-0-0-1.hello", 9)
                .iter()
                .any(|line| line.starts_with("10-0-0-1/"))
        );
    }

    #[test]
    fn after_a_version_label_the_longest_base_is_tried_first() {
        let prefixed: Vec<String> = interpret_to_text("v1.a.b.c", 9)
            .into_iter()
            .filter(|line| line.starts_with("/v1"))
            .collect();
        assert_eq!(
            prefixed,
            ["/v1/a.b.c//", "/v1.a/b.c//", "/v1/a.b/c/", "/v1.a.b/c//", "/v1.a/b/c/", "/v1/a/b/c"]
        );
        assert_eq!(
            interpret_to_text("v1.a.b.c", 2),
            ["//v1.a/b/c", "/v1.a/b.c//", "/v1/a.b/c/", "/v1.a.b/c//", "/v1.a/b/c/", "/v1/a/b/c"]
        );
    }

    #[test]
    fn the_number_of_interpretations_is_bounded() {
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
    fn parsing_never_panics_or_loses_labels(owned in any_labels()) {
        let labels: Vec<&[u8]> = owned.iter().map(Vec::as_slice).collect();
        let Some(parsed) = parse_labels(&labels) else { return Ok(()) };
        prop_assert_eq!(parsed.rest.is_empty(), parsed.tcp_of_base && labels.len() == 1);
        prop_assert!(parsed.rest.iter().all(|label| strip_underscore(label).is_none()));
        if parsed.tcp_of_base {
            let first = if parsed.non_terminal { labels[0] } else { &labels[0][1..] };
            let others = labels[1..].iter().copied();
                let spelled = [first].into_iter().chain(others).take(labels.len() - 1);
            prop_assert!(parsed.rest.iter().copied().eq(spelled));
        } else if parsed.selectors.iter().all(|selector| !selector.unsatisfiable) {
            // Joining the parts restores the name.
            let mut joined: Vec<Vec<u8>> = Vec::new();
            if let Some(protocol) = parsed.rfc2782 {
                joined.extend([[b"_", protocol].concat(), b"_tcp".to_vec()]);
            } else if parsed.non_terminal {
                joined.push(labels[0].to_vec());
            }
            for selector in &parsed.selectors {
                joined.extend(selector.value.split('.').map(|value| value.as_bytes().to_vec()));
                joined.push([b"_", selector.key].concat());
            }
            joined.extend(parsed.rest.iter().map(|label| label.to_vec()));
            prop_assert_eq!(joined, owned);
        }
    }

    #[test]
    fn ancestors_of_a_valid_name_are_valid(owned in any_labels()) {
        let labels: Vec<&[u8]> = owned.iter().map(Vec::as_slice).collect();
        if parse_labels(&labels).is_some() {
            for cut in 1..labels.len() {
                prop_assert!(parse_labels(&labels[cut..]).is_some(), "{:?}", &owned[cut..]);
            }
        }
    }

    #[test]
    fn interpretations_differ_and_each_has_all_labels(
        owned in any_labels(),
        longest_base in 0..9usize,
    ) {
        let labels: Vec<&[u8]> = owned.iter().map(Vec::as_slice).collect();
        let mut seen = HashSet::new();
        for interpretation in interpretations(&labels, longest_base) {
            let Interpretation { base, scope, instance, version } = interpretation;
            prop_assert!((1..=longest_base).contains(&base.len()));
            let is_new = seen.insert(format!("{interpretation:?}"));
            prop_assert!(is_new);
            let scope_labels = match scope {
                ServiceScope::Configured => vec![],
                ServiceScope::Namespace(namespace) => vec![namespace],
                ServiceScope::Full { namespace, deployment } => vec![namespace, deployment],
            };
            let version = version.unwrap_or_default().iter().copied();
            let base = base.iter().copied();
            let joined = instance.into_iter().chain(version).chain(base).chain(scope_labels);
            prop_assert!(joined.eq(labels.iter().copied()));
            prop_assert!(instance.is_none_or(|label| instance_address(label).is_some()));
        }
    }

    #[test]
    fn a_base_is_its_own_base(
        registered in prop_oneof![
            any::<String>(),
            "[a-cA-C_.-]{0,9}(\\.svc|\\.b)?",
            "[a.]{240,260}",
        ],
    ) {
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
