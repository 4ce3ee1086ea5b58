//! Envoys that get everything over ADS from our control plane: one beside a workload, one as a gateway.
//!
//! No connection is redirected here, so the one beside a workload has a listener of its own whose routes are those of the
//! mesh for port 9080, by their name; all else is as sent.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    time::{Duration, Instant},
};

use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use mesh_control::{WorkloadSpec, api::SyncState};
use serde_json::{Value, json};

use crate::{
    plane::{PATIENCE, Plane},
    process::{self, Envoy},
    programs::meshctl,
    upstream::Arrived,
};

const CALLER: &str = "caller.default";
const GATEWAY: &str = "gateway.default";
const REVIEWS: &str = "reviews.default.svc.cluster.local:9080";
const TYPES: [&str; 4] = ["CDS", "LDS", "EDS", "RDS"];

/// The listener that stands for redirected connections to port 9080.
const OWN: &str = "own-9080";

/// XD1, NR2, OP10: an Envoy beside a workload, state of the world.
#[tokio::test(flavor = "multi_thread")]
async fn an_envoy_serves_bookinfo() {
    tutorial("GRPC").await;
}

/// XD2, OP10: the same, incrementally.
#[tokio::test(flavor = "multi_thread")]
async fn an_envoy_serves_bookinfo_incrementally() {
    tutorial("DELTA_GRPC").await;
}

/// The first steps of Istio's tutorial.
async fn tutorial(api: &str) {
    let Some(program) = process::program() else { return };
    let Some(plane) = Plane::start().await else { return };
    let spec = WorkloadSpec { ports: vec![9080], ..WorkloadSpec::new("caller", Ipv4Addr::LOCALHOST.into()) };
    let dir = tempfile::tempdir().unwrap();
    let bootstrap = bootstrap(&plane.bootstrap(&spec), api, true);
    let envoy = Envoy::run(&program, dir, &bootstrap).await;
    plane.synced(CALLER, &TYPES).await;
    let address = listener(&envoy, OWN).await;
    let http = Client::builder(TokioExecutor::new()).build_http();
    let reviews = |user: &'static str| {
        let http = &http;
        async move { get(http, address, REVIEWS, user).await.1 }
    };

    // Everything to v1.
    for _ in 0..10 {
        assert_eq!(reviews("").await, "reviews-v1");
    }
    for (host, upstream) in
        [("reviews:9080", "reviews-v1"), ("details", "details-v1"), ("ratings.default", "ratings-v1")]
    {
        assert_eq!(get(&http, address, host, "").await, (200, upstream.to_owned()), "{host}");
    }

    // One user to v2.
    plane.sample("virtual-service-reviews-test-v2.yaml");
    until(|| async { reviews("jason").await == "reviews-v2" }, "jason sees v2", &envoy).await;
    assert_eq!(reviews("").await, "reviews-v1");

    // Half of the requests to v3.
    plane.sample("virtual-service-reviews-50-v3.yaml");
    until(|| async { reviews("jason").await == "reviews-v3" }, "v3 is seen", &envoy).await;
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..400 {
        *seen.entry(reviews("").await).or_default() += 1;
    }
    // Five standard deviations of 400 throws of a coin.
    let v3 = seen.get("reviews-v3").copied().unwrap_or(0);
    assert!((150..=250).contains(&v3) && seen.len() == 2, "half of 400 to v3, the rest to v1: {seen:?}");

    // One user's requests to ratings fail, and are slow.
    plane.sample("virtual-service-ratings-test-abort.yaml");
    let ratings = |user: &'static str| {
        let http = &http;
        async move { get(http, address, "ratings:9080", user).await }
    };
    until(|| async { ratings("jason").await.0 == 500 }, "jason's ratings fail", &envoy).await;
    assert_eq!(ratings("").await, (200, "ratings-v1".to_owned()));
    plane.sample("virtual-service-ratings-test-delay.yaml");
    until(|| async { ratings("").await.0 == 200 && ratings("jason").await.0 == 200 }, "the abort ends", &envoy).await;
    let began = Instant::now();
    ratings("jason").await;
    assert!(began.elapsed() >= Duration::from_millis(6_900), "the sample's delay: {:?}", began.elapsed());

    // Endpoints, a service and a port that were not there before.
    let more = crate::upstream::Upstream::echo("reviews-v4").await;
    plane.apply(&format!(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: reviews-v4}}\nspec:\n  address: 127.0.0.1\n  \
         ports: {{http: {}}}\n  labels: {{app: reviews, version: v1}}\n",
        more.address().port()
    ));
    until(|| async { reviews("").await == "reviews-v4" }, "the new endpoint gets its share", &envoy).await;
    plane.apply("apiVersion: v1\nkind: Service\nmetadata: {name: more}\nspec:\n  selector: {app: reviews}\n  ports: [{name: http, port: 9081}]\n");
    until(
        || async { envoy.listeners().await.is_some_and(|all| all.contains_key("0.0.0.0_9081")) },
        "a listener",
        &envoy,
    )
    .await;
    plane.synced(CALLER, &TYPES).await;
    nothing_is_refused(&envoy, &plane).await;
}

