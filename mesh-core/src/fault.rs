//! Faults injected on purpose: drawn once per request, the delay apart from the abort. Source: Envoy `HTTPFault`, gRFC A33.
//!
//! Only the draw is here; waiting and answering are the caller's. A configured fault without a share is 0 % (FI1).

use std::time::Duration;

use rand::RngCore;

use crate::{
    config::{AbortStatus, Fault},
    outcome::grpc_of_http,
};

/// What to do to one request before it is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct FaultDecision {
    /// Wait this long first (flag `DI`).
    pub delay: Option<Duration>,
    /// Then answer this instead of sending (flag `FI`).
    pub abort: Option<AbortStatus>,
}

impl FaultDecision {
    /// No fault.
    pub const NONE: Self = Self { delay: None, abort: None };

    /// Draws for one request. The two draws are independent: 50 % each leaves a quarter of the requests alone.
    pub fn draw(fault: &Fault, rng: &mut impl RngCore) -> Self {
        Self {
            delay: fault.delay.filter(|delay| delay.fraction.hit(rng.next_u64())).map(|delay| delay.duration),
            abort: fault.abort.filter(|abort| abort.fraction.hit(rng.next_u64())).map(|abort| abort.status),
        }
    }

    /// Nothing is injected.
    pub fn is_none(&self) -> bool {
        self.delay.is_none() && self.abort.is_none()
    }
}

/// The HTTP status of an injected answer: a gRPC abort answers 200 with the status in its headers.
pub const fn http_status(abort: AbortStatus) -> u16 {
    match abort {
        AbortStatus::Http(status) => status,
        AbortStatus::Grpc(_) => 200,
    }
}

/// The gRPC status of an injected answer to a gRPC call. Source: gRFC A33.
pub const fn grpc_status(abort: AbortStatus) -> u32 {
    match abort {
        AbortStatus::Http(status) => grpc_of_http(status),
        AbortStatus::Grpc(status) => status,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{Abort, FaultDelay, Fraction, GrpcRetry, HttpRetry, RetryConditions, RetryPolicy},
        outcome::{Failure, Flags, Outcome},
        retry,
        rng::RequestRng,
        time::Time,
    };

    fn fault(delay: f64, abort: f64) -> Fault {
        Fault {
            delay: Some(FaultDelay { duration: Duration::from_secs(7), fraction: Fraction::percent(delay) }),
            abort: Some(Abort { status: AbortStatus::Http(500), fraction: Fraction::percent(abort) }),
        }
    }

    /// FI1, FI2: delay and abort are drawn apart, and a share of 0 % never happens.
    #[test]
    fn delay_and_abort_are_drawn_apart() {
        let mut seen = [0_u32; 4];
        for n in 0..10_000 {
            let drawn = FaultDecision::draw(&fault(50.0, 50.0), &mut RequestRng::new(1, n));
            seen[usize::from(drawn.delay.is_some()) * 2 + usize::from(drawn.abort.is_some())] += 1;
        }
        // Binomial(10 000, 1/4): five standard deviations are 217.
        for count in seen {
            assert!((2_283..=2_717).contains(&count), "{seen:?}");
        }
        for n in 0..1_000 {
            let mut rng = RequestRng::new(2, n);
            assert!(FaultDecision::draw(&fault(0.0, 0.0), &mut rng).is_none());
            let both = FaultDecision::draw(&fault(100.0, 100.0), &mut rng);
            assert_eq!(both.delay, Some(Duration::from_secs(7)));
            assert_eq!(both.abort, Some(AbortStatus::Http(500)));
        }
    }

    /// FI7: an injected abort has a flag of its own, blames no endpoint, and is not tried again.
    #[test]
    fn an_injected_abort_is_nobodys_fault() {
        let outcome = Outcome::failed(Failure::FaultAbort);
        assert_eq!((outcome.flags(), Failure::FaultAbort.blames_endpoint()), (Flags::FI, false));
        let on = RetryConditions {
            http: vec![HttpRetry::ServerError, HttpRetry::Reset, HttpRetry::GatewayError],
            grpc: vec![GrpcRetry::Unavailable],
            ..RetryConditions::default()
        };
        let policy = RetryPolicy { on, ..RetryPolicy::default() };
        let mut rng = RequestRng::new(0, 0);
        let verdict = retry::verdict(&policy, 1, &http::Method::GET, false, &outcome, None, Time::ZERO, &mut rng);
        assert_eq!(verdict, retry::Verdict::GiveUp(retry::Why::NotAsked));
    }

    /// FI2: the HTTP status of an abort becomes a gRPC status by gRPC's own table.
    #[test]
    fn abort_status_for_grpc() {
        for (http, grpc) in
            [(400, 13), (401, 16), (403, 7), (404, 12), (429, 14), (502, 14), (503, 14), (500, 2), (200, 2)]
        {
            assert_eq!(grpc_status(AbortStatus::Http(http)), grpc, "{http}");
        }
        assert_eq!((http_status(AbortStatus::Grpc(0)), grpc_status(AbortStatus::Grpc(0))), (200, 0));
    }
}
