//! Virtual services that leave a part of their rules to others.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;

const ROOT: &str = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: reviews}\nspec:\n  hosts: [reviews]\n  http:\n  - name: root\n    match: [{uri: {prefix: /reviews}, headers: {team: {exact: red}}}]\n    timeout: 3s\n    delegate: {name: inner, namespace: other}\n  - match: [{uri: {prefix: /gone}}]\n    delegate: {name: nowhere}\n  - route: [{destination: {host: ratings}}]\n";

const INNER: &str = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: inner, namespace: other}\nspec:\n  http:\n  - name: own\n    match: [{uri: {prefix: /reviews/1}}, {uri: {exact: /elsewhere}}]\n    route: [{destination: {host: details}}]\n  - match: [{uri: {exact: /elsewhere}}]\n    route: [{destination: {host: details}}]\n  - timeout: 9s\n    route: [{destination: {host: reviews.default.svc.cluster.local}}]\n";

/// A delegate's rules stand in the place of the rule that names it, each narrowed by its conditions; those that cannot meet
/// them, and rules whose delegate is missing or hidden, are left out. Its short names are of its own namespace.
#[test]
fn rules_of_a_delegate_stand_where_it_is_named() {
    let mut mesh = Mesh::bookinfo();
    mesh.apply(ROOT);
    let config = mesh.config(&node("productpage-v1"));
    assert_eq!(host(&config, 9080, &format!("{REVIEWS}:9080")).routes.len(), 1, "the delegate is missing");
    mesh.apply(INNER);
    let config = mesh.config(&node("productpage-v1"));
    let reviews = host(&config, 9080, &format!("{REVIEWS}:9080"));
    assert_eq!(reviews.routes.len(), 3, "{:#?}", reviews.routes);
    assert_eq!(&*reviews.routes[0].name, "root-own");
    assert_eq!(forward(reviews, 0).timeout, Some(Duration::from_secs(3)), "the root's, as the delegate says nothing");
    assert_eq!(forward(reviews, 1).timeout, Some(Duration::from_secs(9)), "the delegate's");
    assert_eq!(reviews.routes[0].origin.as_deref(), Some("virtual-service/default/reviews"));
    let to = |path: &str, team: &str| goes(&config, &format!("http://reviews:9080{path}"), &[("team", team)], None);
    assert_eq!(to("/reviews/1", "red"), "missing outbound|9080||details.other.svc.cluster.local");
    assert_eq!(to("/reviews/2", "red"), format!("outbound|9080||{REVIEWS}"));
    assert_eq!(to("/reviews/1", "blue"), "outbound|9080||ratings.default.svc.cluster.local");
    assert_eq!(to("/gone", "red"), "outbound|9080||ratings.default.svc.cluster.local");
    // A change of the delegate is a change of the whole; hidden from the root's namespace it is as if it were not there.
    mesh.apply(&INNER.replace("spec:\n", "spec:\n  exportTo: [\".\"]\n"));
    let config = mesh.config(&node("productpage-v1"));
    assert_eq!(host(&config, 9080, &format!("{REVIEWS}:9080")).routes.len(), 1);
}

/// One level only: a delegate that delegates is refused, and so is one that names gateways.
#[test]
fn delegates_are_one_level_deep() {
    let text = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\nspec:\n  gateways: [g]\n  http:\n  - delegate: {name: b}\n";
    let found = crate::kinds::parse("f", text).unwrap_err();
    let places: Vec<_> = found.iter().map(|it| (it.code.as_ref(), it.line, it.column)).collect();
    assert_eq!(places, [("IST0106", 5, 14), ("IST0106", 7, 22)], "{found:#?}");
}
