//! Calls over a wire for the bench that counts instructions: the mesh's two clients and the two they are held against, and the
//! server they all go to, which is the same program in a process of its own. It asks nothing itself.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

use std::{
    convert::Infallible,
    env,
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
};

use bytes::Bytes;
use http::{Request, Response, Uri, uri::PathAndQuery};
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use mesh_tower::Mesh;
use tonic_prost::ProstCodec;

use crate::{
    common::{ANSWER, Policy, mesh, uris},
    counted_on_one_thread, runtime,
};

/// Where a counted run finds the server.
pub const ADDRESS: &str = "MESH_BENCH_ADDRESS";
const SERVER: &str = "MESH_BENCH_SERVER";
const METHOD: &str = "/bench.Echo/Call";

pub fn bare_http(turns: usize) {
    let runtime = runtime();
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let uri: Uri = format!("http://{}/", address()).parse().unwrap();
    counted_on_one_thread(&runtime, async {
        for _ in 0..turns {
            let request = Request::get(uri.clone()).body(Full::default()).unwrap();
            let answer = client.request(request).await.unwrap().into_body().collect().await.unwrap();
            assert_eq!(answer.to_bytes().len(), ANSWER.len());
        }
    });
}

pub fn mesh_http(turns: usize) {
    let runtime = runtime();
    let client = runtime.block_on(meshed()).http();
    let uri = uris(1).remove(0);
    counted_on_one_thread(&runtime, async {
        for _ in 0..turns {
            let request = Request::get(uri.clone()).body(Full::<Bytes>::default()).unwrap();
            let answer = client.request(request).await.unwrap().into_body().collect().await.unwrap();
            assert_eq!(answer.to_bytes().len(), ANSWER.len());
        }
    });
}

pub fn bare_grpc(turns: usize) {
    let runtime = runtime();
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", address())).unwrap();
    let channel = runtime.block_on(endpoint.connect()).unwrap();
    counted_on_one_thread(&runtime, async {
        for _ in 0..turns {
            unary(tonic::client::Grpc::new(channel.clone())).await;
        }
    });
}

pub fn mesh_grpc(turns: usize) {
    let runtime = runtime();
    let client = runtime.block_on(meshed()).grpc(&crate::common::name(0)).unwrap();
    counted_on_one_thread(&runtime, async {
        for _ in 0..turns {
            unary(tonic::client::Grpc::new(client.clone())).await;
        }
    });
}

async fn meshed() -> Mesh {
    Mesh::builder().config(mesh(1, Policy::Usual, address())).build().await.unwrap()
}

fn address() -> SocketAddr {
    env::var(ADDRESS).unwrap().parse().unwrap()
}

async fn unary<S>(mut client: tonic::client::Grpc<S>)
where
    S: tonic::client::GrpcService<tonic::body::Body>,
    S::ResponseBody: tonic::codegen::Body<Data = Bytes> + Send + 'static,
    <S::ResponseBody as tonic::codegen::Body>::Error: Into<tonic::codegen::StdError>,
    S::Error: Into<tonic::codegen::StdError> + std::fmt::Debug,
{
    client.ready().await.unwrap();
    let request = tonic::Request::new("x".repeat(64));
    let path = PathAndQuery::from_static(METHOD);
    let response = client.unary(request, path, ProstCodec::<String, String>::default()).await.unwrap();
    assert_eq!(response.into_inner().len(), 64);
}

/// This program again, as the server of all paths.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
}

impl Server {
    pub fn start() -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        let mut child = command.env(SERVER, "1").stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { child, address: line.trim().parse().unwrap() }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Is this process to be the server?
pub fn is_server() -> bool {
    env::var_os(SERVER).is_some()
}

pub fn serve() {
    runtime().block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("{}", listener.local_addr().unwrap());
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            tokio::spawn(async move {
                let service = service_fn(answer);
                let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
}

async fn answer(request: Request<hyper::body::Incoming>) -> Result<Response<tonic::body::Body>, Infallible> {
    if request.uri().path() == METHOD {
        let echo = tower::service_fn(|request: tonic::Request<String>| async move {
            Ok::<_, tonic::Status>(tonic::Response::new(request.into_inner()))
        });
        let mut grpc = tonic::server::Grpc::new(ProstCodec::<String, String>::default());
        return Ok(grpc.unary(echo, request.map(tonic::body::Body::new)).await);
    }
    Ok(Response::new(tonic::body::Body::new(Full::new(Bytes::from_static(ANSWER)))))
}
