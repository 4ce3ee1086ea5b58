//! The leaf of the client stack: sends a request to the endpoint it was given, over a connection of that endpoint's pool.
//!
//! Pools hang on core's live endpoints, so they come and go with the configuration. HTTP/1.1 connections are used last
//! in, first out, which lets the surplus fall idle; HTTP/2 connections are shared until the peer's stream limit. A
//! request that hyper hands back unsent is tried on another connection, or reported as unsent: safe to retry anywhere.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use http::{Request, Response};
use mesh_core::{
    cluster::Cluster,
    config::{Protocol, TlsMode, UpstreamTls},
    endpoint::Endpoint,
    time::Time,
};

use crate::{
    attempt::Picked,
    body::Body,
    connect::{Connector, System},
    dns::Resolver,
    error::{Error, ErrorKind},
    layer::Stage,
    source::Source,
    telemetry::Telemetry,
    tls::ClientTls,
};

mod endpoint;
mod message;
mod response;

pub(crate) use message::remove_hop_by_hop;

use endpoint::{EndpointPool, Lease, Sent};
use response::Attempted;
pub use response::PooledBody;

/// How long a connection may lie idle. Envoy's default is an hour; servers commonly close after a minute or so, and
/// closing first means never writing to a connection that is just being closed.
const IDLE: Duration = Duration::from_secs(50);

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

    async fn send(&self, picked: Picked) -> Result<Response<PooledBody>, Error> {
        let shared = &self.shared;
        let (cluster, endpoint) = (Arc::clone(picked.cluster()), Arc::clone(picked.endpoint()));
        let call = picked.call.clone();
        let route = Route::new(shared, &cluster, &endpoint, call.plan().is_grpc);
        let mut request = picked.request.into_request();
        if let Some(tls) = route.tls
            && tls.workload_identity
        {
            shared.telemetry.introduce(request.headers_mut());
        } else {
            shared.telemetry.conceal(request.headers_mut());
        }
        let attempted = Attempted::begin(&shared.telemetry, &cluster, &endpoint, &mut request);
        let result = self.exchange(&route, request).await;
        match result {
            Ok((mut response, lease)) => {
                let peer = shared.telemetry.meet(
                    response.headers_mut(),
                    lease.peer(),
                    endpoint.config().workload.as_ref(),
                    &route.pool.peers,
                );
                call.met(peer);
                if let Some(attempted) = &attempted {
                    attempted.responded(response.status());
                }
                Ok(response.map(|body| PooledBody::new(body, lease, attempted, shared.source.clone())))
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
        mut request: Request<Body>,
    ) -> Result<(Response<hyper::body::Incoming>, Lease), Error> {
        message::prepare(&mut request, route.protocol, route.tls.is_some())?;
        loop {
            let mut lease = route.pool.lease(route).await?;
            let reused = lease.is_reused();
            match lease.send(request).await {
                Sent::Answered(response) => return Ok((response, lease)),
                // A connection that was lying idle may have been closed by the peer just then: the next one, or a new one.
                Sent::Returned(unsent, _) if reused => request = *unsent,
                Sent::Returned(_, error) => return Err(Error::new(ErrorKind::Reset, error).unsent()),
                Sent::Failed(error) => return Err(message::failure(error)),
            }
        }
    }

    fn pool_of(shared: &Shared, endpoint: &Endpoint) -> Arc<EndpointPool> {
        let pool = endpoint.attached(|| {
            let pool = Arc::new(EndpointPool::default());
            shared.pools.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&pool));
            pool
        });
        Arc::clone(pool)
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
    shared: &'a Shared,
    cluster: &'a Arc<Cluster>,
    endpoint: &'a Endpoint,
    pool: Arc<EndpointPool>,
    tls: Option<&'a UpstreamTls>,
    protocol: Protocol,
}

impl<'a> Route<'a> {
    fn new(shared: &'a Shared, cluster: &'a Arc<Cluster>, endpoint: &'a Endpoint, is_grpc: bool) -> Self {
        let tls = match &cluster.config().tls {
            TlsMode::Disable => None,
            TlsMode::Always(tls) => Some(tls.as_ref()),
            TlsMode::IfEndpointCan(tls) => endpoint.config().mtls.then_some(tls.as_ref()),
        };
        // gRPC is HTTP/2 whatever the cluster says.
        let protocol = if is_grpc { Protocol::Http2 } else { cluster.config().protocol };
        Self { shared, cluster, endpoint, pool: Pool::pool_of(shared, endpoint), tls, protocol }
    }

    fn now(&self) -> Time {
        self.shared.source.now()
    }

    /// Connections of another generation are not used for new requests.
    fn generation(&self) -> u64 {
        if self.tls.is_some_and(|tls| tls.workload_identity) { self.shared.tls.identity().generation() } else { 0 }
    }
}
