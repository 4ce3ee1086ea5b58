//! What the layers do while a response's body is read: each has its watcher, and all of them stand in one place.
//!
//! A wrapper a layer would be copied into the next at every return, and asked in turn at every frame. Here the layers hang
//! what they have to do on the one wrapper that the lowest of them made ([`ResponseBody`](crate::ResponseBody)); the order
//! is that of the layers, the lowest first. The place is taken from the thread's spare ones, so that it costs no
//! allocation.

use std::{
    cell::RefCell,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Body as HttpBody;
use tokio::time::Instant;

use super::{
    balance::Guard,
    retry::{Ahead, Read},
    telemetry::Story,
    timeout::Timer,
};
use crate::{
    error::{BoxError, Error, ErrorKind},
    source,
};

/// Who watches one body.
#[derive(Default)]
pub(crate) struct Watchers {
    /// Holds the endpoint's slot, and learns how it went.
    pub(super) guard: Option<Guard>,
    /// What was read before the caller asked for it.
    pub(super) ahead: Ahead,
    /// Ends it in time.
    pub(super) timer: Option<Timer>,
    /// Tells of it.
    pub(super) story: Option<Story>,
    /// There is nothing left to ask the body for.
    over: bool,
}

impl Watchers {
    /// The next frame of what they watch, and whether it is the last; after that the body is to be let go of.
    pub(crate) fn poll_frame<B>(&mut self, body: Pin<&mut B>, cx: &mut Context<'_>) -> Poll<(Read, bool)>
    where
        B: HttpBody<Data = Bytes>,
        B::Error: Into<BoxError>,
    {
        let mut now = Now::default();
        let read = match self.ahead.next() {
            Some(frame) => {
                let over = self.ahead.is_empty() && (self.over || body.is_end_stream());
                Poll::Ready((Some(frame), over))
            }
            None => self.poll_rest(body, cx, &mut now),
        };
        let (frame, over) = match (read, &mut self.timer) {
            (Poll::Ready(read), timer) => {
                timer.iter_mut().for_each(Timer::passed);
                read
            }
            (Poll::Pending, None) => return Poll::Pending,
            (Poll::Pending, Some(timer)) => {
                let kind = ready!(timer.poll_expired(cx));
                // Letting go of the slot here tells the balancer that time ran out.
                self.guard = None;
                (Some(Err(Error::of(kind))), true)
            }
        };
        if let Some(story) = &mut self.story {
            story.passed(frame.as_ref(), over, &mut now);
        }
        Poll::Ready((frame, over))
    }

    /// The same of what has not been read ahead.
    fn poll_rest<B>(&mut self, mut body: Pin<&mut B>, cx: &mut Context<'_>, now: &mut Now) -> Poll<(Read, bool)>
    where
        B: HttpBody<Data = Bytes>,
        B::Error: Into<BoxError>,
    {
        if self.over {
            return Poll::Ready((None, true));
        }
        let frame = ready!(body.as_mut().poll_frame(cx));
        let frame = frame.map(|frame| frame.map_err(|error| Error::from_boxed(ErrorKind::Reset, error.into())));
        self.over = !matches!(&frame, Some(Ok(_))) || body.is_end_stream();
        if let Some(guard) = &mut self.guard {
            guard.passed(frame.as_ref(), self.over, now);
        }
        Poll::Ready((frame, self.over))
    }

    /// Reads the first frame, and the second if it is at hand.
    pub(super) fn poll_ahead<B>(&mut self, mut body: Pin<&mut B>, cx: &mut Context<'_>) -> Poll<()>
    where
        B: HttpBody<Data = Bytes>,
        B::Error: Into<BoxError>,
    {
        let mut now = Now::default();
        let (first, _) = ready!(self.poll_rest(body.as_mut(), cx, &mut now));
        let second = match &first {
            Some(Ok(frame)) if frame.is_data() => self.poll_rest(body, cx, &mut now),
            _ => Poll::Pending,
        };
        let second = if let Poll::Ready((second, _)) = second { second } else { None };
        self.ahead = Ahead::of(first, second);
        Poll::Ready(())
    }

    /// Lets go of all of them; the place stays.
    fn leave(&mut self) {
        self.guard = None;
        self.ahead = Ahead::default();
        self.timer = None;
        self.story = None;
        self.over = false;
    }

    /// Has all been read?
    pub(crate) fn is_end_stream<B: HttpBody>(&self, body: &B) -> bool {
        self.ahead.is_empty() && (self.over || body.is_end_stream())
    }

    /// Bytes that were read and not yet asked for.
    pub(crate) fn bytes_ahead(&self) -> u64 {
        self.ahead.bytes()
    }

    /// The trailers, if they have been read ahead.
    pub(super) fn trailers(&self) -> Option<&HeaderMap> {
        self.ahead.trailers()
    }
}

/// The time, read when the first of those who watch asks for it, and the same for all.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Now(Option<Instant>);

impl Now {
    pub(super) fn get(&mut self) -> Instant {
        *self.0.get_or_insert_with(source::instant)
    }
}

/// The place of the watchers of one body. It is there until it is dropped.
#[derive(Default)]
pub(crate) struct Watch(Option<Box<Watchers>>);

/// Places a thread keeps.
const SPARE: usize = 32;

thread_local! {
    #[expect(clippy::vec_box, reason = "places go in and out of here in the box that their body holds")]
    static PLACES: RefCell<Vec<Box<Watchers>>> = const { RefCell::new(Vec::new()) };
}

impl Watch {
    /// Nobody watches yet.
    pub(crate) fn new() -> Self {
        let spare = PLACES.try_with(|places| places.borrow_mut().pop()).ok().flatten();
        Self(Some(spare.unwrap_or_default()))
    }

    /// Those who watch.
    pub(crate) fn watchers(&mut self) -> &mut Watchers {
        self.0.get_or_insert_default()
    }

    /// Those who watch, to ask something.
    pub(crate) fn get(&self) -> Option<&Watchers> {
        self.0.as_deref()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let Some(mut used) = self.0.take() else { return };
        used.leave();
        let _ = PLACES.try_with(|places| {
            let mut places = places.borrow_mut();
            if places.len() < SPARE {
                places.push(used);
            }
        });
    }
}
