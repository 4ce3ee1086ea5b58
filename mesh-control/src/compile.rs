//! Objects and registry in, one [`Config`] per workload out, with Istio's meaning and Istio's names.
//!
//! A [`World`] is what all workloads share, indexed once per change; [`compile`] is the view of one of them. Both are pure:
//! the same world and node give the same configuration, and parts that a change does not touch come out equal.
//!
//! Source: istiod `pilot/pkg/networking/core`, `pilot/pkg/model`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, OnceLock},
};

use mesh_core::config::{Config, Labels, Locality};
use serde::{Deserialize, Serialize};

use crate::{
    kinds::{Key, Object, Spec},
    registry::{Registered, WorkloadPort, Workloads},
};

pub(crate) mod accounts;
pub(crate) mod authz;
mod cluster;
mod delegate;
mod gateway;
mod gateway_api;
pub(crate) mod inbound;
mod limits;
mod locate;
mod route;
mod scope;
mod settings;
pub(crate) mod shared;
mod telling;
pub(crate) mod tokens;
mod world;

pub(crate) use delegate::delegate_of;
pub use settings::MeshSettings;

/// The label by which an object is for one of several control planes. Source: Istio.
pub(crate) const REVISION: &str = "istio.io/rev";

/// What all workloads share, indexed.
#[derive(Debug)]
pub struct World {
    /// Every object, by kind, namespace and name.
    objects: Vec<Arc<Object>>,
    /// Every object, the oldest first; virtual services with what they delegate in place, routes of the Gateway API as virtual
    /// services.
    by_age: Vec<Arc<Object>>,
    workloads: Vec<Arc<Registered>>,
    mesh: MeshSettings,
    /// Made when first asked for, or taken from the world before.
    services: OnceLock<Arc<Vec<world::Service>>>,
    /// Keys of labels by which objects tell callers apart; found when first asked for.
    asked: OnceLock<BTreeSet<String>>,
    /// The identities of gateways; made when first asked for.
    forwarders: OnceLock<Vec<String>>,
}

impl World {
    /// Indexes the objects and workloads of the moment; what a `MeshConfig` among them says goes before `mesh`.
    pub fn new(mut objects: Vec<Arc<Object>>, workloads: &dyn Workloads, mesh: MeshSettings) -> Self {
        // What another revision is tried with is nothing to this one.
        objects.retain(|object| object.labels.get(REVISION).is_none_or(|revision| *revision == mesh.revision));
        let mesh = mesh.with(&objects);
        let mut by_age = delegate::resolve_delegates(&objects);
        by_age.extend(gateway_api::derived(&objects, &mesh.domain));
        let age = |object: &Arc<Object>| (object.created, object.key.name.clone(), object.key.namespace.clone());
        by_age.sort_by_cached_key(age);
        Self {
            objects,
            by_age,
            workloads: workloads.workloads(),
            mesh,
            services: OnceLock::new(),
            asked: OnceLock::new(),
            forwarders: OnceLock::new(),
        }
    }

    fn services(&self) -> &Arc<Vec<world::Service>> {
        self.services.get_or_init(|| Arc::new(world::services(self)))
    }

    fn forwarders(&self) -> &[String] {
        self.forwarders.get_or_init(|| accounts::forwarders(self))
    }

    /// One object.
    pub(crate) fn object(&self, key: &Key) -> Option<&Arc<Object>> {
        self.objects.iter().find(|object| object.key == *key)
    }

    /// The trust domain of the mesh.
    pub(crate) fn trust_domain(&self) -> &str {
        &self.mesh.trust_domain
    }

    /// The RequestAuthentications that are about a workload, the oldest first.
    pub(crate) fn token_policies<'w>(&'w self, node: &'w NodeInfo) -> impl Iterator<Item = &'w Arc<Object>> {
        tokens::policies(self, &node.namespace, &node.labels)
    }

