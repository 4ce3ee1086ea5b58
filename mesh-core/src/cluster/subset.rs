//! Using only some of the endpoints, other ones in every process. Source: gRFC A68 (random subsetting), Envoy
//! `RandomSubsetting`.
//!
//! Rendezvous hashing: each endpoint has a hash of its address and this process's seed, and those with the smallest are used.
//! So all endpoints are used about equally by many processes, and one that comes or goes changes little.

use std::collections::BTreeMap;

use xxhash_rust::xxh64::xxh64;

use crate::config::{Cluster, Endpoint};

/// Which endpoints of a cluster this process uses.
pub(super) struct Subset {
    seed: u64,
    /// The largest hash that is used, by priority; `None` uses all.
    most: Option<BTreeMap<u32, u64>>,
}

impl Subset {
    pub(super) fn new(config: &Cluster, seed: u64) -> Self {
        let Some(size) = config.subset_size else { return Self { seed, most: None } };
        let mut hashes: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        for locality in &config.endpoints.localities {
            let of = locality.endpoints.iter().map(|endpoint| hash(endpoint, seed));
            hashes.entry(locality.priority).or_default().extend(of);
        }
        let most = hashes.into_iter().map(|(priority, mut hashes)| {
            hashes.sort_unstable();
            let last = hashes.get((size.max(1) - 1) as usize).copied().unwrap_or(u64::MAX);
            (priority, last)
        });
        Self { seed, most: Some(most.collect()) }
    }

    /// All are used.
    pub(super) fn is_all(&self) -> bool {
        self.most.is_none()
    }

    pub(super) fn has(&self, priority: u32, endpoint: &Endpoint) -> bool {
        let Some(most) = &self.most else { return true };
        most.get(&priority).is_none_or(|most| hash(endpoint, self.seed) <= *most)
    }
}

fn hash(endpoint: &Endpoint, seed: u64) -> u64 {
    xxh64(endpoint.address.to_string().as_bytes(), seed)
}
