//! Whom peers may be vouched for by, and who is refused all the same: one value, swapped whole, judged by in every handshake.
//!
//! A peer's one SPIFFE id names its trust domain, and that chooses the roots its chain must end in: a root of one domain
//! vouches for nobody of another (SPIFFE federation, gRFC A87). Then come revocation lists, and last a list of identities
//! and serial numbers that are denied whatever the certificates say, for when it has to be quick.
//!
//! What is not known is denied: a certificate that no list speaks of, once there are lists, and a list that is out of date.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use mesh_core::identity::SpiffeId;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, TrustAnchor, UnixTime, pem::PemObject};
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

/// Whom peers may be vouched for by, and who is refused all the same.
#[derive(Clone, Default)]
pub struct Trust {
    own: String,
    aliases: BTreeSet<String>,
    bundles: BTreeMap<String, Bundle>,
    lists: Vec<Arc<RevocationList>>,
    lenient: bool,
    denied: BTreeSet<String>,
    serials: BTreeSet<Vec<u8>>,
}

/// The roots of one trust domain.
#[derive(Clone)]
struct Bundle {
    anchors: Arc<[TrustAnchor<'static>]>,
    certificates: Arc<[CertificateDer<'static>]>,
}

struct RevocationList {
    der: CertificateRevocationListDer<'static>,
    parsed: CertRevocationList<'static>,
}

/// Who a peer proved to be, and until when.
#[derive(Clone, Debug)]
pub(super) struct Verdict {
    pub(super) id: SpiffeId,
    #[expect(dead_code, reason = "connections will be retired by it")]
    pub(super) not_after: SystemTime,
}

impl Trust {
    /// Our own trust domain; empty before there is an identity.
    pub fn trust_domain(&self) -> &str {
        &self.own
    }

    /// The roots of a trust domain, if its workloads are believed at all.
    pub fn roots(&self, trust_domain: &str) -> Option<&[CertificateDer<'static>]> {
        self.bundles.get(trust_domain).map(|bundle| &*bundle.certificates)
    }

    /// The trust domains whose workloads are believed, aliases aside.
    pub fn trust_domains(&self) -> impl Iterator<Item = &str> {
        self.bundles.keys().map(String::as_str)
    }

    /// Sets the roots of one trust domain: our own, or another's we are federated with.
    ///
    /// # Errors
    ///
    /// No roots, or one that cannot be read; those before stay.
    pub fn set_roots(&mut self, trust_domain: &str, roots: Vec<CertificateDer<'static>>) -> Result<(), TlsError> {
        let bundle = Bundle::new(roots)?;
        self.bundles.insert(trust_domain.to_owned(), bundle);
        Ok(())
    }

    /// Believes nobody of a trust domain any more.
    pub fn remove_roots(&mut self, trust_domain: &str) {
        self.bundles.remove(trust_domain);
    }

    /// Other names of our own trust domain: their workloads are vouched for by our own roots. Replaces those before.
    ///
    /// Source: Istio `MeshConfig.trustDomainAliases`.
    pub fn set_aliases(&mut self, aliases: impl IntoIterator<Item = impl Into<String>>) {
        self.aliases = aliases.into_iter().map(Into::into).collect();
    }

    /// Is `trust_domain` our own, by its name or an alias?
    pub fn is_own(&self, trust_domain: &str) -> bool {
        !self.own.is_empty() && (trust_domain == self.own || self.aliases.contains(trust_domain))
    }

    /// What CAs have revoked: one list of each CA, for one CA the first counts. Replaces those before.
    ///
    /// Signatures are checked when a chain with that CA is. Once there is a list, every certificate of a chain below its
    /// root must be spoken of by one. Source: Envoy `CertificateValidationContext.crl`.
    ///
    /// # Errors
    ///
    /// A list that cannot be read; those before stay.
    pub fn set_revocation_lists(
        &mut self,
        lists: impl IntoIterator<Item = CertificateRevocationListDer<'static>>,
    ) -> Result<(), TlsError> {
        let read = |der: CertificateRevocationListDer<'static>| {
            let parsed = BorrowedCertRevocationList::from_der(&der)
                .and_then(|list| list.to_owned())
                .map_err(|error| TlsError::Identity(format!("a revocation list: {error}")))?;
            Ok(Arc::new(RevocationList { der, parsed: CertRevocationList::Owned(parsed) }))
        };
        self.lists = lists.into_iter().map(read).collect::<Result<_, TlsError>>()?;
        Ok(())
    }

    /// The same from PEM text with any number of lists.
    ///
    /// # Errors
    ///
    /// Text that is not PEM, and what [`Trust::set_revocation_lists`] refuses.
    pub fn set_revocation_lists_pem(&mut self, pem: &str) -> Result<(), TlsError> {
        let lists = CertificateRevocationListDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
        let lists = lists.map_err(|error| TlsError::Identity(format!("revocation lists: {error}")))?;
        self.set_revocation_lists(lists)
    }

    /// Takes peers that no revocation list speaks of, and lists that are out of date; by default both are refused.
    pub fn set_lenient_revocation(&mut self, lenient: bool) {
        self.lenient = lenient;
    }

    /// Identities that are refused whatever they show. Replaces those before.
    pub fn deny_ids(&mut self, ids: impl IntoIterator<Item = impl Into<String>>) {
        self.denied = ids.into_iter().map(Into::into).collect();
    }

    /// Serial numbers of leaves that are refused, in hex with or without colons; of whatever CA. Replaces those before.
    ///
    /// # Errors
    ///
    /// What is not hex; those before stay.
    pub fn deny_serials(&mut self, serials: impl IntoIterator<Item = impl AsRef<str>>) -> Result<(), TlsError> {
        self.serials = serials.into_iter().map(|text| serial(text.as_ref())).collect::<Result<_, _>>()?;
        Ok(())
    }

    /// Makes a domain our own, with its roots; the roots of the one before are gone.
    pub(super) fn belong(
        &mut self,
        trust_domain: &str,
        bundle: (Arc<[TrustAnchor<'static>]>, Arc<[CertificateDer<'static>]>),
    ) {
        if self.own != trust_domain {
            let before = std::mem::replace(&mut self.own, trust_domain.to_owned());
            self.bundles.remove(&before);
        }
        let (anchors, certificates) = bundle;
        self.bundles.insert(self.own.clone(), Bundle { anchors, certificates });
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
        let domain = if self.is_own(id.trust_domain()) { &self.own } else { id.trust_domain() };
        // The chain of a stranger is judged by our own roots, so that what is wrong with it is told first.
        let bundle = self.bundles.get(domain).or_else(|| self.bundles.get(&self.own));
        let anchors: &[TrustAnchor<'_>] = bundle.map_or(&[], |bundle| &bundle.anchors);
        let lists: Vec<&CertRevocationList<'_>> = self.lists.iter().map(|list| &list.parsed).collect();
        let (unknown, stale) = match self.lenient {
            true => (UnknownStatusPolicy::Allow, ExpirationPolicy::Ignore),
            false => (UnknownStatusPolicy::Deny, ExpirationPolicy::Enforce),
        };
        let revocation = RevocationOptionsBuilder::new(&lists).ok().map(|options| {
            let options = options.with_depth(RevocationCheckDepth::Chain).with_status_policy(unknown);
            options.with_expiration_policy(stale).build()
        });
        certificate
            .verify_for_usage(algorithms.all, anchors, intermediates, now, usage, revocation, None)
            .map_err(Refusal::Chain)?;
        if !self.bundles.contains_key(domain) {
            return Err(Refusal::TrustDomain { peer: id, ours: self.own.clone() });
        }
        if self.denied.contains(id.as_str()) {
            return Err(Refusal::Denied(format!("the identity {id}")));
        }
        if self.serials.contains(trimmed(certificate.serial())) {
            return Err(Refusal::Denied(format!("the certificate {}", hex(certificate.serial()))));
        }
        // Read once more, now that a root we trust has vouched for every byte of it.
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| Refusal::Unreadable)?;
        strong(&parsed)?;
        let seconds = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or_default();
        Ok(Verdict { id, not_after: UNIX_EPOCH + Duration::from_secs(seconds) })
    }
}

impl PartialEq for Trust {
    /// By what was given, so that the same trust said again changes nothing.
    fn eq(&self, other: &Self) -> bool {
        let lists = |trust: &Self| trust.lists.iter().map(|list| list.der.clone()).collect::<Vec<_>>();
        let bundles = |trust: &Self| {
            let of = |(domain, bundle): (&String, &Bundle)| (domain.clone(), Arc::clone(&bundle.certificates));
            trust.bundles.iter().map(of).collect::<Vec<_>>()
        };
        (&self.own, &self.aliases, self.lenient) == (&other.own, &other.aliases, other.lenient)
            && (&self.denied, &self.serials) == (&other.denied, &other.serials)
            && bundles(self) == bundles(other)
            && lists(self) == lists(other)
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust")
            .field("own", &self.own)
            .field("aliases", &self.aliases)
            .field("domains", &self.bundles.keys())
            .field("revocation_lists", &self.lists.len())
            .field("denied", &self.denied)
            .field("serials", &self.serials.iter().map(|serial| hex(serial)).collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

impl Bundle {
    fn new(roots: Vec<CertificateDer<'static>>) -> Result<Self, TlsError> {
        Ok(Self { anchors: anchors(&roots)?, certificates: roots.into() })
    }
}

/// What is trusted in root certificates.
pub(super) fn anchors(roots: &[CertificateDer<'static>]) -> Result<Arc<[TrustAnchor<'static>]>, TlsError> {
    let anchors = roots.iter().map(|root| webpki::anchor_from_trusted_cert(root).map(|anchor| anchor.to_owned()));
    let anchors: Arc<[TrustAnchor<'static>]> =
        anchors.collect::<Result<_, _>>().map_err(|error| TlsError::Identity(format!("a root: {error}")))?;
    if anchors.is_empty() {
        return Err(TlsError::Identity("there are no roots to trust".to_owned()));
    }
    Ok(anchors)
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

/// A serial number as text says it.
fn serial(text: &str) -> Result<Vec<u8>, TlsError> {
    let bad = || TlsError::Identity(format!("{:?} is no serial number in hex", text.escape_debug().to_string()));
    let digits: String = text.trim().chars().filter(|c| *c != ':').collect();
    let digits = digits.trim_start_matches('0');
    let digits = if digits.len() % 2 == 1 { format!("0{digits}") } else { digits.to_owned() };
    // A serial number has at most 20 bytes (RFC 5280, 4.1.2.2).
    if digits.is_empty() || digits.len() > 40 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(bad());
    }
    let byte = |at: usize| digits.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok()).ok_or_else(bad);
    (0..digits.len()).step_by(2).map(byte).collect()
}

/// Without the zeros that DER may put before it.
fn trimmed(serial: &[u8]) -> &[u8] {
    let zeros = serial.iter().take_while(|byte| **byte == 0).count();
    serial.get(zeros..).unwrap_or_default()
}

fn hex(serial: &[u8]) -> String {
    trimmed(serial).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// CT10: a serial number is the same number however it is written.
    #[test]
    fn serials_are_numbers() {
        for text in ["0a1b", "0A:1B", "a1b", "00:0a:1b", " a1b "] {
            assert_eq!(serial(text).unwrap(), [0x0a, 0x1b], "{text}");
        }
        assert_eq!(trimmed(&[0, 0x8a, 0x1b]), [0x8a, 0x1b]);
        for text in ["", "0", "xyz", "0x1", "1234567890123456789012345678901234567890a"] {
            assert!(serial(text).is_err(), "{text}");
        }
    }
}
