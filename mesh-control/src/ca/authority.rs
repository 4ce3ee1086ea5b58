//! One authority: the key that signs leaves, the certificates behind it, and the roots it is trusted by.
//!
//! One that is made here has a root and an intermediate, so that the root's key signs twice in its life. One that is given as
//! files has Istio's names: `ca-cert.pem`, `ca-key.pem`, `root-cert.pem`, `cert-chain.pem`; the root's key need not be there.
//! Whatever it is made of, it signs for nobody before a leaf of its own has been verified against its roots.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use mesh_core::trust::without_leading_zeros;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyUsagePurpose, PublicKeyData, RevokedCertParams, SanType,
    SerialNumber,
};
use rustls::{RootCertStore, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, UnixTime, pem::PemObject};
use x509_parser::{certificate::X509Certificate, extensions::ParsedExtension, prelude::FromDer};
use zeroize::Zeroizing;

use super::{CLOCK_SKEW, CaError, files, key::SecretKey, provider, set_validity};

/// Istio: 10 years.
pub(super) const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// How long a list of revoked certificates is good. It is signed anew at half of that, and with every change.
pub(super) const CRL_LIFETIME: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// What an authority is made of, in PEM.
pub(super) struct Parts {
    /// The certificate whose key signs leaves.
    pub(super) certificate: String,
    pub(super) key: SecretKey,
    /// What stands between it and the roots; may repeat either.
    pub(super) chain: String,
    pub(super) roots: String,
    pub(super) root_key: Option<SecretKey>,
}

/// Signs leaves.
pub(super) struct Authority {
    issuer: Issuer<'static, SecretKey>,
    /// Of the key that signs, as leaves name it.
    key_id: Vec<u8>,
    serial: String,
    subject: String,
    /// What is sent behind a leaf: the issuing certificate and those above it, without roots.
    behind: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
    /// The root's own key, to sign the list of those it revoked: none. Without it peers can be asked to check leaves only.
    root: Option<(Issuer<'static, SecretKey>, Vec<u8>)>,
    not_before: SystemTime,
    not_after: SystemTime,
    /// Where its files are, if anywhere.
    pub(super) place: Option<PathBuf>,
    /// Its keys were made here, and are deleted with it.
    pub(super) made: bool,
}

impl Parts {
    /// A new root with an intermediate that signs.
    pub(super) fn make(trust_domain: &str, now: SystemTime) -> Result<Self, CaError> {
        let root_key = SecretKey::generate()?;
        let root = params(trust_domain, "root", 1, now)?;
        let root_certificate = root.self_signed(&root_key).map_err(CaError::crypto)?;
        let key = SecretKey::generate()?;
        let mut intermediate = params(trust_domain, "issuer", 0, now)?;
        intermediate.use_authority_key_identifier_extension = true;
        let issuer = Issuer::from_ca_cert_der(root_certificate.der(), &root_key).map_err(CaError::crypto)?;
        let certificate = intermediate.signed_by(&key, &issuer).map_err(CaError::crypto)?.pem();
        Ok(Self {
            chain: certificate.clone(),
            certificate,
            key,
            roots: root_certificate.pem(),
            root_key: Some(root_key),
        })
    }

    /// What the files in `dir` say; `None` when there is no `ca-cert.pem`.
    pub(super) fn read(dir: &Path) -> Result<Option<Self>, CaError> {
        let Some(certificate) = files::read(&dir.join("ca-cert.pem"))? else { return Ok(None) };
        let key = |name: &str| -> Result<Option<SecretKey>, CaError> {
            let path = dir.join(name);
            let Some(pem) = files::read(&path)?.map(Zeroizing::new) else { return Ok(None) };
            files::warn_if_others_can_read(&path);
            SecretKey::read(&path, &pem).map(Some)
        };
        let missing = || CaError::Root(format!("{} has a ca-cert.pem and no ca-key.pem", dir.display()));
        Ok(Some(Self {
            key: key("ca-key.pem")?.ok_or_else(missing)?,
            chain: files::read(&dir.join("cert-chain.pem"))?.unwrap_or_default(),
            roots: files::read(&dir.join("root-cert.pem"))?.unwrap_or_else(|| certificate.clone()),
            root_key: key("root-key.pem")?,
            certificate,
        }))
    }

