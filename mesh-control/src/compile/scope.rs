//! What a workload sees of the mesh: everything that is exported to its namespace, unless a `Sidecar` says less.
//!
//! Source: istiod `pilot/pkg/model/sidecar.go`.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    NodeInfo, World, route,
    route::is_for_mesh,
    specificity, virtual_services,
    world::{Service, includes},
};
use crate::kinds::{Egress, HttpAction, Object, Sidecar, Spec};

/// What a workload sees.
#[derive(Debug)]
pub(super) struct Scope<'w> {
    /// By port; the one without a port is for all others.
    pub(super) parts: Vec<Part<'w>>,
    /// Are hosts nobody defines passed through?
    pub(super) allow_any: bool,
}

/// What a workload sees on a port.
#[derive(Debug)]
pub(super) struct Part<'w> {
    pub(super) port: Option<u16>,
    pub(super) services: Vec<&'w Service>,
    /// Virtual services of the mesh.
    pub(super) rules: Vec<&'w Arc<Object>>,
}

impl<'w> Scope<'w> {
    /// What is seen on a port.
    pub(super) fn part(&self, port: u16) -> Option<&Part<'w>> {
        let own = self.parts.iter().find(|part| part.port == Some(port));
        own.or_else(|| self.parts.iter().find(|part| part.port.is_none()))
    }

    /// The services seen on any port.
    pub(super) fn services(&self) -> Vec<&'w Service> {
        match self.parts.as_slice() {
            [only] => only.services.clone(),
            parts => {
                let mut seen = BTreeSet::new();
                let all = parts.iter().flat_map(|part| &part.services).copied();
                all.filter(|service| seen.insert(&*service.host)).collect()
            }
        }
    }
}

/// The services a workload sees.
pub(super) fn services<'w>(world: &'w World, node: &NodeInfo) -> Vec<&'w Service> {
    match sidecar(world, node) {
        Some((_, sidecar)) if !node.gateway && !sidecar.egress.is_empty() => scope(world, node).services(),
        _ => world.services_for(&node.namespace),
    }
}

/// What a workload sees. Gateways see everything: their routes say what is meant.
pub(super) fn scope<'w>(world: &'w World, node: &NodeInfo) -> Scope<'w> {
    let services = world.services_for(&node.namespace);
    let rules: Vec<&Arc<Object>> = virtual_services(world, &node.namespace)
        .into_iter()
        .filter(|object| matches!(&object.spec, Spec::VirtualService(spec) if is_for_mesh(spec)))
        .collect();
    let sidecar = if node.gateway { None } else { sidecar(world, node) };
    let allow_any = sidecar.and_then(|(_, sidecar)| sidecar.allow_any).unwrap_or(world.mesh.allow_any);
    let parts = match sidecar {
        Some((_, sidecar)) if !sidecar.egress.is_empty() => {
            sidecar.egress.iter().map(|egress| part(world, node, egress, &services, &rules)).collect()
        }
        _ => vec![Part { port: None, services, rules }],
    };
    Scope { parts, allow_any }
}

/// The `Sidecar` of a workload: one that selects it, else that of its namespace, else that of the mesh; the oldest of a level.
fn sidecar<'w>(world: &'w World, node: &NodeInfo) -> Option<(&'w Object, &'w Sidecar)> {
    let all = || {
        world.by_age.iter().filter_map(|object| match &object.spec {
            Spec::Sidecar(sidecar) => Some((&**object, sidecar)),
            _ => None,
        })
    };
    let of = |namespace: &str, selected: bool| {
        all().find(|(object, sidecar)| {
            object.key.namespace == namespace
                && sidecar.selector.is_empty() != selected
                && includes(&node.labels, &sidecar.selector)
        })
    };
    of(&node.namespace, true).or_else(|| of(&node.namespace, false)).or_else(|| of(&world.mesh.root_namespace, false))
}

fn part<'w>(
    world: &'w World,
    node: &NodeInfo,
    egress: &Egress,
    services: &[&'w Service],
    rules: &[&'w Arc<Object>],
) -> Part<'w> {
    let sees = |of: &str, host: &str| {
        egress.hosts.iter().any(|pattern| {
            let Some((namespace, name)) = pattern.split_once('/') else { return false };
            let near = match namespace {
                "*" => true,
                "." => of == node.namespace,
                namespace => of == namespace,
            };
            near && meets(name, host)
        })
    };
    let mut seen: Vec<&Service> =
        services.iter().copied().filter(|service| sees(&service.namespace, &service.host)).collect();
    let rules: Vec<&Arc<Object>> = rules
        .iter()
        .copied()
        .filter(|object| {
            let Spec::VirtualService(spec) = &object.spec else { return false };
            let namespace = &object.key.namespace;
            spec.hosts.iter().any(|host| sees(namespace, &world.resolve(host, namespace)))
        })
        .collect();
    // What the rules that are seen lead to is seen as well.
    let mut wanted: BTreeSet<String> = BTreeSet::new();
    for object in &rules {
        let Spec::VirtualService(spec) = &object.spec else { continue };
        for rule in &spec.http {
            let copies = rule.mirrors.iter().map(|mirror| &mirror.destination);
            let main = match &rule.action {
                HttpAction::Route(destinations) => destinations.as_slice(),
                _ => &[],
            };
            wanted.extend(main.iter().chain(copies).map(|destination| route::host_of(world, object, destination)));
        }
    }
    for service in services {
        if wanted.contains(&*service.host) && !seen.iter().any(|other| other.host == service.host) {
            seen.push(service);
        }
    }
    Part { port: egress.port, services: seen, rules }
}

/// Do two hosts, each perhaps a pattern, have one in common?
fn meets(pattern: &str, host: &str) -> bool {
    pattern == "*" || specificity(pattern, host).is_some() || specificity(host, pattern).is_some()
}
