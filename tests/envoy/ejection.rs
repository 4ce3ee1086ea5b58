//! Who is ejected by what, and for how long, and how many requests a circuit breaker lets through: ours and Envoy's.
//!
//! The upstream answers as each request says (`x-answer`), so nothing depends on the order of requests. A cluster of one
//! endpoint with panic off shows by its answers whether the endpoint is ejected.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use http::StatusCode;
use mesh_core::config::Config;
use mesh_xds::proto::envoy::{
    config::{
        cluster::v3::{
            CircuitBreakers, Cluster, OutlierDetection,
            circuit_breakers::{Thresholds, thresholds::RetryBudget},
            cluster::{CommonLbConfig, LbPolicy},
        },
        route::v3::{RetryPolicy, Route},
    },
    r#type::v3::Percent,
};
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    ask::{Ask, Caller},
    both::{Both, cluster, http2, route, routes, to},
    late::Lateness,
    process::Options,
    upstream::{Arrived, Upstream, UpstreamBody, answer, frames},
};

/// OD1, OD2, OD3: after any sequence of answers, resets, refused connections and timeouts, the endpoint is ejected at the same
/// request on both sides.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_answers_eject() {
    let Some(mut both) = Both::start(&Options::default()).await else { return };
    let upstream = Upstream::start("up", |arrived| async move { by_header(&arrived).await }).await;
    let mut state = 20_260_101_u64;
    let mut below = |bound: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % bound
    };
    let (mut clusters, mut rules, mut scripts) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..60 {
        let name = format!("c{n}");
        let detection = OutlierDetection {
            consecutive_5xx: Some(1 + below(5) as u32),
            enforcing_consecutive_5xx: Some(if below(4) == 0 { 0 } else { 100 }),
            consecutive_gateway_failure: Some(1 + below(4) as u32),
            enforcing_consecutive_gateway_failure: Some(if below(2) == 0 { 0 } else { 100 }),
            split_external_local_origin_errors: below(2) == 0,
            consecutive_local_origin_failure: Some(1 + below(4) as u32),
            ..never_back()
        };
        let one = alone(cluster(&name, [upstream.address()]), detection);
        let is_grpc = n % 3 == 2;
        clusters.push(if is_grpc { http2(one) } else { one });
        rules.push(route(&format!("/{name}/"), to(&name)));
        let kinds: &[&str] = match is_grpc {
            true => &["200", "grpc-5", "grpc-14", "grpc-13", "grpc-4", "503", "grpc-14", "close"],
            false => &["200", "404", "500", "501", "502", "503", "504", "503", "close"],
        };
        let script: Vec<_> = (0..25)
            .map(|_| kinds[usize::try_from(below(kinds.len() as u64)).unwrap()])
            // Bad times come in rows, or long rows would hardly ever be.
            .flat_map(|answer| vec![answer; if answer == "200" { 1 } else { 2 }])
            .collect();
        scripts.push((name, is_grpc, script));
    }
    put(&mut both, &clusters, rules).await;
    let (mut ejected, mut differences) = (0, Vec::new());
    for (name, is_grpc, script) in &scripts {
        let mut arrived = Vec::new();
        for caller in [both.through_envoy(0), both.through_ours(0)] {
            let mut through = String::new();
            for answer in script {
                let path = format!("/{name}/x");
                let ask = if *is_grpc { Ask::grpc("host", &path) } else { Ask::get("host", &path) };
                let before = upstream.requests();
                let _ = caller.ask(&ask.with("x-answer", answer)).await;
                through.push(if upstream.requests() > before { '1' } else { '0' });
                // Envoy ejects on its main thread, which answers this only after.
                both.envoy().stat("server.live").await;
            }
            arrived.push(through);
        }
        ejected += usize::from(arrived[0].contains('0'));
        if arrived[0] != arrived[1] {
            let at = arrived[0].bytes().zip(arrived[1].bytes()).position(|(a, b)| a != b).unwrap_or(0);
            let detection = clusters.iter().find(|cluster| cluster.name == *name).unwrap().outlier_detection.clone();
            differences.push(format!("{name} at {at} of {script:?}\n  {arrived:?}\n  {detection:?}"));
        }
    }
    assert!(differences.is_empty(), "{}\n{}", differences.len(), differences.join("\n"));
    assert!((20..60).contains(&ejected), "the sequences tell something: {ejected}");
}

