//! What a try tells its destination: which it is, and how much time is left.

use std::time::Duration;

use http::{HeaderMap, HeaderName};
use tokio::time::Instant;

use super::Call;
use crate::{context::tell_time_left, telemetry::decimal};

pub(super) const PREVIOUS_ATTEMPTS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");
pub(super) const ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");

/// Until its deadline; and no more than the route allows, where that counts from when the request has been read.
pub(super) fn time_left(call: &Call, deadline: Option<Instant>, now: Instant) -> Option<Duration> {
    let allowed = if call.progress().is_streamed() { call.journal().allowed } else { None };
    let left = deadline.map(|deadline| deadline.saturating_duration_since(now));
    left.into_iter().chain(allowed).min()
}

/// Tells the destination how much time is left, and which try this is (RT11, TO3).
pub(super) fn mark(headers: &mut HeaderMap, number: u32, counted: u32, is_grpc: bool, left: Option<Duration>) {
    if let Some(left) = left {
        tell_time_left(headers, is_grpc, left);
    }
    headers.insert(ATTEMPT_COUNT, decimal(number.into()));
    if is_grpc && counted > 0 {
        headers.insert(PREVIOUS_ATTEMPTS, decimal(counted.into()));
    }
}
