//! Priorities, localities and zones, and endpoints that are asked for by name.

use std::net::SocketAddr;

use super::{
    balancing::{at, changed, localities, refuse},
    *,
};
use crate::{
    config::{Locality, ZoneAware},
    endpoint::Tried,
    pick::Wanted,
};

/// LO1: while its endpoints cannot be reached, a priority gives way to the next, and has it all when they can again.
#[test]
fn what_cannot_be_reached_gives_way() {
    let cluster = compile(localities(&[(0, "", None, 2), (1, "", None, 1)]), None);
    let now = Time::ZERO;
    let all = |now| (0..50).map(|n| at(&cluster, &Ask::default(), now, n)).collect::<Vec<_>>();
    assert!(!all(now).contains(&3));
    refuse(&cluster, 1, now);
    assert!(all(now).iter().all(|at| *at == 2));
    refuse(&cluster, 2, now);
    assert!(all(now).iter().all(|at| *at == 3));
    refuse(&cluster, 3, now);
    assert!(!all(now).contains(&3), "none can: the first priority is tried");
    assert!(!all(now + Duration::from_secs(60)).contains(&3));
}

/// LO4: an ejected endpoint lowers the share of its locality, as far as the rest cannot take it.
#[test]
fn a_locality_gets_what_it_can_take() {
    let share = |ejected: &[u16]| {
        let detection = OutlierDetection { max_ejection_percent: 100, ..OutlierDetection::default() };
        let config = config::Cluster {
            locality_weighted: true,
            panic_threshold: 0,
            outlier_detection: Some(detection),
            ..localities(&[(0, "a", Some(1), 4), (0, "b", Some(1), 4)])
        };
        let cluster = compile(config, None);
        for port in ejected {
            fail(&cluster, *port, 5, Outcome::response(500), Time::ZERO);
        }
        (0..8_000).filter(|n| at(&cluster, &Ask::default(), Time::ZERO, *n) <= 4).count() as f64 / 8_000.0
    };
    // Weight x min(1, 1.4 x availability): 1, then 1.4 x 0.5 = 0.7, against 1 of the other.
    for (ejected, expected) in [(&[][..], 0.5), (&[1], 0.5), (&[1, 2], 0.7 / 1.7), (&[1, 2, 3, 4], 0.0)] {
        let share = share(ejected);
        assert!((share - expected).abs() < 0.03, "{ejected:?}: {share}, expected {expected}");
    }
}

/// LO5: requests stay in the own zone as far as it has its part of the endpoints; the rest goes where there is room.
#[test]
fn the_own_zone_is_preferred() {
    let place = |zone: &str| Locality { zone: zone.into(), ..Locality::default() };
    let callers = |counts: &[(&str, u16)]| {
        let of: Vec<_> = counts.iter().map(|(zone, count)| (0, *zone, None, *count)).collect();
        LocalZones::new(&place("a"), &localities(&of).endpoints)
    };
    let shares = |aware: ZoneAware, servers: &[(u32, &str, Option<u32>, u16)], zones: &LocalZones| {
        let config = config::Cluster { zone_aware: Some(aware), ..localities(servers) };
        let around = Around { zones: Some(zones), ..Around::default() };
        let cluster = Arc::new(Cluster::compile_within(&Arc::new(config), None, around));
        let mut seen = [0.0_f64; 3];
        for n in 0..10_000 {
            let mut port = at(&cluster, &Ask::default(), Time::ZERO, n);
            let mut zone = 0;
            while port > servers[zone].3 {
                port -= servers[zone].3;
                zone += 1;
            }
            seen[zone] += 1e-4;
        }
        seen
    };
    let aware = ZoneAware { min_cluster_size: 3, ..ZoneAware::default() };
    let even = callers(&[("a", 2), ("b", 2)]);
    for (aware, servers, zones, expected) in [
        (aware, &[(0, "a", None, 3), (0, "b", None, 3)][..], &even, [1.0, 0.0, 0.0]),
        // Half of the callers, a quarter of the endpoints: half of the requests can stay.
        (aware, &[(0, "a", None, 1), (0, "b", None, 3)], &even, [0.5, 0.5, 0.0]),
        (ZoneAware { force_local: Some(1), ..aware }, &[(0, "a", None, 1), (0, "b", None, 3)], &even, [1.0, 0.0, 0.0]),
        (ZoneAware { force_local: Some(2), ..aware }, &[(0, "a", None, 1), (0, "b", None, 3)], &even, [0.5, 0.5, 0.0]),
        (ZoneAware { enabled_percent: 0.0, ..aware }, &[(0, "a", None, 2), (0, "b", None, 2)], &even, [0.5, 0.5, 0.0]),
        (ZoneAware::default(), &[(0, "a", None, 2), (0, "b", None, 2)], &even, [0.5, 0.5, 0.0]),
        (aware, &[(0, "b", None, 2), (0, "c", None, 2)], &even, [0.5, 0.5, 0.0]),
    ] {
        let seen = shares(aware, servers, zones);
        // Five standard deviations are 0.025.
        assert!(
            seen.iter().zip(expected).all(|(seen, expected)| (seen - expected).abs() < 0.025),
            "{aware:?} {seen:?}"
        );
    }
}

