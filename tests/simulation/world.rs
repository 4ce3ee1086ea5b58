//! A small world on a paused clock: upstreams with a script, members of a mesh that call them, and load.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::StreamExt;
use http::{HeaderMap, Method, Request, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use mesh_tower::{
    Body, HttpClient, Live, Mesh, Pool,
    config::{
        Action, Cluster, Config, Endpoint, Endpoints, Forward, GrpcRetry, HeaderChanges, HttpRetry, LocalityEndpoints,
        OutlierDetection, Protocol, RetryConditions, RetryPolicy, Route, RouteMatch, RouteTable, Thresholds,
        VirtualHost, WeightedCluster, Workload,
    },
    source::Source,
    telemetry::{AccessLog, Telemetry},
    tls::ClientTls,
};
use tokio::{
    task::{JoinSet, yield_now},
    time::{Instant, sleep_until},
};

use crate::{
    identity::identity,
    net::Net,
    trace::{Trace, mix},
    upstream::{Script, Upstream, pieces},
};

/// Runs a story on one thread whose clock moves only when everybody waits.
pub(crate) fn simulate<F: Future>(seed: u64, story: impl FnOnce(World) -> F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async { story(World::new(seed)).await })
}

/// What a program sends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Http1,
    Http2,
    Grpc,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Http1, Self::Http2, Self::Grpc];

    pub(crate) fn protocol(self) -> Protocol {
        match self {
            Self::Http1 => Protocol::Http1,
            Self::Http2 | Self::Grpc => Protocol::Http2,
        }
    }

    /// A call that may be sent again; `id` is told to the upstream, which answers with what it amounts to.
    pub(crate) fn get(self, id: u64) -> Request<Body> {
        match self {
            Self::Grpc => self.post(id, b""),
            _ => self.request(Method::GET, id, Body::empty()),
        }
    }

    pub(crate) fn post(self, id: u64, bytes: &[u8]) -> Request<Body> {
        self.request(Method::POST, id, Body::from(self.framed(bytes)))
    }

    /// The same with a body whose length nobody is told beforehand.
    pub(crate) fn stream(self, id: u64, bytes: &[u8]) -> Request<Body> {
        self.request(Method::POST, id, streamed(&self.framed(bytes), false))
    }

    /// The same with a body that fails after that many of its bytes; `told` says all the same how long it was to be.
    pub(crate) fn break_off(self, id: u64, bytes: &[u8], after: usize, told: bool) -> Request<Body> {
        let body = self.framed(bytes);
        let mut request = self.request(Method::POST, id, streamed(&body.slice(..after.min(body.len())), true));
        if told {
            request.headers_mut().insert(header::CONTENT_LENGTH, body.len().into());
        }
        request
    }

    /// As a call that may be sent again; a gRPC call may by its policy.
    pub(crate) fn repeatable(self, mut request: Request<Body>) -> Request<Body> {
        if self != Self::Grpc {
            *request.method_mut() = Method::PUT;
        }
        request
    }

    /// Bytes as they are sent.
    pub(crate) fn framed(self, bytes: &[u8]) -> Bytes {
        match self {
            Self::Grpc => grpc_frame(bytes),
            _ => Bytes::copy_from_slice(bytes),
        }
    }

    fn request(self, method: Method, id: u64, body: Body) -> Request<Body> {
        let mut request = Request::builder().method(method).uri(format!("http://upstream/pkg.Service/{id}"));
        if self == Self::Grpc {
            request = request.header(header::CONTENT_TYPE, "application/grpc").header(header::TE, "trailers");
        }
        request.body(body).unwrap()
    }
}

/// A body in pieces, which fails after them or ends.
fn streamed(bytes: &Bytes, fails: bool) -> Body {
    let failure = fails.then(|| Err(io::Error::other("the caller's own source broke off")));
    let frames = pieces(bytes).into_iter().map(Ok::<Frame<Bytes>, io::Error>).chain(failure);
    // Not all at once: some of it is on its way when the rest is asked for.
    let frames = futures_util::stream::iter(frames);
    Body::new(StreamBody::new(frames.then(|frame| async move {
        yield_now().await;
        frame
    })))
}

/// A gRPC message as it is sent.
pub(crate) fn grpc_frame(bytes: &[u8]) -> Bytes {
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(bytes.len() as u32);
    framed.put_slice(bytes);
    framed.freeze()
}

pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) net: Net,
    pub(crate) trace: Trace,
}

impl World {
    fn new(seed: u64) -> Self {
        let trace = Trace::new();
        Self { seed, net: Net::new(seed, trace.clone()), trace }
    }

