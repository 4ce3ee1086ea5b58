//! Which endpoint a try goes to, how many may be under way, and what is learned from how it ends: load balancing,
//! circuit breaking and outlier ejection, which are one concern because they share the endpoint's counters.
//!
//! The policy is core's; this file asks for a pick, holds it until the response's body has ended, and reports how that
//! was. A response that is let go of half-way counts by its status; a try that is dropped before any response is a
//! cancelled one and counts for nothing, unless its time had run out, which is the endpoint's doing.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use mesh_core::{
    endpoint::Pick,
    error::PickError,
    outcome::{Failure, Outcome, grpc_status},
};
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower_layer::Layer;

use super::{Attempt, Call, Picked, Routed, Stage};
use crate::{
    error::{BoxError, Error, ErrorKind},
    source::Source,
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
    fn pick(&self, call: &Call, number: u32) -> Result<Pick, Error> {
        let Some(cluster) = call.plan().cluster() else { return Err(Error::of(ErrorKind::NoCluster)) };
        let mut journal = call.journal();
        journal.attempts = number;
        let journal = &mut *journal;
        let pick = cluster.pick(&journal.tried, self.source.now(), &mut journal.rng).map_err(|error| match error {
            PickError::Overflow => Error::new(ErrorKind::Overflow, error),
            PickError::Failed(why) => Error::msg(ErrorKind::NoCluster, why),
            _ => Error::new(ErrorKind::NoEndpoint, error),
        })?;
        journal.tried.push(pick.endpoint());
        journal.endpoint = Some(Arc::clone(pick.endpoint()));
        Ok(pick)
    }
}

impl<S, B> Stage<Attempt> for Balance<S>
where
    S: Stage<Picked, Response = http::Response<B>>,
    B: HttpBody + Send,
{
    type Response = http::Response<Guarded<B>>;

    async fn call(&self, attempt: Attempt) -> Result<Self::Response, Error> {
        let Attempt { request, call, deadline, try_deadline, number } = attempt;
        if let Some(answer) = call.own_answer() {
            return Err(answer);
        }
        let pick = self.pick(&call, number)?;
        let (cluster, endpoint) = (Arc::clone(pick.cluster()), Arc::clone(pick.endpoint()));
        let is_grpc = call.plan().is_grpc;
        let mut guard =
            Guard { pick: Some(pick), source: self.source.clone(), deadline: try_deadline, seen: None, is_grpc };
        let response = match self.inner.call(Picked { request, call, deadline: try_deadline, cluster, endpoint }).await
        {
            Ok(response) => response,
            Err(error) => {
                guard.settle(&error.outcome());
                return Err(error);
            }
        };
        guard.deadline = deadline;
        guard.head(response.status().as_u16(), response.headers());
        if response.body().is_end_stream() {
            guard.end();
        }
        Ok(response.map(|body| Guarded { body, guard }))
    }
}

impl<S, B> Stage<Routed> for Balance<S>
where
    S: Stage<Picked, Response = http::Response<B>>,
    B: HttpBody + Send,
{
    type Response = http::Response<Guarded<B>>;

    async fn call(&self, routed: Routed) -> Result<Self::Response, Error> {
        self.call(Attempt::from(routed)).await
    }
}

/// A pick under way, and what is known of how it goes.
#[derive(Debug)]
struct Guard {
    pick: Option<Pick>,
    source: Source,
    deadline: Option<Instant>,
    seen: Option<Outcome>,
    is_grpc: bool,
}

impl Guard {
    /// The response's head is here.
    fn head(&mut self, status: u16, headers: &HeaderMap) {
        if let Some(pick) = &mut self.pick {
            pick.responded(self.source.now());
        }
        self.seen = Some(match (self.is_grpc, grpc_status(headers)) {
            (true, grpc) => Outcome::grpc_response(status, grpc),
            (false, _) => Outcome::response(status),
        });
        if self.is_grpc && status == 200 && grpc_status(headers).is_none() {
            // The verdict is in the trailers; until they come, nothing is known.
            self.seen = None;
        }
    }

    fn trailers(&mut self, trailers: &HeaderMap) {
        if self.is_grpc && self.seen.is_none() {
            self.seen = Some(Outcome::grpc_response(200, grpc_status(trailers)));
        }
    }

    /// The body is over.
    fn end(&mut self) {
        // A gRPC call without any status is UNKNOWN.
        let outcome = self.seen.unwrap_or_else(|| Outcome::grpc_response(200, None));
        self.settle(&outcome);
    }

    fn settle(&mut self, outcome: &Outcome) {
        if let Some(pick) = self.pick.take() {
            pick.finish(outcome, self.source.now());
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            self.settle(&Outcome::failed(Failure::Timeout));
        } else if let Some(seen) = self.seen {
            self.settle(&seen);
        }
    }
}

pin_project! {
    /// A response's body that holds its endpoint's slot until it ends.
    #[must_use = "bodies do nothing unless polled"]
    pub struct Guarded<B> {
        #[pin]
        body: B,
        guard: Guard,
    }
}

impl<B> HttpBody for Guarded<B>
where
    B: HttpBody<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let mut this = self.project();
        match ready!(this.body.as_mut().poll_frame(cx)) {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    this.guard.trailers(trailers);
                    this.guard.end();
                } else if this.body.is_end_stream() {
                    this.guard.end();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                let error = Error::from_boxed(ErrorKind::Reset, error.into());
                this.guard.settle(&error.outcome());
                Poll::Ready(Some(Err(error)))
            }
            None => {
                this.guard.end();
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
