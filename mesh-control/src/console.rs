//! The console: the mesh as a person watches it, in a browser on the same machine, without any other program.
//!
//! | request | answer |
//! |---|---|
//! | `GET /console/` | the page; `/` leads there |
//! | `GET /console/live` | Server-Sent Events: the mesh once a second, as [`Live`] |
//! | `GET /console/chart?host=&from=&to=` | rates and percentiles of the last quarter of an hour |
//! | `GET /console/traces?id=&service=&errors=&slower=&find=&limit=` | the last traces, those that are wanted |
//! | `GET /console/traces/{id}` | one of them |
//! | `GET /console/processes/{name}/{page}` | a page of a workload's admin port: `clusters`, `certs`, `fields`, `control_plane`, `config_dump` |
//! | `POST /console/yaml` | a JSON value as YAML |
//! | `GET /graph.json`, `/graph.dot`, `/graph.svg`, `/dotviz` | the service graph |
//! | OTLP `TraceService/Export` | takes spans in |
//!
//! It changes nothing by itself: what it applies goes through the API. Pages of a browser need the token of this run for that,
//! which only a page from here can have read; see [`writes_carry_the_token`].

use std::{convert::Infallible, sync::Arc};

use axum::{
    Json, Router,
    extract::{Path, Query, Request, State as Shared},
    http::{HeaderMap, Method, StatusCode, header},
    middleware::Next,
    response::{
        Html, IntoResponse, Redirect, Response,
        sse::{Event, KeepAlive, Sse},
    },
    routing::{get, post},
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::TraceServiceServer;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::watch;
use tokio_stream::{Stream, StreamExt, wrappers::WatchStream};

use crate::{
    api::{
        Refusal,
        observed::{Live, Running, Spans},
    },
    push::Push,
    registry::Registered,
    serve::Task,
    state::{State, now},
};

use self::{collect::Collector, history::EdgeKey, traces::Traces};

mod assets;
mod collect;
mod graph;
mod history;
mod traces;

/// What pages prove themselves with.
const TOKEN: &str = "x-mesh-token";
/// Pages of an admin port that are passed on.
const PAGES: [&str; 5] = ["clusters", "certs", "fields", "control_plane", "config_dump"];
/// The console of one control plane.
#[derive(Clone, Debug)]
pub(crate) struct Console {
    collector: Arc<Collector>,
    traces: Traces,
    live: watch::Receiver<Arc<str>>,
    token: Arc<str>,
    _look: Arc<Task>,
}

impl Console {
    /// Begins to look. Must be called within a tokio runtime; what it starts ends with the last clone.
    pub(crate) fn start(state: Arc<State>, push: Arc<Push>) -> Self {
        let collector = Arc::new(Collector::new(Arc::clone(&state)));
        let (tell, live) = watch::channel(Arc::from("{}"));
        let look = Arc::clone(&collector).run(move |collector| {
            let told = live_of(collector, &state, &push);
            tell.send_replace(serde_json::to_string(&told).unwrap_or_default().into());
        });
        let token = format!("{:032x}", rand::random::<u128>()).into();
        Self { collector, traces: Traces::default(), live, token, _look: Arc::new(Task::spawn(look)) }
    }

    /// What only pages from here know.
    pub(crate) fn token(&self) -> Arc<str> {
        Arc::clone(&self.token)
    }

    pub(crate) fn router(self) -> Router {
        let spans = tonic::service::Routes::new(TraceServiceServer::new(self.traces.clone())).prepare();
        Router::new()
            .route("/", get(|| async { Redirect::temporary("/console/") }))
            .route("/console", get(|| async { Redirect::temporary("/console/") }))
            .route("/console/", get(index))
            .route("/console/{asset}", get(assets::serve))
            .route("/console/live", get(live))
            .route("/console/chart", get(chart))
            .route("/console/traces", get(traces))
            .route("/console/traces/{id}", get(trace))
            .route("/console/processes/{name}/{page}", get(process))
            .route("/console/yaml", post(yaml))
            .route("/graph.json", get(graph_json))
            .route("/graph.dot", get(graph_dot))
            .route("/graph.svg", get(graph_svg))
            .route("/dotviz", get(graph_svg))
            .with_state(self)
            .merge(spans.into_axum_router().reset_fallback())
    }
}

fn live_of(collector: &Collector, state: &State, push: &Push) -> Live {
    {
        let edges = collector.edges();
        let running = |workload: &Arc<Registered>| Running {
            process: workload.admin.and_then(|admin| collector.process(admin)),
            workload: (**workload).clone(),
        };
        Live {
            at: now(),
            total: collector.now(|_| true),
            edges,
            workloads: state.workloads().iter().map(running).collect(),
            proxies: push.status(),
            left_out: collector.left_out(),
            version: *state.changes().borrow(),
        }
    }
}

/// Lets a browser write only on behalf of a page from here. Programs that are no browsers say neither header.
///
/// A page from elsewhere can make a browser send a request, but cannot read the page that the token is in.
pub(crate) async fn writes_carry_the_token(Shared(token): Shared<Arc<str>>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let is_browser = headers.contains_key(header::ORIGIN) || headers.contains_key("sec-fetch-site");
    let is_write = !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    let proves = |headers: &HeaderMap| headers.get(TOKEN).is_some_and(|given| given.as_bytes() == token.as_bytes());
    if is_browser && is_write && !proves(headers) {
        return Refusal::new(
            StatusCode::FORBIDDEN,
            "a page needs the console's token to change something; load it again",
        )
        .into_response();
    }
    next.run(request).await
}

async fn index(Shared(console): Shared<Console>) -> Response {
    let page = assets::INDEX.replace("{{token}}", &console.token);
    (assets::headers(), Html(page)).into_response()
}

async fn live(Shared(console): Shared<Console>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let told = WatchStream::new(console.live).map(|live| Ok(Event::default().data(&*live)));
    Sse::new(told).keep_alive(KeepAlive::default())
}

/// Which edges.
#[derive(Debug, Default, Deserialize)]
struct Wanted {
    /// The service asked for.
    host: Option<String>,
    /// The calling workload.
    from: Option<String>,
    /// The called workload.
    to: Option<String>,
}

impl Wanted {
    fn takes(&self, edge: &EdgeKey) -> bool {
        let is = |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|wanted| wanted == is);
        is(&self.host, &edge.host) && is(&self.from, &edge.from.workload) && is(&self.to, &edge.to.workload)
    }
}

