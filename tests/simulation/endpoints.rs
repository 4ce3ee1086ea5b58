//! Endpoints that die, vanish, slow down and come back: the claims E1 to E7 and P3 of the reliability plan.

use std::{sync::Arc, time::Duration};

use mesh_core::config::{HealthCheck, HttpCheck, LoadBalancer, Probe, TcpCheck};
use tokio::time::sleep;

use crate::{
    upstream::{Script, Upstream},
    world::{Done, Kind, World, call, config_of, mesh_of, outliers, simulate},
};

/// E1: a killed endpoint is out of the pick set within 100 ms, and no request fails with retries on. Of 2,000 requests a second its
/// share would be 200.
#[test]
fn a_killed_endpoint_is_out_within_100_ms() {
    for kind in Kind::ALL {
        simulate(1, async |world| {
            let mut hosts = world.upstreams(10, Script::default());
            let mesh = world.member(config_of(mesh_of(10, kind)), 0).await;
            let client = mesh.http();
            let dead = hosts[3].address;
            let after = async {
                sleep(Duration::from_secs(1)).await;
                hosts[3].kill();
                let killed = world.net.asked(dead);
                sleep(Duration::from_millis(100)).await;
                let within = world.net.asked(dead);
                sleep(Duration::from_millis(300)).await;
                (within - killed, world.net.asked(dead) - within)
            };
            let busy = world.load(&client, kind, 2_000, Duration::from_millis(1_500), 0);
            let (done, (soon, then)) = tokio::join!(busy, after);
            all_ok(&done);
            assert!(soon <= 10, "{kind:?}: {soon} tries within 100 ms, its share would be 20");
            assert!(then <= 1, "{kind:?}: {then} tries in the 300 ms after, its share would be 60");
            // What is left are single looks whether it is back, half a second to five apart.
            let before = world.net.asked(dead);
            all_ok(&world.load(&client, kind, 100, Duration::from_secs(10), 10_000).await);
            let later = world.net.asked(dead) - before;
            assert!(later <= 8, "{kind:?}: {later} tries in the ten seconds after");
        });
    }
}

/// E2: a black hole and a frozen process are out of rotation within 5 s under load, and no request fails with retries on.
#[test]
fn a_black_hole_is_out_within_5_s() {
    for kind in Kind::ALL {
        for frozen in [false, true] {
            simulate(1, async |world| {
                let hosts = world.upstreams(10, Script::default());
                let (mut cluster, mut forward) = mesh_of(10, kind);
                cluster.connect_timeout = Duration::from_secs(1);
                cluster.outlier_detection = Some(outliers(50));
                forward.timeout = Some(Duration::from_secs(10));
                forward.retry.as_mut().unwrap().per_try_timeout = Some(Duration::from_secs(1));
                let mesh = world.member(config_of((cluster, forward)), 0).await;
                let client = mesh.http();
                let warm = world.load(&client, kind, 100, Duration::from_secs(2), 0).await;
                all_ok(&warm);
                world.net.weather(hosts[3].address, |weather| match frozen {
                    true => weather.frozen = true,
                    false => weather.blackhole = true,
                });
                let first = world.load(&client, kind, 100, Duration::from_secs(5), 1_000).await;
                all_ok(&first);
                let later = world.load(&client, kind, 100, Duration::from_secs(4), 2_000).await;
                all_ok(&later);
                let slow = later.iter().filter(|done| done.took > Duration::from_millis(500)).count();
                assert_eq!(slow, 0, "{kind:?}, frozen {frozen}: requests still went there");
            });
        }
    }
}

/// E2: with nobody calling, a black hole and a frozen process are out of rotation within 15 s: active checks find them, and the first
/// requests that come go elsewhere, without any retry.
#[test]
fn a_black_hole_is_out_within_15_s_of_idleness() {
    for kind in Kind::ALL {
        for frozen in [false, true] {
            simulate(1, async |world| {
                let hosts = world.upstreams(10, Script::default());
                let (mut cluster, mut forward) = mesh_of(10, kind);
                cluster.health_check = Some(Arc::new(HealthCheck {
                    probe: Probe::Tcp(TcpCheck::default()),
                    interval: Duration::from_secs(5),
                    no_traffic_interval: Duration::from_secs(5),
                    timeout: Duration::from_secs(2),
                    unhealthy_threshold: 1,
                    ..HealthCheck::default()
                }));
                if frozen {
                    // A frozen process takes connections, so it is asked for an answer.
                    let check =
                        HttpCheck { path: "/health/0".into(), protocol: cluster.protocol, ..HttpCheck::default() };
                    Arc::make_mut(cluster.health_check.as_mut().unwrap()).probe = Probe::Http(check);
                }
                forward.retry = None;
                forward.timeout = Some(Duration::from_secs(10));
                let mesh = world.member(config_of((cluster, forward)), 0).await;
                let client = mesh.http();
                all_ok(&world.load(&client, kind, 50, Duration::from_secs(2), 0).await);
                world.net.weather(hosts[3].address, |weather| match frozen {
                    true => weather.frozen = true,
                    false => weather.blackhole = true,
                });
                sleep(Duration::from_secs(15)).await;
                all_ok(&world.load(&client, kind, 100, Duration::from_secs(2), 1_000).await);
            });
        }
    }
}

