//! Every schedule of a few threads over the cells whose slots must never be lost: in-flight counts, limits, the budgets of retries,
//! faults under way, rate limits, ejection, and the counts of endpoints that leave and come back.
//!
//! The code is mesh-core's own, through its public interface; only its atomics are the checker's (`mesh-core/src/sync.rs`).
//! Each model is run once for every order in which its threads' steps can fall, within a bound on
//! preemptions, and for every value that a relaxed load may see.
#![cfg(loom)]
#![allow(clippy::unwrap_used)]

use std::{sync::Arc, time::Duration};

use loom::{
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    thread,
};
use mesh_core::{
    cluster::Cluster,
    config::{
        self, Abort, AbortStatus, Config, Endpoint, Endpoints, Fault, Fraction, Inbound, LoadBalancer, LocalRateLimit,
        LocalityEndpoints, OutlierDetection, RoutingPriority, Thresholds, TokenBucket,
    },
    endpoint::Pick,
    fault::Faults,
    limit::Slot,
    outcome::Outcome,
    pick::Ask,
    rate_limit::{Counted, Limits},
    request::RequestView,
    retry::{RetryBudget, Throttle},
    rng::RequestRng,
    snapshot::Snapshot,
    time::Time,
};

/// A limit of one request: never two at once, and at the end none is counted, for the cluster or the endpoint.
#[test]
fn a_request_slot_is_never_shared_and_never_lost() {
    model(2, || {
        let cluster = compiled(&config(1, 1), None);
        let held = Arc::new(AtomicUsize::new(0));
        let threads = [true, false].map(|finishes| {
            let (cluster, held) = (Arc::clone(&cluster), Arc::clone(&held));
            thread::spawn(move || {
                let Some(pick) = pick(&cluster, 1) else { return };
                assert_eq!(held.fetch_add(1, SeqCst), 0, "two hold the only slot");
                held.fetch_sub(1, SeqCst);
                // One is answered, the other cancelled.
                if finishes {
                    pick.finish(&Outcome::response(200), Time::ZERO);
                }
            })
        });
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(in_flight(&cluster), (0, 0));
        assert!(pick(&cluster, 2).is_some(), "the slot is free again");
    });
}

/// Retries, connections and waiting requests: as many as the limit, and all free again when dropped.
#[test]
fn slots_are_as_many_as_the_limit() {
    let kinds: [fn(&Cluster) -> Option<Slot>; 3] = [
        |cluster| cluster.retry_slot(RoutingPriority::Default, false),
        |cluster| cluster.connection_slot(RoutingPriority::Default),
        |cluster| cluster.pending_slot(RoutingPriority::Default),
    ];
    for take in kinds {
        model(2, move || {
            let cluster = compiled(&config(1, 2), None);
            let held = Arc::new(AtomicUsize::new(0));
            let hold = move |cluster: &Cluster, held: &AtomicUsize| {
                let Some(_slot) = take(cluster) else { return };
                assert!(held.fetch_add(1, SeqCst) < 2, "three hold two slots");
                held.fetch_sub(1, SeqCst);
            };
            let threads = [(); 2].map(|()| {
                let (cluster, held) = (Arc::clone(&cluster), Arc::clone(&held));
                thread::spawn(move || hold(&cluster, &held))
            });
            hold(&cluster, &held);
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            let all = [take(&cluster), take(&cluster), take(&cluster)];
            assert_eq!(all.map(|slot| slot.is_some()), [true, true, false]);
        });
    }
}

/// The last retry of a budget is given to one, and what requests earn meanwhile is never given twice.
#[test]
fn a_budget_gives_no_more_than_was_earned() {
    model(2, || {
        let budget = Arc::new(RetryBudget::new());
        while budget.left() > Some(1) {
            assert!(budget.try_withdraw());
        }
        let threads = [(); 2].map(|()| {
            let budget = Arc::clone(&budget);
            thread::spawn(move || usize::from(budget.try_withdraw()))
        });
        budget.deposit();
        let given: usize = threads.map(|thread| thread.join().unwrap()).iter().sum();
        assert_eq!(given, 1);
        // A tenth was earned: nine more make a retry.
        (0..8).for_each(|_| budget.deposit());
        assert!(!budget.try_withdraw());
        budget.deposit();
        assert!(budget.try_withdraw());
    });
}

