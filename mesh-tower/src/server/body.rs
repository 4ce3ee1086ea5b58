//! Bodies of a server: what handlers read, counted; and what they answer, told of when it ends.

use std::{
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

/// The body of a request as a handler gets it.
#[derive(Debug)]
pub struct RequestBody {
    body: Incoming,
    told: Arc<Received>,
    /// Of gRPC.
    messages: Option<Messages>,
    /// It is all there, or nobody wants the rest.
    read: Arc<AtomicBool>,
}

impl RequestBody {
    /// With the word that it was read.
    pub(super) fn new(body: Incoming, told: Arc<Received>, is_grpc: bool) -> (Self, Arc<AtomicBool>) {
        let read = Arc::new(AtomicBool::new(body.is_end_stream()));
        (Self { body, told, messages: is_grpc.then(Messages::default), read: Arc::clone(&read) }, read)
    }
}

/// What was received of a request's body.
#[derive(Debug, Default)]
pub(super) struct Received {
    pub(super) bytes: AtomicU64,
    /// Of gRPC.
    pub(super) messages: AtomicU64,
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        self.read.store(true, Ordering::Relaxed);
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            self.told.bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
            let this = &mut *self;
            if let Some(messages) = &mut this.messages {
                messages.passed(data);
                this.told.messages.store(messages.count(), Ordering::Relaxed);
            }
        }
        if matches!(&polled, Poll::Ready(None | Some(Err(_)))) || self.body.is_end_stream() {
            self.read.store(true, Ordering::Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
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
