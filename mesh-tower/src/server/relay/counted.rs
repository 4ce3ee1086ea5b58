//! A stream that counts what is read and written, also of a connection that is cut off.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::connect::Io;

/// Bytes so far.
#[derive(Debug, Default)]
pub(super) struct Passed {
    pub(super) read: std::sync::atomic::AtomicU64,
    pub(super) written: std::sync::atomic::AtomicU64,
}

/// Counts into a [`Passed`].
pub(super) struct Counted<'a> {
    io: Box<dyn Io>,
    passed: &'a Passed,
}

impl<'a> Counted<'a> {
    pub(super) fn new(io: Box<dyn Io>, passed: &'a Passed) -> Self {
        Self { io, passed }
    }
}

impl AsyncRead for Counted<'_> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        add(&self.passed.read, buf.filled().len() - before);
        polled
    }
}

impl AsyncWrite for Counted<'_> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, buf);
        if let Poll::Ready(Ok(count)) = polled {
            add(&self.passed.written, count);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

fn add(to: &std::sync::atomic::AtomicU64, count: usize) {
    to.fetch_add(count as u64, std::sync::atomic::Ordering::Relaxed);
}
