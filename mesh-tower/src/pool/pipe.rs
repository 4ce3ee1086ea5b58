//! A request's body on its way onto an HTTP/2 stream.
//!
//! The end of the stream travels with the last chunk where the body says in time that it was the last: one frame less for
//! each unary gRPC call. Beyond the first small chunk nothing is put on the stream that flow control does not let out.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::{Body as _, Frame};

use crate::{
    body::Body,
    error::{Error, ErrorKind},
};

/// A first chunk up to this size goes out without asking for room: one frame at most waits in the connection.
const EAGER: usize = 16 * 1024;

/// A body being sent.
pub(super) struct Pipe {
    body: Body,
    stream: SendStream<Bytes>,
    /// What is left of the chunk under way.
    chunk: Bytes,
    next: Next,
    first: bool,
}

enum Next {
    Unknown,
    Frame(Frame<Bytes>),
    End,
}

/// How sending ended.
pub(super) enum Piped {
    /// All of it is sent, or the peer wants no more.
    Done,
    /// The caller's body failed: the stream is reset.
    Failed(Error),
}

impl Pipe {
    pub(super) fn new(body: Body, stream: SendStream<Bytes>) -> Self {
        Self { body, stream, chunk: Bytes::new(), next: Next::Unknown, first: true }
    }

    /// Sends what there is. Errors of the stream are the response's to tell, so they only end this.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Piped> {
        loop {
            if self.chunk.is_empty() {
                match std::mem::replace(&mut self.next, Next::Unknown) {
                    Next::End => {
                        let _ = self.stream.send_data(Bytes::new(), true);
                        return Poll::Ready(Piped::Done);
                    }
                    Next::Frame(frame) => match frame.into_data() {
                        Ok(data) => self.chunk = data,
                        Err(frame) => {
                            let _ = self.stream.send_trailers(frame.into_trailers().unwrap_or_default());
                            return Poll::Ready(Piped::Done);
                        }
                    },
                    Next::Unknown => match self.poll_next(cx) {
                        Poll::Ready(Ok(next)) => self.next = next,
                        Poll::Ready(Err(error)) => return Poll::Ready(self.fail(error)),
                        Poll::Pending => {
                            // The peer may want no more of it.
                            return self.stream.poll_reset(cx).map(|_| Piped::Done);
                        }
                    },
                }
                continue;
            }
            let room =
                if self.first && self.chunk.len() <= EAGER { self.chunk.len() } else { ready!(self.poll_room(cx)) };
            if room == 0 {
                return Poll::Ready(Piped::Done);
            }
            self.first = false;
            let part = self.chunk.split_to(room);
            if self.chunk.is_empty() && matches!(self.next, Next::Unknown) {
                match self.poll_next(cx) {
                    Poll::Ready(Ok(next)) => self.next = next,
                    Poll::Ready(Err(error)) => return Poll::Ready(self.fail(error)),
                    Poll::Pending => {}
                }
            }
            let end = self.chunk.is_empty() && matches!(self.next, Next::End);
            if self.stream.send_data(part, end).is_err() || end {
                return Poll::Ready(Piped::Done);
            }
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Next, Error>> {
        Poll::Ready(match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            Some(Ok(frame)) => Ok(Next::Frame(frame)),
            Some(Err(error)) => Err(Error::new(ErrorKind::Body, error)),
            None => Ok(Next::End),
        })
    }

    /// How much of the chunk may be sent; 0 when the stream is over.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        self.stream.reserve_capacity(self.chunk.len());
        loop {
            let room = self.stream.capacity();
            if room > 0 {
                return Poll::Ready(room.min(self.chunk.len()));
            }
            match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                _ => return Poll::Ready(0),
            }
        }
    }

    fn fail(&mut self, error: Error) -> Piped {
        self.stream.send_reset(Reason::CANCEL);
        Piped::Failed(error)
    }
}
