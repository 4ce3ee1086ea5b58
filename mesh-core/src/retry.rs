//! Whether to try again, and after what wait; and the budget that keeps retries from making an outage worse.
//!
//! The verdict is a lookup: policy and outcome in, verdict out. Conditions are Envoy's words (RT1, RT2), and a gRPC status
//! counts wherever it stood, trailers included (C4). Of requests that are not idempotent only those that provably were
//! not processed are tried again (RT15). Replaying bodies is the caller's.

use std::{
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use http::{HeaderMap, Method};
use rand::RngCore;

use crate::{
    config::{BackOff, GrpcRetry, HttpRetry, RetryPolicy},
    outcome::{Failure, Outcome},
    rng::below,
    route::header_matches,
    time::Time,
};

/// Whether to try again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// No; the outcome stands.
    GiveUp(Why),
    /// Yes, after this long.
    After(Duration),
}

/// Why an outcome stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Why {
    /// Nothing the policy wants tried again, success above all.
    NotAsked,
    /// The policy wants it tried again and allows no more tries: flag `URX`.
    LimitReached,
    /// The request may have been processed and its method is not idempotent (RT15).
    NotIdempotent,
    /// The server asked not to: `grpc-retry-pushback-ms` (RT9), `x-envoy-overloaded`, `x-envoy-ratelimited`.
    ServerRefused,
}

/// Decides after try number `attempt` (1 is the first) of a request ended with `outcome`. `response` holds the headers of
/// its response, or its trailers for a gRPC call that ended by them.
///
/// Budgets are the caller's to ask, after this says yes: [`RetryBudget::try_withdraw`] and
/// [`Cluster::retry_slot`](crate::cluster::Cluster::retry_slot).
#[expect(clippy::too_many_arguments, reason = "each is one input of the decision, from most to least specific")]
pub fn verdict(
    policy: &RetryPolicy,
    attempt: u32,
    method: &Method,
    is_grpc: bool,
    outcome: &Outcome,
    response: Option<&HeaderMap>,
    _now: Time,
    rng: &mut impl RngCore,
) -> Verdict {
    match response.map_or(Asked::Nothing, |headers| asked(policy, is_grpc, headers)) {
        Asked::Stop => return Verdict::GiveUp(Why::ServerRefused),
        Asked::Again => {}
        Asked::Wait(_) | Asked::Nothing if !wanted(policy, outcome, response) => return Verdict::GiveUp(Why::NotAsked),
        Asked::Wait(_) | Asked::Nothing => {}
    }
    // gRPC obeys its policy's codes: a call that must not run twice is not given such a policy (gRFC A6).
    if policy.only_idempotent && !is_grpc && !outcome.unsent && !method.is_idempotent() {
        return Verdict::GiveUp(Why::NotIdempotent);
    }
    if attempt > policy.retries {
        return Verdict::GiveUp(Why::LimitReached);
    }
    match response.map_or(Asked::Nothing, |headers| asked(policy, is_grpc, headers)) {
        Asked::Wait(exactly) => Verdict::After(exactly),
        _ => Verdict::After(back_off(policy.back_off, attempt, rng)),
    }
}

/// The wait before retry `n` (1, 2, ...): uniform in `[0, (2^n - 1) x base)`, at most `max` (RT6).
pub fn back_off(back_off: BackOff, n: u32, rng: &mut impl RngCore) -> Duration {
    let base = nanos(back_off.base).max(1_000_000);
    let factor = 1_u64.checked_shl(n).map_or(u64::MAX, |power| power - 1);
    let drawn = below(rng.next_u64(), base.saturating_mul(factor));
    Duration::from_nanos(drawn.min(nanos(back_off.max).max(base)))
}

/// What the server itself says about trying again.
enum Asked {
    Nothing,
    Stop,
    Again,
    Wait(Duration),
}

fn asked(policy: &RetryPolicy, is_grpc: bool, headers: &HeaderMap) -> Asked {
    if headers.contains_key("x-envoy-overloaded") {
        return Asked::Stop;
    }
    if headers.contains_key("x-envoy-ratelimited") {
        let wanted = policy.on.http.contains(&HttpRetry::EnvoyRatelimited);
        return if wanted { Asked::Again } else { Asked::Stop };
    }
    match headers.get("grpc-retry-pushback-ms").filter(|_| is_grpc) {
        None => Asked::Nothing,
        // gRFC A6: negative or unreadable means do not.
        Some(value) => match value.to_str().ok().and_then(|text| text.parse().ok()) {
            Some(millis) => Asked::Wait(Duration::from_millis(u64::from(u32::min(millis, i32::MAX as u32)))),
            None => Asked::Stop,
        },
    }
}

/// Does the policy want this outcome tried again?
fn wanted(policy: &RetryPolicy, outcome: &Outcome, response: Option<&HeaderMap>) -> bool {
    policy.on.http.iter().any(|condition| http_wanted(policy, *condition, outcome, response))
        || policy.on.grpc.iter().any(|condition| grpc_wanted(*condition, outcome))
}

fn http_wanted(policy: &RetryPolicy, condition: HttpRetry, outcome: &Outcome, response: Option<&HeaderMap>) -> bool {
    let status = outcome.status.filter(|_| outcome.failure.is_none());
    let reset = outcome.failure.is_some_and(is_reset);
    match condition {
        // Envoy counts a reset as the 5xx it would become, for both words.
        HttpRetry::ServerError => reset || status.is_some_and(|status| (500..600).contains(&status)),
        HttpRetry::GatewayError => reset || matches!(status, Some(502..=504)),
        HttpRetry::Reset => reset,
        HttpRetry::ResetBeforeRequest => reset && outcome.unsent,
        HttpRetry::ConnectFailure => matches!(outcome.failure, Some(Failure::Connect | Failure::Tls)),
        HttpRetry::RefusedStream => outcome.failure == Some(Failure::RefusedStream),
        HttpRetry::Retriable4xx => status == Some(409),
        HttpRetry::RetriableStatusCodes => status.is_some_and(|status| policy.on.status_codes.contains(&status)),
        HttpRetry::RetriableHeaders => {
            status.is_some()
                && response
                    .is_some_and(|headers| policy.on.headers.iter().any(|wanted| header_matches(wanted, headers)))
        }
        // Decided by `asked`, which sees the header.
        HttpRetry::EnvoyRatelimited => false,
    }
}

fn grpc_wanted(condition: GrpcRetry, outcome: &Outcome) -> bool {
    let status = match (outcome.failure, outcome.grpc) {
        (Some(failure), _) if is_reset(failure) => Some(failure.grpc_status()),
        (Some(_), _) => None,
        (None, status) => status,
    };
    let wanted = match condition {
        GrpcRetry::Cancelled => 1,
        GrpcRetry::DeadlineExceeded => 4,
        GrpcRetry::ResourceExhausted => 8,
        GrpcRetry::Internal => 13,
        GrpcRetry::Unavailable => 14,
    };
    status == Some(wanted)
}

/// The try ended without a response and the request still has time; what was never sent on purpose is not a reset.
fn is_reset(failure: Failure) -> bool {
    failure.blames_endpoint() && failure != Failure::Timeout
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

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
    pub const fn new() -> Self {
        Self { tenths: AtomicU32::new(Self::FULL) }
    }

    /// No limit, for comparisons with Envoy and for those who limit retries elsewhere.
    pub const fn unlimited() -> Self {
        Self { tenths: AtomicU32::new(Self::UNLIMITED) }
    }

    /// A request begins, and earns a tenth of a retry. Not called for retries.
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
