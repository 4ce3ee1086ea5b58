//! The drivers over a real loopback connection: our client, our server, and servers that misbehave.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use mesh_core::config::{
    Action, Cluster, Discovery, Endpoint, EndpointAddress, Endpoints, Forward, HeaderChanges, LocalityEndpoints, Name,
    Route, RouteMatch, RouteTable, VirtualHost, WeightedCluster,
};
use rcgen::{BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Request, Response,
    transport::{Certificate, Identity, Server, ServerTlsConfig},
};
use xxhash_rust::xxh64::xxh64;

use self::deaf::Deaf;
use super::*;
use crate::{
    ads::ResourceSet,
    certs::CertSource,
    node::Node,
    proto::{
        self, AggregatedDiscoveryServiceServer, DiscoveryRequest, IstioCertificateRequest, IstioCertificateResponse,
        IstioCertificateService, IstioCertificateServiceServer,
    },
    server::{ConnectionId, Credentials, Peer, Source, ads_service},
    translate::{Shape, encode},
    transport,
};

mod deaf;
mod log;
mod servers;

/// Nothing here takes this long unless it is broken.
const PATIENCE: Duration = Duration::from_secs(20);

/// XD1, XD3, XD14: a configuration arrives whole, a change follows, the server hears that both are used.
#[tokio::test]
async fn configuration_arrives_and_changes() {
    let plane = Plane::start(&config("a", 1)).await;
    let client = Client::start(plane.bootstrap());
    let mut configs = client.config();
    assert_eq!(*next_config(&mut configs).await, config("a", 1));
    plane.source.set(&config("a", 2));
    assert_eq!(*next_config(&mut configs).await, config("a", 2));
    plane.source.set(&config("b", 2));
    assert_eq!(*wait_for(&mut configs, |config| config.clusters.contains_key("b")).await, config("b", 2));
    let version = plane.source.views.borrow().version(TypeUrl::Cluster);
    plane.source.wait_for(|events| events.contains(&format!("acked CDS {version}"))).await;
    let status = client.status();
    assert_eq!((status.types[&TypeUrl::Cluster].resources, &status.types[&TypeUrl::Cluster].version), (1, &version));
    assert!(status.connected_since.is_some() && status.error.is_none());
    drop(client);
    plane.source.wait_for(|events| events.contains(&"disconnect 1".to_owned())).await;
}

/// XD8, XD9: what is in force stays when the control plane is lost, and one that returns is used within two seconds.
#[tokio::test]
async fn control_plane_may_go_and_come_back() {
    let plane = Plane::start(&config("a", 1)).await;
    let client = Client::start(plane.bootstrap());
    let mut configs = client.config();
    next_config(&mut configs).await;
    let address = plane.address;
    drop(plane);
    let mut status = client.status.clone();
    // The stream is lost, and at least one attempt to open another has failed: only those name the address.
    let refused = |status: &Arc<Status>| status.error.as_ref().is_some_and(|why| why.contains(&address.to_string()));
    tokio::time::timeout(PATIENCE, status.wait_for(refused)).await.unwrap().unwrap();
    assert!(!configs.has_changed().unwrap() && configs.borrow().is_some());
    let returned = Instant::now();
    let _plane = Plane::start_at(address, &config("b", 1), None).await;
    assert_eq!(*wait_for(&mut configs, |config| config.clusters.contains_key("b")).await, config("b", 1));
    assert!(returned.elapsed() < Duration::from_secs(2), "{:?}", returned.elapsed());
}

/// XD9: a client that is there before its control plane waits for it.
#[tokio::test]
async fn client_may_come_first() {
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let client = Client::start(bootstrap(address, None));
    client.status.clone().wait_for(|status| status.error.is_some()).await.unwrap();
    let _plane = Plane::start_at(address, &config("a", 1), None).await;
    next_config(&mut client.config()).await;
}

/// XD3, XD4: a bad resource is refused by name, the good ones of the same response are used.
#[tokio::test]
async fn bad_resource_is_refused_alone() {
    let plane = Plane::start(&config("a", 1)).await;
    let mut set = ResourceSet::clone(&plane.source.views.borrow());
    // A cluster whose `type` and name are all there is: EDS without a configuration for it.
    set.insert(TypeUrl::Cluster, "bad", [&[0x0a, 3][..], b"bad", &[0x10, 0x7f]].concat());
    plane.source.views.send_replace(Arc::new(set));
    let client = Client::start(plane.bootstrap());
    let config = next_config(&mut client.config()).await;
    assert_eq!(config.clusters["a"].failed, None);
    assert!(config.clusters["bad"].failed.is_some());
    plane
        .source
        .wait_for(|events| events.iter().any(|event| event.starts_with("nacked CDS") && event.contains("\"bad\"")))
        .await;
    let nack = client.status().types[&TypeUrl::Cluster].nack.clone().unwrap();
    assert!(nack.message.contains("CDS \"bad\"") && !nack.message.contains("\"a\""), "{nack:?}");
}

