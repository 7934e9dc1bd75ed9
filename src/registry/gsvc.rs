//! GoFrame's keys and values, read and written.
//!
//! A registration is `/<head>/<deployment>/<namespace>/<name>/<version>/<endpoints>` with a JSON object as its value
//! (GoFrame's `net/gsvc`). GoFrame escapes nothing and its own readers fail a whole search, or panic, at one bad entry;
//! here a bad key is rejected by itself and a bad endpoint without its neighbours. Names are not held against DNS: that
//! is the catalog's part.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str;
use std::sync::Arc;

use hashbrown::HashSet;
use serde_json::Value;

use crate::service::{Endpoint, Host, Metadata, Reason, Registration, Rejected, ServiceId};

/// The longest key that is read, in octets.
pub const MAX_KEY: usize = 4096;

/// The largest value that is read, in octets (64 KiB). Held against it before any JSON is parsed.
pub const MAX_VALUE: usize = 64 * 1024;

/// A key longer than [`MAX_KEY`].
pub const KEY_TOO_LONG: Reason = Reason::new("key-too-long", "the key is longer than 4096 bytes, a fixed limit");

/// A key that is not UTF-8.
pub const KEY_NOT_TEXT: Reason = Reason::new("key-not-text", "the key is not valid UTF-8");

/// A value larger than [`MAX_VALUE`].
pub const VALUE_TOO_LONG: Reason = Reason::new("value-too-long", "the value is larger than 64 KiB, a fixed limit");

/// A value that is neither one JSON object nor empty.
pub const VALUE_NOT_JSON: Reason = Reason::new("value-not-json", "the value is not a JSON object");

/// A key with fewer than the six segments of the layout.
pub const TOO_FEW_SEGMENTS: Reason =
    Reason::new("too-few-segments", "the key has fewer than the six segments /head/deployment/namespace/name/version/endpoints");

/// A key whose segments are shifted: GoFrame escapes nothing, so a `/` in a name makes one more.
pub const TOO_MANY_SEGMENTS: Reason =
    Reason::new("too-many-segments", "the key has too many segments: a name cannot hold '/' ('#' in a file name)");

/// The entry that GoFrame's file registry adds to the metadata: the writer's local time of the last refresh.
const UPDATE_AT: &str = "UpdateAt";

/// Reads a key of a store and its value.
///
/// The head is not looked at: whoever chose the prefix did that. `/` and white space at both ends do not count, an empty
/// deployment, namespace or version is read as `default`, `default`, `latest`, and what follows the sixth segment is
/// ignored, as GoFrame's reader does. An empty value or `null` means no metadata.
///
/// # Errors
/// The key as a whole cannot be served; a bad endpoint goes to [`Registration::rejected`] instead. With more than six
/// segments and no usable endpoint in the sixth, a `/` in the name has shifted the segments: an error, too.
pub fn parse(key: &[u8], value: &[u8]) -> Result<Registration, Rejected> {
    Reader::default().parse(key, value)
}

/// Reads many keys as [`parse`] does, and shares what a key says with the key before it where it is the same: the parts of
/// its identity, its metadata. Stores list the instances of a service one after the other, and they say mostly the same of themselves.
#[derive(Debug, Default)]
pub struct Reader {
    id: Option<ServiceId>,
    /// A value and what it says.
    metadata: Option<(Box<[u8]>, Arc<Metadata>)>,
}

impl Reader {
    /// Reads a key of a store and its value.
    ///
    /// # Errors
    /// As [`parse`].
    pub fn parse(&mut self, key: &[u8], value: &[u8]) -> Result<Registration, Rejected> {
        let key = text(key)?;
        let segments = segments(key, '/')?;
        let (endpoints, rejected) = endpoints(segments.endpoints, endpoint);
        if segments.more && endpoints.is_empty() {
            return Err(Rejected::new(key, TOO_MANY_SEGMENTS));
        }
        let metadata = self.metadata(value)?;
        Ok(Registration { id: self.id(&segments, key)?, endpoints, rejected, metadata })
    }

    fn id(&mut self, segments: &Segments<'_>, key: &str) -> Result<ServiceId, Rejected> {
        let id = segments.id(key, self.id.as_ref())?;
        self.id = Some(id.clone());
        Ok(id)
    }

    fn metadata(&mut self, value: &[u8]) -> Result<Arc<Metadata>, Rejected> {
        if let Some((_, metadata)) = self.metadata.as_ref().filter(|(last, _)| **last == *value) {
            return Ok(Arc::clone(metadata));
        }
        let metadata = Arc::new(Metadata::new(metadata(value)?));
        self.metadata = Some((value.into(), Arc::clone(&metadata)));
        Ok(metadata)
    }
}

