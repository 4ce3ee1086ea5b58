//! Gateways: what comes in from outside by Istio's and Kubernetes' objects, over TLS in each mode, and what the services see of it.

use mesh_control::compile::MeshSettings;
use rustls::version;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    harness::{Kind, Upstream},
    objects::services,
    outside::{Authority, Edge, Visitor, ask, bound, compiled, nowhere, secret, server, well},
};

/// GW1: a certificate by the name asked for, several servers and hosts on one port, HTTP/1.1 and HTTP/2 by ALPN; a name that nobody
/// has is cut off, and a host of another server is not reached by a name of one.
#[tokio::test]
async fn hosts_have_their_own_certificates() {
    let authority = Authority::new("outside");
    for kind in Kind::ALL {
        let (a, b) = (Upstream::start("a").await, Upstream::start("b").await);
        let text = services(kind, &[&a, &b])
            + &secret("a-cert", Some(&authority.issue(&["a.test", "also.a.test"])), None)
            + &secret("b-cert", Some(&authority.issue(&["*.b.test"])), None)
            + &server("a", 443, "HTTPS", "[a.test, also.a.test]", "{mode: SIMPLE, credentialName: a-cert}")
            + &server("b", 443, "HTTPS", "['*.b.test']", "{mode: SIMPLE, credentialName: b-cert}")
            + &bound("a", "a", "['*.test']", "a")
            + &bound("b", "b", "['*']", "b");
        let edge = Edge::start(&text, &[443]).await;
        let visitor = Visitor::trusting(&authority);
        for (name, expected) in [("a.test", "a"), ("also.a.test", "a"), ("x.b.test", "b")] {
            let answer = visitor.ask(kind, edge.at(443), name, "/x").await.unwrap();
            assert_eq!(answer.header("x-upstream"), expected, "{kind:?} {name}: {answer:?}");
        }
        assert!(visitor.ask(kind, edge.at(443), "c.test", "/").await.is_err(), "{kind:?}: nobody has the name");
        assert!(
            Visitor::default().ask(kind, edge.at(443), "a.test", "/").await.is_err(),
            "{kind:?}: it is not trusted"
        );
        // By a name of one server nothing is reached of another.
        let crossed = visitor.ask_host(kind, edge.at(443), "a.test", "x.b.test", "/", &[]).await.unwrap();
        assert!(nowhere(kind, &crossed), "{kind:?}: {crossed:?}");
        assert_eq!(b.count(), 1);
        assert_eq!(a.last().header("x-forwarded-proto"), "https");
    }
}

/// GW1: MUTUAL demands a certificate of the roots beside the server's own, and one of its names; OPTIONAL_MUTUAL asks for one, and
/// takes none, but no wrong one. What one server demands is not got round by the name of another.
#[tokio::test]
async fn callers_show_certificates_where_they_must() {
    let (authority, elsewhere) = (Authority::new("outside"), Authority::new("elsewhere"));
    let (known, other) = (authority.issue(&["friend.test"]), authority.issue(&["other.test"]));
    let stranger = elsewhere.issue(&["friend.test"]);
    for kind in Kind::ALL {
        let a = Upstream::start("a").await;
        let cert = authority.issue(&["must.test", "may.test", "named.test", "open.test"]);
        let text = services(kind, &[&a])
            + &secret("cert", Some(&cert), Some(&authority.pem))
            + &secret("apart", Some(&cert), None)
            + &secret("apart-cacert", None, Some(&authority.pem))
            + &server("must", 443, "HTTPS", "[must.test]", "{mode: MUTUAL, credentialName: apart}")
            + &server("may", 443, "HTTPS", "[may.test]", "{mode: OPTIONAL_MUTUAL, credentialName: cert}")
            + &server(
                "named",
                443,
                "HTTPS",
                "[named.test]",
                "{mode: MUTUAL, credentialName: cert, subjectAltNames: [friend.test]}",
            )
            + &server("open", 443, "HTTPS", "[open.test]", "{mode: SIMPLE, credentialName: cert}")
            + &["must", "may", "named", "open"].map(|name| bound(name, name, "['*.test']", "a")).concat();
        let edge = Edge::start(&text, &[443]).await;
        let nobody = Visitor::trusting(&authority);
        let cases = [
            ("must.test", nobody.clone(), false),
            ("must.test", nobody.clone().showing(&known), true),
            ("must.test", nobody.clone().showing(&other), true),
            ("must.test", nobody.clone().showing(&stranger), false),
            ("may.test", nobody.clone(), true),
            ("may.test", nobody.clone().showing(&known), true),
            ("may.test", nobody.clone().showing(&stranger), false),
            ("named.test", nobody.clone().showing(&known), true),
            ("named.test", nobody.clone().showing(&other), false),
            ("open.test", nobody.clone(), true),
        ];
        for (n, (name, visitor, expected)) in cases.into_iter().enumerate() {
            // With TLS 1.3 a client learns that it was refused with the first answer.
            let answer = visitor.ask(kind, edge.at(443), name, "/x").await;
            assert_eq!(answer.is_ok_and(|answer| answer.status == 200), expected, "{kind:?} case {n}: {name}");
        }
        let before = a.count();
        let crossed = nobody.ask_host(kind, edge.at(443), "open.test", "must.test", "/", &[]).await.unwrap();
        assert!(nowhere(kind, &crossed), "{kind:?}: {crossed:?}");
        assert_eq!(a.count(), before);
    }
}

