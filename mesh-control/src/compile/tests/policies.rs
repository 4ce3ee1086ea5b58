//! What objects mean beyond Istio's samples: conflicts, precedence, policies, entries, and all a rule can do.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{sync::Arc, time::Duration};

use mesh_core::config::{
    Action, CertificateFiles, Connections, Discovery, Fraction, Guard, HostRewrite, Http2, JwtKeys, JwtProvider,
    JwtRequirement, Keepalive, LoadBalancer, OutlierDetection, PathRewrite, Protocol, RetryBudget, SuccessRate,
    TcpKeepalive, Thresholds, TlsMode,
};

use super::*;

/// OP11: of two objects for one host the older counts, whichever was applied last, and the younger is warned of.
#[test]
fn of_two_virtual_services_for_a_host_the_oldest_counts() {
    let mut mesh = Mesh::bookinfo();
    mesh.apply(RULES);
    let rule = |name: &str, subset: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}}}\nspec:\n  hosts: [reviews]\n  http: [{{route: [{{destination: {{host: reviews, subset: {subset}}}}}]}}]\n"
        )
    };
    mesh.apply(&rule("z-first", "v1"));
    mesh.now += 1;
    let applied = mesh.store.apply(&[file("f.yaml", &rule("a-second", "v2"))], mesh.now).unwrap();
    let told: Vec<&str> = applied.diagnostics.iter().map(|it| it.code.as_ref()).collect();
    assert_eq!(told, ["IST0109"], "{:#?}", applied.diagnostics);
    let to = |mesh: &Mesh| goes(&mesh.config(&node("productpage-v1")), "http://reviews:9080/", &[], None);
    assert_eq!(to(&mesh), format!("outbound|9080|v1|{REVIEWS}"));
    // Applying the older one again does not make it younger.
    mesh.apply(&rule("z-first", "v3"));
    assert_eq!(to(&mesh), format!("outbound|9080|v3|{REVIEWS}"));
}

/// RA1: a subset that went away leaves a route that names the missing cluster.
#[test]
fn a_missing_subset_is_named_by_the_route() {
    let mut mesh = Mesh::bookinfo();
    mesh.apply(RULES);
    mesh.apply("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: reviews}\nspec:\n  hosts: [reviews]\n  http: [{route: [{destination: {host: reviews, subset: v2}}]}]\n");
    mesh.apply(&RULES.replace("name: v2", "name: v9"));
    let went = goes(&mesh.config(&node("productpage-v1")), "http://reviews:9080/", &[], None);
    assert_eq!(went, format!("missing outbound|9080|v2|{REVIEWS}"));
}

/// CP3, CP4, CP5, CP6: how connections are kept is the rule's to say.
#[test]
fn connections_are_kept_as_the_rule_says() {
    let mut mesh = Mesh::bookinfo();
    mesh.apply("apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: reviews}\nspec:\n  host: reviews\n  trafficPolicy:\n    connectionPool:\n      tcp: {tcpKeepalive: {probes: 9, time: 75s, interval: 7s}, maxConnectionDuration: 1h}\n      http: {idleTimeout: 5s, maxRequestsPerConnection: 1, maxConcurrentStreams: 12, useClientProtocol: true, http2KeepAlive: {interval: 30s, timeout: 3s}}\n");
    let config = mesh.config(&node("productpage-v1"));
    let cluster = &config.clusters[&*format!("outbound|9080||{REVIEWS}")];
    let seconds = Duration::from_secs;
    let expected = Connections {
        idle_timeout: Some(seconds(5)),
        max_duration: Some(seconds(3600)),
        max_requests: 1,
        http2: Http2 {
            max_concurrent_streams: 12,
            keepalive: Some(Keepalive { interval: Some(seconds(30)), timeout: seconds(3), after_idle: None }),
            ..Http2::default()
        },
        tcp_keepalive: Some(TcpKeepalive { probes: Some(9), time: Some(seconds(75)), interval: Some(seconds(7)) }),
        ..Connections::default()
    };
    assert_eq!((&cluster.connections, cluster.protocol), (&expected, Protocol::Caller));
}

