//! What is fed: everything that decodes bytes of a peer, a control plane or a file, and what is done with what it makes.

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use mesh_control::store::{SourceFile, Store};
use mesh_core::{
    identity::SpiffeId, load::LoadReport, request::RequestView, retry::Overrides, rng::RequestRng, timeout,
};
use mesh_tower::{
    Context,
    config::{
        Action, Cluster, Config, Endpoint, Endpoints, Forward, HeaderChanges, LocalityEndpoints, Name, Route,
        RouteMatch, RouteTable, VirtualHost, WeightedCluster,
    },
    tls::Identity,
};
use mesh_xds::{
    ads::{self, TypeUrl},
    bootstrap::{Bootstrap, Files},
    graph::{Graph, Part},
    peer,
    profile::{Context as Rules, Profile},
    saved,
    translate::{self, Listener, RouteSource, Shape},
};
use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// What reads the bytes.
type Reader = Box<dyn Fn(&[u8])>;

/// One thing that is fed.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    /// The type of messages made for it; `None` is not of protobuf.
    pub(crate) message: Option<&'static str>,
    pub(crate) good: Vec<Vec<u8>>,
    pub(crate) run: Reader,
}

impl Target {
    fn text(name: &'static str, good: &[&str], run: impl Fn(&str) + 'static) -> Self {
        let run = move |bytes: &[u8]| run(&String::from_utf8_lossy(bytes));
        let good = good.iter().map(|text| text.as_bytes().to_vec()).collect();
        Self { name, message: None, good, run: Box::new(run) }
    }

    fn message(name: &'static str, kind: TypeUrl, run: impl Fn(&Bytes) + 'static) -> Self {
        let good = translate::encode(&config(), Shape::Sidecar);
        let good = good.iter(kind).map(|(_, resource)| resource.body.to_vec()).collect();
        let run = move |bytes: &[u8]| {
            let bytes = Bytes::copy_from_slice(bytes);
            ads::name_of(&bytes);
            // Whatever is decoded, the report of its fields is made, and of the same opinion.
            let report = translate::fields(kind, &bytes);
            assert!(report.applied.is_empty() || report.refused.is_empty() || kind == TypeUrl::Listener);
            run(&bytes);
        };
        Self { name, message: Some(kind.message_name()), good, run: Box::new(run) }
    }
}

