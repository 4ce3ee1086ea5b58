//! The four services of Bookinfo, as anyone would write them with axum: routers over an HTTP client.
//!
//! Nothing under this module knows of the mesh. Each file turns its environment into settings and its settings into a
//! `Router`; `main.rs` gives them a client and a place to listen. That is also how their tests run them: a router for
//! a neighbour, and no socket.

pub(crate) mod client;
pub(crate) mod details;
pub(crate) mod productpage;
pub(crate) mod ratings;
pub(crate) mod reviews;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// Reads one environment variable; a function, so that tests give their own environment.
pub(crate) type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// True for `true` in any case, as Java's `Boolean.valueOf` reads it.
fn flag(env: Env<'_>, name: &str) -> bool {
    env(name).is_some_and(|value| value.eq_ignore_ascii_case("true"))
}

/// Where a neighbour is called: `http://HOST[.SERVICES_DOMAIN]:PORT`, from `<NAME>_HOSTNAME` and `<NAME>_SERVICE_PORT`.
fn neighbour(env: Env<'_>, name: &str) -> String {
    let upper = name.to_uppercase();
    let host = env(&format!("{upper}_HOSTNAME")).unwrap_or_else(|| name.to_owned());
    let domain = env("SERVICES_DOMAIN").map(|domain| format!(".{domain}")).unwrap_or_default();
    let port = env(&format!("{upper}_SERVICE_PORT")).unwrap_or_else(|| "9080".to_owned());
    format!("http://{host}{domain}:{port}")
}

/// The JSON answer of every service that cannot do what was asked.
fn error(status: StatusCode, message: &str) -> Response {
    (status, Json(json!({ "error": message }))).into_response()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use axum::Router;
    use axum::body::Body;
    use axum::http::{Request, Response};
    use serde_json::Value;
    use tower::ServiceExt;

    use super::*;

    /// What travels with a request is the mesh's business; productpage alone names the user, whom it alone knows.
    #[test]
    fn no_handler_names_the_mesh_or_copies_a_header() {
        let details = include_str!("details.rs");
        let reviews = include_str!("reviews.rs");
        let ratings = include_str!("ratings.rs");
        let productpage = [include_str!("productpage.rs"), include_str!("productpage/session.rs")].concat();
        for service in [details, reviews, ratings, &productpage] {
            let handlers = service.split("#[cfg(test)]").next().unwrap();
            for word in ["mesh_", "traceparent", "x-request-id", "x-b3"] {
                assert!(!handlers.contains(word), "a handler names `{word}`");
            }
            let names_user = handlers.contains("\"end-user\"");
            assert_eq!(names_user, service == productpage, "only productpage says who the user is");
        }
    }

    #[test]
    fn neighbours_are_named_by_the_environment() {
        let cases: &[(&[(&str, &str)], &str)] = &[
            (&[], "http://reviews:9080"),
            (&[("SERVICES_DOMAIN", "books.svc")], "http://reviews.books.svc:9080"),
            (&[("REVIEWS_HOSTNAME", "critics"), ("REVIEWS_SERVICE_PORT", "80")], "http://critics:80"),
            (&[("RATINGS_HOSTNAME", "stars"), ("SERVICES_DOMAIN", "d")], "http://reviews.d:9080"),
        ];
        for (set, expected) in cases {
            assert_eq!(neighbour(&env(set), "reviews"), *expected, "{set:?}");
        }
    }

    /// An environment of exactly these variables.
    pub(crate) fn env(set: &[(&str, &str)]) -> impl Fn(&str) -> Option<String> + use<> {
        let set: Vec<(String, String)> = set.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        move |name| set.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
    }

    /// One GET to a router: status and body.
    pub(crate) async fn get(router: &Router, path: &str) -> (StatusCode, String) {
        text(send(router, Request::get(path).body(Body::empty()).unwrap()).await).await
    }

    /// One GET whose answer is JSON.
    pub(crate) async fn get_json(router: &Router, path: &str) -> (StatusCode, Value) {
        let (status, body) = get(router, path).await;
        (status, serde_json::from_str(&body).unwrap_or(Value::String(body)))
    }

    /// One request to a router.
    pub(crate) async fn send(router: &Router, request: Request<Body>) -> Response<Body> {
        router.clone().oneshot(request).await.unwrap()
    }

    /// Status and body as text.
    pub(crate) async fn text(response: Response<Body>) -> (StatusCode, String) {
        let status = response.status();
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }
}
