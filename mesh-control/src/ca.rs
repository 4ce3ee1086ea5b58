//! The certificate authority: SPIFFE leaves for CSRs, the tokens by which workloads prove who they are, and what everybody is to
//! trust: roots, what was revoked, who is denied.
//!
//! A CSR says nothing but the public key: names, lifetimes and usages in it are ignored, and the identity in the certificate
//! is the one the caller proved with its token. Chains go out leaf first, roots last. Without a state directory the keys live
//! in this process only and are never written (CT6); with one they are kept there, readable by their owner alone.
//!
//! `ca/authority.rs` is one signing key with what stands above it, `ca/change.rs` how another takes its place, `ca/revoked.rs` who is
//! let in no more. Everything changes under one lock, which is not held while signing.
//!
//! Source: Istio `security/pkg/pki/ca`, `istio.v1.auth.IstioCertificateService`; SPIFFE X.509-SVID.

use std::{
    fmt,
    net::IpAddr,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use mesh_core::trust::Trust;
use mesh_xds::{certs::pem, translate::Told};
use rand::{TryRngCore, rngs::OsRng};
use rcgen::{Certificate, CertificateParams, CertificateSigningRequestParams, PublicKeyData, SanType, SerialNumber};
use rustls::crypto::{CryptoProvider, ring};
use tokio::sync::watch;
use zeroize::Zeroizing;

mod account;
mod authority;
mod change;
mod error;
mod files;
mod key;
mod revoked;
mod server;
mod service;
mod status;
mod token;

pub use account::ServiceAccount;
pub use change::{Role, RotateRequest, Step};
pub use error::CaError;
pub use files::save_identity;
pub use revoked::{Issued, RevokeRequest};
pub use service::CertificateService;
pub use status::{AuthorityStatus, CaStatus, TrustSettings};
pub use token::Tokens;

pub(crate) use files::{write_public, write_secret};

use authority::{Authority, CRL_LIFETIME, Parts};
use change::Authorities;
use key::SecretKey;
use revoked::{Ledger, Revoked};
use server::ServerCertificate;

/// The largest CSR read, in bytes; a P-256 request is under 1 KiB, RSA 8192 under 8 KiB.
const MAX_CSR: usize = 64 * 1024;

/// Certificates are valid a little earlier than issued, for clocks that run behind. Istio: 2 minutes.
const CLOCK_SKEW: Duration = Duration::from_secs(120);

/// Signs, revokes, and says what is to be trusted.
pub struct Ca {
    trust_domain: String,
    tokens: Tokens,
    inner: Mutex<Inner>,
    told: watch::Sender<Arc<Told>>,
    server: Arc<ServerCertificate>,
}

#[derive(Debug)]
struct Inner {
    authorities: Authorities,
    revoked: Revoked,
    ledger: Ledger,
    /// When the lists of revoked certificates are to be signed anew.
    crl_due: SystemTime,
    settings: TrustSettings,
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
        let (trust_domain, now) = (domain(trust_domain), SystemTime::now());
        let authority = Authority::new(Parts::make(&trust_domain, now)?, None, true, &trust_domain, now)?;
        let tokens = Tokens::new(&SecretKey::generate()?);
        Self::assemble(Authorities::alone(authority), None, trust_domain, tokens, now)
    }

    /// The authority kept in `dir`, made there when there is none. Its files have Istio's names (`ca-cert.pem`, `ca-key.pem`,
    /// `root-cert.pem`, `cert-chain.pem`), so that files of an authority of one's own can be put there; beside them are
    /// `token-key.pem`, `revocations.json` and `issued.jsonl`.
    ///
    /// # Errors
    ///
    /// When a file cannot be read or written, or holds something else than its name says, and when what the authority signs
    /// would not be believed by those who trust its roots.
    pub fn open(dir: &Path, trust_domain: &str) -> Result<Self, CaError> {
        Self::open_with(dir, None, trust_domain)
    }

    /// The same with an authority whose files are elsewhere, such as in a mounted secret. Once a change of the authority has been
    /// made, what it made counts.
    ///
    /// # Errors
    ///
    /// As [`Ca::open`].
    pub fn open_with(dir: &Path, given: Option<&Path>, trust_domain: &str) -> Result<Self, CaError> {
        let (trust_domain, now) = (domain(trust_domain), SystemTime::now());
        let authorities = Authorities::open(dir, given, &trust_domain, now)?;
        let tokens = Tokens::new(&files::key(&dir.join("token-key.pem"))?);
        Self::assemble(authorities, Some(dir), trust_domain, tokens, now)
    }

    /// The authority whose files are in `given`; whatever else there is stays in this process only.
    ///
    /// # Errors
    ///
    /// As [`Ca::open`].
    pub fn given(given: &Path, trust_domain: &str) -> Result<Self, CaError> {
        let (trust_domain, now) = (domain(trust_domain), SystemTime::now());
        let missing = || CaError::Root(format!("{} has no ca-cert.pem", given.display()));
        let parts = Parts::read(given)?.ok_or_else(missing)?;
        let authority = Authority::new(parts, Some(given.to_owned()), false, &trust_domain, now)?;
        let tokens = Tokens::new(&SecretKey::generate()?);
        Self::assemble(Authorities::alone(authority), None, trust_domain, tokens, now)
    }

    fn assemble(
        authorities: Authorities,
        dir: Option<&Path>,
        trust_domain: String,
        tokens: Tokens,
        now: SystemTime,
    ) -> Result<Self, CaError> {
        let file = |name: &str| dir.map(|dir| dir.join(name));
        let mut inner = Inner {
            authorities,
            revoked: Revoked::open(file("revocations.json"))?,
            ledger: Ledger::open(file("issued.jsonl"), seconds(now))?,
            crl_due: now,
            settings: TrustSettings::default(),
        };
        let told = watch::Sender::new(Arc::new(inner.tell(&trust_domain, now)?));
        Ok(Self { trust_domain, tokens, inner: Mutex::new(inner), told, server: Arc::default() })
    }

    /// The roots in PEM: what every member of the mesh trusts. Several while the authority is being changed.
    pub fn root_pem(&self) -> String {
        self.lock().roots_pem()
    }

    /// What stands after `spiffe://` in every identity.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// What issues and verifies tokens.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// What members are told to trust, as it changes.
    pub fn told(&self) -> watch::Receiver<Arc<Told>> {
        self.told.subscribe()
    }

    /// Signs the public key of a CSR (PEM) for `account`; the chain comes in PEM, leaf first, roots last, in one text if they are
    /// several (CT4).
    ///
    /// `ttl` of `None` is [`Ca::DEFAULT_TTL`]. No leaf outlives those above it.
    ///
    /// # Errors
    ///
    /// When the CSR cannot be read or is not signed by its own key, the lifetime is over [`Ca::MAX_TTL`], or the account is denied.
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
        let request =
            CertificateSigningRequestParams::from_pem(csr).map_err(|error| CaError::Csr(error.to_string()))?;
        let (leaf, authority) = self.sign(&request.public_key, account, ttl, now)?;
        let behind = authority.behind().iter().map(|certificate| pem("CERTIFICATE", certificate));
        Ok(std::iter::once(leaf.pem()).chain(behind).chain([self.root_pem()]).collect())
    }

    /// A new key with a certificate for `account`: the chain without roots, leaf first, and the key, in PEM. `ttl` is as that of
    /// [`Ca::sign_csr`].
    ///
    /// For members that cannot make a signing request, such as an Envoy: they get both over the stream on which they proved
    /// who they are.
    ///
    /// # Errors
    ///
    /// As [`Ca::sign_csr`], and when the system gives no randomness.
    pub fn issue(
        &self,
        account: &ServiceAccount,
        ttl: Option<Duration>,
        now: SystemTime,
    ) -> Result<(String, Zeroizing<String>), CaError> {
        let key = SecretKey::generate()?;
        let (leaf, authority) = self.sign(&key, account, ttl, now)?;
        let behind = authority.behind().iter().map(|certificate| pem("CERTIFICATE", certificate));
        Ok((std::iter::once(leaf.pem()).chain(behind).collect(), key.pem()))
    }

    fn sign(
        &self,
        key: &impl PublicKeyData,
        account: &ServiceAccount,
        ttl: Option<Duration>,
        now: SystemTime,
    ) -> Result<(Certificate, Arc<Authority>), CaError> {
        let ttl = ttl.unwrap_or(Self::DEFAULT_TTL);
        if ttl > Self::MAX_TTL {
            return Err(CaError::Ttl(ttl));
        }
        let id = account.spiffe_id(&self.trust_domain);
        let authority = self.lock().authorities.active.clone();
        let names = vec![SanType::URI(id.clone().try_into().map_err(CaError::crypto)?)];
        let (leaf, serial) = authority.sign(key, names, ttl, now)?;
        let mut inner = self.lock();
        // Asked after signing, under the lock that notes it down: no certificate slips by a revocation made meanwhile.
        if inner.revoked.denies(&id) {
            return Err(CaError::Denied(id));
        }
        let (_, until) = authority.validity();
        let issued = Issued {
            serial,
            id,
            authority: authority.id(),
            not_before: seconds(now - CLOCK_SKEW),
            not_after: seconds((now + ttl).min(until)),
        };
        inner.ledger.add(issued, seconds(now));
        Ok((leaf, authority))
    }

    /// Is this SPIFFE id let in no more?
    pub fn denies(&self, id: &str) -> bool {
        self.lock().revoked.denies(id)
    }

    /// The good certificates of an id, or of all.
    pub fn issued(&self, id: Option<&str>, now: SystemTime) -> Vec<Issued> {
        self.lock().ledger.good(id, seconds(now))
    }

    /// Revokes certificates and ids, or lets them in again. Members are told at once.
    ///
    /// # Errors
    ///
    /// When one is no serial number or SPIFFE id, or it could not be written down: nothing is revoked then.
    pub fn revoke(&self, request: &RevokeRequest, now: SystemTime) -> Result<CaStatus, CaError> {
        let mut inner = self.lock();
        let before = inner.revoked.clone();
        let Inner { revoked, ledger, .. } = &mut *inner;
        if revoked.change(request, ledger, seconds(now))? {
            self.tell(&mut inner, now).inspect_err(|_| inner.revoked = before)?;
        }
        drop(inner);
        Ok(self.status(now))
    }

    /// Takes a step of changing the authority. Whether everybody is ready for it is the caller's to know.
    ///
    /// # Errors
    ///
    /// When it is not the next, or the new authority cannot be made or used.
    pub fn rotate(&self, step: Option<Step>, from: Option<&Path>, now: SystemTime) -> Result<CaStatus, CaError> {
        let mut inner = self.lock();
        let step = step.unwrap_or_else(|| inner.authorities.next());
        inner.authorities.take(step, from, &self.trust_domain, now)?;
        self.tell(&mut inner, now)?;
        drop(inner);
        let active = self.lock().authorities.active.clone();
        self.server.renew(&active, now)?;
        Ok(self.status(now))
    }

    /// The step of changing the authority that comes next.
    pub fn next_step(&self) -> Step {
        self.lock().authorities.next()
    }

    /// Puts other settings in force.
    ///
    /// # Errors
    ///
    /// When a federated domain's roots are not PEM, or it is our own.
    pub fn set_trust(&self, settings: TrustSettings, now: SystemTime) -> Result<(), CaError> {
        let mut inner = self.lock();
        let before = std::mem::replace(&mut inner.settings, settings);
        self.tell(&mut inner, now).inspect_err(|_| inner.settings = before)
    }

    /// Signs the lists of revoked certificates anew when it is time; to be called now and then.
    pub fn upkeep(&self, now: SystemTime) {
        let mut inner = self.lock();
        if inner.crl_due <= now
            && !inner.revoked.is_empty()
            && let Err(error) = self.tell(&mut inner, now)
        {
            tracing::error!(%error, "the lists of revoked certificates could not be signed");
        }
    }

    /// What the authority is and does.
    pub fn status(&self, now: SystemTime) -> CaStatus {
        let inner = self.lock();
        let good = inner.ledger.good(None, seconds(now));
        let authorities = inner.authorities.all().map(|(role, authority)| {
            let (id, (not_before, not_after)) = (authority.id(), authority.validity());
            AuthorityStatus {
                issued: good.iter().filter(|issued| issued.authority == id).count(),
                id,
                role,
                subject: authority.subject().to_owned(),
                serial: authority.serial().to_owned(),
                not_before: seconds(not_before),
                not_after: seconds(not_after),
                intermediates: authority.behind().len(),
            }
        });
        CaStatus {
            trust_domain: self.trust_domain.clone(),
            authorities: authorities.collect(),
            next: Some(inner.authorities.next()),
            denied_ids: inner.revoked.ids().clone(),
            denied_serials: inner.revoked.serials(),
            crl: self.told.borrow().trust.crls.iter().map(|list| pem("X509 CRL", list)).collect(),
            issued: good.len(),
        }
    }

    /// TLS for the control plane's own port, speaking HTTP/2, with a certificate for the names istiod has, the loopback and
    /// `address`.
    ///
    /// It is made anew with each authority; its key never leaves this process.
    ///
    /// # Errors
    ///
    /// When the system gives no randomness.
    pub fn server_tls(&self, address: IpAddr, now: SystemTime) -> Result<Arc<rustls::ServerConfig>, CaError> {
        let active = self.lock().authorities.active.clone();
        self.server.begin(address, &active, now)?;
        let mut config = rustls::ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(CaError::crypto)?
            .with_no_client_auth()
            .with_cert_resolver(self.server.clone());
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }

    fn tell(&self, inner: &mut Inner, now: SystemTime) -> Result<(), CaError> {
        let told = inner.tell(&self.trust_domain, now)?;
        self.told.send_replace(Arc::new(told));
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// What members are to be told from now on.
    fn tell(&mut self, trust_domain: &str, now: SystemTime) -> Result<Told, CaError> {
        let mut trust = Trust {
            aliases: self.settings.aliases.iter().map(|alias| domain(alias)).collect(),
            denied_ids: self.revoked.ids().keys().cloned().collect(),
            denied_serials: self.revoked.denied_serials(),
            ..Trust::default()
        };
        for (federated, roots) in &self.settings.federated {
            let roots = Authority::read_roots(roots)?;
            if roots.is_empty() || federated == trust_domain {
                return Err(CaError::Root(format!("{federated} is our own trust domain, or has no roots")));
            }
            trust.bundles.insert(federated.clone(), roots.iter().map(|root| root.as_ref().into()).collect());
        }
        let own = trust.bundles.entry(trust_domain.to_owned()).or_default();
        for (_, authority) in self.authorities.all() {
            for root in authority.roots() {
                let root: Arc<[u8]> = root.as_ref().into();
                if !own.contains(&root) {
                    own.push(root);
                }
            }
        }
        // Without anything revoked there is no list: whoever checks lists would need one of every authority there is.
        let number = self.revoked.next(seconds(now))?;
        if !self.revoked.is_empty() {
            let revoked = self.revoked.all(&self.ledger);
            trust.crls = self.authorities.all().flat_map(|(_, one)| one.crls(&revoked, number, now)).collect();
            trust.only_leaf_crl = !self.authorities.all().all(|(_, one)| one.signs_whole_chain());
            self.crl_due = now + CRL_LIFETIME / 2;
        }
        let issuer = self.authorities.active.key_id().to_vec();
        Ok(Told { trust_domain: trust_domain.to_owned(), trust, issuer: Some(issuer) })
    }

    fn roots_pem(&self) -> String {
        let mut roots: Vec<String> = Vec::new();
        for root in self.authorities.all().flat_map(|(_, authority)| authority.roots()) {
            let text = pem("CERTIFICATE", root);
            if !roots.contains(&text) {
                roots.push(text);
            }
        }
        roots.concat()
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

/// 127 random bits: positive, and not to be guessed (RFC 5280 4.1.2.2).
fn serial_number() -> Result<SerialNumber, CaError> {
    let mut bytes = [0; 16];
    OsRng.try_fill_bytes(&mut bytes).map_err(CaError::crypto)?;
    bytes[0] &= 0x7f;
    Ok(SerialNumber::from_slice(&bytes))
}

fn set_validity(params: &mut CertificateParams, not_before: SystemTime, not_after: SystemTime) {
    params.not_before = date(not_before).into();
    params.not_after = date(not_after).into();
}

/// To the second, as certificates have it.
fn date(at: SystemTime) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds(at))
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Istio writes the `@` of a trust domain as `.`.
fn domain(name: &str) -> String {
    name.replace('@', ".")
}

/// The cryptography used: the process's default where the application installed one, ring otherwise.
fn provider() -> Arc<CryptoProvider> {
    CryptoProvider::get_default().cloned().unwrap_or_else(|| Arc::new(ring::default_provider()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use rcgen::KeyPair;
    use rustls_pki_types::{CertificateDer, pem::PemObject};
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
        assert_eq!(chain.len(), 3, "leaf, intermediate, root");
        assert_eq!(chain[2], ca.root_pem());
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
        let above = [&chain[1], &chain[2]].map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap());
        let (_, issuer) = x509_parser::parse_x509_certificate(&above[0]).unwrap();
        let (_, root) = x509_parser::parse_x509_certificate(&above[1]).unwrap();
        assert!(issuer.is_ca() && leaf.issuer() == issuer.subject());
        assert!(root.is_ca() && issuer.issuer() == root.subject());
        leaf.verify_signature(Some(issuer.public_key())).unwrap();
        issuer.verify_signature(Some(root.public_key())).unwrap();
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
