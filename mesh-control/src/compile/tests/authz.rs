//! What AuthorizationPolicies come to: decisions about made-up requests to Bookinfo.

use http::Method;
use mesh_core::{
    admit::{Admit, InboundView},
    authz::Heard,
    claims::{Claims, PAYLOAD},
    config::{AuthzService, ExtAuthz, Guard, Inbound},
    identity::SpiffeId,
};

use super::*;

fn policy(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

/// A made-up request.
struct Asked<'a> {
    peer: Option<&'a str>,
    method: Method,
    path: &'a str,
    headers: &'a [(&'a str, &'a str)],
    claims: &'a str,
}

impl Default for Asked<'_> {
    fn default() -> Self {
        let peer = Some("spiffe://cluster.local/ns/default/sa/bookinfo-productpage");
        Self { peer, method: Method::GET, path: "/reviews/0", headers: &[], claims: "" }
    }
}

fn admit(mesh: &Mesh, name: &str, asked: &Asked<'_>) -> Admit {
    let mut config = mesh.config(&node(name));
    // Who may call at all is another question.
    for inbound in config.inbound.values_mut() {
        *inbound = Arc::new(Inbound { mtls: MtlsMode::Permissive, callers: Vec::new(), ..(**inbound).clone() });
    }
    let snapshot = Snapshot::compile(&config, None).unwrap();
    let mut request = Request::builder().method(&asked.method).uri(format!("http://reviews:9080{}", asked.path));
    for (name, value) in asked.headers {
        request = request.header(*name, *value);
    }
    let parts = request.body(()).unwrap().into_parts().0;
    let peer: Option<SpiffeId> = asked.peer.map(|peer| peer.parse().unwrap());
    let mut claims = Claims::default();
    if !asked.claims.is_empty() {
        claims.insert(PAYLOAD, serde_json::from_str(asked.claims).unwrap());
    }
    let mut view = InboundView::of(9080, RequestView::of(&parts, Some(9080)));
    view.request.source = Some("10.1.2.3".parse().unwrap());
    view.remote = view.request.source;
    view.peer = peer.as_ref();
    view.claims = Some(&claims);
    snapshot.admit(&view, 0, &mut Heard::default())
}

fn passes(mesh: &Mesh, asked: &Asked<'_>) -> bool {
    admit(mesh, "reviews-v1", asked) == Admit::Allow
}

