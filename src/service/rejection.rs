//! Why something in a registry cannot be served.

use serde::Serialize;

/// Something that cannot be served: the offending text and the reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rejected {
    /// What was found, shortened to 256 characters, control characters escaped.
    pub found: Box<str>,
    /// Why it cannot be served.
    pub reason: Reason,
}

/// Longest excerpt of a rejected text that is kept, in characters.
const EXCERPT: usize = 256;

impl Rejected {
    /// Keeps an excerpt of `found` that is safe to print.
    pub fn new(found: &str, reason: Reason) -> Self {
        let mut excerpt = String::with_capacity(found.len().min(EXCERPT + 8));
        for (count, c) in found.chars().enumerate() {
            if count == EXCERPT {
                excerpt.push('…');
                break;
            }
            if c.is_control() {
                excerpt.extend(c.escape_default());
            } else {
                excerpt.push(c);
            }
        }
        Self { found: excerpt.into(), reason }
    }
}

/// Why a key or an endpoint is skipped. The `Display` form is for people, the serialised form for scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// GoFrame's layout has six segments.
    #[error("the key has fewer than the six segments /head/deployment/namespace/name/version/endpoints")]
    TooFewSegments,
    /// GoFrame escapes nothing: a `/` in a name shifts every later segment.
    #[error("the key has too many segments: a name cannot hold '/' ('#' in a file name)")]
    TooManySegments,
    /// Larger than `max-key-size`.
    #[error("the key is longer than 4096 octets")]
    KeyTooLong,
    /// The key is not UTF-8.
    #[error("the key is not valid UTF-8")]
    KeyNotText,
    /// Larger than `max-value-size`.
    #[error("the value is larger than 64 KiB")]
    ValueTooLong,
    /// A value must be one flat JSON object, or empty.
    #[error("the value is not a JSON object")]
    ValueNotJson,
    /// A folder, a pipe, a device or a symbolic link where a file is expected, or no permission to read it.
    #[error("not a regular file that can be read")]
    Unreadable,
    /// Not a DNS name: labels of 1-63 of `[a-z0-9_-]`, none beginning with `_`.
    #[error("the name is not a DNS name: labels of 1 to 63 of a-z, 0-9, '-' and '_', none beginning with '_'")]
    NameNotDns,
    /// Over the 253 characters of a DNS name with its zone.
    #[error("the name is too long for DNS (253 characters with its zone)")]
    NameTooLong,
    /// `ns`, `dns-version`, or the zone itself.
    #[error("the name is reserved")]
    NameReserved,
    /// No `host:port`.
    #[error("the endpoint is not host:port")]
    EndpointMalformed,
    /// Port 0, above 65535 or no number.
    #[error("the port is not a number from 1 to 65535")]
    PortOutOfRange,
    /// Neither an address nor a host name outside the served zones.
    #[error("the host is neither an IP address nor a host name")]
    HostMalformed,
    /// A host name inside a served zone would lead back here.
    #[error("the host is a name in a zone served here")]
    HostInZone,
    /// Unspecified, multicast, broadcast or reserved.
    #[error("the address cannot be an endpoint (unspecified, multicast, broadcast or reserved)")]
    AddressUnusable,
    /// The cap on instances of one service.
    #[error("the service has more instances than are served")]
    TooManyInstances,
    /// The cap on keys of one registry.
    #[error("the registry has more keys than are followed")]
    TooManyKeys,
}
