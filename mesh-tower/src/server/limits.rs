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

use http::{StatusCode, header, request::Parts};
use hyper_util::{
    rt::{TokioExecutor, TokioTimer},
    server::conn::auto,
};
use mesh_core::{config::HttpLimits, outcome::Flags};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::sleep,
};

use super::guard::Refusal;

/// HTTP/1.1's parser takes no smaller buffer.
const SMALLEST: usize = 8192;
/// Streams a caller may reset before anybody looked at them, and streams it may make us reset (CVE-2023-44487, CVE-2025-8671).
const RESETS: (usize, usize) = (20, 256);
/// The bytes by which HTTP/2 is told from HTTP/1.1.
const PREFACE: usize = 24;

/// What speaks HTTP on a connection whose heads may take so long, and that may take so much.
pub(super) fn protocols(head: Duration, limits: &HttpLimits) -> auto::Builder<TokioExecutor> {
    let head_bytes = limits.max_head_kb.saturating_mul(1024);
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(head)
        .max_headers(limits.max_headers as usize)
        .max_buf_size((head_bytes as usize).max(SMALLEST));
    builder
        .http2()
        .timer(TokioTimer::new())
        .adaptive_window(limits.stream_window.is_none() && limits.connection_window.is_none())
        .max_concurrent_streams(limits.max_streams)
        .max_header_list_size(head_bytes)
        .max_pending_accept_reset_streams(RESETS.0)
        .max_local_error_reset_streams(RESETS.1);
    if limits.stream_window.is_some() || limits.connection_window.is_some() {
        builder
            .http2()
            .initial_stream_window_size(limits.stream_window)
            .initial_connection_window_size(limits.connection_window);
    }
    builder
}

/// There is more of a body than there may be. Source: Envoy `Buffer`.
pub(super) fn too_large() -> Box<Refusal> {
    let mut refusal = Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, Flags::NONE, "the body is too large");
    refusal.details = "request_payload_too_large".into();
    refusal
}

/// A head has no more headers than it may, and does not announce a longer body; HTTP/1.1's parser has counted them before.
pub(super) fn head(parts: &Parts, limits: &HttpLimits) -> Result<(), Box<Refusal>> {
    if parts.headers.len() > limits.max_headers as usize {
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        return Err(Refusal::new(status, Flags::NONE, "there are too many headers"));
    }
    let length = || parts.headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse::<u64>().ok();
    match limits.max_body {
        Some(most) if length().is_some_and(|length| length > u64::from(most)) => Err(too_large()),
        _ => Ok(()),
    }
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
