//! Callers that mean harm: silence, endless heads, resets, two ways to read one request. Written byte by byte, as no client of
//! ours would send it.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{Router, routing::any};
use http::Request;
use mesh_tower::{
    Mesh,
    config::{Action, Config, HttpLimits, Inbound, MtlsMode, RouteMatch, RouteTable, Underscores, VirtualHost},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinHandle,
    time::timeout,
};

use crate::{
    authorization::caller,
    harness::{Kind, Upstream, route},
    objects::services,
    outside::{self, Authority, Edge, Visitor, bound, secret, well},
};

/// Long enough for anything on a machine under load.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server that counts what its application gets.
struct Server {
    address: SocketAddr,
    served: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    async fn start(change: impl FnOnce(&mut Inbound)) -> Self {
        Self::shedding(change, None).await
    }

    /// One that works on so many requests at once; `/slow` takes half a second.
    async fn shedding(change: impl FnOnce(&mut Inbound), most: Option<usize>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let host = VirtualHost {
            name: "all".into(),
            domains: vec!["*".to_owned()],
            routes: vec![route(RouteMatch::default(), Action::NonForwarding)],
            ..VirtualHost::default()
        };
        let routes = Arc::new(RouteTable { virtual_hosts: vec![Arc::new(host)], ..RouteTable::default() });
        let mut inbound = Inbound { mtls: MtlsMode::Disable, routes, ..Inbound::default() };
        change(&mut inbound);
        let config = Config { inbound: [(address.port(), Arc::new(inbound))].into(), ..Config::default() };
        let mut builder = Mesh::builder().config(config);
        if let Some(most) = most {
            builder = builder.shed_load(most, Duration::from_secs(10));
        }
        let mesh = builder.build().await.unwrap();
        let served = Arc::new(AtomicUsize::new(0));
        let counting = Arc::clone(&served);
        let handler = Router::new().fallback(any(move |request: Request<axum::body::Body>| {
            counting.fetch_add(1, SeqCst);
            async move {
                if request.uri().path() == "/slow" {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                if request.uri().path() == "/names" {
                    return request.headers().keys().map(|name| format!("{name};")).collect::<String>();
                }
                request.uri().path().to_owned()
            }
        }));
        let handler = mesh.with_health(handler, ["app"]);
        let task = tokio::spawn(async move { mesh.serve_listener(listener, handler).await.unwrap() });
        Self { address, served, task }
    }

    /// Sends these bytes and reads until the server closes, or has said nothing for a while.
    async fn say(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let _ = stream.write_all(bytes).await;
        let mut said = Vec::new();
        let mut piece = [0; 4096];
        while let Ok(Ok(count @ 1..)) = timeout(Duration::from_millis(500), stream.read(&mut piece)).await {
            said.extend_from_slice(&piece[..count]);
        }
        String::from_utf8_lossy(&said).into_owned()
    }

    fn served(&self) -> usize {
        self.served.swap(0, SeqCst)
    }

    async fn is_well(&self) -> bool {
        self.say(b"GET /well HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.ends_with("/well")
    }
}

/// Reads to the end, however it comes.
async fn ended(stream: &mut TcpStream) -> Vec<u8> {
    let mut said = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut said)).await.expect("the server closes");
    said
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// `GET http://app/`, in HPACK.
const GET: &[u8] = &[0x82, 0x86, 0x84, 0x41, 3, b'a', b'p', b'p'];

pub(crate) fn greeting() -> Vec<u8> {
    [PREFACE, &frame(4, 0, 0, &[])].concat()
}

/// Is there a GOAWAY among these frames, and for which reason?
fn goaway(mut bytes: &[u8]) -> Option<u32> {
    while let [a, b, c, kind, rest @ ..] = bytes {
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let payload = rest.get(5..)?;
        if *kind == 7 {
            return payload.get(4..8)?.try_into().ok().map(u32::from_be_bytes);
        }
        bytes = payload.get(length..)?;
    }
    None
}

/// SV10, SV13: a caller that says nothing, or too little to tell what it speaks, is let go; one that speaks is not.
#[tokio::test]
async fn silence_is_not_waited_for() {
    let server = Server::start(|it| it.request_headers_timeout = Some(Duration::from_millis(300))).await;
    for begin in [&b""[..], b"P", b"PRI * HTTP/2.0\r\n", b"G", b"GET / HTTP/1.1\r\nhost: a\r\nx-slow: "] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(begin).await.unwrap();
        let said = ended(&mut stream).await;
        assert!(said.is_empty() || said.starts_with(b"HTTP/1.1 408"), "{:?}", String::from_utf8_lossy(&said));
    }
    // Between requests it may be silent; here HTTP/2 and HTTP/1.1 share the port.
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(&greeting()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(600)).await;
    stream.write_all(&frame(1, 5, 1, GET)).await.unwrap();
    let mut said = [0; 512];
    while server.served.load(SeqCst) == 0 {
        assert!(timeout(PATIENCE, stream.read(&mut said)).await.unwrap().unwrap() > 0);
    }
    assert!(server.is_well().await);
}

