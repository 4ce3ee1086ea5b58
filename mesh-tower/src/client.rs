//! The mesh's clients, and the whole order of their layers: read [`stack`] first.
//!
//! [`HttpClient`] takes any `http::Request` and always answers with a response as far as the mesh is concerned: what it
//! refuses, or could not do, is the response Envoy would give, with [`ResponseFlags`] and [`ErrorKind`] in its extensions. It fails only
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
use mesh_core::{rate_limit::LimitCodec, request::is_grpc};
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    body::{Body, ResponseBody},
    dial::{self, Dialled},
    error::{BoxError, Error, ErrorKind, ResponseFlags},
    layer::{
        Balance, BalanceLayer, FaultLayer, Faulty, MirrorLayer, Mirrored, Picked, RateLimitLayer, RateLimited, Retry,
        RetryLayer, Route, RouteLayer, Stage, TelemetryLayer, Telling, Timeout, TimeoutLayer,
    },
    live::Live,
    message::Message,
    pool::Pool,
    source::Source,
    telemetry::Telemetry,
};

/// One request, from the application to the wire.
fn stack<L>(parts: Parts, pool: L) -> Stack<L> {
    let Parts { live, port, telemetry, retries, source, limit_codec } = parts;
    let limits = RateLimitLayer::new().source(source.clone()).asking(Arc::clone(&live), limit_codec);
    let route = RouteLayer::live(live).source(source.clone());
    let route = match port {
        Some(port) => route.on_port(port),
        None => route,
    };
    (
        // Which rule means it, and what that rule says: a plan, made once.
        route,
        // Whatever becomes of it below is told once, with one set of labels.
        TelemetryLayer::with(telemetry),
        // What is over its rate limit, here or in the whole mesh, goes no further.
        limits,
        // A fault asked for is injected before anything is timed, tried or blamed.
        FaultLayer::new(),
        // From here on time counts, up to the last byte of the answer.
        TimeoutLayer::new(),
        // Copies go out beside it, each tried once, and nobody waits for them.
        MirrorLayer::new(),
        // Each try passes through what is below; the body is kept for the next.
        retries.source(source.clone()),
        // An endpoint is picked, within the cluster's limits, and learnt from.
        BalanceLayer::new().source(source),
    )
        // A connection to that endpoint sends it.
        .layer(pool)
}

/// What a stack is made of.
#[derive(Clone, Debug)]
struct Parts {
    live: Arc<Live>,
    port: Option<u16>,
    telemetry: Telemetry,
    retries: RetryLayer,
    source: Source,
    limit_codec: Option<LimitCodec>,
}

type Stack<L> = Route<Telling<RateLimited<Faulty<Timeout<Mirrored<Retry<Balance<L>>>>>>>>;

type Answer<B> = Pin<Box<dyn Future<Output = Result<http::Response<ResponseBody<B>>, Error>> + Send>>;

/// An HTTP client of the mesh: a `tower::Service` of any `http::Request`, HTTP/1.1, HTTP/2 and gRPC alike.
///
/// Clones share everything and are cheap. Inside the mesh the URI's scheme is `http`: whether the wire is encrypted is
/// the mesh's business.
#[derive(Debug)]
pub struct HttpClient<L = Pool> {
    parts: Arc<Parts>,
    leaf: Arc<L>,
    stack: Stack<Arc<L>>,
}

impl<L> HttpClient<L> {
    /// Of the configuration in `live`, told in `telemetry`, sending through `leaf`.
    pub fn new(live: Arc<Live>, telemetry: Telemetry, leaf: L) -> Self {
        let retries = RetryLayer::new();
        let parts = Parts { live, port: None, telemetry, retries, source: Source::system(), limit_codec: None };
        Self::of(parts, Arc::new(leaf))
    }

    fn of(parts: Parts, leaf: Arc<L>) -> Self {
        Self { stack: stack(parts.clone(), Arc::clone(&leaf)), parts: Arc::new(parts), leaf }
    }

    /// The same client for requests that arrived on a gateway's listener declared with `port`.
    #[must_use]
    pub fn on_port(self, port: u16) -> Self {
        Self::of(Parts { port: Some(port), ..(*self.parts).clone() }, self.leaf)
    }

    /// The same client with a clock and a seed of its own: for simulations and replays.
    #[must_use]
    pub fn with_source(self, source: Source) -> Self {
        Self::of(Parts { source, ..(*self.parts).clone() }, self.leaf)
    }