/// XD11: whatever status the control plane ends a stream with, it is text here and nothing else.
#[tokio::test]
async fn status_codes_stay_here() {
    for code in 1..=16 {
        let plane = Plane::start(&config("a", 1)).await;
        *plane.source.refuses.lock().unwrap() = Some(code.into());
        let client = Client::start(plane.bootstrap());
        let mut status = client.status.clone();
        let status = status.wait_for(|status| status.error.is_some()).await.unwrap().clone();
        assert!(status.error.as_ref().unwrap().contains("refused on purpose"), "{status:?}");
        assert!(client.config().borrow().is_none());
    }
}

/// XD21, XD22: TLS with the named root and server name, the token read again at each connect.
#[tokio::test]
async fn tls_and_token() {
    let directory = tempfile::tempdir().unwrap();
    let ca = TestCa::new();
    let plane = Plane::start_at("127.0.0.1:0".parse().unwrap(), &config("a", 1), Some(&ca)).await;
    std::fs::write(directory.path().join("token"), " first\n").unwrap();
    std::fs::write(directory.path().join("root.pem"), &ca.root).unwrap();
    let client = Client::start(bootstrap(plane.address, Some(directory.path())));
    next_config(&mut client.config()).await;
    assert!(plane.source.saw("verify first"));
    // The token is rotated, the stream ends, the next one carries the new token.
    std::fs::write(directory.path().join("token"), "second").unwrap();
    let address = plane.address;
    drop(plane);
    let plane = Plane::start_at(address, &config("a", 1), Some(&ca)).await;
    plane.source.wait_for(|events| events.contains(&"verify second".to_owned())).await;
    drop(client);
    // Another root: no stream, and the reason is told.
    std::fs::write(directory.path().join("root.pem"), TestCa::new().root).unwrap();
    let client = Client::start(bootstrap(plane.address, Some(directory.path())));
    let mut status = client.status.clone();
    let status = status.wait_for(|status| status.error.is_some()).await.unwrap().clone();
    assert!(status.error.as_ref().unwrap().contains("certificate"), "{status:?}");
}

/// CT4: a certificate for the node's identity is signed over the same TLS and token, and expires when nobody renews it.
#[tokio::test]
async fn certificate_is_signed_renewed_and_withdrawn() {
    let directory = tempfile::tempdir().unwrap();
    let ca = TestCa::new();
    let plane = Plane::start_at("127.0.0.1:0".parse().unwrap(), &config("a", 1), Some(&ca)).await;
    std::fs::write(directory.path().join("token"), "t").unwrap();
    std::fs::write(directory.path().join("root.pem"), &ca.root).unwrap();
    let certs = CertSource::start(bootstrap(plane.address, Some(directory.path())));
    let mut identity = certs.identity();
    let first =
        tokio::time::timeout(PATIENCE, identity.wait_for(Option::is_some)).await.unwrap().unwrap().clone().unwrap();
    assert_eq!(first.spiffe_id, "spiffe://cluster.local/ns/x/sa/default");
    let renewed = |now: &Option<Arc<crate::certs::Identity>>| now.as_ref().is_some_and(|now| now.chain != first.chain);
    tokio::time::timeout(PATIENCE, identity.wait_for(renewed)).await.unwrap().unwrap();
    drop(plane);
    tokio::time::timeout(PATIENCE, identity.wait_for(Option::is_none)).await.unwrap().unwrap();
    assert!(certs.error().is_some());
}

/// XD15: a server that writes and does not read cannot make the client stop reading.
#[tokio::test]
async fn reading_never_waits_for_writing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = AggregatedDiscoveryServiceServer::new(Deaf);
    let _server = Task::spawn(async move {
        let incoming = TcpListenerStream::new(listener);
        Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
    });
    let client = Client::start(bootstrap(address, None));
    let mut status = client.status.clone();
    let last = |status: &Arc<Status>| status.types.get(&TypeUrl::Cluster).is_some_and(|cds| cds.version == "5000");
    tokio::time::timeout(PATIENCE, status.wait_for(last)).await.unwrap().unwrap();
}

/// XD18: the node reaches the source with its metadata; a stream without a node is refused.
#[tokio::test]
async fn first_request_carries_the_node() {
    let plane = Plane::start(&config("a", 1)).await;
    let _client = Client::start(plane.bootstrap());
    plane.source.wait_for(|events| events.contains(&"connect sidecar~127.0.0.1~a.default~x".to_owned())).await;
    let channel = transport::connect(&plane.bootstrap().server).await.unwrap();
    let mut raw = proto::AggregatedDiscoveryServiceClient::new(channel);
    let request = DiscoveryRequest { type_url: TypeUrl::Cluster.as_str().to_owned(), ..DiscoveryRequest::default() };
    let mut answers = raw.stream_aggregated_resources(tokio_stream::once(request)).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap_err().code(), tonic::Code::InvalidArgument);
}