/// Connections from one address, each with these bytes on it.
async fn connected(from: [u8; 4], to: SocketAddr, count: usize, bytes: &[u8]) -> Vec<TcpStream> {
    let mut all = Vec::new();
    for _ in 0..count {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((from, 0).into()).unwrap();
        let mut stream = socket.connect(to).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        all.push(stream);
    }
    all
}

/// SV10, SV13: who connects and says nothing takes no turn from who speaks, however many they are; who begins a handshake and does not
/// end it has the turns of its own address alone.
#[tokio::test]
async fn who_says_nothing_holds_up_nobody() {
    const AT_ONCE: Duration = Duration::from_secs(5);
    for kind in Kind::ALL {
        let server = Server::start(|it| it.mtls = MtlsMode::Permissive).await;
        let _silent = connected([127, 0, 0, 1], server.address, 300, b"").await;
        let answer = timeout(AT_ONCE, async { caller(kind, server.address).await.get("/a.B/C").await }).await;
        assert_eq!(answer.expect("held up").status, 200, "{kind:?}");

        let (authority, a) = (Authority::new("outside"), Upstream::start("a").await);
        let text = services(kind, &[&a])
            + &secret("cert", Some(&authority.issue(&["a.test"])), None)
            + &outside::server("a", 443, "HTTPS", "[a.test]", "{mode: SIMPLE, credentialName: cert}")
            + &bound("a", "a", "[a.test]", "a");
        let edge = Edge::start(&text, &[443]).await;
        let _silent = connected([127, 0, 0, 1], edge.at(443), 300, b"").await;
        let _stalled = connected([127, 0, 0, 2], edge.at(443), 300, &[0x16, 3, 1]).await;
        let visitor = Visitor::trusting(&authority);
        let answer = timeout(AT_ONCE, visitor.ask(kind, edge.at(443), "a.test", "/x")).await;
        assert!(well(kind, &answer.expect("held up").unwrap()), "{kind:?}");
    }
}

/// SV11: heads are bounded, in number and in bytes, over HTTP/1.1 and HTTP/2.
#[tokio::test]
async fn heads_are_bounded() {
    let server = Server::start(|_| {}).await;
    let head = |count: usize, length: usize| {
        let headers: String = (0..count).map(|n| format!("x-{n}: {}\r\n", "v".repeat(length))).collect();
        format!("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{headers}\r\n")
    };
    assert!(server.say(head(90, 100).as_bytes()).await.starts_with("HTTP/1.1 200"));
    for (count, length) in [(120, 1), (10, 20_000), (1, 100_000)] {
        let said = server.say(head(count, length).as_bytes()).await;
        assert!(said.starts_with("HTTP/1.1 431") || said.is_empty(), "{count} x {length}: {said}");
    }
    assert_eq!(server.served(), 1);

    let literal = |name: &str, value: &str| {
        let mut bytes = vec![0, name.len() as u8];
        bytes.extend(name.as_bytes());
        // 7 bits of length and then groups of seven, as HPACK has it.
        let mut rest = value.len();
        if rest < 127 {
            bytes.push(rest as u8);
        } else {
            bytes.push(127);
            rest -= 127;
            while rest >= 128 {
                bytes.push((rest % 128 + 128) as u8);
                rest /= 128;
            }
            bytes.push(rest as u8);
        }
        bytes.extend(value.as_bytes());
        bytes
    };
    for (count, length, passes) in [(50, 10, true), (120, 1, false), (6, 12_000, false)] {
        let mut block = GET.to_vec();
        (0..count).for_each(|n| block.extend(literal(&format!("x-{n}"), &"v".repeat(length))));
        let mut bytes = greeting();
        let pieces: Vec<&[u8]> = block.chunks(16_000).collect();
        for (at, piece) in pieces.iter().enumerate() {
            let last = if at + 1 == pieces.len() { 4 } else { 0 };
            bytes.extend(if at == 0 { frame(1, 1 | last, 1, piece) } else { frame(9, last, 1, piece) });
        }
        server.say(&bytes).await;
        assert_eq!(server.served() == 1, passes, "{count} x {length}");
    }
    assert!(server.is_well().await);
}

