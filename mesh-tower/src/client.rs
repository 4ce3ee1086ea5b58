//! The mesh's clients, and the whole order of their layers: read [`stack`] first.
//!
//! [`HttpClient`] takes any `http::Request` and always answers with a response as far as the mesh is concerned: what it
//! refuses, or could not do, is the response Envoy would give, with [`ResponseFlags`] in its extensions. It fails only
//! for what the caller did: a body of its own that failed, a request that cannot be sent. [`GrpcClient`] is the same for
//! a generated client: it names the destination, and what the mesh refuses arrives as a gRPC status.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use http::{Uri, header, uri::Authority};
use http_body::Body as HttpBody;
use mesh_core::{request::is_grpc, retry::RetryBudget};
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    body::{Body, ResponseBody},
    error::{BoxError, Error, ErrorKind, ResponseFlags},
    layer::{
        Balance, BalanceLayer, FaultLayer, Faulty, Guarded, Peeked, Picked, Retry, RetryLayer, Route, RouteLayer,
        Stage, TelemetryLayer, Telling, Timed, Timeout, TimeoutLayer, Told,
    },
    live::Live,
    telemetry::Telemetry,
};

/// One request, from the application to the wire.
fn stack<L>(live: Arc<Live>, port: Option<u16>, telemetry: Telemetry, budget: Arc<RetryBudget>, pool: L) -> Stack<L> {
    let route = RouteLayer::live(live);
    let route = match port {
        Some(port) => route.on_port(port),
        None => route,
    };
    (
        // Which rule means it, and what that rule says: a plan, made once.
        route,
        // Whatever becomes of it below is told once, with one set of labels.
        TelemetryLayer::with(telemetry),
        // A fault asked for is injected before anything is timed, tried or blamed.
        FaultLayer::new(),
        // From here on time counts, up to the last byte of the answer.
        TimeoutLayer::new(),
        // Each try passes through what is below; the body is kept for the next.
        RetryLayer::with_budget(budget),
        // An endpoint is picked, within the cluster's limits, and learnt from.
        BalanceLayer::new(),
    )
        // A connection to that endpoint sends it.
        .layer(pool)
}

type Stack<L> = Route<Telling<Faulty<Timeout<Retry<Balance<L>>>>>>;

/// The body of a response, as the layers above a leaf with body `B` wrap it.
pub type ClientBody<B> = ResponseBody<Told<Timed<Peeked<Guarded<B>>>>>;

type Answer<B> = Pin<Box<dyn Future<Output = Result<http::Response<ClientBody<B>>, Error>> + Send>>;

/// An HTTP client of the mesh: a `tower::Service` of any `http::Request`, HTTP/1.1, HTTP/2 and gRPC alike.
///
/// Clones share everything and are cheap. Inside the mesh the URI's scheme is `http`: whether the wire is encrypted is
/// the mesh's business.
#[derive(Debug)]
pub struct HttpClient<L> {
    live: Arc<Live>,
    telemetry: Telemetry,
    budget: Arc<RetryBudget>,
    leaf: Arc<L>,
    stack: Stack<Arc<L>>,
}

impl<L> HttpClient<L> {
    /// Of the configuration in `live`, told in `telemetry`, sending through `leaf`.
    pub fn new(live: Arc<Live>, telemetry: Telemetry, leaf: L) -> Self {
        let (budget, leaf) = (Arc::new(RetryBudget::new()), Arc::new(leaf));
        let stack = stack(Arc::clone(&live), None, telemetry.clone(), Arc::clone(&budget), Arc::clone(&leaf));
        Self { live, telemetry, budget, leaf, stack }
    }

    /// The same client for requests that arrived on a gateway's listener declared with `port`.
    #[must_use]
    pub fn on_port(self, port: u16) -> Self {
        let Self { live, telemetry, budget, leaf, .. } = self;
        let stack = stack(Arc::clone(&live), Some(port), telemetry.clone(), Arc::clone(&budget), Arc::clone(&leaf));
        Self { live, telemetry, budget, leaf, stack }
    }

    /// A client of one gRPC service, for a generated client: `RatingsClient::new(http.grpc("ratings:9080")?)`.
    ///
    /// # Errors
    ///
    /// `authority` is not `host` or `host:port`.
    pub fn grpc(&self, authority: &str) -> Result<GrpcClient<L>, Error> {
        let parsed = Authority::try_from(authority).map_err(|error| Error::new(ErrorKind::Invalid, error))?;
        Ok(GrpcClient { http: self.clone(), authority: parsed })
    }
}