/// AZ5: every field by itself, with values it has and has not, wildcards and their opposites.
#[test]
fn every_field_decides() {
    let asked = |headers: &'static [(&'static str, &'static str)]| Asked { headers, ..Asked::default() };
    let token = r#"{"iss": "https://issuer/a", "sub": "jason", "aud": ["x", "y"], "azp": "p", "g": {"n": ["admin"]}}"#;
    for (rule, matching, other) in [
        (
            "from: [{source: {principals: [cluster.local/ns/default/sa/bookinfo-productpage]}}]",
            Asked::default(),
            Asked { peer: None, ..Asked::default() },
        ),
        ("from: [{source: {principals: ['*']}}]", Asked::default(), Asked { peer: None, ..Asked::default() }),
        (
            "from: [{source: {principals: ['*/sa/bookinfo-productpage']}}]",
            Asked::default(),
            Asked { peer: Some("spiffe://cluster.local/ns/default/sa/x"), ..Asked::default() },
        ),
        (
            "from: [{source: {principals: ['cluster.local/ns/default/*']}}]",
            Asked::default(),
            Asked { peer: Some("spiffe://cluster.local/ns/defaulted/sa/x"), ..Asked::default() },
        ),
        (
            "from: [{source: {notPrincipals: ['*/sa/bookinfo-productpage']}}]",
            Asked { peer: None, ..Asked::default() },
            Asked::default(),
        ),
        (
            "from: [{source: {namespaces: [default]}}]",
            Asked::default(),
            Asked { peer: Some("spiffe://cluster.local/ns/xdefault/sa/x"), ..Asked::default() },
        ),
        (
            "from: [{source: {namespaces: ['def*']}}]",
            Asked::default(),
            Asked { peer: Some("spiffe://cluster.local/ns/other/sa/def"), ..Asked::default() },
        ),
        (
            "from: [{source: {namespaces: [de.ault]}}]",
            Asked { peer: Some("spiffe://cluster.local/ns/de.ault/sa/x"), ..Asked::default() },
            Asked::default(),
        ),
        (
            "from: [{source: {serviceAccounts: [bookinfo-productpage]}}]",
            Asked::default(),
            Asked { peer: Some("spiffe://cluster.local/ns/other/sa/bookinfo-productpage"), ..Asked::default() },
        ),
        (
            "from: [{source: {serviceAccounts: [other/x]}}]",
            Asked { peer: Some("spiffe://cluster.local/ns/other/sa/x"), ..Asked::default() },
            Asked::default(),
        ),
        (
            "from: [{source: {ipBlocks: [10.1.0.0/16, '::1']}}]",
            Asked::default(),
            Asked { peer: None, ..Asked::default() },
        ),
        (
            "from: [{source: {requestPrincipals: ['https://issuer/a/jason']}}]",
            Asked { claims: token, ..Asked::default() },
            Asked::default(),
        ),
        ("from: [{source: {requestPrincipals: ['*']}}]", Asked { claims: token, ..Asked::default() }, Asked::default()),
        (
            "from: [{source: {notRequestPrincipals: ['*']}}]",
            Asked::default(),
            Asked { claims: token, ..Asked::default() },
        ),
        (
            "to: [{operation: {methods: [GET, HEAD]}}]",
            Asked::default(),
            Asked { method: Method::POST, ..Asked::default() },
        ),
        (
            "to: [{operation: {notMethods: [POST]}}]",
            Asked::default(),
            Asked { method: Method::POST, ..Asked::default() },
        ),
        (
            "to: [{operation: {paths: ['/reviews/*']}}]",
            Asked::default(),
            Asked { path: "/admin?/reviews/", ..Asked::default() },
        ),
        ("to: [{operation: {paths: ['*/0']}}]", Asked::default(), Asked { path: "/reviews/1", ..Asked::default() }),
        (
            "to: [{operation: {paths: ['/reviews/{*}']}}]",
            Asked::default(),
            Asked { path: "/reviews/0/x", ..Asked::default() },
        ),
        (
            "to: [{operation: {paths: ['/{**}/x']}}]",
            Asked { path: "/reviews/0/x", ..Asked::default() },
            Asked::default(),
        ),
        ("to: [{operation: {hosts: ['REVIEWS:9080']}}]", Asked::default(), Asked { peer: None, ..Asked::default() }),
        ("to: [{operation: {hosts: ['reviews*']}}]", Asked::default(), Asked { peer: None, ..Asked::default() }),
        ("to: [{operation: {ports: ['9080']}}]", Asked::default(), Asked { peer: None, ..Asked::default() }),
        (
            "when: [{key: 'request.headers[X-Role]', values: [admin]}]",
            asked(&[("x-role", "admin")]),
            asked(&[("x-role", "administrator")]),
        ),
        ("when: [{key: 'request.headers[x-role]', values: ['*']}]", asked(&[("x-role", "any")]), Asked::default()),
        (
            "when: [{key: 'request.headers[x-role]', notValues: [guest]}]",
            Asked::default(),
            asked(&[("x-role", "guest")]),
        ),
        (
            "when: [{key: 'request.auth.claims[g][n]', values: [admin]}]",
            Asked { claims: token, ..Asked::default() },
            Asked::default(),
        ),
        (
            "when: [{key: request.auth.audiences, values: [y]}]",
            Asked { claims: token, ..Asked::default() },
            Asked::default(),
        ),
        (
            "when: [{key: request.auth.presenter, values: [p]}]",
            Asked { claims: token, ..Asked::default() },
            Asked::default(),
        ),
        (
            "when: [{key: source.ip, values: [10.1.2.3]}, {key: source.namespace, values: [default]}]",
            Asked::default(),
            Asked { peer: None, ..Asked::default() },
        ),
        (
            "when: [{key: remote.ip, notValues: [192.0.2.0/24]}, {key: destination.port, values: ['9080']}]",
            Asked::default(),
            Asked::default(),
        ),
    ] {
        let mut mesh = Mesh::bookinfo();
        mesh.apply(&policy("one", "default", &format!("{{rules: [{{{rule}}}]}}")));
        assert!(passes(&mesh, &matching), "{rule}");
        let decided_by_peer = other.peer.is_some() || rule.contains("source.namespace") || rule.contains("rincipals");
        if decided_by_peer && !rule.contains("remote.ip") {
            assert!(!passes(&mesh, &other), "{rule}");
        }
        mesh.apply(&policy("one", "default", &format!("{{action: DENY, rules: [{{{rule}}}]}}")));
        assert!(!passes(&mesh, &matching), "DENY {rule}");
    }
}

