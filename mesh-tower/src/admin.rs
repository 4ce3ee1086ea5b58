//! The admin port, on loopback only: metrics, readiness, and what this process knows; no key is ever shown. What changes
//! something (`admin/steer.rs`) takes POST.
//!
//! | path | answers |
//! |---|---|
//! | `/metrics`, `/stats/prometheus` | Prometheus text |
//! | `/traffic` | requests and durations by series, with the number of this process, as JSON: what a console adds up |
//! | `/healthz` | 200 while the process runs |
//! | `/ready` | 200 once it has configuration and, where it needs one, a certificate; 503 before, and while draining |
//! | `/config_dump` | the configuration in force in the form Envoy has for it, which `istioctl` and `meshctl proxy-config` read, and the state of
//! the connection to the control plane |
//! | `/config` | the configuration in force as this mesh has it, as JSON |
//! | `/clusters` | every endpoint with its load and health, as JSON |
//! | `/control_plane` | how the conversation with the control plane stands, as JSON |
//! | `/fields` | every resource of the control plane with what became of its fields: applied, ignored, refused; as JSON |
//! | gRPC, without TLS | CSDS: every resource of the control plane with its version and what was refused |
//! | `/serving` | the ports that the mesh serves for this process, as JSON |
//! | `/certs` | who we are and until when, as JSON |
//! | `/listeners`, `/server_info`, `/init_dump`, `/memory`, `/runtime` | what Envoy has by these names, as JSON |
//! | `/stats` | counters as lines; `?filter=`, `?format=json`, `?format=prometheus` |
//! | POST `/drain_listeners`, `/quitquitquit` | servers drain and return, as at SIGTERM |
//! | POST `/healthcheck/fail`, `/healthcheck/ok` | it says that it is not well, or well again |
//! | POST `/runtime_modify` | a feature is switched off in this process, or on again: `?mirroring=off` |
//! | POST `/logging` | log levels, where the program has said how: `?level=debug`, `?mesh::xds=debug` |
//!
//! A port of its own for metrics alone, which others may reach, is in `admin/scrape.rs`.
//!
//! `/config_dump` takes `?resource=`, `?name_regex=` and `?mask=`, as Envoy's.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::UNIX_EPOCH,
};

use axum::{
    Json, Router,
    extract::{Query, Request, State},
    http::{StatusCode, header},
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::get,
};
use mesh_core::config::Config;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch};

use crate::{
    live::Live,
    mesh::Page,
    source::Source,
    telemetry,
    tls::{Identity, LiveIdentity},
    upkeep::Owned,
};

mod inside;
mod scrape;
mod steer;

pub(crate) use scrape::Scraped;
pub(crate) use steer::LogLevels;

/// Prometheus text.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Shows a configuration with the certificates of this process in Envoy's form; the text is when it is shown.
pub(crate) type Dump = Arc<dyn Fn(&Config, Option<&Identity>, &str) -> Value + Send + Sync>;

/// What the admin port shows.
#[derive(Clone)]
pub(crate) struct Shown {
    pub(crate) live: Arc<Live>,
    pub(crate) identity: LiveIdentity,
    pub(crate) secure: bool,
    pub(crate) source: Source,
    /// The state of the connection to the control plane.
    pub(crate) status: Page,
    /// Shows a configuration in Envoy's form.
    pub(crate) dump: Dump,
    /// Pages beyond those known here.
    pub(crate) pages: Vec<(&'static str, Page)>,
    /// Services beside the pages.
    pub(crate) services: Router,
    pub(crate) ending: watch::Receiver<bool>,
    /// Ends serving.
    pub(crate) stop: watch::Sender<bool>,
    /// It is to say that it is not well.
    pub(crate) unwell: watch::Sender<bool>,
    /// Changes what is logged.
    pub(crate) levels: Option<LogLevels>,
}

/// The admin port, open until dropped.
#[derive(Debug)]
pub(crate) struct Admin {
    address: SocketAddr,
    _task: Owned,
}

impl Admin {
    /// Takes the port. Only loopback addresses are taken: what it shows is nobody else's business.
    pub(crate) async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
        if !address.ip().is_loopback() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the admin port must be on a loopback address"));
        }
        TcpListener::bind(address).await
    }

    /// Answers there.
    pub(crate) fn open(listener: TcpListener, shown: Shown) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let router = router(shown);
        let task = Owned::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::warn!(target: "mesh::admin", %error, "the admin port closed");
            }
        });
        Ok(Self { address, _task: task })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

fn router(shown: Shown) -> Router {
    let services = shown.services.clone().reset_fallback();
    let mut router = Router::new();
    for (path, page) in shown.pages.clone() {
        router = router.route(path, get(async move || Json(page())));
    }
    router
        .route("/metrics", get(metrics))
        .route("/stats/prometheus", get(metrics))
        .route("/traffic", get(traffic))
        .route("/healthz", get(async || "ok\n"))
        .route("/ready", get(ready))
        .route("/config_dump", get(config_dump))
        .route("/config", get(config))
        .route("/clusters", get(clusters))
        .route("/certs", get(certs))
        .route("/listeners", get(inside::listeners))
        .route("/stats", get(inside::stats))
        .route("/server_info", get(inside::server_info))
        .route("/init_dump", get(inside::init_dump))
        .route("/memory", get(inside::memory))
        .route("/runtime", get(inside::runtime))
        .merge(steer::routes())
        .with_state(shown)
        .merge(services)
        .layer(from_fn(local_names_only))
}

