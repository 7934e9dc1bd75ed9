//! Health: the sentences of `/livez`, `/readyz`, `svcdns status` and the service manager.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::AdminContext;
use crate::service::{MAX_REGISTRIES, RegistryId};

/// Silence after which a worker counts as hanging.
///
/// Even an idle worker moves several times per second.
const MAX_SILENCE: Duration = Duration::from_secs(10);

/// Interval of the looks at the workers.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Limit on the silence that one look adds.
///
/// While the whole process is stopped, nothing looks, and no worker is to blame.
const MAX_LOOK_GAP: Duration = Duration::from_secs(2);

/// What the DNS server reports about its sockets and workers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SocketReport {
    /// Number of addresses that are served, over all transports.
    pub open: usize,
    /// Addresses that should be served but are not, each with the reason.
    pub missing: Vec<(SocketAddr, String)>,
    /// The UDP workers: name, such as `127.0.0.1:53 #2`, and a number that changes as it moves.
    pub workers: Vec<(String, u64)>,
}

/// Watches the sockets and workers of the DNS server.
#[derive(Default)]
pub struct SocketWatch {
    source: OnceLock<Box<dyn Fn() -> SocketReport + Send + Sync>>,
    silences: Mutex<Silences>,
}

/// For how long each worker has not moved.
#[derive(Debug, Default)]
struct Silences {
    looked_at: Option<Instant>,
    workers: HashMap<String, (u64, Duration)>,
}

/// The health of a server, in sentences for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct HealthReport {
    /// Why the process does not serve; none while it does.
    pub hanging: Vec<String>,
    /// Why the server is not ready; none once it is.
    pub unready: Vec<String>,
    /// Problems of the registries that were read: their last known data is served.
    pub problems: Vec<String>,
}

impl SocketWatch {
    /// Sets the function that reports on the sockets, once they are served.
    pub fn watch(&self, source: impl Fn() -> SocketReport + Send + Sync + 'static) {
        // Only the first one counts.
        let _ = self.source.set(Box::new(source));
    }

    /// Returns the current report; `None` while no socket is served.
    pub(super) fn report(&self) -> Option<SocketReport> {
        Some(self.source.get()?())
    }

    /// Returns a sentence for each hanging worker.
    fn hanging(&self, workers: Vec<(String, u64)>, now: Instant) -> Vec<String> {
        let mut silences = self.silences.lock().unwrap_or_else(PoisonError::into_inner);
        let hanging = silences.look(workers, now);
        let sentence = |(worker, silence): (&str, Duration)| {
            format!("UDP worker {worker} has not moved for {} s", silence.as_secs())
        };
        hanging.into_iter().map(sentence).collect()
    }
}

impl fmt::Debug for SocketWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SocketWatch").field("silences", &self.silences).finish_non_exhaustive()
    }
}

impl Silences {
    /// Notes the numbers of the workers at this time; returns those that hang, by name.
    fn look(&mut self, workers: Vec<(String, u64)>, now: Instant) -> Vec<(&str, Duration)> {
        let gap = self.looked_at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.looked_at = Some(now);
        let before = std::mem::take(&mut self.workers);
        let silence = |worker: &str, number| match before.get(worker) {
            Some((last, silence)) if *last == number => *silence + gap.min(MAX_LOOK_GAP),
            _ => Duration::ZERO,
        };
        self.workers = workers
            .into_iter()
            .map(|(worker, number)| {
                let silence = silence(&worker, number);
                (worker, (number, silence))
            })
            .collect();
        let workers = self.workers.iter().map(|(worker, (_, silence))| (&**worker, *silence));
        let mut hanging: Vec<_> = workers.filter(|(_, silence)| *silence >= MAX_SILENCE).collect();
        hanging.sort_unstable();
        hanging
    }
}

impl HealthReport {
    /// Returns whether the process serves: no worker hangs.
    pub fn is_live(&self) -> bool {
        self.hanging.is_empty()
    }

    /// Returns whether all data and all sockets are there.
    pub fn is_ready(&self) -> bool {
        self.unready.is_empty()
    }

    /// Returns the body of `/livez`: a line for each sentence.
    pub(super) fn live_page(&self) -> String {
        if self.is_live() { "serving\n".to_owned() } else { lines(&self.hanging) }
    }

    /// Returns the body of `/readyz`: a line for each reason, then one for each problem.
    pub(super) fn ready_page(&self) -> String {
        let first = if self.is_ready() { "ready\n".to_owned() } else { lines(&self.unready) };
        first + &lines(&self.problems)
    }
}

