//! Out of the mesh: services that are written down, TLS begun for programs that speak plaintext, a gateway on the way, and what of
//! the mesh is seen at all.

use std::{collections::BTreeMap, net::SocketAddr, path::Path};

use mesh_control::compile::MeshSettings;
use mesh_tower::{Mesh, tls::Identity};
use tempfile::TempDir;

use crate::{
    harness::{Kind, Program, Upstream},
    objects::{services, written},
    outside::{Authority, Edge, Pair, Visitor, bound, compiled, secret, server, well},
};

/// A `ServiceEntry` for what listens there.
fn entry(kind: Kind, host: &str, at: SocketAddr) -> String {
    let protocol = if kind == Kind::Http1 { "HTTP" } else { "GRPC" };
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {host}}}\nspec:\n  hosts: [{host}]\n  ports: [{{number: 80, name: p, protocol: {protocol}}}]\n  resolution: STATIC\n  endpoints: [{{address: {}, ports: {{p: {}}}}}]\n",
        at.ip(),
        at.port()
    )
}

fn tls_rule(host: &str, tls: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {host}}}\nspec:\n  host: {host}\n  trafficPolicy: {{tls: {tls}}}\n"
    )
}

fn file(dir: &TempDir, name: &str, text: &str) -> String {
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    Path::to_str(&path).unwrap().to_owned()
}

/// GW4: a service outside is called over TLS as the rule for its host says, with the program speaking plaintext: its certificate is
/// judged by the rule's roots and names, a certificate of our own is shown where one is demanded.
#[tokio::test]
async fn programs_speak_plaintext_and_the_mesh_speaks_tls() {
    let (authority, elsewhere) = (Authority::new("outside"), Authority::new("elsewhere"));
    let dir = tempfile::tempdir().unwrap();
    let Pair { chain, key } = authority.issue(&["client.test"]);
    let (roots, wrong) = (file(&dir, "roots.pem", &authority.pem), file(&dir, "wrong.pem", &elsewhere.pem));
    let (chain, key) = (file(&dir, "chain.pem", &chain), file(&dir, "key.pem", &key));
    for kind in Kind::ALL {
        let a = Upstream::start("a").await;
        let cert = authority.issue(&["api.test", "must.test"]);
        let outside = services(kind, &[&a])
            + &secret("cert", Some(&cert), Some(&authority.pem))
            + &server("api", 443, "HTTPS", "[api.test]", "{mode: SIMPLE, credentialName: cert}")
            + &server("must", 443, "HTTPS", "[must.test]", "{mode: MUTUAL, credentialName: cert}")
            + &["api", "must"].map(|name| bound(name, name, "['*.test']", "a")).concat();
        let outside = Edge::start(&outside, &[443]).await;
        let ours = format!("clientCertificate: {chain}, privateKey: {key}");
        let cases = [
            ("api.test", format!("{{mode: SIMPLE, caCertificates: {roots}, sni: api.test}}"), true),
            (
                "api.test",
                format!("{{mode: SIMPLE, caCertificates: {roots}, sni: api.test, subjectAltNames: [api.test]}}"),
                true,
            ),
            (
                "api.test",
                format!("{{mode: SIMPLE, caCertificates: {roots}, sni: api.test, subjectAltNames: [other.test]}}"),
                false,
            ),
            ("api.test", format!("{{mode: SIMPLE, caCertificates: {wrong}, sni: api.test}}"), false),
            ("api.test", "{mode: DISABLE}".to_owned(), false),
            ("must.test", format!("{{mode: SIMPLE, caCertificates: {roots}, sni: must.test}}"), false),
            ("must.test", format!("{{mode: MUTUAL, caCertificates: {roots}, sni: must.test, {ours}}}"), true),
        ];
        for (host, tls, expected) in cases {
            let before = a.count();
            let text = entry(kind, host, outside.at(443)) + &tls_rule(host, &tls);
            let program = Program::new(kind, written(text)).await;
            let answer = program.send(http::Request::get(format!("http://{host}/x")), "").await;
            assert_eq!(well(kind, &answer), expected, "{kind:?} {host} {tls}: {answer:?}");
            assert_eq!(a.count() > before, expected, "{kind:?} {host} {tls}");
        }
    }
}

