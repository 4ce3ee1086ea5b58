//! Rules of listeners: which are ours, what a port's chains come to, and filters that guard the door.

use mesh_core::config::{EVERY_PORT, Inbound, MtlsMode, StringMatch, TlsVersions};
use mesh_xds::{
    proto::{
        Any,
        envoy::{
            config::{
                core::v3::{
                    Address, AggregatedConfigSource, ConfigSource, SocketAddress, TransportSocket, address,
                    config_source::ConfigSourceSpecifier, socket_address::PortSpecifier, transport_socket,
                },
                listener::v3::{ApiListener, Filter, FilterChain, FilterChainMatch, Listener as Message, filter},
                route::v3::{
                    Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route::Action,
                    route_action::ClusterSpecifier, route_match::PathSpecifier,
                },
            },
            extensions::{
                filters::{
                    http::router::v3::Router,
                    network::http_connection_manager::v3::{
                        HttpConnectionManager, HttpFilter, Rds, http_connection_manager::RouteSpecifier, http_filter,
                    },
                },
                transport_sockets::tls::v3::{
                    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig,
                    TlsParameters,
                    common_tls_context::{CombinedCertificateValidationContext, ValidationContextType},
                    tls_parameters::TlsProtocol,
                },
            },
            r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern},
        },
    },
    translate::{self, Decoded, Listener, RouteSource},
};

use crate::{any, body};

fn decode(message: &Message) -> Result<Decoded<Listener>, String> {
    translate::listener(&body(message)).map_err(|error| error.to_string())
}

fn filter(name: &str, any: Any) -> HttpFilter {
    HttpFilter {
        name: name.into(),
        config_type: Some(http_filter::ConfigType::TypedConfig(any)),
        ..HttpFilter::default()
    }
}

fn router() -> HttpFilter {
    filter("envoy.filters.http.router", Any::pack(&Router {}))
}

fn chain(manager: &HttpConnectionManager) -> FilterChain {
    let config = filter::ConfigType::TypedConfig(Any::pack(manager));
    let hcm = Filter { name: "envoy.filters.network.http_connection_manager".into(), config_type: Some(config) };
    FilterChain { filters: vec![hcm], ..FilterChain::default() }
}

fn on(host: &str, port: u32) -> Option<Address> {
    let socket = SocketAddress {
        address: host.into(),
        port_specifier: Some(PortSpecifier::PortValue(port)),
        ..SocketAddress::default()
    };
    Some(Address { address: Some(address::Address::SocketAddress(socket)) })
}

fn outbound(host: &str, source: ConfigSource) -> Message {
    outbound_with(host, source, vec![router()])
}

fn outbound_with(host: &str, source: ConfigSource, http_filters: Vec<HttpFilter>) -> Message {
    let rds = Rds { config_source: Some(source), route_config_name: "9080".into() };
    let manager = HttpConnectionManager {
        route_specifier: Some(RouteSpecifier::Rds(rds)),
        http_filters,
        ..HttpConnectionManager::default()
    };
    Message {
        name: "0.0.0.0_9080".into(),
        address: on(host, 9080),
        filter_chains: vec![chain(&manager)],
        ..Message::default()
    }
}

fn ads() -> ConfigSource {
    let ads = ConfigSourceSpecifier::Ads(AggregatedConfigSource {});
    ConfigSource { config_source_specifier: Some(ads), ..ConfigSource::default() }
}

/// XD36 (envoy): a filter whose configuration would be fetched by itself refuses its listener by name, unless it is optional.
#[test]
fn filters_fetched_by_themselves_are_refused() {
    // Filters are field 5 of the manager; field 5 of a filter is `config_discovery`, field 6 `is_optional`.
    let with = |filter: &[u8]| {
        let mut message = outbound("0.0.0.0", ads());
        let filter::ConfigType::TypedConfig(any) = message.filter_chains[0].filters[0].config_type.as_mut().unwrap();
        let length = u8::try_from(filter.len()).unwrap();
        any.value = [&[0x2a, length][..], filter, &any.value[..]].concat().into();
        decode(&message)
    };
    let error = with(b"\x0a\x05fetch\x2a\x00").unwrap_err();
    assert!(error.contains("http_filters") && error.contains("\"fetch\""), "{error}");
    let ignored = with(b"\x0a\x05fetch\x2a\x00\x30\x01").unwrap().ignored;
    assert!(ignored.iter().any(|field| field.ends_with("http_filters.fetch")), "{ignored:?}");
}

