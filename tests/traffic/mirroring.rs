//! Copies of requests.

use std::{sync::Arc, time::Duration};

use mesh_tower::config::{
    Action, Forward, Fraction, GrpcRetry, HeaderChange, HttpRetry, Mirror, PathMatch, RetryConditions, RetryPolicy,
    RouteMatch,
};
use tokio::{net::TcpListener, sync::Semaphore};

use crate::harness::{Kind, Program, Reply, Upstream, cluster, cluster_at, config, route, to};

async fn program(kind: Kind, main: &Upstream, copies: &Upstream, fraction: Option<Fraction>) -> Program {
    let mirrors = vec![
        Mirror { cluster: "copies".into(), fraction, ..Mirror::default() },
        Mirror { cluster: "nowhere".into(), ..Mirror::default() },
    ];
    let forward = Forward { mirrors, ..to("main") };
    let clusters = [cluster(kind, "main", &[main]), cluster(kind, "copies", &[copies])];
    Program::new(kind, config(clusters, vec![route(RouteMatch::default(), Action::Forward(forward))])).await
}

async fn wait_until(what: impl Fn() -> bool) {
    let waiting = async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("in time");
}

/// MI1, MI2: the copy has the same body and path, is marked in its host, and its failure is nobody's.
#[tokio::test]
async fn a_copy_goes_beside_the_request() {
    for kind in Kind::ALL {
        let main = Upstream::start("main").await;
        let copies = Upstream::scripted("copies", |_, _| Reply::unavailable()).await;
        let program = program(kind, &main, &copies, None).await;
        let answer = program.send(http::Request::post("/a?b").header("x-user", "7"), "words").await;
        assert!(answer.is_ok(), "{kind:?}: {answer:?}");
        assert_eq!((answer.body.as_str(), answer.flags.as_str()), ("main", "-"), "{kind:?}");
        wait_until(|| copies.count() == 1).await;
        let (sent, copy) = (main.last(), copies.last());
        assert_eq!((sent.authority.as_str(), copy.authority.as_str()), ("app", "app-shadow"), "{kind:?}");
        assert_eq!((&sent.path, &sent.body, &sent.method), (&copy.path, &copy.body, &copy.method), "{kind:?}");
        assert_eq!((sent.body, copy.header("x-user")), ("words".into(), "7".to_owned()), "{kind:?}");
        assert_eq!((main.count(), copies.count()), (1, 1), "a copy is tried once");
    }
}

/// MI2: a copy keeps its host, or gets another, and its own headers, where its mirror says so; the request is as it was.
#[tokio::test]
async fn copies_look_as_told() {
    for kind in Kind::ALL {
        let keep = Mirror { keep_host: true, ..Mirror::default() };
        let other = Mirror { host_rewrite: Some("elsewhere".into()), ..Mirror::default() };
        for (mirror, host) in [(keep, "app"), (other, "elsewhere"), (Mirror::default(), "app-shadow")] {
            let (main, copies) = (Upstream::start("main").await, Upstream::start("copies").await);
            let headers = vec![
                HeaderChange::Set { name: "x-copy".into(), value: "yes".parse().unwrap() },
                HeaderChange::Remove { name: "x-secret".into() },
            ];
            let mirrors = vec![Mirror { cluster: "copies".into(), headers, ..mirror }];
            let forward = Forward { mirrors, ..to("main") };
            let clusters = [cluster(kind, "main", &[&main]), cluster(kind, "copies", &[&copies])];
            let routes = vec![route(RouteMatch::default(), Action::Forward(forward))];
            let program = Program::new(kind, config(clusters, routes)).await;
            assert!(program.get_with("/", &[("x-secret", "s")]).await.is_ok(), "{kind:?}");
            wait_until(|| copies.count() == 1).await;
            let (sent, copy) = (main.last(), copies.last());
            assert_eq!((sent.authority.as_str(), copy.authority.as_str()), ("app", host), "{kind:?}");
            let marks = |arrival: &crate::harness::Arrival| ["x-copy", "x-secret"].map(|name| arrival.header(name));
            assert_eq!(
                (marks(&sent), marks(&copy)),
                (["", "s"].map(Into::into), ["yes", ""].map(Into::into)),
                "{kind:?}"
            );
        }
    }
}

