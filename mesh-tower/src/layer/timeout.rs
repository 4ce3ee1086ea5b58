//! How long a request may take in all: from the end of the request's body to the end of the response's, every try
//! included (TO1); and never longer than the caller's own deadline or the route's limit of streams allows (TO2, TO4).
//!
//! The clock of the route's timeout starts when the caller's body has been read to its end, as Envoy counts, so an
//! upload or a gRPC stream is not cut off while its caller still sends. The other two start at once. A stream may be
//! limited as well in how long it stands still (TO7). The timer of a response's body is only set when the body makes its
//! reader wait.

use std::{
    future::Future,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};
use tower_layer::Layer;

use super::{Call, Routed, Stage};
use crate::{
    body::ResponseBody,
    error::{Error, ErrorKind},
    source,
};

/// Ends what takes too long, with 504 and flag `UT`.
#[derive(Clone, Copy, Debug, Default)]
pub struct TimeoutLayer(());

impl TimeoutLayer {
    /// The layer; the limits are in each request's plan.
    pub fn new() -> Self {
        Self(())
    }
}

impl<S> Layer<S> for TimeoutLayer {
    type Service = Timeout<S>;

    fn layer(&self, inner: S) -> Timeout<S> {
        Timeout { inner }
    }
}

/// A stage that ends in time.
#[derive(Clone, Debug)]
pub struct Timeout<S> {
    inner: S,
}

impl<S, B> Stage<Routed> for Timeout<S>
where
    S: Stage<Routed, Response = http::Response<ResponseBody<B>>>,
    B: Send,
{
    type Response = S::Response;

    async fn call(&self, mut routed: Routed) -> Result<Self::Response, Error> {
        let now = routed.now;
        let limit = Limit::of(&mut routed, now);
        if let Some((at, kind)) = limit.at {
            if at <= now && !routed.call.is_refused() {
                return Err(Error::of(kind));
            }
            routed.deadline = Some(at);
        }
        // The same timer for both halves: what it knows of the limit, and that it is set, goes on with the body.
        let mut timer = Timer::new(limit);
        let mut answer = pin!(self.inner.call(routed));
        let mut response = std::future::poll_fn(|cx| match answer.as_mut().poll(cx) {
            Poll::Ready(answer) => Poll::Ready(answer),
            Poll::Pending => timer.poll_expired(cx).map(|kind| Err(Error::of(kind))),
        })
        .await?;
        if let Some(watchers) = response.body_mut().watchers() {
            timer.passed();
            timer.last_try();
            watchers.timer = timer.if_any();
        }
        Ok(response)
    }
}

/// When a request has to be over, as far as that is known.
#[derive(Clone, Debug)]
struct Limit {
    /// The earliest of the limits whose clock runs, and what it is called.
    at: Option<(Instant, ErrorKind)>,
    /// A limit whose clock starts when the request has been read.
    after_request: Option<Duration>,
    /// How long nothing may pass in either direction.
    idle: Option<Duration>,
    /// The same of each try, by which the last one goes on once its headers are here (TO6). Envoy `per_try_idle_timeout`.
    try_idle: Option<Duration>,
    /// Of what, where one of these two is set.
    call: Option<Call>,
}

impl Limit {
    fn of(routed: &mut Routed, now: Instant) -> Self {
        let call = &routed.call;
        let (plan, is_grpc) = (call.plan(), call.plan().is_grpc);
        let route = &plan.route;
        let timeout = match own_timeout(routed.request.headers_mut()) {
            Some(own) => (own > Duration::ZERO).then_some(own),
            None => route.timeout_of(is_grpc),
        };
        let stream = route.stream_limit_of(is_grpc).map(|most| (now + most, ErrorKind::Duration));
        let caller = routed.deadline.map(|deadline| (deadline, ErrorKind::Deadline));
        let at = [stream, caller].into_iter().flatten().min_by_key(|(at, _)| *at);
        let try_idle = route.retry.as_ref().and_then(|retry| retry.per_try_idle_timeout);
        let mut limit = Self { at, after_request: None, idle: route.idle_timeout, try_idle, call: None };
        match timeout {
            Some(timeout) if call.progress().is_ended() => limit.start(timeout, now),
            timeout => limit.after_request = timeout,
        }
        if limit.after_request.is_some() || limit.idle.is_some() || limit.try_idle.is_some() {
            limit.call = Some(call.clone());
        }
        // A stream's own deadline would end it while its caller still sends: gRPC servers count from its beginning. Where
        // the route limits gRPC calls by name, that is meant. Envoy tells `x-envoy-expected-rq-timeout-ms` always, and
        // `grpc-timeout` in that case.
        if !is_grpc || route.max_grpc_timeout.is_some() {
            limit.after_request.iter().for_each(|timeout| call.journal().allowed = Some(*timeout));
        }
        limit
    }

