//! Callers from outside at a gateway: who they are to policies, and how long their connections stand.

use std::{sync::Arc, time::Duration};

use rustls::{HandshakeKind, version};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::client::TlsStream;

use crate::{
    floods::greeting,
    harness::{Kind, Upstream},
    objects::services,
    outside::{Authority, Edge, Visitor, bound, secret, server, well},
};

const PATIENCE: Duration = Duration::from_secs(30);

/// AZ3, GW1: a certificate that a gateway's own roots vouch for says to policies who its holder is, as it does with Envoy.
#[tokio::test]
async fn policies_know_callers_by_their_certificates() {
    let authority = Authority::new("outside");
    let (partner, other) =
        (authority.member("spiffe://partner/ns/a/sa/x"), authority.member("spiffe://other/ns/b/sa/y"));
    let hosts = authority.issue(&["friend.test"]);
    for kind in Kind::ALL {
        let a = Upstream::start("a").await;
        let cert = authority.issue(&["a.test"]);
        let text = services(kind, &[&a])
            + &secret("cert", Some(&cert), Some(&authority.pem))
            + &server("a", 443, "HTTPS", "[a.test]", "{mode: OPTIONAL_MUTUAL, credentialName: cert}")
            + &bound("a", "a", "[a.test]", "a");
        let edge = Edge::start(&text, &[443]).await;
        let policy = |rest: &str| {
            format!(
                "{text}---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p}}\nspec: {{selector: {{matchLabels: {{istio: ingressgateway}}}}, {rest}}}\n"
            )
        };
        let nobody = Visitor::trusting(&authority);
        let visitors =
            [nobody.clone(), nobody.clone().showing(&partner), nobody.clone().showing(&other), nobody.showing(&hosts)];
        for (rules, passes) in [
            ("action: DENY, rules: [{from: [{source: {principals: [partner/ns/a/sa/x]}}]}]", [true, false, true, true]),
            ("action: DENY, rules: [{from: [{source: {namespaces: [b]}}]}]", [true, true, false, true]),
            (
                "action: DENY, rules: [{from: [{source: {notPrincipals: [partner/ns/a/sa/x]}}]}]",
                [false, true, false, false],
            ),
            ("rules: [{from: [{source: {principals: ['*']}}]}]", [false, true, true, false]),
        ] {
            edge.told(&policy(rules));
            for (n, (visitor, passes)) in visitors.iter().zip(passes).enumerate() {
                let answer = visitor.ask(kind, edge.at(443), "a.test", "/x").await.unwrap();
                let as_expected = if passes { well(kind, &answer) } else { answer.is(kind, 403) };
                assert!(as_expected, "{kind:?} {rules}, visitor {n}: {answer:?}");
            }
        }
    }
}

/// GW1, CT10: when a server demands a certificate from now on, or judges by other roots, names or lists, connections that stand end; a
/// certificate of its own ends nothing.
#[tokio::test]
async fn connections_end_when_other_callers_are_wanted() {
    let (authority, elsewhere) = (Authority::new("outside"), Authority::new("elsewhere"));
    let (known, own) = (authority.issue(&["friend.test"]), || authority.issue(&["a.test"]));
    for kind in [Kind::Http1, Kind::Http2] {
        let a = Upstream::start("a").await;
        let of = |roots: Option<&str>, tls: &str| {
            services(kind, &[&a])
                + &secret("cert", Some(&own()), roots)
                + &server("a", 443, "HTTPS", "[a.test]", &format!("{{credentialName: cert, {tls}}}"))
                + &bound("a", "a", "[a.test]", "a")
        };
        let (simple, mutual) = ("mode: SIMPLE", "mode: MUTUAL");
        let ours = Some(authority.pem.as_str());
        for (n, (before, after)) in [
            (of(None, simple), of(ours, mutual)),
            (of(ours, mutual), of(Some(&elsewhere.pem), mutual)),
            (of(ours, mutual), of(ours, "mode: MUTUAL, subjectAltNames: [other.test]")),
        ]
        .into_iter()
        .enumerate()
        {
            let edge = Edge::start(&before, &[443]).await;
            let visitor = Visitor::trusting(&authority).showing(&known);
            let offered = if kind == Kind::Http1 { "http/1.1" } else { "h2" };
            let mut stream = visitor.shake(edge.at(443), "a.test", &[offered]).await.unwrap();
            speak(kind, &mut stream).await;
            edge.told(&after);
            let mut rest = Vec::new();
            let ended = timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
            assert!(ended.is_ok(), "{kind:?} case {n}: it stands");
        }
    }
}

/// AN12, GW1: what a caller has saved of a session with a gateway lets it in no longer once other roots or names are demanded: of 2,000
/// tries none is answered. Before that each was resumed.
#[tokio::test]
async fn saved_sessions_do_not_outlive_what_a_gateway_demands() {
    const TRIES: usize = 500;
    let (authority, elsewhere) = (Authority::new("outside"), Authority::new("elsewhere"));
    let (known, cert) = (authority.issue(&["friend.test"]), authority.issue(&["a.test"]));
    let a = Upstream::start("a").await;
    let of = |roots: &str, tls: &str| {
        services(Kind::Http1, &[&a])
            + &secret("cert", Some(&cert), Some(roots))
            + &server("a", 443, "HTTPS", "[a.test]", &format!("{{credentialName: cert, mode: MUTUAL{tls}}}"))
            + &bound("a", "a", "[a.test]", "a")
    };
    let before = of(&authority.pem, "");
    for only in [&version::TLS12, &version::TLS13] {
        for (what, after) in
            [("roots", of(&elsewhere.pem, "")), ("names", of(&authority.pem, ", subjectAltNames: [other.test]"))]
        {
            let edge = Edge::start(&before, &[443]).await;
            let visitor = Visitor { only: Some(only), ..Visitor::trusting(&authority).showing(&known) };
            let config = Arc::new(visitor.config(&["http/1.1"]));
            let ask = async || {
                let mut stream = visitor.shake_with(Arc::clone(&config), edge.at(443), "a.test").await.ok()?;
                let request = b"GET /x HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n";
                stream.write_all(request).await.ok()?;
                let mut said = Vec::new();
                // Some servers end without a word in TLS.
                let _ = timeout(PATIENCE, stream.read_to_end(&mut said)).await.unwrap();
                said.starts_with(b"HTTP/1.1 200").then(|| stream.get_ref().1.handshake_kind().unwrap())
            };
            assert_eq!(ask().await, Some(HandshakeKind::Full), "{what}");
            for _ in 0..20 {
                assert_eq!(ask().await, Some(HandshakeKind::Resumed), "{what}");
            }
            edge.told(&after);
            for _ in 0..TRIES {
                assert_eq!(ask().await, None, "{what} {:?}", only.version);
            }
        }
    }
}

/// Says as much that the connection is one that serves requests.
async fn speak(kind: Kind, stream: &mut TlsStream<TcpStream>) {
    match kind {
        Kind::Http1 => stream.write_all(b"GET /x HTTP/1.1\r\nhost: a.test\r\n\r\n").await.unwrap(),
        _ => stream.write_all(&greeting()).await.unwrap(),
    }
    let mut begun = [0; 9];
    timeout(PATIENCE, stream.read_exact(&mut begun)).await.unwrap().unwrap();
}