/// OD8: policies are overridden field by field, by subset and by port.
#[test]
fn policies_are_merged_field_by_field() {
    let mut mesh = Mesh::bookinfo();
    mesh.apply("apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: reviews}\nspec:\n  host: reviews\n  trafficPolicy:\n    loadBalancer: {simple: RANDOM}\n    connectionPool: {tcp: {maxConnections: 7, connectTimeout: 30ms}, http: {http1MaxPendingRequests: 1, http2MaxRequests: 2, maxRetries: 3, h2UpgradePolicy: UPGRADE}}\n    outlierDetection: {consecutive5xxErrors: 1, interval: 1s, baseEjectionTime: 3m, maxEjectionPercent: 100, minHealthPercent: 20, consecutiveGatewayErrors: 4, splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 6}\n    retryBudget: {percent: 33, minRetryConcurrency: 5}\n    tls: {mode: DISABLE}\n  subsets:\n  - name: v1\n    labels: {version: v1}\n    trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}\n  - name: v2\n    labels: {version: v2}\n    trafficPolicy: {portLevelSettings: [{port: {number: 9080}, tls: {mode: ISTIO_MUTUAL}}]}\n");
    let config = mesh.config(&node("productpage-v1"));
    let of = |subset: &str| cluster(&config, &format!("outbound|9080|{subset}|{REVIEWS}"));
    assert_eq!(of("").load_balancer, LoadBalancer::Random);
    let v1 = of("v1");
    assert_eq!(v1.load_balancer, LoadBalancer::RoundRobin);
    assert_eq!(
        (v1.connect_timeout, v1.protocol, &v1.tls),
        (Duration::from_millis(30), Protocol::Http2, &TlsMode::Disable)
    );
    let retry_budget = Some(RetryBudget { percent: 33.0, min_concurrency: 5 });
    let limits = Thresholds {
        max_connections: 7,
        max_pending_requests: 1,
        max_requests: 2,
        max_retries: 3,
        retry_budget,
        ..Thresholds::default()
    };
    assert_eq!(v1.thresholds, limits);
    let outlier = OutlierDetection {
        consecutive_5xx: 1,
        interval: Duration::from_secs(1),
        base_ejection_time: Duration::from_secs(180),
        max_ejection_percent: 100,
        consecutive_gateway_failure: 4,
        enforcing_consecutive_gateway_failure: 100,
        split_local_origin: true,
        consecutive_local_origin_failure: 6,
        success_rate: SuccessRate { enforcing: 0, enforcing_local_origin: 0, ..SuccessRate::default() },
        ..OutlierDetection::default()
    };
    assert_eq!((&v1.outlier_detection, v1.panic_threshold), (&Some(outlier), 20));
    // A port's settings stand for all four: what they leave open is the default again.
    let v2 = of("v2");
    assert_eq!((&v2.load_balancer, &v2.outlier_detection), (&LoadBalancer::default(), &None));
    assert!(matches!(&v2.tls, TlsMode::Always(tls) if tls.workload_identity));
    assert_eq!(v2.thresholds.retry_budget, limits.retry_budget, "which is no setting of ports");
}

#[test]
fn destination_rules_are_looked_for_with_the_caller_then_the_service_then_the_mesh() {
    let mut mesh = Mesh::bookinfo();
    let rule = |namespace: &str, host: &str, simple: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: r, namespace: {namespace}}}\nspec: {{host: \"{host}\", trafficPolicy: {{loadBalancer: {{simple: {simple}}}}}}}\n"
        )
    };
    let balancing = |mesh: &Mesh, namespace: &str| {
        let config = mesh.config(&NodeInfo { namespace: namespace.into(), ..node("productpage-v1") });
        cluster(&config, &format!("outbound|9080||{REVIEWS}")).load_balancer.clone()
    };
    mesh.apply(&rule("istio-system", "*.svc.cluster.local", "RANDOM"));
    assert_eq!(balancing(&mesh, "default"), LoadBalancer::Random);
    mesh.apply(&rule("default", "reviews", "ROUND_ROBIN"));
    assert_eq!(balancing(&mesh, "default"), LoadBalancer::RoundRobin);
    assert_eq!(balancing(&mesh, "other"), LoadBalancer::RoundRobin);
    mesh.apply(&rule("other", REVIEWS, "LEAST_REQUEST"));
    assert_eq!(balancing(&mesh, "other"), LoadBalancer::default());
    assert_eq!(balancing(&mesh, "default"), LoadBalancer::RoundRobin);
}

