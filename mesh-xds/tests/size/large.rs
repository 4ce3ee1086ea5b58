//! A configuration of any size: so many services, each a virtual host with one route, a cluster and ten endpoints.

use std::{net::SocketAddr, sync::Arc};

use mesh_core::config::{
    Action, Cluster, Config, Discovery, Endpoint, Endpoints, Forward, LocalityEndpoints, Name, Route, RouteMatch,
    RouteTable, VirtualHost, WeightedCluster, Workload,
};

/// Of each service.
pub(crate) const ENDPOINTS: usize = 10;

/// The name of a service.
pub(crate) fn service(at: usize) -> String {
    format!("service-{at}.default.svc.cluster.local")
}

/// The name of its cluster.
pub(crate) fn cluster_name(at: usize) -> Name {
    format!("outbound|9080||{}", service(at)).into()
}

/// The endpoints of a service, all on this machine; another `turn`, another last one.
pub(crate) fn endpoints(at: usize, port: u16, turn: usize) -> Arc<Endpoints> {
    let workload = Workload {
        name: format!("service-{at}-v1").into(),
        namespace: "default".into(),
        canonical_name: format!("service-{at}").into(),
        canonical_revision: "v1".into(),
        cluster: "Kubernetes".into(),
        ..Workload::default()
    };
    let workload = Arc::new(workload);
    let endpoint = |n: usize| {
        // Each has an address of its own, and all of them lead to this machine.
        let number = at * ENDPOINTS + n + 1;
        let turn = if n + 1 == ENDPOINTS { (turn % 2) as u8 * 100 } else { 0 };
        let ip = [127, 1 + (number >> 16) as u8 + turn, (number >> 8) as u8, number as u8];
        Endpoint { workload: Some(Arc::clone(&workload)), ..SocketAddr::from((ip, port)).into() }
    };
    let endpoints = (0..ENDPOINTS).map(endpoint).collect();
    Arc::new(Endpoints {
        localities: vec![LocalityEndpoints { endpoints, ..LocalityEndpoints::default() }],
        ..Endpoints::default()
    })
}

/// One cluster.
pub(crate) fn cluster(at: usize, port: u16, turn: usize) -> Arc<Cluster> {
    let name = cluster_name(at);
    let discovery = Discovery::Eds(Name::clone(&name));
    Arc::new(Cluster { name, discovery, endpoints: endpoints(at, port, turn), ..Cluster::default() })
}

/// All of it.
pub(crate) fn config(services: usize, port: u16) -> Config {
    let host = |at: usize| {
        let to = WeightedCluster { cluster: cluster_name(at), weight: 1, ..WeightedCluster::default() };
        let route = Route {
            name: "default".into(),
            origin: None,
            matches: RouteMatch::default(),
            action: Action::Forward(Forward { clusters: vec![to], ..Forward::default() }),
            fault: None,
            headers: Default::default(),
            operation: None,
        };
        let domains = vec![service(at), format!("service-{at}")];
        let name = format!("{}:80", service(at)).into();
        Arc::new(VirtualHost { name, domains, routes: vec![route], ..VirtualHost::default() })
    };
    let table = RouteTable {
        name: "80".into(),
        virtual_hosts: (0..services).map(host).collect(),
        ignore_port: true,
        ..RouteTable::default()
    };
    Config {
        outbound: [(80, Arc::new(table))].into(),
        clusters: (0..services).map(|at| (cluster_name(at), cluster(at, port, 0))).collect(),
        ..Config::default()
    }
}