/// GW1, AN3: an Envoy as the way in: routes by host of two virtual services, over a port of its own, and the certificate that its
/// calls within the mesh need comes over the same stream.
#[tokio::test(flavor = "multi_thread")]
async fn an_envoy_is_the_gateway() {
    let Some(program) = process::program() else { return };
    let Some(plane) = Plane::start().await else { return };
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    plane.apply(&format!(
        "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: bookinfo-gateway}}\nspec:\n  selector: {{istio: \
         ingressgateway}}\n  servers:\n  - port: {{number: {port}, name: http, protocol: HTTP}}\n    hosts: [\"*\"]\n"
    ));
    plane.apply(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: bookinfo}\nspec:\n  hosts: [\"bookinfo.example\"]\n  \
         gateways: [bookinfo-gateway]\n  http:\n  - match: [{uri: {exact: /productpage}}]\n    route: [{destination: {host: productpage, \
         port: {number: 9080}}}]\n  - match: [{headers: {end-user: {exact: jason}}}]\n    route: [{destination: {host: reviews, subset: v2}}]\n  \
         - route:\n    - {destination: {host: reviews, subset: v1}, weight: 50}\n    - {destination: {host: reviews, subset: v3}, weight: 50}\n",
    );
    let spec = WorkloadSpec {
        gateway: true,
        labels: [("istio".to_owned(), "ingressgateway".to_owned())].into(),
        ..WorkloadSpec::new("gateway", Ipv4Addr::LOCALHOST.into())
    };
    let bootstrap = bootstrap(&plane.bootstrap(&spec), "GRPC", false);
    let envoy = Envoy::run(&program, tempfile::tempdir().unwrap(), &bootstrap).await;
    let address = listener(&envoy, &format!("0.0.0.0_{port}")).await;
    plane.synced(GATEWAY, &TYPES).await;
    let http = Client::builder(TokioExecutor::new()).build_http();
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..400 {
        *seen.entry(get(&http, address, "bookinfo.example", "").await.1).or_default() += 1;
    }
    let v3 = seen.get("reviews-v3").copied().unwrap_or(0);
    assert!((150..=250).contains(&v3) && seen.len() == 2, "half of 400 to v3, the rest to v1: {seen:?}");
    assert_eq!(get(&http, address, "bookinfo.example", "jason").await.1, "reviews-v2");
    assert_eq!(get(&http, address, "elsewhere.example", "").await.0, 404);
    nothing_is_refused(&envoy, &plane).await;
}

