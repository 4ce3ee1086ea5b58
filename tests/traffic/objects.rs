//! What people write, from YAML to what arrives: routes of the Gateway API, virtual services that delegate, and what a sidecar lets see.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use mesh_control::{
    compile::{MeshSettings, NodeInfo, World, compile},
    registry::Registry,
    store::{SourceFile, Store},
};
use mesh_tower::{
    Mesh,
    config::{Action, Config, Locality, RouteMatch},
    dns::{Resolve, Resolving},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::harness::{Kind, Program, Reply, Upstream, cluster, config, route, to};

/// Services of these upstreams, by their names, on port 80; and `app`, which is all of them.
pub(crate) fn services(kind: Kind, upstreams: &[&Upstream]) -> String {
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
pub(crate) fn written(text: String) -> Config {
    written_for(text, NodeInfo::default())
}

/// That of this one; of namespace `default` unless it says.
pub(crate) fn written_for(text: String, node: NodeInfo) -> Config {
    let mut store = Store::open(None).unwrap();
    let file = SourceFile { name: "f.yaml".to_owned(), text };
    store.apply(&[file], 1).unwrap_or_else(|error| panic!("{error:?}"));
    let namespace = if node.namespace.is_empty() { "default".to_owned() } else { node.namespace };
    let node = NodeInfo { namespace, ..node };
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

/// `app` at these upstreams, each with a place and a version.
fn placed(kind: Kind, upstreams: &[(&Upstream, &str, &str)]) -> String {
    let protocol = if kind == Kind::Http1 { "http" } else { "grpc" };
    let mut text = format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: app}}\nspec: {{ports: [{{name: {protocol}, port: 80}}], selector: {{app: app}}}}\n"
    );
    for (upstream, place, version) in upstreams {
        text += &format!(
            "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: {}}}\nspec: {{address: {}, ports: {{{protocol}: {}}}, locality: {place}, labels: {{app: app, version: {version}}}}}\n",
            upstream.name,
            upstream.address.ip(),
            upstream.address.port()
        );
    }
    text
}

/// Who answers six requests with these headers, each once.
async fn answered_by(program: &Program, headers: &[(&str, &str)]) -> Vec<String> {
    let mut names = Vec::new();
    for _ in 0..6 {
        names.push(program.get_with("/a.B/C", headers).await.header("x-upstream"));
    }
    names.sort();
    names.dedup();
    names
}

/// LO6: what is near is used while it is well, then the next nearest of its region, then the region that the rule names, then the rest;
/// shares that a rule gives to places are kept.
#[tokio::test]
async fn requests_fail_over_to_the_next_nearest() {
    for kind in Kind::ALL {
        let ill = Arc::new(AtomicUsize::new(0));
        let upstream = |name: &'static str, n: usize| {
            let ill = Arc::clone(&ill);
            Upstream::scripted(name, move |_, _| if n < ill.load(Relaxed) { Reply::unavailable() } else { Reply::ok() })
        };
        let (near, beside) = (upstream("near", 0).await, upstream("beside", 1).await);
        let (named, far) = (upstream("named", 2).await, upstream("far", 3).await);
        let services = placed(
            kind,
            &[(&far, "asia/y", "v1"), (&named, "us/x", "v1"), (&beside, "eu/b", "v1"), (&near, "eu/a", "v1")],
        );
        let rule = |settings: &str| {
            format!(
                "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: app}}\nspec:\n  host: app\n  trafficPolicy:\n    loadBalancer: {{localityLbSetting: {settings}}}\n    outlierDetection: {{consecutive5xxErrors: 1, interval: 60s, baseEjectionTime: 60s, maxEjectionPercent: 100}}\n"
            )
        };
        let here = Locality { region: "eu".into(), zone: "a".into(), ..Locality::default() };
        let node = NodeInfo { locality: here, ..NodeInfo::default() };
        let failover = services.clone() + &rule("{failover: [{from: eu, to: us}]}");
        let program = Program::new(kind, written_for(failover, node.clone())).await;
        for (n, expected) in ["near", "beside", "named", "far"].into_iter().enumerate() {
            ill.store(n, Relaxed);
            // The one that has become ill is noticed by a request.
            for _ in 0..3 {
                program.get("/a.B/C").await;
            }
            assert_eq!(answered_by(&program, &[]).await, [expected], "{kind:?}");
        }
        ill.store(0, Relaxed);
        let shares = services + &rule("{distribute: [{from: 'eu/*', to: {'us/*': 100}}]}");
        let program = Program::new(kind, written_for(shares, node)).await;
        assert_eq!(answered_by(&program, &[]).await, ["named"], "{kind:?}");
    }
}

