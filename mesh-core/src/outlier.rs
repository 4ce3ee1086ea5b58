//! When an endpoint is ejected for failing, and when it returns. Source: Envoy `OutlierDetection`, gRFC A50.
//!
//! Failures in a row eject at once; rates are looked at when a sweep is due, a tick of the interval (OD4, OD5). An ejection
//! lasts base time x number of ejections and ends at a tick (OD6); every tick an endpoint has been back for takes one from
//! that number. A half-open endpoint (CB6) stays ejected after its time and gets single requests until one succeeds.
//! Which endpoints may go, how many, and who asks when is `cluster/ejection.rs`; here is what one endpoint knows.

use std::{sync::OnceLock, time::Duration};

use crate::{
    config::{Monitor, OutlierDetection},
    outcome::{Failure, Outcome},
    rng::{below, mix},
    sync::{
        AtomicU32, AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
    time::Time,
};

mod event;

pub use event::{Event, Reason, What};

/// What ejection knows of one endpoint.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cell<'a> {
    /// All that a pick asks.
    state: &'a AtomicU32,
    /// Made where there is detection.
    counts: &'a OnceLock<Box<Counts>>,
}

/// What is counted of one endpoint.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    consecutive_5xx: AtomicU32,
    consecutive_gateway: AtomicU32,
    consecutive_local: AtomicU32,
    monitors: [AtomicU32; OutlierDetection::MOST_MONITORS],
    /// Of responses, and of everything where local failures are not apart.
    pub(crate) external: Window,
    /// Of connecting and whatever else has no response.
    pub(crate) local: Window,
    pub(crate) answers: Answers,
    /// Nanoseconds of [`Time`].
    ejected_at: AtomicU64,
    /// Nanoseconds, and one, of the last return; 0 is none.
    returned_at: AtomicU64,
    /// Nanoseconds added to this ejection.
    jitter: AtomicU64,
    /// How often it was ejected, less the quiet intervals since.
    times: AtomicU32,
    /// How often it was ejected in all.
    ejections: AtomicU32,
}

/// In use as any other.
const USED: u32 = 0;
/// Ejected.
const OUT: u32 = 1;
/// Ejected, its time over, waiting for a request to show what it is worth.
const PROBATION: u32 = 2;
/// As before, with that request under way.
const PROBED: u32 = 3;
/// Being ejected: out, and since when is being written.
const GOING: u32 = 4;

/// What a sweep made of an endpoint.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Swept {
    InUse,
    Returned,
    Out,
    /// Out, and waiting for a probe.
    Probation,
}

impl<'a> Cell<'a> {
    pub(crate) fn new(state: &'a AtomicU32, counts: &'a OnceLock<Box<Counts>>) -> Self {
        Self { state, counts }
    }