async fn chart(Shared(console): Shared<Console>, Query(wanted): Query<Wanted>) -> impl IntoResponse {
    Json(console.collector.chart(|edge| wanted.takes(edge)))
}

async fn traces(Shared(console): Shared<Console>, Query(wanted): Query<traces::Wanted>) -> impl IntoResponse {
    Json(console.traces.list(&wanted))
}

async fn trace(Shared(console): Shared<Console>, Path(id): Path<String>) -> Result<impl IntoResponse, Refusal> {
    let spans = console.traces.get(&id);
    let spans = spans.ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, "that trace is not, or no longer, kept"))?;
    Ok(Json(Spans { spans }))
}

async fn process(
    Shared(console): Shared<Console>,
    Path((name, page)): Path<(String, String)>,
) -> Result<Response, Refusal> {
    let missing = |text: String| Refusal::new(StatusCode::NOT_FOUND, text);
    if !PAGES.contains(&&*page) {
        return Err(missing(format!("there is no page {page:?}; there are {}", PAGES.join(", "))));
    }
    let admin = console.collector.admin_of(&name);
    let admin = admin.ok_or_else(|| missing(format!("{name} is not known, or has no admin port on this machine")))?;
    let body = console.collector.get(admin, &format!("/{page}")).await;
    let body = body.map_err(|error| Refusal::new(StatusCode::BAD_GATEWAY, error))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

async fn yaml(Json(value): Json<Value>) -> Result<String, Refusal> {
    serde_saphyr::to_string(&value).map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, error.to_string()))
}

async fn graph_json(Shared(console): Shared<Console>) -> impl IntoResponse {
    Json(graph::Graph::of(&console.collector.edges()))
}

async fn graph_dot(Shared(console): Shared<Console>) -> impl IntoResponse {
    let dot = graph::Graph::of(&console.collector.edges()).dot();
    ([(header::CONTENT_TYPE, "text/vnd.graphviz; charset=utf-8")], dot)
}

async fn graph_svg(Shared(console): Shared<Console>) -> Result<impl IntoResponse, Refusal> {
    let svg = graph::Graph::of(&console.collector.edges()).svg();
    let svg = svg.map_err(|error| Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, error))?;
    Ok((assets::headers(), [(header::CONTENT_TYPE, "image/svg+xml")], svg))
}
