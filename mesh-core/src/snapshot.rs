//! The configuration compiled for reading: what every request looks at, one immutable value swapped whole.
//!
//! Compiling takes over from the previous snapshot what did not change, by pointer first, and the live cells of what did,
//! so it costs what changed. No reader ever sees a route to a cluster of another version (gRFC A74).

use std::{collections::BTreeMap, sync::Arc};

use rand::RngCore;

use crate::{
    authz::{Engine, Guard, Guards},
    cluster::Cluster,
    config::{self, Config, EVERY_PORT, Local, Name, Serving},
    error::{CompileError, NoRoute},
    fault::FaultDecision,
    hash::{Found, Fresh},
    jwt::Jwt,
    plan::{Plan, Target},
    rate_limit::{GlobalLimits, Limits},
    request::RequestView,
    route::{self, Destination, Kind, RouteTable, Split, name_hash},
    session::Session,
    tally::Ledgers,
    telling::Telling,
    zone::LocalZones,
};

mod clusters;

use clusters::{Clusters, Same, Surroundings};

/// A configuration compiled for reading.
#[derive(Debug)]
pub struct Snapshot {
    /// What servers demand, as configured. The rest of the configuration is in what was compiled of it, so that taking
    /// over an unchanged cluster copies one pointer.
    servers: BTreeMap<u16, Arc<config::Inbound>>,
    /// Who this process is, as configured.
    local: Local,
    pub(crate) outbound: BTreeMap<u16, Arc<RouteTable>>,
    targets: BTreeMap<Name, Arc<RouteTable>>,
    serving: BTreeMap<Name, Arc<Serving>>,
    gateways: BTreeMap<u16, Arc<config::Gateway>>,
    inbound: BTreeMap<u16, Arc<RouteTable>>,
    /// What requests must pass, by port; only of ports where they must pass something.
    guards: BTreeMap<u16, Arc<Guards>>,
    /// What connections of a gateway must pass whose bytes are handed on: of each chain in the order of the chains, by port.
    connection_rules: BTreeMap<u16, Vec<Vec<Engine>>>,
    clusters: Clusters,
    /// How the processes like this one are spread.
    zones: Option<Arc<LocalZones>>,
}

