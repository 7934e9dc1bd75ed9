//! The naming grammar both ways: the base a registered name gives, and what a name asks for.
//!
//! Existence follows RFC 8020 (every label above a published name exists), `_<protocol>._tcp` follows RFC 2782.

use std::borrow::Cow;

use super::addresses::instance_address;
use super::zones::Zones;

/// Longest name in characters, the trailing dot not counted: 255 octets in wire form (RFC 1035 section 2.3.4).
const MAX_TEXT: usize = 253;

/// Longest label (RFC 1035 section 2.3.4).
const MAX_LABEL: usize = 63;

/// Bases that names of the zone itself take: its name server and its version.
const RESERVED: [&str; 2] = ["ns", "dns-version"];

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
    #[error("the name is not a DNS name: labels of 1 to 63 of a-z, 0-9, '-' and '_', none beginning with '_'")]
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
    let mut most_labels = 0;
    let mut end = text.len();
    for (place, zone) in zones.iter().enumerate() {
        let Some(front) = text.strip_suffix(zone.relative_text()) else { continue };
        if front.is_empty() {
            return Err(BaseError::Reserved);
        }
        if front.ends_with('.') && zone.label_count() > most_labels {
            (rank, most_labels, end) = (place, zone.label_count(), front.len() - 1);
        }
    }
    text.truncate(end);
    if !text.split('.').all(is_base_label) {
        return Err(BaseError::NotDns);
    }
    if RESERVED.contains(&&*text) {
        return Err(BaseError::Reserved);
    }
    let longest_zone = zones.iter().map(|zone| zone.relative_text().len()).max().unwrap_or_default();
    if text.len() + 1 + longest_zone > MAX_TEXT {
        return Err(BaseError::TooLong);
    }
    // `Zones` holds at most 255.
    Ok(Base { text, rank: u8::try_from(rank).unwrap_or(u8::MAX) })
}

/// Whether a base may have this label, lower-cased.
fn is_base_label(label: &str) -> bool {
    let writable = |octet: u8| octet.is_ascii_lowercase() || octet.is_ascii_digit() || matches!(octet, b'-' | b'_');
    (1..=MAX_LABEL).contains(&label.len()) && !label.starts_with('_') && label.bytes().all(writable)
}

/// What the labels in front of a zone ask for, before it is known which services there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked<'a> {
    /// The protocol or port of `_<protocol>._tcp.…`, without its `_` (RFC 2782).
    pub rfc2782: Option<&'a [u8]>,
    /// The selectors, left to right. All must hold.
    pub selectors: Vec<Selector<'a>>,
    /// What stands behind RFC 2782 labels and selectors: see [`readings`]. With `tcp_of_base`, the labels of a base.
    pub rest: Cow<'a, [&'a [u8]]>,
    /// The name itself answers nothing, but names below it do: `_env.hello.svc`, `_tcp.hello.svc`. It exists when the
    /// service does; with `tcp_of_base`, when a base of more labels ends with `rest`.
    pub partial: bool,
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
    pub impossible: bool,
}

