//! A control plane in the manner of a plain snapshot server: one loop a stream that takes a request, writes the whole answer, all
//! resources of the type in one response, and reads again only when that is written. It counts what it is asked.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use mesh_xds::{
    ads::{ResourceSet, TypeUrl},
    proto::{self, Any},
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};
use tokio_stream::{
    Empty, Stream,
    wrappers::{ReceiverStream, TcpListenerStream},
};
use tonic::{Request, Response, Status, Streaming};

/// The server.
#[derive(Clone)]
pub(crate) struct Plain {
    resources: watch::Receiver<Arc<ResourceSet>>,
    /// Requests that have come.
    pub(crate) requests: Arc<AtomicUsize>,
}

type Answer = Result<proto::DiscoveryResponse, Status>;

impl Plain {
    /// Of resources that may change.
    pub(crate) fn new(resources: watch::Receiver<Arc<ResourceSet>>) -> Self {
        Self { resources, requests: Arc::default() }
    }

    /// Serves until the runtime ends.
    pub(crate) fn serve(&self, listener: TcpListener) {
        let service = proto::AggregatedDiscoveryServiceServer::new(self.clone()).max_decoding_message_size(64 << 20);
        let router = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
    }

    async fn converse(
        mut self,
        mut incoming: Streaming<proto::DiscoveryRequest>,
        outgoing: mpsc::Sender<Answer>,
    ) -> Option<()> {
        let mut types: BTreeMap<TypeUrl, Watch> = BTreeMap::new();
        let mut resources = self.resources.borrow_and_update().clone();
        let mut number = 0;
        loop {
            let mut due = Vec::new();
            tokio::select! {
                request = incoming.message() => {
                    let request = request.ok().flatten()?;
                    self.requests.fetch_add(1, Relaxed);
                    let kind = TypeUrl::parse(&request.type_url)?;
                    let watch = types.entry(kind).or_default();
                    if !request.response_nonce.is_empty() && request.response_nonce != watch.nonce {
                        continue;
                    }
                    let names: BTreeSet<_> = request.resource_names.into_iter().collect();
                    if request.response_nonce.is_empty() || names != watch.names {
                        due.push(kind);
                    }
                    watch.names = names;
                }
                changed = self.resources.changed() => {
                    changed.ok()?;
                    let before = std::mem::replace(&mut resources, self.resources.borrow_and_update().clone());
                    due.extend(types.keys().copied().filter(|kind| before.version(*kind) != resources.version(*kind)));
                }
            }
            for kind in due {
                number += 1;
                let watch = types.get_mut(&kind)?;
                watch.nonce = number.to_string();
                // Nothing is read until this is written.
                outgoing.send(Ok(watch.answer(kind, &resources))).await.ok()?;
            }
        }
    }
}

#[derive(Default)]
struct Watch {
    names: BTreeSet<String>,
    nonce: String,
}

impl Watch {
    fn answer(&self, kind: TypeUrl, resources: &ResourceSet) -> proto::DiscoveryResponse {
        let wanted = |name: &str| self.names.is_empty() || self.names.contains(name) || self.names.contains("*");
        let all = resources.iter(kind).filter(|(name, _)| wanted(name));
        let body = |body: &bytes::Bytes| Any { type_url: kind.as_str().to_owned(), value: body.clone() };
        proto::DiscoveryResponse {
            version_info: resources.version(kind),
            resources: all.map(|(_, resource)| body(&resource.body)).collect(),
            type_url: kind.as_str().to_owned(),
            nonce: self.nonce.clone(),
            ..proto::DiscoveryResponse::default()
        }
    }
}

#[tonic::async_trait]
impl proto::AggregatedDiscoveryService for Plain {
    type StreamAggregatedResourcesStream = Pin<Box<dyn Stream<Item = Answer> + Send>>;
    type DeltaAggregatedResourcesStream = Empty<Result<proto::DeltaDiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<proto::DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let (outgoing, answers) = mpsc::channel(1);
        tokio::spawn(self.clone().converse(request.into_inner(), outgoing));
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn delta_aggregated_resources(
        &self,
        _: Request<Streaming<proto::DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("only the state of the world"))
    }
}
