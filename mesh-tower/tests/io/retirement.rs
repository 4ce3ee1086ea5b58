//! Connections end when the certificates they were made with do, when we have others, and when the peer is not believed any
//! more: within a bound, without harm to what is under way where it may go on, and nobody else's. In memory, on a paused clock.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{Router, body::Body, routing::get};
use bytes::Bytes;
use futures_util::stream;
use http::StatusCode;
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use mesh_tower::{
    Mesh,
    config::{Config, Inbound, MtlsMode, Protocol, TlsMode},
    connect::{Connecting, Connector, Listener, Stream, Target},
    tls::{Identity, LiveIdentity, Trust},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex},
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::{
    configs::{cluster, config, mutual},
    pki::{Ca, Leaf, RATINGS, REVIEWS},
    server::fetch,
};

const DETAILS: &str = "spiffe://cluster.local/ns/default/sa/details";
/// The first moment of 2060, when some leaves end.
const YEAR_2060: u64 = 2_840_140_800;

/// How long connections lasted, and how many there are.
#[derive(Clone, Default)]
struct Book(Arc<Mutex<(usize, Vec<Duration>)>>);

impl Book {
    fn open(&self) -> usize {
        self.0.lock().unwrap().0
    }

    fn ages(&self) -> Vec<Duration> {
        self.0.lock().unwrap().1.clone()
    }
}

/// One end of a connection in memory, on the book.
struct Booked {
    io: DuplexStream,
    since: Instant,
    book: Book,
}

impl Drop for Booked {
    fn drop(&mut self) {
        let mut book = self.book.0.lock().unwrap();
        book.0 -= 1;
        book.1.push(self.since.elapsed());
    }
}

impl AsyncRead for Booked {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Booked {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// The way to the one server there is.
#[derive(Clone)]
struct Wire {
    server: mpsc::UnboundedSender<DuplexStream>,
    book: Book,
}

impl Connector for Wire {
    fn connect<'a>(&'a self, _: Target<'a>) -> Connecting<'a> {
        Box::pin(async {
            let (near, far) = duplex(64 << 10);
            self.server.send(far).map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
            self.book.0.lock().unwrap().0 += 1;
            Ok(Stream::new(Booked { io: near, since: Instant::now(), book: self.book.clone() }))
        })
    }
}

struct Port(mpsc::UnboundedReceiver<DuplexStream>);

impl Listener for Port {
    type Io = DuplexStream;

    async fn accept(&mut self) -> io::Result<(DuplexStream, SocketAddr)> {
        let Some(io) = self.0.recv().await else { std::future::pending().await };
        Ok((io, ([10, 0, 0, 1], 40_000).into()))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(([10, 0, 0, 2], 9080).into())
    }
}

/// A server of reviews and the network to it.
struct Stage {
    ca: Arc<Ca>,
    server: LiveIdentity,
    mesh: Mesh,
    way: mpsc::UnboundedSender<DuplexStream>,
    _tasks: JoinSet<()>,
}

/// An identity whose clock follows the runtime's, beginning at `begin`.
fn live(begin: SystemTime, identity: Identity) -> LiveIdentity {
    let start = Instant::now();
    let live = LiveIdentity::with_clock(move || begin + start.elapsed());
    live.replace(identity);
    live
}

fn long_ago() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(YEAR_2060 - 3_600)
}

impl Stage {
    async fn new(begin: SystemTime, policy: Config) -> Self {
        let ca = Arc::new(Ca::new());
        let server = live(begin, ca.identity(REVIEWS));
        let mesh = Mesh::builder().config(policy).live_identity(server.clone()).build().await.unwrap();
        let (way, port) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        let serving = mesh.clone();
        // One answer ends at once, the other never.
        let forever = || async {
            let ticks = stream::unfold((), |()| async {
                sleep(Duration::from_millis(100)).await;
                Some((Ok::<_, io::Error>(Bytes::from_static(b"tick")), ()))
            });
            Body::from_stream(ticks)
        };
        let router = Router::new().route("/", get(async || "hello")).route("/forever", get(forever));
        let router = router.route("/changed", get(changed));
        tasks.spawn(async move { serving.serve_listener(Port(port), router).await.unwrap() });
        Self { ca, server, mesh, way, _tasks: tasks }
    }

