//! etcd, followed by a supervisor.
//!
//! Every configured head is listed at one revision and watched from the next one. The client library re-opens nothing by
//! itself, so all of that is done here: [`follow`](Etcd::follow) picks an endpoint, connects, lists or resumes, watches,
//! and begins again after every failure; nothing of what was said before is taken back by an outage.
//!
//! - `supervisor`: the state machine, and the only place that knows what was already said (a revision for each head)
//! - `connection`: one client of one endpoint, and which endpoint is next
//! - `list`, `watch`: the two ways to read; `stride`: how far a page of a list reaches
//! - `change`: etcd's keys and events, put into the words of [`crate::service`]
//! - `register`: the one way to write

mod backoff;
mod change;
mod connection;
mod failure;
mod list;
mod register;
mod stride;
mod supervisor;
mod watch;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Command, Credential, Feed, Registry};
use crate::service::ListKind;

pub use register::register;

/// The heads of GoFrame's keys: `service` since v2.3.3, `services` before.
pub const HEADS: [&str; 2] = ["service", "services"];

/// An etcd cluster that can be followed.
#[derive(Clone, Debug)]
pub struct Etcd {
    settings: Settings,
}

impl Etcd {
    /// The cluster that these settings name. Nothing is connected before [`Registry::follow`].
    pub fn new(settings: Settings) -> Self {
        Self { settings: settings.bounded() }
    }
}

impl Registry for Etcd {
    async fn follow(self, first: ListKind, feed: Feed, commands: mpsc::Receiver<Command>, stop: CancellationToken) {
        let supervisor = supervisor::Supervisor::new(self.settings, first, feed, commands);
        // Whatever is under way when `stop` comes can be dropped: no part of it writes to the store.
        tokio::select! {
            () = stop.cancelled() => {}
            _gone = supervisor.run() => {}
        }
    }
}

/// Where the cluster is, and how it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The members, each as `host:port`; an IPv6 address stands in brackets. One is used at a time.
    pub endpoints: Vec<String>,
    /// The user to log in as; needs [`Settings::password`].
    pub username: Option<String>,
    /// The user's password.
    pub password: Option<Credential>,
    /// TLS, where the members ask for it.
    pub tls: Option<Tls>,
    /// The first segments of the keys to follow, without slashes; [`HEADS`] where none is named.
    pub heads: Vec<String>,
    /// How long things may take.
    pub timings: Timings,
}

impl Settings {
    /// Settings for these members, with everything else at its default.
    pub fn new(endpoints: Vec<String>) -> Self {
        let heads = HEADS.map(str::to_owned).to_vec();
        Self { endpoints, username: None, password: None, tls: None, heads, timings: Timings::default() }
    }

    fn bounded(self) -> Self {
        Self { timings: self.timings.bounded(), ..self }
    }
}

impl fmt::Display for Settings {
    /// The registry's URL: `etcd://a:2379,b:2379`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "etcd://{}", self.endpoints.join(","))
    }
}

/// TLS to the members. The files are read again at every connect, so that renewed ones are used without a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// PEM file of the authorities to believe; the system's where none is named.
    pub ca_file: Option<PathBuf>,
    /// PEM file of the client's certificate; needs [`Tls::key_file`].
    pub cert_file: Option<PathBuf>,
    /// PEM file of the client's key.
    pub key_file: Option<PathBuf>,
    /// The name that the member's certificate must carry; the endpoint's host where none is named.
    pub server_name: Option<String>,
}

/// How long things may take, and how often they are done. The defaults suit real clusters; tests shorten them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timings {
    /// Keys of the first page of a list. Later pages hold some 4 MiB and at most four times as many keys, or a sixteenth of all
    /// keys, and then at most 16 MiB; a page of more than 64 MiB is asked for again in parts.
    pub page_size: u32,
    /// Keys of a page sent at a time, at least 1: understood keys take more room than their page does.
    pub batch_size: usize,
    /// Longest wait for a TCP connection, and for the login after it.
    pub dial_timeout: Duration,
    /// Longest wait for the answer to one request.
    pub request_timeout: Duration,
    /// How often an idle connection is pinged. etcd closes connections that are pinged more often than every 5 s.
    pub keepalive_interval: Duration,
    /// Longest wait for the answer to a ping.
    pub keepalive_timeout: Duration,
    /// Silence of a watch after which the member is asked for its progress.
    pub progress_interval: Duration,
    /// Longest wait for a sign of life after that.
    pub progress_deadline: Duration,
    /// Shortest wait after a failed attempt; the one after a good connection is shorter still.
    pub backoff_min: Duration,
    /// Longest wait between attempts; between the two it doubles.
    pub backoff_max: Duration,
    /// How long a connection must have been good for the waits to begin at the shortest again.
    pub healthy_after: Duration,
    /// How often a list is made although the watch is fine: some versions of etcd lose events (etcd#17610, etcd#19179).
    /// Jittered by a fifth.
    pub relist_every: Duration,
    /// A reconnect without a list is verified by one within this time, at random: a store that was restored from a backup
    /// and has grown past our revision looks like one that only went on.
    pub verify_within: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            page_size: 5_000,
            batch_size: 1_000,
            dial_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(10),
            keepalive_interval: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(4),
            progress_interval: Duration::from_secs(10),
            progress_deadline: Duration::from_secs(20),
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(5),
            healthy_after: Duration::from_secs(10),
            relist_every: Duration::from_secs(300),
            verify_within: Duration::from_secs(30),
        }
    }
}

/// No wait is longer: a time that far away cannot be told from never, and one still farther cannot be reckoned with.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

impl Timings {
    /// The same, with nothing longer than a year.
    fn bounded(mut self) -> Self {
        let Self {
            page_size: _,
            batch_size: _,
            dial_timeout,
            request_timeout,
            keepalive_interval,
            keepalive_timeout,
            progress_interval,
            progress_deadline,
            backoff_min,
            backoff_max,
            healthy_after,
            relist_every,
            verify_within,
        } = &mut self;
        for duration in [
            dial_timeout,
            request_timeout,
            keepalive_interval,
            keepalive_timeout,
            progress_interval,
            progress_deadline,
            backoff_min,
            backoff_max,
            healthy_after,
            relist_every,
            verify_within,
        ] {
            *duration = (*duration).min(LONGEST);
        }
        self
    }
}

/// A random part of a duration: from nothing to all of it.
fn part_of(duration: Duration) -> Duration {
    duration.mul_f64(fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endless_waits_are_cut_so_that_they_can_be_reckoned_with() {
        let timings = Timings { relist_every: Duration::MAX, backoff_max: Duration::MAX, ..Timings::default() }.bounded();
        assert_eq!((timings.relist_every, timings.backoff_max), (LONGEST, LONGEST));
        assert_eq!(Timings::default().bounded(), Timings::default());
    }
}
