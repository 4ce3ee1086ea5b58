//! One seed, one history.

use std::time::Duration;

use crate::{
    net::Cut,
    trace::{Event, hash},
    upstream::Script,
    world::{Kind, config_of, mesh_of, outliers, simulate},
};

/// The same seed gives the same events at the same times, whatever goes wrong meanwhile; another seed another history.
#[test]
fn the_same_seed_gives_the_same_history() {
    for kind in Kind::ALL {
        let (one, same, other) = (history(1, kind), history(1, kind), history(2, kind));
        let differs = one.iter().zip(&same).position(|(one, same)| one != same);
        let first = differs.map(|at| (at, one[at], same[at]));
        assert_eq!((first, one.len()), (None, same.len()), "{kind:?}");
        assert_eq!(hash(&one), hash(&same), "{kind:?}");
        assert_ne!(hash(&one), hash(&other), "{kind:?}");
    }
}

/// A bad minute: loss, a slow host, resets, a black hole, a death, churn.
fn history(seed: u64, kind: Kind) -> Vec<Event> {
    simulate(seed, async |world| {
        let script = Script { jitter: Duration::from_millis(10), failing: 20, ..Script::default() };
        let mut hosts = world.upstreams(5, script);
        for host in &hosts {
            world.net.weather(host.address, |weather| {
                weather.jitter = Duration::from_millis(3);
                weather.loss = 5;
            });
        }
        let (mut cluster, mut forward) = mesh_of(5, kind);
        cluster.outlier_detection = Some(outliers(50));
        forward.timeout = Some(Duration::from_secs(10));
        forward.retry.as_mut().unwrap().per_try_timeout = Some(Duration::from_secs(1));
        let mesh = world.member(config_of((cluster, forward)), 0).await;
        let client = mesh.http();
        let stretch = Duration::from_secs(2);
        let mut id = 0;
        let mut go = async |world: &crate::world::World| {
            world.load(&client, kind, 40, stretch, id).await;
            id += 1_000;
        };
        go(&world).await;
        world.net.weather(hosts[0].address, |weather| weather.blackhole = true);
        go(&world).await;
        hosts[1].kill();
        go(&world).await;
        world.net.weather(hosts[0].address, |weather| weather.blackhole = false);
        world
            .net
            .weather(hosts[2].address, |weather| weather.cut = Some(Cut { within: 2_000, reset: true, upload: false }));
        hosts[1].restart();
        hosts[3].script(|script| script.delay = Duration::from_millis(200));
        go(&world).await;
        world.trace.events()
    })
}
