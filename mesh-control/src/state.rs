//! What the control plane knows: the store and the registry behind one lock, and a counter that tells that one has changed.
//!
//! The lock is held for the length of a method and never over an await. Time is read here, once per change.

use std::{
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use mesh_core::config::Locality;
use tokio::sync::watch;

use crate::{
    compile::{MeshSettings, World},
    diagnostic::{Diagnostic, Level, codes},
    kinds::{Key, Kind, Object, Spec, parse},
    metrics::Metrics,
    registry::{Registered, Registry, WorkloadPort, Workloads},
    store::{Applied, SourceFile, Store, StoreError},
};

/// The store and the registry.
#[derive(Debug)]
pub(crate) struct State {
    inner: Mutex<Inner>,
    changes: watch::Sender<u64>,
    mesh: MeshSettings,
    /// Who else knows of workloads.
    others: Vec<Arc<dyn Workloads>>,
    metrics: Arc<Metrics>,
    /// The registry could not be written last, and somebody was told so.
    saving_fails: AtomicBool,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    registry: Registry,
}

impl State {
    pub(crate) fn open(
        dir: Option<&Path>,
        mesh: MeshSettings,
        others: Vec<Arc<dyn Workloads>>,
    ) -> Result<Self, StoreError> {
        let store = Store::open(dir.map(Path::to_owned))?;
        let registry = Registry::open(dir.map(Path::to_owned), now())?;
        let (inner, changes) = (Mutex::new(Inner { store, registry }), watch::Sender::new(0));
        let metrics = Arc::default();
        Ok(Self { inner, changes, mesh, others, metrics, saving_fails: AtomicBool::new(false) })
    }

    pub(crate) fn apply(&self, files: &[SourceFile], dry_run: bool) -> Result<Applied, StoreError> {
        self.check_trust_domain(files)?;
        let mut inner = self.lock();
        if dry_run {
            return inner.store.dry_run(files);
        }
        let before = inner.store.version();
        let applied = self.looked_through(inner.store.apply(files, now()))?;
        let changed = inner.store.version() != before;
        drop(inner);
        self.tell(changed);
        Ok(applied)
    }

    /// Makes what came from a folder what its files say now; see [`Store::sync`].
    pub(crate) fn sync(&self, folder: &Path, files: &[SourceFile]) -> Result<Applied, StoreError> {
        self.check_trust_domain(files)?;
        let mut inner = self.lock();
        let before = inner.store.version();
        let applied = self.looked_through(inner.store.sync(folder, files, now()))?;
        let changed = inner.store.version() != before;
        drop(inner);
        self.tell(changed);
        Ok(applied)
    }

    /// Counts what became of files.
    fn looked_through(&self, applied: Result<Applied, StoreError>) -> Result<Applied, StoreError> {
        match &applied {
            Ok(applied) => self.metrics.applied(&applied.changes),
            Err(StoreError::Invalid(_)) => self.metrics.invalid(),
            Err(_) => {}
        }
        applied
    }

    /// What is counted of this control plane.
    pub(crate) fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// A trust domain is the authority's, which has one as long as it runs.
    fn check_trust_domain(&self, files: &[SourceFile]) -> Result<(), StoreError> {
        for object in files.iter().filter_map(|file| parse(&file.name, &file.text).ok()).flat_map(|it| it.objects) {
            if let Spec::MeshConfig(config) = &object.spec
                && let Some(domain) = config.trust_domain.as_ref().filter(|it| it.value != self.mesh.trust_domain)
            {
                let message =
                    format!("trustDomain is {:?}, and the authority's is {:?}", domain.value, self.mesh.trust_domain);
                let mut diagnostic = object.diagnostic(codes::INVALID, Level::Error, domain.at, &message);
                diagnostic.help = Some("start the control plane with this file: meshctl dev -f".to_owned());
                return Err(StoreError::Invalid(vec![diagnostic]));
            }
        }
        Ok(())
    }

    /// See [`Store::analyze`].
    pub(crate) fn analyze(&self, files: &[SourceFile]) -> Vec<Diagnostic> {
        let running = self.workloads();
        self.lock().store.analyze(files, &running)
    }

    pub(crate) fn delete(&self, keys: &[Key]) -> Result<Applied, StoreError> {
        let deleted = self.looked_through(self.lock().store.delete(keys))?;
        self.tell(!deleted.changes.is_empty());
        Ok(deleted)
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Arc<Object>> {
        self.lock().store.get(key).cloned()
    }

    pub(crate) fn list(&self, kind: Option<Kind>, namespace: Option<&str>) -> Vec<Arc<Object>> {
        self.lock().store.list(kind, namespace)
    }

    /// A workload with what its group says of it; what it says itself counts more.
    pub(crate) fn grouped(&self, mut workload: Registered) -> Result<Registered, String> {
        if workload.group.is_empty() {
            return Ok(workload);
        }
        let key = Key::new(Kind::WorkloadGroup, &workload.namespace, &workload.group);
        let object = self.get(&key);
        let Some(Spec::WorkloadGroup(group)) = object.as_ref().map(|object| &object.spec) else {
            return Err(format!("{key} does not exist, which the node's metadata AUTO_REGISTER_GROUP names"));
        };
        let mut labels = group.labels.clone();
        labels.append(&mut workload.labels);
        workload.labels = labels;
        if workload.ports.is_empty() {
            let port = |(name, number): (&String, &u16)| WorkloadPort { name: name.clone(), number: *number };
            workload.ports = group.ports.iter().map(port).collect();
        }
        workload.weight = group.template.weight;
        if workload.locality == Locality::default() {
            workload.locality = group.template.locality.clone();
        }
        Ok(workload)
    }

    /// A workload told how it is; see [`Registry::tell_health`].
    pub(crate) fn told_health(&self, namespace: &str, name: &str, unhealthy: Option<String>) {
        let changed = self.lock().registry.tell_health(namespace, name, unhealthy);
        self.tell_workload("update", changed);
    }

    /// A workload's stream began.
    ///
    /// A lost one that had its address and port is gone: it is the new one that listens there. An error says who has its name.
    pub(crate) fn connected(&self, workload: Registered) -> Result<(), String> {
        let mut inner = self.lock();
        if let Some(holder) = inner.registry.holder(&workload) {
            let Registered { namespace, name, service_account, lost, .. } = &**holder;
            let since = if lost.is_some() { "was connected until a moment ago" } else { "is connected" };
            return Err(format!(
                "{name}.{namespace} {since} as service account {service_account}, and this is {}",
                workload.service_account
            ));
        }
        let mut changed = false;
        for other in inner.registry.lost_in_place_of(&workload) {
            changed |= inner.registry.disconnect(&other.namespace, &other.name, true, now());
        }
        changed |= inner.registry.connect(workload);
        drop(inner);
        self.tell_workload("add", changed);
        Ok(())
    }

    /// A workload's stream ended; whether it still runs is not known.
    pub(crate) fn disconnected(&self, namespace: &str, name: &str) {
        let changed = self.lock().registry.disconnect(namespace, name, false, now());
        self.tell_workload("update", changed);
    }

    /// A lost workload was looked after: it is `gone`, or it runs and gets its grace anew. Nothing happens if it came back
    /// in between.
    pub(crate) fn still_lost(&self, workload: &Registered, gone: bool) {
        let mut inner = self.lock();
        let Registered { namespace, name, .. } = workload;
        let is_lost = inner.registry.find(namespace, name).is_some_and(|known| **known == *workload);
        if is_lost {
            let changed = inner.registry.disconnect(namespace, name, gone, now());
            drop(inner);
            self.tell_workload(if gone { "delete" } else { "update" }, changed);
        }
    }

    /// Removes workloads that did not come back in time.
    pub(crate) fn expire(&self) {
        let changed = self.lock().registry.expire(now());
        self.tell_workload("delete", changed);
    }

    /// Writes who runs, if that changed since it was last written. Waits for a disk, with nothing locked.
    pub(crate) fn save(&self) {
        let Some(unsaved) = self.lock().registry.unsaved() else { return };
        let Err(error) = unsaved.write() else {
            self.saving_fails.store(false, Relaxed);
            return;
        };
        self.lock().registry.still_unsaved();
        // The registry in memory is right all the same; only a restart would know less.
        if !self.saving_fails.swap(true, Relaxed) {
            tracing::warn!(%error, "the registry of workloads could not be written");
        }
    }

    /// Everyone who runs: those who connected, and whom others know of beside them.
    pub(crate) fn workloads(&self) -> Vec<Arc<Registered>> {
        let own = self.lock().registry.workloads();
        self.with_others(own)
    }

    /// Of one name those who connected count: they say themselves how they are.
    fn with_others(&self, mut all: Vec<Arc<Registered>>) -> Vec<Arc<Registered>> {
        let own = all.len();
        for other in &self.others {
            for workload in other.workloads() {
                let is_known = all.iter().any(|it| it.namespace == workload.namespace && it.name == workload.name);
                if !is_known {
                    all.push(workload);
                }
            }
        }
        if all.len() > own {
            all.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        }
        all
    }

    /// Others say that whom they know of has changed.
    pub(crate) fn others_changed(&self) {
        self.tell(true);
    }

    /// Everything of this moment, indexed for compiling, and how new it is at least, for comparing two of them.
    pub(crate) fn world(&self) -> (u64, World) {
        let version = *self.changes.borrow();
        let inner = self.lock();
        let (objects, own) = (inner.store.objects(), inner.registry.workloads());
        drop(inner);
        (version, World::new(objects, &Fixed(self.with_others(own)), self.mesh.clone()))
    }

    pub(crate) fn mesh(&self) -> &MeshSettings {
        &self.mesh
    }

    /// Changes with every change of what [`State::world`] answers.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn tell_workload(&self, event: &'static str, changed: bool) {
        if changed {
            self.metrics.workload(event);
        }
        self.tell(changed);
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

/// The workloads of a moment.
#[derive(Debug)]
struct Fixed(Vec<Arc<Registered>>);

impl Workloads for Fixed {
    fn workloads(&self) -> Vec<Arc<Registered>> {
        self.0.clone()
    }
}

/// Unix milliseconds.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
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
            service_account: "reviews".into(),
            address: address.into(),
            ports: Vec::new(),
            labels: [("version".to_owned(), "v1".to_owned())].into(),
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

    fn file(text: &str) -> [SourceFile; 1] {
        [SourceFile { name: "f.yaml".into(), text: text.into() }]
    }

    /// Whoever else knows of workloads is asked beside the registry; of one name, who connected counts.
    #[test]
    fn an_orchestrator_may_know_of_workloads_too() {
        let others = Fixed(vec![Arc::new(workload("a", [10, 0, 0, 1])), Arc::new(workload("b", [10, 0, 0, 2]))]);
        let state = State::open(None, MeshSettings::default(), vec![Arc::new(others)]).unwrap();
        let seen = |state: &State| -> Vec<String> {
            state.workloads().iter().map(|it| format!("{} {}", it.name, it.address)).collect()
        };
        assert_eq!(seen(&state), ["a 10.0.0.1", "b 10.0.0.2"]);
        state.connected(workload("b", [127, 0, 0, 1])).unwrap();
        assert_eq!(seen(&state), ["a 10.0.0.1", "b 127.0.0.1"]);
        let mut changes = state.changes();
        changes.mark_unchanged();
        state.others_changed();
        assert!(changes.has_changed().unwrap());
    }

    /// However many workloads come at once, they are written together, by nobody who holds the state; and those not written
    /// yet are when it ends.
    #[test]
    fn workloads_are_saved_together() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("workloads.json");
        let open = || State::open(Some(dir.path()), MeshSettings::default(), Vec::new()).unwrap();
        let state = open();
        (0..100).for_each(|n| state.connected(workload(&format!("a-{n}"), [10, 0, 0, n])).unwrap());
        assert!(!file.exists(), "a connection does not wait for a disk");
        state.save();
        let written = std::fs::metadata(&file).unwrap().modified().unwrap();
        state.save();
        assert_eq!(std::fs::metadata(&file).unwrap().modified().unwrap(), written, "nothing changed");
        state.connected(workload("b", [10, 0, 1, 1])).unwrap();
        drop(state);
        assert_eq!(open().workloads().len(), 101);
    }

    /// GW9: a workload that names a group has what the group says, under what it says itself; a group that is not there is told.
    #[test]
    fn a_group_is_a_template() {
        let state = State::open(None, MeshSettings::default(), Vec::new()).unwrap();
        let vm = Registered { group: "vms".into(), ..workload("vm-1", [10, 0, 0, 9]) };
        let missing = state.grouped(vm.clone()).unwrap_err();
        assert!(missing.contains("WorkloadGroup default/vms does not exist"), "{missing}");
        let text = "apiVersion: networking.istio.io/v1\nkind: WorkloadGroup\nmetadata: {name: vms}\nspec:\n  metadata: {labels: {app: reviews, version: v9}}\n  template: {labels: {app: template, tier: back}, ports: {http: 9080}, weight: 3, serviceAccount: reviews, locality: eu/a/1}\n";
        state.apply(&file(text), false).unwrap();
        let grouped = state.grouped(vm).unwrap();
        let labels: Vec<(&str, &str)> = grouped.labels.iter().map(|(key, value)| (&**key, &**value)).collect();
        assert_eq!(labels, [("app", "reviews"), ("tier", "back"), ("version", "v1")]);
        assert_eq!((grouped.weight, grouped.ports[0].number, &*grouped.locality.region), (3, 9080, "eu"));
        let bad = text.replace("{labels: {app: template", "{address: 1.2.3.4, labels: {app: template");
        assert!(state.apply(&file(&bad), false).is_err(), "an address is each workload's own");
    }

    /// What came from a folder and is no longer in it goes; what came from elsewhere stays, and a fault changes nothing.
    #[test]
    fn a_folder_is_all_of_what_came_from_it() {
        let state = State::open(None, MeshSettings::default(), Vec::new()).unwrap();
        let account = |folder: &str, name: &str| SourceFile {
            name: format!("{folder}/{name}.yaml"),
            text: format!("apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}}}\n"),
        };
        let names = |state: &State| -> Vec<String> {
            state.list(None, None).iter().map(|object| object.key.name.clone()).collect()
        };
        state.apply(&[account("other", "x"), account("dirty", "y")], false).unwrap();
        let dir = Path::new("dir");
        state.sync(dir, &[account("dir", "a"), account("dir/deep", "b")]).unwrap();
        assert_eq!(names(&state), ["a", "b", "x", "y"]);
        let broken = SourceFile { name: "dir/c.yaml".into(), text: "kind: [".into() };
        assert!(state.sync(dir, &[account("dir", "a"), broken]).is_err());
        assert_eq!(names(&state), ["a", "b", "x", "y"]);
        let applied = state.sync(dir, &[account("dir", "a")]).unwrap();
        let deleted: Vec<_> = applied.changes.iter().map(|change| (&*change.key.name, change.action)).collect();
        assert_eq!(deleted, [("a", crate::store::Action::Unchanged), ("b", crate::store::Action::Deleted)]);
        assert_eq!(names(&state), ["a", "x", "y"]);
    }
}
