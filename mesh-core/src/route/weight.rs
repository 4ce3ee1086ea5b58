//! A split by weight: one destination of several, with probability weight over the sum of weights (RA3).
//!
//! Where chance decides, requests take turns ([`Turns`]): the order is random, the shares of every window are exact, so that a
//! canary of 1 % gets one request of each hundred and not none of three hundred.

use std::{hash::Hasher, sync::Arc};

use xxhash_rust::xxh64::Xxh64;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::{
    config::{self, Criteria, Name, SplitBy},
    error::CompileError,
    fault::Faults,
    rewrite::HeaderEdits,
    rng::{below, mix},
    sync::{AtomicU64, Ordering::Relaxed},
};

/// Destinations and their shares. Empty for routes that send nowhere.
#[derive(Clone, Debug, Default)]
pub struct Split {
    destinations: Vec<Destination>,
    by: By,
    /// At most `u32::MAX`, checked when made.
    total: u64,
    turns: Arc<Turns>,
}

/// Whose turn it is. A window is as many requests as the weights, made as small as they can be, have in sum; within it each point is
/// taken once, in an order of its own: `step * i + start` around the window, where the step has no divisor in common with it.
#[derive(Debug, Default)]
struct Turns {
    window: u64,
    /// Weights are this many times what they could be.
    scale: u64,
    /// Steps without a divisor in common with the window, so far apart that short runs are even, too.
    steps: Vec<u64>,
    /// What orders are drawn from: chance of the first request, so that clients do not march in step.
    key: AtomicU64,
    taken: AtomicU64,
}

/// One destination of a [`Split`].
#[derive(Clone, Debug)]
pub struct Destination {
    /// The cluster's name.
    pub cluster: Name,
    /// Its share of the sum; 0 is never drawn.
    pub weight: u32,
    pub(crate) hash: u64,
    /// The cluster's name is the first value of this header.
    pub(crate) header: Option<HeaderName>,
    pub(crate) edits: HeaderEdits,
    pub(crate) host_rewrite: Option<HeaderValue>,
    pub(crate) fault: Option<Arc<Faults>>,
    /// Which of the cluster's endpoints the request is for.
    pub(crate) criteria: Criteria,
}

/// What decides, beside chance.
#[derive(Clone, Debug, Default)]
enum By {
    #[default]
    Random,
    Header(HeaderName),
    Hash,
}

impl Split {
    /// A split by chance and nothing else. Fails when it is empty or the sum of weights is zero or over `u32::MAX`.
    pub fn new(clusters: impl IntoIterator<Item = (Name, u32)>) -> Result<Self, CompileError> {
        let cluster = |(cluster, weight)| config::WeightedCluster { cluster, weight, ..Default::default() };
        let clusters: Vec<_> = clusters.into_iter().map(cluster).collect();
        Self::compile(&clusters, &SplitBy::Random)
    }

    pub(crate) fn compile(clusters: &[config::WeightedCluster], by: &SplitBy) -> Result<Self, CompileError> {
        let destinations = clusters.iter().map(Destination::compile).collect::<Result<Vec<_>, _>>()?;
        let total = destinations.iter().map(|destination| u64::from(destination.weight)).sum();
        if total == 0 {
            return Err(CompileError::new("split", "weight", "the sum of weights is zero; give at least one a weight"));
        }
        if total > u64::from(u32::MAX) {
            return Err(CompileError::new(
                "split",
                "weight",
                "the sum of weights is over 4294967295; make them smaller",
            ));
        }
        let by = match by {
            SplitBy::Random => By::Random,
            SplitBy::Header(name) => By::Header(header_name(name)?),
            SplitBy::Hash => By::Hash,
        };
        let turns = Arc::new(Turns::of(destinations.iter().map(|destination| u64::from(destination.weight)), total));
        Ok(Self { destinations, by, total, turns })
    }

