//! Driver: gets this process's certificate by a signing request to the mesh's CA and renews it; publishes the identity.
//!
//! The key is made here and never leaves memory. A certificate is renewed at half its life; while the CA is unreachable
//! the old one stays until it expires, after which there is none: a server without identity refuses, it does not fall back.
//!
//! Sources: `istio.v1.auth.IstioCertificateService`; ztunnel's renewal and back-off.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rand::{RngCore, SeedableRng, rngs::SmallRng};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PublicKeyData, SanType};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use tokio::sync::watch;
use x509_parser::{
    certificate::X509Certificate,
    extensions::GeneralName,
    prelude::{ASN1Time, FromDer},
};

use crate::{
    ads::back_off::{BackOff, spread},
    bootstrap::{Bootstrap, Ca},
    node::Node,
    proto::{IstioCertificateRequest, IstioCertificateServiceClient},
    task::Task,
    transport,
};

mod files;

/// A CA that takes longer is as good as unreachable.
const TIMEOUT: Duration = Duration::from_secs(20);

/// However short-lived a certificate is, or wrong a clock: at most one signing request a second.
const FLOOR: Duration = Duration::from_secs(1);

/// Wall time is looked at this often, since it may jump and timers do not follow it.
const LOOK: Duration = Duration::from_secs(30);

/// What this process proves itself with, and what it believes others by.
pub struct Identity {
    /// The certificate, followed by intermediates; without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The private key of the first certificate. It exists in memory only.
    pub key: PrivateKeyDer<'static>,
    /// The roots peers are verified against.
    pub roots: Vec<CertificateDer<'static>>,
    /// The URI name in the certificate: `spiffe://cluster.local/ns/default/sa/bookinfo-reviews`.
    pub spiffe_id: String,
    /// Valid from.
    pub not_before: SystemTime,
    /// Valid until.
    pub not_after: SystemTime,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("spiffe_id", &self.spiffe_id)
            .field("not_before", &self.not_before)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// When to ask for the next one: at half its life, a hundredth of it earlier or later, so that processes that began together do
    /// not all ask at once. Source: Istio `SECRET_GRACE_PERIOD_RATIO` 0.5 and its jitter 0.01.
    pub fn renew_at(&self, rng: &mut impl RngCore) -> SystemTime {
        let life = self.not_after.duration_since(self.not_before).unwrap_or_default();
        self.not_before + spread(life.as_secs_f64() / 2.0, 0.02, rng)
    }
}

/// Keeps an [`Identity`] fresh for as long as it lives.
#[derive(Debug)]
pub struct CertSource {
    identity: watch::Receiver<Option<Arc<Identity>>>,
    error: watch::Receiver<Option<String>>,
    _task: Option<Task>,
}

impl CertSource {
    /// Starts asking the CA that `bootstrap` names. Must be called within a tokio runtime.
    ///
    /// Where it names none, the certificate provider `default` is taken, if that has files (gRFC A29). Without a CA, TLS or
    /// token there is no identity: the channel stays at `None` for ever.
    pub fn start(bootstrap: Arc<Bootstrap>) -> Self {
        let (publish, identity) = watch::channel(None);
        let (tell, error) = watch::channel(None);
        let task = match (bootstrap.ca.clone(), bootstrap.identity_files()) {
            (Some(ca), _) => Some(Task::spawn(keep(ca, bootstrap.node.clone(), publish, tell))),
            (None, Some(files)) => Some(Task::spawn(files::keep(files.clone(), publish, tell))),
            (None, None) => None,
        };
        Self { identity, error, _task: task }
    }

    /// The identity in force; `None` before the first and after an expiry that could not be helped.
    pub fn identity(&self) -> watch::Receiver<Option<Arc<Identity>>> {
        self.identity.clone()
    }

    /// Why the last attempt failed, if it did.
    pub fn error(&self) -> Option<String> {
        self.error.borrow().clone()
    }
}

