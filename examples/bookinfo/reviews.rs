//! reviews: what two readers thought of the book; v2 and v3 put the stars of `ratings` beside it, black and red.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use super::client::HttpClient;
use super::{Env, flag, neighbour};

/// What each reviewer wrote.
const REVIEWS: [(&str, &str); 2] = [
    ("Reviewer1", "Two pairs of twins, one day, and not a door that opens for the right one. I laughed until the end."),
    ("Reviewer2", "Short and quick, and thinner than the plays that came later; still a good evening at the theatre."),
];

/// `ENABLE_RATINGS` (off), `STAR_COLOR` (black), `HOSTNAME`, `CLUSTER_NAME`, and where ratings is.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    ratings: Option<String>,
    star_color: String,
    podname: String,
    clustername: String,
}

impl Settings {
    /// Reads the environment.
    pub(crate) fn from_env(env: Env<'_>) -> Self {
        let or = |name: &str, default: &str| env(name).unwrap_or_else(|| default.to_owned());
        Self {
            ratings: flag(env, "ENABLE_RATINGS").then(|| neighbour(env, "ratings")),
            star_color: or("STAR_COLOR", "black"),
            podname: or("HOSTNAME", "null"),
            clustername: or("CLUSTER_NAME", "null"),
        }
    }

    /// How long ratings may take: v3, with its red stars, is the impatient one.
    fn ratings_timeout(&self) -> Duration {
        if self.star_color == "black" { Duration::from_secs(10) } else { Duration::from_millis(2500) }
    }
}

/// `GET /health` and `GET /reviews/{id}`.
pub(crate) fn router(settings: Settings, client: HttpClient) -> Router {
    Router::new()
        .route("/health", get(async || Json(json!({ "status": "Reviews is healthy" }))))
        .route("/reviews/{id}", get(reviews))
        .with_state((settings, client))
}

async fn reviews(State((settings, client)): State<(Settings, HttpClient)>, Path(id): Path<String>) -> Response {
    let Ok(id) = id.parse::<i32>() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let ratings = match &settings.ratings {
        Some(origin) => Some(stars(&client, origin, id, settings.ratings_timeout()).await),
        None => None,
    };
    let reviews = REVIEWS.map(|(reviewer, text)| {
        let mut review = json!({ "reviewer": reviewer, "text": text });
        if let Some(stars) = &ratings {
            review["rating"] = match stars.as_ref().and_then(|stars| stars[reviewer].as_i64()) {
                Some(stars) => json!({ "stars": stars, "color": settings.star_color }),
                None => json!({ "error": "Ratings service is currently unavailable" }),
            };
        }
        review
    });
    Json(json!({
        "id": id.to_string(),
        "podname": settings.podname,
        "clustername": settings.clustername,
        "reviews": reviews,
    }))
    .into_response()
}

/// The stars by reviewer, or nothing if ratings did not give them in time. Asked once.
async fn stars(client: &HttpClient, origin: &str, id: i32, timeout: Duration) -> Option<Value> {
    let request = Request::get(format!("{origin}/ratings/{id}")).body(Body::empty()).ok()?;
    match client.json(request, timeout).await {
        Ok((StatusCode::OK, mut answer)) => Some(answer["ratings"].take()),
        Ok((status, _)) => {
            tracing::warn!(%status, "ratings did not answer well");
            None
        }
        Err(failure) => {
            tracing::warn!(failure, "ratings did not answer");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic)]

    use std::future::pending;

    use tokio::time::Instant;

    use super::super::tests::{env, get, get_json};
    use super::*;

    const BLACK: &[(&str, &str)] = &[("ENABLE_RATINGS", "true"), ("HOSTNAME", "reviews-v2"), ("CLUSTER_NAME", "east")];
    const RED: &[(&str, &str)] = &[("ENABLE_RATINGS", "true"), ("STAR_COLOR", "red")];

    #[tokio::test]
    async fn v1_has_no_ratings_and_asks_for_none() {
        let router = service(&[], Router::new().fallback(async || -> StatusCode { panic!("asked for ratings") }));
        let (status, body) = get_json(&router, "/reviews/0").await;
        assert_eq!((status, &body["id"]), (StatusCode::OK, &json!("0")));
        assert_eq!((&body["podname"], &body["clustername"]), (&json!("null"), &json!("null")));
        assert_eq!(
            (&body["reviews"][0]["reviewer"], &body["reviews"][0]["rating"]),
            (&json!("Reviewer1"), &Value::Null)
        );
        assert_eq!(body["reviews"].as_array().map(Vec::len), Some(2));
    }

    #[tokio::test]
    async fn v2_and_v3_colour_the_stars() {
        let ratings = Router::new().route("/ratings/5", get_ok());
        for (set, color, pod) in [(BLACK, "black", "reviews-v2"), (RED, "red", "null")] {
            let (_, body) = get_json(&service(set, ratings.clone()), "/reviews/5").await;
            assert_eq!(body["podname"], pod);
            assert_eq!(body["reviews"][0]["rating"], json!({ "stars": 5, "color": color }));
            assert_eq!(
                body["reviews"][1]["rating"],
                json!({ "error": "Ratings service is currently unavailable" }),
                "one who did not rate has no stars",
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn slow_or_failing_ratings_cost_the_stars_only() {
        let slow = Router::new().fallback(async || -> StatusCode { pending().await });
        let failing = Router::new().fallback(async || StatusCode::INTERNAL_SERVER_ERROR);
        let cases = [(BLACK, &slow, 10_000), (RED, &slow, 2_500), (BLACK, &failing, 0)];
        for (set, ratings, millis) in cases {
            let start = Instant::now();
            let (status, body) = get_json(&service(set, ratings.clone()), "/reviews/0").await;
            assert_eq!((status, start.elapsed().as_millis()), (StatusCode::OK, millis));
            assert_eq!(body["reviews"][0]["rating"], json!({ "error": "Ratings service is currently unavailable" }));
        }
    }

    #[tokio::test]
    async fn only_whole_numbers_are_products() {
        let router = service(&[], Router::new());
        assert_eq!(get(&router, "/reviews/folio").await.0, StatusCode::NOT_FOUND);
        assert_eq!(get_json(&router, "/health").await.1, json!({ "status": "Reviews is healthy" }));
    }

    fn get_ok() -> axum::routing::MethodRouter {
        axum::routing::get(async || Json(json!({ "id": 5, "ratings": { "Reviewer1": 5 } })))
    }

    fn service(set: &[(&str, &str)], ratings: Router) -> Router {
        router(Settings::from_env(&env(set)), HttpClient::new(ratings))
    }
}
