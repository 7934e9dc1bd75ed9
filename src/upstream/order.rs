//! Order in which the upstreams of one list are queried.

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

use super::exchange::Upstream;

/// Order in which the upstreams of one list are queried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamOrder {
    /// Later upstreams are queried only if all earlier ones fail, are dead or silent.
    ///
    /// The C library uses resolv.conf in the same way: an earlier server may know names that a
    /// later server denies.
    Strict,
    /// The upstream with the shortest round-trip time is queried first.
    ///
    /// This order assumes that all upstreams know the same names.
    Fastest,
}

impl UpstreamOrder {
    /// Returns the order as the configuration writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Fastest => "fastest",
        }
    }

    /// Returns the text that follows a list of this many upstreams; empty for one.
    pub(super) const fn suffix(self, upstreams: usize) -> &'static str {
        match self {
            _ if upstreams < 2 => "",
            Self::Strict => ", in this order",
            Self::Fastest => ", the fastest first",
        }
    }
}

impl fmt::Display for UpstreamOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for UpstreamOrder {
    type Err = ();

    /// Parses `strict` or `fastest`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Strict, Self::Fastest].into_iter().find(|order| order.as_str() == text).ok_or(())
    }
}

/// Upstreams that resolve the same names, and the order of querying them.
#[derive(Clone, Debug)]
pub(super) struct UpstreamList {
    upstreams: Arc<[Arc<Upstream>]>,
    order: UpstreamOrder,
}

impl UpstreamList {
    /// Creates a list; upstreams of equal rank keep their order.
    pub(super) fn new(upstreams: impl Into<Arc<[Arc<Upstream>]>>, order: UpstreamOrder) -> Self {
        Self { upstreams: upstreams.into(), order }
    }

    /// Returns the order of querying the upstreams.
    pub(super) fn order(&self) -> UpstreamOrder {
        self.order
    }

    /// Returns the list with another order of querying.
    pub(super) fn with_order(self, order: UpstreamOrder) -> Self {
        Self { order, ..self }
    }

    /// Returns the list without the upstreams that `keeps` rejects, in the same order.
    pub(super) fn filtered(&self, keeps: impl Fn(&Arc<Upstream>) -> bool) -> Self {
        let upstreams = self.upstreams.iter().filter(|upstream| keeps(upstream)).cloned().collect();
        Self { upstreams, order: self.order }
    }

    /// Returns the upstreams that are not in a forwarding loop with svcdns.
    pub(super) fn usable(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        self.upstreams.iter().filter(|upstream| !upstream.is_looping())
    }

    /// Returns whether there are usable upstreams and all of them are dead.
    pub(super) fn is_down(&self, now: Instant) -> bool {
        let mut usable = self.usable().peekable();
        usable.peek().is_some() && usable.all(|upstream| upstream.health().is_dead(now))
    }
}

impl Deref for UpstreamList {
    type Target = [Arc<Upstream>];

    fn deref(&self) -> &Self::Target {
        &self.upstreams
    }
}
