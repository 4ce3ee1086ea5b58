//! Which priority and which locality a request goes to: spill-over, failover, panic, weights of localities, the own zone. Source: Envoy
//! `ClusterLoadAssignment`, `overprovisioning_factor`, `healthy_panic_threshold`, `locality_weighted_lb_config`,
//! `zone_aware_lb_config`; gRFC A56.
//!
//! A priority's health is min(100, factor x usable / total); what it cannot take spills to the next, and degraded endpoints take
//! what the healthy of all priorities cannot. When all together cannot take everything, a priority below the panic
//! threshold uses all its endpoints. A priority none of whose endpoints can be reached gives way to the next that has one
//! (gRPC's failover). Which endpoint it is then is the balancer's choice.
//!
//! Shares are whole percentages, and hashing policies draw them with the request's hash, as Envoy does.

use std::sync::Arc;

use rand::RngCore;

use crate::{
    balance::{self, Group, Lookup, Policy, Turn},
    config::{Cluster, Health, Locality, ZoneAware},
    endpoint::Endpoint,
    rng::below,
    roll::Roll,
    sync::{AtomicU64, Ordering::Relaxed},
    time::Time,
    zone::{LocalZones, ZoneShares},
};

/// The endpoints of a cluster by priority.
#[derive(Debug, Default)]
pub(crate) struct Levels {
    levels: Vec<Level>,
    /// In percent.
    overprovisioning: u64,
    panic_threshold: u64,
    /// Endpoints count by weight and not by head when health is worked out. Envoy `weighted_priority_health`.
    by_weight: bool,
    zones: Option<(ZoneAware, ZoneShares)>,
}

/// The endpoints of one priority.
#[derive(Debug)]
struct Level {
    healthy: Tier,
    degraded: Tier,
    /// All, for panic; `None` when all are healthy.
    all: Option<Group>,
    total: u64,
    /// Empty when localities play no part.
    places: Vec<Place>,
    /// Some locality has a weight that counts.
    weighted: bool,
}

/// The endpoints of one priority that the control plane says are alike.
#[derive(Debug, Default)]
struct Tier {
    group: Group,
    total: u64,
    /// How much of it is left out.
    out: AtomicU64,
}

/// The healthy endpoints of one locality.
#[derive(Debug)]
struct Place {
    weight: u64,
    /// Healthy or not.
    total: u64,
    healthy: Tier,
}

/// One locality of a priority, to be compiled.
#[derive(Debug)]
pub(crate) struct LevelLocality<'a> {
    pub(crate) locality: &'a Locality,
    pub(crate) weight: Option<u32>,
    /// Its endpoints, by their numbers in the cluster.
    pub(crate) members: Vec<u32>,
}

/// What levels are made for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Making<'a> {
    pub(crate) config: &'a Cluster,
    pub(crate) roll: &'a Arc<Roll>,
    pub(crate) custom: Option<&'a Arc<dyn Policy>>,
    pub(crate) zones: Option<&'a LocalZones>,
    pub(crate) before: Option<&'a Levels>,
}

/// Where a request goes within a cluster.
#[derive(Clone, Copy, Debug)]
struct Choice {
    level: usize,
    degraded: bool,
    panics: bool,
}

impl Levels {
    pub(crate) fn new(levels: Vec<Vec<LevelLocality<'_>>>, making: &Making<'_>) -> Self {
        let Making { config, zones, .. } = making;
        let overprovisioning = match config.endpoints.overprovisioning {
            0 => DEFAULT_OVERPROVISIONING,
            factor => u64::from(factor),
        };
        let zone_aware = config.zone_aware.filter(|_| !config.load_balancer.is_hashing());
        let zones = zone_aware.zip(*zones).and_then(|(aware, zones)| {
            let size: usize = levels.iter().flatten().map(|place| place.members.len()).sum();
            let first = levels.first()?;
            let shares = zones.shares(first.iter().map(|place| place.locality))?;
            (size as u64 >= aware.min_cluster_size).then_some((aware, shares))
        });
        let by_weight = config.endpoints.weighted_priority_health;
        let levels = levels.into_iter().enumerate();
        let levels = levels.map(|(at, places)| Level::new(places, at, making, zones.is_some())).collect();
        Self { levels, overprovisioning, panic_threshold: u64::from(config.panic_threshold), by_weight, zones }
    }

