//! Driver: keeps one ADS stream, to the best of a list of servers, and passes on what becomes of resources.
//!
//! One task: wait, feed one input, drain the outputs. Reading never waits for writing, since a request is made only when
//! the stream has room for it; otherwise two ends that both write first would wait for each other. Reading does wait for
//! whoever takes the events (XD15).
//!
//! Of several servers the first that can be reached is spoken to, but another than the first only while something that is
//! wanted has never come (gRFC A71). Then those before it are tried beside it, and spoken to again as soon as one answers.
//! What is held stays through all changes; nonces and versions do not.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use mesh_core::{config::Name, time::Time};
use rand::{SeedableRng, rngs::SmallRng};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status as RpcStatus, Streaming};

use super::{
    Ignored, MAX_RESPONSE,
    reader::Reader,
    variant::{self, Ads, Heard, Variant},
};
use crate::{
    ads::{self, Event, Subscription, TypeReport, TypeUrl, back_off::BackOff, client::Client as Machine},
    bootstrap::{Bootstrap, Server},
    graph::Part,
    task::Task,
    transport,
};

/// Requests that may be on their way into the stream: one, so that what becomes due meanwhile is said in the next.
const OUTGOING: usize = 1;

/// How often a better server is tried while another is spoken to.
const PROBE: BackOff = BackOff { base: Duration::from_secs(1), factor: 1.6, jitter: 0.2, cap: Duration::from_secs(30) };

/// A server that takes longer to answer its first request is not back yet.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// A server that finds pings too frequent is pinged half as often, but no more seldom than this: what grpc-go's servers allow
/// unless told otherwise, and a little.
const RAREST_PINGS: Duration = Duration::from_secs(310);

/// What is wanted of a stream, by type.
pub(super) type Wants = std::collections::BTreeMap<TypeUrl, Arc<Subscription>>;

/// A stream that is kept for as long as this value.
#[derive(Debug)]
pub(super) struct Stream {
    wants: watch::Sender<Wants>,
    _task: Task,
}

impl Stream {
    /// Starts one; `index` is told with each of its updates.
    pub(super) fn start(
        index: usize,
        bootstrap: Arc<Bootstrap>,
        servers: Vec<Server>,
        updates: mpsc::Sender<Update>,
        reader: Reader,
    ) -> Self {
        let (wants, wanted) = watch::channel(Wants::new());
        let driver = Driver::new(index, bootstrap, servers, wanted, updates, reader);
        Self { wants, _task: Task::spawn(driver.run()) }
    }

    /// Replaces what is wanted of a type.
    pub(super) fn want(&self, kind: TypeUrl, wanted: Subscription) {
        self.wants.send_modify(|wants| drop(wants.insert(kind, Arc::new(wanted))));
    }
}

/// What has happened on a stream.
#[derive(Debug)]
pub(super) struct Update {
    /// Which stream.
    pub(super) index: usize,
    pub(super) events: Vec<Event<Part>>,
    pub(super) state: State,
}

/// How a stream stands.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    /// The address of the server spoken to, or tried.
    pub(super) server: String,
    pub(super) connected_since: Option<SystemTime>,
    pub(super) error: Option<String>,
    pub(super) types: Vec<(TypeUrl, TypeReport)>,
    pub(super) ignored: Ignored,
}

struct Driver {
    index: usize,
    bootstrap: Arc<Bootstrap>,
    servers: Vec<Server>,
    /// Which of them is spoken to, or tried next.
    at: usize,
    began: Instant,
    /// How often the server is asked whether it is still there.
    keepalive: Duration,
    rng: SmallRng,
    machine: Machine<Part>,
    reader: Reader,
    connected_since: Option<SystemTime>,
    error: Option<String>,
    /// The last attempt to reach a server failed; that has been told.
    unreached: bool,
    /// All of them have been tried for what is wanted; the next round begins with the first, after a while.
    exhausted: bool,
    /// Something has happened that the last update does not say.
    untold: bool,
    wants: watch::Receiver<Wants>,
    taken: Wants,
    updates: mpsc::Sender<Update>,
}

/// Why a stream ended.
struct End {
    /// As text only (XD11).
    why: String,
    /// The server does not have the method that was called.
    unknown: bool,
    /// It has too much to do.
    busy: bool,
    /// It was pinged more often than it likes.
    pinged: bool,
    /// A better server answers.
    better: Option<usize>,
}

impl End {
    fn of(status: &RpcStatus) -> Self {
        let pinged = transport::pinged_too_often(status);
        Self {
            unknown: status.code() == tonic::Code::Unimplemented,
            busy: status.code() == tonic::Code::ResourceExhausted && !pinged,
            pinged,
            ..transport::describe(status).into()
        }
    }
}

impl From<String> for End {
    fn from(why: String) -> Self {
        Self { why, unknown: false, busy: false, pinged: false, better: None }
    }
}