    /// What is counted; made at the first call, which is when its cluster is compiled with detection.
    pub(crate) fn counts(&self) -> &'a Counts {
        self.counts.get_or_init(Box::default)
    }

    pub(crate) fn is_ejected(&self) -> bool {
        self.state.load(Relaxed) != USED
    }

    /// Takes the one place of a half-open endpoint; false when it has none.
    pub(crate) fn claim_probe(&self) -> bool {
        self.state.compare_exchange(PROBATION, PROBED, Relaxed, Relaxed).is_ok()
    }

    /// Its time is over and nobody tries it.
    pub(crate) fn is_on_probation(&self) -> bool {
        self.state.load(Relaxed) == PROBATION
    }

    /// A probe ended without telling anything: the next may try.
    pub(crate) fn release_probe(&self) -> bool {
        self.state.compare_exchange(PROBED, PROBATION, Relaxed, Relaxed).is_ok()
    }

    /// How often it was ejected in all.
    pub(crate) fn ejections(&self) -> u32 {
        self.counts().ejections.load(Relaxed)
    }

    /// Counts an outcome whose headers took so long, and calls `due` with each reason to eject that is met by it.
    pub(crate) fn count(
        &self,
        config: &OutlierDetection,
        outcome: &Outcome,
        took: Duration,
        mut due: impl FnMut(Reason, u32),
    ) {
        if config.split_local_origin {
            self.count_local(config, outcome, &mut due);
        }
        if !config.split_local_origin || outcome.failure.is_none() {
            let status = outcome.effective_status();
            let gateway = matches!(status, 502..=504);
            if count_row(&self.counts().consecutive_gateway, gateway, config.consecutive_gateway_failure) {
                due(Reason::ConsecutiveGatewayFailure, config.enforcing_consecutive_gateway_failure);
            }
            if count_row(&self.counts().consecutive_5xx, status >= 500, config.consecutive_5xx) {
                due(Reason::Consecutive5xx, config.enforcing_consecutive_5xx);
            }
            self.counts().external.count(status < 500);
        }
        for (row, (monitor, index)) in self.counts().monitors.iter().zip(config.monitors.iter().zip(0..)) {
            if count_row(row, is_failure(monitor, outcome, took), monitor.consecutive) {
                due(Reason::Monitor(index), monitor.enforcing);
            }
        }
        if config.latency.is_some() && outcome.failure.is_none() {
            self.counts().answers.count(took);
        }
    }

    /// Would this outcome count against it, by any of the rules?
    pub(crate) fn is_failure(&self, config: &OutlierDetection, outcome: &Outcome, took: Duration) -> bool {
        !outcome.is_success() || config.monitors.iter().any(|monitor| is_failure(monitor, outcome, took))
    }

    /// A connection that was made is a success, even of a request that failed after (Envoy reports both).
    fn count_local(&self, config: &OutlierDetection, outcome: &Outcome, due: &mut impl FnMut(Reason, u32)) {
        if !matches!(outcome.failure, Some(Failure::Connect | Failure::Tls)) {
            self.counts().local.count(true);
            count_row(&self.counts().consecutive_local, false, 0);
        }
        if outcome.failure.is_some() {
            self.counts().local.count(false);
            if count_row(&self.counts().consecutive_local, true, config.consecutive_local_origin_failure) {
                due(Reason::ConsecutiveLocalOriginFailure, config.enforcing_consecutive_local_origin_failure);
            }
        }
    }

    /// Marks it ejected; false when it already was. `id` stands for it where chance is wanted.
    pub(crate) fn eject(&self, config: &OutlierDetection, id: u64, now: Time) -> bool {
        self.take_out(USED, config, id, now)
    }

    /// Ejects a half-open endpoint whose probe failed; false when it was no probe any more.
    pub(crate) fn fail_probe(&self, config: &OutlierDetection, id: u64, now: Time) -> bool {
        self.take_out(PROBED, config, id, now)
    }

    /// From that state, and from no other.
    fn take_out(&self, from: u32, config: &OutlierDetection, id: u64, now: Time) -> bool {
        if self.state.compare_exchange(from, GOING, Relaxed, Relaxed).is_err() {
            return false;
        }
        self.begin(config, id, now);
        // A sweep that sees it out must not see an earlier ejection's time.
        let _ = self.state.compare_exchange(GOING, OUT, Release, Relaxed);
        true
    }

    fn begin(&self, config: &OutlierDetection, id: u64, now: Time) {
        self.counts().ejected_at.store(now.as_nanos(), Relaxed);
        let jitter = below(chance(now, id ^ 1), nanos(config.max_ejection_time_jitter).saturating_add(1));
        self.counts().jitter.store(jitter, Relaxed);
        self.counts().ejections.fetch_add(1, Relaxed);
        // As long as one more makes a difference, so that the way back is no longer than the way there.
        let most = nanos(config.max_ejection_time).saturating_add(nanos(config.base_ejection_time));
        let times = self.counts().times.load(Relaxed);
        if u64::from(times).saturating_mul(nanos(config.base_ejection_time)) < most {
            self.counts().times.store(times + 1, Relaxed);
        }
    }

    /// When its ejection may end.
    fn ends(&self, config: &OutlierDetection) -> u64 {
        let most = config.max_ejection_time.max(config.base_ejection_time);
        let lasts = config.base_ejection_time.saturating_mul(self.counts().times.load(Relaxed)).min(most);
        self.counts()
            .ejected_at
            .load(Relaxed)
            .saturating_add(nanos(lasts))
            .saturating_add(self.counts().jitter.load(Relaxed))
    }

    /// What the ticks that have passed mean for it.
    pub(crate) fn sweep(&self, config: &OutlierDetection, ticks: Ticks) -> Swept {
        let mut swept = Swept::InUse;
        match self.state.load(Acquire) {
            OUT => {
                let Some(tick) = ticks.first_at_or_after(self.ends(config)) else { return Swept::Out };
                if config.half_open {
                    let _ = self.state.compare_exchange(OUT, PROBATION, Relaxed, Relaxed);
                    return Swept::Probation;
                }
                self.readmit(Time::from_nanos(tick));
                swept = Swept::Returned;
            }
            PROBATION if !config.half_open => {
                self.readmit(Time::from_nanos(ticks.last));
                swept = Swept::Returned;
            }
            PROBATION => return Swept::Probation,
            PROBED | GOING => return Swept::Out,
            _ => {}
        }
        let returned = self.counts().returned_at.load(Relaxed);
        if let Some(since) = returned.checked_sub(1)
            && self.counts().times.load(Relaxed) > 0
        {
            let calm = ticks.count_from(since.saturating_add(ticks.interval));
            let calm = u32::try_from(calm).unwrap_or(u32::MAX);
            let _ = self.counts().times.fetch_update(Relaxed, Relaxed, |times| Some(times.saturating_sub(calm)));
        }
        swept
    }

    /// Puts it back into use; false when it was.
    pub(crate) fn readmit(&self, now: Time) -> bool {
        if let Some(counts) = self.counts.get() {
            for row in [&counts.consecutive_5xx, &counts.consecutive_gateway, &counts.consecutive_local] {
                row.store(0, Relaxed);
            }
            counts.monitors.iter().for_each(|row| row.store(0, Relaxed));
            counts.returned_at.store(now.as_nanos().saturating_add(1), Relaxed);
        }
        self.state.swap(USED, Relaxed) != USED
    }
}

