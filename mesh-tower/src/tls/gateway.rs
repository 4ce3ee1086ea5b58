//! The answering end at a gateway: which name is asked for, whose certificate that is, and whether the caller must show one.
//!
//! The first message of the handshake is read before anything is decided by it. Who is to end TLS here goes on with the same bytes,
//! and so does who only gets them handed on. Settings are made once for each TLS context; when its certificates change it is
//! another context, and what could be resumed under the one before goes with it.

use std::{
    collections::BTreeSet,
    fmt, io,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use bytes::BytesMut;
use mesh_core::{
    config::{
        CallerCertificate, CertificateFiles, Gateway, GatewayCertificate, GatewayChain, GatewayRoots, GatewayTls,
        GatewayTo, MtlsMode, StringMatch,
    },
    identity::names_match,
};
use rustls::{
    DigitallySignedStruct, DistinguishedName, HandshakeKind, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::CryptoProvider,
    server::{
        Acceptor, ClientHello, ResolvesServerCert, ServerSessionMemoryCache, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
    time_provider::TimeProvider,
};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime, pem::PemObject};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio_rustls::TlsAcceptor;

use super::{Accepted, MtlsAcceptor, Rewound, TlsError, files, named::has_name, provider, versions};
use crate::telemetry::refused;

/// The most that the first message of a handshake may be. Source: Envoy `tls_inspector`, 64 KiB.
const LONGEST_HELLO: usize = 65_536;
/// Sessions kept to be resumed, of each context.
const SESSIONS: usize = 4096;
/// Contexts whose settings are kept.
const KEPT: usize = 1024;

/// Takes connections of a gateway's port. Clones share what was made.
#[derive(Clone, Debug)]
pub(crate) struct GatewayAcceptor {
    mesh: MtlsAcceptor,
    made: Arc<Mutex<Vec<Made>>>,
}

/// What becomes of a connection.
pub(crate) enum Chosen<IO> {
    /// Its requests are served, by the routes of this chain.
    Requests(Accepted<IO>, Arc<GatewayChain>),
    /// Its bytes are handed on; it asked for this name, if for any.
    Bytes(Accepted<IO>, Arc<GatewayChain>, String),
}

#[derive(Clone, Debug)]
struct Made {
    of: Arc<GatewayTls>,
    stamp: Vec<Option<SystemTime>>,
    config: Arc<ServerConfig>,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
}

impl GatewayAcceptor {
    /// With the process's own identity, for callers of the mesh.
    pub(crate) fn new(mesh: MtlsAcceptor) -> Self {
        Self { mesh, made: Arc::default() }
    }

    /// What callers of the mesh are taken by.
    pub(crate) fn of_mesh(&self) -> MtlsAcceptor {
        self.mesh.clone()
    }

    /// Looks whom the caller asks for, and shakes hands as that is to be done.
    ///
    /// # Errors
    ///
    /// Nobody here has the name, its certificate has not come, or the caller shows none where one is demanded.
    pub(crate) async fn accept<IO>(&self, io: Rewound<IO>, gateway: &Gateway) -> Result<Chosen<IO>, TlsError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let chosen = self.choose(io, gateway).await;
        if let Err(error) = &chosen {
            refused("inbound", error.reason());
        }
        chosen
    }

    async fn choose<IO>(&self, mut io: Rewound<IO>, gateway: &Gateway) -> Result<Chosen<IO>, TlsError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let mut read = BytesMut::new();
        let name = match gateway.inspects() {
            true => server_name(&mut io, &mut read).await.map_err(TlsError::Handshake)?,
            false => String::new(),
        };
        let Some(chain) = gateway.chain(&name).cloned() else {
            return Err(refusal(format!("nothing is served by the name {name:?}")));
        };
        read.extend_from_slice(&io.first);
        let io = Rewound { first: read.freeze(), io: io.io };
        let accepted = match &chain.tls {
            None => Accepted::plain(io),
            Some(tls) if tls.roots == Some(GatewayRoots::Mesh) => {
                let acceptor = self.mesh.clone().with_alpn(tls.alpn.iter().map(String::as_str));
                let accepted = acceptor.with_versions(tls.versions).accept_begun(io, MtlsMode::Strict).await?;
                let expected = tls.subject_alt_names.as_slice();
                match accepted.peer() {
                    Some(peer) if !expected.is_empty() && !names_match(expected, [peer.as_str()]) => {
                        return Err(refusal(format!("{peer} is not among those who may call")));
                    }
                    _ => accepted,
                }
            }
            Some(tls) => Accepted::of_stream(self.shake(io, tls).await?),
        };
        Ok(match &chain.to {
            GatewayTo::Http(_) => Chosen::Requests(accepted, chain),
            GatewayTo::Bytes(_) => {
                let name = accepted.server_name().map_or(name, ToOwned::to_owned);
                Chosen::Bytes(accepted, chain, name)
            }
        })
    }

    async fn shake<IO>(
        &self,
        io: Rewound<IO>,
        tls: &Arc<GatewayTls>,
    ) -> Result<tokio_rustls::server::TlsStream<Rewound<IO>>, TlsError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let made = self.made(tls)?;
        let stream = TlsAcceptor::from(Arc::clone(&made.config)).accept(io).await.map_err(TlsError::Handshake)?;
        let connection = stream.get_ref().1;
        // The library does not verify again a caller that resumes.
        if connection.handshake_kind() != Some(HandshakeKind::Full)
            && let Some(verifier) = &made.verifier
        {
            let chain = connection.peer_certificates().unwrap_or_default();
            let verified = match (chain.split_first(), self.mesh.clock().current_time()) {
                (Some((leaf, rest)), Some(time)) => verifier.verify_client_cert(leaf, rest, time).map(drop),
                (None, _) if !verifier.client_auth_mandatory() => Ok(()),
                _ => Err(rustls::Error::NoCertificatesPresented),
            };
            verified.map_err(|error| TlsError::Handshake(io::Error::new(io::ErrorKind::InvalidData, error)))?;
        }
        Ok(stream)
    }

    /// The settings of a context.
    fn made(&self, tls: &Arc<GatewayTls>) -> Result<Made, TlsError> {
        let stamp = stamp(tls);
        let mut all = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let same =
            all.iter().find(|made| Arc::ptr_eq(&made.of, tls)).or_else(|| all.iter().find(|made| made.of == *tls));
        if let Some(made) = same.filter(|made| made.stamp == stamp) {
            return Ok(made.clone());
        }
        let (config, verifier) = make(tls, self.mesh.clock())?;
        let made = Made { of: Arc::clone(tls), stamp, config: Arc::new(config), verifier };
        all.retain(|other| other.of != *tls);
        if all.len() >= KEPT {
            all.remove(0);
        }
        all.push(made.clone());
        Ok(made)
    }
}