/// MI1: where the request's own cluster is missing nothing is copied.
#[tokio::test]
async fn what_goes_nowhere_is_not_copied() {
    for kind in Kind::ALL {
        let (main, copies) = (Upstream::start("main").await, Upstream::start("copies").await);
        let mirrors = || vec![Mirror { cluster: "copies".into(), ..Mirror::default() }];
        let path = PathMatch::Prefix { value: "/lost".into(), ignore_case: false };
        let routes = vec![
            route(
                RouteMatch { path, ..RouteMatch::default() },
                Action::Forward(Forward { mirrors: mirrors(), ..to("missing") }),
            ),
            route(RouteMatch::default(), Action::Forward(Forward { mirrors: mirrors(), ..to("main") })),
        ];
        let clusters = [cluster(kind, "main", &[&main]), cluster(kind, "copies", &[&copies])];
        let program = Program::new(kind, config(clusters, routes)).await;
        let lost = program.get("/lost").await;
        assert!(lost.is(kind, 503) && lost.flags == "NC", "{kind:?}: {lost:?}");
        assert!(program.get("/found").await.is_ok(), "{kind:?}");
        // What was to be copied first would be here first.
        wait_until(|| copies.count() > 0).await;
        assert!(copies.arrivals().iter().all(|copy| copy.path == "/found"), "{kind:?}");
    }
}

/// MI1: a mirror that never answers delays nothing, and a share of 0 is none.
#[tokio::test]
async fn a_mirror_that_hangs_delays_nothing() {
    for kind in Kind::ALL {
        let main = Upstream::start("main").await;
        let gate = Arc::new(Semaphore::new(0));
        let copies = Upstream::scripted("copies", move |_, _| Reply::ok().when(&gate)).await;
        let hanging = program(kind, &main, &copies, Some(Fraction::ALL)).await;
        for _ in 0..20 {
            assert!(hanging.get("/").await.is_ok(), "{kind:?}");
        }
        let never = program(kind, &main, &copies, Some(Fraction::NONE)).await;
        let before = copies.count();
        assert!(never.get("/never").await.is_ok(), "{kind:?}");
        assert!(copies.arrivals()[before..].iter().all(|copy| copy.path != "/never"), "{kind:?}");
    }
}

/// MI1, RT16: a copy for which nobody listens is tried once, and takes nothing from what retries are paid from.
#[tokio::test]
async fn a_dead_mirror_costs_no_retries() {
    const BEFORE: usize = 30;
    for kind in Kind::ALL {
        let script = |n: usize, _: &_| if n == BEFORE { Reply::unavailable() } else { Reply::ok() };
        let main = Upstream::scripted("main", script).await;
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let on = RetryConditions {
            http: vec![HttpRetry::ServerError],
            grpc: vec![GrpcRetry::Unavailable],
            ..RetryConditions::default()
        };
        let mirrors = vec![Mirror { cluster: "copies".into(), ..Mirror::default() }];
        let retry = Some(RetryPolicy { on, retries: 1, ..RetryPolicy::default() });
        let forward = Forward { mirrors, retry, ..to("main") };
        let clusters = [cluster(kind, "main", &[&main]), cluster_at(kind, "copies", &[gone])];
        let program =
            Program::new(kind, config(clusters, vec![route(RouteMatch::default(), Action::Forward(forward))])).await;
        for _ in 0..BEFORE {
            assert!(program.get("/").await.is_ok(), "{kind:?}");
        }
        let snapshot = program.mesh.snapshot().unwrap();
        wait_until(|| snapshot.cluster("copies").unwrap().requests_in_flight() == 0).await;
        let answer = program.get("/").await;
        assert!(answer.is_ok(), "{kind:?}: {answer:?}");
        assert_eq!(main.count(), BEFORE + 2, "{kind:?}");
    }
}
