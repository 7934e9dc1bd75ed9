//! The way from a question to what the upstreams say: cache first, then an exchange that equal questions share.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::addresses::addresses;
use super::cache::Key;
use super::counters::Counters;
use super::exchange::{Failure, Outgoing, Sockets, Upstream};
use super::follow::{self, InForce};
use super::hosts::{Lookup, LookupFailed};
use super::message::without_records;
use super::rebinding::{Rebinding, WITHHELD};
use super::resolver::{AtOnce, Exchange, Resolver, Unanswered};
use super::routes::Route;
use super::{Settings, UpstreamReport, special};
use crate::name::Name;
use crate::wire::{ExtendedError, Parsed, Query, Transport, flags, put_u16, rtype};

/// How long addresses hold of which only those of one family could be had.
const HALF: Duration = Duration::from_secs(30);

const NO_NAME: Unanswered =
    Unanswered { error: ExtendedError { code: ExtendedError::OTHER, text: "the name cannot be asked for elsewhere" }, asked: false };

/// Answers questions about other names. One for the whole server.
#[derive(Debug)]
pub struct Forwarder {
    shared: Arc<Shared>,
    /// For questions of our own.
    own: Arc<Way>,
}

/// The way of one thread to the upstreams: its sockets are its own, the rest is the forwarder's.
#[derive(Debug)]
pub struct Lane {
    way: Arc<Way>,
}

/// How forwarding does, for people.
#[derive(Clone, Debug)]
pub struct Report {
    /// Entries of the cache, those past their end included.
    pub entries: usize,
    /// Octets they take.
    pub octets: u64,
    /// Octets they may take; 0 without a cache.
    pub capacity: u64,
    /// Clients that wait, and refreshes under way.
    pub waiting: u64,
    /// The upstreams in force.
    pub upstreams: Vec<UpstreamReport>,
}

/// What all lanes share.
#[derive(Debug)]
struct Shared {
    settings: Settings,
    in_force: InForce,
    rebinding: Option<Rebinding>,
    resolver: Arc<Resolver>,
}

/// Sockets and who is asked over them.
#[derive(Debug)]
struct Way {
    shared: Arc<Shared>,
    sockets: Sockets,
}

impl Forwarder {
    /// Begins to forward, until `stop`. Within a runtime.
    pub fn start(settings: Settings, tracker: &TaskTracker, stop: &CancellationToken) -> Self {
        let in_force = follow::start(&settings, tracker, stop);
        let rebinding = Rebinding::of(&settings);
        let resolver = Resolver::new(settings.cache_octets, settings.stale);
        let shared = Arc::new(Shared { settings, in_force, rebinding, resolver });
        tracker.spawn(Arc::clone(&shared).forget_with_upstreams(stop.clone()));
        Self { own: Arc::new(Way::new(&shared)), shared }
    }

    /// A way in for one thread.
    pub fn lane(&self) -> Lane {
        Lane { way: Arc::new(Way::new(&self.shared)) }
    }

    /// Where a question for `name` goes, for people.
    pub fn describe(&self, name: &Name) -> String {
        self.shared.in_force.routes.load().describe(name)
    }

    /// What was counted since the start.
    pub fn counters(&self) -> &Counters {
        &self.shared.resolver.counters
    }

    /// How forwarding does now.
    pub fn report(&self) -> Report {
        let Shared { resolver, in_force, .. } = &*self.shared;
        Report {
            entries: resolver.cache.len(),
            octets: resolver.cache.octets(),
            capacity: resolver.cache.capacity(),
            waiting: resolver.waiting(),
            upstreams: in_force.routes.load().upstreams().iter().map(|upstream| upstream.report()).collect(),
        }
    }

