//! Routes of the Gateway API: for services of the mesh, for gateways, and in which order their rules count.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;

fn http(name: &str, parent: &str, rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}}}\nspec:\n  parentRefs: [{parent}]\n  rules:\n{rules}"
    )
}

const TO_REVIEWS: &str = "{group: \"\", kind: Service, name: reviews, port: 9080}";

const NEAR: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: near}\nspec:\n  gatewayClassName: istio\n  listeners:\n  - {name: http, port: 80, protocol: HTTP, hostname: \"*.example.com\"}\n";

fn near_node() -> NodeInfo {
    let labels = [("gateway.networking.k8s.io/gateway-name".to_owned(), "near".to_owned())];
    NodeInfo { labels: labels.into(), ..gateway() }
}

/// XD40: rules of several routes for one service count by what they match, not by where they stand; paths are compared segment by
/// segment; a weight of 0 gets nothing, a missing service answers 500 for its share.
#[test]
fn routes_of_a_service_count_by_their_matches() {
    let mut mesh = Mesh::bookinfo();
    mesh.apply(&http("a", TO_REVIEWS, "  - backendRefs: [{name: reviews, port: 9080, weight: 3}, {name: ratings, port: 9080, weight: 0}, {name: nobody, port: 9080}]\n  - matches: [{path: {value: /x}}]\n    backendRefs: [{name: ratings, port: 9080}]\n"));
    mesh.apply(&http("b", TO_REVIEWS, "  - matches: [{path: {type: Exact, value: /x}}, {path: {value: /x/long/}}, {path: {type: RegularExpression, value: \"/r.*\"}}]\n    backendRefs: [{name: details, port: 9080}]\n  - matches: [{path: {value: /x}, headers: [{name: Team, value: red}]}]\n    backendRefs: [{name: productpage, port: 9080}]\n"));
    let config = mesh.config(&node("productpage-v1"));
    let reviews = host(&config, 9080, &format!("{REVIEWS}:9080"));
    let origins: Vec<&str> = reviews.routes.iter().map(|route| route.origin.as_deref().unwrap()).collect();
    let (a, b) = ("http-route/default/a", "http-route/default/b");
    assert_eq!(origins, [b, b, b, a, b, a], "{:#?}", reviews.routes.iter().map(|r| &r.matches).collect::<Vec<_>>());
    let to = |path: &str, team: &str| goes(&config, &format!("http://reviews:9080{path}"), &[("team", team)], None);
    let named = |name: &str| format!("outbound|9080||{name}.default.svc.cluster.local");
    assert_eq!(to("/x", "red"), named("details"));
    assert_eq!(to("/x/long/way", "red"), named("details"));
    assert_eq!(to("/x/y", "red"), named("productpage"));
    assert_eq!(to("/x/y", "blue"), named("ratings"));
    // `/xy` is no part of `/x`.
    let whole = reviews.routes.iter().find(|route| route.matches == mesh_core::config::RouteMatch::default()).unwrap();
    let Action::Forward(whole) = &whole.action else { panic!() };
    assert_eq!(split(whole), [(named("reviews"), 3), (named("nobody"), 1)]);
    assert_eq!(whole.no_cluster_status, 500);
    assert!(["missing", "outbound|9080||reviews"].iter().any(|start| to("/xy", "red").starts_with(start)));
}

/// XD40: a route of another namespace is for that namespace's clients alone, and there it counts before the service's own.
#[test]
fn consumers_route_for_themselves() {
    let mut mesh = Mesh::bookinfo();
    mesh.apply(&http("own", TO_REVIEWS, "  - backendRefs: [{name: ratings, port: 9080}]\n"));
    let consumer = http(
        "theirs",
        "{group: \"\", kind: Service, name: reviews, namespace: default}",
        "  - backendRefs: [{name: details, namespace: default, port: 9080}]\n",
    );
    mesh.apply(&consumer.replace("{name: theirs}", "{name: theirs, namespace: other}"));
    let there = NodeInfo { namespace: "other".into(), ..node("productpage-v1") };
    let url = "http://reviews.default:9080/";
    assert_eq!(goes(&mesh.config(&there), url, &[], None), "outbound|9080||details.default.svc.cluster.local");
    let here = mesh.config(&node("productpage-v1"));
    assert_eq!(goes(&here, url, &[], None), "outbound|9080||ratings.default.svc.cluster.local");
}

/// XD40: filters, time limits and retries of a rule.
#[test]
fn filters_and_limits_are_the_rules() {
    let mut mesh = Mesh::bookinfo();
    mesh.apply(&http("a", TO_REVIEWS, "  - name: all\n    matches: [{path: {value: /old}, method: POST, queryParams: [{name: q, value: \"1\"}]}]\n    filters:\n    - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: A, value: 100%}], remove: [B]}}\n    - {type: URLRewrite, urlRewrite: {hostname: other.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}\n    - {type: RequestMirror, requestMirror: {backendRef: {name: details, port: 9080}, percent: 25}}\n    timeouts: {request: 5s, backendRequest: 2s}\n    retry: {codes: [503], attempts: 4, backoff: 50ms}\n    backendRefs: [{name: ratings, port: 9080}]\n  - matches: [{path: {value: /away}}]\n    filters: [{type: RequestRedirect, requestRedirect: {scheme: https, statusCode: 301, path: {type: ReplaceFullPath, replaceFullPath: /there}}}]\n"));
    let config = mesh.config(&node("productpage-v1"));
    let reviews = host(&config, 9080, &format!("{REVIEWS}:9080"));
    let Action::Redirect(to) = &reviews.routes[0].action else { panic!("{:?}", reviews.routes[0]) };
    assert_eq!((to.status, to.scheme.as_deref(), to.port), (301, Some("https"), None));
    assert_eq!(to.path, Some(mesh_core::config::PathRewrite::Full("/there".into())));
    let rule = forward(reviews, 1);
    assert_eq!((&*reviews.routes[1].name, rule.timeout), ("all", Some(Duration::from_secs(5))));
    let retry = rule.retry.as_ref().unwrap();
    assert_eq!((retry.retries, retry.per_try_timeout), (4, Some(Duration::from_secs(2))));
    assert_eq!((retry.on.status_codes.as_slice(), retry.back_off.base), (&[503][..], Duration::from_millis(50)));
    assert_eq!(rule.mirrors[0].fraction.unwrap(), mesh_core::config::Fraction::percent(25.0));
    assert_eq!(rule.host_rewrite, Some(mesh_core::config::HostRewrite::Literal("other.example".into())));
    // `/old/x` becomes `/x`, not `//x`.
    let Some(mesh_core::config::PathRewrite::Regex { pattern, substitution }) = &rule.path_rewrite else { panic!() };
    assert_eq!((pattern.as_str(), substitution.as_str()), ("^/old/*", "/"));
    assert_eq!(reviews.routes[1].headers.request.len(), 2);
}

/// XD40: a GRPCRoute's methods are paths.
#[test]
fn grpc_methods_are_paths() {
    let mut mesh = Mesh::bookinfo();
    let rules = "  - matches: [{method: {service: a.B, method: C}}]\n    backendRefs: [{name: details, port: 9080}]\n  - matches: [{method: {service: a.B}}, {method: {method: D}}]\n    backendRefs: [{name: ratings, port: 9080}]\n";
    mesh.apply(&http("g", TO_REVIEWS, rules).replace("HTTPRoute", "GRPCRoute"));
    let config = mesh.config(&node("productpage-v1"));
    let to = |path: &str| goes(&config, &format!("http://reviews:9080{path}"), &[], None);
    assert_eq!(to("/a.B/C"), "outbound|9080||details.default.svc.cluster.local");
    assert_eq!(to("/a.B/X"), "outbound|9080||ratings.default.svc.cluster.local");
    assert_eq!(to("/other/D"), "outbound|9080||ratings.default.svc.cluster.local");
    assert_eq!(to("/aXB/C"), "no route");
    assert_eq!(
        host(&config, 9080, &format!("{REVIEWS}:9080")).routes[0].origin.as_deref(),
        Some("grpc-route/default/g")
    );
}

/// XD40: a gateway's listeners are for the workloads labelled with its name, in its namespace; routes join those that let them, under
/// the narrower of both hosts, and name services of another namespace only where that lets them.
#[test]
fn routes_join_gateways() {
    let mut mesh = Mesh::bookinfo();
    mesh.apply(NEAR);
    let rules = "  - matches: [{path: {type: Exact, value: /a}}]\n    backendRefs: [{name: reviews, port: 9080}]\n  - backendRefs: [{name: ratings, namespace: elsewhere, port: 9080}]\n";
    let route = http("r", "{name: near, sectionName: http}", rules);
    mesh.apply(&route.replace("  rules:", "  hostnames: [shop.example.com, other.org]\n  rules:"));
    let config = mesh.config(&near_node());
    let to = |config: &Config, host: &str, path: &str| goes(config, &format!("http://{host}{path}"), &[], Some(80));
    assert_eq!(to(&config, "shop.example.com", "/a"), format!("outbound|9080||{REVIEWS}"));
    assert_eq!(to(&config, "shop.example.com", "/b"), "missing outbound|9080||not-granted.invalid");
    assert_eq!(to(&config, "other.org", "/a"), "no route");
    assert!(mesh.config(&gateway()).outbound.is_empty(), "another gateway");
    assert!(mesh.config(&NodeInfo { namespace: "elsewhere".into(), ..near_node() }).outbound.is_empty());
    mesh.apply("apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: elsewhere}\nspec:\n  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: default}]\n  to: [{group: \"\", kind: Service}]\n");
    let config = mesh.config(&near_node());
    assert_eq!(to(&config, "shop.example.com", "/b"), "missing outbound|9080||ratings.elsewhere.svc.cluster.local");
}

/// XD40: the sample gateway of Istio's Bookinfo shows the same pages as its own kinds do.
#[test]
fn the_sample_gateway_is_taken() {
    let Some(files) = sample("gateway-api") else { return };
    let mut mesh = Mesh::bookinfo();
    mesh.apply_files(&[files.into_iter().find(|file| file.name == "bookinfo-gateway.yaml").unwrap()]);
    let labels = [("gateway.networking.k8s.io/gateway-name".to_owned(), "bookinfo-gateway".to_owned())];
    let config = mesh.config(&NodeInfo { labels: labels.into(), ..gateway() });
    for (path, expected) in [
        ("/productpage", "outbound|9080||productpage.default.svc.cluster.local"),
        ("/static/a.css", "outbound|9080||productpage.default.svc.cluster.local"),
        ("/staticky", "no route"),
        ("/other", "no route"),
    ] {
        assert_eq!(goes(&config, &format!("http://anything{path}"), &[], Some(80)), expected, "{path}");
    }
}
