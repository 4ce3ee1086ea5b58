//! The authority as peers meet it: chains that OpenSSL believes, lists that it honours, authorities of one's own, and a change of
//! the authority in three steps.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    path::Path,
    process::{Command, Output},
    sync::Arc,
    time::{Duration, SystemTime},
};

use mesh_control::{
    ControlPlane, WorkloadSpec,
    ca::{Ca, CaError, RevokeRequest, Role, ServiceAccount, Step, TrustSettings, save_identity},
};
use mesh_core::trust::Trust;
use mesh_xds::{bootstrap::Bootstrap, certs::CertSource, client::Client};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

const REVIEWS: &str = "spiffe://cluster.local/ns/default/sa/reviews";

fn account(name: &str) -> ServiceAccount {
    ServiceAccount::new("default", name).unwrap()
}

/// Issues a certificate into a directory; its serial number.
fn issue(ca: &Ca, name: &str, dir: &Path) -> String {
    let now = SystemTime::now();
    let (chain, key) = ca.issue(&account(name), Some(Duration::from_secs(600)), now).unwrap();
    save_identity(dir, &chain, &key, &ca.root_pem()).unwrap();
    let id = account(name).spiffe_id("cluster.local");
    let before = ca.issued(Some(&id), now);
    before.last().unwrap().serial.clone()
}

/// What OpenSSL says of a chain, given roots and perhaps lists of revoked certificates.
fn openssl(dir: &Path, roots: &str, crl: &str) -> Output {
    std::fs::write(dir.join("trusted.pem"), roots).unwrap();
    let mut command = Command::new("openssl");
    command.current_dir(dir).args(["verify", "-x509_strict", "-CAfile", "trusted.pem"]);
    if !crl.is_empty() {
        std::fs::write(dir.join("crl.pem"), crl).unwrap();
        command.args(["-CRLfile", "crl.pem", "-crl_check_all"]);
    }
    command.args(["-untrusted", "cert-chain.pem", "cert-chain.pem"]).output().unwrap()
}

fn believed(dir: &Path, roots: &str, crl: &str) -> bool {
    openssl(dir, roots, crl).status.success()
}

/// CT5, CT8: OpenSSL believes what is issued, and no more once the list says so; others stay believed.
#[test]
fn openssl_believes_chains_and_honours_lists() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let ca = Ca::open(&at("state"), "cluster.local").unwrap();
    let serial = issue(&ca, "reviews", &at("reviews"));
    issue(&ca, "ratings", &at("ratings"));
    assert!(believed(&at("reviews"), &ca.root_pem(), ""), "{:?}", openssl(&at("reviews"), &ca.root_pem(), ""));
    assert_eq!(ca.status(SystemTime::now()).crl, "", "nothing revoked, no list");

    let revoke = |serials: Vec<String>, ids: Vec<String>, lift| {
        ca.revoke(&RevokeRequest { ids, serials, lift }, SystemTime::now()).unwrap()
    };
    let by_serial = revoke(vec![serial.to_uppercase()], Vec::new(), false).crl;
    let refused = openssl(&at("reviews"), &ca.root_pem(), &by_serial);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("certificate revoked"), "{refused:?}");
    assert!(believed(&at("ratings"), &ca.root_pem(), &by_serial));

    // By id: what was issued for it is on the list, and no more is issued, over a restart too.
    let by_id = revoke(Vec::new(), vec!["spiffe://cluster.local/ns/default/sa/ratings".to_owned()], false).crl;
    assert!(!believed(&at("ratings"), &ca.root_pem(), &by_id));
    let again = Ca::open(&at("state"), "cluster.local").unwrap();
    let denied = again.issue(&account("ratings"), None, SystemTime::now()).unwrap_err();
    assert!(matches!(denied, CaError::Denied(_)), "{denied}");
    assert!(!believed(&at("ratings"), &ca.root_pem(), &again.status(SystemTime::now()).crl));
    let lifted = revoke(vec![serial], vec!["spiffe://cluster.local/ns/default/sa/ratings".to_owned()], true);
    assert!(lifted.crl.is_empty() && lifted.denied_ids.is_empty());
}

