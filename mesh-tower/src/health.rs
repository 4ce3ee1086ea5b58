//! Active health checks: asks each endpoint of the clusters that want it, and tells the cluster what was found.
//!
//! One task for each endpoint that is checked, all owned by one that follows the configuration. What answers mean and when to
//! ask again is core's `health.rs`; here is the asking: over connections of the check's own, made as those of requests
//! are, so that neither takes the other's place. Source: Envoy `HealthCheck`, gRFC A17.

use std::{collections::BTreeMap, sync::Arc};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use http_body_util::{BodyExt, Limited};
use mesh_core::{
    cluster::Cluster,
    config::{EndpointAddress, GrpcCheck, HealthCheck, HttpCheck, Name, Probe, Protocol, TcpCheck},
    endpoint::Endpoint,
    health::{Change, Checker, Finding, Serving, grpc_request, grpc_response},
    outcome::grpc_status,
    rng::RequestRng,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{sleep, timeout},
};

use crate::{
    alone::{Alone, Messages, Next, framed},
    body::Body,
    error::{Error, ErrorKind},
    live::Live,
    pool::{Pool, PooledBody},
    source::Source,
    upkeep::Owned,
};

/// So much of an answer is read.
const MOST_READ: usize = 64 * 1024;
/// Who asks.
const USER_AGENT: HeaderValue = HeaderValue::from_static("mesh/health-check");
const WATCH_PATH: &str = "/grpc.health.v1.Health/Watch";
const CHECK_PATH: &str = "/grpc.health.v1.Health/Check";
/// gRPC's code of a method that is not there.
const UNIMPLEMENTED: u32 = 12;

/// Checks what the configuration in force wants checked, until dropped.
pub(crate) async fn checks(live: Arc<Live>, pool: Pool, source: Source) {
    let mut running = BTreeMap::new();
    loop {
        // Listening before looking: an update between the two is not missed.
        let updated = live.updated();
        let mut updated = std::pin::pin!(updated);
        updated.as_mut().enable();
        if let Some(snapshot) = live.load() {
            running = follow(running, snapshot.clusters_in_use(), &pool, &source);
        }
        updated.await;
    }
}

type Running = BTreeMap<(Name, EndpointAddress), Checked>;

/// One endpoint that is being checked.
struct Checked {
    /// What it was last configured with.
    place: Arc<ArcSwap<Place>>,
    _task: Owned,
}

/// Where a check reports to.
struct Place {
    cluster: Arc<Cluster>,
    endpoint: Arc<Endpoint>,
    check: Arc<HealthCheck>,
}

impl Place {
    /// The same way of asking the same endpoint.
    fn is_asked_as(&self, other: &Self) -> bool {
        let (ours, theirs) = (self.cluster.config(), other.cluster.config());
        self.check == other.check
            && ours.tls == theirs.tls
            && ours.protocol == theirs.protocol
            && self.endpoint.config().mtls == other.endpoint.config().mtls
    }
}

/// Keeps the checks that go on, begins those that are new, and ends the rest by letting go of them.
fn follow<'a>(
    mut before: Running,
    clusters: impl Iterator<Item = &'a Arc<Cluster>>,
    pool: &Pool,
    source: &Source,
) -> Running {
    let mut running = Running::new();
    for cluster in clusters {
        let Some(check) = &cluster.config().health_check else { continue };
        for endpoint in cluster.endpoints() {
            let key = (Name::clone(cluster.name()), endpoint.address().clone());
            let place =
                Place { cluster: Arc::clone(cluster), endpoint: Arc::clone(endpoint), check: Arc::clone(check) };
            let known = before.remove(&key);
            if known.is_none() {
                // Nothing is known of it: no requests until the first check passed, as long as there are others.
                cluster.set_failing_checks(endpoint, true);
            }
            let checked = match known {
                Some(known) if known.place.load().is_asked_as(&place) => {
                    known.place.store(Arc::new(place));
                    known
                }
                _ => begin(place, pool.clone(), source.clone()),
            };
            running.insert(key, checked);
        }
    }
    running
}

