//! reqwest over the mesh: `.json()`, `.query()` and the like stay; connections, balancing and retries are the mesh's.
//!
//! `cargo run --example reqwest`; in a crate of yours: `mesh = { .., features = ["reqwest"] }`.

use axum::{Router, extract::Query, routing::get};
use mesh::{BoxError, testing};
use serde::{Deserialize, Serialize};

const YAML: &str = "
apiVersion: v1
kind: Service
metadata: {name: ratings}
spec: {selector: {app: ratings}, ports: [{name: http, port: 9080}]}
";

#[derive(Deserialize, Serialize)]
struct Book {
    id: u32,
}

async fn stars(Query(book): Query<Book>) -> axum::Json<Vec<u32>> {
    axum::Json(vec![book.id, 5])
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let running = testing::Mesh::from_yaml(YAML).start().await;
    let _ratings = running.serve("ratings-v1", Router::new().route("/ratings", get(stars))).await;
    let mesh = running.client("reviews-v1").await;

    // Last in the chain: what comes after it is not called.
    let client = reqwest_middleware::ClientBuilder::new(reqwest::Client::new()).with(mesh.reqwest()).build();
    let answer = client.get("http://ratings:9080/ratings").query(&Book { id: 7 }).send().await?;
    println!("{} from {}", answer.status(), answer.url());
    println!("{:?}", answer.json::<Vec<u32>>().await?);
    Ok(())
}
