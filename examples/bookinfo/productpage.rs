//! productpage: the page that readers see. It calls details and reviews, one after the other, and always shows a page.

mod page;
mod session;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Form, FromRef, Path, State};
use axum::http::header::{CONTENT_TYPE, REFERER};
use axum::http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use cookie::Key;
use serde::Deserialize;
use serde_json::{Value, json};

use self::session::User;
use super::client::HttpClient;
use super::{Env, neighbour};

/// How long each call to a neighbour may take.
const TIMEOUT: Duration = Duration::from_secs(3);
/// How often reviews is asked before the page does without.
///
/// This is the bug that the fault injection task finds: together with [`TIMEOUT`] it gives up after 6 seconds, although
/// reviews itself would wait 10 seconds for ratings.
const REVIEWS_ATTEMPTS: usize = 2;
/// The product of the page.
const PRODUCT: &str = "0";

/// Where the neighbours are, `FLOOD_FACTOR` (0), and `SESSION_KEY` (a new one for each process).
#[derive(Clone)]
pub(crate) struct Settings {
    details: String,
    ratings: String,
    reviews: String,
    flood_factor: usize,
    key: Key,
}

impl Settings {
    /// Reads the environment. A `SESSION_KEY` of fewer than 64 bytes is an error.
    pub(crate) fn from_env(env: Env<'_>) -> Result<Self, String> {
        let key = match env("SESSION_KEY") {
            Some(key) => Key::try_from(key.as_bytes()).map_err(|error| format!("SESSION_KEY: {error}"))?,
            None => Key::generate(),
        };
        let flood_factor = match env("FLOOD_FACTOR") {
            Some(text) => text.parse().map_err(|error| format!("FLOOD_FACTOR `{text}`: {error}"))?,
            None => 0,
        };
        Ok(Self {
            details: neighbour(env, "details"),
            ratings: neighbour(env, "ratings"),
            reviews: neighbour(env, "reviews"),
            flood_factor,
            key,
        })
    }
}

/// The page, its login, and the same data as JSON under `/api/v1/products`.
pub(crate) fn router(settings: Settings, client: HttpClient) -> Router {
    let css = ([(CONTENT_TYPE, "text/css; charset=utf-8")], include_str!("static/bookinfo.css"));
    Router::new()
        .route("/", get(index))
        .route("/index.html", get(index))
        .route("/health", get(async || "Product page is healthy"))
        .route("/login", post(login))
        .route("/logout", get(logout))
        .route("/productpage", get(front))
        .route("/api/v1/products", get(async || Json(json!([product()]))))
        .route("/api/v1/products/{id}", get(product_details))
        .route("/api/v1/products/{id}/reviews", get(product_reviews))
        .route("/api/v1/products/{id}/ratings", get(product_ratings))
        .route("/metrics", get(metrics))
        .route("/static/bookinfo.css", get(async move || css))
        .with_state(Shop { settings: Arc::new(settings), client, results: Arc::default() })
}

#[derive(Clone)]
struct Shop {
    settings: Arc<Settings>,
    client: HttpClient,
    /// How often a neighbour gave which status.
    results: Arc<Mutex<BTreeMap<(&'static str, u16), u64>>>,
}

impl FromRef<Shop> for Key {
    fn from_ref(shop: &Shop) -> Self {
        shop.settings.key.clone()
    }
}

/// What a neighbour said, or the sentence to show instead.
struct Answer {
    status: StatusCode,
    body: Value,
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        (self.status, Json(self.body)).into_response()
    }
}

impl Shop {
    async fn details(&self, id: &str, user: &User) -> Answer {
        self.ask("details", &format!("{}/details/{}", self.settings.details, segment(id)), user, 1).await
    }

    async fn reviews(&self, id: &str, user: &User) -> Answer {
        self.ask("reviews", &format!("{}/reviews/{}", self.settings.reviews, segment(id)), user, REVIEWS_ATTEMPTS).await
    }

