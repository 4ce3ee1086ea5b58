//! Driver: keeps an ADS stream to the control plane, feeds the client machine and the graph, publishes configuration.
//!
//! One task: wait, feed one input, drain the outputs. Reading never waits for writing, since a request is made only when
//! the stream has room for it; otherwise two ends that both write first would wait for each other.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use mesh_core::{config::Config, time::Time};
use rand::{SeedableRng, rngs::SmallRng};
use serde::Serialize;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Streaming};

use crate::{
    ads::{
        self, Subscription, TypeUrl,
        back_off::BackOff,
        sotw::{Event, Sotw},
    },
    bootstrap::Bootstrap,
    graph::{Graph, Part},
    proto,
    task::Task,
    translate::{self, Decoded, ResourceError},
    transport,
};

#[cfg(test)]
mod tests;

/// The largest response taken; gRPC's own default of 4 MiB is below what a large mesh needs.
pub const MAX_RESPONSE: usize = 256 << 20;

/// Requests that may be on their way into the stream.
const OUTGOING: usize = 4;

/// A conversation with the control plane that lasts as long as this value.
#[derive(Debug)]
pub struct Client {
    config: watch::Receiver<Option<Arc<Config>>>,
    status: watch::Receiver<Arc<Status>>,
    _task: Task,
}

impl Client {
    /// Starts connecting to the control plane of `bootstrap`. Must be called within a tokio runtime.
    pub fn start(bootstrap: Arc<Bootstrap>) -> Self {
        let (publish, config) = watch::channel(None);
        let first =
            Status { server: bootstrap.server.address.clone(), node: bootstrap.node.id.clone(), ..Status::default() };
        let (tell, status) = watch::channel(Arc::new(first));
        Self { config, status, _task: Task::spawn(Driver::new(bootstrap, publish, tell).run()) }
    }

    /// The configuration in force; `None` until the first is complete. It stays when the control plane is lost (XD9).
    pub fn config(&self) -> watch::Receiver<Option<Arc<Config>>> {
        self.config.clone()
    }

    /// How the conversation stands.
    pub fn status(&self) -> Arc<Status> {
        self.status.borrow().clone()
    }
}

/// How the conversation with the control plane stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Status {
    /// `host:port` of the control plane.
    pub server: String,
    /// The node id it knows us by.
    pub node: String,
    /// Since when the stream is up; `None` when it is not.
    pub connected_since: Option<SystemTime>,
    /// Why the last stream or connection attempt ended, as text only (XD11); `None` while connected.
    pub error: Option<String>,
    /// By resource type, those asked for.
    pub types: BTreeMap<TypeUrl, TypeStatus>,
}

/// How one resource type stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TypeStatus {
    /// The last version accepted.
    pub version: String,
    /// Resources in force.
    pub resources: usize,
    /// The last refusal since the version in force, if any.
    pub nack: Option<Nack>,
    /// By resource name, the fields in it that have no effect here.
    pub ignored: BTreeMap<String, Vec<String>>,
}

/// A response that was refused in part or whole.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Nack {
    /// Its version.
    pub version: String,
    /// Every bad resource and why.
    pub message: String,
}

struct Driver {
    bootstrap: Arc<Bootstrap>,
    began: Instant,
    rng: SmallRng,
    machine: Sotw<Part>,
    graph: Graph,
    ignored: BTreeMap<TypeUrl, BTreeMap<String, Vec<String>>>,
    connected_since: Option<SystemTime>,
    error: Option<String>,
    /// The last attempt to reach the control plane failed; that has been told.
    unreached: bool,
    /// Something has happened that the status does not say yet.
    untold: bool,
    publish: watch::Sender<Option<Arc<Config>>>,
    tell: watch::Sender<Arc<Status>>,
}

impl Driver {
    fn new(
        bootstrap: Arc<Bootstrap>,
        publish: watch::Sender<Option<Arc<Config>>>,
        tell: watch::Sender<Arc<Status>>,
    ) -> Self {
        let mut machine = Sotw::new(BackOff::STREAM.towards(&bootstrap.server.address));
        machine.subscribe(TypeUrl::Cluster, Subscription::All);
        machine.subscribe(TypeUrl::Listener, Subscription::All);
        Self {
            graph: Graph::of(bootstrap.node.local()),
            bootstrap,
            began: Instant::now(),
            rng: SmallRng::from_os_rng(),
            machine,
            ignored: BTreeMap::new(),
            connected_since: None,
            error: None,
            unreached: false,
            untold: false,
            publish,
            tell,
        }
    }