pub(crate) fn all() -> Vec<Target> {
    vec![
        Target::message("listener", TypeUrl::Listener, |bytes| {
            let by_name = translate::read(TypeUrl::Listener, bytes, &by_name());
            if let Ok(Part::Listener(Listener::Server(server))) = by_name.map(|decoded| decoded.value) {
                let (local, peer) = (([127, 0, 0, 1], 80).into(), ([127, 0, 0, 1], 7).into());
                let _ = server.serving.policy(local, peer);
            }
            let Ok(decoded) = translate::listener(bytes) else { return };
            let mut config = config();
            match decoded.value {
                Listener::Inbound(ports) => config.inbound = ports.into_iter().collect(),
                Listener::Outbound { port, routes: RouteSource::Inline(table), .. } => {
                    config.outbound.insert(port, table);
                }
                _ => {}
            }
            compile(&config);
        }),
        Target::message("route", TypeUrl::Route, |bytes| {
            let _ = translate::read(TypeUrl::Route, bytes, &by_name());
            let Ok(decoded) = translate::route(bytes) else { return };
            let mut config = config();
            config.outbound.insert(80, decoded.value);
            compile(&config);
        }),
        Target::message("cluster", TypeUrl::Cluster, |bytes| {
            let _ = translate::read(TypeUrl::Cluster, bytes, &by_name());
            let Ok(decoded) = translate::cluster(bytes) else { return };
            let mut config = config();
            let cluster = Cluster { endpoints: endpoints(), ..Cluster::clone(&decoded.value) };
            config.clusters.insert("a".into(), Arc::new(Cluster { name: "a".into(), ..cluster }));
            compile(&config);
        }),
        Target::message("endpoint", TypeUrl::Endpoint, |bytes| {
            let _ = translate::read(TypeUrl::Endpoint, bytes, &by_name());
            let Ok(decoded) = translate::endpoints(bytes) else { return };
            let mut config = config();
            let cluster = Cluster { name: "a".into(), endpoints: decoded.value, ..Cluster::default() };
            config.clusters.insert("a".into(), Arc::new(cluster));
            compile(&config);
        }),
        Target::text(
            "bootstrap",
            &[
                r#"{"xds_servers":[{"server_uri":"dns:///127.0.0.1:15012","channel_creds":[{"type":"tls","config":{"ca_certificate_file":"r.pem"}},{"type":"insecure"}],"call_creds":[{"type":"jwt_token_file","config":{"jwt_token_file":"t"}}],"server_features":["xds_v3"]}],"node":{"id":"sidecar~127.0.0.11~a.default~x","cluster":"a","locality":{"region":"r"},"metadata":{"LABELS":{"app":"a"},"N":[1,null]}},"mesh":{"ca":{"server_uri":"https://127.0.0.1:15013","ttl_seconds":60}},"authorities":{},"certificate_providers":{"default":{"plugin_name":"file_watcher","config":{}}}}"#,
            ],
            |text| {
                if let Ok(bootstrap) = Bootstrap::parse(text, "fuzz") {
                    let _ = (bootstrap.node.identity(), bootstrap.node.workload(), bootstrap.node.labels());
                }
            },
        ),
        Target {
            name: "load_report",
            message: None,
            good: vec![b"\x09\0\0\0\0\0\0\xe0?\x42\x0d\x0a\x02ab\x11\0\0\0\0\0\0\xf0?\x18\x07".to_vec()],
            run: Box::new(|bytes| {
                let Some(report) = LoadReport::decode(bytes) else { return };
                let _ = (report.utilisation(&["named_metrics.ab".to_owned()]), report.rate());
            }),
        },
        Target::text(
            "load_report_text",
            &[
                "TEXT cpu_utilization=0.3,named_metrics.cost=2",
                r#"JSON {"cpu_utilization": 0.3, "named_metrics": {"a": 1e3}}"#,
                "CQAAAAAAAOA/",
            ],
            |text| {
                let Ok(value) = HeaderValue::from_bytes(text.as_bytes()) else { return };
                for name in [LoadReport::TEXT, LoadReport::BINARY] {
                    let _ = LoadReport::of(&[(name, value.clone())].into_iter().collect());
                }
            },
        ),
        Target::text("spiffe", &["spiffe://cluster.local/ns/default/sa/a", "spiffe://a.b/x"], |text| {
            let Ok(id) = text.parse::<SpiffeId>() else { return };
            assert_eq!(id.as_str().parse::<SpiffeId>().unwrap(), id);
            let _ = (id.namespace(), id.service_account(), id.path(), id.trust_domain());
        }),
        certificate(),
        Target {
            name: "istio_yaml",
            message: None,
            good: samples(),
            run: Box::new(|bytes| {
                let text = String::from_utf8_lossy(bytes).into_owned();
                let _ = Store::open(None).unwrap().dry_run(&[SourceFile { name: "fuzz.yaml".to_owned(), text }]);
            }),
        },
        Target::text(
            "request",
            &[
                "/a/../b//c/./d?x=1&y=%2f\nhost: a\nx-envoy-retry-on: 5xx,retriable-status-codes\nx-envoy-max-retries: 3\nx-envoy-upstream-rq-timeout-ms: 100\nx-envoy-retriable-status-codes: 409,x\ngrpc-timeout: 99H",
                "/%2e%2e/a;b\ncookie: a=b; c=d\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\nbaggage: a=b,c\nx-b3-traceid: 1\nx-request-id: 1\ncontent-type: application/grpc\nx-envoy-decorator-operation: x",
            ],
            request,
        ),
        Target::text("peer_metadata", &["CgoKBE5BTUUSAhoA", "ChoKBE5BTUUSEhoQcmV2aWV3cy12MS1hYmMtZA=="], |text| {
            peer::decode(text);
        }),
        Target::text("saved", &["{\"mesh_saved_config\":1}\n{}"], |text| {
            let bootstrap = Bootstrap::parse(
                r#"{"xds_servers":[{"server_uri":"a:1","channel_creds":[{"type":"insecure"}]}],"node":{"id":"a"}}"#,
                "fuzz",
            );
            let file = std::env::temp_dir().join(format!("mesh-fuzz-saved-{}", std::process::id()));
            fs::write(&file, text).unwrap();
            let kept = saved::Saved::new(&file, saved::Saved::MAX_AGE, &bootstrap.unwrap());
            assert!(kept.load(SystemTime::now()).is_err());
            let _ = serde_json::from_str::<Config>(text.split_once('\n').map_or("", |(_, body)| body));
            fs::remove_file(&file).unwrap();
        }),
    ]
}

/// By gRPC's rules.
fn by_name() -> Rules {
    let files = Files { identity: None, roots: None, bundles: None, crl: None, refresh: Duration::from_secs(600) };
    let certificates = [("default".to_owned(), files)].into();
    Rules { profile: Profile::Grpc, trusted: false, certificates, identity: Some("default".to_owned()), gateway: false }
}

/// A leaf certificate in DER, as its own root.
fn certificate() -> Target {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.subject_alt_names = vec![SanType::URI("spiffe://cluster.local/ns/default/sa/a".try_into().unwrap())];
    let leaf = params.self_signed(&key).unwrap().der().to_vec();
    let key = key.serialize_der();
    let run = move |bytes: &[u8]| {
        let der = || CertificateDer::from(bytes.to_vec());
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.clone()));
        let _ = Identity::from_der(vec![der()], key, vec![der()]);
        let text = String::from_utf8_lossy(bytes);
        let _ = Identity::from_pem(&text, &text, &text);
    };
    Target { name: "certificate", message: None, good: vec![leaf], run: Box::new(run) }
}

