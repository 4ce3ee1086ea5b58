//! What objects mean: Istio's sample files, looked at from productpage, reviews and the gateway. Other objects: `tests/`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use http::Request;
use mesh_core::{
    config::{
        AbortStatus, Action, Cluster, Discovery, Forward, LoadBalancer, MtlsMode, Protocol, Thresholds, TlsMode,
        VirtualHost,
    },
    plan::Target,
    request::RequestView,
    rng::RequestRng,
    snapshot::Snapshot,
};

use super::*;
use crate::{
    kinds::{
        default_retries,
        tests::{file, sample},
    },
    registry::Registry,
    store::{SourceFile, Store},
};

mod accounts;
mod authz;
mod balancing;
mod delegates;
mod gateway_api;
mod policies;
mod scope;

/// Bookinfo's services, with accounts by hint.
const SERVICES: [&str; 4] = ["productpage", "details", "reviews", "ratings"];

const RULES: &str = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: reviews}\nspec:\n  host: reviews\n  subsets:\n  - {name: v1, labels: {version: v1}}\n  - {name: v2, labels: {version: v2}}\n  - {name: v3, labels: {version: v3}}\n";

struct Mesh {
    store: Store,
    registry: Registry,
    settings: MeshSettings,
    now: u64,
}

impl Mesh {
    /// Bookinfo's services and its six workloads.
    fn bookinfo() -> Self {
        let mut text = String::new();
        for name in SERVICES {
            text += &format!(
                "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: 9080, name: http}}], selector: {{app: {name}}}}}\n"
            );
        }
        let mut registry = Registry::open(None, 0).unwrap();
        let versions = ["productpage-v1", "details-v1", "ratings-v1", "reviews-v1", "reviews-v2", "reviews-v3"];
        for (n, name) in (11..).zip(versions) {
            let node = node(name);
            registry.connect(Registered {
                name: name.into(),
                namespace: "default".into(),
                workload: name.into(),
                service_account: node.service_account,
                address: [127, 0, 0, n].into(),
                ports: node.ports,
                labels: node.labels,
                locality: Default::default(),
                gateway: false,
                group: String::new(),
                weight: 0,
                unhealthy: None,
                admin: None,
                since: 0,
                lost: None,
            });
        }
        let mut mesh = Self { store: Store::open(None).unwrap(), registry, settings: MeshSettings::default(), now: 0 };
        mesh.apply(&text);
        mesh
    }

    fn apply(&mut self, text: &str) {
        self.apply_files(&[file("f.yaml", text)]);
    }

    fn apply_files(&mut self, files: &[SourceFile]) {
        self.now += 1;
        self.store.apply(files, self.now).unwrap_or_else(|error| panic!("{error:?}"));
    }

    fn config(&self, node: &NodeInfo) -> Config {
        compile(&World::new(self.store.objects(), &self.registry, self.settings.clone()), node)
    }
}

/// `reviews-v1` and such.
fn node(name: &str) -> NodeInfo {
    let (app, version) = name.split_once('-').unwrap();
    let labels = [("app", app), ("version", version)].map(|(key, value)| (key.to_owned(), value.to_owned()));
    NodeInfo {
        name: name.into(),
        namespace: "default".into(),
        workload: name.into(),
        service_account: format!("bookinfo-{app}"),
        labels: labels.into(),
        ports: vec![WorkloadPort { name: "http".into(), number: 9080 }],
        ..NodeInfo::default()
    }
}

fn gateway() -> NodeInfo {
    let labels = [("istio".to_owned(), "ingressgateway".to_owned())];
    NodeInfo { namespace: "default".into(), labels: labels.into(), gateway: true, ..NodeInfo::default() }
}

fn host<'c>(config: &'c Config, port: u16, name: &str) -> &'c VirtualHost {
    let hosts = &config.outbound[&port].virtual_hosts;
    hosts.iter().find(|host| *host.name == *name).unwrap_or_else(|| panic!("no {name}"))
}

fn forward(host: &VirtualHost, n: usize) -> &Forward {
    let Action::Forward(forward) = &host.routes[n].action else { panic!("{:?}", host.routes[n]) };
    forward
}

