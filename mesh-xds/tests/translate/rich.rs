//! A configuration with something in every field that has a form on the wire.

use std::{sync::Arc, time::Duration};

use mesh_core::config::*;

mod clusters;
mod guards;

/// One of everything.
pub(crate) fn config() -> Config {
    let mut config = Config::default();
    config.outbound.insert(9080, Arc::new(table("9080")));
    config.outbound.insert(80, Arc::new(RouteTable { name: "80".into(), ..RouteTable::default() }));
    for (port, mtls) in guards::PORTS {
        config.inbound.insert(port, Arc::new(inbound(port, mtls)));
    }
    register_filter();
    let settings = HttpSettings {
        filters: vec![
            OwnFilter { name: "first".into(), message: FILTER.into(), config: vec![1, 2], disabled: false },
            OwnFilter { name: "second".into(), message: FILTER.into(), config: vec![], disabled: true },
        ],
        idle_timeout: Some(Duration::from_secs(9)),
        max_stream_duration: Some(Duration::from_secs(99)),
        fault: Some(Fault {
            abort: Some(Abort { status: AbortStatus::ByHeader, fraction: Fraction::ALL }),
            ..by_header()
        }),
        rate_limit: Some(Arc::new(rate_limit())),
        global_limits: global_limits(),
        session: Some(Arc::new(Session { state: Some(SessionState::Cookie(cookie())), strict: true })),
        telling: Some(Arc::new(telling())),
    };
    config.http.insert(9080, Arc::new(settings));
    for cluster in clusters::clusters() {
        config.clusters.insert(cluster.name.clone(), Arc::new(cluster));
    }
    config
}

fn telling() -> Telling {
    let header = TagValue::Header { name: "x-user".into(), default: "nobody".into() };
    let environment = TagValue::Environment { name: "ZONE".into(), default: String::new() };
    let tags = [
        ("literal", TagValue::Literal("x".into())),
        ("header", header),
        ("environment", environment),
        ("format", TagValue::Format("%REQ(:METHOD)%".into())),
    ];
    let tags = tags.map(|(name, value)| CustomTag { name: name.into(), value }).to_vec();
    let json = [("code", "%RESPONSE_CODE%"), ("path", "%REQ(:PATH)%")];
    let json = json.map(|(name, text)| (name.to_owned(), text.to_owned())).into();
    let labels = [("user", "request.headers['x-user']")].map(|(name, text)| (name.to_owned(), text.to_owned())).into();
    Telling {
        tracing: Some(Tracing { client: 20.0, random: 12.5, overall: 100.0, tags }),
        access_log: Some(vec![
            AccessLog::default(),
            AccessLog { format: LogFormat::Text("%RESPONSE_CODE%\n".into()), ..AccessLog::default() },
            AccessLog {
                path: "/dev/stderr".into(),
                format: LogFormat::Json(json),
                filter: Some("response.code >= 400".into()),
            },
        ]),
        metrics: vec![
            MetricChange { name: "requests_total".into(), labels, ..MetricChange::default() },
            MetricChange { without: vec!["source_cluster".into()], ..MetricChange::default() },
            MetricChange { name: "request_bytes".into(), drop: true, ..MetricChange::default() },
        ],
    }
}

fn exact(value: &str) -> StringMatch {
    StringMatch::Exact { value: value.to_owned(), ignore_case: false }
}

fn regex(pattern: &str) -> Regex {
    pattern.parse().unwrap()
}

fn changes(tag: &str) -> HeaderChanges {
    let (name, value) = (|s: &str| format!("x-{tag}-{s}"), |s: &str| s.parse::<Format>().unwrap());
    HeaderChanges {
        request: vec![
            HeaderChange::Remove { name: name("gone") },
            HeaderChange::Set { name: name("set"), value: Format::literal("100%") },
            HeaderChange::Append { name: name("add"), value: Format::literal("") },
            HeaderChange::AddIfAbsent { name: name("absent"), value: value("%REQ(x-a?:path):10%") },
            HeaderChange::SetIfPresent { name: name("there"), value: value("%PROTOCOL%").keeping_empty() },
        ],
        response: vec![
            HeaderChange::Remove { name: name("gone") },
            HeaderChange::Append { name: name("add"), value: value("%RESP(b)%") },
        ],
    }
}

