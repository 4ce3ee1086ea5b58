//! The endpoints a policy chooses among, with their weights in the two forms policies need: the alias method (Walker
//! 1977, Vose 1991) draws by weight in constant time, the static stride gives turns by weight.

use std::sync::Arc;

use rand::RngCore;

use super::{Lookup, Policy, client_weighted::Strides};
use crate::{config::LoadBalancer, endpoint::Endpoint, rng::below, sync::AtomicU64};

/// Endpoints to choose among.
#[derive(Debug, Default)]
pub(crate) struct Group {
    endpoints: Vec<Arc<Endpoint>>,
    /// `None` when all weigh the same.
    weights: Option<Weights>,
    /// The next turn of round robin; which one is the first.
    pub(super) turn: AtomicU64,
    /// Of hashing policies, made when the endpoints change.
    lookup: Option<Arc<Lookup>>,
    /// Of the weights that endpoints report.
    pub(super) strides: Option<Strides>,
    pub(super) custom: Option<Arc<dyn Policy>>,
}

#[derive(Debug)]
struct Weights {
    /// Of each endpoint: below `own` of 2^32 it is drawn itself, else its alias.
    aliases: Vec<Alias>,
    /// Weights scaled so that the largest is [`Group::STRIDE`].
    strides: Vec<u16>,
}

#[derive(Clone, Copy, Debug)]
struct Alias {
    own: u64,
    other: u32,
}

impl Group {
    pub(super) const STRIDE: u64 = u16::MAX as u64;

    pub(crate) fn new(endpoints: Vec<Arc<Endpoint>>) -> Self {
        let first = endpoints.first().map_or(1, |endpoint| endpoint.weight());
        let even = endpoints.iter().all(|endpoint| endpoint.weight() == first);
        let weights = (!even).then(|| Weights::new(&endpoints));
        Self { endpoints, weights, ..Self::default() }
    }

    pub(crate) fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    /// Ready for a policy. Shares of hashing policies add up to 1; `before` is what they had to look into until now.
    pub(crate) fn serving(mut self, policy: &LoadBalancer, shares: &[f64], before: Option<&Arc<Lookup>>) -> Self {
        self.lookup = Lookup::new(policy, &self.endpoints, shares, before);
        if matches!(policy, LoadBalancer::ClientWeighted(_)) {
            self.weights = None;
            self.strides = Some(Strides::new(self.endpoints.len()));
        }
        self
    }

    /// With a policy of the program's own.
    pub(crate) fn with_custom(mut self, custom: Option<&Arc<dyn Policy>>) -> Self {
        self.custom = custom.cloned();
        self
    }

    /// What a hashing policy looks into.
    pub(crate) fn lookup(&self) -> Option<&Arc<Lookup>> {
        self.lookup.as_ref()
    }

    /// The stride of one endpoint; `None` when all weigh the same.
    pub(super) fn stride(&self, at: usize) -> Option<u64> {
        if let Some(strides) = &self.strides {
            return strides.get(at);
        }
        self.weights.as_ref().and_then(|weights| weights.strides.get(at)).map(|stride| u64::from(*stride))
    }

    /// Do weights differ?
    pub(super) fn is_uneven(&self) -> bool {
        self.weights.is_some()
    }

    /// Draws one with equal chances.
    pub(super) fn draw_evenly(&self, rng: &mut impl RngCore) -> usize {
        below(rng.next_u64(), self.endpoints.len() as u64) as usize
    }

    /// Draws one by weight.
    pub(super) fn draw(&self, rng: &mut impl RngCore) -> usize {
        let at = self.draw_evenly(rng);
        let Some(weights) = &self.weights else { return at };
        let alias = weights.aliases[at];
        if u64::from(rng.next_u32()) < alias.own { at } else { alias.other as usize }
    }
}

impl Weights {
    fn new(endpoints: &[Arc<Endpoint>]) -> Self {
        let n = endpoints.len() as u128;
        let weight = |endpoint: &Arc<Endpoint>| u128::from(endpoint.weight());
        let sum: u128 = endpoints.iter().map(weight).sum();
        let most = endpoints.iter().map(weight).max().unwrap_or(1);
        let strides = endpoints.iter().map(|e| (weight(e) * u128::from(Group::STRIDE) / most).max(1) as u16).collect();
        // Vose's method in whole numbers: columns of height `sum`, each endpoint filling weight x n.
        let mut left: Vec<u128> = endpoints.iter().map(|endpoint| weight(endpoint) * n).collect();
        let (mut small, mut large): (Vec<usize>, Vec<usize>) = (0..left.len()).partition(|at| left[*at] < sum);
        let mut aliases = vec![Alias { own: 1 << 32, other: 0 }; left.len()];
        while let (Some(low), Some(high)) = (small.pop(), large.pop()) {
            aliases[low] = Alias { own: ((left[low] << 32) / sum) as u64, other: high as u32 };
            left[high] -= sum - left[low];
            if left[high] < sum { small.push(high) } else { large.push(high) }
        }
        Self { aliases, strides }
    }
}
