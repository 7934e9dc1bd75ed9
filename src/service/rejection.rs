//! Why something in a registry cannot be served.

use std::fmt;

use serde::{Serialize, Serializer};

/// Something that cannot be served: the offending text and the reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rejected {
    /// What was found, shortened to 256 characters, control characters escaped.
    pub found: Box<str>,
    /// Why it cannot be served.
    pub reason: Reason,
}

/// Longest excerpt of a rejected text that is kept, in characters.
const MAX_EXCERPT_CHARS: usize = 256;

impl Rejected {
    /// Keeps an excerpt of `found` that is safe to print.
    pub fn new(found: &str, reason: Reason) -> Self {
        let mut excerpt = String::with_capacity(found.len().min(MAX_EXCERPT_CHARS + 8));
        for (count, c) in found.chars().enumerate() {
            if count == MAX_EXCERPT_CHARS {
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

/// Why a key or an endpoint is skipped: a code for scripts, and a sentence for people.
///
/// The reasons here are those that any registry may give, and the follower's own. A reason that only one kind of registry or
/// one layout of keys has is a constant of that module. Reasons are ordered by their code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reason {
    code: &'static str,
    sentence: &'static str,
}

impl Reason {
    /// No DNS name: labels of 1-63 of `[a-z0-9_-]` are, none beginning with `_`.
    pub const NAME_NOT_DNS: Self = Self::new(
        "name-not-dns",
        "the name is not a DNS name: labels of 1 to 63 of a-z, 0-9, '-' and '_', none beginning with '_'",
    );
    /// Over the 253 characters of a DNS name with its zone.
    pub const NAME_TOO_LONG: Self =
        Self::new("name-too-long", "the name is too long for DNS (253 characters with its zone)");
    /// `ns`, `dns-version`, or the zone itself.
    pub const NAME_RESERVED: Self = Self::new("name-reserved", "the name is reserved");
    /// No `host:port`.
    pub const ENDPOINT_MALFORMED: Self =
        Self::new("endpoint-malformed", "the endpoint is not host:port");
    /// Port 0, above 65535 or no number.
    pub const PORT_OUT_OF_RANGE: Self =
        Self::new("port-out-of-range", "the port is not a number from 1 to 65535");
    /// Neither an address nor a host name.
    pub const HOST_MALFORMED: Self =
        Self::new("host-malformed", "the host is neither an IP address nor a host name");
    /// A host name inside a served zone, which would lead back here.
    pub const HOST_IN_ZONE: Self =
        Self::new("host-in-zone", "the host is a name in a zone served here");
    /// An unspecified, multicast, broadcast or reserved address.
    pub const ADDRESS_UNUSABLE: Self = Self::new(
        "address-unusable",
        "the address cannot be an endpoint (unspecified, multicast, broadcast or reserved)",
    );
    /// Over the instances of one service that are served.
    pub const TOO_MANY_INSTANCES: Self = Self::new(
        "too-many-instances",
        "the service has more instances than are served (max-instances-per-service)",
    );
    /// Over the keys of one registry that are followed.
    pub const TOO_MANY_KEYS: Self =
        Self::new("too-many-keys", "the registry has more keys than are followed (max-keys)");

    /// Makes a reason of its code (lower case with hyphens; `tests/house.rs` holds codes unique in the program) and its sentence.
    pub const fn new(code: &'static str, sentence: &'static str) -> Self {
        Self { code, sentence }
    }

    /// Returns the code, for scripts and metrics.
    pub fn code(self) -> &'static str {
        self.code
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.sentence)
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.code)
    }
}
