//! What does a call cost through the mesh, beside the clients people use instead?
//!
//! Question: CPU per request of the client process (and of Envoy, where there is one) and latency, at 1 and at 64 tasks, of
//! the mesh's clients against a bare hyper-util client, a plain tonic channel, tonic's balanced channel (`tower::balance`),
//! tonic-xds 0.1.0-alpha.4 and a real Envoy sidecar, in plaintext; and against hyper-util and tonic over mutual TLS. All
//! paths run in every round, in rotated order, against one server process; a ratio is taken inside a round against the
//! floor of its protocol. Answers are kept in `../RESULTS.md`.
//!
//! `cargo run --release` (`-- --rounds 7 --requests 10000` to change the size; Envoy is `envoy` on the path or
//! `MESH_ENVOY`, and left out, visibly, without).

use std::{
    env,
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use cpu_time::ProcessTime;
use http_body_util::Full;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tower::ServiceExt;

use server::{BODY, METHOD, Server};

mod control;
mod mesh;
mod pki;
mod server;
mod sidecar;

type Answer = Pin<Box<dyn Future<Output = ()> + Send>>;

/// One way to make the call.
struct Path {
    name: &'static str,
    /// The path it is compared with.
    floor: usize,
    call: Arc<dyn Fn() -> Answer + Send + Sync>,
    /// A process whose CPU belongs to the path.
    helper: Option<u32>,
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    match env::var_os("MESH_BENCH_SERVER") {
        Some(certificates) => runtime.block_on(server::serve(certificates.as_ref())),
        None => runtime.block_on(compare()),
    }
}

async fn compare() {
    rustls::crypto::ring::default_provider().install_default().unwrap();
    let (rounds, requests) = (argument("--rounds").unwrap_or(7), argument("--requests").unwrap_or(10_000));
    let certificates = tempfile::tempdir().unwrap();
    pki::write(certificates.path());
    let server = Server::start(certificates.path());
    let mesh = mesh::start(&server, certificates.path()).await;
    let control = control::serve(server.plain).await;
    let envoy = sidecar::Envoy::start(server.plain).await;

    let mut paths: Vec<Path> = Vec::new();
    let mut add = |name, floor: Option<usize>, helper, call: Arc<dyn Fn() -> Answer + Send + Sync>| {
        let floor = floor.unwrap_or(paths.len());
        paths.push(Path { name, floor, call, helper });
    };
    let hyper = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    add("http: bare hyper-util", None, None, http(hyper.clone(), format!("http://{}/", server.plain)));
    add("http: through the mesh", Some(0), None, http(mesh.http(), "http://echo:80/".to_owned()));
    let tonic = plain_channel(&format!("http://{}", server.plain)).connect().await.unwrap();
    let tonic_at = 2;
    add("grpc: plain tonic channel", None, None, grpc(tonic));
    add("grpc: through the mesh", Some(tonic_at), None, grpc(mesh.grpc("echo:80").unwrap()));
    let endpoint = plain_channel(&format!("http://{}", server.plain));
    let balanced = Channel::balance_list([endpoint.clone(), endpoint].into_iter());
    add("grpc: tonic balance_list (tower::balance)", Some(tonic_at), None, grpc(balanced));
    add("grpc: tonic-xds", Some(tonic_at), None, grpc(control::channel(control)));
    if let Some(envoy) = &envoy {
        let helper = Some(envoy.id());
        add("http: hyper-util through Envoy", Some(0), helper, http(hyper, format!("http://{}/", envoy.http)));
        let through = plain_channel(&format!("http://{}", envoy.grpc)).connect().await.unwrap();
        add("grpc: tonic through Envoy", Some(tonic_at), helper, grpc(through));
    }
    let at = if envoy.is_some() { 8 } else { 6 };
    let secure = Client::builder(TokioExecutor::new()).build(pki::Connector::new(certificates.path(), server.secure));
    add("http mTLS: hyper-util with rustls", None, None, http(secure, "https://echo.test/".to_owned()));
    add("http mTLS: through the mesh", Some(at), None, http(mesh.http(), "http://secure:80/".to_owned()));
    let tls = ClientTlsConfig::new()
        .ca_certificate(tonic::transport::Certificate::from_pem(pki::read(certificates.path(), "root.pem")))
        .identity(tonic::transport::Identity::from_pem(
            pki::read(certificates.path(), "chain.pem"),
            pki::read(certificates.path(), "key.pem"),
        ))
        .domain_name("echo.test");
    let endpoint = plain_channel(&format!("https://{}", server.secure)).tls_config(tls).unwrap();
    add("grpc mTLS: plain tonic channel", None, None, grpc(endpoint.connect().await.unwrap()));
    add("grpc mTLS: through the mesh", Some(at + 2), None, grpc(mesh.grpc("secure:80").unwrap()));

    for tasks in [1, 64] {
        let mut results: Vec<Vec<Sample>> = paths.iter().map(|_| Vec::new()).collect();
        for round in 0..=rounds {
            for step in 0..paths.len() {
                let at = (round + step) % paths.len();
                let sample = run(&paths[at], tasks, requests).await;
                // The first round opens connections and warms caches.
                if round > 0 {
                    results[at].push(sample);
                }
            }
        }
        print(tasks, &paths, &results);
    }
}

fn argument(name: &str) -> Option<usize> {
    env::args().skip_while(|argument| argument != name).nth(1)?.parse().ok()
}

fn plain_channel(uri: &str) -> Endpoint {
    Endpoint::from_shared(uri.to_owned()).unwrap().tcp_nodelay(true)
}

fn http<S, B>(client: S, uri: String) -> Arc<dyn Fn() -> Answer + Send + Sync>
where
    S: tower::Service<http::Request<Full<Bytes>>, Response = http::Response<B>> + Clone + Send + Sync + 'static,
    S::Error: std::fmt::Debug,
    S::Future: Send,
    B: http_body_util::BodyExt<Data = Bytes> + Send + 'static,
    B::Error: std::fmt::Debug,
{
    let uri: http::Uri = uri.parse().unwrap();
    Arc::new(move || {
        let (client, uri) = (client.clone(), uri.clone());
        Box::pin(async move {
            let request = http::Request::get(uri).body(Full::default()).unwrap();
            let response = client.oneshot(request).await.unwrap();
            assert_eq!(response.status(), 200);
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes().len(), BODY);
        })
    })
}

