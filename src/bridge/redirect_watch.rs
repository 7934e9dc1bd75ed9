//! Looks after the rules of the kernel, which other programs may remove.
//!
//! `nft flush ruleset`, with which Debian's nftables service reloads its configuration, removes the
//! tables of all programs. Clients would then reach nothing, or whatever else listens on port 80.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::redirect::Redirect;
use super::reserved_port::ReservedPort;
use super::shared::Shared;

/// Time between two probes.
const INTERVAL: Duration = Duration::from_secs(1);

/// Time between two attempts to restore the rules after one failed.
const INTERVAL_AFTER_FAILURE: Duration = Duration::from_secs(10);

/// Longest time of a probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Number of probes in a row without a clear result that count as a failure.
///
/// A rule that drops packets gives no result; nor does a machine that is very busy, for a while.
const MAX_UNCLEAR: u32 = 3;

/// Result of a connection to the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probed {
    /// The bridge has ended it: connections are redirected.
    Redirected,
    /// It was refused: connections are not redirected.
    Refused,
    /// Neither.
    Unclear,
}

/// The rules, and what is needed to look after them.
#[derive(Debug)]
pub(super) struct RedirectWatch {
    pub(super) redirect: Redirect,
    /// Kept until the rules are removed.
    pub(super) port: ReservedPort,
    pub(super) shared: Arc<Shared>,
    /// Receives why connections are not redirected at the moment, if so.
    pub(super) problem: watch::Sender<Option<String>>,
    /// Number of probes without a clear result since the last one that had one.
    pub(super) unclear: u32,
}

impl RedirectWatch {
    /// Restores the rules whenever they are lost, until `stop`.
    pub(super) async fn run(&mut self, stop: &CancellationToken) {
        let mut interval = INTERVAL;
        while stop.run_until_cancelled(tokio::time::sleep(interval)).await.is_some() {
            interval = self.check(stop).await;
        }
    }

    /// Probes once, and restores the rules if they are lost; returns the time until the next probe.
    pub(super) async fn check(&mut self, stop: &CancellationToken) -> Duration {
        match self.probe().await {
            // At the end, the listeners are closed.
            _ if stop.is_cancelled() => {}
            Probed::Redirected => self.note(None),
            Probed::Refused => {
                if let Err(error) = self.restore().await {
                    self.note(Some(error));
                    return INTERVAL_AFTER_FAILURE;
                }
            }
            Probed::Unclear => {
                self.unclear = self.unclear.saturating_add(1);
                if self.unclear >= MAX_UNCLEAR {
                    self.note(Some(
                        "connections to the bridge's addresses get no response: another program's \
                         rules may drop them (`nft list ruleset`)"
                            .to_owned(),
                    ));
                }
            }
        }
        INTERVAL
    }

    /// Removes the rules. Without any rule for NAT, the kernel also stops translating open
    /// connections.
    pub(super) async fn remove(self) {
        if let Err(error) = self.redirect.remove().await {
            tracing::warn!(%error, "the bridge's table stays in the kernel until the next start");
        }
    }

    /// Restores the rules and checks that they work.
    async fn restore(&mut self) -> Result<(), String> {
        self.redirect.restore().await.map_err(|error| error.to_string())?;
        let probed = self.probe().await;
        if probed == Probed::Refused {
            return Err(
                "connections are refused in spite of the bridge's table: another program's \
                 rules may reject them (`nft list ruleset`)"
                    .to_owned(),
            );
        }
        if self.shared.counters.restored.increment().is_power_of_two() {
            tracing::warn!(
                "another program removed the bridge's table from the kernel's rules, such as \
                 `nft flush ruleset`: svcdns has added it again"
            );
        }
        if probed == Probed::Redirected {
            self.note(None);
        }
        Ok(())
    }

    /// Passes on whether connections are redirected, if that has changed.
    fn note(&mut self, problem: Option<String>) {
        if problem.is_none() {
            self.unclear = 0;
        }
        self.problem.send_if_modified(|known| {
            let is_changed = known.is_some() != problem.is_some();
            match &problem {
                Some(error) if is_changed => tracing::error!(
                    error,
                    "connections to the bridge's addresses are no longer redirected: clients get \
                     the addresses of the instances"
                ),
                None if is_changed => tracing::info!("connections to the bridge work again"),
                _ => {}
            }
            *known = problem;
            is_changed
        });
    }

    /// Connects to the pool.
    ///
    /// The port is the one that this process has bound: without redirection, no program of another
    /// user can accept the connection.
    async fn probe(&self) -> Probed {
        let pool = self.shared.settings.pool;
        let target = SocketAddr::from((pool.broadcast(), self.port.address().port()));
        let probe = async {
            let mut stream = TcpStream::connect(target).await?;
            // The bridge ends it, so that nothing is left in the kernel's tables.
            stream.read(&mut [0]).await
        };
        match tokio::time::timeout(PROBE_TIMEOUT, probe).await {
            Ok(Err(error)) => match error.kind() {
                ErrorKind::ConnectionReset => Probed::Redirected,
                ErrorKind::ConnectionRefused => Probed::Refused,
                _ => Probed::Unclear,
            },
            Ok(Ok(_)) | Err(_) => Probed::Unclear,
        }
    }
}
