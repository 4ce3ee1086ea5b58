//! A program that serves without the mesh's admission while policies are about it is shown as what it is, by the control plane it
//! has its policies from.

use std::{
    net::SocketAddr,
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
use mesh_tower::Mesh;
use mesh_xds::bootstrap::Bootstrap;
use tokio::net::TcpListener;

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
