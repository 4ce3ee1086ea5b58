//! One HTTP/2 connection, shared by the requests on it, and what one request does on its stream.
//!
//! It speaks to the `h2` crate directly. A request puts its head and, where it is all there, its body on the connection
//! from its own task, and is woken once, by its response: hyper's client would pass the request through a queue to a
//! second task and start a third one to wait. The connection itself is a task: it reads for all streams, answers pings,
//! and keeps flow control going while nobody reads. It ends when the last handle to the connection has gone, or when a
//! ping goes unanswered.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{future::Either, task::AtomicWaker};
use h2::{
    Ping, PingPong, RecvStream,
    client::{self, ResponseFuture, SendRequest},
};
use http::{HeaderValue, Method, Request, Response, header};
use http_body::Body as _;
use mesh_core::{
    config::{Connections, Keepalive},
    identity::SpiffeId,
    request::is_grpc,
    time::Time,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, Sleep, sleep},
};

use super::{
    lease::Sent,
    message,
    pipe::{Pipe, Piped},
};
use crate::{
    body::Body,
    error::{Error, ErrorKind},
    source,
    tls::Retired,
};

/// What one response may send ahead of its reader, unless configured.
const STREAM_WINDOW: u32 = 2 * 1024 * 1024;
/// What all responses may send ahead of their readers, unless configured.
const CONNECTION_WINDOW: u32 = 5 * 1024 * 1024;
/// Stands for the peer's limit until it has said how many requests it takes, which is 32 bits.
const UNKNOWN: usize = usize::MAX - 1;

/// One connection.
pub(super) struct Http2 {
    /// Until it is dropped.
    sender: Option<SendRequest<Bytes>>,
    state: Arc<State>,
    /// Who is at the other end, as its certificate proved.
    pub(super) peer: Option<SpiffeId>,
    /// Of a connection with a workload: it may not be used any more.
    pub(super) retired: Option<Retired>,
    /// Of our identity when it was opened.
    pub(super) generation: u64,
    pub(super) opened: Time,
    most: usize,
    /// Fields in the head of a response.
    most_fields: usize,
    /// Requests it has been given.
    requests: AtomicU32,
    idle_since: AtomicU64,
}

/// What the connection's task tells.
#[derive(Debug, Default)]
struct State {
    /// What the peer takes at once.
    limit: AtomicUsize,
    /// It takes no new requests: over, or the peer said that it is leaving.
    closed: AtomicBool,
    /// Requests under way.
    streams: AtomicUsize,
    /// Of the connection's task.
    task: AtomicWaker,
    /// A request wants to know whether the peer is still there.
    asked: AtomicBool,
}

impl Http2 {
    /// Over a connection that has just been made; it is open when the peer has said what it takes.
    pub(super) async fn open(
        io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        config: &Connections,
    ) -> Result<Self, h2::Error> {
        let options = &config.http2;
        let mut builder = client::Builder::new();
        builder
            .enable_push(false)
            .initial_max_send_streams(UNKNOWN)
            .initial_window_size(options.stream_window.unwrap_or(STREAM_WINDOW))
            .initial_connection_window_size(options.connection_window.unwrap_or(CONNECTION_WINDOW))
            .max_header_list_size(config.max_response_headers_kib.saturating_mul(1024));
        if let Some(size) = options.header_table {
            builder.header_table_size(size);
        }
        let (sender, mut connection) = builder.handshake::<_, Bytes>(io).await?;
        poll_fn(|cx| match Pin::new(&mut connection).poll(cx) {
            Poll::Ready(ended) => Poll::Ready(ended.and(Err(h2::Reason::CONNECT_ERROR.into()))),
            Poll::Pending if connection.max_concurrent_send_streams() == UNKNOWN => Poll::Pending,
            Poll::Pending => Poll::Ready(Ok(())),
        })
        .await?;
        let limit = AtomicUsize::new(connection.max_concurrent_send_streams());
        let state = Arc::new(State { limit, ..State::default() });
        let pings = options.keepalive.and_then(|keepalive| Some(Pings::new(keepalive, connection.ping_pong()?)));
        // Ends with the connection: when the peer or the last handle goes.
        tokio::spawn(Drive { connection, state: Arc::clone(&state), pings });
        Ok(Self {
            sender: Some(sender),
            state,
            peer: None,
            retired: None,
            generation: 0,
            opened: Time::ZERO,
            most: (options.max_concurrent_streams as usize).max(1),
            most_fields: config.max_response_headers as usize,
            requests: AtomicU32::new(0),
            idle_since: AtomicU64::new(0),
        })
    }

