//! Serving: mutual TLS between two members, what travels through a handler, refusals, telemetry, draining, gateways.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, extract::State, routing::get};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use mesh_tower::{
    Mesh,
    config::{ClientCertHeader, Config, ForwardClientCert, Inbound, MtlsMode, Workload},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinHandle,
};

use crate::{
    configs::{cluster, config, config_at, mutual},
    pki::{Ca, RATINGS, REVIEWS},
};

/// AN3, AN4, TE1: two members speak mutual TLS; who called is told by the destination.
#[tokio::test]
async fn members_speak_mutual_tls_and_both_tell() {
    let ca = Ca::new();
    let (address, _server) = member(&ca, REVIEWS, "reviews-sv", Config::default(), hello()).await;
    let mut target = cluster("reviews-sv", &[address]);
    target.tls = mutual(&[REVIEWS]);
    let client = Mesh::builder()
        .config(config("reviews", target))
        .identity(ca.identity(RATINGS))
        .workload(workload("ratings-sv"))
        .build()
        .await
        .unwrap();
    assert_eq!(fetch(&client, "http://reviews:9080/").await, (StatusCode::OK, "hello".to_owned()));
    let metrics = mesh_tower::telemetry::render().unwrap();
    let line = |reporter: &str| {
        let reporter = format!("reporter=\"{reporter}\"");
        let about = |line: &&str| line.starts_with("istio_requests_total") && line.contains(&reporter);
        let of = "destination_service=\"reviews-sv.default.svc.cluster.local\"";
        metrics.lines().filter(about).find(|line| line.contains(of)).unwrap_or_else(|| panic!("{metrics}")).to_owned()
    };
    let (source, destination) = (line("source"), line("destination"));
    assert!(source.contains("connection_security_policy=\"unknown\""), "{source}");
    assert!(source.contains(&format!("destination_principal=\"{REVIEWS}\"")), "{source}");
    assert!(destination.contains("connection_security_policy=\"mutual_tls\""), "{destination}");
    assert!(destination.contains(&format!("source_principal=\"{RATINGS}\"")), "{destination}");
    assert!(destination.contains("response_code=\"200\""), "{destination}");
}

/// CT14, SV9: what the application is told of the caller's certificate is what the port says; what arrives under its name is
/// believed as far as it says, and without a certificate only if it says so. Over HTTP/1.1 and HTTP/2.
#[tokio::test]
async fn the_application_is_told_of_the_callers_certificate() {
    use ForwardClientCert::{AlwaysForwardOnly, AppendForward, ForwardOnly, Sanitize, SanitizeSet};
    use mesh_tower::config::{Protocol, TlsMode};
    const FORGED: &str = "By=x;URI=spiffe://cluster.local/ns/default/sa/admin";
    let ca = Ca::new();
    let echo = Router::new().route(
        "/",
        get(async |headers: HeaderMap| {
            let values = headers.get_all("x-forwarded-client-cert").iter().map(|it| it.to_str().unwrap().to_owned());
            values.collect::<Vec<_>>().join("|")
        }),
    );
    for (mode, secure, plain) in [
        (Sanitize, "", ""),
        (ForwardOnly, "forged", ""),
        (AppendForward, "forged,own", ""),
        (SanitizeSet, "own", ""),
        (AlwaysForwardOnly, "forged", "forged"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let client_cert = ClientCertHeader { mode, subject: true, uri: true, dns: true, ..ClientCertHeader::default() };
        let inbound = Inbound { mtls: MtlsMode::Permissive, client_cert, ..Inbound::default() };
        let policy = Config { inbound: [(address.port(), Arc::new(inbound))].into(), ..Config::default() };
        let (address, _server) = member_on(listener, &ca, REVIEWS, "reviews-cert", policy, echo.clone()).await;
        for (tls, expected) in [(mutual(&[]), secure), (TlsMode::Disable, plain)] {
            for protocol in [Protocol::Http1, Protocol::Http2] {
                let mut target = cluster("reviews", &[address]);
                (target.tls, target.protocol) = (tls.clone(), protocol);
                let client = Mesh::builder().config(config("reviews", target)).identity(ca.identity(RATINGS));
                let client = client.build().await.unwrap();
                let request = Request::get("http://reviews:9080/").header("x-forwarded-client-cert", FORGED);
                let request = request.body(Empty::<bytes::Bytes>::new()).unwrap();
                let response = client.http().request(request).await.unwrap();
                let told = response.into_body().collect().await.unwrap().to_bytes();
                let told = String::from_utf8_lossy(&told).into_owned();
                let mut parts: Vec<String> = Vec::new();
                for part in told.split(',').filter(|part| !part.is_empty()) {
                    if part == FORGED {
                        parts.push("forged".to_owned());
                        continue;
                    }
                    let own = part.strip_prefix(&format!("By={REVIEWS};Hash=")).expect(part);
                    let (hash, rest) = own.split_once(';').unwrap();
                    assert!(hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()), "{told}");
                    assert!(rest.starts_with("Subject=\"") && rest.ends_with(&format!(";URI={RATINGS}")), "{told}");
                    parts.push("own".to_owned());
                }
                assert_eq!(parts.join(","), expected, "{mode:?} {protocol:?}: {told}");
            }
        }
    }
}

