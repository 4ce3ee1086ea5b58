//! Machine: joins resources into one configuration: listeners with their routes, clusters with their endpoints.
//!
//! What is published is always whole (gRFC A74): every cluster that a route in it names is in it with its endpoints, as
//! far as the control plane has such a cluster. What is not whole yet keeps its previous form: a listener its previous
//! routes until all clusters of the new ones are there (XD12, XD13), a changed cluster its previous endpoints. One that
//! cannot become whole, because a part is missing or refused, goes in as *failed* and holds nothing else up (XD14).
//! Unchanged parts stay the same `Arc`, so that compiling a snapshot costs what has changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use mesh_core::{
    config::{
        Action, Cluster, Config, DirectResponse, Discovery, Endpoints, HeaderChanges, HttpSettings, Local, Name, Route,
        RouteMatch, RouteTable, VirtualHost,
    },
    time::Time,
};

use crate::{
    ads::{TypeUrl, sotw::Event},
    translate::{Listener, RouteSource},
};

#[cfg(test)]
mod tests;

/// How long routes may name a cluster that CDS does not list before that is believed.
///
/// Within this time a cluster that was removed stays as long as routes in force name it, and new routes wait for it: a
/// push that removes a cluster before the routes to it, or brings routes before their cluster, is then no tear (XD12).
/// After it the route answers 503 with flag `NC`, as Envoy does.
pub const GRACE: Duration = Duration::from_secs(1);

/// A decoded resource.
#[derive(Clone, Debug)]
pub enum Part {
    /// Of LDS.
    Listener(Listener),
    /// Of RDS.
    Route(Arc<RouteTable>),
    /// Of CDS; its endpoints are empty unless they are part of it.
    Cluster(Arc<Cluster>),
    /// Of EDS.
    Endpoints(Arc<Endpoints>),
}

/// Everything known, and the configuration last made of it.
#[derive(Debug, Default)]
pub struct Graph {
    listeners: BTreeMap<Name, Listener>,
    routes: BTreeMap<Name, Slot<Arc<RouteTable>>>,
    clusters: BTreeMap<Name, Slot<Arc<Cluster>>>,
    endpoints: BTreeMap<Name, Slot<Arc<Endpoints>>>,
    synced: BTreeSet<TypeUrl>,
    /// Clusters that routes name and CDS does not list, since when.
    absent: BTreeMap<Name, Time>,
    /// What was made of which parts, so that it need not be made again.
    merged: BTreeMap<Name, Merged>,
    named: BTreeMap<u16, Named>,
    current: Option<Arc<Config>>,
    stale: bool,
    /// Who we are, which the control plane does not say.
    local: Local,
}

/// What is known of a resource that somebody wants; nothing yet when there is no slot.
#[derive(Debug)]
enum Slot<T> {
    Here(T),
    /// Why it cannot be used.
    Unusable(String),
}

/// A cluster as CDS has it, its endpoints, and both together.
type Merged = (Arc<Cluster>, Arc<Endpoints>, Arc<Cluster>);

/// A route table and the clusters it names.
type Named = (Arc<RouteTable>, Arc<BTreeSet<Name>>);

impl Graph {
    /// That of a process: who it is becomes part of its configuration.
    pub fn of(local: Local) -> Self {
        Self { local, ..Self::default() }
    }

    /// Takes in what became of a resource.
    pub fn handle_event(&mut self, event: Event<Part>) {
        self.stale = true;
        match event {
            Event::Changed(_, name, part) => self.put(name, part),
            Event::Refused(kind, name, why) => self.fail(kind, name, why),
            Event::Gone(TypeUrl::Listener, name) => {
                self.listeners.remove(&name);
            }
            Event::Gone(TypeUrl::Cluster, name) => {
                self.clusters.remove(&name);
            }
            Event::Gone(kind, name) => {
                let why = format!("{kind} {name:?}: the control plane has no such resource");
                match kind {
                    TypeUrl::Route => drop(self.routes.insert(name, Slot::Unusable(why))),
                    _ => drop(self.endpoints.insert(name, Slot::Unusable(why))),
                }
            }
            Event::Synced(kind) => {
                self.synced.insert(kind);
            }
        }
    }

    /// The names of RDS or EDS resources that listeners or clusters refer to.
    pub fn wanted(&self, kind: TypeUrl) -> BTreeSet<Name> {
        match kind {
            TypeUrl::Route => self.listeners.values().filter_map(route_name).cloned().collect(),
            TypeUrl::Endpoint => self.clusters.values().filter_map(endpoints_name).cloned().collect(),
            _ => BTreeSet::new(),
        }
    }