fn split(forward: &Forward) -> Vec<(String, u32)> {
    forward.clusters.iter().map(|it| (it.cluster.to_string(), it.weight)).collect()
}

fn cluster<'c>(config: &'c Config, name: &str) -> &'c Cluster {
    config.clusters.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", config.clusters.keys()))
}

fn addresses(cluster: &Cluster) -> Vec<String> {
    let localities = &cluster.endpoints.localities;
    localities.iter().flat_map(|it| &it.endpoints).map(|it| it.address.to_string()).collect()
}

/// The cluster (or what else becomes) of a request.
fn goes(config: &Config, url: &str, headers: &[(&str, &str)], port: Option<u16>) -> String {
    let snapshot = Snapshot::compile(config, None).unwrap();
    let mut request = Request::get(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let parts = request.body(()).unwrap().into_parts().0;
    match snapshot.plan(&RequestView::of(&parts, port), &mut RequestRng::new(1, 1)) {
        Ok(plan) => match plan.target {
            Target::Cluster(cluster) => cluster.name().to_string(),
            Target::NoCluster(name) => format!("missing {name}"),
            other => format!("{other:?}"),
        },
        Err(_) => "no route".to_owned(),
    }
}

const REVIEWS: &str = "reviews.default.svc.cluster.local";

/// Two workloads that say they listen at one place are one endpoint.
#[test]
fn one_address_is_one_endpoint() {
    let mut mesh = Mesh::bookinfo();
    let of_v1 = |it: &std::sync::Arc<Registered>| it.name == "reviews-v1";
    let mut twin = Registered::clone(mesh.registry.workloads().iter().find(|it| of_v1(it)).unwrap());
    twin.name = "reviews-v1-again".into();
    mesh.registry.connect(twin);
    let config = mesh.config(&node("productpage-v1"));
    let whole = cluster(&config, "outbound|9080||reviews.default.svc.cluster.local");
    assert_eq!(addresses(whole), ["127.0.0.14:9080", "127.0.0.15:9080", "127.0.0.16:9080"]);
}

/// RA7: a subset is a cluster of its own with the endpoints that have its labels.
#[test]
fn services_and_subsets_become_clusters_with_their_endpoints() {
    let mut mesh = Mesh::bookinfo();
    mesh.apply(RULES);
    let config = mesh.config(&node("productpage-v1"));
    let whole = cluster(&config, "outbound|9080||reviews.default.svc.cluster.local");
    assert_eq!(addresses(whole), ["127.0.0.14:9080", "127.0.0.15:9080", "127.0.0.16:9080"]);
    let v2 = cluster(&config, "outbound|9080|v2|reviews.default.svc.cluster.local");
    assert_eq!(addresses(v2), ["127.0.0.15:9080"]);
    assert_eq!(v2.discovery, Discovery::Eds(v2.name.clone()));
    assert_eq!(v2.origin.as_deref(), Some("destination-rule/default/reviews"));
    assert_eq!(v2.connect_timeout, Duration::from_secs(10));
    assert_eq!(v2.load_balancer, LoadBalancer::default());
    assert_eq!((&v2.outlier_detection, v2.panic_threshold, v2.protocol), (&None, 50, Protocol::Http1));
    let unlimited = Thresholds {
        max_connections: u32::MAX,
        max_pending_requests: u32::MAX,
        max_requests: u32::MAX,
        max_retries: u32::MAX,
        ..Thresholds::default()
    };
    assert_eq!(v2.thresholds, unlimited);
    let endpoint = &v2.endpoints.localities[0].endpoints[0];
    assert!(endpoint.mtls);
    let workload = endpoint.workload.as_ref().unwrap();
    assert_eq!(
        (&*workload.name, &*workload.canonical_name, &*workload.canonical_revision),
        ("reviews-v2", "reviews", "v2")
    );
    let TlsMode::IfEndpointCan(tls) = &v2.tls else { panic!("{:?}", v2.tls) };
    assert_eq!(tls.sni, "outbound_.9080_.v2_.reviews.default.svc.cluster.local");
    assert_eq!(tls.alpn, ["istio-http/1.1", "istio", "http/1.1"]);
    assert!(tls.workload_identity);
    assert_eq!(tls.subject_alt_names.len(), 1);
    assert!(tls.subject_alt_names[0].is_match("spiffe://cluster.local/ns/default/sa/bookinfo-reviews"));
}

/// RT4: a service without rules of its own has one route, with Istio's default retries and no timeout.
#[test]
fn hosts_go_by_istios_names_and_have_istios_defaults() {
    let mesh = Mesh::bookinfo();
    let config = mesh.config(&node("productpage-v1"));
    let table = &config.outbound[&9080];
    assert_eq!((&*table.name, table.ignore_port), ("9080", true));
    let names: Vec<&str> = table.virtual_hosts.iter().map(|host| &*host.name).collect();
    assert_eq!(
        names,
        [
            "details.default.svc.cluster.local:9080",
            "productpage.default.svc.cluster.local:9080",
            "ratings.default.svc.cluster.local:9080",
            "reviews.default.svc.cluster.local:9080",
            "allow_any"
        ]
    );
    let reviews = host(&config, 9080, &format!("{REVIEWS}:9080"));
    assert_eq!(reviews.domains, [REVIEWS, "reviews", "reviews.default", "reviews.default.svc"]);
    let route = &reviews.routes[0];
    assert_eq!(
        (&*route.name, route.operation.as_deref()),
        ("default", Some("reviews.default.svc.cluster.local:9080/*"))
    );
    let to = forward(reviews, 0);
    assert_eq!(split(to), [(format!("outbound|9080||{REVIEWS}"), 1)]);
    assert_eq!((to.timeout, to.retry.as_ref()), (None, Some(&default_retries())));
    let retry = default_retries();
    assert_eq!((retry.retries, retry.avoid_previous_hosts, retry.on.status_codes.len()), (2, 5, 0));
    assert_eq!(goes(&config, "http://somewhere.else:9080/", &[], None), "PassthroughCluster");
    assert_eq!(config.clusters["PassthroughCluster"].discovery, Discovery::OriginalDestination);
    // From another namespace the bare name is nobody's.
    let elsewhere = NodeInfo { namespace: "other".into(), ..node("productpage-v1") };
    let there = mesh.config(&elsewhere);
    assert_eq!(
        host(&there, 9080, &format!("{REVIEWS}:9080")).domains,
        [REVIEWS, "reviews.default", "reviews.default.svc"]
    );
}

/// GW6: hosts nobody defined get 502 when the mesh says so.
#[test]
fn unknown_hosts_are_blocked_on_demand() {
    let mut mesh = Mesh::bookinfo();
    mesh.settings.allow_any = false;
    let config = mesh.config(&node("productpage-v1"));
    let block = host(&config, 9080, "block_all");
    assert!(matches!(&block.routes[0].action, Action::DirectResponse(answer) if answer.status == 502));
}

/// Sample file, host, and the splits of its routes; `jason` marks a route for him alone.
type Expected = (&'static str, &'static str, &'static [(bool, &'static [(&'static str, u32)])]);

const SAMPLES: &[Expected] = &[
    ("virtual-service-all-v1.yaml", "reviews", &[(false, &[("v1", 1)])]),
    ("virtual-service-all-v1.yaml", "details", &[(false, &[("v1", 1)])]),
    ("virtual-service-details-v2.yaml", "details", &[(false, &[("v2", 1)])]),
    ("virtual-service-ratings-db.yaml", "ratings", &[(false, &[("v2", 1)])]),
    ("virtual-service-ratings-mysql.yaml", "ratings", &[(false, &[("v2-mysql", 1)])]),
    ("virtual-service-ratings-mysql-vm.yaml", "ratings", &[(false, &[("v2-mysql-vm", 1)])]),
    ("virtual-service-ratings-test-abort.yaml", "ratings", &[(true, &[("v1", 1)]), (false, &[("v1", 1)])]),
    ("virtual-service-ratings-test-delay.yaml", "ratings", &[(true, &[("v1", 1)]), (false, &[("v1", 1)])]),
    ("virtual-service-reviews-50-v3.yaml", "reviews", &[(false, &[("v1", 50), ("v3", 50)])]),
    ("virtual-service-reviews-80-20.yaml", "reviews", &[(false, &[("v1", 80), ("v2", 20)])]),
    ("virtual-service-reviews-90-10.yaml", "reviews", &[(false, &[("v1", 90), ("v2", 10)])]),
    ("virtual-service-reviews-jason-v2-v3.yaml", "reviews", &[(true, &[("v2", 1)]), (false, &[("v3", 1)])]),
    ("virtual-service-reviews-test-v2.yaml", "reviews", &[(true, &[("v2", 1)]), (false, &[("v1", 1)])]),
    ("virtual-service-reviews-v2-v3.yaml", "reviews", &[(false, &[("v2", 50), ("v3", 50)])]),
    ("virtual-service-reviews-v3.yaml", "reviews", &[(false, &[("v3", 1)])]),
    ("fault-injection-details-v1.yaml", "details", &[(false, &[("v1", 1)])]),
];

fn one_sample(name: &str) -> Option<SourceFile> {
    sample("networking")?.into_iter().find(|file| file.name == name)
}

#[test]
fn samples_translate_as_istio_does() {
    let Some(rules) = one_sample("destination-rule-all.yaml") else { return };
    for (name, service, expected) in SAMPLES {
        let mut mesh = Mesh::bookinfo();
        mesh.apply_files(&[rules.clone(), one_sample(name).unwrap()]);
        for caller in ["productpage-v1", "reviews-v2"] {
            let config = mesh.config(&node(caller));
            let full = format!("{service}.default.svc.cluster.local");
            let host = host(&config, 9080, &format!("{full}:9080"));
            assert_eq!(host.routes.len(), expected.len(), "{name}");
            for (n, (jason, destinations)) in expected.iter().enumerate() {
                assert_eq!(!host.routes[n].matches.headers.is_empty(), *jason, "{name}");
                let wanted: Vec<_> = destinations
                    .iter()
                    .map(|(subset, weight)| (format!("outbound|9080|{subset}|{full}"), *weight))
                    .collect();
                assert_eq!(split(forward(host, n)), wanted, "{name}");
                let origin = host.routes[n].origin.as_deref();
                assert_eq!(origin, Some(format!("virtual-service/default/{service}").as_str()), "{name}");
            }
        }
    }
}

/// RM6, RM17: by his name jason gets another version than everyone else.
#[test]
fn jason_is_told_apart() {
    let Some(file) = one_sample("virtual-service-reviews-test-v2.yaml") else { return };
    let mut mesh = Mesh::bookinfo();
    mesh.apply(RULES);
    mesh.apply_files(&[file]);
    let config = mesh.config(&node("productpage-v1"));
    let url = "http://reviews:9080/reviews/0";
    assert_eq!(goes(&config, url, &[("end-user", "jason")], None), format!("outbound|9080|v2|{REVIEWS}"));
    assert_eq!(goes(&config, url, &[("end-user", "jasons")], None), format!("outbound|9080|v1|{REVIEWS}"));
    assert_eq!(goes(&config, url, &[], None), format!("outbound|9080|v1|{REVIEWS}"));
    assert_eq!(goes(&config, "http://reviews.default.svc:9080/", &[], None), format!("outbound|9080|v1|{REVIEWS}"));
}

#[test]
fn faults_of_the_samples_are_injected() {
    let Some(rules) = one_sample("destination-rule-all.yaml") else { return };
    let route = |name: &str, service: &str| {
        let mut mesh = Mesh::bookinfo();
        mesh.apply_files(&[rules.clone(), one_sample(name).unwrap()]);
        let config = mesh.config(&node("reviews-v2"));
        host(&config, 9080, &format!("{service}.default.svc.cluster.local:9080")).routes[0].clone()
    };
    let delay = route("virtual-service-ratings-test-delay.yaml", "ratings").fault.unwrap().delay.unwrap();
    assert_eq!((delay.duration, delay.fraction.numerator), (Some(Duration::from_secs(7)), 100));
    let abort = route("virtual-service-ratings-test-abort.yaml", "ratings").fault.unwrap().abort.unwrap();
    assert_eq!((abort.status, abort.fraction.numerator), (AbortStatus::Http(500), 100));
    let abort = route("fault-injection-details-v1.yaml", "details").fault.unwrap().abort.unwrap();
    assert_eq!(abort.status, AbortStatus::Http(555));
}

#[test]
fn destination_rule_samples_set_tls_and_balancing() {
    let Some(mtls) = one_sample("destination-rule-all-mtls.yaml") else { return };
    let mut mesh = Mesh::bookinfo();
    mesh.apply_files(&[mtls]);
    let config = mesh.config(&node("productpage-v1"));
    let v3 = cluster(&config, "outbound|9080|v3|reviews.default.svc.cluster.local");
    assert!(matches!(&v3.tls, TlsMode::Always(tls) if tls.workload_identity));
    mesh.apply_files(&[one_sample("destination-rule-reviews.yaml").unwrap()]);
    let config = mesh.config(&node("productpage-v1"));
    let v3 = cluster(&config, "outbound|9080|v3|reviews.default.svc.cluster.local");
    assert_eq!(v3.load_balancer, LoadBalancer::Random);
    assert!(matches!(&v3.tls, TlsMode::IfEndpointCan(_)));
}

#[test]
fn the_egress_sample_originates_tls() {
    let Some(file) = one_sample("egress-rule-google-apis.yaml") else { return };
    let mut mesh = Mesh::bookinfo();
    mesh.apply_files(&[file]);
    let config = mesh.config(&node("details-v1"));
    let name = "outbound|443||www.googleapis.com";
    assert_eq!(goes(&config, "http://www.googleapis.com/books/v1/volumes", &[], None), name);
    let secure = cluster(&config, name);
    assert_eq!(secure.discovery, Discovery::StrictDns(vec![("www.googleapis.com".into(), 443)]));
    assert!(matches!(&secure.tls, TlsMode::Always(tls) if !tls.workload_identity && tls.subject_alt_names.is_empty()));
    // The port's settings stand for all: what they leave open is the default, not the rule's.
    assert_eq!(secure.load_balancer, LoadBalancer::default());
    // Port 80 has neither TLS nor, being outside the mesh, automatic mutual TLS.
    let plain = cluster(&config, "outbound|80||www.googleapis.com");
    assert_eq!((&plain.tls, &plain.load_balancer), (&TlsMode::Disable, &LoadBalancer::RoundRobin));
}

/// The gateway serves what the sample lists and answers 404 to the rest.
#[test]
fn the_gateway_sample_lets_in_what_it_lists() {
    let Some(file) = one_sample("bookinfo-gateway.yaml") else { return };
    let mut mesh = Mesh::bookinfo();
    mesh.apply_files(&[file]);
    let config = mesh.config(&gateway());
    assert_eq!(config.outbound.keys().collect::<Vec<_>>(), [&8080]);
    assert_eq!(&*config.outbound[&8080].name, "http.8080");
    let name = "outbound|9080||productpage.default.svc.cluster.local";
    let cases = [
        ("/productpage", name),
        ("/productpage?u=normal", name),
        ("/static/a/b.css", name),
        ("/login", name),
        ("/api/v1/products/0/reviews", name),
        ("/", "no route"),
        ("/productpage/x", "no route"),
        ("/metrics", "no route"),
    ];
    for (path, expected) in cases {
        let url = format!("http://127.0.0.1:9080{path}");
        assert_eq!(goes(&config, &url, &[], Some(8080)), expected, "{path}");
    }
    assert!(config.inbound[&8080].guards.is_empty() && config.inbound[&8080].mtls == MtlsMode::Disable);
    // Bound to a gateway, it means nothing to the mesh.
    assert_eq!(goes(&mesh.config(&node("reviews-v1")), "http://x:80/login", &[], None), "PassthroughCluster");
    // Another gateway has no part in it.
    let other = NodeInfo { labels: Labels::new(), ..gateway() };
    assert!(mesh.config(&other).outbound.is_empty());
}

#[test]
fn a_gateway_without_virtual_services_has_no_routes() {
    let mut mesh = Mesh::bookinfo();
    mesh.apply("apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g}\nspec:\n  selector: {istio: ingressgateway}\n  servers:\n  - {port: {number: 80, name: a, protocol: HTTP}, hosts: [\"*\"]}\n  - {port: {number: 81, name: b, protocol: HTTP}, hosts: [shop.example.com], tls: {httpsRedirect: true}}\n");
    let config = mesh.config(&gateway());
    assert_eq!(&*config.outbound[&80].virtual_hosts[0].name, "blackhole:80");
    assert_eq!(goes(&config, "http://a/", &[], Some(80)), "no route");
    assert_eq!(goes(&config, "http://shop.example.com/", &[], Some(81)), "Redirect");
}

#[test]
fn gateway_hosts_are_narrowed_and_rules_for_everything_come_last() {
    let mut mesh = Mesh::bookinfo();
    mesh.apply("apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g, namespace: edge}\nspec:\n  selector: {istio: ingressgateway}\n  servers:\n  - {port: {number: 80, name: a, protocol: HTTP}, hosts: [\"default/*.example.com\"]}\n");
    mesh.apply("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\nspec:\n  hosts: [shop.example.com, example.org]\n  gateways: [edge/g]\n  http: [{route: [{destination: {host: details}}]}]\n---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: b}\nspec:\n  hosts: [shop.example.com]\n  gateways: [edge/g]\n  http: [{match: [{uri: {prefix: /r}}], route: [{destination: {host: reviews}}]}]\n---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: c, namespace: other}\nspec:\n  hosts: [other.example.com]\n  gateways: [edge/g]\n  http: [{route: [{destination: {host: details.default.svc.cluster.local}}]}]\n");
    let config = mesh.config(&gateway());
    let hosts = &config.outbound[&80].virtual_hosts;
    assert_eq!(hosts.iter().map(|host| &*host.name).collect::<Vec<_>>(), ["shop.example.com:80"]);
    assert_eq!(goes(&config, "http://shop.example.com/r", &[], Some(80)), format!("outbound|9080||{REVIEWS}"));
    assert!(goes(&config, "http://shop.example.com/", &[], Some(80)).contains("details"));
}

/// RM16, RM20: conditions on who asks, and on which port, are settled before any request.
#[test]
fn matches_are_filtered_by_who_asks() {
    let mut mesh = Mesh::bookinfo();
    mesh.apply(RULES);
    mesh.apply("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: reviews}\nspec:\n  hosts: [reviews]\n  http:\n  - match: [{sourceLabels: {app: productpage}}]\n    route: [{destination: {host: reviews, subset: v2}}]\n  - match: [{sourceNamespace: other}, {port: 80}, {gateways: [g]}]\n    route: [{destination: {host: reviews, subset: v3}}]\n  - name: rest\n    match: [{name: all, uri: {prefix: /}}]\n    route: [{destination: {host: reviews, subset: v1}}]\n  - route: [{destination: {host: reviews, subset: v3}}]\n");
    let to = |node: &NodeInfo| {
        let config = mesh.config(node);
        let host = host(&config, 9080, &format!("{REVIEWS}:9080"));
        (0..host.routes.len())
            .map(|n| split(forward(host, n))[0].0.split('|').nth(2).unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(to(&node("productpage-v1")), ["v2"], "everything after a catch-all is left out");
    assert_eq!(to(&node("details-v1")), ["v1"]);
    assert_eq!(to(&NodeInfo { namespace: "other".into(), ..node("details-v1") }), ["v3"]);
    let config = mesh.config(&node("details-v1"));
    assert_eq!(&*host(&config, 9080, &format!("{REVIEWS}:9080")).routes[0].name, "rest.all");
}
