//! Listeners of a gateway: chains by the name that is asked for in the handshake, TLS ended here or bytes handed on, and what
//! requests from outside must pass. Source: Envoy `Listener` in the shape of Istio's gateways.

use std::{sync::Arc, time::Duration};

use mesh_core::config::{
    Config, GatewayChain, GatewayTo, HttpLimits, HttpSettings, Inbound, MtlsMode, PathNormalization, WeightedCluster,
};
use prost::Message as _;

use super::{
    CHAINS, FILTERS, TLS_INSPECTOR, encode_chain_limit, encode_manager, guard,
    guarded::{self, connection_limit, narrowed},
    http, on_every_address, routes, settings,
};
use crate::{
    ads::{ResourceSet, TypeUrl},
    proto::{
        Any,
        envoy::{
            config::{
                core::v3::{TrafficDirection, address},
                listener::v3::{
                    Filter, FilterChain, FilterChainMatch, Listener as Message, ListenerFilter, filter::ConfigType,
                    listener_filter,
                },
            },
            extensions::filters::{
                http::{buffer::v3::Buffer, router::v3::Router},
                listener::tls_inspector::v3::TlsInspector,
                network::{
                    http_connection_manager::v3::{
                        HttpConnectionManager, HttpFilter, Rds, http_connection_manager::RouteSpecifier, http_filter,
                    },
                    rbac::v3::Rbac,
                    tcp_proxy::v3::{
                        TcpProxy,
                        tcp_proxy::{ClusterSpecifier, WeightedCluster as Weighted, weighted_cluster::ClusterWeight},
                    },
                },
            },
        },
    },
    translate::{
        GatewayListener, GatewayPart, Listener, RouteSource, endpoint, filter, own_filter, rbac,
        read::{Ignored, Within, Wrong, element, wrong},
        route::{self, Side},
        telling,
        tls::gateway as tls,
        value,
    },
};

const TCP_PROXY: &str = "envoy.filters.network.tcp_proxy";
const ROUTER: &str = "envoy.filters.http.router";

/// What the name of a target begins with when routes have none of their own.
const INLINE: &str = "inline.";

pub(super) fn decode(message: Message, ignored: &mut Ignored) -> Result<Listener, Wrong> {
    let port = match message.address.and_then(|address| address.address) {
        Some(address::Address::SocketAddress(socket)) => {
            endpoint::socket_address(socket).under("address.socket_address")?.1
        }
        _ => return Err(wrong("address", "is missing or of a kind that is not supported")),
    };
    let mut policy: Option<Inbound> = None;
    let mut parts = Vec::new();
    for (i, chain) in message.filter_chains.iter().chain(&message.default_filter_chain).enumerate() {
        let name = match chain.name.as_str() {
            "" => format!("{INLINE}{port}.{i}"),
            name => name.to_owned(),
        };
        parts.push(part(chain, &name, &mut policy, ignored).within(|| element(CHAINS, i, &chain.name))?);
    }
    if parts.is_empty() {
        return Ok(Listener::Ignored("has no filter chain".to_owned()));
    }
    let policy = Arc::new(policy.unwrap_or_else(|| open(&message.name)));
    Ok(Listener::Gateway(Arc::new(GatewayListener { port, parts, policy })))
}

/// Demands nothing: callers from outside have no identity of the mesh.
fn open(name: &str) -> Inbound {
    Inbound {
        name: name.into(),
        mtls: MtlsMode::Disable,
        alpn: Vec::new(),
        path: PathNormalization::NONE,
        ..Inbound::default()
    }
}

