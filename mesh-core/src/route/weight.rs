//! A split by weight: one destination of several, with probability weight over the sum of weights (RA3).

use std::{hash::Hasher, sync::Arc};

use xxhash_rust::xxh64::Xxh64;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::{
    config::{self, Criteria, Name, SplitBy},
    error::CompileError,
    fault::Faults,
    rewrite::HeaderEdits,
    rng::below,
};

/// Destinations and their shares. Empty for routes that send nowhere.
#[derive(Clone, Debug, Default)]
pub struct Split {
    destinations: Vec<Destination>,
    by: By,
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
        Ok(Self { destinations, by, total })
    }

    /// The destination of a request: by its header or its hash, where that decides and is there, else by 64 random `bits`.
    /// One that was drawn before for the same session stays.
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
            None => self.draw(bits),
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

    /// The destinations in order.
    pub fn destinations(&self) -> &[Destination] {
        &self.destinations
    }

    /// The sum of weights.
    pub fn total(&self) -> u64 {
        self.total
    }
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

    /// RA6: 90/10 over 10 000 requests stays within five standard deviations.
    #[test]
    fn ninety_to_ten_stays_in_its_band() {
        let split = Split::new([("v1".into(), 90), ("v2".into(), 10)]).unwrap();
        let second = (0..10_000).filter(|n| split.draw(RequestRng::new(7, *n).next_u64()).unwrap().0 == 1).count();
        // sqrt(10 000 x 0.9 x 0.1) = 30.
        assert!((850..=1150).contains(&second), "{second}");
    }
}
