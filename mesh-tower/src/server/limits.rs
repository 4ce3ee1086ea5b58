//! What one connection may cost before anybody knows what it wants: heads of bounded size, streams of bounded number, resets
//! and continuations that do not go on for ever, and no silence.
//!
//! HTTP/1.1's parser and h2 hold most of these bounds; they are set here, in one place, to what Envoy has by default. What they
//! leave open is closed here: a caller that connects and says nothing, or too little to tell which protocol it speaks.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use http::{StatusCode, request::Parts};
use hyper_util::{
    rt::{TokioExecutor, TokioTimer},
    server::conn::auto,
};
use mesh_core::outcome::Flags;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::sleep,
};

use super::guard::Refusal;

/// The most headers of a request. Envoy `max_headers_count`, default 100.
const HEADERS: usize = 100;
/// The most bytes of a head. Envoy `max_request_headers_kb`, default 60.
const HEAD_BYTES: u32 = 60 * 1024;
/// Streams of one connection at once.
const STREAMS: u32 = 1000;
/// Streams a caller may reset before anybody looked at them, and streams it may make us reset (CVE-2023-44487, CVE-2025-8671).
const RESETS: (usize, usize) = (20, 256);
/// The bytes by which HTTP/2 is told from HTTP/1.1.
const PREFACE: usize = 24;

/// What speaks HTTP on a connection whose heads may take so long.
pub(super) fn protocols(head: Duration) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(head)
        .max_headers(HEADERS)
        .max_buf_size(HEAD_BYTES as usize);
    builder
        .http2()
        .timer(TokioTimer::new())
        .adaptive_window(true)
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEAD_BYTES)
        .max_pending_accept_reset_streams(RESETS.0)
        .max_local_error_reset_streams(RESETS.1);
    builder
}

/// A head has no more headers than it may; HTTP/1.1's parser has counted them before.
pub(super) fn head(parts: &Parts) -> Result<(), Box<Refusal>> {
    if parts.headers.len() <= HEADERS {
        return Ok(());
    }
    let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
    Err(Refusal::new(status, Flags::NONE, "there are too many headers"))
}

/// How much a caller has said.
#[derive(Clone, Debug, Default)]
pub(super) struct Heard(Arc<AtomicUsize>);

impl Heard {
    /// There is a request.
    pub(super) fn request(&self) {
        if self.0.load(Relaxed) < PREFACE {
            self.0.store(PREFACE, Relaxed);
        }
    }

    /// Ends when too little was said for so long.
    pub(super) async fn silence(&self, limit: Duration) {
        sleep(limit).await;
        if self.0.load(Relaxed) >= PREFACE {
            std::future::pending::<()>().await;
        }
    }
}

/// A connection that notes how much was said.
#[derive(Debug)]
pub(super) struct Listening<I> {
    pub(super) io: I,
    pub(super) heard: Heard,
}

impl<I: AsyncRead + Unpin> AsyncRead for Listening<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        if self.heard.0.load(Relaxed) < PREFACE {
            self.heard.0.fetch_add(buf.filled().len() - before, Relaxed);
        }
        polled
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Listening<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
