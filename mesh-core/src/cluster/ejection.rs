//! Which endpoints of a cluster are ejected, and when they return: what `outlier.rs` knows of each, put together.
//!
//! Every outcome is recorded; failures in a row eject at once. A sweep, once an interval, ends ejections that lasted long
//! enough, and ejects by success rate, failure percentage and latency of the interval before, in Envoy's order. What
//! happened is kept, up to a bound, until somebody tells of it.

use std::{
    collections::VecDeque,
    sync::{Arc, PoisonError},
    time::Duration,
};

use super::Cluster;
use crate::{
    config::{LatencyOutlier, OutlierDetection},
    endpoint::Endpoint,
    outcome::Outcome,
    outlier::{Event, Reason, Swept, Ticks, What, Window, is_enforced, may_eject},
    sync::{
        AtomicBool, AtomicU32, AtomicU64, Mutex,
        Ordering::{Acquire, Relaxed, Release},
    },
    time::Time,
};

/// Of a cluster: what survives reconfiguration.
#[derive(Debug, Default)]
pub(super) struct Ejections {
    /// How many endpoints are ejected.
    pub(super) count: AtomicU32,
    /// When the last tick of the interval was that a sweep has seen.
    last_tick: AtomicU64,
    /// Bits: [`USED`], [`STALE`].
    state: AtomicU32,
    /// A half-open endpoint may be waiting for a probe; a hint, set again by sweeps.
    probation: AtomicBool,
    waiting: AtomicBool,
    /// Taken when an endpoint is ejected or returns, and by those who tell.
    events: Mutex<VecDeque<Event>>,
}

/// A request has gone to the cluster.
const USED: u32 = 1;
/// Who is left out has changed by what was picked from a form of the cluster that is no longer in force, which knows the counts of
/// its own levels alone.
const STALE: u32 = 2;

impl Ejections {
    /// Beyond this many, the oldest nobody asked for are forgotten.
    const MOST_EVENTS: usize = 256;

    fn tell(&self, event: Event) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        // What does not happen, for want of room or of luck, may not happen with every failure.
        let known = |other: &Event| other.what == event.what && other.address == event.address;
        if matches!(event.what, What::NotEnforced(_) | What::TooMany(_)) && events.iter().any(known) {
            return;
        }
        if events.len() >= Self::MOST_EVENTS {
            events.pop_front();
        }
        events.push_back(event);
        self.waiting.store(true, Relaxed);
    }

    /// Some endpoints are new and others gone.
    pub(super) fn recount(&self, endpoints: &[Arc<Endpoint>]) {
        let ejected = endpoints.iter().filter(|endpoint| endpoint.is_ejected()).count();
        self.count.store(u32::try_from(ejected).unwrap_or(u32::MAX), Relaxed);
        let waits = endpoints.iter().any(|endpoint| endpoint.cell.outlier().is_on_probation());
        self.probation.store(waits, Relaxed);
    }
}

impl Cluster {
    /// Brings endpoints back whose ejection has lasted long enough, and ejects those whose rates are bad. Acts once an
    /// interval however often it is called; `pick` calls it too, so that ejections end without a background task.
    pub fn sweep(&self, now: Time) {
        let Some(config) = &self.config.outlier_detection else { return };
        let last = &self.live.ejections.last_tick;
        let before = last.load(Relaxed);
        let Some(ticks) = Ticks::since(before, config.interval, now) else { return };
        if last.compare_exchange(before, ticks.last(), Relaxed, Relaxed).is_err() {
            return;
        }
        let mut waits = false;
        for endpoint in self.endpoints() {
            let cell = endpoint.cell.outlier();
            match cell.sweep(config, ticks) {
                Swept::Returned => self.tell(endpoint, What::Returned, now, None),
                Swept::Probation => waits = true,
                Swept::InUse | Swept::Out => {}
            }
            let counts = cell.counts();
            counts.external.roll();
            counts.local.roll();
            counts.answers.roll();
        }
        self.live.ejections.recount(self.endpoints());
        if waits {
            self.live.ejections.probation.store(true, Relaxed);
        }
        // As if done at the tick, whenever somebody came to do it.
        let at = Time::from_nanos(ticks.last());
        self.judge_rates(config, Origin::External, at);
        if config.split_local_origin {
            self.judge_rates(config, Origin::Local, at);
        }
        if let Some(latency) = &config.latency {
            self.judge_latency(config, latency, at);
        }
        self.recount();
    }