    /// Picks an endpoint, by its number in the cluster; `None` when no priority has one.
    pub(crate) fn pick(&self, turn: &Turn<'_>, rng: &mut impl RngCore) -> Option<u32> {
        let choice = self.choose(turn, rng)?;
        let level = self.levels.get(choice.level)?;
        if choice.panics {
            if self.zones.as_ref().is_some_and(|(aware, _)| aware.fail_on_panic) {
                return None;
            }
            return balance::pick_any(turn, level.all(), rng);
        }
        let group = self.group(level, choice, turn, rng);
        if let Some(at) = balance::pick_reachable(turn, group, rng) {
            return Some(at);
        }
        // Other localities of the priority before other priorities, and those before what can hardly be reached.
        if !std::ptr::eq(group, &level.healthy.group)
            && let Some(at) = balance::pick_reachable(turn, &level.healthy.group, rng)
        {
            return Some(at);
        }
        if self.levels.len() > 1 && !level.is_reachable(turn) {
            let others = self.levels.iter().enumerate().filter(|(at, _)| *at != choice.level).map(|(_, level)| level);
            for tier in others.flat_map(|level| [&level.healthy, &level.degraded]) {
                if let Some(at) = balance::pick_reachable(turn, &tier.group, rng) {
                    return Some(at);
                }
            }
        }
        // The locality's last was ejected since its weight was looked at.
        balance::pick_other(turn, group, rng)
            .or_else(|| balance::pick_other(turn, &level.healthy.group, rng))
            .or_else(|| balance::pick_other(turn, &level.degraded.group, rng))
    }

    /// Is there any endpoint that may be used and can be reached?
    pub(crate) fn is_available(&self, now: Time) -> bool {
        let tiers = self.levels.iter().flat_map(|level| [&level.healthy, &level.degraded]);
        tiers.into_iter().any(|tier| tier.is_reachable(now))
    }

    /// One more endpoint is left out.
    pub(crate) fn note_out(&self, endpoint: &Endpoint) {
        let Some(level) = self.levels.get(endpoint.level as usize) else { return };
        match endpoint.config().health {
            Health::Healthy => {
                level.healthy.out.fetch_add(self.count_of(endpoint), Relaxed);
                if let Some(place) = level.places.get(endpoint.place as usize) {
                    place.healthy.out.fetch_add(1, Relaxed);
                }
            }
            Health::Degraded => {
                level.degraded.out.fetch_add(self.count_of(endpoint), Relaxed);
            }
            _ => {}
        }
    }

    /// Counts afresh what is left out.
    pub(crate) fn recount(&self) {
        for level in &self.levels {
            for tier in [&level.healthy, &level.degraded] {
                tier.recount(self.by_weight);
            }
            level.places.iter().for_each(|place| place.healthy.recount(false));
        }
    }

    /// What the healthy of the first priority are looked up in.
    #[cfg(test)]
    pub(crate) fn lookup(&self) -> Option<&Arc<Lookup>> {
        self.levels.first()?.healthy.group.lookup()
    }

    fn count_of(&self, endpoint: &Endpoint) -> u64 {
        if self.by_weight { u64::from(endpoint.weight()) } else { 1 }
    }

    /// Percent of all requests that a tier of `total` could take.
    fn health(&self, level: &Level, tier: &Tier) -> u64 {
        (self.overprovisioning * tier.usable() / level.total.max(1)).min(100)
    }

    fn panics(&self, level: &Level) -> bool {
        100 * (level.healthy.usable() + level.degraded.usable()) < self.panic_threshold * level.total
    }

    /// The priority and tier a request goes to, and whether it is in panic.
    fn choose(&self, turn: &Turn<'_>, rng: &mut impl RngCore) -> Option<Choice> {
        let choice = |level, degraded, panics| Some(Choice { level, degraded, panics });
        if let [only] = self.levels.as_slice() {
            // The usual case, without arithmetic: all is well.
            if only.healthy.total == only.total && only.healthy.out.load(Relaxed) == 0 {
                return (only.total > 0).then_some(Choice { level: 0, degraded: false, panics: false });
            }
        }
        let healths = || {
            let healthy =
                self.levels.iter().enumerate().map(|(at, level)| (at, false, self.health(level, &level.healthy)));
            let degraded =
                self.levels.iter().enumerate().map(|(at, level)| (at, true, self.health(level, &level.degraded)));
            healthy.chain(degraded)
        };
        let total = healths().map(|(_, _, health)| health).sum::<u64>().min(100);
        let drawn = match (turn.policy.is_hashing(), turn.ask.hash) {
            (true, Some(hash)) => hash,
            _ => rng.next_u64(),
        } % 100
            + 1;
        if total < 100 && self.levels.iter().all(|level| level.total == 0 || self.panics(level)) {
            // All are in panic: by their sizes.
            let sizes = self.levels.iter().enumerate().map(|(at, level)| (at, level.total));
            return walk(sizes, drawn).and_then(|at| choice(at, false, true));
        }
        if total == 0 {
            // Panic is off and nothing is usable: nothing to pick.
            return None;
        }
        // Each takes its health of what is left; what rounding leaves over goes to the first that takes any.
        let mut left = 100;
        let given = |left: &mut u64, health: u64| {
            let load = (health * 100 / total).min(*left);
            *left -= load;
            load
        };
        healths().for_each(|(_, _, health)| {
            given(&mut left, health);
        });
        let (mut over, mut left, mut sum) = (left, 100, 0);
        for (at, degraded, health) in healths() {
            let load = given(&mut left, health);
            if load > 0 {
                sum += load + std::mem::take(&mut over);
            }
            if drawn <= sum {
                let panics = total < 100 && self.levels.get(at).is_some_and(|level| self.panics(level));
                return choice(at, degraded, panics);
            }
        }
        None
    }

