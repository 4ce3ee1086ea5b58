//! The push: one view per connected workload, made again when anything changes, and what became of it.
//!
//! A workload that connects is registered where its node metadata says it runs, once its token proved that it is who the
//! metadata says. Its view is its [compiled](crate::compile) configuration, encoded; the stream sends what differs from what it sent last. A
//! change waits [`DEBOUNCE`] for others to join it, so that a rollout of many files or workloads is one push.
//!
//! A workload whose stream ended is still an endpoint for the registry's grace, since only the control connection may have
//! broken. Meanwhile its port is tried: refused means that nobody runs there, and the endpoint goes at once; answered means
//! that it runs on and will be back, and the grace begins anew. So neither a restart of the control plane nor a client's
//! long back-off empties a cluster, and a process that died is not called again.
//!
//! Source: istiod `pilot/pkg/xds` (authorisation of the node, debounce, proxy status).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use mesh_core::config::Name;
use mesh_xds::{
    ads::{Resource, ResourceSet, TypeUrl},
    node::Node,
    server::{ConnectionId, Credentials, Peer, Source},
};
use tokio::{sync::watch, time};
use tonic::Status;

use crate::{
    api::{Protection, ProxyStatus},
    ca::{Ca, ServiceAccount},
    compile::{NodeInfo, World},
    registry::Registered,
    state::{State, now},
};

use self::{
    metadata::registered,
    progress::{MAX_MESSAGE, Progress},
    secrets::Secrets,
    views::{Caller, Changed, Maker, Views},
};

mod lost;
mod metadata;
mod progress;
mod secrets;
mod views;

use metadata::Program;
pub(crate) use metadata::node_info;

/// How long a change waits for others. Istio waits 100 ms, for meshes of thousands; here it would be the whole budget.
pub const DEBOUNCE: Duration = Duration::from_millis(5);

/// The longest it waits for others where making the views before took long.
const LONGEST_DEBOUNCE: Duration = Duration::from_millis(500);

/// Between two looks at workloads that lost their stream.
const PROBE_INTERVAL: Duration = Duration::from_millis(200);

/// Between two looks at whether the registry has changed, and is to be written: what is not written yet when the process is killed
/// is missing to those who come back first. Longer, to this, where writing takes long.
const SAVE_INTERVAL: Duration = Duration::from_millis(25);
const LONGEST_SAVE_INTERVAL: Duration = Duration::from_millis(500);

/// What an Envoy says it is. It makes no certificate signing request, so that it gets its certificate as a secret.
const ENVOY: &str = "envoy";

/// Istio's name of the view that gRPC's own libraries get.
const GRPC: &str = "grpc";

/// The views of all connected workloads.
#[derive(Debug)]
pub struct Push {
    state: Arc<State>,
    ca: Arc<Ca>,
    next: AtomicU64,
    /// `None` once closed.
    connections: Mutex<Option<BTreeMap<ConnectionId, Connection>>>,
    /// What is shown at the moment, for those who connect.
    views: Mutex<Views>,
    /// Held for as long as the next views are made.
    maker: Mutex<Maker>,
    /// What everybody is to trust, as resources.
    trust: Mutex<Arc<ResourceSet>>,
}

#[derive(Debug)]
struct Connection {
    node: Arc<NodeInfo>,
    /// It speaks as gRPC's own libraries do. Istio's metadata `GENERATOR`.
    grpc: bool,
    caller: Caller,
    version: String,
    /// What else it says of its program.
    program: Program,
    since: u64,
    /// The version of the world that `view` was made from; `None` before the first.
    made: Option<u64>,
    view: watch::Sender<Arc<ResourceSet>>,
    inbound: Vec<(Name, Resource)>,
    types: BTreeMap<TypeUrl, Progress>,
    /// Its SPIFFE id, as its token proved.
    identity: String,
    secrets: Option<Secrets>,
    /// When what it has not taken yet was changed.
    changed: Option<Instant>,
}

