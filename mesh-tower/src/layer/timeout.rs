//! How long a request may take in all: from the end of the request's body to the end of the response's, every try
//! included (TO1); and never longer than the caller's own deadline or the route's limit of streams allows (TO2, TO4).
//!
//! The clock of the route's timeout starts when the caller's body has been read to its end, as Envoy counts, so an
//! upload or a gRPC stream is not cut off while its caller still sends. The other two start at once. The timer of a
//! response's body is only set when the body makes its reader wait.

use std::{
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};
use tower_layer::Layer;

use super::{Call, Routed, Stage};
use crate::error::{BoxError, Error, ErrorKind};

/// Ends what takes too long, with 504 and flag `UT`.
#[derive(Clone, Copy, Debug, Default)]
pub struct TimeoutLayer(());

impl TimeoutLayer {
    /// The layer; the limits are in each request's plan.
    pub fn new() -> Self {
        Self(())
    }
}

impl<S> Layer<S> for TimeoutLayer {
    type Service = Timeout<S>;

    fn layer(&self, inner: S) -> Timeout<S> {
        Timeout { inner }
    }
}

/// A stage that ends in time.
#[derive(Clone, Debug)]
pub struct Timeout<S> {
    inner: S,
}

impl<S, B> Stage<Routed> for Timeout<S>
where
    S: Stage<Routed, Response = http::Response<B>>,
    B: Send,
{
    type Response = http::Response<Timed<B>>;

    async fn call(&self, mut routed: Routed) -> Result<Self::Response, Error> {
        let mut limit = Limit::of(&routed);
        limit.start_if_sent();
        if let Some((at, kind)) = limit.at {
            if at <= Instant::now() {
                return Err(Error::of(kind));
            }
            routed.deadline = Some(at);
        }
        let response = if limit.is_none() {
            self.inner.call(routed).await?
        } else {
            let mut answer = pin!(self.inner.call(routed));
            let mut timer = pin!(Timer { limit: limit.clone(), sleep: None });
            std::future::poll_fn(|cx| match answer.as_mut().poll(cx) {
                Poll::Ready(answer) => Poll::Ready(answer),
                Poll::Pending => timer.as_mut().poll_expired(cx).map(|kind| Err(Error::of(kind))),
            })
            .await?
        };
        Ok(response.map(|body| Timed { body: Some(body), timer: Timer { limit, sleep: None } }))
    }
}

/// When a request has to be over, as far as that is known.
#[derive(Clone, Debug)]
struct Limit {
    /// The earliest of the limits whose clock runs, and what it is called.
    at: Option<(Instant, ErrorKind)>,
    /// A limit whose clock starts when the request has been read.
    after_request: Option<(std::time::Duration, Arc<Call>)>,
}

impl Limit {
    fn of(routed: &Routed) -> Self {
        let route = &routed.call.plan().route;
        let stream = route.max_stream_duration.map(|most| (Instant::now() + most, ErrorKind::Timeout));
        let caller = routed.deadline.map(|deadline| (deadline, ErrorKind::Deadline));
        let at = [stream, caller].into_iter().flatten().min_by_key(|(at, _)| *at);
        Self { at, after_request: route.timeout.map(|timeout| (timeout, Arc::clone(&routed.call))) }
    }

    fn is_none(&self) -> bool {
        self.at.is_none() && self.after_request.is_none()
    }

    fn start_if_sent(&mut self) {
        if let Some((timeout, _)) = self.after_request.take_if(|(_, call)| call.progress.is_ended()) {
            self.start(timeout);
        }
    }

    fn start(&mut self, timeout: std::time::Duration) {
        let route = (Instant::now() + timeout, ErrorKind::Timeout);
        self.at = Some(self.at.map_or(route, |other| if other.0 <= route.0 { other } else { route }));
    }
}

pin_project! {
    /// A limit and the timer that tells when it is reached.
    struct Timer {
        limit: Limit,
        #[pin]
        sleep: Option<Sleep>,
    }
}

impl Timer {
    fn poll_expired(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<ErrorKind> {
        let mut this = self.project();
        if let Some((timeout, call)) = &this.limit.after_request
            && call.progress.poll_ended(cx).is_ready()
        {
            let timeout = *timeout;
            this.limit.after_request = None;
            this.limit.start(timeout);
            this.sleep.set(None);
        }
        let Some((at, kind)) = this.limit.at else { return Poll::Pending };
        if this.sleep.is_none() {
            this.sleep.set(Some(sleep_until(at)));
        }
        if let Some(sleep) = this.sleep.as_pin_mut() {
            ready!(sleep.poll(cx));
        }
        Poll::Ready(kind)
    }
}

pin_project! {
    /// A response's body that ends in time.
    #[must_use = "bodies do nothing unless polled"]
    pub struct Timed<B> {
        #[pin]
        body: Option<B>,
        #[pin]
        timer: Timer,
    }
}

impl<B> HttpBody for Timed<B>
where
    B: HttpBody<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let mut this = self.project();
        let Some(body) = this.body.as_mut().as_pin_mut() else { return Poll::Ready(None) };
        if let Poll::Ready(frame) = body.poll_frame(cx) {
            return Poll::Ready(frame.map(|frame| frame.map_err(|e| Error::from_boxed(ErrorKind::Reset, e.into()))));
        }
        let kind = ready!(this.timer.poll_expired(cx));
        // Letting go of the body here frees the connection, and tells the balancer that time ran out.
        this.body.set(None);
        Poll::Ready(Some(Err(Error::of(kind))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}
