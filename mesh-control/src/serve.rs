//! Listening: one loop that accepts connections, with TLS or without, and owns every one of them.
//!
//! All connections end with the loop's task, so that dropping a control plane leaves nothing behind. When told to stop, the
//! loop lets requests under way finish for a moment first.

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Extension, Router};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    pin,
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tonic::transport::server::TcpConnectInfo;

/// How long requests under way may take to finish when the control plane stops.
pub(crate) const DRAIN: Duration = Duration::from_secs(1);

const HANDSHAKE: Duration = Duration::from_secs(10);

/// So that a workload that vanished without a word is noticed. Istio: 30 s and 10 s.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));

/// More open connections than this wait to be accepted.
const MAX_CONNECTIONS: usize = 4096;

/// A task that ends when its owner is dropped.
#[derive(Debug)]
pub(crate) struct Task(JoinHandle<()>);

impl Task {
    pub(crate) fn spawn(future: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(future))
    }

    /// Waits for its end, for so long at most.
    pub(crate) async fn finish(mut self, limit: Duration) {
        let _ = timeout(limit, &mut self.0).await;
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Accepts until told to stop.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Option<Arc<rustls::ServerConfig>>,
    router: Router,
    mut stop: watch::Receiver<bool>,
) {
    let acceptor = tls.map(TlsAcceptor::from);
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => accepted,
            Some(_) = connections.join_next() => continue,
            () = told(&mut stop) => break,
        };
        match accepted {
            Ok((stream, remote)) => {
                connections.spawn(connection(stream, remote, acceptor.clone(), router.clone(), stop.clone()));
            }
            Err(error) => {
                // Such as no file descriptor left: trying again at once would only spin.
                tracing::warn!(%error, "could not accept a connection");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    let _ = timeout(DRAIN, async { while connections.join_next().await.is_some() {} }).await;
}

/// Comes back when told to stop, or when nobody is left to tell.
async fn told(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn connection(
    stream: TcpStream,
    remote: SocketAddr,
    acceptor: Option<TlsAcceptor>,
    router: Router,
    stop: watch::Receiver<bool>,
) {
    let _ = stream.set_nodelay(true);
    let info = TcpConnectInfo { local_addr: stream.local_addr().ok(), remote_addr: Some(remote) };
    let router = router.layer(Extension(info));
    let Some(acceptor) = acceptor else { return exchange(stream, router, stop).await };
    match timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => exchange(stream, router, stop).await,
        Ok(Err(error)) => tracing::debug!(%remote, %error, "TLS handshake failed"),
        Err(_) => tracing::debug!(%remote, "TLS handshake took too long"),
    }
}

async fn exchange<S>(stream: S, router: Router, mut stop: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new());
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(KEEP_ALIVE.0).keep_alive_timeout(KEEP_ALIVE.1);
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = told(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error, "a connection broke");
    }
}
