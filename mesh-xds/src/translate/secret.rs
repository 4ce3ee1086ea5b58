//! Secrets: certificates with their keys, and what peers are to be judged by. Source: Envoy `Secret`.
//!
//! A client of ours makes its own key and takes no certificate from a control plane; an Envoy does, and so does any client from an
//! agent on its own machine. What is to be trusted comes as two secrets: `ROOTCA` with roots and revoked certificates, as Envoy
//! understands it, and [`TRUST`] with what Envoy has no words for, as JSON in a generic secret.

use std::{collections::BTreeMap, fmt, sync::Arc};

use bytes::Bytes;
use mesh_core::{
    config::{KeyPair, PrivateKey},
    trust::Trust,
};
use prost::Message;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, pem::PemObject};
use serde::{Deserialize, Serialize};

use super::{
    read::{Ignored, Within, Wrong, wrong},
    tls::ROOTS,
};
use crate::{
    ads::{ResourceSet, TypeUrl},
    certs::pem,
    proto::envoy::{
        config::core::v3::{DataSource, data_source::Specifier},
        extensions::transport_sockets::tls::v3::{
            CertificateValidationContext, GenericSecret, Secret as Proto, TlsCertificate, secret::Type,
        },
    },
};

/// The name of the generic secret with what Envoy has no words for: denied ids and serial numbers, trust domains, and by which key
/// leaves are signed at the moment.
pub const TRUST: &str = "mesh.trust";

/// A secret read.
#[derive(Clone)]
pub enum Secret {
    /// A certificate, leaf first, with its key.
    Certificate(Arc<Certificate>),
    /// Roots and revoked certificates.
    Validation(Validation),
    /// The rest of what is to be trusted.
    Told(Box<Told>),
}

/// A certificate with its key, which is wiped when it is dropped.
pub struct Certificate {
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's.
    pub key: zeroize::Zeroizing<PrivateKeyDer<'static>>,
}

/// Roots and revoked certificates. Source: Envoy `CertificateValidationContext`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Validation {
    /// `trusted_ca`, in DER.
    pub roots: Vec<Arc<[u8]>>,
    /// `crl`, in DER.
    pub crls: Vec<Arc<[u8]>>,
    /// `only_verify_leaf_cert_crl`.
    pub only_leaf_crl: bool,
}

/// What a control plane tells its members to trust.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Told {
    /// Our own trust domain.
    pub trust_domain: String,
    /// What peers are judged by.
    pub trust: Trust,
    /// The name of the key that signs leaves (their authority key identifier): who has a leaf by another is to ask for a new one.
    pub issuer: Option<Vec<u8>>,
}

/// The form of [`TRUST`]. A field that is not known refuses it, as with every message that sets up security.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Words {
    trust_domain: String,
    #[serde(default)]
    aliases: Vec<String>,
    /// The roots of other trust domains, in PEM.
    #[serde(default)]
    bundles: BTreeMap<String, String>,
    #[serde(default)]
    denied_ids: Vec<String>,
    /// In hexadecimal.
    #[serde(default)]
    denied_serials: Vec<String>,
    /// In hexadecimal.
    #[serde(default)]
    issuer: Option<String>,
}

impl Told {
    /// Puts the roots and lists of its own trust domain in, which come by another secret.
    #[must_use]
    pub fn with(mut self, validation: &Validation) -> Self {
        self.trust.bundles.insert(self.trust_domain.clone(), validation.roots.clone());
        self.trust.crls.clone_from(&validation.crls);
        self.trust.only_leaf_crl = validation.only_leaf_crl;
        self
    }
}

/// Reads a secret. What it holds must be in it: no file of the machine is read because somebody else named it.
pub(super) fn decode(body: &Bytes, name: &mut String, ignored: &mut Ignored) -> Result<Secret, Wrong> {
    let secret: Proto = ignored.read(body, "")?;
    secret.name.clone_into(name);
    match secret.r#type {
        Some(Type::TlsCertificate(certificate)) => {
            decode_certificate(certificate).under("tls_certificate").map(|it| Secret::Certificate(Arc::new(it)))
        }
        Some(Type::ValidationContext(validation)) => {
            decode_validation(validation).under("validation_context").map(Secret::Validation)
        }
        Some(Type::GenericSecret(generic)) if *name == TRUST => {
            let text = bytes_of(generic.secret, "secret").under("generic_secret")?;
            read_words(&text).under("generic_secret.secret").map(|told| Secret::Told(Box::new(told)))
        }
        Some(Type::GenericSecret(_)) => Err(wrong("generic_secret", format!("is only known by the name {TRUST:?}"))),
        None => Err(wrong("type", "is missing, or of a kind that is not supported")),
    }
}

