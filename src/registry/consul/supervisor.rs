//! The state machine that follows one datacenter through its failures.

use std::convert::Infallible;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::task::{AbortHandle, Id, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};

use super::Settings;
use super::check_changes::CheckChanges;
use super::client::{ConsulClient, NameList};
use super::failure::invalid_index;
use super::index::{self, IndexStep, Pace, RoundPace};
use super::parse;
use super::refusal::{BURST, Retries, RoomCheck};
use super::schedule::{Schedule, WaitingQuery};
use crate::registry::backoff::Backoff;
use crate::registry::failure::{Failure, FailureKind};
use crate::registry::service_faults::ServiceFaults;
use crate::registry::session::{SessionEnd, StoreLink, Supervisor};
use crate::registry::{RegistryCommand, RegistryReport};
use crate::service::{Change, ListKind, ListScope};

/// Follows one datacenter through all failures.
///
/// The supervisor keeps no copy of the instances, only names and indexes.
pub(super) struct ConsulSupervisor {
    settings: Settings,
    link: StoreLink,
    /// Every round begins it again; the learned limit on waiting queries stays.
    schedule: Schedule,
    /// Index of the last list of names; 0 before the first.
    position: u64,
    /// The kind of the next round, if it is not decided by the index alone.
    ///
    /// Set until the first round is complete, and after one that broke off.
    required_round: Option<ListKind>,
    round_pace: RoundPace,
}

impl ConsulSupervisor {
    pub(super) fn new(settings: Settings, first: ListKind, link: StoreLink) -> Self {
        let tuning = &settings.tuning;
        Self {
            link,
            schedule: Schedule::new(settings.max_waiting, tuning),
            position: 0,
            required_round: Some(first),
            round_pace: RoundPace::new(tuning.connection.backoff_min, tuning.wait),
            settings,
        }
    }

    /// Returns the kind of a round that begins with a list of names at this index.
    fn kind_of_round(&self, index: u64) -> ListKind {
        if index::step(self.position, index) == IndexStep::Back && self.position > 0 {
            return ListKind::Restored;
        }
        self.required_round.unwrap_or(ListKind::Reconnect)
    }
}

impl Supervisor for ConsulSupervisor {
    fn link(&mut self) -> &mut StoreLink {
        &mut self.link
    }

    /// Follows the datacenter through one agent until that fails.
    async fn session(&mut self, endpoint: &str) -> Result<Infallible, SessionEnd> {
        let client = ConsulClient::new(&self.settings, endpoint).await?;
        let names = client.names(0, Duration::ZERO).await?;
        self.link.drain_commands();
        let tuning = &self.settings.tuning.connection;
        let mut session = AgentSession {
            client,
            queries: JoinSet::new(),
            names_pace: Pace::new(),
            names_retries: Retries::new(tuning),
            leader_retries: Retries::new(tuning),
            index_backoff: tuning.backoff(),
            names_query: None,
            names_error: None,
            round_due: None,
            check_changes: CheckChanges::new(tuning.backoff()),
            room_due: Some(Instant::now() + self.settings.tuning.heartbeat_interval),
            round: ListKind::Routine,
            service_faults: ServiceFaults::default(),
            supervisor: self,
        };
        session.spawn_leader_check(None);
        session.begin_round(names).await?;
        let Err(end) = session.run().await;
        if matches!(&end, SessionEnd::Failed(failure) if failure.kind == FailureKind::Connection) {
            session.supervisor.schedule.note_end(Instant::now());
        }
        Err(end)
    }
}

/// The result of one query.
enum QueryResult {
    Names(Result<NameList, Failure>),
    Service { name: Arc<str>, result: Result<(u64, Vec<Change>), Failure> },
    Checks(Result<u64, Failure>),
    Leader(Result<(), Failure>),
    Room { check: RoomCheck, began: Instant, result: Result<(), Failure> },
}

