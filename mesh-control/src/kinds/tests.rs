//! What is read and what is refused: Istio's sample files as they are, and a table of broken ones.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;

use super::*;
use crate::store::{SourceFile, Store, StoreError};

#[path = "../../../tests/peers.rs"]
mod peers;

/// A folder of Istio's Bookinfo sample, or `None` (said aloud) where the data is not there.
pub(crate) fn sample(folder: &str) -> Option<Vec<SourceFile>> {
    let entries = fs::read_dir(peers::istio(folder)?).unwrap();
    let mut files: Vec<SourceFile> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .map(|path| SourceFile {
            name: path.file_name().unwrap().to_string_lossy().into_owned(),
            text: fs::read_to_string(path).unwrap(),
        })
        .collect();
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Some(files)
}

pub(crate) fn file(name: &str, text: &str) -> SourceFile {
    SourceFile { name: name.to_owned(), text: text.to_owned() }
}

fn codes(found: &[Diagnostic]) -> Vec<String> {
    found.iter().map(|it| format!("{} {}:{}", it.code, it.line, it.column)).collect()
}

#[test]
fn every_networking_sample_is_taken_unchanged() {
    let Some(files) = sample("networking") else { return };
    assert_eq!(files.len(), 21);
    for SourceFile { name, text } in files {
        let parsed = parse(&name, &text).unwrap_or_else(|found| panic!("{name}: {}", found[0]));
        assert!(parsed.diagnostics.is_empty(), "{name}: {}", parsed.diagnostics[0]);
        assert!(!parsed.objects.is_empty(), "{name}");
    }
}

#[test]
fn every_networking_sample_applies_after_the_destination_rules() {
    let (Some(files), Some(platform)) = (sample("networking"), sample("platform/kube")) else { return };
    let base: Vec<SourceFile> = platform
        .into_iter()
        .filter(|file| file.name == "bookinfo.yaml")
        .chain(files.iter().filter(|file| file.name == "destination-rule-all.yaml").cloned())
        .collect();
    for file in &files {
        let mut store = Store::open(None).unwrap();
        store.apply(&base, 1).unwrap();
        let applied =
            store.apply(std::slice::from_ref(file), 2).unwrap_or_else(|error| panic!("{}: {error:?}", file.name));
        let found: Vec<&str> = applied.diagnostics.iter().map(|it| it.code.as_ref()).collect();
        let expected: &[&str] = match file.name.as_str() {
            // The host is another installation's.
            "certmanager-gateway.yaml" => &["IST0101"],
            // Its second rule is never reached, by design.
            "fault-injection-details-v1.yaml" => &["IST0130"],
            _ => &[],
        };
        assert_eq!(found, expected, "{}: {:#?}", file.name, applied.diagnostics);
    }
    // The whole folder at once: many versions of one object, of which the last counts.
    let mut store = Store::open(None).unwrap();
    store.apply(&base, 1).unwrap();
    let applied = store.apply(&files, 2).unwrap();
    assert!(applied.diagnostics.iter().any(|it| it.code == codes::DEFINED_TWICE));
}

