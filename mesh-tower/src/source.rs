//! The only reader of the clock and of entropy: everything else is handed `now` and random bits.
//!
//! Time is nanoseconds since the source was made, read from tokio's clock so that a paused test clock moves it. The
//! random stream of request `n` is a function of (seed, n), so a decision can be replayed; identifiers that must not be
//! guessed or repeated (trace ids, request ids) come from a generator seeded by the operating system instead.

use std::{
    cell::{Cell, RefCell},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use mesh_core::{rng::RequestRng, time::Time};
use rand::{RngCore, SeedableRng, rngs::SmallRng};
use tokio::time::Instant;

/// A clock and a seed; clones share both.
#[derive(Clone, Debug)]
pub struct Source {
    start: Instant,
    seed: u64,
    requests: Requests,
    channel: u64,
}

/// Who numbers requests.
#[derive(Clone, Debug)]
enum Requests {
    /// One after the other, so that they can be replayed.
    InOrder(Arc<AtomicU64>),
    /// Each thread those of a block of its own, so that threads need not wait for each other.
    ByThread,
}

impl Requests {
    /// Numbers a thread takes at once.
    const BLOCK: u64 = 4096;

    fn next(&self) -> u64 {
        static BLOCKS: AtomicU64 = AtomicU64::new(0);
        thread_local! {
            static NEXT: Cell<u64> = const { Cell::new(0) };
        }
        if let Self::InOrder(next) = self {
            return next.fetch_add(1, Ordering::Relaxed);
        }
        let mut next = NEXT.get();
        if next.is_multiple_of(Self::BLOCK) {
            next = BLOCKS.fetch_add(Self::BLOCK, Ordering::Relaxed);
        }
        NEXT.set(next + 1);
        next
    }
}

impl Source {
    /// The process's own: one clock and one seed, drawn when first asked for.
    pub fn system() -> Self {
        static SYSTEM: OnceLock<Source> = OnceLock::new();
        SYSTEM.get_or_init(|| Self { requests: Requests::ByThread, ..Self::seeded(random_u64()) }).clone()
    }

    /// A source whose random streams are those of `seed`, its clock beginning now: for tests and replays.
    pub fn seeded(seed: u64) -> Self {
        // A stream that no request has.
        let channel = RequestRng::new(seed, u64::MAX).next_u64();
        Self { start: Instant::now(), seed, requests: Requests::InOrder(Arc::default()), channel }
    }

    /// The time, as policy counts it.
    #[inline]
    pub fn now(&self) -> Time {
        self.clock().now()
    }

    /// The clock alone, which is copied without touching what all threads share.
    #[inline]
    pub(crate) fn clock(&self) -> Clock {
        Clock(self.start)
    }

    /// The runtime's instant of `time`, to sleep until.
    #[inline]
    pub fn instant(&self, time: Time) -> Instant {
        self.start + Duration::from_nanos(time.as_nanos())
    }

    /// The random bits of the next request.
    pub fn next_request(&self) -> RequestRng {
        RequestRng::new(self.seed, self.requests.next())
    }

    /// What all requests of one client have in common, and those of others have not.
    pub(crate) fn channel(&self) -> u64 {
        self.channel
    }

    /// The wall clock: for certificates and for people.
    pub fn wall(&self) -> SystemTime {
        wall()
    }
}

/// The time, as policy counts it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    #[inline]
    pub(crate) fn now(self) -> Time {
        self.at(Instant::now())
    }

    /// What the time is at that instant of the runtime.
    #[inline]
    pub(crate) fn at(self, instant: Instant) -> Time {
        let since = instant.saturating_duration_since(self.0);
        // Some 584 years fit.
        Time::from_nanos(since.as_secs().saturating_mul(1_000_000_000).saturating_add(since.subsec_nanos().into()))
    }
}

/// The runtime's clock, to sleep by: deadlines and durations.
pub(crate) fn instant() -> Instant {
    Instant::now()
}

/// The wall clock: for certificates and for people.
pub(crate) fn wall() -> SystemTime {
    SystemTime::now()
}

/// The wall clock in nanoseconds since 1970; 0 before that.
pub(crate) fn unix_nanos() -> u64 {
    let since = wall().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// 64 bits that differ each time.
pub(crate) fn random_u64() -> u64 {
    thread_local! {
        static BITS: RefCell<SmallRng> = RefCell::new(SmallRng::from_os_rng());
    }
    BITS.with_borrow_mut(RngCore::next_u64)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn time_follows_the_runtime_clock() {
        let source = Source::seeded(1);
        let before = source.now();
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(source.now().saturating_since(before), Duration::from_secs(3));
        assert_eq!(source.instant(source.now()), Instant::now());
    }

    #[test]
    fn the_same_seed_draws_the_same_bits_for_the_same_request() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let _guard = runtime.enter();
        let (one, other) = (Source::seeded(7), Source::seeded(7));
        let bits: Vec<u64> = (0..4).map(|_| one.next_request().next_u64()).collect();
        assert_eq!(bits, (0..4).map(|_| other.next_request().next_u64()).collect::<Vec<_>>());
        assert_ne!(bits[0], bits[1]);
    }
}
