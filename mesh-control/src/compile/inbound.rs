//! What a workload's servers demand of callers: PeerAuthentication by precedence, then the mesh's default; and what requests
//! must pass by the AuthorizationPolicies that are about the workload.
//!
//! Source: Istio `pilot/pkg/model/authentication.go`: workload before namespace before mesh, the oldest of a level.

use std::{collections::BTreeSet, sync::Arc};

use mesh_core::config::{
    Action, EVERY_PORT, Guard, Inbound, Labels, MtlsMode, Route, RouteMatch, RouteTable, StringMatch, VirtualHost,
};

use super::{NodeInfo, World, authz, limits, telling, tokens, world::includes};
use crate::kinds::{Key, Spec, TargetPort};

/// The name of what holds at every port that nobody declared. Source: istiod.
const CATCH_ALL: &str = "virtualInbound-catchall-http";

/// The policy of every port of a workload: those its services name, those it says itself, and one for all others.
pub(crate) fn inbound(world: &World, node: &NodeInfo) -> impl Iterator<Item = (u16, Arc<Inbound>)> {
    let mut ports: BTreeSet<u16> = node.ports.iter().map(|port| port.number).collect();
    for object in world.objects.iter().filter(|object| object.key.namespace == node.namespace) {
        let Spec::Service(service) = &object.spec else { continue };
        if service.selector.is_empty() || !includes(&node.labels, &service.selector) {
            continue;
        }
        for port in &service.ports {
            match &port.target {
                TargetPort::Number(number) => drop(ports.insert(*number)),
                // Known by the port's own name, which is in the list already.
                TargetPort::Name(_) => {}
                TargetPort::Same => drop(ports.insert(port.number)),
            }
        }
    }
    let tokens = tokens::authentication(world, &node.namespace, &node.labels);
    let guards = authz::guards(world, node, tokens.map(Guard::Jwt));
    let telling = telling::telling(world, node, true);
    ports.into_iter().chain([EVERY_PORT]).map(move |port| {
        let mtls = mode(world, &node.namespace, &node.labels, port);
        let (guards, telling) = (guards.clone(), telling.clone());
        let mut inbound = Inbound { guards, telling, path: world.mesh.path, ..server(world, port, mtls) };
        limits::inbound(world, node, port, &mut inbound);
        (port, Arc::new(inbound))
    })
}

/// What requests at a gateway's port must pass. Who calls is nobody of the mesh, and a certificate of its own is the handshake's.
pub(super) fn at_gateway(world: &World, node: &NodeInfo, ports: impl Iterator<Item = u16>) -> Vec<(u16, Arc<Inbound>)> {
    let tokens = tokens::authentication(world, &node.namespace, &node.labels);
    let guards = authz::guards(world, node, tokens.map(Guard::Jwt));
    let inbound = |port| Inbound {
        name: format!("0.0.0.0_{port}").into(),
        mtls: MtlsMode::Disable,
        alpn: Vec::new(),
        guards: guards.clone(),
        path: world.mesh.path,
        trusted_hops: world.mesh.trusted_proxies.checked_sub(1),
        // Who calls a gateway is of the world, whatever it shows.
        members_forward: false,
        ..Inbound::default()
    };
    ports.map(|port| (port, Arc::new(inbound(port)))).collect()
}

fn server(world: &World, port: u16, mtls: MtlsMode) -> Inbound {
    let host = VirtualHost {
        name: format!("inbound|http|{port}").into(),
        domains: vec!["*".to_owned()],
        routes: vec![Route {
            name: "default".into(),
            origin: None,
            matches: RouteMatch::default(),
            action: Action::NonForwarding,
            fault: None,
            headers: Default::default(),
            operation: None,
        }],
        ..VirtualHost::default()
    };
    let routes = RouteTable {
        name: format!("inbound|{port}||").into(),
        virtual_hosts: vec![Arc::new(host)],
        ..RouteTable::default()
    };
    let mesh = &world.mesh;
    // Certificates of other trust domains may chain to the same roots; they are none of this mesh's.
    let domains = std::iter::once(&mesh.trust_domain).chain(&mesh.trust_domain_aliases);
    let callers = domains
        .map(|domain| StringMatch::Prefix { value: format!("spiffe://{domain}/"), ignore_case: false })
        .collect();
    let name = if port == EVERY_PORT { CATCH_ALL.to_owned() } else { format!("0.0.0.0_{port}") };
    Inbound {
        name: name.into(),
        mtls,
        routes: Arc::new(routes),
        callers,
        tls_versions: mesh.tls_versions,
        trusted_hops: (mesh.trusted_proxies > 0).then_some(mesh.trusted_proxies),
        forwarders: Some(world.forwarders().to_vec()),
        ..Inbound::default()
    }
}

/// What a port of a workload demands.
pub(crate) fn mode(world: &World, namespace: &str, labels: &Labels, port: u16) -> MtlsMode {
    decided(world, namespace, labels, port).0
}

/// The same, with the policy that says so.
pub(crate) fn decided<'w>(
    world: &'w World,
    namespace: &str,
    labels: &Labels,
    port: u16,
) -> (MtlsMode, Option<&'w Key>) {
    let root = &world.mesh.root_namespace;
    let policies = || {
        world.by_age.iter().filter_map(|object| match &object.spec {
            Spec::PeerAuthentication(policy) => Some((&object.key, policy)),
            _ => None,
        })
    };
    let of_workload = policies().find(|(key, policy)| {
        key.namespace == namespace && !policy.selector.is_empty() && includes(labels, &policy.selector)
    });
    let of_namespace = policies()
        .find(|(key, policy)| key.namespace == namespace && key.namespace != *root && policy.selector.is_empty());
    let of_mesh = policies().find(|(key, policy)| key.namespace == *root && policy.selector.is_empty());
    if let Some((key, policy)) = &of_workload
        && let Some(mode) = policy.ports.get(&port).copied().flatten()
    {
        return (mode, Some(*key));
    }
    let levels = [of_workload, of_namespace, of_mesh];
    let said = levels.into_iter().flatten().find_map(|(key, policy)| policy.mode.map(|mode| (mode, Some(key))));
    said.unwrap_or((world.mesh.mtls, None))
}
