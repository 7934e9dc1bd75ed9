//! Which services have a waiting query, and which are read next.
//!
//! Every waiting query takes a connection, so their number is limited. The services beyond it are
//! polled: each of them is read once when the index of the catalog, or of all checks, shows that
//! something has changed. A polled service that changes takes the waiting query of one that has not
//! changed for long.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{AbortHandle, Id};
use tokio::time::Instant;

use super::ConsulTuning;
use super::index::{self, IndexStep, Pace};
use super::refusal::{self, RoomCheck, WaitingLimit};
use crate::registry::backoff::Backoff;

/// Average time between two reads of polled services, if something changes all the time.
///
/// In a large cluster, some check changes every second.
const TIME_PER_POLL: Duration = Duration::from_millis(10);

/// Time without a change after which a service may lose its waiting query to another.
const QUIET: Duration = Duration::from_secs(60);

/// The services of a registry and the queries for them.
pub(super) struct Schedule {
    services: HashMap<Arc<str>, ScheduledService>,
    /// Services to read, the next one first.
    due: VecDeque<Arc<str>>,
    /// Services to read again after a failure.
    retries: BTreeSet<(Instant, Arc<str>)>,
    /// The services in [`Mode::Waiting`], the one that has not changed for longest first.
    waiting: BTreeSet<(Instant, Arc<str>)>,
    /// Number of services in [`Mode::Reading`].
    reading: usize,
    /// Limit on `waiting`; what was learned of it outlasts rounds and sessions.
    limit: WaitingLimit,
    /// Services that the round in progress has not tried to read.
    untried: usize,
    is_round: bool,
    /// When the polled services were last due.
    polled: Option<Instant>,
    /// Whether the catalog or a check has changed since.
    poll_wanted: bool,
    tuning: ConsulTuning,
}

struct ScheduledService {
    mode: Mode,
    /// The query in progress.
    query: Option<AbortHandle>,
    /// The index of the last valid answer; 0 before the first.
    index: u64,
    /// How that index compares with the one before.
    step: IndexStep,
    pace: Pace,
    changed: Instant,
    backoff: Option<Backoff>,
    /// Whether the round in progress still has to try to read the service.
    is_untried: bool,
    /// Whether the service has not been read since the last round began.
    is_unread: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// To be read.
    Due,
    /// A query that does not wait is in progress.
    Reading,
    /// Was read in the round in progress.
    Ready,
    /// Keeps a connection for a waiting query.
    Waiting,
    /// Is read when the catalog or a check has changed.
    Polled,
    /// Is read again some time after a failure.
    Failed,
}

/// A waiting query to start.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct WaitingQuery {
    pub(super) name: Arc<str>,
    pub(super) index: u64,
    /// Time until the query may start.
    pub(super) delay: Duration,
}

impl Schedule {
    /// Creates the schedule of a registry without services.
    pub(super) fn new(max_waiting: usize, tuning: &ConsulTuning) -> Self {
        Self {
            services: HashMap::new(),
            due: VecDeque::new(),
            retries: BTreeSet::new(),
            waiting: BTreeSet::new(),
            reading: 0,
            limit: WaitingLimit::new(max_waiting),
            untried: 0,
            is_round: false,
            polled: None,
            poll_wanted: false,
            tuning: tuning.clone(),
        }
    }

    /// Begins a round: reads all services once, then lets them wait.
    pub(super) fn begin_round(&mut self, names: &BTreeSet<Box<str>>, now: Instant) {
        for service in self.services.values() {
            service.abort();
        }
        self.services.clear();
        self.due.clear();
        self.retries.clear();
        self.waiting.clear();
        (self.reading, self.untried) = (0, 0);
        (self.is_round, self.polled, self.poll_wanted) = (true, Some(now), false);
        self.set_names(names, now);
    }

    /// Replaces the names; returns whether they changed.
    pub(super) fn set_names(&mut self, names: &BTreeSet<Box<str>>, now: Instant) -> bool {
        let gone: Vec<_> =
            self.services.keys().filter(|name| !names.contains(&***name)).cloned().collect();
        let mut changed = !gone.is_empty();
        for name in gone {
            self.set_mode(&name, Mode::Polled);
            if let Some(service) = self.services.remove(&name) {
                service.abort();
                self.untried -= usize::from(service.is_untried);
            }
        }
        for name in names {
            if self.services.contains_key(&**name) {
                continue;
            }
            changed = true;
            let name: Arc<str> = Arc::from(&**name);
            let service = ScheduledService {
                mode: Mode::Due,
                query: None,
                index: 0,
                step: IndexStep::Forward,
                pace: Pace::new(),
                changed: now,
                backoff: None,
                is_untried: self.is_round,
                is_unread: self.is_round,
            };
            self.untried += usize::from(self.is_round);
            self.services.insert(Arc::clone(&name), service);
            // A new service goes before the polled ones.
            if self.is_round { self.due.push_back(name) } else { self.due.push_front(name) }
        }
        changed
    }

