//! How connections to a cluster's endpoints are opened, kept and given up. Not here: how many there may be (thresholds)
//! and TLS. Source: Envoy `HttpProtocolOptions`, `UpstreamConnectionOptions`, `BindConfig`, `PreconnectPolicy`.

use std::{net::IpAddr, time::Duration};

use serde::{Deserialize, Serialize};

/// How connections are opened, kept and given up.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Connections {
    /// A connection without requests for this long is closed; zero is never.
    ///
    /// Envoy `common_http_protocol_options.idle_timeout`. `None` is 50 s here, not Envoy's hour: servers commonly close
    /// after a minute, and closing first means never writing to a connection that is just being closed.
    pub idle_timeout: Option<Duration>,
    /// A connection this old gets no new requests and closes when its last one ends; `None` is never.
    ///
    /// Envoy `common_http_protocol_options.max_connection_duration`.
    pub max_duration: Option<Duration>,
    /// How many requests a connection serves before it closes; 0 is without limit, 1 is no keep-alive.
    ///
    /// Envoy `common_http_protocol_options.max_requests_per_connection`, `Cluster.max_requests_per_connection`.
    pub max_requests: u32,
    /// A response with more header fields breaks the protocol. Envoy `common_http_protocol_options.max_headers_count`,
    /// default 100.
    pub max_response_headers: u32,
    /// A response with larger headers breaks the protocol, in KiB. Envoy
    /// `common_http_protocol_options.max_response_headers_kb`, default 60.
    pub max_response_headers_kib: u32,
    /// Of HTTP/2 connections.
    pub http2: Http2,
    /// Probes of a silent connection below TLS; `None` leaves them off. Envoy
    /// `upstream_connection_options.tcp_keepalive`.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// The local address connections are made from. Envoy `upstream_bind_config.source_address`.
    pub bind: Option<IpAddr>,
    /// The local port connections are made from; 0 is any. Of use with [`bind`](Self::bind) only.
    pub bind_port: u16,
    /// Set on each socket before it connects. Envoy `upstream_bind_config.socket_options`.
    pub socket_options: Vec<SocketOption>,
    /// Connections kept ready, in percent of the requests under way at an endpoint, from 100 (none ahead) to 300.
    ///
    /// Envoy `preconnect_policy.per_upstream_preconnect_ratio` (1.0 to 3.0).
    pub preconnect_percent: u32,
    /// Connections to an endpoint that is found unhealthy are closed, those in use when their requests have ended.
    ///
    /// Envoy `close_connections_on_host_health_failure`, which ends the requests, too.
    pub close_when_unhealthy: bool,
}

impl Default for Connections {
    fn default() -> Self {
        Self {
            idle_timeout: None,
            max_duration: None,
            max_requests: 0,
            max_response_headers: 100,
            max_response_headers_kib: 60,
            http2: Http2::default(),
            tcp_keepalive: None,
            bind: None,
            bind_port: 0,
            socket_options: Vec::new(),
            preconnect_percent: 100,
            close_when_unhealthy: false,
        }
    }
}

/// Of HTTP/2 connections. Source: Envoy `Http2ProtocolOptions`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Http2 {
    /// How many requests one connection carries at once, within what the peer takes; more open further connections.
    ///
    /// Envoy `max_concurrent_streams`, default 1024.
    pub max_concurrent_streams: u32,
    /// What one response may send ahead of its reader, in bytes; `None` is 2 MiB here.
    ///
    /// Envoy `initial_stream_window_size`, whose 16 MiB are meant for a proxy of its own.
    pub stream_window: Option<u32>,
    /// What all responses of a connection may send ahead of their readers, in bytes; `None` is 5 MiB here.
    ///
    /// Envoy `initial_connection_window_size`, there 24 MiB.
    pub connection_window: Option<u32>,
    /// The dynamic table for the response's headers, in bytes; `None` is 4096. Envoy `hpack_table_size`.
    pub header_table: Option<u32>,
    /// Pings on a connection; `None` sends none. Envoy `connection_keepalive`.
    pub keepalive: Option<Keepalive>,
}

impl Default for Http2 {
    fn default() -> Self {
        Self {
            max_concurrent_streams: 1024,
            stream_window: None,
            connection_window: None,
            header_table: None,
            keepalive: None,
        }
    }
}

/// HTTP/2 pings that find dead connections. Source: Envoy `KeepaliveSettings`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Keepalive {
    /// Between pings while requests are under way, none otherwise; `None` sends none. Envoy `interval`.
    ///
    /// gRPC servers tolerate one ping in five minutes unless told otherwise, and none without requests (gRFC A8, A9).
    pub interval: Option<Duration>,
    /// How long the answer may take before the connection is given up. Envoy `timeout`.
    pub timeout: Duration,
    /// Before a connection is used again that lay idle this long, it is asked whether it is still there; `None` does not
    /// ask. Envoy `connection_idle_interval`, default 1 s there.
    pub after_idle: Option<Duration>,
}

/// TCP's own probes. Linux's defaults where unset. Source: Envoy `TcpKeepalive`.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct TcpKeepalive {
    /// Unanswered probes before the connection is given up. Envoy `keepalive_probes`.
    pub probes: Option<u32>,
    /// Silence before the first probe. Envoy `keepalive_time`.
    pub time: Option<Duration>,
    /// Between probes. Envoy `keepalive_interval`.
    pub interval: Option<Duration>,
}

/// An option of a socket, of those that this library can set. Source: Envoy `SocketOption`, by level and name as on Linux.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SocketOption {
    /// `SOL_SOCKET`, `SO_KEEPALIVE`.
    Keepalive(bool),
    /// `SOL_SOCKET`, `SO_REUSEADDR`.
    ReuseAddress(bool),
    /// `SOL_SOCKET`, `SO_SNDBUF`, in bytes.
    SendBuffer(u32),
    /// `SOL_SOCKET`, `SO_RCVBUF`, in bytes.
    ReceiveBuffer(u32),
    /// `SOL_SOCKET`, `SO_MARK`; takes `CAP_NET_ADMIN`.
    Mark(u32),
    /// `IPPROTO_IP`, `IP_TOS`.
    TypeOfService(u32),
    /// `IPPROTO_TCP`, `TCP_NODELAY`; on unless it is switched off here.
    NoDelay(bool),
    /// `IPPROTO_TCP`, `TCP_USER_TIMEOUT`, in milliseconds.
    UserTimeout(u32),
    /// `IPPROTO_TCP`, `TCP_KEEPIDLE`, in seconds.
    KeepaliveTime(u32),
    /// `IPPROTO_TCP`, `TCP_KEEPINTVL`, in seconds.
    KeepaliveInterval(u32),
    /// `IPPROTO_TCP`, `TCP_KEEPCNT`.
    KeepaliveProbes(u32),
}
