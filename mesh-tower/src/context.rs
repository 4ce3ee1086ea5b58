//! What travels from the request a process serves to the requests it makes meanwhile: trace context, deadline, headers.
//!
//! The server layer puts a [`Context`] around the handler, the client layers read it, the application copies nothing
//! (C12). It is a task-local: work moved to another task takes it along with [`spawn`] or
//! [`in_context`](InContext::in_context). The deadline is that of the caller, whatever its protocol: gRPC says it in
//! `grpc-timeout`, HTTP callers of this mesh in `x-envoy-expected-rq-timeout-ms` (C11).

use std::{
    cell::RefCell,
    fmt,
    future::Future,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue};
use mesh_core::{
    request::{header, is_grpc},
    timeout,
};
use tokio::{
    task::{JoinHandle, futures::TaskLocalFuture},
    time::Instant,
};

use crate::{
    source,
    telemetry::{TraceContext, decimal, value},
};

tokio::task_local! {
    static CURRENT: Arc<Context>;
}

/// `grpc-timeout`: what is left for a gRPC call.
pub(crate) const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// What is left for an HTTP request, in milliseconds. Source: Envoy router filter.
pub(crate) const EXPECTED_TIMEOUT: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");

/// What a served request hands on to the requests made for it.
#[derive(Clone, Default)]
pub struct Context {
    /// Where it is in its trace.
    pub trace: Option<TraceContext>,
    /// When its caller stops waiting.
    pub deadline: Option<Instant>,
    /// Headers that are sent on as they are, unless a request has its own.
    pub headers: HeaderMap,
    /// Where it came from; what is hashed by source address is hashed by this.
    pub source: Option<IpAddr>,
    pub(crate) vain: Vain,
}

/// Whether retries for the request being served were used up in vain (RT22).
#[derive(Debug, Default)]
pub(crate) struct Vain(AtomicBool);

impl Vain {
    /// Were they?
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Clone for Vain {
    fn clone(&self) -> Self {
        Self(AtomicBool::new(self.is_set()))
    }
}

/// A request made for the one being served failed for good, although it was tried again or wanted to be.
pub(crate) fn in_vain() {
    let _ = CURRENT.try_with(|context| context.vain.0.store(true, Ordering::Relaxed));
}

/// Headers by name only: they may be cookies and tokens.
impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headers: Vec<_> = self.headers.keys().collect();
        let Self { trace, deadline, .. } = self;
        f.debug_struct("Context").field("trace", trace).field("deadline", deadline).field("headers", &headers).finish()
    }
}

impl Context {
    /// Names of the headers that are sent on unless others are chosen. Trace headers travel by themselves.
    pub const PROPAGATED: [HeaderName; 2] =
        [HeaderName::from_static("end-user"), HeaderName::from_static("x-request-id")];

    /// That of a request just received, sending on the headers of those names. `trace` is left to telemetry.
    pub fn received(headers: &HeaderMap, propagated: &[HeaderName]) -> Self {
        let mut kept = HeaderMap::new();
        for name in propagated {
            for value in headers.get_all(name) {
                kept.append(name, value.clone());
            }
        }
        let left = if is_grpc(headers) { grpc_timeout(headers) } else { expected_timeout(headers) };
        Self {
            trace: None,
            deadline: left.map(|left| source::instant() + left),
            headers: kept,
            source: None,
            vain: Vain::default(),
        }
    }

    /// Runs the future in this context: requests it makes inherit from it.
    pub fn scope<F: Future>(self, future: F) -> TaskLocalFuture<Arc<Self>, F> {
        CURRENT.scope(Arc::new(self), future)
    }

    /// The same, for who wants to look at the context afterwards.
    pub(crate) fn share<F: Future>(self: &Arc<Self>, future: F) -> TaskLocalFuture<Arc<Self>, F> {
        CURRENT.scope(Arc::clone(self), future)
    }

    /// Writes the headers on a request about to leave, and says when its caller stops waiting.
    pub(crate) fn depart(&self, headers: &mut HeaderMap) -> Option<Instant> {
        for name in self.headers.keys() {
            if !headers.contains_key(name) {
                for value in self.headers.get_all(name) {
                    headers.append(name, value.clone());
                }
            }
        }
        self.deadline
    }
}

/// The context of the request being served, if one is.
pub fn current() -> Option<Arc<Context>> {
    CURRENT.try_with(Arc::clone).ok()
}

/// Spawns a task that keeps the context of the request being served.
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(future.in_context())
}

/// Futures that keep the context of the place they were made in, wherever they run.
pub trait InContext: Future + Sized {
    /// Keeps the context of the request being served.
    fn in_context(self) -> TaskLocalFuture<Arc<Context>, Self> {
        CURRENT.scope(current().unwrap_or_default(), self)
    }
}

