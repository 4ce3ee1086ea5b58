//! The half of the graph that joins clusters with their endpoints, one at a time as they come.
//!
//! What an event costs is what its own clusters cost: the others stay the same `Arc`s in a map whose copies share them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh_core::config::{self, Cluster, Discovery, Endpoints, Name};

use super::Slot;

/// Clusters, their endpoints, and both together.
#[derive(Debug, Default)]
pub(super) struct Clusters {
    /// As CDS has them; with their endpoints as far as those are known, so that each is there once.
    known: BTreeMap<Name, Slot<Arc<Cluster>>>,
    endpoints: BTreeMap<Name, Slot<Arc<Endpoints>>>,
    /// The clusters that have the endpoints of a name.
    users: BTreeMap<Name, Vec<Name>>,
    /// Endpoints nobody may want any more.
    orphans: BTreeSet<Name>,
    /// Every cluster that is whole, and the previous form of those that are not.
    whole: config::Clusters,
    /// Those that are not whole and have no previous form.
    warming: BTreeSet<Name>,
    moved: bool,
    rewanted: bool,
}

impl Clusters {
    /// CDS has this cluster; `before` is what is in force.
    pub(super) fn put(&mut self, name: Name, mut cluster: Arc<Cluster>, before: &config::Clusters) {
        let old = match self.known.get(&name) {
            Some(Slot::Here(old)) => Some(old.clone()),
            _ => None,
        };
        let (wanted, had) = (eds_name(&cluster), old.as_deref().and_then(eds_name));
        if wanted != had {
            let (wanted, had) = (wanted.cloned(), had.cloned());
            had.into_iter().for_each(|endpoints| self.leave(endpoints, &name));
            wanted.into_iter().for_each(|endpoints| self.join(endpoints, &name));
        } else if let Some(old) = old {
            if wanted.is_some() {
                let with = Cluster { endpoints: old.endpoints.clone(), ..Arc::unwrap_or_clone(cluster) };
                cluster = Arc::new(with);
            }
            // Equal content keeps its `Arc` (XD15).
            if *old == *cluster {
                return;
            }
        }
        self.moved |= self.known.insert(name.clone(), Slot::Here(cluster)).is_none();
        self.settle(&name, before);
    }

    /// CDS has this cluster, but it cannot be used; one in force stays.
    pub(super) fn fail(&mut self, name: Name, why: String, before: &config::Clusters) {
        if !matches!(self.known.get(&name), Some(Slot::Here(_))) {
            self.moved |= self.known.insert(name.clone(), Slot::Unusable(why)).is_none();
            self.settle(&name, before);
        }
    }

    /// CDS has it no more.
    pub(super) fn remove(&mut self, name: &Name) {
        if let Some(Slot::Here(old)) = self.known.remove(name)
            && let Some(endpoints) = eds_name(&old)
        {
            self.leave(endpoints.clone(), name);
        }
        self.warming.remove(name);
        self.whole.remove(name);
        self.moved = true;
    }

    /// Forgets those that nobody wants.
    pub(super) fn retain(&mut self, wanted: &BTreeSet<Name>) {
        let unwanted: Vec<Name> = self.known.keys().filter(|name| !wanted.contains(*name)).cloned().collect();
        unwanted.iter().for_each(|name| self.remove(name));
    }

    /// How the endpoints of a cluster are found, as CDS has it.
    pub(super) fn discovery(&self, name: &str) -> Option<&Discovery> {
        match self.known.get(name) {
            Some(Slot::Here(cluster)) => Some(&cluster.discovery),
            _ => None,
        }
    }

    /// EDS has these endpoints.
    pub(super) fn put_endpoints(&mut self, name: Name, endpoints: Arc<Endpoints>, before: &config::Clusters) {
        if !matches!(self.endpoints.get(&name), Some(Slot::Here(old)) if *old == endpoints) {
            self.set_endpoints(name, Slot::Here(endpoints), before);
        }
    }

    /// EDS has these endpoints, but they cannot be used; those in force stay.
    pub(super) fn fail_endpoints(&mut self, name: Name, why: String, before: &config::Clusters) {
        if !matches!(self.endpoints.get(&name), Some(Slot::Here(_))) {
            self.set_endpoints(name, Slot::Unusable(why), before);
        }
    }

