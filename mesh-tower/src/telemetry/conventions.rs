//! The metrics of conventions beside Istio's: OpenTelemetry's for HTTP and RPC, and gRPC's own. What there is, in which unit,
//! between which bounds, by which labels; counting is in `sheet.rs`, when is in `meter.rs`.
//!
//! Sources: OpenTelemetry semantic conventions 1.44 for HTTP (stable) and RPC; gRFC A66, A78, A89, A94, A96.

/// Instruments that are told together, with one set of labels.
#[derive(Debug)]
pub(super) struct Table {
    /// Its place among all tables.
    pub(super) id: u8,
    /// Under which name it is asked for.
    #[cfg_attr(not(test), allow(dead_code, reason = "for the reference, which a test writes"))]
    pub(super) profile: &'static str,
    pub(super) labels: &'static [&'static str],
    pub(super) instruments: &'static [Instrument],
    /// The first text is a name that callers write.
    pub(super) is_open: bool,
    /// The word for what is not told by its own name.
    pub(super) other: &'static str,
}

impl PartialEq for Table {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Table {}

/// One metric.
#[derive(Debug)]
pub(super) struct Instrument {
    /// As the convention writes it, with dots.
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    /// UCUM.
    pub(super) unit: &'static str,
    pub(super) help: &'static str,
}

/// What a metric is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Counter,
    /// Goes up and down.
    UpDown,
    /// With these upper bounds.
    Histogram(&'static [f64]),
}

impl Kind {
    pub(super) fn bounds(self) -> Option<&'static [f64]> {
        match self {
            Self::Histogram(bounds) => Some(bounds),
            Self::Counter | Self::UpDown => None,
        }
    }
}

/// Seconds of a request. Source: OpenTelemetry `http.server.request.duration`.
const SECONDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

/// Seconds of a call. Source: gRFC A66.
const LATENCY: &[f64] = &[
    0.0, 0.00001, 0.00005, 0.0001, 0.0003, 0.0006, 0.0008, 0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.008, 0.01,
    0.013, 0.016, 0.02, 0.025, 0.03, 0.04, 0.05, 0.065, 0.08, 0.1, 0.13, 0.16, 0.2, 0.25, 0.3, 0.4, 0.5, 0.65, 0.8,
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0,
];

/// Bytes of messages. Source: gRFC A66.
const SIZES: &[f64] = &[
    0.0,
    1_024.0,
    2_048.0,
    4_096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
    268_435_456.0,
    1_073_741_824.0,
    4_294_967_296.0,
];

/// Further attempts of a call. Source: gRFC A96.
const AGAIN: &[f64] = &[1.0, 2.0, 3.0, 4.0, 5.0];
/// The same of those nobody asked for. Source: gRFC A96.
const UNASKED: &[f64] = &[1.0, 2.0, 3.0, 4.0, 5.0, 10.0];

/// OpenTelemetry's word for what is not told by its own name.
pub(super) const OTHER: &str = "_OTHER";
/// gRPC's.
pub(super) const GRPC_OTHER: &str = "other";

/// gRPC's label for where an attempt went; only told where it is asked for. Source: gRFC A78.
pub(super) const LOCALITY: &str = "grpc.lb.locality";
/// gRPC's label for the cluster of an attempt; only told where it is asked for. Source: gRFC A89.
pub(super) const BACKEND_SERVICE: &str = "grpc.lb.backend_service";

/// gRPC's label with what the application says of a call; only told where it is asked for. Source: gRFC A108.
pub(super) const CUSTOM: &str = "grpc.client.call.custom";

const fn histogram(name: &'static str, unit: &'static str, bounds: &'static [f64], help: &'static str) -> Instrument {
    Instrument { name, kind: Kind::Histogram(bounds), unit, help }
}

const fn counter(name: &'static str, unit: &'static str, help: &'static str) -> Instrument {
    Instrument { name, kind: Kind::Counter, unit, help }
}

/// Each attempt over HTTP that is not gRPC.
pub(super) static HTTP_CLIENT: Table = Table {
    id: 0,
    profile: "otel",
    labels: &[
        "http.request.method",
        "server.address",
        "server.port",
        "http.response.status_code",
        "error.type",
        "network.protocol.version",
    ],
    instruments: &[histogram("http.client.request.duration", "s", SECONDS, "Duration of HTTP client requests.")],
    is_open: false,
    other: OTHER,
};

/// Each request served that is not gRPC.
pub(super) static HTTP_SERVER: Table = Table {
    id: 1,
    profile: "otel",
    labels: &[
        "http.route",
        "http.request.method",
        "url.scheme",
        "http.response.status_code",
        "error.type",
        "network.protocol.version",
    ],
    instruments: &[histogram("http.server.request.duration", "s", SECONDS, "Duration of HTTP server requests.")],
    is_open: true,
    other: OTHER,
};

