//! The state machine that follows one datacenter through its failures.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;
use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};

use super::Settings;
use super::client::{ConsulClient, NameList};
use super::failure::{ConsulFailure, ConsulFailureKind};
use super::index::{self, IndexStep, Pace};
use super::parse;
use super::schedule::{Schedule, WaitingQuery};
use crate::registry::backoff::Backoff;
use crate::registry::members::Members;
use crate::registry::{Feed, FeedClosed, RegistryCommand};
use crate::service::{Change, LeaseReply, ListKind, ListScope};

/// Follows one datacenter through all failures.
///
/// The supervisor keeps no copy of the instances, only names and indexes.
pub(super) struct ConsulSupervisor {
    settings: Settings,
    feed: Feed,
    commands: mpsc::Receiver<RegistryCommand>,
    endpoints: Members,
    backoff: Backoff,
    /// Index of the last list of names; 0 before the first.
    position: u64,
    /// The kind of the next round, if it is not decided by the index alone.
    ///
    /// Set until the first round is complete, and after one that broke off.
    required_round: Option<ListKind>,
    /// Whether the last `Connected` change said that the store is reachable.
    connected: bool,
}

/// Reason for the end of a session.
enum AgentSessionEnd {
    /// The feed is closed.
    Closed,
    /// The agent or the cluster failed; the next session may succeed.
    Failed(ConsulFailure),
}

impl From<FeedClosed> for AgentSessionEnd {
    fn from(_: FeedClosed) -> Self {
        Self::Closed
    }
}

impl From<ConsulFailure> for AgentSessionEnd {
    fn from(failure: ConsulFailure) -> Self {
        Self::Failed(failure)
    }
}

impl ConsulSupervisor {
    pub(super) fn new(
        settings: Settings,
        first: ListKind,
        feed: Feed,
        commands: mpsc::Receiver<RegistryCommand>,
    ) -> Self {
        let tuning = &settings.tuning;
        Self {
            endpoints: Members::new(&settings.endpoints),
            backoff: Backoff::new(tuning.backoff_min, tuning.backoff_max),
            position: 0,
            required_round: Some(first),
            connected: false,
            settings,
            feed,
            commands,
        }
    }

    /// Runs sessions until the feed is closed.
    pub(super) async fn run(mut self) -> FeedClosed {
        loop {
            let failure = match self.endpoints.choose() {
                None => ConsulFailure::new(ConsulFailureKind::Settings, "no agent is configured"),
                Some(endpoint) => {
                    let mut working_since = None;
                    let Err(end) = self.session(&endpoint, &mut working_since).await;
                    let AgentSessionEnd::Failed(failure) = end else { return FeedClosed };
                    let healthy_after = self.settings.tuning.healthy_after;
                    if working_since.is_some_and(|since: Instant| since.elapsed() >= healthy_after)
                    {
                        self.backoff.reset();
                    }
                    self.endpoints.set_failed(&endpoint, Some(Instant::now()));
                    failure.at(&endpoint)
                }
            };
            if self.report_disconnected(failure).await.is_err() {
                return FeedClosed;
            }
            let until = Instant::now() + self.backoff.next();
            while tokio::time::timeout_at(until, self.discard_command()).await.is_ok() {}
        }
    }

    /// Discards the next command, since the store cannot be reached now.
    async fn discard_command(&mut self) {
        if self.commands.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }

    /// Follows the datacenter through one agent until that fails.
    ///
    /// Sets `working_since` once a round is complete.
    async fn session(
        &mut self,
        endpoint: &str,
        working_since: &mut Option<Instant>,
    ) -> Result<Infallible, AgentSessionEnd> {
        let client = ConsulClient::new(&self.settings, endpoint).await?;
        let names = client.probe().await?;
        while self.commands.try_recv().is_ok() {}
        let schedule = Schedule::new(self.settings.max_waiting, &self.settings.tuning);
        let mut session = Session {
            endpoint,
            client,
            schedule,
            queries: JoinSet::new(),
            names_pace: Pace::new(),
            round: ListKind::Routine,
            service_errors: BTreeMap::new(),
            supervisor: self,
            working_since,
        };
        session.spawn_leader_check();
        session.begin_round(names).await?;
        session.run().await
    }

    /// Returns the kind of a round that begins with a list of names at this index.
    fn kind_of_round(&self, index: u64) -> ListKind {
        if index::step(self.position, index) == IndexStep::Back && self.position > 0 {
            return ListKind::Restored;
        }
        self.required_round.unwrap_or(ListKind::Reconnect)
    }

    /// Reports that the session failed; logs a lasting failure at `warn` only once.
    async fn report_disconnected(&mut self, failure: ConsulFailure) -> Result<(), FeedClosed> {
        let text = failure.text;
        let was_connected = std::mem::take(&mut self.connected);
        let mut known = false;
        let registry = self.feed.state();
        registry.update(|report| {
            report.connected = false;
            report.disconnects += u64::from(was_connected);
            known = report.error.as_ref() == Some(&text);
            report.error = Some(text.clone());
        });
        if known {
            tracing::debug!(%registry, reason = text, "still not connected");
        } else {
            tracing::warn!(
                %registry, url = %registry.url, reason = text, "not connected, trying again"
            );
        }
        if was_connected {
            self.feed.send(vec![Change::Connected(false)]).await?;
        }
        Ok(())
    }
}