impl Driver {
    fn new(
        index: usize,
        bootstrap: Arc<Bootstrap>,
        servers: Vec<Server>,
        wants: watch::Receiver<Wants>,
        updates: mpsc::Sender<Update>,
        reader: Reader,
    ) -> Self {
        let first = &bootstrap.server;
        let first = servers.first().unwrap_or(first);
        let machine = Machine::new(bootstrap.variant, BackOff::STREAM, first.data_errors);
        Self {
            index,
            bootstrap,
            servers,
            at: 0,
            began: Instant::now(),
            keepalive: transport::KEEPALIVE_INTERVAL,
            rng: SmallRng::from_os_rng(),
            machine,
            reader,
            connected_since: None,
            error: None,
            unreached: false,
            exhausted: false,
            untold: false,
            wants,
            taken: Wants::new(),
            updates,
        }
    }

    fn server(&self) -> &Server {
        self.servers.get(self.at).unwrap_or(&self.bootstrap.server)
    }

    async fn run(mut self) {
        loop {
            self.take_wants();
            self.settle().await;
            if self.unreached && self.at == 0 && !self.exhausted && self.servers.len() > 1 && self.machine.lacks() {
                // Something has become wanted while the first of them cannot be reached.
                self.move_to(1);
            }
            let now = self.now();
            if !self.machine.poll_connect(now) {
                let until = self.next_timeout();
                tokio::select! {
                    () = tokio::time::sleep_until(until) => {}
                    changed = self.wants.changed() => if changed.is_err() { return },
                }
                continue;
            }
            let Err(end) = match self.machine.variant() {
                ads::client::Variant::Sotw => self.converse::<variant::Sotw>().await,
                ads::client::Variant::Delta => self.converse::<variant::Delta>().await,
            };
            let now = self.now();
            if end.busy {
                self.machine.handle_busy();
            }
            if end.pinged {
                self.keepalive = (self.keepalive * 2).min(RAREST_PINGS);
            }
            self.machine.handle_disconnected(now, &mut self.rng);
            self.end(end);
        }
    }

    /// Decides where to go on after a stream.
    fn end(&mut self, end: End) {
        let server = self.server().address.clone();
        if end.unknown && self.machine.variant() == ads::client::Variant::Delta {
            tracing::info!(%server, "the control plane does not speak the incremental protocol; it is spoken to in the other");
            self.machine.fall_back();
            return;
        }
        if let Some(better) = end.better {
            tracing::info!(%server, "a better control plane answers again");
            self.connected_since = None;
            self.move_to(better);
            return;
        }
        // People are warned once when the control plane cannot be reached, not at each attempt.
        let why = &end.why;
        let reached = self.connected_since.take().is_some();
        if reached {
            tracing::info!(%server, why, "the stream to the control plane ended");
        } else if self.unreached {
            tracing::debug!(%server, why, "the control plane is still not reached");
        } else {
            tracing::warn!(%server, why, "the control plane cannot be reached; it is tried again until it can");
        }
        self.unreached |= !reached;
        self.error = Some(end.why);
        self.untold = true;
        if !reached && self.at + 1 < self.servers.len() && self.machine.lacks() {
            self.move_to(self.at + 1);
            return;
        }
        // Whatever ended it, the first of the list is the first to be asked, but not at once.
        self.exhausted |= !reached;
        if self.at > 0 {
            self.at = 0;
            self.machine.handle_server_change();
        }
    }

    /// Speaks to another server, at once.
    fn move_to(&mut self, at: usize) {
        self.at = at;
        self.machine.handle_server_change();
        self.machine.connect_now();
        self.untold = true;
    }

    fn take_wants(&mut self) {
        let wants = self.wants.borrow_and_update().clone();
        for (kind, wanted) in &wants {
            if !self.taken.get(kind).is_some_and(|taken| Arc::ptr_eq(taken, wanted)) {
                self.machine.subscribe(*kind, Subscription::clone(wanted));
                self.exhausted = false;
                self.untold = true;
            }
        }
        self.taken = wants;
    }