    /// The addresses of a host outside the served zones, and how long they hold; none of both when it has none. Asked for as
    /// clients ask, through the same cache, within 4 s.
    ///
    /// # Errors
    /// When no upstream can say, or the host lies in a served zone or is a special name.
    pub async fn addresses(&self, host: &Name) -> Lookup {
        if self.shared.settings.zones.find(host).is_some() {
            return Err(LookupFailed);
        }
        let (four, six) = tokio::join!(self.addresses_of(host, rtype::A), self.addresses_of(host, rtype::AAAA));
        match (four, six) {
            (Ok((mut four, a)), Ok((six, b))) => {
                four.extend(six);
                Ok((four, a.min(b)))
            }
            (Ok((found, ttl)), Err(_)) | (Err(_), Ok((found, ttl))) if !found.is_empty() => Ok((found, ttl.min(HALF))),
            _ => Err(LookupFailed),
        }
    }

    async fn addresses_of(&self, host: &Name, qtype: u16) -> Result<(Vec<IpAddr>, Duration), LookupFailed> {
        let mut request = vec![0, 0];
        put_u16(&mut request, flags::RD);
        request.extend_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
        request.extend_from_slice(host.as_wire());
        put_u16(&mut request, qtype);
        put_u16(&mut request, rtype::IN);
        let Parsed::Query(query) = Query::parse(&request) else { return Err(LookupFailed) };
        let (entry, age) = self.shared.resolver.find(&self.own, &query, true).await.map_err(|_| LookupFailed)?;
        if entry.is_failure() {
            return Err(LookupFailed);
        }
        Ok((addresses(entry.stored.message(), host, qtype), entry.left(age)))
    }
}

impl Lane {
    /// Another one, for another thread.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self { way: Arc::new(Way::new(&self.way.shared)) }
    }

    /// Whether a message that is no plain question is to be passed on as it is: one with another opcode, where the settings
    /// say so.
    pub fn passes(&self, query: &Query<'_>) -> bool {
        let Shared { settings, in_force, .. } = &*self.way.shared;
        let other = query.flags & flags::OPCODE != 0 && !query.question.is_empty();
        other
            && settings.other_opcodes
            && Name::from_wire(query.name())
                .is_ok_and(|(name, _)| settings.zones.find(&name).is_none() && matches!(in_force.route(&name), Route::Ask(_)))
    }

    /// Writes the answer into `out`, which is empty, where it takes no asking. Else `false`. Within a runtime, where an answer
    /// that is near its end may be asked for anew.
    pub fn respond(&self, query: &Query<'_>, transport: Transport, now: Instant, out: &mut Vec<u8>) -> bool {
        let Shared { resolver, in_force, .. } = &*self.way.shared;
        // What is in the cache was once asked of the upstreams in force: it is no special name.
        let found = resolver.at_once(&self.way, query, transport, now, out);
        if found != AtOnce::Unknown {
            return found == AtOnce::Written;
        }
        let Ok((name, _)) = Name::from_wire(query.name()) else { return false };
        match in_force.route(&name) {
            Route::Here(answer) => answer.write(query, &name, out),
            Route::Nobody(error) => special::put_failure(query, error, out),
            Route::Ask(_) => return false,
        }
        true
    }

    /// Answers `request` in its own time, within 4 s. None: stay silent.
    pub async fn resolve(&self, request: Vec<u8>, transport: Transport) -> Option<Vec<u8>> {
        let resolver = &self.way.shared.resolver;
        match Query::parse(&request) {
            Parsed::Silent => None,
            Parsed::Query(query) => Some(resolver.resolve(&self.way, &request, &query, transport).await),
            // Rare, so that its room is taken only then.
            Parsed::Bad { query, .. } => Some(Box::pin(resolver.pass(&self.way, &request, &query, transport)).await),
        }
    }
}

impl Shared {
    /// Forgets what other upstreams said: they may have known other names. Not while there are none: then what is past its end
    /// is all there is.
    async fn forget_with_upstreams(self: Arc<Self>, stop: CancellationToken) {
        let mut upstreams = self.in_force.upstreams.clone();
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

impl Way {
    fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: Arc::clone(shared), sockets: Sockets::default() }
    }

