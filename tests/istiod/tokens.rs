//! Tokens as a cluster gives them to its pods, and the key set by which istiod knows them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::routing::get;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

/// Who issues them.
pub(crate) const ISSUER: &str = "https://tokens.test";
/// For whom. Istio `TOKEN_AUDIENCES`.
pub(crate) const AUDIENCE: &str = "istio-ca";
const KEY: &str = "one";

/// Signs tokens. Its key set is served for as long as this process lives.
pub(crate) struct Tokens {
    key: EncodingKey,
    /// Where the key set is.
    pub(crate) jwks: SocketAddr,
}

impl Tokens {
    /// With a key of its own: istiod takes RSA signatures only.
    pub(crate) fn new() -> Self {
        let made = Command::new("openssl").args(["genrsa", "-traditional", "2048"]).output().expect("openssl is there");
        let key = EncodingKey::from_rsa_pem(&made.stdout).expect("openssl makes an RSA key");
        let mut one = Jwk::from_encoding_key(&key, Algorithm::RS256).unwrap();
        one.common.key_id = Some(KEY.to_owned());
        Self { key, jwks: serve(json!({ "keys": [one] })) }
    }

    /// A token for a service account, good for an hour.
    pub(crate) fn issue(&self, namespace: &str, account: &str) -> String {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap();
        let claims = json!({
            "iss": ISSUER,
            "aud": [AUDIENCE],
            "sub": format!("system:serviceaccount:{namespace}:{account}"),
            "iat": now.as_secs(),
            "exp": (now + Duration::from_secs(3600)).as_secs(),
        });
        let header = Header { kid: Some(KEY.to_owned()), ..Header::new(Algorithm::RS256) };
        jsonwebtoken::encode(&header, &claims, &self.key).unwrap()
    }
}

/// Serves the key set on a thread of its own, since each test has a runtime of its own.
fn serve(keys: Value) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let router = Router::new().route("/keys", get(move || async move { axum::Json(keys) }));
            axum::serve(tokio::net::TcpListener::from_std(listener).unwrap(), router).await.unwrap();
        });
    });
    address
}