/// E3, LB6: one of ten endpoints that answers 100 times slower loses 90 % of its share within 2 s. Least request learns by requests
/// that pile up, so it needs a busy client for that; peak EWMA learns from the first slow answer.
#[test]
fn a_slow_endpoint_loses_its_share_within_2_s() {
    let balancers = [(LoadBalancer::default(), 2_000), (LoadBalancer::PeakEwma, 100)];
    for (kind, (balancer, rate)) in Kind::ALL.into_iter().flat_map(|kind| balancers.clone().map(|one| (kind, one))) {
        simulate(1, async |world| {
            let hosts = world.upstreams(10, Script::default());
            let (mut cluster, forward) = mesh_of(10, kind);
            cluster.load_balancer = balancer.clone();
            let mesh = world.member(config_of((cluster, forward)), 0).await;
            let client = mesh.http();
            let before = world.load(&client, kind, rate, Duration::from_secs(1), 0).await;
            hosts[0].script(|script| script.delay = Duration::from_millis(500));
            world.load(&client, kind, rate, Duration::from_secs(2), 10_000).await;
            let seen = hosts[0].arrived();
            let after = world.load(&client, kind, rate, Duration::from_secs(2), 20_000).await;
            let share = (hosts[0].arrived() - seen) as f64 / after.len() as f64;
            assert!(share <= 0.01, "{kind:?} {balancer:?}: {share:.3} of the requests, a tenth was its share");
            let (was, is) = (percentile(&before, 99), percentile(&after, 99));
            assert!(is <= 2 * was, "{kind:?} {balancer:?}: 99 % took at most {is:?}, {was:?} before");
        });
    }
}

fn all_ok(done: &[Done]) {
    let failed: Vec<_> = done.iter().filter(|done| !done.is_ok()).take(3).collect();
    assert!(failed.is_empty(), "failed: {failed:?}");
}

fn percentile(done: &[Done], percent: usize) -> Duration {
    let mut times: Vec<_> = done.iter().map(|done| done.took).collect();
    times.sort();
    times[(times.len() * percent / 100).min(times.len() - 1)]
}

/// E5: ten hosts are restarted one after the other, ten times over, letting what is under way finish: no request fails.
#[test]
fn a_rolling_restart_fails_no_request() {
    for kind in Kind::ALL {
        for member in [true, false] {
            simulate(4, async |world| {
                let mut hosts = world.upstreams(10, Script { member, ..Script::default() });
                let mesh = world.member(config_of(mesh_of(10, kind)), 0).await;
                let client = mesh.http();
                let restarts = async {
                    for _ in 0..10 {
                        for host in &mut hosts {
                            let begun = tokio::time::Instant::now();
                            host.drain().await;
                            assert!(begun.elapsed() <= Duration::from_secs(5), "drained within the time given");
                            sleep(Duration::from_millis(200)).await;
                            host.restart();
                            sleep(Duration::from_millis(50)).await;
                        }
                    }
                };
                let load = world.load(&client, kind, 60, Duration::from_secs(32), 0);
                let (done, ()) = tokio::join!(load, restarts);
                all_ok(&done);
            });
        }
    }
}

/// E6: however much fails, no more are ejected than the limit says; who is ejected gets nothing and comes back in time; where
/// too few are left, all are used.
#[test]
fn ejection_keeps_its_limits() {
    for kind in Kind::ALL {
        // All fail, and one of ten is all that may be ejected at ten percent; one fails.
        for (hosts, percent, failing, ejected, reach) in [
            (10, 10, 10, 1, 9),
            (5, 20, 1, 1, 4),
            // At half of them left the rest carries on alone; below that everybody is asked again: panic.
            (10, 100, 5, 5, 5),
            (10, 100, 6, 6, 10),
        ] {
            simulate(1, async |world| {
                let upstreams = world.upstreams(hosts, Script::default());
                for host in upstreams.iter().take(failing) {
                    host.script(|script| script.failing = 1_000);
                }
                let (mut cluster, mut forward) = mesh_of(hosts, kind);
                cluster.outlier_detection = Some(outliers(percent));
                cluster.load_balancer = LoadBalancer::RoundRobin;
                forward.retry = None;
                let mesh = world.member(config_of((cluster, forward)), 0).await;
                let client = mesh.http();
                let out = || {
                    let snapshot = mesh.snapshot().unwrap();
                    let endpoints = snapshot.cluster("upstream").unwrap().endpoints().iter();
                    endpoints.filter(|endpoint| endpoint.is_ejected()).count()
                };
                world.load(&client, kind, 100, Duration::from_secs(4), 0).await;
                assert_eq!(out(), ejected, "{kind:?}: of {hosts}, {failing} of them failing");
                let before: Vec<_> = upstreams.iter().map(Upstream::arrived).collect();
                world.load(&client, kind, 100, Duration::from_secs(2), 1_000).await;
                let asked = upstreams.iter().zip(before).filter(|(host, before)| host.arrived() > *before).count();
                assert_eq!(asked, reach, "{kind:?}: of {hosts} are asked, {failing} of them failing");
                // Ten seconds, and the sweep after them.
                upstreams.iter().for_each(|host| host.script(|script| script.failing = 0));
                sleep(Duration::from_secs(6)).await;
                world.load(&client, kind, 100, Duration::from_secs(1), 2_000).await;
                assert_eq!(out(), 0, "{kind:?}: all are back");
            });
        }
    }
}

