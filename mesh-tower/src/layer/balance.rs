//! Which endpoint a try goes to, how many may be under way, and what is learned from how it ends: load balancing,
//! circuit breaking and outlier ejection, which are one concern because they share the endpoint's counters.
//!
//! The policy is core's; this file asks for a pick, holds it until the response's body has ended, and reports how that
//! was. A response that is let go of half-way counts by its status; a try that is dropped before any response is a
//! cancelled one and counts for nothing, unless its time had run out, which is the endpoint's doing.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, header, uri::Authority};
use http_body::{Body as HttpBody, Frame};
use mesh_core::{
    cluster::Cluster,
    config::{Discovery, EndpointAddress},
    endpoint::{Endpoint, Pick},
    error::PickError,
    health::IMMEDIATE_FAIL,
    load::LoadReport,
    outcome::{Failure, Outcome, grpc_status},
    pick::Ask,
    rewrite,
    telemetry::Messages,
    time::Time,
};
use tokio::time::Instant;
use tower_layer::Layer;

use super::{Attempt, Call, Picked, Routed, Stage, watch::Now};
use crate::{
    body::ResponseBody,
    error::{Error, ErrorKind},
    message::Message,
    source::{self, Clock, Source},
    telemetry::{Tried as Told, tell_ejections},
};

/// Picks an endpoint of the plan's cluster for each try.
#[derive(Clone, Debug)]
pub struct BalanceLayer {
    source: Source,
}

impl BalanceLayer {
    /// The layer; cluster and policy are in each request's plan.
    pub fn new() -> Self {
        Self { source: Source::system() }
    }

    /// With a clock and a seed of its own: for simulations and replays.
    #[must_use]
    pub fn source(mut self, source: Source) -> Self {
        self.source = source;
        self
    }
}

impl Default for BalanceLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Layer<S> for BalanceLayer {
    type Service = Balance<S>;

    fn layer(&self, inner: S) -> Balance<S> {
        Balance { inner, source: self.source.clone() }
    }
}

/// A stage of many endpoints.
#[derive(Clone, Debug)]
pub struct Balance<S> {
    inner: S,
    source: Source,
}

impl<S> Balance<S> {
    fn pick(&self, call: &Call, number: u32, begun: Instant, request: &Message) -> Result<Pick, Error> {
        let now = self.source.clock().at(begun);
        let mut journal = call.journal();
        journal.attempts = number;
        let journal = &mut *journal;
        let Some(cluster) = journal.cluster.as_ref().or_else(|| call.plan().cluster()) else {
            return Err(Error::of(ErrorKind::NoCluster));
        };
        let picked = match cluster.config().discovery {
            Discovery::OriginalDestination => cluster.pick_address(named_address(request)?, now),
            _ => {
                let plan = call.plan();
                // Where retries are to go elsewhere, only the first try asks for the session's endpoint (SA5).
                let elsewhere = number > 1 && plan.route.retry.as_ref().is_some_and(|it| it.avoid_previous_hosts > 0);
                let wanted = plan.wanted().filter(|_| !elsewhere);
                let (priority, criteria) = (plan.route.priority, plan.criteria());
                let ask = Ask { hash: plan.hash, wanted, priority, criteria, ..Ask::from(&journal.tried) };
                cluster.pick(&ask, now, &mut journal.rng)
            }
        };
        let pick = picked.map_err(|error| match error {
            PickError::Overflow => Error::new(ErrorKind::Overflow, error),
            PickError::Dropped(_) => Error::new(ErrorKind::Dropped, error),
            PickError::Failed(why) => Error::msg(ErrorKind::NoCluster, why),
            _ => Error::new(ErrorKind::NoEndpoint, error),
        })?;
        journal.tried.push(pick.endpoint());
        journal.endpoint = Some(Arc::clone(pick.endpoint()));
        Ok(pick)
    }
}

/// The name of an endpoint; empty when it has none.
fn named(endpoint: &Endpoint) -> &str {
    match (endpoint.address(), &*endpoint.config().hostname) {
        (EndpointAddress::Host(host, _), "") => host,
        (_, hostname) => hostname,
    }
}

