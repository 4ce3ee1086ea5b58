//! Faults injected on purpose, once per request and before any try: first the delay, then the abort.
//!
//! It stands above timeout and retry, as Envoy's fault filter stands before the router: a delay does not count towards
//! the route's timeout, an abort is not retried, and no endpoint is blamed (FI7). Only the caller's own deadline cuts a
//! delay short. The draw was made with the plan. Source: Envoy `HTTPFault`, gRFC A33.

use mesh_core::{config::AbortStatus, fault, outcome::Flags};
use tokio::time::{Instant, sleep_until};
use tower_layer::Layer;

use super::{Call, Routed, Stage};
use crate::{
    error::{Error, ErrorKind},
    source,
};

/// Injects the faults that plans ask for.
#[derive(Clone, Copy, Debug, Default)]
pub struct FaultLayer(());

impl FaultLayer {
    /// The layer; what is injected is in each request's plan.
    pub fn new() -> Self {
        Self(())
    }
}

impl<S> Layer<S> for FaultLayer {
    type Service = Faulty<S>;

    fn layer(&self, inner: S) -> Faulty<S> {
        Faulty { inner }
    }
}

/// A stage with faults before it.
#[derive(Clone, Debug)]
pub struct Faulty<S> {
    inner: S,
}

impl<S: Stage<Routed>> Stage<Routed> for Faulty<S> {
    type Response = S::Response;

    async fn call(&self, mut routed: Routed) -> Result<S::Response, Error> {
        if !routed.call.plan().fault.is_none() {
            // In a box, so that requests without a fault do not carry its room along.
            routed.now = Box::pin(inject(&routed.call, routed.deadline, routed.now)).await?;
        }
        self.inner.call(routed).await
    }
}

