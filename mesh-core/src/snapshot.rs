//! The configuration compiled for reading: what every request looks at, one immutable value swapped whole.
//!
//! Compiling takes over from the previous snapshot what did not change, by pointer first, and the live cells of what did,
//! so it costs what changed. No reader ever sees a route to a cluster of another version (gRFC A74).

use std::{collections::BTreeMap, sync::Arc};

use hashbrown::HashTable;
use rand::RngCore;

use crate::{
    cluster::{Cluster, Remains},
    config::{self, Config, Name},
    error::{CompileError, NoRoute},
    fault::FaultDecision,
    hash::Found,
    plan::{Plan, Target},
    request::RequestView,
    route::{self, Destination, Kind, RouteTable, name_hash},
};

/// A configuration compiled for reading.
#[derive(Debug)]
pub struct Snapshot {
    /// What servers demand, as configured. The rest of the configuration is in what was compiled of it, so that taking
    /// over an unchanged cluster copies one pointer.
    servers: BTreeMap<u16, Arc<config::Inbound>>,
    pub(crate) outbound: BTreeMap<u16, Arc<RouteTable>>,
    pub(crate) inbound: BTreeMap<u16, Arc<RouteTable>>,
    /// In the order of their names.
    clusters: Vec<Arc<Cluster>>,
    /// Places in `clusters` by hash of the name; shared as long as the names stay.
    index: Arc<HashTable<u32>>,
    /// Clusters that left while requests were under way, to be found again should they return.
    departed: Vec<(Name, Remains)>,
}

impl Snapshot {
    /// Without any configuration: no request finds a route.
    pub fn empty() -> Self {
        Self {
            servers: BTreeMap::new(),
            outbound: BTreeMap::new(),
            inbound: BTreeMap::new(),
            clusters: Vec::new(),
            index: Arc::default(),
            departed: Vec::new(),
        }
    }

    /// Compiles a configuration, sharing with the previous snapshot what did not change. On an error the previous one
    /// stays good.
    pub fn compile(config: &Config, previous: Option<&Self>) -> Result<Self, CompileError> {
        let empty = Self::empty();
        let previous = previous.unwrap_or(&empty);
        let mut outbound = BTreeMap::new();
        for (port, table) in &config.outbound {
            let settings = config.http.get(port);
            outbound.insert(*port, compile_table(table, settings, previous.outbound.get(port))?);
        }
        let mut inbound = BTreeMap::new();
        for (port, server) in &config.inbound {
            inbound.insert(*port, compile_table(&server.routes, None, previous.inbound.get(port))?);
        }
        let (clusters, departed) = compile_clusters(config, previous);
        let index = match same_names(&clusters, &previous.clusters) {
            true => Arc::clone(&previous.index),
            false => Arc::new(index(&clusters)),
        };
        Ok(Self { servers: config.inbound.clone(), outbound, inbound, clusters, index, departed })
    }

    /// Decides one outbound request. Allocates nothing; draws from `rng` for shares, weights and faults.
    pub fn plan(&self, view: &RequestView<'_>, rng: &mut impl RngCore) -> Result<Plan, NoRoute> {
        let table = self.outbound.get(&view.port).ok_or(NoRoute::Port(view.port))?;
        let rule = table.find(view, rng.next_u64())?;
        Ok(self.plan_rule(rule, view, rng))
    }

    pub(crate) fn plan_rule(&self, rule: &route::Rule, view: &RequestView<'_>, rng: &mut impl RngCore) -> Plan {
        let found = match rule.policy.hash.is_empty() {
            true => Found::default(),
            false => rule.policy.hash.find(view, rng.next_u64()),
        };
        let mut choice = None;
        let target = match rule.kind {
            Kind::Redirect => Target::Redirect,
            Kind::Respond => Target::Respond,
            Kind::Inbound => Target::Inbound,
            Kind::Forward => match rule.policy.split.choose(view.headers, found.hash, rng.next_u64()) {
                None => Target::NoCluster(Name::default()),
                Some((drawn, destination)) => {
                    choice = Some(drawn);
                    self.target(destination, view)
                }
            },
        };
        let own_fault = choice.and_then(|at| rule.policy.split.destinations().get(at as usize)?.fault.as_deref());
        let fault = own_fault
            .or(rule.fault.as_ref())
            .map_or(FaultDecision::NONE, |fault| fault.draw(view, name_of(&target), rng));
        let mut mirrored = 0;
        for (at, mirror) in rule.policy.mirrors.iter().enumerate() {
            mirrored |= u32::from(mirror.hit(rng.next_u64())) << at;
        }
        let Found { hash, fresh } = found;
        Plan { route: Arc::clone(&rule.policy), target, fault, is_grpc: view.is_grpc(), hash, fresh, choice, mirrored }
    }