    /// The configuration, when it has become another. The first waits until nothing is missing.
    pub fn poll_config(&mut self, now: Time) -> Option<Arc<Config>> {
        if !std::mem::take(&mut self.stale) {
            return None;
        }
        let routes = self.wanted(TypeUrl::Route);
        self.routes.retain(|name, _| routes.contains(name));
        let endpoints = self.wanted(TypeUrl::Endpoint);
        self.endpoints.retain(|name, _| endpoints.contains(name));
        let previous = self.current.clone().unwrap_or_default();
        let mut next = Config { local: self.local.clone(), ..Config::default() };
        let warming = self.add_clusters(&previous, &mut next);
        let waiting = self.add_listeners(&previous, &mut next, now);
        let synced = [TypeUrl::Listener, TypeUrl::Cluster].iter().all(|kind| self.synced.contains(kind));
        if self.current.is_none() && (!synced || warming || waiting) {
            return None;
        }
        if self.current.as_ref().is_some_and(|current| is_same(current, &next)) {
            return None;
        }
        let next = Arc::new(next);
        self.current = Some(next.clone());
        Some(next)
    }

    /// Makes `poll_config` look again, since time alone can change its answer.
    pub fn handle_timeout(&mut self, now: Time) {
        self.stale |= self.absent.values().any(|since| *since + GRACE <= now);
    }

    /// When `handle_timeout` should be called next.
    pub fn next_timeout(&self, now: Time) -> Option<Time> {
        self.absent.values().map(|since| *since + GRACE).filter(|end| *end > now).min()
    }

    fn put(&mut self, name: Name, part: Part) {
        match part {
            Part::Listener(listener) => drop(self.listeners.insert(name, listener)),
            Part::Route(table) => put(&mut self.routes, name, table),
            Part::Cluster(cluster) => put(&mut self.clusters, name, cluster),
            Part::Endpoints(endpoints) => put(&mut self.endpoints, name, endpoints),
        }
    }

    /// A resource was refused: one in force stays, a new one is unusable.
    fn fail(&mut self, kind: TypeUrl, name: Name, why: String) {
        match kind {
            TypeUrl::Route => fail(&mut self.routes, name, why),
            TypeUrl::Cluster => fail(&mut self.clusters, name, why),
            TypeUrl::Endpoint => fail(&mut self.endpoints, name, why),
            // A listener that never worked has no port to fail on; the refusal itself tells of it.
            TypeUrl::Listener | TypeUrl::Secret => {}
        }
    }

    /// Adds every cluster that is whole; says whether one is not and has no previous form either.
    fn add_clusters(&mut self, previous: &Config, next: &mut Config) -> bool {
        let mut warming = false;
        let mut merged = BTreeMap::new();
        for (name, slot) in &self.clusters {
            let cluster = match slot {
                Slot::Here(cluster) => cluster,
                Slot::Unusable(why) => {
                    let failed = Cluster { name: name.clone(), failed: Some(why.clone()), ..Cluster::default() };
                    next.clusters.insert(name.clone(), share(previous.clusters.get(name), Arc::new(failed)));
                    continue;
                }
            };
            let whole = match endpoints_name(slot).map(|name| self.endpoints.get(name)) {
                None => cluster.clone(),
                Some(Some(Slot::Here(endpoints))) => {
                    let entry = merge(self.merged.remove(name), cluster, endpoints);
                    let whole = entry.2.clone();
                    merged.insert(name.clone(), entry);
                    whole
                }
                Some(Some(Slot::Unusable(why))) => {
                    let failed = Cluster { failed: Some(why.clone()), ..Cluster::clone(cluster) };
                    share(previous.clusters.get(name), Arc::new(failed))
                }
                Some(None) => match previous.clusters.get(name) {
                    Some(old) => old.clone(),
                    None => {
                        warming = true;
                        continue;
                    }
                },
            };
            next.clusters.insert(name.clone(), whole);
        }
        self.merged = merged;
        warming
    }

    /// Adds every listener that is whole, or its previous form; says whether routes are still to come.
    fn add_listeners(&mut self, previous: &Config, next: &mut Config, now: Time) -> bool {
        let mut waiting = false;
        let mut absent = BTreeMap::new();
        let mut named = BTreeMap::new();
        for listener in self.listeners.values() {
            let (port, source, settings) = match listener {
                Listener::Outbound { port, routes, settings } => (*port, routes, settings),
                Listener::Inbound(ports) => {
                    for (port, inbound) in ports {
                        next.inbound.insert(*port, share(previous.inbound.get(port), inbound.clone()));
                    }
                    continue;
                }
                Listener::Ignored(_) => continue,
            };
            let old = previous.outbound.get(&port);
            let table = match source {
                RouteSource::Inline(table) => table.clone(),
                RouteSource::Rds(name) => match (self.routes.get(name), old) {
                    (Some(Slot::Here(table)), _) => table.clone(),
                    (_, Some(old)) => old.clone(),
                    (Some(Slot::Unusable(why)), None) => Arc::new(unavailable(name, why)),
                    (None, None) => {
                        waiting = true;
                        continue;
                    }
                },
            };
            let clusters = clusters_of(self.named.get(&port), &table);
            let is_old = old.is_some_and(|old| Arc::ptr_eq(old, &table) || old == &table);
            let mut held = false;
            for name in clusters.iter().filter(|name| !next.clusters.contains_key(*name)) {
                if self.clusters.contains_key(name) {
                    // Its endpoints are on the way; the timer of the request for them bounds the wait.
                    held |= !is_old;
                    continue;
                }
                let since = *self.absent.get(name).unwrap_or(&now);
                absent.insert(name.clone(), since);
                held |= !is_old && now.saturating_since(since) < GRACE;
            }
            // Without a previous configuration there is nothing to wait in: what CDS does not list, it does not have.
            let (table, clusters) = match old {
                Some(old) if held => (old.clone(), clusters_of(None, old)),
                Some(old) if is_old => (old.clone(), clusters),
                None if held && self.current.is_some() => continue,
                _ => (table, clusters),
            };
            // Routes in force keep the clusters they name: a held table for as long as it is held, others for the grace.
            for name in clusters.iter() {
                let kept = held || absent.get(name).is_some_and(|since| now.saturating_since(*since) < GRACE);
                if let Some(old) = previous.clusters.get(name).filter(|_| kept && !next.clusters.contains_key(name)) {
                    next.clusters.insert(name.clone(), old.clone());
                }
            }
            named.insert(port, (table.clone(), clusters));
            next.outbound.insert(port, table);
            if **settings != HttpSettings::default() {
                next.http.insert(port, share(previous.http.get(&port), settings.clone()));
            }
        }
        self.absent = absent;
        self.named = named;
        waiting
    }
}