    /// Who is to be asked. Apart from the asking, so that no name takes room in what waits for the answer.
    fn upstreams(&self, key: Key<'_>) -> Result<Arc<[Arc<Upstream>]>, Unanswered> {
        let (name, _) = Name::from_wire(key.question()).map_err(|_| NO_NAME)?;
        match self.shared.in_force.route(&name) {
            Route::Ask(upstreams) => Ok(upstreams),
            Route::Nobody(error) => Err(Unanswered { error, asked: false }),
            Route::Here(_) => Err(NO_NAME),
        }
    }
}

impl Exchange for Way {
    async fn ask(&self, key: Key<'_>, message: Vec<u8>, deadline: Instant) -> Result<Vec<u8>, Unanswered> {
        let Shared { settings, rebinding, .. } = &*self.shared;
        let upstreams = self.upstreams(key)?;
        let outgoing = Outgoing::new(message, settings.random_case).ok_or(NO_NAME)?;
        let incoming = self.sockets.ask(&upstreams, &outgoing, deadline).await.map_err(|failure| {
            let (code, text) = match failure {
                Failure::NoUpstream => (ExtendedError::NO_REACHABLE_AUTHORITY, "there is no upstream to ask"),
                Failure::TimedOut => (ExtendedError::NO_REACHABLE_AUTHORITY, "no upstream answered in time"),
                Failure::Unreachable => (ExtendedError::NETWORK_ERROR, "no upstream can be reached"),
                Failure::Bad => (ExtendedError::NETWORK_ERROR, "what the upstreams sent was no answer"),
            };
            Unanswered { error: ExtendedError { code, text }, asked: failure != Failure::NoUpstream }
        })?;
        tracing::trace!(upstream = ?incoming.upstream, rcode = incoming.rcode, "answered");
        if let (Some(guard), Ok((name, _))) = (rebinding, Name::from_wire(key.question()))
            && guard.offends(&name, &incoming.message)
        {
            return Ok(without_records(key.question(), WITHHELD));
        }
        Ok(incoming.message)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Servers;
    use super::super::cache::ROOM;
    use super::super::exchange::Connector;
    use super::*;
    use crate::name::Zones;

    /// glibc has memory at hand, for a thread, in pieces of up to this many octets.
    const AT_HAND: usize = 1032;

    #[tokio::test]
    async fn what_waits_for_an_answer_is_small() {
        let settings = Settings {
            servers: Servers::Named(vec!["127.0.0.1".parse().unwrap()]),
            domains: Vec::new(),
            own: Vec::new(),
            zones: Zones::new(&["svc".to_owned()]).unwrap(),
            ca_file: None,
            random_case: false,
            rebinding: None,
            cache_octets: 0,
            stale: Duration::ZERO,
            other_opcodes: false,
        };
        let forwarder = Forwarder::start(settings, &TaskTracker::new(), &CancellationToken::new());
        let lane = forwarder.lane();
        let request = b"\0\x01\x01\0\0\x01\0\0\0\0\0\0\x01a\0\0\x01\0\x01".to_vec();
        let deadline = Instant::now();
        let Parsed::Query(query) = Query::parse(&request) else { panic!("no query") };
        let mut room = ROOM;
        let key = Key::new(&query, &mut room).unwrap();
        let upstream = Upstream::new("127.0.0.1".parse().unwrap(), Connector::new(tokio::runtime::Handle::current(), None));
        let outgoing = Outgoing::new(request.clone(), false).unwrap();
        let sizes = [
            // With room for what the server's own task has besides.
            size_of_val(&lane.resolve(request.clone(), Transport::Udp)) + 400,
            size_of_val(&lane.way.ask(key, request.clone(), deadline)),
            size_of_val(&lane.way.sockets.attempt(&upstream, &outgoing)),
        ];
        assert!(sizes.iter().all(|size| *size <= AT_HAND), "{sizes:?}");
    }
}
