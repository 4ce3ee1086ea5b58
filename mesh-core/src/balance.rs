//! Which endpoint of a group gets a request: a closed set of policies, each in a file of its own, and [`Policy`] for those
//! that a program brings along.
//!
//! None scans: round robin takes the next, the hashing ones look into a table, the others draw a few at random. An endpoint that must
//! not be taken (ejected, sick) or should not (tried before, not reachable lately) is passed over; only when that happens several
//! times in a row is the group looked through.

use std::sync::Arc;

use rand::RngCore;

use crate::{
    config::{LoadBalancer, SlowStart},
    endpoint::Endpoint,
    pick::Ask,
    rng::below,
    time::Time,
};

mod client_weighted;
mod consistent;
mod custom;
mod least_request;
mod maglev;
mod peak_ewma;
mod pick_first;
mod random;
mod ring_hash;
mod round_robin;
mod slow_start;
mod weights;

pub use custom::{Make, Policy, is_registered, make, register};

pub(crate) use client_weighted::Reported;
pub(crate) use consistent::Lookup;
pub use maglev::is_prime;
pub(crate) use peak_ewma::Ewma;
pub(crate) use weights::Group;

/// One pick: what is asked, and how it is to be answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn<'a> {
    pub(crate) policy: &'a LoadBalancer,
    pub(crate) slow_start: Option<&'a SlowStart>,
    pub(crate) ask: &'a Ask<'a>,
    pub(crate) now: Time,
    /// Requests under way in the cluster, this one too.
    pub(crate) under_way: u32,
}

/// Picks one of the group that can be reached, elsewhere than before.
pub(crate) fn pick_reachable<'a>(
    turn: &Turn<'_>,
    group: &'a Group,
    rng: &mut impl RngCore,
) -> Option<&'a Arc<Endpoint>> {
    let may = |e: &Endpoint| !e.is_out() && !e.is_unreachable(turn.now) && !turn.ask.tried.avoids(e);
    by_policy(turn, group, rng, &may)
}

/// Picks one of the group where none can be reached elsewhere: elsewhere, or else anywhere; `None` when every one is out.
pub(crate) fn pick_other<'a>(turn: &Turn<'_>, group: &'a Group, rng: &mut impl RngCore) -> Option<&'a Arc<Endpoint>> {
    let tried = turn.ask.tried;
    if !tried.is_empty() {
        let elsewhere = |e: &Endpoint| !e.is_out() && !tried.avoids(e);
        if let Some(endpoint) = by_policy(turn, group, rng, &elsewhere) {
            return Some(endpoint);
        }
    }
    by_policy(turn, group, rng, &|e: &Endpoint| !e.is_out())
}

/// Picks one of the group whatever its state: panic.
pub(crate) fn pick_any<'a>(turn: &Turn<'_>, group: &'a Group, rng: &mut impl RngCore) -> Option<&'a Arc<Endpoint>> {
    by_policy(turn, group, rng, &|e: &Endpoint| !turn.ask.tried.avoids(e))
        .or_else(|| by_policy(turn, group, rng, &|_: &Endpoint| true))
}

fn by_policy<'a, R: RngCore>(
    turn: &Turn<'_>,
    group: &'a Group,
    rng: &mut R,
    may: &impl Fn(&Endpoint) -> bool,
) -> Option<&'a Arc<Endpoint>> {
    let at = match turn.policy {
        LoadBalancer::RoundRobin => {
            slow_start::warmed(turn, group, rng, |rng: &mut R| round_robin::pick(group, rng, may))
        }
        LoadBalancer::LeastRequest(config) => {
            slow_start::warmed(turn, group, rng, |rng: &mut R| least_request::pick(group, config, rng, may))
        }
        LoadBalancer::Random => random::pick(group, rng, may),
        LoadBalancer::PeakEwma => peak_ewma::pick(group, turn.now, rng, may),
        LoadBalancer::RingHash(_) | LoadBalancer::Maglev(_) => consistent::pick(group, turn, rng, may),
        LoadBalancer::ClientWeighted(config) => client_weighted::pick(group, config, turn.now, rng, may),
        LoadBalancer::PickFirst(config) => pick_first::pick(group, *config, rng, may),
        LoadBalancer::Custom(_) => {
            let at = group.custom.as_ref()?.pick(group.endpoints(), may, turn.ask, turn.now, rng)?;
            group.endpoints().get(at).is_some_and(|endpoint| may(endpoint)).then_some(at)
        }
    }?;
    group.endpoints().get(at)
}

/// Draws until an endpoint may be taken; after a few misses takes the first that may from a random place on.
fn draw_until<R: RngCore>(
    group: &Group,
    rng: &mut R,
    draw: impl Fn(&mut R) -> usize,
    may: &impl Fn(&Endpoint) -> bool,
) -> Option<usize> {
    let endpoints = group.endpoints();
    if endpoints.is_empty() {
        return None;
    }
    for _ in 0..DRAWS {
        let at = draw(rng);
        if endpoints.get(at).is_some_and(|endpoint| may(endpoint)) {
            return Some(at);
        }
    }
    let start = below(rng.next_u64(), endpoints.len() as u64) as usize;
    (start..endpoints.len()).chain(0..start).find(|at| may(&endpoints[*at]))
}

const DRAWS: usize = 8;