/// Closing the channel of views ends the streams cleanly.
#[tokio::test]
async fn source_can_close_down() {
    let plane = Plane::start(&config("a", 1)).await;
    let client = Client::start(plane.bootstrap());
    next_config(&mut client.config()).await;
    plane.source.closing.send_replace(true);
    plane.source.wait_for(|events| events.contains(&"disconnect 1".to_owned())).await;
    let mut status = client.status.clone();
    let status = status.wait_for(|status| status.error.is_some()).await.unwrap().clone();
    assert_eq!(status.error.as_deref(), Some("the server ended the stream"));
}

async fn next_config(configs: &mut watch::Receiver<Option<Arc<Config>>>) -> Arc<Config> {
    tokio::time::timeout(PATIENCE, configs.changed()).await.unwrap().unwrap();
    configs.borrow_and_update().clone().unwrap()
}

async fn wait_for(configs: &mut watch::Receiver<Option<Arc<Config>>>, is: impl Fn(&Config) -> bool) -> Arc<Config> {
    let found = configs.wait_for(|config| config.as_ref().is_some_and(|config| is(config)));
    tokio::time::timeout(PATIENCE, found).await.unwrap().unwrap().clone().unwrap()
}

/// What the client says it is; it says so to its own balancing as well.
const NODE: &str = "sidecar~127.0.0.1~a.default~x";

/// Port 80 leads to one cluster with that many endpoints.
fn config(cluster: &str, endpoints: u8) -> Config {
    let name = Name::from(cluster);
    let endpoint = |n: u8| Endpoint::at(EndpointAddress::Socket(([10, 0, 0, n], 80).into()));
    let locality =
        LocalityEndpoints { endpoints: (1..=endpoints).map(endpoint).collect(), ..LocalityEndpoints::default() };
    let split = WeightedCluster { cluster: name.clone(), weight: 1, ..WeightedCluster::default() };
    let route = Route {
        name: "all".into(),
        origin: None,
        matches: RouteMatch::default(),
        action: Action::Forward(Forward { clusters: vec![split], ..Forward::default() }),
        fault: None,
        headers: HeaderChanges::default(),
        operation: None,
    };
    let host = VirtualHost {
        name: "any".into(),
        domains: vec!["*".to_owned()],
        routes: vec![route],
        ..VirtualHost::default()
    };
    let table = RouteTable { name: "80".into(), virtual_hosts: vec![Arc::new(host)], ..RouteTable::default() };
    let endpoints = Endpoints { localities: vec![locality], overprovisioning: 140, ..Default::default() };
    let cluster = Cluster {
        name: name.clone(),
        discovery: Discovery::Eds(name.clone()),
        endpoints: Arc::new(endpoints),
        ..Cluster::default()
    };
    let mut config = Config::default();
    config.local.id = NODE.into();
    config.outbound.insert(80, Arc::new(table));
    config.clusters.insert(name, Arc::new(cluster));
    config
}

fn bootstrap(address: SocketAddr, secured: Option<&Path>) -> Arc<Bootstrap> {
    let mut server = json!({"server_uri": address.to_string(), "channel_creds": [{"type": "insecure"}]});
    if let Some(directory) = secured {
        server["channel_creds"] = json!([{"type": "tls", "config": {
            "ca_certificate_file": directory.join("root.pem"), "server_name": "plane.test",
        }}]);
        server["call_creds"] =
            json!([{"type": "jwt_token_file", "config": {"jwt_token_file": directory.join("token")}}]);
    }
    let text = json!({
        "xds_servers": [server],
        "node": {"id": NODE},
        "mesh": {"ca": {"ttl_seconds": 3}},
    });
    Arc::new(Bootstrap::parse(&text.to_string(), "test").unwrap())
}

/// A control plane; dropping it breaks all its connections.
struct Plane {
    address: SocketAddr,
    source: Arc<TestSource>,
    _runtime: Runtime,
}

/// Connections outlive the accept loop of tonic's server: a runtime of its own takes them along, as a kill would.
struct Runtime(Option<tokio::runtime::Runtime>);

