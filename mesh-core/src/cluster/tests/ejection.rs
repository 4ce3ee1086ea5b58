//! Who is ejected for what, for how long, and who returns: tables on a virtual clock.

use super::*;
use crate::{
    config::{FailurePercentage, LatencyOutlier, Monitor, SuccessRate},
    outlier::{Event, Reason, What},
};

/// OD2: gateway failures have a count of their own, which ejects nobody unless enforced.
#[test]
fn consecutive_gateway_failures_eject() {
    for (enforcing, status, expected) in [(100, 503, true), (100, 500, false), (0, 503, false)] {
        let cluster = detecting(2, |config| {
            config.consecutive_5xx = 0;
            config.consecutive_gateway_failure = 3;
            config.enforcing_consecutive_gateway_failure = enforcing;
        });
        fail(&cluster, 1, 10, Outcome::response(status), Time::ZERO);
        assert_eq!(!ejected(&cluster).is_empty(), expected, "{enforcing} {status}");
    }
}

/// OD9, LO3: what is ejected by requests of a configuration that is no longer in force is out for the one that is, at once: of three
/// one is left, and panic asks all.
#[test]
fn requests_of_before_eject_for_those_of_now() {
    let config = config::Cluster { panic_threshold: 50, ..ejecting(3, 100, 1) };
    let before = compile(config.clone(), None);
    let late: Vec<_> = (0..60).map(|n| pick(&before, n)).collect();
    let now = compile(config, Some(&before));
    assert!(count(&now, 60).iter().all(|picks| *picks > 0));
    for pick in late {
        let is_bad = port(&pick) != 1;
        pick.finish(&Outcome::response(if is_bad { 503 } else { 200 }), Time::ZERO);
    }
    assert_eq!(ejected(&now), [2, 3]);
    assert!(count(&now, 60).iter().all(|picks| *picks > 0), "{:?}", count(&now, 60));
    assert!(now.had_traffic());
}

/// OD1, OD2: where a share is enforced, about that share of the outliers is ejected; at 0 none is.
#[test]
fn a_share_of_the_outliers_is_ejected() {
    for (enforcing, expected) in [(0, 0..=0), (50, 400..=600), (100, 1000..=1000)] {
        let cluster = detecting(1, |config| {
            config.consecutive_5xx = 1;
            config.enforcing_consecutive_5xx = enforcing;
        });
        let mut out = 0;
        for n in 0..1000 {
            fail(&cluster, 1, 1, Outcome::response(500), at(n * 60));
            out += ejected(&cluster).len();
            cluster.sweep(at(n * 60 + 59));
        }
        // Binomial(1000, 1/2): six standard deviations are 95.
        assert!(expected.contains(&out), "{enforcing}: {out}");
    }
}

/// OD3: failures to connect are 5xx, unless they are counted apart; then a response, whatever it says, ends their row.
#[test]
fn local_failures_are_counted_apart() {
    let connect = Outcome::failed(Failure::Connect);
    let bad = Outcome::response(500);
    for (split, outcomes, expected) in [
        (false, vec![connect, bad, connect], Some(Reason::Consecutive5xx)),
        (true, vec![connect, bad, connect, bad], None),
        (true, vec![bad, connect, connect, connect], Some(Reason::ConsecutiveLocalOriginFailure)),
        (true, vec![connect, connect, bad, bad, bad], Some(Reason::Consecutive5xx)),
        // A request that timed out had a connection.
        (true, vec![Outcome::failed(Failure::Timeout); 9], None),
    ] {
        let cluster = detecting(2, |config| {
            config.consecutive_5xx = 3;
            config.consecutive_local_origin_failure = 3;
            config.split_local_origin = split;
        });
        outcomes.iter().for_each(|outcome| fail(&cluster, 1, 1, *outcome, Time::ZERO));
        assert_eq!(reasons(&cluster.take_events()), expected.into_iter().collect::<Vec<_>>(), "{split} {outcomes:?}");
    }
}

