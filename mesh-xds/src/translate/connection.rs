//! How connections to a cluster's endpoints are opened, kept and given up, and which HTTP they speak.
//!
//! Source: Envoy `HttpProtocolOptions` (of the cluster's extensions, or its deprecated fields), `UpstreamConnectionOptions`,
//! `BindConfig`, `Cluster.PreconnectPolicy`.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use mesh_core::config::{Cluster, Connections, Http2, Keepalive, Protocol, SocketOption, TcpKeepalive};

use super::{
    endpoint,
    read::{Ignored, Within, Wrong, wrong},
    value,
};
use crate::proto::{
    Any,
    envoy::{
        config::{
            cluster::v3::{Cluster as Message, UpstreamConnectionOptions, cluster::PreconnectPolicy},
            core::v3::{
                self as core, BindConfig, Http1ProtocolOptions, Http2ProtocolOptions, KeepaliveSettings, SocketAddress,
                SocketOption as OptionMessage, TcpKeepalive as TcpKeepaliveMessage,
                socket_address::PortSpecifier,
                socket_option::{SocketState, Value},
            },
        },
        extensions::upstreams::http::v3::{
            HttpProtocolOptions,
            http_protocol_options::{
                AutoHttpConfig, ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
                explicit_http_config::ProtocolConfig,
            },
        },
    },
};

/// Key of the HTTP options among the extension options.
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
const PLACE: &str = "typed_extension_protocol_options";
/// RFC 9113, 6.9.1.
const MAX_WINDOW: u32 = (1 << 31) - 1;
/// RFC 9113, 6.9.2: Envoy takes no smaller one either.
const MIN_WINDOW: u32 = 65_535;

pub(super) fn decode(message: &Message, ignored: &mut Ignored) -> Result<(Protocol, Connections), Wrong> {
    let mut protocol = if message.http2_protocol_options.is_some() { Protocol::Http2 } else { Protocol::Http1 };
    let mut options = message.http2_protocol_options;
    let mut common = message.common_http_protocol_options;
    let mut place = "common_http_protocol_options";
    for (key, any) in &message.typed_extension_protocol_options {
        if !any.is::<HttpProtocolOptions>() {
            ignored.add(PLACE, key);
            continue;
        }
        let read: HttpProtocolOptions = ignored.open(any, PLACE).under(PLACE)?;
        if let Some(newer) = read.common_http_protocol_options {
            (common, place) = (Some(newer), "typed_extension_protocol_options.common_http_protocol_options");
        }
        (protocol, options) = match read.upstream_protocol_options {
            Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) => match explicit.protocol_config {
                Some(ProtocolConfig::Http2ProtocolOptions(options)) => (Protocol::Http2, Some(options)),
                Some(ProtocolConfig::HttpProtocolOptions(_)) | None => (Protocol::Http1, None),
            },
            Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(config)) => {
                (Protocol::Caller, config.http2_protocol_options)
            }
            Some(UpstreamProtocolOptions::AutoConfig(config)) => (Protocol::Auto, config.http2_protocol_options),
            None => (protocol, options),
        };
    }
    let mut connections = Connections {
        max_requests: message.max_requests_per_connection.unwrap_or(0),
        http2: options.map(|options| http2(&options)).transpose().under("http2_protocol_options")?.unwrap_or_default(),
        tcp_keepalive: message
            .upstream_connection_options
            .as_ref()
            .and_then(|options| options.tcp_keepalive.as_ref())
            .map(tcp_keepalive),
        close_when_unhealthy: message.close_connections_on_host_health_failure,
        ..Connections::default()
    };
    if let Some(common) = common {
        of_http(&common, place, &mut connections, ignored).under(place)?;
    }
    if let Some(bind) = &message.upstream_bind_config {
        bind_config(bind, &mut connections, ignored).under("upstream_bind_config")?;
    }
    if let Some(policy) = &message.preconnect_policy {
        connections.preconnect_percent =
            ratio(policy.per_upstream_preconnect_ratio).under("preconnect_policy.per_upstream_preconnect_ratio")?;
        if policy.predictive_preconnect_ratio.is_some_and(|ratio| ratio > 1.0) {
            ignored.add("preconnect_policy", "predictive_preconnect_ratio");
        }
    }
    Ok((protocol, connections))
}

fn of_http(
    common: &core::HttpProtocolOptions,
    place: &str,
    connections: &mut Connections,
    ignored: &mut Ignored,
) -> Result<(), Wrong> {
    connections.idle_timeout = common.idle_timeout.map(|it| value::duration(it, "idle_timeout")).transpose()?;
    connections.max_duration = value::positive(common.max_connection_duration, "max_connection_duration")?;
    if let Some(most) = common.max_requests_per_connection {
        connections.max_requests = most;
    }
    match common.max_headers_count {
        None => {}
        Some(0) => return Err(wrong("max_headers_count", "must be at least 1")),
        Some(most) => connections.max_response_headers = most,
    }
    match common.max_response_headers_kb {
        None => {}
        Some(kib @ 1..=8192) => connections.max_response_headers_kib = kib,
        Some(kib) => return Err(wrong("max_response_headers_kb", format!("{kib} is not between 1 and 8192"))),
    }
    if common.max_stream_duration.is_some() {
        // The route's and the listener's count; the cluster's own does not.
        ignored.add(place, "max_stream_duration");
    }
    Ok(())
}

