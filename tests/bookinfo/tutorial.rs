//! Istio's Bookinfo tutorial with Istio's own files, step by step (`steps.rs`), and what `meshctl` makes of those files.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::calls::{client, get};
use crate::front::{Front, PATIENCE};
use crate::harness::shared;
use crate::peers::istio;
use crate::programs::meshctl;
use crate::steps::{self, ALL, Configured, all_to_v1};

macro_rules! shared_or_skip {
    () => {{
        if istio(ALL).is_none() {
            return;
        }
        shared().await
    }};
}

/// RA1, RA7: with every route on v1 no page has stars, for anybody.
#[tokio::test(flavor = "multi_thread")]
async fn all_traffic_goes_to_v1() {
    let bookinfo = shared_or_skip!();
    steps::all_traffic_goes_to_v1(&*bookinfo).await;
}

/// RM1, RM17: jason sees v2 and everybody else v1; `end-user` comes from the session alone.
#[tokio::test(flavor = "multi_thread")]
async fn jason_sees_v2() {
    let bookinfo = shared_or_skip!();
    steps::jason_sees_v2(&*bookinfo).await;
}

/// RA3, RA6: half and half, then all to v3, then the two canaries: each count of 2,000 is within five standard deviations.
#[tokio::test(flavor = "multi_thread")]
async fn weights_are_kept() {
    let bookinfo = shared_or_skip!();
    steps::weights_are_kept(&*bookinfo).await;
}

/// FI1: seven seconds of delay at ratings for jason. On v2 the page gives up on reviews after twice three seconds, although
/// reviews waits ten; on v3 reviews gives up on ratings after 2.5 seconds. Nobody else notices.
#[tokio::test(flavor = "multi_thread")]
async fn jasons_delay_shows_the_bug_of_the_page() {
    let bookinfo = shared_or_skip!();
    steps::jasons_delay_shows_the_bug_of_the_page(&*bookinfo).await;
}

/// FI2: status 500 from ratings for jason. He sees reviews without stars and is told why, at once; nobody else notices.
#[tokio::test(flavor = "multi_thread")]
async fn jasons_abort_costs_him_the_stars() {
    let bookinfo = shared_or_skip!();
    steps::jasons_abort_costs_him_the_stars(&*bookinfo).await;
}

/// FI2: details answers 555, and the page says so and goes on.
#[tokio::test(flavor = "multi_thread")]
async fn details_can_be_made_to_fail() {
    let bookinfo = shared_or_skip!();
    steps::details_can_be_made_to_fail(&*bookinfo).await;
}

/// GW1, XD39: Istio's gateway file is taken unchanged in place of ours; its port is the gateway's 8080.
#[tokio::test(flavor = "multi_thread")]
async fn istios_gateway_file_opens_the_gateway() {
    let bookinfo = shared_or_skip!();
    steps::istios_gateway_file_opens_the_gateway(&*bookinfo).await;
}

/// XD39, OP3: every file of the sample's networking folder is taken, or refused with its name and the reason.
#[tokio::test(flavor = "multi_thread")]
async fn every_file_of_the_sample_is_taken_or_refused_by_name() {
    let bookinfo = shared_or_skip!();
    bookinfo.reset().await;
    bookinfo.apply_istio("platform/kube/bookinfo.yaml");
    let folder = istio("networking").unwrap();
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 21, "{files:?}");
    for file in files {
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        // Some of the files narrow the subsets that others use.
        bookinfo.apply_istio(ALL);
        let ran = bookinfo.meshctl(&["apply", "-f", file.to_str().unwrap()]);
        eprintln!("{name}: {}", ran.code);
        match ran.code {
            0 => {}
            65 => assert!(ran.err.contains(&name) && ran.err.contains("error"), "{name}: {}", ran.err),
            other => panic!("{name}: exit {other}: {}{}", ran.out, ran.err),
        }
        assert_eq!(ran.code, 0, "{name} is one that works here: {}", ran.err);
    }
    bookinfo.reset().await;
    let ran = bookinfo.meshctl(&["apply", "-f", folder.to_str().unwrap()]);
    assert_eq!(ran.code, 0, "the folder at once: {}{}", ran.out, ran.err);
}

/// XD39: what `bookinfo.yaml` says of services and accounts is known, and its Deployments are read as hints.
#[tokio::test(flavor = "multi_thread")]
async fn the_kubernetes_file_is_read_for_services_and_accounts() {
    let bookinfo = shared_or_skip!();
    bookinfo.reset().await;
    bookinfo.apply_istio("platform/kube/bookinfo.yaml");
    for (kind, name) in [("service", "reviews"), ("serviceaccount", "bookinfo-reviews"), ("deployment", "reviews-v3")] {
        let ran = bookinfo.meshctl(&["get", kind, name, "-o", "json"]);
        assert_eq!(ran.code, 0, "get {kind} {name}: {}", ran.err);
        assert_eq!(serde_json::from_str::<Value>(&ran.out).unwrap()["metadata"]["name"], name);
    }
}

