//! What is encoded and decoded again is what it was.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use mesh_core::config::{
    Cluster, Condition, Config, Guard, HttpSettings, Inbound, PathRewrite, Rbac, RbacAction, RbacPolicy, RbacRules,
    StringMatch,
};
use mesh_xds::{
    ads::TypeUrl,
    translate::{self, Listener, RouteSource, Shape, encode},
};

use crate::rich;

/// All resources decoded, and put together as a client does.
fn decode_all(config: &Config, shape: Shape) -> Config {
    let set = encode(config, shape);
    let mut decoded = Config::default();
    for (name, resource) in set.iter(TypeUrl::Listener) {
        let listener = translate::listener(&resource.body).unwrap();
        assert_eq!((&listener.name, listener.ignored.as_slice()), (name, &[][..]));
        match listener.value {
            Listener::Outbound { port, routes: RouteSource::Rds(name), settings } => {
                if *settings != HttpSettings::default() {
                    decoded.http.insert(port, settings);
                }
                let routes = translate::route(&set.get(TypeUrl::Route, &name).unwrap().body).unwrap();
                assert_eq!((routes.name, routes.ignored.as_slice()), (name, &[][..]));
                decoded.outbound.insert(port, routes.value);
            }
            Listener::Inbound(ports) => decoded.inbound.extend(ports),
            other => panic!("{name}: {other:?}"),
        }
    }
    for (name, resource) in set.iter(TypeUrl::Cluster) {
        let cluster = translate::cluster(&resource.body).unwrap();
        assert_eq!((&cluster.name, cluster.ignored.as_slice()), (name, &[][..]));
        let mut cluster = Arc::unwrap_or_clone(cluster.value);
        if let mesh_core::config::Discovery::Eds(service) = &cluster.discovery {
            let endpoints = translate::endpoints(&set.get(TypeUrl::Endpoint, service).unwrap().body).unwrap();
            assert_eq!((&endpoints.name, endpoints.ignored.as_slice()), (service, &[][..]));
            cluster.endpoints = endpoints.value;
        }
        decoded.clusters.insert(name.clone(), Arc::new(cluster));
    }
    decoded
}

#[test]
fn a_configuration_survives_the_wire() {
    let config = rich::config();
    let decoded = decode_all(&config, Shape::Sidecar);
    // By part, so that a difference is readable.
    assert_eq!(decoded.inbound, config.inbound);
    for (name, cluster) in &config.clusters {
        assert_eq!(&decoded.clusters[name], cluster);
    }
    for (port, table) in &config.outbound {
        for (decoded, wanted) in decoded.outbound[port].virtual_hosts.iter().zip(&table.virtual_hosts) {
            for (decoded, wanted) in decoded.routes.iter().zip(&wanted.routes) {
                assert_eq!(decoded, wanted);
            }
        }
    }
    assert_eq!(decoded, config);
}

#[test]
fn the_same_configuration_gives_the_same_bytes() {
    let config = rich::config();
    assert_eq!(encode(&config, Shape::Sidecar), encode(&config.clone(), Shape::Sidecar));
}

#[test]
fn names_are_istios() {
    let mut config = rich::config();
    config.outbound = BTreeMap::from([(8080, Arc::default())]);
    let names = |shape, kind| encode(&config, shape).iter(kind).map(|(name, _)| name.to_string()).collect::<Vec<_>>();
    assert_eq!(names(Shape::Sidecar, TypeUrl::Listener), ["0.0.0.0_8080", "virtualInbound"]);
    assert_eq!(names(Shape::Sidecar, TypeUrl::Route), ["8080"]);
    assert_eq!(names(Shape::Gateway, TypeUrl::Route), ["http.8080"]);
    assert_eq!(names(Shape::Sidecar, TypeUrl::Endpoint), ["other-name", "own-name"]);
}

#[test]
fn a_port_that_refuses_everything_still_does_after_the_wire() {
    let config = Config {
        inbound: [(80, Arc::new(Inbound { refused: Some("a reason".into()), ..Inbound::default() }))].into(),
        ..Config::default()
    };
    let decoded = decode_all(&config, Shape::Sidecar);
    let [Guard::Rbac(nobody)] = decoded.inbound[&80].guards.as_slice() else { panic!("{:?}", decoded.inbound[&80]) };
    let rules = nobody.rules.as_ref().unwrap();
    assert!(rules.action == RbacAction::Allow && rules.policies.is_empty(), "{rules:?}");
}

