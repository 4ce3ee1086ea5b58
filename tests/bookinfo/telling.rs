//! What each process tells of itself.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Instant;

use crate::calls::{client, get};
use crate::front::{Front, PATIENCE};
use crate::harness::{Bookinfo, shared, turn};
use crate::steps::Configured;

/// TE1, SV8, TE21: both ends of a call count it with Istio's names, labels and buckets.
#[tokio::test(flavor = "multi_thread")]
async fn both_ends_of_a_call_count_it() {
    let bookinfo = shared().await;
    bookinfo.reset().await;
    bookinfo.until_reviews_by(&["reviews-v1", "reviews-v2", "reviews-v3"], "").await;
    let source = series(
        &bookinfo,
        "productpage-v1",
        "istio_requests_total",
        &["reporter=\"source\"", "destination_workload=\"reviews-v2\""],
    )
    .await;
    for label in [
        "source_workload=\"productpage-v1\"",
        "source_canonical_service=\"productpage\"",
        "source_canonical_revision=\"v1\"",
        "source_workload_namespace=\"default\"",
        "source_principal=\"spiffe://cluster.local/ns/default/sa/bookinfo-productpage\"",
        "source_app=\"productpage\"",
        "source_version=\"v1\"",
        "destination_workload_namespace=\"default\"",
        "destination_principal=\"spiffe://cluster.local/ns/default/sa/bookinfo-reviews\"",
        "destination_app=\"reviews\"",
        "destination_version=\"v2\"",
        "destination_service=\"reviews.default.svc.cluster.local\"",
        "destination_service_name=\"reviews\"",
        "destination_service_namespace=\"default\"",
        "destination_canonical_service=\"reviews\"",
        "destination_canonical_revision=\"v2\"",
        "request_protocol=\"http\"",
        "response_code=\"200\"",
        "grpc_response_status=\"\"",
        "response_flags=\"-\"",
        "connection_security_policy=\"unknown\"",
    ] {
        assert!(source.contains(label), "no {label} in {source}");
    }
    let destination = series(
        &bookinfo,
        "reviews-v2",
        "istio_requests_total",
        &["reporter=\"destination\"", "destination_workload=\"reviews-v2\""],
    )
    .await;
    for label in [
        "source_workload=\"productpage-v1\"",
        "source_app=\"productpage\"",
        "source_principal=\"spiffe://cluster.local/ns/default/sa/bookinfo-productpage\"",
        "destination_principal=\"spiffe://cluster.local/ns/default/sa/bookinfo-reviews\"",
        "destination_service=\"reviews.default.svc.cluster.local\"",
        "response_code=\"200\"",
        "connection_security_policy=\"mutual_tls\"",
    ] {
        assert!(destination.contains(label), "no {label} in {destination}");
    }
    for name in ["istio_request_duration_milliseconds", "istio_request_bytes", "istio_response_bytes"] {
        let buckets = [
            "0.5", "1", "5", "10", "25", "50", "100", "250", "500", "1000", "2500", "5000", "10000", "30000", "60000",
            "300000", "600000", "1800000", "3600000", "+Inf",
        ];
        for bucket in buckets {
            series(&bookinfo, "reviews-v2", &format!("{name}_bucket"), &[&format!("le=\"{bucket}\"")]).await;
        }
    }
    for name in ["gateway", "productpage-v1", "details-v1", "ratings-v1", "reviews-v1", "reviews-v2", "reviews-v3"] {
        series(&bookinfo, name, "istio_requests_total", &["response_code=\"200\""]).await;
    }
}

/// The first series of this name with these labels, waited for: an event is told when its body has ended.
async fn series(bookinfo: &Bookinfo, process: &str, name: &str, labels: &[&str]) -> String {
    let until = Instant::now() + PATIENCE;
    loop {
        bookinfo.page("").await;
        let metrics = get(&client(), &format!("http://{}/metrics", bookinfo.admin(process)), &[]).await.body;
        let found = metrics.lines().find(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{'))
                && labels.iter().all(|label| line.contains(label))
        });
        if let Some(found) = found {
            return found.to_owned();
        }
        assert!(Instant::now() < until, "{process} has no {name} with {labels:?}:\n{metrics}");
    }
}

/// TE13, TE16: a trace begun outside goes through every hop: each process logs one line a request, with its trace.
#[tokio::test(flavor = "multi_thread")]
async fn a_trace_goes_through_every_hop() {
    let _turn = turn().await;
    let bookinfo = Bookinfo::start(&[], &[("MESH_ACCESS_LOG", "json")]);
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("00-{trace}-00f067aa0ba902b7-01");
    let page = format!("http://{}/productpage", bookinfo.at(10, 9080));
    let until = Instant::now() + PATIENCE;
    loop {
        assert_eq!(get(&client(), &page, &[("traceparent", &parent)]).await.status, 200);
        let said = bookinfo.said();
        let lines: Vec<&str> = said.lines().filter(|line| line.contains(trace)).collect();
        let paths = ["/productpage", "/details/0", "/reviews/0", "/ratings/0"];
        if paths.iter().all(|path| lines.iter().any(|line| line.contains(path))) {
            for line in &lines {
                assert!(
                    serde_json::from_str::<serde_json::Value>(line).is_ok_and(|line| line.is_object()),
                    "no JSON: {line}"
                );
            }
            return;
        }
        assert!(Instant::now() < until, "not every hop in:\n{said}");
    }
}

/// TE10, TE16: a Telemetry says what workloads log and which labels they count by, and what it says ends with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_telemetry_says_what_is_told() {
    let _turn = turn().await;
    let bookinfo = Bookinfo::start(&[], &[]);
    bookinfo.apply(
        "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {name: told, namespace: istio-system}\nspec:\n  \
         accessLogging: [{match: {mode: SERVER}, filter: {expression: \"request.url_path == '/details/0'\"}}]\n  \
         metrics: [{overrides: [{match: {metric: REQUEST_COUNT}, tagOverrides: {asked: {value: request.method}}}]}]\n",
    );
    let label = ["asked=\"GET\"", "reporter=\"destination\""];
    series(&bookinfo, "reviews-v1", "istio_requests_total", &label).await;
    let until = Instant::now() + PATIENCE;
    while !bookinfo.said().contains("\"GET /details/0 HTTP/") {
        bookinfo.page("").await;
        assert!(Instant::now() < until, "no line in\n{}", bookinfo.said());
    }
    assert!(!bookinfo.said().contains("/reviews/0 HTTP"), "what was not asked for:\n{}", bookinfo.said());
    let ran = bookinfo.meshctl(&["delete", "telemetry", "told", "-n", "istio-system"]);
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    let lines = || bookinfo.said().matches("/details/0 HTTP").count();
    let mut before = lines();
    loop {
        bookinfo.page("").await;
        let now = lines();
        if now == before {
            return;
        }
        before = now;
        assert!(Instant::now() < until, "lines go on");
    }
}
