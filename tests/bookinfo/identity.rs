//! Who workloads let in: callers with a certificate of this mesh, and nobody else.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use mesh_control::ca::{Ca, ServiceAccount};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::harness::shared;

/// A chain, leaf first, and the key of the leaf.
type Certificate = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// In the order of the loopback addresses.
const WORKLOADS: [(&str, &str); 6] = [
    ("productpage-v1", "productpage"),
    ("details-v1", "details"),
    ("ratings-v1", "ratings"),
    ("reviews-v1", "reviews"),
    ("reviews-v2", "reviews"),
    ("reviews-v3", "reviews"),
];
const REQUEST: &[u8] = b"GET /health HTTP/1.1\r\nhost: reviews:9080\r\nconnection: close\r\n\r\n";

/// AN4: a plaintext request gets no answer; mutual TLS is the only way in.
#[tokio::test(flavor = "multi_thread")]
async fn a_plaintext_call_is_refused() {
    let bookinfo = shared().await;
    for (name, _) in WORKLOADS {
        let stream = TcpStream::connect(bookinfo.workload(name)).await.unwrap();
        let answer = exchange(stream).await;
        assert!(!answer.contains("HTTP/"), "{name}: {answer}");
    }
}

/// AN8: the same caller is let in once it shows a certificate of this mesh: that, and nothing else, is what the others lack.
#[tokio::test(flavor = "multi_thread")]
async fn a_caller_of_this_mesh_is_let_in() {
    let bookinfo = shared().await;
    for (name, _) in WORKLOADS {
        let (config, _) = showing(Some(own(&bookinfo.dir().join("state"))));
        let answer = call(bookinfo.workload(name), config).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{name}: {answer}");
    }
}

/// AN5, AN8, CT5: every workload shows a certificate with its own SPIFFE identity, and refuses callers that show none, or one that
/// another authority made, whatever identity it claims.
#[tokio::test(flavor = "multi_thread")]
async fn a_caller_of_another_authority_is_refused() {
    let bookinfo = shared().await;
    let claimed = "spiffe://cluster.local/ns/default/sa/bookinfo-productpage";
    for (name, app) in WORKLOADS {
        for certificate in [None, Some(foreign(claimed))] {
            let shows_one = certificate.is_some();
            let (config, seen) = showing(certificate);
            let answer = call(bookinfo.workload(name), config).await;
            assert!(!answer.starts_with("HTTP/1.1"), "{name}, certificate {shows_one}: {answer}");
            let shown = seen.certificate.lock().unwrap().clone();
            let identity = format!("spiffe://cluster.local/ns/default/sa/bookinfo-{app}");
            assert!(shown.windows(identity.len()).any(|part| part == identity.as_bytes()), "{name} is not {identity}");
        }
    }
}

/// A client that shows this certificate, and what it will see.
fn showing(certificate: Option<Certificate>) -> (ClientConfig, Arc<Seen>) {
    let seen = Arc::new(Seen { provider: Arc::new(ring::default_provider()), certificate: Mutex::default() });
    let config = ClientConfig::builder_with_provider(seen.provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(seen.clone());
    let config = match certificate {
        Some((chain, key)) => config.with_client_auth_cert(chain, key).unwrap(),
        None => config.with_no_client_auth(),
    };
    (config, seen)
}

async fn call(addr: SocketAddr, config: ClientConfig) -> String {
    let stream = TcpStream::connect(addr).await.unwrap();
    let name = ServerName::try_from("reviews.default.svc.cluster.local").unwrap();
    match TlsConnector::from(Arc::new(config)).connect(name, stream).await {
        Ok(stream) => exchange(stream).await,
        Err(error) => error.to_string(),
    }
}

/// Sends a request and reads until the end, which must come.
async fn exchange(mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin) -> String {
    let mut answer = Vec::new();
    let ended = timeout(Duration::from_secs(20), async {
        // The other end may have hung up already.
        let _ = stream.write_all(REQUEST).await;
        stream.read_to_end(&mut answer).await
    });
    match ended.await.expect("an end, not silence") {
        Ok(_) => {}
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::ConnectionReset | ErrorKind::InvalidData | ErrorKind::UnexpectedEof
            ) => {}
        Err(error) => panic!("{error:?}"),
    }
    String::from_utf8_lossy(&answer).into_owned()
}

/// A certificate for this identity, by an authority that nobody here knows.
fn foreign(identity: &str) -> Certificate {
    let mut root = CertificateParams::new(Vec::new()).unwrap();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = CertifiedIssuer::self_signed(root, KeyPair::generate().unwrap()).unwrap();
    let mut leaf = CertificateParams::new(Vec::new()).unwrap();
    leaf.subject_alt_names = vec![SanType::URI(identity.try_into().unwrap())];
    let key = KeyPair::generate().unwrap();
    let leaf = leaf.signed_by(&key, &root).unwrap();
    (vec![leaf.der().clone(), root.der().clone()], key.into())
}

/// A certificate for productpage by the authority of the mesh, whose keys are in this directory.
fn own(dir: &Path) -> Certificate {
    let ca = Ca::open(dir, "cluster.local").unwrap();
    let key = KeyPair::generate().unwrap();
    let request = CertificateParams::new(Vec::new()).unwrap().serialize_request(&key).unwrap().pem().unwrap();
    let account = ServiceAccount::new("default", "bookinfo-productpage").unwrap();
    let chain = ca.sign_csr(&request, &account, None, SystemTime::now()).unwrap();
    let chain = chain.iter().map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).collect();
    (chain, key.into())
}

/// Takes any server, and remembers what it showed.
#[derive(Debug)]
struct Seen {
    provider: Arc<CryptoProvider>,
    certificate: Mutex<Vec<u8>>,
}

impl ServerCertVerifier for Seen {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        *self.certificate.lock().unwrap() = end_entity.to_vec();
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
