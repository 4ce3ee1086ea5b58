//! TLS towards a workload as somebody who takes any server: what it shows, and what it answers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// A chain, leaf first, and the key of the leaf.
pub(crate) type Certificate = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

const REQUEST: &[u8] = b"GET /health HTTP/1.1\r\nhost: reviews:9080\r\nconnection: close\r\n\r\n";

/// A client that shows this certificate, and what it will see.
pub(crate) fn showing(certificate: Option<Certificate>) -> (ClientConfig, Arc<Seen>) {
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

/// One request by TLS; the answer, or why there is none.
pub(crate) async fn call(addr: SocketAddr, config: ClientConfig) -> String {
    let stream = TcpStream::connect(addr).await.unwrap();
    let name = ServerName::try_from("reviews.default.svc.cluster.local").unwrap();
    match TlsConnector::from(Arc::new(config)).connect(name, stream).await {
        Ok(stream) => exchange(stream).await,
        Err(error) => error.to_string(),
    }
}

/// Sends a request and reads until the end, which must come.
pub(crate) async fn exchange(mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin) -> String {
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

/// Takes any server, and remembers what it showed.
#[derive(Debug)]
pub(crate) struct Seen {
    provider: Arc<CryptoProvider>,
    /// What it showed.
    pub(crate) certificate: Mutex<Vec<u8>>,
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
