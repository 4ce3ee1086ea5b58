//! Policies beyond the plain ones.

use super::*;
use crate::{
    balance::{self, Policy},
    config::{
        ClientWeighted, ConsistentHash, Custom, DropOverload, Fraction, Locality, Maglev, PickFirst, RingHash,
        SlowStart,
    },
    load::LoadReport,
};

fn ask(hash: u64) -> Ask<'static> {
    Ask { hash: Some(hash), ..Ask::default() }
}

pub(super) fn at(cluster: &Arc<Cluster>, ask: &Ask<'_>, now: Time, n: u64) -> u16 {
    port(&cluster.pick(ask, now, &mut RequestRng::new(5, n)).unwrap())
}

/// Which endpoint each of these hashes gets.
fn picks(cluster: &Arc<Cluster>, hashes: std::ops::Range<u64>) -> Vec<u16> {
    hashes.map(|n| at(cluster, &ask(crate::rng::mix(n)), Time::ZERO, n)).collect()
}

pub(super) fn changed(cluster: config::Cluster, change: impl FnOnce(&mut config::Endpoints)) -> config::Cluster {
    let mut endpoints = config::Endpoints::clone(&cluster.endpoints);
    change(&mut endpoints);
    config::Cluster { endpoints: Arc::new(endpoints), ..cluster }
}

/// Localities of so many endpoints each, ports counting up from 1.
pub(super) fn localities(of: &[(u32, &str, Option<u32>, u16)]) -> config::Cluster {
    let mut next = 1;
    let mut groups = Vec::new();
    for (priority, zone, weight, count) in of {
        let endpoints = (next..next + count).map(|port| endpoint(port, 1, false)).collect();
        next += count;
        let locality = Locality { zone: (*zone).into(), ..Locality::default() };
        groups.push(LocalityEndpoints { locality, priority: *priority, weight: *weight, endpoints });
    }
    let base = with_weights(LoadBalancer::RoundRobin, &[]);
    changed(base, |endpoints| endpoints.localities = groups)
}

pub(super) fn refuse(cluster: &Arc<Cluster>, port: u16, now: Time) {
    fail(cluster, port, 1, Outcome::failed(Failure::Connect), now);
}

/// LB8, LB12: a hash always gets the same endpoint, and when one leaves only its own hashes and few others move.
#[test]
fn hashes_stay_when_others_leave() {
    for policy in [LoadBalancer::RingHash(RingHash::default()), LoadBalancer::Maglev(Maglev::default())] {
        let ten = compile(with_weights(policy.clone(), &[1; 10]), None);
        let before = picks(&ten, 0..2_000);
        assert_eq!(picks(&ten, 0..2_000), before);
        let nine = compile(with_weights(policy.clone(), &[1; 9]), Some(&ten));
        let moved = before.iter().zip(picks(&nine, 0..2_000)).filter(|(old, new)| **old != 10 && *old != new).count();
        assert!(moved < 300, "{policy:?}: {moved}");
        for port in 1..=10 {
            // A tenth each, give or take what a ring of a thousand entries leaves uneven.
            let share = before.iter().filter(|at| **at == port).count();
            assert!((100..=320).contains(&share), "{policy:?} {port}: {share}");
        }
    }
}

/// LB8, LB12: a table is made again only when the endpoints it is made of, their weights or its settings change.
#[test]
fn tables_are_kept_while_endpoints_stay() {
    for policy in [LoadBalancer::RingHash(RingHash::default()), LoadBalancer::Maglev(Maglev::default())] {
        let first = compile(with_weights(policy.clone(), &[1, 2, 3]), None);
        let table = |cluster: &Cluster| Arc::clone(cluster.levels.lookup().unwrap());
        let other = config::Cluster { connect_timeout: Duration::from_secs(9), ..with_weights(policy, &[1, 2, 3]) };
        let same = compile(other, Some(&first));
        assert!(Arc::ptr_eq(&table(&first), &table(&same)));
        let weighed = compile(with_weights(first.config().load_balancer.clone(), &[1, 2, 4]), Some(&first));
        assert!(!Arc::ptr_eq(&table(&first), &table(&weighed)));
        let more = compile(with_weights(first.config().load_balancer.clone(), &[1, 2, 3, 1]), Some(&first));
        assert!(!Arc::ptr_eq(&table(&first), &table(&more)));
    }
}