    async fn caller(&self, own: &LiveIdentity, protocol: Protocol) -> (Mesh, Book) {
        let book = Book::default();
        let mut target = cluster("reviews", &[([10, 0, 0, 2], 9080).into()]);
        (target.tls, target.protocol) = (mutual(&[REVIEWS]), protocol);
        let wire = Wire { server: self.way.clone(), book: book.clone() };
        let builder = Mesh::builder().config(config("reviews", target)).live_identity(own.clone()).connector(wire);
        (builder.build().await.unwrap(), book)
    }
}

const URI: &str = "http://reviews:9080/";

/// Changes the protocol, and then says something all the time and listens to nothing.
async fn changed(mut request: http::Request<Body>) -> http::Response<Body> {
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut io = TokioIo::new(upgraded.await.unwrap());
        while io.write_all(b"tick").await.is_ok() && io.flush().await.is_ok() {
            sleep(Duration::from_millis(100)).await;
        }
    });
    let response = http::Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
    response.header("connection", "upgrade").header("upgrade", "websocket").body(Body::empty()).unwrap()
}

/// A connection whose protocol was changed; the first words of the other one have come.
async fn change(mesh: &Mesh) -> TokioIo<hyper::upgrade::Upgraded> {
    let request = http::Request::get("http://reviews:9080/changed");
    let request = request.header("connection", "upgrade").header("upgrade", "websocket").body(Body::empty()).unwrap();
    let mut answer = mesh.http().request(request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
    let mut io = TokioIo::new(hyper::upgrade::on(&mut answer).await.unwrap());
    let mut word = [0; 4];
    io.read_exact(&mut word).await.unwrap();
    io
}

/// How long bytes go on coming.
async fn reading(mut io: TokioIo<hyper::upgrade::Upgraded>) -> Duration {
    let (start, mut word) = (Instant::now(), [0; 4]);
    while io.read_exact(&mut word).await.is_ok() {}
    start.elapsed()
}

/// An answer without end, and how long it went on.
async fn listen(mesh: Mesh) -> Duration {
    let start = Instant::now();
    let mut body = mesh.http().get("http://reviews:9080/forever").await.unwrap().into_body();
    while let Some(Ok(_)) = body.frame().await {}
    start.elapsed()
}

fn deny(live: &LiveIdentity, id: &str) {
    let trust = Trust { denied_ids: [id.to_owned()].into(), ..Trust::default() };
    live.replace_trust(Arc::new(trust)).unwrap();
}

/// CT7: both ends get another certificate every second for a minute under requests without pause: none fails, and no
/// connection lasts longer than a part of it, busy or idle.
#[tokio::test(start_paused = true)]
async fn rotation_every_second_fails_nothing() {
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let stage = Stage::new(long_ago(), Config::default()).await;
        let own = live(long_ago(), stage.ca.identity(RATINGS));
        let (mesh, book) = stage.caller(&own, protocol).await;
        let mut callers = JoinSet::new();
        for _ in 0..8 {
            let mesh = mesh.clone();
            callers.spawn(async move {
                let mut answered = 0;
                let until = Instant::now() + Duration::from_secs(60);
                while Instant::now() < until {
                    assert_eq!(fetch(&mesh, URI).await, (StatusCode::OK, "hello".to_owned()), "{protocol:?}");
                    answered += 1;
                    sleep(Duration::from_millis(20)).await;
                }
                answered
            });
        }
        for _ in 0..60 {
            sleep(Duration::from_secs(1)).await;
            stage.server.replace(stage.ca.identity(REVIEWS));
            own.replace(stage.ca.identity(RATINGS));
        }
        let answered: usize = callers.join_all().await.into_iter().sum();
        assert!(answered > 10_000, "{answered}");
        sleep(Duration::from_secs(30)).await;
        let (open, ages) = (book.open(), book.ages());
        assert!(ages.len() >= 60 && open <= 8, "{} closed, {open} open", ages.len());
        assert!(ages.iter().all(|age| *age < Duration::from_secs(20)), "{ages:?}");
    }
}

