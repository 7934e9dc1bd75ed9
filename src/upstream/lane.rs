//! A worker's way to the upstreams: cache lookup, routing and exchange.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::alias::{AliasChain, Resolution};
use super::cache::{CacheEntry, CacheKey};
use super::exchange::{Outgoing, QueryFailure, Sockets};
use super::follow::Routing;
use super::message::{Age, StoredResponse, UpstreamMessage, empty_response};
use super::order::UpstreamList;
use super::rebinding::{RebindingGuard, WITHHELD};
use super::resolver::{
    Exchange, ExchangeError, ImmediateAnswer, MALFORMED, ResolvedQuery, Resolver,
};
use super::routes::{Route, RouteQuery};
use super::scrub::{Borders, scrub};
use super::{Settings, now, special};
use crate::name::Name;
use crate::wire::{ExtendedError, Parsed, Query, Transport, flags, rcode, u16_at};

/// Error of a query whose name or message cannot be sent to an upstream.
const UNUSABLE_NAME: ExchangeError = ExchangeError {
    error: ExtendedError { code: ExtendedError::OTHER, text: "the name cannot be forwarded" },
    sent: false,
};

/// A worker's way to the upstreams, with its own sockets.
#[derive(Debug)]
pub struct Lane {
    exchange: Arc<UpstreamExchange>,
}

/// The immediate outcome of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneOutcome {
    /// The response has been written from the cache.
    Cached,
    /// The response has been written without cache and upstreams.
    Written,
    /// The query needs the cache or the upstreams: call [`Lane::resolve`].
    Deferred,
    /// The query must not be forwarded: answer it from the registered services.
    ///
    /// The name is in a reverse zone that is local to this machine or network, or the client has
    /// not set RD.
    Outside,
}

/// State that all lanes share.
#[derive(Debug)]
pub(super) struct ForwarderShared {
    pub(super) settings: Settings,
    pub(super) routing: Routing,
    pub(super) rebinding: Option<RebindingGuard>,
    pub(super) resolver: Arc<Resolver>,
}

/// Sends queries over the sockets of one lane.
#[derive(Debug)]
struct UpstreamExchange {
    shared: Arc<ForwarderShared>,
    sockets: Sockets,
}

impl Lane {
    /// Creates a lane without open sockets.
    pub(super) fn new(shared: &Arc<ForwarderShared>) -> Self {
        Self { exchange: Arc::new(UpstreamExchange::new(shared)) }
    }

    /// Finds the response to the server's own query, as [`Resolver::resolve_entry`].
    pub(super) async fn entry(
        &self,
        query: &Query<'_>,
        began: Instant,
    ) -> Option<(Arc<CacheEntry>, Age)> {
        let resolver = &self.exchange.shared.resolver;
        resolver.resolve_entry(&self.exchange, query, began, true, None).await.ok()
    }

    /// Returns whether a name is in a served zone, and so has no upstream.
    pub(super) fn serves(&self, name: &Name) -> bool {
        self.exchange.shared.settings.zones.find(name).is_some()
    }

    /// Returns whether to forward a message with an opcode other than QUERY.
    ///
    /// The settings must allow it, and the name must have upstreams.
    pub fn passes(&self, query: &Query<'_>) -> bool {
        let ForwarderShared { settings, routing, .. } = &*self.exchange.shared;
        let other = query.flags & flags::OPCODE != 0 && !query.question.is_empty();
        other
            && settings.other_opcodes
            && Name::from_wire(query.name()).is_ok_and(|(name, _)| {
                settings.zones.find(&name).is_none()
                    && matches!(routing.route(&name, route_query(query, true)), Route::Forward(_))
            })
    }

    /// Writes the response into the empty `out` if no upstream is needed.
    ///
    /// Must be called within a Tokio runtime, because it may start the prefetch of an entry.
    pub fn respond(
        &self,
        query: &Query<'_>,
        transport: Transport,
        now: Instant,
        out: &mut Vec<u8>,
    ) -> LaneOutcome {
        let ForwarderShared { resolver, .. } = &*self.exchange.shared;
        let recursion_desired = query.flags & flags::RD != 0;
        // The cache contains only responses of the current upstreams, and so no special names.
        match resolver.answer_from_cache(&self.exchange, query, transport, now, out) {
            ImmediateAnswer::Written => return LaneOutcome::Cached,
            ImmediateAnswer::Alias => return LaneOutcome::Deferred,
            ImmediateAnswer::StaleOnly if recursion_desired => return LaneOutcome::Deferred,
            ImmediateAnswer::StaleOnly | ImmediateAnswer::NotCached => {}
        }
        self.respond_by_route(query, recursion_desired, out)
    }

