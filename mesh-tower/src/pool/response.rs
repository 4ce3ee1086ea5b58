//! A response's body, which gives its connection back at its end, and the span of the attempt it belongs to.

use std::{
    borrow::Cow,
    pin::Pin,
    sync::atomic::{AtomicU16, AtomicU32, Ordering},
    task::{Context, Poll, ready},
    time::SystemTime,
};

use bytes::Bytes;
use h2::RecvStream;
use http::{HeaderMap, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use mesh_core::{
    cluster::Cluster,
    config::Name,
    endpoint::Endpoint,
    outcome::{Flags, grpc_status},
};

use super::{
    lease::{Escort, Held, Place},
    message,
};
use crate::{
    attempt::Call,
    error::Error,
    message::Message,
    source::{self, Clock},
    telemetry::{Attribute, Span, SpanKind, Telemetry, TraceContext, facts, rpc_of},
    upkeep::Owned,
};

/// The body of a response, holding the connection it comes over.
pub struct PooledBody {
    flow: Flow,
    attempted: Option<Box<Attempted>>,
    clock: Clock,
}

/// What a body comes over.
pub(super) enum Flow {
    /// A connection that reading drives.
    Http1 { body: Incoming, held: Held },
    /// A connection that a task drives, because the request is still being sent.
    Escorted { body: Incoming, escort: Escort },
    /// A stream of a shared connection. `left`: of what the head announced.
    Http2 { stream: RecvStream, left: Option<u64>, over: bool, _sending: Option<Owned>, place: Place },
    /// It has been read, or broke.
    Over,
}

impl PooledBody {
    pub(super) fn new(flow: Flow, attempted: Option<Box<Attempted>>, clock: Clock) -> Self {
        let mut this = Self { flow, attempted, clock };
        if this.is_end_stream() {
            this.end();
        }
        this
    }

    fn end(&mut self) {
        match std::mem::replace(&mut self.flow, Flow::Over) {
            Flow::Http1 { body, held } => {
                drop(body);
                held.give_back(self.clock.now());
            }
            Flow::Escorted { escort, .. } => escort.end(),
            Flow::Http2 { place, .. } => place.ended(self.clock.now()),
            Flow::Over => return,
        }
        self.attempted = None;
    }

    fn poll_flow(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match &mut self.flow {
            Flow::Http1 { body, held } => match &mut held.connection {
                Some(connection) => connection.poll_frame(body, cx).map_err(message::failure),
                None => Poll::Ready(None),
            },
            Flow::Escorted { body, .. } => Pin::new(body).poll_frame(cx).map_err(message::failure),
            Flow::Http2 { stream, left, over, .. } => {
                if *over {
                    return Poll::Ready(None);
                }
                match ready!(stream.poll_data(cx)) {
                    Some(Ok(data)) => {
                        // Read is read: the peer may send as much again.
                        let _ = stream.flow_control().release_capacity(data.len());
                        *left = left.map(|left| left.saturating_sub(data.len() as u64));
                        *over = stream.is_end_stream();
                        Poll::Ready(Some(Ok(Frame::data(data))))
                    }
                    // Whatever the peer's reason, the end of the response was not among what it sent.
                    Some(Err(error)) => Poll::Ready(Some(Err(message::stream_failure(error)))),
                    None => {
                        let trailers = ready!(stream.poll_trailers(cx)).map_err(message::stream_failure);
                        *over = true;
                        Poll::Ready(trailers.map(|trailers| trailers.map(Frame::trailers)).transpose())
                    }
                }
            }
            Flow::Over => Poll::Ready(None),
        }
    }
}

impl HttpBody for PooledBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let polled = ready!(self.poll_flow(cx));
        match &polled {
            None => self.end(),
            Some(Ok(frame)) if self.is_end_stream() => {
                if let (Some(trailers), Some(attempted)) = (frame.trailers_ref(), &self.attempted) {
                    attempted.ended(trailers);
                }
                self.end();
            }
            // What is left of a broken connection is not given back.
            Some(Err(_)) => {
                self.flow = Flow::Over;
                self.attempted = None;
            }
            Some(Ok(_)) => {}
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        match &self.flow {
            Flow::Http1 { body, .. } | Flow::Escorted { body, .. } => body.is_end_stream(),
            Flow::Http2 { over, .. } => *over,
            Flow::Over => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.flow {
            Flow::Http1 { body, .. } | Flow::Escorted { body, .. } => body.size_hint(),
            Flow::Http2 { over: true, .. } | Flow::Over => SizeHint::with_exact(0),
            Flow::Http2 { left, .. } => left.map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}

impl Drop for PooledBody {
    fn drop(&mut self) {
        if let Flow::Http1 { body, held } = std::mem::replace(&mut self.flow, Flow::Over) {
            drop(body);
            held.let_go(self.clock.now());
        }
    }
}

impl std::fmt::Debug for PooledBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PooledBody").field("size", &self.size_hint()).finish_non_exhaustive()
    }
}

/// One attempt as a span of its own, exported when it is dropped. Only made where the span would go anywhere.
pub(super) struct Attempted {
    telemetry: Telemetry,
    context: TraceContext,
    parent: u64,
    start: SystemTime,
    method: http::Method,
    cluster: Name,
    address: String,
    host: String,
    /// 0 is none: the attempt failed or was given up.
    status: AtomicU16,
    /// Of gRPC: the status and one more, 0 is none.
    grpc: AtomicU32,
    rpc: Option<String>,
    /// 1 is the first.
    number: u32,
    tags: Vec<(Cow<'static, str>, Attribute)>,
    events: Vec<(&'static str, SystemTime)>,
    flags: Flags,
}

impl Attempted {
    /// Puts the attempt's own context on the request, where its span goes out.
    pub(super) fn begin(
        telemetry: &Telemetry,
        cluster: &Cluster,
        endpoint: &Endpoint,
        request: &mut Message,
        call: &Call,
    ) -> Option<Box<Self>> {
        let telling = call.plan().telling.as_deref();
        if !telemetry.is_exporting(telling) {
            return None;
        }
        let waited = call.journal().waited.take();
        let parent = TraceContext::extract(request.headers()).filter(|parent| parent.sampled)?;
        let context = parent.child();
        context.inject(request.headers_mut());
        let host = cluster.config().service.as_ref().map_or_else(|| cluster.name().to_string(), |s| s.host.to_string());
        Some(Box::new(Self {
            telemetry: telemetry.clone(),
            context,
            parent: parent.span_id,
            start: source::wall(),
            method: request.method().clone(),
            cluster: cluster.name().clone(),
            address: endpoint.address().to_string(),
            host,
            status: AtomicU16::new(0),
            grpc: AtomicU32::new(0),
            rpc: call.plan().is_grpc.then(|| request.uri().path().trim_start_matches('/').to_owned()),
            number: call.attempts(),
            tags: telemetry.tags(telling, request.parts()),
            // Source: gRFC A72.
            events: waited.into_iter().map(|at| ("Delayed LB pick complete", at)).collect(),
            flags: Flags::NONE,
        }))
    }

    pub(super) fn responded(&self, status: StatusCode, headers: &HeaderMap) {
        self.status.store(status.as_u16(), Ordering::Relaxed);
        self.ended(headers);
    }

    /// Headers or trailers with the status of a gRPC call came.
    fn ended(&self, headers: &HeaderMap) {
        if let Some(grpc) = grpc_status(headers).filter(|_| self.rpc.is_some()) {
            self.grpc.store(grpc.saturating_add(1), Ordering::Relaxed);
        }
    }

    pub(super) fn failed(mut self: Box<Self>, error: &Error) {
        self.flags = error.flags();
        tracing::trace!(target: "mesh::client", cluster = %self.cluster, address = %self.address, %error, "attempt failed");
    }
}

impl Drop for Attempted {
    fn drop(&mut self) {
        let status = self.status.load(Ordering::Relaxed);
        let grpc = self.grpc.load(Ordering::Relaxed).checked_sub(1);
        let mut attributes = facts([
            ("http.request.method", self.method.as_str().into()),
            ("server.address", self.host.as_str().into()),
            ("network.peer.address", self.address.as_str().into()),
            ("upstream_cluster", (&*self.cluster).into()),
        ]);
        if status != 0 {
            attributes.extend(facts([("http.response.status_code", status.into())]));
        }
        if !self.flags.is_empty() {
            attributes.extend(facts([("response_flags", self.flags.to_string().into())]));
        }
        let again = self.number.saturating_sub(1);
        if again > 0 {
            attributes.extend(facts([("http.request.resend_count", again.into())]));
        }
        let mut name = format!("{} {}", self.method, self.host);
        if let Some(rpc) = &self.rpc {
            let (service, method) = rpc_of(rpc);
            name = format!("Attempt.{service}.{method}");
            attributes.extend(facts([
                ("rpc.system.name", "grpc".into()),
                ("rpc.method", rpc.as_str().into()),
                ("previous-rpc-attempts", again.into()),
                // What is sent again unseen, by the connection's word that it was not processed, is sent as the same attempt.
                ("transparent-retry", false.into()),
            ]));
            if let Some(grpc) = grpc {
                attributes.extend(facts([("rpc.response.status_code", grpc.into())]));
            }
        }
        attributes.append(&mut self.tags);
        self.telemetry.spans().export(Span {
            context: self.context.clone(),
            parent: Some(self.parent),
            kind: SpanKind::Client,
            name,
            start: self.start,
            end: source::wall(),
            attributes,
            events: std::mem::take(&mut self.events),
            error: status == 0 || status >= 500 || (self.rpc.is_some() && grpc != Some(0)),
        });
    }
}
