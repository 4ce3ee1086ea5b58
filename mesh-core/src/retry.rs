//! Whether to try again, and after what wait; and the budget that keeps retries from making an outage worse.
//!
//! The verdict is a lookup with a little state, [`Retries`], of one request: policy and outcome in, verdict out.
//! Conditions are Envoy's words (RT1, RT2; `retry/condition.rs`), and a gRPC status counts wherever it stood, trailers
//! included (C4). Of requests that are not idempotent only those that provably were not processed are tried again (RT15).
//! gRPC calls that no application has seen are tried again unasked (RT10). How long to wait is in `retry/back_off.rs`,
//! how many retries a client may make in `retry/budget.rs`, what a request's own headers change in `retry/header.rs`.
//! Replaying bodies is the caller's.

use std::time::Duration;

use http::{HeaderMap, HeaderName, Method};
use rand::RngCore;

use crate::{
    config::{HedgePolicy, HttpRetry, RetryPolicy},
    outcome::{Failure, Outcome},
    request::RequestView,
    route::view_matches,
};

mod back_off;
mod budget;
mod condition;
mod header;

pub use back_off::{back_off, grpc_back_off, rate_limited};
pub use budget::{RetryBudget, Throttle};
pub use header::Overrides;

/// Whether to try again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// No; the outcome stands.
    GiveUp(Why),
    /// Yes, after this long.
    After(Duration),
    /// Yes, at once and whatever the policy allows: no application has seen the call (RT10).
    AtOnce,
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

/// By whose rules requests are tried again.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Rules {
    /// The mesh's: only what is safe to repeat, statuses in trailers too, gRPC's own waits and transparent retries.
    #[default]
    Mesh,
    /// Envoy's to the letter, for comparisons with it: any method, statuses in headers only, one form of waiting.
    Envoy,
}

/// What of a request decides whether it may be sent again.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Its method.
    pub method: &'a Method,
    /// It is a gRPC call.
    pub is_grpc: bool,
    /// By whose rules.
    pub rules: Rules,
}

/// How a try ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended<'a> {
    /// What became of it.
    pub outcome: &'a Outcome,
    /// The headers of its response, or its trailers for a gRPC call that ended by them.
    pub response: Option<&'a HeaderMap>,
    /// The wall clock since 1970, for headers that name a moment.
    pub wall: Duration,
}

/// The retries of one request so far.
#[derive(Clone, Debug, Default)]
pub struct Retries {
    /// Counted against the policy.
    made: u32,
    /// Waits since the sequence began, or began anew after a pushback.
    waits: u32,
    /// The library of a server refused the call once.
    refused: bool,
    /// Tries that never left this process, not counted against the policy.
    unsent: u32,
}

impl Retries {
    /// None yet.
    pub const fn new() -> Self {
        Self { made: 0, waits: 0, refused: false, unsent: 0 }
    }

    /// How many counted retries there were: what `grpc-previous-rpc-attempts` says of the try under way (RT11).
    pub const fn made(&self) -> u32 {
        self.made
    }

    /// May a try that fails from here on be followed by another, as far as counting goes?
    pub const fn any_left(&self, policy: &RetryPolicy) -> bool {
        self.made < policy.retries
    }

