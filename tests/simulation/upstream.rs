//! A server outside any mesh, at an address of the simulated network, that answers by a script and counts what it does.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use mesh_tower::{
    Mesh,
    config::{Config, Inbound, MtlsMode},
    connect::Listener,
    source::Source,
};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
    time::sleep,
};

use crate::{
    identity::identity,
    net::{Net, SimListener},
    trace::{Trace, mix},
    wire::End,
    world::grpc_frame,
};

/// How an upstream answers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Script {
    /// Before the answer.
    pub(crate) delay: Duration,
    /// At most this much more, drawn.
    pub(crate) jitter: Duration,
    /// Of 1,000 requests so many are answered with 503, of gRPC `UNAVAILABLE`.
    pub(crate) failing: u32,
    /// The length of a good answer.
    pub(crate) length: usize,
    /// Its length is told in a header; else HTTP/1.1 answers are chunked.
    pub(crate) sized: bool,
    /// So many requests at once, the others wait their turn.
    pub(crate) workers: usize,
    /// It serves as a member of the mesh does; else as any server on hyper.
    pub(crate) member: bool,
    /// As a member with an identity, which demands one of its callers.
    pub(crate) mutual_tls: bool,
    /// The body of a good answer fails after so many bytes.
    pub(crate) breaks: Option<usize>,
    /// Bodies of requests are what their ids amount to; how many were not is counted.
    pub(crate) compares: bool,
}

impl Default for Script {
    fn default() -> Self {
        let (delay, jitter) = (Duration::from_millis(5), Duration::ZERO);
        let workers = Semaphore::MAX_PERMITS;
        Self {
            delay,
            jitter,
            failing: 0,
            length: 16,
            sized: true,
            workers,
            member: false,
            mutual_tls: false,
            breaks: None,
            compares: false,
        }
    }
}

/// A running server. Dropping it kills it.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    net: Net,
    shared: Arc<Shared>,
    drain: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

struct Shared {
    port: u16,
    seed: u64,
    trace: Trace,
    script: Mutex<Script>,
    workers: Semaphore,
    arrived: AtomicU64,
    under_way: AtomicU64,
    most: AtomicU64,
    /// How often each request was executed.
    executed: Mutex<BTreeMap<u64, u32>>,
    /// How long the bodies of these were.
    lengths: Mutex<Vec<usize>>,
    /// How many of these bodies were not what they had to be.
    altered: AtomicU64,
}

type AnswerBody = UnsyncBoxBody<Bytes, io::Error>;

impl Upstream {
    pub(crate) fn start(net: &Net, trace: &Trace, seed: u64, address: SocketAddr, script: Script) -> Self {
        let shared = Arc::new(Shared {
            port: address.port(),
            seed,
            trace: trace.clone(),
            script: Mutex::new(script),
            workers: Semaphore::new(script.workers),
            arrived: AtomicU64::new(0),
            under_way: AtomicU64::new(0),
            most: AtomicU64::new(0),
            executed: Mutex::default(),
            lengths: Mutex::default(),
            altered: AtomicU64::new(0),
        });
        let mut upstream =
            Self { address, net: net.clone(), shared, drain: watch::Sender::new(false), tasks: JoinSet::new() };
        upstream.listen();
        upstream
    }

    fn listen(&mut self) {
        let listener = self.net.listen(self.address);
        self.drain.send_replace(false);
        let (shared, drain) = (Arc::clone(&self.shared), self.drain.subscribe());
        let script = *lock(&self.shared.script);
        if script.member || script.mutual_tls {
            self.tasks.spawn(serve_as_member(listener, shared, drain));
        } else {
            self.tasks.spawn(serve(listener, shared, drain));
        }
    }

    /// Dies without a word: its connections are reset.
    pub(crate) fn kill(&mut self) {
        self.net.kill(self.address);
        self.tasks.abort_all();
    }

    /// Begins to serve again.
    pub(crate) fn restart(&mut self) {
        self.tasks.abort_all();
        self.listen();
    }

    /// Stops accepting, tells its callers, finishes what is under way.
    pub(crate) async fn drain(&mut self) {
        self.net.close(self.address);
        self.drain.send_replace(true);
        while self.tasks.join_next().await.is_some() {}
    }

    pub(crate) fn script(&self, change: impl FnOnce(&mut Script)) {
        change(&mut lock(&self.shared.script));
    }

    pub(crate) fn port(&self) -> u16 {
        self.shared.port
    }

    /// Requests that arrived.
    pub(crate) fn arrived(&self) -> u64 {
        self.shared.arrived.load(Relaxed)
    }

    /// Requests being answered now.
    pub(crate) fn under_way(&self) -> u64 {
        self.shared.under_way.load(Relaxed)
    }

    /// The most there ever were at once.
    pub(crate) fn most(&self) -> u64 {
        self.shared.most.load(Relaxed)
    }

    /// How long the bodies of the requests it executed were.
    pub(crate) fn lengths(&self) -> Vec<usize> {
        lock(&self.shared.lengths).clone()
    }

    /// How many of these bodies were not what they had to be, byte for byte.
    pub(crate) fn altered(&self) -> u64 {
        self.shared.altered.load(Relaxed)
    }

