//! What a user settles about answers.

use std::net::IpAddr;
use std::num::NonZeroU16;

use crate::name::Zones;

/// How names are answered.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The zones served; SRV targets, glue and PTR names lie in the first.
    pub zones: Zones,
    /// The deployment of names that spell none out, lower-cased.
    pub deployment: Box<str>,
    /// The namespace of names that spell none out, lower-cased.
    pub namespace: Box<str>,
    /// Whether a service without a key of version `latest` is answered with every version.
    pub version_fallback: bool,
    /// What to do when not all records fit.
    pub answers: Answers,
    /// TTL of positive answers, seconds.
    pub ttl: u32,
    /// TTL of negative answers and of the SOA record, seconds (RFC 2308 section 5).
    pub negative_ttl: u32,
    /// The addresses of `ns.<zone>`: those listened on.
    pub listen: Vec<IpAddr>,
    /// Whether names outside the zones are resolved elsewhere; else they are refused.
    pub forwarding: bool,
}

impl Settings {
    /// What svcdns comes with, for these zones: nothing is listened on, and names outside the zones are refused.
    #[must_use]
    pub fn new(zones: Zones) -> Self {
        Self {
            zones,
            deployment: "default".into(),
            namespace: "default".into(),
            version_fallback: true,
            answers: Answers::All,
            ttl: 5,
            negative_ttl: 1,
            listen: Vec::new(),
            forwarding: false,
        }
    }
}

/// What to do when not all records of an answer fit a datagram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Answers {
    /// As many as fit, and TC: the client may come back over TCP for all.
    #[default]
    All,
    /// As many as fit, without TC.
    Fit,
    /// At most so many records, over any transport.
    Count(NonZeroU16),
}
