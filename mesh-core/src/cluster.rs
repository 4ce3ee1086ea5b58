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
    config::{self, EndpointAddress, Health},
    endpoint::{Attachments, Cell, Endpoint, Pick},
    error::PickError,
    limit::{Counters, Kind, Slot},
    locality::{LevelEndpoints, Levels},
    outcome::Outcome,
    outlier,
    pick::Ask,
    route::name_hash,
    sync::{AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Time,
};

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
    ejected: AtomicU32,
    /// The last interval that was swept.
    last_tick: AtomicU64,
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
            endpoints.iter().for_each(|endpoint| endpoint.cell.outlier.readmit());
        }
        live.ejected.store(ejected(&endpoints), Relaxed);
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
        if !self.live.counters.requests.acquire(self.config.thresholds.max_requests) {
            return Err(PickError::Overflow);
        }
        let Some(endpoint) = self.levels.pick(&self.config.load_balancer, ask, now, rng) else {
            self.live.counters.requests.release();
            return Err(PickError::NoEndpoint);
        };
        Ok(Pick::new(Arc::clone(self), Arc::clone(endpoint), now))
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
        Ok(Pick::new(Arc::clone(self), self.live.named.endpoint(address), now))
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

    /// Requests under way.
    pub fn requests_in_flight(&self) -> u32 {
        self.live.counters.requests.count()
    }

    /// A slot under `max_retries`, held while a retry is under way; `None` is flag `UO`.
    pub fn retry_slot(&self) -> Option<Slot> {
        Slot::acquire(&self.live.counters, Kind::Retry, self.config.thresholds.max_retries)
    }

    /// A slot under `max_connections`, held while a connection is open.
    pub fn connection_slot(&self) -> Option<Slot> {
        Slot::acquire(&self.live.counters, Kind::Connection, self.config.thresholds.max_connections)
    }

    /// A slot under `max_pending_requests`, held while a request waits for a connection.
    pub fn pending_slot(&self) -> Option<Slot> {
        Slot::acquire(&self.live.counters, Kind::Pending, self.config.thresholds.max_pending_requests)
    }

    /// Brings endpoints back whose ejection has lasted long enough. Acts once an interval however often it is called;
    /// `pick` calls it too, so that ejections end without a background task.
    pub fn sweep(&self, now: Time) {
        let Some(config) = &self.config.outlier_detection else { return };
        let tick = outlier::tick(config.interval, now);
        let last = self.live.last_tick.load(Relaxed);
        if tick <= last || self.live.last_tick.compare_exchange(last, tick, Relaxed, Relaxed).is_err() {
            return;
        }
        let mut ejected = 0;
        for endpoint in &self.endpoints {
            ejected += u32::from(endpoint.cell.outlier.sweep(config, tick - last, now));
        }
        self.live.ejected.store(ejected, Relaxed);
        self.levels.recount();
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.live.counters
    }

    /// Counts an outcome of one endpoint and ejects it when it is due.
    pub(crate) fn record(&self, endpoint: &Endpoint, outcome: &Outcome, now: Time) {
        let Some(config) = &self.config.outlier_detection else { return };
        if !endpoint.cell.outlier.count(config, outcome) || endpoint.is_ejected() {
            return;
        }
        let total = self.endpoints.len();
        let eject = |ejected: u32| outlier::may_eject(config, ejected, total).then_some(ejected + 1);
        if self.live.ejected.fetch_update(Relaxed, Relaxed, eject).is_err() {
            return;
        }
        if endpoint.cell.outlier.eject(now) {
            self.levels.note_ejected(endpoint.level);
        } else {
            self.live.ejected.fetch_sub(1, Relaxed);
        }
    }
}

fn ejected(endpoints: &[Arc<Endpoint>]) -> u32 {
    endpoints.iter().filter(|endpoint| endpoint.is_ejected()).count() as u32
}

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
