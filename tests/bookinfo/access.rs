//! Who may ask whom in Bookinfo: AuthorizationPolicy and RequestAuthentication, from Istio's YAML to what a visitor gets.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::IpAddr;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use jsonwebtoken::{Algorithm, EncodingKey, Header, jwk::Jwk};
use rcgen::KeyPair;
use serde_json::json;

use crate::calls::{Answer, client, get};
use crate::front::{Front, PATIENCE, Stars, stars};
use crate::harness::{Bookinfo, shared};
use crate::steps::Configured;

/// A client that calls from an address.
fn client_from(address: IpAddr) -> Client<HttpConnector, Body> {
    let mut connector = HttpConnector::new();
    connector.set_local_address(Some(address));
    Client::builder(TokioExecutor::new()).build(connector)
}

/// Of versions whose reviews have stars.
const TO_V3: &str = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: reviews}\nspec:\n  host: reviews\n  subsets: [{name: v3, labels: {version: v3}}]\n---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: reviews}\nspec:\n  hosts: [reviews]\n  http: [{route: [{destination: {host: reviews, subset: v3}}]}]\n";

/// Asks again until it is so.
async fn until(what: &str, bookinfo: &Bookinfo, bearer: &str, is_so: impl Fn(&Answer) -> bool) -> Answer {
    let end = Instant::now() + PATIENCE;
    let page = format!("http://{}/productpage", bookinfo.gateway());
    loop {
        let answer = get(&client(), &page, &[("authorization", bearer)]).await;
        if is_so(&answer) {
            return answer;
        }
        assert!(Instant::now() < end, "{what}: {answer:?}\n{}", bookinfo.said());
    }
}

fn policy(name: &str, app: &str, rest: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}}}\nspec:\n  selector: {{matchLabels: {{app: {app}}}}}\n{rest}"
    )
}

/// AZ5: callers are known by their certificates: reviews may ask ratings for as long as the policy names it, another
/// may not, a denial wins over what is allowed, and a policy of no rules lets nobody in. The visitor sees what follows.
#[tokio::test(flavor = "multi_thread")]
async fn policies_decide_who_may_ask_whom() {
    let bookinfo = shared().await;
    bookinfo.reset().await;
    bookinfo.apply(TO_V3);
    until("red stars", &bookinfo, "", |page| page.status == 200 && stars(page) == Stars::Red).await;

    let allow = |account: &str| {
        policy(
            "ratings",
            "ratings",
            &format!(
                "  action: ALLOW\n  rules:\n  - from: [{{source: {{principals: [cluster.local/ns/default/sa/{account}]}}}}]\n    to: [{{operation: {{methods: [GET], paths: [/ratings/*]}}}}]\n"
            ),
        )
    };
    bookinfo.apply(&allow("bookinfo-details"));
    until("another alone", &bookinfo, "", |page| page.status == 200 && stars(page) == Stars::Unavailable).await;
    bookinfo.apply(&allow("bookinfo-reviews"));
    until("reviews alone", &bookinfo, "", |page| page.status == 200 && stars(page) == Stars::Red).await;

    bookinfo.apply(&policy(
        "never",
        "ratings",
        "  action: DENY\n  rules:\n  - to: [{operation: {paths: [\"*/0\"]}}]\n",
    ));
    until("denied", &bookinfo, "", |page| page.status == 200 && stars(page) == Stars::Unavailable).await;
    bookinfo.delete("authorizationpolicy", "never");
    until("denied no more", &bookinfo, "", |page| page.status == 200 && stars(page) == Stars::Red).await;

    bookinfo.apply("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: nobody}\nspec: {}\n");
    let closed = until("nobody", &bookinfo, "", |page| page.status == 403).await;
    assert!(closed.body.contains("RBAC: access denied"), "{}", closed.body);
    bookinfo.delete("authorizationpolicy", "nobody");
    bookinfo.delete("authorizationpolicy", "ratings");
    until("everybody", &bookinfo, "", |page| page.status == 200).await;
    bookinfo.reset().await;
}

