//! Rules of gRPC's profile: what a listener that is asked for by name may say, what refuses it, and what is passed over.

use std::{net::SocketAddr, time::Duration};

use mesh_core::config::{Action, HostRewrite, RouteTable, Target, TlsMode, UpstreamTls};
use mesh_xds::{
    ads::TypeUrl,
    bootstrap::Files,
    graph::Part,
    profile::{Context, Profile},
    proto::{
        Any,
        envoy::{
            config::{
                cluster::v3::{
                    Cluster,
                    cluster::{ClusterDiscoveryType, DiscoveryType, EdsClusterConfig},
                },
                core::v3::{
                    Address, AggregatedConfigSource, CidrRange, ConfigSource, HeaderValue, HeaderValueOption,
                    HttpProtocolOptions, SocketAddress, TransportSocket, address, config_source::ConfigSourceSpecifier,
                    socket_address::PortSpecifier, transport_socket,
                },
                listener::v3::{
                    ApiListener, Filter, FilterChain, FilterChainMatch, Listener as Message, ListenerFilter, filter,
                },
                route::v3::{
                    DirectResponseAction, NonForwardingAction, QueryParameterMatcher, Route, RouteAction,
                    RouteConfiguration, RouteMatch, VirtualHost,
                    route::Action as ActionMessage,
                    route_action::{ClusterSpecifier, HostRewriteSpecifier},
                    route_match::PathSpecifier,
                },
            },
            extensions::{
                filters::{
                    http::{local_ratelimit::v3::LocalRateLimit, router::v3::Router},
                    network::http_connection_manager::v3::{
                        HttpConnectionManager, HttpFilter, Rds, http_connection_manager::RouteSpecifier, http_filter,
                    },
                },
                transport_sockets::tls::v3::{
                    CertificateProviderPluginInstance, CertificateValidationContext, CommonTlsContext,
                    DownstreamTlsContext, SdsSecretConfig, TlsParameters, UpstreamTlsContext,
                    common_tls_context::ValidationContextType,
                },
            },
        },
    },
    translate::{self, Decoded, Listener, RouteSource, ServerListener},
};
use prost::Message as _;

use crate::{any, body, seconds};

fn by_grpc(trusted: bool) -> Context {
    let files = |name: &str| Files {
        identity: Some((format!("{name}.pem").into(), format!("{name}.key").into())),
        roots: Some(format!("{name}-ca.pem").into()),
        bundles: None,
        crl: None,
        refresh: Duration::from_secs(600),
    };
    let mapped = Files { roots: None, bundles: Some("map.json".into()), identity: None, ..files("mapped") };
    let certificates = [("default", files("default")), ("other", files("other")), ("mapped", mapped)];
    let certificates = certificates.into_iter().map(|(name, files)| (name.to_owned(), files)).collect();
    Context { profile: Profile::Grpc, trusted, certificates, identity: Some("default".to_owned()), gateway: false }
}

fn read(message: &Message) -> Result<Decoded<Part>, String> {
    translate::read(TypeUrl::Listener, &body(message), &by_grpc(false)).map_err(|error| error.to_string())
}

fn server(message: &Message) -> Result<ServerListener, String> {
    match read(message)?.value {
        Part::Listener(Listener::Server(server)) => Ok(ServerListener::clone(&server)),
        other => panic!("{other:?}"),
    }
}

fn http_filter(name: &str, any: Any) -> HttpFilter {
    let config_type = Some(http_filter::ConfigType::TypedConfig(any));
    HttpFilter { name: name.into(), config_type, ..HttpFilter::default() }
}

fn router() -> HttpFilter {
    http_filter("router", Any::pack(&Router {}))
}

fn ads() -> Option<ConfigSource> {
    let config_source_specifier = Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {}));
    Some(ConfigSource { config_source_specifier, ..ConfigSource::default() })
}

fn manager() -> HttpConnectionManager {
    let rds = Rds { config_source: ads(), route_config_name: "routes".into() };
    HttpConnectionManager {
        route_specifier: Some(RouteSpecifier::Rds(rds)),
        http_filters: vec![router()],
        ..HttpConnectionManager::default()
    }
}

fn api(manager: &HttpConnectionManager) -> Message {
    api_of(Any::pack(manager))
}

fn api_of(any: Any) -> Message {
    Message { name: "a:80".into(), api_listener: Some(ApiListener { api_listener: Some(any) }), ..Message::default() }
}

