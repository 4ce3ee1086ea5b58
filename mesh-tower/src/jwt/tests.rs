//! Tokens signed, forged, remembered, and keys that come, change and fail, on a paused clock.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::atomic::{AtomicUsize, Ordering};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, crypto, jwk::Jwk};
use mesh_core::config::{JwtKeys, JwtProvider, JwtRequirement, JwtRule};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384};
use serde_json::{Value, json};

use super::*;

/// Of tests, and of no use elsewhere.
const RSA: &str = include_str!("../../testdata/rsa.pem");
const SECRET: &[u8] = b"a secret of thirty-two bytes, or so";

struct Signer {
    key: EncodingKey,
    algorithm: Algorithm,
    jwk: Value,
}

impl Signer {
    fn of(key: EncodingKey, algorithm: Algorithm, kid: &str) -> Self {
        let mut jwk = match algorithm {
            Algorithm::HS256 => json!({"kty": "oct", "k": URL_SAFE_NO_PAD.encode(SECRET)}),
            _ => serde_json::to_value(Jwk::from_encoding_key(&key, algorithm).unwrap()).unwrap(),
        };
        // A key says by its type alone what it is good for, unless a test says otherwise.
        jwk.as_object_mut().unwrap().remove("alg");
        jwk["kid"] = kid.into();
        Self { key, algorithm, jwk }
    }

    fn rsa(kid: &str) -> Self {
        Self::of(EncodingKey::from_rsa_pem(RSA.as_bytes()).unwrap(), Algorithm::RS256, kid)
    }

    fn p256(kid: &str) -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        Self::of(EncodingKey::from_ec_der(key.serialized_der()), Algorithm::ES256, kid)
    }

    fn sign(&self, header: &Value, payload: &str) -> String {
        self.sign_as(self.algorithm, header, payload)
    }

    fn sign_as(&self, algorithm: Algorithm, header: &Value, payload: &str) -> String {
        let text = format!("{}.{}", b64(header.to_string()), b64(payload));
        let signature = crypto::sign(text.as_bytes(), &self.key, algorithm).unwrap();
        format!("{text}.{signature}")
    }

    fn token(&self) -> String {
        self.sign(&json!({"alg": name(self.algorithm), "kid": self.jwk["kid"]}), PAYLOAD)
    }
}

const PAYLOAD: &str = r#"{"iss":"I","sub":"s"}"#;

fn b64(text: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(text)
}

fn name(algorithm: Algorithm) -> String {
    format!("{algorithm:?}")
}

fn set(keys: &[&Signer]) -> String {
    json!({"keys": keys.iter().map(|it| &it.jwk).collect::<Vec<_>>()}).to_string()
}

fn config(keys: JwtKeys) -> Arc<Jwt> {
    let provider = JwtProvider {
        issuer: "I".to_owned(),
        payload_name: Some("payload".to_owned()),
        keys,
        ..JwtProvider::default()
    };
    let requirement = Some(JwtRequirement::Provider { name: "p".into(), audiences: None });
    let rules = vec![JwtRule { requirement, ..JwtRule::default() }];
    let providers = [("p".into(), Arc::new(provider))].into();
    Arc::new(Jwt::compile(&Arc::new(JwtAuthn { providers, rules, ..JwtAuthn::default() })).unwrap())
}

fn tokens(get: Get) -> Tokens {
    Tokens { get, clock: Source::seeded(1), kept: Mutex::default() }
}

fn nowhere() -> Get {
    Arc::new(|_, _, _| Box::pin(async { Err("not asked for".to_owned()) }))
}

async fn decide(tokens: &Tokens, jwt: &Jwt, token: &str) -> Result<Option<String>, JwtError> {
    let request = http::Request::get("/").header("authorization", format!("Bearer {token}")).body(()).unwrap();
    tokens.decide(jwt, &request.into_parts().0, 80).await.map(|proven| proven.claims.principal())
}

