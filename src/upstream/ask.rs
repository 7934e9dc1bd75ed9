//! A question to several upstreams: who is asked first, who next, and whose answer is taken.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use super::Protocol;
use super::exchange::{Answer, Failure, Incoming, Miss, Outgoing, Sockets, Upstream};
use super::health::{Rank, TIME_OUT};
use crate::wire::rcode;

/// Tries of one question in all, however many upstreams there are.
const MOST_TRIES: usize = 12;

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
    pub(super) async fn ask(&self, upstreams: &[Arc<Upstream>], outgoing: &Outgoing, deadline: Instant) -> Result<Incoming, Failure> {
        let now = Instant::now();
        let mut ranked: Vec<_> =
            upstreams.iter().filter(|upstream| !upstream.is_set_aside()).map(|upstream| (upstream.health().rank(now), upstream)).collect();
        // Stable: the order of the configuration decides between equals.
        ranked.sort_by_key(|(rank, _)| *rank);
        let mut asking = Asking::new(self, outgoing, ranked);
        asking.run(now, deadline).await
    }

    /// Asks this one upstream, whatever is known of it.
    ///
    /// # Errors
    /// When it gives no answer whatsoever.
    pub(super) async fn ask_one(&self, upstream: &Arc<Upstream>, outgoing: &Outgoing, deadline: Instant) -> Result<Incoming, Failure> {
        let now = Instant::now();
        let mut asking = Asking::new(self, outgoing, vec![(Rank::Dead, upstream)]);
        asking.run(now, deadline).await
    }
}

type Try<'a> = Pin<Box<dyn Future<Output = Result<Answer, Miss>> + Send + 'a>>;

/// One question on its way.
struct Asking<'a> {
    sockets: &'a Sockets,
    outgoing: &'a Outgoing,
    ranked: Vec<(Rank, &'a Arc<Upstream>)>,
    /// How many of `ranked` were begun, probes apart.
    begun: usize,
    /// How many times anybody was asked.
    tries: usize,
    /// What is under way, and whom it asks: its place in `ranked`.
    under_way: Vec<(usize, Try<'a>)>,
    /// Those who answered to no avail, or cannot be reached, by place in `ranked`: not asked again.
    done: Vec<usize>,
    /// The best of what came so far.
    best: Option<Incoming>,
    worst: Failure,
}

impl<'a> Asking<'a> {
    fn new(sockets: &'a Sockets, outgoing: &'a Outgoing, ranked: Vec<(Rank, &'a Arc<Upstream>)>) -> Self {
        let (under_way, done) = (Vec::with_capacity(2), Vec::new());
        Self { sockets, outgoing, ranked, begun: 0, tries: 0, under_way, done, best: None, worst: Failure::TimedOut }
    }

    async fn run(&mut self, began: Instant, deadline: Instant) -> Result<Incoming, Failure> {
        let Some((first, upstream)) = self.ranked.first() else { return Err(Failure::NoUpstream) };
        let mut patience = began + if *first == Rank::Dead { TIME_OUT } else { upstream.health().hedge_after() };
        if *first == Rank::Dead {
            while self.begin_next() {}
        } else {
            self.begin_next();
            for place in 1..self.ranked.len() {
                if self.ranked[place].1.health().take_probe(began) {
                    self.begin(place);
                }
            }
        }
        let mut timer = pin!(tokio::time::sleep_until(patience.min(deadline).into()));
        loop {
            let next = poll_fn(|context| {
                for (at, (_, attempt)) in self.under_way.iter_mut().enumerate() {
                    if let Poll::Ready(result) = attempt.as_mut().poll(context) {
                        return Poll::Ready(Some((at, result)));
                    }
                }
                timer.as_mut().poll(context).map(|()| None)
            });
            match next.await {
                Some((at, result)) => {
                    let (place, _) = self.under_way.swap_remove(at);
                    if let Some(incoming) = self.hear(place, result) {
                        return Ok(incoming);
                    }
                    if !self.is_awaited() && !self.begin_next() && self.under_way.is_empty() {
                        return self.best.take().ok_or(self.worst);
                    }
                }
                None if Instant::now() >= deadline => return self.best.take().ok_or(Failure::TimedOut),
                None => {
                    // Half of those that are left, so that many upstreams are no reason to give up on the last.
                    let hedge = patience < began + TIME_OUT;
                    let more = if hedge { 1 } else { (self.ranked.len() - self.begun).div_ceil(2).max(1) };
                    for _ in 0..more {
                        if !self.begin_next() {
                            self.repeat(hedge);
                        }
                    }
                    patience = if hedge { began + TIME_OUT } else { patience + TIME_OUT };
                    timer.as_mut().reset(patience.min(deadline).into());
                }
            }
        }
    }

    /// Takes what one try brought; the end of it all when that is an answer.
    fn hear(&mut self, place: usize, result: Result<Answer, Miss>) -> Option<Incoming> {
        let (_, upstream) = self.ranked[place];
        match result {
            Ok(answer) => {
                upstream.health().refused(matches!(answer.rcode, rcode::REFUSED | rcode::NOTIMP | rcode::FORMERR));
                let (is_final, is_truncated) = (answer.is_final(), answer.is_truncated());
                let incoming = Incoming { message: answer.message, upstream: Arc::clone(upstream), rcode: answer.rcode };
                if is_final && !is_truncated {
                    return Some(incoming);
                }
                if is_final || !self.best.as_ref().is_some_and(|best| matches!(best.rcode, rcode::NOERROR | rcode::NXDOMAIN)) {
                    self.best = Some(incoming);
                }
            }
            Err(miss) => {
                let unreachable = matches!(miss, Miss::Unreachable(_));
                upstream.health().failed(&miss.to_string(), unreachable, Instant::now());
                self.worst = match miss {
                    Miss::Unreachable(_) => Failure::Unreachable,
                    Miss::Bad(_) => Failure::Bad,
                    Miss::Busy => Failure::TimedOut,
                };
            }
        }
        self.done.push(place);
        None
    }

    /// Whether somebody who lives still owes an answer: then nobody else is asked before the clock says so.
    fn is_awaited(&self) -> bool {
        self.under_way.iter().any(|(place, _)| *place < self.begun && self.ranked[*place].0 != Rank::Dead)
    }

    /// Asks the next one that was not asked yet.
    fn begin_next(&mut self) -> bool {
        while self.begun < self.ranked.len() && self.tries < MOST_TRIES {
            let place = self.begun;
            self.begun += 1;
            // A probe is under way, or was to no avail.
            if !self.done.contains(&place) && !self.under_way.iter().any(|(other, _)| *other == place) {
                self.begin(place);
                return true;
            }
        }
        false
    }

    /// Asks the best once more of those that were silent: a datagram may be lost. What a connection carries is not, so that
    /// those are not asked again as a `hedge`.
    fn repeat(&mut self, hedge: bool) {
        let silent = (0..self.ranked.len())
            .filter(|place| !self.done.contains(place))
            .filter(|place| !hedge || self.ranked[*place].1.target().protocol == Protocol::Plain)
            .min_by_key(|place| self.under_way.iter().filter(|(other, _)| other == place).count());
        if let Some(place) = silent.filter(|_| self.tries < MOST_TRIES) {
            self.begin(place);
        }
    }

    fn begin(&mut self, place: usize) {
        let (_, upstream) = self.ranked[place];
        self.tries += 1;
        self.under_way.push((place, Box::pin(self.sockets.attempt(upstream, self.outgoing))));
    }
}

#[cfg(test)]
mod tests;
