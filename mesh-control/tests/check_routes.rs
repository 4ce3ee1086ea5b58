//! `meshctl check-routes` as a program: files in the form of Envoy's router_check_tool, what it prints and how it exits.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    fs,
    process::{Command, Output},
};

use serde_json::Value;
use tempfile::TempDir;

const ROUTES: &str = r#"
virtual_hosts:
- name: shop
  domains: ["shop.example.com", "*.shop.example.com"]
  require_tls: EXTERNAL_ONLY
  request_headers_to_add:
  - header: {key: x-shop, value: "yes"}
  virtual_clusters:
  - name: order
    headers:
    - {name: ":method", string_match: {exact: POST}}
    - {name: ":path", string_match: {safe_regex: {regex: "^/orders$"}}}
  routes:
  - match: {prefix: /orders, headers: [{name: x-beta, present_match: true}]}
    metadata: {filter_metadata: {team: {owner: orders, tier: 1}}}
    route:
      cluster: orders-beta
      timeout: {seconds: 30}
      prefix_rewrite: /v2/orders
      host_rewrite_literal: orders.internal
  - match:
      prefix: /canary
      runtime_fraction: {runtime_key: canary.on, default_value: {numerator: 25, denominator: HUNDRED}}
    route: {cluster: canary}
  - match:
      prefix: /dark
      runtime_fraction: {runtime_key: dark.on, default_value: {numerator: 0, denominator: HUNDRED}}
    route: {cluster: dark}
  - match: {prefix: /split}
    route:
      weighted_clusters:
        clusters:
        - {name: v1, weight: 30}
        - name: v2
          weight: 70
          request_headers_to_add: [{header: {key: x-chosen, value: v2}}]
  - match: {prefix: /WHO, case_sensitive: false}
    route: {cluster: shop}
    request_headers_to_add: [{header: {key: x-client, value: "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"}}]
  - match: {path: /old}
    redirect: {path_redirect: /new, response_code: FOUND, https_redirect: true}
  - match: {path: /ping}
    direct_response: {status: 200, body: {inline_string: "pong"}}
    response_headers_to_add: [{header: {key: x-ping, value: "1"}}]
  - match: {prefix: /}
    route: {cluster: shop}
"#;

const TESTS: &str = r#"
runtime: {re2.max_program_size.error_level: 32768}
tests:
- test_name: beta
  input: {authority: shop.example.com, path: "/orders/7?x=1", method: GET, additional_request_headers: [{key: x-beta, value: "1"}]}
  validate:
    cluster_name: orders-beta
    virtual_host_name: shop
    virtual_cluster_name: other
    host_rewrite: orders.internal
    path_rewrite: "/v2/orders/7?x=1"
    path_redirect: ""
    timeout: 30s
    route_metadata: [{namespace: team, key: owner, value: orders}]
    request_header_matches:
    - {name: x-shop, string_match: {exact: "yes"}}
    - {name: ":authority", string_match: {exact: orders.internal}}
    - {name: x-envoy-original-path, present_match: true}
    - {name: ":cookie", invert_match: true}
    request_header_fields: [{key: ":path", value: "/v2/orders/7?x=1"}]
- test_name: a new order
  input: {authority: eu.shop.example.com, path: /orders, method: POST}
  validate: {cluster_name: shop, virtual_cluster_name: order}
- test_name: the canary is off
  input: {authority: shop.example.com, path: /canary, method: GET}
  validate: {cluster_name: shop}
- test_name: the canary takes a quarter
  input: {authority: shop.example.com, path: /canary, method: GET, runtime: canary.on, random_value: 24}
  validate: {cluster_name: canary}
- test_name: and no more
  input: {authority: shop.example.com, path: /canary, method: GET, runtime: canary.on, random_value: "125"}
  validate: {cluster_name: shop}
- test_name: a share of nothing takes the number 0
  input: {authority: shop.example.com, path: /dark, method: GET, runtime: dark.on, random_value: 0}
  validate: {cluster_name: dark}
- test_name: a share of nothing takes no other
  input: {authority: shop.example.com, path: /dark, method: GET, runtime: dark.on, random_value: 1}
  validate: {cluster_name: shop}
- test_name: the first of a split
  input: {authority: shop.example.com, path: /split, method: GET, random_value: 429}
  validate: {cluster_name: v1, request_header_matches: [{name: x-chosen, present_match: false}]}
- test_name: the second of a split
  input: {authority: shop.example.com, path: /split, method: GET, random_value: 130}
  validate: {cluster_name: v2, request_header_fields: [{key: x-chosen, value: v2}]}
- test_name: the tool is the caller
  input: {authority: shop.example.com, path: /who/else, method: GET}
  validate: {cluster_name: shop, request_header_fields: [{key: x-client, value: 127.0.0.1}]}
- test_name: redirected
  input: {authority: shop.example.com, path: "/old?q", method: GET}
  validate: {cluster_name: "", virtual_host_name: "", path_redirect: "https://shop.example.com/new?q", code_redirect: 302}
- test_name: answered
  input: {authority: shop.example.com, path: /ping, method: GET, ssl: true, internal: true}
  validate:
    path_redirect: "https://shop.example.com/ping"
    code_redirect: 200
    path_rewrite: ""
    response_header_matches:
    - {name: content-type, string_match: {exact: text/plain}}
    - {name: content-length, range_match: {start: 4, end: 5}}
    - {name: x-ping, string_match: {exact: "1"}}
    - {name: x-pong, present_match: true, invert_match: true}