/// AN4: workload before namespace before mesh, ports of a workload first; strict where nobody says otherwise.
#[test]
fn peer_authentication_goes_by_precedence() {
    let mut mesh = Mesh::bookinfo();
    let policy = |name: &str, namespace: &str, spec: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
        )
    };
    let mode = |mesh: &Mesh, name: &str| mesh.config(&node(name)).inbound[&9080].mtls;
    assert_eq!(mode(&mesh, "reviews-v1"), MtlsMode::Strict);
    mesh.apply(&policy("all", "istio-system", "{mtls: {mode: PERMISSIVE}}"));
    assert_eq!(mode(&mesh, "reviews-v1"), MtlsMode::Permissive);
    mesh.apply(&policy("ours", "default", "{mtls: {mode: STRICT}}"));
    assert_eq!(mode(&mesh, "reviews-v1"), MtlsMode::Strict);
    mesh.apply(&policy(
        "reviews",
        "default",
        "{selector: {matchLabels: {app: reviews}}, mtls: {mode: UNSET}, portLevelMtls: {9080: {mode: DISABLE}}}",
    ));
    assert_eq!(mode(&mesh, "reviews-v1"), MtlsMode::Disable);
    assert_eq!(mode(&mesh, "ratings-v1"), MtlsMode::Strict);
    // Callers do not try mutual TLS with those who refuse it.
    let config = mesh.config(&node("productpage-v1"));
    let endpoints = |name: &str| {
        let cluster = cluster(&config, &format!("outbound|9080||{name}.default.svc.cluster.local"));
        cluster.endpoints.localities[0].endpoints[0].mtls
    };
    assert_eq!((endpoints("reviews"), endpoints("ratings")), (false, true));
    let inbound = &config.inbound[&9080];
    assert_eq!(
        (&*inbound.name, inbound.routes.virtual_hosts[0].domains.as_slice()),
        ("0.0.0.0_9080", &["*".to_owned()][..])
    );
}

/// AN13, AN14: whose tokens a workload believes is what mesh, namespace and workload say together, in the form istiod writes;
/// keys are fetched from services of the mesh alone.
#[test]
fn request_authentication_is_combined() {
    let mut mesh = Mesh::bookinfo();
    let policy = |name: &str, namespace: &str, spec: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
        )
    };
    let jwt = |mesh: &Mesh, name: &str| match mesh.config(&node(name)).inbound[&9080].guards.as_slice() {
        [] => None,
        [Guard::Jwt(jwt)] => Some(Arc::clone(jwt)),
        other => panic!("{other:?}"),
    };
    assert_eq!(jwt(&mesh, "reviews-v1"), None);
    mesh.apply(&policy("all", "istio-system", "{jwtRules: [{issuer: M, jwks: '{\"keys\": []}'}]}"));
    mesh.apply(&policy(
        "reviews",
        "default",
        "{selector: {matchLabels: {app: reviews}}, jwtRules: [{issuer: A, audiences: [x], jwksUri: 'http://details:9080/keys', \
         fromHeaders: [{name: X-Jwt, prefix: 'J '}], fromParams: [t], fromCookies: [c], forwardOriginalToken: true, \
         outputPayloadToHeader: X-P, outputClaimToHeaders: [{header: X-S, claim: a.b}], timeout: 2s, spaceDelimitedClaims: [roles]}]}",
    ));
    mesh.apply(&policy("other", "elsewhere", "{jwtRules: [{issuer: E, jwks: '{\"keys\": []}'}]}"));
    let any = JwtRequirement::Any;
    let of = |n: usize| JwtRequirement::Provider { name: format!("origins-{n}").into(), audiences: None };
    let or_none = |n| any(vec![of(n), JwtRequirement::AllowMissing]);
    let one = jwt(&mesh, "ratings-v1").unwrap();
    assert_eq!(one.rules[0].requirement, Some(or_none(0)));
    assert_eq!(one.providers["origins-0"].issuer, "M");
    let two = jwt(&mesh, "reviews-v1").unwrap();
    let all = JwtRequirement::All(vec![or_none(0), or_none(1)]);
    assert_eq!(two.rules[0].requirement, Some(any(vec![of(0), of(1), all])));
    let expected = JwtProvider {
        issuer: "A".to_owned(),
        audiences: vec!["x".to_owned()],
        keys: JwtKeys::Remote {
            uri: "http://details:9080/keys".to_owned(),
            cluster: "outbound|9080||details.default.svc.cluster.local".into(),
            timeout: Duration::from_secs(2),
            refresh: Duration::from_secs(1200),
        },
        forward: true,
        from_headers: vec![("x-jwt".into(), "J ".to_owned())],
        from_params: vec!["t".to_owned()],
        from_cookies: vec!["c".to_owned()],
        payload_header: Some("x-p".into()),
        payload_name: Some("payload".to_owned()),
        space_delimited: ["scope", "permission", "roles"].map(str::to_owned).to_vec(),
        claim_headers: vec![("x-s".into(), vec!["a".to_owned(), "b".to_owned()])],
        ..JwtProvider::default()
    };
    assert_eq!(*two.providers["origins-0"], expected);
    // Not a service of the mesh: nothing is fetched, nothing of that issuer believed.
    mesh.apply(&policy("all", "istio-system", "{jwtRules: [{issuer: M, jwksUri: 'http://169.254.169.254/keys'}]}"));
    assert_eq!(jwt(&mesh, "ratings-v1").unwrap().providers["origins-0"].keys, JwtKeys::default());
}

