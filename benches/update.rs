//! What does a mesh of ten thousand services cost to come in, to keep, and to change by one endpoint?
//!
//! Question: with 10,000 clusters, 10,000 virtual hosts with a route each and 100,000 endpoints, from our own server and from a
//! plain one that writes every answer whole before it reads again: the time from starting to connect until the first request is
//! answered; resident memory at its peak and after; how many requests it takes; and how long after the server was told of one
//! changed endpoint that is in force. Server and client are processes of their own. Answers are kept in `RESULTS.md`.
//!
//! `cargo bench --bench update` (`-- --services 10000 --changes 21` to change the size; bars: 1 s, 100 MiB, 60 MiB, 20
//! requests, 5 ms). Linux only: memory is read from `/proc`.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    env,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

use axum::Router;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use mesh_core::config::{Config, Endpoints};
use mesh_tower::Mesh;
use mesh_xds::{
    ads::{ResourceSet, TypeUrl},
    bootstrap::Bootstrap,
    node::Node,
    server::{ConnectionId, Credentials, Peer, Source, ads_service},
    translate::{Shape, encode},
};
use tokio::{net::TcpListener, sync::watch};

use common::{argument, spread, text_argument};

mod common;
#[allow(dead_code)]
#[path = "../mesh-xds/tests/size/large.rs"]
mod large;
#[path = "../mesh-xds/tests/size/plain.rs"]
mod plain;

fn main() {
    let services = argument("--services").unwrap_or(10_000);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if let Some(style) = text_argument("--serve") {
        return runtime.block_on(serve(&style, services));
    }
    if let Some(style) = text_argument("--client") {
        return runtime.block_on(client(&style, services, argument("--changes").unwrap_or(21)));
    }
    println!("{services} services, {} endpoints; memory is of the client's process.\n", services * large::ENDPOINTS);
    println!(
        "| server | first answer, ms | peak, MiB | after, MiB | before, MiB | requests | one endpoint in force, ms |"
    );
    println!("|---|---|---|---|---|---|---|");
    for style in ["ours", "plain"] {
        let status = myself(&["--client", style]).status().unwrap();
        assert!(status.success());
    }
}

/// This program again, with the same arguments and more.
fn myself(more: &[&str]) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(env::args().skip(1)).args(more);
    command
}

async fn client(style: &str, services: usize, changes: usize) {
    let mut server = Server::start(style);
    let text = format!(
        r#"{{"xds_servers": [{{"server_uri": "{}", "channel_creds": [{{"type": "insecure"}}], "server_features": ["xds_v3"]}}],
            "node": {{"id": "sidecar~10.0.0.1~a.default~default.svc.cluster.local"}}}}"#,
        server.address
    );
    let before = memory("VmRSS");
    let start = Instant::now();
    let mesh = Mesh::builder().bootstrap(Bootstrap::parse(&text, "bench").unwrap()).build().await.unwrap();
    let at = services / 2;
    let request = http::Request::get(format!("http://{}/", large::service(at))).body(Full::<Bytes>::default()).unwrap();
    let response = mesh.http().request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    response.into_body().collect().await.unwrap();
    let first = start.elapsed();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let asked = server.requests();
    let mut times = Vec::new();
    for turn in 1..=changes {
        let sent = server.change(turn);
        let expected = large::endpoints(at, server.upstream, turn);
        let in_force = || {
            let snapshot = mesh.snapshot()?;
            let cluster = snapshot.cluster(&large::cluster_name(at))?;
            (*cluster.config().endpoints == *expected).then_some(())
        };
        while in_force().is_none() {
            tokio::time::sleep(Duration::from_micros(20)).await;
        }
        times.push((now() - sent) as f64 / 1e6);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!(
        "| {style} | {:.0} | {} | {} | {before} | {} | {} |",
        first.as_secs_f64() * 1e3,
        memory("VmHWM"),
        memory("VmRSS"),
        asked,
        spread(times)
    );
}

/// Of this process, in MiB.
fn memory(what: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap();
    line.trim_matches([':', '\t', ' ', 'k', 'B']).parse::<usize>().unwrap() / 1024
}

