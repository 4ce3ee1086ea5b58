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
    admit::InboundView,
    authz::Heard,
    config::{
        Condition, EscapedSlashes, GlobalRateLimit, Guard, HeaderMatch, HeaderMatcher, Inbound, MtlsMode,
        PathNormalization, Rbac, RbacAction, RbacPolicy, RbacRules, StringMatch,
    },
    identity::SpiffeId,
    load::LoadReport,
    path::{Normal, normalize},
    request::RequestView,
    retry::Overrides,
    rng::RequestRng,
    timeout,
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
        Target::text("jwt", &jwt(), |text| {
            let (token, keys) = text.split_once('\n').unwrap_or((text, ""));
            mesh_tower::read_untrusted(token, keys);
        }),
        csr(),
        Target {
            name: "rate_limit_answer",
            message: Some("envoy.service.ratelimit.v3.RateLimitResponse"),
            good: Vec::new(),
            run: Box::new(|bytes| {
                let Ok(answer) = (mesh_xds::rpc::rate_limit::CODEC.decode)(bytes) else { return };
                let service = GlobalRateLimit { tells_limits: true, ..GlobalRateLimit::default() };
                let mut rng = RequestRng::new(1, 1);
                let verdict = mesh_core::rate_limit::GlobalLimit::of(&Arc::new(service)).judge(Some(answer), &mut rng);
                verdict.tell(&mut HeaderMap::new());
            }),
        },
        Target {
            name: "authz_answer",
            message: Some("envoy.service.auth.v3.CheckResponse"),
            good: Vec::new(),
            run: Box::new(|bytes| drop((mesh_xds::rpc::ext_authz::CODEC.decode)(bytes))),
        },
        Target::text(
            "policy",
            &[
                "/a/../admin//b?x=1\nhost: a\nx-role: admin\nx-forwarded-for: 10.0.0.1, 192.0.2.1\nauthorization: Bearer a.b.c",
                "/%2e%2e%2fpublic\\..\\admin;a=b\nhost: a:80\nx-role: \u{e9}\ncookie: t=a.b.c",
            ],
            policy(),
        ),
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

/// Tokens, and the keys they are proved by.
fn jwt() -> [&'static str; 2] {
    const KEYS: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","kid":"e","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"},{"kty":"oct","k":"AAAA"},{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","alg":"EdDSA","use":"sig"}]}"#;
    const TOKEN: &str = "eyJhbGciOiJFUzI1NiIsImtpZCI6ImUifQ.eyJpc3MiOiJqb2UiLCJleHAiOjEzMDA4MTkzODAsImF1ZCI6WyJhIl19.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
    [concat_lines(TOKEN, KEYS), concat_lines("e30.e30.", KEYS)]
}

fn concat_lines(first: &str, second: &str) -> &'static str {
    format!("{first}\n{second}").leak()
}

/// A signing request in PEM, to an authority.
fn csr() -> Target {
    let authority = mesh_control::ca::Ca::in_memory("cluster.local").unwrap();
    let account = mesh_control::ca::ServiceAccount::new("default", "a").unwrap();
    let request =
        CertificateParams::new(vec!["a".to_owned()]).unwrap().serialize_request(&KeyPair::generate().unwrap());
    let good = request.unwrap().pem().unwrap().into_bytes();
    let run = move |bytes: &[u8]| {
        drop(authority.sign_csr(&String::from_utf8_lossy(bytes), &account, None, SystemTime::now()));
    };
    Target { name: "csr", message: None, good: vec![good], run: Box::new(run) }
}

/// A request, its first line the path, to a server with rules of many kinds: whatever its form is, rules see a path without dots.
fn policy() -> impl Fn(&str) {
    let regex = |pattern: &str| StringMatch::Regex(pattern.parse().unwrap());
    let header = |name: &str, matcher: StringMatch| {
        let matcher = HeaderMatcher::Value(matcher);
        Condition::Header(HeaderMatch { name: name.into(), matcher, invert: false, missing_as_empty: false })
    };
    let conditions = vec![
        Condition::Path(StringMatch::Prefix { value: "/admin".into(), ignore_case: true }),
        header("x-role", regex("(a|ad)*min")),
        header(":authority", regex("[^.]+.*")),
        Condition::Not(Box::new(Condition::RemoteIp("192.0.2.0/24".parse().unwrap()))),
    ];
    let rules = |action, conditions| {
        let policy = RbacPolicy { permissions: conditions, principals: vec![Condition::Any] };
        let rules = RbacRules { action, policies: [("p".into(), policy)].into(), audit: Default::default() };
        Guard::Rbac(Arc::new(Rbac { rules: Some(rules), ..Rbac::default() }))
    };
    let guards = vec![rules(RbacAction::Deny, conditions), rules(RbacAction::Allow, vec![Condition::Any])];
    let inbound = Inbound { mtls: MtlsMode::Disable, guards, trusted_hops: Some(1), ..Inbound::default() };
    let config = Config { inbound: [(80, Arc::new(inbound.clone()))].into(), ..Config::default() };
    let snapshot = mesh_core::snapshot::Snapshot::compile(&config, None).unwrap();
    move |text: &str| {
        let mut lines = text.lines();
        let path = lines.next().unwrap_or("/");
        let every =
            PathNormalization { dot_segments: true, merge_slashes: true, escaped_slashes: EscapedSlashes::Forward };
        let Ok(mut request) = Request::get(path).body(()) else { return };
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        for wanted in [PathNormalization::BASE, every] {
            if let Normal::Changed(plain) = normalize(path, wanted) {
                // What is plain stays as it is.
                assert!(matches!(normalize(&plain, wanted), Normal::Same), "{path:?} gave {plain:?}");
            }
        }
        for line in lines {
            let Some((name, value)) = line.split_once(':') else { continue };
            let (Ok(name), Ok(value)) =
                (name.trim().parse::<HeaderName>(), HeaderValue::from_bytes(value.trim().as_bytes()))
            else {
                continue;
            };
            request.headers_mut().append(name, value);
        }
        let (parts, ()) = request.into_parts();
        let direct = std::net::IpAddr::from([127, 0, 0, 1]);
        let mut view = RequestView::of(&parts, Some(80));
        view.source = Some(direct);
        let inbound =
            InboundView { remote: inbound.remote(direct, false, &parts.headers), ..InboundView::of(80, view) };
        let _ = snapshot.admit(&inbound, 0, &mut Heard::default());
    }
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
        let _ = snapshot.inbound_limits(&RequestView::of(&parts, Some(*port)));
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
