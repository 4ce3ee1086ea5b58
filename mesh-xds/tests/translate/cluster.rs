//! Rules of clusters and of the TLS towards them.

use std::time::Duration;

use mesh_core::config::{Cluster, LeastRequest, LoadBalancer, OutlierDetection, Protocol, Thresholds, TlsMode};
use mesh_xds::{
    proto::{
        Any,
        envoy::{
            config::{
                cluster::v3::{
                    CircuitBreakers, Cluster as Message, LoadBalancingPolicy, OutlierDetection as OutlierMessage,
                    circuit_breakers,
                    circuit_breakers::thresholds,
                    cluster::{
                        ClusterDiscoveryType, CommonLbConfig, CustomClusterType, DiscoveryType, EdsClusterConfig,
                        LbConfig, LbPolicy, LeastRequestLbConfig, PreconnectPolicy, TransportSocketMatch,
                    },
                    load_balancing_policy::Policy,
                },
                core::v3::{
                    BindConfig, ConfigSource, DataSource, HealthCheck, Http2ProtocolOptions, HttpProtocolOptions,
                    KeepaliveSettings, Metadata, SocketAddress, SocketOption, TransportSocket, TypedExtensionConfig,
                    data_source::Specifier,
                    health_check::{HealthChecker, HttpHealthCheck, TcpHealthCheck},
                    socket_address::PortSpecifier,
                    socket_option,
                    transport_socket::ConfigType,
                },
            },
            extensions::{
                load_balancing_policies::{
                    least_request::v3::LeastRequest as LeastRequestPolicy, round_robin::v3::RoundRobin,
                    wrr_locality::v3::WrrLocality,
                },
                transport_sockets::tls::v3::{
                    CertificateValidationContext, CommonTlsContext, SdsSecretConfig, TlsParameters, UpstreamTlsContext,
                    common_tls_context::ValidationContextType, tls_parameters::TlsProtocol,
                },
            },
            r#type::v3::{Int64Range, Percent},
        },
    },
    translate::{self, Decoded},
};
use prost::Message as _;
use prost_types::{Struct, Value, value::Kind as ValueKind};

use crate::{any, body, seconds};

fn decode(message: &Message) -> Result<Decoded<std::sync::Arc<Cluster>>, String> {
    translate::cluster(&body(message)).map_err(|error| error.to_string())
}

fn named() -> Message {
    Message { name: "c".into(), ..Message::default() }
}

fn refused(message: &Message, field: &str, why: &str) {
    let error = decode(message).unwrap_err();
    assert!(error.starts_with(&format!("CDS \"c\": field {field}: ")) && error.contains(why), "{error}");
}

/// CB1, CB2, CB3, CB5: limits nobody set are Envoy's, and the first of each priority counts.
#[test]
fn limits_have_envoys_defaults() {
    let defaults = Thresholds {
        max_connections: 1024,
        max_pending_requests: 1024,
        max_requests: 1024,
        max_retries: 3,
        retry_budget: None,
        max_requests_per_endpoint: u32::MAX,
    };
    assert_eq!(decode(&named()).unwrap().value.thresholds, defaults);
    let limit = |priority, max_requests| circuit_breakers::Thresholds {
        priority,
        max_requests: Some(max_requests),
        ..circuit_breakers::Thresholds::default()
    };
    let breakers = CircuitBreakers { thresholds: vec![limit(1, 9), limit(0, 1), limit(0, 2)] };
    let decoded = decode(&Message { circuit_breakers: Some(breakers), ..named() }).unwrap();
    assert_eq!(decoded.value.thresholds, Thresholds { max_requests: 1, ..defaults });
    assert_eq!(decoded.value.high_thresholds, Thresholds { max_requests: 9, ..defaults });
    assert!(decoded.ignored.is_empty(), "{:?}", decoded.ignored);
}

