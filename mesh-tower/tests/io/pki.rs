//! Certificates made for a test: good ones, and ones that are wrong in one way each.

use std::sync::Arc;

use mesh_tower::tls::{Identity, LiveIdentity};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

pub(crate) const REVIEWS: &str = "spiffe://cluster.local/ns/default/sa/reviews";
pub(crate) const RATINGS: &str = "spiffe://cluster.local/ns/default/sa/ratings";

pub(crate) type Chain = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
}

/// A leaf to be signed.
pub(crate) struct Leaf<'a> {
    pub(crate) uris: &'a [&'a str],
    pub(crate) dns: &'a [&'a str],
    pub(crate) from: i32,
    pub(crate) until: i32,
    pub(crate) usage: &'a [ExtendedKeyUsagePurpose],
    pub(crate) serial: Option<u64>,
    pub(crate) is_ca: bool,
}

impl Default for Leaf<'_> {
    fn default() -> Self {
        let usage = &[ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        Self { uris: &[REVIEWS], dns: &[], from: 2020, until: 2120, usage, serial: None, is_ca: false }
    }
}

impl Ca {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        // Another name than leaves have, which others would take for self-signed.
        params.distinguished_name.push(DnType::CommonName, "a CA");
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2120, 1, 1);
        let root = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), root }
    }

    pub(crate) fn root(&self) -> CertificateDer<'static> {
        self.root.clone()
    }

    pub(crate) fn sign(&self, leaf: &Leaf<'_>) -> Chain {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        let uris = leaf.uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap()));
        let dns = leaf.dns.iter().map(|name| SanType::DnsName((*name).try_into().unwrap()));
        params.subject_alt_names = uris.chain(dns).collect();
        params.not_before = date_time_ymd(leaf.from, 1, 1);
        params.not_after = date_time_ymd(leaf.until, 1, 1);
        params.extended_key_usages = leaf.usage.to_vec();
        params.serial_number = leaf.serial.map(SerialNumber::from);
        if leaf.is_ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        (vec![certificate.der().clone()], key)
    }

    /// A CA below this one, and its certificate.
    pub(crate) fn below(&self) -> (Self, CertificateDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "below");
        params.not_after = date_time_ymd(2120, 1, 1);
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        (Self { issuer: Issuer::new(params, key), root: self.root() }, certificate)
    }

    /// A list of what this CA has revoked: the leaves with these serial numbers.
    pub(crate) fn revoke(&self, serials: &[u64]) -> Arc<[u8]> {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2021, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2021, 1, 1),
            next_update: date_time_ymd(2119, 1, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().der().to_vec().into()
    }

    pub(crate) fn identity(&self, id: &str) -> Identity {
        let (chain, key) = self.sign(&Leaf { uris: &[id], ..Leaf::default() });
        Identity::from_der(chain, key, vec![self.root()]).unwrap()
    }

    pub(crate) fn live(&self, id: &str) -> LiveIdentity {
        LiveIdentity::new(self.identity(id))
    }
}

/// As text.
pub(crate) fn pem(what: &str, der: &[u8]) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    format!("-----BEGIN {what}-----\n{}\n-----END {what}-----\n", STANDARD.encode(der))
}

/// A chain and its key as text.
pub(crate) fn chain_pem((chain, key): &Chain) -> (String, String) {
    let chain = chain.iter().map(|certificate| pem("CERTIFICATE", certificate)).collect();
    (chain, pem("PRIVATE KEY", key.secret_der()))
}