    /// Where host `n` is.
    pub(crate) fn address(n: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, (n >> 8) as u8, n as u8], 8_000 + n))
    }

    /// Hosts 1 to `n`, each answering by the script.
    pub(crate) fn upstreams(&self, n: u16, script: Script) -> Vec<Upstream> {
        (1..=n).map(|n| self.upstream(n, script)).collect()
    }

    pub(crate) fn upstream(&self, n: u16, script: Script) -> Upstream {
        Upstream::start(&self.net, &self.trace, mix(&[self.seed, u64::from(n)]), Self::address(n), script)
    }

    /// A member of the mesh; `stream` tells the random streams of several apart.
    pub(crate) async fn member(&self, config: Config, stream: u64) -> Mesh {
        let source = Source::seeded(mix(&[self.seed, stream]));
        Mesh::builder().config(config).source(source).connector(self.net.clone()).build().await.unwrap()
    }

    /// A member, and how many tries its finished requests took in all, those that reached nobody among them.
    pub(crate) async fn counted(&self, config: Config, stream: u64) -> (Mesh, Arc<AtomicU64>) {
        let source = Source::seeded(mix(&[self.seed, stream]));
        let tries = Arc::new(AtomicU64::new(0));
        let sink = {
            let tries = Arc::clone(&tries);
            move |line: &str| {
                let line: serde_json::Value = serde_json::from_str(line).unwrap();
                tries.fetch_add(line["upstream_request_attempt_count"].as_u64().unwrap(), Relaxed);
            }
        };
        let builder = Mesh::builder().config(config).source(source).access_log(AccessLog::Json).access_log_to(sink);
        (builder.connector(self.net.clone()).build().await.unwrap(), tries)
    }

    /// A member with an identity, for clusters with mutual TLS.
    pub(crate) async fn identified(&self, config: Config, stream: u64) -> Mesh {
        let source = Source::seeded(mix(&[self.seed, stream]));
        let builder = Mesh::builder().config(config).source(source).identity(identity("caller"));
        builder.connector(self.net.clone()).build().await.unwrap()
    }

    /// A client alone, with the pool of its own and no task in the background.
    pub(crate) fn client(&self, config: &Config) -> HttpClient {
        let (live, source) = (Live::new(), Source::seeded(self.seed));
        live.update(config).unwrap();
        let telemetry = Telemetry::new(Workload::default());
        let pool =
            Pool::with_connector(ClientTls::default(), telemetry.clone(), source.clone(), Arc::new(self.net.clone()));
        HttpClient::new(Arc::new(live), telemetry, pool).with_source(source)
    }

    /// Requests at an even rate, whatever becomes of those before; what became of them, in order of their ids.
    pub(crate) async fn load(
        &self,
        client: &HttpClient,
        kind: Kind,
        rate: u64,
        lasting: Duration,
        first: u64,
    ) -> Vec<Done> {
        self.load_of("upstream", client, kind, rate, lasting, first).await
    }

    /// The same, of another service.
    pub(crate) async fn load_of(
        &self,
        service: &str,
        client: &HttpClient,
        kind: Kind,
        rate: u64,
        lasting: Duration,
        first: u64,
    ) -> Vec<Done> {
        let start = Instant::now();
        let mut calls = JoinSet::new();
        for n in 0..rate * lasting.as_millis() as u64 / 1_000 {
            sleep_until(start + Duration::from_micros(n * 1_000_000 / rate)).await;
            self.trace.note("request", 0, first + n);
            let mut request = kind.get(first + n);
            *request.uri_mut() = format!("http://{service}{}", request.uri().path()).parse().unwrap();
            calls.spawn(call(client.clone(), request, first + n));
        }
        let mut all = Vec::new();
        while let Some(done) = calls.join_next().await {
            let done = done.unwrap();
            self.trace.note("answer", done.host, u64::from(done.status));
            all.push(done);
        }
        all.sort_by_key(|done| done.id);
        all
    }
}

/// What became of a request.
#[derive(Clone, Debug)]
pub(crate) struct Done {
    pub(crate) id: u64,
    pub(crate) at: Instant,
    pub(crate) took: Duration,
    /// Of HTTP, or for a gRPC call whose status is not 0 that status; 0 when the answer's body failed, or the request's own.
    pub(crate) status: u16,
    /// The port of the host that answered; 0 is the mesh.
    pub(crate) host: u16,
    pub(crate) body: Bytes,
}

impl Done {
    pub(crate) fn is_ok(&self) -> bool {
        self.status == 200
    }
}