fn begin(place: Place, pool: Pool, source: Source) -> Checked {
    let place = Arc::new(ArcSwap::from_pointee(place));
    let task = Owned::spawn(run(Arc::clone(&place), pool, source));
    Checked { place, _task: task }
}

/// Checks one endpoint again and again.
async fn run(place: Arc<ArcSwap<Place>>, pool: Pool, source: Source) {
    let mut rng = source.next_request();
    let mut check = Arc::clone(&place.load().check);
    if matches!(&check.probe, Probe::Grpc(grpc) if grpc.watch) {
        // What the server says when it changes is said once.
        check = Arc::new(HealthCheck { healthy_threshold: 1, unhealthy_threshold: 1, ..(*check).clone() });
    }
    let mut prober = Prober { place: &place, alone: Alone::new(pool, source) };
    let mut checker = Checker::new();
    let mut wait = Checker::first_wait(&check, &mut rng);
    loop {
        sleep(wait).await;
        let finding = match &check.probe {
            Probe::Grpc(grpc) if grpc.watch => prober.watch(grpc, &check, &mut checker, &mut rng).await,
            probe => timeout(check.timeout, prober.ask(probe, &mut rng)).await.unwrap_or(Finding::NoAnswer),
        };
        if !check.reuse_connection || finding == Finding::NoAnswer {
            prober.alone.disconnect();
        }
        let change = prober.tell(&check, &mut checker, finding);
        wait = Checker::wait(&check, finding, change, place.load().cluster.had_traffic(), &mut rng);
    }
}

/// Asks one endpoint.
struct Prober<'a> {
    place: &'a ArcSwap<Place>,
    alone: Alone,
}

