//! Our message types against the published ones of `envoy-types`: what we write, they read, field by field; what they
//! write, as Istio's control plane shapes it, we read.

use std::collections::HashMap;

use bytes::Bytes;
use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{
                self as cdsv3, Cluster, OutlierDetection,
                cluster::{ClusterDiscoveryType, EdsClusterConfig, TransportSocketMatch},
            },
            core::v3::{
                self as corev3, AggregatedConfigSource, ConfigSource, Metadata, TransportSocket,
                config_source::ConfigSourceSpecifier, transport_socket::ConfigType,
            },
            endpoint::v3::ClusterLoadAssignment,
            listener::v3::Listener,
            route::v3::{
                self as rdsv3, HeaderMatcher, RouteConfiguration, VirtualHost, header_matcher::HeaderMatchSpecifier,
                route_action::ClusterSpecifier,
            },
        },
        extensions::{
            filters::{
                http::fault::v3::HttpFault,
                network::{connection_limit::v3::ConnectionLimit, http_connection_manager::v3::HttpConnectionManager},
            },
            transport_sockets::tls::v3::{
                CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig,
                UpstreamTlsContext,
                common_tls_context::{CombinedCertificateValidationContext, ValidationContextType},
            },
            upstreams::http::v3::HttpProtocolOptions,
        },
        service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest, DiscoveryResponse},
        r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern},
    },
    google::protobuf::{Any, BoolValue, Duration, Struct, UInt32Value, Value, value::Kind},
};
use mesh_core::config::{Discovery, HeaderMatcher as HeaderCondition, HttpRetry, StringMatch, TlsMode};
use mesh_xds::{
    ads::TypeUrl,
    proto::{self, envoy as ours},
    translate::{self, Shape, encode},
};
use prost::Message;

use crate::rich;

/// Through their type and back: equal to ours when nothing is lost or misplaced.
fn agrees<Ours, Theirs>(bytes: &Bytes) -> Theirs
where
    Ours: Message + Default + PartialEq + std::fmt::Debug,
    Theirs: Message + Default,
{
    let theirs = Theirs::decode(bytes.clone()).unwrap();
    assert_eq!(Ours::decode(Bytes::from(theirs.encode_to_vec())).unwrap(), Ours::decode(bytes.clone()).unwrap());
    theirs
}

/// The cluster without what the published types do not know yet.
fn without_newer(bytes: &Bytes) -> Bytes {
    use ours::config::cluster::v3::cluster::common_lb_config::LocalityConfigSpecifier::ZoneAwareLbConfig;
    let mut cluster = ours::config::cluster::v3::Cluster::decode(bytes.clone()).unwrap();
    let common = cluster.common_lb_config.as_mut();
    if let Some(ZoneAwareLbConfig(zones)) = common.and_then(|common| common.locality_config_specifier.as_mut()) {
        zones.force_local_zone = None;
    }
    cluster.encode_to_vec().into()
}

fn inner(any: &Any) -> Bytes {
    any.value.clone().into()
}