/// NR4: routes come over the same stream; listeners of other shapes are told as ignored, with the reason.
#[test]
fn listeners_on_every_address_are_ours() {
    let decoded = decode(&outbound("0.0.0.0", ads())).unwrap();
    let Listener::Outbound { port: 9080, routes, settings } = &decoded.value else { panic!("{decoded:?}") };
    assert_eq!(*routes, RouteSource::Rds("9080".into()));
    // TO7: five minutes where nothing is said.
    assert_eq!(settings.idle_timeout, Some(std::time::Duration::from_secs(300)));
    let error = decode(&outbound("0.0.0.0", ConfigSource::default())).unwrap_err();
    assert!(error.contains("filter_chains[0].rds.config_source: must be `ads` or `self`"), "{error}");
    let ignored = |message: &Message| match decode(message).unwrap().value {
        Listener::Ignored(why) => why,
        other => panic!("{other:?}"),
    };
    assert!(ignored(&outbound("10.0.0.1", ads())).contains("10.0.0.1"));
    assert!(ignored(&Message { filter_chains: vec![], ..outbound("0.0.0.0", ads()) }).contains("no HTTP"));
    let api = Message { api_listener: Some(ApiListener::default()), ..outbound("0.0.0.0", ads()) };
    assert!(ignored(&api).contains("api_listener"));
}

/// RA17: a chain ends in the router.
#[test]
fn a_chain_without_router_is_refused() {
    let manager = HttpConnectionManager {
        route_specifier: Some(RouteSpecifier::RouteConfig(RouteConfiguration::default())),
        http_filters: vec![router(), filter("envoy.filters.http.cors", Any::default())],
        ..HttpConnectionManager::default()
    };
    let message = Message { filter_chains: vec![chain(&manager)], ..outbound("0.0.0.0", ads()) };
    assert!(decode(&message).unwrap_err().contains("http_filters: must end in"), "router not last");
}

fn inbound_manager(filters: Vec<HttpFilter>) -> HttpConnectionManager {
    let route = Route {
        r#match: Some(RouteMatch { path_specifier: Some(PathSpecifier::Prefix("/".into())), ..RouteMatch::default() }),
        action: Some(Action::Route(RouteAction {
            cluster_specifier: Some(ClusterSpecifier::Cluster("inbound|9080||".into())),
            ..RouteAction::default()
        })),
        ..Route::default()
    };
    let host = VirtualHost {
        name: "inbound|http|9080".into(),
        domains: vec!["*".into()],
        routes: vec![route],
        ..VirtualHost::default()
    };
    let table = RouteConfiguration {
        name: "inbound|9080||".into(),
        virtual_hosts: vec![host],
        ..RouteConfiguration::default()
    };
    HttpConnectionManager {
        route_specifier: Some(RouteSpecifier::RouteConfig(table)),
        http_filters: filters,
        ..HttpConnectionManager::default()
    }
}

/// The context istiod gives its inbound chains.
fn mutual() -> DownstreamTlsContext {
    let secret = |name: &str| SdsSecretConfig { name: name.into(), sds_config: Some(ads()) };
    let trust_domain = StringMatcher {
        match_pattern: Some(MatchPattern::Prefix("spiffe://cluster.local/".into())),
        ignore_case: false,
    };
    let validation = CombinedCertificateValidationContext {
        default_validation_context: Some(CertificateValidationContext {
            match_subject_alt_names: vec![trust_domain],
            ..CertificateValidationContext::default()
        }),
        validation_context_sds_secret_config: Some(secret("ROOTCA")),
        ..CombinedCertificateValidationContext::default()
    };
    DownstreamTlsContext {
        require_client_certificate: Some(true),
        common_tls_context: Some(CommonTlsContext {
            tls_params: Some(TlsParameters {
                tls_minimum_protocol_version: TlsProtocol::TlSv12.into(),
                cipher_suites: vec!["ECDHE-ECDSA-AES256-GCM-SHA384".into()],
                ..TlsParameters::default()
            }),
            tls_certificate_sds_secret_configs: vec![secret("default")],
            validation_context_type: Some(ValidationContextType::CombinedValidationContext(validation)),
            alpn_protocols: vec!["h2".into(), "http/1.1".into()],
            ..CommonTlsContext::default()
        }),
    }
}