/// Parses the labels in front of a zone, lower-cased, left to right. `None` when no row of the grammar reads them: the name
/// does not exist. The apex, no labels at all, is not this function's: `None`.
///
/// Up to the rightmost label that begins with `_` stands the chain: `_<protocol>._tcp`, at its left end only, then selectors.
pub fn asked<'a>(labels: &'a [&'a [u8]]) -> Option<Asked<'a>> {
    let length = labels.iter().rposition(|label| key(label).is_some()).map_or(0, |last| last + 1);
    let (chain, rest) = labels.split_at(length);
    if rest.is_empty() {
        return tcp_of_base(chain);
    }
    let (rfc2782, partial, mut chain) = match chain {
        [first, tcp, chain @ ..] if key(first).is_some() && *tcp == b"_tcp" => (key(first), false, chain),
        [first, chain @ ..] if key(first).is_some() => (None, true, chain),
        chain => (None, false, chain),
    };
    // `_` alone is no key, here and below.
    if length > 0 && key(labels[0]).is_some_and(<[u8]>::is_empty) {
        return None;
    }
    let mut selectors = Vec::new();
    while !chain.is_empty() {
        let values = chain.iter().position(|label| key(label).is_some())?;
        let key = key(chain[values])?;
        if values == 0 || key.is_empty() {
            return None;
        }
        selectors.push(Selector::new(key, &chain[..values]));
        chain = &chain[values + 1..];
    }
    Some(Asked { rfc2782, selectors, rest: Cow::Borrowed(rest), partial, tcp_of_base: false })
}

/// Parses `_<base>._tcp` and the names above it: `_a.b._tcp`, `b._tcp`, `_tcp`.
fn tcp_of_base<'a>(chain: &'a [&'a [u8]]) -> Option<Asked<'a>> {
    let (&b"_tcp", base) = chain.split_last()? else { return None };
    let (partial, rest) = match base {
        [first, others @ ..] if let Some(first) = key(first) => (false, [first].into_iter().chain(others.iter().copied()).collect()),
        _ => (true, Cow::Borrowed(base)),
    };
    // A base has no label that is empty or begins with `_`.
    if rest.iter().any(|label| label.is_empty() || key(label).is_some()) {
        return None;
    }
    Some(Asked { rfc2782: None, selectors: Vec::new(), rest, partial, tcp_of_base: true })
}

/// What follows the `_` of a label that begins with one.
fn key(label: &[u8]) -> Option<&[u8]> {
    label.strip_prefix(b"_")
}

impl<'a> Selector<'a> {
    /// Joins the labels of the value.
    fn new(key: &'a [u8], labels: &[&[u8]]) -> Self {
        let value = if labels.iter().any(|label| label.contains(&b'.')) { None } else { String::from_utf8(labels.join(&b'.')).ok() };
        Self { key, impossible: value.is_none(), value: value.unwrap_or_default() }
    }
}

/// Where a service is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope<'a> {
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
pub struct Reading<'a> {
    /// The labels of the base, at least one.
    pub base: &'a [&'a [u8]],
    /// Where the service is looked for.
    pub scope: Scope<'a>,
    /// The instance, a label that [`instance_address`] reads.
    pub instance: Option<&'a [u8]>,
    /// The labels of the version, at least one; compared label by label with the version's text cut at its dots.
    pub version: Option<&'a [&'a [u8]]>,
}

/// Every way to read the labels behind the chain, the best first, made as they are asked for: the base alone; the base and
/// a namespace, then a deployment too; then what has an instance or a version in front, the longest base first, of equal
/// bases the fewest labels behind it, an instance before a version. Bases of more than `longest_base` labels are left out.
///
/// At most six for each length of a base and three more: some 700 for the longest name there is.
pub fn readings<'a>(rest: &'a [&'a [u8]], longest_base: usize) -> impl Iterator<Item = Reading<'a>> {
    let plain = (0..=2).filter_map(move |behind| {
        let (base, scope) = scoped(rest, behind)?;
        (base.len() <= longest_base).then_some(Reading { base, scope, instance: None, version: None })
    });
    let instance = rest.first().copied().filter(|first| instance_address(first).is_some());
    let longest_prefixed = longest_base.min(rest.len().saturating_sub(1));
    let prefixed = (1..=longest_prefixed).rev().flat_map(move |length| (0..=2).map(move |behind| (length, behind))).flat_map(
        move |(length, behind)| {
            let found = scoped(rest, behind).filter(|(labels, _)| labels.len() > length);
            found.into_iter().flat_map(move |(labels, scope)| {
                let (front, base) = labels.split_at(labels.len() - length);
                let version = |labels: &'a [&'a [u8]]| (!labels.is_empty()).then_some(labels);
                let of_instance = instance.map(|_| Reading { base, scope, instance, version: version(&front[1..]) });
                of_instance.into_iter().chain([Reading { base, scope, instance: None, version: version(front) }])
            })
        },
    );
    plain.chain(prefixed)
}

/// Takes as many labels off the right as a scope of this size has (0-2); none when no label is left in front.
fn scoped<'a>(labels: &'a [&'a [u8]], behind: usize) -> Option<(&'a [&'a [u8]], Scope<'a>)> {
    let (front, scope) = match (behind, labels) {
        (0, front) => (front, Scope::Configured),
        (1, [front @ .., namespace]) => (front, Scope::Namespace(namespace)),
        (2, [front @ .., namespace, deployment]) => (front, Scope::Full { namespace, deployment }),
        _ => return None,
    };
    (!front.is_empty()).then_some((front, scope))
}