    /// The same client, asking services that count requests for the whole mesh by this protocol. Without one they are taken
    /// not to answer.
    #[must_use]
    pub fn with_limit_codec(self, codec: LimitCodec) -> Self {
        Self::of(Parts { limit_codec: Some(codec), ..(*self.parts).clone() }, self.leaf)
    }

    /// The same client with other rules of trying again: a shared budget, gRPC's throttle, or
    /// [as Envoy does it](RetryLayer::like_envoy).
    #[must_use]
    pub fn with_retries(self, retries: RetryLayer) -> Self {
        Self::of(Parts { retries, ..(*self.parts).clone() }, self.leaf)
    }

    /// What it sends through.
    pub(crate) fn leaf(&self) -> Arc<L> {
        Arc::clone(&self.leaf)
    }

    /// Its clock and seed.
    pub(crate) fn source(&self) -> Source {
        self.parts.source.clone()
    }

    /// The configuration it reads.
    pub fn live(&self) -> &Arc<Live> {
        &self.parts.live
    }

    /// A client of one gRPC service, for a generated client: `RatingsClient::new(http.grpc("ratings:9080")?)`.
    ///
    /// The target may be written as gRPC's libraries have it, `xds:///ratings:9080`. Where the control plane is asked for each
    /// destination by its name, `xds://AUTHORITY/ratings:9080` is what that authority calls so; the client keeps it asked for.
    ///
    /// # Errors
    ///
    /// `target` is not `host`, `host:port` or an `xds:` target of them, or names an authority that is not known.
    pub fn grpc(&self, target: &str) -> Result<GrpcClient<L>, Error> {
        let invalid = |why: String| Error::msg(ErrorKind::Invalid, why);
        let (authority, target) = dial::split(target).map_err(invalid)?;
        let authority = Authority::try_from(authority).map_err(|error| Error::new(ErrorKind::Invalid, error))?;
        let dialled = match (target, self.live().dialling()) {
            (Some(target), Some(dialling)) => Some(Arc::new(dialling.open(target).map_err(invalid)?)),
            (Some(target), None) if !dial::authority_of(target).is_empty() => {
                return Err(invalid(format!("{target:?}: authorities are known where gRPC's profile is followed")));
            }
            _ => None,
        };
        Ok(GrpcClient { http: self.clone(), authority, dialled })
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
    pub fn get<U>(&self, uri: U) -> Answer<B>
    where
        Uri: TryFrom<U>,
        <Uri as TryFrom<U>>::Error: Into<http::Error>,
    {
        match Uri::try_from(uri) {
            Ok(uri) => {
                let mut request = http::Request::new(Body::empty());
                *request.uri_mut() = uri;
                self.send(request.into())
            }
            Err(error) => fail(Error::new(ErrorKind::Invalid, error.into())),
        }
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
        let (parts, body) = request.into_parts();
        self.send(Message::from_parts(parts, Body::new(body)))
    }

    fn send(&self, request: Message) -> Answer<B> {
        let stack = self.stack.hold();
        Box::pin(async move {
            let is_grpc = is_grpc(request.headers());
            let is_head = *request.method() == http::Method::HEAD;
            match stack.send(request).await {
                Ok(response) => Ok(response.map(|body| body.of_grpc(is_grpc))),
                Err(error) => answer(error, is_grpc, is_head),
            }
        })
    }
}

fn fail<B: Send + 'static>(error: Error) -> Answer<B> {
    Box::pin(std::future::ready(Err(error)))
}

/// The mesh's own answer to a request that none of its destinations answered.
fn answer<B>(error: Error, is_grpc: bool, is_head: bool) -> Result<http::Response<ResponseBody<B>>, Error> {
    if matches!(error.kind(), ErrorKind::Body | ErrorKind::Invalid) {
        return Err(error);
    }
    tracing::debug!(%error, flags = %error.flags(), details = error.details(), "no destination answered");
    let response = if is_grpc { error.to_grpc_response() } else { error.to_response() };
    // The answer to HEAD tells of a body and has none.
    let response = if is_head { response.map(|_| Bytes::new()) } else { response };
    let mut response = response.map(ResponseBody::here);
    response.extensions_mut().insert(ResponseFlags { flags: error.flags(), details: error.details() });
    response.extensions_mut().insert(error.kind());
    Ok(response)
}