/// A session with one agent.
///
/// All queries are tasks that end with one result; the session alone decides what follows, and
/// sends the changes. Dropping it ends all queries.
struct AgentSession<'a> {
    supervisor: &'a mut ConsulSupervisor,
    client: ConsulClient,
    queries: JoinSet<QueryResult>,
    names_pace: Pace,
    names_retries: Retries,
    leader_retries: Retries,
    /// Spaces the queries for the names while the index of their list is invalid.
    index_backoff: Backoff,
    /// The query for the names in progress.
    names_query: Option<AbortHandle>,
    /// The fault of the last list of names, which was taken despite it.
    names_error: Option<String>,
    /// The query for changes of checks, while there are polled services.
    check_changes: CheckChanges,
    /// When the list of names is read for a required round; until then all goes on.
    round_due: Option<Instant>,
    /// When the next check for room begins; `None` while one is in progress.
    room_due: Option<Instant>,
    /// The kind of the last round.
    round: ListKind,
    /// The lasting failures of single services.
    service_faults: ServiceFaults,
}

impl AgentSession<'_> {
    async fn run(&mut self) -> Result<Infallible, SessionEnd> {
        loop {
            self.supervisor.schedule.advance(Instant::now());
            while let Some(name) = self.supervisor.schedule.next_read() {
                let query = WaitingQuery { name, index: 0, delay: Duration::ZERO };
                self.spawn_service_query(query);
            }
            if self.round_due.is_some_and(|due| due <= Instant::now()) {
                self.read_names_for_round();
            }
            if self.supervisor.schedule.has_polled() {
                self.spawn_checks_query();
            }
            if self.room_due.take_if(|due| *due <= Instant::now()).is_some() {
                self.spawn_room_check();
            }
            let wake = self.supervisor.schedule.wake().into_iter();
            let wake = wake.chain(self.round_due).chain(self.room_due).min();
            tokio::select! {
                Some(ended) = self.queries.join_next_with_id() => {
                    match ended {
                        Ok((id, result)) => self.take(id, result).await?,
                        // The daemon follows the registry again after a panic.
                        Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
                        // An aborted query has no result.
                        Err(_) => {}
                    }
                }
                Some(RegistryCommand::CheckLeases(leases)) =
                    self.supervisor.link.commands.recv() =>
                {
                    // Only instances with a critical check are deleted, so all have expired.
                    self.supervisor.link.report_all_gone(leases).await?;
                }
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
            }
        }
    }

    /// Handles the result of a query.
    async fn take(&mut self, id: Id, result: QueryResult) -> Result<(), SessionEnd> {
        match result {
            QueryResult::Checks(result) => self.take_checks(result),
            QueryResult::Leader(Ok(())) => {
                self.leader_retries.reset();
                self.spawn_leader_check(None);
            }
            QueryResult::Leader(Err(failure)) => {
                let retry = self.leader_retries.next();
                let delay = self.after_refusal(failure, retry)?;
                self.spawn_leader_check(Some(delay));
            }
            QueryResult::Room { check, began, result } => {
                let schedule = &mut self.supervisor.schedule;
                match result {
                    Ok(()) => schedule.note_room(check, began),
                    Err(failure) => {
                        let lower = schedule.note_no_room(check, Instant::now());
                        self.report_limit(lower, &failure);
                    }
                }
                let interval = self.supervisor.schedule.room_check_interval();
                self.room_due = Some(Instant::now() + interval);
            }
            // The query that a required round has replaced.
            QueryResult::Names(_) if !self.is_names_query(id) => {}
            QueryResult::Names(Ok(names)) => {
                self.names_retries.reset();
                self.take_names(names).await?;
            }
            QueryResult::Names(Err(failure)) => {
                let retry = self.names_retries.next();
                let delay = self.after_refusal(failure, retry)?;
                self.spawn_names_query(delay);
            }
            QueryResult::Service { name, result }
                if self.supervisor.schedule.is_current(&name, id) =>
            {
                match result {
                    Ok((index, instances)) => self.take_service(&name, index, instances).await?,
                    Err(failure) => self.take_failure(&name, failure),
                }
                self.continue_service(&name);
                if self.supervisor.schedule.is_round_complete() {
                    self.end_round().await?;
                }
            }
            QueryResult::Service { .. } => {}
        }
        Ok(())
    }

    // Rounds

    /// Begins to read all services once.
    ///
    /// The lists are per-service lists: a service that cannot be read keeps its instances.
    async fn begin_round(&mut self, names: NameList) -> Result<(), SessionEnd> {
        let supervisor = &mut *self.supervisor;
        let kind = supervisor.kind_of_round(names.index);
        if kind == ListKind::Restored {
            tracing::warn!(
                registry = %supervisor.link.feed.state(),
                index = names.index,
                last_index = supervisor.position,
                "the store went back in time or was replaced: restored from a backup, or wiped"
            );
        }
        self.round = kind;
        let listed = names.names.iter().cloned().collect();
        supervisor.link.feed.send(vec![Change::ServiceNames { kind, names: listed }]).await?;
        supervisor.required_round = supervisor.required_round.max(Some(kind));
        if names.index > 0 {
            supervisor.position = names.index;
        }
        self.service_faults = ServiceFaults::default();
        self.check_names_index(names.index);
        self.supervisor.schedule.begin_round(&names.names, Instant::now());
        if self.supervisor.schedule.is_round_complete() {
            self.end_round().await?;
        }
        Ok(())
    }

    /// Ends a round: from now on, the services wait or are polled.
    async fn end_round(&mut self) -> Result<(), SessionEnd> {
        let supervisor = &mut *self.supervisor;
        let index = supervisor.position;
        supervisor.required_round = None;
        supervisor.link.send_connected(Vec::new()).await?;
        let error = self.error();
        // One update: a reader must not take an incomplete round for a complete one.
        let complete = |report: &mut RegistryReport| {
            report.revision = index;
            report.error = error;
            report.note_list();
        };
        self.supervisor.link.following(complete).await?;
        // The queries that the session depends on go first, in case the agent refuses some.
        let is_valid = self.names_error.is_none();
        self.continue_names(if is_valid { IndexStep::Forward } else { IndexStep::Invalid });
        for name in self.supervisor.schedule.end_round() {
            self.continue_service(&name);
        }
        Ok(())
    }

    /// Requires a round, since an index has shown that the store may have been restored.
    fn request_round(&mut self) {
        if self.supervisor.required_round.is_some() {
            return;
        }
        self.supervisor.required_round = Some(ListKind::Restored);
        self.round_due = Some(self.supervisor.round_pace.next(Instant::now()));
    }

    /// Replaces the query for the names by one that does not wait, and begins the required round.
    fn read_names_for_round(&mut self) {
        self.round_due = None;
        if let Some(query) = self.names_query.take() {
            query.abort();
        }
        self.spawn_names_query(Duration::ZERO);
    }

    /// Returns whether the next list of names begins a round.
    fn is_round_next(&self) -> bool {
        self.supervisor.required_round.is_some() && self.round_due.is_none()
    }

    // Answers

    /// Takes a list of names, which may show that the store went back in time.
    async fn take_names(&mut self, names: NameList) -> Result<(), SessionEnd> {
        if self.is_round_next() {
            return self.begin_round(names).await;
        }
        self.check_names_index(names.index);
        let step = index::step(self.supervisor.position, names.index);
        match step {
            IndexStep::Back => {
                self.request_round();
                self.continue_names(IndexStep::Same);
                return Ok(());
            }
            // Without an index, any service may have changed.
            IndexStep::Invalid => self.supervisor.schedule.note_change(),
            IndexStep::Same => {}
            IndexStep::Forward => {
                self.supervisor.position = names.index;
                self.supervisor.schedule.note_change();
                self.note_event();
            }
        }
        if self.supervisor.schedule.set_names(&names.names, Instant::now()) {
            self.service_faults.retain(|name| names.names.contains(name));
            self.report_errors();
            let names = names.names.into_iter().collect();
            let change = Change::ServiceNames { kind: ListKind::Routine, names };
            self.supervisor.link.feed.send(vec![change]).await?;
        }
        self.continue_names(step);
        Ok(())
    }

    /// Sends the instances of a service.
    async fn take_service(
        &mut self,
        name: &Arc<str>,
        index: u64,
        instances: Vec<Change>,
    ) -> Result<(), SessionEnd> {
        let step = self.supervisor.schedule.step(name, index);
        if step == IndexStep::Back {
            // This list waits for the round: it may lack what the restored store has lost.
            self.request_round();
            let text = format!(
                "the index of the service {name:?} went back to {index}: all services are read \
                 again, to find out whether the store was restored"
            );
            self.take_failure(name, Failure::connection(text));
            return Ok(());
        }
        let is_unread = self.supervisor.schedule.is_unread(name);
        let kind = if is_unread { self.round } else { ListKind::Routine };
        let scope = ListScope::Service((**name).into());
        let changes = [Change::ListBegin { kind, scope }]
            .into_iter()
            .chain(instances)
            .chain([Change::ListEnd { revision: 0 }])
            .collect();
        self.supervisor.link.feed.send(changes).await?;
        self.note_event();
        if step == IndexStep::Invalid {
            self.supervisor.schedule.note_read(name);
            let action = format!("wait for changes of the service {name:?}");
            self.take_failure(name, invalid_index().of(&action));
            return Ok(());
        }
        self.supervisor.schedule.answered(name, index, Instant::now());
        if self.service_faults.remove(name) {
            self.report_errors();
        }
        Ok(())
    }

    /// Takes the index of the checks, which may have changed with the polled services.
    ///
    /// The session does not depend on it: after a failure, the polled services are read anyway.
    fn take_checks(&mut self, result: Result<u64, Failure>) {
        let may_have_changed = match result {
            Ok(index) => self.check_changes.answered(index, Instant::now()),
            Err(failure) => {
                let failed_before = self.check_changes.failed();
                self.note_if_refusal(&failure, failed_before);
                true
            }
        };
        if may_have_changed {
            self.supervisor.schedule.note_change();
        }
        if !self.supervisor.schedule.has_polled() {
            self.check_changes.pause();
        }
    }

    /// Records the failure of a query for one service, which keeps its instances.
    fn take_failure(&mut self, name: &Arc<str>, failure: Failure) {
        let now = Instant::now();
        let failed_before = self.supervisor.schedule.failed(name, now);
        let kind = failure.kind;
        self.note_if_refusal(&failure, failed_before);
        // The end of the agent ends all queries, and soon the session; after a refusal, there may
        // be room at once.
        let is_lasting = failed_before || !(kind.is_crowded() || kind == FailureKind::Connection);
        let text = self.supervisor.link.locate(failure).text;
        // A round is incomplete without the service, however short the failure.
        let is_reported = is_lasting || self.supervisor.schedule.is_round();
        if is_reported && self.service_faults.set(name, text.clone()) {
            if is_lasting {
                let registry = self.supervisor.link.feed.state();
                tracing::warn!(
                    %registry, reason = text, "a service cannot be read, trying again"
                );
            }
            self.report_errors();
        }
    }

    /// Returns how long to wait before a refused query that the session depends on is sent again.
    ///
    /// # Errors
    /// If the failure is not a refusal, or there is no further attempt.
    fn after_refusal(
        &mut self,
        failure: Failure,
        retry: Option<Duration>,
    ) -> Result<Duration, Failure> {
        if !failure.kind.is_crowded() {
            return Err(failure);
        }
        self.note_refusal(&failure);
        retry.ok_or(failure)
    }

    /// Takes a failure for a refusal if it may be one.
    fn note_if_refusal(&mut self, failure: &Failure, failed_before: bool) {
        // Another reason than a lack of room may close every connection for this query.
        let has_other_reason = failed_before && failure.kind == FailureKind::Closed;
        if failure.kind.is_crowded() && !has_other_reason {
            self.note_refusal(failure);
        }
    }

    /// Makes do with fewer waiting queries after a refusal.
    fn note_refusal(&mut self, failure: &Failure) {
        let now = Instant::now();
        let lower = self.supervisor.schedule.note_refusal(now);
        self.report_limit(lower, failure);
        self.room_due = self.room_due.map(|due| due.min(now + BURST));
    }

    /// Logs that the limit on waiting queries was lowered.
    fn report_limit(&self, lower: Option<usize>, failure: &Failure) {
        if let Some(max_waiting) = lower {
            let registry = self.supervisor.link.feed.state();
            tracing::warn!(%registry, reason = failure.text, max_waiting, "fewer waiting queries");
        }
    }

    /// Reports an invalid index of the list of names while it lasts.
    fn check_names_index(&mut self, index: u64) {
        if index > 0 {
            self.index_backoff.reset();
        }
        let fault = || invalid_index().of("wait for changes of the services");
        let error = (index == 0).then(|| self.supervisor.link.locate(fault()).text);
        if error != self.names_error {
            if let Some(reason) = &error {
                let registry = self.supervisor.link.feed.state();
                tracing::warn!(%registry, reason, "wrong answers");
            }
            self.names_error = error;
            self.report_errors();
        }
    }

    /// Returns the fault of the list of names, or else of the first service that has one.
    fn error(&self) -> Option<String> {
        self.names_error.clone().or_else(|| self.service_faults.text())
    }

    fn report_errors(&self) {
        let error = self.error();
        self.supervisor.link.feed.state().update(|report| report.error = error);
    }

    fn note_event(&self) {
        let index = self.supervisor.position;
        self.supervisor.link.feed.state().update(|report| {
            report.revision = index;
            report.last_event = Some(SystemTime::now());
        });
    }

    // Queries

    /// Starts the waiting query of a service that may have one.
    fn continue_service(&mut self, name: &str) {
        if let Some(query) = self.supervisor.schedule.waiting_query(name, Instant::now()) {
            self.spawn_service_query(query);
        }
    }

    fn spawn_service_query(&mut self, query: WaitingQuery) {
        let WaitingQuery { name, index, delay } = query;
        let (client, wait) = (self.client.clone(), self.supervisor.settings.tuning.wait);
        let queried = Arc::clone(&name);
        let handle = self.queries.spawn(async move {
            sleep(delay).await;
            let result = parse::read(&client, &queried, index, wait).await;
            QueryResult::Service { name: queried, result }
        });
        self.supervisor.schedule.set_query(&name, handle);
    }

    /// Starts the query for the next change of a check, unless one is in progress.
    fn spawn_checks_query(&mut self) {
        let Some((index, delay)) = self.check_changes.next_query() else { return };
        let (client, wait) = (self.client.clone(), self.supervisor.settings.tuning.wait);
        self.queries.spawn(async move {
            sleep(delay).await;
            QueryResult::Checks(client.checks_index(index, wait).await)
        });
    }

    /// Starts the query for the names that follow the last list, at its pace.
    fn continue_names(&mut self, step: IndexStep) {
        let delay = match step {
            IndexStep::Invalid => self.index_backoff.next(),
            _ => self.names_pace.next(step, Instant::now()),
        };
        self.spawn_names_query(delay);
    }

    /// Starts the query for the names; it does not wait if a round is next.
    fn spawn_names_query(&mut self, delay: Duration) {
        let (client, wait) = (self.client.clone(), self.supervisor.settings.tuning.wait);
        let index = if self.is_round_next() { 0 } else { self.supervisor.position };
        let query = self.queries.spawn(async move {
            sleep(delay).await;
            QueryResult::Names(client.names(index, wait).await)
        });
        self.names_query = Some(query);
    }

    /// Returns whether a query that ended is the last one for the names.
    fn is_names_query(&self, id: Id) -> bool {
        self.names_query.as_ref().is_some_and(|query| query.id() == id)
    }

    /// Starts a check whether the agent accepts more connections, if one is of use.
    fn spawn_room_check(&mut self) {
        let (client, began) = (self.client.clone(), Instant::now());
        let Some(check) = self.supervisor.schedule.next_room_check(began) else {
            self.room_due = Some(began + self.supervisor.settings.tuning.heartbeat_interval);
            return;
        };
        let limit = self.supervisor.settings.tuning.heartbeat_timeout;
        self.queries.spawn(async move {
            let result = client.check_room(check.connections(), limit).await;
            QueryResult::Room { check, began, result }
        });
    }

    /// Starts the next check of the leader, after this delay or the usual interval.
    fn spawn_leader_check(&mut self, delay: Option<Duration>) {
        let (client, tuning) = (self.client.clone(), &self.supervisor.settings.tuning);
        let (interval, limit) = (tuning.heartbeat_interval, tuning.heartbeat_timeout);
        let delay = delay.unwrap_or(interval);
        self.queries.spawn(async move {
            sleep(delay).await;
            QueryResult::Leader(client.check_leader(limit).await)
        });
    }
}