fn grpc<S>(channel: S) -> Arc<dyn Fn() -> Answer + Send + Sync>
where
    S: tonic::client::GrpcService<tonic::body::Body> + Clone + Send + Sync + 'static,
    S::Future: Send,
    S::ResponseBody: tonic::codegen::Body<Data = Bytes> + Send + 'static,
    <S::ResponseBody as tonic::codegen::Body>::Error: Into<tonic::codegen::StdError> + Send,
    S::Error: Into<tonic::codegen::StdError> + std::fmt::Debug,
{
    Arc::new(move || {
        let mut client = tonic::client::Grpc::new(channel.clone());
        Box::pin(async move {
            client.ready().await.unwrap();
            let codec = tonic_prost::ProstCodec::<String, String>::default();
            let path = http::uri::PathAndQuery::from_static(METHOD);
            let response = client.unary(tonic::Request::new("x".repeat(64)), path, codec).await.unwrap();
            assert_eq!(response.into_inner().len(), 64);
        })
    })
}

/// One path in one round.
struct Sample {
    cpu: Duration,
    helper: Duration,
    p50: Duration,
    p99: Duration,
    wall: Duration,
}

/// `requests` calls over `tasks` tasks in a closed loop.
async fn run(path: &Path, tasks: usize, requests: usize) -> Sample {
    (path.call)().await;
    let helper = path.helper.map_or(Duration::ZERO, sidecar::cpu);
    let (start, cpu) = (Instant::now(), ProcessTime::now());
    let workers: Vec<_> = (0..tasks)
        .map(|_| {
            let call = Arc::clone(&path.call);
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
    let count = u32::try_from(latencies.len()).unwrap();
    let (cpu, wall) = (cpu.elapsed() / count, start.elapsed() / count);
    let helper = (path.helper.map_or(Duration::ZERO, sidecar::cpu) - helper) / count;
    latencies.sort_unstable();
    Sample { cpu, helper, wall, p50: latencies[latencies.len() / 2], p99: latencies[latencies.len() * 99 / 100] }
}

fn print(tasks: usize, paths: &[Path], results: &[Vec<Sample>]) {
    println!("\n{tasks} task{}:\n", if tasks == 1 { "" } else { "s" });
    println!(
        "| path | client CPU us/request | Envoy CPU us/request | p50 us | p99 us | CPU x its floor | p50 x its floor \
         | requests/s x its floor |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for (path, samples) in paths.iter().zip(results) {
        let column = |of: fn(&Sample) -> Duration| spread(samples.iter().map(|sample| micros(of(sample))).collect());
        let ratio = |of: fn(&Sample) -> f64| {
            spread(samples.iter().zip(&results[path.floor]).map(|(sample, floor)| of(sample) / of(floor)).collect())
        };
        println!(
            "| {} | {} | {} | {} | {} | {} | {} | {} |",
            path.name,
            column(|sample| sample.cpu),
            if path.helper.is_some() { column(|sample| sample.helper) } else { "-".to_owned() },
            column(|sample| sample.p50),
            column(|sample| sample.p99),
            ratio(|sample| micros(sample.cpu + sample.helper)),
            ratio(|sample| micros(sample.p50)),
            ratio(|sample| 1.0 / micros(sample.wall)),
        );
    }
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// `median (smallest-largest)`.
fn spread(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    format!("{:.2} ({:.2}-{:.2})", values[values.len() / 2], values[0], values[values.len() - 1])
}