/// CT5: at each step of a change every certificate in use is believed by everybody, and after it the old ones by nobody.
#[test]
fn an_authority_is_changed_in_three_steps() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let ca = Ca::open(&at("state"), "cluster.local").unwrap();
    let rotate = |step| ca.rotate(step, None, SystemTime::now());
    let told = ca.told();
    issue(&ca, "reviews", &at("old"));
    let before = ca.root_pem();

    let status = rotate(None).unwrap();
    assert_eq!(status.authorities.iter().map(|it| it.role).collect::<Vec<_>>(), [Role::Active, Role::Coming]);
    let both = ca.root_pem();
    assert_eq!(both.matches("BEGIN").count(), 2);
    issue(&ca, "reviews", &at("still-old"));
    assert!(believed(&at("still-old"), &before, ""), "the old one still signs");
    let old_issuer = told.borrow().issuer.clone();

    assert!(rotate(Some(Step::Remove)).is_err(), "no step is left out");
    rotate(Some(Step::Activate)).unwrap();
    assert_ne!(told.borrow().issuer, old_issuer, "members learn that another key signs");
    issue(&ca, "reviews", &at("new"));
    assert!(believed(&at("new"), &both, "") && believed(&at("old"), &both, "") && !believed(&at("new"), &before, ""));
    // Lists of both, for those who check whole chains.
    let status =
        ca.revoke(&RevokeRequest { serials: vec!["0a".to_owned()], ..RevokeRequest::default() }, SystemTime::now());
    let crl = status.unwrap().crl;
    assert!(believed(&at("new"), &both, &crl) && believed(&at("old"), &both, &crl));

    let again = Ca::open(&at("state"), "cluster.local").unwrap();
    assert_eq!(again.root_pem(), ca.root_pem(), "the change outlives a restart");
    rotate(Some(Step::Remove)).unwrap();
    let after = ca.root_pem();
    assert!(believed(&at("new"), &after, "") && !believed(&at("old"), &after, ""));
    let again = Ca::open(&at("state"), "cluster.local").unwrap();
    assert_eq!(again.root_pem(), after);
    assert!(!at("state").join("ca-key.pem").exists(), "the key of the old one is gone");
}

/// CT5: a change that is not wanted is gone back on, and the same change can be begun anew.
#[test]
fn a_change_can_be_aborted() {
    let ca = Ca::in_memory("cluster.local").unwrap();
    let before = ca.root_pem();
    let rotate = |step| ca.rotate(Some(step), None, SystemTime::now());
    assert!(rotate(Step::Abort).is_err());
    rotate(Step::Add).unwrap();
    rotate(Step::Activate).unwrap();
    rotate(Step::Abort).unwrap();
    assert_eq!(ca.status(SystemTime::now()).authorities[0].role, Role::Active);
    rotate(Step::Abort).unwrap();
    assert_eq!(ca.root_pem(), before);
    rotate(Step::Add).unwrap();
}

/// CT5: an authority of one's own, in Istio's files, signs what OpenSSL believes by its root; files that do not fit are refused
/// before anything is signed.
#[test]
fn an_authority_of_ones_own_is_plugged_in() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let write = |name: &str, text: &str| std::fs::write(at("cacerts").join(name), text).unwrap();
    std::fs::create_dir(at("cacerts")).unwrap();
    let authority = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.use_authority_key_identifier_extension = true;
        params
    };
    let (root_key, middle_key, key) =
        (KeyPair::generate().unwrap(), KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let root = authority("root").self_signed(&root_key).unwrap();
    let middle =
        authority("middle").signed_by(&middle_key, &Issuer::from_params(&authority("root"), &root_key)).unwrap();
    let issuing =
        authority("issuing").signed_by(&key, &Issuer::from_params(&authority("middle"), &middle_key)).unwrap();
    write("ca-cert.pem", &issuing.pem());
    write("ca-key.pem", &key.serialize_pem());
    write("root-cert.pem", &root.pem());
    let incomplete = Ca::given(&at("cacerts"), "cluster.local").unwrap_err().to_string();
    assert!(incomplete.contains("not believed by its own roots"), "{incomplete}");
    write("cert-chain.pem", &(issuing.pem() + &middle.pem() + &root.pem()));
    let ca = Ca::given(&at("cacerts"), "cluster.local").unwrap();
    issue(&ca, "reviews", &at("leaf"));
    assert!(believed(&at("leaf"), &root.pem(), ""));
    let chain = std::fs::read_to_string(at("leaf").join("cert-chain.pem")).unwrap();
    assert_eq!(chain.matches("BEGIN").count(), 3, "leaf, issuing, middle; no root");
    // Nobody here can sign the list of the root, so that peers are asked to check leaves only.
    let request = RevokeRequest { ids: vec![REVIEWS.to_owned()], ..RevokeRequest::default() };
    ca.revoke(&request, SystemTime::now()).unwrap();
    assert!(ca.told().borrow().trust.only_leaf_crl);

    write("ca-key.pem", &root_key.serialize_pem());
    assert!(Ca::given(&at("cacerts"), "cluster.local").unwrap_err().to_string().contains("another certificate"));
    // Plugged in while another works: the files are the new authority's.
    write("ca-key.pem", &key.serialize_pem());
    let running = Ca::open(&at("state"), "cluster.local").unwrap();
    running.rotate(Some(Step::Add), Some(&at("cacerts")), SystemTime::now()).unwrap();
    running.rotate(Some(Step::Activate), None, SystemTime::now()).unwrap();
    running.rotate(Some(Step::Remove), None, SystemTime::now()).unwrap();
    assert_eq!(running.root_pem(), ca.root_pem());
    assert!(at("cacerts").join("ca-key.pem").exists(), "files of others are left alone");
    assert_eq!(Ca::open(&at("state"), "cluster.local").unwrap().root_pem(), ca.root_pem());
}

