//! Policies that a program brings along, by the name of their configuration message. Source: gRFC A52.
//!
//! The registry is one for the process, as a control plane names policies by type URL and knows nothing of clients within it. It
//! is asked when configuration is read and compiled, and never by a request.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use rand::RngCore;

use crate::{
    config::{Custom, Name},
    endpoint::Endpoint,
    pick::Ask,
    time::Time,
};

/// A load balancing policy of the program's own. One lives as long as its cluster is configured alike.
pub trait Policy: fmt::Debug + Send + Sync {
    /// The place of the endpoint to take, of those that `may` be taken; `None` if there is none.
    ///
    /// Called for every try, by many threads at once. `endpoints` are those of one priority or locality, the same until the
    /// configuration changes.
    fn pick(
        &self,
        endpoints: &[Arc<Endpoint>],
        may: &dyn Fn(&Endpoint) -> bool,
        ask: &Ask<'_>,
        now: Time,
        rng: &mut dyn RngCore,
    ) -> Option<usize>;
}

/// Makes a policy of its configuration, or says what is wrong with that.
pub type Make = fn(config: &[u8]) -> Result<Arc<dyn Policy>, String>;

static KNOWN: RwLock<BTreeMap<Name, Make>> = RwLock::new(BTreeMap::new());

/// Makes a policy known by the full name of its configuration message (`com.example.lb.v1.Nearest`). Call it before
/// the configuration that names it is read.
pub fn register(name: impl Into<Name>, make: Make) {
    KNOWN.write().unwrap_or_else(PoisonError::into_inner).insert(name.into(), make);
}

/// Is there a policy of that name?
pub fn is_registered(name: &str) -> bool {
    KNOWN.read().unwrap_or_else(PoisonError::into_inner).contains_key(name)
}

/// The policy that a configuration names.
///
/// # Errors
///
/// There is none of that name, or its configuration is wrong.
pub fn make(custom: &Custom) -> Result<Arc<dyn Policy>, String> {
    let make = KNOWN.read().unwrap_or_else(PoisonError::into_inner).get(&custom.name).copied();
    match make {
        Some(make) => make(&custom.config),
        None => Err(format!("no load balancing policy {:?} is registered in this process", custom.name)),
    }
}
