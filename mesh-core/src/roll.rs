//! All endpoints of a cluster in one order, with the seats of their counters: what groups of them are told by number.
//!
//! Numbers mostly follow one another, and then nothing is looked up to get from one to the other.

use std::sync::Arc;

use crate::endpoint::{Endpoint, Hot, Seats};

/// The endpoints of a cluster.
#[derive(Debug, Default)]
pub(crate) struct Roll {
    endpoints: Vec<Arc<Endpoint>>,
    seats: Arc<Seats>,
    /// The first row of them, at hand.
    first: Arc<[Hot]>,
    /// `None` where some have their seats elsewhere.
    numbers: Option<Run>,
}

impl Roll {
    pub(crate) fn new(endpoints: Vec<Arc<Endpoint>>, seats: &Arc<Seats>) -> Self {
        let numbers: Option<Vec<_>> = endpoints.iter().map(|endpoint| endpoint.cell.seat.number_in(seats)).collect();
        Self { endpoints, seats: Arc::clone(seats), first: seats.first(), numbers: numbers.map(Run::of) }
    }

    pub(crate) fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    /// The row that their seats are in and the places there of some of them, so that a pick looks nothing else up; `None`
    /// where these are not all in one row.
    pub(crate) fn seats_of(&self, members: &Run) -> Option<(Arc<[Hot]>, Run)> {
        let numbers = self.numbers.as_ref()?;
        let place = |at| numbers.get(members.get(at)? as usize).filter(|number| (*number as usize) < self.first.len());
        let places: Option<Vec<_>> = (0..members.len()).map(place).collect();
        Some((Arc::clone(&self.first), Run::of(places?)))
    }

    /// What a pick compares of one of them; the endpoint itself is not looked at.
    pub(crate) fn hot(&self, at: u32) -> Option<&Hot> {
        match &self.numbers {
            Some(numbers) => {
                let number = numbers.get(at as usize)?;
                self.first.get(number as usize).or_else(|| self.seats.get(number))
            }
            None => Some(self.get(at)?.hot()),
        }
    }

    pub(crate) fn get(&self, at: u32) -> Option<&Arc<Endpoint>> {
        self.endpoints.get(at as usize)
    }
}

/// A list of numbers.
#[derive(Debug)]
pub(crate) enum Run {
    /// So many that follow one another, from the first.
    From(u32, usize),
    Each(Vec<u32>),
}

impl Default for Run {
    fn default() -> Self {
        Self::From(0, 0)
    }
}

impl Run {
    pub(crate) fn of(numbers: Vec<u32>) -> Self {
        let first = numbers.first().copied().unwrap_or(0);
        match numbers.iter().zip(first..).all(|(number, expected)| *number == expected) {
            true => Self::From(first, numbers.len()),
            false => Self::Each(numbers),
        }
    }

    #[inline]
    pub(crate) fn get(&self, at: usize) -> Option<u32> {
        match self {
            Self::From(first, len) => (at < *len).then_some(first + at as u32),
            Self::Each(numbers) => numbers.get(at).copied(),
        }
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::From(_, len) => *len,
            Self::Each(numbers) => numbers.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_the_list_it_was_made_of() {
        for numbers in [vec![], vec![5], vec![3, 4, 5], vec![3, 5, 4], vec![1, 1]] {
            let run = Run::of(numbers.clone());
            assert_eq!((0..=numbers.len()).map_while(|at| run.get(at)).collect::<Vec<_>>(), numbers);
            assert_eq!(run.len(), numbers.len());
        }
    }
}
