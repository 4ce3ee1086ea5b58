//! The half of the graph that joins listeners with their routes, and holds new routes back until their clusters are there.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh_core::{
    config::{Config, Discovery, Gateway, GatewayTo, HttpSettings, Name, RouteTable, Serving, Target},
    time::Time,
};

use super::{GRACE, Graph, Key, Served, Slot, clusters_of, share, unavailable};
use crate::translate::{
    Listener, RouteSource, ServerListener,
    route::{Side, on_side},
};

/// How deep clusters of clusters may be. Source: gRFC A37.
const DEPTH: usize = 16;

/// What no route takes is unavailable, not missing. Source: gRFC A36.
fn closed(table: Arc<RouteTable>) -> Arc<RouteTable> {
    let rest = unavailable(&table.name, "no route of this server takes the request");
    let route = rest.virtual_hosts.iter().flat_map(|host| &host.routes).next().cloned();
    let mut table = Arc::unwrap_or_clone(table);
    for host in &mut table.virtual_hosts {
        Arc::make_mut(host).routes.extend(route.clone());
    }
    if !table.virtual_hosts.iter().any(|host| host.domains.iter().any(|domain| domain == "*")) {
        table.virtual_hosts.extend(rest.virtual_hosts);
    }
    Arc::new(table)
}

