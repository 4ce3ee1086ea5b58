//! How answers end, frame by frame: streams that a server refuses, statuses in trailers, and answers that take their time.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::StreamExt;
use h2::Reason;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use mesh_tower::config::{Action, BackOff, Forward, GrpcRetry, HttpRetry, RetryConditions, RetryPolicy, RouteMatch};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet, time::timeout};

use crate::harness::{Answer, Kind, Program, cluster_at, config, framed, route, to};

type Served = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// A server of HTTP/1.1 and HTTP/2; it ends with this value.
struct Server {
    address: SocketAddr,
    arrived: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Server {
    /// Requests so far.
    fn arrived(&self) -> usize {
        self.arrived.load(Relaxed)
    }
}

/// Answers the n-th request, from 0, like that, or resets its stream.
async fn serve(answer: impl Fn(usize) -> Result<Served, Reason> + Send + Sync + 'static) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, arrived, answer) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)), Arc::new(answer));
    let (count, mut tasks) = (Arc::clone(&arrived), JoinSet::new());
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            // Else the second packet waits until the first is acknowledged, 40 ms later.
            stream.set_nodelay(true).unwrap();
            let (count, answer) = (Arc::clone(&count), Arc::clone(&answer));
            let service = service_fn(move |request: Request<Incoming>| {
                let (count, answer) = (Arc::clone(&count), Arc::clone(&answer));
                async move {
                    drop(request.into_body().collect().await);
                    answer(count.fetch_add(1, Relaxed)).map_err(h2::Error::from)
                }
            });
            connections.spawn(async move {
                let builder = auto::Builder::new(TokioExecutor::new());
                drop(builder.serve_connection(TokioIo::new(stream), service).await);
            });
        }
    });
    Server { address, arrived, _tasks: tasks }
}

/// 200 in a packet of its own, and then, when the gate opens, all these frames at once.
fn answer(gate: Option<&Arc<Semaphore>>, frames: Vec<Frame<Bytes>>) -> Served {
    let gate = gate.cloned();
    let opened = async move {
        match gate {
            Some(gate) => gate.acquire().await.unwrap().forget(),
            None => tokio::task::yield_now().await,
        }
        futures_util::stream::iter(frames.into_iter().map(Ok))
    };
    let body = StreamBody::new(futures_util::stream::once(opened).flatten());
    Response::builder().header("content-type", "application/grpc").body(body.boxed_unsync()).unwrap()
}

fn messages(number: usize) -> Vec<Frame<Bytes>> {
    (0..number).map(|_| Frame::data(framed(b"word"))).collect()
}

fn status(status: u32) -> Frame<Bytes> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", status.into());
    Frame::trailers(trailers)
}

/// A good answer of this kind.
fn good(kind: Kind, gate: Option<&Arc<Semaphore>>) -> Served {
    let mut frames = messages(1);
    frames.extend(kind.is_grpc().then(|| status(0)));
    answer(gate, frames)
}

async fn calling(kind: Kind, server: &Server, retry: Option<RetryPolicy>) -> Program {
    let forward = Forward { retry, ..to("app") };
    let routes = vec![route(RouteMatch::default(), Action::Forward(forward))];
    Program::new(kind, config([cluster_at(kind, "app", &[server.address])], routes)).await
}

/// Once more, for these.
fn once_more(http: &[HttpRetry], grpc: &[GrpcRetry]) -> RetryPolicy {
    let on = RetryConditions { http: http.to_vec(), grpc: grpc.to_vec(), ..RetryConditions::default() };
    let back_off = BackOff { base: Duration::from_millis(1), max: Duration::from_millis(1) };
    RetryPolicy { on, retries: 1, back_off, ..RetryPolicy::default() }
}

/// A request whose answer's body is still to be read.
async fn head(program: &Program, kind: Kind) -> Response<impl http_body::Body<Data = Bytes> + Unpin + use<>> {
    let mut request = Request::get("http://app/a.B/C");
    if kind.is_grpc() {
        request = request.method("POST").header("content-type", "application/grpc").header("te", "trailers");
    }
    let asked = program.mesh.http().request(request.body(String::new()).unwrap());
    timeout(Duration::from_secs(20), asked).await.expect("the head of an answer").unwrap()
}

