//! The console of the control plane: the graph of Bookinfo, who may change something through it, and its pages in a real browser.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::BTreeSet,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use axum::body::Body;
use http::{Request, StatusCode, header};
use serde_json::{Value, json};

use crate::calls::{client, get};
use crate::front::{Front, PATIENCE};
use crate::harness::shared;
use crate::peers::{istio, missing};
use crate::steps::{ALL, Configured};

/// TE20: the graph is that of Bookinfo, all of it over mutual TLS; as JSON, for Graphviz, and drawn.
#[tokio::test(flavor = "multi_thread")]
async fn the_graph_is_bookinfos() {
    let bookinfo = shared().await;
    bookinfo.reset().await;
    let expected: BTreeSet<(String, String)> = [
        ("istio-ingressgateway.istio-system", "productpage-v1.default"),
        ("productpage-v1.default", "details-v1.default"),
        ("productpage-v1.default", "reviews-v1.default"),
        ("productpage-v1.default", "reviews-v2.default"),
        ("productpage-v1.default", "reviews-v3.default"),
        ("reviews-v2.default", "ratings-v1.default"),
        ("reviews-v3.default", "ratings-v1.default"),
    ]
    .into_iter()
    .map(|(from, to)| (from.to_owned(), to.to_owned()))
    .collect();
    let page = format!("http://{}/productpage", bookinfo.gateway());
    let at = |path: &str| format!("http://{}{path}", bookinfo.server());
    let until = Instant::now() + PATIENCE;
    loop {
        for _ in 0..12 {
            get(&client(), &page, &[]).await;
        }
        let graph = get(&client(), &at("/graph.json"), &[]).await.json();
        let edges = graph["edges"].as_array().cloned().unwrap_or_default();
        let text = |edge: &Value, name: &str| edge[name].as_str().unwrap_or_default().to_owned();
        // Edges of other tests of this process are within the quarter of an hour too; none leads to a strange place.
        let busy = edges.iter().filter(|edge| edge["rate"].as_f64() > Some(0.0));
        let found: BTreeSet<_> = busy.clone().map(|edge| (text(edge, "from"), text(edge, "to"))).collect();
        if found == expected && busy.clone().all(|edge| edge["mtls"] == json!(true)) {
            break;
        }
        assert!(Instant::now() < until, "{graph:#}");
    }
    let dot = get(&client(), &at("/graph.dot"), &[]).await.body;
    assert!(dot.starts_with("digraph") && dot.contains("\"reviews-v3.default\" -> \"ratings-v1.default\""), "{dot}");
    let ran = bookinfo.meshctl(&["graph"]);
    assert!(ran.out.starts_with("FROM ") && ran.out.contains("ratings-v1.default"), "{}{}", ran.out, ran.err);
    let line = ran.out.lines().find(|line| line.contains("istio-ingressgateway.istio-system")).unwrap_or_default();
    assert!(line.contains("productpage-v1.default") && line.contains("%") && line.ends_with("mtls"), "{}", ran.out);
    assert!(bookinfo.meshctl(&["graph", "-o", "dot"]).out.starts_with("digraph"));
    let ran = bookinfo.meshctl(&["dashboard"]);
    assert_eq!(ran.out.trim_end(), at("/console/"));
    let svg = get(&client(), &at("/dotviz"), &[]).await.body;
    assert!(svg.contains("<svg") && svg.contains("ratings-v1.default"), "{svg}");
}

/// AD6: what a browser sends changes something only with the token that a page from here has; other origins and names are refused.
#[tokio::test(flavor = "multi_thread")]
async fn pages_write_with_their_token() {
    let bookinfo = shared().await;
    bookinfo.reset().await;
    let index = get(&client(), &format!("http://{}/console/", bookinfo.server()), &[]).await;
    assert_eq!(index.status, StatusCode::OK);
    let (_, rest) = index.body.split_once("name=\"mesh-token\" content=\"").expect("a token");
    let token = rest.split('"').next().unwrap().to_owned();
    assert_eq!(token.len(), 32);
    let own = format!("http://{}", bookinfo.server());
    let cases: [(&[(&str, &str)], StatusCode); 6] = [
        (&[], StatusCode::OK),
        (&[("origin", &own)], StatusCode::FORBIDDEN),
        (&[("sec-fetch-site", "same-origin")], StatusCode::FORBIDDEN),
        (&[("origin", &own), ("x-mesh-token", "0")], StatusCode::FORBIDDEN),
        (&[("origin", &own), ("x-mesh-token", &token)], StatusCode::OK),
        (&[("origin", "http://example.com"), ("x-mesh-token", &token)], StatusCode::FORBIDDEN),
    ];
    for (headers, expected) in cases {
        let mut request = Request::post(format!("{own}/apply")).header(header::CONTENT_TYPE, "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = json!({ "files": [], "dry_run": true }).to_string();
        let answer = client().request(request.body(Body::from(body)).unwrap()).await.unwrap();
        assert_eq!(answer.status(), expected, "{headers:?}");
    }
    let strange = get(&client(), &format!("{own}/console/"), &[("host", "rebound.example.com")]).await;
    assert_eq!(strange.status, StatusCode::FORBIDDEN);
}

/// A browser that can be steered from here, or `None` after saying what is missing.
pub(crate) fn browser() -> Option<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let runs = |program: &str| {
        Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
    };
    let chromium = ["chromium", "chromium-browser", "google-chrome"].into_iter().find(|name| runs(name));
    let installed = root.join("mesh-control/console/node_modules/playwright-core").exists();
    match (chromium, runs("node"), installed) {
        (Some(chromium), true, true) => Some(chromium.to_owned()),
        _ => {
            missing(
                "the console's pages, since node, chromium or mesh-control/console/node_modules (npm ci) is missing",
            );
            None
        }
    }
}

/// Runs a script of this folder; what it said, as an error where it failed.
pub(crate) async fn walk(chromium: &str, script: &str, arguments: &[String]) -> Result<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let child = tokio::process::Command::new("node")
        .arg(root.join("tests/bookinfo").join(script))
        .args(arguments)
        .env("CHROMIUM", chromium)
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(240), child).await.expect("the pages end in time");
    let output = output.expect("node starts");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(said) } else { Err(said) }
}

/// TE20, TE12: every page in a real browser, and the slider on real traffic. What each page must show stands in `pages.mjs`.
#[tokio::test(flavor = "multi_thread")]
async fn every_page_works_in_a_browser() {
    let Some(chromium) = browser() else { return };
    if istio(ALL).is_none() {
        return;
    }
    let bookinfo = shared().await;
    bookinfo.reset().await;
    bookinfo.apply_istio(ALL);
    let places = [format!("http://{}", bookinfo.server()), format!("http://{}", bookinfo.gateway())];
    if let Err(said) = walk(&chromium, "pages.mjs", &places).await {
        panic!("{said}\n{}", bookinfo.said());
    }
    bookinfo.reset().await;
}