    /// The hosts of every service, for those who want to name one.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        self.services().iter().map(|service| &*service.host)
    }

    /// The workload that a `Deployment` announces, by its name, with or without its namespace, or by its label `app`.
    pub fn announced(&self, word: &str) -> Option<NodeInfo> {
        self.objects.iter().find_map(|object| {
            let Spec::Deployment(deployment) = &object.spec else { return None };
            let is_app = deployment.labels.get("app").is_some_and(|app| app == word);
            let full = || format!("{}.{}", object.key.name, object.key.namespace);
            (object.key.name == word || is_app || full() == word).then(|| NodeInfo {
                name: object.key.name.clone(),
                namespace: object.key.namespace.clone(),
                workload: object.key.name.clone(),
                service_account: deployment.service_account.clone(),
                labels: deployment.labels.clone(),
                ports: deployment.ports.clone(),
                ..NodeInfo::default()
            })
        })
    }

    /// A host as an object of a namespace names it: a name without a dot is a service of that namespace.
    fn resolve(&self, host: &str, namespace: &str) -> String {
        resolve(host, namespace, &self.mesh.domain)
    }

    /// The name in the certificate of an account.
    fn san(&self, namespace: &str, account: &str) -> String {
        format!("spiffe://{}/ns/{namespace}/sa/{account}", self.mesh.trust_domain)
    }

    /// The services a namespace sees; of several with one host its own, else the first.
    fn services_for(&self, namespace: &str) -> Vec<&world::Service> {
        let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
        let mut out: Vec<&world::Service> = Vec::new();
        for service in &**self.services() {
            if !visible(&service.export_to, &service.namespace, namespace) {
                continue;
            }
            match seen.get(&*service.host) {
                Some(at) if *service.namespace == *namespace && *out[*at].namespace != *namespace => out[*at] = service,
                Some(_) => {}
                None => {
                    seen.insert(&service.host, out.len());
                    out.push(service);
                }
            }
        }
        out
    }
}

/// A host in full. Source: Istio `ResolveShortnameToFQDN`.
pub(crate) fn resolve(host: &str, namespace: &str, domain: &str) -> String {
    let host = host.to_ascii_lowercase();
    if host.contains('.') || host.contains(':') || host == "*" {
        host
    } else {
        format!("{host}.{namespace}.svc.{domain}")
    }
}

/// Does an object's `exportTo` let a namespace see it?
fn visible(export_to: &[String], own: &str, namespace: &str) -> bool {
    export_to.is_empty()
        || export_to.iter().any(|to| match to.as_str() {
            "*" => true,
            "." => own == namespace,
            to => to == namespace,
        })
}

/// How closely a pattern names a host: exactly, by `*.suffix` (the longer the closer), by `*`, or not at all.
pub(crate) fn specificity(pattern: &str, host: &str) -> Option<usize> {
    if pattern == host {
        return Some(usize::MAX);
    }
    let suffix = pattern.strip_prefix('*')?;
    host.strip_prefix('*').unwrap_or(host).ends_with(suffix).then_some(suffix.len())
}

/// The workload a configuration is for.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct NodeInfo {
    /// The instance: node metadata `NAME`.
    pub name: String,
    /// `default`.
    pub namespace: String,
    /// `productpage-v1`.
    pub workload: String,
    /// `bookinfo-productpage`.
    pub service_account: String,
    /// `app`, `version`, ...
    pub labels: Labels,
    /// Where it runs.
    pub locality: Locality,
    /// Where it listens.
    pub address: Option<IpAddr>,
    /// What it listens on.
    pub ports: Vec<WorkloadPort>,
    /// Gateways get the routes of the `Gateway`s that select them instead of the mesh's. Node type `router`.
    pub gateway: bool,
}

/// The configuration of one workload.
pub fn compile(world: &World, node: &NodeInfo) -> Config {
    let caller = shared::caller(world, node);
    let mut config = shared::routes(world, &caller);
    config.clusters = shared::clusters(world, &caller).map(|cluster| (cluster.name.clone(), cluster)).collect();
    // A gateway's callers are from outside the mesh and have no certificate of it.
    if !node.gateway {
        config.inbound = inbound::inbound(world, node).collect();
    }
    config
}

/// The virtual services a namespace sees, in the order in which they count: those meant for it alone, those meant for it by name,
/// then those for all; the oldest of each first.
fn virtual_services<'w>(world: &'w World, namespace: &str) -> Vec<&'w Arc<Object>> {
    let mut out: Vec<(u8, &Arc<Object>)> = Vec::new();
    for object in &world.by_age {
        let Spec::VirtualService(spec) = &object.spec else { continue };
        if !visible(&spec.export_to, &object.key.namespace, namespace) {
            continue;
        }
        let class = match spec.export_to.as_slice() {
            [one] if one == "." => 0,
            [] => 2,
            names if names.iter().any(|name| name == "*") => 2,
            _ => 1,
        };
        out.push((class, object));
    }
    out.sort_by_key(|(class, _)| *class);
    out.into_iter().map(|(_, object)| object).collect()
}

#[cfg(test)]
mod tests;
