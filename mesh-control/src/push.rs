//! The push: one view per connected workload, made again when anything changes, and what became of it.
//!
//! A workload that connects is registered where its node metadata says it runs, once its token proved that it is who the
//! metadata says. Its view is its [`compile`]d configuration, encoded; the stream sends what differs from what it sent last. A
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
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use mesh_xds::{
    ads::{ResourceSet, TypeUrl},
    node::Node,
    server::{ConnectionId, Credentials, Peer, Source},
    translate::{self, Shape},
};
use tokio::{net::TcpStream, sync::watch, time};
use tonic::Status;

use crate::{
    api::{ProxyStatus, SyncState, TypeStatus},
    ca::{Ca, ServiceAccount},
    compile::{NodeInfo, World, compile},
    registry::{Registered, WorkloadPort},
    state::{State, now},
};

/// How long a change waits for others. Istio waits 100 ms, for meshes of thousands; here it would be the whole budget.
pub const DEBOUNCE: Duration = Duration::from_millis(5);

/// Between two looks at workloads that lost their stream.
const PROBE_INTERVAL: Duration = Duration::from_millis(200);

/// How long the other side may take to accept a probe.
const PROBE_TIMEOUT: Duration = Duration::from_millis(150);

/// Longer messages of a client are cut: they are kept for as long as it is connected.
const MAX_MESSAGE: usize = 4096;

/// The views of all connected workloads.
#[derive(Debug)]
pub struct Push {
    state: Arc<State>,
    ca: Arc<Ca>,
    next: AtomicU64,
    /// `None` once closed.
    connections: Mutex<Option<BTreeMap<ConnectionId, Connection>>>,
}

#[derive(Debug)]
struct Connection {
    node: NodeInfo,
    version: String,
    since: u64,
    /// The version of the world that `view` was made from.
    made: u64,
    view: watch::Sender<Arc<ResourceSet>>,
    types: BTreeMap<TypeUrl, Progress>,
}

/// How far a type has come on one stream.
#[derive(Clone, Debug, Default)]
struct Progress {
    sent: Option<String>,
    acked: Option<String>,
    refused: Option<(String, String)>,
}

impl Push {
    pub(crate) fn new(state: Arc<State>, ca: Arc<Ca>) -> Self {
        Self { state, ca, next: AtomicU64::new(1), connections: Mutex::new(Some(BTreeMap::new())) }
    }

    /// Keeps the views true until dropped.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut changes = self.state.changes();
        let mut probe = time::interval(PROBE_INTERVAL);
        probe.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    time::sleep(DEBOUNCE).await;
                    changes.mark_unchanged();
                    let push = self.clone();
                    // Compiling takes processor time in proportion to the mesh, which the streams should not wait for.
                    let _ = tokio::task::spawn_blocking(move || push.refresh()).await;
                }
                _ = probe.tick() => self.look_after_the_lost().await,
            }
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
        ranked.min_by(|a, b| (a.0, &a.1.name).cmp(&(b.0, &b.1.name))).map(|(_, node)| node.clone())
    }

    /// The names of all connected workloads.
    pub fn names(&self) -> BTreeSet<String> {
        self.lock().iter().flatten().map(|(_, connection)| connection.node.name.clone()).collect()
    }

    /// Makes every view again; streams whose view is the same hear nothing.
    fn refresh(&self) {
        let (version, world) = self.state.world();
        let nodes: Vec<(ConnectionId, NodeInfo)> =
            self.lock().iter().flatten().map(|(id, connection)| (*id, connection.node.clone())).collect();
        for (id, node) in nodes {
            self.show(id, version, &world, &node);
        }
    }

    /// Makes the view of one connection, unless it has ended meanwhile or has a view of a newer world.
    fn show(&self, id: ConnectionId, version: u64, world: &World, node: &NodeInfo) {
        let view = view(world, node);
        let mut connections = self.lock();
        let Some(connection) = connections.as_mut().and_then(|connections| connections.get_mut(&id)) else { return };
        if connection.made > version {
            return;
        }
        connection.made = version;
        connection.view.send_if_modified(|current| {
            let differs = **current != view;
            if differs {
                *current = Arc::new(view);
            }
            differs
        });
    }

    async fn look_after_the_lost(&self) {
        let lost = self.state.workloads().into_iter().filter(|workload| workload.lost.is_some());
        let mut any = false;
        for workload in lost {
            any = true;
            match probe(&workload).await {
                Probe::Answered => self.state.still_lost(&workload, false),
                Probe::Refused => self.state.still_lost(&workload, true),
                Probe::Nothing => {}
            }
        }
        if any {
            self.state.expire();
        }
    }

    fn with(&self, id: ConnectionId, kind: TypeUrl, change: impl FnOnce(&mut Progress)) {
        if let Some(connection) = self.lock().as_mut().and_then(|connections| connections.get_mut(&id)) {
            change(connection.types.entry(kind).or_default());
        }
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
            Ok(account) => Ok(Some(account.spiffe_id(self.ca.trust_domain()))),
            Err(error) => Err(Status::unauthenticated(error.to_string())),
        }
    }

    fn connect(&self, peer: &Peer, node: &Node) -> Result<(ConnectionId, watch::Receiver<Arc<ResourceSet>>), Status> {
        let Some(identity) = &peer.identity else {
            return Err(Status::unauthenticated("the stream has no identity"));
        };
        let workload = registered(node).map_err(Status::invalid_argument)?;
        self.authorize(identity, &workload).inspect_err(|refusal| {
            tracing::warn!(%identity, node = node.id, reason = refusal.message(), "refused a workload");
        })?;
        let info = node_info(&workload);
        let id = ConnectionId(self.next.fetch_add(1, Ordering::Relaxed));
        let (sender, receiver) = watch::channel(Arc::default());
        let connection = Connection {
            version: node.meta("ISTIO_VERSION").unwrap_or_default().to_owned(),
            since: now(),
            made: 0,
            view: sender,
            types: BTreeMap::new(),
            node: info.clone(),
        };
        tracing::info!(workload = info.name, namespace = info.namespace, "connected");
        {
            let mut connections = self.lock();
            let Some(open) = connections.as_mut() else {
                return Err(Status::unavailable("the control plane is stopping"));
            };
            open.insert(id, connection);
            // Under the same lock, so that the end of an older stream of this workload comes before or after both.
            self.state.connected(workload);
        }
        let (version, world) = self.state.world();
        self.show(id, version, &world, &info);
        Ok((id, receiver))
    }

    fn sent(&self, id: ConnectionId, kind: TypeUrl, version: &str) {
        self.with(id, kind, |progress| progress.sent = Some(version.to_owned()));
    }

    fn acked(&self, id: ConnectionId, kind: TypeUrl, version: &str) {
        self.with(id, kind, |progress| {
            progress.acked = Some(version.to_owned());
            progress.refused = None;
        });
    }

    fn nacked(&self, id: ConnectionId, kind: TypeUrl, version: &str, message: &str) {
        let message: String = message.chars().take(MAX_MESSAGE).collect();
        tracing::warn!(%kind, version, message, "a workload refused a push");
        self.with(id, kind, |progress| progress.refused = Some((version.to_owned(), message)));
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
    fn status(&self) -> ProxyStatus {
        let types = [TypeUrl::Cluster, TypeUrl::Listener, TypeUrl::Endpoint, TypeUrl::Route]
            .map(|kind| (kind.short().to_owned(), self.types.get(&kind).map(Progress::status).unwrap_or_default()));
        ProxyStatus {
            name: format!("{}.{}", self.node.name, self.node.namespace),
            version: self.version.clone(),
            connected: self.since,
            types: types.into(),
        }
    }
}

