//! Bookinfo steered and watched from the command line: every verb changes or shows real traffic.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::calls::{client, get};
use crate::front::{Front, PATIENCE, Stars, stars};
use crate::harness::{Bookinfo, shared};
use crate::programs::{Killed, Ran, program};
use crate::steps::Configured;

/// The subsets of reviews; the rules are made by the commands.
const SUBSETS: &str = "\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
  - {name: v3, labels: {version: v3}}
";

fn ok(bookinfo: &Bookinfo, arguments: &[&str]) -> String {
    let Ran { code, out, err } = bookinfo.meshctl(arguments);
    assert_eq!(code, 0, "{arguments:?}: {out}{err}");
    out
}

/// RA3, RE1: shift, timeout and fault change who answers and how, and `--undo` puts everything back.
#[tokio::test(flavor = "multi_thread")]
async fn verbs_steer_real_traffic() {
    let bookinfo = shared().await;
    bookinfo.reset().await;
    bookinfo.apply(SUBSETS);
    ok(&bookinfo, &["shift", "reviews", "v1"]);
    bookinfo.until_reviews_by(&["reviews-v1"], "").await;
    ok(&bookinfo, &["shift", "reviews", "v1=50", "v3=50"]);
    bookinfo.until_reviews_by(&["reviews-v1", "reviews-v3"], "").await;
    let count = bookinfo.reviews(1000, "").await;
    // Five standard deviations of 1,000 fair throws are 79.
    assert!(count.values().all(|count| count.abs_diff(500) <= 79), "{count:?}");
    ok(&bookinfo, &["shift", "reviews", "v3"]);
    bookinfo.until_reviews_by(&["reviews-v3"], "").await;
    assert_eq!(stars(&bookinfo.page("").await), Stars::Red);

    // The stars take four seconds for jason, and for nobody else.
    ok(&bookinfo, &["fault", "ratings", "--delay", "4s", "--user", "jason"]);
    let jason = bookinfo.sign_in("jason").await;
    let until = Instant::now() + PATIENCE;
    while stars(&bookinfo.page(&jason).await) == Stars::Red {
        assert!(Instant::now() < until, "the fault never came");
    }
    let page = bookinfo.page(&jason).await;
    assert!(stars(&page) == Stars::Unavailable && page.took >= Duration::from_secs(2), "{:?}", page.took);
    // The reviews wait 2.5 seconds for the stars; the page shall not wait for the reviews as long.
    ok(&bookinfo, &["timeout", "reviews", "500ms"]);
    let until = Instant::now() + PATIENCE;
    while stars(&bookinfo.page(&jason).await) != Stars::NoReviews {
        assert!(Instant::now() < until, "the timeout never came");
    }
    assert!(bookinfo.page(&jason).await.took < Duration::from_secs(2));
    assert_eq!(stars(&bookinfo.page("").await), Stars::Red);
    ok(&bookinfo, &["timeout", "reviews", "--undo"]);
    assert!(ok(&bookinfo, &["fault", "ratings", "--undo"]).contains("deleted"));
    let until = Instant::now() + PATIENCE;
    while stars(&bookinfo.page(&jason).await) != Stars::Red {
        assert!(Instant::now() < until, "the fault never went");
    }
    ok(&bookinfo, &["shift", "reviews", "--undo"]);
    bookinfo.until_reviews_by(&["reviews-v1", "reviews-v3"], "").await;
}

