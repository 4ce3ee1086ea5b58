//! When an endpoint is ejected for failing, and when it returns. Source: Envoy `OutlierDetection`, gRFC A50.
//!
//! Failures in a row eject at once, if the cluster has not too many ejected already (OD7, checked before). An ejection
//! lasts base time x number of ejections and ends at a sweep, a tick of the interval (OD6); every tick an endpoint
//! spends in use takes one from that number.

use std::time::Duration;

use crate::{
    config::OutlierDetection,
    outcome::Outcome,
    sync::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Time,
};

/// What ejection knows of one endpoint.
#[derive(Debug, Default)]
pub(crate) struct Cell {
    consecutive_5xx: AtomicU32,
    consecutive_gateway: AtomicU32,
    ejected: AtomicBool,
    /// Nanoseconds of [`Time`].
    ejected_at: AtomicU64,
    /// How often it was ejected, less the quiet intervals since.
    times: AtomicU32,
}

impl Cell {
    pub(crate) fn is_ejected(&self) -> bool {
        self.ejected.load(Relaxed)
    }

    /// Counts an outcome; true when it is the one that should eject.
    pub(crate) fn count(&self, config: &OutlierDetection, outcome: &Outcome) -> bool {
        let status = outcome.effective_status();
        let mut due = count_row(&self.consecutive_5xx, status >= 500, config.consecutive_5xx);
        due |= count_row(&self.consecutive_gateway, matches!(status, 502..=504), config.consecutive_gateway_failure);
        due
    }

    /// Marks it ejected; false when it already was.
    pub(crate) fn eject(&self, now: Time) -> bool {
        if self.ejected.swap(true, Relaxed) {
            return false;
        }
        self.ejected_at.store(now.as_nanos(), Relaxed);
        self.times.fetch_add(1, Relaxed);
        true
    }

    /// What `ticks` intervals that have passed mean for it; true while it stays ejected.
    pub(crate) fn sweep(&self, config: &OutlierDetection, ticks: u64, now: Time) -> bool {
        if !self.is_ejected() {
            let calm = |times: u32| (times > 0).then(|| times - u32::try_from(ticks).unwrap_or(u32::MAX).min(times));
            let _ = self.times.fetch_update(Relaxed, Relaxed, calm);
            return false;
        }
        let most = config.max_ejection_time.max(config.base_ejection_time);
        let lasts = config.base_ejection_time.saturating_mul(self.times.load(Relaxed)).min(most);
        let since = Time::from_nanos(self.ejected_at.load(Relaxed));
        if now.saturating_since(since) < lasts {
            return true;
        }
        self.readmit();
        false
    }

    /// Puts it back into use.
    pub(crate) fn readmit(&self) {
        self.consecutive_5xx.store(0, Relaxed);
        self.consecutive_gateway.store(0, Relaxed);
        self.ejected.store(false, Relaxed);
    }
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

/// Which interval `now` is in, counted from the beginning of the process, so that the ticks keep their start (OD10).
pub(crate) fn tick(interval: Duration, now: Time) -> u64 {
    now.as_nanos() / u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX).max(1)
}

/// May one more be ejected where `ejected` of `total` are?
pub(crate) fn may_eject(config: &OutlierDetection, ejected: u32, total: usize) -> bool {
    u64::from(ejected) * 100 < u64::from(config.max_ejection_percent) * total as u64
}
