//! The paths and what stands behind them.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::views::{ConflictView, RejectionsView, ServiceView, Status};
use super::watching::Watching;
use super::{Site, page};
use crate::metrics;
use crate::name::{Name, reverse_name};
use crate::registry::name_at;
use crate::wire::type_number;

#[derive(Clone)]
struct Shared {
    site: Arc<Site>,
    stop: CancellationToken,
}

/// What `/` says.
const INDEX: &str = "svcdns\n\n\
    /healthz       200 while the process answers\n\
    /readyz        200 once absence means something, 503 before\n\
    /metrics       numbers, as OpenMetrics\n\
    /v1/status     the server and its registries\n\
    /v1/services   services and instances; ?base=NAME for one\n\
    /v1/rejected   what cannot be served, and why\n\
    /v1/conflicts  names that hide others\n\
    /v1/explain    ?name=NAME&type=TYPE: how a question is answered\n\
    /v1/watch      changes as they happen, one JSON object a line\n";

pub(super) fn router(site: Arc<Site>, stop: CancellationToken) -> Router {
    Router::new()
        .route("/", get(async || INDEX))
        .route("/healthz", get(async || "alive\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(numbers))
        .route("/v1/status", get(status))
        .route("/v1/services", get(services))
        .route("/v1/rejected", get(rejected))
        .route("/v1/conflicts", get(conflicts))
        .route("/v1/explain", get(explain))
        .route("/v1/watch", get(watch))
        .with_state(Shared { site, stop })
}

/// Makes a large answer where it holds up no question.
async fn json<T: Serialize + Send + 'static>(make: impl FnOnce() -> T + Send + 'static) -> Response {
    let made = tokio::task::spawn_blocking(move || serde_json::to_vec(&make())).await;
    match made {
        Ok(Ok(bytes)) => ([(header::CONTENT_TYPE, "application/json")], bytes).into_response(),
        _ => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn ready(State(shared): State<Shared>) -> Response {
    let site = &shared.site;
    if site.answerer.registry_status().synced {
        return "ready\n".into_response();
    }
    let waiting: Vec<String> = site
        .registries
        .iter()
        .filter_map(|state| {
            let report = state.report();
            (!report.synced).then(|| format!("{state}: {}\n", report.error.as_deref().unwrap_or("not read yet")))
        })
        .collect();
    (StatusCode::SERVICE_UNAVAILABLE, waiting.concat()).into_response()
}

async fn numbers(State(shared): State<Shared>) -> Response {
    match tokio::task::spawn_blocking(move || page::metrics(&shared.site).render()).await {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        _ => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn status(State(shared): State<Shared>) -> Response {
    json(move || Status::new(&shared.site)).await
}

#[derive(Deserialize)]
struct Which {
    base: Option<String>,
}

async fn services(State(shared): State<Shared>, Query(which): Query<Which>) -> Response {
    json(move || {
        let Site { answerer, registries, .. } = &*shared.site;
        let (snapshot, zone) = (answerer.snapshot(), answerer.settings().zones.first().text());
        let view = |service: &Arc<_>| ServiceView::new(service, zone, registries);
        let mut views: Vec<ServiceView> = match which.base {
            Some(base) => snapshot.service(&base).into_iter().map(view).collect(),
            None => snapshot.services().map(view).collect(),
        };
        views.sort_by(|a, b| a.base.cmp(&b.base));
        views
    })
    .await
}

async fn rejected(State(shared): State<Shared>) -> Response {
    json(move || {
        let Site { answerer, registries, .. } = &*shared.site;
        RejectionsView::new(&answerer.rejections(), registries)
    })
    .await
}

async fn conflicts(State(shared): State<Shared>) -> Response {
    json(move || ConflictView::all(&shared.site.answerer)).await
}

#[derive(Deserialize)]
struct Asked {
    name: String,
    #[serde(rename = "type")]
    kind: Option<String>,
    payload: Option<u16>,
}

async fn explain(State(shared): State<Shared>, Query(asked): Query<Asked>) -> Response {
    let name = match asked.name.parse::<IpAddr>() {
        Ok(address) => reverse_name(address),
        Err(_) => match Name::from_text(&asked.name) {
            Ok(name) => name,
            Err(error) => return (StatusCode::BAD_REQUEST, format!("{:?} is not a name: {error}\n", asked.name)).into_response(),
        },
    };
    let kind = asked.kind.as_deref().unwrap_or("A");
    let Some(rtype) = type_number(kind) else {
        return (StatusCode::BAD_REQUEST, format!("{kind:?} is not a type of record\n")).into_response();
    };
    let payload = Some(asked.payload.unwrap_or(1232)).filter(|payload| *payload > 0);
    let draw = fastrand::u64(..);
    let mut explanation = shared.site.answerer.explain(&name, rtype, payload, draw);
    explanation.name_registries(|place| name_at(&shared.site.registries, place));
    if let (Some(elsewhere), Some(forwarder)) = (&mut explanation.elsewhere, &shared.site.forwarder) {
        *elsewhere = forwarder.describe(&name, rtype);
    }
    Json(explanation).into_response()
}

async fn watch(State(shared): State<Shared>, Extension(watching): Extension<Watching>) -> Response {
    let Ok(place) = Arc::clone(&shared.site.watchers).try_acquire_owned() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many readers of live changes\n").into_response();
    };
    let body = shared.site.changes.body(place, &watching, shared.stop.clone());
    ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}
