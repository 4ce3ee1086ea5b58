//! Every schedule of a few threads over the cells whose slots must never be lost: in-flight counts, limits, the retry budget,
//! ejection, and the counts of endpoints that leave and come back.
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
        self, Endpoint, Endpoints, LoadBalancer, LocalityEndpoints, OutlierDetection, RoutingPriority, Thresholds,
    },
    endpoint::Pick,
    limit::Slot,
    outcome::Outcome,
    pick::Ask,
    retry::RetryBudget,
    rng::RequestRng,
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
