//! What the tests of the layers share: clusters that lead nowhere, and leaves that answer from memory.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    future::Future,
    io,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use mesh_core::{
    cluster::Cluster,
    config::{
        self, Action, Config, EndpointAddress, Endpoints, Forward, HeaderChanges, LocalityEndpoints, Route, RouteMatch,
        RouteTable, VirtualHost, WeightedCluster,
    },
};

use crate::{
    Error, HttpClient, Live,
    layer::{Picked, Stage},
    telemetry::Telemetry,
};

pub(crate) type TestBody = UnsyncBoxBody<Bytes, io::Error>;
pub(crate) type TestResponse = http::Response<TestBody>;

/// A leaf that answers from memory.
pub(crate) struct Scripted<F>(pub(crate) F);

impl<F, R> Stage<Picked> for Scripted<F>
where
    F: Fn(Picked) -> R + Send + Sync,
    R: Future<Output = Result<TestResponse, Error>> + Send,
{
    type Response = TestResponse;

    async fn call(&self, picked: Picked) -> Result<TestResponse, Error> {
        (self.0)(picked).await
    }
}

/// A client of `config` that ends in `leaf`.
pub(crate) fn client<F, R>(config: &Config, leaf: F) -> HttpClient<Scripted<F>>
where
    F: Fn(Picked) -> R + Send + Sync,
    R: Future<Output = Result<TestResponse, Error>> + Send,
{
    let live = Live::new();
    live.update(config).unwrap();
    HttpClient::new(Arc::new(live), Telemetry::new(config::Workload::default()), Scripted(leaf))
}

/// A cluster of that many endpoints, `10.0.0.1:80` and so on.
pub(crate) fn cluster(name: &str, endpoints: u8) -> config::Cluster {
    let endpoint = |n| config::Endpoint::at(EndpointAddress::Socket(([10, 0, 0, n], 80).into()));
    let locality = LocalityEndpoints { endpoints: (1..=endpoints).map(endpoint).collect(), ..Default::default() };
    let endpoints = Arc::new(Endpoints { localities: vec![locality], ..Default::default() });
    config::Cluster { name: name.into(), endpoints, ..Default::default() }
}

pub(crate) fn compiled(cluster: config::Cluster) -> Arc<Cluster> {
    Arc::new(Cluster::compile(&Arc::new(cluster), None))
}

/// All requests to host `reviews`, port 80, go to the first of these clusters, as `forward` says.
pub(crate) fn configured(clusters: impl IntoIterator<Item = config::Cluster>, forward: Forward) -> Config {
    let mut config = Config::default();
    let mut forward = forward;
    for cluster in clusters {
        if forward.clusters.is_empty() {
            forward.clusters = vec![WeightedCluster { cluster: cluster.name.clone(), weight: 1, ..Default::default() }];
        }
        config.clusters.insert(cluster.name.clone(), Arc::new(cluster));
    }
    with_route(config, route(Action::Forward(forward)))
}

pub(crate) fn with_route(mut config: Config, route: Route) -> Config {
    let host = VirtualHost {
        name: "reviews".into(),
        domains: vec!["reviews".to_owned()],
        routes: vec![route],
        ..Default::default()
    };
    let table = RouteTable { virtual_hosts: vec![Arc::new(host)], ignore_port: true, ..Default::default() };
    config.outbound.insert(80, Arc::new(table));
    config
}

pub(crate) fn route(action: Action) -> Route {
    Route {
        name: "all".into(),
        origin: None,
        matches: RouteMatch::default(),
        action,
        fault: None,
        headers: HeaderChanges::default(),
        operation: None,
    }
}

/// A response with those chunks.
pub(crate) fn response(status: u16, chunks: &[&'static str]) -> TestResponse {
    let frames: Vec<_> = chunks.iter().map(|chunk| Ok(Frame::data(Bytes::from_static(chunk.as_bytes())))).collect();
    http::Response::builder().status(status).body(streamed(frames)).unwrap()
}

/// A gRPC response: those chunks, then that status in trailers.
pub(crate) fn grpc_response(chunks: &[&'static str], status: u32) -> TestResponse {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", status.into());
    let frames = chunks.iter().map(|chunk| Ok(Frame::data(Bytes::from_static(chunk.as_bytes()))));
    let frames = frames.chain([Ok(Frame::trailers(trailers))]).collect();
    http::Response::builder().header("content-type", "application/grpc").body(streamed(frames)).unwrap()
}

/// A response that begins and then never ends.
pub(crate) fn endless(status: u16) -> TestResponse {
    let body = StreamBody::new(futures_util::stream::pending::<Result<Frame<Bytes>, io::Error>>());
    http::Response::builder().status(status).body(body.boxed_unsync()).unwrap()
}

fn streamed(frames: Vec<Result<Frame<Bytes>, io::Error>>) -> TestBody {
    StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync()
}

/// What happened, in order; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Log<T>(Arc<Mutex<Vec<T>>>);

impl<T: Clone> Log<T> {
    pub(crate) fn new() -> Self {
        Self(Arc::default())
    }

    pub(crate) fn push(&self, item: T) {
        self.0.lock().unwrap().push(item);
    }

    pub(crate) fn all(&self) -> Vec<T> {
        self.0.lock().unwrap().clone()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}
