//! What a `Sidecar` lets workloads see, and what a `WorkloadGroup` says of those that register.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;

fn sidecar(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

fn seen(config: &Config) -> Vec<String> {
    let names = config.clusters.values().filter(|cluster| cluster.service.is_some());
    names.map(|cluster| cluster.name.split('|').next_back().unwrap().split('.').next().unwrap().to_owned()).collect()
}

/// A sidecar's hosts are what its workloads are sent, with what the rules they see lead to; the one that selects the workload
/// counts before its namespace's, and that before the mesh's.
#[test]
fn a_sidecar_says_what_is_seen() {
    let mut mesh = Mesh::bookinfo();
    let caller = node("productpage-v1");
    assert_eq!(seen(&mesh.config(&caller)), ["details", "productpage", "ratings", "reviews"]);
    mesh.apply(&sidecar("istio-system", "mesh", "{egress: [{hosts: [\"~/*\"]}]}"));
    assert!(seen(&mesh.config(&caller)).is_empty());
    mesh.apply(&sidecar("default", "all", "{egress: [{hosts: [\"./ratings.default.svc.cluster.local\"]}]}"));
    assert_eq!(seen(&mesh.config(&caller)), ["ratings"]);
    mesh.apply(&sidecar("default", "one", "{workloadSelector: {labels: {app: productpage}}, egress: [{hosts: [\"*/reviews.default.svc.cluster.local\"]}], outboundTrafficPolicy: {mode: REGISTRY_ONLY}}"));
    let config = mesh.config(&caller);
    assert_eq!(seen(&config), ["reviews"]);
    assert_eq!(host(&config, 9080, "block_all").domains, ["*"], "nobody is passed through");

    assert_eq!(seen(&mesh.config(&node("reviews-v1"))), ["ratings"]);
    mesh.apply("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: reviews}\nspec:\n  hosts: [reviews]\n  http: [{route: [{destination: {host: details}}]}]\n");
    assert_eq!(seen(&mesh.config(&caller)), ["details", "reviews"], "what a rule leads to is seen as well");
    // A gateway's routes say what is meant.
    assert_eq!(seen(&mesh.config(&gateway())).len(), 4);
}

/// A part with a port is for that port alone; the one without is for all others.
#[test]
fn parts_of_a_sidecar_are_by_port() {
    let mut mesh = Mesh::bookinfo();
    mesh.apply("apiVersion: v1\nkind: Service\nmetadata: {name: extra}\nspec: {ports: [{port: 7000, name: http}]}\n");
    mesh.apply(&sidecar("default", "s", "{egress: [{port: {number: 9080, protocol: HTTP, name: h}, hosts: [\"./reviews.default.svc.cluster.local\"]}, {hosts: [\"./*\"]}]}"));
    let config = mesh.config(&node("productpage-v1"));
    let hosts = |port: u16| -> Vec<String> {
        let hosts = config.outbound[&port].virtual_hosts.iter().map(|host| host.name.split('.').next().unwrap());
        hosts.map(str::to_owned).collect()
    };
    assert_eq!(hosts(9080), ["reviews", "allow_any"]);
    assert_eq!(hosts(7000), ["extra", "allow_any"]);
}

/// Broken sidecars are told at their places.
#[test]
fn broken_sidecars_are_refused() {
    let text = "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: a}\nspec:\n  egress:\n  - hosts: [reviews, ./reviews, ~x/y.com]\n  - hosts: [\"*/*\"]\n  outboundTrafficPolicy: {mode: ANY}\n";
    let found = crate::kinds::parse("f", text).unwrap_err();
    let places: Vec<_> = found.iter().map(|it| (it.code.as_ref(), it.line, it.column)).collect();
    let expected = [("IST0106", 6, 13), ("IST0106", 6, 22), ("MSH0008", 6, 33), ("IST0106", 7, 13), ("IST0106", 8, 33)];
    assert_eq!(places, expected, "{found:#?}");
}

/// Who calls itself unhealthy is no endpoint until it is healthy again; a weight is a share.
#[test]
fn unhealthy_workloads_are_left_out() {
    let mut mesh = Mesh::bookinfo();
    let whole =
        |mesh: &Mesh| addresses(cluster(&mesh.config(&node("productpage-v1")), &format!("outbound|9080||{REVIEWS}")));
    assert!(mesh.registry.tell_health("default", "reviews-v2", Some("warming up".into())));
    assert!(!mesh.registry.tell_health("default", "reviews-v2", Some("still".into())), "no endpoint changed");
    assert_eq!(whole(&mesh), ["127.0.0.14:9080", "127.0.0.16:9080"]);
    assert!(mesh.registry.tell_health("default", "reviews-v2", None));
    assert_eq!(whole(&mesh).len(), 3);
}