/// RA7: a subset is its own endpoints, and nobody else's requests.
#[tokio::test]
async fn subsets_are_chosen_by_rules() {
    for kind in Kind::ALL {
        let (a, b, c) = (Upstream::start("a").await, Upstream::start("b").await, Upstream::start("c").await);
        let services = placed(kind, &[(&a, "eu/a", "v1"), (&b, "eu/a", "v1"), (&c, "eu/a", "v2")]);
        let rules = "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: app}\nspec:\n  host: app\n  trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}\n  subsets:\n  - {name: v1, labels: {version: v1}}\n  - {name: v2, labels: {version: v2}}\n  - {name: v3, labels: {version: v3}}\n---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: app}\nspec:\n  hosts: [app]\n  http:\n  - match: [{headers: {end-user: {exact: jason}}}]\n    route: [{destination: {host: app, subset: v2}}]\n  - match: [{headers: {end-user: {exact: nobody}}}]\n    route: [{destination: {host: app, subset: v3}}]\n  - route: [{destination: {host: app, subset: v1}}]\n";
        let program = Program::new(kind, written(services + rules)).await;
        assert_eq!(answered_by(&program, &[]).await, ["a", "b"], "{kind:?}");
        assert_eq!(answered_by(&program, &[("end-user", "jason")]).await, ["c"], "{kind:?}");
        let lost = program.get_with("/a.B/C", &[("end-user", "nobody")]).await;
        assert!(lost.is(kind, 503) && lost.flags == "UH", "{kind:?}: {lost:?}");
    }
}

/// RM20: rules for callers with certain labels, or of certain namespaces, are for these alone.
#[tokio::test]
async fn rules_may_be_for_some_callers() {
    for kind in Kind::ALL {
        let (a, b) = (Upstream::start("a").await, Upstream::start("b").await);
        let rules = "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: app}\nspec:\n  hosts: [app]\n  http:\n  - match: [{sourceLabels: {app: tester}}, {sourceNamespace: elsewhere}]\n    route: [{destination: {host: b}}]\n  - route: [{destination: {host: a}}]\n";
        let text = services(kind, &[&a, &b]) + rules;
        let cases = [
            ("default", "tester", "b"),
            ("default", "other", "a"),
            ("elsewhere", "other", "b"),
            ("third", "other", "a"),
        ];
        for (namespace, label, expected) in cases {
            let labels = [("app".to_owned(), label.to_owned())].into();
            let node = NodeInfo { namespace: namespace.to_owned(), labels, ..NodeInfo::default() };
            let program = Program::new(kind, written_for(text.clone(), node)).await;
            let request = http::Request::get("http://app.default.svc.cluster.local/a.B/C");
            let answer = program.send(request, "").await;
            assert_eq!(answer.header("x-upstream"), expected, "{kind:?} {namespace} {label}: {answer:?}");
        }
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

/// NR11, GW4, GW6: services are reached as their resolution says, hosts that nobody wrote down as they are, or not at all.
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

/// XD38: a configuration may be given in code, by the control plane that is part of this project, as above, or in a file that is
/// followed as it changes: one that cannot be used changes nothing, is told on the admin port, and no file at all is no mesh.
#[tokio::test]
async fn a_file_may_be_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    let missing = Mesh::builder().config_file(&path).build().await.unwrap_err().to_string();
    assert!(missing.contains("config.json is not used: it cannot be read"), "{missing}");
    let write = |text: &str| {
        let beside = folder.path().join("new");
        std::fs::write(&beside, text).unwrap();
        std::fs::rename(beside, &path).unwrap();
    };
    for kind in Kind::ALL {
        let (a, b) = (Upstream::start("a").await, Upstream::start("b").await);
        let leading = |upstream: &Upstream| {
            let routes = vec![route(RouteMatch::default(), Action::Forward(to("app")))];
            serde_json::to_string(&config([cluster(kind, "app", &[upstream])], routes)).unwrap()
        };
        write(&leading(&a));
        let builder = Mesh::builder().config_file(&path).admin_addr(([127, 0, 0, 1], 0).into());
        let program = Program::over(kind, builder.build().await.unwrap());
        assert_eq!(answered_by(&program, &[]).await, ["a"], "{kind:?}");
        write(&leading(&b));
        until(async || answered_by(&program, &[]).await == ["b"]).await;
        write("{\"clusters\": 7}");
        until(async || page(&program, "/config_file").await.contains("is not used: invalid type")).await;
        assert_eq!(answered_by(&program, &[]).await, ["b"], "{kind:?}");
        write(&leading(&a));
        until(async || answered_by(&program, &[]).await == ["a"]).await;
        assert!(!page(&program, "/config_file").await.contains("is not used"), "{kind:?}");
    }
}

async fn until(mut what: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !what().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("in time");
}

/// A page of its admin port.
async fn page(program: &Program, path: &str) -> String {
    let mut stream = TcpStream::connect(program.mesh.admin_addr().unwrap()).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}
