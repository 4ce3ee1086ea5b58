//! A split by weight: one destination of several, with probability weight over the sum of weights (RA3).

use std::hash::Hasher;

use xxhash_rust::xxh64::Xxh64;

use crate::{config::Name, error::CompileError, rewrite::HeaderEdits, rng::below};

/// Destinations and their shares. Empty for routes that send nowhere.
#[derive(Clone, Debug, Default)]
pub struct Split {
    destinations: Vec<Destination>,
    /// At most `u32::MAX`, checked when made.
    total: u64,
}

/// One destination of a [`Split`].
#[derive(Clone, Debug)]
pub struct Destination {
    /// The cluster's name.
    pub cluster: Name,
    /// Its share of the sum; 0 is never drawn.
    pub weight: u32,
    pub(crate) hash: u64,
    edits: Option<HeaderEdits>,
}

impl Split {
    /// A split without header changes of its own. Fails when it is empty or the sum of weights is zero or over `u32::MAX`.
    pub fn new(clusters: impl IntoIterator<Item = (Name, u32)>) -> Result<Self, CompileError> {
        Self::with_edits(clusters.into_iter().map(|(cluster, weight)| (cluster, weight, None)))
    }

    pub(crate) fn with_edits(
        clusters: impl IntoIterator<Item = (Name, u32, Option<HeaderEdits>)>,
    ) -> Result<Self, CompileError> {
        let destinations: Vec<_> = clusters
            .into_iter()
            .map(|(cluster, weight, edits)| Destination { hash: name_hash(&cluster), cluster, weight, edits })
            .collect();
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
        Ok(Self { destinations, total })
    }

    /// The destination that 64 random `bits` draw, with its index; `None` of an empty split.
    pub fn draw(&self, bits: u64) -> Option<(u32, &Destination)> {
        let mut left = below(bits, self.total);
        for (i, destination) in self.destinations.iter().enumerate() {
            match left.checked_sub(u64::from(destination.weight)) {
                None => return Some((i as u32, destination)),
                Some(rest) => left = rest,
            }
        }
        None
    }

    /// The destinations in order.
    pub fn destinations(&self) -> &[Destination] {
        &self.destinations
    }

    /// The sum of weights.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Header changes of one destination, those of its route and so on behind them.
    pub(crate) fn edits(&self, choice: u32) -> Option<&HeaderEdits> {
        self.destinations.get(choice as usize)?.edits.as_ref()
    }
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

    /// RA6: 90/10 over 10 000 requests stays within five standard deviations.
    #[test]
    fn ninety_to_ten_stays_in_its_band() {
        let split = Split::new([("v1".into(), 90), ("v2".into(), 10)]).unwrap();
        let second = (0..10_000).filter(|n| split.draw(RequestRng::new(7, *n).next_u64()).unwrap().0 == 1).count();
        // sqrt(10 000 x 0.9 x 0.1) = 30.
        assert!((850..=1150).contains(&second), "{second}");
    }
}
