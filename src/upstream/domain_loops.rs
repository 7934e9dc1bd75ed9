//! Detection of forwarding loops that affect single domains.
//!
//! Another resolver on the machine or network may forward some domains to svcdns while svcdns
//! forwards all other names to that resolver. A query for a name in such a domain that svcdns does
//! not serve then loops: resolvers merge identical queries, so each waits for the other.
//!
//! A query from an upstream's own address that svcdns forwards to that upstream is only suspicious,
//! because all programs of a machine use its loopback address. If the query is still in flight a
//! moment later, svcdns queries the upstream for a token below the name. If that token comes back,
//! the domain loops: svcdns marks the domain and routes all queries for its names again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::exchange::{Sockets, Upstream};
use super::follow::Routing;
use super::in_flight::{InFlight, SuspectedLoop};
use super::loop_guard::MAX_TOKEN_DOMAIN_BYTES;
use super::routes::{Route, RouteQuery};
use crate::name::Name;
use crate::wire::rtype;

/// Interval of scans for suspicious queries while there are any.
///
/// A healthy upstream answers most queries within this interval; the second scan leads to a check.
const SCAN_INTERVAL: Duration = Duration::from_millis(50);
/// Time limit for an upstream's response to a token.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(1);
/// Time for which a name that does not loop is not checked again.
const HEALTHY_FOR: Duration = Duration::from_secs(300);
/// Maximum names known not to loop; beyond this number, all are forgotten.
const MAX_HEALTHY_NAMES: usize = 1024;

/// Checks suspicious queries for loops.
#[derive(Debug)]
pub(super) struct DomainLoops {
    check: Arc<LoopCheck>,
    /// Names that do not loop, with the time of their check.
    healthy: HashMap<Name, Instant>,
}

/// The inputs of a check.
#[derive(Debug)]
struct LoopCheck {
    routing: Routing,
    in_flight: Arc<InFlight>,
    sockets: Sockets,
}

impl DomainLoops {
    /// Creates a detector for these queries in flight.
    pub(super) fn new(routing: Routing, in_flight: Arc<InFlight>) -> Self {
        let check = LoopCheck { routing, in_flight, sockets: Sockets::default() };
        Self { check: Arc::new(check), healthy: HashMap::new() }
    }

    /// Checks suspicious queries, one at a time per address, until `stop` is cancelled.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let (mut checks, mut busy) = (JoinSet::new(), Vec::new());
        loop {
            let due = self.check.in_flight.scan(&busy);
            let is_idle = due.is_none();
            let (due, now) = (due.unwrap_or_default(), Instant::now());
            for suspected in due.into_iter().filter(|due| !self.is_healthy(&due.name, now)) {
                busy.push(suspected.address);
                let check = Arc::clone(&self.check);
                checks.spawn(async move {
                    let is_healthy = check.is_healthy(&suspected).await;
                    (suspected, is_healthy)
                });
            }
            // The pause applies even when idle: most suspicious queries end at once, and waking up
            // for each of them would cost more than the query.
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(SCAN_INTERVAL) => {}
            }
            while let Some(checked) = checks.try_join_next() {
                // A check does not panic, so the result is always there.
                let Ok((SuspectedLoop { name, address }, is_healthy)) = checked else { continue };
                busy.retain(|other| *other != address);
                if is_healthy {
                    self.add_healthy(name);
                }
            }
            if is_idle {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = self.check.in_flight.suspected() => {}
                }
            }
        }
    }

    /// Returns whether the name was recently found not to loop.
    fn is_healthy(&self, name: &Name, now: Instant) -> bool {
        self.healthy.get(name).is_some_and(|checked| now < *checked + HEALTHY_FOR)
    }

    /// Records a name that does not loop.
    fn add_healthy(&mut self, name: Name) {
        if self.healthy.len() >= MAX_HEALTHY_NAMES {
            self.healthy.clear();
        }
        self.healthy.insert(name, Instant::now());
    }
}

impl LoopCheck {
    /// Checks whether the upstreams at the suspected address send queries for the name back.
    ///
    /// Returns whether the name is known not to loop. If it loops, its domain is marked.
    async fn is_healthy(&self, suspected: &SuspectedLoop) -> bool {
        let SuspectedLoop { name, address } = suspected;
        let query = RouteQuery { qtype: rtype::ANY, recursion_desired: true };
        let Route::Forward(upstreams) = self.routing.routes.load().find(name, query) else {
            return false;
        };
        let name = &with_room(name);
        let mut healthy = true;
        for upstream in upstreams.iter().filter(|upstream| upstream.ip() == *address) {
            match self.loops_below(upstream, name).await {
                Some(true) => self.mark(upstream, name).await,
                Some(false) => continue,
                None => {}
            }
            healthy = false;
        }
        healthy
    }

    /// Returns whether the upstream sends queries for names below `domain` back.
    ///
    /// Returns `None` if the check is inconclusive.
    async fn loops_below(&self, upstream: &Arc<Upstream>, domain: &Name) -> Option<bool> {
        self.routing.guard.loops_below(&self.sockets, upstream, domain, TOKEN_TIMEOUT).await
    }

    /// Marks the widest domain around a looping name and routes its queries again.
    async fn mark(&self, upstream: &Arc<Upstream>, name: &Name) {
        // Clients of this name need not wait for the search.
        upstream.loops().mark(name);
        self.in_flight.interrupt(name);
        let domain = self.widest_domain(upstream, name).await;
        if upstream.loops().mark(&domain) {
            tracing::warn!(
                upstream = %upstream.target(),
                %domain,
                "this upstream sends queries for names in this domain back to svcdns: they are not \
                 sent to it until the loop is gone"
            );
        }
        self.in_flight.interrupt(&domain);
    }

    /// Returns the widest domain around a looping name that also loops.
    async fn widest_domain(&self, upstream: &Arc<Upstream>, name: &Name) -> Name {
        let zone = self.routing.routes.load().special_zone(name);
        // Usually, the whole zone is forwarded.
        if let Some(zone) = &zone
            && self.loops_below(upstream, zone).await == Some(true)
        {
            return *zone;
        }
        let mut widest = *name;
        while let Some(parent) = parent(&widest).filter(|parent| Some(parent) != zone.as_ref())
            && self.loops_below(upstream, &parent).await == Some(true)
        {
            widest = parent;
        }
        widest
    }
}

/// Returns the name itself or the closest name above it that has room for a token.
fn with_room(name: &Name) -> Name {
    let mut domain = *name;
    while domain.as_wire().len() > MAX_TOKEN_DOMAIN_BYTES
        && let Some(parent) = parent(&domain)
    {
        domain = parent;
    }
    domain
}

/// Returns the name without its first label; `None` if that would be the root.
fn parent(name: &Name) -> Option<Name> {
    let bytes = name.as_wire();
    let rest = bytes.get(1 + usize::from(bytes[0])..)?;
    let (parent, _) = Name::from_wire(rest).ok()?;
    (parent != Name::ROOT).then_some(parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_or_its_parent_has_room_for_a_token() {
        let name = |text: &str| Name::from_text(text).unwrap();
        let long = ["x".repeat(60), "y".repeat(60), "z".repeat(60), "w".repeat(60)];
        assert_eq!(with_room(&name(&long.join("."))), name(&long[1..].join(".")));
        assert_eq!(with_room(&name("a.corp.example")), name("a.corp.example"));
        assert_eq!(parent(&name("a.corp.example")), Some(name("corp.example")));
        assert_eq!([parent(&name("example")), parent(&Name::ROOT)], [None; 2]);
    }
}
