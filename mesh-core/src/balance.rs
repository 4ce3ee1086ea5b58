//! Which endpoint of a group gets a request: a closed set of policies, each in a file of its own.
//!
//! None scans: round robin takes the next, the others draw a few at random. An endpoint that must not be taken (ejected, sick)
//! or should not (tried before, not reachable lately) is drawn again; only when that fails several times in a row is
//! the group looked through.

use rand::RngCore;

use crate::{config::LoadBalancer, endpoint::Endpoint, pick::Ask, rng::below, time::Time};

mod least_request;
mod peak_ewma;
mod random;
mod round_robin;
mod weights;

pub(crate) use peak_ewma::Ewma;
pub(crate) use weights::Group;

/// Picks one of the group, by policy; `None` when every one is out.
pub(crate) fn pick<'a>(
    policy: &LoadBalancer,
    group: &'a Group,
    ask: &Ask<'_>,
    now: Time,
    rng: &mut impl RngCore,
) -> Option<&'a std::sync::Arc<Endpoint>> {
    // From what is wanted to what will do: elsewhere and reachable, elsewhere, anywhere.
    let reachable = |e: &Endpoint| !e.is_out() && !e.is_unreachable(now) && !ask.tried.avoids(e);
    if let Some(at) = by_policy(policy, group, now, rng, &reachable) {
        return group.endpoints().get(at);
    }
    if !ask.tried.is_empty() {
        let elsewhere = |e: &Endpoint| !e.is_out() && !ask.tried.avoids(e);
        if let Some(at) = by_policy(policy, group, now, rng, &elsewhere) {
            return group.endpoints().get(at);
        }
    }
    let anywhere = |e: &Endpoint| !e.is_out();
    by_policy(policy, group, now, rng, &anywhere).and_then(|at| group.endpoints().get(at))
}

/// Picks one of the group whatever its state: panic.
pub(crate) fn pick_any<'a>(
    policy: &LoadBalancer,
    group: &'a Group,
    ask: &Ask<'_>,
    now: Time,
    rng: &mut impl RngCore,
) -> Option<&'a std::sync::Arc<Endpoint>> {
    let elsewhere = |e: &Endpoint| !ask.tried.avoids(e);
    by_policy(policy, group, now, rng, &elsewhere)
        .or_else(|| by_policy(policy, group, now, rng, &|_| true))
        .and_then(|at| group.endpoints().get(at))
}

fn by_policy(
    policy: &LoadBalancer,
    group: &Group,
    now: Time,
    rng: &mut impl RngCore,
    may: &impl Fn(&Endpoint) -> bool,
) -> Option<usize> {
    match policy {
        LoadBalancer::RoundRobin => round_robin::pick(group, rng, may),
        LoadBalancer::LeastRequest(config) => least_request::pick(group, config, rng, may),
        LoadBalancer::Random => random::pick(group, rng, may),
        LoadBalancer::PeakEwma => peak_ewma::pick(group, now, rng, may),
    }
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
