//! What a server says of its load, for clients that balance by it: with each answer, and in a stream of its own. Source: ORCA,
//! gRFC A51.
//!
//! A program tells a [`LoadRecorder`] how busy it is as a whole, and a handler may tell with [`record_call`] what one request
//! costs. gRPC answers carry both in the trailer `endpoint-load-metrics-bin`, others in the header
//! `endpoint-load-metrics`; of what both say the request's own counts. Who asks `xds.service.orca.v3.OpenRcaService` gets
//! the whole alone, again and again.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, stream};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header};
use http_body::{Body as HttpBody, Frame};
use http_body_util::{BodyExt, Limited};
use mesh_core::{
    load::{LoadReport, requested_period},
    request::is_grpc,
};
use pin_project_lite::pin_project;
use tokio::{sync::watch, time::sleep};
use tower_service::Service;

use super::RequestBody;
use crate::{alone::framed, error::BoxError, reports::PATH};

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// Longer questions are none.
const MOST: usize = 4096;

tokio::task_local! {
    static CALL: Arc<Mutex<LoadReport>>;
}

/// Tells what the request being served costs. False, and without effect, outside of a handler of
/// [`Mesh::with_load`](crate::Mesh::with_load).
pub fn record_call(change: impl FnOnce(&mut LoadReport)) -> bool {
    CALL.try_with(|call| change(&mut call.lock().unwrap_or_else(PoisonError::into_inner))).is_ok()
}

/// How busy this process is. Clones are the same one.
#[derive(Clone, Debug)]
pub struct LoadRecorder {
    report: Arc<Mutex<LoadReport>>,
    shortest: Duration,
}

impl LoadRecorder {
    /// Nothing is told yet. Streams tell every 30 seconds at most. Source: gRFC A51.
    pub fn new() -> Self {
        Self { report: Arc::default(), shortest: Duration::from_secs(30) }
    }

    /// Streams tell this often at most.
    #[must_use]
    pub fn at_most_every(mut self, period: Duration) -> Self {
        self.shortest = period;
        self
    }