/// OP12: a shift by steps goes on while requests succeed, and goes back by itself when they do not.
#[tokio::test(flavor = "multi_thread")]
async fn a_shift_by_steps_goes_back_by_itself() {
    let bookinfo = shared().await;
    bookinfo.reset().await;
    bookinfo.apply(SUBSETS);
    ok(&bookinfo, &["shift", "reviews", "v1"]);
    bookinfo.until_reviews_by(&["reviews-v1"], "").await;
    let page = format!("http://{}/api/v1/products/0/reviews", bookinfo.gateway());
    let load = |rps: &str| {
        let mut command = Command::new(program("meshctl"));
        command.args(["load", &page, "--rps", rps, "--duration", "10m"]).stdout(Stdio::null()).stderr(Stdio::null());
        Killed::start(command)
    };
    let _load = load("40");
    let steps = ["--over", "12s", "--steps", "3", "--min-requests", "5"];
    let out = ok(&bookinfo, &[&["shift", "reviews", "v3=100"], &steps[..]].concat());
    assert_eq!(out.lines().count(), 3, "{out}");
    assert!(out.contains("step 1 of 3: v1=67 v3=33") && out.contains("step 3 of 3: v1=0 v3=100"), "{out}");
    bookinfo.until_reviews_by(&["reviews-v3"], "").await;

    // Nobody is there to answer for the other, from the first step on.
    bookinfo.apply(&format!("{SUBSETS}  - {{name: nobody, labels: {{version: none}}}}\n"));
    let rule = ok(&bookinfo, &["get", "vs", "reviews", "-o", "yaml"]);
    let failing = bookinfo.meshctl(&[&["shift", "reviews", "nobody=100"], &steps[..]].concat());
    assert_eq!(failing.code, 1, "{}{}", failing.out, failing.err);
    assert!(failing.err.contains("everything goes as before"), "{}", failing.err);
    assert_eq!(ok(&bookinfo, &["get", "vs", "reviews", "-o", "yaml"]), rule);
    bookinfo.until_reviews_by(&["reviews-v3"], "").await;
}