/// Reads the name of a file of GoFrame's file registry and its content.
///
/// The name is the key with `#` for `/` and, since v2.4.1, `-` for `:`. GoFrame's reader takes every `-` back to `:` and
/// so loses names that hold one; here only the last `-` or `:` of an endpoint stands before its port. `UpdateAt` is no
/// metadata and dropped. An empty content is read as no metadata; whether the writer is just at it, the caller must know.
///
/// # Errors
/// As [`parse`]; any seventh part is an error, since a version such as `v1-2` in the sixth place would look like an endpoint.
pub fn parse_file_name(name: &[u8], content: &[u8]) -> Result<Registration, Rejected> {
    let name = text(name)?;
    let segments = segments(name, '#')?;
    if segments.more {
        return Err(Rejected::new(name, TOO_MANY_SEGMENTS));
    }
    let (endpoints, rejected) = endpoints(segments.endpoints, file_endpoint);
    let mut metadata = metadata(content)?;
    metadata.remove(UPDATE_AT);
    Ok(Registration { id: segments.id(name, None)?, endpoints, rejected, metadata: Arc::new(Metadata::new(metadata)) })
}

/// Writes the key of a registration, with a leading `/`.
///
/// Nothing is escaped, as in GoFrame: an identity that holds `/` does not read back. An IPv6 endpoint is written
/// `[fd00::5]:80`, which panics GoFrame's own readers of the same service.
pub fn key(head: &str, id: &ServiceId, endpoints: &[Endpoint]) -> String {
    let ServiceId { deployment, namespace, name, version } = id;
    format!("/{head}/{deployment}/{namespace}/{name}/{version}/{}", joined(endpoints))
}

/// Writes the name of a registration's file: the key without its leading `/`, `#` for `/`, and `-` for the `:` of the endpoints.
///
/// An identity that holds `#` or `/` does not read back.
pub fn file_name(head: &str, id: &ServiceId, endpoints: &[Endpoint]) -> String {
    let ServiceId { deployment, namespace, name, version } = id;
    format!("{head}#{deployment}#{namespace}#{name}#{version}#{}", joined(endpoints).replace(':', "-"))
}

/// Writes the value of a registration as Go's `encoding/json` does: no spaces, keys sorted by octets, and `<`, `>`, `&`,
/// U+2028 and U+2029 escaped.
pub fn value(metadata: &Metadata) -> String {
    json(&object(metadata))
}

/// Writes the content of a registration's file: the metadata and `UpdateAt`, the local time as `2006-01-02 15:04:05`.
pub fn file_content(metadata: &Metadata, update_at: &str) -> String {
    let mut object = object(metadata);
    object.insert(UPDATE_AT.into(), update_at.into());
    json(&object)
}

/// A key in its segments, nothing checked but their number.
struct Segments<'a> {
    deployment: &'a str,
    namespace: &'a str,
    name: &'a str,
    version: &'a str,
    endpoints: &'a str,
    /// Whether anything stands behind the endpoints.
    more: bool,
}

impl Segments<'_> {
    /// The identity in these segments of `key`; GoFrame's defaults in place of empty ones. What is as in `last` is shared.
    fn id(&self, key: &str, last: Option<&ServiceId>) -> Result<ServiceId, Rejected> {
        if self.name.is_empty() {
            return Err(Rejected::new(key, Reason::NAME_NOT_DNS));
        }
        let or = |segment: &str, default: &str, last: Option<&Arc<str>>| {
            let text = if segment.is_empty() { default } else { segment };
            last.filter(|last| ***last == *text).map_or_else(|| Arc::from(text), Arc::clone)
        };
        Ok(ServiceId {
            deployment: or(self.deployment, "default", last.map(|last| &last.deployment)),
            namespace: or(self.namespace, "default", last.map(|last| &last.namespace)),
            name: or(self.name, "", last.map(|last| &last.name)),
            version: or(self.version, "latest", last.map(|last| &last.version)),
        })
    }
}

fn text(key: &[u8]) -> Result<&str, Rejected> {
    if key.len() > MAX_KEY {
        return Err(Rejected::new(&excerpt(key), KEY_TOO_LONG));
    }
    str::from_utf8(key).map_err(|_| Rejected::new(&excerpt(key), KEY_NOT_TEXT))
}

fn segments(key: &str, separator: char) -> Result<Segments<'_>, Rejected> {
    let mut segments = key.trim_matches(|c: char| c == separator || c.is_whitespace()).split(separator);
    let mut next = || segments.next().ok_or_else(|| Rejected::new(key, TOO_FEW_SEGMENTS));
    let _head = next()?;
    let (deployment, namespace, name, version, endpoints) = (next()?, next()?, next()?, next()?, next()?);
    Ok(Segments { deployment, namespace, name, version, endpoints, more: segments.next().is_some() })
}

