//! What a finished request tells: one [`Event`], told once, becomes metrics, a log line and (in `trace`) spans.
//!
//! Both sides tell: the client layer as reporter `source`, the server as `destination`, with Istio's names and labels.
//! Who the other side is comes from its `x-envoy-peer-metadata` header where its certificate does not contradict, else
//! from the endpoint's configuration, else from the certificate alone. The header never reaches the application.

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue, request::Parts};
use mesh_core::{
    config::{EndpointAddress, Name, ServiceName, Workload},
    identity::SpiffeId,
    outcome::Flags,
    telemetry::{REPORTER_DESTINATION, REPORTER_SOURCE},
    telling::{Asked, Telling, Tracing},
    time::Time,
};

use crate::{
    source,
    spread::{Held, Spread},
};

mod access_log;
#[cfg(feature = "xds")]
mod certificates;
mod conventions;
mod debug;
mod ejection;
mod meter;
mod metrics;
#[cfg(test)]
mod reference;
mod security;
mod sheet;
mod subchannel;
mod tcp;
mod text;
mod trace;

#[cfg(feature = "xds")]
pub(crate) use self::certificates::CertificateGauges;
pub use self::metrics::render;
pub(crate) use self::metrics::{traffic, upkeep};
pub(crate) use access_log::Asking;
pub(crate) use access_log::rfc3339;
pub use access_log::{AccessLog, LogSink, Logged};
pub use debug::DebugHeaders;
pub(crate) use ejection::tell_ejections;
pub(crate) use meter::{Again, Meter, Served, Tried};
pub use meter::{CallLabel, HttpRoute, MetricProfiles};
pub(crate) use security::{refused, retired};
pub(crate) use subchannel::Subchannel;
pub(crate) use tcp::Relayed;
pub(crate) use text::{decimal, value};
pub use trace::{
    Attribute, Forms, Span, SpanKind, Spans, TRACEPARENT, TRACESTATE, TraceContext, X_REQUEST_ID, new_request_id,
};
pub(crate) use trace::{facts, rpc_of};

/// Node id of a mesh peer. Source: Istio's HTTP metadata exchange.
pub const PEER_METADATA_ID: HeaderName = HeaderName::from_static("x-envoy-peer-metadata-id");
/// Who a mesh peer is, encoded. Source: Istio's HTTP metadata exchange.
pub const PEER_METADATA: HeaderName = HeaderName::from_static("x-envoy-peer-metadata");

/// Which side tells. Istio's label `reporter`.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Reporter {
    /// The caller.
    Source,
    /// The answerer.
    Destination,
}

impl Reporter {
    /// As the label says it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Source => REPORTER_SOURCE,
            Self::Destination => REPORTER_DESTINATION,
        }
    }
}

/// One finished request, as one side saw it.
#[derive(Clone, Debug)]
pub struct Event<'a> {
    /// Which side.
    pub reporter: Reporter,
    /// The other side, as far as it is known: who answered (source) or who called (destination).
    pub peer: Option<&'a Arc<Peer>>,
    /// The service asked for.
    pub service: Option<&'a ServiceName>,
    /// The cluster chosen.
    pub cluster: Option<&'a Name>,
    /// The route chosen.
    pub route: Option<&'a Name>,
    /// The endpoint of the last attempt.
    pub upstream: Option<&'a EndpointAddress>,
    /// What only a log shows; `None` where there is no log.
    pub logged: Option<&'a Logged>,
    /// What the control plane says of what is told.
    pub telling: Option<&'a Telling>,
    /// It is a gRPC call.
    pub is_grpc: bool,
    /// HTTP status; 0 when there was no answer.
    pub status: u16,
    /// gRPC status.
    pub grpc_status: Option<u32>,
    /// What went wrong, by Envoy's letters.
    pub flags: Flags,
    /// What went wrong, by Envoy's response code details.
    pub details: &'a str,
    /// Headers and body.
    pub request_bytes: u64,
    /// Headers and body.
    pub response_bytes: u64,
    /// Messages of a gRPC call's request.
    pub request_messages: u64,
    /// Messages of a gRPC call's response.
    pub response_messages: u64,
    /// From the request's arrival to the response's last byte.
    pub duration: Duration,
    /// The connection was mutual TLS; only the destination's is told.
    pub mutual_tls: bool,
    /// How many times it was tried; 0 when it never left.
    pub attempts: u32,
}

