//! HTTP calls as a browser makes them, in plaintext.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::{Duration, Instant};

use axum::body::Body;
use http::{Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

/// One answer, read to its end.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: String,
    pub(crate) took: Duration,
}

impl Answer {
    /// The body as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or(Value::Null)
    }
}

/// A client with connections of its own.
pub(crate) fn client() -> Client<HttpConnector, Body> {
    Client::builder(TokioExecutor::new()).build_http()
}

/// One GET, with an answer that says if it failed: status 599, the reason as body.
pub(crate) async fn get(client: &Client<HttpConnector, Body>, uri: &str, headers: &[(&str, &str)]) -> Answer {
    let start = Instant::now();
    let mut request = Request::get(uri);
    for (name, value) in headers.iter().filter(|(_, value)| !value.is_empty()) {
        request = request.header(*name, *value);
    }
    let failed =
        |error: String| Answer { status: StatusCode::from_u16(599).unwrap(), body: error, took: start.elapsed() };
    match client.request(request.body(Body::empty()).unwrap()).await {
        Ok(answer) => {
            let status = answer.status();
            match axum::body::to_bytes(Body::new(answer.into_body()), usize::MAX).await {
                Ok(body) => Answer { status, body: String::from_utf8_lossy(&body).into_owned(), took: start.elapsed() },
                Err(error) => failed(error.to_string()),
            }
        }
        Err(error) => failed(format!("{error:?}")),
    }
}
