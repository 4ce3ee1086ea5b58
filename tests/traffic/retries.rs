//! Trying again, as programs get it: what is tried again, how often, after what wait, and what keeps it within bounds.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use http::Request;
use mesh_core::retry::RetryBudget;
use mesh_tower::{
    config::{
        Action, BackOff, DropOverload, Endpoints, Forward, Fraction, GrpcRetry, HeaderMatch, HeaderMatcher,
        HedgePolicy, HttpRetry, RateLimitedBackOff, ResetFormat, ResetHeader, RetryConditions, RetryPolicy, RouteMatch,
        RouteTable, StringMatch, Thresholds, VirtualHost,
    },
    layer::RetryLayer,
};
use tokio::{net::TcpListener, sync::Semaphore};

use crate::harness::{Kind, Program, Reply, Upstream, cluster, cluster_at, config, route, to};

/// 5xx and `UNAVAILABLE`, so often.
fn policy(retries: u32) -> RetryPolicy {
    let on = RetryConditions {
        http: vec![HttpRetry::ServerError],
        grpc: vec![GrpcRetry::Unavailable],
        ..RetryConditions::default()
    };
    let back_off = BackOff { base: Duration::from_millis(1), max: Duration::from_millis(1) };
    RetryPolicy { on, retries, back_off, ..RetryPolicy::default() }
}

fn retrying(policy: RetryPolicy) -> Forward {
    Forward { retry: Some(policy), ..Forward::default() }
}

async fn failing_first(times: usize) -> Upstream {
    Upstream::scripted("app", move |n, _| if n < times { Reply::unavailable() } else { Reply::ok() }).await
}

/// RT1, RT2, RT3, RT11: what fails is tried again as often as the policy says, each try marked, and no more often.
#[tokio::test]
async fn failures_are_tried_again() {
    for kind in Kind::ALL {
        let app = failing_first(2).await;
        let program = Program::calling(kind, &[&app], retrying(policy(2))).await;
        assert!(program.get("/").await.is_ok(), "{kind:?}");
        let arrivals = app.arrivals();
        let counts: Vec<_> = arrivals.iter().map(|arrival| arrival.header("x-envoy-attempt-count")).collect();
        assert_eq!(counts, ["1", "2", "3"], "{kind:?}");
        let previous: Vec<_> = arrivals.iter().map(|arrival| arrival.header("grpc-previous-rpc-attempts")).collect();
        assert_eq!(previous, if kind.is_grpc() { ["", "1", "2"] } else { ["", "", ""] }, "{kind:?}");

        let app = failing_first(9).await;
        let program = Program::calling(kind, &[&app], retrying(policy(1))).await;
        let answer = program.get("/").await;
        assert!(answer.is(kind, 503), "{kind:?}: {answer:?}");
        assert_eq!((app.count(), answer.flags.as_str()), (2, "URX"), "{kind:?}");
    }
}

/// RT2: any gRPC status can be named, not only the five that Envoy knows.
#[tokio::test]
async fn any_grpc_status_can_be_tried_again() {
    let app = Upstream::scripted("app", |n, _| if n == 0 { Reply::grpc(2) } else { Reply::ok() }).await;
    let mut policy = policy(1);
    policy.on.grpc = vec![GrpcRetry::Unknown];
    let program = Program::calling(Kind::Grpc, &[&app], retrying(policy)).await;
    assert!(program.get("/a.B/C").await.is_ok());
    assert_eq!(app.count(), 2);
}

/// RT5: a host's policy is for routes without their own.
#[tokio::test]
async fn a_routes_policy_replaces_its_hosts() {
    for kind in Kind::ALL {
        for (own, expected) in [(None, 3), (Some(policy(1)), 2)] {
            let app = failing_first(9).await;
            let forward = Forward { retry: own, ..to("app") };
            let mut config =
                config([cluster(kind, "app", &[&app])], vec![route(RouteMatch::default(), Action::Forward(forward))]);
            let table = config.outbound.get(&80).unwrap();
            let host = VirtualHost { retry: Some(policy(2)), ..(*table.virtual_hosts[0]).clone() };
            let table = RouteTable { virtual_hosts: vec![Arc::new(host)], ..(**table).clone() };
            config.outbound.insert(80, Arc::new(table));
            Program::new(kind, config).await.get("/").await;
            assert_eq!(app.count(), expected, "{kind:?}");
        }
    }
}

