//! What changes something: only by POST, and never for a page in a browser, which can send requests to this port although it
//! cannot read the answers.

use std::{fmt, sync::Arc};

use axum::{
    Router,
    extract::{Query, Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::post,
};
use mesh_core::switches::Feature;

use super::{Shown, inside::Asked};

/// Changes what the program logs, by a directive such as `mesh=debug`; the error is a sentence.
#[derive(Clone)]
pub(crate) struct LogLevels(pub(crate) Arc<Change>);

type Change = dyn Fn(&str) -> Result<(), String> + Send + Sync;

impl fmt::Debug for LogLevels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogLevels")
    }
}

pub(super) fn routes() -> Router<Shown> {
    Router::new()
        .route("/drain_listeners", post(drain))
        .route("/quitquitquit", post(drain))
        .route("/healthcheck/fail", post(fail))
        .route("/healthcheck/ok", post(ok))
        .route("/logging", post(logging))
        .route("/runtime_modify", post(switch))
        .layer(from_fn(no_browsers))
}

async fn no_browsers(request: Request, next: Next) -> Response {
    let says = |headers: &HeaderMap| headers.contains_key(header::ORIGIN) || headers.contains_key("sec-fetch-site");
    if says(request.headers()) {
        return (StatusCode::FORBIDDEN, "pages in a browser change nothing here\n").into_response();
    }
    next.run(request).await
}

/// As SIGTERM: servers take nothing new, finish what is under way, and return. The program ends as it then does.
async fn drain(State(shown): State<Shown>) -> &'static str {
    tracing::info!(target: "mesh::admin", "asked to drain");
    shown.stop.send_replace(true);
    "OK\n"
}

/// Says that this process is not well, so that callers leave it; it goes on serving.
async fn fail(State(shown): State<Shown>) -> &'static str {
    tracing::info!(target: "mesh::admin", "asked to fail health checks");
    shown.unwell.send_replace(true);
    "OK\n"
}

async fn ok(State(shown): State<Shown>) -> &'static str {
    shown.unwell.send_replace(false);
    "OK\n"
}

/// `?mirroring=off`: a feature is off in this process until it is on again. Source: Envoy `/runtime_modify`.
async fn switch(State(shown): State<Shown>, Query(asked): Asked) -> Response {
    let told = |(name, value): (&String, &String)| {
        let feature = name.parse::<Feature>()?;
        match value.as_str() {
            "off" | "false" => Ok((feature, true)),
            "on" | "true" => Ok((feature, false)),
            other => Err(format!("{name} may be on or off, not {other:?}")),
        }
    };
    let told: Result<Vec<_>, String> = asked.iter().map(told).collect();
    let done = told.and_then(|all| match all.is_empty() {
        true => Err("say ?mirroring=off, or another feature".to_owned()),
        false => all.into_iter().try_for_each(|(feature, is_off)| {
            tracing::warn!(target: "mesh::admin", %feature, is_off, "a feature was switched");
            shown.live.switch(feature, is_off).map_err(|error| error.to_string())
        }),
    });
    match done {
        Ok(()) => "OK\n".into_response(),
        Err(why) => (StatusCode::BAD_REQUEST, format!("{why}\n")).into_response(),
    }
}

/// `?level=debug` of everything, or `?mesh::xds=debug` of a target. Source: Envoy `/logging`.
async fn logging(State(shown): State<Shown>, Query(asked): Asked) -> Response {
    let directives: Vec<String> = asked
        .iter()
        .map(|(name, level)| if name == "level" { level.clone() } else { format!("{name}={level}") })
        .collect();
    let Some(LogLevels(change)) = &shown.levels else {
        let why = "the program has not said how its log levels are changed: Builder::on_log_level\n";
        return (StatusCode::NOT_IMPLEMENTED, why).into_response();
    };
    if directives.is_empty() {
        return (StatusCode::BAD_REQUEST, "say ?level=debug, or ?mesh::xds=debug\n").into_response();
    }
    match change(&directives.join(",")) {
        Ok(()) => "OK\n".into_response(),
        Err(why) => (StatusCode::BAD_REQUEST, format!("{why}\n")).into_response(),
    }
}
