//! Routes of the mesh: a table for each port, a virtual host for each service, rules of the virtual service that counts.
//!
//! Source: istiod `pilot/pkg/networking/core/httproute.go` and `route/route.go`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh_core::config::{
    Action, DirectResponse, Forward, HostRewrite, Mirror, Name, PathRewrite, Redirect, Route, RouteMatch, RouteTable,
    VirtualHost, WeightedCluster,
};

use super::{
    NodeInfo, World,
    cluster::{PASSTHROUGH, cluster_name},
    scope::Scope,
    specificity,
    world::{Service, includes, is_http},
};
use crate::kinds::{
    Destination, HttpAction, HttpMatch, HttpRoute, Key, Kind, MirrorTo, Object, RedirectTo, Spec, VirtualService,
    default_retries,
};

/// On this port a virtual service counts even where no service has its host.
const ANY_HOST_PORT: u16 = 80;

/// Who asks, and where: what decides which rules apply.
#[derive(Clone, Copy)]
pub(super) struct Asking<'a> {
    pub(super) world: &'a World,
    pub(super) node: &'a NodeInfo,
    /// Services the node sees.
    pub(super) services: &'a [&'a Service],
    /// `mesh`, or the gateway as `namespace/name`.
    pub(super) gateway: &'a str,
    /// The port requests come for.
    pub(super) port: u16,
}

/// The tables of a workload in the mesh, of what it sees.
pub(super) fn tables(world: &World, node: &NodeInfo, scope: &Scope<'_>) -> BTreeMap<u16, Arc<RouteTable>> {
    let mut ports: BTreeSet<u16> = BTreeSet::new();
    for part in &scope.parts {
        let of = part.services.iter().flat_map(|it| &it.ports).filter(|port| is_http(port)).map(|port| port.number);
        ports.extend(part.port.is_none().then_some(ANY_HOST_PORT));
        ports.extend(of.filter(|port| part.port.is_none_or(|only| only == *port)));
    }
    let table = |port| {
        let part = scope.part(port)?;
        let asking = Asking { world, node, services: &part.services, gateway: "mesh", port };
        Some((port, Arc::new(table(asking, &part.rules, scope.allow_any))))
    };
    ports.into_iter().filter_map(table).collect()
}

pub(super) fn is_for_mesh(spec: &VirtualService) -> bool {
    // A match may be for the mesh only where the object is.
    spec.gateways.is_empty() || spec.gateways.iter().any(|gateway| gateway.value == "mesh")
}

fn table(asking: Asking<'_>, rules: &[&Arc<Object>], allow_any: bool) -> RouteTable {
    let Asking { world, node, services, port, .. } = asking;
    let mut hosts: Vec<Arc<VirtualHost>> = Vec::new();
    let mut taken: BTreeSet<String> = BTreeSet::new();
    let mut add = |name: String, domains: Vec<String>, routes: Vec<Route>| {
        let domains: Vec<String> = domains.into_iter().filter(|domain| taken.insert(domain.clone())).collect();
        if !domains.is_empty() {
            hosts.push(Arc::new(VirtualHost { name: name.into(), domains, routes, ..VirtualHost::default() }));
        }
    };
    for service in services {
        if !service.ports.iter().any(|it| it.number == port && is_http(it)) {
            continue;
        }
        let routes = match rule_for(world, rules, &service.host) {
            Some((object, spec)) => routes(asking, object, spec),
            None => vec![plain_route(service, port)],
        };
        add(format!("{}:{port}", service.host), domains(node, service), routes);
    }
    if port == ANY_HOST_PORT {
        for object in rules {
            let Spec::VirtualService(spec) = &object.spec else { continue };
            for host in &spec.hosts {
                let host = world.resolve(host, &object.key.namespace);
                // A virtual service of a service's host counts there, on the service's ports; here are the others.
                if !services.iter().any(|service| *service.host == *host) {
                    add(format!("{host}:{port}"), vec![host], routes(asking, object, spec));
                }
            }
        }
    }
    hosts.sort_by(|a, b| a.name.cmp(&b.name));
    hosts.push(Arc::new(catch_all(allow_any)));
    RouteTable { name: port.to_string().into(), virtual_hosts: hosts, ignore_port: true, ..RouteTable::default() }
}

