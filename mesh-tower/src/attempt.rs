//! What a request is between the layers: [`Routed`], then [`Attempt`], then [`Picked`]; and [`Call`], what they share.
//!
//! Each stage of deciding has its own type, so that layers in a wrong order do not compile: only a routed request can
//! be timed and retried, only an attempt can be given an endpoint, only a request with an endpoint can be sent through
//! a pool. The `Call` is the plan, and a journal of what happened, which the layers below write and the layers above
//! read; its memory is used for one request after the other.

use std::{
    cell::RefCell,
    fmt,
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use http::{HeaderMap, HeaderValue, StatusCode, request::Parts};
use mesh_core::{
    cluster::Cluster,
    config::Name,
    endpoint::{Endpoint, Tried},
    filter::FilterAnswer,
    mirror::MirrorPolicy,
    outcome::Flags,
    plan::{Plan, Target},
    rewrite,
    rng::RequestRng,
};
use tokio::time::Instant;

use crate::{
    body::Progress,
    error::{Error, ErrorKind},
    live::Live,
    message::Message,
    source,
    telemetry::{Again, Meter, Peer},
};

/// A request with the decision what to do with it.
#[derive(Debug)]
pub struct Routed {
    /// The request.
    pub request: Message,
    /// The decision, and what has happened since.
    pub call: Call,
    /// When it has to be over; `None` is never.
    pub deadline: Option<Instant>,
    /// When it came to where it is. Who made it wait on the way here reads the clock again, so that nobody else has to.
    pub now: Instant,
}

/// One try of a request.
#[derive(Debug)]
pub struct Attempt {
    /// The request, as this try sends it.
    pub request: Message,
    /// The decision, and what has happened since.
    pub call: Call,
    /// When the whole request has to be over; `None` is never.
    pub deadline: Option<Instant>,
    /// When the headers of this try's response have to be here; never after `deadline`.
    pub try_deadline: Option<Instant>,
    /// 1 is the first.
    pub number: u32,
    /// When it was begun.
    pub begun: Instant,
}

/// One try with the endpoint it goes to; whoever gets it only sends it.
#[derive(Debug)]
pub struct Picked {
    /// The request, as this try sends it.
    pub request: Message,
    /// The decision, and what has happened since.
    pub call: Call,
    /// When the headers of the response have to be here; the layers above see to it, so this is for information.
    pub deadline: Option<Instant>,
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) endpoint: Arc<Endpoint>,
}

impl Picked {
    /// Where it goes.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// The cluster the endpoint is of.
    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    /// The decision.
    #[inline]
    pub fn plan(&self) -> &Plan {
        self.call.plan()
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let Some(mut record) = self.0.take() else { return };
        if Arc::strong_count(&record) > 1 {
            return;
        }
        let Some(last) = Arc::get_mut(&mut record) else { return };
        // What a request held on to, clusters and endpoints above all, is not kept with its memory.
        (last.plan, last.refused, last.location, last.progress) = (None, None, None, Progress::default());
        (last.request, last.copies, last.waits_on, last.filtered) = (None, Vec::new(), None, None);
        last.meter = OnceLock::new();
        let journal = last.journal.get_mut().unwrap_or_else(PoisonError::into_inner);
        (journal.endpoint, journal.cluster, journal.peer) = (None, None, None);
        let _ = RECORDS.try_with(|records| {
            let mut records = records.borrow_mut();
            if records.len() < SPARE {
                records.push(record);
            }
        });
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Call").field(self.record()).finish()
    }
}

impl From<Routed> for Attempt {
    /// The only try: what a balancer without retries above it makes of a request.
    fn from(routed: Routed) -> Self {
        let Routed { request, call, deadline, now } = routed;
        Self { request, call, deadline, try_deadline: deadline, number: 1, begun: now }
    }
}

/// One request from end to end: what was decided, and a journal of what happened.
///
/// A handle: clones are of the same request. The last one gives its memory back to the thread, for the next request.
#[derive(Clone)]
pub struct Call(Option<Arc<Record>>);

/// Records a thread keeps.
const SPARE: usize = 64;

thread_local! {
    static RECORDS: RefCell<Vec<Arc<Record>>> = const { RefCell::new(Vec::new()) };
}

#[derive(Debug)]
struct Record {
    /// None while nobody uses the record.
    plan: Option<Plan>,
    refused: Option<(ErrorKind, String)>,
    /// What a filter answered by itself.
    filtered: Option<Box<FilterAnswer>>,
    /// The `location` of an answer made here.
    location: Option<HeaderValue>,
    /// The head as it was sent, where changes of the response ask for it.
    request: Option<Box<Parts>>,
    /// Who gets copies.
    copies: Vec<(Arc<MirrorPolicy>, Arc<Cluster>)>,
    /// What it waits on for an endpoint, if it is to wait.
    waits_on: Option<Arc<Live>>,
    /// A copy of another request.
    is_copy: bool,
    /// When it left the application.
    begun: Instant,
    progress: Progress,
    /// What measures it beside Istio's metrics, where anything does.
    meter: OnceLock<Meter>,
    /// What happened on the way.
    flags: AtomicU32,
    journal: Mutex<Journal>,
}