    async fn ratings(&self, id: &str, user: &User) -> Answer {
        self.ask("ratings", &format!("{}/ratings/{}", self.settings.ratings, segment(id)), user, 1).await
    }

    async fn ask(&self, neighbour: &'static str, uri: &str, user: &User, attempts: usize) -> Answer {
        let mut answer = None;
        for _ in 0..attempts {
            answer = self.ask_once(neighbour, uri, user).await;
            if answer.as_ref().is_some_and(|answer| answer.status == StatusCode::OK) {
                break;
            }
        }
        let status = answer.as_ref().map_or(StatusCode::INTERNAL_SERVER_ERROR, |answer| answer.status);
        *self
            .results
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry((neighbour, status.as_u16()))
            .or_default() += 1;
        match answer {
            Some(answer) if status == StatusCode::OK => answer,
            _ => {
                let text = format!("Sorry, product {neighbour} are currently unavailable for this book.");
                Answer { status, body: json!({ "error": text }) }
            }
        }
    }

    async fn ask_once(&self, neighbour: &'static str, uri: &str, user: &User) -> Option<Answer> {
        let mut request = Request::get(uri);
        if let Some(name) = user.header() {
            request = request.header("end-user", name);
        }
        match self.client.json(request.body(Body::empty()).ok()?, TIMEOUT).await {
            Ok((status, body)) => Some(Answer { status, body }),
            Err(failure) => {
                tracing::warn!(neighbour, failure, "no answer");
                None
            }
        }
    }
}

async fn index(State(shop): State<Shop>) -> Html<String> {
    let Settings { details, ratings, reviews, .. } = &*shop.settings;
    Html(page::index(details, reviews, ratings))
}

async fn front(State(shop): State<Shop>, user: User) -> Html<String> {
    let flood = (0..shop.settings.flood_factor).map(|_| shop.reviews(PRODUCT, &user));
    futures_util::future::join_all(flood).await;
    let details = shop.details(PRODUCT, &user).await;
    let reviews = shop.reviews(PRODUCT, &user).await;
    Html(page::product(
        &product(),
        (details.status == StatusCode::OK, &details.body),
        (reviews.status == StatusCode::OK, &reviews.body),
        user.name(),
    ))
}

async fn product_details(State(shop): State<Shop>, user: User, Path(id): Path<String>) -> Answer {
    shop.details(&id, &user).await
}

async fn product_reviews(State(shop): State<Shop>, user: User, Path(id): Path<String>) -> Answer {
    shop.reviews(&id, &user).await
}

async fn product_ratings(State(shop): State<Shop>, user: User, Path(id): Path<String>) -> Answer {
    shop.ratings(&id, &user).await
}

/// The form of the sign-in dialog. Any password will do, so it is not even read.
#[derive(Deserialize)]
struct Login {
    #[serde(default)]
    username: String,
}

async fn login(State(key): State<Key>, headers: HeaderMap, Form(login): Form<Login>) -> Response {
    let Some(user) = User::named(&login.username) else {
        return (StatusCode::BAD_REQUEST, "a user name is one to 100 printable ASCII characters").into_response();
    };
    back(&headers, &user.cookie(&key))
}

async fn logout(headers: HeaderMap) -> Response {
    back(&headers, &session::no_cookie())
}

/// A redirect to where the reader came from, with a cookie set.
fn back(headers: &HeaderMap, cookie: &str) -> Response {
    let to = headers.get(REFERER).cloned().unwrap_or(HeaderValue::from_static("/productpage"));
    (StatusCode::FOUND, [(header::LOCATION, to)], [(header::SET_COOKIE, cookie)]).into_response()
}