fn chain(name: &str, matches: FilterChainMatch) -> FilterChain {
    let config_type = Some(filter::ConfigType::TypedConfig(Any::pack(&manager())));
    FilterChain {
        name: name.into(),
        filter_chain_match: Some(matches),
        filters: vec![Filter { name: "hcm".into(), config_type }],
        ..FilterChain::default()
    }
}

fn serving(chains: Vec<FilterChain>) -> Message {
    let socket = SocketAddress {
        address: "127.0.0.1".into(),
        port_specifier: Some(PortSpecifier::PortValue(80)),
        ..SocketAddress::default()
    };
    Message {
        name: "server".into(),
        address: Some(Address { address: Some(address::Address::SocketAddress(socket)) }),
        filter_chains: chains,
        ..Message::default()
    }
}

fn append(any: Any, bytes: &[u8]) -> Any {
    Any { value: [&any.value[..], bytes].concat().into(), ..any }
}

/// NR4: an API listener has its routes by name or inline, and the limit of whole streams.
#[test]
fn api_listeners_lead_to_routes() {
    let options = HttpProtocolOptions { max_stream_duration: Some(seconds(3)), ..HttpProtocolOptions::default() };
    let limited = HttpConnectionManager { common_http_protocol_options: Some(options), ..manager() };
    let decoded = read(&api(&limited)).unwrap();
    let Part::Listener(Listener::Target { routes, settings }) = decoded.value else { panic!("{:?}", decoded.value) };
    assert_eq!(routes, RouteSource::Rds("routes".into()));
    assert_eq!(settings.max_stream_duration.unwrap().as_secs(), 3);
    assert_eq!(settings.idle_timeout, None, "gRPC knows none");

    let inline = RouteSpecifier::RouteConfig(RouteConfiguration {
        name: "inline".into(),
        virtual_hosts: vec![VirtualHost { domains: vec!["*".into()], ..VirtualHost::default() }],
        ..RouteConfiguration::default()
    });
    let decoded = read(&api(&HttpConnectionManager { route_specifier: Some(inline), ..manager() })).unwrap();
    let Part::Listener(Listener::Target { routes: RouteSource::Inline(table), .. }) = decoded.value else { panic!() };
    assert_eq!(&*table.name, "inline");
    // A sidecar has no use for it.
    let sidecar = translate::listener(&body(&api(&manager()))).unwrap();
    assert!(matches!(sidecar.value, Listener::Ignored(_)));
    let _ = Target::default();
}

/// NR4, RA17, AN2: what gRPC refuses an API listener for.
#[test]
fn api_listeners_are_refused_to_the_letter() {
    let with = |filters: Vec<HttpFilter>| api(&HttpConnectionManager { http_filters: filters, ..manager() });
    let elsewhere = Rds { config_source: None, route_config_name: "routes".into() };
    let limit = http_filter("limit", Any::pack(&LocalRateLimit { stat_prefix: "a".into(), ..Default::default() }));
    let cors = http_filter("envoy.filters.http.cors", any("envoy.extensions.filters.http.cors.v3.Cors", &[]));
    let cases = [
        (api(&HttpConnectionManager { route_specifier: None, ..manager() }), "route_specifier"),
        // scoped_routes, xff_num_trusted_hops, original_ip_detection_extensions.
        (api_of(append(Any::pack(&manager()), &[0xfa, 0x01, 0x00])), "scoped_routes"),
        (api_of(append(Any::pack(&manager()), &[0x98, 0x01, 0x01])), "xff_num_trusted_hops"),
        (api_of(append(Any::pack(&manager()), &[0xf2, 0x02, 0x00])), "original_ip_detection_extensions"),
        (
            api(&HttpConnectionManager { route_specifier: Some(RouteSpecifier::Rds(elsewhere)), ..manager() }),
            "rds.config_source",
        ),
        (with(vec![]), "http_filters"),
        (with(vec![router(), cors.clone()]), "http_filters"),
        (with(vec![cors.clone(), router()]), "not supported"),
        (with(vec![limit, router()]), "not supported"),
        (with(vec![router(), HttpFilter { name: "again".into(), ..router() }]), "http_filters"),
        (api_of(any("envoy.Other", &[])), "api_listener.api_listener"),
    ];
    for (message, expected) in cases {
        let error = read(&message).unwrap_err();
        assert!(error.contains(expected) && error.contains("a:80"), "{error}: {expected}");
    }
    let optional = HttpFilter { is_optional: true, ..cors };
    let decoded = read(&with(vec![optional, router()])).unwrap();
    assert!(decoded.ignored.iter().any(|field| field.contains("cors")), "{:?}", decoded.ignored);
}