    /// The endpoints of the locality a request goes to, or all where localities play no part.
    fn group<'a>(&self, level: &'a Level, choice: Choice, turn: &Turn<'_>, rng: &mut impl RngCore) -> &'a Group {
        let all = &level.healthy.group;
        if choice.degraded {
            return &level.degraded.group;
        }
        if turn.policy.is_hashing() || level.places.is_empty() {
            return all;
        }
        if level.weighted {
            return self.weighed(level, rng).unwrap_or(all);
        }
        match &self.zones {
            Some((aware, shares)) if choice.level == 0 => {
                let usable = |at: usize| level.places.get(at).map_or(0, |place| place.healthy.usable());
                let place = shares.choose(aware, level.places.len(), usable, rng);
                place.and_then(|at| level.places.get(at)).map_or(all, |place| &place.healthy.group)
            }
            _ => all,
        }
    }

    /// The locality a request goes to: by weight x min(1, factor x availability).
    fn weighed<'a>(&self, level: &'a Level, rng: &mut impl RngCore) -> Option<&'a Group> {
        let sum: u64 = level.places.iter().map(|place| place.share(self.overprovisioning)).sum();
        let mut drawn = below(rng.next_u64(), sum);
        for place in &level.places {
            match drawn.checked_sub(place.share(self.overprovisioning)) {
                None => return Some(&place.healthy.group),
                Some(rest) => drawn = rest,
            }
        }
        None
    }
}

/// Whose part of all `sizes` the percentage `drawn` (1 to 100) falls into.
fn walk(sizes: impl Iterator<Item = (usize, u64)> + Clone, drawn: u64) -> Option<usize> {
    let total: u64 = sizes.clone().map(|(_, size)| size).sum();
    if total == 0 {
        return None;
    }
    let mut over = 100 - sizes.clone().map(|(_, size)| size * 100 / total).sum::<u64>();
    let mut sum = 0;
    for (at, size) in sizes {
        if size > 0 {
            sum += size * 100 / total + std::mem::take(&mut over);
        }
        if drawn <= sum {
            return Some(at);
        }
    }
    None
}

impl Level {
    fn new(localities: Vec<LevelLocality<'_>>, at: usize, making: &Making<'_>, zones: bool) -> Self {
        let Making { config, roll, custom, before, .. } = making;
        let get = |at: &u32| roll.get(*at);
        let by_weight = config.endpoints.weighted_priority_health;
        let count = |members: &[u32]| match by_weight {
            true => members.iter().filter_map(get).map(|endpoint| u64::from(endpoint.weight())).sum(),
            false => members.len() as u64,
        };
        let policy = &config.load_balancer;
        let weighted = localities.iter().any(|place| place.weight.is_some_and(|weight| weight > 0));
        let before = before.and_then(|before| before.levels.get(at));
        let with = |members: &[u32], health: Health| -> Vec<u32> {
            let is_so = |at: &u32| get(at).is_some_and(|endpoint| endpoint.config().health == health);
            members.iter().copied().filter(is_so).collect()
        };
        let group = |members: Vec<u32>, before: Option<&Arc<Lookup>>| {
            let shares = match policy.is_hashing() {
                true => shares(&localities, weighted, &members.iter().filter_map(get).collect::<Vec<_>>()),
                false => Vec::new(),
            };
            Group::new(roll, members).serving(policy, &shares, before).with_custom(*custom)
        };
        let all: Vec<_> = match policy.is_hashing() && weighted {
            // The order counts for a ring: Envoy's is by locality, and one of no weight gets nothing.
            true => {
                let mut sorted: Vec<_> = localities.iter().filter(|place| place.weight.unwrap_or(0) > 0).collect();
                sorted.sort_by_key(|place| place.locality);
                sorted.into_iter().flat_map(|place| place.members.iter().copied()).collect()
            }
            false => localities.iter().flat_map(|place| place.members.iter().copied()).collect(),
        };
        let healthy = with(&all, Health::Healthy);
        let everything = (healthy.len() < all.len())
            .then(|| group(all.clone(), before.and_then(|before| before.all.as_ref()).and_then(Group::lookup)));
        let tier = |members: Vec<u32>, before: Option<&Tier>| Tier {
            total: count(&members),
            group: group(members, before.and_then(|before| before.group.lookup())),
            out: AtomicU64::new(0),
        };
        let degraded = tier(with(&all, Health::Degraded), before.map(|before| &before.degraded));
        let healthy = tier(healthy, before.map(|before| &before.healthy));
        let places = match (weighted || zones) && !policy.is_hashing() {
            false => Vec::new(),
            true => {
                let place = |place: &LevelLocality<'_>| {
                    let members = with(&place.members, Health::Healthy);
                    Place {
                        weight: u64::from(place.weight.unwrap_or(0)),
                        total: place.members.len() as u64,
                        healthy: Tier {
                            total: members.len() as u64,
                            group: group(members, None),
                            out: AtomicU64::new(0),
                        },
                    }
                };
                localities.iter().map(place).collect()
            }
        };
        let level = Self { healthy, degraded, total: count(&all), all: everything, places, weighted };
        level.healthy.recount(by_weight);
        level.degraded.recount(by_weight);
        level.places.iter().for_each(|place| place.healthy.recount(false));
        level
    }

    fn all(&self) -> &Group {
        self.all.as_ref().unwrap_or(&self.healthy.group)
    }

    /// Is there any endpoint that can be reached? Only asked where none was found at once.
    fn is_reachable(&self, turn: &Turn<'_>) -> bool {
        [&self.healthy, &self.degraded].iter().any(|tier| tier.is_reachable(turn.now))
    }
}

