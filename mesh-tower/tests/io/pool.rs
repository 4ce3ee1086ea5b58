//! The connection pool below the whole client: reuse, limits, and what broken connections come to.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, routing::get};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use mesh_tower::{
    Mesh, ResponseFlags,
    config::{Cluster, Protocol, Thresholds},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::Semaphore,
};

use crate::configs::{cluster, config};

/// CP1: HTTP/1.1 connections are used again, one at a time each.
#[tokio::test]
async fn http1_connections_are_used_again() {
    let (address, opened) = serve(Router::new().route("/", get(async || "hello"))).await;
    let mesh = mesh(cluster("reviews", &[address])).await;
    for _ in 0..20 {
        assert_eq!(text(&mesh, "/").await, (StatusCode::OK, "hello".to_owned()));
    }
    assert_eq!(opened.load(Ordering::Relaxed), 1);
}

/// CP1: HTTP/2 requests under way at once share a connection.
#[tokio::test]
async fn http2_requests_share_a_connection() {
    let gate = Arc::new(Semaphore::new(0));
    let waiting = Arc::clone(&gate);
    let router = Router::new().route(
        "/",
        get(async move || {
            waiting.acquire().await.unwrap().forget();
            "hello"
        }),
    );
    let (address, opened) = serve(router).await;
    let mesh = mesh(Cluster { protocol: Protocol::Http2, ..cluster("reviews", &[address]) }).await;
    let calls: Vec<_> = (0..50)
        .map(|_| {
            let mesh = mesh.clone();
            tokio::spawn(async move { text(&mesh, "/").await.0 })
        })
        .collect();
    gate.add_permits(50);
    for call in calls {
        assert_eq!(call.await.unwrap(), StatusCode::OK);
    }
    assert_eq!(opened.load(Ordering::Relaxed), 1);
}

/// CB3: at the limit of connections requests wait, up to the limit of waiting ones; the rest is refused with `UO`.
#[tokio::test]
async fn requests_wait_for_a_connection_up_to_a_limit() {
    let (gate, arrived) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (waiting, here) = (Arc::clone(&gate), Arc::clone(&arrived));
    let router = Router::new().route(
        "/",
        get(async move || {
            here.add_permits(1);
            waiting.acquire().await.unwrap().forget();
            "hello"
        }),
    );
    let (address, opened) = serve(router).await;
    let thresholds = Thresholds { max_connections: 1, max_pending_requests: 1, ..Thresholds::default() };
    let mesh = mesh(Cluster { thresholds, ..cluster("reviews", &[address]) }).await;
    let call = |mesh: &Mesh| {
        let mesh = mesh.clone();
        tokio::spawn(async move { text(&mesh, "/").await.0 })
    };
    let first = call(&mesh);
    arrived.acquire().await.unwrap().forget();
    let mut others = [call(&mesh), call(&mesh)];
    // One of the two waits for the connection; the other finds the waiting room full.
    let [one, other] = &mut others;
    let (refused, waits) = tokio::select! {
        status = &mut *one => (status, other),
        status = &mut *other => (status, one),
    };
    assert_eq!(refused.unwrap(), StatusCode::SERVICE_UNAVAILABLE);
    gate.add_permits(2);
    assert_eq!(first.await.unwrap(), StatusCode::OK);
    assert_eq!(waits.await.unwrap(), StatusCode::OK);
    assert_eq!(opened.load(Ordering::Relaxed), 1);
}

/// TO8, TE17: nobody listens: 503 with `UF`; the connection breaks off before an answer: 503 with `UC`.
#[tokio::test]
async fn broken_connections_have_their_flags() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let breaking = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let breaks = breaking.local_addr().unwrap();
    let server = tokio::spawn(async move {
        loop {
            let (mut stream, _) = breaking.accept().await.unwrap();
            let _ = stream.read(&mut [0; 16]).await;
        }
    });
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tls = crate::configs::mutual(&[]);
    let ca = crate::pki::Ca::new();
    for (address, flags, tls) in
        [(nobody, "UF", None), (breaks, "UC", None), (silent.local_addr().unwrap(), "UF", Some(tls))]
    {
        let connect_timeout = Duration::from_millis(200);
        let mut target = Cluster { connect_timeout, ..cluster("reviews", &[address]) };
        if let Some(tls) = tls {
            // A peer that accepts and says nothing: the connect timeout covers the handshake.
            target.tls = tls;
        }
        let builder = Mesh::builder().config(config("reviews", target)).identity(ca.identity(crate::pki::RATINGS));
        let mesh = builder.build().await.unwrap();
        let response = mesh.http().get("http://reviews:9080/").await.unwrap();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.extensions().get::<ResponseFlags>().unwrap().flags.to_string(), flags);
    }
    server.abort();
}

/// A server that closes idle connections loses us no request.
#[tokio::test]
async fn a_connection_closed_while_idle_is_replaced() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut read = [0; 1024];
            let _ = stream.read(&mut read).await;
            // Keeps the connection alive by its words and closes it all the same.
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        }
    });
    let mesh = mesh(cluster("reviews", &[address])).await;
    for _ in 0..20 {
        let (status, body) = text(&mesh, "/").await;
        assert_eq!((status.as_u16(), body.as_str()), (200, "ok"));
        // The close is on its way through the kernel: reading it takes the driver one turn.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    server.abort();
}

async fn mesh(cluster: Cluster) -> Mesh {
    Mesh::builder().config(config("reviews", cluster)).build().await.unwrap()
}

async fn text(mesh: &Mesh, path: &str) -> (StatusCode, String) {
    let request = Request::get(format!("http://reviews:9080{path}")).body(Empty::<bytes::Bytes>::new()).unwrap();
    let response = mesh.http().request(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    (status, String::from_utf8_lossy(&body).into_owned())
}

/// A server outside any mesh, counting its connections.
pub(crate) async fn serve(router: Router) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, opened) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&opened);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            count.fetch_add(1, Ordering::Relaxed);
            let service = TowerToHyperService::new(router.clone());
            tokio::spawn(async move {
                let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    (address, opened)
}
