//! Trying again: within the policy of the route, the time left, the budget of the client, and what can be repeated.
//!
//! Whether an outcome is tried again is core's verdict. Here is the doing: the request's body is kept up to a limit so
//! that it can be sent again, and past the limit the try under way is the last (RT12); each try has its own time limit,
//! up to the headers of its response (TO5); a gRPC status is looked for in the trailers of a response that ends at once
//! (C4), for which a stream is held up for 10 ms at most; a failed response is let go of before the next try begins. Every retry takes a
//! whole token from a budget that requests fill by tenths, so that retries stay a tenth of the traffic however much fails
//! (C3). Several tries at once are in `retry/hedge.rs`.

use std::{
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Body as HttpBody;
use mesh_core::{
    config::RetryPolicy,
    limit::Slot,
    outcome::{Flags, Outcome, grpc_status},
    request::RequestView,
    retry::{self, Asked, Ended, Overrides, Retries, RetryBudget, Rules, Throttle, Verdict, Why},
};
use rand::RngCore;
use tokio::time::{Instant, sleep, sleep_until};
use tower_layer::Layer;

use super::{Attempt, Call, Routed, Stage, Watchers};
use crate::{
    body::ResponseBody,
    context,
    error::{BoxError, Error, ErrorKind},
    message::Message,
    source::{self, Source},
};

mod head;
mod hedge;
mod mark;
mod peek;
mod ready;
mod replay;
mod throttle;

use head::Head;
use hedge::Pace;
use mark::{mark, time_left};
pub(super) use peek::{Ahead, Read};
pub use ready::WaitForReady;
pub(crate) use replay::Player;
use replay::Tape;
use throttle::Throttles;

/// Tries again what its plan's policy says.
#[derive(Clone, Debug)]
pub struct RetryLayer {
    budget: Arc<RetryBudget>,
    replay_limit: usize,
    rules: Rules,
    throttles: Option<Arc<Throttles>>,
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
        Self { budget, replay_limit: Self::REPLAY_LIMIT, rules: Rules::Mesh, throttles: None, source: Source::system() }
    }

    /// As Envoy tries again, and no more carefully: any method, no budget, no status in trailers. For comparisons with it.
    pub fn like_envoy() -> Self {
        Self { rules: Rules::Envoy, ..Self::with_budget(Arc::new(RetryBudget::unlimited())) }
    }

    /// Keeps up to `bytes` of a streamed body for sending it again, where the route does not say.
    #[must_use]
    pub fn replay_limit(mut self, bytes: usize) -> Self {
        self.replay_limit = bytes;
        self
    }

    /// Throttles the retries of gRPC calls, server by server, besides the budget: a failure costs a token, a success earns
    /// `token_ratio`, and with half of `max_tokens` gone nothing is tried again. Without effect outside gRPC's ranges:
    /// `max_tokens` from 1 to 1000, `token_ratio` from 0.001. Source: gRFC A6 `retryThrottling`.
    #[must_use]
    pub fn throttle(mut self, max_tokens: u32, token_ratio: f64) -> Self {
        self.throttles = Throttles::new(max_tokens, token_ratio).map(Arc::new);
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
    S: Stage<Attempt, Response = http::Response<ResponseBody<B>>>,
    B: HttpBody<Data = Bytes> + Send + Unpin,
    B::Error: Into<BoxError>,
{
    type Response = S::Response;

    async fn call(&self, routed: Routed) -> Result<Self::Response, Error> {
        let Routed { mut request, call, deadline, now } = routed;
        // A copy is tried once, and neither fills nor drains what others' retries are paid from.
        let is_copy = call.is_copy();
        if !is_copy {
            self.layer.budget.deposit();
        }
        let plan = call.plan();
        let own = Overrides::take(request.headers_mut(), plan.route.retry.as_ref(), plan.route.hedge.as_ref());
        // In a box, since hardly any request has its own, and each would carry the room along.
        let own = own.map(Box::new);
        let (own_retry, own_hedge) = own.as_ref().map_or((None, None), |own| (own.retry.as_ref(), own.hedge.as_ref()));
        let policy = own_retry.or(plan.route.retry.as_ref()).filter(|policy| {
            policy.request_headers.is_empty() || retry::is_for(policy, &RequestView::of(request.parts(), None))
        });
        let pace = Pace::of(own_hedge.or(plan.route.hedge.as_ref()), policy);
        // A gRPC call may be sent again unasked (RT10).
        let transparent = plan.is_grpc && self.layer.rules == Rules::Mesh && !is_copy;
        let waits = call.waits_on().is_some();
        if policy.is_none() && pace.is_none() && !transparent && !waits {
            mark(request.headers_mut(), 1, 0, plan.is_grpc, time_left(&call, deadline, now));
            let only = Attempt { request, call: call.clone(), deadline, try_deadline: deadline, number: 1, begun: now };
            return self.inner.call(only).await;
        }

        let body = std::mem::take(request.body_mut());
        let limit =
            plan.route.replay_limit.map_or(self.layer.replay_limit, |limit| limit.try_into().unwrap_or(usize::MAX));
        let throttles = self.layer.throttles.as_ref().filter(|_| plan.is_grpc);
        let mut course = Course {
            policy,
            rules: self.layer.rules,
            head: Head::of(request.parts()),
            first: Some(request),
            now: Some(now),
            tape: Tape::new(body, limit),
            retries: Retries::new(),
            number: 0,
            counted: 0,
            deadline,
            throttle: throttles.and_then(|throttles| throttles.of(&plan.route.virtual_host)),
            call: &call,
        };
        let result = match pace {
            // In a box, so that requests that are not hedged do not carry its room along.
            Some(pace) => Box::pin(self.hedge(&mut course, pace, own_hedge.or(plan.route.hedge.as_ref()))).await,
            None => self.again_and_again(&mut course).await,
        };
        course.tape.commit();
        result
    }
}

/// One request, from its first try to its last.
struct Course<'a> {
    call: &'a Call,
    policy: Option<&'a RetryPolicy>,
    rules: Rules,
    head: Head,
    /// Of the first try, which needs no copy.
    first: Option<Message>,
    /// When the first try begins.
    now: Option<Instant>,
    tape: Tape,
    retries: Retries,
    /// Of the latest try; 1 is the first.
    number: u32,
    /// Tries before the latest that count, which those do not that never left or that no application saw (RT11).
    counted: u32,
    deadline: Option<Instant>,
    throttle: Option<Arc<Throttle>>,
}

impl Course<'_> {
    fn asked(&self) -> Asked<'_> {
        Asked { method: self.head.method(), is_grpc: self.call.plan().is_grpc, rules: self.rules }
    }

    /// The next try.
    fn attempt(&mut self, try_deadline: Option<Instant>) -> Attempt {
        self.number += 1;
        let body = self.tape.play();
        let mut request = match self.first.take() {
            Some(mut first) => {
                *first.body_mut() = body;
                first
            }
            None => Message::from_parts(self.head.again(), body),
        };
        let begun = self.now.take().unwrap_or_else(source::instant);
        let left = time_left(self.call, try_deadline, begun);
        mark(request.headers_mut(), self.number, self.counted, self.call.plan().is_grpc, left);
        Attempt { request, call: self.call.clone(), deadline: self.deadline, try_deadline, number: self.number, begun }
    }

    /// How the next try is waited for.
    fn patience(&self, try_deadline: Option<Instant>) -> Patience {
        let Some(policy) = self.policy else { return Patience { limit: None, idle: None, peek: false } };
        let grpc = self.call.plan().is_grpc && self.rules == Rules::Mesh && !policy.on.grpc.is_empty();
        Patience {
            // The limit of the whole is the layer's above; this one is of the try alone.
            limit: try_deadline.filter(|_| try_deadline != self.deadline),
            idle: policy.per_try_idle_timeout,
            peek: grpc && self.retries.any_left(policy),
        }
    }

    /// When a try's headers have to be here: a limit of the try that is not below that of the whole does not count.
    fn try_deadline(&self) -> Option<Instant> {
        let own = self.policy.and_then(|policy| policy.per_try_timeout);
        let own = own.map(|limit| self.now.unwrap_or_else(source::instant) + limit);
        own.into_iter().chain(self.deadline).min()
    }

    /// Tells of another try, after this wait; `counts` is one that the policy asked for.
    fn again(&self, counts: bool, wait: Duration) {
        let again = &mut self.call.journal().again;
        again.delay += wait;
        *(if counts { &mut again.retries } else { &mut again.unasked }) += 1;
    }

    /// Nothing more is tried although it was wanted: whoever called this process should not try again either (RT22).
    fn in_vain(&self) {
        context::in_vain();
    }
}

