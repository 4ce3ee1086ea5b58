//! What a server tells of one request, as reporter `destination`, and the span of its own.

use std::{
    borrow::Cow,
    io::IoSlice,
    sync::{Arc, atomic::Ordering},
    time::SystemTime,
};

use bytes::Buf;
use http::{Extensions, HeaderMap, Method, Uri, Version, request::Parts};
use mesh_core::{
    config::{Name, ServiceName},
    outcome::{Flags, grpc_status},
    request::is_grpc,
    telemetry::Messages,
    telling::Telling,
};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use super::{body::Received, caller::Caller};
use crate::{
    source,
    telemetry::{
        Attribute, Event, HttpRoute, Logged, Peer, Reporter, Served, Span, SpanKind, Telemetry, TraceContext, facts,
        rpc_of,
    },
};

/// Of one request; told when it is finished, or dropped: then the caller went away.
pub(super) struct Story {
    telemetry: Telemetry,
    trace: TraceContext,
    parent: Option<u64>,
    peer: Option<Arc<Peer>>,
    service: Arc<ServiceName>,
    method: Method,
    uri: Uri,
    logged: Option<Box<Logged>>,
    telling: Option<Arc<Telling>>,
    tags: Vec<(Cow<'static, str>, Attribute)>,
    is_grpc: bool,
    request_head: u64,
    pub(super) received: Arc<Received>,
    response_bytes: u64,
    /// Without the head.
    answer_bytes: u64,
    response_messages: Messages,
    begun: Instant,
    start: SystemTime,
    mutual_tls: bool,
    secure: bool,
    version: Version,
    /// The application's own word for its route.
    route: Option<Name>,
    /// A gRPC call whose arrival could not be told yet.
    owed: bool,
    status: u16,
    pub(super) grpc_status: Option<u32>,
    flags: Flags,
    details: Cow<'static, str>,
    /// The application did not answer: this server did.
    refused: bool,
    told: bool,
    /// A gateway's requests are told by its client side.
    silent: bool,
    /// Its turn at the server, where that is bounded.
    pub(super) place: Option<OwnedSemaphorePermit>,
}

impl Story {
    pub(super) fn begin(
        telemetry: &Telemetry,
        parts: &mut Parts,
        peer: Option<Arc<Peer>>,
        service: &Arc<ServiceName>,
        caller: &Caller,
        telling: Option<Arc<Telling>>,
    ) -> Self {
        let said = telling.as_deref();
        let exporting = telemetry.is_exporting(said);
        let parent = exporting.then(|| TraceContext::extract(&parts.headers)).flatten();
        let (trace, _) = telemetry.begin(Reporter::Destination, parts, None, said);
        let logged = telemetry.needs_head(said).then(|| Logged::of(parts, &trace).coming_from(caller.address));
        let tags = if exporting && trace.sampled { telemetry.tags(said, parts) } else { Vec::new() };
        let is_grpc = is_grpc(&parts.headers);
        let owed = is_grpc && peer.is_some() && !telemetry.served_began(parts.uri.path());
        Self {
            telemetry: telemetry.clone(),
            trace,
            parent: parent.map(|parent| parent.span_id),
            silent: peer.is_none(),
            peer,
            service: Arc::clone(service),
            method: parts.method.clone(),
            uri: parts.uri.clone(),
            logged,
            telling,
            tags,
            is_grpc,
            request_head: head_bytes(&parts.headers),
            received: Arc::default(),
            response_bytes: 0,
            answer_bytes: 0,
            response_messages: Messages::default(),
            begun: source::instant(),
            start: source::wall(),
            mutual_tls: caller.peer.is_some(),
            secure: caller.secure,
            version: parts.version,
            route: None,
            owed,
            status: 0,
            grpc_status: None,
            flags: Flags::NONE,
            details: "downstream_remote_disconnect".into(),
            refused: false,
            told: false,
            place: None,
        }
    }

    /// Its place in the trace: what requests made meanwhile hang below.
    pub(super) fn trace(&self) -> &TraceContext {
        &self.trace
    }

    pub(super) fn is_grpc(&self) -> bool {
        self.is_grpc
    }

    /// The head of the response is there.
    pub(super) fn head(&mut self, status: u16, headers: &HeaderMap) {
        self.status = status;
        self.grpc_status = grpc_status(headers);
        if let Some(logged) = &mut self.logged {
            logged.answered(headers, self.begun.elapsed());
        }
        self.response_bytes = head_bytes(headers);
        if !self.refused {
            self.details = "via_upstream".into();
        }
    }

