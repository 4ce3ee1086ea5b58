//! gRPC's throttle of retries, one per server name. Source: gRFC A6 `retryThrottling`.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use mesh_core::{config::Name, retry::Throttle};

/// The throttles of a client's servers, each made at its first call.
#[derive(Debug)]
pub(super) struct Throttles {
    max_tokens: u32,
    token_ratio: f64,
    /// By virtual host, which is what a server is named by here. Locked once a call, never over an await.
    known: Mutex<HashMap<Name, Arc<Throttle>>>,
}

impl Throttles {
    /// Servers beyond this many are not throttled: a bound on memory, not on calls.
    const MOST: usize = 1024;

    /// `None` when out of gRPC's range.
    pub(super) fn new(max_tokens: u32, token_ratio: f64) -> Option<Self> {
        Throttle::new(max_tokens, token_ratio)?;
        Some(Self { max_tokens, token_ratio, known: Mutex::default() })
    }

    pub(super) fn of(&self, server: &Name) -> Option<Arc<Throttle>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(throttle) = known.get(server) {
            return Some(Arc::clone(throttle));
        }
        if known.len() >= Self::MOST {
            return None;
        }
        let throttle = Arc::new(Throttle::new(self.max_tokens, self.token_ratio)?);
        known.insert(Name::clone(server), Arc::clone(&throttle));
        Some(throttle)
    }
}