/// GW4, GW9: services and endpoints that are written down.
#[test]
fn service_entries_and_workload_entries_make_clusters() {
    let mut mesh = Mesh::bookinfo();
    mesh.apply("apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: db}\nspec:\n  hosts: [db.default.svc.cluster.local]\n  location: MESH_INTERNAL\n  resolution: STATIC\n  ports: [{number: 9000, name: grpc, protocol: GRPC}]\n  workloadSelector: {labels: {app: db}}\n---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: db-1}\nspec: {address: 10.0.0.9, ports: {grpc: 9999}, labels: {app: db}, serviceAccount: db, weight: 3, locality: eu/a}\n---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: legacy}\nspec:\n  hosts: [legacy.example.com]\n  ports: [{number: 80, name: http, protocol: HTTP}]\n");
    let config = mesh.config(&node("productpage-v1"));
    let db = cluster(&config, "outbound|9000||db.default.svc.cluster.local");
    assert_eq!((addresses(db), db.protocol), (vec!["10.0.0.9:9999".to_owned()], Protocol::Http2));
    let locality = &db.endpoints.localities[0];
    assert_eq!((&*locality.locality.region, &*locality.locality.zone), ("eu", "a"));
    assert_eq!((locality.endpoints[0].weight, locality.endpoints[0].mtls), (3, true));
    let TlsMode::IfEndpointCan(tls) = &db.tls else { panic!() };
    assert_eq!(tls.alpn, ["istio-h2", "istio", "h2"]);
    assert!(tls.subject_alt_names[0].is_match("spiffe://cluster.local/ns/default/sa/db"));
    assert_eq!(goes(&config, "http://db:9000/", &[], None), "outbound|9000||db.default.svc.cluster.local");
    let legacy = cluster(&config, "outbound|80||legacy.example.com");
    assert_eq!((&legacy.discovery, &legacy.tls), (&Discovery::OriginalDestination, &TlsMode::Disable));
}

#[test]
fn a_workload_on_another_port_is_found_by_the_ports_name() {
    let mut mesh = Mesh::bookinfo();
    let mut moved = (*mesh.registry.workloads()[1]).clone();
    moved.ports = vec![WorkloadPort { name: "http".into(), number: 19_080 }];
    let service = moved.labels["app"].clone();
    mesh.registry.connect(moved);
    let config = mesh.config(&node("reviews-v1"));
    let cluster = cluster(&config, &format!("outbound|9080||{service}.default.svc.cluster.local"));
    assert!(addresses(cluster)[0].ends_with(":19080"), "{:?}", addresses(cluster));
}

