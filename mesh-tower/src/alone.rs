//! Requests of our own to one endpoint, past any policy of its cluster: health checks, reports of load.
//!
//! They travel over connections of their own, made as those of requests are, so that neither takes the other's place.

use std::sync::Arc;

use http_body_util::BodyExt;
use mesh_core::{
    cluster::Cluster,
    config::{self, Endpoints, LocalityEndpoints, Protocol, Thresholds},
    endpoint::Endpoint,
    pick::Ask,
    plan::{Plan, Target},
    rng::RequestRng,
};

use crate::{
    attempt::{Call, Picked},
    body::{Body, Progress},
    error::{Error, ErrorKind},
    layer::Stage,
    message::Message,
    pool::{Pool, PooledBody},
    source::Source,
};

/// Who asks one endpoint.
pub(crate) struct Alone {
    pub(crate) pool: Pool,
    pub(crate) source: Source,
    /// A cluster of this endpoint alone, whose connections are the asker's own.
    own: Option<Arc<Cluster>>,
}

impl Alone {
    pub(crate) fn new(pool: Pool, source: Source) -> Self {
        Self { pool, source, own: None }
    }

    /// Lets go of its connections.
    pub(crate) fn disconnect(&mut self) {
        self.own = None;
    }

    /// Sends a request to an endpoint, always the same one until it disconnects.
    pub(crate) async fn send(
        &mut self,
        (cluster, endpoint): (&Cluster, &Endpoint),
        request: http::Request<Body>,
        protocol: Protocol,
        rng: &mut RequestRng,
    ) -> Result<http::Response<PooledBody>, Error> {
        let own = Arc::clone(self.own.get_or_insert_with(|| of_one(cluster, endpoint, protocol)));
        let pick = own.pick(&Ask::default(), self.source.now(), rng);
        let pick = pick.map_err(|error| Error::new(ErrorKind::NoEndpoint, error))?;
        let endpoint = Arc::clone(pick.endpoint());
        let mut plan = Plan::new(Arc::default(), Target::Cluster(Arc::clone(&own)));
        // HTTP/2 whatever else the cluster speaks.
        plan.is_grpc = protocol == Protocol::Http2;
        let call = Call::new(plan, rng.clone(), Progress::default());
        let request = Message::from(request);
        self.pool.call(Picked { request, call, deadline: None, cluster: own, endpoint }).await
    }
}

/// A cluster that reaches this endpoint as its own cluster does, without any limits of its own cluster's requests.
fn of_one(cluster: &Cluster, endpoint: &Endpoint, protocol: Protocol) -> Arc<Cluster> {
    let endpoint = config::Endpoint { health: config::Health::Healthy, ..endpoint.config().clone() };
    let locality = LocalityEndpoints { endpoints: vec![endpoint], ..LocalityEndpoints::default() };
    let config = config::Cluster {
        endpoints: Arc::new(Endpoints { localities: vec![locality], ..Endpoints::default() }),
        discovery: config::Discovery::Static,
        load_balancer: config::LoadBalancer::Random,
        subsets: None,
        thresholds: Thresholds::default(),
        outlier_detection: None,
        health_check: None,
        protocol,
        ..(**cluster.config()).clone()
    };
    Arc::new(Cluster::compile(&Arc::new(config), None))
}

/// A gRPC message in its frame.
pub(crate) fn framed(message: &[u8]) -> Vec<u8> {
    let mut framed = vec![0];
    framed.extend_from_slice(&u32::try_from(message.len()).unwrap_or(0).to_be_bytes());
    framed.extend_from_slice(message);
    framed
}

/// The messages of a gRPC answer, one after the other.
pub(crate) struct Messages {
    body: PooledBody,
    data: Vec<u8>,
}

/// What comes next in a gRPC answer.
pub(crate) enum Next {
    /// A message, without its frame.
    Message(Vec<u8>),
    /// The status it ended with, if it said one.
    End(Option<u32>),
}

impl Messages {
    /// Longer messages end the answer.
    const MOST: usize = 64 * 1024;

    pub(crate) fn of(body: PooledBody) -> Self {
        Self { body, data: Vec::new() }
    }

    pub(crate) async fn next(&mut self) -> Next {
        loop {
            if let Some(message) = next_message(&mut self.data) {
                return Next::Message(message);
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Some(trailers) = frame.trailers_ref() {
                        return Next::End(mesh_core::outcome::grpc_status(trailers));
                    }
                    self.data.extend_from_slice(&frame.into_data().unwrap_or_default());
                }
                _ => return Next::End(None),
            }
            if self.data.len() > Self::MOST {
                return Next::End(None);
            }
        }
    }
}

/// The first whole gRPC message, if it is there, without its frame.
fn next_message(data: &mut Vec<u8>) -> Option<Vec<u8>> {
    let length = <[u8; 4]>::try_from(data.get(1..5)?).ok()?;
    let end = usize::try_from(u32::from_be_bytes(length)).ok()?.checked_add(5)?;
    let message = data.get(5..end)?.to_vec();
    data.drain(..end);
    Some(message)
}
