//! The connections of one endpoint: leased for a request, given back when its response has been read to the end.
//!
//! A connection's driver is a task that ends when the last handle to the connection goes, and holds the cluster's
//! connection slot until then. Requests wait where the cluster's limit of connections is reached, up to its limit of
//! pending requests; an endpoint without any connection may always open one, so that no endpoint is shut out by others.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mesh_core::{config::Protocol, identity::SpiffeId, limit::Slot, time::Time};
use tokio::{sync::Notify, time::timeout};

use super::{IDLE, Route};
use crate::{
    body::Body,
    connect::{Io, Target},
    error::{Error, ErrorKind},
    telemetry::PeerCache,
    tls::UpstreamTarget,
};

/// How long a connection may need to be ready again after its response ended, while the request is still being sent.
const SETTLE: Duration = Duration::from_secs(5);

/// All connections of one endpoint.
#[derive(Debug, Default)]
pub(super) struct EndpointPool {
    idle: Mutex<Vec<Idle>>,
    shared: Mutex<Vec<Arc<Http2>>>,
    /// HTTP/1.1 connections open or being opened.
    open: AtomicUsize,
    freed: Notify,
    opening: tokio::sync::Mutex<()>,
    /// How many times opening an HTTP/2 connection failed: who waited for one that failed does not try again after it.
    failures: AtomicUsize,
    pub(super) peers: PeerCache,
}

#[derive(Debug)]
struct Idle {
    connection: Http1,
    since: Time,
}

#[derive(Debug)]
struct Http1 {
    sender: http1::SendRequest<Body>,
    generation: u64,
    peer: Option<SpiffeId>,
}

#[derive(Debug)]
struct Http2 {
    sender: http2::SendRequest<Body>,
    generation: u64,
    peer: Option<SpiffeId>,
    streams: AtomicUsize,
    /// What the peer takes at once, as its settings said last.
    limit: Arc<AtomicUsize>,
    idle_since: Mutex<Time>,
}

/// A connection, or a place on one, for one request.
///
/// An HTTP/1.1 connection let go of in the middle of a response closes; an HTTP/2 stream frees its place.
pub(super) struct Lease {
    reused: bool,
    kind: Kind,
}

enum Kind {
    Http1 { pool: Weak<EndpointPool>, connection: Http1 },
    Http2 { place: Place, sender: http2::SendRequest<Body> },
}