    /// Returns whether there are more services than may wait, so that some are polled.
    pub(super) fn has_polled(&self) -> bool {
        self.polled_services() > 0
    }

    /// Returns how many services are beyond those that may wait.
    fn polled_services(&self) -> usize {
        self.services.len().saturating_sub(self.limit.current())
    }

    /// Records that the catalog or a check has changed, perhaps of a polled service.
    pub(super) fn note_change(&mut self) {
        self.poll_wanted = true;
    }

    /// Queues the services whose time has come.
    pub(super) fn advance(&mut self, now: Instant) {
        while let Some((at, name)) = self.retries.first().cloned() {
            if at > now {
                break;
            }
            self.retries.pop_first();
            if self.services.get(&name).is_some_and(|service| service.mode == Mode::Failed) {
                self.set_mode(&name, Mode::Due);
                self.due.push_back(name);
            }
        }
        if !self.is_round && self.next_poll().is_some_and(|at| at <= now) {
            self.polled = Some(now);
            self.poll_wanted = false;
            let polled = self.services.iter().filter(|(_, state)| state.mode == Mode::Polled);
            let names: Vec<_> = polled.map(|(name, _)| Arc::clone(name)).collect();
            for name in names {
                self.set_mode(&name, Mode::Due);
                self.due.push_back(name);
            }
        }
    }

    /// Returns when [`Schedule::advance`] has something to do.
    pub(super) fn wake(&self) -> Option<Instant> {
        let retry = self.retries.first().map(|(at, _)| *at);
        retry.into_iter().chain(self.next_poll()).min()
    }

    /// Returns when the polled services are due; many are due less often, for the agent's sake.
    fn next_poll(&self) -> Option<Instant> {
        let pause = TIME_PER_POLL * u32::try_from(self.polled_services()).unwrap_or(u32::MAX);
        let after_change = self.tuning.poll_interval.max(pause).min(self.tuning.wait);
        let interval = if self.poll_wanted { after_change } else { self.tuning.wait };
        self.polled.map(|polled| polled + interval).filter(|_| !self.is_round)
    }

    /// Returns the next service to read, if a further read may begin.
    pub(super) fn next_read(&mut self) -> Option<Arc<str>> {
        while self.reading < self.tuning.max_reads.max(1) {
            let name = self.due.pop_front()?;
            if self.services.get(&name).is_some_and(|service| service.mode == Mode::Due) {
                self.set_mode(&name, Mode::Reading);
                return Some(name);
            }
        }
        None
    }

    /// Records the query in progress for a service.
    pub(super) fn set_query(&mut self, name: &str, query: AbortHandle) {
        match self.services.get_mut(name) {
            Some(service) => service.query = Some(query),
            None => query.abort(),
        }
    }

    /// Returns whether a query that ended is the one in progress for its service.
    pub(super) fn is_current(&self, name: &str, query: Id) -> bool {
        let service = self.services.get(name);
        service.and_then(|service| service.query.as_ref()).is_some_and(|known| known.id() == query)
    }

    /// Returns whether a service has not been read since the last round began.
    pub(super) fn is_unread(&self, name: &str) -> bool {
        self.services.get(name).is_some_and(|service| service.is_unread)
    }

    /// Compares the index of an answer with that of the service's last one.
    pub(super) fn step(&self, name: &str, index: u64) -> IndexStep {
        index::step(self.services.get(name).map_or(0, |service| service.index), index)
    }

    /// Records that the instances of a service are known, whatever the index of the answer.
    pub(super) fn note_read(&mut self, name: &str) {
        if let Some(service) = self.services.get_mut(name) {
            service.is_unread = false;
        }
    }