/// RT2: a status in trailers, in another packet than the headers, is acted on as one in headers is, after one message too; where a
/// second message comes the stream is its caller's.
#[tokio::test]
async fn statuses_in_trailers_are_tried_again() {
    for (number, code, tries) in [(0, 14, 2), (1, 14, 2), (1, 0, 1), (0, 5, 1), (2, 14, 1)] {
        let server = serve(move |_| {
            let mut frames = messages(number);
            frames.push(status(code));
            Ok(answer(None, frames))
        })
        .await;
        let program = calling(Kind::Grpc, &server, Some(once_more(&[], &[GrpcRetry::Unavailable]))).await;
        // A machine that stands still for 10 ms between the two packets is given another chance.
        for chance in 1..=10 {
            let before = server.arrived();
            let answer = program.get("/a.B/C").await;
            let arrived = server.arrived() - before;
            assert_eq!(answer.grpc, Some(code), "{number} messages: {answer:?}");
            assert_eq!(answer.body.matches("word").count(), number, "{code}: {answer:?}");
            if arrived == tries {
                break;
            }
            assert!(tries == 2 && chance < 10, "{number} messages, {code}: {arrived} tries");
        }
    }
}

/// RT2: a stream that begins with silence is not held up until it speaks, and what it says in the end is its caller's.
#[tokio::test]
async fn silent_streams_are_not_held_up() {
    let gate = Arc::new(Semaphore::new(0));
    let opens = Arc::clone(&gate);
    let server = serve(move |_| Ok(answer(Some(&opens), vec![status(14)]))).await;
    let program = calling(Kind::Grpc, &server, Some(once_more(&[], &[GrpcRetry::Unavailable]))).await;
    let mut fastest = Duration::MAX;
    for n in 1..=10 {
        let begun = Instant::now();
        let response = head(&program, Kind::Grpc).await;
        fastest = fastest.min(begun.elapsed());
        gate.add_permits(1);
        let answer = Answer::of(response).await;
        assert_eq!((answer.grpc, server.arrived()), (Some(14), n), "{answer:?}");
    }
    // 10 ms, and what a busy machine takes; of ten, the one that it troubled least.
    assert!(fastest < Duration::from_millis(100), "{fastest:?}");
}

/// RT10, RT15: what a server refuses before its application saw it is sent once more, and only once: a gRPC call without any policy,
/// a request of HTTP, of any method, where its policy says so.
#[tokio::test]
async fn refused_streams_are_sent_once_more() {
    let by_policy = || Some(once_more(&[HttpRetry::RefusedStream], &[]));
    for (kind, retry, refused, arrived) in [
        (Kind::Grpc, None, 1, 2),
        (Kind::Grpc, None, 2, 2),
        (Kind::Http2, None, 1, 1),
        (Kind::Http2, by_policy(), 1, 2),
        (Kind::Http2, by_policy(), 2, 2),
    ] {
        let server = serve(move |n| if n < refused { Err(Reason::REFUSED_STREAM) } else { Ok(good(kind, None)) }).await;
        let program = calling(kind, &server, retry).await;
        let answer = program.send(Request::post("/a.B/C"), "x").await;
        assert_eq!(server.arrived(), arrived, "{kind:?} {refused}: {answer:?}");
        assert_eq!(answer.is_ok(), arrived > refused, "{kind:?} {refused}: {answer:?}");
        assert!(answer.is_ok() || answer.is(kind, 503), "{kind:?} {refused}: {answer:?}");
    }
}

/// TO5: a try that has begun its answer is not cut by the limit of a try, however long the rest takes.
#[tokio::test]
async fn answers_that_have_begun_are_not_cut() {
    let limit = Duration::from_millis(250);
    for kind in Kind::ALL {
        let gate = Arc::new(Semaphore::new(0));
        let opens = Arc::clone(&gate);
        let server = serve(move |_| Ok(good(kind, Some(&opens)))).await;
        let any = once_more(
            &[HttpRetry::ServerError, HttpRetry::GatewayError, HttpRetry::Reset],
            &[GrpcRetry::Unavailable, GrpcRetry::DeadlineExceeded],
        );
        let program = calling(kind, &server, Some(RetryPolicy { per_try_timeout: Some(limit), ..any })).await;
        let response = head(&program, kind).await;
        // What is shown is that time passes and nothing happens.
        tokio::time::sleep(2 * limit).await;
        gate.add_permits(1);
        let answer = Answer::of(response).await;
        assert!(answer.is_ok() && answer.body.ends_with("word"), "{kind:?}: {answer:?}");
        assert_eq!((answer.flags.as_str(), server.arrived()), ("-", 1), "{kind:?}");
    }
}