    /// Takes what happened to endpoints since it was last asked for; cheap when that is nothing.
    pub fn take_events(&self) -> Vec<Event> {
        let ejections = &self.live.ejections;
        if !ejections.waiting.load(Relaxed) || !ejections.waiting.swap(false, Relaxed) {
            return Vec::new();
        }
        ejections.events.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect()
    }

    /// Counts an outcome of one endpoint, whose headers took so long, and ejects it when it is due.
    pub(crate) fn record(&self, endpoint: &Endpoint, outcome: &Outcome, took: Duration, now: Time) {
        let Some(config) = &self.config.outlier_detection else { return };
        endpoint.cell.outlier().count(config, outcome, took, |reason, enforcing| {
            self.eject(config, endpoint, reason, enforcing, now, None);
        });
    }

    /// Records what the probe of a half-open endpoint came to.
    pub(crate) fn record_probe(&self, endpoint: &Endpoint, outcome: &Outcome, took: Duration, now: Time) {
        let Some(config) = &self.config.outlier_detection else {
            self.readmit(endpoint, now);
            return;
        };
        let cell = endpoint.cell.outlier();
        let failed = cell.is_failure(config, outcome, took);
        if !failed {
            self.readmit(endpoint, now);
        } else if cell.fail_probe(config, endpoint.id, now) {
            self.tell(endpoint, What::Ejected(Reason::Probe), now, None);
        }
    }

    /// The probe of a half-open endpoint ended without telling anything.
    pub(crate) fn release_probe(&self, endpoint: &Endpoint) {
        if endpoint.cell.outlier().release_probe() {
            self.live.ejections.probation.store(true, Relaxed);
        }
    }

    /// A half-open endpoint that may be tried with this request.
    pub(crate) fn claim_probe(&self, may: impl Fn(&Endpoint) -> bool) -> Option<u32> {
        let probation = &self.live.ejections.probation;
        if !probation.load(Relaxed) {
            return None;
        }
        probation.store(false, Relaxed);
        let mut waiting =
            self.endpoints().iter().zip(0..).filter(|(endpoint, _)| endpoint.cell.outlier().is_on_probation());
        let claims = |endpoint: &Endpoint| may(endpoint) && endpoint.cell.outlier().claim_probe();
        let claimed = waiting.find_map(|(endpoint, at)| claims(endpoint).then_some(at));
        // Others wait still, or this request may not try the one that does.
        if self.endpoints().iter().any(|endpoint| endpoint.cell.outlier().is_on_probation()) {
            probation.store(true, Relaxed);
        }
        claimed
    }

    /// Puts an ejected endpoint back into use before its time: its health check passed, or its probe.
    pub(crate) fn readmit(&self, endpoint: &Endpoint, now: Time) {
        if endpoint.cell.outlier().readmit(now) {
            self.live.ejections.recount(self.endpoints());
            self.recount();
            self.note_change();
            self.tell(endpoint, What::Returned, now, None);
        }
    }

    /// Counts afresh what is left out.
    fn recount(&self) {
        self.levels.recount();
        self.labelled.iter().for_each(|labelled| labelled.recount());
    }

    /// Some request has gone to it, so that its health is of interest.
    pub fn had_traffic(&self) -> bool {
        self.live.ejections.state.load(Relaxed) & USED != 0
    }

    /// A request goes to it: one look, unless it is the first, or the first that knows of what was done through an older form.
    pub(super) fn note_use(&self) {
        if self.live.ejections.state.load(Relaxed) != USED {
            self.catch_up();
        }
    }

