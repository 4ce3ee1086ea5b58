//! The control plane as a whole: its two ports, the tasks behind them, and their end.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use mesh_xds::server::ads_service;
use tokio::{net::TcpListener, sync::watch, time};
use tonic::service::Routes;

use crate::{
    api::{self, Api},
    ca::{Ca, CaError, CertificateService, ServiceAccount, Tokens, TrustSettings},
    compile::MeshSettings,
    console::Console,
    diagnostic::Diagnostic,
    kinds::parse,
    push::Push,
    registry::Workloads,
    serve::{DRAIN, Task, serve},
    state::State,
    store::{Applied, SourceFile, Store, StoreError},
    workload::{TokenFile, WorkloadSpec, bootstrap},
};

/// A running control plane. Dropping it ends it at once; [`shutdown`](Self::shutdown) lets requests under way finish.
#[derive(Debug)]
pub struct ControlPlane {
    xds: SocketAddr,
    api: SocketAddr,
    state: Arc<State>,
    ca: Arc<Ca>,
    push: Arc<Push>,
    token_files: Arc<Mutex<Vec<TokenFile>>>,
    stop: watch::Sender<bool>,
    servers: [Task; 2],
    _upkeep: Vec<Task>,
}

/// How a control plane is started.
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder {
    xds: SocketAddr,
    api: SocketAddr,
    state_dir: Option<PathBuf>,
    ca_dir: Option<PathBuf>,
    trust: TrustSettings,
    mesh: MeshSettings,
    files: Vec<SourceFile>,
    folders: Vec<PathBuf>,
    workloads: Vec<(Arc<dyn Workloads>, watch::Receiver<u64>)>,
}

impl ControlPlane {
    /// Starts with the defaults of each setting.
    pub fn builder() -> Builder {
        Builder {
            xds: SocketAddr::from((Ipv4Addr::LOCALHOST, Builder::XDS_PORT)),
            api: SocketAddr::from((Ipv4Addr::LOCALHOST, Builder::API_PORT)),
            state_dir: None,
            ca_dir: None,
            trust: TrustSettings::default(),
            mesh: MeshSettings::default(),
            files: Vec::new(),
            folders: Vec::new(),
            workloads: Vec::new(),
        }
    }

    /// Where workloads connect: ADS and the certificate authority, over TLS.
    pub fn xds_address(&self) -> SocketAddr {
        self.xds
    }

    /// Where `meshctl` connects: the HTTP API, on the loopback only.
    pub fn api_address(&self) -> SocketAddr {
        self.api
    }

    /// The root certificate in PEM: what every member of the mesh trusts. Several while the authority is being changed.
    pub fn root_certificate(&self) -> String {
        self.ca.root_pem()
    }

    /// What signs, revokes, and says what is to be trusted.
    pub fn ca(&self) -> &Arc<Ca> {
        &self.ca
    }

    /// A token for a service account, good for [`Tokens::DEFAULT_TTL`].
    ///
    /// # Errors
    ///
    /// When the names are not ones Kubernetes would allow.
    pub fn token(&self, namespace: &str, service_account: &str) -> Result<String, CaError> {
        let account = ServiceAccount::new(namespace, service_account)?;
        self.ca.tokens().issue(&account, Tokens::DEFAULT_TTL, SystemTime::now())
    }

    /// What a workload's `GRPC_XDS_BOOTSTRAP` is to hold.
    ///
    /// Writes the files it names into `dir`: `root-cert.pem`, and `NAME.NAMESPACE.token`, which only the owner can read and
    /// which is renewed for as long as this control plane runs.
    ///
    /// # Errors
    ///
    /// When a name is not one Kubernetes would allow, or a file cannot be written.
    pub fn bootstrap_for(&self, spec: &WorkloadSpec, dir: &Path) -> Result<serde_json::Value, CaError> {
        let (bootstrap, token_file) = bootstrap(&self.ca, self.state.mesh(), self.xds, spec, dir)?;
        let mut files = self.token_files.lock().unwrap_or_else(PoisonError::into_inner);
        if !files.contains(&token_file) {
            files.push(token_file);
        }
        Ok(bootstrap)
    }

    /// Applies files, all or nothing: what `meshctl apply` does.
    ///
    /// # Errors
    ///
    /// When one has an error; nothing is applied then.
    pub fn apply(&self, files: &[SourceFile]) -> Result<Applied, StoreError> {
        self.state.apply(files, false)
    }