/// One side of a call, as labels name it.
#[derive(Debug)]
pub struct Peer {
    workload: Workload,
    principal: Option<Name>,
    /// Of all of the above, so that telling a request does not hash a dozen strings.
    hash: u64,
}

impl Peer {
    /// A workload with the identity its certificate proved.
    pub fn new(workload: Workload, principal: Option<Name>) -> Self {
        let mut hasher = std::hash::DefaultHasher::new();
        for field in fields(&workload) {
            field.hash(&mut hasher);
        }
        principal.hash(&mut hasher);
        Self { workload, principal, hash: hasher.finish() }
    }

    /// Who.
    pub fn workload(&self) -> &Workload {
        &self.workload
    }

    /// What its certificate says: `spiffe://...`.
    pub fn principal(&self) -> Option<&Name> {
        self.principal.as_ref()
    }
}

impl PartialEq for Peer {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.principal == other.principal && self.workload == other.workload
    }
}

impl Eq for Peer {}

impl Hash for Peer {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

fn fields(workload: &Workload) -> [&Name; 8] {
    [
        &workload.name,
        &workload.namespace,
        &workload.service_account,
        &workload.canonical_name,
        &workload.canonical_revision,
        &workload.cluster,
        &workload.app,
        &workload.version,
    ]
}

/// How workloads describe themselves to each other; the encoding is the control plane's world, handed in as functions.
#[derive(Clone)]
pub struct PeerMetadata {
    /// Our own node id.
    pub id: HeaderValue,
    /// Our own description.
    pub own: HeaderValue,
    /// Reads another's description.
    pub decode: fn(&str) -> Option<Workload>,
}

impl fmt::Debug for PeerMetadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerMetadata").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The last description a peer sent, kept because it hardly ever changes: one beside each endpoint and connection.
#[derive(Debug, Default)]
pub struct PeerCache(Mutex<Option<(HeaderValue, Arc<Peer>)>>);

impl PeerCache {
    fn recall(&self, header: &HeaderValue) -> Option<Arc<Peer>> {
        let slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slot.as_ref().filter(|(known, _)| known == header).map(|(_, peer)| Arc::clone(peer))
    }

    fn remember(&self, header: HeaderValue, peer: &Arc<Peer>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((header, Arc::clone(peer)));
    }
}

/// Where requests are told; clones tell in one place.
#[derive(Clone, Debug)]
pub struct Telemetry {
    shared: Spread<Shared>,
}

/// Telemetry held for one request.
#[derive(Debug)]
pub(crate) struct Teller(Held<Shared>);

impl Teller {
    /// Tells a finished request.
    pub(crate) fn record(&self, event: &Event<'_>) {
        self.0.record(event);
    }

    fn measures(&self) -> &meter::Measures {
        &self.0.measures
    }
}

#[derive(Debug)]
struct Shared {
    local: Arc<Peer>,
    unknown: Arc<Peer>,
    metadata: Option<PeerMetadata>,
    metrics: metrics::Metrics,
    measures: meter::Measures,
    spans: Spans,
    log: AccessLog,
    sink: Option<LogSink>,
    /// How a trace is sent on, beside W3C and the forms it came in.
    forms: Forms,
}

impl Telemetry {
    /// Of a process that is `workload`; with nothing but metrics until more is asked for.
    pub fn new(workload: Workload) -> Self {
        Self::with(Peer::new(workload, None), None, Spans::none(), AccessLog::Off, None)
    }

    /// With everything. Lines of the log go to `sink` where there is one.
    pub fn with(
        local: Peer,
        metadata: Option<PeerMetadata>,
        spans: Spans,
        log: AccessLog,
        sink: Option<LogSink>,
    ) -> Self {
        Self::by(MetricProfiles::default(), local, metadata, spans, log, sink)
    }