/// Nanoseconds on a clock that both processes read.
fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64
}

/// The server's process: told of a change by a line, it says when it made it, or what it was asked.
struct Server {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    address: String,
    upstream: u16,
}

impl Server {
    fn start(style: &str) -> Self {
        let mut child = myself(&["--serve", style]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut server = Self { child, input, output, address: String::new(), upstream: 0 };
        let said = server.line();
        let (address, upstream) = said.split_once(' ').unwrap();
        (server.address, server.upstream) = (address.to_owned(), upstream.parse().unwrap());
        server
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    fn change(&mut self, turn: usize) -> u64 {
        writeln!(self.input, "{turn}").unwrap();
        self.line().parse().unwrap()
    }

    fn requests(&mut self) -> String {
        writeln!(self.input, "requests").unwrap();
        self.line()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn serve(style: &str, services: usize) {
    // Every address of the loopback network leads here.
    let upstream = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = upstream.local_addr().unwrap().port();
    tokio::spawn(async { axum::serve(upstream, Router::new().fallback(async || "here")).await });
    let views = watch::Sender::new(Arc::new(encode(&large::config(services, port), Shape::Sidecar)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let requests = match style {
        "plain" => {
            let server = plain::Plain::new(views.subscribe());
            server.serve(listener);
            Arc::clone(&server.requests)
        }
        _ => {
            // The source is told of acknowledgements only: the first request of each of four types comes on top.
            let asked = Arc::new(AtomicUsize::new(4));
            let source = Ours { views: views.clone(), asked, connections: AtomicU64::new(0) };
            let asked = Arc::clone(&source.asked);
            let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
            let router = tonic::transport::Server::builder().add_service(ads_service(Arc::new(source)));
            tokio::spawn(router.serve_with_incoming(incoming));
            asked
        }
    };
    println!("{address} {port}");
    let mut lines = std::io::stdin().lines();
    while let Some(Ok(line)) = tokio::task::block_in_place(|| lines.next()) {
        let Ok(turn) = line.parse() else {
            println!("{}", requests.load(Relaxed));
            continue;
        };
        let next = with_endpoints(&views.borrow(), services / 2, &large::endpoints(services / 2, port, turn));
        let sent = now();
        views.send_replace(Arc::new(next));
        println!("{sent}");
    }
}

/// The same resources, but for the endpoints of one service.
fn with_endpoints(resources: &ResourceSet, at: usize, endpoints: &Arc<Endpoints>) -> ResourceSet {
    let mut next = resources.clone();
    let mut cluster = (*large::cluster(at, 1, 0)).clone();
    cluster.endpoints = Arc::clone(endpoints);
    let one = Config { clusters: [(cluster.name.clone(), Arc::new(cluster))].into(), ..Config::default() };
    for (name, resource) in encode(&one, Shape::Sidecar).iter(TypeUrl::Endpoint) {
        next.insert(TypeUrl::Endpoint, name.clone(), resource.body.clone());
    }
    next
}

/// Our own server's source: the same resources for everybody.
struct Ours {
    views: watch::Sender<Arc<ResourceSet>>,
    asked: Arc<AtomicUsize>,
    connections: AtomicU64,
}

impl Source for Ours {
    fn verify(&self, _: &Credentials) -> Result<Option<String>, tonic::Status> {
        Ok(None)
    }

    fn connect(&self, _: &Peer, _: &Node) -> Result<(ConnectionId, watch::Receiver<Arc<ResourceSet>>), tonic::Status> {
        Ok((ConnectionId(self.connections.fetch_add(1, Relaxed)), self.views.subscribe()))
    }

    fn acked(&self, _: ConnectionId, _: TypeUrl, _: &str) {
        self.asked.fetch_add(1, Relaxed);
    }

    fn nacked(&self, _: ConnectionId, kind: TypeUrl, _: &str, message: &str) {
        panic!("{kind} was refused: {message}");
    }

    fn disconnect(&self, _: ConnectionId) {}
}
