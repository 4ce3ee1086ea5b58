//! Explaining a made-up request: the configuration a workload has, compiled and asked as the workload itself would.

use axum::http::{self, HeaderName, HeaderValue, Method, StatusCode, Uri};
use mesh_core::{config::Config, request::RequestView, rng::RequestRng, snapshot::Snapshot};

use super::{ExplainRequest, Explained, Refusal};
use crate::{
    compile::{NodeInfo, compile},
    push::{Push, node_info},
    state::State,
};

pub(super) fn explain(state: &State, push: &Push, request: &ExplainRequest) -> Result<Explained, Refusal> {
    let parts = parts(request).map_err(|message| Refusal::new(StatusCode::BAD_REQUEST, message))?;
    let node = match &request.from {
        Some(word) => find(state, push, word)?,
        None => NodeInfo { namespace: "default".to_owned(), name: "anybody".to_owned(), ..NodeInfo::default() },
    };
    let config = compile(&state.world().1, &node);
    let snapshot = Snapshot::compile(&config, None)
        .map_err(|error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    let port = node.gateway.then(|| gateway_port(&parts.uri, &config));
    let explanation = snapshot.explain(&RequestView::of(&parts, port), &mut RequestRng::new(0, 0));
    let text = explanation.to_string();
    let explanation = serde_json::to_value(&explanation)
        .map_err(|error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(Explained { from: format!("{}.{}", node.name, node.namespace), text, explanation })
}

fn parts(request: &ExplainRequest) -> Result<http::request::Parts, String> {
    let method: Method = request.method.parse().map_err(|_| format!("{:?} is not an HTTP method", request.method))?;
    let uri: Uri = request.url.parse().map_err(|error| format!("{:?} is not a URL: {error}", request.url))?;
    if uri.scheme().is_none() || uri.host().is_none_or(str::is_empty) {
        return Err(format!("{:?} needs a scheme and a host, as in http://reviews:9080/reviews/0", request.url));
    }
    let (mut parts, ()) = http::Request::new(()).into_parts();
    parts.method = method;
    parts.uri = uri;
    for (name, value) in &request.headers {
        let name: HeaderName = name.parse().map_err(|_| format!("{name:?} is not a header name"))?;
        let value = HeaderValue::from_str(value).map_err(|_| format!("the value of header {name} cannot be sent"))?;
        parts.headers.append(name, value);
    }
    Ok(parts)
}

/// A gateway routes by the port its listener was declared with. The URL may name that, or the one it is mapped to, which
/// only the gateway's process knows; when there is but one listener, either means that.
fn gateway_port(uri: &Uri, config: &Config) -> u16 {
    let default = if uri.scheme_str() == Some("https") { 443 } else { 80 };
    let named = uri.port_u16().unwrap_or(default);
    match config.outbound.keys().next() {
        Some(only) if config.outbound.len() == 1 => *only,
        _ => named,
    }
}

/// A connected workload, else one that was there a moment ago, else one that a `Deployment` announces.
pub(super) fn find(state: &State, push: &Push, word: &str) -> Result<NodeInfo, Refusal> {
    if let Some(node) = push.find(word) {
        return Ok(node);
    }
    let workloads = state.workloads();
    if let Some(workload) = workloads.iter().find(|workload| {
        let full = || format!("{}.{}", workload.name, workload.namespace);
        workload.name == word || workload.workload == word || full() == word
    }) {
        return Ok(node_info(workload));
    }
    if let Some(node) = state.world().1.announced(word) {
        return Ok(node);
    }
    let known = push.names().into_iter().collect::<Vec<_>>().join(", ");
    let known = if known.is_empty() { "none is connected".to_owned() } else { format!("connected are {known}") };
    Err(Refusal::new(StatusCode::NOT_FOUND, format!("no workload is called {word:?}; {known}")))
}