/// As many faults at once as may be, and one that is over makes room: a lost slot would end the faults for ever.
#[test]
fn a_fault_is_never_one_too_many_and_its_end_makes_room() {
    model(2, || {
        let abort = Abort { status: AbortStatus::Http(503), fraction: Fraction::ALL };
        let fault = Fault { abort: Some(abort), max_active: Some(1), ..Fault::default() };
        let faults = Arc::new(Faults::new(&fault).unwrap());
        let held = Arc::new(AtomicUsize::new(0));
        let begin = |faults: &Faults| {
            let (parts, ()) = http::Request::get("http://a/").body(()).unwrap().into_parts();
            faults.draw(&RequestView::of(&parts, None), "any", &mut RequestRng::new(1, 0)).begin()
        };
        let threads = [(); 2].map(|()| {
            let (faults, held) = (Arc::clone(&faults), Arc::clone(&held));
            thread::spawn(move || {
                let Some(_slot) = begin(&faults) else { return };
                assert_eq!(held.fetch_add(1, SeqCst), 0, "two faults where one may be");
                held.fetch_sub(1, SeqCst);
            })
        });
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let (one, other) = (begin(&faults), begin(&faults));
        assert!(one.is_some() && other.is_none());
    });
}

/// The last token of a rate limit's bucket lets one request pass, and is not lost to both; the next comes in its time.
#[test]
fn a_token_of_a_rate_limit_is_taken_once() {
    model(2, || {
        let limits = Arc::new(limits());
        let threads = [(); 2].map(|()| {
            let limits = Arc::clone(&limits);
            thread::spawn(move || usize::from(passes(&limits, Time::ZERO)))
        });
        let passed: usize = threads.map(|thread| thread.join().unwrap()).iter().sum();
        assert_eq!(passed, 1);
        assert!(!passes(&limits, Time::ZERO));
        let later = Time::ZERO + Duration::from_secs(60);
        assert!(passes(&limits, later) && !passes(&limits, later));
    });
}

/// A cluster's share of retries: never more than the requests under way allow, and each slot free again.
#[test]
fn a_share_of_retries_is_kept_and_comes_back() {
    model(2, || {
        let mut config = plain(1, 100);
        config.thresholds.retry_budget = Some(config::RetryBudget { percent: 100.0, min_concurrency: 0 });
        let cluster = compiled(&Arc::new(config), None);
        let request = pick(&cluster, 1).unwrap();
        let take = |cluster: &Cluster| cluster.retry_slot(RoutingPriority::Default, false);
        let held = Arc::new(AtomicUsize::new(0));
        let threads = [(); 2].map(|()| {
            let (cluster, held) = (Arc::clone(&cluster), Arc::clone(&held));
            thread::spawn(move || {
                let Some(_slot) = take(&cluster) else { return };
                assert_eq!(held.fetch_add(1, SeqCst), 0, "two retries beside one request");
                held.fetch_sub(1, SeqCst);
            })
        });
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let (one, other) = (take(&cluster), take(&cluster));
        assert!(one.is_some() && other.is_none());
        drop((one, request));
        assert!(take(&cluster).is_none(), "of no request there is no share");
    });
}

