//! Our client by gRPC's rules on go-control-plane: what is dialled, by name, and what is refused of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use mesh_tower::{Builder, Mesh};
use serde_json::{Value, json};

use crate::{
    process::ControlPlane,
    snapshots::{ads, cluster, endpoints, until, upstream},
};

const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";

/// NR1, NR4, XD34: a name that is dialled leads to its endpoints; its routes change, its listener is refused and stays.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_dialled_is_had_from_go_control_plane() {
    let Some(mut control_plane) = ControlPlane::start(&[]) else { return };
    let (one, two) = (upstream("one").await, upstream("two").await);
    let parts = |version: &str, to: &str, listener: Value| {
        let host = json!({"name": "greeter", "domains": ["greeter:9080"], "routes": [{"match": {"prefix": "/"},
            "route": {"cluster": to}}]});
        let at = if to == "one" { one } else { two };
        json!({
            "version": version, "clusters": [cluster(to, "1s")], "endpoints": [endpoints(to, at)],
            "listeners": [listener], "routes": [{"name": "routes", "virtual_hosts": [host]}],
        })
    };
    control_plane.serve(&parts("1", "one", listener(1)));
    let mesh = member(&control_plane).await;
    until(&mesh, "greeter:9080", (200, "one")).await;
    let asked = control_plane.until_asked(|asked| asked.kind == LISTENER && asked.names == 1);
    assert!(!asked.delta, "gRPC has no other variant");

    control_plane.serve(&parts("2", "two", listener(1)));
    until(&mesh, "greeter:9080", (200, "two")).await;

    // The router twice.
    control_plane.serve(&parts("3", "two", listener(2)));
    let refusal = control_plane.until_asked(|asked| asked.kind == LISTENER && !asked.error.is_empty());
    assert!(refusal.error.contains("greeter:9080") && refusal.error.contains("http_filters"), "{}", refusal.error);
    until(&mesh, "greeter:9080", (200, "two")).await;
}

fn listener(routers: usize) -> Value {
    let router = |n: usize| {
        json!({"name": format!("router {n}"), "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}})
    };
    json!({"name": "greeter:9080", "api_listener": {"api_listener": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "api",
        "rds": {"config_source": ads(), "route_config_name": "routes"},
        "http_filters": (0..routers).map(router).collect::<Vec<_>>(),
    }}})
}

async fn member(control_plane: &ControlPlane) -> Mesh {
    let bootstrap = json!({
        "xds_servers": [{
            "server_uri": control_plane.address, "channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"],
        }],
        "node": {"id": "grpc-client"},
        "mesh": {"profile": "grpc"},
    });
    let text = bootstrap.to_string();
    let variable = |name: &str| match name {
        "GRPC_XDS_BOOTSTRAP_CONFIG" => Some(text.clone()),
        "MESH_ADMIN_ADDR" => Some("off".to_owned()),
        _ => None,
    };
    Builder::from_variables(variable).unwrap().build().await.unwrap()
}
