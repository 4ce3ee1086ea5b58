//! Whether to try again, and after what wait; and the budget that keeps retries from making an outage worse.
//!
//! The verdict is a lookup: policy and outcome in, verdict out. Conditions are Envoy's words (RT1, RT2), and a gRPC status
//! counts wherever it stood, trailers included (C4). Of requests that are not idempotent only those that provably were
//! not processed are tried again (RT15). Replaying bodies is the caller's.

use std::time::Duration;

use http::{HeaderMap, Method};
use rand::RngCore;

use crate::{
    config::{BackOff, GrpcRetry, HttpRetry, RetryPolicy},
    outcome::{Failure, Outcome},
    rng::below,
    route::header_matches,
    sync::{AtomicU32, Ordering::Relaxed},
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
    pub fn new() -> Self {
        Self { tenths: AtomicU32::new(Self::FULL) }
    }

    /// No limit, for comparisons with Envoy and for those who limit retries elsewhere.
    pub fn unlimited() -> Self {
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::HeaderValue;

    use super::*;
    use crate::{
        config::{HeaderMatch, HeaderMatcher, RetryConditions},
        rng::RequestRng,
    };

    /// RT1: each HTTP condition retries what Envoy's does and nothing else.
    #[test]
    fn http_conditions() {
        use Failure as F;
        use HttpRetry as H;
        let response = Outcome::response;
        let failed = Outcome::failed;
        for (condition, yes, no) in [
            (
                H::ServerError,
                vec![response(500), response(503), failed(F::Reset), failed(F::Connect), failed(F::PerTryTimeout)],
                vec![response(200), response(404), failed(F::Overflow), failed(F::NoEndpoint), failed(F::Timeout)],
            ),
            (
                H::GatewayError,
                vec![response(502), response(503), response(504), failed(F::Reset), failed(F::PerTryTimeout)],
                vec![response(500), response(501), response(505), failed(F::Cancelled)],
            ),
            (
                H::Reset,
                vec![failed(F::Reset), failed(F::RefusedStream), failed(F::Connect), failed(F::PerTryTimeout)],
                vec![response(503), failed(F::Overflow), failed(F::NoRoute), failed(F::FaultAbort)],
            ),
            (
                H::ResetBeforeRequest,
                vec![failed(F::Connect), failed(F::RefusedStream), failed(F::Reset).with_unsent()],
                vec![failed(F::Reset), failed(F::PerTryTimeout), response(503)],
            ),
            (H::ConnectFailure, vec![failed(F::Connect), failed(F::Tls)], vec![failed(F::Reset), response(503)]),
            (H::RefusedStream, vec![failed(F::RefusedStream)], vec![failed(F::Reset), failed(F::Connect)]),
            (H::Retriable4xx, vec![response(409)], vec![response(400), response(404), response(429), response(503)]),
            (H::RetriableStatusCodes, vec![response(418)], vec![response(503), response(419), failed(F::Reset)]),
        ] {
            let policy =
                policy(RetryConditions { http: vec![condition], status_codes: vec![418], ..Default::default() });
            for outcome in yes {
                assert!(matches!(get(&policy, &outcome), Verdict::After(_)), "{condition:?} {outcome:?}");
            }
            for outcome in no {
                assert_eq!(get(&policy, &outcome), Verdict::GiveUp(Why::NotAsked), "{condition:?} {outcome:?}");
            }
        }
    }

    /// RT1: conditions on response headers, and what Envoy's own headers ask for.
    #[test]
    fn header_conditions() {
        let wanted = HeaderMatch {
            name: "x-again".into(),
            matcher: HeaderMatcher::Present(true),
            invert: false,
            missing_as_empty: false,
        };
        let conditions =
            RetryConditions { http: vec![HttpRetry::RetriableHeaders], headers: vec![wanted], ..Default::default() };
        let policy = policy(conditions);
        let ask = |policy: &RetryPolicy, status, name: &'static str, value: &'static str| {
            let headers = HeaderMap::from_iter([(name.parse().unwrap(), HeaderValue::from_static(value))]);
            verdict(policy, 1, &Method::GET, false, &Outcome::response(status), Some(&headers), Time::ZERO, &mut rng(0))
        };
        assert!(matches!(ask(&policy, 200, "x-again", "1"), Verdict::After(_)));
        assert_eq!(ask(&policy, 200, "x-other", "1"), Verdict::GiveUp(Why::NotAsked));
        let policy = self::policy(RetryConditions { http: vec![HttpRetry::ServerError], ..Default::default() });
        assert_eq!(ask(&policy, 503, "x-envoy-overloaded", "true"), Verdict::GiveUp(Why::ServerRefused));
        assert_eq!(ask(&policy, 503, "x-envoy-ratelimited", "true"), Verdict::GiveUp(Why::ServerRefused));
        let policy = self::policy(RetryConditions { http: vec![HttpRetry::EnvoyRatelimited], ..Default::default() });
        assert!(matches!(ask(&policy, 429, "x-envoy-ratelimited", "true"), Verdict::After(_)));
    }

    /// RT2, C4: each gRPC condition retries its status wherever it stood, and lost connections are `UNAVAILABLE`.
    #[test]
    fn grpc_conditions() {
        use GrpcRetry as G;
        for (condition, status) in [
            (G::Cancelled, 1),
            (G::DeadlineExceeded, 4),
            (G::ResourceExhausted, 8),
            (G::Internal, 13),
            (G::Unavailable, 14),
        ] {
            let policy = policy(RetryConditions { grpc: vec![condition], ..Default::default() });
            for code in 0..17 {
                let outcome = Outcome::grpc_response(200, Some(code));
                let verdict = grpc(&policy, &outcome, None);
                assert_eq!(matches!(verdict, Verdict::After(_)), code == status, "{condition:?} {code}");
            }
        }
        let policy = policy(RetryConditions { grpc: vec![GrpcRetry::Unavailable], ..Default::default() });
        for outcome in [
            Outcome::failed(Failure::Connect),
            Outcome::failed(Failure::Reset),
            Outcome::grpc_response(503, None),
            Outcome::grpc_response(429, None),
        ] {
            assert!(matches!(grpc(&policy, &outcome, None), Verdict::After(_)), "{outcome:?}");
        }
        for outcome in [Outcome::failed(Failure::Overflow), Outcome::failed(Failure::NoRoute), Outcome::response(503)] {
            assert_eq!(grpc(&policy, &outcome, None), Verdict::GiveUp(Why::NotAsked), "{outcome:?}");
        }
    }

    /// RT3: so many retries after the first try, and none without.
    #[test]
    fn number_of_retries() {
        let mut policy = policy(RetryConditions { http: vec![HttpRetry::ServerError], ..Default::default() });
        for (retries, attempt, again) in [(0, 1, false), (1, 1, true), (1, 2, false), (2, 2, true), (2, 3, false)] {
            policy.retries = retries;
            let bad = Outcome::response(503);
            let verdict = verdict(&policy, attempt, &Method::GET, false, &bad, None, Time::ZERO, &mut rng(0));
            assert_eq!(matches!(verdict, Verdict::After(_)), again, "{retries} {attempt}");
            assert!(again || verdict == Verdict::GiveUp(Why::LimitReached));
        }
    }

    /// RT4: Istio's default policy retries lost connections and not a plain 503.
    #[test]
    fn istio_default() {
        let policy = policy(RetryConditions {
            http: vec![HttpRetry::ConnectFailure, HttpRetry::RefusedStream, HttpRetry::RetriableStatusCodes],
            grpc: vec![GrpcRetry::Unavailable, GrpcRetry::Cancelled],
            ..Default::default()
        });
        assert_eq!(get(&policy, &Outcome::response(503)), Verdict::GiveUp(Why::NotAsked));
        assert!(matches!(get(&policy, &Outcome::failed(Failure::Connect)), Verdict::After(_)));
        assert!(matches!(grpc(&policy, &Outcome::grpc_response(200, Some(14)), None), Verdict::After(_)));
    }

    /// RT6: the wait is uniform below (2^n - 1) x base, capped; a base below a millisecond is one.
    #[test]
    fn back_off_grows_and_is_capped() {
        let millis = Duration::from_millis;
        let config = BackOff { base: millis(25), max: millis(250) };
        for (n, bound) in [(1, 25), (2, 75), (3, 175), (4, 250), (40, 250), (200, 250)] {
            let drawn: Vec<_> = (0..1_000).map(|seed| back_off(config, n, &mut rng(seed))).collect();
            let longest = drawn.iter().max().unwrap();
            assert!(*longest <= millis(bound) && *longest > millis(bound) * 9 / 10, "{n}: {longest:?}");
            assert!(n > 4 || *drawn.iter().min().unwrap() < millis(bound) / 10, "{n}");
        }
        let tiny = BackOff { base: Duration::from_nanos(1), max: Duration::from_nanos(10) };
        assert!((0..1_000).map(|seed| back_off(tiny, 1, &mut rng(seed))).max().unwrap() > Duration::from_micros(900));
    }

    /// RT9: a server's own wait is kept exactly, and a negative or unreadable one means do not.
    #[test]
    fn pushback() {
        let policy = policy(RetryConditions { grpc: vec![GrpcRetry::Unavailable], ..Default::default() });
        for (value, expected) in [
            ("0", Verdict::After(Duration::ZERO)),
            ("1500", Verdict::After(Duration::from_millis(1500))),
            ("-1", Verdict::GiveUp(Why::ServerRefused)),
            ("soon", Verdict::GiveUp(Why::ServerRefused)),
        ] {
            let outcome = Outcome::grpc_response(200, Some(14));
            assert_eq!(grpc(&policy, &outcome, Some(value)), expected, "{value}");
        }
        let fine = Outcome::grpc_response(200, Some(0));
        assert_eq!(grpc(&policy, &fine, Some("5")), Verdict::GiveUp(Why::NotAsked));
    }

    /// RT15: what may have been processed is sent again only if the method is idempotent; what was not always is.
    #[test]
    fn only_idempotent_methods_unless_unsent() {
        let mut policy = policy(RetryConditions { http: vec![HttpRetry::ServerError], ..Default::default() });
        let ask = |policy: &RetryPolicy, method: &Method, outcome: Outcome| {
            matches!(verdict(policy, 1, method, false, &outcome, None, Time::ZERO, &mut rng(0)), Verdict::After(_))
        };
        for outcome in
            [Outcome::response(503), Outcome::failed(Failure::Reset), Outcome::failed(Failure::PerTryTimeout)]
        {
            assert!(ask(&policy, &Method::PUT, outcome));
            assert!(!ask(&policy, &Method::POST, outcome));
            assert!(!ask(&policy, &Method::PATCH, outcome));
        }
        for outcome in [Failure::Connect, Failure::Tls, Failure::RefusedStream].map(Outcome::failed) {
            assert!(ask(&policy, &Method::POST, outcome), "{outcome:?}");
        }
        assert!(ask(&policy, &Method::POST, Outcome::failed(Failure::Reset).with_unsent()));
        policy.only_idempotent = false;
        assert!(ask(&policy, &Method::POST, Outcome::response(503)));
    }

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

    fn policy(on: RetryConditions) -> RetryPolicy {
        RetryPolicy { on, retries: 2, ..RetryPolicy::default() }
    }

    fn get(policy: &RetryPolicy, outcome: &Outcome) -> Verdict {
        verdict(policy, 1, &Method::GET, false, outcome, None, Time::ZERO, &mut rng(0))
    }

    fn grpc(policy: &RetryPolicy, outcome: &Outcome, pushback: Option<&'static str>) -> Verdict {
        let headers: HeaderMap = pushback
            .map(|value| (http::HeaderName::from_static("grpc-retry-pushback-ms"), HeaderValue::from_static(value)))
            .into_iter()
            .collect();
        verdict(policy, 1, &Method::POST, true, outcome, Some(&headers), Time::ZERO, &mut rng(0))
    }

    fn rng(seed: u64) -> RequestRng {
        RequestRng::new(seed, 0)
    }
}
