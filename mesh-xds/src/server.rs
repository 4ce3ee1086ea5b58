//! Driver: the ADS service of tonic over a [`Source`] of resources, one server machine a stream.
//!
//! The source gives each stream a channel of resource sets and hears what became of them. A stream reads requests at any
//! time and makes a response only when the transport has room for it, so a slow client costs one set, not a backlog.

use std::{
    fmt,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use prost::Message as _;
use rustls_pki_types::CertificateDer;
use tokio::sync::{mpsc, watch};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use self::variant::Variant;
use crate::{
    ads::{
        ResourceSet, TypeUrl,
        server::{Delta, Outcome, Sotw},
    },
    node::Node,
    proto::{self, AggregatedDiscoveryService, AggregatedDiscoveryServiceServer},
    task::Task,
};

mod variant;

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

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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

    /// A version was sent, in a response of so many bytes.
    fn sent(&self, _id: ConnectionId, _kind: TypeUrl, _version: &str, _bytes: usize) {}

    /// The client uses this version.
    fn acked(&self, id: ConnectionId, kind: TypeUrl, version: &str);

    /// The client refused this version or parts of it, with its message.
    fn nacked(&self, id: ConnectionId, kind: TypeUrl, version: &str, message: &str);

    /// The client tells of its own health: `None` is healthy, else what is wrong. Source: Istio
    /// `istio.v1.HealthInformation`.
    fn health(&self, _id: ConnectionId, _unhealthy: Option<String>) {}

    /// The stream has ended; called exactly once for each successful [`connect`](Self::connect).
    fn disconnect(&self, id: ConnectionId);
}

/// The ADS service, to be added to a tonic server.
pub fn ads_service<S: Source>(source: Arc<S>) -> AdsServer<S> {
    AggregatedDiscoveryServiceServer::new(Ads { source }).max_decoding_message_size(MAX_REQUEST)
}

/// See [`ads_service`].
pub type AdsServer<S> = AggregatedDiscoveryServiceServer<Ads<S>>;

/// A request lists every name a client wants, so that a large mesh exceeds gRPC's own default of 4 MiB.
const MAX_REQUEST: usize = 64 << 20;

/// The ADS service over a [`Source`]; made by [`ads_service`].
#[derive(Debug)]
pub struct Ads<S> {
    source: Arc<S>,
}

#[tonic::async_trait]
impl<S: Source> AggregatedDiscoveryService for Ads<S> {
    type StreamAggregatedResourcesStream = Responses<proto::DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<proto::DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<proto::DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        self.open::<Sotw>(request)
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<proto::DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        self.open::<Delta>(request)
    }
}

impl<S: Source> Ads<S> {
    fn open<V: Variant>(
        &self,
        request: Request<Streaming<V::Request>>,
    ) -> Result<Response<Responses<V::Response>>, Status> {
        let credentials = credentials(&request);
        let peer = Peer { address: request.remote_addr(), identity: self.source.verify(&credentials)? };
        let (outgoing, responses) = mpsc::channel(1);
        let source = self.source.clone();
        let task = Task::spawn(async move {
            if let Err(status) = serve::<S, V>(source, peer, request.into_inner(), &outgoing).await {
                // The stream may be gone already; then nobody is left to tell.
                let _ = outgoing.send(Err(status)).await;
            }
        });
        Ok(Response::new(Responses { inner: ReceiverStream::new(responses), _task: task }))
    }
}

/// The responses of one stream; the stream's task ends with it.
#[derive(Debug)]
pub struct Responses<T> {
    inner: ReceiverStream<Result<T, Status>>,
    _task: Task,
}

impl<T> Stream for Responses<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.inner).poll_next(cx)
    }
}

/// A connection the source knows of; leaving it is told however the stream ends.
struct Connection<S: Source> {
    source: Arc<S>,
    id: ConnectionId,
}

impl<S: Source> Drop for Connection<S> {
    fn drop(&mut self) {
        self.source.disconnect(self.id);
    }
}

async fn serve<S: Source, V: Variant>(
    source: Arc<S>,
    peer: Peer,
    mut incoming: Streaming<V::Request>,
    outgoing: &mpsc::Sender<Result<V::Response, Status>>,
) -> Result<(), Status> {
    let Some(mut first) = incoming.message().await? else { return Ok(()) };
    let node = match V::take_node(&mut first) {
        Some(node) if !node.id.is_empty() => Node::of_proto(node),
        _ => return Err(Status::invalid_argument("missing node information: the first request must carry node.id")),
    };
    let (id, mut views) = source.connect(&peer, &node)?;
    let connection = Connection { source, id };
    let mut machine = V::new(views.borrow_and_update().clone());
    receive(&mut machine, &connection, first);
    loop {
        tokio::select! {
            message = incoming.message() => match message? {
                Some(request) => receive(&mut machine, &connection, request),
                None => return Ok(()),
            },
            changed = views.changed() => match changed {
                Ok(()) => machine.handle_resources(views.borrow_and_update().clone()),
                // The source is closing down: the stream ends cleanly, and the client will come back.
                Err(_) => return Ok(()),
            },
            room = outgoing.reserve(), if machine.is_due() => {
                let Ok(room) = room else { return Ok(()) };
                if let Some((kind, version, response)) = machine.poll() {
                    connection.source.sent(connection.id, kind, &version, response.encoded_len());
                    room.send(Ok(response));
                }
            }
        }
    }
}

fn receive<S: Source, V: Variant>(machine: &mut V, connection: &Connection<S>, request: V::Request) {
    if let Some(unhealthy) = V::health(&request) {
        connection.source.health(connection.id, unhealthy);
        return;
    }
    machine.handle(request);
    while let Some(outcome) = machine.poll_outcome() {
        match outcome {
            Outcome::Acked(kind, version) => connection.source.acked(connection.id, kind, &version),
            Outcome::Nacked(kind, version, why) => connection.source.nacked(connection.id, kind, &version, &why),
        }
    }
}

fn credentials<T>(request: &Request<T>) -> Credentials {
    let header = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
    // The scheme's case does not count (RFC 9110, 11.1).
    let bearer =
        header.and_then(|value| value.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    Credentials {
        certificates: request.peer_certs().unwrap_or_default(),
        bearer: bearer.map(|(_, token)| Token(token.trim().to_owned())),
    }
}