/// RT6, RT7: an HTTP request waits anything up to the base, a gRPC call the base, a fifth more or less.
#[tokio::test]
async fn both_forms_of_waiting() {
    const REQUESTS: u32 = 24;
    for kind in Kind::ALL {
        let arrived: Arc<Mutex<BTreeMap<String, Vec<Instant>>>> = Arc::default();
        let app = Upstream::scripted("app", {
            let arrived = Arc::clone(&arrived);
            move |_, arrival| {
                let mut arrived = arrived.lock().unwrap();
                let tries = arrived.entry(arrival.header("x-n")).or_default();
                tries.push(Instant::now());
                if tries.len() == 1 { Reply::unavailable() } else { Reply::ok() }
            }
        })
        .await;
        let base = Duration::from_millis(400);
        let retry = RetryPolicy { back_off: BackOff { base, max: base }, ..policy(1) };
        let mut target = cluster(kind, "app", &[&app]);
        target.thresholds = Thresholds { max_retries: REQUESTS, ..Thresholds::default() };
        let forward = Forward { retry: Some(retry), ..to("app") };
        let routes = vec![route(RouteMatch::default(), Action::Forward(forward))];
        let program = Program::new(kind, config([target], routes)).await;
        // More is tried again here than a client's budget has.
        let all = RetryLayer::with_budget(Arc::new(RetryBudget::unlimited()));
        let client = program.mesh.http().with_retries(all);
        let asked = (0..REQUESTS).map(|n| {
            let mut request = Request::get("http://app/a.B/C").header("x-n", n);
            if kind.is_grpc() {
                request = request.method("POST").header("content-type", "application/grpc").header("te", "trailers");
            }
            client.request(request.body(String::new()).unwrap())
        });
        for answer in futures_util::future::join_all(asked).await {
            assert_eq!(answer.unwrap().status(), 200, "{kind:?}");
        }
        assert_eq!(app.count(), 2 * REQUESTS as usize, "{kind:?}");
        let arrived = arrived.lock().unwrap();
        let waits: Vec<_> = arrived.values().map(|tries| tries[1] - tries[0]).collect();
        let (shortest, mean) = (*waits.iter().min().unwrap(), waits.iter().sum::<Duration>() / REQUESTS);
        // Of 24 draws the shortest is in the lower half but for once in 16 million.
        match kind.is_grpc() {
            true => {
                assert!(shortest >= base * 8 / 10, "{waits:?}");
                assert!(shortest <= base && mean <= base * 14 / 10, "{waits:?}");
            }
            false => {
                assert!(shortest <= base / 2, "{kind:?}: {waits:?}");
                // Uniform up to the base: the mean is half of it, five standard deviations are 0.3 of it; above that
                // there is room for being late.
                assert!((base / 5..=base * 9 / 10).contains(&mean), "{kind:?}: {mean:?} of {waits:?}");
            }
        }
    }
}

