//! The one expected to answer soonest of two drawn at random: smoothed latency times requests under way.
//!
//! Latency is an exponentially weighted moving average over ten seconds that jumps to peaks at once and forgets them
//! slowly, so a slow endpoint loses its traffic with its first slow answer. Reading decays it towards zero, so that an
//! avoided endpoint is tried again. Source: Finagle `p2cPeakEwma`, Linkerd.

use std::time::Duration;

use rand::RngCore;

use super::{Group, draw_until};
use crate::{
    endpoint::Hot,
    sync::{AtomicU64, Ordering::Relaxed},
    time::Time,
};

pub(super) fn pick(group: &Group, now: Time, rng: &mut impl RngCore, may: &impl Fn(usize) -> bool) -> Option<usize> {
    if group.len() == 1 {
        return may(0).then_some(0);
    }
    let first = draw_until(group, rng, |rng| group.draw(rng), may)?;
    let second = draw_until(group, rng, |rng| group.draw(rng), may)?;
    let cost = |at: usize| group.hot(at).map_or(f64::MAX, |hot| cost(hot, group.weight(at), now));
    Some(if cost(second) < cost(first) { second } else { first })
}

/// Expected microseconds of waiting per unit of weight.
fn cost(hot: &Hot, weight: u32, now: Time) -> f64 {
    let under_way = f64::from(hot.in_flight.load(Relaxed));
    let latency = match hot.ewma.read(now) {
        Some(latency) => latency.as_secs_f64() * 1e6,
        // Nothing known: worth a first request, and not a second before that one is answered.
        None if under_way == 0.0 => 0.0,
        None => UNKNOWN.as_secs_f64() * 1e6,
    };
    latency * (under_way + 1.0) / f64::from(weight)
}

/// A smoothed latency in one atomic word: microseconds above, milliseconds of time below; zero is none yet.
#[derive(Debug, Default)]
pub(crate) struct Ewma(AtomicU64);

impl Ewma {
    /// An answer took this long; failures count as at least [`PENALTY`], lest a fast failure draw traffic.
    pub(crate) fn observe(&self, took: Duration, success: bool, now: Time) {
        let took = if success { took } else { took.max(PENALTY) };
        let sample = took.as_micros().min(u128::from(u32::MAX)) as f64;
        let next = |word: u64| {
            let value = match unpack(word) {
                None => sample,
                Some((old, at)) => {
                    let keep = keep(at, now);
                    let old = f64::from(old) * keep;
                    if sample >= old { sample } else { old + sample * (1.0 - keep) }
                }
            };
            Some(pack(value, now))
        };
        let _ = self.0.fetch_update(Relaxed, Relaxed, next);
    }

    /// As new.
    pub(crate) fn reset(&self) {
        self.0.store(0, Relaxed);
    }

    pub(crate) fn read(&self, now: Time) -> Option<Duration> {
        let (micros, at) = unpack(self.0.load(Relaxed))?;
        Some(Duration::from_secs_f64(decayed(micros, at, now) / 1e6))
    }
}

fn decayed(micros: u32, at: u32, now: Time) -> f64 {
    f64::from(micros) * keep(at, now)
}

/// How much of an old value counts.
fn keep(at: u32, now: Time) -> f64 {
    // Signed, since threads may report out of order; an old value is never from the future.
    let elapsed = (millis(now).wrapping_sub(at) as i32).max(0);
    if elapsed == 0 {
        // Nearly always where there is much to do.
        return 1.0;
    }
    (-f64::from(elapsed) / (DECAY.as_secs_f64() * 1e3)).exp()
}

fn pack(micros: f64, now: Time) -> u64 {
    // At least one, so that a word in use is never zero.
    (u64::from((micros as u32).max(1)) << 32) | u64::from(millis(now))
}

fn unpack(word: u64) -> Option<(u32, u32)> {
    (word != 0).then_some(((word >> 32) as u32, word as u32))
}

/// Wraps after 49 days, which `wrapping_sub` undoes for pauses below half of that.
fn millis(now: Time) -> u32 {
    (now.as_nanos() / 1_000_000) as u32
}

const DECAY: Duration = Duration::from_secs(10);
/// Linkerd's penalty for a failed request.
const PENALTY: Duration = Duration::from_secs(5);
const UNKNOWN: Duration = Duration::from_secs(1);