fn decode_certificate(certificate: TlsCertificate) -> Result<Certificate, Wrong> {
    let chain = bytes_of(certificate.certificate_chain, "certificate_chain")?;
    let key = bytes_of(certificate.private_key, "private_key")?;
    let chain = certificates(&chain).under("certificate_chain")?;
    // What is wrong with a key is not said in detail: the detail might be of the key.
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(|_| wrong("private_key", "is no private key in PEM"))?;
    Ok(Certificate { chain, key: key.into() })
}

fn decode_validation(validation: CertificateValidationContext) -> Result<Validation, Wrong> {
    if !validation.match_typed_subject_alt_names.is_empty() || !validation.match_subject_alt_names.is_empty() {
        return Err(wrong(
            "match_typed_subject_alt_names",
            "is not supported in a secret; clusters say whom they expect",
        ));
    }
    if validation.system_root_certs.is_some() {
        return Err(wrong("system_root_certs", "is not supported in a secret"));
    }
    let roots = certificates(&bytes_of(validation.trusted_ca, "trusted_ca")?).under("trusted_ca")?;
    let mut crls = Vec::new();
    if validation.crl.is_some() {
        let text = bytes_of(validation.crl, "crl")?;
        for list in CertificateRevocationListDer::pem_slice_iter(&text) {
            let list = list.map_err(|error| wrong("crl", format!("is not PEM: {error:?}")))?;
            crls.push(list.as_ref().into());
        }
        if crls.is_empty() {
            return Err(wrong("crl", "holds no list of revoked certificates"));
        }
    }
    let roots = roots.iter().map(|root| root.as_ref().into()).collect();
    Ok(Validation { roots, crls, only_leaf_crl: validation.only_verify_leaf_cert_crl })
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Wrong> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let read = read.map_err(|error| wrong("", format!("is not PEM: {error:?}")))?;
    if read.is_empty() { Err(wrong("", "holds no certificate")) } else { Ok(read) }
}

fn bytes_of(source: Option<DataSource>, field: &str) -> Result<Bytes, Wrong> {
    match source.and_then(|source| source.specifier) {
        Some(Specifier::InlineBytes(bytes)) => Ok(bytes),
        Some(Specifier::InlineString(text)) => Ok(text.into()),
        Some(_) => Err(wrong(field, "must be inline")),
        None => Err(wrong(field, "is missing")),
    }
}

fn read_words(text: &[u8]) -> Result<Told, Wrong> {
    let words: Words = serde_json::from_slice(text).map_err(|error| wrong("", error.to_string()))?;
    let mut trust = Trust {
        aliases: words.aliases.into_iter().collect(),
        denied_ids: words.denied_ids.into_iter().collect(),
        ..Trust::default()
    };
    for (domain, roots) in words.bundles {
        let roots = certificates(roots.as_bytes()).within(|| format!("bundles[{domain:?}]"))?;
        if domain == words.trust_domain {
            return Err(wrong("bundles", format!("has our own trust domain, whose roots come as {ROOTS}")));
        }
        trust.bundles.insert(domain, roots.iter().map(|root| root.as_ref().into()).collect());
    }
    for serial in words.denied_serials {
        trust.denied_serials.insert(unhex(&serial).under("denied_serials")?);
    }
    let issuer = words.issuer.map(|issuer| unhex(&issuer)).transpose().under("issuer")?;
    Ok(Told { trust_domain: words.trust_domain, trust, issuer })
}

