//! Load reporting: the machine by conversations in `testdata/`, the driver with a server on a loopback connection.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{collections::BTreeMap, fmt::Write, fs, net::SocketAddr, path::PathBuf, sync::Arc};

use mesh_core::{
    config::{
        Cluster, Config, Discovery, DropOverload, Endpoint, Endpoints, Fraction, LoadReports, Locality,
        LocalityEndpoints, Thresholds,
    },
    endpoint::Pick,
    outcome::Outcome,
    pick::Ask,
    rng::RequestRng,
    snapshot::Snapshot,
};
use tokio::{
    net::TcpListener,
    sync::{Mutex, mpsc},
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};

use super::*;
use crate::{
    bootstrap::Bootstrap,
    proto::envoy::{
        config::endpoint::v3::ClusterStats,
        service::load_stats::v3::{
            LoadStatsRequest, LoadStatsResponse,
            load_reporting_service_server::{LoadReportingService, LoadReportingServiceServer},
        },
    },
};

/// Nothing here takes this long unless it is broken.
const PATIENCE: Duration = Duration::from_secs(20);

/// TE22: who we are first, then nothing until the server has said how often; every report is of what happened since the last.
#[test]
fn reports_are_of_what_happened_since() {
    play("lrs_interval");
}

/// TE22: clusters are wanted by name or all; what is not wanted is counted on.
#[test]
fn clusters_are_wanted_by_name_or_all() {
    play("lrs_clusters");
}

/// TE22: a stream that ends is opened again, and tells what happened meanwhile; a server that cannot do it is spared.
#[test]
fn streams_are_reopened() {
    play("lrs_reopen");
}

fn play(name: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata").join(format!("{name}.txt"));
    let script = fs::read_to_string(&path).unwrap();
    let (mut player, mut played) = (Player::new(), String::new());
    for line in script.lines().filter(|line| !line.starts_with('>')) {
        writeln!(played, "{line}").unwrap();
        if !line.is_empty() && !line.starts_with('#') {
            player.command(line);
            played.extend(player.answers().iter().map(|answer| format!("{answer}\n")));
        }
    }
    if std::env::var("MESH_REGENERATE").is_ok_and(|value| value == "1") {
        fs::write(&path, &played).unwrap();
    } else {
        assert_eq!(played, script, "{name}");
    }
}

struct Player {
    now: Time,
    rng: RequestRng,
    machine: Reports,
    config: Config,
    snapshot: Snapshot,
    picks: BTreeMap<String, Vec<Pick>>,
}

impl Player {
    fn new() -> Self {
        Self {
            now: Time::ZERO,
            rng: RequestRng::new(1, 1),
            machine: Reports::new(BackOff { jitter: 0.0, ..BackOff::STREAM }, Time::ZERO),
            config: Config::default(),
            snapshot: Snapshot::compile(&Config::default(), None).unwrap(),
            picks: BTreeMap::new(),
        }
    }

    fn command(&mut self, line: &str) {
        match *line.split(' ').collect::<Vec<_>>() {
            // The configuration is these clusters from now on.
            ["clusters", ref names @ ..] => {
                self.config.clusters = names.iter().map(|name| ((*name).into(), Arc::new(cluster(name)))).collect();
                self.snapshot = Snapshot::compile(&self.config, Some(&self.snapshot)).unwrap();
                names.iter().for_each(|name| assert!(self.snapshot.cluster(name).is_some()));
                self.machine.handle_first(self.now);
            }
            ["begin", name] => {
                let cluster = self.snapshot.cluster(name).unwrap();
                let pick = cluster.pick(&Ask::default(), self.now, &mut self.rng).unwrap();
                self.picks.entry(name.to_owned()).or_default().push(pick);
            }
            ["end", name, status] => {
                let pick = self.picks.get_mut(name).unwrap().pop().unwrap();
                pick.finish(&Outcome::response(status.parse().unwrap()), self.now);
            }
            ["give-up", name] => drop(self.picks.get_mut(name).unwrap().pop().unwrap()),
            ["opened"] => self.machine.handle_connected(),
            ["lost"] => self.machine.handle_disconnected(self.now, false, &mut self.rng),
            ["refused"] => self.machine.handle_disconnected(self.now, true, &mut self.rng),
            ["order", seconds, ref names @ ..] => {
                let order = Order {
                    all: names == ["*"],
                    clusters: names.iter().filter(|name| **name != "*").map(|name| Name::from(*name)).collect(),
                    interval: Duration::from_secs_f64(seconds.parse().unwrap()),
                    by_endpoint: false,
                };
                self.machine.handle_order(order, self.now);
            }
            ["wait", seconds] => self.now = self.now + Duration::from_secs_f64(seconds.parse().unwrap()),
            _ => panic!("no such command: {line}"),
        }
    }

