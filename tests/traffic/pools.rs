//! Connections to endpoints: which protocol, how many, how long they are kept, and what a peer that leaves comes to.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body_util::Full;
use hyper::body::Incoming;
use mesh_tower::config::{
    Action, Cluster, Config, Connections, Endpoint, Health, Http2, HttpRetry, Keepalive, Protocol, RetryConditions,
    RetryPolicy, RouteMatch, Thresholds,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::Semaphore,
};

#[path = "pools/server.rs"]
mod server;

use server::{Settings, serve, serve_on};

use crate::harness::{Kind, Program, Reply, Upstream, cluster, config, route, to};

/// Everything goes to this cluster.
fn only(cluster: Cluster) -> Config {
    config([cluster], vec![route(RouteMatch::default(), Action::Forward(to("app")))])
}

fn kept(kind: Kind, upstream: &Upstream, connections: Connections) -> Config {
    only(Cluster { connections, ..cluster(kind, "app", &[upstream]) })
}

/// Waits until `done` says so: for what happens in other tasks.
async fn until(mut done: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it did not happen within 10 s");
}

/// CP1: requests one after the other use one connection.
#[tokio::test]
async fn a_connection_is_used_again() {
    for kind in Kind::ALL {
        let upstream = Upstream::start("one").await;
        let program = Program::calling(kind, &[&upstream], to("app")).await;
        for _ in 0..20 {
            assert!(program.get("/").await.is_ok(), "{kind:?}");
        }
        assert_eq!((upstream.count(), upstream.opened()), (20, 1), "{kind:?}");
    }
}

/// CP1: a cluster that leaves the protocol to its callers speaks theirs.
#[tokio::test]
async fn a_cluster_may_speak_its_callers_protocol() {
    for kind in Kind::ALL {
        let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
        let versions = Arc::clone(&seen);
        let (address, _server) = serve(Settings::default(), move |request: Request<Incoming>| {
            versions.lock().unwrap().push(request.version());
            async { reply() }
        })
        .await;
        let upstream = Upstream::start("unused").await;
        let mut cluster = Cluster { protocol: Protocol::Caller, ..cluster(kind, "app", &[&upstream]) };
        set_endpoint(&mut cluster, address);
        let program = Program::new(kind, only(cluster)).await;
        let version = if kind == Kind::Http1 { Version::HTTP_11 } else { Version::HTTP_2 };
        let answer = program.send(Request::get("/").version(version), "").await;
        assert_eq!(answer.status, 200, "{kind:?}: {answer:?}");
        assert_eq!(*seen.lock().unwrap(), [version], "{kind:?}");
    }
}

/// CP3: after so many requests a connection is closed and another one opened; 1 is no keep-alive.
#[tokio::test]
async fn a_connection_serves_so_many_requests() {
    for kind in Kind::ALL {
        for (most, opened) in [(1, 6), (2, 3), (4, 2)] {
            let upstream = Upstream::start("one").await;
            let connections = Connections { max_requests: most, ..Connections::default() };
            let program = Program::new(kind, kept(kind, &upstream, connections)).await;
            for _ in 0..6 {
                assert!(program.get("/").await.is_ok(), "{kind:?} {most}");
            }
            assert_eq!((upstream.count(), upstream.opened()), (6, opened), "{kind:?} {most}");
        }
    }
}

