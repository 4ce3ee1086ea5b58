//! Trying again: within the policy of the route, the time left, the budget of the client, and what can be repeated.
//!
//! Whether an outcome is tried again is core's verdict. Here is the doing: the request's body is kept up to a limit so
//! that it can be sent again, and past the limit the try under way is the last (RT12); each try has its own time limit,
//! up to the headers of its response (TO5); a gRPC status is looked for in the trailers of a response that ended at once
//! (C4); a failed response is let go of before the next try begins. Every retry takes a whole token from a budget that
//! requests fill by tenths, so that retries stay a tenth of the traffic however much fails (C3).

use std::{pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
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
    source::Source,
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
            let (mut parts, body) = request.into_parts();
            mark(&mut parts.headers, 1, is_grpc, deadline);
            let request = http::Request::from_parts(parts, body);
            let only = Attempt { request, call: Arc::clone(&call), deadline, try_deadline: deadline, number: 1 };
            return Ok(self.inner.call(only).await?.map(Peeked::new));
        };

        let (parts, body) = request.into_parts();
        let tape = Tape::new(body, self.layer.replay_limit);
        let mut number = 1;
        // One of the cluster's `max_retries`, held while a retry is under way.
        let mut slot = None;
        loop {
            let try_deadline = try_deadline(policy, deadline);
            let mut request = http::Request::from_parts(parts.clone(), tape.play());
            mark(request.headers_mut(), number, is_grpc, try_deadline);
            let attempt = Attempt { request, call: Arc::clone(&call), deadline, try_deadline, number };
            let result = self.attempt(attempt, policy).await;

            let Some(wait) = self.wait(policy, &call, number, &parts.method, &result) else {
                tape.commit();
                return result;
            };
            if !tape.can_replay() || deadline.is_some_and(|deadline| Instant::now() + wait >= deadline) {
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
        let (call, number) = (Arc::clone(&attempt.call), attempt.number);
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
        match verdict(policy, number, method, is_grpc, &outcome, headers, now, &mut call.journal().rng) {
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
        let slot = match call.plan().cluster().map(|cluster| cluster.retry_slot()) {
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
        && call.progress.is_ended()
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
    let own = policy.per_try_timeout.map(|limit| Instant::now() + limit);
    own.into_iter().chain(deadline).min()
}

/// Tells the destination how much time is left, and which try this is (RT11, TO3).
fn mark(headers: &mut HeaderMap, number: u32, is_grpc: bool, deadline: Option<Instant>) {
    if let Some(deadline) = deadline {
        tell_time_left(headers, is_grpc, deadline.saturating_duration_since(Instant::now()));
    }
    headers.insert(ATTEMPT_COUNT, HeaderValue::from(number));
    if is_grpc && number > 1 {
        headers.insert(PREVIOUS_ATTEMPTS, HeaderValue::from(number - 1));
    }
}