/// AZ5, GW3: of bytes that it hands on an Envoy as a gateway takes our rules, and holds them; what speaks of requests is not among them.
#[tokio::test(flavor = "multi_thread")]
async fn an_envoy_holds_policies_for_bytes() {
    let Some(program) = process::program() else { return };
    let Some(plane) = Plane::start().await else { return };
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    plane.apply(&format!(
        "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: raw}}\nspec:\n  selector: {{istio: ingressgateway}}\n  \
         servers: [{{port: {{number: {port}, name: tcp, protocol: TCP}}, hosts: [\"*\"]}}]\n"
    ));
    plane.apply(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: raw}\nspec:\n  hosts: [\"*\"]\n  gateways: [raw]\n  \
         tcp: [{route: [{destination: {host: reviews, subset: v2, port: {number: 9080}}}]}]\n",
    );
    let policy = |rest: &str| {
        plane.apply(&format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: raw}}\nspec: {{selector: {{matchLabels: \
             {{istio: ingressgateway}}}}, {rest}}}\n"
        ));
    };
    let spec = WorkloadSpec {
        gateway: true,
        labels: [("istio".to_owned(), "ingressgateway".to_owned())].into(),
        ..WorkloadSpec::new("gateway", Ipv4Addr::LOCALHOST.into())
    };
    let bootstrap = bootstrap(&plane.bootstrap(&spec), "GRPC", false);
    let envoy = Envoy::run(&program, tempfile::tempdir().unwrap(), &bootstrap).await;
    let address = listener(&envoy, &format!("0.0.0.0_{port}")).await;
    // A connection of its own for each, since rules are about connections.
    let passes = || async move {
        let http: Client<HttpConnector, Full<bytes::Bytes>> = Client::builder(TokioExecutor::new()).build_http();
        let request = http::Request::get(format!("http://{address}/reviews/0")).header("host", "reviews");
        http.request(request.body(Full::default()).unwrap()).await.is_ok_and(|answer| answer.status() == 200)
    };
    until(passes, "bytes are handed on", &envoy).await;
    for (rest, expected) in [
        ("action: DENY, rules: [{from: [{source: {ipBlocks: [127.0.0.0/8]}}]}]", false),
        ("action: DENY, rules: [{from: [{source: {ipBlocks: [10.0.0.0/8]}}], to: [{operation: {paths: [/x]}}]}]", true),
        ("rules: [{to: [{operation: {methods: [GET]}}]}]", false),
        ("rules: [{to: [{operation: {methods: [GET]}}]}, {from: [{source: {remoteIpBlocks: [127.0.0.1]}}]}]", true),
        ("action: DENY, rules: [{to: [{operation: {paths: [/x]}}]}]", false),
    ] {
        policy(rest);
        until(|| async { passes().await == expected }, rest, &envoy).await;
    }
    nothing_is_refused(&envoy, &plane).await;
}

/// XD3, XD4, OP1, OP10: what an Envoy refuses is shown by `meshctl proxy-status`, with the error's text and the resource, until
/// something better comes; what was there before stays in force.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_envoy_refuses_is_shown() {
    let Some(program) = process::program() else { return };
    let Some(plane) = Plane::start().await else { return };
    let spec = WorkloadSpec::new("caller", Ipv4Addr::LOCALHOST.into());
    let envoy =
        Envoy::run(&program, tempfile::tempdir().unwrap(), &bootstrap(&plane.bootstrap(&spec), "GRPC", true)).await;
    plane.synced(CALLER, &TYPES).await;
    let address = listener(&envoy, OWN).await;
    let http = Client::builder(TokioExecutor::new()).build_http();
    // Our expressions may be written with spaces; Envoy's may not.
    let spaced = |expression: &str| {
        plane.apply(&format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: reviews}}\nspec:\n  hosts: [reviews]\n  http:\n  \
             - match: [{{uri: {{regex: \"{expression}\"}}}}]\n    route: [{{destination: {{host: reviews, subset: v3}}}}]\n"
        ));
    };
    spaced("(?x) /reviews .*");
    let refused = || async { plane.status(CALLER).is_some_and(|status| status.types["RDS"].state == SyncState::Error) };
    until(refused, "the routes are refused", &envoy).await;
    let ran = meshctl(&format!("http://{}", plane.plane.api_address()), &["proxy-status"], "");
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.out.contains(CALLER) && ran.out.contains("ERROR"), "{}", ran.out);
    assert!(
        ran.err.contains("caller.default refused RDS") && ran.err.contains("9080") && ran.err.contains("(?x"),
        "{}",
        ran.err
    );
    assert_eq!(get(&http, address, REVIEWS, "").await, (200, "reviews-v1".to_owned()), "as before");
    assert!(plane.status(CALLER).unwrap().types["RDS"].refusals > 0);
    spaced("/.*");
    plane.synced(CALLER, &TYPES).await;
    until(|| async { get(&http, address, REVIEWS, "").await.1 == "reviews-v3" }, "the next is taken", &envoy).await;
}