/// OD7: how many of ten failing endpoints may be ejected at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_many_are_ejected_at_once() {
    let Some(mut both) = Both::start(&Options::default()).await else { return };
    let mut upstreams = Vec::new();
    for _ in 0..5 {
        upstreams.push(Upstream::start("up", |arrived| async move { by_header(&arrived).await }).await);
    }
    let (mut clusters, mut rules, mut names) = (Vec::new(), Vec::new(), Vec::new());
    for (percent, always) in [
        (0, false),
        (0, true),
        (10, false),
        (10, true),
        (20, false),
        (39, false),
        (40, true),
        (60, false),
        (100, false),
    ] {
        let name = format!("p{percent}{always}");
        let detection = OutlierDetection {
            consecutive_5xx: Some(1),
            max_ejection_percent: Some(percent),
            always_eject_one_host: Some(always),
            ..never_back()
        };
        clusters.push(alone(cluster(&name, upstreams.iter().map(Upstream::address)), detection));
        rules.push(route(&format!("/{name}/"), to(&name)));
        names.push(name);
    }
    put(&mut both, &clusters, rules).await;
    for name in names {
        for caller in [both.through_envoy(0), both.through_ours(0)] {
            for _ in 0..20 {
                let _ = caller.ask(&Ask::get("host", &format!("/{name}/x")).with("x-answer", "500")).await;
                both.envoy().stat("server.live").await;
            }
        }
        let envoys = both.envoy().stat(&format!("cluster.{name}.outlier_detection.ejections_active")).await;
        assert_eq!(ours_ejected(&both, &name), usize::try_from(envoys).unwrap(), "{name}");
    }
}

/// OD4, OD5: who of five goes by the rates of an interval.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_rates_eject() {
    let Some(mut both) = Both::start(&Options::default()).await else { return };
    let mut upstreams = Vec::new();
    for name in ["a", "b", "c", "d", "e"] {
        // How many in ten are bad is said for each by name: `x-bad: a5 b1`.
        let count = Arc::new(AtomicUsize::new(0));
        let upstream = Upstream::start(name, move |arrived: Arrived| {
            let bad = arrived.all("x-bad").flat_map(|all| all.split(' ')).find_map(|one| one.strip_prefix(name));
            let bad: usize = bad.and_then(|bad| bad.parse().ok()).unwrap_or(0);
            let status = if count.fetch_add(1, Relaxed) % 10 < bad { 500 } else { 200 };
            async move { Some(answer(status, &[], "")) }
        });
        upstreams.push(upstream.await);
    }
    let base = || OutlierDetection {
        consecutive_5xx: Some(0),
        interval: Duration::from_secs(2).try_into().ok(),
        success_rate_request_volume: Some(15),
        failure_percentage_request_volume: Some(15),
        ..never_back()
    };
    let off = || OutlierDetection { enforcing_success_rate: Some(0), ..base() };
    let failures = |threshold| OutlierDetection {
        failure_percentage_threshold: Some(threshold),
        enforcing_failure_percentage: Some(100),
        ..off()
    };
    let cases = [
        (base(), "a5"),
        (base(), "a5 b5"),
        (base(), "a9 b1"),
        (OutlierDetection { success_rate_stdev_factor: Some(1000), ..base() }, "a5 b5"),
        (OutlierDetection { success_rate_minimum_hosts: Some(6), ..base() }, "a9"),
        (off(), "a9"),
        (failures(50), "a5 b4 c6"),
        (failures(85), "a8 b9"),
        (OutlierDetection { failure_percentage_minimum_hosts: Some(6), ..failures(10) }, "a9"),
        (OutlierDetection { failure_percentage_request_volume: Some(1000), ..failures(10) }, "a9"),
    ];
    let clusters: Vec<_> = (0..)
        .zip(&cases)
        .map(|(n, (detection, _))| Cluster {
            lb_policy: LbPolicy::RoundRobin.into(),
            ..alone(cluster(&format!("r{n}"), upstreams.iter().map(Upstream::address)), detection.clone())
        })
        .collect();
    let rules = clusters.iter().map(|one| route(&format!("/{}/", one.name), to(&one.name))).collect();
    put(&mut both, &clusters, rules).await;
    for (n, (_, bad)) in cases.iter().enumerate() {
        let name = format!("r{n}");
        for caller in [both.through_envoy(0), both.through_ours(0)] {
            for _ in 0..100 {
                let _ = caller.ask(&Ask::get("host", &format!("/{name}/x")).with("x-bad", bad)).await;
            }
        }
    }
    sleep(Duration::from_millis(4_200)).await;
    for caller in [both.through_ours(0)] {
        for n in 0..cases.len() {
            let _ = caller.ask(&Ask::get("host", &format!("/r{n}/x"))).await;
        }
    }
    for (n, (_, bad)) in cases.iter().enumerate() {
        let name = format!("r{n}");
        let (envoys, ours) = (envoys_ejected(&both, &name).await, ours_ejected_addresses(&both, &name));
        assert_eq!(ours, envoys, "{name} {bad}: {:?}", cases[n].0);
    }
}

