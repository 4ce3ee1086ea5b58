//! A control plane that can be killed with everything it has open, others that misbehave below the protocol, and a program with
//! load in front of it all.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use mesh_tower::{
    Mesh,
    config::{Action, Cluster, Config, Discovery, RouteMatch},
};
use mesh_xds::{
    ads::{ResourceSet, TypeUrl},
    bootstrap::Bootstrap,
    node::Node,
    server::{ConnectionId, Credentials, Peer, Source, ads_service},
    translate::{Shape, encode},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Status, transport::Server};

use crate::harness::{self, Kind, Program, Upstream, route};

/// Nothing here takes this long unless it is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// What a control plane that is well again may take to be followed.
pub(crate) const RECOVERY: Duration = Duration::from_secs(2);

/// What listens at an address, in a runtime of its own: dropped, it is killed, and its connections with it.
pub(crate) struct Killable {
    pub(crate) address: SocketAddr,
    runtime: Option<Runtime>,
}

impl Killable {
    /// Runs `serve` on a listener at `address`.
    pub(crate) fn start<F: Future<Output = ()> + Send + 'static>(
        address: SocketAddr,
        serve: impl FnOnce(TcpListener) -> F,
    ) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = wait_until_free(address);
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let _guard = runtime.enter();
        let listener = TcpListener::from_std(listener).unwrap();
        runtime.spawn(serve(listener));
        Self { address, runtime: Some(runtime) }
    }
}