fn retry() -> RetryPolicy {
    use HttpRetry::{ConnectFailure, RefusedStream, RetriableHeaders, RetriableStatusCodes, ServerError};
    RetryPolicy {
        on: RetryConditions {
            http: vec![ConnectFailure, RefusedStream, ServerError, RetriableStatusCodes, RetriableHeaders],
            grpc: vec![GrpcRetry::Unavailable, GrpcRetry::Cancelled],
            status_codes: vec![503, 429],
            headers: vec![header("x-retry", HeaderMatcher::Present(true))],
        },
        retries: 2,
        per_try_timeout: Some(Duration::from_millis(1_500)),
        per_try_idle_timeout: Some(Duration::from_millis(700)),
        rate_limited: Some(RateLimitedBackOff {
            headers: vec![
                ResetHeader { name: "retry-after".into(), format: ResetFormat::Seconds },
                ResetHeader { name: "x-ratelimit-reset".into(), format: ResetFormat::UnixTimestamp },
            ],
            max: Duration::from_secs(30),
        }),
        request_headers: vec![header(":method", HeaderMatcher::Value(exact("POST")))],
        back_off: BackOff { base: Duration::from_millis(10), max: Duration::from_secs(1) },
        avoid_previous_hosts: 5,
        only_idempotent: true,
    }
}

fn by_header() -> Fault {
    Fault { delay: Some(FaultDelay { duration: None, fraction: Fraction::ALL }), ..Fault::default() }
}

fn header(name: &str, matcher: HeaderMatcher) -> HeaderMatch {
    HeaderMatch { name: name.into(), matcher, invert: false, missing_as_empty: false }
}

fn route(matches: RouteMatch, action: Action) -> Route {
    Route {
        name: "".into(),
        origin: None,
        matches,
        action,
        fault: None,
        headers: HeaderChanges::default(),
        operation: None,
    }
}

fn to(cluster: &str) -> Vec<WeightedCluster> {
    vec![WeightedCluster { cluster: cluster.into(), weight: 1, criteria: criteria(), ..WeightedCluster::default() }]
}

/// A filter that the program brought along.
const FILTER: &str = "test.rich.Filter";

fn register_filter() {
    #[derive(Debug)]
    struct Nothing;
    impl mesh_core::filter::HttpFilter for Nothing {
        fn request(&self, _: &mut http::request::Parts) -> Option<mesh_core::filter::FilterAnswer> {
            None
        }
    }
    mesh_core::filter::register(FILTER, |_| Ok(Arc::new(Nothing)));
}

fn criteria() -> Criteria {
    let metadata =
        vec![("canary".into(), MetadataValue::Bool(true)), ("shard".into(), MetadataValue::Number("1.5".into()))];
    let mut other = metadata.clone();
    other.push(("version".into(), "v2".into()));
    Criteria { metadata, list: vec![other] }
}

