//! The HTTP API as anything but `meshctl` meets it: a browser that a web page leads there, a client that errs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::SocketAddr;

use mesh_control::{
    ControlPlane, StartError,
    api::{Holdings, PortMtls},
    compile::MeshSettings,
    store::SourceFile,
};
use mesh_core::config::MtlsMode;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// The API answers this machine only: no web page gets through, whatever name it gives the loopback.
#[tokio::test(flavor = "multi_thread")]
async fn web_pages_and_strangers_are_refused() {
    let plane = start().await;
    let address = plane.api_address();
    let cases = [
        ("GET", "/version", format!("Host: {address}\r\n"), "", 200),
        ("GET", "/version", format!("Host: localhost:{}\r\n", address.port()), "", 200),
        ("GET", "/version", "Host: evil.example\r\n".to_owned(), "", 403),
        ("GET", "/version", format!("Host: {address}\r\nOrigin: https://evil.example\r\n"), "", 403),
        ("GET", "/version", format!("Host: {address}\r\nOrigin: null\r\n"), "", 403),
        ("GET", "/version", format!("Host: {address}\r\nOrigin: http://{address}\r\n"), "", 200),
        // What a page may send without asking first (CORS) is not JSON by its type.
        ("POST", "/apply", format!("Host: {address}\r\nContent-Type: text/plain\r\n"), "{\"files\":[]}", 415),
        ("POST", "/apply", format!("Host: {address}\r\nContent-Type: application/json\r\n"), "{}", 422),
        ("POST", "/apply", format!("Host: {address}\r\nContent-Type: application/json\r\n"), "{\"files\":[]}", 200),
        ("GET", "/objects?kind=pod", format!("Host: {address}\r\n"), "", 400),
        ("GET", "/objects?kind=vs&namespace=a&name=b", format!("Host: {address}\r\n"), "", 404),
        ("GET", "/nowhere", format!("Host: {address}\r\n"), "", 404),
        ("GET", "/ready", format!("Host: {address}\r\n"), "", 200),
    ];
    for (method, path, headers, body, expected) in cases {
        let request = format!(
            "{method} {path} HTTP/1.1\r\n{headers}Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let status = answer.split(' ').nth(1).unwrap();
        assert_eq!(status, expected.to_string(), "{request}\n\n{answer}");
        if expected >= 400 {
            assert!(answer.contains("\"error\":"), "{answer}");
        }
    }
}

/// Without authentication it stays on the loopback.
#[tokio::test]
async fn api_listens_on_the_loopback_only() {
    let elsewhere: SocketAddr = "0.0.0.0:0".parse().unwrap();
    let error = ControlPlane::builder().xds_addr(any()).api_addr(elsewhere).start().await.unwrap_err();
    assert!(matches!(error, StartError::NotLoopback(_)), "{error}");
}

/// OP10: dropped or shut down, it leaves its ports free and nothing behind.
#[tokio::test(flavor = "multi_thread")]
async fn ports_are_free_after_the_end() {
    let first = start().await;
    let (xds, api) = (first.xds_address(), first.api_address());
    first.shutdown().await;
    let second = ControlPlane::builder().xds_addr(xds).api_addr(api).start().await.unwrap();
    let error = ControlPlane::builder().xds_addr(xds).api_addr(any()).start().await.unwrap_err();
    assert!(error.to_string().contains(&xds.to_string()), "{error}");
    second.shutdown().await;
}

const POLICIES: &str = r#"apiVersion: apps/v1
kind: Deployment
metadata: {name: shop-v1}
spec:
  template:
    metadata: {labels: {app: shop}}
    spec: {containers: [{name: shop, ports: [{containerPort: 8080}, {containerPort: 9090}]}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: everybody, namespace: mesh-root}
spec: {mtls: {mode: PERMISSIVE}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: nobody, namespace: istio-system}
spec: {mtls: {mode: DISABLE}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: shop}
spec: {selector: {matchLabels: {app: shop}}, portLevelMtls: {9090: {mode: STRICT}}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: everywhere, namespace: mesh-root}
spec: {action: DENY, rules: [{to: [{operation: {paths: [/never]}}]}]}
"#;

/// OP4: what holds for a workload is told as it is compiled: by port, and from whatever namespace is the mesh's root.
#[tokio::test(flavor = "multi_thread")]
async fn what_holds_is_told_as_it_is_compiled() {
    let mesh = MeshSettings { root_namespace: "mesh-root".to_owned(), ..MeshSettings::default() };
    let files = vec![SourceFile { name: "shop.yaml".to_owned(), text: POLICIES.to_owned() }];
    let plane = ControlPlane::builder().xds_addr(any()).api_addr(any()).mesh(mesh).files(files).start().await.unwrap();
    let address = plane.api_address();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET /policies?workload=shop HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let holdings: Holdings = serde_json::from_str(body).expect(body);
    let [shop] = holdings.items.as_slice() else { panic!("{body}") };
    let by = |of: &PortMtls| (of.port, of.mode, of.by.as_ref().map(|by| by.name.clone()).unwrap_or_default());
    let ports: Vec<_> = shop.ports.iter().map(by).collect();
    assert_eq!(
        ports,
        [(8080, MtlsMode::Permissive, "everybody".to_owned()), (9090, MtlsMode::Strict, "shop".to_owned())]
    );
    assert_eq!(shop.other_ports.as_ref().map(by), Some((0, MtlsMode::Permissive, "everybody".to_owned())));
    let policies: Vec<_> = shop.policies.iter().map(|row| (row.action.as_str(), row.object.name.as_str())).collect();
    assert_eq!((shop.workload.as_str(), policies.as_slice()), ("shop-v1.default", &[("DENY", "everywhere")][..]));
}

async fn start() -> ControlPlane {
    ControlPlane::builder().xds_addr(any()).api_addr(any()).start().await.unwrap()
}

fn any() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}