/// AN13: every algorithm that keys are good for proves; each key is good for the algorithms of its type alone.
#[tokio::test]
async fn keys_prove_what_they_signed() {
    let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    // PKCS #8 of version 1, which has the seed alone.
    let begin = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    let ed = [&begin[..], &[7; 32]].concat();
    let signers = [
        Signer::rsa("r"),
        Signer::p256("e"),
        Signer::of(EncodingKey::from_ec_der(p384.serialized_der()), Algorithm::ES384, "e3"),
        Signer::of(EncodingKey::from_ed_der(&ed), Algorithm::EdDSA, "ed"),
        Signer::of(EncodingKey::from_secret(SECRET), Algorithm::HS256, "h"),
    ];
    let jwt = config(JwtKeys::Inline(set(&signers.iter().collect::<Vec<_>>()).into()));
    let tokens = tokens(nowhere());
    for signer in &signers {
        assert_eq!(decide(&tokens, &jwt, &signer.token()).await, Ok(Some("I/s".to_owned())), "{:?}", signer.algorithm);
        // Without a key's name all are tried.
        let nameless = signer.sign(&json!({"alg": name(signer.algorithm)}), PAYLOAD);
        assert_eq!(decide(&tokens, &jwt, &nameless).await, Ok(Some("I/s".to_owned())), "{:?}", signer.algorithm);
        // Under the name of another key, none.
        for other in signers.iter().filter(|it| it.algorithm != signer.algorithm) {
            let header = json!({"alg": name(signer.algorithm), "kid": other.jwk["kid"]});
            let error = decide(&tokens, &jwt, &signer.sign(&header, PAYLOAD)).await.unwrap_err();
            assert_eq!(error, JwtError::Unproven, "{:?} as {:?}", signer.algorithm, other.algorithm);
        }
    }
    let rsa = &signers[0];
    for algorithm in [Algorithm::RS384, Algorithm::RS512, Algorithm::PS256, Algorithm::PS384, Algorithm::PS512] {
        let header = json!({"alg": name(algorithm), "kid": "r"});
        let token = rsa.sign_as(algorithm, &header, PAYLOAD);
        assert!(decide(&tokens, &jwt, &token).await.is_ok(), "{algorithm:?}");
        // A key that names its algorithm is good for no other.
        let mut jwk = rsa.jwk.clone();
        jwk["alg"] = "RS256".into();
        let pinned = config(JwtKeys::Inline(json!({"keys": [jwk]}).to_string().into()));
        assert_eq!(decide(&tokens, &pinned, &token).await, Err(JwtError::NoKeyMatches), "{algorithm:?}");
    }
}

