//! One endpoint: its configuration, the live cell that survives reconfiguration, and the slot a request holds on it.
//!
//! The cell is a few atomics: requests under way, smoothed latency, failures in a row. An endpoint that leaves the
//! configuration and comes back while requests are still under way finds its old cell.

use std::{
    any::Any,
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use crate::{
    balance::Reported,
    cluster::Cluster,
    config::{self, EndpointAddress, Health, LoadBalancer, RoutingPriority},
    load::LoadReport,
    outcome::{Failure, Outcome},
    outlier,
    sync::{AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Time,
};

mod seats;

pub(crate) use seats::{Hot, Seat, Seats};

/// One endpoint of a cluster, as one snapshot sees it.
#[derive(Debug)]
pub struct Endpoint {
    pub(crate) cell: Arc<Cell>,
    /// Of its address; tells endpoints apart across tries and snapshots.
    pub(crate) id: u64,
    weight: u32,
    /// Index of its priority in the cluster.
    pub(crate) level: u32,
    /// Index of its locality in the priority.
    pub(crate) place: u32,
    pub(crate) attachments: Arc<Attachments>,
    config: config::Endpoint,
}

impl Endpoint {
    /// At a level and place of its cluster.
    pub(crate) fn new(
        config: config::Endpoint,
        (level, place): (u32, u32),
        cell: Arc<Cell>,
        attachments: Arc<Attachments>,
    ) -> Self {
        let id = crate::route::name_hash(&config.address.to_string());
        Self { cell, id, weight: config.weight.max(1), level, place, attachments, config }
    }

    /// As the control plane gave it.
    #[inline]
    pub fn config(&self) -> &config::Endpoint {
        &self.config
    }

    /// Index of its priority in the cluster, and of its locality among those of that priority.
    pub fn place(&self) -> (u32, u32) {
        (self.level, self.place)
    }

    /// Where it listens.
    #[inline]
    pub fn address(&self) -> &EndpointAddress {
        &self.config.address
    }

    /// Its share, at least 1.
    pub fn weight(&self) -> u32 {
        self.weight
    }

    /// Requests under way.
    pub fn in_flight(&self) -> u32 {
        self.hot().in_flight.load(Relaxed)
    }

    /// What a pick compares of it.
    pub(crate) fn hot(&self) -> &Hot {
        self.cell.seat.hot()
    }

    /// Left out for failing; ends at a sweep.
    pub fn is_ejected(&self) -> bool {
        self.cell.outlier().is_ejected()
    }

    /// Its active health check fails, or has not passed yet.
    pub fn is_failing_checks(&self) -> bool {
        self.hot().fails_checks.load(Relaxed)
    }

    /// As many requests are under way as it may have at once.
    pub(crate) fn is_full(&self) -> bool {
        self.hot().is_full()
    }

    /// Of a half-open endpoint: may this request try it?
    pub(crate) fn is_worth_a_probe(&self, tried: &Tried) -> bool {
        let usable = matches!(self.config.health, Health::Healthy | Health::Degraded);
        usable && !self.is_failing_checks() && !self.is_full() && !tried.avoids(self)
    }

    /// It gets no requests for now, whatever the configuration says of its health.
    pub(crate) fn is_out(&self) -> bool {
        self.hot().is_out()
    }

    /// No connection could be made lately: others are preferred until its back-off ends.
    pub fn is_unreachable(&self, now: Time) -> bool {
        self.hot().is_unreachable(now)
    }

    /// How long it has been in use; matters to slow start alone, and is zero before the first pick of its cluster.
    pub(crate) fn age(&self, now: Time) -> Duration {
        match self.cell.since.load(Relaxed) {
            0 => Duration::ZERO,
            since => now.saturating_since(Time::from_nanos(since - 1)),
        }
    }

    /// Its slow start begins now: it is new, or healthy again by active checks.
    pub(crate) fn begin(&self, now: Time) {
        self.cell.since.store(now.as_nanos() + 1, Relaxed);
    }

    /// Its slow start begins now if it never did.
    pub(crate) fn begin_once(&self, now: Time) {
        let _ = self.cell.since.compare_exchange(0, now.as_nanos() + 1, Relaxed, Relaxed);
    }

    /// What it has reported of its load.
    pub(crate) fn reported(&self) -> &Reported {
        self.cell.reported.get_or_init(Box::default)
    }

    /// The smoothed time to answer, decayed to `now`; `None` before the first answer.
    pub fn latency(&self, now: Time) -> Option<Duration> {
        self.hot().ewma.read(now)
    }

    /// May it get requests: healthy as configured and as checked, and not ejected?
    pub fn is_usable(&self) -> bool {
        self.config.health == Health::Healthy && !self.is_ejected() && !self.is_failing_checks()
    }

    /// What whoever executes requests keeps at this endpoint, made at the first call: its connection pool, above all.
    ///
    /// It lives as long as the endpoint does in the configuration or in a pick, across snapshots, and is made anew when
    /// the cluster's protocol or TLS changes. One value a type.
    pub fn attached<T: Any + Send + Sync>(&self, make: impl FnOnce() -> T) -> &T {
        self.attachments.find_or_make(make)
    }
}

/// What survives reconfiguration.
#[derive(Debug)]
pub(crate) struct Cell {
    /// What a pick compares.
    pub(crate) seat: Seat,
    /// What is counted for ejection; endpoints without detection do without.
    counts: OnceLock<Box<outlier::Counts>>,
    connect_failures: AtomicU32,
    /// When it came into use, in nanoseconds of [`Time`] plus one; 0 is not known.
    pub(crate) since: AtomicU64,
    /// Of policies that ask for it.
    reported: OnceLock<Box<Reported>>,
}

impl Cell {
    pub(crate) fn new(seats: &Arc<Seats>) -> Self {
        Self {
            seat: seats.take(),
            counts: OnceLock::new(),
            connect_failures: AtomicU32::new(0),
            since: AtomicU64::new(0),
            reported: OnceLock::new(),
        }
    }

    /// What ejection knows of it.
    pub(crate) fn outlier(&self) -> outlier::Cell<'_> {
        outlier::Cell::new(&self.seat.hot().ejected, &self.counts)
    }

    /// A connection failed: others are preferred for a while, doubling from half a second to five.
    ///
    /// gRPC leaves a subchannel out while it is in `TRANSIENT_FAILURE`; here a request is the probe when the time is up.
    fn note_reachable(&self, outcome: &Outcome, now: Time) {
        if matches!(outcome.failure, Some(Failure::Connect | Failure::Tls)) {
            let failures = self.connect_failures.fetch_add(1, Relaxed).min(4);
            let wait = (CONNECT_BACK_OFF * (1 << failures)).min(MAX_CONNECT_BACK_OFF);
            self.seat.hot().unreachable_until.store((now + wait).as_nanos(), Relaxed);
        } else if outcome.failure.is_none() {
            self.connect_failures.store(0, Relaxed);
            self.seat.hot().unreachable_until.store(0, Relaxed);
        }
    }
}

const CONNECT_BACK_OFF: Duration = Duration::from_millis(500);
const MAX_CONNECT_BACK_OFF: Duration = Duration::from_secs(5);

/// Values of any type, one each, made at first use: a list that only grows, so that reading takes no lock.
#[derive(Default)]
pub(crate) struct Attachments {
    first: OnceLock<Box<Node>>,
}

struct Node {
    value: Box<dyn Any + Send + Sync>,
    next: OnceLock<Box<Self>>,
}

impl Attachments {
    fn find_or_make<T: Any + Send + Sync>(&self, make: impl FnOnce() -> T) -> &T {
        let mut make = Some(make);
        let mut slot = &self.first;
        loop {
            let node = slot.get_or_init(|| {
                // Taken at most once: after it ran, this node holds a T and the loop ends.
                let value: Box<dyn Any + Send + Sync> = match make.take() {
                    Some(make) => Box::new(make()),
                    None => Box::new(()),
                };
                Box::new(Node { value, next: OnceLock::new() })
            });
            if let Some(value) = node.value.downcast_ref() {
                return value;
            }
            slot = &node.next;
        }
    }
}

impl fmt::Debug for Attachments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attachments").field("any", &self.first.get().is_some()).finish()
    }
}