    /// Decides after a try ended. Budgets are the caller's to ask, after this says yes: [`RetryBudget::try_withdraw`] and
    /// [`Cluster::retry_slot`](crate::cluster::Cluster::retry_slot).
    pub fn verdict(
        &mut self,
        policy: Option<&RetryPolicy>,
        asked: Asked<'_>,
        ended: Ended<'_>,
        rng: &mut impl RngCore,
    ) -> Verdict {
        if asked.is_grpc && asked.rules == Rules::Mesh && self.is_transparent(ended.outcome) {
            return Verdict::AtOnce;
        }
        let Some(policy) = policy else { return Verdict::GiveUp(Why::NotAsked) };
        let answer = ended.response.map_or(Answer::Nothing, |headers| answer(policy, asked, headers));
        match answer {
            Answer::Stop => return Verdict::GiveUp(Why::ServerRefused),
            Answer::Again => {}
            Answer::Wait(_) | Answer::Nothing if !condition::wanted(policy, asked, &ended) => {
                return Verdict::GiveUp(Why::NotAsked);
            }
            Answer::Wait(_) | Answer::Nothing => {}
        }
        if !may_repeat(policy, asked, ended.outcome) {
            return Verdict::GiveUp(Why::NotIdempotent);
        }
        if !self.any_left(policy) {
            return Verdict::GiveUp(Why::LimitReached);
        }
        self.made += 1;
        if let Answer::Wait(exactly) = answer {
            // gRFC A6: the server's wait begins the sequence anew.
            self.waits = 0;
            return Verdict::After(exactly);
        }
        self.waits += 1;
        Verdict::After(self.wait(policy, asked, &ended, rng))
    }

    /// One more try that is begun beside those under way (RT20), if the policy has one left.
    pub fn hedge(&mut self, policy: &RetryPolicy) -> bool {
        let any = self.any_left(policy);
        self.made += u32::from(any);
        any
    }

    fn wait(&self, policy: &RetryPolicy, asked: Asked<'_>, ended: &Ended<'_>, rng: &mut impl RngCore) -> Duration {
        if let (Some(limited), Some(headers)) = (&policy.rate_limited, ended.response)
            && let Some(wait) = rate_limited(limited, headers, ended.wall, rng)
        {
            return wait;
        }
        match asked.is_grpc && asked.rules == Rules::Mesh {
            true => grpc_back_off(policy.back_off, self.waits, rng),
            false => back_off(policy.back_off, self.waits, rng),
        }
    }

    /// gRFC A6: what never left the client may always be sent, what only a server's library saw may be once more.
    fn is_transparent(&mut self, outcome: &Outcome) -> bool {
        match outcome.failure {
            Some(Failure::Connect | Failure::Tls) => {
                // Unlimited by gRFC A6; here other endpoints are tried, and how many there are is limit enough.
                self.unsent += 1;
                self.unsent <= Self::MOST_UNSENT
            }
            Some(failure) if failure.blames_endpoint() && outcome.unsent => !std::mem::replace(&mut self.refused, true),
            _ => false,
        }
    }

    const MOST_UNSENT: u32 = 7;
}

/// Whether a policy is for this request at all. Envoy `retriable_request_headers`.
pub fn is_for(policy: &RetryPolicy, view: &RequestView<'_>) -> bool {
    policy.request_headers.is_empty() || policy.request_headers.iter().any(|wanted| view_matches(wanted, view))
}

/// Is it safe to send it once more?
pub fn may_repeat(policy: &RetryPolicy, asked: Asked<'_>, outcome: &Outcome) -> bool {
    // gRPC obeys its policy's codes: a call that must not run twice is not given such a policy (gRFC A6).
    let any_method = !policy.only_idempotent
        || asked.rules == Rules::Envoy
        || asked.is_grpc
        || policy.request_headers.iter().any(|wanted| &*wanted.name == ":method");
    any_method || outcome.unsent || asked.method.is_idempotent()
}

/// What one of several tries that are under way at once means for the others (RT20).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Hedged {
    /// It counts: the others are cancelled.
    Final,
    /// It does not, and the next begins after this long.
    Next(Duration),
    /// It does not, and no other is to begin.
    Stop,
}