/// OD4: whoever succeeds less often than the mean less 1.9 standard deviations goes, if enough endpoints had enough
/// requests in the interval; then it has a clean sheet.
#[test]
fn a_low_success_rate_ejects() {
    // Success in percent of each endpoint, and who goes. 50, 100 x 4: mean 90, deviation 20, threshold 52.
    for (rates, volume, expected) in [
        (vec![50, 100, 100, 100, 100], 100, vec![1]),
        (vec![53, 100, 100, 100, 100], 100, vec![1]),
        (vec![50, 50, 100, 100, 100], 100, vec![]),
        (vec![50, 100, 100, 100, 100], 99, vec![]),
        (vec![50, 100, 100, 100], 100, vec![]),
    ] {
        let cluster = detecting(rates.len(), |config| config.consecutive_5xx = 0);
        serve(&cluster, &rates, volume, at(5));
        cluster.sweep(at(9));
        assert!(ejected(&cluster).is_empty(), "only at a tick");
        cluster.sweep(at(10));
        assert_eq!(ejected(&cluster), expected, "{rates:?} {volume}");
        cluster.sweep(at(50));
        assert!(ejected(&cluster).is_empty(), "{rates:?}");
    }
}

/// OD4, OD14: the figures it was judged by are told.
#[test]
fn a_low_success_rate_is_told_with_its_threshold() {
    let cluster = detecting(5, |config| config.consecutive_5xx = 0);
    serve(&cluster, &[50, 100, 100, 100, 100], 100, at(5));
    cluster.sweep(at(10));
    let events = cluster.take_events();
    assert_eq!(events.len(), 1);
    assert_eq!((events[0].what, events[0].measured), (What::Ejected(Reason::SuccessRate), Some((50.0, 52.0))));
    assert_eq!(events[0].address.to_string(), "127.0.0.1:1");
    assert_eq!((&*events[0].cluster, events[0].ejections, events[0].at), ("reviews", 1, at(10)));
}

/// OD4, OD5: nothing goes where it is not enforced; that it would have is told.
#[test]
fn rates_that_are_not_enforced_are_told() {
    let cluster = detecting(5, |config| {
        config.consecutive_5xx = 0;
        config.success_rate.enforcing = 0;
    });
    serve(&cluster, &[10, 100, 100, 100, 100], 100, at(5));
    cluster.sweep(at(10));
    assert!(ejected(&cluster).is_empty());
    let whats: Vec<_> = cluster.take_events().iter().map(|event| event.what).collect();
    assert_eq!(whats, [What::NotEnforced(Reason::SuccessRate), What::NotEnforced(Reason::FailurePercentage)]);
}

/// OD5: whoever fails as often as the threshold goes, with enough requests and enough endpoints that have them.
#[test]
fn a_high_failure_percentage_ejects() {
    for (rates, volume, expected) in [
        (vec![15, 15, 15, 15, 15], 60, vec![1, 2, 3, 4, 5]),
        (vec![15, 16, 100, 100, 100], 100, vec![1]),
        (vec![10, 100, 100, 100, 100], 40, vec![]),
        (vec![10, 100, 100, 100], 100, vec![]),
    ] {
        let cluster = detecting(rates.len(), |config| {
            config.consecutive_5xx = 0;
            config.success_rate.enforcing = 0;
            config.failure_percentage = FailurePercentage { enforcing: 100, ..FailurePercentage::default() };
        });
        serve(&cluster, &rates, volume, at(5));
        cluster.sweep(at(10));
        assert_eq!(ejected(&cluster), expected, "{rates:?} {volume}");
    }
}

/// OD3, OD5: failures to connect have rates of their own where they are apart.
#[test]
fn local_failures_have_rates_of_their_own() {
    let cluster = detecting(5, |config| {
        config.split_local_origin = true;
        config.consecutive_local_origin_failure = 0;
        config.failure_percentage = FailurePercentage { enforcing_local_origin: 100, ..FailurePercentage::default() };
        config.success_rate.enforcing_local_origin = 0;
    });
    for port in 2..=5 {
        fail(&cluster, port, 100, Outcome::response(200), at(1));
    }
    fail(&cluster, 1, 100, Outcome::failed(Failure::Connect), at(1));
    cluster.sweep(at(10));
    assert_eq!(reasons(&cluster.take_events()), [Reason::FailurePercentageLocalOrigin]);
    assert_eq!(ejected(&cluster), [1]);
}

