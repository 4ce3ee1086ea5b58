//! ratings: how many stars each reviewer gave. Some of its versions misbehave on purpose.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::{Env, error};

/// How long `v-delayed` holds back every other answer.
const DELAY: Duration = Duration::from_secs(7);
/// How many products may have ratings of their own: they are kept in memory.
const MOST_PRODUCTS: usize = 10_000;

/// What `SERVICE_VERSION` asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Behaviour {
    /// Every version that is not named below.
    Good,
    /// `v2`: ratings come out of a database, which this example does not talk to.
    Database,
    /// `v-faulty`: 503 half of the time.
    Faulty,
    /// `v-delayed`: 7 seconds late half of the time.
    Delayed,
    /// `v-unavailable`: a minute well, a minute 503.
    Unavailable,
    /// `v-unhealthy`: a quarter of an hour well, a quarter of an hour 503 and unhealthy.
    Unhealthy,
}

impl Behaviour {
    /// Reads `SERVICE_VERSION`.
    pub(crate) fn from_env(env: Env<'_>) -> Self {
        match env("SERVICE_VERSION").as_deref() {
            Some("v2") => Self::Database,
            Some("v-faulty") => Self::Faulty,
            Some("v-delayed") => Self::Delayed,
            Some("v-unavailable") => Self::Unavailable,
            Some("v-unhealthy") => Self::Unhealthy,
            _ => Self::Good,
        }
    }

    /// How long this behaviour stays up, and then down, in turn.
    fn period(self) -> Option<Duration> {
        match self {
            Self::Unavailable => Some(Duration::from_secs(60)),
            Self::Unhealthy => Some(Duration::from_secs(15 * 60)),
            Self::Good | Self::Database | Self::Faulty | Self::Delayed => None,
        }
    }
}

/// `GET /health`, `GET /ratings/{id}` and `POST /ratings/{id}`. `coin` decides what happens half of the time.
pub(crate) fn router(behaviour: Behaviour, coin: fn() -> bool) -> Router {
    let state = Ratings { behaviour, coin, started: Instant::now(), given: Arc::default() };
    Router::new().route("/health", get(health)).route("/ratings/{id}", get(ratings).post(give)).with_state(state)
}

#[derive(Clone)]
struct Ratings {
    behaviour: Behaviour,
    coin: fn() -> bool,
    started: Instant,
    given: Arc<Mutex<HashMap<i64, Value>>>,
}

impl Ratings {
    /// Whether the periodic versions are in one of their bad periods.
    fn is_down(&self) -> bool {
        self.behaviour.period().is_some_and(|period| self.started.elapsed().as_secs() / period.as_secs() % 2 == 1)
    }
}

async fn health(State(ratings): State<Ratings>) -> Response {
    if ratings.behaviour == Behaviour::Unhealthy && ratings.is_down() {
        return (StatusCode::INTERNAL_SERVER_ERROR, Json(json!({ "status": "Ratings is not healthy" })))
            .into_response();
    }
    Json(json!({ "status": "Ratings is healthy" })).into_response()
}

async fn ratings(State(ratings): State<Ratings>, Path(id): Path<String>) -> Response {
    let Ok(id) = id.parse::<i64>() else {
        return error(StatusCode::BAD_REQUEST, "please provide numeric product ID");
    };
    match ratings.behaviour {
        Behaviour::Database => return no_database(),
        Behaviour::Faulty if (ratings.coin)() => return error(StatusCode::SERVICE_UNAVAILABLE, "Service unavailable"),
        Behaviour::Delayed if (ratings.coin)() => tokio::time::sleep(DELAY).await,
        _ if ratings.is_down() => return error(StatusCode::SERVICE_UNAVAILABLE, "Service unavailable"),
        _ => {}
    }
    let given = ratings.given.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned();
    let stars = given.unwrap_or_else(|| json!({ "Reviewer1": 5, "Reviewer2": 4 }));
    Json(json!({ "id": id, "ratings": stars })).into_response()
}

