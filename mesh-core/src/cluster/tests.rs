//! Picking, limits, ejection and reconfiguration of clusters, on a virtual clock.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use super::*;
use crate::{
    config::{LeastRequest, LoadBalancer, LocalityEndpoints, OutlierDetection, Protocol, RetryPolicy, Thresholds},
    endpoint::Tried,
    outcome::{Failure, Outcome},
    rng::RequestRng,
};

mod balancing;
mod checks;
mod ejection;
mod labels;
mod limits;
mod places;

/// LB2, LB21: every endpoint has its turn, as often as its weight says.
#[test]
fn round_robin_takes_turns_by_weight() {
    for (weights, picks, expected) in [
        (vec![1, 1, 1], 30, vec![10, 10, 10]),
        (vec![5, 5], 10, vec![5, 5]),
        (vec![1, 3], 400, vec![100, 300]),
        (vec![1, 2, 5], 800, vec![100, 200, 500]),
    ] {
        let cluster = compile(with_weights(LoadBalancer::RoundRobin, &weights), None);
        let seen = count(&cluster, picks);
        for (seen, expected) in seen.iter().zip(&expected) {
            // The stride is in 65 535ths and starts anywhere: off by at most two turns.
            let slack = u32::from(weights.iter().any(|weight| *weight != weights[0])) * 2;
            assert!(seen.abs_diff(*expected) <= slack, "{weights:?}: {seen:?} {expected:?}");
        }
    }
}

/// LB2: two clients with different random bits do not both begin with the first endpoint.
#[test]
fn round_robin_begins_anywhere() {
    let first = |seed| {
        let cluster = compile(with_weights(LoadBalancer::RoundRobin, &[1; 10]), None);
        let pick = cluster.pick(&Ask::default(), Time::ZERO, &mut RequestRng::new(seed, 0)).unwrap();
        port(&pick)
    };
    let firsts: std::collections::BTreeSet<_> = (0..100).map(first).collect();
    assert_eq!(firsts.len(), 10);
}

/// LB3: of two drawn the one with fewer requests under way is taken, and at rest shares follow weights.
#[test]
fn least_request_prefers_the_idle() {
    let least = || LoadBalancer::LeastRequest(LeastRequest::default());
    let cluster = compile(with_weights(least(), &[1, 1, 1, 1]), None);
    let held: Vec<_> = (0..400).map(|n| pick(&cluster, n)).collect();
    for endpoint in cluster.endpoints() {
        assert!(endpoint.in_flight().abs_diff(100) <= 5, "{}", endpoint.in_flight());
    }
    drop(held);
    assert!(cluster.endpoints().iter().all(|endpoint| endpoint.in_flight() == 0));
    assert_eq!(cluster.requests_in_flight(), 0);
    let cluster = compile(with_weights(least(), &[1, 3]), None);
    // Binomial(10 000, 1/4): five standard deviations are 217.
    assert!((2_283..=2_717).contains(&count(&cluster, 10_000)[0]));
}

/// LB4: at random, weights aside.
#[test]
fn random_is_even() {
    let cluster = compile(with_weights(LoadBalancer::Random, &[1, 9]), None);
    // Binomial(10 000, 1/2): five standard deviations are 250.
    assert!((4_750..=5_250).contains(&count(&cluster, 10_000)[0]));
}

/// LB6: an endpoint a hundred times slower loses nine tenths of its share; once it is long past it is tried again.
#[test]
fn peak_ewma_avoids_the_slow() {
    let cluster = compile(with_weights(LoadBalancer::PeakEwma, &[1; 10]), None);
    let mut now = Time::ZERO;
    let mut slow = 0;
    for n in 0..2_000 {
        let pick = cluster.pick(&Ask::default(), now, &mut RequestRng::new(1, n)).unwrap();
        let took = Duration::from_millis(if port(&pick) == 1 { 500 } else { 5 });
        slow += u32::from(port(&pick) == 1);
        pick.finish(&Outcome::response(200), now + took);
        now = now + Duration::from_millis(1);
    }
    // Both draws hit it in 1 of 100 picks, which is 20.
    assert!(slow < 40, "{slow}");
    let latency = |now| cluster.endpoints()[0].latency(now).unwrap();
    assert!(latency(now + Duration::from_secs(60)) < latency(now) / 100);
}