/// AZ5, AN13: a token is demanded where a policy demands whom it names; a bad one is refused in any case.
#[tokio::test(flavor = "multi_thread")]
async fn tokens_open_the_page() {
    let bookinfo = shared().await;
    bookinfo.reset().await;
    let key = EncodingKey::from_ec_der(KeyPair::generate().unwrap().serialized_der());
    let mut jwk = serde_json::to_value(Jwk::from_encoding_key(&key, Algorithm::ES256).unwrap()).unwrap();
    jwk["kid"] = "k".into();
    let keys = json!({ "keys": [jwk] }).to_string();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let bearer = |issuer: &str, until: u64| {
        let header = Header { kid: Some("k".to_owned()), ..Header::new(Algorithm::ES256) };
        let claims = json!({ "iss": issuer, "sub": "jason", "exp": until });
        format!("Bearer {}", jsonwebtoken::encode(&header, &claims, &key).unwrap())
    };
    bookinfo.apply(&format!(
        "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: page}}\nspec:\n  selector: {{matchLabels: {{app: productpage}}}}\n  jwtRules:\n  - issuer: https://issuer.example\n    jwks: '{keys}'\n"
    ));
    let good = bearer("https://issuer.example", now + 600);
    let old = bearer("https://issuer.example", now - 600);
    until("an old one", &bookinfo, &old, |page| page.status == 401).await;
    assert_eq!(until("none", &bookinfo, "", |_| true).await.status, 200, "none is demanded yet");
    assert_eq!(until("a good one", &bookinfo, &good, |_| true).await.status, 200);

    bookinfo.apply(&policy(
        "page",
        "productpage",
        "  action: ALLOW\n  rules:\n  - from: [{source: {requestPrincipals: [\"https://issuer.example/jason\"]}}]\n",
    ));
    until("none", &bookinfo, "", |page| page.status == 403).await;
    assert_eq!(until("a good one", &bookinfo, &good, |_| true).await.status, 200);
    assert_eq!(until("an old one", &bookinfo, &old, |_| true).await.status, 401);
    let strange = bearer("https://elsewhere.example", now + 600);
    let answer = until("of nobody known", &bookinfo, &strange, |_| true).await;
    assert!(matches!(answer.status.as_u16(), 401 | 403), "{answer:?}");
    bookinfo.delete("authorizationpolicy", "page");
    bookinfo.delete("requestauthentication", "page");
    until("none again", &bookinfo, "", |page| page.status == 200).await;
}

/// AZ4, AZ5, SV9: behind the gateway a visitor is known by the address the gateway tells: one is denied the page, others are not,
/// whatever they say of themselves.
#[tokio::test(flavor = "multi_thread")]
async fn visitors_are_known_by_their_addresses() {
    let bookinfo = shared().await;
    bookinfo.reset().await;
    let page = format!("http://{}/productpage", bookinfo.gateway());
    let denied = client_from([127, 99, 0, 2].into());
    let other = client_from([127, 99, 0, 3].into());
    let policy = policy(
        "by-address",
        "productpage",
        "  action: DENY\n  rules:\n  - from: [{source: {remoteIpBlocks: [127.99.0.2/32]}}]\n",
    );
    bookinfo.apply(&policy);
    let end = Instant::now() + PATIENCE;
    while get(&denied, &page, &[]).await.status != 403 {
        assert!(Instant::now() < end, "never denied: {}", bookinfo.said());
    }
    assert_eq!(get(&other, &page, &[]).await.status, 200);
    assert_eq!(get(&denied, &page, &[("x-forwarded-for", "127.99.0.3")]).await.status, 403, "he says so himself");
    assert_eq!(get(&other, &page, &[("x-forwarded-for", "127.99.0.2")]).await.status, 200, "she says so herself");
    bookinfo.delete("authorizationpolicy", "by-address");
    until("everybody", &bookinfo, "", |page| page.status == 200).await;
}
