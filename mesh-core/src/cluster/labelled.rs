//! The subsets of a cluster's endpoints by their labels, and which one a request is for. Source: Envoy's subset load balancer.
//!
//! For each selector there is one subset for each combination of values that endpoints have for its keys, found by hash. A
//! subset has priorities, localities and panic of its own, as a cluster has. One that exists is used whatever its health;
//! a fallback is for requests whose subset does not exist.

use std::{collections::BTreeMap, hash::Hasher, sync::Arc};

use hashbrown::HashTable;
use rand::RngCore;
use xxhash_rust::xxh64::Xxh64;

use crate::{
    balance::Turn,
    config::{self, Locality, Metadata, MetadataValue, Name, SelectorFallback, SubsetFallback, Subsets},
    endpoint::Endpoint,
    locality::{LevelLocality, Levels, Making},
};

/// The subsets of a cluster.
#[derive(Debug)]
pub(super) struct Labelled {
    config: Arc<Subsets>,
    subsets: HashTable<Subset>,
    default: Option<Subset>,
}

#[derive(Debug)]
struct Subset {
    labels: Metadata,
    levels: Levels,
}

/// The localities of a cluster by priority, as they are compiled.
pub(super) type ByPriority<'a> = [Vec<LevelLocality<'a>>];

/// Endpoints by number, with the places of their localities: priority, then locality.
type Placed = Vec<(usize, usize, u32)>;

impl Labelled {
    pub(super) fn new(
        config: &Arc<Subsets>,
        all: &ByPriority<'_>,
        making: &Making<'_>,
        previous: Option<&Self>,
    ) -> Self {
        let mut subsets = HashTable::new();
        for selector in &config.selectors {
            let mut found: BTreeMap<Metadata, Placed> = BTreeMap::new();
            for (level, place, at) in placed(all) {
                let endpoint = making.roll.get(at);
                let Some(labels) = endpoint.and_then(|endpoint| labels_of(endpoint.config(), &selector.keys)) else {
                    continue;
                };
                let members = found.entry(labels).or_default();
                if members.is_empty() || !selector.single {
                    members.push((level, place, at));
                }
            }
            for (labels, members) in found {
                let before = previous.and_then(|previous| previous.find(labels.iter()));
                let subset = Subset::new(config, labels, &members, all, &Making { before, ..*making });
                subsets.insert_unique(hash(subset.labels.iter()), subset, |subset| hash(subset.labels.iter()));
            }
        }
        let default = (config.fallback == SubsetFallback::Default).then(|| {
            let is_default = |at: u32| making.roll.get(at).is_some_and(|it| has(it.config(), &config.default));
            let members = placed(all).filter(|(_, _, at)| is_default(*at)).collect();
            let before = previous.and_then(|previous| Some(&previous.default.as_ref()?.levels));
            Subset::new(config, config.default.clone(), &members, all, &Making { before, ..*making })
        });
        Self { config: Arc::clone(config), subsets, default }
    }

    /// Picks an endpoint of the subset the request is for; `all` is the whole cluster.
    pub(super) fn pick(&self, all: &Levels, turn: &Turn<'_>, rng: &mut impl RngCore) -> Option<u32> {
        let criteria = turn.ask.criteria;
        if self.config.by_list && !criteria.list.is_empty() {
            return criteria.list.iter().find_map(|labels| self.pick_by(labels, all, turn, rng));
        }
        self.pick_by(&criteria.metadata, all, turn, rng)
    }

    fn pick_by(
        &self,
        labels: &[(Name, MetadataValue)],
        all: &Levels,
        turn: &Turn<'_>,
        rng: &mut impl RngCore,
    ) -> Option<u32> {
        let mut only: Option<&[Name]> = None;
        // Each round has fewer keys than the one before, so it ends.
        for _ in 0..=labels.len() {
            let asked = labels.iter().filter(|(key, _)| only.is_none_or(|keys| keys.contains(key)));
            if let Some(levels) = self.find(asked.clone()) {
                return levels.pick(turn, rng);
            }
            let keys = asked.map(|(key, _)| key);
            let selector = self.config.selectors.iter().find(|selector| selector.keys.iter().eq(keys.clone()));
            match selector.and_then(|selector| selector.fallback.as_ref()) {
                Some(SelectorFallback::Keys(fewer)) => only = Some(fewer),
                Some(SelectorFallback::To(fallback)) => return self.fall_back(*fallback, all, turn, rng),
                None => break,
            }
        }
        let found = self.fall_back(self.config.fallback, all, turn, rng);
        found.or_else(|| if self.config.panic_to_any { all.pick(turn, rng) } else { None })
    }