/// A limit of each endpoint: never one request more, and whoever is turned away takes no slot of the cluster along.
#[test]
fn a_slot_of_one_endpoint_is_never_shared_and_never_lost() {
    model(2, || {
        let mut config = plain(1, 100);
        config.thresholds.max_requests_per_endpoint = 1;
        let cluster = compiled(&Arc::new(config), None);
        let held = Arc::new(AtomicUsize::new(0));
        let threads = [true, false].map(|finishes| {
            let (cluster, held) = (Arc::clone(&cluster), Arc::clone(&held));
            thread::spawn(move || {
                let Some(pick) = pick(&cluster, 1) else { return };
                assert_eq!(held.fetch_add(1, SeqCst), 0, "two at an endpoint that takes one");
                held.fetch_sub(1, SeqCst);
                if finishes {
                    pick.finish(&Outcome::response(200), Time::ZERO);
                }
            })
        });
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(in_flight(&cluster), (0, 0));
        assert!(pick(&cluster, 2).is_some(), "the slot is free again");
    });
}

/// Failures at once each cost a server's calls a token: of two that lead to the half, the second is followed by no retry.
#[test]
fn a_throttle_counts_every_failure() {
    model(2, || {
        let throttle = Arc::new(Throttle::new(4, 1.0).unwrap());
        let threads = [(); 2].map(|()| {
            let throttle = Arc::clone(&throttle);
            thread::spawn(move || usize::from(throttle.failed()))
        });
        let followed: usize = threads.map(|thread| thread.join().unwrap()).iter().sum();
        assert_eq!(followed, 1);
        // One more leaves one, and three successes fill it.
        assert!(!throttle.failed());
        (0..3).for_each(|_| throttle.succeeded());
        assert!(throttle.failed() && !throttle.failed());
    });
}

/// Two endpoints fail at the same time where one may be ejected: one is, and once it is back the other may be.
#[test]
fn ejections_keep_their_limit_and_their_count() {
    model(2, || {
        let cluster = compiled(&failing(2, 50), None);
        let one = pick(&cluster, 1).unwrap();
        let picks = (2..20).filter_map(|seed| pick(&cluster, seed));
        let other = picks.into_iter().find(|other| !Arc::ptr_eq(other.endpoint(), one.endpoint())).unwrap();
        let failing = thread::spawn(move || other.finish(&Outcome::response(503), Time::ZERO));
        one.finish(&Outcome::response(503), Time::ZERO);
        failing.join().unwrap();
        assert!(ejected(&cluster) <= 1, "two are ejected where one may be");
        let later = Time::ZERO + Duration::from_secs(60);
        cluster.sweep(later);
        assert_eq!(ejected(&cluster), 0, "it comes back");
        // Whatever happened, the count of the ejected is right: one more may be ejected, and no more.
        for seed in 1..8 {
            if let Some(pick) = pick_at(&cluster, seed, later) {
                pick.finish(&Outcome::response(503), later);
            }
        }
        assert_eq!(ejected(&cluster), 1);
    });
}

/// An endpoint fails while a sweep brings it back: it is in or out, and whichever it is the next sweep and the next failure work.
#[test]
fn an_ejection_and_a_sweep_at_once_leave_a_state_that_works() {
    model(2, || {
        let cluster = compiled(&failing(1, 100), None);
        pick(&cluster, 1).unwrap().finish(&Outcome::response(503), Time::ZERO);
        assert_eq!(ejected(&cluster), 1);
        let (later, last) = (Time::ZERO + Duration::from_secs(60), Time::ZERO + Duration::from_secs(600));
        let sweeping = {
            let cluster = Arc::clone(&cluster);
            thread::spawn(move || cluster.sweep(later))
        };
        // With all of them ejected everybody is asked: panic.
        if let Some(pick) = pick_at(&cluster, 2, later) {
            pick.finish(&Outcome::response(503), later);
        }
        sweeping.join().unwrap();
        cluster.sweep(last);
        assert_eq!(ejected(&cluster), 0);
        pick_at(&cluster, 3, last).unwrap().finish(&Outcome::response(503), last);
        assert_eq!(ejected(&cluster), 1);
    });
}

