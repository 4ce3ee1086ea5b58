//! What an inbound chain's connection manager says of requests: the form of paths and who is believed to tell addresses, which
//! rules depend on, and how long callers may take.

use std::time::Duration;

use mesh_core::config::{
    ClientCertHeader, EscapedSlashes, ForwardClientCert, HttpLimits, Inbound, PathNormalization, Underscores,
};
use prost_types::{ListValue, Value, value::Kind};

use super::FILTERS;
use crate::{
    proto::{
        Any,
        envoy::{
            config::{
                core::v3::{
                    Http2ProtocolOptions, HttpProtocolOptions, Metadata,
                    http_protocol_options::HeadersWithUnderscoresAction as UnderscoresAction,
                },
                listener::v3::{FilterChain, FilterChainMatch, filter::ConfigType},
            },
            extensions::filters::{
                http::buffer::v3::Buffer,
                network::{
                    connection_limit::v3::ConnectionLimit,
                    http_connection_manager::v3::{
                        HttpConnectionManager, HttpFilter,
                        http_connection_manager::{
                            ForwardClientCertDetails as Forward, PathWithEscapedSlashesAction as Action,
                            SetCurrentClientCertDetails,
                        },
                        http_filter,
                    },
                },
            },
        },
    },
    translate::{
        filter,
        read::{Ignored, Wrong, wrong},
        value,
    },
};

/// Filters in front of HTTP that only observe, in Istio's chains.
const QUIET: [&str; 2] = ["istio.metadata_exchange", "envoy.filters.network.metadata_exchange"];
const BUFFER: &str = "envoy.filters.http.buffer";
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

/// How many connections there may be, by a filter in front of HTTP (RL8); other such filters are told.
pub(super) fn connection_limit(chain: &FilterChain, ignored: &mut Ignored) -> Result<Option<u64>, Wrong> {
    let mut most = None;
    for filter in chain.filters.iter().rev().skip(1) {
        match &filter.config_type {
            Some(ConfigType::TypedConfig(any)) if any.is::<ConnectionLimit>() => {
                let message: ConnectionLimit = ignored.open(any, FILTERS)?;
                if message.delay.is_some() {
                    ignored.add(FILTERS, "connection_limit.delay");
                }
                match message.max_connections {
                    Some(0) | None => return Err(wrong("filters.max_connections", "must be greater than zero")),
                    limit => most = limit,
                }
            }
            _ if QUIET.contains(&filter.name.as_str()) => {}
            _ => ignored.add(FILTERS, &filter.name),
        }
    }
    Ok(most)
}

/// How much of heads, streams and bytes a connection may take.
pub(super) fn http_limits(manager: &HttpConnectionManager, ignored: &mut Ignored) -> Result<HttpLimits, Wrong> {
    const LARGEST_HEAD: u32 = 8192;
    let windows = 65_535..=i32::MAX as u32;
    let default = HttpLimits::default();
    let common = manager.common_http_protocol_options.unwrap_or_default();
    let http2 = manager.http2_protocol_options.unwrap_or_default();
    for (is_set, field) in [
        (http2.hpack_table_size.is_some(), "http2_protocol_options.hpack_table_size"),
        (http2.connection_keepalive.is_some(), "http2_protocol_options.connection_keepalive"),
    ] {
        if is_set {
            ignored.add(FILTERS, field);
        }
    }
    let checked = |value: Option<u32>, range: std::ops::RangeInclusive<u32>, field: &str| match value {
        Some(value) if !range.contains(&value) => {
            Err(wrong(field, format!("is {value}; it may be {} to {}", range.start(), range.end())))
        }
        value => Ok(value),
    };
    let streams =
        checked(http2.max_concurrent_streams, 1..=i32::MAX as u32, "http2_protocol_options.max_concurrent_streams")?;
    Ok(HttpLimits {
        max_headers: checked(common.max_headers_count, 1..=u32::MAX, "common_http_protocol_options.max_headers_count")?
            .unwrap_or(default.max_headers),
        max_head_kb: checked(manager.max_request_headers_kb, 1..=LARGEST_HEAD, "max_request_headers_kb")?
            .unwrap_or(default.max_head_kb),
        max_body: max_body(manager)?,
        max_streams: streams.unwrap_or(default.max_streams),
        stream_window: checked(
            http2.initial_stream_window_size,
            windows.clone(),
            "http2_protocol_options.initial_stream_window_size",
        )?,
        connection_window: checked(
            http2.initial_connection_window_size,
            windows,
            "http2_protocol_options.initial_connection_window_size",
        )?,
    })
}