impl Snapshot {
    /// Without any configuration: no request finds a route.
    pub fn empty() -> Self {
        Self {
            servers: BTreeMap::new(),
            local: Local::default(),
            outbound: BTreeMap::new(),
            targets: BTreeMap::new(),
            serving: BTreeMap::new(),
            gateways: BTreeMap::new(),
            inbound: BTreeMap::new(),
            guards: BTreeMap::new(),
            connection_rules: BTreeMap::new(),
            clusters: Clusters::default(),
            zones: None,
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
        let mut targets = BTreeMap::new();
        for (name, target) in &config.targets {
            let table = compile_table(&target.routes, Some(&target.http), previous.targets.get(name))?;
            targets.insert(name.clone(), table);
        }
        let mut inbound = BTreeMap::new();
        for (port, server) in &config.inbound {
            let (rate_limit, telling) = (server.rate_limit.clone(), server.telling.clone());
            let global_limits = server.global_limits.clone();
            let settings = (rate_limit.is_some() || telling.is_some() || !global_limits.is_empty()).then(|| {
                let none = config::HttpSettings::default();
                Arc::new(config::HttpSettings { rate_limit, global_limits, telling, ..none })
            });
            inbound.insert(*port, compile_table(&server.routes, settings.as_ref(), previous.inbound.get(port))?);
        }
        let mut guards = BTreeMap::new();
        for (port, server) in config.inbound.iter().filter(|(_, server)| !server.guards.is_empty()) {
            let before = previous.servers.get(port).filter(|before| before.guards == server.guards);
            let same = before.and_then(|_| previous.guards.get(port)).cloned();
            let compiled = match same {
                Some(same) => same,
                None => Arc::new(Guards::compile(&server.guards, &format!("port {port}"))?),
            };
            guards.insert(*port, compiled);
        }
        let mut connection_rules = BTreeMap::new();
        for (port, gateway) in &config.gateways {
            let of_chain = |chain: &Arc<config::GatewayChain>| {
                let field = format!("port {port}.{}", chain.name);
                chain.rules.iter().map(|rules| Engine::compile(rules, &field)).collect::<Result<Vec<_>, _>>()
            };
            connection_rules.insert(*port, gateway.chains.iter().map(of_chain).collect::<Result<_, _>>()?);
        }
        let zones = local_zones(config);
        let zones = match &previous.zones {
            Some(old) if zones.as_ref() == Some(old) => Some(Arc::clone(old)),
            _ => zones,
        };
        let same = Same {
            seed: config.local.id == previous.local.id,
            zones: match (&zones, &previous.zones) {
                (Some(new), Some(old)) => Arc::ptr_eq(new, old),
                (new, old) => new.is_none() && old.is_none(),
            },
        };
        let ledgers = Arc::clone(previous.ledgers());
        let surroundings = Surroundings { seed: name_hash(&config.local.id), zones: zones.clone(), ledgers };
        let clusters = Clusters::compile(config, &previous.clusters, same, surroundings);
        let (servers, local) = (config.inbound.clone(), config.local.clone());
        let (serving, gateways) = (config.serving.clone(), config.gateways.clone());
        Ok(Self {
            servers,
            local,
            outbound,
            targets,
            serving,
            gateways,
            inbound,
            guards,
            connection_rules,
            clusters,
            zones,
        })
    }

    /// Decides one outbound request. Allocates nothing; draws from `rng` for shares, weights and faults.
    pub fn plan(&self, view: &RequestView<'_>, rng: &mut impl RngCore) -> Result<Plan, NoRoute> {
        let table = self.table(view)?;
        let rule = table.find(view, rng.next_u64())?;
        let mut plan = self.plan_rule(rule, view, rng);
        plan.telling.clone_from(&table.telling);
        Ok(plan)
    }

    /// The routes that apply to a request.
    pub(crate) fn table(&self, view: &RequestView<'_>) -> Result<&Arc<RouteTable>, NoRoute> {
        match view.target {
            None => self.outbound.get(&view.port).ok_or(NoRoute::Port(view.port)),
            Some(name) => self.targets.get(name).ok_or(NoRoute::Target),
        }
    }

    /// Is there anything to say of the listener of this name, be it that there is no such?
    pub fn has_target(&self, name: &str) -> bool {
        self.targets.contains_key(name)
    }

    /// What a server is told by the listener of this name; `None` as long as nothing is known of it.
    pub fn serving(&self, name: &str) -> Option<&Arc<Serving>> {
        self.serving.get(name)
    }

    pub(crate) fn plan_rule(&self, rule: &route::Rule, view: &RequestView<'_>, rng: &mut impl RngCore) -> Plan {
        let mut found = match rule.policy.hash.is_empty() {
            true => Found::default(),
            false => rule.policy.hash.find(view, rng.next_u64()),
        };
        let session = rule
            .policy
            .session
            .as_ref()
            .map_or_else(Session::default, |session| session.find(view, &rule.policy.split));
        let mut choice = None;
        let target = match rule.kind {
            Kind::Redirect => Target::Redirect,
            Kind::Respond => Target::Respond,
            Kind::Inbound => Target::Inbound,
            Kind::Forward => match rule.policy.split.choose(view.headers, session.choice, found.hash, rng.next_u64()) {
                None => Target::NoCluster(Name::default()),
                Some((drawn, destination)) => {
                    choice = Some(drawn);
                    self.target(destination, view)
                }
            },
        };
        if let Target::Cluster(cluster) = &target
            && !cluster.hashing.is_empty()
        {
            found = cluster.hashing.find(view, rng.next_u64());
        }
        let own_fault = choice.and_then(|at| rule.policy.split.destinations().get(at as usize)?.fault.as_deref());
        let fault = own_fault
            .or(rule.fault.as_ref())
            .map_or(FaultDecision::NONE, |fault| fault.draw(view, name_of(&target), rng));
        let mut mirrored = 0;
        for (at, mirror) in rule.policy.mirrors.iter().enumerate() {
            mirrored |= u32::from(mirror.hit(rng.next_u64())) << at;
        }
        let Found { hash, mut fresh } = found;
        if !fresh.is_none() && !goes_by_hash(&rule.policy.split, &target) {
            fresh = Fresh::default();
        }
        Plan {
            route: Arc::clone(&rule.policy),
            target,
            fault,
            is_grpc: view.is_grpc(),
            hash,
            fresh,
            session,
            choice,
            mirrored,
            telling: None,
        }
    }

    fn target(&self, destination: &Destination, view: &RequestView<'_>) -> Target {
        let found = match &destination.header {
            None => self
                .clusters
                .find(destination.hash, &destination.cluster)
                .ok_or_else(|| Name::clone(&destination.cluster)),
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
        self.clusters.find(name_hash(name), name)
    }

    /// The clusters that requests have gone to, or that are to be looked after whether or not; each is compiled when it is
    /// first wanted.
    pub fn clusters_in_use(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        self.clusters.in_use()
    }

    /// The configuration of the clusters that are made of DNS names, whether or not they are in use.
    pub fn clusters_of_names(&self) -> impl Iterator<Item = &Arc<config::Cluster>> {
        self.clusters.made_of_names()
    }

    /// All clusters, in the order of their names; those that are not in use are compiled for it.
    pub fn clusters(&self) -> impl ExactSizeIterator<Item = &Arc<Cluster>> {
        self.clusters.iter()
    }

    /// What is counted for reports of load; the same in all snapshots that followed one another.
    pub fn ledgers(&self) -> &Arc<Ledgers> {
        &self.clusters.surroundings.ledgers
    }

    /// What the server on this port demands of its callers: what is said of the port, else what is said of every port.
    pub fn inbound(&self, port: u16) -> Option<&Arc<config::Inbound>> {
        self.servers.get(&port).or_else(|| self.servers.get(&EVERY_PORT))
    }

    /// The port under which is said what holds at this one.
    fn said_of(&self, port: u16) -> u16 {
        if self.servers.contains_key(&port) { port } else { EVERY_PORT }
    }

    /// The routes of what is let in at this port.
    pub(crate) fn inbound_table(&self, port: u16) -> Option<&Arc<RouteTable>> {
        self.inbound.get(&self.said_of(port))
    }

    /// What a gateway takes in at this port, if that is not plain HTTP alone.
    pub fn gateway(&self, port: u16) -> Option<&Arc<config::Gateway>> {
        self.gateways.get(&port)
    }

    /// The ports that a gateway is to take connections at: those with routes, and those for TLS or bytes.
    pub fn gateway_ports(&self) -> impl Iterator<Item = u16> {
        let ports: std::collections::BTreeSet<u16> =
            self.outbound.keys().chain(self.gateways.keys()).copied().collect();
        ports.into_iter()
    }

    /// What requests to this port must pass, in order.
    pub(crate) fn guards(&self, port: u16) -> &[Guard] {
        self.guards.get(&self.said_of(port)).map_or(&[], |guards| &guards.0)
    }

    /// What connections of a chain of a gateway's port must pass, in order; `None` of a chain that it does not have.
    pub(crate) fn connection_rules(&self, port: u16, chain: &Arc<config::GatewayChain>) -> Option<&[Engine]> {
        let at = self.gateway(port)?.chains.iter().position(|own| Arc::ptr_eq(own, chain))?;
        self.connection_rules.get(&port)?.get(at).map(Vec::as_slice)
    }

    /// What the guard of a port at a place demands of tokens, if that is what it guards by.
    pub fn jwt(&self, port: u16, at: usize) -> Option<&Arc<Jwt>> {
        match self.guards(port).get(at) {
            Some(Guard::Jwt(jwt)) => Some(jwt),
            _ => None,
        }
    }

    /// What is told of the requests that the server on this port gets.
    pub fn inbound_telling(&self, port: u16) -> Option<Arc<Telling>> {
        self.inbound_table(port)?.telling.clone()
    }

    /// How many requests the server on this port lets in, and who is asked beside.
    pub fn inbound_limits(&self, view: &RequestView<'_>) -> (Option<Limits>, Option<GlobalLimits>) {
        self.inbound_table(view.port).map_or((None, None), |table| table.inbound_limits(view))
    }

    /// What this process is part of; empty where that is not known.
    pub fn own_cluster(&self) -> &str {
        &self.local.cluster
    }

    /// What it was compiled from, put together again.
    pub fn config(&self) -> Config {
        Config {
            outbound: self.outbound.iter().map(|(port, table)| (*port, Arc::clone(&table.config))).collect(),
            http: self.outbound.iter().filter_map(|(port, table)| Some((*port, table.settings.clone()?))).collect(),
            targets: self.targets.iter().map(|(name, table)| (name.clone(), target(table))).collect(),
            inbound: self.servers.clone(),
            serving: self.serving.clone(),
            gateways: self.gateways.clone(),
            local: self.local.clone(),
            clusters: self.clusters.config(),
        }
    }
}

impl Default for Snapshot {
    fn default() -> Self {
        Self::empty()
    }
}

/// What a target's table was compiled from.
fn target(table: &RouteTable) -> config::Target {
    config::Target { routes: Arc::clone(&table.config), http: table.settings.clone().unwrap_or_default() }
}

/// The cluster a request goes to, whether it is there or not.
/// Does a split or a balancer go by the request's hash? A cookie for a hash that nobody goes by is not given. Source: Envoy, whose
/// routes and balancers ask for it only then.
fn goes_by_hash(split: &Split, target: &Target) -> bool {
    let balanced = matches!(target, Target::Cluster(cluster) if cluster.config().load_balancer.is_hashing());
    balanced || split.is_by_hash()
}

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

/// How the processes like this one are spread, if the configuration says where it is and what it is part of.
fn local_zones(config: &Config) -> Option<Arc<LocalZones>> {
    let service = config.clusters.get(&config.local.cluster)?;
    Some(Arc::new(LocalZones::new(&config.local.locality, &service.endpoints)))
}

#[cfg(test)]
mod tests;
