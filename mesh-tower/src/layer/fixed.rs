//! A policy given in code, in front of layers that are used alone: it turns a raw request into a routed one just as
//! routing does, so no layer needs a second form for raw requests.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Buf;
use http_body::Body as HttpBody;
use mesh_core::{
    cluster::Cluster,
    config::Fault,
    fault::Faults,
    plan::{Plan, RoutePolicy, Target},
    request::{RequestView, is_grpc},
    rewrite,
};
use tower_layer::Layer;
use tower_service::Service;

use super::{
    Call, Routed, Stage,
    route::{Departure, arrive},
};
use crate::{
    body::Body,
    error::{BoxError, Error},
    message::Message,
    source::Source,
};

/// Gives every request the same policy.
///
/// ```
/// use std::time::Duration;
/// use mesh_tower::{layer::{Fixed, LeafLayer, TimeoutLayer}, plan::RoutePolicy};
/// use tower_layer::Layer;
///
/// # fn around<S>(client: S) -> impl Sized {
/// let policy = RoutePolicy { timeout: Some(Duration::from_secs(1)), ..RoutePolicy::default() };
/// (Fixed::new(policy), TimeoutLayer::new(), LeafLayer::new()).layer(client)
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Fixed {
    plan: Plan,
    faults: Option<Arc<Faults>>,
    source: Source,
}

impl Fixed {
    /// That policy; the service below is the only destination.
    pub fn new(policy: RoutePolicy) -> Self {
        Self { plan: Plan::new(Arc::new(policy), Target::Inbound), faults: None, source: Source::system() }
    }

    /// Requests go to endpoints of this cluster: what [`BalanceLayer`](super::BalanceLayer) picks from.
    #[must_use]
    pub fn cluster(mut self, cluster: Arc<Cluster>) -> Self {
        self.plan.target = Target::Cluster(cluster);
        self
    }

    /// These faults are drawn for: what [`FaultLayer`](super::FaultLayer) injects.
    #[must_use]
    pub fn fault(mut self, fault: Fault) -> Self {
        self.faults = Faults::new(&fault).map(Arc::new);
        self
    }

    /// Random choices are those of this seed, request by request: for tests and replays.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.source = Source::seeded(seed);
        self
    }
}

impl<S> Layer<S> for Fixed {
    type Service = FixedRoute<S>;

    fn layer(&self, inner: S) -> FixedRoute<S> {
        FixedRoute { shared: Arc::new(Shared { inner, fixed: self.clone() }) }
    }
}

/// A service of one policy; clones share it.
#[derive(Debug)]
pub struct FixedRoute<S> {
    shared: Arc<Shared<S>>,
}

#[derive(Debug)]
struct Shared<S> {
    inner: S,
    fixed: Fixed,
}

impl<S, B> Shared<S>
where
    S: Stage<Routed, Response = http::Response<B>>,
{
    async fn call(&self, request: Message) -> Result<http::Response<B>, Error> {
        let mut departure = Departure::of(request);
        let mut rng = self.fixed.source.next_request();
        let mut plan = self.fixed.plan.clone();
        plan.is_grpc = is_grpc(departure.message.headers());
        if let Some(faults) = &self.fixed.faults {
            let cluster = plan.cluster().map_or("", |cluster| cluster.name());
            plan.fault = faults.draw(&RequestView::of(departure.message.parts(), None), cluster, &mut rng);
        }
        rewrite::apply(&plan, departure.source, departure.message.parts_mut());
        let request = rewrite::remembered(&plan, departure.message.parts());
        let mut call = Call::new(plan, rng, std::mem::take(&mut departure.progress));
        if request.is_some() {
            call = call.remembering(request);
        }
        let mut returned = self.inner.call(departure.leave(&call)).await;
        arrive(call, &mut returned);
        returned
    }
}

impl<S> Clone for FixedRoute<S> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<S, B, R> Service<http::Request<B>> for FixedRoute<S>
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
        let shared = Arc::clone(&self.shared);
        let request = request.map(Body::new).into();
        Box::pin(async move { shared.call(request).await })
    }
}
