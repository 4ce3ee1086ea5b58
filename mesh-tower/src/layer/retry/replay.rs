//! A request's body that can be sent again: what passes is kept, up to a limit.
//!
//! A [`Tape`] is played once per try. Chunks that passed before are played from memory, the rest comes from the caller;
//! only the latest play reads on, so a connection that still holds an earlier one gets an error instead of taking
//! chunks away. A body that has been read to its end is played by as many as like. Past the limit, or once a response is the caller's, nothing more is kept: memory stays bounded however
//! long the stream.

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::{body::Body, error::BoxError};

/// A body, played once per try.
#[derive(Debug)]
pub(super) struct Tape {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// All here: repeats for free.
    Here(Body),
    There(Arc<Mutex<Reel>>),
}

/// What of a streamed body has passed, and where the rest comes from.
#[derive(Debug)]
struct Reel {
    rest: Body,
    kept: Vec<Bytes>,
    trailers: Option<HeaderMap>,
    bytes: usize,
    limit: usize,
    /// Chunks are kept.
    recording: bool,
    ended: bool,
    /// The play that may read on.
    turn: u32,
}

impl Tape {
    pub(super) fn new(body: Body, limit: usize) -> Self {
        if body.known_len().is_some() {
            return Self { kind: Kind::Here(body) };
        }
        let reel = Reel {
            rest: body,
            kept: Vec::new(),
            trailers: None,
            bytes: 0,
            limit,
            recording: true,
            ended: false,
            turn: 0,
        };
        Self { kind: Kind::There(Arc::new(Mutex::new(reel))) }
    }

    /// The body for one more try; earlier ones get no more of it.
    pub(super) fn play(&self) -> Body {
        match &self.kind {
            Kind::Here(body) => body.try_clone().unwrap_or_default(),
            Kind::There(reel) => {
                let turn = {
                    let mut reel = lock(reel);
                    reel.turn += 1;
                    reel.turn
                };
                Body::played(Player { reel: Arc::clone(reel), at: 0, turn, over: false })
            }
        }
    }

    /// Is all that has passed still here?
    pub(super) fn can_replay(&self) -> bool {
        match &self.kind {
            Kind::Here(_) => true,
            Kind::There(reel) => lock(reel).recording,
        }
    }

    /// There will be no further try.
    pub(super) fn commit(&self) {
        if let Kind::There(reel) = &self.kind {
            lock(reel).recording = false;
        }
    }
}

/// One play of a tape.
pub(crate) struct Player {
    reel: Arc<Mutex<Reel>>,
    at: usize,
    turn: u32,
    /// The trailers have been played, or there are none.
    over: bool,
}

impl Player {
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut reel = lock(&self.reel);
        let reel = &mut *reel;
        if let Some(chunk) = reel.kept.get(self.at) {
            self.at += 1;
            return Poll::Ready(Some(Ok(Frame::data(chunk.clone()))));
        }
        // What is all here can be played by several at once, as hedged tries do.
        if reel.turn != self.turn && !reel.ended {
            return Poll::Ready(Some(Err("the request is being sent again elsewhere".into())));
        }
        if !reel.recording && !reel.kept.is_empty() {
            reel.kept = Vec::new();
        }
        if reel.ended {
            let trailers = reel.trailers.clone().filter(|_| !self.over);
            self.over = true;
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let frame = ready!(Pin::new(&mut reel.rest).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(chunk) = frame.data_ref() {
                    reel.bytes += chunk.len();
                    if reel.bytes > reel.limit {
                        reel.recording = false;
                        reel.kept = Vec::new();
                    }
                    if reel.recording {
                        reel.kept.push(chunk.clone());
                        self.at += 1;
                    }
                } else {
                    reel.trailers = frame.trailers_ref().cloned();
                    reel.ended = true;
                    self.over = true;
                }
            }
            Some(Err(_)) => reel.recording = false,
            None => reel.ended = true,
        }
        Poll::Ready(frame)
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        let reel = lock(&self.reel);
        let played = self.over || reel.trailers.is_none();
        self.at >= reel.kept.len() && played && (reel.ended || reel.rest.is_end_stream())
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        let reel = lock(&self.reel);
        let kept: usize = reel.kept.iter().skip(self.at).map(Bytes::len).sum();
        let rest = reel.rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(kept as u64));
        if let Some(upper) = rest.upper().and_then(|upper| upper.checked_add(kept as u64)) {
            hint.set_upper(upper);
        }
        hint
    }
}

impl fmt::Debug for Player {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Player").field("turn", &self.turn).finish_non_exhaustive()
    }
}

/// Held while one chunk passes, never over an await.
fn lock(reel: &Mutex<Reel>) -> std::sync::MutexGuard<'_, Reel> {
    reel.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use futures_util::stream;
    use http_body_util::{BodyExt, StreamBody};

    use super::*;

    /// RT12: what was sent is sent again, chunk by chunk, and the rest follows from the caller.
    #[tokio::test]
    async fn a_second_play_repeats_the_first_and_goes_on() {
        let tape = Tape::new(streamed(&["a", "b", "c"]), 100);
        let mut first = tape.play();
        assert_eq!(first.frame().await.unwrap().unwrap().into_data().unwrap(), "a");
        let second = tape.play();
        first.frame().await.unwrap().unwrap_err();
        assert_eq!(second.collect().await.unwrap().to_bytes(), "abc");
        assert!(tape.can_replay());
        let third = tape.play().collect().await.unwrap();
        assert_eq!(third.trailers().unwrap()["checksum"], "1");
        assert_eq!(third.to_bytes(), "abc");
    }

    /// RT12: past its limit nothing is kept, and there is no further try.
    #[tokio::test]
    async fn past_the_limit_nothing_is_kept() {
        let tape = Tape::new(streamed(&["aaaa", "bbbb", "cccc"]), 5);
        let mut first = tape.play();
        first.frame().await.unwrap().unwrap();
        assert!(tape.can_replay());
        first.frame().await.unwrap().unwrap();
        assert!(!tape.can_replay());
        let Kind::There(reel) = &tape.kind else { panic!("streamed") };
        assert!(lock(reel).kept.is_empty());
        assert_eq!(first.collect().await.unwrap().to_bytes(), "cccc");
    }

    #[tokio::test]
    async fn a_committed_replay_still_plays_what_it_owes() {
        let tape = Tape::new(streamed(&["a", "b", "c"]), 100);
        let mut first = tape.play();
        first.frame().await.unwrap().unwrap();
        first.frame().await.unwrap().unwrap();
        let second = tape.play();
        tape.commit();
        assert_eq!(second.collect().await.unwrap().to_bytes(), "abc");
        let Kind::There(reel) = &tape.kind else { panic!("streamed") };
        assert!(lock(reel).kept.is_empty());
    }

    fn streamed(chunks: &[&'static str]) -> Body {
        let mut trailers = HeaderMap::new();
        trailers.insert("checksum", http::HeaderValue::from_static("1"));
        let chunks = chunks.iter().map(|chunk| Frame::data(Bytes::from_static(chunk.as_bytes())));
        let frames: Vec<_> = chunks.chain([Frame::trailers(trailers)]).map(Ok::<_, BoxError>).collect();
        Body::new(StreamBody::new(stream::iter(frames)))
    }
}
