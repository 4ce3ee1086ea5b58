//! How a peer's certificate is judged, on rustls-webpki: chain, validity and key usage first, then the SPIFFE id.
//!
//! Only URI names count. A certificate with none, with several, or with one that is not a SPIFFE id of a known trust domain
//! is refused, whatever else it says; names of other kinds that look like one are not looked at. `trust.rs` has the rules.

use std::{fmt, sync::Arc};

use mesh_core::{
    config::StringMatch,
    identity::{SpiffeId, names_match},
};
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use super::{Refusal, trust::Judge};

/// What both directions check.
pub(super) struct Verifier {
    pub(super) algorithms: WebPkiSupportedAlgorithms,
    pub(super) judge: Arc<Judge>,
    /// Any one must match the peer's id; an empty list takes any that is trusted. Only asked of servers.
    pub(super) expected: Arc<[StringMatch]>,
}

impl Verifier {
    fn chain(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<SpiffeId, Refusal> {
        self.judge.judge(leaf, intermediates, &self.algorithms, now, usage).map(|verdict| verdict.id)
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("judge", &self.judge).finish_non_exhaustive()
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
        expect(id, &self.expected)?;
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
        self.chain(leaf, intermediates, now, KeyUsage::client_auth())?;
        Ok(ClientCertVerified::assertion())
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
pub(super) fn spiffe_id_of(leaf: &CertificateDer<'_>) -> Result<SpiffeId, Refusal> {
    spiffe_id(&EndEntityCert::try_from(leaf).map_err(|_| Refusal::Unreadable)?)
}

pub(super) fn spiffe_id(certificate: &EndEntityCert<'_>) -> Result<SpiffeId, Refusal> {
    let mut names = certificate.valid_uri_names();
    let (Some(name), None) = (names.next(), names.next()) else {
        return Err(Refusal::NotOneName(certificate.valid_uri_names().count()));
    };
    name.parse().map_err(|_| Refusal::NotSpiffe(name.escape_debug().to_string()))
}

/// Is it one of those expected? None named takes any.
pub(super) fn expect(id: SpiffeId, expected: &Arc<[StringMatch]>) -> Result<SpiffeId, Refusal> {
    if !expected.is_empty() && !names_match(expected, [id.as_str()]) {
        return Err(Refusal::Unexpected { peer: id, expected: Arc::clone(expected) });
    }
    Ok(id)
}
