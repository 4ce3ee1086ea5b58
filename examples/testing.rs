//! A mesh inside a test: where requests go, asserted of the YAML alone; then the same YAML live, with mutual TLS.
//!
//! `cargo run --example testing`; in a crate of yours: `mesh = { .., features = ["testing"] }` among the dev-dependencies.

use axum::{Router, routing::get};
use mesh::{BoxError, assert_route, testing};

const YAML: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec: {selector: {app: reviews}, ports: [{name: http, port: 9080}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec: {host: reviews, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - match: [{headers: {end-user: {exact: jason}}}]
    route: [{destination: {host: reviews, subset: v2}}]
  - route: [{destination: {host: reviews, subset: v1}}]
";

fn reviews(version: &'static str) -> Router {
    Router::new().route("/reviews/{id}", get(move || async move { version }))
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mesh = testing::Mesh::from_yaml(YAML);
    assert_route!(mesh, GET "http://reviews:9080/reviews/0" => "reviews/v1");
    assert_route!(mesh, GET "http://reviews:9080/reviews/0" ["end-user" => "jason"] => "reviews/v2");
    println!("jason goes to v2, all others to v1");

    let mesh = mesh.start().await;
    let _v1 = mesh.serve("reviews-v1", reviews("v1")).await;
    let _v2 = mesh.serve("reviews-v2", reviews("v2")).await;
    let http = mesh.client("productpage-v1").await.http();
    let request = http::Request::get("http://reviews:9080/reviews/0").header("end-user", "jason");
    let answer = http.request(request.body(http_body_util::Empty::<bytes::Bytes>::new())?).await?;
    println!("and when he asks he gets {}", answer.status());
    Ok(())
}
