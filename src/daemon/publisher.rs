//! The thread that follows the registries and publishes snapshots.

use std::sync::Arc;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::StartError;
use super::follow::RegistryPipeline;
use super::hold_log::HoldLog;
use super::snapshots::{SnapshotUpdates, Snapshots};
use crate::admin::AdminContext;

/// Starts the thread that follows the registries and publishes snapshots.
///
/// The thread is separate, so a large change delays no response. It first reads the snapshots, and
/// gives them back through the second receiver. The first receiver is closed when the thread ends.
pub(super) fn start_publisher(
    mut pipeline: RegistryPipeline,
    context: Arc<AdminContext>,
    snapshots: Option<(Snapshots, SnapshotUpdates)>,
    tracker: TaskTracker,
    stop: CancellationToken,
) -> Result<(oneshot::Receiver<()>, oneshot::Receiver<Option<Snapshots>>), StartError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(StartError::Thread)?;
    let mut hold_log = HoldLog::new(context.registries.clone());
    let (ending, ended) = oneshot::channel();
    let (loading, loaded) = oneshot::channel();
    let thread = std::thread::Builder::new().name("registries".to_owned()).spawn(move || {
        // Dropped at the end of the thread, even after a panic.
        let _ending: oneshot::Sender<()> = ending;
        runtime.block_on(async {
            let (mut snapshots, mut updates) = snapshots.unzip();
            if let Some(snapshots) = &mut snapshots {
                snapshots.load(&mut pipeline);
            }
            let ready = || drop(loading.send(snapshots));
            context.changes.send(&pipeline.publish_restored(ready).await.changed);
            pipeline.start(&tracker, &stop);
            loop {
                let next = tokio::select! {
                    () = stop.cancelled() => return,
                    next = pipeline.next() => next,
                };
                let Some((published, took)) = next else { return };
                let snapshot = context.answerer.snapshot();
                if let Some(updates) = &mut updates {
                    if let Some(config) = pipeline.take_applied() {
                        updates.reconfigure(&config, &context.registries.load());
                    }
                    updates.add(&published.changed, snapshot.registry_status());
                }
                tracing::debug!(
                    services = published.changed.len(),
                    duration_us = took.as_micros(),
                    "published a snapshot"
                );
                hold_log.update(snapshot.holds());
                context.note_publication(published, took);
            }
        });
        // Shut down without waiting for a blocking call to a hanging file system.
        runtime.shutdown_background();
    });
    thread.map_err(StartError::Thread)?;
    Ok((ended, loaded))
}