/// AZ2, AZ5: DENY before ALLOW, no policy lets all pass, one without rules nobody; namespaces, the root namespace, selectors,
/// services; alternatives within a rule.
#[test]
fn policies_apply_where_they_are_meant_to() {
    let mut mesh = Mesh::bookinfo();
    let get = Asked::default();
    let post = Asked { method: Method::POST, ..Asked::default() };
    let decided = |mesh: &Mesh, name: &str, asked: &Asked<'_>| match admit(mesh, name, asked) {
        Admit::Allow => "allowed".to_owned(),
        Admit::Refuse { status: 403, details, .. } => {
            details.trim_start_matches("rbac_access_denied_matched_policy").to_owned()
        }
        other => format!("{other:?}"),
    };
    assert_eq!(decided(&mesh, "reviews-v1", &get), "allowed");
    mesh.apply(&policy("nothing", "other", "{}"));
    assert_eq!(decided(&mesh, "reviews-v1", &get), "allowed", "of another namespace");
    mesh.apply(&policy("nothing", "default", "{}"));
    assert_eq!(decided(&mesh, "reviews-v1", &get), "[none]");
    mesh.apply(&policy(
        "viewer",
        "default",
        "{selector: {matchLabels: {app: reviews}}, rules: [{to: [{operation: {methods: [PUT]}}, {operation: {methods: [GET]}}]}]}",
    ));
    assert_eq!(decided(&mesh, "reviews-v1", &get), "allowed");
    assert_eq!(decided(&mesh, "reviews-v1", &post), "[none]");
    assert_eq!(decided(&mesh, "ratings-v1", &get), "[none]");
    mesh.apply(&policy(
        "no-one",
        "istio-system",
        "{action: DENY, selector: {matchLabels: {version: v1}}, rules: [{}, {to: [{operation: {methods: [GET]}}]}]}",
    ));
    assert_eq!(decided(&mesh, "reviews-v1", &get), "[ns[istio-system]-policy[no-one]-rule[0]]");
    assert_eq!(decided(&mesh, "reviews-v2", &get), "allowed");
    mesh.apply(&policy(
        "by-service",
        "default",
        "{targetRefs: [{kind: Service, group: '', name: reviews}], action: DENY, rules: [{}]}",
    ));
    assert_eq!(decided(&mesh, "reviews-v2", &get), "[ns[default]-policy[by-service]-rule[0]]");
    assert_eq!(decided(&mesh, "ratings-v1", &post), "[ns[istio-system]-policy[no-one]-rule[0]]");
}

/// AZ6, AZ7, AZ8: what is tried out or told of is not enforced; a provider is asked of the requests meant, and one that nobody
/// knows lets nobody pass.
#[test]
fn other_actions() {
    let mut mesh = Mesh::bookinfo();
    let dry = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: dry\n  annotations: {istio.io/dry-run: 'true'}\nspec: {action: DENY, rules: [{}]}\n";
    mesh.apply(dry);
    mesh.apply(&policy("told", "default", "{action: AUDIT, rules: [{}]}"));
    assert!(passes(&mesh, &Asked::default()));
    let custom = "{action: CUSTOM, provider: {name: opa}, rules: [{to: [{operation: {paths: [/reviews/0]}}]}]}";
    mesh.apply(&policy("asked", "default", custom));
    assert!(!passes(&mesh, &Asked::default()), "no such provider");
    mesh.settings.extension_providers.insert(
        "opa".to_owned(),
        ExtAuthz {
            service: AuthzService::Grpc { cluster: "outbound|9191||opa".into(), authority: String::new() },
            timeout: Duration::from_secs(1),
            failure_allows: false,
            status_on_error: 403,
            allowed_headers: None,
            disallowed_headers: Vec::new(),
            body: None,
            when: None,
        },
    );
    assert_eq!(admit(&mesh, "reviews-v1", &Asked::default()), Admit::Ask { at: 1 });
    assert!(passes(&mesh, &Asked { path: "/other", ..Asked::default() }));
    let config = mesh.config(&node("reviews-v1"));
    let kinds: Vec<_> = config.inbound[&9080].guards.iter().map(|it| matches!(it, Guard::Rbac(_))).collect();
    assert_eq!(kinds, [true, false, true, true], "CUSTOM, then AUDIT, then DENY");
}

/// AZ5: principals of our own trust domain are those of all its names.
#[test]
fn trust_domains_have_aliases() {
    let mut mesh = Mesh::bookinfo();
    mesh.settings.trust_domain_aliases.push("old.example".to_owned());
    mesh.apply(&policy(
        "one",
        "default",
        "{rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/a]}}]}]}",
    ));
    for (peer, expected) in [
        ("spiffe://cluster.local/ns/default/sa/a", true),
        ("spiffe://old.example/ns/default/sa/a", true),
        ("spiffe://other.example/ns/default/sa/a", false),
        ("spiffe://cluster.local/ns/default/sa/aa", false),
    ] {
        assert_eq!(passes(&mesh, &Asked { peer: Some(peer), ..Asked::default() }), expected, "{peer}");
    }
}
