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
/// A control plane that restarts is back within seconds, and a user who restarts one is looking. After a longer outage a server
/// that takes connections and cannot serve them is asked about every 1.5 s, and one that says it has too much to do as
/// seldom as gRPC would; where nobody listens, asking costs nobody anything.
pub const QUICK: Duration = Duration::from_secs(15);

/// The life of one stream after another.
#[derive(Debug)]
pub(crate) struct Link {
    state: State,
    back_off: BackOff,
    failures: u32,
    /// Since when nothing has been delivered; `None` while something is.
    outage: Option<Time>,
    attempted: Option<Time>,
    /// The server of this stream has said that it has too much to do.
    busy: bool,
}

#[derive(Debug)]
enum State {
    Down { connect_at: Time },
    Connecting,
    Up { delivered: bool, spoke: bool },
}

impl Link {
    /// One that may connect at once.
    pub(crate) fn new(back_off: BackOff) -> Self {
        Self {
            state: State::Down { connect_at: Time::ZERO },
            back_off,
            failures: 0,
            outage: None,
            attempted: None,
            busy: false,
        }
    }

    /// The same, free to connect at once: what failed is not tried again.
    pub(crate) fn renewed(self) -> Self {
        Self { state: State::Down { connect_at: Time::ZERO }, failures: 0, ..self }
    }

    /// What is down may connect at once.
    pub(crate) fn connect_now(&mut self) {
        if let State::Down { connect_at } = &mut self.state {
            *connect_at = Time::ZERO;
        }
    }

    pub(crate) fn poll_connect(&mut self, now: Time) -> bool {
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

    pub(crate) fn handle_connected(&mut self) {
        self.state = State::Up { delivered: false, spoke: false };
    }

    /// The server has too much to do; its stream, or the attempt at one, is about to end.
    pub(crate) fn handle_busy(&mut self) {
        self.busy = true;
    }

    pub(crate) fn handle_disconnected(&mut self, now: Time, rng: &mut impl RngCore) {
        let busy = std::mem::take(&mut self.busy);
        let delivered = matches!(self.state, State::Up { delivered: true, .. });
        let refused = matches!(self.state, State::Connecting);
        let connect_at = if busy {
            self.outage.get_or_insert(now);
            self.failures = self.failures.saturating_add(1);
            now + BackOff { jitter: self.back_off.jitter, ..BackOff::BUSY }.delay(self.failures, rng)
        } else if delivered {
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
    pub(crate) fn handle_delivery(&mut self) -> bool {
        let State::Up { delivered, .. } = &mut self.state else { return false };
        *delivered = true;
        self.outage = None;
        self.failures = 0;
        true
    }

    pub(crate) fn is_up(&self) -> bool {
        matches!(self.state, State::Up { .. })
    }

    /// Has nothing been said on the stream yet?
    pub(crate) fn is_silent(&self) -> bool {
        matches!(self.state, State::Up { spoke: false, .. })
    }

    /// Is what is said now the first word of the stream?
    pub(crate) fn speak(&mut self) -> bool {
        match &mut self.state {
            State::Up { spoke, .. } => !std::mem::replace(spoke, true),
            _ => false,
        }
    }

    /// When `poll_connect` will agree, unless there is a stream or an attempt already.
    pub(crate) fn next_timeout(&self) -> Option<Time> {
        match self.state {
            State::Down { connect_at } => Some(connect_at),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use mesh_core::rng::RequestRng;

    use super::*;

    /// XD8, XD9: after ten minutes in which a server anywhere refused, took connections and failed, or did either by turns, it
    /// is asked again within two seconds; and never was it asked more than about once in 0.6 s.
    #[test]
    fn recovery_takes_no_longer_after_a_long_outage() {
        let moods: [fn(u64) -> bool; 4] = [|_| false, |_| true, |n| n % 2 == 0, |n| n % 7 == 0];
        for (mood, takes) in moods.into_iter().enumerate() {
            for seed in 0..50 {
                let mut rng = RequestRng::new(seed, mood as u64);
                let mut link = Link::new(BackOff::STREAM);
                let (mut now, mut last, mut attempts) = (Time::ZERO, None, 0);
                while now < Time::ZERO + Duration::from_secs(600) {
                    assert!(link.poll_connect(now));
                    if let Some(last) = last {
                        let gap = now.saturating_since(last);
                        assert!((0.6..2.0).contains(&gap.as_secs_f64()), "{mood} {gap:?}");
                    }
                    (last, attempts) = (Some(now), attempts + 1);
                    if takes(attempts) {
                        link.handle_connected();
                    }
                    link.handle_disconnected(now, &mut rng);
                    now = link.next_timeout().unwrap();
                }
                assert!((390..=940).contains(&attempts), "{mood}: {attempts}");
            }
        }
    }

    /// XD8: a server that says that it has too much to do is asked as seldom as gRPC asks, until it delivers.
    #[test]
    fn a_busy_server_is_spared() {
        let mut rng = RequestRng::new(1, 1);
        let mut link = Link::new(BackOff { jitter: 0.0, ..BackOff::STREAM });
        let mut now = Time::ZERO;
        let mut wait = |link: &mut Link, busy: bool, delivers: bool| {
            assert!(link.poll_connect(now));
            link.handle_connected();
            if delivers {
                link.handle_delivery();
                now = now + Duration::from_secs(60);
            }
            if busy {
                link.handle_busy();
            }
            link.handle_disconnected(now, &mut rng);
            let next = link.next_timeout().unwrap();
            let waited = next.saturating_since(now);
            now = next;
            waited.as_secs_f64()
        };
        for expected in [1.0, 1.6, 2.56] {
            assert!((wait(&mut link, true, false) - expected).abs() < 1e-6);
        }
        let longest = (0..20).map(|_| wait(&mut link, true, false)).last().unwrap();
        assert!((longest - 120.0).abs() < 1e-6);
        assert!(wait(&mut link, false, false) < 2.0);
        assert!(wait(&mut link, false, true) < 1e-6);
        assert!((wait(&mut link, true, true) - 1.0).abs() < 1e-6);
    }
}
