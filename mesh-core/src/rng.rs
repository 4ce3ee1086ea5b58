//! Chance as policy sees it: the random stream of request `n` is a function of `(seed, n)`.
//!
//! SplitMix64 (Steele, Lea, Flood 2014): eight bytes of state, no allocation, good enough for splits and faults, and not
//! for secrets. Any decision can be replayed from the snapshot, the seed, `n` and the time.

use rand::RngCore;

/// The random stream of one request.
#[derive(Clone, Debug)]
pub struct RequestRng(u64);

impl RequestRng {
    /// The stream of request `n` in a process that drew `seed` when it began.
    pub fn new(seed: u64, n: u64) -> Self {
        // Mixed twice, so that neighbouring n of one seed do not give overlapping streams.
        Self(mix(seed ^ mix(n.wrapping_mul(GOLDEN))))
    }
}

impl RngCore for RequestRng {
    fn next_u32(&mut self) -> u32 {
        (self.next_u64() >> 32) as u32
    }

    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
    }

    fn fill_bytes(&mut self, target: &mut [u8]) {
        for chunk in target.chunks_mut(8) {
            chunk.copy_from_slice(&self.next_u64().to_le_bytes()[..chunk.len()]);
        }
    }
}

/// Maps 64 random bits evenly onto `0..bound` (multiply-shift); 0 for a bound of 0.
pub(crate) fn below(bits: u64, bound: u64) -> u64 {
    ((u128::from(bits) * u128::from(bound)) >> 64) as u64
}

/// The finaliser of SplitMix64: a bijection in which every input bit moves every output bit.
pub(crate) const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// 2^64 divided by the golden ratio, the increment of SplitMix64.
pub(crate) const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_a_function_of_seed_and_number() {
        let draw = |seed, n| {
            let mut rng = RequestRng::new(seed, n);
            [rng.next_u64(), rng.next_u64()]
        };
        assert_eq!(draw(1, 2), draw(1, 2));
        assert_ne!(draw(1, 2), draw(1, 3));
        assert_ne!(draw(1, 2), draw(2, 2));
    }

    #[test]
    fn below_reaches_both_ends_and_never_the_bound() {
        assert_eq!([below(0, 10), below(u64::MAX, 10), below(u64::MAX, 0)], [0, 9, 0]);
    }
}
