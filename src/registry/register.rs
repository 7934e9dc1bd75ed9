//! The registration that `svcdns register` keeps in a registry.

use std::convert::Infallible;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::attempts::{Attempts, ConnectionTuning};
use super::failure::{Failure, FailureKind};
use crate::service::{Endpoint, Metadata, ServiceId};

/// Maximum attempts to remove a registration; together they take one request timeout.
const REMOVAL_ATTEMPTS: u32 = 3;

/// Longest time after its start in which a server does not know its users.
///
/// It counts from the first such answer: `register` may have waited for the server before.
const MAX_START_TIME: Duration = Duration::from_secs(30);

/// A service to register.
#[derive(Clone, Debug)]
pub struct Registrant {
    /// The first segment of the key, such as `service`.
    pub head: String,
    /// The identity of the service.
    pub id: ServiceId,
    /// The endpoints; at least one.
    pub endpoints: Vec<Endpoint>,
    /// The metadata to publish.
    pub metadata: Metadata,
    /// Lease TTL, after which the registration of a killed registrant expires.
    ///
    /// Registries with a fixed time to live ignore it.
    pub ttl: Duration,
}

/// A change in the state of a registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegisterEvent {
    /// The registration was written, for the first time or again.
    Registered,
    /// The registration is still there, and can be refreshed again after a failure.
    Recovered,
    /// An attempt failed and will be retried; the text holds no secret.
    Failed(String),
    /// The registration was removed at the end.
    Removed,
    /// The registration stays at the end, because another program also writes it.
    Left,
}

/// Reason why a registration was not written, or not removed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// The registry's layout cannot hold the registration; the text gives the reason.
    #[error("{0}")]
    NotWritable(String),
    /// The registry was not configured, and belongs to another user.
    #[error("{0} belongs to another user; to register there anyway, name it with --registry")]
    Foreign(String),
    /// The first attempt was refused, and so would be every retry.
    #[error("cannot register {key}: {reason}")]
    Refused {
        /// The key or file.
        key: String,
        /// The error of the registry.
        reason: String,
    },
    /// The registration could not be removed at the end and will expire.
    #[error("cannot remove {key} ({reason}); it expires within {seconds} s")]
    NotRemoved {
        /// The key or file.
        key: String,
        /// The last error.
        reason: String,
        /// Maximum time until the registration expires, in seconds.
        seconds: u64,
    },
}

/// A registration in one kind of store with servers.
pub(super) trait StoreRegistration {
    /// Returns the name of the registration in the store, for messages.
    fn key(&self) -> &str;

    /// Returns the time after which a registration that is not refreshed expires, in seconds.
    fn expiry_seconds(&self) -> u64;

    /// Returns the only server that can remove the registration; `None` for any of them.
    fn holder(&self) -> Option<&str> {
        None
    }

    /// Writes the registration through one server, and refreshes it until something fails.
    async fn keep(
        &mut self,
        endpoint: &str,
        progress: &mut RegistrationProgress<impl Fn(RegisterEvent)>,
    ) -> Result<Infallible, Failure>;

    /// Removes the registration through one server; returns whether there was one to remove.
    async fn remove(&mut self, endpoint: &str) -> Result<bool, Failure>;
}

/// The state of a registration that is kept.
pub(super) struct RegistrationProgress<F> {
    attempts: Attempts,
    events: F,
    /// Whether the registration was ever written.
    written: bool,
    /// Whether the last event was a failure.
    failing: bool,
}

impl<F: Fn(RegisterEvent)> RegistrationProgress<F> {
    /// Records that the store has the registration: from now on, failures are retried.
    pub(super) fn set_written(&mut self) {
        self.written = true;
    }

    /// Reports that the registration was written, for the first time or again.
    pub(super) fn registered(&mut self) {
        self.set_written();
        self.report(RegisterEvent::Registered);
    }

    /// Reports that the registration was refreshed, if that has failed before.
    pub(super) fn refreshed(&mut self) {
        if self.failing {
            self.report(RegisterEvent::Recovered);
        }
    }

    /// Records that the current attempt works: the store has the registration.
    pub(super) fn set_working(&mut self) {
        self.set_written();
        self.attempts.set_working();
    }

    /// Reports a failure after which the current attempt goes on.
    pub(super) fn failed(&mut self, failure: Failure) {
        let text = self.attempts.locate(failure).text;
        self.report(RegisterEvent::Failed(text));
    }

    fn report(&mut self, event: RegisterEvent) {
        self.failing = matches!(event, RegisterEvent::Failed(_));
        (self.events)(event);
    }
}

