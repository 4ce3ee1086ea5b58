//! Snapshots of go-control-plane in force in our client: whole ones, changed ones, such with bad resources, and a large one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::Router;
use http_body_util::BodyExt;
use mesh_tower::{Builder, Mesh};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::process::{ControlPlane, PATIENCE};

const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";

/// A server that answers everything with its name.
pub(crate) async fn upstream(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().fallback(move || async move { name });
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

/// A process of the mesh that this control plane feeds.
pub(crate) async fn member(control_plane: &ControlPlane, delta: bool) -> Mesh {
    let bootstrap = json!({
        "xds_servers": [{
            "server_uri": control_plane.address, "channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"],
        }],
        "node": {"id": "sidecar~127.0.0.1~test.default~default.svc.cluster.local"},
        "mesh": {"delta": delta},
    });
    let text = bootstrap.to_string();
    let variable = |name: &str| match name {
        "GRPC_XDS_BOOTSTRAP_CONFIG" => Some(text.clone()),
        "MESH_ADMIN_ADDR" => Some("off".to_owned()),
        _ => None,
    };
    Builder::from_variables(variable).unwrap().build().await.unwrap()
}

/// What is answered for this host, with its status.
async fn ask(mesh: &Mesh, host: &str) -> (u16, String) {
    let request = http::Request::get(format!("http://{host}/")).body(String::new()).unwrap();
    let answer = match tokio::time::timeout(PATIENCE, mesh.http().request(request)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return (599, error.to_string()),
        Err(_) => return (598, "no answer".to_owned()),
    };
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

/// Waits until this is the answer.
pub(crate) async fn until(mesh: &Mesh, host: &str, expected: (u16, &str)) {
    let end = Instant::now() + PATIENCE;
    loop {
        let answer = ask(mesh, host).await;
        if answer.0 == expected.0 && answer.1.contains(expected.1) {
            return;
        }
        assert!(Instant::now() < end, "{host} is answered with {answer:?}, not {expected:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) fn ads() -> Value {
    json!({"ads": {}, "resource_api_version": "V3"})
}

pub(crate) fn cluster(name: &str, timeout: &str) -> Value {
    json!({
        "name": name, "type": "EDS", "connect_timeout": timeout,
        "eds_cluster_config": {"eds_config": ads(), "service_name": name},
    })
}

pub(crate) fn endpoints(name: &str, at: SocketAddr) -> Value {
    let socket = json!({"address": at.ip().to_string(), "port_value": at.port()});
    json!({
        "cluster_name": name,
        "endpoints": [{
            "locality": {"region": "r"}, "load_balancing_weight": 1,
            "lb_endpoints": [{"endpoint": {"address": {"socket_address": socket}}}],
        }],
    })
}

pub(crate) fn host(name: &str, cluster: &str) -> Value {
    json!({"name": name, "domains": [name], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster}}]})
}

fn listener() -> Value {
    let router = json!({"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"});
    json!({
        "name": "0.0.0.0_80",
        "address": {"socket_address": {"address": "0.0.0.0", "port_value": 80}},
        "filter_chains": [{"filters": [{
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": "outbound",
                "rds": {"config_source": ads(), "route_config_name": "80"},
                "http_filters": [{"name": "envoy.filters.http.router", "typed_config": router}],
            },
        }]}],
    })
}

pub(crate) fn snapshot(version: &str, clusters: &[Value], endpoints: &[Value], hosts: &[Value]) -> Value {
    json!({
        "version": version, "clusters": clusters, "endpoints": endpoints, "listeners": [listener()],
        "routes": [{"name": "80", "virtual_hosts": hosts}],
    })
}

/// Good resources, then a bad one among them, then that one made good, then one changed, then one gone.
async fn snapshots_are_in_force(delta: bool) {
    let Some(mut control_plane) = ControlPlane::start(&[]) else { return };
    let (one, two) = (upstream("one").await, upstream("two").await);
    let hosts = [host("one", "one"), host("two", "two")];
    let assignments = [endpoints("one", one), endpoints("two", two)];

    // The second has a time limit that is none.
    control_plane.serve(&snapshot("1", &[cluster("one", "1s"), cluster("two", "-1s")], &assignments, &hosts));
    let mesh = member(&control_plane, delta).await;
    until(&mesh, "one", (200, "one")).await;
    let refusal = control_plane.until_asked(|asked| asked.kind == CLUSTER && !asked.error.is_empty());
    assert_eq!(refusal.delta, delta);
    for part in ["\"two\"", "connect_timeout"] {
        assert!(refusal.error.contains(part), "no {part} in {}", refusal.error);
    }
    assert!(!refusal.error.contains("\"one\""), "{}", refusal.error);
    until(&mesh, "two", (503, "")).await;

    control_plane.serve(&snapshot("2", &[cluster("one", "1s"), cluster("two", "1s")], &assignments, &hosts));
    until(&mesh, "two", (200, "two")).await;

    // A bad version of one that is in force costs nothing.
    control_plane.serve(&snapshot("3", &[cluster("one", "-1s"), cluster("two", "1s")], &assignments, &hosts));
    control_plane.until_asked(|asked| asked.error.contains("\"one\""));
    assert_eq!(ask(&mesh, "one").await, (200, "one".to_owned()));

    // Endpoints alone change places.
    let swapped = [endpoints("one", two), endpoints("two", one)];
    control_plane.serve(&snapshot("4", &[cluster("one", "1s"), cluster("two", "1s")], &swapped, &hosts));
    until(&mesh, "one", (200, "two")).await;
    until(&mesh, "two", (200, "one")).await;

    control_plane.serve(&snapshot("5", &[cluster("one", "1s")], &swapped[..1], &hosts[..1]));
    until(&mesh, "two", (404, "")).await;
    assert_eq!(ask(&mesh, "one").await, (200, "two".to_owned()));
}

/// XD1, XD3, XD4, XD5: a snapshot server of another make, state of the world: what is good is in force, what is bad is refused by name
/// and field, what is left out goes.
#[tokio::test(flavor = "multi_thread")]
async fn state_of_the_world_snapshots_are_in_force() {
    snapshots_are_in_force(false).await;
}

/// XD2, XD3, XD4: the same by increments.
#[tokio::test(flavor = "multi_thread")]
async fn incremental_snapshots_are_in_force() {
    snapshots_are_in_force(true).await;
}

/// XD1, XD15: ten thousand services from a server that reads only between writes: the first request is answered, and few requests are
/// made of the server.
#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_services_cost_few_requests() {
    let backend = upstream("many").await;
    for (flags, delta) in [(&["-lockstep"][..], false), (&["-consistent"], false), (&[], true)] {
        let Some(mut control_plane) = ControlPlane::start(flags) else { return };
        control_plane.serve(&json!({"version": "1", "generate": 10_000, "backend": backend.to_string()}));
        let mesh = member(&control_plane, delta).await;
        let start = Instant::now();
        until(&mesh, "service-7777", (200, "many")).await;
        let took = start.elapsed();
        control_plane.catch_up();
        let count = control_plane.asked.len();
        eprintln!("{flags:?}, delta {delta}: answered after {took:?}, {count} requests to the control plane");
        assert!(count < 20, "{count} requests: {:#?}", control_plane.asked);
        let refused = control_plane.asked.iter().find(|asked| !asked.error.is_empty());
        assert!(refused.is_none(), "{refused:?}");
    }
}
