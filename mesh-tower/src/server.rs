//! Serving: accept, prove who calls, decide whether he may, hand the request to the application, tell what became of it.
//!
//! What a port demands is looked up in the configuration in force for each connection; without configuration it is
//! mutual TLS wherever this process has, or will have, a certificate. A gateway is the same server for the world outside, whose
//! application is the mesh's own client. Ending is graceful: no new connections, HTTP/2 peers are told to go away,
//! requests under way get a few seconds.

use std::{
    convert::Infallible,
    future::poll_fn,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header, request::Parts};
use http_body::Body as HttpBody;
use hyper::{body::Incoming, service::service_fn, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use mesh_core::{
    authz::question::Codec,
    config::{HttpLimits, Inbound, MtlsMode, ServiceName},
    outcome::Flags,
    rate_limit::LimitCodec,
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tower_service::Service;

use crate::{
    connect::{Io, Listener},
    context::Context,
    error::BoxError,
    jwt::Tokens,
    live::Live,
    pool::{Pool, ask_upgrade, remove_hop_by_hop},
    side::SideCalls,
    source::{self, Source},
    telemetry::{PEER_METADATA, Telemetry},
    tls::{Accepted, GatewayAcceptor, LiveIdentity, MtlsAcceptor, Rewound, TlsError, Turns},
};

mod body;
mod caller;
mod certificate;
mod edge;
mod ending;
mod guard;
mod health;
mod held;
mod idle;
mod limit;
mod limits;
mod load;
mod named;
mod opening;
mod outside;
mod relay;
mod reply;
mod shed;
mod story;
mod term;
mod tunnel;

use body::{Answer, Begun};
pub use body::{RequestBody, RequestBodyError};
use caller::Caller;
pub(crate) use edge::OnTarget;
use edge::Shaken;
pub(crate) use ending::Ending;
use guard::{Refusal, own_address};
pub(crate) use health::Health;
use health::is_probe;
pub use health::{HealthBody, WithHealth};
use held::{Held, Hold};
use limits::{Heard, Listening};
pub use load::{LoadBody, LoadRecorder, WithLoad, record_call};
pub use mesh_core::load::LoadReport;
pub(crate) use named::Report;
pub use named::ServingState;
use reply::{has_failed, in_time, in_vain, own_answer};
pub(crate) use shed::Gate;
use story::Story;
use term::Term;
pub(crate) use tunnel::Tunnels;

/// How long a caller may take to write the head of an HTTP/1.1 request.
const HEAD: Duration = Duration::from_secs(30);

const OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-overloaded");
const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
const FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// A service that can answer requests of a server: an axum `Router`, tonic's `Routes`, or your own.
pub trait Handler<B>:
    Service<Request<RequestBody>, Response = Response<B>, Error: Into<BoxError>, Future: Send> + Clone + Send + 'static
{
}

impl<S, B> Handler<B> for S where
    S: Service<Request<RequestBody>, Response = Response<B>, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + 'static
{
}

/// What a server needs to know.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) live: Arc<Live>,
    pub(crate) identity: LiveIdentity,
    /// There is, or will be, a certificate: ports without configuration demand mutual TLS.
    pub(crate) secure: bool,
    pub(crate) telemetry: Telemetry,
    /// Headers that travel from requests served to requests made meanwhile.
    pub(crate) propagated: Arc<[HeaderName]>,
    pub(crate) role: Role,
    /// The service requests are counted under.
    pub(crate) service: Arc<ServiceName>,
    /// How many requests are worked on at once, where that is bounded.
    pub(crate) gate: Option<Gate>,
    /// How serving ends.
    pub(crate) ending: Ending,
    /// Connections that changed their protocol.
    pub(crate) tunnels: Tunnels,
    /// The clock and the chance that rate limits go by.
    pub(crate) clock: Source,
    /// Asks other services before a request is let in.
    pub(crate) side: SideCalls,
    /// Reads and proves tokens of end users.
    pub(crate) tokens: Arc<Tokens>,
    /// How authorization services are spoken to over gRPC.
    pub(crate) check_codec: Option<Codec>,
    /// Connections to others, for bytes that a gateway hands on.
    pub(crate) pool: Arc<Pool>,
    /// How services are spoken to that count requests for the whole mesh.
    pub(crate) limit_codec: Option<LimitCodec>,
}

/// Whom a server serves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Role {
    /// Other workloads, on this port.
    Workload(u16),
    /// The world outside, by the listener declared with this port.
    Gateway(u16),
}