/// The result of one query.
enum QueryResult {
    Names(Result<NameList, ConsulFailure>),
    Service { name: Arc<str>, result: Result<(u64, Vec<Change>), ConsulFailure> },
    Leader(Result<(), ConsulFailure>),
}

/// A session with one agent.
///
/// All queries are tasks that end with one result; the session alone decides what follows, and
/// sends the changes. Dropping it ends all queries.
struct Session<'a> {
    supervisor: &'a mut ConsulSupervisor,
    endpoint: &'a str,
    client: ConsulClient,
    schedule: Schedule,
    queries: JoinSet<QueryResult>,
    names_pace: Pace,
    /// The kind of the last round.
    round: ListKind,
    /// The lasting failures of single services.
    service_errors: BTreeMap<Arc<str>, String>,
    working_since: &'a mut Option<Instant>,
}

impl Session<'_> {
    async fn run(&mut self) -> Result<Infallible, AgentSessionEnd> {
        loop {
            self.schedule.advance(Instant::now());
            while let Some(name) = self.schedule.next_read() {
                let query = WaitingQuery { name, index: 0, delay: Duration::ZERO };
                self.spawn_service_query(query);
            }
            let wake = self.schedule.wake();
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
                Some(RegistryCommand::CheckLeases(leases)) = self.supervisor.commands.recv() => {
                    // Only instances with a critical check are deleted, so all have expired.
                    let reply = LeaseReply { revision: 0, gone: leases, alive: Vec::new() };
                    self.supervisor.feed.send(vec![Change::LeasesChecked(reply)]).await?;
                }
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
            }
        }
    }

    /// Handles the result of a query.
    async fn take(&mut self, id: Id, result: QueryResult) -> Result<(), AgentSessionEnd> {
        match result {
            QueryResult::Leader(result) => {
                result?;
                self.spawn_leader_check();
            }
            QueryResult::Names(result) => self.take_names(result?).await?,
            QueryResult::Service { name, result } if self.schedule.is_current(&name, id) => {
                match result {
                    Ok((index, instances)) => self.take_service(&name, index, instances).await?,
                    Err(failure) => self.take_failure(&name, failure),
                }
                self.continue_service(&name);
                if self.schedule.is_round_complete() {
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
    async fn begin_round(&mut self, names: NameList) -> Result<(), AgentSessionEnd> {
        let supervisor = &mut *self.supervisor;
        let kind = supervisor.kind_of_round(names.index);
        if kind == ListKind::Restored {
            tracing::warn!(
                registry = %supervisor.feed.state(),
                index = names.index,
                last_index = supervisor.position,
                "the store went back in time or was replaced: restored from a backup, or wiped"
            );
        }
        self.round = kind;
        let listed = names.names.iter().cloned().collect();
        supervisor.feed.send(vec![Change::ServiceNames { kind, names: listed }]).await?;
        supervisor.required_round = supervisor.required_round.max(Some(kind));
        supervisor.position = names.index;
        self.service_errors.clear();
        self.schedule.begin_round(&names.names, Instant::now());
        if self.schedule.is_round_complete() {
            self.end_round().await?;
        }
        Ok(())
    }

    /// Ends a round: from now on, the services wait or are polled.
    async fn end_round(&mut self) -> Result<(), AgentSessionEnd> {
        let supervisor = &mut *self.supervisor;
        let index = supervisor.position;
        supervisor.feed.send(vec![Change::Connected(true)]).await?;
        (supervisor.connected, supervisor.required_round) = (true, None);
        self.working_since.get_or_insert_with(Instant::now);
        supervisor.endpoints.set_failed(self.endpoint, None);
        let registry = supervisor.feed.state();
        registry.update(|report| {
            report.connected = true;
            report.synced = true;
            report.revision = index;
            report.last_event = Some(SystemTime::now());
            report.error = None;
            report.lists += 1;
        });
        self.report_service_errors();
        let registry = self.supervisor.feed.state();
        tracing::info!(%registry, url = %registry.url, "following");
        for name in self.schedule.end_round() {
            self.continue_service(&name);
        }
        self.spawn_names_query(IndexStep::Forward);
        Ok(())
    }

    // Answers

    /// Takes a list of names, which may show that the store went back in time.
    async fn take_names(&mut self, names: NameList) -> Result<(), AgentSessionEnd> {
        let step = index::step(self.supervisor.position, names.index);
        match step {
            IndexStep::Back => return self.begin_round(names).await,
            IndexStep::Same => {}
            IndexStep::Forward => {
                self.supervisor.position = names.index;
                self.schedule.note_change();
                self.note_event();
            }
        }
        if self.schedule.set_names(&names.names, Instant::now()) {
            self.service_errors.retain(|name, _| names.names.contains(&**name));
            self.report_service_errors();
            let names = names.names.into_iter().collect();
            let change = Change::ServiceNames { kind: ListKind::Routine, names };
            self.supervisor.feed.send(vec![change]).await?;
        }
        self.spawn_names_query(step);
        Ok(())
    }

    /// Sends the instances of a service.
    async fn take_service(
        &mut self,
        name: &Arc<str>,
        index: u64,
        instances: Vec<Change>,
    ) -> Result<(), AgentSessionEnd> {
        let is_unread = self.schedule.is_unread(name);
        let step = self.schedule.answered(name, index, Instant::now());
        let kind = match step {
            IndexStep::Back => ListKind::Restored,
            _ if is_unread => self.round,
            _ => ListKind::Routine,
        };
        let scope = ListScope::Service((**name).into());
        let changes = [Change::ListBegin { kind, scope }]
            .into_iter()
            .chain(instances)
            .chain([Change::ListEnd { revision: 0 }])
            .collect();
        self.supervisor.feed.send(changes).await?;
        self.note_event();
        if self.service_errors.remove(name).is_some() {
            self.report_service_errors();
        }
        Ok(())
    }

    /// Records the failure of a query for one service, which keeps its instances.
    fn take_failure(&mut self, name: &Arc<str>, failure: ConsulFailure) {
        let now = Instant::now();
        let failed_before = self.schedule.failed(name, now);
        let registry = self.supervisor.feed.state();
        if failure.kind == ConsulFailureKind::TooManyConnections {
            let max_waiting = self.schedule.halve_waiting(now);
            tracing::warn!(%registry, reason = failure.text, max_waiting, "fewer waiting queries");
        }
        // The end of the agent ends all queries, and soon the session.
        let is_of_the_agent =
            matches!(failure.kind, ConsulFailureKind::Connection | ConsulFailureKind::NoAnswer);
        if failed_before || !is_of_the_agent {
            let text = failure.at(self.endpoint).text;
            if self.service_errors.get(name) != Some(&text) {
                tracing::warn!(
                    %registry, reason = text, "a service cannot be read, trying again"
                );
                self.service_errors.insert(Arc::clone(name), text);
                self.report_service_errors();
            }
        }
    }

    /// Reports the failure of the first service that has one.
    fn report_service_errors(&self) {
        let first = self.service_errors.values().next();
        let error = first.map(|text| match self.service_errors.len() {
            1 => text.clone(),
            count => format!("{text} (and {} more services)", count - 1),
        });
        self.supervisor.feed.state().update(|report| report.error = error);
    }

    fn note_event(&self) {
        let index = self.supervisor.position;
        self.supervisor.feed.state().update(|report| {
            report.revision = index;
            report.last_event = Some(SystemTime::now());
        });
    }

    // Queries

    /// Starts the waiting query of a service that may have one.
    fn continue_service(&mut self, name: &str) {
        if let Some(query) = self.schedule.waiting_query(name, Instant::now()) {
            self.spawn_service_query(query);
        }
    }

    fn spawn_service_query(&mut self, query: WaitingQuery) {
        let WaitingQuery { name, index, delay } = query;
        let (client, wait) = (self.client.clone(), self.supervisor.settings.tuning.wait);
        let queried = Arc::clone(&name);
        let handle = self.queries.spawn(async move {
            sleep(delay).await;
            let result = read_service(&client, &queried, index, wait).await;
            QueryResult::Service { name: queried, result }
        });
        self.schedule.set_query(&name, handle);
    }

    /// Starts the query for the names that follow the last list.
    fn spawn_names_query(&mut self, step: IndexStep) {
        let (client, wait) = (self.client.clone(), self.supervisor.settings.tuning.wait);
        let index = self.supervisor.position;
        let delay = self.names_pace.next(step, Instant::now());
        self.queries.spawn(async move {
            sleep(delay).await;
            QueryResult::Names(client.names(index, wait).await)
        });
    }

    fn spawn_leader_check(&mut self) {
        let (client, tuning) = (self.client.clone(), &self.supervisor.settings.tuning);
        let (interval, limit) = (tuning.heartbeat_interval, tuning.heartbeat_timeout);
        self.queries.spawn(async move {
            sleep(interval).await;
            QueryResult::Leader(client.check_leader(limit).await)
        });
    }
}

/// Reads and parses the instances of a service.
async fn read_service(
    client: &ConsulClient,
    name: &str,
    index: u64,
    wait: Duration,
) -> Result<(u64, Vec<Change>), ConsulFailure> {
    let answer = client.instances(name, index, wait).await?;
    let instances = parse::parse(name, &answer)
        .map_err(|failure| client.hide(failure.of(&format!("read the service {name:?}"))))?;
    if answer.is_filtered && instances.is_empty() {
        let text = format!(
            "cannot read the service {name:?}: the token may not read its nodes; it needs \
             node_prefix \"\" with read"
        );
        return Err(ConsulFailure::new(ConsulFailureKind::Permission, text));
    }
    Ok((answer.index, instances))
}
