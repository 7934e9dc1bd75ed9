//! Live changes: which instances of which service came and went.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use http_body_util::channel::Channel;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, broadcast};
use tokio_util::sync::CancellationToken;

use super::views::{EndpointView, EventView};
use super::watching::Watching;
use crate::catalog::{Service, ServiceChange};

/// How many changes a reader may be behind before some are left out.
const BEHIND: usize = 4_096;

/// How many changes wait in one reader's own queue.
const QUEUED: usize = 16;

/// How long a reader may take nothing while changes wait for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often a reader gets an empty line when nothing happens, so that both sides notice when the other has gone.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);

/// Tells every reader what changed.
#[derive(Debug)]
pub struct Changes {
    sender: broadcast::Sender<Arc<str>>,
}

impl Default for Changes {
    fn default() -> Self {
        Self { sender: broadcast::Sender::new(BEHIND) }
    }
}

impl Changes {
    /// Tells of services that changed. Costs nothing while nobody reads.
    pub fn tell(&self, changed: &[ServiceChange]) {
        if self.sender.receiver_count() == 0 {
            return;
        }
        for event in changed.iter().filter_map(event) {
            if let Ok(line) = serde_json::to_string(&event) {
                // Whoever has gone meanwhile does not miss it.
                let _ = self.sender.send(line.into());
            }
        }
    }

    /// A body of lines, one a change from now on, until `stop` or the reader goes; one that stops reading is left behind.
    pub(super) fn body(&self, place: OwnedSemaphorePermit, watching: &Watching, stop: CancellationToken) -> Body {
        let mut receiver = self.sender.subscribe();
        let (mut sender, body) = Channel::<Bytes, std::convert::Infallible>::new(QUEUED);
        let guard = watching.begin();
        tokio::spawn(async move {
            let _until_the_end = (place, guard);
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
                    () = tokio::time::sleep(SIGN_OF_LIFE) => "\n".to_owned(),
                };
                match tokio::time::timeout(PATIENCE, sender.send_data(line.into())).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) | Err(_) => return,
                }
            }
        });
        Body::new(body)
    }
}

/// What a change means for the instances that are served; none where they are the same.
fn event(changed: &ServiceChange) -> Option<EventView> {
    let instances = |service: Option<&Arc<Service>>| -> BTreeSet<EndpointView> {
        service.map(|service| service.served().map(|instance| EndpointView::new(&instance)).collect()).unwrap_or_default()
    };
    let (before, after) = (instances(changed.before.as_ref()), instances(changed.after.as_ref()));
    let event = EventView {
        service: Some(changed.base().to_owned()),
        added: after.difference(&before).cloned().collect(),
        removed: before.difference(&after).cloned().collect(),
        gone: changed.after.is_none(),
        missed: None,
    };
    (!event.added.is_empty() || !event.removed.is_empty() || event.gone || changed.before.is_none()).then_some(event)
}
