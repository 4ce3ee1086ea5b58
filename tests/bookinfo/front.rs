//! What a visitor of Bookinfo sees through its gateway, whoever configures it: pages, stars, a session, who answers for reviews.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::body::Body;
use futures_util::{StreamExt, stream};
use http::header::{COOKIE, LOCATION, SET_COOKIE};
use http::{Request, StatusCode};

use crate::calls::{Answer, client, get};

/// How long anything that is waited for may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What a reader sees where the stars are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Stars {
    /// The reviews of v1.
    None,
    /// Of v2: 5 and 4 of them.
    Black,
    /// Of v3.
    Red,
    /// `Ratings service is currently unavailable`.
    Unavailable,
    /// There are no reviews at all.
    NoReviews,
}

/// Reads the page; fails if it is none.
pub(crate) fn stars(page: &Answer) -> Stars {
    assert_eq!(page.status, StatusCode::OK, "{}", page.body);
    let has = |text: &str| page.body.contains(text);
    assert!(has("<title>Simple Bookstore App</title>") && has("The Comedy of Errors"), "no page: {}", page.body);
    let filled = page.body.matches("id=\"glyphicon glyphicon-star\"").count();
    match (has("text-black-500"), has("text-red-500")) {
        (true, false) => {
            assert_eq!(filled, 9);
            Stars::Black
        }
        (false, true) => {
            assert_eq!(filled, 9);
            Stars::Red
        }
        (true, true) => panic!("stars of two colours: {}", page.body),
        (false, false) if has("Ratings service is currently unavailable") => Stars::Unavailable,
        (false, false) if has("Error fetching product reviews") => {
            assert!(has("Sorry, product reviews are currently unavailable for this book."));
            Stars::NoReviews
        }
        (false, false) => {
            assert!(has("Reviews served by:") && filled == 0, "{}", page.body);
            Stars::None
        }
    }
}

/// A running Bookinfo, seen from outside.
pub(crate) trait Front {
    /// Where its gateway listens.
    fn gateway(&self) -> SocketAddr;

    /// What its processes have said, for a test that fails.
    fn said(&self) -> String;

    /// One GET through the gateway, with the cookie of a session if there is one.
    async fn get(&self, path: &str, cookie: &str) -> Answer {
        get(&client(), &format!("http://{}{path}", self.gateway()), &[(COOKIE.as_str(), cookie)]).await
    }

    /// The page, for somebody with this session.
    async fn page(&self, cookie: &str) -> Answer {
        self.get("/productpage", cookie).await
    }

    /// Waits until the gateway answers with this status.
    async fn until_status(&self, path: &str, status: u16) {
        let until = Instant::now() + PATIENCE;
        loop {
            let answer = self.get(path, "").await;
            if answer.status == status {
                return;
            }
            let (now, said) = (answer.status, self.said());
            assert!(Instant::now() < until, "{path} is answered with {now}, not {status}; Bookinfo said:\n{said}");
        }
    }

    /// Signs in as `user` through the gateway; the answer is the cookie.
    async fn sign_in(&self, user: &str) -> String {
        let request = Request::post(format!("http://{}/login", self.gateway()))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(Body::from(format!("username={user}&passwd=any")))
            .unwrap();
        let answer = client().request(request).await.expect("the gateway answers");
        assert_eq!(
            (answer.status(), answer.headers().get(LOCATION)),
            (StatusCode::FOUND, Some(&"/productpage".parse().unwrap()))
        );
        answer.headers()[SET_COOKIE].to_str().unwrap().split(';').next().unwrap().to_owned()
    }

    /// Asks for the reviews of the book `times` times, 16 at a time: how often each workload answered, with failures by status.
    async fn reviews(&self, times: usize, cookie: &str) -> BTreeMap<String, usize> {
        let client = client();
        let uri = format!("http://{}/api/v1/products/0/reviews", self.gateway());
        let headers = [(COOKIE.as_str(), cookie)];
        let answers = stream::iter(0..times).map(|_| get(&client, &uri, &headers));
        let mut count = BTreeMap::new();
        for answer in answers.buffer_unordered(16).collect::<Vec<_>>().await {
            let by = match answer.json()["podname"].as_str() {
                Some(pod) if answer.status == StatusCode::OK => pod.to_owned(),
                _ => answer.status.to_string(),
            };
            *count.entry(by).or_default() += 1;
        }
        count
    }

    /// Waits until 30 requests in a row are answered by nobody but these workloads, and by each of them.
    async fn until_reviews_by(&self, names: &[&str], cookie: &str) {
        let until = Instant::now() + PATIENCE;
        loop {
            let count = self.reviews(30, cookie).await;
            if count.keys().eq(names.iter()) {
                return;
            }
            assert!(
                Instant::now() < until,
                "reviews come from {count:?}, not {names:?}; Bookinfo said:\n{}",
                self.said()
            );
        }
    }
}