    /// Records an answer whose index is the same as the last one's, or higher.
    pub(super) fn answered(&mut self, name: &str, index: u64, now: Instant) {
        let Some(service) = self.services.get_mut(name) else { return };
        let is_first = service.index == 0;
        let step = index::step(service.index, index);
        (service.index, service.step) = (index, step);
        (service.backoff, service.query, service.is_unread) = (None, None, false);
        self.untried -= usize::from(std::mem::take(&mut service.is_untried));
        let is_waiting = service.mode == Mode::Waiting;
        if step != IndexStep::Same {
            self.set_changed(name, now);
        }
        if self.is_round {
            self.set_mode(name, Mode::Ready);
        } else if is_waiting {
            // It keeps its connection: a lower limit has already taken those in surplus.
        } else if self.has_room()
            || (step == IndexStep::Forward && !is_first && self.demote_quiet(now))
        {
            self.set_mode(name, Mode::Waiting);
        } else {
            self.set_mode(name, Mode::Polled);
        }
    }

    /// Records a failure; returns whether the previous attempt also failed.
    pub(super) fn failed(&mut self, name: &str, now: Instant) -> bool {
        let Some((name, _)) = self.services.get_key_value(name) else { return false };
        let name = Arc::clone(name);
        self.set_mode(&name, Mode::Failed);
        let Some(service) = self.services.get_mut(&name) else { return false };
        let again = service.backoff.is_some();
        let (min, max) = (self.tuning.connection.backoff_min, self.tuning.connection.backoff_max);
        let wait = service.backoff.get_or_insert_with(|| Backoff::new(min, max)).next();
        service.query = None;
        self.untried -= usize::from(std::mem::take(&mut service.is_untried));
        self.retries.insert((now + wait, name));
        again
    }

    /// Makes do with fewer waiting queries, after the agent has refused a connection.
    ///
    /// The queries in surplus end at once. Returns the new limit; `None` if it was not lowered.
    pub(super) fn note_refusal(&mut self, now: Instant) -> Option<usize> {
        let is_lower = self.limit.lower(self.waiting.len(), now);
        self.end_surplus(is_lower)
    }

    /// Returns the next check whether the agent has room for more connections, if one is of use.
    pub(super) fn next_room_check(&self, now: Instant) -> Option<RoomCheck> {
        self.limit.next_check(self.tuning.wait, now)
    }

    /// Returns the time until that check.
    pub(super) fn room_check_interval(&self) -> Duration {
        if self.limit.needs_head_room() { refusal::BURST } else { self.tuning.heartbeat_interval }
    }

    /// Records that such a check, which began at this time, has found room.
    pub(super) fn note_room(&mut self, check: RoomCheck, began: Instant) {
        // With a higher limit, some of the polled services may wait.
        self.poll_wanted |= self.limit.note_room(check, began);
    }

    /// Records that such a check was refused; returns the new limit if it was lowered.
    pub(super) fn note_no_room(&mut self, check: RoomCheck, now: Instant) -> Option<usize> {
        let is_lower = self.limit.note_no_room(check, self.waiting.len(), now);
        self.end_surplus(is_lower)
    }

    /// Ends the waiting queries beyond the limit, if it was lowered; returns it then.
    fn end_surplus(&mut self, is_lower: bool) -> Option<usize> {
        if !is_lower {
            return None;
        }
        while self.waiting.len() > self.limit.current() {
            let Some((_, name)) = self.waiting.first().cloned() else { break };
            self.end_waiting(&name);
        }
        Some(self.limit.current())
    }

    /// Records that the agent cannot be reached; see [`WaitingLimit::note_end`].
    pub(super) fn note_end(&mut self, now: Instant) {
        self.limit.note_end(now);
    }

    /// Returns whether a round is in progress.
    pub(super) fn is_round(&self) -> bool {
        self.is_round
    }

    /// Returns whether the round is complete: every service was read, or failed, once.
    pub(super) fn is_round_complete(&self) -> bool {
        self.is_round && self.untried == 0
    }

    /// Ends a round; the services that were read wait or are polled from now on.
    pub(super) fn end_round(&mut self) -> Vec<Arc<str>> {
        self.is_round = false;
        self.limit.unsettle();
        let ready = self.services.iter().filter(|(_, service)| service.mode == Mode::Ready);
        let mut names: Vec<_> = ready.map(|(name, _)| Arc::clone(name)).collect();
        names.sort_unstable();
        for name in &names {
            let mode = if self.has_room() { Mode::Waiting } else { Mode::Polled };
            self.set_mode(name, mode);
        }
        names
    }

    /// Returns the waiting query to start for a service, if it has none yet and may have one.
    pub(super) fn waiting_query(&mut self, name: &str, now: Instant) -> Option<WaitingQuery> {
        let (name, _) = self.services.get_key_value(name)?;
        let name = Arc::clone(name);
        let service = self.services.get_mut(&name)?;
        if service.mode != Mode::Waiting || service.query.is_some() {
            return None;
        }
        let delay = service.pace.next(service.step, now);
        Some(WaitingQuery { name, index: service.index, delay })
    }

