//! Tokens of end users at a server: which requests get through, what the application sees, what a refused caller hears.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{Router, routing::any};
use http::Request;
use jsonwebtoken::{Algorithm, EncodingKey, Header, jwk::Jwk};
use mesh_core::config::{Guard, JwtAuthn, JwtKeys, JwtProvider, JwtRequirement, JwtRule};
use mesh_tower::{
    Mesh,
    config::{Action, Config, Forward, Inbound, MtlsMode, RouteMatch, RouteTable, VirtualHost},
};
use rcgen::KeyPair;
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::harness::{Kind, Program, Reply, Upstream, cluster, cluster_at, config, route, to};

/// Who makes tokens.
pub(crate) struct Issuer {
    key: EncodingKey,
    set: &'static str,
}

impl Issuer {
    pub(crate) fn new(kid: &str) -> Self {
        let key = EncodingKey::from_ec_der(KeyPair::generate().unwrap().serialized_der());
        let mut jwk = serde_json::to_value(Jwk::from_encoding_key(&key, Algorithm::ES256).unwrap()).unwrap();
        jwk["kid"] = kid.into();
        Self { key, set: json!({ "keys": [jwk] }).to_string().leak() }
    }

    pub(crate) fn key(&self) -> &EncodingKey {
        &self.key
    }