#[test]
fn the_other_samples_are_read_or_refused_by_name() {
    let Some(platform) = sample("platform/kube") else { return };
    for SourceFile { name, text } in platform {
        let parsed = parse(&name, &text).unwrap_or_else(|found| panic!("{name}: {}", found[0]));
        let count = |kind| parsed.objects.iter().filter(|object| object.key.kind == kind).count();
        if name == "bookinfo.yaml" {
            let counts = (count(Kind::Service), count(Kind::ServiceAccount), count(Kind::Deployment));
            assert_eq!(counts, (4, 4, 6));
            assert_eq!(parsed.diagnostics.len(), 1, "said once: Deployments are hints");
            assert_eq!(parsed.diagnostics[0].level, Level::Info);
            let Some(Spec::Deployment(reviews)) = parsed
                .objects
                .iter()
                .find(|it| it.key.name == "reviews-v3" && it.key.kind == Kind::Deployment)
                .map(|it| &it.spec)
            else {
                panic!("reviews-v3")
            };
            assert_eq!(reviews.service_account, "bookinfo-reviews");
            assert_eq!(reviews.labels["version"], "v3");
            assert_eq!(reviews.ports[0].number, 9080);
        }
    }
    for SourceFile { name, text } in sample("gateway-api").unwrap_or_default() {
        let parsed = parse(&name, &text).unwrap_or_else(|found| panic!("{name}: {}", found[0]));
        assert!(parsed.diagnostics.is_empty(), "{name}: {}", parsed.diagnostics[0]);
    }
    for SourceFile { name, text } in sample("policy").unwrap_or_default() {
        let parsed = parse(&name, &text).unwrap_or_else(|found| panic!("{name}: {}", found[0]));
        assert!(parsed.objects.iter().all(|object| object.key.kind == Kind::EnvoyFilter), "{name}");
        assert!(
            parsed.diagnostics.iter().all(|it| it.code == codes::IGNORED_FIELD),
            "{name}: {:?}",
            parsed.diagnostics
        );
    }
}

/// RL9: rate limits are read of an `EnvoyFilter`, those of documents and examples as they stand; all else of it is refused by name.
#[test]
fn of_envoy_filters_rate_limits_are_taken() {
    let example = include_str!("../../../examples/bookinfo/mesh/ratelimit.yaml");
    let document = include_str!("../../../docs/rate-limits.md");
    let written = document.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
    for text in [example, written] {
        let parsed = parse("x.yaml", text).unwrap_or_else(|found| panic!("{}", found[0]));
        assert!(parsed.diagnostics.is_empty(), "{}", parsed.diagnostics[0]);
        let Spec::EnvoyFilter(filter) = &parsed.objects[0].spec else { panic!("{:?}", parsed.objects[0]) };
        assert!(filter.patches.iter().all(|patch| patch.side == Some(Side::Gateway)), "{filter:?}");
    }
    let patch = |patch: &str| {
        format!(
            "apiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\nmetadata: {{name: x}}\nspec:\n  configPatches:\n  - {patch}\n"
        )
    };
    let limit = "name: x, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit, stat_prefix: x";
    let filter = |context: &str, operation: &str, more: &str| {
        patch(&format!(
            "{{applyTo: HTTP_FILTER, match: {{context: {context}}}, patch: {{operation: {operation}, value: {{{limit}{more}}}}}}}}}"
        ))
    };
    assert!(parse("x.yaml", &filter("GATEWAY", "INSERT_FIRST", "")).is_ok());
    for (text, code, said) in [
        (filter("SIDECAR_OUTBOUND", "INSERT_FIRST", ""), codes::UNSUPPORTED_FIELD, "SIDECAR_OUTBOUND"),
        (filter("ANY", "INSERT_FIRST", ""), codes::INVALID, "context is missing"),
        (filter("GATEWAY", "REMOVE", ""), codes::UNSUPPORTED_FIELD, "operation REMOVE"),
        (filter("GATEWAY", "ADD", ", token_bucket: {max_tokens: 1}"), codes::INVALID, "fill_interval"),
        (filter("GATEWAY", "ADD", ", tokens: 1"), codes::INVALID, "tokens"),
        (
            filter("GATEWAY", "ADD", "").replace("local_ratelimit.v3.LocalRateLimit", "lua.v3.Lua"),
            codes::UNSUPPORTED_FIELD,
            "Lua",
        ),
        (filter("GATEWAY, proxy: {}", "ADD", ""), codes::UNSUPPORTED_FIELD, "match.proxy"),
        (filter("GATEWAY, listener: {name: x}", "ADD", ""), codes::UNSUPPORTED_FIELD, "listener.name"),
        (
            patch("{applyTo: LISTENER, patch: {operation: MERGE, value: {}}}"),
            codes::UNSUPPORTED_FIELD,
            "applyTo LISTENER",
        ),
        (
            patch("{applyTo: VIRTUAL_HOST, match: {context: GATEWAY}, patch: {operation: MERGE, value: {cors: {}}}}"),
            codes::UNSUPPORTED_FIELD,
            "value.cors",
        ),
        (
            patch(
                "{applyTo: HTTP_ROUTE, match: {context: GATEWAY}, patch: {operation: MERGE, value: {route: {timeout: 1s}}}}",
            ),
            codes::UNSUPPORTED_FIELD,
            "route.timeout",
        ),
        (patch("{applyTo: CLUSTER, patch: {operation: ADD, value: {name: x, type: NONE}}}"), codes::INVALID, "value"),
    ] {
        let found = parse("x.yaml", &text).unwrap_err();
        let [it] = found.as_slice() else { panic!("{text}: {found:?}") };
        assert!(it.code == code && it.message.contains(said), "{it}");
    }
}

