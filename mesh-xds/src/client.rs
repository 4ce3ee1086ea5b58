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
use tonic::{Request, Status as RpcStatus, Streaming};

use self::variant::{Ads, Heard, Variant};
use crate::{
    ads::{self, Event, Subscription, TypeUrl, back_off::BackOff, client::Client as Machine},
    bootstrap::Bootstrap,
    graph::{Graph, Part},
    task::Task,
    translate::{self, Decoded, ResourceError},
    transport,
};

#[cfg(test)]
mod tests;
mod variant;

/// The largest response taken; gRPC's own default of 4 MiB is below what a large mesh needs.
pub const MAX_RESPONSE: usize = 256 << 20;

/// Requests that may be on their way into the stream: one, so that what becomes due meanwhile is said in the next.
const OUTGOING: usize = 1;

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
    pub ignored: Arc<BTreeMap<String, Vec<String>>>,
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
    machine: Machine<Part>,
    graph: Graph,
    ignored: BTreeMap<TypeUrl, Arc<BTreeMap<String, Vec<String>>>>,
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
        let back_off = BackOff::STREAM.towards(&bootstrap.server.address);
        let mut machine = Machine::new(bootstrap.variant, back_off, bootstrap.server.data_errors);
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
                let Err(end) = match self.machine.variant() {
                    ads::client::Variant::Sotw => self.converse::<variant::Sotw>().await,
                    ads::client::Variant::Delta => self.converse::<variant::Delta>().await,
                };
                let now = self.now();
                self.machine.handle_disconnected(now, &mut self.rng);
                if end.unknown && self.machine.variant() == ads::client::Variant::Delta {
                    let server = &self.bootstrap.server.address;
                    tracing::info!(%server, "the control plane does not speak the incremental protocol; it is spoken to in the other");
                    self.machine.fall_back();
                    continue;
                }
                self.tell_of_end(&end.why);
                self.connected_since = None;
                self.error = Some(end.why);
                self.untold = true;
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
    async fn converse<V: Variant>(&mut self) -> Result<std::convert::Infallible, End> {
        let bootstrap = self.bootstrap.clone();
        let channel = transport::connect(&bootstrap.server).await?;
        let headers = transport::headers(&bootstrap.server, &bootstrap.node).await?;
        let (outgoing, requests) = mpsc::channel(OUTGOING);
        let mut call = Request::new(ReceiverStream::new(requests));
        *call.metadata_mut() = headers;
        let mut client = Ads::new(channel).max_decoding_message_size(MAX_RESPONSE);
        // Some servers answer nothing, not even headers, before the first request: it is sent while waiting for them.
        let mut opening = std::pin::pin!(V::open(&mut client, call));
        let mut incoming = None;
        let mut writable = true;
        self.machine.handle_connected();
        loop {
            self.settle();
            tokio::select! {
                room = outgoing.reserve(), if writable && self.machine.is_due(self.now()) => match room {
                    Ok(room) => {
                        let now = self.now();
                        if let Some(request) = V::poll(&mut self.machine, now, &bootstrap.node) {
                            room.send(request);
                        }
                    }
                    // The server reads no more; what it has to say about that comes the other way.
                    Err(_) => writable = false,
                },
                answer = &mut opening, if incoming.is_none() => {
                    incoming = Some(answer.map_err(|status| End::of(&status))?.into_inner());
                }
                message = next(&mut incoming) => match message {
                    Ok(Some(response)) => self.receive(V::decode(response)),
                    Ok(None) => return Err("the server ended the stream".to_owned().into()),
                    Err(status) => return Err(End::of(&status)),
                },
                () = tokio::time::sleep_until(self.next_timeout()) => {}
            }
        }
    }

    fn receive(&mut self, heard: Result<Heard, String>) {
        self.connected_since.get_or_insert_with(SystemTime::now);
        self.unreached = false;
        if self.error.take().is_some() {
            tracing::info!(server = %self.bootstrap.server.address, "the control plane answers again");
        }
        self.untold = true;
        let heard = match heard {
            Ok(heard) => heard,
            Err(type_url) => {
                tracing::debug!(type_url, "a response of a type nobody asked for");
                return;
            }
        };
        let (kind, now) = (heard.kind(), self.now());
        let before = self.refusal(kind);
        let ignored = self.ignored.entry(kind).or_default();
        let decode = |kind: TypeUrl, body: &Bytes| -> Result<Part, String> {
            let decoded = decode(kind, body).map_err(|error| error.to_string())?;
            if !decoded.ignored.is_empty() {
                Arc::make_mut(ignored).insert(decoded.name.to_string(), decoded.ignored);
            } else if ignored.contains_key(&*decoded.name) {
                Arc::make_mut(ignored).remove(&*decoded.name);
            }
            Ok(decoded.value)
        };
        match (&mut self.machine, &heard) {
            (Machine::Sotw(machine), Heard::Sotw(response)) => machine.handle_response(response, now, decode),
            (Machine::Delta(machine), Heard::Delta(response)) => machine.handle_response(response, now, decode),
            // A stream and its machine are of one variant.
            _ => return,
        }
        // A server that repeats a refused response is told so each time; people are told once.
        if let Some(message) = self.refusal(kind).filter(|message| before.as_ref() != Some(message)) {
            let version = heard.version();
            tracing::warn!(%kind, version, message, "resources of the control plane were refused");
        }
    }

    fn refusal(&self, kind: TypeUrl) -> Option<String> {
        let report = self.machine.report().into_iter().find(|(reported, _)| *reported == kind)?.1;
        report.refusal.map(|(_, message)| message)
    }

    /// Passes on what the last input caused.
    fn settle(&mut self) {
        let now = self.now();
        self.machine.handle_timeout(now);
        self.graph.handle_timeout(now);
        let mut changed = false;
        while let Some(event) = self.machine.poll_event() {
            match &event {
                Event::Gone(kind, name) | Event::Failed(kind, name, _) => {
                    if let Some(ignored) = self.ignored.get_mut(kind).filter(|ignored| ignored.contains_key(&**name)) {
                        Arc::make_mut(ignored).remove(&**name);
                    }
                }
                Event::Ambient(kind, name, why) => tracing::warn!(%kind, %name, why, "a resource stays as it is"),
                _ => {}
            }
            self.graph.handle_event(event);
            changed = true;
        }
        if changed {
            self.untold = true;
            for kind in [TypeUrl::Endpoint, TypeUrl::Route] {
                if let Some(wanted) = self.graph.poll_wanted(kind) {
                    self.machine.subscribe(kind, Subscription::Names(wanted));
                }
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
        let types = self.machine.report().into_iter().map(|(kind, report)| {
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

/// Why a stream ended.
struct End {
    /// As text only (XD11).
    why: String,
    /// The server does not have the method that was called.
    unknown: bool,
}

impl End {
    fn of(status: &RpcStatus) -> Self {
        Self { why: transport::describe(status), unknown: status.code() == tonic::Code::Unimplemented }
    }
}

impl From<String> for End {
    fn from(why: String) -> Self {
        Self { why, unknown: false }
    }
}

async fn next<T>(incoming: &mut Option<Streaming<T>>) -> Result<Option<T>, RpcStatus> {
    match incoming {
        Some(incoming) => incoming.message().await,
        None => std::future::pending().await,
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
