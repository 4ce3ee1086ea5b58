//! What does picking an endpoint cost, and does it grow with the number of endpoints or of threads?
//!
//! Question: CPU per pick (taken and let go of) among 10, 1,000 and 100,000 endpoints, for every policy, by 1, 2 and 8
//! threads that share the cluster. Every cell runs in every round. Answers are kept in `RESULTS.md`.
//!
//! `cargo bench --bench pick` (`-- --rounds 7 --picks 200000` to change the size, `--only maglev` for one policy).
#![allow(missing_docs, clippy::unwrap_used)]

use std::{net::SocketAddr, sync::Arc, time::Duration};

use cpu_time::ThreadTime;
use mesh_core::{
    cluster::Cluster,
    config::{LoadBalancer, Thresholds},
    pick::Ask,
    rng::RequestRng,
    time::Time,
};
use rand::RngCore;
use serde_json::json;

use common::{argument, cluster, median, text_argument};

mod common;

const SIZES: [u32; 3] = [10, 1_000, 100_000];
const THREADS: [usize; 3] = [1, 2, 8];

fn main() {
    let rounds = argument("--rounds").unwrap_or(5);
    let picks = argument("--picks").unwrap_or(100_000);
    let only = text_argument("--only").unwrap_or_default();
    let policies = [
        ("round robin", json!("round_robin")),
        ("round robin by weight", json!("round_robin")),
        ("random", json!("random")),
        ("least request (P2C)", json!({"least_request": {"choices": 2}})),
        ("least request (P2C) by weight", json!({"least_request": {"choices": 2}})),
        ("peak EWMA (P2C)", json!("peak_ewma")),
        ("ring hash, 1,024 entries at least", json!({"ring_hash": {}})),
        ("maglev, 65,537 slots", json!({"maglev": {}})),
        ("client-side weighted round robin", json!({"client_weighted": {}})),
    ];
    println!("{picks} picks a round, {rounds} rounds; median CPU ns a pick with 1 / 2 / 8 threads.\n");
    println!("| policy | 10 | 1,000 | 100,000 | 100,000 x 10, 1 thread |");
    println!("|---|---|---|---|---|");
    for (name, policy) in policies.into_iter().filter(|(name, _)| name.contains(&only)) {
        let Ok(policy) = serde_json::from_value::<LoadBalancer>(policy) else {
            println!("| {name} | - | - | - | - |");
            continue;
        };
        let clusters = SIZES.map(|size| compiled(size, &policy, name.ends_with("by weight")));
        let mut cells: Vec<Vec<f64>> = vec![Vec::new(); SIZES.len() * THREADS.len()];
        for round in 0..=rounds {
            for step in 0..cells.len() {
                let at = (round + step) % cells.len();
                let cost = run(&clusters[at / THREADS.len()], THREADS[at % THREADS.len()], picks);
                if round > 0 {
                    cells[at].push(cost);
                }
            }
        }
        let growth = cells[6].iter().zip(&cells[0]).map(|(many, few)| many / few).collect();
        let text = |row: &[Vec<f64>]| {
            row.iter().map(|cell| format!("{:.0}", median(cell.clone()))).collect::<Vec<_>>().join(" / ")
        };
        let columns: Vec<_> = cells.chunks(THREADS.len()).map(text).collect();
        println!("| {name} | {} | {:.2} |", columns.join(" | "), median(growth));
    }
}

fn compiled(size: u32, policy: &LoadBalancer, by_weight: bool) -> Arc<Cluster> {
    let addresses = (0..size).map(|n| SocketAddr::from(([10, (n >> 16) as u8, (n >> 8) as u8, n as u8], 80)));
    let mut config = cluster("echo", addresses);
    if by_weight {
        let endpoints =
            Arc::make_mut(&mut config.endpoints).localities.iter_mut().flat_map(|group| &mut group.endpoints);
        endpoints.zip((1..=4).cycle()).for_each(|(endpoint, weight)| endpoint.weight = weight);
    }
    config.load_balancer = policy.clone();
    config.thresholds = Thresholds { max_requests: u32::MAX, ..config.thresholds };
    Arc::new(Cluster::compile(&Arc::new(config), None))
}

/// CPU nanoseconds a pick, on all threads together.
fn run(cluster: &Arc<Cluster>, threads: usize, picks: usize) -> f64 {
    let each = picks / threads;
    let spent: Duration = std::thread::scope(|scope| {
        let work = |thread: usize| {
            let start = ThreadTime::now();
            let mut rng = RequestRng::new(1, thread as u64);
            for n in 0..each {
                let ask = Ask { hash: Some(rng.next_u64()), ..Ask::default() };
                let now = Time::from_nanos(1_000 * n as u64);
                drop(std::hint::black_box(cluster.pick(&ask, now, &mut rng).unwrap()));
            }
            start.elapsed()
        };
        let running: Vec<_> = (0..threads).map(|thread| scope.spawn(move || work(thread))).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    spent.as_secs_f64() * 1e9 / (each * threads) as f64
}