/// Adds the secrets that say what is to be trusted.
pub(super) fn encode_told(told: &Told, set: &mut ResourceSet) {
    let Told { trust_domain, trust, issuer } = told;
    let all = |label: &'static str, ders: &[Arc<[u8]>]| -> String { ders.iter().map(|der| pem(label, der)).collect() };
    let own = trust.bundles.get(trust_domain).map(Vec::as_slice).unwrap_or_default();
    let crl = (!trust.crls.is_empty()).then(|| inline(&all("X509 CRL", &trust.crls)));
    let validation = CertificateValidationContext {
        trusted_ca: Some(inline(&all("CERTIFICATE", own))),
        only_verify_leaf_cert_crl: crl.is_some() && trust.only_leaf_crl,
        crl,
        ..CertificateValidationContext::default()
    };
    let others = trust.bundles.iter().filter(|(domain, _)| *domain != trust_domain);
    let words = Words {
        trust_domain: trust_domain.clone(),
        aliases: trust.aliases.iter().cloned().collect(),
        bundles: others.map(|(domain, roots)| (domain.clone(), all("CERTIFICATE", roots))).collect(),
        denied_ids: trust.denied_ids.iter().cloned().collect(),
        denied_serials: trust.denied_serials.iter().map(|serial| hex(serial)).collect(),
        issuer: issuer.as_deref().map(hex),
    };
    let text = serde_json::to_string(&words).unwrap_or_default();
    let generic = GenericSecret { secret: Some(inline(&text)) };
    put(ROOTS, Type::ValidationContext(validation), set);
    put(TRUST, Type::GenericSecret(generic), set);
}

/// Adds roots and lists of revoked certificates.
pub(super) fn encode_roots(name: &str, roots: &[Arc<[u8]>], crls: &[Arc<[u8]>], set: &mut ResourceSet) {
    let all = |label: &'static str, ders: &[Arc<[u8]>]| -> String { ders.iter().map(|der| pem(label, der)).collect() };
    let validation = CertificateValidationContext {
        trusted_ca: Some(inline(&all("CERTIFICATE", roots))),
        crl: (!crls.is_empty()).then(|| inline(&all("X509 CRL", crls))),
        ..CertificateValidationContext::default()
    };
    put(name, Type::ValidationContext(validation), set);
}

/// Adds a certificate chain, leaf first, and the key of its leaf, in PEM.
pub(super) fn encode_certificate(name: &str, chain: &str, key: &str, set: &mut ResourceSet) {
    let certificate = TlsCertificate { certificate_chain: Some(inline(chain)), private_key: Some(inline(key)) };
    put(name, Type::TlsCertificate(certificate), set);
}

