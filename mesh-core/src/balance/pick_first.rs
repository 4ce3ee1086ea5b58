//! One endpoint, as long as it can be reached: the first, or one drawn by weight at the first pick. Source: gRFC A62, A113.
//!
//! When it cannot be used any more the next in line takes its place and keeps it, whether or not an earlier one comes
//! back.

use rand::RngCore;

use super::Group;
use crate::{config::PickFirst, sync::Ordering::Relaxed};

pub(super) fn pick(
    group: &Group,
    config: PickFirst,
    rng: &mut impl RngCore,
    may: &impl Fn(usize) -> bool,
) -> Option<usize> {
    let len = group.len();
    // Zero is not chosen yet, else the place plus one.
    let chosen = match group.turn.load(Relaxed) {
        0 if config.shuffle && len > 0 => group.draw(rng),
        0 => 0,
        chosen => (chosen - 1) as usize,
    };
    let mut line = (chosen..len).chain(0..chosen.min(len));
    let at = line.find(|at| may(*at))?;
    group.turn.store(at as u64 + 1, Relaxed);
    Some(at)
}
