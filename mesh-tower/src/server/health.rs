//! The server's own word about its health: gRPC's health service, for whoever asks before sending requests. Source: gRPC
//! `grpc.health.v1.Health`, gRFC A90.
//!
//! It answers `SERVING` from the time the mesh is ready, and `NOT_SERVING` from the moment serving is to end, while requests
//! under way still get their time: so callers leave before the connections do. Who watches is told of the change at once.
//! Over HTTP the admin port's `/ready` says the same.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{Stream, stream};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header, request::Parts};
use http_body::{Body as HttpBody, Frame};
use http_body_util::{BodyExt, Limited};
use pin_project_lite::pin_project;
use tokio::sync::watch;
use tower_service::Service;

use super::RequestBody;
use crate::error::BoxError;

const CHECK: &str = "/grpc.health.v1.Health/Check";
const WATCH: &str = "/grpc.health.v1.Health/Watch";

/// Asks whether the server is well: that is answered however much there is to do, or a busy server would be taken for a dead one.
pub(super) fn is_probe(parts: &Parts) -> bool {
    matches!(parts.uri.path(), CHECK | WATCH)
}
const STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// Longer questions are none.
const MOST: usize = 4096;

/// `ServingStatus`.
const SERVING: u8 = 1;
const NOT_SERVING: u8 = 2;
const SERVICE_UNKNOWN: u8 = 3;

/// A handler with gRPC's health service in front of it; made by [`Mesh::with_health`](crate::Mesh::with_health).
#[derive(Clone, Debug)]
pub struct WithHealth<S> {
    inner: S,
    services: Arc<[String]>,
    health: Health,
}

/// What the word depends on.
#[derive(Clone, Debug)]
pub(crate) struct Health {
    /// Serving is to end.
    pub(crate) ending: watch::Receiver<bool>,
    /// Somebody said that it is not well.
    pub(crate) unwell: watch::Receiver<bool>,
}

impl Health {
    fn is_bad(&self) -> bool {
        *self.ending.borrow() || *self.unwell.borrow()
    }

    /// Waits for either to change; false when nothing will any more.
    async fn changed(&mut self) -> bool {
        tokio::select! {
            changed = self.ending.changed() => changed.is_ok(),
            changed = self.unwell.changed() => changed.is_ok(),
        }
    }
}

impl<S> WithHealth<S> {
    pub(crate) fn new(inner: S, services: impl IntoIterator<Item = String>, health: Health) -> Self {
        Self { inner, services: services.into_iter().collect(), health }
    }
}

type Future<B> = Pin<Box<dyn std::future::Future<Output = Result<Response<HealthBody<B>>, BoxError>> + Send>>;

impl<S, B> Service<Request<RequestBody>> for WithHealth<S>
where
    S: Service<Request<RequestBody>, Response = Response<B>, Error: Into<BoxError>, Future: Send + 'static>,
    B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    type Response = Response<HealthBody<B>>;
    type Error = BoxError;
    type Future = Future<B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<RequestBody>) -> Future<B> {
        let watches = match request.uri().path() {
            CHECK => false,
            WATCH => true,
            _ => {
                let answer = self.inner.call(request);
                return Box::pin(async move { Ok(answer.await.map_err(Into::into)?.map(HealthBody::handler)) });
            }
        };
        let (services, health) = (Arc::clone(&self.services), self.health.clone());
        Box::pin(async move {
            let asked = Limited::new(request.into_body(), MOST).collect().await?.to_bytes();
            let known = service_of(&asked).is_some_and(|name| name.is_empty() || services.iter().any(|it| it == name));
            Ok(if watches { watch_answer(known, health) } else { check_answer(known, health.is_bad()) })
        })
    }
}

fn status_of(known: bool, ending: bool) -> u8 {
    match (known, ending) {
        (false, _) => SERVICE_UNKNOWN,
        (true, true) => NOT_SERVING,
        (true, false) => SERVING,
    }
}

