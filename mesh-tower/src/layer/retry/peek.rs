//! A response's body of which the first words may have been read already, to learn a gRPC status that stands at the end.
//!
//! Looking ahead never holds up a stream: it waits for the server's first word after the headers, and looks for a second
//! one only if that is at hand. A call that failed has its trailers in one of the two places (C4).

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::error::{BoxError, Error, ErrorKind};

/// A body with the frames that were read ahead put back in front.
#[derive(Debug)]
#[must_use = "bodies do nothing unless polled"]
pub struct Peeked<B> {
    /// In a box, since hardly any body has been read ahead.
    ahead: Option<Box<Ahead>>,
    /// The rest has ended.
    over: bool,
    rest: B,
}

type Ahead = [Option<Result<Frame<Bytes>, Error>>; 2];

impl<B> Peeked<B> {
    pub(super) fn new(rest: B) -> Self {
        Self { ahead: None, over: false, rest }
    }

    fn ahead(&self) -> impl Iterator<Item = &Result<Frame<Bytes>, Error>> {
        self.ahead.iter().flat_map(|ahead| ahead.iter().flatten())
    }

    /// The trailers, if they have been read ahead.
    pub(super) fn trailers(&self) -> Option<&HeaderMap> {
        self.ahead().find_map(|frame| frame.as_ref().ok()?.trailers_ref())
    }
}

impl<B> Peeked<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    /// Reads the first frame, and the second if it is at hand.
    pub(super) async fn peek(&mut self) {
        let first = std::future::poll_fn(|cx| self.poll_rest(cx)).await;
        let is_data = matches!(&first, Some(Ok(frame)) if frame.is_data());
        let second = if is_data {
            let second = std::future::poll_fn(|cx| match self.poll_rest(cx) {
                Poll::Ready(second) => Poll::Ready(second),
                Poll::Pending => Poll::Ready(None),
            });
            second.await
        } else {
            None
        };
        self.ahead = Some(Box::new([first, second]));
    }

    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let polled = Pin::new(&mut self.rest).poll_frame(cx);
        if matches!(&polled, Poll::Ready(None)) {
            self.over = true;
        }
        polled.map(|frame| frame.map(|frame| frame.map_err(|e| Error::from_boxed(ErrorKind::Reset, e.into()))))
    }
}

impl<B> HttpBody for Peeked<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        if let Some(ahead) = &mut this.ahead {
            if let Some(frame) = ahead.iter_mut().find_map(Option::take) {
                return Poll::Ready(Some(frame));
            }
            this.ahead = None;
        }
        if this.over { Poll::Ready(None) } else { this.poll_rest(cx) }
    }

    fn is_end_stream(&self) -> bool {
        self.ahead().next().is_none() && (self.over || self.rest.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let ahead = self.ahead().filter_map(|frame| frame.as_ref().ok()?.data_ref());
        let ahead: u64 = ahead.map(|chunk| chunk.len() as u64).sum();
        let rest = self.rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(ahead));
        if let Some(upper) = rest.upper().and_then(|upper| upper.checked_add(ahead)) {
            hint.set_upper(upper);
        }
        hint
    }
}
