//! Which list is polled when.
//!
//! Queries are spread evenly over time. A list that has changed lately is polled at the shortest
//! interval, since changes come in groups; the others share the limit on queries per second.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;
use tokio::time::Instant;

use super::doubt::DataLoss;
use super::{PollingTuning, Revision, time_of};
use crate::registry::attempts::ConnectionTuning;
use crate::registry::backoff::Backoff;

/// Share of the queries for lists that have not changed lately.
const QUIET_SHARE: f64 = 0.8;

/// Share of the concurrent queries that may be for lists whose last query has failed.
///
/// A query that is never answered takes as long as the time limit of a request.
const RETRY_SHARE: usize = 4;

/// The lists of a store, each with the time of its next query.
#[derive(Debug)]
pub(super) struct PollSchedule {
    lists: HashMap<Arc<str>, PollingState, RandomState>,
    /// The lists without a query in progress, by the time of the next one.
    due: BTreeSet<(Instant, Arc<str>)>,
    /// The same of lists whose last query has failed.
    retries: BTreeSet<(Instant, Arc<str>)>,
    /// Number of queries in progress.
    reading: usize,
    /// Number of queries in progress for lists whose last query has failed.
    retrying: usize,
    /// Earliest time of the next query outside a round.
    next_slot: Option<Instant>,
    /// Number of lists that the round in progress has not tried to read.
    untried: usize,
    is_round: bool,
    tuning: PollingTuning,
    backoff: (Duration, Duration),
    /// Signs of a loss of data outside a round.
    loss: DataLoss,
}

/// The state of polling one list.
#[derive(Debug)]
struct PollingState {
    /// Time of the next query, or of the one in progress.
    due: Instant,
    is_reading: bool,
    /// Whether the last names have it.
    is_named: bool,
    in_round: RoundProgress,
    /// Revision of the last list.
    revision: Option<Revision>,
    /// Number of instances in the last list.
    instances: usize,
    /// Time of the last change.
    changed: Option<Instant>,
    /// The waits between failed queries.
    backoff: Option<Backoff>,
}

/// What the round in progress has done with a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RoundProgress {
    /// It has not tried to read it.
    Untried,
    /// A query has failed.
    Failed,
    /// It has read it, or there is no round.
    Done,
}

/// What follows from new names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct NamesOutcome {
    /// Whether the set of lists has changed.
    pub(super) changed: bool,
    /// Number of names that have vanished although their lists had instances.
    pub(super) vanished: usize,
}

impl PollSchedule {
    /// Creates the schedule of a store without names; `patience` is the removal grace.
    pub(super) fn new(
        tuning: &PollingTuning,
        connection: &ConnectionTuning,
        patience: Duration,
    ) -> Self {
        Self {
            lists: HashMap::default(),
            due: BTreeSet::new(),
            retries: BTreeSet::new(),
            reading: 0,
            retrying: 0,
            next_slot: None,
            untried: 0,
            is_round: false,
            tuning: tuning.clone(),
            backoff: (connection.backoff_min, connection.backoff_max),
            loss: DataLoss::new(patience),
        }
    }

    // Names

    /// Returns the names of all lists.
    pub(super) fn names(&self) -> Box<[Box<str>]> {
        self.lists.keys().map(|name| (**name).into()).collect()
    }

    /// Returns whether a list is polled.
    pub(super) fn has(&self, name: &str) -> bool {
        self.lists.contains_key(name)
    }

    /// Takes new names.
    ///
    /// A list with instances stays although its name has vanished: the store may have lost its
    /// data, or have read only a part of it yet. The answers to its own queries tell.
    pub(super) fn set_names(&mut self, names: &BTreeSet<Box<str>>, now: Instant) -> NamesOutcome {
        let mut vanished = 0;
        for (name, list) in &mut self.lists {
            let is_named = names.contains(&**name);
            let was_named = std::mem::replace(&mut list.is_named, is_named);
            vanished += usize::from(was_named && !is_named && list.instances > 0);
        }
        if vanished > 0 && !self.is_round {
            self.loss.note_vanished(now);
        }
        let mut changed = self.forget_unnamed();
        let mut new = 0;
        for name in names {
            if self.lists.contains_key(&**name) {
                continue;
            }
            changed = true;
            let name: Arc<str> = (**name).into();
            // Many new names must not keep the known ones waiting.
            let wait = time_of(new, self.tuning.max_requests, QUIET_SHARE);
            let due = if self.is_round { now } else { now + wait };
            new += 1;
            let list = PollingState {
                due,
                is_reading: false,
                is_named: true,
                in_round: if self.is_round { RoundProgress::Untried } else { RoundProgress::Done },
                revision: None,
                instances: 0,
                changed: None,
                backoff: None,
            };
            self.untried += usize::from(self.is_round);
            self.due.insert((due, Arc::clone(&name)));
            self.lists.insert(name, list);
        }
        NamesOutcome { changed, vanished }
    }