/// The random bits of a request, asked for only when some are drawn.
struct Dice<'a>(&'a Call);

impl RngCore for Dice<'_> {
    fn next_u32(&mut self) -> u32 {
        self.0.journal().rng.next_u32()
    }

    fn next_u64(&mut self) -> u64 {
        self.0.journal().rng.next_u64()
    }

    fn fill_bytes(&mut self, target: &mut [u8]) {
        self.0.journal().rng.fill_bytes(target);
    }
}

/// How one try is waited for.
#[derive(Clone, Copy, Debug)]
struct Patience {
    limit: Option<Instant>,
    idle: Option<Duration>,
    /// Look for the status of a gRPC call beyond its headers.
    peek: bool,
}

impl<S, B> Retry<S>
where
    S: Stage<Attempt, Response = http::Response<ResponseBody<B>>>,
    B: HttpBody<Data = Bytes> + Send + Unpin,
    B::Error: Into<BoxError>,
{
    /// One try after the other.
    async fn again_and_again(&self, course: &mut Course<'_>) -> Result<http::Response<ResponseBody<B>>, Error> {
        // One of the cluster's `max_retries`, held while a retry is under way.
        let mut slot = None;
        let mut waited = 0;
        loop {
            let try_deadline = course.try_deadline();
            let patience = course.patience(try_deadline);
            let result = self.send(course.attempt(try_deadline), patience).await;
            if result.as_ref().is_err_and(ready::is_unready)
                && course.tape.can_replay()
                && ready::until_ready(course.call, &self.layer.source, waited).await
            {
                waited += 1;
                continue;
            }
            let (wait, counts) = match self.judge(course, &result) {
                Verdict::After(wait) => (wait, true),
                Verdict::AtOnce => (Duration::ZERO, false),
                Verdict::GiveUp(_) => return result,
            };
            drop(slot.take());
            if !course.tape.can_replay() {
                return result;
            }
            let Some(next) = self.afford(course, counts, is_over(&result)) else { return result };
            // A failed response may hold a connection, and the endpoint's slot, that the next try wants.
            drop(result);
            if !wait.is_zero() {
                sleep(wait).await;
            }
            slot = next;
            course.counted += u32::from(counts);
            course.again(counts, wait);
        }
    }

    /// One try, to the headers of its response; and to its trailers, if these are what tells how it went.
    async fn send(&self, attempt: Attempt, patience: Patience) -> Result<http::Response<ResponseBody<B>>, Error> {
        let Patience { limit, idle, peek } = patience;
        let call = (peek || idle.is_some()).then(|| attempt.call.clone());
        // Only made where there is something to wait for beside the answer.
        let mut clock = (limit.is_some() || idle.is_some()).then(|| Box::pin(out_of_time(limit, idle, call.clone())));
        let mut answer = pin!(self.inner.call(attempt));
        let mut response = within(answer.as_mut(), &mut clock).await??;
        if peek && call.is_some_and(|call| ends_tell(&call, &response)) {
            // The headers are here, so the try's clock has stopped.
            peek::peek(response.body_mut()).await;
        }
        Ok(response)
    }

    /// What core says of a try that ended, told in the response's flags.
    fn judge(&self, course: &mut Course<'_>, result: &Result<http::Response<ResponseBody<B>>, Error>) -> Verdict {
        let Some((outcome, headers)) = ended(course, result) else { return Verdict::GiveUp(Why::NotAsked) };
        // Read only for the headers that name a moment.
        let is_dated = course.policy.is_some_and(|policy| policy.rate_limited.is_some());
        let wall = if is_dated { since_1970(&self.layer.source) } else { Duration::ZERO };
        let ended = Ended { outcome: &outcome, response: headers, wall };
        let asked = Asked { method: course.head.method(), is_grpc: course.call.plan().is_grpc, rules: course.rules };
        let verdict = course.retries.verdict(course.policy, asked, ended, &mut Dice(course.call));
        let may_follow = course.throttle.as_ref().is_none_or(|throttle| match verdict {
            Verdict::After(_) | Verdict::GiveUp(Why::LimitReached | Why::ServerRefused) => throttle.failed(),
            _ if outcome.grpc == Some(0) => {
                throttle.succeeded();
                true
            }
            _ => true,
        });
        match verdict {
            Verdict::GiveUp(Why::LimitReached) => {
                if course.policy.is_some_and(|policy| policy.retries > 0) {
                    course.call.note(Flags::URX);
                    course.in_vain();
                }
                verdict
            }
            Verdict::After(_) if !may_follow => {
                course.call.note(Flags::UO);
                course.in_vain();
                Verdict::GiveUp(Why::LimitReached)
            }
            _ => verdict,
        }
    }

    /// As `pay`, for a try that is wanted because another failed: flag `UO` where it cannot be had.
    fn afford(&self, course: &Course<'_>, counts: bool, is_over: bool) -> Option<Option<Slot>> {
        let paid = self.pay(course, counts, is_over);
        if paid.is_none() {
            course.call.note(Flags::UO);
            course.in_vain();
        }
        paid
    }

    /// A token of the budget, and for what counts a slot of the cluster's `max_retries`.
    fn pay(&self, course: &Course<'_>, counts: bool, is_over: bool) -> Option<Option<Slot>> {
        let plan = course.call.plan();
        let slot = match plan.cluster().filter(|_| counts) {
            Some(cluster) => Some(cluster.retry_slot(plan.route.priority, is_over)?),
            None => None,
        };
        self.layer.budget.try_withdraw().then_some(slot)
    }
}

