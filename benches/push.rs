//! What does one changed rule cost a control plane that many are connected to?
//!
//! Question: with 10,000 connected clients in 100 namespaces and 1,000 services, how long from the change until the last
//! stream that it concerns has its message encoded, how much processor time is spent, who hears, and how many bytes go
//! out, for a VirtualService of one namespace, one for all, a new endpoint and a DestinationRule; what connecting them all
//! takes, and what a stream holds in memory. Streams are in memory: each is what the control plane gives a real one, with the
//! server's machine behind it, asked for everything as a sidecar does. Answers are kept in `RESULTS.md`.
//!
//! `cargo bench --bench push` (`-- --clients 10000 --services 1000 --namespaces 100 --rounds 5` to change the size).
#![allow(missing_docs, clippy::unwrap_used)]

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use cpu_time::ProcessTime;
use mesh_control::{ControlPlane, push::Push, store::SourceFile};
use mesh_xds::{
    ads::{Request, ResourceSet, TypeUrl, server::Sotw},
    node::Node,
    server::{ConnectionId, Peer, Source},
};
use serde_json::json;
use tokio::sync::watch;

use common::{argument, spread};

mod common;

struct Stream {
    id: ConnectionId,
    view: watch::Receiver<Arc<ResourceSet>>,
    machine: Sotw,
}

struct Size {
    clients: usize,
    services: usize,
    namespaces: usize,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let size = Size {
        clients: argument("--clients").unwrap_or(10_000),
        services: argument("--services").unwrap_or(1_000),
        namespaces: argument("--namespaces").unwrap_or(100),
    };
    let rounds = argument("--rounds").unwrap_or(5);
    let any = "127.0.0.1:0".parse().unwrap();
    let plane = ControlPlane::builder().xds_addr(any).api_addr(any).start().await.unwrap();
    let services: Vec<String> = (0..size.services).map(|n| service(&size, n)).collect();
    apply(&plane, services.join("---\n"));

    let before = resident();
    let (began, cpu) = (Instant::now(), ProcessTime::now());
    let source = plane.source();
    let mut streams: Vec<Stream> = (0..size.clients).map(|n| connect(&source, &size, n)).collect();
    let first = began.elapsed();
    while quiet(&mut streams).await > 0 {}
    println!(
        "{} clients, {} services, {} namespaces, {rounds} rounds.\n\nAll connected and answered after {:.2} s, with all \
         endpoints after {:.2} s ({:.2} s of processor); {:.1} MiB, {:.1} KiB a stream.\n",
        size.clients,
        size.services,
        size.namespaces,
        first.as_secs_f64(),
        began.elapsed().as_secs_f64(),
        cpu.elapsed().as_secs_f64(),
        (resident() - before) / 1024.0,
        (resident() - before) / size.clients as f64,
    );
    println!("| change | streams that heard | KiB sent | ms to the last | ms of processor |");
    println!("|---|---|---|---|---|");
    type Change = fn(usize) -> String;
    let changes: [(&str, Change); 4] = [
        ("a VirtualService for its own namespace", |n| rule(n, "exportTo: [\".\"]")),
        ("a VirtualService for all", |n| rule(n, "")),
        ("a WorkloadEntry: one endpoint more", endpoint),
        ("a DestinationRule for all", destination_rule),
    ];
    for (name, change) in changes {
        let (mut heard, mut bytes, mut wall, mut spent) = (0, 0, Vec::new(), Vec::new());
        for round in 0..=rounds {
            let (began, cpu) = (Instant::now(), ProcessTime::now());
            apply(&plane, change(round));
            let answered = settle(&mut streams).await;
            if round > 0 {
                (heard, bytes) = (answered.streams, answered.bytes);
                wall.push((answered.last - began).as_secs_f64() * 1e3);
                spent.push(cpu.elapsed().as_secs_f64() * 1e3);
            }
        }
        println!("| {name} | {heard} | {:.1} | {} | {} |", bytes as f64 / 1024.0, spread(wall), spread(spent));
    }
    for stream in streams {
        source.disconnect(stream.id);
    }
}

struct Answered {
    streams: usize,
    bytes: usize,
    last: Instant,
}

