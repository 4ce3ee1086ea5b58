//! [`Mesh`]: one process's membership, from where its configuration comes to the clients and servers made of it.
//!
//! The only file that names the crate speaking with control planes: it starts that crate's drivers, feeds what they
//! publish into [`Live`] and [`LiveIdentity`], and hands their functions to telemetry. Everything it starts ends when
//! the last clone is dropped.

use std::{fmt, io, net::SocketAddr, sync::Arc};

use http::HeaderName;
use http_body::Body as HttpBody;
use mesh_core::{
    config::{Config, ServiceName, Workload},
    snapshot::Snapshot,
};
#[cfg(feature = "xds")]
use mesh_xds::{
    bootstrap::{Bootstrap, BootstrapError},
    certs::CertSource,
    client::Client,
    peer,
};
use serde_json::Value;
use tokio::{
    net::{TcpListener, TcpSocket, ToSocketAddrs, lookup_host},
    sync::watch,
};

use crate::{
    admin::{Admin, Shown},
    client::{GrpcClient, HttpClient},
    context::Context,
    error::{BoxError, Error},
    live::Live,
    pool::Pool,
    server::{Handler, Role, Server, signalled},
    source::Source,
    telemetry::{AccessLog, Peer, PeerMetadata, Spans, Telemetry},
    tls::{ClientTls, Identity, LiveIdentity},
    upkeep::{Owned, upkeep},
};

/// A process's membership of the mesh: makes clients, and serves. Clones share everything; the last one ends it.
///
/// ```no_run
/// # async fn example(router: axum::Router) -> Result<(), Box<dyn std::error::Error>> {
/// let mesh = mesh_tower::Mesh::from_env().await?;
/// let reviews = mesh.http();
/// let response = reviews.get("http://reviews:9080/reviews/0").await?;
/// mesh.serve("0.0.0.0:9080", router).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Mesh {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    live: Arc<Live>,
    identity: LiveIdentity,
    secure: bool,
    telemetry: Telemetry,
    http: HttpClient<Pool>,
    propagated: Arc<[HeaderName]>,
    service: Arc<ServiceName>,
    admin: Option<Admin>,
    ending: watch::Sender<bool>,
    _tasks: Vec<Owned>,
}

