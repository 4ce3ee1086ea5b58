//! Certificates made for a test: good ones, and ones that are wrong in one way each.

use mesh_tower::tls::{Identity, LiveIdentity};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
    date_time_ymd,
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
}

impl Default for Leaf<'_> {
    fn default() -> Self {
        let usage = &[ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        Self { uris: &[REVIEWS], dns: &[], from: 2020, until: 2120, usage }
    }
}

impl Ca {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
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
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        (vec![certificate.der().clone()], key)
    }

    pub(crate) fn identity(&self, id: &str) -> Identity {
        let (chain, key) = self.sign(&Leaf { uris: &[id], ..Leaf::default() });
        Identity::from_der(chain, key, vec![self.root()]).unwrap()
    }

    pub(crate) fn live(&self, id: &str) -> LiveIdentity {
        LiveIdentity::new(self.identity(id))
    }
}
