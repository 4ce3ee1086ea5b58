//! Choosing by the request's hash: the ring or table of a group, and going on from there when its endpoint will not do.
//!
//! A table is made anew only when the endpoints it is made of, their weights or its own settings change: whoever compiles hands
//! in the previous one. Endpoints that are left out for a while (ejected, not reachable) stay in it, and their requests
//! go to the owner of the next entry, so that the others' do not move and nothing is built while requests wait; Envoy
//! makes the table anew without them. A request without a hash goes to a random place.

use std::sync::Arc;

use rand::RngCore;
use xxhash_rust::xxh64::xxh64;

use super::{Group, Turn, maglev, ring_hash};
use crate::{
    config::{ConsistentHash, LoadBalancer},
    endpoint::Endpoint,
    sync::Ordering::Relaxed,
};

/// A ring or table, with what it was made of.
#[derive(Debug)]
pub(crate) struct Lookup {
    policy: LoadBalancer,
    /// The hash of each endpoint's key, and its share.
    members: Vec<(u64, f64)>,
    table: Table,
}

#[derive(Debug)]
enum Table {
    Ring(ring_hash::Ring),
    Maglev(maglev::Table),
}

impl Lookup {
    /// That of endpoints with shares that add up to 1; one of those before, if it is made of the same. `None` if the
    /// policy does not choose by hash.
    pub(crate) fn new(
        policy: &LoadBalancer,
        endpoints: &[&Endpoint],
        shares: &[f64],
        before: Option<&Arc<Self>>,
    ) -> Option<Arc<Self>> {
        let common = common(policy)?;
        let members = || endpoints.iter().copied().zip(shares.iter().copied());
        let id = |endpoint: &Endpoint| match key(endpoint, common) {
            Some(key) => xxh64(key.as_bytes(), 0),
            // The same, computed when the endpoint was made.
            None => endpoint.id,
        };
        if let Some(before) =
            before.filter(|before| before.policy == *policy && before.members.len() == endpoints.len())
            && before.members.iter().zip(members()).all(|(old, (new, share))| *old == (id(new), share))
        {
            return Some(Arc::clone(before));
        }
        let texts: Vec<_> = members().map(|(endpoint, share)| (text(endpoint, common), share)).collect();
        let keys: Vec<_> = texts.iter().map(|(text, share)| (text.as_str(), *share)).collect();
        let table = match policy {
            LoadBalancer::RingHash(config) => Table::Ring(ring_hash::Ring::new(&keys, config)),
            LoadBalancer::Maglev(config) => Table::Maglev(maglev::Table::new(&keys, config.table_size)),
            _ => return None,
        };
        let members = members().map(|(endpoint, share)| (id(endpoint), share)).collect();
        Some(Arc::new(Self { policy: policy.clone(), members, table }))
    }

    fn find(&self, hash: u64) -> usize {
        match &self.table {
            Table::Ring(ring) => ring.find(hash),
            Table::Maglev(table) => table.find(hash),
        }
    }

    fn owner(&self, at: usize) -> Option<usize> {
        match &self.table {
            Table::Ring(ring) => ring.owner(at),
            Table::Maglev(table) => table.owner(at),
        }
    }

    fn len(&self) -> usize {
        match &self.table {
            Table::Ring(ring) => ring.len(),
            Table::Maglev(table) => table.len(),
        }
    }

    /// May this endpoint take one more, by its share of what is under way? Source: Envoy `hash_balance_factor`.
    fn has_room(&self, at: usize, in_flight: u32, turn: &Turn<'_>, factor: u32) -> bool {
        let share = self.members.get(at).map_or(0.0, |(_, share)| *share);
        let slots = (u64::from(turn.under_way) * u64::from(factor)).div_ceil(100);
        f64::from(in_flight) < (slots as f64 * share).ceil().max(1.0)
    }
}

pub(super) fn pick(
    group: &Group,
    turn: &Turn<'_>,
    rng: &mut impl RngCore,
    may: &impl Fn(usize) -> bool,
) -> Option<usize> {
    let lookup = group.lookup()?;
    let factor = common(turn.policy)?.balance_factor;
    let hash = turn.ask.hash.unwrap_or_else(|| rng.next_u64());
    let in_flight = |at: usize| group.hot(at).map_or(0, |hot| hot.in_flight.load(Relaxed));
    let has_room = |at: usize| factor == 0 || lookup.has_room(at, in_flight(at), turn, factor);
    let fits = |at: usize| (may(at) && has_room(at)).then_some(at);
    let start = lookup.find(hash);
    for step in 0..lookup.len().min(STEPS) {
        if let Some(at) = lookup.owner(start + step).and_then(fits) {
            return Some(at);
        }
    }
    // A long run of endpoints that will not do: the list instead, from a place of the hash's own.
    let from = lookup.owner(start)?;
    let rest = || (from..group.len()).chain(0..from);
    rest().find_map(fits).or_else(|| rest().find(|at| may(*at)))
}

/// Entries looked at one after the other.
const STEPS: usize = 64;

fn common(policy: &LoadBalancer) -> Option<ConsistentHash> {
    match policy {
        LoadBalancer::RingHash(config) => Some(config.common),
        LoadBalancer::Maglev(config) => Some(config.common),
        _ => None,
    }
}

/// What an endpoint is known by, if not by its address: a key of its own (gRFC A76), or its host name.
fn key(endpoint: &Endpoint, common: ConsistentHash) -> Option<&str> {
    let config = endpoint.config();
    config
        .hash_key
        .as_deref()
        .or_else(|| (common.by_hostname && !config.hostname.is_empty()).then_some(&*config.hostname))
}

fn text(endpoint: &Endpoint, common: ConsistentHash) -> String {
    key(endpoint, common).map_or_else(|| endpoint.address().to_string(), str::to_owned)
}