/// E6: over thirty days of failing and recovering no ejection is lost: each begins and each ends.
#[test]
fn no_ejection_is_forgotten_in_thirty_days() {
    for kind in Kind::ALL {
        simulate(1, async |world| thirty_days(&world, kind).await);
    }
}

async fn thirty_days(world: &World, kind: Kind) {
    let hosts = world.upstreams(2, Script::default());
    let (mut cluster, mut forward) = mesh_of(2, kind);
    cluster.outlier_detection = Some(outliers(50));
    forward.retry = None;
    // Without a mesh's background task, so that nothing but requests moves time on.
    let client = world.client(&config_of((cluster, forward)));
    let out = || {
        let snapshot = client.live().load().unwrap();
        snapshot.cluster("upstream").unwrap().endpoints().iter().filter(|e| e.is_ejected()).count()
    };
    for round in 0..60_u64 {
        let bad = &hosts[round as usize % 2];
        bad.script(|script| script.failing = 1_000);
        world.load(&client, kind, 20, Duration::from_secs(3), 0).await;
        assert_eq!(out(), 1, "{kind:?}, round {round}");
        bad.script(|script| script.failing = 0);
        sleep(Duration::from_secs(12 * 3_600)).await;
        let done = world.load(&client, kind, 20, Duration::from_secs(1), 0).await;
        assert_eq!(out(), 0, "{kind:?}, round {round}");
        all_ok(&done);
    }
}

/// E7: with all of them down a request fails fast, and one that accepts again is used within a second.
#[test]
fn all_down_fails_fast_and_recovers_fast() {
    for kind in Kind::ALL {
        simulate(1, async |world| {
            let mut hosts = world.upstreams(3, Script::default());
            let (cluster, mut forward) = mesh_of(3, kind);
            forward.retry = None;
            let mesh = world.member(config_of((cluster, forward)), 0).await;
            let client = mesh.http();
            all_ok(&world.load(&client, kind, 50, Duration::from_secs(1), 0).await);
            hosts.iter_mut().for_each(Upstream::kill);
            let down = world.load(&client, kind, 50, Duration::from_secs(20), 100).await;
            assert!(down.iter().all(|done| done.host == 0 && !done.is_ok()));
            assert!(percentile(&down, 99) <= Duration::from_millis(10), "{:?}", percentile(&down, 99));
            hosts[1].restart();
            let again = world.load(&client, kind, 50, Duration::from_secs(2), 2_000).await;
            let first = again.iter().find(|done| done.is_ok()).map(|done| done.at - again[0].at);
            assert!(first.is_some_and(|first| first <= Duration::from_secs(1)), "{kind:?}: {first:?}");
            let late: Vec<_> = again.iter().filter(|done| done.at - again[0].at > Duration::from_secs(1)).collect();
            let failed = late.iter().filter(|done| !done.is_ok()).count();
            assert!(failed * 10 <= late.len(), "{kind:?}: {failed} of {} after that", late.len());
        });
    }
}

/// P3: an endpoint that recovers while nobody calls it is usable within 100 ms: by the first request that comes.
#[test]
fn an_endpoint_recovers_without_traffic() {
    for kind in Kind::ALL {
        simulate(1, async |world| {
            let mut hosts = world.upstreams(1, Script::default());
            let (mut cluster, mut forward) = mesh_of(1, kind);
            cluster.outlier_detection = Some(outliers(100));
            forward.retry = None;
            let mesh = world.member(config_of((cluster, forward)), 0).await;
            let client = mesh.http();
            for (nobody_calls, seconds) in [(false, 14), (true, 600)] {
                all_ok(&[call(client.clone(), kind.get(0), 0).await]);
                hosts[0].kill();
                if !nobody_calls {
                    let down = world.load(&client, kind, 20, Duration::from_secs(3), 0).await;
                    assert!(down.iter().all(|done| !done.is_ok()));
                }
                // An ejection lasts its time, whether the endpoint is well or not; it ends while nobody calls.
                sleep(Duration::from_secs(seconds)).await;
                hosts[0].restart();
                let done = call(client.clone(), kind.get(1), 1).await;
                assert!(done.is_ok() && done.took <= Duration::from_millis(100), "{kind:?}: {done:?}");
            }
        });
    }
}
