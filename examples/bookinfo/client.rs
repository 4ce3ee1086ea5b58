//! What the services ask of an HTTP client: send a request, read JSON. Any Tower service over HTTP requests will do.

use std::time::Duration;

use axum::BoxError;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::{Request, Response, StatusCode};
use serde_json::Value;
use tower::util::BoxCloneSyncService;
use tower::{Service, ServiceExt};

/// The longest answer read from a neighbour, in bytes.
const LONGEST_ANSWER: usize = 1 << 20;

/// A cheap handle on the client that a service was given.
#[derive(Clone)]
pub(crate) struct HttpClient(BoxCloneSyncService<Request<Body>, Response<Body>, BoxError>);

impl HttpClient {
    /// Wraps any Tower service over HTTP requests.
    pub(crate) fn new<S, B>(service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<B>> + Clone + Send + Sync + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send,
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        Self(BoxCloneSyncService::new(service.map_response(|answer| answer.map(Body::new)).map_err(Into::into)))
    }

    /// Sends `request` and reads the whole JSON answer, both within `timeout`.
    pub(crate) async fn json(
        &self,
        request: Request<Body>,
        timeout: Duration,
    ) -> Result<(StatusCode, Value), BoxError> {
        let answer = async {
            let (head, body) = self.0.clone().oneshot(request).await?.into_parts();
            let body = axum::body::to_bytes(body, LONGEST_ANSWER).await?;
            // The body of a failure is often no JSON, and the status is what then counts.
            let value = match serde_json::from_slice(&body) {
                Ok(value) => value,
                Err(error) if head.status.is_success() => return Err(error.into()),
                Err(_) => Value::Null,
            };
            Ok((head.status, value))
        };
        tokio::time::timeout(timeout, answer).await?
    }
}