    async fn run(mut self) {
        loop {
            self.settle();
            if self.machine.poll_connect(self.now()) {
                let Err(why) = self.converse().await;
                self.tell_of_end(&why);
                self.connected_since = None;
                self.error = Some(why);
                self.untold = true;
                let now = self.now();
                self.machine.handle_disconnected(now, &mut self.rng);
            } else {
                tokio::time::sleep_until(self.next_timeout()).await;
            }
        }
    }

    /// People are warned once when the control plane cannot be reached, not at each attempt.
    fn tell_of_end(&mut self, why: &str) {
        let server = &self.bootstrap.server.address;
        if self.connected_since.is_some() {
            tracing::info!(%server, why, "the stream to the control plane ended");
        } else if std::mem::replace(&mut self.unreached, true) {
            tracing::info!(%server, why, "the control plane is still not reached");
        } else {
            tracing::warn!(%server, why, "the control plane cannot be reached; it is tried again until it can");
        }
    }

    /// Connects and holds one stream until it ends; says why it did.
    async fn converse(&mut self) -> Result<std::convert::Infallible, String> {
        let bootstrap = self.bootstrap.clone();
        let channel = transport::connect(&bootstrap.server).await?;
        let headers = transport::headers(&bootstrap.server, &bootstrap.node).await?;
        let (outgoing, requests) = mpsc::channel(OUTGOING);
        let mut call = Request::new(ReceiverStream::new(requests));
        *call.metadata_mut() = headers;
        let mut client = proto::AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_RESPONSE);
        // Some servers answer nothing, not even headers, before the first request: it is sent while waiting for them.
        let mut opening = std::pin::pin!(client.stream_aggregated_resources(call));
        let mut incoming = None;
        let mut writable = true;
        self.machine.handle_connected();
        loop {
            self.settle();
            tokio::select! {
                room = outgoing.reserve(), if writable && self.machine.is_due() => match room {
                    Ok(room) => if let Some(request) = self.machine.poll_request(self.now()) {
                        room.send(self.encode(request));
                    },
                    // The server reads no more; what it has to say about that comes the other way.
                    Err(_) => writable = false,
                },
                answer = &mut opening, if incoming.is_none() => {
                    incoming = Some(answer.map_err(|status| transport::describe(&status))?.into_inner());
                }
                message = next(&mut incoming) => match message {
                    Ok(Some(response)) => self.receive(response),
                    Ok(None) => return Err("the server ended the stream".to_owned()),
                    Err(status) => return Err(transport::describe(&status)),
                },
                () = tokio::time::sleep_until(self.next_timeout()) => {}
            }
        }
    }

    fn receive(&mut self, response: proto::DiscoveryResponse) {
        self.connected_since.get_or_insert_with(SystemTime::now);
        self.unreached = false;
        if self.error.take().is_some() {
            tracing::info!(server = %self.bootstrap.server.address, "the control plane answers again");
        }
        self.untold = true;
        let Some(kind) = TypeUrl::parse(&response.type_url) else {
            tracing::debug!(type_url = response.type_url, "a response of a type nobody asked for");
            return;
        };
        let before = self.refusal(kind);
        let response = ads::Response {
            kind,
            version: response.version_info,
            nonce: response.nonce,
            resources: response.resources.into_iter().map(unwrap).collect(),
        };
        let ignored = self.ignored.entry(kind).or_default();
        self.machine.handle_response(&response, |kind, body| {
            let decoded = decode(kind, body).map_err(|error| error.to_string())?;
            if decoded.ignored.is_empty() {
                ignored.remove(&*decoded.name);
            } else {
                ignored.insert(decoded.name.to_string(), decoded.ignored);
            }
            Ok(decoded.value)
        });
        // A server that repeats a refused response is told so each time; people are told once.
        if let Some(message) = self.refusal(kind).filter(|message| before.as_ref() != Some(message)) {
            tracing::warn!(%kind, version = response.version, message, "resources of the control plane were refused");
        }
    }

    fn refusal(&self, kind: TypeUrl) -> Option<String> {
        self.machine.report().find(|(reported, _)| *reported == kind)?.1.refusal.map(|(_, message)| message)
    }

    /// Passes on what the last input caused.
    fn settle(&mut self) {
        let now = self.now();
        self.machine.handle_timeout(now);
        self.graph.handle_timeout(now);
        let mut changed = false;
        while let Some(event) = self.machine.poll_event() {
            if let Event::Gone(kind, name) = &event {
                self.ignored.entry(*kind).or_default().remove(&**name);
            }
            self.graph.handle_event(event);
            changed = true;
        }
        if changed {
            self.untold = true;
            for kind in [TypeUrl::Endpoint, TypeUrl::Route] {
                self.machine.subscribe(kind, Subscription::Names(self.graph.wanted(kind)));
            }
        }
        if let Some(config) = self.graph.poll_config(now) {
            self.publish.send_replace(Some(config));
        }
        if std::mem::take(&mut self.untold) {
            self.report();
        }
    }

    fn report(&self) {
        let types = self.machine.report().map(|(kind, report)| {
            let status = TypeStatus {
                version: report.version,
                resources: report.resources,
                nack: report.refusal.map(|(version, message)| Nack { version, message }),
                ignored: self.ignored.get(&kind).cloned().unwrap_or_default(),
            };
            (kind, status)
        });
        let status = Status {
            server: self.bootstrap.server.address.clone(),
            node: self.bootstrap.node.id.clone(),
            connected_since: self.connected_since,
            error: self.error.clone(),
            types: types.collect(),
        };
        self.tell.send_if_modified(|told| {
            let news = **told != status;
            if news {
                *told = Arc::new(status);
            }
            news
        });
    }

    fn encode(&self, request: ads::Request) -> proto::DiscoveryRequest {
        let error_detail = request.error.map(|message| proto::Status {
            code: tonic::Code::InvalidArgument as i32,
            message,
            ..proto::Status::default()
        });
        proto::DiscoveryRequest {
            version_info: request.version,
            node: request.first.then(|| self.bootstrap.node.to_proto()),
            resource_names: request.names.iter().map(ToString::to_string).collect(),
            type_url: request.kind.as_str().to_owned(),
            response_nonce: request.nonce,
            error_detail,
        }
    }

    fn now(&self) -> Time {
        Time::ZERO + self.began.elapsed()
    }

    fn next_timeout(&self) -> Instant {
        let next = self.machine.next_timeout().into_iter().chain(self.graph.next_timeout(self.now())).min();
        // Nothing to wait for is an hour: a wake-up that changes nothing.
        let hour = Time::ZERO + self.began.elapsed() + Duration::from_secs(3_600);
        self.began + Duration::from_nanos(next.unwrap_or(hour).as_nanos())
    }
}