/// CP3: a connection that lay idle too long, or is too old, is not used again; what is under way on it goes on.
#[tokio::test]
async fn old_and_idle_connections_are_replaced() {
    for kind in Kind::ALL {
        let brief = Some(Duration::from_millis(50));
        for connections in [
            Connections { idle_timeout: brief, ..Connections::default() },
            Connections { max_duration: brief, ..Connections::default() },
        ] {
            let gate = Arc::new(Semaphore::new(1));
            let opens = Arc::clone(&gate);
            let upstream = Upstream::scripted("one", move |_, _| Reply::ok().when(&opens)).await;
            let aging = connections.max_duration.is_some();
            let program = Program::new(kind, kept(kind, &upstream, connections)).await;
            assert!(program.get("/").await.is_ok(), "{kind:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
            let slow = tokio::spawn({
                let program = program.clone();
                async move { program.get("/slow").await }
            });
            until(|| upstream.count() == 2).await;
            assert_eq!(upstream.opened(), 2, "{kind:?}: the first was too old");
            // It outlives its connection's age.
            tokio::time::sleep(Duration::from_millis(100)).await;
            gate.add_permits(2);
            assert!(slow.await.unwrap().is_ok(), "{kind:?}");
            assert!(program.get("/").await.is_ok(), "{kind:?}");
            assert_eq!(upstream.opened(), if aging { 3 } else { 2 }, "{kind:?}");
        }
    }
}

/// CP6: HTTP/2 requests beyond what the peer, or the cluster, allows on one connection open another; HTTP/1.1 has one each.
#[tokio::test]
async fn more_streams_than_a_connection_takes_open_another() {
    for kind in [Kind::Http2, Kind::Grpc] {
        for (ours, theirs) in [(3, 100), (1024, 3)] {
            let (gate, at_once) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
            let (opens, counts) = (Arc::clone(&gate), Arc::clone(&at_once));
            let settings = Settings { max_streams: Some(theirs), ..Settings::default() };
            let (address, server) = serve(settings, move |_| {
                let (opens, counts) = (Arc::clone(&opens), Arc::clone(&counts));
                async move {
                    counts.fetch_add(1, Ordering::Relaxed);
                    opens.acquire().await.unwrap().forget();
                    reply()
                }
            })
            .await;
            let upstream = Upstream::start("unused").await;
            let http2 = Http2 { max_concurrent_streams: ours, ..Http2::default() };
            let mut cluster = cluster(kind, "app", &[&upstream]);
            cluster.connections = Connections { http2, ..Connections::default() };
            set_endpoint(&mut cluster, address);
            let program = Program::new(kind, only(cluster)).await;
            // The first tells what the peer takes.
            gate.add_permits(1);
            assert_eq!(program.get("/").await.status, 200, "{kind:?}");
            at_once.store(0, Ordering::Relaxed);
            let calls: Vec<_> = (0..9)
                .map(|_| {
                    let program = program.clone();
                    tokio::spawn(async move { program.get("/").await })
                })
                .collect();
            until(|| at_once.load(Ordering::Relaxed) == 9).await;
            assert_eq!(server.opened(), 3, "{kind:?}");
            gate.add_permits(9);
            for call in calls {
                assert_eq!(call.await.unwrap().status, 200, "{kind:?}");
            }
        }
    }
}

/// CP4: a peer that answers no ping is given up, and the request goes to it again over a new connection.
#[tokio::test]
async fn a_silent_peer_is_given_up() {
    for kind in [Kind::Http2, Kind::Grpc] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        // It reads, and says nothing beyond its settings.
        let silent = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
            let mut buffer = [0; 1024];
            while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
        });
        let upstream = Upstream::start("unused").await;
        let mut cluster = cluster(kind, "app", &[&upstream]);
        let keepalive = Keepalive {
            interval: Some(Duration::from_millis(20)),
            timeout: Duration::from_millis(50),
            after_idle: None,
        };
        let http2 = Http2 { keepalive: Some(keepalive), ..Http2::default() };
        cluster.connections = Connections { http2, ..Connections::default() };
        set_endpoint(&mut cluster, address);
        let program = Program::new(kind, only(cluster)).await;
        let answer = tokio::time::timeout(Duration::from_secs(10), program.get("/")).await.expect("given up in time");
        assert!(answer.is(kind, 503), "{kind:?}: {answer:?}");
        assert_eq!(answer.flags, "UC", "{kind:?}");
        // The connection is closed with it.
        silent.await.unwrap();
    }
}