/// AN13: none of the ways to forge a token works (CVE-2015-9235, CVE-2026-25537, RFC 8725).
#[tokio::test]
async fn forged_tokens_are_refused() {
    let (rsa, ec) = (Signer::rsa("r"), Signer::p256("e"));
    let own = Signer::p256("e");
    let jwt = config(JwtKeys::Inline(set(&[&rsa, &ec]).into()));
    let tokens = tokens(nowhere());
    let good = ec.token();
    assert!(decide(&tokens, &jwt, &good).await.is_ok());
    let [header, payload, signature] = good.split('.').collect::<Vec<_>>().try_into().unwrap();
    let other = b64(r#"{"iss":"I","sub":"admin"}"#);
    let head = |value: Value| b64(value.to_string());

    let mut forged = Vec::new();
    for alg in ["none", "None", "NONE", "nOnE", "", " none", "null", "HS256 ", "es256", "RS1", "RS256\0"] {
        for end in ["", signature] {
            forged.push(format!("{}.{payload}.{end}", head(json!({"alg": alg}))));
        }
    }
    for alg in [json!(null), json!(0), json!(["ES256"]), json!({}), json!(true)] {
        forged.push(format!("{}.{payload}.{signature}", head(json!({"alg": alg, "kid": "e"}))));
    }
    // A public key, in any form, is no secret.
    let pem = KeyPair::from_pem(RSA).map(|key| key.public_key_pem()).unwrap_or_default();
    let modulus = rsa.jwk["n"].as_str().unwrap();
    for secret in [
        b"".to_vec(),
        rsa.jwk.to_string().into_bytes(),
        modulus.into(),
        URL_SAFE_NO_PAD.decode(modulus).unwrap(),
        pem.into(),
        set(&[&rsa, &ec]).into(),
    ] {
        let key = EncodingKey::from_secret(&secret);
        for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
            for kid in [json!("r"), json!("e"), json!(""), json!(null)] {
                let mut header = json!({"alg": name(algorithm), "kid": kid});
                if kid.is_null() {
                    header = json!({"alg": name(algorithm)});
                }
                let text = format!("{}.{other}", head(header));
                forged.push(format!("{text}.{}", crypto::sign(text.as_bytes(), &key, algorithm).unwrap()));
            }
        }
    }
    // Keys of the forger's own: under a known name, no name, strange names, or brought along.
    let public = own.jwk.clone();
    for header in [
        json!({"alg": "ES256", "kid": "e"}),
        json!({"alg": "ES256"}),
        json!({"alg": "ES256", "kid": ""}),
        json!({"alg": "ES256", "kid": "../../../../dev/null"}),
        json!({"alg": "ES256", "kid": "e' UNION SELECT 'x"}),
        json!({"alg": "ES256", "kid": "e\0"}),
        json!({"alg": "ES256", "kid": 0}),
        json!({"alg": "ES256", "kid": null}),
        json!({"alg": "ES256", "kid": ["e"]}),
        json!({"alg": "ES256", "jwk": public}),
        json!({"alg": "ES256", "kid": "e", "jwk": public}),
        json!({"alg": "ES256", "jku": "http://127.0.0.1/keys", "kid": "own"}),
        json!({"alg": "ES256", "x5u": "http://127.0.0.1/cert", "x5c": ["MIIB"]}),
        json!({"alg": "ES256", "kid": "e", "b64": false}),
    ] {
        forged.push(own.sign(&header, PAYLOAD));
    }
    // Signed by the right key, but meant to be read in another way.
    for header in [
        json!({"alg": "ES256", "kid": "e", "crit": ["exp"]}),
        json!({"alg": "ES256", "kid": "e", "crit": ["b64"], "b64": false}),
        json!({"alg": "ES384", "kid": "e"}),
        json!({"alg": "RS256", "kid": "e"}),
    ] {
        forged.push(ec.sign(&header, PAYLOAD));
    }
    for payload in [
        r#"{"iss":"I","iss":"X"}"#,
        r#"{"iss":"I","sub":"a","sub":"b"}"#,
        r#"["I"]"#,
        r#""I""#,
        "I",
        "",
        "null",
        "{",
        r#"{"iss":"I"}}"#,
        r#"{"iss":"I","exp":"9999999999"}"#,
        r#"{"iss":"I","exp":-1}"#,
        r#"{"iss":"I","exp":1e400}"#,
        r#"{"iss":"I","exp":18446744073709551617}"#,
        r#"{"iss":"I","exp":null}"#,
        r#"{"iss":"I","exp":[]}"#,
        r#"{"iss":"I","exp":true}"#,
        r#"{"iss":"I","exp":0}"#,
        r#"{"iss":"I","exp":-9223372036854775809}"#,
        r#"{"iss":"I","nbf":"0"}"#,
        r#"{"iss":"I","nbf":null}"#,
        r#"{"iss":"I","nbf":18446744073709551615}"#,
        r#"{"iss":"I","nbf":-0.5}"#,
        r#"{"iss":"I","iat":"x"}"#,
        r#"{"iss":["I"]}"#,
        r#"{"iss":"i"}"#,
        r#"{"iss":"I "}"#,
        r#"{"iss":"I/"}"#,
        r#"{"ISS":"I"}"#,
        r#"{"sub":"s"}"#,
        r#"{"iss":"I","sub":7}"#,
        r#"{"iss":"I","sub":null}"#,
        r#"{"iss":"I","aud":7}"#,
        r#"{"iss":"I","aud":["x",7]}"#,
    ] {
        forged.push(ec.sign(&json!({"alg": "ES256", "kid": "e"}), payload));
    }
    // Parts that do not belong together, are cut or changed.
    forged.push(format!("{header}.{other}.{signature}"));
    forged.push(format!("{header}.{payload}."));
    forged.push(format!("{header}.{payload}"));
    forged.push(format!("{header}.{payload}.{signature}.{signature}"));
    forged.push(format!(".{payload}.{signature}"));
    forged.push(format!("{header}..{signature}"));
    forged.push(format!("{header}.{payload}.{}", &signature[..signature.len() - 2]));
    forged.push(format!("{header}.{payload}.{signature}AA"));
    forged.push(format!("{header}.{payload}.{}", b64([0; 64])));
    forged.push(format!("{header}.{payload}.{}", b64([0xff; 64])));
    forged.push("...".to_owned());
    forged.push(format!("{header}.{payload}.{}", "A".repeat(LONGEST)));
    for at in 0..good.len() {
        let mut bytes = good.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        forged.push(String::from_utf8(bytes).unwrap());
    }
    assert!(forged.len() > 250, "{}", forged.len());
    for token in forged {
        let decided = decide(&tokens, &jwt, &token).await;
        assert!(decided.is_err(), "{token} was believed: {decided:?}");
    }
    assert!(decide(&tokens, &jwt, &good).await.is_ok());
    let kept = tokens.kept.lock().unwrap();
    assert_eq!(kept[0].1.remembered.lock().unwrap().tokens.len(), 1, "only what was proven is remembered");
}

