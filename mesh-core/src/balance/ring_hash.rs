//! A ring of hashes (Ketama): each endpoint has many entries on it, by weight, and a request goes to the first entry at or
//! after its hash. Source: Envoy `RING_HASH`, gRFC A42.
//!
//! Entry i of an endpoint is the hash of `key_i`. There are as many entries as make the lightest endpoint's share a whole number
//! with the ring at least as large as asked, within its limit; shares in fractions are carried from one endpoint to the
//! next, so the order of endpoints counts. Looking up costs no search: the top bits of a hash name a bucket, and
//! a bucket holds one entry on average.

use std::fmt::Write;

use xxhash_rust::xxh64::xxh64;

use crate::config::{HashFunction, RingHash};

/// A ring.
#[derive(Debug)]
pub(super) struct Ring {
    /// Hashes in order, each with the place of its endpoint.
    entries: Vec<(u64, u32)>,
    /// Where the entries of each bucket begin.
    buckets: Vec<u32>,
    shift: u32,
}

impl Ring {
    /// Of endpoints by key, with shares that add up to 1.
    pub(super) fn new(members: &[(&str, f64)], config: &RingHash) -> Self {
        let least = members.iter().map(|(_, share)| *share).fold(1.0, f64::min);
        let scale = ((least * config.min_size as f64).ceil() / least).min(config.max_size as f64);
        let mut entries: Vec<(u64, u32)> = Vec::with_capacity(scale.ceil() as usize + 1);
        let (mut placed, mut due) = (0.0, 0.0);
        let mut text = String::new();
        for (at, (key, share)) in members.iter().enumerate() {
            due += scale * share;
            let mut i = 0_u64;
            while placed < due {
                text.clear();
                let _ = write!(text, "{key}_{i}");
                let hash = match config.function {
                    HashFunction::Xx => xxh64(text.as_bytes(), 0),
                    HashFunction::Murmur2 => murmur2(text.as_bytes()),
                };
                entries.push((hash, at as u32));
                i += 1;
                placed += 1.0;
            }
        }
        entries.sort_unstable();
        let shift = u64::BITS - entries.len().next_power_of_two().trailing_zeros().max(1);
        let count = 1_usize << (u64::BITS - shift);
        let mut buckets = Vec::with_capacity(count + 1);
        let mut at = 0;
        for bucket in 0..count as u64 {
            while entries.get(at).is_some_and(|(hash, _)| hash >> shift < bucket) {
                at += 1;
            }
            buckets.push(at as u32);
        }
        Self { entries, buckets, shift }
    }

    /// The place of the first entry at or after `hash`.
    pub(super) fn find(&self, hash: u64) -> usize {
        let mut at = self.buckets.get((hash >> self.shift) as usize).map_or(0, |start| *start as usize);
        while self.entries.get(at).is_some_and(|(entry, _)| *entry < hash) {
            at += 1;
        }
        if at < self.entries.len() { at } else { 0 }
    }

    /// Whose entry is at a place, counted round the ring.
    pub(super) fn owner(&self, at: usize) -> Option<usize> {
        let at = if at < self.entries.len() { at } else { at % self.entries.len().max(1) };
        self.entries.get(at).map(|(_, owner)| *owner as usize)
    }

    /// How many entries it has.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}

/// MurmurHash2 in its 64-bit form (Appleby), with the seed that libstdc++ uses and therefore Envoy.
fn murmur2(bytes: &[u8]) -> u64 {
    const M: u64 = 0xc6a4_a793_5bd1_e995;
    const SEED: u64 = 0xc70f_6907;
    let mix = |word: u64| {
        let word = word.wrapping_mul(M);
        (word ^ (word >> 47)).wrapping_mul(M)
    };
    let mut hash = SEED ^ (bytes.len() as u64).wrapping_mul(M);
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        hash = (hash ^ mix(u64::from_le_bytes(*word))).wrapping_mul(M);
    }
    if !rest.is_empty() {
        let last = rest.iter().rev().fold(0, |word, byte| (word << 8) | u64::from(*byte));
        hash = (hash ^ last).wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 47)).wrapping_mul(M);
    hash ^ (hash >> 47)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// LB8: the bucket lookup finds what a search in the sorted list finds, for hashes at, between and beyond entries.
    #[test]
    fn lookup_is_a_search() {
        for n in [1_usize, 2, 3, 10, 1_000] {
            let keys: Vec<_> = (0..n).map(|at| format!("10.0.0.{at}:80")).collect();
            let members: Vec<_> = keys.iter().map(|key| (key.as_str(), 1.0 / n as f64)).collect();
            for min_size in [1, 7, 1_024] {
                let ring = Ring::new(&members, &RingHash { min_size, ..RingHash::default() });
                assert!(ring.len() >= n.max(min_size as usize), "{n} {min_size}: {}", ring.len());
                let around =
                    ring.entries.iter().flat_map(|(hash, _)| [hash.wrapping_sub(1), *hash, hash.wrapping_add(1)]);
                for hash in around.chain([0, u64::MAX]) {
                    let expected = ring.entries.partition_point(|(entry, _)| *entry < hash) % ring.len();
                    assert_eq!(ring.find(hash), expected, "{n} {min_size} {hash:x}");
                }
            }
        }
    }

    /// LB8: entries follow weights, in fractions too, and the size keeps its limits.
    #[test]
    fn entries_follow_weights() {
        let entries = |shares: &[f64], min_size, max_size| {
            let keys: Vec<_> = (0..shares.len()).map(|at| format!("10.0.0.{at}:80")).collect();
            let members: Vec<_> = keys.iter().map(String::as_str).zip(shares.iter().copied()).collect();
            let ring = Ring::new(&members, &RingHash { min_size, max_size, ..RingHash::default() });
            (0..shares.len()).map(|at| ring.entries.iter().filter(|(_, owner)| *owner as usize == at).count()).collect()
        };
        for (shares, min_size, max_size, expected) in [
            (&[0.25, 0.75][..], 4, 100, vec![1, 3]),
            (&[0.25, 0.75], 1_000, 10_000, vec![250, 750]),
            // A ring of six among four: one and a half each, carried on.
            (&[0.25; 4], 6, 6, vec![2, 1, 2, 1]),
        ] {
            let entries: Vec<usize> = entries(shares, min_size, max_size);
            assert_eq!(entries, expected, "{shares:?}");
        }
    }

    /// LB8: the second hash function, against values of the reference implementation.
    #[test]
    fn murmur2_is_murmur2() {
        // std::hash<std::string> of libstdc++ on a 64-bit machine.
        for (text, expected) in [("", 6_142_509_188_972_423_790), ("a", 4_993_892_634_952_068_459)] {
            assert_eq!(murmur2(text.as_bytes()), expected, "{text:?}");
        }
    }
}