/// RT16: a budget that says nothing is a fifth of what is under way, at least three.
#[test]
fn a_retry_budget_has_envoys_defaults() {
    let with = |retry_budget| {
        let limits = circuit_breakers::Thresholds { retry_budget: Some(retry_budget), ..Default::default() };
        decode(&Message { circuit_breakers: Some(CircuitBreakers { thresholds: vec![limits] }), ..named() })
    };
    let budget = with(thresholds::RetryBudget::default()).unwrap().value.thresholds.retry_budget.unwrap();
    assert_eq!((budget.percent, budget.min_concurrency), (20.0, 3));
    let budget_percent = Some(Percent { value: 101.0 });
    let error = with(thresholds::RetryBudget { budget_percent, ..Default::default() }).unwrap_err();
    assert!(error.contains("budget_percent: 101 is no percentage"), "{error}");
}

/// CB4: what is not acted on among the limits is said.
#[test]
fn other_limits_are_reported() {
    let limits = circuit_breakers::Thresholds { track_remaining: true, ..circuit_breakers::Thresholds::default() };
    let message = Message { circuit_breakers: Some(CircuitBreakers { thresholds: vec![limits] }), ..named() };
    // max_connection_pools is field 7 of the entry, per_host_thresholds field 2 of the whole.
    let mut bytes = message.circuit_breakers.as_ref().unwrap().encode_to_vec();
    bytes[1] += 4;
    bytes.extend([0x3a, 2, 8, 1, 0x12, 0]);
    let mut whole = named().encode_to_vec();
    whole.extend([0x52, u8::try_from(bytes.len()).unwrap()]);
    whole.extend(bytes);
    let decoded = translate::cluster(&whole.into()).unwrap();
    let fields = ["per_host_thresholds", "thresholds.max_connection_pools", "thresholds.track_remaining"];
    assert_eq!(decoded.ignored, fields.map(|field| format!("circuit_breakers.{field}")));
}

/// OD1, OD2, OD4, OD5, OD6: what is not said is Envoy's; gateway failures and percentages are detected and not enforced.
#[test]
fn outlier_detection_has_envoys_defaults() {
    let decode = |message| {
        let decoded = decode(&Message { outlier_detection: Some(message), ..named() }).unwrap();
        assert!(decoded.ignored.is_empty(), "{:?}", decoded.ignored);
        decoded.value.outlier_detection.clone().unwrap()
    };
    let default = decode(OutlierMessage::default());
    assert_eq!(default, OutlierDetection::default());
    assert_eq!((default.enforcing_consecutive_gateway_failure, default.failure_percentage.enforcing), (0, 0));
    assert_eq!((default.enforcing_consecutive_5xx, default.success_rate.enforcing), (100, 100));
    let off = OutlierMessage { enforcing_consecutive_5xx: Some(0), consecutive_5xx: Some(3), ..Default::default() };
    assert_eq!((decode(off.clone()).consecutive_5xx, decode(off).enforcing_consecutive_5xx), (3, 0));
    let long = OutlierMessage { base_ejection_time: Some(seconds(600)), ..Default::default() };
    assert_eq!(decode(long).max_ejection_time, Duration::from_secs(600), "at least the base");
}

#[test]
fn outlier_detection_that_cannot_be_is_refused() {
    let with = |message| Message { outlier_detection: Some(message), ..named() };
    let zero = OutlierMessage { interval: Some(seconds(0)), ..OutlierMessage::default() };
    refused(&with(zero), "outlier_detection.interval", "greater than zero");
    let more = OutlierMessage { enforcing_success_rate: Some(101), ..OutlierMessage::default() };
    refused(&with(more), "outlier_detection.enforcing_success_rate", "more than 100");
    let less = OutlierMessage { max_ejection_time: Some(seconds(1)), ..OutlierMessage::default() };
    refused(&with(less), "outlier_detection.max_ejection_time", "below base_ejection_time");
}

