//! The control plane is killed, flaps, hangs, trickles or is something else altogether.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    harness::{Kind, Upstream},
    plane::{Killable, Load, RECOVERY, Sayings, anywhere, leading_to, program, reaches, set, stands},
};

/// XD9: the control plane is killed and comes back with news: nothing fails, the status says since when and why, and the news
/// is in force within two seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_plane_may_be_killed() {
    for kind in Kind::ALL {
        let (one, two) = (Upstream::start("one").await, Upstream::start("two").await);
        let sayings = Sayings::of(&leading_to(kind, &one));
        let plane = sayings.speak(anywhere());
        let address = plane.address;
        let program = program(kind, address, None).await;
        reaches(&program, "one").await;
        let load = Load::on(&program);
        drop(plane);
        let status = stands(&program, |status| status["connected_since"].is_null()).await;
        assert!(status["error"].as_str().is_some_and(|why| why.lines().count() == 1), "{status}");
        sleep(Duration::from_millis(700)).await;
        sayings.say(set(&leading_to(kind, &two)));
        let _plane = sayings.speak(address);
        let took = reaches(&program, "two").await;
        assert!(took < RECOVERY, "{kind:?}: {took:?}");
        load.went_well().await;
        stands(&program, |status| status["error"].is_null() && !status["connected_since"].is_null()).await;
    }
}

/// XD8, XD9: a control plane that comes and goes every second: nothing fails, and what it says last is followed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_plane_may_flap() {
    let times = if std::env::var_os("MESH_LONG").is_some() { 60 } else { 8 };
    let upstreams = [Upstream::start("one").await, Upstream::start("two").await];
    let mut members = Vec::new();
    for kind in Kind::ALL {
        let sayings = Sayings::of(&leading_to(kind, &upstreams[0]));
        let plane = sayings.speak(anywhere());
        let program = program(kind, plane.address, None).await;
        reaches(&program, "one").await;
        members.push((kind, sayings, plane.address, Some(plane), Load::on(&program), program));
    }
    for turn in 1..=times {
        for (kind, sayings, _, plane, ..) in &mut members {
            drop(plane.take());
            sayings.say(set(&leading_to(*kind, &upstreams[turn % 2])));
        }
        sleep(Duration::from_millis(500)).await;
        for (_, sayings, address, plane, ..) in &mut members {
            *plane = Some(sayings.speak(*address));
        }
        sleep(Duration::from_millis(500)).await;
    }
    for (kind, _, _, _plane, load, program) in members {
        let took = reaches(&program, upstreams[times % 2].name).await;
        assert!(took < RECOVERY, "{kind:?}: {took:?}");
        load.went_well().await;
    }
}

/// XD9: in the place of the control plane something accepts and never answers, or answers with noise: what is known is served,
/// the status says what came, and the control plane is followed once it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn something_else_may_answer() {
    for kind in Kind::ALL {
        let (one, two) = (Upstream::start("one").await, Upstream::start("two").await);
        let sayings = Sayings::of(&leading_to(kind, &one));
        let mut plane = sayings.speak(anywhere());
        let address = plane.address;
        let program = program(kind, address, None).await;
        reaches(&program, "one").await;
        for (turn, strange) in [silent as fn(SocketAddr) -> Killable, noisy].into_iter().enumerate() {
            let load = Load::on(&program);
            drop(plane);
            let other = strange(address);
            let status = stands(&program, |status| status["connected_since"].is_null()).await;
            assert!(status["error"].is_string(), "{status}");
            sleep(Duration::from_millis(1_500)).await;
            assert!(stands(&program, |_| true).await["connected_since"].is_null());
            drop(other);
            let (next, name) = if turn == 0 { (&two, "two") } else { (&one, "one") };
            sayings.say(set(&leading_to(kind, next)));
            plane = sayings.speak(address);
            let took = reaches(&program, name).await;
            assert!(took < RECOVERY, "{kind:?} {turn}: {took:?}");
            load.went_well().await;
        }
    }
}

/// XD9: answers that come a few bytes at a time are used when they are whole, and delay nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_plane_may_be_slow() {
    for kind in Kind::ALL {
        let (one, two) = (Upstream::start("one").await, Upstream::start("two").await);
        let sayings = Sayings::of(&leading_to(kind, &one));
        let plane = sayings.speak(anywhere());
        let slow = trickle(plane.address);
        let program = program(kind, slow.address, None).await;
        reaches(&program, "one").await;
        let load = Load::on(&program);
        sayings.say(set(&leading_to(kind, &two)));
        let began = Instant::now();
        reaches(&program, "two").await;
        assert!(began.elapsed() > Duration::from_millis(50), "it was not slow");
        load.went_well().await;
    }
}

/// Accepts, and never answers.
fn silent(address: SocketAddr) -> Killable {
    Killable::start(address, |listener| async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
        }
    })
}

/// Answers with bytes that are no protocol.
fn noisy(address: SocketAddr) -> Killable {
    Killable::start(address, |listener| async move {
        let noise: Vec<u8> = (0..65_536_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(&noise).await;
        }
    })
}

/// Passes on what goes through it, downstream 64 bytes at a time.
fn trickle(to: SocketAddr) -> Killable {
    Killable::start(anywhere(), move |listener: TcpListener| async move {
        let mut connections = JoinSet::new();
        while let Ok((near, _)) = listener.accept().await {
            let Ok(far) = TcpStream::connect(to).await else { continue };
            let ((from_near, to_near), (from_far, to_far)) = (near.into_split(), far.into_split());
            connections.spawn(pass(from_near, to_far, 65_536, Duration::ZERO));
            connections.spawn(pass(from_far, to_near, 64, Duration::from_millis(4)));
        }
    })
}

async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, piece: usize, pause: Duration) {
    let mut buffer = vec![0; piece];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
        sleep(pause).await;
    }
}
