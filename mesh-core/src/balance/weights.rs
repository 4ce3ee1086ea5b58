//! The endpoints a policy chooses among, with their weights in the two forms policies need: the alias method (Walker
//! 1977, Vose 1991) draws by weight in constant time, the static stride gives turns by weight.

use std::sync::Arc;

use rand::RngCore;

use super::{Lookup, Policy, Turn, client_weighted::Strides};
use crate::{
    config::LoadBalancer,
    endpoint::{Endpoint, Hot},
    rng::below,
    roll::{Roll, Run},
    sync::AtomicU64,
};

/// Endpoints to choose among, told by their places here.
#[derive(Debug, Default)]
pub(crate) struct Group {
    roll: Arc<Roll>,
    /// The number of each in the cluster.
    members: Run,
    /// Where what a pick compares of each lies, if it lies together.
    seats: Option<(Arc<[Hot]>, Run)>,
    /// `None` when all weigh the same.
    weights: Option<Weights>,
    /// The next turn of round robin; which one is the first.
    pub(super) turn: AtomicU64,
    /// Of hashing policies, made when the endpoints change.
    lookup: Option<Arc<Lookup>>,
    /// Of the weights that endpoints report.
    pub(super) strides: Option<Strides>,
    /// A policy of the program's own.
    custom: Option<Custom>,
}

/// A policy of the program's own, and the list it is shown.
#[derive(Debug)]
struct Custom {
    policy: Arc<dyn Policy>,
    endpoints: Vec<Arc<Endpoint>>,
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
    /// The endpoint's weight, here to be at hand when loads are compared.
    weight: u32,
}

impl Group {
    pub(super) const STRIDE: u64 = u16::MAX as u64;

    pub(crate) fn new(roll: &Arc<Roll>, members: Vec<u32>) -> Self {
        let members = Run::of(members);
        let seats = roll.seats_of(&members);
        let mut group = Self { roll: Arc::clone(roll), members, seats, ..Self::default() };
        let weights: Vec<_> = group.endpoints().map(Endpoint::weight).collect();
        let even = weights.iter().all(|weight| Some(weight) == weights.first());
        group.weights = (!even).then(|| Weights::new(&weights));
        group
    }

    /// How many.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    /// What a pick compares of the one at that place.
    #[inline]
    pub(crate) fn hot(&self, at: usize) -> Option<&Hot> {
        match &self.seats {
            Some((seats, places)) => seats.get(places.get(at)? as usize),
            None => self.roll.hot(self.members.get(at)?),
        }
    }

    /// Its number in the cluster.
    pub(super) fn number(&self, at: usize) -> Option<u32> {
        self.members.get(at)
    }

    pub(super) fn endpoint(&self, at: usize) -> Option<&Arc<Endpoint>> {
        self.roll.get(self.members.get(at)?)
    }

    /// Its weight beside the others'.
    #[inline]
    pub(super) fn weight(&self, at: usize) -> u32 {
        self.weights.as_ref().and_then(|weights| weights.aliases.get(at)).map_or(1, |alias| alias.weight)
    }

    pub(crate) fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        (0..self.len()).filter_map(|at| self.endpoint(at)).map(|endpoint| &**endpoint)
    }

    /// Ready for a policy. Shares of hashing policies add up to 1; `before` is what they had to look into until now.
    pub(crate) fn serving(mut self, policy: &LoadBalancer, shares: &[f64], before: Option<&Arc<Lookup>>) -> Self {
        self.lookup = if policy.is_hashing() {
            Lookup::new(policy, &self.endpoints().collect::<Vec<_>>(), shares, before)
        } else {
            None
        };
        if matches!(policy, LoadBalancer::ClientWeighted(_)) {
            self.weights = None;
            self.strides = Some(Strides::new(self.len()));
        }
        self
    }

    /// With a policy of the program's own.
    pub(crate) fn with_custom(mut self, custom: Option<&Arc<dyn Policy>>) -> Self {
        let endpoints = || (0..self.len()).filter_map(|at| self.endpoint(at).cloned()).collect();
        self.custom = custom.map(|policy| Custom { policy: Arc::clone(policy), endpoints: endpoints() });
        self
    }

    /// The choice of that policy.
    pub(super) fn pick_custom(
        &self,
        may: &dyn Fn(&Endpoint) -> bool,
        turn: &Turn<'_>,
        rng: &mut impl RngCore,
    ) -> Option<usize> {
        let Custom { policy, endpoints } = self.custom.as_ref()?;
        policy.pick(endpoints, may, turn.ask, turn.now, rng)
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
        below(rng.next_u64(), self.len() as u64) as usize
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
    fn new(weights: &[u32]) -> Self {
        let n = weights.len() as u128;
        let sum: u128 = weights.iter().copied().map(u128::from).sum();
        let most = u128::from(weights.iter().copied().max().unwrap_or(1));
        let stride = |weight: &u32| (u128::from(*weight) * u128::from(Group::STRIDE) / most).max(1) as u16;
        let strides = weights.iter().map(stride).collect();
        // Vose's method in whole numbers: columns of height `sum`, each endpoint filling weight x n.
        let mut left: Vec<u128> = weights.iter().map(|weight| u128::from(*weight) * n).collect();
        let (mut small, mut large): (Vec<usize>, Vec<usize>) = (0..left.len()).partition(|at| left[*at] < sum);
        let alias = |weight: &u32| Alias { own: 1 << 32, other: 0, weight: *weight };
        let mut aliases: Vec<_> = weights.iter().map(alias).collect();
        while let (Some(low), Some(high)) = (small.pop(), large.pop()) {
            aliases[low].own = ((left[low] << 32) / sum) as u64;
            aliases[low].other = high as u32;
            left[high] -= sum - left[low];
            if left[high] < sum { small.push(high) } else { large.push(high) }
        }
        Self { aliases, strides }
    }
}