fn identity(authority: &Authority, account: &str) -> Identity {
    let Pair { chain, key } = authority.member(&format!("spiffe://cluster.local/ns/default/sa/{account}"));
    Identity::from_pem(&chain, &key, &authority.pem).unwrap()
}

/// GW5: a program's request goes over the mesh's mutual TLS to a gateway, which lets out only whom policies let out, and from there
/// over TLS to the world.
#[tokio::test]
async fn a_gateway_stands_on_the_way_out() {
    let (world, mesh) = (Authority::new("outside"), Authority::new("mesh"));
    let dir = tempfile::tempdir().unwrap();
    let roots = file(&dir, "roots.pem", &world.pem);
    for kind in Kind::ALL {
        let a = Upstream::start("a").await;
        let outside = services(kind, &[&a])
            + &secret("cert", Some(&world.issue(&["api.test"])), None)
            + &server("api", 443, "HTTPS", "[api.test]", "{mode: SIMPLE, credentialName: cert}")
            + &bound("api", "api", "[api.test]", "a");
        let outside = Edge::start(&outside, &[443]).await;
        let text = |egress: Option<SocketAddr>| {
            // Where it listens is known when it does; it does not depend on that itself.
            let port = egress.map_or(1, |at| at.port());
            entry(kind, "api.test", outside.at(443))
                + &tls_rule("api.test", &format!("{{mode: SIMPLE, caCertificates: {roots}, sni: api.test}}"))
                + "---\napiVersion: v1\nkind: Service\nmetadata: {name: egress}\nspec: {ports: [{name: https, port: 443}], selector: {istio: egressgateway}}\n"
                + &format!(
                    "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: egress}}\nspec: {{address: 127.0.0.1, ports: {{https: {port}}}, labels: {{istio: egressgateway}}, serviceAccount: egress}}\n"
                )
                + &tls_rule("egress", "{mode: ISTIO_MUTUAL, sni: api.test}")
                + &server("out", 443, "HTTPS", "[api.test]", "{mode: ISTIO_MUTUAL}")
                + "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: api}\nspec:\n  hosts: [api.test]\n  gateways: [mesh, out]\n  http:\n  - match: [{gateways: [mesh], port: 80}]\n    route: [{destination: {host: egress, port: {number: 443}}}]\n  - match: [{gateways: [out], port: 443}]\n    headers: {request: {set: {x-by: egress}}}\n    route: [{destination: {host: api.test, port: {number: 80}}}]\n"
                + "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: out}\nspec:\n  selector: {matchLabels: {istio: ingressgateway}}\n  rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/client]}}]}]\n"
        };
        let config = compiled(&text(None), MeshSettings::default());
        let egress = Mesh::builder().config(config).identity(identity(&mesh, "egress")).build().await.unwrap();
        let egress = Edge::over(egress, &[443]).await;
        let config = written(text(Some(egress.at(443))));
        for (account, expected) in [("client", 200), ("stranger", 403)] {
            let before = a.count();
            let program =
                Mesh::builder().config(config.clone()).identity(identity(&mesh, account)).build().await.unwrap();
            let program = Program::over(kind, program);
            let answer = program.send(http::Request::get("http://api.test/x"), "").await;
            let as_expected = if expected == 200 { well(kind, &answer) } else { answer.is(kind, expected) };
            assert!(as_expected, "{kind:?} {account}: {answer:?}");
            assert_eq!(a.count() > before, expected == 200, "{kind:?} {account}");
        }
        assert_eq!(a.last().header("x-by"), "egress", "{kind:?}");
        // Who has no certificate of the mesh is not let out.
        assert!(Visitor::trusting(&mesh).ask(kind, egress.at(443), "api.test", "/").await.is_err());
    }
}

