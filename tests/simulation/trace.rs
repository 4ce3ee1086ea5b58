//! What happened, in order, as a list and as one number: the same seed gives the same.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

/// A history; clones write into the same.
#[derive(Clone)]
pub(crate) struct Trace {
    start: Instant,
    events: Arc<Mutex<Vec<Event>>>,
}

/// Something that happened.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Event {
    /// Nanoseconds since the beginning.
    pub(crate) at: u64,
    pub(crate) what: &'static str,
    pub(crate) port: u16,
    pub(crate) value: u64,
}

impl Trace {
    /// Begins now.
    pub(crate) fn new() -> Self {
        Self { start: Instant::now(), events: Arc::default() }
    }

    pub(crate) fn note(&self, what: &'static str, port: u16, value: u64) {
        let at = self.start.elapsed().as_nanos() as u64;
        self.events.lock().unwrap_or_else(PoisonError::into_inner).push(Event { at, what, port, value });
    }

    /// All of it.
    pub(crate) fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One number for a history.
pub(crate) fn hash(events: &[Event]) -> u64 {
    events.iter().fold(0, |hash, event| {
        let word = event.what.bytes().fold(0, |word, byte| mix(&[word, u64::from(byte)]));
        mix(&[hash, event.at, word, u64::from(event.port), event.value])
    })
}

/// Mixes numbers into one that looks random. Source: splitmix64 (Steele, Lea, Flood 2014).
pub(crate) fn mix(words: &[u64]) -> u64 {
    words.iter().fold(0x243F_6A88_85A3_08D3, |state, word| {
        let mut z = (state ^ word).wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    })
}
