//! Driver: the ADS service of tonic over a [`Source`] of resources, one server machine a stream.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll},
};

use rustls_pki_types::CertificateDer;
use tokio::sync::watch;
use tonic::{Status, body::Body, codegen::Service, server::NamedService};

use crate::{
    ads::{ResourceSet, TypeUrl},
    node::Node,
};

/// Names one stream for as long as it lasts; given by the [`Source`].
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ConnectionId(pub u64);

/// What a client offers to prove itself with, as received.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    /// The client's certificates, leaf first, if it presented any; the TLS acceptor has verified the chain.
    pub certificates: Arc<Vec<CertificateDer<'static>>>,
    /// The token of `authorization: Bearer ...`, without the word.
    pub bearer: Option<Token>,
}

/// A secret that does not print.
#[derive(Clone, Eq, PartialEq)]
pub struct Token(pub String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Who is at the other end of a stream.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Peer {
    /// Its address, when the transport has one.
    pub address: Option<SocketAddr>,
    /// The SPIFFE id that [`Source::verify`] found proven.
    pub identity: Option<String>,
}

/// Where the resources come from and who hears what became of them. Methods must not block.
pub trait Source: Send + Sync + 'static {
    /// Verifies what a client offers; `Ok(None)` lets it in without an identity.
    ///
    /// # Errors
    /// The status the stream ends with.
    fn verify(&self, credentials: &Credentials) -> Result<Option<String>, Status>;

    /// A stream's first request has come. The channel gives the resources for this node from now on.
    ///
    /// # Errors
    /// The status the stream ends with.
    fn connect(&self, peer: &Peer, node: &Node) -> Result<(ConnectionId, watch::Receiver<Arc<ResourceSet>>), Status>;

    /// A version was sent.
    fn sent(&self, _id: ConnectionId, _kind: TypeUrl, _version: &str) {}

    /// The client uses this version.
    fn acked(&self, id: ConnectionId, kind: TypeUrl, version: &str);

    /// The client refused this version or parts of it, with its message.
    fn nacked(&self, id: ConnectionId, kind: TypeUrl, version: &str, message: &str);

    /// The stream has ended; called exactly once for each successful [`connect`](Self::connect).
    fn disconnect(&self, id: ConnectionId);
}

/// The ADS service, to be added to a tonic server.
pub fn ads_service<S: Source>(source: Arc<S>) -> AdsServer<S> {
    AdsServer { source }
}

/// See [`ads_service`].
#[derive(Debug)]
pub struct AdsServer<S> {
    source: Arc<S>,
}

impl<S> Clone for AdsServer<S> {
    fn clone(&self) -> Self {
        Self { source: self.source.clone() }
    }
}

impl<S> NamedService for AdsServer<S> {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

impl<S: Source> Service<http::Request<Body>> for AdsServer<S> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Request<Body>) -> Self::Future {
        ready(Ok(Status::unimplemented("ADS").into_http()))
    }
}
