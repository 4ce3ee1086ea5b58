//! The compiled clusters of a snapshot, cut as the configuration's are: a chunk that both versions share costs a comparison
//! of pointers, and within one that differs a cluster does that has not changed.
//!
//! A cluster is compiled when the first request, or whoever else, wants it: of a mesh of thousands a process calls a few, and
//! holds those alone in their compiled form. What is actively checked, or stands for others, is compiled at once.

use std::{
    collections::BTreeSet,
    sync::{Arc, OnceLock},
};

use hashbrown::HashTable;

use crate::{
    cluster::{Around, Cluster, Remains},
    config::{self, ClusterChunk, Config, Discovery, Name},
    route::name_hash,
    tally::Ledgers,
    zone::LocalZones,
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
    pub(super) surroundings: Surroundings,
}

/// What of this process clusters are compiled with.
#[derive(Clone, Debug, Default)]
pub(super) struct Surroundings {
    pub(super) seed: u64,
    pub(super) zones: Option<Arc<LocalZones>>,
    pub(super) ledgers: Arc<Ledgers>,
}

impl Surroundings {
    fn around(&self) -> Around<'_> {
        Around { seed: self.seed, zones: self.zones.as_deref(), ledgers: Some(&self.ledgers) }
    }
}

/// One cluster; shared by all snapshots in which it is the same.
#[derive(Debug)]
struct Slot {
    name: Name,
    config: Arc<config::Cluster>,
    compiled: OnceLock<Arc<Cluster>>,
}

impl Slot {
    fn cluster(&self, surroundings: &Surroundings) -> &Arc<Cluster> {
        let compile = || Arc::new(Cluster::compile_within(&self.config, None, surroundings.around()));
        self.compiled.get_or_init(compile)
    }
}

#[derive(Clone, Debug)]
struct Chunk {
    config: Arc<ClusterChunk>,
    clusters: Vec<Arc<Slot>>,
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
    pub(super) fn compile(config: &Config, previous: &Self, same: Same, surroundings: Surroundings) -> Self {
        let alive = previous.departed.iter().filter(|(_, remains)| !remains.is_gone());
        let mut walk = Walk {
            old: Old { chunks: &previous.chunks, at: 0 },
            departed: alive.cloned().collect(),
            moved: false,
            same,
            surroundings: &surroundings,
        };
        let mut chunks: Vec<_> = config.clusters.chunks().iter().map(|chunk| walk.chunk(chunk)).collect();
        while let Some(gone) = walk.old.next() {
            walk.depart(gone);
        }
        let (departed, moved) = (walk.departed, walk.moved);
        join_aggregates(config, &mut chunks, &surroundings);
        let cut_alike = chunks.len() == previous.chunks.len()
            && chunks.iter().zip(&previous.chunks).all(|(new, old)| new.clusters.len() == old.clusters.len());
        let len = config.clusters.len();
        let index = match cut_alike && !moved {
            true => Arc::clone(&previous.index),
            false => Arc::new(index(&chunks, len)),
        };
        Self { chunks, len, index, departed, surroundings }
    }

    /// In the order of their names.
    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = &Arc<Cluster>> {
        let slots = self.chunks.iter().flat_map(|chunk| &chunk.clusters);
        Counted { inner: slots.map(|slot| slot.cluster(&self.surroundings)), left: self.len }
    }

    /// Those that have been wanted.
    pub(super) fn in_use(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        self.chunks.iter().flat_map(|chunk| &chunk.clusters).filter_map(|slot| slot.compiled.get())
    }

    /// By name and its hash.
    pub(super) fn find(&self, hash: u64, name: &str) -> Option<&Arc<Cluster>> {
        let at = |place: &Place| self.chunks.get(place.chunk as usize)?.clusters.get(place.at as usize);
        let is_it = |place: &Place| at(place).is_some_and(|slot| *slot.name == *name);
        Some(self.index.find(hash, is_it).and_then(at)?.cluster(&self.surroundings))
    }

