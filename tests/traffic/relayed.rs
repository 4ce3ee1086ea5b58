//! Bytes that a gateway hands on without looking into them, as policies see them: who connects, to what, and by which name.

use std::{net::SocketAddr, time::Duration};

use mesh_control::compile::MeshSettings;
use mesh_tower::config::Config;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use crate::{
    authorization::caller,
    harness::{Kind, Upstream},
    objects::services,
    outside::{Authority, Edge, Visitor, bound, compiled, secret, server},
};

const PATIENCE: Duration = Duration::from_secs(30);

/// A server of plain TCP at 9000, all of whose bytes go to one service.
fn raw(host: &str) -> String {
    server("raw", 9000, "TCP", "['*']", "")
        + &format!(
            "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: raw}}\nspec:\n  hosts: ['*']\n  gateways: [raw]\n  tcp: [{{route: [{{destination: {{host: {host}}}}}]}}]\n"
        )
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}}}\nspec: {{selector: {{matchLabels: {{istio: ingressgateway}}}}{spec}}}\n"
    )
}

/// AZ5, GW3: policies hold for bytes that are handed on: by address, port and name; what speaks of requests allows nothing there and
/// denies more, and whom a provider would be asked about is refused.
#[tokio::test]
async fn policies_hold_for_bytes() {
    let cases: [(&str, bool); 16] = [
        (", action: DENY, rules: [{from: [{source: {ipBlocks: [127.0.0.0/8]}}]}]", false),
        (", action: DENY, rules: [{from: [{source: {ipBlocks: [10.0.0.0/8]}}]}]", true),
        (", action: DENY, rules: [{from: [{source: {remoteIpBlocks: [127.0.0.0/8]}}]}]", false),
        ("", false),
        (", rules: [{}]", true),
        (", rules: [{from: [{source: {ipBlocks: [127.0.0.1]}}]}]", true),
        (", rules: [{from: [{source: {notIpBlocks: [127.0.0.1]}}]}]", false),
        (", rules: [{to: [{operation: {ports: ['9000']}}]}]", true),
        (", rules: [{to: [{operation: {ports: ['443']}}]}]", false),
        (", rules: [{to: [{operation: {methods: [GET, POST]}}]}]", false),
        (", rules: [{to: [{operation: {methods: [GET]}}, {operation: {ports: ['9000']}}]}]", false),
        (", rules: [{from: [{source: {requestPrincipals: ['*']}}]}, {to: [{operation: {ports: ['9000']}}]}]", true),
        (", rules: [{from: [{source: {principals: ['*']}}]}]", false),
        (", action: DENY, rules: [{to: [{operation: {paths: [/nowhere]}}]}]", false),
        (", action: DENY, rules: [{to: [{operation: {paths: [/nowhere], ports: ['443']}}]}]", true),
        (", action: CUSTOM, provider: {name: nobody}, rules: [{}]", false),
    ];
    for kind in Kind::ALL {
        let a = Upstream::start("a").await;
        let text = services(kind, &[&a]) + &raw("a");
        let edge = Edge::start(&text, &[9000]).await;
        assert!(caller(kind, edge.at(9000)).await.get("/a.B/C").await.is_ok(), "{kind:?}");
        for (spec, passes) in cases {
            edge.told(&(text.clone() + &policy("some", spec)));
            let before = a.count();
            let answer = caller(kind, edge.at(9000)).await.get("/a.B/C").await;
            assert_eq!(answer.is_ok(), passes, "{kind:?} {spec}: {answer:?}");
            assert_eq!(a.count() > before, passes, "{kind:?} {spec}");
        }
    }
}

/// AZ5, GW3: the name asked for is one that policies see where TLS is handed on; a port with several chains has the same policies for
/// each.
#[tokio::test]
async fn names_asked_for_are_seen_by_policies() {
    let authority = Authority::new("outside");
    for kind in Kind::ALL {
        let a = Upstream::start("a").await;
        let behind = services(kind, &[&a])
            + &secret("cert", Some(&authority.issue(&["one.test", "two.test"])), None)
            + &server("end", 443, "HTTPS", "['*']", "{mode: SIMPLE, credentialName: cert}")
            + &bound("end", "end", "['*']", "a");
        let behind = Edge::start(&behind, &[443]).await;
        let at = behind.at(443);
        let front = format!(
            "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: end}}\nspec:\n  hosts: [end.internal]\n  ports: [{{number: 443, name: tls, protocol: TLS}}]\n  resolution: STATIC\n  endpoints: [{{address: {}, ports: {{tls: {}}}}}]\n",
            at.ip(),
            at.port()
        ) + &server("front", 443, "TLS", "['*.test']", "{mode: PASSTHROUGH}")
            + "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: front}\nspec:\n  hosts: ['*.test']\n  gateways: [front]\n  tls: [{match: [{sniHosts: ['*.test']}], route: [{destination: {host: end.internal}}]}]\n"
            + &policy("names", ", action: DENY, rules: [{when: [{key: connection.sni, values: [one.test]}]}]");
        let edge = Edge::start(&front, &[443]).await;
        let visitor = Visitor::trusting(&authority);
        for (name, passes) in [("one.test", false), ("ONE.test", false), ("two.test", true)] {
            let answer = visitor.ask(kind, edge.at(443), name, "/x").await;
            assert_eq!(answer.is_ok(), passes, "{kind:?} {name}: {answer:?}");
        }
    }
}

/// TO9, GW3: bytes that stand still longer than they may are let go of.
#[tokio::test]
async fn bytes_that_stand_still_are_let_go_of() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let echo = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    });
    let edge = Edge::with(standing(at, Duration::from_millis(300)), &[9000]).await;
    let mut stream = TcpStream::connect(edge.at(9000)).await.unwrap();
    for _ in 0..3 {
        stream.write_all(b"word").await.unwrap();
        let mut back = [0; 4];
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"word");
    }
    let ended = timeout(PATIENCE, stream.read(&mut [0; 4])).await.unwrap();
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    timeout(PATIENCE, echo).await.unwrap().unwrap();
}

/// Everything at 9000 goes to one address, and may stand still for so long.
fn standing(at: SocketAddr, limit: Duration) -> Config {
    let entry = format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: a}}\nspec:\n  hosts: [a.internal]\n  ports: [{{number: 80, name: tcp, protocol: TCP}}]\n  resolution: STATIC\n  endpoints: [{{address: {}, ports: {{tcp: {}}}}}]\n",
        at.ip(),
        at.port()
    );
    let mut config = compiled(&(entry + &raw("a.internal")), MeshSettings::default());
    let gateway = std::sync::Arc::make_mut(config.gateways.get_mut(&9000).unwrap());
    std::sync::Arc::make_mut(&mut gateway.chains[0]).idle_timeout = Some(limit);
    config
}