async fn metrics(State(shop): State<Shop>) -> impl IntoResponse {
    let mut text = String::from(
        "# HELP request_result_total Results of requests to the other services.\n# TYPE request_result_total counter\n",
    );
    for ((app, code), count) in &*shop.results.lock().unwrap_or_else(PoisonError::into_inner) {
        let _ = writeln!(text, "request_result_total{{destination_app=\"{app}\",response_code=\"{code}\"}} {count}");
    }
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}

fn product() -> Value {
    json!({
        "id": 0,
        "title": "The Comedy of Errors",
        "descriptionHtml":
            "<em>The Comedy of Errors</em> is among the first plays of William Shakespeare and his shortest: a farce of two \
             pairs of twins, lost to each other as children, who one day walk the same town without knowing it.",
    })
}

/// `text` as one segment of a path: whatever may not stand there is percent-encoded.
fn segment(text: &str) -> String {
    text.bytes().fold(String::new(), |mut path, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => path.push(byte.into()),
            _ => {
                let _ = write!(path, "%{byte:02X}");
            }
        }
        path
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::future::pending;

    use axum::http::header::{COOKIE, LOCATION, SET_COOKIE};
    use tokio::time::Instant;

    use super::super::tests::{env, get, get_json, send, text};
    use super::*;

    #[tokio::test]
    async fn the_page_shows_details_and_reviews() {
        let (status, page) = get(&shop(neighbours()), "/productpage").await;
        assert_eq!(status, StatusCode::OK);
        for part in [
            "<title>Simple Bookstore App</title>",
            "BookInfo Sample",
            "id=\"sign-in-button\"",
            "<dialog id=\"dialog\">",
            "<form action=\"login\" method=\"post\"",
            "name=\"username\"",
            "name=\"passwd\"",
            "<h1>The Comedy of Errors</h1>",
            "Book Details",
            "<th>ISBN-10</th><th>Publisher</th><th>Pages</th><th>Type</th><th>Language</th>",
            "<td>1234567890</td><td>A &amp; B</td><td>200</td><td>paperback</td><td>English</td>",
            "Book Reviews",
            "<blockquote>Good</blockquote>",
            "Reviews served by: <u>reviews-v2</u> on cluster <u>east</u>",
            "<div class=\"stars text-red-500\">",
            "Ratings service is currently unavailable",
        ] {
            assert!(page.contains(part), "no `{part}` in {page}");
        }
        assert_eq!(page.matches("id=\"glyphicon glyphicon-star\"").count(), 4);
        assert_eq!(page.matches("class=\"star-outline\"").count(), 1);
        assert!(!page.contains("Sign out"));
    }

    #[tokio::test]
    async fn the_other_pages_answer() {
        let shop = shop(neighbours());
        assert_eq!(get(&shop, "/health").await, (StatusCode::OK, "Product page is healthy".to_owned()));
        for path in ["/", "/index.html"] {
            let (status, page) = get(&shop, path).await;
            assert_eq!(status, StatusCode::OK);
            for part in ["<table", "http://ratings:9080", "/productpage?u=normal", "/productpage?u=test"] {
                assert!(page.contains(part), "no `{part}` in {page}");
            }
        }
        let (_, products) = get_json(&shop, "/api/v1/products").await;
        assert_eq!((&products[0]["id"], &products[0]["title"]), (&json!(0), &json!("The Comedy of Errors")));
        assert!(products[0]["descriptionHtml"].is_string() && products.as_array().unwrap().len() == 1);
        assert_eq!(get_json(&shop, "/api/v1/products/0").await.1["pages"], 200);
        assert_eq!(get_json(&shop, "/api/v1/products/0/reviews").await.1["podname"], "reviews-v2");
        assert_eq!(get_json(&shop, "/api/v1/products/0/ratings").await, (StatusCode::OK, json!({ "id": 0 })));
        assert_eq!(get(&shop, "/static/bookinfo.css").await.0, StatusCode::OK);
        let (_, metrics) = get(&shop, "/metrics").await;
        assert!(
            metrics.contains("request_result_total{destination_app=\"reviews\",response_code=\"200\"} 1\n"),
            "{metrics}"
        );
    }

    #[tokio::test]
    async fn failures_are_shown_and_handed_on() {
        let failing = Router::new().fallback(async || StatusCode::SERVICE_UNAVAILABLE);
        let shop = shop(failing);
        let (status, page) = get(&shop, "/productpage").await;
        assert_eq!(status, StatusCode::OK, "the page itself never fails");
        for part in [
            "Error fetching product details",
            "Sorry, product details are currently unavailable for this book.",
            "Error fetching product reviews",
            "Sorry, product reviews are currently unavailable for this book.",
        ] {
            assert!(page.contains(part), "no `{part}` in {page}");
        }
        let sorry = json!({ "error": "Sorry, product ratings are currently unavailable for this book." });
        let answer = get_json(&shop, "/api/v1/products/0/ratings").await;
        assert_eq!(answer, (StatusCode::SERVICE_UNAVAILABLE, sorry));
    }

    #[tokio::test(start_paused = true)]
    async fn details_are_waited_for_three_seconds_and_reviews_twice_three() {
        let slow = Router::new().fallback(async || -> StatusCode { pending().await });
        for (path, seconds) in [("", 3), ("/reviews", 6), ("/ratings", 3)] {
            let start = Instant::now();
            let (status, _) = get(&shop(slow.clone()), &format!("/api/v1/products/0{path}")).await;
            assert_eq!((status.as_u16(), start.elapsed().as_secs()), (500, seconds), "{path}");
        }
        let start = Instant::now();
        assert_eq!(get(&shop(slow), "/productpage").await.0, StatusCode::OK);
        assert_eq!(start.elapsed().as_secs(), 9);
    }

    #[tokio::test]
    async fn reviews_is_asked_a_second_time_and_the_flood_comes_first() {
        let asked = Arc::new(Mutex::new(0));
        let counter = asked.clone();
        let once_bad = Router::new().fallback(move || {
            *counter.lock().unwrap() += 1;
            let first = *counter.lock().unwrap() == 1;
            async move { if first { StatusCode::BAD_GATEWAY.into_response() } else { Json(json!({})).into_response() } }
        });
        assert_eq!(get(&shop(once_bad.clone()), "/api/v1/products/0/reviews").await.0, StatusCode::OK);
        assert_eq!(*asked.lock().unwrap(), 2);

        let settings = Settings::from_env(&env(&[("FLOOD_FACTOR", "5")])).unwrap();
        assert_eq!(get(&router(settings, HttpClient::new(once_bad)), "/productpage").await.0, StatusCode::OK);
        assert_eq!(*asked.lock().unwrap(), 2 + 5 + 2, "the flood, then details and reviews");
    }

    #[tokio::test]
    async fn a_session_names_the_user_and_nothing_else_does() {
        let shop = shop(echo_user());
        let login = |user: &str, referer: Option<&str>| {
            let mut request = Request::post("/login").header(CONTENT_TYPE, "application/x-www-form-urlencoded");
            if let Some(referer) = referer {
                request = request.header(REFERER, referer);
            }
            request.body(Body::from(format!("username={user}&passwd=secret"))).unwrap()
        };
        let answer = send(&shop, login("jason", Some("http://front/productpage?u=test"))).await;
        assert_eq!(
            (answer.status(), &answer.headers()[LOCATION]),
            (StatusCode::FOUND, &HeaderValue::from_static("http://front/productpage?u=test"))
        );
        let cookie = answer.headers()[SET_COOKIE].to_str().unwrap().split(';').next().unwrap().to_owned();
        assert!(cookie.starts_with("session="));
        assert_eq!(send(&shop, login("jason", None)).await.headers()[LOCATION], "/productpage");
        assert_eq!(send(&shop, login("", None)).await.status(), StatusCode::BAD_REQUEST);
        assert_eq!(send(&shop, login("a%0d%0ab", None)).await.status(), StatusCode::BAD_REQUEST);

        let forged = cookie.replace("jason", "admin");
        let cases: &[(&[(header::HeaderName, &str)], &str)] = &[
            (&[(COOKIE, &cookie)], "jason"),
            (&[], "nobody"),
            (&[(COOKIE, &forged)], "nobody"),
            (&[(COOKIE, "session=jason")], "nobody"),
            (&[(header::HeaderName::from_static("end-user"), "jason")], "nobody"),
        ];
        for (headers, expected) in cases {
            let mut request = Request::get("/api/v1/products/0");
            for (name, value) in *headers {
                request = request.header(name, *value);
            }
            let (_, user) = text(send(&shop, request.body(Body::empty()).unwrap()).await).await;
            assert_eq!(user, format!("{expected:?}"), "{headers:?}");
        }

        let page = Request::get("/productpage").header(COOKIE, &cookie).body(Body::empty()).unwrap();
        let (_, page) = text(send(&shop, page).await).await;
        assert!(
            page.contains("jason") && page.contains("href=\"logout\">Sign out</a>") && !page.contains("sign-in-button")
        );
        let out = get_out(&shop).await;
        assert!(out.starts_with("session=;") && out.contains("Max-Age=0"), "{out}");
    }

    #[tokio::test]
    async fn text_from_elsewhere_is_escaped() {
        let shop = shop(Router::new().fallback(async || Json(json!({ "publisher": "<script>", "podname": "'\"" }))));
        let (_, page) = get(&shop, "/productpage").await;
        assert!(page.contains("<td>&lt;script&gt;</td>") && page.contains("<u>&#39;&quot;</u>"), "{page}");
    }

    #[test]
    fn a_path_segment_stays_one() {
        assert_eq!(segment("0"), "0");
        assert_eq!(segment("a/b?c#ü"), "a%2Fb%3Fc%23%C3%BC");
    }

    #[test]
    fn settings_that_make_no_sense_are_errors() {
        for set in [("FLOOD_FACTOR", "many"), ("SESSION_KEY", "short")] {
            assert!(Settings::from_env(&env(&[set])).err().unwrap().starts_with(set.0));
        }
    }

    fn neighbours() -> Router {
        let rating = json!({ "stars": 4, "color": "red" });
        let reviews = json!({
            "id": "0", "podname": "reviews-v2", "clustername": "east",
            "reviews": [
                { "reviewer": "Reviewer1", "text": "Good", "rating": rating },
                { "reviewer": "Reviewer2", "text": "Bad", "rating": { "error": "Ratings service is currently unavailable" } },
            ],
        });
        let details = json!({
            "ISBN-10": "1234567890", "publisher": "A & B", "pages": 200, "type": "paperback", "language": "English",
        });
        Router::new()
            .route("/details/0", axum::routing::get(async || Json(details)))
            .route("/reviews/0", axum::routing::get(async || Json(reviews)))
            .route("/ratings/0", axum::routing::get(async || Json(json!({ "id": 0 }))))
    }

    /// A neighbour that says who it thinks is asking.
    fn echo_user() -> Router {
        Router::new().fallback(async |headers: HeaderMap| {
            Json(json!(headers.get("end-user").and_then(|user| user.to_str().ok()).unwrap_or("nobody")))
        })
    }

    async fn get_out(shop: &Router) -> String {
        let answer = send(shop, Request::get("/logout").body(Body::empty()).unwrap()).await;
        assert_eq!(
            (answer.status(), &answer.headers()[LOCATION]),
            (StatusCode::FOUND, &HeaderValue::from_static("/productpage"))
        );
        answer.headers()[SET_COOKIE].to_str().unwrap().to_owned()
    }

    fn shop(neighbours: Router) -> Router {
        router(Settings::from_env(&env(&[])).unwrap(), HttpClient::new(neighbours))
    }
}