/// LO3, LO5: in panic there is no endpoint where that is asked for.
#[test]
fn panic_can_fail() {
    let aware = ZoneAware { fail_on_panic: true, min_cluster_size: 1, ..ZoneAware::default() };
    let place = Locality { zone: "a".into(), ..Locality::default() };
    let config = changed(localities(&[(0, "a", None, 3), (0, "b", None, 1)]), |endpoints| {
        endpoints.localities[0].endpoints.iter_mut().for_each(|endpoint| endpoint.health = Health::Unhealthy);
    });
    let zones = LocalZones::new(&place, &localities(&[(0, "a", None, 1), (0, "b", None, 1)]).endpoints);
    let around = Around { zones: Some(&zones), ..Around::default() };
    for (zone_aware, fails) in [(Some(aware), true), (None, false)] {
        let config = config::Cluster { zone_aware, ..config.clone() };
        let cluster = Arc::new(Cluster::compile_within(&Arc::new(config), None, around));
        assert_eq!(try_pick(&cluster, Time::ZERO).is_err(), fails);
    }
}

/// LO7: the degraded of all priorities take what the healthy cannot.
#[test]
fn degraded_endpoints_come_last() {
    let cluster = changed(localities(&[(0, "", None, 4), (1, "", None, 4)]), |endpoints| {
        for group in &mut endpoints.localities {
            group.endpoints.iter_mut().skip(1).for_each(|endpoint| endpoint.health = Health::Degraded);
        }
    });
    let cluster = compile(cluster, None);
    let mut seen = [0; 8];
    (0..10_000).for_each(|n| seen[usize::from(at(&cluster, &Ask::default(), Time::ZERO, n)) - 1] += 1);
    // Healthy: 1.4 x 25 = 35 % at each priority; the 30 % left go to the degraded of the first.
    assert!((3_250..=3_750).contains(&seen[0]) && (3_250..=3_750).contains(&seen[4]), "{seen:?}");
    assert!(seen[1..4].iter().sum::<u32>() > 2_700 && seen[5..] == [0, 0, 0], "{seen:?}");
}

/// LO9: health by weight instead of by number.
#[test]
fn health_by_weight() {
    for (by_weight, second) in [(false, true), (true, false)] {
        let cluster = changed(localities(&[(0, "", None, 4), (1, "", None, 1)]), |endpoints| {
            endpoints.weighted_priority_health = by_weight;
            let first = &mut endpoints.localities[0].endpoints;
            first[0].weight = 97;
            first[1..].iter_mut().for_each(|endpoint| endpoint.health = Health::Unhealthy);
        });
        let cluster = compile(cluster, None);
        let spilled = (0..200).any(|n| at(&cluster, &Ask::default(), Time::ZERO, n) == 5);
        assert_eq!(spilled, second, "{by_weight}");
    }
}

/// SA4, LB23: the endpoint asked for is taken past any balancing while its health allows; strictly, none stands in for it.
#[test]
fn an_endpoint_can_be_asked_for() {
    let config = |override_host: Vec<Health>| {
        let config = changed(with_weights(LoadBalancer::RoundRobin, &[1; 4]), |endpoints| {
            endpoints.localities[0].endpoints[1].health = Health::Draining;
            endpoints.localities[0].endpoints[2].health = Health::Degraded;
        });
        config::Cluster { override_host, ..config }
    };
    let default = config::Cluster::default().override_host;
    let keeping = vec![Health::Healthy, Health::Draining];
    for (healths, wanted, strict, expected) in [
        (&default, 4, true, Some(4)),
        (&default, 3, true, Some(3)),
        (&default, 2, true, None),
        (&keeping, 2, true, Some(2)),
        (&keeping, 3, true, None),
        (&default, 9, true, None),
    ] {
        let cluster = compile(config(healths.clone()), None);
        let address = SocketAddr::from(([127, 0, 0, 1], wanted));
        let ask = Ask { wanted: Some(Wanted { address, strict }), ..Ask::default() };
        for n in 0..10 {
            let picked = cluster.pick(&ask, Time::ZERO, &mut RequestRng::new(5, n)).ok().map(|pick| port(&pick));
            assert_eq!(picked, expected, "{healths:?} {wanted}");
        }
        let lax = Ask { wanted: Some(Wanted { address, strict: false }), ..Ask::default() };
        assert!(cluster.pick(&lax, Time::ZERO, &mut RequestRng::new(5, 0)).is_ok());
    }
}

/// SA5: every try goes to the endpoint asked for, whatever was tried before.
#[test]
fn retries_keep_to_the_endpoint_asked_for() {
    let cluster = compile(with_weights(LoadBalancer::RoundRobin, &[1; 4]), None);
    let address = SocketAddr::from(([127, 0, 0, 1], 3));
    let mut tried = Tried::avoiding();
    for n in 0..3 {
        let ask = Ask { wanted: Some(Wanted { address, strict: false }), ..Ask::from(&tried) };
        let pick = cluster.pick(&ask, Time::ZERO, &mut RequestRng::new(5, n)).unwrap();
        tried.push(pick.endpoint());
        assert_eq!(port(&pick), 3);
    }
}
