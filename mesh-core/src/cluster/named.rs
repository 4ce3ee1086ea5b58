//! Endpoints that no configuration names: what callers asked for by address, remembered while there is room.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    config::{self, EndpointAddress},
    endpoint::{Cell, Endpoint, Seats},
};

/// Endpoints that callers named themselves, the only part behind a lock: taken once a request, never held over anything.
#[derive(Debug, Default)]
pub(super) struct Named(Mutex<BTreeMap<EndpointAddress, Arc<Endpoint>>>);

impl Named {
    /// Beyond this many, those without a request under way are forgotten.
    const MOST: usize = 1024;

    /// The endpoint at an address, the same for all who name it.
    pub(super) fn endpoint(&self, address: EndpointAddress, seats: &Arc<Seats>) -> Arc<Endpoint> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(endpoint) = known.get(&address) {
            return Arc::clone(endpoint);
        }
        if known.len() >= Self::MOST {
            known.retain(|_, endpoint| endpoint.in_flight() > 0);
        }
        let config = config::Endpoint::at(address.clone());
        let endpoint = Arc::new(Endpoint::new(config, (0, 0), Arc::new(Cell::new(seats)), Arc::default()));
        if known.len() < Self::MOST {
            known.insert(address, Arc::clone(&endpoint));
        }
        endpoint
    }
}