    /// The destination of a request: by its header or its hash, where that decides and is there, else by turns, whose order the
    /// first request's 64 random `bits` decide. One that was drawn before for the same session stays.
    pub(crate) fn choose(
        &self,
        headers: &HeaderMap,
        before: Option<u32>,
        hash: Option<u64>,
        bits: u64,
    ) -> Option<(u32, &Destination)> {
        if let Some(at) = before
            && let Some(destination) = self.destinations.get(at as usize)
        {
            return Some((at, destination));
        }
        let number = match &self.by {
            By::Random => None,
            By::Header(name) => sticky_number(headers, name),
            By::Hash => hash,
        };
        match number.and_then(|number| number.checked_rem(self.total)) {
            Some(point) => self.at(point),
            None if self.destinations.len() == 1 => self.draw(bits),
            None => self.at(self.turns.next(bits)),
        }
    }

    /// The destination that 64 random `bits` draw, with its index; `None` of an empty split.
    pub fn draw(&self, bits: u64) -> Option<(u32, &Destination)> {
        self.at(below(bits, self.total))
    }

    /// The destination at a point of `0..total`.
    fn at(&self, point: u64) -> Option<(u32, &Destination)> {
        let mut left = point;
        for (i, destination) in self.destinations.iter().enumerate() {
            match left.checked_sub(u64::from(destination.weight)) {
                None => return Some((i as u32, destination)),
                Some(rest) => left = rest,
            }
        }
        None
    }

    /// The hash of a request decides.
    pub(crate) fn is_by_hash(&self) -> bool {
        matches!(self.by, By::Hash)
    }

    /// The destinations in order.
    pub fn destinations(&self) -> &[Destination] {
        &self.destinations
    }

    /// The sum of weights.
    pub fn total(&self) -> u64 {
        self.total
    }
}

impl Turns {
    /// At most so many orders, of which each window draws one.
    const STEPS: u64 = 7;

    fn of(weights: impl Iterator<Item = u64>, total: u64) -> Self {
        let scale = weights.fold(0, greatest_divisor).max(1);
        let window = total / scale;
        // Sevenths of a window, each moved on to the next number that goes round it whole.
        let from = (1..=Self::STEPS).map(|n| (window * n / (Self::STEPS + 1)).max(1));
        let mut steps: Vec<u64> =
            from.filter_map(|from| (from..from + window).find(|step| greatest_divisor(*step, window) == 1)).collect();
        steps.dedup();
        Self { window, scale, steps, ..Self::default() }
    }

    /// The next point of `0..total`.
    fn next(&self, bits: u64) -> u64 {
        let key = match self.key.load(Relaxed) {
            // Zero is no key yet.
            0 => self.key.compare_exchange(0, bits | 1, Relaxed, Relaxed).map_or_else(|there| there, |_| bits | 1),
            key => key,
        };
        let turn = self.taken.fetch_add(1, Relaxed);
        let (Some(round), Some(i)) = (turn.checked_div(self.window), turn.checked_rem(self.window)) else { return 0 };
        let drawn = mix(key ^ mix(round));
        let step = self.steps.get(drawn as usize % self.steps.len().max(1)).copied().unwrap_or(1);
        (step * i + below(drawn, self.window)) % self.window * self.scale
    }
}