/// The endpoints of one key, each once, and those that cannot be served.
fn endpoints(list: &str, read: impl Fn(&str) -> Result<Endpoint, Reason>) -> (Vec<Endpoint>, Vec<Rejected>) {
    let (mut endpoints, mut rejected) = (Vec::new(), Vec::new());
    for piece in list.split(',').map(str::trim).filter(|piece| !piece.is_empty()) {
        match read(piece) {
            Ok(endpoint) => endpoints.push(endpoint),
            Err(reason) => rejected.push(Rejected::new(piece, reason)),
        }
    }
    if endpoints.len() > 1 {
        let mut seen = HashSet::with_capacity(endpoints.len());
        endpoints.retain(|endpoint: &Endpoint| seen.insert(endpoint.clone()));
    }
    (endpoints, rejected)
}

/// `host:port`, as in a key.
fn endpoint(piece: &str) -> Result<Endpoint, Reason> {
    let (host, port) = piece.rsplit_once(':').ok_or(Reason::ENDPOINT_MALFORMED)?;
    host_and_port(host.trim(), port.trim())
}

/// `host-port`, as in a file name, or `host:port`, as v2.3.3 to v2.4.0 wrote.
fn file_endpoint(piece: &str) -> Result<Endpoint, Reason> {
    let (host, port) = piece.rsplit_once(['-', ':']).ok_or(Reason::ENDPOINT_MALFORMED)?;
    let host = host.trim();
    if host.starts_with('[') { host_and_port(&host.replace('-', ":"), port.trim()) } else { host_and_port(host, port.trim()) }
}

fn host_and_port(host: &str, port: &str) -> Result<Endpoint, Reason> {
    if host.is_empty() {
        return Err(Reason::ENDPOINT_MALFORMED);
    }
    // The host first: of `[:0`, which GoFrame writes for `[::]:8000`, the bracket tells a person more than the 0.
    Ok(Endpoint { host: parse_host(host)?, port: parse_port(port)? })
}

fn parse_port(port: &str) -> Result<u16, Reason> {
    // Digits only: the number parser takes a sign, too.
    let digits = !port.is_empty() && port.bytes().all(|octet| octet.is_ascii_digit());
    port.parse().ok().filter(|&port| digits && port != 0).ok_or(Reason::PORT_OUT_OF_RANGE)
}

/// An IPv4 address in strict dotted decimal, an IPv6 address in brackets, or a host name.
fn parse_host(host: &str) -> Result<Host, Reason> {
    if let Some(inside) = host.strip_prefix('[') {
        let address: Ipv6Addr = inside.strip_suffix(']').and_then(|inside| inside.parse().ok()).ok_or(Reason::HOST_MALFORMED)?;
        return usable(address.to_canonical());
    }
    if let Ok(address) = host.parse::<Ipv4Addr>() {
        return usable(address.into());
    }
    host_name(host).map(Host::Name).ok_or(Reason::HOST_MALFORMED)
}

/// Refuses what no connection can be made to: RFC 1122 section 3.2.1.3, RFC 1112 section 4, RFC 4291 section 2.7.
fn usable(address: IpAddr) -> Result<Host, Reason> {
    let unusable = match address {
        IpAddr::V4(address) => matches!(address.octets()[0], 0 | 224..),
        IpAddr::V6(address) => address.is_unspecified() || address.is_multicast(),
    };
    if unusable { Err(Reason::ADDRESS_UNUSABLE) } else { Ok(address.into()) }
}

/// A host name of letters, digits and hyphens (RFC 1123 section 2.1), lower-cased, without a trailing dot. None where it
/// ends in a number: resolvers take such names, `10.0.0.01` or `0x7f.1`, for addresses of their own reading.
fn host_name(host: &str) -> Option<Box<str>> {
    let host = host.strip_suffix('.').unwrap_or(host);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|octet| octet.is_ascii_alphanumeric() || octet == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let named = host.len() <= 253 && host.split('.').all(label) && !host.rsplit('.').next().is_some_and(is_number);
    named.then(|| host.to_ascii_lowercase().into())
}

fn is_number(label: &str) -> bool {
    let hexadecimal = label.strip_prefix("0x").or_else(|| label.strip_prefix("0X"));
    hexadecimal.is_some_and(|digits| digits.bytes().all(|octet| octet.is_ascii_hexdigit()))
        || label.bytes().all(|octet| octet.is_ascii_digit())
}

