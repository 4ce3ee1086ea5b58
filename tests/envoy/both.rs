//! One configuration in force on both sides: the bytes Envoy reads are the bytes that `mesh_xds::translate` decodes.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, LazyLock},
};

use bytes::Bytes;
use mesh_core::config::{self, Action, Config, RetryPolicy};
use mesh_tower::{Mesh, layer::RetryLayer};
use mesh_xds::{
    proto::{
        Any, DESCRIPTORS,
        envoy::{
            config::{
                cluster::v3::{
                    CircuitBreakers, Cluster,
                    circuit_breakers::Thresholds,
                    cluster::{ClusterDiscoveryType, DiscoveryType},
                },
                core::v3::{Address, Http2ProtocolOptions, SocketAddress, address, socket_address::PortSpecifier},
                endpoint::v3::{
                    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
                },
                route::v3::{
                    Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route::Action as RouteActionKind,
                    route_action::ClusterSpecifier, route_match::PathSpecifier,
                },
            },
            extensions::upstreams::http::v3::{
                HttpProtocolOptions,
                http_protocol_options::{
                    ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
                },
            },
        },
    },
    translate,
};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage};
use serde_json::{Value, json};

use crate::{
    ask::{Caller, Downstream},
    process::{Envoy, Options, slot_name},
};

/// An Envoy and a mesh with the same configuration.
#[derive(Debug)]
pub(crate) struct Both {
    envoy: Envoy,
    mesh: Mesh,
    config: Config,
    envoys: Vec<Caller>,
    ours: Vec<Caller>,
}

/// What each side said to a route configuration.
#[derive(Clone, Debug)]
pub(crate) struct Verdict {
    /// Envoy's refusal.
    pub(crate) envoy: Result<(), String>,
    /// The fields ours ignores, or its refusal.
    pub(crate) ours: Result<Vec<String>, String>,
}

impl Both {
    /// Starts both without any configuration; `None`, after saying so, where there is no Envoy.
    pub(crate) async fn start(options: &Options) -> Option<Self> {
        let envoy = Envoy::start(options).await?;
        let mesh = Mesh::builder().config(Config::default()).build().await.unwrap();
        let slots = 0..envoy.slots();
        let envoys = slots.clone().map(|slot| Caller::Envoy(Arc::new(Downstream::to(envoy.address(slot))))).collect();
        let ours = |slot| Caller::Ours(mesh.http().on_port(port(slot)).with_retries(RetryLayer::like_envoy()));
        let ours = slots.map(ours).collect();
        Some(Self { envoy, mesh, config: Config::default(), envoys, ours })
    }

    /// Puts these clusters in force instead of those before. Their endpoints are to be listed in them.
    pub(crate) async fn clusters(&mut self, clusters: &[Cluster]) {
        let encoded: Vec<Vec<u8>> = clusters.iter().map(Message::encode_to_vec).collect();
        let decode = |bytes: &Vec<u8>| {
            let decoded = translate::cluster(&Bytes::from(bytes.clone())).expect("ours takes the cluster");
            assert!(decoded.ignored.is_empty(), "{}: {:?} are ignored", decoded.name, decoded.ignored);
            (decoded.name, decoded.value)
        };
        self.config.clusters = encoded.iter().map(decode).collect();
        self.envoy.clusters(encoded).await;
        self.update();
    }

    /// Puts routes in force, the first in slot 0 and so on; they get the names of their slots. What is refused leaves
    /// the slot as it was, on that side.
    pub(crate) async fn routes(&mut self, routes: Vec<RouteConfiguration>) -> Vec<Verdict> {
        let named = |(slot, routes): (usize, RouteConfiguration)| {
            (slot, RouteConfiguration { name: slot_name(slot), ..routes }.encode_to_vec())
        };
        self.encoded_routes(routes.into_iter().enumerate().map(named).collect()).await
    }

    /// As [`routes`](Self::routes), of slots and bytes.
    pub(crate) async fn encoded_routes(&mut self, routes: Vec<(usize, Vec<u8>)>) -> Vec<Verdict> {
        let envoy = self.envoy.routes(&routes).await;
        let mut verdicts = Vec::new();
        for ((slot, bytes), envoy) in routes.into_iter().zip(envoy) {
            let ours = match translate::route(&Bytes::from(bytes)) {
                Ok(decoded) => {
                    self.config.outbound.insert(port(slot), Arc::new(as_envoy(&decoded.value)));
                    Ok(decoded.ignored)
                }
                Err(error) => Err(error.to_string()),
            };
            verdicts.push(Verdict { envoy, ours });
        }
        self.update();
        verdicts
    }