    fn start(&mut self, timeout: Duration, now: Instant) {
        let route = (now + timeout, ErrorKind::Timeout);
        self.at = Some(self.at.map_or(route, |other| if other.0 <= route.0 { other } else { route }));
    }
}

/// The limit a request asks for itself, taken off it (RT19). Zero is no limit.
fn own_timeout(headers: &mut http::HeaderMap) -> Option<Duration> {
    const NAME: http::HeaderName = http::HeaderName::from_static("x-envoy-upstream-rq-timeout-ms");
    // Names are looked at before one is looked up: hashing costs more.
    headers.keys().any(|name| *name == NAME).then_some(())?;
    headers.remove(NAME)?.to_str().ok()?.parse().ok().map(Duration::from_millis)
}

/// A limit and the timer that tells when it is reached, set when first waited for.
pub(super) struct Timer {
    limit: Limit,
    /// Boxed, so that bodies stay `Unpin` and those that never make anybody wait stay small.
    sleep: Option<Pin<Box<Sleep>>>,
    /// Since when nothing came back, how much had passed the other way by then, and the timer of that.
    still: Option<(u64, Pin<Box<Sleep>>)>,
}

impl Timer {
    fn new(limit: Limit) -> Self {
        Self { limit, sleep: None, still: None }
    }

    /// Itself, if there is any limit.
    fn if_any(self) -> Option<Self> {
        let Limit { at, after_request, idle, .. } = &self.limit;
        (at.is_some() || after_request.is_some() || idle.is_some()).then_some(self)
    }

    /// Something came back.
    pub(super) fn passed(&mut self) {
        self.still = None;
    }

    /// No other try follows: what limits each limits the rest of the response.
    fn last_try(&mut self) {
        let Limit { idle, try_idle, .. } = &mut self.limit;
        *idle = idle.iter().chain(try_idle.iter()).min().copied();
    }