/// OD6: an ejection lasts base x times, ends at a tick of the interval only, and calm ticks take back the times.
#[test]
fn ejection_lasts_longer_each_time() {
    let cluster = compile(ejecting(2, 100, 1), None);
    let is_out = |seconds| {
        cluster.sweep(at(seconds));
        !ejected(&cluster).is_empty()
    };
    fail(&cluster, 1, 1, Outcome::response(500), at(5));
    // 30 s from 5 s; ticks at 10, 20, ...
    assert!(is_out(30) && is_out(39));
    assert!(!is_out(40));
    fail(&cluster, 1, 1, Outcome::response(500), at(41));
    assert!(is_out(100), "60 s from 41 s");
    assert!(!is_out(110));
    // Two calm ticks take back both ejections.
    assert!(!is_out(120) && !is_out(130));
    fail(&cluster, 1, 1, Outcome::response(500), at(131));
    assert!(is_out(160) && !is_out(170));
    // Picking sweeps by itself, and a late sweep counts all the ticks that passed.
    fail(&cluster, 1, 1, Outcome::response(500), at(171));
    drop(try_pick(&cluster, at(1_000)));
    assert!(ejected(&cluster).is_empty());
}

/// OD6: swept late or at every tick, ejections end and are forgotten alike.
#[test]
fn late_sweeps_come_to_the_same() {
    for every in [1, 2, 3, 7] {
        let cluster = compile(ejecting(2, 100, 1), None);
        let mut out = Vec::new();
        for tick in 0..60 {
            // Ejected at 1 s, 101 s, 201 s: for 30 s each time, as the way back is longer than two ticks.
            if tick % 10 == 0 {
                cluster.sweep(at(tick * 10));
                fail(&cluster, 1, 1, Outcome::response(500), at(tick * 10 + 1));
            }
            if tick % every == 0 || tick % 10 == 9 {
                cluster.sweep(at(tick * 10 + 5));
            }
            if tick % 10 == 9 {
                let times = cluster.take_events().iter().filter(|event| event.what == What::Returned).count();
                out.push((times, ejected(&cluster).len()));
            }
        }
        assert_eq!(out, vec![(1, 0); 6], "{every}");
    }
}

/// OD6: no ejection lasts longer than the maximum, and jitter comes on top of it.
#[test]
fn ejection_time_is_capped() {
    let mut config = ejecting(2, 100, 1);
    config.outlier_detection.as_mut().unwrap().max_ejection_time = Duration::from_secs(40);
    let cluster = compile(config, None);
    let mut now = Time::ZERO;
    for _ in 0..5 {
        fail(&cluster, 1, 1, Outcome::response(500), now);
        now = now + Duration::from_secs(40);
        cluster.sweep(now);
        assert!(ejected(&cluster).is_empty());
    }
    let jittery = detecting(2, |config| {
        config.consecutive_5xx = 1;
        config.interval = Duration::from_secs(1);
        config.max_ejection_time_jitter = Duration::from_secs(20);
    });
    let mut lasted = std::collections::BTreeSet::new();
    for n in 0..40 {
        let start = 1_000 * n;
        jittery.sweep(at(start));
        fail(&jittery, 1, 1, Outcome::response(500), at(start));
        let end = (start..).find(|seconds| {
            jittery.sweep(at(*seconds));
            ejected(&jittery).is_empty()
        });
        lasted.insert(end.unwrap() - start);
    }
    assert!(lasted.iter().all(|seconds| (30..=50).contains(seconds)), "{lasted:?}");
    assert!(lasted.len() > 5, "{lasted:?}");
}

