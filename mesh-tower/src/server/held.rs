//! Connections whose protocol was changed: their bytes are in other hands, and are held to what they began with all the same.
//!
//! Whoever serves a connection keeps the other end of its [`Hold`]. Once HTTP is over on it, and the bytes are still there, it goes
//! on waiting for what ends connections, and then stops them both ways.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use futures_util::task::AtomicWaker;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
};

/// Of one connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Hold(Arc<State>);

#[derive(Debug, Default)]
struct State {
    /// Its protocol is about to change.
    changing: AtomicBool,
    cut: AtomicBool,
    gone: AtomicBool,
    ended: Notify,
    reader: AtomicWaker,
    writer: AtomicWaker,
}

impl Hold {
    /// Its protocol is about to change: from now on who waits for its bytes is told when they stop.
    pub(super) fn change(&self) {
        self.0.changing.store(true, Relaxed);
    }

    /// Ends when the bytes are gone.
    pub(super) async fn gone(&self) {
        loop {
            let ended = self.0.ended.notified();
            if self.is_gone() {
                return;
            }
            ended.await;
        }
    }

    /// Are the bytes gone?
    pub(super) fn is_gone(&self) -> bool {
        self.0.gone.load(Relaxed)
    }

    /// Stops the bytes when this is dropped.
    pub(super) fn cutting(&self) -> Cutting {
        Cutting(self.clone())
    }

    fn check(&self, waker: &AtomicWaker, cx: &Context<'_>) -> io::Result<()> {
        if self.0.changing.load(Relaxed) {
            waker.register(cx.waker());
        }
        match self.0.cut.load(Relaxed) {
            true => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "its time is over")),
            false => Ok(()),
        }
    }
}

/// Whoever holds this lets the bytes go on.
#[derive(Debug)]
pub(super) struct Cutting(Hold);

impl Drop for Cutting {
    fn drop(&mut self) {
        let state = &self.0.0;
        state.cut.store(true, Relaxed);
        state.reader.wake();
        state.writer.wake();
    }
}

/// The bytes.
#[derive(Debug)]
pub(super) struct Held<I> {
    io: I,
    hold: Hold,
}

impl<I> Held<I> {
    pub(super) fn new(io: I, hold: Hold) -> Self {
        Self { io, hold }
    }
}

impl<I> Drop for Held<I> {
    fn drop(&mut self) {
        self.hold.0.gone.store(true, Relaxed);
        self.hold.0.ended.notify_waiters();
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Held<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.hold.check(&self.hold.0.reader, cx)?;
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Held<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.hold.check(&self.hold.0.writer, cx)?;
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.hold.check(&self.hold.0.writer, cx)?;
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.hold.check(&self.hold.0.writer, cx)?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