    #[cold]
    fn catch_up(&self) {
        let state = &self.live.ejections.state;
        state.fetch_or(USED, Relaxed);
        // Cleared before the count, so that what changes meanwhile is seen again.
        if self.is_latest() && state.fetch_and(!STALE, Acquire) & STALE != 0 {
            self.live.ejections.recount(self.endpoints());
            self.recount();
        }
    }

    /// Who is left out has changed through this form of the cluster: what is in force by now is to count afresh.
    fn note_change(&self) {
        if !self.is_latest() {
            self.live.ejections.state.fetch_or(STALE, Release);
        }
    }

    /// An endpoint fails its active health checks from now on, or does not. Requests go to others, as long as there are
    /// enough.
    pub fn set_failing_checks(&self, endpoint: &Endpoint, failing: bool) {
        if endpoint.hot().fails_checks.swap(failing, Relaxed) != failing {
            self.recount();
            self.note_change();
        }
    }

    /// A health check of an endpoint is over; one that passed ends an ejection too, if so configured (OD11).
    pub fn record_check(&self, endpoint: &Endpoint, failing: bool, passed: bool, now: Time) {
        let came_back = !failing && endpoint.is_failing_checks();
        self.set_failing_checks(endpoint, failing);
        if came_back && self.config.slow_start.is_some() {
            // It counts as new (LB20).
            endpoint.begin(now);
        }
        let unejects = self.config.outlier_detection.as_ref().is_some_and(|config| config.uneject_on_health_check);
        // An endpoint in use keeps what is counted of it, however often it passes.
        if passed && !failing && unejects && endpoint.is_ejected() {
            self.readmit(endpoint, now);
        }
    }

    fn eject(
        &self,
        config: &OutlierDetection,
        endpoint: &Endpoint,
        reason: Reason,
        enforcing: u32,
        now: Time,
        measured: Option<(f64, f64)>,
    ) {
        if endpoint.is_ejected() {
            return;
        }
        let total = self.endpoints().len();
        if !may_eject(config, self.live.ejections.count.load(Relaxed), total) {
            return self.tell(endpoint, What::TooMany(reason), now, measured);
        }
        if !is_enforced(enforcing, endpoint.id, now) {
            return self.tell(endpoint, What::NotEnforced(reason), now, measured);
        }
        let more = |ejected: u32| may_eject(config, ejected, total).then_some(ejected + 1);
        if self.live.ejections.count.fetch_update(Relaxed, Relaxed, more).is_err() {
            return self.tell(endpoint, What::TooMany(reason), now, measured);
        }
        if endpoint.cell.outlier().eject(config, endpoint.id, now) {
            if !endpoint.is_failing_checks() {
                self.levels.note_out(endpoint);
                self.labelled.iter().for_each(|labelled| labelled.note_out(endpoint));
                self.note_change();
            }
            self.tell(endpoint, What::Ejected(reason), now, measured);
        } else {
            self.live.ejections.count.fetch_sub(1, Relaxed);
        }
    }