/// RT4: Istio's default policy tries again what never arrived and what a gRPC server calls unavailable, and no failure of
/// the application.
#[tokio::test]
async fn istios_default_policy() {
    let on = RetryConditions {
        http: vec![HttpRetry::ConnectFailure, HttpRetry::RefusedStream, HttpRetry::RetriableStatusCodes],
        grpc: vec![GrpcRetry::Unavailable, GrpcRetry::Cancelled],
        ..RetryConditions::default()
    };
    for kind in Kind::ALL {
        let default = || retrying(RetryPolicy { on: on.clone(), avoid_previous_hosts: 5, ..policy(2) });
        let failing = Upstream::scripted("app", move |_, _| match kind.is_grpc() {
            true => Reply::grpc(13),
            false => Reply::status(503),
        });
        let failing = failing.await;
        assert!(!Program::calling(kind, &[&failing], default()).await.get("/").await.is_ok(), "{kind:?}");
        assert_eq!(failing.count(), 1, "{kind:?}");
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let app = Upstream::start("app").await;
        let forward = Forward { clusters: to("app").clusters, ..default() };
        let routes = vec![route(RouteMatch::default(), Action::Forward(forward))];
        let program = Program::new(kind, config([cluster_at(kind, "app", &[gone, app.address])], routes)).await;
        for _ in 0..6 {
            assert!(program.get("/").await.is_ok(), "{kind:?}");
        }
        if kind.is_grpc() {
            let app = failing_first(2).await;
            assert!(Program::calling(kind, &[&app], default()).await.get("/").await.is_ok());
            assert_eq!(app.count(), 3);
        }
    }
}

/// RT8: a response says when to come back.
#[tokio::test]
async fn responses_say_when_to_come_back() {
    for kind in Kind::ALL {
        let app = Upstream::scripted("app", |n, _| match n {
            0 => Reply::unavailable().header("retry-after", "1"),
            _ => Reply::ok(),
        });
        let app = app.await;
        let header = ResetHeader { name: "retry-after".into(), format: ResetFormat::Seconds };
        let rate_limited = Some(RateLimitedBackOff { headers: vec![header], max: Duration::from_secs(300) });
        let program = Program::calling(kind, &[&app], retrying(RetryPolicy { rate_limited, ..policy(1) })).await;
        let start = Instant::now();
        assert!(program.get("/").await.is_ok(), "{kind:?}");
        assert!(start.elapsed() >= Duration::from_secs(1), "{kind:?}");
    }
}

/// RT9: a gRPC server says not to come back, or exactly when, whatever the policy's own wait is.
#[tokio::test]
async fn servers_push_back() {
    let long = Duration::from_secs(600);
    for (pushback, expected) in [("-1", 1), ("soon", 1), ("0", 2), ("300", 2)] {
        let app =
            Upstream::scripted("app", move |_, _| Reply::unavailable().header("grpc-retry-pushback-ms", pushback));
        let app = app.await;
        let policy = RetryPolicy { back_off: BackOff { base: long, max: long }, ..policy(1) };
        let program = Program::calling(Kind::Grpc, &[&app], retrying(policy)).await;
        let start = Instant::now();
        program.get("/a.B/C").await;
        let took = start.elapsed();
        assert_eq!(app.count(), expected, "{pushback}");
        assert!(took < Duration::from_secs(60), "{pushback}: {took:?}");
        assert!(pushback != "300" || took >= Duration::from_millis(300), "{took:?}");
    }
}

/// LB26: what is dropped by category is never tried again.
#[tokio::test]
async fn what_is_dropped_is_not_tried_again() {
    for kind in Kind::ALL {
        let app = Upstream::start("app").await;
        let mut target = cluster(kind, "app", &[&app]);
        let drops = vec![DropOverload { category: "lb".into(), fraction: Fraction::ALL }];
        target.endpoints = Arc::new(Endpoints { drops, ..Endpoints::clone(&target.endpoints) });
        let forward = Forward { retry: Some(policy(3)), ..to("app") };
        let program =
            Program::new(kind, config([target], vec![route(RouteMatch::default(), Action::Forward(forward))])).await;
        let answer = program.get("/").await;
        // Tried again in vain, it would say `URX` too.
        assert!(answer.is(kind, 503) && answer.flags == "DO", "{kind:?}: {answer:?}");
        assert_eq!(app.count(), 0, "{kind:?}");
    }
}

