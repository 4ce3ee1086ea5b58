//! Waiting for an endpoint instead of failing for want of one. Source: gRPC `wait_for_ready`, LB27.

use std::{pin::pin, time::Duration};

use mesh_core::outcome::{Failure, Flags};
use tokio::time::sleep;

use super::Call;
use crate::{
    error::Error,
    source::{Source, wall},
};

/// Put into a request's extensions, it makes the request wait while its cluster has no endpoint that can be used or reached,
/// instead of failing at once. It waits as long as its deadline and its route allow, among at most as many as the cluster's
/// `max_pending_requests`. Source: gRPC's call option of that name.
///
/// ```
/// use mesh_tower::WaitForReady;
///
/// let request = http::Request::get("http://reviews/").extension(WaitForReady).body(())?;
/// # Ok::<_, http::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct WaitForReady;

/// Between two looks, at first.
const SHORTEST: Duration = Duration::from_millis(20);
/// Between two looks, in the end.
const LONGEST: Duration = Duration::from_secs(1);

/// A try ended for want of an endpoint; nothing of it was sent.
pub(super) fn is_unready(error: &Error) -> bool {
    let failure = error.outcome().failure;
    failure.is_some_and(|failure| matches!(failure, Failure::Connect | Failure::Tls | Failure::NoEndpoint))
}

/// Waits until there may be an endpoint for the next try; false when this request is not to wait, or too many do. `round`
/// counts how often it waited before.
pub(super) async fn until_ready(call: &Call, source: &Source, round: u32) -> bool {
    let (Some(live), Some(cluster)) = (call.waits_on(), call.plan().cluster()) else { return false };
    let Some(_place) = cluster.pending_slot(call.plan().route.priority) else {
        call.note(Flags::UO);
        return false;
    };
    let mut wait = SHORTEST.saturating_mul(1 << round.min(8)).min(LONGEST);
    loop {
        // Listening before looking: an update between the two is not missed.
        let mut updated = pin!(live.updated());
        updated.as_mut().enable();
        tokio::select! {
            () = updated => {}
            () = sleep(wait) => wait = wait.saturating_mul(2).min(LONGEST),
        }
        let now = live.load().and_then(|snapshot| snapshot.cluster(cluster.name()).cloned());
        if let Some(cluster) = now.filter(|cluster| cluster.is_ready(source.now())) {
            let mut journal = call.journal();
            (journal.cluster, journal.waited) = (Some(cluster), Some(wall()));
            return true;
        }
    }
}