fn http2(options: &Http2ProtocolOptions) -> Result<Http2, Wrong> {
    let window = |window: Option<u32>, field: &str| match window {
        Some(MIN_WINDOW..=MAX_WINDOW) | None => Ok(window),
        Some(bytes) => Err(wrong(field, format!("{bytes} is not between {MIN_WINDOW} and {MAX_WINDOW}"))),
    };
    let default = Http2::default();
    let keepalive = options.connection_keepalive.as_ref();
    Ok(Http2 {
        max_concurrent_streams: match options.max_concurrent_streams {
            Some(0) => return Err(wrong("max_concurrent_streams", "must be at least 1")),
            most => most.unwrap_or(default.max_concurrent_streams),
        },
        stream_window: window(options.initial_stream_window_size, "initial_stream_window_size")?,
        connection_window: window(options.initial_connection_window_size, "initial_connection_window_size")?,
        header_table: options.hpack_table_size,
        keepalive: keepalive.map(keepalive_settings).transpose().under("connection_keepalive")?,
    })
}

fn keepalive_settings(settings: &KeepaliveSettings) -> Result<Keepalive, Wrong> {
    let Some(timeout) = value::positive(settings.timeout, "timeout")? else {
        return Err(wrong("timeout", "is missing"));
    };
    let after_idle = settings.connection_idle_interval.map(|it| value::duration(it, "connection_idle_interval"));
    Ok(Keepalive {
        interval: value::positive(settings.interval, "interval")?,
        timeout,
        // Envoy asks after a second unless told otherwise; zero never asks.
        after_idle: match after_idle.transpose()? {
            None => Some(Duration::from_secs(1)),
            Some(Duration::ZERO) => None,
            some => some,
        },
    })
}

fn tcp_keepalive(message: &TcpKeepaliveMessage) -> TcpKeepalive {
    let seconds = |seconds: Option<u32>| seconds.map(|seconds| Duration::from_secs(seconds.into()));
    TcpKeepalive {
        probes: message.keepalive_probes,
        time: seconds(message.keepalive_time),
        interval: seconds(message.keepalive_interval),
    }
}

fn bind_config(bind: &BindConfig, connections: &mut Connections, ignored: &mut Ignored) -> Result<(), Wrong> {
    if let Some(source) = &bind.source_address {
        let (host, port) = endpoint::local_address(source.clone()).under("source_address")?;
        let address: IpAddr =
            host.parse().map_err(|_| wrong("source_address", format!("{host:?} is no IP address")))?;
        // The unspecified address leaves the choice to the system, which is the default.
        if !address.is_unspecified() || port != 0 {
            (connections.bind, connections.bind_port) = (Some(address), port);
        }
    }
    for option in &bind.socket_options {
        match socket_option(option) {
            Some(known) => connections.socket_options.push(known),
            None => {
                let what = format!("socket_options level {} name {}", option.level, option.name);
                ignored.add("upstream_bind_config", &what);
            }
        }
    }
    Ok(())
}

/// By the numbers of Linux, which control planes send whatever system they are for.
fn socket_option(option: &OptionMessage) -> Option<SocketOption> {
    let Some(Value::IntValue(value)) = option.value else { return None };
    let number = u32::try_from(value).ok()?;
    if option.state == i32::from(SocketState::StateListening) {
        return None;
    }
    Some(match (option.level, option.name) {
        (1, 2) => SocketOption::ReuseAddress(value != 0),
        (1, 7) => SocketOption::SendBuffer(number),
        (1, 8) => SocketOption::ReceiveBuffer(number),
        (1, 9) => SocketOption::Keepalive(value != 0),
        (1, 36) => SocketOption::Mark(number),
        (0, 1) => SocketOption::TypeOfService(number),
        (6, 1) => SocketOption::NoDelay(value != 0),
        (6, 4) => SocketOption::KeepaliveTime(number),
        (6, 5) => SocketOption::KeepaliveInterval(number),
        (6, 6) => SocketOption::KeepaliveProbes(number),
        (6, 18) => SocketOption::UserTimeout(number),
        _ => return None,
    })
}

fn ratio(ratio: Option<f64>) -> Result<u32, Wrong> {
    match ratio {
        None => Ok(100),
        Some(ratio) if (1.0..=3.0).contains(&ratio) => Ok((ratio * 100.0).round() as u32),
        Some(ratio) => Err(wrong("", format!("{ratio} is not between 1.0 and 3.0"))),
    }
}

