//! What servers say of their load, with each answer or in a stream of its own, and clients that balance by it.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::StreamBody;
use mesh_tower::{
    Mesh,
    config::{Action, ClientWeighted, Cluster, Config, Forward, LoadBalancer, RouteMatch},
    server::{LoadRecorder, LoadReport, RequestBody, record_call},
};
use tokio::{net::TcpListener, task::JoinSet};

use crate::harness::{Kind, Program, cluster_at, config, route, to};

const PATIENCE: Duration = Duration::from_secs(20);

/// A server of the mesh that says how busy it is.
struct Server {
    address: SocketAddr,
    recorder: LoadRecorder,
    served: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Server {
    /// `each` is what every single request says of itself.
    async fn start(each: fn(&mut LoadReport)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, served) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let counted = Arc::clone(&served);
        let handler = tower::service_fn(move |request: Request<RequestBody>| {
            counted.fetch_add(1, Relaxed);
            let is_grpc = request.headers().get("content-type").is_some_and(|it| it == "application/grpc");
            async move {
                assert!(record_call(each), "within a handler");
                let mut frames = vec![Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"\0\0\0\0\0")))];
                let mut response = Response::builder();
                if is_grpc {
                    response = response.header("content-type", "application/grpc");
                    let status = ("grpc-status".parse().unwrap(), HeaderValue::from_static("0"));
                    frames.push(Ok(Frame::trailers(HeaderMap::from_iter([status]))));
                }
                Ok::<_, Infallible>(response.body(StreamBody::new(futures_util::stream::iter(frames))).unwrap())
            }
        });
        let mesh = Mesh::builder().config(Config::default()).build().await.unwrap();
        let recorder = LoadRecorder::new().at_most_every(Duration::from_millis(20));
        let handler = mesh.with_load(handler, &recorder);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { mesh.serve_listener(listener, handler).await.unwrap() });
        Self { address, recorder, served, _tasks: tasks }
    }

    fn served(&self) -> usize {
        self.served.load(Relaxed)
    }
}

async fn program(kind: Kind, servers: &[&Server], out_of_band: Option<Duration>) -> Program {
    let addresses: Vec<_> = servers.iter().map(|server| server.address).collect();
    let config_of = ClientWeighted {
        out_of_band,
        blackout: Duration::ZERO,
        update: Duration::from_millis(100),
        ..ClientWeighted::default()
    };
    let app = Cluster { load_balancer: LoadBalancer::ClientWeighted(config_of), ..cluster_at(kind, "app", &addresses) };
    let routes = vec![route(RouteMatch::default(), Action::Forward(Forward { timeout: None, ..to("app") }))];
    Program::new(kind, config([app], routes)).await
}

/// Asks until of 50 requests so many reach the server.
async fn until_share(kind: Kind, program: &Program, server: &Server, share: std::ops::RangeInclusive<usize>) {
    let began = Instant::now();
    loop {
        let before = server.served();
        for _ in 0..50 {
            let answer = program.get("/a.B/C").await;
            assert!(answer.is_ok(), "{kind:?}: {answer:?}");
        }
        let got = server.served() - before;
        if share.contains(&got) {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{kind:?}: {got} of 50");
    }
}

/// TE23, SV12, LB7: what a server and its handlers say of their load goes with each answer, the request's own word over the
/// server's, and weighs for who balances by it.
#[tokio::test]
async fn answers_tell_the_load() {
    for kind in Kind::ALL {
        let busy = Server::start(|own| own.application_utilization = 0.9).await;
        let idle = Server::start(|_| {}).await;
        for server in [&busy, &idle] {
            server.recorder.record(|report| (report.rps, report.application_utilization) = (100.0, 0.1));
        }
        assert_eq!(idle.recorder.report().rps, 100.0);
        let program = program(kind, &[&busy, &idle], None).await;
        until_share(kind, &program, &idle, 43..=47).await;
        assert!(!record_call(|_| {}), "no request is being served here");
    }
}

/// TE24, SV12, LB7: a stream of reports beside the requests does the same, and what answers tell counts for nothing then.
#[tokio::test]
async fn streams_tell_the_load() {
    for kind in Kind::ALL {
        // With its answers each of them says the opposite.
        let busy = Server::start(|own| own.application_utilization = 0.01).await;
        let idle = Server::start(|own| own.application_utilization = 5.0).await;
        busy.recorder.record(|report| (report.rps, report.cpu_utilization) = (100.0, 0.9));
        idle.recorder.record(|report| (report.rps, report.cpu_utilization) = (100.0, 0.1));
        let program = program(kind, &[&busy, &idle], Some(Duration::from_millis(20))).await;
        until_share(kind, &program, &idle, 43..=47).await;
        // What is said from now on counts from now on.
        busy.recorder.record(|report| report.cpu_utilization = 0.1);
        until_share(kind, &program, &idle, 24..=26).await;
    }
}
