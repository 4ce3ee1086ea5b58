//! The registry: who runs where. Workloads enter when their stream connects and leave when it ends.
//!
//! A workload that lost its stream stays an endpoint until it had [`Registry::GRACE`] to come back, and those known before a
//! restart of the control plane get the same grace, so that neither a hiccup nor a restart empties a cluster. Time is an
//! argument (Unix milliseconds); whoever owns the registry calls [`Registry::expire`] at [`Registry::next_timeout`], and writes it
//! now and then what changed: a thousand workloads that come at once are one file.
//!
//! Source: Istio's WorkloadEntry auto-registration (`PILOT_WORKLOAD_ENTRY_GRACE_PERIOD`, 10 s).

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use mesh_core::config::{Labels, Locality};
use serde::{Deserialize, Serialize};

use crate::store::{StoreError, read_json, write_json};

/// Who runs where, as the control plane asks for it: the place where an orchestrator joins in.
///
/// The control plane's own [`Registry`] knows the workloads that connected. What else knows of some (a scheduler, a cluster's API)
/// implements this and is handed to [`Builder::workloads`](crate::plane::Builder::workloads) with a channel that tells of changes.
/// An answer is a moment's: asked twice without a change in between, it is the same. It must not block.
pub trait Workloads: fmt::Debug + Send + Sync {
    /// Everyone who runs at the moment, unique by namespace and name.
    fn workloads(&self) -> Vec<Arc<Registered>>;
}

impl Workloads for Registry {
    fn workloads(&self) -> Vec<Arc<Registered>> {
        self.workloads.values().cloned().collect()
    }
}

/// Who connected.
#[derive(Debug, Default)]
pub struct Registry {
    workloads: BTreeMap<String, Arc<Registered>>,
    path: Option<PathBuf>,
    /// Something changed since it was last written.
    unsaved: bool,
}

/// A workload that runs.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Registered {
    /// The instance: what node metadata calls `NAME` (`reviews-v1-0`).
    pub name: String,
    /// `default`.
    pub namespace: String,
    /// The workload it belongs to: node metadata `WORKLOAD_NAME` (`reviews-v1`).
    pub workload: String,
    /// `bookinfo-reviews`.
    pub service_account: String,
    /// Where it listens.
    pub address: IpAddr,
    /// What it listens on: node metadata `POD_PORTS`. Empty is not known, and then every port is taken as it is.
    pub ports: Vec<WorkloadPort>,
    /// `app`, `version`, ...
    pub labels: Labels,
    /// Where it runs.
    pub locality: Locality,
    /// It is a gateway: it takes no part as an endpoint unless a service selects it, like any other workload.
    pub gateway: bool,
    /// The `WorkloadGroup` it registered with; empty is none. Node metadata `AUTO_REGISTER_GROUP`.
    #[serde(default)]
    pub group: String,
    /// Its share among the endpoints of a service; 0 is 1.
    #[serde(default)]
    pub weight: u32,
    /// What it said when it called itself unhealthy; until it is healthy again it is no endpoint. `None` is healthy.
    #[serde(default)]
    pub unhealthy: Option<String>,
    /// Where its admin port is, when that is on this machine. Node metadata `MESH_ADMIN_ADDR`.
    #[serde(default)]
    pub admin: Option<SocketAddr>,
    /// First connected, in Unix milliseconds.
    pub since: u64,
    /// It lost its stream then, in Unix milliseconds; `None` while connected.
    pub lost: Option<u64>,
}

/// A port of a workload. Source: node metadata `POD_PORTS`, Kubernetes `ContainerPort`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct WorkloadPort {
    /// May be empty.
    #[serde(default)]
    pub name: String,
    /// The number it is bound to.
    #[serde(rename = "containerPort")]
    pub number: u16,
}

impl Registry {
    /// How long a lost workload stays an endpoint.
    pub const GRACE: Duration = Duration::from_secs(10);