fn part(
    chain: &FilterChain,
    name: &str,
    policy: &mut Option<Inbound>,
    ignored: &mut Ignored,
) -> Result<GatewayPart, Wrong> {
    let matches = chain.filter_chain_match.clone().unwrap_or_default();
    let rest = FilterChainMatch { server_names: Vec::new(), ..matches.clone() };
    let narrow = narrowed(&rest)
        .or_else(|| (!matches.application_protocols.is_empty()).then_some("application_protocols"))
        .or_else(|| matches.destination_port.is_some().then_some("destination_port"));
    if let Some(field) = narrow {
        return Err(wrong(
            format!("filter_chain_match.{field}"),
            "is not supported, and ignoring it would take more in",
        ));
    }
    let server_names = matches.server_names.iter().map(|name| name.to_ascii_lowercase()).collect::<Vec<_>>();
    let socket = chain.transport_socket.as_ref();
    let tls = socket.map_or(Ok(None), |socket| tls::decode(socket, ignored)).under("transport_socket")?;
    let Some(manager) = http(chain, ignored)? else {
        let chain = GatewayChain { name: name.into(), server_names, tls, ..bytes(chain, ignored)? };
        return Ok(GatewayPart { chain: Arc::new(chain), http: None, plain: false });
    };
    let plain = tls.is_none() && server_names.is_empty() && matches.transport_protocol != "tls";
    let (guards, filters): (Vec<_>, Vec<_>) = manager.http_filters.iter().cloned().partition(is_guard);
    let guards = guards.into_iter().chain([router()]).collect::<Vec<_>>();
    let guards = filter::chain(&guards, Side::Inbound, FILTERS, ignored)?;
    let filters = filter::chain(&filters, Side::Outbound, FILTERS, ignored)?;
    let mut settings = settings(&manager, filters, ignored)?;
    settings.filters = own_filter::decode(&manager.http_filters)?;
    settings.telling = telling::decode(&manager, FILTERS, ignored)?;
    let limit = |limit: Option<prost_types::Duration>, field| {
        let limit = limit.map(|it| value::duration(it, field)).transpose();
        limit.map(|limit| limit.filter(|limit| *limit > Duration::ZERO))
    };
    let own = Inbound {
        guards: guards.guards,
        refused: guard(chain).or(guards.refused),
        path: guarded::path(&manager)?,
        trusted_hops: guarded::trust(&manager).0,
        // Who calls a gateway is of the world, whatever it shows.
        members_forward: false,
        request_headers_timeout: limit(manager.request_headers_timeout, "request_headers_timeout")?,
        request_timeout: limit(manager.request_timeout, "request_timeout")?,
        max_connections: connection_limit(chain, ignored)?,
        http: HttpLimits { max_body: guarded::max_body(&manager)?, ..HttpLimits::default() },
        ..open(name)
    };
    match policy {
        None => *policy = Some(own),
        Some(policy) => {
            if policy.guards != own.guards || policy.path != own.path || policy.trusted_hops != own.trusted_hops {
                let why = "the chains of this port guard it differently: all requests are refused";
                policy.refused.get_or_insert_with(|| why.to_owned());
            }
            policy.refused = policy.refused.take().or(own.refused);
        }
    }
    let source = routes(manager, Side::Outbound, ignored)?;
    let to = match &source {
        RouteSource::Rds(routes) => routes.clone(),
        RouteSource::Inline(table) if !table.name.is_empty() => table.name.clone(),
        RouteSource::Inline(_) => name.into(),
    };
    let to = GatewayTo::Http(to);
    let chain = GatewayChain { name: name.into(), server_names, tls, to, ..GatewayChain::default() };
    Ok(GatewayPart { chain: Arc::new(chain), http: Some((source, Arc::new(settings))), plain })
}

fn is_guard(filter: &HttpFilter) -> bool {
    let empty = Any::default();
    let any = match &filter.config_type {
        Some(http_filter::ConfigType::TypedConfig(any)) => any,
        None => &empty,
    };
    any.is::<Buffer>() || filter::guards(&filter.name, any)
}

fn router() -> HttpFilter {
    let config_type = Some(http_filter::ConfigType::TypedConfig(Any::pack(&Router {})));
    HttpFilter { name: ROUTER.to_owned(), config_type, ..HttpFilter::default() }
}

