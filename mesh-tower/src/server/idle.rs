//! Bytes that stand still: how long nothing has gone either way, and the end of that.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, sleep_until},
};

use crate::source;

/// When something last went over a connection. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Activity {
    began: Instant,
    /// In milliseconds since then.
    last: Arc<AtomicU64>,
}

impl Activity {
    /// Of a connection that begins.
    pub(super) fn new() -> Self {
        Self { began: source::instant(), last: Arc::default() }
    }

    fn note(&self) {
        let millis = u64::try_from((source::instant() - self.began).as_millis()).unwrap_or(u64::MAX);
        self.last.store(millis, Relaxed);
    }

    /// Ends when nothing has gone for so long.
    pub(super) async fn stands_still(&self, limit: Duration) {
        loop {
            let until = self.began + Duration::from_millis(self.last.load(Relaxed)) + limit;
            if until <= source::instant() {
                return;
            }
            sleep_until(until).await;
        }
    }
}

/// Bytes, both ways of which are noted.
#[derive(Debug)]
pub(super) struct Noted<I> {
    pub(super) io: I,
    pub(super) activity: Activity,
}

impl<I: AsyncRead + Unpin> AsyncRead for Noted<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        if polled.is_ready() {
            self.activity.note();
        }
        polled
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Noted<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, buf);
        if polled.is_ready() {
            self.activity.note();
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, duplex},
        time::{advance, timeout},
    };

    use super::*;

    /// TO9: bytes either way begin the time anew.
    #[tokio::test(start_paused = true)]
    async fn what_goes_either_way_counts() {
        let limit = Duration::from_secs(10);
        let (near, mut far) = duplex(64);
        let activity = Activity::new();
        let mut noted = Noted { io: near, activity: activity.clone() };
        for _ in 0..3 {
            advance(Duration::from_secs(6)).await;
            noted.write_all(b"a").await.unwrap();
            far.read_u8().await.unwrap();
            advance(Duration::from_secs(6)).await;
            far.write_all(b"b").await.unwrap();
            noted.read_u8().await.unwrap();
        }
        assert!(timeout(Duration::from_secs(9), activity.stands_still(limit)).await.is_err());
        assert!(timeout(Duration::from_secs(2), activity.stands_still(limit)).await.is_ok());
    }
}