    /// The same with metrics by these conventions.
    pub fn by(
        profiles: MetricProfiles,
        local: Peer,
        metadata: Option<PeerMetadata>,
        spans: Spans,
        log: AccessLog,
        sink: Option<LogSink>,
    ) -> Self {
        let (metrics, measures) = (metrics::Metrics::new(), meter::Measures::new(profiles));
        let unknown = Arc::new(Peer::new(Workload::default(), None));
        let forms =
            std::env::var("OTEL_PROPAGATORS").map_or_else(|_| Forms::default(), |it| Forms::of_propagators(&it));
        let local = Arc::new(local);
        Self { shared: Spread::new(Shared { local, unknown, metadata, metrics, measures, spans, log, sink, forms }) }
    }

    /// Who we are.
    pub fn local(&self) -> &Arc<Peer> {
        &self.shared.local
    }

    /// The way out for spans.
    pub fn spans(&self) -> &Spans {
        &self.shared.spans
    }

    /// Are the headers of requests needed when they are told: by a log, the control plane's or the environment's, or by changes of
    /// metrics?
    pub fn needs_head(&self, telling: Option<&Telling>) -> bool {
        telling.is_some_and(|telling| !telling.metrics.is_empty())
            || telling.and_then(Telling::is_logging).unwrap_or(self.shared.log != AccessLog::Off)
    }

    /// Do spans of requests of which `telling` is said go out?
    pub(crate) fn is_exporting(&self, telling: Option<&Telling>) -> bool {
        let tracing = telling.and_then(|telling| telling.tracing.as_ref());
        self.shared.spans.is_exporting() && tracing.is_none_or(Tracing::reports)
    }

    /// What is added to the spans of a request.
    pub(crate) fn tags(
        &self,
        telling: Option<&Telling>,
        parts: &Parts,
    ) -> Vec<(std::borrow::Cow<'static, str>, Attribute)> {
        let Some(tracing) = telling.and_then(|telling| telling.tracing.as_ref()) else { return Vec::new() };
        let tags = tracing.tags(&Asking(parts), |name| std::env::var(name).ok());
        tags.into_iter().map(|(name, value)| (name.into(), value.into())).collect()
    }

    /// Takes up the trace of a request, or begins one, and makes sure it has an `x-request-id`.
    ///
    /// As source, `inherited` (the request being served) goes before headers of the same trace, which are a copy of what
    /// our caller sent; the headers carry the context on. As destination the context returned is our own server span's.
    /// The truth is whether the trace begins here.
    pub fn begin(
        &self,
        reporter: Reporter,
        parts: &mut Parts,
        inherited: Option<&TraceContext>,
        telling: Option<&Telling>,
    ) -> (TraceContext, bool) {
        let said = trace::Said::of(&parts.headers);
        if !said.request_id {
            parts.headers.insert(X_REQUEST_ID, new_request_id());
        }
        let received = if said.trace { TraceContext::extract(&parts.headers) } else { None };
        let root = || self.root(&parts.headers, said, telling);
        if reporter == Reporter::Destination {
            let is_root = received.is_none();
            return (received.map_or_else(root, |context| self.below(&context)), is_root);
        }
        let (context, is_root) = match (received, inherited) {
            (Some(own), Some(inherited)) if own.trace_id == inherited.trace_id => (inherited.clone(), false),
            (Some(own), _) => (own, false),
            (None, Some(inherited)) => (inherited.clone(), false),
            (None, None) => (root(), true),
        };
        let context = context.also(self.shared.forms);
        if said.trace {
            context.inject(&mut parts.headers);
        } else {
            context.inject_new(&mut parts.headers);
        }
        (context, is_root)
    }

    /// A trace that begins here: wanted or not by whom it comes from, by the control plane, by the environment.
    fn root(&self, headers: &HeaderMap, said: trace::Said, telling: Option<&Telling>) -> TraceContext {
        let decided = if said.trace { trace::decision(headers) } else { None };
        let asked = if said.asked { trace::asked(headers) } else { Asked::No };
        let tracing = telling.and_then(|telling| telling.tracing.as_ref());
        let sampled = match (decided, tracing) {
            (Some(decided), _) => decided,
            (None, Some(tracing)) => tracing.samples(asked, source::random_u64()),
            (None, None) => asked == Asked::Forced || self.shared.spans.samples(source::random_u64()),
        };
        TraceContext::root(sampled)
    }

