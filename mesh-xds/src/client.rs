//! Driver: feeds the graph with what comes on the streams to the control planes, and publishes configuration.
//!
//! There is one stream for each list of servers (`client/stream.rs`): that of the control plane, and those of authorities
//! that have servers of their own (gRFC A47). One task takes what became of resources on any of them, tells each stream
//! what is wanted of it, and publishes what the graph has made whole.
//!
//! All who ask for the same bootstrap share one client ([`Client::shared`]): a control plane sees one stream of a process.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use mesh_core::{
    config::{Config, Name},
    time::Time,
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

pub use self::status::{Nack, Status, StreamStatus, TypeStatus};
use self::stream::{State, Stream, Update};
use self::{reader::Reader, trusted::Trusted};
use crate::{
    ads::{Event, Subscription, TypeUrl},
    bootstrap::{Bootstrap, Server},
    graph::{Graph, Part},
    profile::Profile,
    resources::Resources,
    task::Task,
    translate::Told,
    xdstp,
};

mod reader;
mod status;
mod stream;
#[cfg(test)]
mod tests;
mod trusted;
mod variant;

/// The largest response taken; gRPC's own default of 4 MiB is below what a large mesh needs.
pub const MAX_RESPONSE: usize = 256 << 20;

/// For so long a listener that nobody dials any more is still asked for: who comes back soon finds it.
pub const IDLE: Duration = Duration::from_secs(300);

/// Updates of streams that may wait to be taken in.
const UPDATES: usize = 1;

/// The clients of this process that are shared, by bootstrap.
static SHARED: Mutex<Vec<(Arc<Bootstrap>, Weak<Client>)>> = Mutex::new(Vec::new());

/// A conversation with the control plane that lasts as long as this value.
#[derive(Debug)]
pub struct Client {
    config: watch::Receiver<Option<Arc<Config>>>,
    status: watch::Receiver<Arc<Status>>,
    told: watch::Receiver<Option<Arc<Told>>>,
    bootstrap: Arc<Bootstrap>,
    dialled: watch::Sender<BTreeMap<Name, usize>>,
    resources: Resources,
    _task: Task,
}

/// A target in use: what is known of it is kept up for as long as this value, and for [`IDLE`] after (XD34).
pub struct Dialled {
    name: Name,
    dialled: watch::Sender<BTreeMap<Name, usize>>,
}

impl Dialled {
    /// What the target is called in LDS.
    pub fn listener(&self) -> &Name {
        &self.name
    }
}

impl fmt::Debug for Dialled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Dialled").field(&self.name).finish()
    }
}

impl Drop for Dialled {
    fn drop(&mut self) {
        self.dialled.send_modify(|dialled| {
            if let Some(count) = dialled.get_mut(&self.name) {
                *count -= 1;
                if *count == 0 {
                    dialled.remove(&self.name);
                }
            }
        });
    }
}