/// AN4: STRICT refuses plaintext and certificates of another CA; a server asked for one refuses by default.
#[tokio::test]
async fn strict_refuses_plaintext_and_strangers() {
    let ca = Ca::new();
    let (address, _server) = member(&ca, REVIEWS, "reviews-strict", Config::default(), hello()).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: reviews\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP/"), "{answer:?}");
    for (identity, expected, status) in [
        (Ca::new().identity(RATINGS), &[][..], StatusCode::SERVICE_UNAVAILABLE),
        (ca.identity(RATINGS), &[RATINGS][..], StatusCode::SERVICE_UNAVAILABLE),
        (ca.identity(RATINGS), &[REVIEWS][..], StatusCode::OK),
    ] {
        let mut target = cluster("reviews", &[address]);
        target.tls = mutual(expected);
        let client = Mesh::builder().config(config("reviews", target)).identity(identity).build().await.unwrap();
        assert_eq!(fetch(&client, "http://reviews:9080/").await.0, status, "{expected:?}");
    }
}

/// AN4, SV10, CP1: a port that is PERMISSIVE by configuration takes plaintext too, HTTP/1.1, HTTP/2 and whichever the
/// two ends agree on.
#[tokio::test]
async fn permissive_ports_take_plaintext_too() {
    let ca = Ca::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let inbound = Inbound { mtls: MtlsMode::Permissive, ..Inbound::default() };
    let policy = Config { inbound: [(address.port(), Arc::new(inbound))].into(), ..Config::default() };
    let (address, _server) = member_on(listener, &ca, REVIEWS, "reviews-permissive", policy, hello()).await;
    for tls in [mutual(&[]), mesh_tower::config::TlsMode::Disable] {
        use mesh_tower::config::Protocol;
        for protocol in [Protocol::Http1, Protocol::Http2, Protocol::Auto] {
            let mut target = cluster("reviews", &[address]);
            (target.tls, target.protocol) = (tls.clone(), protocol);
            let client = Mesh::builder().config(config("reviews", target)).identity(ca.identity(RATINGS));
            let client = client.build().await.unwrap();
            assert_eq!(fetch(&client, "http://reviews:9080/").await.0, StatusCode::OK, "{tls:?} {protocol:?}");
        }
    }
}