    /// Tells how busy the process is from now on.
    pub fn record(&self, change: impl FnOnce(&mut LoadReport)) {
        change(&mut self.report.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// What was told last.
    pub fn report(&self) -> LoadReport {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Default for LoadRecorder {
    fn default() -> Self {
        Self::new()
    }
}

/// A handler whose answers tell the load; made by [`Mesh::with_load`](crate::Mesh::with_load).
#[derive(Clone, Debug)]
pub struct WithLoad<S> {
    inner: S,
    recorder: LoadRecorder,
    /// Serving is to end.
    ending: watch::Receiver<bool>,
}

impl<S> WithLoad<S> {
    pub(crate) fn new(inner: S, recorder: LoadRecorder, ending: watch::Receiver<bool>) -> Self {
        Self { inner, recorder, ending }
    }
}

type Future<B> = Pin<Box<dyn std::future::Future<Output = Result<Response<LoadBody<B>>, BoxError>> + Send>>;

impl<S, B> Service<Request<RequestBody>> for WithLoad<S>
where
    S: Service<Request<RequestBody>, Response = Response<B>, Error: Into<BoxError>, Future: Send + 'static>,
    B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    type Response = Response<LoadBody<B>>;
    type Error = BoxError;
    type Future = Future<B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<RequestBody>) -> Future<B> {
        let recorder = self.recorder.clone();
        if request.uri().path() == PATH {
            let ending = self.ending.clone();
            return Box::pin(async move {
                let asked = Limited::new(request.into_body(), MOST).collect().await?.to_bytes();
                let period = asked.get(5..).and_then(requested_period).unwrap_or_default();
                Ok(stream_answer(recorder, period, ending))
            });
        }
        let is_grpc = is_grpc(request.headers());
        let call = Arc::new(Mutex::default());
        let answer = CALL.sync_scope(Arc::clone(&call), || self.inner.call(request));
        let answer = CALL.scope(Arc::clone(&call), answer);
        Box::pin(async move {
            let mut response = answer.await.map_err(Into::into)?;
            let mut told = Some(Told { call, recorder });
            if is_grpc && !response.headers().contains_key(STATUS) {
                // The trailers are still to come.
                return Ok(response.map(|body| LoadBody::Handler { body, told }));
            }
            if let Some(told) = told.take() {
                let report = told.report();
                let (name, value) = match is_grpc {
                    true => (LoadReport::BINARY, report.to_binary()),
                    false => (LoadReport::TEXT, report.to_text()),
                };
                tell(response.headers_mut(), name, &report, value);
            }
            Ok(response.map(|body| LoadBody::Handler { body, told }))
        })
    }
}

fn tell(headers: &mut HeaderMap, name: HeaderName, report: &LoadReport, value: String) {
    if *report != LoadReport::default()
        && let Ok(value) = HeaderValue::try_from(value)
    {
        headers.insert(name, value);
    }
}

/// What one answer tells.
struct Told {
    call: Arc<Mutex<LoadReport>>,
    recorder: LoadRecorder,
}

impl Told {
    fn report(&self) -> LoadReport {
        let own = self.call.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.recorder.report().with(own)
    }
}

fn stream_answer<B>(recorder: LoadRecorder, period: Duration, ending: watch::Receiver<bool>) -> Response<LoadBody<B>> {
    let period = period.max(recorder.shortest).max(Duration::from_millis(1));
    // Whether it is the first; `None` after the last.
    let state = (Some(true), ending);
    let frames = stream::unfold(state, move |(first, mut ending)| {
        let recorder = recorder.clone();
        async move {
            if !first? {
                let over = tokio::select! {
                    () = sleep(period) => false,
                    // The server is going, and the caller need not hold it up.
                    _ = ending.wait_for(|ending| *ending) => true,
                };
                if over {
                    let trailers = HeaderMap::from_iter([(STATUS, HeaderValue::from_static("14"))]);
                    return Some((Frame::trailers(trailers), (None, ending)));
                }
            }
            let message = Bytes::from(framed(&recorder.report().encode()));
            Some((Frame::data(message), (Some(false), ending)))
        }
    });
    let mut response = Response::new(LoadBody::Reports { frames: Box::pin(frames) });
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

pin_project! {
    /// The body of an answer: the handler's, or reports of load.
    #[project = Projected]
    #[must_use = "bodies do nothing unless polled"]
    pub enum LoadBody<B> {
        #[doc(hidden)]
        Handler { #[pin] body: B, told: Option<Told> },
        #[doc(hidden)]
        Reports { frames: Pin<Box<dyn Stream<Item = Frame<Bytes>> + Send>> },
    }
}

impl<B> std::fmt::Debug for LoadBody<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoadBody").finish_non_exhaustive()
    }
}

impl<B> HttpBody for LoadBody<B>
where
    B: HttpBody<Data = Bytes, Error: Into<BoxError>>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.project() {
            Projected::Handler { body, told } => {
                let mut frame = ready!(body.poll_frame(cx)).map(|frame| frame.map_err(Into::into));
                if let Some(Ok(frame)) = &mut frame
                    && let Some(trailers) = frame.trailers_mut()
                    && let Some(told) = told.take()
                {
                    let report = told.report();
                    tell(trailers, LoadReport::BINARY, &report, report.to_binary());
                }
                Poll::Ready(frame)
            }
            Projected::Reports { frames } => Poll::Ready(ready!(frames.as_mut().poll_next(cx)).map(Ok)),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Handler { body, .. } => body.is_end_stream(),
            Self::Reports { .. } => false,
        }
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match self {
            Self::Handler { body, .. } => body.size_hint(),
            Self::Reports { .. } => http_body::SizeHint::default(),
        }
    }
}
