//! The state machine that follows one polled store through its failures.

use std::convert::Infallible;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::Revision;
use super::schedule::PollSchedule;
use super::{
    PolledAnswer, PolledList, PolledNames, PolledStore, PollingClient, PollingTuning, time_of,
};
use crate::registry::RegistryCommand;
use crate::registry::failure::{Failure, FailureKind};
use crate::registry::service_faults::ServiceFaults;
use crate::registry::session::{SessionEnd, StoreLink, Supervisor};
use crate::service::{Change, ListKind, ListScope};

/// Share of the queries that may be for the names, beside those for lists.
const NAMES_SHARE: f64 = 0.05;

/// Kind of the lists after an outage: a server that was restarted may have lost its data.
const AFTER_OUTAGE: ListKind = ListKind::Restored;

/// Follows one polled store through all failures.
///
/// The supervisor keeps no copy of the instances, only names, revisions and counts.
pub(super) struct PollingSupervisor<S> {
    store: S,
    link: StoreLink,
    schedule: PollSchedule,
    tuning: PollingTuning,
    /// The kind of the next round.
    next_round: ListKind,
}

impl<S: PolledStore> PollingSupervisor<S> {
    /// Creates the supervisor of a store.
    pub(super) fn new(store: S, first: ListKind, link: StoreLink) -> Self {
        let (tuning, connection) = store.tuning();
        let tuning = tuning.clone();
        Self {
            schedule: PollSchedule::new(&tuning, connection, link.feed.state().removal_grace),
            store,
            link,
            tuning,
            next_round: if first == ListKind::Routine { first } else { AFTER_OUTAGE },
        }
    }
}

impl<S: PolledStore> Supervisor for PollingSupervisor<S> {
    fn link(&mut self) -> &mut StoreLink {
        &mut self.link
    }

    async fn session(&mut self, endpoint: &str) -> Result<Infallible, SessionEnd> {
        let client = self.store.connect(endpoint).await?;
        let names_began = Instant::now();
        let names = client.names(None).await?.ok_or_else(no_content)?;
        self.link.drain_commands();
        let names_interval = self.tuning.interval;
        let mut session = PollingSession {
            supervisor: self,
            client,
            queries: JoinSet::new(),
            names_revision: None,
            names_interval,
            names_pages: 1,
            names_due: None,
            names_began,
            answered: Instant::now(),
            is_doubted: false,
            round: ListKind::Routine,
            faults: ServiceFaults::default(),
        };
        session.begin_round(names).await?;
        session.run().await
    }
}

/// The result of one query.
enum PollResult {
    Names(Result<Option<PolledNames>, Failure>),
    /// Of a list, with the time at which the query began.
    List(Arc<str>, Instant, Result<PolledAnswer, Failure>),
}

/// A session with one server.
///
/// All queries are tasks that end with one result; the session alone decides what follows, and
/// sends the changes. Dropping it ends all queries.
struct PollingSession<'a, S: PolledStore> {
    supervisor: &'a mut PollingSupervisor<S>,
    client: S::Client,
    queries: JoinSet<PollResult>,
    /// The revision of the last names.
    names_revision: Option<Revision>,
    names_interval: Duration,
    /// Number of queries that the last names took.
    names_pages: usize,
    /// When the names are read next; `None` while they are read.
    names_due: Option<Instant>,
    /// Time of the last query for the names.
    names_began: Instant,
    /// Time of the last answer.
    answered: Instant,
    /// Whether a query has failed, so that the names must show that the server still answers.
    is_doubted: bool,
    /// The kind of the round.
    round: ListKind,
    /// The lasting failures of single lists.
    faults: ServiceFaults,
}

