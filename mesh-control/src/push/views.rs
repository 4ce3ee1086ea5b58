//! Views made once for all who are to see the same: one for each kind of caller, and what each server demands beside it.
//!
//! A change is compiled once per kind of caller it can concern, and written once where the result is the same; streams get
//! pointers. What a change cannot concern is not looked at, and what it did not change stays the value it was, by which a stream
//! sees at once that it has nothing to say.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use mesh_core::config::{Config, Labels, Locality, Name};
use mesh_xds::{
    ads::{Resource, ResourceSet, TypeUrl},
    translate::{self, Encoder, Shape},
};

use crate::compile::{NodeInfo, World, shared};

/// What two streams with the same view have in common.
#[derive(Clone, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Caller {
    shape: Kind,
    namespace: String,
    /// Of gateways.
    service_account: String,
    labels: Labels,
    locality: Locality,
}

#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
enum Kind {
    #[default]
    Sidecar,
    Gateway,
    Grpc,
}

/// The views of one world, for whoever connects.
#[derive(Clone, Debug, Default)]
pub(super) struct Views {
    /// How new the world is.
    pub(super) version: u64,
    world: Option<Arc<World>>,
    views: BTreeMap<Caller, Arc<ResourceSet>>,
}

/// Makes the views of the next world from those of the last.
#[derive(Debug, Default)]
pub(super) struct Maker {
    encoder: Encoder,
}

/// What became of a view in the next world.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Changed {
    /// Nothing: nobody who has it hears anything.
    Nothing,
    /// What is called, at most; what servers demand is the same.
    Calls,
    /// Anything.
    All,
}

impl Caller {
    /// Who a node is to the world.
    pub(super) fn of(world: &World, node: &NodeInfo, grpc: bool) -> Self {
        let NodeInfo { namespace, service_account, labels, locality, gateway, .. } = shared::caller(world, node);
        let shape = match (grpc, gateway) {
            (true, _) => Kind::Grpc,
            (false, true) => Kind::Gateway,
            (false, false) => Kind::Sidecar,
        };
        Self { shape, namespace, service_account, labels, locality }
    }

    fn node(&self) -> NodeInfo {
        NodeInfo {
            namespace: self.namespace.clone(),
            service_account: self.service_account.clone(),
            labels: self.labels.clone(),
            locality: self.locality.clone(),
            gateway: self.shape == Kind::Gateway,
            ..NodeInfo::default()
        }
    }

    fn shape(&self) -> Shape {
        match self.shape {
            Kind::Sidecar => Shape::Sidecar,
            Kind::Gateway => Shape::Gateway,
            Kind::Grpc => Shape::Grpc,
        }
    }
}

impl Views {
    /// Of a world that nobody has seen yet.
    pub(super) fn new(version: u64, world: Arc<World>) -> Self {
        Self { version, world: Some(world), views: BTreeMap::new() }
    }

    /// The view of a caller, if it was made.
    pub(super) fn get(&self, caller: &Caller) -> Option<&Arc<ResourceSet>> {
        self.views.get(caller)
    }

    /// The world they are of; `None` before the first.
    pub(super) fn world(&self) -> Option<&Arc<World>> {
        self.world.as_ref()
    }

    /// The view of a caller; made now if nobody like it was here before.
    pub(super) fn of(&mut self, world: &World, caller: &Caller) -> Arc<ResourceSet> {
        if let Some(view) = self.views.get(caller) {
            return view.clone();
        }
        let view = Arc::new(Encoder::default().encode(&outbound(world, caller), caller.shape()));
        self.views.insert(caller.clone(), view.clone());
        view
    }
}