/// OD6: an ejection ends at a tick after its time, and the second lasts twice as long.
///
/// Envoy tells its workers of changed health at most once a second (`update_merge_window`), which is allowed for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ejections_last_as_long() {
    let Some(mut both) = Both::start(&Options::default()).await else { return };
    let upstream = Upstream::start("up", |arrived| async move { by_header(&arrived).await }).await;
    let (interval, base) = (Duration::from_secs(2), Duration::from_secs(3));
    let detection = OutlierDetection {
        consecutive_5xx: Some(1),
        interval: interval.try_into().ok(),
        base_ejection_time: base.try_into().ok(),
        ..never_back()
    };
    put(&mut both, &[alone(cluster("c", [upstream.address()]), detection)], vec![route("/", to("c"))]).await;
    let measure = async |caller: &Caller| {
        let mut lasted = Vec::new();
        for _ in 0..2 {
            let start = Instant::now();
            let _ = caller.ask(&Ask::get("host", "/").with("x-answer", "500")).await;
            for out in [true, false] {
                while (caller.ask(&Ask::get("host", "/")).await.unwrap().status == StatusCode::OK) == out {
                    sleep(Duration::from_millis(20)).await;
                    assert!(start.elapsed() < Duration::from_secs(60), "out: {out}");
                }
            }
            lasted.push(start.elapsed());
        }
        lasted
    };
    let lateness = Lateness::watch();
    let (envoys, ours) = tokio::join!(measure(both.through_envoy(0)), measure(both.through_ours(0)));
    for (side, lasted) in [("envoy", envoys), ("ours", ours)] {
        // Up to a tick more, what Envoy waits for, and how late the machine was.
        let slack = interval + Duration::from_millis(1_500) + lateness.so_far();
        let fits = lasted.iter().zip([base, base * 2]).all(|(time, least)| (least..least + slack).contains(time));
        assert!(fits, "{side}: {lasted:?}");
    }
}

/// CB1, CB3: of ten requests that come one after the other and stay, as many are sent, wait and are refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_many_requests_are_refused() {
    let Some(mut both) = Both::start(&Options::default()).await else { return };
    let gate = Arc::new(Semaphore::new(0));
    let upstream = held(&gate).await;
    let limits = |connections, pending, requests| Thresholds {
        max_connections: Some(connections),
        max_pending_requests: Some(pending),
        max_requests: Some(requests),
        ..Thresholds::default()
    };
    let cases = [
        (false, limits(1024, 1024, 4)),
        (true, limits(1024, 1024, 4)),
        (false, limits(2, 3, 1024)),
        (false, limits(3, 1, 1024)),
        (false, limits(1, 1024, 1024)),
        (false, limits(4, 2, 3)),
        (true, limits(1, 1, 1024)),
        (true, limits(1, 1024, 1)),
        (false, limits(1024, 1024, 0)),
    ];
    let mut clusters = Vec::new();
    for (n, (over_http2, thresholds)) in cases.iter().enumerate() {
        let breakers = CircuitBreakers { thresholds: vec![*thresholds] };
        let one = Cluster { circuit_breakers: Some(breakers), ..cluster(&format!("b{n}"), [upstream.address()]) };
        clusters.push(if *over_http2 { http2(one) } else { one });
    }
    let rules = clusters.iter().map(|one| route(&format!("/{}/", one.name), to(&one.name))).collect();
    put(&mut both, &clusters, rules).await;
    for (n, case) in cases.iter().enumerate() {
        let mut seen = Vec::new();
        for caller in [both.through_envoy(0), both.through_ours(0)] {
            seen.push(overflow(caller, &upstream, &gate, &format!("/b{n}/x")).await);
        }
        assert_eq!(seen[1], seen[0], "{case:?}: refused, and sent at once");
    }
}

