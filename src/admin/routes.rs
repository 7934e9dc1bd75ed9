//! The paths of the HTTP interface.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::checks::CheckFailureView;
use super::connections::AdminConnection;
use super::rendering::Renderer;
use super::requester::Requester;
use super::views::{ConflictView, RejectionsView, ServerStatus, ServiceView};
use super::{AdminContext, bridge, page};
use crate::metrics::TextFormat;
use crate::name::{Name, reverse_name};
use crate::registry::name_at;
use crate::wire::type_number;

#[derive(Clone)]
struct RouteState {
    context: Arc<AdminContext>,
    renderer: Renderer,
    streams: Arc<Semaphore>,
    stop: CancellationToken,
}

/// The text of the path `/`.
const INDEX: &str = "svcdns\n\n\
    /healthz       200 while the process answers\n\
    /livez         200 while the workers move, 503 with those that do not\n\
    /readyz        200 once all data and sockets are there, 503 with the reasons before\n\
    /metrics       metrics, as text for Prometheus\n\
    /v1/status     the server, its registries and its upstreams\n\
    /v1/services   services and instances; ?base=NAME for one\n\
    /v1/rejected   keys and endpoints that cannot be served, with the reason\n\
    /v1/conflicts  names that several services claim\n\
    /v1/explain    ?name=NAME&type=TYPE: how a query is answered\n\
    /v1/watch      changes as they happen, one JSON object per line\n\
    /v1/release    POST, socket only: applies held removals; ?registry=NAME for one registry\n\
    /v1/reload     POST, socket only: reads the configuration again; ?check=true changes nothing\n";

/// Limit on the open change streams of a listener.
const MAX_STREAMS: usize = 32;

/// The path that ends holds.
const RELEASE_PATH: &str = "/v1/release";

/// The path that reads the configuration again.
const RELOAD_PATH: &str = "/v1/reload";

/// The paths that change something.
pub(super) const CHANGING_PATHS: [&str; 2] = [RELEASE_PATH, RELOAD_PATH];

pub(super) fn router(context: Arc<AdminContext>, stop: CancellationToken) -> Router {
    let streams = Arc::new(Semaphore::new(MAX_STREAMS));
    let state = RouteState { context, renderer: Renderer::new(), streams, stop };
    Router::new()
        .route("/", get(async || INDEX))
        .route("/healthz", get(async || "alive\n"))
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics_page))
        .route("/v1/status", get(status))
        .route("/v1/services", get(services))
        .route("/v1/rejected", get(rejected))
        .route("/v1/conflicts", get(conflicts))
        .route("/v1/explain", get(explain))
        .route("/v1/watch", get(watch))
        .route(RELEASE_PATH, post(release))
        .route(RELOAD_PATH, post(reload))
        .with_state(state)
}

/// Reports whether the process serves.
async fn live(State(state): State<RouteState>) -> Response {
    let health = state.context.health();
    (health_code(health.is_live()), health.live_page()).into_response()
}

/// Reports whether the server is ready, and which registries have a problem.
async fn ready(State(state): State<RouteState>) -> Response {
    let health = state.context.health();
    (health_code(health.is_ready()), health.ready_page()).into_response()
}