impl Maker {
    /// The views of `world` for these callers, and what became of each since `before`.
    pub(super) fn next<'a>(
        &mut self,
        before: &Views,
        version: u64,
        world: Arc<World>,
        callers: impl Iterator<Item = &'a Caller>,
    ) -> (Views, BTreeMap<Caller, Changed>) {
        let rules = before.world.as_deref().and_then(|before| shared::changes(before, &world));
        let moved = match (&rules, before.world.as_deref()) {
            (None, Some(before)) => shared::moved(before, &world),
            _ => None,
        };
        let mut views = Views::new(version, world.clone());
        let mut changes = BTreeMap::new();
        let mut same: HashMap<(TypeUrl, String), Arc<ResourceSet>> = HashMap::new();
        for caller in callers {
            if views.views.contains_key(caller) {
                continue;
            }
            let old = before.views.get(caller);
            let (mut view, mut changed) = match (&rules, old) {
                (Some(rules), Some(old)) if !shared::concern(rules, &caller.node()) => {
                    changes.insert(caller.clone(), Changed::Nothing);
                    views.views.insert(caller.clone(), old.clone());
                    continue;
                }
                (Some(_), Some(old)) => (self.routes(&world, caller, old), Changed::Calls),
                (None, old) => {
                    let hosts = moved.as_ref().zip(old);
                    match hosts.and_then(|(hosts, old)| self.moved(&world, caller, old, hosts)) {
                        Some(view) => (view, Changed::Calls),
                        None => (self.encoder.encode(&outbound(&world, caller), caller.shape()), Changed::All),
                    }
                }
                _ => (self.encoder.encode(&outbound(&world, caller), caller.shape()), Changed::All),
            };
            // Equal parts are one value: the one from before, else the one of another caller.
            for kind in TypeUrl::ALL {
                match (old, same.get(&(kind, view.version(kind)))) {
                    (Some(old), _) if old.version(kind) == view.version(kind) => view.share(kind, old),
                    (_, Some(other)) => view.share(kind, other),
                    _ => {}
                }
            }
            if changed == Changed::Calls
                && old.is_some_and(|old| TypeUrl::ALL.iter().all(|kind| old.shares(*kind, &view)))
            {
                changed = Changed::Nothing;
            }
            let view = match old {
                Some(old) if changed == Changed::Nothing => old.clone(),
                _ => Arc::new(view),
            };
            for kind in TypeUrl::ALL {
                same.entry((kind, view.version(kind))).or_insert_with(|| view.clone());
            }
            changes.insert(caller.clone(), changed);
            views.views.insert(caller.clone(), view);
        }
        match (&rules, &moved) {
            (None, None) => self.encoder.sweep(),
            (None, Some(_)) => self.encoder.sweep_written(),
            (Some(_), _) => {}
        }
        (views, changes)
    }

    /// A view whose clusters are those it had, but for services with these hosts; `None` where that does not do.
    fn moved(
        &mut self,
        world: &World,
        caller: &Caller,
        old: &ResourceSet,
        hosts: &BTreeSet<Name>,
    ) -> Option<ResourceSet> {
        let mut set = old.clone();
        for cluster in shared::clusters_of(world, &caller.node(), hosts) {
            if !self.encoder.encode_cluster(&cluster, caller.shape(), &mut set) {
                return None;
            }
        }
        Some(set)
    }

    /// A view whose clusters are those it had.
    fn routes(&mut self, world: &World, caller: &Caller, old: &ResourceSet) -> ResourceSet {
        let config = match caller.shape {
            // There the routes say what their clusters hash by.
            Kind::Grpc => outbound(world, caller),
            _ => shared::routes(world, &caller.node()),
        };
        let mut set = ResourceSet::default();
        self.encoder.encode_routes(&config, caller.shape(), &mut set);
        set.share(TypeUrl::Cluster, old);
        set.share(TypeUrl::Endpoint, old);
        set
    }
}

/// The listeners that say what a node's own servers demand.
pub(super) fn inbound(world: &World, node: &NodeInfo, caller: &Caller) -> Vec<(Name, Resource)> {
    let mut set = ResourceSet::default();
    let config = || Config { inbound: shared::inbound(world, node), ..Config::default() };
    match (caller.shape, node.address) {
        (Kind::Sidecar, _) => translate::encode_inbound(&config(), &mut set),
        (Kind::Grpc, Some(address)) => translate::encode_grpc_servers(&config(), address, &mut set),
        _ => {}
    }
    set.iter(TypeUrl::Listener).map(|(name, resource)| (name.clone(), resource.clone())).collect()
}

