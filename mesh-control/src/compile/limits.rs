//! Rate limits that `EnvoyFilter`s put before gateways and workloads: which hold for whom, what requests are counted by, and whom to ask.
//!
//! Source: istiod `pilot/pkg/networking/core/envoyfilter`: those of the root namespace hold for the whole mesh, others for their own;
//! by priority, then by age.

use std::{collections::BTreeMap, sync::Arc};

use mesh_core::config::{
    Action, Cluster, Config, Discovery, GatewayTo, GlobalRateLimit, HttpSettings, Inbound, LocalRateLimit, Name,
    RateLimit, RouteTable,
};

use super::{NodeInfo, World, cluster::cluster_name, world::includes};
use crate::kinds::{EnvoyFilter, HttpLimit, Kind, Patched, RoutesPatch, Side, Spec};

/// What counts at a port.
#[derive(Default)]
struct Limits {
    local: Option<Arc<LocalRateLimit>>,
    global: Vec<Arc<GlobalRateLimit>>,
}

/// Puts what holds for a workload's own port into it.
pub(super) fn inbound(world: &World, node: &NodeInfo, port: u16, inbound: &mut Inbound) {
    let filters = filters(world, node);
    if filters.is_empty() {
        return;
    }
    let limits = limits(world, node, &filters, Side::Inbound, port);
    inbound.rate_limit = limits.local;
    inbound.global_limits = limits.global;
    let table = Arc::make_mut(&mut inbound.routes);
    let name = table.name.clone();
    for host in table.virtual_hosts.iter_mut().map(Arc::make_mut) {
        for patch in of_routes(&filters, Side::Inbound, port, &name, &host.name) {
            host.rate_limits.extend(patch.limits.iter().cloned());
            if let (Some(_), Some(own)) = (&inbound.rate_limit, &patch.local) {
                inbound.rate_limit = Some(own.clone());
            }
        }
    }
}

/// Puts what holds for a gateway's ports into its configuration.
pub(super) fn gateway(world: &World, node: &NodeInfo, config: &mut Config) {
    let filters = filters(world, node);
    if filters.is_empty() {
        return;
    }
    let ports: Vec<u16> = config.outbound.keys().copied().collect();
    for port in ports {
        let limits = limits(world, node, &filters, Side::Gateway, port);
        if let Some(table) = config.outbound.get_mut(&port) {
            routes(&filters, port, limits.local.is_some(), Arc::make_mut(table));
        }
        let settings = config.http.remove(&port).unwrap_or_default();
        config.http.insert(port, with(&settings, limits));
    }
    let chains = config.gateways.iter().flat_map(|(port, gateway)| gateway.chains.iter().map(|chain| (*port, chain)));
    let targets: BTreeMap<Name, u16> = chains
        .filter_map(|(port, chain)| match &chain.to {
            GatewayTo::Http(target) => Some((target.clone(), port)),
            GatewayTo::Bytes(_) => None,
        })
        .collect();
    for (name, port) in targets {
        let limits = limits(world, node, &filters, Side::Gateway, port);
        if let Some(target) = config.targets.get_mut(&name) {
            routes(&filters, port, limits.local.is_some(), Arc::make_mut(&mut target.routes));
            target.http = with(&target.http, limits);
        }
    }
}

/// The clusters that these objects add, for a caller.
pub(super) fn clusters(world: &World, node: &NodeInfo) -> Vec<Arc<Cluster>> {
    // Whom the labels of a workload keep from them does not ask them either.
    let all = objects(world, &node.namespace).into_iter().map(|(_, filter)| filter);
    let added = all.flat_map(|filter| &filter.patches).filter_map(|patch| match &patch.what {
        Patched::Cluster(cluster) if service_of(world, node, cluster).is_none() => Some(cluster.clone()),
        _ => None,
    });
    added.collect()
}

/// Those of a namespace and of the whole mesh, in order.
fn objects<'w>(world: &'w World, namespace: &str) -> Vec<(i32, &'w EnvoyFilter)> {
    if world.of_kind(Kind::EnvoyFilter).is_empty() {
        return Vec::new();
    }
    let root = &world.mesh.root_namespace;
    let mut found: Vec<_> = world
        .by_age
        .iter()
        .filter_map(|object| match &object.spec {
            Spec::EnvoyFilter(filter) if object.key.namespace == *root || object.key.namespace == namespace => {
                Some((filter.priority, filter))
            }
            _ => None,
        })
        .collect();
    found.sort_by_key(|(priority, _)| *priority);
    found
}

fn filters<'w>(world: &'w World, node: &NodeInfo) -> Vec<&'w EnvoyFilter> {
    let all = objects(world, &node.namespace).into_iter().map(|(_, filter)| filter);
    all.filter(|filter| includes(&node.labels, &filter.selector)).collect()
}