/// Judges one try of a gRPC call that is hedged by gRPC's own rules. Source: gRFC A6 `nonFatalStatusCodes`.
pub fn hedged(hedge: &HedgePolicy, asked: Asked<'_>, ended: Ended<'_>) -> Hedged {
    let status = ended.outcome.failure.map_or_else(|| ended.outcome.grpc.unwrap_or(0), Failure::grpc_status);
    if !condition::has_code(&hedge.non_fatal, status) {
        return Hedged::Final;
    }
    match ended.response.map_or(Answer::Nothing, |headers| pushback(asked, headers)) {
        Answer::Stop => Hedged::Stop,
        Answer::Wait(wait) => Hedged::Next(wait),
        _ => Hedged::Next(Duration::ZERO),
    }
}

/// What the server itself says about trying again.
enum Answer {
    Nothing,
    Stop,
    Again,
    Wait(Duration),
}

fn answer(policy: &RetryPolicy, asked: Asked<'_>, headers: &HeaderMap) -> Answer {
    // Nearly no response says anything of the kind; to look at names costs less than to look one up.
    let says = |name: &HeaderName| name.as_str().starts_with("x-envoy-") || name.as_str().starts_with("grpc-retry-");
    if !headers.keys().any(says) {
        return Answer::Nothing;
    }
    // Envoy itself says it and, asked again, does not mind it.
    if asked.rules == Rules::Mesh && headers.contains_key("x-envoy-overloaded") {
        return Answer::Stop;
    }
    if headers.contains_key("x-envoy-ratelimited") {
        let wanted = policy.on.http.contains(&HttpRetry::EnvoyRatelimited);
        return if wanted { Answer::Again } else { Answer::Stop };
    }
    pushback(asked, headers)
}

