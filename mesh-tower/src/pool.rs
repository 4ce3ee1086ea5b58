//! The leaf of the client stack: sends a request to the endpoint it was given, over a connection of that endpoint's pool.
//!
//! Pools hang on core's live endpoints, so they come and go with the configuration. HTTP/1.1 connections are used last
//! in, first out, which lets the surplus fall idle; HTTP/2 connections are shared up to the peer's limit of streams. A
//! request that hyper hands back unsent is tried on another connection, or reported as unsent: safe to retry anywhere.

use std::{
    fmt, io,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use http::{HeaderValue, Response, Version};
use mesh_core::{
    cluster::Cluster,
    config::{Protocol, RoutingPriority, TlsMode, UpstreamTls},
    endpoint::Endpoint,
    plan::Plan,
    time::Time,
};

use crate::{
    attempt::Picked,
    connect::{Connector, Io, Stream, System, Target},
    dns::Resolver,
    error::{BoxError, Error},
    layer::Stage,
    message::Message,
    source::Source,
    telemetry::{Telemetry, introduces},
    tls::{ClientTls, Leash, Sessions, UpstreamTarget},
};

mod endpoint;
mod http1;
mod http2;
mod keep;
mod lease;
mod message;
mod open;
mod pipe;
mod response;
mod signal;

pub(crate) use message::{ask_upgrade, asked_upgrade, remove_hop_by_hop};

use endpoint::EndpointPool;
use keep::Wants;
use lease::{Arriving, Lease, Sent};
use response::Attempted;
pub use response::PooledBody;

/// The connections of one client; clones share them.
#[derive(Clone)]
pub struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    tls: ClientTls,
    telemetry: Telemetry,
    source: Source,
    connector: Arc<dyn Connector>,
    /// Every endpoint's, for [`Pool::sweep`].
    pools: Mutex<Vec<Weak<EndpointPool>>>,
}

impl Pool {
    /// Without any connection yet; those to come are the operating system's.
    pub fn new(tls: ClientTls, telemetry: Telemetry, source: Source) -> Self {
        let system = System::new(Resolver::new(source.clone()));
        Self::with_connector(tls, telemetry, source, system)
    }

    /// Without any connection yet; those to come are made by `connector`.
    pub fn with_connector(tls: ClientTls, telemetry: Telemetry, source: Source, connector: Arc<dyn Connector>) -> Self {
        let shared = Shared { tls, telemetry, source, connector, pools: Mutex::default() };
        Self { shared: Arc::new(shared) }
    }

    /// Closes connections that lay idle too long or belong to an earlier identity.
    pub fn sweep(&self) {
        let now = self.shared.source.now();
        let generation = self.shared.tls.identity().generation();
        let mut pools = self.shared.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|pool| match pool.upgrade() {
            Some(pool) => {
                pool.sweep(now, generation);
                true
            }
            None => false,
        });
    }

    /// Closes the connections of endpoints that are not well, where the cluster asks for that.
    pub(crate) fn retire_unhealthy(&self, cluster: &Cluster) {
        if !cluster.config().connections.close_when_unhealthy {
            return;
        }
        for endpoint in cluster.endpoints().iter().filter(|endpoint| !endpoint.is_usable()) {
            Self::pool_of(&self.shared, cluster, endpoint).retire();
        }
    }

    /// A connection of its own to an endpoint, below TLS and HTTP.
    pub(crate) async fn dial(&self, cluster: &Cluster, endpoint: &Endpoint) -> io::Result<Stream> {
        self.shared.connector.connect(Target::of(endpoint.config(), cluster.config())).await
    }

    /// The same above TLS, where the cluster speaks it: for whatever is no HTTP.
    pub(crate) async fn bytes(&self, cluster: &Cluster, endpoint: &Endpoint) -> Result<Box<dyn Io>, BoxError> {
        let stream = self.dial(cluster, endpoint).await?;
        let Some(tls) = tls_of(cluster, endpoint) else { return Ok(Box::new(stream)) };
        let host = open::host_of(endpoint);
        let target = UpstreamTarget { tls, protocol: Protocol::Http1, host: &host };
        let (stream, tenure) = self.shared.tls.resume(stream, target, &Sessions::default()).await?;
        let leash = tenure.map(|tenure| Leash::new(tenure, "outbound"));
        Ok(Box::new(open::Wire::of_bytes(Box::new(stream), leash)))
    }

    async fn send(&self, picked: Picked) -> Result<Response<PooledBody>, Error> {
        let shared = &self.shared;
        let Picked { mut request, call, cluster, endpoint, .. } = picked;
        let mut route = Route::new(shared, &cluster, &endpoint, &request, call.plan());
        let upgrade = message::asked_upgrade(request.headers()).cloned();
        let upgrade = upgrade.filter(|protocol| protocol.to_str().is_ok_and(|it| call.plan().allows_upgrade(it)));
        if upgrade.is_some() {
            // Changing protocols is HTTP/1.1's.
            route.wants = Wants::Http1;
        }
        if let Some(tls) = route.tls
            && tls.workload_identity
        {
            shared.telemetry.introduce(request.headers_mut());
        } else {
            shared.telemetry.conceal(request.headers_mut());
        }
        let attempted = Attempted::begin(&shared.telemetry, &cluster, &endpoint, &mut request, &call);
        let streamed = request.body().known_len().is_none();
        match self.exchange(&route, request, upgrade).await {
            Ok((mut response, lease)) => {
                // Without a word or a certificate it is whom configuration says, which telemetry knows.
                if lease.peer().is_some() || introduces(response.headers()) {
                    let known = endpoint.config().workload.as_deref();
                    let headers = response.headers_mut();
                    call.met(shared.telemetry.meet(headers, lease.peer(), known, &route.pool.peers));
                }
                if let Some(attempted) = &attempted {
                    attempted.responded(response.status(), response.headers());
                }
                let sending = streamed && !call.progress().is_ended();
                Ok(response.map(|arriving| {
                    let flow = lease.flow(arriving, sending, route.now());
                    PooledBody::new(flow, attempted, shared.source.clock())
                }))
            }
            Err(error) => {
                if let Some(attempted) = attempted {
                    attempted.failed(&error);
                }
                Err(error)
            }
        }
    }

    async fn exchange(
        &self,
        route: &Route<'_>,
        mut request: Message,
        upgrade: Option<HeaderValue>,
    ) -> Result<(Response<Arriving>, Lease), Error> {
        loop {
            let mut lease = match route.pool.at_hand(route) {
                Some(lease) => lease,
                // In a box, so that who need not wait does not carry its room along.
                None => Box::pin(route.pool.lease(route)).await?,
            };
            message::prepare(request.parts_mut(), lease.is_http2(), route.tls.is_some())?;
            if let Some(protocol) = &upgrade {
                message::ask_upgrade(request.headers_mut(), protocol.clone());
            }
            match lease.send(request.into_request()).await {
                Sent::Answered(response) => return Ok((response, lease)),
                // A connection that was lying idle may have been closed by the peer just then: the next one, or a new one.
                Sent::Returned(unsent, _) if lease.is_reused() => request = Message::from(*unsent),
                Sent::Returned(_, error) => return Err(error.unsent()),
                Sent::Failed(error) => return Err(error),
            }
        }
    }

    fn pool_of<'a>(shared: &Shared, cluster: &Cluster, endpoint: &'a Endpoint) -> &'a Arc<EndpointPool> {
        endpoint.attached(|| {
            let pool = EndpointPool::new(cluster.config());
            shared.pools.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&pool));
            pool
        })
    }
}