/// OD12: a monitor of another kind has no effect, and that is said.
#[test]
fn monitors_of_other_kinds_are_reported() {
    let monitor = TypedExtensionConfig { name: "other".into(), typed_config: Some(any("example.Monitor", &[])) };
    let detection = OutlierMessage { monitors: vec![monitor], ..OutlierMessage::default() };
    let decoded = decode(&Message { outlier_detection: Some(detection), ..named() }).unwrap();
    assert_eq!(decoded.ignored, ["outlier_detection.monitors.other"]);
}

/// HC3: a check needs its times and thresholds, a kind that is known, and to be the only one.
#[test]
fn health_checks_that_cannot_be_are_refused() {
    let check = || HealthCheck {
        timeout: Some(seconds(1)),
        interval: Some(seconds(1)),
        unhealthy_threshold: Some(1),
        healthy_threshold: Some(1),
        health_checker: Some(HealthChecker::TcpHealthCheck(TcpHealthCheck::default())),
        ..HealthCheck::default()
    };
    let with = |health_checks| Message { health_checks, ..named() };
    assert!(decode(&with(vec![check()])).unwrap().value.health_check.is_some());
    refused(&with(vec![check(), check()]), "health_checks", "2 checks");
    refused(&with(vec![HealthCheck { timeout: None, ..check() }]), "health_checks.timeout", "is missing");
    refused(
        &with(vec![HealthCheck { healthy_threshold: None, ..check() }]),
        "health_checks.healthy_threshold",
        "missing",
    );
    refused(&with(vec![HealthCheck { health_checker: None, ..check() }]), "health_checks.health_checker", "missing");
    let range = vec![Int64Range { start: 200, end: 200 }];
    let http = HttpHealthCheck { path: "/".into(), expected_statuses: range, ..HttpHealthCheck::default() };
    let http = HealthCheck { health_checker: Some(HealthChecker::HttpHealthCheck(http)), ..check() };
    refused(&with(vec![http]), "health_checks.http_health_check.expected_statuses", "no range");
}

/// OD13, CB6, CB7: what Envoy has no field for stands in metadata of our own; what cannot be read there refuses the cluster, what
/// is not known is told, and metadata of others is theirs.
#[test]
fn unknown_words_of_our_own_are_refused() {
    let of = |owner: &str, key: &str, value: Value| {
        let fields = Struct { fields: [(key.to_owned(), value)].into() };
        Some(Metadata { filter_metadata: [(owner.to_owned(), fields)].into(), ..Metadata::default() })
    };
    let metadata = |key: &str, value: Value| of("mesh_xds.cluster", key, value);
    let yes = || Value { kind: Some(ValueKind::BoolValue(true)) };
    let outlier_detection = Some(OutlierMessage::default());
    let good =
        Message { metadata: metadata("half_open", yes()), outlier_detection: outlier_detection.clone(), ..named() };
    assert!(decode(&good).unwrap().value.outlier_detection.as_ref().unwrap().half_open);
    let place = "metadata.filter_metadata[\"mesh_xds.cluster\"]";
    let unknown = Message { metadata: metadata("half_shut", yes()), ..good };
    assert!(decode(&unknown).unwrap().ignored.contains(&format!("{place}.half_shut")));
    let no = Value { kind: Some(ValueKind::StringValue("no".into())) };
    refused(&Message { metadata: metadata("half_open", no), outlier_detection, ..named() }, place, "cannot be read");
    let theirs = decode(&Message { metadata: of("mesh", "half_open", yes()), ..named() }).unwrap();
    assert_eq!(theirs.value, decode(&named()).unwrap().value);
}

