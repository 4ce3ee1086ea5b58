//! Copies of requests, sent and forgotten: what a new version would answer, without anybody being given its answer.
//!
//! A copy can neither delay nor fail the request it is of. It is made of the request as routing left it, and its body is
//! passed on as the primary reads it: a mirror that falls behind by more than a limit is given up, not waited for. Copies
//! have limits of their own, of how many are under way and of what they hold; what is over them is counted in
//! `mesh_mirrors_dropped_total` and not sent. A copy is tried once, and its spans hang below the request's own trace.
//! Source: Envoy `RequestMirrorPolicy`; the limits are ours (MI3).

use std::{
    fmt,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::Method;
use http_body::Body as HttpBody;
use mesh_core::{
    cluster::Cluster,
    mirror::MirrorPolicy,
    plan::{Plan, RoutePolicy, Target},
    rng::RequestRng,
};
use rand::RngCore;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::timeout_at,
};
use tower_layer::Layer;

use super::{Call, Routed, Stage};
use crate::{body::Body, error::Error, message::Message, source, telemetry::TraceContext};

mod tap;

/// Sends copies to the mirrors that plans name.
#[derive(Clone, Copy, Debug)]
pub struct MirrorLayer {
    most: usize,
    only_safe: bool,
}

impl MirrorLayer {
    /// Copies under way at once, unless said otherwise.
    pub const MOST: usize = 256;
    /// How long a copy may take where its route has no timeout.
    pub const LONGEST: Duration = Duration::from_secs(15);

    /// Copies of all requests.
    pub fn new() -> Self {
        Self { most: Self::MOST, only_safe: false }
    }

    /// At most so many copies under way at once.
    #[must_use]
    pub fn most(self, most: usize) -> Self {
        Self { most, ..self }
    }

    /// Only of requests that change nothing: GET, HEAD, OPTIONS, TRACE.
    #[must_use]
    pub fn only_safe_methods(self) -> Self {
        Self { only_safe: true, ..self }
    }
}

impl Default for MirrorLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Layer<S> for MirrorLayer {
    type Service = Mirrored<S>;

    fn layer(&self, inner: S) -> Mirrored<S> {
        let inner = Arc::new(inner);
        Mirrored { inner, layer: *self, room: Arc::new(Semaphore::new(self.most)), under_way: Mutex::default() }
    }
}

/// A stage whose requests are copied. Dropping it ends the copies under way.
pub struct Mirrored<S> {
    inner: Arc<S>,
    layer: MirrorLayer,
    room: Arc<Semaphore>,
    under_way: Mutex<JoinSet<()>>,
}

impl<S> fmt::Debug for Mirrored<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mirrored").field("layer", &self.layer).finish_non_exhaustive()
    }
}

impl<S, B> Stage<Routed> for Mirrored<S>
where
    S: Stage<Routed, Response = http::Response<B>> + 'static,
    B: HttpBody + Send + 'static,
{
    type Response = http::Response<B>;

    /// Adds nothing to the future of what stands below.
    fn call(&self, mut routed: Routed) -> impl Future<Output = Result<Self::Response, Error>> + Send {
        if !routed.call.copies().is_empty() {
            self.copy(&mut routed);
        }
        self.inner.call(routed)
    }
}