/// OD7: no ejection may bring the share above the maximum, the first included; unless one may always go.
#[test]
fn max_ejection_percent_holds_with_the_ejection_itself() {
    for (endpoints, percent, always, expected) in [
        (10, 10, false, 1),
        (10, 19, false, 1),
        (10, 20, false, 2),
        (3, 10, false, 0),
        (3, 10, true, 1),
        (3, 34, false, 1),
        (3, 67, true, 2),
        (4, 0, false, 0),
        (4, 0, true, 1),
        (2, 100, false, 2),
    ] {
        let cluster = detecting(endpoints, |config| {
            config.consecutive_5xx = 1;
            config.max_ejection_percent = percent;
            config.always_eject_one_host = always;
        });
        for port in 1..=endpoints {
            fail(&cluster, port as u16, 1, Outcome::response(500), Time::ZERO);
        }
        assert_eq!(ejected(&cluster).len(), expected, "{endpoints} {percent} {always}");
        let refused = cluster.take_events().iter().filter(|event| matches!(event.what, What::TooMany(_))).count();
        assert_eq!(refused, endpoints - expected);
    }
}

/// OD10: ticks keep their beginning when the interval changes.
#[test]
fn a_longer_interval_counts_from_the_last_tick() {
    let with = |seconds| {
        let mut config = ejecting(2, 100, 1);
        config.outlier_detection.as_mut().unwrap().interval = Duration::from_secs(seconds);
        config
    };
    let cluster = compile(with(1), None);
    cluster.sweep(at(100));
    let cluster = compile(with(60), Some(&cluster));
    fail(&cluster, 1, 1, Outcome::response(500), at(101));
    cluster.sweep(at(159));
    assert_eq!(ejected(&cluster), [1]);
    cluster.sweep(at(160));
    assert!(ejected(&cluster).is_empty());
}

/// OD12: statuses, gRPC codes and slow answers of one's own choice in a row are failures too; others end the row.
#[test]
fn monitors_name_their_own_failures() {
    let quick = Duration::from_millis(10);
    let slow = Duration::from_millis(300);
    let ok = Outcome::response(200);
    let grpc = |code| Outcome::grpc_response(200, Some(code));
    let monitor = Monitor {
        name: "mine".into(),
        statuses: vec![(401, 401), (429, 431)],
        grpc_codes: vec![5, 8],
        slower_than: Some(Duration::from_millis(200)),
        ..Monitor::default()
    };
    for (outcomes, expected) in [
        (vec![(Outcome::response(429), quick); 3], true),
        (vec![(Outcome::response(430), quick), (Outcome::response(401), quick), (Outcome::response(431), quick)], true),
        (vec![(Outcome::response(404), quick); 9], false),
        (vec![(Outcome::response(429), quick), (Outcome::response(429), quick), (ok, quick)], false),
        (vec![(grpc(8), quick), (grpc(5), quick), (grpc(8), quick)], true),
        (vec![(grpc(3), quick); 9], false),
        (vec![(ok, slow); 3], true),
        (vec![(Outcome::failed(Failure::Connect), quick); 4], false),
    ] {
        let cluster = detecting(2, |config| config.monitors = vec![monitor.clone()]);
        outcomes.iter().for_each(|(outcome, took)| answer(&cluster, 1, *outcome, Time::ZERO, *took));
        let found = reasons(&cluster.take_events()) == [Reason::Monitor(0)];
        assert_eq!((found, !ejected(&cluster).is_empty()), (expected, expected), "{outcomes:?}");
    }
}

