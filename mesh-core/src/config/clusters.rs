//! The clusters of a mesh by name, in order: a sorted map whose copies share what neither has changed.
//!
//! The entries stand in chunks behind `Arc`s. A copy of ten thousand clusters is a hundred pointers, a change copies one
//! chunk, and whoever compiles or compares two versions passes over the chunks they have in common.

use std::{
    collections::BTreeMap,
    fmt,
    ops::{Deref, Index},
    slice,
    sync::{Arc, OnceLock},
    vec,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Cluster, Discovery, Name};

/// Clusters by name.
#[derive(Clone, Default)]
pub struct Clusters {
    /// None is empty; all names of one come before those of the next.
    chunks: Vec<Arc<Chunk>>,
    len: usize,
}

/// Neighbours, in order.
#[derive(Debug, Default)]
pub(crate) struct Chunk {
    entries: Vec<(Name, Arc<Cluster>)>,
    /// Some of them are made of names; looked at once.
    by_name: OnceLock<bool>,
}

impl Chunk {
    fn of(entries: Vec<(Name, Arc<Cluster>)>) -> Self {
        Self { entries, by_name: OnceLock::new() }
    }

    /// The entries, to be changed.
    fn entries_mut(&mut self) -> &mut Vec<(Name, Arc<Cluster>)> {
        self.by_name.take();
        &mut self.entries
    }

    /// Those that are made of names.
    pub(crate) fn made_of_names(&self) -> impl Iterator<Item = &(Name, Arc<Cluster>)> {
        let is_it = |cluster: &Cluster| matches!(cluster.discovery, Discovery::StrictDns(_) | Discovery::LogicalDns(_));
        let any = *self.by_name.get_or_init(|| self.entries.iter().any(|(_, cluster)| is_it(cluster)));
        let entries = if any { &self.entries[..] } else { &[] };
        entries.iter().filter(move |(_, cluster)| is_it(cluster))
    }
}

impl Clone for Chunk {
    fn clone(&self) -> Self {
        // Cloned to be changed.
        Self::of(self.entries.clone())
    }
}

impl Deref for Chunk {
    type Target = [(Name, Arc<Cluster>)];

    fn deref(&self) -> &Self::Target {
        &self.entries
    }
}

impl Clusters {
    /// No cluster.
    pub fn new() -> Self {
        Self::default()
    }

    /// Of chunks as [`chunks`](Self::chunks) gives them.
    pub(crate) fn of_chunks(chunks: Vec<Arc<Chunk>>) -> Self {
        let len = chunks.iter().map(|chunk| chunk.len()).sum();
        Self { chunks, len }
    }

    /// Adds a cluster, or replaces the one of that name, which is given back.
    pub fn insert(&mut self, name: Name, cluster: Arc<Cluster>) -> Option<Arc<Cluster>> {
        let at = self.chunk_of(&name);
        let Some(chunk) = self.chunks.get_mut(at) else {
            self.chunks.push(Arc::new(Chunk::of(vec![(name, cluster)])));
            self.len += 1;
            return None;
        };
        let chunk = Arc::make_mut(chunk).entries_mut();
        let place = match find(chunk, &name) {
            Ok(found) => return chunk.get_mut(found).map(|entry| std::mem::replace(&mut entry.1, cluster)),
            Err(place) => place,
        };
        chunk.insert(place, (name, cluster));
        self.len += 1;
        if chunk.len() > MOST {
            let rest = chunk.split_off(FILL);
            self.chunks.insert(at + 1, Arc::new(Chunk::of(rest)));
        }
        None
    }

    /// Takes a cluster out.
    pub fn remove<Q: AsRef<str> + ?Sized>(&mut self, name: &Q) -> Option<Arc<Cluster>> {
        let at = self.chunk_of(name.as_ref());
        let chunk = self.chunks.get_mut(at)?;
        let place = find(chunk, name.as_ref()).ok()?;
        let chunk = Arc::make_mut(chunk).entries_mut();
        let (_, removed) = chunk.remove(place);
        if chunk.is_empty() {
            self.chunks.remove(at);
        }
        self.len -= 1;
        Some(removed)
    }