fn check_answer<B>(known: bool, ending: bool) -> Response<HealthBody<B>> {
    // Check says that a service is unknown by its status, Watch by a message.
    if !known {
        let mut response = answer(stream::empty());
        response.headers_mut().insert(STATUS, HeaderValue::from_static("5"));
        return response;
    }
    answer(stream::iter([Frame::data(message(status_of(known, ending))), trailers("0")]))
}

fn watch_answer<B>(known: bool, health: Health) -> Response<HealthBody<B>> {
    // The last word, and whether there is more to say.
    let state = (None, true, health);
    answer(stream::unfold(state, move |(said, more, mut health)| async move {
        more.then_some(())?;
        loop {
            let word = status_of(known, health.is_bad());
            if said != Some(word) {
                return Some((Frame::data(message(word)), (Some(word), true, health)));
            }
            if *health.ending.borrow() || !health.changed().await {
                // Nothing more to say, and the server is going: the caller need not hold it up.
                return Some((trailers("14"), (said, false, health)));
            }
        }
    }))
}

fn answer<B>(frames: impl Stream<Item = Frame<Bytes>> + Send + 'static) -> Response<HealthBody<B>> {
    let mut response = Response::new(HealthBody::Health { frames: Box::pin(frames) });
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// A `HealthCheckResponse`, framed.
fn message(status: u8) -> Bytes {
    let mut framed = BytesMut::with_capacity(7);
    framed.put_u8(0);
    framed.put_u32(2);
    framed.put_slice(&[0x08, status]);
    framed.freeze()
}

fn trailers(status: &'static str) -> Frame<Bytes> {
    Frame::trailers(HeaderMap::from_iter([(STATUS, HeaderValue::from_static(status))]))
}

/// The service asked for, in a framed `HealthCheckRequest`; `None` of what is none. Names of 128 bytes and more are not
/// known here.
fn service_of(asked: &[u8]) -> Option<&str> {
    let message = asked.get(5..)?;
    match message {
        [] => Some(""),
        [0x0a, length, name @ ..] if *length < 0x80 && name.len() == usize::from(*length) => {
            std::str::from_utf8(name).ok()
        }
        _ => None,
    }
}

pin_project! {
    /// The body of an answer: the handler's, or the health service's own.
    #[project = Projected]
    #[must_use = "bodies do nothing unless polled"]
    pub enum HealthBody<B> {
        #[doc(hidden)]
        Handler { #[pin] body: B },
        #[doc(hidden)]
        Health { frames: Pin<Box<dyn Stream<Item = Frame<Bytes>> + Send>> },
    }
}

impl<B> HealthBody<B> {
    fn handler(body: B) -> Self {
        Self::Handler { body }
    }
}

impl<B> std::fmt::Debug for HealthBody<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HealthBody").finish_non_exhaustive()
    }
}

impl<B> HttpBody for HealthBody<B>
where
    B: HttpBody<Data = Bytes, Error: Into<BoxError>>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.project() {
            Projected::Handler { body } => {
                Poll::Ready(ready!(body.poll_frame(cx)).map(|frame| frame.map_err(Into::into)))
            }
            Projected::Health { frames } => Poll::Ready(ready!(frames.as_mut().poll_next(cx)).map(Ok)),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Handler { body } => body.is_end_stream(),
            Self::Health { .. } => false,
        }
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match self {
            Self::Handler { body } => body.size_hint(),
            Self::Health { .. } => http_body::SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_asked_for_is_read() {
        let framed = |message: &[u8]| [&[0; 4][..], &[message.len() as u8], message].concat();
        assert_eq!(service_of(&framed(b"")), Some(""));
        assert_eq!(service_of(&framed(b"\x0a\x03a.B")), Some("a.B"));
        for none in [&b"\x0a\x09a.B"[..], b"\x12\x00", b"\x0a"] {
            assert_eq!(service_of(&framed(none)), None);
        }
        assert_eq!(service_of(b"\0"), None);
    }
}
