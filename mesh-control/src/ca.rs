//! The certificate authority: a root of its own, SPIFFE leaves for CSRs, and the tokens by which workloads prove who they are.
//!
//! A CSR says nothing but the public key: names, lifetimes and usages in it are ignored, and the identity in the certificate
//! is the one the caller proved with its token. Chains go out leaf first, root last. Without a state directory the keys live
//! in this process only and are never written (CT6); with one they are kept there, readable by their owner alone.
//!
//! Source: Istio `security/pkg/pki/ca`, `istio.v1.auth.IstioCertificateService`; SPIFFE X.509-SVID.

use std::{
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rand::{TryRngCore, rngs::OsRng};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::crypto::{CryptoProvider, ring};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};

mod account;
mod files;
mod service;
mod token;

pub use account::ServiceAccount;
pub use service::CertificateService;
pub use token::Tokens;

pub(crate) use files::{write_public, write_secret};

/// The largest CSR read, in bytes; a P-256 request is under 1 KiB, RSA 8192 under 8 KiB.
const MAX_CSR: usize = 64 * 1024;

/// Certificates are valid a little earlier than issued, for clocks that run behind. Istio: 2 minutes.
const CLOCK_SKEW: Duration = Duration::from_secs(120);

/// Istio: 10 years.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// A root that signs.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
    root_pem: String,
    root_not_after: SystemTime,
    trust_domain: String,
    tokens: Tokens,
}

impl Ca {
    /// The lifetime of a leaf when the request names none. Istio `DEFAULT_WORKLOAD_CERT_TTL`.
    pub const DEFAULT_TTL: Duration = Duration::from_secs(24 * 60 * 60);

    /// The longest lifetime a request may name. Istio `MAX_WORKLOAD_CERT_TTL`, 90 days.
    pub const MAX_TTL: Duration = Duration::from_secs(90 * 24 * 60 * 60);

    /// A new root, whose keys never leave this process.
    ///
    /// # Errors
    ///
    /// When the system gives no randomness.
    pub fn in_memory(trust_domain: &str) -> Result<Self, CaError> {
        let key = KeyPair::generate().map_err(CaError::crypto)?;
        let root_pem = new_root(&key, trust_domain, SystemTime::now())?;
        Self::assemble(key, root_pem, trust_domain, Tokens::new(&KeyPair::generate().map_err(CaError::crypto)?))
    }

    /// The root kept in `dir`, made there when there is none: `ca-key.pem`, `ca-cert.pem` and `token-key.pem`.
    ///
    /// # Errors
    ///
    /// When a file cannot be read or written, or holds something else than its name says.
    pub fn open(dir: &Path, trust_domain: &str) -> Result<Self, CaError> {
        files::make_directory(dir)?;
        let key = files::key(&dir.join("ca-key.pem"))?;
        let path = dir.join("ca-cert.pem");
        let root_pem = match files::read(&path)? {
            Some(pem) => pem,
            None => {
                let pem = new_root(&key, trust_domain, SystemTime::now())?;
                write_public(&path, &pem)?;
                pem
            }
        };
        let tokens = Tokens::new(&files::key(&dir.join("token-key.pem"))?);
        Self::assemble(key, root_pem, trust_domain, tokens)
    }

    fn assemble(key: KeyPair, root_pem: String, trust_domain: &str, tokens: Tokens) -> Result<Self, CaError> {
        let root = CertificateDer::from_pem_slice(root_pem.as_bytes())
            .map_err(|error| CaError::Root(error.to_string()))?
            .into_owned();
        let (_, parsed) =
            x509_parser::parse_x509_certificate(&root).map_err(|error| CaError::Root(error.to_string()))?;
        if !parsed.is_ca() {
            return Err(CaError::Root("it is not a certificate authority's".to_owned()));
        }
        if parsed.public_key().subject_public_key.data != key.der_bytes() {
            return Err(CaError::Root("ca-key.pem is the key of another certificate".to_owned()));
        }
        let not_after = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or_default();
        let root_not_after = UNIX_EPOCH + Duration::from_secs(not_after);
        let issuer = Issuer::from_ca_cert_der(&root, key).map_err(CaError::crypto)?;
        // Istio writes the `@` of a trust domain as `.`.
        Ok(Self { issuer, root, root_pem, root_not_after, trust_domain: trust_domain.replace('@', "."), tokens })
    }

