//! Bodies: [`Body`], the one type every request body has inside the layers, and [`ResponseBody`], what callers get.
//!
//! A destination's connection takes one body type, and a request may have to be sent again, so the border turns the
//! caller's body into this one: nothing and a single chunk stay as they are and repeat for free, anything else is boxed
//! once. While a streamed body passes it counts its bytes and says when it ended; both are read where the request is
//! timed and told of. Keeping what was sent, for sending it again, is in `layer/retry/replay.rs`.

use std::{
    any::Any,
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
};

use bytes::{Buf, Bytes};
use futures_util::task::AtomicWaker;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use mesh_core::telemetry::Messages;
use pin_project_lite::pin_project;

use crate::{
    error::{BoxError, Error},
    layer::{Player, Watch, Watchers},
};

/// A request's body inside the layers, and what a leaf is given.
#[derive(Default)]
pub struct Body {
    kind: Kind,
    progress: Option<Arc<Passing>>,
}

#[derive(Default)]
enum Kind {
    #[default]
    Empty,
    Full(Bytes),
    Streamed(UnsyncBoxBody<Bytes, BoxError>),
    Played(Player),
}

impl Body {
    /// No body.
    pub fn empty() -> Self {
        Self::default()
    }

    /// Any body; one that is ours already, empty, or a single chunk is not boxed.
    pub fn new<B>(body: B) -> Self
    where
        B: HttpBody + Send + 'static,
        B::Data: Buf + Send,
        B::Error: Into<BoxError>,
    {
        if body.is_end_stream() {
            return Self::empty();
        }
        let mut slot = Some(body);
        let any: &mut dyn Any = &mut slot;
        if let Some(ours) = any.downcast_mut::<Option<Self>>().and_then(Option::take) {
            return ours;
        }
        if let Some(full) = any.downcast_mut::<Option<Full<Bytes>>>().and_then(Option::take) {
            return Self::from(only_chunk(full));
        }
        let Some(body) = slot else { return Self::empty() };
        let body = body
            .map_frame(|frame| frame.map_data(|mut data| data.copy_to_bytes(data.remaining())))
            .map_err(Into::into)
            .boxed_unsync();
        Self { kind: Kind::Streamed(body), progress: None }
    }

    /// One play of a body that can be sent again.
    pub(crate) fn played(player: Player) -> Self {
        Self { kind: Kind::Played(player), progress: None }
    }

    /// A copy, if it repeats for free: nothing, or a single chunk.
    pub(crate) fn try_clone(&self) -> Option<Self> {
        match &self.kind {
            Kind::Empty => Some(Self::empty()),
            Kind::Full(bytes) => Some(Self::from(bytes.clone())),
            Kind::Streamed(_) | Kind::Played(_) => None,
        }
    }

    /// With what is at hand of it already read: one that turns out to be a single chunk, as that of a unary gRPC call, is
    /// no stream any more; it repeats for free, and has been read to its end.
    pub(crate) fn at_hand(mut self) -> Self {
        let Kind::Streamed(stream) = &mut self.kind else { return self };
        let mut context = Context::from_waker(Waker::noop());
        let first = match Pin::new(&mut *stream).poll_frame(&mut context) {
            Poll::Pending => return self,
            Poll::Ready(None) => return Self::empty(),
            Poll::Ready(Some(first)) => first,
        };
        let second = match &first {
            Ok(frame) if frame.is_data() => Pin::new(stream).poll_frame(&mut context),
            _ => Poll::Pending,
        };
        match (first.map(Frame::into_data), second) {
            (Ok(Ok(chunk)), Poll::Ready(None)) => Self::from(chunk),
            (first, second) => {
                let first = first.map(|frame| frame.map_or_else(|other| other, Frame::data));
                let second = if let Poll::Ready(second) = second { second } else { None };
                self.through(|rest| Begun { ahead: [Some(first), second], rest });
                self
            }
        }
    }

    /// The same body as `wrap` passes it on; what it tells of its progress stays.
    pub(crate) fn through<B>(&mut self, wrap: impl FnOnce(Self) -> B)
    where
        B: HttpBody<Data = Bytes, Error = BoxError> + Send + 'static,
    {
        let inner = Self { kind: std::mem::take(&mut self.kind), progress: None };
        self.kind = Kind::Streamed(wrap(inner).boxed_unsync());
    }

