//! What a program knows, asked for as tools do: over CSDS on its admin port.

use mesh_xds::{
    ads::TypeUrl,
    proto::envoy::{
        admin::v3::ClientResourceStatus,
        service::status::v3::{
            ClientStatusRequest, client_config::GenericXdsConfig,
            client_status_discovery_service_client::ClientStatusDiscoveryServiceClient,
        },
        r#type::matcher::v3::NodeMatcher,
    },
};
use tonic::{Code, transport::Channel};

use crate::{
    harness::{Kind, Program, Upstream},
    plane::{Sayings, anywhere, leading_to, program, reaches, set, stands},
};

type Client = ClientStatusDiscoveryServiceClient<Channel>;

async fn ask(client: &mut Client, request: ClientStatusRequest) -> Vec<GenericXdsConfig> {
    let answer = client.fetch_client_status(request).await.unwrap().into_inner();
    assert_eq!(answer.config.len(), 1);
    assert!(answer.config[0].node.as_ref().unwrap().id.starts_with("sidecar~127.0.0.1"));
    answer.config.into_iter().flat_map(|config| config.generic_xds_configs).collect()
}

fn one(configs: &[GenericXdsConfig], kind: TypeUrl) -> &GenericXdsConfig {
    configs.iter().find(|config| config.type_url == kind.as_str()).unwrap()
}

/// AD1, C20: each resource with its version and body; what is refused with the reason, while what is in force stays; what is
/// waited for or does not exist as that. Node matchers are refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resources_are_told_as_they_stand() {
    for kind in Kind::ALL {
        let upstream = Upstream::start("one").await;
        let sayings = Sayings::of(&leading_to(kind, &upstream));
        let plane = sayings.speak(anywhere());
        let program: Program = program(kind, plane.address, None).await;
        reaches(&program, "one").await;
        let channel = Channel::from_shared(format!("http://{}", program.mesh.admin_addr().unwrap())).unwrap();
        let mut client = Client::new(channel.connect().await.unwrap());
        let configs = ask(&mut client, ClientStatusRequest::default()).await;
        assert_eq!(configs.len(), 5, "{configs:?}");
        let fields = configs.iter().find(|config| config.name == "fields").unwrap().xds_config.as_ref().unwrap();
        let text = String::from_utf8_lossy(&fields.value).into_owned();
        assert!(["resources", "applied", "eds_cluster_config"].iter().all(|word| text.contains(word)), "{text}");
        for config in configs.iter().filter(|config| config.name != "fields") {
            assert_eq!(config.client_status(), ClientResourceStatus::Acked, "{config:?}");
            assert!(!config.version_info.is_empty() && config.last_updated.is_some() && config.error_state.is_none());
        }
        let cluster = one(&configs, TypeUrl::Cluster);
        assert_eq!(
            (cluster.name.as_str(), cluster.xds_config.as_ref().unwrap().type_url.as_str()),
            ("one", TypeUrl::Cluster.as_str())
        );
        let version = cluster.version_info.clone();
        let bare = ClientStatusRequest { exclude_resource_contents: true, ..ClientStatusRequest::default() };
        assert!(ask(&mut client, bare).await.iter().all(|config| config.xds_config.is_none()));

        // A cluster of a type that does not exist.
        let mut bad = set(&leading_to(kind, &upstream));
        bad.insert(TypeUrl::Cluster, "one", [&[0x0a, 3][..], b"one", &[0x10, 0x7f]].concat());
        sayings.say(bad);
        stands(&program, |status| status["types"]["CDS"]["nack"].is_object()).await;
        let configs = ask(&mut client, ClientStatusRequest::default()).await;
        let cluster = one(&configs, TypeUrl::Cluster);
        assert_eq!((cluster.client_status(), &cluster.version_info), (ClientResourceStatus::Nacked, &version));
        let error = cluster.error_state.as_ref().unwrap();
        assert!(error.details.contains("type") && error.version_info != version, "{error:?}");
        assert!(cluster.xds_config.is_some(), "what is in force is told");

        let matchers = ClientStatusRequest { node_matchers: vec![NodeMatcher::default()], ..Default::default() };
        assert_eq!(client.fetch_client_status(matchers).await.unwrap_err().code(), Code::InvalidArgument);
    }
}

/// AD4: one call gives a server of the program's own what tools ask; without a control plane there is nothing to give, and nothing
/// fails for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_of_ones_own_has_them_by_one_call() {
    for kind in Kind::ALL {
        let upstream = Upstream::start("one").await;
        let sayings = Sayings::of(&leading_to(kind, &upstream));
        let plane = sayings.speak(anywhere());
        let program: Program = program(kind, plane.address, None).await;
        reaches(&program, "one").await;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let own = axum::Router::new().route("/own", axum::routing::get(async || "own"));
        let app = own.merge(program.mesh.admin_services());
        let serving = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        let channel = Channel::from_shared(format!("http://{address}")).unwrap();
        let mut client = Client::new(channel.connect().await.unwrap());
        assert_eq!(ask(&mut client, ClientStatusRequest::default()).await.len(), 5, "{kind:?}");
        serving.abort();
    }
    let alone = mesh_tower::Mesh::builder().off().build().await.unwrap();
    assert!(!alone.admin_services().has_routes());
}
