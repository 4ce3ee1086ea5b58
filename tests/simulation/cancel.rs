//! Callers that go away, and limits that hold: the claims P1 and L7 of the reliability plan.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use mesh_tower::{
    Mesh,
    config::{Config, RoutingPriority},
};
use tokio::{
    runtime::Handle,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::{
    identity::mutual_tls,
    trace::mix,
    upstream::Script,
    world::{Kind, World, call, config_of, mesh_of, simulate},
};

/// P1: requests cancelled at random await points, 100,000 of the three kinds together, leave nothing behind.
#[test]
fn cancelled_http1_requests_leave_nothing_behind() {
    simulate(1, async |world| cancel(&world, Kind::Http1, false, 33_334).await);
}

/// P1: as above, of HTTP/2.
#[test]
fn cancelled_http2_requests_leave_nothing_behind() {
    simulate(2, async |world| cancel(&world, Kind::Http2, false, 33_333).await);
}

/// P1: as above, of gRPC.
#[test]
fn cancelled_grpc_requests_leave_nothing_behind() {
    simulate(3, async |world| cancel(&world, Kind::Grpc, false, 33_333).await);
}

/// P1: as above, over mutual TLS: callers go away in the middle of handshakes, too.
#[test]
fn cancelled_requests_over_tls_leave_nothing_behind() {
    for kind in Kind::ALL {
        simulate(4, async |world| cancel(&world, kind, true, 4_000).await);
    }
}

const LIMIT: u32 = 48;

fn limited(kind: Kind, tls: bool) -> Config {
    let (mut cluster, forward) = mesh_of(4, kind);
    if tls {
        cluster.tls = mutual_tls("upstream");
    }
    cluster.thresholds.max_retries = 3;
    cluster.thresholds.max_requests = LIMIT;
    // Half of the requests of HTTP/1.1 wait for a connection.
    cluster.thresholds.max_connections = LIMIT / 2;
    cluster.thresholds.max_pending_requests = LIMIT;
    config_of((cluster, forward))
}

async fn member(world: &World, kind: Kind, tls: bool, stream: u64) -> Mesh {
    match tls {
        true => world.identified(limited(kind, tls), stream).await,
        false => world.member(limited(kind, tls), stream).await,
    }
}

async fn cancel(world: &World, kind: Kind, tls: bool, requests: u64) {
    let ordinary = Script { mutual_tls: tls, ..Script::default() };
    let script = Script { jitter: Duration::from_millis(4), failing: 50, length: 2_500, sized: false, ..ordinary };
    let hosts = world.upstreams(4, script);
    let mesh = member(world, kind, tls, 0).await;
    // Servers begin to listen.
    sleep(Duration::from_millis(1)).await;
    let before = Handle::current().metrics().num_alive_tasks();
    let mut calls = JoinSet::new();
    let (mut cancelled, mut finished, mut most) = (0_u64, 0_u64, 0);
    let mut count = |done: Option<()>| match done {
        None => cancelled += 1,
        Some(()) => finished += 1,
    };
    for id in 0..requests {
        while calls.len() >= LIMIT as usize {
            count(calls.join_next().await.unwrap().unwrap());
        }
        let draw = mix(&[world.seed, id]);
        let request = if id % 4 == 0 { kind.post(id, &[7; 2_000]) } else { kind.get(id) };
        let client = mesh.http();
        calls.spawn(async move {
            let polls = (draw % 14) as u32;
            let call = Interrupted { call: Box::pin(call(client, request, id)), polls };
            timeout(Duration::from_millis((draw >> 32) % 16), call).await.ok().flatten()
        });
        most = most.max(mesh.snapshot().unwrap().cluster("upstream").unwrap().requests_in_flight());
    }
    while let Some(done) = calls.join_next().await {
        count(done.unwrap());
    }
    assert!(cancelled > requests / 2 && finished > requests / 50, "{cancelled} cancelled, {finished} finished");
    assert!(most > LIMIT / 2 && most <= LIMIT, "{most} at once");
    // At once: no slot is held by anybody.
    let snapshot = mesh.snapshot().unwrap();
    let cluster = snapshot.cluster("upstream").unwrap();
    assert_eq!(cluster.requests_in_flight(), 0);
    assert!(cluster.endpoints().iter().all(|endpoint| endpoint.in_flight() == 0));
    assert_eq!(slots(|| cluster.retry_slot(RoutingPriority::Default, false)), 3);
    assert_eq!(slots(|| cluster.pending_slot(RoutingPriority::Default)), LIMIT);
    for host in &hosts {
        host.script(|script| *script = Script { length: 100_000, ..ordinary });
    }
    same_speed(world, &mesh, kind, tls).await;
    // Connections that lay idle are closed in time, and then there is no task and no slot of a connection either.
    sleep(Duration::from_secs(120)).await;
    assert_eq!(slots(|| cluster.connection_slot(RoutingPriority::Default)), LIMIT / 2);
    assert_eq!(Handle::current().metrics().num_alive_tasks(), before);
    for host in &hosts {
        assert_eq!((host.under_way(), world.net.open_connections(host.address)), (0, 0));
    }
}

/// Connections that saw so many cancelled uploads carry a large answer as soon as fresh ones do: no flow control window is lost.
async fn same_speed(world: &World, used: &Mesh, kind: Kind, tls: bool) {
    let fresh = member(world, kind, tls, 1).await;
    let mut times = Vec::new();
    for mesh in [&fresh, used] {
        let mut best = Duration::MAX;
        // Windows that follow the traffic need some of it, and time, to grow.
        for _ in 0..12 {
            sleep(Duration::from_secs(1)).await;
            let start = Instant::now();
            let mut calls = JoinSet::new();
            for id in 0..8 {
                calls.spawn(call(mesh.http(), kind.post(id, &[1; 30_000]), id));
            }
            calls.join_all().await;
            best = best.min(start.elapsed());
        }
        times.push(best);
    }
    assert!(times[1] <= times[0] * 5 / 4, "{kind:?}: {times:?}");
}

/// How many slots can be taken at once.
fn slots<T>(take: impl Fn() -> Option<T>) -> u32 {
    let taken: Vec<_> = std::iter::from_fn(take).take(1_000).collect();
    taken.len() as u32
}

/// A call that is dropped when it was polled so often.
struct Interrupted<F> {
    call: Pin<Box<F>>,
    polls: u32,
}

impl<F: Future> Future for Interrupted<F> {
    type Output = Option<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<()>> {
        let Some(left) = self.polls.checked_sub(1) else { return Poll::Ready(None) };
        self.polls = left;
        self.call.as_mut().poll(cx).map(|_| Some(()))
    }
}

/// L7, CB1: never more requests under way than the limit, and as many as the limit while there is demand.
#[test]
fn a_circuit_breaker_is_exact() {
    for kind in Kind::ALL {
        simulate(1, async |world| {
            let hosts = world.upstreams(1, Script { delay: Duration::from_millis(50), ..Script::default() });
            let (mut cluster, mut forward) = mesh_of(1, kind);
            cluster.thresholds.max_requests = 10;
            forward.retry = None;
            let mesh = world.member(config_of((cluster, forward)), 0).await;
            let done = world.load(&mesh.http(), kind, 500, Duration::from_secs(4), 0).await;
            assert_eq!(hosts[0].most(), 10, "{kind:?}");
            let refused = done.iter().filter(|done| done.host == 0).count();
            let good = done.iter().filter(|done| done.is_ok()).count();
            assert_eq!(good + refused, done.len());
            // Ten at a time, each 50 ms and the way there and back.
            assert!(good >= 4 * 1_000 / 60 * 10 && refused > 0, "{kind:?}: {good} answered, {refused} refused");
            assert_eq!(mesh.snapshot().unwrap().cluster("upstream").unwrap().requests_in_flight(), 0);
        });
    }
}