/// The address that the request itself names.
fn named_address(request: &Message) -> Result<EndpointAddress, Error> {
    let of_header = || request.headers().get(header::HOST)?.to_str().ok()?.parse().ok();
    let authority: Option<Authority> = request.uri().authority().cloned().or_else(of_header);
    let Some(authority) = authority else {
        return Err(Error::msg(ErrorKind::Invalid, "it names no host, neither in its URI nor in a Host header"));
    };
    let default = if request.uri().scheme_str() == Some("https") { 443 } else { 80 };
    let (host, port) = (authority.host(), authority.port_u16().unwrap_or(default));
    // IPv6 addresses stand in brackets here and nowhere else.
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    Ok(match bare.parse() {
        Ok(ip) => EndpointAddress::Socket(SocketAddr::new(ip, port)),
        Err(_) => EndpointAddress::Host(host.to_owned(), port),
    })
}

impl<S, B> Stage<Attempt> for Balance<S>
where
    S: Stage<Picked, Response = http::Response<B>>,
    B: HttpBody + Send,
{
    type Response = http::Response<ResponseBody<B>>;

    async fn call(&self, attempt: Attempt) -> Result<Self::Response, Error> {
        let Attempt { mut request, call, deadline, try_deadline, number, begun } = attempt;
        if let Some(answer) = call.own_answer() {
            return Err(answer);
        }
        let pick = self.pick(&call, number, begun, &request)?;
        let (cluster, endpoint) = (Arc::clone(pick.cluster()), Arc::clone(pick.endpoint()));
        // Each try has its own, so this is the name of its endpoint and no earlier one's.
        rewrite::apply_endpoint(call.plan(), named(&endpoint), request.parts_mut());
        let is_grpc = call.plan().is_grpc;
        let streamed = call.progress().is_streamed().then(|| call.clone());
        let clock = self.source.clock();
        let measured = call.meter().is_some().then(|| Measured::begin(&call, &cluster, begun));
        let mut guard =
            Guard { pick: Some(pick), clock, deadline: try_deadline, streamed, seen: None, is_grpc, measured };
        let response = match self.inner.call(Picked { request, call, deadline: try_deadline, cluster, endpoint }).await
        {
            Ok(response) => response,
            Err(error) => {
                guard.settle(&error.outcome(), guard.clock.now());
                return Err(error);
            }
        };
        guard.deadline = deadline;
        if let Some(measured) = &mut guard.measured {
            measured.version = response.version();
        }
        let now = guard.clock.now();
        guard.head(response.status().as_u16(), response.headers(), now);
        if response.body().is_end_stream() {
            guard.end(now);
        }
        let mut response = response.map(ResponseBody::there);
        if let Some(watchers) = response.body_mut().watchers() {
            watchers.guard = Some(guard);
        }
        Ok(response)
    }
}

impl<S, B> Stage<Routed> for Balance<S>
where
    S: Stage<Picked, Response = http::Response<B>>,
    B: HttpBody + Send,
{
    type Response = http::Response<ResponseBody<B>>;

    async fn call(&self, routed: Routed) -> Result<Self::Response, Error> {
        self.call(Attempt::from(routed)).await
    }
}

/// A pick under way, and what is known of how it goes.
#[derive(Debug)]
pub(super) struct Guard {
    pick: Option<Pick>,
    clock: Clock,
    deadline: Option<Instant>,
    /// A request whose deadline is only known when it has been read.
    streamed: Option<Call>,
    seen: Option<Outcome>,
    is_grpc: bool,
    /// Where anything measures it beside Istio's metrics.
    measured: Option<Measured>,
}

/// What is measured of a try.
#[derive(Debug)]
struct Measured {
    call: Call,
    begun: Instant,
    version: http::Version,
    bytes: u64,
    messages: Messages,
}

impl Measured {
    fn begin(call: &Call, cluster: &Cluster, begun: Instant) -> Self {
        if let Some(meter) = call.meter() {
            meter.began(cluster);
        }
        let (version, messages) = (http::Version::HTTP_11, Messages::default());
        Self { call: call.clone(), begun, version, bytes: 0, messages }
    }

    fn passed(&mut self, frame: &Frame<Bytes>) {
        if let Some(chunk) = frame.data_ref() {
            self.bytes += chunk.len() as u64;
            self.messages.passed(chunk);
        }
    }

    fn end(&self, pick: &Pick, outcome: &Outcome, duration: Duration) {
        let Some(meter) = self.call.meter() else { return };
        let progress = self.call.progress();
        let sent = (progress.bytes(), meter.messages() + progress.messages());
        let received = (self.bytes, self.messages.count());
        let told = Told { outcome, version: self.version, duration, sent, received };
        meter.tried(pick.cluster(), pick.endpoint(), &told);
    }
}