/// GW1, AN10: another certificate is shown from the next handshake on, and connections there are go on; one that has not come yet, and
/// versions and ciphers that are not taken, end the handshake.
#[tokio::test]
async fn certificates_change_while_it_serves() {
    let (first, second) = (Authority::new("first"), Authority::new("second"));
    let a = Upstream::start("a").await;
    let rest = services(Kind::Http1, &[&a])
        + &server(
            "a",
            443,
            "HTTPS",
            "[a.test]",
            "{mode: SIMPLE, credentialName: cert, minProtocolVersion: TLSV1_2, cipherSuites: [ECDHE-ECDSA-AES256-GCM-SHA384]}",
        )
        + &server("b", 443, "HTTPS", "[b.test]", "{mode: SIMPLE, credentialName: cert, minProtocolVersion: TLSV1_3}")
        + &server("late", 443, "HTTPS", "[late.test]", "{mode: SIMPLE, credentialName: late}")
        + &["a", "b", "late"].map(|name| bound(name, name, "['*.test']", "a")).concat();
    let cert = |authority: &Authority| secret("cert", Some(&authority.issue(&["a.test", "b.test", "late.test"])), None);
    let edge = Edge::start(&(cert(&first) + &rest), &[443]).await;
    let (old, new) = (Visitor::trusting(&first), Visitor::trusting(&second));
    assert!(old.ask(Kind::Http1, edge.at(443), "late.test", "/").await.is_err());
    let mut standing = old.shake(edge.at(443), "a.test", &["http/1.1"]).await.unwrap();
    let request = b"GET /x HTTP/1.1\r\nhost: a.test\r\n\r\n";
    let mut begun = [0; 15];
    standing.write_all(request).await.unwrap();
    standing.read_exact(&mut begun).await.unwrap();
    assert_eq!(&begun, b"HTTP/1.1 200 OK");
    edge.told(&(cert(&second) + &secret("late", Some(&second.issue(&["late.test"])), None) + &rest));
    assert!(old.ask(Kind::Http1, edge.at(443), "a.test", "/").await.is_err());
    assert_eq!(new.ask(Kind::Http1, edge.at(443), "a.test", "/").await.unwrap().status, 200);
    assert_eq!(new.ask(Kind::Http1, edge.at(443), "late.test", "/").await.unwrap().status, 200);
    let before = a.count();
    standing.write_all(request).await.unwrap();
    let mut more = vec![0; 4096];
    while a.count() == before {
        assert!(standing.read(&mut more).await.unwrap() > 0);
    }
    let by = |only| Visitor { only: Some(only), ..new.clone() };
    let agreed = |stream: tokio_rustls::client::TlsStream<tokio::net::TcpStream>| {
        let suite = stream.get_ref().1.negotiated_cipher_suite().map(|suite| format!("{:?}", suite.suite()));
        suite.unwrap_or_default()
    };
    let twelve = by(&version::TLS12).shake(edge.at(443), "a.test", &[]).await.unwrap();
    assert_eq!(agreed(twelve), "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384");
    assert!(by(&version::TLS12).shake(edge.at(443), "b.test", &[]).await.is_err());
    assert!(by(&version::TLS13).shake(edge.at(443), "b.test", &[]).await.is_ok());
}

