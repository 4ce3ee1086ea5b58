//! A large mesh comes in with few requests, and from a server that reads only between writes.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use mesh_core::snapshot::Snapshot;
use mesh_xds::{
    ads::{ResourceSet, TypeUrl},
    bootstrap::Bootstrap,
    client::Client,
    translate::{Shape, encode},
};
use tokio::{net::TcpListener, sync::watch};

#[path = "size/large.rs"]
mod large;
#[path = "size/plain.rs"]
mod plain;

/// XD15: a thousand clusters, routes and ten thousand endpoints come in with fewer than twenty requests, from a server that
/// writes each answer whole before it reads again; one changed endpoint leaves everything else the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_mesh_takes_few_requests() {
    const SERVICES: usize = 1_000;
    let first = large::config(SERVICES, 9);
    let views = watch::Sender::new(Arc::new(encode(&first, Shape::Sidecar)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = plain::Plain::new(views.subscribe());
    server.serve(listener);
    let text = format!(
        r#"{{"xds_servers": [{{"server_uri": "{address}", "channel_creds": [{{"type": "insecure"}}], "server_features": ["xds_v3"]}}],
            "node": {{"id": "sidecar~10.0.0.1~a.default~default.svc.cluster.local"}}}}"#
    );
    let client = Client::start(Arc::new(Bootstrap::parse(&text, "test").unwrap()));
    let mut configs = client.config();
    let whole = configs.wait_for(|config| config.as_ref().is_some_and(|config| config.clusters.len() == SERVICES));
    let before =
        tokio::time::timeout(PATIENCE, whole).await.expect("the first configuration").unwrap().clone().unwrap();
    assert_eq!(before.outbound[&80].virtual_hosts.len(), SERVICES);
    Snapshot::compile(&before, None).unwrap();
    assert!(
        before.clusters.values().all(|cluster| cluster.endpoints.localities[0].endpoints.len() == large::ENDPOINTS)
    );

    let mut resources = ResourceSet::clone(&views.borrow());
    let one = mesh_core::config::Config {
        clusters: [(large::cluster_name(500), large::cluster(500, 9, 1))].into(),
        ..Default::default()
    };
    for (name, resource) in encode(&one, Shape::Sidecar).iter(TypeUrl::Endpoint) {
        resources.insert(TypeUrl::Endpoint, name.clone(), resource.body.clone());
    }
    views.send_replace(Arc::new(resources));
    let changed = configs.wait_for(|config| !Arc::ptr_eq(config.as_ref().unwrap(), &before));
    let after = tokio::time::timeout(PATIENCE, changed).await.expect("the change").unwrap().clone().unwrap();
    assert_eq!(after.clusters[&large::cluster_name(500)].endpoints, large::endpoints(500, 9, 1));
    let differ = before.clusters.iter().filter(|(name, old)| !Arc::ptr_eq(old, &after.clusters[*name])).count();
    assert_eq!((differ, Arc::ptr_eq(&before.outbound[&80], &after.outbound[&80])), (1, true));
    let asked = server.requests.load(Relaxed);
    assert!(asked < 20, "{asked} requests");
}

const PATIENCE: Duration = Duration::from_secs(60);
