//! A sorted map by name whose copies share what neither has changed: for sets of ten thousand resources of which one changes.
//!
//! The entries stand in pieces behind `Arc`s. A copy is a pointer a piece, a change copies one piece, and whoever looks for what
//! differs between two copies passes over the pieces that they have in common. The configuration's clusters are kept in the same
//! way, with what is known of a whole chunk beside it (`mesh-core/src/config/clusters.rs`).

use std::{cmp::Ordering, sync::Arc};

use mesh_core::config::Name;

/// A piece with more is split.
const MOST: usize = 128;

type Piece<V> = Vec<(Name, V)>;

/// Values by name.
#[derive(Clone, Debug)]
pub(super) struct Pieces<V> {
    /// None is empty; all names of one come before those of the next.
    pieces: Vec<Arc<Piece<V>>>,
    len: usize,
}

impl<V> Default for Pieces<V> {
    fn default() -> Self {
        Self { pieces: Vec::new(), len: 0 }
    }
}

impl<V: Clone> Pieces<V> {
    /// Adds a value, or replaces the one of that name, which is given back.
    pub(super) fn insert(&mut self, name: Name, value: V) -> Option<V> {
        let at = self.piece_of(&name);
        let Some(piece) = self.pieces.get_mut(at) else {
            self.pieces.push(Arc::new(vec![(name, value)]));
            self.len += 1;
            return None;
        };
        let piece = Arc::make_mut(piece);
        let place = match find(piece, &name) {
            Ok(found) => return piece.get_mut(found).map(|entry| std::mem::replace(&mut entry.1, value)),
            Err(place) => place,
        };
        piece.insert(place, (name, value));
        self.len += 1;
        if piece.len() > MOST {
            // At the end names mostly come in order: what is full stays full.
            let rest = piece.split_off(if place + 1 == piece.len() { MOST } else { MOST / 2 });
            self.pieces.insert(at + 1, Arc::new(rest));
        }
        None
    }

    /// The value of that name.
    pub(super) fn get(&self, name: &str) -> Option<&V> {
        let piece = self.pieces.get(self.piece_of(name))?;
        piece.get(find(piece, name).ok()?).map(|(_, value)| value)
    }

    /// Names and values, in the order of names.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Name, &V)> {
        self.pieces.iter().flat_map(|piece| piece.iter()).map(|(name, value)| (name, value))
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Tells of every name whose value is another, or is in one of both only: the value here, if there is one.
    pub(super) fn differ<'a>(
        &'a self,
        before: &Self,
        mut tell: impl FnMut(&'a Name, &'a V),
        mut gone: impl FnMut(&Name),
    ) where
        V: PartialEq,
    {
        let (mut new, mut old) = (Walk::of(&self.pieces), Walk::of(&before.pieces));
        loop {
            if new.at == 0
                && old.at == 0
                && let (Some((ours, rest)), Some((theirs, others))) =
                    (new.pieces.split_first(), old.pieces.split_first())
                && Arc::ptr_eq(ours, theirs)
            {
                (new.pieces, old.pieces) = (rest, others);
                continue;
            }
            let order = match (new.entry(), old.entry()) {
                (None, None) => return,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((ours, _)), Some((theirs, _))) => ours.cmp(theirs),
            };
            let (ours, theirs) = (new.entry(), old.entry());
            match (order, ours, theirs) {
                (Ordering::Less, Some((name, value)), _) => tell(name, value),
                (Ordering::Greater, _, Some((name, _))) => gone(name),
                (_, Some((name, value)), Some((_, other))) if value != other => tell(name, value),
                _ => {}
            }
            if order != Ordering::Greater {
                new.step();
            }
            if order != Ordering::Less {
                old.step();
            }
        }
    }

    /// The piece a name is in, or belongs into: the last one that does not begin after it.
    fn piece_of(&self, name: &str) -> usize {
        let begins_after = |piece: &Arc<Piece<V>>| piece.first().is_some_and(|(first, _)| **first > *name);
        self.pieces.partition_point(|piece| !begins_after(piece)).saturating_sub(1)
    }
}

impl<V: PartialEq + Clone> PartialEq for Pieces<V> {
    fn eq(&self, other: &Self) -> bool {
        let mut same = self.len == other.len;
        if same {
            self.differ(other, |_, _| same = false, |_| {});
        }
        same
    }
}

fn find<V>(piece: &Piece<V>, name: &str) -> Result<usize, usize> {
    piece.binary_search_by(|(known, _)| (**known).cmp(name))
}

/// What is left of a map.
struct Walk<'a, V> {
    pieces: &'a [Arc<Piece<V>>],
    /// In the first piece; never at its end.
    at: usize,
}

impl<'a, V> Walk<'a, V> {
    fn of(pieces: &'a [Arc<Piece<V>>]) -> Self {
        Self { pieces, at: 0 }
    }

    fn entry(&self) -> Option<&'a (Name, V)> {
        self.pieces.first()?.get(self.at)
    }

    fn step(&mut self) {
        self.at += 1;
        if let Some((piece, rest)) = self.pieces.split_first()
            && self.at >= piece.len()
        {
            (self.pieces, self.at) = (rest, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn name(n: u16) -> Name {
        format!("{n:05}").into()
    }

    proptest! {
        /// Whatever is put in, in whatever order, it is a sorted map; two copies differ in what two such maps differ in.
        #[test]
        fn it_is_a_sorted_map(first in prop::collection::vec((0..600_u16, 0..3_u8), 0..700), then in prop::collection::vec((0..600_u16, 0..3_u8), 0..40)) {
            let (mut pieces, mut map) = (Pieces::default(), BTreeMap::new());
            for (key, value) in first {
                prop_assert_eq!(pieces.insert(name(key), value), map.insert(name(key), value));
            }
            let (before, old) = (pieces.clone(), map.clone());
            for (key, value) in then {
                pieces.insert(name(key), value);
                map.insert(name(key), value);
            }
            prop_assert!(pieces.iter().eq(&map) && before.iter().eq(&old));
            prop_assert_eq!(pieces.len(), map.len());
            prop_assert!(map.iter().all(|(name, value)| pieces.get(name) == Some(value)) && pieces.get("x").is_none());
            let (mut told, mut gone) = (Vec::new(), Vec::new());
            pieces.differ(&before, |name, value| told.push((name, value)), |name| gone.push(name.clone()));
            prop_assert!(told.into_iter().eq(map.iter().filter(|(name, value)| old.get(*name) != Some(*value))));
            prop_assert!(gone.is_empty());
            let mut told = Vec::new();
            before.differ(&pieces, |name, _| told.push(name.clone()), |name| gone.push(name.clone()));
            prop_assert!(gone.iter().eq(map.keys().filter(|name| !old.contains_key(*name))));
            prop_assert_eq!(pieces == before, map == old);
        }
    }

    /// Of ten thousand, what differs by one shares all pieces but one.
    #[test]
    fn copies_share_what_is_the_same() {
        let mut pieces = Pieces::default();
        for n in 0..10_000 {
            pieces.insert(name(n), 0);
        }
        assert_eq!(pieces.pieces.len(), 10_000_usize.div_ceil(MOST));
        let before = pieces.clone();
        pieces.insert(name(5_000), 1);
        let other = pieces.pieces.iter().zip(&before.pieces).filter(|(a, b)| !Arc::ptr_eq(a, b)).count();
        let mut told = Vec::new();
        pieces.differ(&before, |name, value| told.push((name.clone(), *value)), |_| ());
        assert_eq!((other, told), (1, vec![(name(5_000), 1)]));
    }
}
