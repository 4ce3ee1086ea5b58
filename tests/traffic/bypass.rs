//! Every known way round authorization, each with where it was seen: whatever a caller writes, the application gets only what
//! the rules were asked about and allowed.
//!
//! The rules: `/admin` is denied by name, hosts and roles too, and nothing but GET below `/public` is allowed. A row holds if
//! the application either sees nothing, or sees a path below `/public` in the form the rules saw.

use std::{net::SocketAddr, sync::Arc};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use mesh_tower::{
    Mesh,
    config::{
        Action, Condition, EscapedSlashes, Guard, HeaderMatch, HeaderMatcher, Inbound, MtlsMode, PathNormalization,
        RbacAction, RouteMatch, RouteTable, StringMatch, VirtualHost,
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Duration, timeout},
};

use crate::{
    authorization::{caller, enforced, guarded, header, rules, starts},
    floods::{frame, greeting},
    harness::{Kind, Upstream, cluster, config, route, to},
    tokens::{Issuer, demanding},
};

const DECODE: PathNormalization =
    PathNormalization { dot_segments: true, merge_slashes: true, escaped_slashes: EscapedSlashes::Forward };

/// A host, with any port or none, as Istio wants it written: twice.
fn host(name: &str) -> Condition {
    let (alone, with_port) = (name.to_owned(), format!("{name}:"));
    Condition::One(vec![
        authority(StringMatch::Exact { value: alone, ignore_case: true }),
        authority(StringMatch::Prefix { value: with_port, ignore_case: true }),
    ])
}

fn authority(value: StringMatch) -> Condition {
    Condition::Header(HeaderMatch {
        name: ":authority".into(),
        matcher: HeaderMatcher::Value(value),
        invert: false,
        missing_as_empty: false,
    })
}

fn guards() -> Vec<Guard> {
    let denied = vec![
        starts("/admin"),
        starts("/public/secret"),
        host("admin.example.com"),
        header("x-role", "admin"),
        // Only the mesh's own addresses, which nobody here has.
        Condition::RemoteIp("10.0.0.0/8".parse().unwrap()),
    ];
    let allowed = Condition::All(vec![starts("/public"), header(":method", "GET")]);
    vec![enforced(rules(RbacAction::Deny, "deny", denied)), enforced(rules(RbacAction::Allow, "allow", vec![allowed]))]
}

/// Source, path, whether slashes are decoded and merged, and what the application sees, if anything.
const PATHS: &[(&str, &str, bool, Option<&str>)] = &[
    ("plain", "/public/a", false, Some("/public/a")),
    ("plain", "/admin", false, None),
    ("CVE-2019-9901", "/public/../admin", false, None),
    ("CVE-2019-9901", "/public/./../admin/x", false, None),
    ("CVE-2019-9901", "/public/%2e%2e/admin", false, None),
    ("CVE-2019-9901", "/public/.%2E/admin", false, None),
    ("CVE-2019-9901", "/public/a/../../admin", false, None),
    ("CVE-2019-9901", "/public/a/../b", false, Some("/public/b")),
    ("CVE-2021-31920", "//admin", false, None),
    ("CVE-2021-31920", "/public//secret", true, None),
    ("CVE-2021-31920", "//public/secret", true, None),
    ("CVE-2021-29492", "/public%2f..%2fadmin", true, None),
    ("CVE-2021-29492", "/public/%5c../%5csecret", true, None),
    ("CVE-2021-29492", "/public%2Fsecret", true, None),
    ("CVE-2021-29492", "/public/a%2fb", true, Some("/public/a/b")),
    ("CVE-2021-29492", "/public/a%2fb", false, Some("/public/a%2fb")),
    ("RFC 3986 6.2.2", "/%61dmin", false, None),
    ("RFC 3986 6.2.2", "/public/%73ecret", false, None),
    ("CVE-2019-9901", "/public/%00/../../admin", false, None),
    ("nested escapes", "/public/%7%33ecret", false, Some("/public/%2573ecret")),
    ("nested escapes", "/public/%2%65%2%65/admin", false, Some("/public/%252e%252e/admin")),
    ("nested escapes", "/public/%%32e%%32e/admin", true, Some("/public/%252e%252e/admin")),
    ("CVE-2026-73511", "/admin;x=/public", false, None),
    ("CVE-2026-73511", "/public;/../admin", false, None),
    ("query", "/public?/../admin", false, Some("/public?/../admin")),
    ("case", "/Public/secret", false, None),
];