/// What a connection is to be shown.
#[derive(Clone, Copy)]
struct Shown<'a> {
    version: u64,
    world: &'a World,
    caller: &'a Caller,
    view: &'a Arc<ResourceSet>,
    changed: Changed,
}

impl Push {
    pub(crate) fn new(state: Arc<State>, ca: Arc<Ca>) -> Self {
        let trust = secrets::trust(&ca);
        Self {
            state,
            ca,
            next: AtomicU64::new(1),
            connections: Mutex::new(Some(BTreeMap::new())),
            views: Mutex::default(),
            maker: Mutex::default(),
            trust: Mutex::new(trust),
        }
    }

    /// Keeps the views true until dropped. What takes its time, a disk or workloads that do not answer, holds no push up.
    pub(crate) async fn run(self: Arc<Self>) {
        tokio::select! {
            () = self.follow_changes() => {}
            () = self.follow_trust() => {}
            () = self.look_after_workloads() => {}
            () = self.keep_saved() => {}
        }
    }

    async fn follow_changes(self: &Arc<Self>) {
        let mut changes = self.state.changes();
        let mut took = Duration::ZERO;
        while changes.changed().await.is_ok() {
            // Where it takes long, as when thousands come at once, half of the time is left for others to join.
            time::sleep(took.clamp(DEBOUNCE, LONGEST_DEBOUNCE)).await;
            changes.mark_unchanged();
            let (push, begun) = (self.clone(), Instant::now());
            // Compiling takes processor time in proportion to the mesh, which the streams should not wait for.
            let _ = tokio::task::spawn_blocking(move || push.refresh()).await;
            took = begun.elapsed();
        }
    }

    async fn follow_trust(&self) {
        let mut told = self.ca.told();
        while told.changed().await.is_ok() {
            told.mark_unchanged();
            self.tell_trust();
        }
    }

    async fn look_after_workloads(self: &Arc<Self>) {
        let mut probe = time::interval(PROBE_INTERVAL);
        probe.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        loop {
            probe.tick().await;
            self.ca.upkeep(SystemTime::now());
            self.renew_secrets();
            self.look_after_the_lost().await;
        }
    }

    async fn keep_saved(self: &Arc<Self>) {
        let mut took = Duration::ZERO;
        loop {
            // A tenth of the time at most is spent on it.
            time::sleep((took * 10).clamp(SAVE_INTERVAL, LONGEST_SAVE_INTERVAL)).await;
            let (state, begun) = (self.state.clone(), Instant::now());
            let _ = tokio::task::spawn_blocking(move || state.save()).await;
            took = begun.elapsed();
        }
    }

    /// Ends every stream; those that come later are refused.
    pub(crate) fn close(&self) {
        *self.lock() = None;
    }

    /// What became of what was sent, by workload.
    pub fn status(&self) -> Vec<ProxyStatus> {
        let connections = self.lock();
        let mut status: Vec<ProxyStatus> = connections.iter().flatten().map(|(_, c)| c.status()).collect();
        status.sort_by(|a, b| a.name.cmp(&b.name));
        status
    }

    /// The connected workload that `word` names: an instance, a workload, or the label `app`, perhaps with `.NAMESPACE`.
    pub fn find(&self, word: &str) -> Option<NodeInfo> {
        let names = |node: &NodeInfo, word: &str| {
            let app = node.labels.get("app").map(String::as_str);
            [Some(node.name.as_str()), Some(node.workload.as_str()), app].iter().position(|name| *name == Some(word))
        };
        let (short, namespace) = match word.rsplit_once('.') {
            Some((short, namespace)) => (short, Some(namespace)),
            None => (word, None),
        };
        let connections = self.lock();
        let nodes = connections.iter().flatten().map(|(_, connection)| &connection.node);
        let ranked = nodes.filter_map(|node| {
            let in_namespace = || namespace.is_some_and(|namespace| namespace == node.namespace);
            let rank = names(node, word).or_else(|| in_namespace().then(|| names(node, short)).flatten())?;
            Some((rank, node))
        });
        ranked.min_by(|a, b| (a.0, &a.1.name).cmp(&(b.0, &b.1.name))).map(|(_, node)| NodeInfo::clone(node))
    }