impl Guard {
    /// The response's head is here.
    fn head(&mut self, status: u16, headers: &HeaderMap, now: Time) {
        if let Some(pick) = &mut self.pick {
            pick.responded(now);
            learn(pick, headers, now);
            if pick.cluster().config().health_check.is_some() && headers.contains_key(IMMEDIATE_FAIL) {
                pick.cluster().set_failing_checks(pick.endpoint(), true);
            }
        }
        self.seen = match self.is_grpc {
            false => Some(Outcome::response(status)),
            true => match grpc_status(headers) {
                // The verdict is in the trailers; until they come, nothing is known.
                None if status == 200 => None,
                grpc => Some(Outcome::grpc_response(status, grpc)),
            },
        };
    }

    fn trailers(&mut self, trailers: &HeaderMap, now: Time) {
        if let Some(pick) = &mut self.pick {
            learn(pick, trailers, now);
        }
        if self.is_grpc && self.seen.is_none() {
            self.seen = Some(Outcome::grpc_response(200, grpc_status(trailers)));
        }
    }

    /// The next frame of the body came, or that there is none; `over` says that it was the last.
    pub(super) fn passed(&mut self, frame: Option<&Result<Frame<Bytes>, Error>>, over: bool, now: &mut Now) {
        if self.is_grpc
            && let (Some(measured), Some(Ok(frame))) = (&mut self.measured, frame)
        {
            measured.passed(frame);
        }
        if self.pick.is_none() || (!over && frame.is_some_and(|frame| frame.as_ref().is_ok_and(Frame::is_data))) {
            return;
        }
        let now = self.clock.at(now.get());
        match frame {
            Some(Ok(frame)) => {
                let trailers = frame.trailers_ref();
                trailers.iter().for_each(|trailers| self.trailers(trailers, now));
                if over || trailers.is_some() {
                    self.end(now);
                }
            }
            Some(Err(error)) => self.settle(&error.outcome(), now),
            None => self.end(now),
        }
    }

    /// The body is over.
    fn end(&mut self, now: Time) {
        // A gRPC call without any status is UNKNOWN.
        let outcome = self.seen.unwrap_or_else(|| Outcome::grpc_response(200, None));
        self.settle(&outcome, now);
    }

    fn settle(&mut self, outcome: &Outcome, now: Time) {
        if let Some(pick) = self.pick.take() {
            if let Some(measured) = self.measured.take() {
                let begun = self.clock.at(measured.begun);
                measured.end(&pick, outcome, now.saturating_since(begun));
            }
            let watched = pick.cluster().config().outlier_detection.is_some().then(|| Arc::clone(pick.cluster()));
            pick.finish(outcome, now);
            watched.iter().for_each(|cluster| tell_ejections(cluster));
        }
    }
}