#[test]
fn what_we_write_envoys_own_types_read_without_loss() {
    let set = encode(&rich::config(), Shape::Sidecar);
    let mut seen = [0; 4];
    for (_, resource) in set.iter(TypeUrl::Listener) {
        let listener = agrees::<ours::config::listener::v3::Listener, Listener>(&resource.body);
        for chain in &listener.filter_chains {
            for filter in &chain.filters {
                use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType::TypedConfig;
                let Some(TypedConfig(any)) = &filter.config_type else { panic!() };
                use ours::extensions::filters::network::{connection_limit, http_connection_manager::v3 as hcm};
                if filter.name == "envoy.filters.network.connection_limit" {
                    agrees::<connection_limit::v3::ConnectionLimit, ConnectionLimit>(&inner(any));
                    continue;
                }
                let manager = agrees::<hcm::HttpConnectionManager, HttpConnectionManager>(&inner(any));
                seen[0] += 1;
                use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_filter;
                for filter in manager.http_filters.iter().filter(|filter| filter.name.contains(".http.ratelimit")) {
                    use envoy_types::pb::envoy::extensions::filters::http::ratelimit::v3::RateLimit;
                    let Some(http_filter::ConfigType::TypedConfig(any)) = &filter.config_type else { panic!() };
                    let limit =
                        agrees::<ours::extensions::filters::http::ratelimit::v3::RateLimit, RateLimit>(&inner(any));
                    assert_eq!(limit.domain, "bookinfo");
                }
            }
            if let Some(TransportSocket { config_type: Some(ConfigType::TypedConfig(any)), .. }) =
                &chain.transport_socket
            {
                use ours::extensions::transport_sockets::tls::v3 as tls;
                let context = agrees::<tls::DownstreamTlsContext, DownstreamTlsContext>(&inner(any));
                assert_eq!(context.require_client_certificate, Some(BoolValue { value: true }));
                seen[1] += 1;
            }
        }
    }
    for (_, resource) in set.iter(TypeUrl::Route) {
        let routes = agrees::<ours::config::route::v3::RouteConfiguration, RouteConfiguration>(&resource.body);
        for route in routes.virtual_hosts.iter().flat_map(|host| &host.routes) {
            for (name, any) in &route.typed_per_filter_config {
                use ours::extensions::filters::http as filters;
                if name == "envoy.filters.http.local_ratelimit" {
                    use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
                    agrees::<filters::local_ratelimit::v3::LocalRateLimit, LocalRateLimit>(&inner(any));
                    continue;
                }
                if name == "envoy.filters.http.ratelimit" {
                    use envoy_types::pb::envoy::extensions::filters::http::ratelimit::v3::RateLimitPerRoute;
                    agrees::<filters::ratelimit::v3::RateLimitPerRoute, RateLimitPerRoute>(&inner(any));
                    continue;
                }
                if name == "envoy.filters.http.stateful_session" {
                    use envoy_types::pb::envoy::extensions::filters::http::stateful_session::v3::StatefulSessionPerRoute;
                    agrees::<filters::stateful_session::v3::StatefulSessionPerRoute, StatefulSessionPerRoute>(&inner(
                        any,
                    ));
                    continue;
                }
                if ["first", "second", "third"].contains(&name.as_str()) {
                    // The program's own, of which Envoy knows nothing.
                    continue;
                }
                assert_eq!(name, "envoy.filters.http.fault");
                agrees::<filters::fault::v3::HttpFault, HttpFault>(&inner(any));
                seen[2] += 1;
            }
        }
    }
    for (_, resource) in set.iter(TypeUrl::Cluster) {
        let cluster = agrees::<ours::config::cluster::v3::Cluster, Cluster>(&without_newer(&resource.body));
        let any = &cluster.typed_extension_protocol_options["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"];
        agrees::<ours::extensions::upstreams::http::v3::HttpProtocolOptions, HttpProtocolOptions>(&inner(any));
        let sockets =
            cluster.transport_socket_matches.iter().filter_map(|candidate| candidate.transport_socket.as_ref());
        for socket in sockets.chain(&cluster.transport_socket) {
            let Some(ConfigType::TypedConfig(any)) = &socket.config_type else { panic!() };
            if any.type_url.ends_with("UpstreamTlsContext") {
                use ours::extensions::transport_sockets::tls::v3 as tls;
                agrees::<tls::UpstreamTlsContext, UpstreamTlsContext>(&inner(any));
                seen[3] += 1;
            }
        }
    }
    for (_, resource) in set.iter(TypeUrl::Endpoint) {
        agrees::<ours::config::endpoint::v3::ClusterLoadAssignment, ClusterLoadAssignment>(&resource.body);
    }
    assert_eq!(seen, [7, 3, 2, 3], "as many as the configuration has");
}