impl<F: Future> InContext for F {}

/// What `grpc-timeout` says; what does not parse counts as absent. Source: gRPC over HTTP/2, `Timeout`.
pub(crate) fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    timeout::parse_grpc_timeout(header(headers, &GRPC_TIMEOUT)?.to_str().ok()?)
}

fn expected_timeout(headers: &HeaderMap) -> Option<Duration> {
    let millis: u32 = headers.get(EXPECTED_TIMEOUT)?.to_str().ok()?.parse().ok()?;
    (millis > 0).then(|| Duration::from_millis(millis.into()))
}

/// Tells the next hop how much time is left, in its protocol's header (TO3).
///
/// For a request that did not wait that is its route's timeout, most often the same as the last one's: what was written for
/// that is sent again.
pub(crate) fn tell_time_left(headers: &mut HeaderMap, is_grpc: bool, left: Duration) {
    thread_local! {
        static LAST: RefCell<Option<(bool, Duration, HeaderValue)>> = const { RefCell::new(None) };
    }
    let name = if is_grpc { GRPC_TIMEOUT } else { EXPECTED_TIMEOUT };
    let value = LAST.try_with(|last| {
        let mut last = last.borrow_mut();
        match &*last {
            Some((protocol, told, value)) if (*protocol, *told) == (is_grpc, left) => value.clone(),
            _ => last.insert((is_grpc, left, encode_time_left(is_grpc, left))).2.clone(),
        }
    });
    headers.insert(name, value.unwrap_or_else(|_| encode_time_left(is_grpc, left)));
}

fn encode_time_left(is_grpc: bool, left: Duration) -> HeaderValue {
    if is_grpc {
        return value(timeout::grpc_timeout(left, &mut [0; 9]));
    }
    // Rounded up: 0 would mean no limit.
    let millis = left.as_secs().saturating_mul(1000).saturating_add(left.subsec_nanos().div_ceil(1_000_000).into());
    decimal(millis.clamp(1, u32::MAX.into()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    #[test]
    fn values_of_headers_are_not_shown() {
        let mut headers = HeaderMap::new();
        headers.insert("cookie", HeaderValue::from_static("session=secret"));
        let shown = format!("{:?}", Context::received(&headers, &[http::header::COOKIE]));
        assert!(shown.contains("cookie") && !shown.contains("secret"), "{shown}");
    }

    /// TO3: every unit of `grpc-timeout` is understood, and what is sent is understood again.
    #[test]
    fn grpc_timeout_in_every_unit() {
        let read = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(GRPC_TIMEOUT, HeaderValue::from_static(text));
            grpc_timeout(&headers)
        };
        for (text, expected) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("99999999m", Some(Duration::from_millis(99_999_999))),
            ("5u", Some(Duration::from_micros(5))),
            ("6n", Some(Duration::from_nanos(6))),
            ("100000000m", None),
            ("-1S", None),
            ("S", None),
            ("", None),
            ("1x", None),
        ] {
            assert_eq!(read(text), expected, "{text}");
        }
        for left in [Duration::from_nanos(1), Duration::from_millis(1_234), Duration::from_secs(1_000_000)] {
            let mut headers = HeaderMap::new();
            tell_time_left(&mut headers, true, left);
            let said = grpc_timeout(&headers).unwrap();
            assert!(said <= left && left - said < left / 1_000_000 + Duration::from_nanos(1), "{left:?} {said:?}");
        }
    }

    /// C12: headers and deadline follow the work, into spawned tasks too, and never replace a request's own.
    #[tokio::test(start_paused = true)]
    async fn context_follows_spawned_work() {
        let mut received = HeaderMap::new();
        received.insert("end-user", HeaderValue::from_static("jason"));
        received.insert("cookie", HeaderValue::from_static("secret"));
        received.insert(EXPECTED_TIMEOUT, HeaderValue::from_static("1500"));
        let context = Context::received(&received, &Context::PROPAGATED);
        assert!(current().is_none());
        let (sent, deadline) = context
            .scope(async {
                spawn(async {
                    let mut headers = HeaderMap::new();
                    let deadline = current().unwrap().depart(&mut headers);
                    (headers, deadline)
                })
                .await
                .unwrap()
            })
            .await;
        assert_eq!(sent["end-user"], "jason");
        assert!(!sent.contains_key("cookie"));
        assert_eq!(deadline, Some(Instant::now() + Duration::from_millis(1500)));
        let mut own = HeaderMap::new();
        own.insert("end-user", HeaderValue::from_static("tester"));
        Context { headers: sent, ..Context::default() }.depart(&mut own);
        assert_eq!(own["end-user"], "tester");
    }
}
