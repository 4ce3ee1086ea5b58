//! Requests that change their connection to another protocol.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{Empty, Full};
use hyper_util::rt::TokioIo;
use mesh_tower::{
    Mesh, ResponseFlags,
    config::{Action, Config, Forward, RouteMatch, Upgrade},
    server::RequestBody,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use crate::harness::{Kind, cluster_at, config, route, to};

/// A server of the mesh that echoes what it gets once the protocol has changed, and says so before.
async fn echo(tasks: &mut JoinSet<()>) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let handler = tower::service_fn(|mut request: Request<RequestBody>| async move {
        let asked = request.headers().get("upgrade").cloned();
        let Some(asked) = asked else {
            return Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from_static(b"plain"))));
        };
        let upgraded = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = TokioIo::new(upgraded.await.unwrap());
            let mut word = [0; 4];
            while io.read_exact(&mut word).await.is_ok() {
                io.write_all(&word).await.unwrap();
            }
        });
        let response = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
        let response = response.header("connection", "upgrade").header("upgrade", asked);
        Ok(response.body(Full::default()).unwrap())
    });
    let mesh = Mesh::builder().config(Config::default()).build().await.unwrap();
    tasks.spawn(async move { mesh.serve_listener(listener, handler).await.unwrap() });
    address
}

fn asking(path: &str) -> Request<Empty<Bytes>> {
    let request = Request::get(format!("http://app{path}")).header("connection", "Upgrade");
    request.header("upgrade", "websocket").body(Empty::new()).unwrap()
}

/// RA20: a WebSocket goes through client, gateway and server, past the route's timeout; a route can refuse to change, which is 403.
#[tokio::test]
async fn a_websocket_goes_through() {
    let mut tasks = JoinSet::new();
    let address = echo(&mut tasks).await;
    for kind in [Kind::Http1, Kind::Http2] {
        let limit = Some(Duration::from_millis(50));
        let mut refusing = route(
            RouteMatch::default(),
            Action::Forward(Forward {
                upgrades: vec![Upgrade { protocol: "websocket".to_owned(), enabled: false }],
                ..to("app")
            }),
        );
        refusing.matches.path =
            mesh_tower::config::PathMatch::Prefix { value: "/refused".to_owned(), ignore_case: false };
        let rules =
            vec![refusing, route(RouteMatch::default(), Action::Forward(Forward { timeout: limit, ..to("app") }))];
        let mesh = Mesh::builder().config(config([cluster_at(kind, "app", &[address])], rules)).build().await.unwrap();

        let mut answer = mesh.http().request(asking("/")).await.unwrap();
        assert_eq!(
            (answer.status().as_u16(), answer.headers()["upgrade"].as_bytes()),
            (101, &b"websocket"[..]),
            "{kind:?}"
        );
        let mut io = TokioIo::new(hyper::upgrade::on(&mut answer).await.unwrap());
        talk(&mut io).await;
        let refused = mesh.http().request(asking("/refused")).await.unwrap();
        let flags = refused.extensions().get::<ResponseFlags>().unwrap().to_string();
        assert_eq!((refused.status().as_u16(), flags.as_str()), (403, "- upgrade_failed"), "{kind:?}");
        let mut other = asking("/");
        other.headers_mut().insert("upgrade", "tls/1.3".parse().unwrap());
        assert_eq!(mesh.http().request(other).await.unwrap().status(), 403, "{kind:?}: nobody allowed it");
        let mut newer = asking("/");
        newer.headers_mut().insert("upgrade", "h2c".parse().unwrap());
        assert_eq!(mesh.http().request(newer).await.unwrap().status(), 200, "{kind:?}: goes as it is");

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gateway = listener.local_addr().unwrap();
        let edge = mesh.clone();
        tasks.spawn(async move { edge.gateway_listener(listener, 80).await });
        let mut outside = TcpStream::connect(gateway).await.unwrap();
        let request = b"GET / HTTP/1.1\r\nhost: app\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";
        outside.write_all(request).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(outside.read_u8().await.unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
        talk(&mut outside).await;
    }
}

async fn talk(io: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin)) {
    for word in [b"ping", b"pong"] {
        io.write_all(word).await.unwrap();
        let mut back = [0; 4];
        io.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, word);
        // Past the limit of the request that this once was.
        tokio::time::sleep(Duration::from_millis(80)).await;
    }
}