/// Keeps a registration in its store until `stop` is cancelled, then removes it.
///
/// # Errors
/// Returns an error if the registration is refused before it was ever written, or if it could not
/// be removed at the end.
pub(super) async fn keep_registered(
    mut registration: impl StoreRegistration,
    attempts: Attempts,
    stop: CancellationToken,
    events: impl Fn(RegisterEvent),
) -> Result<(), RegisterError> {
    let mut progress = RegistrationProgress { attempts, events, written: false, failing: false };
    let mut unknown_since = None;
    loop {
        let ended = tokio::select! {
            () = stop.cancelled() => None,
            failure = attempt(&mut registration, &mut progress) => Some(failure),
        };
        let Some(failure) = ended else { return remove(&mut registration, progress).await };
        let is_unknown = failure.kind == FailureKind::UnknownUser;
        unknown_since = is_unknown.then(|| unknown_since.unwrap_or_else(Instant::now));
        let may_be_starting =
            unknown_since.is_some_and(|since: Instant| since.elapsed() < MAX_START_TIME);
        if !progress.written && failure.kind.is_refusal() && !may_be_starting {
            let key = registration.key().to_owned();
            return Err(RegisterError::Refused { key, reason: failure.text });
        }
        progress.report(RegisterEvent::Failed(failure.text));
        tokio::select! {
            () = stop.cancelled() => {}
            () = sleep(progress.attempts.next_wait()) => {}
        }
    }
}

/// Keeps a registration through one server until that fails; returns the failure.
async fn attempt(
    registration: &mut impl StoreRegistration,
    progress: &mut RegistrationProgress<impl Fn(RegisterEvent)>,
) -> Failure {
    match progress.attempts.begin() {
        Ok(endpoint) => {
            let Err(failure) = registration.keep(&endpoint, progress).await;
            progress.attempts.end(failure).await
        }
        Err(failure) => failure,
    }
}

/// Removes a registration at the end.
async fn remove(
    registration: &mut impl StoreRegistration,
    mut progress: RegistrationProgress<impl Fn(RegisterEvent)>,
) -> Result<(), RegisterError> {
    let attempts = &mut progress.attempts;
    let ConnectionTuning { request_timeout, backoff_min, .. } = *attempts.tuning();
    let limit = request_timeout / REMOVAL_ATTEMPTS;
    let mut reason = String::new();
    for _ in 0..REMOVAL_ATTEMPTS {
        let endpoint = match registration.holder() {
            Some(holder) => Ok(attempts.begin_at(holder.to_owned())),
            None => attempts.begin(),
        };
        let Ok(endpoint) = endpoint else { break };
        let removed = timeout(limit, registration.remove(&endpoint)).await;
        match removed.unwrap_or_else(|_| Err(Failure::timeout(limit))) {
            Ok(true) => {
                progress.report(RegisterEvent::Removed);
                return Ok(());
            }
            Ok(false) => return Ok(()),
            Err(failure) => reason = attempts.fail(failure).text,
        }
        sleep(backoff_min).await;
    }
    let (key, seconds) = (registration.key().to_owned(), registration.expiry_seconds());
    Err(RegisterError::NotRemoved { key, reason, seconds })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::identify::ServerKind;

    /// A store that refuses every registration.
    struct RefusingStore<F> {
        begun: Instant,
        /// Returns why it refuses at this time after the beginning.
        reason: F,
    }

    impl<F: Fn(Duration) -> FailureKind> StoreRegistration for RefusingStore<F> {
        fn key(&self) -> &'static str {
            "web"
        }

        fn expiry_seconds(&self) -> u64 {
            1
        }

        async fn keep(
            &mut self,
            _: &str,
            _: &mut RegistrationProgress<impl Fn(RegisterEvent)>,
        ) -> Result<Infallible, Failure> {
            Err(Failure::new((self.reason)(self.begun.elapsed()), "refused"))
        }

        async fn remove(&mut self, _: &str) -> Result<bool, Failure> {
            Ok(false)
        }
    }

    /// Returns when `register` gives up, in seconds.
    async fn gives_up_after(reason: impl Fn(Duration) -> FailureKind) -> u64 {
        let (endpoints, tuning) = (["127.0.0.1:1".to_owned()], ConnectionTuning::default());
        let attempts = Attempts::new(ServerKind::Nacos, &endpoints, None, &tuning);
        let begun = Instant::now();
        let store = RefusingStore { begun, reason };
        let ended = keep_registered(store, attempts, CancellationToken::new(), |_| {}).await;
        assert!(matches!(ended, Err(RegisterError::Refused { .. })), "{ended:?}");
        begun.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn an_unknown_user_is_refused_only_after_the_start_of_the_server() {
        assert_eq!(gives_up_after(|_| FailureKind::Login).await, 0);
        let at_once = gives_up_after(|_| FailureKind::UnknownUser).await;
        assert!((30..40).contains(&at_once), "{at_once} s");
        let later = gives_up_after(|time| {
            let is_started = time >= Duration::from_secs(100);
            if is_started { FailureKind::UnknownUser } else { FailureKind::Connection }
        });
        let later = later.await;
        assert!((130..145).contains(&later), "{later} s: the server started after 100 s");
    }
}
