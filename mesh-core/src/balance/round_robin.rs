//! In turn, by weight: the static stride scheduler of gRPC's weighted round robin, from a random start.
//!
//! Turn t offers endpoint t mod n in round t div n; an endpoint of weight w takes w of every 65 535 rounds, spread evenly.
//! With equal weights every offer is taken. The share of an endpoint that may not be taken is spread over the others
//! at random, so that its successor does not get it all.

use rand::RngCore;

use super::{Group, draw_until};
use crate::sync::Ordering::Relaxed;

pub(super) fn pick(group: &Group, rng: &mut impl RngCore, may: &impl Fn(usize) -> bool) -> Option<usize> {
    let n = group.len() as u64;
    if n == 0 {
        return None;
    }
    for _ in 0..OFFERS {
        let turn = next_turn(group, rng);
        let (at, round) = ((turn % n) as usize, turn / n);
        let Some(stride) = group.stride(at) else { return take(group, at, rng, may) };
        // Offsets of half a cycle keep heavy endpoints from all being skipped in the same round.
        let phase = (stride * round + at as u64 * (Group::STRIDE / 2)) % Group::STRIDE;
        if phase >= Group::STRIDE - stride {
            return take(group, at, rng, may);
        }
    }
    draw_until(group, rng, |rng| group.draw(rng), may)
}

fn take(group: &Group, at: usize, rng: &mut impl RngCore, may: &impl Fn(usize) -> bool) -> Option<usize> {
    if may(at) {
        return Some(at);
    }
    draw_until(group, rng, |rng| group.draw(rng), may)
}

fn next_turn(group: &Group, rng: &mut impl RngCore) -> u64 {
    let turn = group.turn.fetch_add(1, Relaxed);
    if turn > 0 {
        return turn;
    }
    // The first pick decides where the round begins; clients that start together do not all begin at the first.
    let start = u64::from(rng.next_u32()) + 1;
    group.turn.store(start + 1, Relaxed);
    start
}

/// Offers before a draw by weight instead: very uneven weights must not make a pick slow.
const OFFERS: usize = 256;
