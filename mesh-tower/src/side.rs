//! Calls a server makes before it lets a request in: to an authorization service, a rate limit service, an issuer's keys.
//!
//! They go to a cluster by its name, as the filter that asks was configured, over the same pool and with the same mutual TLS,
//! balancing and limits as any other request of this process; no route takes part. Each is sent once, within a limit of time
//! and of size, and what becomes of the request being served when it fails is the asker's to decide.

use std::{fmt, sync::Arc, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use http_body_util::{BodyExt, Full, Limited};
use mesh_core::{outcome::grpc_status, plan::RoutePolicy};
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    error::BoxError,
    layer::{BalanceLayer, Fixed, RetryLayer, TimeoutLayer},
    live::Live,
    pool::Pool,
    source::Source,
};

/// The most that is read of an answer to a gRPC call.
const MESSAGE: usize = 1 << 20;

/// Makes calls to clusters by name; clones share the pool.
#[derive(Clone, Debug)]
pub(crate) struct SideCalls {
    live: Arc<Live>,
    pool: Arc<Pool>,
    source: Source,
}

/// Why a call brought nothing.
#[derive(Debug)]
pub(crate) enum SideError {
    /// There is no such cluster.
    NoCluster,
    /// It could not be reached, or answered nothing in time.
    Unreachable(String),
    /// It answered more than is read.
    TooLarge,
    /// It answered with this gRPC status and message.
    Status(u32, String),
}

impl fmt::Display for SideError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCluster => f.write_str("its cluster is not known"),
            Self::Unreachable(why) => write!(f, "it could not be asked: {why}"),
            Self::TooLarge => f.write_str("its answer is too large"),
            Self::Status(code, message) => write!(f, "it answered with gRPC status {code}: {message}"),
        }
    }
}

impl SideCalls {
    pub(crate) fn new(live: Arc<Live>, pool: Arc<Pool>, source: Source) -> Self {
        Self { live, pool, source }
    }

    /// One HTTP request; what comes back is an answer whatever its status, its body at most `most` bytes long.
    pub(crate) async fn http(
        &self,
        cluster: &str,
        request: Request<Bytes>,
        timeout: Duration,
        most: usize,
    ) -> Result<Response<Bytes>, SideError> {
        let (answer, _) = self.send(cluster, request, timeout, most).await?;
        Ok(answer)
    }

    /// One unary gRPC call: its answer's message.
    pub(crate) async fn grpc(
        &self,
        cluster: &str,
        authority: &str,
        path: &str,
        message: &[u8],
        timeout: Duration,
    ) -> Result<Bytes, SideError> {
        let request = grpc_request(authority, path, message)?;
        let (answer, trailers) = self.send(cluster, request, timeout, MESSAGE).await?;
        grpc_message(answer.headers(), trailers.as_ref(), answer.body())
    }

    async fn send(
        &self,
        cluster: &str,
        request: Request<Bytes>,
        timeout: Duration,
        most: usize,
    ) -> Result<(Response<Bytes>, Option<HeaderMap>), SideError> {
        let cluster = self.live.load().and_then(|snapshot| snapshot.cluster(cluster).cloned());
        let policy = RoutePolicy { timeout: Some(timeout), ..RoutePolicy::default() };
        let mut stack = (
            Fixed::new(policy).cluster(cluster.ok_or(SideError::NoCluster)?),
            TimeoutLayer::new(),
            RetryLayer::new().source(self.source.clone()),
            BalanceLayer::new().source(self.source.clone()),
        )
            .layer(Arc::clone(&self.pool));
        let asked = async {
            let answer =
                stack.call(request.map(Full::new)).await.map_err(|it| SideError::Unreachable(it.to_string()))?;
            let (parts, body) = answer.into_parts();
            let (body, trailers) = collect(body, most).await?;
            Ok((Response::from_parts(parts, body), trailers))
        };
        // The stack's own limit is over when the head is there; this one is of all of it.
        match tokio::time::timeout(timeout, asked).await {
            Ok(answered) => answered,
            Err(_) => Err(SideError::Unreachable(format!("no answer within {timeout:?}"))),
        }
    }
}

/// A unary gRPC call, as a request.
pub(crate) fn grpc_request(authority: &str, path: &str, message: &[u8]) -> Result<Request<Bytes>, SideError> {
    let mut body = BytesMut::with_capacity(message.len() + 5);
    body.put_u8(0);
    body.put_u32(u32::try_from(message.len()).map_err(|_| SideError::TooLarge)?);
    body.put_slice(message);
    Request::builder()
        .method(Method::POST)
        .uri(format!("http://{authority}{path}"))
        .header(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"))
        .header(header::TE, HeaderValue::from_static("trailers"))
        .body(body.freeze())
        .map_err(|error| SideError::Unreachable(error.to_string()))
}

/// The message of its answer.
fn grpc_message(headers: &HeaderMap, trailers: Option<&HeaderMap>, body: &Bytes) -> Result<Bytes, SideError> {
    match trailers.and_then(grpc_status).or_else(|| grpc_status(headers)) {
        Some(0) => {}
        Some(code) => {
            let message = trailers.unwrap_or(headers).get("grpc-message");
            let message = message.and_then(|message| message.to_str().ok()).unwrap_or_default();
            return Err(SideError::Status(code, message.to_owned()));
        }
        None => return Err(SideError::Unreachable("answered without a status".to_owned())),
    }
    let length = body.get(1..5).and_then(|length| length.try_into().ok()).map(u32::from_be_bytes);
    match (body.first(), length) {
        (Some(0), Some(length)) if body.len() == 5 + length as usize => Ok(body.slice(5..)),
        _ => Err(SideError::Unreachable("answered something that is no message".to_owned())),
    }
}

/// Reads the answer to such a call, within a limit of size.
pub(crate) async fn grpc_answer<B>(answer: Response<B>) -> Result<Bytes, SideError>
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>>,
{
    let (parts, body) = answer.into_parts();
    let (body, trailers) = collect(body, MESSAGE).await?;
    grpc_message(&parts.headers, trailers.as_ref(), &body)
}

async fn collect<B>(body: B, most: usize) -> Result<(Bytes, Option<HeaderMap>), SideError>
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>>,
{
    let body = Limited::new(body, most).collect().await.map_err(|error| {
        match error.downcast_ref::<http_body_util::LengthLimitError>() {
            Some(_) => SideError::TooLarge,
            None => SideError::Unreachable(error.to_string()),
        }
    })?;
    let trailers = body.trailers().cloned();
    Ok((body.to_bytes(), trailers))
}