/// LB9: an endpoint is known by its key, so that one at another address takes its place on the ring.
#[test]
fn a_key_stands_for_the_address() {
    for (policy, by_hostname) in [
        (LoadBalancer::RingHash(RingHash::default()), false),
        (LoadBalancer::Maglev(Maglev::default()), false),
        (
            LoadBalancer::Maglev(Maglev {
                common: ConsistentHash { by_hostname: true, ..ConsistentHash::default() },
                ..Maglev::default()
            }),
            true,
        ),
    ] {
        let keyed = |first: u16| {
            changed(with_weights(policy.clone(), &[1; 5]), |endpoints| {
                for (n, endpoint) in (0..).zip(&mut endpoints.localities[0].endpoints) {
                    endpoint.address = EndpointAddress::Socket(([127, 0, 0, 1], first + n).into());
                    let name = format!("pod-{n}");
                    match by_hostname {
                        true => endpoint.hostname = name.into(),
                        false => endpoint.hash_key = Some(name.into()),
                    }
                }
            })
        };
        let before = picks(&compile(keyed(1), None), 0..500);
        let after = picks(&compile(keyed(101), None), 0..500);
        assert!(before.iter().zip(&after).all(|(old, new)| old + 100 == *new), "{policy:?}");
    }
}

/// LB10, SA1: hashes of an endpoint that cannot be reached or is ejected go to the next entry and come back; others stay.
#[test]
fn hashes_pass_over_what_is_out() {
    for policy in [LoadBalancer::RingHash(RingHash::default()), LoadBalancer::Maglev(Maglev::default())] {
        let cluster = compile(with_weights(policy, &[1; 5]), None);
        let before = picks(&cluster, 0..500);
        refuse(&cluster, 3, Time::ZERO);
        let without = picks(&cluster, 0..500);
        assert!(!without.contains(&3));
        assert!(before.iter().zip(&without).all(|(old, new)| *old == 3 || old == new));
        let later = Time::ZERO + Duration::from_secs(5);
        let back: Vec<_> = (0..500).map(|n| at(&cluster, &ask(crate::rng::mix(n)), later, n)).collect();
        assert_eq!(back, before);
    }
}

/// LB13: an endpoint above its part of the load is passed over.
#[test]
fn bounded_load_spills_over() {
    let common = ConsistentHash { balance_factor: 150, ..ConsistentHash::default() };
    for policy in [
        LoadBalancer::RingHash(RingHash { common, ..RingHash::default() }),
        LoadBalancer::Maglev(Maglev { common, ..Maglev::default() }),
    ] {
        let cluster = compile(with_weights(policy, &[1; 4]), None);
        let one = |n| cluster.pick(&ask(42), Time::ZERO, &mut RequestRng::new(5, n)).unwrap();
        let held: Vec<_> = (0..100).map(one).collect();
        let most = cluster.endpoints().iter().map(|endpoint| endpoint.in_flight()).max().unwrap();
        assert!(most <= 39, "{most}");
        drop(held);
    }
}

/// LB5: the first is kept while it can be reached, the next then keeps its place; shuffled, clients differ by weight.
#[test]
fn pick_first_sticks() {
    let first = LoadBalancer::PickFirst(PickFirst::default());
    let cluster = compile(with_weights(first, &[1; 3]), None);
    let at = |now| at(&cluster, &Ask::default(), now, 1);
    assert_eq!([at(Time::ZERO), at(Time::ZERO)], [1, 1]);
    refuse(&cluster, 1, Time::ZERO);
    let later = Time::ZERO + Duration::from_secs(60);
    assert_eq!([at(Time::ZERO), at(later)], [2, 2], "the first is back, the second stays");
    let mut firsts = [0; 2];
    for seed in 0..2_000 {
        let shuffled = LoadBalancer::PickFirst(PickFirst { shuffle: true });
        let cluster = compile(with_weights(shuffled, &[1, 3]), None);
        let pick = cluster.pick(&Ask::default(), Time::ZERO, &mut RequestRng::new(seed, 0)).unwrap();
        firsts[usize::from(port(&pick)) - 1] += 1;
    }
    // Binomial(2 000, 0.75): mean 1 500, five standard deviations are 97.
    assert!((1_403..=1_597).contains(&firsts[1]), "{firsts:?}");
}

