//! What holds without anybody's word: limits, and what is compiled once and used for every request.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_tower::config::{Action, Cluster, LoadBalancer, PathMatch, Regex, RouteMatch, SlowStart, Thresholds};
use tokio::{sync::Semaphore, task::JoinSet, time};

use crate::harness::{Kind, Program, Reply, Upstream, cluster, config, route, to};

/// CB2: who is told no limit has Envoy's 1024 requests at once, and who is told another has that.
#[tokio::test]
async fn a_limit_of_requests_is_there_by_default() {
    for kind in Kind::ALL {
        let raised = Thresholds {
            max_requests: 1_100,
            max_connections: 1_100,
            max_pending_requests: 1_100,
            ..Thresholds::default()
        };
        for (thresholds, most) in [(Thresholds::default(), 1_024), (raised, 1_100)] {
            let gate = Arc::new(Semaphore::new(0));
            let slow = Upstream::scripted("slow", {
                let gate = Arc::clone(&gate);
                move |_, _| Reply::ok().when(&gate)
            })
            .await;
            let app = Cluster { thresholds, ..cluster(kind, "app", &[&slow]) };
            let routes = vec![route(RouteMatch::default(), Action::Forward(to("app")))];
            let program = Program::new(kind, config([app], routes)).await;
            let mut asking = JoinSet::new();
            for _ in 0..most + 10 {
                let program = program.clone();
                asking.spawn(async move { program.get("/a.B/C").await });
            }
            // Ten of them are refused at once, the others wait for the upstream.
            for _ in 0..10 {
                let refused = asking.join_next().await.unwrap().unwrap();
                assert!(refused.is(kind, 503) && refused.flags == "UO", "{kind:?}: {refused:?}");
            }
            gate.add_permits(most);
            assert!(asking.join_all().await.iter().all(|answer| answer.is_ok()), "{kind:?}");
            assert_eq!(slow.count(), most, "{kind:?}");
        }
    }
}

/// RM23: expressions are compiled with the configuration: a request that is compared with many of them takes a small part of the
/// time that takes.
#[tokio::test]
async fn expressions_are_compiled_once() {
    for kind in Kind::ALL {
        let app = Upstream::start("app").await;
        let program = Program::new(kind, config([cluster(kind, "app", &[&app])], Vec::new())).await;
        let matching = |n: usize| {
            let regex = format!("/[\\pL\\pN]{{6}}-{n}").parse::<Regex>().unwrap();
            RouteMatch { path: PathMatch::Regex(regex), ..RouteMatch::default() }
        };
        let began = Instant::now();
        let routes = (0..64).map(|n| route(matching(n), Action::Forward(to("app")))).collect();
        program.mesh.live().update(&config([cluster(kind, "app", &[&app])], routes)).unwrap();
        let compiling = began.elapsed();
        let mut fastest = Duration::MAX;
        for _ in 0..10 {
            let began = Instant::now();
            assert!(program.get("/abcdef-63").await.is_ok(), "{kind:?}");
            fastest = fastest.min(began.elapsed());
        }
        assert!(fastest < compiling / 4, "{kind:?}: {fastest:?} of {compiling:?}");
    }
}

/// LB20: an endpoint that is new gets few requests at first, and its full share when its time has passed.
#[tokio::test]
async fn new_endpoints_start_slowly() {
    const WINDOW: Duration = Duration::from_secs(1_000);
    for kind in Kind::ALL {
        let (old, new) = (Upstream::start("old").await, Upstream::start("new").await);
        let of = |upstreams: &[&Upstream]| {
            let slow_start = Some(SlowStart { window: WINDOW, ..SlowStart::default() });
            let app =
                Cluster { slow_start, load_balancer: LoadBalancer::RoundRobin, ..cluster(kind, "app", upstreams) };
            config([app], vec![route(RouteMatch::default(), Action::Forward(to("app")))])
        };
        let program = Program::new(kind, of(&[&old])).await;
        let ask = async |times: usize| {
            for _ in 0..times {
                assert!(program.get("/a.B/C").await.is_ok(), "{kind:?}");
            }
        };
        ask(1).await;
        pass(WINDOW).await;
        program.mesh.live().update(&of(&[&old, &new])).unwrap();
        // A tenth of the other's share: 10 of 110, and as many more as time goes by.
        ask(110).await;
        assert!((5..=20).contains(&new.count()), "{kind:?}: {}", new.count());
        pass(WINDOW).await;
        let before = new.count();
        ask(100).await;
        assert!((45..=55).contains(&(new.count() - before)), "{kind:?}: {}", new.count() - before);
    }
}

/// Lets time go by for the program's clock alone.
async fn pass(window: Duration) {
    time::pause();
    time::advance(window).await;
    time::resume();
}