impl Client {
    /// The client of this process for `bootstrap`: all who ask for an equal one share it, and its streams (XD28). Must be
    /// called within a tokio runtime; the client lives on the runtime of whoever came first.
    pub fn shared(bootstrap: Arc<Bootstrap>) -> Arc<Self> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.retain(|(_, client)| client.strong_count() > 0);
        let found = shared.iter().filter(|(of, _)| *of == bootstrap).find_map(|(_, client)| client.upgrade());
        // One whose runtime has ended says nothing any more.
        if let Some(client) = found.filter(|client| client.config.has_changed().is_ok()) {
            return client;
        }
        let client = Arc::new(Self::start(bootstrap.clone()));
        shared.push((bootstrap, Arc::downgrade(&client)));
        client
    }

    /// Starts connecting to the control plane of `bootstrap`, shared with nobody. Must be called within a tokio runtime.
    pub fn start(bootstrap: Arc<Bootstrap>) -> Self {
        let (publish, config) = watch::channel(None);
        let first =
            Status { server: bootstrap.server.address.clone(), node: bootstrap.node.id.clone(), ..Status::default() };
        let (tell, status) = watch::channel(Arc::new(first));
        let dialled = watch::Sender::new(BTreeMap::new());
        let (trust, told) = watch::channel(None);
        let resources = Resources::default();
        let outlets = Outlets { config: publish, status: tell, told: trust };
        let driver = Driver::new(bootstrap.clone(), dialled.subscribe(), outlets, resources.clone());
        Self { config, status, told, bootstrap, dialled, resources, _task: Task::spawn(driver.run()) }
    }

    /// Asks for the listener of a target: `xds:///HOST:PORT`, `xds://AUTHORITY/HOST:PORT` or `HOST:PORT`. Where the profile
    /// is Envoy's, all listeners are asked for in any case.
    ///
    /// # Errors
    /// The bootstrap does not name the authority.
    pub fn dial(&self, target: &str) -> Result<Dialled, String> {
        Ok(self.want_listener(self.bootstrap.listener_of_target(target)?))
    }

    /// Asks for the listener of that name.
    pub fn want_listener(&self, name: Name) -> Dialled {
        self.dialled.send_modify(|dialled| *dialled.entry(name.clone()).or_default() += 1);
        Dialled { name, dialled: self.dialled.clone() }
    }

    /// The configuration in force; `None` until the first is complete. It stays when the control plane is lost (XD9).
    pub fn config(&self) -> watch::Receiver<Option<Arc<Config>>> {
        self.config.clone()
    }

    /// What the control plane says is to be trusted; `None` until it says so, and for ever where it never does. What was said last
    /// stays.
    pub fn told(&self) -> watch::Receiver<Option<Arc<Told>>> {
        self.told.clone()
    }

    /// How the conversation stands.
    pub fn status(&self) -> Arc<Status> {
        self.status.borrow().clone()
    }

    /// How the conversation stands, as it changes.
    pub fn statuses(&self) -> watch::Receiver<Arc<Status>> {
        self.status.clone()
    }

    /// What is known of every resource: what is in force, what was refused, and what became of each field.
    pub fn resources(&self) -> &Resources {
        &self.resources
    }
}

/// Fields without effect by resource.
type Ignored = BTreeMap<TypeUrl, Arc<BTreeMap<String, Vec<String>>>>;

/// A stream with those it goes to.
struct Open {
    servers: Vec<Server>,
    stream: Stream,
    state: State,
}

struct Driver {
    bootstrap: Arc<Bootstrap>,
    began: Instant,
    graph: Graph,
    resources: Resources,
    /// The first is the control plane's.
    streams: Vec<Open>,
    send_updates: mpsc::Sender<Update>,
    updates: mpsc::Receiver<Update>,
    dialled: watch::Receiver<BTreeMap<Name, usize>>,
    /// Listeners that are dialled, or were until a while ago: until when they are asked for.
    listeners: BTreeMap<Name, Option<Time>>,
    /// What is wanted by name, as the graph calls it.
    wanted: BTreeMap<TypeUrl, BTreeSet<Name>>,
    /// How the graph calls what has another canonical name.
    aliases: BTreeMap<(TypeUrl, Name), BTreeSet<Name>>,
    /// Something has happened that the status does not say yet.
    untold: bool,
    outlets: Outlets,
    trust: Trusted,
}

/// Where everybody learns what has come of it.
struct Outlets {
    config: watch::Sender<Option<Arc<Config>>>,
    status: watch::Sender<Arc<Status>>,
    told: watch::Sender<Option<Arc<Told>>>,
}

impl Driver {
    fn new(
        bootstrap: Arc<Bootstrap>,
        dialled: watch::Receiver<BTreeMap<Name, usize>>,
        outlets: Outlets,
        resources: Resources,
    ) -> Self {
        let (send_updates, updates) = mpsc::channel(UPDATES);
        let mut driver = Self {
            graph: match bootstrap.profile {
                Profile::Envoy => Graph::of(bootstrap.node.local()),
                Profile::Grpc => Graph::by_name(bootstrap.node.local()),
            },
            began: Instant::now(),
            resources,
            streams: Vec::new(),
            send_updates,
            updates,
            dialled,
            listeners: BTreeMap::new(),
            wanted: BTreeMap::new(),
            aliases: BTreeMap::new(),
            untold: false,
            outlets,
            trust: Trusted::of(&bootstrap),
            bootstrap,
        };
        let servers = std::iter::once(&driver.bootstrap.server).chain(&driver.bootstrap.fallbacks).cloned().collect();
        driver.open(servers);
        if driver.bootstrap.profile == Profile::Envoy {
            driver.subscribe(0, TypeUrl::Cluster, Subscription::All);
            driver.subscribe(0, TypeUrl::Listener, Subscription::All);
        }
        if driver.bootstrap.ca.is_some() {
            driver.subscribe(0, TypeUrl::Secret, Subscription::Names(Trusted::names()));
        }
        driver
    }

