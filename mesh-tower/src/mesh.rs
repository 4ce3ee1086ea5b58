//! [`Mesh`]: one process's membership, from where its configuration comes to the clients and servers made of it.
//!
//! The only file that names the crate speaking with control planes: it starts that crate's drivers, feeds what they
//! publish into [`Live`] and [`LiveIdentity`], and hands their functions to telemetry. Everything it starts ends when
//! the last clone is dropped.

use std::{fmt, net::SocketAddr, sync::Arc};
#[cfg(feature = "xds")]
use std::{path::PathBuf, time::Duration};

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
    client::{Client, Dialled as Asked},
    csds::csds_routes,
    dump::{Certificates, config_dump},
    lrs::Reporter,
    peer,
    profile::Profile,
    rpc,
    saved::{Keeper, Saved},
    translate::{self, Shape},
};
#[cfg(feature = "xds")]
use rustls_pki_types::CertificateDer;
use serde_json::Value;
use tokio::{net::ToSocketAddrs, sync::watch};

use crate::{
    admin::{Admin, Dump, Scraped},
    client::{GrpcClient, HttpClient},
    connect::Listener,
    error::{BoxError, Error},
    jwt::Tokens,
    live::Live,
    pool::Pool,
    server::{Ending, Gate, Handler, Role, Server, Tunnels, signalled},
    serving::Serving,
    side::SideCalls,
    telemetry::{PeerMetadata, Telemetry},
    tls::LiveIdentity,
    upkeep::Owned,
};
#[cfg(feature = "xds")]
use crate::{telemetry::CertificateGauges, tls::Identity};

mod bind;
mod builder;
mod error;
mod gateways;
mod handlers;
#[cfg(feature = "xds")]
mod named;
mod shown;
mod waiting;

