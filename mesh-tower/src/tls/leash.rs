//! Ends a connection whose time is over, for those who hold connections as bytes: who may still use it is told at once, and
//! a little later its bytes stop.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::task::AtomicWaker;
use tokio::time::sleep;

use super::{End, Tenure};
use crate::{telemetry::retired, upkeep::Owned};

/// How long what is under way gets once a peer is not believed any more, or a certificate is over.
pub(crate) const GRACE: Duration = Duration::from_secs(5);

/// One connection's. It ends with the bytes it is held with.
#[derive(Debug)]
pub(crate) struct Leash {
    state: Arc<State>,
    _task: Owned,
}

/// What others may know of it.
#[derive(Clone, Debug)]
pub(crate) struct Retired(Arc<State>);

#[derive(Debug, Default)]
struct State {
    retired: AtomicBool,
    cut: AtomicBool,
    reader: AtomicWaker,
    writer: AtomicWaker,
}

impl Leash {
    /// Watches over a connection in a task. When we have another certificate, what was made with the one before goes on as
    /// long as that is good: whoever makes new requests sees to it that none comes to it.
    pub(crate) fn new(mut tenure: Tenure, direction: &'static str) -> Self {
        let state = Arc::new(State::default());
        let watched = Arc::clone(&state);
        let task = Owned::spawn(async move {
            loop {
                let end = tenure.end().await;
                retired(direction, &end, tenure.peer());
                if end != End::Rotated {
                    break;
                }
            }
            watched.retired.store(true, Relaxed);
            sleep(GRACE).await;
            watched.cut.store(true, Relaxed);
            watched.reader.wake();
            watched.writer.wake();
        });
        Self { state, _task: task }
    }

    /// For whoever chooses what a request is sent over.
    pub(crate) fn retired(&self) -> Retired {
        Retired(Arc::clone(&self.state))
    }

    /// An error once the bytes have stopped; else whoever reads is woken when they do.
    pub(crate) fn check(&self, cx: &Context<'_>) -> io::Result<()> {
        if !self.state.cut.load(Relaxed) {
            self.state.reader.register(cx.waker());
        }
        self.state.stopped()
    }

    /// Writes what is to be written, unless the bytes have stopped: whoever only writes reads nothing that tells him so.
    pub(crate) fn write<T>(
        leash: Option<&Self>,
        cx: &mut Context<'_>,
        write: impl FnOnce(&mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let Some(leash) = leash else { return write(cx) };
        leash.state.stopped()?;
        let polled = write(cx);
        if polled.is_pending() {
            leash.state.writer.register(cx.waker());
            leash.state.stopped()?;
        }
        polled
    }
}

impl State {
    fn stopped(&self) -> io::Result<()> {
        match self.cut.load(Relaxed) {
            true => {
                Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the peer's certificate is not good any more"))
            }
            false => Ok(()),
        }
    }
}

impl Retired {
    /// It takes no new requests.
    pub(crate) fn is_set(&self) -> bool {
        self.0.retired.load(Relaxed)
    }
}