/// Waits and fails as the plan says; otherwise tells the time.
async fn inject(call: &Call, deadline: Option<Instant>, now: Instant) -> Result<Instant, Error> {
    let decision = call.plan().fault.clone();
    // As many as may be are under way: this one is let through as it is.
    let Some(under_way) = decision.begin() else { return Ok(now) };
    if let Some(delay) = decision.delay {
        call.note(Flags::DI);
        let until = source::instant() + delay;
        match deadline {
            Some(deadline) if deadline < until => {
                sleep_until(deadline).await;
                return Err(Error::of(ErrorKind::Deadline));
            }
            _ => sleep_until(until).await,
        }
    }
    if let Some(abort) = decision.abort {
        let grpc = match abort {
            AbortStatus::Grpc(_) => Some(fault::grpc_status(abort)),
            AbortStatus::Http(_) | AbortStatus::ByHeader => None,
        };
        return Err(Error::fault(fault::http_status(abort), grpc));
    }
    drop(under_way);
    Ok(source::instant())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use std::time::Duration;

    use mesh_core::config::{
        Abort, Fault, FaultDelay, Fraction, HttpRetry, OutlierDetection, RetryConditions, RetryPolicy,
    };

    use tokio::time::Instant;

    use super::*;
    use crate::{
        Body, Context, ErrorKind, ResponseFlags,
        config::{self, Action, Forward, WeightedCluster},
        testing::{Log, client, cluster, configured, response, route, with_route},
    };

    /// FI1: the delay comes once per request, before its first try, and is visible.
    #[tokio::test(start_paused = true)]
    async fn a_delay_comes_once_and_before_the_first_try() {
        let tries = Log::new();
        let delay = FaultDelay { duration: Some(Duration::from_secs(7)), fraction: Fraction::ALL };
        let log = tries.clone();
        let config = faulty(Fault { delay: Some(delay), ..Fault::default() }, Some(Duration::from_secs(1)));
        let client = client(&config, move |_| {
            log.push(Instant::now());
            async { Ok(response(503, &[])) }
        });
        let start = Instant::now();
        let answer = client.get("http://reviews/").await.unwrap();
        assert_eq!(answer.status(), 503, "the delay does not count towards the route's timeout of 1 s");
        assert_eq!(tries.len(), 3);
        assert_eq!(tries.all()[0] - start, Duration::from_secs(7));
        assert!(tries.all()[2] - start < Duration::from_secs(8), "{:?}", tries.all()[2] - start);
        assert!(answer.extensions().get::<ResponseFlags>().unwrap().flags.contains(Flags::DI));
    }

    /// FI2, FI7: an abort answers at once, is not retried and blames nobody.
    #[tokio::test(start_paused = true)]
    async fn an_abort_reaches_no_endpoint_and_is_not_retried() {
        let abort = |status| Fault { abort: Some(Abort { status, fraction: Fraction::ALL }), ..Fault::default() };
        let tries = Log::new();
        let client_of = |status| {
            let tries = tries.clone();
            client(&faulty(abort(status), None), move |_| {
                tries.push(());
                async { Ok(response(200, &[])) }
            })
        };
        let client = client_of(AbortStatus::Http(503));
        for _ in 0..10 {
            let answer = client.get("http://reviews/").await.unwrap();
            assert_eq!(answer.status(), 503);
            assert_eq!(answer.extensions().get::<ResponseFlags>().unwrap().to_string(), "FI fault_filter_abort");
            let text = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap().to_bytes();
            assert_eq!(text, "fault filter abort");
        }
        let grpc = client_of(AbortStatus::Grpc(8)).grpc("reviews").unwrap();
        let request = http::Request::get("/a.B/C").body(Body::empty()).unwrap();
        let answer = tower::ServiceExt::oneshot(grpc, request).await.unwrap();
        assert_eq!(answer.headers()["grpc-status"], "8");
        assert_eq!(tries.len(), 0);
    }

    /// FI7: endpoints are not ejected for faults that were injected.
    #[tokio::test(start_paused = true)]
    async fn no_endpoint_is_ejected_for_an_abort() {
        let abort = Abort { status: AbortStatus::Http(503), fraction: Fraction { numerator: 50, denominator: 100 } };
        let client = client(&faulty(Fault { abort: Some(abort), ..Fault::default() }, None), |_| async {
            Ok(response(200, &[]))
        });
        let mut aborted = 0;
        for _ in 0..100 {
            aborted += usize::from(client.get("http://reviews/").await.unwrap().status() == 503);
        }
        // Binomial(100, 1/2): five standard deviations are 25.
        assert!((25..=75).contains(&aborted), "{aborted}");
        let snapshot = client.live().load().unwrap();
        assert!(!snapshot.cluster("reviews").unwrap().endpoints()[0].is_ejected());
    }

    /// FI1, C11: only the caller's own deadline cuts a delay short.
    #[tokio::test(start_paused = true)]
    async fn the_callers_deadline_cuts_a_delay_short() {
        let delay = FaultDelay { duration: Some(Duration::from_secs(7)), fraction: Fraction::ALL };
        let fault = Fault { delay: Some(delay), ..Fault::default() };
        let client = client(&faulty(fault, None), |_| async { Ok(response(200, &[])) });
        let start = Instant::now();
        let context = Context { deadline: Some(start + Duration::from_secs(2)), ..Context::default() };
        let answer = context.scope(client.get("http://reviews/")).await.unwrap();
        assert_eq!((answer.status().as_u16(), start.elapsed()), (504, Duration::from_secs(2)));
        assert_eq!(Error::of(ErrorKind::Deadline).grpc_status(), 4);
    }

    /// FI4: so many requests are held up at once, others are let through; an end makes room.
    #[tokio::test(start_paused = true)]
    async fn no_more_faults_at_once_than_configured() {
        let delay = FaultDelay { duration: Some(Duration::from_secs(7)), fraction: Fraction::ALL };
        let fault = Fault { delay: Some(delay), max_active: Some(2), ..Fault::default() };
        let client = client(&faulty(fault, None), |_| async { Ok(response(200, &[])) });
        for _ in 0..2 {
            let start = Instant::now();
            let took = async || {
                client.get("http://reviews/").await.unwrap();
                start.elapsed().as_secs()
            };
            let (a, b, c, d) = tokio::join!(took(), took(), took(), took());
            let mut all = [a, b, c, d];
            all.sort_unstable();
            assert_eq!(all, [0, 0, 7, 7]);
        }
    }

    fn faulty(fault: Fault, timeout: Option<Duration>) -> config::Config {
        let mut reviews = cluster("reviews", 1);
        reviews.outlier_detection =
            Some(OutlierDetection { consecutive_5xx: 2, max_ejection_percent: 100, ..Default::default() });
        if timeout.is_some() {
            reviews.outlier_detection = None;
        }
        let on = RetryConditions { http: vec![HttpRetry::ServerError], ..Default::default() };
        let forward = Forward {
            clusters: vec![WeightedCluster { cluster: "reviews".into(), weight: 1, ..Default::default() }],
            retry: Some(RetryPolicy { on, retries: 2, ..Default::default() }),
            timeout,
            ..Default::default()
        };
        let route = config::Route { fault: Some(fault), ..route(Action::Forward(forward)) };
        with_route(configured([reviews], Forward::default()), route)
    }
}