/// The extension options that a cluster's protocol and connections make.
pub(super) fn encode_http(cluster: &Cluster) -> BTreeMap<String, Any> {
    let connections = &cluster.connections;
    let default = Connections::default();
    let set = |is: u32, usually: u32| (is != usually).then_some(is);
    let common = core::HttpProtocolOptions {
        idle_timeout: connections.idle_timeout.map(value::encode_duration),
        max_headers_count: set(connections.max_response_headers, default.max_response_headers),
        max_connection_duration: connections.max_duration.map(value::encode_duration),
        max_stream_duration: None,
        headers_with_underscores_action: 0,
        max_requests_per_connection: set(connections.max_requests, 0),
        max_response_headers_kb: set(connections.max_response_headers_kib, default.max_response_headers_kib),
    };
    let http2 = || encode_http2(&connections.http2);
    let (http_protocol_options, http2_protocol_options) = (None, Some(http2()));
    let protocol = match cluster.protocol {
        Protocol::Http1 => UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(ProtocolConfig::HttpProtocolOptions(Http1ProtocolOptions {})),
        }),
        Protocol::Http2 => UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(http2())),
        }),
        Protocol::Caller => UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
            http_protocol_options,
            http2_protocol_options,
        }),
        Protocol::Auto => {
            UpstreamProtocolOptions::AutoConfig(AutoHttpConfig { http_protocol_options, http2_protocol_options })
        }
    };
    let options = HttpProtocolOptions {
        common_http_protocol_options: (common != core::HttpProtocolOptions::default()).then_some(common),
        upstream_protocol_options: Some(protocol),
        ..HttpProtocolOptions::default()
    };
    [(HTTP_OPTIONS.to_owned(), Any::pack(&options))].into()
}

fn encode_http2(options: &Http2) -> Http2ProtocolOptions {
    let most = options.max_concurrent_streams;
    Http2ProtocolOptions {
        hpack_table_size: options.header_table,
        max_concurrent_streams: (most != Http2::default().max_concurrent_streams).then_some(most),
        initial_stream_window_size: options.stream_window,
        initial_connection_window_size: options.connection_window,
        connection_keepalive: options.keepalive.map(|keepalive| KeepaliveSettings {
            interval: keepalive.interval.map(value::encode_duration),
            timeout: Some(value::encode_duration(keepalive.timeout)),
            connection_idle_interval: Some(value::encode_duration(keepalive.after_idle.unwrap_or_default())),
        }),
    }
}

/// Sets what a cluster's message says of connections outside its extension options.
pub(super) fn encode(connections: &Connections, message: &mut Message) {
    message.upstream_connection_options = connections.tcp_keepalive.map(|keepalive| {
        let seconds = |duration: Option<Duration>| duration.map(|it| u32::try_from(it.as_secs()).unwrap_or(u32::MAX));
        UpstreamConnectionOptions {
            tcp_keepalive: Some(TcpKeepaliveMessage {
                keepalive_probes: keepalive.probes,
                keepalive_time: seconds(keepalive.time),
                keepalive_interval: seconds(keepalive.interval),
            }),
        }
    });
    message.close_connections_on_host_health_failure = connections.close_when_unhealthy;
    if connections.preconnect_percent > 100 {
        let ratio = f64::from(connections.preconnect_percent) / 100.0;
        message.preconnect_policy =
            Some(PreconnectPolicy { per_upstream_preconnect_ratio: Some(ratio), predictive_preconnect_ratio: None });
    }
    if connections.bind.is_some() || !connections.socket_options.is_empty() {
        message.upstream_bind_config = Some(BindConfig {
            source_address: connections.bind.map(|address| SocketAddress {
                address: address.to_string(),
                port_specifier: Some(PortSpecifier::PortValue(connections.bind_port.into())),
                ..SocketAddress::default()
            }),
            socket_options: connections.socket_options.iter().copied().map(encode_socket_option).collect(),
        });
    }
}

fn encode_socket_option(option: SocketOption) -> OptionMessage {
    let (level, name, value) = match option {
        SocketOption::ReuseAddress(on) => (1, 2, u32::from(on)),
        SocketOption::SendBuffer(bytes) => (1, 7, bytes),
        SocketOption::ReceiveBuffer(bytes) => (1, 8, bytes),
        SocketOption::Keepalive(on) => (1, 9, u32::from(on)),
        SocketOption::Mark(mark) => (1, 36, mark),
        SocketOption::TypeOfService(tos) => (0, 1, tos),
        SocketOption::NoDelay(on) => (6, 1, u32::from(on)),
        SocketOption::KeepaliveTime(seconds) => (6, 4, seconds),
        SocketOption::KeepaliveInterval(seconds) => (6, 5, seconds),
        SocketOption::KeepaliveProbes(probes) => (6, 6, probes),
        SocketOption::UserTimeout(millis) => (6, 18, millis),
    };
    OptionMessage { level, name, value: Some(Value::IntValue(value.into())), ..OptionMessage::default() }
}