/// Code, line, column, and a part of what is said.
type Fault = (&'static str, u32, u32, &'static str);

/// A file, and all that is found in it.
const BROKEN: &[(&str, &[Fault])] = &[
    ("a: [1\nb: 2\n", &[("MSH0001", 2, 2, "indent")]),
    ("just text\n", &[("MSH0002", 1, 1, "apiVersion")]),
    ("spec: {}\n", &[("MSH0002", 1, 1, "apiVersion"), ("MSH0002", 1, 1, "kind")]),
    ("apiVersion: v1\nkind: Banana\nmetadata: {name: x}\n", &[("MSH0003", 2, 7, "VirtualService")]),
    (
        "apiVersion: networking.istio.io/v1\nkind: VirtualServise\nmetadata: {name: x}\n",
        &[("MSH0003", 2, 7, "VirtualService")],
    ),
    (
        "apiVersion: networking.istio.io/v2\nkind: VirtualService\nmetadata: {name: x}\n",
        &[("MSH0003", 1, 13, "v1beta1")],
    ),
    ("apiVersion: v1\nkind: VirtualService\nmetadata: {name: x}\n", &[("MSH0003", 1, 13, "networking.istio.io/v1")]),
    (
        "apiVersion: authentication.istio.io/v1alpha1\nkind: Policy\nmetadata: {name: x}\n",
        &[("MSH0004", 2, 7, "PeerAuthentication")],
    ),
    (
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: Bad_Name}\nspec: {host: a}\n",
        &[("IST0106", 3, 18, "lower-case")],
    ),
    ("apiVersion: networking.istio.io/v1\nkind: DestinationRule\nspec: {host: a}\n", &[("MSH0007", 1, 1, "metadata")]),
    (
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: x}\nspec:\n  hots: a\n  subsets: 3\n",
        &[("MSH0007", 5, 3, "host"), ("MSH0005", 5, 3, "did you mean \"host\"?"), ("MSH0006", 6, 12, "a list")],
    ),
    (
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: x}\nspec:\n  host: a\n  trafficPolicy:\n    loadBalancer: {simple: ROUND_ROBBIN}\n    tls: {mode: MUTUAL}\n  subsets:\n  - {name: v1, labels: {version: 1.5}}\n  - {name: v1}\n",
        &[
            ("IST0106", 7, 28, "ROUND_ROBIN"),
            ("IST0106", 8, 17, "ISTIO_MUTUAL"),
            ("MSH0006", 10, 34, "quotes"),
            ("IST0106", 11, 12, "line 10"),
        ],
    ),
    (
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: x}\nspec:\n  hosts: [reviews]\n  http:\n  - route:\n    - destination: {host: reviews}\n      weight: -1\n    - destination: {hsot: reviews}\n      weight: ten\n  - timeout: 5\n    retries: {attempts: 2, retryOn: \"5xx,conect-failure\"}\n    fault: {abort: {httpStatus: 1000, percentage: {value: 110}}}\n    match:\n    - uri: {prefix: /a, exact: /b}\n    - uri: /c\n    - headers: {x: {regex: \"(\"}}\n",
        &[
            ("IST0106", 9, 15, "shares"),
            ("MSH0007", 10, 20, "host"),
            ("MSH0005", 10, 21, "did you mean \"host\"?"),
            ("MSH0006", 11, 15, "an integer"),
            ("MSH0007", 12, 5, "route"),
            ("MSH0006", 12, 14, "write 5s"),
            ("IST0106", 13, 37, "connect-failure"),
            ("IST0106", 14, 33, ""),
            ("IST0106", 14, 59, ""),
            ("IST0106", 16, 12, ""),
            ("IST0106", 17, 12, "exact:"),
            ("IST0106", 18, 28, ""),
        ],
    ),
    (
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: x}\nspec:\n  hosts: [\"*\"]\n  http:\n  - route: [{destination: {host: a}, weight: 0}, {destination: {host: b}, weight: 0}]\n  - redirect: {uri: /a}\n    route: [{destination: {host: a}}]\n  - delegate: {name: other}\n",
        &[("IST0106", 5, 11, "spec.gateways"), ("IST0106", 7, 12, "weight"), ("IST0106", 8, 15, "")],
    ),
    (
        "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: x}\nspec:\n  servers:\n  - port: {number: 443, name: a, protocol: HTTPS}\n    hosts: [\"*\"]\n    tls: {mode: AUTO_PASSTHROUGH}\n  - port: {number: 444, name: b, protocol: HTTPS}\n    hosts: [\"*\"]\n    tls: {mode: SIMPLE}\n  - port: {number: 445, name: c, protocol: HTTPS}\n    hosts: [\"*\"]\n    tls: {mode: MUTUAL, credentialName: other/c, cipherSuites: [RC4-SHA]}\n  - port: {number: 446, name: d, protocol: HTTP}\n    hosts: [\"*\"]\n    tls: {mode: SIMPLE, credentialName: c}\n  - port: {number: 447, name: e, protocol: HTTPS}\n    hosts: [\"*\"]\n    tls: {mode: MUTUAL, credentialName: c, caCertCredentialName: other/roots}\n",
        &[
            ("MSH0008", 8, 17, "networks of several clusters"),
            ("IST0106", 11, 10, "credentialName"),
            ("IST0106", 14, 41, "own namespace"),
            ("MSH0008", 14, 65, "spoken are"),
            ("IST0106", 17, 10, "protocol: HTTPS"),
            ("IST0106", 20, 66, "own namespace"),
        ],
    ),
    (
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: x}\nspec:\n  hosts: [a.example.com]\n  ports: [{number: 70000, name: http, protocol: HTTQ}]\n  resolution: STATIC\n",
        &[("IST0106", 5, 11, "STATIC"), ("IST0106", 6, 20, "65535"), ("IST0106", 6, 49, "GRPC")],
    ),
    (
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: x}\nspec:\n  hosts: [a.example.com]\n  addresses: [10.0.0.0/8, ten]\n  resolution: DNS\n  exportTo: [\"*\", Bad]\n",
        &[
            ("IST0106", 6, 15, "NONE or STATIC"),
            ("IST0106", 6, 27, "no IP address"),
            ("IST0106", 8, 14, "alone"),
            ("IST0106", 8, 19, "no namespace"),
        ],
    ),
    (
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: x}\nspec:\n  mtls: {mode: strict}\n  portLevelMtls: {http: {mode: DISABLE}}\n",
        &[("IST0106", 5, 16, "STRICT"), ("IST0106", 6, 18, "selector"), ("IST0106", 6, 19, "port number")],
    ),
    (
        "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: x}\nspec:\n  targetRefs: []\n  jwtRules:\n  - {issuer: a, jwks: nonsense}\n  - {issuer: b, jwksUri: \"file:///etc/passwd\"}\n  - {issuer: c, jwksUri: \"https://c/keys\", jwks: \"{}\"}\n  - {issuer: d}\n  - {jwksUri: \"https://e/keys\", fromHeaders: [{name: a b}]}\n",
        &[
            ("MSH0008", 5, 3, "matchLabels"),
            ("IST0106", 7, 23, "Key Set"),
            ("IST0106", 8, 26, "https://"),
            ("IST0106", 9, 26, "jwksUri and jwks"),
            ("MSH0008", 10, 5, "openid-configuration"),
            ("MSH0007", 11, 5, "issuer"),
            ("IST0106", 11, 54, "header name"),
        ],
    ),
];

