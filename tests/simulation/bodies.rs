//! What arrives is whole, and what may run once runs once: the claims E4 and R5 of the reliability plan.

use std::{collections::BTreeMap, sync::atomic::Ordering::Relaxed, time::Duration};

use http::Request;
use mesh_tower::{Body, config::RetryPolicy};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    net::Cut,
    upstream::{Script, amounts_to},
    world::{Kind, World, call, config_of, mesh_of, outliers, simulate},
};

/// Bytes of a body, where it is longer than a few.
const LENGTH: usize = 3_000;

/// E4: connections cut at any byte, by a reset or as if the server had finished: an answer is whole or it is an error. The servers are
/// any on hyper, and members of the mesh.
#[test]
fn a_short_body_is_never_a_success() {
    for (kind, sized, reset, member) in with_all(|kind, [sized, reset, member]| (kind, sized, reset, member)) {
        simulate(3, async |world| {
            let script = Script { length: LENGTH, sized, member, ..Script::default() };
            let hosts = world.upstreams(3, script);
            for host in &hosts {
                world.net.weather(host.address, |weather| {
                    weather.cut = Some(Cut { within: 3 * LENGTH as u64, reset, upload: false });
                    weather.loss = 10;
                });
            }
            let mesh = world.member(config_of(mesh_of(3, kind)), 0).await;
            let done = world.load(&mesh.http(), kind, 100, Duration::from_secs(4), 0).await;
            for done in done.iter().filter(|done| done.is_ok()) {
                let whole = kind.framed(&amounts_to(done.id, LENGTH));
                assert!(done.body == whole, "{kind:?}, member {member}: {} of {LENGTH} bytes", done.body.len());
            }
            let good = done.iter().filter(|done| done.is_ok()).count();
            let cut = cuts(&world);
            assert!(good > 40 && cut > 100, "{kind:?}, member {member}: {good} whole of {}, {cut} cuts", done.len());
        });
    }
}

/// E4: a handler, of a member or of any server, whose answer breaks off: its caller has an error, wherever that was and whether or not
/// the length was told.
#[test]
fn an_answer_that_breaks_off_is_no_success() {
    for (kind, sized, member) in with_all(|kind, [sized, member]| (kind, sized, member)) {
        for after in [0, 1, 1_000, 1_500, LENGTH - 1, LENGTH + 5] {
            // With all the bytes that were told there is nothing left to break off, but for HTTP/2 and its end of stream.
            if sized && after > LENGTH {
                continue;
            }
            simulate(4, async |world| {
                let script = Script { length: LENGTH, sized, member, breaks: Some(after), ..Script::default() };
                let hosts = world.upstreams(3, script);
                let mesh = world.member(config_of(mesh_of(3, kind)), 0).await;
                let done = world.load(&mesh.http(), kind, 100, Duration::from_millis(400), 0).await;
                let whole = done.iter().find(|done| done.is_ok());
                assert!(whole.is_none(), "{kind:?}, member {member}, after {after}: {whole:?}");
                let begun = done.iter().filter(|done| done.host != 0).count();
                assert!(after == 0 || begun > 0, "{kind:?}, member {member}, after {after}: answers have begun");
                assert!(hosts.iter().any(|host| host.arrived() > 0));
            });
        }
    }
}

/// E4: requests cut at any byte, by a reset or as if the caller had finished: who executes one has the whole of it, and the caller has
/// an answer or an error; whether or not their length was told, at any server and at members.
#[test]
fn a_short_request_is_never_executed() {
    for (kind, streamed, reset, member) in with_all(|kind, [streamed, reset, member]| (kind, streamed, reset, member)) {
        simulate(7, async |world| {
            let hosts = world.upstreams(3, Script { member, compares: true, ..Script::default() });
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
                calls.spawn(call(mesh.http(), upload(kind, id, LENGTH, streamed), id));
                sleep(Duration::from_millis(10)).await;
            }
            let done = calls.join_all().await;
            let at = format!("{kind:?}, streamed {streamed}, member {member}");
            let whole = kind.framed(&amounts_to(0, LENGTH)).len();
            let lengths: Vec<_> = hosts.iter().flat_map(|host| host.lengths()).collect();
            assert!(lengths.iter().all(|length| *length == whole), "{at}: {lengths:?}");
            assert!(hosts.iter().all(|host| host.altered() == 0), "{at}: other bytes than were sent");
            let (good, cut) = (done.iter().filter(|done| done.is_ok()).count(), cuts(&world));
            assert!(good <= lengths.len(), "{at}: {good} answered of {} executed", lengths.len());
            assert!(good > 40 && cut > 40, "{at}: {good} of {} answered, {cut} cuts", done.len());
        });
    }
}

/// E4, RT12: a request whose body fails in the caller's own hands, at any byte of it, is executed nowhere, however often it may be tried
/// again, and fails.
#[test]
fn a_request_that_breaks_off_is_never_executed() {
    for (kind, told, member) in with_all(|kind, [told, member]| (kind, told, member)) {
        for after in [0, 1, 1_000, 1_500, LENGTH - 1, LENGTH + 5] {
            // With all the bytes that were told the request is there.
            if told && after > LENGTH {
                continue;
            }
            simulate(8, async |world| {
                let hosts = world.upstreams(3, Script { member, ..Script::default() });
                let (cluster, mut forward) = mesh_of(3, kind);
                forward.timeout = Some(Duration::from_secs(2));
                let mesh = world.member(config_of((cluster, forward)), 0).await;
                let mut calls = JoinSet::new();
                for id in 0..20 {
                    let request = kind.break_off(id, &amounts_to(id, LENGTH), after, told);
                    calls.spawn(call(mesh.http(), kind.repeatable(request), id));
                    sleep(Duration::from_millis(10)).await;
                }
                let done = calls.join_all().await;
                let at = format!("{kind:?}, length told {told}, member {member}, after {after}");
                let good = done.iter().find(|done| done.is_ok());
                assert!(good.is_none(), "{at}: {good:?}");
                let lengths: Vec<_> = hosts.iter().flat_map(|host| host.lengths()).collect();
                assert!(lengths.is_empty(), "{at}: executed with {lengths:?} bytes");
                assert!(hosts.iter().all(|host| host.executed().is_empty()), "{at}");
                // A connection on which a request broke off harms no other.
                let next = call(mesh.http(), kind.post(99, &amounts_to(99, LENGTH)), 99).await;
                assert!(next.is_ok(), "{at}: {next:?}");
            });
        }
    }
}