    /// The workload that a `Deployment` announces, by its name, with or without its namespace: to be started on `ip`, with the Deployment's
    /// ports. `None` where no Deployment is called so.
    pub fn announced(&self, name: &str, ip: IpAddr) -> Option<WorkloadSpec> {
        let node = self.state.world().1.announced(name)?;
        // By its label, it is the first of several.
        let is_named = node.name == name || format!("{}.{}", node.name, node.namespace) == name;
        is_named.then(|| WorkloadSpec {
            namespace: node.namespace,
            service_account: node.service_account,
            labels: node.labels,
            ports: node.ports.iter().map(|port| port.number).collect(),
            ..WorkloadSpec::new(node.name, ip)
        })
    }

    /// What became of what was sent, by workload.
    pub fn proxy_status(&self) -> Vec<api::ProxyStatus> {
        self.push.status()
    }

    /// What the streams are fed from, for those who carry them over something else than this control plane's port.
    pub fn source(&self) -> Arc<Push> {
        self.push.clone()
    }

    /// Ends every stream, lets requests under way finish for a moment, and closes both ports.
    pub async fn shutdown(self) {
        self.push.close();
        let _ = self.stop.send(true);
        for server in self.servers {
            // The server itself gives up after the first of these.
            server.finish(DRAIN + DRAIN).await;
        }
    }
}

impl Builder {
    /// Istio's port of secure xDS and certificates.
    pub const XDS_PORT: u16 = 15012;

    /// Istio's port of istiod's monitoring and debug API, whose place ours takes.
    pub const API_PORT: u16 = 15014;

    /// Where workloads connect. Default `127.0.0.1:15012`; port 0 takes any that is free.
    pub fn xds_addr(mut self, address: SocketAddr) -> Self {
        self.xds = address;
        self
    }

    /// Where `meshctl` connects; a loopback address. Default `127.0.0.1:15014`; port 0 takes any that is free.
    pub fn api_addr(mut self, address: SocketAddr) -> Self {
        self.api = address;
        self
    }

    /// Where objects, workloads and keys are kept over restarts. Default: nowhere, in memory only.
    pub fn state_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.state_dir = Some(dir.into());
        self
    }

    /// Where an authority of one's own is, in files with the names Istio's secret `cacerts` has: `ca-cert.pem`, `ca-key.pem`,
    /// `root-cert.pem`, `cert-chain.pem`. Default: the state directory, where one is made if there is none.
    pub fn ca_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.ca_dir = Some(dir.into());
        self
    }

    /// Whom the mesh believes beside its own members. Default: nobody.
    pub fn trust(mut self, trust: TrustSettings) -> Self {
        self.trust = trust;
        self
    }

    /// What holds for the whole mesh.
    pub fn mesh(mut self, mesh: MeshSettings) -> Self {
        self.mesh = mesh;
        self
    }

    /// Files to apply before anybody is listened to.
    pub fn files(mut self, files: Vec<SourceFile>) -> Self {
        self.files = files;
        self
    }

    /// A folder whose YAML is applied before anybody is listened to, and again whenever it changes; what is no longer in it is deleted. May
    /// be given several times.
    pub fn watch(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folders.push(folder.into());
        self
    }

    /// Who else knows of workloads: an orchestrator, say. The channel changes when its answer does.
    pub fn workloads(mut self, source: Arc<dyn Workloads>, changes: watch::Receiver<u64>) -> Self {
        self.workloads.push((source, changes));
        self
    }

    /// Opens the state, applies the files, and listens.
    ///
    /// # Errors
    ///
    /// When a port is taken, a file is wrong, or the state cannot be read or written.
    pub async fn start(mut self) -> Result<ControlPlane, StartError> {
        if !is_loopback(self.api.ip()) {
            return Err(StartError::NotLoopback(self.api));
        }
        // What was applied before, and before that what is given now: files that are wrong are told of further below.
        if let Some(dir) = &self.state_dir {
            let stored = Store::open(Some(dir.clone())).map_err(StartError::Store)?.objects();
            self.mesh = self.mesh.with_trust_domain(stored.iter().map(|object| &**object));
        }
        let given: Vec<_> =
            self.files.iter().filter_map(|file| parse(&file.name, &file.text).ok()).flat_map(|it| it.objects).collect();
        self.mesh = self.mesh.with_trust_domain(&given);
        let trust_domain = &self.mesh.trust_domain;
        let ca = match (&self.state_dir, &self.ca_dir) {
            (Some(dir), given) => Ca::open_with(dir, given.as_deref(), trust_domain)?,
            (None, Some(given)) => Ca::given(given, trust_domain)?,
            (None, None) => Ca::in_memory(trust_domain)?,
        };
        ca.set_trust(self.trust, SystemTime::now())?;
        let ca = Arc::new(ca);
        let (xds_listener, xds) = bind(Listener::Xds, self.xds).await?;
        let (api_listener, api) = bind(Listener::Api, self.api).await?;
        let (others, changes): (Vec<_>, Vec<_>) = self.workloads.into_iter().unzip();
        let state = State::open(self.state_dir.as_deref(), self.mesh, others).map_err(StartError::Store)?;
        if !self.files.is_empty() {
            state.apply(&self.files, false).map_err(|error| match error {
                StoreError::Invalid(diagnostics) => StartError::Files(diagnostics),
                error => StartError::Store(error),
            })?;
        }
        let mut folders = Vec::new();
        for folder in self.folders {
            let failed = |source| StartError::Store(StoreError::Io { path: folder.clone(), source });
            let (look, files) = crate::watch::read(&folder).map_err(failed)?;
            state.sync(&folder, &files).map_err(|error| match error {
                StoreError::Invalid(diagnostics) => StartError::Files(diagnostics),
                error => StartError::Store(error),
            })?;
            folders.push((folder, look));
        }
        let state = Arc::new(state);
        let push = Arc::new(Push::new(state.clone(), ca.clone()));
        let token_files = Arc::new(Mutex::new(Vec::new()));

        let grpc = Routes::new(ads_service(push.clone())).add_service(CertificateService::server(ca.clone()));
        let tls = ca.server_tls(self.xds.ip(), SystemTime::now())?;
        let console = Console::start(state.clone(), push.clone());
        let http = api::router(Api::new(state.clone(), push.clone(), ca.clone(), xds), console);
        let (stop, stopped) = watch::channel(false);
        let servers = [
            Task::spawn(serve(xds_listener, Some(tls), grpc.into_axum_router(), stopped.clone())),
            Task::spawn(serve(api_listener, None, http, stopped)),
        ];
        let mut upkeep =
            vec![Task::spawn(push.clone().run()), Task::spawn(renew_files(ca.clone(), token_files.clone()))];
        let watched = folders.into_iter();
        upkeep.extend(watched.map(|(folder, look)| Task::spawn(crate::watch::run(folder, look, state.clone()))));
        upkeep.extend(changes.into_iter().map(|changes| Task::spawn(pass_on(changes, state.clone()))));
        tracing::info!(%xds, %api, "the control plane listens");
        Ok(ControlPlane { xds, api, state, ca, push, token_files, stop, servers, _upkeep: upkeep })
    }
}