/// The try that failed holds no slot of its cluster any more.
fn is_over<B: HttpBody>(result: &Result<http::Response<B>, Error>) -> bool {
    result.as_ref().map_or(true, |response| response.body().is_end_stream())
}

/// What became of a try, and the headers or trailers that say so; `None` when no other can end otherwise.
fn ended<'a, B>(
    course: &Course<'_>,
    result: &'a Result<http::Response<ResponseBody<B>>, Error>,
) -> Option<(Outcome, Option<&'a HeaderMap>)> {
    match result {
        Err(error) if error.is_final() => None,
        Err(error) => Some((error.outcome(), None)),
        Ok(response) => {
            let ahead = response.body().watched_by().and_then(Watchers::trailers);
            let headers = ahead.unwrap_or_else(|| response.headers());
            let outcome = outcome(response.status().as_u16(), headers, course.call.plan().is_grpc);
            Some((outcome, Some(headers)))
        }
    }
}

fn outcome(status: u16, headers: &HeaderMap, is_grpc: bool) -> Outcome {
    if !is_grpc {
        return Outcome::response(status);
    }
    match grpc_status(headers) {
        // A stream that goes on: whatever its end, it is too late for another try.
        None if status == 200 => Outcome::grpc_response(200, Some(0)),
        grpc => Outcome::grpc_response(status, grpc),
    }
}