fn encrypted(context: &DownstreamTlsContext) -> TransportSocket {
    let any = transport_socket::ConfigType::TypedConfig(Any::pack(context));
    TransportSocket { name: "envoy.transport_sockets.tls".into(), config_type: Some(any) }
}

fn port_chain(port: u32, tls: Option<TransportSocket>, filters: Vec<HttpFilter>) -> FilterChain {
    FilterChain {
        name: format!("0.0.0.0_{port}"),
        filter_chain_match: Some(FilterChainMatch { destination_port: Some(port), ..FilterChainMatch::default() }),
        transport_socket: tls,
        ..chain(&inbound_manager(filters))
    }
}

fn virtual_inbound(filter_chains: Vec<FilterChain>) -> Message {
    Message { name: "virtualInbound".into(), address: on("0.0.0.0", 15006), filter_chains, ..Message::default() }
}

fn ports(chains: Vec<FilterChain>) -> Vec<(u16, Inbound)> {
    match decode(&virtual_inbound(chains)).unwrap().value {
        Listener::Inbound(ports) => ports.into_iter().map(|(port, inbound)| (port, (*inbound).clone())).collect(),
        other => panic!("{other:?}"),
    }
}

/// AN4: what a port takes follows from the chains it has; those of no port are for every port that has none.
#[test]
fn the_chains_of_a_port_are_its_mode() {
    let tls = || Some(encrypted(&mutual()));
    let ports = ports(vec![
        port_chain(9080, tls(), vec![router()]),
        port_chain(9090, tls(), vec![router()]),
        port_chain(9090, None, vec![router()]),
        port_chain(9091, None, vec![router()]),
        chain(&inbound_manager(vec![router()])),
        FilterChain { name: "blackhole".into(), ..FilterChain::default() },
    ]);
    let modes: Vec<_> = ports.iter().map(|(port, inbound)| (*port, inbound.mtls)).collect();
    assert_eq!(modes[0], (EVERY_PORT, MtlsMode::Disable));
    assert_eq!(modes[1..], [(9080, MtlsMode::Strict), (9090, MtlsMode::Permissive), (9091, MtlsMode::Disable)]);
    let strict = &ports[1].1;
    assert_eq!(strict.alpn, ["h2", "http/1.1"]);
    let caller = StringMatch::Prefix { value: "spiffe://cluster.local/".into(), ignore_case: false };
    assert_eq!((&*strict.name, strict.callers.as_slice()), ("0.0.0.0_9080", &[caller][..]));
    let action = &strict.routes.virtual_hosts[0].routes[0].action;
    assert_eq!(*action, mesh_core::config::Action::NonForwarding, "what Envoy forwards to its application is ours");
    let mut rest = virtual_inbound(vec![port_chain(9080, tls(), vec![router()])]);
    rest.default_filter_chain = Some(port_chain(9090, tls(), vec![router()]));
    let Listener::Inbound(ports) = decode(&rest).unwrap().value else { panic!() };
    let modes: Vec<_> = ports.iter().map(|(port, inbound)| (*port, inbound.mtls)).collect();
    assert_eq!(modes, [(EVERY_PORT, MtlsMode::Strict), (9080, MtlsMode::Strict)], "whatever its condition says");
    let none = port_chain(u32::from(EVERY_PORT), None, vec![router()]);
    assert!(decode(&virtual_inbound(vec![none])).unwrap_err().contains("0 is no port"));
}