impl Mesh {
    /// As the environment says; see [`Builder::from_variables`]. Does not wait for the control plane: requests do.
    ///
    /// # Errors
    ///
    /// Nothing says where configuration comes from (the error lists what was tried), or something says it wrongly.
    pub async fn from_env() -> Result<Self, MeshError> {
        Builder::from_variables(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))?.build().await
    }

    /// In code.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// A client for any `http::Request`. Cheap.
    pub fn http(&self) -> HttpClient<Pool> {
        self.shared.http.clone()
    }

    /// A client of one gRPC service, for a generated client.
    ///
    /// # Errors
    ///
    /// `authority` is not `host` or `host:port`.
    pub fn grpc(&self, authority: &str) -> Result<GrpcClient<Pool>, Error> {
        self.shared.http.grpc(authority)
    }

    /// Serves on `address` until SIGTERM, ctrl-c or [`shutdown`](Self::shutdown), then drains.
    ///
    /// Who may call, and whether it takes mutual TLS, is the configuration of that port; until there is any, mutual TLS.
    /// Where a certificate is needed, callers are accepted once it is there.
    ///
    /// # Errors
    ///
    /// The address cannot be bound.
    pub async fn serve<S, B>(&self, address: impl ToSocketAddrs + fmt::Debug, handler: S) -> Result<(), MeshError>
    where
        S: Handler<B>,
        B: HttpBody<Error: Into<BoxError>, Data: Send> + Send + 'static,
    {
        let socket = bind(address).await?;
        let port = socket.local_addr().map_err(MeshError::Listen)?.port();
        if self.identity_in_time().await {
            let listener = socket.listen(1024).map_err(MeshError::Listen)?;
            self.run(listener, handler, Role::Workload(port)).await;
        }
        Ok(())
    }

    /// As [`serve`](Self::serve), on a listener of your own.
    ///
    /// # Errors
    ///
    /// The listener has no address.
    pub async fn serve_listener<S, B>(&self, listener: TcpListener, handler: S) -> Result<(), MeshError>
    where
        S: Handler<B>,
        B: HttpBody<Error: Into<BoxError>, Data: Send> + Send + 'static,
    {
        let port = listener.local_addr().map_err(MeshError::Listen)?.port();
        if self.identity_in_time().await {
            self.run(listener, handler, Role::Workload(port)).await;
        }
        Ok(())
    }

    /// Lets the world outside in, in plaintext: requests to `address` go where the routes of the gateway's listener with
    /// `listener_port` lead. What they do not list is answered with 404.
    ///
    /// # Errors
    ///
    /// The address cannot be bound.
    pub async fn gateway(&self, address: impl ToSocketAddrs + fmt::Debug, listener_port: u16) -> Result<(), MeshError> {
        let listener = bind(address).await?.listen(1024).map_err(MeshError::Listen)?;
        self.gateway_listener(listener, listener_port).await;
        Ok(())
    }

    /// As [`gateway`](Self::gateway), on a listener of your own.
    pub async fn gateway_listener(&self, listener: TcpListener, listener_port: u16) {
        let client = self.http().on_port(listener_port);
        self.run(listener, client, Role::Gateway).await;
    }

    /// Ends serving: servers of this mesh drain and return.
    pub fn shutdown(&self) {
        self.shared.ending.send_replace(true);
    }

    /// Where the admin port is, unless it is off.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.shared.admin.as_ref().map(Admin::address)
    }

    /// The configuration in force, once there is one.
    pub fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.shared.live.load()
    }

    /// The configuration, to be changed: for those who bring their own control plane.
    pub fn live(&self) -> &Arc<Live> {
        &self.shared.live
    }

    /// Our certificate, as it changes.
    pub fn identity(&self) -> &LiveIdentity {
        &self.shared.identity
    }

    /// Waits for the first configuration and, where one is needed, the first certificate.
    pub async fn ready(&self) {
        while self.shared.live.ready(None).await.is_none() {}
        if self.shared.secure {
            self.shared.identity.ready().await;
        }
    }

    /// Waits for the certificate, where one is needed; false when serving ended before it came.
    async fn identity_in_time(&self) -> bool {
        if !self.shared.secure || self.shared.identity.load().is_some() {
            return true;
        }
        tracing::info!(target: "mesh::server", "waiting for a certificate before accepting callers");
        let mut ending = self.shared.ending.subscribe();
        tokio::select! {
            _ = self.shared.identity.ready() => true,
            _ = ending.wait_for(|ending| *ending) => false,
            () = signalled() => {
                self.shutdown();
                false
            }
        }
    }

    async fn run<S, B>(&self, listener: TcpListener, handler: S, role: Role)
    where
        S: Handler<B>,
        B: HttpBody<Error: Into<BoxError>, Data: Send> + Send + 'static,
    {
        let shared = &self.shared;
        let server = Server {
            live: Arc::clone(&shared.live),
            identity: shared.identity.clone(),
            secure: shared.secure,
            telemetry: shared.telemetry.clone(),
            propagated: Arc::clone(&shared.propagated),
            role,
            service: Arc::clone(&shared.service),
        };
        let mut serving = std::pin::pin!(server.run(listener, handler, shared.ending.subscribe()));
        tokio::select! {
            () = serving.as_mut() => {}
            () = signalled() => {
                self.shutdown();
                serving.await;
            }
        }
    }
}

/// Makes a [`Mesh`].
#[derive(Debug, Default)]
pub struct Builder {
    origin: Origin,
    workload: Option<Workload>,
    identity: Option<Identity>,
    propagated: Option<Vec<HeaderName>>,
    admin: Option<SocketAddr>,
    log: AccessLog,
    spans: bool,
}

/// Where configuration comes from.
#[derive(Debug, Default)]
enum Origin {
    #[default]
    Nowhere,
    Off,
    Fixed(Box<Config>),
    #[cfg(feature = "xds")]
    Xds(Arc<Bootstrap>),
}

