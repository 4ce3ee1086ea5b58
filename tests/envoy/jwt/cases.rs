//! Tokens, good and bad in every way, and the requests that bring them.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::Method;
use jsonwebtoken::{Algorithm, EncodingKey, crypto, jwk::Jwk};
use rcgen::KeyPair;
use serde_json::{Value, json};

/// Of tests, and of no use elsewhere.
const RSA: &str = include_str!("../../../mesh-tower/testdata/rsa.pem");
const SECRET: &[u8] = b"a secret of thirty-two bytes, or so";

/// A request and what it is about.
pub(super) struct Case {
    pub(super) name: String,
    pub(super) method: Method,
    /// Behind the rule's part of the path.
    pub(super) path: String,
    pub(super) headers: Vec<(String, Vec<u8>)>,
}

/// Who signs them, and what is known of its keys.
pub(super) struct Keys {
    ec: EncodingKey,
    other: EncodingKey,
    rsa: EncodingKey,
    secret: EncodingKey,
    pub(super) set: String,
    now: u64,
}

impl Keys {
    pub(super) fn new() -> Self {
        let ec = || EncodingKey::from_ec_der(KeyPair::generate().unwrap().serialized_der());
        let (one, other) = (ec(), ec());
        let (rsa, secret) = (EncodingKey::from_rsa_pem(RSA.as_bytes()).unwrap(), EncodingKey::from_secret(SECRET));
        let jwk = |key: &EncodingKey, algorithm, kid: &str, keeps: bool| {
            let mut jwk = serde_json::to_value(Jwk::from_encoding_key(key, algorithm).unwrap()).unwrap();
            if !keeps {
                jwk.as_object_mut().unwrap().remove("alg");
            }
            jwk["kid"] = json!(kid);
            jwk
        };
        let set = json!({"keys": [
            jwk(&one, Algorithm::ES256, "k", true),
            jwk(&rsa, Algorithm::RS256, "r", true),
            {"kty": "oct", "k": URL_SAFE_NO_PAD.encode(SECRET), "kid": "h", "alg": "HS256"},
        ]});
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        Self { ec: one, other, rsa, secret, set: set.to_string(), now }
    }

    fn sign(&self, key: &EncodingKey, algorithm: Algorithm, header: &str, payload: &str) -> String {
        let text = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
        let signature = crypto::sign(text.as_bytes(), key, algorithm).unwrap();
        format!("{text}.{signature}")
    }

    /// As it should be, of such claims.
    fn token(&self, claims: &Value) -> String {
        self.raw(&claims.to_string())
    }

