//! How many instructions do planning, picking and a whole call take?
//!
//! Question: the same work as in the other benches, counted instead of timed, so that a regression shows on a noisy
//! machine: valgrind's callgrind runs this program twice a path, once with 1,000 and once with 5,000 turns, and the
//! difference is what a turn takes. System calls count nothing, so the clock is not in it. Calls over a wire go to a server in
//! a process of its own, which is not counted. Answers are kept in `RESULTS.md`.
//!
//! `cargo bench --bench instructions` (`-- --only call` for the paths whose names have that word; needs valgrind).
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::{env, process::Command, sync::Arc};

use mesh_core::{
    cluster::Cluster,
    config::{self, LoadBalancer},
    outcome::Outcome,
    pick::Ask,
    request::RequestView,
    rng::RequestRng,
    snapshot::Snapshot,
    time::Time,
};
use mesh_tower::telemetry::{self, Peer, Reporter, Telemetry};
use mesh_xds::{
    ads::{Event, TypeUrl},
    graph::{Graph, Part},
    translate::{Listener, RouteSource},
};
use tokio::runtime::Runtime;

use common::{
    GrpcNowhere, Nowhere, Policy, argument, call, client, client_of, grpc_call, grpc_request, mesh, read, request,
    text_argument, uris,
};

mod common;
#[allow(dead_code)]
#[path = "../mesh-xds/tests/size/large.rs"]
mod large;
mod wire;