/// OP7: get prints what was applied, in each form; delete takes it back.
#[tokio::test(flavor = "multi_thread")]
async fn get_and_delete_follow_apply() {
    let bookinfo = shared_or_skip!();
    all_to_v1(&*bookinfo).await;
    let table = bookinfo.meshctl(&["get", "virtualservices"]);
    for name in ["bookinfo", "details", "productpage", "ratings", "reviews"] {
        assert!(table.out.lines().any(|line| line.contains(name)), "no {name} in {}", table.out);
    }
    let one = bookinfo.meshctl(&["get", "virtualservice", "reviews", "-o", "json"]);
    let one: Value = serde_json::from_str(&one.out).unwrap();
    assert_eq!(one["spec"]["http"][0]["route"][0]["destination"], json!({ "host": "reviews", "subset": "v1" }));
    let yaml = bookinfo.meshctl(&["get", "virtualservice", "reviews", "-o", "yaml"]);
    assert!(yaml.out.contains("subset: v1"), "{}", yaml.out);
    assert_eq!(meshctl(&bookinfo.server(), &["apply", "-f", "-"], &yaml.out).code, 0, "what get prints can be applied");

    let deleted = bookinfo.meshctl(&["delete", "virtualservice", "reviews"]);
    assert_eq!(deleted.code, 0, "{}", deleted.err);
    bookinfo.until_reviews_by(&["reviews-v1", "reviews-v2", "reviews-v3"], "").await;
    let gone = bookinfo.meshctl(&["get", "virtualservice", "reviews"]);
    assert_ne!(gone.code, 0);
    assert!(gone.err.contains("reviews"), "{}", gone.err);
}

/// AD6, OP6: explain names the rule, its weights, the cluster and the endpoints, and why the other rule was not it.
#[tokio::test(flavor = "multi_thread")]
async fn explain_says_why() {
    let bookinfo = shared_or_skip!();
    all_to_v1(&*bookinfo).await;
    bookinfo.apply_istio("networking/virtual-service-reviews-test-v2.yaml");
    let explain = |headers: &[&str]| {
        let mut arguments = vec!["explain", "GET", "http://reviews:9080/reviews/0", "--from", "productpage"];
        headers.iter().for_each(|header| arguments.extend(["-H", header]));
        let ran = bookinfo.meshctl(&arguments);
        assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
        ran.out
    };
    let jason = explain(&["end-user:jason"]);
    for part in ["outbound|9080|v2|reviews.default.svc.cluster.local", &bookinfo.workload("reviews-v2").to_string()] {
        assert!(jason.contains(part), "no `{part}` in:\n{jason}");
    }
    let other = explain(&[]);
    for part in
        ["outbound|9080|v1|reviews.default.svc.cluster.local", &bookinfo.workload("reviews-v1").to_string(), "end-user"]
    {
        assert!(other.contains(part), "no `{part}` in:\n{other}");
    }
    assert!(!other.contains(&bookinfo.workload("reviews-v2").to_string()), "{other}");
}

/// XD1, XD3, OP1, OP10: a change is in force within 100 ms, by the median of nine changes, and every workload says that it has it.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_soon_in_force() {
    let bookinfo = shared_or_skip!();
    all_to_v1(&*bookinfo).await;
    let route = |subset: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: reviews}}\n\
             spec: {{hosts: [reviews], http: [{{route: [{{destination: {{host: reviews, subset: {subset}}}}}]}}]}}\n"
        )
    };
    let (http, uri) = (client(), format!("http://{}/api/v1/products/0/reviews", bookinfo.at(10, 9080)));
    let apply = |yaml: String| {
        let body = json!({ "files": [{ "name": "route.yaml", "text": yaml }] }).to_string();
        let request = http::Request::post(format!("http://{}/apply", bookinfo.server()))
            .header("content-type", "application/json")
            .body(axum::body::Body::from(body));
        http.request(request.unwrap())
    };
    let mut took = Vec::new();
    for subset in ["v3", "v1"].into_iter().cycle().take(9) {
        let start = Instant::now();
        assert_eq!(apply(route(subset)).await.unwrap().status(), 200);
        while get(&http, &uri, &[]).await.json()["podname"] != format!("reviews-{subset}") {
            assert!(start.elapsed() < PATIENCE);
        }
        took.push(start.elapsed());
    }
    took.sort();
    eprintln!("from apply to in force: {took:?}");
    // Without optimisation every step of it takes several times as long.
    let limit = if cfg!(debug_assertions) { 400 } else { 100 };
    assert!(took[4] < Duration::from_millis(limit), "{took:?}");

    let until = Instant::now() + PATIENCE;
    loop {
        let status = bookinfo.meshctl(&["proxy-status"]);
        let lines: Vec<&str> = status.out.lines().skip(1).collect();
        if lines.len() == 7 && lines.iter().all(|line| line.matches("SYNCED").count() == 4) {
            break;
        }
        assert!(status.code == 0 && Instant::now() < until, "{}{}", status.out, status.err);
    }
}
