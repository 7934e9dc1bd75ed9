//! Names that could not get an address or a listener, until they can.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};
use std::time::Duration;

use ipnet::Ipv4Net;
use tokio::time::Instant;

use super::bound::BindFailure;
use crate::service::BridgeCandidate;

/// Pause before the first retry; each one in vain doubles it.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause between two retries.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// Limit on the names of one retry.
const MAX_NAMES: usize = 256;

/// The names, and when to try them again.
#[derive(Debug, Default)]
pub(super) struct WaitingNames {
    candidates: BTreeMap<Box<str>, BridgeCandidate>,
    /// The name that was tried last.
    last: Box<str>,
    due: Option<Instant>,
    pause: Duration,
    /// The round of retries in progress, if there is one.
    round: Option<RetryRound>,
    /// Whether the log says that the pool is full.
    said_full: bool,
    /// Whether the log says that a port is taken.
    said_taken: bool,
}

/// A round of retries.
#[derive(Debug)]
struct RetryRound {
    /// Number of names still to try; 0 if that would be in vain.
    left: usize,
    failed: usize,
}

/// Reason why a name stays direct for now.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The pool has no free address.
    Full(Ipv4Net),
    /// The bridge cannot listen at the address of the name.
    Bind(BindFailure),
}

impl WaitingNames {
    /// Keeps a name to try it again.
    pub(super) fn add(&mut self, candidate: BridgeCandidate, refusal: &Refusal, now: Instant) {
        let name = &candidate.name;
        match refusal {
            Refusal::Full(pool) => {
                if !std::mem::replace(&mut self.said_full, true) {
                    tracing::warn!(
                        service = &**name,
                        %pool,
                        "the bridge's pool has no free address: this and further services stay \
                         direct; choose a larger bridge.pool"
                    );
                }
            }
            // The first time, it may be a listener of this bridge that is still being closed.
            Refusal::Bind(error) if self.round.is_some() => {
                if !std::mem::replace(&mut self.said_taken, true) {
                    tracing::warn!(
                        service = &**name,
                        %error,
                        "this service stays direct until svcdns can listen, and so does every \
                         other one with this problem"
                    );
                }
            }
            Refusal::Bind(_) => {}
        }
        if let Some(round) = &mut self.round {
            round.failed += 1;
            if matches!(refusal, Refusal::Full(_) | Refusal::Bind(BindFailure::TooMany(_))) {
                round.left = 0;
            }
        }
        self.candidates.insert(candidate.name.clone(), candidate);
        if self.due.is_none() {
            self.pause = FIRST_PAUSE;
            self.due = Some(now + FIRST_PAUSE);
        }
    }

    /// Forgets a name: it is gone, or about to be tried.
    pub(super) fn remove(&mut self, name: &str) {
        self.candidates.remove(name);
    }

    /// Returns when to begin the next round.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Begins a round.
    pub(super) fn begin(&mut self) {
        self.round = Some(RetryRound { left: self.candidates.len().min(MAX_NAMES), failed: 0 });
    }

    /// Takes the next name of the round; one that fails again has to be added again.
    pub(super) fn next(&mut self) -> Option<BridgeCandidate> {
        let round = self.round.as_mut()?;
        round.left = round.left.checked_sub(1)?;
        let mut rest = self.candidates.range::<str, _>((Excluded(&*self.last), Unbounded));
        let next = rest.next().or_else(|| self.candidates.first_key_value());
        self.last = next.map(|(name, _)| name.clone())?;
        self.candidates.remove(&self.last)
    }

    /// Ends a round.
    pub(super) fn end(&mut self, now: Instant) {
        let failed = self.round.take().map_or(0, |round| round.failed);
        if self.candidates.is_empty() {
            *self = Self::default();
        } else if failed == 0 {
            self.due = Some(now);
        } else {
            self.pause = (self.pause * 2).min(MAX_PAUSE);
            self.due = Some(now + self.pause);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;

    fn candidate(name: &str) -> BridgeCandidate {
        BridgeCandidate { name: name.into(), namespace: "default".into(), registrations: vec![] }
    }

    fn taken() -> Refusal {
        let address = "127.83.0.1:80".parse().unwrap();
        Refusal::Bind(BindFailure::Port { address, error: ErrorKind::AddrInUse.into() })
    }

    #[test]
    fn every_name_is_tried_again_at_growing_intervals() {
        let (mut waiting, start) = (WaitingNames::default(), Instant::now());
        let count = MAX_NAMES + 10;
        for n in 0..count {
            waiting.add(candidate(&format!("s{n:03}")), &taken(), start);
        }
        assert!(!waiting.said_taken, "it may be a listener of the bridge itself");
        let (mut now, mut tried, mut pauses) = (start, BTreeMap::new(), Vec::new());
        for _ in 0..8 {
            let due = waiting.due().unwrap();
            pauses.push((due - now).as_secs());
            now = due;
            waiting.begin();
            while let Some(candidate) = waiting.next() {
                *tried.entry(candidate.name.clone()).or_insert(0) += 1;
                waiting.add(candidate, &taken(), now);
            }
            waiting.end(now);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert!(waiting.said_taken && tried.len() == count, "{}", tried.len());
        // Once nothing is in the way, all of them succeed without further pauses.
        for _ in 0..2 {
            now = waiting.due().unwrap();
            waiting.begin();
            while waiting.next().is_some() {}
            waiting.end(now);
        }
        assert_eq!(waiting.due(), None);
        assert!(!waiting.said_taken, "a later conflict is said again");
    }

    #[test]
    fn a_full_pool_ends_the_round() {
        let (mut waiting, now) = (WaitingNames::default(), Instant::now());
        let full = || Refusal::Full("127.83.0.0/16".parse().unwrap());
        for name in ["a", "b", "c"] {
            waiting.add(candidate(name), &full(), now);
        }
        waiting.remove("b");
        waiting.begin();
        let tried = waiting.next().unwrap();
        assert_eq!(&*tried.name, "a");
        waiting.add(tried, &full(), now);
        assert_eq!(waiting.next(), None);
        waiting.end(now);
        waiting.begin();
        assert_eq!(&*waiting.next().unwrap().name, "c", "another name has its turn");
    }
}
