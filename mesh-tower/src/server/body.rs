//! Bodies of a server: what handlers read, counted; and what they answer, told of when it ends.

use std::{
    collections::VecDeque,
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use mesh_core::{outcome::grpc_status, telemetry::Messages};
use pin_project_lite::pin_project;

use super::story::Story;

/// A body of which something may have been read before its reader gets it.
#[derive(Debug)]
pub(super) struct Begun {
    front: VecDeque<Frame<Bytes>>,
    rest: Incoming,
}

impl Begun {
    pub(super) fn new(rest: Incoming) -> Self {
        Self { front: VecDeque::new(), rest }
    }

    /// Its beginning, as long as `most` at most, and whether there is more of it; its reader will find all of it. Where a part is
    /// enough, nobody waits for more once it is there.
    ///
    /// # Errors
    /// The caller has gone away.
    pub(super) async fn begin(&mut self, most: usize, part: bool) -> Result<(Vec<u8>, bool), hyper::Error> {
        let mut length: usize = self.front.iter().filter_map(Frame::data_ref).map(Bytes::len).sum();
        while (length < most || (length == most && !part)) && !self.rest.is_end_stream() {
            let Some(frame) = poll_fn(|cx| Pin::new(&mut self.rest).poll_frame(cx)).await.transpose()? else { break };
            length += frame.data_ref().map_or(0, Bytes::len);
            self.front.push_back(frame);
        }
        let mut begin: Vec<u8> = Vec::with_capacity(length.min(most));
        for piece in self.front.iter().filter_map(Frame::data_ref) {
            begin.extend_from_slice(piece.get(..most - begin.len()).unwrap_or(piece));
        }
        Ok((begin, length > most || (length == most && !self.rest.is_end_stream())))
    }

    /// Is there none?
    pub(super) fn is_empty(&self) -> bool {
        self.front.is_empty() && self.rest.is_end_stream()
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.front.pop_front() {
            Some(frame) => Poll::Ready(Some(Ok(frame))),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let front = self.front.iter().filter_map(Frame::data_ref).map(|data| data.len() as u64).sum::<u64>();
        let (mut hint, rest) = (SizeHint::new(), self.rest.size_hint());
        hint.set_lower(rest.lower().saturating_add(front));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(front));
        }
        hint
    }
}

/// The body of a request as a handler gets it.
#[derive(Debug)]
pub struct RequestBody {
    body: Begun,
    told: Arc<Received>,
    /// Of gRPC.
    messages: Option<Messages>,
    /// It is all there, or nobody wants the rest.
    read: Arc<AtomicBool>,
    /// The most there may be of it.
    most: Option<u32>,
}

/// Why there is no more of a request's body.
#[derive(Debug)]
#[non_exhaustive]
pub enum RequestBodyError {
    /// It broke off.
    Broken(hyper::Error),
    /// There is more of it than the port takes. The request is answered with 413, whatever the application says of it.
    TooLarge,
}

impl fmt::Display for RequestBodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken(error) => write!(f, "the request's body broke off: {error}"),
            Self::TooLarge => f.write_str("the request's body is too large"),
        }
    }
}

impl std::error::Error for RequestBodyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Broken(error) => Some(error),
            Self::TooLarge => None,
        }
    }
}

impl RequestBody {
    /// With the word that it was read.
    pub(super) fn new(body: Begun, told: Arc<Received>, is_grpc: bool, most: Option<u32>) -> (Self, Arc<AtomicBool>) {
        let read = Arc::new(AtomicBool::new(body.is_empty()));
        (Self { body, told, messages: is_grpc.then(Messages::default), read: Arc::clone(&read), most }, read)
    }
}

/// What was received of a request's body.
#[derive(Debug, Default)]
pub(super) struct Received {
    pub(super) bytes: AtomicU64,
    /// Of gRPC.
    pub(super) messages: AtomicU64,
    /// There was more than there may be.
    pub(super) too_large: AtomicBool,
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        self.read.store(true, Ordering::Relaxed);
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = RequestBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        if self.told.too_large.load(Ordering::Relaxed) {
            return Poll::Ready(None);
        }
        let polled = self.body.poll(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            let before = self.told.bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
            if self.most.is_some_and(|most| before.saturating_add(data.len() as u64) > u64::from(most)) {
                self.told.too_large.store(true, Ordering::Relaxed);
                return Poll::Ready(Some(Err(RequestBodyError::TooLarge)));
            }
            let this = &mut *self;
            if let Some(messages) = &mut this.messages {
                messages.passed(data);
                this.told.messages.store(messages.count(), Ordering::Relaxed);
            }
        }
        if matches!(&polled, Poll::Ready(None | Some(Err(_)))) || self.body.is_empty() {
            self.read.store(true, Ordering::Relaxed);
        }
        polled.map_err(RequestBodyError::Broken)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

pin_project! {
    /// The body of a response: the handler's, or a few words of our own.
    #[project = AnswerProj]
    pub(super) enum Answer<B> {
        Handler { #[pin] body: B, story: Option<Story> },
        Own { text: Bytes },
    }
}

impl<B: HttpBody> HttpBody for Answer<B>
where
    B::Data: Buf,
{
    type Data = Chunk<B::Data>;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let (mut body, story) = match self.project() {
            AnswerProj::Own { text } => {
                let text = std::mem::take(text);
                return Poll::Ready((!text.is_empty()).then(|| Ok(Frame::data(Chunk::Own(text)))));
            }
            AnswerProj::Handler { body, story } => (body, story),
        };
        let frame = ready!(body.as_mut().poll_frame(cx));
        let ended = body.is_end_stream();
        if let Some(story) = story {
            match &frame {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        story.answered(data);
                    }
                    if let Some(trailers) = frame.trailers_ref() {
                        story.grpc_status = grpc_status(trailers).or(story.grpc_status);
                    }
                }
                Some(Err(_)) => story.broken(),
                None => {}
            }
            if ended || matches!(frame, None | Some(Err(_))) {
                story.finish();
            }
        }
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(Chunk::Handler))))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Handler { body, .. } => body.is_end_stream(),
            Self::Own { text } => text.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Handler { body, .. } => body.size_hint(),
            Self::Own { text } => SizeHint::with_exact(text.len() as u64),
        }
    }
}

/// A piece of an [`Answer`].
pub(super) enum Chunk<D> {
    Handler(D),
    Own(Bytes),
}

impl<D: Buf> Buf for Chunk<D> {
    fn remaining(&self) -> usize {
        match self {
            Self::Handler(data) => data.remaining(),
            Self::Own(data) => data.remaining(),
        }
    }

    fn chunk(&self) -> &[u8] {
        match self {
            Self::Handler(data) => data.chunk(),
            Self::Own(data) => data.chunk(),
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Self::Handler(data) => data.advance(count),
            Self::Own(data) => data.advance(count),
        }
    }
}
