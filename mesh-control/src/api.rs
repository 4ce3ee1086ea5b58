//! The HTTP API of the control plane: JSON over the loopback, what `meshctl` speaks.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /version` | | [`Version`] |
//! | `GET /metrics` | | Prometheus text by istiod's names, see `metrics.rs` |
//! | `GET /ready` | | 200 as soon as it listens |
//! | `POST /apply` | [`ApplyRequest`] | [`Applied`]; 422 with diagnostics, and nothing applied |
//! | `POST /delete` | [`DeleteRequest`] | [`Deleted`]; what does not exist is listed, the rest is deleted |
//! | `GET /objects?kind=&namespace=&name=` | | [`Objects`]; each parameter may be left out |
//! | `POST /analyze` | [`AnalyzeRequest`] | [`Analyzed`]: what is wrong or seldom meant, with the files or without |
//! | `POST /explain` | [`ExplainRequest`] | [`Explained`]: the decision of the named workload for a made-up request |
//! | `POST /authz/check` | [`AuthzRequest`] | [`AuthzChecked`]: the policies of a workload, and what they say of a made-up request |
//! | `GET /policies?workload=` | [`Holdings`]: what holds for a workload, or for each: mutual TLS by port, policies |
//! | `GET /config_dump?proxy=` | | what the named workload has been told, in Envoy's JSON form |
//! | `GET /proxies` | | [`Proxies`]: what became of what was sent, by workload |
//! | `GET /workloads` | | [`Workloads`]: who runs where |
//! | `GET /console/`, `/graph.*`, `/dotviz` | | the console, see `console.rs` |
//! | `GET /ca` | | [`CaStatus`](crate::ca::CaStatus): authorities, who is denied, lists of revoked certificates |
//! | `GET /ca/issued?id=` | | [`IssuedList`]: good certificates, of a SPIFFE id or of all |
//! | `POST /ca/rotate` | [`RotateRequest`](crate::ca::RotateRequest) | the same as `/ca`; 409 when the step cannot be taken |
//! | `POST /ca/revoke` | [`RevokeRequest`](crate::ca::RevokeRequest) | the same as `/ca` |
//!
//! Every error is a [`Problem`] with a status of 4xx or 5xx. There is no authentication: whoever can connect to the loopback
//! of this machine is let in. So it listens on the loopback only, hands out no token and no certificate, and refuses what a
//! browser sends on behalf of a web page: a `Host` that is no loopback name (DNS rebinding) and an `Origin` of elsewhere.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Query, Request, State as Shared, rejection::JsonRejection},
    http::{HeaderMap, StatusCode, Uri, header, uri::Authority},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Deserialize;

use crate::{
    ca::Ca,
    console::{Console, writes_carry_the_token},
    kinds::{self, Key, Kind},
    metrics::Now,
    plane::is_loopback,
    push::Push,
    state::State,
    store::{Applied, StoreError},
};

mod authority;
mod authz;
mod dump;
mod explain;
mod holding;
pub mod observed;
mod protection;
mod wire;

pub use authz::{AuthzChecked, AuthzRequest, AuthzStep, AuthzVerdict, MadeUp, PolicyRow, RuleAt};
pub use holding::{Holding, Holdings, PortMtls};
pub use wire::{
    AnalyzeRequest, Analyzed, ApplyRequest, DeleteRequest, Deleted, ExplainRequest, Explained, IssuedList, Item,
    Objects, Problem, Protection, Proxies, ProxyStatus, Skew, SyncState, TypeStatus, Version, Workloads,
};

/// The largest body read: a few thousand objects.
const MAX_BODY: usize = 16 << 20;

/// What the API answers from.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    state: Arc<State>,
    push: Arc<Push>,
    ca: Arc<Ca>,
    xds: SocketAddr,
}

impl Api {
    pub(crate) fn new(state: Arc<State>, push: Arc<Push>, ca: Arc<Ca>, xds: SocketAddr) -> Self {
        Self { state, push, ca, xds }
    }
}

