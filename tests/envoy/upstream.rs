//! What both sides send to: an HTTP/1.1 and HTTP/2 server that a closure answers for, which sees exactly what arrived.

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, task::JoinHandle};

/// A request as it arrived.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Arrived {
    /// The name of the upstream it arrived at.
    pub(crate) upstream: String,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub(crate) version: String,
    /// Its method.
    pub(crate) method: String,
    /// Path and query.
    pub(crate) path: String,
    /// `:authority` or `Host`.
    pub(crate) authority: String,
    /// In the order of their names, values in the order they came; `host` is the authority.
    pub(crate) headers: Vec<(String, String)>,
    /// Its body, as text.
    pub(crate) body: String,
}

impl Arrived {
    /// The values of a header.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.headers.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// What an upstream answers with; may fail, which resets the stream or connection.
pub(crate) type UpstreamBody = UnsyncBoxBody<Bytes, std::io::Error>;

type Answering = Pin<Box<dyn Future<Output = Result<Response<UpstreamBody>, Failing>> + Send>>;

/// How an upstream fails to answer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Failing {
    /// It closes the connection; over HTTP/2 it resets the stream with `INTERNAL_ERROR`.
    Closed,
    /// Over HTTP/2 it resets the stream for this reason.
    Reset(h2::Reason),
}

/// What hyper is told: it resets the stream for the reason among the sources.
#[derive(Debug)]
struct Failed(Option<h2::Error>);

impl Failed {
    fn of(failing: Failing) -> Self {
        match failing {
            Failing::Closed => Self(None),
            Failing::Reset(reason) => Self(Some(h2::Error::from(reason))),
        }
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no answer")
    }
}

impl std::error::Error for Failed {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.as_ref().map(|error| error as _)
    }
}

/// A server; it ends when dropped, with its connections.
#[derive(Debug)]
pub(crate) struct Upstream {
    name: String,
    address: SocketAddr,
    requests: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
    connections: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl Upstream {
    /// One that answers by `answer`; `None` closes the connection without an answer.
    pub(crate) async fn start<F, R>(name: &str, answer: F) -> Self
    where
        F: Fn(Arrived) -> R + Send + Sync + 'static,
        R: Future<Output = Option<Response<UpstreamBody>>> + Send + 'static,
    {
        Self::failing(name, move |arrived| {
            let answer = answer(arrived);
            async move { answer.await.ok_or(Failing::Closed) }
        })
        .await
    }

    /// One that answers by `answer`, or fails as it says.
    pub(crate) async fn failing<F, R>(name: &str, answer: F) -> Self
    where
        F: Fn(Arrived) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Response<UpstreamBody>, Failing>> + Send + 'static,
    {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(AtomicUsize::new(0));
        let connections: Arc<Mutex<Vec<JoinHandle<()>>>> = Arc::default();
        let answer = Arc::new(move |arrived| -> Answering { Box::pin(answer(arrived)) });
        let accepting = tokio::spawn({
            let (name, requests, connections) = (name.to_owned(), Arc::clone(&requests), Arc::clone(&connections));
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let _ = stream.set_nodelay(true);
                    let (name, requests, answer) = (name.clone(), Arc::clone(&requests), Arc::clone(&answer));
                    let service = service_fn(move |request| {
                        requests.fetch_add(1, Ordering::Relaxed);
                        let (name, answer) = (name.clone(), Arc::clone(&answer));
                        async move { answer(arrived(name, request).await).await.map_err(Failed::of) }
                    });
                    let connection = tokio::spawn(async move {
                        let builder = auto::Builder::new(TokioExecutor::new());
                        let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                    });
                    let mut connections = connections.lock().unwrap();
                    connections.retain(|connection| !connection.is_finished());
                    connections.push(connection);
                }
            }
        });
        Self { name: name.to_owned(), address, requests, accepting, connections }
    }

    /// One that answers every request with what arrived, as JSON, among headers that routes can change. To gRPC it answers
    /// the same as a message, with trailers. A request says by `x-answer` with which status.
    pub(crate) async fn echo(name: &str) -> Self {
        Self::start(name, |arrived| async move { Some(echo(&arrived)) }).await
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many requests arrived.
    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.accepting.abort();
        self.connections.lock().unwrap().iter().for_each(JoinHandle::abort);
    }
}

async fn arrived(upstream: String, request: Request<Incoming>) -> Arrived {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let host = parts.headers.get(http::header::HOST).map(text);
    let mut headers: Vec<(String, String)> = parts
        .headers
        .iter()
        .filter(|(name, _)| *name != http::header::HOST)
        .map(|(name, value)| (name.as_str().to_owned(), text(value)))
        .collect();
    headers.sort_by(|(a, _), (b, _)| a.cmp(b));
    Arrived {
        upstream,
        version: format!("{:?}", parts.version),
        method: parts.method.to_string(),
        path: parts.uri.path_and_query().map_or_else(String::new, ToString::to_string),
        authority: parts.uri.authority().map(ToString::to_string).or(host).unwrap_or_default(),
        headers,
        body: String::from_utf8_lossy(&body).into_owned(),
    }
}

/// What [`Upstream::echo`] answers.
pub(crate) fn echo(arrived: &Arrived) -> Response<UpstreamBody> {
    let mut json = Bytes::from(serde_json::to_vec(arrived).unwrap());
    if arrived.method == "HEAD" {
        // Over HTTP/2 nobody takes it off for us.
        json.clear();
    }
    let status = arrived.all("x-answer").next().and_then(|status| status.parse().ok()).unwrap_or(200);
    let is_grpc = arrived.all("content-type").any(|value| value.starts_with("application/grpc"));
    let mut response = if is_grpc {
        let trailers =
            HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]);
        let response = answer(status, &[("content-type", "application/grpc")], Bytes::new());
        response.map(|_| frames([Frame::data(message(&json)), Frame::trailers(trailers)]))
    } else {
        answer(status, &[("content-type", "application/json")], json)
    };
    let headers = response.headers_mut();
    for (name, value) in [("x-up", "one"), ("x-up", "two"), ("x-kept", "kept"), ("x-empty", "")] {
        headers.append(name, HeaderValue::from_static(value));
    }
    headers.insert("x-upstream", HeaderValue::from_str(&arrived.upstream).unwrap());
    response
}

/// A gRPC message.
pub(crate) fn message(message: &[u8]) -> Bytes {
    let mut framed = vec![0];
    framed.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    framed.extend(message);
    framed.into()
}

/// An answer in one piece.
pub(crate) fn answer(status: u16, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Response<UpstreamBody> {
    let mut builder = Response::builder().status(status);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    let body = body.into();
    let full = http_body_util::Full::new(body).map_err(|never: Infallible| match never {});
    builder.body(full.boxed_unsync()).unwrap()
}

/// A body of these frames.
pub(crate) fn frames(frames: impl IntoIterator<Item = Frame<Bytes>>) -> UpstreamBody {
    let frames: Vec<_> = frames.into_iter().map(Ok).collect();
    StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync()
}
