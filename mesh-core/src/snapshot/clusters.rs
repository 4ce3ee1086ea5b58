//! The compiled clusters of a snapshot, cut as the configuration's are: a chunk that both versions share costs a comparison
//! of pointers, and within one that differs a cluster does that has not changed.

use std::{collections::BTreeSet, sync::Arc};

use hashbrown::HashTable;

use crate::{
    cluster::{Around, Cluster, Remains},
    config::{self, ClusterChunk, Config, Discovery, Name},
};

/// Clusters by name, and what is left of those that have gone.
#[derive(Debug, Default)]
pub(super) struct Clusters {
    /// In the order of names.
    chunks: Vec<Arc<Chunk>>,
    len: usize,
    /// Places by hash of the name; shared as long as names stay where they are.
    pub(super) index: Arc<HashTable<Place>>,
    /// Clusters that left while requests were under way, to be found again should they return.
    departed: Vec<(Name, Remains)>,
}

#[derive(Clone, Debug)]
struct Chunk {
    config: Arc<ClusterChunk>,
    clusters: Vec<Arc<Cluster>>,
    /// It has clusters that stand for others, that depend on where this process is, that depend on which it is.
    aggregates: bool,
    zoned: bool,
    seeded: bool,
}

/// Where a cluster stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    chunk: u32,
    at: u32,
}

/// What of this process is as it was when the previous snapshot was made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Same {
    pub(super) seed: bool,
    pub(super) zones: bool,
}

impl Same {
    fn suits(self, cluster: &config::Cluster) -> bool {
        (self.zones || cluster.zone_aware.is_none()) && (self.seed || cluster.subset_size.is_none())
    }

    fn suits_all(self, chunk: &Chunk) -> bool {
        (self.zones || !chunk.zoned) && (self.seed || !chunk.seeded)
    }
}

impl Clusters {
    pub(super) fn compile(config: &Config, previous: &Self, same: Same, around: Around<'_>) -> Self {
        let alive = previous.departed.iter().filter(|(_, remains)| !remains.is_gone());
        let mut walk = Walk {
            old: Old { chunks: &previous.chunks, at: 0 },
            departed: alive.cloned().collect(),
            moved: false,
            same,
            around,
        };
        let mut chunks: Vec<_> = config.clusters.chunks().iter().map(|chunk| walk.chunk(chunk)).collect();
        while let Some(gone) = walk.old.next() {
            walk.depart(gone);
        }
        join_aggregates(config, &mut chunks, around);
        let cut_alike = chunks.len() == previous.chunks.len()
            && chunks.iter().zip(&previous.chunks).all(|(new, old)| new.clusters.len() == old.clusters.len());
        let len = config.clusters.len();
        let index = match cut_alike && !walk.moved {
            true => Arc::clone(&previous.index),
            false => Arc::new(index(&chunks, len)),
        };
        Self { chunks, len, index, departed: walk.departed }
    }

    /// In the order of their names.
    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = &Arc<Cluster>> {
        Counted { inner: self.chunks.iter().flat_map(|chunk| &chunk.clusters), left: self.len }
    }

    /// By name and its hash.
    pub(super) fn find(&self, hash: u64, name: &str) -> Option<&Arc<Cluster>> {
        let at = |place: &Place| self.chunks.get(place.chunk as usize)?.clusters.get(place.at as usize);
        let is_it = |place: &Place| at(place).is_some_and(|cluster| cluster.hash == hash && **cluster.name() == *name);
        self.index.find(hash, is_it).and_then(at)
    }

    /// What they were compiled from.
    pub(super) fn config(&self) -> config::Clusters {
        config::Clusters::of_chunks(self.chunks.iter().map(|chunk| Arc::clone(&chunk.config)).collect())
    }
}

/// Old and new clusters, side by side in the order of their names.
struct Walk<'a> {
    old: Old<'a>,
    departed: Vec<(Name, Remains)>,
    /// A cluster is new or gone.
    moved: bool,
    same: Same,
    around: Around<'a>,
}

impl Walk<'_> {
    fn chunk(&mut self, config: &Arc<ClusterChunk>) -> Arc<Chunk> {
        if let Some((first, _)) = config.first() {
            self.skip_to(first);
        }
        if let Some(chunk) = self.old.next_chunk_if(|old| Arc::ptr_eq(&old.config, config) && self.same.suits_all(old))
        {
            return Arc::clone(chunk);
        }
        let any = |is: fn(&config::Cluster) -> bool| config.iter().any(|(_, cluster)| is(cluster));
        Arc::new(Chunk {
            clusters: config.iter().map(|(name, cluster)| self.cluster(name, cluster)).collect(),
            aggregates: any(|cluster| matches!(cluster.discovery, Discovery::Aggregate(_))),
            zoned: any(|cluster| cluster.zone_aware.is_some()),
            seeded: any(|cluster| cluster.subset_size.is_some()),
            config: Arc::clone(config),
        })
    }

    fn cluster(&mut self, name: &Name, config: &Arc<config::Cluster>) -> Arc<Cluster> {
        self.skip_to(name);
        let before = self.old.next_if(|old| *old.name() == *name);
        let is_same = |old: &&Arc<Cluster>| Arc::ptr_eq(old.config(), config) || old.config() == config;
        if let Some(same) = before.filter(|_| self.same.suits(config)).filter(is_same) {
            return Arc::clone(same);
        }
        self.moved |= before.is_none();
        let returned = self.departed.iter().position(|(of, _)| of == name).map(|at| self.departed.swap_remove(at).1);
        Arc::new(match returned {
            Some(remains) => Cluster::returned(config, remains, self.around),
            None => Cluster::compile_within(config, before.map(|old| &**old), self.around),
        })
    }

    /// What comes before this name is not there any more.
    fn skip_to(&mut self, name: &Name) {
        while let Some(gone) = self.old.next_if(|old| *old.name() < *name) {
            self.depart(gone);
        }
    }

    fn depart(&mut self, gone: &Cluster) {
        self.moved = true;
        self.departed.push((Name::clone(gone.name()), gone.remains()));
    }
}

