//! How long requests may take, as programs get it; and a deadline's way through a program that serves and asks.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::StreamExt;
use http_body::Frame;
use http_body_util::StreamBody;
use mesh_tower::config::{
    Action, Endpoint, Endpoints, Forward, GrpcRetry, HttpRetry, HttpSettings, LocalityEndpoints, OutlierDetection,
    PathMatch, RetryConditions, RetryPolicy, RouteMatch,
};
use tokio::{net::TcpListener, sync::Semaphore};

use crate::harness::{Answer, Kind, Program, Reply, Upstream, cluster, config, framed, route, to};

const SHORT: Duration = Duration::from_millis(100);

/// Takes requests and never answers.
async fn silent() -> Upstream {
    let never = Arc::new(Semaphore::new(0));
    Upstream::scripted("app", move |_, _| Reply::ok().when(&never)).await
}

fn timed_out(kind: Kind, answer: &Answer) -> bool {
    if kind.is_grpc() { answer.grpc == Some(4) } else { answer.status == 504 }
}

/// TO1, TO2, TO7: the route's limit, that of the stream, and that of standing still each end a request; gRPC calls may have
/// others.
#[tokio::test]
async fn requests_end_in_time() {
    for kind in Kind::ALL {
        let long = Some(Duration::from_secs(60));
        for (forward, flags) in [
            (Forward { timeout: Some(SHORT), ..Forward::default() }, "UT"),
            (Forward { max_stream_duration: Some(SHORT), timeout: long, ..Forward::default() }, "DT"),
            (Forward { idle_timeout: Some(SHORT), timeout: long, ..Forward::default() }, "SI"),
            (
                Forward {
                    timeout: if kind.is_grpc() { long } else { Some(SHORT) },
                    max_grpc_timeout: Some(SHORT),
                    ..Forward::default()
                },
                "UT",
            ),
            (
                Forward {
                    max_stream_duration: if kind.is_grpc() { long } else { Some(SHORT) },
                    grpc_timeout_header_max: Some(SHORT),
                    ..Forward::default()
                },
                "DT",
            ),
        ] {
            let app = silent().await;
            let program = Program::calling(kind, &[&app], forward.clone()).await;
            let start = Instant::now();
            let answer = program.get("/").await;
            assert!(timed_out(kind, &answer), "{kind:?} {forward:?}: {answer:?}");
            assert_eq!(answer.flags, flags, "{kind:?} {forward:?}");
            assert!((SHORT..Duration::from_secs(30)).contains(&start.elapsed()), "{kind:?} {forward:?}");
        }
    }
}

/// A request whose body comes in these chunks, each when it is asked for, of gRPC a message each.
async fn stream(program: &Program, kind: Kind, chunks: &'static [&'static str]) -> Answer {
    let frames = futures_util::stream::iter(chunks).then(move |chunk| async move {
        tokio::task::yield_now().await;
        let chunk = if kind.is_grpc() { framed(chunk.as_bytes()) } else { Bytes::from_static(chunk.as_bytes()) };
        Ok::<_, std::io::Error>(Frame::data(chunk))
    });
    program.ask(http::Request::post("/a.B/C").body(StreamBody::new(Box::pin(frames))).unwrap()).await
}

/// TO1, TO3, OD1: a streamed request tells its route's limit too, and the endpoint that lets it pass is ejected for it.
#[tokio::test]
async fn streamed_requests_end_in_time() {
    for kind in Kind::ALL {
        let app = silent().await;
        let mut detecting = cluster(kind, "app", &[&app]);
        let detection =
            OutlierDetection { consecutive_5xx: 1, max_ejection_percent: 100, ..OutlierDetection::default() };
        detecting.outlier_detection = Some(detection);
        let forward = Forward { timeout: Some(SHORT), ..to("app") };
        let program =
            Program::new(kind, config([detecting], vec![route(RouteMatch::default(), Action::Forward(forward))])).await;
        let answer = stream(&program, kind, &["one", "two"]).await;
        assert!(timed_out(kind, &answer), "{kind:?}: {answer:?}");
        assert_eq!(answer.flags, "UT", "{kind:?}");
        let snapshot = program.mesh.snapshot().unwrap();
        assert!(snapshot.cluster("app").unwrap().endpoints()[0].is_ejected(), "{kind:?}");
        let told = app.last().header("x-envoy-expected-rq-timeout-ms");
        assert_eq!(told, if kind.is_grpc() { "" } else { "100" }, "{kind:?}");
        assert_eq!(app.count(), 1, "{kind:?}");
    }
}