/// Where rules stand that a trick might get round.
#[derive(Clone, Copy, Debug)]
enum Door {
    /// At a workload's own port.
    Workload,
    /// At a gateway's.
    Gateway,
}

impl Door {
    const ALL: [Self; 2] = [Self::Workload, Self::Gateway];

    async fn guarded(self, kind: Kind, path: PathNormalization, guards: Vec<Guard>) -> (Upstream, SocketAddr, Mesh) {
        if let Self::Workload = self {
            return guarded(kind, &Upstream::start("authz").await, path, guards).await;
        }
        let app = Upstream::start("app").await;
        let host = VirtualHost {
            name: "all".into(),
            domains: vec!["*".to_owned()],
            routes: vec![route(RouteMatch::default(), Action::Forward(to("app")))],
            ..VirtualHost::default()
        };
        let table = RouteTable { virtual_hosts: vec![Arc::new(host)], ..RouteTable::default() };
        let inbound = Inbound { mtls: MtlsMode::Disable, guards, path, members_forward: false, ..Inbound::default() };
        let mut own = config([cluster(kind, "app", &[&app])], Vec::new());
        own.outbound.insert(80, Arc::new(table));
        own.inbound.insert(80, Arc::new(inbound));
        let mesh = Mesh::builder().config(own).build().await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, edge) = (listener.local_addr().unwrap(), mesh.clone());
        tokio::spawn(async move { edge.gateway_listener(listener, 80).await });
        (app, address, mesh)
    }
}

/// SV11, AZ3, GW1: ways to write a path, over HTTP/1.1, HTTP/2 and gRPC, to a workload and to a gateway.
#[tokio::test]
async fn no_way_to_write_a_path_gets_round() {
    let doors = Door::ALL.into_iter().flat_map(|door| Kind::ALL.map(|kind| (door, kind)));
    for (door, kind) in doors {
        for decode in [false, true] {
            let path = if decode { DECODE } else { PathNormalization::BASE };
            // A gRPC call is a POST.
            let method = if kind.is_grpc() { "POST" } else { "GET" };
            let mut guards = guards();
            guards.pop();
            let allowed = Condition::All(vec![starts("/public"), header(":method", method)]);
            guards.push(enforced(rules(RbacAction::Allow, "allow", vec![allowed])));
            let (app, address, _mesh) = door.guarded(kind, path, guards).await;
            let program = caller(kind, address).await;
            for (source, path, _, seen) in PATHS.iter().filter(|row| row.2 == decode) {
                let before = app.count();
                let answer = program.get(path).await;
                match seen {
                    None => {
                        assert_eq!(app.count(), before, "{door:?} {kind:?} {source}: {path} gave {}", answer.status)
                    }
                    Some(seen) => assert_eq!(app.last().path, *seen, "{door:?} {kind:?} {source}: {path}"),
                }
            }
        }
    }
}