    /// Ejects by the success rates of the last interval. Source: Envoy outlier detection, gRFC A50; at the threshold of
    /// failures an endpoint goes, as Envoy has it.
    fn judge_rates(&self, config: &OutlierDetection, origin: Origin, now: Time) {
        let (success, failure) = (&config.success_rate, &config.failure_percentage);
        let total = u32::try_from(self.endpoints().len()).unwrap_or(u32::MAX);
        if total < success.minimum_hosts && total < failure.minimum_hosts {
            return;
        }
        let counted = |volume: u32| {
            let used = self.endpoints().iter().filter(|endpoint| !endpoint.is_ejected());
            used.map(|endpoint| origin.window(endpoint)).filter(move |window| window.volume() >= volume.max(1))
        };
        let (mut hosts, mut sum) = (0_u32, 0.0);
        counted(success.request_volume).for_each(|window| {
            hosts += 1;
            sum += window.success();
        });
        let failing_hosts = counted(failure.request_volume).count();
        if hosts > 0 && hosts >= success.minimum_hosts {
            let mean = sum / f64::from(hosts);
            let squares: f64 = counted(success.request_volume).map(|window| (window.success() - mean).powi(2)).sum();
            let deviation = (squares / f64::from(hosts)).sqrt();
            let threshold = mean - f64::from(success.stdev_factor) / 1000.0 * deviation;
            let (reason, enforcing) = origin.success_rate(config);
            for endpoint in self.endpoints().iter().filter(|endpoint| !endpoint.is_ejected()) {
                let window = origin.window(endpoint);
                if window.volume() >= success.request_volume.max(1) && window.success() < threshold {
                    self.eject(config, endpoint, reason, enforcing, now, Some((window.success(), threshold)));
                }
            }
        }
        if failing_hosts > 0 && failing_hosts as u64 >= u64::from(failure.minimum_hosts) {
            let threshold = f64::from(failure.threshold);
            let (reason, enforcing) = origin.failure_percentage(config);
            for endpoint in self.endpoints().iter().filter(|endpoint| !endpoint.is_ejected()) {
                let window = origin.window(endpoint);
                let failed = 100.0 - window.success();
                if window.volume() >= failure.request_volume.max(1) && failed >= threshold {
                    self.eject(config, endpoint, reason, enforcing, now, Some((failed, threshold)));
                }
            }
        }
    }

    /// Ejects whose mean time to answer is a multiple of the others'.
    fn judge_latency(&self, config: &OutlierDetection, latency: &LatencyOutlier, now: Time) {
        let (mut hosts, mut sum) = (0_u32, 0.0);
        for endpoint in self.endpoints().iter().filter(|endpoint| !endpoint.is_ejected()) {
            let answers = &endpoint.cell.outlier().counts().answers;
            if answers.volume() >= latency.request_volume.max(1) {
                hosts += 1;
                sum += answers.mean();
            }
        }
        if hosts < latency.minimum_hosts.max(2) {
            return;
        }
        for endpoint in self.endpoints().iter().filter(|endpoint| !endpoint.is_ejected()) {
            let answers = &endpoint.cell.outlier().counts().answers;
            if answers.volume() < latency.request_volume.max(1) {
                continue;
            }
            let mean = answers.mean();
            // Without its own, which would raise what it is measured by.
            let others = (sum - mean) / f64::from(hosts - 1);
            let limit = (others * f64::from(latency.factor) / 100.0).max(latency.at_least.as_micros() as f64);
            if mean > limit {
                let measured = Some((mean / 1000.0, limit / 1000.0));
                self.eject(config, endpoint, Reason::Latency, latency.enforcing, now, measured);
            }
        }
    }

    fn tell(&self, endpoint: &Endpoint, what: What, at: Time, measured: Option<(f64, f64)>) {
        self.live.ejections.tell(Event {
            cluster: Arc::clone(self.name()),
            address: endpoint.address().clone(),
            what,
            at,
            ejections: endpoint.cell.outlier().ejections(),
            measured,
        });
    }
}

/// Whose failures are looked at.
#[derive(Clone, Copy)]
enum Origin {
    /// Responses, and all failures where they are not apart.
    External,
    /// Failures without a response.
    Local,
}

impl Origin {
    fn window(self, endpoint: &Endpoint) -> &Window {
        match self {
            Self::External => &endpoint.cell.outlier().counts().external,
            Self::Local => &endpoint.cell.outlier().counts().local,
        }
    }

    fn success_rate(self, config: &OutlierDetection) -> (Reason, u32) {
        match self {
            Self::External => (Reason::SuccessRate, config.success_rate.enforcing),
            Self::Local => (Reason::SuccessRateLocalOrigin, config.success_rate.enforcing_local_origin),
        }
    }

    fn failure_percentage(self, config: &OutlierDetection) -> (Reason, u32) {
        match self {
            Self::External => (Reason::FailurePercentage, config.failure_percentage.enforcing),
            Self::Local => (Reason::FailurePercentageLocalOrigin, config.failure_percentage.enforcing_local_origin),
        }
    }
}