async fn keep(ca: Ca, node: Node, publish: watch::Sender<Option<Arc<Identity>>>, tell: watch::Sender<Option<String>>) {
    let back_off = BackOff::SIGNING.towards(&ca.server.address);
    let mut rng = SmallRng::from_os_rng();
    let mut failures = 0;
    loop {
        let signed = match tokio::time::timeout(TIMEOUT, sign(&ca, &node)).await {
            Ok(signed) => signed,
            Err(_) => Err(format!("{}: no answer within {} s", ca.server.address, TIMEOUT.as_secs())),
        };
        let next = match signed {
            Ok(identity) => {
                failures = 0;
                let next = identity.renew_at(&mut rng);
                publish.send_replace(Some(Arc::new(identity)));
                tell.send_replace(None);
                next
            }
            Err(why) => {
                failures += 1;
                tracing::warn!(ca = %ca.server.address, %why, "no certificate");
                tell.send_replace(Some(why));
                SystemTime::now() + back_off.delay(failures, &mut rng)
            }
        };
        wait_until(next, failures > 0, &publish).await;
    }
}

/// Waits for `next`, at least the floor unless backing off, and withdraws the identity should it expire meanwhile.
async fn wait_until(next: SystemTime, backs_off: bool, publish: &watch::Sender<Option<Arc<Identity>>>) {
    if !backs_off {
        tokio::time::sleep(FLOOR).await;
    }
    loop {
        let now = SystemTime::now();
        let expiry = publish.borrow().as_ref().map(|identity| identity.not_after);
        if expiry.is_some_and(|expiry| expiry <= now) {
            tracing::error!("the certificate has expired and could not be renewed");
            publish.send_replace(None);
        }
        let Ok(left) = next.duration_since(now) else { return };
        if left.is_zero() {
            return;
        }
        let to_expiry = expiry.and_then(|expiry| expiry.duration_since(now).ok()).unwrap_or(LOOK);
        tokio::time::sleep(left.min(to_expiry).clamp(Duration::from_millis(1), LOOK)).await;
    }
}

async fn sign(ca: &Ca, node: &Node) -> Result<Identity, String> {
    let identity = node.identity();
    let (key, csr) = signing_request(&identity)?;
    let mut request = tonic::Request::new(IstioCertificateRequest {
        csr,
        validity_duration: ca.ttl.as_secs().try_into().unwrap_or(i64::MAX),
        metadata: None,
    });
    *request.metadata_mut() = transport::headers(&ca.server, node).await?;
    let mut client = IstioCertificateServiceClient::new(transport::connect(&ca.server).await?);
    let answer = client.create_certificate(request).await.map_err(|status| transport::describe(&status))?;
    read_chain(&answer.into_inner().cert_chain, key, &identity, SystemTime::now())
}

/// A new P-256 key and a request that names the identity. Istio's CA goes by the token and ignores the name; others may not.
fn signing_request(identity: &str) -> Result<(KeyPair, String), String> {
    let failed = |error: rcgen::Error| format!("no signing request could be made for {identity}: {error}");
    let key = KeyPair::generate().map_err(failed)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.try_into().map_err(failed)?)];
    let csr = params.serialize_request(&key).and_then(|csr| csr.pem()).map_err(failed)?;
    Ok((key, csr))
}

/// Reads the CA's answer: leaf first, roots last. It must be for our key, our identity and the present.
fn read_chain(pems: &[String], key: KeyPair, identity: &str, now: SystemTime) -> Result<Identity, String> {
    let mut chain: Vec<CertificateDer<'static>> = Vec::new();
    for pem in pems {
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            chain.push(certificate.map_err(|error| format!("the CA's answer is not PEM: {error:?}"))?);
        }
    }
    let mut roots = Vec::new();
    while let Some(last) = chain.pop() {
        // Some CAs give a root that is not self-signed, but the last is one in any case.
        if chain.is_empty() || !(roots.is_empty() || is_self_signed(&last)) {
            chain.push(last);
            break;
        }
        roots.insert(0, last);
    }
    let (Some(leaf), false) = (chain.first(), roots.is_empty()) else {
        return Err("the CA's answer must hold a certificate and a root".to_owned());
    };
    let leaf = parse(leaf)?;
    if leaf.public_key().raw != key.subject_public_key_info() {
        return Err("the CA's certificate is for another key".to_owned());
    }
    let names = uri_names(&leaf);
    if names != [identity] {
        return Err(format!("the CA's certificate is for {names:?}, not for {identity:?}"));
    }
    let not_before = system_time(leaf.validity().not_before);
    let not_after = system_time(leaf.validity().not_after);
    if not_after <= now {
        return Err("the CA's certificate has already expired".to_owned());
    }
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Ok(Identity { chain, key, roots, spiffe_id: identity.to_owned(), not_before, not_after })
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, String> {
    let parsed = X509Certificate::from_der(certificate);
    parsed.map(|(_, certificate)| certificate).map_err(|error| format!("the CA's certificate cannot be read: {error}"))
}

