//! How a [`Mesh`] is made: what the environment or code says of it, and the parts put together.

use std::{fmt, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use http::HeaderName;
use mesh_core::{
    config::{Config, ServiceName, Workload},
    switches::Feature,
};
use tokio::sync::watch;

use super::{Joined, Mesh, MeshError, Origin, Shared};
#[cfg(feature = "xds")]
use super::{announced, join, rpc};
use crate::{
    admin::{Admin, LogLevels, Scraped, Shown},
    client::HttpClient,
    connect::{Connector, System},
    context::Context,
    dns::{Resolve, Resolver, SystemResolver},
    file::ConfigFile,
    live::Live,
    names,
    pool::Pool,
    server::{Ending, Gate, Report, ServingState},
    serving::Serving,
    source::Source,
    telemetry::{AccessLog, LogSink, MetricProfiles, Peer, Spans, Telemetry},
    tls::{ClientTls, Identity, LiveIdentity},
    upkeep::{Owned, upkeep},
};

mod telling;

/// Makes a [`Mesh`].
#[derive(Debug, Default)]
pub struct Builder {
    pub(super) origin: Origin,
    workload: Option<Workload>,
    identity: Option<LiveIdentity>,
    propagated: Option<Vec<HeaderName>>,
    admin: Option<SocketAddr>,
    scraped: Option<SocketAddr>,
    log: AccessLog,
    sink: Option<LogSink>,
    profiles: MetricProfiles,
    spans: SpansTo,
    source: Option<Source>,
    connector: Option<Connection>,
    #[cfg_attr(not(feature = "xds"), allow(dead_code, reason = "without a control plane nothing is saved"))]
    saved: Option<(PathBuf, Duration)>,
    resolver: Resolution,
    gate: Option<Gate>,
    ending: Ending,
    report: Reporting,
    levels: Option<LogLevels>,
    off: Vec<Feature>,
}

/// Where spans go.
#[derive(Debug, Default)]
#[allow(clippy::large_enum_variant, reason = "there is one, for as long as a mesh is being made")]
enum SpansTo {
    #[default]
    Nowhere,
    /// Where the environment says.
    Environment,
    Given(Spans),
}

/// Who is told of servers' states.
#[derive(Default)]
struct Reporting(Option<Report>);

impl fmt::Debug for Reporting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Reporting").field(&self.0.is_some()).finish()
    }
}

/// How connections are made.
struct Connection(Arc<dyn Connector>);

/// How names are resolved.
struct Resolution(Arc<dyn Resolve>);

impl Default for Resolution {
    fn default() -> Self {
        Self(Arc::new(SystemResolver))
    }
}

impl fmt::Debug for Resolution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolution")
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connection")
    }
}

impl Builder {
    /// How old a saved configuration may be unless told otherwise: a day.
    pub const SAVED_MAX_AGE: Duration = Duration::from_secs(24 * 60 * 60);