/// Displays everything in one line, such as `not ready: etcd: not read yet`.
impl fmt::Display for HealthReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { hanging, unready, problems } = self;
        if !hanging.is_empty() {
            write!(f, "not serving: {}; ", hanging.join("; "))?;
        }
        if unready.is_empty() {
            write!(f, "ready")?;
        } else {
            write!(f, "not ready: {}", unready.join("; "))?;
        }
        problems.iter().try_for_each(|problem| write!(f, "; {problem}"))
    }
}

fn lines(sentences: &[String]) -> String {
    sentences.iter().map(|sentence| format!("{sentence}\n")).collect()
}

impl AdminContext {
    /// Returns the current health.
    ///
    /// The server is ready once every registry was read or is held from a snapshot, and all
    /// listeners are open. A registry that is lost later is a problem, but does not change that.
    pub fn health(&self) -> HealthReport {
        let mut health = HealthReport::default();
        let known = self.answerer.registry_status().known;
        for (id, registry) in RegistryId::first(MAX_REGISTRIES).zip(&*self.registries.load()) {
            let error = registry.report().error;
            if !known.contains(id) {
                let reason = error.as_deref().unwrap_or("not read yet");
                health.unready.push(format!("{registry}: {reason}"));
            } else if let Some(error) = error {
                health.problems.push(format!("{registry}: {error}"));
            }
        }
        match self.sockets.report() {
            Some(SocketReport { missing, workers, .. }) => {
                let missing = missing
                    .iter()
                    .map(|(address, reason)| format!("not listening on {address}: {reason}"));
                health.unready.extend(missing);
                health.hanging = self.sockets.hanging(workers, Instant::now());
            }
            None => health.unready.push("no socket is served yet".to_owned()),
        }
        health
    }

    /// Looks at the workers until `stop`, so that [`Self::health`] knows for how long they hang.
    pub async fn watch_health(self: Arc<Self>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_INTERVAL) => drop(self.health()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn workers(numbers: &[u64]) -> Vec<(String, u64)> {
        let worker = |(index, number): (usize, &u64)| (format!("127.0.0.1:53 #{index}"), *number);
        numbers.iter().enumerate().map(worker).collect()
    }

    #[test]
    fn only_a_worker_that_does_not_move_hangs() {
        let (watch, start) = (SocketWatch::default(), Instant::now());
        for second in 0..10 {
            let seen = workers(&[u64::from(second), 7]);
            assert!(watch.hanging(seen, start + second * SECOND).is_empty(), "{second}");
        }
        let hanging = watch.hanging(workers(&[10, 7]), start + 11 * SECOND);
        assert_eq!(hanging, ["UDP worker 127.0.0.1:53 #1 has not moved for 11 s"]);
        assert!(watch.hanging(workers(&[11, 8]), start + 12 * SECOND).is_empty());
    }

    #[test]
    fn a_stopped_process_blames_no_worker() {
        let (watch, start) = (SocketWatch::default(), Instant::now());
        assert!(watch.hanging(workers(&[7]), start).is_empty());
        assert!(watch.hanging(workers(&[7]), start + 3600 * SECOND).is_empty());
        assert!(watch.hanging(Vec::new(), start + 3700 * SECOND).is_empty(), "it ended");
    }

    #[test]
    fn the_sentences_are_the_same_in_a_line_and_on_the_pages() {
        let mut health = HealthReport::default();
        assert_eq!(health.to_string(), "ready");
        assert_eq!((&*health.live_page(), &*health.ready_page()), ("serving\n", "ready\n"));
        health.problems.push("b: connection refused".to_owned());
        assert_eq!(health.to_string(), "ready; b: connection refused");
        assert_eq!(health.ready_page(), "ready\nb: connection refused\n");
        health.unready.extend(["a: not read yet", "c: denied"].map(str::to_owned));
        health.hanging.push("UDP worker x has not moved for 10 s".to_owned());
        assert_eq!(
            health.to_string(),
            "not serving: UDP worker x has not moved for 10 s; \
             not ready: a: not read yet; c: denied; b: connection refused"
        );
        assert_eq!(health.live_page(), "UDP worker x has not moved for 10 s\n");
        assert_eq!(health.ready_page(), "a: not read yet\nc: denied\nb: connection refused\n");
        assert!(!health.is_live() && !health.is_ready());
    }
}
