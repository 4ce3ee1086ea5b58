//! A request, the same through Envoy and through ours, and what came back.

use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_tower::HttpClient;
use tokio::net::TcpStream;

/// A request to be sent.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ask {
    /// HTTP/1.1 or HTTP/2.
    pub(crate) version: Version,
    /// Its method.
    pub(crate) method: Method,
    /// What `Host` or `:authority` says.
    pub(crate) authority: String,
    /// Path and query.
    pub(crate) path: String,
    /// In order, names in lower case; no `host`.
    pub(crate) headers: Vec<(String, String)>,
    /// Its body.
    pub(crate) body: Bytes,
}

impl Ask {
    /// A GET over HTTP/1.1.
    pub(crate) fn get(authority: &str, path: &str) -> Self {
        Self {
            version: Version::HTTP_11,
            method: Method::GET,
            authority: authority.to_owned(),
            path: path.to_owned(),
            headers: Vec::new(),
            body: Bytes::new(),
        }
    }

    /// A gRPC call, over HTTP/2.
    pub(crate) fn grpc(authority: &str, path: &str) -> Self {
        Self { version: Version::HTTP_2, method: Method::POST, ..Self::get(authority, path) }
            .with("content-type", "application/grpc")
            .with("te", "trailers")
    }

    /// With another header.
    #[must_use]
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Of what is sent on a connection: to nothing but a path over HTTP/1.1.
    fn request(&self, absolute: bool) -> Result<Request<Full<Bytes>>, String> {
        let uri = if absolute { format!("http://{}{}", self.authority, self.path) } else { self.path.clone() };
        let mut builder = Request::builder().method(self.method.clone()).uri(uri).version(self.version);
        if !absolute {
            builder = builder.header(http::header::HOST, &self.authority);
        }
        for (name, value) in &self.headers {
            builder = builder.header(
                HeaderName::from_bytes(name.as_bytes()).map_err(|error| error.to_string())?,
                HeaderValue::from_bytes(value.as_bytes()).map_err(|error| error.to_string())?,
            );
        }
        builder.body(Full::new(self.body.clone())).map_err(|error| error.to_string())
    }
}

impl fmt::Display for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} http://{}{} {:?}", self.method, self.authority, self.path, self.version)?;
        for (name, value) in &self.headers {
            write!(f, "\n    {name}: {value:?}")?;
        }
        if !self.body.is_empty() {
            write!(f, "\n    with {} bytes of body", self.body.len())?;
        }
        Ok(())
    }
}

/// What came back, whole.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer {
    /// The status.
    pub(crate) status: StatusCode,
    /// The headers.
    pub(crate) headers: HeaderMap,
    /// The body.
    pub(crate) body: Bytes,
    /// What followed it.
    pub(crate) trailers: HeaderMap,
}

/// One of the two sides.
#[derive(Clone, Debug)]
pub(crate) enum Caller {
    /// Through Envoy.
    Envoy(Arc<Downstream>),
    /// Through the mesh's client, with the routes of a port.
    Ours(HttpClient),
}

impl Caller {
    /// Sends a request and reads the answer; an error says why there is none.
    pub(crate) async fn ask(&self, ask: &Ask) -> Result<Answer, String> {
        let mut answer = self.ask_once(ask).await;
        if let Self::Envoy(_) = self {
            // Envoy closes a connection on which it answered before the request was all there: not before it is asked
            // again is that its answer.
            for _ in 0..2 {
                if answer.is_err() {
                    answer = self.ask_once(ask).await;
                }
            }
        }
        answer
    }

    /// The same, sent to Envoy once whatever comes back.
    pub(crate) async fn ask_once(&self, ask: &Ask) -> Result<Answer, String> {
        match self {
            Self::Envoy(downstream) => downstream.send(ask).await,
            Self::Ours(client) => {
                let answer = client.request(ask.request(true)?).await.map_err(|error| error.to_string())?;
                whole(answer).await
            }
        }
    }
}

/// Connections to one listener of Envoy.
#[derive(Debug)]
pub(crate) struct Downstream {
    address: SocketAddr,
    http1: Mutex<Vec<http1::SendRequest<Full<Bytes>>>>,
    http2: tokio::sync::Mutex<Option<http2::SendRequest<Full<Bytes>>>>,
}

impl Downstream {
    pub(crate) fn to(address: SocketAddr) -> Self {
        Self { address, http1: Mutex::default(), http2: tokio::sync::Mutex::default() }
    }

    async fn send(&self, ask: &Ask) -> Result<Answer, String> {
        if ask.version == Version::HTTP_2 {
            let request = ask.request(true)?;
            let answer = self.http2().await?.send_request(request).await.map_err(|error| error.to_string())?;
            return whole(answer).await;
        }
        let request = ask.request(false)?;
        let mut sender = self.http1().await?;
        let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let answer = whole(answer).await?;
        self.http1.lock().unwrap().push(sender);
        Ok(answer)
    }

    async fn http1(&self) -> Result<http1::SendRequest<Full<Bytes>>, String> {
        loop {
            let kept = self.http1.lock().unwrap().pop();
            let Some(mut sender) = kept else { break };
            if sender.ready().await.is_ok() {
                return Ok(sender);
            }
        }
        let (sender, connection) = http1::handshake(self.connect().await?).await.map_err(|error| error.to_string())?;
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn http2(&self) -> Result<http2::SendRequest<Full<Bytes>>, String> {
        let mut kept = self.http2.lock().await;
        if let Some(sender) = kept.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let (sender, connection) =
            http2::handshake(TokioExecutor::new(), self.connect().await?).await.map_err(|error| error.to_string())?;
        tokio::spawn(connection);
        *kept = Some(sender.clone());
        Ok(sender)
    }

    async fn connect(&self) -> Result<TokioIo<TcpStream>, String> {
        let stream = TcpStream::connect(self.address).await.map_err(|error| error.to_string())?;
        let _ = stream.set_nodelay(true);
        Ok(TokioIo::new(stream))
    }
}

async fn whole<B>(answer: http::Response<B>) -> Result<Answer, String>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: fmt::Display,
{
    let (parts, body) = answer.into_parts();
    let body = body.collect().await.map_err(|error| format!("{} and then: {error}", parts.status))?;
    let trailers = body.trailers().cloned().unwrap_or_default();
    Ok(Answer { status: parts.status, headers: parts.headers, body: body.to_bytes(), trailers })
}