fn health_code(is_healthy: bool) -> StatusCode {
    if is_healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

async fn metrics_page(State(state): State<RouteState>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    let format = TextFormat::accepted(accept.unwrap_or_default());
    let render = move || page::metrics(&state.context).render(format).map(String::into_bytes);
    state.renderer.page(format.media_type(), render).await
}

async fn status(State(state): State<RouteState>) -> Response {
    let RouteState { context, renderer, .. } = state;
    renderer.json(move || ServerStatus::new(&context)).await
}

/// Parameters of `/v1/services`.
#[derive(Deserialize)]
struct ServicesParams {
    base: Option<String>,
}

async fn services(
    State(state): State<RouteState>,
    Query(params): Query<ServicesParams>,
) -> Response {
    let RouteState { context, renderer, .. } = state;
    let make = move || {
        let AdminContext { answerer, registries, checks, .. } = &*context;
        let (snapshot, registries) = (answerer.snapshot(), registries.load());
        let checks = checks.as_deref();
        let view =
            |service: &Arc<_>| ServiceView::new(service, &snapshot, answerer, &registries, checks);
        let mut views: Vec<ServiceView> = if let Some(base) = params.base {
            let found = snapshot.service(&base);
            let service = found.and_then(|service| service.alias_target()).or(found);
            // The target of an alias may not be registered.
            service.filter(|service| !service.keys().is_empty()).map(view).into_iter().collect()
        } else {
            let registered = snapshot.services().filter(|service| service.alias_target().is_none());
            registered.map(view).collect()
        };
        views.sort_by(|a, b| a.base.cmp(&b.base));
        views
    };
    renderer.long_json(make).await
}

async fn rejected(State(state): State<RouteState>) -> Response {
    let RouteState { context, renderer, .. } = state;
    let make =
        move || RejectionsView::new(&context.answerer.rejections(), &context.registries.load());
    renderer.long_json(make).await
}

async fn conflicts(State(state): State<RouteState>) -> Response {
    let RouteState { context, renderer, .. } = state;
    renderer
        .long_json(move || ConflictView::all(&context.answerer, &context.registries.load()))
        .await
}

/// Parameters of `/v1/explain`.
#[derive(Deserialize)]
struct ExplainParams {
    name: String,
    #[serde(rename = "type")]
    kind: Option<String>,
    payload: Option<u16>,
}

async fn explain(State(state): State<RouteState>, Query(params): Query<ExplainParams>) -> Response {
    let name = match params.name.parse::<IpAddr>() {
        Ok(address) => reverse_name(address),
        Err(_) => match Name::from_text(&params.name) {
            Ok(name) => name,
            Err(error) => {
                return (
                    StatusCode::BAD_REQUEST,
                    format!("{:?} is not a name: {error}\n", params.name),
                )
                    .into_response();
            }
        },
    };
    let kind = params.kind.as_deref().unwrap_or("A");
    let Some(rtype) = type_number(kind) else {
        return (StatusCode::BAD_REQUEST, format!("{kind:?} is not a record type\n"))
            .into_response();
    };
    let payload = Some(params.payload.unwrap_or(1232)).filter(|payload| *payload > 0);
    let draw = fastrand::u64(..);
    let mut explanation = state.context.answerer.explain(&name, rtype, payload, draw);
    let registries = state.context.registries.load();
    explanation.name_registries(|place| name_at(&registries, place));
    explanation.bridge = bridge::describe(&state.context, &name);
    let checks = state.context.checks.as_deref();
    explanation.add_checks(|address| Some(CheckFailureView::at(checks, address)?.message));
    if let Some(elsewhere) = &mut explanation.elsewhere {
        let settings = state.context.answerer.settings();
        let target = settings.outside_target(&name);
        if let Some(route) = state.context.forwarder.describe(target.unwrap_or(&name), rtype) {
            *elsewhere = route;
        }
    }
    Json(explanation).into_response()
}

/// Parameters of `/v1/release`.
#[derive(Deserialize)]
struct ReleaseParams {
    registry: Option<String>,
}

async fn release(
    State(state): State<RouteState>,
    Extension(requester): Extension<Requester>,
    Query(params): Query<ReleaseParams>,
) -> Response {
    match state.context.releases.release(requester, params.registry.as_deref()).await {
        Ok(released) => Json(released).into_response(),
        Err(error) => (error.status(), format!("{error}\n")).into_response(),
    }
}

/// Parameters of `/v1/reload`.
#[derive(Deserialize)]
struct ReloadParams {
    #[serde(default)]
    check: bool,
}

async fn reload(
    State(state): State<RouteState>,
    Extension(requester): Extension<Requester>,
    Query(params): Query<ReloadParams>,
) -> Response {
    match state.context.reload_requests.reload(requester, params.check).await {
        Ok(view) => Json(view).into_response(),
        Err(error) => (error.status(), format!("{error}\n")).into_response(),
    }
}

async fn watch(
    State(state): State<RouteState>,
    Extension(connection): Extension<AdminConnection>,
) -> Response {
    let Ok(permit) = Arc::clone(&state.streams).try_acquire_owned() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many open change streams\n").into_response();
    };
    let body = state.context.changes.body(permit, connection.begin(), state.stop.clone());
    ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}
