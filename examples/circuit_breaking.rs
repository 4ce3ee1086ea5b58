//! Circuit breaking alone, around a plain hyper client: two requests at once and no more; three failures leave one out.
//!
//! `cargo run --example circuit_breaking`. Two tiny servers are started on free ports; no control plane, no other layer.
use std::{net::SocketAddr, sync::Arc, time::Duration};

use http_body_util::Empty;
use hyper::{Request, Response, body::Bytes, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_tower::{
    Body,
    cluster::Cluster,
    config::{self, Endpoints, LoadBalancer, LocalityEndpoints, OutlierDetection, Thresholds},
    layer::{BalanceLayer, Fixed, LeafLayer},
    plan::RoutePolicy,
};
use tower::{Layer, ServiceExt};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let endpoints = vec![start(200).await?.into(), start(500).await?.into()];
    let localities = vec![LocalityEndpoints { endpoints, ..Default::default() }];
    let outliers = OutlierDetection { consecutive_5xx: 3, max_ejection_percent: 50, ..Default::default() };
    let reviews = config::Cluster {
        name: "reviews".into(),
        endpoints: Arc::new(Endpoints { localities, ..Default::default() }),
        load_balancer: LoadBalancer::RoundRobin,
        thresholds: Thresholds { max_requests: 2, ..Default::default() },
        outlier_detection: Some(outliers),
        ..Default::default()
    };
    // The layer, with a policy in front of it that names the cluster.
    let policy = Fixed::new(RoutePolicy::default()).cluster(Arc::new(Cluster::compile(&Arc::new(reviews), None)));
    let hyper = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build_http::<Body>();
    let client = (policy, BalanceLayer::new(), LeafLayer::new()).layer(hyper);
    let call = async || -> Result<_, Box<dyn std::error::Error>> {
        Ok(client.clone().oneshot(Request::get("http://reviews:9080/").body(Body::empty())?).await?)
    };
    let (one, two, three) = tokio::join!(call(), call(), call());
    println!("at once: {}, {}, and the third: {:?}", one?.status(), two?.status(), three.err());
    for n in 1..=10 {
        println!("request {n}: {}", call().await?.status());
    }
    Ok(())
}

/// A server that takes its time and always answers with `status`.
async fn start(status: u16) -> std::io::Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let answer = service_fn(move |_| async move {
        tokio::time::sleep(Duration::from_millis(20)).await;
        Response::builder().status(status).body(Empty::<Bytes>::new())
    });
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
        }
    });
    Ok(address)
}