/// Where the bytes of a chain go, and what its connections must pass. A filter before that decides who may connect, and cannot be
/// kept, closes it.
fn bytes(chain: &FilterChain, ignored: &mut Ignored) -> Result<GatewayChain, Wrong> {
    let Some((last, before)) = chain.filters.split_last() else {
        return Err(wrong("filters", "are missing"));
    };
    let mut rules = Vec::new();
    for filter in before {
        let empty = Any::default();
        let any = match &filter.config_type {
            Some(ConfigType::TypedConfig(any)) => any,
            None => &empty,
        };
        let guards = any.is::<Rbac>() || filter::guards(&filter.name, any);
        let read = any.is::<Rbac>().then(|| rbac::decode_network(ignored.open(any, FILTERS)?, FILTERS, ignored));
        match read {
            Some(Ok(read)) => rules.push(Arc::new(read)),
            None if !guards => ignored.add(FILTERS, &filter.name),
            Some(Err(_)) | None => {
                let why = "which guards it and cannot be kept: it is closed";
                ignored.add(CHAINS, &format!("{} ({:?}, {why})", chain.name, filter.name));
                return Ok(GatewayChain::default());
            }
        }
    }
    let at = || element("filters", chain.filters.len() - 1, &last.name);
    let proxy: TcpProxy = match &last.config_type {
        Some(ConfigType::TypedConfig(any)) if any.is::<TcpProxy>() => ignored.open(any, FILTERS).within(at)?,
        _ => return Err(wrong("", "is neither HTTP nor TCP proxying")).within(at),
    };
    let idle_timeout = proxy.idle_timeout.map(|limit| value::duration(limit, "idle_timeout")).transpose().within(at)?;
    let weighted = |name: String, weight| match name.as_str() {
        "" => Err(wrong("cluster", "is missing")),
        name => Ok(WeightedCluster { cluster: name.into(), weight, ..WeightedCluster::default() }),
    };
    let clusters = match proxy.cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) => vec![weighted(name, 1).within(at)?],
        Some(ClusterSpecifier::WeightedClusters(all)) => {
            all.clusters.into_iter().map(|one| weighted(one.name, one.weight)).collect::<Result<_, _>>().within(at)?
        }
        None => return Err(wrong("cluster_specifier", "is missing")).within(at),
    };
    Ok(GatewayChain { to: GatewayTo::Bytes(clusters), rules, idle_timeout, ..GatewayChain::default() })
}

/// Adds the listeners, routes and secrets of a gateway.
pub(in crate::translate) fn encode(config: &Config, set: &mut ResourceSet) {
    let ports = config.outbound.keys().chain(config.gateways.keys());
    let ports: std::collections::BTreeSet<u16> = ports.copied().collect();
    for port in ports {
        let (name, none) = (format!("0.0.0.0_{port}"), HttpSettings::default());
        let default = open(&name);
        let policy = config.inbound.get(&port).map_or(&default, |policy| &**policy);
        let mut chains = Vec::new();
        let mut inspects = false;
        if let Some(table) = config.outbound.get(&port) {
            let routes = if table.name.is_empty() { format!("http.{port}") } else { table.name.to_string() };
            let settings = config.http.get(&port).map_or(&none, |settings| &**settings);
            let filters = encode_http(&name, &routes, settings, policy);
            chains.push(FilterChain { filters, ..FilterChain::default() });
            set.insert(TypeUrl::Route, routes.as_str(), route::encode(&routes, table).encode_to_vec());
        }
        if let Some(gateway) = config.gateways.get(&port) {
            inspects = gateway.inspects();
            for chain in &gateway.chains {
                let filters = match &chain.to {
                    GatewayTo::Bytes(clusters) => encode_bytes(chain, clusters, policy.refused.is_some()),
                    GatewayTo::Http(name) => {
                        let target = config.targets.get(name).cloned().unwrap_or_default();
                        let routes = route::encode(name, &target.routes).encode_to_vec();
                        set.insert(TypeUrl::Route, name.clone(), routes);
                        encode_http(&chain.name, name, &target.http, policy)
                    }
                };
                if let Some(tls) = &chain.tls {
                    tls::encode_secrets(tls, set);
                }
                let looked_into = chain.tls.is_some() || !chain.server_names.is_empty();
                let matches = looked_into.then(|| FilterChainMatch {
                    server_names: chain.server_names.clone(),
                    transport_protocol: "tls".to_owned(),
                    ..FilterChainMatch::default()
                });
                chains.push(FilterChain {
                    name: chain.name.to_string(),
                    filter_chain_match: matches,
                    filters,
                    transport_socket: chain.tls.as_deref().map(tls::encode),
                    ..FilterChain::default()
                });
            }
        }
        let inspector = inspects.then(|| ListenerFilter {
            name: TLS_INSPECTOR.to_owned(),
            config_type: Some(listener_filter::ConfigType::TypedConfig(Any::pack(&TlsInspector {}))),
        });
        let message = Message {
            address: Some(on_every_address(port)),
            filter_chains: chains,
            listener_filters: inspector.into_iter().collect(),
            traffic_direction: TrafficDirection::Outbound.into(),
            name: name.clone(),
            ..Message::default()
        };
        set.insert(TypeUrl::Listener, name, message.encode_to_vec());
    }
}

