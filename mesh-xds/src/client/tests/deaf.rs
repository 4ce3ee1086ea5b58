//! A server that writes and does not read, and does not know the incremental variant.

use tonic::Streaming;

use super::*;
use crate::proto::{AggregatedDiscoveryService, DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryResponse};

/// Sends five thousand responses and reads no request.
pub(super) struct Deaf;

type Responses = std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<DiscoveryResponse, tonic::Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Deaf {
    type StreamAggregatedResourcesStream = Responses;
    type DeltaAggregatedResourcesStream = tokio_stream::Empty<Result<DeltaDiscoveryResponse, tonic::Status>>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Responses>, tonic::Status> {
        let unread = request.into_inner();
        let responses = (1..=5_000).map(move |n| {
            let _ = &unread;
            Ok(DiscoveryResponse {
                version_info: n.to_string(),
                nonce: n.to_string(),
                type_url: TypeUrl::Cluster.as_str().to_owned(),
                ..DiscoveryResponse::default()
            })
        });
        // It stays open after the last, as a control plane would.
        Ok(Response::new(Box::pin(tokio_stream::StreamExt::chain(
            tokio_stream::iter(responses),
            tokio_stream::pending(),
        ))))
    }

    async fn delta_aggregated_resources(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, tonic::Status> {
        Err(tonic::Status::unimplemented(""))
    }
}
