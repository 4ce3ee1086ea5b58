//! Whom peers may be vouched for by, and who is refused all the same: one value, swapped whole, judged by in every handshake.
//!
//! A peer's one SPIFFE id names its trust domain, and that chooses the roots its chain must end in: a root of one domain
//! vouches for nobody of another (SPIFFE federation, gRFC A87). Then come revocation lists, and last a list of identities
//! and serial numbers that are denied whatever the certificates say, for when it has to be quick.
//!
//! What is not known is denied: a certificate of our own trust domain that no list speaks of, once there are lists, and a list
//! that is out of date. Of other domains' certificates our authority's lists say nothing: those count that their own made.

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use mesh_core::{
    identity::SpiffeId,
    trust::{self, without_leading_zeros},
};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{
    BorrowedCertRevocationList, CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, RevocationCheckDepth,
    RevocationOptionsBuilder, UnknownStatusPolicy,
};
use x509_parser::{certificate::X509Certificate, prelude::FromDer, public_key::PublicKey};

use super::{Refusal, TlsError, verify};

/// The smallest RSA key a peer may have, in bits. Source: what rustls itself verifies with; CA/Browser Forum 6.1.5.
const RSA_BITS: usize = 2048;
/// The smallest elliptic curve, in bits.
const EC_BITS: usize = 256;

/// The roots of one trust domain.
pub(super) type Anchors = Arc<[TrustAnchor<'static>]>;

/// What was told of trust, made ready to judge by.
#[derive(Default)]
pub(super) struct Judge {
    told: Arc<trust::Trust>,
    /// Our own trust domain; empty before there is an identity.
    own: String,
    anchors: BTreeMap<String, Anchors>,
    lists: Vec<CertRevocationList<'static>>,
}

/// Who a peer proved to be.
pub(super) struct Verdict {
    pub(super) id: SpiffeId,
}

impl Judge {
    /// Of a process of the trust domain `own`, whose own roots are `ours` unless others were told.
    pub(super) fn new(told: Arc<trust::Trust>, own: &str, ours: Option<Anchors>) -> Result<Self, TlsError> {
        let mut made = BTreeMap::new();
        for (domain, roots) in &told.bundles {
            let roots: Vec<_> = roots.iter().map(|root| CertificateDer::from(&**root)).collect();
            made.insert(domain.clone(), anchors(&roots)?);
        }
        if let Some(ours) = ours {
            made.entry(own.to_owned()).or_insert(ours);
        }
        let read = |der: &Arc<[u8]>| {
            let list = BorrowedCertRevocationList::from_der(der).and_then(|list| list.to_owned());
            list.map(CertRevocationList::Owned)
                .map_err(|error| TlsError::Identity(format!("a revocation list: {error}")))
        };
        let lists = told.crls.iter().map(read).collect::<Result<_, _>>()?;
        Ok(Self { told, own: own.to_owned(), anchors: made, lists })
    }

    /// What it was made of.
    pub(super) fn told(&self) -> &Arc<trust::Trust> {
        &self.told
    }

    /// Who shows that chain, if it may be believed.
    pub(super) fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        algorithms: &WebPkiSupportedAlgorithms,
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<Verdict, Refusal> {
        let certificate = EndEntityCert::try_from(leaf).map_err(Refusal::Chain)?;
        let id = verify::spiffe_id(&certificate)?;
        let domain = if self.told.aliases.contains(id.trust_domain()) { self.own.as_str() } else { id.trust_domain() };
        // The chain of a stranger is judged by our own roots, so that what is wrong with it is told first.
        let anchors = self.anchors.get(domain).or_else(|| self.anchors.get(&self.own));
        let anchors: &[TrustAnchor<'_>] = anchors.map_or(&[], |anchors| anchors);
        let lists: Vec<&CertRevocationList<'_>> = self.lists.iter().collect();
        let depth = match self.told.only_leaf_crl {
            true => RevocationCheckDepth::EndEntity,
            false => RevocationCheckDepth::Chain,
        };
        let unknown = if domain == self.own { UnknownStatusPolicy::Deny } else { UnknownStatusPolicy::Allow };
        let revocation = RevocationOptionsBuilder::new(&lists).ok().map(|options| {
            let options = options.with_depth(depth).with_status_policy(unknown);
            options.with_expiration_policy(ExpirationPolicy::Enforce).build()
        });
        certificate
            .verify_for_usage(algorithms.all, anchors, intermediates, now, usage, revocation, None)
            .map_err(Refusal::Chain)?;
        if !self.anchors.contains_key(domain) {
            return Err(Refusal::TrustDomain { peer: id, ours: self.own.clone() });
        }
        if self.told.denies(id.as_str(), certificate.serial()) {
            let what = format!("the certificate {} of {id}", hex(certificate.serial()));
            return Err(Refusal::Denied(what));
        }
        // Read once more, now that a root we trust has vouched for every byte of it.
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| Refusal::Unreadable)?;
        strong(&parsed)?;
        Ok(Verdict { id })
    }
}

impl fmt::Debug for Judge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Judge")
            .field("own", &self.own)
            .field("domains", &self.anchors.keys())
            .field("revocation_lists", &self.lists.len())
            .finish_non_exhaustive()
    }
}

