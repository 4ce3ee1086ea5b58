//! The identity by a signing request to the mesh's CA. The key is made here and never leaves memory.
//!
//! Sources: `istio.v1.auth.IstioCertificateService`; ztunnel's renewal and back-off.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use rand::{SeedableRng, rngs::SmallRng};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PublicKeyData, SanType};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use tokio::{sync::watch, time::Instant};
use zeroize::{Zeroize, Zeroizing};

use super::{
    Identity, LOOK,
    outlet::Outlet,
    x509::{self, is_self_signed, issuer_of, parse, uri_names},
};
use crate::{
    ads::back_off::{BackOff, spread},
    bootstrap::Ca,
    node::Node,
    proto::{IstioCertificateRequest, IstioCertificateServiceClient},
    translate::Told,
    transport,
};

/// A CA that takes longer is as good as unreachable.
const TIMEOUT: Duration = Duration::from_secs(20);

/// However short-lived a certificate is, or wrong a clock: at most two signing requests a second.
const FLOOR: Duration = Duration::from_millis(500);

/// When another authority begins to sign, everybody asks it for a certificate within this time, and not all at once.
const HURRY: Duration = Duration::from_millis(500);

pub(super) type Tellings = watch::Receiver<Option<Arc<Told>>>;

/// Asks for certificates, for as long as it runs.
pub(super) async fn keep(ca: Ca, node: Node, mut told: Option<Tellings>, outlet: Outlet) {
    let back_off = BackOff::SIGNING.towards(&ca.server.address);
    let mut rng = SmallRng::from_os_rng();
    loop {
        let signed = match tokio::time::timeout(TIMEOUT, sign(&ca, &node)).await {
            Ok(signed) => signed,
            Err(_) => Err(format!("{}: no answer within {} s", ca.server.address, TIMEOUT.as_secs())),
        };
        let began = Instant::now();
        let mut issuer = None;
        let mut next = match signed {
            Ok(identity) => {
                let next = identity.renew_at(&mut rng);
                issuer.clone_from(&identity.issuer);
                outlet.publish(identity);
                next
            }
            Err(why) => {
                let failures = outlet.complain(why);
                let current = outlet.identity.borrow().as_ref().and_then(|identity| identity.issuer.clone());
                issuer = current.or(issuer);
                SystemTime::now() + back_off.delay(failures, &mut rng)
            }
        };
        let backs_off = outlet.standing.borrow().failures > 0;
        let mut hurried = false;
        loop {
            outlet.standing.send_modify(|standing| standing.renews = Some(next));
            // A certificate by a key that signs no more is renewed soon, before that key is trusted no more.
            let signing = told.as_mut().and_then(|told| told.borrow_and_update().as_ref()?.issuer.clone());
            if !hurried && !backs_off && signing.is_some() && issuer.is_some() && signing != issuer {
                hurried = true;
                next = next.min(SystemTime::now() + spread(HURRY.as_secs_f64() / 2.0, 1.0, &mut rng));
                continue;
            }
            let left = next.duration_since(SystemTime::now()).unwrap_or_default();
            let floor = if backs_off { Duration::ZERO } else { FLOOR.saturating_sub(began.elapsed()) };
            let left = left.max(floor);
            if left.is_zero() {
                break;
            }
            tokio::select! {
                () = tokio::time::sleep(left.clamp(Duration::from_millis(1), LOOK)) => {}
                () = changed(&mut told) => hurried = false,
            }
        }
    }
}

/// Waits for news; for ever where none can come.
pub(super) async fn changed(told: &mut Option<Tellings>) {
    if let Some(news) = told
        && news.changed().await.is_err()
    {
        *told = None;
    }
    if told.is_none() {
        std::future::pending::<()>().await;
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
    read_chain(&answer.into_inner().cert_chain, &key, &identity, SystemTime::now())
}

/// A key that is wiped when it is dropped.
struct Secret(KeyPair);

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// A new P-256 key and a request that names the identity. Istio's CA goes by the token and ignores the name; others may not.
fn signing_request(identity: &str) -> Result<(Secret, String), String> {
    let failed = |error: rcgen::Error| format!("no signing request could be made for {identity}: {error}");
    let key = Secret(KeyPair::generate().map_err(failed)?);
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.try_into().map_err(failed)?)];
    let csr = params.serialize_request(&key.0).and_then(|csr| csr.pem()).map_err(failed)?;
    Ok((key, csr))
}

/// Reads the CA's answer: leaf first, roots last. It must be for our key, our identity and the present.
fn read_chain(pems: &[String], key: &Secret, identity: &str, now: SystemTime) -> Result<Identity, String> {
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
    if leaf.public_key().raw != key.0.subject_public_key_info() {
        return Err("the CA's certificate is for another key".to_owned());
    }
    let names = uri_names(&leaf);
    if names != [identity] {
        return Err(format!("the CA's certificate is for {names:?}, not for {identity:?}"));
    }
    let (not_before, not_after) = x509::validity(&leaf);
    if not_after <= now {
        return Err("the CA's certificate has already expired".to_owned());
    }
    let issuer = issuer_of(&leaf);
    let key = Zeroizing::new(PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.0.serialize_der())));
    Ok(Identity { chain, key, roots, spiffe_id: identity.to_owned(), not_before, not_after, issuer })
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
        let identity = read_chain(&answer, &key, ID, SystemTime::now()).unwrap();
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
            let error = read_chain(&answer, &key, ID, SystemTime::now()).unwrap_err();
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
        assert!(read_chain(&answer, &other, ID, SystemTime::now()).unwrap_err().contains("another key"));
        for answer in [vec![], vec![answer[0].clone()], vec!["no PEM".to_owned()]] {
            let (key, _) = signing_request(ID).unwrap();
            assert!(read_chain(&answer, &key, ID, SystemTime::now()).unwrap_err().contains("must hold"), "{answer:?}");
        }
    }
}