/// LB1, LB2, LB3, LB4: the list of policies wins, its first supported one; none supported is refused.
#[test]
fn the_first_supported_policy_counts() {
    let policy = |configs: Vec<Any>| LoadBalancingPolicy {
        policies: configs
            .into_iter()
            .map(|any| Policy {
                typed_extension_config: Some(TypedExtensionConfig { name: "p".into(), typed_config: Some(any) }),
            })
            .collect(),
    };
    let balancer = |message: Message| decode(&message).unwrap().value.load_balancer.clone();
    let with = |configs| Message {
        load_balancing_policy: Some(policy(configs)),
        lb_policy: LbPolicy::Random.into(),
        ..named()
    };
    let unknown = || any("example.Unknown", &[]);
    let least = || Any::pack(&LeastRequestPolicy { choice_count: Some(4), ..Default::default() });
    let four = LoadBalancer::LeastRequest(LeastRequest { choices: 4, ..Default::default() });
    assert_eq!(balancer(with(vec![unknown(), least(), Any::pack(&RoundRobin::default())])), four);
    let nested = WrrLocality { endpoint_picking_policy: Some(policy(vec![least()])) };
    let decoded = decode(&with(vec![Any::pack(&nested)])).unwrap().value;
    assert_eq!((&decoded.load_balancer, decoded.locality_weighted), (&four, true));
    refused(&with(vec![unknown()]), "load_balancing_policy.policies", "none of them");

    let scalar = |policy: LbPolicy| balancer(Message { lb_policy: policy.into(), ..named() });
    assert_eq!(scalar(LbPolicy::RoundRobin), LoadBalancer::RoundRobin);
    assert_eq!(scalar(LbPolicy::Random), LoadBalancer::Random);
    assert_eq!(scalar(LbPolicy::LeastRequest), LoadBalancer::default());
    let one = LbConfig::LeastRequestLbConfig(LeastRequestLbConfig { choice_count: Some(1), ..Default::default() });
    let message = Message { lb_policy: LbPolicy::LeastRequest.into(), lb_config: Some(one), ..named() };
    refused(&message, "least_request_lb_config.choice_count", "below 2");

    let mut deep = policy(vec![Any::pack(&RoundRobin::default())]);
    for _ in 0..17 {
        deep = policy(vec![Any::pack(&WrrLocality { endpoint_picking_policy: Some(deep) })]);
    }
    let error = decode(&Message { load_balancing_policy: Some(deep), ..named() }).unwrap_err();
    assert!(error.contains("nests deeper than 16"), "{error}");
}

/// NR5: kinds of clusters, and what each needs.
#[test]
fn discovery_is_checked() {
    let of_type = |kind: DiscoveryType| Message {
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(kind.into())),
        ..named()
    };
    refused(&of_type(DiscoveryType::Eds), "eds_cluster_config", "missing");
    let elsewhere = EdsClusterConfig { eds_config: Some(ConfigSource::default()), ..EdsClusterConfig::default() };
    let message = Message { eds_cluster_config: Some(elsewhere), ..of_type(DiscoveryType::Eds) };
    refused(&message, "eds_cluster_config.eds_config", "`ads` or `self`");
    refused(&of_type(DiscoveryType::LogicalDns), "load_assignment", "exactly one");
    let custom = CustomClusterType { name: "envoy.clusters.aggregate".into(), ..CustomClusterType::default() };
    let message = Message { cluster_discovery_type: Some(ClusterDiscoveryType::ClusterType(custom)), ..named() };
    refused(&message, "cluster_type", "envoy.clusters.aggregate");
}

/// TO8, LO3, CP1: what is not set is Envoy's default.
#[test]
fn small_settings_have_envoys_defaults() {
    let plain = decode(&named()).unwrap().value;
    assert_eq!(
        (plain.connect_timeout, plain.panic_threshold, plain.protocol),
        (Duration::from_secs(5), 50, Protocol::Http1)
    );
    let panic = |value| CommonLbConfig { healthy_panic_threshold: Some(Percent { value }), ..Default::default() };
    let message = Message {
        common_lb_config: Some(panic(33.9)),
        connect_timeout: Some(seconds(1)),
        http2_protocol_options: Some(Http2ProtocolOptions::default()),
        ..named()
    };
    let set = decode(&message).unwrap().value;
    assert_eq!((set.connect_timeout, set.panic_threshold, set.protocol), (Duration::from_secs(1), 33, Protocol::Http2));
    let field = "common_lb_config.healthy_panic_threshold";
    refused(&Message { common_lb_config: Some(panic(101.0)), ..named() }, field, "101 is no percentage");
    refused(&Message { common_lb_config: Some(panic(f64::NAN)), ..named() }, field, "no percentage");
    refused(&Message { connect_timeout: Some(seconds(0)), ..named() }, "connect_timeout", "greater than zero");
}

