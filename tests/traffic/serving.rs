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
        RouteMatch, Workload,
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
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

/// SV7: once serving ends the health says so while connections are still taken, then none is, then what is under way is
/// finished, or cut off when its time is over; over HTTP/1.1, HTTP/2 and gRPC.
#[tokio::test]
async fn serving_ends_in_order() {
    for kind in Kind::ALL {
        for finishes in [true, false] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let (gate, arrived) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
            let (waiting, here) = (Arc::clone(&gate), Arc::clone(&arrived));
            let answer = move |request: Request<axum::body::Body>| {
                let (waiting, here) = (Arc::clone(&waiting), Arc::clone(&here));
                async move {
                    if request.uri().path() == "/a.B/Slow" {
                        here.add_permits(1);
                        waiting.acquire().await.unwrap().forget();
                    }
                    [("grpc-status", "0")]
                }
            };
            let drain = if finishes { PATIENCE } else { Duration::from_millis(100) };
            let mesh = Mesh::builder().config(Config::default()).linger(Duration::from_millis(500)).drain_time(drain);
            let mesh = mesh.build().await.unwrap();
            let handler = mesh.with_health(Router::new().fallback(any(answer)), ["app.Service"]);
            let serving = mesh.clone();
            let task = tokio::spawn(async move { serving.serve_listener(listener, handler).await.unwrap() });
            let caller = async || {
                let forward = Forward { timeout: None, ..to("app") };
                let routes = vec![route(RouteMatch::default(), Action::Forward(forward))];
                Program::new(kind, config([cluster_at(kind, "app", &[address])], routes)).await
            };
            let slow = caller().await;
            let slow = tokio::spawn(async move { slow.get("/a.B/Slow").await });
            arrived.acquire().await.unwrap().forget();
            mesh.shutdown();
            // Who has not heard of it yet is served, over a connection of its own.
            assert!(caller().await.get("/a.B/C").await.is_ok(), "{kind:?}");
            while TcpStream::connect(address).await.is_ok() {
                sleep(Duration::from_millis(5)).await;
            }
            if finishes {
                gate.add_permits(1);
            }
            let answer = timeout(PATIENCE, slow).await.unwrap().unwrap();
            assert_eq!(answer.is_ok(), finishes, "{kind:?}: {answer:?}");
            timeout(PATIENCE, task).await.unwrap().unwrap();
        }
    }
}

/// SV8: a server tells of what it serves as destination, with the protocol of the request and its answer; over HTTP/1.1, HTTP/2
/// and gRPC.
#[tokio::test]
async fn servers_tell_what_they_serve() {
    for (kind, name) in [(Kind::Http1, "told-1"), (Kind::Http2, "told-2"), (Kind::Grpc, "told-g")] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let workload = Workload {
            canonical_name: name.into(),
            name: name.into(),
            namespace: "default".into(),
            ..Workload::default()
        };
        let mesh = Mesh::builder().config(Config::default()).workload(workload).build().await.unwrap();
        let serving = mesh.clone();
        let answer = async |request: Request<axum::body::Body>| match request.uri().path() {
            "/a.B/Bad" => (StatusCode::SERVICE_UNAVAILABLE, [("grpc-status", "14")]),
            _ => (StatusCode::OK, [("grpc-status", "0")]),
        };
        let task = tokio::spawn(async move {
            serving.serve_listener(listener, Router::new().fallback(any(answer))).await.unwrap();
        });
        let routes = vec![route(RouteMatch::default(), Action::Forward(to("app")))];
        let program = Program::new(kind, config([cluster_at(kind, "app", &[address])], routes)).await;
        assert!(program.get("/a.B/C").await.is_ok(), "{kind:?}");
        assert!(!program.get("/a.B/Bad").await.is_ok(), "{kind:?}");
        let protocol = if kind.is_grpc() { "grpc" } else { "http" };
        let counted = |code: &str| {
            let metrics = mesh_tower::telemetry::render().unwrap();
            let mut lines = metrics.lines().filter(|line| line.starts_with("istio_requests_total{"));
            lines.any(|line| {
                [
                    "reporter=\"destination\"".to_owned(),
                    format!("destination_workload=\"{name}\""),
                    format!("request_protocol=\"{protocol}\""),
                    format!("response_code=\"{code}\""),
                ]
                .iter()
                .all(|label| line.contains(label.as_str()))
            })
        };
        let told = async {
            while !counted("200") || !counted("503") {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, told)
            .await
            .unwrap_or_else(|_| panic!("{kind:?}: {}", mesh_tower::telemetry::render().unwrap()));
        task.abort();
    }
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
