//! Reactions to an agent that refuses connections: fewer waiting queries, and retries.
//!
//! Two svcdns could otherwise settle exactly at the agent's limit, and leave no connection for a
//! third client. Each therefore checks every few seconds whether the agent accepts some further
//! connections. If not, it lowers its limit until there is head-room, and raises it later only if
//! there is room for the additional queries as well.

use std::time::Duration;

use tokio::time::Instant;

use crate::registry::ConnectionTuning;
use crate::registry::backoff::Backoff;

/// Time within which further refusals belong to the same burst.
///
/// Every query that was on its way when the agent had no room is refused at about the same time.
pub(super) const BURST: Duration = Duration::from_secs(1);

/// Maximum time until an agent that ends is found to be gone.
///
/// It counts from the first connections that the agent closes.
const MAX_END_TIME: Duration = Duration::from_secs(10);

/// Connections that the agent must still accept at any time.
///
/// For other clients on the same host, such as the heartbeats of GoFrame programs.
const MIN_ROOM: usize = 5;

/// Connections that the agent must still accept before the limit counts as settled.
///
/// More than [`MIN_ROOM`], so that neither another client nor the check of another svcdns takes the
/// room that a check expects.
const HEAD_ROOM: usize = 10;

/// The number of services that may have a waiting query.
#[derive(Debug)]
pub(super) struct WaitingLimit {
    /// At least 1, at most `configured`.
    current: usize,
    configured: usize,
    /// Time of the last refusal.
    refused: Option<Instant>,
    /// Time at which the limit was last lowered, and the limit before.
    lowered: Option<(Instant, usize)>,
    /// Whether a check has found head-room since the last round and the last refusal.
    is_settled: bool,
}

/// A check whether the agent accepts more connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RoomCheck {
    /// Looks for a few connections.
    Routine,
    /// Looks for head-room, after a round or a refusal.
    HeadRoom,
    /// Looks for room for a higher limit, and head-room.
    Growth {
        /// The higher limit.
        limit: usize,
        /// The queries that may wait besides those of now.
        queries: usize,
    },
}

impl RoomCheck {
    /// Returns the number of connections to open at the same time.
    pub(super) fn connections(self) -> usize {
        match self {
            Self::Routine => MIN_ROOM,
            Self::HeadRoom => HEAD_ROOM,
            Self::Growth { queries, .. } => queries + HEAD_ROOM,
        }
    }
}

impl WaitingLimit {
    /// Creates the limit from the configured one; 0 counts as 1.
    pub(super) fn new(configured: usize) -> Self {
        let configured = configured.max(1);
        let (refused, lowered, is_settled) = (None, None, false);
        Self { current: configured, configured, refused, lowered, is_settled }
    }

    pub(super) fn current(&self) -> usize {
        self.current
    }

    /// Records that more queries wait than when a check last found head-room.
    pub(super) fn unsettle(&mut self) {
        self.is_settled = false;
    }

    /// Returns whether head-room is to be looked for, and can be made.
    pub(super) fn needs_head_room(&self) -> bool {
        !self.is_settled && self.current > 1
    }

    /// Halves the limit after the agent has refused a connection, once per burst of refusals.
    ///
    /// `waiting` is the number of waiting queries now. Returns whether the limit is lower now.
    pub(super) fn lower(&mut self, waiting: usize, now: Instant) -> bool {
        (self.refused, self.is_settled) = (Some(now), false);
        if self.lowered.is_some_and(|(lowered, _)| now.duration_since(lowered) < BURST) {
            return false;
        }
        self.lowered = Some((now, self.current));
        // Without waiting queries, others have the connections.
        let used = if waiting == 0 { self.current } else { self.current.min(waiting + 1) };
        let before = std::mem::replace(&mut self.current, (used / 2).max(1));
        self.current < before
    }

    /// Takes back the last burst of refusals, if the agent is gone soon after it.
    ///
    /// An agent that ends closes its newest connections without an answer, as if it refused them.
    pub(super) fn note_end(&mut self, now: Instant) {
        let Some((lowered, before)) = self.lowered else { return };
        if now.duration_since(lowered) < MAX_END_TIME {
            (self.current, self.refused, self.lowered) = (before, None, None);
        }
    }

    /// Returns the next check for room, if one is of use.
    ///
    /// The limit may double, up to the configured one, if the last refusal is older than `after`.
    /// At the lowest limit there is nothing to give up, so other checks would only take connections
    /// from others.
    pub(super) fn next_check(&self, after: Duration, now: Instant) -> Option<RoomCheck> {
        let is_calm = self.refused.is_none_or(|refused| now.duration_since(refused) > after);
        match (self.current * 2).min(self.configured) {
            _ if self.needs_head_room() => Some(RoomCheck::HeadRoom),
            limit if is_calm && limit > self.current => {
                Some(RoomCheck::Growth { limit, queries: limit - self.current })
            }
            _ if self.current == 1 => None,
            _ => Some(RoomCheck::Routine),
        }
    }

    /// Records that a check has found room; returns whether the limit is higher now.
    pub(super) fn note_room(&mut self, check: RoomCheck, began: Instant) -> bool {
        // Room that was found before a refusal may be gone.
        if self.refused.is_some_and(|refused| refused >= began) {
            return false;
        }
        match check {
            RoomCheck::Routine => {}
            RoomCheck::HeadRoom => self.is_settled = true,
            RoomCheck::Growth { limit, .. } => {
                (self.current, self.is_settled) = (limit, true);
                return true;
            }
        }
        false
    }