/// A half-open endpoint is tried by one request at a time, and however that one ends, the next may try.
#[test]
fn a_half_open_endpoint_has_one_probe_and_never_loses_it() {
    for ends in [Some(503), None] {
        model(2, move || {
            let cluster = compiled(&half_open(), None);
            pick(&cluster, 1).unwrap().finish(&Outcome::response(503), Time::ZERO);
            let later = Time::ZERO + Duration::from_secs(60);
            cluster.sweep(later);
            assert_eq!(ejected(&cluster), 1, "half-open is not back");
            let held = Arc::new(AtomicUsize::new(0));
            let probing = {
                let (cluster, held) = (Arc::clone(&cluster), Arc::clone(&held));
                thread::spawn(move || {
                    let Some(pick) = pick_at(&cluster, 2, later) else { return };
                    assert_eq!(held.fetch_add(1, SeqCst), 0, "two probes at once");
                    held.fetch_sub(1, SeqCst);
                    drop(pick);
                })
            };
            if let Some(pick) = pick_at(&cluster, 3, later) {
                assert_eq!(held.fetch_add(1, SeqCst), 0, "two probes at once");
                held.fetch_sub(1, SeqCst);
                match ends {
                    Some(status) => pick.finish(&Outcome::response(status), later),
                    None => drop(pick),
                }
            }
            probing.join().unwrap();
            let last = Time::ZERO + Duration::from_secs(600);
            cluster.sweep(last);
            assert!(pick_at(&cluster, 4, last).is_some(), "the probe is lost");
        });
    }
}

/// An endpoint leaves and comes back while its request ends: its count is that request's, then nothing.
#[test]
fn an_endpoint_that_comes_back_keeps_its_count() {
    model(2, || {
        let (one, other) = (config(1, 8), config(0, 8));
        let before = compiled(&one, None);
        let staying = pick(&before, 1).unwrap();
        let ending = pick(&before, 1).unwrap();
        let request = thread::spawn(move || ending.finish(&Outcome::response(200), Time::ZERO));
        let without = compiled(&other, Some(&before));
        drop(before);
        let again = compiled(&one, Some(&without));
        let (cluster, endpoint) = in_flight(&again);
        assert!((1..=2).contains(&cluster) && (1..=2).contains(&endpoint));
        let more = pick(&again, 2).unwrap();
        request.join().unwrap();
        assert_eq!(in_flight(&again), (2, 2));
        drop((staying, more));
        assert_eq!(in_flight(&again), (0, 0));
    });
}

/// The last request of an endpoint that left ends just as the endpoint comes back: found again or made anew, it counts from zero.
#[test]
fn an_endpoint_that_comes_back_as_its_last_request_ends_counts_from_zero() {
    model(2, || {
        let (one, other) = (config(1, 8), config(0, 8));
        let before = compiled(&one, None);
        let last = pick(&before, 1).unwrap();
        let without = compiled(&other, Some(&before));
        drop(before);
        let request = thread::spawn(move || drop(last));
        let again = compiled(&one, Some(&without));
        let new = pick(&again, 2).unwrap();
        request.join().unwrap();
        assert_eq!(in_flight(&again), (1, 1));
        drop(new);
        assert_eq!(in_flight(&again), (0, 0));
    });
}

/// Answers at once: the smoothed latency is one of what was seen, never half of each.
#[test]
fn a_latency_is_never_torn() {
    model(2, || {
        let cluster = compiled(&config(1, 8), None);
        let threads = [Duration::from_millis(1), Duration::from_millis(900)].map(|took| {
            let cluster = Arc::clone(&cluster);
            thread::spawn(move || pick(&cluster, 1).unwrap().finish(&Outcome::response(200), Time::ZERO + took))
        });
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let now = Time::ZERO + Duration::from_millis(900);
        let latency = cluster.endpoints()[0].latency(now).unwrap();
        assert!((Duration::from_millis(700)..=Duration::from_millis(901)).contains(&latency), "{latency:?}");
    });
}