/// LB7: weights count after the blackout, follow rate over utilisation and errors, and expire.
#[test]
fn reported_load_weighs() {
    let policy = || LoadBalancer::ClientWeighted(ClientWeighted::default());
    let shares = |now: Time, cluster: &Arc<Cluster>| {
        let mut seen = [0_u32; 2];
        (0..1_200).for_each(|n| seen[usize::from(at(cluster, &Ask::default(), now, n)) - 1] += 1);
        seen
    };
    let report = |cluster: &Arc<Cluster>, port: u16, cpu: f64, errors: f64, now: Time| {
        let report = LoadReport { cpu_utilization: cpu, rps: 100.0, errors, ..LoadReport::default() };
        loop {
            let mut pick = cluster.pick(&Ask::default(), now, &mut RequestRng::new(1, 0)).unwrap();
            assert!(pick.wants_load());
            if self::port(&pick) == port {
                pick.report(report, now);
                return;
            }
        }
    };
    let seconds = |n| Time::ZERO + Duration::from_secs(n);
    let cluster = compile(with_weights(policy(), &[1, 9]), None);
    for now in [1, 5, 12].map(seconds) {
        report(&cluster, 1, 0.2, 0.0, now);
        report(&cluster, 2, 0.6, 0.0, now);
        if now < seconds(12) {
            assert_eq!(shares(now, &cluster), [600, 600], "blackout, and no weight but reported ones");
        }
    }
    let [light, heavy] = shares(seconds(14), &cluster);
    assert!(light.abs_diff(900) <= 2 && heavy.abs_diff(300) <= 2, "{light} {heavy}");
    // Errors of a tenth of the requests count as a tenth of utilisation more: 0.3 to 0.6.
    report(&cluster, 1, 0.2, 10.0, seconds(15));
    let [light, heavy] = shares(seconds(17), &cluster);
    assert!(light.abs_diff(800) <= 2 && heavy.abs_diff(400) <= 2, "{light} {heavy}");
    assert_eq!(shares(seconds(400), &cluster), [600, 600], "expired");
}

/// LB20: a new endpoint gets its share little by little, one that was there before all of its own.
#[test]
fn the_new_start_slowly() {
    for policy in [LoadBalancer::RoundRobin, LoadBalancer::LeastRequest(LeastRequest::default())] {
        let window = Duration::from_secs(100);
        let slow_start = Some(SlowStart { window, ..SlowStart::default() });
        let old = compile(config::Cluster { slow_start, ..with_weights(policy.clone(), &[1]) }, None);
        at(&old, &Ask::default(), Time::ZERO, 0);
        let begin = Time::ZERO + Duration::from_secs(1_000);
        let both = compile(config::Cluster { slow_start, ..with_weights(policy.clone(), &[1, 1]) }, Some(&old));
        at(&both, &Ask::default(), begin, 0);
        for (age, factor) in [(0.0, 0.1), (5.0, 0.1), (50.0, 0.5), (100.0, 1.0)] {
            let now = begin + Duration::from_secs_f64(age);
            let new = (0..4_000).filter(|n| at(&both, &Ask::default(), now, *n) == 2).count() as f64;
            let expected = 4_000.0 * factor / (1.0 + factor);
            // Five standard deviations of a binomial at most.
            assert!((new - expected).abs() < 160.0, "{policy:?} {age}: {new}, expected {expected}");
        }
    }
}

/// LB20: an endpoint that passes its health checks again starts as slowly as a new one.
#[test]
fn who_comes_back_starts_slowly_too() {
    let slow_start = Some(SlowStart { window: Duration::from_secs(100), ..SlowStart::default() });
    let health_check = Some(Arc::default());
    let config = with_weights(LoadBalancer::RoundRobin, &[1, 1]);
    let cluster = compile(config::Cluster { slow_start, health_check, ..config }, None);
    let share = |now: Time| (0..4_000).filter(|n| at(&cluster, &Ask::default(), now, *n) == 2).count() as f64 / 4_000.0;
    share(Time::ZERO);
    let later = Time::ZERO + Duration::from_secs(1_000);
    let endpoint = Arc::clone(&cluster.endpoints()[1]);
    cluster.record_check(&endpoint, false, true, later);
    assert!((0.45..0.55).contains(&share(later)), "it was well all along");
    cluster.record_check(&endpoint, true, false, later);
    assert_eq!(share(later), 0.0);
    cluster.record_check(&endpoint, false, true, later);
    // A tenth of the other's share.
    assert!((0.06..0.12).contains(&share(later + Duration::from_secs(5))));
    assert!((0.45..0.55).contains(&share(later + Duration::from_secs(100))));
}

