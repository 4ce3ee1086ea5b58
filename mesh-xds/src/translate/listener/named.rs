//! Listeners as gRPC reads them: by name, one for what is dialled and one for each address that is served on.
//!
//! gRPC refuses what it cannot do to the letter, and so does this: a connection manager that is told to trust addresses in
//! headers, network filters beside it, listener filters, chains that could not be told apart. Chains that ask for what gRPC
//! never sees (SNI, ALPN, the port of a redirected connection) match nothing. Sources: gRFC A27, A36, A39.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

use mesh_core::config::{
    Chain, ChainMatch, HttpSettings, Inbound, MtlsMode, Network, Serving, SourceType, StringMatch,
};

use super::{
    super::{
        Listener, RouteSource, ServerListener, endpoint, filter, own_filter,
        read::{Ignored, Within, Wrong, element, wrong},
        route::{self, Side},
        tls, value,
    },
    CHAINS, FILTERS, HCM, guard,
};
use crate::proto::envoy::{
    config::{
        core::v3::{Address, CidrRange, address},
        listener::v3::{
            ApiListener, FilterChain, FilterChainMatch, Listener as Message, filter::ConfigType,
            filter_chain_match::ConnectionSourceType,
        },
    },
    extensions::filters::network::http_connection_manager::v3::{
        HttpConnectionManager, http_connection_manager::RouteSpecifier,
    },
};

/// Where the manager of what is dialled stands.
const API: &str = "api_listener.api_listener";

/// Connections that the chains of one listener tell apart (OP15).
const MOST_MATCHES: usize = 10_000;

pub(super) fn decode(message: Message, ignored: &mut Ignored) -> Result<Listener, Wrong> {
    match message.api_listener {
        Some(api) => target(api, ignored).under(API),
        None => server(message, ignored).map(|server| Listener::Server(Arc::new(server))),
    }
}

fn target(api: ApiListener, ignored: &mut Ignored) -> Result<Listener, Wrong> {
    let any = api.api_listener.ok_or_else(|| wrong("", "is missing"))?;
    let manager: HttpConnectionManager = ignored.open(&any, API)?;
    check_manager(&manager, API, ignored)?;
    let filters = filter::chain(&manager.http_filters, Side::Outbound, API, ignored)?;
    let common = manager.common_http_protocol_options.unwrap_or_default();
    let stream = common
        .max_stream_duration
        .map(|limit| value::duration(limit, "common_http_protocol_options.max_stream_duration"))
        .transpose()?;
    let settings = HttpSettings {
        idle_timeout: None,
        max_stream_duration: stream.filter(|limit| !limit.is_zero()),
        fault: filters.fault,
        rate_limit: None,
        global_limits: Vec::new(),
        session: filters.session,
        filters: own_filter::decode(&manager.http_filters)?,
        telling: None,
    };
    unheard(&manager, API, ignored);
    let routes = routes(manager, API, ignored)?;
    Ok(Listener::Target { routes, settings: Arc::new(settings) })
}

/// What gRPC does not do with a manager's connections is told.
fn unheard(manager: &HttpConnectionManager, place: &str, ignored: &mut Ignored) {
    let common = manager.common_http_protocol_options.unwrap_or_default();
    for (is_set, field) in [
        (manager.stream_idle_timeout.is_some(), "stream_idle_timeout"),
        (manager.request_timeout.is_some(), "request_timeout"),
        (manager.request_headers_timeout.is_some(), "request_headers_timeout"),
        (common.idle_timeout.is_some(), "common_http_protocol_options.idle_timeout"),
        (common.max_connection_duration.is_some(), "common_http_protocol_options.max_connection_duration"),
        (common.max_requests_per_connection.is_some(), "common_http_protocol_options.max_requests_per_connection"),
        (common.max_headers_count.is_some(), "common_http_protocol_options.max_headers_count"),
        (common.max_response_headers_kb.is_some(), "common_http_protocol_options.max_response_headers_kb"),
        (manager.tracing.is_some(), "tracing"),
        (!manager.access_log.is_empty(), "access_log"),
    ] {
        if is_set {
            ignored.add(place, field);
        }
    }
}