/// The virtual service that counts for a host: the most specific, of these the first.
fn rule_for<'w>(world: &World, rules: &[&'w Arc<Object>], host: &str) -> Option<(&'w Arc<Object>, &'w VirtualService)> {
    let mut best: Option<(usize, &Arc<Object>, &VirtualService)> = None;
    for object in rules {
        let Spec::VirtualService(spec) = &object.spec else { continue };
        let closest =
            spec.hosts.iter().filter_map(|own| specificity(&world.resolve(own, &object.key.namespace), host)).max();
        let Some(closest) = closest else { continue };
        if best.is_none_or(|(most, ..)| closest > most) {
            best = Some((closest, *object, spec));
        }
    }
    best.map(|(_, object, spec)| (object, spec))
}

/// The names a service goes by in a namespace: without it among its own, with it everywhere.
fn domains(node: &NodeInfo, service: &Service) -> Vec<String> {
    let mut out = vec![service.host.to_string()];
    if service.short_names {
        let (name, namespace) = (&service.name, &service.namespace);
        if *node.namespace == **namespace {
            out.push(name.to_string());
        }
        out.push(format!("{name}.{namespace}"));
        out.push(format!("{name}.{namespace}.svc"));
    }
    // Bracketed as in a URL, should it be IPv6.
    out.extend(service.addresses.iter().map(|ip| if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() }));
    out
}

fn plain_route(service: &Service, port: u16) -> Route {
    let forward = Forward {
        clusters: vec![weighted(cluster_name(&service.host, port, ""), 1)],
        retry: Some(default_retries()),
        ..Forward::default()
    };
    route("default".into(), RouteMatch::default(), Action::Forward(forward), operation(&service.host, port))
}

fn catch_all(allow_any: bool) -> VirtualHost {
    let (name, action) = if allow_any {
        let clusters = vec![weighted(PASSTHROUGH.into(), 1)];
        ("allow_any", Action::Forward(Forward { clusters, ..Forward::default() }))
    } else {
        ("block_all", Action::DirectResponse(DirectResponse { status: 502, body: String::new() }))
    };
    let mut route = route(name.into(), RouteMatch::default(), action, name.into());
    route.operation = None;
    VirtualHost { name: name.into(), domains: vec!["*".to_owned()], routes: vec![route], ..VirtualHost::default() }
}

/// The routes of a virtual service for who asks, up to the first that takes every request.
pub(super) fn routes(asking: Asking<'_>, object: &Object, spec: &VirtualService) -> Vec<Route> {
    let mut out = Vec::new();
    for rule in &spec.http {
        if rule.matches.is_empty() {
            out.push(rule_route(asking, object, rule, None));
            return out;
        }
        for condition in &rule.matches {
            if !applies(asking, condition) {
                continue;
            }
            let all = condition.is_catch_all();
            out.push(rule_route(asking, object, rule, Some(condition)));
            if all {
                return out;
            }
        }
    }
    out
}

/// What of a condition is settled before any request. Source: istiod `sourceMatchHTTP`, `portLevel`.
fn applies(asking: Asking<'_>, condition: &HttpMatch) -> bool {
    let node = asking.node;
    if condition.port.is_some_and(|port| port != asking.port) {
        return false;
    }
    match &condition.gateways {
        // As Istio has it: with gateways of its own, the source's labels and namespace are not looked at.
        Some(gateways) => gateways.iter().any(|gateway| is_gateway(asking, gateway)),
        None => {
            includes(&node.labels, &condition.source_labels)
                && (condition.source_namespace.is_empty() || condition.source_namespace == node.namespace)
        }
    }
}

pub(super) fn is_gateway(asking: Asking<'_>, named: &str) -> bool {
    named == asking.gateway || asking.gateway.split_once('/').is_some_and(|(_, name)| name == named)
}