impl Drop for Runtime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Plane {
    async fn start(config: &Config) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), config, None).await
    }

    async fn start_at(address: SocketAddr, config: &Config, ca: Option<&TestCa>) -> Self {
        let source = Arc::new(TestSource::new(config));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let mut builder = Server::builder();
        if let Some(ca) = ca {
            let tls = ServerTlsConfig::new().identity(ca.server()).client_ca_root(Certificate::from_pem(&ca.root));
            builder = builder.tls_config(tls.client_auth_optional(true)).unwrap();
        }
        let mut router = builder.add_service(ads_service(source.clone()));
        if let Some(ca) = ca {
            router = router.add_service(IstioCertificateServiceServer::new(ca.clone()));
        }
        // The plane that was here before may still be closing its listener.
        let bind = async move {
            loop {
                if let Ok(listener) = TcpListener::bind(address).await {
                    return listener;
                }
                tokio::task::yield_now().await;
            }
        };
        let listener = tokio::time::timeout(PATIENCE, runtime.spawn(bind)).await.expect("it stays taken").unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
        Self { address, source, _runtime: Runtime(Some(runtime)) }
    }

    fn bootstrap(&self) -> Arc<Bootstrap> {
        bootstrap(self.address, None)
    }
}

struct TestSource {
    views: watch::Sender<Arc<ResourceSet>>,
    closing: watch::Sender<bool>,
    refuses: Mutex<Option<tonic::Code>>,
    connections: AtomicU64,
    events: watch::Sender<Vec<String>>,
}

impl TestSource {
    fn new(config: &Config) -> Self {
        Self {
            views: watch::Sender::new(Arc::new(encode(config, Shape::Sidecar))),
            closing: watch::Sender::new(false),
            refuses: Mutex::default(),
            connections: AtomicU64::default(),
            events: watch::Sender::default(),
        }
    }

    fn set(&self, config: &Config) {
        self.views.send_replace(Arc::new(encode(config, Shape::Sidecar)));
    }

    fn saw(&self, event: &str) -> bool {
        self.events.borrow().iter().any(|seen| seen == event)
    }

    async fn wait_for(&self, is: impl Fn(&Vec<String>) -> bool) {
        let mut events = self.events.subscribe();
        let found = tokio::time::timeout(PATIENCE, events.wait_for(|events| is(events))).await.is_ok();
        assert!(found, "{:?}", self.events.borrow());
    }

    fn tell(&self, event: String) {
        self.events.send_modify(|events| events.push(event));
    }
}

impl Source for TestSource {
    fn verify(&self, credentials: &Credentials) -> Result<Option<String>, tonic::Status> {
        if let Some(code) = *self.refuses.lock().unwrap() {
            return Err(tonic::Status::new(code, "refused on purpose"));
        }
        if let Some(certificate) = credentials.certificates.first() {
            self.tell(format!("certificate {:016x}", xxh64(certificate, 0)));
        }
        if let Some(token) = &credentials.bearer {
            self.tell(format!("verify {}", token.0));
        }
        Ok(None)
    }

    fn connect(
        &self,
        _: &Peer,
        node: &Node,
    ) -> Result<(ConnectionId, watch::Receiver<Arc<ResourceSet>>), tonic::Status> {
        self.tell(format!("connect {}", node.id));
        let (sender, receiver) = watch::channel(self.views.borrow().clone());
        let (mut views, mut closing) = (self.views.subscribe(), self.closing.subscribe());
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    Ok(()) = views.changed() => drop(sender.send_replace(views.borrow_and_update().clone())),
                    _ = closing.wait_for(|closing| *closing) => return,
                    else => return,
                }
            }
        });
        Ok((ConnectionId(self.connections.fetch_add(1, Ordering::Relaxed) + 1), receiver))
    }

    fn acked(&self, _: ConnectionId, kind: TypeUrl, version: &str) {
        self.tell(format!("acked {kind} {version}"));
    }

    fn nacked(&self, _: ConnectionId, kind: TypeUrl, version: &str, message: &str) {
        self.tell(format!("nacked {kind} {version} {message}"));
    }

    fn disconnect(&self, id: ConnectionId) {
        self.tell(format!("disconnect {}", id.0));
    }
}

#[derive(Clone)]
struct TestCa {
    root: String,
    issuer: Arc<Issuer<'static, KeyPair>>,
}

impl TestCa {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap().pem();
        Self { root, issuer: Arc::new(Issuer::new(params, key)) }
    }

    fn server(&self) -> Identity {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["plane.test".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &*self.issuer).unwrap();
        Identity::from_pem(certificate.pem(), key.serialize_pem())
    }
}

#[tonic::async_trait]
impl IstioCertificateService for TestCa {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, tonic::Status> {
        assert_eq!(request.metadata().get("authorization").unwrap(), "Bearer t");
        let request = request.into_inner();
        let mut signing = CertificateSigningRequestParams::from_pem(&request.csr).unwrap();
        let now = SystemTime::now();
        signing.params.not_before = now.into();
        signing.params.not_after = (now + Duration::from_secs(request.validity_duration.try_into().unwrap())).into();
        let certificate = signing.signed_by(&*self.issuer).unwrap();
        Ok(Response::new(IstioCertificateResponse { cert_chain: vec![certificate.pem(), self.root.clone()] }))
    }
}
