//! The server of all paths: HTTP with 1 KiB and gRPC with an echo, in plaintext and over mutual TLS, in a process of its own.

use std::{
    convert::Infallible,
    env,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
};

use crate::pki;

pub const BODY: usize = 1024;
pub const METHOD: &str = "/bench.Echo/Call";

/// This program again, serving.
pub struct Server {
    child: Child,
    pub plain: SocketAddr,
    pub secure: SocketAddr,
}

impl Server {
    pub fn start(certificates: &Path) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .env("MESH_BENCH_SERVER", certificates)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut address = || lines.next().unwrap().unwrap().parse().unwrap();
        Self { plain: address(), secure: address(), child }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub async fn serve(certificates: &Path) {
    let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let secure = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("{}\n{}", plain.local_addr().unwrap(), secure.local_addr().unwrap());
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(pki::server_config(certificates)));
    loop {
        tokio::select! {
            accepted = plain.accept() => {
                let stream = accepted.unwrap().0;
                stream.set_nodelay(true).unwrap();
                tokio::spawn(connection(stream));
            }
            accepted = secure.accept() => {
                let (stream, acceptor) = (accepted.unwrap().0, acceptor.clone());
                stream.set_nodelay(true).unwrap();
                tokio::spawn(async move {
                    match acceptor.accept(stream).await {
                        Ok(stream) => connection(stream).await,
                        Err(error) => eprintln!("handshake: {error}"),
                    }
                });
            }
        }
    }
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let builder = auto::Builder::new(TokioExecutor::new());
    let _ = builder.serve_connection(TokioIo::new(stream), service_fn(answer)).await;
}

async fn answer(request: Request<hyper::body::Incoming>) -> Result<Response<tonic::body::Body>, Infallible> {
    if request.uri().path() == METHOD {
        let echo = tower::service_fn(|request: tonic::Request<String>| async move {
            Ok::<_, tonic::Status>(tonic::Response::new(request.into_inner()))
        });
        let codec = tonic_prost::ProstCodec::<String, String>::default();
        return Ok(tonic::server::Grpc::new(codec).unary(echo, request.map(tonic::body::Body::new)).await);
    }
    Ok(Response::new(tonic::body::Body::new(Full::new(Bytes::from(vec![b'x'; BODY])))))
}