/// What the endpoint says of its load, where that matters.
fn learn(pick: &mut Pick, headers: &HeaderMap, now: Time) {
    if pick.wants_load()
        && let Some(report) = LoadReport::of(headers)
    {
        pick.report(report, now);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.pick.is_none() {
            return;
        }
        let now = source::instant();
        let ran_out = self.streamed.as_ref().is_some_and(|call| call.journal().ran_out);
        if ran_out || self.deadline.is_some_and(|deadline| deadline <= now) {
            self.settle(&Outcome::failed(Failure::Timeout), self.clock.at(now));
        } else if let Some(seen) = self.seen {
            self.settle(&seen, self.clock.at(now));
        } else if let (Some(measured), Some(pick)) = (self.measured.take(), &self.pick) {
            let gone = Outcome::failed(Failure::Cancelled);
            measured.end(pick, &gone, now.saturating_duration_since(measured.begun));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use http_body_util::BodyExt;
    use mesh_core::config::{Forward, LoadBalancer, OutlierDetection, Thresholds};

    use super::*;
    use crate::{
        Body,
        layer::{Fixed, LeafLayer},
        plan::RoutePolicy,
        testing::{Log, client, cluster, compiled, configured, endless, grpc_response, response},
    };

    /// CB1, L7: the slot is held to the end of the response's body, and one request too many is refused at once.
    #[tokio::test]
    async fn a_slot_is_held_to_the_end_of_the_body() {
        let mut reviews = cluster("reviews", 2);
        reviews.thresholds = Thresholds { max_requests: 1, ..Thresholds::default() };
        let client =
            client(&configured([reviews], Forward::default()), |_| async { Ok(response(200, &["one", "two"])) });
        let mut body = client.get("http://reviews/").await.unwrap().into_body();
        body.frame().await.unwrap().unwrap();
        let refused = client.get("http://reviews/").await.unwrap();
        assert_eq!(refused.headers()["x-envoy-overloaded"], "true");
        body.collect().await.unwrap();
        assert_eq!(client.get("http://reviews/").await.unwrap().status(), 200);
    }

    /// OD1: an endpoint that fails in a row is left out, whether its responses are read or dropped.
    #[tokio::test(start_paused = true)]
    async fn a_failing_endpoint_is_left_out_and_comes_back() {
        let mut reviews = cluster("reviews", 2);
        reviews.load_balancer = LoadBalancer::RoundRobin;
        reviews.outlier_detection = Some(OutlierDetection {
            consecutive_5xx: 3,
            base_ejection_time: Duration::from_secs(30),
            max_ejection_percent: 50,
            ..Default::default()
        });
        let client = client(&configured([reviews], Forward::default()), |picked| async move {
            let bad = picked.endpoint().address().to_string() == "10.0.0.1:80";
            Ok(response(if bad { 500 } else { 200 }, &["words"]))
        });
        let failures = async |requests| {
            let mut failed = 0;
            for n in 0..requests {
                let answer = client.get("http://reviews/").await.unwrap();
                failed += usize::from(answer.status() == 500);
                if n % 2 == 0 {
                    answer.into_body().collect().await.unwrap();
                }
            }
            failed
        };
        assert_eq!(failures(100).await, 3);
        tokio::time::advance(Duration::from_secs(41)).await;
        assert_eq!(failures(100).await, 3);
    }

    /// OD1: a gRPC call is judged by its status at the end, and a caller that goes away before counts for nothing.
    #[tokio::test]
    async fn a_grpc_call_is_judged_by_its_trailers() {
        let mut reviews = cluster("reviews", 1);
        reviews.outlier_detection =
            Some(OutlierDetection { consecutive_5xx: 2, max_ejection_percent: 100, ..Default::default() });
        let client = client(&configured([reviews], Forward::default()), |_| async { Ok(grpc_response(&["x"], 14)) });
        let ejected = || client.live().load().unwrap().cluster("reviews").unwrap().endpoints()[0].is_ejected();
        let call = async || {
            let request = http::Request::post("/a.B/C").body(Body::empty()).unwrap();
            tower::ServiceExt::oneshot(client.grpc("reviews").unwrap(), request).await.unwrap()
        };
        for _ in 0..5 {
            drop(call().await);
        }
        assert!(!ejected());
        for _ in 0..2 {
            call().await.into_body().collect().await.unwrap();
        }
        assert!(ejected());
    }

    /// A call that is dropped before it is answered frees its slots and blames nobody.
    #[tokio::test(start_paused = true)]
    async fn a_cancelled_call_counts_for_nothing() {
        let mut reviews = cluster("reviews", 1);
        reviews.outlier_detection =
            Some(OutlierDetection { consecutive_5xx: 1, max_ejection_percent: 100, ..Default::default() });
        let client = client(&configured([reviews], Forward::default()), |_| async {
            tokio::time::sleep(Duration::from_secs(10)).await;
            Ok(endless(200))
        });
        let call = client.get("http://reviews/");
        assert!(tokio::time::timeout(Duration::from_secs(1), call).await.is_err());
        let snapshot = client.live().load().unwrap();
        let reviews = snapshot.cluster("reviews").unwrap();
        assert_eq!(reviews.requests_in_flight(), 0);
        assert!(!reviews.endpoints()[0].is_ejected());
    }

    /// Alone around any service: the URI names the endpoint, `Host` the service.
    #[tokio::test]
    async fn it_works_alone_around_an_ordinary_service() {
        let seen = Log::new();
        let log = seen.clone();
        let service = tower::service_fn(move |request: http::Request<Body>| {
            log.push((request.uri().to_string(), request.headers()["host"].to_str().unwrap().to_owned()));
            async { Ok::<_, std::convert::Infallible>(response(200, &[])) }
        });
        let mut reviews = cluster("reviews", 2);
        reviews.load_balancer = LoadBalancer::RoundRobin;
        let fixed = Fixed::new(RoutePolicy::default()).cluster(compiled(reviews));
        let stack = (fixed, BalanceLayer::new(), LeafLayer::new()).layer(service);
        for _ in 0..2 {
            let request = http::Request::get("http://reviews:9080/a").body(Body::empty()).unwrap();
            tower::ServiceExt::oneshot(stack.clone(), request).await.unwrap();
        }
        let mut seen = seen.all();
        seen.sort();
        let host = "reviews:9080".to_owned();
        assert_eq!(seen, [("http://10.0.0.1:80/a".into(), host.clone()), ("http://10.0.0.2:80/a".into(), host)]);
    }
}