    /// Writes them to `dir`, keys first, so that what is found there with a certificate is whole.
    pub(super) fn write(&self, dir: &Path) -> Result<(), CaError> {
        files::make_directory(dir)?;
        files::write_secret(&dir.join("ca-key.pem"), &self.key.pem())?;
        if let Some(key) = &self.root_key {
            files::write_secret(&dir.join("root-key.pem"), &key.pem())?;
        }
        files::write_public(&dir.join("root-cert.pem"), &self.roots)?;
        files::write_public(&dir.join("cert-chain.pem"), &self.chain)?;
        files::write_public(&dir.join("ca-cert.pem"), &self.certificate)
    }
}

impl Authority {
    /// Puts the parts together and proves that what it signs is believed by those who trust its roots.
    pub(super) fn new(
        parts: Parts,
        place: Option<PathBuf>,
        made: bool,
        trust_domain: &str,
        now: SystemTime,
    ) -> Result<Arc<Self>, CaError> {
        let roots = certificates("root-cert.pem", &parts.roots)?;
        let own = certificates("ca-cert.pem", &parts.certificate)?;
        let own = own.into_iter().next().ok_or_else(|| CaError::Root("ca-cert.pem holds no certificate".to_owned()))?;
        let parsed = parse(&own)?;
        if !parsed.is_ca() {
            return Err(CaError::Root("it is not a certificate authority's".to_owned()));
        }
        if parsed.public_key().raw != parts.key.subject_public_key_info() {
            return Err(CaError::Root("ca-key.pem is the key of another certificate".to_owned()));
        }
        let above = certificates("cert-chain.pem", &parts.chain)?;
        let mut behind: Vec<CertificateDer<'static>> = Vec::new();
        for certificate in std::iter::once(&own).chain(&above) {
            if !roots.contains(certificate) && !behind.contains(certificate) {
                behind.push(certificate.clone());
            }
        }
        let mut not_before = UNIX_EPOCH;
        let mut not_after = now + ROOT_LIFETIME + ROOT_LIFETIME;
        for certificate in behind.iter().chain(&roots) {
            let validity = parse(certificate)?.validity().clone();
            // Of several roots the longest counts, since one that is leaving is among them.
            if !roots.contains(certificate) || roots.len() == 1 {
                not_before = not_before.max(system_time(validity.not_before.timestamp()));
                not_after = not_after.min(system_time(validity.not_after.timestamp()));
            }
        }
        let root = match (parts.root_key, roots.first()) {
            (Some(key), Some(root)) => {
                if parse(root)?.public_key().raw != key.subject_public_key_info() {
                    return Err(CaError::Root("root-key.pem is the key of another certificate".to_owned()));
                }
                let id = key_id(&parse(root)?, &key);
                Some((Issuer::from_ca_cert_der(root, key).map_err(CaError::crypto)?, id))
            }
            _ => None,
        };
        let authority = Self {
            key_id: key_id(&parsed, &parts.key),
            serial: hex(without_leading_zeros(parsed.raw_serial())),
            subject: parsed.subject().to_string(),
            issuer: Issuer::from_ca_cert_der(&own, parts.key).map_err(CaError::crypto)?,
            behind,
            roots,
            root,
            not_before,
            not_after,
            place,
            made,
        };
        authority.prove(trust_domain, now)?;
        Ok(Arc::new(authority))
    }

    /// Signs a leaf for a name of the trust domain and verifies it as a peer would.
    fn prove(&self, trust_domain: &str, now: SystemTime) -> Result<(), CaError> {
        let wrong = |error: String| CaError::Root(format!("what it signs is not believed by its own roots: {error}"));
        let name = format!("spiffe://{trust_domain}/ns/istio-system/sa/proof").try_into().map_err(CaError::crypto)?;
        let (leaf, _) = self.sign(&SecretKey::generate()?, vec![SanType::URI(name)], Duration::from_secs(60), now)?;
        let mut store = RootCertStore::empty();
        for root in &self.roots {
            store.add(root.clone()).map_err(|error| wrong(error.to_string()))?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider())
            .build()
            .map_err(|error| wrong(error.to_string()))?;
        let at = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default());
        verifier.verify_client_cert(leaf.der(), &self.behind, at).map_err(|error| wrong(error.to_string()))?;
        Ok(())
    }

