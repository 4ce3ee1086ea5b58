//! Requests that wait for an endpoint instead of failing for want of one.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use http::Request;
use mesh_tower::{
    WaitForReady,
    config::{Action, Cluster, Config, Forward, RouteMatch, Thresholds},
};
use tokio::{
    net::TcpSocket,
    time::{sleep, timeout},
};

use crate::harness::{Kind, Program, Upstream, cluster, cluster_at, config, route, to};

fn routed(cluster: Cluster) -> Config {
    config([cluster], vec![route(RouteMatch::default(), Action::Forward(Forward { timeout: None, ..to("app") }))])
}

fn asks() -> http::request::Builder {
    Request::get("/").extension(WaitForReady)
}

/// LB27: without an endpoint a request fails at once; one that is to wait is sent as soon as there is an endpoint.
#[tokio::test]
async fn a_request_waits_for_the_first_endpoint() {
    for kind in Kind::ALL {
        let upstream = Upstream::start("late").await;
        let program = Program::new(kind, routed(cluster_at(kind, "app", &[]))).await;
        let at_once = program.get("/").await;
        assert!(at_once.is(kind, 503) && at_once.flags == "UH", "{kind:?}: {at_once:?}");
        let waiting = tokio::spawn({
            let program = program.clone();
            async move { program.send(asks(), "said").await }
        });
        // It is counted among those that wait, and does not end.
        let waits = async {
            while program.mesh.snapshot().unwrap().cluster("app").unwrap().pending() == 0 {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(10), waits).await.unwrap();
        assert!(!waiting.is_finished() && upstream.count() == 0);
        program.mesh.live().update(&routed(cluster(kind, "app", &[&upstream]))).unwrap();
        let answer = timeout(Duration::from_secs(10), waiting).await.unwrap().unwrap();
        assert!(answer.is_ok(), "{kind:?}: {answer:?}");
        assert_eq!(upstream.last().body, "said");
    }
}

/// LB27: an endpoint that refuses connections is waited for, too.
#[tokio::test]
async fn a_request_waits_for_an_endpoint_that_refuses() {
    for kind in Kind::ALL {
        // Bound, so that nobody else gets the port, and not listening yet.
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = socket.local_addr().unwrap();
        let program = Program::new(kind, routed(cluster_at(kind, "app", &[address]))).await;
        let waiting = tokio::spawn({
            let program = program.clone();
            async move { program.send(asks(), "").await }
        });
        sleep(Duration::from_millis(150)).await;
        assert!(!waiting.is_finished(), "{kind:?}");
        let upstream = Upstream::at("late", socket.listen(16).unwrap());
        let answer = timeout(Duration::from_secs(20), waiting).await.unwrap().unwrap();
        assert!(answer.is_ok() && upstream.count() == 1, "{kind:?}: {answer:?}");
    }
}

/// LB27: the wait ends with the deadline, and no more wait than may.
#[tokio::test]
async fn the_wait_is_bounded() {
    for kind in Kind::ALL {
        let mut empty = cluster_at(kind, "app", &[]);
        empty.thresholds = Thresholds { max_pending_requests: 0, ..Thresholds::default() };
        let full = Program::new(kind, routed(empty)).await;
        let refused = timeout(Duration::from_secs(10), full.send(asks(), "")).await.unwrap();
        assert!(refused.is(kind, 503) && refused.flags.contains("UO"), "{kind:?}: {refused:?}");

        let mut config = routed(cluster_at(kind, "app", &[]));
        let table = Arc::make_mut(config.outbound.get_mut(&80).unwrap());
        let host = Arc::make_mut(&mut table.virtual_hosts[0]);
        if let Action::Forward(forward) = &mut host.routes[0].action {
            forward.timeout = Some(Duration::from_millis(200));
        }
        let program = Program::new(kind, config).await;
        let begun = Instant::now();
        let late = timeout(Duration::from_secs(10), program.send(asks(), "")).await.unwrap();
        assert!(late.is(kind, 504) || late.grpc == Some(4), "{kind:?}: {late:?}");
        assert!(begun.elapsed() >= Duration::from_millis(200));
    }
}
