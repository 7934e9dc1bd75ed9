//! Hedged queries: which upstream to query first, when to query the next, which response to use.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::Protocol;
use super::exchange::{
    AttemptError, Incoming, Outgoing, QueryFailure, Sockets, Upstream, UpstreamResponse,
};
use super::health::{RESPONSE_TIMEOUT, Rank, SILENCE_LIMIT};
use super::order::{UpstreamList, UpstreamOrder};
use super::revival::{PROBE_GAP, REVIVAL_TIMEOUT, await_revival};
use crate::wire::rcode;

/// Limit on attempts for one query, over all upstreams.
const MAX_ATTEMPTS: usize = 12;

/// Interval at which a query in progress checks silent upstreams.
const TICK: Duration = Duration::from_millis(200);

impl Sockets {
    /// Queries the upstreams until one gives a conclusive answer or `deadline` passes.
    ///
    /// In the order `fastest`, the live upstream with the best rank is queried first. The next one
    /// is queried once the first is slower than its own 95th percentile. After
    /// [`RESPONSE_TIMEOUT`], and every second from then on, half of the remaining upstreams are
    /// queried.
    ///
    /// In strict order, the next live upstream is queried once all earlier ones have failed or have
    /// been silent for [`SILENCE_LIMIT`].
    ///
    /// Dead upstreams only get probes. If all are dead, the query waits up to [`REVIVAL_TIMEOUT`]
    /// for one of them to come back to life.
    ///
    /// NOERROR and NXDOMAIN are conclusive. If no conclusive response arrives, a truncated one is
    /// returned or, without one, the last response with another code. `deadline` should be a few
    /// seconds away.
    ///
    /// # Errors
    /// Returns an error if no upstream sent a usable response.
    pub(super) async fn query_upstreams(
        &self,
        upstreams: &UpstreamList,
        outgoing: &Outgoing,
        deadline: Instant,
    ) -> Result<Incoming, QueryFailure> {
        let mut may_wait = true;
        loop {
            let now = Instant::now();
            if may_wait && upstreams.is_down(now) {
                may_wait = false;
                // Boxed because it is rare: other queries must not reserve room for its future.
                Box::pin(await_revival(upstreams, now, deadline)).await?;
                continue;
            }
            let result = HedgedQuery::new(self, outgoing, upstreams, now).run(now, deadline).await;
            let now = Instant::now();
            // The last live upstream became unreachable, but a dead one may have come back by now.
            let again = result.is_err()
                && may_wait
                && now + REVIVAL_TIMEOUT < deadline
                && upstreams.is_down(now);
            if !again {
                return result;
            }
        }
    }

    /// Queries this upstream only, regardless of its health.
    ///
    /// # Errors
    /// Returns an error if the upstream sent no usable response.
    pub(super) async fn query_one(
        &self,
        upstream: &Arc<Upstream>,
        outgoing: &Outgoing,
        deadline: Instant,
    ) -> Result<Incoming, QueryFailure> {
        HedgedQuery::to_one(self, outgoing, upstream).run(Instant::now(), deadline).await
    }
}

/// An attempt at one upstream.
type Attempt<'a> =
    Pin<Box<dyn Future<Output = Result<UpstreamResponse, AttemptError>> + Send + 'a>>;

/// An attempt in progress.
struct RunningAttempt<'a> {
    /// Index of the attempt's upstream among the candidates.
    index: usize,
    /// Whether the attempt has no EDNS because the upstream is silent.
    without_edns: bool,
    /// Whether the attempt repeats a query over TCP after a truncated response.
    over_tcp: bool,
    attempt: Attempt<'a>,
}

/// An upstream that the query may use.
struct UpstreamCandidate<'a> {
    upstream: &'a Arc<Upstream>,
    rank: Rank,
    /// Time at which the upstream was first queried.
    started: Option<Instant>,
    /// Whether the upstream failed or was inconclusive; it is not queried again.
    finished: bool,
    /// Whether the upstream was queried without EDNS because of its silence.
    without_edns: bool,
    /// Whether the upstream was queried over TCP after a truncated response.
    over_tcp: bool,
}

/// A query in progress at several upstreams.
struct HedgedQuery<'a> {
    sockets: &'a Sockets,
    outgoing: &'a Outgoing,
    order: UpstreamOrder,
    /// The upstreams in order of preference.
    candidates: Vec<UpstreamCandidate<'a>>,
    /// Number of queries sent so far, including retransmissions.
    attempts: usize,
    in_progress: Vec<RunningAttempt<'a>>,
    /// Whether silent upstreams are probed, and the query is hedged.
    watches_silence: bool,
    /// Time at which to hedge the query; `None` once it is hedged.
    hedge_at: Option<Instant>,
    /// Time of the next check of silent upstreams.
    next_tick: Instant,
    /// Time at which to query further upstreams, in the order `fastest`, or else to retransmit.
    next_round: Instant,
    /// Response to return if no conclusive response arrives.
    fallback: Option<Incoming>,
    /// Failure to return if no response arrives at all.
    last_failure: QueryFailure,
}