/// What is trusted in root certificates.
pub(super) fn anchors(roots: &[CertificateDer<'_>]) -> Result<Anchors, TlsError> {
    let anchors = roots.iter().map(|root| webpki::anchor_from_trusted_cert(root).map(|anchor| anchor.to_owned()));
    let anchors: Anchors =
        anchors.collect::<Result<_, _>>().map_err(|error| TlsError::Identity(format!("a root: {error}")))?;
    if anchors.is_empty() {
        return Err(TlsError::Identity("there are no roots to trust".to_owned()));
    }
    Ok(anchors)
}

/// When a certificate begins and ends.
pub(crate) fn validity(certificate: &CertificateDer<'_>) -> Option<(SystemTime, SystemTime)> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let time = |seconds: i64| UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
    let validity = parsed.validity();
    Some((time(validity.not_before.timestamp()), time(validity.not_after.timestamp())))
}

/// Is its key one that cannot be broken today?
fn strong(certificate: &X509Certificate<'_>) -> Result<(), Refusal> {
    let (kind, bits, least) = match certificate.public_key().parsed() {
        Ok(PublicKey::RSA(key)) => ("RSA", key.key_size(), RSA_BITS),
        Ok(PublicKey::EC(key)) => ("EC", key.key_size(), EC_BITS),
        // Of other kinds those that rustls verifies with are strong.
        Ok(PublicKey::Unknown(_)) => return Ok(()),
        Ok(PublicKey::DSA(_) | PublicKey::GostR3410(_) | PublicKey::GostR3410_2012(_)) => ("outdated", 0, 1),
        Err(_) => return Err(Refusal::Unreadable),
    };
    if bits < least { Err(Refusal::WeakKey { kind, bits }) } else { Ok(()) }
}

fn hex(serial: &[u8]) -> String {
    without_leading_zeros(serial).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer, KeyIdMethod, KeyPair,
        KeyUsagePurpose, PublicKeyData, RevokedCertParams, SanType, SerialNumber, SubjectPublicKeyInfo, date_time_ymd,
    };

    use super::*;
    use crate::tls::{Reason, provider};

    /// RSA of 1024 bits.
    const WEAK: &str = "-----BEGIN PUBLIC KEY-----
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQCcUJp2h8nu3UHxY3x0gxtnwnh3
nDur1f3XA/e2kxyQ50brdZdMaZ+WIBr4mA/+zDeCzKcBXhGubmOD/bjYBxCQnVmc
PzAx9mE9T2srU2bnVwS8uXnG+AokNux2pAL+IOy0SA7DwZXQ6sMRTO3BainPeYUf
ODGMyQP/sZBGlWGRdwIDAQAB
-----END PUBLIC KEY-----";

    fn ca() -> (Issuer<'static, KeyPair>, CertificateDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap().der().clone();
        (Issuer::new(params, key), root)
    }

    fn leaf(id: &str, key: &impl PublicKeyData, issuer: &Issuer<'_, KeyPair>) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        params.signed_by(key, issuer).unwrap().der().clone()
    }

    fn verdict(judge: &Judge, leaf: &CertificateDer<'_>) -> Result<String, Reason> {
        let algorithms = provider().signature_verification_algorithms;
        let verdict = judge.judge(leaf, &[], &algorithms, UnixTime::now(), KeyUsage::client_auth());
        verdict.map(|verdict| verdict.id.to_string()).map_err(|refusal| TlsError::from(refusal).reason())
    }

    /// AN5: a key too short is refused, whoever vouches for it.
    #[test]
    fn weak_keys_are_refused() {
        let (issuer, root) = ca();
        let judge = Judge::new(Arc::default(), "a", Some(anchors(&[root]).unwrap())).unwrap();
        let id = "spiffe://a/ns/x/sa/y";
        assert_eq!(verdict(&judge, &leaf(id, &KeyPair::generate().unwrap(), &issuer)), Ok(id.to_owned()));
        let weak = SubjectPublicKeyInfo::from_pem(WEAK).unwrap();
        assert_eq!(verdict(&judge, &leaf(id, &weak, &issuer)), Err(Reason::WeakKey));
    }

    /// AN5: of four CAs and four trust domains each CA vouches for its own domain alone; an alias is vouched for by ours.
    #[test]
    fn a_ca_vouches_for_its_own_trust_domain_alone() {
        let domains = ["a", "b", "c", "d"];
        let (issuers, roots): (Vec<_>, Vec<_>) = (0..4).map(|_| ca()).unzip();
        let mut told = trust::Trust { aliases: ["old".to_owned()].into(), ..trust::Trust::default() };
        for (domain, root) in domains.iter().zip(&roots).skip(1) {
            told.bundles.insert((*domain).to_owned(), vec![root.to_vec().into()]);
        }
        let judge = Judge::new(Arc::new(told), "a", Some(anchors(&roots[..1]).unwrap())).unwrap();
        let key = KeyPair::generate().unwrap();
        for (i, issuer) in issuers.iter().enumerate() {
            for (j, domain) in domains.iter().enumerate() {
                let id = format!("spiffe://{domain}/ns/x/sa/y");
                let expected = if i == j { Ok(id.clone()) } else { Err(Reason::UnknownIssuer) };
                assert_eq!(verdict(&judge, &leaf(&id, &key, issuer)), expected, "CA {i}, domain {domain}");
            }
            let old = "spiffe://old/ns/x/sa/y";
            let expected = if i == 0 { Ok(old.to_owned()) } else { Err(Reason::UnknownIssuer) };
            assert_eq!(verdict(&judge, &leaf(old, &key, issuer)), expected, "CA {i}, the alias");
        }
        // Nobody knows that domain, whoever vouches for it.
        let stranger = leaf("spiffe://e/ns/x/sa/y", &key, &issuers[0]);
        assert_eq!(verdict(&judge, &stranger), Err(Reason::TrustDomain));
    }

    /// AN5, CT10, CT11: once an authority revokes, certificates of its own domain must be on no list of its; those of another domain are
    /// believed as before, and revoked by their own authority alone.
    #[test]
    fn lists_speak_of_their_own_trust_domain() {
        let authority = |name: &str| {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
            let root = params.self_signed(&key).unwrap().der().clone();
            (Issuer::new(params, key), root)
        };
        let list = |issuer: &Issuer<'_, KeyPair>, serial: u64| -> Arc<[u8]> {
            let revoked = RevokedCertParams {
                serial_number: SerialNumber::from(serial),
                revocation_time: date_time_ymd(2021, 1, 1),
                reason_code: None,
                invalidity_date: None,
            };
            let list = CertificateRevocationListParams {
                this_update: date_time_ymd(2021, 1, 1),
                next_update: date_time_ymd(2119, 1, 1),
                crl_number: SerialNumber::from(1_u64),
                issuing_distribution_point: None,
                revoked_certs: vec![revoked],
                key_identifier_method: KeyIdMethod::Sha256,
            };
            list.signed_by(issuer).unwrap().der().to_vec().into()
        };
        let key = KeyPair::generate().unwrap();
        let signed = |domain: &str, serial: u64, issuer: &Issuer<'_, KeyPair>| {
            let mut params = CertificateParams::default();
            params.subject_alt_names = vec![SanType::URI(format!("spiffe://{domain}/ns/x/sa/y").try_into().unwrap())];
            params.serial_number = Some(SerialNumber::from(serial));
            params.signed_by(&key, issuer).unwrap().der().clone()
        };
        let ((a, root_a), (b, root_b)) = (authority("a"), authority("b"));
        for (lists, only_leaf_crl, expected) in [
            (vec![], false, [true, true, true, true]),
            (vec![list(&a, 1)], false, [false, true, true, true]),
            (vec![list(&a, 1)], true, [false, true, true, true]),
            (vec![list(&a, 1), list(&b, 1)], false, [false, true, false, true]),
            // Of our own domain nothing is known then, and that is not enough.
            (vec![list(&b, 1)], false, [false, false, false, true]),
        ] {
            let told = trust::Trust {
                bundles: [("b".to_owned(), vec![root_b.to_vec().into()])].into(),
                crls: lists,
                only_leaf_crl,
                ..trust::Trust::default()
            };
            let judge = Judge::new(Arc::new(told), "a", Some(anchors(std::slice::from_ref(&root_a)).unwrap())).unwrap();
            let peers = [signed("a", 1, &a), signed("a", 2, &a), signed("b", 1, &b), signed("b", 2, &b)];
            let believed = peers.map(|peer| verdict(&judge, &peer).is_ok());
            assert_eq!(believed, expected, "only leaves: {only_leaf_crl}");
        }
    }
}
