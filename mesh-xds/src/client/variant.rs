//! The two variants of ADS as the driver sees them: a method to call, requests to encode, responses to take apart.

use mesh_core::config::Name;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, transport::Channel};

use crate::{
    ads::{self, Item, Problem, TypeUrl, client::Client},
    node::Node,
    proto::{self, envoy::service::discovery::v3},
};

/// The generated client.
pub(super) type Ads = proto::AggregatedDiscoveryServiceClient<Channel>;

/// A stream of either variant.
pub(super) trait Variant: 'static {
    type Request: Send + 'static;
    type Response: Send + 'static;

    /// Which it is.
    const WHICH: ads::client::Variant;

    /// Calls the method.
    fn open(
        client: &mut Ads,
        call: Request<ReceiverStream<Self::Request>>,
    ) -> impl Future<Output = Result<Response<Streaming<Self::Response>>, Status>> + Send;

    /// The next request, if one is due.
    fn poll<T>(machine: &mut Client<T>, now: mesh_core::time::Time, node: &Node) -> Option<Self::Request>;

    /// Takes a response apart; `Err` is the URL of a type that is not known here.
    fn decode(response: Self::Response) -> Result<Heard, String>;
}

/// A response.
pub(super) enum Heard {
    Sotw(ads::Response),
    Delta(ads::DeltaResponse),
}

impl Heard {
    pub(super) fn kind(&self) -> TypeUrl {
        match self {
            Self::Sotw(response) => response.kind,
            Self::Delta(response) => response.kind,
        }
    }

    pub(super) fn version(&self) -> &str {
        match self {
            Self::Sotw(response) => &response.version,
            Self::Delta(response) => &response.version,
        }
    }
}

/// State of the world.
pub(super) struct Sotw;

impl Variant for Sotw {
    type Request = proto::DiscoveryRequest;
    type Response = proto::DiscoveryResponse;

    const WHICH: ads::client::Variant = ads::client::Variant::Sotw;

    async fn open(
        client: &mut Ads,
        call: Request<ReceiverStream<Self::Request>>,
    ) -> Result<Response<Streaming<Self::Response>>, Status> {
        client.stream_aggregated_resources(call).await
    }

    fn poll<T>(machine: &mut Client<T>, now: mesh_core::time::Time, node: &Node) -> Option<Self::Request> {
        let Client::Sotw(machine) = machine else { return None };
        let request = machine.poll_request(now)?;
        Some(proto::DiscoveryRequest {
            version_info: request.version,
            node: request.first.then(|| node.to_proto()),
            resource_names: to_strings(&request.names),
            type_url: request.kind.as_str().to_owned(),
            response_nonce: request.nonce,
            error_detail: request.error.map(refusal),
        })
    }

    fn decode(response: Self::Response) -> Result<Heard, String> {
        let Some(kind) = TypeUrl::parse(&response.type_url) else { return Err(response.type_url) };
        Ok(Heard::Sotw(ads::Response {
            kind,
            version: response.version_info,
            nonce: response.nonce,
            resources: response.resources.into_iter().map(unwrap).collect(),
            problems: problems(response.resource_errors),
        }))
    }
}

/// Incremental.
pub(super) struct Delta;

impl Variant for Delta {
    type Request = proto::DeltaDiscoveryRequest;
    type Response = proto::DeltaDiscoveryResponse;

    const WHICH: ads::client::Variant = ads::client::Variant::Delta;

    async fn open(
        client: &mut Ads,
        call: Request<ReceiverStream<Self::Request>>,
    ) -> Result<Response<Streaming<Self::Response>>, Status> {
        client.delta_aggregated_resources(call).await
    }

    fn poll<T>(machine: &mut Client<T>, now: mesh_core::time::Time, node: &Node) -> Option<Self::Request> {
        let Client::Delta(machine) = machine else { return None };
        let request = machine.poll_request(now)?;
        let initial = request.initial.iter().map(|(name, version)| (name.to_string(), version.to_string()));
        Some(proto::DeltaDiscoveryRequest {
            node: request.first.then(|| node.to_proto()),
            type_url: request.kind.as_str().to_owned(),
            resource_names_subscribe: to_strings(&request.subscribe),
            resource_names_unsubscribe: to_strings(&request.unsubscribe),
            initial_resource_versions: initial.collect(),
            response_nonce: request.nonce,
            error_detail: request.error.map(refusal),
        })
    }

