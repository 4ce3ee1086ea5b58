//! In turn, by weights that follow from what endpoints report of their load. Source: gRFC A58, A114; Envoy
//! `ClientSideWeightedRoundRobin`.
//!
//! A report makes a weight: requests per second over utilisation, errors counted as utilisation too. It counts once its
//! endpoint has reported for the blackout period, and no longer once it has expired. Every update period one of the picks
//! works out the strides of all; between, a pick is a turn of round robin. Endpoints without a weight get the mean of the others, and
//! with fewer than two weights turns are plain.

use rand::RngCore;

use super::{Group, round_robin};
use crate::{
    config::ClientWeighted,
    endpoint::Endpoint,
    load::LoadReport,
    sync::{AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Time,
};

pub(super) fn pick(
    group: &Group,
    config: &ClientWeighted,
    now: Time,
    rng: &mut impl RngCore,
    may: &impl Fn(usize) -> bool,
) -> Option<usize> {
    if let Some(strides) = &group.strides {
        strides.refresh(group, config, now);
    }
    round_robin::pick(group, rng, may)
}

/// What an endpoint has reported.
#[derive(Debug, Default)]
pub(crate) struct Reported {
    /// The bits of an `f32`; 0 is none.
    weight: AtomicU32,
    /// Nanoseconds of [`Time`], plus one: of the first report in a row, of the last. 0 is never.
    since: AtomicU64,
    last: AtomicU64,
}

impl Reported {
    /// A report came in.
    pub(crate) fn note(&self, report: &LoadReport, config: &ClientWeighted, now: Time) {
        let utilisation = report.utilisation(&config.metrics);
        let rate = report.rate();
        if utilisation <= 0.0 || rate <= 0.0 {
            return;
        }
        let errors = if config.error_penalty > 0.0 { report.errors / rate * config.error_penalty } else { 0.0 };
        let weight = rate / (utilisation + errors);
        let stale = self.is_stale(config, now);
        if stale || self.since.load(Relaxed) == 0 {
            self.since.store(now.as_nanos() + 1, Relaxed);
        }
        self.last.store(now.as_nanos() + 1, Relaxed);
        self.weight.store((weight as f32).to_bits(), Relaxed);
    }

    /// The weight in force.
    fn weight(&self, config: &ClientWeighted, now: Time) -> Option<f32> {
        let since = self.since.load(Relaxed);
        if since == 0
            || self.is_stale(config, now)
            || now.saturating_since(Time::from_nanos(since - 1)) < config.blackout
        {
            return None;
        }
        Some(f32::from_bits(self.weight.load(Relaxed))).filter(|weight| *weight > 0.0)
    }

    fn is_stale(&self, config: &ClientWeighted, now: Time) -> bool {
        let last = self.last.load(Relaxed).saturating_sub(1);
        now.saturating_since(Time::from_nanos(last)) >= config.expiration
    }
}

/// The strides of a group's endpoints, worked out every so often.
#[derive(Debug)]
pub(super) struct Strides {
    of: Vec<AtomicU32>,
    /// Whether they differ.
    uneven: AtomicU32,
    /// When they are due, in nanoseconds of [`Time`].
    due: AtomicU64,
}

impl Strides {
    pub(super) fn new(endpoints: usize) -> Self {
        let full = || AtomicU32::new(Group::STRIDE as u32);
        let of = (0..endpoints).map(|_| full()).collect();
        Self { of, uneven: AtomicU32::new(0), due: AtomicU64::new(0) }
    }

    /// The stride of one endpoint; `None` when turns are plain.
    pub(super) fn get(&self, at: usize) -> Option<u64> {
        if self.uneven.load(Relaxed) == 0 {
            return None;
        }
        self.of.get(at).map(|stride| u64::from(stride.load(Relaxed)))
    }

    fn refresh(&self, group: &Group, config: &ClientWeighted, now: Time) {
        let due = self.due.load(Relaxed);
        if now.as_nanos() < due {
            return;
        }
        let next = (now + config.update.max(SHORTEST)).as_nanos();
        if self.due.compare_exchange(due, next, Relaxed, Relaxed).is_err() {
            return;
        }
        let weight = |endpoint: &Endpoint| endpoint.reported().weight(config, now);
        let weights = || group.endpoints().map(weight);
        let (count, sum, most) = weights().flatten().fold((0_u32, 0.0_f64, 0.0_f64), |(count, sum, most), weight| {
            (count + 1, sum + f64::from(weight), most.max(f64::from(weight)))
        });
        if count < 2 {
            self.uneven.store(0, Relaxed);
            return;
        }
        let mean = sum / f64::from(count);
        for (stride, weight) in self.of.iter().zip(weights()) {
            let part = weight.map_or(mean, f64::from) / most;
            stride.store(((part * Group::STRIDE as f64) as u32).max(1), Relaxed);
        }
        self.uneven.store(1, Relaxed);
    }
}

/// Source: gRFC A58.
const SHORTEST: std::time::Duration = std::time::Duration::from_millis(100);
