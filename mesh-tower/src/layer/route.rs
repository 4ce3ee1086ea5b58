//! Where a request goes: the policy of the live configuration, or a split of traffic given in code.
//!
//! This is where a request leaves the application. What travels from the request being served (deadline, headers) is
//! put on it before routing looks at it, so that routing by `end-user` works without copying headers; then it is
//! planned, once for all its tries (RA4), and rewritten as its route says. On the way back the response is rewritten,
//! and told what happened to it.

use std::{
    future::Future,
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Buf;
use http::{HeaderMap, HeaderValue, header};
use http_body::Body as HttpBody;
use mesh_core::{
    config,
    error::CompileError,
    fault::FaultDecision,
    plan::{Plan, Target},
    request::{RequestView, is_grpc},
    rewrite,
    rng::RequestRng,
    session,
    snapshot::Snapshot,
};
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use super::{Call, Routed, Stage, WaitForReady, leaf};
use crate::{
    body::{Body, Progress},
    context,
    dial::Dialled,
    error::{BoxError, Error, ErrorKind, ResponseFlags},
    live::Live,
    message::Message,
    pool::asked_upgrade,
    server::OnTarget,
    source::{self, Source},
    spread::{Held, Spread},
};

/// Finds each request's policy.
#[derive(Clone, Debug)]
pub struct RouteLayer {
    routes: Routes,
    source: Source,
}

#[derive(Clone, Debug)]
enum Routes {
    /// Whatever is in force; of the port, if it is a gateway's, else of the port that the request names.
    Live { live: Arc<Live>, port: Option<u16> },
    /// One split of all requests: the clusters' names are authorities.
    Split(Arc<Snapshot>),
}

/// The port a split's only route table stands at; the requests' own does not matter.
const SPLIT_PORT: u16 = 0;

impl RouteLayer {
    /// By the configuration in force. A request waits for the first one until its deadline, or for
    /// [`Live::PATIENCE`].
    pub fn live(live: Arc<Live>) -> Self {
        Self { routes: Routes::Live { live, port: None }, source: Source::system() }
    }

    /// By weight among authorities (`host:port`), with no configuration and no other layer: the request's authority
    /// becomes the one drawn, and its `Host` header keeps the name that was asked for.
    ///
    /// # Errors
    ///
    /// No destination, or weights that are all 0.
    pub fn split<A: Into<String>>(destinations: impl IntoIterator<Item = (A, u32)>) -> Result<Self, CompileError> {
        let mut config = config::Config::default();
        let mut forward = config::Forward::default();
        for (authority, weight) in destinations {
            let cluster: config::Name = authority.into().into();
            forward.clusters.push(config::WeightedCluster { cluster: cluster.clone(), weight, ..Default::default() });
            let compiled = config::Cluster { name: cluster.clone(), ..Default::default() };
            config.clusters.insert(cluster, Arc::new(compiled));
        }
        let route = config::Route {
            name: "split".into(),
            origin: None,
            matches: config::RouteMatch::default(),
            action: config::Action::Forward(forward),
            fault: None,
            headers: config::HeaderChanges::default(),
            operation: None,
        };
        let host = config::VirtualHost {
            name: "split".into(),
            domains: vec!["*".into()],
            routes: vec![route],
            ..Default::default()
        };
        let table = config::RouteTable { virtual_hosts: vec![Arc::new(host)], ..Default::default() };
        config.outbound.insert(SPLIT_PORT, Arc::new(table));
        let snapshot = Arc::new(Snapshot::compile(&config, None)?);
        Ok(Self { routes: Routes::Split(snapshot), source: Source::system() })
    }

    /// Routes are those of this port, whatever port requests name: for a gateway's listener.
    #[must_use]
    pub fn on_port(mut self, listener: u16) -> Self {
        if let Routes::Live { port, .. } = &mut self.routes {
            *port = Some(listener);
        }
        self
    }

    /// Random choices are those of this seed, request by request: for tests and replays.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.source = Source::seeded(seed);
        self
    }

    /// With a clock and a seed of its own: for simulations and replays.
    #[must_use]
    pub fn source(mut self, source: Source) -> Self {
        self.source = source;
        self
    }
}

impl<S> Layer<S> for RouteLayer {
    type Service = Route<S>;

    fn layer(&self, inner: S) -> Route<S> {
        Route { shared: Spread::new(Shared { inner, layer: self.clone() }) }
    }
}

/// A service with routing in front of it; clones share it.
#[derive(Debug)]
pub struct Route<S> {
    shared: Spread<Shared<S>>,
}