fn table(name: &str) -> RouteTable {
    let forward = |clusters, path_rewrite| Action::Forward(Forward { clusters, path_rewrite, ..Forward::default() });
    let path = |path| RouteMatch { path, ..RouteMatch::default() };
    let text = |value: &str, ignore_case| (value.to_owned(), ignore_case);
    let (value, ignore_case) = text("/exact", true);
    let mut routes = vec![
        route(path(PathMatch::Exact { value, ignore_case }), forward(to("a"), Some(PathRewrite::Full("/x\\1".into())))),
        route(
            path(PathMatch::SegmentPrefix { value: "/seg".into(), ignore_case: false }),
            forward(to("a"), Some(PathRewrite::Prefix("/new".into()))),
        ),
        route(
            path(PathMatch::Regex(regex("/r/[0-9]+"))),
            forward(to("a"), Some(PathRewrite::Regex { pattern: regex("^/r/(.*)$"), substitution: r"/\1".into() })),
        ),
        route(
            path(PathMatch::Prefix { value: "/full".into(), ignore_case: true }),
            forward(to("a"), Some(PathRewrite::Full("/whole".into()))),
        ),
        route(
            path(PathMatch::any()),
            Action::Redirect(Redirect {
                status: 308,
                scheme: Some("https".into()),
                host: Some("other".into()),
                port: Some(8443),
                path: Some(PathRewrite::Full("/moved".into())),
                strip_query: true,
            }),
        ),
        route(path(PathMatch::any()), Action::DirectResponse(DirectResponse { status: 418, body: "tea".into() })),
        route(path(PathMatch::any()), Action::DirectResponse(DirectResponse { status: 502, body: String::new() })),
        route(path(PathMatch::any()), Action::NonForwarding),
    ];
    // Not losslessly: `\` of a whole new path is escaped, and what is read back says the same as a regular expression.
    routes.remove(0);
    let mut matched = route(
        RouteMatch {
            path: PathMatch::any(),
            headers: vec![
                header("end-user", HeaderMatcher::Value(exact("jason"))),
                HeaderMatch {
                    invert: true,
                    missing_as_empty: true,
                    ..header(":method", HeaderMatcher::Value(StringMatch::Regex(regex("GET|HEAD"))))
                },
                header("x-n", HeaderMatcher::Range { start: -3, end: 10 }),
                header("x-no", HeaderMatcher::Present(false)),
                header("a", HeaderMatcher::Value(StringMatch::Prefix { value: "p".into(), ignore_case: true })),
                header("b", HeaderMatcher::Value(StringMatch::Suffix { value: "s".into(), ignore_case: false })),
                header("c", HeaderMatcher::Value(StringMatch::Contains { value: "c".into(), ignore_case: false })),
            ],
            query: vec![
                QueryMatch { name: "q".into(), matcher: QueryMatcher::Value(exact("1")) },
                QueryMatch { name: "present".into(), matcher: QueryMatcher::Present(true) },
                QueryMatch { name: "absent".into(), matcher: QueryMatcher::Present(false) },
            ],
            cookies: vec![CookieMatch { name: "user".into(), value: exact("jason"), invert: true }],
            fraction: Some(Fraction { numerator: 25, denominator: 10_000 }),
            grpc_only: true,
        },
        Action::Forward(Forward {
            clusters: vec![
                WeightedCluster {
                    cluster: "v1".into(),
                    weight: 80,
                    headers: changes("v1"),
                    host_rewrite: Some("v1.example.com".into()),
                    fault: Some(Fault::default()),
                    criteria: criteria(),
                    ..WeightedCluster::default()
                },
                WeightedCluster { cluster: "v2".into(), weight: 20, ..WeightedCluster::default() },
                WeightedCluster { cluster_header: Some("x-v3".into()), ..WeightedCluster::default() },
            ],
            split_by: SplitBy::Header("x-user".into()),
            no_cluster_status: 404,
            max_stream_duration: Some(Duration::from_secs(60)),
            grpc_timeout_header_max: Some(Duration::ZERO),
            idle_timeout: Some(Duration::from_secs(3)),
            hedge: Some(HedgePolicy { on_per_try_timeout: true, ..HedgePolicy::default() }),
            replay_limit: Some(1 << 33),
            rate_limit: Some(Arc::new(LocalRateLimit { limits: Vec::new(), ..rate_limit() })),
            global_limit: Some(GlobalOverride {
                disabled: false,
                domain: "other".into(),
                limits: Some(rate_limit().limits),
            }),
            filters: vec![
                FilterOverride { name: "first".into(), disabled: true, config: None },
                FilterOverride { name: "second".into(), disabled: false, config: Some((FILTER.into(), vec![3])) },
                FilterOverride { name: "third".into(), disabled: false, config: None },
            ],
            rate_limits: rate_limit().limits,
            session: Some(Arc::new(Session { state: Some(SessionState::Header("x-at".into())), strict: false })),
            retry: Some(retry()),
            host_rewrite: Some(HostRewrite::Literal("elsewhere".into())),
            append_forwarded_host: true,
            mirrors: vec![mirror(), Mirror { cluster_header: Some("x-mirror".into()), ..Mirror::default() }],
            upgrades: vec![Upgrade { protocol: "websocket".into(), enabled: false }],
            hash: hash_policies(),
            priority: RoutingPriority::High,
            ..Forward::default()
        }),
    );
    matched.name = "canary".into();
    matched.origin = Some("virtual-service/default/reviews".into());
    matched.operation = Some("reviews:9080/*".into());
    matched.headers = changes("route");
    matched.fault = Some(Fault {
        delay: Some(FaultDelay { duration: Some(Duration::from_secs(7)), fraction: Fraction::ALL }),
        abort: Some(Abort {
            status: AbortStatus::Http(500),
            fraction: Fraction { numerator: 5, denominator: 1_000_000 },
        }),
        headers: vec![header("end-user", HeaderMatcher::Present(true))],
        cluster: "v1".into(),
        nodes: vec!["node".to_owned()],
        max_active: Some(3),
    });
    routes.insert(0, matched);
    let mut aborted = route(RouteMatch::default(), forward(to("a"), None));
    aborted.fault =
        Some(Fault { abort: Some(Abort { status: AbortStatus::Grpc(14), fraction: Fraction::NONE }), ..by_header() });
    routes.push(aborted);
    for host_rewrite in [
        HostRewrite::Auto,
        HostRewrite::Header("x-host".into()),
        HostRewrite::PathRegex { pattern: regex("^/(.*)$"), substitution: r"\1".into() },
    ] {
        let host_rewrite = Some(host_rewrite);
        let (timeout, max_grpc_timeout) = (Some(Duration::from_millis(2_500)), Some(Duration::from_secs(50)));
        let limits = Forward { timeout, max_grpc_timeout, ..Forward::default() };
        let forward = Forward { clusters: to("a"), split_by: SplitBy::Hash, host_rewrite, ..limits };
        routes.push(route(RouteMatch::default(), Action::Forward(forward)));
    }
    let mut by_header = to("");
    by_header[0].cluster_header = Some("x-cluster".into());
    routes.push(route(RouteMatch::default(), forward(by_header, None)));
    RouteTable {
        name: name.into(),
        virtual_hosts: vec![
            Arc::new(VirtualHost {
                name: "reviews.default.svc.cluster.local:9080".into(),
                domains: vec!["reviews".into(), "reviews.default".into(), "*.reviews".into(), "reviews.*".into()],
                routes,
                retry: Some(RetryPolicy { back_off: BackOff::default(), ..retry() }),
                headers: changes("host"),
                mirrors: vec![mirror()],
                // What leaves is counted by its routes.
                rate_limits: Vec::new(),
            }),
            Arc::new(VirtualHost { name: "allow_any".into(), domains: vec!["*".into()], ..VirtualHost::default() }),
        ],
        ignore_port: true,
        headers: changes("table"),
        most_specific_wins: true,
        ignore_path_parameters: true,
        mirrors: vec![mirror()],
    }
}