/// Runs the streams that hear something until none has for a while.
async fn settle(streams: &mut [Stream]) -> Answered {
    let mut answered = Answered { streams: 0, bytes: 0, last: Instant::now() };
    let mut idle = Instant::now();
    let mut heard = vec![false; streams.len()];
    while idle.elapsed() < Duration::from_millis(if answered.streams == 0 { 10_000 } else { 300 }) {
        let mut any = false;
        for (stream, heard) in streams.iter_mut().zip(&mut heard) {
            let bytes = stream.turn();
            if bytes > 0 {
                any = true;
                answered.bytes += bytes;
                answered.streams += usize::from(!std::mem::replace(heard, true));
            }
        }
        if any {
            idle = Instant::now();
            answered.last = idle;
        }
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
    answered
}

/// How many streams heard something in a while.
async fn quiet(streams: &mut [Stream]) -> usize {
    tokio::time::sleep(Duration::from_millis(500)).await;
    streams.iter_mut().map(Stream::turn).filter(|bytes| *bytes > 0).count()
}

impl Stream {
    /// Takes a new view and says what is due, as the driver does; the bytes of what was said. Every response is taken.
    fn turn(&mut self) -> usize {
        if self.view.has_changed().unwrap() {
            self.machine.handle_resources(self.view.borrow_and_update().clone());
        }
        let mut bytes = 0;
        while let Some(response) = self.machine.poll_response() {
            bytes += response
                .resources
                .iter()
                .filter_map(|item| item.body.as_ref())
                .map(|any| any.value.len())
                .sum::<usize>();
            let names = names(&self.view.borrow(), response.kind);
            let version = response.version.clone();
            let kind = response.kind;
            self.machine.handle_request(&Request {
                first: false,
                kind,
                version,
                nonce: response.nonce,
                names,
                error: None,
            });
        }
        while self.machine.poll_outcome().is_some() {}
        bytes
    }
}

/// What a sidecar names of a type: everything of CDS and LDS, all it has heard of otherwise.
fn names(view: &ResourceSet, kind: TypeUrl) -> Vec<mesh_core::config::Name> {
    if kind.is_full_state() { Vec::new() } else { view.iter(kind).map(|(name, _)| name.clone()).collect() }
}

fn connect(source: &Push, size: &Size, n: usize) -> Stream {
    let (namespace, service) = (n % size.namespaces, n % size.services);
    let address = IpAddr::from([10, (n >> 16) as u8, (n >> 8) as u8, n as u8]);
    let node: Node = serde_json::from_value(json!({
        "id": format!("sidecar~{address}~c{n}.n{namespace}~n{namespace}.svc.cluster.local"),
        "metadata": {
            "NAME": format!("c{n}"), "NAMESPACE": format!("n{namespace}"), "SERVICE_ACCOUNT": "a",
            "LABELS": {"app": format!("s{service}"), "version": "v1", "pod-template-hash": format!("{n:x}")},
            "POD_PORTS": "[{\"name\": \"http\", \"containerPort\": 9080, \"protocol\": \"TCP\"}]",
        },
    }))
    .unwrap();
    let identity = Some(format!("spiffe://cluster.local/ns/n{namespace}/sa/a"));
    let (id, mut view) = source.connect(&Peer { identity, ..Peer::default() }, &node).unwrap();
    let mut machine = Sotw::new(view.borrow_and_update().clone());
    for kind in [TypeUrl::Cluster, TypeUrl::Endpoint, TypeUrl::Listener, TypeUrl::Route] {
        let names = names(&view.borrow(), kind);
        machine.handle_request(&Request {
            first: false,
            kind,
            version: String::new(),
            nonce: String::new(),
            names,
            error: None,
        });
    }
    let mut stream = Stream { id, view, machine };
    stream.turn();
    stream
}

fn apply(plane: &ControlPlane, text: String) {
    plane.apply(&[SourceFile { name: "bench.yaml".to_owned(), text }]).unwrap();
}

fn service(size: &Size, n: usize) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: s{n}, namespace: n{}}}\nspec:\n  selector: {{app: s{n}}}\n  ports: \
         [{{name: http, port: 9080}}]\n",
        n % size.namespaces
    )
}

fn rule(round: usize, export: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: r, namespace: n1}}\nspec:\n  hosts: [s1]\n  \
         {export}\n  http:\n  - {{timeout: {}s, route: [{{destination: {{host: s1}}}}]}}\n",
        round + 1
    )
}

fn endpoint(round: usize) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: e, namespace: n1}}\nspec:\n  address: 10.9.9.{}\n  \
         labels: {{app: s1}}\n",
        round + 1
    )
}

fn destination_rule(round: usize) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: r, namespace: n1}}\nspec:\n  host: s1\n  \
         trafficPolicy: {{connectionPool: {{http: {{http2MaxRequests: {}}}}}}}\n",
        round + 100
    )
}

/// KiB.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}
