//! Weighted routing alone, around a plain hyper client: four requests of five go to v1, one to v2.
//!
//! `cargo run --example weighted_routing`. Two tiny servers are started on free ports; no control plane, no other layer.

use std::{collections::BTreeMap, convert::Infallible, net::SocketAddr};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use mesh_tower::{
    Body,
    layer::{LeafLayer, RouteLayer},
};
use tower::{Layer, ServiceExt};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (v1, v2) = (start("v1").await?, start("v2").await?);

    // The layer: where requests go, by weight. Whatever host they name stays in their `Host` header.
    let split = RouteLayer::split([(v1.to_string(), 80), (v2.to_string(), 20)])?;
    let hyper: Client<HttpConnector, Body> = Client::builder(TokioExecutor::new()).build_http();
    let client = (split, LeafLayer::new()).layer(hyper);

    let mut counts = BTreeMap::new();
    for _ in 0..1_000 {
        let request = Request::get("http://reviews:9080/reviews/0").body(Body::empty())?;
        let answer = client.clone().oneshot(request).await?.into_body().collect().await?.to_bytes();
        *counts.entry(String::from_utf8(answer.to_vec())?).or_insert(0) += 1;
    }
    for (answer, count) in counts {
        println!("{count:4} x {answer}");
    }
    Ok(())
}

/// A server that says its name, and which host it was asked for.
async fn start(name: &'static str) -> std::io::Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = service_fn(move |request: Request<Incoming>| async move {
                let host = request.headers().get("host").and_then(|host| host.to_str().ok()).unwrap_or("nobody");
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(format!("{name}, asked for {host}")))))
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
        }
    });
    Ok(address)
}