fn pushback(asked: Asked<'_>, headers: &HeaderMap) -> Answer {
    match headers.get("grpc-retry-pushback-ms").filter(|_| asked.is_grpc && asked.rules == Rules::Mesh) {
        None => Answer::Nothing,
        // gRFC A6: negative or unreadable means do not.
        Some(value) => match value.to_str().ok().and_then(|text| text.parse().ok()) {
            Some(millis) => Answer::Wait(Duration::from_millis(u64::from(u32::min(millis, i32::MAX as u32)))),
            None => Answer::Stop,
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::HeaderValue;

    use super::*;
    use crate::{
        config::{BackOff, GrpcRetry, HeaderMatch, HeaderMatcher, RetryConditions, StringMatch},
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
            let outcome = Outcome::response(status);
            let ended = Ended { outcome: &outcome, response: Some(&headers), wall: Duration::ZERO };
            Retries::new().verdict(Some(policy), GET, ended, &mut rng(0))
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
        for condition in G::ALL {
            let status = condition.code();
            let policy = policy(RetryConditions { grpc: vec![condition], ..Default::default() });
            for code in 0..17 {
                let outcome = Outcome::grpc_response(200, Some(code));
                let verdict = grpc(&policy, &outcome, None);
                assert_eq!(matches!(verdict, Verdict::After(_)), code == status, "{condition:?} {code}");
            }
        }
        let policy = policy(RetryConditions { grpc: vec![GrpcRetry::Unavailable], ..Default::default() });
        assert_eq!(grpc(&policy, &Outcome::failed(Failure::Connect), None), Verdict::AtOnce, "it never left");
        for outcome in
            [Outcome::failed(Failure::Reset), Outcome::grpc_response(503, None), Outcome::grpc_response(429, None)]
        {
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
            let ended = Ended { outcome: &bad, response: None, wall: Duration::ZERO };
            let mut retries_made = Retries { made: attempt - 1, ..Retries::new() };
            let verdict = retries_made.verdict(Some(&policy), GET, ended, &mut rng(0));
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

    /// RT9: a server's own wait is kept exactly, and a negative or unreadable one means do not.
    #[test]
    fn a_servers_own_wait_is_kept() {
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
            matches!(super::tests::ask(policy, method, &outcome), Verdict::After(_))
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

    /// RT7, RT9: a gRPC call waits by gRPC's form, and a wait the server asked for begins the sequence anew.
    #[test]
    fn a_pushback_begins_the_sequence_anew() {
        let mut policy = policy(RetryConditions { grpc: vec![GrpcRetry::Unavailable], ..Default::default() });
        policy.retries = 9;
        policy.back_off = BackOff { base: Duration::from_millis(100), max: Duration::from_secs(10) };
        let outcome = Outcome::grpc_response(200, Some(14));
        let mut pushed = HeaderMap::new();
        pushed.insert("grpc-retry-pushback-ms", HeaderValue::from_static("7"));
        let (mut retries, mut rng) = (Retries::new(), rng(1));
        let mut waits = Vec::new();
        for response in [None, None, None, Some(&pushed), None, None] {
            let ended = Ended { outcome: &outcome, response, wall: Duration::ZERO };
            match retries.verdict(Some(&policy), GRPC, ended, &mut rng) {
                Verdict::After(wait) => waits.push(wait.as_millis()),
                other => assert_eq!(other, Verdict::AtOnce, "every one is tried again"),
            }
        }
        for (wait, middle) in waits.iter().zip([100, 200, 400, 7, 100, 200]) {
            let fits = if middle == 7 { *wait == 7 } else { (middle * 8 / 10 - 1..middle * 12 / 10).contains(wait) };
            assert!(fits, "{waits:?}");
        }
        assert_eq!((waits.len(), retries.made()), (6, 6));
    }

    /// RT10: what no application has seen is sent again unasked: what never left as often as there are endpoints, what a
    /// server's library refused once; only gRPC calls, and none of it counts against the policy.
    #[test]
    fn transparent_retries_are_not_counted() {
        let connect = Outcome::failed(Failure::Connect);
        let refused = Outcome::failed(Failure::RefusedStream);
        let away = Outcome::failed(Failure::Reset).with_unsent();
        let mut rng = rng(2);
        let mut ask = |retries: &mut Retries, asked: Asked<'_>, outcome: &Outcome| {
            let ended = Ended { outcome, response: None, wall: Duration::ZERO };
            retries.verdict(None, asked, ended, &mut rng)
        };
        let mut retries = Retries::new();
        for outcome in [&connect, &connect, &refused, &connect] {
            assert_eq!(ask(&mut retries, GRPC, outcome), Verdict::AtOnce);
        }
        assert_eq!(ask(&mut retries, GRPC, &away), Verdict::GiveUp(Why::NotAsked), "once");
        assert_eq!(retries.made(), 0);
        assert_eq!((0..20).filter(|_| ask(&mut retries, GRPC, &connect) == Verdict::AtOnce).count(), 4);
        for outcome in [Failure::Overflow, Failure::NoEndpoint, Failure::Reset, Failure::Timeout].map(Outcome::failed) {
            assert_eq!(ask(&mut Retries::new(), GRPC, &outcome), Verdict::GiveUp(Why::NotAsked), "{outcome:?}");
        }
        assert_eq!(ask(&mut Retries::new(), GET, &refused), Verdict::GiveUp(Why::NotAsked));
        let envoys = Asked { rules: Rules::Envoy, ..GRPC };
        assert_eq!(ask(&mut Retries::new(), envoys, &refused), Verdict::GiveUp(Why::NotAsked));
    }

    /// RT15: a policy may name the requests it is for, and with them the methods that are safe to repeat.
    #[test]
    fn a_policy_names_its_requests() {
        let post = StringMatch::Exact { value: "POST".into(), ignore_case: false };
        let mut policy = policy(RetryConditions { http: vec![HttpRetry::ServerError], ..Default::default() });
        policy.request_headers = vec![HeaderMatch {
            name: ":method".into(),
            matcher: HeaderMatcher::Value(post),
            invert: false,
            missing_as_empty: false,
        }];
        for (method, expected) in [("POST", true), ("GET", false)] {
            let (parts, ()) =
                http::Request::builder().method(method).uri("http://reviews/").body(()).unwrap().into_parts();
            assert_eq!(is_for(&policy, &RequestView::of(&parts, None)), expected, "{method}");
        }
        assert!(matches!(ask(&policy, &Method::POST, &Outcome::response(503)), Verdict::After(_)));
    }

    /// RT2: of a call that is not gRPC only a status in the headers counts, as in Envoy; a lost connection does not.
    #[test]
    fn grpc_conditions_of_other_requests() {
        let policy = policy(RetryConditions { grpc: vec![GrpcRetry::Unavailable], ..Default::default() });
        assert_eq!(get(&policy, &Outcome::failed(Failure::Reset)), Verdict::GiveUp(Why::NotAsked));
        let mut headers = HeaderMap::new();
        headers.insert("grpc-status", HeaderValue::from_static("14"));
        let outcome = Outcome::response(200);
        let ended = Ended { outcome: &outcome, response: Some(&headers), wall: Duration::ZERO };
        let verdict = Retries::new().verdict(Some(&policy), GET, ended, &mut rng(0));
        assert!(matches!(verdict, Verdict::After(_)));
    }

    /// RT20: of tries under way at once a status that is not fatal begins the next, as soon as its server says.
    #[test]
    fn what_a_hedged_try_means() {
        let hedge = HedgePolicy { non_fatal: vec![GrpcRetry::Unavailable], ..HedgePolicy::default() };
        for (outcome, pushback, expected) in [
            (Outcome::grpc_response(200, Some(0)), None, Hedged::Final),
            (Outcome::grpc_response(200, Some(5)), None, Hedged::Final),
            (Outcome::grpc_response(200, Some(14)), None, Hedged::Next(Duration::ZERO)),
            (Outcome::grpc_response(200, Some(14)), Some("30"), Hedged::Next(Duration::from_millis(30))),
            (Outcome::grpc_response(200, Some(14)), Some("-1"), Hedged::Stop),
            (Outcome::grpc_response(200, Some(0)), Some("-1"), Hedged::Final),
            (Outcome::failed(Failure::Reset), None, Hedged::Next(Duration::ZERO)),
            (Outcome::failed(Failure::Timeout), None, Hedged::Final),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(value) = pushback {
                headers.insert("grpc-retry-pushback-ms", HeaderValue::from_static(value));
            }
            let ended = Ended { outcome: &outcome, response: Some(&headers), wall: Duration::ZERO };
            assert_eq!(hedged(&hedge, GRPC, ended), expected, "{outcome:?} {pushback:?}");
        }
    }

    const GET: Asked<'static> = Asked { method: &Method::GET, is_grpc: false, rules: Rules::Mesh };
    const GRPC: Asked<'static> = Asked { method: &Method::POST, is_grpc: true, rules: Rules::Mesh };

    fn policy(on: RetryConditions) -> RetryPolicy {
        RetryPolicy { on, retries: 2, ..RetryPolicy::default() }
    }

    fn ask(policy: &RetryPolicy, method: &Method, outcome: &Outcome) -> Verdict {
        let ended = Ended { outcome, response: None, wall: Duration::ZERO };
        Retries::new().verdict(Some(policy), Asked { method, ..GET }, ended, &mut rng(0))
    }

    fn get(policy: &RetryPolicy, outcome: &Outcome) -> Verdict {
        ask(policy, &Method::GET, outcome)
    }

    fn grpc(policy: &RetryPolicy, outcome: &Outcome, pushback: Option<&'static str>) -> Verdict {
        let headers: HeaderMap = pushback
            .map(|value| (http::HeaderName::from_static("grpc-retry-pushback-ms"), HeaderValue::from_static(value)))
            .into_iter()
            .collect();
        let ended = Ended { outcome, response: Some(&headers), wall: Duration::ZERO };
        Retries::new().verdict(Some(policy), GRPC, ended, &mut rng(0))
    }

    fn rng(seed: u64) -> RequestRng {
        RequestRng::new(seed, 0)
    }
}