/// CP7: a window smaller than the response holds it up until it is read, and no longer.
#[tokio::test]
async fn small_windows_let_large_bodies_through() {
    let large = Bytes::from(vec![b'x'; 1 << 20]);
    let sent = large.clone();
    let (address, _server) = serve(Settings::default(), move |_| {
        let body = sent.clone();
        async { Response::new(Full::new(body)) }
    })
    .await;
    for kind in [Kind::Http1, Kind::Http2] {
        let upstream = Upstream::start("unused").await;
        let mut cluster = cluster(kind, "app", &[&upstream]);
        let http2 = Http2 { stream_window: Some(65_535), connection_window: Some(65_535), ..Http2::default() };
        cluster.connections = Connections { http2, ..Connections::default() };
        set_endpoint(&mut cluster, address);
        let program = Program::new(kind, only(cluster)).await;
        assert_eq!(program.get("/").await.body.len(), large.len(), "{kind:?}");
    }
}

/// CP9: an endpoint that leaves the configuration finishes what it has, and its connections close.
#[tokio::test]
async fn a_removed_endpoint_finishes_what_it_has() {
    for kind in Kind::ALL {
        let gate = Arc::new(Semaphore::new(0));
        let opens = Arc::clone(&gate);
        let (address, server) = serve(Settings::default(), move |_| {
            let opens = Arc::clone(&opens);
            async move {
                opens.acquire().await.unwrap().forget();
                reply()
            }
        })
        .await;
        let other = Upstream::start("other").await;
        let mut leaving = cluster(kind, "app", &[&other]);
        set_endpoint(&mut leaving, address);
        let program = Program::new(kind, only(leaving)).await;
        let slow = tokio::spawn({
            let program = program.clone();
            async move { program.get("/").await }
        });
        until(|| server.opened() == 1).await;
        program.mesh.live().update(&only(cluster(kind, "app", &[&other]))).unwrap();
        assert!(program.get("/").await.is_ok(), "{kind:?}");
        assert_eq!(other.count(), 1, "{kind:?}");
        assert_eq!(server.open(), 1, "{kind:?}: still at work");
        gate.add_permits(1);
        assert_eq!(slow.await.unwrap().status, 200, "{kind:?}");
        until(|| server.open() == 0).await;
    }
}

/// CP3, CP9: a server that says goodbye while requests are under way fails none of them.
///
/// HTTP/1.1 has no goodbye: what was just sent over a connection that is closed then is tried again, as its route says.
#[tokio::test]
async fn a_graceful_goodbye_fails_no_request() {
    for kind in Kind::ALL {
        // Every connection is told to end 30 ms after it began, gracefully, while requests are under way.
        let settings = Settings { age: Some(Duration::from_millis(30)), ..Settings::default() };
        let (address, server) = serve(settings, |_| async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            reply()
        })
        .await;
        let upstream = Upstream::start("unused").await;
        let mut cluster = cluster(kind, "app", &[&upstream]);
        set_endpoint(&mut cluster, address);
        cluster.thresholds.max_retries = 100;
        let mut forward = to("app");
        if kind == Kind::Http1 {
            let on = RetryConditions { http: vec![HttpRetry::Reset], ..RetryConditions::default() };
            forward.retry = Some(RetryPolicy { on, retries: 3, ..RetryPolicy::default() });
        }
        let routes = vec![route(RouteMatch::default(), Action::Forward(forward))];
        let program = Program::new(kind, config([cluster], routes)).await;
        let callers: Vec<_> = (0..8)
            .map(|_| {
                let program = program.clone();
                tokio::spawn(async move {
                    for _ in 0..100 {
                        let answer = program.get("/").await;
                        assert_eq!(answer.status, 200, "{kind:?}: {answer:?}");
                        assert!(answer.whole, "{kind:?}");
                    }
                })
            })
            .collect();
        for caller in callers {
            caller.await.unwrap();
        }
        assert!(server.opened() > 1, "{kind:?}: connections did end");
    }
}

