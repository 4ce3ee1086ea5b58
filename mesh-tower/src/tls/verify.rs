//! How a peer's certificate is judged, on rustls-webpki: chain, validity and key usage first, then the SPIFFE id.
//!
//! Only URI names count. A certificate with none, with several, or with one that is not a SPIFFE id of our trust domain
//! is refused, whatever else it says; names of other kinds that look like one are not looked at.

use std::{error::Error as StdError, fmt, sync::Arc};

use mesh_core::{config::StringMatch, identity::SpiffeId};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

/// What both directions check.
pub(super) struct Verifier {
    pub(super) algorithms: WebPkiSupportedAlgorithms,
    pub(super) anchors: Arc<[TrustAnchor<'static>]>,
    /// The trust domain a peer must be of.
    pub(super) trust_domain: String,
    /// Any one must match the peer's id; an empty list takes any of the trust domain. Only asked of servers.
    pub(super) subject_alt_names: Vec<StringMatch>,
}

impl Verifier {
    fn chain(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<SpiffeId, Error> {
        let certificate = EndEntityCert::try_from(leaf).map_err(pki_error)?;
        certificate
            .verify_for_usage(self.algorithms.all, &self.anchors, intermediates, now, usage, None, None)
            .map_err(pki_error)?;
        let id = spiffe_id(&certificate).map_err(refuse)?;
        if id.trust_domain() != self.trust_domain {
            return Err(refuse(IdentityError::TrustDomain { peer: id, ours: self.trust_domain.clone() }));
        }
        Ok(id)
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let id = self.chain(leaf, intermediates, now, KeyUsage::server_auth())?;
        let text = id.to_string();
        let expected = &self.subject_alt_names;
        if !expected.is_empty() && !expected.iter().any(|name| name.is_match(&text)) {
            return Err(refuse(IdentityError::Unexpected { peer: id, expected: expected.clone() }));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Hints help browsers with several certificates; workloads have one.
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.chain(leaf, intermediates, now, KeyUsage::client_auth()).map(|_| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The one SPIFFE id of a certificate whose chain is judged elsewhere.
pub(super) fn spiffe_id_of(leaf: &CertificateDer<'_>) -> Result<SpiffeId, IdentityError> {
    spiffe_id(&EndEntityCert::try_from(leaf).map_err(|_| IdentityError::Unreadable)?)
}

fn spiffe_id(certificate: &EndEntityCert<'_>) -> Result<SpiffeId, IdentityError> {
    let mut names = certificate.valid_uri_names();
    let (Some(name), None) = (names.next(), names.next()) else {
        return Err(IdentityError::NotOneName(certificate.valid_uri_names().count()));
    };
    name.parse().map_err(|_| IdentityError::NotSpiffe(name.escape_debug().to_string()))
}

/// Why a certificate does not say who its owner is, or says the wrong one.
pub(super) enum IdentityError {
    Unreadable,
    NotOneName(usize),
    NotSpiffe(String),
    TrustDomain { peer: SpiffeId, ours: String },
    Unexpected { peer: SpiffeId, expected: Vec<StringMatch> },
}

impl fmt::Display for IdentityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable => f.write_str("the certificate cannot be read"),
            Self::NotOneName(count) => write!(f, "the certificate has {count} URI names; a workload's has exactly one"),
            Self::NotSpiffe(name) => write!(f, "the certificate's name {name} is not a SPIFFE id"),
            Self::TrustDomain { peer, ours } => write!(f, "the peer is {peer}, which is not of trust domain {ours}"),
            Self::Unexpected { peer, expected } => {
                write!(f, "the peer is {peer}, which is none of those expected here: {expected:?}")
            }
        }
    }
}

impl fmt::Debug for IdentityError {
    /// The sentence: rustls shows errors that are not its own in their debug form.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl StdError for IdentityError {}

fn refuse(error: IdentityError) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

/// The commonest reasons by the names rustls gives them, so that the peer gets the right alert.
pub(super) fn pki_error(error: webpki::Error) -> Error {
    let reason = match error {
        webpki::Error::BadDer | webpki::Error::BadDerTime | webpki::Error::TrailingData(_) => {
            CertificateError::BadEncoding
        }
        webpki::Error::CertNotValidYet { .. } => CertificateError::NotValidYet,
        webpki::Error::CertExpired { .. } => CertificateError::Expired,
        webpki::Error::UnknownIssuer => CertificateError::UnknownIssuer,
        webpki::Error::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    };
    Error::InvalidCertificate(reason)
}