    async fn run(mut self) {
        self.take_dialled();
        loop {
            self.settle();
            let until = self.next_timeout();
            tokio::select! {
                // Never closed: the driver holds a sender.
                Some(update) = self.updates.recv() => self.take(update),
                changed = self.dialled.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.take_dialled();
                }
                () = tokio::time::sleep_until(until) => self.expire_listeners(),
            }
        }
    }

    /// The stream to these servers: equal lists share one (XD26).
    fn open(&mut self, servers: Vec<Server>) -> usize {
        if let Some(index) = self.streams.iter().position(|open| open.servers == servers) {
            return index;
        }
        let index = self.streams.len();
        let (updates, reader) =
            (self.send_updates.clone(), Reader::of(self.resources.clone(), self.bootstrap.context()));
        let stream = Stream::start(index, self.bootstrap.clone(), servers.clone(), updates, reader);
        self.streams.push(Open { servers, stream, state: State::default() });
        index
    }

    fn subscribe(&self, index: usize, kind: TypeUrl, wanted: Subscription) {
        if let Some(open) = self.streams.get(index) {
            open.stream.want(kind, wanted);
        }
    }

    fn take(&mut self, update: Update) {
        self.untold = true;
        for event in update.events {
            // Only the control plane's own stream says that a type is complete.
            if let Event::Changed(_, name, Part::Secret(secret)) = &event
                && Trusted::names().contains(name)
            {
                self.trust.take(name, secret.clone());
            } else if matches!(event, Event::Changed(_, _, Part::Secret(_))) {
                self.take_event(event);
            } else if event.kind() == TypeUrl::Secret {
                tracing::debug!(?event, "nothing new is to be trusted");
            } else if update.index == 0 || !matches!(event, Event::Synced(_)) {
                self.take_event(event);
            }
        }
        if let Some(open) = self.streams.get_mut(update.index) {
            open.state = update.state;
        }
    }

    fn take_event(&mut self, event: Event<Part>) {
        let key = match &event {
            _ if self.aliases.is_empty() => None,
            Event::Changed(kind, name, _)
            | Event::Refused(kind, name, _)
            | Event::Failed(kind, name, _)
            | Event::Ambient(kind, name, _)
            | Event::Gone(kind, name) => self.aliases.get(&(*kind, name.clone())),
            Event::Synced(_) => None,
        };
        for alias in key.into_iter().flatten() {
            let alias = alias.clone();
            self.graph.handle_event(match event.clone() {
                Event::Changed(kind, _, part) => Event::Changed(kind, alias, part),
                Event::Refused(kind, _, why) => Event::Refused(kind, alias, why),
                Event::Failed(kind, _, why) => Event::Failed(kind, alias, why),
                Event::Ambient(kind, _, why) => Event::Ambient(kind, alias, why),
                Event::Gone(kind, _) => Event::Gone(kind, alias),
                Event::Synced(kind) => Event::Synced(kind),
            });
        }
        self.graph.handle_event(event);
    }

    fn take_dialled(&mut self) {
        let now = self.now();
        let dialled: BTreeSet<Name> = self.dialled.borrow_and_update().keys().cloned().collect();
        for (name, until) in &mut self.listeners {
            if dialled.contains(name) {
                *until = None;
            } else {
                until.get_or_insert(now + IDLE);
            }
        }
        self.listeners.extend(dialled.into_iter().map(|name| (name, None)));
        self.want_listeners();
    }

    fn expire_listeners(&mut self) {
        let (now, before) = (self.now(), self.listeners.len());
        self.listeners.retain(|_, until| until.is_none_or(|until| until > now));
        if self.listeners.len() < before {
            self.want_listeners();
        }
    }

    fn want_listeners(&mut self) {
        if self.bootstrap.profile == Profile::Grpc {
            let names: BTreeSet<Name> = self.listeners.keys().cloned().collect();
            self.graph.want_listeners(&names);
            self.want(TypeUrl::Listener, names);
            self.untold = true;
        }
    }

    /// Asks for these names of a type and for no others, each where its authority is.
    fn want(&mut self, kind: TypeUrl, names: BTreeSet<Name>) {
        if self.wanted.get(&kind).map_or(names.is_empty(), |wanted| *wanted == names) {
            return;
        }
        self.resources.wanted(kind, &names.iter().map(|name| xdstp::canonical(name).as_ref().into()).collect());
        let mut groups: Vec<BTreeSet<Name>> = vec![BTreeSet::new(); self.streams.len()];
        self.aliases.retain(|(of, _), _| *of != kind);
        for name in &names {
            let canonical: Name = xdstp::canonical(name).as_ref().into();
            let index = match xdstp::authority(&canonical) {
                None => 0,
                Some(authority) => match self.bootstrap.servers_of(&canonical) {
                    Some(servers) => self.open(servers.into_iter().cloned().collect()),
                    None => {
                        let why = format!("{kind} {name:?}: the bootstrap's authorities have no {authority:?}");
                        self.graph.handle_event(Event::Failed(kind, name.clone(), why));
                        continue;
                    }
                },
            };
            if canonical != *name {
                self.aliases.entry((kind, canonical.clone())).or_default().insert(name.clone());
            }
            groups.resize(self.streams.len(), BTreeSet::new());
            if let Some(group) = groups.get_mut(index) {
                group.insert(canonical);
            }
        }
        for (index, group) in groups.into_iter().enumerate() {
            self.subscribe(index, kind, Subscription::Names(group));
        }
        self.wanted.insert(kind, names);
    }

    /// Passes on what the last input caused.
    fn settle(&mut self) {
        let now = self.now();
        self.graph.handle_timeout(now);
        if self.untold {
            self.pass_wants();
        }
        while let Some(config) = self.graph.poll_config(now) {
            self.outlets.config.send_replace(Some(config));
            self.pass_wants();
        }
        if let Some(told) = self.trust.poll() {
            self.outlets.told.send_replace(Some(told));
        }
        if std::mem::take(&mut self.untold) {
            self.report();
        }
    }

    /// Asks for what has become wanted; by gRPC's rules clusters are, too, by the names that routes have for them.
    fn pass_wants(&mut self) {
        for kind in [TypeUrl::Endpoint, TypeUrl::Route] {
            if let Some(wanted) = self.graph.poll_wanted(kind) {
                self.want(kind, wanted);
            }
        }
        if self.bootstrap.profile == Profile::Grpc {
            let wanted = self.graph.wanted(TypeUrl::Cluster);
            self.want(TypeUrl::Cluster, wanted);
        }
        if self.bootstrap.is_gateway() {
            let mut wanted = self.graph.wanted(TypeUrl::Secret);
            wanted.extend(self.bootstrap.ca.iter().flat_map(|_| Trusted::names()));
            self.want(TypeUrl::Secret, wanted);
        }
    }

    fn report(&self) {
        let mut statuses = self.streams.iter().map(|open| open.state.status());
        let first = statuses.next().unwrap_or_default();
        let status = Status {
            server: first.server,
            node: self.bootstrap.node.id.clone(),
            connected_since: first.connected_since,
            error: first.error,
            types: first.types,
            others: statuses.collect(),
        };
        self.outlets.status.send_if_modified(|told| {
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
        let idle = self.listeners.values().flatten().copied();
        let next = self.graph.next_timeout(self.now()).into_iter().chain(idle).min();
        // Nothing to wait for is an hour: a wake-up that changes nothing.
        let hour = Time::ZERO + self.began.elapsed() + Duration::from_secs(3_600);
        self.began + Duration::from_nanos(next.unwrap_or(hour).as_nanos())
    }
}
