//! Talking to the control plane: one JSON request, one answer, and a sentence when nobody answers.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use mesh_control::api::Problem;
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::timeout;

use super::{BAD_INPUT, FAILURE, Failure, UNREACHABLE, USAGE};

/// A control plane on the loopback answers in milliseconds; one that takes this long is stuck.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where the control plane is, and the namespace that is meant.
#[derive(Debug)]
pub(super) struct Server {
    address: String,
    namespace: String,
}

impl Server {
    pub(super) fn new(address: &str) -> Self {
        let address = address.strip_prefix("http://").unwrap_or(address).trim_end_matches('/');
        Self { address: address.to_owned(), namespace: "default".to_owned() }
    }

    pub(super) fn in_namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.namespace);
        self
    }

    /// HOST:PORT.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Where names without one are.
    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }

    pub(super) async fn get<A: DeserializeOwned>(&self, path: &str) -> Result<A, Failure> {
        self.call(Method::GET, path, Bytes::new()).await
    }

    pub(super) async fn post<Q: Serialize, A: DeserializeOwned>(&self, path: &str, body: &Q) -> Result<A, Failure> {
        let body = serde_json::to_vec(body).map_err(|error| Failure::new(FAILURE, error.to_string()))?;
        self.call(Method::POST, path, body.into()).await
    }

    /// An answer as it is.
    pub(super) async fn text(&self, path: &str) -> Result<String, Failure> {
        let body = self.exchange(Method::GET, path, Bytes::new()).await?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// An answer that goes on.
    pub(super) async fn stream(&self, path: &str) -> Result<Incoming, Failure> {
        let response = timeout(PATIENCE, self.send(Method::GET, path, Bytes::new()))
            .await
            .map_err(|_| self.unreachable(&format!("no answer within {} s", PATIENCE.as_secs())))??;
        match response.status() {
            StatusCode::OK => Ok(response.into_body()),
            status => Err(Failure::new(FAILURE, format!("{} answers {status} at {path}", self.address))),
        }
    }

    /// The address of a page.
    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    async fn call<A: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> Result<A, Failure> {
        let body = self.exchange(method, path, body).await?;
        serde_json::from_slice(&body).map_err(|error| {
            Failure::new(FAILURE, format!("{} does not answer like a mesh control plane: {error}", self.address))
        })
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>, Failure> {
        let request = Request::builder()
            .method(method)
            .uri(self.url(path))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| Failure::new(USAGE, format!("--server {:?} is not HOST:PORT: {error}", self.address)))?;
        let client = Client::builder(TokioExecutor::new()).build_http();
        client.request(request).await.map_err(|error| self.unreachable(&last_cause(&error)))
    }

    async fn exchange(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, Failure> {
        let exchange = async {
            let response = self.send(method, path, body).await?;
            let status = response.status();
            let body = response.into_body().collect().await.map_err(|error| self.unreachable(&error.to_string()))?;
            Ok((status, body.to_bytes()))
        };
        let (status, body) = match timeout(PATIENCE, exchange).await {
            Ok(answer) => answer?,
            Err(_) => return Err(self.unreachable(&format!("no answer within {} s", PATIENCE.as_secs()))),
        };
        if status.is_success() {
            return Ok(body);
        }
        let problem: Problem = serde_json::from_slice(&body).map_err(|_| {
            Failure::new(FAILURE, format!("{} answers {status}, not like a mesh control plane", self.address))
        })?;
        let code = if status == StatusCode::UNPROCESSABLE_ENTITY { BAD_INPUT } else { FAILURE };
        Err(Failure { code, message: problem.error, diagnostics: problem.diagnostics })
    }

    fn unreachable(&self, reason: &str) -> Failure {
        let message = format!(
            "no control plane answers at {} ({reason})\n  start one with `meshctl dev`, or name another with --server \
             HOST:PORT or MESHCTL_SERVER",
            self.address
        );
        Failure::new(UNREACHABLE, message)
    }
}

/// The last cause says what the system said; those above it only that something failed.
pub(super) fn last_cause(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

/// Text in a query: everything but what a DNS name is made of is written in hexadecimal.
pub(super) fn escape(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}
