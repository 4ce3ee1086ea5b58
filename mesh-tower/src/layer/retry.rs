//! Trying again: within the policy of the route, the time left, the budget of the client, and what can be repeated.
//!
//! Whether an outcome is tried again is core's verdict. Here is the doing: the request's body is kept up to a limit so
//! that it can be sent again, and past the limit the try under way is the last (RT12); each try has its own time limit,
//! up to the headers of its response (TO5); a gRPC status is looked for in the trailers of a response that ended at once
//! (C4); a failed response is let go of before the next try begins. Every retry takes a whole token from a budget that
//! requests fill by tenths, so that retries stay a tenth of the traffic however much fails (C3).

use std::{pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use http_body::Body as HttpBody;
use mesh_core::{
    config::RetryPolicy,
    limit::Slot,
    outcome::{Flags, Outcome, grpc_status},
    retry::{RetryBudget, Verdict, Why, verdict},
};
use tokio::time::{Instant, sleep, timeout_at};
use tower_layer::Layer;

use super::{Attempt, Call, Routed, Stage};
use crate::{
    context::tell_time_left,
    error::{BoxError, Error, ErrorKind},
    message::Message,
    source::{self, Source},
    telemetry::decimal,
};

mod peek;
mod replay;

pub use peek::Peeked;
pub(crate) use replay::Player;
use replay::Tape;

const PREVIOUS_ATTEMPTS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");
const ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");

/// Tries again what its plan's policy says.
#[derive(Clone, Debug)]
pub struct RetryLayer {
    budget: Arc<RetryBudget>,
    replay_limit: usize,
    source: Source,
}

impl RetryLayer {
    /// How much of a body is kept for sending it again: 64 KiB, as Linkerd does; Envoy keeps up to 1 MiB.
    pub const REPLAY_LIMIT: usize = 64 * 1024;

    /// With a budget of its own.
    pub fn new() -> Self {
        Self::with_budget(Arc::new(RetryBudget::new()))
    }

    /// With a budget shared with other clients.
    pub fn with_budget(budget: Arc<RetryBudget>) -> Self {
        Self { budget, replay_limit: Self::REPLAY_LIMIT, source: Source::system() }
    }

    /// Keeps up to `bytes` of a streamed body for sending it again.
    #[must_use]
    pub fn replay_limit(mut self, bytes: usize) -> Self {
        self.replay_limit = bytes;
        self
    }

    /// With a clock and a seed of its own: for simulations and replays.
    #[must_use]
    pub fn source(mut self, source: Source) -> Self {
        self.source = source;
        self
    }
}

impl Default for RetryLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Layer<S> for RetryLayer {
    type Service = Retry<S>;

    fn layer(&self, inner: S) -> Retry<S> {
        Retry { inner, layer: self.clone() }
    }
}

/// A stage that is tried again.
#[derive(Clone, Debug)]
pub struct Retry<S> {
    inner: S,
    layer: RetryLayer,
}

impl<S, B> Stage<Routed> for Retry<S>
where
    S: Stage<Attempt, Response = http::Response<B>>,
    B: HttpBody<Data = Bytes> + Send + Unpin,
    B::Error: Into<BoxError>,
{
    type Response = http::Response<Peeked<B>>;

    async fn call(&self, routed: Routed) -> Result<Self::Response, Error> {
        self.layer.budget.deposit();
        let Routed { request, call, deadline } = routed;
        let is_grpc = call.plan().is_grpc;
        let Some(policy) = &call.plan().route.retry else {
            let mut request = request;
            mark(request.headers_mut(), 1, is_grpc, deadline);
            let only = Attempt { request, call: call.clone(), deadline, try_deadline: deadline, number: 1 };
            return Ok(self.inner.call(only).await?.map(Peeked::new));
        };

        let (parts, body) = request.into_parts();
        let tape = Tape::new(body, self.layer.replay_limit);
        let mut number = 1;
        // One of the cluster's `max_retries`, held while a retry is under way.
        let mut slot = None;
        loop {
            let try_deadline = try_deadline(policy, deadline);
            let mut request = Message::from_parts(parts.clone(), tape.play());
            mark(request.headers_mut(), number, is_grpc, try_deadline);
            let attempt = Attempt { request, call: call.clone(), deadline, try_deadline, number };
            let result = self.attempt(attempt, policy).await;

            let Some(wait) = self.wait(policy, &call, number, &parts.method, &result) else {
                tape.commit();
                return result;
            };
            if !tape.can_replay() {
                return result;
            }
            drop(slot.take());
            let Some(next) = self.afford(&call) else {
                tape.commit();
                return result;
            };
            // A failed response may hold a connection, and the endpoint's slot, that the next try wants.
            drop(result);
            sleep(wait).await;
            slot = next;
            number += 1;
        }
    }
}

impl<S> Retry<S> {
    /// One try, to the headers of its response; and to its trailers, if these are what tells how it went.
    async fn attempt<B>(&self, attempt: Attempt, policy: &RetryPolicy) -> Result<http::Response<Peeked<B>>, Error>
    where
        S: Stage<Attempt, Response = http::Response<B>>,
        B: HttpBody<Data = Bytes> + Send + Unpin,
        B::Error: Into<BoxError>,
    {
        let (call, number) = (attempt.call.clone(), attempt.number);
        let (deadline, try_deadline) = (attempt.deadline, attempt.try_deadline);
        let answer = async {
            let mut response = self.inner.call(attempt).await?.map(Peeked::new);
            if number <= policy.retries && ends_tell(&call, &response, policy) {
                response.body_mut().peek().await;
            }
            Ok(response)
        };
        match try_deadline {
            // The limit of the whole is the layer's above; this one is of the try alone.
            Some(at) if Some(at) != deadline => {
                timeout_at(at, pin!(answer)).await.unwrap_or_else(|_| Err(Error::of(ErrorKind::TryTimeout)))
            }
            _ => answer.await,
        }
    }

    /// How long to wait before the next try; `None`: there is none.
    fn wait<B>(
        &self,
        policy: &RetryPolicy,
        call: &Call,
        number: u32,
        method: &http::Method,
        result: &Result<http::Response<Peeked<B>>, Error>,
    ) -> Option<Duration> {
        let is_grpc = call.plan().is_grpc;
        let (outcome, headers) = match result {
            Err(error) if error.is_final() => return None,
            Err(error) => (error.outcome(), None),
            Ok(response) => {
                let headers = response.body().trailers().unwrap_or_else(|| response.headers());
                (outcome(response.status().as_u16(), headers, is_grpc), Some(headers))
            }
        };
        let now = self.layer.source.now();
        // Apart from the match below, which notes in the journal that is locked here.
        let verdict = verdict(policy, number, method, is_grpc, &outcome, headers, now, &mut call.journal().rng);
        match verdict {
            Verdict::After(wait) => Some(wait),
            Verdict::GiveUp(why) => {
                if why == Why::LimitReached && policy.retries > 0 {
                    call.note(Flags::URX);
                }
                None
            }
        }
    }

    /// A token of the budget, and a slot of the cluster's `max_retries` where there is a cluster; flag `UO` without.
    fn afford(&self, call: &Call) -> Option<Option<Slot>> {
        let slot = match call.plan().cluster().map(|cluster| cluster.retry_slot(call.plan().route.priority)) {
            Some(Some(slot)) => Some(slot),
            None => None,
            Some(None) => {
                call.note(Flags::UO);
                return None;
            }
        };
        if !self.layer.budget.try_withdraw() {
            call.note(Flags::UO);
            return None;
        }
        Some(slot)
    }
}

/// A gRPC response whose status is still to come, wanted by the policy, with nothing left for its caller to send: the
/// server cannot be waiting for the caller, so waiting for the server's next word holds nobody up.
fn ends_tell<B>(call: &Call, response: &http::Response<B>, policy: &RetryPolicy) -> bool {
    call.plan().is_grpc
        && !policy.on.grpc.is_empty()
        && response.status() == http::StatusCode::OK
        && grpc_status(response.headers()).is_none()
        && call.progress().is_ended()
}

fn outcome(status: u16, headers: &HeaderMap, is_grpc: bool) -> Outcome {
    match (is_grpc, grpc_status(headers)) {
        // A stream that goes on: whatever its end, it is too late for another try.
        (true, None) if status == 200 => Outcome::grpc_response(200, Some(0)),
        (true, grpc) => Outcome::grpc_response(status, grpc),
        (false, _) => Outcome::response(status),
    }
}

/// When this try's headers have to be here: a limit of the try that is not below that of the whole does not count.
fn try_deadline(policy: &RetryPolicy, deadline: Option<Instant>) -> Option<Instant> {
    let own = policy.per_try_timeout.map(|limit| source::instant() + limit);
    own.into_iter().chain(deadline).min()
}

/// Tells the destination how much time is left, and which try this is (RT11, TO3).
fn mark(headers: &mut HeaderMap, number: u32, is_grpc: bool, deadline: Option<Instant>) {
    if let Some(deadline) = deadline {
        tell_time_left(headers, is_grpc, deadline.saturating_duration_since(source::instant()));
    }
    headers.insert(ATTEMPT_COUNT, decimal(number.into()));
    if is_grpc && number > 1 {
        headers.insert(PREVIOUS_ATTEMPTS, decimal((number - 1).into()));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use std::sync::atomic::{AtomicUsize, Ordering};

    use http_body::Frame;
    use http_body_util::{BodyExt, StreamBody};
    use mesh_core::config::{Forward, GrpcRetry, HttpRetry, RetryConditions, Thresholds};

    use super::*;
    use crate::{
        Body, HttpClient, ResponseFlags,
        layer::Picked,
        testing::{Log, Scripted, TestResponse, client, cluster, configured, endless, grpc_response, response},
    };

    /// RT1, RT3, RT11, RT13: a failure is tried again, elsewhere, as often as the policy says, and each try is marked.
    #[tokio::test(start_paused = true)]
    async fn tries_go_elsewhere_until_one_succeeds_or_none_is_left() {
        let mut policy = on(&[HttpRetry::ServerError]);
        policy.avoid_previous_hosts = 5;
        let tries = Log::new();
        let log = tries.clone();
        let client = of(policy, move |picked| {
            let count = picked.request.headers()[ATTEMPT_COUNT].to_str().unwrap().to_owned();
            log.push((count, picked.endpoint().address().to_string()));
            async { Ok(response(503, &[])) }
        });
        let answer = client.get("http://reviews/").await.unwrap();
        assert_eq!(answer.status(), 503);
        assert_eq!(answer.extensions().get::<ResponseFlags>().unwrap().flags, Flags::URX);
        let (counts, mut endpoints): (Vec<_>, Vec<_>) = tries.all().into_iter().unzip();
        assert_eq!(counts, ["1", "2", "3"]);
        endpoints.sort();
        endpoints.dedup();
        assert_eq!(endpoints.len(), 3);
    }

    /// RT15: what may have been processed is not sent twice unless its method allows it.
    #[tokio::test(start_paused = true)]
    async fn a_post_is_tried_again_only_if_it_was_never_sent() {
        for (kind, method, expected) in [
            (ErrorKind::Reset, "POST", 1),
            (ErrorKind::Reset, "PUT", 3),
            (ErrorKind::Connect, "POST", 3),
            (ErrorKind::RefusedStream, "POST", 3),
        ] {
            let tries = Log::new();
            let log = tries.clone();
            let client =
                of(on(&[HttpRetry::ServerError, HttpRetry::ConnectFailure, HttpRetry::RefusedStream]), move |_| {
                    log.push(());
                    async move { Err(Error::msg(kind, "gone")) }
                });
            let request = http::Request::builder().method(method).uri("http://reviews/").body(Body::from("x")).unwrap();
            assert_eq!(client.request(request).await.unwrap().status(), 503);
            assert_eq!(tries.len(), expected, "{kind:?} {method}");
        }
    }

    /// RT12, RT21: a streamed body is sent again as it was, and one past the limit is sent once.
    #[tokio::test(start_paused = true)]
    async fn a_streamed_body_is_sent_again_up_to_the_limit() {
        for (chunk, expected) in [(1_000, 3), (RetryLayer::REPLAY_LIMIT, 1)] {
            let bodies = Log::new();
            let log = bodies.clone();
            let client = of(on(&[HttpRetry::ServerError]), move |picked: Picked| {
                let log = log.clone();
                async move {
                    log.push(picked.request.into_body().collect().await.unwrap().to_bytes());
                    Ok(response(500, &[]))
                }
            });
            let chunks =
                [vec![b'a'; chunk], vec![b'b'; chunk]].map(|bytes| Ok::<_, BoxError>(Frame::data(Bytes::from(bytes))));
            let body = StreamBody::new(futures_util::stream::iter(chunks));
            client.request(http::Request::put("http://reviews/").body(body).unwrap()).await.unwrap();
            assert_eq!(bodies.len(), expected, "{chunk}");
            assert!(bodies.all().iter().all(|body| body.len() == 2 * chunk && body == &bodies.all()[0]));
        }
    }

    /// TO5: each try has its own limit, the first too; and it ends with the response's headers.
    #[tokio::test(start_paused = true)]
    async fn each_try_has_its_own_limit() {
        let mut policy = on(&[HttpRetry::ServerError]);
        policy.per_try_timeout = Some(Duration::from_secs(1));
        let client = of(policy.clone(), |_| std::future::pending::<Result<TestResponse, Error>>());
        let start = Instant::now();
        let answer = client.get("http://reviews/").await.unwrap();
        assert_eq!(answer.status(), 504);
        assert_eq!(answer.extensions().get::<ResponseFlags>().unwrap().flags, Flags::UT | Flags::URX);
        assert!((3_000..4_000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
        let client = of(policy, |_| async { Ok(endless(200)) });
        let mut body = client.get("http://reviews/").await.unwrap().into_body();
        let cut = tokio::time::timeout(Duration::from_secs(5), body.frame()).await;
        assert!(cut.is_err(), "a response that has begun is not cut by the limit of a try");
    }

    /// RT16, C3: however much fails, retries stay within a tenth of the requests and the ten there were to begin with.
    #[tokio::test(start_paused = true)]
    async fn a_full_outage_is_not_multiplied() {
        let tries = Log::new();
        let log = tries.clone();
        let client = of(on(&[HttpRetry::ServerError]), move |_| {
            log.push(());
            async { Ok(response(503, &[])) }
        });
        for _ in 0..1_000 {
            client.get("http://reviews/").await.unwrap();
        }
        assert!((1_100..=1_110).contains(&tries.len()), "{}", tries.len());
    }

    /// RT17: no more retries at once than the cluster allows, told as `UO`.
    #[tokio::test(start_paused = true)]
    async fn a_cluster_limits_retries_under_way() {
        let mut reviews = cluster("reviews", 3);
        reviews.thresholds = Thresholds { max_retries: 0, ..Thresholds::default() };
        let forward = Forward { retry: Some(on(&[HttpRetry::ServerError])), ..Forward::default() };
        let client = client(&configured([reviews], forward), |_| async { Ok(response(503, &[])) });
        let answer = client.get("http://reviews/").await.unwrap();
        assert_eq!(answer.extensions().get::<ResponseFlags>().unwrap().flags, Flags::UO);
    }

    /// A failed response is let go of before the next try begins: its endpoint is free again.
    #[tokio::test(start_paused = true)]
    async fn the_failed_response_is_dropped_first() {
        let tries = AtomicUsize::new(0);
        let mut reviews = cluster("reviews", 1);
        reviews.thresholds = Thresholds { max_requests: 1, ..Thresholds::default() };
        let forward = Forward { retry: Some(on(&[HttpRetry::ServerError])), ..Forward::default() };
        let client = client(&configured([reviews], forward), move |_| {
            let first = tries.fetch_add(1, Ordering::Relaxed) == 0;
            async move { Ok(if first { endless(503) } else { response(200, &[]) }) }
        });
        assert_eq!(client.get("http://reviews/").await.unwrap().status(), 200);
    }

    /// C4, RT2: a gRPC status is acted on wherever it stands; a stream that goes on is given to its caller at once.
    #[tokio::test(start_paused = true)]
    async fn a_grpc_status_in_trailers_is_tried_again() {
        let mut policy = on(&[]);
        policy.on.grpc = vec![GrpcRetry::Unavailable];
        for (chunks, status, expected) in [
            (&[][..], 14, 3),
            (&["one message"][..], 14, 3),
            (&["one message"][..], 0, 1),
            (&[][..], 5, 1),
            (&["one", "two"][..], 14, 1),
        ] {
            let tries = Log::new();
            let log = tries.clone();
            let client = of(policy.clone(), move |picked| {
                log.push(picked.request.headers().contains_key(PREVIOUS_ATTEMPTS));
                async move { Ok(grpc_response(chunks, status)) }
            });
            let grpc = client.grpc("reviews").unwrap();
            let request = http::Request::post("/a.B/C").body(Body::from("x")).unwrap();
            let answer = tower::ServiceExt::oneshot(grpc, request).await.unwrap();
            let body = answer.into_body().collect().await.unwrap();
            assert_eq!(tries.len(), expected, "{chunks:?} {status}");
            assert_eq!(tries.all()[1..], [true, true][..expected - 1]);
            assert_eq!(body.trailers().unwrap()["grpc-status"], status.to_string());
            assert_eq!(body.to_bytes(), chunks.concat());
        }
        let client = of(policy, |_| async { Ok(endless(200)) });
        let stream = StreamBody::new(futures_util::stream::pending::<Result<Frame<Bytes>, BoxError>>());
        let request = http::Request::post("/a.B/C").body(stream).unwrap();
        let answer = tower::ServiceExt::oneshot(client.grpc("reviews").unwrap(), request);
        let answer = tokio::time::timeout(Duration::from_secs(1), answer).await;
        assert!(answer.is_ok(), "while its caller still sends, a stream is not waited for");
    }

    /// TO3: each try is told how much time is left, in the header of its protocol.
    #[tokio::test(start_paused = true)]
    async fn each_try_is_told_the_time_left() {
        let forward = Forward {
            retry: Some(on(&[HttpRetry::ServerError])),
            timeout: Some(Duration::from_secs(10)),
            ..Forward::default()
        };
        let told = Log::new();
        let log = told.clone();
        let client = client(&configured([cluster("reviews", 3)], forward), move |picked: Picked| {
            let headers = picked.request.headers();
            let name = if picked.plan().is_grpc { "grpc-timeout" } else { "x-envoy-expected-rq-timeout-ms" };
            log.push(headers[name].to_str().unwrap().to_owned());
            async {
                sleep(Duration::from_secs(4)).await;
                Ok(response(503, &[]))
            }
        });
        client.get("http://reviews/").await.unwrap();
        let told: Vec<u64> = told.all().iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(told[0], 10_000);
        assert!((5_900..=6_000).contains(&told[1]), "{told:?}");
        assert!((1_800..=2_000).contains(&told[2]), "{told:?}");
    }

    fn on(http: &[HttpRetry]) -> RetryPolicy {
        let on = RetryConditions { http: http.to_vec(), ..RetryConditions::default() };
        RetryPolicy { on, retries: 2, ..RetryPolicy::default() }
    }

    fn of<F, R>(policy: RetryPolicy, leaf: F) -> HttpClient<Scripted<F>>
    where
        F: Fn(Picked) -> R + Send + Sync,
        R: Future<Output = Result<TestResponse, Error>> + Send,
    {
        let forward = Forward { retry: Some(policy), ..Forward::default() };
        client(&configured([cluster("reviews", 3)], forward), leaf)
    }
}