    /// The names of all connected workloads.
    pub fn names(&self) -> BTreeSet<String> {
        self.lock().iter().flatten().map(|(_, connection)| connection.node.name.clone()).collect()
    }

    /// Makes the views of the world as it is now; streams whose view is the same hear nothing.
    fn refresh(&self) {
        let begun = Instant::now();
        let mut maker = self.maker.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.views().clone();
        let (version, world) = self.state.world();
        let world = Arc::new(match before.world() {
            Some(before) => world.after(before),
            None => world,
        });
        let nodes = self.nodes(version);
        let callers: Vec<Caller> = nodes.iter().map(|(_, node, grpc)| Caller::of(&world, node, *grpc)).collect();
        let (views, changes) = maker.next(&before, version, world.clone(), callers.iter());
        *self.views() = views.clone();
        for ((id, node, _), caller) in nodes.iter().zip(&callers) {
            let changed = changes.get(caller).copied().unwrap_or(Changed::All);
            if let Some(view) = views.get(caller) {
                self.show(*id, node, &Shown { version, world: &world, caller, view, changed });
            }
        }
        // Those who connected meanwhile may have looked at the views before.
        for (id, node, grpc) in self.nodes(version) {
            let caller = Caller::of(&world, &node, grpc);
            let view = self.views().of(&world, &caller);
            let shown = Shown { version, world: &world, caller: &caller, view: &view, changed: Changed::All };
            self.show(id, &node, &shown);
        }
        self.state.metrics().made(begun.elapsed());
    }

    /// Those that have not seen a version of the world yet.
    fn nodes(&self, version: u64) -> Vec<(ConnectionId, Arc<NodeInfo>, bool)> {
        let connections = self.lock();
        let behind = connections.iter().flatten().filter(|(_, one)| one.made.is_none_or(|made| made < version));
        behind.map(|(id, one)| (*id, one.node.clone(), one.grpc)).collect()
    }

    /// Gives one connection its view, unless it has ended meanwhile or has a view of a newer world.
    fn show(&self, id: ConnectionId, node: &NodeInfo, shown: &Shown<'_>) {
        let Shown { version, world, caller, view, changed } = *shown;
        let kept = match self.lock().as_ref().and_then(|connections| connections.get(&id)) {
            Some(one) if one.made.is_some() && one.caller == *caller && changed != Changed::All => {
                Some(one.inbound.clone())
            }
            Some(_) => None,
            None => return,
        };
        let is_same = kept.is_some() && changed == Changed::Nothing;
        let inbound = kept.unwrap_or_else(|| views::inbound(world, node, caller));
        let mut connections = self.lock();
        let Some(connection) = connections.as_mut().and_then(|connections| connections.get_mut(&id)) else { return };
        if connection.made.is_some_and(|made| made > version) {
            return;
        }
        connection.made = Some(version);
        if is_same {
            return;
        }
        connection.caller = caller.clone();
        connection.inbound = inbound;
        let (inbound, secrets) = (&connection.inbound, &connection.secrets);
        // Under the lock of the connections, so that nobody is told of an older trust after a newer one.
        let trust = self.trust.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let differs = connection.view.send_if_modified(|current| {
            let mut own = views::own(view, inbound, current);
            secrets::put(&trust, secrets.as_ref(), &mut own);
            let differs = *current != own;
            *current = own;
            differs
        });
        if differs {
            // The change came a little before, and waited for others.
            connection.changed = connection.changed.or_else(|| Instant::now().checked_sub(DEBOUNCE));
        }
    }

