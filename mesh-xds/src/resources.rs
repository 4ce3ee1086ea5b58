//! What is known of every resource, for people: which version is in force, what was refused and why, what is waited for;
//! and of every field in it whether it is applied, ignored or refused (C20).
//!
//! The driver notes here what becomes of resources, in one short lock each; whoever looks (CSDS, the admin port) takes a
//! copy of the notes. Bodies are not kept: resources of one shape share one report of their fields. It decides nothing.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use mesh_core::config::Name;
use serde::Serialize;

use crate::{ads::TypeUrl, translate::FieldReport};

/// Reports that are shared; a mesh has a few per type.
const MOST_SHARED: usize = 1024;

/// The notes of one client of a control plane; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Resources(Arc<Mutex<Notes>>);

#[derive(Debug, Default)]
struct Notes {
    known: BTreeMap<(TypeUrl, Name), Resource>,
    reports: HashSet<Arc<FieldReport>>,
}

/// What is known of one resource.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    /// How it stands.
    pub state: State,
    /// The version in force, empty if none is.
    pub version: Name,
    /// What became of the fields of the message in force.
    pub fields: Arc<FieldReport>,
    /// Since when that is in force, or has been asked for, or is known not to exist.
    pub since: SystemTime,
    /// What was refused last, unless something was accepted since.
    pub refused: Option<Box<Refused>>,
}

/// A version of a resource that was refused.
#[derive(Clone, Debug, PartialEq)]
pub struct Refused {
    /// Which.
    pub version: Name,
    /// Why: names the field.
    pub why: String,
    /// When.
    pub at: SystemTime,
    /// What it was refused for, by field.
    pub fields: Arc<FieldReport>,
}

/// How a resource stands. Source: Envoy `admin.v3.ClientResourceStatus`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum State {
    /// Asked for; nothing came yet.
    Requested,
    /// The control plane does not have it.
    DoesNotExist,
    /// In force as it came last.
    Acked,
    /// What came last was refused; what was in force stays.
    Nacked,
}

/// One resource and its fields, as the admin port shows them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Described {
    /// Its type: `CDS`.
    pub kind: TypeUrl,
    /// Its name.
    pub name: Name,
    /// How it stands.
    pub state: State,
    /// The version in force.
    pub version: Name,
    /// What became of each field: of what was refused last, else of what is in force.
    #[serde(flatten)]
    pub fields: Arc<FieldReport>,
}

impl Resources {
    /// This version is in force.
    pub(crate) fn accepted(&self, kind: TypeUrl, name: &Name, version: &Name, fields: FieldReport) {
        let mut notes = self.lock();
        let resource = Resource {
            state: State::Acked,
            version: version.clone(),
            fields: notes.share(fields),
            since: SystemTime::now(),
            refused: None,
        };
        notes.known.insert((kind, name.clone()), resource);
    }

    /// This version was refused; what was in force stays.
    pub(crate) fn refused(&self, kind: TypeUrl, name: &Name, version: &Name, why: &str, fields: FieldReport) {
        let mut notes = self.lock();
        let (version, why, at, fields) = (version.clone(), why.to_owned(), SystemTime::now(), Arc::new(fields));
        let resource = notes.known.entry((kind, name.clone())).or_insert_with(Resource::requested);
        resource.state = State::Nacked;
        resource.refused = Some(Box::new(Refused { version, why, at, fields }));
    }

    /// The control plane does not have it (any more). Of a type that is asked for as a whole, that is the end of it.
    pub(crate) fn gone(&self, kind: TypeUrl, name: &Name) {
        let mut notes = self.lock();
        let key = (kind, name.clone());
        if kind.is_full_state() {
            notes.known.remove(&key);
        } else {
            notes.known.insert(key, Resource { state: State::DoesNotExist, ..Resource::requested() });
        }
    }

    /// These are asked for by name, and no others of that type.
    pub(crate) fn wanted(&self, kind: TypeUrl, names: &BTreeSet<Name>) {
        let mut notes = self.lock();
        notes.known.retain(|(of, name), _| *of != kind || names.contains(name));
        for name in names {
            notes.known.entry((kind, name.clone())).or_insert_with(Resource::requested);
        }
    }

    /// Everything known, by type and name.
    pub fn all(&self) -> Vec<(TypeUrl, Name, Resource)> {
        let notes = self.lock();
        notes.known.iter().map(|((kind, name), resource)| (*kind, name.clone(), resource.clone())).collect()
    }

    /// What is known of one.
    pub fn get(&self, kind: TypeUrl, name: &str) -> Option<Resource> {
        self.lock().known.get(&(kind, Name::from(name))).cloned()
    }

    /// Every resource with what became of its fields.
    pub fn describe(&self) -> Vec<Described> {
        let describe = |(kind, name, resource): (TypeUrl, Name, Resource)| {
            let fields = resource.refused.map_or(resource.fields, |refused| refused.fields);
            Described { kind, name, state: resource.state, version: resource.version, fields }
        };
        self.all().into_iter().map(describe).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Notes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Resource {
    fn requested() -> Self {
        Self {
            state: State::Requested,
            version: Name::default(),
            fields: Arc::default(),
            since: SystemTime::now(),
            refused: None,
        }
    }
}

impl Notes {
    fn share(&mut self, report: FieldReport) -> Arc<FieldReport> {
        if let Some(shared) = self.reports.get(&report) {
            return shared.clone();
        }
        if self.reports.len() >= MOST_SHARED {
            self.reports.retain(|report| Arc::strong_count(report) > 1);
        }
        let report = Arc::new(report);
        if self.reports.len() < MOST_SHARED {
            self.reports.insert(report.clone());
        }
        report
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    /// C20: a resource is followed from asking to refusal; a refusal keeps what is in force; what is gone is told as gone.
    #[test]
    fn resources_are_followed() {
        let resources = Resources::default();
        let (a, b): (Name, Name) = ("a".into(), "b".into());
        let state = |kind, name: &Name| resources.get(kind, name).map(|resource| resource.state);
        resources.wanted(TypeUrl::Endpoint, &[a.clone(), b.clone()].into());
        assert_eq!(state(TypeUrl::Endpoint, &a), Some(State::Requested));
        let report = || FieldReport { applied: vec!["x".to_owned()], ..FieldReport::default() };
        let version = |version: &str| Name::from(version);
        resources.accepted(TypeUrl::Endpoint, &a, &version("1"), report());
        resources.gone(TypeUrl::Endpoint, &b);
        assert_eq!(state(TypeUrl::Endpoint, &b), Some(State::DoesNotExist));
        resources.refused(TypeUrl::Endpoint, &a, &version("2"), "broken", FieldReport::default());
        let refused = resources.get(TypeUrl::Endpoint, &a).unwrap();
        assert_eq!((refused.state, &*refused.version), (State::Nacked, "1"));
        assert_eq!(&*refused.refused.unwrap().version, "2");
        resources.wanted(TypeUrl::Endpoint, &[a.clone()].into());
        assert_eq!(state(TypeUrl::Endpoint, &b), None);
        assert_eq!(state(TypeUrl::Endpoint, &a), Some(State::Nacked));
        resources.accepted(TypeUrl::Cluster, &a, &version("1"), report());
        let shared = |kind| resources.get(kind, "a").unwrap().fields;
        assert!(Arc::ptr_eq(&shared(TypeUrl::Endpoint), &shared(TypeUrl::Cluster)));
        resources.gone(TypeUrl::Cluster, &a);
        assert_eq!(resources.all().len(), 1);
    }
}
