//! A cluster: its endpoints, ready to be picked from, and the live cell that survives reconfiguration.
//!
//! `pick` asks in this order: may the cluster be used, is a request slot free, which priority and locality, which endpoint.
//! It takes no lock and allocates nothing
//! (`pick_address`, for hosts that no configuration names, does both). Endpoints are learnt from configuration only; DNS is the caller's.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use rand::RngCore;

use crate::{
    config::{self, EndpointAddress, Health, RoutingPriority, Thresholds},
    endpoint::{Attachments, Cell, Endpoint, Pick},
    error::PickError,
    limit::{Counters, Kind, Slot},
    locality::{LevelEndpoints, Levels},
    pick::Ask,
    route::name_hash,
    sync::Ordering::Relaxed,
    time::Time,
};

mod ejection;

use ejection::Ejections;

/// A cluster, compiled for picking.
#[derive(Debug)]
pub struct Cluster {
    config: Arc<config::Cluster>,
    pub(crate) hash: u64,
    endpoints: Vec<Arc<Endpoint>>,
    levels: Levels,
    live: Arc<Live>,
    /// Endpoints that left while requests were under way, to be found again should they return.
    departed: Vec<Departed>,
}

/// What survives reconfiguration.
#[derive(Debug, Default)]
struct Live {
    counters: Arc<Counters>,
    /// Of requests with priority `HIGH`.
    high: Arc<Counters>,
    ejections: Ejections,
    named: Named,
}

/// Endpoints that callers named themselves, the only part behind a lock: taken once a request, never held over anything.
#[derive(Debug, Default)]
struct Named(Mutex<BTreeMap<EndpointAddress, Arc<Endpoint>>>);

impl Named {
    /// Beyond this many, those without a request under way are forgotten.
    const MOST: usize = 1024;

    fn endpoint(&self, address: EndpointAddress) -> Arc<Endpoint> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(endpoint) = known.get(&address) {
            return Arc::clone(endpoint);
        }
        if known.len() >= Self::MOST {
            known.retain(|_, endpoint| endpoint.in_flight() > 0);
        }
        let config = config::Endpoint {
            address: address.clone(),
            weight: 1,
            health: Health::Healthy,
            mtls: false,
            workload: None,
        };
        let endpoint = Arc::new(Endpoint::new(config, 0, Arc::default(), Arc::default()));
        if known.len() < Self::MOST {
            known.insert(address, Arc::clone(&endpoint));
        }
        endpoint
    }
}

/// What a cluster leaves behind, as long as its requests last.
#[derive(Clone, Debug)]
pub(crate) struct Remains {
    live: Weak<Live>,
    endpoints: Vec<Departed>,
}

impl Remains {
    /// Nothing is left of it.
    pub(crate) fn is_gone(&self) -> bool {
        self.live.strong_count() == 0
    }
}

#[derive(Clone, Debug)]
struct Departed {
    address: EndpointAddress,
    cell: Weak<Cell>,
    attachments: Weak<Attachments>,
}

impl Cluster {
    /// Compiles a cluster, taking over from its predecessor the live cells of the endpoints that stay.
    pub fn compile(config: &Arc<config::Cluster>, previous: Option<&Self>) -> Self {
        let live = previous.map_or_else(Arc::default, |previous| Arc::clone(&previous.live));
        Self::build(config, Known::of(config, previous), live)
    }

    /// Compiles a cluster that had left the configuration, taking over what its last requests keep alive.
    pub(crate) fn returned(config: &Arc<config::Cluster>, remains: Remains) -> Self {
        let live = remains.live.upgrade().unwrap_or_default();
        Self::build(config, Known::returned(remains.endpoints), live)
    }

    /// What is to be found again should the cluster leave and return while requests are under way.
    pub(crate) fn remains(&self) -> Remains {
        let endpoints = self.endpoints.iter().map(|endpoint| Departed::of(endpoint));
        Remains {
            live: Arc::downgrade(&self.live),
            endpoints: endpoints.chain(self.departed.iter().cloned()).collect(),
        }
    }

