//! TLS with others: OpenSSL's and Envoy's ends of it, in both roles, with contexts as Istio shapes them. What is missing is
//! said and skipped; where it is required, it fails.

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use axum::{Router, routing::get};
use http::StatusCode;
use mesh_tower::{
    Mesh,
    config::{Config, MtlsMode},
    tls::MtlsAcceptor,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};

use crate::{
    configs::{cluster, config, mutual},
    peers,
    pki::{Ca, Chain, Leaf, RATINGS, REVIEWS, chain_pem, pem},
    server::fetch,
};

const PATIENCE: Duration = Duration::from_secs(60);

fn program(name: &str) -> Option<PathBuf> {
    let found = peers::on_path(name);
    if found.is_none() {
        peers::missing(&format!("no `{name}` on the path"));
    }
    found
}

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A chain, its key and the root in files.
fn files(ca: &Ca, chain: &Chain) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let (chain, key) = chain_pem(chain);
    std::fs::write(dir.path().join("chain.pem"), chain).unwrap();
    std::fs::write(dir.path().join("key.pem"), key).unwrap();
    std::fs::write(dir.path().join("root.pem"), pem("CERTIFICATE", &ca.root())).unwrap();
    dir
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

async fn until_open(port: u16) {
    let start = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        assert!(start.elapsed() < PATIENCE, "nobody listens");
        sleep(Duration::from_millis(50)).await;
    }
}

/// AN5, AN10: OpenSSL as caller over TLS 1.3 and 1.2, with and without a certificate; what is older is not spoken.
#[tokio::test]
async fn openssl_calls() {
    let Some(openssl) = program("openssl") else { return };
    let ca = Ca::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = MtlsAcceptor::new(ca.live(REVIEWS));
    let server = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut accepted) = acceptor.accept(stream, MtlsMode::Strict).await else { return };
                let peer = accepted.peer().unwrap().to_string();
                let _ = accepted.write_all(format!("you are {peer}\n").as_bytes()).await;
                let _ = accepted.shutdown().await;
            });
        }
    });
    let good = files(&ca, &ca.sign(&Leaf { uris: &[RATINGS], ..Leaf::default() }));
    let bad = files(&ca, &Ca::new().sign(&Leaf { uris: &[RATINGS], ..Leaf::default() }));
    for (version, dir, believed) in [
        ("-tls1_3", Some(&good), true),
        ("-tls1_2", Some(&good), true),
        ("-tls1_3", Some(&bad), false),
        ("-tls1_2", Some(&bad), false),
        ("-tls1_3", None, false),
        ("-tls1_2", None, false),
        ("-tls1_1", Some(&good), false),
    ] {
        let mut command = tokio::process::Command::new(&openssl);
        command.args(["s_client", "-quiet", "-connect", &address.to_string(), version]);
        command.arg("-CAfile").arg(good.path().join("root.pem")).args(["-verify_return_error", "-ign_eof"]);
        if let Some(dir) = dir {
            command.arg("-cert").arg(dir.path().join("chain.pem")).arg("-key").arg(dir.path().join("key.pem"));
        }
        let output = timeout(PATIENCE, command.stdin(Stdio::null()).output()).await.unwrap().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let all = format!("{version} {said} {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(said.contains(&format!("you are {RATINGS}")), believed, "{all}");
    }
    server.abort();
}

/// AN5, AN6: OpenSSL as a server that demands a certificate: it is called over TLS 1.3 and 1.2, and judged.
#[tokio::test]
async fn openssl_is_called() {
    let Some(openssl) = program("openssl") else { return };
    let ca = Ca::new();
    let other = Ca::new();
    for (version, issuer, expected, status) in [
        ("-tls1_3", &ca, REVIEWS, StatusCode::OK),
        ("-tls1_2", &ca, REVIEWS, StatusCode::OK),
        ("-tls1_3", &ca, RATINGS, StatusCode::SERVICE_UNAVAILABLE),
        ("-tls1_2", &other, REVIEWS, StatusCode::SERVICE_UNAVAILABLE),
    ] {
        let dir = files(&ca, &issuer.sign(&Leaf::default()));
        let port = free_port();
        let mut command = Command::new(&openssl);
        command.current_dir(dir.path()).args(["s_server", "-www", version, "-accept", &format!("127.0.0.1:{port}")]);
        command.args(["-cert", "chain.pem", "-key", "key.pem", "-CAfile", "root.pem", "-Verify", "2"]);
        command.args(["-verify_return_error", "-alpn", "http/1.1"]);
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let _server = Running(command.spawn().unwrap());
        until_open(port).await;
        let mut target = cluster("reviews", &[([127, 0, 0, 1], port).into()]);
        target.tls = mutual(&[expected]);
        let builder = Mesh::builder().config(config("reviews", target)).identity(ca.identity(RATINGS));
        let mesh = builder.build().await.unwrap();
        let (answered, page) = timeout(PATIENCE, fetch(&mesh, "http://reviews:9080/")).await.unwrap();
        assert_eq!(answered, status, "{version} {expected}: {page}");
    }
}

fn common(chain: &Chain, ca: &Ca, name: &str, alpn: &[&str]) -> Value {
    let (chain, key) = chain_pem(chain);
    json!({
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [{"certificate_chain": {"inline_string": chain}, "private_key": {"inline_string": key}}],
        "validation_context": {
            "trusted_ca": {"inline_string": pem("CERTIFICATE", &ca.root())},
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": name}}],
        },
        "alpn_protocols": alpn,
    })
}