    /// All clusters, to be replaced; every chunk is copied that another version holds too.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut Arc<Cluster>> {
        self.chunks
            .iter_mut()
            .flat_map(|chunk| Arc::make_mut(chunk).entries_mut().iter_mut().map(|(_, cluster)| cluster))
    }

    /// The cluster of that name.
    pub fn get<Q: AsRef<str> + ?Sized>(&self, name: &Q) -> Option<&Arc<Cluster>> {
        let chunk = self.chunks.get(self.chunk_of(name.as_ref()))?;
        let place = find(chunk, name.as_ref()).ok()?;
        chunk.get(place).map(|(_, cluster)| cluster)
    }

    /// Is there a cluster of that name?
    pub fn contains_key<Q: AsRef<str> + ?Sized>(&self, name: &Q) -> bool {
        self.get(name).is_some()
    }

    /// Names and clusters, in the order of names.
    pub fn iter(&self) -> Iter<'_> {
        Iter { chunks: self.chunks.iter(), entries: [].iter(), left: self.len }
    }

    /// Those that are made of DNS names, in the order of their own; costs little where there are none.
    pub fn made_of_names(&self) -> impl Iterator<Item = (&Name, &Arc<Cluster>)> {
        self.chunks.iter().flat_map(|chunk| chunk.made_of_names()).map(|(name, cluster)| (name, cluster))
    }

    /// The names, in order.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &Name> + fmt::Debug {
        self.iter().map(|(name, _)| name)
    }

    /// The clusters, in the order of their names.
    pub fn values(&self) -> impl ExactSizeIterator<Item = &Arc<Cluster>> {
        self.iter().map(|(_, cluster)| cluster)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What can be passed over when two versions hold the same.
    pub(crate) fn chunks(&self) -> &[Arc<Chunk>] {
        &self.chunks
    }

    /// The chunk a name is in, or belongs into: the last one that does not begin after it.
    fn chunk_of(&self, name: &str) -> usize {
        let begins_after = |chunk: &Arc<Chunk>| chunk.first().is_some_and(|(first, _)| **first > *name);
        self.chunks.partition_point(|chunk| !begins_after(chunk)).saturating_sub(1)
    }
}

fn find(chunk: &[(Name, Arc<Cluster>)], name: &str) -> Result<usize, usize> {
    chunk.binary_search_by(|(known, _)| (**known).cmp(name))
}

/// As many as a chunk made at once has.
const FILL: usize = 64;
/// A chunk with more is split.
const MOST: usize = 2 * FILL;

/// Names and clusters, in the order of names.
#[derive(Clone, Debug)]
pub struct Iter<'a> {
    chunks: slice::Iter<'a, Arc<Chunk>>,
    entries: slice::Iter<'a, (Name, Arc<Cluster>)>,
    left: usize,
}

impl<'a> Iterator for Iter<'a> {
    type Item = (&'a Name, &'a Arc<Cluster>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((name, cluster)) = self.entries.next() {
                self.left -= 1;
                return Some((name, cluster));
            }
            self.entries = self.chunks.next()?.iter();
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Iter<'_> {}

impl<'a> IntoIterator for &'a Clusters {
    type Item = (&'a Name, &'a Arc<Cluster>);
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl IntoIterator for Clusters {
    type Item = (Name, Arc<Cluster>);
    type IntoIter = vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        let entries: Vec<_> = self.chunks.into_iter().flat_map(|chunk| Arc::unwrap_or_clone(chunk).entries).collect();
        entries.into_iter()
    }
}

impl FromIterator<(Name, Arc<Cluster>)> for Clusters {
    fn from_iter<I: IntoIterator<Item = (Name, Arc<Cluster>)>>(clusters: I) -> Self {
        let sorted: BTreeMap<_, _> = clusters.into_iter().collect();
        let len = sorted.len();
        let mut sorted = sorted.into_iter();
        let mut chunks = Vec::with_capacity(len.div_ceil(FILL));
        while sorted.len() > 0 {
            let mut chunk = Vec::with_capacity(sorted.len().min(FILL));
            chunk.extend(sorted.by_ref().take(FILL));
            chunks.push(Arc::new(Chunk::of(chunk)));
        }
        Self { chunks, len }
    }
}

impl<const N: usize> From<[(Name, Arc<Cluster>); N]> for Clusters {
    fn from(clusters: [(Name, Arc<Cluster>); N]) -> Self {
        clusters.into_iter().collect()
    }
}

impl Extend<(Name, Arc<Cluster>)> for Clusters {
    fn extend<I: IntoIterator<Item = (Name, Arc<Cluster>)>>(&mut self, clusters: I) {
        for (name, cluster) in clusters {
            self.insert(name, cluster);
        }
    }
}

impl<Q: AsRef<str> + ?Sized> Index<&Q> for Clusters {
    type Output = Arc<Cluster>;

    /// Panics if there is no such cluster, as maps do.
    #[allow(clippy::panic, reason = "as the standard library's maps do")]
    fn index(&self, name: &Q) -> &Arc<Cluster> {
        self.get(name).unwrap_or_else(|| panic!("no cluster {:?}", name.as_ref()))
    }
}

impl PartialEq for Clusters {
    fn eq(&self, other: &Self) -> bool {
        fn same(a: (&Name, &Arc<Cluster>), b: (&Name, &Arc<Cluster>)) -> bool {
            a.0 == b.0 && (Arc::ptr_eq(a.1, b.1) || a.1 == b.1)
        }
        let mut chunks = self.chunks.iter().zip(&other.chunks);
        if self.len != other.len {
            return false;
        }
        // Cut alike, which two versions of one map mostly are, they differ in few chunks.
        if self.chunks.len() == other.chunks.len() && chunks.clone().all(|(a, b)| a.len() == b.len()) {
            return chunks.all(|(a, b)| {
                Arc::ptr_eq(a, b) || a.iter().zip(b.iter()).all(|(a, b)| same((&a.0, &a.1), (&b.0, &b.1)))
            });
        }
        self.iter().zip(other).all(|(a, b)| same(a, b))
    }
}

impl fmt::Debug for Clusters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self).finish()
    }
}

