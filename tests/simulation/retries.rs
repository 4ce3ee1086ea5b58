//! What retries may cost: the claims R1 to R3, R5 and R6 of the reliability plan.

use std::{convert::Infallible, pin::pin, sync::atomic::Ordering::Relaxed, time::Duration};

use bytes::Bytes;
use http::{HeaderName, Response, header::CONTENT_TYPE};
use http_body_util::Full;
use mesh_tower::config::{HedgePolicy, LoadBalancer};
use tokio::{task::JoinSet, time::sleep};

use crate::{
    upstream::{Script, Upstream},
    world::{Kind, World, call, cluster_of, config_of, mesh_of, outliers, retries, simulate},
};

/// R1, RT10: under a full outage the tries are at most 1.1 times the requests, and ten more a client in all, at any rate of requests:
/// where hosts fail, and where they refuse connections, so that no try leaves; there gRPC tries again without any policy.
#[test]
fn an_outage_is_not_multiplied_at_any_rate() {
    for kind in Kind::ALL {
        for (rate, seconds) in [(1, 300), (20, 30), (1_000, 11)] {
            for (refusing, policy) in [(false, true), (true, true), (true, false)] {
                if policy || kind == Kind::Grpc {
                    simulate(rate, async |world| outage(&world, kind, rate, seconds, refusing, policy).await);
                }
            }
        }
    }
}

async fn outage(world: &World, kind: Kind, rate: u64, seconds: u64, refusing: bool, policy: bool) {
    let mut hosts = world.upstreams(3, Script { failing: 1_000, ..Script::default() });
    if refusing {
        hosts.iter_mut().for_each(Upstream::kill);
    }
    let (cluster, mut forward) = mesh_of(3, kind);
    if !policy {
        forward.retry = None;
    }
    let (mesh, told) = world.counted(config_of((cluster, forward)), 0).await;
    let tries = || match refusing {
        // Several tries may wait for one connection, so connections say nothing of how many there were.
        true => told.load(Relaxed),
        false => hosts.iter().map(Upstream::arrived).sum(),
    };
    let early = seconds.min(10);
    let first = world.load(&mesh.http(), kind, rate, Duration::from_secs(early), 0).await.len() as u64;
    let before = tries();
    assert!(before <= first * 11 / 10 + 10, "{kind:?} {rate}/s: {before} tries of {first} requests");
    assert!(before >= first, "{kind:?} {rate}/s: {before} tries of {first} requests");
    if refusing && kind == Kind::Http1 {
        let asked: u64 = hosts.iter().map(|host| world.net.asked(host.address)).sum();
        assert!(asked >= first && asked <= before, "{rate}/s: {asked} connections by {before} tries");
    }
    if seconds > early {
        let later =
            world.load(&mesh.http(), kind, rate, Duration::from_secs(seconds - early), first).await.len() as u64;
        let after = tries() - before;
        assert!(after <= later * 11 / 10 + 1, "{kind:?} {rate}/s after 10 s: {after} tries of {later} requests");
        assert!(after > later, "{kind:?} {rate}/s: some are tried again: {after} of {later}");
    }
}

/// R2: with half of the endpoints failing, tries are at most 1.2 times the requests and 70 % succeed; with every endpoint
/// failing half of its requests there is nowhere better to go, and the budget's tenth is all that retries may add.
#[test]
fn half_of_the_answers_failing() {
    for kind in Kind::ALL {
        simulate(1, async |world| {
            let hosts = world.upstreams(10, Script::default());
            hosts.iter().skip(5).for_each(|host| host.script(|script| script.failing = 1_000));
            let (mut cluster, forward) = mesh_of(10, kind);
            cluster.outlier_detection = Some(outliers(50));
            let mesh = world.member(config_of((cluster, forward)), 0).await;
            let done = world.load(&mesh.http(), kind, 100, Duration::from_secs(10), 0).await;
            let tries: u64 = hosts.iter().map(Upstream::arrived).sum();
            let good = done.iter().filter(|done| done.is_ok()).count();
            assert!(tries <= 1_200, "{kind:?}: {tries} tries of 1,000 requests");
            assert!(good >= 700, "{kind:?}: {good} of 1,000 succeeded");
        });
        simulate(2, async |world| {
            let hosts = world.upstreams(10, Script { failing: 500, ..Script::default() });
            let mesh = world.member(config_of(mesh_of(10, kind)), 0).await;
            let done = world.load(&mesh.http(), kind, 100, Duration::from_secs(20), 0).await;
            let tries: u64 = hosts.iter().map(Upstream::arrived).sum();
            let good = done.iter().filter(|done| done.is_ok()).count();
            assert!((2_150..=2_210).contains(&tries), "{kind:?}: {tries} tries of 2,000 requests");
            // Half of the tries, within 4.4 standard deviations.
            assert!(good.abs_diff(1_100) <= 100, "{kind:?}: {good} of 2,000 succeeded");
        });
    }
}