/// Who calls is whom the connection comes from: what says otherwise is refused, not ignored. Source: gRFC A41.
fn check_manager(manager: &HttpConnectionManager, place: &str, ignored: &Ignored) -> Result<(), Wrong> {
    if manager.xff_num_trusted_hops != 0 {
        return Err(wrong("xff_num_trusted_hops", "is set, which is not supported"));
    }
    for field in ["original_ip_detection_extensions", "scoped_routes"] {
        if ignored.has(place, field) {
            return Err(wrong(field, "is set, which is not supported"));
        }
    }
    Ok(())
}

fn routes(manager: HttpConnectionManager, place: &str, ignored: &mut Ignored) -> Result<RouteSource, Wrong> {
    match manager.route_specifier {
        Some(RouteSpecifier::Rds(rds)) => {
            value::is_over_ads(rds.config_source.as_ref(), "rds.config_source")?;
            if rds.route_config_name.is_empty() {
                return Err(wrong("rds.route_config_name", "is missing"));
            }
            Ok(RouteSource::Rds(rds.route_config_name.into()))
        }
        Some(RouteSpecifier::RouteConfig(config)) => {
            let table = route::table(config, Side::Outbound, &format!("{place}.route_config"), ignored);
            table.map(|table| RouteSource::Inline(Arc::new(table))).under("route_config")
        }
        None => Err(wrong("route_specifier", "is missing or of a kind that is not supported")),
    }
}

fn server(message: Message, ignored: &mut Ignored) -> Result<ServerListener, Wrong> {
    if let Some(filter) = message.listener_filters.first() {
        return Err(wrong("listener_filters", format!("has {:?}; there may be none", filter.name)));
    }
    if message.use_original_dst == Some(true) {
        return Err(wrong("use_original_dst", "is set, which is not supported"));
    }
    let address = server_address(message.address)?;
    let mut serving = Serving { address: Some(address), ..Serving::default() };
    let mut sources = Vec::new();
    let mut known = BTreeSet::new();
    for (i, chain) in message.filter_chains.into_iter().enumerate() {
        let at = || element(CHAINS, i, &chain.name);
        let (policy, routes) = policy(&chain, ignored).within(at)?;
        let matches = chain.filter_chain_match.clone().unwrap_or_default();
        let Some(matches) = chain_match(matches).under("filter_chain_match").within(at)? else {
            ignored.add(CHAINS, &format!("{} (asks for what no connection shows here)", chain.name));
            continue;
        };
        distinct(&matches, &mut known).under("filter_chain_match").within(at)?;
        let routes_by_name = matches!(routes, RouteSource::Rds(_));
        serving.chains.push(Chain { matches, policy: Arc::new(policy), routes_by_name });
        sources.push(routes);
    }
    if let Some(chain) = message.default_filter_chain {
        let (policy, routes) = policy(&chain, ignored).under("default_filter_chain")?;
        serving.default_chain = Some(Arc::new(policy));
        serving.default_routes_by_name = matches!(routes, RouteSource::Rds(_));
        sources.push(routes);
    }
    if sources.is_empty() {
        return Err(wrong("filter_chains", "has no chain that could take a connection, and there is no default"));
    }
    Ok(ServerListener { serving, routes: sources })
}

fn server_address(address: Option<Address>) -> Result<SocketAddr, Wrong> {
    const FIELD: &str = "address.socket_address";
    match address.and_then(|address| address.address) {
        Some(address::Address::SocketAddress(socket)) => {
            let (host, port) = endpoint::socket_address(socket).under(FIELD)?;
            let ip = host.parse::<std::net::IpAddr>();
            Ok(SocketAddr::new(ip.map_err(|_| wrong(FIELD, format!("{host:?} is no IP address")))?, port))
        }
        _ => Err(wrong("address", "is missing or of a kind that is not supported")),
    }
}

