//! Rate limits as people write them, in Istio's `EnvoyFilter`, at gateways and workloads: by buckets of the process, and by a service
//! that counts.

use std::{collections::BTreeMap, net::SocketAddr};

use mesh_control::{compile::NodeInfo, registry::WorkloadPort};
use mesh_tower::Mesh;
use tokio::net::TcpListener;

use crate::{
    harness::{Kind, Upstream},
    objects::{services, written_for},
    outside::{Authority, Edge, Visitor, ask, bound, secret, server, well},
    rate_limits::limiter_of,
};

/// Where the service that counts is, as `ratelimit` of the mesh.
fn ratelimit(service: &Upstream) -> String {
    let (ip, port) = (service.address.ip(), service.address.port());
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: ratelimit}}\nspec:\n  hosts: [ratelimit.default.svc.cluster.local]\n  ports: [{{number: 8081, name: grpc, protocol: GRPC}}]\n  resolution: STATIC\n  endpoints: [{{address: {ip}, ports: {{grpc: {port}}}}}]\n"
    )
}

fn filter(name: &str, labels: &str, patches: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\nmetadata: {{name: {name}, namespace: istio-system}}\nspec:\n  workloadSelector: {{labels: {{{labels}}}}}\n  configPatches:\n{patches}"
    )
}

/// A filter that asks, and the cluster it asks, of this context.
fn asks(context: &str) -> String {
    format!(
        "  - applyTo: HTTP_FILTER
    match:
      context: {context}
      listener: {{filterChain: {{filter: {{name: envoy.filters.network.http_connection_manager, subFilter: {{name: envoy.filters.http.router}}}}}}}}
    patch:
      operation: INSERT_BEFORE
      value:
        name: envoy.filters.http.ratelimit
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimit
          domain: shop
          failure_mode_deny: true
          timeout: 10s
          rate_limit_service:
            grpc_service: {{envoy_grpc: {{cluster_name: counter}}}}
            transport_api_version: V3
  - applyTo: CLUSTER
    match: {{cluster: {{service: ratelimit.default.svc.cluster.local}}}}
    patch:
      operation: ADD
      value:
        name: counter
        type: STRICT_DNS
        connect_timeout: 10s
        lb_policy: ROUND_ROBIN
        http2_protocol_options: {{}}
        load_assignment:
          cluster_name: counter
          endpoints:
          - lb_endpoints:
            - endpoint: {{address: {{socket_address: {{address: ratelimit.default.svc.cluster.local, port_value: 8081}}}}}}
"
    )
}

/// What requests of every host are counted by.
fn counted(context: &str) -> String {
    format!(
        "  - applyTo: VIRTUAL_HOST
    match: {{context: {context}, routeConfiguration: {{vhost: {{name: '', route: {{action: ANY}}}}}}}}
    patch:
      operation: MERGE
      value:
        rate_limits:
        - actions: [{{request_headers: {{header_name: ':path', descriptor_key: PATH}}}}]
"
    )
}

/// So many requests of each process, in the form that leaves the type out of the fields.
fn bucket(context: &str, most: u32) -> String {
    format!(
        "  - applyTo: HTTP_FILTER
    match: {{context: {context}, listener: {{filterChain: {{filter: {{name: envoy.filters.network.http_connection_manager}}}}}}}}
    patch:
      operation: INSERT_BEFORE
      value:
        name: envoy.filters.http.local_ratelimit
        typed_config:
          '@type': type.googleapis.com/udpa.type.v1.TypedStruct
          type_url: type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit
          value:
            stat_prefix: http_local_rate_limiter
            token_bucket: {{max_tokens: {most}, tokens_per_fill: 1, fill_interval: 3600s}}
            filter_enabled: {{runtime_key: local_rate_limit_enabled, default_value: {{numerator: 100, denominator: HUNDRED}}}}
            filter_enforced: {{default_value: {{numerator: 100, denominator: HUNDRED}}}}
"
    )
}

/// How many of some requests are let through; the others are over a limit.
async fn passed(kind: Kind, at: SocketAddr, host: &str, path: &str, count: usize) -> usize {
    let mut passed = 0;
    for _ in 0..count {
        let answer = ask(kind, at, host, path, &[]).await;
        passed += usize::from(well(kind, &answer));
        assert!(well(kind, &answer) || answer.is(kind, 429), "{kind:?}: {answer:?}");
    }
    passed
}

