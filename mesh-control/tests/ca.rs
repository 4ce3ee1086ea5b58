//! The certificate authority and the authorisation of workloads over real gRPC and TLS, as a client meets them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::SocketAddr;

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use mesh_control::{
    ControlPlane, WorkloadSpec,
    ca::{SERVER_NAME, ServiceAccount},
};
use mesh_xds::proto::{
    AggregatedDiscoveryServiceClient, DiscoveryRequest, IstioCertificateRequest, IstioCertificateServiceClient,
    envoy::config::core::v3::Node,
};
use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde_json::json;
use tempfile::TempDir;
use tonic::{
    Code, Request, Status,
    transport::{Certificate, Channel, ClientTlsConfig},
};
use x509_parser::extensions::GeneralName;

const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";

/// CT4, CT5: a CSR comes back as a chain for the identity the token proves, whatever the CSR says.
#[tokio::test(flavor = "multi_thread")]
async fn csr_comes_back_for_the_identity_of_the_token() {
    let mesh = Mesh::start().await;
    let token = mesh.plane.token("default", "bookinfo-reviews").unwrap();
    let chain = mesh.sign(&token, 0).await.unwrap();
    assert_eq!(chain.len(), 3, "leaf, intermediate and root");
    assert_eq!(chain[2], mesh.plane.root_certificate());
    let der = CertificateDer::from_pem_slice(chain[0].as_bytes()).unwrap();
    let (_, leaf) = x509_parser::parse_x509_certificate(&der).unwrap();
    let names = &leaf.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(names, &[GeneralName::URI("spiffe://cluster.local/ns/default/sa/bookinfo-reviews")]);

    let der = CertificateDer::from_pem_slice(mesh.sign(&token, 600).await.unwrap()[0].as_bytes()).unwrap();
    let (_, short) = x509_parser::parse_x509_certificate(&der).unwrap();
    let left = short.validity().time_to_expiration().unwrap();
    assert!(left.whole_seconds() <= 600, "the lifetime asked for counts: {left}");
    mesh.plane.shutdown().await;
}

/// CT4: what proves nothing gets nothing, and the reason is told.
#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_prove_nothing_are_refused() {
    let mesh = Mesh::start().await;
    let account = ServiceAccount::new("default", "bookinfo-reviews").unwrap();
    let pem = std::fs::read(mesh.dir.path().join("token-key.pem")).unwrap();
    let with_audience = |audience: &str| {
        let claims = json!({
            "iss": "mesh-control", "aud": [audience], "sub": account.subject(),
            "iat": 0, "nbf": 0, "exp": 9_999_999_999_u64,
        });
        let key = EncodingKey::from_ec_pem(&pem).unwrap();
        jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &key).unwrap()
    };
    assert!(mesh.sign(&with_audience("istio-ca"), 0).await.is_ok(), "the test signs as the control plane does");

    let elsewhere = ControlPlane::builder().xds_addr(any()).api_addr(any()).start().await.unwrap();
    let foreign = elsewhere.token("default", "bookinfo-reviews").unwrap();
    let cases =
        [(with_audience("kubernetes"), "audience"), (foreign, "did not sign"), ("nonsense".to_owned(), "not a token")];
    for (token, expected) in cases {
        let status = mesh.sign(&token, 0).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated);
        assert!(status.message().contains(expected), "{status:?} should say {expected}");
        assert!(!status.message().contains(&token), "a token is never repeated");
        let status = mesh.open(&token, "default", "bookinfo-reviews").await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "ADS refuses what the authority refuses: {status:?}");
    }
    let status = mesh.sign(&mesh.plane.token("default", "a").unwrap(), 1 << 40).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
}

/// OP10: a node that claims another namespace or service account than its token proves is turned away.
#[tokio::test(flavor = "multi_thread")]
async fn node_must_be_who_its_token_says() {
    let mesh = Mesh::start().await;
    let token = mesh.plane.token("default", "bookinfo-reviews").unwrap();
    for (namespace, account) in [("other", "bookinfo-reviews"), ("default", "bookinfo-ratings")] {
        let status = mesh.open(&token, namespace, account).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{namespace}/{account}: {status:?}");
        assert!(status.message().contains(account), "{status:?}");
    }
    assert!(mesh.plane.proxy_status().is_empty());
    mesh.open(&token, "default", "bookinfo-reviews").await.unwrap();
}

