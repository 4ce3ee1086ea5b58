//! Configurations given in code: a host, its cluster, its endpoints.

use std::{net::SocketAddr, sync::Arc};

use mesh_tower::config::{
    Action, Cluster, Config, Endpoint, EndpointAddress, Endpoints, Forward, HeaderChanges, Health, LocalityEndpoints,
    Name, Route, RouteMatch, RouteTable, ServiceName, StringMatch, TlsMode, UpstreamTls, VirtualHost, WeightedCluster,
};

/// `http://HOST:9080/` goes to `cluster`.
pub(crate) fn config(host: &str, cluster: Cluster) -> Config {
    config_at(9080, host, cluster)
}

/// As [`config`], for the listener of a port.
pub(crate) fn config_at(port: u16, host: &str, cluster: Cluster) -> Config {
    let forward = Forward {
        clusters: vec![WeightedCluster { cluster: cluster.name.clone(), weight: 1, ..WeightedCluster::default() }],
        ..Forward::default()
    };
    let route = Route {
        name: Name::default(),
        origin: None,
        matches: RouteMatch::default(),
        action: Action::Forward(forward),
        fault: None,
        headers: HeaderChanges::default(),
        operation: None,
    };
    let host = VirtualHost {
        name: host.into(),
        domains: vec![host.to_owned(), format!("{host}:{port}")],
        routes: vec![route],
        ..VirtualHost::default()
    };
    let table = RouteTable { virtual_hosts: vec![Arc::new(host)], ..RouteTable::default() };
    Config {
        outbound: [(port, Arc::new(table))].into(),
        clusters: [(cluster.name.clone(), Arc::new(cluster))].into(),
        ..Config::default()
    }
}

pub(crate) fn cluster(name: &str, addresses: &[SocketAddr]) -> Cluster {
    let endpoint = |address: &SocketAddr| Endpoint {
        address: EndpointAddress::Socket(*address),
        weight: 1,
        health: Health::Healthy,
        mtls: true,
        workload: None,
        hostname: "".into(),
        hash_key: None,
        more: None,
    };
    let locality = LocalityEndpoints { endpoints: addresses.iter().map(endpoint).collect(), ..Default::default() };
    Cluster {
        name: name.into(),
        service: Some(ServiceName {
            host: format!("{name}.default.svc.cluster.local").into(),
            name: name.into(),
            namespace: "default".into(),
        }),
        endpoints: Arc::new(Endpoints { localities: vec![locality], ..Endpoints::default() }),
        ..Cluster::default()
    }
}

/// Mutual TLS with whoever has one of these ids.
pub(crate) fn mutual(ids: &[&str]) -> TlsMode {
    let exact = |id: &&str| StringMatch::Exact { value: (*id).to_owned(), ignore_case: false };
    TlsMode::Always(Arc::new(UpstreamTls {
        workload_identity: true,
        subject_alt_names: ids.iter().map(exact).collect(),
        ..UpstreamTls::default()
    }))
}