/// CT5, CT7: 20 changes of the authority in three steps (its root beside the old one, certificates of it, the old root gone), at one end
/// and then at the other, under requests without pause: none fails, and no connection outlasts the step that ends its certificate.
#[tokio::test(start_paused = true)]
async fn twenty_changes_of_the_authority_fail_nothing() {
    let step = Duration::from_secs(30);
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let stage = Stage::new(long_ago(), Config::default()).await;
        let own = live(long_ago(), stage.ca.identity(RATINGS));
        let (mesh, book) = stage.caller(&own, protocol).await;
        let mut callers = JoinSet::new();
        for _ in 0..4 {
            let mesh = mesh.clone();
            callers.spawn(async move {
                let until = Instant::now() + 60 * step;
                while Instant::now() < until {
                    assert_eq!(fetch(&mesh, URI).await, (StatusCode::OK, "hello".to_owned()), "{protocol:?}");
                    sleep(Duration::from_secs(1)).await;
                }
            });
        }
        let mut old = Arc::clone(&stage.ca);
        for _ in 0..20 {
            let new = Arc::new(Ca::new());
            for (signs, roots) in [(&old, vec![&old, &new]), (&new, vec![&old, &new]), (&new, vec![&new])] {
                for (end, id) in [(&stage.server, REVIEWS), (&own, RATINGS)] {
                    let (chain, key) = signs.sign(&Leaf { uris: &[id], ..Leaf::default() });
                    let roots = roots.iter().map(|ca| ca.root()).collect();
                    end.replace(Identity::from_der(chain, key, roots).unwrap());
                    sleep(step / 2).await;
                }
            }
            old = new;
        }
        callers.join_all().await;
        sleep(step).await;
        let ages = book.ages();
        assert!(ages.len() >= 40 && ages.iter().all(|age| *age < 2 * step), "{} {protocol:?}: {ages:?}", ages.len());
    }
}

/// CT7: a server alone has another certificate: its callers are sent away within seconds, without harm to what is under way.
#[tokio::test(start_paused = true)]
async fn a_servers_rotation_sends_callers_away() {
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let stage = Stage::new(long_ago(), Config::default()).await;
        let own = live(long_ago(), stage.ca.identity(RATINGS));
        let (mesh, book) = stage.caller(&own, protocol).await;
        let listening = tokio::spawn(listen(mesh.clone()));
        sleep(Duration::from_millis(500)).await;
        assert_eq!(fetch(&mesh, URI).await.0, StatusCode::OK);
        stage.server.replace(stage.ca.identity(REVIEWS));
        for _ in 0..200 {
            assert_eq!(fetch(&mesh, URI).await.0, StatusCode::OK, "{protocol:?}");
            sleep(Duration::from_millis(100)).await;
        }
        // The one that is listened to goes on, one that came after it serves the rest.
        assert!(!listening.is_finished(), "{protocol:?}");
        assert_eq!(book.open(), 2, "{protocol:?}: {:?}", book.ages());
        listening.abort();
    }
}

/// CT10: whoever is denied is cut off within 10 s in the middle of an answer, and gets no new one within 2 s; nobody else
/// notices. The same where the caller denies its server.
#[tokio::test(start_paused = true)]
async fn the_denied_are_cut_off_and_nobody_else() {
    for protocol in [Protocol::Http1, Protocol::Http2] {
        for by_server in [true, false] {
            let stage = Stage::new(long_ago(), Config::default()).await;
            let (own, other) =
                (live(long_ago(), stage.ca.identity(RATINGS)), live(long_ago(), stage.ca.identity(DETAILS)));
            let (mesh, book) = stage.caller(&own, protocol).await;
            let (others, others_book) = stage.caller(&other, protocol).await;
            let (listening, staying) = (tokio::spawn(listen(mesh.clone())), tokio::spawn(listen(others.clone())));
            assert_eq!(fetch(&mesh, URI).await.0, StatusCode::OK);
            assert_eq!(fetch(&others, URI).await.0, StatusCode::OK);
            sleep(Duration::from_secs(1)).await;
            let (before, denied) = (others_book.open(), Instant::now());
            if by_server {
                deny(&stage.server, RATINGS);
            } else {
                deny(&own, REVIEWS);
            }
            sleep(Duration::from_secs(1)).await;
            let refused = fetch(&mesh, URI).await.0;
            let by = format!("{protocol:?}, by the server: {by_server}, {refused}");
            assert!(matches!(refused, StatusCode::FORBIDDEN | StatusCode::SERVICE_UNAVAILABLE), "{by}");
            assert_eq!(fetch(&others, URI).await.0, StatusCode::OK, "{by}");
            let lasted = timeout(Duration::from_secs(60), listening).await.expect(&by).unwrap();
            assert!(lasted < Duration::from_secs(11) && denied.elapsed() < Duration::from_secs(10), "{by}: {lasted:?}");
            sleep(Duration::from_secs(10)).await;
            assert_eq!(book.open(), 0, "{by}");
            assert!(!staying.is_finished(), "{by}");
            assert_eq!((others_book.open(), others_book.ages().len()), (before, 0), "{by}");
            staying.abort();
        }
    }
}

