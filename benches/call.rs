//! What does a call through the mesh cost, beside the same call without it?
//!
//! Question: CPU per request and latency of (a) a bare hyper-util client and the same request through the whole mesh stack, over
//! HTTP/1.1 and over HTTP/2, (b) a plain tonic channel and the mesh's gRPC client; at 1 and at 64 tasks. All paths run in every round, in rotated
//! order, against one server process, so that a ratio is taken between neighbours on a noisy machine. CPU is this
//! process's own (user and system); the server's is not counted. Answers are kept in `RESULTS.md`.
//!
//! `cargo bench --bench call` (`-- --rounds 7 --requests 20000` to change the size).
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::BTreeMap,
    convert::Infallible,
    env,
    future::Future,
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use cpu_time::ProcessTime;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, service::service_fn};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use mesh_core::config::{
    Action, Cluster, Config, Endpoint, EndpointAddress, Endpoints, Forward, LocalityEndpoints, Protocol, Route,
    RouteMatch, RouteTable, VirtualHost, WeightedCluster,
};
use mesh_tower::Mesh;
use tonic::codegen::http::uri::PathAndQuery;
use tonic_prost::ProstCodec;
use tower::Service;

const BODY: usize = 1024;
const METHOD: &str = "/bench.Echo/Call";
/// Each floor and what stands on it.
const PATHS: [&str; 6] = [
    "http: bare hyper-util",
    "http: through the mesh",
    "http2: bare hyper-util",
    "http2: through the mesh",
    "grpc: plain tonic channel",
    "grpc: through the mesh",
];

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    if env::var_os("MESH_BENCH_SERVER").is_some() {
        return serve().await;
    }
    let rounds = argument("--rounds").unwrap_or(5);
    let requests = argument("--requests").unwrap_or(10_000);
    let server = Server::start();
    let mesh = Mesh::builder().config(config(server.address)).build().await.unwrap();
    for tasks in [1, 64] {
        let mut results: BTreeMap<usize, Vec<Sample>> = BTreeMap::new();
        for round in 0..=rounds {
            for step in 0..PATHS.len() {
                let path = (round + step) % PATHS.len();
                let sample = measure(path, tasks, requests, server.address, &mesh).await;
                // The first round opens connections and warms caches.
                if round > 0 {
                    results.entry(path).or_default().push(sample);
                }
            }
        }
        print(tasks, &results);
    }
}

fn argument(name: &str) -> Option<usize> {
    let mut arguments = env::args().skip_while(|argument| argument != name);
    arguments.nth(1)?.parse().ok()
}

/// One path in one round.
struct Sample {
    cpu: Duration,
    p50: Duration,
    p99: Duration,
}

async fn measure(path: usize, tasks: usize, requests: usize, server: SocketAddr, mesh: &Mesh) -> Sample {
    match path {
        0 | 2 => {
            let client = Client::builder(TokioExecutor::new()).http2_only(path == 2).build_http::<Full<Bytes>>();
            let uri: http::Uri = format!("http://{server}/").parse().unwrap();
            run(tasks, requests, move || {
                let (client, uri) = (client.clone(), uri.clone());
                async move {
                    let response = client.request(Request::get(uri).body(Full::default()).unwrap()).await.unwrap();
                    assert_eq!(response.into_body().collect().await.unwrap().to_bytes().len(), BODY);
                }
            })
            .await
        }
        1 | 3 => {
            let client = mesh.http();
            let uri = http::Uri::from_static(if path == 1 { "http://echo:80/" } else { "http://echo2:80/" });
            run(tasks, requests, move || {
                let (mut client, uri) = (client.clone(), uri.clone());
                async move {
                    let request = Request::get(uri).body(Full::<Bytes>::default()).unwrap();
                    let response = client.call(request).await.unwrap();
                    assert_eq!(response.status(), 200);
                    assert_eq!(response.into_body().collect().await.unwrap().to_bytes().len(), BODY);
                }
            })
            .await
        }
        4 => {
            let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{server}")).unwrap();
            let channel = endpoint.connect().await.unwrap();
            run(tasks, requests, move || unary(tonic::client::Grpc::new(channel.clone()))).await
        }
        _ => {
            let client = mesh.grpc("echo:80").unwrap();
            run(tasks, requests, move || unary(tonic::client::Grpc::new(client.clone()))).await
        }
    }
}

async fn unary<S>(mut client: tonic::client::Grpc<S>)
where
    S: tonic::client::GrpcService<tonic::body::Body>,
    S::ResponseBody: tonic::codegen::Body<Data = Bytes> + Send + 'static,
    <S::ResponseBody as tonic::codegen::Body>::Error: Into<tonic::codegen::StdError>,
    S::Error: Into<tonic::codegen::StdError> + std::fmt::Debug,
{
    client.ready().await.unwrap();
    let codec = ProstCodec::<String, String>::default();
    let request = tonic::Request::new("x".repeat(64));
    let response = client.unary(request, PathAndQuery::from_static(METHOD), codec).await.unwrap();
    assert_eq!(response.into_inner().len(), 64);
}