/// RT16, RT17: of ten requests that fail one after the other as many are tried again at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_many_retries_are_made() {
    let budget = |percent, least| RetryBudget {
        budget_percent: Some(Percent { value: percent }),
        min_retry_concurrency: Some(least),
    };
    let cases = [
        Thresholds { max_retries: Some(2), ..Thresholds::default() },
        Thresholds::default(),
        Thresholds { retry_budget: Some(budget(0.0, 2)), ..Thresholds::default() },
        Thresholds { retry_budget: Some(budget(50.0, 1)), ..Thresholds::default() },
        Thresholds { retry_budget: Some(budget(100.0, 0)), ..Thresholds::default() },
        Thresholds { retry_budget: Some(budget(30.0, 0)), ..Thresholds::default() },
    ];
    for (n, case) in cases.iter().enumerate() {
        let Some(mut both) = Both::start(&Options::default()).await else { return };
        let mut seen = Vec::new();
        for side in 0..2 {
            // The first try of each is answered in its turn; retries stay.
            let (first, second) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
            let retries = Arc::new(AtomicUsize::new(0));
            let upstream = Upstream::start("up", {
                let (first, second, retries) = (Arc::clone(&first), Arc::clone(&second), Arc::clone(&retries));
                let arrivals = AtomicUsize::new(0);
                move |_: Arrived| {
                    let (first, second) = (Arc::clone(&first), Arc::clone(&second));
                    // All eight first tries are there before any is answered.
                    let is_retry = arrivals.fetch_add(1, Relaxed) >= 8;
                    retries.fetch_add(usize::from(is_retry), Relaxed);
                    async move {
                        let (gate, status) = if is_retry { (second, 200) } else { (first, 503) };
                        gate.acquire().await.unwrap().forget();
                        Some(answer(status, &[], ""))
                    }
                }
            })
            .await;
            let breakers = CircuitBreakers { thresholds: vec![*case] };
            let name = format!("t{n}{side}");
            let one = Cluster { circuit_breakers: Some(breakers), ..cluster(&name, [upstream.address()]) };
            let retry_policy =
                RetryPolicy { retry_on: "5xx".to_owned(), num_retries: Some(1), ..RetryPolicy::default() };
            let mut action = to(&name);
            action.retry_policy = Some(retry_policy);
            let table = routes(vec![route("/", action)]);
            both.clusters(&[one]).await;
            both.adjust(as_envoy);
            both.routes(vec![table]).await;
            both.adjust(as_envoy);
            let caller = if side == 0 { both.through_envoy(0) } else { both.through_ours(0) };
            let mut asking = JoinSet::new();
            for n in 1..=8 {
                let caller = caller.clone();
                asking.spawn(async move { caller.ask(&Ask::get("host", "/")).await.unwrap().status });
                until(|| upstream.requests() == n).await;
            }
            let mut refused = 0;
            for n in 1..=8 {
                first.add_permits(1);
                // Either the retry arrives or the answer does.
                let until = Instant::now() + Duration::from_secs(5);
                while retries.load(Relaxed) + refused < n && Instant::now() < until {
                    if let Ok(Some(Ok(status))) = timeout(Duration::from_millis(5), asking.join_next()).await {
                        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
                        refused += 1;
                    }
                }
            }
            seen.push((retries.load(Relaxed), refused));
            second.add_permits(8);
            asking.join_all().await;
        }
        assert_eq!(seen[1], seen[0], "{case:?}: tried again, and not");
    }
}

/// How many of ten requests are refused, and how many of them the upstream sees before any is answered.
async fn overflow(caller: &Caller, upstream: &Upstream, gate: &Arc<Semaphore>, path: &str) -> (usize, usize) {
    let before = upstream.requests();
    let mut asking = JoinSet::new();
    let (mut refused, mut sent) = (0, 0);
    for _ in 0..10 {
        let (caller, ask) = (caller.clone(), Ask::get("host", path));
        asking.spawn(async move { caller.ask(&ask).await.unwrap().status });
        // It arrives, or is refused, or waits: which shows by nothing happening.
        for _ in 0..10 {
            if let Ok(Some(Ok(status))) = timeout(Duration::from_millis(10), asking.join_next()).await {
                assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
                refused += 1;
                break;
            }
            if upstream.requests() - before > sent {
                sent = upstream.requests() - before;
                break;
            }
        }
    }
    gate.add_permits(10 - refused);
    assert!(asking.join_all().await.iter().all(|status| *status == StatusCode::OK));
    (refused, sent)
}

