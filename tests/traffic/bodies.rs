//! Bodies of requests: authorization services that are told of them, over gRPC and over HTTP, and how long they may be.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::Request;
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use mesh_tower::{
    Mesh,
    config::{
        Action, AuthzService, ExtAuthz, Guard, HttpLimits, Inbound, MtlsMode, PathNormalization, RouteMatch, ToldBody,
    },
    server::RequestBody,
};
use mesh_xds::proto::envoy::service::auth::v3::CheckRequest;
use prost::Message;
use tokio::net::TcpListener;

use crate::{
    asking::said,
    authorization::{caller, guarded_by},
    harness::{Arrival, Kind, Reply, Upstream, cluster, config, route, to},
};

const PARTIAL: &str = "x-envoy-auth-partial-body";

/// What a service was told: of gRPC as text and as bytes.
#[derive(Debug, Default, PartialEq)]
struct Told {
    text: Vec<u8>,
    bytes: Vec<u8>,
    partial: String,
}

fn told(arrival: &Arrival, asked: Kind) -> Told {
    if !asked.is_grpc() {
        return Told { text: arrival.body.to_vec(), bytes: Vec::new(), partial: arrival.header(PARTIAL) };
    }
    let http = CheckRequest::decode(&*arrival.body).unwrap().attributes.unwrap().request.unwrap().http.unwrap();
    let partial = http.headers.get(PARTIAL).cloned().unwrap_or_default();
    Told { text: http.body.into_bytes(), bytes: http.raw_body.to_vec(), partial }
}

/// A service that lets everything pass but what says `bad`.
async fn authority(asked: Kind) -> Upstream {
    Upstream::scripted("authz", move |_, arrival: &Arrival| {
        let Told { text, bytes, .. } = told(arrival, asked);
        let bad = [text, bytes].concat().windows(3).any(|part| part == b"bad");
        match (asked.is_grpc(), bad) {
            (true, bad) => said(if bad { 7 } else { 0 }, None),
            (false, true) => Reply::status(403),
            (false, false) => Reply::ok(),
        }
    })
    .await
}

fn service(asked: Kind, body: Option<ToldBody>) -> Guard {
    let service = match asked.is_grpc() {
        true => AuthzService::Grpc { cluster: "authz".into(), authority: String::new() },
        false => AuthzService::Http {
            cluster: "authz".into(),
            authority: "authz".to_owned(),
            path_prefix: String::new(),
            add: Vec::new(),
            to_upstream: Vec::new(),
            to_client: Vec::new(),
        },
    };
    Guard::ExtAuthz(Arc::new(ExtAuthz {
        service,
        timeout: Duration::from_secs(5),
        failure_allows: false,
        status_on_error: 503,
        allowed_headers: None,
        disallowed_headers: Vec::new(),
        body,
        when: None,
    }))
}

/// AZ8: a service is told of the body as far as it may be, and judges by it; the application gets all of it all the same. What is longer
/// is refused, or told in part and said to be; what is told as text and is none is refused.
#[tokio::test]
async fn services_judge_by_the_body() {
    // Not so long that the length in front of a gRPC message is no text.
    let long = "x".repeat(1100);
    for (kind, asked) in Kind::ALL.into_iter().flat_map(|kind| [(kind, Kind::Grpc), (kind, Kind::Http1)]) {
        let of = |partial, as_bytes| Some(ToldBody { max_bytes: 64, partial, as_bytes });
        for (told_body, text, status) in [
            (of(false, false), "good", 200),
            (of(false, false), "this is bad", 403),
            (of(false, false), long.as_str(), 413),
            (of(true, false), long.as_str(), 200),
            (of(true, true), "good", 200),
            (of(true, true), "this is bad", 403),
            (None, "this is bad", 200),
        ] {
            let authz = authority(asked).await;
            let guards = vec![service(asked, told_body)];
            let (app, address, _mesh) = guarded_by(kind, asked, &authz, PathNormalization::BASE, guards).await;
            let request = Request::post("/a.B/C").header(PARTIAL, "forged");
            let answer = caller(kind, address).await.send(request, text).await;
            let at = format!("{kind:?} {asked:?} {told_body:?} {}: {answer:?}", text.len());
            assert!(if status == 200 { answer.is_ok() } else { answer.is(kind, status) }, "{at}");
            match status {
                200 => assert_eq!(app.last().body, text.as_bytes(), "{at}"),
                _ => assert_eq!(app.count(), 0, "{at}"),
            }
            if status == 413 {
                assert_eq!(authz.count(), 0, "{at}");
                continue;
            }
            let Told { text: as_text, bytes, partial } = told(&authz.last(), asked);
            let Some(ToldBody { as_bytes, .. }) = told_body else {
                assert!(as_text.is_empty() && bytes.is_empty(), "{at}");
                continue;
            };
            let as_bytes = as_bytes && asked.is_grpc();
            let (here, empty) = if as_bytes { (bytes, as_text) } else { (as_text, bytes) };
            assert!(empty.is_empty(), "{at}");
            // A gRPC message has a head of five bytes.
            let head = if kind.is_grpc() { 5 } else { 0 };
            let length = (text.len() + head).min(64);
            assert_eq!((here.len(), &here[head..]), (length, &text.as_bytes()[..length - head]), "{at}");
            assert_eq!(partial, if text.len() > 64 { "true" } else { "false" }, "{at}");
        }
    }
}