    fn with(&self, id: ConnectionId, kind: TypeUrl, change: impl FnOnce(&mut Progress, &Arc<ResourceSet>)) {
        if let Some(connection) = self.lock().as_mut().and_then(|connections| connections.get_mut(&id)) {
            change(connection.types.entry(kind).or_default(), &connection.view.borrow());
        }
    }

    fn views(&self) -> MutexGuard<'_, Views> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Option<BTreeMap<ConnectionId, Connection>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source for Push {
    fn verify(&self, credentials: &Credentials) -> Result<Option<String>, Status> {
        let Some(token) = &credentials.bearer else {
            return Err(Status::unauthenticated("the stream needs the header `authorization: Bearer <token>`"));
        };
        match self.ca.tokens().verify(&token.0) {
            Ok(account) => {
                let id = account.spiffe_id(self.ca.trust_domain());
                if self.ca.denies(&id) {
                    return Err(Status::permission_denied(format!("{id} is denied: it was revoked")));
                }
                Ok(Some(id))
            }
            Err(error) => Err(Status::unauthenticated(error.to_string())),
        }
    }

    fn connect(&self, peer: &Peer, node: &Node) -> Result<(ConnectionId, watch::Receiver<Arc<ResourceSet>>), Status> {
        let Some(identity) = &peer.identity else {
            return Err(Status::unauthenticated("the stream has no identity"));
        };
        let mut workload = registered(node).map_err(Status::invalid_argument)?;
        // Whoever is elsewhere has no port on this machine that we should ask.
        if !peer.address.is_some_and(|address| address.ip().to_canonical().is_loopback()) {
            workload.admin = None;
        }
        let workload = self.state.grouped(workload).map_err(Status::failed_precondition)?;
        self.authorize(identity, &workload).inspect_err(|refusal| {
            tracing::warn!(%identity, node = node.id, reason = refusal.message(), "refused a workload");
        })?;
        let info = Arc::new(node_info(&workload));
        let grpc = node.meta("GENERATOR") == Some(GRPC);
        let secrets = match node.user_agent == ENVOY {
            true => Some(Secrets::issue(&self.ca, &workload, SystemTime::now()).map_err(|error| {
                tracing::warn!(%identity, %error, "no certificate for an Envoy");
                Status::internal("no certificate could be made")
            })?),
            false => None,
        };
        let id = ConnectionId(self.next.fetch_add(1, Ordering::Relaxed));
        let (sender, receiver) = watch::channel(Arc::default());
        let connection = Connection {
            version: node.meta("ISTIO_VERSION").unwrap_or_default().to_owned(),
            program: Program::of(node),
            since: now(),
            made: None,
            grpc,
            caller: Caller::default(),
            inbound: Vec::new(),
            view: sender,
            types: BTreeMap::new(),
            identity: identity.clone(),
            secrets,
            changed: None,
            node: info.clone(),
        };
        {
            let mut connections = self.lock();
            let Some(open) = connections.as_mut() else {
                return Err(Status::unavailable("the control plane is stopping"));
            };
            // Under the same lock, so that the end of an older stream of this workload comes before or after both.
            self.state.connected(workload).map_err(|reason| {
                tracing::warn!(%identity, node = node.id, reason, "refused a workload");
                Status::failed_precondition(reason)
            })?;
            open.insert(id, connection);
        }
        tracing::info!(workload = info.name, namespace = info.namespace, "connected");
        let (version, world, caller, view) = {
            let mut views = self.views();
            let world = match views.world() {
                Some(world) => world.clone(),
                // The first of all; later ones are shown what there is, and soon what their coming changes.
                None => {
                    let (version, world) = self.state.world();
                    let world = Arc::new(world);
                    *views = Views::new(version, world.clone());
                    world
                }
            };
            let caller = Caller::of(&world, &info, grpc);
            let view = views.of(&world, &caller);
            (views.version, world, caller, view)
        };
        let keyless = if info.gateway { world.keyless(&info) } else { Vec::new() };
        if !keyless.is_empty() {
            let gateways = keyless.join(", ");
            tracing::warn!(%identity, node = node.id, gateways, "a gateway is not given the keys of these: nothing names its account");
        }
        let shown = Shown { version, world: &world, caller: &caller, view: &view, changed: Changed::All };
        self.show(id, &info, &shown);
        Ok((id, receiver))
    }