fn socket(any: Any) -> TransportSocket {
    TransportSocket { name: "envoy.transport_sockets.tls".into(), config_type: Some(ConfigType::TypedConfig(any)) }
}

fn with_tls(context: &UpstreamTlsContext) -> Message {
    Message { transport_socket: Some(socket(Any::pack(context))), ..named() }
}

fn secret(name: &str) -> SdsSecretConfig {
    SdsSecretConfig { name: name.into(), sds_config: None }
}

fn istio_mutual() -> CommonTlsContext {
    CommonTlsContext {
        tls_certificate_sds_secret_configs: vec![secret("default")],
        validation_context_type: Some(ValidationContextType::ValidationContextSdsSecretConfig(secret("ROOTCA"))),
        ..CommonTlsContext::default()
    }
}

/// AN1, AN2, GW10: what a TLS context asks for beyond what can be kept refuses the cluster, as do tunnels (HBONE).
#[test]
fn tls_that_cannot_be_kept_is_refused() {
    let field = "transport_socket.typed_config";
    let common = |common_tls_context| UpstreamTlsContext {
        common_tls_context: Some(common_tls_context),
        ..UpstreamTlsContext::default()
    };
    let parameters = |tls_params| common(CommonTlsContext { tls_params: Some(tls_params), ..istio_mutual() });
    let minimum = TlsParameters { tls_minimum_protocol_version: 9, ..Default::default() };
    let maximum = TlsParameters { tls_maximum_protocol_version: TlsProtocol::TlSv11.into(), ..Default::default() };
    let other_name =
        CommonTlsContext { tls_certificate_sds_secret_configs: vec![secret("file-cert:a")], ..istio_mutual() };
    let no_roots = CommonTlsContext { validation_context_type: None, ..istio_mutual() };
    let inline = CommonTlsContext {
        validation_context_type: Some(ValidationContextType::ValidationContext(CertificateValidationContext {
            trusted_ca: Some(DataSource { specifier: Some(Specifier::InlineString("PEM".into())) }),
            ..CertificateValidationContext::default()
        })),
        ..CommonTlsContext::default()
    };
    for (context, rest, why) in [
        (
            parameters(minimum),
            ".common_tls_context.tls_params.tls_minimum_protocol_version (is 9, which is not known)",
            "is not supported",
        ),
        (parameters(maximum), ".common_tls_context.tls_params.tls_maximum_protocol_version", "from 1.2 on"),
        (common(other_name), ".common_tls_context.tls_certificate_sds_secret_configs", "file-cert:a"),
        (common(no_roots), ".common_tls_context", "ROOTCA"),
        (common(inline), ".common_tls_context.validation_context.trusted_ca", "by SDS"),
        (
            UpstreamTlsContext { allow_renegotiation: true, ..common(istio_mutual()) },
            ".allow_renegotiation",
            "not supported",
        ),
        (UpstreamTlsContext { sni: "x".repeat(256), ..common(istio_mutual()) }, ".sni", "255"),
    ] {
        refused(&with_tls(&context), &format!("{field}{rest}"), why);
    }
    // custom_handshaker {}, and a field nobody knows.
    for (tail, name) in [(vec![0x6a, 0x00], "custom_handshaker"), (vec![0xa2, 0x1f, 0x00], "#500")] {
        let mut inner = istio_mutual().encode_to_vec();
        inner.extend(tail);
        let mut context = vec![0x0a, inner.len() as u8];
        context.extend(inner);
        let any = any("envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", &context);
        let message = Message { transport_socket: Some(socket(any)), ..named() };
        refused(&message, &format!("{field}.common_tls_context.{name}"), "not supported");
    }
    let other = any("envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport", &[]);
    refused(&Message { transport_socket: Some(socket(other)), ..named() }, field, "InternalUpstreamTransport");
}

