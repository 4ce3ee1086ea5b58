//! Listeners. Source: Envoy `Listener`, in the shapes of Istio's sidecars and gateways.
//!
//! A listener on every address (`0.0.0.0_9080`) holds the routes of requests to that port; `virtualInbound` holds one
//! or two filter chains per port of our own servers, and for every port that has none. Listeners of other shapes serve interception of TCP and apply to no
//! library; they are told as ignored, with the reason.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use mesh_core::config::{
    ClientCertHeader, EVERY_PORT, EndpointAddress, GlobalRateLimit, Guard, HttpLimits, HttpSettings, Inbound,
    LocalRateLimit, MtlsMode, Name, PathNormalization, RouteTable, Telling, Underscores,
};

use self::guarded::guard;
use super::{
    Listener, RouteSource, endpoint, filter, own_filter,
    read::{Ignored, Within, Wrong, element, wrong},
    route::{self, Side},
    telling, tls, value,
};
use crate::proto::{
    Any,
    envoy::{
        config::{
            core::v3::{
                Address, HttpProtocolOptions, SocketAddress, TrafficDirection, address, socket_address::PortSpecifier,
            },
            listener::v3::{
                ApiListener, Filter, FilterChain, FilterChainMatch, Listener as Message, ListenerFilter,
                filter::ConfigType, listener_filter,
            },
        },
        extensions::filters::{
            listener::tls_inspector::v3::TlsInspector,
            network::{
                connection_limit::v3::ConnectionLimit,
                http_connection_manager::v3::{HttpConnectionManager, Rds, http_connection_manager::RouteSpecifier},
            },
        },
    },
};

pub(super) mod gateway;
mod guarded;
mod named;

/// The listener with the policy of our own servers.
pub(super) const VIRTUAL_INBOUND: &str = "virtualInbound";
/// Where Envoy takes intercepted inbound connections; said so that Envoys understand what we write.
const INBOUND_PORT: u16 = 15006;
const EVERY_ADDRESS: &str = "0.0.0.0";

const HCM: &str = "envoy.filters.network.http_connection_manager";
const TLS_INSPECTOR: &str = "envoy.filters.listener.tls_inspector";

/// How long a stream may stand still where nothing is said. Source: Envoy `stream_idle_timeout` (TO7).
const DEFAULT_IDLE: Duration = Duration::from_secs(300);

const CONNECTION_LIMIT: &str = "envoy.filters.network.connection_limit";

const CHAINS: &str = "filter_chains";
const FILTERS: &str = "filter_chains.filters";

pub(super) fn decode(body: &Bytes, name: &mut String, ignored: &mut Ignored) -> Result<Listener, Wrong> {
    let message: Message = ignored.read(body, "")?;
    name.clone_from(&message.name);
    if name.is_empty() {
        return Err(wrong("name", "is missing"));
    }
    if ignored.is_grpc() {
        return named::decode(message, ignored);
    }
    if message.api_listener.is_some() {
        return Ok(Listener::Ignored("api_listener is for gRPC's own view of a mesh".to_owned()));
    }
    if message.name == VIRTUAL_INBOUND {
        let rest = message.default_filter_chain.map(|rest| FilterChain { filter_chain_match: None, ..rest });
        return inbound(message.filter_chains.into_iter().chain(rest), ignored).map(Listener::Inbound);
    }
    if ignored.context().gateway {
        return gateway::decode(message, ignored);
    }
    outbound(message, ignored)
}

fn outbound(message: Message, ignored: &mut Ignored) -> Result<Listener, Wrong> {
    if message.traffic_direction == i32::from(TrafficDirection::Inbound) {
        return Ok(Listener::Ignored(format!("an inbound listener that is not {VIRTUAL_INBOUND}")));
    }
    let port = match message.address.and_then(|address| address.address) {
        Some(address::Address::SocketAddress(socket)) => {
            let (host, port) = endpoint::socket_address(socket).under("address.socket_address")?;
            if host != EVERY_ADDRESS && host != "::" {
                return Ok(Listener::Ignored(format!("on {host} alone, for the interception of TCP")));
            }
            port
        }
        _ => return Err(wrong("address", "is missing or of a kind that is not supported")),
    };
    let chains = message.filter_chains.iter().chain(&message.default_filter_chain).enumerate();
    for (i, chain) in chains {
        let at = || element(CHAINS, i, &chain.name);
        let Some(manager) = http(chain, ignored).within(at)? else { continue };
        if chain.transport_socket.is_some() {
            return Ok(Listener::Ignored("takes TLS from outside the mesh, which is not supported".to_owned()));
        }
        let filters = filter::chain(&manager.http_filters, Side::Outbound, FILTERS, ignored).within(at)?;
        let mut settings = settings(&manager, filters, ignored).within(at)?;
        settings.telling = telling::decode(&manager, FILTERS, ignored).within(at)?;
        settings.filters = own_filter::decode(&manager.http_filters).within(at)?;
        let outbound = |routes| Listener::Outbound { port, routes, settings: Arc::new(settings) };
        return routes(manager, Side::Outbound, ignored).map(outbound).within(at);
    }
    Ok(Listener::Ignored("has no HTTP filter chain".to_owned()))
}

