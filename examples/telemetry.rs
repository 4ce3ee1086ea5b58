//! Telemetry alone, around a plain hyper client: Istio's metrics, one event a request, and a trace that goes on.
//!
//! `cargo run --example telemetry`. A tiny server is started on a free port; no control plane, no other layer. Metrics go
//! through the `metrics` facade: to the recorder your application installed, else to the one printed here.

use std::{convert::Infallible, net::SocketAddr};

use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Bytes, server::conn::http1, service::service_fn};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo},
};
use mesh_tower::{
    Body,
    config::Workload,
    layer::{Fixed, LeafLayer, TelemetryLayer},
    plan::RoutePolicy,
    telemetry::{self, Telemetry},
};
use tower::{Layer, ServiceExt};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = start().await?;

    // The layer, told who we are.
    let shop = Workload { name: "shop-v1".into(), app: "shop".into(), version: "v1".into(), ..Workload::default() };
    let telemetry = TelemetryLayer::with(Telemetry::new(shop));
    let hyper = Client::builder(TokioExecutor::new()).build_http::<Body>();
    let client = (Fixed::new(RoutePolicy::default()), telemetry, LeafLayer::new()).layer(hyper);

    for _ in 0..3 {
        let request = Request::get(format!("http://{address}/")).body(Body::empty())?;
        let answer = client.clone().oneshot(request).await?.into_body().collect().await?.to_bytes();
        println!("{}", String::from_utf8_lossy(&answer));
    }
    let text = telemetry::render().unwrap_or_default();
    text.lines().filter(|line| line.contains("requests_total") || line.contains("_sum")).for_each(|l| println!("{l}"));
    Ok(())
}

/// A server that says which trace it was called in.
async fn start() -> std::io::Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let answer = service_fn(async |request: Request<hyper::body::Incoming>| {
        let trace = request.headers().get("traceparent").map(|trace| trace.as_bytes().to_vec()).unwrap_or_default();
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from([b"called in trace ", &trace[..]].concat()))))
    });
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
        }
    });
    Ok(address)
}