    fn target(&self, destination: &Destination, view: &RequestView<'_>) -> Target {
        let found = match &destination.header {
            None => self.find(destination.hash, &destination.cluster).ok_or_else(|| Name::clone(&destination.cluster)),
            Some(header) => {
                let name = view.headers.get(header).and_then(|name| name.to_str().ok()).unwrap_or("");
                self.cluster(name).ok_or_else(|| name.into())
            }
        };
        match found {
            Ok(cluster) => Target::Cluster(Arc::clone(cluster)),
            Err(name) => Target::NoCluster(name),
        }
    }

    /// A cluster by name.
    pub fn cluster(&self, name: &str) -> Option<&Arc<Cluster>> {
        self.find(name_hash(name), name)
    }

    /// All clusters, in the order of their names.
    pub fn clusters(&self) -> impl ExactSizeIterator<Item = &Arc<Cluster>> {
        self.clusters.iter()
    }

    /// What the server on this port demands of its callers.
    pub fn inbound(&self, port: u16) -> Option<&Arc<config::Inbound>> {
        self.servers.get(&port)
    }

    /// What it was compiled from, put together again.
    pub fn config(&self) -> Config {
        let clusters = self.clusters.iter().map(|cluster| (Name::clone(cluster.name()), Arc::clone(cluster.config())));
        Config {
            outbound: self.outbound.iter().map(|(port, table)| (*port, Arc::clone(&table.config))).collect(),
            http: self.outbound.iter().filter_map(|(port, table)| Some((*port, table.settings.clone()?))).collect(),
            inbound: self.servers.clone(),
            clusters: clusters.collect(),
        }
    }

    fn find(&self, hash: u64, name: &str) -> Option<&Arc<Cluster>> {
        let is_it = |at: &u32| self.clusters.get(*at as usize).is_some_and(|cluster| **cluster.name() == *name);
        self.index.find(hash, is_it).and_then(|at| self.clusters.get(*at as usize))
    }
}

impl Default for Snapshot {
    fn default() -> Self {
        Self::empty()
    }
}

/// The cluster a request goes to, whether it is there or not.
fn name_of(target: &Target) -> &str {
    match target {
        Target::Cluster(cluster) => cluster.name(),
        Target::NoCluster(name) => name,
        _ => "",
    }
}

fn compile_table(
    table: &Arc<config::RouteTable>,
    settings: Option<&Arc<config::HttpSettings>>,
    previous: Option<&Arc<RouteTable>>,
) -> Result<Arc<RouteTable>, CompileError> {
    let same_settings = |previous: &RouteTable| previous.settings.as_ref() == settings;
    match previous {
        Some(previous)
            if same_settings(previous) && (Arc::ptr_eq(&previous.config, table) || previous.config == *table) =>
        {
            Ok(Arc::clone(previous))
        }
        previous => RouteTable::compile(table, settings, previous.map(|previous| &**previous)).map(Arc::new),
    }
}

type Departed = Vec<(Name, Remains)>;

/// Walks old and new clusters in the order of their names, so that an unchanged one costs a comparison of pointers.
fn compile_clusters(config: &Config, previous: &Snapshot) -> (Vec<Arc<Cluster>>, Departed) {
    let mut departed: Departed = previous.departed.iter().filter(|(_, remains)| !remains.is_gone()).cloned().collect();
    let mut old = previous.clusters.iter().peekable();
    let mut clusters = Vec::with_capacity(config.clusters.len());
    for (name, cluster) in &config.clusters {
        while let Some(gone) = old.next_if(|old| *old.name() < *name) {
            departed.push((Name::clone(gone.name()), gone.remains()));
        }
        let before = old.next_if(|old| *old.name() == *name);
        if let Some(same) = before.filter(|old| Arc::ptr_eq(old.config(), cluster) || old.config() == cluster) {
            clusters.push(Arc::clone(same));
            continue;
        }
        let returned = departed.iter().position(|(of, _)| of == name).map(|at| departed.swap_remove(at).1);
        clusters.push(Arc::new(match returned {
            Some(remains) => Cluster::returned(cluster, remains),
            None => Cluster::compile(cluster, before.map(|old| &**old)),
        }));
    }
    departed.extend(old.map(|gone| (Name::clone(gone.name()), gone.remains())));
    (clusters, departed)
}

fn same_names(a: &[Arc<Cluster>], b: &[Arc<Cluster>]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Arc::ptr_eq(a.name(), b.name()) || a.name() == b.name())
}

fn index(clusters: &[Arc<Cluster>]) -> HashTable<u32> {
    let mut index = HashTable::with_capacity(clusters.len());
    for (at, cluster) in clusters.iter().enumerate() {
        index.insert_unique(cluster.hash, at as u32, |at| clusters[*at as usize].hash);
    }
    index
}

#[cfg(test)]
mod tests;