/// A listener there. Of one that was killed just now the address is still being given up, by another runtime.
fn wait_until_free(address: SocketAddr) -> std::net::TcpListener {
    let began = Instant::now();
    loop {
        match std::net::TcpListener::bind(address) {
            Ok(listener) => return listener,
            Err(error) => assert!(began.elapsed() < PATIENCE, "{address}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Drop for Killable {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// What a control plane says, which outlives it.
#[derive(Clone)]
pub(crate) struct Sayings {
    views: watch::Sender<Arc<ResourceSet>>,
    heard: Arc<Mutex<Vec<String>>>,
    streams: Arc<AtomicUsize>,
}

impl Sayings {
    pub(crate) fn of(config: &Config) -> Self {
        Self { views: watch::Sender::new(Arc::new(set(config))), heard: Arc::default(), streams: Arc::default() }
    }

    pub(crate) fn say(&self, set: ResourceSet) {
        self.views.send_replace(Arc::new(set));
    }

    /// What was refused, in words.
    pub(crate) fn refusals(&self) -> Vec<String> {
        self.heard.lock().unwrap().clone()
    }

    /// Speaks at `address`, of which port 0 is any, until dropped.
    pub(crate) fn speak(&self, address: SocketAddr) -> Killable {
        let source = Arc::new(self.clone());
        Killable::start(address, move |listener| async move {
            let incoming = TcpListenerStream::new(listener);
            let _ = Server::builder().add_service(ads_service(source)).serve_with_incoming(incoming).await;
        })
    }
}

impl Source for Sayings {
    fn verify(&self, _: &Credentials) -> Result<Option<String>, Status> {
        Ok(None)
    }

    fn connect(&self, _: &Peer, _: &Node) -> Result<(ConnectionId, watch::Receiver<Arc<ResourceSet>>), Status> {
        let stream = self.streams.fetch_add(1, Ordering::Relaxed) as u64;
        Ok((ConnectionId(stream), self.views.subscribe()))
    }

    fn acked(&self, _: ConnectionId, _: TypeUrl, _: &str) {}

    fn nacked(&self, _: ConnectionId, kind: TypeUrl, _: &str, message: &str) {
        self.heard.lock().unwrap().push(format!("{kind}: {message}"));
    }

    fn disconnect(&self, _: ConnectionId) {}
}

pub(crate) fn anywhere() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

pub(crate) fn set(config: &Config) -> ResourceSet {
    encode(config, Shape::Sidecar)
}

/// All requests to this upstream, whose endpoints are a resource of their own.
pub(crate) fn leading_to(kind: Kind, upstream: &Upstream) -> Config {
    let name = upstream.name;
    let cluster = Cluster { discovery: Discovery::Eds(name.into()), ..harness::cluster(kind, name, &[upstream]) };
    harness::config([cluster], vec![route(RouteMatch::default(), Action::Forward(harness::to(name)))])
}

/// Of a program whose control plane is there. No two are equal, as if each were a process of its own: equal ones share a client.
pub(crate) fn bootstrap(address: SocketAddr) -> Bootstrap {
    static PROCESSES: AtomicUsize = AtomicUsize::new(0);
    let process = PROCESSES.fetch_add(1, Ordering::Relaxed);
    let text = json!({
        "xds_servers": [{"server_uri": address.to_string(), "channel_creds": [{"type": "insecure"}]}],
        "node": {"id": "sidecar~127.0.0.1~a.default~default.svc.cluster.local", "metadata": {"PROCESS": process}},
    });
    Bootstrap::parse(&text.to_string(), "test").unwrap()
}

/// A program whose control plane is there, with its admin port.
pub(crate) async fn program(kind: Kind, address: SocketAddr, saved: Option<&Path>) -> Program {
    let mut builder = Mesh::builder().bootstrap(bootstrap(address)).admin_addr(anywhere());
    if let Some(path) = saved {
        builder = builder.saved_config(path, Duration::from_secs(3_600));
    }
    Program::over(kind, builder.build().await.unwrap())
}

/// A page of its admin port.
pub(crate) async fn page(program: &Program, path: &str) -> String {
    let mut stream = TcpStream::connect(program.mesh.admin_addr().unwrap()).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// How it stands with its control plane.
pub(crate) async fn status(program: &Program) -> Value {
    let page = page(program, "/control_plane").await;
    let start = page.find('{').unwrap();
    let end = page.rfind('}').unwrap();
    serde_json::from_str::<Value>(&page[start..=end]).unwrap()
}

/// Waits until a request is answered by this upstream; how long that took.
pub(crate) async fn reaches(program: &Program, upstream: &str) -> Duration {
    let began = Instant::now();
    let reached = async {
        loop {
            let answer = program.get("/").await;
            if answer.is_ok() && answer.header("x-upstream") == upstream {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("{upstream} is not reached"));
    began.elapsed()
}

/// Waits until the status is as wanted.
pub(crate) async fn stands(program: &Program, wanted: impl Fn(&Value) -> bool) -> Value {
    let began = Instant::now();
    loop {
        let status = status(program).await;
        if wanted(&status) {
            return status;
        }
        assert!(began.elapsed() < PATIENCE, "{status}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Requests, one after the other, until asked how they went.
pub(crate) struct Load {
    tasks: JoinSet<BTreeMap<String, usize>>,
    end: watch::Sender<bool>,
}

impl Load {
    pub(crate) fn on(program: &Program) -> Self {
        let end = watch::Sender::new(false);
        let mut tasks = JoinSet::new();
        for _ in 0..2 {
            let (program, ended) = (program.clone(), end.subscribe());
            tasks.spawn(async move {
                let mut outcomes = BTreeMap::new();
                while !*ended.borrow() {
                    let answer = program.get("/").await;
                    let outcome = match answer.is_ok() {
                        true => "ok".to_owned(),
                        false => format!("{} {:?} {} {}", answer.status, answer.grpc, answer.flags, answer.body),
                    };
                    *outcomes.entry(outcome).or_default() += 1;
                    sleep(Duration::from_millis(3)).await;
                }
                outcomes
            });
        }
        Self { tasks, end }
    }

    /// Every one of them was answered well.
    pub(crate) async fn went_well(mut self) {
        self.end.send_replace(true);
        while let Some(outcomes) = self.tasks.join_next().await {
            let outcomes = outcomes.unwrap();
            assert!(outcomes.keys().eq(["ok"]) && outcomes["ok"] > 0, "{outcomes:?}");
        }
    }
}