/// OD13: whoever takes three times as long as the others do on average goes; unless all are slow, or it is fast enough.
#[test]
fn slow_endpoints_are_ejected() {
    for (millis, expected) in [
        (vec![400, 100, 100, 100], vec![1]),
        (vec![290, 100, 100, 100], vec![]),
        (vec![400, 400, 400, 400], vec![]),
        (vec![40, 1, 1, 1], vec![]),
        (vec![400, 100], vec![]),
    ] {
        let cluster = detecting(millis.len(), |config| config.latency = Some(LatencyOutlier::default()));
        for (port, millis) in (1..).zip(&millis) {
            for _ in 0..20 {
                answer(&cluster, port, Outcome::response(200), at(1), Duration::from_millis(*millis));
            }
        }
        cluster.sweep(at(10));
        assert_eq!(ejected(&cluster), expected, "{millis:?}");
        let told = cluster.take_events();
        assert!(told.iter().all(|event| event.measured == Some((400.0, 300.0))), "{told:?}");
    }
}

/// CB6: after its time a half-open endpoint gets one request at a time; a success brings it back, a failure ejects it for
/// longer, and one that tells nothing leaves the place to the next.
#[test]
fn a_half_open_endpoint_gets_one_request_at_a_time() {
    let cluster = half_open(3);
    fail(&cluster, 1, 1, Outcome::response(500), at(0));
    cluster.sweep(at(29));
    assert!((0..20).all(|n| port(&pick_at(&cluster, n, at(29))) != 1));
    let probe = pick_at(&cluster, 0, at(30));
    assert_eq!(port(&probe), 1, "the first request when the time is up");
    let held: Vec<_> = (0..20).map(|n| pick_at(&cluster, n, at(31))).collect();
    assert!(held.iter().all(|pick| port(pick) != 1), "no second one beside it");
    drop(probe);
    let probe = pick_at(&cluster, 0, at(32));
    assert_eq!((port(&probe), ejected(&cluster)), (1, vec![1]), "it told nothing: the next tries");
    probe.finish(&Outcome::response(503), at(33));
    // Ejected a second time: for 60 s.
    assert!((0..20).all(|n| port(&pick_at(&cluster, n, at(89))) != 1));
    let probe = pick_at(&cluster, 0, at(100));
    assert_eq!(port(&probe), 1);
    probe.finish(&Outcome::response(200), at(101));
    assert!(ejected(&cluster).is_empty());
    let whats: Vec<_> = cluster.take_events().iter().map(|event| event.what).collect();
    let expected = [What::Ejected(Reason::Consecutive5xx), What::Ejected(Reason::Probe), What::Returned];
    assert_eq!(whats, expected);
}

/// CB6: a retry does not probe where its first try failed, and a probe that a monitor calls a failure is one.
#[test]
fn a_probe_is_judged_by_the_monitors_too() {
    let mut config = ejecting(2, 100, 1);
    let detection = config.outlier_detection.as_mut().unwrap();
    detection.half_open = true;
    detection.monitors = vec![Monitor { grpc_codes: vec![5], ..Monitor::default() }];
    let cluster = compile(config, None);
    fail(&cluster, 1, 1, Outcome::response(500), at(0));
    cluster.sweep(at(30));
    let mut tried = Tried::avoiding();
    tried.push(&cluster.endpoints()[0]);
    let elsewhere = cluster.pick(&Ask::from(&tried), at(30), &mut RequestRng::new(3, 0)).unwrap();
    assert_eq!(port(&elsewhere), 2);
    let probe = pick_at(&cluster, 0, at(31));
    assert_eq!(port(&probe), 1);
    probe.finish(&Outcome::grpc_response(200, Some(5)), at(31));
    assert_eq!(ejected(&cluster), [1]);
    drop(elsewhere);
}

/// CB6: a place held across a reconfiguration is free again when the request ends.
#[test]
fn a_probe_survives_reconfiguration() {
    let cluster = half_open(2);
    fail(&cluster, 1, 1, Outcome::response(500), at(0));
    let probe = pick_at(&cluster, 0, at(30));
    let config = config::Cluster { connect_timeout: Duration::from_secs(1), ..(**cluster.config()).clone() };
    let changed = compile(config, Some(&cluster));
    assert!((0..20).all(|n| port(&pick_at(&changed, n, at(31))) == 2));
    probe.finish(&Outcome::response(200), at(32));
    assert!(ejected(&changed).is_empty());
    assert!((0..20).any(|n| port(&pick_at(&changed, n, at(33))) == 1));
}