/// OP3: every fault of a file is told at once, at its place, with what to do.
/// A timeout of 0 is none: what is merely close to it must not become that.
#[test]
fn durations_that_round_to_nothing_are_refused() {
    let rule = |timeout: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: x}}\nspec:\n  hosts: [x]\n  http:\n  - timeout: {timeout}\n    route:\n    - destination: {{host: x}}\n"
        )
    };
    for timeout in ["0s", "0", "0.0s", "0h0m0.000s", "1ns", "5s"] {
        assert!(parse("f.yaml", &rule(&format!("\"{timeout}\""))).is_ok(), "{timeout}");
    }
    for timeout in ["0.0000000001s", "0.1ns", "0h0.0000001us"] {
        let found = parse("f.yaml", &rule(timeout)).unwrap_err();
        assert_eq!(codes(&found), ["IST0106 7:14"], "{timeout}");
        assert!(found[0].message.contains("timeout is too short") && found[0].message.contains(timeout), "{found:?}");
    }
}

#[test]
fn broken_files_are_told_with_place_and_help() {
    for (text, expected) in BROKEN {
        let found = parse("f.yaml", text).expect_err(text);
        let places: Vec<String> =
            expected.iter().map(|(code, line, column, _)| format!("{code} {line}:{column}")).collect();
        assert_eq!(codes(&found), places, "{text}\n{}", found.iter().map(ToString::to_string).collect::<String>());
        for (it, (.., said)) in found.iter().zip(*expected) {
            assert!(it.to_string().contains(said), "{said:?} is not in\n{it}");
            assert_eq!(it.file, "f.yaml");
            // Of a Secret no value is shown.
            if !text.contains("kind: Secret") {
                assert_eq!(Some(it.excerpt.as_str()), text.lines().nth(it.line as usize - 1));
            }
        }
    }
}