/// RA9, RA10, RA11, RA12, RA13: what else a rule can do comes through.
#[test]
fn rewrites_redirects_answers_and_headers_come_through() {
    let mut mesh = Mesh::bookinfo();
    mesh.apply("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: reviews}\nspec:\n  hosts: [reviews]\n  http:\n  - match: [{uri: {exact: /old}}]\n    redirect: {uri: /new, authority: other, derivePort: FROM_REQUEST_PORT, redirectCode: 302}\n  - match: [{uri: {prefix: /no}}]\n    directResponse: {status: 418, body: {string: teapot}}\n  - timeout: 2s\n    retries: {attempts: 1, perTryTimeout: 1s, retryOn: \"reset,503,unavailable\"}\n    rewrite: {uri: /v2}\n    headers: {request: {set: {X-A: a, Host: elsewhere}, add: {x-b: b}, remove: [x-c]}}\n    route:\n    - destination: {host: reviews}\n      weight: 30\n      headers: {response: {add: {x-d: d}}}\n    - destination: {host: details}\n      weight: 70\n    - destination: {host: ratings}\n      weight: 0\n");
    let config = mesh.config(&node("productpage-v1"));
    let host = host(&config, 9080, &format!("{REVIEWS}:9080"));
    let Action::Redirect(redirect) = &host.routes[0].action else { panic!() };
    assert_eq!((redirect.status, redirect.host.as_deref(), redirect.port), (302, Some("other"), Some(9080)));
    assert_eq!(redirect.path, Some(PathRewrite::Full("/new".into())));
    let Action::DirectResponse(answer) = &host.routes[1].action else { panic!() };
    assert_eq!((answer.status, answer.body.as_str()), (418, "teapot"));
    let to = forward(host, 2);
    assert_eq!(to.clusters.iter().map(|it| it.weight).collect::<Vec<_>>(), [30, 70]);
    let elsewhere = HostRewrite::Literal("elsewhere".to_owned());
    assert_eq!((to.clusters[0].headers.response.len(), &to.host_rewrite), (1, &Some(elsewhere)));
    assert_eq!(to.path_rewrite, Some(PathRewrite::Prefix("/v2".into())));
    assert_eq!(to.timeout, Some(Duration::from_secs(2)));
    let retry = to.retry.as_ref().unwrap();
    assert_eq!((retry.retries, retry.per_try_timeout), (1, Some(Duration::from_secs(1))));
    assert_eq!((retry.on.status_codes.as_slice(), retry.on.http.len(), retry.on.grpc.len()), (&[503][..], 2, 1));
    let names: Vec<String> = host.routes[2].headers.request.iter().map(|it| format!("{it:?}")).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    assert!(names[0].starts_with("Set { name: \"x-a\"") && names[2].starts_with("Remove { name: \"x-c\""), "{names:?}");
}

/// What a change does not touch comes out equal, so that it need not be sent again.
#[test]
fn unchanged_parts_come_out_equal() {
    let mut mesh = Mesh::bookinfo();
    mesh.apply(RULES);
    let before = mesh.config(&node("productpage-v1"));
    assert_eq!(before, mesh.config(&node("productpage-v1")));
    mesh.apply("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: reviews}\nspec:\n  hosts: [reviews]\n  http: [{route: [{destination: {host: reviews, subset: v2}}]}]\n");
    let after = mesh.config(&node("productpage-v1"));
    assert_eq!((&before.clusters, &before.inbound), (&after.clusters, &after.inbound));
    assert_eq!(before.outbound[&80], after.outbound[&80]);
    assert_ne!(before.outbound[&9080], after.outbound[&9080]);
    mesh.registry.disconnect("default", "reviews-v1", true, 1);
    let fewer = mesh.config(&node("productpage-v1"));
    assert_eq!(after.outbound, fewer.outbound);
    let changed: Vec<&str> =
        after.clusters.iter().filter(|(name, it)| fewer.clusters[*name] != **it).map(|(name, _)| &**name).collect();
    assert_eq!(changed, [format!("outbound|9080|v1|{REVIEWS}"), format!("outbound|9080||{REVIEWS}")]);
}

/// OD12: codes of one's own choice count instead of 5xx, as many in a row.
#[test]
fn error_codes_of_ones_own_choice_become_a_monitor() {
    let mut mesh = Mesh::bookinfo();
    mesh.apply("apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: reviews}\nspec:\n  host: reviews\n  trafficPolicy:\n    outlierDetection: {consecutive5xxErrors: 2, outlierDetectionHttpErrorCodes: [429, 503]}\n");
    let config = mesh.config(&node("productpage-v1"));
    let detection =
        cluster(&config, "outbound|9080||reviews.default.svc.cluster.local").outlier_detection.clone().unwrap();
    let [monitor] = detection.monitors.as_slice() else { panic!("{detection:?}") };
    assert_eq!((monitor.consecutive, &*monitor.statuses), (2, &[(429, 429), (503, 503)][..]));
    assert_eq!(detection.consecutive_5xx, 0);
}

