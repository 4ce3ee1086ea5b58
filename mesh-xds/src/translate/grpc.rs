//! gRPC's own view of a mesh, written: what a client that dials `xds:///HOST:PORT` asks for, by name.
//!
//! Each name a service goes by is a listener that is only there to be asked for (an API listener); it names the routes
//! `outbound|PORT||HOST`, which hold that one host, under `host:port`, since gRPC compares the name that was dialled as a whole.
//! What gRPC's libraries do not know is said in their words or left out: a route's timeout is `max_stream_duration`, a
//! balancer that they lack is round robin, localities always have a weight, and nothing is encrypted unless a policy says so.
//! Sources: istiod `pilot/pkg/networking/grpcgen`; gRFC A27, A31, A33, A42, A44.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use mesh_core::config::{
    Action, Cluster, Config, Discovery, EVERY_PORT, EndpointAddress, Endpoints, HashPolicy, HttpSettings, LoadBalancer,
    MtlsMode, Name, RingHash, Route, RouteTable, Thresholds, TlsMode, VirtualHost,
};
use prost::Message as _;

use super::{GRPC_SERVERS, cluster, endpoint, listener, route};
use crate::{
    ads::{ResourceSet, TypeUrl},
    proto::envoy::config::endpoint::v3::ClusterLoadAssignment,
};

/// The listeners and routes.
pub(super) fn encode_routes(config: &Config, set: &mut ResourceSet) {
    let none = HttpSettings::default();
    for (&port, table) in &config.outbound {
        let settings = config.http.get(&port).map_or(&none, |settings| &**settings);
        for host in &table.virtual_hosts {
            // The host for all others is nothing that could be dialled.
            let named = host.domains.iter().filter(|domain| !domain.contains('*'));
            let dialled: Vec<String> = named.clone().map(|domain| format!("{domain}:{port}")).collect();
            let Some(main) = host.domains.first().filter(|domain| !domain.contains('*')) else { continue };
            let name = format!("outbound|{port}||{main}");
            for listener in &dialled {
                let message = listener::encode_api(listener, &name, settings);
                set.insert(TypeUrl::Listener, listener.as_str(), message.encode_to_vec());
            }
            let routes = host.routes.iter().map(|route| of_route(route, config)).collect();
            let domains = dialled.into_iter().chain(named.cloned()).collect();
            let host = VirtualHost { domains, routes, mirrors: Vec::new(), ..VirtualHost::clone(host) };
            let table = RouteTable {
                virtual_hosts: vec![Arc::new(host)],
                headers: table.headers.clone(),
                ..RouteTable::default()
            };
            set.insert(TypeUrl::Route, name.as_str(), route::encode(&name, &table).encode_to_vec());
        }
    }
}

/// The listeners that a server of gRPC's own asks for, by each address it may say that it listens on (gRFC A36): for every port
/// that takes plaintext. What demands more than that has none, so that such a server does not serve: its library cannot be told
/// here how to prove who it is.
pub(super) fn encode_servers(config: &Config, address: IpAddr, set: &mut ResourceSet) {
    let open =
        config.inbound.iter().filter(|(_, inbound)| inbound.mtls != MtlsMode::Strict && inbound.refused.is_none());
    for (&port, inbound) in open.filter(|(port, _)| **port != EVERY_PORT) {
        let everywhere = [IpAddr::from(Ipv4Addr::UNSPECIFIED), IpAddr::from(Ipv6Addr::UNSPECIFIED)];
        for address in everywhere.into_iter().chain([address]) {
            let address = SocketAddr::new(address, port);
            let name = GRPC_SERVERS.replace("%s", &address.to_string());
            set.insert(
                TypeUrl::Listener,
                name.as_str(),
                listener::encode_server(&name, address, inbound).encode_to_vec(),
            );
        }
    }
}

/// The name of an assignment, and the assignment.
pub(super) type Assigned = (Name, Vec<u8>);

