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
        Action, Cluster, Config, DirectResponse, Endpoints, HeaderChanges, HttpSettings, Inbound, Local, Name, Route,
        RouteMatch, RouteTable, VirtualHost,
    },
    time::Time,
};

use crate::{
    ads::{Event, TypeUrl},
    translate::{Listener, RouteSource},
};

mod clusters;
#[cfg(test)]
mod tests;

use clusters::Clusters;

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
    clusters: Clusters,
    synced: BTreeSet<TypeUrl>,
    /// Clusters that routes name and CDS does not list, since when.
    absent: BTreeMap<Name, Time>,
    /// What was made of which parts, so that it need not be made again.
    named: BTreeMap<u16, Named>,
    served: Served,
    current: Option<Arc<Config>>,
    /// Something has come that may change the configuration; the listeners' part of it.
    stale: bool,
    relisten: bool,
    /// Other routes may be wanted than when that was asked last.
    rewanted: bool,
    /// Who we are, which the control plane does not say.
    local: Local,
}

/// The listeners' part of a configuration.
#[derive(Debug, Default)]
struct Served {
    outbound: BTreeMap<u16, Arc<RouteTable>>,
    http: BTreeMap<u16, Arc<HttpSettings>>,
    inbound: BTreeMap<u16, Arc<Inbound>>,
    /// Clusters that CDS has no more and routes in force still name.
    kept: BTreeMap<Name, Arc<Cluster>>,
    /// Routes are still to come.
    waiting: bool,
}

