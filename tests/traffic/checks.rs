//! Who is sick by a health check's word or the control plane's, and gets no requests.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use mesh_core::config::{Action, GrpcCheck, HealthCheck, HttpCheck, Probe, RouteMatch, TcpCheck};
use tokio::sync::Semaphore;

use crate::{
    harness::{Kind, Program, Reply, Upstream, cluster, config, route, to},
    health::{ask, in_a_row, program, until, usable},
};

/// HC3, HC2: endpoints that do not answer as they should get nothing until they do.
#[tokio::test]
async fn failing_health_checks_take_out() {
    for kind in Kind::ALL {
        let well = Arc::new(AtomicBool::new(true));
        let good = Upstream::scripted("good", |_, arrival| health(arrival, true)).await;
        let sick = Upstream::scripted("sick", {
            let well = Arc::clone(&well);
            move |_, arrival| health(arrival, well.load(Relaxed))
        })
        .await;
        let probe = match kind {
            Kind::Grpc => Probe::Grpc(GrpcCheck { service: "app".into(), ..GrpcCheck::default() }),
            Kind::Http1 => Probe::Http(HttpCheck { path: "/health".into(), ..HttpCheck::default() }),
            Kind::Http2 => {
                let headers = vec![("x-check".to_owned(), "1".to_owned())];
                let protocol = mesh_core::config::Protocol::Http2;
                Probe::Http(HttpCheck {
                    path: "/health".into(),
                    host: "app".into(),
                    headers,
                    protocol,
                    ..Default::default()
                })
            }
        };
        let program = program(kind, &[&good, &sick], |app| app.health_check = Some(Arc::new(often(probe)))).await;
        until(async || usable(&program) == 2).await;
        well.store(false, Relaxed);
        ask(&program, 1).await;
        until(async || usable(&program) == 1).await;
        let before = requests(&sick);
        assert_eq!(ask(&program, 10).await, 0, "{kind:?}");
        assert_eq!(requests(&sick), before, "{kind:?}");
        well.store(true, Relaxed);
        until(async || usable(&program) == 2).await;
        ask(&program, 4).await;
        assert!(requests(&sick) > before, "{kind:?}");
        let check = sick.arrivals().into_iter().find(is_check).unwrap();
        match kind {
            Kind::Grpc => assert_eq!(&*check.body, b"\x0a\x03app"),
            Kind::Http1 => assert_eq!((check.authority.as_str(), check.method.as_str()), ("app", "GET")),
            Kind::Http2 => assert_eq!(check.header("x-check"), "1"),
        }
    }
}

/// HC3: a connection that is made is enough, or what comes back over it is.
#[tokio::test]
async fn tcp_checks_connect() {
    let good = Upstream::start("good").await;
    let gone = Upstream::start("gone").await;
    // HTTP/1.1's own answer to a request.
    let send = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec();
    for kind in Kind::ALL {
        for (receive, expected) in [(vec![], 2), (vec!["200", "gone"], 1), (vec!["200", "OK"], 2)] {
            let send = if receive.is_empty() { Vec::new() } else { send.clone() };
            let tcp = TcpCheck { send, receive: receive.iter().map(|text| text.as_bytes().to_vec()).collect() };
            let program =
                program(kind, &[&good, &gone], |app| app.health_check = Some(Arc::new(often(Probe::Tcp(tcp))))).await;
            until(async || usable(&program) == expected).await;
            // Beside what checks send.
            let asked = || good.arrivals().iter().filter(|arrival| arrival.path == "/a.B/C").count();
            let before = asked();
            assert_eq!(ask(&program, 4).await, 0, "{kind:?} {receive:?}");
            assert_eq!(asked() - before, if expected == 2 { 2 } else { 0 }, "{kind:?} {receive:?}");
        }
    }
}

/// HC3: an answer that says so takes its endpoint out at once.
#[tokio::test]
async fn an_answer_may_take_its_endpoint_out() {
    for kind in Kind::ALL {
        let good = Upstream::scripted("good", |_, arrival| health(arrival, true)).await;
        let leaving = Upstream::scripted("leaving", |_, arrival| match is_check(arrival) {
            // After the first check, which brings it in, none is answered well.
            true => health(arrival, true),
            false => Reply::ok().header("x-envoy-immediate-health-check-fail", "true"),
        })
        .await;
        let program = program(kind, &[&good, &leaving], |app| {
            let http = HttpCheck { path: "/health".into(), protocol: app.protocol, ..HttpCheck::default() };
            let hour = Duration::from_secs(3600);
            let rare = HealthCheck { interval: hour, no_traffic_interval: hour, ..often(Probe::Http(http)) };
            app.health_check = Some(Arc::new(rare));
        })
        .await;
        until(async || leaving.count() > 0 && usable(&program) == 2).await;
        ask(&program, 10).await;
        assert_eq!((requests(&leaving), usable(&program)), (1, 1), "{kind:?}");
    }
}

