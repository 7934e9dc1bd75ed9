//! Hedged queries: which upstream to ask first, when to ask another, and which response to use.

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

/// Limit on attempts for one query, across all upstreams.
const MAX_ATTEMPTS: usize = 12;

/// Interval at which a query in progress looks at silent upstreams.
const TICK: Duration = Duration::from_millis(200);

impl Sockets {
    /// Queries the upstreams until one gives a conclusive answer or `deadline` passes.
    ///
    /// In the order `fastest`, the best-ranked live upstream is asked first. The next one is asked
    /// as soon as the first is slower than its own 95th percentile. After [`RESPONSE_TIMEOUT`],
    /// and every second from then on, half of the remaining upstreams are asked.
    ///
    /// In strict order, the next live upstream is asked once all earlier ones failed or were
    /// silent for [`SILENCE_LIMIT`].
    ///
    /// Dead upstreams get probes of our own. If all are dead, the query waits up to
    /// [`REVIVAL_TIMEOUT`] for one of them to come back to life.
    ///
    /// NOERROR and NXDOMAIN are conclusive. If nothing better arrives, a truncated response is
    /// returned, or else the last response with another code. `deadline` should be some seconds
    /// away.
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
            // The last live upstream became unreachable: a dead one may have come back by now.
            let again = result.is_err()
                && may_wait
                && now + REVIVAL_TIMEOUT < deadline
                && upstreams.is_down(now);
            if !again {
                return result;
            }
        }
    }

    /// Queries this one upstream, regardless of its health.
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
    /// Index of its upstream among the candidates.
    index: usize,
    /// Whether it leaves out EDNS because the upstream is silent.
    without_edns: bool,
    /// Whether it repeats a query over TCP after a truncated response.
    over_tcp: bool,
    attempt: Attempt<'a>,
}

/// An upstream that may be asked.
struct UpstreamCandidate<'a> {
    upstream: &'a Arc<Upstream>,
    rank: Rank,
    /// When it was first asked.
    started: Option<Instant>,
    /// Whether it failed or gave an inconclusive response; it is not asked again.
    finished: bool,
    /// Whether it was asked without EDNS because of its silence.
    without_edns: bool,
    /// Whether it was asked over TCP after a truncated response.
    over_tcp: bool,
}

/// A query in progress over several upstreams.
struct HedgedQuery<'a> {
    sockets: &'a Sockets,
    outgoing: &'a Outgoing,
    order: UpstreamOrder,
    /// The upstreams in order of preference.
    candidates: Vec<UpstreamCandidate<'a>>,
    /// Number of queries sent so far, retransmissions included.
    attempts: usize,
    in_progress: Vec<RunningAttempt<'a>>,
    /// Whether silent upstreams are probed, and the query is hedged.
    watches_silence: bool,
    /// When to hedge the query, until it is hedged.
    hedge_at: Option<Instant>,
    /// When to look at silent upstreams next.
    next_tick: Instant,
    /// When to retransmit next, or ask more of the fastest upstreams.
    next_round: Instant,
    /// Response to return if no conclusive one arrives.
    fallback: Option<Incoming>,
    /// Failure to return if no response arrives at all.
    last_failure: QueryFailure,
}

impl<'a> UpstreamCandidate<'a> {
    /// Makes a candidate that has not been asked yet.
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

    /// Returns whether the upstream can be asked next: a dead one only once it is back.
    fn is_ready(&self, now: Instant) -> bool {
        self.started.is_none()
            && !self.finished
            && (self.rank != Rank::Dead || !self.upstream.health().is_dead(now))
    }

    /// Returns whether the upstream need not be waited for before the next one is asked.
    fn is_overdue(&self, now: Instant) -> bool {
        self.finished
            || self.started.is_none_or(|at| now.saturating_duration_since(at) >= SILENCE_LIMIT)
    }
}

impl<'a> HedgedQuery<'a> {
    /// Makes a query to the upstreams of a list, without sending it.
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

    /// Makes a query to this one upstream, without sending it.
    fn to_one(sockets: &'a Sockets, outgoing: &'a Outgoing, upstream: &'a Arc<Upstream>) -> Self {
        let candidates = vec![UpstreamCandidate::new(upstream, Rank::Alive(0))];
        let (order, now) = (UpstreamOrder::Fastest, Instant::now());
        let mut query = Self::of_candidates(sockets, outgoing, order, candidates, now);
        (query.watches_silence, query.hedge_at) = (false, None);
        query
    }

    /// Makes a query to these candidates, without sending it.
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

    /// Returns when to look at the query again if no response arrives.
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
            // A time that has passed has had its effect.
            wake = last
                .map(|last| last + SILENCE_LIMIT)
                .filter(|at| *at > now)
                .map_or(wake, |at| wake.min(at));
        }
        wake
    }

    /// Asks further upstreams, or the same ones again, as the time has come.
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
            // Ask half of the remaining upstreams, so that the last of many is reached in time.
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

    /// Probes the upstreams that are not asked first, where their health has to be known.
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
                // All upstreams know the same names, so a client's query is as good as any.
                self.start(index, now);
            }
        }
    }

    /// Finds out why upstreams are silent.
    ///
    /// One that owes any response gets a probe. One that answers other queries is asked without
    /// EDNS, as it may ignore queries that have it.
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

    /// Takes the result of one attempt; returns the response if it is conclusive.
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
                // In strict order a later upstream cannot deny what an earlier one truncated.
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

    /// Returns whether the next upstream may be asked before the next round.
    ///
    /// In strict order, all upstreams asked so far must have failed or be overdue. Otherwise none
    /// may owe a response: while one does, only the timer starts further attempts.
    fn may_advance(&self, now: Instant) -> bool {
        match self.order {
            UpstreamOrder::Strict => {
                self.candidates.iter().all(|candidate| candidate.is_overdue(now))
            }
            UpstreamOrder::Fastest => self.in_progress.is_empty(),
        }
    }

    /// Asks the next upstream not asked yet; returns `false` if there is none.
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
    /// A connection does not lose queries, so a `hedge` repeats datagrams only.
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

    /// Asks an upstream over TCP, once, because it truncated its response over UDP.
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
