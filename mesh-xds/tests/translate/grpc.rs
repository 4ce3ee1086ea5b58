//! gRPC's own view: names, domains, and what is said in its words.

use std::{sync::Arc, time::Duration};

use mesh_core::config::{
    Action, Cluster, Config, Discovery, Endpoint, EndpointAddress, Endpoints, Forward, HashPolicy, HashSource, Inbound,
    LoadBalancer, LocalityEndpoints, Maglev, MtlsMode, RetryPolicy, Route, RouteMatch, RouteTable, TlsMode,
    VirtualHost, WeightedCluster,
};
use mesh_xds::{
    ads::{ResourceSet, TypeUrl},
    proto::envoy::{
        config::{
            cluster::v3::{Cluster as ClusterMessage, cluster::LbPolicy},
            endpoint::v3::ClusterLoadAssignment,
            listener::v3::Listener,
            route::v3::{RouteAction, RouteConfiguration, route::Action as RouteMessage},
        },
        extensions::filters::network::http_connection_manager::v3::HttpConnectionManager,
    },
    translate::{self, Shape, encode},
};
use prost::Message;

const HOST: &str = "reviews.default.svc.cluster.local";
const CLUSTER: &str = "outbound|9080||reviews.default.svc.cluster.local";

fn config() -> Config {
    let forward = Forward {
        clusters: vec![WeightedCluster { cluster: CLUSTER.into(), weight: 1, ..Default::default() }],
        timeout: Some(Duration::from_secs(3)),
        retry: Some(RetryPolicy { retries: 0, ..RetryPolicy::default() }),
        ..Forward::default()
    };
    let route = Route {
        name: "default".into(),
        origin: None,
        matches: RouteMatch::default(),
        action: Action::Forward(forward),
        fault: None,
        headers: Default::default(),
        operation: None,
    };
    let host = |domains: &[&str]| {
        let domains = domains.iter().map(|domain| (*domain).to_owned()).collect();
        Arc::new(VirtualHost { domains, routes: vec![route.clone()], ..VirtualHost::default() })
    };
    let endpoint =
        |address: &str, weight| Endpoint { weight, ..Endpoint::at(EndpointAddress::Socket(address.parse().unwrap())) };
    let group = LocalityEndpoints {
        endpoints: vec![endpoint("10.0.0.1:1", 1), endpoint("10.0.0.2:1", 4)],
        ..LocalityEndpoints::default()
    };
    let cluster = Cluster {
        name: CLUSTER.into(),
        discovery: Discovery::Eds(CLUSTER.into()),
        endpoints: Arc::new(Endpoints { localities: vec![group], ..Endpoints::default() }),
        load_balancer: LoadBalancer::Maglev(Maglev::default()),
        hash: vec![HashPolicy { source: HashSource::SourceIp, terminal: true }],
        tls: TlsMode::IfEndpointCan(Arc::default()),
        ..Cluster::default()
    };
    let elsewhere =
        Cluster { name: "PassthroughCluster".into(), discovery: Discovery::OriginalDestination, ..Cluster::default() };
    let table = RouteTable { virtual_hosts: vec![host(&[HOST, "reviews"]), host(&["*"])], ..RouteTable::default() };
    Config {
        outbound: [(9080, Arc::new(table))].into(),
        clusters: [cluster, elsewhere].into_iter().map(|one| (one.name.clone(), Arc::new(one))).collect(),
        ..Config::default()
    }
}

fn names(set: &ResourceSet, kind: TypeUrl) -> Vec<&str> {
    set.iter(kind).map(|(name, _)| &**name).collect()
}

fn read<M: Message + Default>(set: &ResourceSet, kind: TypeUrl, name: &str) -> M {
    M::decode(set.get(kind, name).unwrap().body.clone()).unwrap()
}

/// NR2: a service is a listener under each of its names, all with one set of routes for just that host; what gRPC does not
/// know is said in its words.
#[test]
fn a_service_is_asked_for_by_each_of_its_names() {
    let set = encode(&config(), Shape::Grpc);
    assert_eq!(names(&set, TypeUrl::Listener), ["reviews.default.svc.cluster.local:9080", "reviews:9080"]);
    assert_eq!(names(&set, TypeUrl::Route), [CLUSTER]);
    assert_eq!(names(&set, TypeUrl::Cluster), [CLUSTER], "what gRPC cannot use is not offered");
    let listener: Listener = read(&set, TypeUrl::Listener, "reviews:9080");
    let manager = listener.api_listener.unwrap().api_listener.unwrap();
    let manager = manager.unpack::<HttpConnectionManager>().unwrap().unwrap();
    assert!(format!("{:?}", manager.route_specifier).contains(CLUSTER));

    let routes: RouteConfiguration = read(&set, TypeUrl::Route, CLUSTER);
    let [host] = routes.virtual_hosts.as_slice() else { panic!("{routes:?}") };
    assert_eq!(host.domains, [&format!("{HOST}:9080"), "reviews:9080", HOST, "reviews"]);
    let Some(RouteMessage::Route(RouteAction { max_stream_duration, retry_policy, hash_policy, .. })) =
        &host.routes[0].action
    else {
        panic!("{host:?}")
    };
    assert_eq!(max_stream_duration.as_ref().unwrap().max_stream_duration.unwrap().seconds, 3);
    assert_eq!((retry_policy, hash_policy.len()), (&None, 1));

    let cluster: ClusterMessage = read(&set, TypeUrl::Cluster, CLUSTER);
    assert_eq!(cluster.lb_policy, i32::from(LbPolicy::RingHash));
    assert!(cluster.transport_socket.is_none() && cluster.transport_socket_matches.is_empty());
    let endpoints: ClusterLoadAssignment = read(&set, TypeUrl::Endpoint, CLUSTER);
    assert!(endpoints.endpoints[0].locality.is_some());
    assert_eq!(endpoints.endpoints[0].load_balancing_weight, Some(5));
}

/// A server of gRPC's own has a listener at each address it may name, unless it would have to prove who it is.
#[test]
fn servers_have_listeners_for_plaintext_only() {
    let listeners = |mtls| {
        let inbound = Inbound { mtls, ..Inbound::default() };
        let mut set = ResourceSet::default();
        let config = Config { inbound: [(80, Arc::new(inbound))].into(), ..Config::default() };
        translate::encode_grpc_servers(&config, "10.0.0.1".parse().unwrap(), &mut set);
        names(&set, TypeUrl::Listener).join(" ")
    };
    let all = "xds.istio.io/grpc/lds/inbound/0.0.0.0:80 xds.istio.io/grpc/lds/inbound/10.0.0.1:80 xds.istio.io/grpc/lds/inbound/[::]:80";
    assert_eq!(listeners(MtlsMode::Permissive), all);
    assert_eq!(listeners(MtlsMode::Disable), all);
    assert_eq!(listeners(MtlsMode::Strict), "");
}
