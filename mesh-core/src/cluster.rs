//! A cluster: its endpoints, ready to be picked from, and the live cell that survives reconfiguration.
//!
//! `pick` asks in this order: may the cluster be used, is a request slot free, which priority and locality, which endpoint.
//! It takes no lock and allocates nothing
//! (`pick_address`, for hosts that no configuration names, does both). Endpoints are learnt from configuration only; DNS is the caller's.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock, Weak},
};

use hashbrown::HashTable;
use rand::RngCore;

use crate::{
    balance::{self, Policy, Turn},
    config::{self, EndpointAddress, Health, LoadBalancer, RoutingPriority, Thresholds},
    endpoint::{Attachments, Cell, Chosen, Endpoint, Hot, Pick, Seats},
    error::PickError,
    hash::{self, HashPolicies},
    limit::{Counters, Kind, Slot},
    load::LoadReport,
    locality::{LevelLocality, Levels, Making},
    pick::{Ask, Wanted},
    roll::Roll,
    sync::{AtomicBool, AtomicU64, Ordering::Relaxed},
    tally::{Ledgers, Reporting, Tally},
    time::Time,
    zone::LocalZones,
};

mod ejection;
mod known;
mod labelled;
mod named;

use ejection::Ejections;
use known::Known;
use labelled::Labelled;
use named::Named;

/// A cluster, compiled for picking.
#[derive(Debug)]
pub struct Cluster {
    config: Arc<config::Cluster>,
    roll: Arc<Roll>,
    levels: Levels,
    /// Subsets that requests may ask for.
    labelled: Option<Labelled>,
    live: Arc<Live>,
    /// Endpoints that left while requests were under way, to be found again should they return.
    departed: Vec<Departed>,
    /// What its hash policies find, instead of the route's.
    pub(crate) hashing: HashPolicies,
    custom: Option<Result<Arc<dyn Policy>, String>>,
    /// Where its requests are counted, if their numbers are reported.
    reporting: Option<Box<Reporting>>,
    /// Of an aggregate cluster, the clusters it stands for, in order.
    members: OnceLock<Vec<Arc<Self>>>,
    /// Endpoints by address, made when the first one is asked for.
    by_address: OnceLock<HashTable<u32>>,
    /// Which form of itself it is, of those that share what survives.
    generation: u64,
    /// The first pick was there, from which the age of new endpoints counts.
    begun: AtomicBool,
}

/// What of the rest of a snapshot a cluster is compiled with.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Around<'a> {
    /// Tells this process from others.
    pub(crate) seed: u64,
    pub(crate) zones: Option<&'a LocalZones>,
    pub(crate) ledgers: Option<&'a Ledgers>,
}

