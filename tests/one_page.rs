//! The one-page programs, each run as it stands: they show one layer alone, and stay within a page.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use axum::{Router, routing::get};
use mesh::testing;
use mesh_control::WorkloadSpec;

/// A page.
const LINES: usize = 60;

/// Runs an example and expects these words in what it prints.
fn check(name: &str, words: &[&str]) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name).with_extension("rs");
    let lines = fs::read_to_string(&source).unwrap().lines().count();
    assert!(lines <= LINES, "{name} has {lines} lines");

    let test = std::env::current_exe().unwrap();
    let program = test.parent().and_then(Path::parent).unwrap().join("examples").join(name);
    assert!(program.exists(), "{} is not built: `cargo test` builds it, `--test` alone does not", program.display());
    let output = Command::new(program).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {}\n{said}", output.status);
    for word in words {
        assert!(said.contains(word), "{name} does not say {word:?}:\n{said}");
    }
}

#[test]
fn weighted_routing_alone() {
    check("weighted_routing", &["x v1, asked for reviews:9080", "x v2, asked for reviews:9080"]);
}

#[test]
fn retries_alone() {
    check("retries", &["call 3 arrives", "the server says"]);
}

#[test]
fn circuit_breaking_alone() {
    check("circuit_breaking", &["and the third: Some(", "request 10: 200 OK"]);
}

#[test]
fn mutual_tls_alone() {
    check("mtls", &["shop gets", "a stranger is refused", "in plaintext: Some("]);
}

#[test]
fn telemetry_alone() {
    check("telemetry", &["istio_requests_total"]);
}

/// OP13: routes are asserted of YAML alone, then the YAML is made live with a control plane in the process.
#[test]
fn a_mesh_inside_a_test() {
    check("testing", &["jason goes to v2, all others to v1", "he gets 200"]);
}

#[test]
fn reqwest_over_the_mesh() {
    check("reqwest", &["200 OK from http://ratings:9080/ratings?id=7", "[7, 5]"]);
}

const GATEWAY: &str = "
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: door}
spec:
  selector: {istio: ingressgateway}
  servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]
---
apiVersion: v1
kind: Service
metadata: {name: shop}
spec: {selector: {app: shop}, ports: [{name: http, port: 9080}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop}
spec: {hosts: ['*'], gateways: [door], http: [{route: [{destination: {host: shop}}]}]}
";

/// GW1: the gateway's program, as a process that is told by its control plane where to listen and where to send.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_of_any_mesh() {
    let source = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/gateway.rs")).unwrap();
    assert!(source.lines().count() <= LINES);
    let running = testing::Mesh::from_yaml(GATEWAY).start().await;
    let _shop = running.serve("shop-v1", Router::new().route("/", get(|| async { "from within" }))).await;
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let dir = tempfile::tempdir().unwrap();
    let spec = WorkloadSpec {
        namespace: "istio-system".to_owned(),
        labels: [("istio".to_owned(), "ingressgateway".to_owned())].into(),
        ports: vec![port],
        gateway: true,
        ..WorkloadSpec::new("door-1", Ipv4Addr::LOCALHOST.into())
    };
    let bootstrap = running.control_plane().bootstrap_for(&spec, dir.path()).unwrap();
    let test = std::env::current_exe().unwrap();
    let program = test.parent().and_then(Path::parent).unwrap().join("examples/gateway");
    let mut gateway = Command::new(program)
        .args(["--address", "127.0.0.1", "--map", &format!("80={port}")])
        .env("GRPC_XDS_BOOTSTRAP_CONFIG", bootstrap.to_string())
        .env("MESH_ADMIN_ADDR", "off")
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let url = format!("http://127.0.0.1:{port}/");
    let until = Instant::now() + Duration::from_secs(30);
    let body = loop {
        match reqwest::get(&url).await {
            Ok(answer) if answer.status() == 200 => break answer.text().await.unwrap(),
            other => assert!(Instant::now() < until, "{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    gateway.kill().unwrap();
    gateway.wait().unwrap();
    assert_eq!(body, "from within");
}