fn limits(world: &World, node: &NodeInfo, filters: &[&EnvoyFilter], side: Side, port: u16) -> Limits {
    let mut limits = Limits::default();
    for patch in filters.iter().flat_map(|filter| &filter.patches).filter(|patch| patch.side == Some(side)) {
        match &patch.what {
            Patched::Filter { port: only, .. } if only.is_some_and(|only| only != port) => {}
            Patched::Filter { limit: HttpLimit::Local(limit), .. } => limits.local = Some(limit.clone()),
            Patched::Filter { limit: HttpLimit::Global(limit), .. } => {
                limits.global.push(named(world, node, filters, limit))
            }
            Patched::Routes(_) | Patched::Cluster(_) => {}
        }
    }
    limits
}

/// The limit, with a cluster that stands for a service of the mesh replaced by that service's own.
fn named(
    world: &World,
    node: &NodeInfo,
    filters: &[&EnvoyFilter],
    limit: &Arc<GlobalRateLimit>,
) -> Arc<GlobalRateLimit> {
    let added = filters.iter().flat_map(|filter| &filter.patches).find_map(|patch| match &patch.what {
        Patched::Cluster(cluster) if cluster.name == limit.cluster => Some(cluster),
        _ => None,
    });
    let mut limit = limit.clone();
    if let Some(cluster) = added.and_then(|cluster| service_of(world, node, cluster)) {
        let own = Arc::make_mut(&mut limit);
        let name = std::mem::replace(&mut own.cluster, cluster);
        if own.authority.is_empty() {
            own.authority = name.to_string();
        }
    }
    // The name of a service's cluster is none that a request could be sent to.
    if limit.authority.is_empty()
        && let Some((_, host)) = limit.cluster.rsplit_once('|')
    {
        let host = host.to_owned();
        Arc::make_mut(&mut limit).authority = host;
    }
    limit
}

/// The service that a cluster names by its host and port: it is called as all services are, with what the mesh knows of it.
fn service_of(world: &World, node: &NodeInfo, cluster: &Cluster) -> Option<Name> {
    let names = match &cluster.discovery {
        Discovery::StrictDns(names) => names.as_slice(),
        Discovery::LogicalDns(name) => std::slice::from_ref(name),
        _ => return None,
    };
    let [(host, number)] = names else { return None };
    let services = world.services_for(&node.namespace);
    let service = services.iter().find(|service| *service.host == **host)?;
    let port = service.ports.iter().find(|port| port.number == *number)?;
    Some(cluster_name(&service.host, port.number, ""))
}

fn with(settings: &HttpSettings, limits: Limits) -> Arc<HttpSettings> {
    Arc::new(HttpSettings { rate_limit: limits.local, global_limits: limits.global, ..settings.clone() })
}

fn of_routes<'f>(
    filters: &'f [&EnvoyFilter],
    side: Side,
    port: u16,
    table: &'f str,
    host: &'f str,
) -> impl Iterator<Item = &'f RoutesPatch> {
    let patches = filters.iter().flat_map(|filter| &filter.patches).filter(move |patch| patch.side == Some(side));
    let patches = patches.filter_map(|patch| match &patch.what {
        Patched::Routes(patch) => Some(&**patch),
        _ => None,
    });
    patches.filter(move |patch| {
        patch.port.is_none_or(|only| only == port)
            && patch.table.as_ref().is_none_or(|only| only == table)
            && patch.host.as_ref().is_none_or(|only| only == host)
    })
}

/// What the requests of a gateway's routes are counted by: a route's own word, else its host's.
fn routes(filters: &[&EnvoyFilter], port: u16, has_local: bool, table: &mut RouteTable) {
    let name = table.name.clone();
    for host in &mut table.virtual_hosts {
        let own = host.name.clone();
        let patches: Vec<&RoutesPatch> = of_routes(filters, Side::Gateway, port, &name, &own).collect();
        if patches.is_empty() {
            continue;
        }
        for route in &mut Arc::make_mut(host).routes {
            let Action::Forward(forward) = &mut route.action else { continue };
            let is_meant = |patch: &&&RoutesPatch| patch.route.as_ref().is_none_or(|only| **only == *route.name);
            let meant: Vec<&RoutesPatch> = patches.iter().filter(is_meant).copied().collect();
            let (of_route, of_host): (Vec<_>, Vec<_>) = meant.into_iter().partition(|patch| patch.is_route);
            let counted = |of: &[&RoutesPatch]| -> Vec<RateLimit> {
                of.iter().flat_map(|patch| patch.limits.iter().cloned()).collect()
            };
            let limits = counted(&of_route);
            forward.rate_limits.extend(if limits.is_empty() { counted(&of_host) } else { limits });
            if has_local {
                let local = of_route.iter().rev().chain(of_host.iter().rev()).find_map(|patch| patch.local.clone());
                forward.rate_limit = local.or_else(|| forward.rate_limit.take());
            }
        }
    }
}