    fn raw(&self, payload: &str) -> String {
        self.sign(&self.ec, Algorithm::ES256, r#"{"alg":"ES256","kid":"k"}"#, payload)
    }

    fn headed(&self, header: &str) -> String {
        self.sign(&self.ec, Algorithm::ES256, header, r#"{"iss":"A","sub":"s","aud":"shop"}"#)
    }
}

/// Every request.
pub(super) fn cases(keys: &Keys) -> Vec<Case> {
    let now = keys.now;
    let mut cases = Vec::new();
    let mut add = |name: &str, path: &str, headers: Vec<(&str, String)>| {
        let headers = headers.into_iter().map(|(name, value)| (name.to_owned(), value.into_bytes())).collect();
        cases.push(Case { name: name.to_owned(), method: Method::GET, path: path.to_owned(), headers });
    };
    let bearer = |token: &str| ("authorization", format!("Bearer {token}"));
    let good = keys.token(&json!({"iss": "A", "sub": "s", "aud": "shop", "n": 7, "flag": true, "deep": {"er": "d"},
        "list": [1, "a"]}));
    let of_b = keys.token(&json!({"iss": "B", "sub": "t"}));
    let spoilt = |token: &str| format!("{}AAAA", &token[..token.len() - 4]);
    add("none", "?y=1", vec![]);
    add("good", "", vec![bearer(&good)]);
    add("good, and forged", "", vec![bearer(&good), ("x-user", "evil".to_owned()), ("x-payload", "evil".to_owned())]);
    add("forged alone", "", vec![("x-user", "evil".to_owned()), ("x-user-b", "evil".to_owned())]);
    add("nonsense", "", vec![bearer("a.b")]);
    add("nothing", "", vec![bearer("")]);
    add("many dots", "", vec![bearer(&format!("{good}.x"))]);
    add("spoilt", "", vec![bearer(&spoilt(&good))]);
    add("no signature", "", vec![bearer(&good[..=good.rfind('.').unwrap()])]);
    add("stranger", "", vec![bearer(&keys.token(&json!({"iss": "C"})))]);
    add("no issuer", "", vec![bearer(&keys.token(&json!({"aud": "shop"})))]);
    add("B", "", vec![("x-b", format!("T {of_b}"))]);
    add("B spoilt", "", vec![("x-b", format!("T {}", spoilt(&of_b)))]);
    add("B where A's is", "", vec![bearer(&of_b)]);
    add("A where B's is", "", vec![("x-b", format!("T {good}"))]);
    add("B without its prefix", "", vec![("x-b", of_b.clone())]);
    add("both", "", vec![bearer(&good), ("x-b", format!("T {of_b}"))]);
    add("A good, B bad", "", vec![bearer(&good), ("x-b", format!("T {}", spoilt(&of_b)))]);
    add("A bad, B good", "", vec![bearer(&spoilt(&good)), ("x-b", format!("T {of_b}"))]);
    add("B's cookie", "", vec![("cookie", format!("a=1; c={of_b}; d=2"))]);
    add("B's cookie quoted", "", vec![("cookie", format!("c=\"{of_b}\""))]);
    add("B's parameter", &format!("?t={of_b}&z=1"), vec![]);
    add("B's parameter twice", &format!("?t={of_b}&t=x"), vec![]);
    add("B three times", &format!("?t={of_b}"), vec![("x-b", format!("T {of_b}")), ("cookie", format!("c={of_b}"))]);
    add("A's parameter", &format!("?a=%20&access_token={good}&z=1"), vec![]);
    add("A's parameter empty", "?access_token=", vec![]);
    add("A's parameter bad, header good", &format!("?access_token={of_b}"), vec![bearer(&good)]);
    add("any of no issuer", "", vec![("x-any", keys.token(&json!({"sub": "u"})))]);
    add("any of any issuer", "", vec![("x-any", keys.token(&json!({"iss": "Z"})))]);
    add("lower-case bearer", "", vec![("authorization", format!("bearer {good}"))]);
    add("basic", "", vec![("authorization", "Basic YTpi".to_owned())]);
    add("spaces", "", vec![("authorization", format!("Bearer   {good}"))]);
    add("something behind", "", vec![("authorization", format!("Bearer {good},x"))]);
    add("two lines, good first", "", vec![bearer(&good), bearer(&of_b)]);
    add("two lines, good last", "", vec![bearer(&of_b), bearer(&good)]);
    for (name, claims) in [
        ("exp past", json!({"exp": now - 600})),
        ("exp within skew", json!({"exp": now - 30})),
        ("exp to come", json!({"exp": now + 600})),
        ("nbf to come", json!({"nbf": now + 600})),
        ("nbf within skew", json!({"nbf": now + 30})),
        ("exp text", json!({"exp": "9"})),
        ("exp 0", json!({"exp": 0})),
        ("exp negative", json!({"exp": -1})),
        ("exp null", json!({"exp": null})),
        ("exp fraction", json!({"exp": now as f64 + 600.5})),
        ("nbf text", json!({"nbf": "9"})),
        ("iat text", json!({"iat": "9"})),
        ("iat to come", json!({"iat": now + 600})),
        ("aud other", json!({"aud": "other"})),
        ("aud of several", json!({"aud": ["x", "shop"]})),
        ("aud as an address", json!({"aud": ["https://shop/"]})),
        ("aud empty", json!({"aud": []})),
        ("aud null", json!({"aud": null})),
        ("aud number", json!({"aud": 1})),
        ("aud with numbers", json!({"aud": ["shop", 1]})),
        ("sub number", json!({"sub": 1})),
        ("jti number", json!({"jti": 1})),
        ("claims of kinds", json!({"n": 1.5, "flag": false, "deep": {"er": [1]}, "list": {}})),
        ("claims that are empty", json!({"n": null, "flag": "", "sub": "ü", "list": []})),
        ("large number", json!({"n": 12_345_678_901_u64})),
        ("negative number", json!({"n": -3})),
    ] {
        let mut all = json!({"iss": "A", "sub": "s", "aud": "shop"});
        for (key, value) in claims.as_object().unwrap() {
            all[key] = value.clone();
        }
        add(name, "", vec![bearer(&keys.token(&all))]);
    }
    add("exp huge", "", vec![bearer(&keys.raw(r#"{"iss":"A","aud":"shop","exp":1e30}"#))]);
    add("no json", "", vec![bearer(&keys.raw("{"))]);
    add("a list", "", vec![bearer(&keys.raw("[]"))]);
    add("iss number", "", vec![bearer(&keys.raw(r#"{"iss":1,"aud":"shop"}"#))]);
    add("claims twice", "", vec![bearer(&keys.raw(r#"{"iss":"A","aud":"shop","sub":"x","sub":"y"}"#))]);
    let none = |alg: &str| {
        format!("{}.{}.", URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"{alg}"}}"#)), good.split('.').nth(1).unwrap())
    };
    add("alg none", "", vec![bearer(&none("none"))]);
    add("alg None", "", vec![bearer(&none("None"))]);
    for header in [
        r#"{"alg":"ES256"}"#,
        r#"{"alg":"ES256","kid":"o"}"#,
        r#"{"alg":"ES256","kid":"r"}"#,
        r#"{"alg":"ES256","kid":"h"}"#,
        r#"{"alg":"ES256","kid":""}"#,
        r#"{"alg":"ES256","kid":1}"#,
        r#"{"alg":"ES256","kid":"../../k"}"#,
        r#"{"alg":"ES256","kid":"k","typ":"x"}"#,
        r#"{"alg":"ES256","kid":"k","crit":["exp"]}"#,
        r#"{"alg":"ES256","kid":"k","jwk":{"kty":"oct","k":"AAAA"},"jku":"http://evil"}"#,
        r#"{"alg":"ES384","kid":"k"}"#,
        r#"{"alg":"RS256","kid":"k"}"#,
        r#"{"alg":"HS256","kid":"k"}"#,
        r#"{"alg":1,"kid":"k"}"#,
        r#"{"kid":"k"}"#,
        "{",
        "[]",
    ] {
        add(&format!("header {header}"), "", vec![bearer(&keys.headed(header))]);
    }
    let payload = r#"{"iss":"A","sub":"s","aud":"shop"}"#;
    let by = |key: &EncodingKey, algorithm, header: &str| bearer(&keys.sign(key, algorithm, header, payload));
    add("RSA", "", vec![by(&keys.rsa, Algorithm::RS256, r#"{"alg":"RS256","kid":"r"}"#)]);
    add("RSA with PSS under RS256's key", "", vec![by(&keys.rsa, Algorithm::PS256, r#"{"alg":"PS256","kid":"r"}"#)]);
    add("RSA under the curve's name", "", vec![by(&keys.rsa, Algorithm::RS256, r#"{"alg":"RS256","kid":"k"}"#)]);
    add("secret", "", vec![by(&keys.secret, Algorithm::HS256, r#"{"alg":"HS256","kid":"h"}"#)]);
    add("somebody else's key", "", vec![by(&keys.other, Algorithm::ES256, r#"{"alg":"ES256","kid":"k"}"#)]);
    // The public key is no secret.
    let public = EncodingKey::from_secret(RSA.as_bytes());
    add("confusion", "", vec![by(&public, Algorithm::HS256, r#"{"alg":"HS256","kid":"r"}"#)]);
    let encoded = good.replace('-', "+").replace('_', "/");
    add("in the other alphabet", "", vec![bearer(&encoded)]);
    add("padded", "", vec![bearer(&format!("{good}="))]);
    add("no base64", "", vec![bearer(&format!("{}.!!!", good.rsplit_once('.').unwrap().0))]);
    let of_d = |claims: Value| {
        let mut all = json!({"iss": "D", "sub": "ok-1"});
        for (key, value) in claims.as_object().unwrap() {
            all[key] = value.clone();
        }
        vec![("x-d", keys.token(&all))]
    };
    add("D", "", of_d(json!({"exp": now + 60})));
    add("D without an end", "", of_d(json!({})));
    add("D for too long", "", of_d(json!({"exp": now + 600})));
    add("D a while over", "", of_d(json!({"exp": now - 30})));
    add("D of another", "", of_d(json!({"exp": now + 60, "sub": "no"})));
    let of_e = |aud: &str| vec![("x-e", keys.token(&json!({"iss": "E", "aud": aud})))];
    for aud in
        ["https://shop.example/", "https://shop.example", "http://shop.example/", "shop.example", "shop.example//"]
    {
        add(&format!("E for {aud}"), "", of_e(aud));
    }
    let mut preflight =
        Case { name: "preflight".into(), method: Method::OPTIONS, path: "".into(), headers: Vec::new() };
    preflight.headers.push(("origin".to_owned(), b"http://a".to_vec()));
    cases.push(Case { name: "half a preflight".into(), headers: preflight.headers.clone(), ..preflight });
    let headers = [("origin", "http://a"), ("access-control-request-method", "GET")];
    let headers = headers.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec())).to_vec();
    cases.push(Case { name: "preflight".into(), method: Method::OPTIONS, path: String::new(), headers });
    let raw = vec![("authorization".to_owned(), b"Bearer \xff".to_vec())];
    cases.push(Case { name: "no text".into(), method: Method::GET, path: String::new(), headers: raw });
    cases
}
