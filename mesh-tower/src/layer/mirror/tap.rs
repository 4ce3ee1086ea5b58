//! A body that several read: the first at its own pace, the others from what passes, as far as a limit allows.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::mpsc;

use crate::{body::Body, error::BoxError};

/// What one copy may hold that its reader has not read: bytes, each frame counting as at least one page.
const LIMIT: usize = 1 << 20;
const PAGE: usize = 4096;

/// Bodies for so many copies. Nothing and a single chunk are copied at once; anything else as the body itself is read.
pub(super) fn tapped(body: &mut Body, copies: usize) -> Vec<Body> {
    if copies == 0 {
        return Vec::new();
    }
    let whole: Option<Vec<Body>> = (0..copies).map(|_| body.try_clone()).collect();
    if let Some(whole) = whole {
        return whole;
    }
    let (taps, bodies) = (0..copies)
        .map(|_| {
            let (sender, pieces) = mpsc::unbounded_channel();
            let held = Arc::new(AtomicUsize::new(0));
            let copy = Copy { pieces, held: Arc::clone(&held), ended: false };
            (Some(Tap { sender, held }), Body::new(copy))
        })
        .unzip();
    body.through(|inner| Tapped { inner, taps });
    bodies
}

enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
}

impl Piece {
    fn weight(&self) -> usize {
        match self {
            Self::Data(data) => data.len().max(PAGE),
            _ => PAGE,
        }
    }
}

/// The end of a copy that is written; without [`Piece::End`] the copy fails when this is dropped.
struct Tap {
    sender: mpsc::UnboundedSender<Piece>,
    held: Arc<AtomicUsize>,
}

impl Tap {
    /// False when the copy is given up.
    fn send(&self, piece: Piece) -> bool {
        let weight = piece.weight();
        self.held.fetch_add(weight, Ordering::Relaxed) + weight <= LIMIT && self.sender.send(piece).is_ok()
    }
}

struct Tapped {
    inner: Body,
    taps: Vec<Option<Tap>>,
}

impl Tapped {
    fn each(&mut self, piece: impl Fn() -> Piece) {
        for slot in &mut self.taps {
            if slot.as_ref().is_some_and(|tap| !tap.send(piece())) {
                *slot = None;
            }
        }
    }

    fn end(&mut self) {
        self.each(|| Piece::End);
        self.taps.clear();
    }
}

impl HttpBody for Tapped {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        match &polled {
            None => self.end(),
            Some(Err(_)) => self.taps.clear(),
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.each(|| Piece::Data(data.clone()));
                } else if let Some(trailers) = frame.trailers_ref() {
                    self.each(|| Piece::Trailers(trailers.clone()));
                }
                // Whoever is told so asks for no more.
                if self.inner.is_end_stream() {
                    self.end();
                }
            }
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

struct Copy {
    pieces: mpsc::UnboundedReceiver<Piece>,
    held: Arc<AtomicUsize>,
    ended: bool,
}

impl HttpBody for Copy {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let piece = ready!(self.pieces.poll_recv(cx));
        if let Some(piece) = &piece {
            self.held.fetch_sub(piece.weight(), Ordering::Relaxed);
        }
        Poll::Ready(match piece {
            Some(Piece::Data(data)) => Some(Ok(Frame::data(data))),
            Some(Piece::Trailers(trailers)) => Some(Ok(Frame::trailers(trailers))),
            Some(Piece::End) => {
                self.ended = true;
                None
            }
            None => Some(Err("the request that this is a copy of was given up, or the copy fell behind".into())),
        })
    }
}