pub(crate) fn router(api: Api, console: Console) -> Router {
    let token = console.token();
    Router::new()
        .route("/version", get(version))
        .route("/metrics", get(metrics))
        .route("/ready", get(|| async { "ready\n" }))
        .route("/apply", post(apply))
        .route("/delete", post(delete))
        .route("/objects", get(objects))
        .route("/analyze", post(analyze))
        .route("/explain", post(explain))
        .route("/authz/check", post(check_authz))
        .route("/policies", get(policies))
        .route("/config_dump", get(config_dump))
        .route("/proxies", get(proxies))
        .route("/workloads", get(workloads))
        .route("/ca", get(authority::status))
        .route("/ca/issued", get(authority::issued))
        .route("/ca/rotate", post(authority::rotate))
        .route("/ca/revoke", post(authority::revoke))
        .fallback(|uri: Uri| async move { Refusal::new(StatusCode::NOT_FOUND, format!("there is no {}", uri.path())) })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(api)
        .merge(console.router())
        .layer(middleware::from_fn_with_state(token, writes_carry_the_token))
        .layer(middleware::from_fn(from_this_machine_only))
}

async fn version(Shared(api): Shared<Api>) -> Json<Version> {
    let revision = api.state.mesh().revision.clone();
    Json(Version { version: env!("CARGO_PKG_VERSION").to_owned(), xds: api.xds, revision })
}

async fn metrics(Shared(api): Shared<Api>) -> impl IntoResponse {
    let (objects, workloads, proxies) = (api.state.list(None, None), api.state.workloads(), api.push.status());
    let now = Now { objects: &objects, workloads: &workloads, proxies: &proxies };
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], api.state.metrics().render(&now))
}

async fn apply(
    Shared(api): Shared<Api>,
    request: Result<Json<ApplyRequest>, JsonRejection>,
) -> Result<impl IntoResponse, Refusal> {
    let Json(request) = request?;
    Ok(Json(api.state.apply(&request.files, request.dry_run)?))
}

async fn delete(
    Shared(api): Shared<Api>,
    request: Result<Json<DeleteRequest>, JsonRejection>,
) -> Result<Json<Deleted>, Refusal> {
    let Json(DeleteRequest { mut keys, files }) = request?;
    for file in files {
        let parsed = kinds::parse(&file.name, &file.text).map_err(StoreError::Invalid)?;
        keys.extend(parsed.objects.into_iter().map(|object| object.key));
    }
    let Applied { changes, diagnostics, .. } = api.state.delete(&keys)?;
    let missing = keys.into_iter().filter(|key| changes.iter().all(|change| change.key != *key)).collect();
    Ok(Json(Deleted { changes, missing, diagnostics }))
}

async fn analyze(
    Shared(api): Shared<Api>,
    request: Result<Json<AnalyzeRequest>, JsonRejection>,
) -> Result<Json<Analyzed>, Refusal> {
    let Json(AnalyzeRequest { files }) = request?;
    Ok(Json(Analyzed { diagnostics: api.state.analyze(&files) }))
}

#[derive(Deserialize)]
struct Wanted {
    kind: Option<String>,
    namespace: Option<String>,
    name: Option<String>,
}

async fn objects(Shared(api): Shared<Api>, Query(wanted): Query<Wanted>) -> Result<Json<Objects>, Refusal> {
    let kind = match wanted.kind.as_deref() {
        Some(word) => Some(
            Kind::from_word(word)
                .ok_or_else(|| Refusal::new(StatusCode::BAD_REQUEST, format!("there is no kind {word:?}")))?,
        ),
        None => None,
    };
    let found = match (kind, wanted.namespace.as_deref(), wanted.name) {
        (Some(kind), Some(namespace), Some(name)) => {
            let key = Key::new(kind, namespace, name);
            let object = api.state.get(&key);
            vec![object.ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, format!("{key} does not exist")))?]
        }
        (kind, namespace, name) => {
            let mut found = api.state.list(kind, namespace);
            found.retain(|object| name.as_ref().is_none_or(|name| object.key.name == *name));
            found
        }
    };
    let item = |object: &Arc<kinds::Object>| Item {
        key: object.key.clone(),
        created: object.created,
        object: (*object.raw).clone(),
    };
    Ok(Json(Objects { items: found.iter().map(item).collect() }))
}

