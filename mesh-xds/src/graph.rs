//! Machine: joins resources into one configuration: listeners with their routes, clusters with their endpoints.
//!
//! What is published is always whole (gRFC A74): every cluster that a route in it names is in it with its endpoints, as
//! far as the control plane has such a cluster. What is not whole yet keeps its previous form: a listener its previous
//! routes until all clusters of the new ones are there (XD12, XD13), a changed cluster its previous endpoints. One that
//! cannot become whole, because a part is missing or refused, goes in as *failed* and holds nothing else up (XD14).
//! Unchanged parts stay the same `Arc`, so that compiling a snapshot costs what has changed.
//!
//! By gRPC's rules everything is asked for by name: the listeners that are dialled or served on, their routes, the clusters
//! those name, their endpoints. Each listener is published as soon as it is whole, or as soon as it is known why it cannot be.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use mesh_core::{
    config::{
        Action, Cluster, Config, DirectResponse, Endpoints, Gateway, HeaderChanges, HttpSettings, Inbound, Local, Name,
        Route, RouteMatch, RouteTable, Serving, Target, VirtualHost,
    },
    time::Time,
};

use crate::{
    ads::{Event, TypeUrl},
    translate::{GatewayPart, Listener, RouteSource, Secret},
};

mod clusters;
mod secrets;
mod serve;
#[cfg(test)]
mod tests;

use clusters::Clusters;
use secrets::Secrets;

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
    /// Of SDS; part of the configuration only where a gateway shows it, or judges by it.
    Secret(Secret),
}

/// Everything known, and the configuration last made of it.
#[derive(Debug, Default)]
pub struct Graph {
    listeners: BTreeMap<Name, Listener>,
    routes: BTreeMap<Name, Slot<Arc<RouteTable>>>,
    clusters: Clusters,
    secrets: Secrets,
    synced: BTreeSet<TypeUrl>,
    /// Clusters that routes name and CDS does not list, since when.
    absent: BTreeMap<Name, Time>,
    /// What was made of which parts, so that it need not be made again.
    named: BTreeMap<Key, Named>,
    served: Served,
    current: Option<Arc<Config>>,
    /// Something has come that may change the configuration; the listeners' part of it.
    stale: bool,
    relisten: bool,
    /// Other routes may be wanted than when that was asked last.
    rewanted: bool,
    /// Who we are, which the control plane does not say.
    local: Local,
    /// Everything is asked for by name.
    by_name: bool,
    /// Listeners that are asked for and cannot be had, and why.
    failing: BTreeMap<Name, String>,
}

/// What has routes of its own: a port, or what is dialled by the name of its listener.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Key {
    Port(u16),
    Target(Name),
}

/// The listeners' part of a configuration.
#[derive(Debug, Default)]
struct Served {
    outbound: BTreeMap<u16, Arc<RouteTable>>,
    http: BTreeMap<u16, Arc<HttpSettings>>,
    targets: BTreeMap<Name, Target>,
    inbound: BTreeMap<u16, Arc<Inbound>>,
    gateways: BTreeMap<u16, Arc<Gateway>>,
    serving: BTreeMap<Name, Arc<Serving>>,
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
    /// Why it cannot be used any more.
    Lost(String),
}

/// A route table and the clusters it names.
type Named = (Arc<RouteTable>, Arc<BTreeSet<Name>>);

impl Graph {
    /// That of a process: who it is becomes part of its configuration.
    pub fn of(local: Local) -> Self {
        Self { local, ..Self::default() }
    }

    /// The same by gRPC's rules: what is asked for by name is all there is.
    pub fn by_name(local: Local) -> Self {
        Self { local, by_name: true, stale: true, ..Self::default() }
    }

    /// These listeners are asked for, by name; what is known of others is forgotten.
    pub fn want_listeners(&mut self, names: &BTreeSet<Name>) {
        let before = self.listeners.len() + self.failing.len();
        self.listeners.retain(|name, _| names.contains(name));
        self.failing.retain(|name, _| names.contains(name));
        if self.listeners.len() + self.failing.len() < before {
            self.stale = true;
            self.listeners_changed();
        }
    }

