//! The test kit as a user's test has it: what its assertions take, how they fail, and what runs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::panic::{AssertUnwindSafe, catch_unwind};

use axum::{Router, routing::get};
use http_body_util::BodyExt;
use mesh::{assert_route, testing};

const YAML: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec: {selector: {app: reviews}, ports: [{name: http, port: 9080}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: productpage-v1}
spec: {template: {metadata: {labels: {app: productpage}}, spec: {containers: [{name: c}]}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec: {host: reviews, subsets: [{name: v1, labels: {version: v1}}, {name: v3, labels: {version: v3}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - match: [{uri: {prefix: /old}}]
    redirect: {uri: /new, redirectCode: 308}
  - match: [{uri: {prefix: /none}}]
    directResponse: {status: 410}
  - match: [{sourceLabels: {app: productpage}}]
    route:
    - {destination: {host: reviews, subset: v1}, weight: 75}
    - {destination: {host: reviews, subset: v3}, weight: 25}
  - match: [{uri: {prefix: /reviews}}]
    route: [{destination: {host: reviews, subset: v1}}]
";

/// The words of the panic of a failed assertion.
fn words(failing: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(failing)).expect_err("it has to fail");
    panic.downcast_ref::<String>().cloned().unwrap_or_default()
}

/// OP13: every kind of outcome, and who asks.
#[test]
fn routes_are_asserted_of_yaml() {
    let mesh = testing::Mesh::from_yaml(YAML);
    assert_route!(mesh, GET "http://reviews:9080/reviews/0" => "reviews/v1");
    assert_route!(mesh, GET "http://reviews.default:9080/reviews/0" ["x" => "y"] => "reviews.default/v1");
    assert_route!(mesh, GET "http://reviews:9080/reviews/0" from "productpage" => [("reviews/v1", 75), ("reviews/v3", 25)]);
    assert_route!(mesh, POST "http://reviews:9080/old/1" => 308);
    assert_route!(mesh, GET "http://reviews:9080/none" => 410);
    assert_route!(mesh, GET "http://reviews:9080/elsewhere" => 404);
}

/// OP13: what fails says what was found, and why.
#[test]
fn a_wrong_assertion_tells_the_decision() {
    let mesh = testing::Mesh::from_yaml(YAML);
    let said = words(|| assert_route!(mesh, GET "http://reviews:9080/reviews/0" => "reviews/v3"));
    assert!(said.starts_with("expected reviews/v3, found reviews.default.svc.cluster.local/v1:\n"), "{said}");
    assert!(said.contains("/reviews"), "the rules are told: {said}");
    let share = words(
        || assert_route!(mesh, GET "http://reviews:9080/x" from "productpage" => [("reviews/v1", 50), ("reviews/v3", 50)]),
    );
    assert!(share.contains("reviews.default.svc.cluster.local/v1 75"), "{share}");
    let status = words(|| assert_route!(mesh, GET "http://reviews:9080/none" => 200));
    assert!(status.starts_with("expected an answer with status 200, found an answer with status 410"), "{status}");
    let stranger = words(|| assert_route!(mesh, GET "http://reviews:9080/x" from "nobody" => 200));
    assert_eq!(stranger, "no Deployment is called \"nobody\"");
    let wrong = words(|| {
        drop(testing::Mesh::from_yaml(
            "kind: VirtualService\napiVersion: networking.istio.io/v1\nmetadata: {name: x}\nspec: {hots: [x]}\n",
        ))
    });
    assert!(wrong.contains("test.yaml:4:"), "{wrong}");
}

/// OP13, OP8: the YAML live: members find each other, mutual TLS holds, and what they said to it can be looked at.
#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_runs_inside_a_test() {
    let running = testing::Mesh::from_yaml(YAML).start().await;
    let version = |version: &'static str| Router::new().route("/reviews/{id}", get(move || async move { version }));
    let _v1 = running.serve("reviews-v1", version("one")).await;
    let ratings = running.client("ratings-v1").await;
    let answer = ratings.http().get("http://reviews:9080/reviews/0").await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "one");
    let status = running.status();
    let names: Vec<_> = status.iter().map(|status| status.name.as_str()).collect();
    assert_eq!(names, ["ratings-v1.default", "reviews-v1.default"]);
    assert!(status.iter().all(|status| status.types.values().all(|told| told.refusals == 0)), "{status:#?}");
    let says = |status: &mesh_control::api::ProxyStatus| {
        status.program == env!("CARGO_PKG_VERSION") && status.features.iter().any(|feature| feature == "authz")
    };
    assert!(status.iter().all(says), "each says its version, and what it acts on: {status:#?}");
}

const POLICY: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: shop-v1, namespace: front}
spec:
  template:
    metadata: {labels: {app: shop}}
    spec: {serviceAccountName: shop, containers: [{name: shop}]}
---
apiVersion: v1
kind: Service
metadata: {name: ratings, namespace: back}
spec: {selector: {app: ratings}, ports: [{name: http, port: 9080}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: shop-only, namespace: back}
spec:
  rules: [{from: [{source: {principals: [cluster.local/ns/front/sa/shop]}}]}]
";

/// OP13: members have the namespace and the account of their Deployment, so that who may call whom can be tested live.
#[tokio::test(flavor = "multi_thread")]
async fn members_are_who_their_deployments_say() {
    let running = testing::Mesh::from_yaml(POLICY).start().await;
    let ratings = running.serve("ratings-v1.back", Router::new().route("/", get(|| async { "stars" }))).await;
    let (shop, stranger) = (running.client("shop-v1").await, running.client("other").await);
    assert_eq!(shop.http().get("http://ratings.back:9080/").await.unwrap().status(), 200);
    assert_eq!(stranger.http().get("http://ratings.back:9080/").await.unwrap().status(), 403);
    ratings.finish().await;
}

/// OP13: a handler that panics fails the test, with its words, when its member is dropped or finished.
#[tokio::test(flavor = "multi_thread")]
async fn a_members_panic_fails_the_test() {
    let running = testing::Mesh::from_yaml(YAML).start().await;
    async fn broken() -> &'static str {
        panic!("no stars left")
    }
    let reviews = running.serve("reviews-v1", Router::new().route("/reviews/0", get(broken))).await;
    let caller = running.client("ratings-v1").await;
    let answer = caller.http().get("http://reviews:9080/reviews/0").await.unwrap();
    assert_eq!(answer.status(), 503, "its caller sees a connection that ended");
    let said = words(|| drop(reviews));
    assert!(said.starts_with("member reviews-v1: it panicked: no stars left"), "{said}");
}

/// OP13: what the mesh refused is told apart from what a service answered, also through reqwest; what could not be sent is the mesh's own error.
#[tokio::test(flavor = "multi_thread")]
async fn reqwest_tells_why() {
    let running = testing::Mesh::from_yaml(YAML).start().await;
    let mesh = running.client("ratings-v1").await;
    let client = reqwest_middleware::ClientBuilder::new(reqwest::Client::new()).with(mesh.reqwest()).build();
    let nobody = client.get("http://reviews:9080/reviews/0").send().await.unwrap();
    let kind = nobody.extensions().get::<mesh::ErrorKind>().copied();
    assert_eq!((nobody.status().as_u16(), kind), (503, Some(mesh::ErrorKind::NoEndpoint)));
    let slow = Router::new().route("/reviews/0", get(std::future::pending::<&'static str>));
    let reviews = running.serve("reviews-v1", slow).await;
    let limit = std::time::Duration::from_millis(300);
    // Once the endpoint is known, nothing is answered but the limit's own end.
    let error = loop {
        match client.get("http://reviews:9080/reviews/0").timeout(limit).send().await {
            Ok(answer) => assert_eq!(answer.status(), 503, "{answer:?}"),
            Err(error) => break error,
        }
    };
    let reqwest_middleware::Error::Middleware(error) = error else { panic!("{error:?}") };
    assert_eq!(error.downcast_ref::<mesh::Error>().map(mesh::Error::kind), Some(mesh::ErrorKind::Timeout));
    drop(reviews);
}