use bind::bind;
pub use builder::Builder;
pub use error::MeshError;
pub use gateways::PortMap;

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
    scraped: Option<Scraped>,
    bundle: axum::Router,
    gate: Option<Gate>,
    in_order: Ending,
    serving: Serving,
    ending: watch::Sender<bool>,
    unwell: watch::Sender<bool>,
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

    /// A client of one gRPC service, for a generated client; see [`HttpClient::grpc`].
    ///
    /// # Errors
    ///
    /// `target` is not `host`, `host:port` or an `xds:` target of them, or names an authority that is not known.
    pub fn grpc(&self, target: &str) -> Result<GrpcClient<Pool>, Error> {
        self.shared.http.grpc(target)
    }

    /// Serves on `address` until SIGTERM, ctrl-c or [`shutdown`](Self::shutdown), then drains.
    ///
    /// Who may call, and whether it takes mutual TLS, is the configuration of that port; where there is none, mutual TLS.
    /// Callers are accepted once the first configuration is there and, where one is needed, the certificate.
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
        let _served = self.shared.serving.enter(port);
        if self.may_serve(self.shared.secure).await {
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
    pub async fn serve_listener<S, B>(&self, listener: impl Listener, handler: S) -> Result<(), MeshError>
    where
        S: Handler<B>,
        B: HttpBody<Error: Into<BoxError>, Data: Send> + Send + 'static,
    {
        let port = listener.local_addr().map_err(MeshError::Listen)?.port();
        let _served = self.shared.serving.enter(port);
        if self.may_serve(self.shared.secure).await {
            self.run(listener, handler, Role::Workload(port)).await;
        }
        Ok(())
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

    async fn run<S, B>(&self, listener: impl Listener, handler: S, role: Role)
    where
        S: Handler<B>,
        B: HttpBody<Error: Into<BoxError>, Data: Send> + Send + 'static,
    {
        self.run_until(listener, handler, role, self.shared.ending.subscribe()).await;
    }

    async fn run_until<S, B>(&self, listener: impl Listener, handler: S, role: Role, end: watch::Receiver<bool>)
    where
        S: Handler<B>,
        B: HttpBody<Error: Into<BoxError>, Data: Send> + Send + 'static,
    {
        let shared = &self.shared;
        let side = SideCalls::new(Arc::clone(&shared.live), shared.http.leaf(), shared.http.source());
        let server = Server {
            live: Arc::clone(&shared.live),
            identity: shared.identity.clone(),
            secure: shared.secure,
            telemetry: shared.telemetry.clone(),
            propagated: Arc::clone(&shared.propagated),
            role,
            service: Arc::clone(&shared.service),
            gate: shared.gate.clone(),
            ending: shared.in_order,
            tunnels: Tunnels::default(),
            #[cfg(feature = "xds")]
            check_codec: Some(rpc::ext_authz::CODEC),
            #[cfg(not(feature = "xds"))]
            check_codec: None,
            #[cfg(feature = "xds")]
            limit_codec: Some(rpc::rate_limit::CODEC),
            #[cfg(not(feature = "xds"))]
            limit_codec: None,
            clock: shared.http.source(),
            pool: shared.http.leaf(),
            tokens: Arc::new(Tokens::new(side.clone(), shared.http.source())),
            side,
        };
        let mut serving = std::pin::pin!(server.run(listener, handler, end));
        tokio::select! {
            () = serving.as_mut() => {}
            () = signalled() => {
                self.shutdown();
                serving.await;
            }
        }
    }
}

/// Where configuration comes from.
#[derive(Debug, Default)]
enum Origin {
    #[default]
    Nowhere,
    Off,
    Fixed(Box<Config>),
    File(std::path::PathBuf),
    #[cfg(feature = "xds")]
    Xds(Arc<Bootstrap>),
}

impl Origin {
    #[cfg(feature = "xds")]
    fn discover(variable: &impl Fn(&str) -> Option<String>) -> Result<Self, MeshError> {
        match Bootstrap::from_variables(variable) {
            Ok(bootstrap) => Ok(Self::Xds(Arc::new(bootstrap))),
            Err(BootstrapError::NotConfigured) => Err(MeshError::NoSource),
            Err(error) => Err(MeshError::Bootstrap(error.to_string())),
        }
    }

    #[cfg(not(feature = "xds"))]
    fn discover(_: &impl Fn(&str) -> Option<String>) -> Result<Self, MeshError> {
        Err(MeshError::NoSource)
    }
}

#[cfg(feature = "xds")]
impl Builder {
    /// With a control plane.
    #[must_use]
    pub fn bootstrap(mut self, bootstrap: Bootstrap) -> Self {
        self.origin = Origin::Xds(Arc::new(bootstrap));
        self
    }
}

/// What becomes of a process by where its configuration comes from.
struct Joined {
    live: Arc<Live>,
    workload: Workload,
    metadata: Option<PeerMetadata>,
    secure: bool,
    principal: Option<String>,
    status: Page,
    dump: Dump,
    pages: Vec<(&'static str, Page)>,
    /// More services of the admin port.
    services: axum::Router,
    tasks: Vec<Owned>,
}

/// A page of the admin port, made anew for each who looks.
pub(crate) type Page = Arc<dyn Fn() -> Value + Send + Sync>;

impl Joined {
    /// Without a control plane.
    fn alone(live: Live, workload: Option<Workload>) -> Self {
        Self {
            live: Arc::new(live),
            workload: workload.unwrap_or_default(),
            metadata: None,
            secure: false,
            principal: None,
            status: Arc::new(|| Value::Null),
            #[cfg(feature = "xds")]
            dump: envoy_dump(None),
            #[cfg(not(feature = "xds"))]
            dump: Arc::new(
                |config: &Config, _: Option<&crate::tls::Identity>, _: &str| serde_json::json!({ "config": config }),
            ),
            pages: Vec::new(),
            services: axum::Router::new(),
            tasks: Vec::new(),
        }
    }
}

/// Tells the control plane which version of what this is, and where the admin port is, so that a console on the same machine can look there.
///
/// What is counted is the process's, whichever admin port is asked. So the first is told for all, and several meshes of one
/// bootstrap still share their client.
#[cfg(feature = "xds")]
fn announced(mut bootstrap: Arc<Bootstrap>, listener: Option<&tokio::net::TcpListener>) -> Arc<Bootstrap> {
    static FIRST: std::sync::OnceLock<SocketAddr> = std::sync::OnceLock::new();
    let address = listener.and_then(|listener| listener.local_addr().ok());
    let first = address.map(|address| *FIRST.get_or_init(|| address)).or_else(|| FIRST.get().copied());
    let metadata = &mut Arc::make_mut(&mut bootstrap).node.metadata;
    metadata.insert(mesh_xds::node::VERSION.to_owned(), Value::String(env!("CARGO_PKG_VERSION").to_owned()));
    metadata.insert(mesh_xds::node::FEATURES_KEY.to_owned(), Value::String(mesh_xds::node::FEATURES.join(",")));
    if let Some(address) = first {
        metadata.insert(mesh_xds::node::ADMIN.to_owned(), Value::String(address.to_string()));
    }
    bootstrap
}

/// Starts speaking with a control plane; a certificate is asked for where there is a CA and `wants_identity`.
#[cfg(feature = "xds")]
fn join(
    bootstrap: Arc<Bootstrap>,
    workload: Option<Workload>,
    identity: LiveIdentity,
    wants_identity: bool,
    saved: Option<(PathBuf, Duration)>,
) -> Joined {
    let client = Client::shared(Arc::clone(&bootstrap));
    let live = Arc::new(match bootstrap.profile {
        Profile::Envoy => Live::new(),
        Profile::Grpc => named::live(&bootstrap, &client),
    });
    let workload = workload.unwrap_or_else(|| bootstrap.node.workload());
    let metadata = own_metadata(&bootstrap.node.id, &workload);
    let secure = bootstrap.identity_origin().is_some() && wants_identity;
    for ignored in &bootstrap.ignored {
        tracing::warn!(target: "mesh", %ignored, "this part of the bootstrap has no effect");
    }
    if wants_identity && !secure {
        tracing::warn!(
            target: "mesh",
            "this process has no identity, so it serves in plaintext and calls in plaintext: its bootstrap names no \
             certificate authority that is reached over TLS with a token"
        );
    }
    let principal = secure.then(|| bootstrap.node.identity());
    let mut tasks = Vec::new();
    let dump = envoy_dump(Some(bootstrap.node.clone()));
    let saved = saved.map(|(path, max_age)| Saved::new(path, max_age, &bootstrap));
    if secure {
        let source = CertSource::start_with(Arc::clone(&bootstrap), client.told());
        tasks.push(Owned::spawn(follow_identity(source, identity)));
    }
    let services = csds_routes(&bootstrap.node, &client).into_axum_router();
    let asked = Arc::downgrade(&client);
    let answers = move || asked.upgrade().is_some_and(|client| client.status().connected_since.is_some());
    let keeper = saved.map(|saved| Arc::new(Keeper::start(saved, client.config(), answers)));
    let configs = keeper.as_ref().map_or_else(|| client.config(), |keeper| keeper.config());
    // Whoever else holds these, such as the admin port, may be left out.
    let (followed, held) = (Arc::clone(&live), (Arc::clone(&client), keeper.clone()));
    tasks.push(Owned::spawn(async move {
        follow_config(configs, followed).await;
        drop(held);
    }));
    tasks.push(Owned::spawn(report_loads(Arc::clone(&bootstrap), Arc::clone(&live))));
    let told = Arc::clone(&client);
    let status: Page = Arc::new(move || {
        let mut status = serde_json::to_value(&*told.status()).unwrap_or_default();
        if let (Some(keeper), Value::Object(status)) = (&keeper, &mut status) {
            status.insert("saved".to_owned(), serde_json::to_value(keeper.standing()).unwrap_or_default());
        }
        status
    });
    let fields: Page = Arc::new(move || serde_json::to_value(client.resources().describe()).unwrap_or_default());
    let pages = vec![("/fields", fields), ("/control_plane", Arc::clone(&status))];
    Joined { live, workload, metadata, secure, principal, status, dump, pages, services, tasks }
}

/// The configuration in force as Envoy's admin port would show it.
#[cfg(feature = "xds")]
fn envoy_dump(node: Option<mesh_xds::node::Node>) -> Dump {
    let is_gateway = node.as_ref().is_some_and(|node| node.id.starts_with("router~"));
    let shape = if is_gateway { Shape::Gateway } else { Shape::Sidecar };
    Arc::new(move |config: &Config, identity: Option<&Identity>, updated: &str| {
        let ders = |of: &'_ [CertificateDer<'static>]| -> Vec<Vec<u8>> { of.iter().map(|it| it.to_vec()).collect() };
        let owned = identity.map(|identity| (ders(identity.chain()), ders(identity.roots())));
        let certificates = owned.as_ref().map(|(chain, roots)| Certificates {
            chain: chain.iter().map(Vec::as_slice).collect(),
            roots: roots.iter().map(Vec::as_slice).collect(),
        });
        config_dump(&translate::encode(config, shape), node.as_ref(), certificates.as_ref(), updated)
    })
}

/// Puts each configuration of the control plane in force. It is compiled beside the runtime's workers: a large one holds up no
/// request, and a fault of ours in it ends neither the process nor what comes after it.
#[cfg(feature = "xds")]
async fn follow_config(mut configs: watch::Receiver<Option<Arc<Config>>>, live: Arc<Live>) {
    loop {
        let config = configs.borrow_and_update().clone();
        if let Some(config) = config {
            let taking = Arc::clone(&live);
            let why = match tokio::task::spawn_blocking(move || taking.update(&config)).await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(error) => Some(error.to_string()),
            };
            if let Some(error) = why {
                tracing::error!(target: "mesh", %error, "the configuration cannot be used; the one before stays in force");
            }
        }
        if configs.changed().await.is_err() {
            return;
        }
    }
}