    /// Writes the response into the empty `out` if the route needs no upstream.
    fn respond_by_route(
        &self,
        query: &Query<'_>,
        recursion_desired: bool,
        out: &mut Vec<u8>,
    ) -> LaneOutcome {
        let ForwarderShared { settings, routing, .. } = &*self.exchange.shared;
        let Ok((name, _)) = Name::from_wire(query.name()) else { return LaneOutcome::Deferred };
        match routing.route(&name, route_query(query, recursion_desired)) {
            Route::Local(answer) if answer.special.is_reverse() => return LaneOutcome::Outside,
            Route::Local(answer) => answer.write(query, settings.negative_ttl, out),
            Route::Fail(error) => special::put_failure(query, error, out),
            Route::Forward(_) => return LaneOutcome::Deferred,
            Route::NotRecursive => return LaneOutcome::Outside,
        }
        LaneOutcome::Written
    }

    /// Resolves `request` within 4 s; `None` means to send no response.
    ///
    /// `source` is the client's address.
    pub async fn resolve(
        &self,
        request: &[u8],
        transport: Transport,
        source: IpAddr,
    ) -> Option<Resolution> {
        let ForwarderShared { resolver, routing, .. } = &*self.exchange.shared;
        let began = now();
        let parsed = Query::parse(request);
        // Passed by reference, because a copy would make the future larger.
        let resolved = match &parsed {
            Parsed::Silent => return None,
            Parsed::Query(query) if query.flags & flags::RD == 0 => {
                resolver.resolve_cached(&*self.exchange, query, transport)
            }
            Parsed::Query(query) => {
                let source = source.to_canonical();
                let suspect = routing.routes.load().has_upstream_at(source).then_some(source);
                let resolved =
                    resolver.resolve(&self.exchange, request, query, transport, suspect).await;
                self.route_again(query, resolved)
            }
            // Boxed because it is rare: other queries must not reserve room for its future.
            Parsed::Bad { query, .. } => Some(ResolvedQuery::Response(
                Box::pin(resolver.relay(&self.exchange, request, query, transport)).await,
            )),
        };
        Some(match resolved {
            None => Resolution::Outside,
            Some(ResolvedQuery::Response(response)) => Resolution::Response(response),
            Some(ResolvedQuery::Alias { response, target }) => Resolution::Alias(Box::new(
                AliasChain::new(request.to_vec(), transport, began, response, &target),
            )),
        })
    }

    /// Replaces a failure if the route has become local; `None` means `Outside`.
    ///
    /// A name may turn out to loop while its query waits. See [`LaneOutcome::Outside`].
    fn route_again(&self, query: &Query<'_>, resolved: ResolvedQuery) -> Option<ResolvedQuery> {
        let ResolvedQuery::Response(response) = &resolved else { return Some(resolved) };
        if u16_at(response, 2).unwrap_or_default() & 0xF != rcode::SERVFAIL {
            return Some(resolved);
        }
        let mut local = Vec::new();
        match self.respond_by_route(query, true, &mut local) {
            LaneOutcome::Written | LaneOutcome::Cached => Some(ResolvedQuery::Response(local)),
            LaneOutcome::Deferred => Some(resolved),
            LaneOutcome::Outside => None,
        }
    }

    /// Resolves the last query of an alias chain, whose name is not served here.
    ///
    /// If the chain ends, writes the response to the client into the empty `out`. `Deferred` means
    /// that the chain has reached another name; `Outside` that the query must be answered from the
    /// registered services. The whole chain takes at most 4 s.
    pub async fn follow(&self, chain: &mut AliasChain, out: &mut Vec<u8>) -> LaneOutcome {
        let resolved = match Query::parse(chain.query()) {
            Parsed::Query(query) => self.resolve_target(chain, &query).await,
            Parsed::Bad { .. } | Parsed::Silent => {
                *out = chain.fail(UNUSABLE_NAME.error);
                return LaneOutcome::Written;
            }
        };
        match resolved {
            None => return LaneOutcome::Outside,
            Some(ResolvedQuery::Response(last)) => *out = self.finish(chain, &last),
            Some(ResolvedQuery::Alias { response, target }) => {
                match chain.extend(response, &target) {
                    Ok(()) => return LaneOutcome::Deferred,
                    Err(error) => *out = chain.fail(error),
                }
            }
        }
        LaneOutcome::Written
    }

