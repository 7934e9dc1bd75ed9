//! The attempts to use a store with several servers: at which server, and when.

use std::time::Duration;

use tokio::time::Instant;

use super::Tls;
use super::backoff::Backoff;
use super::failure::{Failure, FailureKind};
use super::identify::ServerKind;
use super::members::Members;

/// Timeouts of requests and waits between attempts, at any store with servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionTuning {
    /// Maximum wait for a connection; a TLS handshake or a login is included.
    pub dial_timeout: Duration,
    /// Maximum wait for the response to one request.
    pub request_timeout: Duration,
    /// Upper bound of the wait after a first failure.
    pub backoff_min: Duration,
    /// Maximum wait between attempts; the wait doubles up to it.
    pub backoff_max: Duration,
    /// Uptime of a session after which the next wait is the minimum again.
    pub healthy_after: Duration,
}

impl Default for ConnectionTuning {
    fn default() -> Self {
        Self {
            dial_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(10),
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(5),
            healthy_after: Duration::from_secs(10),
        }
    }
}

/// Upper bound of every duration in a registry's settings.
///
/// With it, adding a duration to a time cannot overflow.
pub(super) const MAX_DURATION: Duration = Duration::from_secs(365 * 24 * 3600);

impl ConnectionTuning {
    /// Caps every duration at [`MAX_DURATION`].
    pub(super) fn bounded(self) -> Self {
        let Self { dial_timeout, request_timeout, backoff_min, backoff_max, healthy_after } = self;
        Self {
            dial_timeout: dial_timeout.min(MAX_DURATION),
            request_timeout: request_timeout.min(MAX_DURATION),
            backoff_min: backoff_min.min(MAX_DURATION),
            backoff_max: backoff_max.min(MAX_DURATION),
            healthy_after: healthy_after.min(MAX_DURATION),
        }
    }

    /// Returns the waits between attempts.
    pub(super) fn backoff(&self) -> Backoff {
        Backoff::new(self.backoff_min, self.backoff_max)
    }
}

/// The attempts to use a store, each at one of its servers until that fails.
#[derive(Debug)]
pub(super) struct Attempts {
    server: ServerKind,
    tls: Option<Tls>,
    tuning: ConnectionTuning,
    members: Members,
    backoff: Backoff,
    /// The server of the current attempt; empty before the first.
    endpoint: String,
    /// When the current attempt began to work.
    working_since: Option<Instant>,
}

impl Attempts {
    /// Prepares attempts at these servers.
    pub(super) fn new(
        server: ServerKind,
        endpoints: &[String],
        tls: Option<&Tls>,
        tuning: &ConnectionTuning,
    ) -> Self {
        Self {
            server,
            tls: tls.cloned(),
            tuning: tuning.clone(),
            members: Members::new(endpoints),
            backoff: tuning.backoff(),
            endpoint: String::new(),
            working_since: None,
        }
    }

    pub(super) fn tuning(&self) -> &ConnectionTuning {
        &self.tuning
    }

    /// Begins an attempt at the next server and returns it.
    ///
    /// # Errors
    /// If no server is configured.
    pub(super) fn begin(&mut self) -> Result<String, Failure> {
        let no_endpoint = || Failure::new(FailureKind::Settings, "no endpoint is configured");
        self.members.choose().ok_or_else(no_endpoint).map(|endpoint| self.begin_at(endpoint))
    }

    /// Begins an attempt at this server and returns it.
    pub(super) fn begin_at(&mut self, endpoint: String) -> String {
        self.endpoint.clone_from(&endpoint);
        self.working_since = None;
        endpoint
    }

    /// Records that the current attempt works.
    pub(super) fn set_working(&mut self) {
        self.working_since.get_or_insert_with(Instant::now);
        self.members.set_failed(&self.endpoint, None);
    }

    /// Ends the current attempt; returns its failure with the server where it happened.
    ///
    /// If the attempt has never worked, the failure may be that the server is of another kind.
    pub(super) async fn end(&mut self, failure: Failure) -> Failure {
        let Some(since) = self.working_since else {
            let tls = self.tls.as_ref();
            // Boxed: it is rare, and its future is large.
            let identified = Box::pin(failure.identified(self.server, &self.endpoint, tls)).await;
            return self.fail(identified);
        };
        if since.elapsed() >= self.tuning.healthy_after {
            self.backoff.reset();
        }
        self.fail(failure)
    }

    /// Ends the current attempt, without asking the server what it is.
    pub(super) fn fail(&mut self, failure: Failure) -> Failure {
        self.members.set_failed(&self.endpoint, Some(Instant::now()));
        self.locate(failure)
    }

    /// Returns the failure with the server of the current attempt.
    pub(super) fn locate(&self, failure: Failure) -> Failure {
        failure.at(self.server, &self.endpoint)
    }

    /// Returns how long to wait before the next attempt.
    pub(super) fn next_wait(&mut self) -> Duration {
        self.backoff.next()
    }
}