/// A cluster and its endpoints; `None` if no library of gRPC's could use it.
pub(super) fn encode_cluster(cluster: &Cluster) -> Option<(Vec<u8>, Option<Assigned>)> {
    let mut plain = Cluster {
        name: cluster.name.clone(),
        service: cluster.service.clone(),
        connect_timeout: cluster.connect_timeout,
        load_balancer: balancer(&cluster.load_balancer),
        // Limits of connections mean nothing where there is one connection to an endpoint.
        thresholds: Thresholds { max_requests: cluster.thresholds.max_requests, ..UNLIMITED },
        high_thresholds: UNLIMITED,
        tls: TlsMode::Disable,
        origin: cluster.origin.clone(),
        ..Cluster::default()
    };
    let assigned = |name: &Name, endpoints: &Endpoints| (name.clone(), assignment(name, endpoints).encode_to_vec());
    let endpoints = match &cluster.discovery {
        Discovery::Eds(name) => Some(assigned(name, &cluster.endpoints)),
        Discovery::Static if !cluster.endpoints.localities.is_empty() => {
            Some(assigned(&cluster.name, &cluster.endpoints))
        }
        Discovery::StrictDns(names) => {
            plain.discovery = Discovery::LogicalDns(names.first()?.clone());
            None
        }
        Discovery::LogicalDns(_) | Discovery::Aggregate(_) => {
            plain.discovery = cluster.discovery.clone();
            None
        }
        Discovery::Static | Discovery::OriginalDestination => return None,
    };
    if let Some((name, _)) = &endpoints {
        plain.discovery = Discovery::Eds(name.clone());
    }
    Some((cluster::encode(&plain).encode_to_vec(), endpoints))
}

const UNLIMITED: Thresholds = Thresholds {
    max_connections: u32::MAX,
    max_pending_requests: u32::MAX,
    max_requests: u32::MAX,
    max_retries: u32::MAX,
    retry_budget: None,
    max_requests_per_endpoint: u32::MAX,
};

/// Round robin and the ring are what all of gRPC's libraries have.
fn balancer(choice: &LoadBalancer) -> LoadBalancer {
    match choice {
        LoadBalancer::RingHash(ring) => LoadBalancer::RingHash(*ring),
        LoadBalancer::Maglev(_) => LoadBalancer::RingHash(RingHash::default()),
        LoadBalancer::ClientWeighted(_) | LoadBalancer::PickFirst(_) => choice.clone(),
        _ => LoadBalancer::RoundRobin,
    }
}

fn of_route(route: &Route, config: &Config) -> Route {
    let mut route = route.clone();
    if let Action::Forward(forward) = &mut route.action {
        forward.max_stream_duration = forward.max_stream_duration.or_else(|| forward.timeout.take());
        forward.hash.extend(hashes(forward.clusters.iter().map(|split| &split.cluster), config));
        // No retries is said by no policy.
        forward.retry = forward.retry.take().filter(|retry| retry.retries > 0);
        forward.rate_limit = None;
        forward.global_limit = None;
        forward.rate_limits = Vec::new();
        forward.hedge = None;
        forward.mirrors = Vec::new();
        forward.upgrades = Vec::new();
    }
    route
}

/// What the clusters of a route hash by, which gRPC looks for on the route.
fn hashes<'a>(clusters: impl Iterator<Item = &'a Name>, config: &Config) -> Vec<HashPolicy> {
    let mut found: BTreeMap<usize, HashPolicy> = BTreeMap::new();
    for cluster in clusters.filter_map(|name| config.clusters.get(name)) {
        for policy in &cluster.hash {
            if !found.values().any(|other| other == policy) {
                found.insert(found.len(), policy.clone());
            }
        }
    }
    found.into_values().collect()
}

/// Localities are passed over by gRPC when they have no weight, and must be there.
fn assignment(name: &str, endpoints: &Endpoints) -> ClusterLoadAssignment {
    let mut known = endpoints.clone();
    for group in &mut known.localities {
        group.endpoints.retain(|endpoint| matches!(endpoint.address, EndpointAddress::Socket(_)));
    }
    known.localities.retain(|group| !group.endpoints.is_empty());
    let mut message = endpoint::encode(name, &known);
    for group in &mut message.endpoints {
        group.locality.get_or_insert_default();
        let sum =
            group.lb_endpoints.iter().map(|one| one.load_balancing_weight.unwrap_or(1)).fold(0, u32::saturating_add);
        group.load_balancing_weight.get_or_insert(sum);
    }
    message
}