    /// Resolves the last query of a chain; `None` is [`LaneOutcome::Outside`].
    async fn resolve_target(&self, chain: &AliasChain, query: &Query<'_>) -> Option<ResolvedQuery> {
        let resolver = &self.exchange.shared.resolver;
        let (transport, began) = (chain.transport(), chain.began());
        let recursion_desired = query.flags & flags::RD != 0;
        if !recursion_desired
            && let Some(resolved) = resolver.resolve_cached(&*self.exchange, query, transport)
        {
            return Some(resolved);
        }
        let mut out = Vec::new();
        match self.respond_by_route(query, recursion_desired, &mut out) {
            LaneOutcome::Written | LaneOutcome::Cached => Some(ResolvedQuery::Response(out)),
            LaneOutcome::Outside => None,
            LaneOutcome::Deferred => {
                let resolved = resolver
                    .resolve_alias(&self.exchange, chain.query(), query, transport, began)
                    .await;
                self.route_again(query, resolved)
            }
        }
    }

    /// Builds the client's response at the end of a chain; `last` is the last response.
    ///
    /// The rebinding guard checks it against the name of the client's query.
    pub fn finish(&self, chain: &AliasChain, last: &[u8]) -> Vec<u8> {
        let Parsed::Query(query) = Query::parse(chain.request()) else { return Vec::new() };
        let Ok(mut message) = chain.join(last) else { return chain.fail(MALFORMED) };
        if let Some(withheld) = self.exchange.shared.withhold(query.question, &message) {
            message = withheld;
        }
        let Ok(stored) = StoredResponse::new(&message, false) else {
            return chain.fail(MALFORMED);
        };
        let mut out = Vec::with_capacity(512);
        stored.write(&query, chain.transport(), Age::Fresh, &mut out);
        out
    }
}

/// Returns the properties of `query` that decide its route.
fn route_query(query: &Query<'_>, recursion_desired: bool) -> RouteQuery {
    RouteQuery { qtype: query.qtype, recursion_desired }
}

impl ForwarderShared {
    /// Returns the replacement for a response that the rebinding guard withholds.
    ///
    /// `question` is the name, type and class. Returns `None` if the response is not withheld.
    fn withhold(&self, question: &[u8], message: &[u8]) -> Option<Vec<u8>> {
        let (guard, (name, _)) = (self.rebinding.as_ref()?, Name::from_wire(question).ok()?);
        guard.withholds(&name, message).then(|| empty_response(question, WITHHELD))
    }

    /// Removes the records from an upstream's message that it has no authority over.
    ///
    /// Messages of other opcodes are passed on unchanged.
    fn accept(
        &self,
        key: CacheKey<'_>,
        message: Vec<u8>,
        is_query: bool,
    ) -> Result<UpstreamMessage, ExchangeError> {
        let mut message = UpstreamMessage::from(message);
        if is_query {
            let routes = self.routing.routes.load();
            let borders = Borders { zones: &self.settings.zones, routes: &routes };
            message = scrub(message.bytes, borders)
                .map_err(|_| ExchangeError { error: MALFORMED, sent: true })?;
        }
        Ok(self.withhold(key.question(), &message.bytes).map_or(message, UpstreamMessage::from))
    }

    /// Clears the cache at each change of upstreams: new ones may know other names.
    ///
    /// The cache is kept while there are no upstreams: then, stale entries are the only data.
    pub(super) async fn clear_cache_on_change(self: Arc<Self>, stop: CancellationToken) {
        let mut upstreams = self.routing.upstreams.clone();
        upstreams.mark_unchanged();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                changed = upstreams.changed() => if changed.is_err() { return },
            }
            if !upstreams.borrow_and_update().is_empty() {
                self.resolver.cache.clear();
            }
        }
    }
}

impl UpstreamExchange {
    /// Creates an exchange without open sockets.
    fn new(shared: &Arc<ForwarderShared>) -> Self {
        Self { shared: Arc::clone(shared), sockets: Sockets::default() }
    }

    /// Returns the upstreams of the key's name.
    ///
    /// A separate function, so that the name takes no room in the future that awaits the response.
    fn upstreams(&self, key: CacheKey<'_>) -> Result<UpstreamList, ExchangeError> {
        let question = key.question();
        let (name, length) = Name::from_wire(question).map_err(|_| UNUSABLE_NAME)?;
        let qtype = u16_at(question, length).unwrap_or_default();
        match self.shared.routing.route(&name, RouteQuery { qtype, recursion_desired: true }) {
            Route::Forward(upstreams) => Ok(upstreams),
            Route::Fail(error) => Err(ExchangeError { error, sent: false }),
            Route::Local(_) | Route::NotRecursive => Err(UNUSABLE_NAME),
        }
    }
}

impl Exchange for UpstreamExchange {
    fn is_down(&self, key: CacheKey<'_>) -> bool {
        self.upstreams(key).is_ok_and(|upstreams| upstreams.is_down(Instant::now()))
    }