/// Each gRPC call made.
pub(super) static RPC_CLIENT: Table = Table {
    id: 2,
    profile: "otel",
    labels: &[
        "rpc.method",
        "rpc.system.name",
        "server.address",
        "server.port",
        "rpc.response.status_code",
        "error.type",
    ],
    instruments: &[histogram("rpc.client.call.duration", "s", SECONDS, "Duration of outgoing remote procedure calls.")],
    is_open: true,
    other: OTHER,
};

/// Each gRPC call served.
pub(super) static RPC_SERVER: Table = Table {
    id: 3,
    profile: "otel",
    labels: &["rpc.method", "rpc.system.name", "rpc.response.status_code", "error.type"],
    instruments: &[histogram("rpc.server.call.duration", "s", SECONDS, "Duration of incoming remote procedure calls.")],
    is_open: true,
    other: OTHER,
};

/// Each attempt of a gRPC call, as it begins.
pub(super) static GRPC_STARTED: Table = Table {
    id: 4,
    profile: "grpc",
    labels: &["grpc.method", "grpc.target", CUSTOM],
    instruments: &[counter(
        "grpc.client.attempt.started",
        "{attempt}",
        "Attempts of calls that were begun, those that have not ended among them.",
    )],
    is_open: true,
    other: GRPC_OTHER,
};

/// Each attempt of a gRPC call, as it ends.
pub(super) static GRPC_ATTEMPT: Table = Table {
    id: 5,
    profile: "grpc",
    labels: &["grpc.method", "grpc.target", "grpc.status", LOCALITY, BACKEND_SERVICE, CUSTOM],
    instruments: &[
        histogram("grpc.client.attempt.duration", "s", LATENCY, "Time an attempt took from its beginning to its end."),
        histogram(
            "grpc.client.attempt.sent_total_compressed_message_size",
            "By",
            SIZES,
            "Bytes of an attempt's request messages, compressed, without their framing.",
        ),
        histogram(
            "grpc.client.attempt.rcvd_total_compressed_message_size",
            "By",
            SIZES,
            "Bytes of an attempt's response messages, compressed, without their framing.",
        ),
    ],
    is_open: true,
    other: GRPC_OTHER,
};

/// Each gRPC call made, as it ends.
pub(super) static GRPC_CALL: Table = Table {
    id: 6,
    profile: "grpc",
    labels: &["grpc.method", "grpc.target", "grpc.status", CUSTOM],
    instruments: &[histogram(
        "grpc.client.call.duration",
        "s",
        LATENCY,
        "Time a call took as the application sees it.",
    )],
    is_open: true,
    other: GRPC_OTHER,
};

/// Each gRPC call made that took more than one attempt.
pub(super) static GRPC_AGAIN: Table = Table {
    id: 7,
    profile: "grpc",
    labels: &["grpc.method", "grpc.target", CUSTOM],
    instruments: &[
        histogram("grpc.client.call.retries", "{retry}", AGAIN, "Retries of a call, where there were any."),
        histogram(
            "grpc.client.call.transparent_retries",
            "{transparent_retry}",
            UNASKED,
            "Retries of a call that no policy asked for, where there were any.",
        ),
        histogram(
            "grpc.client.call.hedges",
            "{hedge}",
            AGAIN,
            "Attempts beside others of a call, where there were any.",
        ),
        histogram(
            "grpc.client.call.retry_delay",
            "s",
            LATENCY,
            "Time of a call with no attempt under way, where it was tried again.",
        ),
    ],
    is_open: true,
    other: GRPC_OTHER,
};

/// Each gRPC call served, as it begins.
pub(super) static GRPC_SERVED_STARTED: Table = Table {
    id: 8,
    profile: "grpc",
    labels: &["grpc.method"],
    instruments: &[counter(
        "grpc.server.call.started",
        "{call}",
        "Calls that came in, those that have not ended among them.",
    )],
    is_open: true,
    other: GRPC_OTHER,
};

/// Each gRPC call served, as it ends.
pub(super) static GRPC_SERVED: Table = Table {
    id: 9,
    profile: "grpc",
    labels: &["grpc.method", "grpc.status"],
    instruments: &[
        histogram("grpc.server.call.duration", "s", LATENCY, "Time a call took from its arrival to its last byte."),
        histogram(
            "grpc.server.call.sent_total_compressed_message_size",
            "By",
            SIZES,
            "Bytes of a call's response messages, compressed, without their framing.",
        ),
        histogram(
            "grpc.server.call.rcvd_total_compressed_message_size",
            "By",
            SIZES,
            "Bytes of a call's request messages, compressed, without their framing.",
        ),
    ],
    is_open: true,
    other: GRPC_OTHER,
};

/// Connections to endpoints, by what became of them.
pub(super) static SUBCHANNEL: Table = Table {
    id: 10,
    profile: "grpc",
    labels: &["grpc.target", LOCALITY, BACKEND_SERVICE],
    instruments: &[
        counter(
            "grpc.subchannel.connection_attempts_succeeded",
            "{attempt}",
            "Connections to endpoints that came about.",
        ),
        counter(
            "grpc.subchannel.connection_attempts_failed",
            "{attempt}",
            "Connections to endpoints that did not come about.",
        ),
        Instrument {
            name: "grpc.subchannel.open_connections",
            kind: Kind::UpDown,
            unit: "{connection}",
            help: "Connections to endpoints that are open.",
        },
    ],
    is_open: false,
    other: GRPC_OTHER,
};