    /// The context of a span below `parent` where such a span goes out, else the parent's own: nobody would know the id.
    pub(crate) fn below(&self, parent: &TraceContext) -> TraceContext {
        if parent.sampled && self.shared.spans.is_exporting() { parent.child() } else { parent.clone() }
    }

    /// Writes who we are on a message to a mesh peer.
    pub fn introduce(&self, headers: &mut HeaderMap) {
        if let Some(metadata) = &self.shared.metadata {
            headers.insert(PEER_METADATA_ID, metadata.id.clone());
            headers.insert(PEER_METADATA, metadata.own.clone());
        }
    }

    /// Takes who somebody says he is off a message that leaves the mesh, or comes from outside it.
    pub(crate) fn conceal(&self, headers: &mut HeaderMap) {
        if introduces(headers) {
            headers.remove(PEER_METADATA_ID);
            headers.remove(PEER_METADATA);
        }
    }

    /// Takes a peer's description off its message, so that no application sees it, and says who it is.
    ///
    /// A description that names another namespace or service account than the certificate is not believed; nor is one
    /// without a certificate, since anybody can write a header. `known` is what configuration says.
    pub fn meet(
        &self,
        headers: &mut HeaderMap,
        principal: Option<&SpiffeId>,
        known: Option<&Workload>,
        cache: &PeerCache,
    ) -> Arc<Peer> {
        let header = if introduces(headers) {
            headers.remove(PEER_METADATA_ID);
            headers.remove(PEER_METADATA)
        } else {
            None
        };
        let header = header.unwrap_or_else(|| HeaderValue::from_static(""));
        // An endpoint may be somebody else by now, with the same words.
        let same = |peer: &Arc<Peer>| peer.principal.as_deref() == principal.map(SpiffeId::as_str);
        if let Some(peer) = cache.recall(&header).filter(same) {
            return peer;
        }
        let workload = self.believe(&header, principal).or_else(|| known.cloned()).unwrap_or_else(|| of(principal));
        let peer = Arc::new(Peer::new(workload, principal.map(|id| id.to_string().into())));
        cache.remember(header, &peer);
        peer
    }

    fn believe(&self, header: &HeaderValue, principal: Option<&SpiffeId>) -> Option<Workload> {
        let metadata = self.shared.metadata.as_ref()?;
        let principal = principal?;
        // 8 KiB is many times a real description; more is not worth decoding.
        let text = header.to_str().ok().filter(|text| !text.is_empty() && text.len() <= 8192)?;
        let mut workload = (metadata.decode)(text)?;
        let agrees = principal.namespace().is_none_or(|namespace| namespace == &*workload.namespace)
            && (workload.service_account.is_empty()
                || principal.service_account().is_none_or(|account| account == &*workload.service_account));
        if !agrees {
            return None;
        }
        if let Some(account) = principal.service_account() {
            workload.service_account = account.into();
        }
        Some(workload)
    }

    /// Tells a finished request.
    pub fn record(&self, event: &Event<'_>) {
        self.shared.record(event);
    }

    /// Lets go of the series of services that `is_known` does not know any more, once that has been so for a while.
    pub(crate) fn forget(&self, is_known: impl Fn(&str) -> bool, now: Time) {
        self.shared.metrics.forget(is_known, &self.shared.measures.sheet, now);
    }

    /// The same, held for one request.
    pub(crate) fn hold(&self) -> Teller {
        Teller(self.shared.hold())
    }
}

impl Shared {
    fn record(&self, event: &Event<'_>) {
        let peer = event.peer.unwrap_or(&self.unknown);
        if self.measures.profiles.istio {
            self.metrics.record(event, &self.local, peer);
        }
        self.log.write(event, &self.local, self.sink.as_ref());
    }
}

/// Somebody says who he is: names are looked at before they are looked up, since hashing costs more.
pub(crate) fn introduces(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| name.as_str().starts_with(PEER_METADATA.as_str()))
}

/// What a certificate alone says of a workload.
fn of(principal: Option<&SpiffeId>) -> Workload {
    let mut workload = Workload::default();
    if let Some(principal) = principal {
        workload.namespace = principal.namespace().unwrap_or_default().into();
        workload.service_account = principal.service_account().unwrap_or_default().into();
    }
    workload
}
