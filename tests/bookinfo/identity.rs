//! Who workloads let in: callers with a certificate of this mesh, and nobody else.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::time::SystemTime;

use mesh_control::ca::{Ca, ServiceAccount};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::net::TcpStream;

use crate::handshake::{Certificate, call, exchange, showing};
use crate::harness::shared;

/// In the order of the loopback addresses.
const WORKLOADS: [(&str, &str); 6] = [
    ("productpage-v1", "productpage"),
    ("details-v1", "details"),
    ("ratings-v1", "ratings"),
    ("reviews-v1", "reviews"),
    ("reviews-v2", "reviews"),
    ("reviews-v3", "reviews"),
];
/// AN4: a plaintext request gets no answer; mutual TLS is the only way in.
#[tokio::test(flavor = "multi_thread")]
async fn a_plaintext_call_is_refused() {
    let bookinfo = shared().await;
    for (name, _) in WORKLOADS {
        let stream = TcpStream::connect(bookinfo.workload(name)).await.unwrap();
        let answer = exchange(stream).await;
        assert!(!answer.contains("HTTP/"), "{name}: {answer}");
    }
}

/// AN8: the same caller is let in once it shows a certificate of this mesh: that, and nothing else, is what the others lack.
#[tokio::test(flavor = "multi_thread")]
async fn a_caller_of_this_mesh_is_let_in() {
    let bookinfo = shared().await;
    for (name, _) in WORKLOADS {
        let (config, _) = showing(Some(own(&bookinfo.dir().join("state"))));
        let answer = call(bookinfo.workload(name), config).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{name}: {answer}");
    }
}

/// AN5, AN8, CT5: every workload shows a certificate with its own SPIFFE identity, and refuses callers that show none, or one that
/// another authority made, whatever identity it claims.
#[tokio::test(flavor = "multi_thread")]
async fn a_caller_of_another_authority_is_refused() {
    let bookinfo = shared().await;
    let claimed = "spiffe://cluster.local/ns/default/sa/bookinfo-productpage";
    for (name, app) in WORKLOADS {
        for certificate in [None, Some(foreign(claimed))] {
            let shows_one = certificate.is_some();
            let (config, seen) = showing(certificate);
            let answer = call(bookinfo.workload(name), config).await;
            assert!(!answer.starts_with("HTTP/1.1"), "{name}, certificate {shows_one}: {answer}");
            let shown = seen.certificate.lock().unwrap().clone();
            let identity = format!("spiffe://cluster.local/ns/default/sa/bookinfo-{app}");
            assert!(shown.windows(identity.len()).any(|part| part == identity.as_bytes()), "{name} is not {identity}");
        }
    }
}

/// A certificate for this identity, by an authority that nobody here knows.
fn foreign(identity: &str) -> Certificate {
    let mut root = CertificateParams::new(Vec::new()).unwrap();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = CertifiedIssuer::self_signed(root, KeyPair::generate().unwrap()).unwrap();
    let mut leaf = CertificateParams::new(Vec::new()).unwrap();
    leaf.subject_alt_names = vec![SanType::URI(identity.try_into().unwrap())];
    let key = KeyPair::generate().unwrap();
    let leaf = leaf.signed_by(&key, &root).unwrap();
    (vec![leaf.der().clone(), root.der().clone()], key.into())
}

/// A certificate for productpage by the authority of the mesh, whose keys are in this directory.
fn own(dir: &Path) -> Certificate {
    let ca = Ca::open(dir, "cluster.local").unwrap();
    let key = KeyPair::generate().unwrap();
    let request = CertificateParams::new(Vec::new()).unwrap().serialize_request(&key).unwrap().pem().unwrap();
    let account = ServiceAccount::new("default", "bookinfo-productpage").unwrap();
    let chain = ca.sign_csr(&request, &account, None, SystemTime::now()).unwrap();
    let chain = chain.iter().map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).collect();
    (chain, key.into())
}