/// AZ8: a body that is to be told as text and is none cannot be told, and nobody passes whom nobody could judge; without a body
/// nothing is said of one.
#[tokio::test]
async fn what_is_no_text_is_not_told_as_text() {
    for kind in Kind::ALL {
        let authz = authority(Kind::Grpc).await;
        let body = Some(ToldBody { max_bytes: 64, partial: false, as_bytes: false });
        let guards = vec![service(Kind::Grpc, body)];
        let (app, address, _mesh) = guarded_by(kind, Kind::Grpc, &authz, PathNormalization::BASE, guards).await;
        let program = caller(kind, address).await;
        let bytes = match kind.is_grpc() {
            true => crate::harness::framed(b"\xff\xfe"),
            false => Bytes::from_static(b"\xff\xfe"),
        };
        let request = Request::post("/a.B/C").body(Full::new(bytes)).unwrap();
        assert!(program.ask(request).await.is(kind, 503), "{kind:?}");
        assert_eq!((app.count(), authz.count()), (0, 0), "{kind:?}");
        if !kind.is_grpc() {
            assert!(program.get("/a").await.is_ok(), "{kind:?}");
            assert_eq!(told(&authz.last(), Kind::Grpc), Told::default());
        }
    }
}

/// SV11: no more of a body is taken than there may be, whether it says how long it is or not: 413, and the application is not asked, or
/// what it says does not count; what is no longer passes.
#[tokio::test]
async fn bodies_are_bounded() {
    for kind in Kind::ALL {
        let app = Upstream::start("app").await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let routes = vec![route(RouteMatch::default(), Action::Forward(to("app")))];
        let mut own = config([cluster(kind, "app", &[&app])], routes);
        let http = HttpLimits { max_body: Some(100), ..HttpLimits::default() };
        own.inbound.insert(address.port(), Arc::new(Inbound { mtls: MtlsMode::Disable, http, ..Inbound::default() }));
        let mesh = Mesh::builder().config(own).build().await.unwrap();
        // It reads all there is before it says that it is fine.
        let handler = tower::service_fn(move |request: Request<RequestBody>| async move {
            let whole = request.into_body().collect().await.is_ok();
            let response = http::Response::builder().header("grpc-status", "0").header("x-whole", whole.to_string());
            Ok::<_, std::convert::Infallible>(response.body(Full::new(Bytes::new())).unwrap())
        });
        tokio::spawn(async move { mesh.serve_listener(listener, handler).await });
        let program = caller(kind, address).await;
        for (length, passes) in [(0, true), (95, true), (101, false), (100_000, false)] {
            let text = "x".repeat(length);
            let answer = program.send(Request::post("/a.B/C"), &text).await;
            let as_expected = if passes { answer.is_ok() } else { answer.is(kind, 413) };
            assert!(as_expected, "{kind:?} {length}: {answer:?}");
            // The same without a word on how long it is.
            let bytes = if kind.is_grpc() { crate::harness::framed(text.as_bytes()) } else { text.into() };
            let pieces: Vec<_> = bytes
                .chunks((length / 16).max(64))
                .map(|piece| Ok::<_, std::io::Error>(Frame::data(Bytes::copy_from_slice(piece))))
                .collect();
            let body = StreamBody::new(futures_util::stream::iter(pieces));
            let answer = program.ask(Request::post("/a.B/C").body(body).unwrap()).await;
            let as_expected = if passes { answer.is_ok() } else { answer.is(kind, 413) };
            assert!(as_expected, "{kind:?} {length} in pieces: {answer:?}");
        }
        assert_eq!(app.count(), 0);
    }
}
