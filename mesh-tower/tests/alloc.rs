//! What a request through the whole client stack allocates: one boxed future at the border, and room for the headers it
//! must carry. Counted by an allocator of this test alone, above an endpoint that answers from memory.
#![allow(clippy::unwrap_used)]

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use mesh_core::config::{
    Action, Cluster, Config, EndpointAddress, Endpoints, Forward, LocalityEndpoints, Route, RouteMatch, RouteTable,
    VirtualHost, WeightedCluster, Workload,
};
use mesh_tower::{
    Error, HttpClient, Live, Mesh,
    layer::{Picked, Stage},
    telemetry::Telemetry,
};

/// TE8, RT11, TO3: beyond room for the headers that travel, a request costs one allocation, with retries or without.
#[test]
fn a_request_allocates_once() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let uri: Uri = "http://reviews/a".parse().unwrap();
    let carried = ["x-request-id", "traceparent", "x-envoy-attempt-count", "x-envoy-expected-rq-timeout-ms"];
    for forward in [
        Forward::default(),
        Forward { timeout: Some(Duration::from_secs(15)), retry: Some(Default::default()), ..Forward::default() },
    ] {
        let client = client(forward);
        let through = || async {
            for _ in 0..1_000 {
                let mut body = client.request(request(&uri)).await.unwrap().into_body();
                while let Some(frame) = body.frame().await {
                    frame.unwrap();
                }
            }
        };
        runtime.block_on(through());
        let spent = allocation_counter::measure(|| runtime.block_on(through())).count_total;
        let bare = allocation_counter::measure(|| {
            for _ in 0..1_000 {
                let mut request = request(&uri);
                for name in carried {
                    let (name, value) = (HeaderName::from_static(name), HeaderValue::from_static("value"));
                    request.headers_mut().insert(name, value);
                }
                drop(std::hint::black_box(request));
            }
        });
        // A page for the values of headers serves some twenty requests.
        let added = spent.saturating_sub(bare.count_total);
        assert!((1_000..=1_120).contains(&added), "{spent} in all, {} of them for headers", bare.count_total);
    }
}

/// What a call keeps while it is under way is one block, which its way down copies piece by piece: it must not grow unseen.
#[test]
fn a_call_under_way_is_small() {
    let uri: Uri = "http://reviews/a".parse().unwrap();
    let forward =
        Forward { timeout: Some(Duration::from_secs(15)), retry: Some(Default::default()), ..Forward::default() };
    let in_memory = std::mem::size_of_val(&*client(forward).request(request(&uri)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mesh = runtime.block_on(async { Mesh::builder().config(Config::default()).build().await.unwrap() });
    let over_the_wire = std::mem::size_of_val(&*mesh.http().request(request(&uri)));
    assert!(in_memory <= 3_072 && over_the_wire <= 5_000, "{in_memory} and {over_the_wire} bytes");
}

fn request(uri: &Uri) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::default());
    *request.uri_mut() = uri.clone();
    request
}

struct Nowhere;

impl Stage<Picked> for Nowhere {
    type Response = Response<Full<Bytes>>;

    async fn call(&self, picked: Picked) -> Result<Self::Response, Error> {
        drop(picked);
        Ok(Response::new(Full::new(Bytes::from_static(b"answer"))))
    }
}

fn client(forward: Forward) -> HttpClient<Nowhere> {
    let clusters = vec![WeightedCluster { cluster: "reviews".into(), weight: 1, ..Default::default() }];
    let route = Route {
        name: "all".into(),
        origin: None,
        matches: RouteMatch::default(),
        action: Action::Forward(Forward { clusters, ..forward }),
        fault: None,
        headers: Default::default(),
        operation: None,
    };
    let host = VirtualHost {
        name: "reviews".into(),
        domains: vec!["reviews".into()],
        routes: vec![route],
        ..Default::default()
    };
    let table = RouteTable { virtual_hosts: vec![Arc::new(host)], ignore_port: true, ..Default::default() };
    let address = EndpointAddress::Socket(([10, 0, 0, 1], 80).into());
    let endpoints = (1..=3).map(|_| mesh_core::config::Endpoint::at(address.clone())).collect();
    let locality = LocalityEndpoints { endpoints, ..Default::default() };
    let endpoints = Arc::new(Endpoints { localities: vec![locality], ..Default::default() });
    let cluster = Cluster { name: "reviews".into(), endpoints, ..Default::default() };
    let config = Config {
        outbound: [(80, Arc::new(table))].into(),
        clusters: [("reviews".into(), Arc::new(cluster))].into(),
        ..Default::default()
    };
    let live = Live::new();
    live.update(&config).unwrap();
    HttpClient::new(Arc::new(live), Telemetry::new(Workload::default()), Nowhere)
}