    /// Changes what ours has in force beyond what the wire says; what is decoded later starts from the wire again.
    pub(crate) fn adjust(&mut self, change: impl FnOnce(&mut Config)) {
        change(&mut self.config);
        self.update();
    }

    /// The Envoy.
    pub(crate) fn envoy(&self) -> &Envoy {
        &self.envoy
    }

    /// Ours.
    pub(crate) fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// Through Envoy, by the routes of a slot.
    pub(crate) fn through_envoy(&self, slot: usize) -> &Caller {
        &self.envoys[slot]
    }

    /// Through ours, by the routes of a slot.
    pub(crate) fn through_ours(&self, slot: usize) -> &Caller {
        &self.ours[slot]
    }

    fn update(&self) {
        self.mesh.live().update(&self.config).expect("what was decoded compiles");
    }
}

/// The seed of a generated comparison: always the same, unless `MESH_SEED` gives another or the word `random`.
pub(crate) fn seed(usual: u64) -> u64 {
    match std::env::var("MESH_SEED").as_deref() {
        Ok("random") => rand::random(),
        Ok(seed) => seed.parse().expect("a number or `random`"),
        Err(_) => usual,
    }
}

/// The bytes of a `RouteConfiguration` in JSON, for a slot.
pub(crate) fn encode_routes(routes: &Value, slot: usize) -> Vec<u8> {
    static POOL: LazyLock<DescriptorPool> =
        LazyLock::new(|| DescriptorPool::decode(DESCRIPTORS).expect("the descriptors"));
    let mut routes = routes.clone();
    routes["name"] = json!(slot_name(slot));
    let kind = POOL.get_message_by_name("envoy.config.route.v3.RouteConfiguration").expect("known");
    match DynamicMessage::deserialize(kind, &routes) {
        Ok(message) => message.encode_to_vec(),
        Err(error) => panic!("{error} in {routes:#}"),
    }
}

/// The port at which ours has the routes of a slot.
fn port(slot: usize) -> u16 {
    u16::try_from(slot + 1).unwrap()
}

/// Where we are stricter than Envoy on purpose, and say so in the documentation, the comparison is made without: only
/// idempotent methods are tried again.
fn as_envoy(table: &config::RouteTable) -> config::RouteTable {
    let lax = |retry: &mut Option<RetryPolicy>| {
        if let Some(retry) = retry {
            retry.only_idempotent = false;
        }
    };
    let mut table = table.clone();
    for host in &mut table.virtual_hosts {
        let host = Arc::make_mut(host);
        lax(&mut host.retry);
        for route in &mut host.routes {
            if let Action::Forward(forward) = &mut route.action {
                lax(&mut forward.retry);
            }
        }
    }
    table
}

/// A cluster of these endpoints, over HTTP/1.1, with everything else as it is by default.
pub(crate) fn cluster(name: &str, endpoints: impl IntoIterator<Item = SocketAddr>) -> Cluster {
    let lb_endpoints = endpoints.into_iter().map(endpoint).collect();
    let endpoints = vec![LocalityLbEndpoints { lb_endpoints, ..LocalityLbEndpoints::default() }];
    Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into())),
        load_assignment: Some(ClusterLoadAssignment {
            cluster_name: name.to_owned(),
            endpoints,
            ..ClusterLoadAssignment::default()
        }),
        ..Cluster::default()
    }
}

/// However many requests and retries there are at once.
pub(crate) fn at_will(cluster: Cluster) -> Cluster {
    let most = Some(10_000);
    let thresholds = Thresholds {
        max_connections: most,
        max_pending_requests: most,
        max_requests: most,
        max_retries: most,
        ..Thresholds::default()
    };
    Cluster { circuit_breakers: Some(CircuitBreakers { thresholds: vec![thresholds] }), ..cluster }
}

