//! What a gateway takes in: for each port that its `Gateway` objects name a table of routes, or chains by the name asked for over
//! TLS, with the virtual services bound to them and the certificates they name.
//!
//! A server over TLS has a table of its own, so that by a name that anybody may call nobody gets at what another server demands a
//! certificate for. Source: istiod `pilot/pkg/networking/core/gateway.go`.

use std::{collections::BTreeMap, sync::Arc};

use mesh_core::config::{
    Action, Config, Gateway, GatewayCertificate, GatewayChain, GatewayRoots, GatewayTls, GatewayTo, KeyPair, Name,
    Redirect, RootCertificates, Route, RouteMatch, RouteTable, Target, VirtualHost, WeightedCluster,
};

use super::{
    NodeInfo, World, accounts, authz,
    cluster::cluster_name,
    inbound,
    route::{Asking, is_gateway, routes as routes_of, target, weighted},
    specificity, virtual_services,
    world::{Service, includes},
};
use crate::kinds::{
    ByteMatch, ByteRoute, Key, Kind, Object, Secret, Server, ServerTls, Spec, TlsServer, VirtualService, certificates,
    lists,
};

/// A server and the object it stands in.
type Placed<'w> = (&'w Arc<Object>, &'w Server);

/// What a gateway workload takes in; a port without virtual services answers 404.
pub(super) fn routes(world: &World, node: &NodeInfo, services: &[&Service]) -> Config {
    let mut servers: BTreeMap<u16, Vec<Placed<'_>>> = BTreeMap::new();
    for object in &world.by_age {
        let Spec::Gateway(gateway) = &object.spec else { continue };
        let near = !gateway.own_namespace || object.key.namespace == node.namespace;
        if near && includes(&node.labels, &gateway.selector) {
            for server in &gateway.servers {
                servers.entry(server.port).or_default().push((object, server));
            }
        }
    }
    let rules = virtual_services(world, &node.namespace);
    let mut config = Config::default();
    for (port, mut servers) in servers {
        let asking = Asking { world, node, services, gateway: "", port };
        // Of servers that cannot share a port the oldest counts.
        let first = servers.first().map(|(_, server)| server.protocol.is_http());
        servers.retain(|(_, server)| Some(server.protocol.is_http()) == first);
        if first == Some(true) {
            config.outbound.insert(port, Arc::new(table(asking, &format!("http.{port}"), &servers, &rules)));
            continue;
        }
        let mut chains = Vec::new();
        for placed in servers {
            chains_of(asking, placed, &rules, &mut chains, &mut config);
        }
        config.gateways.insert(port, Arc::new(Gateway { chains }));
    }
    let ports: Vec<u16> = config.outbound.keys().chain(config.gateways.keys()).copied().collect();
    let rules = authz::bytes::rules(world, node);
    for chain in config.gateways.values_mut().flat_map(|gateway| &mut Arc::make_mut(gateway).chains) {
        if matches!(chain.to, GatewayTo::Bytes(_)) {
            Arc::make_mut(chain).rules.clone_from(&rules);
        }
    }
    config.inbound = inbound::at_gateway(world, node, ports.into_iter()).into_iter().collect();
    config
}

fn table(asking: Asking<'_>, name: &str, servers: &[Placed<'_>], rules: &[&Arc<Object>]) -> RouteTable {
    let port = asking.port;
    let mut hosts: BTreeMap<String, Vec<Route>> = BTreeMap::new();
    for (gateway, server) in servers {
        let name = named(gateway);
        let asking = Asking { gateway: &name, ..asking };
        if server.https_redirect && server.tls.is_none() {
            for host in &server.hosts {
                hosts.entry(host_of(host)).or_default().push(to_https());
            }
            continue;
        }
        for (object, spec) in bound(rules, gateway) {
            if spec.http.is_empty() {
                continue;
            }
            for host in &spec.hosts {
                let host = asking.world.resolve(host, &object.key.namespace);
                for served in server.hosts.iter().filter_map(|served| meet(served, gateway, object, &host)) {
                    hosts.entry(served).or_default().extend(routes_of(asking, object, spec));
                }
            }
        }
    }
    let mut virtual_hosts: Vec<Arc<VirtualHost>> = Vec::new();
    for (host, mut routes) in hosts {
        // Of several virtual services for a host, those rules that take every request come last.
        routes.sort_by_key(|route| route.matches == RouteMatch::default());
        let name = format!("{host}:{port}").into();
        virtual_hosts.push(Arc::new(VirtualHost { name, domains: vec![host], routes, ..VirtualHost::default() }));
    }
    if virtual_hosts.is_empty() {
        let name = format!("blackhole:{port}").into();
        virtual_hosts.push(Arc::new(VirtualHost { name, domains: vec!["*".to_owned()], ..VirtualHost::default() }));
    }
    RouteTable { name: name.into(), virtual_hosts, ignore_port: true, ..RouteTable::default() }
}

