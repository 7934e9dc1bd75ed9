//! Hedged queries: which upstream to ask first, when to ask another, and which response to use.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use super::Protocol;
use super::exchange::{
    AttemptError, Incoming, Outgoing, QueryFailure, Sockets, Upstream, UpstreamResponse,
};
use super::health::{RESPONSE_TIMEOUT, Rank};
use crate::wire::rcode;

/// Limit on attempts for one query, across all upstreams.
const MAX_ATTEMPTS: usize = 12;

impl Sockets {
    /// Queries the upstreams until one gives a conclusive answer or `deadline` passes.
    ///
    /// The best-ranked live upstream is queried first, the next one as soon as the first is
    /// slower than its own 95th percentile. After [`RESPONSE_TIMEOUT`], and every second from then
    /// on, half of the remaining upstreams are queried. Dead upstreams come last; if all are dead,
    /// all are queried at once.
    ///
    /// NOERROR and NXDOMAIN are conclusive. If nothing better arrives, a truncated response is
    /// returned, or else the last response with another code. `deadline` should be some seconds
    /// away.
    ///
    /// # Errors
    /// Returns an error if no upstream sent a usable response.
    pub(super) async fn query(
        &self,
        upstreams: &[Arc<Upstream>],
        outgoing: &Outgoing,
        deadline: Instant,
    ) -> Result<Incoming, QueryFailure> {
        let now = Instant::now();
        let mut ranked: Vec<_> = upstreams
            .iter()
            .filter(|upstream| !upstream.is_looping())
            .map(|upstream| (upstream.health().rank(now), upstream))
            .collect();
        // The sort is stable: the order of the configuration decides between equal ranks.
        ranked.sort_by_key(|(rank, _)| *rank);
        let mut query = HedgedQuery::new(self, outgoing, ranked);
        query.run(now, deadline).await
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
        let now = Instant::now();
        let mut query = HedgedQuery::new(self, outgoing, vec![(Rank::Dead, upstream)]);
        query.run(now, deadline).await
    }
}

/// An attempt at one upstream, in progress.
type Attempt<'a> =
    Pin<Box<dyn Future<Output = Result<UpstreamResponse, AttemptError>> + Send + 'a>>;

