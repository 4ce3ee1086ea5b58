//! Everything a server has for one client: sets that share what they have in common.
//!
//! The resources of a type are one value behind an `Arc`, so that ten thousand views that differ in their listeners alone
//! are ten thousand pointers to the same clusters, and whether a type has changed between two sets is mostly one comparison of
//! pointers. Within a type, copies share pieces, so that one changed resource of ten thousand costs little. The version of a type is
//! the sum of the hashes of its names and versions, which a change adds to and takes from.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use mesh_core::config::Name;
use xxhash_rust::xxh64::{Xxh64, xxh64};

use super::{Resource, TypeUrl, pieces::Pieces};

/// Everything a server has for one client, by type and name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ResourceSet {
    types: BTreeMap<TypeUrl, Arc<Listed>>,
}

/// The resources of one type.
#[derive(Clone, Debug, Default)]
struct Listed {
    resources: Pieces<Resource>,
    /// Of what all of them hash to; in whatever order they came.
    sum: u64,
}

impl ResourceSet {
    /// Adds a resource, or replaces the one of that name. Its version follows from its bytes, so that two runs of a
    /// control plane that say the same give the same versions.
    pub fn insert(&mut self, kind: TypeUrl, name: impl Into<Name>, body: impl Into<Bytes>) {
        self.insert_resource(kind, name, Resource::new(body));
    }

    /// The same with a resource that was made before, whose bytes are shared.
    pub fn insert_resource(&mut self, kind: TypeUrl, name: impl Into<Name>, resource: Resource) {
        let listed = Arc::make_mut(self.types.entry(kind).or_default());
        let name = name.into();
        listed.sum = listed.sum.wrapping_add(print(&name, &resource));
        if let Some(old) = listed.resources.insert(name.clone(), resource) {
            listed.sum = listed.sum.wrapping_sub(print(&name, &old));
        }
    }

    /// Takes the resources of a type from another set: they are one value from then on.
    pub fn share(&mut self, kind: TypeUrl, with: &Self) {
        match with.types.get(&kind) {
            Some(listed) => drop(self.types.insert(kind, listed.clone())),
            None => drop(self.types.remove(&kind)),
        }
    }

    /// Are the resources of a type the same value in both sets? If not, they may still be equal.
    pub fn shares(&self, kind: TypeUrl, with: &Self) -> bool {
        match (self.types.get(&kind), with.types.get(&kind)) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (None, None) => true,
            _ => false,
        }
    }

    /// The names of those resources of a type that are not in another set, or are different there.
    pub fn news(&self, kind: TypeUrl, since: &Self) -> Vec<Name> {
        let mut news = Vec::new();
        self.differ(kind, since, |name, _| news.push(name.clone()), |_| {});
        news
    }

    /// Tells of the resources of a type that are not in another set, or are different there, and of the names of those that are only
    /// there.
    pub(super) fn differ<'a>(
        &'a self,
        kind: TypeUrl,
        since: &Self,
        tell: impl FnMut(&'a Name, &'a Resource),
        gone: impl FnMut(&Name),
    ) {
        if self.shares(kind, since) {
            return;
        }
        let none = Pieces::default();
        let before = since.types.get(&kind).map_or(&none, |listed| &listed.resources);
        match self.types.get(&kind) {
            Some(listed) => listed.resources.differ(before, tell, gone),
            None => before.iter().map(|(name, _)| name).for_each(gone),
        }
    }

    /// The resource of that name.
    pub fn get(&self, kind: TypeUrl, name: &str) -> Option<&Resource> {
        self.types.get(&kind)?.resources.get(name)
    }

    /// All resources of a type, by name.
    pub fn iter(&self, kind: TypeUrl) -> impl Iterator<Item = (&Name, &Resource)> {
        self.types.get(&kind).into_iter().flat_map(|listed| listed.resources.iter())
    }

    /// How many resources of a type there are.
    pub fn len(&self, kind: TypeUrl) -> usize {
        self.types.get(&kind).map_or(0, |listed| listed.resources.len())
    }

    /// The version of all resources of a type together: what `version_info` carries.
    pub fn version(&self, kind: TypeUrl) -> String {
        match self.types.get(&kind) {
            Some(listed) => format!("{:016x}", listed.sum),
            None => format!("{:016x}", 0),
        }
    }
}

impl Resource {
    /// A resource whose version is a hash of its bytes.
    pub fn new(body: impl Into<Bytes>) -> Self {
        let body = body.into();
        Self { version: format!("{:016x}", xxh64(&body, 0)).into(), body }
    }
}

impl PartialEq for Listed {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other) || self.sum == other.sum && self.resources == other.resources
    }
}

fn print(name: &str, resource: &Resource) -> u64 {
    let mut hash = Xxh64::new(0);
    hash.update(name.as_bytes());
    hash.update(&[0]);
    hash.update(resource.version.as_bytes());
    hash.digest()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shared_stays_one_value_until_it_changes() {
        let mut one = ResourceSet::default();
        one.insert(TypeUrl::Cluster, "a", "1");
        one.insert(TypeUrl::Listener, "l", "1");
        let mut other = ResourceSet::default();
        other.insert(TypeUrl::Cluster, "a", "1");
        assert!(one != other && !one.shares(TypeUrl::Cluster, &other));
        other.share(TypeUrl::Cluster, &one);
        assert!(one.shares(TypeUrl::Cluster, &other) && one.shares(TypeUrl::Route, &other));
        other.share(TypeUrl::Listener, &one);
        assert_eq!(one, other);
        let version = one.version(TypeUrl::Cluster);
        other.insert(TypeUrl::Cluster, "b", "1");
        assert_eq!(other.news(TypeUrl::Cluster, &one), [Name::from("b")]);
        assert!(other.news(TypeUrl::Listener, &one).is_empty() && one.news(TypeUrl::Cluster, &other).is_empty());
        assert!(!one.shares(TypeUrl::Cluster, &other) && one.shares(TypeUrl::Listener, &other));
        assert_eq!((one.len(TypeUrl::Cluster), one.version(TypeUrl::Cluster)), (1, version.clone()));
        assert_ne!(other.version(TypeUrl::Cluster), version);
        other.share(TypeUrl::Route, &one);
        other.share(TypeUrl::Cluster, &ResourceSet::default());
        assert_eq!(other.len(TypeUrl::Cluster), 0);
    }
}