async fn held(gate: &Arc<Semaphore>) -> Upstream {
    let gate = Arc::clone(gate);
    Upstream::start("held", move |_| {
        let gate = Arc::clone(&gate);
        async move {
            gate.acquire().await.unwrap().forget();
            Some(answer(200, &[], ""))
        }
    })
    .await
}

/// As the request says: a status, `grpc-` and a code in trailers, or `close`.
async fn by_header(arrived: &Arrived) -> Option<http::Response<UpstreamBody>> {
    let wanted = arrived.all("x-answer").next().unwrap_or("200");
    if wanted == "close" {
        return None;
    }
    if let Some(code) = wanted.strip_prefix("grpc-") {
        let headers = [("content-type", "application/grpc"), ("grpc-status", code)];
        return Some(answer(200, &headers, "").map(|_| frames([])));
    }
    let is_grpc = arrived.all("content-type").any(|value| value.starts_with("application/grpc"));
    let status: u16 = wanted.parse().unwrap();
    if is_grpc && status == 200 {
        return Some(answer(200, &[("content-type", "application/grpc"), ("grpc-status", "0")], ""));
    }
    Some(answer(status, &[], ""))
}

/// Ejected endpoints stay so for the time of a test, and all may be.
fn never_back() -> OutlierDetection {
    OutlierDetection {
        base_ejection_time: Duration::from_secs(3_600).try_into().ok(),
        max_ejection_time: Duration::from_secs(3_600).try_into().ok(),
        interval: Duration::from_secs(3_600).try_into().ok(),
        max_ejection_percent: Some(100),
        ..OutlierDetection::default()
    }
}

/// With panic off, so that an ejected endpoint gets nothing.
fn alone(cluster: Cluster, detection: OutlierDetection) -> Cluster {
    let off = CommonLbConfig { healthy_panic_threshold: Some(Percent { value: 0.0 }), ..CommonLbConfig::default() };
    Cluster { outlier_detection: Some(detection), common_lb_config: Some(off), ..cluster }
}

async fn put(both: &mut Both, clusters: &[Cluster], rules: Vec<Route>) {
    both.clusters(clusters).await;
    for verdict in both.routes(vec![routes(rules)]).await {
        assert_eq!((verdict.envoy, verdict.ours), (Ok(()), Ok(Vec::new())));
    }
    both.adjust(as_envoy);
}

/// Endpoints that refuse connections are tried as any other.
fn as_envoy(config: &mut Config) {
    for cluster in config.clusters.values_mut() {
        Arc::make_mut(cluster).avoid_unreachable = false;
    }
}

fn ours_ejected(both: &Both, name: &str) -> usize {
    ours_ejected_addresses(both, name).len()
}

fn ours_ejected_addresses(both: &Both, name: &str) -> Vec<String> {
    let snapshot = both.mesh().snapshot().unwrap();
    let endpoints = snapshot.cluster(name).unwrap().endpoints().iter();
    let mut ejected: Vec<_> =
        endpoints.filter(|endpoint| endpoint.is_ejected()).map(|endpoint| endpoint.address().to_string()).collect();
    ejected.sort();
    ejected
}

async fn envoys_ejected(both: &Both, name: &str) -> Vec<String> {
    let text = both.envoy().admin("/clusters").await;
    let flags: BTreeMap<_, _> = text
        .lines()
        .filter_map(|line| line.strip_prefix(name)?.strip_prefix("::")?.split_once("::health_flags::"))
        .collect();
    let mut ejected: Vec<_> =
        flags.into_iter().filter(|(_, flags)| flags.contains("failed_outlier")).map(|(at, _)| at.to_owned()).collect();
    ejected.sort();
    ejected
}

async fn until(so: impl Fn() -> bool) {
    let waited = timeout(Duration::from_secs(20), async {
        while !so() {
            sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.expect("it is so in time");
}
