//! What arrives is whole, and what may run once runs once: the claims E4 and R5 of the reliability plan.

use std::{collections::BTreeMap, time::Duration};

use mesh_tower::config::RetryPolicy;
use tokio::{task::JoinSet, time::sleep};

use crate::{
    net::Cut,
    upstream::{Script, amounts_to},
    world::{Kind, call, config_of, grpc_frame, mesh_of, outliers, simulate},
};

/// E4: connections cut at any byte, by a reset or as if the server had finished: an answer is whole or it is an error.
#[test]
fn a_short_body_is_never_a_success() {
    const LENGTH: usize = 3_000;
    for kind in Kind::ALL {
        for sized in [true, false] {
            for reset in [true, false] {
                simulate(3, async |world| {
                    let script = Script { length: LENGTH, sized, ..Script::default() };
                    let hosts = world.upstreams(3, script);
                    for host in &hosts {
                        world.net.weather(host.address, |weather| {
                            weather.cut = Some(Cut { within: 3 * LENGTH as u64, reset, upload: false });
                            weather.loss = 10;
                        });
                    }
                    let mesh = world.member(config_of(mesh_of(3, kind)), 0).await;
                    let done = world.load(&mesh.http(), kind, 100, Duration::from_secs(4), 0).await;
                    let whole = |id| match kind {
                        Kind::Grpc => grpc_frame(&amounts_to(id, LENGTH)),
                        _ => amounts_to(id, LENGTH),
                    };
                    for done in done.iter().filter(|done| done.is_ok()) {
                        assert!(done.body == whole(done.id), "{kind:?}: {} of {LENGTH} bytes", done.body.len());
                    }
                    let good = done.iter().filter(|done| done.is_ok()).count();
                    let cut = world.trace.events().iter().filter(|event| event.what == "cut").count();
                    assert!(good > 40 && cut > 100, "{kind:?}: {good} whole of {}, {cut} cuts", done.len());
                });
            }
        }
    }
}

/// E4: requests cut at any byte, by a reset or as if the caller had finished: who executes one has the whole of it, and the caller has
/// an answer or an error.
#[test]
fn a_short_request_is_never_executed() {
    const LENGTH: usize = 3_000;
    for kind in Kind::ALL {
        for reset in [true, false] {
            simulate(7, async |world| {
                let hosts = world.upstreams(3, Script::default());
                for host in &hosts {
                    world.net.weather(host.address, |weather| {
                        weather.cut = Some(Cut { within: 4 * LENGTH as u64, reset, upload: true });
                        weather.loss = 10;
                    });
                }
                let (mut cluster, mut forward) = mesh_of(3, kind);
                cluster.connect_timeout = Duration::from_millis(500);
                // A server that waits for the rest of a request waits no longer than its caller.
                forward.timeout = Some(Duration::from_secs(2));
                forward.retry = None;
                let mesh = world.member(config_of((cluster, forward)), 0).await;
                let mut calls = JoinSet::new();
                for id in 0..400 {
                    calls.spawn(call(mesh.http(), kind.post(id, &amounts_to(id, LENGTH)), id));
                    sleep(Duration::from_millis(10)).await;
                }
                let done = calls.join_all().await;
                let whole = if kind == Kind::Grpc { LENGTH + 5 } else { LENGTH };
                let lengths: Vec<_> = hosts.iter().flat_map(|host| host.lengths()).collect();
                assert!(lengths.iter().all(|length| *length == whole), "{kind:?}: {lengths:?}");
                let good = done.iter().filter(|done| done.is_ok()).count();
                let cut = world.trace.events().iter().filter(|event| event.what == "cut").count();
                assert!(good <= lengths.len(), "{kind:?}: {good} answered of {} executed", lengths.len());
                assert!(good > 40 && cut > 40, "{kind:?}: {good} of {} answered, {cut} cuts", done.len());
            });
        }
    }
}

/// R5: whatever breaks, a call that is not idempotent is executed once at most; and most succeed all the same.
#[test]
fn what_may_run_once_runs_once() {
    for kind in Kind::ALL {
        simulate(5, async |world| {
            let script = Script { jitter: Duration::from_millis(20), failing: 50, ..Script::default() };
            let mut hosts = world.upstreams(5, script);
            for host in &hosts {
                world.net.weather(host.address, |weather| {
                    weather.cut = Some(Cut { within: 4_000, reset: true, upload: false });
                    weather.loss = 10;
                });
            }
            let (mut cluster, mut forward) = mesh_of(5, kind);
            cluster.connect_timeout = Duration::from_millis(500);
            cluster.outlier_detection = Some(outliers(50));
            let policy = forward.retry.as_mut().unwrap();
            *policy = RetryPolicy { per_try_timeout: Some(Duration::from_millis(200)), ..policy.clone() };
            if kind == Kind::Grpc {
                // A gRPC method that must not run twice is given a policy that says so (gRFC A6).
                policy.on.grpc.clear();
                policy.on.http.retain(|on| matches!(on.as_str(), "connect-failure" | "refused-stream"));
            }
            let mesh = world.member(config_of((cluster, forward)), 0).await;
            let mut calls = JoinSet::new();
            let mut killed = 0;
            for id in 0..1_500 {
                calls.spawn(call(mesh.http(), kind.post(id, b"once"), id));
                sleep(Duration::from_millis(5)).await;
                let host = (id / 100 % 5) as usize;
                match id % 100 {
                    20 => world.net.weather(hosts[host].address, |weather| weather.frozen = true),
                    50 => world.net.weather(hosts[host].address, |weather| weather.frozen = false),
                    60 => {
                        hosts[host].kill();
                        killed += 1;
                    }
                    90 => hosts[host].restart(),
                    _ => {}
                }
            }
            let done = calls.join_all().await;
            let mut executed = BTreeMap::<u64, u32>::new();
            for (id, times) in hosts.iter().flat_map(|host| host.executed()) {
                *executed.entry(id).or_insert(0) += times;
            }
            let twice: Vec<_> = executed.iter().filter(|(_, times)| **times > 1).collect();
            assert!(twice.is_empty(), "{kind:?}: executed more than once: {twice:?}");
            let good = done.iter().filter(|done| done.is_ok()).count();
            assert!(good > 1_000 && killed > 10, "{kind:?}: {good} of {} succeeded", done.len());
        });
    }
}