/// Euclid's; what divides both, 0 only of two zeros.
fn greatest_divisor(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

impl Destination {
    fn compile(config: &config::WeightedCluster) -> Result<Self, CompileError> {
        let host_rewrite = config.host_rewrite.as_deref().map(HeaderValue::from_str).transpose();
        Ok(Self {
            hash: name_hash(&config.cluster),
            cluster: Name::clone(&config.cluster),
            weight: config.weight,
            header: config.cluster_header.as_deref().map(header_name).transpose()?,
            edits: HeaderEdits::compile([&config.headers])?,
            host_rewrite: host_rewrite
                .map_err(|_| CompileError::new("split", "host_rewrite", "not a valid header value"))?,
            fault: config.fault.as_ref().map(|fault| Arc::new(Faults::of(fault))),
            criteria: config.criteria.clone(),
        })
    }
}

fn header_name(name: &str) -> Result<HeaderName, CompileError> {
    let invalid = |_| CompileError::new("split", format!("{name:?}"), "not a valid header name");
    HeaderName::from_bytes(name.as_bytes()).map_err(invalid)
}

/// The number in a header that is there once and holds nothing else. Source: Envoy `WeightedCluster.header_name`.
fn sticky_number(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    let mut values = headers.get_all(name).into_iter();
    let (only, None) = (values.next()?, values.next()) else { return None };
    let text = only.to_str().ok()?.trim();
    // `parse` alone takes a plus sign.
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// The hash clusters are found by, computed once a name and not once a request.
pub(crate) fn name_hash(name: &str) -> u64 {
    let mut hasher = Xxh64::new(0);
    hasher.write(name.as_bytes());
    hasher.finish()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use rand::RngCore;

    use super::*;
    use crate::rng::RequestRng;

    /// RA3: shares are exact over the range of the random bits, a zero is never drawn, wrong sums are refused.
    #[test]
    fn shares_are_exact() {
        let split = Split::new([("a".into(), 1), ("zero".into(), 0), ("b".into(), 3)]).unwrap();
        // 4 096 points spread evenly over the 64 bits must fall exactly by weight.
        let mut seen = [0; 3];
        for point in 0..4096_u64 {
            seen[split.draw(point << 52).unwrap().0 as usize] += 1;
        }
        assert_eq!(seen, [1024, 0, 3072]);
        assert_eq!(split.draw(u64::MAX).unwrap().0, 2);
        assert!(Split::new([("a".into(), 0)]).is_err());
        assert!(Split::new([]).is_err());
        assert!(Split::new([("a".into(), u32::MAX), ("b".into(), 1)]).is_err());
        assert!(Split::default().draw(7).is_none());
    }

    /// RA3, RA6: every window has exactly its shares, in an order that is not always the same; half a window is nearly even.
    #[test]
    fn shares_of_every_window_are_exact() {
        for (weights, window) in
            [(&[90, 10][..], 100), (&[50, 50], 2), (&[1, 0, 3], 4), (&[5, 4, 3], 12), (&[997, 3], 1_000), (&[7], 1)]
        {
            let clusters = weights.iter().enumerate().map(|(i, weight)| (i.to_string().into(), *weight));
            let split = Split::new(clusters).unwrap();
            let sum = weights.iter().sum::<u32>() as usize;
            let mut rng = RequestRng::new(7, 7);
            let mut next = || split.choose(&HeaderMap::new(), None, None, rng.next_u64()).unwrap().0 as usize;
            let mut orders = std::collections::BTreeSet::new();
            for _ in 0..20 {
                let order: Vec<usize> = (0..window).map(|_| next()).collect();
                let of = |order: &[usize], at| order.iter().filter(|one| **one == at).count();
                for (at, weight) in weights.iter().enumerate() {
                    assert_eq!(of(&order, at) * sum, *weight as usize * window, "{weights:?} {order:?}");
                    let half = &order[..window / 2];
                    assert!(half.len() < 50 || of(half, at).abs_diff(of(&order, at) / 2) <= window / 8, "{order:?}");
                }
                orders.insert(order);
            }
            assert!(window == 1 || orders.len() > 1, "{weights:?} in one order only");
        }
    }

    /// RA5: a number in the header decides, the hash where it is asked for; else chance.
    #[test]
    fn a_sticky_split_stays() {
        let clusters = [("a", 1), ("b", 9)].map(|(name, weight)| config::WeightedCluster {
            cluster: name.into(),
            weight,
            ..Default::default()
        });
        let by_header = Split::compile(&clusters, &SplitBy::Header("x-user".into())).unwrap();
        // By chance it would be b.
        let chance = u64::MAX;
        for (values, expected) in [
            (&["0"][..], "a"),
            (&["10"], "a"),
            (&["11"], "b"),
            (&["18446744073709551615"], "b"),
            (&["18446744073709551610"], "a"),
            (&["18446744073709551616"], "b"),
            (&["+10"], "b"),
            (&["-10"], "b"),
            (&["x"], "b"),
            (&[""], "b"),
            (&["0", "0"], "b"),
            (&[], "b"),
        ] {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("x-user", HeaderValue::from_static(value));
            }
            assert_eq!(&*by_header.choose(&headers, None, Some(0), chance).unwrap().1.cluster, expected, "{values:?}");
        }
        let by_hash = Split::compile(&clusters, &SplitBy::Hash).unwrap();
        for (hash, expected) in [(Some(20), "a"), (Some(21), "b"), (None, "b")] {
            assert_eq!(
                &*by_hash.choose(&HeaderMap::new(), None, hash, chance).unwrap().1.cluster,
                expected,
                "{hash:?}"
            );
        }
    }
}
