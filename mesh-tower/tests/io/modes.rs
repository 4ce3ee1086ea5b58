//! TLS with servers outside the mesh: what of files is shown and trusted, by which names a server is judged, and which
//! versions are spoken.

use std::{path::Path, sync::Arc};

use mesh_tower::{
    config::{CertificateFiles, MtlsMode, Protocol, StringMatch, TlsVersions, UpstreamTls},
    tls::{ClientTls, LiveIdentity, MtlsAcceptor, Sessions, TlsError, UpstreamTarget},
};
use rustls::{
    HandshakeKind, RootCertStore, ServerConfig,
    crypto::ring,
    server::WebPkiClientVerifier,
    version::{TLS12, TLS13},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio_rustls::TlsAcceptor;

use crate::pki::{Ca, Leaf, RATINGS, REVIEWS, chain_pem, pem};

/// A web server with that name; with `callers`, of certificates of that CA.
fn web(
    ca: &Ca,
    name: &str,
    callers: Option<&Ca>,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> TlsAcceptor {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(versions).unwrap();
    let builder = match callers {
        None => builder.with_no_client_auth(),
        Some(callers) => {
            let mut roots = RootCertStore::empty();
            roots.add(callers.root()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        }
    };
    let (chain, key) = ca.sign(&Leaf { uris: &[], dns: &[name], ..Leaf::default() });
    TlsAcceptor::from(Arc::new(builder.with_single_cert(chain, key).unwrap()))
}

/// Did both come to terms, and how?
async fn call(server: &TlsAcceptor, tls: &UpstreamTls, sessions: &Sessions) -> Result<HandshakeKind, TlsError> {
    let (near, far) = duplex(64 << 10);
    let target = UpstreamTarget { tls, protocol: Protocol::Http1, host: "10.0.0.1" };
    let client = async {
        let client = ClientTls::new(LiveIdentity::default());
        let mut stream = client.connect_again(near, target, sessions).await?;
        // A server refuses after the handshake of TLS 1.3.
        stream.read_u8().await.map_err(TlsError::Handshake)?;
        Ok(stream.get_ref().1.handshake_kind().unwrap())
    };
    let serving = async {
        let mut stream = server.accept(far).await.ok()?;
        stream.write_all(b"!").await.ok()?;
        stream.flush().await.ok()
    };
    tokio::join!(client, serving).0
}

fn path(dir: &Path, name: &str) -> String {
    dir.join(name).to_str().unwrap().to_owned()
}

/// AN3, AN6, AN7: without the workload's identity a server is judged by the roots of a file and by its host's name or the list
/// of names, always; a certificate of files is shown, and read again when it changes. Sessions are resumed here too.
#[tokio::test]
async fn files_are_shown_and_trusted() {
    let (ca, other) = (Ca::new(), Ca::new());
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| std::fs::write(dir.path().join(name), text).unwrap();
    write("root.pem", pem("CERTIFICATE", &ca.root()));
    write("other.pem", pem("CERTIFICATE", &other.root()));
    // Files tell that they are new by their time, which is given here: two writes may fall within one tick of the clock.
    let show = |issuer: &Ca, second: u64| {
        let (chain, key) = chain_pem(&issuer.sign(&Leaf { uris: &[RATINGS], ..Leaf::default() }));
        write("chain.pem", chain);
        write("key.pem", key);
        for name in ["chain.pem", "key.pem"] {
            let file = std::fs::File::options().write(true).open(path(dir.path(), name)).unwrap();
            file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(second)).unwrap();
        }
    };
    show(&ca, 1);
    let own = CertificateFiles { chain: path(dir.path(), "chain.pem"), key: path(dir.path(), "key.pem") };
    let simple = |sni: &str, root: &str, names: &[&str]| UpstreamTls {
        sni: sni.to_owned(),
        roots: Some(path(dir.path(), root)),
        subject_alt_names: names
            .iter()
            .map(|name| StringMatch::Exact { value: (*name).to_owned(), ignore_case: false })
            .collect(),
        ..UpstreamTls::default()
    };
    let open = web(&ca, "api.example.com", None, &[&TLS12, &TLS13]);
    for (tls, reason) in [
        (simple("api.example.com", "root.pem", &[]), None),
        (simple("other.example.com", "root.pem", &[]), Some("unexpected_name")),
        (simple("", "root.pem", &[]), Some("unexpected_name")),
        (simple("anything.example.com", "root.pem", &["x", "api.example.com"]), None),
        (simple("api.example.com", "root.pem", &["x"]), Some("unexpected_name")),
        (simple("api.example.com", "other.pem", &[]), Some("unknown_issuer")),
        (simple("api.example.com", "missing.pem", &[]), Some("not_ready")),
    ] {
        let told = call(&open, &tls, &Sessions::default()).await.map_err(|error| error.reason().as_str()).err();
        assert_eq!(told, reason, "{tls:?}");
    }
    let closed = web(&ca, "api.example.com", Some(&ca), &[&TLS12, &TLS13]);
    let bare = simple("api.example.com", "root.pem", &[]);
    assert!(call(&closed, &bare, &Sessions::default()).await.is_err(), "a certificate is demanded");
    let mutual = UpstreamTls { certificate: Some(own), ..bare };
    let sessions = Sessions::default();
    assert_eq!(call(&closed, &mutual, &sessions).await.unwrap(), HandshakeKind::Full);
    assert_eq!(call(&closed, &mutual, &sessions).await.unwrap(), HandshakeKind::Resumed);
    // Other files of the same names: what was resumed with the ones before is over.
    show(&other, 2);
    assert!(call(&closed, &mutual, &sessions).await.is_err(), "another's certificate");
    show(&ca, 3);
    assert_eq!(call(&closed, &mutual, &sessions).await.unwrap(), HandshakeKind::Full);
}

/// AN10: TLS 1.3 is preferred, 1.2 spoken unless it is excluded; who has no version in common is refused.
#[tokio::test]
async fn versions_are_those_asked_for() {
    let ca = Ca::new();
    for (server, client, agreed) in [
        (TlsVersions::Both, TlsVersions::Both, Some(TLS13.version)),
        (TlsVersions::Both, TlsVersions::Only12, Some(TLS12.version)),
        (TlsVersions::Only12, TlsVersions::Both, Some(TLS12.version)),
        (TlsVersions::Only13, TlsVersions::Both, Some(TLS13.version)),
        (TlsVersions::Only13, TlsVersions::Only12, None),
        (TlsVersions::Only12, TlsVersions::Only13, None),
    ] {
        let (near, far) = duplex(64 << 10);
        let acceptor = MtlsAcceptor::new(ca.live(REVIEWS)).with_versions(server);
        let tls = UpstreamTls { workload_identity: true, versions: client, ..UpstreamTls::default() };
        let target = UpstreamTarget { tls: &tls, protocol: Protocol::Http1, host: "reviews" };
        let caller = ClientTls::new(ca.live(RATINGS));
        let (called, answered) = tokio::join!(caller.connect(near, target), acceptor.accept(far, MtlsMode::Strict));
        match agreed {
            Some(version) => assert_eq!(called.unwrap().get_ref().1.protocol_version(), Some(version), "{server:?}"),
            None => assert_eq!(answered.unwrap_err().reason().as_str(), "protocol", "{server:?} {client:?}"),
        }
    }
}