    async fn query(
        &self,
        key: CacheKey<'_>,
        message: Vec<u8>,
        deadline: Instant,
        interrupt: &Notify,
    ) -> Result<UpstreamMessage, ExchangeError> {
        let ForwarderShared { settings, .. } = &*self.shared;
        let is_query = u16_at(&message, 2).unwrap_or_default() & flags::OPCODE == 0;
        let outgoing = Outgoing::new(message, settings.random_case).ok_or(UNUSABLE_NAME)?;
        let (upstreams, result) = loop {
            let upstreams = self.upstreams(key)?;
            tokio::select! {
                biased;
                result = self.sockets.query_upstreams(&upstreams, &outgoing, deadline) => {
                    break (upstreams, result);
                }
                // An upstream sends the query back, so the others are queried.
                () = interrupt.notified() => {}
            }
        };
        let incoming = result.map_err(|failure| {
            let (code, text) = match failure {
                QueryFailure::NoUpstream => {
                    (ExtendedError::NO_REACHABLE_AUTHORITY, "no upstream is available")
                }
                QueryFailure::TimedOut => {
                    (ExtendedError::NO_REACHABLE_AUTHORITY, "no upstream answered in time")
                }
                QueryFailure::Dead => {
                    (ExtendedError::NO_REACHABLE_AUTHORITY, "no upstream answers")
                }
                QueryFailure::Unreachable => {
                    (ExtendedError::NETWORK_ERROR, "no upstream can be reached")
                }
                QueryFailure::BadResponse => {
                    (ExtendedError::NETWORK_ERROR, "the upstreams sent no valid response")
                }
            };
            let sent = match failure {
                QueryFailure::NoUpstream | QueryFailure::Dead => false,
                // The next query finds out at once whether an upstream is reachable again.
                QueryFailure::Unreachable => !upstreams.is_down(Instant::now()),
                QueryFailure::TimedOut | QueryFailure::BadResponse => true,
            };
            ExchangeError { error: ExtendedError { code, text }, sent }
        })?;
        tracing::trace!(upstream = ?incoming.upstream, rcode = incoming.rcode, "answered");
        self.shared.accept(key, incoming.message, is_query)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use tokio_util::task::TaskTracker;

    use super::super::cache::EMPTY_KEY_BUFFER;
    use super::super::exchange::{Connector, Upstream};
    use super::super::{Forwarder, Servers};
    use super::*;
    use crate::name::Zones;

    /// Maximum size of an allocation in glibc's thread cache, in bytes.
    const GLIBC_TCACHE_MAX_BYTES: usize = 1032;

    #[tokio::test]
    async fn futures_of_waiting_queries_are_small() {
        let settings = Settings {
            servers: Servers::Named(vec!["127.0.0.1".parse().unwrap()]),
            domains: Vec::new(),
            order: None,
            own: Vec::new(),
            zones: Zones::new(&["svc".to_owned()]).unwrap(),
            ca_file: None,
            random_case: false,
            rebinding: None,
            cache_bytes: 0,
            stale: Duration::ZERO,
            negative_ttl: 1,
            other_opcodes: false,
            forward_single_labels: false,
        };
        let (tracker, stop) = (TaskTracker::new(), CancellationToken::new());
        let forwarder = Forwarder::start(Some(settings), &tracker, &stop);
        let lane = forwarder.lane().load_full().unwrap();
        let request = b"\0\x01\x01\0\0\x01\0\0\0\0\0\0\x01a\0\0\x01\0\x01".to_vec();
        let (deadline, interrupt) = (Instant::now(), Notify::const_new());
        let Parsed::Query(query) = Query::parse(&request) else { panic!("no query") };
        let mut buffer = EMPTY_KEY_BUFFER;
        let key = CacheKey::new(&query, &mut buffer).unwrap();
        let upstream = Upstream::new(
            "127.0.0.1".parse().unwrap(),
            Connector::new(tokio::runtime::Handle::current(), None),
        );
        let outgoing = Outgoing::new(request.clone(), false).unwrap();
        let sizes = [
            // The constant allows for the rest of the server's task.
            size_of_val(&lane.resolve(&request, Transport::Udp, Ipv4Addr::LOCALHOST.into())) + 400,
            size_of_val(&lane.exchange.query(key, request.clone(), deadline, &interrupt)),
            size_of_val(&lane.exchange.sockets.attempt(&upstream, &outgoing)),
        ];
        assert!(sizes.iter().all(|size| *size <= GLIBC_TCACHE_MAX_BYTES), "{sizes:?}");
    }
}