    /// Returns whether a further query may wait.
    fn has_room(&self) -> bool {
        self.waiting.len() < self.limit.current()
    }

    /// Takes the waiting query from the service that has not changed for longest.
    fn demote_quiet(&mut self, now: Instant) -> bool {
        let Some((changed, name)) = self.waiting.first().cloned() else { return false };
        if now.duration_since(changed) < QUIET {
            return false;
        }
        self.end_waiting(&name);
        true
    }

    /// Ends the waiting query of a service, which is polled from now on.
    fn end_waiting(&mut self, name: &str) {
        self.set_mode(name, Mode::Polled);
        if let Some(service) = self.services.get_mut(name) {
            service.abort();
            service.query = None;
        }
        // The answer to this query may have been on its way.
        self.poll_wanted = true;
    }

    /// Changes the mode of a service, and the counts.
    fn set_mode(&mut self, name: &str, mode: Mode) {
        let Some((name, _)) = self.services.get_key_value(name) else { return };
        let name = Arc::clone(name);
        let Some(service) = self.services.get_mut(&name) else { return };
        let last = std::mem::replace(&mut service.mode, mode);
        self.reading -= usize::from(last == Mode::Reading);
        self.reading += usize::from(mode == Mode::Reading);
        if mode == Mode::Waiting {
            self.waiting.insert((service.changed, name));
        } else if last == Mode::Waiting {
            self.waiting.remove(&(service.changed, name));
        }
    }

    /// Records that a service has changed now.
    fn set_changed(&mut self, name: &str, now: Instant) {
        let Some(service) = self.services.get_mut(name) else { return };
        let entry = (std::mem::replace(&mut service.changed, now), Arc::from(name));
        if self.waiting.remove(&entry) {
            self.waiting.insert((now, entry.1));
        }
    }
}

