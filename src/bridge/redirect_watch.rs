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

/// The rules, and what is needed to look after them.
#[derive(Debug)]
pub(super) struct RedirectWatch {
    pub(super) redirect: Redirect,
    /// Kept until the rules are removed.
    pub(super) port: ReservedPort,
    pub(super) shared: Arc<Shared>,
    /// Receives why connections are not redirected at the moment, if so.
    pub(super) problem: watch::Sender<Option<String>>,
}

impl RedirectWatch {
    /// Restores the rules whenever they are lost, until `stop`.
    pub(super) async fn run(&mut self, stop: &CancellationToken) {
        let mut interval = INTERVAL;
        while stop.run_until_cancelled(tokio::time::sleep(interval)).await.is_some() {
            interval = INTERVAL;
            if self.is_lost().await {
                let restored = self.restore().await;
                if restored.is_err() {
                    interval = INTERVAL_AFTER_FAILURE;
                }
                self.note(restored.err());
            } else {
                self.note(None);
            }
        }
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
        if self.is_lost().await {
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
        Ok(())
    }

    /// Passes on whether connections are redirected, if that has changed.
    fn note(&self, problem: Option<String>) {
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

    /// Returns whether a connection to the pool is not redirected; `false` if that is unknown.
    ///
    /// Its port is the one that this process has bound: without redirection, no program of another
    /// user can accept it.
    async fn is_lost(&self) -> bool {
        let pool = self.shared.settings.pool;
        let target = SocketAddr::from((pool.broadcast(), self.port.address().port()));
        let probe = async {
            let mut stream = TcpStream::connect(target).await?;
            // The bridge ends it, so that nothing is left in the kernel's tables.
            stream.read(&mut [0]).await
        };
        match tokio::time::timeout(PROBE_TIMEOUT, probe).await {
            Ok(Err(error)) => error.kind() == ErrorKind::ConnectionRefused,
            Ok(Ok(_)) | Err(_) => false,
        }
    }
}