/// What the connection manager says of all routes.
fn settings(
    manager: &HttpConnectionManager,
    filters: filter::Chain,
    ignored: &mut Ignored,
) -> Result<HttpSettings, Wrong> {
    let limit = |limit: Option<prost_types::Duration>, field| limit.map(|it| value::duration(it, field)).transpose();
    let common = manager.common_http_protocol_options.unwrap_or_default();
    for (is_set, field) in [
        (common.idle_timeout.is_some(), "idle_timeout"),
        (common.max_connection_duration.is_some(), "max_connection_duration"),
        (common.max_requests_per_connection.is_some(), "max_requests_per_connection"),
        (common.max_headers_count.is_some(), "max_headers_count"),
        (common.max_response_headers_kb.is_some(), "max_response_headers_kb"),
    ] {
        if is_set {
            // They are about connections of callers, and the callers of a library are function calls.
            ignored.add(FILTERS, &format!("common_http_protocol_options.{field}"));
        }
    }
    for (is_set, field) in [
        (manager.request_timeout.is_some_and(|it| it != Default::default()), "request_timeout"),
        (manager.request_headers_timeout.is_some_and(|it| it != Default::default()), "request_headers_timeout"),
    ] {
        if is_set && !ignored.context().gateway {
            ignored.add(FILTERS, field);
        }
    }
    let idle = limit(manager.stream_idle_timeout, "stream_idle_timeout")?.unwrap_or(DEFAULT_IDLE);
    let stream = limit(common.max_stream_duration, "common_http_protocol_options.max_stream_duration")?;
    Ok(HttpSettings {
        idle_timeout: (idle > Duration::ZERO).then_some(idle),
        max_stream_duration: stream.filter(|limit| *limit > Duration::ZERO),
        fault: filters.fault,
        rate_limit: filters.rate_limit,
        global_limits: filters.global_limits,
        session: filters.session,
        filters: Vec::new(),
        telling: None,
    })
}

/// The HTTP connection manager of a chain, if it has one: it is the last filter then.
fn http(chain: &FilterChain, ignored: &mut Ignored) -> Result<Option<HttpConnectionManager>, Wrong> {
    match chain.filters.last().and_then(|filter| filter.config_type.as_ref()) {
        Some(ConfigType::TypedConfig(any)) if any.is::<HttpConnectionManager>() => {
            let at = || element("filters", chain.filters.len() - 1, HCM);
            ignored.open(any, FILTERS).map(Some).within(at)
        }
        _ => Ok(None),
    }
}

fn routes(manager: HttpConnectionManager, side: Side, ignored: &mut Ignored) -> Result<RouteSource, Wrong> {
    match manager.route_specifier {
        Some(RouteSpecifier::Rds(rds)) => {
            value::is_over_ads(rds.config_source.as_ref(), "rds.config_source")?;
            if rds.route_config_name.is_empty() {
                return Err(wrong("rds.route_config_name", "is missing"));
            }
            Ok(RouteSource::Rds(rds.route_config_name.into()))
        }
        Some(RouteSpecifier::RouteConfig(config)) => {
            let table = route::table(config, side, "filter_chains.filters.route_config", ignored);
            table.map(|table| RouteSource::Inline(Arc::new(table))).under("route_config")
        }
        None => Err(wrong("route_specifier", "is missing or of a kind that is not supported")),
    }
}

/// What the chains of one port come to.
#[derive(Default)]
struct Port {
    name: Name,
    tls: Option<tls::Downstream>,
    plaintext: bool,
    routes: Option<Arc<RouteTable>>,
    refused: Option<String>,
    guards: Option<Vec<Guard>>,
    path: Option<PathNormalization>,
    trusted_hops: Option<u32>,
    members_do_not_forward: bool,
    forwarders: Option<Vec<String>>,
    rate_limit: Option<Arc<LocalRateLimit>>,
    global_limits: Vec<Arc<GlobalRateLimit>>,
    request_headers_timeout: Option<Duration>,
    request_timeout: Option<Duration>,
    max_connections: Option<u64>,
    http: HttpLimits,
    underscores: Underscores,
    client_cert: ClientCertHeader,
    telling: Option<Arc<Telling>>,
}