fn mirror() -> Mirror {
    Mirror {
        cluster: "copies".into(),
        fraction: Some(Fraction { numerator: 5, denominator: 100 }),
        trace_sampled: Some(false),
        keep_host: true,
        headers: changes("copy").request,
        host_rewrite: Some("copy.example.com".into()),
        ..Mirror::default()
    }
}

fn inbound(port: u16, mtls: MtlsMode) -> Inbound {
    let host = VirtualHost {
        name: format!("inbound|http|{port}").into(),
        rate_limits: rate_limit().limits,
        domains: vec!["*".into()],
        routes: vec![route(RouteMatch::default(), Action::NonForwarding)],
        ..VirtualHost::default()
    };
    let tls = mtls != MtlsMode::Disable;
    Inbound {
        name: format!("0.0.0.0_{port}").into(),
        mtls,
        callers: match tls {
            true => vec![StringMatch::Prefix { value: "spiffe://cluster.local/".into(), ignore_case: false }],
            false => Vec::new(),
        },
        alpn: Inbound::default().alpn,
        tls_versions: if mtls == MtlsMode::Strict { TlsVersions::Only13 } else { TlsVersions::Both },
        routes: Arc::new(RouteTable {
            name: format!("inbound|{port}||").into(),
            virtual_hosts: vec![Arc::new(host)],
            ..RouteTable::default()
        }),
        refused: None,
        rate_limit: Some(Arc::new(LocalRateLimit { status: 503, per_connection: true, ..rate_limit() })),
        global_limits: global_limits(),
        request_headers_timeout: Some(Duration::from_secs(7)),
        request_timeout: Some(Duration::from_secs(70)),
        max_connections: Some(700),
        http: guards::limits(),
        underscores: if tls { Underscores::Drop } else { Underscores::Reject },
        client_cert: ClientCertHeader {
            mode: ForwardClientCert::AppendForward,
            subject: true,
            cert: tls,
            chain: true,
            dns: true,
            uri: true,
        },
        telling: Some(Arc::new(Telling { access_log: Some(Vec::new()), ..telling() })),
        guards: guards::guards(),
        path: PathNormalization { dot_segments: false, merge_slashes: true, escaped_slashes: EscapedSlashes::Forward },
        trusted_hops: Some(2),
        members_forward: true,
        forwarders: Some(vec!["spiffe://cluster.local/ns/istio-system/sa/edge".to_owned()]),
    }
}

