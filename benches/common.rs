//! What the questions share: meshes of any size given in code, an endpoint that costs nothing, arguments, and how figures
//! are written. It asks nothing itself.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{env, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
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

/// The whole stack of a client, with everything on, above an endpoint that costs nothing.
pub fn client(config: &Config) -> HttpClient<Nowhere> {
    let live = Live::new();
    live.update(config).unwrap();
    let own = Workload { name: "bench-v1".into(), namespace: "default".into(), ..Workload::default() };
    HttpClient::new(Arc::new(live), Telemetry::new(own), Nowhere)
}

pub fn uris(services: usize) -> Vec<http::Uri> {
    (0..services).map(|at| format!("http://{}/reviews/0", name(at)).parse().unwrap()).collect()
}

pub fn request(uri: &http::Uri) -> http::Request<Full<Bytes>> {
    let mut request = http::Request::new(Full::default());
    *request.uri_mut() = uri.clone();
    request
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