    /// Forgets the lists without a name and instances; returns whether there were any.
    ///
    /// One with a query in progress is forgotten later.
    pub(super) fn forget_unnamed(&mut self) -> bool {
        let before = self.lists.len();
        let Self { lists, due, retries, untried, .. } = self;
        lists.retain(|name, list| {
            let stays = list.is_named || list.instances > 0 || list.is_reading;
            if !stays {
                *untried -= usize::from(list.in_round == RoundProgress::Untried);
                let queue = if list.is_failing() { &mut *retries } else { &mut *due };
                queue.remove(&(list.due, Arc::clone(name)));
            }
            stays
        });
        self.lists.len() != before
    }

    // Rounds

    /// Begins to read all lists once, whatever their revisions; forgets the queries in progress.
    pub(super) fn begin_round(&mut self, names: &BTreeSet<Box<str>>, now: Instant) -> NamesOutcome {
        self.is_round = true;
        (self.reading, self.retrying) = (0, 0);
        (self.untried, self.next_slot) = (self.lists.len(), None);
        self.due.clear();
        self.retries.clear();
        for (name, list) in &mut self.lists {
            (list.due, list.is_reading) = (now, false);
            list.in_round = RoundProgress::Untried;
            (list.revision, list.backoff) = (None, None);
            self.due.insert((now, Arc::clone(name)));
        }
        self.set_names(names, now)
    }

    /// Returns whether a round is in progress.
    pub(super) fn is_round(&self) -> bool {
        self.is_round
    }

    /// Returns whether the round is complete: every list was read, or its query failed, once.
    pub(super) fn is_round_complete(&self) -> bool {
        self.is_round && self.untried == 0
    }

    /// Ends a round: the lists that were read are polled, spread over one interval.
    pub(super) fn end_round(&mut self, now: Instant) {
        self.is_round = false;
        let count = u32::try_from(self.lists.len()).unwrap_or(u32::MAX);
        let step = self.quiet_interval() / count.max(1);
        let (mut next, attention) = (now, self.tuning.attention);
        for (name, list) in &mut self.lists {
            // A list that could not be read is judged by itself once it can.
            let has_failed = list.is_unread();
            list.in_round = RoundProgress::Done;
            let is_watched = list.has_changed(attention, now);
            if !has_failed && !list.is_reading && !list.is_failing() && !is_watched {
                next += step;
                self.due.remove(&(list.due, Arc::clone(name)));
                list.due = next;
                self.due.insert((next, Arc::clone(name)));
            }
        }
    }

    // Queries

    /// Returns the next list to read, with its revision, if a query may begin.
    pub(super) fn next(&mut self, now: Instant) -> Option<(Arc<str>, Option<Revision>)> {
        let (due, is_retry) = self.first()?;
        if self.next_slot.is_some_and(|slot| slot > now) || due > now {
            return None;
        }
        // A round is as fast as the server: until its end, the registry counts as unreachable.
        let spacing = time_of(1, self.tuning.max_requests, 1.0);
        self.next_slot = (!self.is_round).then_some(now + spacing);
        let queue = if is_retry { &mut self.retries } else { &mut self.due };
        let (_, name) = queue.pop_first()?;
        let list = self.lists.get_mut(&name)?;
        list.is_reading = true;
        self.reading += 1;
        self.retrying += usize::from(is_retry);
        Some((name, list.revision.clone()))
    }

    /// Returns when the next query may begin, if it waits for its time only.
    pub(super) fn wake(&self) -> Option<Instant> {
        let (due, _) = self.first()?;
        Some(self.next_slot.map_or(due, |slot| slot.max(due)))
    }

    /// Returns the time of the next query for which there is room, and whether it is a retry.
    fn first(&self) -> Option<(Instant, bool)> {
        let max_reads = self.tuning.max_reads.max(1);
        if self.reading >= max_reads {
            return None;
        }
        let may_retry = self.retrying < (max_reads / RETRY_SHARE).max(1);
        let retry = self.retries.first().filter(|_| may_retry).map(|(due, _)| (*due, true));
        let other = self.due.first().map(|(due, _)| (*due, false));
        other.into_iter().chain(retry).min()
    }

    /// Delays the next query outside a round by the time of other queries, which also count.
    pub(super) fn count_queries(&mut self, queries: usize, now: Instant) {
        if !self.is_round {
            let slot = self.next_slot.map_or(now, |slot| slot.max(now));
            self.next_slot = Some(slot + time_of(queries, self.tuning.max_requests, 1.0));
        }
    }

    // Answers

    /// Returns whether the revision of a list is known.
    pub(super) fn has_revision(&self, name: &str) -> bool {
        self.lists.get(name).is_some_and(|list| list.revision.is_some())
    }

    /// Returns whether the round in progress has not read a list.
    pub(super) fn is_unread(&self, name: &str) -> bool {
        self.lists.get(name).is_some_and(PollingState::is_unread)
    }