#[derive(Debug)]
pub(crate) struct Journal {
    pub(crate) rng: RequestRng,
    pub(crate) tried: Tried,
    pub(crate) endpoint: Option<Arc<Endpoint>>,
    /// The plan's cluster as it became while the request waited for it.
    pub(crate) cluster: Option<Arc<Cluster>>,
    pub(crate) peer: Option<Arc<Peer>>,
    pub(crate) attempts: u32,
    /// Of a streamed request, what its route allows from the end of the request's body on.
    pub(crate) allowed: Option<Duration>,
    /// Its route's time is up.
    pub(crate) ran_out: bool,
    /// It waited for an endpoint until then.
    pub(crate) waited: Option<SystemTime>,
    /// How often it was tried again.
    pub(crate) again: Again,
}

impl Record {
    /// For a new request. What the last one that had it left behind was emptied when that was over.
    fn begin(&mut self, plan: Plan, refused: Option<(ErrorKind, String)>, rng: RequestRng, progress: Progress) {
        let journal = self.journal.get_mut().unwrap_or_else(PoisonError::into_inner);
        journal.tried.restart(plan.route.retry.as_ref());
        (journal.rng, journal.attempts, journal.allowed, journal.ran_out) = (rng, 0, None, false);
        (journal.waited, journal.again) = (None, Again::default());
        *self.flags.get_mut() = 0;
        self.plan = Some(plan);
        self.refused = refused;
        self.progress = progress;
        self.is_copy = false;
        self.begun = source::instant();
    }
}

impl Default for Record {
    /// Of no request yet.
    fn default() -> Self {
        let journal = Journal {
            rng: RequestRng::new(0, 0),
            tried: Tried::default(),
            endpoint: None,
            cluster: None,
            peer: None,
            attempts: 0,
            allowed: None,
            ran_out: false,
            waited: None,
            again: Again::default(),
        };
        Self {
            plan: None,
            refused: None,
            filtered: None,
            location: None,
            request: None,
            copies: Vec::new(),
            waits_on: None,
            is_copy: false,
            begun: source::instant(),
            progress: Progress::default(),
            meter: OnceLock::new(),
            flags: AtomicU32::new(0),
            journal: Mutex::new(journal),
        }
    }
}

impl Call {
    #[inline]
    pub(crate) fn new(plan: Plan, rng: RequestRng, progress: Progress) -> Self {
        Self::recorded(plan, None, rng, progress)
    }

    fn recorded(plan: Plan, refused: Option<(ErrorKind, String)>, rng: RequestRng, progress: Progress) -> Self {
        let spare = RECORDS.try_with(|records| records.borrow_mut().pop()).ok().flatten();
        let mut record = spare.unwrap_or_default();
        if let Some(unused) = Arc::get_mut(&mut record) {
            unused.begin(plan, refused, rng, progress);
        }
        Self(Some(record))
    }

    #[inline]
    fn record(&self) -> &Record {
        match &self.0 {
            Some(record) => record,
            None => unreachable!("a call has its record until it is dropped"),
        }
    }

    /// A request that cannot go anywhere, which the layers still time, count and tell of.
    pub(crate) fn refused(why: (ErrorKind, String), is_grpc: bool, rng: RequestRng, progress: Progress) -> Self {
        let mut plan = Plan::new(Arc::default(), Target::NoCluster(Name::default()));
        plan.is_grpc = is_grpc;
        Self::recorded(plan, Some(why), rng, progress)
    }

    /// With the place a redirect points to.
    pub(crate) fn located(mut self, location: Option<HeaderValue>) -> Self {
        if let Some(record) = self.0.as_mut().and_then(Arc::get_mut) {
            record.location = location;
        }
        self
    }

    /// Answered by a filter: it goes no further than the balancer.
    pub(crate) fn filtered(mut self, answer: FilterAnswer) -> Self {
        if let Some(record) = self.0.as_mut().and_then(Arc::get_mut) {
            record.filtered = Some(Box::new(answer));
        }
        self
    }

    /// With what changes of the response need to know of the request.
    pub(crate) fn remembering(mut self, request: Option<Box<Parts>>) -> Self {
        if let Some(record) = self.0.as_mut().and_then(Arc::get_mut) {
            record.request = request;
        }
        self
    }

    /// With those who get copies of the request.
    pub(crate) fn copied_to(mut self, copies: Vec<(Arc<MirrorPolicy>, Arc<Cluster>)>) -> Self {
        if let Some(record) = self.0.as_mut().and_then(Arc::get_mut) {
            record.copies = copies;
        }
        self
    }

    /// As a copy of another request: tried once, and at nobody's expense.
    pub(crate) fn for_a_copy(mut self) -> Self {
        if let Some(record) = self.0.as_mut().and_then(Arc::get_mut) {
            record.is_copy = true;
        }
        self
    }

