//! Tokens of every kind at two servers that demand them, an Envoy's and ours: the same pass, the same are refused with the same
//! words, and what arrives behind both is the same.
//!
//! Both have the same `JwtAuthentication`, byte for byte. Every rule is asked with every request, over HTTP/1.1 and HTTP/2; a
//! difference that is meant has a name and a reason in [`EXPLAINED`].

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{Method, header};
use jsonwebtoken::{Algorithm, EncodingKey, crypto, jwk::Jwk};
use mesh_core::config::{Config, Inbound, MtlsMode};
use mesh_tower::Mesh;
use mesh_xds::translate;
use prost::Message;
use rcgen::KeyPair;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::{
    both::{at_will, cluster},
    knock::{Callers, Heard, Knock, Pki, Who},
    process::{Envoy, Options},
    rbac::{any, encode},
    upstream::{Arrived, Upstream, echo},
};

/// Of tests, and of no use elsewhere.
const RSA: &str = include_str!("../../mesh-tower/testdata/rsa.pem");
const SECRET: &[u8] = b"a secret of thirty-two bytes, or so";

const WHO: &[Who] = &[Who { from: 1, tls: None, http2: false }, Who { from: 1, tls: None, http2: true }];

/// Headers of requests that are compared as they arrive; the rest is how proxies speak.
const COMPARED: [&str; 14] = [
    "authorization",
    "cookie",
    "x-user",
    "x-n",
    "x-deep",
    "x-list",
    "x-flag",
    "x-payload",
    "x-user-b",
    "x-payload-e",
    "x-b",
    "x-any",
    "x-d",
    "x-e",
];

/// A request and what it is about.
struct Case {
    name: String,
    method: Method,
    /// Behind the rule's part of the path.
    path: String,
    headers: Vec<(String, Vec<u8>)>,
}

/// What became of one.
#[derive(Clone, Debug, PartialEq)]
struct Said {
    status: u16,
    /// Of refusals: the words, and the challenge.
    refusal: Option<(String, Option<String>)>,
    /// What arrived: path and headers.
    arrived: Option<(String, Vec<(String, String)>)>,
}

/// A difference that is meant, and of whom.
struct Explained {
    name: &'static str,
    is: fn(rule: &str, case: &str, envoy: &Said, ours: &Said) -> bool,
}

const EXPLAINED: &[Explained] = &[];

struct Keys {
    ec: EncodingKey,
    other: EncodingKey,
    rsa: EncodingKey,
    secret: EncodingKey,
    set: String,
    now: u64,
}

