//! Identities from agents over Unix sockets: SDS and the SPIFFE Workload API, played by servers in this process.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use mesh_xds::{
    ads::{ResourceSet, TypeUrl},
    bootstrap::Bootstrap,
    certs::{CertSource, HEADER, Identity},
    proto::{
        Any, DiscoveryRequest, DiscoveryResponse,
        envoy::service::secret::v3::secret_discovery_service_server::{
            SecretDiscoveryService, SecretDiscoveryServiceServer,
        },
        spiffe::workload::{
            X509svid, X509svidRequest, X509svidResponse,
            spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer},
        },
    },
    translate::{self, Told},
};
use rcgen::{CertificateParams, KeyPair, SanType};
use serde_json::json;
use tokio::{
    net::UnixListener,
    sync::{mpsc, watch},
};
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};

const FIRST: &str = "spiffe://a/ns/x/sa/first";
const SECOND: &str = "spiffe://a/ns/x/sa/second";

struct Made {
    chain: String,
    der: Vec<u8>,
    key: KeyPair,
}

fn make(id: &str, ttl: Duration) -> Made {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
    let now = SystemTime::now();
    (params.not_before, params.not_after) = ((now - Duration::from_secs(1)).into(), (now + ttl).into());
    let certificate = params.self_signed(&key).unwrap();
    Made { chain: certificate.pem(), der: certificate.der().to_vec(), key }
}

const HOUR: Duration = Duration::from_secs(3_600);

fn bootstrap(mesh: &serde_json::Value) -> Arc<Bootstrap> {
    let text = json!({
        "xds_servers": [{"server_uri": "127.0.0.1:1", "channel_creds": [{"type": "insecure"}]}],
        "node": {"id": "sidecar~127.0.0.1~a.x~x.svc.cluster.local"},
        "mesh": mesh,
    });
    Arc::new(Bootstrap::parse(&text.to_string(), "test").unwrap())
}

async fn holds(source: &CertSource, id: &str) -> Arc<Identity> {
    let is = |identity: &Option<Arc<Identity>>| identity.as_ref().is_some_and(|it| it.spiffe_id == id);
    let mut identities = source.identity();
    let found = tokio::time::timeout(Duration::from_secs(20), identities.wait_for(is)).await.unwrap().unwrap().clone();
    found.unwrap()
}

async fn complains(source: &CertSource, why: &str) {
    let mut standing = source.standing();
    let says = |error: &Option<String>| error.as_ref().is_some_and(|error| error.contains(why));
    let waited = tokio::time::timeout(Duration::from_secs(20), standing.wait_for(|it| says(&it.error))).await;
    assert!(waited.is_ok(), "{:?} should say {why}", source.error());
}

fn listen(path: &Path) -> UnixListenerStream {
    let _ = std::fs::remove_file(path);
    UnixListenerStream::new(UnixListener::bind(path).unwrap())
}

/// Sends whatever it is given to whoever asks, and tells what it is answered.
struct Sds {
    responses: watch::Receiver<DiscoveryResponse>,
    heard: mpsc::UnboundedSender<DiscoveryRequest>,
}

#[tonic::async_trait]
impl SecretDiscoveryService for Sds {
    type StreamSecretsStream = ReceiverStream<Result<DiscoveryResponse, Status>>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let (send, responses) = mpsc::channel(1);
        let (mut news, heard) = (self.responses.clone(), self.heard.clone());
        let mut requests = request.into_inner();
        news.mark_changed();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    changed = news.changed() => {
                        let response = news.borrow_and_update().clone();
                        if changed.is_err() || send.send(Ok(response)).await.is_err() {
                            return;
                        }
                    }
                    request = requests.message() => match request {
                        Ok(Some(request)) => drop(heard.send(request)),
                        _ => return,
                    }
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(responses)))
    }
}

fn response(nonce: &str, made: &Made) -> DiscoveryResponse {
    let mut set = ResourceSet::default();
    let root: Arc<[u8]> = made.der.as_slice().into();
    let mut told = Told { trust_domain: "a".to_owned(), ..Told::default() };
    told.trust.bundles.insert("a".to_owned(), vec![root]);
    translate::encode_told(&told, &mut set);
    translate::encode_certificate(&made.chain, &made.key.serialize_pem(), &mut set);
    let resources = [translate::OWN, translate::ROOTS].map(|name| Any {
        type_url: TypeUrl::Secret.as_str().to_owned(),
        value: set.get(TypeUrl::Secret, name).unwrap().body.clone(),
    });
    DiscoveryResponse {
        version_info: nonce.to_owned(),
        nonce: nonce.to_owned(),
        type_url: TypeUrl::Secret.as_str().to_owned(),
        resources: resources.into(),
        ..DiscoveryResponse::default()
    }
}

