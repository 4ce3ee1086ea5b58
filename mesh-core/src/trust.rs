//! What peers are judged by: the roots of each trust domain, what was revoked, and who is denied at once.
//!
//! Plain data. Where it comes from is the business of whoever speaks with the authority; certificates are verified by whoever
//! holds the connection.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Everything of one moment that decides whether a peer's certificate counts. It is swapped whole.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Trust {
    /// The roots (X.509, DER) by trust domain. A peer is judged by those of its own domain only, so that one domain's
    /// authority cannot vouch for another's members. Source: gRFC A87; Envoy `SPIFFECertValidatorConfig.trust_domains`.
    pub bundles: BTreeMap<String, Vec<Arc<[u8]>>>,
    /// Trust domains whose members are judged by the roots of our own domain, and count as its members. Source: Istio
    /// `MeshConfig.trustDomainAliases`.
    pub aliases: BTreeSet<String>,
    /// Lists of revoked certificates (X.509 v2, DER). Source: Envoy `CertificateValidationContext.crl`.
    pub crls: Vec<Arc<[u8]>>,
    /// Only leaves are looked for in `crls`, so that an authority above need not have a list. Default: the whole chain. Source:
    /// Envoy `CertificateValidationContext.only_verify_leaf_cert_crl`.
    pub only_leaf_crl: bool,
    /// SPIFFE ids that are let in no more, whatever certificate proves them.
    pub denied_ids: BTreeSet<String>,
    /// Serial numbers of certificates that are let in no more, whoever signed them: big-endian, without leading zeros.
    pub denied_serials: BTreeSet<Vec<u8>>,
}

impl Trust {
    /// The roots that members of `domain` are judged by, where `own` is our trust domain; none for a stranger's.
    pub fn roots(&self, domain: &str, own: &str) -> &[Arc<[u8]>] {
        let domain = if self.aliases.contains(domain) { own } else { domain };
        self.bundles.get(domain).map(Vec::as_slice).unwrap_or_default()
    }

    /// Is the peer of this id, with a certificate of this serial number, denied whatever its chain?
    pub fn denies(&self, id: &str, serial: &[u8]) -> bool {
        self.denied_ids.contains(id) || self.denied_serials.contains(without_leading_zeros(serial))
    }
}

/// A serial number as [`Trust::denied_serials`] has it: a positive one is written with a leading zero where its first bit is set.
pub fn without_leading_zeros(serial: &[u8]) -> &[u8] {
    let zeros = serial.iter().take_while(|byte| **byte == 0).count();
    serial.get(zeros..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CT11: each domain has its own roots, an alias has ours, and a stranger has none.
    #[test]
    fn a_domain_is_judged_by_its_own_roots() {
        let root = |byte: u8| -> Vec<Arc<[u8]>> { vec![[byte].as_slice().into()] };
        let trust = Trust {
            bundles: [("ours".to_owned(), root(1)), ("theirs".to_owned(), root(2))].into(),
            aliases: ["old".to_owned()].into(),
            ..Trust::default()
        };
        for (domain, expected) in [("ours", root(1)), ("theirs", root(2)), ("old", root(1)), ("other", Vec::new())] {
            assert_eq!(trust.roots(domain, "ours"), expected, "{domain}");
        }
    }

    /// CT10: a denied id is denied with any serial, a denied serial with any id, however it is written.
    #[test]
    fn ids_and_serials_are_denied() {
        let trust = Trust {
            denied_ids: ["spiffe://a/ns/x/sa/bad".to_owned()].into(),
            denied_serials: [vec![0x80, 1]].into(),
            ..Trust::default()
        };
        assert!(trust.denies("spiffe://a/ns/x/sa/bad", &[7]));
        assert!(trust.denies("spiffe://a/ns/x/sa/good", &[0, 0x80, 1]) && trust.denies("", &[0x80, 1]));
        assert!(!trust.denies("spiffe://a/ns/x/sa/good", &[0x80]) && !trust.denies("spiffe://a/ns/x/sa/bad/2", &[]));
    }
}