/// MI1, MI2: `mirror` with its percentage and `mirrors` become copies to clusters; a share of 0 is none.
#[test]
fn mirrors_become_copies() {
    let mut mesh = Mesh::bookinfo();
    mesh.apply("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: reviews}\nspec:\n  hosts: [reviews]\n  http:\n  - match: [{uri: {prefix: /one}}]\n    mirror: {host: ratings}\n    route: [{destination: {host: reviews}}]\n  - match: [{uri: {prefix: /half}}]\n    mirror: {host: reviews, subset: v2}\n    mirrorPercentage: {value: 50}\n    route: [{destination: {host: reviews}}]\n  - match: [{uri: {prefix: /none}}]\n    mirror: {host: ratings}\n    mirrorPercentage: {value: 0}\n    route: [{destination: {host: reviews}}]\n  - mirrors:\n    - {destination: {host: ratings}, percentage: {value: 12.5}}\n    - {destination: {host: details, port: {number: 9080}}}\n    route: [{destination: {host: reviews}}]\n");
    let config = mesh.config(&node("productpage-v1"));
    let host = host(&config, 9080, &format!("{REVIEWS}:9080"));
    let copies = |n| {
        let mirrors = &forward(host, n).mirrors;
        assert!(mirrors.iter().all(|mirror| mirror.trace_sampled == Some(false)));
        mirrors.iter().map(|mirror| (mirror.cluster.to_string(), mirror.fraction)).collect::<Vec<_>>()
    };
    let cluster = |service: &str, subset: &str| format!("outbound|9080|{subset}|{service}.default.svc.cluster.local");
    let share = |percent| Some(Fraction::percent(percent));
    assert_eq!(copies(0), [(cluster("ratings", ""), None)]);
    assert_eq!(copies(1), [(cluster("reviews", "v2"), share(50.0))]);
    assert_eq!(copies(2), []);
    assert_eq!(copies(3), [(cluster("ratings", ""), share(12.5)), (cluster("details", ""), None)]);
}

/// AN3, AN6, AN7: the modes of TLS towards endpoints, with files, names and server name as they are written.
#[test]
fn tls_modes_are_those_of_the_rule() {
    let tls = |text: &str| {
        let mut mesh = Mesh::bookinfo();
        mesh.apply(&format!("apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: reviews}}\nspec:\n  host: reviews\n  trafficPolicy:\n    tls: {text}\n"));
        let config = mesh.config(&node("productpage-v1"));
        cluster(&config, "outbound|9080||reviews.default.svc.cluster.local").tls.clone()
    };
    let always = |text: &str| match tls(text) {
        TlsMode::Always(tls) => tls,
        other => panic!("{other:?}"),
    };
    assert_eq!(tls("{mode: DISABLE}"), TlsMode::Disable);
    let simple = always("{mode: SIMPLE, caCertificates: system, insecureSkipVerify: false}");
    assert_eq!((simple.sni.as_str(), &simple.roots), ("reviews.default.svc.cluster.local", &None));
    assert!(!simple.workload_identity && simple.certificate.is_none() && simple.subject_alt_names.is_empty());
    let named =
        always("{mode: SIMPLE, sni: api.example.com, subjectAltNames: [a, b], caCertificates: /certs/root.pem}");
    assert_eq!((named.sni.as_str(), named.roots.as_deref()), ("api.example.com", Some("/certs/root.pem")));
    assert!(named.subject_alt_names.len() == 2 && named.subject_alt_names[1].is_match("b"));
    let mutual = always("{mode: MUTUAL, clientCertificate: /c.pem, privateKey: /k.pem, caCertificates: /r.pem}");
    let files = CertificateFiles { chain: "/c.pem".into(), key: "/k.pem".into() };
    assert_eq!((&mutual.certificate, mutual.roots.as_deref()), (&Some(files), Some("/r.pem")));
    let own = always("{mode: ISTIO_MUTUAL}");
    assert!(own.workload_identity && own.sni == "outbound_.9080_._.reviews.default.svc.cluster.local");
    assert!(own.subject_alt_names[0].is_match("spiffe://cluster.local/ns/default/sa/bookinfo-reviews"));
}
