//! New endpoints get their share little by little. Source: Envoy `SlowStartConfig`.
//!
//! What a policy chose is taken with the probability that the endpoint's age gives, max(least, (age / window)^(1 / aggression)), and
//! chosen anew otherwise, so that shares are weight x factor without a schedule of weights that change by the
//! millisecond.

use rand::RngCore;

use super::{Group, Turn};
use crate::{config::SlowStart, endpoint::Endpoint, time::Time};

/// Chooses until one is taken.
pub(super) fn warmed<R: RngCore>(
    turn: &Turn<'_>,
    group: &Group,
    rng: &mut R,
    choose: impl Fn(&mut R) -> Option<usize>,
) -> Option<usize> {
    let Some(config) = turn.slow_start else { return choose(rng) };
    for _ in 0..DRAWS {
        let at = choose(rng)?;
        let factor = group.endpoint(at).map_or(1.0, |endpoint| factor(config, endpoint, turn.now));
        if factor >= 1.0 || (rng.next_u32() as f64) < factor * f64::from(u32::MAX) {
            return Some(at);
        }
    }
    // All are new, or the only one is.
    choose(rng)
}

/// The part of its share that an endpoint gets at its age.
pub(crate) fn factor(config: &SlowStart, endpoint: &Endpoint, now: Time) -> f64 {
    let age = endpoint.age(now);
    if age >= config.window {
        return 1.0;
    }
    let time = age.as_secs_f64().max(0.001) / config.window.as_secs_f64();
    time.powf(1.0 / config.aggression).max(config.min_percent / 100.0)
}

/// With the least share of a tenth, one in five misses a tenth of what it should refuse.
const DRAWS: usize = 16;