/// AN10: versions hold, of ciphers one at least must be spoken; chains of one port are taken together by the stricter, and where it is
/// not plain which that is, nobody is let in.
#[test]
fn chains_of_one_port_are_taken_by_the_stricter() {
    let context = |least: TlsProtocol, most: TlsProtocol, caller: &str, ciphers: &[&str]| {
        let mut context = mutual();
        let common = context.common_tls_context.get_or_insert_default();
        common.tls_params = Some(TlsParameters {
            tls_minimum_protocol_version: least.into(),
            tls_maximum_protocol_version: most.into(),
            cipher_suites: ciphers.iter().map(ToString::to_string).collect(),
            ..TlsParameters::default()
        });
        if let Some(ValidationContextType::CombinedValidationContext(combined)) = &mut common.validation_context_type {
            let matcher = MatchPattern::Prefix(caller.to_owned());
            let matcher = StringMatcher { match_pattern: Some(matcher), ..StringMatcher::default() };
            combined.default_validation_context.get_or_insert_default().match_subject_alt_names = vec![matcher];
        }
        port_chain(9080, Some(encrypted(&context)), vec![router()])
    };
    let of = |chains: Vec<FilterChain>| ports(chains).into_iter().find(|(port, _)| *port == 9080).unwrap().1;
    use TlsProtocol::{TlSv12, TlSv13, TlsAuto};
    let (one, other) = ("spiffe://cluster.local/", "spiffe://other/");
    for reversed in [false, true] {
        let both = |a: FilterChain, b: FilterChain| of(if reversed { vec![b, a] } else { vec![a, b] });
        let taken = both(context(TlsAuto, TlsAuto, one, &[]), context(TlSv13, TlsAuto, one, &[]));
        assert_eq!((taken.tls_versions, taken.refused), (TlsVersions::Only13, None));
        let taken = both(context(TlSv12, TlSv12, one, &[]), context(TlSv13, TlSv13, one, &[]));
        assert!(taken.refused.is_some(), "there is no version that both take");
        let taken = both(context(TlsAuto, TlsAuto, one, &[]), context(TlsAuto, TlsAuto, other, &[]));
        assert!(taken.refused.is_some(), "each lets others in");
    }
    let spoken = ["AES256-GCM-SHA384", "ECDHE-RSA-AES128-GCM-SHA256"];
    assert!(decode(&virtual_inbound(vec![context(TlsAuto, TlsAuto, one, &spoken)])).is_ok());
    let error = decode(&virtual_inbound(vec![context(TlsAuto, TlsAuto, one, &spoken[..1])])).unwrap_err();
    assert!(error.contains("cipher_suites") && error.contains("AES256-GCM-SHA384"), "{error}");
}

/// AN8: TLS that does not ask for a certificate is not served.
#[test]
fn one_sided_tls_is_refused() {
    for context in [
        DownstreamTlsContext { require_client_certificate: Some(false), ..mutual() },
        DownstreamTlsContext { require_client_certificate: None, ..mutual() },
        DownstreamTlsContext { common_tls_context: None, ..mutual() },
    ] {
        let error =
            decode(&virtual_inbound(vec![port_chain(80, Some(encrypted(&context)), vec![router()])])).unwrap_err();
        let place = "LDS \"virtualInbound\": field filter_chains[0 \"0.0.0.0_80\"].transport_socket.typed_config.";
        assert!(error.starts_with(place), "{error}");
    }
}

