//! Reports of load as a server of another make reads them, of requests of every kind.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use http::{Method, Request, Uri};
use http_body_util::BodyExt;
use mesh_tower::{Body, Mesh};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tower::ServiceExt;

use crate::process::ControlPlane;
use crate::snapshots::{ads, endpoints, host, member, snapshot, until};

/// Answers `/bad` with 503, or `UNAVAILABLE`; `/wait` when there is a permit; and says how long its queue is.
async fn upstream(gate: Arc<Semaphore>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().fallback(move |method: Method, uri: Uri| {
        let gate = Arc::clone(&gate);
        async move {
            if uri.path() == "/wait" {
                gate.acquire().await.unwrap().forget();
            }
            let (bad, is_grpc) = (uri.path() == "/bad", method == Method::POST);
            let mut answer = http::Response::builder().status(if bad && !is_grpc { 503 } else { 200 }).header(
                "endpoint-load-metrics",
                "TEXT cpu_utilization=0.5,named_metrics.queue=3,named_metrics.other=1",
            );
            if is_grpc {
                let status = if bad { "14" } else { "0" };
                answer = answer.header("content-type", "application/grpc").header("grpc-status", status);
            }
            answer.body(axum::body::Body::from(if is_grpc { "" } else { "here" })).unwrap()
        }
    });
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

fn reported(name: &str, http2: bool) -> Value {
    let version = if http2 { "http2_protocol_options" } else { "http_protocol_options" };
    json!({
        "name": name, "type": "EDS", "connect_timeout": "1s",
        "eds_cluster_config": {"eds_config": ads(), "service_name": format!("of-{name}")},
        "lrs_server": {"self": {}},
        "lrs_report_endpoint_metrics": ["cpu_utilization", "named_metrics.queue"],
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {version: {}},
            },
        },
    })
}

/// Sends it and takes in the whole answer.
async fn send(mesh: Mesh, cluster: &'static str, path: &'static str) {
    let body = if cluster == "grpc" {
        let request = Request::post(path).body(Body::empty()).unwrap();
        mesh.grpc("grpc").unwrap().oneshot(request).await.unwrap().into_body().collect().await.map(drop)
    } else {
        let request = Request::get(format!("http://{cluster}{path}")).body(String::new()).unwrap();
        mesh.http().request(request).await.unwrap().into_body().collect().await.map(drop)
    };
    body.unwrap();
}

/// TE22: a server made of go-control-plane reads what became of HTTP/1.1, HTTP/2 and gRPC requests: how many were sent, how they
/// ended, which are under way, and what endpoints said of themselves; nothing of a cluster without `lrs_server`.
#[tokio::test(flavor = "multi_thread")]
async fn loads_are_reported_to_go_control_plane() {
    let Some(mut control_plane) = ControlPlane::start(&[]) else { return };
    let gate = Arc::new(Semaphore::new(0));
    let at = upstream(Arc::clone(&gate)).await;
    let kinds = ["http1", "http2", "grpc"];
    let mut clusters: Vec<_> = kinds.iter().map(|kind| reported(kind, *kind != "http1")).collect();
    let mut silent = reported("silent", false);
    silent.as_object_mut().unwrap().remove("lrs_server");
    clusters.push(silent);
    let hosts: Vec<_> = kinds.iter().chain(&["silent"]).map(|kind| host(kind, kind)).collect();
    let assignments: Vec<_> =
        kinds.iter().chain(&["silent"]).map(|kind| endpoints(&format!("of-{kind}"), at)).collect();
    control_plane.serve(&snapshot("1", &clusters, &assignments, &hosts));
    let mesh = member(&control_plane, false).await;
    until(&mesh, "silent", (200, "here")).await;

    let mut waiting = Vec::new();
    for kind in kinds {
        for path in ["/ok", "/ok", "/bad"] {
            send(mesh.clone(), kind, path).await;
        }
        waiting.push(tokio::spawn(send(mesh.clone(), kind, "/wait")));
    }
    // Sums over reports, and what was under way at the last: issued, successful, errors, in progress.
    let mut seen: BTreeMap<String, [u64; 4]> = BTreeMap::new();
    let mut queue: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    let mut take = |load: &Value| {
        let cluster = load["cluster"].as_str().unwrap().to_owned();
        assert_eq!(load["service"], format!("of-{cluster}"), "{load}");
        assert_eq!(load["features"], json!(["envoy.lrs.supports_send_all_clusters"]));
        assert_eq!(
            (&load["dropped"], &load["node"]),
            (&json!(0), &json!("sidecar~127.0.0.1~test.default~default.svc.cluster.local"))
        );
        assert!(load["seconds"].as_f64().unwrap() > 0.0);
        let sum = seen.entry(cluster.clone()).or_default();
        for place in load["places"].as_array().unwrap() {
            let number = |key: &str| place[key].as_u64().unwrap();
            for (sum, key) in sum.iter_mut().zip(["issued", "successful", "errors"]) {
                *sum += number(key);
            }
            sum[3] = number("in_progress");
            let metric = |key: &str| place["metrics"][key].as_f64().unwrap_or_default();
            let sums = queue.entry(cluster.clone()).or_default();
            *sums = (sums.0 + metric("cpu_utilization"), sums.1 + metric("named_metrics.queue"));
            assert!(place["metrics"].get("named_metrics.other").is_none());
        }
        (seen.clone(), queue.clone())
    };
    let all = |counts: [u64; 4]| -> BTreeMap<String, [u64; 4]> { kinds.map(|kind| (kind.to_owned(), counts)).into() };
    control_plane.until_reported(|load| take(load).0 == all([4, 2, 1, 1]));
    gate.add_permits(kinds.len());
    for sent in waiting {
        sent.await.unwrap();
    }
    // A report with nothing in it says nothing of what is under way, so the sums decide.
    let mut queues = BTreeMap::new();
    control_plane.until_reported(|load| {
        let (seen, queue) = take(load);
        queues = queue;
        seen.values().all(|counts| counts[..3] == [4, 3, 1])
    });
    assert_eq!(queues, kinds.map(|kind| (kind.to_owned(), (2.0, 12.0))).into());
}