/// The same over HTTP/2.
pub(crate) fn http2(mut cluster: Cluster) -> Cluster {
    let explicit = ExplicitHttpConfig {
        protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(Http2ProtocolOptions::default())),
    };
    let options = HttpProtocolOptions {
        upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)),
        ..HttpProtocolOptions::default()
    };
    let name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned();
    cluster.typed_extension_protocol_options = BTreeMap::from([(name, Any::pack(&options))]);
    cluster
}

/// An endpoint, of which nothing but its address is known.
pub(crate) fn endpoint(address: SocketAddr) -> LbEndpoint {
    let socket = SocketAddress {
        address: address.ip().to_string(),
        port_specifier: Some(PortSpecifier::PortValue(address.port().into())),
        ..SocketAddress::default()
    };
    let address = Some(Address { address: Some(address::Address::SocketAddress(socket)) });
    let identifier = HostIdentifier::Endpoint(Endpoint { address, ..Endpoint::default() });
    LbEndpoint { host_identifier: Some(identifier), ..LbEndpoint::default() }
}

/// Routes of every request, by these actions, the first one that matches.
pub(crate) fn routes(routes: Vec<Route>) -> RouteConfiguration {
    let host = VirtualHost { name: "all".to_owned(), domains: vec!["*".to_owned()], routes, ..VirtualHost::default() };
    RouteConfiguration { virtual_hosts: vec![host], ..RouteConfiguration::default() }
}

/// A route of every path below a prefix.
pub(crate) fn route(prefix: &str, action: RouteAction) -> Route {
    let path = PathSpecifier::Prefix(prefix.to_owned());
    Route {
        r#match: Some(RouteMatch { path_specifier: Some(path), ..RouteMatch::default() }),
        action: Some(RouteActionKind::Route(action)),
        ..Route::default()
    }
}

/// Sending to one cluster.
pub(crate) fn to(cluster: &str) -> RouteAction {
    RouteAction { cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())), ..RouteAction::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ask::Ask,
        upstream::{Arrived, Upstream},
    };

    /// The harness itself: both sides reach the same upstream over HTTP/1.1, HTTP/2 and gRPC, and a change takes force.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn both_sides_reach_the_same_upstream() {
        let Some(mut both) = Both::start(&Options { slots: 2, ..Options::default() }).await else { return };
        let (a, b) = (Upstream::echo("a").await, Upstream::echo("b").await);
        both.clusters(&[cluster("a", [a.address()]), http2(cluster("b", [b.address()]))]).await;
        for (first, second) in [("a", "b"), ("b", "a")] {
            let verdicts =
                both.routes(vec![routes(vec![route("/", to(first))]), routes(vec![route("/", to(second))])]).await;
            for verdict in verdicts {
                assert_eq!((verdict.envoy, verdict.ours), (Ok(()), Ok(Vec::new())));
            }
            for (slot, expected) in [first, second].into_iter().enumerate() {
                for caller in [both.through_envoy(slot), both.through_ours(slot)] {
                    let answer = caller.ask(&Ask::get("host:80", "/x?y").with("x-asked", "1")).await.unwrap();
                    let arrived: Arrived = serde_json::from_slice(&answer.body).unwrap();
                    assert_eq!((arrived.upstream.as_str(), arrived.path.as_str()), (expected, "/x?y"));
                    assert_eq!(arrived.authority, "host:80");
                    assert!(arrived.all("x-asked").eq(["1"]));
                    if expected == "b" {
                        let answer = caller.ask(&Ask::grpc("host", "/a.B/C")).await.unwrap();
                        assert_eq!(answer.trailers["grpc-status"], "0");
                    }
                }
            }
        }
        both.adjust(|config| config.outbound.clear());
        assert_eq!(both.through_ours(0).ask(&Ask::get("host", "/")).await.unwrap().status, 404);
        let bad = VirtualHost { name: "bad".to_owned(), ..VirtualHost::default() };
        let bad = RouteConfiguration { virtual_hosts: vec![bad], ..RouteConfiguration::default() };
        let verdicts = both.routes(vec![bad]).await;
        assert!(verdicts[0].envoy.as_ref().unwrap_err().contains("omains"), "{verdicts:?}");
        assert!(verdicts[0].ours.is_err(), "{verdicts:?}");
        assert!(both.envoy().stat("cluster.a.upstream_rq_completed").await > 0);
        assert!(a.requests() > 0 && b.requests() > 0 && a.name() == "a");
        assert!(both.mesh().snapshot().is_some());
    }
}
