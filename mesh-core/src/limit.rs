//! How much may be under way at once: the counters behind circuit breaking. Source: Envoy `CircuitBreakers.Thresholds`.
//!
//! Counters live as long as the cluster does, across snapshots; limits are read from the configuration at each
//! acquisition, so lowering one never ends what is under way (CB1). Token buckets for rates are not here.

use std::sync::Arc;

use crate::{
    config::Thresholds,
    sync::{AtomicU32, Ordering::Relaxed},
};

/// How many of something are under way.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU32);

impl Counter {
    /// Takes a slot if fewer than `limit` are taken.
    pub(crate) fn acquire(&self, limit: u32) -> bool {
        // Add first and take back: one atomic step in the common case, and never more than `limit` that succeed.
        if self.0.fetch_add(1, Relaxed) < limit {
            return true;
        }
        self.release();
        false
    }

    /// Frees a slot that was taken.
    pub(crate) fn release(&self) {
        self.0.fetch_sub(1, Relaxed);
    }

    /// How many are taken.
    pub(crate) fn count(&self) -> u32 {
        self.0.load(Relaxed)
    }
}

/// The counters of one cluster.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) requests: Counter,
    pub(crate) retries: Counter,
    pub(crate) connections: Counter,
    pub(crate) pending: Counter,
}

impl Counters {
    /// How many retries may be under way: a share of the requests that are, and `more`, where there is a budget, which
    /// replaces the plain limit. Source: Envoy `RetryBudget`.
    pub(crate) fn retry_limit(&self, thresholds: &Thresholds, more: u32) -> u32 {
        let Some(budget) = thresholds.retry_budget else { return thresholds.max_retries };
        let active = u64::from(self.requests.count()) + u64::from(self.pending.count()) + u64::from(more);
        // The fraction is cut off, as in Envoy; a float is cut to what fits.
        let share = (budget.percent / 100.0 * active as f64) as u32;
        share.max(budget.min_concurrency)
    }
}

/// A slot under one of a cluster's limits, free again when dropped.
#[derive(Debug)]
#[must_use = "dropping it frees the slot"]
pub struct Slot {
    counters: Arc<Counters>,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Retry,
    Connection,
    Pending,
}

impl Slot {
    pub(crate) fn acquire(counters: &Arc<Counters>, kind: Kind, limit: u32) -> Option<Self> {
        let slot = || Self { counters: Arc::clone(counters), kind };
        counter(counters, kind).acquire(limit).then(slot)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        counter(&self.counters, self.kind).release();
    }
}

fn counter(counters: &Counters, kind: Kind) -> &Counter {
    match kind {
        Kind::Retry => &counters.retries,
        Kind::Connection => &counters.connections,
        Kind::Pending => &counters.pending,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CB3: a slot is refused at the limit and free again when dropped.
    #[test]
    fn a_slot_is_free_again_when_dropped() {
        let counters = Arc::new(Counters::default());
        let first = Slot::acquire(&counters, Kind::Retry, 1);
        assert!(first.is_some());
        assert!(Slot::acquire(&counters, Kind::Retry, 1).is_none());
        assert!(Slot::acquire(&counters, Kind::Pending, 1).is_some(), "limits are apart");
        drop(first);
        assert_eq!(counters.retries.count(), 0);
        assert!(Slot::acquire(&counters, Kind::Retry, 1).is_some());
        assert!(Slot::acquire(&counters, Kind::Retry, 0).is_none());
    }
}
