//! What an inbound chain's connection manager says of requests: the form of paths and who is believed to tell addresses, which
//! rules depend on, and how long callers may take.

use std::time::Duration;

use mesh_core::config::{EscapedSlashes, PathNormalization};

use super::FILTERS;
use crate::{
    proto::envoy::{
        config::listener::v3::FilterChainMatch,
        extensions::filters::network::http_connection_manager::v3::{
            HttpConnectionManager, http_connection_manager::PathWithEscapedSlashesAction as Action,
        },
    },
    translate::{
        read::{Ignored, Wrong, wrong},
        value,
    },
};

/// What narrows a chain of ours further than its port and its protocol do.
pub(super) fn narrowed(matches: &FilterChainMatch) -> Option<&'static str> {
    let narrows = [
        (!matches.direct_source_prefix_ranges.is_empty(), "direct_source_prefix_ranges"),
        (matches.source_type != 0, "source_type"),
        (!matches.source_prefix_ranges.is_empty(), "source_prefix_ranges"),
        (!matches.source_ports.is_empty(), "source_ports"),
        (!matches.server_names.is_empty(), "server_names"),
    ];
    narrows.into_iter().find_map(|(is_set, field)| is_set.then_some(field))
}

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

/// How many proxies are believed. Of none the connection alone tells (gRFC A41), unlike in an Envoy that does not use the
/// remote address: it takes whatever the caller wrote last.
pub(super) fn trusted_hops(manager: &HttpConnectionManager) -> Option<u32> {
    match (manager.xff_num_trusted_hops, manager.use_remote_address) {
        (0, _) => None,
        // It appends the connection's address itself, which counts.
        (hops, Some(true)) => Some(hops - 1),
        (hops, _) => Some(hops),
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
