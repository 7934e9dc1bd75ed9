//! Registries that are followed by polling: a list of names, and a list for each name.
//!
//! The store answers a query at once, and nothing tells a follower about a change. The supervisor
//! reads everything once, then polls the list of names and the list of each name at a limited
//! rate. A query carries the revision of the last list, so that an unchanged list costs little.
//!
//! - `supervisor`: the sessions with one server after another, and the rounds over all names
//! - `schedule`: which name is polled when
//! - `doubt`: whether the store may have lost its data

mod doubt;
mod schedule;
mod supervisor;

use std::collections::BTreeSet;
use std::time::Duration;

use supervisor::PollingSupervisor;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::attempts::{Attempts, ConnectionTuning};
use super::failure::Failure;
use super::session::{self, StoreLink};
use super::{Feed, RegistryCommand};
use crate::service::{Change, ListKind};

/// Default limit on polling queries per second.
const DEFAULT_MAX_REQUESTS: usize = 200;

/// A store that can be polled, and the way to its servers.
pub(super) trait PolledStore: Send + 'static {
    /// A client of one server.
    type Client: PollingClient;

    /// Creates a client of the server at this endpoint.
    ///
    /// # Errors
    /// Returns an error if a setting cannot be used, or if the server refuses a login.
    fn connect(&self, endpoint: &str)
    -> impl Future<Output = Result<Self::Client, Failure>> + Send;

    /// Returns the store's servers and the attempts to reach them.
    fn attempts(&self) -> Attempts;

    /// Returns the limits, intervals and timeouts.
    fn tuning(&self) -> (&PollingTuning, &ConnectionTuning);
}

/// Follows a polled store until `stop` is cancelled.
pub(super) async fn follow(
    store: impl PolledStore,
    first: ListKind,
    feed: Feed,
    commands: mpsc::Receiver<RegistryCommand>,
    stop: CancellationToken,
) {
    let link = StoreLink::new(store.attempts(), feed, commands);
    session::follow(PollingSupervisor::new(store, first, link), stop).await;
}

/// The queries that a polled store answers.
///
/// `known` is the revision of the last list; the answer to such a query may be that the list has
/// not changed.
pub(super) trait PollingClient: Clone + Send + Sync + 'static {
    /// Reads the names, within the time in which a server must answer; `None` if unchanged.
    ///
    /// # Errors
    /// Returns an error if there is no valid answer, which ends the session.
    fn names(
        &self,
        known: Option<&Revision>,
    ) -> impl Future<Output = Result<Option<PolledNames>, Failure>> + Send;

    /// Reads the list of a name.
    ///
    /// # Errors
    /// Returns an error if there is no valid answer. A refused login ends the session; other
    /// failures concern this list only.
    fn list(
        &self,
        name: &str,
        known: Option<&Revision>,
    ) -> impl Future<Output = Result<PolledAnswer, Failure>> + Send;
}

/// The revision of a list: an opaque text.
///
/// Equal revisions mean equal lists. A revision may return: different ones have no order.
pub(super) type Revision = Box<str>;

/// The names of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PolledNames {
    pub(super) revision: Option<Revision>,
    /// Number of queries that they take.
    pub(super) pages: usize,
    pub(super) names: BTreeSet<Box<str>>,
}

/// The answer to a query for the list of a name.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum PolledAnswer {
    /// The list has the revision of the query.
    Unchanged,
    /// The store knows no instance, perhaps because it has lost its data.
    ///
    /// The removals of the instances that it listed before are held.
    Missing,
    /// The list; an empty one is certain.
    List(PolledList),
}

/// The list of a name.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct PolledList {
    pub(super) revision: Option<Revision>,
    /// Number of instances that the store lists, whatever their state.
    pub(super) instances: usize,
    /// The changes between the beginning and the end of a list.
    pub(super) changes: Vec<Change>,
}

/// Returns how long this many queries take if they have a share of the limit.
fn time_of(queries: usize, max_requests: usize, share: f64) -> Duration {
    let number = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    Duration::from_secs_f64(number(queries) / (number(max_requests.max(1)) * share))
}

/// Intervals and limits of polling; the defaults suit a store nearby.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PollingTuning {
    /// Shortest time between two queries for one list, or for the names.
    pub interval: Duration,
    /// Limit on queries per second, at least 1; more lists are polled less often.
    pub max_requests: usize,
    /// Limit on concurrent queries for lists, at least 1.
    pub max_reads: usize,
    /// Time after a change for which a list is polled at the shortest interval.
    pub attention: Duration,
}

impl PollingTuning {
    /// Returns the default timeouts of stores that are polled, which answer at once.
    pub(super) fn connection() -> ConnectionTuning {
        ConnectionTuning { request_timeout: Duration::from_secs(5), ..ConnectionTuning::default() }
    }
}

impl Default for PollingTuning {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(1),
            max_requests: DEFAULT_MAX_REQUESTS,
            max_reads: 8,
            attention: Duration::from_secs(30),
        }
    }
}