fn metadata(value: &[u8]) -> Result<BTreeMap<Box<str>, Value>, Rejected> {
    if value.len() > MAX_VALUE {
        return Err(Rejected::new(&excerpt(value), VALUE_TOO_LONG));
    }
    if value.trim_ascii().is_empty() {
        return Ok(BTreeMap::new());
    }
    // Nesting deeper than 128 is an error of the parser.
    let object: Option<BTreeMap<Box<str>, Value>> =
        serde_json::from_slice(value).map_err(|_| Rejected::new(&excerpt(value), VALUE_NOT_JSON))?;
    Ok(object.unwrap_or_default())
}

/// Enough of a text that may be neither short nor UTF-8 for [`Rejected::new`] to cut its excerpt from.
fn excerpt(octets: &[u8]) -> String {
    String::from_utf8_lossy(&octets[..octets.len().min(2048)]).into_owned()
}

fn joined(endpoints: &[Endpoint]) -> String {
    endpoints.iter().map(Endpoint::to_string).collect::<Vec<_>>().join(",")
}

/// Sorted by key at every depth, as Go writes maps.
fn object(metadata: &Metadata) -> BTreeMap<String, Value> {
    // Never the default: metadata is an object with strings as keys.
    serde_json::to_value(metadata).and_then(serde_json::from_value).unwrap_or_default()
}