    fn answers(&mut self) -> Vec<String> {
        let mut answers = Vec::new();
        if self.machine.poll_connect(self.now) {
            answers.push("> connect".to_owned());
        }
        while let Some(said) = self.machine.poll_say(self.now, self.snapshot.ledgers(), |_| true) {
            match said {
                Said::Hello => answers.push("> hello".to_owned()),
                Said::Loads(loads) if loads.is_empty() => answers.push("> nothing".to_owned()),
                Said::Loads(loads) => answers.extend(loads.iter().map(|(load, took)| {
                    let of = |at: &mesh_core::tally::LocalityLoad| {
                        let counts = [at.issued, at.succeeded, at.failed, at.under_way];
                        format!(" {}: issued, ok, failed, under way {counts:?}", at.locality.zone)
                    };
                    format!("> {} in {took:?}{}", load.cluster, load.localities.iter().map(of).collect::<String>())
                })),
            }
        }
        answers.push(match self.machine.next_timeout() {
            Some(at) => format!("> next {at}"),
            None => "> next never".to_owned(),
        });
        answers
    }
}

fn cluster(name: &str) -> Cluster {
    let locality = LocalityEndpoints {
        locality: Locality { zone: "z".into(), ..Locality::default() },
        endpoints: vec![Endpoint::from(SocketAddr::from(([10, 0, 0, 1], 80)))],
        ..LocalityEndpoints::default()
    };
    let metrics = vec![LoadReports::CPU.to_owned(), "named_metrics.*".to_owned()];
    Cluster {
        name: name.into(),
        discovery: Discovery::Eds("service".into()),
        endpoints: Arc::new(Endpoints { localities: vec![locality], ..Endpoints::default() }),
        load_reports: Some(Arc::new(LoadReports { metrics })),
        ..Cluster::default()
    }
}

/// A control plane that does nothing but take reports: what it hears, and what it answers to each stream's first word.
struct Plane {
    heard: mpsc::Sender<LoadStatsRequest>,
    orders: Mutex<Vec<Result<LoadStatsResponse, Status>>>,
}

#[tonic::async_trait]
impl LoadReportingService for Plane {
    type StreamLoadStatsStream = ReceiverStream<Result<LoadStatsResponse, Status>>;

