//! Faults injected on purpose: drawn once per request, the delay apart from the abort. Source: Envoy `HTTPFault`, gRFC A33.
//!
//! Only the draw is here, and the count of faults under way; waiting and answering are the caller's. A configured fault
//! without a share is 0 % (FI1). A fault may leave to the request's own headers what is injected (FI3): never more often
//! than the configuration allows.

use std::{sync::Arc, time::Duration};

use http::HeaderMap;
use rand::RngCore;

use crate::{
    config::{AbortStatus, Fault, Fraction},
    limit::Counter,
    outcome::grpc_of_http,
    request::RequestView,
    route::view_matches,
};

const DELAY: &str = "x-envoy-fault-delay-request";
const DELAY_PERCENTAGE: &str = "x-envoy-fault-delay-request-percentage";
const ABORT: &str = "x-envoy-fault-abort-request";
const ABORT_GRPC: &str = "x-envoy-fault-abort-grpc-request";
const ABORT_PERCENTAGE: &str = "x-envoy-fault-abort-request-percentage";
const NODE: &str = "x-envoy-downstream-service-node";

/// The fault of one route, and how many of it are under way.
#[derive(Debug)]
pub struct Faults {
    config: Fault,
    active: Arc<Counter>,
}

impl Faults {
    /// `None` for a fault that injects nothing.
    pub fn new(config: &Fault) -> Option<Self> {
        let any = config.delay.is_some() || config.abort.is_some();
        any.then(|| Self::of(config))
    }

    /// A fault that may inject nothing: where it stands in place of another, that is what it says (RA16).
    pub(crate) fn of(config: &Fault) -> Self {
        Self { config: config.clone(), active: Arc::default() }
    }

    /// Draws for one request to this cluster. The two draws are independent: 50 % each leaves a quarter of the requests alone.
    pub fn draw(&self, view: &RequestView<'_>, cluster: &str, rng: &mut impl RngCore) -> FaultDecision {
        // Two draws whatever is configured, so that a request's later choices do not depend on faults.
        let (delay_bits, abort_bits) = (rng.next_u64(), rng.next_u64());
        if !self.is_for(view, cluster) {
            return FaultDecision::NONE;
        }
        let headers = view.headers;
        let delay = self.config.delay.and_then(|delay| match delay.duration {
            Some(duration) => delay.fraction.hit(delay_bits).then_some(duration),
            None => {
                let millis = number(headers, DELAY)?;
                lowered(delay.fraction, headers, DELAY_PERCENTAGE)
                    .hit(delay_bits)
                    .then_some(Duration::from_millis(millis))
            }
        });
        let abort = self.config.abort.and_then(|abort| match abort.status {
            AbortStatus::ByHeader => {
                let http = number(headers, ABORT).and_then(|status| u16::try_from(status).ok());
                let http = http.filter(|status| (200..600).contains(status)).map(AbortStatus::Http);
                let grpc = || number(headers, ABORT_GRPC).and_then(|status| u32::try_from(status).ok());
                let status = http.or_else(|| grpc().map(AbortStatus::Grpc))?;
                lowered(abort.fraction, headers, ABORT_PERCENTAGE).hit(abort_bits).then_some(status)
            }
            status => abort.fraction.hit(abort_bits).then_some(status),
        });
        let any = delay.is_some() || abort.is_some();
        let active = self.config.max_active.filter(|_| any).map(|most| Active { counter: self.active.clone(), most });
        FaultDecision { delay, abort, active }
    }