/// Runs `requests` calls over `tasks` tasks in a closed loop.
async fn run<F>(tasks: usize, requests: usize, call: impl Fn() -> F + Clone + Send + 'static) -> Sample
where
    F: Future<Output = ()> + Send,
{
    // Connections are opened before the clock starts.
    call().await;
    let cpu = ProcessTime::now();
    let workers: Vec<_> = (0..tasks)
        .map(|_| {
            let call = call.clone();
            tokio::spawn(async move {
                let mut latencies = Vec::with_capacity(requests / tasks);
                for _ in 0..requests / tasks {
                    let start = Instant::now();
                    call().await;
                    latencies.push(start.elapsed());
                }
                latencies
            })
        })
        .collect();
    let mut latencies = Vec::with_capacity(requests);
    for worker in workers {
        latencies.extend(worker.await.unwrap());
    }
    let cpu = cpu.elapsed() / u32::try_from(latencies.len()).unwrap();
    latencies.sort_unstable();
    Sample { cpu, p50: latencies[latencies.len() / 2], p99: latencies[latencies.len() * 99 / 100] }
}

fn print(tasks: usize, results: &BTreeMap<usize, Vec<Sample>>) {
    println!("\n{tasks} task{}:\n", if tasks == 1 { "" } else { "s" });
    println!("| path | CPU us/request | p50 us | p99 us | CPU x its floor | p50 x its floor |");
    println!("|---|---|---|---|---|---|");
    for (path, samples) in results {
        // The bare client of the same protocol, in the same round.
        let floor = &results[&(path / 2 * 2)];
        let column = |of: fn(&Sample) -> Duration| spread(samples.iter().map(|s| micros(of(s))).collect());
        let ratio = |of: fn(&Sample) -> Duration| {
            let ratios = samples.iter().zip(floor).map(|(s, f)| micros(of(s)) / micros(of(f))).collect();
            spread(ratios)
        };
        println!(
            "| {} | {} | {} | {} | {} | {} |",
            PATHS[*path],
            column(|s| s.cpu),
            column(|s| s.p50),
            column(|s| s.p99),
            ratio(|s| s.cpu),
            ratio(|s| s.p50)
        );
    }
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// `median (min-max)`.
fn spread(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    format!("{:.2} ({:.2}-{:.2})", values[values.len() / 2], values[0], values[values.len() - 1])
}

/// A host for each protocol, with one route to one cluster of one endpoint.
fn config(server: SocketAddr) -> Config {
    let services = [service("echo", Protocol::default(), server), service("echo2", Protocol::Http2, server)];
    let (hosts, clusters): (Vec<_>, Vec<_>) = services.into_iter().unzip();
    let table = RouteTable { virtual_hosts: hosts, ignore_port: true, ..Default::default() };
    Config {
        outbound: [(80, Arc::new(table))].into(),
        clusters: clusters.into_iter().map(|cluster| (Arc::clone(&cluster.name), cluster)).collect(),
        ..Default::default()
    }
}

fn service(name: &str, protocol: Protocol, server: SocketAddr) -> (Arc<VirtualHost>, Arc<Cluster>) {
    let endpoint = Endpoint::at(EndpointAddress::Socket(server));
    let locality = LocalityEndpoints { endpoints: vec![endpoint], ..Default::default() };
    let endpoints = Arc::new(Endpoints { localities: vec![locality], ..Default::default() });
    let cluster = Cluster { name: name.into(), endpoints, protocol, ..Default::default() };
    let route = Route {
        name: "default".into(),
        origin: None,
        matches: RouteMatch::default(),
        action: Action::Forward(Forward {
            clusters: vec![WeightedCluster { cluster: name.into(), weight: 1, ..Default::default() }],
            timeout: Some(Duration::from_secs(15)),
            retry: Some(Default::default()),
            ..Default::default()
        }),
        fault: None,
        headers: Default::default(),
        operation: None,
    };
    let domains = vec![name.to_owned()];
    let host = VirtualHost { name: name.into(), domains, routes: vec![route], ..Default::default() };
    (Arc::new(host), Arc::new(cluster))
}

/// This program again, as the server of all paths.
struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    fn start() -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .env("MESH_BENCH_SERVER", "1")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { child, address: line.trim().parse().unwrap() }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn serve() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("{}", listener.local_addr().unwrap());
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        tokio::spawn(async move {
            let service = service_fn(answer);
            let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(request: Request<hyper::body::Incoming>) -> Result<Response<tonic::body::Body>, Infallible> {
    if request.uri().path() == METHOD {
        let echo = tower::service_fn(|request: tonic::Request<String>| async move {
            Ok::<_, tonic::Status>(tonic::Response::new(request.into_inner()))
        });
        let mut grpc = tonic::server::Grpc::new(ProstCodec::<String, String>::default());
        return Ok(grpc.unary(echo, request.map(tonic::body::Body::new)).await);
    }
    Ok(Response::new(tonic::body::Body::new(Full::new(Bytes::from(vec![b'x'; BODY])))))
}