async fn explain(
    Shared(api): Shared<Api>,
    request: Result<Json<ExplainRequest>, JsonRejection>,
) -> Result<Json<Explained>, Refusal> {
    let Json(request) = request?;
    explain::explain(&api.state, &api.push, &request).map(Json)
}

#[derive(Deserialize)]
struct Of {
    proxy: String,
}

/// Whose policies; without, everybody's.
#[derive(Debug, Deserialize)]
struct Whose {
    workload: Option<String>,
}

async fn policies(Shared(api): Shared<Api>, Query(whose): Query<Whose>) -> Result<Json<Holdings>, Refusal> {
    Ok(Json(holding::look(&api.state, &api.push, whose.workload.as_deref())?))
}

async fn check_authz(
    Shared(api): Shared<Api>,
    request: Result<Json<AuthzRequest>, JsonRejection>,
) -> Result<Json<AuthzChecked>, Refusal> {
    let Json(request) = request?;
    Ok(Json(authz::check(&api.state, &api.push, &request)?))
}

async fn config_dump(Shared(api): Shared<Api>, Query(of): Query<Of>) -> Result<Json<serde_json::Value>, Refusal> {
    // As costly as making the view of a workload: not for the threads that serve streams.
    let made = tokio::task::spawn_blocking(move || dump::dump(&api.state, &api.push, &of.proxy)).await;
    made.map_err(|error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?.map(Json)
}

async fn proxies(Shared(api): Shared<Api>) -> Json<Proxies> {
    let mut items = api.push.status();
    protection::look(&api.state, &api.push, &mut items).await;
    Json(Proxies { items })
}

async fn workloads(Shared(api): Shared<Api>) -> Json<Workloads> {
    Json(Workloads { items: api.state.workloads().iter().map(|workload| (**workload).clone()).collect() })
}

/// A web page can make a browser connect to the loopback, but not make it lie about `Host` and `Origin`.
async fn from_this_machine_only(request: Request, next: Next) -> Response {
    let headers = request.headers();
    let host = text(headers, header::HOST).or_else(|| request.uri().authority().map(Authority::as_str));
    if !host.is_some_and(is_loopback_authority) {
        let message =
            format!("Host {:?} is not a loopback name; connect to 127.0.0.1 or localhost", host.unwrap_or(""));
        return Refusal::new(StatusCode::FORBIDDEN, message).into_response();
    }
    if let Some(origin) = headers.get(header::ORIGIN) {
        let uri = origin.to_str().ok().and_then(|origin| origin.parse::<Uri>().ok());
        if !uri.as_ref().and_then(Uri::authority).is_some_and(|authority| is_loopback_authority(authority.as_str())) {
            return Refusal::new(StatusCode::FORBIDDEN, "requests of web pages from elsewhere are refused")
                .into_response();
        }
    }
    next.run(request).await
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

fn is_loopback_authority(authority: &str) -> bool {
    let Ok(authority) = authority.parse::<Authority>() else { return false };
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(is_loopback)
}

/// An error on its way out.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: StatusCode,
    problem: Problem,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, problem: Problem { error: error.into(), diagnostics: Vec::new() } }
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        let message = error.to_string();
        match error {
            StoreError::Invalid(diagnostics) => {
                Self { status: StatusCode::UNPROCESSABLE_ENTITY, problem: Problem { error: message, diagnostics } }
            }
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, message),
        }
    }
}

impl From<JsonRejection> for Refusal {
    fn from(rejection: JsonRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, Json(self.problem)).into_response()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    #[test]
    fn only_loopback_names_are_hosts() {
        for host in ["localhost", "LOCALHOST:15014", "127.0.0.1", "127.0.0.9:1", "[::1]:15014", "[::ffff:127.0.0.1]"] {
            assert!(is_loopback_authority(host), "{host}");
        }
        for host in ["", "example.com", "localhost.example.com", "127.0.0.1.nip.io", "10.0.0.1:15014", "[::2]", "a b"] {
            assert!(!is_loopback_authority(host), "{host}");
        }
    }
}