impl Role {
    /// The port its configuration is found by.
    fn port(self) -> u16 {
        match self {
            Self::Workload(port) | Self::Gateway(port) => port,
        }
    }

    fn is_gateway(self) -> bool {
        matches!(self, Self::Gateway(_))
    }
}

impl Server {
    /// Serves until `end` is true or gone, then drains.
    pub(crate) async fn run<S, B>(self, mut listener: impl Listener, handler: S, end: watch::Receiver<bool>)
    where
        S: Handler<B>,
        B: HttpBody<Error: Into<BoxError>, Data: Send> + Send + 'static,
    {
        if !self.role.is_gateway() && self.live.dialling().is_some() {
            return Box::pin(self.run_named(listener, handler, end)).await;
        }
        let server = Arc::new(self);
        let local = own_address(listener.local_addr());
        let turns = Turns::default();
        let (drain, draining) = watch::channel(false);
        let acceptor = GatewayAcceptor::new(MtlsAcceptor::new(server.identity.clone()));
        let mut connections = JoinSet::new();
        let mut closed = pin!(server.ending.closed(end));
        loop {
            let accepted = tokio::select! {
                biased;
                () = closed.as_mut() => break,
                Some(_) = connections.join_next() => continue,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                // More than there may be are closed at once (RL8).
                Ok((_, address)) if server.inbound().is_some_and(|it| it.is_full(connections.len())) => {
                    tracing::debug!(target: "mesh::server", peer = %address, "closed: too many connections");
                }
                Ok((stream, address)) => {
                    let (server, handler, mut draining) = (Arc::clone(&server), handler.clone(), draining.clone());
                    let (acceptor, turns) = (acceptor.clone(), turns.clone());
                    connections.spawn(async move {
                        let by = (&turns, acceptor);
                        match server.open(by, stream, (address, local), &mut draining).await {
                            Some(Shaken::Requests(io, caller)) => server.converse(io, caller, handler, draining).await,
                            Some(Shaken::Bytes(io, chain, from)) => server.relay(io, &chain, &from, draining).await,
                            Some(Shaken::Refused(_)) | None => {}
                        }
                    });
                }
                Err(error) => {
                    // A caller gone again is nothing; out of file descriptors is, and spinning would make it worse.
                    tracing::warn!(target: "mesh::server", %error, "accepting failed");
                    sleep(Duration::from_millis(50)).await;
                }
            }
        }
        drop(listener);
        drain.send_replace(true);
        let finished = async { while connections.join_next().await.is_some() {} };
        let limit = server.ending.drain;
        if timeout(limit, finished).await.is_err() {
            tracing::warn!(target: "mesh::server", left = connections.len(), "connections cut off after {limit:?}");
        }
        // Dropping the set ends what is left.
    }

    /// What is configured for its port.
    fn inbound(&self) -> Option<Arc<Inbound>> {
        self.live.load()?.inbound(self.role.port()).cloned()
    }

    async fn shake<I: Io>(
        &self,
        acceptor: GatewayAcceptor,
        stream: Rewound<I>,
        address: SocketAddr,
        local: Option<IpAddr>,
    ) -> Result<Shaken<I>, TlsError> {
        if self.role.is_gateway() {
            return self.shake_outside(&acceptor, stream, address, local).await;
        }
        let mut acceptor = acceptor.of_mesh();
        let mode = match self.inbound() {
            Some(inbound) => {
                self.prepare(&inbound);
                if !inbound.alpn.is_empty() {
                    acceptor = acceptor.with_alpn(inbound.alpn.iter().map(String::as_str));
                }
                acceptor = acceptor.with_versions(inbound.tls_versions);
                inbound.mtls
            }
            None if self.secure => MtlsMode::Strict,
            None => MtlsMode::Disable,
        };
        let accepted = acceptor.accept_begun(stream, mode).await?;
        let caller = Caller::new(&accepted, address, local, mode);
        Ok(Shaken::Requests(accepted, caller))
    }