/// OP3: a subset nobody defines refuses the apply and says where the known ones are.
#[test]
fn an_undefined_subset_is_refused_in_the_look_of_rustc() {
    let rules = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: reviews}\nspec:\n  host: reviews\n  subsets:\n  - {name: v1, labels: {version: v1}}\n  - {name: v3, labels: {version: v3}}\n";
    let routes = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: reviews\nspec:\n  hosts: [reviews]\n  http:\n  - route:\n    - destination: {host: reviews, subset: v33}\n";
    let services =
        "apiVersion: v1\nkind: Service\nmetadata: {name: reviews}\nspec: {ports: [{port: 9080, name: http}]}\n";
    let mut store = Store::open(None).unwrap();
    store.apply(&[file("rules.yaml", rules), file("services.yaml", services)], 1).unwrap();
    let Err(StoreError::Invalid(found)) = store.apply(&[file("reviews.yaml", routes)], 2) else { panic!() };
    assert_eq!(codes(&found), ["IST0101 9:44"]);
    assert_eq!(
        found[0].to_string(),
        "error[IST0101]: VirtualService default/reviews: subset \"v33\" of host \"reviews\" is not defined\n \
         --> reviews.yaml:9:44\n  |\n9 |     - destination: {host: reviews, subset: v33}\n  \
         |                                            ^^^ did you mean \"v3\"?\n  |\n  = note: defined in rules.yaml:7: v1, v3"
    );
    assert!(found[0].render(true).contains("\u{1b}["));
    assert_eq!(store.version(), 1);

    // What takes a subset away from an object that was right before is told and taken.
    store.apply(&[file("reviews.yaml", &routes.replace("v33", "v3"))], 3).unwrap();
    let applied = store.apply(&[file("rules.yaml", &rules.replace("name: v3", "name: v4"))], 4).unwrap();
    let it = &applied.diagnostics[0];
    assert_eq!((it.code.as_ref(), it.level, it.file.as_str()), ("IST0101", Level::Warning, "reviews.yaml"));
}