/// GW1: plaintext is sent to `https` where the object says so, and what upstreams are told of a caller is what the connection and
/// trusted proxies say, whatever the caller writes.
#[tokio::test]
async fn callers_cannot_say_where_they_come_from() {
    for kind in Kind::ALL {
        let a = Upstream::start("a").await;
        let text = services(kind, &[&a])
            + &server("redirect", 80, "HTTP", "[r.test]", "{httpsRedirect: true}")
            + &server("plain", 80, "HTTP", "[a.test]", "")
            + &bound("a", "plain", "[a.test]", "a");
        let edge = Edge::start(&text, &[80]).await;
        let answer = ask(kind, edge.at(80), "r.test", "/x?y", &[]).await;
        let expected = if kind.is_grpc() { 200 } else { 301 };
        assert_eq!((answer.status, answer.header("location").as_str()), (expected, "https://r.test/x?y"), "{kind:?}");
        let forged = [
            ("x-forwarded-for", "6.6.6.6"),
            ("x-envoy-external-address", "6.6.6.6"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-client-cert", "By=me"),
        ];
        assert!(well(kind, &ask(kind, edge.at(80), "a.test", "/", &forged).await));
        let seen = a.last();
        assert_eq!(seen.header("x-forwarded-for"), "6.6.6.6,127.0.0.1", "{kind:?}: the last is the connection's");
        assert_eq!(seen.header("x-forwarded-proto"), "http", "{kind:?}");
        assert_eq!(seen.header("x-envoy-external-address"), "", "{kind:?}: loopback is not outside");
        assert_eq!(seen.header("x-forwarded-client-cert"), "", "{kind:?}");
        // With one proxy in front the address it wrote counts, and no other.
        let settings = MeshSettings { trusted_proxies: 1, ..MeshSettings::default() };
        let edge = Edge::with(compiled(&text, settings), &[80]).await;
        let told = [("x-forwarded-for", "6.6.6.6, 8.8.8.8"), ("x-forwarded-proto", "https")];
        assert!(well(kind, &ask(kind, edge.at(80), "a.test", "/", &told).await));
        let seen = a.last();
        assert_eq!(seen.header("x-envoy-external-address"), "8.8.8.8", "{kind:?}");
        assert_eq!(seen.header("x-forwarded-proto"), "https", "{kind:?}");
    }
}

/// GW1: rules about who may ask what hold at the gateway, with the address that trusted proxies tell, and for hosts.
#[tokio::test]
async fn policies_hold_at_the_gateway() {
    for kind in Kind::ALL {
        let a = Upstream::start("a").await;
        let text = services(kind, &[&a])
            + &server("plain", 80, "HTTP", "['*']", "")
            + &bound("a", "plain", "['*']", "a")
            + "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: deny}\nspec:\n  selector: {matchLabels: {istio: ingressgateway}}\n  action: DENY\n  rules:\n  - from: [{source: {remoteIpBlocks: [6.6.6.0/24]}}]\n  - to: [{operation: {paths: [/admin*]}}]\n  - to: [{operation: {hosts: [secret.test]}}]\n";
        let settings = MeshSettings { trusted_proxies: 1, ..MeshSettings::default() };
        let edge = Edge::with(compiled(&text, settings), &[80]).await;
        let cases: [(&str, &str, &str, u16); 6] = [
            ("a.test", "/x", "1.2.3.4", 200),
            ("a.test", "/x", "1.2.3.4, 6.6.6.7", 403),
            ("a.test", "/x", "6.6.6.7, 1.2.3.4", 200),
            ("a.test", "/admin/x", "1.2.3.4", 403),
            ("a.test", "/x/../admin", "1.2.3.4", 403),
            ("secret.test", "/x", "1.2.3.4", 403),
        ];
        for (host, path, from, expected) in cases {
            let answer = ask(kind, edge.at(80), host, path, &[("x-forwarded-for", from)]).await;
            let as_expected = if expected == 200 { well(kind, &answer) } else { answer.is(kind, expected) };
            assert!(as_expected, "{kind:?} {host}{path} from {from}: {answer:?}");
        }
    }
}

/// GW1, GW3, TE1: with PASSTHROUGH the bytes go where the name asked for leads, TLS ends at the server itself; of plain TCP the port alone
/// decides, by weight.
#[tokio::test]
async fn bytes_go_by_the_name_asked_for() {
    let authority = Authority::new("outside");
    let (one, two) = (authority.issue(&["one.test"]), authority.issue(&["two.test", "x.two.test"]));
    for kind in Kind::ALL {
        let (a, b) = (Upstream::start("a").await, Upstream::start("b").await);
        // Each is a gateway that ends TLS for its own name, beside the one that hands it on.
        let behind = services(kind, &[&a, &b])
            + &secret("one", Some(&one), None)
            + &secret("two", Some(&two), None)
            + &server("one", 443, "HTTPS", "[one.test]", "{mode: SIMPLE, credentialName: one}")
            + &server("two", 444, "HTTPS", "['*']", "{mode: SIMPLE, credentialName: two}")
            + &bound("one", "one", "[one.test]", "a")
            + &bound("two", "two", "['*']", "b");
        let behind = Edge::start(&behind, &[443, 444]).await;
        let entry = |name: &str, port: u16| {
            let at = behind.at(port);
            format!(
                "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}}}\nspec:\n  hosts: [{name}.internal]\n  ports: [{{number: 443, name: tls, protocol: TLS}}]\n  resolution: STATIC\n  endpoints: [{{address: {}, ports: {{tls: {}}}}}]\n",
                at.ip(),
                at.port()
            )
        };
        let front = entry("one", 443)
            + &entry("two", 444)
            + &server("front", 443, "TLS", "['*.test']", "{mode: PASSTHROUGH}")
            + &server("raw", 9000, "TCP", "['*']", "")
            + "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: front}\nspec:\n  hosts: ['*.test']\n  gateways: [front, raw]\n  tls:\n  - match: [{port: 443, sniHosts: [one.test]}]\n    route: [{destination: {host: one.internal}}]\n  - match: [{port: 443, sniHosts: ['*.two.test', two.test]}]\n    route: [{destination: {host: two.internal, port: {number: 443}}, weight: 100}]\n  tcp:\n  - match: [{port: 9000}]\n    route: [{destination: {host: one.internal}, weight: 100}, {destination: {host: two.internal}, weight: 0}]\n";
        let edge = Edge::start(&front, &[443, 9000]).await;
        let visitor = Visitor::trusting(&authority);
        for (name, expected) in [("one.test", "a"), ("two.test", "b"), ("x.two.test", "b")] {
            let answer = visitor.ask(kind, edge.at(443), name, "/x").await.unwrap();
            assert_eq!(answer.header("x-upstream"), expected, "{kind:?} {name}");
        }
        assert!(visitor.ask(kind, edge.at(443), "three.test", "/").await.is_err(), "{kind:?}: nobody has the name");
        // What is no TLS at all is cut off there, and handed on where the port alone counts.
        let mut plain = tokio::net::TcpStream::connect(edge.at(443)).await.unwrap();
        plain.write_all(b"GET / HTTP/1.1\r\nhost: one.test\r\n\r\n").await.unwrap();
        let mut rest = Vec::new();
        let _ = plain.read_to_end(&mut rest).await;
        assert_eq!(rest, b"");
        let answer = visitor.ask(kind, edge.at(9000), "one.test", "/x").await.unwrap();
        assert_eq!(answer.header("x-upstream"), "a", "{kind:?}");
        told_of_bytes("one.internal").await;
    }
}

/// Waits until Istio's metrics of TCP tell of a service: connections opened and closed, and bytes both ways.
async fn told_of_bytes(host: &str) {
    let value = |name: &str| {
        let text = mesh_tower::telemetry::render().unwrap();
        let (name, host) = (format!("{name}{{reporter=\"source\""), format!("destination_service=\"{host}\""));
        let of =
            |line: &&str| line.starts_with(&name) && line.contains(&host) && line.contains("request_protocol=\"tcp\"");
        let lines = text.lines().filter(of);
        assert!(lines.clone().all(|line| !line.contains("response_code") && line.matches("=\"").count() == 23));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum::<f64>()
    };
    for _ in 0..2_000 {
        let [opened, closed] = ["opened", "closed"].map(|what| value(&format!("istio_tcp_connections_{what}_total")));
        let [sent, received] = ["sent", "received"].map(|what| value(&format!("istio_tcp_{what}_bytes_total")));
        if opened > 0.0 && opened == closed && sent > 0.0 && received > 0.0 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("no metrics of TCP in\n{}", mesh_tower::telemetry::render().unwrap());
}

/// A listener of the Gateway API's `Gateway`.
fn api_gateway(listener: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: edge, annotations: {{gateway.istio.io/service-account: edge}}}}\nspec:\n  gatewayClassName: mesh\n  listeners:\n  - {listener}\n"
    )
}