impl Builder {
    /// As the variables say, read through `variable`:
    ///
    /// | variable | meaning |
    /// |---|---|
    /// | `MESH_MODE` | `off`: no mesh, every request goes to the host it names |
    /// | `GRPC_XDS_BOOTSTRAP`, `GRPC_XDS_BOOTSTRAP_CONFIG` | the control plane: a file, or its text |
    /// | `MESH_PROPAGATE_HEADERS` | names, by commas, of headers that travel; default `end-user,x-request-id` |
    /// | `MESH_ADMIN_ADDR` | the admin port, default `127.0.0.1:0` (any free one, logged); `off` |
    /// | `MESH_ACCESS_LOG` | `text` or `json`: a line per request on standard output |
    /// | `OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_*` | where spans go |
    ///
    /// # Errors
    ///
    /// No source of configuration, or a variable that cannot be understood.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, MeshError> {
        let wrong = |name: &'static str, message: String| MeshError::Variable { name, message };
        let mode = variable("MESH_MODE");
        let origin = match mode.as_deref() {
            Some("off") => Origin::Off,
            None | Some("on") => Self::discover(&variable)?,
            Some(other) => return Err(wrong("MESH_MODE", format!("is {other:?}; it may be \"off\" or \"on\""))),
        };
        let log = AccessLog::parse(variable("MESH_ACCESS_LOG").as_deref())
            .map_err(|_| wrong("MESH_ACCESS_LOG", "may be \"text\", \"json\" or \"off\"".to_owned()))?;
        let admin = match variable("MESH_ADMIN_ADDR").as_deref() {
            Some("off") => None,
            None => Some(SocketAddr::from(([127, 0, 0, 1], 0))),
            Some(text) => Some(text.parse().map_err(|_| {
                wrong(
                    "MESH_ADMIN_ADDR",
                    format!("is {text:?}; it may be an address such as 127.0.0.1:15000, or \"off\""),
                )
            })?),
        };
        let propagated = match variable("MESH_PROPAGATE_HEADERS") {
            None => None,
            Some(list) => {
                let names = list.split(',').map(str::trim).filter(|name| !name.is_empty());
                let names = names.map(|name| {
                    let lower = name.to_ascii_lowercase();
                    HeaderName::try_from(lower)
                        .map_err(|_| wrong("MESH_PROPAGATE_HEADERS", format!("{name:?} is no header name")))
                });
                Some(names.collect::<Result<_, _>>()?)
            }
        };
        Ok(Self { origin, workload: None, identity: None, propagated, admin, log, spans: true })
    }

    #[cfg(feature = "xds")]
    fn discover(variable: &impl Fn(&str) -> Option<String>) -> Result<Origin, MeshError> {
        match Bootstrap::from_variables(variable) {
            Ok(bootstrap) => Ok(Origin::Xds(Arc::new(bootstrap))),
            Err(BootstrapError::NotConfigured) => Err(MeshError::NoSource),
            Err(error) => Err(MeshError::Bootstrap(error.to_string())),
        }
    }

    #[cfg(not(feature = "xds"))]
    fn discover(_: &impl Fn(&str) -> Option<String>) -> Result<Origin, MeshError> {
        Err(MeshError::NoSource)
    }

    /// With this configuration, which stays until changed through [`Mesh::live`].
    #[must_use]
    pub fn config(mut self, config: Config) -> Self {
        self.origin = Origin::Fixed(Box::new(config));
        self
    }

    /// No mesh: every request goes to the host it names, found by DNS, in plaintext.
    #[must_use]
    pub fn off(mut self) -> Self {
        self.origin = Origin::Off;
        self
    }

    /// With a control plane.
    #[cfg(feature = "xds")]
    #[must_use]
    pub fn bootstrap(mut self, bootstrap: Bootstrap) -> Self {
        self.origin = Origin::Xds(Arc::new(bootstrap));
        self
    }

    /// Who this process is, for telemetry; a control plane's bootstrap says it otherwise.
    #[must_use]
    pub fn workload(mut self, workload: Workload) -> Self {
        self.workload = Some(workload);
        self
    }

    /// With a certificate of your own: mutual TLS without a control plane.
    #[must_use]
    pub fn identity(mut self, identity: Identity) -> Self {
        self.identity = Some(identity);
        self
    }

    /// The headers that travel from requests served to requests made meanwhile, in place of [`Context::PROPAGATED`].
    #[must_use]
    pub fn propagate_headers(mut self, names: impl IntoIterator<Item = HeaderName>) -> Self {
        self.propagated = Some(names.into_iter().collect());
        self
    }

    /// With an admin port, on a loopback address.
    #[must_use]
    pub fn admin_addr(mut self, address: SocketAddr) -> Self {
        self.admin = Some(address);
        self
    }

    /// With a line per request on standard output.
    #[must_use]
    pub fn access_log(mut self, log: AccessLog) -> Self {
        self.log = log;
        self
    }

    /// Starts it, within a tokio runtime.
    ///
    /// # Errors
    ///
    /// No source of configuration, a configuration that does not compile, or an admin port that cannot be opened.
    pub async fn build(self) -> Result<Mesh, MeshError> {
        let identity = LiveIdentity::default();
        let source = Source::system();
        let (ending, is_ending) = watch::channel(false);
        let mut secure = self.identity.is_some();
        let mut principal = self.identity.as_ref().map(|identity| identity.id().to_string());
        if let Some(own) = self.identity {
            identity.replace(own);
        }
        let mut workload = self.workload;
        let mut metadata = None;
        let mut tasks = Vec::new();
        let mut status: Arc<dyn Fn() -> Value + Send + Sync> = Arc::new(|| Value::Null);
        let live = match self.origin {
            Origin::Nowhere => return Err(MeshError::NoSource),
            Origin::Off => {
                tracing::warn!(target: "mesh", "the mesh is off: requests go where DNS says, in plaintext, without policy");
                Arc::new(Live::off())
            }
            Origin::Fixed(config) => {
                let live = Live::new();
                live.update(&config).map_err(|error| MeshError::Config(error.to_string()))?;
                Arc::new(live)
            }
            #[cfg(feature = "xds")]
            Origin::Xds(bootstrap) => {
                let live = Arc::new(Live::new());
                let node = &bootstrap.node;
                let own = workload.get_or_insert_with(|| node.workload());
                metadata = own_metadata(&node.id, own);
                if bootstrap.ca.is_some() && !secure {
                    secure = true;
                    principal = Some(node.identity());
                    tasks.push(Owned::spawn(follow_identity(
                        CertSource::start(Arc::clone(&bootstrap)),
                        identity.clone(),
                    )));
                }
                let client = Arc::new(Client::start(bootstrap));
                tasks.push(Owned::spawn(follow_config(Arc::clone(&client), Arc::clone(&live))));
                status = Arc::new(move || serde_json::to_value(&*client.status()).unwrap_or_default());
                live
            }
        };
        let workload = workload.unwrap_or_default();
        let service = service_of(&workload);
        let spans = if self.spans { Spans::from_env(&workload.canonical_name) } else { Spans::none() };
        let local = Peer::new(workload, principal.map(Into::into));
        let telemetry = Telemetry::with(local, metadata, spans, self.log);
        let pool = Pool::new(ClientTls::new(identity.clone()), telemetry.clone(), source.clone());
        let http = HttpClient::new(Arc::clone(&live), telemetry.clone(), pool.clone());
        tasks.push(Owned::spawn(upkeep(Arc::downgrade(&live), pool, source.clone())));
        let admin = match self.admin {
            None => None,
            Some(address) => {
                let shown = Shown {
                    live: Arc::clone(&live),
                    identity: identity.clone(),
                    secure,
                    source,
                    status,
                    ending: is_ending,
                };
                let admin = Admin::open(address, shown).await.map_err(|error| MeshError::Admin { address, error })?;
                tracing::info!(target: "mesh::admin", address = %admin.address(), "admin port open");
                Some(admin)
            }
        };
        let propagated = self.propagated.unwrap_or_else(|| Context::PROPAGATED.to_vec()).into();
        let shared = Shared {
            live,
            identity,
            secure,
            telemetry,
            http,
            propagated,
            service: Arc::new(service),
            admin,
            ending,
            _tasks: tasks,
        };
        Ok(Mesh { shared: Arc::new(shared) })
    }
}

