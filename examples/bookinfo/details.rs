//! details: what is printed on the first pages of the book, or, on request, what Google Books says of it.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{BoxError, Json, Router};
use serde_json::{Value, json};

use super::client::HttpClient;
use super::{Env, error, flag};

/// The edition that the external book service is asked for.
const ISBN: &str = "0486424618";
/// How long the external book service may take.
const EXTERNAL_TIMEOUT: Duration = Duration::from_secs(5);

/// `ENABLE_EXTERNAL_BOOK_SERVICE` (off) and `DO_NOT_ENCRYPT` (off).
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// The origin of the external book service, if it is to be asked at all.
    external: Option<&'static str>,
}

impl Settings {
    /// Reads the two variables.
    pub(crate) fn from_env(env: Env<'_>) -> Self {
        let origin =
            if flag(env, "DO_NOT_ENCRYPT") { "http://www.googleapis.com:80" } else { "https://www.googleapis.com:443" };
        Self { external: flag(env, "ENABLE_EXTERNAL_BOOK_SERVICE").then_some(origin) }
    }
}

/// `GET /health` and `GET /details/{id}`.
pub(crate) fn router(settings: Settings, client: HttpClient) -> Router {
    Router::new()
        .route("/health", get(async || Json(json!({ "status": "Details is healthy" }))))
        .route("/details/{id}", get(details))
        .with_state((settings, client))
}

async fn details(State((settings, client)): State<(Settings, HttpClient)>, Path(id): Path<String>) -> Response {
    let Ok(id) = id.parse::<i64>() else {
        return error(StatusCode::BAD_REQUEST, "please provide numeric product id");
    };
    let Some(origin) = settings.external else {
        return Json(first_pages(id)).into_response();
    };
    match external(&client, origin, id).await {
        Ok(book) => Json(book).into_response(),
        Err(failure) => error(StatusCode::BAD_REQUEST, &failure.to_string()),
    }
}

fn first_pages(id: i64) -> Value {
    json!({
        "id": id,
        "author": "William Shakespeare",
        "year": 1595,
        "type": "paperback",
        "pages": 200,
        "publisher": "PublisherA",
        "language": "English",
        "ISBN-10": "1234567890",
        "ISBN-13": "123-1234567890",
    })
}

async fn external(client: &HttpClient, origin: &str, id: i64) -> Result<Value, BoxError> {
    let request = Request::get(format!("{origin}/books/v1/volumes?q=isbn:{ISBN}")).body(Body::empty())?;
    let (status, answer) = client.json(request, EXTERNAL_TIMEOUT).await?;
    if status != StatusCode::OK {
        return Err(format!("the book service answered {status}").into());
    }
    let book = answer.pointer("/items/0/volumeInfo").ok_or("the book service knows no such book")?;
    let isbn = |kind: &str| {
        let all = book["industryIdentifiers"].as_array().map(Vec::as_slice).unwrap_or_default();
        all.iter().find(|one| one["type"] == kind).map_or(Value::Null, |one| one["identifier"].clone())
    };
    Ok(json!({
        "id": id,
        "author": book["authors"][0],
        "year": book["publishedDate"],
        "type": if book["printType"] == "BOOK" { "paperback" } else { "unknown" },
        "pages": book["pageCount"],
        "publisher": book["publisher"],
        "language": if book["language"] == "en" { "English" } else { "unknown" },
        "ISBN-10": isbn("ISBN_10"),
        "ISBN-13": isbn("ISBN_13"),
    }))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{env, get_json};
    use super::*;

    #[tokio::test]
    async fn the_book_is_the_same_for_every_number() {
        let router = service(&[], Router::new());
        let (status, book) = get_json(&router, "/details/7").await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(book["id"], 7);
        assert_eq!((&book["ISBN-10"], &book["pages"]), (&json!("1234567890"), &json!(200)));
        assert_eq!(book.as_object().map(serde_json::Map::len), Some(9));
    }

    #[tokio::test]
    async fn odd_requests_are_answered_as_documented() {
        let router = service(&[], Router::new());
        let numeric = json!({ "error": "please provide numeric product id" });
        assert_eq!(get_json(&router, "/details/folio").await, (StatusCode::BAD_REQUEST, numeric));
        assert_eq!(get_json(&router, "/health").await, (StatusCode::OK, json!({ "status": "Details is healthy" })));
        assert_eq!(get_json(&router, "/nothing").await.0, StatusCode::NOT_FOUND);
    }

    #[tokio::test]
    async fn the_external_service_is_asked_over_tls_unless_told_otherwise() {
        let google = Router::new().route(
            "/books/v1/volumes",
            get(async |request: Request<Body>| {
                let uri = request.uri();
                let info = json!({
                    "authors": [uri.authority().map(ToString::to_string)], "publisher": uri.query(), "printType": "BOOK",
                    "language": "de", "pageCount": 64, "publishedDate": "2002",
                    "industryIdentifiers": [{ "type": "ISBN_10", "identifier": ISBN }],
                });
                Json(json!({ "items": [{ "volumeInfo": info }] }))
            }),
        );
        for (plain, authority) in [("false", "www.googleapis.com:443"), ("true", "www.googleapis.com:80")] {
            let set = [("ENABLE_EXTERNAL_BOOK_SERVICE", "true"), ("DO_NOT_ENCRYPT", plain)];
            let (status, book) = get_json(&service(&set, google.clone()), "/details/0").await;
            assert_eq!((status, &book["author"]), (StatusCode::OK, &json!(authority)));
            assert_eq!((&book["publisher"], &book["language"]), (&json!("q=isbn:0486424618"), &json!("unknown")));
            assert_eq!((&book["ISBN-10"], &book["ISBN-13"]), (&json!(ISBN), &Value::Null));
        }
        let (status, book) =
            get_json(&service(&[("ENABLE_EXTERNAL_BOOK_SERVICE", "true")], Router::new()), "/details/0").await;
        assert_eq!(
            (status, &book["error"]),
            (StatusCode::BAD_REQUEST, &json!("the book service answered 404 Not Found"))
        );
    }

    fn service(set: &[(&str, &str)], neighbour: Router) -> Router {
        router(Settings::from_env(&env(set)), HttpClient::new(neighbour))
    }
}
