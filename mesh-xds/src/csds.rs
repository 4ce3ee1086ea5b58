//! Server: CSDS, by which tools ask a client of a control plane what it knows: each resource, its version, and what was
//! refused and why. Source: Envoy `envoy.service.status.v3`, gRFC A40.
//!
//! It answers for this client alone, so it takes no node matchers. Bodies are made anew from the configuration in force,
//! where there is one of that name; secrets are never among them, since a configuration has none. One more entry, a
//! `google.protobuf.Struct` named `fields`, says of each resource which of its fields are applied, ignored and refused (C20).

use std::{fmt, pin::Pin, sync::Arc};

use mesh_core::config::Config;
use prost::Message;
use prost_types::{Struct, Timestamp};
use tokio::sync::watch;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming, service::Routes};

use crate::{
    ads::{ResourceSet, TypeUrl},
    client::Client,
    node::Node,
    proto::{
        Any,
        envoy::{
            admin::v3::{ClientResourceStatus, UpdateFailureState},
            service::status::v3::{
                ClientConfig, ClientStatusRequest, ClientStatusResponse,
                client_config::GenericXdsConfig,
                client_status_discovery_service_server::{
                    ClientStatusDiscoveryService, ClientStatusDiscoveryServiceServer,
                },
            },
        },
    },
    resources::{Resource, Resources, State},
    translate::{self, Shape},
};

/// What a struct is called.
const FIELDS: &str = "type.googleapis.com/google.protobuf.Struct";

/// What is known of one client.
#[derive(Clone)]
pub struct Csds {
    node: Arc<Node>,
    resources: Resources,
    config: watch::Receiver<Option<Arc<Config>>>,
}

impl fmt::Debug for Csds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Csds").field("node", &self.node.id).finish_non_exhaustive()
    }
}

/// The CSDS service of a client, to be added to a tonic server.
pub fn csds_service(node: &Node, client: &Client) -> ClientStatusDiscoveryServiceServer<Csds> {
    let (resources, config) = (client.resources().clone(), client.config());
    ClientStatusDiscoveryServiceServer::new(Csds { node: Arc::new(node.clone()), resources, config })
}

/// The same as routes of an HTTP server.
pub fn csds_routes(node: &Node, client: &Client) -> Routes {
    Routes::new(csds_service(node, client))
}

type Answers = Pin<Box<dyn Stream<Item = Result<ClientStatusResponse, Status>> + Send>>;

#[tonic::async_trait]
impl ClientStatusDiscoveryService for Csds {
    type StreamClientStatusStream = Answers;

    async fn stream_client_status(
        &self,
        request: Request<Streaming<ClientStatusRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let this = self.clone();
        let answers = request.into_inner().map(move |request| this.answer(&request?));
        Ok(Response::new(Box::pin(answers)))
    }

    async fn fetch_client_status(
        &self,
        request: Request<ClientStatusRequest>,
    ) -> Result<Response<ClientStatusResponse>, Status> {
        self.answer(request.get_ref()).map(Response::new)
    }
}

impl Csds {
    /// In which form its kind of client is sent resources.
    fn shape(&self) -> Shape {
        if self.node.id.starts_with("router~") { Shape::Gateway } else { Shape::Sidecar }
    }

    fn answer(&self, request: &ClientStatusRequest) -> Result<ClientStatusResponse, Status> {
        if !request.node_matchers.is_empty() {
            return Err(Status::invalid_argument("node_matchers are not supported: this client answers for itself"));
        }
        let bodies = match self.config.borrow().clone() {
            Some(config) if !request.exclude_resource_contents => translate::encode(&config, self.shape()),
            _ => ResourceSet::default(),
        };
        let configs = self.resources.all().into_iter().map(|(kind, name, resource)| {
            let body = bodies.get(kind, &name).map(|body| body.body.clone());
            describe(kind, &name, resource, body.map(|value| Any { type_url: kind.as_str().to_owned(), value }))
        });
        let fields = (!request.exclude_resource_contents).then(|| fields(&self.resources));
        let config = ClientConfig {
            node: Some(self.node.to_proto()),
            generic_xds_configs: configs.chain(fields).collect(),
            ..ClientConfig::default()
        };
        Ok(ClientStatusResponse { config: vec![config] })
    }
}

/// What becomes of the fields of each resource, by type and name.
fn fields(resources: &Resources) -> GenericXdsConfig {
    let described = serde_json::to_value(resources.describe()).unwrap_or_default();
    let fields = [("resources".to_owned(), translate::from_json(&described))].into();
    GenericXdsConfig {
        type_url: FIELDS.to_owned(),
        name: "fields".to_owned(),
        xds_config: Some(Any { type_url: FIELDS.to_owned(), value: Struct { fields }.encode_to_vec().into() }),
        client_status: ClientResourceStatus::Acked.into(),
        ..GenericXdsConfig::default()
    }
}

fn describe(kind: TypeUrl, name: &str, resource: Resource, body: Option<Any>) -> GenericXdsConfig {
    let status = match resource.state {
        State::Requested => ClientResourceStatus::Requested,
        State::DoesNotExist => ClientResourceStatus::DoesNotExist,
        State::Acked => ClientResourceStatus::Acked,
        State::Nacked => ClientResourceStatus::Nacked,
    };
    let error_state = resource.refused.map(|refused| UpdateFailureState {
        details: refused.why,
        version_info: refused.version.to_string(),
        last_update_attempt: Some(Timestamp::from(refused.at)),
        ..UpdateFailureState::default()
    });
    GenericXdsConfig {
        type_url: kind.as_str().to_owned(),
        name: name.to_owned(),
        // What is not in force has no version and no body.
        xds_config: body.filter(|_| !resource.version.is_empty()),
        version_info: resource.version.to_string(),
        last_updated: Some(Timestamp::from(resource.since)),
        client_status: status.into(),
        error_state,
    }
}
