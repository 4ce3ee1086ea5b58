//! What a request through the whole client stack allocates: one boxed future at the border, and room for the headers it
//! must carry. Counted by an allocator of this test alone, above an endpoint that answers from memory.
#![allow(clippy::unwrap_used)]

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use mesh_core::config::{
    Action, Cluster, Config, EndpointAddress, Endpoints, Forward, LocalityEndpoints, Route, RouteMatch, RouteTable,
    ServiceName, VirtualHost, WeightedCluster, Workload,
};
use mesh_tower::{
    Error, HttpClient, Live, Mesh,
    layer::{Picked, Stage},
    telemetry::{AccessLog, Event, MetricProfiles, Peer, Reporter, Spans, Telemetry},
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

/// TE2, TE3: told by OpenTelemetry's names and by gRPC's as well, a request allocates no more than told by Istio's.
#[test]
fn other_conventions_allocate_nothing() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let uri: Uri = "http://reviews/a.S/M".parse().unwrap();
    for is_grpc in [false, true] {
        let spent = [false, true].map(|all| {
            let profiles = MetricProfiles { otel: all, grpc: all, locality: all, ..MetricProfiles::default() };
            let client = told(Forward { retry: Some(Default::default()), ..Forward::default() }, profiles);
            let through = || async {
                for _ in 0..1_000 {
                    let mut request = request(&uri);
                    if is_grpc {
                        let value = HeaderValue::from_static("application/grpc");
                        request.headers_mut().insert("content-type", value);
                    }
                    let mut body = client.request(request).await.unwrap().into_body();
                    while let Some(frame) = body.frame().await {
                        frame.unwrap();
                    }
                }
            };
            runtime.block_on(through());
            allocation_counter::measure(|| runtime.block_on(through())).count_total
        });
        // A page for the values of headers is begun here or there.
        assert!(spent[1] <= spent[0] + 2, "{spent:?}, gRPC {is_grpc}");
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

/// TE1: whatever callers call themselves and whatever they ask for, by a million names, costs at most 16 MiB; and telling of a
/// request whose series is known allocates nothing.
#[test]
fn hostile_names_cost_little_memory() {
    let telemetry = Telemetry::new(Workload::default());
    let tell = |name: &str| {
        let workload = Workload { name: name.into(), namespace: "default".into(), ..Workload::default() };
        let peer = Arc::new(Peer::new(workload, Some(name.into())));
        let service = ServiceName { host: name.into(), name: name.into(), namespace: "default".into() };
        (peer, service)
    };
    let record = |(peer, service): &(Arc<Peer>, ServiceName)| {
        telemetry.record(&Event {
            reporter: Reporter::Destination,
            peer: Some(peer),
            service: Some(service),
            cluster: None,
            route: None,
            upstream: None,
            logged: None,
            telling: None,
            is_grpc: false,
            status: 200,
            grpc_status: None,
            flags: Default::default(),
            details: "",
            request_bytes: 1,
            response_bytes: 1,
            request_messages: 0,
            response_messages: 0,
            duration: Duration::from_millis(1),
            mutual_tls: true,
            attempts: 0,
        });
    };
    let spent = allocation_counter::measure(|| {
        for number in 0..1_000_000 {
            record(&tell(&format!("a-workload-by-the-name-of-{number}")));
        }
    });
    assert!(spent.bytes_max <= 16 << 20, "{} bytes", spent.bytes_max);
    let known = tell("a-workload-by-the-name-of-7");
    record(&known);
    let again = allocation_counter::measure(|| (0..1_000).for_each(|_| record(&known)));
    assert_eq!(again.count_total, 0);

    // Through the whole stack: methods and paths of every kind, to a host there is and to hosts there are not.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let client = client(Forward::default());
    let ask = |number: u32| {
        let host = if number.is_multiple_of(2) { "reviews".to_owned() } else { format!("host-{number}.example") };
        let mut request = Request::new(Full::<Bytes>::default());
        *request.uri_mut() = format!("http://{host}/path/{number}?query={number}").parse().unwrap();
        *request.method_mut() = http::Method::from_bytes(format!("METHOD{number}").as_bytes()).unwrap();
        let client = client.clone();
        async move { drop(client.request(request).await) }
    };
    let spent = allocation_counter::measure(|| (0..20_000).for_each(|number| runtime.block_on(ask(number))));
    assert!(spent.bytes_current <= 1 << 20, "{} bytes are kept", spent.bytes_current);
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
    told(forward, MetricProfiles::default())
}

fn told(forward: Forward, profiles: MetricProfiles) -> HttpClient<Nowhere> {
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
    let local = Peer::new(Workload::default(), None);
    let telemetry = Telemetry::by(profiles, local, None, Spans::none(), AccessLog::Off, None);
    HttpClient::new(Arc::new(live), telemetry, Nowhere)
}