/// The bootstrap of an Envoy with the node, the server and the token of one of ours.
fn bootstrap(ours: &Value, api: &str, beside: bool) -> Value {
    let server = &ours["xds_servers"][0];
    let tls = &server["channel_creds"][0]["config"];
    let (host, port) = server["server_uri"].as_str().unwrap().rsplit_once(':').unwrap();
    let token = std::fs::read_to_string(server["call_creds"][0]["config"]["jwt_token_file"].as_str().unwrap()).unwrap();
    let ads = json!({"ads": {}, "resource_api_version": "V3"});
    let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let options_type = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let manager =
        "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let own = json!({
        "name": OWN,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [{"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": {
            "@type": manager,
            "stat_prefix": OWN,
            "rds": {"route_config_name": "9080", "config_source": ads},
            "http_filters": [
                {"name": "envoy.filters.http.fault", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault"}},
                {"name": "envoy.filters.http.router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}},
            ],
        }}]}],
    });
    json!({
        "node": ours["node"],
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "dynamic_resources": {
            "ads_config": {
                "api_type": api,
                "transport_api_version": "V3",
                "set_node_on_first_message_only": true,
                "grpc_services": [{
                    "envoy_grpc": {"cluster_name": "control-plane"},
                    "initial_metadata": [{"key": "authorization", "value": format!("Bearer {}", token.trim())}],
                }],
            },
            "lds_config": ads,
            "cds_config": ads,
        },
        "static_resources": {
            "listeners": if beside { vec![own] } else { Vec::new() },
            "clusters": [{
                "name": "control-plane",
                "type": "STATIC",
                "typed_extension_protocol_options": {options: {"@type": options_type, "explicit_http_config": {"http2_protocol_options": {}}}},
                "load_assignment": {"cluster_name": "control-plane", "endpoints": [{"lb_endpoints": [{"endpoint": {"address":
                    {"socket_address": {"address": host, "port_value": port.parse::<u16>().unwrap()}}}}]}]},
                "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                    "sni": tls["server_name"],
                    "common_tls_context": {"alpn_protocols": ["h2"], "validation_context": {
                        "trusted_ca": {"filename": tls["ca_certificate_file"]},
                        "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": tls["server_name"]}}],
                    }},
                }},
            }],
        },
    })
}

/// Where a listener listens, as soon as it does.
async fn listener(envoy: &Envoy, name: &str) -> SocketAddr {
    let end = Instant::now() + PATIENCE;
    loop {
        let all = envoy.listeners().await.unwrap_or_default();
        if let Some(address) = all.get(name).filter(|address| address.port() != 0) {
            return *address;
        }
        envoy.check(end, name).await;
    }
}

/// Waits for something that Envoy has yet to do.
async fn until<F: Future<Output = bool>>(mut check: impl FnMut() -> F, what: &str, envoy: &Envoy) {
    let end = Instant::now() + PATIENCE;
    while !check().await {
        envoy.check(end, what).await;
    }
}

/// Neither by its own counters nor by what it told us.
async fn nothing_is_refused(envoy: &Envoy, plane: &Plane) {
    let refused: BTreeMap<String, u64> =
        envoy.stats("update_rejected$").await.into_iter().filter(|(_, count)| *count > 0).collect();
    assert!(refused.is_empty(), "{refused:?}; it said:\n{}", envoy.said());
    for status in plane.plane.proxy_status() {
        let errors: Vec<_> = status.types.values().filter_map(|of| of.error.as_ref()).collect();
        assert!(errors.is_empty(), "{errors:?}");
    }
}

/// The status, and which of the upstreams answered.
async fn get(
    http: &Client<HttpConnector, Full<bytes::Bytes>>,
    address: SocketAddr,
    host: &str,
    user: &str,
) -> (u16, String) {
    let mut request = http::Request::get(format!("http://{address}/reviews/0")).header("host", host);
    if !user.is_empty() {
        request = request.header("end-user", user);
    }
    let answer = http.request(request.body(Full::default()).unwrap()).await.unwrap();
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    let upstream = serde_json::from_slice::<Arrived>(&body).map(|arrived| arrived.upstream);
    (status, upstream.unwrap_or_else(|_| String::from_utf8_lossy(&body).into_owned()))
}
