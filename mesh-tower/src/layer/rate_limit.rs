//! How many requests leave: a request over its route's rate limit is answered here, with 429 and flag `RL`.
//!
//! It stands above faults, timeouts and retries: what is refused costs nothing further down, blames no endpoint and is not
//! tried again. The buckets are core's and live as long as the configuration that made them. Source: Envoy
//! `envoy.filters.http.local_ratelimit`.

use mesh_core::{
    rate_limit::{Counted, Limits},
    request::RequestView,
};
use tower_layer::Layer;

use super::{Routed, Stage};
use crate::{context, error::Error, source::Source};

/// Counts requests as their plans say, and refuses those over a limit.
#[derive(Clone, Debug)]
pub struct RateLimitLayer {
    source: Source,
}

impl RateLimitLayer {
    /// The layer; limits are in each request's plan.
    pub fn new() -> Self {
        Self { source: Source::system() }
    }

    /// With a clock and a seed of its own: for simulations and replays.
    #[must_use]
    pub fn source(mut self, source: Source) -> Self {
        self.source = source;
        self
    }
}

impl Default for RateLimitLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Layer<S> for RateLimitLayer {
    type Service = RateLimited<S>;

    fn layer(&self, inner: S) -> RateLimited<S> {
        RateLimited { inner, source: self.source.clone() }
    }
}

/// A stage that is reached by so many requests.
#[derive(Clone, Debug)]
pub struct RateLimited<S> {
    inner: S,
    source: Source,
}

impl<S: Stage<Routed>> Stage<Routed> for RateLimited<S> {
    type Response = S::Response;

    async fn call(&self, routed: Routed) -> Result<S::Response, Error> {
        if let Some(limits) = &routed.call.plan().route.limits {
            self.count(limits, &routed)?;
        }
        self.inner.call(routed).await
    }
}

impl<S> RateLimited<S> {
    fn count(&self, limits: &Limits, routed: &Routed) -> Result<(), Error> {
        let mut view = RequestView::of(routed.request.parts(), None);
        view.source = context::current().and_then(|context| context.source);
        let cluster = routed.call.plan().cluster().map_or("", |cluster| cluster.name());
        let counted = Counted { view, cluster, peer: None };
        let limited = limits.count(&counted, self.source.now(), &mut routed.call.journal().rng);
        limited.map_or(Ok(()), |limited| Err(Error::rate_limited(limited.status, limited.grpc)))
    }
}
