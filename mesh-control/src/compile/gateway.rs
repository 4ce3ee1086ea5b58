//! Routes of a gateway: a table for each port its `Gateway` objects name, with the virtual services bound to them.
//!
//! Source: istiod `pilot/pkg/networking/core/gateway.go`.

use std::{collections::BTreeMap, sync::Arc};

use mesh_core::config::{Action, Redirect, Route, RouteMatch, RouteTable, VirtualHost};

use super::{
    NodeInfo, World,
    route::{Asking, routes},
    specificity, virtual_services,
    world::{Service, includes},
};
use crate::kinds::{Object, Server, Spec, VirtualService};

/// The tables of a gateway workload; a port without virtual services answers 404.
pub(super) fn tables(world: &World, node: &NodeInfo, services: &[&Service]) -> BTreeMap<u16, Arc<RouteTable>> {
    let mut servers: BTreeMap<u16, Vec<(&Arc<Object>, &Server)>> = BTreeMap::new();
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
    let table = |(port, servers): (u16, Vec<_>)| {
        let table = table(world, node, services, port, &servers, &rules);
        (port, Arc::new(table))
    };
    servers.into_iter().map(table).collect()
}

fn table(
    world: &World,
    node: &NodeInfo,
    services: &[&Service],
    port: u16,
    servers: &[(&Arc<Object>, &Server)],
    rules: &[&Arc<Object>],
) -> RouteTable {
    let mut hosts: BTreeMap<String, Vec<Route>> = BTreeMap::new();
    for (gateway, server) in servers {
        let name = format!("{}/{}", gateway.key.namespace, gateway.key.name);
        let asking = Asking { world, node, services, gateway: &name, port };
        if server.https_redirect {
            for host in &server.hosts {
                let host = host.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
                hosts.entry(host).or_default().push(to_https());
            }
            continue;
        }
        for object in rules {
            let Spec::VirtualService(spec) = &object.spec else { continue };
            if !is_bound(object, spec, gateway) {
                continue;
            }
            for host in &spec.hosts {
                let host = world.resolve(host, &object.key.namespace);
                for served in server.hosts.iter().filter_map(|served| meet(served, gateway, object, &host)) {
                    hosts.entry(served).or_default().extend(routes(asking, object, spec));
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
    RouteTable { name: format!("http.{port}").into(), virtual_hosts, ignore_port: true, ..RouteTable::default() }
}

/// Does a virtual service name the gateway, as `name` in its own namespace or as `namespace/name`?
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