    fn decode(response: Self::Response) -> Result<Heard, String> {
        let Some(kind) = TypeUrl::parse(&response.type_url) else { return Err(response.type_url) };
        let names = response.removed_resource_names.into_iter().map(|removed| removed.name);
        let removed = response.removed_resources.into_iter().chain(names).map(Into::into).collect();
        Ok(Heard::Delta(ads::DeltaResponse {
            kind,
            version: response.system_version_info,
            nonce: response.nonce,
            resources: response.resources.into_iter().map(item).collect(),
            removed,
            problems: problems(response.resource_errors),
        }))
    }
}

fn to_strings(names: &[Name]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

fn refusal(message: String) -> proto::Status {
    proto::Status { code: tonic::Code::InvalidArgument as i32, message, ..proto::Status::default() }
}

/// A resource may come wrapped in `envoy.service.discovery.v3.Resource`.
fn unwrap(any: proto::Any) -> Item {
    match any.unpack::<proto::Resource>() {
        Some(Ok(wrapped)) => item(wrapped),
        _ => any.into(),
    }
}

fn item(wrapped: proto::Resource) -> Item {
    let other = wrapped.resource_name.unwrap_or_default();
    let name = [wrapped.name, other.name].into_iter().find(|name| !name.is_empty()).map(Name::from);
    let ttl = wrapped.ttl.and_then(|ttl| ttl.try_into().ok());
    let body = match other.dynamic_parameter_constraints {
        None => wrapped.resource,
        // What is for some clients alone is refused: which it is for is not looked at (xRFC TP2).
        Some(_) => Some(proto::Any { type_url: ads::VARIANT.to_owned(), ..proto::Any::default() }),
    };
    Item { name, version: wrapped.version.into(), body, ttl }
}

fn problems(errors: Vec<v3::ResourceError>) -> Vec<Problem> {
    let problem = |error: v3::ResourceError| {
        let name = error.resource_name.filter(|name| !name.name.is_empty())?.name.into();
        let status = error.error_detail.unwrap_or_default();
        let missing = status.code == tonic::Code::NotFound as i32;
        Some(Problem { name, missing, message: status.message })
    };
    errors.into_iter().filter_map(problem).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use mesh_core::time::Time;

    use super::*;
    use crate::ads::{DataErrors, Subscription, back_off::BackOff};

    /// XD31: of a resource that comes in variants for clients of certain parameters none is used, and the control plane is told.
    #[test]
    fn variants_of_a_resource_are_refused() {
        let resource_name = v3::ResourceName {
            name: "a".to_owned(),
            dynamic_parameter_constraints: Some(v3::DynamicParameterConstraints::default()),
        };
        let wrapped = proto::Resource {
            resource: Some(proto::Any { type_url: TypeUrl::Cluster.as_str().to_owned(), ..proto::Any::default() }),
            resource_name: Some(resource_name),
            ..proto::Resource::default()
        };
        let response = proto::DiscoveryResponse {
            version_info: "1".to_owned(),
            nonce: "1".to_owned(),
            type_url: TypeUrl::Cluster.as_str().to_owned(),
            resources: vec![proto::Any::pack(&wrapped)],
            ..proto::DiscoveryResponse::default()
        };
        let Ok(Heard::Sotw(response)) = Sotw::decode(response) else { panic!("a response") };
        let mut client = Client::<()>::new(ads::client::Variant::Sotw, BackOff::STREAM, DataErrors::default());
        client.subscribe(TypeUrl::Cluster, Subscription::All);
        let Client::Sotw(machine) = &mut client else { panic!("state of the world") };
        assert!(machine.poll_connect(Time::ZERO));
        machine.handle_connected();
        machine.poll_request(Time::ZERO).unwrap();
        machine.handle_response(&response, Time::ZERO, |_, _| Ok(()));
        let error = machine.poll_request(Time::ZERO).unwrap().error.unwrap();
        assert!(error.contains("\"a\" is for clients of certain dynamic parameters"), "{error}");
    }
}