/// The chains of a server that takes TLS, or bytes of any kind.
fn chains_of(
    asking: Asking<'_>,
    (gateway, server): Placed<'_>,
    rules: &[&Arc<Object>],
    chains: &mut Vec<Arc<GatewayChain>>,
    config: &mut Config,
) {
    let (own, port) = (named(gateway), asking.port);
    let asking = Asking { gateway: &own, ..asking };
    let Key { namespace, name: gateway_name, .. } = &gateway.key;
    let name: Name = format!("https.{port}.{}.{gateway_name}.{namespace}", server.name).into();
    let server_names = || match server.hosts.iter().any(|host| host_of(host) == "*") {
        true => Vec::new(),
        false => server.hosts.iter().map(|host| host_of(host)).collect(),
    };
    match &server.tls {
        None => {
            let destinations = bytes(asking, gateway, rules);
            let to = GatewayTo::Bytes(destinations);
            let name = format!("tcp.{port}.{}.{gateway_name}.{namespace}", server.name).into();
            chains.push(Arc::new(GatewayChain { name, to, ..GatewayChain::default() }));
        }
        Some(ServerTls::Passthrough) => passed_on(asking, (gateway, server), rules, chains),
        Some(ServerTls::Mesh(tls) | ServerTls::Own(tls)) => {
            let mesh = matches!(server.tls, Some(ServerTls::Mesh(_)));
            let mut tls = if mesh { of_mesh(tls) } else { of_server(asking, gateway, tls) };
            let to = if server.raw {
                let destinations = bytes(asking, gateway, rules);
                GatewayTo::Bytes(destinations)
            } else {
                tls.alpn = vec!["h2".to_owned(), "http/1.1".to_owned()];
                let routes = Arc::new(table(asking, &name, &[(gateway, server)], rules));
                config.targets.insert(name.clone(), Target { routes, ..Target::default() });
                GatewayTo::Http(name.clone())
            };
            let server_names = server_names();
            chains.push(Arc::new(GatewayChain {
                name,
                server_names,
                tls: Some(Arc::new(tls)),
                to,
                ..GatewayChain::default()
            }));
        }
    }
}

/// The chains of a server that hands TLS on as it comes: one for each condition of the rules bound to it.
fn passed_on(
    asking: Asking<'_>,
    (gateway, server): Placed<'_>,
    rules: &[&Arc<Object>],
    chains: &mut Vec<Arc<GatewayChain>>,
) {
    for (object, spec) in bound(rules, gateway) {
        for (at, rule) in spec.tls.iter().enumerate() {
            for (n, condition) in rule.matches.iter().enumerate().filter(|(_, it)| applies(asking, it)) {
                let mut server_names = Vec::new();
                for host in &condition.sni_hosts {
                    let host = host.to_ascii_lowercase();
                    server_names.extend(server.hosts.iter().filter_map(|it| meet(it, gateway, object, &host)));
                }
                server_names.dedup();
                // By no name is not by every name.
                if server_names.is_empty() {
                    continue;
                }
                server_names.retain(|name| name != "*");
                let Key { namespace, name, .. } = &object.key;
                let name = format!("tls.{}.{}.{name}.{namespace}.{at}.{n}", asking.port, server.name).into();
                let to = GatewayTo::Bytes(destinations(asking, object, rule));
                chains.push(Arc::new(GatewayChain { name, server_names, tls: None, to, ..GatewayChain::default() }));
            }
        }
    }
}

/// Where the connections of a server go: by the first rule of those bound to it.
fn bytes(asking: Asking<'_>, gateway: &Object, rules: &[&Arc<Object>]) -> Vec<WeightedCluster> {
    for (object, spec) in bound(rules, gateway) {
        for rule in &spec.tcp {
            if rule.matches.is_empty() || rule.matches.iter().any(|it| applies(asking, it)) {
                return destinations(asking, object, rule);
            }
        }
    }
    Vec::new()
}

fn applies(asking: Asking<'_>, condition: &ByteMatch) -> bool {
    let gateways = condition.gateways.as_ref();
    condition.port.is_none_or(|port| port == asking.port)
        && gateways.is_none_or(|gateways| gateways.iter().any(|gateway| is_gateway(asking, gateway)))
}

fn destinations(asking: Asking<'_>, object: &Object, rule: &ByteRoute) -> Vec<WeightedCluster> {
    let several = rule.destinations.len() > 1;
    let meant = rule.destinations.iter().filter(|it| !several || it.weight > 0);
    let weighted = meant.map(|destination| {
        let (host, port) = target(asking, object, destination);
        let subset = destination.subset.as_ref().map_or("", |subset| subset.as_str());
        weighted(cluster_name(&host, port, subset), if several { destination.weight } else { 1 })
    });
    weighted.collect()
}

/// The mesh's own mutual TLS, for callers of the mesh.
fn of_mesh(tls: &TlsServer) -> GatewayTls {
    GatewayTls {
        certificates: vec![GatewayCertificate::Own],
        callers: tls.callers,
        roots: Some(GatewayRoots::Mesh),
        subject_alt_names: tls.subject_alt_names.clone(),
        versions: tls.versions,
        ..GatewayTls::default()
    }
}