impl<L, B> HttpClient<L>
where
    L: Stage<Picked, Response = http::Response<B>> + 'static,
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    /// Sends a GET request.
    ///
    /// # Errors
    ///
    /// `uri` is not a URI. See also [`request`](Self::request).
    pub async fn get<U>(&self, uri: U) -> Result<http::Response<ClientBody<B>>, Error>
    where
        Uri: TryFrom<U>,
        <Uri as TryFrom<U>>::Error: Into<http::Error>,
    {
        let uri = Uri::try_from(uri).map_err(|error| Error::new(ErrorKind::Invalid, error.into()))?;
        let mut request = http::Request::new(Body::empty());
        *request.uri_mut() = uri;
        self.send(request).await
    }

    /// Sends a request.
    ///
    /// # Errors
    ///
    /// Only what the caller did: its body failed, or the request cannot be sent. What the mesh refuses or could not do
    /// is a response, see [`HttpClient`].
    pub fn request<R>(&self, request: http::Request<R>) -> Answer<B>
    where
        R: HttpBody + Send + 'static,
        R::Data: Buf + Send,
        R::Error: Into<BoxError>,
    {
        self.send(request.map(Body::new))
    }

    fn send(&self, request: http::Request<Body>) -> Answer<B> {
        let stack = self.stack.clone();
        Box::pin(async move {
            let is_grpc = is_grpc(request.headers());
            match stack.call(request).await {
                Ok(response) => Ok(response.map(|body| ResponseBody::there(body, is_grpc))),
                Err(error) => answer(error, is_grpc),
            }
        })
    }
}

/// The mesh's own answer to a request that none of its destinations answered.
fn answer<B>(error: Error, is_grpc: bool) -> Result<http::Response<ResponseBody<B>>, Error> {
    if matches!(error.kind(), ErrorKind::Body | ErrorKind::Invalid) {
        return Err(error);
    }
    tracing::debug!(%error, flags = %error.flags(), details = error.details(), "no destination answered");
    let response = if is_grpc { error.to_grpc_response() } else { error.to_response() };
    let mut response = response.map(ResponseBody::here);
    response.extensions_mut().insert(ResponseFlags { flags: error.flags(), details: error.details() });
    Ok(response)
}

impl<L> Clone for HttpClient<L> {
    fn clone(&self) -> Self {
        Self {
            live: Arc::clone(&self.live),
            telemetry: self.telemetry.clone(),
            budget: Arc::clone(&self.budget),
            leaf: Arc::clone(&self.leaf),
            stack: self.stack.clone(),
        }
    }
}

impl<L, B, R> Service<http::Request<R>> for HttpClient<L>
where
    L: Stage<Picked, Response = http::Response<B>> + 'static,
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
    R: HttpBody + Send + 'static,
    R::Data: Buf + Send,
    R::Error: Into<BoxError>,
{
    type Response = http::Response<ClientBody<B>>;
    type Error = Error;
    type Future = Answer<B>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<R>) -> Answer<B> {
        self.request(request)
    }
}

/// A client of one gRPC service: what a generated client takes as its channel.
#[derive(Debug)]
pub struct GrpcClient<L> {
    http: HttpClient<L>,
    authority: Authority,
}

impl<L> Clone for GrpcClient<L> {
    fn clone(&self) -> Self {
        Self { http: self.http.clone(), authority: self.authority.clone() }
    }
}

impl<L, B, R> Service<http::Request<R>> for GrpcClient<L>
where
    L: Stage<Picked, Response = http::Response<B>> + 'static,
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
    R: HttpBody + Send + 'static,
    R::Data: Buf + Send,
    R::Error: Into<BoxError>,
{
    type Response = http::Response<ClientBody<B>>;
    type Error = Error;
    type Future = Answer<B>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    /// A generated client names the method and nothing else: here it gets its destination.
    fn call(&mut self, request: http::Request<R>) -> Answer<B> {
        let mut request = request.map(Body::new);
        let path = request.uri().path_and_query().cloned();
        let mut uri = http::uri::Parts::default();
        uri.scheme = Some(http::uri::Scheme::HTTP);
        uri.authority = Some(self.authority.clone());
        uri.path_and_query = path.or_else(|| Some(http::uri::PathAndQuery::from_static("/")));
        match Uri::from_parts(uri) {
            Ok(uri) => *request.uri_mut() = uri,
            Err(error) => return Box::pin(std::future::ready(Err(Error::new(ErrorKind::Invalid, error)))),
        }
        *request.version_mut() = http::Version::HTTP_2;
        let grpc = header::HeaderValue::from_static("application/grpc");
        request.headers_mut().entry(header::CONTENT_TYPE).or_insert(grpc);
        self.http.send(request)
    }
}