/// RA17, AN16, AN17, AZ9: filters that only observe are passed over, others reported, guards close the port, processors too.
#[test]
fn filters_that_guard_close_the_port() {
    let quiet = || {
        vec![
            filter("istio.metadata_exchange", any("io.istio.http.peer_metadata.Config", &[])),
            filter("istio.stats", any("stats.PluginConfig", &[])),
            filter(
                "envoy.filters.http.grpc_stats",
                any("envoy.extensions.filters.http.grpc_stats.v3.FilterConfig", &[]),
            ),
        ]
    };
    let decode = |mut filters: Vec<HttpFilter>, disabled| {
        let mut list = quiet();
        filters.iter_mut().for_each(|filter| filter.disabled = disabled);
        list.extend(filters);
        list.push(router());
        let decoded = decode(&virtual_inbound(vec![port_chain(80, None, list)])).unwrap();
        let Listener::Inbound(ports) = decoded.value else { panic!() };
        (ports[0].1.refused.clone(), decoded.ignored)
    };
    assert_eq!(decode(vec![], false), (None, vec![]));
    let unknown = filter("example.unknown", any("example.Unknown", &[]));
    let optional = HttpFilter { is_optional: true, ..unknown.clone() };
    assert_eq!(
        decode(vec![optional], false),
        (None, vec!["filter_chains.filters.http_filters.example.unknown".into()])
    );
    assert_eq!(decode(vec![unknown], true), (None, vec![]));
    let wrapped = any("udpa.type.v1.TypedStruct", &[&[0x0a, 32][..], b"type.googleapis.com/my.JwtPolicy"].concat());
    for guard in [
        filter("envoy.filters.http.ext_authz", any("envoy.extensions.filters.http.ext_authz.v3.ExtAuthz", &[])),
        filter("processor", any("envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor", &[])),
        filter("istio_authn", any("istio.envoy.config.filter.http.authn.v2alpha1.FilterConfig", &[])),
        filter("plain-name", any("envoy.extensions.filters.http.oauth2.v3.OAuth2", &[])),
        filter("gcp", any("envoy.extensions.filters.http.gcp_authn.v3.GcpAuthnFilterConfig", &[])),
        filter("plain-name", any("envoy.extensions.filters.http.credential_injector.v3.CredentialInjector", &[])),
        filter("plain-name", wrapped),
    ] {
        let (refused, _) = decode(vec![guard.clone()], false);
        assert!(refused.unwrap().contains(&format!("{:?}", guard.name)));
        assert_eq!(decode(vec![guard], true).0, None, "disabled");
    }
    let mut guarded = port_chain(80, None, vec![router()]);
    let rbac = filter::ConfigType::TypedConfig(any("envoy.extensions.filters.network.rbac.v3.RBAC", &[]));
    guarded.filters.insert(0, Filter { name: "envoy.filters.network.rbac".into(), config_type: Some(rbac) });
    assert!(ports(vec![guarded])[0].1.refused.as_ref().unwrap().contains("envoy.filters.network.rbac"));
}

/// RA17: filters of the program's own keep their order, disabled ones too; one that cannot be made of its configuration refuses the
/// listener, and one that nobody registered does unless it is optional.
#[test]
fn filters_of_ones_own_are_read() {
    #[derive(Debug)]
    struct Nothing;
    impl mesh_core::filter::HttpFilter for Nothing {
        fn request(&self, _: &mut http::request::Parts) -> Option<mesh_core::filter::FilterAnswer> {
            None
        }
    }
    mesh_core::filter::register("test.translate.Nothing", |config| match config {
        b"bad" => Err("it is bad".to_owned()),
        _ => Ok(std::sync::Arc::new(Nothing)),
    });
    let own = |name: &str, config: &[u8]| filter(name, any("test.translate.Nothing", config));
    let off = HttpFilter { disabled: true, ..own("b", b"2") };
    let read = |filters: Vec<HttpFilter>| decode(&outbound_with("0.0.0.0", ads(), filters));
    let decoded = read(vec![own("a", b"1"), off, router()]).unwrap();
    let Listener::Outbound { settings, .. } = decoded.value else { panic!() };
    let seen: Vec<_> = settings.filters.iter().map(|it| (&*it.name, it.config.as_slice(), it.disabled)).collect();
    assert_eq!(seen, [("a", &b"1"[..], false), ("b", &b"2"[..], true)]);
    let error = read(vec![own("a", b"bad"), router()]).unwrap_err();
    assert!(error.contains("http_filters[0 \"a\"].typed_config") && error.contains("it is bad"), "{error}");
    let strange = |is_optional| HttpFilter { is_optional, ..filter("s", any("test.translate.Nobody", b"")) };
    assert!(read(vec![strange(false), router()]).unwrap_err().contains("test.translate.Nobody"));
    assert!(read(vec![strange(true), router()]).unwrap().ignored.iter().any(|path| path.contains("http_filters.s")));
}

