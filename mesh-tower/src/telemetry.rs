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
    time::Time,
};

use crate::{
    source,
    spread::{Held, Spread},
};

mod access_log;
#[cfg(feature = "xds")]
mod certificates;
mod ejection;
mod metrics;
mod security;
mod text;
mod trace;

#[cfg(feature = "xds")]
pub(crate) use self::certificates::CertificateGauges;
pub use self::metrics::render;
pub(crate) use self::metrics::{traffic, upkeep};
pub(crate) use access_log::rfc3339;
pub use access_log::{AccessLog, Logged};
pub(crate) use ejection::tell_ejections;
pub(crate) use security::{refused, retired};
pub(crate) use text::{decimal, value};
pub use trace::{Span, SpanKind, Spans, TRACEPARENT, TRACESTATE, TraceContext, X_REQUEST_ID, new_request_id};

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
}

#[derive(Debug)]
struct Shared {
    local: Arc<Peer>,
    unknown: Arc<Peer>,
    metadata: Option<PeerMetadata>,
    metrics: metrics::Metrics,
    spans: Spans,
    log: AccessLog,
}

impl Telemetry {
    /// Of a process that is `workload`; with nothing but metrics until more is asked for.
    pub fn new(workload: Workload) -> Self {
        Self::with(Peer::new(workload, None), None, Spans::none(), AccessLog::Off)
    }

    /// With everything.
    pub fn with(local: Peer, metadata: Option<PeerMetadata>, spans: Spans, log: AccessLog) -> Self {
        let metrics = metrics::Metrics::new();
        let unknown = Arc::new(Peer::new(Workload::default(), None));
        Self { shared: Spread::new(Shared { local: Arc::new(local), unknown, metadata, metrics, spans, log }) }
    }

    /// Who we are.
    pub fn local(&self) -> &Arc<Peer> {
        &self.shared.local
    }

    /// The way out for spans.
    pub fn spans(&self) -> &Spans {
        &self.shared.spans
    }

    /// Is there a log to write headers to?
    pub fn is_logging(&self) -> bool {
        self.shared.log != AccessLog::Off
    }

    /// Takes up the trace of a request, or begins one, and makes sure it has an `x-request-id`.
    ///
    /// As source, `inherited` (the request being served) goes before headers of the same trace, which are a copy of what
    /// our caller sent; the headers carry the context on. As destination the context returned is our own server span's.
    pub fn begin(&self, reporter: Reporter, parts: &mut Parts, inherited: Option<&TraceContext>) -> TraceContext {
        let said = trace::Said::of(&parts.headers);
        if !said.request_id {
            parts.headers.insert(X_REQUEST_ID, new_request_id());
        }
        let received = if said.trace { TraceContext::extract(&parts.headers) } else { None };
        if reporter == Reporter::Destination {
            return received.map_or_else(|| self.root(), |context| self.below(&context));
        }
        let context = match (received, inherited) {
            (Some(own), Some(inherited)) if own.trace_id == inherited.trace_id => inherited.clone(),
            (Some(own), _) => own,
            (None, Some(inherited)) => inherited.clone(),
            (None, None) => self.root(),
        };
        if said.trace {
            context.inject(&mut parts.headers);
        } else {
            context.inject_new(&mut parts.headers);
        }
        context
    }

    fn root(&self) -> TraceContext {
        TraceContext::root(self.shared.spans.samples(source::random_u64()))
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
        self.shared.metrics.forget(is_known, now);
    }

    /// The same, held for one request.
    pub(crate) fn hold(&self) -> Teller {
        Teller(self.shared.hold())
    }
}

impl Shared {
    fn record(&self, event: &Event<'_>) {
        let peer = event.peer.unwrap_or(&self.unknown);
        self.metrics.record(event, &self.local, peer);
        self.log.write(event);
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
