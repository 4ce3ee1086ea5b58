//! What the application is told of the caller's certificate: `x-forwarded-client-cert` (CT14).
//!
//! Whatever arrives under that name is believed only as the port says, and never without a certificate unless it says so.
//! Source: Envoy `ConnectionManagerUtility::mutateXfccRequestHeader`.

use std::fmt::Write as _;

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderValue};
use mesh_core::config::{ClientCertHeader, ForwardClientCert};
use rustls_pki_types::CertificateDer;
use x509_parser::{extensions::GeneralName, prelude::*};

use super::{Caller, FORWARDED_CLIENT_CERT, Server};
use crate::tls::sha256;

impl Server {
    /// Writes the header as the port says.
    pub(super) fn tell_certificate(&self, wanted: ClientCertHeader, caller: &Caller, headers: &mut HeaderMap) {
        let has_certificate = !caller.chain.is_empty();
        match wanted.mode {
            ForwardClientCert::AlwaysForwardOnly => return,
            ForwardClientCert::ForwardOnly if has_certificate => return,
            ForwardClientCert::AppendForward if has_certificate => {}
            _ => drop(headers.remove(FORWARDED_CLIENT_CERT)),
        }
        let tells = matches!(wanted.mode, ForwardClientCert::AppendForward | ForwardClientCert::SanitizeSet);
        if !tells || !has_certificate {
            return;
        }
        let own = || self.identity.load().map(|identity| identity.id().to_string());
        let told = caller.told.get_or_init(|| element(wanted, &caller.chain, own()));
        let Some(told) = told else { return };
        // One line, as readers expect it: those in front, in order, then this one.
        let mut line = Vec::new();
        for before in headers.get_all(FORWARDED_CLIENT_CERT) {
            line.extend_from_slice(before.as_bytes());
            line.push(b',');
        }
        line.extend_from_slice(told.as_bytes());
        if let Ok(line) = HeaderValue::from_bytes(&line) {
            headers.insert(FORWARDED_CLIENT_CERT, line);
        }
    }
}

/// Of one caller, in the order of Envoy.
fn element(wanted: ClientCertHeader, chain: &[CertificateDer<'_>], own: Option<String>) -> Option<HeaderValue> {
    let leaf = chain.first()?;
    let mut parts = Vec::new();
    parts.extend(own.map(|own| format!("By={own}")));
    if let Some(digest) = sha256(leaf) {
        let mut hash = String::from("Hash=");
        digest.iter().for_each(|byte| {
            let _ = write!(hash, "{byte:02x}");
        });
        parts.push(hash);
    }
    if wanted.cert {
        parts.push(format!("Cert=\"{}\"", pem(leaf)));
    }
    if wanted.chain {
        let chain: String = chain.iter().map(|it| pem(it)).collect();
        parts.push(format!("Chain=\"{chain}\""));
    }
    let (_, parsed) = X509Certificate::from_der(leaf).ok()?;
    if wanted.subject {
        let subject = parsed.subject().to_string().replace('\\', "\\\\").replace('"', "\\\"");
        parts.push(format!("Subject=\"{subject}\""));
    }
    let names = parsed.subject_alternative_name().ok().flatten();
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        match name {
            GeneralName::URI(uri) if wanted.uri => parts.push(format!("URI={}", quoted(uri))),
            GeneralName::DNSName(host) if wanted.dns => parts.push(format!("DNS={}", quoted(host))),
            _ => {}
        }
    }
    HeaderValue::try_from(parts.join(";")).ok()
}

/// A value that could be taken for more than one is quoted.
fn quoted(value: &str) -> String {
    match value.contains([',', ';', '=', '"']) {
        true => format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\"")),
        false => value.to_owned(),
    }
}

/// PEM in the escapes of a URL.
fn pem(certificate: &CertificateDer<'_>) -> String {
    let text = STANDARD.encode(certificate);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    let mut escaped = String::with_capacity(pem.len() + 64);
    for byte in pem.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => escaped.push(char::from(byte)),
            byte => drop(write!(escaped, "%{byte:02X}")),
        }
    }
    escaped
}
