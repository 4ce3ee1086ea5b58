//! What `proxy-config` prints: of a workload, of a file in Envoy's form, and of a dump that Envoy itself wrote.

use super::*;

const ENTRY: &str = "\
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: reviews-v1}
spec: {address: 127.0.0.14, labels: {app: reviews, version: v1}, serviceAccount: bookinfo-reviews}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: reviews-v2}
spec: {address: 127.0.0.15, labels: {app: reviews, version: v2}, serviceAccount: bookinfo-reviews}
";

/// Written as Envoy's dumps are when `istioctl` passes them on: in the other spelling of protobuf's JSON, with what a client without
/// a proxy never has.
const ENVOYS: &str = r#"{"configs": [
  {"@type": "type.googleapis.com/envoy.admin.v3.BootstrapConfigDump", "bootstrap": {"node": {"id": "x"}}},
  {"@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump",
   "staticClusters": [{"cluster": {"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "name": "xds-grpc", "type": "STATIC"}}],
   "dynamicActiveClusters": [{"versionInfo": "1", "cluster": {"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
     "name": "outbound|80||a.example.com", "type": "STRICT_DNS",
     "metadata": {"filterMetadata": {"istio": {"config": "/apis/networking.istio.io/v1/namespaces/shop/destination-rule/a"}}}}}]},
  {"@type": "type.googleapis.com/envoy.admin.v3.ListenersConfigDump",
   "dynamicListeners": [
     {"name": "10.0.0.1_3306", "activeState": {"listener": {"name": "10.0.0.1_3306",
       "address": {"socketAddress": {"address": "10.0.0.1", "portValue": 3306}},
       "filterChains": [{"filterChainMatch": {"serverNames": ["db"], "transportProtocol": "tls", "applicationProtocols": ["istio"]},
         "filters": [{"name": "tcp", "typedConfig": {"cluster": "outbound|3306||db"}}]}],
       "defaultFilterChain": {"filters": [{"typedConfig": {"routeConfig": {"name": "own"}}}]}}}}]},
  {"@type": "type.googleapis.com/envoy.admin.v3.RoutesConfigDump",
   "dynamicRouteConfigs": [{"routeConfig": {"name": "80", "virtualHosts": [
     {"name": "empty", "domains": ["e"]},
     {"name": "a:80", "domains": ["a", "b", "c", "d"], "routes": [
       {"match": {"path": "/x", "headers": [{"name": "end-user"}]}},
       {"match": {"pathSeparatedPrefix": "/y", "queryParameters": [{"name": "q"}]}},
       {"match": {"safeRegex": {"regex": "/z.*"}}}]}]}}]},
  {"@type": "type.googleapis.com/envoy.admin.v3.SecretsConfigDump", "dynamicWarmingSecrets": []}
]}"#;

async fn mesh() -> Mesh {
    let mesh = Mesh::start().await;
    let file = mesh.write("all.yaml", &format!("{SERVICES}---\n{RULES}---\n{ENTRY}---\n{DEPLOYMENT}"));
    mesh.ok(&["apply", "-f", &file]);
    mesh
}

/// OP2: what a workload has been told, in istioctl's tables.
#[tokio::test(flavor = "multi_thread")]
async fn a_workload_is_shown_in_istioctls_tables() {
    let mesh = mesh().await;
    let clusters = "\
SERVICE FQDN                        PORT   SUBSET   DIRECTION   TYPE           DESTINATION RULE
BlackHoleCluster                    -      -        -           STATIC
PassthroughCluster                  -      -        -           ORIGINAL_DST
reviews.default.svc.cluster.local   9080   -        outbound    EDS            reviews.default
reviews.default.svc.cluster.local   9080   v1       outbound    EDS            reviews.default
reviews.default.svc.cluster.local   9080   v2       outbound    EDS            reviews.default
";
    assert_eq!(mesh.ok(&["proxy-config", "cluster", "productpage"]), clusters);
    let routes = "\
NAME   VHOST NAME                               DOMAINS                                                MATCH         VIRTUAL SERVICE
80     allow_any                                *                                                      /*
9080   reviews.default.svc.cluster.local:9080   reviews.default.svc.cluster.local, reviews + 2 more...   /* end-user   reviews.default
9080   reviews.default.svc.cluster.local:9080   reviews.default.svc.cluster.local, reviews + 2 more...   /*            reviews.default
9080   allow_any                                *                                                      /*
";
    let squeeze = |text: &str| -> Vec<String> {
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    };
    assert_eq!(squeeze(&mesh.ok(&["pc", "routes", "productpage-v1.default"])), squeeze(routes));
    let endpoints = "\
ENDPOINT          STATUS    OUTLIER CHECK   CLUSTER
127.0.0.14:9080   HEALTHY   OK              outbound|9080|v1|reviews.default.svc.cluster.local
";
    let v1 = "outbound|9080|v1|reviews.default.svc.cluster.local";
    assert_eq!(mesh.ok(&["pc", "ep", "productpage", "--cluster", v1]), endpoints);
    let all = mesh.ok(&["pc", "endpoint", "productpage", "--address", "127.0.0.15", "--status", "healthy"]);
    assert_eq!(all.lines().count(), 3, "{all}");
    let listeners = mesh.ok(&["pc", "listener", "productpage", "--port", "9080"]);
    assert_eq!(listeners, "ADDRESSES   PORT   MATCH   DESTINATION\n0.0.0.0     9080   ALL     Route: 9080\n");
    let none = mesh.ok(&["pc", "secret", "productpage"]);
    assert!(none.starts_with("RESOURCE NAME   TYPE   STATUS   VALID CERT") && none.lines().count() == 1, "{none}");
    let everything = mesh.ok(&["pc", "all", "productpage"]);
    for header in ["SERVICE FQDN", "VHOST NAME", "OUTLIER CHECK", "ADDRESSES"] {
        assert!(everything.contains(header), "{everything}");
    }
    let one = mesh.ok(&[
        "pc",
        "cluster",
        "productpage",
        "--fqdn",
        "reviews.default.svc.cluster.local",
        "--subset",
        "v2",
        "-o",
        "json",
    ]);
    let one: Vec<Value> = serde_json::from_str(&one).unwrap();
    assert_eq!(one[0]["name"], "outbound|9080|v2|reviews.default.svc.cluster.local");
    assert_eq!((one.len(), &one[0]["type"]), (1, &"EDS".into()));
    let unknown = mesh.run(&["pc", "cluster", "nobody"]);
    assert_eq!(unknown.status.code(), Some(1), "{unknown:?}");
    assert_eq!(mesh.run(&["pc", "cluster"]).status.code(), Some(2));
    assert_eq!(mesh.run(&["pc", "cluster", "a b"]).status.code(), Some(2));
}

/// OP2: a file in Envoy's form is read without a control plane, in either spelling.
#[tokio::test(flavor = "multi_thread")]
async fn a_dump_in_a_file_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("dump.json");
    std::fs::write(&file, ENVOYS).unwrap();
    let file = file.to_str().unwrap();
    let show = |what: &str| {
        let output = meshctl("127.0.0.1:1").args(["proxy-config", what, "-f", file]).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        stdout(&output).to_owned()
    };
    let expected = "\
SERVICE FQDN    PORT   SUBSET   DIRECTION   TYPE         DESTINATION RULE
a.example.com   80     -        outbound    STRICT_DNS   a.shop
xds-grpc        -      -        -           STATIC
";
    assert_eq!(show("cluster"), expected);
    let expected = "\
ADDRESSES   PORT   MATCH                             DESTINATION
10.0.0.1    3306   SNI: db; Trans: tls; App: istio   Cluster: outbound|3306||db
10.0.0.1    3306   ALL                               Inline Route: own
";
    assert_eq!(show("listener"), expected);
    let expected = "\
NAME   VHOST NAME   DOMAINS            MATCH         VIRTUAL SERVICE
80     empty        e                  /*            404
80     a:80         a, b + 2 more...   /x end-user
80     a:80         a, b + 2 more...   /y* ?q
80     a:80         a, b + 2 more...   regex /z.*
";
    assert_eq!(show("route"), expected);
    std::fs::write(file, "{\"a\": [}").unwrap();
    let broken = meshctl("127.0.0.1:1").args(["pc", "route", "-f", file]).output().unwrap();
    assert_eq!(broken.status.code(), Some(65));
    assert!(stderr(&broken).contains("dump.json:1:8"), "{broken:?}");
    std::fs::write(file, "{}").unwrap();
    assert_eq!(meshctl("127.0.0.1:1").args(["pc", "route", "-f", file]).output().unwrap().status.code(), Some(65));
}