impl Stage<Picked> for Pool {
    type Response = Response<PooledBody>;

    async fn call(&self, picked: Picked) -> Result<Self::Response, Error> {
        self.send(picked).await
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoints = self.shared.pools.lock().unwrap_or_else(PoisonError::into_inner).len();
        f.debug_struct("Pool").field("endpoints", &endpoints).finish_non_exhaustive()
    }
}

/// How one request gets to its endpoint.
struct Route<'a> {
    shared: &'a Arc<Shared>,
    cluster: &'a Arc<Cluster>,
    endpoint: &'a Arc<Endpoint>,
    pool: &'a Arc<EndpointPool>,
    tls: Option<&'a UpstreamTls>,
    wants: Wants,
    /// Whose limits count.
    priority: RoutingPriority,
}

impl<'a> Route<'a> {
    fn new(
        shared: &'a Arc<Shared>,
        cluster: &'a Arc<Cluster>,
        endpoint: &'a Arc<Endpoint>,
        request: &Message,
        plan: &Plan,
    ) -> Self {
        let tls = tls_of(cluster, endpoint);
        let wants = match cluster.config().protocol {
            // gRPC is HTTP/2 whatever the cluster says.
            _ if plan.is_grpc => Wants::Http2,
            Protocol::Http2 => Wants::Http2,
            Protocol::Caller if request.version() == Version::HTTP_2 => Wants::Http2,
            Protocol::Auto if tls.is_some() => Wants::Any,
            Protocol::Http1 | Protocol::Caller | Protocol::Auto => Wants::Http1,
        };
        let pool = Pool::pool_of(shared, cluster, endpoint);
        Self { shared, cluster, endpoint, pool, tls, wants, priority: plan.route.priority }
    }

    fn now(&self) -> Time {
        self.shared.source.now()
    }

    fn generation(&self) -> u64 {
        generation(self.shared, self.tls)
    }

    /// The same for a task.
    fn to_owned(&self) -> Way {
        let (shared, cluster, endpoint) =
            (Arc::clone(self.shared), Arc::clone(self.cluster), Arc::clone(self.endpoint));
        Way { shared, cluster, endpoint, wants: self.wants, priority: self.priority }
    }
}

/// A [`Route`] of its own.
struct Way {
    shared: Arc<Shared>,
    cluster: Arc<Cluster>,
    endpoint: Arc<Endpoint>,
    wants: Wants,
    priority: RoutingPriority,
}

impl Way {
    fn now(&self) -> Time {
        self.shared.source.now()
    }

    fn tls(&self) -> Option<&UpstreamTls> {
        tls_of(&self.cluster, &self.endpoint)
    }

    fn generation(&self) -> u64 {
        generation(&self.shared, self.tls())
    }
}

impl fmt::Debug for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Way").field("endpoint", self.endpoint.address()).finish_non_exhaustive()
    }
}

fn tls_of<'a>(cluster: &'a Cluster, endpoint: &Endpoint) -> Option<&'a UpstreamTls> {
    match &cluster.config().tls {
        TlsMode::Disable => None,
        TlsMode::Always(tls) => Some(tls),
        TlsMode::IfEndpointCan(tls) => endpoint.config().mtls.then_some(tls),
    }
}

/// Connections of another generation are not used for new requests.
fn generation(shared: &Shared, tls: Option<&UpstreamTls>) -> u64 {
    if tls.is_some_and(|tls| tls.workload_identity) { shared.tls.identity().generation() } else { 0 }
}
