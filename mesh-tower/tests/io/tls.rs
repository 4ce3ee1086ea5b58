//! Mutual TLS alone, over in-memory connections: who is let in, who is not, and why.

use std::{io, sync::Arc};

use mesh_tower::{
    config::{MtlsMode, Protocol, StringMatch, UpstreamTls},
    tls::{Accepted, ClientTls, Identity, LiveIdentity, MtlsAcceptor, TlsError, UpstreamTarget},
};
use rcgen::ExtendedKeyUsagePurpose;
use rustls::{
    ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::ring,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::pki::{Ca, Chain, Leaf, RATINGS, REVIEWS};

/// AN1, AN5, AN8: both ends prove who they are; each learns the other's SPIFFE id.
#[tokio::test]
async fn both_ends_prove_who_they_are() {
    let ca = Ca::new();
    let (near, far) = duplex(16 << 10);
    let acceptor = MtlsAcceptor::new(ca.live(REVIEWS));
    let caller = ca.live(RATINGS);
    let (client, server) = tokio::join!(connect(&caller, near, &[REVIEWS]), acceptor.accept(far, MtlsMode::Strict));
    let (mut client, mut server) = (client.unwrap(), server.unwrap());
    assert_eq!(server.peer().unwrap().to_string(), RATINGS);
    assert_eq!(server.alpn(), Some(&b"http/1.1"[..]));
    echo(&mut client, &mut server).await;
}

/// AN1, AN5, AN8: a caller without a certificate of our trust domain is refused by STRICT, whatever is wrong with it.
#[tokio::test]
async fn callers_who_are_not_of_the_mesh_are_refused() {
    let (ca, other) = (Ca::new(), Ca::new());
    let leaf = |leaf: Leaf<'_>| Some(ca.sign(&leaf));
    let cases: Vec<(&str, Option<Chain>, &str)> = vec![
        ("no certificate", None, "NoCertificatesPresented"),
        ("another CA", Some(other.sign(&Leaf::default())), "BadSignature"),
        ("expired", leaf(Leaf { from: 2020, until: 2021, ..Leaf::default() }), "xpired"),
        ("not valid yet", leaf(Leaf { from: 2110, ..Leaf::default() }), "NotValidYet"),
        ("no name", leaf(Leaf { uris: &[], ..Leaf::default() }), "0 URI names"),
        ("two names", leaf(Leaf { uris: &[REVIEWS, RATINGS], ..Leaf::default() }), "2 URI names"),
        ("a web address", leaf(Leaf { uris: &["https://reviews"], ..Leaf::default() }), "not a SPIFFE id"),
        ("a DNS name alone", leaf(Leaf { uris: &[], dns: &["reviews"], ..Leaf::default() }), "0 URI names"),
        ("another domain", leaf(Leaf { uris: &["spiffe://evil/ns/default/sa/x"], ..Leaf::default() }), "trust domain"),
        (
            "a server's certificate",
            leaf(Leaf { usage: &[ExtendedKeyUsagePurpose::ServerAuth], ..Leaf::default() }),
            "RequiredEku",
        ),
    ];
    let acceptor = MtlsAcceptor::new(ca.live(REVIEWS));
    for (what, chain, reason) in cases {
        let (near, far) = duplex(16 << 10);
        let dial = TlsConnector::from(Arc::new(raw_client(chain))).connect(anywhere(), near);
        let (client, server) = tokio::join!(dial, acceptor.accept(far, MtlsMode::Strict));
        let error = server.err().unwrap_or_else(|| panic!("{what} was let in"));
        assert!(format!("{error} {error:?}").contains(reason), "{what}: {error} {error:?}");
        // In TLS 1.3 the caller hears of it when it reads.
        if let Ok(mut client) = client {
            client.read_u8().await.unwrap_err();
        }
    }
}

/// AN6, AN5: a server that is not one of those expected, or not of the mesh, is refused by the caller.
#[tokio::test]
async fn servers_who_are_not_expected_are_refused() {
    let (ca, other) = (Ca::new(), Ca::new());
    let good = || ca.sign(&Leaf::default());
    let cases: Vec<(&str, Chain, &[&str], Option<&str>)> = vec![
        ("as expected", good(), &[RATINGS, REVIEWS], None),
        ("any of the mesh", good(), &[], None),
        ("not expected", good(), &[RATINGS], Some("none of those")),
        ("a part of the name", good(), &["spiffe://cluster.local/ns/default/sa/rev"], Some("none of those")),
        ("another CA", other.sign(&Leaf::default()), &[], Some("BadSignature")),
        ("expired", ca.sign(&Leaf { until: 2021, ..Leaf::default() }), &[], Some("xpired")),
        (
            "the name as DNS",
            ca.sign(&Leaf { uris: &[RATINGS], dns: &["reviews"], ..Leaf::default() }),
            &[REVIEWS],
            Some("none of those"),
        ),
        (
            "a caller's certificate",
            ca.sign(&Leaf { usage: &[ExtendedKeyUsagePurpose::ClientAuth], ..Leaf::default() }),
            &[],
            Some("RequiredEku"),
        ),
    ];
    for (what, chain, expected, reason) in cases {
        let (near, far) = duplex(16 << 10);
        let acceptor = TlsAcceptor::from(Arc::new(raw_server(chain)));
        let identity = ca.live(RATINGS);
        let (client, _) = tokio::join!(connect(&identity, near, expected), acceptor.accept(far));
        match (client, reason) {
            (Ok(_), None) => {}
            (Err(error), Some(reason)) => assert!(format!("{error} {error:?}").contains(reason), "{what}: {error}"),
            (Ok(_), Some(_)) => panic!("{what} was believed"),
            (Err(error), None) => panic!("{what}: {error:?}"),
        }
    }
}

/// AN4: one port takes mutual TLS and plaintext in PERMISSIVE, told apart by the first byte; STRICT refuses plaintext.
#[tokio::test]
async fn permissive_takes_both_and_strict_does_not() {
    let ca = Ca::new();
    let acceptor = MtlsAcceptor::new(ca.live(REVIEWS));
    for (mode, taken) in [(MtlsMode::Permissive, true), (MtlsMode::Disable, true), (MtlsMode::Strict, false)] {
        let (mut near, far) = duplex(16 << 10);
        near.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        match acceptor.accept(far, mode).await {
            Ok(mut accepted) => {
                assert!(taken, "{mode:?}");
                assert!(accepted.peer().is_none());
                let mut read = [0; 5];
                accepted.read_exact(&mut read).await.unwrap();
                assert_eq!(&read, b"GET /", "{mode:?}");
            }
            Err(error) => assert!(!taken, "{mode:?}: {error}"),
        }
    }
    let (near, far) = duplex(16 << 10);
    let identity = ca.live(RATINGS);
    let (client, server) = tokio::join!(connect(&identity, near, &[]), acceptor.accept(far, MtlsMode::Permissive));
    let mut server = server.unwrap();
    assert_eq!(server.peer().unwrap().to_string(), RATINGS);
    echo(&mut client.unwrap(), &mut server).await;
}

/// CT7: a new certificate is used by the next handshake, on both ends, without anything being set up anew.
#[tokio::test]
async fn a_new_certificate_is_used_at_once() {
    let ca = Ca::new();
    let (ours, theirs) = (LiveIdentity::default(), ca.live(REVIEWS));
    let acceptor = MtlsAcceptor::new(theirs.clone());
    let (near, _far) = duplex(16 << 10);
    assert!(matches!(connect(&ours, near, &[]).await.unwrap_err(), TlsError::NoIdentity));
    for id in [RATINGS, "spiffe://cluster.local/ns/default/sa/ratings-v2"] {
        ours.replace(ca.identity(id));
        let (near, far) = duplex(16 << 10);
        let (client, server) = tokio::join!(connect(&ours, near, &[]), acceptor.accept(far, MtlsMode::Strict));
        client.unwrap();
        assert_eq!(server.unwrap().peer().unwrap().to_string(), id);
    }
    // A new root on the server's side: the old certificate is worth nothing any more.
    theirs.replace(Ca::new().identity(REVIEWS));
    let (near, far) = duplex(16 << 10);
    let (client, server) = tokio::join!(connect(&ours, near, &[]), acceptor.accept(far, MtlsMode::Strict));
    assert!(client.is_err() && server.is_err());
}

/// Secrets are in no debug output; what cannot be an identity says why.
#[tokio::test]
async fn identities_hide_their_keys_and_refuse_what_does_not_fit() {
    let ca = Ca::new();
    let shown = format!("{:?} {:?}", ca.identity(REVIEWS), ca.live(REVIEWS));
    assert!(shown.contains(REVIEWS) && !shown.to_lowercase().contains("key"), "{shown}");
    let ((chain, key), (_, other_key)) = (ca.sign(&Leaf::default()), ca.sign(&Leaf::default()));
    let refused = |result: Result<Identity, TlsError>, why: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    };
    refused(Identity::from_der(vec![], key.clone_key(), vec![ca.root()]), "chain is empty");
    refused(Identity::from_der(chain.clone(), key.clone_key(), vec![]), "no roots");
    refused(Identity::from_der(chain, other_key, vec![ca.root()]), "cannot be used");
    let (nameless, key) = ca.sign(&Leaf { uris: &[], ..Leaf::default() });
    refused(Identity::from_der(nameless, key, vec![ca.root()]), "0 URI names");
    refused(Identity::from_pem("x", "y", "z"), "not PEM");
}

