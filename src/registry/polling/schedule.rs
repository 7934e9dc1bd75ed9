//! Which list is polled when, and which answers are believed.
//!
//! Queries are spread evenly over time. A list that has changed lately is polled at the shortest
//! interval, since changes come in groups; the others share the limit on queries per second.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;
use tokio::time::Instant;

use super::{PollingTuning, Revision, time_of};
use crate::registry::attempts::ConnectionTuning;
use crate::registry::backoff::Backoff;

/// Share of the queries for lists that have not changed lately.
const QUIET_SHARE: f64 = 0.8;

/// The lists of a store, each with the time of its next query.
#[derive(Debug)]
pub(super) struct PollSchedule {
    lists: HashMap<Arc<str>, PollingState, RandomState>,
    /// The lists without a query in progress, by the time of the next one.
    due: BTreeSet<(Instant, Arc<str>)>,
    /// Number of queries in progress.
    reading: usize,
    /// Earliest time of the next query outside a round.
    next_slot: Option<Instant>,
    /// Number of lists that the round in progress has not tried to read.
    untried: usize,
    is_round: bool,
    tuning: PollingTuning,
    backoff: (Duration, Duration),
    /// Time for which a list must be missing before that is believed.
    patience: Duration,
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
    /// Time since which it is missing although it had instances.
    missing: Option<Instant>,
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

/// What is known about a list that the store does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// It had instances a moment ago: not believed yet.
    Doubtful,
    /// It has lost its instances, or has not been read in this round.
    News,
    /// It had no instance before.
    Known,
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
            reading: 0,
            next_slot: None,
            untried: 0,
            is_round: false,
            tuning: tuning.clone(),
            backoff: (connection.backoff_min, connection.backoff_max),
            patience,
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
        let mut changed = self.forget_unnamed();
        for name in names {
            if self.lists.contains_key(&**name) {
                continue;
            }
            changed = true;
            let name: Arc<str> = (**name).into();
            let list = PollingState {
                due: now,
                is_reading: false,
                is_named: true,
                in_round: if self.is_round { RoundProgress::Untried } else { RoundProgress::Done },
                revision: None,
                instances: 0,
                missing: None,
                changed: None,
                backoff: None,
            };
            self.untried += usize::from(self.is_round);
            self.due.insert((now, Arc::clone(&name)));
            self.lists.insert(name, list);
        }
        NamesOutcome { changed, vanished }
    }

    /// Forgets the lists without a name and instances; returns whether there were any.
    pub(super) fn forget_unnamed(&mut self) -> bool {
        let before = self.lists.len();
        let Self { lists, due, reading, untried, .. } = self;
        lists.retain(|name, list| {
            let stays = list.is_named || list.instances > 0;
            if !stays {
                *untried -= usize::from(list.in_round == RoundProgress::Untried);
                if list.is_reading {
                    *reading -= 1;
                } else {
                    due.remove(&(list.due, Arc::clone(name)));
                }
            }
            stays
        });
        self.lists.len() != before
    }

    // Rounds

    /// Begins to read all lists once, whatever their revisions; forgets the queries in progress.
    pub(super) fn begin_round(&mut self, names: &BTreeSet<Box<str>>, now: Instant) -> NamesOutcome {
        self.is_round = true;
        (self.reading, self.untried, self.next_slot) = (0, self.lists.len(), None);
        self.due.clear();
        for (name, list) in &mut self.lists {
            (list.due, list.is_reading) = (now, false);
            list.in_round = RoundProgress::Untried;
            (list.revision, list.missing, list.backoff) = (None, None, None);
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
        let mut next = now;
        for (name, list) in &mut self.lists {
            // A list that could not be read is judged by itself once it can.
            let has_failed = list.is_unread();
            list.in_round = RoundProgress::Done;
            if !has_failed && !list.is_reading {
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
        if self.wake()? > now {
            return None;
        }
        // A round is as fast as the server: until its end, the registry counts as unreachable.
        let spacing = time_of(1, self.tuning.max_requests, 1.0);
        self.next_slot = (!self.is_round).then_some(now + spacing);
        let (_, name) = self.due.pop_first()?;
        let list = self.lists.get_mut(&name)?;
        list.is_reading = true;
        self.reading += 1;
        Some((name, list.revision.clone()))
    }

    /// Returns when the next query may begin, if it waits for its time only.
    pub(super) fn wake(&self) -> Option<Instant> {
        let has_room = self.reading < self.tuning.max_reads.max(1);
        let (due, _) = self.due.first().filter(|_| has_room)?;
        Some(self.next_slot.map_or(*due, |slot| slot.max(*due)))
    }

    /// Returns whether a query for the list is in progress.
    pub(super) fn is_reading(&self, name: &str) -> bool {
        self.lists.get(name).is_some_and(|list| list.is_reading)
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

    /// Records that the store does not have a list; news are to be recorded as read.
    ///
    /// In a round, the catalog judges the loss.
    pub(super) fn missing(&mut self, name: &Arc<str>, now: Instant) -> Loss {
        let Some(list) = self.lists.get_mut(name) else { return Loss::Known };
        list.backoff = None;
        let loss = if list.is_unread() {
            Loss::News
        } else if list.instances == 0 {
            Loss::Known
        } else {
            let since = *list.missing.get_or_insert(now);
            let is_lasting = now.saturating_duration_since(since) >= self.patience;
            if is_lasting { Loss::News } else { Loss::Doubtful }
        };
        if loss != Loss::News {
            self.poll_later(name, now);
        }
        loss
    }

    /// Records that a list has not changed.
    pub(super) fn unchanged(&mut self, name: &Arc<str>, now: Instant) {
        let Some(list) = self.lists.get_mut(name) else { return };
        (list.missing, list.backoff) = (None, None);
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
        let Some(list) = self.lists.get_mut(name) else { return };
        if !list.is_unread() {
            list.changed = Some(now);
        }
        (list.revision, list.instances) = (revision, instances);
        (list.missing, list.backoff) = (None, None);
        self.poll_later(name, now);
        if let Some(list) = self.lists.get_mut(name) {
            list.in_round = RoundProgress::Done;
        }
    }

    /// Records a failed query; returns whether the previous one also failed.
    pub(super) fn failed(&mut self, name: &Arc<str>, now: Instant) -> bool {
        let Some(list) = self.lists.get_mut(name) else { return false };
        let failed_before = list.backoff.is_some();
        let (min, max) = self.backoff;
        let wait = list.backoff.get_or_insert_with(|| Backoff::new(min, max)).next();
        self.set_due(name, now + wait);
        failed_before
    }

    /// Plans the next query an interval after the last one was due, or from now if that is past.
    fn poll_later(&mut self, name: &Arc<str>, now: Instant) {
        let quiet = self.quiet_interval();
        let Some(list) = self.lists.get(name) else { return };
        let is_recent =
            |changed: Instant| now.saturating_duration_since(changed) < self.tuning.attention;
        let is_watched = list.missing.is_some() || list.changed.is_some_and(is_recent);
        let interval = if is_watched { self.tuning.interval } else { quiet };
        let next = list.due + interval;
        self.set_due(name, if next > now { next } else { now + interval });
    }

    /// Ends the query in progress for a list, and sets the time of the next one.
    fn set_due(&mut self, name: &Arc<str>, due: Instant) {
        let Some(list) = self.lists.get_mut(name) else { return };
        self.due.remove(&(list.due, Arc::clone(name)));
        self.reading -= usize::from(std::mem::take(&mut list.is_reading));
        if list.in_round == RoundProgress::Untried {
            list.in_round = RoundProgress::Failed;
            self.untried -= 1;
        }
        list.due = due;
        self.due.insert((due, Arc::clone(name)));
    }

    /// Returns the interval of lists that have not changed lately.
    fn quiet_interval(&self) -> Duration {
        let time = time_of(self.lists.len(), self.tuning.max_requests, QUIET_SHARE);
        self.tuning.interval.max(time)
    }
}

impl PollingState {
    /// Returns whether the round in progress has not read the list.
    fn is_unread(&self) -> bool {
        self.in_round != RoundProgress::Done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Removal grace of the tests.
    const PATIENCE: Duration = Duration::from_secs(12);

    fn names(count: usize) -> BTreeSet<Box<str>> {
        (0..count).map(|number| format!("service-{number}").into()).collect()
    }

    /// Reads all lists that are due; each has an instance and the revision `1`.
    fn read_all(schedule: &mut PollSchedule, now: Instant) -> usize {
        let mut count = 0;
        while let Some((name, known)) = schedule.next(now) {
            match known {
                Some(_) => schedule.unchanged(&name, now),
                None => schedule.read(&name, Some("1".into()), 1, now),
            }
            count += 1;
        }
        count
    }

    fn after_round(max_requests: usize, count: usize, now: Instant) -> PollSchedule {
        let tuning = PollingTuning { max_requests, ..PollingTuning::default() };
        let mut schedule = PollSchedule::new(&tuning, &ConnectionTuning::default(), PATIENCE);
        schedule.begin_round(&names(count), now);
        assert_eq!(read_all(&mut schedule, now), count);
        assert!(schedule.is_round_complete());
        schedule.end_round(now);
        schedule
    }

    fn milliseconds(count: u64) -> impl Iterator<Item = Duration> {
        (1..=count).map(Duration::from_millis)
    }

    #[test]
    fn queries_are_spread_evenly_over_a_second() {
        let start = Instant::now();
        let mut schedule = after_round(200, 100, start);
        let reads: Vec<usize> =
            milliseconds(5_000).map(|time| read_all(&mut schedule, start + time)).collect();
        assert_eq!(reads.iter().sum::<usize>(), 500, "each list once a second");
        let busiest = reads.chunks(100).map(|chunk| chunk.iter().sum::<usize>()).max();
        assert!(busiest.is_some_and(|reads| reads <= 12), "{busiest:?} in 100 ms");
    }

    #[test]
    fn many_lists_are_polled_less_often() {
        let start = Instant::now();
        let mut schedule = after_round(200, 1_000, start);
        let reads: usize =
            milliseconds(12_500).map(|time| read_all(&mut schedule, start + time)).sum();
        assert!((1_980..=2_020).contains(&reads), "{reads} in two passes of 6.25 s");
    }

    #[test]
    fn a_list_that_has_changed_is_polled_every_second_for_a_while() {
        let start = Instant::now();
        let mut schedule = after_round(10, 80, start);
        let changing: Arc<str> = "service-7".into();
        let mut times = Vec::new();
        for time in milliseconds(100_000) {
            let now = start + time;
            while let Some((name, _)) = schedule.next(now) {
                let changes = name == changing && times.is_empty();
                if name == changing {
                    times.push(now);
                }
                if changes {
                    schedule.read(&name, Some("2".into()), 2, now);
                } else {
                    schedule.unchanged(&name, now);
                }
            }
        }
        let changed = times[0];
        let within = |from: u64, to: u64| {
            let since = |time: &&Instant| time.duration_since(changed).as_secs();
            times.iter().filter(|time| (from..to).contains(&since(time))).count()
        };
        assert!(within(0, 30) >= 25, "{} in the first 30 s", within(0, 30));
        assert!(within(31, 61) <= 5, "{} in the next 30 s", within(31, 61));
    }

    #[test]
    fn an_empty_list_is_no_change_of_an_empty_one() {
        let start = Instant::now();
        let mut schedule = after_round(200, 1, start);
        let name: Arc<str> = "service-0".into();
        assert!(!schedule.is_still_empty(&name, 0), "it had an instance");
        schedule.read(&name, Some("2".into()), 0, start);
        assert!(schedule.is_still_empty(&name, 0) && !schedule.is_still_empty(&name, 1));
        schedule.begin_round(&names(1), start);
        assert!(!schedule.is_still_empty(&name, 0), "a round needs each list");
    }

    #[test]
    fn a_list_that_is_missing_is_doubted_for_the_removal_grace() {
        let start = Instant::now();
        let mut schedule = after_round(200, 2, start);
        let name: Arc<str> = "service-0".into();
        assert_eq!(schedule.missing(&name, start), Loss::Doubtful);
        assert_eq!(schedule.missing(&name, start + PATIENCE / 2), Loss::Doubtful);
        schedule.unchanged(&name, start + PATIENCE / 2);
        assert_eq!(schedule.missing(&name, start + PATIENCE), Loss::Doubtful, "it was back");
        assert_eq!(schedule.missing(&name, start + PATIENCE * 2), Loss::News);
        schedule.read(&name, None, 0, start + PATIENCE * 2);
        assert_eq!(schedule.missing(&name, start + PATIENCE * 2), Loss::Known);
        schedule.begin_round(&names(2), start);
        let other = "service-1".into();
        assert_eq!(schedule.missing(&other, start), Loss::News, "the catalog judges a round");
    }

    #[test]
    fn a_list_with_instances_outlives_its_name() {
        let start = Instant::now();
        let mut schedule = after_round(200, 3, start);
        let outcome = schedule.set_names(&names(1), start);
        assert_eq!(outcome, NamesOutcome { changed: false, vanished: 2 });
        assert_eq!(schedule.set_names(&names(1), start), NamesOutcome::default());
        assert_eq!(schedule.names().len(), 3);
        schedule.read(&"service-2".into(), None, 0, start);
        let outcome = schedule.set_names(&names(1), start);
        assert_eq!(outcome, NamesOutcome { changed: true, vanished: 0 });
        assert_eq!((schedule.names().len(), schedule.due.len()), (2, 2));
        assert!(schedule.set_names(&names(4), start).changed);
        assert_eq!(schedule.names().len(), 4);
    }

    #[test]
    fn a_failed_query_is_tried_again_and_completes_a_round() {
        let start = Instant::now();
        let connection = ConnectionTuning::default();
        let mut schedule = PollSchedule::new(&PollingTuning::default(), &connection, PATIENCE);
        schedule.begin_round(&names(1), start);
        let (name, known) = schedule.next(start).unwrap();
        assert_eq!(known, None);
        assert!(!schedule.failed(&name, start), "the first failure");
        assert!(schedule.is_round_complete());
        schedule.end_round(start);
        let later = start + connection.backoff_max;
        let (name, known) = schedule.next(later).unwrap();
        assert_eq!(known, None, "it has not been read yet");
        assert!(!schedule.is_unread(&name) && schedule.failed(&name, later));
        let (name, _) = schedule.next(later + connection.backoff_max).unwrap();
        schedule.read(&name, Some("1".into()), 1, later);
        assert!(!schedule.is_unread(&name) && !schedule.failed(&name, later));
    }

    #[test]
    fn concurrent_queries_are_limited_and_forgotten_names_end_theirs() {
        let start = Instant::now();
        let connection = ConnectionTuning::default();
        let tuning = PollingTuning { max_reads: 2, ..PollingTuning::default() };
        let mut schedule = PollSchedule::new(&tuning, &connection, PATIENCE);
        schedule.begin_round(&names(4), start);
        assert!(schedule.next(start).is_some() && schedule.next(start).is_some());
        assert_eq!((schedule.next(start), schedule.wake()), (None, None));
        schedule.set_names(&BTreeSet::new(), start);
        assert!(schedule.is_round_complete() && schedule.reading == 0);
        assert!(schedule.set_names(&names(1), start).changed);
        assert_eq!(read_all(&mut schedule, start), 1);
    }
}