/// AN13: proven tokens are remembered, not more than so many, and not beyond the keys that proved them.
#[tokio::test]
async fn what_is_remembered_is_bounded() {
    let mut kept = Remembered::default();
    let token = Arc::new(
        Token::new(
            Claim::Map([("alg".to_owned(), Claim::Text("ES256".to_owned()))].into()),
            Claim::Map(BTreeMap::new()),
            "",
        )
        .unwrap(),
    );
    for n in 0..REMEMBERED.0 + 10 {
        kept.keep(&n.to_string(), Arc::clone(&token), &"p".into(), 0);
    }
    kept.keep(&"x".repeat(REMEMBERED.1 + 1), Arc::clone(&token), &"p".into(), 0);
    assert_eq!((kept.tokens.len(), kept.order.len()), (REMEMBERED.0, REMEMBERED.0));
    assert!(!kept.tokens.contains_key("9") && kept.tokens.contains_key("10"));

    let (one, two) = (Signer::p256("1"), Signer::p256("1"));
    let tokens = tokens(nowhere());
    assert!(decide(&tokens, &config(JwtKeys::Inline(set(&[&one]).into())), &one.token()).await.is_ok());
    let revoked = config(JwtKeys::Inline(set(&[&two]).into()));
    assert_eq!(decide(&tokens, &revoked, &one.token()).await, Err(JwtError::Unproven));
    for bad in [
        "",
        "{}",
        r#"{"keys":[]}"#,
        r#"{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"}]}"#,
        r#"{"keys":[{"kty":"oct","k":"c2hvcnQ"}]}"#,
    ] {
        let none = config(JwtKeys::Inline(bad.into()));
        assert_eq!(decide(&tokens, &none, &one.token()).await, Err(JwtError::NoKeys), "{bad}");
    }
}

/// Answers each time with what `answers` says at that count; `None` never answers.
fn fetched(
    answers: impl Fn(usize) -> Option<Result<String, String>> + Send + Sync + 'static,
) -> (Get, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&count);
    let get: Get = Arc::new(move |_, _, _| {
        let answer = answers(counting.fetch_add(1, Ordering::SeqCst));
        Box::pin(async move {
            match answer {
                Some(answer) => answer,
                None => std::future::pending().await,
            }
        })
    });
    (get, count)
}

