//! Where what a pick compares of a cluster's endpoints lies: side by side, so that among very many endpoints a pick fetches one
//! line of memory for each that it looks at.
//!
//! A seat belongs to one endpoint, across snapshots, until nobody knows that endpoint any more, and then to another. What is
//! asked less often is in the endpoint's own [`Cell`](super::Cell).

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::{
    balance::Ewma,
    sync::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Time,
};

/// What a pick compares of one endpoint. Half a line of memory.
#[derive(Debug)]
#[repr(align(32))]
pub(crate) struct Hot {
    pub(crate) in_flight: AtomicU32,
    /// How many may be under way at once.
    pub(crate) most: AtomicU32,
    /// Whether it is ejected, in the words of [`outlier`](crate::outlier); 0 is not.
    pub(crate) ejected: AtomicU32,
    pub(crate) fails_checks: AtomicBool,
    /// Nanoseconds of [`Time`]; 0 is reachable.
    pub(crate) unreachable_until: AtomicU64,
    pub(crate) ewma: Ewma,
}

impl Default for Hot {
    fn default() -> Self {
        Self {
            in_flight: AtomicU32::new(0),
            most: AtomicU32::new(u32::MAX),
            ejected: AtomicU32::new(0),
            fails_checks: AtomicBool::new(false),
            unreachable_until: AtomicU64::new(0),
            ewma: Ewma::default(),
        }
    }
}

impl Hot {
    /// As many requests are under way as it may have at once.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.in_flight.load(Relaxed) >= self.most.load(Relaxed)
    }

    /// It gets no requests for now, whatever the configuration says of its health.
    #[inline]
    pub(crate) fn is_out(&self) -> bool {
        self.ejected.load(Relaxed) != 0 || self.fails_checks.load(Relaxed) || self.is_full()
    }

    /// No connection could be made lately.
    #[inline]
    pub(crate) fn is_unreachable(&self, now: Time) -> bool {
        self.unreachable_until.load(Relaxed) > now.as_nanos()
    }

    /// As new, for the next endpoint.
    fn reset(&self) {
        let Self { in_flight, most, ejected, fails_checks, unreachable_until, ewma } = self;
        in_flight.store(0, Relaxed);
        most.store(u32::MAX, Relaxed);
        ejected.store(0, Relaxed);
        fails_checks.store(false, Relaxed);
        unreachable_until.store(0, Relaxed);
        ewma.reset();
    }
}

/// All seats of one cluster. They grow in rows, each as large as all before it or larger, and never move.
#[derive(Debug, Default)]
pub(crate) struct Seats {
    rows: OnceLock<Box<Row>>,
    /// Never taken by a request; the standard library's lock in models too.
    free: Mutex<Free>,
}

#[derive(Debug)]
struct Row {
    seats: Arc<[Hot]>,
    next: OnceLock<Box<Self>>,
}

#[derive(Debug, Default)]
struct Free {
    /// Given back, the next one last.
    numbers: Vec<u32>,
    /// From here on no seat was ever taken.
    fresh: u32,
    /// How many there are.
    room: u32,
}

impl Seats {
    /// The seat of that number.
    pub(crate) fn get(&self, number: u32) -> Option<&Hot> {
        let (mut row, mut at) = (self.rows.get()?, number as usize);
        loop {
            if let Some(seat) = row.seats.get(at) {
                return Some(seat);
            }
            at -= row.seats.len();
            row = row.next.get()?;
        }
    }

    /// The first row, in which mostly all are.
    pub(crate) fn first(&self) -> Arc<[Hot]> {
        self.rows.get().map_or_else(Arc::default, |row| Arc::clone(&row.seats))
    }

    /// Makes room for so many at once, so that they lie together.
    pub(crate) fn reserve(&self, more: usize) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let ready = free.numbers.len() + (free.room - free.fresh) as usize;
        if more > ready {
            self.add_row(&mut free, more - ready);
        }
    }

    /// A seat that nobody has.
    pub(crate) fn take(self: &Arc<Self>) -> Seat {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let number = match free.numbers.pop() {
            Some(number) => number,
            None => {
                if free.fresh == free.room {
                    self.add_row(&mut free, 1);
                }
                free.fresh += 1;
                free.fresh - 1
            }
        };
        drop(free);
        let seat = Seat { seats: Arc::clone(self), number };
        seat.hot().reset();
        seat
    }

    fn add_row(&self, free: &mut Free, least: usize) {
        let size = least.max(free.room as usize);
        let mut slot = &self.rows;
        while let Some(row) = slot.get() {
            slot = &row.next;
        }
        let seats = (0..size).map(|_| Hot::default()).collect();
        if slot.set(Box::new(Row { seats, next: OnceLock::new() })).is_ok() {
            free.room += size as u32;
        }
    }
}

/// One seat, taken.
#[derive(Debug)]
pub(crate) struct Seat {
    seats: Arc<Seats>,
    number: u32,
}

impl Seat {
    pub(crate) fn hot(&self) -> &Hot {
        match self.seats.get(self.number) {
            Some(hot) => hot,
            None => unreachable!("rows of seats are never taken away"),
        }
    }

    /// Its number, if it is one of these.
    pub(crate) fn number_in(&self, seats: &Arc<Seats>) -> Option<u32> {
        Arc::ptr_eq(&self.seats, seats).then_some(self.number)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.free.lock().unwrap_or_else(PoisonError::into_inner).numbers.push(self.number);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Seats stay where they are while others come, and one given back is as new.
    #[test]
    fn seats_are_used_again_and_never_move() {
        let seats = Arc::new(Seats::default());
        seats.reserve(3);
        let mut taken: Vec<_> = (0..3).map(|_| seats.take()).collect();
        let first = std::ptr::from_ref(taken[0].hot());
        taken[1].hot().in_flight.store(7, Relaxed);
        taken.extend((0..100).map(|_| seats.take()));
        let numbers: Vec<_> = taken.iter().map(|seat| seat.number_in(&seats).unwrap()).collect();
        assert_eq!(numbers, (0..103).collect::<Vec<_>>());
        assert_eq!(std::ptr::from_ref(taken[0].hot()), first);
        assert_eq!((taken[1].hot().in_flight.load(Relaxed), taken[102].hot().in_flight.load(Relaxed)), (7, 0));
        drop(taken.remove(1));
        let again = seats.take();
        assert_eq!((again.number_in(&seats), again.hot().in_flight.load(Relaxed)), (Some(1), 0));
        assert!(seats.get(1_000).is_none() && again.number_in(&Arc::default()).is_none());
    }
}