pub(crate) async fn connect(
    identity: &LiveIdentity,
    io: DuplexStream,
    expected: &[&str],
) -> Result<tokio_rustls::client::TlsStream<DuplexStream>, TlsError> {
    let exact = |id: &&str| StringMatch::Exact { value: (*id).to_owned(), ignore_case: false };
    let tls = UpstreamTls {
        sni: "outbound_.9080_.v1_.reviews.default.svc.cluster.local".to_owned(),
        workload_identity: true,
        subject_alt_names: expected.iter().map(exact).collect(),
        ..UpstreamTls::default()
    };
    let target = UpstreamTarget { tls: &tls, protocol: Protocol::Http1, host: "reviews" };
    ClientTls::new(identity.clone()).connect(io, target).await
}

async fn echo<IO: AsyncRead + AsyncWrite + Unpin>(client: &mut IO, server: &mut Accepted<DuplexStream>) {
    client.write_all(b"ping").await.unwrap();
    client.flush().await.unwrap();
    let mut read = [0; 4];
    server.read_exact(&mut read).await.unwrap();
    server.write_all(&read).await.unwrap();
    server.flush().await.unwrap();
    client.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"ping");
}

pub(crate) fn anywhere() -> ServerName<'static> {
    ServerName::try_from("anywhere").unwrap()
}