impl<'a> UpstreamCandidate<'a> {
    /// Creates a candidate that has not been queried yet.
    fn new(upstream: &'a Arc<Upstream>, rank: Rank) -> Self {
        Self {
            upstream,
            rank,
            started: None,
            finished: false,
            without_edns: false,
            over_tcp: false,
        }
    }

    /// Returns whether the upstream can be queried next.
    ///
    /// A dead upstream must first answer a probe.
    fn is_ready(&self, now: Instant) -> bool {
        self.started.is_none()
            && !self.finished
            && (self.rank != Rank::Dead || !self.upstream.health().is_dead(now))
    }

    /// Returns whether the next upstream may be queried without waiting for this one.
    fn is_overdue(&self, now: Instant) -> bool {
        self.finished
            || self.started.is_none_or(|at| now.saturating_duration_since(at) >= SILENCE_LIMIT)
    }
}

impl<'a> HedgedQuery<'a> {
    /// Creates a query to the upstreams of a list, without sending it.
    fn new(
        sockets: &'a Sockets,
        outgoing: &'a Outgoing,
        upstreams: &'a UpstreamList,
        now: Instant,
    ) -> Self {
        let order = upstreams.order();
        let mut candidates = Vec::with_capacity(upstreams.len());
        for upstream in upstreams.usable() {
            let rank = match order {
                UpstreamOrder::Fastest => upstream.health().rank(now),
                UpstreamOrder::Strict if upstream.health().is_known_dead(now) => Rank::Dead,
                UpstreamOrder::Strict => Rank::Alive(0),
            };
            candidates.push(UpstreamCandidate::new(upstream, rank));
        }
        if order == UpstreamOrder::Fastest {
            // The sort is stable: the order of the configuration decides between equal ranks.
            candidates.sort_by_key(|candidate| candidate.rank);
        }
        Self::of_candidates(sockets, outgoing, order, candidates, now)
    }

    /// Creates a query to this upstream only, without sending it.
    fn to_one(sockets: &'a Sockets, outgoing: &'a Outgoing, upstream: &'a Arc<Upstream>) -> Self {
        let candidates = vec![UpstreamCandidate::new(upstream, Rank::Alive(0))];
        let (order, now) = (UpstreamOrder::Fastest, Instant::now());
        let mut query = Self::of_candidates(sockets, outgoing, order, candidates, now);
        (query.watches_silence, query.hedge_at) = (false, None);
        query
    }

    /// Creates a query to these candidates, without sending it.
    fn of_candidates(
        sockets: &'a Sockets,
        outgoing: &'a Outgoing,
        order: UpstreamOrder,
        candidates: Vec<UpstreamCandidate<'a>>,
        now: Instant,
    ) -> Self {
        let first = candidates.iter().find(|candidate| candidate.rank != Rank::Dead);
        let hedge_at = first.map(|first| now + first.upstream.health().hedge_delay());
        Self {
            sockets,
            outgoing,
            order,
            candidates,
            attempts: 0,
            in_progress: Vec::with_capacity(2),
            watches_silence: true,
            hedge_at,
            next_tick: now + TICK,
            next_round: now + RESPONSE_TIMEOUT,
            fallback: None,
            last_failure: QueryFailure::TimedOut,
        }
    }

    /// Runs the query until it is decided or `deadline` passes.
    async fn run(&mut self, began: Instant, deadline: Instant) -> Result<Incoming, QueryFailure> {
        if self.candidates.is_empty() {
            return Err(QueryFailure::NoUpstream);
        }
        if !self.start_next(began) {
            return Err(QueryFailure::Dead);
        }
        if self.watches_silence {
            self.probe_others(began);
        }
        let mut timer = pin!(tokio::time::sleep_until(self.next_wake(began).min(deadline).into()));
        loop {
            let next = poll_fn(|context| {
                for (at, running) in self.in_progress.iter_mut().enumerate() {
                    if let Poll::Ready(result) = running.attempt.as_mut().poll(context) {
                        return Poll::Ready(Some((at, result)));
                    }
                }
                timer.as_mut().poll(context).map(|()| None)
            });
            let event = next.await;
            let now = Instant::now();
            match event {
                Some((at, result)) => {
                    let running = self.in_progress.swap_remove(at);
                    if let Some(incoming) = self.take_result(&running, result) {
                        return Ok(incoming);
                    }
                    if self.may_advance(now) {
                        self.start_next(now);
                    }
                    if self.in_progress.is_empty() {
                        return self.fallback.take().ok_or(self.last_failure);
                    }
                }
                None if now >= deadline => {
                    return self.fallback.take().ok_or(QueryFailure::TimedOut);
                }
                None => self.advance(now),
            }
            timer.as_mut().reset(self.next_wake(now).min(deadline).into());
        }
    }

