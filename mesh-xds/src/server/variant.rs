//! The two variants of ADS as the driver sees them: machines that take and give protobuf messages.

use std::sync::Arc;

use crate::{
    ads::{
        self, Item, ResourceSet, TypeUrl,
        server::{Delta, Outcome, Sotw},
    },
    proto::{self, envoy::config::core::v3},
};

/// A server machine with the messages of its variant.
pub(super) trait Variant: Send + Sized + 'static {
    type Request: Send + 'static;
    type Response: prost::Message + 'static;

    fn new(resources: Arc<ResourceSet>) -> Self;
    fn take_node(request: &mut Self::Request) -> Option<v3::Node>;
    /// What a request about the client's health says, if it is one.
    fn health(request: &Self::Request) -> Option<Option<String>>;
    /// A type that is not served is asked for in vain; a client's timer tells it so.
    fn handle(&mut self, request: Self::Request);
    fn handle_resources(&mut self, resources: Arc<ResourceSet>);
    fn is_due(&self) -> bool;
    /// The next response, with its type and version.
    fn poll(&mut self) -> Option<(TypeUrl, String, Self::Response)>;
    fn poll_outcome(&mut self) -> Option<Outcome>;
}

impl Variant for Sotw {
    type Request = proto::DiscoveryRequest;
    type Response = proto::DiscoveryResponse;

    fn new(resources: Arc<ResourceSet>) -> Self {
        Self::new(resources)
    }

    fn take_node(request: &mut Self::Request) -> Option<v3::Node> {
        request.node.take()
    }

    fn health(request: &Self::Request) -> Option<Option<String>> {
        health(&request.type_url, request.error_detail.as_ref())
    }

    fn handle(&mut self, request: Self::Request) {
        let Some(kind) = TypeUrl::parse(&request.type_url) else { return };
        self.handle_request(&ads::Request {
            first: false,
            kind,
            version: request.version_info,
            nonce: request.response_nonce,
            names: request.resource_names.into_iter().map(Into::into).collect(),
            error: request.error_detail.map(|status| status.message),
        });
    }

    fn handle_resources(&mut self, resources: Arc<ResourceSet>) {
        self.handle_resources(resources);
    }

    fn is_due(&self) -> bool {
        self.is_due()
    }

    fn poll(&mut self) -> Option<(TypeUrl, String, Self::Response)> {
        let response = self.poll_response()?;
        let message = proto::DiscoveryResponse {
            version_info: response.version.clone(),
            resources: response.resources.into_iter().filter_map(|item| item.body).collect(),
            type_url: response.kind.as_str().to_owned(),
            nonce: response.nonce,
            ..proto::DiscoveryResponse::default()
        };
        Some((response.kind, response.version, message))
    }

    fn poll_outcome(&mut self) -> Option<Outcome> {
        self.poll_outcome()
    }
}

impl Variant for Delta {
    type Request = proto::DeltaDiscoveryRequest;
    type Response = proto::DeltaDiscoveryResponse;

    fn new(resources: Arc<ResourceSet>) -> Self {
        Self::new(resources)
    }

    fn take_node(request: &mut Self::Request) -> Option<v3::Node> {
        request.node.take()
    }

    fn health(request: &Self::Request) -> Option<Option<String>> {
        health(&request.type_url, request.error_detail.as_ref())
    }

    fn handle(&mut self, request: Self::Request) {
        let Some(kind) = TypeUrl::parse(&request.type_url) else { return };
        let initial = request.initial_resource_versions.into_iter();
        self.handle_request(&ads::DeltaRequest {
            first: false,
            kind,
            subscribe: request.resource_names_subscribe.into_iter().map(Into::into).collect(),
            unsubscribe: request.resource_names_unsubscribe.into_iter().map(Into::into).collect(),
            initial: initial.map(|(name, version)| (name.into(), version.into())).collect(),
            nonce: request.response_nonce,
            error: request.error_detail.map(|status| status.message),
        });
    }

    fn handle_resources(&mut self, resources: Arc<ResourceSet>) {
        self.handle_resources(resources);
    }

    fn is_due(&self) -> bool {
        self.is_due()
    }

    fn poll(&mut self) -> Option<(TypeUrl, String, Self::Response)> {
        let response = self.poll_response()?;
        let message = proto::DeltaDiscoveryResponse {
            system_version_info: response.version.clone(),
            resources: response.resources.into_iter().map(wrap).collect(),
            type_url: response.kind.as_str().to_owned(),
            removed_resources: response.removed.iter().map(ToString::to_string).collect(),
            nonce: response.nonce,
            ..proto::DeltaDiscoveryResponse::default()
        };
        Some((response.kind, response.version, message))
    }

    fn poll_outcome(&mut self) -> Option<Outcome> {
        self.poll_outcome()
    }
}

fn health(type_url: &str, error: Option<&proto::Status>) -> Option<Option<String>> {
    type_url.ends_with("istio.v1.HealthInformation").then(|| error.map(|status| status.message.clone()))
}

fn wrap(item: Item) -> proto::Resource {
    proto::Resource {
        name: item.name.map(|name| name.to_string()).unwrap_or_default(),
        version: item.version.to_string(),
        resource: item.body,
        ..proto::Resource::default()
    }
}
