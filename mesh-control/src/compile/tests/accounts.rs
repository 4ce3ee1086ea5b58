//! Whose accounts count: what a member says of itself neither makes it an endpoint of others' nor brings it their keys.

use mesh_core::config::GatewayCertificate;

use super::*;
use crate::analyze;

const EDGE: &str = "apiVersion: v1\nkind: Secret\nmetadata: {name: shop}\nstringData:\n  tls.crt: '-----BEGIN CERTIFICATE-----'\n  tls.key: '-----BEGIN PRIVATE KEY-----'\n---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: shop}\nspec:\n  selector: {istio: ingressgateway}\n  servers:\n  - port: {number: 443, name: https, protocol: HTTPS}\n    hosts: ['*']\n    tls: {mode: SIMPLE, credentialName: shop}\n";

fn deployment(name: &str, labels: &str, account: &str) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}}}\nspec:\n  template:\n    metadata: {{labels: {{{labels}}}}}\n    spec: {{serviceAccountName: {account}, containers: []}}\n"
    )
}

fn findings(mesh: &Mesh, code: &str) -> Vec<String> {
    let (objects, running) = (mesh.store.objects(), mesh.registry.workloads());
    let found = analyze::whole(&objects, &objects, &running).into_iter().filter(|it| it.code == code);
    found.map(|it| it.message).collect()
}

/// AN4, CT5: whatever a member says of its name, its labels and its role, the keys of a gateway's Secrets go to the accounts alone that
/// objects name for it.
#[test]
fn keys_are_for_accounts_that_objects_name() {
    let mut mesh = Mesh::bookinfo();
    mesh.apply(EDGE);
    let given = |mesh: &Mesh, account: &str| {
        let config = mesh.config(&NodeInfo { service_account: account.into(), ..gateway() });
        let tls = config.gateways[&443].chains[0].tls.clone().unwrap();
        let GatewayCertificate::Named(name, pair) = &tls.certificates[0] else { panic!("{tls:?}") };
        assert_eq!(&**name, "kubernetes://shop");
        pair.is_some()
    };
    let whole = |account: &str| {
        World::new(mesh.store.objects(), &mesh.registry, mesh.settings.clone())
            .keyless(&NodeInfo { service_account: account.into(), ..gateway() })
    };
    assert!(!given(&mesh, "edge") && !given(&mesh, "default") && !given(&mesh, ""));
    assert_eq!(whole("edge"), ["Gateway default/shop"]);
    assert_eq!(findings(&mesh, "MSH0011").len(), 1);

    let annotated = EDGE.replace(
        "kind: Gateway\nmetadata: {name: shop}",
        "kind: Gateway\nmetadata: {name: shop, annotations: {gateway.istio.io/service-account: 'edge, other'}}",
    );
    mesh.apply(&annotated);
    assert!(given(&mesh, "edge") && given(&mesh, "other") && !given(&mesh, "bookinfo-reviews") && !given(&mesh, ""));
    assert!(findings(&mesh, "MSH0011").is_empty());

    mesh.apply(EDGE);
    mesh.apply(&deployment("edge", "istio: ingressgateway, app: edge", "edge"));
    mesh.apply(&deployment("reviews-v1", "app: reviews, version: v1", "bookinfo-reviews"));
    assert!(given(&mesh, "edge") && !given(&mesh, "bookinfo-reviews"));
    assert!(findings(&mesh, "MSH0011").is_empty());
    // One of another namespace says nothing of this one.
    let elsewhere = NodeInfo { namespace: "other".into(), service_account: "edge".into(), ..gateway() };
    let tls = mesh.config(&elsewhere).gateways[&443].chains[0].tls.clone().unwrap();
    assert!(matches!(&tls.certificates[0], GatewayCertificate::Named(_, None)));
}

/// AN4: where Deployments say as which account a service runs, a workload of another account is none of its endpoints, and its name is
/// not one that callers accept.
#[test]
fn labels_make_nobody_an_endpoint_of_another_account() {
    let mut mesh = Mesh::bookinfo();
    let mut impostor = (*mesh.registry.workloads()[0]).clone();
    impostor.name = "impostor".into();
    impostor.service_account = "bookinfo-details".into();
    impostor.address = [127, 0, 0, 66].into();
    impostor.labels = [("app".to_owned(), "reviews".to_owned())].into();
    mesh.registry.connect(impostor);
    let seen = |mesh: &Mesh| {
        let config = mesh.config(&node("productpage-v1"));
        let cluster = cluster(&config, &format!("outbound|9080||{REVIEWS}")).clone();
        let text = serde_json::to_string(&cluster).unwrap();
        (addresses(&cluster).len(), text.contains("sa/bookinfo-details"))
    };
    assert_eq!(seen(&mesh), (4, true), "without a Deployment nobody says who is meant");
    assert!(findings(&mesh, "MSH0012").is_empty());
    mesh.apply(&deployment("reviews-v1", "app: reviews, version: v1", "bookinfo-reviews"));
    assert_eq!(seen(&mesh), (3, false));
    assert_eq!(findings(&mesh, "MSH0012").len(), 1);
    // A group that the operator wrote down counts beside it.
    mesh.apply("apiVersion: networking.istio.io/v1\nkind: WorkloadGroup\nmetadata: {name: vms}\nspec:\n  metadata: {labels: {app: reviews}}\n  template: {serviceAccount: bookinfo-details}\n");
    assert_eq!(seen(&mesh), (4, true));
    assert!(findings(&mesh, "MSH0012").is_empty());
}

/// AZ4, GW1: gateways alone are believed where a request comes from: by accounts that none but gateways have, or that objects name.
#[test]
fn gateways_alone_tell_addresses() {
    let mut mesh = Mesh::bookinfo();
    let believed = |mesh: &Mesh| mesh.config(&node("reviews-v1")).inbound[&9080].forwarders.clone().unwrap();
    assert!(believed(&mesh).is_empty());
    let mut edge = (*mesh.registry.workloads()[0]).clone();
    (edge.name, edge.namespace) = ("edge".into(), "istio-system".into());
    (edge.service_account, edge.gateway) = ("edge".into(), true);
    mesh.registry.connect(edge.clone());
    assert_eq!(believed(&mesh), ["spiffe://cluster.local/ns/istio-system/sa/edge"]);
    // A member that says it is a gateway is none by that.
    (edge.name, edge.namespace, edge.service_account) = ("x".into(), "default".into(), "bookinfo-details".into());
    mesh.registry.connect(edge);
    assert_eq!(believed(&mesh), ["spiffe://cluster.local/ns/istio-system/sa/edge"]);
}
