//! Identities of the simulated mesh: one authority for all stories, and TLS contexts that go by it. Keys are made by the machine's own
//! chance: nothing of a history depends on them.

use std::sync::{Arc, LazyLock};

use mesh_tower::{
    config::{StringMatch, TlsMode, UpstreamTls},
    tls::Identity,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
}

static AUTHORITY: LazyLock<Authority> = LazyLock::new(|| {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.distinguished_name.push(DnType::CommonName, "the simulation");
    let root = params.self_signed(&key).unwrap().der().clone();
    Authority { issuer: Issuer::new(params, key), root }
});

fn id(account: &str) -> String {
    format!("spiffe://cluster.local/ns/default/sa/{account}")
}

/// A certificate and a key for a service account.
pub(crate) fn identity(account: &str) -> Identity {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(id(account).try_into().unwrap())];
    let leaf = params.signed_by(&key, &AUTHORITY.issuer).unwrap().der().clone();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    Identity::from_der(vec![leaf], key, vec![AUTHORITY.root.clone()]).unwrap()
}

/// Mutual TLS with whoever serves as this account.
pub(crate) fn mutual_tls(account: &str) -> TlsMode {
    let exact = StringMatch::Exact { value: id(account), ignore_case: false };
    TlsMode::Always(Arc::new(UpstreamTls {
        workload_identity: true,
        subject_alt_names: vec![exact],
        ..UpstreamTls::default()
    }))
}