impl<L> Clone for HttpClient<L> {
    fn clone(&self) -> Self {
        Self { parts: Arc::clone(&self.parts), leaf: Arc::clone(&self.leaf), stack: self.stack.clone() }
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
    type Response = http::Response<ResponseBody<B>>;
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
pub struct GrpcClient<L = Pool> {
    http: HttpClient<L>,
    authority: Authority,
    /// The target it was made for, if it is to be asked for by that.
    dialled: Option<Arc<Dialled>>,
}

impl<L> Clone for GrpcClient<L> {
    fn clone(&self) -> Self {
        Self { http: self.http.clone(), authority: self.authority.clone(), dialled: self.dialled.clone() }
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
    type Response = http::Response<ResponseBody<B>>;
    type Error = Error;
    type Future = Answer<B>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    /// A generated client names the method and nothing else: here it gets its destination.
    fn call(&mut self, request: http::Request<R>) -> Answer<B> {
        let (mut parts, body) = request.into_parts();
        let path = parts.uri.path_and_query().cloned();
        let mut uri = http::uri::Parts::default();
        uri.scheme = Some(http::uri::Scheme::HTTP);
        uri.authority = Some(self.authority.clone());
        uri.path_and_query = path.or_else(|| Some(http::uri::PathAndQuery::from_static("/")));
        match Uri::from_parts(uri) {
            Ok(uri) => parts.uri = uri,
            Err(error) => return fail(Error::new(ErrorKind::Invalid, error)),
        }
        if let Some(dialled) = &self.dialled {
            parts.extensions.insert(Arc::clone(dialled));
        }
        parts.version = http::Version::HTTP_2;
        let grpc = header::HeaderValue::from_static("application/grpc");
        parts.headers.entry(header::CONTENT_TYPE).or_insert(grpc);
        self.http.send(Message::from_parts(parts, Body::new(body)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use std::time::Duration;

    use http_body_util::{BodyExt, Full};
    use mesh_core::{
        config::{
            Action, Config, DirectResponse, Forward, HeaderMatch, HeaderMatcher, HttpRetry, Redirect, RetryConditions,
            RetryPolicy, RouteMatch, StringMatch, Thresholds, WeightedCluster,
        },
        rng::RequestRng,
    };
    use rand::RngCore;
    use tokio::{task::JoinSet, time::sleep};
    use tower::ServiceExt;

    use super::*;
    use crate::{
        Context as Served,
        testing::{Log, client, cluster, configured, endless, grpc_response, response, route, with_route},
    };

    /// RM1, RA1, RA9, RA10, CB1: what the mesh answers itself is a response, with its reason beside it.
    #[tokio::test]
    async fn refusals_are_the_responses_envoy_gives() {
        let mut full = cluster("full", 1);
        full.thresholds = Thresholds { max_requests: 0, ..Thresholds::default() };
        let to = |name: &str| {
            let clusters = vec![WeightedCluster { cluster: name.into(), weight: 1, ..Default::default() }];
            Action::Forward(Forward { clusters, ..Default::default() })
        };
        let redirect = Redirect { status: 302, host: Some("elsewhere".into()), ..Default::default() };
        let direct = DirectResponse { status: 418, body: "short and stout".into() };
        let no_header = &[][..];
        type Case = (Config, &'static str, u16, &'static str, &'static str, &'static [(&'static str, &'static str)]);
        let cases: Vec<Case> = vec![
            (Config::default(), "http://reviews/", 404, "", "NR route_not_found", no_header),
            (with(to("gone")), "http://reviews/", 503, "", "NC cluster_not_found", no_header),
            (
                configured([cluster("empty", 0)], Forward::default()),
                "http://reviews/",
                503,
                "no healthy upstream",
                "UH no_healthy_upstream",
                no_header,
            ),
            (
                configured([full], Forward::default()),
                "http://reviews/",
                503,
                "upstream connect error or disconnect/reset before headers. reset reason: overflow",
                "UO upstream_reset_before_response_started{overflow}",
                &[("x-envoy-overloaded", "true")],
            ),
            (
                with(Action::Redirect(redirect)),
                "http://reviews/a?b",
                302,
                "",
                "- direct_response",
                &[("location", "http://elsewhere/a?b")],
            ),
            (
                with(Action::DirectResponse(direct)),
                "http://reviews/",
                418,
                "short and stout",
                "- direct_response",
                no_header,
            ),
        ];
        for (config, uri, status, body, flags, headers) in cases {
            let client = client(&config, |_| async { Ok(response(200, &["from an endpoint"])) });
            let answer = client.get(uri).await.unwrap();
            assert_eq!(answer.status().as_u16(), status, "{flags}");
            assert_eq!(answer.extensions().get::<ResponseFlags>().unwrap().to_string(), flags);
            for (name, value) in headers {
                assert_eq!(answer.headers()[*name], *value, "{flags}");
            }
            assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), body, "{flags}");
            let grpc = client.grpc("reviews").unwrap();
            let answer = grpc.oneshot(http::Request::get("/a.B/C").body(Body::empty()).unwrap()).await.unwrap();
            assert_eq!(answer.status(), 200);
            assert_eq!(answer.headers()["content-type"], "application/grpc");
            let expected = if flags.starts_with('-') { "2" } else { "14" };
            assert_eq!(answer.headers()["grpc-status"], expected, "{flags}");
        }
    }

    /// A gRPC client reaches its authority over HTTP/2, and its trailers come through.
    #[tokio::test]
    async fn a_grpc_client_names_its_destination() {
        let seen = Log::new();
        let log = seen.clone();
        let client = client(&configured([cluster("reviews", 1)], Forward::default()), move |picked| {
            log.push((picked.request.uri().to_string(), picked.request.version()));
            async { Ok(grpc_response(&["message"], 5)) }
        });
        let grpc = client.grpc("reviews:80").unwrap();
        let answer =
            grpc.oneshot(http::Request::post("/a.B/C").body(Full::new(Bytes::from("x"))).unwrap()).await.unwrap();
        let body = answer.into_body().collect().await.unwrap();
        assert_eq!(body.trailers().unwrap()["grpc-status"], "5");
        assert_eq!(seen.all(), [("http://reviews:80/a.B/C".to_owned(), http::Version::HTTP_2)]);
        assert!(client.grpc("not an authority").is_err());
    }

    /// CB1, RM1: what a tonic client gets for the mesh's refusals is a status it knows, and for a deadline its own.
    #[tokio::test(start_paused = true)]
    async fn a_tonic_client_gets_statuses() {
        let limit = Forward { timeout: Some(Duration::from_secs(1)), ..Forward::default() };
        let slow = configured([cluster("reviews", 1)], limit);
        let empty = configured([cluster("reviews", 0)], Forward::default());
        for (config, code) in [
            (Config::default(), tonic::Code::Unavailable),
            (empty, tonic::Code::Unavailable),
            (slow, tonic::Code::DeadlineExceeded),
        ] {
            let client = client(&config, |picked: Picked| async {
                // The time limit counts from when the request has been read.
                let _ = picked.request.into_body().collect().await;
                std::future::pending::<Result<crate::testing::TestResponse, Error>>().await
            });
            let mut generated = tonic::client::Grpc::new(client.grpc("reviews").unwrap());
            generated.ready().await.unwrap();
            let path = http::uri::PathAndQuery::from_static("/ratings.Ratings/Get");
            let status = generated.unary(tonic::Request::new(Bytes::new()), path, Raw).await.unwrap_err();
            assert_eq!(status.code(), code, "{status}");
        }
    }

    /// Messages of bytes, as they are.
    #[derive(Default)]
    struct Raw;

    impl tonic::codec::Codec for Raw {
        type Encode = Bytes;
        type Decode = Bytes;
        type Encoder = Self;
        type Decoder = Self;

        fn encoder(&mut self) -> Self {
            Self
        }

        fn decoder(&mut self) -> Self {
            Self
        }
    }

    impl tonic::codec::Encoder for Raw {
        type Item = Bytes;
        type Error = tonic::Status;

        fn encode(&mut self, item: Bytes, buffer: &mut tonic::codec::EncodeBuf<'_>) -> Result<(), tonic::Status> {
            bytes::BufMut::put(buffer, item);
            Ok(())
        }
    }

    impl tonic::codec::Decoder for Raw {
        type Item = Bytes;
        type Error = tonic::Status;

        fn decode(&mut self, buffer: &mut tonic::codec::DecodeBuf<'_>) -> Result<Option<Bytes>, tonic::Status> {
            Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
        }
    }

    /// C12: routing by `end-user` works for a request whose handler copied no header.
    #[tokio::test]
    async fn context_headers_take_part_in_routing() {
        let jason = HeaderMatch {
            name: "end-user".into(),
            matcher: HeaderMatcher::Value(StringMatch::Exact { value: "jason".into(), ignore_case: false }),
            invert: false,
            missing_as_empty: false,
        };
        let clusters = vec![WeightedCluster { cluster: "reviews".into(), weight: 1, ..Default::default() }];
        let mut all = route(Action::Forward(Forward { clusters, ..Default::default() }));
        all.matches = RouteMatch { headers: vec![jason], ..RouteMatch::default() };
        let config = with_route(configured([cluster("reviews", 1)], Forward::default()), all);
        let client = client(&config, |picked| async move {
            assert_eq!(picked.request.headers()["end-user"], "jason");
            Ok(response(200, &[]))
        });
        assert_eq!(client.get("http://reviews/").await.unwrap().status(), 404);
        let mut received = http::HeaderMap::new();
        received.insert("end-user", "jason".parse().unwrap());
        let served = Served::received(&received, &Served::PROPAGATED);
        assert_eq!(served.scope(client.get("http://reviews/")).await.unwrap().status(), 200);
    }

    /// A request sent before any configuration is there waits for it, up to its deadline.
    #[tokio::test(start_paused = true)]
    async fn a_request_waits_for_the_first_configuration() {
        let live = Arc::new(Live::new());
        let leaf = crate::testing::Scripted(|_| async { Ok(response(200, &[])) });
        let client = HttpClient::new(Arc::clone(&live), Telemetry::new(Default::default()), leaf);
        let waiting = tokio::spawn({
            let client = client.clone();
            async move { client.get("http://reviews/").await.unwrap().status() }
        });
        let hasty =
            Served { deadline: Some(tokio::time::Instant::now() + Duration::from_secs(1)), ..Served::default() };
        let refused = hasty.scope(client.get("http://reviews/")).await.unwrap();
        assert_eq!(refused.status(), 503);
        assert_eq!(refused.extensions().get::<ResponseFlags>().unwrap().details, "configuration_not_ready");
        live.update(&configured([cluster("reviews", 1)], Forward::default())).unwrap();
        assert_eq!(waiting.await.unwrap(), 200);
    }

    /// No mesh, on purpose: the request goes to the host it names.
    #[tokio::test]
    async fn off_goes_where_the_request_says() {
        let seen = Log::new();
        let log = seen.clone();
        let leaf = crate::testing::Scripted(move |picked: Picked| {
            log.push(picked.endpoint().address().to_string());
            async { Ok(response(200, &[])) }
        });
        let client = HttpClient::new(Arc::new(Live::off()), Telemetry::new(Default::default()), leaf);
        for uri in ["http://example.com/", "http://example.com:81/", "http://127.0.0.1:82/", "http://[::1]:83/"] {
            assert_eq!(client.get(uri).await.unwrap().status(), 200, "{uri}");
        }
        assert_eq!(seen.all(), ["example.com:80", "example.com:81", "127.0.0.1:82", "[::1]:83"]);
    }

    /// L7, P1: nothing stays counted as under way, however calls end: well, badly, or dropped at any moment.
    #[tokio::test(start_paused = true)]
    async fn every_slot_is_free_after_a_thousand_calls_however_they_end() {
        let on = RetryConditions { http: vec![HttpRetry::ServerError], ..Default::default() };
        let forward = Forward {
            retry: Some(RetryPolicy { on, per_try_timeout: Some(Duration::from_millis(40)), ..Default::default() }),
            timeout: Some(Duration::from_millis(60)),
            ..Default::default()
        };
        let client = client(&configured([cluster("reviews", 3)], forward), |_| async {
            let bits = crate::source::Source::system().next_request().next_u64();
            sleep(Duration::from_millis(bits % 50)).await;
            match bits >> 8 & 7 {
                0 => Err(Error::msg(ErrorKind::Connect, "refused")),
                1 => Ok(response(503, &["no"])),
                2 => Ok(endless(200)),
                _ => Ok(response(200, &["some", "words"])),
            }
        });
        let mut calls = JoinSet::new();
        for n in 0..1_000 {
            let client = client.clone();
            let mut rng = RequestRng::new(42, n);
            calls.spawn(async move {
                let read = async { client.get("http://reviews/").await.unwrap().into_body().collect().await };
                // A third is read to its end or its timeout, the rest is dropped at some moment.
                let patience = if n % 3 == 0 { 1_000 } else { rng.next_u64() % 70 };
                let _ = tokio::time::timeout(Duration::from_millis(patience), read).await;
            });
        }
        while calls.join_next().await.is_some() {}
        let snapshot = client.live().load().unwrap();
        let reviews = snapshot.cluster("reviews").unwrap();
        assert_eq!(reviews.requests_in_flight(), 0);
        assert!(reviews.endpoints().iter().all(|endpoint| endpoint.in_flight() == 0));
        let retries: Vec<_> = (0..3).map_while(|_| reviews.retry_slot(Default::default(), false)).collect();
        assert_eq!(retries.len(), 3, "all of max_retries is free");
    }

    fn with(action: Action) -> Config {
        with_route(Config::default(), route(action))
    }
}
