//! Kubernetes `Secret`: a certificate that a gateway shows, or the roots it judges callers by.
//!
//! Types `kubernetes.io/tls` (`tls.crt`, `tls.key`) and `Opaque` (the same, or `cert`, `key`), each perhaps with `ca.crt` (or
//! `cacert`) and `ca.crl`. Source: Istio `credentialName`, `pilot/pkg/credentials/kube`. Values are not kept for people to read.

use std::{
    borrow::Cow,
    fmt,
    hash::{BuildHasher, RandomState},
    sync::LazyLock,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use mesh_core::config::PrivateKey;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, pem::PemObject};
use x509_parser::parse_x509_crl;

use super::{
    read::{Fields, Reader},
    yaml::{At, Node},
};

/// A `Secret`.
#[derive(Clone, Default, Eq, PartialEq)]
pub struct Secret {
    /// Certificate chain in PEM, leaf first, and its key.
    pub pair: Option<(String, PrivateKey)>,
    /// Roots, in PEM.
    pub roots: Option<String>,
    /// Lists of revoked certificates, in PEM.
    pub crl: Option<String>,
}

/// Shows that there is something, not what.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (pair, roots, crl) = (self.pair.is_some(), self.roots.is_some(), self.crl.is_some());
        f.debug_struct("Secret").field("pair", &pair).field("roots", &roots).field("crl", &crl).finish()
    }
}

/// The keys by which values are found, and what each is.
const CHAIN: [&str; 2] = ["tls.crt", "cert"];
const KEY: [&str; 2] = ["tls.key", "key"];
const ROOTS: [&str; 2] = ["ca.crt", "cacert"];
const CRL: [&str; 2] = ["ca.crl", "crl"];

/// What is shorter than this is no key.
const LONG: usize = 64;

impl Secret {
    /// Reads the whole object, since what counts is not under `spec`.
    pub(crate) fn read(object: &mut Fields<'_>, reader: &mut Reader<'_>) -> Self {
        object.skip(&["immutable"]);
        let types = [("kubernetes.io/tls", ()), ("Opaque", ()), ("generic", ())];
        if let Some((node, path)) = object.take("type") {
            reader.word(node, &path, &types);
        }
        let mut values: Vec<(String, At<String>)> = Vec::new();
        for (field, encoded) in [("data", true), ("stringData", false)] {
            let Some((node, path)) = object.take(field) else { continue };
            for (key, node) in reader.map(node, &path) {
                let path = format!("{path}.{}", key.value);
                values.extend(value(node, &path, encoded, reader).map(|value| (key.value.clone(), value)));
            }
        }
        let found = |names: [&str; 2]| values.iter().rev().find(|(key, _)| names.contains(&key.as_str()));
        let text = |names| found(names).map(|(_, value)| value.value.clone());
        let out = Self { pair: text(CHAIN).zip(text(KEY).map(PrivateKey::new)), roots: text(ROOTS), crl: text(CRL) };
        match (found(CHAIN), found(KEY)) {
            (Some((name, value)), None) => {
                reader.invalid(value.at, format!("data has {name} and not its key")).help =
                    Some("put the private key beside it: tls.key".to_owned());
            }
            (None, Some((name, value))) => {
                reader.invalid(value.at, format!("data has {name} and no certificate")).help =
                    Some("put the certificate beside it: tls.crt".to_owned());
            }
            _ => {}
        }
        for (names, marker) in
            [(CHAIN, "BEGIN CERTIFICATE"), (KEY, "PRIVATE KEY"), (ROOTS, "BEGIN CERTIFICATE"), (CRL, "BEGIN X509 CRL")]
        {
            if let Some((name, value)) = found(names).filter(|(_, value)| !value.value.contains(marker)) {
                reader.invalid(value.at, format!("{name} is not PEM: it has no {marker:?}"));
            }
        }
        // What callers are judged by: half of it would let in whom the other half keeps out.
        if let Some((name, value)) = found(ROOTS)
            && value.value.contains("BEGIN CERTIFICATE")
            && certificates(&value.value).is_none()
        {
            reader.invalid(value.at, format!("{name} cannot be read to its end"));
        }
        if let Some((name, value)) = found(CRL).filter(|(_, value)| value.value.contains("BEGIN X509 CRL"))
            && lists(&value.value).is_none()
        {
            reader
                .invalid(value.at, format!("{name} holds no list of revoked certificates that can be read to its end"));
        }
        out
    }
}