/// SV1, SV2, SV3, OP15: what gRPC refuses a server's listener for, and which chains take no connection.
#[test]
fn server_listeners_are_refused_to_the_letter() {
    let any_chain = || chain("any", FilterChainMatch::default());
    let range = |address: &str, len| CidrRange { address_prefix: address.into(), prefix_len: Some(len) };
    let tcp = Filter { name: "tcp".into(), config_type: Some(filter::ConfigType::TypedConfig(any("envoy.Tcp", &[]))) };
    let inspector = ListenerFilter { name: "tls_inspector".into(), ..ListenerFilter::default() };
    let mut two = any_chain();
    two.filters.insert(0, tcp.clone());
    let twice = |matches: FilterChainMatch| serving(vec![chain("a", matches.clone()), chain("b", matches)]);
    let ranges = FilterChainMatch {
        prefix_ranges: vec![range("10.1.0.0", 8), range("11.0.0.0", 8)],
        source_ports: vec![1, 2],
        ..FilterChainMatch::default()
    };
    let overlapping = FilterChainMatch {
        prefix_ranges: vec![range("10.200.0.0", 8)],
        source_ports: vec![2, 3],
        ..FilterChainMatch::default()
    };
    let many = FilterChainMatch { source_ports: (0..10_001).collect(), ..FilterChainMatch::default() };
    let cases = [
        (Message { address: None, ..serving(vec![any_chain()]) }, "address"),
        (Message { listener_filters: vec![inspector], ..serving(vec![any_chain()]) }, "listener_filters"),
        (Message { use_original_dst: Some(true), ..serving(vec![any_chain()]) }, "use_original_dst"),
        (serving(vec![]), "filter_chains"),
        (serving(vec![FilterChain { filters: vec![tcp], ..any_chain() }]), "filters"),
        (serving(vec![FilterChain { filters: vec![], ..any_chain() }]), "filters"),
        (serving(vec![two]), "filters"),
        (twice(FilterChainMatch::default()), "filter_chain_match"),
        (serving(vec![chain("a", ranges), chain("b", overlapping)]), "filter_chains[1 \"b\"].filter_chain_match"),
        (serving(vec![chain("many", many)]), "more than 10000"),
        (
            serving(vec![chain("a", FilterChainMatch { source_ports: vec![70_000], ..FilterChainMatch::default() })]),
            "source_ports",
        ),
        (
            serving(vec![chain(
                "a",
                FilterChainMatch { source_prefix_ranges: vec![range("nowhere", 8)], ..FilterChainMatch::default() },
            )]),
            "source_prefix_ranges",
        ),
    ];
    for (message, expected) in cases {
        let error = server(&message).unwrap_err();
        assert!(error.contains(expected) && error.contains("server"), "{error}: {expected}");
    }
    // What no connection shows is asked for in vain, twice as well as once.
    let sni = FilterChainMatch { server_names: vec!["a".into()], ..FilterChainMatch::default() };
    let port = FilterChainMatch { destination_port: Some(80), ..FilterChainMatch::default() };
    let tls = FilterChainMatch { transport_protocol: "tls".into(), ..FilterChainMatch::default() };
    let alpn = FilterChainMatch { application_protocols: vec!["h2".into()], ..FilterChainMatch::default() };
    let never = [sni.clone(), sni, port, tls, alpn].map(|matches| chain("never", matches));
    let read = server(&serving([never.to_vec(), vec![any_chain()]].concat())).unwrap();
    assert_eq!((read.serving.chains.len(), read.routes.len()), (1, 1));
    assert_eq!(read.serving.address, Some("127.0.0.1:80".parse::<SocketAddr>().unwrap()));
    let none = serving(never.to_vec());
    assert!(server(&none).unwrap_err().contains("no chain that could take a connection"));
    let default = Message { default_filter_chain: Some(any_chain()), ..none };
    assert!(server(&default).unwrap().serving.default_chain.is_some());
}