/// Connections to endpoints that ended, by why.
pub(super) static DISCONNECTIONS: Table = Table {
    id: 11,
    profile: "grpc",
    labels: &["grpc.target", LOCALITY, BACKEND_SERVICE, "grpc.disconnect_error"],
    instruments: &[counter(
        "grpc.subchannel.disconnections",
        "{disconnection}",
        "Connections to endpoints that ended after they had come about.",
    )],
    is_open: false,
    other: GRPC_OTHER,
};

/// Connections whose bytes a gateway hands on. Source: Istio's standard metrics.
pub(super) static ISTIO_TCP: Table = Table {
    id: 12,
    profile: "istio",
    labels: &[
        "reporter",
        "source_workload",
        "source_canonical_service",
        "source_canonical_revision",
        "source_workload_namespace",
        "source_principal",
        "source_app",
        "source_version",
        "source_cluster",
        "destination_workload",
        "destination_workload_namespace",
        "destination_principal",
        "destination_app",
        "destination_version",
        "destination_service",
        "destination_canonical_service",
        "destination_canonical_revision",
        "destination_service_name",
        "destination_service_namespace",
        "destination_cluster",
        "request_protocol",
        "response_flags",
        "connection_security_policy",
    ],
    instruments: &[
        counter("istio_tcp_sent", "By", "Bytes handed on from the server to its caller."),
        counter("istio_tcp_received", "By", "Bytes handed on from the caller to its server."),
        counter("istio_tcp_connections_opened", "{connection}", "Connections that came to be handed on."),
        counter("istio_tcp_connections_closed", "{connection}", "The same that have ended."),
    ],
    is_open: false,
    other: OTHER,
};

/// All tables, in their order.
#[cfg(test)]
pub(super) static TABLES: [&Table; 13] = [
    &HTTP_CLIENT,
    &HTTP_SERVER,
    &RPC_CLIENT,
    &RPC_SERVER,
    &GRPC_STARTED,
    &GRPC_ATTEMPT,
    &GRPC_CALL,
    &GRPC_AGAIN,
    &GRPC_SERVED_STARTED,
    &GRPC_SERVED,
    &SUBCHANNEL,
    &DISCONNECTIONS,
    &ISTIO_TCP,
];

/// The name of a gRPC status.
pub(super) fn status_name(status: u32) -> &'static str {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    usize::try_from(status).ok().and_then(|status| NAMES.get(status)).copied().unwrap_or("UNKNOWN")
}

/// A server's answer that is its own failure. Source: OpenTelemetry "Semantic conventions for gRPC".
pub(super) fn is_server_error(status: u32) -> bool {
    matches!(status, 2 | 4 | 12 | 13 | 14 | 15)
}

/// The method of a request, if it is one that everybody knows. Source: OpenTelemetry `http.request.method`.
pub(super) fn method_name(method: &http::Method) -> &'static str {
    const KNOWN: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
    KNOWN.into_iter().find(|known| *known == method.as_str()).unwrap_or(OTHER)
}

/// What went wrong, in one word of a closed set, from Envoy's response code details.
pub(super) fn error_type(details: &'static str) -> &'static str {
    match details.split_once('{') {
        Some((_, inner)) => inner.trim_end_matches('}'),
        None => details,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// TE2, TE3: tables are in their order, bounds rise, and names are told as Prometheus writes them.
    #[test]
    fn tables_are_in_order() {
        for (at, table) in TABLES.into_iter().enumerate() {
            assert_eq!(usize::from(table.id), at, "{:?}", table.labels);
            for instrument in table.instruments {
                if let Some(bounds) = instrument.kind.bounds() {
                    assert!(bounds.windows(2).all(|pair| pair[0] < pair[1]), "{}", instrument.name);
                }
            }
        }
        assert_eq!(LATENCY.len(), 41);
        let names: Vec<String> = [&HTTP_SERVER, &GRPC_STARTED, &GRPC_ATTEMPT]
            .iter()
            .flat_map(|table| table.instruments.iter().map(super::super::sheet::prometheus_name))
            .collect();
        assert_eq!(
            names,
            [
                "http_server_request_duration_seconds",
                "grpc_client_attempt_started_total",
                "grpc_client_attempt_duration_seconds",
                "grpc_client_attempt_sent_total_compressed_message_size_bytes",
                "grpc_client_attempt_rcvd_total_compressed_message_size_bytes",
            ]
        );
        assert_eq!((status_name(0), status_name(14), status_name(99)), ("OK", "UNAVAILABLE", "UNKNOWN"));
        assert_eq!(error_type("upstream_reset_before_response_started{tls_failure}"), "tls_failure");
    }
}
