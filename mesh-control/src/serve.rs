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

use self::strangers::{PATIENCE, Stranger, Strangers, overdue, telling};

mod strangers;

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

/// Streams of a connection; a member has one of each kind, and asks for certificates beside it.
const MAX_STREAMS: u32 = 64;

/// Accepts until told to stop. Over TLS callers must prove in time who they are.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Option<Arc<rustls::ServerConfig>>,
    router: Router,
    stop: watch::Receiver<bool>,
) {
    serve_within(PATIENCE, listener, tls, router, stop).await;
}

async fn serve_within(
    patience: Duration,
    listener: TcpListener,
    tls: Option<Arc<rustls::ServerConfig>>,
    router: Router,
    mut stop: watch::Receiver<bool>,
) {
    let acceptor = tls.map(TlsAcceptor::from);
    let strangers = Arc::new(Strangers::default());
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => accepted,
            Some(_) = connections.join_next() => continue,
            () = told(&mut stop) => break,
        };
        match accepted {
            Ok((stream, remote)) => {
                let Some(acceptor) = acceptor.clone() else {
                    connections.spawn(plain(stream, remote, router.clone(), stop.clone()));
                    continue;
                };
                match strangers.enter(remote.ip()) {
                    Some(stranger) => {
                        let (router, stop) = (router.clone(), stop.clone());
                        connections.spawn(connection(stream, remote, acceptor, (stranger, patience), router, stop));
                    }
                    None => tracing::debug!(%remote, "too many connections that have not proved whose they are"),
                }
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

async fn plain(stream: TcpStream, remote: SocketAddr, router: Router, stop: watch::Receiver<bool>) {
    let router = described(&stream, remote, router);
    exchange(stream, router, stop).await;
}

async fn connection(
    stream: TcpStream,
    remote: SocketAddr,
    acceptor: TlsAcceptor,
    (stranger, patience): (Stranger, Duration),
    router: Router,
    stop: watch::Receiver<bool>,
) {
    let (router, told) = telling(described(&stream, remote, router));
    match timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => tokio::select! {
            () = exchange(stream, router, stop) => {}
            () = overdue(stranger, told, patience) => tracing::debug!(%remote, "it did not prove in time who it is"),
        },
        Ok(Err(error)) => tracing::debug!(%remote, %error, "TLS handshake failed"),
        Err(_) => tracing::debug!(%remote, "TLS handshake took too long"),
    }
}

fn described(stream: &TcpStream, remote: SocketAddr, router: Router) -> Router {
    let _ = stream.set_nodelay(true);
    router.layer(Extension(TcpConnectInfo { local_addr: stream.local_addr().ok(), remote_addr: Some(remote) }))
}

async fn exchange<S>(stream: S, router: Router, mut stop: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new());
    let http2 = &mut builder.http2();
    http2.timer(TokioTimer::new()).keep_alive_interval(KEEP_ALIVE.0).keep_alive_timeout(KEEP_ALIVE.1);
    http2.max_concurrent_streams(MAX_STREAMS);
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use std::time::SystemTime;

    use axum::{body::Body, http::Request, routing::get};
    use http::StatusCode;
    use hyper::client::conn::http2;
    use rustls::{ClientConfig, RootCertStore, pki_types::pem::PemObject};
    use rustls_pki_types::{CertificateDer, ServerName};
    use tokio::io::AsyncReadExt;
    use tokio_rustls::{TlsConnector, client::TlsStream};

    use super::*;
    use crate::ca::{Ca, SERVER_NAME};

    async fn connect(ca: &Ca, address: SocketAddr) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.root_pem().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from(SERVER_NAME).unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
    }

    /// XD20: a connection that says nothing, or nothing that is taken, is ended; one whose request was taken goes on.
    #[tokio::test]
    async fn who_proves_nothing_is_sent_away() {
        let ca = Ca::in_memory("cluster.local").unwrap();
        let tls = ca.server_tls([127, 0, 0, 1].into(), SystemTime::now()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/taken", get(|| async { StatusCode::OK }))
            .route("/refused", get(|| async { [("grpc-status", "16")] }));
        let (_stop, stopped) = watch::channel(false);
        let patience = Duration::from_millis(300);
        let _server = Task::spawn(serve_within(patience, listener, Some(tls), router, stopped));

        let mut silent = connect(&ca, address).await;
        let shake = async |path: &str| {
            let stream = TokioIo::new(connect(&ca, address).await);
            let (mut sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
            let ended = tokio::spawn(async move { drop(connection.await) });
            let request = Request::get(format!("https://{SERVER_NAME}{path}")).body(Body::empty()).unwrap();
            assert_eq!(sender.send_request(request).await.unwrap().status(), StatusCode::OK);
            (sender, ended)
        };
        let (_known, stays) = shake("/taken").await;
        let (_stranger, ends) = shake("/refused").await;
        let (mut said, limit) = (Vec::new(), Duration::from_secs(10));
        // Whether it says goodbye or not is the transport's business.
        let _ = timeout(limit, silent.read_to_end(&mut said)).await.expect("the silent one is ended");
        timeout(limit, ends).await.expect("the refused one is ended").unwrap();
        sleep(2 * patience).await;
        assert!(!stays.is_finished(), "the other one goes on");
    }
}
