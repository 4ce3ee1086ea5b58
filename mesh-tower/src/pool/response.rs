//! A response's body, which gives its connection back at its end, and the span of the attempt it belongs to.

use std::{
    pin::Pin,
    sync::atomic::{AtomicU16, Ordering},
    task::{Context, Poll},
    time::SystemTime,
};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use mesh_core::{cluster::Cluster, config::Name, endpoint::Endpoint};

use super::endpoint::Lease;
use crate::{
    body::Body,
    error::Error,
    source::{self, Source},
    telemetry::{Span, SpanKind, Telemetry, TraceContext},
};

/// The body of a response, holding the connection it comes over.
pub struct PooledBody {
    body: Incoming,
    held: Option<(Lease, Option<Attempted>)>,
    source: Source,
}

impl PooledBody {
    pub(super) fn new(body: Incoming, lease: Lease, attempted: Option<Attempted>, source: Source) -> Self {
        let mut this = Self { body, held: Some((lease, attempted)), source };
        if this.body.is_end_stream() {
            this.end();
        }
        this
    }

    fn end(&mut self) {
        if let Some((lease, attempted)) = self.held.take() {
            lease.give_back(self.source.now());
            drop(attempted);
        }
    }
}

impl HttpBody for PooledBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        match &polled {
            Poll::Ready(None) => self.end(),
            Poll::Ready(Some(Ok(_))) if self.body.is_end_stream() => self.end(),
            // What is left of a broken connection is not given back.
            Poll::Ready(Some(Err(_))) => self.held = None,
            _ => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl std::fmt::Debug for PooledBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PooledBody").field("body", &self.body).finish_non_exhaustive()
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
}

impl Attempted {
    /// Puts the attempt's own context on the request, where its span goes out.
    pub(super) fn begin(
        telemetry: &Telemetry,
        cluster: &Cluster,
        endpoint: &Endpoint,
        request: &mut Request<Body>,
    ) -> Option<Self> {
        if !telemetry.spans().is_exporting() {
            return None;
        }
        let parent = TraceContext::extract(request.headers()).filter(|parent| parent.sampled)?;
        let context = parent.child();
        context.inject(request.headers_mut());
        let host = cluster.config().service.as_ref().map_or_else(|| cluster.name().to_string(), |s| s.host.to_string());
        Some(Self {
            telemetry: telemetry.clone(),
            context,
            parent: parent.span_id,
            start: source::wall(),
            method: request.method().clone(),
            cluster: cluster.name().clone(),
            address: endpoint.address().to_string(),
            host,
            status: AtomicU16::new(0),
        })
    }

    pub(super) fn responded(&self, status: StatusCode) {
        self.status.store(status.as_u16(), Ordering::Relaxed);
    }

    pub(super) fn failed(self, error: &Error) {
        tracing::trace!(target: "mesh::client", cluster = %self.cluster, address = %self.address, %error, "attempt failed");
    }
}

impl Drop for Attempted {
    fn drop(&mut self) {
        let status = self.status.load(Ordering::Relaxed);
        let mut attributes = vec![
            ("http.request.method", self.method.to_string()),
            ("server.address", self.host.clone()),
            ("network.peer.address", self.address.clone()),
            ("upstream_cluster", self.cluster.to_string()),
        ];
        if status != 0 {
            attributes.push(("http.response.status_code", status.to_string()));
        }
        self.telemetry.spans().export(Span {
            context: self.context.clone(),
            parent: Some(self.parent),
            kind: SpanKind::Client,
            name: format!("{} {}", self.method, self.host),
            start: self.start,
            end: source::wall(),
            attributes,
            error: status == 0 || status >= 500,
        });
    }
}
