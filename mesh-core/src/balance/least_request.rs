//! The one with the fewest requests under way of a few drawn at random, with replacement. Source: Envoy `LEAST_REQUEST`,
//! gRFC A48; Mitzenmacher 2001 for why two choices do.
//!
//! Where weights differ they decide how often an endpoint is drawn, and divide its load when compared; a bias of 0 leaves the
//! load aside and a bias above 1 makes it count more. Envoy turns to a schedule by weight / (load + 1)^bias there,
//! which costs a queue behind a lock; the shares at rest and without load are the same.

use rand::RngCore;

use super::{Group, draw_until};
use crate::{config::LeastRequest, sync::Ordering::Relaxed};

pub(super) fn pick(
    group: &Group,
    config: &LeastRequest,
    rng: &mut impl RngCore,
    may: &impl Fn(usize) -> bool,
) -> Option<usize> {
    if group.len() == 1 {
        return may(0).then_some(0);
    }
    let uneven = group.is_uneven();
    if uneven && config.bias == 0.0 {
        return draw_until(group, rng, |rng| group.draw(rng), may);
    }
    let bias = if uneven { config.bias } else { 1.0 };
    let mut best = draw_until(group, rng, |rng| group.draw(rng), may)?;
    for _ in 1..config.choices.clamp(2, MOST_CHOICES) {
        let other = draw_until(group, rng, |rng| group.draw(rng), may)?;
        if is_less_loaded(load(group, other), load(group, best), bias) {
            best = other;
        }
    }
    Some(best)
}

/// Requests under way at an endpoint, and its weight.
#[inline]
fn load(group: &Group, at: usize) -> (u32, u32) {
    (group.hot(at).map_or(u32::MAX, |hot| hot.in_flight.load(Relaxed)), group.weight(at))
}

#[inline]
fn is_less_loaded(a: (u32, u32), b: (u32, u32), bias: f64) -> bool {
    if bias != 1.0 {
        let load = |(under_way, weight): (u32, u32)| f64::from(under_way).powf(bias) / f64::from(weight);
        return load(a) < load(b);
    }
    u64::from(a.0) * u64::from(b.1) < u64::from(b.0) * u64::from(a.1)
}

/// gRFC A48 clamps the number of choices here.
const MOST_CHOICES: u32 = 10;