/// A client that believes every server and shows whatever certificate it is given, if any.
pub(crate) fn raw_client(chain: Option<Chain>) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous));
    match chain {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
        None => builder.with_no_client_auth(),
    }
}

/// A server that shows whatever certificate it is given and asks for none.
pub(crate) fn raw_server((chain, key): Chain) -> ServerConfig {
    ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map(|mut config| {
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            config
        })
        .unwrap()
}

#[derive(Debug)]
pub(crate) struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// The connector layer works with hyper's own client and connector, without a control plane.
#[tokio::test]
async fn the_connector_layer_wraps_a_plain_connector() -> io::Result<()> {
    use http_body_util::{BodyExt, Empty};
    use hyper_util::{client::legacy, rt::TokioExecutor};
    use mesh_tower::tls::{MtlsConnectorLayer, MtlsListener};
    use tower::Layer;

    let ca = Ca::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let router = axum::Router::new().route("/", axum::routing::get(async || "hello"));
    let listener = MtlsListener::new(listener, MtlsAcceptor::new(ca.live(REVIEWS)));
    let server = tokio::spawn(axum::serve(listener, router).into_future());
    let layer = MtlsConnectorLayer::new(ca.live(RATINGS)).with_peers([REVIEWS]);
    let connector = layer.layer(legacy::connect::HttpConnector::new());
    let client = legacy::Client::builder(TokioExecutor::new()).build::<_, Empty<bytes::Bytes>>(connector);
    let response = client.get(format!("http://{address}/").parse().unwrap()).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello");
    let wrong = MtlsConnectorLayer::new(ca.live(RATINGS)).with_peers([RATINGS]);
    let connector = wrong.layer(legacy::connect::HttpConnector::new());
    let client = legacy::Client::builder(TokioExecutor::new()).build::<_, Empty<bytes::Bytes>>(connector);
    assert!(client.get(format!("http://{address}/").parse().unwrap()).await.unwrap_err().is_connect());
    server.abort();
    Ok(())
}