fn rule_route(asking: Asking<'_>, object: &Object, rule: &HttpRoute, condition: Option<&HttpMatch>) -> Route {
    let name = match condition.map(|condition| condition.name.as_str()).unwrap_or_default() {
        "" => rule.name.clone(),
        name => format!("{}.{name}", rule.name),
    };
    let matches = condition.map(|condition| condition.request.clone()).unwrap_or_default();
    let mut operation_of = None;
    let mut headers = rule.headers.clone();
    let action = match &rule.action {
        HttpAction::Redirect(to) => Action::Redirect(redirect(asking, to)),
        HttpAction::DirectResponse(answer) => Action::DirectResponse(answer.clone()),
        // What it would have become was put in its place before; this one leads nowhere.
        HttpAction::Delegate(_) => Action::DirectResponse(DirectResponse { status: 404, body: String::new() }),
        HttpAction::Route(destinations) => {
            let mut host_rewrite = rule.host_rewrite.clone();
            let mut clusters = Vec::new();
            let several = destinations.len() > 1;
            for destination in destinations.iter().filter(|it| !several || it.weight > 0) {
                let (host, port) = target(asking, object, destination);
                let subset = destination.subset.as_ref().map_or("", |subset| subset.as_str());
                // The weight of a single destination is without meaning.
                let mut cluster =
                    weighted(cluster_name(&host, port, subset), if several { destination.weight } else { 1 });
                if several {
                    cluster.headers = destination.headers.clone();
                } else {
                    headers.request.extend(destination.headers.request.iter().cloned());
                    headers.response.extend(destination.headers.response.iter().cloned());
                    host_rewrite = host_rewrite.or_else(|| destination.host_rewrite.clone());
                }
                operation_of.get_or_insert_with(|| operation(&host, port));
                clusters.push(cluster);
            }
            Action::Forward(Forward {
                clusters,
                no_cluster_status: rule.no_cluster_status,
                timeout: rule.timeout,
                retry: rule.retry.clone(),
                host_rewrite: host_rewrite.map(HostRewrite::Literal),
                path_rewrite: rule.path_rewrite.clone(),
                mirrors: rule.mirrors.iter().map(|mirror| copy(asking, object, mirror)).collect(),
                ..Forward::default()
            })
        }
    };
    Route {
        name: name.into(),
        origin: Some(rule.origin.clone().unwrap_or_else(|| origin(&object.key))),
        matches,
        action,
        fault: rule.fault.clone(),
        headers,
        operation: operation_of,
    }
}

/// Copies are not traced, as Istio has it: a request would be seen twice.
fn copy(asking: Asking<'_>, object: &Object, mirror: &MirrorTo) -> Mirror {
    let (host, port) = target(asking, object, &mirror.destination);
    let subset = mirror.destination.subset.as_ref().map_or("", |subset| subset.as_str());
    Mirror {
        cluster: cluster_name(&host, port, subset),
        fraction: mirror.fraction,
        trace_sampled: Some(false),
        ..Mirror::default()
    }
}

/// Host and port of a destination. A host or subset nobody defined stays: its requests answer 503 and say which.
pub(super) fn target(asking: Asking<'_>, object: &Object, destination: &Destination) -> (String, u16) {
    let host = host_of(asking.world, object, destination);
    let port = destination.port.unwrap_or_else(|| {
        match asking.services.iter().find(|service| *service.host == *host).map(|service| service.ports.as_slice()) {
            Some([only]) => only.number,
            _ => asking.port,
        }
    });
    (host, port)
}

/// The host of a destination, in full.
pub(super) fn host_of(world: &World, object: &Object, destination: &Destination) -> String {
    let namespace = destination.namespace.as_deref().unwrap_or(&object.key.namespace);
    world.resolve(&destination.host, namespace)
}

fn redirect(asking: Asking<'_>, to: &RedirectTo) -> Redirect {
    let scheme = to.scheme.clone();
    // As Envoy writes it: the port of the scheme is left out.
    let own_port = match scheme.as_deref() {
        Some("https") => 443,
        _ => 80,
    };
    let asked_for = (to.request_port && asking.port != own_port).then_some(asking.port);
    Redirect {
        status: to.status,
        scheme,
        host: to.authority.clone(),
        port: to.port.or(asked_for),
        path: match (&to.uri, &to.prefix_rewrite) {
            (Some(uri), _) => Some(PathRewrite::Full(uri.clone())),
            (None, Some(prefix)) => Some(PathRewrite::Prefix(prefix.clone())),
            (None, None) => None,
        },
        strip_query: false,
    }
}

/// `virtual-service/default/reviews`, as Istio writes where a route comes from.
pub(super) fn origin(key: &Key) -> Name {
    let kind = match key.kind {
        Kind::HttpRoute => "http-route",
        Kind::GrpcRoute => "grpc-route",
        _ => "virtual-service",
    };
    format!("{kind}/{}/{}", key.namespace, key.name).into()
}

fn operation(host: &str, port: u16) -> Name {
    format!("{host}:{port}/*").into()
}

pub(super) fn weighted(cluster: Name, weight: u32) -> WeightedCluster {
    WeightedCluster { cluster, weight, ..WeightedCluster::default() }
}

fn route(name: Name, matches: RouteMatch, action: Action, operation: Name) -> Route {
    Route { name, origin: None, matches, action, fault: None, headers: Default::default(), operation: Some(operation) }
}
