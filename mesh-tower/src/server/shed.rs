//! Load shedding: how many requests a server works on at once, and how long others wait for their turn. Source: Linkerd's
//! inbound queue, Envoy's overload manager.
//!
//! A request that cannot begin in time is refused at once and cheaply, while its caller can still go elsewhere: 503 with
//! `x-envoy-overloaded`, to a gRPC caller `UNAVAILABLE` with a pushback. As many may wait as are worked on; more are
//! refused without waiting.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// Where requests wait for their turn; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
    most_waiting: usize,
    patience: Duration,
}

impl Gate {
    pub(crate) fn new(most: usize, patience: Duration) -> Self {
        let most = most.clamp(1, Semaphore::MAX_PERMITS);
        let places = Arc::new(Semaphore::new(most));
        Self { shared: Arc::new(Shared { places, waiting: AtomicUsize::new(0), most_waiting: most, patience }) }
    }

    /// A request's turn, until it is dropped; `None` when it does not come in time.
    pub(crate) async fn enter(&self) -> Option<OwnedSemaphorePermit> {
        let shared = &self.shared;
        if let Ok(place) = Arc::clone(&shared.places).try_acquire_owned() {
            return Some(place);
        }
        let waiting = Waiting(shared);
        if shared.waiting.fetch_add(1, Relaxed) >= shared.most_waiting {
            return None;
        }
        let place = timeout(shared.patience, Arc::clone(&shared.places).acquire_owned()).await;
        drop(waiting);
        place.ok()?.ok()
    }

    /// After which a refused caller may come back.
    pub(crate) fn pushback(&self) -> Duration {
        self.shared.patience
    }
}

struct Waiting<'a>(&'a Shared);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use tokio::{task::JoinSet, time::Instant};

    use super::*;

    /// CB9: as many as allowed are worked on, as many wait for so long, the rest is refused at once.
    #[tokio::test(start_paused = true)]
    async fn who_cannot_begin_in_time_is_refused() {
        let gate = Gate::new(2, Duration::from_secs(1));
        let first = (gate.enter().await.unwrap(), gate.enter().await.unwrap());
        let start = Instant::now();
        let mut waiting = JoinSet::new();
        for _ in 0..3 {
            let gate = gate.clone();
            waiting.spawn(async move { gate.enter().await.is_some() });
        }
        assert!(!waiting.join_next().await.unwrap().unwrap());
        assert_eq!(start.elapsed(), Duration::ZERO, "the third in line");
        drop(first.0);
        assert!(waiting.join_next().await.unwrap().unwrap());
        // Whoever entered has left again.
        assert!(waiting.join_next().await.unwrap().unwrap());
        let again = gate.enter().await;
        assert!(again.is_some());
        assert!(gate.enter().await.is_none());
        assert_eq!(start.elapsed(), Duration::from_secs(1));
        assert_eq!(gate.shared.waiting.load(Relaxed), 0);
    }
}