    fn fall_back(
        &self,
        fallback: SubsetFallback,
        all: &Levels,
        turn: &Turn<'_>,
        rng: &mut impl RngCore,
    ) -> Option<u32> {
        match fallback {
            SubsetFallback::None => None,
            SubsetFallback::Any => all.pick(turn, rng),
            SubsetFallback::Default => self.default.as_ref()?.levels.pick(turn, rng),
        }
    }

    /// May the endpoint be picked for these criteria? Of those that lead to a fallback, any may.
    pub(super) fn may_pick(&self, endpoint: &Endpoint, criteria: &config::Criteria) -> bool {
        let labels = &criteria.metadata;
        labels.is_empty() || has(endpoint.config(), labels) || self.find(labels.iter()).is_none()
    }

    fn find<'a>(&self, labels: impl Iterator<Item = &'a (Name, MetadataValue)> + Clone) -> Option<&Levels> {
        // Without anything asked there is no subset, not the one of everything.
        labels.clone().next()?;
        let is_it = |subset: &Subset| subset.labels.iter().eq(labels.clone());
        self.subsets.find(hash(labels.clone()), is_it).map(|subset| &subset.levels)
    }

    /// An endpoint was left out.
    pub(super) fn note_out(&self, endpoint: &Endpoint) {
        let with = self.subsets.iter().chain(&self.default).filter(|subset| has(endpoint.config(), &subset.labels));
        with.for_each(|subset| subset.levels.recount());
    }

    /// Counts afresh what is left out.
    pub(super) fn recount(&self) {
        self.subsets.iter().chain(&self.default).for_each(|subset| subset.levels.recount());
    }
}

impl Subset {
    /// Of these endpoints, with the priorities and localities of all, so that an endpoint's place is the same in both.
    fn new(config: &Subsets, labels: Metadata, members: &Placed, all: &ByPriority<'_>, making: &Making<'_>) -> Self {
        let mut by_place: BTreeMap<(usize, usize), Vec<u32>> = BTreeMap::new();
        for (level, place, at) in members {
            by_place.entry((*level, *place)).or_default().push(*at);
        }
        let levels = all.iter().enumerate().map(|(level, places)| {
            let places = places.iter().enumerate().map(|(at, place): (usize, &LevelLocality<'_>)| {
                let members = by_place.remove(&(level, at)).unwrap_or_default();
                let share = members.len() as f64 / place.members.len().max(1) as f64;
                let scaled = |weight: u32| (f64::from(weight) * share).round().max(1.0) as u32;
                let weight = place.weight.filter(|_| !members.is_empty());
                let weight = if config.scale_locality_weights { weight.map(scaled) } else { weight };
                let locality: &Locality = place.locality;
                LevelLocality { locality, weight, members }
            });
            places.collect()
        });
        let levels = Levels::new(levels.collect(), making);
        Self { labels, levels }
    }
}

fn placed<'a>(all: &'a ByPriority<'_>) -> impl Iterator<Item = (usize, usize, u32)> + 'a {
    all.iter().enumerate().flat_map(|(level, places)| {
        let places = places.iter().enumerate();
        places.flat_map(move |(place, of)| of.members.iter().map(move |at| (level, place, *at)))
    })
}

/// The endpoint's values for these keys, if it has all of them.
fn labels_of(endpoint: &config::Endpoint, keys: &[Name]) -> Option<Metadata> {
    let own = endpoint.metadata();
    keys.iter().map(|key| own.iter().find(|(own, _)| own == key).cloned()).collect()
}

fn has(endpoint: &config::Endpoint, labels: &[(Name, MetadataValue)]) -> bool {
    let own = endpoint.metadata();
    labels.iter().all(|label| own.contains(label))
}

fn hash<'a>(labels: impl Iterator<Item = &'a (Name, MetadataValue)>) -> u64 {
    let mut hasher = Xxh64::new(0);
    for (key, value) in labels {
        hasher.write(key.as_bytes());
        let (kind, text) = match value {
            MetadataValue::Text(text) => (1, text.as_bytes()),
            MetadataValue::Number(text) => (2, text.as_bytes()),
            MetadataValue::Bool(true) => (3, &b"1"[..]),
            MetadataValue::Bool(false) => (3, &b"0"[..]),
        };
        hasher.write(&[0, kind]);
        hasher.write(text);
        hasher.write(&[0]);
    }
    hasher.finish()
}
