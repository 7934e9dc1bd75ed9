//! Health: the sentences of `/livez`, `/readyz`, `svcdns status` and the service manager.

use std::fmt;
use std::net::SocketAddr;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use super::AdminContext;
use crate::service::{MAX_REGISTRIES, RegistryId};

/// What the DNS server reports about its sockets and workers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SocketReport {
    /// Number of addresses that are served, over all transports.
    pub open: usize,
    /// Addresses that should be served but are not, each with the reason.
    pub missing: Vec<(SocketAddr, String)>,
    /// A sentence for each UDP worker that hangs.
    pub hanging: Vec<String>,
}

/// Watches the sockets and workers of the DNS server.
#[derive(Default)]
pub struct SocketWatch {
    source: OnceLock<Box<dyn Fn() -> SocketReport + Send + Sync>>,
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
}

impl fmt::Debug for SocketWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SocketWatch").finish_non_exhaustive()
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
    sentences.iter().flat_map(|sentence| [sentence, "\n"]).collect()
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
        let SocketReport { open, missing, hanging } = self.sockets.report().unwrap_or_default();
        if open == 0 {
            health.unready.push("no socket is served yet".to_owned());
        }
        let missing =
            missing.iter().map(|(address, reason)| format!("not listening on {address}: {reason}"));
        health.unready.extend(missing);
        HealthReport { hanging, ..health }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
