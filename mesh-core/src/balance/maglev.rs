//! A table of slots, each an endpoint's: a request goes to the slot of its hash modulo the table's size. Source: Envoy
//! `MAGLEV`; Eisenbud and others, "Maglev", NSDI 2016, section 3.4.
//!
//! Each endpoint walks the table in an order of its own and takes the next free slot when it is its turn; the heaviest has a
//! turn every round, the others as their weight says. Endpoints take turns in the order of their keys, so that the table does not
//! depend on the order in which they are listed.

use xxhash_rust::xxh64::xxh64;

/// A table.
#[derive(Debug)]
pub(super) struct Table {
    slots: Vec<u32>,
}

struct Walker {
    owner: u32,
    offset: u64,
    skip: u64,
    next: u64,
    share: f64,
    target: f64,
}

impl Table {
    /// Of endpoints by key, with shares that add up to 1. `size` is a prime.
    pub(super) fn new(members: &[(&str, f64)], size: u64) -> Self {
        let most = members.iter().map(|(_, share)| *share).fold(0.0, f64::max);
        if members.is_empty() || most <= 0.0 || size < 2 {
            return Self { slots: Vec::new() };
        }
        let mut order: Vec<usize> = (0..members.len()).collect();
        order.sort_by_key(|at| members.get(*at).map(|(key, _)| *key));
        let mut walkers: Vec<_> = order
            .into_iter()
            .filter_map(|at| {
                let (key, share) = members.get(at)?;
                Some(Walker {
                    owner: at as u32,
                    offset: xxh64(key.as_bytes(), 0) % size,
                    skip: xxh64(key.as_bytes(), 1) % (size - 1) + 1,
                    next: 0,
                    share: *share,
                    target: 0.0,
                })
            })
            .collect();
        let mut slots = vec![u32::MAX; size as usize];
        let mut free = size;
        let mut round = 1.0;
        while free > 0 {
            for walker in &mut walkers {
                if free == 0 {
                    break;
                }
                if round * walker.share < walker.target {
                    continue;
                }
                walker.target += most;
                // A prime size makes every walk reach every slot, and one is free.
                while let Some(slot) = slots.get_mut(((walker.offset + walker.skip * walker.next) % size) as usize) {
                    walker.next += 1;
                    if *slot == u32::MAX {
                        *slot = walker.owner;
                        break;
                    }
                }
                free -= 1;
            }
            round += 1.0;
        }
        Self { slots }
    }

    /// The place of the slot of a hash.
    pub(super) fn find(&self, hash: u64) -> usize {
        (hash % (self.slots.len() as u64).max(1)) as usize
    }

    /// Whose slot it is, counted round the table.
    pub(super) fn owner(&self, at: usize) -> Option<usize> {
        let at = if at < self.slots.len() { at } else { at % self.slots.len().max(1) };
        self.slots.get(at).map(|owner| *owner as usize)
    }

    /// How many slots it has.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }
}

/// Is it a prime? Tables of another size would have slots that some endpoint never reaches.
pub fn is_prime(n: u64) -> bool {
    n >= 2 && (2..).take_while(|divisor| divisor * divisor <= n).all(|divisor| !n.is_multiple_of(divisor))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// LB12: every slot is taken, by weight, whatever the order of the list.
    #[test]
    fn slots_follow_weights_and_not_the_order() {
        let table = |members: &[(&'static str, f64)], size| {
            let table = Table::new(members, size);
            (0..table.len()).map(|at| members[table.owner(at).unwrap_or(0)].0).collect::<Vec<_>>()
        };
        let share = |slots: &[&str], key: &str| slots.iter().filter(|owner| **owner == key).count();
        let even = table(&[("a", 0.5), ("b", 0.5)], 65_537);
        assert!(share(&even, "a").abs_diff(share(&even, "b")) <= 1);
        assert_eq!(even, table(&[("b", 0.5), ("a", 0.5)], 65_537));
        let uneven = table(&[("a", 0.25), ("b", 0.75)], 65_537);
        assert!(share(&uneven, "a").abs_diff(65_537 / 4) <= 2, "{}", share(&uneven, "a"));
        // Few of the slots move when one of ten leaves: those it had, and some more.
        let keys = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
        let ten = table(&keys.map(|key| (key, 0.1)), 65_537);
        let nine = table(&keys[..9].iter().map(|key| (*key, 1.0 / 9.0)).collect::<Vec<_>>(), 65_537);
        let moved = ten.iter().zip(&nine).filter(|(before, after)| before != after).count();
        assert!((6_500..16_000).contains(&moved), "{moved}");
    }

    #[test]
    fn primes() {
        let primes: Vec<_> = (0..20).filter(|n| is_prime(*n)).collect();
        assert_eq!(primes, [2, 3, 5, 7, 11, 13, 17, 19]);
        assert!(is_prime(65_537) && is_prime(5_000_011) && !is_prime(65_536));
    }
}