/// The YAML of the examples, a document each.
fn samples() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/bookinfo/mesh");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    let texts = files.into_iter().map(|file| fs::read_to_string(file).unwrap());
    texts.flat_map(|text| text.split("\n---").map(|one| one.as_bytes().to_vec()).collect::<Vec<_>>()).collect()
}

/// The first line is the path, others are headers.
fn request(text: &str) {
    let mut lines = text.lines();
    let path = lines.next().unwrap_or("/");
    let mut headers = HeaderMap::new();
    for line in lines {
        let Some((name, value)) = line.split_once(':') else { continue };
        let (Ok(name), Ok(value)) =
            (name.trim().parse::<HeaderName>(), HeaderValue::from_bytes(value.trim().as_bytes()))
        else {
            continue;
        };
        headers.append(name, value);
    }
    for value in headers.values().filter_map(|value| value.to_str().ok()) {
        let _ = (timeout::parse_grpc_timeout(value), peer::decode(value));
    }
    let _ = LoadReport::of(&headers);
    let _ = Context::received(&headers, &Context::PROPAGATED);
    let mut asked = headers.clone();
    let config = config();
    let Some(Action::Forward(forward)) =
        config.outbound[&80].virtual_hosts[0].routes.first().map(|route| &route.action)
    else {
        return;
    };
    let _ = Overrides::take(&mut asked, forward.retry.as_ref(), forward.hedge.as_ref());
    let Ok(mut request) = Request::get(path).body(()) else { return };
    *request.headers_mut() = headers;
    let (parts, ()) = request.into_parts();
    let snapshot = mesh_core::snapshot::Snapshot::compile(&config, None).unwrap();
    for port in [None, Some(80)] {
        let view = RequestView::of(&parts, port);
        let mut rng = RequestRng::new(1, 1);
        if let Ok(plan) = snapshot.plan(&view, &mut rng) {
            let _ = (plan.route.timeout_of(plan.is_grpc), plan.route.stream_limit_of(plan.is_grpc));
        }
        let _ = snapshot.explain(&view, &mut rng);
    }
}

/// What is decoded compiles or is refused, reads requests, and survives being said again.
fn compile(config: &Config) {
    let _ = translate::encode(config, Shape::Sidecar);
    let mut graph = Graph::default();
    for (name, cluster) in config.clusters.iter() {
        graph.handle_event(ads::Event::Changed(TypeUrl::Cluster, name.clone(), Part::Cluster(cluster.clone())));
    }
    let _ = graph.poll_config(mesh_core::time::Time::ZERO);
    let Ok(snapshot) = mesh_core::snapshot::Snapshot::compile(config, None) else { return };
    let request = Request::get("http://a/a/b?c=d").header("x-a", "1").header("cookie", "a=b").body(()).unwrap();
    let (parts, ()) = request.into_parts();
    for port in config.outbound.keys() {
        let view = RequestView::of(&parts, Some(*port));
        for n in 0..4 {
            let _ = snapshot.explain(&view, &mut RequestRng::new(7, n));
        }
    }
    for port in config.inbound.keys() {
        let _ = snapshot.inbound_limits(*port);
    }
    // The same again on top of it, as an update is.
    let _ = mesh_core::snapshot::Snapshot::compile(config, Some(&snapshot));
}

fn endpoints() -> Arc<Endpoints> {
    let endpoints = (1..4_u16).map(|n| Endpoint::from(std::net::SocketAddr::from(([127, 0, 0, 1], n)))).collect();
    let locality = LocalityEndpoints { endpoints, ..LocalityEndpoints::default() };
    Arc::new(Endpoints { localities: vec![locality], ..Endpoints::default() })
}

/// One route to one cluster.
fn config() -> Config {
    let name = Name::from("a");
    let forward = Forward {
        clusters: vec![WeightedCluster { cluster: name.clone(), weight: 1, ..WeightedCluster::default() }],
        ..Forward::default()
    };
    let route = Route {
        name: Name::default(),
        origin: None,
        matches: RouteMatch::default(),
        action: Action::Forward(forward),
        fault: None,
        headers: HeaderChanges::default(),
        operation: None,
    };
    let host =
        VirtualHost { name: "a".into(), domains: vec!["*".to_owned()], routes: vec![route], ..VirtualHost::default() };
    let table = RouteTable { virtual_hosts: vec![Arc::new(host)], ..RouteTable::default() };
    let cluster = Cluster { name: name.clone(), endpoints: endpoints(), ..Cluster::default() };
    let mut config = Config { outbound: [(80, Arc::new(table))].into(), ..Config::default() };
    config
        .clusters
        .insert(name.clone(), Arc::new(Cluster { discovery: mesh_tower::config::Discovery::Eds(name), ..cluster }));
    config
}