/// OD11: a health check that passes ends an ejection.
#[tokio::test]
async fn a_passing_health_check_ends_an_ejection() {
    for kind in Kind::ALL {
        let bad = Upstream::scripted("bad", |_, arrival| match is_check(arrival) {
            true => health(arrival, true),
            false => Reply::unavailable(),
        })
        .await;
        let good = Upstream::scripted("good", |_, arrival| health(arrival, true)).await;
        let program = program(kind, &[&good, &bad], |app| {
            let http = HttpCheck { path: "/health".into(), protocol: app.protocol, ..HttpCheck::default() };
            app.health_check = Some(Arc::new(often(Probe::Http(http))));
            app.outlier_detection = Some(in_a_row(1));
        })
        .await;
        until(async || usable(&program) == 2).await;
        until(async || {
            ask(&program, 2).await;
            requests(&bad) >= 3
        })
        .await;
    }
}

/// HC2: a server that tells its health whenever it changes is heard at once; one that does not know the service is well.
#[tokio::test]
async fn health_is_watched() {
    let gate = Arc::new(Semaphore::new(0));
    let knowing = Upstream::scripted("knowing", {
        let gate = Arc::clone(&gate);
        move |n, arrival| if n == 0 { health(arrival, true) } else { health(arrival, true).when(&gate) }
    })
    .await;
    let ignorant = Upstream::scripted("ignorant", |_, arrival| match is_check(arrival) {
        true => Reply::grpc(12),
        false => Reply::ok(),
    })
    .await;
    let program = program(Kind::Grpc, &[&knowing, &ignorant], |app| {
        let watch = GrpcCheck { watch: true, ..GrpcCheck::default() };
        app.health_check = Some(Arc::new(often(Probe::Grpc(watch))));
    })
    .await;
    until(async || ignorant.count() > 0 && usable(&program) >= 1).await;
    assert!(ignorant.arrivals().iter().all(|arrival| arrival.path == "/grpc.health.v1.Health/Watch"));
    until(async || knowing.count() > 1).await;
}

/// HC1: who is draining or unhealthy by the control plane's word gets no new requests, what it has goes on; who is degraded
/// gets what the healthy cannot take.
#[tokio::test]
async fn the_control_planes_word_counts() {
    use mesh_core::config::Health;
    for kind in Kind::ALL {
        let gate = Arc::new(Semaphore::new(0));
        let first = Upstream::scripted("first", {
            let gate = Arc::clone(&gate);
            move |n, _| if n == 0 { Reply::ok().when(&gate) } else { Reply::ok() }
        })
        .await;
        let second = Upstream::start("second").await;
        let with = |healths: [Health; 2]| {
            let mut app = cluster(kind, "app", &[&first, &second]);
            app.panic_threshold = 0;
            let locality = &mut Arc::make_mut(&mut app.endpoints).localities[0];
            for (endpoint, health) in locality.endpoints.iter_mut().zip(healths) {
                endpoint.health = health;
            }
            config([app], vec![route(RouteMatch::default(), Action::Forward(to("app")))])
        };
        let program = Program::new(kind, with([Health::Healthy, Health::Unhealthy])).await;
        let running = {
            let program = program.clone();
            tokio::spawn(async move { program.get("/a.B/C").await })
        };
        until(async || first.count() == 1).await;
        for (healths, expected) in [
            ([Health::Draining, Health::Healthy], (0, 6)),
            ([Health::Draining, Health::Degraded], (0, 6)),
            ([Health::Unhealthy, Health::Healthy], (0, 6)),
        ] {
            let before = (first.count(), second.count());
            program.mesh.live().update(&with(healths)).unwrap();
            assert_eq!(ask(&program, 6).await, 0, "{kind:?} {healths:?}");
            assert_eq!((first.count() - before.0, second.count() - before.1), expected, "{kind:?} {healths:?}");
        }
        gate.add_permits(1);
        assert!(running.await.unwrap().is_ok(), "{kind:?}: what it had goes on");
    }
}

fn is_check(arrival: &crate::harness::Arrival) -> bool {
    arrival.path == "/health" || arrival.path.starts_with("/grpc.health.v1.Health/")
}

/// The answer to a health check, and to anything else.
fn health(arrival: &crate::harness::Arrival, well: bool) -> Reply {
    match (is_check(arrival), arrival.path.starts_with("/grpc")) {
        (false, _) => Reply::ok(),
        (true, true) => Reply::ok().message(if well { &[8, 1] } else { &[8, 2] }),
        (true, false) => Reply::status(if well { 200 } else { 503 }),
    }
}

/// Beside health checks.
fn requests(upstream: &Upstream) -> usize {
    upstream.arrivals().iter().filter(|arrival| !is_check(arrival)).count()
}

fn often(probe: Probe) -> HealthCheck {
    let often = Duration::from_millis(20);
    HealthCheck {
        probe,
        timeout: Duration::from_secs(5),
        interval: often,
        no_traffic_interval: often,
        unhealthy_threshold: 1,
        healthy_threshold: 1,
        ..HealthCheck::default()
    }
}