/// RL3, RL9: an `EnvoyFilter` of Istio's form has a gateway ask the service for each request, by what the hosts say, over plain HTTP and
/// over TLS alike.
#[tokio::test]
async fn a_service_counts_at_the_gateway() {
    let authority = Authority::new("outside");
    for kind in Kind::ALL {
        let (a, service) = (Upstream::start("a").await, limiter_of("counter", "shop").await);
        let edge = "istio: ingressgateway";
        let text = services(kind, &[&a])
            + &ratelimit(&service)
            + &secret("cert", Some(&authority.issue(&["a.test"])), None)
            + &server("plain", 80, "HTTP", "[a.test]", "")
            + &server("tls", 443, "HTTPS", "[a.test]", "{mode: SIMPLE, credentialName: cert}")
            + &bound("plain", "plain", "[a.test]", "a")
            + &bound("tls", "tls", "[a.test]", "a")
            + &filter("ask", edge, &asks("GATEWAY"))
            + &filter("counted", edge, &counted("GATEWAY"))
            + &filter("others", "istio: other", &bucket("GATEWAY", 1));
        let edge = Edge::start(&text, &[80, 443]).await;
        assert_eq!(passed(kind, edge.at(80), "a.test", "/one", 3).await, 2, "{kind:?}");
        assert_eq!(passed(kind, edge.at(80), "a.test", "/two", 2).await, 2, "{kind:?}: each path by itself");
        let visitor = Visitor::trusting(&authority);
        let answer = visitor.ask(kind, edge.at(443), "a.test", "/one").await.unwrap();
        assert!(answer.is(kind, 429), "{kind:?}: {answer:?}");
        let answer = visitor.ask(kind, edge.at(443), "a.test", "/three").await.unwrap();
        assert!(well(kind, &answer), "{kind:?}: {answer:?}");
        assert_eq!(answer.header("x-asked"), "PATH=/three", "{kind:?}");
        assert_eq!((a.count(), service.count()), (5, 7), "{kind:?}");
    }
}

/// RL1, RL9: a bucket of the process at a gateway, for all requests, and another for a route that says so.
#[tokio::test]
async fn buckets_count_at_the_gateway() {
    for kind in Kind::ALL {
        let a = Upstream::start("a").await;
        let own = "  - applyTo: VIRTUAL_HOST
    match: {context: GATEWAY, routeConfiguration: {name: http.80, vhost: {name: 'b.test:80'}}}
    patch:
      operation: MERGE
      value:
        typed_per_filter_config:
          envoy.filters.http.local_ratelimit:
            '@type': type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit
            stat_prefix: own
            token_bucket: {max_tokens: 1, fill_interval: 3600s}
            filter_enabled: {default_value: {numerator: 100}}
            filter_enforced: {default_value: {numerator: 100}}
";
        let text = services(kind, &[&a])
            + &server("plain", 80, "HTTP", "[a.test, b.test]", "")
            + &server("other", 81, "HTTP", "[a.test]", "")
            + &bound("plain", "plain", "[a.test, b.test]", "a")
            + &bound("other", "other", "[a.test]", "a")
            + &filter(
                "bucket",
                "istio: ingressgateway",
                &(bucket("GATEWAY", 3).replace("listener: {", "listener: {portNumber: 80, ") + own),
            );
        let edge = Edge::start(&text, &[80, 81]).await;
        assert_eq!(passed(kind, edge.at(80), "a.test", "/x", 5).await, 3, "{kind:?}");
        assert_eq!(passed(kind, edge.at(80), "b.test", "/x", 3).await, 1, "{kind:?}: the host's own");
        assert_eq!(passed(kind, edge.at(81), "a.test", "/x", 5).await, 5, "{kind:?}: another port");
    }
}

/// A workload of the label `app: shop` that is told this, and answers.
async fn serving(text: String) -> (SocketAddr, Mesh) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let open = "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: open}\nspec: {mtls: {mode: DISABLE}}\n";
    let node = NodeInfo {
        labels: BTreeMap::from([("app".to_owned(), "shop".to_owned())]),
        ports: vec![WorkloadPort { name: "http".to_owned(), number: address.port() }],
        ..NodeInfo::default()
    };
    let mesh = Mesh::builder().config(written_for(text + open, node)).build().await.unwrap();
    let serving = mesh.clone();
    let handler = axum::Router::new().fallback(|| async { [("grpc-status", "0")] });
    tokio::spawn(async move { serving.serve_listener(listener, handler).await });
    (address, mesh)
}

/// RL1, RL3, RL9: the same before a workload: its own buckets, and the service that counts for all.
#[tokio::test]
async fn workloads_are_limited_as_it_is_written() {
    for kind in Kind::ALL {
        let (local, _mesh) = serving(filter("bucket", "app: shop", &bucket("SIDECAR_INBOUND", 3))).await;
        assert_eq!(passed(kind, local, "shop", "/x", 5).await, 3, "{kind:?}");

        let service = limiter_of("counter", "shop").await;
        let text = ratelimit(&service)
            + &filter("ask", "app: shop", &asks("SIDECAR_INBOUND"))
            + &filter("counted", "app: shop", &counted("SIDECAR_INBOUND"));
        let (global, _mesh) = serving(text).await;
        assert_eq!(passed(kind, global, "shop", "/one", 4).await, 2, "{kind:?}");
        assert_eq!(passed(kind, global, "shop", "/two", 1).await, 1, "{kind:?}");
        assert_eq!(service.count(), 5, "{kind:?}");

        let (other, _mesh) = serving(filter("bucket", "app: other", &bucket("SIDECAR_INBOUND", 1))).await;
        assert_eq!(passed(kind, other, "shop", "/x", 3).await, 3, "{kind:?}: it is for others");
    }
}