fn put(name: &str, secret: Type, set: &mut ResourceSet) {
    let secret = Proto { name: name.to_owned(), r#type: Some(secret) };
    set.insert(TypeUrl::Secret, name, secret.encode_to_vec());
}

impl Certificate {
    /// The same in PEM.
    pub(crate) fn to_pair(&self) -> KeyPair {
        let label = match &*self.key {
            PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
            PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
            _ => "PRIVATE KEY",
        };
        let chain = self.chain.iter().map(|der| pem("CERTIFICATE", der)).collect();
        KeyPair { chain, key: PrivateKey::new(pem(label, self.key.secret_der())) }
    }
}

fn inline(text: &str) -> DataSource {
    DataSource { specifier: Some(Specifier::InlineString(text.to_owned())) }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Result<Vec<u8>, Wrong> {
    let pairs = text.as_bytes().chunks(2).map(|pair| {
        let pair = std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2);
        pair.and_then(|pair| u8::from_str_radix(pair, 16).ok())
    });
    pairs.collect::<Option<_>>().ok_or_else(|| wrong("", format!("{text:?} is not hexadecimal")))
}

/// Keys are not shown.
impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").field("chain", &self.chain.len()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Certificate(certificate) => certificate.fmt(f),
            Self::Validation(validation) => write!(f, "Validation({} roots)", validation.roots.len()),
            Self::Told(told) => write!(f, "Told({})", told.trust_domain),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;
    use crate::translate;

    fn root() -> (Arc<[u8]>, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let root = rcgen::CertificateParams::default().self_signed(&key).unwrap();
        (root.der().as_ref().into(), root.pem())
    }

    /// CT2, CT8, CT10, CT11: what is told comes back as it was: roots, lists, other domains, who is denied.
    #[test]
    fn what_is_told_is_read_back() {
        let ((ours, _), (theirs, _)) = (root(), root());
        let told = Told {
            trust_domain: "ours".to_owned(),
            trust: Trust {
                bundles: [("ours".to_owned(), vec![ours]), ("theirs".to_owned(), vec![theirs])].into(),
                aliases: ["old".to_owned()].into(),
                crls: vec![[1, 2, 3].as_slice().into()],
                only_leaf_crl: true,
                denied_ids: ["spiffe://ours/ns/a/sa/b".to_owned()].into(),
                denied_serials: [vec![0x80, 1], vec![7]].into(),
            },
            issuer: Some(vec![9, 9]),
        };
        let mut set = ResourceSet::default();
        encode_told(&told, &mut set);
        let read = |name: &str| translate::secret(&set.get(TypeUrl::Secret, name).unwrap().body).unwrap();
        let Secret::Validation(validation) = read(ROOTS).value else { panic!("no validation context") };
        let Secret::Told(rest) = read(TRUST).value else { panic!("no generic secret") };
        assert_eq!(rest.with(&validation), told);
    }

    /// CT2: what is not understood in a secret refuses it, and no error repeats a key.
    #[test]
    fn secrets_that_are_not_understood_are_refused() {
        let (_, pem) = root();
        let check = |secret: Type, expected: &str| {
            let body = Proto { name: "x".to_owned(), r#type: Some(secret) }.encode_to_vec();
            let error = translate::secret(&body.into()).unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains("hush"), "{error} should say {expected}");
        };
        let key = |key: DataSource| {
            let certificate = TlsCertificate { certificate_chain: Some(inline(&pem)), private_key: Some(key) };
            Type::TlsCertificate(certificate)
        };
        let file = DataSource { specifier: Some(Specifier::Filename("/etc/passwd".to_owned())) };
        check(key(file.clone()), "private_key: must be inline");
        check(key(inline("hush hush")), "no private key");
        let validation = CertificateValidationContext::default;
        check(Type::ValidationContext(validation()), "trusted_ca: is missing");
        check(
            Type::ValidationContext(CertificateValidationContext { trusted_ca: Some(file), ..validation() }),
            "inline",
        );
        let roots = || Some(inline(&pem));
        let empty = CertificateValidationContext { trusted_ca: roots(), crl: Some(inline("")), ..validation() };
        check(Type::ValidationContext(empty), "crl: holds no list");
        check(Type::GenericSecret(GenericSecret::default()), "mesh.trust");
        let words = |text: &str| read_words(text.as_bytes()).unwrap_err().message;
        assert!(words(r#"{"trust_domain":"a","widen":true}"#).contains("unknown field"));
        assert!(words(r#"{"trust_domain":"a","denied_serials":["abc"]}"#).contains("hexadecimal"));
        assert!(words(&format!(r#"{{"trust_domain":"a","bundles":{{"a":{pem:?}}}}}"#)).contains("our own"));
    }
    /// CT9, CT12: a stapled OCSP response and a key that somebody else keeps are refused by name, as are keys with a password.
    #[test]
    fn staples_and_keys_kept_elsewhere_are_refused() {
        let (_, pem) = root();
        let certificate = TlsCertificate { certificate_chain: Some(inline(&pem)), private_key: Some(inline(&pem)) };
        for (number, name) in [(3_u8, "password"), (4, "ocsp_staple"), (6, "private_key_provider")] {
            let certificate = [certificate.encode_to_vec(), vec![number << 3 | 2, 0]].concat();
            let length = u16::try_from(certificate.len()).unwrap();
            // Field 2 of the secret, its length in two bytes.
            let header = [2 << 3 | 2, (length & 0x7f) as u8 | 0x80, (length >> 7) as u8];
            let body = [&[0x0a, 1, b'x'][..], &header, &certificate].concat();
            let error = translate::secret(&body.into()).unwrap_err().to_string();
            assert!(error.contains(&format!("tls_certificate.{name}: is not supported")), "{error}");
        }
    }
}
