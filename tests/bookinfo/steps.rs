//! The steps of Istio's Bookinfo tutorial, with Istio's own files; the pages are what Istio's documentation describes.
//!
//! Each step takes a running Bookinfo and a control plane that can be told to apply a file, and nothing more: the embedded one
//! and Istio's own are held to the same.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::calls::{client, get};
use crate::front::{Front, PATIENCE, Stars, stars};

/// The subsets of all services.
pub(crate) const ALL: &str = "networking/destination-rule-all.yaml";
/// Everything to v1.
const ALL_V1: &str = "networking/virtual-service-all-v1.yaml";
const REQUESTS: usize = 2000;

/// A running Bookinfo whose control plane can be told.
pub(crate) trait Configured: Front {
    /// Puts the configuration back to that of the start, and waits until the gateway lets in what it lists.
    async fn reset(&self);

    /// Applies one of Istio's own files, which must succeed.
    fn apply_istio(&self, file: &str);

    /// Takes an object back, which must be there.
    fn delete(&self, kind: &str, name: &str);
}

/// Begins a step: subsets for all, and everything to v1.
pub(crate) async fn all_to_v1(bookinfo: &impl Configured) {
    bookinfo.reset().await;
    bookinfo.apply_istio(ALL);
    bookinfo.apply_istio(ALL_V1);
    bookinfo.until_reviews_by(&["reviews-v1"], "").await;
}

/// With every route on v1 no page has stars, for anybody.
pub(crate) async fn all_traffic_goes_to_v1(bookinfo: &impl Configured) {
    all_to_v1(bookinfo).await;
    assert_eq!(bookinfo.reviews(200, "").await, BTreeMap::from([("reviews-v1".to_owned(), 200)]));
    let jason = bookinfo.sign_in("jason").await;
    for cookie in ["", &jason] {
        assert_eq!(stars(&bookinfo.page(cookie).await), Stars::None);
    }
}

/// Jason sees v2 and everybody else v1; `end-user` comes from the session alone.
pub(crate) async fn jason_sees_v2(bookinfo: &impl Configured) {
    all_to_v1(bookinfo).await;
    bookinfo.apply_istio("networking/virtual-service-reviews-test-v2.yaml");
    let jason = bookinfo.sign_in("jason").await;
    bookinfo.until_reviews_by(&["reviews-v2"], &jason).await;
    let other = bookinfo.sign_in("martha").await;
    assert_eq!(stars(&bookinfo.page(&jason).await), Stars::Black);
    assert_eq!(bookinfo.reviews(200, &jason).await, BTreeMap::from([("reviews-v2".to_owned(), 200)]));
    for cookie in ["", &other] {
        assert_eq!(bookinfo.reviews(200, cookie).await, BTreeMap::from([("reviews-v1".to_owned(), 200)]));
    }
    let page = format!("http://{}/api/v1/products/0/reviews", bookinfo.gateway());
    for _ in 0..20 {
        let forged = get(&client(), &page, &[("end-user", "jason")]).await;
        assert_eq!(forged.json()["podname"], "reviews-v1", "a header from outside names nobody");
    }

    bookinfo.apply_istio("networking/virtual-service-reviews-jason-v2-v3.yaml");
    bookinfo.until_reviews_by(&["reviews-v3"], "").await;
    assert_eq!(stars(&bookinfo.page(&jason).await), Stars::Black);
    assert_eq!(stars(&bookinfo.page("").await), Stars::Red);
}

/// Half and half, then all to v3, then the two canaries: each count of 2,000 is within five standard deviations.
pub(crate) async fn weights_are_kept(bookinfo: &impl Configured) {
    for (file, first, second) in [
        ("virtual-service-reviews-50-v3.yaml", ("reviews-v1", 50), ("reviews-v3", 50)),
        ("virtual-service-reviews-80-20.yaml", ("reviews-v1", 80), ("reviews-v2", 20)),
        ("virtual-service-reviews-90-10.yaml", ("reviews-v1", 90), ("reviews-v2", 10)),
    ] {
        all_to_v1(bookinfo).await;
        bookinfo.apply_istio(&format!("networking/{file}"));
        bookinfo.until_reviews_by(&[first.0, second.0], "").await;
        let count = bookinfo.reviews(REQUESTS, "").await;
        eprintln!("{file}: {count:?}");
        assert!(count.keys().eq([first.0, second.0]), "{file}: {count:?}");
        for (name, percent) in [first, second] {
            check_share(REQUESTS, count[name], percent);
        }
    }
    bookinfo.apply_istio("networking/virtual-service-reviews-v3.yaml");
    bookinfo.until_reviews_by(&["reviews-v3"], "").await;
    assert_eq!(bookinfo.reviews(REQUESTS, "").await, BTreeMap::from([("reviews-v3".to_owned(), REQUESTS)]));
    assert_eq!(stars(&bookinfo.page("").await), Stars::Red);
}