fn remote(refresh: u64) -> Arc<Jwt> {
    config(JwtKeys::Remote {
        uri: "https://issuer/keys".to_owned(),
        cluster: "issuer".into(),
        timeout: Duration::from_secs(5),
        refresh: Duration::from_secs(refresh),
    })
}

/// AN13: keys are fetched by a task, kept up to date, and a new key's name makes them fetched again, once in a while.
#[tokio::test(start_paused = true)]
async fn keys_are_fetched_and_rotate() {
    let (one, two, three) = (Signer::p256("1"), Signer::p256("2"), Signer::p256("3"));
    let sets = [set(&[&one]), set(&[&one, &two]), set(&[&two])];
    let (get, count) = fetched(move |n| Some(Ok(sets[n.min(2)].clone())));
    let (tokens, jwt) = (tokens(get), remote(600));
    assert!(decide(&tokens, &jwt, &one.token()).await.is_ok(), "the first request waits for keys");
    assert_eq!(count.load(Ordering::SeqCst), 1);
    // Too soon after the last time.
    assert_eq!(decide(&tokens, &jwt, &two.token()).await, Err(JwtError::NoKeyMatches));
    assert_eq!(count.load(Ordering::SeqCst), 1);
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert!(decide(&tokens, &jwt, &two.token()).await.is_ok(), "a new key is known as soon as it is used");
    assert_eq!(count.load(Ordering::SeqCst), 2);
    // Made-up names: 300 requests within a minute fetch no more than every ten seconds.
    for _ in 0..300 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(decide(&tokens, &jwt, &three.token()).await, Err(JwtError::NoKeyMatches));
    }
    let asked = count.load(Ordering::SeqCst);
    assert!((3..=8).contains(&asked), "{asked} fetches");
    assert_eq!(
        decide(&tokens, &jwt, &one.token()).await,
        Err(JwtError::NoKeyMatches),
        "a withdrawn key proves nothing"
    );
    // Whatever asks, they are fetched when their time is over.
    tokio::time::sleep(Duration::from_secs(1300)).await;
    assert!(count.load(Ordering::SeqCst) > asked);
    // An equal provider of a later configuration goes on with the keys there are.
    let asked = count.load(Ordering::SeqCst);
    assert!(decide(&tokens, &remote(600), &two.token()).await.is_ok());
    assert_eq!(count.load(Ordering::SeqCst), asked);
}

/// AN13: without keys every token is refused (CVE-2026-31837); keys that cannot be renewed count for a limited time.
#[tokio::test(start_paused = true)]
async fn keys_that_cannot_be_fetched_prove_nothing() {
    let one = Signer::p256("1");
    for answer in [
        Some(Err("503".to_owned())),
        None,
        Some(Ok(String::new())),
        Some(Ok(r#"{"keys":[]}"#.to_owned())),
        Some(
            Ok(json!({"keys": [Signer::of(EncodingKey::from_secret(SECRET), Algorithm::HS256, "h").jwk]}).to_string()),
        ),
    ] {
        let (get, count) = fetched(move |_| answer.clone());
        let (tokens, jwt) = (tokens(get), remote(600));
        for _ in 0..100 {
            assert_eq!(decide(&tokens, &jwt, &one.token()).await, Err(JwtError::KeysNotFetched));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(count.load(Ordering::SeqCst) <= 6, "asked less and less often");
    }
    let (good, token) = (set(&[&one]), one.token());
    let (get, _) = fetched(move |n| Some(if n == 0 { Ok(good.clone()) } else { Err("gone".to_owned()) }));
    let (tokens, jwt) = (tokens(get), remote(60));
    assert!(decide(&tokens, &jwt, &token).await.is_ok());
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert!(decide(&tokens, &jwt, &token).await.is_ok());
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(decide(&tokens, &jwt, &token).await, Err(JwtError::KeysNotFetched));
}