/// TO2, TO7: a port's limits are for routes without their own, and zero is a word.
#[tokio::test]
async fn a_port_has_limits_for_its_routes() {
    for kind in Kind::ALL {
        for (own, ends) in [(None, true), (Some(Duration::ZERO), false)] {
            let app = silent().await;
            let forward = Forward {
                idle_timeout: own,
                max_stream_duration: own,
                timeout: Some(Duration::from_millis(400)),
                ..to("app")
            };
            let routes = vec![route(RouteMatch::default(), Action::Forward(forward))];
            let mut config = config([cluster(kind, "app", &[&app])], routes);
            let settings = HttpSettings {
                idle_timeout: Some(SHORT),
                max_stream_duration: Some(Duration::from_secs(60)),
                ..HttpSettings::default()
            };
            config.http.insert(80, Arc::new(settings));
            let answer = Program::new(kind, config).await.get("/").await;
            assert_eq!(answer.flags, if ends { "SI" } else { "UT" }, "{kind:?} {own:?}");
        }
    }
}

/// TO5, TO6: each try has a limit of its own, in all and of standing still, the first too.
#[tokio::test]
async fn tries_end_in_time() {
    for kind in Kind::ALL {
        for idle in [false, true] {
            let never = Arc::new(Semaphore::new(0));
            let app = Upstream::scripted("app", move |n, _| match n {
                0 => Reply::ok().when(&never),
                _ => Reply::ok(),
            });
            let app = app.await;
            let on = RetryConditions { http: vec![HttpRetry::GatewayError], ..RetryConditions::default() };
            let (per_try_timeout, per_try_idle_timeout) = if idle { (None, Some(SHORT)) } else { (Some(SHORT), None) };
            let retry = RetryPolicy { on, per_try_timeout, per_try_idle_timeout, ..RetryPolicy::default() };
            let program = Program::calling(kind, &[&app], Forward { retry: Some(retry), ..Forward::default() }).await;
            let answer = program.get("/").await;
            assert!(answer.is_ok(), "{kind:?} {idle}: {answer:?}");
            assert_eq!(app.count(), 2, "{kind:?} {idle}");
        }
    }
}

/// TO5: without a limit, or with one that is not below the request's, a try has the request's own; there is no other then.
#[tokio::test]
async fn a_try_has_its_requests_time() {
    for kind in Kind::ALL {
        for per_try_timeout in [None, Some(SHORT), Some(2 * SHORT)] {
            let app = silent().await;
            let on = RetryConditions {
                http: vec![HttpRetry::GatewayError, HttpRetry::ServerError],
                grpc: vec![GrpcRetry::DeadlineExceeded, GrpcRetry::Unavailable],
                ..RetryConditions::default()
            };
            let retry = Some(RetryPolicy { on, per_try_timeout, retries: 3, ..RetryPolicy::default() });
            let forward = Forward { retry, timeout: Some(SHORT), ..Forward::default() };
            let program = Program::calling(kind, &[&app], forward).await;
            let start = Instant::now();
            let answer = program.get("/a.B/C").await;
            assert!(start.elapsed() >= SHORT && timed_out(kind, &answer), "{kind:?} {per_try_timeout:?}: {answer:?}");
            assert!(answer.flags == "UT" && app.count() <= 1, "{kind:?} {per_try_timeout:?}: {answer:?}");
        }
    }
}

/// TO3, TO4: what is left of a caller's time is sent on, through a program that serves, less what it took; and a request
/// whose time is over does not reach the program.
#[tokio::test]
async fn deadlines_travel_through_served_requests() {
    for kind in Kind::ALL {
        let app = Upstream::start("app").await;
        let middle = Program::calling(kind, &[&app], Forward::default()).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (server, asking) = (middle.mesh.clone(), middle.clone());
        let serving = tokio::spawn(async move {
            let handler = tower::service_fn(move |_| {
                let asking = asking.clone();
                async move {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    let answer = asking.get("/inner").await;
                    let status = if answer.is_ok() { "0" } else { "14" };
                    let response = http::Response::builder().header("grpc-status", status);
                    Ok::<_, std::convert::Infallible>(
                        response.body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap(),
                    )
                }
            });
            server.serve_listener(listener, handler).await
        });

        let mut served = cluster(kind, "app", &[]);
        let locality = LocalityEndpoints { endpoints: vec![Endpoint::from(address)], ..LocalityEndpoints::default() };
        served.endpoints = Arc::new(Endpoints { localities: vec![locality], ..Endpoints::default() });
        let forward = Forward { timeout: Some(Duration::from_secs(5)), ..to("app") };
        let routes = vec![route(RouteMatch::default(), Action::Forward(forward))];
        let outer = Program::new(kind, config([served], routes)).await;

        let answer = outer.get("/outer").await;
        assert!(answer.is_ok(), "{kind:?}: {answer:?}");
        let left = if kind.is_grpc() {
            let text = app.last().header("grpc-timeout");
            mesh_core::timeout::parse_grpc_timeout(&text).unwrap_or_default()
        } else {
            let text = app.last().header("x-envoy-expected-rq-timeout-ms");
            Duration::from_millis(text.parse().unwrap_or_default())
        };
        let most = Duration::from_millis(4_951);
        assert!(left > Duration::from_secs(1) && left <= most, "{kind:?}: {left:?} of 5 s are left after 50 ms");

        if kind.is_grpc() {
            let answer = outer.get_with("/outer", &[("grpc-timeout", "0n")]).await;
            assert_eq!(answer.grpc, Some(4), "{answer:?}");
            assert_eq!(app.count(), 1);
        }
        middle.mesh.shutdown();
        let _ = serving.await;
    }
}