#[test]
fn the_protocols_own_messages_are_envoys() {
    let request = proto::DiscoveryRequest {
        version_info: "1".into(),
        node: Some(ours::config::core::v3::Node {
            id: "sidecar~10.0.0.1~a.default~default.svc.cluster.local".into(),
            cluster: "a.default".into(),
            metadata: Some(prost_types::Struct::default()),
            locality: Some(ours::config::core::v3::Locality { region: "r".into(), ..Default::default() }),
            user_agent_name: "mesh".into(),
            client_features: vec!["f".into()],
            ..Default::default()
        }),
        resource_names: vec!["a".into(), "b".into()],
        type_url: TypeUrl::Endpoint.as_str().into(),
        response_nonce: "n".into(),
        error_detail: Some(proto::Status { code: 3, message: "m".into(), ..Default::default() }),
    };
    let theirs = agrees::<proto::DiscoveryRequest, DiscoveryRequest>(&crate::body(&request));
    assert_eq!(theirs.error_detail.unwrap().message, "m");
    assert_eq!(theirs.node.unwrap().client_features, ["f"]);

    let response = proto::DiscoveryResponse {
        version_info: "2".into(),
        resources: vec![proto::Any { type_url: "t".into(), value: Bytes::from_static(b"v") }],
        type_url: "t".into(),
        nonce: "n".into(),
        control_plane: Some(ours::config::core::v3::ControlPlane { identifier: "i".into() }),
        ..Default::default()
    };
    let theirs = agrees::<proto::DiscoveryResponse, DiscoveryResponse>(&crate::body(&response));
    assert_eq!(theirs.resources[0].value, b"v");

    let delta = proto::DeltaDiscoveryRequest {
        resource_names_subscribe: vec!["a".into()],
        initial_resource_versions: [("a".to_owned(), "1".to_owned())].into(),
        ..Default::default()
    };
    agrees::<proto::DeltaDiscoveryRequest, DeltaDiscoveryRequest>(&crate::body(&delta));
}

fn pack(name: &str, message: &impl Message) -> Any {
    Any { type_url: format!("type.googleapis.com/{name}"), value: message.encode_to_vec() }
}

fn text(value: &str) -> Value {
    Value { kind: Some(Kind::StringValue(value.into())) }
}

fn duration(seconds: i64) -> Option<Duration> {
    Some(Duration { seconds, nanos: 0 })
}

/// An upstream context as istiod writes it: SDS by the agent, SANs in the deprecated field, a list of ALPN.
fn istio_mutual() -> TransportSocket {
    let agent = |name: &str| SdsSecretConfig {
        name: name.into(),
        sds_config: Some(ConfigSource {
            config_source_specifier: Some(ConfigSourceSpecifier::ApiConfigSource(corev3::ApiConfigSource {
                api_type: corev3::api_config_source::ApiType::Grpc.into(),
                grpc_services: vec![corev3::GrpcService::default()],
                set_node_on_first_message_only: true,
                ..Default::default()
            })),
            initial_fetch_timeout: duration(0),
            resource_api_version: corev3::ApiVersion::V3.into(),
            ..Default::default()
        }),
    };
    #[allow(deprecated, reason = "what istiod sends")]
    let validation = CertificateValidationContext {
        match_subject_alt_names: vec![StringMatcher {
            match_pattern: Some(MatchPattern::Exact("spiffe://cluster.local/ns/default/sa/bookinfo-reviews".into())),
            ..Default::default()
        }],
        ..Default::default()
    };
    let context = UpstreamTlsContext {
        sni: "outbound_.9080_._.reviews.default.svc.cluster.local".into(),
        common_tls_context: Some(CommonTlsContext {
            alpn_protocols: vec!["istio-peer-exchange".into(), "istio".into()],
            tls_certificate_sds_secret_configs: vec![agent("default")],
            validation_context_type: Some(ValidationContextType::CombinedValidationContext(
                CombinedCertificateValidationContext {
                    default_validation_context: Some(validation),
                    validation_context_sds_secret_config: Some(agent("ROOTCA")),
                    ..Default::default()
                },
            )),
            ..Default::default()
        }),
        ..Default::default()
    };
    let any = pack("envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", &context);
    TransportSocket { name: "envoy.transport_sockets.tls".into(), config_type: Some(ConfigType::TypedConfig(any)) }
}