/// Certificates in PEM; `None` when any cannot be read, or there is none.
pub(crate) fn certificates(pem: &str) -> Option<Vec<CertificateDer<'static>>> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    read.ok().filter(|read| !read.is_empty())
}

/// Lists of revoked certificates in PEM; `None` when any cannot be read, or there is none.
pub(crate) fn lists(pem: &str) -> Option<Vec<CertificateRevocationListDer<'static>>> {
    let read: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(pem.as_bytes()).collect();
    let is_list =
        |list: &CertificateRevocationListDer<'_>| parse_x509_crl(list.as_ref()).is_ok_and(|(rest, _)| rest.is_empty());
    read.ok().filter(|read| !read.is_empty() && read.iter().all(is_list))
}

/// The object as people may see it: that there is a value, and whether it is another than before. Of its annotations nothing is kept:
/// `kubectl` writes the whole object into one.
pub(super) fn hidden(mut object: serde_json::Value) -> serde_json::Value {
    // By which keys it is told is known to nobody, so that a short value cannot be found by trying.
    static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    for field in ["data", "stringData"] {
        let values = object.get_mut(field).and_then(serde_json::Value::as_object_mut);
        for value in values.into_iter().flat_map(|values| values.values_mut()) {
            let told = KEYS.hash_one(value.to_string());
            *value = serde_json::Value::String(format!("(hidden {told:016x})"));
        }
    }
    if let Some(metadata) = object.get_mut("metadata").and_then(serde_json::Value::as_object_mut) {
        metadata.remove("annotations");
        metadata.remove("managedFields");
    }
    object
}

/// Does a document speak of a `Secret`, whether or not it can be read?
fn is_secret(document: &str) -> bool {
    document.match_indices("kind").any(|(at, word)| {
        let rest = document.get(at + word.len()..).unwrap_or_default();
        rest.trim_start_matches(|c: char| c.is_whitespace() || "\"':".contains(c)).starts_with("Secret")
    })
}

/// A line of a document as people may see it: of one that speaks of a `Secret` the first key, and no value. Places stay where they are.
pub(super) fn masked_line<'a>(document: &str, line: &'a str) -> Cow<'a, str> {
    if !is_secret(document) {
        return Cow::Borrowed(line);
    }
    let (key, value) = line.split_at(line.find(':').map_or(0, |at| at + 1));
    let hidden = value.chars().map(|c| if c.is_alphanumeric() || "+/=".contains(c) { '*' } else { c });
    Cow::Owned(key.chars().chain(hidden).collect())
}

/// What is said of such a document: names of objects and fields, and no word as long as a key.
pub(super) fn masked_words<'a>(document: &str, text: &'a str) -> Cow<'a, str> {
    if !is_secret(document) {
        return Cow::Borrowed(text);
    }
    let part = |c: char| c.is_ascii_alphanumeric() || "+/=".contains(c);
    let words = text.split_inclusive(|c| !part(c)).map(|word| match word.trim_end_matches(|c| !part(c)).len() < LONG {
        true => word.to_owned(),
        false => word.chars().map(|c| if part(c) { '*' } else { c }).collect(),
    });
    Cow::Owned(words.collect())
}

/// A value; what is wrong with it is said without it.
fn value(node: &Node, path: &str, encoded: bool, reader: &mut Reader<'_>) -> Option<At<String>> {
    let text = reader.text(node, path)?;
    if !encoded {
        return Some(text);
    }
    let plain: String = text.split_whitespace().collect();
    let decoded = STANDARD.decode(plain).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    match decoded {
        Some(value) => Some(At { value, at: node.at }),
        None => {
            reader.invalid(node.at, format!("{path} is not text in base64")).help =
                Some("plain text goes under stringData".to_owned());
            None
        }
    }
}
