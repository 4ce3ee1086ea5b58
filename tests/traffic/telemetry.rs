//! What programs and servers tell of their requests: metrics by Istio's names, bounded whatever callers say.

use std::{net::SocketAddr, time::Duration};

use axum::{Router, body::Bytes as Whole, routing::any};
use http::Request;
use mesh_tower::{
    Mesh,
    config::{Action, Config, Forward, RouteMatch, Workload},
    telemetry,
};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::harness::{Kind, Program, Reply, Upstream, cluster_at, config, route, to};

/// Value of a series of this name with these labels, once there is one: a server tells of a request when its body has
/// left, which may be after the caller had it.
async fn series(name: &str, labels: &[&str]) -> f64 {
    let read = || {
        let text = telemetry::render().unwrap();
        let lines = text.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{')));
        let found: Vec<&str> = lines.filter(|line| labels.iter().all(|label| line.contains(label))).collect();
        assert!(found.len() <= 1, "{found:#?}");
        found.first().map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
    };
    for _ in 0..2_000 {
        if let Some(value) = read() {
            return value;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("no {name} with {labels:?} in\n{}", telemetry::render().unwrap());
}

/// A server of the mesh of a workload by that name, in plaintext, which answers with its name.
async fn server(name: &'static str) -> (Mesh, SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let workload = Workload {
        name: name.into(),
        namespace: "default".into(),
        canonical_name: name.into(),
        app: name.into(),
        ..Workload::default()
    };
    let mesh = Mesh::builder().config(Config::default()).workload(workload).build().await.unwrap();
    let answer = move |request: http::Request<axum::body::Body>| async move {
        let is_grpc = request.headers().get("content-type").is_some_and(|it| it == "application/grpc");
        let _read: Whole = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
        if is_grpc {
            return (
                [("grpc-status", "0"), ("content-type", "application/grpc")],
                [&[0, 0, 0, 0, 1][..], b"x"].concat(),
            );
        }
        ([("grpc-status", "0"), ("content-type", "text/plain")], b"x".to_vec())
    };
    let serving = mesh.clone();
    let app = Router::new().fallback(any(answer));
    let task = tokio::spawn(async move { serving.serve_listener(listener, app).await.unwrap() });
    (mesh, address, task)
}

/// TE1: a request is told with Istio's names by who called and by who was called, of gRPC with its messages.
#[tokio::test]
async fn requests_are_told_by_both_ends() {
    for (kind, name) in Kind::ALL.into_iter().zip(["told-http1", "told-http2", "told-grpc"]) {
        let (_mesh, address, _task) = server(name).await;
        let routes = vec![route(RouteMatch::default(), Action::Forward(to(name)))];
        let program = Program::new(kind, config([cluster_at(kind, name, &[address])], routes)).await;
        for _ in 0..3 {
            assert!(program.send(Request::post("/a.B/C"), "hello").await.is_ok(), "{kind:?}");
        }
        let service = format!("destination_service=\"{name}.default.svc.cluster.local\"");
        let protocol = format!("request_protocol=\"{}\"", if kind.is_grpc() { "grpc" } else { "http" });
        let status = format!("grpc_response_status=\"{}\"", if kind.is_grpc() { "0" } else { "" });
        for (reporter, policy) in [("source", "unknown"), ("destination", "none")] {
            let (reporter, policy) =
                (format!("reporter=\"{reporter}\""), format!("connection_security_policy=\"{policy}\""));
            let labels = [&*service, &*protocol, &*reporter, &*policy, "response_code=\"200\"", "response_flags=\"-\""];
            // A server tells a gRPC status of any answer that has one.
            let labels: Vec<&str> =
                labels.into_iter().chain((kind.is_grpc() || reporter.contains("source")).then_some(&*status)).collect();
            while series("istio_requests_total", &labels).await < 3.0 {
                tokio::task::yield_now().await;
            }
            assert_eq!(series("istio_requests_total", &labels).await, 3.0, "{kind:?} {reporter}");
            for histogram in ["istio_request_duration_milliseconds", "istio_request_bytes", "istio_response_bytes"] {
                assert_eq!(series(&format!("{histogram}_count"), &labels).await, 3.0, "{kind:?} {reporter}");
                assert!(series(&format!("{histogram}_sum"), &labels).await > 0.0, "{kind:?} {reporter} {histogram}");
            }
            assert!(series("istio_request_bytes_sum", &labels).await >= 15.0, "{kind:?} {reporter}");
            if kind.is_grpc() {
                for messages in ["istio_request_messages_total", "istio_response_messages_total"] {
                    assert_eq!(series(messages, &labels).await, 3.0, "{reporter} {messages}");
                }
            } else {
                let text = telemetry::render().unwrap();
                let mut lines = text.lines().filter(|line| line.starts_with("istio_request_messages_total"));
                assert!(!lines.any(|line| line.contains(&*service)), "{kind:?}: messages are gRPC's");
            }
        }
    }
}

/// TE1, TE17: what the mesh answers itself is told with its flags, and a retried request once.
#[tokio::test]
async fn failures_are_told_with_their_flags() {
    for (kind, name) in Kind::ALL.into_iter().zip(["failed-http1", "failed-http2", "failed-grpc"]) {
        let upstream = Upstream::scripted("app", |_, _| Reply::unavailable()).await;
        let retry = mesh_tower::config::RetryPolicy {
            on: mesh_tower::config::RetryConditions {
                http: vec![mesh_tower::config::HttpRetry::ServerError],
                grpc: vec![mesh_tower::config::GrpcRetry::Unavailable],
                ..Default::default()
            },
            ..Default::default()
        };
        let forward = Forward { retry: Some(retry), ..to(name) };
        let routes = vec![route(RouteMatch::default(), Action::Forward(forward))];
        let program = Program::new(kind, config([cluster_at(kind, name, &[upstream.address])], routes)).await;
        assert!(!program.get("/a.B/C").await.is_ok(), "{kind:?}");
        assert!(upstream.count() > 1, "{kind:?}: it was tried again");
        let service = format!("destination_service=\"{name}.default.svc.cluster.local\"");
        let code = if kind.is_grpc() { "response_code=\"200\"" } else { "response_code=\"503\"" };
        let status = format!("grpc_response_status=\"{}\"", if kind.is_grpc() { "14" } else { "" });
        let labels = [&*service, "response_flags=\"URX\"", code, &*status];
        assert_eq!(series("istio_requests_total", &labels).await, 1.0, "{kind:?}");
    }
}

/// TE1: paths, hosts and methods of any caller make no series.
#[tokio::test]
async fn what_callers_say_makes_no_series() {
    for (kind, name) in Kind::ALL.into_iter().zip(["loud-http1", "loud-http2", "loud-grpc"]) {
        let upstream = Upstream::start("app").await;
        let routes = vec![route(RouteMatch::default(), Action::Forward(to(name)))];
        let program = Program::new(kind, config([cluster_at(kind, name, &[upstream.address])], routes)).await;
        for n in 0..50 {
            let method = http::Method::from_bytes(format!("ZQMETHOD{n}").as_bytes()).unwrap();
            let request = Request::builder().method(method).uri(format!("/zqpath.{n}/Method"));
            assert!(program.send(request.header("user-agent", format!("zqagent-{n}")), "").await.is_ok(), "{kind:?}");
            let elsewhere =
                Request::get(format!("http://zqhost-{n}.example/")).body(mesh_tower::Body::empty()).unwrap();
            drop(program.mesh.http().request(elsewhere).await);
        }
        let text = telemetry::render().unwrap();
        let requests = text.lines().filter(|line| line.starts_with("istio_requests_total{"));
        let ours: Vec<&str> = requests.filter(|line| line.contains(&format!("\"{name}\""))).collect();
        assert_eq!(ours.len(), 1, "{kind:?}: {ours:#?}");
        for word in ["ZQMETHOD", "zqpath", "zqhost", "zqagent"] {
            assert!(!text.contains(word), "{kind:?}: {word} in\n{text}");
        }
    }
}
