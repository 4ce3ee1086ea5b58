//! What an inbound chain's connection manager says of requests: the form of paths and who is believed to tell addresses, which
//! rules depend on, and how long callers may take.

use std::time::Duration;

use mesh_core::config::{EscapedSlashes, Inbound, PathNormalization};

use super::FILTERS;
use crate::{
    proto::envoy::extensions::filters::network::http_connection_manager::v3::{
        HttpConnectionManager, http_connection_manager::PathWithEscapedSlashesAction as Action,
    },
    translate::{
        read::{Ignored, Wrong, wrong},
        value,
    },
};

/// The form of paths (SV11). What is not said is not done.
pub(super) fn path(manager: &HttpConnectionManager) -> Result<PathNormalization, Wrong> {
    let escaped_slashes = match Action::try_from(manager.path_with_escaped_slashes_action) {
        Ok(Action::ImplementationSpecificDefault | Action::KeepUnchanged) => EscapedSlashes::Keep,
        Ok(Action::RejectRequest) => EscapedSlashes::Reject,
        Ok(Action::UnescapeAndRedirect) => EscapedSlashes::Redirect,
        Ok(Action::UnescapeAndForward) => EscapedSlashes::Forward,
        Err(_) => {
            let why = format!("is {}, which is none", manager.path_with_escaped_slashes_action);
            return Err(wrong("path_with_escaped_slashes_action", why));
        }
    };
    let (dot_segments, merge_slashes) = (manager.normalize_path.unwrap_or(false), manager.merge_slashes);
    Ok(PathNormalization { dot_segments, merge_slashes, escaped_slashes })
}

pub(super) fn encode_slashes(wanted: EscapedSlashes) -> i32 {
    let action = match wanted {
        EscapedSlashes::Keep => Action::KeepUnchanged,
        EscapedSlashes::Reject => Action::RejectRequest,
        EscapedSlashes::Redirect => Action::UnescapeAndRedirect,
        EscapedSlashes::Forward => Action::UnescapeAndForward,
    };
    action.into()
}

/// How many proxies are believed, and whether members of the mesh are where none is said to be. An Envoy that does not use the
/// remote address believes whoever calls; here it takes a certificate.
pub(super) fn trust(manager: &HttpConnectionManager) -> (Option<u32>, bool) {
    match (manager.xff_num_trusted_hops, manager.use_remote_address == Some(true)) {
        (0, own) => (None, !own),
        // It appends the connection's address itself, which counts.
        (hops, true) => (Some(hops - 1), true),
        (hops, false) => (Some(hops), true),
    }
}

/// The same, written.
pub(super) fn encode_trust(inbound: &Inbound) -> (u32, Option<bool>) {
    match (inbound.trusted_hops, inbound.members_forward) {
        (None, members) => (0, (!members).then_some(true)),
        (Some(0), _) => (1, Some(true)),
        (Some(hops), _) => (hops, None),
    }
}

/// How long callers may take for heads and for whole requests; what else is said of their connections is told (TO9).
pub(super) fn server_limits(
    manager: &HttpConnectionManager,
    ignored: &mut Ignored,
) -> Result<(Option<Duration>, Option<Duration>), Wrong> {
    let common = manager.common_http_protocol_options.unwrap_or_default();
    for (is_set, field) in [
        (manager.stream_idle_timeout.is_some_and(|it| it != Default::default()), "stream_idle_timeout"),
        (common.idle_timeout.is_some(), "common_http_protocol_options.idle_timeout"),
        (common.max_stream_duration.is_some(), "common_http_protocol_options.max_stream_duration"),
        (common.max_connection_duration.is_some(), "common_http_protocol_options.max_connection_duration"),
        (common.max_requests_per_connection.is_some(), "common_http_protocol_options.max_requests_per_connection"),
        (common.max_headers_count.is_some(), "common_http_protocol_options.max_headers_count"),
    ] {
        if is_set {
            ignored.add(FILTERS, field);
        }
    }
    let limit = |limit: Option<prost_types::Duration>, field| {
        let limit = limit.map(|it| value::duration(it, field)).transpose();
        limit.map(|limit| limit.filter(|limit| *limit > Duration::ZERO))
    };
    Ok((
        limit(manager.request_headers_timeout, "request_headers_timeout")?,
        limit(manager.request_timeout, "request_timeout")?,
    ))
}