/// GW8: networks of several clusters are not joined: the gateway that would join them is refused by name.
#[test]
fn gateways_between_networks_are_refused() {
    let text = "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: x}\nspec:\n  servers:\n  - port: {number: 15443, name: tls, protocol: TLS}\n    hosts: [\"*.local\"]\n    tls: {mode: AUTO_PASSTHROUGH}\n";
    let found = parse("x.yaml", text).unwrap_err();
    let [it] = found.as_slice() else { panic!("{found:?}") };
    assert!(it.message.contains("spec.servers[0].tls.mode AUTO_PASSTHROUGH is not supported"), "{}", it.message);
}

/// GW11, RL9: what extends or patches Envoy, and what replaced itself long ago, is refused by name with what to do instead.
#[test]
fn kinds_that_are_not_taken_say_what_to_do_instead() {
    for (api_version, kind, said) in [
        ("extensions.istio.io/v1alpha1", "WasmPlugin", "Tower layer"),
        ("networking.istio.io/v1beta1", "ProxyConfig", "environment"),
        ("gateway.networking.k8s.io/v1alpha2", "UDPRoute", "HTTPRoute"),
        ("gateway.networking.k8s.io/v1", "BackendTLSPolicy", "DestinationRule"),
        ("config.istio.io/v1alpha2", "RouteRule", "VirtualService"),
        ("config.istio.io/v1alpha2", "DestinationPolicy", "DestinationRule"),
        ("config.istio.io/v1alpha2", "EgressRule", "ServiceEntry"),
        ("config.istio.io/v1alpha2", "IngressRule", "Gateway"),
        ("config.istio.io/v1alpha2", "rule", "Mixer"),
        ("config.istio.io/v1alpha2", "handler", "AuthorizationPolicy"),
        ("config.istio.io/v1alpha2", "instance", "built in"),
        ("config.istio.io/v1alpha2", "QuotaSpec", "connectionPool"),
        ("config.istio.io/v1alpha2", "QuotaSpecBinding", "connectionPool"),
        ("config.istio.io/v1alpha2", "memquota", "a local rate limit"),
        ("config.istio.io/v1alpha2", "redisquota", "RateLimitService"),
        ("config.istio.io/v1alpha2", "quota", "a bucket for each descriptor"),
        ("config.istio.io/v1alpha2", "HTTPAPISpec", "VirtualService"),
        ("config.istio.io/v1alpha2", "denier", "AuthorizationPolicy"),
        ("config.istio.io/v1alpha2", "metric", "built in"),
        ("rbac.istio.io/v1alpha1", "RbacConfig", "AuthorizationPolicy"),
        ("rbac.istio.io/v1alpha1", "ClusterRbacConfig", "AuthorizationPolicy"),
        ("rbac.istio.io/v1alpha1", "ServiceRoleBinding", "rules[].from"),
        ("networking.k8s.io/v1", "IngressClass", "Gateway"),
        ("authentication.istio.io/v1alpha1", "MeshPolicy", "PeerAuthentication"),
        ("rbac.istio.io/v1alpha1", "ServiceRole", "AuthorizationPolicy"),
        ("networking.k8s.io/v1", "Ingress", "VirtualService"),
    ] {
        let text = format!("apiVersion: {api_version}\nkind: {kind}\nmetadata: {{name: x}}\nspec: {{a: 1}}\n");
        let found = parse("f", &text).unwrap_err();
        assert_eq!(codes(&found), ["MSH0004 2:7"]);
        let it = &found[0];
        assert!(it.message.contains(kind) && it.help.as_ref().unwrap().contains(said), "{it}");
    }
}