/// SV11: how much of heads and streams a connection may take is what the configuration says.
#[tokio::test]
async fn limits_are_what_is_configured() {
    let server = Server::start(|inbound| {
        inbound.http = HttpLimits {
            max_headers: 20,
            max_head_kb: 10,
            max_body: None,
            max_streams: 3,
            stream_window: Some(70_000),
            connection_window: Some(700_000),
        };
    })
    .await;
    let head = |count: usize, length: usize| {
        let headers: String = (0..count).map(|n| format!("x-{n}: {}\r\n", "v".repeat(length))).collect();
        format!("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{headers}\r\n")
    };
    for (count, length, passes) in [(15, 10, true), (30, 1, false), (10, 2_000, false)] {
        let said = server.say(head(count, length).as_bytes()).await;
        assert_eq!(said.starts_with("HTTP/1.1 200"), passes, "{count} x {length}: {said}");
    }
    assert_eq!(server.served(), 1);
    // What the server says of itself first, over HTTP/2: streams at once, and bytes on each.
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(&greeting()).await.unwrap();
    let mut said = Vec::new();
    let mut piece = [0; 4096];
    let says = |said: &[u8], setting: &[u8]| said.windows(setting.len()).any(|window| window == setting);
    while !says(&said, &[0, 3, 0, 0, 0, 3]) || !says(&said, &[0, 4, 0, 1, 0x11, 0x70]) {
        let count = timeout(PATIENCE, stream.read(&mut piece)).await.unwrap().unwrap();
        assert!(count > 0, "{said:?}");
        said.extend_from_slice(&piece[..count]);
    }
}

/// SV11: a header with an underscore, which some applications take for one with a hyphen, is a header, or none, or refuses its
/// request, as configured; over HTTP/1.1 and HTTP/2.
#[tokio::test]
async fn underscores_are_as_configured() {
    for (wanted, status, arrives) in
        [(Underscores::Allow, "200", true), (Underscores::Drop, "200", false), (Underscores::Reject, "400", false)]
    {
        let server = Server::start(|inbound| inbound.underscores = wanted).await;
        let said =
            server.say(b"GET /names HTTP/1.1\r\nhost: a\r\nconnection: close\r\nx_role: admin\r\nx-a: b\r\n\r\n").await;
        assert!(said.starts_with(&format!("HTTP/1.1 {status}")), "{wanted:?}: {said}");
        assert_eq!((said.contains("x_role;"), said.contains("x-a;")), (arrives, status == "200"), "{wanted:?}: {said}");
        assert_eq!(server.served(), usize::from(status == "200"));
        let names =
            [&[0x82, 0x86, 0x04, 6][..], b"/names", &[0x41, 3], b"app", &[0, 6], b"x_role", &[1], b"a"].concat();
        let said = server.say(&[greeting(), frame(1, 5, 1, &names)].concat()).await;
        assert_eq!(said.contains("x_role;"), arrives, "{wanted:?}: {said}");
        assert_eq!(server.served(), usize::from(status == "200"));
        assert!(server.is_well().await);
    }
}

/// SV11, SV13: a head that never ends is not collected for ever (CVE-2024-27919).
#[tokio::test]
async fn continuations_do_not_go_on_for_ever() {
    let server = Server::start(|_| {}).await;
    for filler in [vec![0; 0], [&[0, 1, b'x', 126][..], &[b'v'; 126]].concat().repeat(100)] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(&greeting()).await.unwrap();
        stream.write_all(&frame(1, 1, 1, GET)).await.unwrap();
        let (mut read, mut write) = stream.split();
        let flood = async {
            let many = frame(9, 0, 1, &filler).repeat(20);
            while write.write_all(&many).await.is_ok() {}
        };
        let mut said = Vec::new();
        let over = async {
            tokio::join!(flood, async { drop(read.read_to_end(&mut said).await) });
        };
        timeout(PATIENCE, over).await.expect("the server ends it");
        assert_eq!(server.served(), 0);
    }
    assert!(server.is_well().await);
}

