//! Endpoints that come and go while requests are under way: the claim P2 of the reliability plan, counts that survive, and a
//! split that holds.

use std::{sync::Arc, time::Duration};

use mesh_tower::config::{Config, Forward};
use tokio::{task::JoinSet, time::sleep};

use crate::{
    trace::mix,
    upstream::Script,
    world::{Kind, World, call, cluster_of, config_of, retries, routed, simulate, weighted},
};

/// P2: endpoints come and go under load, 10,000 times: no request fails, and no connection to a removed one is left.
#[test]
fn endpoints_come_and_go_and_nothing_fails() {
    for kind in Kind::ALL {
        simulate(2, async |world| {
            const HOSTS: u16 = 20;
            let hosts = world.upstreams(HOSTS, Script::default());
            let with = |present: &[u16]| {
                let forward = Forward { retry: Some(retries()), ..Forward::default() };
                config_of((cluster_of("upstream", present.iter().copied(), kind), forward))
            };
            let mut present: Vec<u16> = (1..=HOSTS / 2).collect();
            let mesh = world.member(with(&present), 0).await;
            let mut changes = 0;
            let churn = async {
                for round in 0..1_000 {
                    sleep(Duration::from_millis(8)).await;
                    let next: Vec<_> = (1..=HOSTS).filter(|n| mix(&[round, u64::from(*n)]).is_multiple_of(2)).collect();
                    changes += (1..=HOSTS).filter(|n| present.contains(n) != next.contains(n)).count();
                    present = next;
                    mesh.live().update(&with(&present)).unwrap();
                }
            };
            let client = mesh.http();
            let (done, ()) = tokio::join!(world.load(&client, kind, 100, Duration::from_secs(8), 0), churn);
            assert!(changes > 3_333, "{changes}");
            let failed: Vec<_> = done.iter().filter(|done| !done.is_ok()).collect();
            assert!(failed.is_empty(), "{kind:?}: {failed:?}");
            sleep(Duration::from_secs(1)).await;
            for host in &hosts {
                let n = host.port() - 8_000;
                let open = world.net.open_connections(host.address);
                assert!(open == 0 || present.contains(&n), "{kind:?}: {open} connections to a removed host");
            }
        });
    }
}

/// An endpoint, and a whole cluster, that leaves and comes back keeps its count of requests in flight.
#[test]
fn what_comes_back_keeps_its_count() {
    for kind in Kind::ALL {
        simulate(1, async |world| {
            let _hosts = world.upstreams(2, Script { delay: Duration::from_secs(10), ..Script::default() });
            let with =
                |hosts: &[u16]| config_of((cluster_of("upstream", hosts.iter().copied(), kind), Forward::default()));
            let mesh = world.member(with(&[1]), 0).await;
            let mut calls = JoinSet::new();
            for id in 0..5 {
                calls.spawn(call(mesh.http(), kind.get(id), id));
            }
            sleep(Duration::from_secs(1)).await;
            let count = || {
                let snapshot = mesh.snapshot().unwrap();
                let cluster = snapshot.cluster("upstream").unwrap();
                (cluster.endpoints()[0].in_flight(), cluster.requests_in_flight())
            };
            assert_eq!(count(), (5, 5));
            mesh.live().update(&with(&[2])).unwrap();
            assert_eq!(count(), (0, 5), "another endpoint has a count of its own");
            mesh.live().update(&with(&[1, 2])).unwrap();
            assert_eq!(count(), (5, 5), "the endpoint is back");
            mesh.live().update(&Config::default()).unwrap();
            mesh.live().update(&with(&[1])).unwrap();
            assert_eq!(count(), (5, 5), "the cluster is back");
            while let Some(done) = calls.join_next().await {
                assert!(done.unwrap().is_ok(), "a request under way is not disturbed");
            }
            assert_eq!(count(), (0, 0));
        });
    }
}

/// RA3: a split of 90 to 10 stays in its band while the endpoints of both sides churn.
///
/// The band is that of a binomial count at 4.4 standard deviations: wrong once in 100,000 windows if draws were independent.
#[test]
fn a_split_holds_while_endpoints_churn() {
    for kind in Kind::ALL {
        simulate(9, async |world| split(&world, kind).await);
    }
}

async fn split(world: &World, kind: Kind) {
    const WINDOW: u64 = 1_000;
    let hosts = world.upstreams(20, Script { delay: Duration::from_millis(2), ..Script::default() });
    let with = |round: u64| {
        let present = |from: u16| (from..from + 10).filter(move |n| !mix(&[round, u64::from(*n)]).is_multiple_of(3));
        let clusters = [cluster_of("v1", present(1), kind), cluster_of("v2", present(11), kind)];
        let split = vec![weighted("v1", 90), weighted("v2", 10)];
        let forward = Forward { clusters: split, retry: Some(retries()), ..Forward::default() };
        routed("upstream", forward, clusters)
    };
    let mesh = world.member(with(0), 0).await;
    let live = Arc::clone(mesh.live());
    let churn = async {
        for round in 1.. {
            sleep(Duration::from_millis(10)).await;
            live.update(&with(round)).unwrap();
        }
    };
    let client = mesh.http();
    let load = async {
        let mut windows = Vec::new();
        for window in 0..4 {
            let done = world.load(&client, kind, WINDOW, Duration::from_secs(1), window * WINDOW).await;
            assert!(done.iter().all(|done| done.is_ok()));
            let first = World::address(11).port();
            windows.push(done.iter().filter(|done| done.host >= first).count() as f64);
        }
        windows
    };
    let windows = tokio::select! {
        windows = load => windows,
        () = churn => return,
    };
    let band = |n: f64| 4.4 * (n * 0.1 * 0.9).sqrt();
    for canary in &windows {
        assert!((canary - 100.0).abs() <= band(WINDOW as f64), "{kind:?}: {windows:?} of {WINDOW} each");
    }
    let all: f64 = windows.iter().sum();
    assert!((all - 400.0).abs() <= band(4.0 * WINDOW as f64), "{kind:?}: {windows:?} of {WINDOW} each");
    assert!(hosts.iter().all(|host| host.arrived() > 0));
}