fn refusal(why: String) -> TlsError {
    TlsError::Handshake(io::Error::new(io::ErrorKind::InvalidData, why))
}

/// The name that is asked for, empty if none is; what was read for it is kept.
async fn server_name<IO: AsyncRead + Unpin>(io: &mut IO, read: &mut BytesMut) -> io::Result<String> {
    let mut acceptor = Acceptor::default();
    let mut heard = 0;
    loop {
        if io.read_buf(read).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut new = read.get(heard..).unwrap_or_default();
        while !new.is_empty() {
            acceptor.read_tls(&mut new)?;
        }
        heard = read.len();
        match acceptor.accept() {
            Ok(Some(accepted)) => return Ok(accepted.client_hello().server_name().unwrap_or_default().to_owned()),
            Ok(None) if heard > LONGEST_HELLO => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the handshake does not come to its end"));
            }
            Ok(None) => {}
            Err((error, _)) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
        }
    }
}

/// When the files that a context names were last written.
fn stamp(tls: &GatewayTls) -> Vec<Option<SystemTime>> {
    let of = |file: &String| std::fs::metadata(file).and_then(|it| it.modified()).ok();
    let mut stamp = Vec::new();
    for certificate in &tls.certificates {
        if let GatewayCertificate::Files(CertificateFiles { chain, key }) = certificate {
            stamp.extend([of(chain), of(key)]);
        }
    }
    if let Some(GatewayRoots::File(file)) = &tls.roots {
        stamp.push(of(file));
    }
    stamp
}

fn make(
    tls: &GatewayTls,
    clock: impl TimeProvider + 'static,
) -> Result<(ServerConfig, Option<Arc<dyn ClientCertVerifier>>), TlsError> {
    let mut crypto = CryptoProvider::clone(&provider());
    if !tls.ciphers.is_empty() {
        let named: BTreeSet<&str> = tls.ciphers.iter().map(String::as_str).collect();
        crypto.cipher_suites.retain(|suite| match suite.tls13() {
            // The names are of TLS 1.2; those of TLS 1.3 are not chosen from.
            Some(_) => true,
            None => openssl_name(&format!("{:?}", suite.suite())).is_some_and(|name| named.contains(name)),
        });
    }
    let crypto = Arc::new(crypto);
    let mut keys = Vec::new();
    for certificate in &tls.certificates {
        keys.push(Arc::new(key_of(certificate, &crypto)?));
    }
    let verifier = verifier(tls, &crypto)?;
    let builder = ServerConfig::builder_with_details(Arc::clone(&crypto), Arc::new(clock))
        .with_protocol_versions(versions(tls.versions))
        .map_err(TlsError::Config)?;
    let builder = match &verifier {
        Some(verifier) => builder.with_client_cert_verifier(Arc::clone(verifier)),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(Keys(keys)));
    config.alpn_protocols = tls.alpn.iter().map(|name| name.clone().into_bytes()).collect();
    config.session_storage = ServerSessionMemoryCache::new(SESSIONS);
    config.send_tls13_tickets = 1;
    Ok((config, verifier))
}