fn inbound(
    chains: impl Iterator<Item = FilterChain>,
    ignored: &mut Ignored,
) -> Result<Vec<(u16, Arc<Inbound>)>, Wrong> {
    let mut ports: BTreeMap<u16, Port> = BTreeMap::new();
    for (i, chain) in chains.enumerate() {
        inbound_chain(&chain, &mut ports, ignored).within(|| element(CHAINS, i, &chain.name))?;
    }
    let inbound = |port: Port| {
        let mtls = match (&port.tls, port.plaintext) {
            (Some(_), true) => MtlsMode::Permissive,
            (Some(_), false) => MtlsMode::Strict,
            (None, _) => MtlsMode::Disable,
        };
        let default = Inbound::default();
        let tls = port.tls.unwrap_or(tls::Downstream {
            callers: Vec::new(),
            alpn: default.alpn,
            versions: default.tls_versions,
        });
        Arc::new(Inbound {
            name: port.name,
            mtls,
            callers: tls.callers,
            tls_versions: tls.versions,
            alpn: tls.alpn,
            routes: port.routes.unwrap_or_default(),
            refused: port.refused,
            guards: port.guards.unwrap_or_default(),
            path: port.path.unwrap_or(PathNormalization::NONE),
            trusted_hops: port.trusted_hops,
            members_forward: !port.members_do_not_forward,
            forwarders: port.forwarders,
            rate_limit: port.rate_limit,
            global_limits: port.global_limits,
            request_headers_timeout: port.request_headers_timeout,
            request_timeout: port.request_timeout,
            max_connections: port.max_connections,
            http: port.http,
            underscores: port.underscores,
            client_cert: port.client_cert,
            telling: port.telling,
        })
    };
    Ok(ports.into_iter().map(|(port, chains)| (port, inbound(chains))).collect())
}

fn inbound_chain(chain: &FilterChain, ports: &mut BTreeMap<u16, Port>, ignored: &mut Ignored) -> Result<(), Wrong> {
    if let Some(field) = chain.filter_chain_match.as_ref().and_then(guarded::narrowed) {
        return Err(wrong(
            format!("filter_chain_match.{field}"),
            "is not supported, and ignoring it would take more in",
        ));
    }
    let Some(manager) = http(chain, ignored)? else {
        ignored.add(CHAINS, &format!("{} (not HTTP)", chain.name));
        return Ok(());
    };
    let matches = chain.filter_chain_match.as_ref();
    // Without a port it is for servers that no service claims.
    let port = matches.and_then(|matches| matches.destination_port).map_or(Ok(EVERY_PORT), |port| {
        let number = u16::try_from(port).ok().filter(|port| *port != EVERY_PORT);
        number.ok_or_else(|| wrong("filter_chain_match.destination_port", format!("{port} is no port")))
    })?;
    let socket = chain.transport_socket.as_ref();
    let tls = socket.map_or(Ok(None), |socket| tls::downstream(socket, ignored)).under("transport_socket")?;
    let filters = filter::chain(&manager.http_filters, Side::Inbound, FILTERS, ignored)?;
    let limits = guarded::server_limits(&manager, ignored)?;
    let most = guarded::connection_limit(chain, ignored)?;
    let telling = telling::decode(&manager, FILTERS, ignored)?;
    let mut refused = guard(chain).or(filters.refused);
    let (path, (hops, members_forward)) = (guarded::path(&manager)?, guarded::trust(&manager));
    let (http, client_cert) = (guarded::http_limits(&manager, ignored)?, guarded::client_cert(&manager)?);
    let underscores = guarded::underscores(&manager)?;
    let RouteSource::Inline(routes) = routes(manager, Side::Inbound, ignored)? else {
        return Err(wrong("filters.rds", "is not supported in an inbound chain; send the routes inline"));
    };

    let entry = ports.entry(port).or_insert_with(|| Port { name: chain.name.as_str().into(), ..Port::default() });
    // What one chain keeps out the other must not let in. Where it is not plain which of two lets less in, nobody is.
    let is_first = entry.path.is_none();
    let mut differ = !is_first && (entry.trusted_hops != hops || entry.path != Some(path));
    differ |= entry.guards.as_ref().is_some_and(|guards| *guards != filters.guards);
    differ |= entry.routes.as_ref().is_some_and(|before| before.virtual_hosts != routes.virtual_hosts);
    match tls {
        Some(tls) => match &mut entry.tls {
            Some(before) => differ |= !before.narrow(tls),
            None => entry.tls = Some(tls),
        },
        None => entry.plaintext = true,
    }
    if differ {
        refused
            .get_or_insert_with(|| "the chains of this port guard it differently: all requests are refused".to_owned());
    }
    entry.routes.get_or_insert(routes);
    entry.guards.get_or_insert(filters.guards);
    entry.path.get_or_insert(path);
    entry.trusted_hops = hops;
    entry.members_do_not_forward |= !members_forward;
    entry.forwarders = guarded::fewer(entry.forwarders.take(), guarded::forwarders(chain));
    entry.refused = entry.refused.take().or(refused);
    entry.rate_limit = entry.rate_limit.take().or(filters.rate_limit);
    if entry.global_limits.is_empty() {
        entry.global_limits = filters.global_limits;
    }
    entry.request_headers_timeout = guarded::least(entry.request_headers_timeout, limits.0);
    entry.request_timeout = guarded::least(entry.request_timeout, limits.1);
    entry.max_connections = guarded::least(entry.max_connections, most);
    entry.http = http;
    entry.client_cert = if is_first { client_cert } else { guarded::stricter(entry.client_cert, client_cert) };
    // The chain that lets less through speaks for all.
    entry.underscores = if entry.underscores == Underscores::Allow { underscores } else { entry.underscores };
    entry.telling = entry.telling.take().or(telling);
    Ok(())
}

