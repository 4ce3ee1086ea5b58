//! One value that all threads hold on to at once, without writing to the memory of one another.
//!
//! Whoever keeps an `Arc` for the time of a request counts up and down where every other request does, and two threads
//! doing so wait for each other's cache line. Here each thread counts in a place of its own, through which the value is
//! reached. Sharing out copies nothing of the value; more than [`PLACES`] threads share places in turn.

use std::{
    cell::Cell,
    fmt,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

/// More threads than this share.
pub(crate) const PLACES: usize = 16;

/// A value to be held by requests on any thread; clones are of the same value.
pub(crate) struct Spread<T> {
    places: Arc<[Arc<Alone<T>>]>,
}

/// Alone on its cache lines, with the counter beside it.
#[repr(align(128))]
struct Alone<T>(Arc<T>);

/// A value held from one thread's place, and from wherever it is taken.
pub(crate) struct Held<T>(Arc<Alone<T>>);

impl<T> Spread<T> {
    pub(crate) fn new(value: T) -> Self {
        let value = Arc::new(value);
        Self { places: (0..PLACES).map(|_| Arc::new(Alone(Arc::clone(&value)))).collect() }
    }

    /// Holds on to the value.
    pub(crate) fn hold(&self) -> Held<T> {
        Held(Arc::clone(&self.places[thread() % PLACES]))
    }
}

impl<T> Deref for Spread<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.places[0].0
    }
}

impl<T> Clone for Spread<T> {
    fn clone(&self) -> Self {
        Self { places: Arc::clone(&self.places) }
    }
}

impl<T: fmt::Debug> fmt::Debug for Spread<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T> Deref for Held<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.0
    }
}

impl<T: fmt::Debug> fmt::Debug for Held<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// The number of this thread, counted from the first that asked.
pub(crate) fn thread() -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static THREAD: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    let mut thread = THREAD.get();
    if thread == usize::MAX {
        thread = THREADS.fetch_add(1, Ordering::Relaxed);
        THREAD.set(thread);
    }
    thread
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn each_thread_holds_it_in_a_place_of_its_own() {
        let spread = Spread::new(String::from("value"));
        let here = spread.hold();
        let other = spread.clone();
        let there = std::thread::spawn(move || other.hold()).join().unwrap();
        assert!(!Arc::ptr_eq(&here.0, &there.0));
        drop(spread);
        assert_eq!((here.as_str(), there.as_str()), ("value", "value"));
        assert_eq!(Arc::strong_count(&here.0.0), 2, "what nobody holds is let go of");
    }
}
