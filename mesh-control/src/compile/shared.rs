//! What workloads have in common: the half of a configuration that is about those they call.
//!
//! It depends on where a caller is and in which namespace, and on those of its labels that some object asks for; not on its
//! name, its address or its ports. [`caller`] keeps just that of a node, and everything outbound is compiled from it alone,
//! so that two nodes with the same caller have the same outbound configuration by construction. A thousand instances of a
//! service are one caller.
//!
//! [`changes`] tells which callers a change can concern, in the case that is most common and dearest: rules of requests
//! (VirtualServices) change far more often than services do, and in a large mesh most are for few.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh_core::config::{Cluster, Config, Inbound, Name};

use super::{NodeInfo, World, cluster, gateway, inbound, limits, route, scope, telling, visible};
use crate::kinds::{GATEWAY_NAME, Object, Spec, TrafficPolicy, VirtualService};

/// What of a node counts for its outbound configuration; all else is empty.
pub(crate) fn caller(world: &World, node: &NodeInfo) -> NodeInfo {
    let asked = world.asked.get_or_init(|| world.asked_labels().into_iter().map(str::to_owned).collect());
    // A gateway has what requests must pass beside its routes, which depends on all its labels; gateways are few. Keys are given
    // by its account.
    let labels = node.labels.iter().filter(|(key, _)| node.gateway || asked.contains(*key));
    NodeInfo {
        namespace: node.namespace.clone(),
        service_account: if node.gateway { node.service_account.clone() } else { String::new() },
        labels: labels.map(|(key, value)| (key.clone(), value.clone())).collect(),
        locality: node.locality.clone(),
        gateway: node.gateway,
        ..NodeInfo::default()
    }
}

/// The routes of a caller; of a gateway with all that it takes from outside.
pub(crate) fn routes(world: &World, caller: &NodeInfo) -> Config {
    let mut config = if caller.gateway {
        gateway::routes(world, caller, &world.services_for(&caller.namespace))
    } else {
        Config { outbound: route::tables(world, caller, &scope::scope(world, caller)), ..Config::default() }
    };
    if let Some(all) = telling::settings(world, caller) {
        for port in config.outbound.keys() {
            config.http.insert(*port, Arc::clone(&all));
        }
        for target in config.targets.values_mut() {
            target.http = Arc::clone(&all);
        }
    }
    if caller.gateway {
        limits::gateway(world, caller, &mut config);
    }
    config
}

/// The clusters of a caller.
pub(crate) fn clusters(world: &World, caller: &NodeInfo) -> impl Iterator<Item = Arc<Cluster>> {
    let services = scope::services(world, caller);
    let clusters: Vec<Arc<Cluster>> =
        services.into_iter().flat_map(|service| cluster::of_service(world, caller, service)).collect();
    clusters.into_iter().chain(cluster::special(world)).chain(limits::clusters(world, caller))
}

/// Those clusters of a caller that are of services with these hosts.
pub(crate) fn clusters_of(world: &World, caller: &NodeInfo, hosts: &BTreeSet<Name>) -> Vec<Arc<Cluster>> {
    let services = scope::services(world, caller).into_iter().filter(|service| hosts.contains(&service.host));
    services.flat_map(|service| cluster::of_service(world, caller, service)).collect()
}

/// What a node's own servers demand.
pub(crate) fn inbound(world: &World, node: &NodeInfo) -> BTreeMap<u16, Arc<Inbound>> {
    inbound::inbound(world, node).collect()
}

impl World {
    /// The keys of labels by which objects tell callers apart. Whoever reads a caller's labels names the keys here.
    fn asked_labels(&self) -> BTreeSet<&str> {
        let mut keys = BTreeSet::new();
        for object in &self.objects {
            match &object.spec {
                Spec::VirtualService(spec) => {
                    let conditions = spec.http.iter().flat_map(|rule| &rule.matches);
                    keys.extend(conditions.flat_map(|it| it.source_labels.keys()).map(String::as_str));
                }
                Spec::DestinationRule(spec) => {
                    keys.extend(spec.callers.iter().flatten().map(|(key, _)| key.as_str()));
                    let policies = spec.subsets.iter().map(|subset| &subset.policy).chain([&spec.policy]);
                    keys.extend(policies.flat_map(failover_labels));
                }
                Spec::Gateway(spec) => keys.extend(spec.selector.keys().map(String::as_str)),
                Spec::KubeGateway(_) => drop(keys.insert(GATEWAY_NAME)),
                Spec::Sidecar(spec) => keys.extend(spec.selector.keys().map(String::as_str)),
                Spec::Telemetry(spec) => keys.extend(spec.selector.keys().map(String::as_str)),
                _ => {}
            }
        }
        keys
    }