async fn give(State(ratings): State<Ratings>, Path(id): Path<String>, body: Bytes) -> Response {
    let Ok(id) = id.parse::<i64>() else {
        return error(StatusCode::BAD_REQUEST, "please provide numeric product ID");
    };
    let Ok(stars) = serde_json::from_slice::<Map<String, Value>>(&body) else {
        return error(StatusCode::BAD_REQUEST, "please provide valid ratings JSON");
    };
    if ratings.behaviour == Behaviour::Database {
        return error(StatusCode::NOT_IMPLEMENTED, "Post not implemented for database backed ratings");
    }
    let mut given = ratings.given.lock().unwrap_or_else(PoisonError::into_inner);
    if given.len() >= MOST_PRODUCTS && !given.contains_key(&id) {
        return error(StatusCode::INSUFFICIENT_STORAGE, "ratings are kept in memory, and that many are enough");
    }
    let stars = Value::Object(stars);
    given.insert(id, stars.clone());
    Json(json!({ "id": id, "ratings": stars })).into_response()
}

fn no_database() -> Response {
    error(
        StatusCode::NOT_IMPLEMENTED,
        "ratings v2 keeps its stars in MongoDB or MySQL, which this example does not talk to; \
         run another SERVICE_VERSION",
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use axum::body::Body;
    use axum::http::Request;

    use super::super::tests::{env, get, get_json, send, text};
    use super::*;

    #[tokio::test]
    async fn two_reviewers_have_rated_every_book() {
        let router = service("v1", || true);
        let stars = json!({ "id": 0, "ratings": { "Reviewer1": 5, "Reviewer2": 4 } });
        assert_eq!(get_json(&router, "/ratings/0").await, (StatusCode::OK, stars));
        assert_eq!(get_json(&router, "/health").await, (StatusCode::OK, json!({ "status": "Ratings is healthy" })));
        let (status, body) = get_json(&router, "/ratings/many").await;
        assert_eq!((status, body), (StatusCode::BAD_REQUEST, json!({ "error": "please provide numeric product ID" })));
    }

    #[tokio::test]
    async fn ratings_given_are_kept_for_their_product() {
        let router = service("v1", || true);
        let given = json!({ "id": 3, "ratings": { "Reviewer1": 1 } });
        assert_eq!(post(&router, "/ratings/3", r#"{"Reviewer1":1}"#).await, (StatusCode::OK, given.to_string()));
        assert_eq!(get_json(&router, "/ratings/3").await.1, given);
        assert_eq!(get_json(&router, "/ratings/4").await.1["ratings"]["Reviewer1"], 5);
        assert_eq!(post(&router, "/ratings/3", "five stars").await.0, StatusCode::BAD_REQUEST);
        assert_eq!(post(&router, "/ratings/three", "{}").await.0, StatusCode::BAD_REQUEST);
    }

    #[tokio::test]
    async fn v2_says_that_there_is_no_database() {
        let router = service("v2", || true);
        assert_eq!(get(&router, "/ratings/0").await.0, StatusCode::NOT_IMPLEMENTED);
        assert_eq!(post(&router, "/ratings/0", "{}").await.0, StatusCode::NOT_IMPLEMENTED);
    }

    #[tokio::test(start_paused = true)]
    async fn versions_misbehave_as_their_names_say() {
        assert_eq!(get(&service("v-faulty", || true), "/ratings/0").await.0, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(get(&service("v-faulty", || false), "/ratings/0").await.0, StatusCode::OK);
        for (coin, seconds) in [((|| true) as fn() -> bool, 7), (|| false, 0)] {
            let start = Instant::now();
            assert_eq!(get(&service("v-delayed", coin), "/ratings/0").await.0, StatusCode::OK);
            assert_eq!(start.elapsed().as_secs(), seconds);
        }
        // (version, up and down for so many seconds, health while down)
        for (version, period, health) in [("v-unavailable", 60, 200), ("v-unhealthy", 900, 500)] {
            let router = service(version, || true);
            for expected in [(200, 200), (503, health), (200, 200)] {
                let seen = (get(&router, "/ratings/0").await.0.as_u16(), get(&router, "/health").await.0.as_u16());
                assert_eq!(seen, expected, "{version}");
                tokio::time::advance(Duration::from_secs(period)).await;
            }
        }
    }

    fn service(version: &str, coin: fn() -> bool) -> Router {
        router(Behaviour::from_env(&env(&[("SERVICE_VERSION", version)])), coin)
    }

    async fn post(router: &Router, path: &str, body: &'static str) -> (StatusCode, String) {
        text(send(router, Request::post(path).body(Body::from(body)).unwrap()).await).await
    }
}