/// Five standard deviations of the binomial distribution: a right program fails once in 1.7 million counts.
fn check_share(requests: usize, seen: usize, percent: u32) {
    let (n, p) = (f64::from(u32::try_from(requests).unwrap()), f64::from(percent) / 100.0);
    let band = 5.0 * (n * p * (1.0 - p)).sqrt();
    let off = (f64::from(u32::try_from(seen).unwrap()) - n * p).abs();
    assert!(off <= band, "{seen} of {requests} is not {percent} %: off by {off}, more than {band:.0}");
}

/// Seven seconds of delay at ratings for jason. On v2 the page gives up on reviews after twice three seconds, although
/// reviews waits ten; on v3 reviews gives up on ratings after 2.5 seconds. Nobody else notices.
pub(crate) async fn jasons_delay_shows_the_bug_of_the_page(bookinfo: &impl Configured) {
    all_to_v1(bookinfo).await;
    bookinfo.apply_istio("networking/virtual-service-reviews-test-v2.yaml");
    let jason = bookinfo.sign_in("jason").await;
    bookinfo.until_reviews_by(&["reviews-v2"], &jason).await;
    bookinfo.apply_istio("networking/virtual-service-ratings-test-delay.yaml");

    let page = until_stars(bookinfo, &jason, Stars::NoReviews).await;
    assert!((6.0..6.9).contains(&page.as_secs_f64()), "6 seconds, not {page:?}");
    let other = bookinfo.page("").await;
    assert_eq!(stars(&other), Stars::None);
    assert!(other.took < Duration::from_secs(2), "{:?}", other.took);

    bookinfo.apply_istio("networking/virtual-service-reviews-v3.yaml");
    bookinfo.until_reviews_by(&["reviews-v3"], "").await;
    assert_eq!(stars(&bookinfo.page("").await), Stars::Red);
    let page = until_stars(bookinfo, &jason, Stars::Unavailable).await;
    assert!((2.5..3.0).contains(&page.as_secs_f64()), "2.5 seconds, not {page:?}");
}

/// Status 500 from ratings for jason. He sees reviews without stars and is told why, at once; nobody else notices.
pub(crate) async fn jasons_abort_costs_him_the_stars(bookinfo: &impl Configured) {
    all_to_v1(bookinfo).await;
    bookinfo.apply_istio("networking/virtual-service-reviews-test-v2.yaml");
    let jason = bookinfo.sign_in("jason").await;
    bookinfo.until_reviews_by(&["reviews-v2"], &jason).await;
    bookinfo.apply_istio("networking/virtual-service-ratings-test-abort.yaml");
    let took = until_stars(bookinfo, &jason, Stars::Unavailable).await;
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!(stars(&bookinfo.page("").await), Stars::None);
    let ratings = bookinfo.get("/api/v1/products/0/ratings", &jason).await;
    assert_eq!(ratings.status, 500);
    assert_eq!(bookinfo.get("/api/v1/products/0/ratings", "").await.status, 200);
}

/// How long the first page took that shows these stars.
async fn until_stars(bookinfo: &impl Configured, cookie: &str, expected: Stars) -> Duration {
    let until = Instant::now() + PATIENCE;
    loop {
        let page = bookinfo.page(cookie).await;
        if stars(&page) == expected {
            return page.took;
        }
        assert!(Instant::now() < until, "no {expected:?} in {}", page.body);
    }
}

/// Details answers 555, and the page says so and goes on.
pub(crate) async fn details_can_be_made_to_fail(bookinfo: &impl Configured) {
    all_to_v1(bookinfo).await;
    bookinfo.apply_istio("networking/fault-injection-details-v1.yaml");
    bookinfo.until_status("/api/v1/products/0", 555).await;
    let page = bookinfo.page("").await;
    assert_eq!(stars(&page), Stars::None);
    assert!(page.body.contains("Error fetching product details"), "{}", page.body);
}

/// Without the gateway's rules nothing comes in; Istio's own file opens it, for the paths that it lists.
pub(crate) async fn istios_gateway_file_opens_the_gateway(bookinfo: &impl Configured) {
    bookinfo.reset().await;
    for (kind, name) in [("gateway", "bookinfo-gateway"), ("virtualservice", "bookinfo")] {
        bookinfo.delete(kind, name);
    }
    bookinfo.until_status("/productpage", 404).await;
    bookinfo.apply_istio("networking/bookinfo-gateway.yaml");
    bookinfo.until_status("/productpage", 200).await;
    assert_eq!(bookinfo.get("/productpage", "").await.status, 200);
    assert_eq!(bookinfo.get("/not-listed", "").await.status, 404);
}
