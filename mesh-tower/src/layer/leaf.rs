//! Where the layers end: your own `Service<http::Request<B>>`, given requests of whichever stage stands above it.
//!
//! The service is cloned for each call, as Tower asks of services that are shared; a clone of a client is cheap. Below
//! the balancer the URI's authority becomes the endpoint's address, and the `Host` header keeps the name that was asked
//! for, so that an ordinary client connects to the endpoint that was picked.

use std::{error::Error as StdError, future::poll_fn, io};

use http::{HeaderValue, header, request::Parts, uri};
use mesh_core::config::EndpointAddress;
use tower_layer::Layer;
use tower_service::Service;

use super::{Attempt, Picked, Routed, Stage};
use crate::{
    body::{Body, ResponseBody},
    error::{BoxError, Error, ErrorKind},
};

/// Ends the layers at a service. One whose requests have another body than [`Body`] says how it is made of one:
/// `LeafLayer::mapped(tonic::body::Body::new)`.
#[derive(Clone, Copy, Debug)]
pub struct LeafLayer<B = Body> {
    map: fn(Body) -> B,
}

impl LeafLayer {
    /// Around a service of requests with [`Body`].
    pub fn new() -> Self {
        Self { map: std::convert::identity }
    }
}

impl Default for LeafLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<B> LeafLayer<B> {
    /// Around a service of requests with a body of its own.
    pub fn mapped(map: fn(Body) -> B) -> Self {
        Self { map }
    }
}

impl<S, B> Layer<S> for LeafLayer<B> {
    type Service = Leaf<S, B>;

    fn layer(&self, service: S) -> Leaf<S, B> {
        Leaf { service, map: self.map }
    }
}

/// A service at the end of the layers.
#[derive(Clone, Copy, Debug)]
pub struct Leaf<S, B = Body> {
    service: S,
    map: fn(Body) -> B,
}

impl<S, B> Leaf<S, B> {
    async fn send<R>(&self, request: http::Request<Body>) -> Result<http::Response<R>, Error>
    where
        S: Service<http::Request<B>, Response = http::Response<R>> + Clone,
        S::Error: Into<BoxError>,
    {
        let mut service = self.service.clone();
        poll_fn(|cx| service.poll_ready(cx)).await.map_err(classify)?;
        service.call(request.map(self.map)).await.map_err(classify)
    }
}

impl<S, B, R> Stage<Routed> for Leaf<S, B>
where
    S: Service<http::Request<B>, Response = http::Response<R>> + Clone + Send + Sync,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: Send,
    R: Send,
{
    type Response = http::Response<ResponseBody<R>>;

    async fn call(&self, routed: Routed) -> Result<Self::Response, Error> {
        self.call(Attempt::from(routed)).await
    }
}

impl<S, B, R> Stage<Attempt> for Leaf<S, B>
where
    S: Service<http::Request<B>, Response = http::Response<R>> + Clone + Send + Sync,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: Send,
    R: Send,
{
    type Response = http::Response<ResponseBody<R>>;

    async fn call(&self, attempt: Attempt) -> Result<Self::Response, Error> {
        if let Some(answer) = attempt.call.own_answer() {
            return Err(answer);
        }
        attempt.call.journal().attempts = attempt.number;
        Ok(self.send(attempt.request.into_request()).await?.map(ResponseBody::there))
    }
}

impl<S, B, R> Stage<Picked> for Leaf<S, B>
where
    S: Service<http::Request<B>, Response = http::Response<R>> + Clone + Send + Sync,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: Send,
    R: Send,
{
    type Response = http::Response<R>;

    async fn call(&self, picked: Picked) -> Result<http::Response<R>, Error> {
        let Picked { request, endpoint, .. } = picked;
        let (mut parts, body) = request.into_parts();
        match endpoint.address() {
            EndpointAddress::Socket(address) => redirect(&mut parts, &address.to_string())?,
            EndpointAddress::Host(host, port) => redirect(&mut parts, &format!("{host}:{port}"))?,
            EndpointAddress::Unix(path) => {
                let why = format!("an ordinary client cannot connect to unix:{path}; use the mesh's own pool");
                return Err(Error::msg(ErrorKind::Connect, why));
            }
        }
        self.send(http::Request::from_parts(parts, body)).await
    }
}

/// Sends the request to another authority than the one it names, which stays in the `Host` header.
pub(super) fn redirect(parts: &mut Parts, authority: &str) -> Result<(), Error> {
    if let (Some(named), false) = (parts.uri.authority(), parts.headers.contains_key(header::HOST))
        && let Ok(host) = HeaderValue::from_str(named.as_str())
    {
        parts.headers.insert(header::HOST, host);
    }
    let mut new = std::mem::take(&mut parts.uri).into_parts();
    new.authority = Some(uri::Authority::try_from(authority).map_err(|e| Error::new(ErrorKind::Invalid, e))?);
    new.scheme = new.scheme.or(Some(uri::Scheme::HTTP));
    new.path_and_query = new.path_and_query.or_else(|| Some(uri::PathAndQuery::from_static("/")));
    parts.uri = http::Uri::from_parts(new).map_err(|e| Error::new(ErrorKind::Invalid, e))?;
    Ok(())
}

/// What a stranger's error means: a connection that never was is told by its operating-system error, anything else
/// counts as a connection lost half-way, after which only idempotent requests are safe to repeat.
fn classify(error: impl Into<BoxError>) -> Error {
    let error = error.into();
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error.as_ref());
    while let Some(this) = cause {
        if let Some(io) = this.downcast_ref::<io::Error>() {
            use io::ErrorKind::{AddrNotAvailable, ConnectionRefused, HostUnreachable, NetworkUnreachable, NotFound};
            let never = [AddrNotAvailable, ConnectionRefused, HostUnreachable, NetworkUnreachable, NotFound];
            if never.contains(&io.kind()) {
                return Error::from_boxed(ErrorKind::Connect, error);
            }
        }
        // An `io::Error` around another error hands on that error's source, passing over the error itself.
        let within = this.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        cause = within.map(|within| within as _).or_else(|| this.source());
    }
    Error::from_boxed(ErrorKind::Reset, error)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    #[test]
    fn a_connection_that_never_was_is_safe_to_try_again() {
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        let wrapped: BoxError = Box::new(Error::new(ErrorKind::Tls, refused));
        assert_eq!(classify(wrapped).kind(), ErrorKind::Tls, "ours stay what they are");
        let refused = io::Error::other(io::Error::from(io::ErrorKind::ConnectionRefused));
        let error = classify(Box::new(refused) as BoxError);
        assert_eq!((error.kind(), error.is_unsent()), (ErrorKind::Connect, true));
        let reset = io::Error::from(io::ErrorKind::ConnectionReset);
        assert!(!classify(Box::new(reset) as BoxError).is_unsent());
    }

    #[test]
    fn the_name_asked_for_stays_in_the_host_header() {
        for (uri, host, expected) in [
            ("http://reviews:9080/a?b", None, "reviews:9080"),
            ("http://reviews:9080", Some("own"), "own"),
            ("/a", Some("own"), "own"),
        ] {
            let mut request = http::Request::get(uri);
            if let Some(host) = host {
                request = request.header("host", host);
            }
            let mut parts = request.body(()).unwrap().into_parts().0;
            redirect(&mut parts, "10.0.0.1:80").unwrap();
            assert_eq!(parts.headers["host"], expected, "{uri}");
            assert_eq!(parts.uri.authority().unwrap(), "10.0.0.1:80");
            assert_eq!(parts.uri.scheme_str(), Some("http"));
        }
    }
}