impl Keys {
    fn new() -> Self {
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

/// Rules by the first part of the path.
fn rules() -> Vec<(&'static str, Value)> {
    let one = |name: &str| json!({"provider_name": name});
    let or_none =
        |name: &str| json!({"requires_any": {"requirements": [{"provider_name": name}, {"allow_missing": {}}]}});
    let any = |list: Vec<Value>| json!({"requires_any": {"requirements": list}});
    let all = |list: Vec<Value>| json!({"requires_all": {"requirements": list}});
    vec![
        ("p1", one("p1")),
        ("p2", one("p2")),
        ("p3", one("p3")),
        ("p4", one("p4")),
        ("p5", one("p5")),
        ("aud", json!({"provider_and_audiences": {"provider_name": "p1", "audiences": ["other"]}})),
        ("or1", or_none("p1")),
        ("or2", or_none("p2")),
        ("any", any(vec![one("p1"), one("p2")])),
        ("all", all(vec![one("p1"), one("p2")])),
        ("istio", any(vec![one("p1"), one("p2"), all(vec![or_none("p1"), or_none("p2")])])),
        ("missing", json!({"allow_missing": {}})),
        ("failed", json!({"allow_missing_or_failed": {}})),
        ("anyfailed", any(vec![one("p1"), json!({"allow_missing_or_failed": {}})])),
    ]
}

fn providers(set: &str) -> Value {
    let claims = json!([
        {"header_name": "x-user", "claim_name": "sub"}, {"header_name": "x-n", "claim_name": "n"},
        {"header_name": "x-deep", "claim_name": "deep.er"}, {"header_name": "x-list", "claim_name": "list"},
        {"header_name": "x-flag", "claim_name": "flag"},
    ]);
    let keys = json!({"inline_string": set});
    json!({
        "p1": {"issuer": "A", "audiences": ["shop"], "local_jwks": keys, "payload_in_metadata": "payload",
            "claim_to_headers": claims, "forward_payload_header": "x-payload"},
        "p2": {"issuer": "B", "local_jwks": keys, "forward": true, "from_headers": [{"name": "x-b", "value_prefix": "T "}],
            "from_cookies": ["c"], "from_params": ["t"],
            "claim_to_headers": [{"header_name": "x-user-b", "claim_name": "sub"}]},
        "p3": {"local_jwks": keys, "from_headers": [{"name": "x-any"}]},
        "p4": {"issuer": "D", "local_jwks": keys, "from_headers": [{"name": "x-d"}], "require_expiration": true,
            "max_lifetime": "100s", "clock_skew_seconds": 5, "subjects": {"prefix": "ok"}},
        "p5": {"issuer": "E", "audiences": ["https://shop.example/"], "local_jwks": keys, "from_headers": [{"name": "x-e"}],
            "forward_payload_header": "x-payload-e", "pad_forward_payload_header": true},
    })
}

fn cases(keys: &Keys) -> Vec<Case> {
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

impl Said {
    fn of(heard: Heard) -> Self {
        let status = heard.status.as_u16();
        match serde_json::from_slice::<Arrived>(&heard.body) {
            Ok(arrived) => {
                let compared = |(name, _): &(String, String)| COMPARED.contains(&name.as_str());
                let headers = arrived.headers.into_iter().filter(compared).collect();
                Self { status, refusal: None, arrived: Some((arrived.path, headers)) }
            }
            Err(_) => {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                let challenge = heard.headers.get(header::WWW_AUTHENTICATE).map(|value| text(value.as_bytes()));
                Self { status, refusal: Some((text(&heard.body), challenge)), arrived: None }
            }
        }
    }
}

/// AN13, AN14: tokens say the same here as in Envoy, and what arrives is the same, by experiment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_open_the_same_doors() {
    let keys = Keys::new();
    let demands = rules();
    let rules: Vec<Value> = demands
        .iter()
        .map(|(name, requires)| json!({"match": {"prefix": format!("/{name}/")}, "requires": requires}))
        .collect();
    let jwt = any(
        "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
        json!({"providers": providers(&keys.set), "rules": rules, "bypass_cors_preflight": true}),
    );
    let filter = json!({"name": "envoy.filters.http.jwt_authn", "typed_config": jwt});
    let options = Options { filters: vec![filter.clone()], ..Options::default() };
    let Some(envoy) = Envoy::start(&options).await else { return };
    let upstream = Upstream::echo("up").await;
    envoy.clusters([at_will(cluster("up", [upstream.address()])).encode_to_vec()]).await;
    let table = json!({"name": "slot-0", "virtual_hosts": [{"name": "all", "domains": ["*"],
        "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "up"}}]}]});
    let table = encode("envoy.config.route.v3.RouteConfiguration", &table).unwrap();
    assert_eq!(envoy.routes(&[(0, table)]).await, [Ok(())]);
    let (ours, _mesh) = ours(filter).await;

    let pki = Pki::new();
    let callers = Callers::new(&pki, WHO);
    let begin = Instant::now();
    let cases = cases(&keys);
    let (mut pairs, mut passed) = (0, 0);
    let mut explained: BTreeMap<&str, usize> = BTreeMap::new();
    let mut differing: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (rule, _) in &demands {
        for case in &cases {
            for who in 0..WHO.len() {
                let path = format!("/{rule}/x{}", case.path);
                let (method, headers) = (case.method.clone(), case.headers.clone());
                let knock = Knock { who, method, authority: "shop".to_owned(), path, headers };
                let (of_envoy, of_ours) =
                    tokio::join!(callers.ask(envoy.address(0), &knock), callers.ask(ours, &knock));
                let said = |heard: Result<Heard, String>| {
                    heard.map(Said::of).unwrap_or_else(|error| Said {
                        status: 0,
                        refusal: Some((error, None)),
                        arrived: None,
                    })
                };
                let (of_envoy, of_ours) = (said(of_envoy), said(of_ours));
                pairs += 1;
                passed += usize::from(of_envoy.status == 200);
                if of_envoy == of_ours {
                    continue;
                }
                match EXPLAINED.iter().find(|why| (why.is)(rule, &case.name, &of_envoy, &of_ours)) {
                    Some(why) => *explained.entry(why.name).or_default() += 1,
                    None => differing
                        .entry(format!("{}\n    Envoy {of_envoy:?}\n    ours  {of_ours:?}", case.name))
                        .or_default()
                        .push(format!("{rule} {who}")),
                }
            }
        }
    }
    println!("{pairs} pairs in {:?}, {passed} passed Envoy, explained: {explained:?}", begin.elapsed());
    let told: Vec<String> = differing.iter().map(|(what, of)| format!("{what}\n    under {}", of.join(", "))).collect();
    assert!(told.is_empty(), "{} differences\n{}", told.len(), told.join("\n"));
    assert!(passed * 10 > pairs && passed * 10 < pairs * 9, "{passed} of {pairs} pass, which shows little");
    let unused: Vec<&str> = EXPLAINED.iter().map(|why| why.name).filter(|name| !explained.contains_key(name)).collect();
    assert!(unused.is_empty(), "nothing needs these explanations: {unused:?}");
}

/// A server of ours with this filter, which answers with what arrived.
async fn ours(filter: Value) -> (SocketAddr, Mesh) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = any("envoy.extensions.filters.http.router.v3.Router", json!({}));
    let kind = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let manager = any(
        kind,
        json!({"stat_prefix": "x", "http_filters": [filter, {"name": "envoy.filters.http.router", "typed_config": router}],
            "route_config": {"name": "in", "virtual_hosts": [{"name": "all", "domains": ["*"],
                "routes": [{"match": {"prefix": "/"}, "non_forwarding_action": {}}]}]}}),
    );
    let decoded = encode(
        "envoy.config.listener.v3.Listener",
        &json!({"name": "virtualInbound", "address": {"socket_address": {"address": "0.0.0.0", "port_value": 15006}},
            "filter_chains": [{
                "filter_chain_match": {"destination_port": address.port(), "transport_protocol": "raw_buffer"},
                "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}]}),
    );
    let decoded = translate::listener(&Bytes::from(decoded.unwrap())).unwrap();
    assert!(decoded.ignored.is_empty(), "{:?}", decoded.ignored);
    let translate::Listener::Inbound(ports) = decoded.value else { panic!("not inbound") };
    let inbound = |inbound: Arc<Inbound>| Inbound { mtls: MtlsMode::Disable, ..Arc::unwrap_or_clone(inbound) };
    let config = Config {
        inbound: ports.into_iter().map(|(port, it)| (port, Arc::new(inbound(it)))).collect(),
        ..Config::default()
    };
    let mesh = Mesh::builder().config(config).build().await.unwrap();
    let handler = tower::service_fn(|request: http::Request<mesh_tower::server::RequestBody>| async move {
        let (parts, _) = request.into_parts();
        let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let mut headers: Vec<(String, String)> =
            parts.headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect();
        headers.sort_by(|(a, _), (b, _)| a.cmp(b));
        let path = parts.uri.path_and_query().map_or_else(String::new, ToString::to_string);
        let arrived = Arrived {
            upstream: String::new(),
            version: String::new(),
            method: parts.method.to_string(),
            path,
            authority: String::new(),
            headers,
            body: String::new(),
        };
        Ok::<_, std::convert::Infallible>(echo(&arrived))
    });
    let serving = mesh.clone();
    tokio::spawn(async move { drop(serving.serve_listener(listener, handler).await) });
    (address, mesh)
}