/// TO3: a `grpc-timeout` of the program's own is kept, sent on, and never made longer by a route.
#[tokio::test]
async fn a_grpc_timeout_is_kept() {
    let app = silent().await;
    let forward = Forward { timeout: Some(Duration::from_secs(60)), ..Forward::default() };
    let program = Program::calling(Kind::Grpc, &[&app], forward).await;
    let start = Instant::now();
    let answer = program.get_with("/a.B/C", &[("grpc-timeout", "100m")]).await;
    assert_eq!(answer.grpc, Some(4), "{answer:?}");
    assert!((SHORT..Duration::from_secs(30)).contains(&start.elapsed()));
    let sent = mesh_core::timeout::parse_grpc_timeout(&app.last().header("grpc-timeout")).unwrap();
    assert!(sent <= SHORT && !sent.is_zero(), "{sent:?}");
}

/// Whoever is called does not answer.
struct Nobody;

impl mesh_tower::connect::Connector for Nobody {
    fn connect<'a>(&'a self, _: mesh_tower::connect::Target<'a>) -> mesh_tower::connect::Connecting<'a> {
        Box::pin(std::future::pending())
    }
}

/// TO8: a connection that is not there in time is a failure to connect, long before the request's own time is up.
#[tokio::test]
async fn connections_are_made_in_time() {
    for kind in Kind::ALL {
        let mut app = crate::harness::cluster_at(kind, "app", &[([192, 0, 2, 1], 80).into()]);
        app.connect_timeout = SHORT;
        let routes = vec![route(RouteMatch::default(), Action::Forward(to("app")))];
        let mesh = mesh_tower::Mesh::builder().config(config([app], routes)).connector(Nobody).build().await.unwrap();
        let began = Instant::now();
        let answer = Program::over(kind, mesh).get("/").await;
        assert!(answer.is(kind, 503) && answer.flags.contains("UF"), "{kind:?}: {answer:?}");
        assert!((SHORT..Duration::from_secs(10)).contains(&began.elapsed()), "{kind:?}: {:?}", began.elapsed());
    }
}

/// TO10: there is no service config; what it says of methods, rules say, without a control plane too.
#[tokio::test]
async fn methods_have_limits_of_their_own() {
    for kind in Kind::ALL {
        let app = silent().await;
        let limited = |path: PathMatch, timeout| {
            let matches = RouteMatch { path, ..RouteMatch::default() };
            route(matches, Action::Forward(Forward { timeout: Some(timeout), ..to("app") }))
        };
        let prefix = PathMatch::Prefix { value: "/a.B/".to_owned(), ignore_case: false };
        let exact = PathMatch::Exact { value: "/a.B/Quick".to_owned(), ignore_case: false };
        let routes = vec![limited(exact, SHORT), limited(prefix, 5 * SHORT)];
        let program = Program::new(kind, config([cluster(kind, "app", &[&app])], routes)).await;
        for (path, limit) in [("/a.B/Quick", SHORT), ("/a.B/Slow", 5 * SHORT)] {
            let answer = program.get(path).await;
            assert!(timed_out(kind, &answer), "{kind:?} {path}: {answer:?}");
            let told = match kind.is_grpc() {
                true => mesh_core::timeout::parse_grpc_timeout(&app.last().header("grpc-timeout")).unwrap(),
                false => Duration::from_millis(app.last().header("x-envoy-expected-rq-timeout-ms").parse().unwrap()),
            };
            assert!((limit / 5..=limit).contains(&told), "{kind:?} {path}: {told:?}");
            assert!(path != "/a.B/Slow" || told > SHORT, "{kind:?}: {told:?}");
        }
    }
}
