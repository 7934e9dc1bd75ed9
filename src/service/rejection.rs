//! Rejected keys and endpoints, and the reasons for their rejection.

use std::fmt;

use serde::{Serialize, Serializer};

/// A key or endpoint that cannot be served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rejected {
    /// The offending text, cut to 256 characters, with control characters escaped.
    pub found: Box<str>,
    /// Reason for the rejection.
    pub reason: Reason,
}

/// Maximum length of the excerpt of a rejected text, in characters.
const MAX_EXCERPT_CHARS: usize = 256;

impl Rejected {
    /// Creates a rejection with a printable excerpt of the offending text.
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

/// Reason for a rejection: a code for scripts and a sentence for people.
///
/// The constants here are the reasons that the catalog or any registry may give. A reason that only
/// one kind of registry or key layout gives is a constant of its module. Reasons are ordered by
/// code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reason {
    code: &'static str,
    sentence: &'static str,
}

impl Reason {
    /// The name is not a DNS name.
    ///
    /// Labels have 1-63 characters of `[a-z0-9_-]` and do not begin with `_`.
    pub const NAME_NOT_DNS: Self = Self::new(
        "name-not-dns",
        "the name is not a DNS name: each label must have 1 to 63 characters of a-z, 0-9, '-' and \
         '_', and not begin with '_'",
    );
    /// The name with its zone exceeds the 253 characters of a DNS name.
    pub const NAME_TOO_LONG: Self =
        Self::new("name-too-long", "the name is too long for DNS (253 characters with its zone)");
    /// The name is `ns`, `dns-version`, or the zone itself.
    pub const NAME_RESERVED: Self = Self::new("name-reserved", "the name is reserved");
    /// The instance is not an object of the form that its registry describes.
    pub const INSTANCE_MALFORMED: Self = Self::new(
        "instance-malformed",
        "the instance is not an object as its registry describes it",
    );
    /// The endpoint is not `host:port`.
    pub const ENDPOINT_MALFORMED: Self =
        Self::new("endpoint-malformed", "the endpoint is not host:port");
    /// The port is not a number from 1 to 65535.
    pub const PORT_OUT_OF_RANGE: Self =
        Self::new("port-out-of-range", "the port is not a number from 1 to 65535");
    /// The host is neither an IP address nor a host name.
    pub const HOST_MALFORMED: Self =
        Self::new("host-malformed", "the host is neither an IP address nor a host name");
    /// The host is in a served zone, so looking it up would lead back to this server.
    pub const HOST_IN_ZONE: Self =
        Self::new("host-in-zone", "the host is a name in a zone served here");
    /// The address is unspecified, multicast, broadcast or reserved.
    pub const ADDRESS_UNUSABLE: Self = Self::new(
        "address-unusable",
        "the address cannot be an endpoint (unspecified, multicast, broadcast or reserved)",
    );
    /// The address belongs to the port bridge, so a connection to it would lead back to the bridge.
    pub const ENDPOINT_OF_BRIDGE: Self = Self::new(
        "endpoint-of-bridge",
        "the address is in the pool of the port bridge (bridge.pool), so it would lead back here",
    );
    /// The service would exceed the limit on its instances in one registry.
    pub const TOO_MANY_INSTANCES: Self = Self::new(
        "too-many-instances",
        "the service would exceed the limit on its instances (max-instances-per-service)",
    );
    /// The registry would exceed the limit on its keys.
    pub const TOO_MANY_KEYS: Self =
        Self::new("too-many-keys", "the registry would exceed the limit on its keys (max-keys)");

    /// Creates a reason from its code (lower case with hyphens) and its sentence.
    ///
    /// Codes are unique in the crate, as `tests/house.rs` checks.
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