/// TE13: trace, request id and chosen headers travel through a handler that copies nothing; the headers peers
/// introduce themselves with, and the others, do not.
#[tokio::test]
async fn context_travels_through_a_handler() {
    let (inner, _) = crate::pool::serve(Router::new().route(
        "/",
        get(async |headers: HeaderMap| {
            let mut names: Vec<_> = headers.iter().map(|(k, v)| format!("{k}={}\n", v.to_str().unwrap())).collect();
            names.sort();
            names.concat()
        }),
    ))
    .await;
    let outer = Mesh::builder().config(config("inner", cluster("inner", &[inner]))).build().await.unwrap();
    let router = Router::new()
        .route("/", get(async |State(mesh): State<Mesh>| fetch(&mesh, "http://inner:9080/").await.1))
        .with_state(outer.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn({
        let outer = outer.clone();
        async move { outer.serve_listener(listener, router).await.unwrap() }
    });
    let client = Mesh::builder().config(config("outer", cluster("outer", &[address]))).build().await.unwrap();
    let request = Request::get("http://outer:9080/")
        .header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
        .header("x-request-id", "id-1")
        .header("end-user", "jason")
        .header("cookie", "secret")
        .header("x-envoy-peer-metadata", "forged")
        .body(Empty::<bytes::Bytes>::new())
        .unwrap();
    let response = client.http().request(request).await.unwrap();
    let seen = String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap();
    for expected in ["traceparent=00-4bf92f3577b34da6a3ce929d0e0e4736-", "x-request-id=id-1", "end-user=jason"] {
        assert!(seen.contains(expected), "{expected} in {seen}");
    }
    for unexpected in ["cookie", "x-envoy-peer-metadata"] {
        assert!(!seen.contains(unexpected), "{unexpected} in {seen}");
    }
    server.abort();
}

/// SV7: once serving ends, requests under way are answered and new connections are not taken.
#[tokio::test]
async fn draining_answers_what_is_under_way() {
    let (gate, arrived) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (waiting, here) = (Arc::clone(&gate), Arc::clone(&arrived));
    let router = Router::new().route(
        "/",
        get(async move || {
            here.add_permits(1);
            waiting.acquire().await.unwrap().forget();
            "answered"
        }),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mesh = Mesh::builder().config(Config::default()).build().await.unwrap();
    let server = tokio::spawn({
        let mesh = mesh.clone();
        async move { mesh.serve_listener(listener, router).await.unwrap() }
    });
    let client = Mesh::builder().config(config("slow", cluster("slow", &[address]))).build().await.unwrap();
    let call = tokio::spawn(async move { fetch(&client, "http://slow:9080/").await });
    arrived.acquire().await.unwrap().forget();
    mesh.shutdown();
    while TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    gate.add_permits(1);
    assert_eq!(call.await.unwrap(), (StatusCode::OK, "answered".to_owned()));
    tokio::time::timeout(Duration::from_secs(4), server).await.expect("the server ends once it is empty").unwrap();
}

/// GW1: a gateway sends on what its listener's routes list, answers 404 to the rest, and lets nobody forge headers.
#[tokio::test]
async fn a_gateway_serves_what_is_listed() {
    let (inner, _) = crate::pool::serve(Router::new().route(
        "/",
        get(async |headers: HeaderMap| {
            let of = |name: &str| headers.get(name).map_or("-", |value| value.to_str().unwrap()).to_owned();
            let names = ["x-forwarded-for", "x-forwarded-proto", "x-envoy-decorator-operation", "host"];
            names.map(of).join(" ") + if headers.contains_key("x-request-id") { " id" } else { "" }
        }),
    ))
    .await;
    let gateway = Mesh::builder()
        .config(config_at(8080, "bookinfo.example", cluster("productpage", &[inner])))
        .build()
        .await
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn({
        let gateway = gateway.clone();
        async move { gateway.gateway_listener(listener, 8080).await }
    });
    let outside = Mesh::builder().off().build().await.unwrap();
    let ask = async |host: &str| {
        let request = Request::get(format!("http://{address}/"))
            .header("x-envoy-decorator-operation", "forged")
            .header("x-forwarded-for", "10.0.0.9");
        let mut request = request.body(Empty::<bytes::Bytes>::new()).unwrap();
        if !host.is_empty() {
            request.headers_mut().insert("host", host.parse().unwrap());
        }
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!(
            "GET / HTTP/1.1\r\nhost: {host}\r\nx-envoy-decorator-operation: forged\r\nx-forwarded-for: 10.0.0.9\r\n\
             connection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let answer = ask("bookinfo.example").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("10.0.0.9,127.0.0.1 http - bookinfo.example id"), "{answer}");
    let answer = ask("elsewhere.example").await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    drop(outside);
    server.abort();
}

fn hello() -> Router {
    Router::new().route("/", get(async || "hello"))
}

fn workload(name: &str) -> Workload {
    Workload {
        name: format!("{name}-v1").into(),
        namespace: "default".into(),
        canonical_name: name.into(),
        ..Workload::default()
    }
}

/// A member of the mesh that serves until the handle is dropped.
async fn member(ca: &Ca, id: &str, name: &str, policy: Config, router: Router) -> (SocketAddr, Aborted) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    member_on(listener, ca, id, name, policy, router).await
}

async fn member_on(
    listener: TcpListener,
    ca: &Ca,
    id: &str,
    name: &str,
    policy: Config,
    router: Router,
) -> (SocketAddr, Aborted) {
    let address = listener.local_addr().unwrap();
    let builder = Mesh::builder().config(policy).identity(ca.identity(id)).workload(workload(name));
    let mesh = builder.build().await.unwrap();
    (address, Aborted(tokio::spawn(async move { mesh.serve_listener(listener, router).await.unwrap() })))
}

struct Aborted(JoinHandle<()>);

impl Drop for Aborted {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub(crate) async fn fetch(mesh: &Mesh, uri: &str) -> (StatusCode, String) {
    let response = mesh.http().get(uri).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    (status, String::from_utf8_lossy(&body).into_owned())
}