/// CT11: other trust domains and aliases become part of what members are told; our own roots cannot be overruled so.
#[test]
fn federated_domains_are_told() {
    let (ca, other) = (Ca::in_memory("ours").unwrap(), Ca::in_memory("theirs").unwrap());
    let federated = |domain: &str| TrustSettings {
        aliases: vec!["old".to_owned()],
        federated: [(domain.to_owned(), other.root_pem())].into(),
    };
    ca.set_trust(federated("theirs"), SystemTime::now()).unwrap();
    let Trust { bundles, aliases, .. } = ca.told().borrow().trust.clone();
    assert_eq!(bundles.keys().collect::<Vec<_>>(), ["ours", "theirs"]);
    assert!(aliases.contains("old") && bundles["ours"] != bundles["theirs"]);
    assert!(ca.set_trust(federated("ours"), SystemTime::now()).is_err());
    assert_eq!(ca.told().borrow().trust.bundles, bundles);
}

/// CT5, CT6: nothing that can be printed holds a key, with keys on disk and without.
#[test]
fn no_key_is_ever_printed() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::open(dir.path(), "cluster.local").unwrap();
    ca.rotate(Some(Step::Add), None, SystemTime::now()).unwrap();
    let mut keys = Vec::new();
    let mut folders = vec![dir.path().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.to_string_lossy().ends_with("key.pem") {
                keys.push(std::fs::read_to_string(entry).unwrap().lines().nth(1).unwrap().to_owned());
            }
        }
    }
    assert_eq!(keys.len(), 5, "of two authorities with their roots, and of the tokens");
    let (_, key) = ca.issue(&account("reviews"), None, SystemTime::now()).unwrap();
    keys.push(key.lines().nth(1).unwrap().to_owned());
    let status = serde_json::to_string(&ca.status(SystemTime::now())).unwrap();
    let printed = format!("{ca:?} {:?} {:?} {status}", ca.tokens(), ca.told().borrow());
    assert!(!printed.contains("PRIVATE KEY") && keys.iter().all(|key| !printed.contains(key)));
}

/// CT5, CT7, CT10: a running member hears of a revocation within 2 s, gets a certificate of the authority that signs as soon as that
/// changes, and is refused once it is denied itself.
#[tokio::test(flavor = "multi_thread")]
async fn members_are_told_within_two_seconds() {
    let dir = tempfile::tempdir().unwrap();
    let any = "127.0.0.1:0".parse().unwrap();
    let plane = ControlPlane::builder().xds_addr(any).api_addr(any).start().await.unwrap();
    let spec = WorkloadSpec {
        service_account: "reviews".to_owned(),
        ..WorkloadSpec::new("reviews-v1", "127.0.0.14".parse().unwrap())
    };
    let bootstrap = plane.bootstrap_for(&spec, dir.path()).unwrap();
    let bootstrap = Arc::new(Bootstrap::parse(&bootstrap.to_string(), "test").unwrap());
    let client = Client::start(bootstrap.clone());
    let source = CertSource::start_with(bootstrap, client.told());
    let (mut told, mut identities) = (client.told(), source.identity());
    let wait = Duration::from_secs(20);
    let first =
        tokio::time::timeout(wait, identities.wait_for(Option::is_some)).await.unwrap().unwrap().clone().unwrap();
    tokio::time::timeout(wait, told.wait_for(Option::is_some)).await.unwrap().unwrap();

    let soon = Duration::from_secs(2);
    let bad = "spiffe://cluster.local/ns/default/sa/ratings";
    let revoke = |id: &str| {
        let request = RevokeRequest { ids: vec![id.to_owned()], serials: vec!["0a".to_owned()], lift: false };
        plane.ca().revoke(&request, SystemTime::now()).unwrap();
    };
    revoke(bad);
    let heard = told.wait_for(|told| {
        told.as_ref().is_some_and(|told| told.trust.denies(bad, &[]) && told.trust.denies("", &[0, 10]))
    });
    let heard = tokio::time::timeout(soon, heard).await.expect("within 2 s").unwrap().clone().unwrap();
    assert_eq!(heard.trust.crls.len(), 2, "of the authority and of its root");

    let now = SystemTime::now;
    plane.ca().rotate(Some(Step::Add), None, now()).unwrap();
    plane.ca().rotate(Some(Step::Activate), None, now()).unwrap();
    let renewed = identities.wait_for(|now| now.as_ref().is_some_and(|now| now.issuer != first.issuer));
    let renewed = tokio::time::timeout(wait, renewed).await.expect("soon").unwrap().clone().unwrap();
    assert_eq!(renewed.issuer, plane.ca().told().borrow().issuer);
    plane.ca().rotate(Some(Step::Remove), None, now()).unwrap();
    let only = told.wait_for(|told| told.as_ref().is_some_and(|told| told.trust.bundles["cluster.local"].len() == 1));
    tokio::time::timeout(soon, only).await.expect("within 2 s").unwrap();
    let roots = std::fs::read_to_string(dir.path().join("root-cert.pem"));
    assert!(roots.is_ok(), "what a new connection is verified by follows");

    assert_eq!(plane.proxy_status().len(), 1);
    revoke(REVIEWS);
    let gone = async {
        while !plane.proxy_status().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(soon, gone).await.expect("its stream is ended");
}
