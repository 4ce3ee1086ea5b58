//! Secrets, written only: what a client of ours trusts and shows is its own matter (`certs.rs`), but other clients take it
//! from the control plane. Source: Envoy `Secret`.

use crate::proto::envoy::{
    config::core::v3::{DataSource, data_source::Specifier},
    extensions::transport_sockets::tls::v3::{CertificateValidationContext, Secret, TlsCertificate, secret::Type},
};

/// A certificate chain, leaf first, and the key of its leaf, in PEM.
pub(super) fn encode_certificate(name: &str, chain: &str, key: &str) -> Secret {
    let certificate = TlsCertificate { certificate_chain: Some(inline(chain)), private_key: Some(inline(key)) };
    Secret { name: name.to_owned(), r#type: Some(Type::TlsCertificate(certificate)) }
}

/// The roots to trust, in PEM.
pub(super) fn encode_roots(name: &str, roots: &str) -> Secret {
    let validation =
        CertificateValidationContext { trusted_ca: Some(inline(roots)), ..CertificateValidationContext::default() };
    Secret { name: name.to_owned(), r#type: Some(Type::ValidationContext(validation)) }
}

fn inline(text: &str) -> DataSource {
    DataSource { specifier: Some(Specifier::InlineString(text.to_owned())) }
}