/// An endpoint chosen for one try, holding its slots. Dropping it frees them and blames nobody: cancelling is no failure
/// of the endpoint, though reports of load count what did not end well.
#[derive(Debug)]
#[must_use = "dropping it frees the endpoint without recording what happened"]
pub struct Pick {
    cluster: Arc<Cluster>,
    chosen: Chosen,
    priority: RoutingPriority,
    started: Time,
    responded: Option<Time>,
    /// It is the one request of a half-open endpoint.
    probe: bool,
    succeeded: bool,
    /// What the endpoint said of its load, where that is to be reported.
    load: Option<Box<LoadReport>>,
}

/// Which endpoint it is.
#[derive(Clone, Debug)]
pub(crate) enum Chosen {
    /// One of the cluster's, by number: nothing of it is touched but its seat.
    Member(u32),
    /// One that the caller named.
    Named(Arc<Endpoint>),
}

impl Pick {
    /// The caller has acquired the cluster's request slot; the endpoint's is taken here. The error is that it has none.
    pub(crate) fn new(
        cluster: &Arc<Cluster>,
        chosen: Chosen,
        priority: RoutingPriority,
        started: Time,
    ) -> Option<Self> {
        let hot = cluster.hot_of(&chosen)?;
        // Add first and take back, as the cluster's own counters do.
        if hot.in_flight.fetch_add(1, Relaxed) >= hot.most.load(Relaxed) {
            hot.in_flight.fetch_sub(1, Relaxed);
            return None;
        }
        let cluster = Arc::clone(cluster);
        if let Some(tally) = cluster.tally(&chosen) {
            tally.begin();
        }
        let (responded, probe, succeeded, load) = (None, false, false, None);
        Some(Self { cluster, chosen, priority, started, responded, probe, succeeded, load })
    }