/// A page in the user's browser may resolve its own name to loopback and read this port; its `Host` tells it apart.
async fn local_names_only(request: Request, next: Next) -> Response {
    let named = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    // HTTP/2 has it in the target.
    let host = named.or_else(|| request.uri().authority().map(|host| host.as_str())).unwrap_or_default();
    let name = host
        .rsplit_once(':')
        .map_or(host, |(name, port)| if port.bytes().all(|byte| byte.is_ascii_digit()) { name } else { host });
    let name = name.trim_start_matches('[').trim_end_matches(']');
    if name == "localhost" || name.parse::<IpAddr>().is_ok() {
        return next.run(request).await;
    }
    (StatusCode::FORBIDDEN, "the admin port answers to localhost and addresses only\n").into_response()
}

async fn metrics() -> Response {
    match telemetry::render() {
        Some(text) => ([(header::CONTENT_TYPE, PROMETHEUS)], text).into_response(),
        None => (StatusCode::NOT_FOUND, "the application records metrics itself\n").into_response(),
    }
}

async fn traffic() -> Response {
    match telemetry::traffic() {
        Some(Value::Object(mut told)) => {
            told.insert("process".to_owned(), json!({ "id": std::process::id() }));
            Json(told).into_response()
        }
        _ => (StatusCode::NOT_FOUND, "the application records metrics itself\n").into_response(),
    }
}

async fn ready(State(shown): State<Shown>) -> (StatusCode, String) {
    let missing = missing(&shown);
    if *shown.ending.borrow() {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned());
    }
    if *shown.unwell.borrow() {
        return (StatusCode::SERVICE_UNAVAILABLE, "told to fail health checks\n".to_owned());
    }
    if missing.is_empty() {
        let is_stale = (shown.status)().pointer("/saved/stale") == Some(&Value::Bool(true));
        let text = if is_stale { "ready, with a saved configuration\n" } else { "ready\n" };
        return (StatusCode::OK, text.to_owned());
    }
    (StatusCode::SERVICE_UNAVAILABLE, format!("waiting for {}\n", missing.join(" and ")))
}

/// What it waits for.
fn missing(shown: &Shown) -> Vec<&'static str> {
    let has = [
        (shown.live.load().is_some(), "configuration"),
        (!shown.secure || shown.identity.load().is_some(), "certificate"),
    ];
    has.into_iter().filter_map(|(has, what)| (!has).then_some(what)).collect()
}

async fn config_dump(State(shown): State<Shown>, Query(asked): inside::Asked) -> Response {
    let snapshot = shown.live.load();
    let identity = shown.identity.load();
    let now = telemetry::rfc3339(shown.source.wall().duration_since(UNIX_EPOCH).unwrap_or_default());
    let mut dump = match snapshot.as_ref() {
        Some(snapshot) => (shown.dump)(&snapshot.config(), identity.as_deref(), &now),
        None => json!({ "configs": [] }),
    };
    if let Value::Object(fields) = &mut dump {
        fields.insert("control_plane".to_owned(), (shown.status)());
    }
    match inside::part(dump, &asked) {
        Ok(part) => Json(part).into_response(),
        Err(why) => (StatusCode::BAD_REQUEST, format!("{why}\n")).into_response(),
    }
}

async fn config(State(shown): State<Shown>) -> Json<Value> {
    let snapshot = shown.live.load();
    Json(json!(snapshot.as_ref().map(|snapshot| snapshot.config())))
}

async fn clusters(State(shown): State<Shown>) -> Json<Value> {
    let now = shown.source.now();
    let Some(snapshot) = shown.live.load() else { return Json(json!({ "clusters": [] })) };
    let clusters = snapshot.clusters().map(|cluster| {
        let endpoints = cluster.endpoints().iter().map(|endpoint| {
            json!({
                "address": endpoint.address().to_string(),
                "health": endpoint.config().health,
                "weight": endpoint.weight(),
                "mtls": endpoint.config().mtls,
                "workload": endpoint.config().workload.as_ref().map(|workload| &workload.name),
                "in_flight": endpoint.in_flight(),
                "ejected": endpoint.is_ejected(),
                "fails_health_check": endpoint.is_failing_checks(),
                "unreachable": endpoint.is_unreachable(now),
                "latency_ms": endpoint.latency(now).map(|latency| latency.as_secs_f64() * 1e3),
            })
        });
        json!({
            "name": cluster.name(),
            "failed": cluster.config().failed,
            "requests_in_flight": cluster.requests_in_flight(),
            "endpoints": endpoints.collect::<Vec<_>>(),
        })
    });
    Json(json!({ "clusters": clusters.collect::<Vec<_>>() }))
}

async fn certs(State(shown): State<Shown>) -> Json<Value> {
    let Some(identity) = shown.identity.load() else {
        return Json(json!({ "identity": null, "expected": shown.secure }));
    };
    let time = |time: std::time::SystemTime| telemetry::rfc3339(time.duration_since(UNIX_EPOCH).unwrap_or_default());
    Json(json!({
        "identity": identity.id().to_string(),
        "valid_from": identity.validity().map(|(from, _)| time(from)),
        "valid_until": identity.validity().map(|(_, until)| time(until)),
        "seconds_left": identity.remaining(shown.source.wall()).map(|left| left.as_secs()),
        "certificates_in_chain": identity.chain().len(),
        "roots": identity.roots().len(),
        "generation": shown.identity.generation(),
    }))
}