/// RT10: a gRPC call that never left is sent elsewhere without any policy; RT1, RT15: of HTTP it takes one, and then
/// any method may be sent again.
#[tokio::test]
async fn what_never_left_is_sent_elsewhere() {
    for kind in Kind::ALL {
        let (dead, app) = (Upstream::start("dead").await, Upstream::start("app").await);
        let on = RetryConditions { http: vec![HttpRetry::ConnectFailure], ..RetryConditions::default() };
        let retry = (!kind.is_grpc()).then(|| RetryPolicy { on, ..policy(1) });
        let program = Program::calling(kind, &[&dead, &app], Forward { retry, ..Forward::default() }).await;
        let address = dead.address;
        drop(dead);
        while tokio::net::TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
        for _ in 0..5 {
            let answer = program.send(Request::post("/"), "x").await;
            assert!(answer.is_ok(), "{kind:?}: {answer:?}");
        }
        assert_eq!(app.count(), 5, "{kind:?}");
    }
}

/// RT13: another try goes to another host.
#[tokio::test]
async fn other_hosts_are_tried() {
    for kind in Kind::ALL {
        let hosts = [failing_first(99).await, failing_first(99).await, failing_first(99).await];
        let policy = RetryPolicy { avoid_previous_hosts: 5, ..policy(2) };
        let program = Program::calling(kind, &hosts.each_ref(), retrying(policy)).await;
        program.get("/").await;
        assert_eq!(hosts.each_ref().map(|host| host.count()), [1, 1, 1], "{kind:?}");
    }
}

/// RT15: what may have been processed is not sent again unless its method allows it, or its policy names the method.
#[tokio::test]
async fn only_idempotent_requests_are_tried_again() {
    for kind in [Kind::Http1, Kind::Http2] {
        let post = StringMatch::Exact { value: "POST".into(), ignore_case: false };
        let named = vec![HeaderMatch {
            name: ":method".into(),
            matcher: HeaderMatcher::Value(post),
            invert: false,
            missing_as_empty: false,
        }];
        for (method, request_headers, expected) in [("POST", vec![], 1), ("PUT", vec![], 2), ("POST", named, 2)] {
            let app = failing_first(1).await;
            let program = Program::calling(kind, &[&app], retrying(RetryPolicy { request_headers, ..policy(1) })).await;
            program.send(Request::builder().method(method).uri("/"), "x").await;
            assert_eq!(app.count(), expected, "{kind:?} {method}");
            assert!(app.arrivals().iter().all(|arrival| arrival.body == "x"), "{kind:?}");
        }
    }
}

/// RT16: a client's retries are a tenth of its requests and ten to begin with, however much fails.
#[tokio::test]
async fn retries_have_a_budget() {
    for kind in Kind::ALL {
        let app = failing_first(usize::MAX).await;
        let mut clusters = cluster(kind, "app", &[&app]);
        clusters.outlier_detection = None;
        let forward = Forward { retry: Some(policy(3)), ..to("app") };
        let routes = vec![route(RouteMatch::default(), Action::Forward(forward))];
        let program = Program::new(kind, config([clusters], routes)).await;
        for _ in 0..100 {
            assert!(program.get("/").await.is(kind, 503), "{kind:?}");
        }
        assert!((110..=120).contains(&app.count()), "{kind:?}: {}", app.count());
    }
}

/// RT17: a cluster limits how many retries are under way.
#[tokio::test]
async fn retries_under_way_are_limited() {
    for kind in Kind::ALL {
        let app = failing_first(9).await;
        let mut limited = cluster(kind, "app", &[&app]);
        limited.thresholds = Thresholds { max_retries: 0, ..Thresholds::default() };
        let forward = Forward { retry: Some(policy(3)), ..to("app") };
        let routes = vec![route(RouteMatch::default(), Action::Forward(forward))];
        let answer = Program::new(kind, config([limited], routes)).await.get("/").await;
        assert_eq!((app.count(), answer.flags.as_str()), (1, "UO"), "{kind:?}");
    }
}

/// RT18: with half of its tokens gone, nothing of a gRPC server's is tried again.
#[tokio::test]
async fn a_server_is_throttled() {
    let app = failing_first(usize::MAX).await;
    let program = Program::calling(Kind::Grpc, &[&app], retrying(policy(1))).await;
    let client = program.mesh.http().with_retries(RetryLayer::new().throttle(10, 0.1));
    for _ in 0..10 {
        let request = Request::post("http://app/a.B/C").header("content-type", "application/grpc");
        client.request(request.body(String::new()).unwrap()).await.unwrap();
    }
    // Tokens: 9 and again, 8, 7 and again, 6, and 5 is half of ten.
    assert_eq!(app.count(), 12);
}

