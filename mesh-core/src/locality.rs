//! Which priority and which locality a request goes to: spill-over, panic and locality weights. Source: Envoy
//! `ClusterLoadAssignment`, `overprovisioning_factor`, `healthy_panic_threshold`, `locality_weighted_lb_config`.
//!
//! A priority's health is min(100, factor x usable / total); what it cannot take spills to the next. When all
//! together cannot take everything, a priority below the panic threshold uses all its endpoints. Which
//! endpoint it is then is the balancer's choice.

use std::sync::Arc;

use rand::RngCore;

use crate::{
    balance::{self, Group},
    config::{Health, LoadBalancer},
    endpoint::Endpoint,
    pick::Ask,
    rng::below,
    sync::{AtomicU32, Ordering::Relaxed},
    time::Time,
};

/// The endpoints of a cluster by priority.
#[derive(Debug, Default)]
pub(crate) struct Levels {
    levels: Vec<Level>,
    /// In percent.
    overprovisioning: u64,
    panic_threshold: u64,
}

/// The endpoints of one priority.
#[derive(Debug)]
pub(crate) struct Level {
    /// Usable as configured; ejection and health checks are asked at each pick.
    usable: Group,
    /// All, for panic.
    all: Group,
    /// Empty when localities are not weighted.
    localities: Vec<Place>,
    out: AtomicU32,
}

/// The endpoints of one locality with a weight.
#[derive(Debug)]
struct Place {
    weight: u64,
    total: u64,
    usable: Group,
}

/// What a level is made from: the weight of each locality with its endpoints.
pub(crate) type LevelEndpoints = Vec<(Option<u32>, Vec<Arc<Endpoint>>)>;

impl Levels {
    pub(crate) fn new(levels: Vec<LevelEndpoints>, overprovisioning: u32, panic_threshold: u32) -> Self {
        let overprovisioning =
            if overprovisioning == 0 { DEFAULT_OVERPROVISIONING } else { u64::from(overprovisioning) };
        let levels = levels.into_iter().map(Level::new).collect();
        Self { levels, overprovisioning, panic_threshold: u64::from(panic_threshold) }
    }

    /// Picks an endpoint; `None` when no priority has one.
    pub(crate) fn pick(
        &self,
        policy: &LoadBalancer,
        ask: &Ask<'_>,
        now: Time,
        rng: &mut impl RngCore,
    ) -> Option<&Arc<Endpoint>> {
        let (level, panics) = self.choose(rng)?;
        if panics {
            return balance::pick_any(policy, &level.all, ask, now, rng);
        }
        let group = level.choose(self.overprovisioning, rng);
        balance::pick(policy, group, ask, now, rng)
            // The locality's last was ejected since its weight was looked at.
            .or_else(|| balance::pick(policy, &level.usable, ask, now, rng))
    }

    /// One more of this priority is out.
    pub(crate) fn note_out(&self, level: u32) {
        if let Some(level) = self.levels.get(level as usize) {
            level.out.fetch_add(1, Relaxed);
        }
    }

    /// Counts afresh what is out.
    pub(crate) fn recount(&self) {
        for level in &self.levels {
            let out = level.usable.endpoints().iter().filter(|endpoint| endpoint.is_out()).count();
            level.out.store(out as u32, Relaxed);
        }
    }

    /// The priority a request goes to, and whether it is in panic.
    fn choose(&self, rng: &mut impl RngCore) -> Option<(&Level, bool)> {
        if let [only] = self.levels.as_slice() {
            let available = only.health(self.overprovisioning);
            let panics = available < 100 && only.usable_percent() < self.panic_threshold;
            // Without panic and without a usable endpoint there is nothing to pick.
            return (!only.all.endpoints().is_empty()).then_some((only, panics));
        }
        let sum: u64 = self.levels.iter().map(|level| level.health(self.overprovisioning)).sum();
        if sum == 0 {
            // Nothing is usable anywhere: all of the first priority that has any, or nothing where panic is off.
            let panics = self.panic_threshold > 0;
            return self.levels.iter().find(|level| !level.all.endpoints().is_empty()).map(|level| (level, panics));
        }
        // With everything available, each takes its health until 100 are given away; else all are scaled up to 100.
        let total = sum.min(100);
        let mut drawn = below(rng.next_u64(), total);
        let mut last = None;
        for level in &self.levels {
            let health = level.health(self.overprovisioning);
            if health == 0 {
                continue;
            }
            let panics = total < 100 && level.usable_percent() < self.panic_threshold;
            last = Some((level, panics));
            match drawn.checked_sub(health) {
                None => break,
                Some(rest) => drawn = rest,
            }
        }
        last
    }
}

impl Level {
    fn new(localities: LevelEndpoints) -> Self {
        let weighted = localities.iter().any(|(weight, _)| weight.is_some());
        let all: Vec<_> = localities.iter().flat_map(|(_, endpoints)| endpoints.iter().cloned()).collect();
        let places = match weighted {
            false => Vec::new(),
            true => {
                localities.into_iter().map(|(weight, endpoints)| Place::new(weight.unwrap_or(0), endpoints)).collect()
            }
        };
        let level =
            Self { usable: Group::new(usable(&all)), all: Group::new(all), localities: places, out: AtomicU32::new(0) };
        let out = level.usable.endpoints().iter().filter(|endpoint| endpoint.is_out()).count();
        level.out.store(out as u32, Relaxed);
        level
    }

    /// How many are usable, as of the last ejection or health check.
    fn usable_count(&self) -> u64 {
        (self.usable.endpoints().len() as u64).saturating_sub(u64::from(self.out.load(Relaxed)))
    }

    fn usable_percent(&self) -> u64 {
        100 * self.usable_count() / (self.all.endpoints().len() as u64).max(1)
    }

    fn health(&self, overprovisioning: u64) -> u64 {
        (overprovisioning * self.usable_count() / (self.all.endpoints().len() as u64).max(1)).min(100)
    }

    /// The locality a request goes to: by weight x min(1, factor x availability).
    fn choose(&self, overprovisioning: u64, rng: &mut impl RngCore) -> &Group {
        if self.localities.is_empty() {
            return &self.usable;
        }
        let sum: u64 = self.localities.iter().map(|place| place.share(overprovisioning)).sum();
        let mut drawn = below(rng.next_u64(), sum);
        for place in &self.localities {
            match drawn.checked_sub(place.share(overprovisioning)) {
                None => return &place.usable,
                Some(rest) => drawn = rest,
            }
        }
        &self.usable
    }
}

impl Place {
    fn new(weight: u32, endpoints: Vec<Arc<Endpoint>>) -> Self {
        Self { weight: u64::from(weight), total: endpoints.len() as u64, usable: Group::new(usable(&endpoints)) }
    }

    /// In ten-thousandths of the weight. Ejections do not lower it: they are few, and counting them is a scan.
    fn share(&self, overprovisioning: u64) -> u64 {
        let available = 100 * overprovisioning * self.usable.endpoints().len() as u64 / self.total.max(1);
        self.weight * available.min(10_000)
    }
}

/// The healthy, or the degraded where none is healthy.
fn usable(endpoints: &[Arc<Endpoint>]) -> Vec<Arc<Endpoint>> {
    let with = |health| -> Vec<_> { endpoints.iter().filter(|e| e.config().health == health).cloned().collect() };
    let healthy = with(Health::Healthy);
    if healthy.is_empty() { with(Health::Degraded) } else { healthy }
}

const DEFAULT_OVERPROVISIONING: u64 = 140;