impl<S, B> Mirrored<S>
where
    S: Stage<Routed, Response = http::Response<B>> + 'static,
    B: HttpBody + Send + 'static,
{
    fn copy(&self, routed: &mut Routed) {
        let method = routed.request.method();
        let unsafe_method = self.layer.only_safe && !method.is_safe();
        // What goes nowhere itself is not copied either.
        if method == Method::CONNECT || unsafe_method || routed.call.plan().cluster().is_none() {
            return;
        }
        let call = routed.call.clone();
        let mut copies = Vec::with_capacity(call.copies().len());
        for copy in call.copies() {
            match Arc::clone(&self.room).try_acquire_owned() {
                Ok(permit) => copies.push((copy, permit)),
                Err(_) => metrics::counter!(DROPPED).increment(1),
            }
        }
        let bodies = tap::tapped(routed.request.body_mut(), copies.len());
        for (((policy, cluster), permit), body) in copies.into_iter().zip(bodies) {
            self.send(copy_of(routed, policy, cluster, body), permit);
        }
    }

    fn send(&self, copy: Routed, permit: OwnedSemaphorePermit) {
        let inner = Arc::clone(&self.inner);
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        while under_way.try_join_next().is_some() {}
        under_way.spawn(async move {
            let deadline = copy.deadline;
            let exchange = async {
                if let Ok(response) = inner.call(copy).await {
                    let mut body = pin!(response.into_body());
                    while let Some(Ok(_)) = poll_fn(|cx| Pin::as_mut(&mut body).poll_frame(cx)).await {}
                }
            };
            match deadline {
                Some(deadline) => drop(timeout_at(deadline, exchange).await),
                None => exchange.await,
            }
            drop(permit);
        });
    }
}

/// The request as the mirror gets it.
fn copy_of(routed: &Routed, policy: &MirrorPolicy, cluster: &Arc<Cluster>, mut body: Body) -> Routed {
    let plan = routed.call.plan();
    let mut parts = routed.request.parts().clone();
    policy.apply(plan, &mut parts);
    if let (Some(sampled), Some(trace)) = (policy.trace_sampled, TraceContext::extract(&parts.headers)) {
        TraceContext { sampled, ..trace }.inject(&mut parts.headers);
    }
    let longest = plan.route.timeout.unwrap_or(MirrorLayer::LONGEST);
    let route = RoutePolicy { name: plan.route.name.clone(), ..RoutePolicy::default() };
    let mut copied = Plan::new(Arc::new(route), Target::Cluster(Arc::clone(cluster)));
    copied.is_grpc = plan.is_grpc;
    copied.hash = plan.hash;
    let rng = RequestRng::new(routed.call.journal().rng.next_u64(), 0);
    let progress = body.watch();
    let now = source::instant();
    Routed {
        request: Message::from_parts(parts, body),
        call: Call::new(copied, rng, progress).for_a_copy(),
        deadline: Some(now + longest),
        now,
    }
}