/// XD23, AN2: certificates come from providers that the bootstrap names, and from nowhere else.
#[test]
fn certificates_come_from_providers() {
    let provider =
        |name: &str| Some(CertificateProviderPluginInstance { instance_name: name.into(), ..Default::default() });
    let context = |own: &str, roots: &str| CommonTlsContext {
        tls_certificate_provider_instance: provider(own),
        validation_context_type: Some(ValidationContextType::ValidationContext(CertificateValidationContext {
            ca_certificate_provider_instance: provider(roots),
            ..CertificateValidationContext::default()
        })),
        ..CommonTlsContext::default()
    };
    let over = |common: CommonTlsContext| {
        let context = DownstreamTlsContext { require_client_certificate: Some(true), common_tls_context: Some(common) };
        let socket = TransportSocket {
            name: "envoy.transport_sockets.tls".into(),
            config_type: Some(transport_socket::ConfigType::TypedConfig(Any::pack(&context))),
        };
        let chain = FilterChain { transport_socket: Some(socket), ..chain("tls", FilterChainMatch::default()) };
        server(&serving(vec![chain]))
    };
    let read = over(context("default", "default")).unwrap();
    assert_eq!(read.serving.chains[0].policy.mtls, mesh_core::config::MtlsMode::Strict);
    let secret = SdsSecretConfig { name: "default".into(), sds_config: ads() };
    let by_secret = CommonTlsContext {
        tls_certificate_provider_instance: None,
        tls_certificate_sds_secret_configs: vec![secret],
        ..context("default", "default")
    };
    let tuned = CommonTlsContext { tls_params: Some(TlsParameters::default()), ..context("default", "default") };
    for (common, expected) in [
        (context("unheard", "default"), "\"unheard\" is no certificate provider of the bootstrap"),
        (context("default", "unheard"), "\"unheard\" is no certificate provider of the bootstrap"),
        (context("other", "default"), "must name the certificate \"default\""),
        (context("mapped", "default"), "\"mapped\" has no certificate"),
        (context("default", "mapped"), "\"mapped\" has no roots of its own alone"),
        (by_secret, "tls_certificate_sds_secret_configs"),
        (tuned, "tls_params"),
    ] {
        let error = over(common).unwrap_err();
        assert!(error.contains(expected), "{error}: {expected}");
    }
}