    /// Its length, when it is all here.
    #[inline]
    pub(crate) fn known_len(&self) -> Option<u64> {
        match &self.kind {
            Kind::Empty => Some(0),
            Kind::Full(bytes) => Some(bytes.len() as u64),
            Kind::Streamed(_) | Kind::Played(_) => None,
        }
    }

    /// The gRPC messages of a body that is all here; of another they are counted as they pass, by its [`Progress`].
    pub(crate) fn count_messages(&self) -> u64 {
        if let Some(passing) = &self.progress {
            passing.messages.get_or_init(Mutex::default);
        }
        match &self.kind {
            Kind::Full(bytes) => Messages::of(bytes),
            Kind::Empty | Kind::Streamed(_) | Kind::Played(_) => 0,
        }
    }

    /// Says from now on how it passes. A body that is all here has passed already.
    pub(crate) fn watch(&mut self) -> Progress {
        if let Some(known) = self.known_len() {
            return Progress { known, passing: None };
        }
        let passing = Arc::default();
        self.progress = Some(Arc::clone(&passing));
        Progress { known: 0, passing: Some(passing) }
    }
}

/// A body of which the first frames have been read.
struct Begun {
    ahead: [Option<Result<Frame<Bytes>, BoxError>>; 2],
    rest: Body,
}

impl HttpBody for Begun {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.ahead.iter_mut().find_map(Option::take) {
            Some(frame) => Poll::Ready(Some(frame)),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ahead.iter().all(Option::is_none) && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let chunks = self.ahead.iter().flatten().filter_map(|frame| frame.as_ref().ok()?.data_ref());
        let ahead: u64 = chunks.map(|chunk| chunk.len() as u64).sum();
        let rest = self.rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(ahead));
        if let Some(upper) = rest.upper().and_then(|upper| upper.checked_add(ahead)) {
            hint.set_upper(upper);
        }
        hint
    }
}