    /// Opens the registry in a directory, or in memory only. Workloads known from before count as lost at `now`.
    ///
    /// # Errors
    ///
    /// When the directory or the file in it cannot be read.
    pub fn open(dir: Option<PathBuf>, now: u64) -> Result<Self, StoreError> {
        let Some(dir) = dir else { return Ok(Self::default()) };
        let path = dir.join("workloads.json");
        let saved: Vec<Registered> = read_json(&path)?.unwrap_or_default();
        let workloads = saved.into_iter().map(|mut workload| {
            workload.lost = Some(now);
            (key(&workload.namespace, &workload.name), Arc::new(workload))
        });
        Ok(Self { workloads: workloads.collect(), path: Some(path), unsaved: false })
    }

    /// A workload connected. True when endpoints changed by it.
    pub fn connect(&mut self, mut workload: Registered) -> bool {
        workload.lost = None;
        let key = key(&workload.namespace, &workload.name);
        let before = self.workloads.get(&key);
        if let Some(before) = before {
            // It came back: it runs since then, and is as it said it was.
            workload.since = before.since;
            workload.unhealthy.clone_from(&before.unhealthy);
        }
        let admin = workload.admin;
        let same = before.is_some_and(|before| Registered { lost: None, admin, ..(**before).clone() } == workload);
        self.workloads.insert(key, Arc::new(workload));
        self.unsaved = true;
        !same
    }

    /// The stream of a workload ended at `now`; it stays an endpoint for [`Registry::GRACE`]. True when endpoints changed.
    ///
    /// With `leaving` it is removed at once: it said goodbye, or is known to be gone.
    pub fn disconnect(&mut self, namespace: &str, name: &str, leaving: bool, now: u64) -> bool {
        let key = key(namespace, name);
        let Some(workload) = self.workloads.get_mut(&key) else { return false };
        if !leaving {
            // Not saved: after a restart everyone counts as lost anyway.
            Arc::make_mut(workload).lost = Some(now);
            return false;
        }
        self.workloads.remove(&key);
        self.unsaved = true;
        true
    }

    /// Removes those that did not come back in time. True when any was removed.
    pub fn expire(&mut self, now: u64) -> bool {
        let before = self.workloads.len();
        self.workloads.retain(|_, workload| deadline(workload).is_none_or(|deadline| now < deadline));
        if self.workloads.len() == before {
            return false;
        }
        self.unsaved = true;
        true
    }

    /// When [`Registry::expire`] has something to do next, in Unix milliseconds.
    pub fn next_timeout(&self) -> Option<u64> {
        self.workloads.values().filter_map(|workload| deadline(workload)).min()
    }

    /// Every workload, by namespace and name.
    pub fn workloads(&self) -> Vec<Arc<Registered>> {
        Workloads::workloads(self)
    }

    /// A workload told how it is: `Some` says why it wants no requests. True when endpoints changed.
    pub fn tell_health(&mut self, namespace: &str, name: &str, unhealthy: Option<String>) -> bool {
        let Some(workload) = self.workloads.get_mut(&key(namespace, name)) else { return false };
        if workload.unhealthy == unhealthy {
            return false;
        }
        let changed = workload.unhealthy.is_some() != unhealthy.is_some();
        Arc::make_mut(workload).unhealthy = unhealthy;
        self.unsaved = true;
        changed
    }

    /// Who has a name that this workload may not take: another service account's, connected, or fallen silent elsewhere.
    pub(crate) fn holder(&self, workload: &Registered) -> Option<&Arc<Registered>> {
        let holder = self.find(&workload.namespace, &workload.name)?;
        // Where the lost one listened it listens itself: that one is gone.
        let replaces = holder.lost.is_some() && holder.address == workload.address && holder.ports == workload.ports;
        (holder.service_account != workload.service_account && !replaces).then_some(holder)
    }

    /// The workload of that name.
    pub(crate) fn find(&self, namespace: &str, name: &str) -> Option<&Arc<Registered>> {
        self.workloads.get(&key(namespace, name))
    }

    /// Those that lost their stream, of other names, where this one listens.
    pub(crate) fn lost_in_place_of(&self, workload: &Registered) -> Vec<Arc<Registered>> {
        let same_name = |it: &Registered| it.namespace == workload.namespace && it.name == workload.name;
        let same_place = |it: &Registered| it.address == workload.address && it.ports == workload.ports;
        let lost = self.workloads.values().filter(|it| it.lost.is_some() && same_place(it) && !same_name(it));
        lost.cloned().collect()
    }