/// R3: three tiers that all try again load the last with at most 1.1 to the third power of what the first is asked for; where
/// each says that trying again will not help, with 1.1.
#[test]
fn tiers_do_not_multiply_their_retries() {
    let bounds = [(false, 1.331 * 1_000.0 + 33.1), (true, 1.1 * 1_000.0 + 10.0)];
    for (kind, (pushes_back, most)) in Kind::ALL.into_iter().flat_map(|kind| bounds.map(|bound| (kind, bound))) {
        let (bottom, first) = simulate(1, async |world| {
            let bottom = world.upstream(1, Script { failing: 1_000, ..Script::default() });
            let mut tiers = JoinSet::new();
            for n in [2, 3] {
                tiers.spawn(tier(&world, kind, n, pushes_back).await);
            }
            let forward = mesh_of(1, kind).1;
            let mesh = world.member(config_of((cluster_of("upstream", [3], kind), forward)), 9).await;
            let done = world.load(&mesh.http(), kind, 50, Duration::from_secs(20), 0).await;
            (bottom.arrived() as f64, done.len())
        });
        assert_eq!(first, 1_000);
        assert!(
            (1_000.0..=most).contains(&bottom),
            "{kind:?}, push-back {pushes_back}: {bottom} tries of 1,000 requests"
        );
    }
}

/// A member at host `n` whose every answer needs one of host `n - 1`.
async fn tier(world: &World, kind: Kind, n: u16, pushes_back: bool) -> impl Future<Output = ()> + Send + 'static {
    let forward = mesh_of(1, kind).1;
    let mesh = world.member(config_of((cluster_of("upstream", [n - 1], kind), forward)), u64::from(n)).await;
    let listener = world.net.listen(World::address(n));
    let client = mesh.http();
    async move {
        let handler = tower::service_fn(move |request: http::Request<_>| {
            let client = client.clone();
            async move {
                let id = request.uri().path().rsplit('/').next().and_then(|id| id.parse().ok()).unwrap_or(0);
                let below = client.request(kind.get(id)).await.unwrap();
                let mut response = Response::new(Full::<Bytes>::default());
                *response.status_mut() = below.status();
                for name in [CONTENT_TYPE, HeaderName::from_static("grpc-status")] {
                    response.headers_mut().extend(below.headers().get(&name).map(|value| (name, value.clone())));
                }
                // Everything below fails.
                if pushes_back {
                    response.headers_mut().insert("x-envoy-overloaded", "true".parse().unwrap());
                }
                Ok::<_, Infallible>(response)
            }
        });
        let _ = pin!(mesh.serve_listener(listener, handler)).await;
    }
}

/// R4: thirty seconds at twice the capacity, then 0.8 of it: within 10 s of the end all is well again, whatever the seed.
#[test]
fn an_overload_ends_when_its_cause_does() {
    for seed in 0..50 {
        simulate(seed, async |world| {
            let kind = Kind::ALL[seed as usize % 3];
            // Two hosts that each answer two and a half a second.
            let delay = Duration::from_millis(390);
            let script = Script { delay, jitter: Duration::from_millis(20), workers: 1, ..Script::default() };
            let _hosts = world.upstreams(2, script);
            let (cluster, mut forward) = mesh_of(2, kind);
            forward.timeout = Some(Duration::from_secs(6));
            let policy = forward.retry.insert(retries());
            policy.per_try_timeout = Some(Duration::from_secs(2));
            let mesh = world.member(config_of((cluster, forward)), 0).await;
            let client = mesh.http();
            let over = world.load(&client, kind, 10, Duration::from_secs(30), 0).await;
            assert!(over.iter().filter(|done| !done.is_ok()).count() > 50, "that was an overload");
            world.load(&client, kind, 4, Duration::from_secs(7), 1_000).await;
            let after = world.load(&client, kind, 4, Duration::from_secs(10), 2_000).await;
            let failed = after.iter().filter(|done| !done.is_ok()).count();
            assert_eq!(failed, 0, "seed {seed}: of {} requests 10 s after", after.len());
        });
    }
}

/// R6, RT20: hedges are within the budget of retries, and whoever loses is cancelled: nothing of it is left.
#[test]
fn hedges_keep_to_the_budget_and_leave_nothing() {
    for kind in Kind::ALL {
        simulate(6, async |world| {
            let hosts = world.upstreams(4, Script::default());
            hosts[0].script(|script| script.delay = Duration::from_secs(5));
            let (mut cluster, mut forward) = mesh_of(4, kind);
            cluster.load_balancer = LoadBalancer::RoundRobin;
            let hedge = HedgePolicy { delay: Some(Duration::from_millis(50)), attempts: 2, ..HedgePolicy::default() };
            forward.hedge = Some(hedge);
            let mesh = world.member(config_of((cluster, forward)), 0).await;
            let mut calls = JoinSet::new();
            for id in 0..400 {
                calls.spawn(call(mesh.http(), kind.get(id), id));
                sleep(Duration::from_millis(10)).await;
            }
            let done = calls.join_all().await;
            assert!(done.iter().all(|done| done.is_ok()));
            let tries: u64 = hosts.iter().map(Upstream::arrived).sum();
            assert!((420..=450).contains(&tries), "{kind:?}: {tries} tries of 400 requests");
            let late = done.iter().filter(|done| done.took > Duration::from_secs(1)).count();
            assert!((40..100).contains(&late), "{kind:?}: {late} waited for the slow one, about 100 would have");
            sleep(Duration::from_secs(1)).await;
            let snapshot = mesh.snapshot().unwrap();
            let cluster = snapshot.cluster("upstream").unwrap();
            assert_eq!(cluster.requests_in_flight(), 0);
            assert!(cluster.endpoints().iter().all(|endpoint| endpoint.in_flight() == 0));
            assert!(hosts.iter().all(|host| host.under_way() == 0), "{kind:?}: a loser is still being answered");
        });
    }
}