/// Is this outcome a failure to the monitor?
fn is_failure(monitor: &Monitor, outcome: &Outcome, took: Duration) -> bool {
    if outcome.failure.is_some() {
        return monitor.local_origin;
    }
    let status = outcome.status.unwrap_or(0);
    monitor.slower_than.is_some_and(|limit| took > limit)
        || monitor.statuses.iter().any(|(from, to)| (*from..=*to).contains(&status))
        || outcome.grpc.is_some_and(|code| monitor.grpc_codes.contains(&code))
}

/// Counts failures in a row; true at the `limit`, where the row begins anew. A limit of 0 is off.
fn count_row(row: &AtomicU32, failed: bool, limit: u32) -> bool {
    if !failed {
        if row.load(Relaxed) != 0 {
            row.store(0, Relaxed);
        }
        return false;
    }
    if limit == 0 || row.fetch_add(1, Relaxed) + 1 < limit {
        return false;
    }
    row.store(0, Relaxed);
    true
}

/// How many there were in this interval, and how many of them went well: both in one number, so that they agree.
#[derive(Debug, Default)]
pub(crate) struct Window {
    running: AtomicU64,
    /// The interval before.
    last: AtomicU64,
}

impl Window {
    fn count(&self, success: bool) {
        self.running.fetch_add((1 << 32) | u64::from(success), Relaxed);
    }

    /// Begins an interval anew.
    pub(crate) fn roll(&self) {
        self.last.store(self.running.swap(0, Relaxed), Relaxed);
    }

    /// How many there were in the last interval.
    pub(crate) fn volume(&self) -> u32 {
        (self.last.load(Relaxed) >> 32) as u32
    }

    /// What share of them went well, in percent.
    pub(crate) fn success(&self) -> f64 {
        let last = self.last.load(Relaxed);
        100.0 * (last & u64::from(u32::MAX)) as f64 / ((last >> 32) as f64).max(1.0)
    }
}

/// How long answers took in this interval.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    count: AtomicU32,
    micros: AtomicU64,
    last_count: AtomicU32,
    last_micros: AtomicU64,
}

impl Answers {
    fn count(&self, took: Duration) {
        self.count.fetch_add(1, Relaxed);
        self.micros.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX >> 32), Relaxed);
    }

    /// Begins an interval anew.
    pub(crate) fn roll(&self) {
        self.last_count.store(self.count.swap(0, Relaxed), Relaxed);
        self.last_micros.store(self.micros.swap(0, Relaxed), Relaxed);
    }

    /// How many there were in the last interval.
    pub(crate) fn volume(&self) -> u32 {
        self.last_count.load(Relaxed)
    }

    /// Their mean in microseconds.
    pub(crate) fn mean(&self) -> f64 {
        self.last_micros.load(Relaxed) as f64 / f64::from(self.volume().max(1))
    }
}

/// The ticks of the interval that have passed since the last sweep.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticks {
    /// Nanoseconds between them.
    interval: u64,
    /// The first and the last of them, in nanoseconds of [`Time`].
    first: u64,
    last: u64,
}

impl Ticks {
    /// Those after the tick at `before`, up to `now`; `None` when there is none. Ticks keep their beginning when the
    /// interval changes (OD10).
    pub(crate) fn since(before: u64, interval: Duration, now: Time) -> Option<Self> {
        let interval = nanos(interval).max(1);
        let count = now.as_nanos().saturating_sub(before) / interval;
        (count > 0).then(|| Self { interval, first: before + interval, last: before + count * interval })
    }

    /// The time of the last.
    pub(crate) fn last(self) -> u64 {
        self.last
    }

    fn first_at_or_after(self, at: u64) -> Option<u64> {
        if at <= self.first {
            return Some(self.first);
        }
        let tick = self.first + (at - self.first).div_ceil(self.interval).saturating_mul(self.interval);
        (tick <= self.last).then_some(tick)
    }

    /// How many of them are not before `at`.
    fn count_from(self, at: u64) -> u64 {
        self.first_at_or_after(at).map_or(0, |tick| (self.last - tick) / self.interval + 1)
    }
}

/// Does an outlier detected now get ejected, where only a share of them does?
pub(crate) fn is_enforced(percent: u32, id: u64, now: Time) -> bool {
    percent >= 100 || below(chance(now, id), 100) < u64::from(percent)
}

/// Random bits from the time, which is as good as chance to the endpoint and can be replayed.
fn chance(now: Time, id: u64) -> u64 {
    mix(mix(now.as_nanos()) ^ id)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// May one more be ejected where `ejected` of `total` are? Envoy: not if the share would exceed the limit with it.
pub(crate) fn may_eject(config: &OutlierDetection, ejected: u32, total: usize) -> bool {
    let share = (u64::from(ejected) + 1) * 100;
    (config.always_eject_one_host && ejected == 0)
        || share <= u64::from(config.max_ejection_percent.min(100)) * total as u64
}