/// SV13: streams that are opened and reset at once end the connection, not the server (CVE-2023-44487).
#[tokio::test]
async fn rapid_resets_end_the_connection() {
    let server = Server::start(|_| {}).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(&greeting()).await.unwrap();
    let (mut read, mut write) = stream.split();
    let flood = async {
        let mut id = 1;
        loop {
            let mut batch = Vec::new();
            for _ in 0..1000 {
                batch.extend(frame(1, 5, id, GET));
                batch.extend(frame(3, 0, id, &8_u32.to_be_bytes()));
                id += 2;
            }
            if write.write_all(&batch).await.is_err() {
                return id;
            }
            assert!(id < 4_000_000, "nobody minds");
        }
    };
    let mut said = Vec::new();
    let over = async { tokio::join!(flood, async { drop(read.read_to_end(&mut said).await) }).0 };
    let streams = timeout(PATIENCE, over).await.expect("the server ends it") / 2;
    assert!(goaway(&said).is_none_or(|reason| reason == 11), "ENHANCE_YOUR_CALM");
    assert!(server.served() < streams as usize, "most were never looked at");
    assert!(server.is_well().await);
}

/// SV11: a request that two readers could take in two ways is not passed on (CVE-2019-18801, CVE-2021-32777 and their like).
#[tokio::test]
async fn ambiguous_requests_are_refused() {
    let server = Server::start(|_| {}).await;
    let rest = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
    for head in [
        "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 5, 6\r\n\r\n",
        "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: +5\r\n\r\n",
        "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
        "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 0x5\r\n\r\n",
        "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length : 5\r\n\r\n",
        "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, identity\r\n\r\n",
        "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\n",
        "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding : chunked\r\n\r\n",
        "POST /a HTTP/1.1\r\nhost: a\r\n transfer-encoding: chunked\r\n\r\n",
        "POST /a HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n",
        "GET /a HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        "GET /a HTTP/1.1\r\n\r\n",
        "GET a HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET /a\0b HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET /a HTTP/1.1\r\nhost: a\r\nx-\0: b\r\n\r\n",
        "GET /a HTTP/1.1\r\nhost: a\r\nx: b\0c\r\n\r\n",
        "GET /a b HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET /a HTTP/3.1\r\nhost: a\r\n\r\n",
    ] {
        let said = server.say(format!("{head}{rest}").as_bytes()).await;
        let (refused, served) =
            (said.is_empty() || said.starts_with("HTTP/1.1 4") || said.starts_with("HTTP/1.0 4"), server.served());
        assert!(refused && served == 0 && !said.contains("200"), "{head:?}: served {served}: {said}");
    }
    // Both lengths: what is chunked counts, and the connection ends with it.
    let both = "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 6\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
    let said = server.say(both.as_bytes()).await;
    assert!(!said.contains("/smuggled") || !said.starts_with("HTTP/1.1 200") || server.served() <= 2, "{said}");
    assert!(server.is_well().await);
}

/// SV13: a server that has enough to do still says that it is well, and does not begin what nobody waits for any more.
#[tokio::test]
async fn a_busy_server_answers_probes_and_drops_the_late() {
    let server = Server::shedding(|_| {}, Some(1)).await;
    let slow = b"GET /slow HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let mut busy = TcpStream::connect(server.address).await.unwrap();
    busy.write_all(slow).await.unwrap();
    while server.served.load(SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let grpc = |path: &str, more: &str| {
        let head = format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc\r\nte: trailers\r\n");
        format!("{head}connection: close\r\ncontent-length: 5\r\n{more}\r\n\0\0\0\0\0")
    };
    let late = grpc("/a.B/C", "grpc-timeout: 100m\r\n");
    let probe = grpc("/grpc.health.v1.Health/Check", "");
    let (late, probe) = tokio::join!(ended_with(&server, late.as_bytes()), ended_with(&server, probe.as_bytes()));
    assert!(probe.starts_with("HTTP/1.1 200") && probe.contains("\u{8}\u{1}"), "{probe:?}");
    let first = ended(&mut busy).await;
    assert!(String::from_utf8_lossy(&first).ends_with("/slow"));
    assert!(late.contains("grpc-status: 14") || late.contains("grpc-status: 4"), "{late:?}");
    assert_eq!(server.served(), 1);
}

/// What comes of these bytes until the server closes.
async fn ended_with(server: &Server, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    String::from_utf8_lossy(&ended(&mut stream).await).into_owned()
}