    /// How often it executed each request.
    pub(crate) fn executed(&self) -> BTreeMap<u64, u32> {
        lock(&self.shared.executed).clone()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn serve_as_member(listener: SimListener, shared: Arc<Shared>, mut drain: watch::Receiver<bool>) {
    let source = Source::seeded(shared.seed);
    let mut config = Config::default();
    let mut builder = Mesh::builder().source(source);
    if lock(&shared.script).mutual_tls {
        config.inbound.insert(shared.port, Arc::new(Inbound { mtls: MtlsMode::Strict, ..Inbound::default() }));
        builder = builder.identity(identity("upstream"));
    }
    let mesh = builder.config(config).build().await.unwrap();
    let handler = tower::service_fn(move |request| answer(Arc::clone(&shared), request));
    let mut serving = pin!(mesh.serve_listener(listener, handler));
    tokio::select! {
        biased;
        _ = serving.as_mut() => return,
        _ = drain.wait_for(|drain| *drain) => mesh.shutdown(),
    }
    let _ = serving.await;
}

async fn serve(mut listener: SimListener, shared: Arc<Shared>, drain: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    let mut draining = drain.clone();
    loop {
        tokio::select! {
            biased;
            _ = draining.wait_for(|drain| *drain) => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => {
                let Ok((end, _)) = accepted else { return };
                connections.spawn(converse(end, Arc::clone(&shared), drain.clone()));
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn converse(end: End, shared: Arc<Shared>, mut drain: watch::Receiver<bool>) {
    let service = service_fn(move |request| answer(Arc::clone(&shared), request));
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new());
    builder.http2().timer(TokioTimer::new());
    let mut connection = pin!(builder.serve_connection(TokioIo::new(end), service));
    tokio::select! {
        biased;
        _ = connection.as_mut() => return,
        _ = drain.wait_for(|drain| *drain) => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

/// A request being answered; gone with the answer's head, or when the caller goes away.
struct UnderWay(Arc<Shared>);

impl UnderWay {
    fn begin(shared: &Arc<Shared>) -> Self {
        let now = shared.under_way.fetch_add(1, Relaxed) + 1;
        shared.most.fetch_max(now, Relaxed);
        Self(Arc::clone(shared))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Relaxed);
    }
}

async fn answer<B: Body>(shared: Arc<Shared>, request: Request<B>) -> Result<Response<AnswerBody>, Infallible> {
    let number = shared.arrived.fetch_add(1, Relaxed);
    let id = request.uri().path().rsplit('/').next().and_then(|id| id.parse().ok()).unwrap_or(0);
    shared.trace.note("arrival", shared.port, id);
    let under_way = UnderWay::begin(&shared);
    let is_grpc = request.headers().contains_key(header::TE);
    // A request that breaks off was not received, so it is not executed.
    let Ok(body) = request.into_body().collect().await else {
        return Ok(Response::builder().status(400).body(stream(Vec::new())).unwrap());
    };
    let turn = shared.workers.acquire().await;
    let (body, script) = (body.to_bytes(), *lock(&shared.script));
    *lock(&shared.executed).entry(id).or_insert(0) += 1;
    lock(&shared.lengths).push(body.len());
    if script.compares {
        let message = if is_grpc { body.get(5..).unwrap_or_default() } else { &body[..] };
        let same = *message == amounts_to(id, message.len()) && (!is_grpc || body == grpc_frame(message));
        shared.altered.fetch_add(u64::from(!same), Relaxed);
    }
    let drawn = mix(&[shared.seed, number]);
    let jitter = Duration::from_micros(drawn % (script.jitter.as_micros() as u64 + 1));
    sleep(script.delay + jitter).await;
    drop((turn, under_way));
    let fails = (drawn >> 32) % 1_000 < u64::from(script.failing);
    let mut response = match (is_grpc, fails) {
        (false, true) => Response::builder().status(503).body(stream(Vec::new())).unwrap(),
        (true, true) => Response::builder().header("grpc-status", 14).body(stream(Vec::new())).unwrap(),
        (false, false) => {
            let bytes = amounts_to(id, script.length);
            let response = Response::builder();
            match script.sized {
                true => {
                    response.header(header::CONTENT_LENGTH, bytes.len()).body(whole_or_not(&bytes, script)).unwrap()
                }
                false => response.body(whole_or_not(&bytes, script)).unwrap(),
            }
        }
        (true, false) if script.breaks.is_some() => {
            Response::new(whole_or_not(&grpc_frame(&amounts_to(id, script.length)), script))
        }
        (true, false) => {
            let mut frames = pieces(&grpc_frame(&amounts_to(id, script.length)));
            let trailers = HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), 0.into())]);
            frames.push(Frame::trailers(trailers));
            Response::new(stream(frames))
        }
    };
    if is_grpc {
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    }
    response.headers_mut().insert("x-host", shared.port.into());
    Ok(response)
}

/// The right answer to a request.
pub(crate) fn amounts_to(id: u64, length: usize) -> Bytes {
    let mut bytes = Vec::with_capacity(length + 8);
    for word in 0..length.div_ceil(8) {
        bytes.extend_from_slice(&mix(&[id, word as u64]).to_le_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}

/// A body of these bytes, or one that fails on the way, when those before have been sent.
fn whole_or_not(bytes: &Bytes, script: Script) -> AnswerBody {
    let Some(after) = script.breaks else { return stream(pieces(bytes)) };
    let failing = async {
        sleep(Duration::from_millis(20)).await;
        Err(io::Error::other("the handler's own source broke off"))
    };
    let sent = futures_util::stream::iter(pieces(&bytes.slice(..after.min(bytes.len()))).into_iter().map(Ok));
    StreamBody::new(sent.chain(futures_util::stream::once(failing))).boxed_unsync()
}

/// In frames of at most 1,000 bytes.
pub(crate) fn pieces(bytes: &Bytes) -> Vec<Frame<Bytes>> {
    let mut left = bytes.clone();
    let mut frames = Vec::new();
    while !left.is_empty() {
        frames.push(Frame::data(left.split_to(left.len().min(1_000))));
    }
    frames
}

fn stream(frames: Vec<Frame<Bytes>>) -> AnswerBody {
    StreamBody::new(futures_util::stream::iter(frames.into_iter().map(Ok))).boxed_unsync()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
