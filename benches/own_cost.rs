//! What does the mesh itself cost, when the endpoint costs nothing?
//!
//! Question: CPU per request of the whole client stack (routing, telemetry, timeout, retry, balancing) above an endpoint
//! that answers from memory: with one route that says nothing, with one that has a timeout and a retry policy, and with
//! 1,000 virtual hosts of that kind asked in turn; and how much faster 16 tasks on 2 threads are than one task. The
//! same loop without the mesh (making the request, reading the answer) is measured beside it and taken off. All in one
//! run, every path once a round in rotated order. Answers are kept in `RESULTS.md`.
//!
//! `cargo bench --bench own_cost` (`-- --rounds 7 --requests 200000` to change the size).
#![allow(missing_docs, clippy::unwrap_used)]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use cpu_time::{ProcessTime, ThreadTime};
use mesh_tower::HttpClient;

use common::{Nowhere, Policy, argument, call, client, median, mesh, read, request, spread, uris};

mod common;

const PATHS: [(&str, usize, Policy); 3] = [
    ("one route", 1, Policy::Plain),
    ("one route with timeout and retries", 1, Policy::Usual),
    ("1,000 virtual hosts with timeout and retries", 1_000, Policy::Usual),
];

fn main() {
    let rounds = argument("--rounds").unwrap_or(7);
    let requests = argument("--requests").unwrap_or(100_000);
    let address = "127.0.0.1:9".parse().unwrap();
    let beds: Vec<_> = PATHS
        .iter()
        .map(|(_, services, policy)| (client(&mesh(*services, *policy, address)), Arc::new(uris(*services))))
        .collect();
    let mut own: Vec<Vec<f64>> = vec![Vec::new(); beds.len()];
    let mut bare = Vec::new();
    for round in 0..=rounds {
        let floor = one_thread(requests, &beds[0].1, None);
        if round > 0 {
            bare.push(floor);
        }
        for step in 0..beds.len() {
            let at = (round + step) % beds.len();
            let cost = one_thread(requests, &beds[at].1, Some(&beds[at].0));
            if round > 0 {
                own[at].push(cost - floor);
            }
        }
    }
    println!("One task, {requests} requests a round, {rounds} rounds; CPU us/request.\n");
    println!("| path | own CPU us/request | x one route |");
    println!("|---|---|---|");
    println!("| the loop itself (taken off below) | {} | |", spread(bare));
    for (at, (name, ..)) in PATHS.iter().enumerate() {
        let ratios = own[at].iter().zip(&own[1]).map(|(cost, one)| cost / one).collect();
        println!("| {name} | {} | {} |", spread(own[at].clone()), spread(ratios));
    }
    println!();
    for ((name, ..), (client, uris)) in PATHS.iter().zip(&beds) {
        let mut faster = Vec::new();
        let mut cpu = Vec::new();
        for _ in 0..rounds {
            let (alone, alone_cpu) = tasks(1, 1, requests, client, uris);
            let (many, many_cpu) = tasks(2, 16, requests, client, uris);
            faster.push(alone.as_secs_f64() / many.as_secs_f64());
            cpu.push(many_cpu.as_secs_f64() / alone_cpu.as_secs_f64());
        }
        println!(
            "{name}: 16 tasks on 2 threads do {:.2} x the requests/s of one task ({}), at {:.2} x its CPU a request",
            median(faster.clone()),
            spread(faster),
            median(cpu)
        );
    }
}

/// CPU microseconds a request, on this thread; without the client, of the loop alone.
fn one_thread(requests: usize, uris: &[http::Uri], client: Option<&HttpClient<Nowhere>>) -> f64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let cpu = ThreadTime::now();
        for uri in uris.iter().cycle().take(requests) {
            match client {
                Some(client) => call(client, uri).await,
                None => bare(uri).await,
            }
        }
        cpu.elapsed().as_secs_f64() * 1e6 / requests as f64
    })
}

async fn bare(uri: &http::Uri) {
    let response = std::hint::black_box(Nowhere::answer(request(uri)));
    read::<http_body_util::Full<Bytes>>(response.into_body()).await;
}

/// Wall and CPU time for all requests, by that many tasks on that many threads.
fn tasks(
    threads: usize,
    tasks: usize,
    requests: usize,
    client: &HttpClient<Nowhere>,
    uris: &Arc<Vec<http::Uri>>,
) -> (Duration, Duration) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build().unwrap();
    runtime.block_on(async {
        let (start, cpu) = (Instant::now(), ProcessTime::now());
        let workers: Vec<_> = (0..tasks)
            .map(|task| {
                let (client, uris) = (client.clone(), Arc::clone(uris));
                tokio::spawn(async move {
                    for (n, uri) in uris.iter().cycle().skip(task).take(requests / tasks).enumerate() {
                        call(&client, uri).await;
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
