//! What HTTP/2 connections say in frames, and what of a response's head has limits.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use mesh_tower::config::{
    Action, Cluster, Connections, Forward, Http2, HttpRetry, RetryConditions, RetryPolicy, RouteMatch,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use crate::harness::{Kind, Program, Reply, Upstream, cluster_at, config, route, to};

const SETTINGS: u8 = 4;
const HEADERS: u8 = 1;
const WINDOW_UPDATE: u8 = 8;
/// No settings of ours.
const NO_SETTINGS: [u8; 9] = [0, 0, 0, SETTINGS, 0, 0, 0, 0, 0];
/// GOAWAY without an error, which leaves out every stream.
const GO_AWAY: [u8; 17] = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// A frame of a peer: its type, its stream, and what is in it.
async fn frame(stream: &mut TcpStream) -> (u8, u32, Vec<u8>) {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.unwrap();
    let [a, b, c, kind, _, d, e, f, g] = head;
    let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
    stream.read_exact(&mut payload).await.unwrap();
    (kind, u32::from_be_bytes([d, e, f, g]), payload)
}

/// A caller's connection, past its first words.
async fn accept(listener: &TcpListener) -> TcpStream {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut preface = [0; 24];
    stream.read_exact(&mut preface).await.unwrap();
    stream.write_all(&NO_SETTINGS).await.unwrap();
    stream
}

async fn calling(kind: Kind, address: SocketAddr, connections: Connections, forward: Forward) -> Program {
    let app = Cluster { connections, ..cluster_at(kind, "app", &[address]) };
    let routes =
        vec![route(RouteMatch::default(), Action::Forward(Forward { clusters: to("app").clusters, ..forward }))];
    Program::new(kind, config([app], routes)).await
}

/// RT10, RT15: a request that a server's goodbye leaves out was not processed: a gRPC call is sent once more without any policy, of
/// HTTP it takes one, and then any method may be.
#[tokio::test]
async fn what_a_goodbye_leaves_out_is_sent_again() {
    for kind in [Kind::Http2, Kind::Grpc] {
        for policy in [false, true] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let serving = tokio::spawn(async move {
                let mut stream = accept(&listener).await;
                while frame(&mut stream).await.0 != HEADERS {}
                stream.write_all(&GO_AWAY).await.unwrap();
                // The first connection is kept, so that its end is not what is heard.
                (stream, Upstream::at("app", listener))
            });
            let on = RetryConditions { http: vec![HttpRetry::RefusedStream], ..RetryConditions::default() };
            let retry = policy.then(|| RetryPolicy { on, retries: 1, ..RetryPolicy::default() });
            let forward = Forward { retry, ..Forward::default() };
            let program = calling(kind, address, Connections::default(), forward).await;
            let asked = timeout(Duration::from_secs(20), program.send(http::Request::post("/a.B/C"), "x"));
            let answer = asked.await.expect("an answer");
            let (_stream, app) = serving.await.unwrap();
            let again = policy || kind.is_grpc();
            assert_eq!(answer.is_ok(), again, "{kind:?} {policy}: {answer:?}");
            assert_eq!(app.count(), usize::from(again), "{kind:?} {policy}");
        }
    }
}

/// CP7: a peer is told the windows and the table that its cluster has.
#[tokio::test]
async fn peers_are_told_the_windows_configured() {
    const TABLE: u16 = 1;
    const WINDOW: u16 = 4;
    const FIRST_WINDOW: u32 = 65_535;
    for kind in [Kind::Http2, Kind::Grpc] {
        for (stream_window, connection_window, table) in [(70_000, 200_000, 8_192), (300_000, 1_000_000, 0)] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let hearing = tokio::spawn(async move {
                let mut stream = accept(&listener).await;
                let mut settings = BTreeMap::new();
                // The window of the connection is told by what it grows.
                loop {
                    match frame(&mut stream).await {
                        (SETTINGS, _, payload) => {
                            for setting in payload.chunks_exact(6) {
                                let (id, value) = setting.split_at(2);
                                let id = u16::from_be_bytes(id.try_into().unwrap());
                                settings.insert(id, u32::from_be_bytes(value.try_into().unwrap()));
                            }
                        }
                        (WINDOW_UPDATE, 0, payload) => {
                            let grown = u32::from_be_bytes(payload.try_into().unwrap());
                            return (settings.get(&WINDOW).copied(), grown, settings.get(&TABLE).copied());
                        }
                        _ => {}
                    }
                }
            });
            let http2 = Http2 {
                stream_window: Some(stream_window),
                connection_window: Some(connection_window),
                header_table: Some(table),
                ..Http2::default()
            };
            let connections = Connections { http2, ..Connections::default() };
            let program = calling(kind, address, connections, Forward::default()).await;
            let asking = tokio::spawn(async move { program.get("/a.B/C").await });
            let heard = timeout(Duration::from_secs(20), hearing).await.expect("the peer's words").unwrap();
            assert_eq!(heard, (Some(stream_window), connection_window - FIRST_WINDOW, Some(table)), "{kind:?}");
            asking.abort();
        }
    }
}

/// CP7: a response with more header fields, or larger ones, than the cluster allows breaks the protocol, and costs the next
/// request nothing.
#[tokio::test]
async fn headers_of_responses_have_limits() {
    for kind in Kind::ALL {
        let upstream = Upstream::scripted("one", |_, arrival| {
            let many = |fields| (0..fields).fold(Reply::ok(), |reply, _| reply.header("x-many", "x"));
            match arrival.path.as_str() {
                "/large" => Reply::ok().header("x-large", "x".repeat(5000)),
                "/many" => many(21),
                "/some" => many(10),
                _ => Reply::ok(),
            }
        })
        .await;
        let connections =
            Connections { max_response_headers: 20, max_response_headers_kib: 2, ..Connections::default() };
        let program = calling(kind, upstream.address, connections, Forward::default()).await;
        for (path, expected) in
            [("/", true), ("/large", false), ("/", true), ("/some", true), ("/many", false), ("/", true)]
        {
            let answer = program.get(path).await;
            assert_eq!(answer.is_ok(), expected, "{kind:?} {path}: {answer:?}");
            assert!(expected || answer.flags == "UPE", "{kind:?} {path}: {answer:?}");
        }
    }
}