/// LB27: requests wait for a connection that is being made, and in line where there may be no more of them.
#[tokio::test]
async fn requests_wait_until_a_connection_is_ready() {
    for kind in Kind::ALL {
        // Listening, but not accepting yet: the connection is made, and answers later.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upstream = Upstream::start("unused").await;
        let mut cluster = cluster(kind, "app", &[&upstream]);
        cluster.thresholds = Thresholds { max_connections: 1, ..Thresholds::default() };
        cluster.connections.http2.max_concurrent_streams = 1;
        set_endpoint(&mut cluster, listener.local_addr().unwrap());
        let program = Program::new(kind, only(cluster)).await;
        let calls: Vec<_> = (0..5)
            .map(|_| {
                let program = program.clone();
                tokio::spawn(async move { program.get("/").await })
            })
            .collect();
        tokio::task::yield_now().await;
        let server = serve_on(listener, Settings::default(), |_| async { reply() });
        for call in calls {
            assert_eq!(call.await.unwrap().status, 200, "{kind:?}");
        }
        assert_eq!(server.opened(), 1, "{kind:?}");
    }
}

/// LB28: nothing is connected to before it is needed; from then on connections are kept ahead of need, as configured.
#[tokio::test]
async fn connections_are_made_ahead_of_need_when_asked_for() {
    let upstream = Upstream::start("one").await;
    let connections = Connections { preconnect_percent: 200, ..Connections::default() };
    let program = Program::new(Kind::Http1, kept(Kind::Http1, &upstream, connections)).await;
    assert_eq!(upstream.opened(), 0);
    assert!(program.get("/").await.is_ok());
    assert!(program.get("/").await.is_ok());
    until(|| upstream.opened() == 2).await;
    for kind in [Kind::Http2, Kind::Grpc] {
        let upstream = Upstream::start("one").await;
        let program = Program::calling(kind, &[&upstream], to("app")).await;
        assert_eq!(upstream.opened(), 0, "{kind:?}");
        assert!(program.get("/").await.is_ok(), "{kind:?}");
        assert_eq!(upstream.opened(), 1, "{kind:?}");
    }
}

/// LB28: the same of connections that requests share.
#[tokio::test]
async fn shared_connections_are_made_ahead_of_need_when_asked_for() {
    for kind in [Kind::Http2, Kind::Grpc] {
        let gate = Arc::new(Semaphore::new(0));
        let opens = Arc::clone(&gate);
        let upstream = Upstream::scripted("one", move |_, _| Reply::ok().when(&opens)).await;
        let http2 = Http2 { max_concurrent_streams: 2, ..Http2::default() };
        let connections = Connections { preconnect_percent: 200, http2, ..Connections::default() };
        let program = Program::new(kind, kept(kind, &upstream, connections)).await;
        let calls: Vec<_> = (0..2)
            .map(|_| {
                let program = program.clone();
                tokio::spawn(async move { program.get("/").await })
            })
            .collect();
        // Two are under way, on one connection that takes two: there is to be room for four.
        until(|| upstream.opened() == 2).await;
        gate.add_permits(2);
        for call in calls {
            assert!(call.await.unwrap().is_ok(), "{kind:?}");
        }
    }
}

/// CP5: connections come from the address that the cluster says.
#[tokio::test]
async fn connections_come_from_the_address_configured() {
    for kind in Kind::ALL {
        let (address, server) = serve(Settings::default(), |_| async { reply() }).await;
        let upstream = Upstream::start("unused").await;
        let mut cluster = cluster(kind, "app", &[&upstream]);
        set_endpoint(&mut cluster, address);
        cluster.connections.bind = Some([127, 0, 0, 9].into());
        let program = Program::new(kind, only(cluster)).await;
        assert_eq!(program.get("/").await.status, 200, "{kind:?}");
        let from = server.from.lock().unwrap().clone();
        assert_eq!(from.iter().map(|peer| peer.ip().to_string()).collect::<Vec<_>>(), ["127.0.0.9"], "{kind:?}");
    }
}