    /// What is to be written, if anything changed since it was last asked for; to write it takes its time, so whoever holds
    /// the registry lets go of it first.
    pub(crate) fn unsaved(&mut self) -> Option<Unsaved> {
        let path = self.path.as_ref().filter(|_| self.unsaved)?.clone();
        self.unsaved = false;
        Some(Unsaved { path, workloads: self.workloads() })
    }

    /// It could not be written.
    pub(crate) fn still_unsaved(&mut self) {
        self.unsaved = true;
    }
}

impl Drop for Registry {
    /// What was not written yet is written at the end; a crash loses no more than the last moments, and those workloads come
    /// back by themselves.
    fn drop(&mut self) {
        if let Some(Err(error)) = self.unsaved().map(|unsaved| unsaved.write()) {
            tracing::warn!(%error, "the registry of workloads could not be written");
        }
    }
}

/// The registry of a moment, to be written.
#[derive(Debug)]
pub(crate) struct Unsaved {
    path: PathBuf,
    workloads: Vec<Arc<Registered>>,
}

impl Unsaved {
    pub(crate) fn write(&self) -> Result<(), StoreError> {
        let workloads: Vec<&Registered> = self.workloads.iter().map(|workload| &**workload).collect();
        write_json(&self.path, &workloads)
    }
}

fn key(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

fn deadline(workload: &Registered) -> Option<u64> {
    workload.lost.map(|lost| lost.saturating_add(Registry::GRACE.as_millis() as u64))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    fn workload(name: &str, address: [u8; 4]) -> Registered {
        Registered {
            name: name.into(),
            namespace: "default".into(),
            workload: name.into(),
            service_account: "bookinfo-reviews".into(),
            address: address.into(),
            ports: Vec::new(),
            labels: Labels::new(),
            locality: Locality::default(),
            gateway: false,
            group: String::new(),
            weight: 0,
            unhealthy: None,
            admin: None,
            since: 0,
            lost: None,
        }
    }

    #[test]
    fn a_lost_workload_stays_for_the_grace_and_not_longer() {
        let mut registry = Registry::open(None, 0).unwrap();
        assert!(registry.connect(workload("reviews-v1", [127, 0, 0, 14])));
        assert!(!registry.connect(workload("reviews-v1", [127, 0, 0, 14])), "nothing changed");
        assert!(registry.connect(workload("reviews-v1", [127, 0, 0, 15])), "it moved");
        assert_eq!(registry.next_timeout(), None);
        assert!(!registry.disconnect("default", "reviews-v1", false, 1_000));
        assert_eq!(registry.next_timeout(), Some(11_000));
        assert!(!registry.expire(10_999));
        assert!(!registry.connect(workload("reviews-v1", [127, 0, 0, 15])), "back in time: no change");
        assert_eq!(registry.next_timeout(), None);
        registry.disconnect("default", "reviews-v1", false, 20_000);
        assert!(registry.expire(30_000));
        assert!(registry.workloads().is_empty());
    }

    #[test]
    fn goodbye_is_at_once() {
        let mut registry = Registry::open(None, 0).unwrap();
        registry.connect(workload("reviews-v1", [127, 0, 0, 14]));
        assert!(registry.disconnect("default", "reviews-v1", true, 1));
        assert!(!registry.disconnect("default", "reviews-v1", true, 1));
        assert!(registry.workloads().is_empty());
    }

    #[test]
    fn a_restart_gives_everyone_the_grace() {
        let dir = tempfile::tempdir().unwrap();
        let open = |now| Registry::open(Some(dir.path().to_owned()), now).unwrap();
        let mut registry = open(0);
        registry.connect(workload("reviews-v1", [127, 0, 0, 14]));
        registry.connect(workload("reviews-v2", [127, 0, 0, 15]));
        drop(registry);
        let mut registry = open(100_000);
        assert_eq!(registry.workloads().len(), 2);
        assert!(!registry.connect(workload("reviews-v2", [127, 0, 0, 15])));
        assert!(registry.expire(110_000));
        assert_eq!(registry.workloads().iter().map(|it| it.name.as_str()).collect::<Vec<_>>(), ["reviews-v2"]);
    }
}