type Path = (&'static str, fn(usize));

const PATHS: &[Path] = &[
    ("call: the loop itself", bare),
    ("call: one route", |turns| calls(turns, 1, Policy::Plain)),
    ("call: one route with timeout and retries", |turns| calls(turns, 1, Policy::Usual)),
    ("call: 1,000 virtual hosts with timeout and retries", |turns| calls(turns, 1_000, Policy::Usual)),
    ("call: the gRPC loop itself", bare_grpc),
    ("call: gRPC, one route with timeout and retries", grpc_calls),
    ("call over a wire: bare hyper-util", wire::bare_http),
    ("call over a wire: HTTP through the mesh", wire::mesh_http),
    ("call over a wire: plain tonic channel", wire::bare_grpc),
    ("call over a wire: gRPC through the mesh", wire::mesh_grpc),
    ("call: telling of it alone", tellings),
    ("plan: one route", |turns| plans(turns, 1)),
    ("plan: 1,000 virtual hosts", |turns| plans(turns, 1_000)),
    ("pick: least request of 1,000 endpoints", |turns| picks(turns, LoadBalancer::default())),
    ("pick: round robin of 1,000 endpoints", |turns| picks(turns, LoadBalancer::RoundRobin)),
    ("pick: peak EWMA of 1,000 endpoints", |turns| picks(turns, LoadBalancer::PeakEwma)),
    ("pick: ring hash of 1,000 endpoints", |turns| picks(turns, LoadBalancer::RingHash(Default::default()))),
    ("pick: maglev of 1,000 endpoints", |turns| picks(turns, LoadBalancer::Maglev(Default::default()))),
    ("update: one endpoint of 100 services", |turns| updates(turns, 100)),
    ("update: one endpoint of 1,000 services", |turns| updates(turns, 1_000)),
    ("update: one endpoint of 10,000 services", |turns| updates(turns, 10_000)),
];

fn main() {
    if wire::is_server() {
        return wire::serve();
    }
    if let Some(path) = argument("--path") {
        return PATHS[path].1(argument("--turns").unwrap());
    }
    let server = wire::Server::start();
    let only = text_argument("--only").unwrap_or_default();
    println!("| path | instructions |");
    println!("|---|---|");
    for (at, (name, _)) in PATHS.iter().enumerate().filter(|(_, (name, _))| name.contains(&only)) {
        // An update is far more than a call: fewer of them do.
        let each = if name.starts_with("update") { 400.0 } else { 4_000.0 };
        let (few, many) = (count(at, 1_000, &server), count(at, 5_000, &server));
        println!("| {name} | {:.0} |", (many - few) as f64 / each);
    }
}

/// Instructions of the whole program.
fn count(path: usize, turns: usize, server: &wire::Server) -> u64 {
    let run = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        // What starts before (a clock that is calibrated, above all) takes longer or shorter from run to run.
        .args(PATHS[path].0.starts_with("call").then_some("--toggle-collect=*counted_on_one_thread*"))
        .env(wire::ADDRESS, server.address.to_string())
        .arg(env::current_exe().unwrap())
        .args(["--path", &path.to_string(), "--turns", &turns.to_string()])
        .output()
        .unwrap_or_else(|error| panic!("valgrind does not start: {error}"));
    let said = String::from_utf8_lossy(&run.stderr);
    let line = said.lines().find(|line| line.contains("Collected")).unwrap_or_else(|| panic!("{said}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

fn on_one_thread(work: impl Future<Output = ()>) {
    counted_on_one_thread(&runtime(), work);
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// What of a call's path is counted.
#[inline(never)]
fn counted_on_one_thread(runtime: &Runtime, work: impl Future<Output = ()>) {
    runtime.block_on(work);
}

/// What a call's metrics cost: an event of a series that is known.
fn tellings(turns: usize) {
    let telemetry = Telemetry::new(config::Workload::default());
    let workload = config::Workload { name: "reviews-v1".into(), namespace: "default".into(), ..Default::default() };
    let peer = Arc::new(Peer::new(workload, Some("spiffe://cluster.local/ns/default/sa/reviews".into())));
    let service = config::ServiceName {
        host: "reviews.default.svc.cluster.local".into(),
        name: "reviews".into(),
        namespace: "default".into(),
    };
    let event = telemetry::Event {
        reporter: Reporter::Source,
        peer: Some(&peer),
        service: Some(&service),
        cluster: None,
        route: None,
        upstream: None,
        logged: None,
        telling: None,
        is_grpc: false,
        status: 200,
        grpc_status: None,
        flags: Default::default(),
        details: "via_upstream",
        request_bytes: 300,
        response_bytes: 2_000,
        request_messages: 0,
        response_messages: 0,
        duration: std::time::Duration::from_millis(3),
        mutual_tls: false,
        attempts: 1,
    };
    on_one_thread(async {
        (0..turns).for_each(|_| telemetry.record(std::hint::black_box(&event)));
    });
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

/// From the endpoints as EDS gives them to the snapshot that requests read; the graph, the configuration and the compiling.
fn updates(turns: usize, services: usize) {
    let mut graph = Graph::default();
    let config = large::config(services, 80);
    for (name, cluster) in &config.clusters {
        let bare = config::Cluster { endpoints: Arc::default(), ..(**cluster).clone() };
        graph.handle_event(Event::Changed(TypeUrl::Cluster, name.clone(), Part::Cluster(Arc::new(bare))));
        let endpoints = Part::Endpoints(Arc::clone(&cluster.endpoints));
        graph.handle_event(Event::Changed(TypeUrl::Endpoint, name.clone(), endpoints));
    }
    let settings = Arc::default();
    let listener =
        Listener::Outbound { port: 80, routes: RouteSource::Inline(Arc::clone(&config.outbound[&80])), settings };
    graph.handle_event(Event::Changed(TypeUrl::Listener, "80".into(), Part::Listener(listener)));
    graph.handle_event(Event::Synced(TypeUrl::Cluster));
    graph.handle_event(Event::Synced(TypeUrl::Listener));
    let mut snapshot = Snapshot::compile(&graph.poll_config(Time::ZERO).unwrap(), None).unwrap();
    for turn in 1..=turns / 10 {
        let endpoints = Part::Endpoints(large::endpoints(services / 2, 80, turn));
        graph.handle_event(Event::Changed(TypeUrl::Endpoint, large::cluster_name(services / 2), endpoints));
        snapshot = Snapshot::compile(&graph.poll_config(Time::ZERO).unwrap(), Some(&snapshot)).unwrap();
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
        let ask = Ask { hash: Some(n as u64 * 0x9e37_79b9_7f4a_7c15), ..Ask::default() };
        let pick = cluster.pick(&ask, now, &mut rng).unwrap();
        pick.finish(&Outcome::response(200), now);
    }
}