/// CB1: the request over the limit is refused, a finished or dropped one makes room, a lower limit ends none.
#[test]
fn max_requests() {
    let limit = |max_requests| config::Cluster {
        thresholds: Thresholds { max_requests, ..Thresholds::default() },
        ..with_weights(LoadBalancer::RoundRobin, &[1])
    };
    let cluster = compile(limit(2), None);
    let first = pick(&cluster, 0);
    let second = pick(&cluster, 1);
    assert_eq!(try_pick(&cluster, Time::ZERO).unwrap_err(), PickError::Overflow);
    assert_eq!(cluster.requests_in_flight(), 2);
    drop(first);
    let third = pick(&cluster, 2);
    let lower = compile(limit(1), Some(&cluster));
    assert_eq!(lower.requests_in_flight(), 2, "carried over");
    assert_eq!(try_pick(&lower, Time::ZERO).unwrap_err(), PickError::Overflow);
    second.finish(&Outcome::response(200), Time::ZERO);
    drop(third);
    drop(pick(&lower, 3));
    assert_eq!(lower.requests_in_flight(), 0);
}

/// CB1: without thresholds the limit is 1024.
#[test]
fn max_requests_is_1024_by_default() {
    let cluster = compile(with_weights(LoadBalancer::RoundRobin, &[1]), None);
    let held: Vec<_> = (0..1024).map(|n| pick(&cluster, n)).collect();
    assert_eq!(try_pick(&cluster, Time::ZERO).unwrap_err(), PickError::Overflow);
    drop(held);
}

/// RT17, CB3: three retries, and as many connections and waiting requests as configured, may be under way.
#[test]
fn other_slots() {
    let cluster = compile(with_weights(LoadBalancer::RoundRobin, &[1]), None);
    let held: Vec<_> = (0..3).map(|_| cluster.retry_slot(RoutingPriority::Default, false).unwrap()).collect();
    assert!(cluster.retry_slot(RoutingPriority::Default, false).is_none());
    drop(held);
    assert!(cluster.retry_slot(RoutingPriority::Default, false).is_some());
    let thresholds = Thresholds { max_connections: 1, max_pending_requests: 0, ..Thresholds::default() };
    let cluster = compile(config::Cluster { thresholds, ..with_weights(LoadBalancer::Random, &[1]) }, None);
    let connection = cluster.connection_slot(RoutingPriority::Default);
    assert!(
        connection.is_some()
            && cluster.connection_slot(RoutingPriority::Default).is_none()
            && cluster.pending_slot(RoutingPriority::Default).is_none()
    );
}

/// OD1: the configured number of 5xx in a row ejects, and anything else in between begins the row anew.
#[test]
fn consecutive_5xx_eject() {
    for (outcome, ejects) in [
        (Outcome::response(500), true),
        (Outcome::failed(Failure::Connect), true),
        (Outcome::failed(Failure::PerTryTimeout), true),
        (Outcome::grpc_response(200, Some(14)), true),
        (Outcome::grpc_response(200, Some(5)), false),
        (Outcome::response(404), false),
        (Outcome::failed(Failure::Cancelled), false),
        (Outcome::failed(Failure::Overflow), false),
    ] {
        let cluster = compile(ejecting(2, 50, 5), None);
        for _ in 0..2 {
            fail(&cluster, 1, 4, outcome, Time::ZERO);
            fail(&cluster, 1, 1, Outcome::response(200), Time::ZERO);
        }
        assert_eq!(ejected(&cluster), Vec::<u16>::new(), "{outcome:?}");
        fail(&cluster, 1, 5, outcome, Time::ZERO);
        assert_eq!(!ejected(&cluster).is_empty(), ejects, "{outcome:?}");
        if ejects {
            assert!((0..20).all(|n| port(&pick(&cluster, n)) == 2), "an ejected endpoint gets nothing");
        }
    }
}

/// OD9, OD10: running requests go on; endpoints stay ejected across reconfiguration, and return with detection gone.
#[test]
fn reconfiguration_keeps_ejections_until_detection_goes() {
    let cluster = compile(ejecting(3, 100, 1), None);
    let running = pick(&cluster, 0);
    let its = port(&running);
    fail(&cluster, its, 1, Outcome::response(500), Time::ZERO);
    assert_eq!((ejected(&cluster), running.endpoint().in_flight()), (vec![its], 1));
    let changed =
        compile(config::Cluster { connect_timeout: Duration::from_secs(1), ..ejecting(3, 100, 1) }, Some(&cluster));
    assert_eq!(ejected(&changed), vec![its]);
    assert_eq!(changed.live.ejections.count.load(Relaxed), 1);
    let gone = compile(config::Cluster { outlier_detection: None, ..ejecting(3, 100, 1) }, Some(&changed));
    assert!(ejected(&gone).is_empty());
    running.finish(&Outcome::response(200), Time::ZERO);
}

