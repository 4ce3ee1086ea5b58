//! Being a client of istiod: what it says of us, its certificates and what it demands of callers, connections that it closes, its
//! loss and return.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_xds::bootstrap::Bootstrap;
use mesh_xds::certs::CertSource;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::bookinfo::{Bookinfo, Way, turn};
use crate::front::{Front, PATIENCE};
use crate::handshake::{call, exchange, showing};
use crate::process::{self, Options};
use crate::steps::{Configured, all_to_v1};

const SECURE: Way = Way { secure: true, delta: false };
const V3: &str = "networking/virtual-service-reviews-v3.yaml";

/// Waits for what must come to be.
async fn until<F: Future<Output = bool>>(bookinfo: &Bookinfo, what: &str, mut done: impl FnMut() -> F) {
    let end = Instant::now() + PATIENCE;
    while !done().await {
        assert!(Instant::now() < end, "{what} does not come to be; said:\n{}", bookinfo.said());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// XD3, XD20: istiod lists every process by its node id, and each has acknowledged what it was sent last.
#[tokio::test(flavor = "multi_thread")]
async fn istiod_lists_its_clients_as_synced() {
    listed_as_synced(SECURE).await;
}

/// XD2, XD3: likewise by increments.
#[tokio::test(flavor = "multi_thread")]
async fn istiod_lists_incremental_clients_as_synced() {
    listed_as_synced(Way { delta: true, ..SECURE }).await;
}

async fn listed_as_synced(way: Way) {
    let Some(program) = process::program() else { return };
    let _turn = turn().await;
    let bookinfo = Bookinfo::start(program, way, Options::default()).await;
    all_to_v1(&bookinfo).await;
    for name in Bookinfo::names() {
        let id = bookinfo.node_id(name);
        // What istiod shows by is the third part.
        let shown = id.split('~').nth(2).unwrap();
        let end = Instant::now() + PATIENCE;
        loop {
            let list = bookinfo.istiod.get("/debug/syncz").await.json();
            let entry = list.as_array().and_then(|list| list.iter().find(|entry| entry["proxy"] == shown));
            if entry.is_some_and(in_sync) {
                break;
            }
            assert!(Instant::now() < end, "{name} is not in sync: {entry:#?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Whether listeners, routes, clusters and endpoints are acknowledged as sent, and nothing is refused.
fn in_sync(entry: &Value) -> bool {
    let Some(types) = entry["resources"].as_object() else { return false };
    let acknowledged = |state: &Value| state["sent"].is_string() && state["sent"] == state["acked"];
    types.len() >= 4 && types.values().all(|state| acknowledged(state) && state["lastError"].is_null())
}

/// CT4, AN4, AN5, AN8: certificates are istiod's, made for a token and our own key; with them one workload is let in by another,
/// which in mode STRICT nobody is without.
#[tokio::test(flavor = "multi_thread")]
async fn workloads_have_istiods_certificates_and_demand_them() {
    let Some(program) = process::program() else { return };
    let _turn = turn().await;
    let bookinfo = Bookinfo::start(program, SECURE, Options::default()).await;
    let source = CertSource::start(Arc::new(Bootstrap::from_file(&bookinfo.bootstrap_of("productpage-v1")).unwrap()));
    let mut identity = source.identity();
    let identity = identity.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    assert_eq!(identity.spiffe_id, "spiffe://cluster.local/ns/default/sa/bookinfo-productpage");

    for name in Bookinfo::names().filter(|name| !name.contains("gateway")) {
        let address = bookinfo.listens(name);
        let plain = exchange(TcpStream::connect(address).await.unwrap()).await;
        assert!(!plain.contains("HTTP/"), "{name}, plaintext: {plain}");
        let (config, seen) = showing(None);
        let stranger = call(address, config).await;
        assert!(!stranger.starts_with("HTTP/1.1"), "{name}, no certificate: {stranger}");
        let account = format!("spiffe://cluster.local/ns/default/sa/bookinfo-{}", name.split_once('-').unwrap().0);
        let shown = seen.certificate.lock().unwrap().clone();
        assert!(shown.windows(account.len()).any(|part| part == account.as_bytes()), "{name} is not {account}");
        let (config, _) = showing(Some((identity.chain.clone(), identity.key.clone_key())));
        let peer = call(address, config).await;
        assert!(peer.starts_with("HTTP/1.1 200"), "{name}, with a certificate: {peer}");
    }
}

/// AN4: a port is as its own filter chains in `virtualInbound` say: PERMISSIVE for one workload lets plaintext in there and nowhere else.
#[tokio::test(flavor = "multi_thread")]
async fn a_permissive_workload_takes_plaintext_too() {
    let Some(program) = process::program() else { return };
    let _turn = turn().await;
    let bookinfo = Bookinfo::start(program, SECURE, Options::default()).await;
    bookinfo.apply(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  name: details\n\
         spec: {selector: {matchLabels: {app: details}}, mtls: {mode: PERMISSIVE}}\n",
    );
    let plain = |name: &'static str| {
        let address = bookinfo.listens(name);
        async move { exchange(TcpStream::connect(address).await.unwrap()).await.starts_with("HTTP/1.1 200") }
    };
    until(&bookinfo, "plaintext for details", || plain("details-v1")).await;
    assert!(!plain("ratings-v1").await, "only for details");
    let page = bookinfo.page("").await;
    assert!(page.body.contains("PublisherA"), "{}", page.body);
}

/// XD19, XD22: a token of another namespace is not let in, and the process says why.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_another_namespace_is_refused() {
    let Some(program) = process::program() else { return };
    let _turn = turn().await;
    let bookinfo = Bookinfo::start(program, SECURE, Options::default()).await;
    let bootstrap = bookinfo.bootstrap_of("productpage-v1");
    let other = format!("{bootstrap}.other");
    let token = format!("{bootstrap}.token");
    bookinfo.istiod.write_token(token.as_ref(), "elsewhere", "bookinfo-productpage");
    let mut text: Value = serde_json::from_str(&std::fs::read_to_string(&bootstrap).unwrap()).unwrap();
    text["xds_servers"][0]["call_creds"][0]["config"]["jwt_token_file"] = token.into();
    std::fs::write(&other, text.to_string()).unwrap();
    let client = mesh_xds::client::Client::start(Arc::new(Bootstrap::from_file(&other).unwrap()));
    until(&bookinfo, "a refusal", || async {
        client.status().error.as_ref().is_some_and(|why| why.contains("PermissionDenied"))
    })
    .await;
    assert!(client.config().borrow().is_none(), "nothing was sent to a stranger");
}

/// Istiod closes every connection at its age, as production does; no request fails, and changes go on arriving.
async fn closed_at_their_age(way: Way) {
    let Some(program) = process::program() else { return };
    let _turn = turn().await;
    // The age is followed by ten seconds of grace, which istiod has no flag for.
    let options = Options { connection_age: Some(Duration::from_secs(1)) };
    let bookinfo = Bookinfo::start(program, way, options).await;
    all_to_v1(&bookinfo).await;
    let end = Instant::now() + Duration::from_secs(30);
    let mut count = BTreeMap::new();
    while Instant::now() < end {
        for (by, times) in bookinfo.reviews(20, "").await {
            *count.entry(by).or_insert(0) += times;
        }
    }
    assert!(count.keys().eq(["reviews-v1"]), "{count:?}; said:\n{}", bookinfo.said());
    let kind = if way.delta { "new delta connection" } else { "new connection" };
    let streams = bookinfo.istiod.streams(kind, "productpage-v1");
    assert!(streams >= 3, "{streams} streams of productpage in 30 seconds, so that none was closed");
    eprintln!("{count:?} over {streams} streams");
    bookinfo.apply_istio(V3);
    bookinfo.until_reviews_by(&["reviews-v3"], "").await;
}

/// XD8, XD9: state of the world.
#[tokio::test(flavor = "multi_thread")]
async fn connections_closed_at_their_age_cost_no_request() {
    closed_at_their_age(SECURE).await;
}

/// XD2, XD8, XD9: increments, which begin again with the versions held.
#[tokio::test(flavor = "multi_thread")]
async fn incremental_connections_closed_at_their_age_cost_no_request() {
    closed_at_their_age(Way { delta: true, ..SECURE }).await;
}

/// XD9: istiod killed costs no request; back, its changes arrive.
#[tokio::test(flavor = "multi_thread")]
async fn istiod_may_go_and_come_back() {
    let Some(program) = process::program() else { return };
    let _turn = turn().await;
    let mut bookinfo = Bookinfo::start(program, SECURE, Options::default()).await;
    all_to_v1(&bookinfo).await;
    bookinfo.istiod.kill();
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        let count = bookinfo.reviews(50, "").await;
        assert!(count.keys().eq(["reviews-v1"]), "{count:?}; said:\n{}", bookinfo.said());
    }
    bookinfo.apply_istio(V3);
    bookinfo.istiod.run().await;
    bookinfo.until_reviews_by(&["reviews-v3"], "").await;
}
