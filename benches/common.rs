//! What the questions share: meshes of any size given in code, an endpoint that costs nothing, arguments, and how figures
//! are written. It asks nothing itself.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    env,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderValue;
use http_body_util::{BodyExt, Full};
use mesh_core::config::{
    Action, Cluster, Config, Endpoint, EndpointAddress, Endpoints, Forward, Health, LocalityEndpoints, Route,
    RouteMatch, RouteTable, ServiceName, VirtualHost, WeightedCluster, Workload,
};
use mesh_tower::{
    Error, HttpClient, Live,
    layer::{Picked, Stage},
    telemetry::Telemetry,
};

/// The value after `--name`.
pub fn argument(name: &str) -> Option<usize> {
    text_argument(name)?.parse().ok()
}

/// The value after `--name`.
pub fn text_argument(name: &str) -> Option<String> {
    env::args().skip_while(|argument| argument != name).nth(1)
}

/// `median (smallest-largest)`.
pub fn spread(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    format!("{:.2} ({:.2}-{:.2})", values[values.len() / 2], values[0], values[values.len() - 1])
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// What a route says beside where it goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Policy {
    /// Nothing.
    Plain,
    /// A timeout and a retry policy, as a mesh's defaults are.
    Usual,
}

pub fn forward(cluster: &str, policy: Policy) -> Forward {
    let usual = policy == Policy::Usual;
    Forward {
        clusters: vec![WeightedCluster { cluster: cluster.into(), weight: 1, ..Default::default() }],
        timeout: usual.then_some(Duration::from_secs(15)),
        retry: usual.then(Default::default),
        ..Default::default()
    }
}

pub fn route(name: &str, matches: RouteMatch, forward: Forward) -> Route {
    Route {
        name: name.into(),
        origin: None,
        matches,
        action: Action::Forward(forward),
        fault: None,
        headers: Default::default(),
        operation: None,
    }
}

pub fn endpoint(address: SocketAddr) -> Endpoint {
    let workload = Workload { name: "echo-v1".into(), namespace: "default".into(), ..Workload::default() };
    Endpoint {
        address: EndpointAddress::Socket(address),
        weight: 1,
        health: Health::Healthy,
        mtls: false,
        workload: Some(workload.into()),
        hostname: "".into(),
        hash_key: None,
        more: None,
    }
}

pub fn cluster(name: &str, endpoints: impl IntoIterator<Item = SocketAddr>) -> Cluster {
    let endpoints = endpoints.into_iter().map(endpoint).collect();
    let locality = LocalityEndpoints { endpoints, ..Default::default() };
    let endpoints = Endpoints { localities: vec![locality], ..Default::default() };
    let service = ServiceName { host: name.into(), name: name.into(), namespace: "default".into() };
    Cluster { name: name.into(), endpoints: Arc::new(endpoints), service: Some(service), ..Default::default() }
}

/// The name of a service of [`mesh`].
pub fn name(at: usize) -> String {
    format!("echo-{at}")
}

/// That many services, each a virtual host with one route, a cluster and an endpoint.
pub fn mesh(services: usize, policy: Policy, address: SocketAddr) -> Config {
    let mut table = RouteTable { ignore_port: true, ..Default::default() };
    let mut config = Config::default();
    for at in 0..services {
        let name = name(at);
        let routes = vec![route("default", RouteMatch::default(), forward(&name, policy))];
        let host =
            VirtualHost { name: name.as_str().into(), domains: vec![name.clone()], routes, ..Default::default() };
        table.virtual_hosts.push(Arc::new(host));
        config.clusters.insert(name.as_str().into(), Arc::new(cluster(&name, [address])));
    }
    config.outbound.insert(80, Arc::new(table));
    config
}

/// An endpoint that answers at once, from memory.
#[derive(Clone, Copy, Debug)]
pub struct Nowhere;