/// The most of a request's body, where a filter says so.
pub(super) fn max_body(manager: &HttpConnectionManager) -> Result<Option<u32>, Wrong> {
    let mut most = None;
    for filter in manager.http_filters.iter().filter(|filter| !filter.disabled) {
        let Some(http_filter::ConfigType::TypedConfig(any)) = &filter.config_type else { continue };
        match any.unpack::<Buffer>() {
            None => {}
            Some(Ok(Buffer { max_request_bytes: limit @ Some(1..) })) => most = limit,
            Some(Ok(_)) => return Err(wrong("http_filters.max_request_bytes", "must be greater than zero")),
            Some(Err(error)) => return Err(wrong("http_filters", error.to_string())),
        }
    }
    Ok(most)
}

/// The filters with the limit of bodies among them, in front of the router.
pub(super) fn with_body_limit(mut filters: Vec<HttpFilter>, limits: HttpLimits) -> Vec<HttpFilter> {
    if limits.max_body.is_some() {
        let any = Any::pack(&Buffer { max_request_bytes: limits.max_body });
        let config_type = Some(http_filter::ConfigType::TypedConfig(any));
        let at = filters.len().saturating_sub(1);
        filters.insert(at, HttpFilter { name: BUFFER.to_owned(), config_type, ..HttpFilter::default() });
    }
    filters
}

/// What becomes of headers with an underscore.
pub(super) fn underscores(manager: &HttpConnectionManager) -> Result<Underscores, Wrong> {
    let action = manager.common_http_protocol_options.unwrap_or_default().headers_with_underscores_action;
    match UnderscoresAction::try_from(action) {
        Ok(UnderscoresAction::Allow) => Ok(Underscores::Allow),
        Ok(UnderscoresAction::RejectRequest) => Ok(Underscores::Reject),
        Ok(UnderscoresAction::DropHeader) => Ok(Underscores::Drop),
        Err(_) => Err(wrong("common_http_protocol_options.headers_with_underscores_action", "is none")),
    }
}

/// Whose metadata of a filter chain is ours, and the key of those who are believed to tell addresses.
const MESH: &str = "mesh";
const FORWARDERS: &str = "forwarders";

/// Who is believed to tell addresses, where that is said.
pub(super) fn forwarders(chain: &FilterChain) -> Option<Vec<String>> {
    let Kind::ListValue(list) = value::metadata(chain.metadata.as_ref(), MESH)?.get(FORWARDERS)?.kind.as_ref()? else {
        // What cannot be read believes nobody.
        return Some(Vec::new());
    };
    let text = |value: &Value| match &value.kind {
        Some(Kind::StringValue(text)) => Some(text.clone()),
        _ => None,
    };
    Some(list.values.iter().filter_map(text).collect())
}

/// The same, written.
pub(super) fn encode_forwarders(forwarders: Option<&[String]>) -> Option<Metadata> {
    let values = forwarders?.iter().map(|name| value::text_value(name.as_str())).collect();
    let list = Value { kind: Some(Kind::ListValue(ListValue { values })) };
    let filter_metadata = [(MESH.to_owned(), value::structure([(FORWARDERS, list)]))].into();
    Some(Metadata { filter_metadata, ..Metadata::default() })
}

/// Those who are on both lists, where there are two.
pub(super) fn fewer(one: Option<Vec<String>>, other: Option<Vec<String>>) -> Option<Vec<String>> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.into_iter().filter(|name| other.contains(name)).collect()),
        (one, other) => one.or(other),
    }
}

/// Of two bounds the lower; `None` is none.
pub(super) fn least<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// A network filter in front of HTTP that decides who may connect.
pub(super) fn guard(chain: &FilterChain) -> Option<String> {
    let mut before = chain.filters.iter().rev().skip(1);
    let guard = before.find(|filter| match &filter.config_type {
        Some(ConfigType::TypedConfig(any)) => filter::guards(&filter.name, any),
        None => filter::guards(&filter.name, &Any::default()),
    })?;
    Some(format!("the network filter {:?} guards this port and is not supported: all requests are refused", guard.name))
}