/// TE19, OP4: what stat, edges, routes, top, tap and trace tell is what happens.
#[tokio::test(flavor = "multi_thread")]
async fn verbs_show_real_traffic() {
    let bookinfo = shared().await;
    bookinfo.reset().await;
    bookinfo.apply(SUBSETS);
    ok(&bookinfo, &["shift", "reviews", "v2=75", "v3=25"]);
    bookinfo.until_reviews_by(&["reviews-v2", "reviews-v3"], "").await;
    let page = format!("http://{}/productpage", bookinfo.gateway());
    let mut command = Command::new(program("meshctl"));
    command.args(["load", &page, "--rps", "20", "--duration", "10m"]).stdout(Stdio::null()).stderr(Stdio::null());
    let _load = Killed::start(command);

    // Ten seconds fill the window that rates are of.
    let json = |arguments: &[&str]| -> Vec<Value> {
        let value: Value = serde_json::from_str(&ok(&bookinfo, arguments)).unwrap();
        value["items"].as_array().unwrap().clone()
    };
    let until = Instant::now() + PATIENCE;
    loop {
        let lines = json(&["stat", "-o", "json"]);
        let of = |name: &str| lines.iter().find(|line| line["name"] == name).cloned().unwrap_or_default();
        let rps = of("productpage-v1")["rps"].as_f64().unwrap_or_default();
        let is_secure = of("ratings-v1")["secured"] == 1.0 && of("reviews-v2")["secured"] == 1.0;
        if (18.0..=22.0).contains(&rps) && of("productpage-v1")["success"] == 1.0 && is_secure {
            break;
        }
        assert!(Instant::now() < until, "{lines:#?}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let services = ok(&bookinfo, &["stat", "svc"]);
    assert!(
        services.starts_with("NAME ") && services.contains("100.00%") && services.contains("ratings"),
        "{services}"
    );
    let edges = ok(&bookinfo, &["edges", "productpage-v1"]);
    let edge = edges.lines().find(|line| line.contains("reviews-v2.default")).unwrap_or_default();
    assert!(edge.contains("bookinfo-productpage.default") && edge.contains("bookinfo-reviews.default"), "{edges}");
    assert!(edge.ends_with('√'), "{edges}");

    // 20 a second, ten of them seconds: five standard deviations around three quarters are 15 %. Requests of before may be in the
    // first of those seconds.
    loop {
        let routes = json(&["routes", "reviews", "-o", "json"]);
        let route = |subset: &str| routes.iter().find(|line| line["destination"] == subset).unwrap();
        assert_eq!((&route("v2")["weight"], &route("v3")["weight"]), (&Value::from(75), &Value::from(25)));
        if (60.0..=90.0).contains(&route("v2")["actual"].as_f64().unwrap_or_default()) {
            break;
        }
        assert!(Instant::now() < until, "{routes:#?}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }

    let tapped = ok(&bookinfo, &["tap", "reviews", "--from", "productpage", "--count", "3"]);
    assert_eq!(tapped.lines().count(), 3);
    for part in ["rsp src=productpage dst=reviews :method=GET", ":path=/reviews/0", ":status=200 latency="] {
        assert!(tapped.lines().all(|line| line.contains(part)), "{part} in {tapped}");
    }
    // Spans come in batches, seconds apart.
    let top = ok(&bookinfo, &["top", "--for", "12s"]);
    assert!(top.starts_with("SOURCE ") && top.contains("/reviews/0") && top.contains("100.00%"), "{top}");
    let traces = json(&["trace", "--service", "ratings", "-o", "json"]);
    let trace = traces.iter().find(|trace| trace["services"].as_array().unwrap().len() >= 4).expect("all of a page");
    let waterfall = ok(&bookinfo, &["trace", trace["id"].as_str().unwrap()]);
    for service in ["productpage", "details", "reviews", "ratings"] {
        assert!(waterfall.contains(service), "{service} in {waterfall}");
    }
    let well = ok(&bookinfo, &["check"]);
    assert!(
        well.contains("√ 7 are connected") && well.contains("√ every connected workload uses what it was sent"),
        "{well}"
    );
    let status = ok(&bookinfo, &["status"]);
    assert!(status.contains("7 synced") && status.contains("100.00% succeed"), "{status}");
    let fields = ok(&bookinfo, &["fields", "reviews-v2", "--all"]);
    assert!(fields.lines().filter(|line| line.ends_with("applied")).count() > 50, "{fields}");
    let told = ok(&bookinfo, &["describe", "workload", "reviews-v2"]);
    for part in [
        "spiffe://cluster.local/ns/default/sa/bookinfo-reviews",
        "CDS SYNCED",
        "reviews.default.svc.cluster.local",
        "STRICT\n",
    ] {
        assert!(told.contains(part), "{part} in {told}");
    }
    let told = ok(&bookinfo, &["describe", "service", "reviews"]);
    assert!(told.contains("any -> reviews v2 75 %, reviews v3 25 %") && told.contains("1 endpoint"), "{told}");
    assert!(told.contains("Mutual TLS:") && !told.contains("PERMISSIVE"), "{told}");
}

/// OP4: what is said of mutual TLS and of policies is what is in force: what the control plane compiled for that workload.
#[tokio::test(flavor = "multi_thread")]
async fn what_holds_is_described_as_it_is_compiled() {
    let bookinfo = shared().await;
    bookinfo.reset().await;
    let described = |what: &[&str]| {
        let text = ok(&bookinfo, &[&["describe"], what].concat());
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
    };
    let ratings = described(&["workload", "ratings-v1"]);
    assert!(ratings.iter().any(|line| line == "Mutual TLS: STRICT"), "{ratings:#?}");
    assert!(ratings.iter().all(|line| !line.starts_with("Authorization:")), "{ratings:#?}");
    bookinfo.apply(
        "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: odd, namespace: default}
spec:
  selector: {matchLabels: {app: ratings}}
  portLevelMtls: {9080: {mode: PERMISSIVE}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: by-service, namespace: default}
spec:
  targetRefs: [{kind: Service, group: '', name: ratings}]
  action: AUDIT
  rules: [{}]
",
    );
    let ratings = described(&["workload", "ratings-v1"]);
    let has = |lines: &[String], part: &str| lines.iter().any(|line| line.ends_with(part));
    assert!(has(&ratings, "Mutual TLS: STRICT"), "{ratings:#?}");
    assert!(has(&ratings, "port 9080: PERMISSIVE by PeerAuthentication default/odd"), "{ratings:#?}");
    let policy = described(&["peerauthentication", "odd"]);
    assert!(has(&policy, "Workloads: ratings-v1.default"), "{policy:#?}");
    let reviews = described(&["workload", "reviews-v1"]);
    assert!(has(&reviews, "Mutual TLS: STRICT") && !has(&reviews, "default/odd"), "{reviews:#?}");
    bookinfo.reset().await;
}

/// TE1: what `load` counts and measures is what the mesh counts, and measures within the bounds of its buckets.
#[tokio::test(flavor = "multi_thread")]
async fn load_agrees_with_the_meshs_counters() {
    let bookinfo = shared().await;
    bookinfo.reset().await;
    bookinfo.until_reviews_by(&["reviews-v1", "reviews-v2", "reviews-v3"], "").await;
    let details = format!("http://{}/api/v1/products/0", bookinfo.gateway());
    let before = settled(&bookinfo).await;
    let begun = Instant::now();
    let out = ok(&bookinfo, &["load", &details, "--rps", "50", "--requests", "300", "-o", "json"]);
    let took = begun.elapsed();
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&report["requests"], &report["codes"]["200"]), (&Value::from(300), &Value::from(300)), "{report:#}");
    let rps = report["rps"].as_f64().unwrap();
    assert!((45.0..=51.0).contains(&rps) && took >= Duration::from_millis(5900), "{rps} in {took:?}");
    let missing = format!("http://{}/static/nothing.css", bookinfo.gateway());
    let out = ok(&bookinfo, &["load", &missing, "--requests", "50", "--concurrency", "4", "-o", "json"]);
    let lost: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(lost["codes"]["404"], 50, "{lost:#}");

    // The gateway's servers count a request after its answer is out.
    let until = Instant::now() + PATIENCE;
    let after = loop {
        let after = counted(&bookinfo).await;
        let grown = |code: &str| after.codes.get(code).unwrap_or(&0) - before.codes.get(code).unwrap_or(&0);
        if grown("200") >= 300 && grown("404") >= 50 {
            assert_eq!((grown("200"), grown("404")), (300, 50));
            break after;
        }
        assert!(Instant::now() < until, "{:?} after {:?}", after.codes, before.codes);
    };
    // The bucket in which the mesh has the median, and the one that load's median is in, are the same or neighbours: the
    // gateway does not see the way from and to it.
    let grown: Vec<u64> = after.buckets.iter().zip(&before.buckets).map(|(after, before)| after - before).collect();
    let bounds = mesh_core::telemetry::BUCKETS;
    let half = grown.iter().sum::<u64>() / 2;
    let mut sum = 0;
    let theirs = grown.iter().position(|count| {
        sum += count;
        sum > half
    });
    let median = report["latency_ms"]["p50"].as_f64().unwrap();
    let ours = bounds.iter().position(|bound| median <= *bound).unwrap_or(bounds.len());
    assert!(theirs.unwrap().abs_diff(ours) <= 1, "load says {median} ms, the mesh has {grown:?} within {bounds:?}");
}

/// What the gateway has counted as a caller: by status, and how long answers of 200 took.
struct Counted {
    codes: BTreeMap<String, u64>,
    buckets: Vec<u64>,
}

/// The same once nothing is counted any more.
async fn settled(bookinfo: &Bookinfo) -> Counted {
    let mut last = counted(bookinfo).await;
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = counted(bookinfo).await;
        if now.codes == last.codes {
            return now;
        }
        last = now;
    }
}

async fn counted(bookinfo: &Bookinfo) -> Counted {
    let url = format!("http://{}/traffic", bookinfo.admin("gateway"));
    let told = get(&client(), &url, &[]).await.json();
    let mut counted = Counted { codes: BTreeMap::new(), buckets: vec![0; mesh_core::telemetry::BUCKETS.len() + 1] };
    for series in told["series"].as_array().unwrap() {
        if series["labels"]["reporter"] != "source" {
            continue;
        }
        let code = series["labels"]["response_code"].as_str().unwrap().to_owned();
        *counted.codes.entry(code.clone()).or_default() += series["requests"].as_u64().unwrap();
        if code == "200" {
            let counts = series["duration"]["counts"].as_array().unwrap().iter().map(|count| count.as_u64().unwrap());
            counted.buckets.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
    }
    counted
}