/// Runs every schedule with at most so many preemptions: the cells of ejection have too many steps for more.
fn model(preemptions: usize, schedule: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(schedule);
}

fn pick(cluster: &Arc<Cluster>, seed: u64) -> Option<Pick> {
    pick_at(cluster, seed, Time::ZERO)
}

fn pick_at(cluster: &Arc<Cluster>, seed: u64, now: Time) -> Option<Pick> {
    cluster.pick(&Ask::default(), now, &mut RequestRng::new(seed, 0)).ok()
}

/// A rate limit of one request a minute.
fn limits() -> Limits {
    let bucket = Some(TokenBucket { max: 1, per_fill: 1, every: Duration::from_secs(60) });
    let limit = LocalRateLimit { bucket, enabled: Fraction::ALL, enforced: Fraction::ALL, ..LocalRateLimit::default() };
    let server = Inbound { rate_limit: Some(Arc::new(limit)), ..Inbound::default() };
    let mut config = Config::default();
    config.inbound.insert(80, Arc::new(server));
    let (parts, ()) = http::Request::get("http://a/").body(()).unwrap().into_parts();
    Snapshot::compile(&config, None).unwrap().inbound_limits(&RequestView::of(&parts, Some(80))).0.unwrap()
}

fn passes(limits: &Limits, now: Time) -> bool {
    let (parts, ()) = http::Request::get("http://a/").body(()).unwrap().into_parts();
    let request = Counted { view: RequestView::of(&parts, Some(80)), own: "", cluster: "", peer: None };
    limits.count(&request, now, &mut RequestRng::new(1, 0)).is_none()
}

/// Of the cluster, and of its first endpoint.
fn in_flight(cluster: &Cluster) -> (u32, u32) {
    (cluster.requests_in_flight(), cluster.endpoints()[0].in_flight())
}

fn ejected(cluster: &Cluster) -> usize {
    cluster.endpoints().iter().filter(|endpoint| endpoint.is_ejected()).count()
}

fn compiled(config: &Arc<config::Cluster>, previous: Option<&Cluster>) -> Arc<Cluster> {
    Arc::new(Cluster::compile(config, previous))
}

/// A cluster of that many endpoints, so many of everything at once.
fn config(endpoints: u16, limit: u32) -> Arc<config::Cluster> {
    Arc::new(plain(endpoints, limit))
}

/// A cluster where one failure ejects.
fn failing(endpoints: u16, percent: u32) -> Arc<config::Cluster> {
    let detection = OutlierDetection {
        consecutive_5xx: 1,
        max_ejection_percent: percent,
        base_ejection_time: Duration::from_secs(30),
        ..OutlierDetection::default()
    };
    Arc::new(config::Cluster { outlier_detection: Some(detection), ..plain(endpoints, 100) })
}

/// One endpoint that one failure ejects, that a request brings back, and that nobody uses otherwise.
fn half_open() -> Arc<config::Cluster> {
    let mut config = config::Cluster::clone(&failing(1, 100));
    config.panic_threshold = 0;
    config.outlier_detection.iter_mut().for_each(|detection| detection.half_open = true);
    Arc::new(config)
}

fn plain(endpoints: u16, limit: u32) -> config::Cluster {
    let endpoints = (0..endpoints).map(|n| Endpoint::from(std::net::SocketAddr::from(([10, 0, 0, 1], 80 + n))));
    let locality = LocalityEndpoints { endpoints: endpoints.collect(), ..LocalityEndpoints::default() };
    config::Cluster {
        name: "modelled".into(),
        endpoints: Arc::new(Endpoints { localities: vec![locality], ..Endpoints::default() }),
        load_balancer: LoadBalancer::Random,
        thresholds: Thresholds {
            max_requests: limit,
            max_retries: limit,
            max_connections: limit,
            max_pending_requests: limit,
            ..Thresholds::default()
        },
        ..config::Cluster::default()
    }
}