    /// Signs a key for these names; with the certificate comes its serial number in hexadecimal. No leaf outlives those above it.
    pub(super) fn sign(
        &self,
        key: &impl PublicKeyData,
        names: Vec<SanType>,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<(Certificate, String), CaError> {
        if self.not_after <= now {
            return Err(CaError::Root(format!("the authority's own certificate ({}) has expired", self.subject)));
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names;
        set_validity(&mut params, (now - CLOCK_SKEW).max(self.not_before), (now + ttl).min(self.not_after));
        let serial = super::serial_number()?;
        let shown = hex(without_leading_zeros(serial.as_ref()));
        params.serial_number = Some(serial);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        Ok((params.signed_by(key, &self.issuer).map_err(CaError::crypto)?, shown))
    }

    /// Roots in PEM.
    pub(super) fn read_roots(pem: &str) -> Result<Vec<CertificateDer<'static>>, CaError> {
        certificates("a root", pem)
    }

    /// The lists of what it has revoked, in DER: its own, and the empty one of its root where that can be signed. Peers that check
    /// whole chains want one of each.
    pub(super) fn crls(&self, revoked: &[(Vec<u8>, SystemTime)], number: u64, now: SystemTime) -> Vec<Arc<[u8]>> {
        let own = crl(&self.issuer, &self.key_id, revoked, number, now);
        let root = self.root.as_ref().filter(|_| !self.behind.is_empty());
        let root = root.map(|(issuer, key_id)| crl(issuer, key_id, &[], number, now));
        let lists = std::iter::once(own).chain(root);
        lists
            .filter_map(|list| {
                list.inspect_err(|error| tracing::error!(%error, "no list of revoked certificates")).ok()
            })
            .collect()
    }

    /// Can the lists of its whole chain be signed here?
    pub(super) fn signs_whole_chain(&self) -> bool {
        self.behind.is_empty() || self.root.is_some() && self.behind.len() == 1
    }

    /// What is sent behind a leaf.
    pub(super) fn behind(&self) -> &[CertificateDer<'static>] {
        &self.behind
    }

    /// What members trust it by.
    pub(super) fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// Of the key that signs, as leaves name it.
    pub(super) fn key_id(&self) -> &[u8] {
        &self.key_id
    }

    /// By this people and files call it: the beginning of its key's name.
    pub(super) fn id(&self) -> String {
        hex(self.key_id.get(..8).unwrap_or(&self.key_id))
    }

    pub(super) fn serial(&self) -> &str {
        &self.serial
    }

    pub(super) fn subject(&self) -> &str {
        &self.subject
    }

    pub(super) fn validity(&self) -> (SystemTime, SystemTime) {
        (self.not_before, self.not_after)
    }
}

/// Keys are not shown.
impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("subject", &self.subject).finish_non_exhaustive()
    }
}

fn params(trust_domain: &str, role: &str, below: u8, now: SystemTime) -> Result<CertificateParams, CaError> {
    let serial = super::serial_number()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, trust_domain);
    // Two authorities of one name would be taken for each other by whoever builds chains by name.
    let word = hex(serial.as_ref().get(..4).unwrap_or_default());
    params.distinguished_name.push(DnType::CommonName, format!("mesh {role} {word}"));
    params.serial_number = Some(serial);
    set_validity(&mut params, now - CLOCK_SKEW, now + ROOT_LIFETIME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn crl(
    issuer: &Issuer<'static, SecretKey>,
    key_id: &[u8],
    revoked: &[(Vec<u8>, SystemTime)],
    number: u64,
    now: SystemTime,
) -> Result<Arc<[u8]>, CaError> {
    let revoked = revoked.iter().map(|(serial, at)| RevokedCertParams {
        serial_number: SerialNumber::from_slice(serial),
        revocation_time: super::date(*at).into(),
        reason_code: None,
        invalidity_date: None,
    });
    let params = CertificateRevocationListParams {
        this_update: super::date(now - CLOCK_SKEW).into(),
        next_update: super::date(now + CRL_LIFETIME).into(),
        crl_number: SerialNumber::from_slice(&number.to_be_bytes()),
        issuing_distribution_point: None,
        revoked_certs: revoked.collect(),
        key_identifier_method: KeyIdMethod::PreSpecified(key_id.to_vec()),
    };
    let list = params.signed_by(issuer).map_err(CaError::crypto)?;
    Ok(list.der().as_ref().into())
}

/// The name of a key as the certificate gives it, else as leaves will name it.
fn key_id(certificate: &X509Certificate<'_>, key: &SecretKey) -> Vec<u8> {
    let named = certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
        _ => None,
    });
    named.unwrap_or_else(|| CertificateParams::default().key_identifier(key))
}

fn certificates(name: &str, pem: &str) -> Result<Vec<CertificateDer<'static>>, CaError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    read.map_err(|error| CaError::Root(format!("{name} is not PEM: {error:?}")))
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, CaError> {
    let parsed = X509Certificate::from_der(certificate);
    parsed.map(|(_, certificate)| certificate).map_err(|error| CaError::Root(error.to_string()))
}

fn system_time(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