    /// Returns whether a list that the store does not have is known to have no instance.
    pub(super) fn is_known_empty(&self, name: &str) -> bool {
        self.lists.get(name).is_some_and(|list| !list.is_unread() && list.instances == 0)
    }

    /// Records that a list is missing; outside a round, that may be a loss of data.
    pub(super) fn note_missing(&mut self, name: &str, now: Instant) {
        let is_emptied = |list: &PollingState| !list.is_unread() && list.instances > 0;
        if self.lists.get(name).is_some_and(is_emptied) {
            self.loss.note_emptied(self.lists.len(), now);
        }
    }

    /// Returns whether a list that lacks instances may be of a store that has lost its data.
    pub(super) fn is_doubted(&self, name: &str, instances: usize, now: Instant) -> bool {
        let lacks_some = self.lists.get(name).is_some_and(|list| instances < list.instances);
        lacks_some && self.loss.is_recent(self.lists.len(), now)
    }

    /// Records that a list has not changed.
    pub(super) fn unchanged(&mut self, name: &Arc<str>, now: Instant) {
        self.end_query(name);
        let Some(list) = self.lists.get_mut(name) else { return };
        list.backoff = None;
        self.poll_later(name, now);
    }

    /// Returns whether a list is as empty as the one before.
    ///
    /// Some versions of Polaris give an empty list a new revision each time.
    pub(super) fn is_still_empty(&self, name: &str, instances: usize) -> bool {
        let is_empty = |list: &PollingState| {
            !list.is_unread() && list.revision.is_some() && (list.instances, instances) == (0, 0)
        };
        self.lists.get(name).is_some_and(is_empty)
    }

    /// Records a list that was read.
    pub(super) fn read(
        &mut self,
        name: &Arc<str>,
        revision: Option<Revision>,
        instances: usize,
        now: Instant,
    ) {
        self.end_query(name);
        let Some(list) = self.lists.get_mut(name) else { return };
        // What a round has not found may return soon.
        if !list.is_unread() || instances < list.instances {
            list.changed = Some(now);
        }
        (list.revision, list.instances, list.backoff) = (revision, instances, None);
        self.poll_later(name, now);
        if let Some(list) = self.lists.get_mut(name) {
            list.in_round = RoundProgress::Done;
        }
    }

    /// Records a failed query; returns whether the previous one also failed.
    pub(super) fn failed(&mut self, name: &Arc<str>, now: Instant) -> bool {
        self.end_query(name);
        let Some(list) = self.lists.get_mut(name) else { return false };
        let failed_before = list.is_failing();
        let (min, max) = self.backoff;
        let wait = list.backoff.get_or_insert_with(|| Backoff::new(min, max)).next();
        self.set_due(name, now + wait);
        failed_before
    }

    /// Plans the next query an interval after the last one was due, or from now if that is past.
    fn poll_later(&mut self, name: &Arc<str>, now: Instant) {
        let quiet = self.quiet_interval();
        let Some(list) = self.lists.get(name) else { return };
        let is_watched = list.has_changed(self.tuning.attention, now);
        let interval = if is_watched { self.tuning.interval } else { quiet };
        let next = list.due + interval;
        self.set_due(name, if next > now { next } else { now + interval });
    }

    /// Ends the query in progress for a list, or takes the list from its queue.
    fn end_query(&mut self, name: &Arc<str>) {
        let Some(list) = self.lists.get_mut(name) else { return };
        if std::mem::take(&mut list.is_reading) {
            self.reading -= 1;
            self.retrying -= usize::from(list.is_failing());
        } else {
            let queue = if list.is_failing() { &mut self.retries } else { &mut self.due };
            queue.remove(&(list.due, Arc::clone(name)));
        }
    }

    /// Sets the time of the next query for a list whose query has ended.
    fn set_due(&mut self, name: &Arc<str>, due: Instant) {
        let Some(list) = self.lists.get_mut(name) else { return };
        if list.in_round == RoundProgress::Untried {
            list.in_round = RoundProgress::Failed;
            self.untried -= 1;
        }
        list.due = due;
        let queue = if list.is_failing() { &mut self.retries } else { &mut self.due };
        queue.insert((due, Arc::clone(name)));
    }

    /// Returns the interval of lists that have not changed lately.
    fn quiet_interval(&self) -> Duration {
        let time = time_of(self.lists.len(), self.tuning.max_requests, QUIET_SHARE);
        self.tuning.interval.max(time)
    }
}

impl PollingState {
    /// Returns whether the list has changed within this time.
    fn has_changed(&self, within: Duration, now: Instant) -> bool {
        self.changed.is_some_and(|changed| now.saturating_duration_since(changed) < within)
    }

    /// Returns whether the last query has failed.
    fn is_failing(&self) -> bool {
        self.backoff.is_some()
    }

    /// Returns whether the round in progress has not read the list.
    fn is_unread(&self) -> bool {
        self.in_round != RoundProgress::Done
    }
}

#[cfg(test)]
mod tests;