const DROPPED: &str = "mesh_mirrors_dropped_total";

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use bytes::Bytes;
    use futures_util::StreamExt;
    use http_body::Frame;
    use http_body_util::{BodyExt, StreamBody};
    use mesh_core::config::{self, Forward, Mirror, WeightedCluster};
    use tokio::sync::mpsc;

    use crate::{
        Body,
        error::BoxError,
        layer::Picked,
        testing::{Log, client, cluster, configured, response},
    };

    fn mirrored() -> config::Config {
        let main = WeightedCluster { cluster: "reviews".into(), weight: 1, ..Default::default() };
        let mirrors = vec![Mirror { cluster: "copies".into(), ..Default::default() }];
        let forward = Forward { clusters: vec![main], mirrors, ..Default::default() };
        configured([cluster("reviews", 1), cluster("copies", 1)], forward)
    }

    /// MI1: a body that streams is passed on as it streams; the copy has all of it, and the mirror's failure harms nobody.
    #[tokio::test(start_paused = true)]
    async fn a_streamed_body_reaches_both() {
        let bodies = Log::new();
        let log = bodies.clone();
        let client = client(&mirrored(), move |picked: Picked| {
            let log = log.clone();
            async move {
                let name = picked.cluster().name().to_string();
                let body = picked.request.into_body().collect().await.unwrap().to_bytes();
                log.push((name.clone(), body));
                if name == "copies" {
                    Err(crate::Error::msg(crate::ErrorKind::Reset, "gone"))
                } else {
                    Ok(response(200, &["x"]))
                }
            }
        });
        let frames = ["ab", "c"].map(|text| Ok::<_, BoxError>(Frame::data(Bytes::from_static(text.as_bytes()))));
        let body = StreamBody::new(futures_util::stream::iter(frames));
        let answer = client.request(http::Request::post("http://reviews/").body(body).unwrap()).await.unwrap();
        assert_eq!(answer.status(), 200);
        while bodies.len() < 2 {
            tokio::task::yield_now().await;
        }
        let mut all = bodies.all();
        all.sort();
        let wanted = ["copies", "reviews"].map(|name| (name.to_owned(), Bytes::from_static(b"abc")));
        assert_eq!(all, wanted);
    }

    /// MI1, MI3: a mirror that reads nothing delays nothing: it is given up when it holds too much, and the rest goes on.
    #[tokio::test(start_paused = true)]
    async fn a_mirror_that_hangs_holds_nobody_up() {
        let client = client(&mirrored(), move |picked: Picked| async move {
            if &**picked.cluster().name() == "copies" {
                std::future::pending::<()>().await;
            }
            let body = picked.request.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body.len(), 64 * 65_536);
            Ok(response(200, &[]))
        });
        let chunk = Bytes::from(vec![b'a'; 65_536]);
        let frames = futures_util::stream::iter((0..64).map(move |_| Ok::<_, BoxError>(Frame::data(chunk.clone()))));
        let request = http::Request::put("http://reviews/").body(StreamBody::new(frames)).unwrap();
        let answer = tokio::time::timeout(std::time::Duration::from_secs(1), client.request(request)).await.unwrap();
        assert_eq!(answer.unwrap().status(), 200);
    }

    /// MI1: a request that is given up half-way is given up at the mirror, not ended there as though it were whole.
    #[tokio::test(start_paused = true)]
    async fn half_a_body_is_not_a_whole_one() {
        let ends = Log::new();
        let log = ends.clone();
        let client = client(&mirrored(), move |picked: Picked| {
            let log = log.clone();
            async move {
                let is_copy = &**picked.cluster().name() == "copies";
                let ended = picked.request.into_body().collect().await;
                if is_copy {
                    log.push(ended.is_ok());
                }
                Ok(response(200, &[]))
            }
        });
        let (sender, receiver) = mpsc::unbounded_channel();
        let frames = futures_util::stream::unfold(receiver, |mut receiver| async {
            receiver.recv().await.map(|frame| (frame, receiver))
        });
        let body = StreamBody::new(frames.boxed());
        let request = client.request(http::Request::put("http://reviews/").body(body).unwrap());
        sender.send(Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"half")))).unwrap();
        let waited = tokio::time::timeout(std::time::Duration::from_secs(1), request).await;
        assert!(waited.is_err(), "its body is not over");
        while ends.len() == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(ends.all(), [false]);
    }

    /// MI3: no more copies at once than there is room for; the requests themselves are served.
    #[tokio::test(start_paused = true)]
    async fn copies_have_a_limit_of_their_own() {
        use tower_layer::Layer;

        use crate::layer::{LeafLayer, MirrorLayer, Stage};
        let seen = Log::new();
        let log = seen.clone();
        let service = tower::service_fn(move |_: http::Request<Body>| {
            log.push(());
            async { std::future::pending::<Result<crate::testing::TestResponse, std::io::Error>>().await }
        });
        let stack = MirrorLayer::new().most(2).layer(LeafLayer::new().layer(service));
        let cluster = crate::testing::compiled(cluster("copies", 1));
        for _ in 0..5 {
            let plan = mesh_core::plan::Plan::new(
                std::sync::Arc::default(),
                mesh_core::plan::Target::Cluster(std::sync::Arc::clone(&cluster)),
            );
            let (body, progress) = (Body::empty(), crate::body::Progress::default());
            let call = super::Call::new(plan, mesh_core::rng::RequestRng::new(1, 1), progress)
                .copied_to(vec![(std::sync::Arc::default(), std::sync::Arc::clone(&cluster))]);
            let request = crate::message::Message::from(http::Request::get("http://a/").body(body).unwrap());
            let routed = super::Routed { request, call, deadline: None, now: crate::source::instant() };
            let waiting = tokio::time::timeout(std::time::Duration::from_millis(1), stack.call(routed));
            assert!(waiting.await.is_err());
        }
        assert_eq!(seen.len(), 5 + 2, "five requests, two copies");
    }
}