    /// Returns the time of the next check of the query if no response arrives.
    fn next_wake(&self, now: Instant) -> Instant {
        let mut wake = self.next_round;
        if self.watches_silence {
            wake = wake.min(self.next_tick);
        }
        if let Some(hedge_at) = self.hedge_at {
            wake = wake.min(hedge_at);
        }
        if self.order == UpstreamOrder::Strict
            && self.candidates.iter().any(|candidate| candidate.is_ready(now))
        {
            let last = self.candidates.iter().filter_map(|candidate| candidate.started).max();
            // A time in the past has already had its effect.
            wake = last
                .map(|last| last + SILENCE_LIMIT)
                .filter(|at| *at > now)
                .map_or(wake, |at| wake.min(at));
        }
        wake
    }

    /// Queries further upstreams, or the same ones again, once the time has come.
    fn advance(&mut self, now: Instant) {
        if self.hedge_at.is_some_and(|at| at <= now) {
            self.hedge_at = None;
            if self.order == UpstreamOrder::Strict || !self.start_next(now) {
                self.retransmit(true);
            }
        }
        if self.order == UpstreamOrder::Strict && self.may_advance(now) {
            self.start_next(now);
        }
        if self.watches_silence && self.next_tick <= now {
            self.next_tick += TICK;
            self.watch_silence(now);
        }
        if self.next_round <= now {
            self.next_round += RESPONSE_TIMEOUT;
            // Half of the remaining upstreams are queried, so that the last of many is reached in
            // time.
            let more = match self.order {
                UpstreamOrder::Strict => 0,
                UpstreamOrder::Fastest => {
                    let remaining =
                        self.candidates.iter().filter(|candidate| candidate.is_ready(now));
                    remaining.count().div_ceil(2)
                }
            };
            let started = (0..more).filter(|_| self.start_next(now)).count();
            if started == 0 {
                self.retransmit(false);
            }
        }
    }

    /// Probes dead upstreams and, in [`UpstreamOrder::Fastest`], unqueried ones, if due.
    fn probe_others(&mut self, now: Instant) {
        for index in 0..self.candidates.len() {
            let UpstreamCandidate { upstream, rank, started, .. } = self.candidates[index];
            if rank == Rank::Dead {
                if upstream.health().take_probe(now) {
                    upstream.probe(PROBE_GAP);
                }
            } else if self.order == UpstreamOrder::Fastest
                && started.is_none()
                && upstream.health().take_probe(now)
            {
                // All upstreams know the same names, so a client's query can replace the probe.
                self.start(index, now);
            }
        }
    }

    /// Finds out why upstreams are silent.
    ///
    /// An upstream with any unanswered query gets a probe. An upstream that answers other queries
    /// is queried without EDNS, because it may ignore queries with EDNS.
    fn watch_silence(&mut self, now: Instant) {
        for index in 0..self.candidates.len() {
            let UpstreamCandidate { upstream, started, finished, without_edns, .. } =
                self.candidates[index];
            let Some(started) = started.filter(|_| !finished && !without_edns) else { continue };
            let silence = now.saturating_duration_since(started);
            if silence < SILENCE_LIMIT {
                continue;
            }
            if !upstream.health().has_responded_since(started) {
                upstream.probe(PROBE_GAP);
            } else if self.outgoing.has_opt() && !upstream.health().is_edns_disabled(now) {
                // An upstream that has answered queries with EDNS is more likely to be slow, and
                // without EDNS its response would have no DNSSEC records.
                let may_lack_edns = if upstream.speaks_edns() {
                    silence >= RESPONSE_TIMEOUT && !self.outgoing.wants_dnssec()
                } else {
                    true
                };
                if may_lack_edns && self.attempts < MAX_ATTEMPTS {
                    self.candidates[index].without_edns = true;
                    self.start(index, now);
                }
            }
        }
    }

