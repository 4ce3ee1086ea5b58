//! What a server does to those who call it: limits of time and of connections, and its own word about its health.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, body::Bytes as Whole, routing::any};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use mesh_tower::{
    Body, Mesh,
    config::{
        Action, Config, Connections, Forward, GrpcCheck, HealthCheck, Inbound, LoadBalancer, MtlsMode, Probe,
        RouteMatch,
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::harness::{Kind, Program, cluster_at, config, route, to};

/// Long enough for anything on a machine under load.
const PATIENCE: Duration = Duration::from_secs(20);

struct Server {
    mesh: Mesh,
    address: SocketAddr,
    task: JoinHandle<()>,
}

/// Reads the whole request and says its name; with gRPC's health service in front.
async fn server(name: &'static str, inbound: impl FnOnce(&mut Inbound)) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut config = Config::default();
    let mut own = Inbound { mtls: MtlsMode::Disable, ..Inbound::default() };
    inbound(&mut own);
    let everything = crate::harness::route(RouteMatch::default(), Action::NonForwarding);
    let host = mesh_tower::config::VirtualHost {
        name: "all".into(),
        domains: vec!["*".to_owned()],
        routes: vec![everything],
        ..Default::default()
    };
    own.routes = Arc::new(mesh_tower::config::RouteTable { virtual_hosts: vec![Arc::new(host)], ..Default::default() });
    config.inbound.insert(address.port(), Arc::new(own));
    let mesh = Mesh::builder().config(config).build().await.unwrap();
    let answer = move |_: Whole| async move { ([("x-upstream", name), ("grpc-status", "0")], name) };
    let handler = mesh.with_health(Router::new().fallback(any(answer)), ["app.Service"]);
    let task = tokio::spawn({
        let mesh = mesh.clone();
        async move { mesh.serve_listener(listener, handler).await.unwrap() }
    });
    Server { mesh, address, task }
}

async fn program(kind: Kind, servers: &[&Server]) -> Program {
    let addresses: Vec<_> = servers.iter().map(|server| server.address).collect();
    let forward = Forward { timeout: None, ..to("app") };
    let routes = vec![route(RouteMatch::default(), Action::Forward(forward))];
    Program::new(kind, config([cluster_at(kind, "app", &addresses)], routes)).await
}

/// A request whose body begins and never ends.
async fn stalled(program: &Program, kind: Kind) -> (u16, Option<u32>) {
    let begun =
        futures_util::stream::iter([Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from_static(b"begun")))]);
    let body = StreamBody::new(futures_util::StreamExt::chain(begun, futures_util::stream::pending()));
    let mut request = Request::post("http://app/a.B/C");
    if kind.is_grpc() {
        request = request.header(header::CONTENT_TYPE, "application/grpc").header(header::TE, "trailers");
    }
    let answer = program.mesh.http().request(request.body(body).unwrap()).await.unwrap();
    let grpc = answer.headers().get("grpc-status").and_then(|status| status.to_str().ok()?.parse().ok());
    (answer.status().as_u16(), grpc)
}

/// TO9: a request that is not sent in time is answered 408; one that is goes through.
#[tokio::test]
async fn a_request_has_to_be_sent_in_time() {
    for kind in Kind::ALL {
        let server = server("app", |it| it.request_timeout = Some(Duration::from_millis(300))).await;
        let program = program(kind, &[&server]).await;
        let late = timeout(PATIENCE, stalled(&program, kind)).await.unwrap();
        // 408 has no gRPC status of its own.
        assert_eq!(late, if kind.is_grpc() { (200, Some(2)) } else { (408, None) }, "{kind:?}");
        assert!(program.send(Request::post("/a.B/C"), "whole").await.is_ok(), "{kind:?}");
    }
}

/// TO9: a head that is not sent in time ends the connection.
#[tokio::test]
async fn a_head_has_to_be_sent_in_time() {
    let server = server("app", |it| it.request_headers_timeout = Some(Duration::from_millis(200))).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a").await.unwrap();
    let mut said = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut said)).await.unwrap().unwrap();
    assert!(said.is_empty() || said.starts_with(b"HTTP/1.1 408"), "{:?}", String::from_utf8_lossy(&said));
}