#[test]
fn what_istio_1_0_wrote_is_taken_with_a_warning() {
    let text = "apiVersion: networking.istio.io/v1alpha3\nkind: VirtualService\nmetadata: {name: ratings}\nspec:\n  hosts: [ratings]\n  http:\n  - fault:\n      delay: {percent: 50, fixedDelay: 7s}\n      abort: {percent: 100, httpStatus: 500}\n    route: [{destination: {host: ratings}}]\n---\napiVersion: networking.istio.io/v1alpha3\nkind: DestinationRule\nmetadata: {name: ratings}\nspec:\n  host: ratings\n  traffic_policy:\n    load_balancer: {simple: LEAST_CONN}\n    outlier_detection: {consecutiveErrors: 1, base_ejection_time: 3m}\n";
    let parsed = parse("f", text).unwrap();
    assert_eq!(
        codes(&parsed.diagnostics),
        ["IST0002 1:13", "IST0002 8:24", "IST0002 9:24", "IST0002 12:13", "IST0002 18:29", "IST0002 19:44"],
        "{:#?}",
        parsed.diagnostics
    );
    let Spec::VirtualService(service) = &parsed.objects[0].spec else { panic!() };
    let fault = service.http[0].fault.as_ref().unwrap();
    assert_eq!(fault.delay.unwrap().fraction.numerator, 50);
    assert_eq!(fault.abort.unwrap().fraction.numerator, 100);
    let Spec::DestinationRule(rule) = &parsed.objects[1].spec else { panic!() };
    let (outlier, _) = rule.policy.settings.outlier.clone().unwrap();
    assert_eq!((outlier.consecutive_gateway_failure, outlier.base_ejection_time.as_secs()), (1, 180));
}

#[test]
fn fields_without_effect_are_named() {
    let text = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\nspec:\n  hosts: [a]\n  http:\n  - route: [{destination: {host: a}}]\n    corsPolicy: {maxAge: 1s}\n    match: [{statPrefix: x}]\n";
    let parsed = parse("f", text).unwrap();
    assert_eq!(codes(&parsed.diagnostics), ["MSH0009 8:5", "MSH0009 9:14"]);
    let told = |path: &str| parsed.diagnostics.iter().any(|told| told.message.contains(path));
    assert!(told("statPrefix is accepted and ignored"), "{:#?}", parsed.diagnostics);
}

#[test]
fn a_list_is_its_items_and_status_and_upkeep_are_passed_over() {
    let text = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: networking.istio.io/v1\n  kind: DestinationRule\n  metadata: {name: a, uid: x, creationTimestamp: \"2020-01-01\"}\n  spec: {host: a}\n  status: {}\n- apiVersion: v1\n  kind: ServiceAccount\n  metadata: {name: a, namespace: other}\n";
    let parsed = parse("f", text).unwrap();
    let keys: Vec<String> = parsed.objects.iter().map(|object| object.key.to_string()).collect();
    assert_eq!(keys, ["DestinationRule default/a", "ServiceAccount other/a"]);
}

#[test]
fn kinds_are_found_by_any_of_their_names() {
    for (word, kind) in [
        ("vs", Kind::VirtualService),
        ("virtualservices", Kind::VirtualService),
        ("VirtualService", Kind::VirtualService),
        ("serviceentries", Kind::ServiceEntry),
        ("virtualservices.networking.istio.io", Kind::VirtualService),
        ("svc", Kind::Service),
        ("pa", Kind::PeerAuthentication),
        ("gateway", Kind::Gateway),
        ("gateways.gateway.networking.k8s.io", Kind::KubeGateway),
        ("gtw", Kind::KubeGateway),
        ("httproutes", Kind::HttpRoute),
        ("gatewayclasses", Kind::GatewayClass),
        ("workloadgroups", Kind::WorkloadGroup),
    ] {
        assert_eq!(Kind::from_word(word), Some(kind), "{word}");
    }
    assert_eq!(Kind::from_word("bananas"), None);
}

/// AN15: routes by the claims of a token are refused by name, wanted or not wanted.
#[test]
fn routes_by_claims_are_refused() {
    for field in ["headers", "withoutHeaders"] {
        let text = format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: x}}\nspec:\n  hosts: [a]\n  http:\n  - match:\n    - {field}:\n        \"@request.auth.claims.group\": {{exact: admin}}\n    route: [{{destination: {{host: a}}}}]\n"
        );
        let found = parse("f.yaml", &text).unwrap_err();
        let told: Vec<_> = found.iter().map(|it| (&*it.code, it.line)).collect();
        assert_eq!(told, [(codes::UNSUPPORTED_FIELD, 9)], "{found:?}");
        assert!(found[0].message.contains("@request.auth.claims.group"), "{found:?}");
    }
}