/// AN6, AN7: TLS to the outside verifies by host unless told otherwise; no validation is still validated.
#[test]
fn tls_without_own_certificate_uses_the_systems_roots() {
    let simple = UpstreamTlsContext { sni: "example.com".into(), ..UpstreamTlsContext::default() };
    let decoded = decode(&with_tls(&simple)).unwrap();
    let TlsMode::Always(tls) = &decoded.value.tls else { panic!() };
    assert!(!tls.workload_identity && tls.subject_alt_names.is_empty());
    assert_eq!(tls.sni, "example.com");
    assert!(decoded.ignored[0].contains("verified all the same"), "{:?}", decoded.ignored);
    let by_host = UpstreamTlsContext { auto_host_sni: true, ..simple };
    let TlsMode::Always(tls) = &decode(&with_tls(&by_host)).unwrap().value.tls else { panic!() };
    assert_eq!((tls.sni.as_str(), tls.host_sni), ("example.com", true));
}

/// AN11: only Istio's own key is understood among the matches of transport sockets.
#[test]
fn other_transport_socket_matches_are_refused() {
    let mtls = UpstreamTlsContext { common_tls_context: Some(istio_mutual()), ..UpstreamTlsContext::default() };
    let candidate = |fields: &[(&str, &str)], context: &UpstreamTlsContext| TransportSocketMatch {
        name: "m".into(),
        r#match: Some(prost_types::Struct {
            fields: fields
                .iter()
                .map(|&(key, value)| {
                    let kind = prost_types::value::Kind::StringValue(value.into());
                    (key.into(), prost_types::Value { kind: Some(kind) })
                })
                .collect(),
        }),
        transport_socket: Some(socket(Any::pack(context))),
    };
    let with = |matches| Message { transport_socket_matches: matches, ..named() };
    let message = with(vec![candidate(&[("zone", "a")], &mtls)]);
    refused(&message, "transport_socket_matches[0 \"m\"].match", "tlsMode: istio");
    let always = with(vec![candidate(&[("tlsMode", "istio")], &mtls), candidate(&[], &mtls)]);
    assert!(matches!(decode(&always).unwrap().value.tls, TlsMode::Always(_)));
    let able = with(vec![candidate(&[("tlsMode", "istio")], &mtls)]);
    assert!(matches!(decode(&able).unwrap().value.tls, TlsMode::IfEndpointCan(_)));
    let other = UpstreamTlsContext { sni: "other".into(), ..mtls.clone() };
    let two = with(vec![candidate(&[("tlsMode", "istio")], &mtls), candidate(&[], &other)]);
    refused(&two, "transport_socket_matches", "two kinds of TLS");
}