/// A query in progress over several upstreams.
struct HedgedQuery<'a> {
    sockets: &'a Sockets,
    outgoing: &'a Outgoing,
    ranked: Vec<(Rank, &'a Arc<Upstream>)>,
    /// Number of upstreams in `ranked` queried in turn; probes are not counted.
    started: usize,
    /// Number of queries sent so far, retransmissions and probes included.
    attempts: usize,
    /// Attempts in progress, each with the index of its upstream in `ranked`.
    in_progress: Vec<(usize, Attempt<'a>)>,
    /// Indexes of upstreams that failed or gave an inconclusive response.
    ///
    /// Such upstreams are not queried again.
    finished: Vec<usize>,
    /// Response to return if no conclusive one arrives.
    fallback: Option<Incoming>,
    /// Failure to return if no response arrives at all.
    last_failure: QueryFailure,
}

impl<'a> HedgedQuery<'a> {
    /// Makes a query to these upstreams, in their order, without sending it.
    fn new(
        sockets: &'a Sockets,
        outgoing: &'a Outgoing,
        ranked: Vec<(Rank, &'a Arc<Upstream>)>,
    ) -> Self {
        let (in_progress, finished) = (Vec::with_capacity(2), Vec::new());
        Self {
            sockets,
            outgoing,
            ranked,
            started: 0,
            attempts: 0,
            in_progress,
            finished,
            fallback: None,
            last_failure: QueryFailure::TimedOut,
        }
    }

    /// Runs the query until it is decided or `deadline` passes.
    async fn run(&mut self, began: Instant, deadline: Instant) -> Result<Incoming, QueryFailure> {
        let Some((first, upstream)) = self.ranked.first() else {
            return Err(QueryFailure::NoUpstream);
        };
        let mut next_start = began
            + if *first == Rank::Dead { RESPONSE_TIMEOUT } else { upstream.health().hedge_delay() };
        if *first == Rank::Dead {
            while self.start_next() {}
        } else {
            self.start_next();
            for index in 1..self.ranked.len() {
                if self.ranked[index].1.health().take_probe(began) {
                    self.start(index);
                }
            }
        }
        let mut timer = pin!(tokio::time::sleep_until(next_start.min(deadline).into()));
        loop {
            let next = poll_fn(|context| {
                for (at, (_, attempt)) in self.in_progress.iter_mut().enumerate() {
                    if let Poll::Ready(result) = attempt.as_mut().poll(context) {
                        return Poll::Ready(Some((at, result)));
                    }
                }
                timer.as_mut().poll(context).map(|()| None)
            });
            match next.await {
                Some((at, result)) => {
                    let (index, _) = self.in_progress.swap_remove(at);
                    if let Some(incoming) = self.take_result(index, result) {
                        return Ok(incoming);
                    }
                    if !self.awaits_live_upstream()
                        && !self.start_next()
                        && self.in_progress.is_empty()
                    {
                        return self.fallback.take().ok_or(self.last_failure);
                    }
                }
                None if Instant::now() >= deadline => {
                    return self.fallback.take().ok_or(QueryFailure::TimedOut);
                }
                None => {
                    // Query half of the remaining upstreams, so that the last of many is reached in
                    // time.
                    let hedge = next_start < began + RESPONSE_TIMEOUT;
                    let more = if hedge {
                        1
                    } else {
                        (self.ranked.len() - self.started).div_ceil(2).max(1)
                    };
                    for _ in 0..more {
                        if !self.start_next() {
                            self.retransmit(hedge);
                        }
                    }
                    next_start = if hedge {
                        began + RESPONSE_TIMEOUT
                    } else {
                        next_start + RESPONSE_TIMEOUT
                    };
                    timer.as_mut().reset(next_start.min(deadline).into());
                }
            }
        }
    }

    /// Takes the result of one attempt; returns the response if it is conclusive.
    fn take_result(
        &mut self,
        index: usize,
        result: Result<UpstreamResponse, AttemptError>,
    ) -> Option<Incoming> {
        let (_, upstream) = self.ranked[index];
        match result {
            Ok(response) => {
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
                if is_final && !is_truncated {
                    return Some(incoming);
                }
                if is_final
                    || !self.fallback.as_ref().is_some_and(|fallback| {
                        matches!(fallback.rcode, rcode::NOERROR | rcode::NXDOMAIN)
                    })
                {
                    self.fallback = Some(incoming);
                }
            }
            Err(error) => {
                let unreachable = matches!(error, AttemptError::Unreachable(_));
                upstream.health().record_failure(&error.to_string(), unreachable, Instant::now());
                self.last_failure = match error {
                    AttemptError::Unreachable(_) => QueryFailure::Unreachable,
                    AttemptError::BadResponse(_) => QueryFailure::BadResponse,
                    AttemptError::Busy => QueryFailure::TimedOut,
                };
            }
        }
        self.finished.push(index);
        None
    }

    /// Returns whether a live upstream still owes a response.
    ///
    /// While one does, only the timer starts further attempts.
    fn awaits_live_upstream(&self) -> bool {
        self.in_progress
            .iter()
            .any(|(index, _)| *index < self.started && self.ranked[*index].0 != Rank::Dead)
    }

    /// Queries the next upstream not queried yet; returns `false` if there is none.
    fn start_next(&mut self) -> bool {
        while self.started < self.ranked.len() && self.attempts < MAX_ATTEMPTS {
            let index = self.started;
            self.started += 1;
            // Skip an upstream that a probe has queried already.
            if !self.finished.contains(&index)
                && !self.in_progress.iter().any(|(other, _)| *other == index)
            {
                self.start(index);
                return true;
            }
        }
        false
    }

    /// Queries the least-tried silent upstream again: a datagram may have been lost.
    ///
    /// A connection does not lose queries, so a `hedge` repeats datagrams only.
    fn retransmit(&mut self, hedge: bool) {
        let silent = (0..self.ranked.len())
            .filter(|index| !self.finished.contains(index))
            .filter(|index| !hedge || self.ranked[*index].1.target().protocol == Protocol::Plain)
            .min_by_key(|index| {
                self.in_progress.iter().filter(|(other, _)| other == index).count()
            });
        if let Some(index) = silent.filter(|_| self.attempts < MAX_ATTEMPTS) {
            self.start(index);
        }
    }

    /// Starts an attempt at one upstream.
    fn start(&mut self, index: usize) {
        let (_, upstream) = self.ranked[index];
        self.attempts += 1;
        self.in_progress.push((index, Box::pin(self.sockets.attempt(upstream, self.outgoing))));
    }
}

#[cfg(test)]
mod tests;