/// LO3, OD8: with too few left all are used, ejected or not; at a threshold of 0 that never happens.
#[test]
fn panic_uses_all() {
    for (threshold, expected) in [(50, 4), (25, 1), (0, 1)] {
        let cluster = compile(config::Cluster { panic_threshold: threshold, ..ejecting(4, 100, 1) }, None);
        for port in 1..=3 {
            fail(&cluster, port, 1, Outcome::response(500), Time::ZERO);
        }
        let seen = count(&cluster, 200);
        assert_eq!(seen.iter().filter(|seen| **seen > 0).count(), expected, "{threshold}: {seen:?}");
    }
    let all = compile(config::Cluster { panic_threshold: 0, ..ejecting(1, 100, 1) }, None);
    fail(&all, 1, 1, Outcome::response(500), Time::ZERO);
    assert_eq!(try_pick(&all, Time::ZERO).unwrap_err(), PickError::NoEndpoint);
}

/// LO1, LO2: traffic stays at the first priority until less than 1/1.4 of it is usable, then spills by what is missing.
#[test]
fn priorities_spill_over() {
    // (unhealthy of 10 at priority 0, expected share of priority 0 in percent)
    for (unhealthy, expected) in [(0, 100), (2, 100), (3, 98), (5, 70), (9, 14), (10, 0)] {
        let level = |priority: u32, ports: std::ops::Range<u16>, sick: u16| LocalityEndpoints {
            priority,
            endpoints: ports.clone().map(|port| endpoint(port, 1, port - ports.start < sick)).collect(),
            ..LocalityEndpoints::default()
        };
        let localities = vec![level(7, 11..21, 0), level(0, 1..11, unhealthy)];
        let endpoints = Arc::new(config::Endpoints { localities, ..Default::default() });
        let cluster = compile(config::Cluster { endpoints, ..config::Cluster::default() }, None);
        let first = (0..10_000).filter(|n| port(&pick(&cluster, *n)) <= 10).count() as i64;
        assert!((first - expected * 100).abs() <= 250, "{unhealthy}: {first}");
    }
}

/// LO4, LB22: a locality gets its weight's share whatever its number of endpoints, less what it is short of; where the
/// cluster does not weigh its localities, their weights mean nothing.
#[test]
fn localities_by_weight() {
    // (unhealthy of the 4 in the first, expected share of the first in percent): 1 x min(1, 1.4 x 1/4) to 3 is 10.4 %.
    for (locality_weighted, unhealthy, expected) in
        [(true, 0, 2_500), (true, 3, 1_045), (true, 4, 0), (false, 0, 6_667), (false, 3, 3_333)]
    {
        let place = |weight, ports: std::ops::Range<u16>, sick: u16| LocalityEndpoints {
            weight: Some(weight),
            endpoints: ports.clone().map(|port| endpoint(port, 1, port - ports.start < sick)).collect(),
            ..LocalityEndpoints::default()
        };
        let localities = vec![place(1, 1..5, unhealthy), place(3, 11..13, 0)];
        let endpoints = Arc::new(config::Endpoints { localities, ..Default::default() });
        let config = config::Cluster { endpoints, panic_threshold: 0, locality_weighted, ..config::Cluster::default() };
        let cluster = compile(config, None);
        let first = (0..10_000).filter(|n| port(&pick(&cluster, *n)) < 10).count() as i64;
        assert!((first - expected).abs() <= 220, "{unhealthy}: {first}");
    }
}

