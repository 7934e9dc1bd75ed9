//! Reading registries once, without a server.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::answer::Answerer;
use crate::config::Config;
use crate::daemon::{PipelineHandles, RegistryPipeline, UpdateChannel};
use crate::registry::RegistryState;

/// Maximum wait until every registry has been read.
const READ_TIMEOUT: Duration = Duration::from_secs(15);

/// Interval of checking whether the registries have been read.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The services of registries, as a server that follows them would have them.
pub(super) struct RegistryReading {
    pub(super) answerer: Arc<Answerer>,
    /// The states of the registries, in the order of the configuration.
    pub(super) states: Arc<Vec<Arc<RegistryState>>>,
}

/// Reads the registries of a configuration once.
///
/// # Errors
/// If a registry refuses to be read, or cannot be read in time.
///
/// A registry that was read only in part is no error: its state has one.
pub(super) async fn read(config: &Config) -> anyhow::Result<RegistryReading> {
    let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
    let _stop_at_the_end = stop.clone().drop_guard();
    // Without a sender of updates, the pipeline would follow nothing.
    let (mut pipeline, PipelineHandles { answerer, states, updates: _updates, .. }) =
        RegistryPipeline::new(config, &config.listen, UpdateChannel::default(), None, None);
    pipeline.start(&tracker, &stop);
    let states = states.load();
    let is_read =
        || states.iter().all(|state| state.report().synced) && answerer.registry_status().synced;
    // Trying again does not mend a refusal, so there is nothing to wait for.
    let is_unreadable = |state: &RegistryState| {
        let report = state.report();
        !report.synced && report.refused
    };
    let is_settled = || is_read() || states.iter().any(|state| is_unreadable(state));
    let read = async {
        while !is_settled() {
            let mut next = pin!(pipeline.next());
            // A registry may report its list as complete only after the pipeline has published it.
            let ended = loop {
                tokio::select! {
                    published = &mut next => break published.is_none(),
                    () = tokio::time::sleep(POLL_INTERVAL) => if is_settled() { break true },
                }
            };
            if ended {
                break;
            }
        }
    };
    let timed_out = tokio::time::timeout(READ_TIMEOUT, read).await.is_err();
    let reasons = |is_failed: &dyn Fn(&RegistryState) -> bool| {
        let failed = states.iter().filter(|state| is_failed(state));
        let reasons = failed.map(|state| {
            format!("{state}: {}", state.report().error.as_deref().unwrap_or("no response"))
        });
        reasons.collect::<Vec<_>>().join("; ")
    };
    if timed_out {
        let unread = reasons(&|state| !state.report().synced);
        bail!("not every registry could be read within {} s: {unread}", READ_TIMEOUT.as_secs());
    }
    let refused = reasons(&is_unreadable);
    if !refused.is_empty() {
        bail!("a registry cannot be read: {refused}");
    }
    Ok(RegistryReading { answerer, states })
}
