//! Metrics by OpenTelemetry's names and by gRPC's, beside Istio's: attempts, calls, what is served, and retries.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, body::Bytes as Whole, routing::any};
use http::Request;
use mesh_tower::{
    Mesh,
    config::{
        Action, Config, Forward, GrpcRetry, HedgePolicy, HttpRetry, RetryConditions, RetryPolicy, RouteMatch, Workload,
    },
    telemetry::{self, CallLabel, HttpRoute, MetricProfiles},
};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinHandle};

use crate::harness::{Kind, Program, Reply, Upstream, cluster_at, config, route, to};

fn all() -> MetricProfiles {
    MetricProfiles { istio: true, otel: true, grpc: true, locality: true, backend_service: true, custom: true }
}

/// The lines of a metric that have all of these in them.
fn lines(name: &str, labels: &[&str]) -> Vec<String> {
    let text = telemetry::render().unwrap();
    let of_name = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{'));
    let has = |line: &&str| labels.iter().all(|label| line.contains(label));
    text.lines().filter(of_name).filter(has).map(str::to_owned).collect()
}

/// The sum over the series of this name with these labels.
fn now(name: &str, labels: &[&str]) -> f64 {
    lines(name, labels).iter().map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

/// The same, once it is this: what is told of a request may be told after its caller had it.
async fn until(name: &str, labels: &[&str], wanted: f64) {
    for _ in 0..2_000 {
        if now(name, labels) == wanted {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let of_name = lines(name, &[]).join("\n");
    panic!("no {name} with {labels:?} of {wanted}, but {} in\n{of_name}", now(name, labels));
}

/// The same, once it is at least this: other tests may tell the like.
async fn until_least(name: &str, labels: &[&str], least: f64) {
    for _ in 0..2_000 {
        if now(name, labels) >= least {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("no {name} with {labels:?} of {least} in\n{}", lines(name, &[]).join("\n"));
}

/// A program whose metrics are told in all ways.
async fn program(kind: Kind, config: Config) -> Program {
    Program::over(kind, Mesh::builder().config(config).metric_profiles(all()).build().await.unwrap())
}

/// A server of the mesh in plaintext: answers gRPC's `/NAME.S/Known` alone, and says of HTTP which route it was.
async fn server(name: &'static str) -> (Mesh, SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let workload = Workload { name: name.into(), namespace: "default".into(), ..Workload::default() };
    let mesh = Mesh::builder().config(Config::default()).workload(workload).metric_profiles(all());
    let mesh = mesh.build().await.unwrap();
    let answer = move |request: Request<axum::body::Body>| async move {
        let is_grpc = request.headers().get("content-type").is_some_and(|it| it == "application/grpc");
        let is_known = request.uri().path() == format!("/{name}.S/Known");
        let _read: Whole = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
        let mut response = http::Response::new(axum::body::Body::from("x"));
        if is_grpc {
            let status = if is_known { "0" } else { "12" };
            response.headers_mut().insert("grpc-status", status.parse().unwrap());
            response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
            *response.body_mut() = [&[0, 0, 0, 0, 3][..], b"xyz"].concat().into();
        } else {
            response.extensions_mut().insert(HttpRoute(format!("/{name}/{{id}}").into()));
        }
        response
    };
    let serving = mesh.clone();
    let app = Router::new().fallback(any(answer));
    let task = tokio::spawn(async move { serving.serve_listener(listener, app).await.unwrap() });
    (mesh, address, task)
}

/// TE3: OpenTelemetry's names, units, bounds and labels of what is asked and what is served; nothing that callers write.
#[tokio::test]
async fn requests_are_told_by_opentelemetrys_names() {
    for (kind, name) in Kind::ALL.into_iter().zip(["otel-http1", "otel-http2", "otel-grpc"]) {
        let (_mesh, address, _task) = server(name).await;
        let mut cluster = cluster_at(kind, name, &[address]);
        cluster.name = format!("outbound|9080||{name}").into();
        let routes = vec![route(RouteMatch::default(), Action::Forward(to(&cluster.name)))];
        let program = program(kind, config([cluster], routes)).await;
        for _ in 0..3 {
            let path = if kind.is_grpc() { format!("/{name}.S/Known") } else { format!("/{name}/7") };
            assert!(program.send(Request::post(path), "hello").await.is_ok(), "{kind:?}");
        }
        let host = format!("server_address=\"{name}.default.svc.cluster.local\"");
        let (client, server) = match kind.is_grpc() {
            true => ("rpc_client_call_duration_seconds", "rpc_server_call_duration_seconds"),
            false => ("http_client_request_duration_seconds", "http_server_request_duration_seconds"),
        };
        let version = if kind == Kind::Http1 { "1.1" } else { "2" };
        let (version, method) = (format!("network_protocol_version=\"{version}\""), format!("=\"{name}.S/Known\""));
        let route = format!("http_route=\"/{name}/{{id}}\"");
        let of_client: Vec<&str> = match kind.is_grpc() {
            true => vec![&host, "server_port=\"9080\"", "rpc_system_name=\"grpc\"", &method, "status_code=\"OK\""],
            false => vec![
                &host,
                "server_port=\"9080\"",
                "http_request_method=\"POST\"",
                "http_response_status_code=\"200\"",
                &version,
            ],
        };
        let of_server: Vec<&str> = match kind.is_grpc() {
            true => vec!["rpc_system_name=\"grpc\"", &method, "rpc_response_status_code=\"OK\""],
            false => vec![&route, "http_request_method=\"POST\"", "url_scheme=\"http\"", &version, "code=\"200\""],
        };
        for (name, labels) in [(client, of_client), (server, of_server)] {
            until(&format!("{name}_count"), &labels, 3.0).await;
            assert!(lines(&format!("{name}_count"), &labels).iter().all(|line| !line.contains("error_type")));
            let bounds: Vec<String> = lines(&format!("{name}_bucket"), &labels)
                .iter()
                .map(|line| line.split("le=\"").nth(1).unwrap().split('"').next().unwrap().to_owned())
                .collect();
            assert_eq!(
                bounds.join(" "),
                "0.005 0.01 0.025 0.05 0.075 0.1 0.25 0.5 0.75 1 2.5 5 7.5 10 +Inf",
                "{kind:?}"
            );
        }
        // What fails is told with why; a method nobody knows is one of the others.
        if kind.is_grpc() {
            assert_eq!(program.get(&format!("/{name}.S/Made-up")).await.grpc, Some(12));
            until("rpc_client_call_duration_seconds_count", &[&host, "error_type=\"UNIMPLEMENTED\""], 1.0).await;
            let others = ["rpc_method=\"_OTHER\"", "error_type=\"UNIMPLEMENTED\""];
            until_least("rpc_server_call_duration_seconds_count", &others, 1.0).await;
        } else {
            assert!(program.send(Request::builder().method("BREW").uri(format!("/{name}/7")), "").await.is_ok());
            until("http_client_request_duration_seconds_count", &[&host, "method=\"_OTHER\""], 1.0).await;
            until("http_server_request_duration_seconds_count", &[&route, "method=\"_OTHER\""], 1.0).await;
        }
    }
}

/// TE3: an attempt without an answer is told with the word for that, and one with a bad answer with its status.
#[tokio::test]
async fn what_fails_has_an_error_type() {
    for (kind, name) in Kind::ALL.into_iter().zip(["otel-bad-http1", "otel-bad-http2", "otel-bad-grpc"]) {
        let upstream = Upstream::scripted("app", |number, _| match number {
            0 => Reply::unavailable(),
            _ => Reply::broken(),
        })
        .await;
        let routes = vec![route(RouteMatch::default(), Action::Forward(to(name)))];
        let program = program(kind, config([cluster_at(kind, name, &[upstream.address])], routes)).await;
        let (first, second) = (program.get("/a.B/C").await, program.get("/a.B/C").await);
        assert!(!first.is_ok() && !second.is_ok(), "{kind:?}");
        let host = format!("server_address=\"{name}.default.svc.cluster.local\"");
        let (metric, errors) = match kind {
            Kind::Grpc => ("rpc_client_call_duration_seconds_count", ["UNAVAILABLE", "UNAVAILABLE"]),
            Kind::Http1 | Kind::Http2 => {
                ("http_client_request_duration_seconds_count", ["503", "connection_termination"])
            }
        };
        let expected = if errors[0] == errors[1] { 2.0 } else { 1.0 };
        for error in errors {
            until(metric, &[&host, &format!("error_type=\"{error}\"")], expected).await;
        }
    }
}

/// TE2, TE4, TE5: gRPC's names of attempts and calls, with its optional labels; of HTTP nothing. What was tried again is told
/// once a call.
#[tokio::test]
async fn calls_are_told_by_grpcs_names() {
    for (kind, name) in Kind::ALL.into_iter().zip(["grpc-told-http1", "grpc-told-http2", "grpc-told-grpc"]) {
        let upstream = Upstream::scripted("app", |number, _| match number {
            0 | 1 => Reply::unavailable(),
            _ => Reply::ok().message(b"four"),
        })
        .await;
        let on = RetryConditions {
            http: vec![HttpRetry::ServerError],
            grpc: vec![GrpcRetry::Unavailable],
            ..RetryConditions::default()
        };
        let retry = RetryPolicy { on, retries: 2, ..RetryPolicy::default() };
        let mut cluster = cluster_at(kind, name, &[upstream.address]);
        cluster.name = format!("outbound|9080||{name}").into();
        let forward = Forward { retry: Some(retry), ..to(&cluster.name) };
        let routes = vec![route(RouteMatch::default(), Action::Forward(forward))];
        let program = program(kind, config([cluster], routes)).await;
        for _ in 0..2 {
            assert!(
                program
                    .send(Request::get("/told.S/Call").extension(CallLabel("nightly".into())), "hello")
                    .await
                    .is_ok(),
                "{kind:?}"
            );
        }
        let target = format!("grpc_target=\"xds:///{name}.default.svc.cluster.local:9080\"");
        if !kind.is_grpc() {
            until("http_client_request_duration_seconds_count", &[name, "=\"200\""], 2.0).await;
            assert_eq!(now("grpc_client_call_duration_seconds_count", &[&target]), 0.0, "{kind:?}");
            continue;
        }
        let call = [&*target, "grpc_method=\"told.S/Call\"", "grpc_client_call_custom=\"nightly\""];
        let with = |more: &'static str| [&*target, "grpc_method=\"told.S/Call\"", more];
        until("grpc_client_call_duration_seconds_count", &with("grpc_status=\"OK\""), 2.0).await;
        assert_eq!(now("grpc_client_attempt_started_total", &call), 4.0);
        assert_eq!(now("grpc_client_attempt_duration_seconds_count", &with("grpc_status=\"UNAVAILABLE\"")), 2.0);
        assert_eq!(now("grpc_client_attempt_duration_seconds_count", &with("grpc_status=\"OK\"")), 2.0);
        let sent = "grpc_client_attempt_sent_total_compressed_message_size_bytes_sum";
        let received = "grpc_client_attempt_rcvd_total_compressed_message_size_bytes_sum";
        assert_eq!((now(sent, &with("\"OK\"")), now(received, &with("\"OK\""))), (10.0, 8.0), "without their frames");
        let service = format!("grpc_lb_backend_service=\"outbound|9080||{name}\"");
        let place = "grpc_lb_locality=\"{region=";
        assert!(lines(sent, &call).iter().all(|line| line.contains(&service) && line.contains(place)));
        // Two retries of the first call, none of the second, and no hedges.
        assert_eq!(now("grpc_client_call_retries_count", &call), 1.0);
        assert_eq!(now("grpc_client_call_retries_sum", &call), 2.0);
        assert_eq!(now("grpc_client_call_retry_delay_seconds_count", &call), 1.0);
        assert!(now("grpc_client_call_retry_delay_seconds_sum", &call) > 0.0);
        for none in ["grpc_client_call_hedges_count", "grpc_client_call_transparent_retries_count"] {
            assert!(lines(none, &call).is_empty(), "{none}");
        }
        let bounds = lines("grpc_client_call_duration_seconds_bucket", &with("grpc_status=\"OK\""));
        assert_eq!(bounds.len(), 41 + 1, "of gRFC A66");
    }
}

/// TE2: gRPC's names of what is served; a method that the server does not have is one of the others, from its arrival on.
#[tokio::test]
async fn served_calls_are_told_by_grpcs_names() {
    for (kind, name) in Kind::ALL.into_iter().zip(["grpc-served-http1", "grpc-served-http2", "grpc-served-grpc"]) {
        let (_mesh, address, _task) = server(name).await;
        let routes = vec![route(RouteMatch::default(), Action::Forward(to(name)))];
        let program = program(kind, config([cluster_at(kind, name, &[address])], routes)).await;
        let method = format!("grpc_method=\"{name}.S/Known\"");
        for number in 0..20 {
            let known = program.send(Request::post(format!("/{name}.S/Known")), "hello").await;
            assert!(known.is_ok(), "{kind:?}");
            program.send(Request::post(format!("/{name}.S/Made-up-{number}")), "hello").await;
        }
        if !kind.is_grpc() {
            assert!(lines("grpc_server_call_started_total", &[&method]).is_empty(), "{kind:?}");
            continue;
        }
        until("grpc_server_call_duration_seconds_count", &[&method, "grpc_status=\"OK\""], 20.0).await;
        assert_eq!(now("grpc_server_call_started_total", &[&method]), 20.0);
        let others = ["grpc_method=\"other\"", "grpc_status=\"UNIMPLEMENTED\""];
        until_least("grpc_server_call_duration_seconds_count", &others, 20.0).await;
        let received = "grpc_server_call_rcvd_total_compressed_message_size_bytes_sum";
        let sent = "grpc_server_call_sent_total_compressed_message_size_bytes_sum";
        assert_eq!((now(received, &[&method]), now(sent, &[&method])), (100.0, 60.0));
        let text = telemetry::render().unwrap();
        let of_server = text.lines().filter(|line| line.starts_with("grpc_server_"));
        assert!(!of_server.into_iter().any(|line| line.contains("Made-up")));
    }
}

/// TE4: attempts beside others are hedges, and retries that no policy asked for are told as such.
#[tokio::test]
async fn what_is_hedged_is_counted_apart() {
    for (kind, name) in Kind::ALL.into_iter().zip(["hedged-http1", "hedged-http2", "hedged-grpc"]) {
        let gate = Arc::new(Semaphore::new(0));
        let held = Arc::clone(&gate);
        let upstream = Upstream::scripted("app", move |number, _| match number {
            0 => Reply::ok().when(&held),
            _ => Reply::ok(),
        })
        .await;
        let hedge = HedgePolicy { delay: Some(Duration::from_millis(5)), attempts: 2, ..HedgePolicy::default() };
        let forward = Forward { hedge: Some(hedge), ..to(name) };
        let routes = vec![route(RouteMatch::default(), Action::Forward(forward))];
        let program = program(kind, config([cluster_at(kind, name, &[upstream.address])], routes)).await;
        assert!(program.get("/hedged.S/Call").await.is_ok(), "{kind:?}");
        gate.add_permits(1);
        let target = format!("grpc_target=\"xds:///{name}.default.svc.cluster.local\"");
        if kind.is_grpc() {
            until("grpc_client_call_hedges_sum", &[&target], 1.0).await;
            assert!(lines("grpc_client_call_retries_count", &[&target]).is_empty());
            until("grpc_client_attempt_duration_seconds_count", &[&target, "grpc_status=\"CANCELLED\""], 1.0).await;
        } else {
            let host = format!("server_address=\"{name}.default.svc.cluster.local\"");
            until("http_client_request_duration_seconds_count", &[&host, "error_type"], 1.0).await;
            until("http_client_request_duration_seconds_count", &[&host], 2.0).await;
        }
    }
}

/// TE7: connections to endpoints by gRPC's names: those that came about and those that did not, how many are open, and why others
/// ended.
#[tokio::test]
async fn connections_are_told_by_grpcs_names() {
    for (kind, name) in Kind::ALL.into_iter().zip(["sub-http1", "sub-http2", "sub-grpc"]) {
        let upstream = Upstream::start("app").await;
        let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let routes = vec![route(RouteMatch::default(), Action::Forward(to(name)))];
        let mut cluster = cluster_at(kind, name, &[upstream.address]);
        let program = program(kind, config([cluster.clone()], routes.clone())).await;
        let target = format!("grpc_target=\"xds:///{name}.default.svc.cluster.local\"");
        assert!(program.get("/a.B/C").await.is_ok(), "{kind:?}");
        assert_eq!(now("grpc_subchannel_connection_attempts_succeeded_total", &[&target]), 1.0, "{kind:?}");
        assert_eq!(now("grpc_subchannel_open_connections", &[&target]), 1.0, "{kind:?}");
        assert!(lines("grpc_subchannel_disconnections_total", &[&target]).is_empty(), "{kind:?}");
        drop(upstream);
        let ended = ["unknown", "connection reset", "socket error"];
        for _ in 0..2_000 {
            program.get("/a.B/C").await;
            if now("grpc_subchannel_disconnections_total", &[&target]) > 0.0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        until("grpc_subchannel_open_connections", &[&target], 0.0).await;
        let told = lines("grpc_subchannel_disconnections_total", &[&target]);
        assert!(ended.iter().any(|why| told[0].contains(&format!("grpc_disconnect_error=\"{why}\""))), "{told:?}");
        cluster.endpoints = cluster_at(kind, name, &[nobody]).endpoints;
        program.mesh.live().update(&config([cluster], routes)).unwrap();
        assert!(!program.get("/a.B/C").await.is_ok(), "{kind:?}");
        assert!(now("grpc_subchannel_connection_attempts_failed_total", &[&target]) > 0.0, "{kind:?}");
    }
}

/// TE11: a port for metrics alone, where it is asked for, shows them to whoever reaches it, and nothing else; without one being asked
/// for there is none.
#[tokio::test]
async fn metrics_have_a_port_of_their_own() {
    for kind in Kind::ALL {
        let upstream = Upstream::start("app").await;
        let routes = vec![route(RouteMatch::default(), Action::Forward(to("scraped")))];
        let config = config([cluster_at(kind, "scraped", &[upstream.address])], routes);
        let everywhere = "0.0.0.0:0".parse().unwrap();
        let mesh = Mesh::builder().config(config.clone()).metrics_addr(everywhere).build().await.unwrap();
        let (address, program) = (mesh.metrics_addr().unwrap(), Program::over(kind, mesh));
        assert!(program.get("/a.B/C").await.is_ok(), "{kind:?}");
        let outside = Mesh::builder().off().build().await.unwrap();
        let ask = async |path: &str| {
            let request = Request::get(format!("http://127.0.0.1:{}{path}", address.port()));
            let request = request.header("host", "pod.example").body(mesh_tower::Body::empty()).unwrap();
            crate::harness::Answer::of(outside.http().request(request).await.unwrap()).await
        };
        for path in ["/metrics", "/stats/prometheus"] {
            let answer = ask(path).await;
            assert!(answer.status == 200 && answer.body.contains("istio_requests_total{"), "{path}: {answer:?}");
        }
        for path in ["/config_dump", "/certs", "/ready", "/quitquitquit", "/"] {
            assert_eq!(ask(path).await.status, 404, "{path}");
        }
        assert_eq!(Mesh::builder().config(config).build().await.unwrap().metrics_addr(), None);
    }
}
