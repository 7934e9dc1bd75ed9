//! The stream of changes: instances of services that were added and removed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use http_body_util::channel::Channel;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, broadcast};
use tokio_util::sync::CancellationToken;

use super::connections::BusyGuard;
use super::views::{EndpointView, EventView};
use crate::catalog::{Service, ServiceChange};

/// Maximum changes that a client may lag behind before it misses some.
const MAX_LAG: usize = 4_096;

/// Maximum lines that wait in the response body of one client.
const MAX_QUEUED_LINES: usize = 16;

/// Maximum wait for a client that does not read; then the stream ends.
const READER_TIMEOUT: Duration = Duration::from_secs(10);

/// Interval of empty lines while nothing changes.
///
/// The lines show each side that the other side is still connected.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// Sends changes to all clients of `/v1/watch`.
#[derive(Debug)]
pub struct ChangeFeed {
    sender: broadcast::Sender<Arc<str>>,
}

impl Default for ChangeFeed {
    fn default() -> Self {
        Self { sender: broadcast::Sender::new(MAX_LAG) }
    }
}

impl ChangeFeed {
    /// Sends the changes to services; costs nothing without clients.
    pub fn send(&self, changed: &[ServiceChange]) {
        if self.sender.receiver_count() == 0 {
            return;
        }
        for event in changed.iter().filter_map(event) {
            if let Ok(line) = serde_json::to_string(&event) {
                // Fails only if the last client has just disconnected.
                let _ = self.sender.send(line.into());
            }
        }
    }

    /// Returns a response body with a line for each future change.
    ///
    /// The stream ends when `stop` is cancelled or the client disconnects or stalls.
    pub(super) fn body(
        &self,
        permit: OwnedSemaphorePermit,
        busy: BusyGuard,
        stop: CancellationToken,
    ) -> Body {
        let mut receiver = self.sender.subscribe();
        let (mut sender, body) = Channel::<Bytes, std::convert::Infallible>::new(MAX_QUEUED_LINES);
        tokio::spawn(async move {
            let _until_the_end = (permit, busy);
            loop {
                let line = tokio::select! {
                    () = stop.cancelled() => return,
                    received = receiver.recv() => match received {
                        Ok(line) => format!("{line}\n"),
                        Err(RecvError::Lagged(missed)) => {
                            let event = EventView { missed: Some(missed), ..EventView::default() };
                            let Ok(line) = serde_json::to_string(&event) else { return };
                            line + "\n"
                        }
                        Err(RecvError::Closed) => return,
                    },
                    () = tokio::time::sleep(KEEPALIVE_INTERVAL) => "\n".to_owned(),
                };
                match tokio::time::timeout(READER_TIMEOUT, sender.send_data(line.into())).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) | Err(_) => return,
                }
            }
        });
        Body::new(body)
    }
}

/// Compares the served instances before and after; `None` if equal.
fn event(changed: &ServiceChange) -> Option<EventView> {
    let instances = |service: Option<&Arc<Service>>| -> BTreeSet<EndpointView> {
        service
            .map(|service| service.served().map(|instance| EndpointView::new(&instance)).collect())
            .unwrap_or_default()
    };
    let (before, after) = (instances(changed.before.as_ref()), instances(changed.after.as_ref()));
    let event = EventView {
        service: Some(changed.base().to_owned()),
        added: after.difference(&before).cloned().collect(),
        removed: before.difference(&after).cloned().collect(),
        gone: changed.after.is_none(),
        missed: None,
    };
    (!event.added.is_empty() || !event.removed.is_empty() || event.gone || changed.before.is_none())
        .then_some(event)
}