impl Tier {
    /// How much of it may be used, as of the last time something was left out.
    fn usable(&self) -> u64 {
        self.total.saturating_sub(self.out.load(Relaxed))
    }

    /// Is there any that may be used and can be reached?
    fn is_reachable(&self, now: Time) -> bool {
        let mut seats = (0..self.group.len()).filter_map(|at| self.group.hot(at));
        seats.any(|hot| !hot.is_out() && !hot.is_unreachable(now))
    }

    fn recount(&self, by_weight: bool) {
        let out = self.group.endpoints().filter(|endpoint| endpoint.is_ejected() || endpoint.is_failing_checks());
        let out = out.map(|endpoint| if by_weight { u64::from(endpoint.weight()) } else { 1 }).sum();
        self.out.store(out, Relaxed);
    }
}

impl Place {
    /// In ten-thousandths of the weight.
    fn share(&self, overprovisioning: u64) -> u64 {
        let available = 100 * overprovisioning * self.healthy.usable() / self.total.max(1);
        self.weight * available.min(10_000)
    }
}

/// The share of each endpoint in all, by weight, within its locality where those have weights. Worked out in Envoy's order of
/// operations, since a ring's entries depend on the last bit.
fn shares(localities: &[LevelLocality<'_>], weighted: bool, endpoints: &[&Arc<Endpoint>]) -> Vec<f64> {
    if !weighted {
        let all: u64 = endpoints.iter().map(|endpoint| u64::from(endpoint.weight())).sum();
        return endpoints.iter().map(|endpoint| f64::from(endpoint.weight()) / all as f64).collect();
    }
    let weights: u64 = localities.iter().map(|place| u64::from(place.weight.unwrap_or(0))).sum();
    let mut sums = vec![0_u64; localities.len()];
    for endpoint in endpoints {
        if let Some(sum) = sums.get_mut(endpoint.place as usize) {
            *sum += u64::from(endpoint.weight());
        }
    }
    let share = |endpoint: &&Arc<Endpoint>| {
        let at = endpoint.place as usize;
        let weight = localities.get(at).and_then(|place| place.weight).unwrap_or(0);
        let part = f64::from(weight) / weights as f64;
        f64::from(endpoint.weight()) * part / sums.get(at).copied().unwrap_or(1) as f64
    };
    endpoints.iter().map(share).collect()
}

const DEFAULT_OVERPROVISIONING: u64 = 140;

impl crate::cluster::Cluster {
    /// Where an endpoint of it is.
    pub fn locality_of(&self, endpoint: &Endpoint) -> Option<&Locality> {
        let all = &self.config().endpoints.localities;
        let mut priorities: Vec<u32> = all.iter().map(|locality| locality.priority).collect();
        priorities.sort_unstable();
        priorities.dedup();
        let (level, place) = endpoint.place();
        let priority = *priorities.get(usize::try_from(level).ok()?)?;
        let of_level = all.iter().filter(|locality| locality.priority == priority).nth(usize::try_from(place).ok()?);
        of_level.map(|locality| &locality.locality)
    }
}
