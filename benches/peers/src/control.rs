//! The control plane of tonic-xds: our own ADS service with the four resources of one service, two endpoints of it.

use std::{net::SocketAddr, sync::Arc};

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{
                Cluster,
                cluster::{ClusterDiscoveryType, DiscoveryType, EdsClusterConfig},
            },
            core::v3::{
                Address, AggregatedConfigSource, ConfigSource, SocketAddress, address, config_source, socket_address,
            },
            endpoint::v3::{
                ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
            },
            listener::v3::{ApiListener, Listener},
            route::v3::{
                RetryPolicy, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route::Action,
                route_action::ClusterSpecifier, route_match::PathSpecifier,
            },
        },
        extensions::filters::network::http_connection_manager::v3::{
            HttpConnectionManager, http_connection_manager::RouteSpecifier,
        },
    },
    google::protobuf::{Any, UInt32Value},
};
use mesh_xds::{
    ads::{ResourceSet, TypeUrl},
    node::Node,
    server::{ConnectionId, Credentials, Peer, Source, ads_service},
};
use prost::Message;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tonic_xds::{BootstrapConfig, XdsChannelBuilder, XdsChannelConfig, XdsChannelGrpc, XdsUri};

const MANAGER: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

/// Serves, and says where.
pub async fn serve(backend: SocketAddr) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, resources) = watch::channel(Arc::new(resources(backend)));
    let service = ads_service(Arc::new(Resources(resources)));
    tokio::spawn(async move {
        let server = tonic::transport::Server::builder().add_service(service);
        server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
        drop(sender);
    });
    address
}

/// A channel of tonic-xds to the service.
pub fn channel(control: SocketAddr) -> XdsChannelGrpc {
    let bootstrap = serde_json::json!({
        "xds_servers": [{"server_uri": format!("http://{control}"), "channel_creds": [{"type": "insecure"}]}],
        "node": {"id": "bench"},
    });
    let bootstrap = BootstrapConfig::from_json(&bootstrap.to_string()).unwrap();
    let config = XdsChannelConfig::new(XdsUri::parse("xds:///echo").unwrap()).with_bootstrap(bootstrap);
    XdsChannelBuilder::new(config).build_grpc_channel().unwrap()
}

struct Resources(watch::Receiver<Arc<ResourceSet>>);

impl Source for Resources {
    fn verify(&self, _: &Credentials) -> Result<Option<String>, tonic::Status> {
        Ok(None)
    }

    fn connect(
        &self,
        _: &Peer,
        _: &Node,
    ) -> Result<(ConnectionId, watch::Receiver<Arc<ResourceSet>>), tonic::Status> {
        Ok((ConnectionId(1), self.0.clone()))
    }

    fn acked(&self, _: ConnectionId, _: TypeUrl, _: &str) {}

    fn nacked(&self, _: ConnectionId, kind: TypeUrl, _: &str, message: &str) {
        panic!("tonic-xds refuses {kind:?}: {message}");
    }

    fn disconnect(&self, _: ConnectionId) {}
}

fn resources(backend: SocketAddr) -> ResourceSet {
    let retry = RetryPolicy { retry_on: "unavailable,cancelled".to_owned(), ..Default::default() };
    let route = Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
            ..Default::default()
        }),
        action: Some(Action::Route(RouteAction {
            cluster_specifier: Some(ClusterSpecifier::Cluster("echo".to_owned())),
            retry_policy: Some(retry),
            ..Default::default()
        })),
        ..Default::default()
    };
    let host = VirtualHost {
        name: "echo".to_owned(),
        domains: vec!["*".to_owned()],
        routes: vec![route],
        ..Default::default()
    };
    let routes = RouteConfiguration { name: "echo".to_owned(), virtual_hosts: vec![host], ..Default::default() };
    let manager =
        HttpConnectionManager { route_specifier: Some(RouteSpecifier::RouteConfig(routes)), ..Default::default() };
    let manager = Any { type_url: MANAGER.to_owned(), value: manager.encode_to_vec() };
    let listener = Listener {
        name: "echo".to_owned(),
        api_listener: Some(ApiListener { api_listener: Some(manager) }),
        ..Default::default()
    };
    let ads = config_source::ConfigSourceSpecifier::Ads(AggregatedConfigSource::default());
    let eds = ConfigSource { config_source_specifier: Some(ads), ..Default::default() };
    let cluster = Cluster {
        name: "echo".to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
        eds_cluster_config: Some(EdsClusterConfig { eds_config: Some(eds), ..Default::default() }),
        ..Default::default()
    };
    let endpoint = |ip: &str| {
        let socket = SocketAddress {
            address: ip.to_owned(),
            port_specifier: Some(socket_address::PortSpecifier::PortValue(backend.port().into())),
            ..Default::default()
        };
        let address = Some(Address { address: Some(address::Address::SocketAddress(socket)) });
        let endpoint = Endpoint { address, ..Default::default() };
        LbEndpoint { host_identifier: Some(HostIdentifier::Endpoint(endpoint)), ..Default::default() }
    };
    let locality = LocalityLbEndpoints {
        lb_endpoints: vec![endpoint("127.0.0.1")],
        load_balancing_weight: Some(UInt32Value { value: 1 }),
        locality: Some(Default::default()),
        ..Default::default()
    };
    let assignment =
        ClusterLoadAssignment { cluster_name: "echo".to_owned(), endpoints: vec![locality], ..Default::default() };
    let mut set = ResourceSet::default();
    set.insert(TypeUrl::Listener, "echo", listener.encode_to_vec());
    set.insert(TypeUrl::Cluster, "echo", cluster.encode_to_vec());
    set.insert(TypeUrl::Endpoint, "echo", assignment.encode_to_vec());
    set
}
