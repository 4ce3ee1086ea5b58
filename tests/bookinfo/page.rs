//! What the page shows, as seen through the gateway.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use http::StatusCode;

use crate::front::{Front, stars};
use crate::harness::{Bookinfo, shared};
use crate::steps::Configured;

/// GW1: the page, its login and its JSON come through the gateway, and what its routes do not list gets 404.
#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_serves_the_page_and_404_for_the_rest() {
    let bookinfo = shared().await;
    bookinfo.reset().await;
    check_gateway(&bookinfo).await;
}

async fn check_gateway(bookinfo: &Bookinfo) {
    let page = bookinfo.page("").await;
    assert!(page.body.contains("id=\"sign-in-button\"") && page.body.contains("Book Details"), "{}", page.body);
    assert!(page.body.contains("<td>1234567890</td><td>PublisherA</td>"), "{}", page.body);
    assert_eq!(bookinfo.get("/static/bookinfo.css", "").await.status, StatusCode::OK);
    let products = bookinfo.get("/api/v1/products", "").await;
    assert_eq!(products.json()[0]["title"], "The Comedy of Errors");
    assert_eq!(bookinfo.get("/api/v1/products/0", "").await.json()["year"], 1595);
    assert_eq!(bookinfo.get("/api/v1/products/0/ratings", "").await.json()["ratings"]["Reviewer2"], 4);
    for path in ["/", "/health", "/metrics", "/productpage/more", "/reviews/0"] {
        assert_eq!(bookinfo.get(path, "").await.status, StatusCode::NOT_FOUND, "{path}");
    }
    let session = bookinfo.sign_in("jason").await;
    let page = bookinfo.page(&session).await;
    assert!(page.body.contains("jason") && page.body.contains(">Sign out</a>"), "{}", page.body);
}

/// NR7: without any rule for reviews, its three workloads take turns.
#[tokio::test(flavor = "multi_thread")]
async fn without_rules_every_version_answers() {
    let bookinfo = shared().await;
    bookinfo.reset().await;
    bookinfo.until_reviews_by(&["reviews-v1", "reviews-v2", "reviews-v3"], "").await;
    let mut seen = Vec::new();
    for _ in 0..30 {
        let stars = stars(&bookinfo.page("").await);
        if !seen.contains(&stars) {
            seen.push(stars);
        }
    }
    assert_eq!(seen.len(), 3, "{seen:?}");
}