#[test]
fn a_whole_new_path_with_a_backslash_is_taken_literally() {
    let mut config = rich::config();
    let table = Arc::make_mut(config.outbound.get_mut(&9080).unwrap());
    let host = Arc::make_mut(&mut table.virtual_hosts[0]);
    host.routes.truncate(1);
    let mesh_core::config::Action::Forward(forward) = &mut host.routes[0].action else { panic!() };
    forward.path_rewrite = Some(PathRewrite::Full(r"/a\1b".into()));
    let decoded = decode_all(&config, Shape::Sidecar);
    let mesh_core::config::Action::Forward(forward) = &decoded.outbound[&9080].virtual_hosts[0].routes[0].action else {
        panic!()
    };
    let Some(PathRewrite::Regex { pattern, substitution }) = &forward.path_rewrite else { panic!() };
    assert_eq!(pattern.rewrite("/old", substitution), r"/a\1b");
}

#[test]
fn a_policy_that_xds_does_not_know_is_told_as_the_nearest() {
    use mesh_core::config::LoadBalancer;
    let mut config = Config::default();
    let cluster = Cluster { name: "a".into(), load_balancer: LoadBalancer::PeakEwma, ..Cluster::default() };
    config.clusters.insert("a".into(), Arc::new(cluster));
    assert_eq!(decode_all(&config, Shape::Sidecar).clusters["a"].load_balancer, LoadBalancer::default());
}