/// The cookie of a session.
fn cookie() -> HashCookie {
    HashCookie {
        name: "at".into(),
        ttl: Some(Duration::from_secs(60)),
        path: "/shop".to_owned(),
        attributes: vec![("SameSite".to_owned(), "Strict".to_owned())],
    }
}

/// Two services that count: one with nothing said, and one with everything.
fn global_limits() -> Vec<Arc<GlobalRateLimit>> {
    let plain = GlobalRateLimit { cluster: "limits".into(), domain: "bookinfo".into(), ..GlobalRateLimit::default() };
    let rich = GlobalRateLimit {
        authority: "limits.default".into(),
        stage: 3,
        requests: LimitedRequests::External,
        timeout: Duration::from_millis(50),
        failure_denies: Fraction { numerator: 5, denominator: 100 },
        status_on_error: 503,
        status: 430,
        resource_exhausted: true,
        tells_limits: true,
        tells_refusal: false,
        refused_headers: vec![("x-a".into(), "b".into(), true), ("x-c".into(), "d".into(), false)],
        enabled: Fraction { numerator: 50, denominator: 100 },
        enforced: Fraction::NONE,
        limits: rate_limit().limits,
        ..plain.clone()
    };
    vec![Arc::new(plain), Arc::new(rich)]
}

/// A rate limit with an action of every kind.
fn rate_limit() -> LocalRateLimit {
    let bucket = TokenBucket { max: 10, per_fill: 2, every: Duration::from_secs(1) };
    let actions = vec![
        LimitAction::SourceCluster,
        LimitAction::DestinationCluster,
        LimitAction::RequestHeader { name: "end-user".into(), key: "user".into(), skip_if_absent: true },
        LimitAction::Query { name: "q".into(), key: "query".into(), skip_if_absent: false },
        LimitAction::RemoteAddress,
        LimitAction::MaskedRemoteAddress { v4: 16, v6: 64 },
        LimitAction::GenericKey { key: "generic_key".into(), value: "v".into() },
        LimitAction::HeaderMatch {
            key: "header_match".into(),
            value: "v".into(),
            expect: false,
            headers: vec![header("x", HeaderMatcher::Present(true))],
        },
        LimitAction::QueryMatch {
            key: "query_match".into(),
            value: "v".into(),
            expect: true,
            query: vec![QueryMatch { name: "q".into(), matcher: QueryMatcher::Present(true) }],
        },
        LimitAction::Peer { key: "peer".into() },
    ];
    LocalRateLimit {
        bucket: Some(bucket),
        enabled: Fraction::ALL,
        enforced: Fraction { numerator: 5, denominator: 10_000 },
        descriptors: vec![LimitDescriptor { entries: vec![("user".into(), String::new())], bucket }],
        limits: vec![RateLimit { stage: 3, actions, hits: Some(9) }],
        stage: 3,
        always_default: false,
        resource_exhausted: true,
        most_values: 7,
        ..LocalRateLimit::default()
    }
}

fn mtls() -> Arc<UpstreamTls> {
    Arc::new(UpstreamTls {
        sni: "outbound_.9080_.v1_.reviews.default.svc.cluster.local".into(),
        alpn: vec!["istio-http/1.1".into(), "istio".into(), "http/1.1".into()],
        workload_identity: true,
        subject_alt_names: vec![exact("spiffe://cluster.local/ns/default/sa/bookinfo-reviews")],
        ..UpstreamTls::default()
    })
}

fn hash_policies() -> Vec<HashPolicy> {
    let cookie = |ttl| HashCookie {
        name: "id".into(),
        ttl,
        path: "/shop".into(),
        attributes: vec![("SameSite".into(), "Lax".into()), ("Secure".into(), String::new())],
    };
    [
        HashSource::Header { name: "end-user".into(), rewrite: None },
        HashSource::Header { name: ":path".into(), rewrite: Some(("^/(.*)".parse().unwrap(), "\\1".into())) },
        HashSource::Cookie(cookie(Some(Duration::ZERO))),
        HashSource::Cookie(cookie(None)),
        HashSource::SourceIp,
        HashSource::Query("user".into()),
        HashSource::Channel,
    ]
    .into_iter()
    .zip([false, true].into_iter().cycle())
    .map(|(source, terminal)| HashPolicy { source, terminal })
    .collect()
}