/// CT7: a caller that cannot renew its certificate is cut off within 10 s of its end, and not a moment before it.
#[tokio::test(start_paused = true)]
async fn an_expired_certificate_ends_its_connections() {
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let begin = UNIX_EPOCH + Duration::from_secs(YEAR_2060 - 30);
        let stage = Stage::new(begin, Config::default()).await;
        let (chain, key) = stage.ca.sign(&Leaf { uris: &[RATINGS], until: 2060, ..Leaf::default() });
        let own = live(begin, Identity::from_der(chain, key, vec![stage.ca.root()]).unwrap());
        let (mesh, book) = stage.caller(&own, protocol).await;
        let lasted = timeout(Duration::from_secs(120), listen(mesh.clone())).await.unwrap();
        assert!((Duration::from_secs(30)..Duration::from_secs(40)).contains(&lasted), "{protocol:?}: {lasted:?}");
        assert_eq!(fetch(&mesh, URI).await.0, StatusCode::SERVICE_UNAVAILABLE, "{protocol:?}");
        sleep(Duration::from_secs(10)).await;
        assert_eq!(book.open(), 0, "{protocol:?}");
    }
}

/// AN4: a port that takes mutual TLS only from now on closes what it had in plaintext, and refuses on it meanwhile.
#[tokio::test(start_paused = true)]
async fn a_port_that_becomes_strict_ends_plaintext() {
    let policy = |mtls| {
        let inbound = Inbound { mtls, ..Inbound::default() };
        Config { inbound: [(9080, Arc::new(inbound))].into(), ..Config::default() }
    };
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let stage = Stage::new(long_ago(), policy(MtlsMode::Permissive)).await;
        let book = Book::default();
        let mut target = cluster("reviews", &[([10, 0, 0, 2], 9080).into()]);
        (target.tls, target.protocol) = (TlsMode::Disable, protocol);
        let wire = Wire { server: stage.way.clone(), book: book.clone() };
        let mesh = Mesh::builder().config(config("reviews", target)).connector(wire).build().await.unwrap();
        let listening = tokio::spawn(listen(mesh.clone()));
        assert_eq!(fetch(&mesh, URI).await.0, StatusCode::OK);
        stage.mesh.live().update(&policy(MtlsMode::Strict)).unwrap();
        assert_ne!(fetch(&mesh, URI).await.0, StatusCode::OK, "{protocol:?}");
        let lasted = timeout(Duration::from_secs(60), listening).await.unwrap().unwrap();
        assert!(lasted < Duration::from_secs(10), "{protocol:?}: {lasted:?}");
        sleep(Duration::from_secs(10)).await;
        assert_eq!(book.open(), 0, "{protocol:?}");
    }
}