/// A gRPC response whose status is still to come, with nothing left for its caller to send: the server cannot be waiting
/// for the caller.
fn ends_tell<B>(call: &Call, response: &http::Response<B>) -> bool {
    response.status() == http::StatusCode::OK && grpc_status(response.headers()).is_none() && call.progress().is_ended()
}

/// Waits for something until the clock of its try ends.
async fn within<F, C>(mut it: Pin<&mut F>, clock: &mut Option<Pin<Box<C>>>) -> Result<F::Output, Error>
where
    F: Future,
    C: Future<Output = ()>,
{
    std::future::poll_fn(|cx| match (it.as_mut().poll(cx), &mut *clock) {
        (Poll::Ready(output), _) => Poll::Ready(Ok(output)),
        (Poll::Pending, Some(clock)) => clock.as_mut().poll(cx).map(|()| Err(Error::of(ErrorKind::TryTimeout))),
        (Poll::Pending, None) => Poll::Pending,
    })
    .await
}

async fn out_of_time(limit: Option<Instant>, idle: Option<Duration>, call: Option<Call>) {
    tokio::select! {
        () = reached(limit) => {}
        () = stalled(idle, call.as_ref()) => {}
    }
}

async fn reached(limit: Option<Instant>) {
    match limit {
        Some(limit) => sleep_until(limit).await,
        None => std::future::pending().await,
    }
}

