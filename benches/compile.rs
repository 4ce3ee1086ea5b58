//! What does an update cost when little of it is new, and how much memory does a mesh hold?
//!
//! Question: time of `Snapshot::compile` for 1 cluster from nothing, for 10,000 clusters from nothing, and for 10,000 of
//! which nothing, one cluster or one virtual host is new, against the snapshot before, all of whose clusters are in use (a
//! cluster is compiled when it is first wanted, so that otherwise there is nothing to compile); and bytes held per cluster and
//! per endpoint, in use and not. Every case runs in every round. Answers are kept in `RESULTS.md`.
//!
//! `cargo bench --bench compile` (`-- --rounds 21 --clusters 10000` to change the size).
#![allow(missing_docs, clippy::unwrap_used)]

use std::{net::SocketAddr, sync::Arc, time::Instant};

use mesh_core::{
    config::{Config, VirtualHost},
    snapshot::Snapshot,
};

use common::{Policy, argument, cluster, mesh, name, spread};

mod common;

fn main() {
    let rounds = argument("--rounds").unwrap_or(21);
    let clusters = argument("--clusters").unwrap_or(10_000);
    let address: SocketAddr = "127.0.0.1:9".parse().unwrap();
    let config = mesh(clusters, Policy::Usual, address);
    let one = mesh(1, Policy::Usual, address);
    let before = Snapshot::compile(&config, None).unwrap();
    assert_eq!(before.clusters().len(), clusters);
    let mut times: Vec<(&str, Vec<f64>)> = vec![
        ("1 cluster from nothing, put in use", Vec::new()),
        ("all from nothing", Vec::new()),
        ("all from nothing, put in use", Vec::new()),
        ("nothing changed", Vec::new()),
        ("1 cluster changed", Vec::new()),
        ("1 cluster added", Vec::new()),
        ("1 virtual host changed", Vec::new()),
    ];
    for round in 0..=rounds {
        let configs = [
            (one.clone(), None),
            (config.clone(), None),
            (config.clone(), None),
            (config.clone(), Some(&before)),
            (with_cluster(&config, &name(clusters / 2), round), Some(&before)),
            (with_cluster(&config, "new", round), Some(&before)),
            (with_host(&config, clusters / 2), Some(&before)),
        ];
        for (at, (config, before)) in configs.iter().enumerate() {
            let start = Instant::now();
            let after = Snapshot::compile(config, *before).unwrap();
            if times[at].0.ends_with("put in use") {
                assert!(after.clusters().all(|cluster| cluster.config().failed.is_none()));
            }
            let spent = start.elapsed();
            drop(after);
            if round > 0 {
                times[at].1.push(spent.as_secs_f64() * 1e6);
            }
        }
    }
    println!("{clusters} clusters and virtual hosts, {rounds} rounds; us.\n");
    println!("| compile | us |");
    println!("|---|---|");
    for (name, times) in times {
        println!("| {name} | {} |", spread(times));
    }
    let held = |services: usize, endpoints: u32| {
        let mut config = mesh(services, Policy::Usual, address);
        for cluster in config.clusters.values_mut() {
            *cluster = Arc::new(with_endpoints(&cluster.name, endpoints));
        }
        let mut kept = None;
        let idle = allocation_counter::measure(|| kept = Some(Snapshot::compile(&config, None).unwrap()));
        let in_use = allocation_counter::measure(|| {
            let clusters = kept.iter().flat_map(|snapshot| snapshot.clusters());
            assert_eq!(clusters.count(), services);
        });
        [idle.bytes_current as f64, in_use.bytes_current as f64]
    };
    let (few, more, wide) = (held(1_000, 1), held(2_000, 1), held(1_000, 11));
    println!("\nBytes held by a snapshot, beside its configuration:");
    for (at, what) in ["", ", more once it is in use"].into_iter().enumerate() {
        println!("{:.0} a cluster with its virtual host and one endpoint{what}", (more[at] - few[at]) / 1_000.0);
        println!("{:.0} a further endpoint{what}", (wide[at] - few[at]) / 10_000.0);
    }
}

fn with_endpoints(name: &str, endpoints: u32) -> mesh_core::config::Cluster {
    cluster(name, (0..endpoints).map(|n| SocketAddr::from(([10, 0, (n >> 8) as u8, n as u8], 80))))
}

fn with_cluster(config: &Config, name: &str, round: usize) -> Config {
    let mut config = config.clone();
    config.clusters.insert(name.into(), Arc::new(with_endpoints(name, 2 + round as u32 % 2)));
    config
}

fn with_host(config: &Config, at: usize) -> Config {
    let mut config = config.clone();
    let mut table = (*config.outbound[&80]).clone();
    let host = VirtualHost { retry: Some(Default::default()), ..(*table.virtual_hosts[at]).clone() };
    table.virtual_hosts[at] = Arc::new(host);
    config.outbound.insert(80, Arc::new(table));
    config
}