    /// The root certificate in PEM: what every member of the mesh trusts.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// What stands after `spiffe://` in every identity.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// What issues and verifies tokens.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// Signs the public key of a CSR (PEM) for `account`; the chain comes in PEM, leaf first, root last (CT4).
    ///
    /// `ttl` of `None` is [`Ca::DEFAULT_TTL`]. No leaf outlives the root.
    ///
    /// # Errors
    ///
    /// When the CSR cannot be read or is not signed by its own key, or the lifetime is over [`Ca::MAX_TTL`].
    pub fn sign_csr(
        &self,
        csr: &str,
        account: &ServiceAccount,
        ttl: Option<Duration>,
        now: SystemTime,
    ) -> Result<Vec<String>, CaError> {
        if csr.len() > MAX_CSR {
            return Err(CaError::Csr(format!("{} bytes are more than the {MAX_CSR} read", csr.len())));
        }
        let ttl = ttl.unwrap_or(Self::DEFAULT_TTL);
        if ttl > Self::MAX_TTL {
            return Err(CaError::Ttl(ttl));
        }
        let request =
            CertificateSigningRequestParams::from_pem(csr).map_err(|error| CaError::Csr(error.to_string()))?;
        let spiffe_id = account.spiffe_id(&self.trust_domain);
        let names = vec![SanType::URI(spiffe_id.try_into().map_err(CaError::crypto)?)];
        let params = self.leaf(names, ttl, now)?;
        let leaf = params.signed_by(&request.public_key, &self.issuer).map_err(CaError::crypto)?;
        Ok(vec![leaf.pem(), self.root_pem.clone()])
    }

    /// A new key with a certificate for `account`, valid for [`Ca::DEFAULT_TTL`]: the chain, leaf first, and the key, in PEM.
    ///
    /// For members that cannot make a signing request, such as an Envoy: they get both over the stream on which they proved
    /// who they are.
    ///
    /// # Errors
    ///
    /// When the system gives no randomness.
    pub fn issue(&self, account: &ServiceAccount, now: SystemTime) -> Result<(String, String), CaError> {
        let key = KeyPair::generate().map_err(CaError::crypto)?;
        let names = vec![SanType::URI(account.spiffe_id(&self.trust_domain).try_into().map_err(CaError::crypto)?)];
        let params = self.leaf(names, Self::DEFAULT_TTL, now)?;
        let leaf = params.signed_by(&key, &self.issuer).map_err(CaError::crypto)?;
        Ok((leaf.pem(), key.serialize_pem()))
    }

    /// TLS for the control plane's own port, speaking HTTP/2, with a certificate for the names istiod has, the loopback and
    /// `address`.
    ///
    /// It lives as long as the root: its key never leaves this process and is made anew with each.
    ///
    /// # Errors
    ///
    /// When the system gives no randomness.
    pub fn server_tls(&self, address: IpAddr, now: SystemTime) -> Result<Arc<rustls::ServerConfig>, CaError> {
        let key = KeyPair::generate().map_err(CaError::crypto)?;
        let mut names = Vec::new();
        for name in [SERVER_NAME, "istiod.istio-system.svc.cluster.local", "localhost"] {
            names.push(SanType::DnsName(name.try_into().map_err(CaError::crypto)?));
        }
        let mut addresses = vec![IpAddr::from([127, 0, 0, 1]), IpAddr::from(std::net::Ipv6Addr::LOCALHOST)];
        if !address.is_unspecified() && !addresses.contains(&address) {
            addresses.push(address);
        }
        names.extend(addresses.into_iter().map(SanType::IpAddress));
        let leaf = self.leaf(names, ROOT_LIFETIME, now)?.signed_by(&key, &self.issuer).map_err(CaError::crypto)?;
        let provider = CryptoProvider::get_default().cloned().unwrap_or_else(|| Arc::new(ring::default_provider()));
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(CaError::crypto)?
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone(), self.root.clone()], key)
            .map_err(CaError::crypto)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }

    fn leaf(&self, names: Vec<SanType>, ttl: Duration, now: SystemTime) -> Result<CertificateParams, CaError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names;
        set_validity(&mut params, now - CLOCK_SKEW, (now + ttl).min(self.root_not_after));
        params.serial_number = Some(serial_number()?);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }
}

/// Keys are not shown.
impl fmt::Debug for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ca").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

/// The name by which clients know the control plane, whatever address they dial. Source: istiod's certificate.
pub const SERVER_NAME: &str = "istiod.istio-system.svc";

fn new_root(key: &KeyPair, trust_domain: &str, now: SystemTime) -> Result<String, CaError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, trust_domain);
    set_validity(&mut params, now - CLOCK_SKEW, now + ROOT_LIFETIME);
    params.serial_number = Some(serial_number()?);
    // It signs leaves only, no further authorities.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params.self_signed(key).map_err(CaError::crypto)?.pem())
}

/// 127 random bits: positive, and not to be guessed (RFC 5280 4.1.2.2).
fn serial_number() -> Result<SerialNumber, CaError> {
    let mut bytes = [0; 16];
    OsRng.try_fill_bytes(&mut bytes).map_err(CaError::crypto)?;
    bytes[0] &= 0x7f;
    Ok(SerialNumber::from_slice(&bytes))
}

fn set_validity(params: &mut CertificateParams, not_before: SystemTime, not_after: SystemTime) {
    let since_epoch = |at: SystemTime| Duration::from_secs(at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs());
    params.not_before = rcgen::date_time_ymd(1970, 1, 1) + since_epoch(not_before);
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + since_epoch(not_after);
}