#[derive(Debug)]
pub(crate) struct Shared<S> {
    inner: S,
    layer: RouteLayer,
}

impl<S> Route<S> {
    /// The same, held for one request.
    pub(crate) fn hold(&self) -> Held<Shared<S>> {
        self.shared.hold()
    }
}

impl<S> Shared<S> {
    /// What the configuration says of the request; `None` while there is none, or where it is to be asked for.
    fn plan(&self, departure: &mut Departure) -> Option<Result<Call, Error>> {
        match &self.layer.routes {
            Routes::Split(snapshot) => Some(self.decide(snapshot, Some(SPLIT_PORT), None, departure)),
            Routes::Live { live, port: None } if live.dialling().is_some() => None,
            Routes::Live { live, port } => {
                let snapshot = live.current();
                let target = port.and_then(|_| on_target(departure));
                let port = port.or_else(|| live.only_port());
                Some(self.decide_live(live, snapshot.as_ref()?, (port, target.as_deref()), departure))
            }
        }
    }

    /// The same when there is one, or why there is none in time.
    async fn plan_later(&self, departure: &mut Departure) -> Result<Call, Error> {
        match &self.layer.routes {
            Routes::Live { live, port: None } if live.dialling().is_some() => self.dial(live, departure).await,
            Routes::Live { live, port } => match live.ready(departure.deadline).await {
                Some(snapshot) => {
                    let target = port.and_then(|_| on_target(departure));
                    let port = port.or_else(|| live.only_port());
                    self.decide_live(live, &snapshot, (port, target.as_deref()), departure)
                }
                None => Ok(departure.not_ready(self.layer.source.next_request())),
            },
            Routes::Split(snapshot) => self.decide(snapshot, Some(SPLIT_PORT), None, departure),
        }
    }

    /// The same where destinations are asked for by name: the one this request goes to is, and is waited for.
    async fn dial(&self, live: &Arc<Live>, departure: &mut Departure) -> Result<Call, Error> {
        let Some(dialling) = live.dialling() else { return Ok(departure.not_ready(self.layer.source.next_request())) };
        let known = departure.message.parts().extensions.get::<Arc<Dialled>>().cloned();
        let dialled = known.map_or_else(
            || {
                let view = RequestView::of(departure.message.parts(), None);
                let has_port = view.host().len() < view.authority.len();
                match has_port {
                    true => dialling.dial(view.authority, self.layer.source.now()),
                    false => dialling.dial(&format!("{}:{}", view.authority, view.port), self.layer.source.now()),
                }
            },
            Ok,
        );
        let dialled = match dialled {
            Ok(dialled) => dialled,
            Err(why) => return Ok(departure.refuse((ErrorKind::NoRoute, why), self.layer.source.next_request())),
        };
        let name: &str = dialled.listener();
        if let Some(snapshot) = live.current().as_ref().filter(|snapshot| snapshot.has_target(name)) {
            return self.decide_live(live, snapshot, (None, Some(name)), departure);
        }
        match live.ready_for(departure.deadline, |snapshot| snapshot.has_target(name)).await {
            Some(snapshot) => self.decide_live(live, &snapshot, (None, Some(name)), departure),
            None => Ok(departure.not_ready(self.layer.source.next_request())),
        }
    }

    /// With what it waits on, if it is to wait for an endpoint.
    fn decide_live(
        &self,
        live: &Arc<Live>,
        snapshot: &Snapshot,
        (port, target): (Option<u16>, Option<&str>),
        departure: &mut Departure,
    ) -> Result<Call, Error> {
        let waits = departure.message.extensions().get::<WaitForReady>().is_some();
        let call = self.decide(snapshot, port, target, departure)?;
        Ok(if waits { call.waiting_on(live) } else { call })
    }

