//! How it starts, how it does not, and how it ends.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::Read;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::calls::{client, get};
use crate::front::{Front, PATIENCE};
use crate::harness::{Bookinfo, turn};
use crate::programs::{Killed, Ran, free_network, is_running, program, wait_until};

/// SV7: Ctrl-C ends every process, the supervisor without an error, and leaves no file behind.
#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_ends_all_of_them() {
    let _turn = turn().await;
    let mut bookinfo = Bookinfo::start(&[], &[]);
    let said = bookinfo.said();
    let page = format!("http://{}/productpage", bookinfo.at(10, 9080));
    assert!(said.contains(&page) && said.matches("--bin meshctl").count() == 3, "{said}");
    assert!(bookinfo.dir().is_dir());
    assert_eq!(bookinfo.end(Signal::INT), 0, "{}", bookinfo.said());
    let left: Vec<u32> = bookinfo.pids().into_iter().filter(|pid| is_running(*pid)).collect();
    assert!(left.is_empty(), "{left:?} of {:?} still run", bookinfo.pids());
    assert!(!bookinfo.dir().exists(), "{:?} is still there", bookinfo.dir());
    assert!(!bookinfo.said().contains("killing it"), "{}", bookinfo.said());
}

/// SV7: a control plane that died is started again, and a closed terminal ends it too, without a file left behind.
#[tokio::test(flavor = "multi_thread")]
async fn a_closed_terminal_ends_all_of_them() {
    let _turn = turn().await;
    let mut bookinfo = Bookinfo::start(&[], &[]);
    bookinfo.signal("control-plane", Signal::KILL);
    let line = bookinfo.wait_for("control-plane runs again");
    let again: u32 = line.trim_end_matches('.').rsplit(' ').next().unwrap().parse().unwrap();
    assert_eq!(bookinfo.end(Signal::HUP), 0, "{}", bookinfo.said());
    let left: Vec<u32> = bookinfo.pids().into_iter().chain([again]).filter(|pid| is_running(*pid)).collect();
    assert!(left.is_empty(), "{left:?} still run");
    assert!(!bookinfo.dir().exists(), "{:?} is still there", bookinfo.dir());
}

/// A supervisor that is killed takes its processes along.
#[tokio::test(flavor = "multi_thread")]
async fn no_process_outlives_the_supervisor() {
    let _turn = turn().await;
    let mut bookinfo = Bookinfo::start(&[], &[]);
    bookinfo.end(Signal::KILL);
    let until = Instant::now() + PATIENCE;
    while bookinfo.pids().into_iter().any(is_running) {
        assert!(Instant::now() < until, "some of {:?} still run", bookinfo.pids());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    std::fs::remove_dir_all(bookinfo.dir()).unwrap();
}

/// A taken port is named, with the flag that chooses another.
#[test]
fn a_taken_port_is_named_with_its_flag() {
    let [a, b, c] = free_network();
    for (flag, last, port) in
        [("--gateway-addr", 10, 9080), ("--api-addr", 9, 15014), ("--xds-addr", 9, 15012), ("--address-base", 12, 9080)]
    {
        let at = |last: u8, port: u16| format!("{a}.{b}.{c}.{last}:{port}");
        // A process that another test is starting may hold a copy of a closed listener until it runs its program.
        let mut taken = None;
        let bound = wait_until(PATIENCE, || {
            taken = TcpListener::bind(at(last, port)).ok();
            taken.is_some()
        });
        assert!(bound, "{} stays taken", at(last, port));
        let output = Command::new(program("examples/bookinfo"))
            .args(["--gateway-addr", &at(10, 9080), "--api-addr", &at(9, 15014), "--xds-addr", &at(9, 15012)])
            .args(["--address-base", &format!("{a}.{b}.{c}.0")])
            .output()
            .unwrap();
        let ran = Ran::from(output);
        assert_eq!(ran.code, 1, "{}", ran.err);
        let said = ran.err.trim_end();
        assert!(said.contains(&port.to_string()) && said.contains(flag) && said.lines().count() == 1, "{said}");
    }
}

/// XD18: without any source of configuration a member does not start, and lists what it looked for.
#[test]
fn without_a_bootstrap_every_source_tried_is_listed() {
    let output = Command::new(program("examples/bookinfo"))
        .args(["details", "127.0.0.1:0"])
        .env_remove("GRPC_XDS_BOOTSTRAP")
        .env_remove("GRPC_XDS_BOOTSTRAP_CONFIG")
        .env_remove("MESH_MODE")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let ran = Ran::from(output);
    assert_eq!(ran.code, 1);
    for source in ["GRPC_XDS_BOOTSTRAP", "GRPC_XDS_BOOTSTRAP_CONFIG", "MESH_MODE"] {
        assert!(ran.err.contains(source), "no {source} in {}", ran.err);
    }
}

/// NR11: with `MESH_MODE=off` it serves and calls by DNS alone, after one warning.
#[tokio::test(flavor = "multi_thread")]
async fn plain_pass_through_is_chosen_on_purpose() {
    let [a, b, c] = free_network();
    let addr = format!("{a}.{b}.{c}.11:9080");
    let mut command = Command::new(program("examples/bookinfo"));
    command
        .args(["reviews", &addr])
        .envs([("MESH_MODE", "off"), ("ENABLE_RATINGS", "true"), ("RATINGS_HOSTNAME", &format!("{a}.{b}.{c}.12"))])
        .env_remove("GRPC_XDS_BOOTSTRAP")
        .env_remove("GRPC_XDS_BOOTSTRAP_CONFIG")
        .stderr(Stdio::piped());
    let mut process = Killed::start(command);
    let ratings = tokio::net::TcpListener::bind((std::net::Ipv4Addr::new(a, b, c, 12), 9080)).await.unwrap();
    let router = crate::services::ratings::router(crate::services::ratings::Behaviour::Good, || false);
    let ratings = tokio::spawn(async move { axum::serve(ratings, router).await });
    let until = Instant::now() + PATIENCE;
    let reviews = loop {
        let answer = get(&client(), &format!("http://{addr}/reviews/0"), &[]).await;
        if answer.status == 200 {
            break answer.json();
        }
        assert!(Instant::now() < until, "{answer:?}");
    };
    assert_eq!(reviews["reviews"][0]["rating"]["stars"], 5, "{reviews}");
    ratings.abort();
    process.0.kill().unwrap();
    let mut said = String::new();
    process.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said.matches("WARN").count(), 1, "{said}");
    assert!(said.contains("the mesh is off"), "{said}");
}