fn is_self_signed(certificate: &CertificateDer<'_>) -> bool {
    parse(certificate).is_ok_and(|certificate| certificate.subject().as_raw() == certificate.issuer().as_raw())
}

fn uri_names<'a>(certificate: &'a X509Certificate<'a>) -> Vec<&'a str> {
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let uri = |name: &GeneralName<'a>| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    };
    names.value.general_names.iter().filter_map(uri).collect()
}

fn system_time(time: ASN1Time) -> SystemTime {
    // Before 1970 is long expired in any case.
    SystemTime::UNIX_EPOCH + Duration::from_secs(time.timestamp().try_into().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use rcgen::{BasicConstraints, CertificateSigningRequestParams, IsCa, Issuer};

    use super::*;

    const ID: &str = "spiffe://cluster.local/ns/default/sa/bookinfo-reviews";

    struct TestCa {
        root: String,
        issuer: Issuer<'static, KeyPair>,
    }

    impl TestCa {
        fn new() -> Self {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let root = params.self_signed(&key).unwrap().pem();
            Self { root, issuer: Issuer::new(params, key) }
        }

        fn sign(&self, csr: &str, change: impl FnOnce(&mut CertificateParams)) -> Vec<String> {
            let mut request = CertificateSigningRequestParams::from_pem(csr).unwrap();
            let now = SystemTime::now();
            request.params.not_before = now.into();
            request.params.not_after = (now + Duration::from_secs(3_600)).into();
            change(&mut request.params);
            vec![request.signed_by(&self.issuer).unwrap().pem(), self.root.clone()]
        }
    }

    /// CT4: the request carries a P-256 key and the SPIFFE id, the answer is taken apart into chain and root.
    #[test]
    fn signed_request_becomes_an_identity() {
        let ca = TestCa::new();
        let (key, csr) = signing_request(ID).unwrap();
        let answer = ca.sign(&csr, |_| {});
        let identity = read_chain(&answer, key, ID, SystemTime::now()).unwrap();
        assert_eq!((identity.chain.len(), identity.roots.len(), identity.spiffe_id.as_str()), (1, 1, ID));
        let mut rng = SmallRng::seed_from_u64(1);
        let after: Vec<_> = (0..1_000)
            .map(|_| identity.renew_at(&mut rng).duration_since(identity.not_before).unwrap().as_secs_f64())
            .collect();
        assert!(after.iter().all(|seconds| (1_764.0..=1_836.0).contains(seconds)), "half an hour, spread by 36 s");
        assert!(after.iter().any(|seconds| *seconds < 1_780.0) && after.iter().any(|seconds| *seconds > 1_820.0));
        assert!(!format!("{identity:?}").contains("key"), "{identity:?}");
    }

    /// CT4: a certificate for another identity, another key or another time is refused.
    #[test]
    fn wrong_certificates_are_refused() {
        let ca = TestCa::new();
        let uri = |text: &str| SanType::URI(text.try_into().unwrap());
        let check = |expected: &str, change: &dyn Fn(&mut CertificateParams)| {
            let (key, csr) = signing_request(ID).unwrap();
            let answer = ca.sign(&csr, change);
            let error = read_chain(&answer, key, ID, SystemTime::now()).unwrap_err();
            assert!(error.contains(expected), "{error} should say {expected}");
        };
        check("not for", &|params| params.subject_alt_names = vec![uri("spiffe://cluster.local/ns/default/sa/other")]);
        check("not for", &|params| params.subject_alt_names = Vec::new());
        check("not for", &|params| params.subject_alt_names.push(uri("spiffe://cluster.local/ns/a/sa/b")));
        let past = SystemTime::now() - Duration::from_secs(60);
        check("expired", &move |params| params.not_after = past.into());
        let (_, csr) = signing_request(ID).unwrap();
        let (other, _) = signing_request(ID).unwrap();
        let answer = ca.sign(&csr, |_| {});
        assert!(read_chain(&answer, other, ID, SystemTime::now()).unwrap_err().contains("another key"));
        for answer in [vec![], vec![answer[0].clone()], vec!["no PEM".to_owned()]] {
            let (key, _) = signing_request(ID).unwrap();
            assert!(read_chain(&answer, key, ID, SystemTime::now()).unwrap_err().contains("must hold"), "{answer:?}");
        }
    }
}