    /// As the one request of a half-open endpoint, which the caller has claimed.
    pub(crate) fn probing(mut self) -> Self {
        self.probe = true;
        self
    }

    /// Where the try goes.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        match self.cluster.endpoint_of(&self.chosen) {
            Some(endpoint) => endpoint,
            None => unreachable!("a pick is of an endpoint of its cluster"),
        }
    }

    /// The cluster it was picked from.
    #[inline]
    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    /// When it was picked.
    pub fn started(&self) -> Time {
        self.started
    }

    /// The response's headers are here: its latency ends now, while its slots are held to the end of the body.
    #[inline]
    pub fn responded(&mut self, now: Time) {
        self.responded.get_or_insert(now);
    }

    /// Do reports of load change anything?
    #[inline]
    pub fn wants_load(&self) -> bool {
        self.balances_by_load() || self.cluster.reported_metrics().is_some()
    }

    fn balances_by_load(&self) -> bool {
        matches!(&self.cluster.config().load_balancer, LoadBalancer::ClientWeighted(own) if own.out_of_band.is_none())
    }

    /// The endpoint has reported its load.
    pub fn report(&mut self, report: LoadReport, now: Time) {
        if self.balances_by_load() {
            self.cluster.report(self.endpoint(), &report, now);
        }
        // Of several with one response the last is its.
        self.load = self.cluster.reported_metrics().map(|_| Box::new(report));
    }

    /// Records what became of the try, for balancing and ejection, and frees the slots.
    pub fn finish(mut self, outcome: &Outcome, now: Time) {
        self.succeeded = outcome.is_success();
        let blamed = outcome.failure.is_some_and(Failure::blames_endpoint);
        if outcome.failure.is_some() && !blamed {
            return;
        }
        let Some(hot) = self.cluster.hot_of(&self.chosen) else { return };
        let config = self.cluster.config();
        // What succeeds at an endpoint that can be reached changes nothing.
        if config.avoid_unreachable && (blamed || hot.unreachable_until.load(Relaxed) != 0) {
            self.endpoint().cell.note_reachable(outcome, now);
        }
        let took = self.responded.unwrap_or(now).saturating_since(self.started);
        hot.ewma.observe(took, outcome.is_success(), now);
        if std::mem::take(&mut self.probe) {
            self.cluster.record_probe(self.endpoint(), outcome, took, now);
        } else if config.outlier_detection.is_some() {
            self.cluster.record(self.endpoint(), outcome, took, now);
        }
    }
}

impl Drop for Pick {
    fn drop(&mut self) {
        if self.probe {
            self.cluster.release_probe(self.endpoint());
        }
        if let Some(hot) = self.cluster.hot_of(&self.chosen) {
            hot.in_flight.fetch_sub(1, Relaxed);
        }
        self.cluster.counters(self.priority).requests.release();
        if let Some(tally) = self.cluster.tally(&self.chosen) {
            tally.end(self.succeeded);
            if let (Some(load), Some(wanted)) = (&self.load, self.cluster.reported_metrics()) {
                tally.note(load, wanted);
            }
        }
    }
}

/// Endpoints that earlier tries of a request went to, so that a retry goes elsewhere (RT13). Small and inline.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tried {
    ids: [u64; Self::MOST],
    len: u8,
    avoid: bool,
}

impl Tried {
    /// The oldest are forgotten beyond this many.
    const MOST: usize = 8;

    /// None yet.
    pub(crate) const NONE: Self = Self { ids: [0; Self::MOST], len: 0, avoid: false };

    /// For a policy: avoids what was tried if the policy says so, see
    /// [`RetryPolicy::avoid_previous_hosts`](config::RetryPolicy::avoid_previous_hosts).
    pub fn new(policy: Option<&config::RetryPolicy>) -> Self {
        Self { avoid: policy.is_some_and(|policy| policy.avoid_previous_hosts > 0), ..Self::default() }
    }

    /// Avoids whatever was tried, while there is anything else.
    pub fn avoiding() -> Self {
        Self { avoid: true, ..Self::default() }
    }

    /// As new for that policy; what was tried before is forgotten.
    #[inline]
    pub fn restart(&mut self, policy: Option<&config::RetryPolicy>) {
        (self.len, self.avoid) = (0, policy.is_some_and(|policy| policy.avoid_previous_hosts > 0));
    }

    /// A try goes to this endpoint.
    #[inline]
    pub fn push(&mut self, endpoint: &Endpoint) {
        let at = usize::from(self.len);
        if at < Self::MOST {
            self.ids[at] = endpoint.id;
            self.len += 1;
        } else {
            self.ids.rotate_left(1);
            self.ids[Self::MOST - 1] = endpoint.id;
        }
    }

    /// Did an earlier try go there, and is it to be avoided?
    pub fn avoids(&self, endpoint: &Endpoint) -> bool {
        self.avoid && self.ids[..usize::from(self.len)].contains(&endpoint.id)
    }

    /// There is nothing to avoid.
    pub(crate) fn is_empty(&self) -> bool {
        !self.avoid || self.len == 0
    }
}
