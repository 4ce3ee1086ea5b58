//! A server outside the mesh judged by a list of names: the chain by the system's roots, then any one name of the list.
//!
//! Source: Envoy `CertificateValidationContext.match_subject_alt_names` without a workload identity, Istio's
//! `subjectAltNames` with TLS mode SIMPLE. Without a list the host name decides, as web TLS does, and this is not used.

use std::{fmt, sync::Arc};

use mesh_core::{config::StringMatch, identity::names_match};
use rustls::{
    DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
};
use rustls_pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use super::Refusal;

/// What is checked.
pub(super) struct NamedServer {
    algorithms: WebPkiSupportedAlgorithms,
    anchors: Vec<TrustAnchor<'static>>,
    names: Vec<StringMatch>,
}

impl NamedServer {
    pub(super) fn new(
        algorithms: WebPkiSupportedAlgorithms,
        roots: &RootCertStore,
        names: Vec<StringMatch>,
    ) -> Arc<Self> {
        Arc::new(Self { algorithms, anchors: roots.roots.clone(), names })
    }
}

impl fmt::Debug for NamedServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NamedServer").field("names", &self.names).finish_non_exhaustive()
    }
}

impl ServerCertVerifier for NamedServer {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let certificate = EndEntityCert::try_from(leaf).map_err(Refusal::Chain)?;
        let usage = KeyUsage::server_auth();
        certificate
            .verify_for_usage(self.algorithms.all, &self.anchors, intermediates, now, usage, None, None)
            .map_err(Refusal::Chain)?;
        if is_one_of(&certificate, &self.names) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(Refusal::Unnamed { expected: format!("{:?}", self.names) }.into())
        }
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

/// Has the certificate any of these names?
pub(super) fn has_name(leaf: &CertificateDer<'_>, names: &[StringMatch]) -> bool {
    EndEntityCert::try_from(leaf).is_ok_and(|certificate| is_one_of(&certificate, names))
}

/// The names of a certificate that rules know its holder by: its URIs, else its hosts. Source: Envoy, of `authenticated`.
pub(super) fn names_of(leaf: &CertificateDer<'_>) -> Vec<String> {
    let Ok(certificate) = EndEntityCert::try_from(leaf) else { return Vec::new() };
    let uris: Vec<String> = certificate.valid_uri_names().map(ToOwned::to_owned).collect();
    if uris.is_empty() { certificate.valid_dns_names().map(ToOwned::to_owned).collect() } else { uris }
}

fn is_one_of(certificate: &EndEntityCert<'_>, names: &[StringMatch]) -> bool {
    let by_pattern = certificate.valid_dns_names().any(|name| names.iter().any(|wanted| covers(name, wanted)));
    let mut of_leaf = certificate.valid_dns_names().chain(certificate.valid_uri_names());
    by_pattern || of_leaf.any(|name| names_match(names, [name]))
}

/// A certificate's `*.example.com` stands for one label. Source: Envoy, of an exact matcher of DNS names.
fn covers(pattern: &str, wanted: &StringMatch) -> bool {
    let (Some(parent), StringMatch::Exact { value, .. }) = (pattern.strip_prefix("*."), wanted) else { return false };
    value.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest.eq_ignore_ascii_case(parent))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

    use super::*;
    use crate::tls::provider;

    /// AN6: a server's certificate must carry one of the listed names, whatever host was dialled; its chain counts first.
    #[test]
    fn the_list_decides_not_the_host() {
        let (roots, leaf) = signed(&["api.example.com", "other.example.com", "*.wild.example.com"]);
        let (elsewhere, _) = signed(&["api.example.com"]);
        let exact = |value: &str| StringMatch::Exact { value: value.to_owned(), ignore_case: false };
        for (roots, names, accepted) in [
            (&roots, vec![exact("api.example.com")], true),
            (&roots, vec![exact("nobody"), exact("other.example.com")], true),
            (&roots, vec![exact("dialled.example.com")], false),
            (&roots, Vec::new(), false),
            (&elsewhere, vec![exact("api.example.com")], false),
            (&roots, vec![exact("a.wild.example.com")], true),
            (&roots, vec![exact("a.b.wild.example.com")], false),
            (&roots, vec![exact("wild.example.com")], false),
        ] {
            let algorithms = provider().signature_verification_algorithms;
            let verifier = NamedServer::new(algorithms, roots, names.clone());
            let dialled = ServerName::try_from("dialled.example.com").unwrap();
            let verdict = verifier.verify_server_cert(&leaf, &[], &dialled, &[], UnixTime::now());
            assert_eq!(verdict.is_ok(), accepted, "{names:?}: {verdict:?}");
        }
    }

    fn signed(names: &[&str]) -> (RootCertStore, CertificateDer<'static>) {
        let (ca_key, leaf_key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = ca.self_signed(&ca_key).unwrap();
        let names: Vec<_> = names.iter().map(ToString::to_string).collect();
        let leaf = CertificateParams::new(names).unwrap().signed_by(&leaf_key, &Issuer::new(ca, ca_key)).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(root.der().clone()).unwrap();
        (roots, leaf.der().clone())
    }
}
