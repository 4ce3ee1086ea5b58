//! What a request can be sent over, who waits for it, and when a connection is given up.

use std::{sync::Arc, time::Duration};

use mesh_core::{config::Connections, time::Time};
use tokio::sync::oneshot;

use super::{Way, lease::Lease};
use crate::error::{Error, ErrorKind};

/// How long a connection may lie idle, unless configured.
const IDLE: Duration = Duration::from_secs(50);

/// What a request can be sent over.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Wants {
    Http1,
    Http2,
    /// Whichever the peer agrees to.
    Any,
}

impl Wants {
    pub(super) fn takes_http1(self) -> bool {
        self != Self::Http2
    }

    pub(super) fn takes_http2(self) -> bool {
        self != Self::Http1
    }
}

/// When a connection is given up.
#[derive(Debug)]
pub(super) struct Keep {
    pub(super) idle: Duration,
    pub(super) max_duration: Duration,
    pub(super) max_requests: u32,
    pub(super) after_idle: Option<Duration>,
    pub(super) preconnect_percent: usize,
}

impl Keep {
    pub(super) fn new(config: &Connections) -> Self {
        let never = |duration: Duration| if duration.is_zero() { Duration::MAX } else { duration };
        Self {
            idle: never(config.idle_timeout.unwrap_or(IDLE)),
            max_duration: config.max_duration.unwrap_or(Duration::MAX),
            max_requests: if config.max_requests == 0 { u32::MAX } else { config.max_requests },
            after_idle: config.http2.keepalive.and_then(|keepalive| keepalive.after_idle),
            preconnect_percent: config.preconnect_percent.clamp(100, 300) as usize,
        }
    }

    /// It may serve another request, if it is still there.
    pub(super) fn keeps(&self, requests: u32, opened: Time, now: Time) -> bool {
        requests < self.max_requests && now.saturating_since(opened) < self.max_duration
    }

    pub(super) fn keeps_idle(&self, since: Time, now: Time) -> bool {
        now.saturating_since(since) < self.idle
    }
}

/// A request in line.
pub(super) struct Waiter {
    pub(super) wants: Wants,
    pub(super) way: Arc<Way>,
    pub(super) told: oneshot::Sender<Result<Lease, Error>>,
}

impl std::fmt::Debug for Waiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiter").field("wants", &self.wants).field("way", &self.way).finish_non_exhaustive()
    }
}

/// What a connection is opened for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Purpose {
    /// One request.
    Single,
    /// All that can share one.
    Shared,
}

/// There are as many as there may be.
pub(super) fn overflow(what: &str) -> Error {
    Error::msg(ErrorKind::Overflow, format!("the cluster's limit of {what} is reached"))
}
