//! A server of HTTP/1.1 and HTTP/2 that limits streams, ends connections, and says how many there were.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{net::TcpListener, task::JoinSet};

/// What a server of ours does to its connections.
#[derive(Clone, Copy, Default)]
pub(super) struct Settings {
    pub(super) max_streams: Option<u32>,
    /// After which a connection is ended gracefully.
    pub(super) age: Option<Duration>,
}

/// A server of HTTP/1.1 and HTTP/2; it ends with this value.
pub(super) struct Server {
    opened: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
    /// Where its connections came from.
    pub(super) from: Arc<Mutex<Vec<SocketAddr>>>,
    _tasks: JoinSet<()>,
}

impl Server {
    pub(super) fn opened(&self) -> usize {
        self.opened.load(Ordering::SeqCst)
    }

    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }
}

pub(super) async fn serve<F, R>(settings: Settings, handler: F) -> (SocketAddr, Server)
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (address, serve_on(listener, settings, handler))
}

pub(super) fn serve_on<F, R>(listener: TcpListener, settings: Settings, handler: F) -> Server
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let (opened, open) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (all, now) = (Arc::clone(&opened), Arc::clone(&open));
    let from = Arc::new(Mutex::new(Vec::new()));
    let peers = Arc::clone(&from);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (stream, peer) = listener.accept().await.unwrap();
            peers.lock().unwrap().push(peer);
            all.fetch_add(1, Ordering::SeqCst);
            now.fetch_add(1, Ordering::SeqCst);
            let (handler, now) = (handler.clone(), Arc::clone(&now));
            connections.spawn(async move {
                let service = service_fn(move |request: Request<Incoming>| {
                    let handler = handler.clone();
                    async move { Ok::<_, std::convert::Infallible>(handler(request).await) }
                });
                let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                builder.http2().timer(TokioTimer::new()).max_concurrent_streams(settings.max_streams.unwrap_or(200));
                let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
                let ended = match settings.age {
                    None => false,
                    Some(age) => tokio::time::timeout(age, connection.as_mut()).await.is_ok(),
                };
                if !ended {
                    if settings.age.is_some() {
                        connection.as_mut().graceful_shutdown();
                    }
                    let _ = connection.await;
                }
                now.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    Server { opened, open, from, _tasks: tasks }
}