async fn next(
    incoming: &mut Option<Streaming<proto::DiscoveryResponse>>,
) -> Result<Option<proto::DiscoveryResponse>, tonic::Status> {
    match incoming {
        Some(incoming) => incoming.message().await,
        None => std::future::pending().await,
    }
}

/// A resource may come wrapped in `envoy.service.discovery.v3.Resource`.
fn unwrap(any: proto::Any) -> proto::Any {
    match any.unpack::<proto::Resource>() {
        Some(Ok(proto::Resource { resource: Some(inner), .. })) => inner,
        _ => any,
    }
}

fn decode(kind: TypeUrl, body: &Bytes) -> Result<Decoded<Part>, ResourceError> {
    fn part<T>(decoded: Decoded<T>, make: impl FnOnce(T) -> Part) -> Decoded<Part> {
        Decoded { name: decoded.name, value: make(decoded.value), ignored: decoded.ignored }
    }
    Ok(match kind {
        TypeUrl::Listener => part(translate::listener(body)?, Part::Listener),
        TypeUrl::Route => part(translate::route(body)?, Part::Route),
        TypeUrl::Cluster => part(translate::cluster(body)?, Part::Cluster),
        TypeUrl::Endpoint => part(translate::endpoints(body)?, Part::Endpoints),
        TypeUrl::Secret => {
            return Err(ResourceError {
                kind,
                resource: ads::name_of(body).unwrap_or_default().to_owned(),
                field: String::new(),
                message: "secrets are not taken from the control plane".to_owned(),
            });
        }
    })
}