/// Puts each configuration of the control plane in force.
#[cfg(feature = "xds")]
async fn follow_config(client: Arc<Client>, live: Arc<Live>) {
    let mut configs = client.config();
    loop {
        let config = configs.borrow_and_update().clone();
        if let Some(config) = config
            && let Err(error) = live.update(&config)
        {
            tracing::error!(target: "mesh", %error, "the configuration cannot be used; the one before stays in force");
        }
        if configs.changed().await.is_err() {
            return;
        }
    }
}

/// Puts each certificate in force.
#[cfg(feature = "xds")]
async fn follow_identity(source: CertSource, live: LiveIdentity) {
    let mut identities = source.identity();
    loop {
        let identity = identities.borrow_and_update().clone();
        if let Some(identity) = identity {
            match Identity::from_der(identity.chain.clone(), identity.key.clone_key(), identity.roots.clone()) {
                Ok(own) => live.replace(own.with_validity(identity.not_before, identity.not_after)),
                Err(error) => {
                    tracing::error!(target: "mesh", %error, "the certificate cannot be used; the one before stays in force");
                }
            }
        }
        if identities.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(feature = "xds")]
fn own_metadata(node: &str, workload: &Workload) -> Option<PeerMetadata> {
    let id = http::HeaderValue::from_str(node).ok()?;
    let own = http::HeaderValue::from_str(&peer::encode(workload)).ok()?;
    Some(PeerMetadata { id, own, decode: peer::decode })
}

/// The service a server's requests are counted under: the one its workloads form, by Kubernetes' naming.
fn service_of(workload: &Workload) -> ServiceName {
    if workload.canonical_name.is_empty() {
        return ServiceName::default();
    }
    let host = format!("{}.{}.svc.cluster.local", workload.canonical_name, workload.namespace);
    ServiceName { host: host.into(), name: workload.canonical_name.clone(), namespace: workload.namespace.clone() }
}

/// Bound, but not listening: a taken port is told at once, and callers are not kept waiting for a certificate.
async fn bind(address: impl ToSocketAddrs + fmt::Debug) -> Result<TcpSocket, MeshError> {
    let name = format!("{address:?}");
    let failed = |error: io::Error| MeshError::Bind { address: name.trim_matches('"').to_owned(), error };
    let mut last = io::Error::new(io::ErrorKind::InvalidInput, "it names no address");
    for address in lookup_host(address).await.map_err(&failed)? {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.map_err(&failed)?;
        // A restarted server takes its port although connections of its predecessor are still closing.
        #[cfg(unix)]
        socket.set_reuseaddr(true).map_err(&failed)?;
        match socket.bind(address) {
            Ok(()) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(failed(last))
}

/// Why there is no [`Mesh`], or it does not serve.
#[derive(Debug)]
#[non_exhaustive]
pub enum MeshError {
    /// Nothing says where configuration comes from.
    NoSource,
    /// The bootstrap of the control plane cannot be used.
    Bootstrap(String),
    /// An environment variable cannot be understood.
    Variable {
        /// Which.
        name: &'static str,
        /// What is wrong with it, and what it may be.
        message: String,
    },
    /// The configuration given in code does not compile.
    Config(String),
    /// The admin port cannot be opened.
    Admin {
        /// Where.
        address: SocketAddr,
        /// Why.
        error: io::Error,
    },
    /// An address cannot be served on.
    Bind {
        /// Which.
        address: String,
        /// Why.
        error: io::Error,
    },
    /// A listener failed.
    Listen(io::Error),
}

impl fmt::Display for MeshError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSource => f.write_str(
                "nothing says where the mesh's configuration comes from. Tried, in this order:\n  \
                 in code: neither config, bootstrap nor off was called on the builder\n  \
                 MESH_MODE: not \"off\" (no mesh, requests go where DNS says)\n  \
                 GRPC_XDS_BOOTSTRAP: not set (the path of a bootstrap file, which names the control plane)\n  \
                 GRPC_XDS_BOOTSTRAP_CONFIG: not set (the text of one)",
            ),
            Self::Bootstrap(message) => f.write_str(message),
            Self::Variable { name, message } => write!(f, "{name} {message}"),
            Self::Config(message) => write!(f, "the configuration cannot be used: {message}"),
            Self::Admin { address, error } => {
                write!(
                    f,
                    "the admin port {address} cannot be opened: {error}; set MESH_ADMIN_ADDR to another, or to off"
                )
            }
            Self::Bind { address, error } => write!(f, "cannot serve on {address}: {error}"),
            Self::Listen(error) => write!(f, "cannot listen: {error}"),
        }
    }
}

impl std::error::Error for MeshError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Admin { error, .. } | Self::Bind { error, .. } | Self::Listen(error) => Some(error),
            _ => None,
        }
    }
}