    fn is_for(&self, view: &RequestView<'_>, cluster: &str) -> bool {
        let Fault { headers, cluster: only, nodes, .. } = &self.config;
        let node = || view.headers.get(NODE).and_then(|node| node.to_str().ok());
        (only.is_empty() || **only == *cluster)
            && headers.iter().all(|wanted| view_matches(wanted, view))
            && (nodes.is_empty() || node().is_some_and(|node| nodes.iter().any(|only| only == node)))
    }
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

/// The share, unless the request asks for less.
fn lowered(fraction: Fraction, headers: &HeaderMap, name: &str) -> Fraction {
    let asked = number(headers, name).and_then(|asked| u32::try_from(asked).ok());
    Fraction { numerator: asked.map_or(fraction.numerator, |asked| asked.min(fraction.numerator)), ..fraction }
}

/// What to do to one request before it is sent.
#[derive(Clone, Debug, Default)]
pub struct FaultDecision {
    /// Wait this long first (flag `DI`).
    pub delay: Option<Duration>,
    /// Then answer this instead of sending (flag `FI`).
    pub abort: Option<AbortStatus>,
    active: Option<Active>,
}

#[derive(Clone, Debug)]
struct Active {
    counter: Arc<Counter>,
    most: u32,
}

/// A fault under way; over when dropped.
#[derive(Debug)]
#[must_use = "dropping it ends the fault"]
pub struct FaultSlot(Option<Arc<Counter>>);

impl Drop for FaultSlot {
    fn drop(&mut self) {
        if let Some(counter) = &self.0 {
            counter.release();
        }
    }
}

impl FaultDecision {
    /// No fault.
    pub const NONE: Self = Self { delay: None, abort: None, active: None };

    /// Nothing is injected.
    pub fn is_none(&self) -> bool {
        self.delay.is_none() && self.abort.is_none()
    }