    /// It takes no new requests.
    pub(super) fn is_closed(&self) -> bool {
        self.state.closed.load(Relaxed) || self.retired.as_ref().is_some_and(Retired::is_set)
    }

    /// Requests under way.
    pub(super) fn streams(&self) -> usize {
        self.state.streams.load(Relaxed)
    }

    /// Is there room for one more?
    pub(super) fn has_room(&self) -> bool {
        self.streams() < self.most()
    }

    /// How many requests it carries at once.
    pub(super) fn most(&self) -> usize {
        self.state.limit.load(Relaxed).min(self.most)
    }

    /// Requests it was given.
    pub(super) fn requests(&self) -> u32 {
        self.requests.load(Relaxed)
    }

    /// Since when no request has been under way.
    pub(super) fn idle_since(&self) -> Time {
        Time::from_nanos(self.idle_since.load(Relaxed))
    }

    /// One more is under way. Asks whether the peer is still there when it lay idle longer than `after_idle`.
    pub(super) fn enter(&self, now: Time, after_idle: Option<Duration>) {
        let before = self.state.streams.fetch_add(1, Relaxed);
        self.requests.fetch_add(1, Relaxed);
        if before > 0 {
            return;
        }
        let idle = now.saturating_since(self.idle_since());
        self.idle_since.store(now.as_nanos(), Relaxed);
        if after_idle.is_some_and(|after| idle > after) {
            self.state.asked.store(true, Relaxed);
            self.state.task.wake();
        }
    }

    /// One less is under way.
    pub(super) fn leave(&self) {
        self.state.streams.fetch_sub(1, Relaxed);
    }

    /// It was of use until now.
    pub(super) fn touch(&self, now: Time) {
        self.idle_since.store(now.as_nanos(), Relaxed);
    }

    /// Sends a request and waits for the head of the response; what is left of the body to send comes with it.
    pub(super) fn send(&self, request: Request<Body>) -> impl Future<Output = (Sent<RecvStream>, Option<Pipe>)> + Send {
        let (begun, most_fields) = (self.begin(request), self.most_fields);
        async move {
            let (mut response, mut pipe) = match begun {
                Either::Left(begun) => begun,
                Either::Right(sent) => return (sent, None),
            };
            let result = poll_fn(|cx| {
                if let Some(pipe) = &mut pipe {
                    match pipe.poll(cx) {
                        Poll::Ready(Piped::Failed(error)) => return Poll::Ready(Err(error)),
                        Poll::Ready(Piped::Done) => {}
                        Poll::Pending => {
                            return Pin::new(&mut response).poll(cx).map_err(message::stream_failure);
                        }
                    }
                }
                pipe = None;
                Pin::new(&mut response).poll(cx).map_err(message::stream_failure)
            })
            .await;
            match result {
                Ok(response) if response.headers().len() > most_fields => {
                    let said = format!("the response has more than {most_fields} header fields");
                    (Sent::Failed(Error::msg(ErrorKind::Protocol, said)), None)
                }
                Ok(response) => (Sent::Answered(response), pipe),
                Err(error) => (Sent::Failed(error), None),
            }
        }
    }