fn json(object: &BTreeMap<String, Value>) -> String {
    let plain = serde_json::to_string(object).unwrap_or_default();
    let mut escaped = String::with_capacity(plain.len());
    for c in plain.chars() {
        // Outside strings JSON has none of these.
        match c {
            '<' => escaped.push_str("\\u003c"),
            '>' => escaped.push_str("\\u003e"),
            '&' => escaped.push_str("\\u0026"),
            '\u{2028}' => escaped.push_str("\\u2028"),
            '\u{2029}' => escaped.push_str("\\u2029"),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "/service/default/default/hello.svc/latest/10.9.0.5:18100";

    fn read(key: &str, value: &str) -> Result<Registration, Reason> {
        parse(key.as_bytes(), value.as_bytes()).map_err(|rejected| rejected.reason)
    }

    fn id(registration: &Registration) -> String {
        let ServiceId { deployment, namespace, name, version } = &registration.id;
        format!("{deployment} {namespace} {name} {version}")
    }

    fn shown(registration: &Registration) -> String {
        registration.endpoints.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_reader_of_many_keys_shares_what_is_equal_and_nothing_else() {
        let keys = [
            "/service/default/default/a/latest/10.0.0.1:80",
            "/service/default/default/a/latest/10.0.0.2:80",
            "/service///a//10.0.0.3:80",
            "/service/default/default/a/v1/10.0.0.1:80",
            "/service/default/prod/a/v1/10.0.0.1:80",
            "/service/other/prod/a/v1/10.0.0.1:80",
            "/service/other/prod/b/v1/10.0.0.1:80",
            "/service/other/prod",
            "/service/other/prod/b/v1/10.0.0.2:80",
        ];
        let mut reader = Reader::default();
        for key in keys {
            for value in ["", "{}", r#"{"weight":1}"#, r#"{"weight":1}"#, "no JSON", r#"{"weight":2}"#] {
                let (key, value) = (key.as_bytes(), value.as_bytes());
                assert_eq!(reader.parse(key, value), parse(key, value));
            }
        }
        let [first, second] = [keys[0], keys[1]].map(|key| reader.parse(key.as_bytes(), b"{}").unwrap());
        assert!(Arc::ptr_eq(&first.metadata, &second.metadata) && Arc::ptr_eq(&first.id.name, &second.id.name));
    }

    #[test]
    fn reads_what_goframe_writes() {
        let http = read(KEY, r#"{"insecure":true,"protocol":"http"}"#).unwrap();
        assert_eq!(id(&http), "default default hello.svc latest");
        assert_eq!(shown(&http), "10.9.0.5:18100");
        assert_eq!(http.rejected, []);
        assert_eq!(http.metadata.text("protocol").as_deref(), Some("http"));
        assert_eq!(http.metadata.text("insecure").as_deref(), Some("true"));

        let two = read("/services/prod/shop/Multi/v1.2.0/192.0.2.2:18001,web-1.Example.:9000", "{}").unwrap();
        assert_eq!(id(&two), "prod shop Multi v1.2.0");
        assert_eq!(shown(&two), "192.0.2.2:18001 web-1.example:9000");
    }

    #[test]
    fn keys_are_cut_into_segments_as_goframe_does() {
        for (key, expected) in [
            ("//service/default/default/a/latest/10.0.0.1:80", Ok("default default a latest")),
            (" /service/default/default/a/latest/10.0.0.1:80/ \n", Ok("default default a latest")),
            ("service/default/default/a/latest/10.0.0.1:80", Ok("default default a latest")),
            ("/service/default/default/a/latest/10.0.0.1:80/extra/more", Ok("default default a latest")),
            ("/service/default/default/a//10.0.0.1:80", Ok("default default a latest")),
            ("/service///a//10.0.0.1:80", Ok("default default a latest")),
            ("/service/default/default/a/latest/,", Ok("default default a latest")),
            ("/service/default/default//latest/10.0.0.1:80", Err(Reason::NAME_NOT_DNS)),
            ("/service/default/default/a/b/latest/10.0.0.1:80", Err(TOO_MANY_SEGMENTS)),
            ("/service/default/default/a/latest/0.0.0.0:80/x", Err(TOO_MANY_SEGMENTS)),
            ("/service/default/default/a/latest/", Err(TOO_FEW_SEGMENTS)),
            ("/service/default/default/a/10.0.0.1:80", Err(TOO_FEW_SEGMENTS)),
            ("/service", Err(TOO_FEW_SEGMENTS)),
            ("", Err(TOO_FEW_SEGMENTS)),
            ("///", Err(TOO_FEW_SEGMENTS)),
        ] {
            let found = read(key, "{}").map(|registration| id(&registration));
            assert_eq!(found.as_deref(), expected.as_ref().map(|id| &**id), "{key}");
        }
    }

    #[test]
    fn one_bad_endpoint_never_hurts_the_others() {
        let list = "[:0,10.0.0.1:80, 10.0.0.2 : 81 ,,:80,10.0.0.3:70000,[fd00::5]:82,10.0.0.1:80";
        let found = read(&format!("/service/default/default/a/latest/{list}"), "").unwrap();
        assert_eq!(shown(&found), "10.0.0.1:80 10.0.0.2:81 [fd00::5]:82");
        let rejected: Vec<_> = found.rejected.iter().map(|rejected| (&*rejected.found, rejected.reason)).collect();
        assert_eq!(
            rejected,
            [("[:0", Reason::HOST_MALFORMED), (":80", Reason::ENDPOINT_MALFORMED), ("10.0.0.3:70000", Reason::PORT_OUT_OF_RANGE)]
        );
    }

    #[test]
    fn endpoints() {
        let long_label = "a".repeat(64);
        let longest = format!("{}.{}", ["a".repeat(63).as_str(); 3].join("."), "b".repeat(61));
        assert_eq!(longest.len(), 253);
        for (text, expected) in [
            ("10.0.0.1:1", Ok("10.0.0.1:1")),
            ("127.0.0.1:65535", Ok("127.0.0.1:65535")),
            ("169.254.1.1:80", Ok("169.254.1.1:80")),
            ("[::1]:80", Ok("[::1]:80")),
            ("[FD00:0::5]:80", Ok("[fd00::5]:80")),
            ("[::ffff:10.0.0.1]:80", Ok("10.0.0.1:80")),
            ("localhost:18005", Ok("localhost:18005")),
            ("Web-1.Example.:9000", Ok("web-1.example:9000")),
            ("0.pool.example:9000", Ok("0.pool.example:9000")),
            ("fd00:80", Ok("fd00:80")),
            (&format!("{longest}:80"), Ok(&*format!("{longest}:80"))),
            ("latest", Err(Reason::ENDPOINT_MALFORMED)),
            ("10.0.0.1", Err(Reason::ENDPOINT_MALFORMED)),
            (":80", Err(Reason::ENDPOINT_MALFORMED)),
            (":", Err(Reason::ENDPOINT_MALFORMED)),
            ("10.0.0.1:0", Err(Reason::PORT_OUT_OF_RANGE)),
            ("10.0.0.1:70000", Err(Reason::PORT_OUT_OF_RANGE)),
            ("10.0.0.1:65536", Err(Reason::PORT_OUT_OF_RANGE)),
            ("10.0.0.1:99999999999999999999", Err(Reason::PORT_OUT_OF_RANGE)),
            ("10.0.0.1:abc", Err(Reason::PORT_OUT_OF_RANGE)),
            ("10.0.0.1:", Err(Reason::PORT_OUT_OF_RANGE)),
            ("10.0.0.1:+80", Err(Reason::PORT_OUT_OF_RANGE)),
            ("10.0.0.1:-80", Err(Reason::PORT_OUT_OF_RANGE)),
            ("10.0.0.1:0x50", Err(Reason::PORT_OUT_OF_RANGE)),
            ("10.0.0.1:８０", Err(Reason::PORT_OUT_OF_RANGE)),
            ("fd00:0", Err(Reason::PORT_OUT_OF_RANGE)),
            ("[:0", Err(Reason::HOST_MALFORMED)),
            ("[fd00:0", Err(Reason::HOST_MALFORMED)),
            ("[]:80", Err(Reason::HOST_MALFORMED)),
            ("[10.0.0.1]:80", Err(Reason::HOST_MALFORMED)),
            ("::1:80", Err(Reason::HOST_MALFORMED)),
            ("fd00::1:80", Err(Reason::HOST_MALFORMED)),
            ("[fe80::1%eth0]:80", Err(Reason::HOST_MALFORMED)),
            ("fe80::1%eth0:80", Err(Reason::HOST_MALFORMED)),
            ("999.1.1.1:80", Err(Reason::HOST_MALFORMED)),
            ("010.0.0.1:80", Err(Reason::HOST_MALFORMED)),
            ("10.0.0.01:80", Err(Reason::HOST_MALFORMED)),
            ("10.0.0.1.:80", Err(Reason::HOST_MALFORMED)),
            ("10.1:80", Err(Reason::HOST_MALFORMED)),
            ("1:80", Err(Reason::HOST_MALFORMED)),
            ("0x7f.1:80", Err(Reason::HOST_MALFORMED)),
            ("0x7f000001:80", Err(Reason::HOST_MALFORMED)),
            ("0x:80", Err(Reason::HOST_MALFORMED)),
            ("host.5:80", Err(Reason::HOST_MALFORMED)),
            ("http://10.0.0.1:80", Err(Reason::HOST_MALFORMED)),
            (".:80", Err(Reason::HOST_MALFORMED)),
            ("a..b:80", Err(Reason::HOST_MALFORMED)),
            (".a:80", Err(Reason::HOST_MALFORMED)),
            ("-a:80", Err(Reason::HOST_MALFORMED)),
            ("a-:80", Err(Reason::HOST_MALFORMED)),
            ("a_b:80", Err(Reason::HOST_MALFORMED)),
            ("a b:80", Err(Reason::HOST_MALFORMED)),
            ("a\0b:80", Err(Reason::HOST_MALFORMED)),
            ("bücher.example:80", Err(Reason::HOST_MALFORMED)),
            (&format!("{long_label}:80"), Err(Reason::HOST_MALFORMED)),
            (&format!("a{longest}:80"), Err(Reason::HOST_MALFORMED)),
            ("0.0.0.0:80", Err(Reason::ADDRESS_UNUSABLE)),
            ("0.1.2.3:80", Err(Reason::ADDRESS_UNUSABLE)),
            ("224.0.0.1:80", Err(Reason::ADDRESS_UNUSABLE)),
            ("239.255.255.255:80", Err(Reason::ADDRESS_UNUSABLE)),
            ("240.0.0.1:80", Err(Reason::ADDRESS_UNUSABLE)),
            ("255.255.255.255:80", Err(Reason::ADDRESS_UNUSABLE)),
            ("[::]:80", Err(Reason::ADDRESS_UNUSABLE)),
            ("[ff02::1]:80", Err(Reason::ADDRESS_UNUSABLE)),
            ("[::ffff:0.0.0.0]:80", Err(Reason::ADDRESS_UNUSABLE)),
            ("[::ffff:224.0.0.1]:80", Err(Reason::ADDRESS_UNUSABLE)),
        ] {
            let found = endpoint(text).map(|endpoint| endpoint.to_string());
            assert_eq!(found.as_deref(), expected.as_ref().map(|text| &**text), "{text}");
        }
    }

    #[test]
    fn values() {
        for (value, expected) in [
            ("", Ok(0)),
            ("  \n", Ok(0)),
            ("null", Ok(0)),
            ("{}", Ok(0)),
            (r#" {"a":1,"b":{"c":[]}} "#, Ok(2)),
            (r#"{"a":1,"a":2}"#, Ok(1)),
            ("[]", Err(VALUE_NOT_JSON)),
            ("5", Err(VALUE_NOT_JSON)),
            ("\"text\"", Err(VALUE_NOT_JSON)),
            ("true", Err(VALUE_NOT_JSON)),
            ("{", Err(VALUE_NOT_JSON)),
            ("{} x", Err(VALUE_NOT_JSON)),
            ("hello", Err(VALUE_NOT_JSON)),
            ("{\"a\":1e999}", Err(VALUE_NOT_JSON)),
        ] {
            assert_eq!(read(KEY, value).map(|registration| registration.metadata.len()), expected, "{value}");
        }
        let last = read(KEY, r#"{"weight":1,"weight":7}"#).unwrap();
        assert_eq!(last.metadata.weight(), 7);
        assert_eq!(parse(KEY.as_bytes(), b"{\"a\":\"\xff\"}").unwrap_err().reason, VALUE_NOT_JSON);
    }

    #[test]
    fn limits_hold_before_anything_is_parsed() {
        let filler = |size: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(size - 8));
        assert_eq!(read(KEY, &filler(MAX_VALUE)).unwrap().metadata.len(), 1);
        assert_eq!(read(KEY, &filler(MAX_VALUE + 1)), Err(VALUE_TOO_LONG));
        assert_eq!(read(KEY, &"x".repeat(1 << 20)), Err(VALUE_TOO_LONG));
        assert_eq!(read(KEY, &"[".repeat(20_000)), Err(VALUE_NOT_JSON));
        assert_eq!(read(KEY, &format!("{{\"a\":{}{}}}", "[".repeat(20_000), "]".repeat(20_000))), Err(VALUE_NOT_JSON));

        let head = "/service/default/default/";
        let long = |size: usize| format!("{head}{}/latest/10.0.0.1:80", "a".repeat(size - head.len() - 19));
        assert_eq!(long(MAX_KEY).len(), MAX_KEY);
        assert!(read(&long(MAX_KEY), "").is_ok());
        assert_eq!(read(&long(MAX_KEY + 1), ""), Err(KEY_TOO_LONG));
        assert_eq!(parse(b"/service/default/default/\xff/latest/10.0.0.1:80", b"").unwrap_err().reason, KEY_NOT_TEXT);
    }

    #[test]
    fn names_are_left_to_the_catalog() {
        for name in ["..svc", "www.google.com", "_x", "a\u{7}b", " a ", "Ü"] {
            assert_eq!(*read(&format!("/service/default/default/{name}/latest/10.0.0.1:80"), "").unwrap().id.name, *name);
        }
    }

    #[test]
    fn reads_file_names_where_goframes_own_reader_fails() {
        for (name, expected) in [
            (
                "service#default#default#demo#latest#10.9.0.5-8000,172.17.0.1-8000",
                Ok("default default demo latest 10.9.0.5:8000 172.17.0.1:8000"),
            ),
            ("svcs#prod#my-shop#user-svc#v1-rc#web-1.example-9000", Ok("prod my-shop user-svc v1-rc web-1.example:9000")),
            ("service#default#default#old#latest#127.0.0.1:8888", Ok("default default old latest 127.0.0.1:8888")),
            ("service#default#default#old#latest#web-1.example:9000", Ok("default default old latest web-1.example:9000")),
            ("service#default#default#six#latest#[fd00--5]-80", Ok("default default six latest [fd00::5]:80")),
            ("service###a##10.0.0.1-80", Ok("default default a latest 10.0.0.1:80")),
            ("service#default#shop#a#b#v1-rc#10.9.0.5-39645", Err(TOO_MANY_SEGMENTS)),
            ("service#default#shop#a#b#v1-2#10.9.0.5-39645", Err(TOO_MANY_SEGMENTS)),
            ("service#default#default##latest#10.0.0.1-80", Err(Reason::NAME_NOT_DNS)),
            ("README.txt", Err(TOO_FEW_SEGMENTS)),
        ] {
            let found = parse_file_name(name.as_bytes(), b"").map(|found| format!("{} {}", id(&found), shown(&found)));
            assert_eq!(found.as_deref().map_err(|rejected| rejected.reason), expected, "{name}");
        }
        let port = parse_file_name(b"service#default#default#a#latest#10.0.0.1-0,10.0.0.2-80", b"{}").unwrap();
        assert_eq!((shown(&port).as_str(), port.rejected[0].reason), ("10.0.0.2:80", Reason::PORT_OUT_OF_RANGE));
        assert_eq!(parse_file_name(b"service#default#default#\xff#latest#10.0.0.1-0", b"{}").unwrap_err().reason, KEY_NOT_TEXT);
        assert_eq!(parse_file_name(b"service#default#default#a#latest#10.0.0.1-80", b"[]").unwrap_err().reason, VALUE_NOT_JSON);
    }

    #[test]
    fn a_files_time_stamp_is_no_metadata() {
        let content = br#"{"UpdateAt":"2026-11-22 23:22:29","insecure":true,"protocol":"http"}"#;
        let found = parse_file_name(b"service#default#default#a#latest#10.0.0.1-80", content).unwrap();
        assert_eq!(value(&found.metadata), r#"{"insecure":true,"protocol":"http"}"#);
        assert_eq!(file_content(&found.metadata, "2026-11-22 23:22:29").as_bytes(), content);
    }

    #[test]
    fn writes_as_go_does() {
        let metadata = |json: &str| Metadata::new(serde_json::from_str(json).unwrap());
        for (json, written) in [
            ("{}", "{}"),
            (r#"{"protocol": "http", "insecure": true}"#, r#"{"insecure":true,"protocol":"http"}"#),
            (r#"{"b":{"d":1,"c":null},"B":[1,2]}"#, r#"{"B":[1,2],"b":{"c":null,"d":1}}"#),
            (r#"{"<k>":"a&b"}"#, r#"{"\u003ck\u003e":"a\u0026b"}"#),
            (r#"{"k":"a\u2028b\u2029\"\\\n"}"#, r#"{"k":"a\u2028b\u2029\"\\\n"}"#),
            (r#"{"k":"ü"}"#, r#"{"k":"ü"}"#),
        ] {
            assert_eq!(value(&metadata(json)), written);
        }
        let registration = read("/service/prod/shop/user-svc/v1-rc/10.0.0.1:80,[fd00::5]:81,web-1.example:82", "").unwrap();
        assert_eq!(
            key("service", &registration.id, &registration.endpoints),
            "/service/prod/shop/user-svc/v1-rc/10.0.0.1:80,[fd00::5]:81,web-1.example:82"
        );
        assert_eq!(
            file_name("service", &registration.id, &registration.endpoints),
            "service#prod#shop#user-svc#v1-rc#10.0.0.1-80,[fd00--5]-81,web-1.example-82"
        );
    }

    fn segment() -> impl Strategy<Value = String> {
        "[A-Za-z0-9._:, -]{0,10}[A-Za-z0-9_-]"
    }

    fn host() -> impl Strategy<Value = Host> {
        prop_oneof![
            any::<Ipv4Addr>().prop_map(IpAddr::V4).prop_filter_map("unusable", |address| usable(address).ok()),
            any::<Ipv6Addr>().prop_map(|address| address.to_canonical()).prop_filter_map("unusable", |address| usable(address).ok()),
            "[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?\\.[a-z][a-z0-9]{0,5}".prop_map(|name| Host::Name(name.into())),
        ]
    }

    fn registration() -> impl Strategy<Value = (ServiceId, Vec<Endpoint>, Metadata)> {
        let id = (segment(), segment(), segment(), segment()).prop_map(|(deployment, namespace, name, version)| ServiceId {
            deployment: deployment.into(),
            namespace: namespace.into(),
            name: name.into(),
            version: version.into(),
        });
        let endpoint = (host(), 1..=u16::MAX).prop_map(|(host, port)| Endpoint { host, port });
        let endpoints = proptest::collection::hash_set(endpoint, 1..6).prop_map(|set| set.into_iter().collect());
        let metadata = proptest::collection::btree_map(
            any::<String>().prop_filter("not metadata in a file", |key| key != UPDATE_AT).prop_map(Box::from),
            prop_oneof![any::<String>().prop_map(Value::from), any::<i64>().prop_map(Value::from), any::<bool>().prop_map(Value::from)],
            0..5,
        )
        .prop_map(Metadata::new);
        (id, endpoints, metadata)
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back((id, endpoints, metadata) in registration()) {
            let expected = Registration { id, endpoints, rejected: Vec::new(), metadata: Arc::new(metadata) };
            let Registration { id, endpoints, metadata, .. } = &expected;
            let from_key = parse(key("service", id, endpoints).as_bytes(), value(metadata).as_bytes());
            prop_assert_eq!(from_key.as_ref(), Ok(&expected));
            let content = file_content(metadata, "2026-11-22 23:22:29");
            let from_file = parse_file_name(file_name("service", id, endpoints).as_bytes(), content.as_bytes());
            prop_assert_eq!(from_file.as_ref(), Ok(&expected));
        }

        #[test]
        fn nothing_panics(key in any::<Vec<u8>>(), value in any::<Vec<u8>>()) {
            let _ = parse(&key, &value);
            let _ = parse_file_name(&key, &value);
        }

        #[test]
        fn nothing_that_looks_like_a_key_panics(list in "[\\[\\]:,.#/0-9a-fx% -]{0,40}", value in "[\\[\\]{}\":,a0]{0,20}") {
            for head in ["/service/default/default/a/latest/", "service#default#default#a#latest#"] {
                for found in [parse, parse_file_name].map(|read| read(format!("{head}{list}").as_bytes(), value.as_bytes())) {
                    let Ok(found) = found else { continue };
                    for endpoint in &found.endpoints {
                        prop_assert!(endpoint.port > 0);
                        prop_assert!(endpoint.host.address().is_none_or(|address| usable(address).is_ok()));
                    }
                }
            }
        }
    }
}