impl Prober<'_> {
    /// Reports a finding to the cluster in force.
    fn tell(&self, check: &HealthCheck, checker: &mut Checker, finding: Finding) -> Change {
        let place = self.place.load_full();
        let (failing, change) = checker.handle_finding(check, place.endpoint.is_failing_checks(), finding);
        place.cluster.record_check(&place.endpoint, failing, finding == Finding::Well, self.alone.source.now());
        if change == Change::Changed {
            let (cluster, endpoint) = (place.cluster.name(), place.endpoint.address());
            if failing {
                tracing::warn!(target: "mesh::health", %cluster, %endpoint, ?finding, "the endpoint fails its health checks");
            } else {
                tracing::info!(target: "mesh::health", %cluster, %endpoint, "the endpoint passes its health checks");
            }
        }
        change
    }

    async fn ask(&mut self, probe: &Probe, rng: &mut RequestRng) -> Finding {
        match probe {
            Probe::Http(http) => self.ask_http(http, rng).await,
            Probe::Grpc(grpc) => self.ask_grpc(grpc, rng).await,
            Probe::Tcp(tcp) => self.ask_tcp(tcp).await.unwrap_or(Finding::NoAnswer),
            // A kind that is not known here cannot have been configured here.
            _ => Finding::Well,
        }
    }

    async fn ask_http(&mut self, check: &HttpCheck, rng: &mut RequestRng) -> Finding {
        let Ok(request) = self.http_request(check) else { return Finding::NoAnswer };
        let Ok(response) = self.send(request, check.protocol, rng).await else { return Finding::NoAnswer };
        let finding = check.judge(response.status().as_u16(), response.headers());
        // To its end, so that the connection can be used again.
        let _ = Limited::new(response.into_body(), MOST_READ).collect().await;
        finding
    }

    fn http_request(&self, check: &HttpCheck) -> Result<http::Request<Body>, http::Error> {
        let mut request = self.request(&check.method, &check.host, &check.path)?;
        add(request.headers_mut(), &check.headers);
        for name in &check.remove_headers {
            request.headers_mut().remove(name);
        }
        Ok(request)
    }

    fn request(&self, method: &str, host: &str, path: &str) -> Result<http::Request<Body>, http::Error> {
        let place = self.place.load();
        let host = if host.is_empty() { place.cluster.name() } else { host };
        let authority = HeaderValue::from_str(host)?;
        // A cluster's name need not be an authority; as the value of Host it is told all the same.
        let uri = http::Uri::builder().scheme("http").path_and_query(path);
        let uri = match http::uri::Authority::try_from(host) {
            Ok(authority) => uri.authority(authority).build()?,
            Err(_) => uri.authority(place.endpoint.address().to_string()).build()?,
        };
        let request = http::Request::builder().method(method).uri(uri);
        request.header(header::HOST, authority).header(header::USER_AGENT, USER_AGENT).body(Body::empty())
    }

    async fn ask_grpc(&mut self, check: &GrpcCheck, rng: &mut RequestRng) -> Finding {
        let Ok(response) = self.call(check, CHECK_PATH, rng).await else { return Finding::NoAnswer };
        let (head, body) = response.into_parts();
        let Ok(body) = Limited::new(body, MOST_READ).collect().await else { return Finding::NoAnswer };
        let status = body.trailers().and_then(grpc_status).or_else(|| grpc_status(&head.headers));
        let message = body.to_bytes();
        let serving = message.get(5..).is_some_and(|message| grpc_response(message) == Serving::Serving);
        if head.status == 200 && status == Some(0) && serving { Finding::Well } else { Finding::Sick }
    }

    /// Follows what the server says of itself for as long as it says anything; the finding is why it ended.
    async fn watch(
        &mut self,
        check: &GrpcCheck,
        config: &HealthCheck,
        checker: &mut Checker,
        rng: &mut RequestRng,
    ) -> Finding {
        let call = timeout(config.timeout, self.call(check, WATCH_PATH, rng)).await;
        let Ok(Ok(response)) = call else { return Finding::NoAnswer };
        let (head, body) = response.into_parts();
        if grpc_status(&head.headers) == Some(UNIMPLEMENTED) {
            return Finding::Well;
        }
        let mut messages = Messages::of(body);
        loop {
            match messages.next().await {
                Next::Message(message) => {
                    let serving = grpc_response(&message) == Serving::Serving;
                    self.tell(config, checker, if serving { Finding::Well } else { Finding::Sick });
                }
                // gRFC A17: who does not know the service is well.
                Next::End(Some(UNIMPLEMENTED)) => return Finding::Well,
                Next::End(_) => return Finding::Sick,
            }
        }
    }

    async fn send(
        &mut self,
        request: http::Request<Body>,
        protocol: Protocol,
        rng: &mut RequestRng,
    ) -> Result<http::Response<PooledBody>, Error> {
        let place = self.place.load_full();
        self.alone.send((&place.cluster, &place.endpoint), request, protocol, rng).await
    }

    async fn call(
        &mut self,
        check: &GrpcCheck,
        path: &str,
        rng: &mut RequestRng,
    ) -> Result<http::Response<PooledBody>, Error> {
        let invalid = |error: http::Error| Error::new(ErrorKind::Invalid, error);
        let mut request = self.request("POST", &check.authority, path).map_err(invalid)?;
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        add(headers, &check.metadata);
        *request.body_mut() = Body::from(Bytes::from(framed(&grpc_request(&check.service))));
        self.send(request, Protocol::Http2, rng).await
    }

    async fn ask_tcp(&self, check: &TcpCheck) -> std::io::Result<Finding> {
        let place = self.place.load_full();
        let mut stream = self.alone.pool.dial(&place.cluster, &place.endpoint).await?;
        stream.write_all(&check.send).await?;
        stream.flush().await?;
        let (mut seen, mut from, mut blocks) = (Vec::new(), 0, check.receive.iter().peekable());
        loop {
            while let Some(block) = blocks.peek() {
                let rest = seen.get(from..).unwrap_or_default();
                let found = rest.windows(block.len().max(1)).position(|part| part == block.as_slice());
                let Some(at) = found else { break };
                from += at + block.len();
                blocks.next();
            }
            if blocks.peek().is_none() {
                return Ok(Finding::Well);
            }
            let mut chunk = [0; 1024];
            let read = stream.read(&mut chunk).await?;
            if read == 0 || seen.len() > MOST_READ {
                return Ok(Finding::NoAnswer);
            }
            seen.extend_from_slice(chunk.get(..read).unwrap_or_default());
        }
    }
}

fn add(headers: &mut HeaderMap, more: &[(String, String)]) {
    for (name, value) in more {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            headers.insert(name, value);
        }
    }
}