/// XD23: a cluster may name another provider than that of this process's own certificate, or one for the certificate and one for
/// the roots: what is presented and what is trusted are the files of each.
#[test]
fn clusters_may_name_another_provider() {
    let provider =
        |name: &str| Some(CertificateProviderPluginInstance { instance_name: name.into(), ..Default::default() });
    let read = |own: Option<&str>, roots: &str| {
        let common = CommonTlsContext {
            tls_certificate_provider_instance: own.and_then(provider),
            validation_context_type: Some(ValidationContextType::ValidationContext(CertificateValidationContext {
                ca_certificate_provider_instance: provider(roots),
                ..CertificateValidationContext::default()
            })),
            ..CommonTlsContext::default()
        };
        let context = UpstreamTlsContext { common_tls_context: Some(common), ..UpstreamTlsContext::default() };
        let socket = TransportSocket {
            name: "envoy.transport_sockets.tls".into(),
            config_type: Some(transport_socket::ConfigType::TypedConfig(Any::pack(&context))),
        };
        let message = Cluster {
            name: "a".into(),
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
            eds_cluster_config: Some(EdsClusterConfig { eds_config: ads(), ..EdsClusterConfig::default() }),
            transport_socket: Some(socket),
            ..Cluster::default()
        };
        let decoded = translate::read(TypeUrl::Cluster, &message.encode_to_vec().into(), &by_grpc(false));
        match decoded.map(|decoded| decoded.value) {
            Ok(Part::Cluster(cluster)) => match &cluster.tls {
                TlsMode::Always(tls) => Ok(UpstreamTls::clone(tls)),
                other => panic!("{other:?}"),
            },
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.to_string()),
        }
    };
    let own = read(Some("default"), "default").unwrap();
    assert!(own.workload_identity && own.certificate.is_none() && own.roots.is_none());
    for (certificate, roots) in [
        (Some("other"), "other"),
        (Some("default"), "other"),
        (Some("other"), "default"),
        (None, "other"),
        (None, "default"),
    ] {
        let tls = read(certificate, roots).unwrap();
        assert!(!tls.workload_identity);
        let presented = tls.certificate.map(|files| (files.chain, files.key));
        assert_eq!(presented, certificate.map(|name| (format!("{name}.pem"), format!("{name}.key"))));
        assert_eq!(tls.roots, Some(format!("{roots}-ca.pem")));
    }
    for (certificate, roots, expected) in [
        (Some("unheard"), "other", "\"unheard\" is no certificate provider"),
        (Some("other"), "unheard", "\"unheard\" is no certificate provider"),
        (Some("mapped"), "other", "has no certificate"),
        (Some("other"), "mapped", "has no roots of its own alone"),
    ] {
        let error = read(certificate, roots).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

fn table(routes: Vec<Route>, trusted: bool) -> (RouteTable, Vec<String>) {
    let host = VirtualHost { domains: vec!["*".into()], routes, ..VirtualHost::default() };
    let message =
        RouteConfiguration { name: "routes".into(), virtual_hosts: vec![host], ..RouteConfiguration::default() };
    let decoded = translate::read(TypeUrl::Route, &message.encode_to_vec().into(), &by_grpc(trusted)).unwrap();
    let Part::Route(table) = decoded.value else { panic!() };
    (RouteTable::clone(&table), decoded.ignored)
}

fn route(action: ActionMessage) -> Route {
    let matches = RouteMatch { path_specifier: Some(PathSpecifier::Prefix("/".into())), ..RouteMatch::default() };
    Route { r#match: Some(matches), action: Some(action), ..Route::default() }
}

fn to_a() -> RouteAction {
    RouteAction { cluster_specifier: Some(ClusterSpecifier::Cluster("a".into())), ..RouteAction::default() }
}

/// XD29: another authority and other headers are set for a server that is trusted, and told as ignored for others.
#[test]
fn only_trusted_servers_rewrite() {
    let action = RouteAction { host_rewrite_specifier: Some(HostRewriteSpecifier::AutoHostRewrite(true)), ..to_a() };
    let header = HeaderValue { key: "x-a".into(), value: "1".into(), ..HeaderValue::default() };
    let option = HeaderValueOption { header: Some(header), ..HeaderValueOption::default() };
    let asks = Route { request_headers_to_add: vec![option], ..route(ActionMessage::Route(action)) };
    for trusted in [true, false] {
        let (table, ignored) = table(vec![asks.clone()], trusted);
        let route = &table.virtual_hosts[0].routes[0];
        let Action::Forward(forward) = &route.action else { panic!() };
        assert_eq!(forward.host_rewrite == Some(HostRewrite::Auto), trusted);
        assert_eq!(route.headers.request.len(), usize::from(trusted));
        let told = ignored.iter().filter(|field| field.contains("not trusted")).count();
        assert_eq!(told, if trusted { 0 } else { 2 }, "{ignored:?}");
    }
}

/// SV4: what gRPC has no word for fails its requests and is no reason to refuse the rest; a time limit is that of streams.
#[test]
fn routes_are_read_as_grpc_does() {
    let by_query = QueryParameterMatcher { name: "q".into(), ..QueryParameterMatcher::default() };
    let mut queried = route(ActionMessage::Route(to_a()));
    queried.r#match.as_mut().unwrap().query_parameters.push(by_query);
    let by_header = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::ClusterHeader("x-cluster".into())),
        ..RouteAction::default()
    };
    let limited = RouteAction { timeout: Some(seconds(1)), ..to_a() };
    let direct = DirectResponseAction { status: 200, ..DirectResponseAction::default() };
    let (table, ignored) = table(
        vec![
            queried,
            route(ActionMessage::Route(by_header)),
            route(ActionMessage::DirectResponse(direct)),
            route(ActionMessage::NonForwardingAction(NonForwardingAction {})),
            route(ActionMessage::Route(limited)),
        ],
        false,
    );
    let [direct, inbound, limited] = table.virtual_hosts[0].routes.as_slice() else { panic!("{table:?}") };
    let Action::DirectResponse(response) = &direct.action else { panic!() };
    assert!(response.status == 503 && response.body.contains("unsupported action"));
    assert_eq!(inbound.action, Action::NonForwarding);
    let Action::Forward(forward) = &limited.action else { panic!() };
    assert_eq!(forward.timeout, None);
    for field in ["match.query_parameters", "route.cluster_header", "route.timeout"] {
        assert!(ignored.iter().any(|ignored| ignored.contains(field)), "{field}: {ignored:?}");
    }
}