fn of_server(asking: Asking<'_>, gateway: &Object, tls: &TlsServer) -> GatewayTls {
    // To anybody else it is as if they had not come.
    let holds_keys = accounts::holds_keys(asking.world, asking.node, gateway);
    let files = tls.files.iter().cloned().map(GatewayCertificate::Files);
    let given = tls.credentials.iter().map(|name| {
        let pair = secret(asking, name).filter(|_| holds_keys).and_then(|secret| secret.pair.as_ref());
        let pair = pair.map(|(chain, key)| Arc::new(KeyPair { chain: chain.clone(), key: key.clone() }));
        GatewayCertificate::Named(format!("kubernetes://{}", name.value).into(), pair)
    });
    let roots = match (&tls.root_file, tls.root_credential.as_ref(), tls.credentials.first()) {
        _ if tls.callers == Default::default() => None,
        (Some(file), ..) => Some(GatewayRoots::File(file.clone())),
        (None, Some(name), _) => Some(named_roots(asking, name)),
        (None, None, Some(name)) => Some(named_roots(asking, name)),
        (None, None, None) => None,
    };
    GatewayTls {
        certificates: files.chain(given).collect(),
        callers: tls.callers,
        roots,
        subject_alt_names: tls.subject_alt_names.clone(),
        versions: tls.versions,
        ciphers: tls.ciphers.clone(),
        ..GatewayTls::default()
    }
}

/// The roots beside a certificate: in its own Secret, or in that of its name with `-cacert`; with the lists of revoked certificates
/// of both. What cannot be read in full is as if it had not come: nobody is judged by half of it.
fn named_roots(asking: Asking<'_>, name: &str) -> GatewayRoots {
    let own = secret(asking, name);
    let beside = secret(asking, &format!("{name}-cacert")).filter(|secret| secret.roots.is_some());
    let found = beside.or(own).and_then(|holder| {
        let roots = certificates(holder.roots.as_ref()?)?.iter().map(|der| der.as_ref().into()).collect();
        let mut crls = Vec::new();
        for text in [beside, own].into_iter().flatten().filter_map(|secret| secret.crl.as_ref()) {
            crls.extend(lists(text)?.iter().map(|der| der.as_ref().into()));
        }
        Some(Arc::new(RootCertificates { roots, crls }))
    });
    GatewayRoots::Named(format!("kubernetes://{name}-cacert").into(), found)
}

/// A Secret of the gateway's own namespace; `namespace/name` was granted to it where it was read.
fn secret<'a>(asking: Asking<'a>, name: &str) -> Option<&'a Secret> {
    let (namespace, name) = name.split_once('/').unwrap_or((asking.node.namespace.as_str(), name));
    asking.world.objects.iter().find_map(|object| match &object.spec {
        Spec::Secret(secret)
            if object.key.kind == Kind::Secret && object.key.name == name && object.key.namespace == namespace =>
        {
            Some(secret)
        }
        _ => None,
    })
}

fn named(gateway: &Object) -> String {
    format!("{}/{}", gateway.key.namespace, gateway.key.name)
}

/// A server's host without its namespace.
fn host_of(host: &str) -> String {
    host.rsplit('/').next().unwrap_or_default().to_ascii_lowercase()
}

/// The virtual services that name the gateway, as `name` in its own namespace or as `namespace/name`.
fn bound<'w>(
    rules: &[&'w Arc<Object>],
    gateway: &Object,
) -> impl Iterator<Item = (&'w Arc<Object>, &'w VirtualService)> {
    rules.iter().filter_map(|object| match &object.spec {
        Spec::VirtualService(spec) if is_bound(object, spec, gateway) => Some((*object, spec)),
        _ => None,
    })
}

fn is_bound(object: &Object, spec: &VirtualService, gateway: &Object) -> bool {
    spec.gateways.iter().any(|named| match named.split_once('/') {
        Some((namespace, name)) => namespace == gateway.key.namespace && name == gateway.key.name,
        None => *named.value == gateway.key.name && object.key.namespace == gateway.key.namespace,
    })
}

/// The narrower of a server's host and a virtual service's, if they meet at all.
fn meet(served: &str, gateway: &Object, object: &Object, host: &str) -> Option<String> {
    let served = match served.split_once('/') {
        Some(("*", served)) => served,
        Some((".", served)) => (object.key.namespace == gateway.key.namespace).then_some(served)?,
        Some((namespace, served)) => (object.key.namespace == namespace).then_some(served)?,
        None => served,
    };
    let served = served.to_ascii_lowercase();
    if specificity(&served, host).is_some() {
        Some(host.to_owned())
    } else {
        specificity(host, &served).map(|_| served)
    }
}

fn to_https() -> Route {
    Route {
        name: "https-redirect".into(),
        origin: None,
        matches: RouteMatch::default(),
        action: Action::Redirect(Redirect { status: 301, scheme: Some("https".to_owned()), ..Redirect::default() }),
        fault: None,
        headers: Default::default(),
        operation: None,
    }
}