    fn decide(
        &self,
        snapshot: &Snapshot,
        port: Option<u16>,
        target: Option<&str>,
        departure: &mut Departure,
    ) -> Result<Call, Error> {
        let mut rng = self.layer.source.next_request();
        let view = RequestView {
            source: departure.source,
            channel: self.layer.source.channel(),
            target,
            ..RequestView::of(departure.message.parts(), port)
        };
        let mut plan = match snapshot.plan(&view, &mut rng) {
            Ok(plan) => plan,
            Err(why) => {
                let why = format!("{} {}: {why}", view.method, view.authority);
                return Ok(departure.refuse((ErrorKind::NoRoute, why), rng));
            }
        };
        if let Some(protocol) = refused_upgrade(&plan, departure.message.headers()) {
            let why = format!("its route does not let it change to {protocol}");
            return Ok(departure.refuse((ErrorKind::Upgrade, why), rng));
        }
        let location = match &plan.target {
            Target::Redirect | Target::Respond => {
                HeaderValue::try_from(rewrite::location(&plan, &view)).ok().filter(|location| !location.is_empty())
            }
            _ => None,
        };
        let mut filters = plan.route.filters.iter();
        if let Some(answer) = filters.find_map(|filter| filter.request(departure.message.parts_mut())) {
            // It stands before faults, too.
            plan.fault = FaultDecision::NONE;
            let progress = std::mem::take(&mut departure.progress);
            return Ok(Call::new(plan, rng, progress).filtered(answer));
        }
        session::unwrap(&plan, departure.message.parts_mut());
        // What is answered here is answered as it came.
        if plan.cluster().is_some() && plan.fault.abort.is_none() {
            rewrite::apply(&plan, departure.source, departure.message.parts_mut());
        }
        let request = rewrite::remembered(&plan, departure.message.parts());
        // A mirror whose cluster is not there is no reason to fail anything.
        let copies: Vec<_> = plan
            .mirrors()
            .filter_map(|mirror| {
                let cluster = snapshot.cluster(mirror.target(departure.message.parts())?)?;
                Some((Arc::clone(mirror), Arc::clone(cluster)))
            })
            .collect();
        if let (Routes::Split(_), Some(cluster)) = (&self.layer.routes, plan.cluster()) {
            leaf::redirect(departure.message.parts_mut(), &cluster.config().name)?;
        }
        let mut call = Call::new(plan, rng, std::mem::take(&mut departure.progress));
        if location.is_some() {
            call = call.located(location);
        }
        if request.is_some() {
            call = call.remembering(request);
        }
        if !copies.is_empty() {
            call = call.copied_to(copies);
        }
        Ok(call)
    }
}

impl<S, B> Stage<Message> for Route<S>
where
    S: Stage<Routed, Response = http::Response<B>>,
    B: Send,
{
    type Response = http::Response<B>;

    async fn call(&self, request: Message) -> Result<http::Response<B>, Error> {
        self.shared.send(request).await
    }
}

impl<S, B> Shared<S>
where
    S: Stage<Routed, Response = http::Response<B>>,
{
    /// One request, there and back.
    pub(crate) async fn send(&self, request: Message) -> Result<http::Response<B>, Error> {
        let mut departure = Departure::of(request);
        let call = match self.plan(&mut departure) {
            Some(call) => call?,
            None => Box::pin(self.plan_later(&mut departure)).await?,
        };
        let mut returned = self.inner.call(departure.leave(&call)).await;
        arrive(call, &mut returned);
        returned
    }
}

impl<S> Clone for Route<S> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<S, B, R> Service<http::Request<B>> for Route<S>
where
    S: Stage<Routed, Response = http::Response<R>> + 'static,
    R: Send + 'static,
    B: HttpBody + Send + 'static,
    B::Data: Buf + Send,
    B::Error: Into<BoxError>,
{
    type Response = http::Response<R>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let route = self.hold();
        let request = request.map(Body::new).into();
        Box::pin(async move { route.send(request).await })
    }
}

/// The routes that a gateway's connection has of its own.
fn on_target(departure: &Departure) -> Option<config::Name> {
    departure.message.parts().extensions.get::<OnTarget>().map(|target| target.0.clone())
}

/// The protocol that a request asks to change to and its route does not allow. A change to HTTP/2 is never made this way, so that
/// request goes as it is; as in Envoy.
fn refused_upgrade<'a>(plan: &Plan, headers: &'a HeaderMap) -> Option<&'a str> {
    // Names are looked at before one is looked up: hashing costs more.
    headers.keys().any(|name| *name == header::UPGRADE).then_some(())?;
    let protocol = asked_upgrade(headers)?.to_str().unwrap_or("");
    let refused = !protocol.eq_ignore_ascii_case("h2c") && !plan.allows_upgrade(protocol);
    (refused && plan.cluster().is_some()).then_some(protocol)
}

/// A request on its way out of the application.
pub(super) struct Departure {
    pub(super) message: Message,
    pub(super) progress: Progress,
    pub(super) deadline: Option<Instant>,
    /// Where the request being served came from, if one is.
    pub(super) source: Option<IpAddr>,
}