impl ScheduledService {
    fn abort(&self) {
        if let Some(query) = &self.query {
            query.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<Box<str>> {
        names.iter().map(|name| (*name).into()).collect()
    }

    /// Reads all due services, which all have this index.
    fn read_all(schedule: &mut Schedule, index: u64, now: Instant) -> Vec<String> {
        let mut read = Vec::new();
        while let Some(name) = schedule.next_read() {
            schedule.answered(&name, index, now);
            read.push(name.to_string());
        }
        read
    }

    fn waiting(schedule: &Schedule) -> Vec<&str> {
        let waiting = schedule.services.iter().filter(|(_, service)| service.mode == Mode::Waiting);
        let mut names: Vec<_> = waiting.map(|(name, _)| &**name).collect();
        names.sort_unstable();
        names
    }

    /// Creates a schedule with two waiting queries, after the round over these services.
    fn after_round(all: &[&str], now: Instant) -> Schedule {
        let mut schedule = Schedule::new(2, &ConsulTuning::default());
        schedule.begin_round(&names(all), now);
        assert_eq!(read_all(&mut schedule, 5, now), all);
        assert!(schedule.is_round_complete());
        schedule.end_round();
        schedule
    }

    #[test]
    fn services_beyond_the_limit_are_polled_when_the_catalog_changes() {
        let mut now = Instant::now();
        let mut schedule = after_round(&["a", "b", "c", "d"], now);
        assert_eq!(waiting(&schedule), ["a", "b"]);
        let tuning = ConsulTuning::default();
        now += tuning.poll_interval;
        schedule.advance(now);
        assert_eq!(schedule.next_read(), None, "nothing has changed");
        schedule.note_change();
        schedule.advance(now);
        let mut polled = read_all(&mut schedule, 5, now);
        polled.sort();
        assert_eq!(polled, ["c", "d"]);
        schedule.note_change();
        schedule.advance(now);
        assert_eq!(schedule.next_read(), None, "not again so soon");
        assert_eq!(schedule.wake(), Some(now + tuning.poll_interval));
        // Without any change, all are verified from time to time.
        now += tuning.poll_interval;
        schedule.advance(now);
        assert_eq!(read_all(&mut schedule, 5, now).len(), 2);
        assert_eq!(schedule.wake(), Some(now + tuning.wait));
    }

    #[test]
    fn many_polled_services_are_due_less_often() {
        let now = Instant::now();
        let names: Vec<String> = (0..1002).map(|number| format!("s{number:04}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut schedule = after_round(&names, now);
        schedule.note_change();
        assert_eq!(schedule.wake(), Some(now + 1000 * TIME_PER_POLL));
    }

    #[test]
    fn a_polled_service_that_changes_takes_the_place_of_a_quiet_service() {
        let start = Instant::now();
        let mut schedule = after_round(&["a", "b", "c"], start);
        let now = start + QUIET;
        schedule.answered("b", 6, now);
        schedule.note_change();
        schedule.advance(now);
        assert_eq!(read_all(&mut schedule, 7, now), ["c"]);
        assert_eq!(waiting(&schedule), ["b", "c"]);
        schedule.note_change();
        let now = now + ConsulTuning::default().poll_interval;
        schedule.advance(now);
        assert_eq!(read_all(&mut schedule, 8, now), ["a"]);
        assert_eq!(waiting(&schedule), ["b", "c"], "both have changed lately");
    }

    #[test]
    fn failed_services_are_read_again_and_do_not_hold_up_a_round() {
        let mut now = Instant::now();
        let mut schedule = Schedule::new(2, &ConsulTuning::default());
        schedule.begin_round(&names(&["a", "b"]), now);
        let first = schedule.next_read().unwrap();
        assert!(!schedule.failed(&first, now), "the first failure");
        assert_eq!(read_all(&mut schedule, 5, now), ["b"]);
        assert!(schedule.is_round_complete());
        schedule.end_round();
        now += ConsulTuning::default().connection.backoff_max;
        schedule.advance(now);
        let again = schedule.next_read().unwrap();
        assert_eq!(&*again, "a");
        assert!(schedule.failed(&again, now), "failed again");
        now += ConsulTuning::default().connection.backoff_max;
        schedule.advance(now);
        assert_eq!(read_all(&mut schedule, 5, now), ["a"]);
        assert_eq!(waiting(&schedule), ["a", "b"]);
    }

    #[test]
    fn reads_are_limited_and_removed_services_are_forgotten() {
        let now = Instant::now();
        let tuning = ConsulTuning { max_reads: 2, ..ConsulTuning::default() };
        let mut schedule = Schedule::new(9, &tuning);
        schedule.begin_round(&names(&["a", "b", "c"]), now);
        assert!(schedule.next_read().is_some() && schedule.next_read().is_some());
        assert_eq!(schedule.next_read(), None);
        assert!(schedule.set_names(&names(&["c"]), now));
        assert!(!schedule.set_names(&names(&["c"]), now));
        assert_eq!(read_all(&mut schedule, 5, now), ["c"]);
        assert!(schedule.is_round_complete());
        schedule.end_round();
        schedule.set_names(&names(&["c", "new"]), now);
        assert_eq!(read_all(&mut schedule, 6, now), ["new"]);
        assert_eq!(waiting(&schedule), ["c", "new"]);
    }

    #[test]
    fn refused_connections_lower_the_limit_until_there_is_room_again() {
        let mut now = Instant::now();
        let all: Vec<String> = (10..30).map(|n| n.to_string()).collect();
        let all: BTreeSet<Box<str>> = all.iter().map(|name| name.as_str().into()).collect();
        let tuning = ConsulTuning::default();
        let mut schedule = Schedule::new(16, &tuning);
        schedule.begin_round(&all, now);
        read_all(&mut schedule, 5, now);
        schedule.end_round();
        assert_eq!(waiting(&schedule).len(), 16);
        schedule.answered("10", 6, now + QUIET);
        assert_eq!(schedule.note_refusal(now), Some(8));
        assert_eq!(waiting(&schedule).len(), 8);
        assert!(waiting(&schedule).contains(&"10"), "it has changed last");
        assert_eq!(schedule.note_refusal(now), None, "the same burst");
        schedule.begin_round(&all, now);
        read_all(&mut schedule, 6, now);
        schedule.end_round();
        assert_eq!(waiting(&schedule).len(), 8, "a new round keeps what was learned");
        let check = schedule.next_room_check(now).unwrap();
        assert_eq!((check, schedule.room_check_interval()), (RoomCheck::HeadRoom, refusal::BURST));
        schedule.note_room(check, now + tuning.wait);
        assert_eq!(schedule.room_check_interval(), tuning.heartbeat_interval);
        now += tuning.wait * 2;
        let check = schedule.next_room_check(now).unwrap();
        assert_eq!(check, RoomCheck::Growth { limit: 16, queries: 8 });
        schedule.note_room(check, now);
        schedule.advance(now);
        read_all(&mut schedule, 7, now);
        assert_eq!(waiting(&schedule).len(), 16);
    }
}