/// GW2: HTTPRoutes and GRPCRoutes at a listener over TLS, the closer match first; a certificate of another namespace only where that
/// lets it be named.
#[tokio::test]
async fn routes_of_the_gateway_api_hold_over_tls() {
    let authority = Authority::new("outside");
    for kind in Kind::ALL {
        let (a, b) = (Upstream::start("a").await, Upstream::start("b").await);
        let (name, other) = match kind.is_grpc() {
            true => ("GRPCRoute", "{method: {service: x.Y}}"),
            false => ("HTTPRoute", "{path: {value: /x.Y}}"),
        };
        let route = format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: {name}\nmetadata: {{name: r}}\nspec:\n  parentRefs: [{{name: edge, sectionName: https}}]\n  hostnames: [a.test]\n  rules:\n  - backendRefs: [{{name: a, port: 80}}]\n  - matches: [{other}]\n    backendRefs: [{{name: b, port: 80}}]\n"
        );
        let of_other = secret("cert", Some(&authority.issue(&["a.test"])), None)
            .replace("metadata: {name: cert}", "metadata: {namespace: certs, name: cert}");
        let listener = "{name: https, port: 443, protocol: HTTPS, hostname: '*.test', tls: {certificateRefs: [{namespace: certs, name: cert}]}}";
        let text = services(kind, &[&a, &b]) + &api_gateway(listener) + &route + &of_other;
        let grant = "---\napiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {namespace: certs, name: g}\nspec:\n  from: [{group: gateway.networking.k8s.io, kind: Gateway, namespace: default}]\n  to: [{group: '', kind: Secret, name: cert}]\n";
        let edge = Edge::start(&text, &[443]).await;
        let visitor = Visitor::trusting(&authority);
        assert!(visitor.ask(kind, edge.at(443), "a.test", "/z").await.is_err(), "{kind:?}: nobody lets it be named");
        edge.told(&(text + grant));
        for (path, expected) in [("/z", "a"), ("/x.Y/Z", "b")] {
            let answer = visitor.ask(kind, edge.at(443), "a.test", path).await.unwrap();
            assert_eq!(answer.header("x-upstream"), expected, "{kind:?} {path}: {answer:?}");
        }
        let nobody = visitor.ask_host(kind, edge.at(443), "a.test", "b.test", "/", &[]).await.unwrap();
        assert!(nowhere(kind, &nobody), "{kind:?}: {nobody:?}");
    }
}