/// What went wrong with keys, certificates or tokens.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaError {
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A key file holds something else.
    #[error("{} is not a P-256 private key in PKCS #8 PEM: {reason}", path.display())]
    Key {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The root certificate cannot be used.
    #[error("the root certificate cannot be used: {0}")]
    Root(String),
    /// The certificate signing request cannot be used.
    #[error("the certificate signing request cannot be used: {0}")]
    Csr(String),
    /// The lifetime asked for is too long.
    #[error("a lifetime of {} s is over the longest allowed, {} s", .0.as_secs(), Ca::MAX_TTL.as_secs())]
    Ttl(Duration),
    /// Not a namespace or service account.
    #[error("{0:?} is not a {1}: lower-case letters, digits, '-' and '.', at most 253, as in Kubernetes")]
    Name(String, &'static str),
    /// A token proves nothing.
    #[error("the token is refused: {0}")]
    Token(String),
    /// A key could not be made or used.
    #[error("cryptography failed: {0}")]
    Crypto(String),
}

impl CaError {
    fn crypto(error: impl fmt::Display) -> Self {
        Self::Crypto(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use x509_parser::extensions::GeneralName;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn csr(names: &[&str]) -> String {
        let mut params = CertificateParams::default();
        params.subject_alt_names =
            names.iter().map(|name| SanType::URI((*name).to_owned().try_into().unwrap())).collect();
        params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap()
    }

    fn account() -> ServiceAccount {
        ServiceAccount::new("default", "bookinfo-reviews").unwrap()
    }

    /// CT4, CT5: the leaf carries the proven identity and nothing the CSR asked for; the chain ends in the root.
    #[test]
    fn leaf_carries_the_proven_identity_only() {
        let ca = Ca::in_memory("cluster.local").unwrap();
        let now = SystemTime::now();
        let asked = csr(&["spiffe://cluster.local/ns/istio-system/sa/admin", "https://example.com"]);
        let chain = ca.sign_csr(&asked, &account(), None, now).unwrap();
        assert_eq!(chain.len(), 2);
        assert_eq!(chain[1], ca.root_pem());
        let leaf = CertificateDer::from_pem_slice(chain[0].as_bytes()).unwrap();
        let (_, leaf) = x509_parser::parse_x509_certificate(&leaf).unwrap();
        let names = &leaf.subject_alternative_name().unwrap().unwrap().value.general_names;
        assert_eq!(names, &[GeneralName::URI("spiffe://cluster.local/ns/default/sa/bookinfo-reviews")]);
        assert!(!leaf.is_ca());
        let usage = leaf.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.server_auth && usage.client_auth && !usage.any);
        let validity = leaf.validity();
        let lifetime = validity.not_after.timestamp() - validity.not_before.timestamp();
        assert_eq!(lifetime, i64::try_from((DAY + CLOCK_SKEW).as_secs()).unwrap());
        let root = CertificateDer::from_pem_slice(chain[1].as_bytes()).unwrap();
        let (_, root) = x509_parser::parse_x509_certificate(&root).unwrap();
        assert!(root.is_ca() && leaf.issuer() == root.subject());
        leaf.verify_signature(Some(root.public_key())).unwrap();
    }

    /// CT4: a CSR must be signed by the key it names, and lifetimes have a limit.
    #[test]
    fn bad_requests_are_refused() {
        let ca = Ca::in_memory("cluster.local").unwrap();
        let sign = |csr: &str, ttl| ca.sign_csr(csr, &account(), ttl, SystemTime::now());
        assert!(sign(&csr(&[]), Some(Ca::MAX_TTL)).is_ok());
        let error = sign(&csr(&[]), Some(Ca::MAX_TTL + DAY)).unwrap_err().to_string();
        assert!(error.contains("7776000"), "{error}");
        assert!(sign("", None).is_err());
        assert!(sign(&"x".repeat(MAX_CSR + 1), None).is_err());
        // The last characters of the base64 are the signature's.
        let good = csr(&[]);
        let end = good.find("-----END").unwrap() - 8;
        let mut forged = good.clone();
        forged.replace_range(end..=end, if &good[end..=end] == "A" { "B" } else { "A" });
        assert!(matches!(sign(&forged, None), Err(CaError::Csr(_))));
    }

    /// CT5, CT6: a root kept on disk is the same after a restart and readable by its owner alone.
    #[test]
    fn root_survives_a_restart_in_a_private_file() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("state");
        let first = Ca::open(&dir, "cluster.local").unwrap();
        let token = first.tokens().issue(&account(), DAY, SystemTime::now()).unwrap();
        let second = Ca::open(&dir, "cluster.local").unwrap();
        assert_eq!(first.root_pem(), second.root_pem());
        assert_eq!(second.tokens().verify(&token).unwrap(), account());
        #[cfg(unix)]
        for name in ["ca-key.pem", "token-key.pem"] {
            use std::os::unix::fs::PermissionsExt;
            let mode = std::fs::metadata(dir.join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        assert!(!format!("{second:?}").contains("PRIVATE"));

        std::fs::write(dir.join("ca-key.pem"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
        let error = Ca::open(&dir, "cluster.local").unwrap_err().to_string();
        assert!(error.contains("another certificate"), "{error}");
        std::fs::write(dir.join("ca-key.pem"), "nonsense").unwrap();
        assert!(matches!(Ca::open(&dir, "cluster.local"), Err(CaError::Key { .. })));
    }
}
