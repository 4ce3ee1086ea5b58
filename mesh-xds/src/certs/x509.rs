//! What certificates say, as far as it matters to who holds them, and PEM.

use std::time::{Duration, SystemTime};

use base64::{Engine, prelude::BASE64_STANDARD};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    prelude::{ASN1Time, FromDer},
};
use zeroize::Zeroizing;

use super::Identity;

/// Binary data as text between two lines that say what it is.
pub fn pem(label: &str, der: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        out.push_str(std::str::from_utf8(line).unwrap_or_default());
        out.push('\n');
    }
    out + "-----END " + label + "-----\n"
}

/// The identity of a certificate that somebody else made for us, with its key.
pub(super) fn identity(
    chain: Vec<CertificateDer<'static>>,
    key: Zeroizing<PrivateKeyDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
    now: SystemTime,
) -> Result<Identity, String> {
    let (Some(first), false) = (chain.first(), roots.is_empty()) else {
        return Err("there must be a certificate and a root".to_owned());
    };
    let leaf = parse(first)?;
    if let PrivateKeyDer::Pkcs8(pkcs8) = &*key
        && let Ok(mut pair) = rcgen::KeyPair::try_from(pkcs8)
    {
        let theirs = rcgen::PublicKeyData::subject_public_key_info(&pair);
        zeroize::Zeroize::zeroize(&mut pair);
        if leaf.public_key().raw != theirs {
            return Err("the certificate is for another key".to_owned());
        }
    }
    let [spiffe_id] = uri_names(&leaf)[..] else {
        return Err(format!("the certificate has {} URI names; a workload's has exactly one", uri_names(&leaf).len()));
    };
    let spiffe_id = spiffe_id.to_owned();
    let (not_before, not_after) = validity(&leaf);
    let issuer = issuer_of(&leaf);
    if not_after <= now {
        return Err("the certificate has already expired".to_owned());
    }
    Ok(Identity { chain, key, roots, spiffe_id, not_before, not_after, issuer })
}

pub(super) fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, String> {
    let parsed = X509Certificate::from_der(certificate);
    parsed.map(|(_, certificate)| certificate).map_err(|error| format!("a certificate cannot be read: {error}"))
}

/// Certificates one behind the other, without anything between them. Source: SPIFFE Workload API.
pub(super) fn concatenated(mut der: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut found = Vec::new();
    while !der.is_empty() {
        let (rest, _) =
            X509Certificate::from_der(der).map_err(|error| format!("a certificate cannot be read: {error}"))?;
        let length = der.len() - rest.len();
        found.push(CertificateDer::from(der.get(..length).unwrap_or_default().to_vec()));
        der = rest;
    }
    Ok(found)
}

pub(super) fn is_self_signed(certificate: &CertificateDer<'_>) -> bool {
    parse(certificate).is_ok_and(|certificate| certificate.subject().as_raw() == certificate.issuer().as_raw())
}

pub(super) fn uri_names<'a>(certificate: &'a X509Certificate<'a>) -> Vec<&'a str> {
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let uri = |name: &GeneralName<'a>| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    };
    names.value.general_names.iter().filter_map(uri).collect()
}

/// Since and until when it is good.
pub(super) fn validity(certificate: &X509Certificate<'_>) -> (SystemTime, SystemTime) {
    (system_time(certificate.validity().not_before), system_time(certificate.validity().not_after))
}

/// The name of the key it was signed with.
pub(super) fn issuer_of(certificate: &X509Certificate<'_>) -> Option<Vec<u8>> {
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(id) => Some(id.key_identifier.as_ref()?.0.to_vec()),
        _ => None,
    })
}

fn system_time(time: ASN1Time) -> SystemTime {
    // Before 1970 is long expired in any case.
    SystemTime::UNIX_EPOCH + Duration::from_secs(time.timestamp().try_into().unwrap_or(0))
}
