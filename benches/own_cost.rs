//! What does the mesh itself cost, when the endpoint costs nothing?
//!
//! Question: CPU per request of the whole client stack (routing, telemetry, timeout, retry, balancing) above an endpoint
//! that answers from memory: with one route that says nothing, with one that has a timeout and a retry policy, with 1,000
//! virtual hosts of that kind asked in turn, and for gRPC; and how much faster 16 tasks on 2 threads are than one task.
//! The same loop without the mesh (making the request, reading the answer) is measured beside each and taken off; run by
//! 16 tasks as well, it says what the machine's second thread is worth. All in one run, every path once a round in
//! rotated order. Answers are kept in `RESULTS.md`.
//!
//! `cargo bench --bench own_cost` (`-- --rounds 7 --requests 200000` to change the size).
#![allow(missing_docs, clippy::unwrap_used)]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use cpu_time::{ProcessTime, ThreadTime};
use http::Uri;
use mesh_tower::HttpClient;

use common::{
    GrpcNowhere, Nowhere, Policy, argument, call, client, client_of, grpc_call, grpc_request, median, mesh, read,
    request, spread, uris,
};

mod common;

/// One way through the stack, and the hosts it is asked for.
struct Path {
    name: &'static str,
    services: usize,
    client: Client,
    /// The same loop without the mesh.
    floor: Client,
}

#[derive(Clone)]
enum Client {
    Http(HttpClient<Nowhere>),
    Grpc(HttpClient<GrpcNowhere>),
    Bare,
    BareGrpc,
}

impl Client {
    async fn call(&self, uri: &Uri) {
        match self {
            Self::Http(client) => call(client, uri).await,
            Self::Grpc(client) => grpc_call(client, uri).await,
            Self::Bare => read(std::hint::black_box(Nowhere::answer(request(uri))).into_body()).await,
            Self::BareGrpc => read(std::hint::black_box(GrpcNowhere::answer(grpc_request(uri))).into_body()).await,
        }
    }
}

fn paths() -> Vec<Path> {
    let config = |services, policy| mesh(services, policy, "127.0.0.1:9".parse().unwrap());
    let http = |name, services, policy| {
        let client = Client::Http(client(&config(services, policy)));
        Path { name, services, client, floor: Client::Bare }
    };
    let grpc = Client::Grpc(client_of(&config(1, Policy::Usual), GrpcNowhere));
    vec![
        http("one route", 1, Policy::Plain),
        http("one route with timeout and retries", 1, Policy::Usual),
        http("1,000 virtual hosts with timeout and retries", 1_000, Policy::Usual),
        Path { name: "gRPC: one route with timeout and retries", services: 1, client: grpc, floor: Client::BareGrpc },
    ]
}

fn main() {
    let rounds = argument("--rounds").unwrap_or(7);
    let requests = argument("--requests").unwrap_or(100_000);
    let paths = paths();
    let hosts: Vec<Vec<Uri>> = paths.iter().map(|path| uris(path.services)).collect();
    let (mut own, mut bare) = (vec![Vec::new(); paths.len()], vec![Vec::new(); paths.len()]);
    for round in 0..=rounds {
        for step in 0..paths.len() {
            let at = (round + step) % paths.len();
            let floor = one_thread(requests, &hosts[at], &paths[at].floor);
            let cost = one_thread(requests, &hosts[at], &paths[at].client);
            // The first round warms caches.
            if round > 0 {
                own[at].push(cost - floor);
                bare[at].push(floor);
            }
        }
    }
    println!("One task, {requests} requests a round, {rounds} rounds; CPU us/request.\n");
    println!("| path | the loop itself | own CPU us/request | x one route with timeout and retries |");
    println!("|---|---|---|---|");
    for (at, path) in paths.iter().enumerate() {
        let ratios = own[at].iter().zip(&own[1]).map(|(cost, one)| cost / one).collect();
        println!("| {} | {} | {} | {} |", path.name, spread(bare[at].clone()), spread(own[at].clone()), spread(ratios));
    }
    println!("\n| path | 16 tasks on 2 threads, requests/s x one task | CPU x one task |\n|---|---|---|");
    let loops = Path { name: "the loop itself", services: 1, client: Client::Bare, floor: Client::Bare };
    for path in std::iter::once(&loops).chain(&paths) {
        let (mut faster, mut cpu) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let (alone, alone_cpu) = tasks(1, 1, requests, path);
            let (many, many_cpu) = tasks(2, 16, requests, path);
            faster.push(alone.as_secs_f64() / many.as_secs_f64());
            cpu.push(many_cpu.as_secs_f64() / alone_cpu.as_secs_f64());
        }
        println!("| {} | {} | {:.2} |", path.name, spread(faster), median(cpu));
    }
}

/// CPU microseconds a request, on this thread.
fn one_thread(requests: usize, uris: &[Uri], client: &Client) -> f64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let cpu = ThreadTime::now();
        for uri in uris.iter().cycle().take(requests) {
            client.call(uri).await;
        }
        cpu.elapsed().as_secs_f64() * 1e6 / requests as f64
    })
}

/// Wall and CPU time for all requests, by that many tasks on that many threads.
fn tasks(threads: usize, tasks: usize, requests: usize, path: &Path) -> (Duration, Duration) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build().unwrap();
    // Each task names hosts in memory of its own: what callers share is not the mesh's cost.
    let own: Vec<_> = (0..tasks).map(|_| (path.client.clone(), Arc::new(uris(path.services)))).collect();
    runtime.block_on(async {
        let (start, cpu) = (Instant::now(), ProcessTime::now());
        let workers: Vec<_> = own
            .into_iter()
            .enumerate()
            .map(|(task, (client, uris))| {
                tokio::spawn(async move {
                    for (n, uri) in uris.iter().cycle().skip(task).take(requests / tasks).enumerate() {
                        client.call(uri).await;
                        // As a request that goes anywhere does, so that tasks take turns.
                        if n % 64 == 63 {
                            tokio::task::yield_now().await;
                        }
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.await.unwrap();
        }
        (start.elapsed(), cpu.elapsed())
    })
}