/// One call, read to its end.
pub(crate) async fn call(client: HttpClient, request: Request<Body>, id: u64) -> Done {
    let at = Instant::now();
    let is_grpc = request.headers().contains_key(header::TE);
    // Only what is the caller's own fault is an error.
    let Ok(response) = client.request(request).await else {
        return Done { id, at, took: at.elapsed(), status: 0, host: 0, body: Bytes::new() };
    };
    let (head, body) = response.into_parts();
    let number = |headers: &HeaderMap, name: &str| {
        headers.get(name).and_then(|value| value.to_str().ok()).and_then(|text| text.parse::<u16>().ok())
    };
    let host = number(&head.headers, "x-host").unwrap_or(0);
    let mut status = head.status.as_u16();
    let mut bytes = Bytes::new();
    match body.collect().await {
        Err(_) => status = 0,
        Ok(collected) => {
            if is_grpc && status == 200 {
                let trailers = collected.trailers().and_then(|trailers| number(trailers, "grpc-status"));
                // A call without a status anywhere is no success.
                let grpc = trailers.or_else(|| number(&head.headers, "grpc-status")).unwrap_or(2);
                status = if grpc == 0 { 200 } else { grpc };
            }
            bytes = collected.to_bytes();
        }
    }
    Done { id, at, took: at.elapsed(), status, host, body: bytes }
}

/// All requests to `upstream` go to hosts 1 to `n`: retries on, nothing else but defaults.
pub(crate) fn mesh_of(n: u16, kind: Kind) -> (Cluster, Forward) {
    (cluster_of("upstream", 1..=n, kind), Forward { retry: Some(retries()), ..Forward::default() })
}

pub(crate) fn cluster_of(name: &str, hosts: impl IntoIterator<Item = u16>, kind: Kind) -> Cluster {
    let endpoints = hosts.into_iter().map(|n| Endpoint::from(World::address(n))).collect();
    let locality = LocalityEndpoints { endpoints, ..LocalityEndpoints::default() };
    Cluster {
        name: name.into(),
        endpoints: Arc::new(Endpoints { localities: vec![locality], ..Endpoints::default() }),
        protocol: kind.protocol(),
        // What Istio compiles to: breakers limit nothing unless somebody says so.
        thresholds: Thresholds {
            max_connections: u32::MAX,
            max_pending_requests: u32::MAX,
            max_requests: u32::MAX,
            max_retries: u32::MAX,
            ..Thresholds::default()
        },
        ..Cluster::default()
    }
}

/// Istio's default: two more tries, elsewhere, of what failed on the way; and of what answered 503.
pub(crate) fn retries() -> RetryPolicy {
    RetryPolicy {
        on: RetryConditions {
            http: vec![HttpRetry::ConnectFailure, HttpRetry::RefusedStream, HttpRetry::Reset, HttpRetry::ServerError],
            grpc: vec![GrpcRetry::Unavailable],
            ..RetryConditions::default()
        },
        retries: 2,
        avoid_previous_hosts: 5,
        ..RetryPolicy::default()
    }
}

/// Five failures in a row eject for ten seconds.
pub(crate) fn outliers(percent: u32) -> OutlierDetection {
    OutlierDetection {
        consecutive_5xx: 5,
        interval: Duration::from_secs(1),
        base_ejection_time: Duration::from_secs(10),
        max_ejection_percent: percent,
        ..OutlierDetection::default()
    }
}

/// The configuration of one destination.
pub(crate) fn config_of((cluster, forward): (Cluster, Forward)) -> Config {
    routed("upstream", forward, [cluster])
}

/// The configuration of one host name and its clusters; without a split the first cluster gets everything.
pub(crate) fn routed(host: &str, mut forward: Forward, clusters: impl IntoIterator<Item = Cluster>) -> Config {
    let mut config = Config::default();
    for cluster in clusters {
        if forward.clusters.is_empty() {
            forward.clusters = vec![weighted(&cluster.name, 1)];
        }
        config.clusters.insert(cluster.name.clone(), Arc::new(cluster));
    }
    let route = Route {
        name: "all".into(),
        origin: None,
        matches: RouteMatch::default(),
        action: Action::Forward(forward),
        fault: None,
        headers: HeaderChanges::default(),
        operation: None,
    };
    let host = VirtualHost {
        name: host.into(),
        domains: vec![host.to_owned()],
        routes: vec![route],
        ..VirtualHost::default()
    };
    let table = RouteTable { virtual_hosts: vec![Arc::new(host)], ignore_port: true, ..RouteTable::default() };
    config.outbound.insert(80, Arc::new(table));
    config
}

pub(crate) fn weighted(cluster: &str, weight: u32) -> WeightedCluster {
    WeightedCluster { cluster: cluster.into(), weight, ..WeightedCluster::default() }
}