/// A shared view with a node's own listeners. What is as it was stays the value it was.
pub(super) fn own(view: &Arc<ResourceSet>, inbound: &[(Name, Resource)], before: &ResourceSet) -> Arc<ResourceSet> {
    if inbound.is_empty() {
        return view.clone();
    }
    let mut own = ResourceSet::clone(view);
    for (name, resource) in inbound {
        own.insert_resource(TypeUrl::Listener, name.clone(), resource.clone());
    }
    if own.version(TypeUrl::Listener) == before.version(TypeUrl::Listener) {
        own.share(TypeUrl::Listener, before);
    }
    Arc::new(own)
}

fn outbound(world: &World, caller: &Caller) -> Config {
    let node = caller.node();
    let clusters = shared::clusters(world, &node).map(|cluster| (cluster.name.clone(), cluster)).collect();
    Config { clusters, ..shared::routes(world, &node) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;
    use crate::{
        compile::MeshSettings,
        registry::{Registered, Workloads},
        store::{SourceFile, Store},
    };

    #[derive(Debug)]
    struct There(Vec<Arc<Registered>>);

    impl Workloads for There {
        fn workloads(&self) -> Vec<Arc<Registered>> {
            self.0.clone()
        }
    }

    fn registered(app: &str, n: u8) -> Arc<Registered> {
        Arc::new(Registered {
            name: format!("{app}-{n}"),
            namespace: "default".into(),
            workload: app.into(),
            service_account: app.into(),
            address: [10, 0, 0, n].into(),
            ports: Vec::new(),
            labels: [("app".to_owned(), app.to_owned())].into(),
            locality: Locality::default(),
            gateway: false,
            group: String::new(),
            weight: 0,
            unhealthy: None,
            admin: None,
            since: 0,
            lost: None,
        })
    }

    /// OP10: where nothing has changed but who runs where, views are what they would be if made anew, at the cost of the services
    /// concerned: routes and clusters stay the values they were.
    #[test]
    fn what_moves_is_as_if_made_anew() {
        let mut store = Store::open(None).unwrap();
        let mut apply = |text: String| {
            store.apply(&[SourceFile { name: "f.yaml".into(), text }], 1).unwrap_or_else(|error| panic!("{error:?}"));
            store.objects()
        };
        let service = |app: &str| {
            format!(
                "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {app}}}\nspec: {{ports: [{{port: 80, name: http}}], selector: {{app: {app}}}}}\n"
            )
        };
        let rule = "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: b}\nspec:\n  host: b\n  subsets:\n  - {name: v1, labels: {version: v1}}\n";
        let objects = apply(service("a") + &service("b") + rule);
        let entry = "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: e}\nspec: {address: 10.1.1.1, labels: {app: b, version: v1}}\n";
        let with_entry = apply(entry.to_owned());
        let (a, b) = (registered("a", 1), registered("b", 2));
        let worlds = [
            (&objects, vec![a.clone(), b.clone()]),
            (&objects, vec![a.clone(), b.clone(), registered("b", 3)]),
            (&with_entry, vec![a.clone(), b, registered("b", 3)]),
            (&with_entry, vec![a]),
            (&objects, Vec::new()),
        ];
        let node = |namespace: &str, gateway| NodeInfo { namespace: namespace.into(), gateway, ..NodeInfo::default() };
        let (mut maker, mut before) = (Maker::default(), Views::default());
        for (n, (objects, there)) in worlds.into_iter().enumerate() {
            let world = Arc::new(World::new(objects.clone(), &There(there), MeshSettings::default()));
            let callers = [
                Caller::of(&world, &node("default", false), false),
                Caller::of(&world, &node("other", false), false),
                Caller::of(&world, &node("default", true), false),
                Caller::of(&world, &node("default", false), true),
            ];
            let (views, changes) = maker.next(&before, n as u64, world.clone(), callers.iter());
            for caller in &callers {
                let view = views.get(caller).unwrap();
                let anew = Encoder::default().encode(&outbound(&world, caller), caller.shape());
                assert!(**view == anew, "{n} {caller:?}: {view:#?} {anew:#?}");
                let Some(old) = before.get(caller) else { continue };
                assert_eq!(changes[caller], Changed::Calls, "{n} {caller:?}");
                let shared = TypeUrl::ALL.map(|kind| view.shares(kind, old));
                assert_eq!(shared[1..], [false, true, true, true], "{n} {caller:?}");
            }
            before = views;
        }
    }
}