/// AN3, AN11: auto-mTLS as Istio writes it is a decision per endpoint.
#[test]
fn a_cluster_as_istiod_writes_it_is_understood() {
    let raw = TransportSocket { name: "envoy.transport_sockets.raw_buffer".into(), config_type: None };
    let cluster = Cluster {
        name: "outbound|9080||reviews.default.svc.cluster.local".into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(3)),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: Some(ConfigSource {
                config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
                initial_fetch_timeout: duration(0),
                resource_api_version: corev3::ApiVersion::V3.into(),
                ..Default::default()
            }),
            service_name: "outbound|9080||reviews.default.svc.cluster.local".into(),
        }),
        connect_timeout: duration(10),
        lb_policy: cdsv3::cluster::LbPolicy::LeastRequest.into(),
        outlier_detection: Some(OutlierDetection {
            consecutive_5xx: Some(UInt32Value { value: 7 }),
            enforcing_success_rate: Some(UInt32Value { value: 0 }),
            ..Default::default()
        }),
        transport_socket_matches: vec![
            TransportSocketMatch {
                name: "tlsMode-istio".into(),
                r#match: Some(Struct { fields: HashMap::from([("tlsMode".into(), text("istio"))]) }),
                transport_socket: Some(istio_mutual()),
            },
            TransportSocketMatch {
                name: "tlsMode-disabled".into(),
                r#match: Some(Struct::default()),
                transport_socket: Some(raw),
            },
        ],
        metadata: Some(Metadata {
            filter_metadata: HashMap::from([(
                "istio".into(),
                Struct { fields: HashMap::from([("default_original_port".into(), text("9080"))]) },
            )]),
            ..Default::default()
        }),
        alt_stat_name: "outbound|9080||reviews".into(),
        ..Default::default()
    };
    let decoded = translate::cluster(&crate::body(&cluster)).unwrap();
    let agent = "transport_socket_matches.transport_socket.common_tls_context";
    let agent = |name: &str| format!("{agent}.{name}.sds_config.api_config_source.grpc_services");
    let roots = agent("combined_validation_context.validation_context_sds_secret_config");
    let wanted = ["alt_stat_name".to_owned(), roots, agent("tls_certificate_sds_secret_configs")];
    assert_eq!(decoded.ignored, wanted);
    let cluster = decoded.value;
    assert_eq!(cluster.discovery, Discovery::Eds(cluster.name.clone()));
    assert_eq!(cluster.connect_timeout.as_secs(), 10);
    assert_eq!(cluster.outlier_detection.as_ref().unwrap().consecutive_5xx, 7);
    let TlsMode::IfEndpointCan(tls) = &cluster.tls else { panic!("{:?}", cluster.tls) };
    assert!(tls.workload_identity);
    assert_eq!(tls.alpn, ["istio-peer-exchange", "istio"]);
    let san = "spiffe://cluster.local/ns/default/sa/bookinfo-reviews";
    assert_eq!(tls.subject_alt_names, [StringMatch::Exact { value: san.into(), ignore_case: false }]);
}

/// RT14: retries at other priorities are not made, and that is reported.
#[test]
fn retries_at_other_priorities_are_reported() {
    let priority = rdsv3::retry_policy::RetryPriority {
        name: "envoy.retry_priorities.previous_priorities".into(),
        ..Default::default()
    };
    let retry = rdsv3::RetryPolicy { retry_priority: Some(priority), ..Default::default() };
    let host = rdsv3::VirtualHost {
        name: "reviews".into(),
        domains: vec!["reviews".into()],
        retry_policy: Some(retry),
        ..Default::default()
    };
    let table = rdsv3::RouteConfiguration { name: "80".into(), virtual_hosts: vec![host], ..Default::default() };
    let decoded = translate::route(&crate::body(&table)).unwrap();
    assert_eq!(decoded.ignored, ["virtual_hosts.retry_policy.retry_priority"]);
}

