//! A question to several upstreams: who is asked first, who next, and whose answer is taken.

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

/// Tries of one question in all, however many upstreams there are.
const MAX_ATTEMPTS: usize = 12;

impl Sockets {
    /// Asks the upstreams until one has an answer, or `deadline`, which should be some seconds away.
    ///
    /// The best of those that live is asked; when it is slower than nineteen of twenty of its answers, the next one too; when
    /// that is of no use either, after the time-out and every second from then on the next. Dead ones come last, unless all
    /// are, then all are asked at once. NOERROR and NXDOMAIN end it; of other answers the last is returned when nobody does
    /// better, and a truncated one before those.
    ///
    /// # Errors
    /// When there is no answer whatsoever.
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
        // Stable: the order of the configuration decides between equals.
        ranked.sort_by_key(|(rank, _)| *rank);
        let mut query = HedgedQuery::new(self, outgoing, ranked);
        query.run(now, deadline).await
    }

    /// Asks this one upstream, whatever is known of it.
    ///
    /// # Errors
    /// When it gives no answer whatsoever.
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

type Attempt<'a> =
    Pin<Box<dyn Future<Output = Result<UpstreamResponse, AttemptError>> + Send + 'a>>;

/// One question on its way.
struct HedgedQuery<'a> {
    sockets: &'a Sockets,
    outgoing: &'a Outgoing,
    ranked: Vec<(Rank, &'a Arc<Upstream>)>,
    /// How many of `ranked` were started, probes apart.
    started: usize,
    /// How many times anybody was asked.
    attempts: usize,
    /// What is under way, and whom it asks: its index in `ranked`.
    in_progress: Vec<(usize, Attempt<'a>)>,
    /// Those who answered to no avail, or cannot be reached, by index in `ranked`: not asked again.
    finished: Vec<usize>,
    /// The best of what came so far.
    fallback: Option<Incoming>,
    last_failure: QueryFailure,
}

impl<'a> HedgedQuery<'a> {
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
                    // Half of those that are left, so that many upstreams are no reason to give up on the last.
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

    /// Takes what one try brought; the end of it all when that is an answer.
    fn take_result(
        &mut self,
        index: usize,
        result: Result<UpstreamResponse, AttemptError>,
    ) -> Option<Incoming> {
        let (_, upstream) = self.ranked[index];
        match result {
            Ok(answer) => {
                upstream.health().record_refusal(matches!(
                    answer.rcode,
                    rcode::REFUSED | rcode::NOTIMP | rcode::FORMERR
                ));
                let (is_final, is_truncated) = (answer.is_final(), answer.is_truncated());
                let incoming = Incoming {
                    message: answer.message,
                    upstream: Arc::clone(upstream),
                    rcode: answer.rcode,
                };
                if is_final && !is_truncated {
                    return Some(incoming);
                }
                if is_final
                    || !self
                        .fallback
                        .as_ref()
                        .is_some_and(|best| matches!(best.rcode, rcode::NOERROR | rcode::NXDOMAIN))
                {
                    self.fallback = Some(incoming);
                }
            }
            Err(miss) => {
                let unreachable = matches!(miss, AttemptError::Unreachable(_));
                upstream.health().record_failure(&miss.to_string(), unreachable, Instant::now());
                self.last_failure = match miss {
                    AttemptError::Unreachable(_) => QueryFailure::Unreachable,
                    AttemptError::BadResponse(_) => QueryFailure::BadResponse,
                    AttemptError::Busy => QueryFailure::TimedOut,
                };
            }
        }
        self.finished.push(index);
        None
    }

    /// Whether somebody who lives still owes an answer: then nobody else is asked before the clock says so.
    fn awaits_live_upstream(&self) -> bool {
        self.in_progress
            .iter()
            .any(|(index, _)| *index < self.started && self.ranked[*index].0 != Rank::Dead)
    }

    /// Asks the next one that was not asked yet.
    fn start_next(&mut self) -> bool {
        while self.started < self.ranked.len() && self.attempts < MAX_ATTEMPTS {
            let index = self.started;
            self.started += 1;
            // A probe is under way, or was to no avail.
            if !self.finished.contains(&index)
                && !self.in_progress.iter().any(|(other, _)| *other == index)
            {
                self.start(index);
                return true;
            }
        }
        false
    }

    /// Asks the best once more of those that were silent: a datagram may be lost. What a connection carries is not, so that
    /// those are not asked again as a `hedge`.
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

    fn start(&mut self, index: usize) {
        let (_, upstream) = self.ranked[index];
        self.attempts += 1;
        self.in_progress.push((index, Box::pin(self.sockets.attempt(upstream, self.outgoing))));
    }
}

#[cfg(test)]
mod tests;
