//! Tokens against what their providers and requirements demand, signatures told by a table.

#![allow(clippy::unwrap_used, clippy::panic, clippy::type_complexity, clippy::redundant_clone)]

use std::time::Duration;

use super::*;
use crate::{
    claims::PAYLOAD,
    config::{JwtRule, PathMatch, RouteMatch},
};

const NOW: u64 = 1_000_000;

/// Tokens by the word that stands for them: payload, and who has signed it.
struct Table(Vec<(&'static str, String, &'static str)>);

impl Verify for Table {
    fn read(&self, token: &str) -> Result<Arc<Token>, JwtError> {
        let (_, payload, _) = self.0.iter().find(|(word, ..)| *word == token).ok_or(JwtError::NoToken)?;
        let header = serde_json::from_str(r#"{"alg": "RS256", "kid": "k"}"#).unwrap();
        Token::new(header, serde_json::from_str(payload).unwrap(), token).map(Arc::new)
    }

    fn prove(&self, provider: &Name, text: &str, _: &Token) -> Result<(), JwtError> {
        match self.0.iter().find(|(word, ..)| *word == text).map(|(.., signer)| *signer) {
            Some("pending") => Err(JwtError::KeysPending),
            Some(signer) if signer == &**provider => Ok(()),
            _ => Err(JwtError::Unproven),
        }
    }
}

fn table() -> Table {
    let token = |word, claims: &str, signer| (word, format!("{{{claims}}}"), signer);
    Table(vec![
        token("a", r#""iss": "A", "sub": "s", "aud": ["https://x/", "y"], "scope": "r w", "n": {"k": [1]}"#, "p1"),
        token("a2", r#""iss": "A", "sub": "t""#, "p1"),
        token("b", r#""iss": "B", "sub": "s""#, "p2"),
        token("forged", r#""iss": "A""#, "p2"),
        token("stranger", r#""iss": "C""#, "p1"),
        token("soon", r#""iss": "A""#, "pending"),
        token("late", &format!(r#""iss": "A", "exp": {}"#, NOW - 61), "p1"),
        token("justnot", &format!(r#""iss": "A", "exp": {}"#, NOW - 60), "p1"),
        token("early", &format!(r#""iss": "A", "nbf": {}"#, NOW + 61), "p1"),
        token("almost", &format!(r#""iss": "A", "nbf": {}, "exp": {}"#, NOW + 60, NOW + 100), "p1"),
        token("zero", r#""iss": "A", "exp": 0"#, "p1"),
        token("long", &format!(r#""iss": "A", "exp": {}"#, NOW + 100_000), "p1"),
        token("wordy", r#""iss": "A", "exp": "1000""#, "p1"),
        token("negative", r#""iss": "A", "nbf": -1"#, "p1"),
        token("huge", r#""iss": "A", "exp": 1e30"#, "p1"),
        token("null", r#""iss": "A", "exp": null"#, "p1"),
        token("audless", r#""iss": "A", "aud": {"x": 1}"#, "p1"),
        token("numeric", r#""iss": 5"#, "p1"),
    ])
}

fn provider(issuer: &str) -> JwtProvider {
    JwtProvider { issuer: issuer.to_owned(), payload_name: Some(PAYLOAD.to_owned()), ..JwtProvider::default() }
}

fn jwt(providers: Vec<(&str, JwtProvider)>, requirement: JwtRequirement) -> Jwt {
    let rule = JwtRule { requirement: Some(requirement), ..JwtRule::default() };
    let providers = providers.into_iter().map(|(name, provider)| (name.into(), Arc::new(provider))).collect();
    Jwt::compile(&Arc::new(JwtAuthn { providers, rules: vec![rule], bypass_cors_preflight: true, hide_reason: false }))
        .unwrap()
}

fn two(requirement: JwtRequirement) -> Jwt {
    jwt(vec![("p1", provider("A")), ("p2", provider("B"))], requirement)
}

fn of(name: &str) -> JwtRequirement {
    JwtRequirement::Provider { name: name.into(), audiences: None }
}

fn parts(uri: &str, headers: &[(&str, &str)]) -> Parts {
    let mut builder = http::Request::builder().uri(uri);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(()).unwrap().into_parts().0
}

/// A header and a parameter with a token each; an empty word is none.
fn decide(jwt: &Jwt, header: &str, parameter: &str) -> Decision {
    let bearer = format!("Bearer {header}");
    let headers = [("authorization", bearer.as_str())];
    let uri = if parameter.is_empty() { "/".to_owned() } else { format!("/?access_token={parameter}") };
    let parts = parts(&uri, if header.is_empty() { &[] } else { &headers });
    jwt.decide(&RequestView::of(&parts, None), 0, NOW, &table())
}

fn verdict(jwt: &Jwt, header: &str, parameter: &str) -> Result<Option<String>, JwtError> {
    match decide(jwt, header, parameter) {
        Decision::Pass(proven) => {
            Ok(proven.claims.principal().or_else(|| (!proven.claims.is_empty()).then(String::new)))
        }
        Decision::Refuse(error) => Err(error),
        Decision::Wait(_) => Err(JwtError::KeysPending),
    }
}

/// AN13: what a token must say of itself: issuer, times with 60 s of skew, types of claims.
#[test]
fn a_token_must_suit_its_provider() {
    let jwt = jwt(vec![("p1", provider("A"))], of("p1"));
    for (word, expected) in [
        ("a", Ok(())),
        ("justnot", Ok(())),
        ("almost", Ok(())),
        ("", Err(JwtError::Missing)),
        ("nonsense", Err(JwtError::NoToken)),
        ("b", Err(JwtError::Issuer)),
        ("stranger", Err(JwtError::Issuer)),
        ("forged", Err(JwtError::Unproven)),
        ("late", Err(JwtError::Expired)),
        ("zero", Err(JwtError::Expired)),
        ("early", Err(JwtError::Early)),
        ("wordy", Err(JwtError::NoNumber("exp"))),
        ("null", Err(JwtError::NoNumber("exp"))),
        ("negative", Err(JwtError::NoTime("nbf"))),
        ("huge", Err(JwtError::NoTime("exp"))),
        ("audless", Err(JwtError::AudienceNoText)),
        ("numeric", Err(JwtError::NoText("iss"))),
        ("soon", Err(JwtError::KeysPending)),
    ] {
        assert_eq!(verdict(&jwt, word, "").map(drop), expected, "{word}");
        // Two are there: both must be good.
        let both = verdict(&jwt, word, "a2").map(drop);
        assert_eq!(both.is_ok(), expected.is_ok() || word.is_empty(), "{word} beside a good one");
    }
}

/// AN13: audiences, subjects and lifetimes are held; audiences of a requirement go before those of the provider.
#[test]
fn audiences_subjects_and_lifetimes_are_held() {
    let with = |change: fn(&mut JwtProvider), requirement| {
        let mut one = provider("A");
        change(&mut one);
        jwt(vec![("p1", one)], requirement)
    };
    let own = |audiences: &[&str]| JwtRequirement::Provider {
        name: "p1".into(),
        audiences: Some(audiences.iter().map(|it| (*it).to_owned()).collect()),
    };
    let audiences: fn(&mut JwtProvider) = |it| it.audiences = vec!["http://x".to_owned()];
    for (jwt, word, expected) in [
        (with(audiences, of("p1")), "a", Ok(())),
        (with(audiences, of("p1")), "a2", Err(JwtError::Audience)),
        (with(audiences, own(&["z"])), "a", Err(JwtError::Audience)),
        (with(audiences, own(&["y"])), "a", Ok(())),
        (with(|it| it.subjects = Some(exact("s")), of("p1")), "a", Ok(())),
        (with(|it| it.subjects = Some(exact("s")), of("p1")), "a2", Err(JwtError::Unproven)),
        (with(|it| it.require_expiration = true, of("p1")), "a", Err(JwtError::Unproven)),
        (with(|it| it.require_expiration = true, of("p1")), "almost", Ok(())),
        (with(|it| it.max_lifetime = Some(Duration::from_secs(100)), of("p1")), "almost", Ok(())),
        (with(|it| it.max_lifetime = Some(Duration::from_secs(100)), of("p1")), "long", Err(JwtError::Unproven)),
        (with(|it| it.max_lifetime = Some(Duration::from_secs(100)), of("p1")), "a", Err(JwtError::Unproven)),
    ] {
        assert_eq!(verdict(&jwt, word, "").map(drop), expected, "{word} {:?}", jwt.config);
    }
    assert_eq!((JwtError::Audience.status(), JwtError::Expired.status()), (403, 401));
}

fn exact(value: &str) -> crate::config::StringMatch {
    crate::config::StringMatch::Exact { value: value.to_owned(), ignore_case: false }
}

/// AN14: any, all, allow_missing and allow_missing_or_failed, as Istio nests them and alone.
#[test]
fn requirements_combine() {
    use JwtRequirement::{All, AllowMissing, AllowMissingOrFailed, Any};
    let (one, both) = (|| Any(vec![of("p1"), AllowMissing]), || All(vec![of("p1"), of("p2")]));
    let istio = || {
        let each = |name| Any(vec![of(name), AllowMissing]);
        Any(vec![of("p1"), of("p2"), All(vec![each("p1"), each("p2")])])
    };
    let (pass, user) = (Ok(None), |name: &str| Ok(Some(name.to_owned())));
    #[rustfmt::skip]
    let cases: [(JwtRequirement, &str, &str, Result<Option<String>, JwtError>); 33] = [
        (one(), "", "", pass.clone()),
        (one(), "a", "", user("A/s")),
        (one(), "forged", "", Err(JwtError::Unproven)),
        (one(), "stranger", "", Err(JwtError::Issuer)),
        (one(), "b", "", Err(JwtError::Issuer)),
        (one(), "forged", "a", Err(JwtError::Unproven)),
        (Any(vec![AllowMissing, of("p1")]), "forged", "", Err(JwtError::Unproven)),
        (Any(vec![of("p1"), AllowMissingOrFailed, AllowMissing]), "forged", "", pass.clone()),
        (Any(vec![of("p1"), AllowMissingOrFailed]), "forged", "a2", user("A/t")),
        (Any(vec![of("p1"), of("p2")]), "", "", Err(JwtError::Missing)),
        (Any(vec![of("p1"), of("p2")]), "a", "", user("A/s")),
        (Any(vec![of("p1"), of("p2")]), "b", "", user("B/s")),
        (Any(vec![of("p1"), of("p2")]), "late", "", Err(JwtError::Expired)),
        (Any(vec![of("p1"), of("p2")]), "stranger", "", Err(JwtError::Issuer)),
        (Any(vec![of("p1"), of("p2")]), "forged", "", Err(JwtError::Unproven)),
        (both(), "a", "", Err(JwtError::Missing)),
        (both(), "a", "b", Err(JwtError::Issuer)),
        (istio(), "", "", pass.clone()),
        (istio(), "a", "", user("A/s")),
        (istio(), "b", "", user("B/s")),
        (istio(), "stranger", "", Err(JwtError::Issuer)),
        (istio(), "forged", "", Err(JwtError::Unproven)),
        (istio(), "late", "", Err(JwtError::Expired)),
        (AllowMissing, "", "", pass.clone()),
        (AllowMissing, "a", "", user("A/s")),
        (AllowMissing, "b", "", user("B/s")),
        (AllowMissing, "stranger", "", Err(JwtError::Issuer)),
        (AllowMissing, "a", "forged", Err(JwtError::Unproven)),
        (AllowMissingOrFailed, "forged", "", pass.clone()),
        (AllowMissingOrFailed, "nonsense", "b", user("B/s")),
        (AllowMissingOrFailed, "soon", "", Err(JwtError::KeysPending)),
        (All(vec![of("p1"), AllowMissingOrFailed]), "a", "forged", Err(JwtError::Unproven)),
        (Any(vec![of("p1")]), "", "", Err(JwtError::Missing)),
    ];
    for (requirement, header, parameter, expected) in cases {
        let text = format!("{requirement:?} {header:?} {parameter:?}");
        assert_eq!(verdict(&two(requirement), header, parameter), expected, "{text}");
    }
}

/// AN13: the token is taken off, the application gets payload and claims, and nobody else can say them.
#[test]
fn the_application_is_told_what_was_proven() {
    let one = JwtProvider {
        payload_header: Some("X-Payload".into()),
        pad_payload: true,
        space_delimited: vec!["scope".to_owned(), "absent".to_owned()],
        claim_headers: vec![
            ("x-sub".into(), vec!["sub".to_owned()]),
            ("x-n".into(), vec!["n".to_owned()]),
            ("x-k".into(), vec!["n".to_owned(), "k".to_owned()]),
            ("x-none".into(), vec!["none".to_owned()]),
        ],
        ..provider("A")
    };
    let forging = [("x-payload", "evil"), ("x-sub", "evil"), ("x-none", "evil"), ("x-other", "fine")];
    let run = |jwt: &Jwt, token: &str| {
        let bearer = format!("Bearer {token}");
        let mut headers = forging.to_vec();
        headers.extend((!token.is_empty()).then_some(("authorization", bearer.as_str())));
        let mut parts = parts("/p", &headers);
        let decision = jwt.decide(&RequestView::of(&parts, None), 0, NOW, &table());
        let Decision::Pass(proven) = decision else { panic!("{decision:?}") };
        proven.apply(&mut parts);
        let mut left: Vec<String> =
            parts.headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        left.sort();
        (proven.claims, left)
    };
    let needs = || JwtRequirement::Any(vec![of("p1"), JwtRequirement::AllowMissing]);
    let (claims, left) = run(&jwt(vec![("p1", one.clone())], needs()), "a");
    let told = ["x-k: WzFd", "x-n: eyJrIjpbMV19", "x-other: fine", "x-payload: a===", "x-sub: s"];
    assert_eq!(left, told);
    assert_eq!(claims.at([PAYLOAD, "scope"]).unwrap().texts().collect::<Vec<_>>(), ["r", "w"]);
    assert_eq!(claims.at([PAYLOAD, "absent"]), None);

    let (claims, left) = run(&jwt(vec![("p1", one.clone())], needs()), "");
    assert!(claims.is_empty());
    assert_eq!(left, ["x-other: fine"], "forged headers never arrive");

    let (_, left) = run(&jwt(vec![("p1", JwtProvider { forward: true, ..one })], needs()), "a");
    assert_eq!(left.first().map(String::as_str), Some("authorization: Bearer a"));
}

/// AN13: rules are by path, the first counts; no rule demands nothing; preflights pass where they may.
#[test]
fn rules_mean_some_requests() {
    let path = |prefix: &str, requirement| JwtRule {
        matches: RouteMatch {
            path: PathMatch::Prefix { value: prefix.to_owned(), ignore_case: false },
            ..RouteMatch::default()
        },
        requirement,
    };
    let rules = vec![path("/open", None), path("/op", Some(of("p1")))];
    let providers = [("p1".into(), Arc::new(provider("A")))].into();
    let mut config = JwtAuthn { providers, rules, bypass_cors_preflight: true, hide_reason: false };
    let passes = |config: &JwtAuthn, parts: &Parts| {
        let jwt = Jwt::compile(&Arc::new(config.clone())).unwrap();
        matches!(jwt.decide(&RequestView::of(parts, None), 0, NOW, &table()), Decision::Pass(_))
    };
    assert!(passes(&config, &parts("/open/x", &[])));
    assert!(passes(&config, &parts("/else?/op", &[])));
    assert!(!passes(&config, &parts("/op", &[])));
    let mut preflight = parts("/op", &[("origin", "x"), ("access-control-request-method", "PUT")]);
    assert!(!passes(&config, &preflight));
    preflight.method = Method::OPTIONS;
    assert!(passes(&config, &preflight));
    config.bypass_cors_preflight = false;
    assert!(!passes(&config, &preflight));

    config.rules.push(path("/", Some(of("unknown"))));
    assert!(Jwt::compile(&Arc::new(config)).unwrap_err().message.contains("unknown"));
}