/// CP9: an endpoint that the control plane says is not well loses its connections, where the cluster asks for that.
#[tokio::test]
async fn connections_to_an_unhealthy_endpoint_close() {
    for kind in Kind::ALL {
        let (address, server) = serve(Settings::default(), |_| async { reply() }).await;
        let upstream = Upstream::start("unused").await;
        let mut cluster = cluster(kind, "app", &[&upstream]);
        set_endpoint(&mut cluster, address);
        cluster.connections.close_when_unhealthy = true;
        let program = Program::new(kind, only(cluster.clone())).await;
        assert_eq!(program.get("/").await.status, 200, "{kind:?}");
        assert_eq!(server.open(), 1, "{kind:?}");
        let mut endpoints = (*cluster.endpoints).clone();
        endpoints.localities[0].endpoints[0].health = Health::Unhealthy;
        cluster.endpoints = Arc::new(endpoints);
        program.mesh.live().update(&only(cluster)).unwrap();
        until(|| server.open() == 0).await;
    }
}

/// HC4: an endpoint to which no connection can be made gets nothing for a while, and is tried again.
#[tokio::test]
async fn an_endpoint_that_refuses_is_passed_over_and_tried_again() {
    for kind in Kind::ALL {
        let good = Upstream::start("good").await;
        let refused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let mut cluster = cluster(kind, "app", &[&good]);
        add_endpoint(&mut cluster, refused);
        let program = Program::new(kind, only(cluster)).await;
        let mut failed = 0;
        for _ in 0..40 {
            failed += usize::from(!program.get("/").await.is_ok());
        }
        // By default a request that was never sent is tried elsewhere; without that at most the first would fail.
        assert!(failed <= 1, "{kind:?}: {failed} of 40");
        // It comes up, and gets requests once its time is over.
        let listener = TcpListener::bind(refused).await.unwrap();
        let server = serve_on(listener, Settings::default(), |_| async { reply() });
        for _ in 0..1000 {
            assert_eq!(program.get("/").await.status, 200, "{kind:?}");
            if server.opened() > 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(server.opened() > 0, "{kind:?}");
    }
}

/// CP1: requests that are given up half-way leave no connection in a wrong state, and none too many behind.
#[tokio::test]
async fn requests_given_up_half_way_leave_nothing_behind() {
    for kind in Kind::ALL {
        let (address, server) = serve(Settings::default(), |_| async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            reply()
        })
        .await;
        let upstream = Upstream::start("unused").await;
        let mut cluster = cluster(kind, "app", &[&upstream]);
        set_endpoint(&mut cluster, address);
        let program = Program::new(kind, only(cluster)).await;
        for n in 0..60_u64 {
            let brief = Duration::from_micros(n * 150);
            let _ = tokio::time::timeout(brief, program.get("/")).await;
        }
        let answer = program.get("/").await;
        assert_eq!((answer.status, answer.whole), (200, true), "{kind:?}");
        until(|| server.open() <= 2).await;
    }
}

fn set_endpoint(cluster: &mut Cluster, address: SocketAddr) {
    let mut endpoints = (*cluster.endpoints).clone();
    for locality in &mut endpoints.localities {
        locality.endpoints = vec![Endpoint::from(address)];
    }
    cluster.endpoints = Arc::new(endpoints);
}

fn add_endpoint(cluster: &mut Cluster, address: SocketAddr) {
    let mut endpoints = (*cluster.endpoints).clone();
    endpoints.localities[0].endpoints.push(Endpoint::from(address));
    cluster.endpoints = Arc::new(endpoints);
}

fn reply() -> Response<Full<Bytes>> {
    Response::new(Full::new(Bytes::from_static(b"hello")))
}
