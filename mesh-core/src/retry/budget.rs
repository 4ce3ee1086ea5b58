//! How many retries there may be: a client's budget (C3), and gRPC's throttle of one server's calls (RT18).
//!
//! Both are cells. The budget is on by default and has no floor by time: whatever the rate of requests, retries stay a
//! tenth of them and the ten there were to begin with.

use crate::sync::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// Retries a client may make: each request earns a tenth of one, and ten are there to begin with and at most.
///
/// So under a full outage the tries stay within 1.1 times the requests plus ten, at any rate of requests; there is no
/// floor by time. Shared by all requests of a client. Idea: Finagle `RetryBudget`, without its window.
#[derive(Debug)]
pub struct RetryBudget {
    /// In tenths of a retry; `u32::MAX` is unlimited.
    tenths: AtomicU32,
}

impl RetryBudget {
    const FULL: u32 = 100;
    const RETRY: u32 = 10;
    const UNLIMITED: u32 = u32::MAX;

    /// A full budget.
    pub fn new() -> Self {
        Self { tenths: AtomicU32::new(Self::FULL) }
    }

    /// No limit, for comparisons with Envoy and for those who limit retries elsewhere.
    pub fn unlimited() -> Self {
        Self { tenths: AtomicU32::new(Self::UNLIMITED) }
    }

    /// A request begins, and earns a tenth of a retry. Not called for retries.
    #[inline]
    pub fn deposit(&self) {
        // A full budget, the common case, is only read, so that busy threads do not fight over the word.
        if self.tenths.load(Relaxed) < Self::FULL {
            let earn = |tenths: u32| (tenths < Self::FULL).then_some(tenths + 1);
            let _ = self.tenths.fetch_update(Relaxed, Relaxed, earn);
        }
    }

    /// Takes a retry, if one is left.
    pub fn try_withdraw(&self) -> bool {
        let spend = |tenths: u32| match tenths {
            Self::UNLIMITED => Some(Self::UNLIMITED),
            _ => tenths.checked_sub(Self::RETRY),
        };
        self.tenths.fetch_update(Relaxed, Relaxed, spend).is_ok()
    }

    /// Whole retries left; `None` when unlimited.
    pub fn left(&self) -> Option<u32> {
        match self.tenths.load(Relaxed) {
            Self::UNLIMITED => None,
            tenths => Some(tenths / Self::RETRY),
        }
    }
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self::new()
    }
}

/// The tokens of one server's calls: a failure costs one, a success earns a part of one, and with half of them gone
/// nothing is tried again. Source: gRFC A6 `retryThrottling`.
#[derive(Debug)]
pub struct Throttle {
    /// In thousandths of a token.
    tokens: AtomicU64,
    most: u64,
    ratio: u64,
}

impl Throttle {
    /// With `max_tokens` (above 0, at most 1000) and what a success earns, to three decimals; `None` when out of range.
    pub fn new(max_tokens: u32, token_ratio: f64) -> Option<Self> {
        let thousandths = (token_ratio * 1e3).floor();
        if !(1..=1000).contains(&max_tokens) || !(1.0..=1e6).contains(&thousandths) {
            return None;
        }
        let most = u64::from(max_tokens) * 1_000;
        Some(Self { tokens: AtomicU64::new(most), most, ratio: thousandths as u64 })
    }

    /// A call succeeded, or failed in a way that has nothing to do with load.
    pub fn succeeded(&self) {
        if self.tokens.load(Relaxed) < self.most {
            let earn = |tokens: u64| Some((tokens + self.ratio).min(self.most));
            let _ = self.tokens.fetch_update(Relaxed, Relaxed, earn);
        }
    }

    /// A try failed in a way the policy tries again, or its server asked not to try again. Says whether another may follow.
    pub fn failed(&self) -> bool {
        let before = self.tokens.fetch_update(Relaxed, Relaxed, |tokens| Some(tokens.saturating_sub(1_000)));
        before.unwrap_or(0).saturating_sub(1_000) > self.most / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// C3: ten retries to begin with and at most, and one more for every ten requests.
    #[test]
    fn the_budget_earns_a_tenth_a_request() {
        let budget = RetryBudget::new();
        (0..1_000).for_each(|_| budget.deposit());
        assert_eq!((0..100).filter(|_| budget.try_withdraw()).count(), 10);
        (0..9).for_each(|_| budget.deposit());
        assert!(!budget.try_withdraw());
        budget.deposit();
        assert!(budget.try_withdraw());
        assert_eq!(budget.left(), Some(0));
        // A full outage: every request would retry as often as it may.
        let budget = RetryBudget::new();
        let mut tries = 0;
        for _ in 0..10_000 {
            budget.deposit();
            tries += 1 + (0..3).filter(|_| budget.try_withdraw()).count();
        }
        assert!((11_000..=11_010).contains(&tries), "{tries}");
        let unlimited = RetryBudget::unlimited();
        assert!((0..1_000).all(|_| unlimited.try_withdraw()) && unlimited.left().is_none());
    }

    /// RT18: half the tokens gone, nothing is tried again until successes have earned enough.
    #[test]
    fn the_throttle_stops_at_half() {
        let throttle = Throttle::new(10, 0.5);
        let Some(throttle) = throttle else { return assert!(throttle.is_some()) };
        assert_eq!((0..10).filter(|_| throttle.failed()).count(), 4, "9, 8, 7 and 6 are above half of 10");
        (0..20).for_each(|_| throttle.succeeded());
        assert!(throttle.failed(), "full again");
        for (tokens, ratio, fine) in
            [(0, 0.1, false), (1001, 0.1, false), (1000, 0.001, true), (1, 0.0009, false), (1, -1.0, false)]
        {
            assert_eq!(Throttle::new(tokens, ratio).is_some(), fine, "{tokens} {ratio}");
        }
    }
}