    /// As the variables say, read through `variable`:
    ///
    /// | variable | meaning |
    /// |---|---|
    /// | `MESH_MODE` | `off`: no mesh, every request goes to the host it names |
    /// | `MESH_CONFIG_FILE` | a file that is the configuration, followed as it changes, in place of a control plane; see [`config_file`](Self::config_file) |
    /// | `GRPC_XDS_BOOTSTRAP`, `GRPC_XDS_BOOTSTRAP_CONFIG` | the control plane: a file, or its text |
    /// | `MESH_SAVED_CONFIG` | a file for the last good configuration, to start from when no control plane answers; see [`saved_config`](Self::saved_config) |
    /// | `MESH_SAVED_CONFIG_MAX_AGE` | how old it may be then, in seconds, default 86400 |
    /// | `MESH_DISABLE` | features that are off whatever the configuration says, by commas: `outlier_detection`, `circuit_breaking`, `health_checks`, `retries`, `hedging`, `mirroring`, `faults` |
    /// | `MESH_PROPAGATE_HEADERS` | names, by commas, of headers that travel; default `end-user,x-request-id` |
    /// | `MESH_ADMIN_ADDR` | the admin port, default `127.0.0.1:0` (any free one, logged); `off` |
    /// | `MESH_METRICS_ADDR` | a port with `/stats/prometheus` and `/metrics` alone, for a Prometheus on another machine: `0.0.0.0:15090`; none unless said |
    /// | `MESH_ACCESS_LOG` | `text` or `json`: a line per request on standard output |
    /// | `MESH_METRICS_PROFILE` | conventions of metrics, by commas: `istio` (the default), `otel`, `grpc`, with gRPC's labels `grpc.lb.locality`, `grpc.lb.backend_service` and `grpc.client.call.custom`; or `none` |
    /// | `OTEL_PROPAGATORS` | forms in which traces are sent on beside `traceparent` and those they came in: `b3`, `b3multi` |
    /// | `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, else `OTEL_EXPORTER_OTLP_ENDPOINT` | where spans go, over OTLP's gRPC; unset sends none. A feature: `otlp` |
    /// | `OTEL_TRACES_SAMPLER`, `OTEL_TRACES_SAMPLER_ARG` | which traces that begin here are kept, unless the control plane says; unset is all |
    /// | `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES` | what spans say of this process; the name is the workload's service unless set |
    /// | `OTEL_BSP_SCHEDULE_DELAY`, `OTEL_BSP_MAX_QUEUE_SIZE`, `OTEL_BSP_MAX_EXPORT_BATCH_SIZE` | how spans are gathered before they are sent: 5 s, 2048, 512 |
    /// | `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_EXPORTER_OTLP_TIMEOUT` | of the exporter, as OpenTelemetry has them |
    ///
    /// Those of OpenTelemetry are read from the **environment of the process**, whatever `variable` is, when the mesh is built: they are the
    /// exporter's, and one program has one. Leave them unset, or give [`spans`](Self::spans), to have it otherwise.
    ///
    /// # Errors
    ///
    /// No source of configuration, or a variable that cannot be understood.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, MeshError> {
        let wrong = |name: &'static str, message: String| MeshError::Variable { name, message };
        let mode = variable("MESH_MODE");
        let origin = match mode.as_deref() {
            Some("off") => Origin::Off,
            None | Some("on") => match variable("MESH_CONFIG_FILE") {
                Some(path) => Origin::File(path.into()),
                None => Origin::discover(&variable)?,
            },
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
        let scraped = variable("MESH_METRICS_ADDR").map(|text| {
            let wanted = format!("is {text:?}; it may be an address such as 0.0.0.0:15090");
            text.parse().map_err(|_| wrong("MESH_METRICS_ADDR", wanted))
        });
        let scraped = scraped.transpose()?;
        let profiles = variable("MESH_METRICS_PROFILE").map_or_else(|| Ok(MetricProfiles::default()), |it| it.parse());
        let profiles = profiles.map_err(|message| wrong("MESH_METRICS_PROFILE", message))?;
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
        let disabled = variable("MESH_DISABLE").unwrap_or_default();
        let disabled = disabled.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::parse);
        let off = disabled.collect::<Result<_, String>>().map_err(|message| wrong("MESH_DISABLE", message))?;
        let saved = match (variable("MESH_SAVED_CONFIG"), variable("MESH_SAVED_CONFIG_MAX_AGE")) {
            (Some(path), None) => Some((path.into(), Self::SAVED_MAX_AGE)),
            (Some(path), Some(seconds)) => match seconds.parse() {
                Ok(seconds) => Some((path.into(), Duration::from_secs(seconds))),
                Err(_) => {
                    return Err(wrong(
                        "MESH_SAVED_CONFIG_MAX_AGE",
                        format!("is {seconds:?}; it may be a number of seconds"),
                    ));
                }
            },
            (None, _) => None,
        };
        Ok(Self {
            origin,
            propagated,
            admin,
            scraped,
            log,
            profiles,
            saved,
            off,
            spans: SpansTo::Environment,
            ..Self::default()
        })
    }

    /// With this configuration, which stays until changed through [`Mesh::live`].
    #[must_use]
    pub fn config(mut self, config: Config) -> Self {
        self.origin = Origin::Fixed(Box::new(config));
        self
    }

    /// With the configuration in this file, the JSON of [`Config`], in place of a control plane. Each change of the file is put in
    /// force within a second; one that cannot be used changes nothing, and page `/config_file` of the admin port says why.
    #[must_use]
    pub fn config_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.origin = Origin::File(path.into());
        self
    }

    /// No mesh: every request goes to the host it names, found by DNS, in plaintext.
    #[must_use]
    pub fn off(mut self) -> Self {
        self.origin = Origin::Off;
        self
    }

    /// How long servers get to finish what is under way once serving ends; what is left then is cut off. 5 s unless said.
    ///
    /// Istio `terminationDrainDuration`.
    #[must_use]
    pub fn drain_time(mut self, drain: Duration) -> Self {
        self.ending.drain = drain;
        self
    }

    /// How long servers go on taking connections once serving ends, while their health says already that they do not serve:
    /// as long as it takes until nobody sends them anything. None unless said.
    #[must_use]
    pub fn linger(mut self, linger: Duration) -> Self {
        self.ending.linger = linger;
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
        self.identity = Some(LiveIdentity::new(identity));
        self
    }

    /// With a certificate and a trust that you keep fresh yourself: what you put into `identity` is in force at once.
    #[must_use]
    pub fn live_identity(mut self, identity: LiveIdentity) -> Self {
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

    /// With a clock and a seed of your own, in place of the process's: for simulations and replays.
    #[must_use]
    pub fn source(mut self, source: Source) -> Self {
        self.source = Some(source);
        self
    }

    /// With connections to endpoints made by `connector`, in place of the operating system's.
    #[must_use]
    pub fn connector(mut self, connector: impl Connector) -> Self {
        self.connector = Some(Connection(Arc::new(connector)));
        self
    }

    /// With names resolved by `resolver`, in place of the operating system's.
    #[must_use]
    pub fn resolver(mut self, resolver: impl Resolve) -> Self {
        self.resolver = Resolution(Arc::new(resolver));
        self
    }

    /// Works on at most `most` requests at once, over all its servers; as many more wait up to `patience` for their turn, and
    /// what is beyond is refused: 503 with flag `UO`, to a gRPC caller `UNAVAILABLE` with a pushback. Not bounded unless
    /// asked for.
    #[must_use]
    pub fn shed_load(mut self, most: usize, patience: Duration) -> Self {
        self.gate = Some(Gate::new(most, patience));
        self
    }

    /// Tells whether servers serve, by the address each listens on, where listeners of the control plane say so (gRPC's
    /// profile, gRFC A36): first once that is known, then whenever it changes.
    #[must_use]
    pub fn on_serving_state(mut self, report: impl Fn(SocketAddr, &ServingState) + Send + Sync + 'static) -> Self {
        self.report = Reporting(Some(Box::new(report)));
        self
    }

    /// Keeps the last good configuration of the control plane in this file, and starts from it when none answers within a
    /// second, unless it is older than `max_age`. The status on the admin port says then that what is in force is stale.
    /// The file is readable by its owner alone; keys and certificates are not in it.
    #[must_use]
    pub fn saved_config(mut self, path: impl Into<PathBuf>, max_age: Duration) -> Self {
        self.saved = Some((path.into(), max_age));
        self
    }

    /// Starts it, within a tokio runtime.
    ///
    /// # Errors
    ///
    /// No source of configuration, a configuration that does not compile, or an admin port that cannot be opened.
    pub async fn build(self) -> Result<Mesh, MeshError> {
        let has_own = self.identity.is_some();
        let identity = self.identity.unwrap_or_default();
        let source = self.source.unwrap_or_else(Source::system);
        let (ending, is_ending) = watch::channel(false);
        let unwell = watch::Sender::new(false);
        let principal = identity.load().map(|identity| identity.id().to_string());
        let address = self.admin;
        let refused =
            |error| MeshError::Admin { address: address.unwrap_or_else(|| ([127, 0, 0, 1], 0).into()), error };
        let listener = match address {
            Some(address) => Some(Admin::bind(address).await.map_err(refused)?),
            None => None,
        };
        let scraped = match self.scraped {
            Some(address) => Some(Scraped::open(address).await.map_err(|error| MeshError::Admin { address, error })?),
            None => None,
        };
        if let Some(scraped) = &scraped {
            tracing::info!(target: "mesh::admin", address = %scraped.address(), "port for metrics open");
        }
        let joined = match self.origin {
            Origin::Nowhere => return Err(MeshError::NoSource),
            Origin::Off => {
                tracing::warn!(target: "mesh", "the mesh is off: requests go where DNS says, in plaintext, without policy");
                Joined::alone(Live::off(), self.workload)
            }
            Origin::Fixed(config) => {
                let live = Live::new();
                live.update(&config).map_err(|error| MeshError::Config(error.to_string()))?;
                Joined::alone(live, self.workload)
            }
            Origin::File(path) => {
                let live = Live::new();
                let file = ConfigFile::open(&path, &live).await.map_err(MeshError::Config)?;
                let (mut joined, standing) = (Joined::alone(live, self.workload), file.standing());
                joined.status = Arc::new(standing);
                joined.pages.push(("/config_file", Arc::clone(&joined.status)));
                joined.tasks.push(Owned::spawn(file.follow(Arc::clone(&joined.live))));
                joined
            }
            #[cfg(feature = "xds")]
            Origin::Xds(bootstrap) => {
                join(announced(bootstrap, listener.as_ref()), self.workload, identity.clone(), !has_own, self.saved)
            }
        };
        for feature in self.off {
            tracing::warn!(target: "mesh", %feature, "this feature is switched off");
            joined.live.switch(feature, true).map_err(|error| MeshError::Config(error.to_string()))?;
        }
        let bundle = joined.services.clone();
        let Joined { live, workload, metadata, status, dump, mut pages, services, mut tasks, .. } = joined;
        let serving = Serving::default();
        let told = serving.clone();
        let ports: super::Page = Arc::new(move || serde_json::json!({ "ports": told.ports() }));
        pages.push(("/serving", ports));
        if let (Some(dialling), Some(report)) = (live.dialling(), self.report.0) {
            dialling.report_to(report);
        }
        let secure = has_own || joined.secure;
        let principal = principal.or(joined.principal);
        let service = service_of(&workload);
        let spans = match self.spans {
            SpansTo::Nowhere => Spans::none(),
            SpansTo::Environment => Spans::from_env(&workload.canonical_name),
            SpansTo::Given(spans) => spans,
        };
        let local = Peer::new(workload, principal.map(Into::into));
        let telemetry = Telemetry::by(self.profiles, local, metadata, spans, self.log, self.sink);
        let tls = ClientTls::new(identity.clone());
        let pool = match self.connector {
            Some(Connection(own)) => Pool::with_connector(tls, telemetry.clone(), source.clone(), own),
            None => {
                let resolver = Resolver::with(source.clone(), Arc::clone(&self.resolver.0));
                Pool::with_connector(tls, telemetry.clone(), source.clone(), System::new(resolver))
            }
        };
        let http = HttpClient::new(Arc::clone(&live), telemetry.clone(), pool.clone()).with_source(source.clone());
        #[cfg(feature = "xds")]
        let http = http.with_limit_codec(rpc::rate_limit::CODEC);
        tasks.push(Owned::spawn(crate::health::checks(Arc::clone(&live), pool.clone(), source.clone())));
        tasks.push(Owned::spawn(crate::reports::reports(Arc::clone(&live), pool.clone(), source.clone())));
        tasks.push(Owned::spawn(names::follow(Arc::clone(&live), source.clone(), self.resolver.0)));
        tasks.push(Owned::spawn(upkeep(Arc::downgrade(&live), pool, telemetry.clone(), source.clone())));
        let admin = match listener {
            None => None,
            Some(listener) => {
                let shown = Shown {
                    live: Arc::clone(&live),
                    identity: identity.clone(),
                    secure,
                    source,
                    status,
                    dump,
                    pages,
                    services,
                    ending: is_ending,
                    stop: ending.clone(),
                    unwell: unwell.clone(),
                    levels: self.levels,
                };
                let admin = Admin::open(listener, shown).map_err(refused)?;
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
            scraped,
            bundle,
            gate: self.gate,
            in_order: self.ending,
            serving,
            ending,
            unwell,
            _tasks: tasks,
        };
        Ok(Mesh { shared: Arc::new(shared) })
    }
}

/// The service a server's requests are counted under: the one its workloads form, by Kubernetes' naming.
fn service_of(workload: &Workload) -> ServiceName {
    if workload.canonical_name.is_empty() {
        return ServiceName::default();
    }
    let host = format!("{}.{}.svc.cluster.local", workload.canonical_name, workload.namespace);
    ServiceName { host: host.into(), name: workload.canonical_name.clone(), namespace: workload.namespace.clone() }
}