    /// EDS has no such endpoints.
    pub(super) fn lose_endpoints(&mut self, name: Name, why: String, before: &config::Clusters) {
        self.set_endpoints(name, Slot::Unusable(why), before);
    }

    /// Forgets endpoints that no cluster has.
    pub(super) fn purge(&mut self) {
        for name in std::mem::take(&mut self.orphans) {
            if !self.users.contains_key(&name) {
                self.endpoints.remove(&name);
            }
        }
    }

    /// The names of the endpoints that clusters have.
    pub(super) fn wanted(&self) -> impl Iterator<Item = &Name> {
        self.users.keys()
    }

    /// Are other endpoints wanted than when this was asked last?
    pub(super) fn take_rewanted(&mut self) -> bool {
        std::mem::take(&mut self.rewanted)
    }

    /// Is any cluster new or gone, whole or known, since this was asked last?
    pub(super) fn take_moved(&mut self) -> bool {
        std::mem::take(&mut self.moved)
    }

    /// Does CDS have it?
    pub(super) fn is_known(&self, name: &str) -> bool {
        self.known.contains_key(name)
    }

    /// Does one wait for its endpoints, with no previous form to use meanwhile?
    pub(super) fn is_warming(&self) -> bool {
        !self.warming.is_empty()
    }

    /// Those that can be put in force.
    pub(super) fn whole(&self) -> &config::Clusters {
        &self.whole
    }

    fn set_endpoints(&mut self, name: Name, slot: Slot<Arc<Endpoints>>, before: &config::Clusters) {
        match self.users.get(&name).cloned() {
            Some(users) => {
                self.endpoints.insert(name, slot);
                users.iter().for_each(|user| self.settle(user, before));
            }
            None => {
                self.orphans.insert(name.clone());
                self.endpoints.insert(name, slot);
            }
        }
    }

    /// Puts the cluster together from what is known of it.
    fn settle(&mut self, name: &Name, before: &config::Clusters) {
        let whole = match self.known.get(name) {
            None => return,
            Some(Slot::Unusable(why) | Slot::Lost(why)) => {
                Arc::new(Cluster { name: name.clone(), failed: Some(why.clone()), ..Cluster::default() })
            }
            Some(Slot::Here(cluster)) => match eds_name(cluster).map(|endpoints| self.endpoints.get(endpoints)) {
                None => cluster.clone(),
                Some(Some(Slot::Here(endpoints))) if Arc::ptr_eq(&cluster.endpoints, endpoints) => cluster.clone(),
                Some(Some(Slot::Here(endpoints))) => {
                    let whole = Arc::new(Cluster { endpoints: endpoints.clone(), ..Cluster::clone(cluster) });
                    self.known.insert(name.clone(), Slot::Here(whole.clone()));
                    whole
                }
                Some(Some(Slot::Unusable(why) | Slot::Lost(why))) => {
                    let (failed, endpoints) = (Some(why.clone()), Arc::default());
                    Arc::new(Cluster { failed, endpoints, ..Cluster::clone(cluster) })
                }
                Some(None) => match self.whole.get(name).or_else(|| before.get(name)) {
                    Some(old) => old.clone(),
                    None => {
                        self.warming.insert(name.clone());
                        return;
                    }
                },
            },
        };
        self.warming.remove(name);
        if !self.whole.get(name).is_some_and(|old| Arc::ptr_eq(old, &whole) || **old == *whole) {
            self.moved |= self.whole.insert(name.clone(), whole).is_none();
        }
    }

    fn join(&mut self, endpoints: Name, user: &Name) {
        let users = self.users.entry(endpoints).or_default();
        self.rewanted |= users.is_empty();
        users.push(user.clone());
    }

    fn leave(&mut self, endpoints: Name, user: &Name) {
        let Some(users) = self.users.get_mut(&endpoints) else { return };
        users.retain(|known| known != user);
        if users.is_empty() {
            self.users.remove(&endpoints);
            self.orphans.insert(endpoints);
            self.rewanted = true;
        }
    }
}

fn eds_name(cluster: &Cluster) -> Option<&Name> {
    match &cluster.discovery {
        Discovery::Eds(name) => Some(name),
        _ => None,
    }
}