    /// Begins the fault; `None` when as many as may be are under way already, and the request is let through (FI4).
    pub fn begin(&self) -> Option<FaultSlot> {
        match &self.active {
            None => Some(FaultSlot(None)),
            Some(Active { counter, most }) => counter.acquire(*most).then(|| FaultSlot(Some(Arc::clone(counter)))),
        }
    }
}

/// The HTTP status of an injected answer: a gRPC abort answers 200 with the status in its headers.
pub const fn http_status(abort: AbortStatus) -> u16 {
    match abort {
        AbortStatus::Http(status) => status,
        AbortStatus::Grpc(_) | AbortStatus::ByHeader => 200,
    }
}

/// The gRPC status of an injected answer to a gRPC call. Source: gRFC A33.
pub const fn grpc_status(abort: AbortStatus) -> u32 {
    match abort {
        AbortStatus::Http(status) => grpc_of_http(status),
        AbortStatus::Grpc(status) => status,
        AbortStatus::ByHeader => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{Abort, FaultDelay, GrpcRetry, HeaderMatch, HeaderMatcher, HttpRetry, RetryConditions, RetryPolicy},
        outcome::{Failure, Flags, Outcome},
        retry::{Asked, Ended, Retries, Rules, Verdict, Why},
        rng::RequestRng,
    };

    fn fault(delay: f64, abort: f64) -> Fault {
        Fault {
            delay: Some(FaultDelay { duration: Some(Duration::from_secs(7)), fraction: Fraction::percent(delay) }),
            abort: Some(Abort { status: AbortStatus::Http(500), fraction: Fraction::percent(abort) }),
            ..Fault::default()
        }
    }

    fn draw(fault: &Fault, headers: &[(&'static str, &'static str)], cluster: &str, n: u64) -> FaultDecision {
        let mut request = http::Request::get("http://reviews/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let Ok(request) = request.body(()) else { return FaultDecision::NONE };
        let (parts, ()) = request.into_parts();
        let Some(faults) = Faults::new(fault) else { return FaultDecision::NONE };
        faults.draw(&RequestView::of(&parts, None), cluster, &mut RequestRng::new(1, n))
    }

    /// FI1, FI2: delay and abort are drawn apart, and a share of 0 % never happens.
    #[test]
    fn delay_and_abort_are_drawn_apart() {
        let mut seen = [0_u32; 4];
        for n in 0..10_000 {
            let drawn = draw(&fault(50.0, 50.0), &[], "reviews", n);
            seen[usize::from(drawn.delay.is_some()) * 2 + usize::from(drawn.abort.is_some())] += 1;
        }
        // Binomial(10 000, 1/4): five standard deviations are 217.
        for count in seen {
            assert!((2_283..=2_717).contains(&count), "{seen:?}");
        }
        for n in 0..1_000 {
            assert!(draw(&fault(0.0, 0.0), &[], "reviews", n).is_none());
            let both = draw(&fault(100.0, 100.0), &[], "reviews", n);
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
        let asked = Asked { method: &http::Method::GET, is_grpc: false, rules: Rules::Mesh };
        let ended = Ended { outcome: &outcome, response: None, wall: Duration::ZERO };
        let verdict = Retries::new().verdict(Some(&policy), asked, ended, &mut RequestRng::new(0, 0));
        assert_eq!(verdict, Verdict::GiveUp(Why::NotAsked));
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

    /// FI5: a fault is for the requests it names, by header, cluster and node, and for no others.
    #[test]
    fn conditions_of_a_fault() {
        let user = HeaderMatch {
            name: "end-user".into(),
            matcher: HeaderMatcher::Present(true),
            invert: false,
            missing_as_empty: false,
        };
        let of = |headers, cluster: &str, nodes: &[&str]| Fault {
            headers,
            cluster: cluster.into(),
            nodes: nodes.iter().map(|node| (*node).to_owned()).collect(),
            ..fault(100.0, 0.0)
        };
        let jason = [("end-user", "jason"), ("x-envoy-downstream-service-node", "n1")];
        for (fault, headers, expected) in [
            (of(vec![user.clone()], "", &[]), &jason[..], true),
            (of(vec![user.clone()], "", &[]), &[], false),
            (of(vec![], "reviews", &[]), &[], true),
            (of(vec![], "ratings", &[]), &[], false),
            (of(vec![], "", &["n0", "n1"]), &jason[..], true),
            (of(vec![], "", &["n0"]), &jason[..], false),
            (of(vec![], "", &["n0"]), &[], false),
            (of(vec![user], "reviews", &["n1"]), &jason[..], true),
        ] {
            assert_eq!(draw(&fault, headers, "reviews", 0).delay.is_some(), expected, "{fault:?} {headers:?}");
        }
    }

    /// FI3: what is injected may be left to the request's headers, which can lower the share and not raise it.
    #[test]
    fn headers_say_what_is_injected() {
        let by_header = |share| Fault {
            delay: Some(FaultDelay { duration: None, fraction: Fraction::percent(share) }),
            abort: Some(Abort { status: AbortStatus::ByHeader, fraction: Fraction::percent(share) }),
            ..Fault::default()
        };
        let drawn = |share, headers: &[(&'static str, &'static str)]| draw(&by_header(share), headers, "reviews", 0);
        assert!(drawn(100.0, &[]).is_none());
        assert_eq!(drawn(100.0, &[(DELAY, "1500")]).delay, Some(Duration::from_millis(1500)));
        assert!(drawn(100.0, &[(DELAY, "soon"), (ABORT, "199"), (ABORT_GRPC, "-1")]).is_none());
        assert_eq!(drawn(100.0, &[(ABORT, "418")]).abort, Some(AbortStatus::Http(418)));
        assert_eq!(drawn(100.0, &[(ABORT_GRPC, "8")]).abort, Some(AbortStatus::Grpc(8)));
        assert!(drawn(100.0, &[(ABORT, "418"), (ABORT_PERCENTAGE, "0")]).is_none());
        assert!(drawn(0.0, &[(ABORT, "418"), (ABORT_PERCENTAGE, "100"), (DELAY, "1")]).is_none());
        let half = |n: &u64| {
            let headers = [(DELAY, "1"), (DELAY_PERCENTAGE, "50")];
            draw(&by_header(100.0), &headers, "reviews", *n).delay.is_some()
        };
        // Binomial(10 000, 1/2): five standard deviations are 250.
        let count = (0..10_000).filter(half).count();
        assert!((4_750..=5_250).contains(&count), "{count}");
    }

    /// FI4: so many faults at once and no more; one that is over makes room.
    #[test]
    fn faults_under_way_are_counted() {
        let faults = Faults::new(&Fault { max_active: Some(2), ..fault(100.0, 0.0) });
        let (parts, ()) = http::Request::new(()).into_parts();
        let view = RequestView::of(&parts, None);
        let draw = |n| faults.as_ref().map(|faults| faults.draw(&view, "reviews", &mut RequestRng::new(1, n)));
        let begin = |n| draw(n).and_then(|decision| decision.begin());
        let (first, second) = (begin(0), begin(1));
        assert!(first.is_some() && second.is_some() && begin(2).is_none());
        drop(first);
        assert!(begin(3).is_some());
        drop(second);
    }
}