    /// Measured by this, where anything measures it.
    pub(crate) fn measure(&self, meter: Option<Meter>) {
        if let Some(meter) = meter {
            // A call is measured by one layer.
            let _ = self.record().meter.set(meter);
        }
    }

    /// What measures it beside Istio's metrics, where anything does.
    #[inline]
    pub(crate) fn meter(&self) -> Option<&Meter> {
        self.record().meter.get()
    }

    /// It is a copy of another request.
    #[inline]
    pub(crate) fn is_copy(&self) -> bool {
        self.record().is_copy
    }

    /// With what it waits on, instead of failing for want of an endpoint.
    pub(crate) fn waiting_on(mut self, live: &Arc<Live>) -> Self {
        if let Some(record) = self.0.as_mut().and_then(Arc::get_mut) {
            record.waits_on = Some(Arc::clone(live));
        }
        self
    }

    /// What it waits on for an endpoint, if it is to wait.
    #[inline]
    pub(crate) fn waits_on(&self) -> Option<&Arc<Live>> {
        self.record().waits_on.as_ref()
    }

    /// Who gets copies of the request, and in which cluster.
    #[inline]
    pub(crate) fn copies(&self) -> &[(Arc<MirrorPolicy>, Arc<Cluster>)] {
        &self.record().copies
    }

    /// Changes the headers of a response, the mesh's own included, as the plan says.
    pub(crate) fn change_response(&self, status: StatusCode, headers: &mut HeaderMap) {
        let plan = self.plan();
        // A fault in front of a route that answers by itself is not that route's answer.
        if plan.fault.abort.is_some() && matches!(plan.target, Target::Redirect | Target::Respond) {
            return;
        }
        rewrite::on_response(plan, self.record().request.as_deref(), status.as_u16(), headers);
        plan.route.filters.iter().rev().for_each(|filter| filter.response(status, headers));
    }

    /// It goes nowhere: there is nothing to time.
    #[inline]
    pub(crate) fn is_refused(&self) -> bool {
        self.record().refused.is_some()
    }

    /// The decision.
    pub fn plan(&self) -> &Plan {
        static NONE: LazyLock<Plan> = LazyLock::new(|| Plan::new(Arc::default(), Target::Respond));
        self.record().plan.as_ref().unwrap_or_else(|| &NONE)
    }

    /// When it left the application.
    #[inline]
    pub fn begun(&self) -> Instant {
        self.record().begun
    }

    /// How far the request's body has come.
    #[inline]
    pub(crate) fn progress(&self) -> &Progress {
        &self.record().progress
    }

    /// The endpoint of the last try, if it came that far.
    pub fn endpoint(&self) -> Option<Arc<Endpoint>> {
        self.journal().endpoint.clone()
    }

    /// Who answered the last try, if whoever sends requests could tell.
    pub fn peer(&self) -> Option<Arc<Peer>> {
        self.journal().peer.clone()
    }

    /// How many tries there were.
    pub fn attempts(&self) -> u32 {
        self.journal().attempts
    }

    /// What happened on the way, beside the last failure's own flags: an injected delay, retries used up.
    #[inline]
    pub fn flags(&self) -> Flags {
        Flags::from_bits(self.record().flags.load(Relaxed))
    }

    /// Bytes of the request's body read so far.
    pub fn request_bytes(&self) -> u64 {
        self.progress().bytes()
    }

    /// Whoever sends the request learnt who answered.
    pub(crate) fn met(&self, peer: Arc<Peer>) {
        self.journal().peer = Some(peer);
    }

    /// Something happened on the way.
    pub(crate) fn note(&self, flags: Flags) {
        self.record().flags.fetch_or(flags.bits(), Relaxed);
    }

    /// Never held over an await.
    #[inline]
    pub(crate) fn journal(&self) -> MutexGuard<'_, Journal> {
        self.record().journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the request goes to no destination, if it does not: refusals, redirects, direct responses.
    pub(crate) fn own_answer(&self) -> Option<Error> {
        if let Some((kind, why)) = &self.record().refused {
            return Some(Error::msg(*kind, why.clone()));
        }
        if let Some(FilterAnswer { status, body }) = self.record().filtered.as_deref() {
            return Some(Error::answered(*status, body.clone(), None));
        }
        let plan = self.plan();
        let route = &plan.route;
        match &plan.target {
            Target::NoCluster(name) => Some(Error::no_cluster(name, route.no_cluster_status)),
            Target::Respond => {
                let (status, body) = route.respond.as_ref().map_or((500, ""), |own| (own.status, own.body.as_str()));
                Some(Error::answered(status, body.to_owned(), self.record().location.clone()))
            }
            Target::Redirect => {
                let status = route.redirect.as_ref().map_or(301, |redirect| redirect.status);
                Some(Error::answered(status, String::new(), self.record().location.clone()))
            }
            _ => None,
        }
    }
}
