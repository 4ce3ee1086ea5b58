//! Servers that policies might miss: a program that serves without the mesh's admission is shown as what it is, by the control plane
//! it has its policies from; what serves at a port that nobody declared, or before anything is configured, lets nobody past them.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::body::Body;
use http::Request;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use mesh_control::{
    ControlPlane, WorkloadSpec,
    api::{Protection, Proxies},
    store::SourceFile,
};
use mesh_tower::{
    Mesh,
    config::{Condition, Config, EVERY_PORT, Inbound, MtlsMode, RbacAction},
};
use mesh_xds::bootstrap::Bootstrap;
use serde_json::json;
use tokio::{net::TcpListener, time::timeout};

use crate::{
    authorization::{caller, enforced, rules},
    harness::Kind,
};

const PATIENCE: Duration = Duration::from_secs(30);

async fn until(plane: &ControlPlane, wanted: &Protection) {
    let end = Instant::now() + PATIENCE;
    loop {
        let client: Client<_, Body> = Client::builder(TokioExecutor::new()).build_http();
        let page = format!("http://{}/proxies", plane.api_address());
        let answer = client.request(Request::get(page).body(Body::empty()).unwrap()).await.unwrap();
        let body = axum::body::to_bytes(Body::new(answer.into_body()), usize::MAX).await.unwrap();
        let proxies: Proxies = serde_json::from_slice(&body).unwrap();
        let said = proxies.items.first().map(|proxy| proxy.protection.clone());
        if said.as_ref() == Some(wanted) {
            return;
        }
        assert!(Instant::now() < end, "{said:?} is not {wanted:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// OP1, AZ5: without policies there is nothing to enforce; with one it is not, until the mesh serves the port; and it is not again
/// when that has ended.
#[tokio::test(flavor = "multi_thread")]
async fn servers_without_admission_are_shown() {
    let dir = tempfile::tempdir().unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let plane = ControlPlane::builder().xds_addr(any).api_addr(any).start().await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let spec = WorkloadSpec { ports: vec![port], ..WorkloadSpec::new("shop-v1", [127, 0, 0, 1].into()) };
    let bootstrap = plane.bootstrap_for(&spec, dir.path()).unwrap();
    let bootstrap = Bootstrap::parse(&bootstrap.to_string(), "test").unwrap();
    let mesh = Mesh::builder().bootstrap(bootstrap).admin_addr(any).build().await.unwrap();
    mesh.ready().await;
    until(&plane, &Protection::None).await;
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: nobody}\nspec: {}\n";
    plane.apply(&[SourceFile { name: "policy.yaml".into(), text: policy.into() }]).unwrap();
    until(&plane, &Protection::Unprotected(vec![port])).await;

    let serving = mesh.clone();
    let handler = axum::Router::new().fallback(|| async { "hello" });
    let server = tokio::spawn(async move { serving.serve_listener(listener, handler).await });
    until(&plane, &Protection::Enforced).await;
    server.abort();
    until(&plane, &Protection::Unprotected(vec![port])).await;
}

/// AZ5, AN4: at a port that no service and no workload names the workload's policies hold, and its mode; they change with them.
#[tokio::test(flavor = "multi_thread")]
async fn policies_hold_at_ports_nobody_declared() {
    let dir = tempfile::tempdir().unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let plane = ControlPlane::builder().xds_addr(any).api_addr(any).start().await.unwrap();
    let apply = |policy: &str| {
        let mode = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: istio-system}\nspec: {mtls: {mode: PERMISSIVE}}\n";
        let policy = format!(
            "{mode}---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: some}}\n{policy}\n"
        );
        plane.apply(&[SourceFile { name: "policy.yaml".into(), text: policy }]).unwrap();
    };
    apply("spec: {}");
    // It declares one port, and serves at another.
    let spec = WorkloadSpec { ports: vec![9], ..WorkloadSpec::new("shop-v1", [127, 0, 0, 1].into()) };
    let bootstrap = plane.bootstrap_for(&spec, dir.path()).unwrap();
    let bootstrap = Bootstrap::parse(&bootstrap.to_string(), "test").unwrap();
    let mesh = Mesh::builder().bootstrap(bootstrap).build().await.unwrap();
    let address = serve(&mesh).await;
    for kind in Kind::ALL {
        let answer = timeout(PATIENCE, async { caller(kind, address).await.get("/a.B/C").await }).await.unwrap();
        assert!(answer.is(kind, 403), "{kind:?}: {answer:?}");
    }
    apply("spec: {rules: [{to: [{operation: {paths: [/a.B/*]}}]}]}");
    for kind in Kind::ALL {
        let program = caller(kind, address).await;
        let end = Instant::now() + PATIENCE;
        while program.get("/a.B/C").await.is(kind, 403) {
            assert!(Instant::now() < end, "{kind:?}: still refused");
        }
        assert!(program.get("/other").await.is(kind, 403), "{kind:?}");
        // The form of paths holds there, too.
        assert!(program.get("/a.B/../other").await.is(kind, 403), "{kind:?}");
    }
}

/// Everything is answered, over HTTP and over gRPC.
async fn serve(mesh: &Mesh) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (serving, handler) = (mesh.clone(), axum::Router::new().fallback(|| async { [("grpc-status", "0")] }));
    tokio::spawn(async move { serving.serve_listener(listener, handler).await });
    address
}

/// AZ5, XD18: as long as nothing is known of policies nobody is let in, whatever the control plane is doing; the first configuration
/// decides over whoever waits.
#[tokio::test]
async fn nobody_is_let_in_before_the_first_configuration() {
    for kind in Kind::ALL {
        // A control plane that takes connections and says nothing.
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let plane = silent.local_addr().unwrap().to_string();
        let server =
            json!({"server_uri": plane, "channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"]});
        let node = json!({"id": "sidecar~127.0.0.1~shop-v1.default~default.svc.cluster.local"});
        let bootstrap = json!({"xds_servers": [server], "node": node}).to_string();
        let bootstrap = Bootstrap::parse(&bootstrap, "test").unwrap();
        let mesh = Mesh::builder().bootstrap(bootstrap).build().await.unwrap();
        let address = serve(&mesh).await;
        let program = caller(kind, address).await;
        let mut asking = tokio::spawn(async move { program.get("/a.B/C").await });
        let early = timeout(Duration::from_millis(200), &mut asking).await;
        assert!(early.is_err(), "{kind:?}: {early:?}");
        let nothing = enforced(rules(RbacAction::Allow, "nobody", vec![Condition::Not(Box::new(Condition::Any))]));
        let inbound = Inbound { mtls: MtlsMode::Disable, guards: vec![nothing], ..Inbound::default() };
        let config = Config { inbound: [(EVERY_PORT, Arc::new(inbound))].into(), ..Config::default() };
        mesh.live().update(&config).unwrap();
        let answer = timeout(PATIENCE, asking).await.unwrap().unwrap();
        assert!(answer.is(kind, 403), "{kind:?}: {answer:?}");
    }
}