    /// Handles the result of one attempt; returns the response if it is conclusive.
    fn take_result(
        &mut self,
        running: &RunningAttempt<'a>,
        result: Result<UpstreamResponse, AttemptError>,
    ) -> Option<Incoming> {
        let RunningAttempt { index, without_edns, over_tcp, .. } = *running;
        let upstream = self.candidates[index].upstream;
        match result {
            Ok(response) => {
                let has_opt = response.has_opt();
                if without_edns {
                    upstream.check_edns();
                }
                upstream.health().record_refusal(matches!(
                    response.rcode,
                    rcode::REFUSED | rcode::NOTIMP | rcode::FORMERR
                ));
                let (is_final, is_truncated) = (response.is_final(), response.is_truncated());
                let incoming = Incoming {
                    message: response.message,
                    upstream: Arc::clone(upstream),
                    rcode: response.rcode,
                };
                let before = self.fallback.as_ref().map(|fallback| fallback.rcode);
                // In strict order, a later upstream cannot deny a name that an earlier one answered
                // truncated.
                let is_denied = self.order == UpstreamOrder::Strict
                    && before == Some(rcode::NOERROR)
                    && incoming.rcode == rcode::NXDOMAIN;
                if is_final && !is_truncated && !is_denied {
                    return Some(incoming);
                }
                if is_final && !is_denied
                    || !before.is_some_and(|code| matches!(code, rcode::NOERROR | rcode::NXDOMAIN))
                {
                    self.fallback = Some(incoming);
                }
                if is_truncated && !over_tcp && upstream.target().protocol == Protocol::Plain {
                    self.start_over_tcp(index, has_opt);
                    return None;
                }
            }
            Err(error) => {
                let unreachable = matches!(error, AttemptError::Unreachable(_));
                upstream.health().record_failure(&error.to_string(), unreachable, Instant::now());
                self.last_failure = match error {
                    AttemptError::Unreachable(_) => QueryFailure::Unreachable,
                    AttemptError::BadResponse(_) | AttemptError::Malformed => {
                        QueryFailure::BadResponse
                    }
                    AttemptError::Busy => QueryFailure::TimedOut,
                };
            }
        }
        self.candidates[index].finished = true;
        None
    }

    /// Returns whether the next upstream may be queried before the next round.
    ///
    /// In strict order, all upstreams queried so far must have failed or be overdue. In the order
    /// `fastest`, no attempt may be in progress: while one is, only the timer starts further ones.
    fn may_advance(&self, now: Instant) -> bool {
        match self.order {
            UpstreamOrder::Strict => {
                self.candidates.iter().all(|candidate| candidate.is_overdue(now))
            }
            UpstreamOrder::Fastest => self.in_progress.is_empty(),
        }
    }

    /// Queries the next upstream not queried yet; returns `false` if there is none.
    fn start_next(&mut self, now: Instant) -> bool {
        if self.attempts >= MAX_ATTEMPTS {
            return false;
        }
        let next = self.candidates.iter().position(|candidate| candidate.is_ready(now));
        if let Some(index) = next {
            self.start(index, now);
        }
        next.is_some()
    }

    /// Queries the least-tried silent upstream again: a datagram may have been lost.
    ///
    /// A connection loses no queries, so a `hedge` repeats only datagrams.
    fn retransmit(&mut self, hedge: bool) {
        let silent = (0..self.candidates.len())
            .filter(|index| {
                let UpstreamCandidate { upstream, started, finished, .. } = self.candidates[*index];
                started.is_some()
                    && !finished
                    && (!hedge || upstream.target().protocol == Protocol::Plain)
            })
            .min_by_key(|index| {
                self.in_progress.iter().filter(|running| running.index == *index).count()
            });
        if let Some(index) = silent.filter(|_| self.attempts < MAX_ATTEMPTS) {
            self.start(index, Instant::now());
        }
    }

    /// Starts an attempt at one upstream.
    fn start(&mut self, index: usize, now: Instant) {
        let UpstreamCandidate { upstream, started, without_edns, .. } = &mut self.candidates[index];
        let without_edns = *without_edns;
        started.get_or_insert(now);
        self.attempts += 1;
        let attempt: Attempt<'a> = if without_edns {
            Box::pin(self.sockets.attempt_without_edns(upstream, self.outgoing))
        } else {
            Box::pin(self.sockets.attempt(upstream, self.outgoing))
        };
        self.in_progress.push(RunningAttempt { index, without_edns, over_tcp: false, attempt });
    }

    /// Queries an upstream over TCP, once, because its UDP response was truncated.
    fn start_over_tcp(&mut self, index: usize, edns: bool) {
        let UpstreamCandidate { upstream, over_tcp, .. } = &mut self.candidates[index];
        if std::mem::replace(over_tcp, true) {
            return;
        }
        let attempt = Box::pin(self.sockets.attempt_over_tcp(upstream, self.outgoing, edns));
        self.in_progress.push(RunningAttempt {
            index,
            without_edns: false,
            over_tcp: true,
            attempt,
        });
    }
}

#[cfg(test)]
mod tests;