/// CT7, CT10, RA20: a connection that changed its protocol ends like others: where the caller is denied, or denies its server, where a
/// certificate is over, and where the server drains; not where either end only has another certificate.
#[tokio::test(start_paused = true)]
async fn changed_connections_end_like_others() {
    let bound = Duration::from_secs(11);
    for ends in ["denied", "denies", "expires", "drains"] {
        let begin = if ends == "expires" { UNIX_EPOCH + Duration::from_secs(YEAR_2060 - 30) } else { long_ago() };
        let stage = Stage::new(begin, Config::default()).await;
        let (chain, key) = stage.ca.sign(&Leaf { uris: &[RATINGS], until: 2060, ..Leaf::default() });
        let leaf = Identity::from_der(chain, key, vec![stage.ca.root()]).unwrap();
        let own = live(begin, if ends == "expires" { leaf } else { stage.ca.identity(RATINGS) });
        let (mesh, book) = stage.caller(&own, Protocol::Http1).await;
        let io = change(&mesh).await;
        let listening = tokio::spawn(reading(io));
        if ends != "expires" {
            stage.server.replace(stage.ca.identity(REVIEWS));
            own.replace(stage.ca.identity(RATINGS));
            sleep(Duration::from_secs(60)).await;
            assert!(!listening.is_finished(), "{ends}: the certificates it was made with are good still");
        }
        let since = Instant::now();
        match ends {
            "denied" => deny(&stage.server, RATINGS),
            "denies" => deny(&own, REVIEWS),
            "drains" => stage.mesh.shutdown(),
            _ => sleep(Duration::from_secs(29)).await,
        }
        assert!(!listening.is_finished(), "{ends}");
        timeout(Duration::from_secs(60), listening).await.expect(ends).unwrap();
        assert!(since.elapsed() < bound + Duration::from_secs(29), "{ends}: {:?}", since.elapsed());
        assert!(ends == "expires" || since.elapsed() < bound, "{ends}: {:?}", since.elapsed());
        sleep(Duration::from_secs(10)).await;
        assert_eq!(book.open(), 0, "{ends}");
    }
}

/// CT10: who only writes on a connection that changed its protocol is stopped, too, and nobody has to read for that.
#[tokio::test(start_paused = true)]
async fn who_only_writes_is_stopped() {
    let stage = Stage::new(long_ago(), Config::default()).await;
    let own = live(long_ago(), stage.ca.identity(RATINGS));
    let (mesh, _book) = stage.caller(&own, Protocol::Http1).await;
    let mut io = change(&mesh).await;
    deny(&own, REVIEWS);
    let writing = async {
        loop {
            // The server takes nothing off the wire; what is written is little enough to find its place there.
            if io.write_all(b"w").await.is_err() || io.flush().await.is_err() {
                return;
            }
            sleep(Duration::from_millis(200)).await;
        }
    };
    timeout(Duration::from_secs(11), writing).await.expect("it goes on writing");
}

/// AN4: a port that becomes STRICT ends what changed its protocol in plaintext.
#[tokio::test(start_paused = true)]
async fn a_port_that_becomes_strict_ends_changed_plaintext() {
    let policy = |mtls| {
        let inbound = Inbound { mtls, ..Inbound::default() };
        Config { inbound: [(9080, Arc::new(inbound))].into(), ..Config::default() }
    };
    let stage = Stage::new(long_ago(), policy(MtlsMode::Permissive)).await;
    let book = Book::default();
    let mut target = cluster("reviews", &[([10, 0, 0, 2], 9080).into()]);
    (target.tls, target.protocol) = (TlsMode::Disable, Protocol::Http1);
    let wire = Wire { server: stage.way.clone(), book: book.clone() };
    let mesh = Mesh::builder().config(config("reviews", target)).connector(wire).build().await.unwrap();
    let listening = tokio::spawn(reading(change(&mesh).await));
    stage.mesh.live().update(&policy(MtlsMode::Strict)).unwrap();
    let lasted = timeout(Duration::from_secs(60), listening).await.unwrap().unwrap();
    assert!(lasted < Duration::from_secs(11), "{lasted:?}");
}

/// SV10, AN4: who begins a handshake and does not end it is let go of after 10 s, who says nothing after 30 s.
#[tokio::test(start_paused = true)]
async fn who_stalls_is_let_go_of() {
    let stage = Stage::new(long_ago(), Config::default()).await;
    for (begin, limit) in [(&[0x16, 3, 1][..], Duration::from_secs(10)), (&[][..], Duration::from_secs(30))] {
        let (mut near, far) = duplex(1024);
        stage.way.send(far).unwrap();
        near.write_all(begin).await.unwrap();
        let since = Instant::now();
        let ended = timeout(Duration::from_secs(60), near.read(&mut [0; 16])).await.expect("it stays");
        let lasted = since.elapsed();
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
        assert!(lasted >= limit && lasted < limit + Duration::from_secs(1), "{begin:?}: {lasted:?}");
    }
}