    /// Takes in what became of a resource.
    pub fn handle_event(&mut self, event: Event<Part>) {
        self.stale = true;
        let current = self.current.clone().unwrap_or_default();
        let before = &current.clusters;
        match event {
            Event::Changed(_, name, Part::Listener(listener)) => {
                self.failing.remove(&name);
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
            Event::Refused(TypeUrl::Listener, name, why) if self.by_name => {
                if !self.listeners.contains_key(&name) {
                    self.fail_listener(name, why);
                }
            }
            Event::Changed(_, name, Part::Secret(secret)) => self.relisten |= self.secrets.put(name, &secret),
            // What was shown is shown on: nobody is turned away because a secret is gone.
            Event::Gone(TypeUrl::Secret, _) => {}
            // A listener that never worked has no port to fail on; the refusal itself tells of it.
            Event::Refused(TypeUrl::Listener | TypeUrl::Secret, ..) => {}
            // None is in force any more (gRFC A88).
            Event::Failed(TypeUrl::Cluster, name, why) => {
                self.clusters.remove(&name);
                self.clusters.fail(name, why, before);
            }
            Event::Failed(TypeUrl::Route, name, why) => self.lose_routes(name, why),
            Event::Failed(TypeUrl::Endpoint, name, why) => self.clusters.lose_endpoints(name, why, before),
            Event::Failed(TypeUrl::Secret, ..) | Event::Ambient(..) => {}
            Event::Failed(TypeUrl::Listener, name, why) if self.by_name => {
                self.listeners.remove(&name);
                self.fail_listener(name, why);
            }
            Event::Gone(TypeUrl::Listener, name) if self.by_name => {
                self.listeners.remove(&name);
                let why = missing(TypeUrl::Listener, &name);
                self.fail_listener(name, why);
            }
            Event::Gone(TypeUrl::Listener, name) | Event::Failed(TypeUrl::Listener, name, _) => {
                self.listeners.remove(&name);
                self.listeners_changed();
            }
            Event::Gone(TypeUrl::Cluster, name) => {
                self.clusters.remove(&name);
                if self.by_name {
                    let why = missing(TypeUrl::Cluster, &name);
                    self.clusters.fail(name, why, before);
                }
            }
            Event::Gone(kind, name) => {
                let why = missing(kind, &name);
                if kind == TypeUrl::Route {
                    self.lose_routes(name, why);
                } else {
                    self.clusters.lose_endpoints(name, why, before);
                }
            }
            Event::Synced(kind) => {
                self.synced.insert(kind);
            }
        }
    }

    /// Routes that were in force are in force no more; routes that never were leave the previous ones where they are.
    fn lose_routes(&mut self, name: Name, why: String) {
        let was = matches!(self.routes.get(&name), Some(Slot::Here(_) | Slot::Lost(_)));
        self.routes.insert(name, if was { Slot::Lost(why) } else { Slot::Unusable(why) });
        self.relisten = true;
    }

    fn fail_listener(&mut self, name: Name, why: String) {
        self.failing.insert(name, format!("{why} (node {:?})", self.local.id));
        self.listeners_changed();
    }

    /// The names of RDS or EDS resources that listeners or clusters refer to; by gRPC's rules those of clusters, too.
    pub fn wanted(&self, kind: TypeUrl) -> BTreeSet<Name> {
        match kind {
            TypeUrl::Route => self.listeners.values().flat_map(route_names).cloned().collect(),
            TypeUrl::Cluster if self.by_name => self.closure(),
            TypeUrl::Endpoint => self.clusters.wanted().cloned().collect(),
            TypeUrl::Secret => self.listeners.values().flat_map(secrets::names).cloned().collect(),
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
        if self.current.is_none() && !self.by_name && (!synced || self.clusters.is_warming()) {
            return None;
        }
        if self.by_name {
            let wanted = self.closure();
            self.clusters.retain(&wanted);
        }
        let previous = self.current.clone().unwrap_or_default();
        // What listeners can serve depends on which clusters there are, and not on what is in them.
        if self.clusters.take_moved() | std::mem::take(&mut self.relisten) {
            let routes = self.wanted(TypeUrl::Route);
            self.routes.retain(|name, _| routes.contains(name));
            self.secrets.retain(&self.wanted(TypeUrl::Secret));
            self.served = self.serve(&previous, now);
        }
        if self.current.is_none() && !self.by_name && self.served.waiting {
            return None;
        }
        let mut clusters = self.clusters.whole().clone();
        clusters.extend(self.served.kept.iter().map(|(name, cluster)| (name.clone(), cluster.clone())));
        let Served { outbound, http, targets, inbound, gateways, serving, .. } = &self.served;
        let next = Config {
            outbound: outbound.clone(),
            http: http.clone(),
            targets: targets.clone(),
            inbound: inbound.clone(),
            gateways: gateways.clone(),
            serving: serving.clone(),
            local: self.local.clone(),
            clusters,
        };
        if self.current.as_ref().is_some_and(|current| is_same(current, &next)) {
            return None;
        }
        let next = Arc::new(next);
        self.current = Some(next.clone());
        // With routes replaced, clusters may be there that nobody wants any more.
        self.stale = self.by_name;
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
}

/// What is said of a resource that was asked for in vain.
fn missing(kind: TypeUrl, name: &str) -> String {
    format!("{kind} {name:?}: the control plane has no such resource")
}

fn route_names(listener: &Listener) -> impl Iterator<Item = &Name> {
    let (sources, parts): (&[RouteSource], &[GatewayPart]) = match listener {
        Listener::Outbound { routes, .. } | Listener::Target { routes, .. } => (std::slice::from_ref(routes), &[]),
        Listener::Server(server) => (server.routes.as_slice(), &[]),
        Listener::Gateway(gateway) => (&[], gateway.parts.as_slice()),
        Listener::Inbound(_) | Listener::Ignored(_) => (&[], &[]),
    };
    let of_parts = parts.iter().filter_map(|part| part.http.as_ref().map(|(source, _)| source));
    sources.iter().chain(of_parts).filter_map(|source| match source {
        RouteSource::Rds(name) => Some(name),
        RouteSource::Inline(_) => None,
    })
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
    same(&a.outbound, &b.outbound)
        && same(&a.http, &b.http)
        && same(&a.inbound, &b.inbound)
        && same(&a.gateways, &b.gateways)
        && (a.targets == b.targets && a.serving == b.serving)
        && a.clusters == b.clusters
}
