//! What the control plane knows: the store and the registry behind one lock, and a counter that tells that one has changed.
//!
//! The lock is held for the length of a method and never over an await. Time is read here, once per change.

use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::sync::watch;

use crate::{
    compile::{MeshSettings, World},
    kinds::{Key, Kind, Object},
    registry::{Registered, Registry},
    store::{Applied, SourceFile, Store, StoreError},
};

/// The store and the registry.
#[derive(Debug)]
pub(crate) struct State {
    inner: Mutex<Inner>,
    changes: watch::Sender<u64>,
    mesh: MeshSettings,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    registry: Registry,
}

impl State {
    pub(crate) fn open(dir: Option<&Path>, mesh: MeshSettings) -> Result<Self, StoreError> {
        let store = Store::open(dir.map(Path::to_owned))?;
        let registry = Registry::open(dir.map(Path::to_owned), now())?;
        Ok(Self { inner: Mutex::new(Inner { store, registry }), changes: watch::Sender::new(0), mesh })
    }

    pub(crate) fn apply(&self, files: &[SourceFile], dry_run: bool) -> Result<Applied, StoreError> {
        let mut inner = self.lock();
        if dry_run {
            return inner.store.dry_run(files);
        }
        let before = inner.store.version();
        let applied = inner.store.apply(files, now())?;
        let changed = inner.store.version() != before;
        drop(inner);
        self.tell(changed);
        Ok(applied)
    }

    pub(crate) fn delete(&self, keys: &[Key]) -> Result<Applied, StoreError> {
        let deleted = self.lock().store.delete(keys)?;
        self.tell(!deleted.changes.is_empty());
        Ok(deleted)
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Arc<Object>> {
        self.lock().store.get(key).cloned()
    }

    pub(crate) fn list(&self, kind: Option<Kind>, namespace: Option<&str>) -> Vec<Arc<Object>> {
        self.lock().store.list(kind, namespace)
    }

    /// A workload's stream began.
    ///
    /// A lost one that had its address and port is gone: it is the new one that listens there.
    pub(crate) fn connected(&self, workload: Registered) {
        let mut inner = self.lock();
        let mut changed = false;
        for other in inner.registry.workloads() {
            let same_name = other.namespace == workload.namespace && other.name == workload.name;
            let same_place = other.address == workload.address && other.ports == workload.ports;
            if other.lost.is_some() && same_place && !same_name {
                let gone = inner.registry.disconnect(&other.namespace, &other.name, true, now());
                changed |= gone.unwrap_or_else(not_written);
            }
        }
        changed |= inner.registry.connect(workload).unwrap_or_else(not_written);
        drop(inner);
        self.tell(changed);
    }

    /// A workload's stream ended; whether it still runs is not known.
    pub(crate) fn disconnected(&self, namespace: &str, name: &str) {
        let changed = self.lock().registry.disconnect(namespace, name, false, now()).unwrap_or_else(not_written);
        self.tell(changed);
    }

    /// A lost workload was looked after: it is `gone`, or it runs and gets its grace anew. Nothing happens if it came back
    /// in between.
    pub(crate) fn still_lost(&self, workload: &Registered, gone: bool) {
        let mut inner = self.lock();
        let is_lost = inner.registry.workloads().iter().any(|known| **known == *workload);
        if is_lost {
            let Registered { namespace, name, .. } = workload;
            let changed = inner.registry.disconnect(namespace, name, gone, now()).unwrap_or_else(not_written);
            drop(inner);
            self.tell(changed);
        }
    }

    /// Removes workloads that did not come back in time.
    pub(crate) fn expire(&self) {
        let changed = self.lock().registry.expire(now()).unwrap_or_else(not_written);
        self.tell(changed);
    }

    pub(crate) fn workloads(&self) -> Vec<Arc<Registered>> {
        self.lock().registry.workloads()
    }

    /// Everything of this moment, indexed for compiling, and how new it is at least, for comparing two of them.
    pub(crate) fn world(&self) -> (u64, World) {
        let version = *self.changes.borrow();
        let inner = self.lock();
        let (objects, registry) = (inner.store.objects(), &inner.registry);
        (version, World::new(objects, registry, self.mesh.clone()))
    }

    pub(crate) fn mesh(&self) -> &MeshSettings {
        &self.mesh
    }

    /// Changes with every change of what [`State::world`] answers.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Makes whoever listens to [`State::changes`] look again.
    fn tell(&self, changed: bool) {
        if changed {
            self.changes.send_modify(|version| *version += 1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Each method leaves both whole at every point at which it could panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The registry in memory is right all the same; only a restart would know less.
fn not_written(error: StoreError) -> bool {
    tracing::warn!(%error, "the registry of workloads could not be written");
    true
}

/// Unix milliseconds.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