/// RT13: a retry goes elsewhere while there is elsewhere, with every policy, and to the same when not or not asked.
#[test]
fn retries_go_elsewhere() {
    for policy in [
        LoadBalancer::RoundRobin,
        LoadBalancer::Random,
        LoadBalancer::PeakEwma,
        LoadBalancer::LeastRequest(LeastRequest::default()),
    ] {
        let cluster = compile(with_weights(policy.clone(), &[1, 1, 4]), None);
        for n in 0..200 {
            let mut rng = RequestRng::new(5, n);
            let avoid = RetryPolicy { avoid_previous_hosts: 5, ..RetryPolicy::default() };
            let mut tried = Tried::new(Some(&avoid));
            let mut ports = Vec::new();
            for _ in 0..3 {
                let pick = cluster.pick(&Ask::from(&tried), Time::ZERO, &mut rng).unwrap();
                tried.push(pick.endpoint());
                ports.push(port(&pick));
            }
            ports.sort_unstable();
            assert_eq!(ports, [1, 2, 3], "{policy:?}");
            assert!(cluster.pick(&Ask::from(&tried), Time::ZERO, &mut rng).is_ok(), "nowhere else is no failure");
        }
        let mut tried = Tried::new(Some(&RetryPolicy::default()));
        tried.push(&cluster.endpoints()[0]);
        assert!(!tried.avoids(&cluster.endpoints()[0]));
    }
}

/// An endpoint whose connection failed is passed over for a while, unless it is the only one.
#[test]
fn unreachable_endpoints_are_passed_over() {
    let cluster = compile(with_weights(LoadBalancer::RoundRobin, &[1, 1, 1]), None);
    fail(&cluster, 2, 1, Outcome::failed(Failure::Connect), Time::ZERO);
    let ports = |now, cluster: &Arc<Cluster>| -> Vec<u16> {
        (0..12).map(|n| port(&cluster.pick(&Ask::default(), now, &mut RequestRng::new(9, n)).unwrap())).collect()
    };
    assert!(!ports(Time::ZERO, &cluster).contains(&2));
    let later = Time::ZERO + Duration::from_millis(501);
    assert!(ports(later, &cluster).contains(&2), "tried again");
    fail(&cluster, 2, 1, Outcome::failed(Failure::Connect), later);
    assert!(!ports(later + Duration::from_millis(999), &cluster).contains(&2), "twice as long");
    fail(&cluster, 2, 1, Outcome::response(503), later);
    assert!(ports(later, &cluster).contains(&2), "an answer, whatever it says, is reachable");
    let only = compile(with_weights(LoadBalancer::RoundRobin, &[1]), None);
    fail(&only, 1, 1, Outcome::failed(Failure::Connect), Time::ZERO);
    assert_eq!(ports(Time::ZERO, &only).len(), 12);
}

/// CP9, RA1: an endpoint that leaves and returns while requests are under way finds its counts and its connections.
#[test]
fn live_cells_survive_leaving_and_returning() {
    let two = || with_weights(LoadBalancer::RoundRobin, &[1, 1]);
    let one = || with_weights(LoadBalancer::RoundRobin, &[1]);
    let before = compile(two(), None);
    let held: Vec<_> = (0..4).map(|n| pick(&before, n)).collect();
    before.endpoints()[1].attached(|| 42_u32);
    let without = compile(one(), Some(&before));
    let still_without = compile(config::Cluster { panic_threshold: 0, ..one() }, Some(&without));
    drop((before, without));
    let after = compile(two(), Some(&still_without));
    assert_eq!(after.endpoints()[1].in_flight(), 2);
    assert_eq!(*after.endpoints()[1].attached(|| 0_u32), 42);
    assert_eq!(after.requests_in_flight(), 4);
    drop(held);
    assert!(after.endpoints().iter().all(|endpoint| endpoint.in_flight() == 0));
    // Without a request under way nothing is left to find.
    let gone = compile(one(), Some(&after));
    drop(after);
    let anew = compile(two(), Some(&gone));
    assert_eq!(*anew.endpoints()[1].attached(|| 7_u32), 7);
}

#[test]
fn attachments_are_kept_until_the_transport_changes() {
    let config = || with_weights(LoadBalancer::RoundRobin, &[1]);
    let first = compile(config(), None);
    assert_eq!(*first.endpoints()[0].attached(|| "pool"), "pool");
    assert_eq!(*first.endpoints()[0].attached(|| 1_u8), 1, "one a type");
    assert_eq!(*first.endpoints()[0].attached(|| "other"), "pool");
    let same = compile(config::Cluster { panic_threshold: 1, ..config() }, Some(&first));
    assert_eq!(*same.endpoints()[0].attached(|| "other"), "pool");
    let http2 = compile(config::Cluster { protocol: Protocol::Http2, ..config() }, Some(&same));
    assert_eq!(*http2.endpoints()[0].attached(|| "other"), "other");
}