    fn build(config: &Arc<config::Cluster>, mut known: Known<'_>, live: Arc<Live>) -> Self {
        let mut endpoints = Vec::new();
        let mut by_priority: BTreeMap<u32, LevelEndpoints> = BTreeMap::new();
        for locality in &config.endpoints.localities {
            by_priority.entry(locality.priority).or_default();
        }
        let rank: BTreeMap<u32, u32> = by_priority.keys().zip(0..).map(|(priority, rank)| (*priority, rank)).collect();
        for locality in &config.endpoints.localities {
            let level = rank.get(&locality.priority).copied().unwrap_or(0);
            let compiled: Vec<_> = locality.endpoints.iter().map(|endpoint| known.take(endpoint, level)).collect();
            endpoints.extend(compiled.iter().cloned());
            // Control planes send weights always; they are meant only where the cluster says so (LO4).
            let weight = locality.weight.filter(|_| config.locality_weighted);
            by_priority.entry(locality.priority).or_default().push((weight, compiled));
        }
        if config.outlier_detection.is_none() {
            // gRFC A50: without detection nobody stays ejected.
            endpoints.iter().for_each(|endpoint| {
                endpoint.cell.outlier.readmit(Time::ZERO);
            });
        }
        live.ejections.recount(&endpoints);
        for endpoint in &endpoints {
            endpoint.cell.most.store(config.thresholds.max_requests_per_endpoint, Relaxed);
            if config.health_check.is_none() {
                endpoint.cell.fails_checks.store(false, Relaxed);
            }
        }
        let overprovisioning = config.endpoints.overprovisioning;
        Self {
            levels: Levels::new(by_priority.into_values().collect(), overprovisioning, config.panic_threshold),
            hash: name_hash(&config.name),
            config: Arc::clone(config),
            endpoints,
            live,
            departed: known.departed(),
        }
    }

    /// Picks an endpoint for one try and takes the slots it needs.
    pub fn pick(self: &Arc<Self>, ask: &Ask<'_>, now: Time, rng: &mut impl RngCore) -> Result<Pick, PickError> {
        if let Some(why) = &self.config.failed {
            return Err(PickError::Failed(why.clone()));
        }
        self.sweep(now);
        if !self.live.ejections.used.load(Relaxed) {
            self.live.ejections.used.store(true, Relaxed);
        }
        let limit = self.thresholds(ask.priority).max_requests;
        if !self.counters(ask.priority).requests.acquire(limit) {
            return Err(PickError::Overflow);
        }
        if let Some(endpoint) = self.claim_probe(|endpoint| endpoint.is_worth_a_probe(ask.tried))
            && let Some(pick) = Pick::new(self, endpoint, ask.priority, now)
        {
            return Ok(pick.probing());
        }
        // More than once only where another request took the endpoint's last place between looking and taking.
        for _ in 0..PLACES {
            let Some(endpoint) = self.levels.pick(&self.config.load_balancer, ask, now, rng) else { break };
            if let Some(pick) = Pick::new(self, endpoint, ask.priority, now) {
                return Ok(pick);
            }
        }
        self.counters(ask.priority).requests.release();
        let full = self.endpoints.iter().any(|endpoint| endpoint.is_full());
        Err(if full { PickError::Overflow } else { PickError::NoEndpoint })
    }

    /// A pick of an endpoint that is not configured: what the caller named, for clusters of
    /// [`Discovery::OriginalDestination`](config::Discovery). A bounded number of them is remembered, with what is attached.
    pub fn pick_address(self: &Arc<Self>, address: EndpointAddress, now: Time) -> Result<Pick, PickError> {
        if let Some(why) = &self.config.failed {
            return Err(PickError::Failed(why.clone()));
        }
        if !self.live.counters.requests.acquire(self.config.thresholds.max_requests) {
            return Err(PickError::Overflow);
        }
        let pick = Pick::new(self, &self.live.named.endpoint(address), RoutingPriority::Default, now);
        pick.ok_or_else(|| {
            self.live.counters.requests.release();
            PickError::Overflow
        })
    }

    /// As the control plane gave it.
    pub fn config(&self) -> &Arc<config::Cluster> {
        &self.config
    }

    /// Its name.
    pub fn name(&self) -> &config::Name {
        &self.config.name
    }

    /// All its endpoints, healthy or not.
    pub fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    /// Requests under way, of any priority.
    pub fn requests_in_flight(&self) -> u32 {
        self.live.counters.requests.count().saturating_add(self.live.high.requests.count())
    }