    fn sent(&self, id: ConnectionId, kind: TypeUrl, version: &str, bytes: usize) {
        self.state.metrics().pushed(kind, bytes);
        self.with(id, kind, |progress, _| progress.send(version));
    }

    fn acked(&self, id: ConnectionId, kind: TypeUrl, version: &str) {
        self.with(id, kind, |progress, view| progress.accept(kind, version, view));
        let converged = self.lock().as_mut().and_then(|open| open.get_mut(&id)).and_then(Connection::has_converged);
        if let Some(after) = converged {
            self.state.metrics().converged(after);
        }
    }

    fn nacked(&self, id: ConnectionId, kind: TypeUrl, version: &str, message: &str) {
        self.state.metrics().refused(kind);
        self.with(id, kind, |progress, view| progress.refuse(kind, version, message, view));
    }

    fn health(&self, id: ConnectionId, unhealthy: Option<String>) {
        let node = self.lock().as_ref().and_then(|open| open.get(&id)).map(|connection| connection.node.clone());
        if let Some(node) = node {
            let unhealthy = unhealthy.map(|message| message.chars().take(MAX_MESSAGE).collect());
            self.state.told_health(&node.namespace, &node.name, unhealthy);
        }
    }

    fn disconnect(&self, id: ConnectionId) {
        let mut connections = self.lock();
        let Some(open) = connections.as_mut() else { return };
        let Some(Connection { node, .. }) = open.remove(&id) else { return };
        tracing::info!(workload = node.name, namespace = node.namespace, "disconnected");
        // A workload that reconnects may be back before its old stream is found to be dead.
        let is_back = |other: &NodeInfo| other.namespace == node.namespace && other.name == node.name;
        if !open.values().any(|connection| is_back(&connection.node)) {
            self.state.disconnected(&node.namespace, &node.name);
        }
    }
}

impl Push {
    /// Istio compares the same two parts of the identity with the metadata.
    fn authorize(&self, identity: &str, workload: &Registered) -> Result<(), Status> {
        let account = ServiceAccount::new(&workload.namespace, &workload.service_account)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let claimed = account.spiffe_id(self.ca.trust_domain());
        if *identity != claimed {
            return Err(Status::permission_denied(format!(
                "the token proves {identity}, but the node's NAMESPACE and SERVICE_ACCOUNT say {claimed}"
            )));
        }
        Ok(())
    }
}

impl Connection {
    /// How long it took until everything sent is used, said once a change.
    fn has_converged(&mut self) -> Option<Duration> {
        let is_behind = |(kind, progress): (&TypeUrl, &Progress)| !progress.uses(&self.view.borrow().version(*kind));
        if self.types.iter().any(is_behind) {
            return None;
        }
        self.changed.take().map(|changed| changed.elapsed())
    }

    fn status(&self) -> ProxyStatus {
        let types = [TypeUrl::Cluster, TypeUrl::Listener, TypeUrl::Endpoint, TypeUrl::Route]
            .map(|kind| (kind.short().to_owned(), self.types.get(&kind).map(Progress::status).unwrap_or_default()));
        ProxyStatus {
            name: format!("{}.{}", self.node.name, self.node.namespace),
            version: self.version.clone(),
            connected: self.since,
            types: types.into(),
            protection: Protection::None,
            program: self.program.version.clone(),
            features: self.program.features.clone(),
            revision: self.program.revision.clone(),
        }
    }
}
