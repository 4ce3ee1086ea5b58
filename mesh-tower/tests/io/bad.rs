//! Every kind of bad certificate, shown to both ends: each is refused, with its reason in the error and in the metric.

use std::sync::Arc;

use mesh_tower::{
    config::MtlsMode,
    tls::{LiveIdentity, MtlsAcceptor, TlsError, Trust},
};
use rcgen::ExtendedKeyUsagePurpose;
use tokio::io::duplex;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::{
    pki::{Ca, Chain, Leaf, RATINGS, REVIEWS},
    tls::{anywhere, connect, raw_client, raw_server},
};

const REVOKED: u64 = 0x00d0_0d00;
const DENIED: u64 = 0x00bb_aa99;
const DENIED_ID: &str = "spiffe://cluster.local/ns/default/sa/denied";

/// What is wrong, what is shown, and the word for it.
type Case = (&'static str, Chain, &'static str);

/// What is bad whoever shows it.
fn cases(ca: &Ca) -> Vec<Case> {
    let other = Ca::new();
    let (below, _) = ca.below();
    let sign = |leaf: Leaf<'_>| ca.sign(&leaf);
    let mut spoiled = ca.sign(&Leaf::default());
    // One bit of the signature.
    let mut der = spoiled.0[0].to_vec();
    *der.last_mut().unwrap() ^= 1;
    spoiled.0[0] = der.into();
    vec![
        ("expired", sign(Leaf { until: 2021, ..Leaf::default() }), "expired"),
        ("not valid yet", sign(Leaf { from: 2110, ..Leaf::default() }), "not_yet_valid"),
        ("another CA", other.sign(&Leaf::default()), "unknown_issuer"),
        ("truncated chain", below.sign(&Leaf::default()), "unknown_issuer"),
        (
            "another trust domain",
            sign(Leaf { uris: &["spiffe://evil/ns/default/sa/x"], ..Leaf::default() }),
            "trust_domain",
        ),
        (
            "a trust domain with ours before",
            sign(Leaf { uris: &["spiffe://cluster.local.evil/ns/a/sa/x"], ..Leaf::default() }),
            "trust_domain",
        ),
        ("no name", sign(Leaf { uris: &[], ..Leaf::default() }), "no_identity"),
        ("two names", sign(Leaf { uris: &[REVIEWS, RATINGS], ..Leaf::default() }), "no_identity"),
        ("a DNS name in place of a URI", sign(Leaf { uris: &[], dns: &["reviews"], ..Leaf::default() }), "no_identity"),
        (
            "a web address",
            sign(Leaf { uris: &["https://cluster.local/ns/default/sa/reviews"], ..Leaf::default() }),
            "no_identity",
        ),
        (
            "upper case",
            sign(Leaf { uris: &["spiffe://CLUSTER.LOCAL/ns/default/sa/reviews"], ..Leaf::default() }),
            "no_identity",
        ),
        (
            "a query",
            sign(Leaf { uris: &["spiffe://cluster.local/ns/default/sa/reviews?a"], ..Leaf::default() }),
            "no_identity",
        ),
        (
            "a port",
            sign(Leaf { uris: &["spiffe://cluster.local:1/ns/default/sa/reviews"], ..Leaf::default() }),
            "no_identity",
        ),
        (
            "dots in the path",
            sign(Leaf { uris: &["spiffe://cluster.local/ns/default/sa/../reviews"], ..Leaf::default() }),
            "no_identity",
        ),
        ("a CA's certificate", sign(Leaf { is_ca: true, ..Leaf::default() }), "wrong_usage"),
        (
            "for mail",
            sign(Leaf { usage: &[ExtendedKeyUsagePurpose::EmailProtection], ..Leaf::default() }),
            "wrong_usage",
        ),
        ("revoked", sign(Leaf { serial: Some(REVOKED), ..Leaf::default() }), "revoked"),
        ("a denied serial number", sign(Leaf { serial: Some(DENIED), ..Leaf::default() }), "denied"),
        ("a denied identity", sign(Leaf { uris: &[DENIED_ID], ..Leaf::default() }), "denied"),
        ("spoiled", spoiled, "unknown_issuer"),
    ]
}