/// GW2, GW3: TLSRoutes hand on by the name asked for, TCPRoutes by the port; a service of another namespace only where that lets it be
/// named.
#[tokio::test]
async fn connections_go_by_routes_of_the_gateway_api() {
    let authority = Authority::new("outside");
    for kind in Kind::ALL {
        let a = Upstream::start("a").await;
        let behind = services(kind, &[&a])
            + &secret("one", Some(&authority.issue(&["one.test"])), None)
            + &server("one", 443, "HTTPS", "[one.test]", "{mode: SIMPLE, credentialName: one}")
            + &bound("one", "one", "[one.test]", "a");
        let behind = Edge::start(&behind, &[443]).await;
        let at = behind.at(443);
        let service = |namespace: &str| {
            format!(
                "---\napiVersion: v1\nkind: Service\nmetadata: {{namespace: {namespace}, name: tls}}\nspec: {{ports: [{{name: tls, port: 443}}], selector: {{app: tls}}}}\n---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{namespace: {namespace}, name: tls}}\nspec: {{address: {}, ports: {{tls: {}}}, labels: {{app: tls}}}}\n",
                at.ip(),
                at.port()
            )
        };
        let listeners = "{name: tls, port: 443, protocol: TLS, tls: {mode: Passthrough}}\n  - {name: tcp, port: 9000, protocol: TCP}\n  - {name: shut, port: 9001, protocol: TCP}";
        let route = |kind: &str, section: &str, rest: &str, namespace: &str| {
            format!(
                "---\napiVersion: gateway.networking.k8s.io/v1alpha2\nkind: {kind}\nmetadata: {{name: {section}}}\nspec:\n  parentRefs: [{{name: edge, sectionName: {section}}}]\n{rest}  rules: [{{backendRefs: [{{namespace: {namespace}, name: tls, port: 443}}]}}]\n"
            )
        };
        let text = service("default")
            + &service("other")
            + &api_gateway(listeners)
            + &route("TLSRoute", "tls", "  hostnames: [one.test]\n", "default")
            + &route("TCPRoute", "tcp", "", "default")
            + &route("TCPRoute", "shut", "", "other");
        let edge = Edge::start(&text, &[443, 9000, 9001]).await;
        let visitor = Visitor::trusting(&authority);
        for (port, name, expected) in
            [(443, "one.test", true), (443, "two.test", false), (9000, "one.test", true), (9001, "one.test", false)]
        {
            let answer = visitor.ask(kind, edge.at(port), name, "/x").await;
            assert_eq!(answer.is_ok_and(|answer| well(kind, &answer)), expected, "{kind:?} {port} {name}");
        }
    }
}
