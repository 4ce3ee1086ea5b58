//! Every known way round authorization, each with where it was seen: whatever a caller writes, the application gets only what
//! the rules were asked about and allowed.
//!
//! The rules: `/admin` is denied by name, hosts and roles too, and nothing but GET below `/public` is allowed. A row holds if
//! the application either sees nothing, or sees a path below `/public` in the form the rules saw.

use mesh_tower::config::{
    Condition, EscapedSlashes, Guard, HeaderMatch, HeaderMatcher, PathNormalization, RbacAction, StringMatch,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Duration, timeout},
};

use crate::{
    authorization::{caller, enforced, guarded, header, rules, starts},
    harness::{Kind, Upstream},
};

const DECODE: PathNormalization =
    PathNormalization { dot_segments: true, merge_slashes: true, escaped_slashes: EscapedSlashes::Forward };

fn host(name: &str) -> Condition {
    let value = StringMatch::Exact { value: name.to_owned(), ignore_case: true };
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
    ("CVE-2026-73511", "/admin;x=/public", false, None),
    ("CVE-2026-73511", "/public;/../admin", false, None),
    ("query", "/public?/../admin", false, Some("/public?/../admin")),
    ("case", "/Public/secret", false, None),
];

/// SV11, AZ3: ways to write a path, over HTTP/1.1, HTTP/2 and gRPC.
#[tokio::test]
async fn no_way_to_write_a_path_gets_round() {
    for kind in Kind::ALL {
        for decode in [false, true] {
            let nobody = Upstream::start("authz").await;
            let path = if decode { DECODE } else { PathNormalization::BASE };
            // A gRPC call is a POST.
            let method = if kind.is_grpc() { "POST" } else { "GET" };
            let mut guards = guards();
            guards.pop();
            let allowed = Condition::All(vec![starts("/public"), header(":method", method)]);
            guards.push(enforced(rules(RbacAction::Allow, "allow", vec![allowed])));
            let (app, address, _mesh) = guarded(kind, &nobody, path, guards).await;
            let program = caller(kind, address).await;
            for (source, path, _, seen) in PATHS.iter().filter(|row| row.2 == decode) {
                let before = app.count();
                let answer = program.get(path).await;
                match seen {
                    None => assert_eq!(app.count(), before, "{kind:?} {source}: {path} gave {}", answer.status),
                    Some(seen) => assert_eq!(app.last().path, *seen, "{kind:?} {source}: {path}"),
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
    ("gRFC A41", b"GET http://a/public HTTP/1.1\r\nhost: admin.example.com\r\n\r\n", 400),
    ("gRFC A41", b"GET http://admin.example.com/public HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    ("user name", b"GET /public HTTP/1.1\r\nhost: a@admin.example.com\r\n\r\n", 400),
    ("several hosts", b"GET /public HTTP/1.1\r\nhost: a, admin.example.com\r\n\r\n", 400),
    ("CVE-2021-39155", b"GET /public HTTP/1.1\r\nhost: ADMIN.example.COM\r\n\r\n", 403),
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

/// SV11, AZ3: what only raw bytes can say.
#[tokio::test]
async fn no_way_to_write_a_request_gets_round() {
    let nobody = Upstream::start("authz").await;
    let (app, address, _mesh) = guarded(Kind::Http1, &nobody, PathNormalization::BASE, guards()).await;
    for (source, bytes, expected) in RAW {
        let before = app.count();
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut said = vec![0; 4096];
        let length = timeout(Duration::from_secs(20), stream.read(&mut said)).await.unwrap().unwrap_or(0);
        let said = String::from_utf8_lossy(&said[..length]).into_owned();
        let status = said.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        let request = String::from_utf8_lossy(bytes);
        assert_eq!(status, *expected, "{source}: {request} gave {said}");
        assert_eq!(app.count() - before, usize::from(*expected == 200), "{source}: {request}");
    }
    let arrived = app.arrivals();
    assert!(arrived.iter().all(|arrival| arrival.path == "/public"), "the application sees what the rules saw");
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
