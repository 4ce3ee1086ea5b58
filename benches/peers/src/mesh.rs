//! The mesh under test: `echo` in plaintext and `secure` over mutual TLS, with a timeout and a retry policy.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use mesh_core::config::{
    Action, Cluster, Config, Endpoint, EndpointAddress, Endpoints, Forward, LocalityEndpoints, Route, RouteMatch,
    RouteTable, StringMatch, TlsMode, UpstreamTls, VirtualHost, WeightedCluster,
};
use mesh_tower::{Mesh, tls::Identity};

use crate::{pki, server::Server};

pub async fn start(server: &Server, certificates: &Path) -> Mesh {
    let read = |file| pki::read(certificates, file);
    let identity = Identity::from_pem(&read("chain.pem"), &read("key.pem"), &read("root.pem")).unwrap();
    Mesh::builder().config(config(server)).identity(identity).build().await.unwrap()
}

fn config(server: &Server) -> Config {
    let mut table = RouteTable { ignore_port: true, ..Default::default() };
    let mut config = Config::default();
    for (name, address, tls) in [("echo", server.plain, false), ("secure", server.secure, true)] {
        let forward = Forward {
            clusters: vec![WeightedCluster { cluster: name.into(), weight: 1, ..Default::default() }],
            timeout: Some(Duration::from_secs(15)),
            retry: Some(Default::default()),
            ..Default::default()
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
        let host = VirtualHost {
            name: name.into(),
            domains: vec![name.into()],
            routes: vec![route],
            ..Default::default()
        };
        table.virtual_hosts.push(Arc::new(host));
        config.clusters.insert(name.into(), Arc::new(cluster(name, address, tls)));
    }
    config.outbound.insert(80, Arc::new(table));
    config
}

fn cluster(name: &str, address: SocketAddr, tls: bool) -> Cluster {
    let endpoint = Endpoint::at(EndpointAddress::Socket(address));
    let locality = LocalityEndpoints { endpoints: vec![endpoint], ..Default::default() };
    let endpoints = Endpoints { localities: vec![locality], ..Default::default() };
    let mut cluster = Cluster { name: name.into(), endpoints: Arc::new(endpoints), ..Default::default() };
    if tls {
        let peer = StringMatch::Exact { value: pki::ID.to_owned(), ignore_case: false };
        let tls = UpstreamTls { workload_identity: true, subject_alt_names: vec![peer], ..Default::default() };
        cluster.tls = TlsMode::Always(Arc::new(tls));
    }
    cluster
}