/// RL8: connections over the limit are closed as soon as they are accepted; with one gone there is a place again.
#[tokio::test]
async fn connections_are_limited() {
    for kind in Kind::ALL {
        let server = server("app", |it| it.max_connections = Some(2)).await;
        let first = TcpStream::connect(server.address).await.unwrap();
        let second = TcpStream::connect(server.address).await.unwrap();
        let mut third = TcpStream::connect(server.address).await.unwrap();
        // Accepted in order: the third is the one too many.
        assert_eq!(timeout(PATIENCE, third.read(&mut [0])).await.unwrap().unwrap_or(0), 0, "{kind:?}");
        let program = program(kind, &[&server]).await;
        assert!(!program.get("/a.B/C").await.is_ok(), "{kind:?}: there is no place");
        drop((first, second));
        let served = async {
            while !program.get("/a.B/C").await.is_ok() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, served).await.unwrap();
    }
}

/// HC5: the health service says SERVING, of the server and of the services it is told of, until serving ends; then it says
/// so at once to whoever watches.
#[tokio::test]
async fn the_server_tells_its_health() {
    let server = server("app", |_| {}).await;
    let program = program(Kind::Grpc, &[&server]).await;
    let check = async |service: &[u8]| {
        let question = Request::post("http://app/grpc.health.v1.Health/Check");
        let answer = program.send(question, std::str::from_utf8(service).unwrap()).await;
        (answer.grpc, answer.body.into_bytes())
    };
    assert_eq!(check(b"").await, (Some(0), vec![8, 1]));
    assert_eq!(check(b"\x0a\x0bapp.Service").await, (Some(0), vec![8, 1]));
    assert_eq!(check(b"\x0a\x05other").await.0, Some(5));

    let mut watching = watch(&program).await;
    assert_eq!(next(&mut watching).await, [8, 1]);
    server.mesh.shutdown();
    assert_eq!(next(&mut watching).await, [8, 2]);
    // Nobody who only watches holds the server up.
    timeout(PATIENCE, server.task).await.unwrap().unwrap();
}

/// HC2, HC5: a client that watches sends nothing more to a server from the moment it begins to drain, and loses nothing.
#[tokio::test]
async fn a_watched_server_is_left_before_it_goes() {
    let (staying, going) = (server("staying", |_| {}).await, server("going", |_| {}).await);
    let mut app = cluster_at(Kind::Grpc, "app", &[staying.address, going.address]);
    app.load_balancer = LoadBalancer::RoundRobin;
    app.connections = Connections::default();
    app.health_check = Some(Arc::new(HealthCheck {
        probe: Probe::Grpc(GrpcCheck { watch: true, ..GrpcCheck::default() }),
        interval: Duration::from_millis(20),
        no_traffic_interval: Duration::from_millis(20),
        ..HealthCheck::default()
    }));
    let routes = vec![route(RouteMatch::default(), Action::Forward(to("app")))];
    let program = Program::new(Kind::Grpc, config([app], routes)).await;
    let usable = async |count: usize| {
        let so = async {
            loop {
                let snapshot = program.mesh.snapshot().unwrap();
                let endpoints = snapshot.cluster("app").unwrap().endpoints();
                if endpoints.iter().filter(|endpoint| !endpoint.is_failing_checks()).count() == count {
                    break;
                }
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, so).await.unwrap();
    };
    usable(2).await;
    let mut from = Vec::new();
    for n in 0..40 {
        if n == 20 {
            going.mesh.shutdown();
            usable(1).await;
        }
        let answer = program.get("/a.B/C").await;
        assert!(answer.is_ok(), "{n}: {answer:?}");
        from.push(answer.header("x-upstream"));
    }
    assert!(from[..20].contains(&"going".to_owned()) && !from[20..].contains(&"going".to_owned()), "{from:?}");
}

type Watching = http::Response<mesh_tower::ResponseBody<mesh_tower::PooledBody>>;

async fn watch(program: &Program) -> Watching {
    let request = Request::post("http://app/grpc.health.v1.Health/Watch")
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .body(Body::from(Bytes::from_static(&[0; 5])))
        .unwrap();
    let answer = program.mesh.http().request(request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    answer
}

/// The next message, without its frame.
async fn next(watching: &mut Watching) -> Vec<u8> {
    let frame = timeout(PATIENCE, watching.body_mut().frame()).await.unwrap().unwrap().unwrap();
    frame.into_data().unwrap()[5..].to_vec()
}
