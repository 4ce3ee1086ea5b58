//! Retries alone, around a plain tonic channel: a gRPC call that fails twice and then succeeds.
//!
//! `cargo run --example retries`. A tiny server is started on a free port; no control plane, no other layer. Retries stay
//! within a tenth of the requests, and a status is found in the trailers as well as in the headers.
use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU32, Ordering},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Response, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_tower::{
    config::{GrpcRetry, RetryConditions, RetryPolicy},
    layer::{Fixed, LeafLayer, RetryLayer},
    plan::RoutePolicy,
};
use tonic::{client::Grpc, codegen::http::uri::PathAndQuery, transport::Channel};
use tonic_prost::ProstCodec;
use tower::Layer;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let channel = Channel::from_shared(format!("http://{}", start().await?))?.connect_lazy();

    // The layer, with a policy in front of it: two more tries when the server says UNAVAILABLE.
    let on = RetryConditions { grpc: vec![GrpcRetry::Unavailable], ..Default::default() };
    let retry = Some(RetryPolicy { on, retries: 2, ..Default::default() });
    let policy = Fixed::new(RoutePolicy { retry, ..Default::default() });
    let client = (policy, RetryLayer::new(), LeafLayer::mapped(tonic::body::Body::new)).layer(channel);

    // What a generated client does: `RatingsClient::new(client).get(request)`.
    let mut ratings = Grpc::new(client);
    let path = PathAndQuery::from_static("/ratings.Ratings/Get");
    let request = tonic::Request::new("book 0".to_owned());
    let answer = ratings.unary(request, path, ProstCodec::<String, String>::default()).await?;
    println!("the server says: {}", answer.into_inner());
    Ok(())
}

/// A gRPC server that is unavailable twice; then it answers with a `google.protobuf.StringValue`.
async fn start() -> std::io::Result<SocketAddr> {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let answer = service_fn(async |request: hyper::Request<hyper::body::Incoming>| {
        let _ = request.into_body().collect().await;
        let call = CALLS.fetch_add(1, Ordering::Relaxed) + 1;
        println!("call {call} arrives");
        let message = if call < 3 { &b""[..] } else { &b"\0\0\0\0\x10\x0a\x0efive stars: ok"[..] };
        let status = if call < 3 { 14 } else { 0 };
        let trailers = HeaderMap::from_iter([("grpc-status".parse()?, status.into())]);
        let body = Full::new(Bytes::from(message)).with_trailers(std::future::ready(Some(Ok(trailers))));
        Response::builder().header("content-type", "application/grpc").body(body)
    });
    let server = async move |stream| http2::Builder::new(TokioExecutor::new()).serve_connection(stream, answer).await;
    tokio::spawn(async move { server(TokioIo::new(listener.accept().await.ok()?.0)).await.ok() });
    Ok(address)
}