/// GW1, GW3: what a gateway takes in survives the wire as a gateway reads it: chains by name, TLS in each form, certificates by name,
/// bytes, guards; and a workload that is none takes no key.
#[test]
fn a_gateway_survives_the_wire() {
    use mesh_core::config::{
        CallerCertificate, CertificateFiles, Gateway, GatewayCertificate, GatewayChain, GatewayRoots, GatewayTls,
        GatewayTo, KeyPair, MtlsMode, PathNormalization, Target, TlsVersions, WeightedCluster,
    };
    use mesh_xds::{graph::Part, profile};

    let own = rcgen::KeyPair::generate().unwrap();
    let chain = rcgen::CertificateParams::default().self_signed(&own).unwrap().pem();
    let pair = KeyPair { chain, key: mesh_core::config::PrivateKey::new(own.serialize_pem()) };
    let certificate = GatewayCertificate::Named("kubernetes://cert".into(), Some(Arc::new(pair)));
    let alpn = || vec!["h2".to_owned(), "http/1.1".to_owned()];
    let simple = GatewayTls { certificates: vec![certificate], alpn: alpn(), ..GatewayTls::default() };
    let names = vec![StringMatch::Exact { value: "friend.test".to_owned(), ignore_case: false }];
    let files = CertificateFiles { chain: "/c".to_owned(), key: "/k".to_owned() };
    let mutual = GatewayTls {
        certificates: vec![GatewayCertificate::Files(files)],
        callers: CallerCertificate::Optional,
        roots: Some(GatewayRoots::File("/r".to_owned())),
        subject_alt_names: names,
        versions: TlsVersions::Only12,
        ciphers: vec!["ECDHE-RSA-AES128-GCM-SHA256".to_owned()],
        alpn: alpn(),
    };
    let mesh = GatewayTls {
        certificates: vec![GatewayCertificate::Own],
        callers: CallerCertificate::Required,
        roots: Some(GatewayRoots::Mesh),
        ..GatewayTls::default()
    };
    let to = |name: &str, weight| WeightedCluster { cluster: name.into(), weight, ..WeightedCluster::default() };
    let chain = |name: &str, names: &[&str], tls: Option<GatewayTls>, to: GatewayTo| {
        let server_names = names.iter().map(|name| (*name).to_owned()).collect();
        Arc::new(GatewayChain {
            name: name.into(),
            server_names,
            tls: tls.map(Arc::new),
            to,
            ..GatewayChain::default()
        })
    };
    let http = |name: &str| GatewayTo::Http(name.into());
    let gateway = Gateway {
        chains: vec![
            chain("a", &["a.test", "*.a.test"], Some(simple), http("https.a")),
            chain("b", &["b.test"], Some(mutual), http("https.b")),
            chain("c", &["c.test"], Some(mesh), GatewayTo::Bytes(vec![to("x", 1)])),
            Arc::new(GatewayChain {
                rules: vec![Arc::new(connections()), Arc::new(Rbac::default())],
                idle_timeout: Some(Duration::from_secs(7)),
                ..(*chain("d", &["d.test"], None, GatewayTo::Bytes(vec![to("x", 1), to("y", 3)]))).clone()
            }),
        ],
    };
    let rich = rich::config();
    let table = |name: &str| {
        let table = mesh_core::config::RouteTable { name: name.into(), ..(*rich.outbound[&9080]).clone() };
        Target { routes: Arc::new(table), http: rich.http.get(&9080).cloned().unwrap_or_default() }
    };
    let policy = Inbound {
        mtls: MtlsMode::Disable,
        alpn: Vec::new(),
        guards: rich.inbound.values().flat_map(|inbound| inbound.guards.clone()).collect(),
        path: PathNormalization::BASE,
        trusted_hops: Some(1),
        ..Inbound::default()
    };
    let config = Config {
        gateways: [(443, Arc::new(gateway.clone()))].into(),
        targets: [("https.a".into(), table("https.a")), ("https.b".into(), table("https.b"))].into(),
        inbound: [(443, Arc::new(policy.clone()))].into(),
        ..Config::default()
    };
    let set = encode(&config, Shape::Gateway);
    let context = profile::Context { trusted: true, gateway: true, ..profile::Context::default() };
    let listener = &set.get(TypeUrl::Listener, "0.0.0.0_443").unwrap().body;
    let read = translate::read(TypeUrl::Listener, listener, &context).unwrap();
    assert_eq!(read.ignored, Vec::<String>::new());
    let Part::Listener(Listener::Gateway(read)) = read.value else { panic!("{:?}", read.value) };
    assert_eq!((read.port, &read.policy.guards, read.policy.trusted_hops), (443, &policy.guards, Some(1)));
    assert_eq!((read.policy.path, &read.policy.refused), (PathNormalization::BASE, &None));
    for (part, wanted) in read.parts.iter().zip(&gateway.chains) {
        let mut wanted = GatewayChain::clone(wanted);
        if let Some(tls) = &mut wanted.tls {
            for certificate in &mut Arc::make_mut(tls).certificates {
                if let GatewayCertificate::Named(_, pair) = certificate {
                    *pair = None;
                }
            }
        }
        assert_eq!(*part.chain, wanted);
        assert_eq!(part.http.is_some(), matches!(wanted.to, GatewayTo::Http(_)));
    }
    let body = &set.get(TypeUrl::Secret, "kubernetes://cert").unwrap().body;
    assert!(matches!(translate::read(TypeUrl::Secret, body, &context).unwrap().value, Part::Secret(_)));
    let sidecar = profile::Context { gateway: false, ..context };
    let refused = translate::read(TypeUrl::Secret, body, &sidecar).unwrap_err().to_string();
    assert!(refused.contains("keys are not taken"), "{refused}");
    for name in ["https.a", "https.b"] {
        let routes = translate::route(&set.get(TypeUrl::Route, name).unwrap().body).unwrap();
        assert_eq!(routes.value, config.targets[name].routes);
    }
}

/// Rules about connections.
fn connections() -> Rbac {
    let text = |value: &str| StringMatch::Exact { value: value.to_owned(), ignore_case: false };
    let net = || "10.0.0.0/8".parse().unwrap();
    let permissions = vec![
        Condition::DestinationPort(443),
        Condition::DestinationIp(net()),
        Condition::Not(Box::new(Condition::ServerName(text("a.test")))),
    ];
    let principals =
        vec![Condition::DirectIp(net()), Condition::RemoteIp(net()), Condition::Peer(Some(text("spiffe://a/b")))];
    let policies: BTreeMap<_, _> = [("some".into(), RbacPolicy { permissions, principals })].into();
    let rules = |action| Some(RbacRules { action, policies: policies.clone(), audit: Default::default() });
    Rbac { rules: rules(RbacAction::Deny), shadow: rules(RbacAction::Allow), shadow_prefix: "dry_".into() }
}