fn key_of(certificate: &GatewayCertificate, crypto: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
    let wrong = |of: &str, error: &dyn fmt::Display| TlsError::Identity(format!("{of}: {error}"));
    let (of, chain, key) = match certificate {
        GatewayCertificate::Own => {
            return Err(TlsError::Identity("the mesh's own certificate is for callers of the mesh only".to_owned()));
        }
        GatewayCertificate::Named(name, None) => {
            return Err(TlsError::Identity(format!("{name} has not come from the control plane")));
        }
        GatewayCertificate::Named(name, Some(pair)) => {
            let chain = CertificateDer::pem_slice_iter(pair.chain.as_bytes()).collect::<Result<Vec<_>, _>>();
            let key = PrivateKeyDer::from_pem_slice(pair.key.expose().as_bytes());
            (&**name, chain, key)
        }
        GatewayCertificate::Files(CertificateFiles { chain, key }) => {
            let read = CertificateDer::pem_file_iter(chain).and_then(Iterator::collect::<Result<Vec<_>, _>>);
            (chain.as_str(), read, PrivateKeyDer::from_pem_file(key))
        }
    };
    let chain = chain.map_err(|error| wrong(of, &error))?;
    // What is wrong with a key is not said in detail: the detail might be of the key.
    let key = key.map_err(|_| wrong(of, &"its key is no private key in PEM"))?;
    CertifiedKey::from_der(chain, key, crypto).map_err(|error| wrong(of, &error))
}

fn verifier(tls: &GatewayTls, crypto: &Arc<CryptoProvider>) -> Result<Option<Arc<dyn ClientCertVerifier>>, TlsError> {
    let optional = match tls.callers {
        CallerCertificate::None => return Ok(None),
        CallerCertificate::Optional => true,
        CallerCertificate::Required => false,
    };
    let (roots, crls) = match &tls.roots {
        Some(GatewayRoots::File(file)) => (files::roots(Some(file))?, Vec::new()),
        Some(GatewayRoots::Named(name, Some(known))) => {
            let mut roots = RootCertStore::empty();
            for root in &known.roots {
                let added = roots.add(CertificateDer::from(root.to_vec()));
                added.map_err(|error| TlsError::Identity(format!("{name}: {error}")))?;
            }
            let crls = known.crls.iter().map(|crl| CertificateRevocationListDer::from(crl.to_vec())).collect();
            (Arc::new(roots), crls)
        }
        Some(GatewayRoots::Named(name, None)) => {
            return Err(TlsError::Identity(format!("{name} has not come from the control plane")));
        }
        Some(GatewayRoots::Mesh) | None => {
            return Err(TlsError::Identity(
                "callers are to show certificates, and nothing says by what roots".to_owned(),
            ));
        }
    };
    // A list that has expired says nothing of those revoked since.
    let mut builder = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(crypto))
        .with_crls(crls)
        .enforce_revocation_expiration();
    if optional {
        builder = builder.allow_unauthenticated();
    }
    let web = builder.build().map_err(|error| TlsError::Identity(error.to_string()))?;
    if tls.subject_alt_names.is_empty() {
        return Ok(Some(web));
    }
    Ok(Some(Arc::new(Named { web, expected: tls.subject_alt_names.clone() })))
}

/// The certificates of a context: the first whose key the caller can verify, else the first.
#[derive(Debug)]
struct Keys(Vec<Arc<CertifiedKey>>);

impl ResolvesServerCert for Keys {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let fits = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(hello.signature_schemes()).is_some();
        self.0.iter().find(fits).or_else(|| self.0.first()).cloned()
    }
}

/// Callers with one of several names.
#[derive(Debug)]
struct Named {
    web: Arc<dyn ClientCertVerifier>,
    expected: Vec<StringMatch>,
}

impl ClientCertVerifier for Named {
    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.web.verify_client_cert(leaf, rest, now)?;
        match has_name(leaf, &self.expected) {
            true => Ok(verified),
            false => Err(rustls::Error::InvalidCertificate(rustls::CertificateError::ApplicationVerificationFailure)),
        }
    }

    fn client_auth_mandatory(&self) -> bool {
        self.web.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.web.root_hint_subjects()
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.web.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.web.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.web.supported_verify_schemes()
    }
}

/// OpenSSL's name of a cipher of TLS 1.2.
fn openssl_name(iana: &str) -> Option<&'static str> {
    Some(match iana {
        "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384" => "ECDHE-ECDSA-AES256-GCM-SHA384",
        "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256" => "ECDHE-ECDSA-AES128-GCM-SHA256",
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256" => "ECDHE-ECDSA-CHACHA20-POLY1305",
        "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384" => "ECDHE-RSA-AES256-GCM-SHA384",
        "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256" => "ECDHE-RSA-AES128-GCM-SHA256",
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256" => "ECDHE-RSA-CHACHA20-POLY1305",
        _ => return None,
    })
}