impl Serialize for Clusters {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self)
    }
}

impl<'de> Deserialize<'de> for Clusters {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(BTreeMap::<Name, Arc<Cluster>>::deserialize(deserializer)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn cluster(panic_threshold: u32) -> Arc<Cluster> {
        Arc::new(Cluster { panic_threshold, ..Cluster::default() })
    }

    /// It is a sorted map, whatever is put in and taken out; equality asks what is in it and not how it is cut.
    #[test]
    fn it_is_a_sorted_map() {
        let step = (any::<bool>(), 0..400_u32, 0..3_u32);
        proptest!(ProptestConfig::with_cases(32), |(steps in prop::collection::vec(step, 0..1_500))| {
            let mut ours = Clusters::new();
            let mut model = BTreeMap::new();
            for (put, name, value) in steps {
                let name: Name = format!("{name}").into();
                if put || value == 0 {
                    let cluster = cluster(value);
                    prop_assert_eq!(ours.insert(name.clone(), cluster.clone()), model.insert(name, cluster));
                } else {
                    prop_assert_eq!(ours.remove(&name), model.remove(&name));
                }
            }
            prop_assert_eq!(ours.len(), model.len());
            prop_assert_eq!(ours.iter().len(), model.len());
            prop_assert!(ours.iter().eq(&model));
            prop_assert!(ours.chunks.iter().all(|chunk| !chunk.is_empty() && chunk.len() <= MOST));
            let made: Clusters = model.into_iter().collect();
            prop_assert_eq!(&ours, &made);
            let json = serde_json::to_string(&ours).unwrap();
            prop_assert_eq!(serde_json::from_str::<Clusters>(&json).unwrap(), made);
        });
    }

    /// A copy that is changed shares all but one chunk with what it was copied from.
    #[test]
    fn a_copy_shares_what_is_not_changed() {
        let before: Clusters = (0..10_000).map(|n| (format!("{n:05}").into(), cluster(n))).collect();
        let mut after = before.clone();
        after.insert("05000".into(), cluster(0));
        after.insert("05000x".into(), cluster(0));
        let shared = |chunk: &&Arc<Chunk>| before.chunks().iter().any(|old| Arc::ptr_eq(old, chunk));
        assert_eq!(after.chunks().iter().filter(|chunk| !shared(chunk)).count(), 1);
        assert_eq!((before["05000"].panic_threshold, after["05000"].panic_threshold), (5_000, 0));
        assert_ne!(before, after);
        assert!(after.get("0500").is_none() && after.contains_key("05000x") && before.get("05000x").is_none());
        after.remove("05000x");
        after.insert("05000".into(), cluster(5_000));
        assert_eq!(before, after);
        assert_eq!(Clusters::of_chunks(after.chunks().to_vec()).len(), 10_000);
    }
}