/// One stream of a shared connection.
struct Place(Arc<Http2>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What became of a request.
pub(super) enum Sent {
    /// The head of the response is here.
    Answered(Response<Incoming>),
    /// Nothing of it was sent.
    Returned(Box<Request<Body>>, hyper::Error),
    /// The connection or stream ended.
    Failed(hyper::Error),
}

impl EndpointPool {
    /// A connection that is idle, shared or new.
    pub(super) async fn lease(self: &Arc<Self>, route: &Route<'_>) -> Result<Lease, Error> {
        match route.protocol {
            Protocol::Http1 => self.lease_http1(route).await,
            Protocol::Http2 => self.lease_http2(route).await,
        }
    }

    /// Closes what lay idle too long, and what belongs to an earlier identity once nothing is under way on it.
    pub(super) fn sweep(&self, now: Time, generation: u64) {
        let fresh = |of: u64, since: Time| (of == 0 || of == generation) && now.saturating_since(since) < IDLE;
        lock(&self.idle)
            .retain(|idle| !idle.connection.sender.is_closed() && fresh(idle.connection.generation, idle.since));
        lock(&self.shared).retain(|connection| {
            let busy = connection.streams.load(Ordering::Relaxed) > 0;
            !connection.sender.is_closed() && (busy || fresh(connection.generation, *lock(&connection.idle_since)))
        });
    }

    async fn lease_http1(self: &Arc<Self>, route: &Route<'_>) -> Result<Lease, Error> {
        let mut pending = None;
        loop {
            if let Some(connection) = self.take_idle(route) {
                return Ok(self.leased(true, connection));
            }
            if pending.is_none() {
                pending = Some(pending_slot(route)?);
            }
            let slot = route.cluster.connection_slot();
            // Counted before it is open, so that two requests do not both think themselves first.
            let opening = Open::new(self);
            if slot.is_some() || opening.is_first() {
                let (sender, peer) = within(route, open_http1(route, (slot, opening))).await?;
                let connection = Http1 { sender, generation: route.generation(), peer };
                return Ok(self.leased(false, connection));
            }
            opening.forget();
            self.freed.notified().await;
        }
    }

    fn take_idle(&self, route: &Route<'_>) -> Option<Http1> {
        let (now, generation) = (route.now(), route.generation());
        let mut idle = lock(&self.idle);
        while let Some(Idle { connection, since }) = idle.pop() {
            let fresh = connection.generation == generation && now.saturating_since(since) < IDLE;
            if fresh && connection.sender.is_ready() {
                return Some(connection);
            }
        }
        None
    }

    async fn lease_http2(self: &Arc<Self>, route: &Route<'_>) -> Result<Lease, Error> {
        if let Some(lease) = self.take_shared(route) {
            return Ok(lease);
        }
        let _pending = pending_slot(route)?;
        let failures = self.failures.load(Ordering::Acquire);
        // One opens; who waited looks for a place on what was opened.
        let _opening = self.opening.lock().await;
        if let Some(lease) = self.take_shared(route) {
            return Ok(lease);
        }
        if self.failures.load(Ordering::Acquire) != failures {
            return Err(Error::msg(ErrorKind::Connect, "the connection waited for could not be made"));
        }
        let slot = route.cluster.connection_slot();
        if slot.is_none() && !lock(&self.shared).is_empty() {
            // No more connections: share one beyond its limit, and wait in it for a stream.
            return self.least_shared(route).ok_or_else(|| overflow("connections"));
        }
        let opened = within(route, open_http2(route, slot)).await;
        if opened.is_err() {
            self.failures.fetch_add(1, Ordering::Release);
        }
        let (sender, peer, limit) = opened?;
        let (generation, idle_since) = (route.generation(), Mutex::new(route.now()));
        let connection = Http2 { sender, generation, peer, streams: AtomicUsize::new(0), limit, idle_since };
        let connection = Arc::new(connection);
        lock(&self.shared).push(Arc::clone(&connection));
        Ok(Self::share(false, &connection))
    }

    /// The first connection with room for another stream.
    fn take_shared(&self, route: &Route<'_>) -> Option<Lease> {
        let generation = route.generation();
        let mut shared = lock(&self.shared);
        shared.retain(|connection| !connection.sender.is_closed());
        let room = |connection: &&Arc<Http2>| {
            connection.generation == generation
                && connection.streams.load(Ordering::Relaxed) < connection.limit.load(Ordering::Relaxed)
        };
        let connection = shared.iter().find(room).cloned()?;
        drop(shared);
        Some(Self::share(true, &connection))
    }

    fn least_shared(&self, route: &Route<'_>) -> Option<Lease> {
        let generation = route.generation();
        let shared = lock(&self.shared);
        let usable = shared.iter().filter(|connection| connection.generation == generation);
        let connection = usable.min_by_key(|connection| connection.streams.load(Ordering::Relaxed)).cloned()?;
        drop(shared);
        Some(Self::share(true, &connection))
    }

    fn share(reused: bool, connection: &Arc<Http2>) -> Lease {
        connection.streams.fetch_add(1, Ordering::Relaxed);
        let sender = connection.sender.clone();
        Lease { reused, kind: Kind::Http2 { place: Place(Arc::clone(connection)), sender } }
    }

    fn leased(self: &Arc<Self>, reused: bool, connection: Http1) -> Lease {
        Lease { reused, kind: Kind::Http1 { pool: Arc::downgrade(self), connection } }
    }

    fn put_back(&self, connection: Http1, now: Time) {
        lock(&self.idle).push(Idle { connection, since: now });
        self.freed.notify_one();
    }
}

impl Lease {
    /// It was there before this request.
    pub(super) fn is_reused(&self) -> bool {
        self.reused
    }

    /// Who is at the other end, as its certificate proved.
    pub(super) fn peer(&self) -> Option<&SpiffeId> {
        match &self.kind {
            Kind::Http1 { connection, .. } => connection.peer.as_ref(),
            Kind::Http2 { place, .. } => place.0.peer.as_ref(),
        }
    }

    pub(super) async fn send(&mut self, request: Request<Body>) -> Sent {
        let result = match &mut self.kind {
            Kind::Http1 { connection, .. } => connection.sender.try_send_request(request).await,
            Kind::Http2 { sender, .. } => sender.try_send_request(request).await,
        };
        match result {
            Ok(response) => Sent::Answered(response),
            Err(mut error) => match error.take_message() {
                Some(request) => Sent::Returned(Box::new(request), error.into_error()),
                None => Sent::Failed(error.into_error()),
            },
        }
    }

    /// The response has been read to its end: the connection can be used again.
    pub(super) fn give_back(self, now: Time) {
        let (pool, mut connection) = match self.kind {
            Kind::Http1 { pool, connection } => (pool, connection),
            Kind::Http2 { place, .. } => {
                *lock(&place.0.idle_since) = now;
                return;
            }
        };
        if connection.sender.is_ready() {
            if let Some(pool) = pool.upgrade() {
                pool.put_back(connection, now);
            }
        } else if !connection.sender.is_closed() {
            // The rest of the request is still on its way out, or the driver has not run yet. Ends within SETTLE.
            tokio::spawn(async move {
                let settled = timeout(SETTLE, connection.sender.ready()).await;
                if let (Ok(Ok(())), Some(pool)) = (settled, pool.upgrade()) {
                    pool.put_back(connection, now);
                }
            });
        }
    }
}

/// Counts an HTTP/1.1 connection from before it is open until it is closed, then lets a waiting request look again.
struct Open {
    pool: Weak<EndpointPool>,
    before: usize,
}

impl Open {
    fn new(pool: &Arc<EndpointPool>) -> Self {
        let before = pool.open.fetch_add(1, Ordering::AcqRel);
        Self { pool: Arc::downgrade(pool), before }
    }

    fn is_first(&self) -> bool {
        self.before == 0
    }

    /// Nothing is opened after all: nobody needs to be woken.
    fn forget(mut self) {
        if let Some(pool) = std::mem::take(&mut self.pool).upgrade() {
            pool.open.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.open.fetch_sub(1, Ordering::AcqRel);
            pool.freed.notify_one();
        }
    }
}

async fn open_http1(
    route: &Route<'_>,
    held: (Option<Slot>, Open),
) -> Result<(http1::SendRequest<Body>, Option<SpiffeId>), Error> {
    let (io, peer) = open(route).await?;
    let (sender, driver) =
        http1::handshake(TokioIo::new(io)).await.map_err(|error| Error::new(ErrorKind::Connect, error))?;
    tokio::spawn(async move {
        // Ends when the sender goes or the peer closes; requests under way hear of the error themselves.
        let _ = driver.await;
        drop(held);
    });
    Ok((sender, peer))
}

async fn open_http2(
    route: &Route<'_>,
    held: Option<Slot>,
) -> Result<(http2::SendRequest<Body>, Option<SpiffeId>, Arc<AtomicUsize>), Error> {
    let (io, peer) = open(route).await?;
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.timer(TokioTimer::new()).adaptive_window(true);
    let (sender, mut driver) =
        builder.handshake(TokioIo::new(io)).await.map_err(|error| Error::new(ErrorKind::Connect, error))?;
    let limit = Arc::new(AtomicUsize::new(driver.current_max_send_streams()));
    let seen = Arc::clone(&limit);
    tokio::spawn(async move {
        let _ = poll_fn(|cx| {
            let polled = Pin::new(&mut driver).poll(cx);
            seen.store(driver.current_max_send_streams(), Ordering::Relaxed);
            polled
        })
        .await;
        drop(held);
    });
    Ok((sender, peer, limit))
}

/// A connection below HTTP, with the peer's identity where it is mutual TLS.
async fn open(route: &Route<'_>) -> Result<(Box<dyn Io>, Option<SpiffeId>), Error> {
    let address = route.endpoint.address();
    let target = Target { address, cluster: route.cluster.config() };
    let connected = route.shared.connector.connect(target).await;
    let stream = connected
        .map_err(|error| Error::new(ErrorKind::Connect, Unreachable { address: address.to_string(), error }))?;
    let Some(tls) = route.tls else { return Ok((Box::new(stream), None)) };
    let host = match address {
        mesh_core::config::EndpointAddress::Host(host, _) => host.clone(),
        mesh_core::config::EndpointAddress::Socket(address) => address.ip().to_string(),
        mesh_core::config::EndpointAddress::Unix(_) => String::new(),
    };
    let target = UpstreamTarget { tls, protocol: route.protocol, host: &host };
    let stream = route.shared.tls.connect(stream, target).await.map_err(|error| Error::new(ErrorKind::Tls, error))?;
    let peer = if tls.workload_identity { crate::tls::peer_of(&stream) } else { None };
    Ok((Box::new(stream), peer))
}

/// The cluster's connect timeout, TLS included. Source: Envoy `Cluster.connect_timeout`.
async fn within<T>(route: &Route<'_>, opening: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let limit = route.cluster.config().connect_timeout;
    match timeout(limit, opening).await {
        Ok(result) => result,
        Err(_) => {
            let message = format!("no connection to {} within {limit:?}", route.endpoint.address());
            Err(Error::msg(ErrorKind::Connect, message))
        }
    }
}

fn pending_slot(route: &Route<'_>) -> Result<Slot, Error> {
    route.cluster.pending_slot().ok_or_else(|| overflow("requests waiting for a connection"))
}

fn overflow(what: &str) -> Error {
    Error::msg(ErrorKind::Overflow, format!("the cluster's limit of {what} is reached"))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An operating system's error with the address it is about.
#[derive(Debug)]
struct Unreachable {
    address: String,
    error: std::io::Error,
}

impl std::fmt::Display for Unreachable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.address, self.error)
    }
}

impl std::error::Error for Unreachable {}
