//! How many instructions do planning, picking and a whole call take?
//!
//! Question: the same work as in the other benches, counted instead of timed, so that a regression shows on a noisy
//! machine: valgrind's callgrind runs this program twice a path, once with 1,000 and once with 5,000 turns, and the
//! difference is what a turn takes. System calls count nothing, so the clock is not in it. Answers are kept in `RESULTS.md`.
//!
//! `cargo bench --bench instructions` (`-- --only call` for the paths whose names have that word; needs valgrind).
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::{env, process::Command, sync::Arc};

use mesh_core::{
    cluster::Cluster, config::LoadBalancer, outcome::Outcome, pick::Ask, request::RequestView, rng::RequestRng,
    snapshot::Snapshot, time::Time,
};

use common::{
    GrpcNowhere, Nowhere, Policy, argument, call, client, client_of, grpc_call, grpc_request, mesh, read, request,
    text_argument, uris,
};

mod common;

type Path = (&'static str, fn(usize));

const PATHS: &[Path] = &[
    ("call: the loop itself", bare),
    ("call: one route", |turns| calls(turns, 1, Policy::Plain)),
    ("call: one route with timeout and retries", |turns| calls(turns, 1, Policy::Usual)),
    ("call: 1,000 virtual hosts with timeout and retries", |turns| calls(turns, 1_000, Policy::Usual)),
    ("call: the gRPC loop itself", bare_grpc),
    ("call: gRPC, one route with timeout and retries", grpc_calls),
    ("plan: one route", |turns| plans(turns, 1)),
    ("plan: 1,000 virtual hosts", |turns| plans(turns, 1_000)),
    ("pick: least request of 1,000 endpoints", |turns| picks(turns, LoadBalancer::default())),
    ("pick: round robin of 1,000 endpoints", |turns| picks(turns, LoadBalancer::RoundRobin)),
];

fn main() {
    if let Some(path) = argument("--path") {
        return PATHS[path].1(argument("--turns").unwrap());
    }
    let only = text_argument("--only").unwrap_or_default();
    println!("| path | instructions |");
    println!("|---|---|");
    for (at, (name, _)) in PATHS.iter().enumerate().filter(|(_, (name, _))| name.contains(&only)) {
        let (few, many) = (count(at, 1_000), count(at, 5_000));
        println!("| {name} | {:.0} |", (many - few) as f64 / 4_000.0);
    }
}

/// Instructions of the whole program.
fn count(path: usize, turns: usize) -> u64 {
    let run = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(env::current_exe().unwrap())
        .args(["--path", &path.to_string(), "--turns", &turns.to_string()])
        .output()
        .unwrap_or_else(|error| panic!("valgrind does not start: {error}"));
    let said = String::from_utf8_lossy(&run.stderr);
    let line = said.lines().find(|line| line.contains("Collected")).unwrap_or_else(|| panic!("{said}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

fn on_one_thread(work: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work);
}

fn bare(turns: usize) {
    let uris = uris(1);
    on_one_thread(async {
        for _ in 0..turns {
            read(std::hint::black_box(Nowhere::answer(request(&uris[0]))).into_body()).await;
        }
    });
}

fn calls(turns: usize, services: usize, policy: Policy) {
    let client = client(&mesh(services, policy, "127.0.0.1:9".parse().unwrap()));
    let uris = uris(services);
    on_one_thread(async {
        for uri in uris.iter().cycle().take(turns) {
            call(&client, uri).await;
        }
    });
}

fn bare_grpc(turns: usize) {
    let uris = uris(1);
    on_one_thread(async {
        for _ in 0..turns {
            read(std::hint::black_box(GrpcNowhere::answer(grpc_request(&uris[0]))).into_body()).await;
        }
    });
}

fn grpc_calls(turns: usize) {
    let client = client_of(&mesh(1, Policy::Usual, "127.0.0.1:9".parse().unwrap()), GrpcNowhere);
    let uris = uris(1);
    on_one_thread(async {
        for _ in 0..turns {
            grpc_call(&client, &uris[0]).await;
        }
    });
}

fn plans(turns: usize, services: usize) {
    let snapshot = Snapshot::compile(&mesh(services, Policy::Usual, "127.0.0.1:9".parse().unwrap()), None).unwrap();
    let requests: Vec<_> = uris(services).iter().map(|uri| request(uri).into_parts().0).collect();
    for (n, parts) in (0..turns).zip(requests.iter().cycle()) {
        let plan = snapshot.plan(&RequestView::of(parts, None), &mut RequestRng::new(1, n as u64)).unwrap();
        drop(std::hint::black_box(plan));
    }
}

fn picks(turns: usize, policy: LoadBalancer) {
    let addresses = (0..1_000).map(|n: u32| std::net::SocketAddr::from(([10, 0, (n >> 8) as u8, n as u8], 80)));
    let mut config = common::cluster("echo", addresses);
    config.load_balancer = policy;
    let cluster = Arc::new(Cluster::compile(&Arc::new(config), None));
    let mut rng = RequestRng::new(1, 1);
    for n in 0..turns {
        let now = Time::from_nanos(1_000 * n as u64);
        let pick = cluster.pick(&Ask::default(), now, &mut rng).unwrap();
        pick.finish(&Outcome::response(200), now);
    }
}
