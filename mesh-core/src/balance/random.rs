//! At random, weights aside. Source: Envoy `RANDOM`.

use rand::RngCore;

use super::{Group, draw_until};

pub(super) fn pick(group: &Group, rng: &mut impl RngCore, may: &impl Fn(usize) -> bool) -> Option<usize> {
    draw_until(group, rng, |rng| group.draw_evenly(rng), may)
}