fn encode_http(name: &str, routes: &str, settings: &HttpSettings, policy: &Inbound) -> Vec<Filter> {
    let rds = Rds { config_source: Some(value::over_ads()), route_config_name: routes.to_owned() };
    let own = settings.filters.iter().map(own_filter::encode);
    let filters = filter::encode(
        Side::Outbound,
        policy.refused.is_some(),
        &policy.guards,
        settings.fault.as_ref(),
        settings.rate_limit.as_deref(),
        &settings.global_limits,
        settings.session.as_deref(),
    );
    let mut manager = HttpConnectionManager {
        stat_prefix: format!("outbound_{name}"),
        route_specifier: Some(RouteSpecifier::Rds(rds)),
        http_filters: guarded::with_body_limit(own.chain(filters).collect(), policy.http),
        use_remote_address: Some(true),
        // Of its callers the gateway is one that is trusted, too, in Envoy's way of counting.
        xff_num_trusted_hops: policy.trusted_hops.map_or(0, |hops| hops + 1),
        normalize_path: Some(policy.path.dot_segments),
        merge_slashes: policy.path.merge_slashes,
        path_with_escaped_slashes_action: guarded::encode_slashes(policy.path.escaped_slashes),
        request_headers_timeout: policy.request_headers_timeout.map(value::encode_duration),
        request_timeout: policy.request_timeout.map(value::encode_duration),
        stream_idle_timeout: Some(value::encode_duration(settings.idle_timeout.unwrap_or_default())),
        common_http_protocol_options: super::encode_limit(settings),
        ..HttpConnectionManager::default()
    };
    telling::encode(settings.telling.as_deref(), &mut manager);
    encode_chain_limit(policy).into_iter().chain([encode_manager(&manager)]).collect()
}

fn encode_bytes(chain: &GatewayChain, clusters: &[WeightedCluster], refused: bool) -> Vec<Filter> {
    let nobody = refused.then(filter::nobody);
    let rules = nobody.iter().chain(chain.rules.iter().map(|rules| &**rules));
    let rules = rules.map(|rules| Filter {
        name: rbac::NETWORK_RBAC.to_owned(),
        config_type: Some(ConfigType::TypedConfig(rbac::encode_network(rules))),
    });
    let to = match clusters {
        [one] => ClusterSpecifier::Cluster(one.cluster.to_string()),
        // A cluster that nobody has closes the connection.
        [] => ClusterSpecifier::Cluster("BlackHoleCluster".to_owned()),
        several => {
            let weight = |one: &WeightedCluster| ClusterWeight { name: one.cluster.to_string(), weight: one.weight };
            ClusterSpecifier::WeightedClusters(Weighted { clusters: several.iter().map(weight).collect() })
        }
    };
    let proxy = TcpProxy {
        stat_prefix: chain.name.to_string(),
        cluster_specifier: Some(to),
        idle_timeout: chain.idle_timeout.map(value::encode_duration),
    };
    let proxy = Filter { name: TCP_PROXY.to_owned(), config_type: Some(ConfigType::TypedConfig(Any::pack(&proxy))) };
    rules.chain([proxy]).collect()
}
