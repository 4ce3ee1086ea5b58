//! How serving ends, in order (SV7): who asks for its health is told at once, connections are taken as long as others may not
//! have heard of it, then HTTP/2 peers are told to go away, and what is under way gets its time.

use std::time::Duration;

use tokio::{sync::watch, time::sleep};

use super::until_true;

/// How long requests under way get once serving ends, unless it is said. Istio `terminationDrainDuration`.
const DRAIN: Duration = Duration::from_secs(5);

/// How serving ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ending {
    /// How long connections are taken still.
    pub(crate) linger: Duration,
    /// How long what is under way may take.
    pub(crate) drain: Duration,
}

impl Default for Ending {
    fn default() -> Self {
        Self { linger: Duration::ZERO, drain: DRAIN }
    }
}

impl Ending {
    /// Over once nobody is let in any more; `end` is true, or gone, when serving is to end.
    pub(super) async fn closed(self, mut end: watch::Receiver<bool>) {
        until_true(&mut end).await;
        if !self.linger.is_zero() {
            sleep(self.linger).await;
        }
    }
}
