//! Pages, rendered on blocking threads; only a few at a time.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Limit on the pages of a kind that a listener renders at once.
const MAX_PAGES: usize = 2;

/// Maximum wait of a request until others have been answered.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(5);

/// Media type of JSON.
const JSON: &str = "application/json";

/// Limits on the pages of a listener.
///
/// Without them, a thousand clients could have a million services rendered a thousand times.
#[derive(Clone, Debug)]
pub(super) struct Renderer {
    bounded: Arc<Semaphore>,
    growing: Arc<Semaphore>,
}

/// A page that counts until it has been sent.
struct SentPage {
    text: Vec<u8>,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for SentPage {
    fn as_ref(&self) -> &[u8] {
        &self.text
    }
}

impl Renderer {
    /// Creates the limits of a listener.
    pub(super) fn new() -> Self {
        let semaphore = || Arc::new(Semaphore::new(MAX_PAGES));
        Self { bounded: semaphore(), growing: semaphore() }
    }

    /// Responds with a page whose size does not grow with the number of services.
    pub(super) async fn page<E: Display + Send + 'static>(
        &self,
        media_type: &'static str,
        make: impl FnOnce() -> Result<Vec<u8>, E> + Send + 'static,
    ) -> Response {
        let Some(_permit) = permit(&self.bounded).await else { return busy() };
        match rendered(make).await {
            Some(text) => ([(header::CONTENT_TYPE, media_type)], text).into_response(),
            None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        }
    }

    /// Responds with JSON whose size does not grow with the number of services.
    pub(super) async fn json<T: Serialize + Send + 'static>(
        &self,
        make: impl FnOnce() -> T + Send + 'static,
    ) -> Response {
        self.page(JSON, move || serde_json::to_vec(&make())).await
    }

    /// Responds with JSON about all services; the page counts until it has been sent.
    pub(super) async fn long_json<T: Serialize + Send + 'static>(
        &self,
        make: impl FnOnce() -> T + Send + 'static,
    ) -> Response {
        let Some(permit) = permit(&self.growing).await else { return busy() };
        match rendered(move || serde_json::to_vec(&make())).await {
            Some(text) => {
                let text = Bytes::from_owner(SentPage { text, _permit: permit });
                ([(header::CONTENT_TYPE, JSON)], text).into_response()
            }
            None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        }
    }
}

/// Waits for one of the permits, for at most [`QUEUE_TIMEOUT`].
async fn permit(semaphore: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    let permit = Arc::clone(semaphore).acquire_owned();
    tokio::time::timeout(QUEUE_TIMEOUT, permit).await.ok()?.ok()
}

/// Renders a page on a blocking thread.
async fn rendered<E: Display + Send + 'static>(
    make: impl FnOnce() -> Result<Vec<u8>, E> + Send + 'static,
) -> Option<Vec<u8>> {
    match tokio::task::spawn_blocking(make).await {
        Ok(Ok(text)) => Some(text),
        Ok(Err(error)) => {
            tracing::warn!(%error, "cannot render a page of the HTTP interface");
            None
        }
        // The panic was logged.
        Err(_) => None,
    }
}

fn busy() -> Response {
    let text = format!(
        "busy: {MAX_PAGES} other pages were being made for {} s; try again\n",
        QUEUE_TIMEOUT.as_secs()
    );
    (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "5")], text).into_response()
}
