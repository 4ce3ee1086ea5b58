//! What is told of connections that are refused, or ended because they may not stand any longer: a log event and a counter
//! each, by direction and by a word out of a closed set.

use mesh_core::{
    identity::SpiffeId,
    telemetry::{TLS_REFUSED, TLS_RETIRED},
};
use metrics::{Key, Label, Level, Metadata};

use crate::tls::{End, Reason};

static METADATA: Metadata<'static> = Metadata::new("mesh::tls", Level::INFO, Some(module_path!()));

/// There is no TLS connection. Whoever hears of the error itself logs it.
pub(crate) fn refused(direction: &'static str, reason: Reason) {
    count(TLS_REFUSED, direction, reason.as_str());
}

/// A connection that stood is ended, or goes on without new requests.
pub(crate) fn retired(direction: &'static str, end: &End, peer: &SpiffeId) {
    match end {
        End::Refused(reason, why) => {
            tracing::warn!(target: "mesh::tls", direction, %peer, %reason, %why, "connection ended");
        }
        End::Rotated | End::Expired => {
            tracing::debug!(target: "mesh::tls", direction, %peer, reason = end.as_str(), "connection retired");
        }
    }
    count(TLS_RETIRED, direction, end.as_str());
}

fn count(name: &'static str, direction: &'static str, reason: &'static str) {
    let labels = vec![Label::from_static_parts("direction", direction), Label::from_static_parts("reason", reason)];
    metrics::with_recorder(|recorder| {
        recorder.register_counter(&Key::from_parts(name, labels), &METADATA).increment(1)
    });
}
