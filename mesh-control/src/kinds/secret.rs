//! Kubernetes `Secret`: a certificate that a gateway shows, or the roots it judges callers by.
//!
//! Types `kubernetes.io/tls` (`tls.crt`, `tls.key`) and `Opaque` (the same, or `cert`, `key`), each perhaps with `ca.crt` (or
//! `cacert`) and `ca.crl`. Source: Istio `credentialName`, `pilot/pkg/credentials/kube`. Values are not kept for people to read.

use std::{
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use mesh_core::config::PrivateKey;

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
        let out = Self { pair: text(CHAIN).zip(text(KEY).map(PrivateKey)), roots: text(ROOTS), crl: text(CRL) };
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
        out
    }
}

/// The object as people may see it: that there is a value, and whether it is another than before.
pub(super) fn hidden(mut object: serde_json::Value) -> serde_json::Value {
    for field in ["data", "stringData"] {
        let values = object.get_mut(field).and_then(serde_json::Value::as_object_mut);
        for value in values.into_iter().flat_map(|values| values.values_mut()) {
            let mut hasher = DefaultHasher::new();
            value.to_string().hash(&mut hasher);
            *value = serde_json::Value::String(format!("(hidden {:016x})", hasher.finish()));
        }
    }
    object
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
