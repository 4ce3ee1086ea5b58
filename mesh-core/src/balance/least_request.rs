//! The one with the fewest requests under way of a few drawn at random, with replacement. Source: Envoy `LEAST_REQUEST`,
//! gRFC A48; Mitzenmacher 2001 for why two choices do.
//!
//! Weights decide how often an endpoint is drawn and divide its load when compared. Envoy turns to a schedule by weight
//! over load when weights differ, which costs a queue; the shares at rest are the same.

use rand::RngCore;

use super::{Group, draw_until};
use crate::{config::LeastRequest, endpoint::Endpoint};

pub(super) fn pick(
    group: &Group,
    config: &LeastRequest,
    rng: &mut impl RngCore,
    may: &impl Fn(&Endpoint) -> bool,
) -> Option<usize> {
    let mut best = draw_until(group, rng, |rng| group.draw(rng), may)?;
    for _ in 1..config.choices.clamp(2, MOST_CHOICES) {
        let other = draw_until(group, rng, |rng| group.draw(rng), may)?;
        if is_less_loaded(&group.endpoints()[other], &group.endpoints()[best]) {
            best = other;
        }
    }
    Some(best)
}

fn is_less_loaded(a: &Endpoint, b: &Endpoint) -> bool {
    u64::from(a.in_flight()) * u64::from(b.weight()) < u64::from(b.in_flight()) * u64::from(a.weight())
}

/// gRFC A48 clamps the number of choices here.
const MOST_CHOICES: u32 = 10;