/// What a chain demands, its routes apart: one filter, and that is the connection manager.
fn policy(chain: &FilterChain, ignored: &mut Ignored) -> Result<(Inbound, RouteSource), Wrong> {
    let any = match chain.filters.as_slice() {
        [one] => match &one.config_type {
            Some(ConfigType::TypedConfig(any)) if any.is::<HttpConnectionManager>() => any,
            _ => return Err(wrong("filters", format!("{:?} is not {HCM:?}, which alone is supported", one.name))),
        },
        filters => {
            let why = guard(chain).unwrap_or_else(|| format!("has {} filters, not one", filters.len()));
            return Err(wrong("filters", why));
        }
    };
    let at = || element("filters", 0, HCM);
    let manager: HttpConnectionManager = ignored.open(any, FILTERS).within(at)?;
    check_manager(&manager, FILTERS, ignored).within(at)?;
    let filters = filter::chain(&manager.http_filters, Side::Inbound, FILTERS, ignored).within(at)?;
    let socket = chain.transport_socket.as_ref();
    let tls = socket.map_or(Ok(None), |socket| tls::downstream(socket, ignored)).under("transport_socket")?;
    unheard(&manager, FILTERS, ignored);
    let routes = routes(manager, FILTERS, ignored).within(at)?;
    let default = Inbound::default();
    let mtls = if tls.is_some() { MtlsMode::Strict } else { MtlsMode::Disable };
    let (callers, alpn): (Vec<StringMatch>, _) = tls.map_or((Vec::new(), default.alpn), |tls| (tls.callers, tls.alpn));
    let policy = Inbound {
        name: chain.name.as_str().into(),
        mtls,
        callers,
        alpn,
        refused: filters.refused,
        guards: filters.guards,
        // The connection alone tells who calls.
        members_forward: false,
        ..Inbound::default()
    };
    Ok((policy, routes))
}

/// Which connections a chain takes; `None` is none ever. Source: gRFC A36.
fn chain_match(message: FilterChainMatch) -> Result<Option<ChainMatch>, Wrong> {
    let raw = match message.transport_protocol.as_str() {
        "" => Some(false),
        "raw_buffer" => Some(true),
        _ => None,
    };
    let matches = ChainMatch {
        destinations: networks(message.prefix_ranges).under("prefix_ranges")?,
        raw: raw.unwrap_or_default(),
        direct_sources: networks(message.direct_source_prefix_ranges).under("direct_source_prefix_ranges")?,
        source_type: match ConnectionSourceType::try_from(message.source_type) {
            Ok(ConnectionSourceType::Any) => SourceType::Any,
            Ok(ConnectionSourceType::SameIpOrLoopback) => SourceType::SameIpOrLoopback,
            Ok(ConnectionSourceType::External) => SourceType::External,
            Err(_) => return Err(wrong("source_type", format!("{} is none", message.source_type))),
        },
        sources: networks(message.source_prefix_ranges).under("source_prefix_ranges")?,
        source_ports: message
            .source_ports
            .into_iter()
            .map(|port| u16::try_from(port).map_err(|_| wrong("source_ports", format!("{port} is no port"))))
            .collect::<Result<_, _>>()?,
    };
    let is_seen = message.destination_port.is_none()
        && message.server_names.is_empty()
        && message.application_protocols.is_empty()
        && raw.is_some();
    Ok(is_seen.then_some(matches))
}

fn networks(ranges: Vec<CidrRange>) -> Result<Vec<Network>, Wrong> {
    let network = |(i, range): (usize, CidrRange)| match range.address_prefix.parse() {
        Ok(address) => Ok(Network::new(address, range.prefix_len.unwrap_or(0))),
        Err(_) => Err(wrong(format!("[{i}]"), format!("{:?} is no IP address", range.address_prefix))),
    };
    ranges.into_iter().enumerate().map(network).collect()
}

/// One way of being matched.
type Way = (Option<Network>, bool, Option<Network>, SourceType, Option<Network>, Option<u16>);

/// Refuses what another chain asks for as well, once all lists are spelt out.
fn distinct(matches: &ChainMatch, known: &mut BTreeSet<Way>) -> Result<(), Wrong> {
    fn each<T: Copy>(list: &[T]) -> Vec<Option<T>> {
        if list.is_empty() { vec![None] } else { list.iter().copied().map(Some).collect() }
    }
    let lists = [matches.destinations.len(), matches.direct_sources.len(), matches.sources.len()];
    let ways = lists.iter().chain([&matches.source_ports.len()]).map(|len| (*len).max(1)).product::<usize>();
    if known.len().saturating_add(ways) > MOST_MATCHES {
        return Err(wrong(
            "",
            format!("with those before it tells more than {MOST_MATCHES} kinds of connections apart"),
        ));
    }
    for destination in each(&matches.destinations) {
        for direct in each(&matches.direct_sources) {
            for source in each(&matches.sources) {
                for port in each(&matches.source_ports) {
                    if !known.insert((destination, matches.raw, direct, matches.source_type, source, port)) {
                        return Err(wrong("", "is that of another chain as well"));
                    }
                }
            }
        }
    }
    Ok(())
}