/// OD14: events nobody asks for are bounded.
#[test]
fn events_are_bounded() {
    let cluster = compile(ejecting(1, 100, 1), None);
    for n in 0..1_000 {
        fail(&cluster, 1, 1, Outcome::response(500), at(n * 1_000));
        cluster.sweep(at(n * 1_000 + 999));
    }
    let events = cluster.take_events();
    assert_eq!((events.len(), events.last().map(|event| event.what)), (256, Some(What::Returned)));
    assert!(cluster.take_events().is_empty());
}

/// HC3, OD11: an endpoint that fails its checks gets nothing; a check that passes brings it back, ejected or not.
#[test]
fn health_checks_take_out_and_bring_back() {
    for (unejects, expected) in [(true, vec![]), (false, vec![1])] {
        let mut config = ejecting(3, 100, 1);
        config.health_check = Some(Arc::default());
        config.outlier_detection.as_mut().unwrap().uneject_on_health_check = unejects;
        let cluster = compile(config, None);
        let endpoint = Arc::clone(&cluster.endpoints()[0]);
        cluster.record_check(&endpoint, true, false, at(0));
        assert!(!endpoint.is_usable() && endpoint.is_failing_checks() && !endpoint.is_ejected());
        assert!((0..20).all(|n| port(&pick_at(&cluster, n, at(0))) != 1));
        cluster.record_check(&endpoint, false, true, at(1));
        assert!((0..20).any(|n| port(&pick_at(&cluster, n, at(1))) == 1));
        fail(&cluster, 1, 1, Outcome::response(500), at(2));
        cluster.record_check(&endpoint, false, true, at(3));
        assert_eq!(ejected(&cluster), expected, "{unejects}");
        let gone = compile(config::Cluster { health_check: None, ..(**cluster.config()).clone() }, Some(&cluster));
        assert!(!gone.endpoints()[0].is_failing_checks());
    }
}

fn at(seconds: u64) -> Time {
    Time::ZERO + Duration::from_secs(seconds)
}

fn pick_at(cluster: &Arc<Cluster>, n: u64, now: Time) -> Pick {
    cluster.pick(&Ask::default(), now, &mut RequestRng::new(3, n)).unwrap()
}

/// All may go, and gateway failures are not looked at.
fn detecting(endpoints: usize, change: impl FnOnce(&mut OutlierDetection)) -> Arc<Cluster> {
    let mut config = ejecting(endpoints, 100, 0);
    change(config.outlier_detection.as_mut().unwrap());
    compile(config, None)
}

fn half_open(endpoints: usize) -> Arc<Cluster> {
    detecting(endpoints, |config| {
        config.consecutive_5xx = 1;
        config.half_open = true;
        config.success_rate = SuccessRate { enforcing: 0, ..SuccessRate::default() };
    })
}

/// So many requests to each endpoint, of which so many in a hundred go well.
fn serve(cluster: &Arc<Cluster>, rates: &[u32], volume: u32, now: Time) {
    for (port, rate) in (1..).zip(rates) {
        let good = volume * rate / 100;
        fail(cluster, port, good, Outcome::response(200), now);
        fail(cluster, port, volume - good, Outcome::response(500), now);
    }
}

/// One request that took so long.
fn answer(cluster: &Arc<Cluster>, port: u16, outcome: Outcome, now: Time, took: Duration) {
    assert!(cluster.counters(RoutingPriority::Default).requests.acquire(u32::MAX));
    let endpoint = &cluster.endpoints()[usize::from(port) - 1];
    let pick = Pick::new(cluster, Chosen::Named(Arc::clone(endpoint)), RoutingPriority::Default, now).unwrap();
    pick.finish(&outcome, now + took);
}

fn reasons(events: &[Event]) -> Vec<Reason> {
    let ejected = |event: &Event| match event.what {
        What::Ejected(reason) => Some(reason),
        _ => None,
    };
    events.iter().filter_map(ejected).collect()
}
