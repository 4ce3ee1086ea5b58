//! One HTTP/1.1 connection, driven by the request that uses it.
//!
//! hyper's connection is a future that somebody has to poll. Here that is the request which waits for it, and then the
//! response's body: no task of its own, no wake-up from one task to another, and nothing to schedule. While it lies idle
//! nobody polls it; its [`Signal`] remembers whether anything happened, and then it is polled once before it is used
//! again. Only a request whose body is still being sent when its response arrives needs a task, because nobody says that
//! the response will be read in time.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::Request;
use http_body::{Body as _, Frame};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use mesh_core::{config::Connections, identity::SpiffeId, time::Time};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    lease::Sent,
    signal::{Signal, signal},
};
use crate::{body::Body, tls::Retired};

/// How often a poll looks again at what happened meanwhile before it lets others have their turn.
const ROUNDS: usize = 3;

/// How many headers hyper takes unless told.
const HEADERS: u32 = 100;

type Driver = Pin<Box<dyn Future<Output = Result<(), hyper::Error>> + Send>>;

/// One connection.
pub(super) struct Http1 {
    sender: http1::SendRequest<Body>,
    /// None once the connection is over.
    driver: Option<Driver>,
    signal: Arc<Signal>,
    waker: Waker,
    /// Who is at the other end, as its certificate proved.
    pub(super) peer: Option<SpiffeId>,
    /// Of a connection with a workload: it may not be used any more.
    pub(super) retired: Option<Retired>,
    /// Of our identity when it was opened.
    pub(super) generation: u64,
    pub(super) opened: Time,
    pub(super) idle_since: Time,
    /// Requests it has been given.
    pub(super) requests: u32,
}

impl Http1 {
    /// Over a connection that has just been made.
    pub(super) async fn open(
        io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        config: &Connections,
    ) -> Result<Self, hyper::Error> {
        let mut builder = http1::Builder::new();
        // Said again, hyper's own number makes it prepare that much room anew for every response.
        if config.max_response_headers != HEADERS {
            builder.max_headers(config.max_response_headers as usize);
        }
        builder.max_header_size(config.max_response_headers_kib as usize * 1024);
        let (sender, driver) = builder.handshake(TokioIo::new(io)).await?;
        let driver: Driver = Box::pin(driver.with_upgrades());
        let (signal, waker) = signal();
        let mut this = Self {
            sender,
            driver: Some(driver),
            signal,
            waker,
            peer: None,
            retired: None,
            generation: 0,
            opened: Time::ZERO,
            idle_since: Time::ZERO,
            requests: 0,
        };
        // It asks for a request, which makes it ready to take one.
        this.drive();
        Ok(this)
    }

    /// Can it take a request now?
    pub(super) fn is_ready(&mut self) -> bool {
        if self.signal.take() {
            self.drive();
        }
        self.driver.is_some() && self.sender.is_ready() && !self.is_retired()
    }

    /// Its certificates, or the trust in the peer, are over.
    pub(super) fn is_retired(&self) -> bool {
        self.retired.as_ref().is_some_and(Retired::is_set)
    }

    /// Something happened on it while it lay idle: the peer closed it, most likely.
    pub(super) fn was_woken(&self) -> bool {
        self.signal.was_woken()
    }

    /// Hands over a request, at once, and then waits for the head of the response.
    pub(super) fn send(&mut self, request: Request<Body>) -> impl Future<Output = Sent<Incoming>> + Send + '_ {
        self.requests = self.requests.saturating_add(1);
        self.signal.quiet();
        let response = self.sender.try_send_request(request);
        let (driver, signal, waker) = (&mut self.driver, &self.signal, &self.waker);
        async move {
            let mut response = pin!(response);
            let result = poll_fn(|cx| {
                signal.quiet();
                for _ in 0..ROUNDS {
                    signal.take();
                    drive(driver, waker);
                    let mut own = Context::from_waker(waker);
                    if let Poll::Ready(result) = response.as_mut().poll(&mut own) {
                        return Poll::Ready(result);
                    }
                    if signal.wait(cx) {
                        return Poll::Pending;
                    }
                }
                cx.waker().wake_by_ref();
                Poll::Pending
            })
            .await;
            match result {
                Ok(response) => Sent::Answered(response),
                Err(mut error) => match error.take_message() {
                    Some(request) => Sent::Returned(Box::new(request), super::message::failure(error.into_error())),
                    None => Sent::Failed(super::message::failure(error.into_error())),
                },
            }
        }
    }

    /// The next frame of the response that came over it.
    pub(super) fn poll_frame(
        &mut self,
        body: &mut Incoming,
        cx: &Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.signal.quiet();
        for _ in 0..ROUNDS {
            let mut own = Context::from_waker(&self.waker);
            if let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(&mut own) {
                return Poll::Ready(frame);
            }
            self.signal.take();
            drive(&mut self.driver, &self.waker);
            if let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(&mut own) {
                return Poll::Ready(frame);
            }
            if self.signal.wait(cx) {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Ready when it can take another request, or is over.
    pub(super) fn poll_settled(&mut self, cx: &Context<'_>) -> Poll<()> {
        self.signal.quiet();
        for _ in 0..ROUNDS {
            self.signal.take();
            self.drive();
            if self.driver.is_none() || self.sender.is_ready() {
                return Poll::Ready(());
            }
            if self.signal.wait(cx) {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// One look at the connection.
    pub(super) fn drive(&mut self) {
        drive(&mut self.driver, &self.waker);
    }

    /// It is over.
    pub(super) fn is_closed(&self) -> bool {
        self.driver.is_none()
    }

    /// Says goodbye to the peer, as far as that goes without waiting.
    pub(super) fn close(self) {
        let Self { sender, mut driver, waker, .. } = self;
        drop(sender);
        drive(&mut driver, &waker);
    }
}

fn drive(driver: &mut Option<Driver>, waker: &Waker) {
    let Some(connection) = driver else { return };
    if connection.as_mut().poll(&mut Context::from_waker(waker)).is_ready() {
        // Whoever waits hears of it from what the connection leaves behind when it is dropped.
        *driver = None;
    }
}

impl std::fmt::Debug for Http1 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Http1").field("requests", &self.requests).finish_non_exhaustive()
    }
}