    async fn stream_load_stats(
        &self,
        request: Request<Streaming<LoadStatsRequest>>,
    ) -> Result<Response<Self::StreamLoadStatsStream>, Status> {
        let mut orders = self.orders.lock().await;
        let order = if orders.len() > 1 { orders.remove(0) } else { orders[0].clone() }?;
        let (send, answers) = mpsc::channel(4);
        let (heard, mut requests) = (self.heard.clone(), request.into_inner());
        tokio::spawn(async move {
            let first = requests.message().await.unwrap().unwrap();
            heard.send(first).await.unwrap();
            // Twice: saying the same again changes nothing.
            send.send(Ok(order.clone())).await.unwrap();
            send.send(Ok(order)).await.unwrap();
            while let Ok(Some(request)) = requests.message().await {
                let _ = heard.send(request).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}

async fn plane(orders: Vec<Result<LoadStatsResponse, Status>>) -> (Arc<Bootstrap>, mpsc::Receiver<LoadStatsRequest>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (heard, requests) = mpsc::channel(64);
    let service = LoadReportingServiceServer::new(Plane { heard, orders: Mutex::new(orders) });
    tokio::spawn(Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)));
    let server = serde_json::json!({"server_uri": address.to_string(), "channel_creds": [{"type": "insecure"}]});
    let bootstrap = serde_json::json!({"xds_servers": [server], "node": {"id": "sidecar~test"}});
    (Arc::new(Bootstrap::parse(&bootstrap.to_string(), "test").unwrap()), requests)
}

async fn next(requests: &mut mpsc::Receiver<LoadStatsRequest>) -> LoadStatsRequest {
    tokio::time::timeout(PATIENCE, requests.recv()).await.unwrap().unwrap()
}

/// The next report of a cluster that says anything.
async fn telling(requests: &mut mpsc::Receiver<LoadStatsRequest>) -> ClusterStats {
    loop {
        let request = next(requests).await;
        assert!(request.node.is_none());
        if let Some(stats) = request.cluster_stats.into_iter().find(|stats| !stats.upstream_locality_stats.is_empty()) {
            return stats;
        }
    }
}

fn order(clusters: &[&str]) -> LoadStatsResponse {
    LoadStatsResponse {
        clusters: clusters.iter().map(ToString::to_string).collect(),
        send_all_clusters: clusters.is_empty(),
        load_reporting_interval: Some(prost_types::Duration { seconds: 0, nanos: 100_000_000 }),
        report_endpoint_granularity: true,
    }
}

/// TE22: a server hears who we are, and then every interval what became of requests: by locality, with metrics, drops by category
/// and those of the circuit breaker. No stream is opened before there is anything to report.
#[tokio::test]
async fn a_server_hears_what_it_asked_for() {
    let (bootstrap, mut requests) = plane(vec![Ok(order(&[]))]).await;
    let mut config = Config::default();
    let mut reviews = cluster("reviews");
    reviews.thresholds = Thresholds { max_requests: 1, ..Thresholds::default() };
    config.clusters.insert("reviews".into(), Arc::new(reviews.clone()));
    let drops = vec![DropOverload { category: "lb".into(), fraction: Fraction::ALL }];
    let endpoints = Arc::new(Endpoints { drops, ..Endpoints::default() });
    config.clusters.insert("shed".into(), Arc::new(Cluster { endpoints, ..cluster("shed") }));
    let snapshot = Snapshot::compile(&config, None).unwrap();
    let _reporter = Reporter::start(&bootstrap, snapshot.ledgers());
    tokio::task::yield_now().await;
    assert!(requests.try_recv().is_err(), "nothing is in use");

    let (ask, mut rng) = (Ask::default(), RequestRng::new(1, 0));
    let (reviews, shed) = (snapshot.cluster("reviews").unwrap(), snapshot.cluster("shed").unwrap());
    let mut pick = reviews.pick(&ask, Time::ZERO, &mut rng).unwrap();
    assert!(reviews.pick(&ask, Time::ZERO, &mut rng).is_err() && shed.pick(&ask, Time::ZERO, &mut rng).is_err());
    let report = mesh_core::load::LoadReport {
        cpu_utilization: 0.5,
        named_metrics: [("queue".to_owned(), 3.0)].into(),
        ..Default::default()
    };
    pick.report(report, Time::ZERO);
    pick.finish(&Outcome::response(200), Time::ZERO);

    let node = next(&mut requests).await.node.unwrap();
    assert_eq!(
        (&*node.id, &node.client_features[..]),
        ("sidecar~test", &["envoy.lrs.supports_send_all_clusters".to_owned()][..])
    );
    let request = next(&mut requests).await;
    let [reviews, shed] = &request.cluster_stats[..] else { panic!("{request:?}") };
    assert_eq!((&*reviews.cluster_name, &*reviews.cluster_service_name), ("reviews", "service"));
    assert_eq!((reviews.total_dropped_requests, reviews.dropped_requests.len()), (1, 0));
    assert!(reviews.load_report_interval.is_some_and(|took| took.seconds > 0 || took.nanos > 0));
    let [at] = &reviews.upstream_locality_stats[..] else { panic!("{reviews:?}") };
    assert_eq!(at.locality.as_ref().unwrap().zone, "z");
    assert_eq!((at.total_issued_requests, at.total_successful_requests), (1, 1));
    assert_eq!((at.total_error_requests, at.total_requests_in_progress), (0, 0));
    assert_eq!(
        (&*at.load_metric_stats[0].metric_name, at.load_metric_stats[0].total_metric_value),
        ("named_metrics.queue", 3.0)
    );
    assert_eq!(at.cpu_utilization.unwrap().total_metric_value, 0.5);
    assert!(at.mem_utilization.is_none() && at.application_utilization.is_none());
    assert_eq!((shed.total_dropped_requests, &*shed.dropped_requests[0].category), (1, "lb"));
    assert!(next(&mut requests).await.cluster_stats.iter().all(|stats| stats.upstream_locality_stats.is_empty()));
}

/// TE22: a stream that fails is opened again and tells all that was counted; only clusters that are asked for are told of.
#[tokio::test]
async fn what_was_counted_meanwhile_is_told() {
    let (bootstrap, mut requests) = plane(vec![Err(Status::unavailable("not yet")), Ok(order(&["b"]))]).await;
    let mut config = Config::default();
    for name in ["a", "b"] {
        config.clusters.insert(name.into(), Arc::new(cluster(name)));
    }
    let snapshot = Snapshot::compile(&config, None).unwrap();
    let _reporter = Reporter::start(&bootstrap, snapshot.ledgers());
    for name in ["a", "b", "b"] {
        let cluster = snapshot.cluster(name).unwrap();
        drop(cluster.pick(&Ask::default(), Time::ZERO, &mut RequestRng::new(1, 0)).unwrap());
    }
    assert!(next(&mut requests).await.node.is_some());
    let stats = telling(&mut requests).await;
    assert_eq!((&*stats.cluster_name, stats.upstream_locality_stats[0].total_error_requests), ("b", 2));
    assert_eq!(snapshot.ledgers().collect(|_| true)[0].localities[0].failed, 1, "the other is still counted");
}
