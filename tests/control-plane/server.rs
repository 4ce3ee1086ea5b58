//! A server of ours by gRPC's rules on go-control-plane: it serves what the listener of its address says, and only while there
//! is one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::Router;
use bytes::Bytes;
use http::Version;
use http_body_util::{BodyExt, Full};
use mesh_tower::{Builder, Mesh, server::ServingState};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tower::ServiceExt;

use crate::{
    process::{ControlPlane, PATIENCE},
    snapshots::ads,
};

const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";

/// XD24, SV1, SV2, SV3, SV4, SV5, SV6: a server asks for the listener of its address, serves by its chains and routes, and tells
/// whether it does; what cannot be used is refused and changes nothing; another listener ends the connections of the one before,
/// other routes by name do not. A listener that is deleted stays in force, as gRPC has it (XD10).
#[tokio::test(flavor = "multi_thread")]
async fn a_server_serves_what_its_listener_says() {
    serves(false).await;
}

/// SV1, SV5, XD10: where the bootstrap wants errors to count, a server whose listener is refused or deleted closes its callers.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_a_listener_closes_its_callers() {
    serves(true).await;
}

async fn serves(strict: bool) {
    let Some(mut control_plane) = ControlPlane::start(&[]) else { return };
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let here = |chains: &Value| listener(address, address, chains);
    control_plane.serve(&snapshot("1", vec![listener(address, "127.0.0.1:9".parse().unwrap(), &chains("one"))], "/a"));

    let states = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&states);
    let mesh = member(&control_plane, strict, move |at, state| told.lock().unwrap().push((at, state.clone()))).await;
    let server = mesh.clone();
    tokio::spawn(async move {
        let handler = Router::new().fallback(|| async { "served" });
        server.serve_listener(socket, handler).await.unwrap();
    });
    let state = || states.lock().unwrap().last().cloned();
    let until_state = async |expected: &str| {
        let end = Instant::now() + PATIENCE;
        let is_so = |state: &ServingState| match state {
            ServingState::Serving => expected == "Serving",
            ServingState::NotServing(_) => expected != "Serving" && format!("{state:?}").contains(expected),
        };
        while !state().is_some_and(|(at, state)| at == address && is_so(&state)) {
            assert!(Instant::now() < end, "{expected}: {:?}", state());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    // It is for another address.
    until_state("is for 127.0.0.1:9").await;
    let client = Mesh::builder().off().build().await.unwrap();
    let answers = async |path: &str| {
        let mut answers = Vec::new();
        for kind in [Kind::Http1, Kind::Http2, Kind::Grpc] {
            answers.push(ask(&client, kind, address, path).await);
        }
        answers
    };
    let mut stranger = TcpStream::connect(address).await.unwrap();
    assert_eq!(stranger.read(&mut [0; 16]).await.unwrap_or(0), 0, "closed");

    control_plane.serve(&snapshot("2", vec![here(&chains("one"))], "/a"));
    until_state("Serving").await;
    assert_eq!(answers("/a").await, [200, 200, 200]);
    // A route that forwards is none for a server; nor is there any for the rest.
    assert_eq!(answers("/forward").await, [503, 503, 14]);
    assert_eq!(answers("/other").await, [503, 503, 14]);

    // Listeners that gRPC refuses leave the one before in force.
    let mut two = chains("one");
    let filter = two[0]["filters"][0].clone();
    two[0]["filters"].as_array_mut().unwrap().push(filter);
    control_plane.serve(&snapshot("3", vec![here(&two)], "/a"));
    let refusal = control_plane.until_asked(|asked| asked.kind == LISTENER && asked.error.contains("filters"));
    assert!(refusal.error.contains(&address.to_string()), "{}", refusal.error);
    if strict {
        until_state("NotServing").await;
        control_plane.serve(&snapshot("3b", vec![here(&chains("one"))], "/a"));
        until_state("Serving").await;
    }
    assert_eq!((answers("/a").await, state().unwrap().1), (vec![200, 200, 200], ServingState::Serving));

    // Routes by name change under a connection; another listener ends it.
    let mut kept = TcpStream::connect(address).await.unwrap();
    assert_eq!(over(&mut kept, "/a").await, 200);
    control_plane.serve(&snapshot("4", vec![here(&chains("one"))], "/b"));
    let end = Instant::now() + PATIENCE;
    while over(&mut kept, "/b").await != 200 {
        assert!(Instant::now() < end, "the other routes come into force");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // No caller comes from there: each is closed, and so is the one that was let in before.
    let mut narrow = chains("two");
    narrow[0]["filter_chain_match"] =
        json!({"source_prefix_ranges": [{"address_prefix": "203.0.113.0", "prefix_len": 24}]});
    control_plane.serve(&snapshot("5", vec![here(&narrow)], "/b"));
    let ended = tokio::time::timeout(PATIENCE, kept.read(&mut [0; 16])).await.expect("the connection ends");
    assert_eq!(ended.unwrap_or(0), 0);
    let mut stranger = TcpStream::connect(address).await.unwrap();
    assert_eq!(stranger.read(&mut [0; 16]).await.unwrap_or(0), 0, "no chain takes it");
    // The default chain does.
    let mut with_default = here(&narrow);
    with_default["default_filter_chain"] = chains("three")[0].clone();
    control_plane.serve(&snapshot("6", vec![with_default], "/b"));
    let end = Instant::now() + PATIENCE;
    while ask(&client, Kind::Http1, address, "/b").await != 200 {
        assert!(Instant::now() < end, "the default chain takes it");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    control_plane.serve(&snapshot("7", vec![], "/b"));
    if !strict {
        // A snapshot without listeners has no version of them.
        let end = Instant::now() + PATIENCE;
        let gone = |control_plane: &mut ControlPlane| {
            control_plane.catch_up();
            let last = control_plane.asked.iter().rfind(|asked| asked.kind == LISTENER);
            last.is_some_and(|asked| asked.version.is_empty())
        };
        while !gone(&mut control_plane) {
            assert!(Instant::now() < end, "the deletion is heard of");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(answers("/b").await, [200, 200, 200]);
        return;
    }
    until_state("no such resource").await;
    let mut stranger = TcpStream::connect(address).await.unwrap();
    assert_eq!(stranger.read(&mut [0; 16]).await.unwrap_or(0), 0, "closed");
    mesh.shutdown();
}

#[derive(Clone, Copy)]
enum Kind {
    Http1,
    Http2,
    Grpc,
}

/// The status of the answer: that of HTTP, or of gRPC if that is another than success; 0 is none.
async fn ask(client: &Mesh, kind: Kind, address: SocketAddr, path: &str) -> u16 {
    let mut request = http::Request::post(format!("http://{address}{path}")).body(Full::new(Bytes::new())).unwrap();
    let answer = match kind {
        Kind::Http1 => client.http().request(request).await,
        Kind::Http2 => {
            *request.version_mut() = Version::HTTP_2;
            client.http().request(request).await
        }
        Kind::Grpc => client.grpc(&address.to_string()).unwrap().oneshot(request).await,
    };
    let Ok(answer) = answer else { return 0 };
    let status = answer.headers().get("grpc-status").and_then(|status| status.to_str().ok()?.parse().ok());
    let http = answer.status().as_u16();
    let _ = answer.into_body().collect().await;
    status.unwrap_or(http)
}

/// One request over a connection that is kept.
async fn over(connection: &mut TcpStream, path: &str) -> u16 {
    connection.write_all(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    loop {
        let mut some = [0; 4096];
        let read = connection.read(&mut some).await.unwrap();
        assert!(read > 0, "it is kept");
        bytes.extend_from_slice(&some[..read]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length =
            head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse::<usize>().ok());
        if length.map_or_else(|| body.ends_with("0\r\n\r\n"), |length| body.len() >= length) {
            return head[9..12].parse().unwrap();
        }
    }
}

fn listener(name: SocketAddr, address: SocketAddr, chains: &Value) -> Value {
    json!({
        "name": format!("grpc/server/{name}"),
        "address": {"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}},
        "filter_chains": chains,
    })
}

fn chains(name: &str) -> Value {
    let router = json!({"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"});
    json!([{
        "name": name,
        "filters": [{
            "name": "hcm",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": name,
                "rds": {"config_source": ads(), "route_config_name": "inbound"},
                "http_filters": [{"name": "router", "typed_config": router}],
            },
        }],
    }])
}

fn snapshot(version: &str, listeners: Vec<Value>, path: &str) -> Value {
    let host = json!({"name": "all", "domains": ["*"], "routes": [
        {"match": {"prefix": path}, "non_forwarding_action": {}},
        {"match": {"prefix": "/forward"}, "route": {"cluster": "somewhere"}},
    ]});
    json!({
        "version": version, "clusters": [], "endpoints": [], "listeners": listeners,
        "routes": [{"name": "inbound", "virtual_hosts": [host]}],
    })
}

async fn member(
    control_plane: &ControlPlane,
    strict: bool,
    report: impl Fn(SocketAddr, &ServingState) + Send + Sync + 'static,
) -> Mesh {
    let bootstrap = json!({
        "xds_servers": [{
            "server_uri": control_plane.address, "channel_creds": [{"type": "insecure"}],
            "server_features": if strict { json!(["xds_v3", "fail_on_data_errors"]) } else { json!(["xds_v3"]) },
        }],
        "node": {"id": "grpc-server"},
        "server_listener_resource_name_template": "grpc/server/%s",
        "mesh": {"profile": "grpc"},
    });
    let text = bootstrap.to_string();
    let variable = |name: &str| match name {
        "GRPC_XDS_BOOTSTRAP_CONFIG" => Some(text.clone()),
        "MESH_ADMIN_ADDR" => Some("off".to_owned()),
        _ => None,
    };
    Builder::from_variables(variable).unwrap().on_serving_state(report).build().await.unwrap()
}