/// Source, the bytes of a request in HTTP/1.1, and the status of the first answer; 0 is none at all.
const RAW: &[(&str, &[u8], u16)] = &[
    ("plain", b"GET /public HTTP/1.1\r\nhost: a\r\n\r\n", 200),
    ("CVE-2026-33186", b"GET admin HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    ("CVE-2019-9901", b"GET /public\\..\\admin HTTP/1.1\r\nhost: a\r\n\r\n", 403),
    ("CVE-2021-32779", b"GET /admin#/public HTTP/1.1\r\nhost: a\r\n\r\n", 403),
    ("CVE-2021-32779", b"GET /public#/../admin HTTP/1.1\r\nhost: a\r\n\r\n", 200),
    ("CVE-2021-43824", b"CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n", 404),
    ("asterisk", b"GET * HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    ("method case", b"get /public HTTP/1.1\r\nhost: a\r\n\r\n", 403),
    ("method", b"POST /public HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n", 403),
    ("gRFC A41", b"GET /public HTTP/1.1\r\nhost: a\r\nhost: admin.example.com\r\n\r\n", 400),
    ("gRFC A41", b"GET /public HTTP/1.1\r\n\r\n", 400),
    ("no host in HTTP/1.0", b"GET /public HTTP/1.0\r\n\r\n", 400),
    ("no host in HTTP/1.0", b"GET /public HTTP/1.0\r\nhost:\r\n\r\n", 400),
    ("gRFC A41", b"GET http://a/public HTTP/1.1\r\nhost: admin.example.com\r\n\r\n", 400),
    ("gRFC A41", b"GET http://admin.example.com/public HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    ("user name", b"GET /public HTTP/1.1\r\nhost: a@admin.example.com\r\n\r\n", 400),
    ("several hosts", b"GET /public HTTP/1.1\r\nhost: a, admin.example.com\r\n\r\n", 400),
    ("CVE-2021-39155", b"GET /public HTTP/1.1\r\nhost: ADMIN.example.COM\r\n\r\n", 403),
    ("port in authority", b"GET /public HTTP/1.1\r\nhost: admin.example.com:80\r\n\r\n", 403),
    (
        "port in authority",
        b"GET http://admin.example.com:8080/public HTTP/1.1\r\nhost: admin.example.com:8080\r\n\r\n",
        403,
    ),
    ("port in authority", b"GET /public HTTP/1.1\r\nhost: admin.example.com.:80\r\n\r\n", 400),
    ("port in authority", b"GET /public HTTP/1.1\r\nhost: a:80\r\n\r\n", 200),
    ("trailing dot", b"GET /public HTTP/1.1\r\nhost: admin.example.com.\r\n\r\n", 400),
    ("GO-2026-6441", b"GET /public HTTP/1.1\r\nhost: a\r\nX-ROLE: admin\r\n\r\n", 403),
    ("CVE-2026-26308", b"GET /public HTTP/1.1\r\nhost: a\r\nx-role: user\r\nx-role: admin\r\n\r\n", 403),
    ("CVE-2026-73552", b"GET /public HTTP/1.1\r\nhost: a\r\nx-role: \xffadmin\r\n\r\n", 403),
    ("header space", b"GET /public HTTP/1.1\r\nhost: a\r\nx-role : admin\r\n\r\n", 400),
    ("header fold", b"GET /public HTTP/1.1\r\nhost: a\r\nx-role: user\r\n admin\r\n\r\n", 400),
    ("hop by hop", b"GET /public HTTP/1.1\r\nhost: a\r\nx-role: admin\r\nconnection: x-role\r\n\r\n", 403),
    (
        "CVE-2024-45806",
        b"GET /admin HTTP/1.1\r\nhost: a\r\nx-forwarded-for: 192.0.2.1\r\nx-envoy-internal: true\r\n\r\n",
        403,
    ),
    ("CVE-2023-27487", b"GET /admin HTTP/1.1\r\nhost: a\r\nx-envoy-original-path: /public\r\n\r\n", 403),
    (
        "method override",
        b"GET /admin HTTP/1.1\r\nhost: a\r\nx-original-url: /public\r\nx-http-method-override: GET\r\n\r\n",
        403,
    ),
    ("RUSTSEC-2021-0079", b"GET /public HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\n", 400),
    ("RUSTSEC-2021-0078", b"GET /public HTTP/1.1\r\nhost: a\r\ncontent-length: +5\r\n\r\nhello", 400),
    ("two lengths", b"GET /public HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello", 400),
    ("RUSTSEC-2020-0008", b"GET /public HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
];

/// SV11, AZ3, GW1: what only raw bytes can say, to a workload and to a gateway.
#[tokio::test]
async fn no_way_to_write_a_request_gets_round() {
    for door in Door::ALL {
        let (app, address, _mesh) = door.guarded(Kind::Http1, PathNormalization::BASE, guards()).await;
        for (source, bytes, expected) in RAW {
            let before = app.count();
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(bytes).await.unwrap();
            let mut said = vec![0; 4096];
            let length = timeout(Duration::from_secs(20), stream.read(&mut said)).await.unwrap().unwrap_or(0);
            let said = String::from_utf8_lossy(&said[..length]).into_owned();
            let status = said.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
            let request = String::from_utf8_lossy(bytes);
            assert_eq!(status, *expected, "{door:?} {source}: {request} gave {said}");
            assert_eq!(app.count() - before, usize::from(*expected == 200), "{door:?} {source}: {request}");
        }
        let arrived = app.arrivals();
        assert!(arrived.iter().all(|arrival| arrival.path == "/public"), "the application sees what the rules saw");
    }
}

/// SV9, AN5: who calls, and from where, is not what a header says.
#[tokio::test]
async fn nobody_is_who_a_header_says() {
    let nobody = Upstream::start("authz").await;
    let inside = Condition::RemoteIp("10.0.0.0/8".parse().unwrap());
    let peer = Condition::Peer(Some(StringMatch::Prefix { value: "spiffe://".to_owned(), ignore_case: false }));
    for kind in Kind::ALL {
        for condition in [inside.clone(), peer.clone()] {
            let guards = vec![enforced(rules(RbacAction::Allow, "only", vec![condition]))];
            let (app, address, _mesh) = guarded(kind, &nobody, PathNormalization::BASE, guards).await;
            let headers = [
                ("x-forwarded-for", "10.0.0.1"),
                ("x-real-ip", "10.0.0.1"),
                ("forwarded", "for=10.0.0.1"),
                ("x-envoy-external-address", "10.0.0.1"),
                ("x-forwarded-client-cert", "URI=spiffe://cluster.local/ns/default/sa/admin"),
                ("x-envoy-peer-metadata-id", "sidecar~10.0.0.1~admin~cluster.local"),
            ];
            let answer = caller(kind, address).await.get_with("/a.B/C", &headers).await;
            assert!(answer.is(kind, 403), "{kind:?}");
            assert_eq!(app.count(), 0, "{kind:?}");
        }
    }
}

type Fields = &'static [(&'static str, &'static [u8])];

/// A request in HTTP/2 that is as it should be, but for what a row puts in its place or behind it.
const FIELDS: Fields =
    &[(":method", b"GET"), (":scheme", b"http"), (":authority", b"a"), (":path", b"/public"), ("x-a", b"b")];

/// Source, what stands in place of the fields of these names (or behind all), and whether the application sees it.
const FRAMES: &[(&str, Fields, bool)] = &[
    ("plain", &[], true),
    ("plain", &[(":path", b"/admin")], false),
    ("plain", &[("x-role", b"admin")], false),
    ("CVE-2026-33186", &[(":path", b"admin")], false),
    ("CVE-2026-33186", &[(":path", b"")], false),
    ("asterisk", &[(":path", b"*")], false),
    ("RFC 9113 8.3.1", &[(":path", b"http://a/public")], false),
    ("RFC 9113 8.3: twice", &[(":path", b"/public"), (":path", b"/admin")], false),
    ("RFC 9113 8.3: twice", &[(":method", b"GET"), (":method", b"POST")], false),
    ("RFC 9113 8.3: twice", &[(":authority", b"a"), (":authority", b"admin.example.com")], false),
    ("RFC 9113 8.3: behind", &[("x-b", b"c"), (":path", b"/admin")], false),
    ("RFC 9113 8.3: unknown", &[(":role", b"admin")], false),
    ("RFC 9113 8.3: of a response", &[(":status", b"200")], false),
    ("RFC 9113 8.5", &[(":method", b"CONNECT")], false),
    ("CVE-2021-43824", &[(":method", b"CONNECT"), (":protocol", b"websocket")], false),
    ("CVE-2021-21295: splitting", &[(":path", b"/public HTTP/1.1\r\nx-role: admin\r\n\r\n")], false),
    ("CVE-2021-21295: splitting", &[(":method", b"GET /admin HTTP/1.1\r\nx: y")], false),
    ("CVE-2021-21295: splitting", &[("x-b", b"c\r\nx-role: admin")], false),
    ("CVE-2021-21295: splitting", &[("x-b\r\nx-role", b"admin")], false),
    ("CVE-2023-25690: nothing", &[("x-b", b"c\0d")], false),
    ("RFC 9113 8.2.1: capitals", &[("X-Role", b"admin")], false),
    ("RFC 9113 8.2.1: space", &[("x-role ", b"admin")], false),
    ("RFC 9113 8.2.2: hop by hop", &[("connection", b"x-role")], false),
    ("RFC 9113 8.2.2: hop by hop", &[("transfer-encoding", b"chunked")], false),
    ("RFC 9113 8.2.2: hop by hop", &[("upgrade", b"h2c")], false),
    ("RFC 9113 8.2.2: hop by hop", &[("te", b"gzip")], false),
    ("CVE-2021-39155", &[(":authority", b"ADMIN.example.COM")], false),
    ("port in authority", &[(":authority", b"admin.example.com:80")], false),
    ("port in authority", &[(":authority", b"a:80")], true),
    ("trailing dot", &[(":authority", b"admin.example.com.")], false),
    ("user name", &[(":authority", b"a@admin.example.com")], false),
    ("gRFC A41", &[("host", b"admin.example.com")], false),
    ("gRFC A41", &[("host", b"a"), ("host", b"admin.example.com")], false),
    ("CVE-2026-26308", &[("x-role", b"user"), ("x-role", b"admin")], false),
    ("CVE-2026-73552", &[("x-role", b"\xffadmin")], false),
    ("CVE-2024-45806", &[(":path", b"/admin"), ("x-envoy-internal", b"true")], false),
    ("CVE-2023-27487", &[(":path", b"/admin"), ("x-envoy-original-path", b"/public")], false),
    ("method override", &[(":path", b"/admin"), ("x-original-url", b"/public")], false),
];

/// SV11, AZ3, GW1: what only raw frames of HTTP/2 can say, to a workload and to a gateway.
#[tokio::test]
async fn no_way_to_write_frames_gets_round() {
    for door in Door::ALL {
        frames_at(door).await;
    }
}

async fn frames_at(door: Door) {
    let (app, address, _mesh) = door.guarded(Kind::Http2, PathNormalization::BASE, guards()).await;
    for (source, fields, passes) in FRAMES {
        // In place of the first of its name; what has no namesake, or comes again, stands behind.
        let mut all: Vec<(&str, &[u8])> = FIELDS.to_vec();
        let mut placed: Vec<&str> = Vec::new();
        for (name, value) in *fields {
            match all
                .iter_mut()
                .find(|(known, _)| known == name && !placed.contains(name) && *source != "RFC 9113 8.3: behind")
            {
                Some(field) => field.1 = value,
                None => all.push((name, value)),
            }
            placed.push(name);
        }
        let mut block = Vec::new();
        for (name, value) in &all {
            // A literal without indexing, lengths below 127.
            block.extend([0, u8::try_from(name.len()).unwrap()]);
            block.extend(name.as_bytes());
            block.push(u8::try_from(value.len()).unwrap());
            block.extend(*value);
        }
        let before = app.count();
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&[greeting(), frame(1, 5, 1, &block)].concat()).await.unwrap();
        // Until there is a word of it: a response, a reset, or the end.
        let mut said = Vec::new();
        let mut piece = [0; 4096];
        while !told(&said) {
            match timeout(Duration::from_secs(20), stream.read(&mut piece)).await.unwrap() {
                Ok(count @ 1..) => said.extend_from_slice(&piece[..count]),
                Ok(_) | Err(_) => break,
            }
        }
        assert_eq!(app.count() - before, usize::from(*passes), "{door:?} {source}: {fields:?}");
    }
    assert!(app.arrivals().iter().all(|arrival| arrival.path == "/public" && arrival.header("x-role").is_empty()));
}

/// Is there a HEADERS, a RST_STREAM or a GOAWAY among these frames?
fn told(mut bytes: &[u8]) -> bool {
    while let [a, b, c, kind, rest @ ..] = bytes {
        if matches!(kind, 1 | 3 | 7) {
            return true;
        }
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        match rest.get(5 + length..) {
            Some(next) => bytes = next,
            None => return false,
        }
    }
    false
}

/// Source, the token's header, its payload if it is another, and how it ends: `own` is a forger's own signature, `good` the
/// issuer's of another token, `secret` a signature with the public key for a secret.
const TOKENS: &[(&str, &str, Option<&str>, &str)] = &[
    ("CVE-2015-9235", r#"{"alg":"none"}"#, None, ""),
    ("CVE-2015-9235", r#"{"alg":"nOnE","kid":"k"}"#, None, "good"),
    ("CVE-2015-9235", r#"{"alg":"HS256","kid":"k"}"#, None, "secret"),
    ("RFC 8725 3.1", r#"{"alg":"ES384","kid":"k"}"#, None, "good"),
    ("RFC 8725 3.1", r#"{"alg":["ES256"],"kid":"k"}"#, None, "good"),
    ("RFC 8725 3.1", r#"{"kid":"k"}"#, None, "good"),
    ("kid", r#"{"alg":"ES256","kid":"../../../../dev/null"}"#, None, "own"),
    ("kid", r#"{"alg":"ES256","kid":"k' OR '1'='1"}"#, None, "own"),
    ("kid", r#"{"alg":"ES256","kid":""}"#, None, "own"),
    ("kid", r#"{"alg":"ES256"}"#, None, "own"),
    ("CVE-2018-0114", r#"{"alg":"ES256","kid":"k","jwk":{}}"#, None, "own"),
    ("RFC 8725 3.10", r#"{"alg":"ES256","jku":"http://127.0.0.1/keys"}"#, None, "own"),
    ("RFC 7515 4.1.11", r#"{"alg":"ES256","kid":"k","crit":["exp"]}"#, None, "good"),
    ("payload", r#"{"alg":"ES256","kid":"k"}"#, Some(r#"{"iss":"https://issuer","sub":"admin"}"#), "good"),
    ("two payloads", r#"{"alg":"ES256","alg":"none","kid":"k"}"#, None, ""),
];

/// AN13, AZ5: no way to write a token makes it one, over HTTP/1.1, HTTP/2 and gRPC; one that is good passes beside them.
#[tokio::test]
async fn no_way_to_write_a_token_gets_round() {
    let issuer = Issuer::new("k");
    let forger = Issuer::new("k");
    let claims = serde_json::json!({"iss": "https://issuer", "sub": "jason"});
    let good = issuer.token(&claims);
    let [_, payload, signature] = good.split('.').collect::<Vec<_>>().try_into().unwrap();
    let signed = |issuer: &Issuer, text: &str| {
        jsonwebtoken::crypto::sign(text.as_bytes(), issuer.key(), jsonwebtoken::Algorithm::ES256).unwrap()
    };
    let forge = |header: &str, other: Option<&str>, end: &str| {
        let payload = other.map_or_else(|| payload.to_owned(), |other| URL_SAFE_NO_PAD.encode(other));
        let text = format!("{}.{payload}", URL_SAFE_NO_PAD.encode(header));
        let end = match end {
            "own" => signed(&forger, &text),
            "secret" => {
                let secret = jsonwebtoken::EncodingKey::from_secret(issuer.keys().as_bytes());
                jsonwebtoken::crypto::sign(text.as_bytes(), &secret, jsonwebtoken::Algorithm::HS256).unwrap()
            }
            "good" => signature.to_owned(),
            _ => String::new(),
        };
        format!("{text}.{end}")
    };
    let provider = mesh_core::config::JwtProvider {
        issuer: "https://issuer".to_owned(),
        keys: mesh_core::config::JwtKeys::Inline(issuer.keys().into()),
        ..Default::default()
    };
    let guards = vec![Guard::Jwt(Arc::new(demanding(provider, false)))];
    for kind in Kind::ALL {
        let nobody = Upstream::start("authz").await;
        let (app, address, _mesh) = guarded(kind, &nobody, PathNormalization::BASE, guards.clone()).await;
        let program = caller(kind, address).await;
        let ask = async |token: &str| {
            let answer = program.get_with("/a.B/C", &[("authorization", &format!("Bearer {token}"))]).await;
            (answer.is_ok(), answer.is(kind, 401) || answer.is(kind, 403))
        };
        assert_eq!(ask(&good).await, (true, false), "{kind:?}");
        for (source, header, payload, end) in TOKENS {
            assert_eq!(ask(&forge(header, *payload, end)).await, (false, true), "{kind:?} {source}: {header}");
        }
        // What is huge, nested or not one is no token, and costs little.
        for (source, token) in [
            ("huge", "a".repeat(40_000)),
            ("huge", format!("{}.{payload}.{signature}", URL_SAFE_NO_PAD.encode("[".repeat(20_000)))),
            ("many parts", ".".repeat(30_000)),
            ("two", format!("{good},{good}")),
            ("cut", good[..good.len() - 4].to_owned()),
        ] {
            let (passed, _) = ask(&token).await;
            assert!(!passed, "{kind:?} {source}");
        }
        assert_eq!(app.count(), 1, "{kind:?}");
    }
}

/// AZ3, RM5: an expression that would take other engines for ever takes this one no longer than any other (CVE-2019-14993).
#[tokio::test]
async fn no_expression_takes_for_ever() {
    let regex = |pattern: &str| {
        let matcher = HeaderMatcher::Value(StringMatch::Regex(pattern.parse().unwrap()));
        Condition::Header(HeaderMatch { name: "x-a".into(), matcher, invert: false, missing_as_empty: false })
    };
    let bombs = [r"(a+)+", r"(a|aa)+", r"(.*)*b", r"(a|a?)+", r"^(([a-z])+.)+[A-Z]([a-z])+$"].map(regex);
    let guards = vec![enforced(rules(RbacAction::Deny, "bombs", bombs.to_vec()))];
    for kind in Kind::ALL {
        let nobody = Upstream::start("authz").await;
        let (app, address, _mesh) = guarded(kind, &nobody, PathNormalization::BASE, guards.clone()).await;
        let program = caller(kind, address).await;
        let bomb = format!("{}!", "a".repeat(10_000));
        let asked = timeout(Duration::from_secs(20), program.get_with("/a.B/C", &[("x-a", &bomb)])).await;
        assert!(asked.unwrap().is_ok(), "{kind:?}");
        assert!(program.get_with("/a.B/C", &[("x-a", &"a".repeat(10_000))]).await.is(kind, 403), "{kind:?}");
        assert_eq!(app.count(), 1, "{kind:?}");
    }
}