/// What survives reconfiguration.
#[derive(Debug, Default)]
struct Live {
    counters: Arc<Counters>,
    seats: Arc<Seats>,
    /// Of requests with priority `HIGH`.
    high: Arc<Counters>,
    ejections: Ejections,
    dropped: AtomicU64,
    named: Named,
    /// The form of the cluster that was compiled last.
    generation: AtomicU64,
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
        Self::compile_within(config, previous, Around::default())
    }

    pub(crate) fn compile_within(config: &Arc<config::Cluster>, previous: Option<&Self>, around: Around<'_>) -> Self {
        let live = previous.map_or_else(Arc::default, |previous| Arc::clone(&previous.live));
        let known = previous.map_or_else(
            || Known::returned(Vec::new(), Arc::clone(&live.seats)),
            |previous| Known::of(config, previous),
        );
        Self::build(config, known, live, previous, around)
    }

    /// Compiles a cluster that had left the configuration, taking over what its last requests keep alive.
    pub(crate) fn returned(config: &Arc<config::Cluster>, remains: Remains, around: Around<'_>) -> Self {
        let live = remains.live.upgrade().unwrap_or_default();
        Self::build(config, Known::returned(remains.endpoints, Arc::clone(&live.seats)), live, None, around)
    }

    /// What is to be found again should the cluster leave and return while requests are under way.
    pub(crate) fn remains(&self) -> Remains {
        let endpoints = self.endpoints().iter().map(|endpoint| Departed::of(endpoint));
        Remains {
            live: Arc::downgrade(&self.live),
            endpoints: endpoints.chain(self.departed.iter().cloned()).collect(),
        }
    }

    fn build(
        config: &Arc<config::Cluster>,
        mut known: Known<'_>,
        live: Arc<Live>,
        before: Option<&Self>,
        around: Around<'_>,
    ) -> Self {
        let mut endpoints = Vec::new();
        let mut by_priority: BTreeMap<u32, Vec<LevelLocality<'_>>> = BTreeMap::new();
        for locality in &config.endpoints.localities {
            by_priority.entry(locality.priority).or_default();
        }
        let rank: BTreeMap<u32, u32> = by_priority.keys().zip(0..).map(|(priority, rank)| (*priority, rank)).collect();
        let subset = subset::Subset::new(config, around.seed);
        if subset.is_all() {
            known.expect(config.endpoints.localities.iter().map(|locality| locality.endpoints.len()).sum());
        }
        for locality in &config.endpoints.localities {
            let level = rank.get(&locality.priority).copied().unwrap_or(0);
            let places = by_priority.entry(locality.priority).or_default();
            let at = (level, places.len() as u32);
            let used = locality.endpoints.iter().filter(|endpoint| subset.has(locality.priority, endpoint));
            let first = endpoints.len();
            endpoints.extend(used.map(|endpoint| known.take(endpoint, at)));
            let members = (first as u32..endpoints.len() as u32).collect();
            // Control planes send weights always; they are meant only where the cluster says so (LO4).
            let counts = config.subsets.as_ref().is_none_or(|subsets| subsets.locality_weighted);
            let weight = locality.weight.filter(|_| config.locality_weighted && counts);
            places.push(LevelLocality { locality: &locality.locality, weight, members });
        }
        if config.outlier_detection.is_none() {
            // gRFC A50: without detection nobody stays ejected.
            endpoints.iter().for_each(|endpoint| {
                endpoint.cell.outlier().readmit(Time::ZERO);
            });
        }
        live.ejections.recount(&endpoints);
        // Made now, so that no request makes them.
        for endpoint in endpoints.iter().filter(|_| config.outlier_detection.is_some()) {
            endpoint.cell.outlier().counts();
        }
        for endpoint in endpoints.iter().filter(|_| matches!(config.load_balancer, LoadBalancer::ClientWeighted(_))) {
            endpoint.reported();
        }
        for endpoint in &endpoints {
            endpoint.hot().most.store(config.thresholds.max_requests_per_endpoint, Relaxed);
            if config.health_check.is_none() {
                endpoint.hot().fails_checks.store(false, Relaxed);
            }
        }
        let custom = match &config.load_balancer {
            LoadBalancer::Custom(custom) => Some(balance::make(custom)),
            _ => None,
        };
        let roll = Arc::new(Roll::new(endpoints, &live.seats));
        let making = Making {
            config,
            roll: &roll,
            custom: custom.as_ref().and_then(|custom| custom.as_ref().ok()),
            zones: around.zones,
            before: before.map(|before| &before.levels),
        };
        let by_priority: Vec<_> = by_priority.into_values().collect();
        let labelled = config.subsets.as_ref().map(|subsets| {
            let making = Making { zones: None, before: None, ..making };
            Labelled::new(subsets, &by_priority, &making, before.and_then(|before| before.labelled.as_ref()))
        });
        Self {
            generation: live.generation.fetch_add(1, Relaxed) + 1,
            levels: Levels::new(by_priority, &making),
            labelled,
            // What cannot be compiled was refused when it was read.
            hashing: HashPolicies::compile(&config.hash).unwrap_or_default(),
            config: Arc::clone(config),
            roll,
            live,
            departed: known.departed(),
            custom,
            reporting: Reporting::of(config, around.ledgers),
            members: OnceLock::new(),
            by_address: OnceLock::new(),
            begun: AtomicBool::new(false),
        }
    }

    /// No other form of it was compiled since.
    fn is_latest(&self) -> bool {
        self.live.generation.load(Relaxed) == self.generation
    }

    /// Picks an endpoint for one try and takes the slots it needs.
    pub fn pick(self: &Arc<Self>, ask: &Ask<'_>, now: Time, rng: &mut impl RngCore) -> Result<Pick, PickError> {
        if let Some(why) = &self.config.failed {
            return Err(PickError::Failed(why.clone()));
        }
        if let Some(Err(why)) = &self.custom {
            return Err(PickError::Failed(why.clone()));
        }
        if let Some(members) = self.members.get() {
            // Without any that is available the first says why not.
            let available = members.iter().find(|member| member.is_available(now));
            let member = available.or_else(|| members.first()).ok_or(PickError::NoEndpoint)?;
            return member.pick_own(ask, now, rng);
        }
        self.pick_own(ask, now, rng)
    }

    /// Picks one of its own endpoints.
    fn pick_own(self: &Arc<Self>, ask: &Ask<'_>, now: Time, rng: &mut impl RngCore) -> Result<Pick, PickError> {
        // Before any limit: what is dropped takes no slot (LB26).
        let drops = &self.config.endpoints.drops;
        if let Some((at, drop)) = drops.iter().enumerate().find(|(_, drop)| drop.fraction.hit(rng.next_u64())) {
            self.live.dropped.fetch_add(1, Relaxed);
            self.reporting.iter().for_each(|reporting| reporting.note_drop(at));
            return Err(PickError::Dropped(config::Name::clone(&drop.category)));
        }
        self.sweep(now);
        self.note_use();
        if self.config.slow_start.is_some() && !self.begun.swap(true, Relaxed) {
            self.endpoints().iter().for_each(|endpoint| endpoint.begin_once(now));
        }
        let limit = self.thresholds(ask.priority).max_requests;
        if !self.counters(ask.priority).requests.acquire(limit) {
            return Err(self.overflow());
        }
        if ask.wanted.is_none()
            && let Some(at) =
                self.claim_probe(|endpoint| endpoint.is_worth_a_probe(ask.tried) && self.is_asked_for(endpoint, ask))
        {
            match Pick::new(self, Chosen::Member(at), ask.priority, now) {
                Some(pick) => return Ok(pick.probing()),
                // Another request took the endpoint's last place meanwhile.
                None => self.endpoints().get(at as usize).iter().for_each(|endpoint| self.release_probe(endpoint)),
            }
        }
        let turn = Turn {
            policy: &self.config.load_balancer,
            slow_start: self.config.slow_start.as_ref(),
            ask,
            now,
            under_way: self.requests_in_flight(),
        };
        // More than once only where another request took the endpoint's last place between looking and taking.
        for _ in 0..PLACES {
            let Some(at) = self.choose(&turn, rng) else { break };
            if let Some(pick) = Pick::new(self, Chosen::Member(at), ask.priority, now) {
                return Ok(pick);
            }
        }
        self.counters(ask.priority).requests.release();
        let full = self.endpoints().iter().any(|endpoint| endpoint.is_full());
        Err(if full { self.overflow() } else { PickError::NoEndpoint })
    }

    /// The endpoint that is asked for, or one of the balancer's choice.
    fn choose(&self, turn: &Turn<'_>, rng: &mut impl RngCore) -> Option<u32> {
        match turn.ask.wanted {
            None => self.balance(turn, rng),
            Some(wanted) => match self.wanted(wanted) {
                None if !wanted.strict => self.balance(turn, rng),
                found => found,
            },
        }
    }

    fn balance(&self, turn: &Turn<'_>, rng: &mut impl RngCore) -> Option<u32> {
        match &self.labelled {
            None => self.levels.pick(turn, rng),
            Some(labelled) => labelled.pick(&self.levels, turn, rng),
        }
    }

    /// Has it the labels that are asked for, where that counts?
    fn is_asked_for(&self, endpoint: &Endpoint, ask: &Ask<'_>) -> bool {
        self.labelled.as_ref().is_none_or(|labelled| labelled.may_pick(endpoint, ask.criteria))
    }

    /// The endpoint that is asked for, if it may still be used (gRFC A55).
    fn wanted(&self, wanted: Wanted) -> Option<u32> {
        let known = self.by_address.get_or_init(|| {
            let mut known = HashTable::with_capacity(self.endpoints().len());
            for (endpoint, at) in self.endpoints().iter().zip(0..) {
                known.insert_unique(endpoint.id, at, |at| self.roll.get(*at).map_or(0, |endpoint| endpoint.id));
            }
            known
        });
        let address = EndpointAddress::Socket(wanted.address);
        let is_it = |at: &u32| self.roll.get(*at).is_some_and(|e| *e.address() == address);
        let at = *known.find(hash::of_address(wanted.address), is_it)?;
        let endpoint = self.roll.get(at)?;
        let health = if endpoint.is_out() { Health::Unhealthy } else { endpoint.config().health };
        self.config.override_host.contains(&health).then_some(at)
    }

    /// Has it, or one of those it stands for, an endpoint that may be used and can be reached?
    pub fn is_ready(&self, now: Time) -> bool {
        match self.members.get() {
            Some(members) => members.iter().any(|member| member.is_available(now)),
            None => self.is_available(now),
        }
    }

    /// Has it an endpoint of its own that may be used and can be reached?
    fn is_available(&self, now: Time) -> bool {
        self.config.failed.is_none() && self.levels.is_available(now)
    }

    /// It stands for these clusters.
    pub(crate) fn stands_for(&self, members: Vec<Arc<Self>>) {
        let _ = self.members.set(members);
    }

    /// The clusters it stands for.
    pub(crate) fn members(&self) -> Option<&[Arc<Self>]> {
        self.members.get().map(Vec::as_slice)
    }

    /// How many requests were dropped for overload.
    pub fn dropped(&self) -> u64 {
        self.live.dropped.load(Relaxed)
    }

    /// A pick of an endpoint that is not configured: what the caller named, for clusters of
    /// [`Discovery::OriginalDestination`](config::Discovery). A bounded number of them is remembered, with what is attached.
    pub fn pick_address(self: &Arc<Self>, address: EndpointAddress, now: Time) -> Result<Pick, PickError> {
        if let Some(why) = &self.config.failed {
            return Err(PickError::Failed(why.clone()));
        }
        if !self.live.counters.requests.acquire(self.config.thresholds.max_requests) {
            return Err(self.overflow());
        }
        let named = self.live.named.endpoint(address, &self.live.seats);
        let pick = Pick::new(self, Chosen::Named(named), RoutingPriority::Default, now);
        pick.ok_or_else(|| {
            self.live.counters.requests.release();
            self.overflow()
        })
    }

    /// An endpoint has reported its load.
    pub fn report(&self, endpoint: &Endpoint, report: &LoadReport, now: Time) {
        if let LoadBalancer::ClientWeighted(config) = &self.config.load_balancer {
            endpoint.reported().note(report, config, now);
        }
    }

    /// The circuit breaker refuses a request.
    fn overflow(&self) -> PickError {
        self.reporting.iter().for_each(|reporting| reporting.note_refusal());
        PickError::Overflow
    }

    /// Where requests to an endpoint are counted, if their numbers are reported.
    #[inline]
    pub(crate) fn tally(&self, chosen: &Chosen) -> Option<&Tally> {
        self.reporting.as_ref()?.tally(self.endpoint_of(chosen)?, chosen)
    }

    /// Which metrics of its endpoints are reported.
    #[inline]
    pub(crate) fn reported_metrics(&self) -> Option<&config::LoadReports> {
        self.reporting.as_ref().map(|reporting| &*reporting.wanted).filter(|wanted| !wanted.metrics.is_empty())
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
        self.roll.endpoints()
    }

    /// What a pick compares of an endpoint.
    pub(crate) fn hot_of<'a>(&'a self, chosen: &'a Chosen) -> Option<&'a Hot> {
        match chosen {
            Chosen::Member(at) => self.roll.hot(*at),
            Chosen::Named(endpoint) => Some(endpoint.hot()),
        }
    }

    /// The endpoint itself.
    pub(crate) fn endpoint_of<'a>(&'a self, chosen: &'a Chosen) -> Option<&'a Arc<Endpoint>> {
        match chosen {
            Chosen::Member(at) => self.roll.get(*at),
            Chosen::Named(endpoint) => Some(endpoint),
        }
    }

    /// Requests under way, of any priority.
    pub fn requests_in_flight(&self) -> u32 {
        self.live.counters.requests.count().saturating_add(self.live.high.requests.count())
    }

    /// Requests that wait, for a connection or for an endpoint.
    pub fn pending(&self) -> u32 {
        self.live.counters.pending.count().saturating_add(self.live.high.pending.count())
    }

    /// A slot under `retry_budget` or else `max_retries` of requests of that priority, held while a retry is under way;
    /// `None` is flag `UO`. The try that failed counts as under way for the budget, as it does in Envoy; `is_over` says that
    /// its slot is free already.
    pub fn retry_slot(&self, priority: RoutingPriority, is_over: bool) -> Option<Slot> {
        let counters = self.counters(priority);
        Slot::acquire(counters, Kind::Retry, counters.retry_limit(self.thresholds(priority), is_over.into()))
    }

    /// A slot under `max_connections`, held while a connection is open that a request of that priority wanted.
    pub fn connection_slot(&self, priority: RoutingPriority) -> Option<Slot> {
        Slot::acquire(self.counters(priority), Kind::Connection, self.thresholds(priority).max_connections)
    }

    /// A slot under `max_pending_requests`, held while a request of that priority waits for a connection.
    pub fn pending_slot(&self, priority: RoutingPriority) -> Option<Slot> {
        Slot::acquire(self.counters(priority), Kind::Pending, self.thresholds(priority).max_pending_requests)
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

impl Departed {
    fn of(endpoint: &Endpoint) -> Self {
        Self {
            address: endpoint.address().clone(),
            cell: Arc::downgrade(&endpoint.cell),
            attachments: Arc::downgrade(&endpoint.attachments),
        }
    }
}

mod subset;

#[cfg(test)]
mod tests;