/// The chunk of a body of one chunk, which has it at hand.
fn only_chunk(mut full: Full<Bytes>) -> Bytes {
    let mut context = Context::from_waker(Waker::noop());
    match Pin::new(&mut full).poll_frame(&mut context) {
        Poll::Ready(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
        _ => Bytes::new(),
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let polled = match &mut this.kind {
            Kind::Empty => Poll::Ready(None),
            Kind::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                this.kind = Kind::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Kind::Streamed(body) => Pin::new(body).poll_frame(cx),
            Kind::Played(player) => player.poll_frame(cx),
        };
        if let Some(progress) = &this.progress {
            match &polled {
                Poll::Ready(Some(Ok(frame))) => {
                    progress.passed(frame.data_ref().map_or(&[], |data| &data[..]));
                    if matches!(&this.kind, Kind::Streamed(body) if body.is_end_stream()) {
                        progress.end();
                    }
                }
                Poll::Ready(_) => progress.end(),
                Poll::Pending => {}
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Empty => true,
            Kind::Full(_) => false,
            Kind::Streamed(body) => body.is_end_stream(),
            Kind::Played(player) => player.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Streamed(body) => body.size_hint(),
            Kind::Played(player) => player.size_hint(),
        }
    }
}

impl Drop for Body {
    /// A body let go of will not send any more: as far as timing goes, it ended.
    fn drop(&mut self) {
        if let Some(progress) = &self.progress {
            progress.end();
        }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        let kind = if bytes.is_empty() { Kind::Empty } else { Kind::Full(bytes) };
        Self { kind, progress: None }
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Self::from(Bytes::from_static(text.as_bytes()))
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Self::from(Bytes::from(text))
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Self::from(Bytes::from(bytes))
    }
}

impl From<()> for Body {
    fn from((): ()) -> Self {
        Self::empty()
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").field("size", &self.size_hint()).finish_non_exhaustive()
    }
}

/// How far the caller's request body has come, whichever try reads it.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Its length, when it was all here at once.
    known: u64,
    passing: Option<Arc<Passing>>,
}

#[derive(Debug, Default)]
struct Passing {
    bytes: AtomicU64,
    /// Where its messages are counted.
    messages: OnceLock<Mutex<Messages>>,
    ended: AtomicBool,
    waiting: AtomicWaker,
}

impl Progress {
    /// It was not all here at once.
    #[inline]
    pub(crate) fn is_streamed(&self) -> bool {
        self.passing.is_some()
    }

    /// Bytes read so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.passing.as_ref().map_or(self.known, |passing| passing.bytes.load(Ordering::Relaxed))
    }

    /// gRPC messages read so far, where they are counted.
    pub(crate) fn messages(&self) -> u64 {
        let counted = self.passing.as_ref().and_then(|passing| passing.messages.get());
        counted.map_or(0, |messages| messages.lock().unwrap_or_else(PoisonError::into_inner).count())
    }

    /// Has all of it been read?
    #[inline]
    pub(crate) fn is_ended(&self) -> bool {
        self.passing.as_ref().is_none_or(|passing| passing.ended.load(Ordering::Acquire))
    }

    /// Ready once all of it has been read; one waiter at a time.
    pub(crate) fn poll_ended(&self, cx: &Context<'_>) -> Poll<()> {
        let Some(passing) = &self.passing else { return Poll::Ready(()) };
        if self.is_ended() {
            return Poll::Ready(());
        }
        passing.waiting.register(cx.waker());
        if self.is_ended() { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Passing {
    fn passed(&self, chunk: &[u8]) {
        self.bytes.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        if let Some(messages) = self.messages.get() {
            messages.lock().unwrap_or_else(PoisonError::into_inner).passed(chunk);
        }
    }

    fn end(&self) {
        if !self.ended.swap(true, Ordering::AcqRel) {
            self.waiting.wake();
        }
    }
}

pin_project! {
    /// The body of a response: what the destination sent, or the mesh's own words.
    ///
    /// A gRPC stream that the mesh has to end (a deadline, a lost connection) ends with trailers that say why.
    #[must_use = "bodies do nothing unless polled"]
    pub struct ResponseBody<B> {
        #[pin]
        kind: Answer<B>,
        is_grpc: bool,
    }
}

pin_project! {
    #[project = AnswerProj]
    enum Answer<B> {
        Here { bytes: Bytes },
        There { #[pin] body: B, watch: Watch },
        Over,
    }
}

impl<B> ResponseBody<B> {
    /// The mesh's own words.
    pub(crate) fn here(bytes: Bytes) -> Self {
        Self { kind: Answer::Here { bytes }, is_grpc: false }
    }

    /// What the destination sends; nobody watches it yet.
    pub(crate) fn there(body: B) -> Self {
        Self { kind: Answer::There { body, watch: Watch::new() }, is_grpc: false }
    }

    /// If the mesh ends it, that is said in trailers.
    pub(crate) fn of_grpc(mut self, is_grpc: bool) -> Self {
        self.is_grpc = is_grpc;
        self
    }

    /// Who watches it, while there is anything to watch.
    pub(crate) fn watchers(&mut self) -> Option<&mut Watchers> {
        self.watched().map(|(_, watchers)| watchers)
    }

    /// The destination's body with those who watch it.
    pub(crate) fn watched(&mut self) -> Option<(&mut B, &mut Watchers)> {
        match &mut self.kind {
            Answer::There { body, watch } => Some((body, watch.watchers())),
            Answer::Here { .. } | Answer::Over => None,
        }
    }

    /// The same, to ask something.
    pub(crate) fn watched_by(&self) -> Option<&Watchers> {
        match &self.kind {
            Answer::There { watch, .. } => watch.get(),
            Answer::Here { .. } | Answer::Over => None,
        }
    }
}

impl<B> HttpBody for ResponseBody<B>
where
    B: HttpBody<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let mut this = self.project();
        match this.kind.as_mut().project() {
            AnswerProj::Over => Poll::Ready(None),
            AnswerProj::Here { bytes } => {
                let bytes = std::mem::take(bytes);
                this.kind.set(Answer::Over);
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            AnswerProj::There { body, watch } => {
                let (frame, over) = std::task::ready!(watch.watchers().poll_frame(body, cx));
                if over {
                    // Letting go of the body frees its connection, if that was not free already.
                    this.kind.set(Answer::Over);
                }
                Poll::Ready(match frame {
                    Some(Err(error)) if *this.is_grpc => Some(Ok(Frame::trailers(error.to_trailers()))),
                    frame => frame,
                })
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Answer::Here { bytes } => bytes.is_empty(),
            Answer::There { body, watch } => watch.get().is_none_or(|watchers| watchers.is_end_stream(body)),
            Answer::Over => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Answer::Here { bytes } => SizeHint::with_exact(bytes.len() as u64),
            Answer::There { body, watch } => {
                let (rest, ahead) = (body.size_hint(), watch.get().map_or(0, Watchers::bytes_ahead));
                let mut hint = SizeHint::new();
                hint.set_lower(rest.lower().saturating_add(ahead));
                if let Some(upper) = rest.upper().and_then(|upper| upper.checked_add(ahead)) {
                    hint.set_upper(upper);
                }
                hint
            }
            Answer::Over => SizeHint::with_exact(0),
        }
    }
}

impl<B> fmt::Debug for ResponseBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use http_body_util::{Empty, StreamBody};

    use super::*;
    use crate::error::ErrorKind;

    #[tokio::test]
    async fn single_chunks_are_not_boxed_and_repeat() {
        let body = Body::new(Full::new(Bytes::from_static(b"abc")));
        assert_eq!(body.known_len(), Some(3));
        let again = body.try_clone().unwrap();
        assert_eq!(body.collect().await.unwrap().to_bytes(), "abc");
        assert_eq!(Body::new(again).collect().await.unwrap().to_bytes(), "abc");
        assert_eq!(Body::new(Empty::<Bytes>::new()).known_len(), Some(0));
        assert_eq!(Body::new(String::from("text")).collect().await.unwrap().to_bytes(), "text");
    }

    #[tokio::test]
    async fn progress_counts_and_tells_the_end() {
        let frames = ["ab", "c"].map(|text| Ok::<_, BoxError>(Frame::data(Bytes::from_static(text.as_bytes()))));
        let mut body = Body::new(StreamBody::new(futures_util::stream::iter(frames)));
        let progress = body.watch();
        assert!(body.try_clone().is_none());
        body.frame().await.unwrap().unwrap();
        assert!(!progress.is_ended());
        assert_eq!(progress.bytes(), 2);
        drop(body);
        assert!(progress.is_ended(), "a dropped body sends nothing more");
        let progress = Body::from("abc").watch();
        assert!(progress.is_ended());
        assert_eq!(progress.bytes(), 3);
    }

    /// What is at hand is read ahead, none of it is lost, and a lone chunk is a body that is all here.
    #[tokio::test]
    async fn a_body_that_is_at_hand_is_no_stream() {
        let data = |text: &'static str| Ok::<_, BoxError>(Frame::data(Bytes::from_static(text.as_bytes())));
        let streamed = |frames: Vec<Result<Frame<Bytes>, BoxError>>| {
            Body::new(StreamBody::new(futures_util::stream::iter(frames))).at_hand()
        };
        assert_eq!(streamed(vec![data("abc")]).known_len(), Some(3));
        assert_eq!(streamed(vec![]).known_len(), Some(0));
        let several = streamed(vec![data("a"), data("b"), data("c")]);
        assert_eq!((several.known_len(), several.size_hint().lower()), (None, 2));
        assert_eq!(several.collect().await.unwrap().to_bytes(), "abc");
        let mut trailers = http::HeaderMap::new();
        trailers.insert("x-end", "1".parse().unwrap());
        let trailed = streamed(vec![data("a"), Ok(Frame::trailers(trailers))]).collect().await.unwrap();
        assert_eq!(trailed.trailers().unwrap()["x-end"], "1");
        assert!(streamed(vec![data("a"), Err("gone".into())]).collect().await.is_err());
        let slow = futures_util::stream::unfold(0, |n| async move {
            tokio::task::yield_now().await;
            (n < 3).then(|| (Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"x"))), n + 1))
        });
        assert_eq!(Body::new(StreamBody::new(Box::pin(slow))).at_hand().collect().await.unwrap().to_bytes(), "xxx");
    }

    #[tokio::test]
    async fn grpc_streams_end_in_trailers_when_the_mesh_ends_them() {
        let frames = [Err::<Frame<Bytes>, _>(Error::msg(ErrorKind::Timeout, "x"))];
        let body = StreamBody::new(futures_util::stream::iter(frames));
        let trailers = ResponseBody::there(body).of_grpc(true).collect().await.unwrap().trailers().cloned().unwrap();
        assert_eq!(trailers["grpc-status"], "4");
    }
}