    /// Connects and holds one stream until it ends; says why it did.
    async fn converse<V: Variant>(&mut self) -> Result<std::convert::Infallible, End> {
        let bootstrap = self.bootstrap.clone();
        let (at, servers) = (self.at, self.servers.clone());
        let server = servers.get(at).unwrap_or(&bootstrap.server);
        let channel = match transport::try_connect(server, self.keepalive).await {
            Ok(channel) => channel,
            Err(failed) => {
                if !failed.nobody {
                    // Somebody is there and could not do it: a server to be spared, as one that ends its streams.
                    self.machine.handle_connected();
                }
                return Err(failed.why.into());
            }
        };
        let headers = transport::headers(server, &bootstrap.node).await?;
        let (outgoing, requests) = mpsc::channel(OUTGOING);
        let mut call = Request::new(ReceiverStream::new(requests));
        *call.metadata_mut() = headers;
        let mut client = Ads::new(channel).max_decoding_message_size(MAX_RESPONSE);
        // Some servers answer nothing, not even headers, before the first request: it is sent while waiting for them.
        let mut opening = std::pin::pin!(V::open(&mut client, call));
        let mut better = std::pin::pin!(probe::<V>(servers.get(..at).unwrap_or_default(), &bootstrap));
        let mut incoming = None;
        let mut writable = true;
        self.machine.handle_connected();
        self.reader.trust(server.trusted);
        loop {
            self.take_wants();
            self.settle().await;
            let (due, until) = (self.machine.is_due(self.now()), self.next_timeout());
            tokio::select! {
                room = outgoing.reserve(), if writable && due => match room {
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
                index = &mut better => {
                    return Err(End { better: Some(index), ..String::new().into() });
                }
                changed = self.wants.changed() => if changed.is_err() {
                    return Err("nobody wants anything any more".to_owned().into());
                },
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }

    fn receive(&mut self, heard: Result<Heard, String>) {
        self.connected_since.get_or_insert_with(SystemTime::now);
        self.unreached = false;
        if self.error.take().is_some() {
            tracing::info!(server = %self.server().address, "the control plane answers again");
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
        let (reader, version) = (&mut self.reader, Name::from(heard.version()));
        let decode = |kind: TypeUrl, body: &Bytes| -> Result<Part, String> { reader.read(kind, &version, body) };
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
    async fn settle(&mut self) {
        self.machine.handle_timeout(self.now());
        let mut events = Vec::new();
        while let Some(event) = self.machine.poll_event() {
            match &event {
                Event::Gone(kind, name) | Event::Failed(kind, name, _) => self.reader.forget(*kind, name),
                Event::Ambient(kind, name, why) => tracing::warn!(%kind, %name, why, "a resource stays as it is"),
                _ => {}
            }
            events.push(event);
        }
        if std::mem::take(&mut self.untold) || !events.is_empty() {
            let state = State {
                server: self.server().address.clone(),
                connected_since: self.connected_since,
                error: self.error.clone(),
                types: self.machine.report(),
                ignored: self.reader.ignored.clone(),
            };
            // Nobody listens any more only when this task is about to end with its owner.
            let _ = self.updates.send(Update { index: self.index, events, state }).await;
        }
    }

    fn now(&self) -> Time {
        Time::ZERO + self.began.elapsed()
    }

    fn next_timeout(&self) -> Instant {
        // Nothing to wait for is an hour: a wake-up that changes nothing.
        let hour = Time::ZERO + self.began.elapsed() + Duration::from_secs(3_600);
        self.began + Duration::from_nanos(self.machine.next_timeout().unwrap_or(hour).as_nanos())
    }
}

async fn next<T>(incoming: &mut Option<Streaming<T>>) -> Result<Option<T>, RpcStatus> {
    match incoming {
        Some(incoming) => incoming.message().await,
        None => std::future::pending().await,
    }
}

/// Waits until one of these servers answers a request.
async fn probe<V: Variant>(servers: &[Server], bootstrap: &Bootstrap) -> usize {
    if servers.is_empty() {
        return std::future::pending().await;
    }
    let mut rng = SmallRng::from_os_rng();
    let mut failures = 0_u32;
    loop {
        failures = failures.saturating_add(1);
        tokio::time::sleep(PROBE.delay(failures, &mut rng)).await;
        for (index, server) in servers.iter().enumerate() {
            if let Ok(Ok(())) = tokio::time::timeout(PROBE_TIMEOUT, ask::<V>(server, bootstrap)).await {
                return index;
            }
        }
    }
}

/// Opens a stream and waits for the answer to one request.
async fn ask<V: Variant>(server: &Server, bootstrap: &Bootstrap) -> Result<(), String> {
    let channel = transport::connect(server).await?;
    let mut machine: Machine<Part> = Machine::new(V::WHICH, BackOff::STREAM, ads::DataErrors::default());
    machine.subscribe(TypeUrl::Listener, Subscription::All);
    machine.poll_connect(Time::ZERO);
    machine.handle_connected();
    let (outgoing, requests) = mpsc::channel(1);
    if let Some(request) = V::poll(&mut machine, Time::ZERO, &bootstrap.node) {
        outgoing.try_send(request).map_err(|_| "no room".to_owned())?;
    }
    let mut call = Request::new(ReceiverStream::new(requests));
    *call.metadata_mut() = transport::headers(server, &bootstrap.node).await?;
    let mut client = Ads::new(channel).max_decoding_message_size(MAX_RESPONSE);
    let answer = V::open(&mut client, call).await.map_err(|status| transport::describe(&status))?;
    match answer.into_inner().message().await {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err("the server ended the stream".to_owned()),
        Err(status) => Err(transport::describe(&status)),
    }
}