    /// Records that a check has found no room; returns whether the limit is lower now.
    ///
    /// A higher limit that has no room only has to wait; the next check looks for head-room.
    pub(super) fn note_no_room(&mut self, check: RoomCheck, waiting: usize, now: Instant) -> bool {
        if matches!(check, RoomCheck::Growth { .. }) {
            (self.refused, self.is_settled) = (Some(now), false);
            return false;
        }
        self.lower(waiting, now)
    }
}

/// The attempts at a query that the session depends on, while the agent may have no room.
pub(super) struct Retries {
    backoff: Backoff,
    failed: u32,
}

impl Retries {
    /// Number of attempts in a row that may be refused; with the default backoff about 8 s.
    const MAX: u32 = 8;

    pub(super) fn new(tuning: &ConnectionTuning) -> Self {
        Self { backoff: tuning.backoff(), failed: 0 }
    }

    /// Returns how long to wait before the next attempt; `None` if there were too many.
    pub(super) fn next(&mut self) -> Option<Duration> {
        self.failed += 1;
        (self.failed <= Self::MAX).then(|| self.backoff.next())
    }

    pub(super) fn reset(&mut self) {
        self.failed = 0;
        self.backoff.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Longer than any test.
    const CALM: Duration = Duration::from_secs(3600);

    #[test]
    fn the_end_of_the_agent_counts_as_no_refusal() {
        let mut now = Instant::now();
        let mut limit = WaitingLimit::new(100);
        assert!(limit.lower(100, now));
        now += MAX_END_TIME;
        limit.note_end(now);
        assert_eq!(limit.current(), 50, "an older refusal has another reason");
        assert!(limit.lower(50, now));
        limit.note_end(now);
        assert_eq!(limit.current(), 50);
        assert!(limit.lower(50, now), "the next agent may refuse connections at once");
    }

    #[test]
    fn a_burst_of_refusals_halves_the_limit_once() {
        let mut now = Instant::now();
        let mut limit = WaitingLimit::new(100);
        for waiting in (40..60).rev() {
            limit.lower(waiting, now);
        }
        assert_eq!(limit.current(), 30, "half of the queries that waited");
        now += BURST;
        assert!(limit.lower(29, now) && !limit.lower(29, now));
        assert_eq!(limit.current(), 15);
        now += BURST;
        limit.lower(0, now);
        assert_eq!(limit.current(), 7, "no query waits yet");
        for _ in 0..9 {
            now += BURST;
            limit.lower(0, now);
        }
        assert_eq!(limit.current(), 1);
        now += BURST;
        assert!(!limit.lower(0, now), "it is not lower than before");
    }

    #[test]
    fn the_limit_falls_until_there_is_head_room() {
        let mut now = Instant::now();
        let mut limit = WaitingLimit::new(100);
        assert_eq!(limit.next_check(CALM, now), Some(RoomCheck::HeadRoom), "nothing is known yet");
        limit.note_room(RoomCheck::HeadRoom, now);
        let routine = limit.next_check(CALM, now).unwrap();
        assert_eq!((routine, routine.connections()), (RoomCheck::Routine, MIN_ROOM));
        assert!(limit.note_no_room(routine, 100, now));
        for expected in [50, 25] {
            assert_eq!((limit.current(), limit.needs_head_room()), (expected, true));
            let check = limit.next_check(CALM, now).unwrap();
            assert_eq!((check, check.connections()), (RoomCheck::HeadRoom, HEAD_ROOM));
            now += BURST;
            limit.note_no_room(check, limit.current(), now);
        }
        limit.note_room(RoomCheck::HeadRoom, now);
        assert!(limit.needs_head_room(), "a refusal came after this check had begun");
        now += BURST;
        limit.note_room(RoomCheck::HeadRoom, now);
        assert_eq!((limit.current(), limit.needs_head_room()), (12, false));
        assert_eq!(limit.next_check(CALM, now), Some(RoomCheck::Routine));
        limit.unsettle();
        assert_eq!(limit.next_check(CALM, now), Some(RoomCheck::HeadRoom));
    }

    #[test]
    fn nothing_is_looked_for_at_the_lowest_limit_until_it_may_rise() {
        let mut now = Instant::now();
        let mut limit = WaitingLimit::new(2);
        assert!(limit.lower(1, now));
        assert_eq!(limit.next_check(BURST, now), None);
        now += BURST * 2;
        let growth = Some(RoomCheck::Growth { limit: 2, queries: 1 });
        assert_eq!(limit.next_check(BURST, now), growth);
        assert_eq!(WaitingLimit::new(1).next_check(BURST, now), None);
    }

    #[test]
    fn the_limit_rises_only_into_room_for_the_queries_and_the_head_room() {
        let mut now = Instant::now();
        let mut limit = WaitingLimit::new(100);
        limit.lower(60, now);
        limit.note_room(RoomCheck::HeadRoom, now + BURST);
        assert_eq!(limit.next_check(BURST, now), Some(RoomCheck::Routine), "refused just now");
        now += BURST * 2;
        let growth = limit.next_check(BURST, now).unwrap();
        assert_eq!(growth, RoomCheck::Growth { limit: 60, queries: 30 });
        assert_eq!(growth.connections(), 30 + HEAD_ROOM);
        assert!(!limit.note_no_room(growth, 30, now), "the queries that wait may stay");
        assert_eq!(limit.next_check(BURST, now), Some(RoomCheck::HeadRoom));
        limit.note_room(RoomCheck::HeadRoom, now + BURST);
        for expected in [60, 100] {
            now += BURST * 2;
            let growth = limit.next_check(BURST, now).unwrap();
            assert!(limit.note_room(growth, now));
            assert_eq!(limit.current(), expected);
        }
        now += BURST * 2;
        assert_eq!(limit.next_check(BURST, now), Some(RoomCheck::Routine), "as configured");
    }
}