/// A listener of requests on their way out, with its routes in a resource of their own.
pub(super) fn encode_outbound(name: &str, port: u16, routes: &str, settings: &HttpSettings) -> Message {
    let rds = Rds { config_source: Some(value::over_ads()), route_config_name: routes.to_owned() };
    let own = settings.filters.iter().map(own_filter::encode);
    let mut manager = HttpConnectionManager {
        stat_prefix: format!("outbound_{name}"),
        route_specifier: Some(RouteSpecifier::Rds(rds)),
        http_filters: own
            .chain(filter::encode(
                Side::Outbound,
                false,
                &[],
                settings.fault.as_ref(),
                settings.rate_limit.as_deref(),
                &settings.global_limits,
                settings.session.as_deref(),
            ))
            .collect(),
        // Said aloud, as absence is five minutes.
        stream_idle_timeout: Some(value::encode_duration(settings.idle_timeout.unwrap_or_default())),
        common_http_protocol_options: encode_limit(settings),
        ..HttpConnectionManager::default()
    };
    telling::encode(settings.telling.as_deref(), &mut manager);
    Message {
        name: name.to_owned(),
        address: Some(on_every_address(port)),
        filter_chains: vec![FilterChain { filters: vec![encode_manager(&manager)], ..FilterChain::default() }],
        traffic_direction: TrafficDirection::Outbound.into(),
        bind_to_port: Some(false),
        ..Message::default()
    }
}

/// The limit of whole streams.
fn encode_limit(settings: &HttpSettings) -> Option<HttpProtocolOptions> {
    settings.max_stream_duration.map(|limit| HttpProtocolOptions {
        max_stream_duration: Some(value::encode_duration(limit)),
        ..HttpProtocolOptions::default()
    })
}

/// A listener that is there to be asked for by name: its routes are those of a client that dials that name (gRFC A27).
pub(super) fn encode_api(name: &str, routes: &str, settings: &HttpSettings) -> Message {
    let rds = Rds { config_source: Some(value::over_ads()), route_config_name: routes.to_owned() };
    let manager = HttpConnectionManager {
        route_specifier: Some(RouteSpecifier::Rds(rds)),
        // Of filters gRPC refuses those that it does not have.
        http_filters: filter::encode(
            Side::Outbound,
            false,
            &[],
            settings.fault.as_ref(),
            None,
            &[],
            settings.session.as_deref(),
        ),
        common_http_protocol_options: encode_limit(settings),
        ..HttpConnectionManager::default()
    };
    Message {
        name: name.to_owned(),
        api_listener: Some(ApiListener { api_listener: Some(Any::pack(&manager)) }),
        ..Message::default()
    }
}

/// The listener of a server of gRPC's own at one address, in plaintext: one chain, whose routes forward nothing (gRFC A36).
pub(super) fn encode_server(name: &str, address: SocketAddr, inbound: &Inbound) -> Message {
    let manager = HttpConnectionManager {
        route_specifier: Some(RouteSpecifier::RouteConfig(route::encode(&inbound.routes.name, &inbound.routes))),
        http_filters: filter::encode(Side::Inbound, inbound.refused.is_some(), &inbound.guards, None, None, &[], None),
        ..HttpConnectionManager::default()
    };
    Message {
        name: name.to_owned(),
        address: Some(endpoint::encode_address(&EndpointAddress::Socket(address))),
        filter_chains: vec![FilterChain { filters: vec![encode_manager(&manager)], ..FilterChain::default() }],
        traffic_direction: TrafficDirection::Inbound.into(),
        ..Message::default()
    }
}

