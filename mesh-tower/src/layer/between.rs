//! Your own Tower layer between two of ours.
//!
//! Such a layer knows `http::Request` and nothing of what this crate has decided, so within it, and only there, the
//! decision rides along in the request's extensions under a private type. It may look at the request, change it, answer
//! it, or pass it on; a request of its own making, which carries no decision, is refused.

use std::{
    error::Error as StdError,
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use super::{Call, Routed, Stage};
use crate::{
    body::{Body, ResponseBody},
    error::{BoxError, Error, ErrorKind},
    source,
};

/// Puts a layer over `http::Request` where layers over [`Routed`] stand.
///
/// ```
/// use mesh_tower::{layer::{Between, Fixed, LeafLayer, RetryLayer}, plan::RoutePolicy};
/// use tower::util::MapRequestLayer;
/// use tower_layer::Layer;
///
/// # fn around<S>(client: S) -> impl Sized {
/// let yours = MapRequestLayer::new(|mut request: http::Request<mesh_tower::Body>| {
///     request.headers_mut().insert("x-api-version", http::HeaderValue::from_static("2"));
///     request
/// });
/// (Fixed::new(RoutePolicy::default()), Between::new(yours), RetryLayer::new(), LeafLayer::new()).layer(client)
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Between<L>(L);

impl<L> Between<L> {
    /// That layer.
    pub fn new(layer: L) -> Self {
        Self(layer)
    }
}

impl<S, L: Layer<Onward<S>>> Layer<S> for Between<L> {
    type Service = Hosting<L::Service>;

    fn layer(&self, inner: S) -> Hosting<L::Service> {
        Hosting(self.0.layer(Onward(Arc::new(inner))))
    }
}

/// What rides along.
#[derive(Clone)]
struct Rider {
    call: Call,
    deadline: Option<Instant>,
}

/// A stage that is a service of another kind.
#[derive(Clone, Debug)]
pub struct Hosting<S>(S);

impl<S, B> Stage<Routed> for Hosting<S>
where
    S: Service<http::Request<Body>, Response = http::Response<B>> + Clone + Send + Sync,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: Send,
{
    type Response = http::Response<ResponseBody<B>>;

    async fn call(&self, routed: Routed) -> Result<Self::Response, Error> {
        let Routed { mut request, call, deadline, .. } = routed;
        request.extensions_mut().insert(Rider { call, deadline });
        let mut service = self.0.clone();
        // Errors of the layers below pass through your layer as they are.
        let ours = |error: S::Error| Error::from_boxed(ErrorKind::Invalid, error.into());
        poll_fn(|cx| service.poll_ready(cx)).await.map_err(ours)?;
        // Your layer may have made another body of ours.
        service.call(request.into_request()).await.map(|response| response.map(ResponseBody::there)).map_err(ours)
    }
}

/// The layers below, as your layer sees them.
pub struct Onward<S>(Arc<S>);

impl<S> Clone for Onward<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S> fmt::Debug for Onward<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Onward").finish_non_exhaustive()
    }
}

impl<S: Stage<Routed> + 'static> Service<http::Request<Body>> for Onward<S> {
    type Response = S::Response;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let inner = Arc::clone(&self.0);
        Box::pin(async move {
            let Some(Rider { call, deadline }) = request.extensions_mut().remove() else {
                return Err(Error::new(ErrorKind::Invalid, NotRouted));
            };
            inner.call(Routed { request: request.into(), call, deadline, now: source::instant() }).await
        })
    }
}

/// A layer between ours made a request of its own.
#[derive(Debug)]
struct NotRouted;

impl fmt::Display for NotRouted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "a layer between routing and the rest made a request of its own; it can only pass on the one it got",
        )
    }
}

impl StdError for NotRouted {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use tower::{ServiceExt, util::MapRequestLayer};

    use super::*;
    use crate::{
        layer::{Fixed, LeafLayer, RetryLayer},
        plan::RoutePolicy,
        testing::response,
    };

    #[tokio::test]
    async fn a_strangers_layer_sees_the_request_and_the_decision_rides_along() {
        let service = tower::service_fn(|request: http::Request<Body>| async move {
            assert_eq!(request.headers()["x-yours"], "1");
            assert!(request.extensions().is_empty());
            Ok::<_, std::convert::Infallible>(response(200, &[]))
        });
        let yours = MapRequestLayer::new(|mut request: http::Request<Body>| {
            request.headers_mut().insert("x-yours", http::HeaderValue::from_static("1"));
            request
        });
        let fixed = Fixed::new(RoutePolicy::default());
        let stack = (fixed.clone(), Between::new(yours), RetryLayer::new(), LeafLayer::new()).layer(service);
        let request = || http::Request::get("http://reviews/").body(Body::empty()).unwrap();
        assert_eq!(stack.oneshot(request()).await.unwrap().status(), 200);
        let own = MapRequestLayer::new(|_| http::Request::new(Body::empty()));
        let stack = (fixed, Between::new(own), RetryLayer::new(), LeafLayer::new()).layer(service);
        assert_eq!(stack.oneshot(request()).await.unwrap_err().kind(), ErrorKind::Invalid);
    }
}