#[test]
fn failed_and_empty_clusters_say_so() {
    let failed = compile(config::Cluster { failed: Some("no endpoints in 15 s".into()), ..Default::default() }, None);
    assert_eq!(try_pick(&failed, Time::ZERO).unwrap_err(), PickError::Failed("no endpoints in 15 s".into()));
    let empty = compile(config::Cluster::default(), None);
    assert_eq!(try_pick(&empty, Time::ZERO).unwrap_err(), PickError::NoEndpoint);
    assert_eq!(empty.requests_in_flight(), 0);
    let address = EndpointAddress::Host("example.com".into(), 443);
    let pick = empty.pick_address(address.clone(), Time::ZERO).unwrap();
    let again = empty.pick_address(address, Time::ZERO).unwrap();
    assert_eq!((again.endpoint().in_flight(), empty.requests_in_flight()), (2, 2));
    drop((pick, again));
}

fn endpoint(port: u16, weight: u32, sick: bool) -> config::Endpoint {
    let health = if sick { Health::Unhealthy } else { Health::Healthy };
    let address = EndpointAddress::Socket(([127, 0, 0, 1], port).into());
    config::Endpoint {
        address,
        weight,
        health,
        mtls: false,
        workload: None,
        hostname: "".into(),
        hash_key: None,
        more: None,
    }
}

/// Endpoints at ports 1, 2, ...
fn with_weights(load_balancer: LoadBalancer, weights: &[u32]) -> config::Cluster {
    let endpoints = weights.iter().zip(1..).map(|(weight, port)| endpoint(port, *weight, false)).collect();
    let localities = vec![LocalityEndpoints { endpoints, ..LocalityEndpoints::default() }];
    let endpoints = Arc::new(config::Endpoints { localities, ..Default::default() });
    config::Cluster { name: "reviews".into(), load_balancer, endpoints, ..config::Cluster::default() }
}

/// So many endpoints, ejected after so many 5xx, up to a percentage; ticks every 10 s, 30 s out; panic off.
fn ejecting(endpoints: usize, max_ejection_percent: u32, consecutive_5xx: u32) -> config::Cluster {
    let detection = OutlierDetection { consecutive_5xx, max_ejection_percent, ..OutlierDetection::default() };
    config::Cluster {
        outlier_detection: Some(detection),
        panic_threshold: 0,
        ..with_weights(LoadBalancer::RoundRobin, &vec![1; endpoints])
    }
}

fn compile(config: config::Cluster, previous: Option<&Cluster>) -> Arc<Cluster> {
    Arc::new(Cluster::compile(&Arc::new(config), previous))
}

fn try_pick(cluster: &Arc<Cluster>, now: Time) -> Result<Pick, PickError> {
    cluster.pick(&Ask::default(), now, &mut RequestRng::new(3, 0))
}

fn pick(cluster: &Arc<Cluster>, n: u64) -> Pick {
    cluster.pick(&Ask::default(), Time::ZERO, &mut RequestRng::new(3, n)).unwrap()
}

fn port(pick: &Pick) -> u16 {
    let EndpointAddress::Socket(address) = pick.endpoint().address() else { return 0 };
    address.port()
}

/// How often each endpoint is picked.
fn count(cluster: &Arc<Cluster>, picks: u64) -> Vec<u32> {
    let mut seen = vec![0; cluster.endpoints().len()];
    (0..picks).for_each(|n| seen[usize::from(port(&pick(cluster, n))) - 1] += 1);
    seen
}

/// Outcomes of requests to one endpoint, whoever picked it.
fn fail(cluster: &Arc<Cluster>, port: u16, times: u32, outcome: Outcome, now: Time) {
    for _ in 0..times {
        let endpoint = Arc::clone(&cluster.endpoints()[usize::from(port) - 1]);
        assert!(cluster.counters(RoutingPriority::Default).requests.acquire(u32::MAX));
        Pick::new(cluster, Chosen::Named(endpoint), RoutingPriority::Default, now).unwrap().finish(&outcome, now);
    }
}

fn ejected(cluster: &Cluster) -> Vec<u16> {
    let ports = cluster.endpoints().iter().zip(1..).filter(|(endpoint, _)| endpoint.is_ejected());
    ports.map(|(_, port)| port).collect()
}