/// GW7: a service is seen by the namespaces it is exported to, and where a Sidecar names hosts, by no other name than those.
#[tokio::test]
async fn what_is_not_exported_is_not_seen() {
    for kind in Kind::ALL {
        let a = Upstream::start("a").await;
        let exported = |name: &str, to: &str| {
            entry(kind, name, a.address)
                .replace("metadata: {name: ", "metadata: {namespace: other, name: ")
                .replace("spec:\n", &format!("spec:\n  exportTo: {to}\n"))
        };
        let text = exported("own.test", "['.']")
            + &exported("all.test", "['*']")
            + &exported("named.test", "[default]")
            + &entry(kind, "near.test", a.address);
        let sidecar = |hosts: &str| {
            format!(
                "---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{name: default}}\nspec:\n  egress: [{{hosts: {hosts}}}]\n  outboundTrafficPolicy: {{mode: REGISTRY_ONLY}}\n"
            )
        };
        let cases = [
            ("['*/*']", [false, true, true, true]),
            ("['./*']", [false, false, false, true]),
            ("['other/named.test', './*']", [false, false, true, true]),
        ];
        for (hosts, seen) in cases {
            let program = Program::new(kind, written(text.clone() + &sidecar(hosts))).await;
            for (host, seen) in ["own.test", "all.test", "named.test", "near.test"].into_iter().zip(seen) {
                let answer = program.send(http::Request::get(format!("http://{host}/x")), "").await;
                let as_expected = if seen { well(kind, &answer) } else { answer.is(kind, 502) };
                assert!(as_expected, "{kind:?} {hosts} {host}: {answer:?}");
            }
        }
    }
}

/// GW9: what runs on a machine of its own is written down with its labels, its port by name, its weight and its account, and is an
/// endpoint like any other.
#[tokio::test]
async fn what_is_written_down_is_an_endpoint() {
    for kind in Kind::ALL {
        let (a, b) = (Upstream::start("a").await, Upstream::start("b").await);
        let protocol = if kind == Kind::Http1 { "HTTP" } else { "GRPC" };
        let machine = |upstream: &Upstream, weight: u32, version: &str| {
            format!(
                "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: {}}}\nspec: {{address: {}, ports: {{p: {}}}, weight: {weight}, labels: {{app: vm, version: {version}}}, locality: eu/a/1}}\n",
                upstream.name,
                upstream.address.ip(),
                upstream.address.port()
            )
        };
        let text = format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: vm}}\nspec:\n  hosts: [vm.test]\n  location: MESH_INTERNAL\n  ports: [{{number: 80, name: p, protocol: {protocol}}}]\n  resolution: STATIC\n  workloadSelector: {{labels: {{app: vm}}}}\n---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: vm}}\nspec:\n  host: vm.test\n  trafficPolicy: {{loadBalancer: {{simple: ROUND_ROBIN}}}}\n  subsets: [{{name: v2, labels: {{version: v2}}}}]\n---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: vm}}\nspec:\n  hosts: [vm.test]\n  http:\n  - match: [{{uri: {{prefix: /two}}}}]\n    route: [{{destination: {{host: vm.test, subset: v2}}}}]\n  - route: [{{destination: {{host: vm.test}}}}]\n"
        ) + &machine(&a, 3, "v1")
            + &machine(&b, 1, "v2");
        let program = Program::new(kind, written(text)).await;
        let mut count: BTreeMap<String, u32> = BTreeMap::new();
        for _ in 0..40 {
            let answer = program.send(http::Request::get("http://vm.test/any"), "").await;
            *count.entry(answer.header("x-upstream")).or_default() += 1;
        }
        // Round robin by weight: exact.
        assert_eq!(count, BTreeMap::from([("a".to_owned(), 30), ("b".to_owned(), 10)]), "{kind:?}");
        let answer = program.send(http::Request::get("http://vm.test/two"), "").await;
        assert_eq!(answer.header("x-upstream"), "b", "{kind:?}");
    }
}