/// The listener with the policy of our own servers.
pub(super) fn encode_inbound<'a>(ports: impl Iterator<Item = (u16, &'a Inbound)>) -> Message {
    let inspector = listener_filter::ConfigType::TypedConfig(Any::pack(&TlsInspector {}));
    Message {
        name: VIRTUAL_INBOUND.to_owned(),
        address: Some(on_every_address(INBOUND_PORT)),
        filter_chains: ports.flat_map(|(port, inbound)| encode_chains(port, inbound)).collect(),
        use_original_dst: Some(true),
        listener_filters: vec![ListenerFilter { name: TLS_INSPECTOR.to_owned(), config_type: Some(inspector) }],
        traffic_direction: TrafficDirection::Inbound.into(),
        ..Message::default()
    }
}

fn encode_chains(port: u16, inbound: &Inbound) -> impl Iterator<Item = FilterChain> {
    let routes =
        if inbound.routes.name.is_empty() { format!("inbound|{port}||") } else { inbound.routes.name.to_string() };
    let (xff_num_trusted_hops, use_remote_address) = guarded::encode_trust(inbound);
    let (refused, limit, services) = (inbound.refused.is_some(), inbound.rate_limit.as_deref(), &inbound.global_limits);
    let filters = filter::encode(Side::Inbound, refused, &inbound.guards, None, limit, services, None);
    let mut manager = HttpConnectionManager {
        stat_prefix: format!("inbound_{EVERY_ADDRESS}_{port}"),
        route_specifier: Some(RouteSpecifier::RouteConfig(route::encode(&routes, &inbound.routes))),
        request_headers_timeout: inbound.request_headers_timeout.map(value::encode_duration),
        request_timeout: inbound.request_timeout.map(value::encode_duration),
        normalize_path: Some(inbound.path.dot_segments),
        merge_slashes: inbound.path.merge_slashes,
        path_with_escaped_slashes_action: guarded::encode_slashes(inbound.path.escaped_slashes),
        xff_num_trusted_hops,
        use_remote_address,
        http_filters: guarded::with_body_limit(filters, inbound.http),
        ..HttpConnectionManager::default()
    };
    guarded::encode(inbound, &mut manager);
    telling::encode(inbound.telling.as_deref(), &mut manager);
    let limit = encode_chain_limit(inbound);
    let name = if inbound.name.is_empty() { format!("{EVERY_ADDRESS}_{port}") } else { inbound.name.to_string() };
    let chain = |protocol: &str, transport_socket| FilterChain {
        name: name.clone(),
        filter_chain_match: Some(FilterChainMatch {
            destination_port: (port != EVERY_PORT).then_some(port.into()),
            transport_protocol: protocol.to_owned(),
            ..FilterChainMatch::default()
        }),
        filters: limit.iter().cloned().chain([encode_manager(&manager)]).collect(),
        transport_socket,
        metadata: guarded::encode_forwarders(inbound.forwarders.as_deref()),
    };
    let encrypted = || chain("tls", Some(tls::encode_downstream(inbound)));
    let plaintext = || chain("raw_buffer", None);
    let chains = match inbound.mtls {
        MtlsMode::Strict => vec![encrypted()],
        MtlsMode::Permissive => vec![encrypted(), plaintext()],
        MtlsMode::Disable => vec![plaintext()],
    };
    chains.into_iter()
}

fn encode_chain_limit(inbound: &Inbound) -> Option<Filter> {
    inbound.max_connections.map(|most| Filter {
        name: CONNECTION_LIMIT.to_owned(),
        config_type: Some(ConfigType::TypedConfig(Any::pack(&ConnectionLimit {
            stat_prefix: "connection_limit".to_owned(),
            max_connections: Some(most),
            ..ConnectionLimit::default()
        }))),
    })
}

fn encode_manager(manager: &HttpConnectionManager) -> Filter {
    Filter { name: HCM.to_owned(), config_type: Some(ConfigType::TypedConfig(Any::pack(manager))) }
}

fn on_every_address(port: u16) -> Address {
    let socket = SocketAddress {
        address: EVERY_ADDRESS.to_owned(),
        port_specifier: Some(PortSpecifier::PortValue(port.into())),
        ..SocketAddress::default()
    };
    Address { address: Some(address::Address::SocketAddress(socket)) }
}