impl<S: PolledStore> PollingSession<'_, S> {
    async fn run(&mut self) -> Result<Infallible, SessionEnd> {
        loop {
            let now = Instant::now();
            if self.names_due.is_some_and(|due| due <= now) {
                self.spawn_names();
            }
            while let Some((name, known)) = self.supervisor.schedule.next(now) {
                self.spawn_list(name, known);
            }
            let wake = self.supervisor.schedule.wake().into_iter().chain(self.names_due).min();
            tokio::select! {
                Some(ended) = self.queries.join_next() => {
                    match ended {
                        Ok(result) => self.take(result).await?,
                        // The daemon follows the registry again after a panic.
                        Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
                        // An aborted query has no result.
                        Err(_) => {}
                    }
                }
                Some(RegistryCommand::CheckLeases(leases)) =
                    self.supervisor.link.commands.recv() =>
                {
                    // Only instances that the store takes for dead are deleted.
                    self.supervisor.link.report_all_gone(leases).await?;
                }
                () = sleep_until(wake.unwrap_or(now)), if wake.is_some() => {}
            }
        }
    }

    /// Handles the result of a query.
    async fn take(&mut self, result: PollResult) -> Result<(), SessionEnd> {
        match result {
            PollResult::Names(names) => {
                self.take_names(names?).await?;
                (self.answered, self.is_doubted) = (Instant::now(), false);
                self.names_due = Some(Instant::now() + self.names_interval);
            }
            PollResult::List(name, _, Ok(answer)) => {
                self.answered = Instant::now();
                self.take_answer(&name, answer).await?;
            }
            // A refused login concerns all lists.
            PollResult::List(_, _, Err(failure))
                if matches!(failure.kind, FailureKind::Login | FailureKind::UnknownUser) =>
            {
                return Err(failure.into());
            }
            PollResult::List(name, began, Err(failure)) => {
                self.take_failure(&name, began, failure);
            }
        }
        self.end_complete_round().await
    }

    // Rounds

    /// Begins to read all lists once.
    ///
    /// A list that cannot be read keeps its instances.
    async fn begin_round(&mut self, names: PolledNames) -> Result<(), SessionEnd> {
        let supervisor = &mut *self.supervisor;
        let now = Instant::now();
        let vanished = supervisor.schedule.begin_round(&names.names, now).vanished;
        self.round = std::mem::replace(&mut supervisor.next_round, AFTER_OUTAGE);
        supervisor.warn_of(vanished);
        self.note_names(names.revision, names.pages);
        self.names_due = Some(now + self.names_interval);
        let (kind, names) = (self.round, self.supervisor.schedule.names());
        self.supervisor.link.feed.send(vec![Change::ServiceNames { kind, names }]).await?;
        self.end_complete_round().await
    }

    /// Ends a round in which each list was read: from now on, they are polled.
    ///
    /// If a query has failed, the names must first show that the server still answers.
    async fn end_complete_round(&mut self) -> Result<(), SessionEnd> {
        let is_confirmed = self.names_due.is_some() && !self.is_doubted;
        if !self.supervisor.schedule.is_round_complete() || !is_confirmed {
            return Ok(());
        }
        self.supervisor.schedule.end_round(Instant::now());
        let error = self.faults.text();
        self.supervisor
            .link
            .following(|report| {
                report.error = error;
                report.note_list();
            })
            .await?;
        Ok(())
    }

    // Answers

    /// Takes the answer to a query for the names.
    async fn take_names(&mut self, names: Option<PolledNames>) -> Result<(), SessionEnd> {
        let supervisor = &mut *self.supervisor;
        let has_changed = match names {
            None => supervisor.schedule.forget_unnamed(),
            Some(names) => {
                let outcome = supervisor.schedule.set_names(&names.names, Instant::now());
                supervisor.warn_of(outcome.vanished);
                self.note_names(names.revision, names.pages);
                outcome.changed
            }
        };
        if has_changed {
            let supervisor = &mut *self.supervisor;
            let names = supervisor.schedule.names();
            self.faults.retain(|name| supervisor.schedule.has(name));
            let change = Change::ServiceNames { kind: ListKind::Routine, names };
            supervisor.link.feed.send(vec![change]).await?;
            self.report_faults();
            self.note_event();
        }
        Ok(())
    }

    /// Records the revision of the names, and how often they may be read.
    fn note_names(&mut self, revision: Option<Revision>, pages: usize) {
        let PollingTuning { interval, max_requests, .. } = self.supervisor.tuning;
        (self.names_revision, self.names_pages) = (revision, pages);
        self.names_interval = interval.max(time_of(pages, max_requests, NAMES_SHARE));
    }

    /// Takes the answer to a query for a list.
    async fn take_answer(
        &mut self,
        name: &Arc<str>,
        answer: PolledAnswer,
    ) -> Result<(), SessionEnd> {
        let schedule = &mut self.supervisor.schedule;
        let now = Instant::now();
        match answer {
            PolledAnswer::Unchanged if !schedule.has_revision(name) => {
                self.take_failure(name, now, no_content());
                return Ok(());
            }
            PolledAnswer::Unchanged => schedule.unchanged(name, now),
            PolledAnswer::Missing if schedule.is_known_empty(name) => schedule.unchanged(name, now),
            PolledAnswer::Missing => {
                schedule.note_missing(name, now);
                self.take_list(name, ListKind::Doubted, PolledList::default()).await?;
            }
            PolledAnswer::List(list) if schedule.is_still_empty(name, list.instances) => {
                schedule.unchanged(name, now);
            }
            PolledAnswer::List(list) => {
                let is_doubted = schedule.is_doubted(name, list.instances, now);
                let kind = if is_doubted { ListKind::Doubted } else { ListKind::Routine };
                self.take_list(name, kind, list).await?;
            }
        }
        if self.faults.remove(name) {
            self.report_faults();
        }
        Ok(())
    }

    /// Sends a list, of this kind unless it is the first of a round.
    async fn take_list(
        &mut self,
        name: &Arc<str>,
        kind: ListKind,
        list: PolledList,
    ) -> Result<(), SessionEnd> {
        let supervisor = &mut *self.supervisor;
        let is_unread = supervisor.schedule.is_unread(name);
        let kind = if is_unread { self.round } else { kind };
        let scope = ListScope::Service((**name).into());
        let changes = [Change::ListBegin { kind, scope }]
            .into_iter()
            .chain(list.changes)
            .chain([Change::ListEnd { revision: 0 }])
            .collect();
        supervisor.link.feed.send(changes).await?;
        supervisor.schedule.read(name, list.revision, list.instances, Instant::now());
        self.note_event();
        Ok(())
    }

    /// Records the failure of a query for one list, which keeps its instances.
    fn take_failure(&mut self, name: &Arc<str>, began: Instant, failure: Failure) {
        let now = Instant::now();
        let failed_before = self.supervisor.schedule.failed(name, now);
        let is_of_connection = failure.kind == FailureKind::Connection || failure.kind.is_crowded();
        let may_have_ended = self.answered <= began || self.supervisor.schedule.is_round();
        if is_of_connection && may_have_ended {
            // If the server has ended, the names end the session.
            self.is_doubted = true;
            let soonest = (self.names_began + self.supervisor.tuning.interval).max(now);
            self.names_due = self.names_due.map(|due| due.min(soonest));
        }
        // A round is incomplete without the list, however short the failure.
        let is_reported = failed_before || !is_of_connection || self.supervisor.schedule.is_round();
        if !is_reported {
            return;
        }
        let text = self.supervisor.link.locate(failure).text;
        let is_new = self.faults.set(name, text.clone());
        let (registry, services) = (self.supervisor.link.feed.state(), self.faults.count());
        if self.faults.take_warning(now) {
            tracing::warn!(
                %registry, services, reason = text, "services cannot be read, trying again"
            );
        } else if is_new {
            tracing::debug!(%registry, services, reason = text, "a service cannot be read");
        }
        if is_new {
            self.report_faults();
        }
    }

    fn report_faults(&self) {
        let error = self.faults.text();
        self.supervisor.link.feed.state().update(|report| report.error = error);
    }

    fn note_event(&self) {
        let now = SystemTime::now();
        self.supervisor.link.feed.state().update(|report| report.last_event = Some(now));
    }

    // Queries

    fn spawn_names(&mut self) {
        let now = Instant::now();
        (self.names_due, self.names_began) = (None, now);
        self.supervisor.schedule.count_queries(self.names_pages, now);
        let (client, known) = (self.client.clone(), self.names_revision.clone());
        self.queries.spawn(async move { PollResult::Names(client.names(known.as_ref()).await) });
    }

    fn spawn_list(&mut self, name: Arc<str>, known: Option<Revision>) {
        let (client, began) = (self.client.clone(), Instant::now());
        self.queries.spawn(async move {
            let result = client.list(&name, known.as_ref()).await;
            PollResult::List(name, began, result)
        });
    }
}

impl<S: PolledStore> PollingSupervisor<S> {
    /// Logs that the names of lists with instances have vanished.
    fn warn_of(&self, vanished: usize) {
        if vanished > 0 {
            let registry = self.link.feed.state();
            let grace_s = registry.removal_grace.as_secs();
            tracing::warn!(
                %registry,
                names = vanished,
                grace_s,
                "names with instances have vanished: the store may have lost its data"
            );
        }
    }
}

/// Creates the failure of a server that has nothing new although it was asked for everything.
fn no_content() -> Failure {
    let text = "the server answers that nothing has changed to a query without a revision";
    Failure::new(FailureKind::Answer, text)
}