/// CB8, RL7: limits that adapt, and limits of bytes per second, are not acted on, and that is said by name: reported, or the
/// listener is refused.
#[test]
fn adaptive_limits_are_named() {
    for name in [
        "envoy.filters.http.adaptive_concurrency",
        "envoy.filters.http.admission_control",
        "envoy.filters.http.bandwidth_limit",
    ] {
        for is_optional in [true, false] {
            let limit = HttpFilter { is_optional, ..filter(name, any("envoy.extensions.filters.http.Limit", &[])) };
            let decoded = decode(&virtual_inbound(vec![port_chain(80, None, vec![limit, router()])]));
            let decoded = match decoded {
                Ok(decoded) => decoded,
                Err(error) => {
                    assert!(!is_optional && error.contains(name), "{error}");
                    continue;
                }
            };
            let Listener::Inbound(ports) = decoded.value else { panic!() };
            let refused = ports[0].1.refused.clone().unwrap_or_default();
            assert!(refused.contains(name) || decoded.ignored.iter().any(|field| field.contains(name)), "{name}");
        }
    }
}

/// SV2: a condition of a chain that is not understood refuses the listener.
#[test]
fn unknown_chain_conditions_are_refused() {
    use prost::Message as _;
    // server_names, then source_type, within filter_chain_match of the first chain.
    for (bytes, name) in [(&[0x5a, 1, b'a'][..], "server_names"), (&[0x60, 1], "source_type")] {
        let mut chain = vec![0x0a, bytes.len() as u8];
        chain.extend(bytes);
        let mut message = virtual_inbound(vec![]).encode_to_vec();
        message.extend([0x1a, chain.len() as u8]);
        message.extend(chain);
        let error = translate::listener(&message.into()).unwrap_err();
        assert_eq!(error.field, format!("filter_chains[0].filter_chain_match.{name}"));
    }
}

/// RA17, RA22, RA23, RA24, RL4: a chain ends in the router and has it once; names are its own; what is unknown refuses it, unless it is optional.
#[test]
fn filter_chains_are_checked() {
    let check = |filters: Vec<HttpFilter>| decode(&virtual_inbound(vec![port_chain(80, None, filters)]));
    let unknown = || filter("example.unknown", any("example.Unknown", &[]));
    let stats = || filter("istio.stats", any("stats.PluginConfig", &[]));
    let of = |name: &str, message: &str| {
        let message = format!("envoy.extensions.filters.http.{name}.v3.{message}");
        filter(&format!("envoy.filters.http.{name}"), any(&message, &[]))
    };
    for (filters, why) in [
        (vec![], "must end in"),
        (vec![stats()], "must end in"),
        (vec![router(), stats()], "must end in"),
        (vec![HttpFilter { disabled: true, ..router() }], "must end in"),
        (vec![HttpFilter { name: "other".into(), ..router() }, router()], "only there"),
        (vec![stats(), stats(), router()], "\"istio.stats\" twice"),
        (vec![unknown(), router()], "\"example.Unknown\", which is not supported"),
        (vec![of("grpc_json_transcoder", "GrpcJsonTranscoder"), router()], "not supported"),
        (vec![of("grpc_http1_bridge", "Config"), router()], "not supported"),
        (vec![of("compressor", "Compressor"), router()], "not supported"),
        (vec![of("buffer", "Buffer"), router()], "max_request_bytes: must be greater than zero"),
        (vec![of("composite", "Composite"), router()], "not supported"),
        (vec![of("rate_limit_quota", "RateLimitQuotaFilterConfig"), router()], "not supported"),
    ] {
        let error = check(filters).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
    for fine in [
        vec![stats(), router()],
        vec![HttpFilter { is_optional: true, ..unknown() }, router()],
        vec![HttpFilter { disabled: true, ..unknown() }, router()],
    ] {
        assert!(check(fine).is_ok());
    }
}
