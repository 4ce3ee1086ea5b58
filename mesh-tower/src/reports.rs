//! Reports of load that endpoints send by themselves, beside any request: one stream to each endpoint of the clusters that
//! want it, held open for as long as the configuration stays so. Source: ORCA `xds.service.orca.v3.OpenRcaService`, gRFC A51, A58.
//!
//! One task for each endpoint, all owned by one that follows the configuration. What a report changes is core's
//! `balance/client_weighted.rs`; here is the asking. A server that does not know the service is not asked again.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use http::{HeaderValue, header};
use mesh_core::{
    cluster::Cluster,
    config::{EndpointAddress, LoadBalancer, Name, Protocol},
    endpoint::Endpoint,
    load::{LoadReport, stream_request},
    outcome::grpc_status,
    rng::RequestRng,
};
use rand::RngCore;
use tokio::time::sleep;

use crate::{
    alone::{Alone, Messages, Next, framed},
    body::Body,
    live::Live,
    pool::Pool,
    source::Source,
    upkeep::Owned,
};

/// The method that streams reports.
pub(crate) const PATH: &str = "/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics";
/// gRPC's code of a method that is not there.
const UNIMPLEMENTED: u32 = 12;
/// Between streams of an endpoint that fails, the first and the longest. Source: gRPC's connection back-off.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(120);

/// Hears the reports that the configuration in force wants, until dropped.
pub(crate) async fn reports(live: Arc<Live>, pool: Pool, source: Source) {
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

type Running = BTreeMap<(Name, EndpointAddress), Heard>;

/// One endpoint that is listened to.
struct Heard {
    place: Arc<ArcSwap<Place>>,
    _task: Owned,
}

/// Whose reports, and for whom.
struct Place {
    cluster: Arc<Cluster>,
    endpoint: Arc<Endpoint>,
    period: Duration,
}

impl Place {
    /// The same stream serves both.
    fn is_asked_as(&self, other: &Self) -> bool {
        let (ours, theirs) = (self.cluster.config(), other.cluster.config());
        self.period == other.period
            && ours.tls == theirs.tls
            && self.endpoint.config().mtls == other.endpoint.config().mtls
    }
}

/// Keeps the streams that go on, begins those that are new, and ends the rest by letting go of them.
fn follow<'a>(
    mut before: Running,
    clusters: impl Iterator<Item = &'a Arc<Cluster>>,
    pool: &Pool,
    source: &Source,
) -> Running {
    let mut running = Running::new();
    for cluster in clusters {
        let LoadBalancer::ClientWeighted(config) = &cluster.config().load_balancer else { continue };
        let Some(period) = config.out_of_band else { continue };
        for endpoint in cluster.endpoints() {
            let key = (Name::clone(cluster.name()), endpoint.address().clone());
            let place = Place { cluster: Arc::clone(cluster), endpoint: Arc::clone(endpoint), period };
            let heard = match before.remove(&key) {
                Some(known) if known.place.load().is_asked_as(&place) => {
                    known.place.store(Arc::new(place));
                    known
                }
                _ => begin(place, pool.clone(), source.clone()),
            };
            running.insert(key, heard);
        }
    }
    running
}

fn begin(place: Place, pool: Pool, source: Source) -> Heard {
    let place = Arc::new(ArcSwap::from_pointee(place));
    let task = Owned::spawn(run(Arc::clone(&place), pool, source));
    Heard { place, _task: task }
}

/// Listens to one endpoint, stream after stream.
async fn run(place: Arc<ArcSwap<Place>>, pool: Pool, source: Source) {
    let mut rng = source.next_request();
    let mut alone = Alone::new(pool, source);
    let mut wait = FIRST_WAIT;
    loop {
        match listen(&place, &mut alone, &mut rng).await {
            Ended::Unknown => {
                let place = place.load();
                let (cluster, endpoint) = (place.cluster.name(), place.endpoint.address());
                tracing::warn!(target: "mesh::load", %cluster, %endpoint, "the endpoint reports no load by itself");
                return;
            }
            Ended::AfterReports => wait = FIRST_WAIT,
            Ended::WithoutAny => {}
        }
        alone.disconnect();
        // A fifth more or less, so that clients that lost a server do not come back all at once.
        let share = 0.8 + 0.4 * (rng.next_u32() as f64 / f64::from(u32::MAX));
        sleep(wait.mul_f64(share)).await;
        wait = wait.mul_f64(1.6).min(LONGEST_WAIT);
    }
}

/// How a stream ended.
enum Ended {
    /// There is no such service.
    Unknown,
    AfterReports,
    WithoutAny,
}

async fn listen(place: &ArcSwap<Place>, alone: &mut Alone, rng: &mut RequestRng) -> Ended {
    let first = place.load_full();
    let Ok(request) = request(&first) else { return Ended::WithoutAny };
    let asked = alone.send((&first.cluster, &first.endpoint), request, Protocol::Http2, rng).await;
    let Ok(response) = asked else { return Ended::WithoutAny };
    if grpc_status(response.headers()) == Some(UNIMPLEMENTED) || response.status() == http::StatusCode::NOT_FOUND {
        return Ended::Unknown;
    }
    let mut messages = Messages::of(response.into_body());
    let mut ended = Ended::WithoutAny;
    loop {
        match messages.next().await {
            Next::Message(message) => {
                ended = Ended::AfterReports;
                if let Some(report) = LoadReport::decode(&message) {
                    let place = place.load();
                    place.cluster.report(&place.endpoint, &report, alone.source.now());
                }
            }
            Next::End(Some(UNIMPLEMENTED)) => return Ended::Unknown,
            Next::End(_) => return ended,
        }
    }
}

fn request(place: &Place) -> Result<http::Request<Body>, http::Error> {
    let name = &**place.cluster.name();
    // A cluster's name need not be an authority.
    let authority = match http::uri::Authority::try_from(name) {
        Ok(authority) => authority.to_string(),
        Err(_) => place.endpoint.address().to_string(),
    };
    let uri = http::Uri::builder().scheme("http").authority(authority).path_and_query(PATH).build()?;
    let request = http::Request::post(uri)
        .header(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"))
        .header(header::TE, HeaderValue::from_static("trailers"));
    request.body(Body::from(bytes::Bytes::from(framed(&stream_request(place.period)))))
}
