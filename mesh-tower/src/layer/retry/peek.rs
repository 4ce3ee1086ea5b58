//! The first words of a response's body, read to learn a gRPC status that stands at the end, and put back in front.
//!
//! Looking ahead holds up a stream for 10 ms at most: it waits so long for the server's first word after the headers, and
//! looks for a second one only if that is at hand. A call that failed at once has its trailers in one of the two places
//! (C4); what comes later is its caller's.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame};
use tokio::time::timeout;

use crate::{
    body::ResponseBody,
    error::{BoxError, Error},
};

/// What comes within it has come with the headers: packets in between, and tasks that are busy, take their time.
const AT_ONCE: Duration = Duration::from_millis(10);

/// Frames read ahead; in a box, since hardly any body has been.
#[derive(Debug, Default)]
pub(crate) struct Ahead(Option<Box<Frames>>);

/// A frame, or that there is none.
pub(crate) type Read = Option<Result<Frame<Bytes>, Error>>;
type Frames = [Read; 2];

impl Ahead {
    pub(crate) fn of(first: Read, second: Read) -> Self {
        Self(Some(Box::new([first, second])))
    }

    /// The next of them.
    pub(crate) fn next(&mut self) -> Option<Result<Frame<Bytes>, Error>> {
        let frame = self.0.as_mut()?.iter_mut().find_map(Option::take);
        if frame.is_none() {
            self.0 = None;
        }
        frame
    }

    fn frames(&self) -> impl Iterator<Item = &Result<Frame<Bytes>, Error>> {
        self.0.iter().flat_map(|frames| frames.iter().flatten())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.frames().next().is_none()
    }

    /// How much of the body is in them.
    pub(crate) fn bytes(&self) -> u64 {
        let chunks = self.frames().filter_map(|frame| frame.as_ref().ok()?.data_ref());
        chunks.map(|chunk| chunk.len() as u64).sum()
    }

    pub(crate) fn trailers(&self) -> Option<&HeaderMap> {
        self.frames().find_map(|frame| frame.as_ref().ok()?.trailers_ref())
    }
}

/// Reads the first frame, and the second if it is at hand.
pub(super) async fn peek<B>(body: &mut ResponseBody<B>)
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    let mut read = |cx: &mut Context<'_>| match body.watched() {
        Some((body, watchers)) => watchers.poll_ahead(Pin::new(body), cx),
        None => Poll::Ready(()),
    };
    let here = poll_fn(|cx| Poll::Ready(read(cx).is_ready())).await;
    if !here {
        // What a stream that begins with silence is worth, nobody can tell yet. In a box, since hardly any is waited for.
        let _ = Box::pin(timeout(AT_ONCE, poll_fn(read))).await;
    }
}
