//! Whose accounts count: for whom objects say that they stand behind a service, and which gateways are given keys.
//!
//! What a member says of itself beyond its service account, its name and its labels, nobody can check. So where an object says which
//! account is meant, that account is meant and no other.

use std::{collections::BTreeSet, sync::Arc};

use mesh_core::config::Labels;

use super::{NodeInfo, World, world::includes};
use crate::{
    kinds::{Kind, Object, ServerTls, Spec},
    registry::Registered,
};

/// Names the accounts that gateways run as, separated by commas. Istio's annotation of that name.
const ANNOTATION: &str = "/metadata/annotations/gateway.istio.io~1service-account";

/// The accounts that may stand behind a selector. Without a `Deployment` that is selected every one may.
pub(super) struct Behind<'w> {
    announced: BTreeSet<&'w str>,
    groups: BTreeSet<&'w str>,
}

impl<'w> Behind<'w> {
    /// `objects` are those of the namespace that say who runs there.
    pub(super) fn of(
        world: &'w World,
        objects: impl Iterator<Item = &'w Object>,
        namespace: &str,
        selector: &Labels,
    ) -> Self {
        let (mut announced, mut groups) = (BTreeSet::new(), BTreeSet::new());
        for object in objects {
            if let Spec::Deployment(hint) = &object.spec
                && includes(&hint.labels, selector)
            {
                announced.insert(hint.service_account.as_str());
            }
        }
        if !announced.is_empty() {
            for object in world.of_kind(Kind::WorkloadGroup).iter().filter(|it| it.key.namespace == namespace) {
                if let Spec::WorkloadGroup(group) = &object.spec
                    && includes(&group.labels, selector)
                {
                    groups.insert(group.template.service_account.as_str());
                }
            }
        }
        Self { announced, groups }
    }

    /// Of the Deployments, before anybody runs.
    pub(super) fn announced(&self) -> impl Iterator<Item = &'w str> {
        self.announced.iter().copied()
    }

    /// May this one stand there?
    pub(super) fn takes(&self, registered: &Registered) -> bool {
        let account = registered.service_account.as_str();
        self.announced.is_empty() || self.announced.contains(account) || self.groups.contains(account)
    }
}

impl World {
    /// Every object of a kind.
    pub(super) fn of_kind(&self, kind: Kind) -> &[Arc<Object>] {
        let begin = self.objects.partition_point(|object| object.key.kind < kind);
        let end = self.objects.partition_point(|object| object.key.kind <= kind);
        self.objects.get(begin..end).unwrap_or_default()
    }
}

/// Is a workload that a `Gateway` selects given the keys of its servers? It must run as an account that the object names, or as that of
/// a `Deployment` of its namespace whose pods are selected too.
pub(super) fn holds_keys(world: &World, node: &NodeInfo, gateway: &Object) -> bool {
    let Spec::Gateway(spec) = &gateway.spec else { return false };
    let account = node.service_account.as_str();
    named(gateway).any(|named| named == account) || {
        let mut deployments = world.of_kind(Kind::Deployment).iter();
        deployments.any(|object| match &object.spec {
            Spec::Deployment(hint) => {
                object.key.namespace == node.namespace
                    && hint.service_account == account
                    && includes(&hint.labels, &spec.selector)
            }
            _ => false,
        })
    }
}

impl World {
    /// The `Gateway`s that select a workload and whose keys it is not given, though they name some.
    pub(crate) fn keyless(&self, node: &NodeInfo) -> Vec<String> {
        let gateways = self.by_age.iter().filter(|object| match &object.spec {
            Spec::Gateway(spec) => {
                let near = !spec.own_namespace || object.key.namespace == node.namespace;
                let own = |tls: &ServerTls| matches!(tls, ServerTls::Own(tls) if !tls.credentials.is_empty());
                let asks = spec.servers.iter().any(|server| server.tls.as_ref().is_some_and(own));
                node.gateway && near && asks && includes(&node.labels, &spec.selector)
            }
            _ => false,
        });
        gateways.filter(|gateway| !holds_keys(self, node, gateway)).map(|gateway| gateway.key.to_string()).collect()
    }
}

/// The identities of the mesh's gateways, whose word on addresses is believed: accounts that objects name for them, and others that
/// connected gateways have and nobody else.
pub(super) fn forwarders(world: &World) -> Vec<String> {
    let selectors: Vec<&Labels> = world
        .by_age
        .iter()
        .filter_map(|object| match &object.spec {
            Spec::Gateway(spec) if !spec.selector.is_empty() => Some(&spec.selector),
            _ => None,
        })
        .collect();
    let selected = |labels: &Labels| selectors.iter().any(|selector| includes(labels, selector));
    let (mut gateways, mut others) = (BTreeSet::new(), BTreeSet::new());
    for workload in &world.workloads {
        let side = if workload.gateway { &mut gateways } else { &mut others };
        side.insert((workload.namespace.as_str(), workload.service_account.as_str()));
    }
    for object in world.of_kind(Kind::Deployment) {
        let Spec::Deployment(hint) = &object.spec else { continue };
        let side = if selected(&hint.labels) { &mut gateways } else { &mut others };
        side.insert((object.key.namespace.as_str(), hint.service_account.as_str()));
    }
    let known = gateways.iter().filter(|account| !others.contains(*account)).copied();
    // Of accounts that are named only those count that are in use: a name says no namespace.
    let names: BTreeSet<&str> = world
        .by_age
        .iter()
        .filter(|object| matches!(object.spec, Spec::Gateway(_)))
        .flat_map(|object| named(object))
        .collect();
    let named = gateways.iter().filter(|(_, account)| names.contains(account)).copied();
    let all: BTreeSet<(&str, &str)> = known.chain(named).collect();
    all.into_iter().map(|(namespace, account)| world.san(namespace, account)).collect()
}

/// The accounts that a gateway's object names.
pub(crate) fn named(gateway: &Object) -> impl Iterator<Item = &str> {
    let text = gateway.raw.pointer(ANNOTATION).and_then(|value| value.as_str()).unwrap_or_default();
    text.split(',').map(str::trim).filter(|name| !name.is_empty())
}