/// LB18: each process uses so many, other ones than another, and keeps most of them when some come.
#[test]
fn processes_use_subsets_of_their_own() {
    let with = |endpoints: usize, seed| {
        let config =
            config::Cluster { subset_size: Some(5), ..with_weights(LoadBalancer::RoundRobin, &vec![1; endpoints]) };
        let around = Around { seed, ..Around::default() };
        let cluster = Cluster::compile_within(&Arc::new(config), None, around);
        cluster.endpoints().iter().map(|endpoint| endpoint.address().to_string()).collect::<Vec<_>>()
    };
    let used = with(100, 1);
    assert_eq!(used.len(), 5);
    assert_ne!(used, with(100, 2));
    let kept = with(110, 1).iter().filter(|address| used.contains(address)).count();
    assert!(kept >= 3, "{kept}");
    assert_eq!(with(3, 1).len(), 3);
}

/// LB25: a policy that the program brought along is asked, and cannot take what must not be taken.
#[test]
fn a_policy_of_ones_own() {
    #[derive(Debug)]
    struct Last(usize);

    impl Policy for Last {
        fn pick(
            &self,
            endpoints: &[Arc<Endpoint>],
            may: &dyn Fn(&Endpoint) -> bool,
            _: &Ask<'_>,
            _: Time,
            _: &mut dyn RngCore,
        ) -> Option<usize> {
            endpoints.iter().take(self.0).rposition(|endpoint| may(endpoint))
        }
    }

    balance::register("example.test.Last", |config| match config {
        [most] => Ok(Arc::new(Last(usize::from(*most)))),
        _ => Err("give it one byte".to_owned()),
    });
    let of = |name: &str, config| LoadBalancer::Custom(Custom { name: name.into(), config });
    let cluster = compile(with_weights(of("example.test.Last", vec![2]), &[1; 3]), None);
    assert_eq!(at(&cluster, &Ask::default(), Time::ZERO, 0), 2);
    refuse(&cluster, 2, Time::ZERO);
    assert_eq!(at(&cluster, &Ask::default(), Time::ZERO, 0), 1);
    for (name, config) in [("example.test.Last", vec![]), ("example.test.Unknown", vec![1])] {
        let cluster = compile(with_weights(of(name, config), &[1]), None);
        assert!(matches!(try_pick(&cluster, Time::ZERO), Err(PickError::Failed(_))), "{name}");
    }
}

/// LB26: categories are drawn one after the other, before any slot is taken.
#[test]
fn categories_are_dropped_one_after_the_other() {
    let drop = |category: &str, numerator| DropOverload {
        category: category.into(),
        fraction: Fraction { numerator, denominator: 100 },
    };
    let config = changed(with_weights(LoadBalancer::RoundRobin, &[1]), |endpoints| {
        endpoints.drops = vec![drop("first", 60), drop("second", 50)];
    });
    let none = Thresholds { max_requests: 0, ..Thresholds::default() };
    let cluster = compile(config::Cluster { thresholds: none, ..config }, None);
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    for n in 0..10_000 {
        let error = cluster.pick(&Ask::default(), Time::ZERO, &mut RequestRng::new(5, n)).unwrap_err();
        let category = match error {
            PickError::Dropped(category) => category.to_string(),
            other => format!("{other:?}"),
        };
        *seen.entry(category).or_insert(0) += 1;
    }
    // 60 %, half of the rest, and the other half; five standard deviations are 250.
    for (category, expected) in [("first", 6_000_u32), ("second", 2_000), ("Overflow", 2_000)] {
        assert!(seen[category].abs_diff(expected) < 250, "{seen:?}");
    }
    assert_eq!(cluster.dropped(), u64::from(seen["first"] + seen["second"]));
}

/// LB3: a bias of 0 leaves weights alone, a greater one counts requests under way more.
#[test]
fn bias_of_least_request() {
    let share = |bias| {
        let policy = LoadBalancer::LeastRequest(LeastRequest { bias, ..LeastRequest::default() });
        let cluster = compile(with_weights(policy, &[1, 3]), None);
        // The heavy one is busy: six requests under way, two units of load.
        let heavy = Arc::clone(&cluster.endpoints()[1]);
        let hold = || {
            assert!(cluster.counters(RoutingPriority::Default).requests.acquire(u32::MAX));
            Pick::new(&cluster, Chosen::Named(Arc::clone(&heavy)), RoutingPriority::Default, Time::ZERO).unwrap()
        };
        let held: Vec<_> = (0..6).map(|_| hold()).collect();
        let share = (0..4_000).filter(|n| at(&cluster, &Ask::default(), Time::ZERO, *n) == 2).count();
        drop(held);
        share
    };
    assert!((2_850..=3_150).contains(&share(0.0)), "{}", share(0.0));
    // Taken only when both draws are of it.
    assert!((2_100..=2_400).contains(&share(1.0)), "{}", share(1.0));
    assert!((2_100..=2_400).contains(&share(2.0)), "{}", share(2.0));
}
