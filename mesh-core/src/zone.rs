//! Preferring the own zone without overloading it. Source: Envoy `ZoneAwareLbConfig`.
//!
//! What counts is how the callers are spread over zones, this process's own service among them, against how the endpoints are. Where
//! the own zone has its fair part of the endpoints, all requests stay in it; where it has less, as many stay as it
//! can take, and the rest goes to zones that have more endpoints than callers.

use rand::RngCore;

use crate::{
    config::{Endpoints, Health, Locality, ZoneAware},
    rng::below,
};

/// Where this process runs, and where those like it do.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct LocalZones {
    own: Locality,
    /// Ten-thousandths of the callers by locality.
    callers: Vec<(Locality, u64)>,
}

/// Ten-thousandths of the callers, by the places of a cluster's localities.
#[derive(Clone, Debug)]
pub(crate) struct ZoneShares {
    own: usize,
    callers: Vec<u64>,
}

impl LocalZones {
    /// Of the process in `own`, by the endpoints of its own service.
    pub(crate) fn new(own: &Locality, service: &Endpoints) -> Self {
        let healthy = |locality: &Locality| -> u64 {
            let of = service.localities.iter().filter(|place| place.locality == *locality && place.priority == 0);
            of.flat_map(|place| &place.endpoints).filter(|endpoint| endpoint.health == Health::Healthy).count() as u64
        };
        let mut localities: Vec<_> = service.localities.iter().map(|place| &place.locality).collect();
        localities.sort_unstable();
        localities.dedup();
        let total = localities.iter().map(|locality| healthy(locality)).sum::<u64>().max(1);
        let callers = localities.into_iter().map(|locality| (locality.clone(), healthy(locality) * WHOLE / total));
        Self { own: own.clone(), callers: callers.collect() }
    }

    /// For a cluster with these localities; `None` if it has none where this process runs, or only that one.
    pub(crate) fn shares<'a>(&self, localities: impl Iterator<Item = &'a Locality>) -> Option<ZoneShares> {
        let localities: Vec<_> = localities.collect();
        let own = localities.iter().position(|locality| **locality == self.own)?;
        let of = |locality: &&Locality| self.callers.iter().find(|(name, _)| name == *locality).map_or(0, |(_, n)| *n);
        let callers: Vec<_> = localities.iter().map(of).collect();
        // Without callers of the own zone there is nothing to compare.
        (localities.len() > 1 && callers.get(own).is_some_and(|callers| *callers > 0))
            .then_some(ZoneShares { own, callers })
    }
}

impl ZoneShares {
    /// The place of the locality a request goes to; `None` if zones do not count for it. `usable` are the endpoints by place.
    pub(crate) fn choose(
        &self,
        aware: &ZoneAware,
        places: usize,
        usable: impl Fn(usize) -> u64,
        rng: &mut impl RngCore,
    ) -> Option<usize> {
        let here = usable(self.own);
        if here == 0 {
            return None;
        }
        if aware.enabled_percent < 100.0 && below(rng.next_u64(), WHOLE) as f64 >= aware.enabled_percent * 100.0 {
            return None;
        }
        if aware.force_local.is_some_and(|least| here >= u64::from(least.max(1))) {
            return Some(self.own);
        }
        let total: u64 = (0..places).map(&usable).sum();
        let endpoints = |at: usize| usable(at) * WHOLE / total.max(1);
        let callers = |at: usize| self.callers.get(at).copied().unwrap_or(0);
        if endpoints(self.own) >= callers(self.own) {
            return Some(self.own);
        }
        let stay = endpoints(self.own) * WHOLE / callers(self.own).max(1);
        if below(rng.next_u64(), WHOLE) < stay {
            return Some(self.own);
        }
        let room = |at: usize| if at == self.own { 0 } else { endpoints(at).saturating_sub(callers(at)) };
        let mut drawn = below(rng.next_u64(), (0..places).map(room).sum());
        for at in 0..places {
            match drawn.checked_sub(room(at)) {
                None => return Some(at),
                Some(rest) => drawn = rest,
            }
        }
        None
    }
}

const WHOLE: u64 = 10_000;