/// What is left of the old clusters.
struct Old<'a> {
    chunks: &'a [Arc<Chunk>],
    /// In the first chunk; never at its end.
    at: usize,
}

impl<'a> Old<'a> {
    fn next(&mut self) -> Option<&'a Arc<Cluster>> {
        self.next_if(|_| true)
    }

    fn next_if(&mut self, is_it: impl FnOnce(&Cluster) -> bool) -> Option<&'a Arc<Cluster>> {
        let (chunk, rest) = self.chunks.split_first()?;
        let cluster = chunk.clusters.get(self.at).filter(|cluster| is_it(cluster))?;
        self.at += 1;
        if self.at == chunk.clusters.len() {
            (self.chunks, self.at) = (rest, 0);
        }
        Some(cluster)
    }

    fn next_chunk_if(&mut self, is_it: impl FnOnce(&Chunk) -> bool) -> Option<&'a Arc<Chunk>> {
        let (chunk, rest) = self.chunks.split_first().filter(|(chunk, _)| self.at == 0 && is_it(chunk))?;
        self.chunks = rest;
        Some(chunk)
    }
}

/// Gives aggregate clusters those they stand for, anew where one of them changed.
fn join_aggregates(config: &Config, chunks: &mut [Arc<Chunk>], around: Around<'_>) {
    for chunk in 0..chunks.len() {
        if !chunks.get(chunk).is_some_and(|chunk| chunk.aggregates) {
            continue;
        }
        let mut at = 0;
        while let Some(aggregate) = chunks.get(chunk).and_then(|chunk| chunk.clusters.get(at)) {
            if let Some(fresh) = joined(config, chunks, aggregate, around)
                && let Some(place) = chunks.get_mut(chunk).and_then(|chunk| Arc::make_mut(chunk).clusters.get_mut(at))
            {
                *place = Arc::new(fresh);
            }
            at += 1;
        }
    }
}

/// The aggregate cluster with those it stands for; `None` if it has the same already, or is none.
fn joined(config: &Config, chunks: &[Arc<Chunk>], aggregate: &Arc<Cluster>, around: Around<'_>) -> Option<Cluster> {
    let Discovery::Aggregate(names) = &aggregate.config().discovery else { return None };
    let mut leaves = Leaves::default();
    leaves.add(config, names, NESTING);
    let find = |name: &Name| {
        let begins_after = |chunk: &Arc<Chunk>| chunk.clusters.first().is_some_and(|first| first.name() > name);
        let chunk = chunks.get(chunks.partition_point(|chunk| !begins_after(chunk)).checked_sub(1)?)?;
        let at = chunk.clusters.binary_search_by(|cluster| cluster.name().cmp(name)).ok()?;
        chunk.clusters.get(at).cloned()
    };
    let members: Vec<_> = leaves.found.iter().filter_map(find).collect();
    let same = |old: &[Arc<Cluster>]| {
        old.len() == members.len() && old.iter().zip(&members).all(|(old, new)| Arc::ptr_eq(old, new))
    };
    if aggregate.members().is_some_and(same) {
        return None;
    }
    let fresh = Cluster::compile_within(aggregate.config(), Some(aggregate), around);
    fresh.stands_for(members);
    Some(fresh)
}

/// The clusters with endpoints of their own that these names come down to, in order.
#[derive(Default)]
struct Leaves {
    found: Vec<Name>,
    /// Every name is followed once, so that circles end and a mesh of aggregates costs what it has of names.
    seen: BTreeSet<Name>,
}

impl Leaves {
    fn add(&mut self, config: &Config, names: &[Name], depth: usize) {
        for name in names {
            if !self.seen.insert(Name::clone(name)) {
                continue;
            }
            match config.clusters.get(name).map(|cluster| &cluster.discovery) {
                Some(Discovery::Aggregate(names)) if depth > 0 => self.add(config, names, depth - 1),
                // Nested too deep.
                Some(Discovery::Aggregate(_)) | None => {}
                Some(_) => self.found.push(Name::clone(name)),
            }
        }
    }
}

/// Aggregates within aggregates. Source: gRFC A37.
const NESTING: usize = 16;

fn index(chunks: &[Arc<Chunk>], len: usize) -> HashTable<Place> {
    let mut index = HashTable::with_capacity(len);
    let hash = |place: &Place| {
        let chunk = chunks.get(place.chunk as usize);
        chunk.and_then(|chunk| chunk.clusters.get(place.at as usize)).map_or(0, |cluster| cluster.hash)
    };
    for (chunk, of) in (0..).zip(chunks) {
        for (at, cluster) in (0..).zip(&of.clusters) {
            index.insert_unique(cluster.hash, Place { chunk, at }, hash);
        }
    }
    index
}

/// Of so many items.
struct Counted<I> {
    inner: I,
    left: usize,
}

impl<I: Iterator> Iterator for Counted<I> {
    type Item = I::Item;

    fn next(&mut self) -> Option<I::Item> {
        self.left = self.left.saturating_sub(1);
        self.inner.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl<I: Iterator> ExactSizeIterator for Counted<I> {}
