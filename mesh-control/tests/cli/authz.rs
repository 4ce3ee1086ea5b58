//! `meshctl authz check`: the policies of a workload, and verdicts on made-up requests with the rule that decided.

use super::*;

const POLICIES: &str = r#"apiVersion: apps/v1
kind: Deployment
metadata: {name: shop-v1}
spec:
  template:
    metadata: {labels: {app: shop}}
    spec: {serviceAccountName: shop, containers: [{name: shop, ports: [{containerPort: 8080}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: viewers}
spec:
  selector: {matchLabels: {app: shop}}
  rules:
  - from: [{source: {namespaces: [front]}}]
    to: [{operation: {methods: [GET], paths: ["/items*"]}}]
  - when:
    - {key: "request.auth.claims[groups]", values: [staff]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-admin}
spec:
  action: DENY
  rules:
  - to: [{operation: {paths: ["/items/admin"]}}]
    from: [{source: {notPrincipals: ["cluster.local/ns/front/sa/boss"]}}]
  - from: [{source: {ipBlocks: [192.0.2.0/24]}}]
    to: [{operation: {paths: ["/by-ip"]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: tried
  annotations: {"istio.io/dry-run": "true"}
spec:
  selector: {matchLabels: {app: shop}}
  action: DENY
  rules: [{}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: others}
spec:
  selector: {matchLabels: {app: other}}
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: tokens}
spec:
  selector: {matchLabels: {app: shop}}
  jwtRules: [{issuer: me, jwks: '{"keys":[]}'}]
"#;

/// OP5: policies are listed in the order in which they are asked, with where they were written.
#[tokio::test(flavor = "multi_thread")]
async fn policies_of_a_workload_are_listed() {
    let mesh = Mesh::start().await;
    let file = mesh.write("shop.yaml", POLICIES);
    mesh.ok(&["apply", "-f", &file]);
    let expected = "\
shop-v1.default, port 8080: mutual TLS STRICT

ACTION   KIND                    POLICY             RULES   DRY-RUN   SOURCE
JWT      RequestAuthentication   default/tokens     1       no        shop.yaml:48
DENY     AuthorizationPolicy     default/no-admin   2       no        shop.yaml:21
DENY     AuthorizationPolicy     default/tried      1       yes       shop.yaml:32
ALLOW    AuthorizationPolicy     default/viewers    2       no        shop.yaml:10
";
    assert_eq!(mesh.ok(&["authz", "check", "shop"]).replace(&file, "shop.yaml"), expected);
    let json: Value = serde_json::from_str(&mesh.ok(&["authz", "check", "shop", "-o", "json"])).unwrap();
    assert_eq!(json["policies"][1]["object"]["name"], "no-admin");
    assert_eq!((&json["policies"][1]["line"], &json["verdict"]), (&Value::from(21), &Value::Null));

    let unknown = mesh.run(&["authz", "check", "nobody"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(stderr(&unknown).contains("no workload is called \"nobody\""), "{unknown:?}");
    assert_eq!(mesh.run(&["authz", "check"]).status.code(), Some(2));
    for wrong in [&["--claim", "x"][..], &["-H", "x"], &["--ip", "x"]] {
        assert_eq!(mesh.run(&[&["authz", "check", "shop"], wrong].concat()).status.code(), Some(2), "{wrong:?}");
    }
    for (wrong, why) in [(&["--from", "a//b", "--path", "/"][..], "is no identity"), (&["--method", "G T"], "method")] {
        let wrong = mesh.run(&[&["authz", "check", "shop"], wrong].concat());
        assert_eq!(wrong.status.code(), Some(1), "{wrong:?}");
        assert!(stderr(&wrong).contains(why), "{wrong:?}");
    }
}

/// OP5: a made-up request is judged as the workload's server would, and the rule that decides is named with its line.
#[tokio::test(flavor = "multi_thread")]
async fn requests_are_judged() {
    let mesh = Mesh::start().await;
    let file = mesh.write("shop.yaml", POLICIES);
    mesh.ok(&["apply", "-f", &file]);
    let check = |arguments: &[&str]| {
        let all = mesh.ok(&[&["authz", "check", "shop"], arguments].concat()).replace(&file, "shop.yaml");
        all.split_once("\n\n").and_then(|(_, rest)| rest.split_once("\n\n")).expect("a verdict").1.to_owned()
    };
    let boss = "cluster.local/ns/front/sa/boss";
    for (arguments, expected) in [
        (
            &["--from", "front", "--path", "/items/1"][..],
            "\
ASKED     SAYS
mTLS      spiffe://cluster.local/ns/front/sa/default is known by its certificate
JWT       no token: nothing is demanded of it
dry run   would refuse it
DENY      no rule matches
ALLOW     default/viewers rules[0] (shop.yaml:15) matches

allowed: ALLOW default/viewers rules[0] (shop.yaml:15) matches
",
        ),
        (
            &["--from", "front/web", "--path", "/items/../items/admin"],
            "\
ASKED     SAYS
mTLS      spiffe://cluster.local/ns/front/sa/web is known by its certificate
path      /items/../items/admin is taken for /items/admin
JWT       no token: nothing is demanded of it
dry run   would refuse it
DENY      default/no-admin rules[0] (shop.yaml:26) matches

refused with 403: DENY: default/no-admin rules[0] (shop.yaml:26) matches
",
        ),
        (
            &["--path", "/items/1"],
            "\
ASKED   SAYS
mTLS    the port takes mutual TLS only, and no --from says who asks

refused with 403: the port takes mutual TLS only, and no --from says who asks
",
        ),
    ] {
        assert_eq!(check(arguments), expected, "{arguments:?}");
    }
    for (arguments, last) in [
        (
            &["--from", boss, "--path", "/items/admin"][..],
            "allowed: ALLOW default/viewers rules[0] (shop.yaml:15) matches",
        ),
        (&["--from", boss, "--method", "POST", "--path", "/items"], "refused with 403: ALLOW: no rule matches"),
        (
            &["--from", "back", "--path", "/x", "--claim", "iss=me", "--claim", r#"groups=["staff"]"#],
            "allowed: ALLOW default/viewers rules[1] (shop.yaml:17) matches",
        ),
        (
            &["--from", "back", "--claim", "iss=me", "--claim", "groups=none"],
            "refused with 403: ALLOW: no rule matches",
        ),
        (
            &["--from", "back", "--claim", "iss=other"],
            "refused with 401: JWT: nobody believes tokens of the issuer \"other\"; say --claim iss=..., one of me",
        ),
        (
            &["--from", "front", "--path", "/by-ip", "--ip", "192.0.2.9"],
            "refused with 403: DENY: default/no-admin rules[1] (shop.yaml:28) matches",
        ),
        (
            &["--from", "front", "--path", "/by-ip"],
            "refused with 403: DENY: default/no-admin rules[1] (shop.yaml:28) matches; whether it matches cannot be told \
             from what is known of the request, so it counts against it",
        ),
        (
            &["--from", "spiffe://elsewhere/ns/front/sa/a", "--path", "/items"],
            "refused with 403: spiffe://elsewhere/ns/front/sa/a is none of this mesh's identities",
        ),
    ] {
        let said = check(arguments);
        assert_eq!(said.trim_end().rsplit('\n').next(), Some(last), "{arguments:?}: {said}");
    }
    let arguments = ["authz", "check", "shop", "--from", "front", "--path", "/items", "-o", "json"];
    let json: Value = serde_json::from_str(&mesh.ok(&arguments)).unwrap();
    let verdict = &json["verdict"];
    assert_eq!((&verdict["allowed"], &verdict["status"]), (&Value::Bool(true), &Value::from(200)));
    assert_eq!(
        (&verdict["rule"]["policy"], &verdict["rule"]["line"]),
        (&Value::from("default/viewers"), &Value::from(15))
    );
}