pub const ANSWER: &[u8] = &[b'x'; 1024];
/// A message of 64 bytes in its frame.
pub const MESSAGE: &[u8] = &[0; 69];

impl Nowhere {
    pub fn answer<T>(request: T) -> http::Response<Full<Bytes>> {
        drop(request);
        http::Response::new(Full::new(Bytes::from_static(ANSWER)))
    }
}

impl Stage<Picked> for Nowhere {
    type Response = http::Response<Full<Bytes>>;

    async fn call(&self, picked: Picked) -> Result<Self::Response, Error> {
        Ok(Self::answer(picked.request))
    }
}

/// The same for gRPC: one message, then a status in trailers.
#[derive(Clone, Copy, Debug)]
pub struct GrpcNowhere;

impl GrpcNowhere {
    pub fn answer<T>(request: T) -> http::Response<GrpcAnswer> {
        drop(request);
        let mut response = http::Response::new(GrpcAnswer { frames: 0 });
        response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        response
    }
}

impl Stage<Picked> for GrpcNowhere {
    type Response = http::Response<GrpcAnswer>;

    async fn call(&self, picked: Picked) -> Result<Self::Response, Error> {
        Ok(Self::answer(picked.request))
    }
}

/// What [`GrpcNowhere`] says.
#[derive(Debug)]
pub struct GrpcAnswer {
    frames: u8,
}

impl http_body::Body for GrpcAnswer {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        self.frames = self.frames.saturating_add(1);
        Poll::Ready(match self.frames {
            1 => Some(Ok(http_body::Frame::data(Bytes::from_static(MESSAGE)))),
            2 => {
                let mut trailers = http::HeaderMap::new();
                trailers.insert("grpc-status", HeaderValue::from_static("0"));
                Some(Ok(http_body::Frame::trailers(trailers)))
            }
            _ => None,
        })
    }
}

/// The whole stack of a client, with everything on, above an endpoint that costs nothing.
pub fn client(config: &Config) -> HttpClient<Nowhere> {
    client_of(config, Nowhere)
}

/// The same above another endpoint.
pub fn client_of<L>(config: &Config, leaf: L) -> HttpClient<L> {
    let live = Live::new();
    live.update(config).unwrap();
    let own = Workload { name: "bench-v1".into(), namespace: "default".into(), ..Workload::default() };
    HttpClient::new(Arc::new(live), Telemetry::new(own), leaf)
}

pub fn uris(services: usize) -> Vec<http::Uri> {
    (0..services).map(|at| format!("http://{}/reviews/0", name(at)).parse().unwrap()).collect()
}

pub fn request(uri: &http::Uri) -> http::Request<Full<Bytes>> {
    let mut request = http::Request::new(Full::default());
    *request.uri_mut() = uri.clone();
    request
}

pub fn grpc_request(uri: &http::Uri) -> http::Request<Full<Bytes>> {
    let mut request = http::Request::new(Full::new(Bytes::from_static(MESSAGE)));
    *request.uri_mut() = uri.clone();
    *request.method_mut() = http::Method::POST;
    *request.version_mut() = http::Version::HTTP_2;
    let headers = request.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(http::header::TE, HeaderValue::from_static("trailers"));
    request
}

/// One call through `client`, read to its end.
pub async fn grpc_call(client: &HttpClient<GrpcNowhere>, uri: &http::Uri) {
    let response = client.request(grpc_request(uri)).await.unwrap();
    assert_eq!(response.status(), 200);
    read(response.into_body()).await;
}

/// One request through `client`, read to its end.
pub async fn call(client: &HttpClient<Nowhere>, uri: &http::Uri) {
    let response = client.request(request(uri)).await.unwrap();
    assert_eq!(response.status(), 200);
    read(response.into_body()).await;
}

pub async fn read<B>(mut body: B)
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Debug,
{
    while let Some(frame) = body.frame().await {
        drop(std::hint::black_box(frame.unwrap()));
    }
}