/// Ends when nothing of the request's body passed for that long (TO6): between one and two such times after the last byte.
async fn stalled(idle: Option<Duration>, call: Option<&Call>) {
    let Some((idle, call)) = idle.zip(call) else { return std::future::pending().await };
    let mut before = call.progress().bytes();
    loop {
        sleep(idle).await;
        let passed = call.progress().bytes();
        if passed == before {
            return;
        }
        before = passed;
    }
}

fn since_1970(source: &Source) -> Duration {
    source.wall().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use std::sync::atomic::{AtomicUsize, Ordering};

    use http_body::Frame;
    use http_body_util::{BodyExt, StreamBody};
    use mesh_core::config::{Forward, GrpcRetry, HttpRetry, RetryConditions, Thresholds};

    use super::{
        mark::{ATTEMPT_COUNT, PREVIOUS_ATTEMPTS},
        *,
    };
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
        let watch = http::Request::post("/a.B/C").body(Body::from("x")).unwrap();
        let answer = tower::ServiceExt::oneshot(client.grpc("reviews").unwrap(), watch);
        let answer = tokio::time::timeout(Duration::from_secs(1), answer).await;
        assert!(answer.is_ok(), "a stream without a word is its caller's");
        let stream = StreamBody::new(futures_util::stream::pending::<Result<Frame<Bytes>, BoxError>>());
        let request = http::Request::post("/a.B/C").body(stream).unwrap();
        let answer = tower::ServiceExt::oneshot(client.grpc("reviews").unwrap(), request);
        let answer = tokio::time::timeout(Duration::from_secs(1), answer).await;
        assert!(answer.is_ok(), "while its caller still sends, a stream is not waited for");
    }

    /// TO5: a gRPC stream whose first message comes after the limit of a try is neither cut nor tried again.
    #[tokio::test(start_paused = true)]
    async fn a_slow_grpc_stream_is_no_failed_try() {
        let mut policy = on(&[]);
        policy.on.grpc = vec![GrpcRetry::Unavailable, GrpcRetry::DeadlineExceeded];
        policy.per_try_timeout = Some(Duration::from_secs(1));
        let tries = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&tries);
        let client = of(policy, move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            async { Ok(late(Duration::from_secs(5))) }
        });
        let request = http::Request::post("/a.B/C").body(Body::from("x")).unwrap();
        let answer = tower::ServiceExt::oneshot(client.grpc("reviews").unwrap(), request).await.unwrap();
        let body = answer.into_body().collect().await.unwrap();
        assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(body.to_bytes(), "word");
        assert_eq!(tries.load(Ordering::Relaxed), 1);
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

    /// A gRPC response whose first message comes late.
    fn late(wait: Duration) -> TestResponse {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", 0.into());
        let first = async move {
            sleep(wait).await;
            Ok(Frame::data(Bytes::from_static(b"word")))
        };
        let rest = futures_util::stream::iter([Ok(Frame::trailers(trailers))]);
        let frames = futures_util::StreamExt::chain(futures_util::stream::once(first), rest);
        http::Response::new(StreamBody::new(frames).boxed_unsync())
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
