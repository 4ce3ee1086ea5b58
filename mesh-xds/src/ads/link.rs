//! When a client opens a stream: at once, after a floor, or backing off; the same for both variants of the protocol.
//!
//! Sources: gRFC A27, A57 (a stream that delivered something and ended is no failure), A88 (the hot loop that invites).

use std::time::Duration;

use mesh_core::time::Time;
use rand::RngCore;

use super::back_off::{BackOff, spread};

/// Streams that delivered something and ended are reopened at once (gRFC A57), but begin no closer together than this:
/// gRFC A88 records the hot loop a server could otherwise cause.
pub const FLOOR: Duration = Duration::from_secs(1);

/// For this long after a loss, attempts are made about every 0.8 s instead of backing off; and for as long as no connection
/// can be made.
///
/// A control plane that restarts is back within seconds, and a user who restarts one is looking: a plain 1 s × 1.6 would by
/// then have grown past the restart itself. After a longer outage a herd of clients has to be kept apart from a server that
/// takes connections and cannot serve them; but where nobody listens, asking costs nobody anything, and whenever the server
/// is back everybody is served within two seconds.
pub const QUICK: Duration = Duration::from_secs(15);

/// The life of one stream after another.
#[derive(Debug)]
pub(super) struct Link {
    state: State,
    back_off: BackOff,
    failures: u32,
    /// Since when nothing has been delivered; `None` while something is.
    outage: Option<Time>,
    attempted: Option<Time>,
}

#[derive(Debug)]
enum State {
    Down { connect_at: Time },
    Connecting,
    Up { delivered: bool, spoke: bool },
}

impl Link {
    /// One that may connect at once.
    pub(super) fn new(back_off: BackOff) -> Self {
        Self { state: State::Down { connect_at: Time::ZERO }, back_off, failures: 0, outage: None, attempted: None }
    }

    /// The same, free to connect at once: what failed is not tried again.
    pub(super) fn renewed(self) -> Self {
        Self { state: State::Down { connect_at: Time::ZERO }, failures: 0, ..self }
    }

    /// What is down may connect at once.
    pub(super) fn connect_now(&mut self) {
        if let State::Down { connect_at } = &mut self.state {
            *connect_at = Time::ZERO;
        }
    }

    pub(super) fn poll_connect(&mut self, now: Time) -> bool {
        match self.state {
            State::Down { connect_at } if connect_at <= now => {
                self.state = State::Connecting;
                self.attempted = Some(now);
                self.outage.get_or_insert(now);
                true
            }
            _ => false,
        }
    }

    pub(super) fn handle_connected(&mut self) {
        self.state = State::Up { delivered: false, spoke: false };
    }

    pub(super) fn handle_disconnected(&mut self, now: Time, rng: &mut impl RngCore) {
        let delivered = matches!(self.state, State::Up { delivered: true, .. });
        let refused = matches!(self.state, State::Connecting);
        let connect_at = if delivered {
            self.outage = Some(now);
            self.attempted.map_or(now, |attempted| now.max(attempted + FLOOR))
        } else if refused || now.saturating_since(*self.outage.get_or_insert(now)) < QUICK {
            now + spread(0.8, self.back_off.jitter, rng).min(self.back_off.cap)
        } else {
            self.failures = self.failures.saturating_add(1);
            now + self.back_off.delay(self.failures, rng)
        };
        self.state = State::Down { connect_at };
    }

    /// Something came; false when there is no stream it could have come on.
    pub(super) fn handle_delivery(&mut self) -> bool {
        let State::Up { delivered, .. } = &mut self.state else { return false };
        *delivered = true;
        self.outage = None;
        self.failures = 0;
        true
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(self.state, State::Up { .. })
    }

    /// Is what is said now the first word of the stream?
    pub(super) fn speak(&mut self) -> bool {
        match &mut self.state {
            State::Up { spoke, .. } => !std::mem::replace(spoke, true),
            _ => false,
        }
    }

    /// When `poll_connect` will agree, unless there is a stream or an attempt already.
    pub(super) fn next_timeout(&self) -> Option<Time> {
        match self.state {
            State::Down { connect_at } => Some(connect_at),
            _ => None,
        }
    }
}