    /// What it publishes.
    pub(crate) fn keys(&self) -> &'static str {
        self.set
    }

    pub(crate) fn token(&self, claims: &Value) -> String {
        let header = Header { kid: Some("k".to_owned()), ..Header::new(Algorithm::ES256) };
        jsonwebtoken::encode(&header, claims, &self.key).unwrap()
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// As Istio demands it: a token need not be there, and must be good.
pub(crate) fn demanding(provider: JwtProvider, optional: bool) -> JwtAuthn {
    let one = JwtRequirement::Provider { name: "origins-0".into(), audiences: None };
    let requirement = if optional { JwtRequirement::Any(vec![one, JwtRequirement::AllowMissing]) } else { one };
    JwtAuthn {
        providers: [("origins-0".into(), Arc::new(provider))].into(),
        rules: vec![JwtRule { requirement: Some(requirement), ..JwtRule::default() }],
        bypass_cors_preflight: true,
        hide_reason: false,
    }
}

/// What the application saw: path and headers.
type Seen = Arc<Mutex<Vec<(String, http::HeaderMap)>>>;

/// A server with guards, and a program that calls it.
struct Both {
    program: Program,
    seen: Seen,
    _mesh: Mesh,
    task: JoinHandle<()>,
}

impl Drop for Both {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Both {
    async fn start(
        kind: Kind,
        guards: Vec<Guard>,
        clusters: impl IntoIterator<Item = mesh_core::config::Cluster>,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut own = Config {
            clusters: clusters.into_iter().map(|cluster| (cluster.name.clone(), Arc::new(cluster))).collect(),
            ..Config::default()
        };
        let host = VirtualHost {
            name: "all".into(),
            domains: vec!["*".to_owned()],
            routes: vec![route(RouteMatch::default(), Action::NonForwarding)],
            ..VirtualHost::default()
        };
        let routes = Arc::new(RouteTable { virtual_hosts: vec![Arc::new(host)], ..RouteTable::default() });
        let inbound = Inbound { mtls: MtlsMode::Disable, guards, routes, ..Inbound::default() };
        own.inbound.insert(address.port(), Arc::new(inbound));
        let mesh = Mesh::builder().config(own).build().await.unwrap();
        let seen = Seen::default();
        let noting = Arc::clone(&seen);
        let handler = Router::new().fallback(any(move |request: Request<axum::body::Body>| {
            noting.lock().unwrap().push((request.uri().to_string(), request.headers().clone()));
            async { [("grpc-status", "0")] }
        }));
        let serving = mesh.clone();
        let task = tokio::spawn(async move { serving.serve_listener(listener, handler).await.unwrap() });
        let forward = Forward { timeout: None, ..to("app") };
        let routes = vec![route(RouteMatch::default(), Action::Forward(forward))];
        let program = Program::new(kind, config([cluster_at(kind, "app", &[address])], routes)).await;
        Self { program, seen, _mesh: mesh, task }
    }

    fn seen(&self) -> Vec<(String, http::HeaderMap)> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

/// AN13: good tokens pass, are taken off and told to the application; bad ones hear 401 or 403 and why; none passes where it
/// may.
#[tokio::test]
async fn tokens_are_verified_where_they_are_served() {
    for kind in Kind::ALL {
        let issuer = Issuer::new("k");
        let provider = JwtProvider {
            issuer: "https://issuer".to_owned(),
            audiences: vec!["shop".to_owned()],
            keys: JwtKeys::Inline(issuer.set.into()),
            payload_name: Some("payload".to_owned()),
            payload_header: Some("x-payload".into()),
            claim_headers: vec![("x-user".into(), vec!["sub".to_owned()])],
            ..JwtProvider::default()
        };
        let guards = |optional| vec![Guard::Jwt(Arc::new(demanding(provider.clone(), optional)))];
        let (may, must) = (Both::start(kind, guards(true), []).await, Both::start(kind, guards(false), []).await);
        let claims = |change: Value| {
            let mut claims = json!({"iss": "https://issuer", "sub": "jason", "aud": ["shop"], "exp": now() + 600});
            claims.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            issuer.token(&claims)
        };
        let bearer = |token: &str| format!("Bearer {token}");
        let good = claims(json!({}));
        for _ in 0..2 {
            let headers = [("authorization", &*bearer(&good)), ("x-user", "admin"), ("x-other", "1")];
            assert!(may.program.get_with("/a.B/C", &headers).await.is_ok(), "{kind:?}");
            let [(_, headers)]: [_; 1] = may.seen().try_into().unwrap();
            assert!(!headers.contains_key("authorization"), "{kind:?}");
            assert_eq!(headers.get_all("x-user").iter().collect::<Vec<_>>(), ["jason"]);
            assert_eq!(headers["x-payload"].to_str().unwrap(), good.split('.').nth(1).unwrap());
            assert_eq!(headers["x-other"], "1");
        }
        assert!(may.program.get(&format!("/a.B/C?x=1&access_token={good}&y=2")).await.is_ok(), "{kind:?}");
        assert!(may.seen()[0].0.ends_with("/a.B/C?x=1&y=2"));
        assert!(may.program.get_with("/a.B/C", &[("x-user", "admin")]).await.is_ok(), "{kind:?}: none is fine");
        assert!(!may.seen()[0].1.contains_key("x-user"), "what only we may say is not believed");
        let none = must.program.get("/a.B/C").await;
        assert!(none.is(kind, 401), "{kind:?}: {none:?}");
        assert_eq!(none.header("www-authenticate"), "Bearer realm=\"http://app/a.B/C\"");

        let (stranger, forger) = (claims(json!({"iss": "https://other"})), Issuer::new("k"));
        let forged = forger.token(&json!({"iss": "https://issuer", "aud": "shop"}));
        for (token, status, why) in [
            (claims(json!({"exp": now() - 120})), 401, "Jwt is expired"),
            (claims(json!({"nbf": now() + 120})), 401, "Jwt not yet valid"),
            (claims(json!({"aud": ["bank"]})), 403, "Audiences in Jwt are not allowed"),
            (stranger, 401, "Jwt issuer is not configured"),
            (forged, 401, "Jwt verification fails"),
            (
                "nonsense".to_owned(),
                401,
                "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections",
            ),
        ] {
            for both in [&may, &must] {
                let answer = both.program.get_with("/a.B/C", &[("authorization", &*bearer(&token))]).await;
                assert!(answer.is(kind, status), "{kind:?} {why}: {answer:?}");
                let said = if kind.is_grpc() { answer.header("grpc-message") } else { answer.body.clone() };
                assert_eq!(said, why, "{kind:?}");
                let challenge = answer.header("www-authenticate");
                assert_eq!(challenge, "Bearer realm=\"http://app/a.B/C\", error=\"invalid_token\"", "{kind:?} {why}");
            }
            // Beside a good one.
            let two = format!("/a.B/C?access_token={token}");
            let answer = may.program.get_with(&two, &[("authorization", &*bearer(&good))]).await;
            assert!(answer.is(kind, status), "{kind:?} {why} beside a good one: {answer:?}");
        }
        assert!(may.seen().is_empty() && must.seen().is_empty(), "{kind:?}");
    }
}

/// AN13: keys are fetched through a cluster of the mesh; while they cannot be, every token is refused.
#[tokio::test]
async fn keys_are_fetched_over_the_mesh() {
    for kind in Kind::ALL {
        let issuer = Issuer::new("k");
        let set = issuer.set;
        let keys = Upstream::scripted("keys", move |_, _| Reply::ok().header("x", "1").text(set)).await;
        let provider = |path: &str| JwtProvider {
            issuer: "I".to_owned(),
            keys: JwtKeys::Remote {
                uri: format!("https://issuer.example.com{path}"),
                cluster: "issuer".into(),
                timeout: Duration::from_secs(20),
                refresh: Duration::from_secs(600),
            },
            ..JwtProvider::default()
        };
        let guards = |provider| vec![Guard::Jwt(Arc::new(demanding(provider, false)))];
        let both = Both::start(kind, guards(provider("/keys")), [cluster(Kind::Http1, "issuer", &[&keys])]).await;
        let bearer = format!("Bearer {}", issuer.token(&json!({"iss": "I", "exp": now() + 600})));
        for _ in 0..3 {
            let answer = both.program.get_with("/a.B/C", &[("authorization", &bearer)]).await;
            assert!(answer.is_ok(), "{kind:?}: {answer:?}");
        }
        let [asked]: [_; 1] = keys.arrivals().try_into().unwrap();
        assert_eq!((asked.authority.as_str(), asked.path.as_str()), ("issuer.example.com", "/keys"));

        let lost = Both::start(kind, guards(provider("/keys")), []).await;
        let answer = lost.program.get_with("/a.B/C", &[("authorization", &bearer)]).await;
        assert!(answer.is(kind, 401) && lost.seen().is_empty(), "{kind:?}: {answer:?}");
    }
}
