//! What people write, from YAML to what arrives: routes of the Gateway API, virtual services that delegate, and what a sidecar lets see.

use std::net::SocketAddr;

use mesh_control::{
    compile::{MeshSettings, NodeInfo, World, compile},
    registry::Registry,
    store::{SourceFile, Store},
};
use mesh_tower::{
    Mesh,
    config::Config,
    dns::{Resolve, Resolving},
};

use crate::harness::{Kind, Program, Upstream};

/// Services of these upstreams, by their names, on port 80; and `app`, which is all of them.
fn services(kind: Kind, upstreams: &[&Upstream]) -> String {
    let protocol = if kind == Kind::Http1 { "http" } else { "grpc" };
    let service = |name: &str, label: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{name: {protocol}, port: 80}}], selector: {{{label}}}}}\n"
        )
    };
    let mut text = service("app", "all: 'yes'");
    for upstream in upstreams {
        let (name, address) = (upstream.name, upstream.address);
        text += &service(name, &format!("app: {name}"));
        text += &format!(
            "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: {name}}}\nspec: {{address: {}, ports: {{{protocol}: {}}}, labels: {{app: {name}, all: 'yes'}}}}\n",
            address.ip(),
            address.port()
        );
    }
    text
}

/// The configuration of a workload of namespace `default`.
fn written(text: String) -> Config {
    let mut store = Store::open(None).unwrap();
    let file = SourceFile { name: "f.yaml".to_owned(), text };
    store.apply(&[file], 1).unwrap_or_else(|error| panic!("{error:?}"));
    let node = NodeInfo { namespace: "default".to_owned(), ..NodeInfo::default() };
    compile(&World::new(store.objects(), &Registry::default(), MeshSettings::default()), &node)
}

/// XD40: routes that join a service move its requests: the closer match counts before the one written first, headers change, shares
/// are kept, and what goes to a service that is not there is answered with 500.
#[tokio::test]
async fn routes_of_the_gateway_api_move_requests() {
    for kind in Kind::ALL {
        let (a, b) = (Upstream::start("a").await, Upstream::start("b").await);
        let route = if kind.is_grpc() {
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {name: r}\nspec:\n  parentRefs: [{group: '', kind: Service, name: app}]\n  rules:\n  - backendRefs: [{name: a, port: 80}]\n  - matches: [{method: {service: x.Y, method: Z}}]\n    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-By, value: route}]}}]\n    backendRefs: [{name: b, port: 80}]\n  - matches: [{method: {service: lost.Service}}]\n    backendRefs: [{name: nobody, port: 80}]\n"
        } else {
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r}\nspec:\n  parentRefs: [{group: '', kind: Service, name: app}]\n  rules:\n  - backendRefs: [{name: a, port: 80}]\n  - matches: [{path: {value: /x.Y}}]\n    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-By, value: route}]}}]\n    backendRefs: [{name: b, port: 80}]\n  - matches: [{path: {value: /lost.Service}}]\n    backendRefs: [{name: nobody, port: 80}]\n"
        };
        let program = Program::new(kind, written(services(kind, &[&a, &b]) + route)).await;
        let to = |answer: crate::harness::Answer| answer.header("x-upstream");
        assert_eq!(to(program.get("/other.Service/Z").await), "a", "{kind:?}");
        assert_eq!(to(program.get("/x.Y/Z").await), "b", "{kind:?}");
        assert_eq!(b.last().header("x-by"), "route", "{kind:?}");
        assert_eq!(to(program.get("/x.YY/Z").await), "a", "{kind:?}: a part of a segment is none");
        let lost = program.get("/lost.Service/Z").await;
        assert!(lost.is(kind, 500), "{kind:?}: {lost:?}");
    }
}

/// XD39: a rule that delegates goes on with the rules of the other object; a sidecar's hosts are all that is known.
#[tokio::test]
async fn delegates_and_sidecars_hold_for_requests() {
    for kind in Kind::ALL {
        let (a, b, c) = (Upstream::start("a").await, Upstream::start("b").await, Upstream::start("c").await);
        let rules = "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: app}\nspec:\n  hosts: [app]\n  http:\n  - match: [{uri: {prefix: /in}}]\n    delegate: {name: inner}\n  - route: [{destination: {host: a}}]\n---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: inner}\nspec:\n  http:\n  - match: [{uri: {prefix: /inner}}]\n    headers: {request: {set: {x-by: delegate}}}\n    route: [{destination: {host: b}}]\n---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: default}\nspec:\n  egress: [{hosts: ['./app.default.svc.cluster.local']}]\n  outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n";
        let program = Program::new(kind, written(services(kind, &[&a, &b, &c]) + rules)).await;
        assert_eq!(program.get("/inner/x").await.header("x-upstream"), "b", "{kind:?}");
        assert_eq!(b.last().header("x-by"), "delegate");
        assert_eq!(program.get("/in/x").await.header("x-upstream"), "a", "{kind:?}");
        // What the rules lead to is known with them; of the third nobody speaks.
        let hidden = program.send(http::Request::get("http://c/x"), "").await;
        assert!(hidden.is(kind, 502), "{kind:?}: {hidden:?}");
    }
}

/// Every name is at this address.
struct Everywhere(SocketAddr);

impl Resolve for Everywhere {
    fn resolve<'a>(&'a self, _: &'a str, _: u16) -> Resolving<'a> {
        let address = self.0;
        Box::pin(async move { Ok(vec![address]) })
    }
}

/// NR11: services are reached as their resolution says, hosts that nobody wrote down as they are, or not at all.
#[tokio::test]
async fn hosts_are_found_as_written_down() {
    for kind in Kind::ALL {
        let (known, named) = (Upstream::start("known").await, Upstream::start("named").await);
        let protocol = if kind == Kind::Http1 { "HTTP" } else { "GRPC" };
        let entry = |host: &str, rest: &str| {
            format!(
                "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {host}}}\nspec:\n  hosts: [{host}.test]\n  ports: [{{number: 80, name: p, protocol: {protocol}}}]\n{rest}"
            )
        };
        let (ip, port) = (known.address.ip(), known.address.port());
        let written_down =
            entry("static", &format!("  resolution: STATIC\n  endpoints: [{{address: {ip}, ports: {{p: {port}}}}}]\n"))
                + &entry("dns", "  resolution: DNS\n")
                + &entry("one", "  resolution: DNS_ROUND_ROBIN\n")
                + &entry("none", "  resolution: NONE\n");
        let closed = "---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: default}\nspec:\n  outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n";
        for (text, stranger) in [(written_down.clone(), Some("named")), (written_down + closed, None)] {
            let mesh = Mesh::builder().config(written(text)).resolver(Everywhere(named.address)).build().await.unwrap();
            let program = Program::over(kind, mesh);
            let hosts =
                [("static", Some("known")), ("dns", Some("named")), ("one", Some("named")), ("none", Some("named"))];
            for (host, expected) in hosts.into_iter().chain([("stranger", stranger)]) {
                // A name is resolved when its cluster is first asked for.
                let mut answer = program.send(http::Request::get(format!("http://{host}.test/x")), "").await;
                for _ in 0..200 {
                    if answer.flags != "UH" {
                        break;
                    }
                    tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                    answer = program.send(http::Request::get(format!("http://{host}.test/x")), "").await;
                }
                match expected {
                    Some(name) => assert_eq!(answer.header("x-upstream"), name, "{kind:?} {host}: {answer:?}"),
                    None => assert!(answer.is(kind, 502), "{kind:?} {host}: {answer:?}"),
                }
            }
        }
    }
}