/// What is known of a resource that somebody wants; nothing yet when there is no slot.
#[derive(Debug)]
enum Slot<T> {
    Here(T),
    /// Why it cannot be used.
    Unusable(String),
}

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
        let current = self.current.clone().unwrap_or_default();
        let before = &current.clusters;
        match event {
            Event::Changed(_, name, Part::Listener(listener)) => {
                self.listeners.insert(name, listener);
                self.listeners_changed();
            }
            Event::Changed(_, name, Part::Route(table)) => {
                // Equal content keeps its `Arc` (XD15).
                if !matches!(self.routes.get(&name), Some(Slot::Here(old)) if *old == table) {
                    self.routes.insert(name, Slot::Here(table));
                    self.relisten = true;
                }
            }
            Event::Changed(_, name, Part::Cluster(cluster)) => self.clusters.put(name, cluster, before),
            Event::Changed(_, name, Part::Endpoints(endpoints)) => self.clusters.put_endpoints(name, endpoints, before),
            Event::Refused(TypeUrl::Route, name, why) => {
                self.routes.entry(name).or_insert(Slot::Unusable(why));
                self.relisten = true;
            }
            Event::Refused(TypeUrl::Cluster, name, why) => self.clusters.fail(name, why, before),
            Event::Refused(TypeUrl::Endpoint, name, why) => self.clusters.fail_endpoints(name, why, before),
            // A listener that never worked has no port to fail on; the refusal itself tells of it.
            Event::Refused(TypeUrl::Listener | TypeUrl::Secret, ..) => {}
            // None is in force any more (gRFC A88).
            Event::Failed(TypeUrl::Cluster, name, why) => {
                self.clusters.remove(&name);
                self.clusters.fail(name, why, before);
            }
            Event::Failed(TypeUrl::Route, name, why) => {
                self.routes.insert(name, Slot::Unusable(why));
                self.relisten = true;
            }
            Event::Failed(TypeUrl::Endpoint, name, why) => self.clusters.lose_endpoints(name, why, before),
            Event::Failed(TypeUrl::Secret, ..) | Event::Ambient(..) => {}
            Event::Gone(TypeUrl::Listener, name) | Event::Failed(TypeUrl::Listener, name, _) => {
                self.listeners.remove(&name);
                self.listeners_changed();
            }
            Event::Gone(TypeUrl::Cluster, name) => self.clusters.remove(&name),
            Event::Gone(kind, name) => {
                let why = format!("{kind} {name:?}: the control plane has no such resource");
                if kind == TypeUrl::Route {
                    self.routes.insert(name, Slot::Unusable(why));
                    self.relisten = true;
                } else {
                    self.clusters.lose_endpoints(name, why, before);
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
            TypeUrl::Endpoint => self.clusters.wanted().cloned().collect(),
            _ => BTreeSet::new(),
        }
    }

    /// The same, when it may be other names than at the last call: a list of ten thousand names is not made in vain.
    pub fn poll_wanted(&mut self, kind: TypeUrl) -> Option<BTreeSet<Name>> {
        let rewanted = match kind {
            TypeUrl::Route => std::mem::take(&mut self.rewanted),
            TypeUrl::Endpoint => self.clusters.take_rewanted(),
            _ => false,
        };
        rewanted.then(|| self.wanted(kind))
    }

    /// The configuration, when it has become another. The first waits until nothing is missing.
    pub fn poll_config(&mut self, now: Time) -> Option<Arc<Config>> {
        if !std::mem::take(&mut self.stale) {
            return None;
        }
        self.clusters.purge();
        let synced = [TypeUrl::Listener, TypeUrl::Cluster].iter().all(|kind| self.synced.contains(kind));
        if self.current.is_none() && (!synced || self.clusters.is_warming()) {
            return None;
        }
        let previous = self.current.clone().unwrap_or_default();
        // What listeners can serve depends on which clusters there are, and not on what is in them.
        if self.clusters.take_moved() | std::mem::take(&mut self.relisten) {
            let routes = self.wanted(TypeUrl::Route);
            self.routes.retain(|name, _| routes.contains(name));
            self.served = self.serve(&previous, now);
        }
        if self.current.is_none() && self.served.waiting {
            return None;
        }
        let mut clusters = self.clusters.whole().clone();
        clusters.extend(self.served.kept.iter().map(|(name, cluster)| (name.clone(), cluster.clone())));
        let Served { outbound, http, inbound, .. } = &self.served;
        let next = Config {
            outbound: outbound.clone(),
            http: http.clone(),
            inbound: inbound.clone(),
            local: self.local.clone(),
            clusters,
        };
        if self.current.as_ref().is_some_and(|current| is_same(current, &next)) {
            return None;
        }
        let next = Arc::new(next);
        self.current = Some(next.clone());
        Some(next)
    }

    /// Makes `poll_config` look again, since time alone can change its answer.
    pub fn handle_timeout(&mut self, now: Time) {
        if self.absent.values().any(|since| *since + GRACE <= now) {
            (self.stale, self.relisten) = (true, true);
        }
    }

    /// When `handle_timeout` should be called next.
    pub fn next_timeout(&self, now: Time) -> Option<Time> {
        self.absent.values().map(|since| *since + GRACE).filter(|end| *end > now).min()
    }

    fn listeners_changed(&mut self) {
        (self.relisten, self.rewanted) = (true, true);
    }

    /// Every listener that is whole, or its previous form.
    fn serve(&mut self, previous: &Config, now: Time) -> Served {
        let mut served = Served::default();
        let mut absent = BTreeMap::new();
        let mut named = BTreeMap::new();
        for listener in self.listeners.values() {
            let (port, source, settings) = match listener {
                Listener::Outbound { port, routes, settings } => (*port, routes, settings),
                Listener::Inbound(ports) => {
                    for (port, inbound) in ports {
                        served.inbound.insert(*port, share(previous.inbound.get(port), inbound.clone()));
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
                        served.waiting = true;
                        continue;
                    }
                },
            };
            let clusters = clusters_of(self.named.get(&port), &table);
            let is_old = old.is_some_and(|old| Arc::ptr_eq(old, &table) || old == &table);
            let mut held = false;
            let whole = self.clusters.whole();
            for name in clusters.iter().filter(|name| !whole.contains_key(*name) && !served.kept.contains_key(*name)) {
                if self.clusters.is_known(name) {
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
                if let Some(old) = previous.clusters.get(name).filter(|_| kept && !whole.contains_key(name)) {
                    served.kept.entry(name.clone()).or_insert_with(|| old.clone());
                }
            }
            named.insert(port, (table.clone(), clusters));
            served.outbound.insert(port, table);
            if **settings != HttpSettings::default() {
                served.http.insert(port, share(previous.http.get(&port), settings.clone()));
            }
        }
        self.absent = absent;
        self.named = named;
        served
    }
}

fn route_name(listener: &Listener) -> Option<&Name> {
    match listener {
        Listener::Outbound { routes: RouteSource::Rds(name), .. } => Some(name),
        _ => None,
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

/// The same parts; clusters are looked into only where their map has changed.
fn is_same(a: &Config, b: &Config) -> bool {
    fn same<T>(a: &BTreeMap<u16, Arc<T>>, b: &BTreeMap<u16, Arc<T>>) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|((k, v), (l, w))| k == l && Arc::ptr_eq(v, w))
    }
    same(&a.outbound, &b.outbound) && same(&a.http, &b.http) && same(&a.inbound, &b.inbound) && a.clusters == b.clusters
}
