//! Faults injected on purpose, as programs get them.

use std::time::{Duration, Instant};

use mesh_tower::config::{
    Abort, AbortStatus, Action, Fault, FaultDelay, Forward, Fraction, HeaderMatch, HeaderMatcher, HttpRetry,
    OutlierDetection, RetryConditions, RetryPolicy, Route, RouteMatch,
};

use crate::harness::{Kind, Program, Upstream, cluster, config, route, to};

const DELAY: Duration = Duration::from_millis(200);

async fn program(kind: Kind, app: &Upstream, fault: Fault) -> Program {
    let on = RetryConditions { http: vec![HttpRetry::ServerError], ..RetryConditions::default() };
    let forward = Forward { retry: Some(RetryPolicy { on, retries: 2, ..RetryPolicy::default() }), ..to("app") };
    let rule = Route { fault: Some(fault), ..route(RouteMatch::default(), Action::Forward(forward)) };
    let mut cluster = cluster(kind, "app", &[app]);
    cluster.outlier_detection = Some(OutlierDetection { consecutive_5xx: 1, ..OutlierDetection::default() });
    Program::new(kind, config([cluster], vec![rule])).await
}

fn delay(duration: Option<Duration>) -> Option<FaultDelay> {
    Some(FaultDelay { duration, fraction: Fraction::ALL })
}

fn abort(status: AbortStatus) -> Option<Abort> {
    Some(Abort { status, fraction: Fraction::ALL })
}

/// FI1, FI7: a delay comes before the request is sent, and is told.
#[tokio::test]
async fn requests_are_delayed() {
    for kind in Kind::ALL {
        let app = Upstream::start("app").await;
        let program = program(kind, &app, Fault { delay: delay(Some(DELAY)), ..Fault::default() }).await;
        let start = Instant::now();
        let answer = program.get("/").await;
        assert!(answer.is_ok() && start.elapsed() >= DELAY, "{kind:?}: {answer:?}");
        assert_eq!(answer.flags, "DI", "{kind:?}");
    }
}

/// FI2, FI7: an abort answers by itself, is told, is not retried, and blames no endpoint.
#[tokio::test]
async fn requests_are_aborted() {
    for kind in Kind::ALL {
        let app = Upstream::start("app").await;
        for (status, grpc) in
            [(400, 13), (401, 16), (403, 7), (404, 12), (429, 14), (502, 14), (503, 14), (504, 14), (500, 2)]
        {
            let fault = Fault { abort: abort(AbortStatus::Http(status)), ..Fault::default() };
            let answer = program(kind, &app, fault).await.get("/").await;
            let expected = if kind.is_grpc() { answer.grpc == Some(grpc) } else { answer.status == status };
            assert!(expected && answer.flags == "FI", "{kind:?} {status}: {answer:?}");
        }
        assert_eq!(app.count(), 0, "{kind:?}");
    }
}

/// FI2: an abort may be a status of gRPC, `OK` too, which a request of HTTP sees as 200.
#[tokio::test]
async fn calls_are_aborted_with_statuses_of_grpc() {
    for kind in Kind::ALL {
        let app = Upstream::start("app").await;
        for code in [0, 8, 14] {
            let fault = Fault { abort: abort(AbortStatus::Grpc(code)), ..Fault::default() };
            let answer = program(kind, &app, fault).await.get("/").await;
            assert_eq!((answer.status, answer.flags.as_str()), (200, "FI"), "{kind:?} {code}");
            assert!(!kind.is_grpc() || answer.grpc == Some(code), "{kind:?} {code}: {answer:?}");
        }
        assert_eq!(app.count(), 0, "{kind:?}");
    }
}

/// FI3: the request's own headers say what is injected, where the configuration leaves it to them.
#[tokio::test]
async fn headers_ask_for_faults() {
    for kind in Kind::ALL {
        let app = Upstream::start("app").await;
        let fault = Fault { delay: delay(None), abort: abort(AbortStatus::ByHeader), ..Fault::default() };
        let program = program(kind, &app, fault).await;
        assert!(program.get("/").await.is_ok(), "{kind:?}");
        let answer = program.get_with("/", &[("x-envoy-fault-abort-request", "503")]).await;
        assert!(answer.is(kind, 503) && answer.flags == "FI", "{kind:?}: {answer:?}");
        let start = Instant::now();
        assert!(program.get_with("/", &[("x-envoy-fault-delay-request", "200")]).await.is_ok(), "{kind:?}");
        assert!(start.elapsed() >= DELAY, "{kind:?}");
    }
}

/// FI4: so many at once are held up, the others are let through.
#[tokio::test]
async fn faults_under_way_are_limited() {
    for kind in Kind::ALL {
        let app = Upstream::start("app").await;
        let fault = Fault { delay: delay(Some(DELAY)), max_active: Some(1), ..Fault::default() };
        let program = program(kind, &app, fault).await;
        let (one, other) = tokio::join!(program.get("/"), program.get("/"));
        let mut flags = [one.flags, other.flags];
        flags.sort();
        assert_eq!(flags, ["-", "DI"], "{kind:?}");
    }
}

/// FI5: a fault is for the requests and the cluster it names.
#[tokio::test]
async fn faults_have_conditions() {
    for kind in Kind::ALL {
        let app = Upstream::start("app").await;
        let jason = HeaderMatch {
            name: "end-user".into(),
            matcher: HeaderMatcher::Present(true),
            invert: false,
            missing_as_empty: false,
        };
        let fault = Fault {
            abort: abort(AbortStatus::Http(503)),
            headers: vec![jason],
            cluster: "app".into(),
            ..Fault::default()
        };
        let program = program(kind, &app, fault.clone()).await;
        assert!(program.get("/").await.is_ok(), "{kind:?}");
        assert!(program.get_with("/", &[("end-user", "jason")]).await.is(kind, 503), "{kind:?}");
        let elsewhere = Fault { cluster: "other".into(), ..fault };
        let program = self::program(kind, &app, elsewhere).await;
        assert!(program.get_with("/", &[("end-user", "jason")]).await.is_ok(), "{kind:?}");
    }
}