    /// The world after a change, with what did not change taken from the world before.
    pub(crate) fn after(self, before: &Self) -> Self {
        if let (Some(_), Some(services)) = (changes(before, &self), before.services.get()) {
            let _ = self.services.set(services.clone());
        }
        self
    }
}

fn failover_labels(policy: &TrafficPolicy) -> impl Iterator<Item = &str> {
    let settings = policy.ports.iter().map(|(_, settings)| settings).chain([&policy.settings]);
    let locating = settings.filter_map(|settings| settings.balancing.as_ref()?.locating.as_ref());
    locating.flat_map(|locating| &locating.failover_priority).map(String::as_str)
}

/// The VirtualServices that changed between two worlds, in their forms before and after; `None` when anything else did.
pub(crate) fn changes(before: &World, after: &World) -> Option<Vec<Arc<Object>>> {
    let same_workloads = before.workloads.len() == after.workloads.len()
        && before.workloads.iter().zip(&after.workloads).all(|(one, other)| Arc::ptr_eq(one, other) || one == other);
    if !same_workloads || before.mesh != after.mesh {
        return None;
    }
    // Where a sidecar says what is seen, a rule brings along the services it leads to.
    let narrows = |object: &Arc<Object>| matches!(&object.spec, Spec::Sidecar(sidecar) if !sidecar.egress.is_empty());
    if after.objects.iter().any(narrows) {
        return None;
    }
    let mut changed = Vec::new();
    let (mut old, mut new) = (before.objects.iter().peekable(), after.objects.iter().peekable());
    loop {
        let object = match (old.peek(), new.peek()) {
            (None, None) => return Some(changed),
            (Some(one), Some(other)) if Arc::ptr_eq(one, other) => {
                old.next();
                new.next();
                continue;
            }
            (Some(one), Some(other)) if one.key > other.key => new.next(),
            (Some(_), _) => old.next(),
            (None, Some(_)) => new.next(),
        };
        let object = object?;
        if !matches!(object.spec, Spec::VirtualService(_)) {
            return None;
        }
        changed.push(object.clone());
    }
}

/// The hosts of the services behind which others run than in the world before; `None` when anything changed but who runs where.
///
/// Routes and what servers demand do not depend on that.
pub(crate) fn moved(before: &World, after: &World) -> Option<BTreeSet<Name>> {
    let declared = |world: &'_ World| -> Vec<Arc<Object>> {
        world.objects.iter().filter(|object| !matches!(object.spec, Spec::WorkloadEntry(_))).cloned().collect()
    };
    let (old, new) = (declared(before), declared(after));
    let same = old.len() == new.len() && old.iter().zip(&new).all(|(one, other)| Arc::ptr_eq(one, other));
    let (old, new) = (before.services(), after.services());
    // Servers are told who the gateways are.
    let same = same && before.forwarders() == after.forwarders();
    if !same || before.mesh != after.mesh || old.len() != new.len() {
        return None;
    }
    let mut moved = BTreeSet::new();
    for (one, other) in old.iter().zip(new.iter()) {
        if one.host != other.host || one.namespace != other.namespace {
            return None;
        }
        if one.accounts != other.accounts || one.instances != other.instances {
            moved.insert(Name::clone(&other.host));
        }
    }
    Some(moved)
}

/// Can one of these objects count for a caller?
pub(crate) fn concern(changed: &[Arc<Object>], caller: &NodeInfo) -> bool {
    changed.iter().any(|object| match &object.spec {
        Spec::VirtualService(spec) => {
            // Without hosts it is a part of another.
            let is_part = spec.hosts.is_empty();
            is_part
                || visible(&spec.export_to, &object.key.namespace, &caller.namespace) && is_for(spec, caller.gateway)
        }
        _ => true,
    })
}

fn is_for(spec: &VirtualService, gateway: bool) -> bool {
    let named = |mesh: bool| spec.gateways.iter().any(|gateway| (gateway.value == "mesh") == mesh);
    if gateway { named(false) } else { spec.gateways.is_empty() || named(true) }
}