    /// What the application says of its answer.
    pub(super) fn said(&mut self, extensions: &mut Extensions) {
        self.route = extensions.remove::<HttpRoute>().map(|HttpRoute(route)| route);
    }

    /// A chunk of the answer goes out.
    pub(super) fn answered(&mut self, data: &impl Buf) {
        self.response_bytes += data.remaining() as u64;
        self.answer_bytes += data.remaining() as u64;
        if self.is_grpc {
            let mut pieces = [IoSlice::new(&[]); 16];
            let count = data.chunks_vectored(&mut pieces);
            pieces.iter().take(count).for_each(|piece| self.response_messages.passed(piece));
        }
    }

    /// It was refused before the handler.
    pub(super) fn refused(&mut self, flags: Flags, details: impl Into<Cow<'static, str>>) {
        self.flags |= flags;
        self.details = details.into();
        self.refused = true;
    }

    /// The handler's response broke off.
    pub(super) fn broken(&mut self) {
        self.flags |= Flags::UC;
        self.details = "response_body_failed".into();
    }

    pub(super) fn finish(&mut self) {
        if std::mem::replace(&mut self.told, true) {
            return;
        }
        if !self.silent {
            self.telemetry.record(&Event {
                reporter: Reporter::Destination,
                peer: self.peer.as_ref(),
                service: Some(&self.service),
                cluster: None,
                route: None,
                upstream: None,
                logged: self.logged.as_deref(),
                telling: self.telling.as_deref(),
                is_grpc: self.is_grpc,
                status: self.status,
                grpc_status: self.grpc_status,
                flags: self.flags,
                details: &self.details,
                request_bytes: self.request_head + self.received.bytes.load(Ordering::Relaxed),
                response_bytes: self.response_bytes,
                request_messages: self.received.messages.load(Ordering::Relaxed),
                response_messages: self.response_messages.count(),
                duration: self.begun.elapsed(),
                mutual_tls: self.mutual_tls,
                attempts: 0,
            });
            let received = &self.received;
            let received = (received.bytes.load(Ordering::Relaxed), received.messages.load(Ordering::Relaxed));
            self.telemetry.served(&Served {
                is_grpc: self.is_grpc,
                path: self.uri.path(),
                method: &self.method,
                route: self.route.as_ref(),
                secure: self.secure,
                version: self.version,
                status: self.status,
                grpc: self.grpc_status,
                is_answered: !self.refused && self.status != 0,
                owed: self.owed,
                duration: self.begun.elapsed(),
                sent: (self.answer_bytes, self.response_messages.count()),
                received,
            });
        }
        self.export();
    }

    fn export(&mut self) {
        if !self.trace.sampled || !self.telemetry.is_exporting(self.telling.as_deref()) {
            return;
        }
        let local = self.telemetry.local().workload();
        let mut attributes = facts([
            ("http.request.method", self.method.as_str().into()),
            ("url.path", self.uri.path().into()),
            ("response_flags", self.flags.to_string().into()),
            ("istio.canonical_service", (&*local.canonical_name).into()),
            ("istio.canonical_revision", (&*local.canonical_revision).into()),
            ("istio.namespace", (&*local.namespace).into()),
        ]);
        if self.status != 0 {
            attributes.extend(facts([("http.response.status_code", self.status.into())]));
        }
        let (service, method) = rpc_of(self.uri.path());
        if self.is_grpc {
            let status = self.grpc_status.unwrap_or(2);
            attributes.extend(facts([
                ("rpc.system.name", "grpc".into()),
                ("rpc.method", format!("{service}/{method}").into()),
                ("rpc.response.status_code", status.into()),
            ]));
        }
        attributes.append(&mut self.tags);
        self.telemetry.spans().export(Span {
            context: self.trace.clone(),
            parent: self.parent,
            kind: SpanKind::Server,
            // Bounded: one a service and method (Istio's route decorator); of gRPC one a method (gRFC A72).
            name: match self.is_grpc {
                true => format!("Recv.{service}.{method}"),
                false => format!("{} {}/*", self.method, self.service.host),
            },
            start: self.start,
            end: source::wall(),
            attributes,
            events: Vec::new(),
            error: self.status == 0 || self.status >= 500 || (self.is_grpc && self.grpc_status != Some(0)),
        });
    }
}

impl Drop for Story {
    fn drop(&mut self) {
        if !self.told {
            self.flags |= Flags::DC;
        }
        self.finish();
    }
}

/// What headers come to on the wire of HTTP/1.1, near enough for a histogram.
fn head_bytes(headers: &HeaderMap) -> u64 {
    headers.iter().map(|(name, value)| (name.as_str().len() + value.len() + 4) as u64).sum()
}
