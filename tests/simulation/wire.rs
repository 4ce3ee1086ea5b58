//! One connection of the simulated network: two directions, each a queue of chunks with the time they arrive.
//!
//! An end that is dropped has closed: what it sent still arrives, what the other still sends is answered by a reset, as TCP does.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::watch,
    time::{Instant, Sleep, sleep_until},
};

use crate::{
    net::{Weather, travel},
    trace::{Trace, mix},
};

/// What one direction holds at most.
const WINDOW: usize = 256 * 1024;

pub(crate) struct Wire {
    seed: u64,
    port: u16,
    weather: watch::Receiver<Weather>,
    trace: Trace,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By the side that writes: 0 is the caller.
    lanes: [Lane; 2],
    /// When each side hears that the connection is no more.
    reset: [Option<Instant>; 2],
    closed: [Option<Instant>; 2],
}

#[derive(Default)]
struct Lane {
    chunks: VecDeque<(Instant, Bytes)>,
    held: usize,
    sent: u64,
    number: u64,
    /// After so many bytes it ends.
    limit: Option<(u64, bool)>,
    last: Option<Instant>,
    end: Option<Instant>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Wire {
    pub(crate) fn new(seed: u64, weather: watch::Receiver<Weather>, trace: Trace, port: u16) -> Self {
        let mut state = State::default();
        if let Some(cut) = weather.borrow().cut {
            state.lanes[usize::from(!cut.upload)].limit = Some((mix(&[seed, 7]) % cut.within.max(1), cut.reset));
        }
        Self { seed, port, weather, trace, state: Mutex::new(state) }
    }

    /// The caller's end and the host's.
    pub(crate) fn ends(self: &Arc<Self>) -> (End, End) {
        let end = |side| End { wire: Arc::clone(self), side, timer: None };
        (end(0), end(1))
    }

    /// The host is gone: it hears at once, the caller when the news has travelled.
    pub(crate) fn reset(&self) {
        let now = Instant::now();
        let latency = self.weather.borrow().latency;
        self.lock().reset = [Some(now + latency), Some(now)];
        self.wake();
    }

    pub(crate) fn is_open(&self) -> bool {
        let state = self.lock();
        state.reset[0].is_none() && (state.closed[0].is_none() || state.closed[1].is_none())
    }

    /// The weather has changed, or the connection has.
    pub(crate) fn wake(&self) {
        let mut state = self.lock();
        let lanes = state.lanes.iter_mut();
        let wakers: Vec<_> = lanes.flat_map(|lane| [lane.reader.take(), lane.writer.take()]).flatten().collect();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One end of a connection.
pub(crate) struct End {
    wire: Arc<Wire>,
    side: usize,
    timer: Option<Pin<Box<Sleep>>>,
}

impl End {
    /// Wakes this end at `at` at the latest.
    fn wait_until(&mut self, at: Instant, cx: &mut Context<'_>) -> bool {
        let timer = match &mut self.timer {
            Some(timer) => {
                timer.as_mut().reset(at);
                timer
            }
            None => self.timer.insert(Box::pin(sleep_until(at))),
        };
        timer.as_mut().poll(cx).is_pending()
    }
}

impl AsyncRead for End {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let (wire, side) = (Arc::clone(&this.wire), this.side);
        loop {
            let now = Instant::now();
            let weather = *wire.weather.borrow();
            let mut state = wire.lock();
            let reset = state.reset[side];
            if reset.is_some_and(|at| at <= now) {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            let lane = &mut state.lanes[1 - side];
            lane.reader = Some(cx.waker().clone());
            let mut next = reset;
            if !weather.blackhole && !weather.frozen {
                match lane.chunks.front_mut() {
                    Some((due, chunk)) if *due <= now => {
                        let n = chunk.len().min(buf.remaining());
                        buf.put_slice(&chunk[..n]);
                        chunk.advance(n);
                        if chunk.is_empty() {
                            lane.chunks.pop_front();
                        }
                        lane.held -= n;
                        if let Some(writer) = lane.writer.take() {
                            writer.wake();
                        }
                        return Poll::Ready(Ok(()));
                    }
                    Some((due, _)) => next = Some(next.map_or(*due, |at| at.min(*due))),
                    None => match lane.end {
                        Some(end) if end <= now => return Poll::Ready(Ok(())),
                        Some(end) => next = Some(next.map_or(end, |at| at.min(end))),
                        None => {}
                    },
                }
            }
            drop(state);
            match next {
                Some(at) if !this.wait_until(at, cx) => {}
                _ => return Poll::Pending,
            }
        }
    }
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let (wire, side) = (&self.wire, self.side);
        let now = Instant::now();
        let weather = *wire.weather.borrow();
        let mut state = wire.lock();
        let gone = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if gone(state.reset[side]) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if gone(state.closed[1 - side].map(|at| at + weather.latency)) || state.lanes[side].end.is_some() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let lane = &mut state.lanes[side];
        let stuck = weather.frozen && side == 1;
        let mut n = bytes.len().min(WINDOW - lane.held);
        if stuck || (n == 0 && !bytes.is_empty()) {
            lane.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let mut cut = None;
        if let Some((limit, reset)) = lane.limit
            && lane.sent + n as u64 >= limit
        {
            n = (limit - lane.sent).min(n as u64) as usize;
            cut = Some(reset);
        }
        let (seed, number) = (wire.seed, lane.number);
        let due = travel(&weather, |what| mix(&[seed, side as u64, number, what]));
        let due = lane.last.map_or(due, |last| last.max(due));
        lane.number += 1;
        lane.sent += n as u64;
        lane.last = Some(due);
        if n > 0 {
            lane.held += n;
            lane.chunks.push_back((due, Bytes::copy_from_slice(&bytes[..n])));
        }
        let reader = lane.reader.take();
        if let Some(reset) = cut {
            wire.trace.note("cut", wire.port, u64::from(reset));
            lane.end = Some(due);
            if reset {
                // What arrived before the reset can still be read.
                state.reset = [Some(due + Duration::from_millis(1)), Some(now)];
            }
        }
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
        Poll::Ready(Ok(if cut.is_some() { bytes.len() } else { n }))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finish();
        Poll::Ready(Ok(()))
    }
}

impl End {
    /// Nothing more will be written.
    fn finish(&self) {
        let latency = self.wire.weather.borrow().latency;
        let mut state = self.wire.lock();
        let lane = &mut state.lanes[self.side];
        if lane.end.is_none() {
            let due = Instant::now() + latency;
            lane.end = Some(lane.last.map_or(due, |last| last.max(due)));
        }
        let reader = lane.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.finish();
        let mut state = self.wire.lock();
        state.closed[self.side] = Some(Instant::now());
        let writer = state.lanes[1 - self.side].writer.take();
        drop(state);
        if let Some(writer) = writer {
            writer.wake();
        }
    }
}