/// Of two chains' words on the caller's certificate the one that believes and tells less.
pub(super) fn stricter(one: ClientCertHeader, other: ClientCertHeader) -> ClientCertHeader {
    let rank = |header: &ClientCertHeader| match header.mode {
        ForwardClientCert::Sanitize => 0,
        ForwardClientCert::SanitizeSet => 1,
        ForwardClientCert::AppendForward => 2,
        ForwardClientCert::ForwardOnly => 3,
        ForwardClientCert::AlwaysForwardOnly => 4,
    };
    let mode = if rank(&one) <= rank(&other) { one.mode } else { other.mode };
    ClientCertHeader {
        mode,
        subject: one.subject && other.subject,
        cert: one.cert && other.cert,
        chain: one.chain && other.chain,
        dns: one.dns && other.dns,
        uri: one.uri && other.uri,
    }
}

/// What is told of the caller's certificate.
pub(super) fn client_cert(manager: &HttpConnectionManager) -> Result<ClientCertHeader, Wrong> {
    let mode = match Forward::try_from(manager.forward_client_cert_details) {
        Ok(Forward::Sanitize) => ForwardClientCert::Sanitize,
        Ok(Forward::ForwardOnly) => ForwardClientCert::ForwardOnly,
        Ok(Forward::AppendForward) => ForwardClientCert::AppendForward,
        Ok(Forward::SanitizeSet) => ForwardClientCert::SanitizeSet,
        Ok(Forward::AlwaysForwardOnly) => ForwardClientCert::AlwaysForwardOnly,
        Err(_) => return Err(wrong("forward_client_cert_details", "is none")),
    };
    let set = manager.set_current_client_cert_details.unwrap_or_default();
    Ok(ClientCertHeader {
        mode,
        subject: set.subject.unwrap_or(false),
        cert: set.cert,
        chain: set.chain,
        dns: set.dns,
        uri: set.uri,
    })
}

/// What a port says of its connections, on the manager; what is the default is not said.
pub(super) fn encode(inbound: &Inbound, manager: &mut HttpConnectionManager) {
    let (http, default) = (inbound.http, HttpLimits::default());
    let said = |value: u32, default: u32| (value != default).then_some(value);
    let underscores = match inbound.underscores {
        Underscores::Allow => UnderscoresAction::Allow,
        Underscores::Reject => UnderscoresAction::RejectRequest,
        Underscores::Drop => UnderscoresAction::DropHeader,
    };
    let common = HttpProtocolOptions {
        max_headers_count: said(http.max_headers, default.max_headers),
        headers_with_underscores_action: underscores.into(),
        ..HttpProtocolOptions::default()
    };
    let http2 = Http2ProtocolOptions {
        max_concurrent_streams: said(http.max_streams, default.max_streams),
        initial_stream_window_size: http.stream_window,
        initial_connection_window_size: http.connection_window,
        ..Http2ProtocolOptions::default()
    };
    manager.common_http_protocol_options = (common != HttpProtocolOptions::default()).then_some(common);
    manager.http2_protocol_options = (http2 != Http2ProtocolOptions::default()).then_some(http2);
    manager.max_request_headers_kb = said(http.max_head_kb, default.max_head_kb);
    let cert = inbound.client_cert;
    manager.forward_client_cert_details = match cert.mode {
        ForwardClientCert::Sanitize => Forward::Sanitize,
        ForwardClientCert::ForwardOnly => Forward::ForwardOnly,
        ForwardClientCert::AppendForward => Forward::AppendForward,
        ForwardClientCert::SanitizeSet => Forward::SanitizeSet,
        ForwardClientCert::AlwaysForwardOnly => Forward::AlwaysForwardOnly,
    }
    .into();
    let ClientCertHeader { subject, cert, chain, dns, uri, .. } = cert;
    let set = SetCurrentClientCertDetails { subject: subject.then_some(true), cert, dns, uri, chain };
    manager.set_current_client_cert_details = (set != SetCurrentClientCertDetails::default()).then_some(set);
}