fn tls(direction: &str, mut context: Value) -> Value {
    let kind = format!("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{direction}TlsContext");
    context["@type"] = kind.into();
    json!({"name": "envoy.transport_sockets.tls", "typed_config": context})
}

fn listener(port: u16, socket: Option<Value>, action: (&str, Value)) -> Value {
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "x",
        "http_filters": [{"name": "router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
        "route_config": {"virtual_hosts": [{"name": "x", "domains": ["*"],
            "routes": [{"match": {"prefix": "/"}, (action.0): action.1}]}]},
    });
    let mut chain = json!({"filters": [{"name": "hcm", "typed_config": manager}]});
    if let Some(socket) = socket {
        chain["transport_socket"] = socket;
    }
    json!({"name": port.to_string(), "address": address(port), "filter_chains": [chain]})
}

fn address(port: u16) -> Value {
    json!({"socket_address": {"address": "127.0.0.1", "port_value": port}})
}

fn envoy(resources: &Value) -> Option<(Running, TempDir)> {
    let program = program("envoy")?;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("envoy.json");
    std::fs::write(&file, json!({"static_resources": resources}).to_string()).unwrap();
    let mut command = Command::new(program);
    command.arg("-c").arg(&file).args(["--use-dynamic-base-id", "--disable-hot-restart", "--concurrency", "1"]);
    let command = command.args(["-l", "error"]).stdin(Stdio::null()).stdout(Stdio::null());
    Some((Running(command.spawn().unwrap()), dir))
}

/// AN5, AN6, AN9, AN12: Envoy as server with an inbound context as Istio writes it: our callers prove who they are and go by
/// who it is, again and again with sessions resumed; one that it does not expect is refused.
#[tokio::test]
async fn envoy_is_called() {
    let ca = Ca::new();
    let port = free_port();
    let context = json!({
        "common_tls_context": common(&ca.sign(&Leaf::default()), &ca, RATINGS, &["h2", "http/1.1"]),
        "require_client_certificate": true,
    });
    let answer = json!({"status": 200, "body": {"inline_string": "hello"}});
    let served = listener(port, Some(tls("Downstream", context)), ("direct_response", answer));
    let Some(_envoy) = envoy(&json!({"listeners": [served]})) else { return };
    until_open(port).await;
    for (own, expected, status) in [
        (ca.identity(RATINGS), REVIEWS, StatusCode::OK),
        (ca.identity(RATINGS), RATINGS, StatusCode::SERVICE_UNAVAILABLE),
        (ca.identity("spiffe://cluster.local/ns/default/sa/other"), REVIEWS, StatusCode::SERVICE_UNAVAILABLE),
        (Ca::new().identity(RATINGS), REVIEWS, StatusCode::SERVICE_UNAVAILABLE),
    ] {
        let mut target = cluster("reviews", &[([127, 0, 0, 1], port).into()]);
        target.tls = mutual(&[expected]);
        target.connections.max_requests = 1;
        let mesh = Mesh::builder().config(config("reviews", target)).identity(own).build().await.unwrap();
        for _ in 0..3 {
            assert_eq!(timeout(PATIENCE, fetch(&mesh, "http://reviews:9080/")).await.unwrap().0, status, "{expected}");
        }
    }
}

/// AN5, AN6, AN9: Envoy as caller with an outbound context as Istio writes it: a server of ours takes it over HTTP/1.1 and
/// HTTP/2, and is refused where Envoy expects another.
#[tokio::test]
async fn envoy_calls() {
    let ca = Ca::new();
    let serving = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream: SocketAddr = serving.local_addr().unwrap();
    let mesh = Mesh::builder().config(Config::default()).identity(ca.identity(REVIEWS)).build().await.unwrap();
    let router = Router::new().route("/", get(async || "hello"));
    let server = tokio::spawn(async move { mesh.serve_listener(serving, router).await.unwrap() });
    let caller = ca.sign(&Leaf { uris: &[RATINGS], ..Leaf::default() });
    let cluster = |name: &str, expected: &str, alpn: &[&str], http: &str| {
        let context = json!({
            "common_tls_context": common(&caller, &ca, expected, alpn),
            "sni": "outbound_.9080_._.reviews.default.svc.cluster.local",
        });
        json!({
            "name": name, "type": "STATIC", "transport_socket": tls("Upstream", context),
            "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [
                {"endpoint": {"address": address(upstream.port())}}]}]},
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {(http): {}}}},
        })
    };
    let cases = [
        ("one", REVIEWS, &["istio-http/1.1", "istio", "http/1.1"][..], "http_protocol_options", "200"),
        ("two", REVIEWS, &["istio-h2", "istio", "h2"][..], "http2_protocol_options", "200"),
        ("other", RATINGS, &["istio-h2", "istio", "h2"][..], "http2_protocol_options", "503"),
    ];
    let ports: Vec<u16> = cases.iter().map(|_| free_port()).collect();
    let clusters: Vec<_> =
        cases.iter().map(|(name, expected, alpn, http, _)| cluster(name, expected, alpn, http)).collect();
    let route = |name: &str| ("route", json!({"cluster": name}));
    let listeners: Vec<_> = ports.iter().zip(&cases).map(|(port, case)| listener(*port, None, route(case.0))).collect();
    let Some(_envoy) = envoy(&json!({"listeners": listeners, "clusters": clusters})) else { return };
    for (port, (name, .., status)) in ports.iter().zip(&cases) {
        until_open(*port).await;
        let mut stream = TcpStream::connect(("127.0.0.1", *port)).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: reviews\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{name}: {answer}");
    }
    server.abort();
}