impl Graph {
    /// Every listener that is whole, or its previous form.
    pub(super) fn serve(&mut self, previous: &Config, now: Time) -> Served {
        let mut served = Served::default();
        let mut absent = BTreeMap::new();
        let mut named = BTreeMap::new();
        let mut routed = Vec::new();
        for (name, listener) in &self.listeners {
            match listener {
                Listener::Outbound { port, routes, settings } => routed.push((Key::Port(*port), routes, settings)),
                Listener::Target { routes, settings } => routed.push((Key::Target(name.clone()), routes, settings)),
                Listener::Inbound(ports) => {
                    for (port, inbound) in ports {
                        served.inbound.insert(*port, share(previous.inbound.get(port), inbound.clone()));
                    }
                }
                Listener::Server(server) => {
                    let old = previous.serving.get(name);
                    if let Some(serving) = self.server(server, old) {
                        served.serving.insert(name.clone(), share(old, serving));
                    }
                }
                Listener::Gateway(gateway) => {
                    for part in &gateway.parts {
                        let Some((source, settings)) = &part.http else { continue };
                        let key = match &part.chain.to {
                            GatewayTo::Http(name) if !part.plain => Key::Target(name.clone()),
                            _ => Key::Port(gateway.port),
                        };
                        routed.push((key, source, settings));
                    }
                    let port = gateway.port;
                    served.inbound.insert(port, share(previous.inbound.get(&port), gateway.policy.clone()));
                    let chains = gateway.parts.iter().filter(|part| !part.plain);
                    let chains: Vec<_> = chains.map(|part| self.secrets.given(&part.chain)).collect();
                    if !chains.is_empty() {
                        let made = Arc::new(Gateway { chains });
                        served.gateways.insert(port, share(previous.gateways.get(&port), made));
                    }
                }
                Listener::Ignored(_) => {}
            }
        }
        for (key, source, settings) in routed {
            let old = match &key {
                Key::Port(port) => previous.outbound.get(port),
                Key::Target(name) => previous.targets.get(name).map(|target| &target.routes),
            };
            let table = match source {
                RouteSource::Inline(table) => table.clone(),
                RouteSource::Rds(name) => match (self.routes.get(name), old) {
                    (Some(Slot::Here(table)), _) => table.clone(),
                    (Some(Slot::Lost(why)), _) => Arc::new(unavailable(name, why)),
                    (_, Some(old)) => old.clone(),
                    (Some(Slot::Unusable(why)), None) => Arc::new(unavailable(name, why)),
                    (None, None) => {
                        served.waiting = true;
                        continue;
                    }
                },
            };
            let table = if self.by_name { on_side(&table, Side::Outbound) } else { table };
            let clusters = clusters_of(self.named.get(&key), &table);
            let is_old = old.is_some_and(|old| Arc::ptr_eq(old, &table) || *old == table);
            let mut held = false;
            let whole = self.clusters.whole();
            // By name, whatever is not there is on the way, or is told as failed.
            let deep = if self.by_name { self.deep(clusters.iter()) } else { BTreeSet::new() };
            let looked_at = if self.by_name { &deep } else { &*clusters };
            for name in looked_at.iter().filter(|name| !whole.contains_key(*name) && !served.kept.contains_key(*name)) {
                if self.by_name || self.clusters.is_known(name) {
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
                None if held && (self.by_name || self.current.is_some()) => continue,
                _ => (table, clusters),
            };
            // Routes in force keep the clusters they name: a held table for as long as it is held, others for the grace.
            for name in clusters.iter() {
                let kept = held || absent.get(name).is_some_and(|since| now.saturating_since(*since) < GRACE);
                if let Some(old) = previous.clusters.get(name).filter(|_| kept && !whole.contains_key(name)) {
                    served.kept.entry(name.clone()).or_insert_with(|| old.clone());
                }
            }
            named.insert(key.clone(), (table.clone(), clusters));
            match key {
                Key::Port(port) => {
                    served.outbound.insert(port, table);
                    if **settings != HttpSettings::default() {
                        served.http.insert(port, share(previous.http.get(&port), settings.clone()));
                    }
                }
                Key::Target(name) => {
                    let old = previous.targets.get(&name).map(|target| &target.http);
                    let http = share(old, settings.clone());
                    served.targets.insert(name, Target { routes: table, http });
                }
            }
        }
        for (name, why) in &self.failing {
            let old = previous.targets.get(name);
            let routes = Arc::new(unavailable(name, why));
            let routes = share(old.map(|target| &target.routes), routes);
            served.targets.insert(name.clone(), Target { routes, http: Arc::default() });
            let refused = Serving { refused: Some(why.clone()), ..Serving::default() };
            served.serving.insert(name.clone(), share(previous.serving.get(name), Arc::new(refused)));
        }
        self.absent = absent;
        self.named = named;
        served
    }

    /// What a server is told, once the routes of all its chains are there; until then what it was told before.
    fn server(&self, server: &ServerListener, old: Option<&Arc<Serving>>) -> Option<Arc<Serving>> {
        let mut serving = server.serving.clone();
        let Serving { chains, default_chain, .. } = &mut serving;
        let policies = chains.iter_mut().map(|chain| &mut chain.policy).chain(default_chain);
        for (policy, source) in policies.zip(&server.routes) {
            let table = match source {
                RouteSource::Inline(table) => table.clone(),
                RouteSource::Rds(name) => match self.routes.get(name) {
                    Some(Slot::Here(table)) => table.clone(),
                    // The server serves, and answers what comes by this chain with the reason (gRFC A36).
                    Some(Slot::Unusable(why) | Slot::Lost(why)) => Arc::new(unavailable(name, why)),
                    None => return old.cloned(),
                },
            };
            Arc::make_mut(policy).routes = closed(on_side(&table, Side::Inbound));
        }
        Some(Arc::new(serving))
    }

    /// The clusters that routes of listeners name, those in force and those to come, and the clusters that they are made of.
    pub(super) fn closure(&self) -> BTreeSet<Name> {
        let mut names = BTreeSet::new();
        let mut add = |table: &Arc<RouteTable>| names.extend(clusters_of(None, table).iter().cloned());
        for (name, listener) in &self.listeners {
            let Listener::Target { routes, .. } = listener else { continue };
            match routes {
                RouteSource::Inline(table) => add(table),
                RouteSource::Rds(routes) => {
                    if let Some(Slot::Here(table)) = self.routes.get(routes) {
                        add(table);
                    }
                }
            }
            if let Some(target) = self.current.as_ref().and_then(|current| current.targets.get(name)) {
                add(&target.routes);
            }
        }
        self.deep(names.iter())
    }

    /// These clusters and those that they are made of.
    fn deep<'a>(&self, names: impl Iterator<Item = &'a Name>) -> BTreeSet<Name> {
        let mut all: BTreeSet<Name> = names.cloned().collect();
        let mut next: Vec<Name> = all.iter().cloned().collect();
        for _ in 0..DEPTH {
            let mut deeper = Vec::new();
            for name in next.drain(..) {
                let Some(Discovery::Aggregate(parts)) = self.clusters.discovery(&name) else { continue };
                deeper.extend(parts.iter().filter(|part| all.insert(Name::clone(part))).cloned());
            }
            if deeper.is_empty() {
                break;
            }
            next = deeper;
        }
        all
    }
}
