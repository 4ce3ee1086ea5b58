//! Connections that a gateway's caller and its destination changed to another protocol: bytes from one to the other.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::{io::copy_bidirectional, task::JoinSet};

/// Clones share them; the last one ends them.
#[derive(Clone, Default)]
pub(crate) struct Tunnels(Arc<Mutex<JoinSet<()>>>);

impl Tunnels {
    /// Hands on what either side sends until both have ended. No limit of the request applies any more (RA20).
    pub(super) fn join(&self, down: OnUpgrade, up: OnUpgrade) {
        let mut tunnels = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while tunnels.try_join_next().is_some() {}
        tunnels.spawn(async move {
            let (Ok(down), Ok(up)) = tokio::join!(down, up) else { return };
            // One side going away is how these end.
            let _ = copy_bidirectional(&mut TokioIo::new(down), &mut TokioIo::new(up)).await;
        });
    }
}

impl fmt::Debug for Tunnels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnels").finish_non_exhaustive()
    }
}