/// Of a mesh with something revoked and somebody denied.
fn wary(ca: &Ca, id: &str) -> LiveIdentity {
    let live = ca.live(id);
    let trust = Trust {
        crls: vec![ca.revoke(&[REVOKED])],
        denied_ids: [DENIED_ID.to_owned()].into(),
        denied_serials: [DENIED.to_be_bytes()[5..].to_vec()].into(),
        ..Trust::default()
    };
    live.replace_trust(Arc::new(trust)).unwrap();
    live
}

async fn accept(identity: &LiveIdentity, chain: Option<Chain>) -> Result<String, TlsError> {
    let (near, far) = duplex(64 << 10);
    let acceptor = MtlsAcceptor::new(identity.clone());
    let dial = TlsConnector::from(Arc::new(raw_client(chain))).connect(anywhere(), near);
    let (_, server) = tokio::join!(dial, acceptor.accept(far, MtlsMode::Strict));
    server.map(|accepted| accepted.peer().unwrap().to_string())
}

async fn call(identity: &LiveIdentity, chain: Chain, expected: &[&str]) -> Result<(), TlsError> {
    let (near, far) = duplex(64 << 10);
    let acceptor = TlsAcceptor::from(Arc::new(raw_server(chain)));
    let (client, _) = tokio::join!(connect(identity, near, expected), acceptor.accept(far));
    client.map(|_| ())
}

/// AN5, AN6, AN8, CT8, CT10: a bad certificate is refused by servers and by callers, each with its own word, which the metric
/// has too; a good one, also through a CA between, is taken by both.
#[tokio::test]
async fn bad_certificates_are_refused_with_their_reason() {
    let ca = Ca::new();
    let (server, client) = (wary(&ca, REVIEWS), wary(&ca, RATINGS));
    assert_eq!(accept(&server, Some(ca.sign(&Leaf::default()))).await.unwrap(), REVIEWS);
    call(&client, ca.sign(&Leaf::default()), &[REVIEWS]).await.unwrap();
    for (what, (chain, key), reason) in cases(&ca) {
        let error = call(&client, (chain.clone(), key.clone_key()), &[]).await.expect_err(what);
        assert_eq!(error.reason().as_str(), reason, "{what}, shown by a server: {error}");
        let error = accept(&server, Some((chain, key))).await.expect_err(what);
        assert_eq!(error.reason().as_str(), reason, "{what}, shown by a caller: {error}");
    }
    let usage = |usage| ca.sign(&Leaf { usage, ..Leaf::default() });
    let error = accept(&server, Some(usage(&[ExtendedKeyUsagePurpose::ServerAuth]))).await.unwrap_err();
    assert_eq!(error.reason().as_str(), "wrong_usage", "{error}");
    let error = call(&client, usage(&[ExtendedKeyUsagePurpose::ClientAuth]), &[]).await.unwrap_err();
    assert_eq!(error.reason().as_str(), "wrong_usage", "{error}");
    assert_eq!(accept(&server, None).await.unwrap_err().reason().as_str(), "no_certificate");
    for (expected, what) in [(RATINGS, "another"), ("spiffe://cluster.local/ns/default/sa/rev", "a part")] {
        let error = call(&client, ca.sign(&Leaf::default()), &[expected]).await.unwrap_err();
        assert_eq!(error.reason().as_str(), "unexpected_name", "{what}: {error}");
    }
    // A CA between, of which no list speaks; then without lists.
    let (below, middle) = ca.below();
    let through = || {
        let (mut chain, key) = below.sign(&Leaf::default());
        chain.push(middle.clone());
        (chain, key)
    };
    let error = accept(&server, Some(through())).await.unwrap_err();
    assert_eq!(error.reason().as_str(), "revocation_unknown", "{error}");
    assert_eq!(accept(&ca.live(REVIEWS), Some(through())).await.unwrap(), REVIEWS);
    call(&ca.live(RATINGS), through(), &[REVIEWS]).await.unwrap();
    let metrics = mesh_tower::telemetry::render().unwrap();
    for (direction, reasons) in [
        (
            "inbound",
            &["expired", "revoked", "denied", "no_identity", "wrong_usage", "no_certificate", "trust_domain"][..],
        ),
        ("outbound", &["unexpected_name", "not_yet_valid", "unknown_issuer", "revoked", "denied"][..]),
    ] {
        for reason in reasons {
            let line = format!("mesh_tls_refused_total{{direction=\"{direction}\",reason=\"{reason}\"}}");
            assert!(metrics.contains(&line), "{line} is missing in {metrics}");
        }
    }
}