impl Progress {
    fn status(&self) -> TypeStatus {
        let state = match (&self.sent, &self.acked, &self.refused) {
            (None, ..) => SyncState::NotSent,
            (Some(sent), _, Some((refused, _))) if sent == refused => SyncState::Error,
            (Some(sent), Some(acked), _) if sent == acked => SyncState::Synced,
            _ => SyncState::Stale,
        };
        TypeStatus {
            state,
            sent: self.sent.clone(),
            acked: self.acked.clone(),
            error: self.refused.as_ref().map(|(_, message)| message.clone()),
        }
    }
}

fn view(world: &World, node: &NodeInfo) -> ResourceSet {
    let shape = if node.gateway { Shape::Gateway } else { Shape::Sidecar };
    translate::encode(&compile(world, node), shape)
}

/// What the metadata says of a workload. Source: Istio's node metadata.
fn registered(node: &Node) -> Result<Registered, String> {
    let mut id = node.id.split('~');
    let (role, ip) = (id.next().unwrap_or_default(), id.next().unwrap_or_default());
    let ip = node.meta("INSTANCE_IPS").and_then(|ips| ips.split(',').next()).unwrap_or(ip);
    let address: IpAddr = ip.trim().parse().map_err(|_| {
        format!("node {:?}: {ip:?} (metadata INSTANCE_IPS, else the id's second part) is not an IP address", node.id)
    })?;
    let ports: Vec<WorkloadPort> = match node.meta("POD_PORTS") {
        Some(text) => serde_json::from_str(text)
            .map_err(|error| format!("node {:?}: metadata POD_PORTS is not a list of ports: {error}", node.id))?,
        None => Vec::new(),
    };
    let workload = node.workload();
    let name = node.meta("NAME").unwrap_or(&workload.name);
    if name.is_empty() {
        return Err(format!("node {:?}: metadata NAME is missing", node.id));
    }
    Ok(Registered {
        name: name.to_owned(),
        namespace: node.namespace().to_owned(),
        workload: workload.name.to_string(),
        service_account: node.service_account().to_owned(),
        address,
        ports,
        labels: node.labels(),
        locality: node.locality.clone(),
        gateway: role == "router",
        since: now(),
        lost: None,
    })
}

/// A workload as the one a configuration is for.
pub(crate) fn node_info(workload: &Registered) -> NodeInfo {
    NodeInfo {
        name: workload.name.clone(),
        namespace: workload.namespace.clone(),
        workload: workload.workload.clone(),
        service_account: workload.service_account.clone(),
        labels: workload.labels.clone(),
        locality: workload.locality.clone(),
        address: Some(workload.address),
        ports: workload.ports.clone(),
        gateway: workload.gateway,
    }
}

/// What a workload's first port said to a connection.
enum Probe {
    /// Somebody listens.
    Answered,
    /// Nobody does.
    Refused,
    /// Not known: no port, no answer.
    Nothing,
}

async fn probe(workload: &Registered) -> Probe {
    let Some(port) = workload.ports.first() else { return Probe::Nothing };
    let address = SocketAddr::new(workload.address, port.number);
    match time::timeout(PROBE_TIMEOUT, TcpStream::connect(address)).await {
        Ok(Ok(_)) => Probe::Answered,
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => Probe::Refused,
        Ok(Err(_)) | Err(_) => Probe::Nothing,
    }
}