    /// What those that are made of names are compiled from.
    pub(super) fn made_of_names(&self) -> impl Iterator<Item = &Arc<config::Cluster>> {
        self.chunks.iter().flat_map(|chunk| chunk.config.made_of_names()).map(|(_, cluster)| cluster)
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
    surroundings: &'a Surroundings,
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

    fn cluster(&mut self, name: &Name, config: &Arc<config::Cluster>) -> Arc<Slot> {
        self.skip_to(name);
        let before = self.old.next_if(|old| *old.name == **name);
        let is_same = |old: &&Arc<Slot>| Arc::ptr_eq(&old.config, config) || old.config == *config;
        if let Some(same) = before.filter(|_| self.same.suits(config)).filter(is_same) {
            return Arc::clone(same);
        }
        self.moved |= before.is_none();
        let around = self.surroundings.around();
        let returned = self.departed.iter().position(|(of, _)| of == name).map(|at| self.departed.swap_remove(at).1);
        let compiled = match (returned, before.and_then(|before| before.compiled.get())) {
            (Some(remains), _) => Some(Cluster::returned(config, remains, around)),
            (None, Some(old)) => Some(Cluster::compile_within(config, Some(old), around)),
            (None, None) => config.health_check.as_ref().map(|_| Cluster::compile_within(config, None, around)),
        };
        let compiled = compiled.map_or_else(OnceLock::new, |cluster| Arc::new(cluster).into());
        Arc::new(Slot { name: Name::clone(name), config: Arc::clone(config), compiled })
    }

    /// What comes before this name is not there any more.
    fn skip_to(&mut self, name: &Name) {
        while let Some(gone) = self.old.next_if(|old| *old.name < **name) {
            self.depart(gone);
        }
    }

    fn depart(&mut self, gone: &Slot) {
        self.moved = true;
        self.departed.extend(gone.compiled.get().map(|cluster| (Name::clone(&gone.name), cluster.remains())));
    }
}

/// What is left of the old clusters.
struct Old<'a> {
    chunks: &'a [Arc<Chunk>],
    /// In the first chunk; never at its end.
    at: usize,
}

impl<'a> Old<'a> {
    fn next(&mut self) -> Option<&'a Arc<Slot>> {
        self.next_if(|_| true)
    }

    fn next_if(&mut self, is_it: impl FnOnce(&Slot) -> bool) -> Option<&'a Arc<Slot>> {
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
fn join_aggregates(config: &Config, chunks: &mut [Arc<Chunk>], surroundings: &Surroundings) {
    for chunk in 0..chunks.len() {
        if !chunks.get(chunk).is_some_and(|chunk| chunk.aggregates) {
            continue;
        }
        let mut at = 0;
        while let Some(slot) = chunks.get(chunk).and_then(|chunk| chunk.clusters.get(at)) {
            if let Some(fresh) = joined(config, chunks, slot, surroundings) {
                let (name, config) = (Name::clone(&slot.name), Arc::clone(&slot.config));
                let fresh = Slot { name, config, compiled: Arc::new(fresh).into() };
                if let Some(place) = chunks.get_mut(chunk).and_then(|chunk| Arc::make_mut(chunk).clusters.get_mut(at)) {
                    *place = Arc::new(fresh);
                }
            }
            at += 1;
        }
    }
}

/// The aggregate cluster with those it stands for; `None` if it has the same already, or is none.
fn joined(config: &Config, chunks: &[Arc<Chunk>], slot: &Slot, surroundings: &Surroundings) -> Option<Cluster> {
    let Discovery::Aggregate(names) = &slot.config.discovery else { return None };
    let aggregate = slot.cluster(surroundings);
    let mut leaves = Leaves::default();
    leaves.add(config, names, NESTING);
    let find = |name: &Name| {
        let begins_after = |chunk: &Arc<Chunk>| chunk.clusters.first().is_some_and(|first| first.name > *name);
        let chunk = chunks.get(chunks.partition_point(|chunk| !begins_after(chunk)).checked_sub(1)?)?;
        let at = chunk.clusters.binary_search_by(|slot| slot.name.cmp(name)).ok()?;
        chunk.clusters.get(at).map(|slot| Arc::clone(slot.cluster(surroundings)))
    };
    let members: Vec<_> = leaves.found.iter().filter_map(find).collect();
    let same = |old: &[Arc<Cluster>]| {
        old.len() == members.len() && old.iter().zip(&members).all(|(old, new)| Arc::ptr_eq(old, new))
    };
    if aggregate.members().is_some_and(same) {
        return None;
    }
    let fresh = Cluster::compile_within(aggregate.config(), Some(aggregate), surroundings.around());
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
        chunk.and_then(|chunk| chunk.clusters.get(place.at as usize)).map_or(0, |slot| name_hash(&slot.name))
    };
    for (chunk, of) in (0..).zip(chunks) {
        for (at, slot) in (0..).zip(&of.clusters) {
            index.insert_unique(name_hash(&slot.name), Place { chunk, at }, hash);
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