/// CT2: an agent's secrets become the identity, bad ones are refused and change nothing, and an agent that comes back is followed.
#[tokio::test]
async fn an_agents_secrets_become_the_identity() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("sds");
    let (send, responses) = watch::channel(response("1", &make(FIRST, HOUR)));
    let (tell, mut heard) = mpsc::unbounded_channel();
    let serve = || {
        let sds = SecretDiscoveryServiceServer::new(Sds { responses: responses.clone(), heard: tell.clone() });
        tokio::spawn(Server::builder().add_service(sds).serve_with_incoming(listen(&socket)))
    };
    let source = CertSource::start(bootstrap(&json!({"sds": format!("unix://{}", socket.display())})));
    complains(&source, "sds").await;
    let agent = serve();
    holds(&source, FIRST).await;
    assert_eq!(source.error(), None);
    let first = heard.recv().await.unwrap();
    assert_eq!(first.resource_names, ["default", "ROOTCA"]);
    assert!(first.node.is_some() && first.type_url == TypeUrl::Secret.as_str());
    let acked = heard.recv().await.unwrap();
    assert_eq!((acked.version_info.as_str(), acked.response_nonce.as_str(), acked.error_detail), ("1", "1", None));

    // A key of another certificate: refused by name, and the identity stays.
    let (good, other) = (make(SECOND, HOUR), make(SECOND, HOUR));
    send.send(response("2", &Made { key: other.key, ..good })).unwrap();
    complains(&source, "another key").await;
    let nacked = heard.recv().await.unwrap();
    assert_eq!(nacked.response_nonce, "2");
    assert!(nacked.error_detail.unwrap().message.contains("another key"));
    holds(&source, FIRST).await;

    agent.abort();
    let _ = agent.await;
    send.send(response("3", &make(SECOND, HOUR))).unwrap();
    serve();
    holds(&source, SECOND).await;
    let mut watch = source.watch();
    assert_eq!(watch.next().await.unwrap().trust.unwrap().bundles["a"].len(), 1);
    assert!(!format!("{source:?}").contains("PRIVATE"));
}

/// Sends whatever it is given to callers who mean it.
struct Agent {
    responses: watch::Receiver<X509svidResponse>,
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for Agent {
    type FetchX509SVIDStream = UnboundedReceiverStream<Result<X509svidResponse, Status>>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        if request.metadata().get(HEADER).is_none_or(|value| value != "true") {
            return Err(Status::invalid_argument("security header missing from request"));
        }
        let (send, responses) = mpsc::unbounded_channel();
        let mut news = self.responses.clone();
        news.mark_changed();
        tokio::spawn(async move {
            while news.changed().await.is_ok() {
                if send.send(Ok(news.borrow_and_update().clone())).is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(UnboundedReceiverStream::new(responses)))
    }
}

fn svid(id: &str, made: &Made, federated: &Made) -> X509svidResponse {
    let svid = X509svid {
        spiffe_id: id.to_owned(),
        x509_svid: made.der.clone().into(),
        x509_svid_key: made.key.serialize_der().into(),
        bundle: [made.der.clone(), federated.der.clone()].concat().into(),
        hint: String::new(),
    };
    let other = X509svid { spiffe_id: SECOND.to_owned(), ..X509svid::default() };
    X509svidResponse {
        svids: vec![svid, other],
        crl: Vec::new(),
        federated_bundles: [("spiffe://b".to_owned(), federated.der.clone().into())].into(),
    }
}

/// CT3, CT11: the first SVID becomes the identity, its bundle and the federated ones what peers are judged by; what does not fit
/// changes nothing; what expires is withdrawn.
#[tokio::test]
async fn the_workload_apis_svid_becomes_the_identity() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api");
    let theirs = make("spiffe://b/x", HOUR);
    let (send, responses) = watch::channel(svid(FIRST, &make(FIRST, HOUR), &theirs));
    let agent = SpiffeWorkloadApiServer::new(Agent { responses });
    tokio::spawn(Server::builder().add_service(agent).serve_with_incoming(listen(&socket)));
    let bootstrap = bootstrap(&json!({"workload_api": format!("unix:{}", socket.display())}));
    let source = CertSource::start(bootstrap);
    let identity = holds(&source, FIRST).await;
    assert_eq!((identity.chain.len(), identity.roots.len()), (1, 2));
    let trust = source.watch().next().await.unwrap().trust.unwrap();
    assert_eq!(trust.bundles.keys().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(*trust.bundles["b"][0], *theirs.der);

    send.send(svid(SECOND, &make(FIRST, HOUR), &theirs)).unwrap();
    complains(&source, "not for").await;
    send.send(X509svidResponse::default()).unwrap();
    complains(&source, "no identity").await;
    holds(&source, FIRST).await;
    send.send(svid(SECOND, &make(SECOND, Duration::from_secs(2)), &theirs)).unwrap();
    holds(&source, SECOND).await;
    let mut identities = source.identity();
    tokio::time::timeout(Duration::from_secs(20), identities.wait_for(Option::is_none)).await.unwrap().unwrap();
}

/// CT2, CT3: the first source that is named is used: a CA, an agent's SDS, the Workload API; the variable of SPIFFE is last.
#[test]
fn sources_have_an_order() {
    let origin = |mesh: serde_json::Value| bootstrap(&mesh).identity_origin().map(|origin| origin.to_string());
    assert_eq!(origin(json!({})), None);
    assert_eq!(origin(json!({"sds": "/s", "workload_api": "unix:///w"})).unwrap(), "sds /s");
    assert_eq!(origin(json!({"workload_api": "unix:///w"})).unwrap(), "workload api /w");
    let text = json!({
        "xds_servers": [{"server_uri": "127.0.0.1:1", "channel_creds": [{"type": "insecure"}]}],
        "node": {"id": "a"}, "mesh": {"sds": "tcp://1.2.3.4:5"},
    });
    let error = Bootstrap::parse(&text.to_string(), "test").unwrap_err().to_string();
    assert!(error.contains("mesh.sds") && error.contains("not a Unix socket"), "{error}");
    let text = json!({
        "xds_servers": [{"server_uri": "127.0.0.1:1", "channel_creds": [{"type": "insecure"}]}], "node": {"id": "a"},
    });
    let variables = move |name: &str| match name {
        "GRPC_XDS_BOOTSTRAP_CONFIG" => Some(text.to_string()),
        "SPIFFE_ENDPOINT_SOCKET" => Some("unix:///run/spire.sock".to_owned()),
        _ => None,
    };
    let bootstrap = Bootstrap::from_variables(variables).unwrap();
    assert_eq!(bootstrap.identity_origin().unwrap().to_string(), "workload api /run/spire.sock");
}
