//! Istio's own dashboards, and ours, on a real Prometheus that scrapes Bookinfo under load.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};

use crate::calls::{client, get};
use crate::front::{Front, PATIENCE};
use crate::harness::{Bookinfo, turn};
use crate::peers::istio_file;
use crate::prometheus::{Panel, Prometheus, panels};

/// How long Bookinfo is under load: longer than what rates are taken over.
const LOAD: Duration = Duration::from_secs(20);

/// The labels that Kiali groups requests by.
const KIALI: &str = "source_cluster, source_workload_namespace, source_workload, source_canonical_service, \
    source_canonical_revision, destination_cluster, destination_service_namespace, destination_service, \
    destination_service_name, destination_workload_namespace, destination_workload, destination_canonical_service, \
    destination_canonical_revision, request_protocol, response_code, grpc_response_status, response_flags";

/// TE1, TE11, TE20, OP9: every expression of Istio's dashboards runs on what Bookinfo under load tells, the panels have data, the
/// counts are the load generator's, Kiali's labels give Bookinfo's graph, and its edges are mutual TLS; and no panel of ours
/// is empty.
#[tokio::test(flavor = "multi_thread")]
async fn istios_dashboards_and_ours_light_up() {
    let (Some(program), Some(istios)) = (Prometheus::program(), istio_file("manifests/addons/dashboards")) else {
        return;
    };
    let _turn = turn().await;
    let bookinfo = Bookinfo::start(&[], &[]);
    bookinfo.apply(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: istio-system}\n\
         spec: {mtls: {mode: STRICT}}\n",
    );
    let prometheus = Prometheus::start(&program, &bookinfo).await;
    // Series are there before what is counted: the first value of a series has no rate.
    bookinfo.until_reviews_by(&["reviews-v1", "reviews-v2", "reviews-v3"], "").await;
    let through_the_gateway = "sum(istio_requests_total{reporter=\"source\",destination_workload=\"productpage-v1\"})";
    let before = settled(&prometheus, through_the_gateway).await;

    let sent = load(&bookinfo).await;
    let mut dark = Vec::new();
    let mut check = async |name: &str, variables: &[(&str, &str)]| {
        let (lit, empty, of) = lit(&prometheus, &panels(&istios.join(name), variables)).await;
        eprintln!("{name}: {lit} of {of} panels; none in {empty:?}");
        dark.extend(empty.into_iter().map(|title| format!("{name}: {title}")));
        lit
    };
    let service = [("service", "reviews.default.svc.cluster.local"), ("qrep", "destination")];
    let workload = [("namespace", "default"), ("workload", "reviews-v2"), ("qrep", "destination")];
    assert!(check("istio-mesh-dashboard.gen.json", &[]).await >= 6);
    assert!(check("istio-service-dashboard.json", &service).await >= 16);
    assert!(check("istio-workload-dashboard.json", &workload).await >= 13);
    // The rest of it is Go's runtime, containers, and injection.
    assert!(check("pilot-dashboard.gen.json", &[]).await >= 7);
    for name in ["istio-performance-dashboard.json", "istio-extension-dashboard.json", "ztunnel-dashboard.gen.json"] {
        check(name, &[]).await;
    }
    assert!(!dark.iter().any(|title| title.starts_with("istio-mesh") && !title.contains("TCP")), "{dark:?}");

    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/dashboards/mesh.json");
    let (_, empty, _) = lit(&prometheus, &panels(&own, &[])).await;
    assert!(empty.is_empty(), "nothing to see in {empty:?}");

    let counted = settled(&prometheus, through_the_gateway).await - before;
    assert!((counted - sent as f64).abs() <= 0.05 * sent as f64, "{sent} sent, {counted} counted");
    for reporter in ["source", "destination"] {
        let edges = edges(&prometheus, reporter).await;
        let expected = [
            ("istio-ingressgateway", "productpage-v1"),
            ("productpage-v1", "details-v1"),
            ("productpage-v1", "reviews-v1"),
            ("productpage-v1", "reviews-v2"),
            ("productpage-v1", "reviews-v3"),
            ("reviews-v2", "ratings-v1"),
            ("reviews-v3", "ratings-v1"),
        ];
        let expected: BTreeSet<(String, String)> = expected.map(|(from, to)| (from.to_owned(), to.to_owned())).into();
        assert_eq!(edges, expected, "as told by the {reporter}");
    }
    let open = "sum(istio_requests_total{reporter=\"destination\",connection_security_policy!=\"mutual_tls\"})";
    assert!(prometheus.ask(open).await.unwrap().is_empty(), "a request without mutual TLS");
}

/// Panels with data, the titles of those without, and how many there are. Each expression must at least run.
async fn lit(prometheus: &Prometheus, panels: &[Panel]) -> (usize, Vec<String>, usize) {
    let mut empty = Vec::new();
    for Panel { title, expressions } in panels {
        let mut has_data = false;
        for expression in expressions {
            let answer = prometheus.ask(expression).await;
            let answer = answer.unwrap_or_else(|error| panic!("{title}: {expression}\n{error}"));
            has_data |= !answer.is_empty();
        }
        if !has_data {
            empty.push(title.clone());
        }
    }
    (panels.len() - empty.len(), empty, panels.len())
}

/// Asks for the page, a few at a time, all the while; the answer is how often.
async fn load(bookinfo: &Bookinfo) -> usize {
    let (client, page) = (client(), format!("http://{}/productpage", bookinfo.gateway()));
    let (client, page, until) = (&client, &page, Instant::now() + LOAD);
    let pages = stream::iter(0..).take_while(|_| std::future::ready(Instant::now() < until)).map(|_| async move {
        // A rate that a machine with other work can follow.
        tokio::time::sleep(Duration::from_millis(50)).await;
        get(client, page, &[]).await
    });
    let answers: Vec<_> = pages.buffer_unordered(4).collect().await;
    assert!(answers.iter().all(|answer| answer.status == 200), "a page that failed");
    answers.len()
}

/// What an expression amounts to once it stays the same for a few scrapes.
async fn settled(prometheus: &Prometheus, expression: &str) -> f64 {
    let until = Instant::now() + PATIENCE;
    let (mut last, mut since) = (prometheus.number(expression).await, Instant::now());
    while since.elapsed() < Duration::from_millis(2_500) {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let value = prometheus.number(expression).await;
        if value != last {
            (last, since) = (value, Instant::now());
        }
        assert!(Instant::now() < until, "{expression} does not settle");
    }
    last
}

/// Who called whom, by Kiali's labels, each of which must be there.
async fn edges(prometheus: &Prometheus, reporter: &str) -> BTreeSet<(String, String)> {
    let by = format!("sum by ({KIALI}) (istio_requests_total{{reporter=\"{reporter}\",response_code=\"200\"}})");
    let samples = prometheus.ask(&by).await.unwrap();
    let mut edges = BTreeSet::new();
    for (labels, _) in samples {
        let label = |name: &str| labels.get(name).and_then(|value| value.as_str()).unwrap_or_default().to_owned();
        // An empty label is none to Prometheus; only plain HTTP has no gRPC status.
        for name in KIALI.split(", ").filter(|name| *name != "grpc_response_status") {
            assert!(!label(name).is_empty(), "no {name} in {labels:?}");
        }
        let workload = |side: &str| label(&format!("{side}_workload"));
        edges.insert((workload("source"), workload("destination")));
    }
    edges
}