    /// A slot under `retry_budget` or else `max_retries` of requests of that priority, held while a retry is under way;
    /// `None` is flag `UO`.
    pub fn retry_slot(&self, priority: RoutingPriority) -> Option<Slot> {
        let counters = self.counters(priority);
        Slot::acquire(counters, Kind::Retry, counters.retry_limit(self.thresholds(priority)))
    }

    /// A slot under `max_connections`, held while a connection is open.
    pub fn connection_slot(&self) -> Option<Slot> {
        Slot::acquire(&self.live.counters, Kind::Connection, self.config.thresholds.max_connections)
    }

    /// A slot under `max_pending_requests`, held while a request waits for a connection.
    pub fn pending_slot(&self) -> Option<Slot> {
        Slot::acquire(&self.live.counters, Kind::Pending, self.config.thresholds.max_pending_requests)
    }

    pub(crate) fn counters(&self, priority: RoutingPriority) -> &Arc<Counters> {
        match priority {
            RoutingPriority::Default => &self.live.counters,
            RoutingPriority::High => &self.live.high,
        }
    }

    fn thresholds(&self, priority: RoutingPriority) -> &Thresholds {
        match priority {
            RoutingPriority::Default => &self.config.thresholds,
            RoutingPriority::High => &self.config.high_thresholds,
        }
    }
}

/// How often an endpoint is looked for where places are taken faster than found.
const PLACES: usize = 4;

/// The endpoints of the predecessor, by address.
struct Known<'a> {
    previous: BTreeMap<&'a EndpointAddress, &'a Arc<Endpoint>>,
    /// Connections of the predecessor serve this configuration too.
    same_transport: bool,
    gone: BTreeMap<EndpointAddress, Departed>,
}

impl<'a> Known<'a> {
    fn of(config: &config::Cluster, previous: Option<&'a Cluster>) -> Self {
        let Some(previous) = previous else {
            return Self { previous: BTreeMap::new(), same_transport: false, gone: BTreeMap::new() };
        };
        let old = &previous.config;
        let mut gone: BTreeMap<_, _> = previous
            .departed
            .iter()
            .filter(|departed| departed.cell.strong_count() > 0)
            .map(|departed| (departed.address.clone(), departed.clone()))
            .collect();
        for endpoint in &previous.endpoints {
            gone.insert(endpoint.address().clone(), Departed::of(endpoint));
        }
        Self {
            previous: previous.endpoints.iter().map(|endpoint| (endpoint.address(), endpoint)).collect(),
            same_transport: old.protocol == config.protocol
                && old.tls == config.tls
                && old.connections == config.connections
                && old.connect_timeout == config.connect_timeout,
            gone,
        }
    }

    fn returned(endpoints: Vec<Departed>) -> Self {
        let gone = endpoints.into_iter().map(|departed| (departed.address.clone(), departed)).collect();
        Self { previous: BTreeMap::new(), same_transport: false, gone }
    }

    /// The endpoint for this configuration, with its old cell where there is one.
    fn take(&mut self, config: &config::Endpoint, level: u32) -> Arc<Endpoint> {
        let departed = self.gone.remove(&config.address);
        if let Some(old) = self.previous.get(&config.address) {
            if self.same_transport && old.config() == config && old.level == level {
                return Arc::clone(old);
            }
            let keep = self.same_transport && old.config().mtls == config.mtls;
            let attachments = if keep { Arc::clone(&old.attachments) } else { Arc::default() };
            return Arc::new(Endpoint::new(config.clone(), level, Arc::clone(&old.cell), attachments));
        }
        let cell = departed.as_ref().and_then(|departed| departed.cell.upgrade()).unwrap_or_default();
        let attachments = departed.filter(|_| self.same_transport).and_then(|departed| departed.attachments.upgrade());
        Arc::new(Endpoint::new(config.clone(), level, cell, attachments.unwrap_or_default()))
    }

    fn departed(self) -> Vec<Departed> {
        self.gone.into_values().collect()
    }
}

impl Departed {
    fn of(endpoint: &Endpoint) -> Self {
        Self {
            address: endpoint.address().clone(),
            cell: Arc::downgrade(&endpoint.cell),
            attachments: Arc::downgrade(&endpoint.attachments),
        }
    }
}

#[cfg(test)]
mod tests;