    pub(super) fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<ErrorKind> {
        let call = self.limit.call.as_ref();
        let ended = |_: &mut Duration| call.is_some_and(|call| call.progress().poll_ended(cx).is_ready());
        if let Some(timeout) = self.limit.after_request.take_if(ended) {
            self.limit.start(timeout, source::instant());
            self.sleep = None;
        }
        if let Some((at, kind)) = self.limit.at {
            let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(at)));
            if sleep.as_mut().poll(cx).is_ready() {
                // Those below that know of no deadline, since it was not set when they began, learn here why they end.
                if let (ErrorKind::Timeout, Some(call)) = (kind, &self.limit.call) {
                    call.journal().ran_out = true;
                }
                return Poll::Ready(kind);
            }
        }
        self.poll_still(cx)
    }

    /// Bytes of the request that passed meanwhile are noticed when the time is up, so the limit is reached between one and
    /// two such times after the last of them; exactly after the last of the response.
    fn poll_still(&mut self, cx: &mut Context<'_>) -> Poll<ErrorKind> {
        let (Some(idle), Some(call)) = (self.limit.idle, &self.limit.call) else { return Poll::Pending };
        let sleeping = || Box::pin(sleep_until(source::instant() + idle));
        let (before, sleep) = self.still.get_or_insert_with(|| (call.progress().bytes(), sleeping()));
        while sleep.as_mut().poll(cx).is_ready() {
            let passed = call.progress().bytes();
            if passed == *before {
                return Poll::Ready(ErrorKind::Idle);
            }
            (*before, *sleep) = (passed, sleeping());
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use bytes::Bytes;
    use http_body::Frame;
    use http_body_util::{BodyExt, StreamBody};
    use mesh_core::{
        config::{Forward, HttpRetry, OutlierDetection, RetryConditions, RetryPolicy},
        outcome::Flags,
    };
    use tokio::time::sleep;

    use super::*;
    use crate::{
        Body, BoxError, Context as Served, HttpClient, ResponseFlags,
        layer::Picked,
        testing::{Log, Scripted, TestResponse, client, cluster, configured, endless, grpc_response, response},
    };

    /// TO1: the route's timeout spans all tries, and answers 504.
    #[tokio::test(start_paused = true)]
    async fn the_timeout_spans_all_tries() {
        let on = RetryConditions { http: vec![HttpRetry::ServerError], ..Default::default() };
        let retry = Some(RetryPolicy { on, retries: 100, ..Default::default() });
        let client = limited(Forward { retry, ..two_seconds() }, |_| async {
            sleep(Duration::from_millis(300)).await;
            Ok(response(503, &[]))
        });
        let start = Instant::now();
        let answer = client.get("http://reviews/").await.unwrap();
        assert_eq!((answer.status().as_u16(), start.elapsed()), (504, Duration::from_secs(2)));
        assert_eq!(answer.extensions().get::<ResponseFlags>().unwrap().flags, Flags::UT);
    }

    /// TO1: it ends with the response's last byte, not with its headers.
    #[tokio::test(start_paused = true)]
    async fn the_timeout_covers_the_body() {
        let client = limited(two_seconds(), |_| async { Ok(endless(200)) });
        let start = Instant::now();
        let answer = client.get("http://reviews/").await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO);
        let error = answer.into_body().collect().await.unwrap_err();
        assert_eq!((error.kind(), start.elapsed()), (ErrorKind::Timeout, Duration::from_secs(2)));
    }

    /// TO1: it begins when the request has been read to its end.
    #[tokio::test(start_paused = true)]
    async fn the_timeout_begins_after_the_request() {
        let client = limited(two_seconds(), |picked: Picked| async {
            let _ = picked.request.into_body().collect().await;
            std::future::pending::<Result<TestResponse, Error>>().await
        });
        let slow = futures_util::stream::once(async {
            sleep(Duration::from_secs(30)).await;
            Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"late")))
        });
        let request = http::Request::put("http://reviews/").body(StreamBody::new(Box::pin(slow))).unwrap();
        let start = Instant::now();
        assert_eq!(client.request(request).await.unwrap().status(), 504);
        assert_eq!(start.elapsed(), Duration::from_secs(32));
    }

    /// TO2: a limit of streams counts from the beginning, whatever the caller still sends.
    #[tokio::test(start_paused = true)]
    async fn a_stream_has_a_limit_of_its_own() {
        let forward = Forward { max_stream_duration: Some(Duration::from_secs(5)), ..two_seconds() };
        let client = limited(forward, |picked: Picked| {
            // As a connection does that goes on reading the request.
            std::mem::forget(picked.request);
            async { Ok(endless(200)) }
        });
        let never = StreamBody::new(futures_util::stream::pending::<Result<Frame<Bytes>, BoxError>>());
        let start = Instant::now();
        let answer = client.request(http::Request::put("http://reviews/").body(never).unwrap()).await.unwrap();
        let error = answer.into_body().collect().await.unwrap_err();
        assert_eq!((error.flags(), start.elapsed()), (Flags::DT, Duration::from_secs(5)));
    }

    /// TO7: a stream that stands still is ended; a byte in either direction lets it go on.
    #[tokio::test(start_paused = true)]
    async fn a_stream_that_stands_still_is_ended() {
        let idle = || Forward { idle_timeout: Some(Duration::from_secs(5)), ..Forward::default() };
        let client = limited(idle(), |_| std::future::pending::<Result<TestResponse, Error>>());
        let start = Instant::now();
        let answer = client.get("http://reviews/").await.unwrap();
        assert_eq!((answer.status().as_u16(), start.elapsed()), (504, Duration::from_secs(5)));
        assert_eq!(answer.extensions().get::<ResponseFlags>().unwrap().flags, Flags::SI);

        // Ten chunks of the request, three seconds apart, then nothing.
        let client = limited(idle(), |picked: Picked| async {
            let _ = picked.request.into_body().collect().await;
            std::future::pending::<Result<TestResponse, Error>>().await
        });
        let slow = futures_util::stream::unfold(0, |n| async move {
            sleep(Duration::from_secs(3)).await;
            (n < 10).then(|| (Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"x"))), n + 1))
        });
        let start = Instant::now();
        let request = http::Request::put("http://reviews/").body(StreamBody::new(Box::pin(slow))).unwrap();
        assert_eq!(client.request(request).await.unwrap().status(), 504);
        let elapsed = start.elapsed().as_secs();
        assert!((35..=40).contains(&elapsed), "{elapsed}");

        let client = limited(idle(), |_| async { Ok(endless(200)) });
        let start = Instant::now();
        let body = client.get("http://reviews/").await.unwrap().into_body();
        assert_eq!(body.collect().await.unwrap_err().kind(), ErrorKind::Idle);
        assert_eq!(start.elapsed(), Duration::from_secs(5));
    }

    /// TO6: the limit of a try that stands still goes on with the response of the try that is the last.
    #[tokio::test(start_paused = true)]
    async fn a_try_that_stands_still_is_ended_in_its_response() {
        let idle = Some(Duration::from_secs(5));
        let retry = RetryPolicy { per_try_idle_timeout: idle, ..RetryPolicy::default() };
        let client = limited(Forward { retry: Some(retry), ..Forward::default() }, |_| async { Ok(endless(200)) });
        let start = Instant::now();
        let body = client.get("http://reviews/").await.unwrap().into_body();
        assert_eq!(body.collect().await.unwrap_err().kind(), ErrorKind::Idle);
        assert_eq!(start.elapsed(), Duration::from_secs(5));
    }

    /// RT19: a request may ask for a limit of its own, shorter or longer than its route's, or for none.
    #[tokio::test(start_paused = true)]
    async fn a_request_asks_for_its_own_limit() {
        for (own, expected) in [("500", 500), ("3000", 3_000), ("0", 60_000), ("soon", 2_000)] {
            let client = limited(two_seconds(), |picked: Picked| async move {
                assert!(!picked.request.headers().contains_key("x-envoy-upstream-rq-timeout-ms"));
                sleep(Duration::from_secs(60)).await;
                Ok(response(200, &[]))
            });
            let request = http::Request::get("http://reviews/").header("x-envoy-upstream-rq-timeout-ms", own);
            let start = Instant::now();
            client.request(request.body(Body::empty()).unwrap()).await.unwrap();
            assert_eq!(start.elapsed(), Duration::from_millis(expected), "{own}");
        }
    }

    /// TO3, TO4, C11: the caller's deadline and `grpc-timeout` shorten the route's timeout and never lengthen it.
    #[tokio::test(start_paused = true)]
    async fn the_earliest_limit_counts() {
        for (inherited, own, expected) in [(1_000, None, 1_000), (9_000, None, 2_000), (9_000, Some("500m"), 500)] {
            let client = limited(two_seconds(), |_| std::future::pending::<Result<TestResponse, Error>>());
            let mut request = http::Request::post("http://reviews/a.B/C").body(Body::from("x")).unwrap();
            if let Some(own) = own {
                request.headers_mut().insert("grpc-timeout", own.parse().unwrap());
            }
            let start = Instant::now();
            let served = Served { deadline: Some(start + Duration::from_millis(inherited)), ..Served::default() };
            let grpc = client.grpc("reviews").unwrap();
            let answer = served.scope(tower::ServiceExt::oneshot(grpc, request)).await.unwrap();
            assert_eq!(answer.headers()["grpc-status"], "4");
            assert_eq!(start.elapsed(), Duration::from_millis(expected));
        }
        let client = limited(two_seconds(), |_| async { panic!("its time is over") });
        let served = Served { deadline: Some(Instant::now()), ..Served::default() };
        assert_eq!(served.scope(client.get("http://reviews/")).await.unwrap().status(), 504);
    }

    /// TO1, OD3: so is one that lets the time of a streamed request run out, before it answers or after; one whose caller
    /// still sends is not.
    #[tokio::test(start_paused = true)]
    async fn running_out_of_time_is_the_endpoints_failure_of_streams_too() {
        let streamed = |wait: Duration| {
            let chunks = futures_util::stream::unfold(0, move |n| async move {
                sleep(wait).await;
                (n < 2).then(|| (Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"x"))), n + 1))
            });
            let mut request =
                http::Request::post("http://reviews/a.B/C").body(StreamBody::new(Box::pin(chunks))).unwrap();
            request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
            request
        };
        for answers in [false, true] {
            let client = limited(two_seconds(), move |picked: Picked| async move {
                let _ = picked.request.into_body().collect().await;
                if !answers {
                    std::future::pending::<()>().await;
                }
                Ok(endless(200))
            });
            let ejected = || client.live().load().unwrap().cluster("reviews").unwrap().endpoints()[0].is_ejected();
            let slow = client.request(streamed(Duration::from_secs(60)));
            assert!(tokio::time::timeout(Duration::from_secs(30), slow).await.is_err());
            for _ in 0..2 {
                assert!(!ejected());
                let answer = client.request(streamed(Duration::from_millis(1))).await.unwrap();
                let _ = answer.into_body().collect().await;
            }
            assert!(ejected(), "{answers}");
        }
    }

    /// TO3: a streamed request tells its route's timeout as well, where that does not end streams; one that is at hand is
    /// no stream.
    #[tokio::test(start_paused = true)]
    async fn streams_tell_their_limit() {
        let told = Log::new();
        let told_of = async |forward: Forward, is_grpc: bool, at_hand: bool| {
            let log = told.clone();
            let client = limited(forward, move |picked: Picked| {
                let name = if is_grpc { "grpc-timeout" } else { "x-envoy-expected-rq-timeout-ms" };
                log.push(picked.request.headers().get(name).map(|it| it.to_str().unwrap().to_owned()));
                async { Ok(grpc_response(&[], 0)) }
            });
            let chunk = futures_util::stream::once(async move {
                if !at_hand {
                    sleep(Duration::from_millis(1)).await;
                }
                Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"x")))
            });
            let mut request =
                http::Request::post("http://reviews/a.B/C").body(StreamBody::new(Box::pin(chunk))).unwrap();
            if is_grpc {
                request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
            }
            client.request(request).await.unwrap();
            told.all().pop().unwrap()
        };
        let by_name = || Forward { max_grpc_timeout: Some(Duration::from_secs(1)), ..two_seconds() };
        let text = |it: &str| Some(it.to_owned());
        assert_eq!(told_of(two_seconds(), false, false).await, text("2000"));
        assert_eq!(told_of(two_seconds(), false, true).await, text("2000"));
        assert_eq!(told_of(two_seconds(), true, true).await, text("2000000u"));
        assert_eq!(told_of(two_seconds(), true, false).await, None);
        assert_eq!(told_of(by_name(), true, false).await, text("1000000u"));
    }

    /// TO1: an endpoint that lets time run out is blamed, and the caller of a gRPC stream gets a status.
    #[tokio::test(start_paused = true)]
    async fn running_out_of_time_is_the_endpoints_failure() {
        let client = limited(two_seconds(), |_| std::future::pending::<Result<TestResponse, Error>>());
        for _ in 0..2 {
            client.get("http://reviews/").await.unwrap();
        }
        let snapshot = client.live().load().unwrap();
        assert!(snapshot.cluster("reviews").unwrap().endpoints()[0].is_ejected());
        let client = limited(two_seconds(), |_| async { Ok(grpc_response(&[], 0)) });
        let request = http::Request::post("/a.B/C").body(Body::from("x")).unwrap();
        let answer = tower::ServiceExt::oneshot(client.grpc("reviews").unwrap(), request).await.unwrap();
        assert_eq!(answer.into_body().collect().await.unwrap().trailers().unwrap()["grpc-status"], "0");
    }

    fn two_seconds() -> Forward {
        Forward { timeout: Some(Duration::from_secs(2)), ..Forward::default() }
    }

    fn limited<F, R>(forward: Forward, leaf: F) -> HttpClient<Scripted<F>>
    where
        F: Fn(Picked) -> R + Send + Sync,
        R: Future<Output = Result<TestResponse, Error>> + Send,
    {
        let mut reviews = cluster("reviews", 1);
        reviews.outlier_detection =
            Some(OutlierDetection { consecutive_5xx: 2, max_ejection_percent: 100, ..Default::default() });
        client(&configured([reviews], forward), leaf)
    }
}
