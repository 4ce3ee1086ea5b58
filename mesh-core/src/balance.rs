//! Which endpoint of a group gets a request: a closed set of policies, each in a file of its own, and [`Policy`] for those
//! that a program brings along.
//!
//! None scans: round robin takes the next, the hashing ones look into a table, the others draw a few at random. An endpoint that must
//! not be taken (ejected, sick) or should not (tried before, not reachable lately) is passed over; only when that happens several
//! times in a row is the group looked through.

use rand::RngCore;

use crate::{
    config::{LoadBalancer, SlowStart},
    endpoint::{Endpoint, Hot},
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

/// Picks one of the group that can be reached, elsewhere than before. What is picked is told by its number in the cluster.
pub(crate) fn pick_reachable(turn: &Turn<'_>, group: &Group, rng: &mut impl RngCore) -> Option<u32> {
    Fit { turn, group, usable: true, reachable: true, elsewhere: true }.pick(rng)
}

/// Picks one of the group where none can be reached elsewhere: elsewhere, or else anywhere; `None` when every one is out.
pub(crate) fn pick_other(turn: &Turn<'_>, group: &Group, rng: &mut impl RngCore) -> Option<u32> {
    let anywhere = Fit { turn, group, usable: true, reachable: false, elsewhere: false };
    let elsewhere = Fit { elsewhere: true, ..anywhere };
    let other = if turn.ask.tried.is_empty() { None } else { elsewhere.pick(rng) };
    other.or_else(|| anywhere.pick(rng))
}

/// Picks one of the group whatever its state: panic.
pub(crate) fn pick_any(turn: &Turn<'_>, group: &Group, rng: &mut impl RngCore) -> Option<u32> {
    let anywhere = Fit { turn, group, usable: false, reachable: false, elsewhere: false };
    Fit { elsewhere: true, ..anywhere }.pick(rng).or_else(|| anywhere.pick(rng))
}

/// Which endpoints of a group may be taken: those that are all of this.
#[derive(Clone, Copy)]
struct Fit<'a> {
    turn: &'a Turn<'a>,
    group: &'a Group,
    /// Not out.
    usable: bool,
    /// Reachable lately.
    reachable: bool,
    /// Not tried before.
    elsewhere: bool,
}

impl Fit<'_> {
    /// May the endpoint at that place of the group be taken? Of the endpoint itself nothing is touched unless others were
    /// tried.
    #[inline]
    fn has(&self, at: usize) -> bool {
        self.group.hot(at).is_some_and(|hot| self.suits(hot))
            && (!self.avoids() || self.group.endpoint(at).is_some_and(|endpoint| self.is_new(endpoint)))
    }

    fn has_endpoint(&self, endpoint: &Endpoint) -> bool {
        self.suits(endpoint.hot()) && self.is_new(endpoint)
    }

    #[inline]
    fn suits(&self, hot: &Hot) -> bool {
        !(self.usable && hot.is_out() || self.reachable && hot.is_unreachable(self.turn.now))
    }

    #[inline]
    fn avoids(&self) -> bool {
        self.elsewhere && !self.turn.ask.tried.is_empty()
    }

    fn is_new(&self, endpoint: &Endpoint) -> bool {
        !self.elsewhere || !self.turn.ask.tried.avoids(endpoint)
    }

    fn pick<R: RngCore>(&self, rng: &mut R) -> Option<u32> {
        let (turn, group) = (self.turn, self.group);
        let may = &|at: usize| self.has(at);
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
                let may_be = |endpoint: &Endpoint| self.has_endpoint(endpoint);
                group.pick_custom(&may_be, turn, rng).filter(|at| may(*at))
            }
        }?;
        group.number(at)
    }
}

/// Draws until an endpoint may be taken; after a few misses takes the first that may from a random place on.
#[inline]
fn draw_until<R: RngCore>(
    group: &Group,
    rng: &mut R,
    draw: impl Fn(&mut R) -> usize,
    may: &impl Fn(usize) -> bool,
) -> Option<usize> {
    let len = group.len();
    if len == 0 {
        return None;
    }
    for _ in 0..DRAWS {
        let at = draw(rng);
        if may(at) {
            return Some(at);
        }
    }
    let start = below(rng.next_u64(), len as u64) as usize;
    (start..len).chain(0..start).find(|at| may(*at))
}

const DRAWS: usize = 8;