/// CP2, CP3, CP4, CP5, CP7, LB28: what a cluster says of its connections, what cannot be is refused, what has no effect
/// is named.
#[test]
fn connections_are_checked() {
    let http2 = |options: Http2ProtocolOptions| Message { http2_protocol_options: Some(options), ..named() };
    let small = Http2ProtocolOptions { initial_stream_window_size: Some(1), ..Default::default() };
    refused(&http2(small), "http2_protocol_options.initial_stream_window_size", "between");
    let none = Http2ProtocolOptions { max_concurrent_streams: Some(0), ..Default::default() };
    refused(&http2(none), "http2_protocol_options.max_concurrent_streams", "at least 1");
    let silent =
        Http2ProtocolOptions { connection_keepalive: Some(KeepaliveSettings::default()), ..Default::default() };
    refused(&http2(silent), "http2_protocol_options.connection_keepalive.timeout", "missing");
    let common = |common: HttpProtocolOptions| Message { common_http_protocol_options: Some(common), ..named() };
    let large = HttpProtocolOptions { max_response_headers_kb: Some(9000), ..Default::default() };
    refused(&common(large), "common_http_protocol_options.max_response_headers_kb", "8192");
    let preconnect = PreconnectPolicy { per_upstream_preconnect_ratio: Some(4.0), ..Default::default() };
    refused(
        &Message { preconnect_policy: Some(preconnect), ..named() },
        "preconnect_policy.per_upstream_preconnect_ratio",
        "between 1.0 and 3.0",
    );
    let option = |level, name| SocketOption {
        level,
        name,
        value: Some(socket_option::Value::IntValue(1)),
        ..Default::default()
    };
    let bind = BindConfig { socket_options: vec![option(6, 1), option(41, 26)], ..Default::default() };
    let predictive = PreconnectPolicy { predictive_preconnect_ratio: Some(1.5), ..Default::default() };
    let message = Message {
        upstream_bind_config: Some(bind),
        preconnect_policy: Some(predictive),
        common_http_protocol_options: Some(HttpProtocolOptions {
            max_stream_duration: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
            ..Default::default()
        }),
        ..named()
    };
    let decoded = decode(&message).unwrap();
    assert_eq!(decoded.value.connections.socket_options, [mesh_core::config::SocketOption::NoDelay(true)]);
    assert_eq!(
        decoded.ignored,
        [
            "common_http_protocol_options.max_stream_duration",
            "preconnect_policy.predictive_preconnect_ratio",
            "upstream_bind_config.socket_options level 41 name 26",
        ]
    );
}

/// CP5: the address that connections are made from may leave the port to the system, as Istio's inbound clusters do.
#[test]
fn own_address_without_a_port() {
    let from = |port: u16| {
        let source = SocketAddress {
            address: "127.0.0.6".to_owned(),
            port_specifier: Some(PortSpecifier::PortValue(port.into())),
            ..Default::default()
        };
        let bind = BindConfig { source_address: Some(source), ..Default::default() };
        decode(&Message { upstream_bind_config: Some(bind), ..named() }).unwrap().value.connections.clone()
    };
    for port in [0, 4711] {
        let connections = from(port);
        assert_eq!((connections.bind, connections.bind_port), (Some([127, 0, 0, 6].into()), port));
    }
}

/// CP2: HTTP/3 is named as having no effect; requests go over what remains.
#[test]
fn http3_is_reported() {
    const OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    // explicit_http_config {http3_protocol_options {}}, and auto_config {http3_protocol_options {}}.
    for (bytes, name, protocol) in [
        ([0x1a, 0x02, 0x1a, 0x00], "explicit_http_config", Protocol::Http1),
        ([0x2a, 0x02, 0x1a, 0x00], "auto_config", Protocol::Auto),
    ] {
        let options = [(OPTIONS.to_owned(), any(OPTIONS, &bytes))].into();
        let decoded = decode(&Message { typed_extension_protocol_options: options, ..named() }).unwrap();
        let ignored = format!("typed_extension_protocol_options.{name}.http3_protocol_options");
        assert_eq!((decoded.ignored, decoded.value.protocol), (vec![ignored], protocol));
    }
}

/// CP8, NR15: a PROXY protocol towards the upstream is refused by name, for the upstream would read requests as something
/// else; and so is a way through a proxy by CONNECT, for requests would go past it.
#[test]
fn a_proxy_protocol_is_refused() {
    for name in ["proxy_protocol.v3.ProxyProtocolUpstreamTransport", "http_11_proxy.v3.Http11ProxyUpstreamTransport"] {
        let full = format!("envoy.extensions.transport_sockets.{name}");
        let message = Message { transport_socket: Some(socket(any(&full, &[]))), ..named() };
        refused(&message, "transport_socket.typed_config", name.split('.').next_back().unwrap());
    }
}
