//! The loop that runs the checks.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::checker::Checker;
use super::probe::Prober;
use super::{CheckMonitor, Settings};
use crate::service::{CheckChange, CheckVerdict, Update};

/// Limit on the verdicts of one update that are logged one by one.
const MAX_LOGGED_VERDICTS: usize = 10;

/// Checks the wanted endpoints and sends verdicts to `updates`.
///
/// Returns when `stop` is cancelled or a channel is closed.
pub async fn follow(
    settings: Settings,
    mut requests: mpsc::UnboundedReceiver<Vec<CheckChange>>,
    monitor: Arc<CheckMonitor>,
    updates: mpsc::Sender<Update>,
    stop: CancellationToken,
) {
    let mut checker = Checker::new(settings.clone(), Arc::clone(&monitor));
    let prober = Arc::new(Prober::new(settings));
    // No more run at once than start within a timeout, which the descriptors allow.
    let mut running = JoinSet::new();
    loop {
        let now = Instant::now();
        while let Some(mut check) = checker.start_next(now) {
            let prober = Arc::clone(&prober);
            running.spawn(async move {
                let result;
                (check.scheme, result) = prober.probe(check.target, check.scheme).await;
                (check, result, now.elapsed())
            });
        }
        let verdicts = checker.take_verdicts();
        if !verdicts.is_empty() {
            log(&verdicts, &monitor);
            if updates.send(Update::Checks(verdicts)).await.is_err() {
                return;
            }
        }
        let wake = checker.wake();
        let mut ended = tokio::select! {
            () = stop.cancelled() => return,
            changes = requests.recv() => {
                let Some(mut changes) = changes else { return };
                while let Ok(more) = requests.try_recv() {
                    changes.extend(more);
                }
                checker.change(changes, Instant::now());
                None
            }
            ended = running.join_next(), if !running.is_empty() => ended,
            () = sleep_until(wake.unwrap_or(now)), if wake.is_some() => None,
        };
        while let Some(check) = ended {
            // A check that panicked has no result; the next one is already scheduled.
            if let Ok((check, result, took)) = check {
                monitor.count(result, took);
                checker.record(check, result, Instant::now());
            }
            ended = running.try_join_next();
        }
    }
}

/// Logs verdicts one by one, or their number if there are many.
fn log(verdicts: &[CheckVerdict], monitor: &CheckMonitor) {
    if verdicts.len() > MAX_LOGGED_VERDICTS {
        let failing = verdicts.iter().filter(|verdict| verdict.fails).count();
        let passing = verdicts.len() - failing;
        tracing::info!(failing, passing, "checks of many endpoints have changed");
        return;
    }
    for CheckVerdict { target, fails } in verdicts {
        let endpoint = target.socket_address();
        match monitor.failure_at(endpoint) {
            Some(failing) if *fails => {
                let reason = failing.failure;
                tracing::info!(%endpoint, %reason, "the check of an endpoint fails");
            }
            _ => tracing::info!(%endpoint, "an endpoint is no longer left out by its check"),
        }
    }
}

#[cfg(test)]
mod tests;