/// R5, RT12: uploads that are cut are sent again where they may be, told and streamed: whoever executes one, the first time or
/// again, has the bytes of the caller.
#[test]
fn a_replay_has_the_same_bytes() {
    // Several frames and several reads, and less than is kept for sending it again.
    const LONG: usize = 20_000;
    for (kind, streamed, member) in with_all(|kind, [streamed, member]| (kind, streamed, member)) {
        simulate(9, async |world| {
            let hosts = world.upstreams(3, Script { member, compares: true, ..Script::default() });
            for host in &hosts {
                world.net.weather(host.address, |weather| {
                    weather.cut = Some(Cut { within: 6 * LONG as u64, reset: true, upload: true });
                });
            }
            let (mut cluster, mut forward) = mesh_of(3, kind);
            cluster.connect_timeout = Duration::from_millis(500);
            forward.timeout = Some(Duration::from_secs(5));
            let (mesh, tries) = world.counted(config_of((cluster, forward)), 0).await;
            let mut calls = JoinSet::new();
            for id in 0..300 {
                let request = kind.repeatable(upload(kind, id, LONG, streamed));
                calls.spawn(call(mesh.http(), request, id));
                sleep(Duration::from_millis(20)).await;
            }
            let done = calls.join_all().await;
            let at = format!("{kind:?}, streamed {streamed}, member {member}");
            let lengths: Vec<_> = hosts.iter().flat_map(|host| host.lengths()).collect();
            let whole = kind.framed(&amounts_to(0, LONG)).len();
            assert!(lengths.iter().all(|length| *length == whole), "{at}: {lengths:?}");
            assert!(hosts.iter().all(|host| host.altered() == 0), "{at}: other bytes than were sent");
            let good = done.iter().filter(|done| done.is_ok()).count();
            let tries = tries.load(Relaxed);
            assert!(tries >= 310, "{at}: {tries} tries of {} requests, {} cuts", done.len(), cuts(&world));
            assert!(good > 150, "{at}: {good} of {} succeeded", done.len());
        });
    }
}

/// R5: whatever breaks, a call that is not idempotent is executed once at most; and most succeed all the same. Answers are cut and
/// uploads, hosts freeze, die and go in good order, bodies are streamed and told.
#[test]
fn what_may_run_once_runs_once() {
    for kind in Kind::ALL {
        simulate(5, async |world| {
            let script = Script { jitter: Duration::from_millis(20), failing: 50, ..Script::default() };
            let mut hosts = world.upstreams(5, script);
            for (n, host) in hosts.iter().enumerate() {
                let upload = n % 2 == 1;
                world.net.weather(host.address, |weather| {
                    weather.cut = Some(Cut { within: if upload { 20_000 } else { 4_000 }, reset: true, upload });
                    weather.loss = 5;
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
            let (mut killed, mut drained) = (0, 0);
            for id in 0..2_500 {
                calls.spawn(call(mesh.http(), upload(kind, id, 500, id % 2 == 0), id));
                sleep(Duration::from_millis(5)).await;
                let host = (id / 100 % 5) as usize;
                let other = (host + 2) % 5;
                match id % 100 {
                    20 => world.net.weather(hosts[host].address, |weather| weather.frozen = true),
                    50 => world.net.weather(hosts[host].address, |weather| weather.frozen = false),
                    60 => {
                        hosts[host].kill();
                        killed += 1;
                    }
                    75 => {
                        // Who is still being answered after that is left in the lurch.
                        let limit = Duration::from_millis(500);
                        drained += u64::from(timeout(limit, hosts[other].drain()).await.is_ok());
                    }
                    85 => hosts[other].restart(),
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
            assert!(killed > 20 && drained > 10, "{kind:?}: {killed} died, {drained} went in good order");
            assert!(good * 2 > done.len(), "{kind:?}: {good} of {} succeeded", done.len());
        });
    }
}

/// Every kind with every combination of so many yeses and noes.
fn with_all<const N: usize, T>(of: impl Fn(Kind, [bool; N]) -> T) -> Vec<T> {
    let words = (0..1_usize << N).map(|bits| std::array::from_fn::<bool, N, _>(|at| (bits >> at) & 1 == 1));
    words.flat_map(|word| Kind::ALL.map(|kind| of(kind, word))).collect()
}

/// A call that carries what its id amounts to.
fn upload(kind: Kind, id: u64, length: usize, streamed: bool) -> Request<Body> {
    match streamed {
        true => kind.stream(id, &amounts_to(id, length)),
        false => kind.post(id, &amounts_to(id, length)),
    }
}

/// How many connections were cut.
fn cuts(world: &World) -> usize {
    world.trace.events().iter().filter(|event| event.what == "cut").count()
}
