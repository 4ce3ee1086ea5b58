//! How many requests leave: a request over its route's rate limit is answered here, with 429 and flag `RL`.
//!
//! It stands above faults, timeouts and retries: what is refused costs nothing further down, blames no endpoint and is not
//! tried again. The buckets of this process are core's and live as long as the configuration that made them. Then the
//! services are asked that count for the whole mesh, each once, over the layers below and within its own limit of time;
//! without an answer the request passes or not as configured. Sources: Envoy `envoy.filters.http.local_ratelimit`,
//! `envoy.filters.http.ratelimit`.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use mesh_core::{
    plan::{Plan, RoutePolicy, Target},
    rate_limit::{Counted, GlobalLimit, GlobalLimits, LimitAnswer, LimitCodec, LimitQuestion, Limits},
    request::RequestView,
};
use tokio::time::{Instant, timeout};
use tower_layer::Layer;

use super::{Call, Routed, Stage};
use crate::{
    body::Body,
    context,
    error::{BoxError, Error},
    limits::{METHOD, tell_result},
    live::Live,
    message::Message,
    side::{SideError, grpc_answer, grpc_request},
    source::{self, Source},
};

/// Counts requests as their plans say, and refuses those over a limit.
#[derive(Clone, Debug)]
pub struct RateLimitLayer {
    source: Source,
    asking: Option<Asking>,
}

/// Where services are found that count, and how they are spoken to.
#[derive(Clone, Debug)]
struct Asking {
    live: Arc<Live>,
    codec: Option<LimitCodec>,
}

impl RateLimitLayer {
    /// The layer; limits are in each request's plan. Services that count for the whole mesh are not asked, which is as if
    /// they did not answer.
    pub fn new() -> Self {
        Self { source: Source::system(), asking: None }
    }

    /// With a clock and a seed of its own: for simulations and replays.
    #[must_use]
    pub fn source(mut self, source: Source) -> Self {
        self.source = source;
        self
    }

    /// Services are those of this configuration, and are spoken to like this.
    #[must_use]
    pub(crate) fn asking(mut self, live: Arc<Live>, codec: Option<LimitCodec>) -> Self {
        self.asking = Some(Asking { live, codec });
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
        RateLimited { inner, layer: self.clone() }
    }
}

/// A stage that is reached by so many requests.
#[derive(Clone, Debug)]
pub struct RateLimited<S> {
    inner: S,
    layer: RateLimitLayer,
}

impl<S, B> Stage<Routed> for RateLimited<S>
where
    S: Stage<Routed, Response = http::Response<B>>,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send,
{
    type Response = http::Response<B>;

    async fn call(&self, routed: Routed) -> Result<Self::Response, Error> {
        let route = &routed.call.plan().route;
        if let Some(limits) = &route.limits {
            self.count(limits, &routed)?;
        }
        if let Some(services) = route.global_limits.clone() {
            // In a box, so that requests nobody is asked about do not carry its room along.
            return Box::pin(self.ask(services, routed)).await;
        }
        self.inner.call(routed).await
    }
}

impl<S> RateLimited<S> {
    fn count(&self, limits: &Limits, routed: &Routed) -> Result<(), Error> {
        let limited = self
            .counted(routed, |counted| limits.count(counted, self.layer.source.now(), &mut routed.call.journal().rng));
        limited.map_or(Ok(()), |limited| Err(Error::rate_limited(limited.status, limited.grpc)))
    }

    /// With what the request is counted by.
    fn counted<T>(&self, routed: &Routed, count: impl FnOnce(&Counted<'_>) -> T) -> T {
        let mut view = RequestView::of(routed.request.parts(), None);
        view.source = context::current().and_then(|context| context.source);
        let cluster = routed.call.plan().cluster().map_or("", |cluster| cluster.name());
        let snapshot = self.layer.asking.as_ref().and_then(|asking| asking.live.load());
        let own = snapshot.as_ref().map_or("", |snapshot| snapshot.own_cluster());
        count(&Counted { view, own, cluster, peer: None })
    }
}

impl<S, B> RateLimited<S>
where
    S: Stage<Routed, Response = http::Response<B>>,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send,
{
    /// Asks each service in turn, and sends the request if none of them minds.
    async fn ask(&self, services: GlobalLimits, mut routed: Routed) -> Result<http::Response<B>, Error> {
        let mut verdicts = Vec::new();
        for service in services.iter() {
            let question = self.counted(&routed, |counted| service.question(counted, &mut routed.call.journal().rng));
            let Some(question) = question else { continue };
            let answer = self.answer(service, &question, routed.deadline).await;
            let failed = answer.is_none();
            let verdict = service.judge(answer, &mut routed.call.journal().rng);
            tell_result(&verdict, failed);
            for (name, value) in &verdict.request_headers {
                routed.request.headers_mut().append(name, value.clone());
            }
            let refused = verdict.refused;
            verdicts.push(verdict);
            if let Some(limited) = refused {
                return Err(Error::over_limit(limited, verdicts));
            }
            routed.now = source::instant();
        }
        verdicts.retain(|verdict| !verdict.is_silent());
        match self.inner.call(routed).await {
            Ok(mut response) => {
                verdicts.iter().for_each(|verdict| verdict.tell(response.headers_mut()));
                Ok(response)
            }
            Err(error) => Err(error.telling(verdicts)),
        }
    }

    /// What a service says; `None` when it could not be asked.
    async fn answer(
        &self,
        service: &GlobalLimit,
        question: &LimitQuestion,
        deadline: Option<Instant>,
    ) -> Option<LimitAnswer> {
        let asking = self.layer.asking.as_ref()?;
        let codec = asking.codec?;
        let said = self.say(asking, service, &(codec.encode)(question), deadline).await;
        let read = said.map_err(|error| error.to_string()).and_then(|message| (codec.decode)(&message));
        read.inspect_err(|why| {
            let cluster = &*service.config().cluster;
            tracing::debug!(target: "mesh::rate_limit", cluster, %why, "no answer of the rate limit service");
        })
        .ok()
    }

    async fn say(
        &self,
        asking: &Asking,
        service: &GlobalLimit,
        message: &[u8],
        deadline: Option<Instant>,
    ) -> Result<Bytes, SideError> {
        let config = service.config();
        let cluster = asking.live.load().and_then(|snapshot| snapshot.cluster(&config.cluster).cloned());
        let cluster = cluster.ok_or(SideError::NoCluster)?;
        let authority = if config.authority.is_empty() { &*config.cluster } else { config.authority.as_str() };
        let (parts, body) = grpc_request(authority, METHOD, message)?.into_parts();
        let mut body = Body::new(Full::new(body));
        let progress = body.watch();
        let policy = RoutePolicy { timeout: Some(config.timeout), ..RoutePolicy::default() };
        let mut plan = Plan::new(Arc::new(policy), Target::Cluster(cluster));
        plan.is_grpc = true;
        let now = source::instant();
        let until = now + config.timeout;
        let call = Call::new(plan, self.layer.source.next_request(), progress).for_a_copy();
        let request = Routed {
            request: Message::from_parts(parts, body),
            call,
            deadline: Some(deadline.map_or(until, |deadline| deadline.min(until))),
            now,
        };
        let asked = async {
            let answer = self.inner.call(request).await.map_err(|error| SideError::Unreachable(error.to_string()))?;
            grpc_answer(answer).await
        };
        match timeout(config.timeout, asked).await {
            Ok(answered) => answered,
            Err(_) => Err(SideError::Unreachable(format!("no answer within {:?}", config.timeout))),
        }
    }
}