/// Equal content keeps its `Arc` (XD15).
fn put<T: PartialEq>(slots: &mut BTreeMap<Name, Slot<Arc<T>>>, name: Name, new: Arc<T>) {
    match slots.get(&name) {
        Some(Slot::Here(old)) if *old == new => {}
        _ => drop(slots.insert(name, Slot::Here(new))),
    }
}

fn fail<T>(slots: &mut BTreeMap<Name, Slot<T>>, name: Name, why: String) {
    if !matches!(slots.get(&name), Some(Slot::Here(_))) {
        slots.insert(name, Slot::Unusable(why));
    }
}

fn route_name(listener: &Listener) -> Option<&Name> {
    match listener {
        Listener::Outbound { routes: RouteSource::Rds(name), .. } => Some(name),
        _ => None,
    }
}

fn endpoints_name(slot: &Slot<Arc<Cluster>>) -> Option<&Name> {
    match slot {
        Slot::Here(cluster) => match &cluster.discovery {
            Discovery::Eds(name) => Some(name),
            _ => None,
        },
        Slot::Unusable(_) => None,
    }
}

fn merge(before: Option<Merged>, cluster: &Arc<Cluster>, endpoints: &Arc<Endpoints>) -> Merged {
    match before {
        Some(before) if Arc::ptr_eq(&before.0, cluster) && Arc::ptr_eq(&before.1, endpoints) => before,
        _ => {
            let whole = Cluster { endpoints: endpoints.clone(), ..Cluster::clone(cluster) };
            (cluster.clone(), endpoints.clone(), Arc::new(whole))
        }
    }
}

fn share<T: PartialEq>(old: Option<&Arc<T>>, new: Arc<T>) -> Arc<T> {
    match old {
        Some(old) if *old == new => old.clone(),
        _ => new,
    }
}

fn clusters_of(before: Option<&Named>, table: &Arc<RouteTable>) -> Arc<BTreeSet<Name>> {
    if let Some((_, clusters)) = before.filter(|(before, _)| Arc::ptr_eq(before, table)) {
        return clusters.clone();
    }
    let routes = table.virtual_hosts.iter().flat_map(|host| &host.routes);
    let splits = routes.filter_map(|route| match &route.action {
        Action::Forward(forward) => Some(&forward.clusters),
        _ => None,
    });
    Arc::new(splits.flatten().map(|split| split.cluster.clone()).collect())
}

/// Routes that cannot be had: every request is answered 503, and says why.
fn unavailable(name: &Name, why: &str) -> RouteTable {
    let route = Route {
        name: Name::default(),
        origin: None,
        matches: RouteMatch::default(),
        action: Action::DirectResponse(DirectResponse { status: 503, body: why.to_owned() }),
        fault: None,
        headers: HeaderChanges::default(),
        operation: None,
    };
    let host = VirtualHost {
        name: "unavailable".into(),
        domains: vec!["*".to_owned()],
        routes: vec![route],
        ..VirtualHost::default()
    };
    RouteTable { name: name.clone(), virtual_hosts: vec![Arc::new(host)], ..RouteTable::default() }
}

/// The same parts, without looking into them.
fn is_same(a: &Config, b: &Config) -> bool {
    fn same<K: Ord, T>(a: &BTreeMap<K, Arc<T>>, b: &BTreeMap<K, Arc<T>>) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|((k, v), (l, w))| k == l && Arc::ptr_eq(v, w))
    }
    let clusters = |a: &Arc<Cluster>, b: &Arc<Cluster>| a.name == b.name && Arc::ptr_eq(a, b);
    same(&a.outbound, &b.outbound)
        && same(&a.inbound, &b.inbound)
        && a.clusters.len() == b.clusters.len()
        && a.clusters.values().zip(b.clusters.values()).all(|(a, b)| clusters(a, b))
}