/// Reports loads where the control plane asks for them, from the first configuration on.
#[cfg(feature = "xds")]
async fn report_loads(bootstrap: Arc<Bootstrap>, live: Arc<Live>) {
    let first = loop {
        if let Some(snapshot) = live.ready(None).await {
            break Arc::clone(snapshot.ledgers());
        }
    };
    drop(live);
    let _reporter = Reporter::start(&bootstrap, &first);
    std::future::pending::<()>().await;
}

/// Puts each certificate in force, and what peers are to be judged by.
#[cfg(feature = "xds")]
async fn follow_identity(source: CertSource, live: LiveIdentity) {
    let (mut watch, mut told) = (source.watch(), CertificateGauges::default());
    let mut shown = None;
    while let Some(now) = watch.next().await {
        if let Some(Err(error)) = now.trust.clone().map(|trust| live.replace_trust(trust)) {
            tracing::error!(target: "mesh", %error, "what is to be trusted cannot be used; what was before stays");
        }
        let validity = now.identity.as_ref().map(|it| (it.not_before, it.not_after));
        told.tell(validity, now.standing.obtained, now.standing.failures);
        if shown.as_ref() == Some(&now.identity) {
            continue;
        }
        match &now.identity {
            Some(it) => match Identity::from_der(it.chain.clone(), it.key.clone_key(), now.own_roots(it)) {
                Ok(own) => live.replace(own.with_validity(it.not_before, it.not_after)),
                Err(error) => {
                    tracing::error!(target: "mesh", %error, "the certificate cannot be used; the one before stays")
                }
            },
            // Expired and not renewed: from now on neither shown nor served with.
            None => live.withdraw(),
        }
        shown = Some(now.identity);
    }
}

#[cfg(feature = "xds")]
fn own_metadata(node: &str, workload: &Workload) -> Option<PeerMetadata> {
    let id = http::HeaderValue::from_str(node).ok()?;
    let own = http::HeaderValue::from_str(&peer::encode(workload)).ok()?;
    Some(PeerMetadata { id, own, decode: peer::decode })
}