impl Departure {
    /// With what travels from the request being served, if one is.
    pub(super) fn of(mut message: Message) -> Self {
        let context = context::current();
        let source = context.as_ref().and_then(|context| context.source);
        let inherited = context.and_then(|context| context.depart(message.headers_mut()));
        let own = context::grpc_timeout(message.headers()).map(|timeout| source::instant() + timeout);
        let deadline = inherited.into_iter().chain(own).min();
        let body = message.body_mut();
        if body.known_len().is_none() {
            *body = std::mem::take(body).at_hand();
        }
        let progress = body.watch();
        Self { message, progress, deadline, source }
    }

    /// What goes through the layers below.
    pub(super) fn leave(self, call: &Call) -> Routed {
        Routed { request: self.message, call: call.clone(), deadline: self.deadline, now: call.begun() }
    }

    fn not_ready(&mut self, rng: RequestRng) -> Call {
        self.refuse((ErrorKind::NotReady, "the control plane has not answered in time".to_owned()), rng)
    }

    fn refuse(&mut self, why: (ErrorKind, String), rng: RequestRng) -> Call {
        Call::refused(why, is_grpc(self.message.headers()), rng, std::mem::take(&mut self.progress))
    }
}

/// What came back through the layers below, as the application gets it.
pub(super) fn arrive<B>(call: Call, returned: &mut Result<http::Response<B>, Error>) {
    let response = match returned {
        Ok(response) => response,
        Err(error) => return error.belongs_to(call),
    };
    rewrite::set_cookies(call.plan(), response.headers_mut());
    if call.plan().route.session.is_some() {
        let endpoint = call.journal().endpoint.clone();
        endpoint.iter().for_each(|it| session::tell(call.plan(), it, response.headers_mut()));
    }
    call.change_response(response.status(), response.headers_mut());
    let flags = call.flags();
    if !flags.is_empty() {
        response.extensions_mut().insert(ResponseFlags { flags, details: "via_upstream" });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use std::collections::BTreeMap;

    use mesh_core::config::{Forward, HttpRetry, RetryConditions, RetryPolicy, WeightedCluster};

    use super::*;
    use crate::{
        layer::LeafLayer,
        testing::{Log, client, cluster, configured, response},
    };

    /// RA3, RA6: alone around any service, requests are split by weight; `Host` keeps the name asked for.
    #[tokio::test]
    async fn a_split_alone_rewrites_the_authority() {
        let seen = Log::new();
        let log = seen.clone();
        let service = tower::service_fn(move |request: http::Request<Body>| {
            assert_eq!(request.headers()["host"], "reviews:9080");
            log.push(request.uri().to_string());
            async { Ok::<_, std::convert::Infallible>(response(200, &[])) }
        });
        let split = RouteLayer::split([("v1:9080", 80), ("v2:9080", 20), ("v3:9080", 0)]).unwrap();
        let stack = (split.seed(1), LeafLayer::new()).layer(service);
        for _ in 0..2_000 {
            let request = http::Request::get("http://reviews:9080/a?b").body(Body::empty()).unwrap();
            tower::ServiceExt::oneshot(stack.clone(), request).await.unwrap();
        }
        let mut counts = BTreeMap::new();
        for uri in seen.all() {
            *counts.entry(uri).or_insert(0) += 1;
        }
        // Binomial(2 000, 0.8): five standard deviations are 90.
        assert!((1_510..=1_690).contains(&counts["http://v1:9080/a?b"]), "{counts:?}");
        assert_eq!(counts.len(), 2);
        assert!(RouteLayer::split([("v1:9080", 0)]).is_err());
        assert!(RouteLayer::split(Vec::<(String, u32)>::new()).is_err());
    }

    /// RA4: every try of a request stays in the cluster that was drawn for it.
    #[tokio::test(start_paused = true)]
    async fn retries_stay_in_the_cluster_drawn() {
        let on = RetryConditions { http: vec![HttpRetry::ServerError], ..Default::default() };
        let of = |name: &str| WeightedCluster { cluster: name.into(), weight: 1, ..Default::default() };
        let forward = Forward {
            clusters: vec![of("v1"), of("v2")],
            retry: Some(RetryPolicy { on, retries: 2, ..Default::default() }),
            ..Default::default()
        };
        let seen = Log::new();
        let log = seen.clone();
        let client = client(&configured([cluster("v1", 1), cluster("v2", 1)], forward), move |picked| {
            log.push(picked.cluster().name().clone());
            async { Ok(response(503, &[])) }
        });
        // Few enough for the retry budget.
        for _ in 0..5 {
            let before = seen.len();
            client.get("http://reviews/").await.unwrap();
            let tries = &seen.all()[before..];
            assert_eq!(tries.len(), 3);
            assert!(tries.iter().all(|name| name == &tries[0]), "{tries:?}");
        }
    }
}