- test_name: nobody's
  input: {authority: other.example.com, path: /, method: GET}
  validate: {cluster_name: "", virtual_host_name: "", path_rewrite: ""}
"#;

/// RM1, RM6, RA3, RA9, RA10, RA11, RA12, RA13: every field of a case is looked at, by the code that routes requests.
#[test]
fn cases_pass_and_fail_as_with_envoys_tool() {
    let files = Files::new();
    let (routes, tests) = (files.write("routes.yaml", ROUTES), files.write("tests.yaml", TESTS));
    let ran = check(&[&routes, &tests, "--output", "json"]);
    let report: Value = serde_json::from_slice(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
    assert_eq!(ran.status.code(), Some(0), "{report:#}");
    assert_eq!((&report["passed"], &report["failed"]), (&13.into(), &0.into()));
    assert_eq!((&report["routes"], &report["routes_checked"]), (&8.into(), &8.into()));
    let ignored: Vec<_> = report["not_acted_on"].as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect();
    assert!(ignored.contains(&"virtual_hosts.require_tls") && ignored.contains(&"runtime"), "{ignored:?}");

    let wrong = TESTS.replace("validate: {cluster_name: canary}", "validate: {cluster_name: dog, path_rewrite: /dog}");
    let tests = files.write("wrong.yaml", &wrong);
    let ran = check(&[&routes, &tests, "--only-show-failures"]);
    assert_eq!(ran.status.code(), Some(1));
    assert_eq!(
        text(&ran.stdout),
        "FAIL  the canary takes a quarter\n      cluster_name: expected \"dog\", actual \"canary\"\n      path_rewrite: expected \"/dog\", actual \"/canary\"\n12 passed, 1 failed; 7 of 8 routes checked (87.5 %)\n"
    );
    assert!(text(&ran.stderr).contains("warning: virtual_hosts.require_tls is not acted on"), "{ran:?}");
    assert!(text(&ran.stderr).contains("1 of 13 cases failed"), "{ran:?}");
}

/// Both files may be proto JSON, with names in either form; a minimum of routes to be checked can be asked for.
#[test]
fn json_is_read_and_coverage_can_be_demanded() {
    let files = Files::new();
    let routes = files.write(
        "routes.json",
        r#"{"virtualHosts": [{"name": "a", "domains": ["*"], "routes": [
            {"match": {"path": "/one"}, "route": {"cluster": "one", "hostRewriteLiteral": "one.internal"}},
            {"match": {"prefix": "/"}, "route": {"cluster": "rest"}},
        ]}]}"#,
    );
    let tests = files.write(
        "one.golden.proto.json",
        r#"{"tests": [{"testName": "one", "input": {"authority": "a", "path": "/one", "method": "GET"},
            "validate": {"clusterName": "one", "hostRewrite": "one.internal"}}]}"#,
    );
    assert_eq!(check(&[&routes, &tests]).status.code(), Some(0));
    assert_eq!(check(&[&routes, &tests, "--fail-under", "50"]).status.code(), Some(0));
    let ran = check(&[&routes, &tests, "--fail-under", "51"]);
    assert_eq!(ran.status.code(), Some(1));
    assert!(text(&ran.stderr).contains("50.0 % of the routes were checked"), "{ran:?}");
}

/// What is wrong with a file is said with its place, and a condition that cannot be judged refuses.
#[test]
fn wrong_files_are_refused_by_name() {
    let files = Files::new();
    let good =
        files.write("tests.yaml", "tests: [{test_name: a, input: {authority: a, path: /, method: GET}, validate: {}}]");
    let host = |routes: &str| format!("virtual_hosts: [{{name: a, domains: ['*'], routes: [{routes}]}}]");
    for (routes, why) in [
        (host("{match: {prefix: /, pathname: /}, route: {cluster: a}}"), "pathname is no field of RouteMatch"),
        (host("{match: {prefix: /, dynamic_metadata: []}, route: {cluster: a}}"), "dynamic_metadata is a condition"),
        (host("{match: {safe_regex: {regex: '('}}, route: {cluster: a}}"), "regex"),
        ("virtual_hosts: 3".to_owned(), "virtual_hosts is no list"),
    ] {
        let ran = check(&[&files.write("routes.yaml", &routes), &good]);
        assert_eq!(ran.status.code(), Some(65), "{ran:?}");
        assert!(text(&ran.stderr).contains(why), "{why}: {ran:?}");
    }
    let routes = files.write("routes.yaml", &host("{match: {prefix: /}, route: {cluster: a}}"));
    for (tests, why) in [
        ("tests: []", "has no `tests`"),
        ("tests: [{test_name: a, input: {authority: a, path: /, method: GET}}]", "missing field `validate`"),
        ("tests: [{test_name: a, input: {authority: a, path: /, method: GET}, validate: {cluster: a}}]", "`cluster`"),
        (
            "tests: [{test_name: a, input: {authority: '', path: /, method: GET}, validate: {}}]",
            "input.authority is missing",
        ),
    ] {
        let ran = check(&[&routes, &files.write("tests.yaml", tests)]);
        assert_eq!(ran.status.code(), Some(65), "{ran:?}");
        assert!(text(&ran.stderr).contains(why), "{why}: {ran:?}");
    }
}

struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.0.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

fn check(arguments: &[&str]) -> Output {
    let [routes, tests, more @ ..] = arguments else { panic!("two files") };
    let mut command = Command::new(env!("CARGO_BIN_EXE_meshctl"));
    command.args(["check-routes", "--config", routes, "--tests", tests]).args(more);
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}