/// One of the two ports.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Listener {
    /// For workloads.
    Xds,
    /// For `meshctl`.
    Api,
}

/// Why a control plane did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A port is taken, or the address is not one of this machine.
    #[error("{address} cannot be listened on{}: {source}", match listener {
        Listener::Xds => " for workloads",
        Listener::Api => " for meshctl",
    })]
    Bind {
        /// Which port.
        listener: Listener,
        /// What was tried.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The API has no authentication, and so stays on this machine.
    #[error("the API listens on loopback addresses only, and {0} is none")]
    NotLoopback(SocketAddr),
    /// The files to begin with are wrong.
    #[error("{} finding(s) in the files to begin with; nothing was started", .0.len())]
    Files(Vec<Diagnostic>),
    /// The state cannot be read or written.
    #[error(transparent)]
    Store(StoreError),
    /// The keys cannot be read, made or written.
    #[error(transparent)]
    Ca(#[from] CaError),
}

async fn bind(listener: Listener, address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let error = |source| StartError::Bind { listener, address, source };
    let bound = TcpListener::bind(address).await.map_err(error)?;
    let local = bound.local_addr().map_err(error)?;
    Ok((bound, local))
}

/// Tells of the changes of whoever else knows of workloads.
async fn pass_on(mut changes: watch::Receiver<u64>, state: Arc<State>) {
    while changes.changed().await.is_ok() {
        state.others_changed();
    }
}

/// A token is renewed at half of its life, as kubelet does at four fifths, and the roots when they change; clients read both files
/// at each connect.
async fn renew_files(ca: Arc<Ca>, files: Arc<Mutex<Vec<TokenFile>>>) {
    let mut told = ca.told();
    let mut tokens = time::interval(Tokens::DEFAULT_TTL / 2);
    tokens.tick().await;
    loop {
        let tokens_are_due = tokio::select! {
            _ = told.changed() => false,
            _ = tokens.tick() => true,
        };
        told.mark_unchanged();
        let due = files.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for file in due {
            let written = if tokens_are_due { file.write(ca.tokens()) } else { file.write_roots(&ca.root_pem()) };
            if let Err(error) = written {
                tracing::warn!(%error, "a file of a workload could not be renewed");
            }
        }
    }
}

/// Is this an address of this machine alone? For IPv6-mapped IPv4 addresses too.
pub(crate) fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}