/// CT5: a client that trusts another root does not even connect.
#[tokio::test(flavor = "multi_thread")]
async fn server_is_known_by_the_root_only() {
    let mesh = Mesh::start().await;
    let elsewhere = ControlPlane::builder().xds_addr(any()).api_addr(any()).start().await.unwrap();
    assert!(connect(mesh.plane.xds_address(), &elsewhere.root_certificate()).await.is_err());
    assert!(connect(mesh.plane.xds_address(), &mesh.plane.root_certificate()).await.is_ok());
}

/// CT6: the files a workload is started with hold a token for it, unreadable to others, and no key.
#[tokio::test(flavor = "multi_thread")]
async fn workload_files_hold_what_it_needs_and_no_more() {
    let mesh = Mesh::start().await;
    let dir = mesh.dir.path().join("workloads");
    let spec = WorkloadSpec {
        service_account: "bookinfo-reviews".to_owned(),
        ..WorkloadSpec::new("reviews-v1", "127.0.0.14".parse().unwrap())
    };
    mesh.plane.bootstrap_for(&spec, &dir).unwrap();
    let mut names: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["reviews-v1.default.token", "root-cert.pem"]);
    let token = std::fs::read_to_string(dir.join("reviews-v1.default.token")).unwrap();
    assert!(mesh.sign(&token, 0).await.is_ok());
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(dir.join("reviews-v1.default.token")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

struct Mesh {
    plane: ControlPlane,
    dir: TempDir,
}

impl Mesh {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let builder = ControlPlane::builder().xds_addr(any()).api_addr(any()).state_dir(dir.path());
        Self { plane: builder.start().await.unwrap(), dir }
    }

    async fn channel(&self) -> Channel {
        connect(self.plane.xds_address(), &self.plane.root_certificate()).await.unwrap()
    }

    /// Asks for a certificate with a CSR that names somebody else.
    async fn sign(&self, token: &str, seconds: i64) -> Result<Vec<String>, Status> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![rcgen::SanType::URI("spiffe://cluster.local/ns/a/sa/b".try_into().unwrap())];
        let csr = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
        let message = IstioCertificateRequest { csr, validity_duration: seconds, metadata: None };
        let mut client = IstioCertificateServiceClient::new(self.channel().await);
        let answer = client.create_certificate(authorised(Request::new(message), token)).await?;
        Ok(answer.into_inner().cert_chain)
    }

    /// Opens an ADS stream and waits for its first answer.
    async fn open(&self, token: &str, namespace: &str, account: &str) -> Result<(), Status> {
        let text =
            |value: &str| prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(value.to_owned())) };
        let fields = [("NAME", "reviews-v1"), ("NAMESPACE", namespace), ("SERVICE_ACCOUNT", account)];
        let fields = fields.into_iter().map(|(key, value)| (key.to_owned(), text(value))).collect();
        let node = Node {
            id: format!("sidecar~127.0.0.14~reviews-v1.{namespace}~{namespace}.svc.cluster.local"),
            metadata: Some(prost_types::Struct { fields }),
            ..Node::default()
        };
        let first = DiscoveryRequest { node: Some(node), type_url: LISTENER.to_owned(), ..DiscoveryRequest::default() };
        let mut client = AggregatedDiscoveryServiceClient::new(self.channel().await);
        let requests = tokio_stream::StreamExt::chain(tokio_stream::once(first), tokio_stream::pending());
        let answers = client.stream_aggregated_resources(authorised(Request::new(requests), token)).await?;
        answers.into_inner().message().await?;
        Ok(())
    }
}

fn authorised<T>(mut request: Request<T>, token: &str) -> Request<T> {
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

async fn connect(address: SocketAddr, root: &str) -> Result<Channel, tonic::transport::Error> {
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(root)).domain_name(SERVER_NAME);
    Channel::from_shared(format!("https://{address}")).unwrap().tls_config(tls)?.connect().await
}

fn any() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}