/// RM6, RT4: deprecated scalar matchers and Istio's default retry policy are understood.
#[test]
fn a_route_table_as_istiod_writes_it_is_understood() {
    let retry = rdsv3::RetryPolicy {
        retry_on: "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes".into(),
        num_retries: Some(UInt32Value { value: 2 }),
        retry_host_predicate: vec![rdsv3::retry_policy::RetryHostPredicate {
            name: "envoy.retry_host_predicates.previous_hosts".into(),
            config_type: Some(rdsv3::retry_policy::retry_host_predicate::ConfigType::TypedConfig(pack(
                "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
                &UInt32Value::default(),
            ))),
        }],
        host_selection_retry_max_attempts: 5,
        ..Default::default()
    };
    #[allow(deprecated, reason = "what control planes still send")]
    let header = HeaderMatcher {
        name: "end-user".into(),
        header_match_specifier: Some(HeaderMatchSpecifier::ExactMatch("jason".into())),
        ..Default::default()
    };
    let route = rdsv3::Route {
        name: "default".into(),
        r#match: Some(rdsv3::RouteMatch {
            path_specifier: Some(rdsv3::route_match::PathSpecifier::Prefix("/".into())),
            case_sensitive: Some(BoolValue { value: true }),
            headers: vec![header],
            ..Default::default()
        }),
        action: Some(rdsv3::route::Action::Route(rdsv3::RouteAction {
            cluster_specifier: Some(ClusterSpecifier::Cluster("outbound|9080|v2|reviews".into())),
            timeout: duration(0),
            max_stream_duration: Some(rdsv3::route_action::MaxStreamDuration {
                max_stream_duration: duration(0),
                grpc_timeout_header_max: duration(0),
                ..Default::default()
            }),
            retry_policy: Some(retry),
            ..Default::default()
        })),
        decorator: Some(rdsv3::Decorator { operation: "reviews:9080/*".into(), ..Default::default() }),
        metadata: Some(Metadata {
            filter_metadata: HashMap::from([(
                "istio".into(),
                Struct {
                    fields: HashMap::from([(
                        "config".into(),
                        text("/apis/networking.istio.io/v1/namespaces/default/virtual-service/reviews"),
                    )]),
                },
            )]),
            ..Default::default()
        }),
        ..Default::default()
    };
    let table = RouteConfiguration {
        name: "9080".into(),
        virtual_hosts: vec![VirtualHost {
            name: "reviews.default.svc.cluster.local:9080".into(),
            domains: vec!["reviews.default.svc.cluster.local".into(), "Reviews".into()],
            routes: vec![route],
            include_request_attempt_count: true,
            ..Default::default()
        }],
        validate_clusters: Some(BoolValue { value: false }),
        ignore_port_in_host_matching: true,
        ..Default::default()
    };
    let decoded = translate::route(&crate::body(&table)).unwrap();
    assert!(decoded.ignored.is_empty(), "{:?}", decoded.ignored);
    let host = &decoded.value.virtual_hosts[0];
    assert_eq!(host.domains, ["reviews.default.svc.cluster.local", "reviews"]);
    let route = &host.routes[0];
    assert_eq!(route.origin.as_deref(), Some("virtual-service/default/reviews"));
    let wanted = HeaderCondition::Value(StringMatch::Exact { value: "jason".into(), ignore_case: false });
    assert_eq!(route.matches.headers[0].matcher, wanted);
    let mesh_core::config::Action::Forward(forward) = &route.action else { panic!() };
    // Zero is a word: it takes away the limit of the port (TO2).
    assert_eq!((forward.timeout, forward.max_stream_duration), (None, Some(std::time::Duration::ZERO)));
    let retry = forward.retry.as_ref().unwrap();
    assert_eq!((retry.retries, retry.avoid_previous_hosts, retry.on.grpc.len()), (2, 5, 2));
    assert!(retry.on.status_codes.is_empty(), "so a plain 503 is not tried again");
    assert!(retry.on.http.contains(&HttpRetry::RetriableStatusCodes));
}