    async fn converse<S, B>(
        self: Arc<Self>,
        mut io: Accepted<impl Io>,
        caller: Caller,
        handler: S,
        mut draining: watch::Receiver<bool>,
    ) where
        S: Handler<B>,
        B: HttpBody<Error: Into<BoxError>, Data: Send> + Send + 'static,
    {
        let caller = Arc::new(caller);
        let mut term = Term::new(io.take_tenure());
        let (held, of) = (Arc::clone(&self), Arc::clone(&caller));
        let inbound = self.inbound();
        let head = inbound.as_ref().and_then(|inbound| inbound.request_headers_timeout).unwrap_or(HEAD);
        let most = inbound.map_or_else(HttpLimits::default, |inbound| inbound.http);
        let heard = Heard::default();
        let hold = Hold::default();
        let _cutting = hold.cutting();
        let (requests, changing) = (heard.clone(), hold.clone());
        let io = Held::new(Listening { io, heard: heard.clone() }, hold.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            requests.request();
            let (server, caller, handler) = (Arc::clone(&self), Arc::clone(&caller), handler.clone());
            let (changing, connects) = (changing.clone(), request.method() == Method::CONNECT);
            async move {
                let response = server.answer(&caller, handler, request).await;
                if connects || response.status() == StatusCode::SWITCHING_PROTOCOLS {
                    changing.change();
                }
                Ok::<_, Infallible>(response)
            }
        });
        let protocols = limits::protocols(head, &most);
        let drained = {
            let mut connection = pin!(protocols.serve_connection_with_upgrades(TokioIo::new(io), service));
            let drained = tokio::select! {
                ended = connection.as_mut() => {
                    tell_end(ended);
                    None
                }
                () = until_true(&mut draining) => Some(true),
                () = term.over(&held, &of) => Some(false),
                () = heard.silence(head) => {
                    tracing::debug!(target: "mesh::server", "closed: it said nothing");
                    return;
                }
            };
            if let Some(drained) = drained {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    ended = connection => tell_end(ended),
                    () = term.cut(drained) => return,
                }
            }
            drained
        };
        // If its protocol was changed, the bytes are there still, in other hands.
        tokio::select! {
            biased;
            () = hold.gone() => {}
            () = term.rest(drained, (&held, &of), &mut draining) => {}
        }
    }

    async fn answer<S, B>(&self, caller: &Caller, handler: S, request: Request<Incoming>) -> Response<Answer<B>>
    where
        S: Handler<B>,
        B: HttpBody<Error: Into<BoxError>>,
    {
        let (mut parts, body) = request.into_parts();
        let mut body = Begun::new(body);
        let most = self.inbound().map_or_else(HttpLimits::default, |inbound| inbound.http);
        let malformed = limits::head(&parts, &most).and_then(|()| self.straighten(caller, &mut parts));
        let changing = parts.extensions.get::<OnUpgrade>().cloned().filter(|_| self.role.is_gateway());
        let introduced = parts.headers.contains_key(PEER_METADATA);
        let mut story = self.receive(caller, &mut parts);
        let mut context = Context::received(&parts.headers, &self.propagated);
        context.trace = Some(story.trace().clone());
        context.source = Some(caller.address.ip());
        let context = Arc::new(context);
        let mut refusal = match malformed {
            Ok(()) => self.refusal(caller, (&mut parts, &mut body), &context).await,
            Err(malformed) => Some(malformed),
        };
        let mut told = Vec::new();
        if refusal.is_none() {
            match self.limit(caller, &mut parts).await {
                Ok(verdicts) => told = verdicts,
                Err(limited) => refusal = Some(limited),
            }
        }
        let overloaded = refusal.is_none() && !is_probe(&parts) && !self.let_in(&mut story).await;
        if refusal.is_none() && context.deadline.is_some_and(|deadline| deadline <= source::instant()) {
            // It waited for its turn until nobody waited for it.
            refusal = Some(Refusal::new(StatusCode::GATEWAY_TIMEOUT, Flags::UT, "the deadline passed while it waited"));
        }
        if overloaded {
            let mut full = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, Flags::UO, "the server is overloaded");
            full.details = "overload".into();
            refusal = Some(full);
        }
        let received = Arc::clone(&story.received);
        let (body, read) = RequestBody::new(body, Arc::clone(&story.received), story.is_grpc(), most.max_body);
        let request = Request::from_parts(parts, body);
        let limit = self.inbound().and_then(|inbound| inbound.request_timeout);
        let mut response = match refusal {
            Some(refusal) => {
                let Refusal { status, flags, reason, details, headers, grpc } = *refusal;
                story.refused(flags, details);
                let mut answer = own_answer(status, story.is_grpc(), reason);
                answer.headers_mut().extend(headers);
                if let Some(grpc) = grpc.filter(|_| story.is_grpc()) {
                    answer.headers_mut().insert("grpc-status", HeaderValue::from(grpc));
                }
                if overloaded {
                    self.push_back(answer.headers_mut(), story.is_grpc());
                }
                answer
            }
            None => match in_time(context.share(call(handler, request)), limit, read).await {
                Some(_) if received.too_large.load(Relaxed) => {
                    let refusal = limits::too_large();
                    story.refused(Flags::NONE, refusal.details);
                    own_answer(refusal.status, story.is_grpc(), refusal.reason)
                }
                None => {
                    story.refused(Flags::NONE, "request_overall_timeout");
                    own_answer(StatusCode::REQUEST_TIMEOUT, story.is_grpc(), "the request took too long".to_owned())
                }
                Some(Ok(response)) => response.map(|body| Answer::Handler { body, story: None }),
                Some(Err(error)) => {
                    tracing::warn!(target: "mesh::server", %error, "the application failed");
                    story.refused(Flags::NONE, "application_failed");
                    own_answer(StatusCode::INTERNAL_SERVER_ERROR, story.is_grpc(), String::new())
                }
            },
        };
        told.iter().for_each(|verdict| verdict.tell(response.headers_mut()));
        if context.vain.is_set() && has_failed(&response) {
            in_vain(response.headers_mut(), story.is_grpc());
        }
        if caller.is_leaving() {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if self.role.is_gateway() {
            let protocol = response.headers().get(header::UPGRADE).cloned();
            remove_hop_by_hop(response.headers_mut());
            if response.status() == StatusCode::SWITCHING_PROTOCOLS
                && let (Some(down), Some(up), Some(protocol)) =
                    (changing, response.extensions_mut().remove::<OnUpgrade>(), protocol)
            {
                ask_upgrade(response.headers_mut(), protocol);
                self.tunnels.join(down, up);
            }
            self.telemetry.conceal(response.headers_mut());
        } else if introduced && caller.peer.is_some() {
            self.telemetry.introduce(response.headers_mut());
        }
        story.head(response.status().as_u16(), response.headers());
        story.said(response.extensions_mut());
        match response.body_mut() {
            Answer::Handler { body, story: slot } if !body.is_end_stream() => *slot = Some(story),
            _ => story.finish(),
        }
        response
    }

    /// Learns who calls, and takes off what a caller may not say.
    fn receive(&self, caller: &Caller, parts: &mut Parts) -> Story {
        if self.role.is_gateway() {
            edge::receive(caller, parts, self.inbound().as_deref());
            return Story::begin(&self.telemetry, parts, None, &self.service, caller, None);
        }
        let telling = self.live.load().and_then(|snapshot| snapshot.inbound_telling(self.role.port()));
        let peer = self.telemetry.meet(&mut parts.headers, caller.peer.as_ref(), None, &caller.cache);
        Story::begin(&self.telemetry, parts, Some(peer), &self.service, caller, telling)
    }

    /// Waits for the request's turn, which lasts as long as its story; false when it does not come.
    async fn let_in(&self, story: &mut Story) -> bool {
        let Some(gate) = &self.gate else { return true };
        story.place = gate.enter().await;
        story.place.is_some()
    }

    /// Tells a refused caller to go elsewhere, and not to come back at once.
    fn push_back(&self, headers: &mut HeaderMap, is_grpc: bool) {
        headers.insert(OVERLOADED, HeaderValue::from_static("true"));
        if let Some(gate) = self.gate.as_ref().filter(|_| is_grpc) {
            let millis = u32::try_from(gate.pushback().as_millis()).unwrap_or(u32::MAX);
            headers.insert(PUSHBACK, HeaderValue::from(millis));
        }
    }
}

fn tell_end(ended: Result<(), BoxError>) {
    if let Err(error) = ended {
        tracing::trace!(target: "mesh::server", %error, "connection ended");
    }
}

/// Ends when the value is true, or will not change any more.
async fn until_true(value: &mut watch::Receiver<bool>) {
    let _ = value.wait_for(|value| *value).await;
}

async fn call<S, B>(mut handler: S, request: Request<RequestBody>) -> Result<Response<B>, BoxError>
where
    S: Handler<B>,
{
    poll_fn(|cx| handler.poll_ready(cx)).await.map_err(Into::into)?;
    handler.call(request).await.map_err(Into::into)
}

/// Ends at SIGTERM or ctrl-c.
pub(crate) async fn signalled() {
    let interrupt = tokio::signal::ctrl_c();
    #[cfg(unix)]
    {
        let terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate());
        if let Ok(mut terminate) = terminate {
            tokio::select! {
                _ = interrupt => {}
                _ = terminate.recv() => {}
            }
            return;
        }
    }
    let _ = interrupt.await;
}