    /// Puts the head of a request on the connection.
    fn begin(&self, request: Request<Body>) -> Either<(ResponseFuture, Option<Pipe>), Sent<RecvStream>> {
        let Some(sender) = &self.sender else {
            return Either::Right(Sent::Returned(Box::new(request), Error::of(ErrorKind::Reset)));
        };
        let mut sender = sender.clone();
        // A fresh handle waits for nothing; it only says whether the connection takes new requests.
        if let Poll::Ready(Err(error)) = sender.poll_ready(&mut Context::from_waker(Waker::noop())) {
            self.state.closed.store(true, Relaxed);
            return Either::Right(Sent::Returned(Box::new(request), message::stream_failure(error).unsent()));
        }
        let (mut parts, body) = request.into_parts();
        if let Some(length) = body.known_len()
            && (length > 0 || matches!(parts.method, Method::POST | Method::PUT | Method::PATCH))
            // Each message of gRPC says its own length, and its clients say no other.
            && !is_grpc(&parts.headers)
        {
            parts.headers.entry(header::CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
        }
        let whole = body.is_end_stream();
        let (response, stream) = match sender.send_request(Request::from_parts(parts, ()), whole) {
            Ok(started) => started,
            // The connection ended between the two calls, or the request has headers that HTTP/2 does not allow.
            Err(error) if error.is_io() || error.is_go_away() || error.is_reset() => {
                return Either::Right(Sent::Failed(message::stream_failure(error).unsent()));
            }
            Err(error) => return Either::Right(Sent::Failed(Error::new(ErrorKind::Invalid, error))),
        };
        Either::Left((response, (!whole).then(|| Pipe::new(body, stream))))
    }
}

impl Drop for Http2 {
    fn drop(&mut self) {
        // The connection's task looks whether anything is left only when it is woken.
        drop(self.sender.take());
        self.state.task.wake();
    }
}

impl std::fmt::Debug for Http2 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Http2").field("state", &self.state).finish_non_exhaustive()
    }
}

/// The connection's task.
struct Drive<T> {
    connection: client::Connection<T, Bytes>,
    state: Arc<State>,
    pings: Option<Pings>,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Future for Drive<T> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        this.state.task.register(cx.waker());
        if let Some(pings) = &mut this.pings
            && pings.poll_dead(&this.state, cx).is_ready()
        {
            this.state.closed.store(true, Relaxed);
            // Dropping it ends every stream with an error.
            return Poll::Ready(());
        }
        let polled = Pin::new(&mut this.connection).poll(cx);
        this.state.limit.store(this.connection.max_concurrent_send_streams(), Relaxed);
        if polled.is_ready() {
            this.state.closed.store(true, Relaxed);
        }
        polled.map(|_| ())
    }
}

/// Pings, and how long their answers take. Source: Envoy `connection_keepalive`, gRFC A8.
struct Pings {
    keepalive: Keepalive,
    channel: PingPong,
    /// An answer is awaited until then; else the next ping goes out then.
    timer: Pin<Box<Sleep>>,
    awaited: bool,
}

impl Pings {
    fn new(keepalive: Keepalive, channel: PingPong) -> Self {
        let timer = Box::pin(sleep(keepalive.interval.unwrap_or(Duration::MAX)));
        Self { keepalive, channel, timer, awaited: false }
    }

    /// Ready when an answer did not come in time.
    fn poll_dead(&mut self, state: &State, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.awaited {
                match self.channel.poll_pong(cx) {
                    Poll::Ready(Ok(_)) => {
                        self.awaited = false;
                        self.sleep(self.keepalive.interval.unwrap_or(Duration::MAX));
                    }
                    // The connection is over; its own poll says so.
                    Poll::Ready(Err(_)) => return Poll::Pending,
                    Poll::Pending => return self.timer.as_mut().poll(cx),
                }
            } else {
                let asked = state.asked.swap(false, Relaxed);
                if !asked {
                    ready!(self.timer.as_mut().poll(cx));
                }
                if !asked && state.streams.load(Relaxed) == 0 {
                    // Servers close connections that ping without requests (gRFC A8).
                    self.sleep(self.keepalive.interval.unwrap_or(Duration::MAX));
                } else if self.channel.send_ping(Ping::opaque()).is_ok() {
                    self.awaited = true;
                    self.sleep(self.keepalive.timeout);
                } else {
                    return Poll::Pending;
                }
            }
        }
    }

    fn sleep(&mut self, duration: Duration) {
        // As far away as the runtime's timer goes.
        let far = Duration::from_secs(86_400 * 365);
        let until: Instant = source::instant() + duration.min(far);
        self.timer.as_mut().reset(until);
    }
}

/// What is left of a response's length, as its head announces it.
pub(super) fn announced<B>(response: &Response<B>) -> Option<u64> {
    response.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
