//! Who gets no requests: failing, slow and sick endpoints; and how many requests may be under way.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use mesh_core::config::{
    Action, Cluster, Config, FailurePercentage, Forward, HttpRetry, LatencyOutlier, LoadBalancer, Monitor,
    OutlierDetection, RetryBudget, RetryConditions, RetryPolicy, RouteMatch, RoutingPriority, SuccessRate, Thresholds,
};
use mesh_tower::Mesh;
use tokio::{
    net::TcpListener,
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::harness::{Kind, Program, Reply, Upstream, cluster, config, route, to};

/// OD1, OD7, OD9: who fails three times in a row gets nothing more, as far as enough others are left; the others go on.
#[tokio::test]
async fn failures_in_a_row_eject() {
    for kind in Kind::ALL {
        let good = Upstream::start("good").await;
        let bad = Upstream::scripted("bad", |_, _| Reply::unavailable()).await;
        for (most, expected) in [(50, 3), (49, 20)] {
            let program = program(kind, &[&good, &bad], |app| {
                app.outlier_detection = Some(OutlierDetection { max_ejection_percent: most, ..in_a_row(3) });
            })
            .await;
            let before = bad.count();
            ask(&program, 40).await;
            assert_eq!(bad.count() - before, expected, "{kind:?} {most}");
        }
    }
}

/// OD10: whoever is ejected stays so when the configuration of the detection changes, and is back when there is none.
#[tokio::test]
async fn a_change_of_configuration_brings_nobody_back() {
    for kind in Kind::ALL {
        let good = Upstream::start("good").await;
        let bad = Upstream::scripted("bad", |_, _| Reply::unavailable()).await;
        let detecting = |detection: Option<OutlierDetection>| {
            let mut app = cluster(kind, "app", &[&good, &bad]);
            (app.load_balancer, app.outlier_detection) = (LoadBalancer::RoundRobin, detection);
            config([app], vec![route(RouteMatch::default(), Action::Forward(to("app")))])
        };
        let program = Program::new(kind, detecting(Some(in_a_row(3)))).await;
        ask(&program, 20).await;
        assert_eq!(bad.count(), 3, "{kind:?}");
        let slower = OutlierDetection { interval: Duration::from_secs(60), ..in_a_row(5) };
        program.mesh.live().update(&detecting(Some(slower))).unwrap();
        assert_eq!(ask(&program, 20).await, 0, "{kind:?}");
        program.mesh.live().update(&detecting(None)).unwrap();
        assert_eq!(ask(&program, 20).await, 10, "{kind:?}");
    }
}

/// OD1, OD12: a gRPC status at the end of the stream counts; one of one's own choice does, in place of the usual.
#[tokio::test]
async fn codes_of_ones_own_choice_eject() {
    for kind in Kind::ALL {
        let good = Upstream::start("good").await;
        let busy = Upstream::scripted("busy", move |_, _| match kind {
            Kind::Grpc => Reply::grpc(8).in_trailers(),
            _ => Reply::status(429),
        })
        .await;
        let monitor = Monitor {
            name: "quota".into(),
            statuses: vec![(429, 429)],
            grpc_codes: vec![8],
            consecutive: 4,
            ..Monitor::default()
        };
        for (monitors, expected) in [(vec![monitor], 4), (vec![], 20)] {
            let before = busy.count();
            let program = program(kind, &[&good, &busy], |app| {
                app.outlier_detection = Some(OutlierDetection { monitors, ..in_a_row(3) });
            })
            .await;
            ask(&program, 40).await;
            assert_eq!(busy.count() - before, expected, "{kind:?}");
        }
    }
}

/// OD2: gateway failures have a row of their own.
#[tokio::test]
async fn gateway_failures_eject() {
    for kind in Kind::ALL {
        let good = Upstream::start("good").await;
        let bad = Upstream::scripted("bad", |_, _| Reply::unavailable()).await;
        let program = program(kind, &[&good, &bad], |app| {
            app.outlier_detection = Some(OutlierDetection {
                consecutive_gateway_failure: 2,
                enforcing_consecutive_gateway_failure: 100,
                ..in_a_row(0)
            });
        })
        .await;
        ask(&program, 20).await;
        assert_eq!(bad.count(), 2, "{kind:?}");
    }
}

/// OD3: an endpoint that cannot be reached is ejected by the count of local failures, which responses do not touch.
#[tokio::test]
async fn unreachable_endpoints_are_ejected_apart() {
    for kind in Kind::ALL {
        let good = Upstream::start("good").await;
        let gone = Upstream::start("gone").await;
        let address = gone.address;
        drop(gone);
        let program = program(kind, &[&good], |app| {
            let locality = &mut Arc::make_mut(&mut app.endpoints).localities[0];
            locality.endpoints.push(mesh_core::config::Endpoint::from(address));
            app.avoid_unreachable = false;
            app.outlier_detection =
                Some(OutlierDetection { split_local_origin: true, consecutive_local_origin_failure: 2, ..in_a_row(1) });
        })
        .await;
        let failed = ask(&program, 20).await;
        // A gRPC call that was not sent is sent elsewhere unasked.
        assert_eq!((failed, is_ejected(&program)), (if kind.is_grpc() { 0 } else { 2 }, true), "{kind:?}");
    }
}

/// OD4, OD5, OD13: by the rates of an interval, whoever does worse than the others goes, and then gets nothing.
#[tokio::test]
async fn rates_eject() {
    let latency =
        LatencyOutlier { request_volume: 3, at_least: Duration::from_millis(20), ..LatencyOutlier::default() };
    let off = SuccessRate { enforcing: 0, ..SuccessRate::default() };
    let success_rate =
        SuccessRate { minimum_hosts: 3, request_volume: 3, stdev_factor: 1000, ..SuccessRate::default() };
    let failure_percentage =
        FailurePercentage { minimum_hosts: 3, request_volume: 3, threshold: 50, enforcing: 100, ..Default::default() };
    for kind in Kind::ALL {
        for detection in [
            OutlierDetection { success_rate, ..in_a_row(0) },
            OutlierDetection { success_rate: off, failure_percentage, ..in_a_row(0) },
            OutlierDetection { success_rate: off, latency: Some(latency), ..in_a_row(0) },
        ] {
            let wants_slow = detection.latency.is_some();
            let upstreams = [Upstream::start("a").await, Upstream::start("b").await, Upstream::start("c").await];
            let gate = Arc::new(Semaphore::new(0));
            let bad = Upstream::scripted("bad", {
                let gate = Arc::clone(&gate);
                move |_, _| if wants_slow { Reply::ok().when(&gate) } else { Reply::unavailable() }
            })
            .await;
            let mut opening = JoinSet::new();
            opening.spawn(async move {
                loop {
                    sleep(Duration::from_millis(60)).await;
                    gate.add_permits(1);
                }
            });
            let all: Vec<_> = upstreams.iter().chain([&bad]).collect();
            let program = program(kind, &all, |app| {
                app.outlier_detection =
                    Some(OutlierDetection { interval: Duration::from_millis(600), ..detection.clone() });
            })
            .await;
            until(async || {
                ask(&program, 4).await;
                is_ejected(&program)
            })
            .await;
            let before = bad.count();
            ask(&program, 12).await;
            assert_eq!(bad.count(), before, "{kind:?} {detection:?}");
        }
    }
}

/// OD6: an ejected endpoint is back after its time.
#[tokio::test]
async fn ejected_endpoints_return() {
    for kind in Kind::ALL {
        let good = Upstream::start("good").await;
        let bad = Upstream::scripted("bad", |n, _| if n < 2 { Reply::unavailable() } else { Reply::ok() }).await;
        let program = program(kind, &[&good, &bad], |app| {
            app.outlier_detection = Some(OutlierDetection {
                interval: Duration::from_millis(50),
                base_ejection_time: Duration::from_millis(300),
                ..in_a_row(2)
            });
        })
        .await;
        ask(&program, 8).await;
        assert_eq!((bad.count(), is_ejected(&program)), (2, true), "{kind:?}");
        until(async || {
            ask(&program, 2).await;
            bad.count() > 2
        })
        .await;
    }
}

/// OD8: below the threshold of healthy endpoints all are used; without one nobody is.
#[tokio::test]
async fn panic_uses_the_ejected() {
    for kind in Kind::ALL {
        let bad = Upstream::scripted("bad", |_, _| Reply::unavailable()).await;
        for (threshold, expected, flags) in [(50, 6, "-"), (0, 1, "UH")] {
            let before = bad.count();
            let program = program(kind, &[&bad], |app| {
                app.panic_threshold = threshold;
                app.outlier_detection = Some(in_a_row(1));
            })
            .await;
            ask(&program, 5).await;
            assert_eq!(program.get("/a.B/C").await.flags, flags, "{kind:?}");
            assert_eq!(bad.count() - before, expected, "{kind:?}");
        }
    }
}

/// OD14: what was ejected, and what would have been, is counted by cluster and reason.
#[tokio::test]
async fn ejections_are_counted() {
    for kind in Kind::ALL {
        let name = format!("counted-{kind:?}");
        let bad = Upstream::scripted("bad", |_, _| Reply::unavailable()).await;
        let mut app = cluster(kind, &name, &[&bad]);
        app.outlier_detection = Some(OutlierDetection { consecutive_gateway_failure: 1, ..in_a_row(2) });
        let program =
            Program::new(kind, config([app], vec![route(RouteMatch::default(), Action::Forward(to(&name)))])).await;
        ask(&program, 2).await;
        let text = mesh_tower::telemetry::render().unwrap();
        for line in [
            format!("ejections_enforced{{cluster=\"{name}\",detection_method=\"consecutive_5xx\"}} 1"),
            format!(
                "ejections_unenforced{{cluster=\"{name}\",detection_method=\"consecutive_gateway_failure\",unenforced_reason=\"enforcement_percentage\"}} "
            ),
        ] {
            assert!(text.contains(&line), "{line} is not in\n{text}");
        }
    }
}

/// CB6: after its time a half-open endpoint gets a single request; it fails, and there are no more.
#[tokio::test]
async fn a_half_open_endpoint_gets_a_single_request() {
    for kind in Kind::ALL {
        let good = Upstream::start("good").await;
        let well = Arc::new(AtomicBool::new(false));
        let bad = Upstream::scripted("bad", {
            let well = Arc::clone(&well);
            move |_, _| if well.load(Relaxed) { Reply::ok() } else { Reply::unavailable() }
        })
        .await;
        let program = program(kind, &[&good, &bad], |app| {
            app.outlier_detection = Some(OutlierDetection {
                interval: Duration::from_millis(50),
                base_ejection_time: Duration::from_millis(200),
                half_open: true,
                ..in_a_row(2)
            });
        })
        .await;
        ask(&program, 8).await;
        assert_eq!(bad.count(), 2, "{kind:?}");
        until(async || {
            ask(&program, 1).await;
            bad.count() == 3
        })
        .await;
        ask(&program, 8).await;
        assert_eq!((bad.count(), is_ejected(&program)), (3, true), "{kind:?}: a failed probe ejects");
        well.store(true, Relaxed);
        until(async || {
            ask(&program, 1).await;
            !is_ejected(&program)
        })
        .await;
        let before = bad.count();
        ask(&program, 8).await;
        assert_eq!(bad.count() - before, 4, "{kind:?}: its full share again");
    }
}

/// CB1, CB5, CB7: requests over the cluster's limit, the priority's or the endpoint's are refused, and nothing is sent.
#[tokio::test]
async fn requests_over_a_limit_are_refused() {
    for kind in Kind::ALL {
        for (limits, high, priority) in [
            (Thresholds { max_requests: 3, ..Thresholds::default() }, Thresholds::default(), RoutingPriority::Default),
            (
                Thresholds { max_requests_per_endpoint: 3, ..Thresholds::default() },
                Thresholds::default(),
                RoutingPriority::Default,
            ),
            (Thresholds::default(), Thresholds { max_requests: 3, ..Thresholds::default() }, RoutingPriority::High),
        ] {
            let gate = Arc::new(Semaphore::new(0));
            let slow = Upstream::scripted("slow", {
                let gate = Arc::clone(&gate);
                move |_, _| Reply::ok().when(&gate)
            })
            .await;
            let mut app = cluster(kind, "app", &[&slow]);
            (app.thresholds, app.high_thresholds) = (limits, high);
            let forward = Forward { priority, ..to("app") };
            let program =
                Program::new(kind, config([app], vec![route(RouteMatch::default(), Action::Forward(forward))])).await;
            let mut asking = JoinSet::new();
            for n in 1..=3 {
                let program = program.clone();
                asking.spawn(async move { program.get("/a.B/C").await });
                until(async || slow.count() == n).await;
            }
            let refused = program.get("/a.B/C").await;
            assert_eq!((refused.flags.as_str(), slow.count()), ("UO", 3), "{kind:?} {priority:?}");
            assert!(refused.is(kind, 503), "{kind:?} {refused:?}");
            gate.add_permits(4);
            assert!(asking.join_all().await.iter().all(|answer| answer.is_ok()));
            assert!(program.get("/a.B/C").await.is_ok(), "{kind:?}");
        }
    }
}

/// CB3, CB5: with one request a connection, as over HTTP/1.1, and one connection, others wait up to a limit of their priority, and
/// those beyond it are refused.
#[tokio::test]
async fn requests_wait_for_a_connection_up_to_a_limit() {
    let priorities = [RoutingPriority::Default, RoutingPriority::High];
    for (kind, priority) in Kind::ALL.into_iter().flat_map(|kind| priorities.map(|priority| (kind, priority))) {
        let gate = Arc::new(Semaphore::new(0));
        let held = Arc::clone(&gate);
        let slow = Upstream::scripted("slow", move |_, _| Reply::ok().when(&held)).await;
        let mut app = cluster(kind, "app", &[&slow]);
        app.connections.http2.max_concurrent_streams = 1;
        let tight = Thresholds { max_connections: 1, max_pending_requests: 1, ..Thresholds::default() };
        match priority {
            RoutingPriority::Default => app.thresholds = tight,
            RoutingPriority::High => app.high_thresholds = tight,
        }
        let forward = Forward { priority, ..to("app") };
        let routes = vec![route(RouteMatch::default(), Action::Forward(forward))];
        let program = Program::new(kind, config([app], routes)).await;
        let mut asking = JoinSet::new();
        for n in 0..3 {
            let program = program.clone();
            asking.spawn(async move { program.get("/a.B/C").await });
            if n == 0 {
                until(async || slow.count() == 1).await;
            }
        }
        let refused = asking.join_next().await.unwrap().unwrap();
        assert!(refused.is(kind, 503) && refused.flags == "UO", "{kind:?} {priority:?}: {refused:?}");
        assert_eq!(refused.header("x-envoy-overloaded"), "true", "{kind:?}");
        gate.add_permits(2);
        assert!(asking.join_all().await.iter().all(|answer| answer.is_ok()), "{kind:?} {priority:?}");
        assert_eq!((slow.count(), slow.opened()), (2, 1), "{kind:?} {priority:?}");
    }
}

/// RT16, RT17: of many requests that fail together as many are tried again as the budget of what is under way allows.
#[tokio::test]
async fn retries_under_way_are_bounded() {
    for kind in Kind::ALL {
        let budget = |percent, min_concurrency| Some(RetryBudget { percent, min_concurrency });
        for (retry_budget, max_retries, expected) in
            [(None, 2, 2), (budget(0.0, 3), 0, 3), (budget(50.0, 1), 0, 4), (None, 8, 8)]
        {
            // All eight first tries are there before any is answered; no retry is answered before all have been decided.
            let (first, second) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
            let bad = Upstream::scripted("bad", {
                let (first, second) = (Arc::clone(&first), Arc::clone(&second));
                move |n, _| if n < 8 { Reply::unavailable().when(&first) } else { Reply::ok().when(&second) }
            })
            .await;
            let mut app = cluster(kind, "app", &[&bad]);
            app.thresholds = Thresholds { retry_budget, max_retries, ..Thresholds::default() };
            let on = RetryConditions {
                http: vec![HttpRetry::ServerError],
                grpc: vec![mesh_core::config::GrpcRetry::Unavailable],
                ..RetryConditions::default()
            };
            let retry = Some(RetryPolicy { on, retries: 1, only_idempotent: false, ..RetryPolicy::default() });
            let forward = Forward { retry, ..to("app") };
            let program =
                Program::new(kind, config([app], vec![route(RouteMatch::default(), Action::Forward(forward))])).await;
            let mut asking = JoinSet::new();
            let answered = Arc::new(AtomicUsize::new(0));
            for _ in 0..8 {
                let (program, answered) = (program.clone(), Arc::clone(&answered));
                asking.spawn(async move {
                    let answer = program.get("/a.B/C").await;
                    answered.fetch_add(1, Relaxed);
                    answer
                });
            }
            until(async || bad.count() == 8).await;
            // One by one, so that how many are under way when each is decided is known.
            for n in 1..=8 {
                first.add_permits(1);
                until(async || bad.count() + answered.load(Relaxed) >= 8 + n).await;
            }
            assert_eq!(bad.count() - 8, expected, "{kind:?} {retry_budget:?} {max_retries}");
            second.add_permits(8);
            let overflown = asking.join_all().await.iter().filter(|answer| !answer.is_ok()).count();
            assert_eq!(overflown, 8 - expected, "{kind:?} {retry_budget:?}");
        }
    }
}

/// CB9: a server that has enough to do refuses more at once, and its caller can go elsewhere.
#[tokio::test]
async fn an_overloaded_server_refuses() {
    for kind in Kind::ALL {
        let (gate, working) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let server = Mesh::builder().config(Config::default()).shed_load(1, Duration::from_millis(50));
        let server = server.build().await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let handler = axum::Router::new().fallback({
            let (gate, working) = (Arc::clone(&gate), Arc::clone(&working));
            async move || {
                working.add_permits(1);
                gate.acquire().await.unwrap().forget();
            }
        });
        let mut serving = JoinSet::new();
        serving.spawn(async move { server.serve_listener(listener, handler).await.unwrap() });
        let program = program(kind, &[], |app| {
            let locality = mesh_core::config::LocalityEndpoints {
                endpoints: vec![mesh_core::config::Endpoint::from(address)],
                ..Default::default()
            };
            Arc::make_mut(&mut app.endpoints).localities = vec![locality];
        })
        .await;
        let first = {
            let program = program.clone();
            tokio::spawn(async move { program.get("/a.B/C").await })
        };
        working.acquire().await.unwrap().forget();
        let refused = program.get("/a.B/C").await;
        assert!(refused.is(kind, 503), "{kind:?} {refused:?}");
        assert_eq!(refused.header("x-envoy-overloaded"), "true");
        assert_eq!(refused.header("grpc-retry-pushback-ms"), if kind.is_grpc() { "50" } else { "" });
        gate.add_permits(2);
        assert_eq!(first.await.unwrap().status, 200);
        assert_eq!(program.get("/a.B/C").await.status, 200, "{kind:?}");
    }
}

/// Ejects after so many 5xx in a row, up to all.
pub(crate) fn in_a_row(consecutive_5xx: u32) -> OutlierDetection {
    OutlierDetection { consecutive_5xx, max_ejection_percent: 100, ..OutlierDetection::default() }
}

/// All requests to these upstreams in turn.
pub(crate) async fn program(kind: Kind, upstreams: &[&Upstream], change: impl FnOnce(&mut Cluster)) -> Program {
    let mut app = cluster(kind, "app", upstreams);
    app.load_balancer = LoadBalancer::RoundRobin;
    change(&mut app);
    Program::new(kind, config([app], vec![route(RouteMatch::default(), Action::Forward(to("app")))])).await
}

/// So many requests one after the other; how many failed.
pub(crate) async fn ask(program: &Program, requests: usize) -> usize {
    let mut failed = 0;
    for _ in 0..requests {
        failed += usize::from(!program.get("/a.B/C").await.is_ok());
    }
    failed
}

pub(crate) fn is_ejected(program: &Program) -> bool {
    let snapshot = program.mesh.snapshot().unwrap();
    snapshot.cluster("app").unwrap().endpoints().iter().any(|endpoint| endpoint.is_ejected())
}

pub(crate) fn usable(program: &Program) -> usize {
    let snapshot = program.mesh.snapshot().unwrap();
    snapshot.cluster("app").unwrap().endpoints().iter().filter(|endpoint| endpoint.is_usable()).count()
}

/// Waits until it is so.
pub(crate) async fn until(so: impl AsyncFn() -> bool) {
    let waited = timeout(Duration::from_secs(30), async {
        while !so().await {
            sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.expect("it is so in time");
}
