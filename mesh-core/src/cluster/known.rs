//! The endpoints of a cluster's predecessor, found again while its new configuration is compiled.
//!
//! Lists of endpoints mostly stay in order while some come and go, so each is looked for where the one before it was found,
//! and among all, by address, only when it is not near there.

use std::{collections::BTreeMap, sync::Arc};

use hashbrown::HashMap;

use super::{Cluster, Departed};
use crate::{
    config::{self, EndpointAddress},
    endpoint::{Cell, Endpoint, Seats},
    sync::Ordering::Relaxed,
};

pub(super) struct Known<'a> {
    previous: &'a [Arc<Endpoint>],
    /// Of the previous, those that stay.
    stays: Vec<bool>,
    /// After the one found last.
    next: usize,
    by_address: Option<HashMap<&'a EndpointAddress, usize>>,
    /// Connections of the predecessor serve this configuration too.
    same_transport: bool,
    /// Those that had left before.
    departed: BTreeMap<EndpointAddress, Departed>,
    /// Where new ones get their seats.
    seats: Arc<Seats>,
}

impl<'a> Known<'a> {
    pub(super) fn of(config: &config::Cluster, previous: &'a Cluster) -> Self {
        let old = &previous.config;
        let under_way = previous.departed.iter().filter(|departed| departed.cell.strong_count() > 0);
        Self {
            previous: previous.endpoints(),
            stays: vec![false; previous.endpoints().len()],
            next: 0,
            by_address: None,
            same_transport: old.protocol == config.protocol
                && old.tls == config.tls
                && old.connections == config.connections
                && old.connect_timeout == config.connect_timeout,
            departed: under_way.cloned().map(|departed| (departed.address.clone(), departed)).collect(),
            seats: Arc::clone(&previous.live.seats),
        }
    }

    /// Of a cluster that was away.
    pub(super) fn returned(departed: Vec<Departed>, seats: Arc<Seats>) -> Self {
        let departed = departed.into_iter().map(|departed| (departed.address.clone(), departed)).collect();
        Self { previous: &[], stays: Vec::new(), next: 0, by_address: None, same_transport: false, departed, seats }
    }

    /// So many endpoints will be asked for.
    pub(super) fn expect(&self, endpoints: usize) {
        self.seats.reserve(endpoints.saturating_sub(self.previous.len()));
    }

    /// The endpoint for this configuration, with its old cell where there is one.
    pub(super) fn take(&mut self, config: &config::Endpoint, at: (u32, u32)) -> Arc<Endpoint> {
        if let Some(old) = self.find(&config.address) {
            if self.same_transport && old.config() == config && (old.level, old.place) == at {
                return Arc::clone(old);
            }
            let keep = self.same_transport && old.config().mtls == config.mtls;
            let attachments = if keep { Arc::clone(&old.attachments) } else { Arc::default() };
            return Arc::new(Endpoint::new(config.clone(), at, Arc::clone(&old.cell), attachments));
        }
        let departed = self.departed.remove(&config.address);
        let cell = departed.as_ref().and_then(|departed| departed.cell.upgrade());
        let cell = cell.unwrap_or_else(|| Arc::new(Cell::new(&self.seats)));
        // It was away: it starts slowly again.
        cell.since.store(0, Relaxed);
        let attachments = departed.filter(|_| self.same_transport).and_then(|departed| departed.attachments.upgrade());
        Arc::new(Endpoint::new(config.clone(), at, cell, attachments.unwrap_or_default()))
    }

    /// Those that are gone, with those that had left before and have not returned.
    pub(super) fn departed(self) -> Vec<Departed> {
        let gone = self.previous.iter().zip(self.stays).filter(|(_, stays)| !stays);
        self.departed.into_values().chain(gone.map(|(endpoint, _)| Departed::of(endpoint))).collect()
    }

    fn find(&mut self, address: &EndpointAddress) -> Option<&'a Arc<Endpoint>> {
        let near = self.previous.iter().enumerate().skip(self.next).take(NEAR);
        let at = match near.clone().find(|(_, old)| old.address() == address) {
            Some((at, _)) => at,
            None => {
                let all = || self.previous.iter().enumerate().map(|(at, old)| (old.address(), at)).collect();
                *self.by_address.get_or_insert_with(all).get(address)?
            }
        };
        self.next = at + 1;
        let stays = self.stays.get_mut(at)?;
        // An address that is listed twice is two endpoints with one cell, as when it was new.
        *stays = true;
        self.previous.get(at)
    }
}

/// How many are looked at before all are.
const NEAR: usize = 8;