/// RT19: a request asks for its own retries, and its words do not travel on.
#[tokio::test]
async fn a_request_asks_for_its_own_retries() {
    for kind in Kind::ALL {
        let app = failing_first(2).await;
        let program = Program::calling(kind, &[&app], Forward::default()).await;
        let asked =
            [("x-envoy-retry-on", "5xx"), ("x-envoy-retry-grpc-on", "unavailable"), ("x-envoy-max-retries", "2")];
        assert!(program.get_with("/", &asked).await.is_ok(), "{kind:?}");
        assert_eq!((app.count(), app.last().header("x-envoy-retry-on")), (3, String::new()), "{kind:?}");
    }
}

/// RT20: a try that takes its time is not given up; another is begun, and the first good answer counts.
#[tokio::test]
async fn slow_tries_are_hedged() {
    for kind in Kind::ALL {
        let envoys = HedgePolicy { on_per_try_timeout: true, ..HedgePolicy::default() };
        let grpcs = HedgePolicy { delay: Some(Duration::from_millis(30)), attempts: 2, ..HedgePolicy::default() };
        for hedge in [envoys, grpcs] {
            let never = Arc::new(Semaphore::new(0));
            let app = Upstream::scripted("app", move |n, _| match n {
                0 => Reply::ok().when(&never),
                _ => Reply::ok(),
            });
            let app = app.await;
            let retry = RetryPolicy { per_try_timeout: Some(Duration::from_millis(30)), ..policy(2) };
            let forward = Forward { retry: Some(retry), hedge: Some(hedge.clone()), ..Forward::default() };
            let program = Program::calling(kind, &[&app], forward).await;
            let answer = program.get("/").await;
            assert!(answer.is_ok(), "{kind:?} {hedge:?}: {answer:?}");
            assert_eq!(app.count(), 2, "{kind:?} {hedge:?}");
        }
    }
}

/// RT12, RT21: a body that is still being sent is kept for another try up to a limit; past it there is no other try.
#[tokio::test]
async fn streamed_bodies_are_sent_again_up_to_a_limit() {
    use futures_util::StreamExt;

    for kind in Kind::ALL {
        for (replay_limit, tries) in [(None, 2), (Some(1_000), 2), (Some(40), 1)] {
            let app = failing_first(1).await;
            let forward = Forward { replay_limit, ..retrying(policy(1)) };
            let program = Program::calling(kind, &[&app], forward).await;
            // A gRPC message of 95 bytes with its frame, in ten pieces that take their time.
            let mut whole = vec![0, 0, 0, 0, 95];
            whole.resize(100, b'x');
            let pieces: Vec<_> = whole.chunks(10).map(bytes::Bytes::copy_from_slice).collect();
            let pieces = futures_util::stream::iter(pieces).then(|piece| async move {
                tokio::time::sleep(Duration::from_millis(2)).await;
                Ok::<_, std::convert::Infallible>(http_body::Frame::data(piece))
            });
            let mut request = Request::put("http://app/a.B/C");
            if kind.is_grpc() {
                request = request.method("POST").header("content-type", "application/grpc").header("te", "trailers");
            }
            let body = http_body_util::BodyExt::boxed_unsync(http_body_util::StreamBody::new(pieces));
            let answer = program.mesh.http().request(request.body(body).unwrap()).await.unwrap();
            let failed = answer.status() == 503 || answer.headers().get("grpc-status").is_some_and(|it| it == "14");
            assert_eq!(failed, tries == 1, "{kind:?} {replay_limit:?}: {answer:?}");
            assert_eq!(app.count(), tries, "{kind:?} {replay_limit:?}");
            for arrival in app.arrivals() {
                assert_eq!(arrival.body.len(), if kind.is_grpc() { 95 } else { 100 }, "{kind:?} {replay_limit:?}");
            }
        }
    }
}
